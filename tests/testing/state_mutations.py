"""Mutants of state: native snapshots and the files that checkpoints share, savepoints, what is restored from, state
without a key."""

from collections.abc import Collection, Sequence
from typing import Any, Final

import pytest

from streamactors.checkpoint.deletion import delete_all
from streamactors.checkpoint.manifest import FileHandle
from streamactors.checkpoint.registry import FileRegistry
from streamactors.checkpoint.restorable import FlowFolder
from streamactors.checkpoint.storage.contract import Written
from streamactors.checkpoint.store import CheckpointStore
from streamactors.elements import Barrier
from streamactors.runtime import restore_lists
from streamactors.runtime.snapshot_storage import StoredSnapshots
from streamactors.state.backend import NativePart
from streamactors.state.broadcast import BroadcastStore
from streamactors.state.rocksdb.backend import RocksDBBackend
from streamactors.state.rocksdb.database import Database, Rows
from streamactors.state.rocksdb.freeze import Freeze
from streamactors.state.rocksdb.timers import RocksTimers
from streamactors.time.timers import TimerService
from tests.testing.mutants import COUNTS, DISORDER, LOST, TWICE, mutant

ROCKSDB: Final = "backends=rocksdb"
"""The other switches of the scenario stay."""
MISSING: Final = "which is not there|is missing"
"""A file of a checkpoint."""
NOT_DURABLE: Final = MISSING + "|before the name of .* was durable"


# ----------------------------------------------------------------------------------------------------- native snapshots
@mutant("pipeline aligned", "two-input unaligned", symptom=DISORDER, faults=ROCKSDB)
def dirty_entries_not_written_before_a_native_snapshot(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Freeze, "write_some", lambda self: False)


@mutant("pipeline aligned", "two-input unaligned", symptom=COUNTS, faults=ROCKSDB)
def native_snapshot_sees_later_changes(patch: pytest.MonkeyPatch) -> None:
    """What is written behind before the files are linked is in them."""

    def write(self: Database, rows: Rows) -> None:
        if not self._write(rows):
            self.waiting.update(rows)

    patch.setattr(Database, "write", write)


@mutant("pipeline aligned", "keyed-chain unaligned", symptom=COUNTS, faults=ROCKSDB)
def part_of_native_state_skipped_on_rescale(patch: pytest.MonkeyPatch) -> None:
    original = RocksDBBackend._restore_native

    def restore_native(self: RocksDBBackend, parts: Sequence[NativePart]) -> None:
        original(self, parts[:1])

    patch.setattr(RocksDBBackend, "_restore_native", restore_native)


# ------------------------------------------------------------------------------------------------------- shared files
@mutant("pipeline aligned", "keyed-chain unaligned", symptom=NOT_DURABLE, faults=ROCKSDB + ",storage_failures=6")
def file_of_an_aborted_checkpoint_reused(patch: pytest.MonkeyPatch) -> None:
    """Whatever was uploaded in this attempt is offered, though its checkpoint may never have been completed."""
    reuse, write = StoredSnapshots.reuse, StoredSnapshots.write

    def remembered(self: StoredSnapshots) -> dict[tuple[int, bytes], FileHandle]:
        files: dict[tuple[int, bytes], FileHandle] = self.__dict__.setdefault("_uploaded", {})
        return files

    async def reuse_any(
        self: StoredSnapshots, barrier: Barrier, contents: Sequence[Written]
    ) -> list[FileHandle | None]:
        there, written = await reuse(self, barrier, contents), remembered(self)
        return [found or written.get((size, digest)) for found, (size, digest) in zip(there, contents, strict=True)]

    async def write_and_remember(
        self: StoredSnapshots, barrier: Barrier, name: str, chunks: Any, *, alone: bool = False
    ) -> FileHandle:
        written = await write(self, barrier, name, chunks, alone=alone)
        if alone:
            remembered(self)[written.size, written.digest] = written
        return written

    patch.setattr(StoredSnapshots, "reuse", reuse_any)
    patch.setattr(StoredSnapshots, "write", write_and_remember)


@mutant("pipeline aligned", "keyed-chain unaligned", symptom=MISSING, faults=ROCKSDB)
def file_that_is_still_referred_to_deleted(patch: pytest.MonkeyPatch) -> None:
    """With the checkpoint that it was written for."""

    async def delete(folder: FlowFolder, doomed: Collection[Any], in_use: Collection[str]) -> None:
        await delete_all(folder, doomed, frozenset())

    patch.setattr("streamactors.checkpoint.store.delete_all", delete)


