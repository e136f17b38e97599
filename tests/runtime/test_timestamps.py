"""Time-stamps and watermarks given in mid-stream, and records that can have none: whole jobs."""

import asyncio
import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest

import streamactors as sa
from connectors.memory import ListSink, ListSource
from streamactors.elements import MAX_TIME
from streamactors.errors import InvalidTimestamp
from tests.runtime.feeds import PATIENCE, Feed, until
from tests.runtime.test_watermarks import (
    BOUNDED,
    KEYS,
    STAMPS,
    Judge,
    Told,
    finish,
    late_ones,
    one_by_one,
    told,
)

NOW = 1_764_000_000_000
LETTERS = sa.OutputTag("letters", sa.DeadLetter)
AHEAD = sa.OutputTag("ahead", int)
IDLING: sa.Watermarks[int] = sa.Watermarks.monotonic(lambda v: v, idle_after=dt.timedelta(milliseconds=20))


@pytest.mark.parametrize("chain", [True, False])
@pytest.mark.parametrize("parallelism", [1, 3])
async def test_every_record_is_judged_by_those_before_it(parallelism: int, chain: bool) -> None:
    feed, sink, flow = one_by_one(*range(len(STAMPS))), ListSink[Any](), sa.Dataflow("mid")
    feed.end()
    numbers = flow.source("numbers", feed, parallelism=1)
    timed = numbers.with_timestamps(sa.Watermarks.bounded(STAMPS.__getitem__, BOUNDED), parallelism=1, chain=chain)
    timed.key_by(lambda v: v % KEYS).process("judge", Judge).sink("out", sink, parallelism=1)
    await finish(flow, sa.Config(parallelism=parallelism, mailbox_capacity=16))
    assert dict(sink.values) == late_ones() and len(sink.values) == len(STAMPS)


@pytest.mark.parametrize("chain", [True, False])
async def test_other_watermarks_end_there(chain: bool) -> None:
    """Those of the source are far ahead of those given in mid-stream."""
    feed, sink, flow = Feed(), ListSink[Any](), sa.Dataflow("replaced")
    numbers = flow.source("in", feed, watermarks=sa.Watermarks.monotonic(lambda v: 1000 * v))
    timed = numbers.with_timestamps(sa.Watermarks.monotonic(lambda v: v), chain=chain)
    timed.key_by(lambda v: 0).process("told", Told).sink("out", sink)
    await told(flow, sink, lambda: feed.put(500), wanted=499)


async def test_the_end_is_told_and_fires_what_waits() -> None:
    class AtTheEnd(sa.KeyedOperator[int, int, Any]):
        def process(self, value: int, ctx: sa.Context[int, Any]) -> None:
            ctx.timers.event(10 * NOW)

        def on_timer(self, timer: sa.Timer, ctx: sa.Context[int, Any]) -> None:
            ctx.emit(ctx.watermark)

    sink, flow = ListSink[Any](), sa.Dataflow("end")
    timed = flow.source("in", ListSource([1, 2, 3])).with_timestamps(sa.Watermarks.monotonic(lambda v: v))
    timed.key_by(lambda v: 0).process("wait", AtTheEnd).sink("out", sink)
    await finish(flow, sa.Config())
    assert sink.values == [MAX_TIME]


async def test_without_records_it_becomes_idle_and_comes_back() -> None:
    quiet, lively, sink, flow = Feed(), Feed(), ListSink[Any](), sa.Dataflow("idle")
    streams = [flow.source(f"in-{n}", feed).with_timestamps(IDLING) for n, feed in enumerate([quiet, lively])]
    streams[0].union(streams[1]).key_by(lambda v: 0).process("told", Told).sink("out", sink)
    quiet.put(10)
    await told(flow, sink, lambda: lively.put(500), wanted=499)


async def test_one_that_never_gets_a_record_becomes_idle_too() -> None:
    feed, sink, flow = Feed(splits=1), ListSink[Any](), sa.Dataflow("narrow")
    timed = flow.source("in", feed, parallelism=3).with_timestamps(IDLING, parallelism=3)
    timed.key_by(lambda v: 0).process("told", Told).sink("out", sink)
    await told(flow, sink, lambda: feed.put(500), wanted=499)


