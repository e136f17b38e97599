"""Unaligned checkpoints of whole jobs: what is in flight is stored and comes back, at any parallelism, exactly once."""

import asyncio
import datetime as dt
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from connectors.memory import ListSink
from tests.runtime.feeds import PATIENCE, Feed, Gate, until

NUMBERS = list(range(4000))
KEYS = 7


class Count(sa.KeyedOperator[int, int, tuple[int, int]]):
    count = sa.ValueState(int, default=0)

    def process(self, value: int, ctx: sa.Context[int, tuple[int, int]]) -> None:
        self.count.set(self.count.get() + 1)
        ctx.emit((value, self.count.get()))


def config(path: Path, parallelism: int = 2, **checkpoints: Any) -> sa.Config:
    settings: dict[str, Any] = {"interval": dt.timedelta(hours=1), "alignment": "unaligned", **checkpoints}
    return sa.Config(
        checkpoints=sa.Checkpoints(path.as_uri(), **settings), parallelism=parallelism, mailbox_capacity=64
    )


def gated(feed: Feed, gate: Gate, sink: ListSink[Any], *, chain: bool = True) -> sa.Dataflow:
    flow = sa.Dataflow("gated")
    counted = flow.source("numbers", feed).map(lambda v: v).key_by(lambda v: v % KEYS).process("count", Count)
    counted.map(gate, chain=chain, name="gate").sink("out", sink)
    return flow


