"""The subtask actor, and THE loop.

The loop takes, in this order: control messages; barriers that have left; the batch in hand; a triggered barrier; what
is unsent; the next element of an unblocked channel. So a barrier is handled only when nothing is in hand (aligned
protocols), and nothing is taken from the mailbox while there is no room downstream: that is how back-pressure travels.

Invariant: between two iterations every record taken from the input is either fully processed, or in the chain's stack,
or staged or unsent in an output.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from streamactors.actors.governor import Governor
from streamactors.actors.mailbox import Mailbox
from streamactors.checkpoint.protocol import (
    Aborted,
    Acknowledge,
    Action,
    BarrierAtHead,
    BarrierLeft,
    BarrierProtocol,
    Block,
    ChannelEnded,
    Decline,
    Discard,
    Event,
    Forward,
    Snapshot,
    Triggered,
    UnblockAll,
)
from streamactors.elements import END, Barrier, Batch, Element
from streamactors.errors import StateAccessError
from streamactors.graph.physical import SubtaskId
from streamactors.operators.sink import SinkLink
from streamactors.runtime.chain import Chain
from streamactors.runtime.inputs import Input
from streamactors.runtime.messages import (
    CheckpointAborted,
    CheckpointComplete,
    Control,
    EndReached,
    Finish,
    Query,
    ReadingStopped,
    Ready,
    Reports,
    SnapshotDeclined,
    Start,
    StopReading,
    TransactionsCommitted,
    TriggerBarrier,
)
from streamactors.runtime.nodes import NodeRuntime
from streamactors.runtime.routing import Outputs
from streamactors.runtime.snapshot import CapturedNode, Snapshots


class Subtask:
    """One subtask of one vertex during one attempt. `snapshots` is None where the job takes no checkpoints."""

    def __init__(
        self,
        id: SubtaskId,
        *,
        mailbox: Mailbox[Element],
        source: Input,
        chain: Chain,
        outputs: Outputs,
        nodes: Sequence[NodeRuntime],
        protocol: BarrierProtocol,
        snapshots: Snapshots | None,
        reports: Reports,
        governor: Governor,
        monotonic: Callable[[], float],
    ) -> None:
        self.id = id
        self.mailbox = mailbox
        self.chain = chain
        chain.make_room = self.make_room
        chain.check_alive = self._check_alive
        self.outputs = outputs
        self.nodes = nodes
        self._input = source
        self._protocol = protocol
        self._snapshots = snapshots
        self._reports = reports
        self._governor = governor
        self._monotonic = monotonic
        self._sinks = [slot.link for slot in chain.slots if isinstance(slot.link, SinkLink)]
        self._triggers: deque[Barrier] = deque()
        self._open_channels = max(1, source.channels)
        self._started = False
        self._ended = False
        self._done = False
        self.snapshot_seconds = 0.0
        """How long the synchronous part of the last snapshot took."""

    # ------------------------------------------------------------------------------------------------------ lifetime
    async def run(self) -> None:
        """Open and work; returns when the data has ended (and, under checkpoints, the job says so)."""
        await self._open()
        await self._loop()

    async def _open(self) -> None:
        for node in self.nodes:
            await node.restore()
        await self.chain.open()
        await self._input.open()
        self._reports(Ready(self.id))

    async def close(self) -> None:
        """However far `run` got; raises the first error once all is closed."""
        if self._snapshots is not None:
            await self._snapshots.close()
        try:
            await self._input.close()
        finally:
            try:
                await self.chain.close()
            finally:
                self.revoke_state()

    def abandon(self) -> None:
        """Nothing more is processed or sent, even if user code swallows the cancellation that follows."""
        self._done = True

    def revoke_state(self) -> None:
        """From now on, state raises StateAccessError."""
        for node in self.nodes:
            node.close()

    def _check_alive(self) -> None:
        if self._done:
            raise asyncio.CancelledError(f"{self.id} was abandoned, and its code swallowed the cancellation")

    # ---------------------------------------------------------------------------------------------------------- loop
    async def _loop(self) -> None:
        control, signal = self.mailbox.control, self.mailbox.signal
        chain, outputs, governor = self.chain, self.outputs, self._governor
        while not self._done:
            if control:
                await self._obey(control.popleft())
            elif outputs.departed:
                await self._on(BarrierLeft(outputs.departed.pop(0)))
            elif not self._started:
                await signal.wait()
            elif governor.due():
                await governor.turn()
            elif chain.busy and outputs.flush():
                await self._work()
            elif self._triggers and not chain.busy:
                await self._on(Triggered(self._triggers.popleft()))
            elif not outputs.flush():
                await signal.wait()
            elif (taken := self._input.take()) is not None:
                await self._take(*taken)
            elif self._ended and self._snapshots is None:
                return
            elif not outputs.departed:
                await signal.wait()

    async def _work(self) -> None:
        await self.chain.step()
        if not self.chain.busy:
            self.outputs.seal()

    async def _take(self, channel: int, element: Element) -> None:
        if isinstance(element, Batch):
            if self._input.channels:
                self.chain.push(element)
            else:
                self.chain.emit(0, element)
                if not self.chain.busy:
                    self.outputs.seal()
        elif isinstance(element, Barrier):
            await self._on(BarrierAtHead(channel, element))
        else:
            await self._channel_ended(channel)

    async def _channel_ended(self, channel: int) -> None:
        self._open_channels -= 1
        if self._open_channels == 0:
            await self._end()
        if self._input.channels:
            await self._on(ChannelEnded(channel))

    async def _end(self) -> None:
        """All input has been processed. Under checkpoints the subtask lives on, and passes barriers."""
        self._ended = True
        await self.chain.finish()
        if self._snapshots is None:
            for sink in self._sinks:
                await sink.writer.finish()
        self.outputs.broadcast(END)
        self._reports(EndReached(self.id))

    async def make_room(self) -> None:
        """For `ctx.drain()`: until everything emitted so far has left."""
        self.outputs.seal()
        while not self.outputs.flush():
            await self.mailbox.signal.wait()
            self._check_alive()
        # The signal may have told of something else too, which the loop has yet to see.
        self.mailbox.signal.set()
        if self._governor.due():
            await self._governor.turn()

    # ------------------------------------------------------------------------------------------------------- control
    async def _obey(self, message: Control) -> None:
        match message:
            case Start():
                self._started = True
            case TriggerBarrier(barrier):
                self._triggers.append(barrier)
            case CheckpointComplete(checkpoint, commit):
                await self._completed(checkpoint, commit=commit)
            case CheckpointAborted(checkpoint):
                self._input.aborted(checkpoint)
                await self._on(Aborted(checkpoint))
            case StopReading(drain):
                self._input.stop(drain=drain)
                self._reports(ReadingStopped(self.id))
            case Finish():
                self._done = True
            case Query():
                self._answer(message)

    async def _completed(self, checkpoint: int, *, commit: bool) -> None:
        if commit:
            for sink in self._sinks:
                await sink.commit(checkpoint)
            if self._sinks:
                self._reports(TransactionsCommitted(self.id, checkpoint))
        await self._input.completed(checkpoint)

    def _answer(self, query: Query) -> None:
        if query.answer.done():
            return  # whoever asked has gone
        try:
            node = next(node for node in self.nodes if node.uid == query.uid)
            query.answer.set_result(node.query(query.state, query.key, query.group))
        except StateAccessError as error:
            query.answer.set_exception(error)

    # --------------------------------------------------------------------------------------------------- checkpoints
    async def _on(self, event: Event) -> None:
        for action in self._protocol.on(event):
            await self._execute(action)

    async def _execute(self, action: Action) -> None:
        match action:
            case Block(channel):
                self.mailbox.block(channel)
            case UnblockAll():
                self.mailbox.unblock_all()
            case Snapshot(barrier):
                await self._snapshot(barrier)
            case Forward(barrier):
                self.outputs.forward(barrier)
            case Acknowledge(checkpoint):
                if self._snapshots is not None:
                    self._snapshots.barrier_left(checkpoint)
            case Discard(checkpoint):
                if self._snapshots is not None:
                    self._snapshots.discard(checkpoint)
            case Decline(checkpoint, reason):
                self._reports(SnapshotDeclined(self.id, checkpoint, reason))

    async def _snapshot(self, barrier: Barrier) -> None:
        """The synchronous part: nothing else of this subtask runs meanwhile."""
        assert self._snapshots is not None
        pending = {sink.uid: await sink.prepare(barrier.checkpoint) for sink in self._sinks}
        started = self._monotonic()
        positions = self._input.snapshot(barrier.checkpoint)
        captured = [self._capture(node, barrier, positions, pending.get(node.uid, ())) for node in self.nodes]
        self._snapshots.begin(barrier, captured, ended=self._ended)
        self.snapshot_seconds = self._monotonic() - started

    def _capture(
        self, node: NodeRuntime, barrier: Barrier, positions: dict[str, object], pending: Sequence[object]
    ) -> CapturedNode:
        keyed = node.begin_snapshot(barrier.checkpoint)
        own_positions = positions if node.is_source else {}
        return CapturedNode(node.uid, keyed, node.schemas(), own_positions, tuple(pending))
