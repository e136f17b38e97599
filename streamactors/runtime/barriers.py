"""What the barrier protocol of a subtask decides, done to its mailbox, chain, outputs and snapshots.

Invariant: the actions for one event are executed in order with nothing processed in between; so a snapshot, what is in
hand and what a barrier overtakes belong to the same moment between two records.
"""

import asyncio
import dataclasses
import functools
from collections.abc import Sequence

from streamactors.actors.mailbox import Ahead, Mailbox
from streamactors.checkpoint.manifest import ChannelTime, GroupTime
from streamactors.checkpoint.protocol import (
    Aborted,
    Acknowledge,
    Action,
    AlignmentTimedOut,
    BarrierAnnounced,
    BarrierAtHead,
    BarrierProtocol,
    Block,
    Capture,
    CaptureInHand,
    Decline,
    Discard,
    Event,
    Forward,
    Overtake,
    Snapshot,
    StartTimer,
    UnblockAll,
)
from streamactors.clock import Clock
from streamactors.elements import Barrier, Batch, Element, TimeMark
from streamactors.graph.physical import SubtaskId
from streamactors.operators.sink import SinkLink
from streamactors.runtime.chain import Chain, LinkSlot
from streamactors.runtime.event_time import InputTimes
from streamactors.runtime.figures import Stopwatch
from streamactors.runtime.inflight import Capture as OpenCapture
from streamactors.runtime.inflight import Captures, Route
from streamactors.runtime.inputs import Input
from streamactors.runtime.messages import AlignmentExpired, Reports, SnapshotDeclined, TriggerBarrier
from streamactors.runtime.nodes import NodeRuntime
from streamactors.runtime.routing import Outputs
from streamactors.runtime.snapshot import CapturedNode, Snapshots


