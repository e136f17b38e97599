"""Mutants of the protocols: barriers, data in flight, event time, coordinator, storage, sinks."""

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

import msgspec
import pytest

import streamactors as sa
from streamactors.actors.mailbox import Mailbox
from streamactors.checkpoint.aligned import AlignedBarriers
from streamactors.checkpoint.coordinator import Notify
from streamactors.checkpoint.exactly_once import ExactlyOnceBarriers
from streamactors.checkpoint.protocol import Action, Forward, UnblockAll
from streamactors.checkpoint.storage.local import LocalFiles
from streamactors.checkpoint.storage.uris import is_temporary
from streamactors.checkpoint.store import CheckpointStore
from streamactors.elements import Barrier, Batch, Element
from streamactors.operators.async_io.held import Held, OrderedQueue
from streamactors.operators.async_io.keyed import AsyncKeyedLink
from streamactors.operators.async_io.link import AsyncLink
from streamactors.runtime import inflight, restore, restore_in_flight, restore_time
from streamactors.runtime.attempt import Attempt
from streamactors.runtime.backlog import All
from streamactors.runtime.barriers import Barriers
from streamactors.runtime.inflight import Captures
from streamactors.runtime.inputs import SourceInput
from streamactors.runtime.job import Job
from streamactors.runtime.messages import CheckpointAborted, CheckpointComplete
from streamactors.runtime.snapshot import _Pending
from streamactors.runtime.subtask import Subtask
from streamactors.state.heap import tables
from streamactors.state.key_groups import KeyGroupRange, subtask_range
from streamactors.testing.simulation import Faults, Outcome, Scenario, World
from streamactors.testing.simulation.sink import SimulatedWriter
from streamactors.testing.simulation.storage import SimulatedDisk
from streamactors.testing.simulation.timed import event_time, judged_as_ever
from tests.testing.mutants import COUNTS, DECLINED, DISORDER, LOST, TWICE, UNDECIDED, mutant

RESCALED: Final = Faults(
    kills=8,
    power_losses=0,
    stops=0,
    storage_failures=0,
    channel_stalls=0,
    parallelism=(1, 4),
    mailboxes=(64,),
    spread=0.5,
)
UNALIGNED: Final = sa.Config(
    max_parallelism=8,
    restart=sa.Restart.exponential(dt.timedelta(milliseconds=10), dt.timedelta(seconds=2)),
    checkpoints=sa.Checkpoints("file:///simulation", interval=dt.timedelta(seconds=0.1), alignment="unaligned"),
)
SWITCHED: Final = Faults(modes=("aligned", "aligned-timeout", "unaligned"))


# ---------------------------------------------------------------------------------------------------- flows of our own
def marked_in_place(world: World) -> sa.Dataflow:
    """Its steps change the records that they get, as users should not, but may."""
    flow = sa.Dataflow("marked-in-place")
    numbers = flow.source("numbers", world.source([range(30), range(100, 130)]))
    marked = numbers.map(_record).rebalance().map(_mark).rebalance().map(_mark)
    marked.sink("out", world.sink())
    return flow


def _record(number: int) -> dict[str, int]:
    return {"number": number, "marks": 0}


def _mark(record: dict[str, int]) -> dict[str, int]:
    record["marks"] += 1
    return record


def marked_twice(outcome: Outcome) -> None:
    found: list[dict[str, int]] = outcome.output()
    assert sorted(record["number"] for record in found) == [*range(30), *range(100, 130)], (
        "records are lost or came twice"
    )
    wrong = [record for record in found if record["marks"] != 2]
    assert not wrong, f"changed before they were stored: {wrong}"


OWN: Final = {
    "event-time": Scenario(event_time, config=UNALIGNED, faults=RESCALED, check=judged_as_ever),
    "marked-in-place": Scenario(marked_in_place, faults=SWITCHED, check=marked_twice),
}


# ------------------------------------------------------------------------------------------------------------- barriers
@mutant("two-input aligned", "keyed-chain aligned", symptom=LOST)
def snapshot_before_the_last_barrier(patch: pytest.MonkeyPatch) -> None:
    def complete_if_aligned(self: AlignedBarriers) -> list[Action]:
        if self._aligning is None or len(self._aligned | self._ended) < max(1, self._channels - 1):
            return []
        return [*self._snapshot(self._aligning), *self._stop_aligning()]

    patch.setattr(AlignedBarriers, "_complete_if_aligned", complete_if_aligned)


