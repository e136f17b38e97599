"""Savepoints of running jobs: aligned whatever the mode, complete in themselves, and nobody's but the user's."""

import asyncio
import datetime as dt
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from connectors.files import FileSink
from connectors.memory import ListSink
from streamactors.checkpoint.store import CheckpointStore
from tests.runtime.feeds import PATIENCE, Feed, until

KEYS = 7
CONFIGS: dict[str, dict[str, Any]] = {
    "aligned": {},
    "unaligned": {"alignment": "unaligned"},
    "timeout": {"alignment_timeout": dt.timedelta(0)},
    "at-least-once": {"mode": "at-least-once"},
}


class Count(sa.KeyedOperator[int, int, tuple[int, int]]):
    count = sa.ValueState(int, default=0)

    def process(self, value: int, ctx: sa.Context[int, tuple[int, int]]) -> None:
        self.count.set(self.count.get() + 1)
        ctx.emit((value, self.count.get()))


class Slow:
    """Everything before it fills up."""

    def __init__(self) -> None:
        self.taken = 0

    async def __call__(self, value: Any) -> Any:
        self.taken += 1
        await asyncio.sleep(0.002)
        return value


def counting(feed: Feed, sink: Any, then: Callable[[Any], Any] = lambda value: value) -> sa.Dataflow:
    flow = sa.Dataflow("counting")
    counted = flow.source("numbers", feed).map(lambda v: v).key_by(lambda v: v % KEYS).process("count", Count)
    counted.map(then, chain=False).sink("out", sink)
    return flow


def config(path: Path, parallelism: int = 2, **checkpoints: Any) -> sa.Config:
    given: dict[str, Any] = {"interval": dt.timedelta(hours=1), **checkpoints}
    return sa.Config(checkpoints=sa.Checkpoints(path.as_uri(), **given), parallelism=parallelism, mailbox_capacity=64)


def expected(numbers: range) -> list[tuple[int, int]]:
    return sorted((value, value // KEYS + 1) for value in numbers)


@pytest.mark.parametrize("parallelism", [1, 2, 3])
@pytest.mark.parametrize("mode", CONFIGS)
async def test_taken_under_load_moved_and_restored_elsewhere(tmp_path: Path, mode: str, parallelism: int) -> None:
    feed, slow = Feed(), Slow()
    feed.put(*range(600))
    given = config(tmp_path / "a", **CONFIGS[mode])
    async with sa.start(counting(feed, ListSink[Any](), slow), given, on_exit="cancel") as job:
        await until(lambda: slow.taken > 20)
        async with asyncio.timeout(PATIENCE):
            uri = await job.savepoint((tmp_path / "saved").as_uri())
        assert job.status == "running"
    assert uri == (tmp_path / "saved").as_uri()
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "saved").rename(tmp_path / "moved")
    feed.end()
    sink = ListSink[tuple[int, int]]()
    async with asyncio.timeout(PATIENCE):
        flow = counting(feed, sink)
        await sa.run(flow, config(tmp_path / "b", parallelism), restore=(tmp_path / "moved").as_uri())
    for key in range(KEYS):
        counts = [count for value, count in sink.values if value % KEYS == key]
        assert counts and counts == list(range(counts[0], len(range(key, 600, KEYS)) + 1)), "all that was not yet out"


async def test_a_job_that_was_stopped_with_one_goes_on_from_it(tmp_path: Path) -> None:
    feed, sink = Feed(), FileSink[Any](str(tmp_path / "out"), value=sa.Json())
    feed.put(*range(300))
    async with sa.start(counting(feed, sink), config(tmp_path / "chk")) as job:
        await until(lambda: job.metrics()["subtasks"]["numbers[0]"]["nodes"]["numbers"]["records_out"])
        uri = await job.stop(savepoint=str(tmp_path / "saved"))
        assert uri == (tmp_path / "saved").as_uri()
        assert job.status == "finished"
    feed.put(*range(300, 700))
    feed.end()
    await sa.run(counting(feed, sink), config(tmp_path / "chk", 3))
    lines = [line for part in (tmp_path / "out").glob("[!.]*") for line in part.read_text().splitlines()]
    assert len(lines) == len(set(lines)) == 700
    assert (tmp_path / "saved" / "manifest").exists(), "never deleted"


async def test_one_that_has_no_place_is_refused_and_the_job_goes_on(tmp_path: Path) -> None:
    feed, sink = Feed(), ListSink[Any]()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    async with sa.start(counting(feed, sink), config(tmp_path / "chk")) as job:
        for ask in (job.savepoint, job.stop):
            with pytest.raises(sa.InvalidConfig, match="the folder is not empty. Name a new one"):
                await ask(str(tmp_path / "full"))
        assert job.status == "running"
        feed.put(*range(20))
        await job.checkpoint()
        assert job.metrics()["restarts"] == 0
        feed.end()
        await job.wait()
    assert len(sink.values) == 20


async def test_none_without_checkpoints(tmp_path: Path) -> None:
    feed = Feed()
    async with sa.start(counting(feed, ListSink[Any]())) as job:
        with pytest.raises(sa.InvalidConfig, match="savepoints need checkpoints to be on"):
            await job.savepoint(str(tmp_path / "saved"))
        feed.end()
        await job.wait()


async def test_many_in_a_row_commit_in_between(tmp_path: Path) -> None:
    """A savepoint commits nothing; so that a sink's open transactions stay few, a checkpoint follows it."""
    feed, sink = Feed(), ListSink[Any]()
    async with sa.start(counting(feed, sink), config(tmp_path / "chk")) as job:
        for number in range(8):
            feed.put(*range(10 * number, 10 * number + 10))
            await job.savepoint(str(tmp_path / f"saved-{number}"))
        await until(lambda: len(sink.values) >= 70)
        feed.end()
        await job.wait()
    assert sorted(sink.values) == expected(range(80))


@pytest.mark.parametrize("ask", ["savepoint", "stop"])
async def test_a_savepoint_that_was_never_taken_is_not_told_to_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: str
) -> None:
    """The data ends, and the final checkpoint is under way, when somebody asks for one."""
    publishing, go_on = asyncio.Event(), asyncio.Event()
    completed = CheckpointStore.complete

    async def slowly(store: CheckpointStore, content: Any) -> Any:
        publishing.set()
        await go_on.wait()
        return await completed(store, content)

    monkeypatch.setattr(CheckpointStore, "complete", slowly)
    feed, saved = Feed(), tmp_path / "saved"
    async with asyncio.timeout(PATIENCE), sa.start(counting(feed, ListSink[Any]()), config(tmp_path / "chk")) as job:
        feed.put(*range(10))
        feed.end()
        await publishing.wait()
        asking = job.savepoint(saved.as_uri()) if ask == "savepoint" else job.stop(savepoint=saved.as_uri())
        asked = asyncio.create_task(asking)
        await until(lambda: job._job._attempt is not None and job._job._attempt._tickets)  # type: ignore[attr-defined]
        for _ in range(20):
            await asyncio.sleep(0)
        go_on.set()
        try:
            told = await asked
        except sa.StreamactorsError:
            told = None
    assert told is None or (saved / "manifest").exists(), f"told that it lies at {told}"
