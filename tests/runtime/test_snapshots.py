"""Snapshots: reported once, when durable and the barrier has left; never when discarded; kinds of failure."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from streamactors.actors.governor import Governor
from streamactors.actors.mailbox import Mailbox
from streamactors.checkpoint.frames import FrameCodec
from streamactors.checkpoint.manifest import (
    BlockRef,
    FileHandle,
    FrameRef,
    InFlightHandle,
    KeyedHandle,
    ListRef,
    ListsHandle,
    NativeFileHandle,
)
from streamactors.checkpoint.storage.contract import Written
from streamactors.elements import Barrier
from streamactors.errors import StorageFailed, UnserialisableValue
from streamactors.graph.physical import SubtaskId
from streamactors.runtime.figures import Stopwatch
from streamactors.runtime.inflight import Captures
from streamactors.runtime.messages import Failed, Report, SnapshotDeclined, SnapshotStored
from streamactors.runtime.snapshot import CapturedNode, Snapshots
from streamactors.state.backend import StateBlock
from tests.runtime.feeds import until

SUBTASK = SubtaskId("count", 2)


class Keyed:
    """A snapshot of three blocks."""

    checkpoint_id = 1

    def __init__(self, error: Exception | None = None, blocks: int = 3) -> None:
        self.left = blocks
        self.aborted = False
        self.error = error

    def next_block(self, budget_seconds: float = 0.0, *, max_entries: int | None = None) -> StateBlock | None:
        assert not self.aborted, "read after its abort"
        if self.error is not None:
            raise self.error
        if not self.left:
            return None
        self.left -= 1
        return StateBlock("total", self.left, 1, b"x" * (self.left + 1))

    def abort(self) -> None:
        self.aborted = True


class Storage:
    """Holds every write until released; `stubborn` as a thread does, which can't be cancelled."""

    def __init__(self, *, stubborn: bool = False, error: Exception | None = None) -> None:
        self.release = asyncio.Event()
        self.begun = asyncio.Event()
        self.written: dict[str, bytes] = {}
        self._stubborn, self._error = stubborn, error

    async def write(
        self, barrier: Barrier, name: str, chunks: AsyncIterator[bytes], *, alone: bool = False
    ) -> FileHandle:
        self.begun.set()
        while not self.release.is_set():
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                if not self._stubborn:
                    raise
        if self._stubborn:
            raise asyncio.CancelledError
        if self._error is not None:
            raise self._error
        data = b"".join([chunk async for chunk in chunks])
        self.written[name] = data
        return FileHandle(name, len(data), b"digest")

    async def reuse(self, barrier: Barrier, contents: Sequence[Written]) -> list[FileHandle | None]:
        return [None for _ in contents]

    async def fetch(self, part: NativeFileHandle, receive: Callable[[bytes], None]) -> None:
        raise AssertionError("nothing is restored here")

    async def read(self, handle: KeyedHandle, blocks: Sequence[BlockRef]) -> list[bytes]:
        return []

    async def read_lists(self, handle: ListsHandle, blocks: Sequence[ListRef]) -> list[bytes]:
        return []

    async def read_frames(self, handle: InFlightHandle, frames: Sequence[FrameRef]) -> list[bytes]:
        return []


def snapshots(storage: Storage) -> tuple[Snapshots, list[Report]]:
    reports: list[Report] = []
    captures = Captures(Mailbox(1, 64), [], FrameCodec(), lambda: None)
    made = Snapshots(SUBTASK, storage, Governor.of_running_loop(), reports.append, captures, max_parallelism=128)
    return made, reports


def begin(of: Snapshots, keyed: Any, checkpoint: int = 1) -> None:
    of.begin(Barrier(checkpoint), [CapturedNode("count", keyed, positions={"0": 7}, pending=("tx",))], ended=False)