@mutant("pipeline aligned", "union aligned", symptom=TWICE)
def barrier_forwarded_after_a_record(patch: pytest.MonkeyPatch) -> None:
    """A source puts in, ahead of the barrier, records that its position says are behind it."""
    original = Barriers._execute

    async def execute(self: Barriers, action: Action) -> None:
        if (
            isinstance(action, Forward)
            and isinstance(self._input, SourceInput)
            and (batch := self._input._next_slice())
        ):
            self._chain.emit(0, batch)
            while self._chain.busy:
                await self._chain.step()
        await original(self, action)

    patch.setattr(Barriers, "_execute", execute)


@mutant("two-input aligned", "keyed-chain aligned", symptom=TWICE + "|" + DECLINED)
def channel_unblocked_early(patch: pytest.MonkeyPatch) -> None:
    """When another barrier has arrived, rather than when what is ahead of it has been processed."""
    original = ExactlyOnceBarriers._announced

    def announced(self: ExactlyOnceBarriers, channel: int, barrier: Barrier) -> list[Action]:
        return [*original(self, channel, barrier), UnblockAll()]

    patch.setattr(ExactlyOnceBarriers, "_announced", announced)


@mutant("keyed-chain aligned-timeout", "pipeline aligned-timeout", symptom=LOST)
def acknowledged_before_the_barrier_left(patch: pytest.MonkeyPatch) -> None:
    """Once the state is durable, though the barrier may yet overtake what is unsent."""
    patch.setattr(_Pending, "done", property(lambda self: all(task.done() for task in self.tasks)))


@mutant("keyed-chain aligned", "two-input aligned", symptom=LOST + "|" + DECLINED)
def barrier_overtakes_an_earlier_one(patch: pytest.MonkeyPatch) -> None:
    """In a mailbox, with what lies between them."""
    original = Mailbox.put

    def put(self: Mailbox[Any], channel: int, item: Any, *args: Any, **options: Any) -> None:
        original(self, channel, item, *args, **options)
        queued = self._channels[channel].items
        earlier = [
            place for place, (other, _, _) in enumerate(queued) if isinstance(other, Barrier) and other is not item
        ]
        if isinstance(item, Barrier) and earlier:
            queued.insert(earlier[0], queued.pop())

    patch.setattr(Mailbox, "put", put)


# ------------------------------------------------------------------------------------------------------ in-flight data
@mutant("pipeline unaligned", "keyed-chain unaligned", symptom=LOST)
def queued_batches_forgotten(patch: pytest.MonkeyPatch) -> None:
    original = Captures.capture_channel

    def capture_channel(self: Captures, capture: inflight.Capture, channel: int) -> None:
        with pytest.MonkeyPatch.context() as blind:
            queued = [element for element in self._mailbox.items(channel) if isinstance(element, Barrier)]
            blind.setattr(Mailbox, "items", lambda mailbox, channel: iter(queued))
            original(self, capture, channel)

    patch.setattr(Captures, "capture_channel", capture_channel)


@mutant("pipeline unaligned", "union unaligned", symptom=LOST)
def batch_in_hand_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Barriers, "_capture_in_hand", lambda self, checkpoint: None)


@mutant("pipeline unaligned", "keyed-chain unaligned", symptom=LOST)
def unsent_batches_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Barriers, "_capture_unsent", lambda self, checkpoint, route, element: None)


@mutant("keyed-chain unaligned", "two-input unaligned", symptom=TWICE)
def capture_not_ended_at_the_barrier(patch: pytest.MonkeyPatch) -> None:
    """But when the checkpoint is acknowledged: what came behind the barrier is restored, and read again."""
    patch.setattr(inflight, "_ends", lambda element, checkpoint: False)


@mutant("called aligned", "called unaligned", symptom=LOST)
def inputs_of_calls_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Barriers, "_capture_held", lambda self, checkpoint: None)


