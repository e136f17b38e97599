"""Timers are state: they are looked at, and go where their keys go."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from connectors.memory import ListSink
from tests.recovery.flows import dropped
from tests.runtime.feeds import Feed
from tests.state_processor.jobs import config, opened, rows_of, sink
from tests.state_processor.test_transformation import transformed

pytestmark = pytest.mark.slow


class Reminder(sa.KeyedOperator[str, int, Any]):
    """Of each number, ten later."""

    seen = sa.ValueState(int, default=0)

    def process(self, number: int, ctx: sa.Context[str, Any], /) -> None:
        self.seen.set(number)
        ctx.timers.event(number + 10, f"of {number}")

    def on_timer(self, timer: sa.Timer, ctx: sa.Context[str, Any], /) -> None:
        ctx.emit((ctx.key, timer.timestamp, timer.name, self.seen.get()))


def reminding(feed: Feed, out: Any) -> sa.Dataflow:
    flow = sa.Dataflow("reminding")
    values = flow.source("numbers", feed, parallelism=1, watermarks=sa.Watermarks[int].monotonic(lambda number: number))
    values.key_by(lambda n: f"k{n % 20}").process("remind", Reminder).sink("out", out)
    return flow


@pytest.mark.parametrize("backend", ["heap", "rocksdb"])
async def test_they_move_with_their_keys(tmp_path: Path, backend: Any) -> None:
    feed, out = Feed(), sink()
    feed.put(*range(100))
    async with dropped(reminding(feed, out), config(tmp_path / "job", backend=backend)) as job:
        async with asyncio.timeout(60):
            while await job.query("remind", "seen", "k19") < 99:
                await asyncio.sleep(0.005)
        uri = await job.savepoint(str(tmp_path / "savepoint"))
    pending = set(await rows_of(uri, "remind", "@timers.event"))
    every = {(f"k{number % 20}", (number + 10, f"of {number}"), True) for number in range(100)}
    assert {each for each in every if each[1][0] >= 100} <= pending <= every
    async with opened(uri) as snapshot:
        assert snapshot.state("remind", "@timers.event").columns == ("key", "map_key", "value")
    made = await transformed(
        uri, tmp_path / "made", lambda t: t.with_max_parallelism(12).rekey("remind", lambda key: f"new {key}")
    )
    moved = {(f"new {key}", timer, there) for key, timer, there in pending}
    assert set(await rows_of(made, "remind", "@timers.event")) == moved
    feed.end()
    later: ListSink[Any] = sink()
    await sa.run(reminding(feed, later), config(tmp_path / "next", parallelism=3), restore=made)
    assert {(key, (time, name), True) for key, time, name, _ in later.values} == moved
    assert len(later.values) == len(moved)