async def test_where_no_input_is_waited_for_it_is_idle_at_once() -> None:
    """Two of three source subtasks have no split, and say so; no time-out is needed."""
    feed, sink, flow = Feed(splits=1), ListSink[Any](), sa.Dataflow("narrow")
    monotonic = sa.Watermarks.monotonic(lambda v: v)
    timed = flow.source("in", feed, watermarks=monotonic, parallelism=3).with_timestamps(monotonic, parallelism=3)
    timed.key_by(lambda v: 0).process("told", Told).sink("out", sink)
    await told(flow, sink, lambda: feed.put(500), wanted=499)


async def test_who_waits_for_room_is_not_idle() -> None:
    """Nothing is passed over because it was slow: its records are not late behind those of others."""

    class Slow(sa.Operator[int, int]):
        async def process(self, value: int, ctx: sa.Context[None, int]) -> None:
            await asyncio.sleep(0.05)
            ctx.emit(value)

    held, lively, sink, flow = Feed(chunk=1), Feed(), ListSink[Any](), sa.Dataflow("slow")
    soon: sa.Watermarks[int] = sa.Watermarks.monotonic(lambda v: v, idle_after=dt.timedelta(milliseconds=10))
    slow = flow.source("held", held).with_timestamps(soon).process("slow", Slow)
    slow.union(flow.source("lively", lively, watermarks=soon)).key_by(lambda v: v % 2).process("judge", Judge).sink(
        "out", sink
    )
    held.put(*range(2, 22, 2))
    held.end()
    async with asyncio.timeout(PATIENCE), sa.start(flow, sa.Config(mailbox_capacity=2)) as job:
        while len([1 for value, _ in sink.values if value % 2 == 0]) < 10:
            lively.put(10_001)
            await asyncio.sleep(0.005)
        await job.cancel()
    assert not [value for value, late in sink.values if late and value % 2 == 0]


# ----------------------------------------------------------------------------------------- records that can have none
def from_source(feed: Feed, watermarks: sa.Watermarks[Any], letters: bool) -> tuple[sa.Dataflow, sa.Stream[Any]]:
    flow = sa.Dataflow("source")
    return flow, flow.source("step", feed, watermarks=watermarks)


def in_mid_stream(feed: Feed, watermarks: sa.Watermarks[Any], letters: bool) -> tuple[sa.Dataflow, sa.Stream[Any]]:
    flow = sa.Dataflow("mid")
    options: Any = {"on_error": LETTERS} if letters else {}
    return flow, flow.source("in", feed).with_timestamps(watermarks, uid="step", **options)


