"""Time to live in whole jobs: swept while the job runs, counted on over a crash, on either backend."""

import asyncio
import datetime as dt
from pathlib import Path
from typing import Any, Literal

import pytest

import streamactors as sa
from connectors.memory import ListSink
from tests.recovery.test_backends import read_by, settings
from tests.runtime.feeds import PATIENCE, Feed, until

pytestmark = pytest.mark.slow

Backend = Literal["heap", "rocksdb"]
either_backend = pytest.mark.parametrize("backend", ["heap", "rocksdb"])
KINDS = ("value", "items", "entries", "total", "every")


def flow_of(ttl: sa.Ttl | None, feed: Feed, sink: ListSink[Any]) -> sa.Dataflow:
    class Remember(sa.KeyedOperator[int, int, dict[str, Any]]):
        """Says what was there before the record."""

        value = sa.ValueState(int, ttl=ttl)
        items = sa.ListState(int, ttl=ttl)
        entries = sa.MapState(int, int, ttl=ttl)
        total = sa.ReducingState(int, max, ttl=ttl)
        every = sa.AggregatingState(sa.Collect[int](), ttl=ttl)

        def process(self, number: int, ctx: sa.Context[int, dict[str, Any]]) -> None:
            ctx.emit(
                {
                    "value": self.value.get(), "items": list(self.items), "entries": dict(self.entries),
                    "total": self.total.get(), "every": self.every.get(),
                }
            )  # fmt: skip
            self.value.set(number)
            self.items.append(number)
            self.entries[number] = number
            self.total.add(number)
            self.every.add(number)

    flow = sa.Dataflow("remember")
    numbers = flow.source("numbers", feed).key_by(lambda number: number % 100)
    numbers.process("remember", Remember).sink("out", sink)
    return flow


def entries(job: sa.JobHandle) -> dict[str, int]:
    """Of all subtasks."""
    nodes = [
        each["nodes"]["remember"]["entries"]
        for each in job.metrics()["subtasks"].values()
        if "remember" in each["nodes"]
    ]
    return {kind: sum(node[kind] for node in nodes) for kind in KINDS}


NOTHING: dict[str, Any] = {"value": None, "items": [], "entries": {}, "total": None, "every": []}


@either_backend
async def test_what_has_expired_is_swept_while_the_job_runs(tmp_path: Path, backend: Backend) -> None:
    feed, sink = Feed(), ListSink[Any]()
    flow = flow_of(sa.Ttl(dt.timedelta(seconds=1)), feed, sink)
    async with sa.start(flow, settings(tmp_path, backend, 2), on_exit="cancel") as job:
        feed.put(*range(1000))
        await read_by(job)
        await until(lambda: all(entries(job).values()))
        await job.checkpoint()
        await until(lambda: not any(entries(job).values()))
        await job.checkpoint()
        feed.put(7)
        feed.end()
        await job.wait()
    assert len(sink.values) == 1001
    assert sink.values[-1] == NOTHING


@either_backend
async def test_time_goes_on_over_a_crash(tmp_path: Path, backend: Backend) -> None:
    feed, sink = Feed(), ListSink[Any]()
    flow = flow_of(sa.Ttl(dt.timedelta(hours=1)), feed, sink)
    async with sa.start(flow, settings(tmp_path, backend, 2), on_exit="cancel") as job:
        feed.put(1, 101, 2)
        await read_by(job)
        await job.checkpoint()
    # With a millisecond to live, all that was stored has expired; without a limit, it has not.
    other: Backend = "heap" if backend == "rocksdb" else "rocksdb"
    for ttl, then in ((sa.Ttl(dt.timedelta(milliseconds=1)), NOTHING), (None, None)):
        feed, sink = Feed(), ListSink[Any]()
        feed.put(1, 101, 2, 201)  # positions go on: the first three were read
        feed.end()
        flow = flow_of(ttl, feed, sink)
        folder = tmp_path / f"{ttl is None}"
        (latest,) = (tmp_path / "checkpoints" / "remember").glob("*/*/chk-*")
        async with asyncio.timeout(PATIENCE):
            await sa.run(flow, settings(folder, other, 3), restore=latest.as_uri())
        expected: dict[str, Any] = then or {
            "value": 101, "items": [1, 101], "entries": {1: 1, 101: 101}, "total": 101, "every": [1, 101],
        }  # fmt: skip
        assert sink.values == [expected]
