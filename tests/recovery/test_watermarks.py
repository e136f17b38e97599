"""Watermarks given in mid-stream over crashes, rescales and both backends: what is late is what was late before."""

import asyncio
import datetime as dt
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from connectors.memory import ListSink
from streamactors.elements import MIN_TIME
from tests.recovery.test_backends import settings
from tests.runtime.feeds import PATIENCE, Feed, Gate, until
from tests.runtime.test_watermarks import (
    BOUNDED,
    DISORDER,
    KEYS,
    STAMPS,
    crashing,
    finish,
    late_ones,
    latest,
    marks_in_flight,
    one_by_one,
)

pytestmark = pytest.mark.slow

LEG = len(STAMPS) // 3
MODES = ["aligned", "unaligned"]


class Judge(sa.KeyedOperator[int, int, tuple[int, bool]]):
    """With state, in either backend."""

    seen = sa.ValueState(int, default=0)

    def process(self, number: int, ctx: sa.Context[int, tuple[int, bool]]) -> None:
        assert ctx.timestamp is not None
        self.seen.set(self.seen.get() + 1)
        ctx.emit((number, ctx.timestamp <= ctx.watermark))


def judged(feed: Feed, sink: ListSink[Any], gate: Gate | None = None, *, chain: bool = True) -> sa.Dataflow:
    """The step that gives time has one subtask, so that every record's lateness is certain."""
    flow = sa.Dataflow("judged")
    numbers = flow.source("numbers", feed, parallelism=1)
    watermarks = sa.Watermarks.bounded(STAMPS.__getitem__, BOUNDED)
    timed = numbers.with_timestamps(watermarks, parallelism=1, chain=chain)
    found = timed.key_by(lambda v: v % KEYS).process("judge", Judge)
    found.map(gate or Gate(), chain=False, parallelism=1, name="gate").sink("out", sink, parallelism=1)
    return flow