def expected() -> list[tuple[int, int]]:
    return sorted((value, value // KEYS + 1) for value in NUMBERS)


def in_order_per_key(items: list[tuple[int, int]]) -> bool:
    by_key: dict[int, list[int]] = {}
    for value, count in items:
        by_key.setdefault(value % KEYS, []).append(count)
    return all(counts == sorted(counts) for counts in by_key.values())


async def checkpoint_and_crash(flow: sa.Dataflow, feed: Feed, gate: Gate, settings: sa.Config) -> Any:
    """A checkpoint while everything is stuck, and no chance to end well."""
    feed.put(*NUMBERS)
    async with sa.start(flow, settings) as job:
        await until(lambda: gate.held)
        await until(lambda: job.metrics()["subtasks"]["numbers[0]"]["unsent"])
        async with asyncio.timeout(PATIENCE):
            info = await job.checkpoint()
        await job.cancel()
    return info


@pytest.mark.parametrize("chain", [True, False])
@pytest.mark.parametrize("parallelism", [1, 2, 3])
async def test_what_is_in_flight_comes_back_at_any_parallelism(tmp_path: Path, parallelism: int, chain: bool) -> None:
    feed, sink = Feed(chunk=256), ListSink[Any]()
    gate = Gate(100)
    info = await checkpoint_and_crash(gated(feed, gate, sink, chain=chain), feed, gate, config(tmp_path))
    assert info.inflight_bytes > 0
    assert sum(part.inflight_bytes for part in info.subtasks) == info.inflight_bytes
    feed.end()
    gate = Gate(10**9)
    async with asyncio.timeout(PATIENCE):
        await sa.run(gated(feed, gate, sink, chain=chain), config(tmp_path, parallelism))
    assert Counter(sink.values) == Counter(expected())
    assert in_order_per_key(sink.values)


# -------------------------------------------------------------------------------------- overtaking only after a while
async def test_an_alignment_is_handed_over_while_it_runs(tmp_path: Path) -> None:
    """One channel has given its barrier, and is blocked; the other's is stuck behind a full one: the timer decides."""
    feeds, sink = [Feed(chunk=16), Feed(chunk=16)], ListSink[Any]()
    free, gate = asyncio.Event(), Gate(0)

    async def stuck(value: int) -> int:
        if not free.is_set():
            await gate(value)
        return value

    def flow() -> sa.Dataflow:
        flow = sa.Dataflow("handed-over")
        quick, slow = (flow.source(f"numbers-{place}", feed) for place, feed in enumerate(feeds))
        late = slow.rebalance().map(stuck, name="stuck")
        quick.union(late).key_by(lambda v: v % KEYS).process("count", Count).sink("out", sink)
        return flow

    settings = config(tmp_path, 1, alignment="aligned", alignment_timeout=dt.timedelta(seconds=1.5))
    feeds[1].put(*range(0, 2000, 2))
    async with sa.start(flow(), settings, on_exit="cancel") as job:
        await until(lambda: gate.held and job.metrics()["subtasks"]["numbers-1[0]"]["unsent"])
        asked = asyncio.create_task(job.checkpoint())
        await until(lambda: job.metrics()["subtasks"]["count[0]"]["blocked"])
        feeds[0].put(*range(1, 2000, 2))  # behind the barrier, on the blocked channel
        await until(lambda: job.metrics()["subtasks"]["numbers-0[0]"]["unsent"])
        assert not asked.done()
        async with asyncio.timeout(PATIENCE):
            info = await asked
        assert info.duration >= dt.timedelta(seconds=1.5)
        assert info.inflight_bytes > 0 and not job.metrics()["subtasks"]["count[0]"]["blocked"]
        await job.cancel()
    free.set()
    for feed in feeds:
        feed.end()
    await sa.run(flow(), settings)
    for key in range(KEYS):
        counts = sorted(count for value, count in sink.values if value % KEYS == key)
        assert counts == list(range(1, len(counts) + 1))
    assert Counter(value for value, _ in sink.values) == Counter(range(2000))


async def test_a_quick_job_never_overtakes(tmp_path: Path) -> None:
    """Where a checkpoint is aligned in time, nothing is in flight."""
    feed, sink, gate = Feed(chunk=256), ListSink[Any](), Gate(10**9)
    patient = config(tmp_path, alignment="aligned", alignment_timeout=dt.timedelta(seconds=PATIENCE))
    feed.put(*NUMBERS)
    async with sa.start(gated(feed, gate, sink), patient, on_exit="cancel") as job:
        for _ in range(3):
            async with asyncio.timeout(PATIENCE):
                assert (await job.checkpoint()).inflight_bytes == 0


@pytest.mark.parametrize("again", [{"alignment": "aligned"}, {"alignment": "aligned", "mode": "at-least-once"}])
async def test_jobs_of_another_mode_take_up_what_is_in_flight(tmp_path: Path, again: dict[str, Any]) -> None:
    feed, sink = Feed(chunk=256), ListSink[Any]()
    gate = Gate(100)
    info = await checkpoint_and_crash(gated(feed, gate, sink), feed, gate, config(tmp_path))
    assert info.inflight_bytes > 0
    feed.end()
    async with asyncio.timeout(PATIENCE):
        await sa.run(gated(feed, Gate(10**9), sink), config(tmp_path, 3, **again))
    assert Counter(sink.values) == Counter(expected())
    assert in_order_per_key(sink.values)


async def test_records_in_flight_to_a_step_that_is_gone(tmp_path: Path) -> None:
    """Records in flight to a step that the flow no longer has are refused by name."""
    feed, sink = Feed(chunk=256), ListSink[Any]()
    gate = Gate(100)
    await checkpoint_and_crash(gated(feed, gate, sink), feed, gate, config(tmp_path))
    feed.end()
    without = sa.Dataflow("gated")
    without.source("numbers", feed).key_by(lambda v: v % KEYS).process("count", Count).sink("out", sink)
    with pytest.raises(sa.IncompatibleState, match=r"records in flight on the edge .*take a savepoint"):
        await sa.run(without, config(tmp_path))


class Many(sa.Operator[int, int]):
    async def process(self, value: int, ctx: sa.Context[None, int]) -> None:
        for number in range(200):
            ctx.emit(number)
            await ctx.drain()


async def test_a_trigger_whose_time_is_over_comes_in_the_middle_of_a_drain(tmp_path: Path) -> None:
    free, feed = asyncio.Event(), Feed()

    async def gate(value: int) -> int:
        await free.wait()
        return value

    flow = sa.Dataflow("drains")
    flow.source("n", feed).process("many", Many).map(gate, chain=False, name="gate").sink("out", ListSink[Any]())
    never = dt.timedelta(hours=1)
    checkpoints = sa.Checkpoints(tmp_path.as_uri(), interval=never, alignment_timeout=dt.timedelta(0))
    config = sa.Config(checkpoints=checkpoints, mailbox_capacity=4, restart=sa.Restart.none())
    async with asyncio.timeout(PATIENCE), sa.start(flow, config, on_exit="cancel") as job:
        feed.put(1)
        await until(lambda: job.metrics()["subtasks"]["n[0]"]["unsent"])
        asked = asyncio.create_task(job.checkpoint())
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert job.status == "running"
        free.set()
        await asked