@mutant("pipeline aligned", "keyed-chain unaligned", symptom=MISSING, faults=ROCKSDB)
def file_in_flight_not_in_use(patch: pytest.MonkeyPatch) -> None:
    """What a checkpoint in flight has taken goes with the last complete one that refers to it."""

    def in_use(self: FileRegistry) -> frozenset[str]:
        return frozenset().union(*self._complete.values())

    patch.setattr(FileRegistry, "in_use", in_use)


@mutant("pipeline aligned", "keyed-chain unaligned", symptom="this is left, and nobody needs it", faults=ROCKSDB)
def files_that_nobody_uses_left(patch: pytest.MonkeyPatch) -> None:
    """Those of a retired checkpoint's that a later one has used once."""
    original = FileRegistry.in_use
    seen: set[str] = set()

    def in_use(self: FileRegistry) -> frozenset[str]:
        seen.update(original(self))
        return frozenset(seen)

    patch.setattr(FileRegistry, "in_use", in_use)


# ------------------------------------------------------------------------------------------- savepoints, going back
@mutant("pipeline aligned", "union unaligned", symptom=LOST + "|TransactionLost", faults="rewinds=3,kills=4,spread=0.5")
def base_passed_over(patch: pytest.MonkeyPatch) -> None:
    """After a crash before its first checkpoint, a run goes on from the latest checkpoint there is, which is not the
    one that it was started from."""
    original = FlowFolder._best

    async def told_nothing(run: int) -> None:
        return None

    async def best(self: FlowFolder, *args: Any) -> Any:
        self.base = told_nothing  # type: ignore[method-assign]
        try:
            return await original(self, *args)
        finally:
            del self.base

    patch.setattr(FlowFolder, "_best", best)


@mutant("pipeline aligned", "union unaligned", symptom=TWICE, faults="stops=4,savepoints=3,kills=0")
def savepoint_that_ends_a_job_not_noted(patch: pytest.MonkeyPatch) -> None:
    """So that the latest is a checkpoint before it."""

    async def note_savepoint(self: CheckpointStore, content: Any, writer: Any) -> None:
        if content.transactional:
            self._savepoints[content.checkpoint] = writer.files

    patch.setattr(CheckpointStore, "_note_savepoint", note_savepoint)


@mutant("pipeline aligned", "union unaligned", symptom="were deleted", faults="rewinds=3")
def claimed_whatever_the_user_says(patch: pytest.MonkeyPatch) -> None:
    original = CheckpointStore.record_base

    async def record_base(self: CheckpointStore, base: Any, *, claim: bool = False) -> None:
        await original(self, base, claim=base is not None)

    patch.setattr(CheckpointStore, "record_base", record_base)


# ----------------------------------------------------------------------------------------------- state without a key
@mutant("lists aligned", "lists unaligned", symptom="keep: its state holds")
def remainder_of_a_list_dropped_on_rescale(patch: pytest.MonkeyPatch) -> None:
    original = restore_lists._cut

    def cut(blocks: Any, first: int, last: int) -> Any:
        items = sum(block.ref.items for block in blocks)
        return original(blocks, first, min(last, items - 1))

    patch.setattr(restore_lists, "_cut", cut)


@mutant("lists aligned", "lists unaligned", symptom="keep: its state holds")
def union_list_dealt_out(patch: pytest.MonkeyPatch) -> None:
    original = restore_lists._share

    def share(blocks: Any, index: int, before: int, now: int) -> Any:
        if blocks[0].ref.union:
            return restore_lists._whole([block for block in blocks if block.owner == index])
        return original(blocks, index, before, now)

    patch.setattr(restore_lists, "_share", share)


@mutant("rules unaligned", symptom="its state holds the rules")
def broadcast_map_of_another_subtask_than_its_copies_in_flight(patch: pytest.MonkeyPatch) -> None:
    original = restore_lists._share

    def share(blocks: Any, index: int, before: int, now: int) -> Any:
        if blocks[0].ref.broadcast:
            return restore_lists._whole([block for block in blocks if block.owner == 0])
        return original(blocks, index, before, now)

    patch.setattr(restore_lists, "_share", share)


@mutant("rules aligned", "rules unaligned", symptom="its state holds the rules")
def snapshot_of_broadcast_state_sees_later_changes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(BroadcastStore, "_touch", lambda self, place: None)


# --------------------------------------------------------------------------------------------------------------- timers
@mutant("timers aligned", "timers unaligned", symptom="timers are lost")
def timers_that_were_drawn_are_not_put_back(patch: pytest.MonkeyPatch) -> None:
    original = TimerService.end_slice
    patch.setattr(TimerService, "end_slice", lambda self, domain, left: original(self, domain, left[:-1]))


@mutant("timers aligned", "timers unaligned", symptom="timers are lost|KeyError|AssertionError", faults=ROCKSDB)
def timers_not_written_before_a_snapshot(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RocksTimers, "write_all", lambda self: None)