async def test_reported_once_when_stored_and_left_in_either_order() -> None:
    for leaves_first in (True, False):
        storage = Storage()
        taken, reports = snapshots(storage)
        begin(taken, Keyed())
        if leaves_first:
            taken.acknowledge(1)
        await storage.begun.wait()
        assert reports == []
        storage.release.set()
        await until(lambda storage=storage: storage.written)  # type: ignore[misc]
        if not leaves_first:
            await asyncio.sleep(0.01)
            assert reports == []
            taken.acknowledge(1)
        await until(lambda reports=reports: reports)  # type: ignore[misc]
        [report] = reports
        assert isinstance(report, SnapshotStored) and report.checkpoint == 1 and report.subtask == SUBTASK
        [node] = report.state.nodes
        assert node.positions == {"0": 7} and node.pending == ("tx",)
        blocks = [(ref.group, ref.offset, ref.length) for ref in node.keyed[0].blocks]
        assert blocks == [(2, 0, 3), (1, 3, 2), (0, 5, 1)]
        assert node.keyed[0].file.size == 6
        taken.acknowledge(1)
        await taken.close()
        assert len(reports) == 1


async def test_an_empty_state_writes_no_file() -> None:
    storage = Storage()
    taken, reports = snapshots(storage)
    begin(taken, Keyed(blocks=0))
    taken.acknowledge(1)
    await until(lambda: reports)
    assert not storage.begun.is_set()
    await taken.close()


async def test_discarded_while_written_it_is_aborted_and_never_reported() -> None:
    storage, keyed = Storage(), Keyed()
    taken, reports = snapshots(storage)
    begin(taken, keyed)
    await storage.begun.wait()
    taken.discard(1)
    taken.acknowledge(1)
    storage.release.set()
    await taken.close()
    assert keyed.aborted and reports == [] and not storage.written


async def test_a_storage_that_hangs_does_not_hold_a_discard_up_but_the_close() -> None:
    storage, keyed = Storage(stubborn=True), Keyed()
    taken, reports = snapshots(storage)
    begin(taken, keyed)
    await storage.begun.wait()
    taken.discard(1)
    assert keyed.aborted
    closing = asyncio.create_task(taken.close())
    await asyncio.sleep(0.01)
    assert not closing.done(), "nothing may be left behind"
    storage.release.set()
    await closing
    assert reports == []


async def test_closing_ends_all_in_flight() -> None:
    storage = Storage()
    taken, reports = snapshots(storage)
    several = [Keyed() for _ in range(3)]
    for number, keyed in enumerate(several):
        begin(taken, keyed, number)
    await storage.begun.wait()
    await taken.close()
    assert all(keyed.aborted for keyed in several) and reports == []


async def test_a_storage_that_refuses_declines_and_an_unserialisable_value_fails() -> None:
    storage = Storage(error=StorageFailed("disk full"))
    storage.release.set()
    taken, reports = snapshots(storage)
    begin(taken, Keyed())
    await until(lambda: reports)
    assert reports == [SnapshotDeclined(SUBTASK, 1, "disk full")]
    error = UnserialisableValue("no")
    keyed = Keyed(error)
    begin(taken, keyed, 2)
    await until(lambda: len(reports) == 2)
    assert reports[1] == Failed(SUBTASK, error) and keyed.aborted
    taken.acknowledge(1)
    taken.acknowledge(2)
    await taken.close()
    assert len(reports) == 2


async def test_acknowledged_between_the_last_write_and_its_callback() -> None:
    """As soon as the task is done a report may go out, and says how long writing took."""
    storage = Storage()
    storage.release.set()
    of, reports = snapshots(storage)
    watch = Stopwatch(time.monotonic)
    of.begin(Barrier(1), [CapturedNode("count", Keyed())], ended=False, watch=watch)
    watch.snapshot_taken(0.001)
    (writing,) = (task for task in asyncio.all_tasks() if task.get_name().startswith("snapshot 1 of"))
    while not writing.done():  # asked by a task that runs before the callbacks of that one
        await asyncio.sleep(0)
        of.acknowledge(1)
        if reports:
            break
    (report,) = reports
    assert isinstance(report, SnapshotStored) and report.figures.asynchronous > 0
