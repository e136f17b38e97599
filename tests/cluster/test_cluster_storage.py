"""What the workers of a job write for a checkpoint, and what of it a failure leaves."""

import asyncio
from collections.abc import Collection, Mapping
from typing import Any

import pytest

import streamactors as sa
from connectors.memory import ListSink
from streamactors.checkpoint import writer
from streamactors.checkpoint.manifest import FileHandle
from streamactors.checkpoint.storage.contract import Written
from streamactors.checkpoint.storage.local import LocalFiles
from streamactors.clock import Clock
from streamactors.cluster.messages import MayReuse, Reused
from streamactors.cluster.storage import REMEMBERED, ReuseQuestions, WorkerSnapshots
from streamactors.cluster.wire import Epoch
from streamactors.cluster.worker import Worker
from streamactors.elements import Barrier
from streamactors.errors import CheckpointFailed, JobFailed, UnserialisableValue
from streamactors.sources import Position, SourceContext
from streamactors.testing.failing_files import FailingFiles
from streamactors.testing.network import Weather
from streamactors.testing.simulation.disk import VolatileDisk
from tests.cluster.jobs import FLOW, STORAGE, Jobs, expected, last, sums
from tests.cluster.made_up import MadeUpCluster
from tests.cluster.virtual import virtually
from tests.runtime.feeds import Feed, FeedReader, until

ATTEMPT = f"{STORAGE}/{FLOW}/run-1/attempt-1"


@pytest.fixture(autouse=True)
def each_file_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "SMALL", 0)


def numbers(count: int = 200) -> Feed:
    feed = Feed(splits=2)
    for split in range(2):
        feed.put(*range(split, count, 2), split=split)
    return feed


def snapshots(clock: Clock, disk: VolatileDisk, worker: int, ask: Any = None) -> WorkerSnapshots:
    files = LocalFiles(STORAGE, clock=clock, disk=disk)
    return WorkerSnapshots(None, clock, files=files, flow=FLOW, epoch=Epoch(1, 1), worker=worker, ask=ask)


async def _chunks(*data: bytes) -> Any:
    for chunk in data:
        yield chunk


async def with_folder(clock: Clock, disk: VolatileDisk, checkpoint: int) -> None:
    await LocalFiles(STORAGE, clock=clock, disk=disk).make_folder(f"{FLOW}/run-1/attempt-1/chk-{checkpoint}")


def test_two_workers_never_give_a_file_the_same_name() -> None:
    async def main(clock: Clock) -> None:
        disk = VolatileDisk()
        await with_folder(clock, disk, 3)
        both = [snapshots(clock, disk, worker) for worker in (1, 11)]
        handles = [await each.write(Barrier(3), name, _chunks(b"x")) for each in both for name in ("1-a", "a")]
        paths = [handle.path for handle in handles]
        assert len(set(paths)) == 4
        assert all(path.startswith("run-1/attempt-1/chk-3/") for path in paths)

    virtually(0, main)


@pytest.mark.parametrize("how", ["completed", "given up", "closed"])
def test_nothing_is_written_for_what_is_over(how: str) -> None:
    """Nor is a writer made for a barrier that comes late."""

    async def main(clock: Clock) -> None:
        disk = VolatileDisk()
        await with_folder(clock, disk, 3)
        storage = snapshots(clock, disk, 0)
        if how == "completed":
            storage.completed(3)
        elif how == "given up":
            await storage.settle(3)
        else:
            await storage.close()
        with pytest.raises(CheckpointFailed, match="checkpoint 3 is no longer in flight"):
            await storage.write(Barrier(3), "a", _chunks(b"x"))
        with pytest.raises(CheckpointFailed):
            await storage.reuse(Barrier(3), [Written(1, b"")])

    virtually(0, main)


def test_what_is_over_takes_no_memory_for_ever() -> None:
    """An attempt may live for months."""

    async def main(clock: Clock) -> None:
        storage = snapshots(clock, VolatileDisk(), 0)
        for checkpoint in range(1, 10 * REMEMBERED):
            if checkpoint % 2:
                storage.completed(checkpoint)
            else:
                await storage.settle(checkpoint)
        assert len(storage._ended) <= 2 * REMEMBERED
        for checkpoint in (1, 2, 5 * REMEMBERED, 10 * REMEMBERED - 2, 10 * REMEMBERED - 1):
            with pytest.raises(CheckpointFailed, match=f"checkpoint {checkpoint} is no longer in flight"):
                await storage.reuse(Barrier(checkpoint), ())
        assert await storage.reuse(Barrier(10 * REMEMBERED), ()) == []

    virtually(0, main)


def test_giving_up_ends_a_write_in_the_middle() -> None:
    async def main(clock: Clock) -> None:
        disk = VolatileDisk()
        await with_folder(clock, disk, 3)
        storage, forever = snapshots(clock, disk, 0), asyncio.Event()

        async def hanging() -> Any:
            yield b"first"
            await forever.wait()

        writing = asyncio.create_task(storage.write(Barrier(3), "a", hanging()))
        await clock.sleep(0.1)
        await storage.settle(3)
        with pytest.raises(CheckpointFailed, match="aborted"):
            await writing
        assert disk.folder(f"{ATTEMPT}/chk-3").names == {}

    virtually(0, main)


def test_questions_are_answered_each_by_its_own_answer() -> None:
    async def main(clock: Clock) -> None:
        asked: list[MayReuse] = []
        questions = ReuseQuestions(asked.append)
        first = asyncio.create_task(questions(Barrier(1), [Written(1, b"a"), Written(2, b"b")]))
        second = asyncio.create_task(questions(Barrier(1), [Written(3, b"c")]))
        await asyncio.sleep(0)
        there = FileHandle("there", 2, b"b")
        questions.answered(Reused(asked[1].number, (None,)))
        questions.answered(Reused(asked[0].number, (None, there)))
        questions.answered(Reused(99, ()))
        assert await first == [None, there] and await second == [None]

    virtually(0, main)