@mutant("called aligned", symptom=LOST)
def results_that_wait_for_their_turn_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Of calls that are over, but not handed on."""
    original = OrderedQueue.elements

    def elements(self: OrderedQueue) -> Iterator[Any]:
        return (element for element in original(self) if not (isinstance(element, Held) and element.done))

    patch.setattr(OrderedQueue, "elements", elements)


@mutant("called-in-any-order aligned", symptom="became late")
def watermarks_pass_calls(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(AsyncLink, "hold", lambda self, mark: False)


@mutant("called-by-key aligned", "called-by-key unaligned", symptom="before their time|counted amiss|not the fold")
def state_of_a_call_shows_before_its_output(patch: pytest.MonkeyPatch) -> None:
    original = AsyncKeyedLink.over

    def over(self: AsyncKeyedLink, invocation: Any) -> None:
        invocation.records[0].owner.context.call.apply()
        original(self, invocation)

    patch.setattr(AsyncKeyedLink, "over", over)


@mutant("called-by-key aligned", "called-by-key unaligned", symptom="timers are lost")
def timer_gone_when_its_call_begins(patch: pytest.MonkeyPatch) -> None:
    original = AsyncKeyedLink._context

    def context(self: AsyncKeyedLink, held: Any, part: Any) -> Any:
        if part.timer is not None and self.timers is not None:
            time, group, key, name = part.row
            self.timers.stores[part.timer.domain].delete(key, group, time, name)
        return original(self, held, part)

    patch.setattr(AsyncKeyedLink, "_context", context)


@mutant("marked-in-place unaligned", symptom="changed before they were stored")
def captured_data_encoded_after_it_was_seen(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Captures, "before_seen", lambda self, batch: None)


@mutant("pipeline unaligned", "keyed-chain unaligned", symptom=DISORDER)
def backlog_drained_after_new_input(patch: pytest.MonkeyPatch) -> None:
    """It is read when the first element has been taken."""
    original_open, original_take = Subtask._restore_backlog, Subtask._take

    async def later(self: Subtask) -> None:
        self._backlog_waits = True  # type: ignore[attr-defined]

    async def take(self: Subtask, channel: int, element: Element) -> None:
        if not vars(self).pop("_backlog_waits", False):
            await original_take(self, channel, element)
        elif isinstance(element, Batch):
            await original_take(self, channel, element)
            await original_open(self)
        else:
            await original_open(self)
            while self.chain.busy:
                await self.chain.step()
            await original_take(self, channel, element)

    patch.setattr(Subtask, "_restore_backlog", later)
    patch.setattr(Subtask, "_take", take)


@mutant("keyed-chain unaligned", "pipeline unaligned", symptom=DISORDER)
def unsent_restored_before_queued(patch: pytest.MonkeyPatch) -> None:
    def in_order(manifest: Any) -> list[Any]:
        return sorted(
            manifest.in_flight(), key=lambda stored: (stored[2].receiver, not stored[2].unsent, stored[2].sender)
        )

    patch.setattr(restore_in_flight, "_in_order", in_order)


@mutant("broadcast unaligned", symptom=TWICE)
def broadcast_copies_restored_to_everybody(patch: pytest.MonkeyPatch) -> None:
    original = restore_in_flight._owners

    def owners(target: Any, *others: Any) -> Any:
        if target.kind == "broadcast":
            return lambda ref: [(index, All()) for index in range(target.after)]
        return original(target, *others)

    patch.setattr(restore_in_flight, "_owners", owners)


@mutant("keyed-chain unaligned", "pipeline unaligned", symptom=LOST)
def wrong_key_groups_of_records_in_flight(patch: pytest.MonkeyPatch) -> None:
    original = subtask_range

    def without_last(index: int, parallelism: int, max_parallelism: int) -> KeyGroupRange:
        whole = original(index, parallelism, max_parallelism)
        return KeyGroupRange(whole.start, whole.stop - 1)

    patch.setattr(restore_in_flight, "subtask_range", without_last)


# --------------------------------------------------------------------------------------------------- state and sources
class _WithoutItsLastGroup:
    """A vertex whose subtasks believe that their last key group is another's."""

    def __init__(self, vertex: Any) -> None:
        self._vertex = vertex

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vertex, name)

    def key_groups(self, index: int) -> KeyGroupRange:
        whole: KeyGroupRange = self._vertex.key_groups(index)
        return KeyGroupRange(whole.start, whole.stop - 1)


