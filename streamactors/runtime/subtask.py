"""The subtask actor, and THE loop.

The loop takes, in this order: control messages; barriers that have left; barriers that have arrived; processing timers
that are due; the batch in hand and the restored backlog; the end of the data; a triggered barrier; what is unsent; the
next element of an unblocked channel, in turn with what calls have finished. So a barrier is at the head of its channel
only when nothing is in hand, and nothing is taken from the mailbox while there is no room downstream: that is how
back-pressure travels. A barrier that overtakes is handled as it arrives, between two records.

Invariant: between two iterations every record taken from the input is either fully processed, or in the chain's stack,
or held by an async link, or staged or unsent in an output; every restored one is too, or still in the backlog; and no
new input is taken before the backlog is empty.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence

from streamactors.actors.governor import Governor
from streamactors.actors.mailbox import Ahead, Mailbox
from streamactors.checkpoint.final_commit import FINAL
from streamactors.checkpoint.protocol import (
    BarrierAhead,
    BarrierAnnounced,
    BarrierAtHead,
    BarrierLeft,
    ChannelEnded,
    Triggered,
)
from streamactors.elements import (
    END,
    MAX_TIME,
    Barrier,
    Batch,
    Element,
    EndOfData,
    EndOfKeys,
    Idle,
    TimeMark,
    Watermark,
)
from streamactors.graph.physical import SubtaskId
from streamactors.operators.sink import SinkLink
from streamactors.runtime.alarm import Alarm
from streamactors.runtime.backlog import BacklogReader, RestoredMark
from streamactors.runtime.barriers import Barriers
from streamactors.runtime.chain import Chain, LinkSlot
from streamactors.runtime.event_time import InputTimes, Lanes
from streamactors.runtime.inflight import Captures, Route
from streamactors.runtime.inputs import Input
from streamactors.runtime.load import HELD_BACK, IDLE, Load
from streamactors.runtime.messages import (
    AlignmentExpired,
    AttachTap,
    CheckpointAborted,
    CheckpointComplete,
    Control,
    DetachTap,
    EndReached,
    Finish,
    Query,
    ReadingStopped,
    Ready,
    Reports,
    ResumeReading,
    Start,
    StopReading,
    TransactionsCommitted,
    TriggerBarrier,
)
from streamactors.runtime.nodes import NodeRuntime
from streamactors.runtime.routing import Outputs
from streamactors.runtime.sweeping import Sweeper
from streamactors.sources import InputProgress


class Subtask:
    """One subtask of one vertex during one attempt. `checkpointing`: it lives until the job's final checkpoint, or
    without any, until the `final_commit`."""

    def __init__(
        self,
        id: SubtaskId,
        *,
        mailbox: Mailbox[Element],
        source: Input,
        chain: Chain,
        outputs: Outputs,
        nodes: Sequence[NodeRuntime],
        barriers: Barriers,
        captures: Captures,
        times: InputTimes | None,
        lanes: Lanes,
        backlog: BacklogReader | None,
        checkpointing: bool,
        final_commit: bool = False,
        reports: Reports,
        governor: Governor,
        sweeper: Sweeper,
        alarm: Alarm,
        load: Load,
    ) -> None:
        self.id = id
        self.mailbox = mailbox
        self.chain = chain
        chain.make_room = self.make_room
        chain.wait_for_calls = self._wait_for_calls
        chain.check_alive = self._check_alive
        self.outputs = outputs
        self.nodes = nodes
        self.barriers = barriers
        self.load = load
        self._input = source
        self._captures = captures
        self._times = times
        self._lanes = lanes
        self._backlog = backlog
        self._checkpointing = checkpointing
        self._final_commit = final_commit
        self._reports = reports
        self._governor = governor
        self._sweeper = sweeper
        self._alarm = alarm
        self._sinks = [slot.link for slot in chain.slots if isinstance(slot.link, SinkLink)]
        self._triggers: deque[Barrier] = deque()
        self._open_channels = max(1, source.channels)
        self._harvested = False
        """Whether it is the input's turn, and not that of finished calls."""
        self._last_ended: int | None = None
        """The channel that has ended after all others, until the end has been processed."""
        self._started = False
        self._done = False

    @property
    def progress(self) -> InputProgress | None:
        """Of a source that knows its end."""
        return self._input.progress()

    # ------------------------------------------------------------------------------------------------------ lifetime
    async def run(self) -> None:
        """Open and work; returns when the data has ended (and, under checkpoints, the job says so)."""
        await self._open()
        self._sweeper.start(str(self.id))
        await self._loop()

    async def _open(self) -> None:
        for node in self.nodes:
            await node.restore()
        await self._restore_backlog()
        await self.chain.open()
        await self._input.open()
        self._reports(Ready(self.id))

    async def _restore_backlog(self) -> None:
        """All of it now: once a later checkpoint is complete, its files may go."""
        while self._backlog is not None and (restored := await self._backlog.next()) is not None:
            edge = restored.edge
            route = Route(edge.stored, self.id.index, self.id.index)
            if isinstance(restored, RestoredMark):
                if isinstance(restored.mark, Idle) and restored.mark.merged:
                    self.chain.slots[edge.place].time.idle = False  # its inputs are; the step itself is yet to be told
                for mark in self._lanes.take(edge.key, restored.ref, restored.mark):
                    self.chain.push_backlog(edge.place, route, mark)
            else:
                self.chain.push_backlog(edge.place, route, restored.batch)
            await self._governor.give_way()
        if self._times is not None:
            self._times.restore(self._lanes.told(self.nodes[0].uid, self.id.index))

    async def close(self) -> None:
        """However far `run` got; raises the first error once all is closed."""
        async with contextlib.AsyncExitStack() as stack:  # the last one entered is closed first
            for node in self.nodes:
                stack.push_async_callback(node.release)
            stack.push_async_callback(self._sweeper.close)
            stack.callback(self._alarm.stop)
            stack.push_async_callback(self.chain.close)
            stack.push_async_callback(self._input.close)
            stack.push_async_callback(self.barriers.close)

    def abandon(self) -> None:
        """Nothing more is processed or sent, even if user code swallows the cancellation that follows."""
        self._done = True

    def revoke_state(self) -> None:
        """From now on, state raises StateAccessError."""
        self._sweeper.stop()
        for node in self.nodes:
            node.close()

    def _check_alive(self) -> None:
        if self._done:
            raise asyncio.CancelledError(f"{self.id} was abandoned, and its code swallowed the cancellation")

    # ---------------------------------------------------------------------------------------------------------- loop
    async def _loop(self) -> None:
        control, announced, signal = self.mailbox.control, self.mailbox.announced, self.mailbox.signal
        chain, outputs, governor, captures = self.chain, self.outputs, self._governor, self._captures
        alarm, load = self._alarm, self.load
        while not self._done:
            if control:
                await self._obey(control.popleft())
            elif outputs.departed:
                await self.barriers.on(BarrierLeft(outputs.departed.pop(0)))
            elif announced:
                await self._announced(*announced.popleft())
            elif not self._started or captures.congested:
                await load.wait(HELD_BACK, signal)
            elif governor.due():
                await governor.turn()
            elif alarm.due and self._may_fire() and outputs.flush():
                await self._fire()
            elif chain.busy and outputs.flush():
                await self._work()
            elif self._last_ended is not None and not chain.busy and self._calls_are_over():
                await self._end(self._last_ended)
            elif self._triggers and not chain.busy:
                await self.barriers.on(Triggered(self._triggers.popleft()))
            elif not outputs.flush():
                await load.wait(HELD_BACK, signal)
            elif chain.ready and not self._harvested:
                await self._harvest()
            elif (taken := self._input.take(full=chain.full)) is not None:
                self._harvested = False
                await self._take(*taken)
            elif self._harvested:
                self._harvested = False
            elif self.barriers.ended and not self._checkpointing:
                return
            elif not outputs.departed:
                await load.wait(IDLE, signal)

    async def _work(self) -> None:
        await self.chain.step()
        if not self.chain.busy:
            self.outputs.seal()

    def _calls_are_over(self) -> bool:
        """At the end of the data; those that wait for more begin now."""
        self.chain.flush_calls()
        return not self.chain.holding

    async def _harvest(self) -> None:
        self._harvested = True
        await self.chain.harvest()
        if not self.chain.busy:
            self.outputs.seal()

    def _may_fire(self) -> bool:
        """Not ahead of what was in flight, and not once the data has ended."""
        return not self.chain.restoring and self._open_channels > 0

    async def _fire(self) -> None:
        """A slice of the processing timers."""
        if not await self.chain.fire_processing(self._alarm.now()):
            self._alarm.schedule()
        if not self.chain.busy:
            self.outputs.seal()

    async def _take(self, channel: int, element: Element) -> None:
        if isinstance(element, Batch):
            if self._input.channels:
                self.chain.push(element, self._captures.route(channel))
            else:
                self.chain.emit(0, element)
                if not self.chain.busy:
                    self.outputs.seal()
        elif isinstance(element, Barrier):
            await self.barriers.on(BarrierAtHead(channel, element))
        elif isinstance(element, EndOfData):
            await self._channel_ended(channel)
        elif isinstance(element, EndOfKeys):
            self.chain.push_end_of_keys(element)
        elif self._times is not None:
            self._take_mark(self._times, channel, element)

    def _take_mark(self, times: InputTimes, channel: int, mark: TimeMark) -> None:
        if self._input.channels:
            self.chain.push_marks(times.took(channel, mark), self._captures.route(channel))
        else:
            self.chain.tell(0, mark)

    async def _channel_ended(self, channel: int) -> None:
        self._open_channels -= 1
        if self._open_channels == 0:
            self._last_ended = channel
            self._end_time(channel)
            return
        await self.barriers.on(ChannelEnded(channel))
        # Behind a snapshot that this may have led to: an aligned one has no place for what is in hand.
        if self._times is not None:
            self.chain.push_marks(self._times.ended(channel), self._captures.route(channel))

    def _end_time(self, channel: int) -> None:
        """The last watermark: all event timers fire, in turn with whatever else there is to do."""
        last = Watermark(MAX_TIME, merged=True)
        if self._times is not None and self._input.channels:
            self.chain.push_marks([last], self._captures.route(channel))
        elif self._times is not None:
            self.chain.tell(0, last)

    async def _end(self, channel: int) -> None:
        """All input has been processed. Under checkpoints the subtask lives on, and passes barriers."""
        self._last_ended = None
        self.barriers.ended = True
        await self.chain.finish()
        for sink in self._sinks:
            if self._final_commit:
                await sink.prepare(FINAL)
            elif not self._checkpointing:
                await sink.writer.finish()
        self.outputs.broadcast(END)
        self._reports(EndReached(self.id))
        if self._input.channels:
            await self.barriers.on(ChannelEnded(channel))
        if self._times is not None and self._input.channels:
            self._times.ended(channel)

    async def make_room(self) -> None:
        """For `ctx.drain()`: until everything emitted so far has left, or a barrier waits to overtake it."""
        self.outputs.seal()
        while not self.outputs.flush() and not self.barriers.urgent():
            await self.barriers.announce_patient()
            await self.load.wait(HELD_BACK, self.mailbox.signal)
            self._check_alive()
        # The signal may have told of something else too, which the loop has yet to see.
        self.mailbox.signal.set()
        await self._governor.give_way()

    async def _wait_for_calls(self) -> None:
        """In the middle of a record, which makes more of them than there may be."""
        self.outputs.flush()
        await self.barriers.announce_patient()
        await self.load.wait(HELD_BACK, self.mailbox.signal)
        self._check_alive()

    async def _announced(self, channel: int, element: Element | Ahead[Element]) -> None:
        match element:
            case Barrier():
                await self.barriers.on(BarrierAnnounced(channel, element))
            case Ahead(item=Barrier() as barrier):
                await self.barriers.on(BarrierAhead(channel, barrier))

    # ------------------------------------------------------------------------------------------------------- control
    async def _obey(self, message: Control) -> None:
        match message:
            case Start():
                self._started = True
                self.load.begin()
                self.chain.restate()
                self._alarm.start()
            case TriggerBarrier(barrier):
                self._triggers.append(barrier)
                await self.barriers.on(BarrierAnnounced(0, barrier))
            case AlignmentExpired(checkpoint):
                await self.barriers.expired(checkpoint)
            case CheckpointComplete(checkpoint, commit):
                await self._completed(checkpoint, commit=commit)
            case CheckpointAborted(checkpoint):
                self._input.aborted(checkpoint)
                await self.barriers.aborted(checkpoint)
            case StopReading(drain):
                self._input.stop(drain=drain)
                self._reports(ReadingStopped(self.id))
            case ResumeReading():
                self._input.resume()
            case Finish():
                self._done = True
            case Query():
                self._answer(message)
            case AttachTap(uid, tag, tap):
                self._slot(uid).attach(tag, tap)
            case DetachTap(uid, tag, tap):
                self._slot(uid).detach(tag, tap)

    def _slot(self, uid: str) -> LinkSlot:
        return next(slot for node, slot in zip(self.nodes, self.chain.slots, strict=True) if node.uid == uid)

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
        except Exception as error:  # the value's own code among them, which is to blame for no record
            query.answer.set_exception(error)