def test_a_savepoint_shares_nothing() -> None:
    async def main(clock: Clock) -> None:
        storage = snapshots(clock, VolatileDisk(), 0)
        assert await storage.reuse(Barrier(3, target="/savepoint"), [Written(1, b"")]) == [None]

    virtually(0, main)


# ---------------------------------------------------------------------------------------------------------- whole jobs
def test_incremental_checkpoints_of_several_workers_share_files() -> None:
    async def main(clock: Clock) -> None:
        jobs, feed, sink = Jobs(clock), numbers(), ListSink[tuple[int, int]]()
        feed.put(*range(200, 400))
        async with jobs.started(sums(feed, sink), 2, backend=sa.Heap(incremental=True), retain=2) as (job, _):
            await until(lambda: job.metrics()["subtasks"])
            await clock.sleep(2)
            full = await job.checkpoint()
            feed.put(1)
            await clock.sleep(2)
            small = await job.checkpoint()
            assert 0 < small.uploaded_bytes < full.uploaded_bytes / 4
            assert small.state_bytes >= full.state_bytes
            feed.put(2)
            await clock.sleep(2)
            for _ in range(3):
                await job.checkpoint()
            assert jobs.disk.find(f"{ATTEMPT}/chk-1/manifest") is None, "retired; but its files are in use"
            assert any(name.startswith("0001-w") for name in jobs.names(f"{ATTEMPT}/chk-1"))
        feed.end()
        async with jobs.started(sums(feed, sink), 3, backend=sa.Heap(incremental=True)) as (job, _):
            await job.wait()
        assert last(sink.values) == expected(feed.values)

    virtually(1, main)


def test_a_checkpoint_that_one_worker_declines_leaves_nothing_of_the_others() -> None:
    async def main(clock: Clock) -> None:
        jobs, feed, sink = Jobs(clock), numbers(), ListSink[tuple[int, int]]()
        files = FailingFiles(LocalFiles(STORAGE, clock=clock, disk=jobs.disk))
        cluster = MadeUpCluster(2, clock=clock, files=files)
        async with jobs.started(sums(feed, sink), cluster=cluster, tolerable_failures=1) as (job, _):
            await until(lambda: job.metrics()["subtasks"])
            await clock.sleep(2)
            failure = files.fail("write", "*-w1-*", times=1)
            with pytest.raises(CheckpointFailed, match="given up"):
                await job.checkpoint()
            assert failure.hits == 1
            await until(lambda: jobs.disk.find(f"{ATTEMPT}/chk-1") is None)
            info = await job.checkpoint()
            assert info.id == 2
            feed.end()
            await job.wait()
        assert last(sink.values) == expected(feed.values)

    virtually(2, main)


class Deleting(LocalFiles):
    """Notes who was still about to write for a checkpoint when its files were deleted."""

    def __init__(self, clock: Clock, disk: VolatileDisk) -> None:
        super().__init__(STORAGE, clock=clock, disk=disk)
        self.workers: Mapping[int, Worker] = {}
        self.writing: list[list[int]] = []

    async def delete_tree(self, path: str, *, keep_folder: bool = False) -> None:
        if path.endswith("chk-1"):
            self.writing.append([number for number, worker in self.workers.items() if 1 in _open_writers(worker)])
        await super().delete_tree(path, keep_folder=keep_folder)


def _open_writers(worker: Worker) -> Collection[int]:
    assert worker._assignment is not None and worker._assignment._part is not None
    return worker._assignment._part.storage.writers


def test_files_are_deleted_once_nobody_writes_any_more() -> None:
    """Whatever folders there are, as in an object store: what is written later would stay."""

    async def main(clock: Clock) -> None:
        jobs, feed = Jobs(clock), numbers()
        storage = Deleting(clock, jobs.disk)
        files = FailingFiles(storage)
        cluster = MadeUpCluster(2, clock=clock, files=files, weather=Weather(delay=(0.01, 0.1)))
        storage.workers = cluster.workers
        flow = sums(feed, ListSink())
        async with jobs.started(flow, cluster=cluster, tolerable_failures=1, files=storage) as (job, _):
            await until(lambda: job.metrics()["subtasks"])
            await clock.sleep(2)
            files.fail("write", "*-w1-*", times=1)
            with pytest.raises(CheckpointFailed, match="given up"):
                await job.checkpoint()
            await until(lambda: jobs.disk.find(f"{ATTEMPT}/chk-1") is None)
        assert storage.writing and not any(storage.writing)

    virtually(4, main)


class _OddReader(FeedReader):
    async def open(self, restored: Mapping[str, Position] | None) -> Mapping[str, Position]:
        return dict.fromkeys(await super().open(restored), 2j)


class Odd(Feed):
    def reader(self, ctx: SourceContext) -> FeedReader:
        return _OddReader(self, ctx)


def test_a_position_that_no_manifest_can_hold_is_named() -> None:
    async def main(clock: Clock) -> None:
        feed = Odd(splits=2)
        with pytest.raises(JobFailed) as failed:
            await _with_a_checkpoint(clock, feed)
        assert isinstance(failed.value.__cause__, UnserialisableValue)
        assert "operator 'numbers' has a position" in str(failed.value)

    virtually(3, main)


async def _with_a_checkpoint(clock: Clock, feed: Feed) -> None:
    async with Jobs(clock).started(sums(feed, ListSink()), 2) as (job, _):
        with pytest.raises(CheckpointFailed):
            await job.checkpoint()
        await job.wait()