@mutant("pipeline aligned", "two-input unaligned", symptom=COUNTS)
def wrong_key_groups_on_restore(patch: pytest.MonkeyPatch) -> None:
    original = restore._restore

    def restored(manifest: Any, plan: Any, uid: str, vertex: Any, index: int, *, dropped: bool) -> Any:
        return original(manifest, plan, uid, _WithoutItsLastGroup(vertex), index, dropped=dropped)  # type: ignore[arg-type]

    patch.setattr(restore, "_restore", restored)


@mutant("pipeline aligned", "two-input unaligned", symptom=COUNTS)
def snapshot_sees_later_changes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tables.GuardedTable, "_touch", lambda self, key: None)


@mutant("pipeline aligned", "union unaligned", "broadcast aligned", "two-input unaligned", symptom=LOST)
def position_one_batch_too_far(patch: pytest.MonkeyPatch) -> None:
    original = SourceInput.snapshot

    def snapshot(self: SourceInput, checkpoint: int, **options: Any) -> dict[str, Any]:
        taken = self._taken
        if self._batch is not None:
            self._taken = len(self._batch.values)
        try:
            return original(self, checkpoint, **options)
        finally:
            self._taken = taken

    patch.setattr(SourceInput, "snapshot", snapshot)


# ----------------------------------------------------------------------------------------------------------- event time
@mutant("event-time unaligned", symptom="became late")
def greatest_watermark_taken_on_rescale(patch: pytest.MonkeyPatch) -> None:
    original = restore_time._by_groups

    def by_groups(before: Any, stored: Any, vertex: Any, index: int) -> Any:
        times = [
            restore_time._time(state)
            for subtask, state in stored
            if restore_time.overlap(before, subtask.index, vertex, index)
        ]
        return replace(original(before, stored, vertex, index), current=max(times))

    patch.setattr(restore_time, "_by_groups", by_groups)


@mutant("event-time unaligned", symptom="taken for punctual")
def watermarks_of_key_groups_forgotten_on_rescale(patch: pytest.MonkeyPatch) -> None:
    original = restore_time._by_groups
    patch.setattr(restore_time, "_by_groups", lambda *args: replace(original(*args), ahead=()))


# ------------------------------------------------------------------------------------------------- coordinator, storage
@mutant("pipeline aligned", "diamond unaligned", symptom=TWICE)
def committed_before_the_manifest(patch: pytest.MonkeyPatch) -> None:
    original = Attempt._write_manifest

    async def write_manifest(self: Attempt, action: Any) -> None:
        self._broadcast(CheckpointComplete(action.barrier.checkpoint, True))
        await original(self, action)

    patch.setattr(Attempt, "_write_manifest", write_manifest)


class _NeverSynced:
    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    async def sync(self) -> None:
        """Left out."""


def _leave_out_sync(patch: pytest.MonkeyPatch, of: Callable[[str], bool]) -> None:
    original = SimulatedDisk.file
    patch.setattr(
        SimulatedDisk,
        "file",
        lambda self, path: _NeverSynced(original(self, path)) if of(path) else original(self, path),
    )


@mutant("pipeline aligned", symptom="before the bytes of .* were durable")
def state_file_not_synced(patch: pytest.MonkeyPatch) -> None:
    _leave_out_sync(patch, lambda path: not is_temporary(path.rpartition("/")[2]))


@mutant("pipeline aligned", symptom="has its name before its bytes are durable")
def manifest_not_synced_before_its_link(patch: pytest.MonkeyPatch) -> None:
    _leave_out_sync(patch, lambda path: is_temporary(path.rpartition("/")[2]))


@mutant("pipeline aligned", "union aligned", symptom=TWICE + "|is missing", faults="power_losses=8,kills=0,spread=0.5")
def folder_not_synced_after_a_link(patch: pytest.MonkeyPatch) -> None:
    async def create(self: LocalFiles, path: str, data: bytes) -> bool:
        async with self._temporary(path, data) as temporary:
            return await self._publish(temporary, path)

    patch.setattr(LocalFiles, "create", create)