Where = Callable[[Feed, sa.Watermarks[Any], bool], tuple[sa.Dataflow, sa.Stream[Any]]]
BAD = [None, -5, True, NOW // 1000, NOW * 1000, "7"]
EVERYWHERE = pytest.mark.parametrize("where", [from_source, in_mid_stream])


def feed_of(where: Where, *values: Any, letters: bool) -> Feed:
    feed = Feed(chunk=4, dead=LETTERS if letters and where is from_source else None)
    feed.put(*values)
    feed.end()
    return feed


@EVERYWHERE
@pytest.mark.parametrize("bad", BAD)
async def test_one_that_has_none_fails_the_job_by_name(where: Where, bad: Any) -> None:
    feed = feed_of(where, NOW, NOW + 1, bad, NOW + 2, letters=False)
    flow, stream = where(feed, sa.Watermarks.monotonic(lambda v: v), False)
    stream.sink("out", ListSink[Any]())
    with pytest.raises(sa.JobFailed) as failed:
        await finish(flow, sa.Config())
    cause = failed.value.__cause__
    assert isinstance(cause, sa.RecordFailed) and not cause.retryable
    assert cause.uid == "step" and cause.origin == "0@2" and repr(bad) in str(cause)
    assert isinstance(cause.__cause__, InvalidTimestamp)


@EVERYWHERE
async def test_those_that_have_none_go_where_records_go_that_fail(where: Where) -> None:
    good = [NOW + number for number in range(20)]
    mixed = [*good[:7], *BAD, *good[7:]]
    out, dead = ListSink[Any](), ListSink[Any]()
    flow, stream = where(feed_of(where, *mixed, letters=True), sa.Watermarks.monotonic(lambda v: v), True)
    stream.sink("out", out)
    stream.side_output(LETTERS).sink("dead", dead)
    await finish(flow, sa.Config())
    assert out.values == good
    assert [letter.value for letter in dead.values] == BAD
    assert [letter.origin for letter in dead.values] == [f"0@{number}" for number in range(7, 13)]
    assert {letter.uid for letter in dead.values} == {"step"} and "multiply by 1000" in dead.values[3].error


@EVERYWHERE
async def test_those_that_are_far_ahead_close_nothing_and_are_not_lost(where: Where) -> None:
    hour = dt.timedelta(hours=1)
    watermarks = sa.Watermarks.bounded(lambda v: v, dt.timedelta(0), max_ahead=hour, ahead=AHEAD)
    future = 4_000_000_000_000
    values = [NOW, future, NOW + 10, future + 1, NOW + 20]
    out, ahead = ListSink[Any](), ListSink[Any]()
    feed = Feed(chunk=4)
    feed.put(*values)
    flow, stream = where(feed, watermarks, False)
    stream.key_by(lambda v: v % 2).process("judge", Judge).sink("out", out)
    stream.side_output(AHEAD).sink("ahead", ahead)
    async with asyncio.timeout(PATIENCE), sa.start(flow, sa.Config()) as job:
        await until(lambda: len(out.values) == 3 and len(ahead.values) == 2)
        nodes = [of["nodes"]["step"] for of in job.metrics()["subtasks"].values() if "step" in of["nodes"]]
        assert [node["ahead_records"] for node in nodes] == [2]
        feed.end()
        await job.wait()
    assert sorted(out.values) == [(NOW, False), (NOW + 10, False), (NOW + 20, False)]
    assert ahead.values == [future, future + 1]


def test_what_can_not_be_is_refused_where_it_is_written() -> None:
    flow = sa.Dataflow("refused")
    numbers = flow.source("in", ListSource([1]))
    monotonic: sa.Watermarks[int] = sa.Watermarks.monotonic(lambda v: v)
    with pytest.raises(sa.InvalidDataflow, match="leave with_timestamps out"):
        numbers.with_timestamps(sa.Watermarks.none())
    with pytest.raises(sa.InvalidDataflow, match="align is for sources"):
        numbers.with_timestamps(sa.Watermarks.monotonic(lambda v: v, align=dt.timedelta(seconds=1)))
    with pytest.raises(sa.InvalidDataflow, match=r"made by sa.Watermarks.bounded\(…\), not 7"):
        numbers.with_timestamps(7)  # type: ignore[arg-type]
    with pytest.raises(sa.InvalidDataflow, match="on_error is 'fail' or an OutputTag"):
        numbers.with_timestamps(monotonic, on_error="letters")  # type: ignore[arg-type]


@pytest.mark.parametrize("mid", [True, False])
def test_a_side_output_that_nobody_takes_is_refused(mid: bool) -> None:
    watermarks = sa.Watermarks.monotonic(lambda v: v, max_ahead=dt.timedelta(hours=1), ahead=AHEAD)
    flow = sa.Dataflow("lost")
    if mid:
        timed = flow.source("in", ListSource([1])).with_timestamps(watermarks)
    else:
        timed = flow.source("in", ListSource([1]), watermarks=watermarks)
    timed.sink("out", ListSink[int]())
    with pytest.raises(sa.InvalidDataflow, match="side output 'ahead', which nothing consumes"):
        flow.explain()
    timed.side_output(sa.OutputTag("other", int)).sink("other", ListSink[int]())
    timed.side_output(AHEAD).sink("ahead", ListSink[int]())
    with pytest.raises(sa.InvalidDataflow, match="never emits to it"):
        flow.explain()


def test_one_tag_for_both_is_refused() -> None:
    tag: Any = LETTERS
    watermarks: sa.Watermarks[int] = sa.Watermarks.monotonic(lambda v: v, ahead=tag)
    flow = sa.Dataflow("both")
    timed = flow.source("in", ListSource([1])).with_timestamps(watermarks, on_error=LETTERS)
    timed.sink("out", ListSink[int]())
    timed.side_output(LETTERS).sink("letters", ListSink[Any]())
    with pytest.raises(sa.InvalidDataflow, match="give ahead= a tag of its own"):
        flow.explain()
