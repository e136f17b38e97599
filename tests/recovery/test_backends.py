"""Whole jobs on either backend: crashed, rescaled, and restored by the other one. Nothing is left on the local disk."""

import asyncio
import datetime as dt
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from connectors.memory import ListSink
from tests.runtime.feeds import PATIENCE, Feed, until

pytestmark = pytest.mark.slow

KEYS = 50
NUMBERS = range(3000)


class Visits(sa.KeyedOperator[int, int, tuple[int, int, int]]):
    """Every kind of keyed state that both have."""

    count = sa.ValueState(int, default=0)
    seen = sa.ListState(int)
    last = sa.MapState(str, int)
    largest = sa.ReducingState(int, max)
    total = sa.AggregatingState(sa.Aggregates[int, dict[str, Any]](sum=sa.Sum(float), distinct=sa.Distinct(int)))
    mortal = sa.ReducingState(int, max, ttl=sa.Ttl(dt.timedelta(hours=1), refresh_on="read-write"))

    def process(self, value: int, ctx: sa.Context[int, tuple[int, int, int]]) -> None:
        self.count.set(self.count.get() + 1)
        self.seen.append(value)
        self.last["value"] = value
        self.largest.add(value)
        self.total.add(value)
        self.mortal.add(value)
        assert self.largest.get() == self.mortal.get() == max(self.seen)
        assert self.total.get() == {"sum": sum(self.seen), "distinct": self.count.get()}
        assert len(self.seen) == self.count.get() and list(self.seen)[-1] == self.last["value"]
        ctx.emit((value, self.count.get(), sum(self.seen)))


def visits(feed: Feed, sink: ListSink[Any]) -> sa.Dataflow:
    flow = sa.Dataflow("visits")
    flow.source("numbers", feed).key_by(lambda value: value % KEYS).process("visits", Visits).sink("out", sink)
    return flow


def expected() -> list[tuple[int, int, int]]:
    results = []
    for key in range(KEYS):
        values = list(range(key, len(NUMBERS), KEYS))
        results += [(value, place + 1, sum(values[: place + 1])) for place, value in enumerate(values)]
    return sorted(results)


def settings(folder: Path, backend: Any, parallelism: int, **options: Any) -> sa.Config:
    checkpoints = sa.Checkpoints((folder / "checkpoints").as_uri(), interval=dt.timedelta(hours=1), **options)
    return sa.Config(checkpoints=checkpoints, parallelism=parallelism, state_backend=backend)


async def read_by(job: sa.JobHandle) -> None:
    await until(lambda: job.metrics()["subtasks"]["numbers[0]"]["nodes"]["numbers"]["records_out"])


@pytest.mark.parametrize("alignment", ["aligned", "unaligned"])
@pytest.mark.parametrize("backends", [("rocksdb",) * 3, ("heap", "rocksdb", "heap"), ("rocksdb", "heap", "rocksdb")])
async def test_crashed_rescaled_and_restored(tmp_path: Path, backends: tuple[str, ...], alignment: Any) -> None:
    feed, sink, local = Feed(), ListSink[Any](), tmp_path / "local"
    local.mkdir()
    small = sa.RocksDB(folder=str(local), memory=8 << 20, cache=16)
    for leg, (backend, parallelism) in enumerate(zip(backends, (2, 3, 1), strict=True)):
        chosen = small if backend == "rocksdb" else backend
        given = settings(tmp_path, chosen, parallelism, alignment=alignment)
        if leg == 2:
            feed.put(*NUMBERS[leg * 1000 :])
            feed.end()
            async with asyncio.timeout(PATIENCE):
                await sa.run(visits(feed, sink), given)
            break
        async with sa.start(visits(feed, sink), given, on_exit="cancel") as job:
            feed.put(*NUMBERS[leg * 1000 : leg * 1000 + 500])
            await read_by(job)
            await job.checkpoint()
            feed.put(*NUMBERS[leg * 1000 + 500 : (leg + 1) * 1000])
            await read_by(job)
    assert sorted(sink.values) == expected()
    assert list(local.iterdir()) == []


async def test_nothing_is_left_where_a_job_could_not_even_be_put_together(tmp_path: Path) -> None:
    def broken() -> sa.KeyedOperator[Any, Any, Any]:
        raise ValueError("no model")

    flow = sa.Dataflow("broken")
    numbers = flow.source("numbers", Feed())
    numbers.key_by(lambda value: value).process("first", Visits).key_by(lambda value: value).process("second", broken)
    with pytest.raises(sa.JobFailed, match="no model"):
        await sa.run(flow, sa.Config(state_backend=sa.RocksDB(folder=str(tmp_path)), parallelism=2))
    assert list(tmp_path.iterdir()) == []


async def test_a_query_reads_it_and_a_savepoint_carries_it_over(tmp_path: Path) -> None:
    feed, sink = Feed(), ListSink[Any]()
    feed.put(*range(200))
    async with sa.start(visits(feed, sink), settings(tmp_path, sa.RocksDB(), 2), on_exit="cancel") as job:
        await read_by(job)
        async with asyncio.timeout(PATIENCE):
            while await job.query("visits", Visits.count, 7) < 4:
                await asyncio.sleep(0)
        uri = await job.savepoint((tmp_path / "saved").as_uri())
    async with sa.start(visits(feed, sink), settings(tmp_path / "other", "heap", 3), restore=uri) as job:
        assert await job.query("visits", Visits.count, 7) == 4
        assert await job.query("visits", "last", 7) == {"value": 157}