@pytest.mark.parametrize("chain", [True, False])
@pytest.mark.parametrize("alignment", MODES)
@pytest.mark.parametrize("backends", [("heap", "rocksdb", "heap"), ("rocksdb", "heap", "rocksdb")])
async def test_a_crash_and_a_rescale_change_no_decision(
    tmp_path: Path, backends: tuple[str, ...], alignment: Any, chain: bool
) -> None:
    """At each crash records have been judged that the checkpoint does not hold: they are judged alike again."""
    feed, sink = one_by_one(), ListSink[Any]()
    for leg, (backend, parallelism) in enumerate(zip(backends, (2, 3, 1), strict=True)):
        given = settings(tmp_path, backend, parallelism, alignment=alignment)
        if leg == 2:
            feed.put(*range(leg * LEG, len(STAMPS)))
            feed.end()
            await finish(judged(feed, sink, chain=chain), given)
            break
        async with crashing(judged(feed, sink, chain=chain), given) as job:
            feed.put(*range(leg * LEG, leg * LEG + LEG // 2))
            await until(lambda job=job: judged_by(job))  # type: ignore[misc]
            await job.checkpoint()
            feed.put(*range(leg * LEG + LEG // 2, (leg + 1) * LEG))
    assert dict(sink.values) == late_ones() and len(sink.values) == len(STAMPS)


def judged_by(job: sa.JobHandle) -> int:
    """How many records it has judged."""
    subtasks = job.metrics()["subtasks"].values()
    return sum(of["nodes"]["judge"]["records_in"] for of in subtasks if "judge" in of["nodes"])


@pytest.mark.parametrize("chain", [True, False])
@pytest.mark.parametrize("parallelism", [1, 2, 3])
async def test_records_and_watermarks_in_flight_come_back_in_their_place(
    tmp_path: Path, parallelism: int, chain: bool
) -> None:
    feed, sink, gate = one_by_one(*range(300)), ListSink[Any](), Gate(60, delay=0.005)
    small: dict[str, Any] = {"alignment": "unaligned"}
    given = settings(tmp_path, "heap", 2, **small)
    tight = sa.Config(parallelism=2, checkpoints=given.checkpoints, mailbox_capacity=16)
    async with crashing(judged(feed, sink, gate, chain=chain), tight) as job:
        await until(lambda: gate.held > 3)
        await job.checkpoint()
    assert marks_in_flight(await latest(tmp_path / "checkpoints")) > 0
    feed.put(*range(300, len(STAMPS)))
    feed.end()
    again = sa.Config(parallelism=parallelism, checkpoints=given.checkpoints, mailbox_capacity=16)
    await finish(judged(feed, sink, chain=chain), again)
    assert dict(sink.values) == late_ones() and len(sink.values) == len(STAMPS)


def within_the_bound(number: int) -> int:
    return 1000 + 10 * number - (7 * number % 11) * DISORDER // 11


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("alignment", MODES)
@pytest.mark.parametrize("widths", [(2, 3), (3, 1), (1, 3)])
async def test_where_its_own_parallelism_changes_no_record_becomes_late(
    tmp_path: Path, widths: tuple[int, int], alignment: Any, named: bool
) -> None:
    """No record is late within the bound, however they are dealt out to its subtasks; and its time does not go back."""

    class Reached(Judge):
        def process(self, number: int, ctx: sa.Context[int, Any]) -> None:
            assert ctx.timestamp is not None
            ctx.emit((number, ctx.timestamp <= ctx.watermark, ctx.watermark))

    def flow_of(width: int, gate: Gate | None = None) -> sa.Dataflow:
        flow = sa.Dataflow("rescaled")
        watermarks = sa.Watermarks.bounded(within_the_bound, BOUNDED)
        numbers = flow.source("numbers", feed, parallelism=1).rebalance()
        uid = "timed" if named else None
        timed = numbers.with_timestamps(watermarks, uid=uid, parallelism=width)
        found = timed.key_by(lambda v: v % KEYS).process("judge", Reached, parallelism=1)
        found.map(gate or Gate(), chain=False, name="gate", parallelism=1).sink("out", sink, parallelism=1)
        return flow

    feed, sink, gate = one_by_one(*range(200)), ListSink[Any](), Gate(100, delay=0.005)
    given = settings(tmp_path, "heap", 1, alignment=alignment)
    async with crashing(flow_of(widths[0], gate), given) as job:
        await until(lambda: gate.held > 3 or len(sink.values) == 200)
        await job.checkpoint()
    reached = max((watermark for _, _, watermark in sink.values), default=MIN_TIME)
    before = len(sink.values)
    feed.put(*range(200, 400))
    feed.end()
    await finish(flow_of(widths[1]), given)
    assert sorted(number for number, _, _ in sink.values) == list(range(400))
    assert not [number for number, late, _ in sink.values if late]
    assert all(watermark >= reached for _, _, watermark in sink.values[before:]), "time went back"
    assert max(watermark for _, _, watermark in sink.values) > reached


async def test_idle_before_a_crash_it_is_not_waited_for_afterwards(tmp_path: Path) -> None:
    idling = sa.Watermarks.monotonic(within_the_bound, idle_after=dt.timedelta(milliseconds=20))
    quiet, lively = Feed(), Feed()
    reached: list[int] = []

    class Reached(sa.KeyedOperator[int, int, int]):
        def process(self, number: int, ctx: sa.Context[int, int]) -> None:
            reached.append(ctx.watermark)

    def flow_of() -> sa.Dataflow:
        flow = sa.Dataflow("idle")
        streams = [
            flow.source(name, feed).with_timestamps(idling, uid=f"timed-{name}")
            for name, feed in (("quiet", quiet), ("lively", lively))
        ]
        streams[0].union(streams[1]).key_by(lambda v: 0).process("reached", Reached).sink("out", ListSink[int]())
        return flow

    async def until_it_goes_on(number: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while within_the_bound(number) - 1 not in reached:
                lively.put(number)
                await asyncio.sleep(0.005)

    given = settings(tmp_path, "heap", 1)
    quiet.put(1)
    async with crashing(flow_of(), given) as job:
        await until_it_goes_on(50)
        await job.checkpoint()
    async with crashing(flow_of(), given):
        await until_it_goes_on(100)


class Counting(sa.WatermarkGenerator):
    """Knows only by its state how far it is."""

    def __init__(self) -> None:
        self.seen = 0

    def advance(self, timestamps: Any) -> int:
        self.seen += len(timestamps)
        return 10_000 + self.seen

    def snapshot(self) -> int:
        return self.seen

    def restore(self, state: int) -> None:
        self.seen = state


@pytest.mark.parametrize("named", [True, False])
async def test_a_generator_of_the_users_own_goes_on_from_its_snapshot(tmp_path: Path, named: bool) -> None:
    reached: list[tuple[int, int]] = []

    class Reached(sa.KeyedOperator[int, int, int]):
        def process(self, number: int, ctx: sa.Context[int, int]) -> None:
            reached.append((number, ctx.watermark))

    def flow_of() -> sa.Dataflow:
        flow = sa.Dataflow("counting")
        watermarks: sa.Watermarks[int] = sa.Watermarks.custom(lambda number: 50_000 + number, Counting)
        timed = flow.source("numbers", feed).with_timestamps(watermarks, uid="timed" if named else None)
        timed.key_by(lambda v: 0).process("reached", Reached).sink("out", ListSink[int]())
        return flow

    feed, given = one_by_one(*range(50)), settings(tmp_path, "heap", 1)
    async with crashing(flow_of(), given) as job:
        await until(lambda: len(reached) == 50)
        await job.checkpoint()
    feed.put(*range(50, 100))
    feed.end()
    await finish(flow_of(), given)
    assert reached == [(number, 10_000 + number if number else MIN_TIME) for number in range(100)]