class Barriers:
    """The barriers of one subtask. `snapshots` is None where the job takes no checkpoints."""

    def __init__(
        self,
        id: SubtaskId,
        protocol: BarrierProtocol,
        *,
        mailbox: Mailbox[Element],
        source: Input,
        chain: Chain,
        outputs: Outputs,
        nodes: Sequence[NodeRuntime],
        captures: Captures,
        times: InputTimes | None,
        snapshots: Snapshots | None,
        reports: Reports,
        clock: Clock,
    ) -> None:
        self.id = id
        self.ended = False
        """Whether the subtask has seen its end of data."""
        self.snapshot_seconds = 0.0
        """How long the synchronous part of the last snapshot took."""
        self._protocol = protocol
        self._mailbox = mailbox
        self._input = source
        self._chain = chain
        self._outputs = outputs
        self._nodes = nodes
        self._captures = captures
        self._times = times
        self._snapshots = snapshots
        self._reports = reports
        self._clock = clock
        self._watches: dict[int, Stopwatch] = {}
        """Of the checkpoints that have begun here and are not acknowledged."""
        self._timers: dict[int, asyncio.TimerHandle | None] = {}
        """None: has run out, and the subtask has been told."""
        self._sinks = [slot.link for slot in chain.slots if isinstance(slot.link, SinkLink)]

    async def on(self, event: Event) -> None:
        for action in self._protocol.on(event):
            self._time(event, action)
            await self._execute(action)

    async def expired(self, checkpoint: int) -> None:
        self._timers.pop(checkpoint, None)
        await self.on(AlignmentTimedOut(checkpoint))

    async def aborted(self, checkpoint: int) -> None:
        self._stop_timer(checkpoint)
        await self.on(Aborted(checkpoint))
        self._watches.pop(checkpoint, None)

    async def close(self) -> None:
        for checkpoint in list(self._timers):
            self._stop_timer(checkpoint)
        if self._snapshots is not None:
            await self._snapshots.close()

    # ------------------------------------------------------------------------------------------ in the middle of a call
    def urgent(self) -> bool:
        """Whether a barrier waits to overtake."""
        announced = any(_overtakes(element) for _, element in self._mailbox.announced)
        return announced or any(_overtakes(message) for message in self._mailbox.control)

    async def announce_patient(self) -> None:
        """Barriers that arrive in the middle of a record, and are to be aligned: their time begins to run."""
        announced = self._mailbox.announced
        while announced and isinstance(barrier := announced[0][1], Barrier) and not barrier.overtakes:
            await self.on(BarrierAnnounced(announced.popleft()[0], barrier))
        for message in list(self._mailbox.control):  # a time that is over adds to it
            if isinstance(message, TriggerBarrier) and message.barrier.overtakes_at is not None:
                self._start_timer(message.barrier)

    # ------------------------------------------------------------------------------------------------------- actions
    async def _execute(self, action: Action) -> None:
        match action:
            case Block(channel):
                self._mailbox.block(channel)
            case UnblockAll():
                self._mailbox.unblock_all()
            case Snapshot(barrier):
                await self._snapshot(barrier)
            case Forward(barrier):
                self._outputs.forward(barrier)
            case StartTimer(barrier):
                self._start_timer(barrier)
            case CaptureInHand(checkpoint):
                self._capture_in_hand(checkpoint)
            case Capture(checkpoint, channel):
                self._capture_channel(checkpoint, channel)
            case Overtake(barrier):
                self._outputs.overtake(barrier, functools.partial(self._capture_unsent, barrier.checkpoint))
            case Acknowledge(checkpoint):
                self._stop_timer(checkpoint)
                self._watch(checkpoint).acknowledged()
                del self._watches[checkpoint]
                if self._snapshots is not None:
                    self._snapshots.acknowledge(checkpoint)
            case Discard(checkpoint):
                self._discard(checkpoint)
            case Decline(checkpoint, reason):
                self._reports(SnapshotDeclined(self.id, checkpoint, reason))

    async def _snapshot(self, barrier: Barrier) -> None:
        """The synchronous part: nothing else of this subtask runs meanwhile."""
        assert self._snapshots is not None
        for node in self._nodes:
            await node.ready_for_snapshot(barrier)
        pending = {sink.uid: await sink.prepare(barrier.checkpoint) for sink in self._sinks}
        started = self._clock.monotonic()
        positions = self._input.snapshot(barrier.checkpoint, savepoint=barrier.savepoint)
        captured = [self._captured(node, barrier, positions, pending.get(node.uid, ())) for node in self._nodes]
        channels: tuple[ChannelTime, ...] = ()
        if self._times is not None:
            channels = self._times.snapshot()
            captured = [self._timed(*pair) for pair in zip(captured, self._chain.slots, strict=True)]
        watch = self._watch(barrier.checkpoint)
        self._snapshots.begin(barrier, captured, ended=self.ended, channels=channels, watch=watch)
        self._capture_held(barrier.checkpoint)
        self.snapshot_seconds = self._clock.monotonic() - started
        watch.snapshot_taken(self.snapshot_seconds)

    def _watch(self, checkpoint: int) -> Stopwatch:
        watch = self._watches.get(checkpoint)
        if watch is None:
            watch = self._watches[checkpoint] = Stopwatch(self._clock.monotonic)
        return watch

    def _time(self, event: Event, action: Action) -> None:
        if isinstance(action, Block) and isinstance(event, BarrierAtHead):
            self._watch(event.barrier.checkpoint).blocked()
        elif isinstance(action, Overtake):
            self._watch(action.barrier.checkpoint).overtook()

    def _captured(
        self, node: NodeRuntime, barrier: Barrier, positions: dict[str, object], pending: Sequence[object]
    ) -> CapturedNode:
        keyed = node.begin_snapshot(barrier)
        own_positions = positions if node.is_source else {}
        lists = node.begin_lists_snapshot()
        return CapturedNode(node.uid, keyed, node.schemas(), own_positions, tuple(pending), lists, node.list_schemas())

    def _timed(self, node: CapturedNode, slot: LinkSlot) -> CapturedNode:
        ahead = tuple(GroupTime(*part) for part in slot.time.ahead)
        splits = self._input.split_times() if slot.link is None else slot.link.split_times()
        return dataclasses.replace(node, watermark=slot.time.stored, ahead=ahead, splits=splits)

    def _discard(self, checkpoint: int) -> None:
        self._stop_timer(checkpoint)
        self._outputs.drop(checkpoint)
        if self._snapshots is not None:
            self._snapshots.discard(checkpoint)

    # ----------------------------------------------------------------------------------------------------- in flight
    def _capture(self, checkpoint: int) -> OpenCapture | None:
        """Where in-flight data of the checkpoint goes; None if its snapshot was given up meanwhile."""
        return self._snapshots.capture(checkpoint) if self._snapshots is not None else None

    def _capture_held(self, checkpoint: int) -> None:
        """In whatever mode, and for savepoints too: nobody waits for a call."""
        for route, element in self._chain.held_by_calls():
            if (capture := self._capture(checkpoint)) is not None:
                # Nobody shares what a link keeps, so that it need not be encoded at once.
                capture.add(dataclasses.replace(route, shared=False), element, unsent=False)

    def _capture_in_hand(self, checkpoint: int) -> None:
        if (capture := self._capture(checkpoint)) is not None:
            for route, element in self._chain.in_hand():
                capture.add(route, element, unsent=False)

    def _capture_channel(self, checkpoint: int, channel: int) -> None:
        if (capture := self._capture(checkpoint)) is not None:
            self._captures.capture_channel(capture, channel)

    def _capture_unsent(self, checkpoint: int, route: Route, element: Batch | TimeMark) -> None:
        if (capture := self._capture(checkpoint)) is not None:
            capture.add(route, element, unsent=True)

    # -------------------------------------------------------------------------------------------------------- timers
    def _start_timer(self, barrier: Barrier) -> None:
        checkpoint = barrier.checkpoint
        if barrier.overtakes_at is None or checkpoint in self._timers:
            return
        delay = (barrier.overtakes_at - self._clock.time_ms()) / 1000
        message = AlignmentExpired(checkpoint)
        if delay > 0:
            loop = asyncio.get_running_loop()
            self._timers[checkpoint] = loop.call_later(delay, self._mailbox.send_control, message)
        else:
            # Told at once: by a timer, it would come a turn later, when the next record's call may have begun.
            self._timers[checkpoint] = None
            self._mailbox.send_control(message)

    def _stop_timer(self, checkpoint: int) -> None:
        timer = self._timers.pop(checkpoint, None)
        if timer is not None:
            timer.cancel()


def _overtakes(message: object) -> bool:
    match message:
        case Barrier(overtakes=overtakes) | TriggerBarrier(Barrier(overtakes=overtakes)):
            return overtakes
        case _:
            return isinstance(message, AlignmentExpired | Ahead)