@mutant("pipeline aligned", "union unaligned", symptom=LOST, faults="sink_failures=6,slow_sinks=8")
def receipt_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    original = Attempt._execute

    def execute(self: Attempt, action: Any) -> None:
        original(self, action)
        if isinstance(action, Notify) and action.commit:
            self._run_beside("receipt", self._write_receipt(action.checkpoint))

    patch.setattr(Attempt, "_execute", execute)


# ------------------------------------------------------------------------------------------------------------- rescales
@mutant(
    "pipeline aligned",
    "union unaligned",
    symptom=LOST,
    faults="rescales=8,storage_failures=12,channel_stalls=20,kills=0,power_losses=0,stops=0,spread=0.4",
)
def batch_in_hand_lost_where_a_rescale_fails(patch: pytest.MonkeyPatch) -> None:
    original = SourceInput.resume

    def resume(self: SourceInput) -> None:
        if (batch := self._batch) is not None:
            self._positions[batch.split] = batch.position_after(len(batch.values))
            self._batch = None
        original(self)

    patch.setattr(SourceInput, "resume", resume)


@mutant("pipeline aligned", "two-input unaligned", symptom=TWICE, faults="rescales=4,kills=0,power_losses=0")
def rescaled_from_what_the_attempt_before_began_with(patch: pytest.MonkeyPatch) -> None:
    """And not from the checkpoint that it has ended with."""
    original = Job._run_attempt
    began: dict[Job, Any] = {}

    async def run(self: Job, restored: Any) -> None:
        if self._rescales.under_way is not None and self._handed_over:
            restored = began.get(self)
        began[self] = restored
        await original(self, restored)

    patch.setattr(Job, "_run_attempt", run)


# ---------------------------------------------------------------------------------------------------------------- sinks
@mutant(
    "pipeline aligned",
    "union unaligned",
    "broadcast aligned",
    "two-input unaligned",
    symptom=f"{TWICE}|{LOST}|TransactionLost",
)
def later_transaction_of_a_session_committed(patch: pytest.MonkeyPatch) -> None:
    """A producer session is kept for the next transaction."""
    original = SimulatedWriter._begin

    async def begin(self: SimulatedWriter[Any]) -> Any:
        return self._prepared[-1][0] if self._prepared else await original(self)

    patch.setattr(SimulatedWriter, "_begin", begin)


@mutant(
    "pipeline aligned",
    "union unaligned",
    "broadcast aligned",
    "two-input unaligned",
    symptom=LOST,
    faults="kills=6,slow_sinks=10,spread=0.5",
)
def transactions_of_dropped_subtasks_forgotten(patch: pytest.MonkeyPatch) -> None:
    original = restore._restore

    def restored(manifest: Any, plan: Any, uid: str, vertex: Any, index: int, *, dropped: bool) -> Any:
        found = original(manifest, plan, uid, vertex, index, dropped=dropped)
        return msgspec.structs.replace(
            found, pending=tuple(pending for pending in found.pending if pending[-1] == index)
        )

    patch.setattr(restore, "_restore", restored)


@mutant("pipeline aligned", "union unaligned", symptom=LOST + "|" + UNDECIDED)
def transaction_of_an_aborted_checkpoint_dropped(patch: pytest.MonkeyPatch) -> None:
    """Though its records precede the next checkpoint, which must list it too."""
    original = Subtask._obey

    async def obey(self: Subtask, message: Any) -> None:
        if isinstance(message, CheckpointAborted):
            for sink in self._sinks:
                prepared = sink.writer._prepared  # type: ignore[attr-defined]
                prepared[:] = [each for each in prepared if each[1] != message.checkpoint]
        await original(self, message)

    patch.setattr(Subtask, "_obey", obey)


@mutant("pipeline aligned", "union unaligned", symptom=UNDECIDED)
def widest_parallelism_forgotten(patch: pytest.MonkeyPatch) -> None:
    """So that nobody fences the transactions of subtasks that there are no more."""
    patch.setattr(CheckpointStore, "widest", property(lambda self: {}))
