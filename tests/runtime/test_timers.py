"""Timers of whole jobs: when they fire, in which order, with what in hand; and what is refused."""

import asyncio
import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from connectors.memory import ListSink, ListSource
from streamactors.clock import SYSTEM
from streamactors.elements import MAX_TIME
from tests.runtime.feeds import PATIENCE, Feed, until

MONOTONIC: sa.Watermarks[Any] = sa.Watermarks.monotonic(lambda value: value[1])
either_backend = pytest.mark.parametrize("backend", ["heap", "rocksdb"])

Fired = tuple[str, int, str, int | None, int]
"""Key, time, name, the context's timestamp and watermark."""


class Alarms(sa.KeyedOperator[str, Any, Any]):
    """A record is (key, time, what to do with the timers)."""

    seen = sa.ValueState(int, default=0)

    def process(self, value: Any, ctx: sa.Context[str, Any]) -> None:
        self.seen.set(self.seen.get() + 1)
        _, time, do = value
        if do is not None:
            do(ctx.timers)
        ctx.emit(("record", time, ctx.key, self.seen.get()))

    def on_timer(self, timer: sa.Timer, ctx: sa.Context[str, Any]) -> None:
        ctx.emit(("timer", timer.timestamp, timer.name, ctx.key, self.seen.get(), ctx.timestamp, ctx.watermark))


class AsyncAlarms(Alarms):
    async def process(self, value: Any, ctx: sa.Context[str, Any]) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        super().process(value, ctx)

    async def on_timer(self, timer: sa.Timer, ctx: sa.Context[str, Any]) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        super().on_timer(timer, ctx)


def alarms(source: Any, sink: Any, operator: Any = Alarms, **options: Any) -> sa.Dataflow:
    flow = sa.Dataflow("alarms")
    stream = flow.source("in", source, watermarks=MONOTONIC, parallelism=1)
    stream.key_by(lambda value: value[0]).process("alarms", operator, **options).sink("out", sink)
    return flow


async def run_over(values: list[Any], operator: Any = Alarms, **config: Any) -> list[Any]:
    sink = ListSink[Any]()
    async with asyncio.timeout(PATIENCE):
        await sa.run(alarms(ListSource(values), sink, operator), sa.Config(**config))
    return sink.values


def sets(*times: int, name: str = "") -> Callable[[sa.Timers], None]:
    return lambda timers: [timers.event(time, name) for time in times]  # type: ignore[func-returns-value,return-value]


def timers_in(values: list[Any]) -> list[Any]:
    return [value[1:] for value in values if value[0] == "timer"]


@either_backend
@pytest.mark.parametrize("operator", [Alarms, AsyncAlarms])
async def test_those_that_are_due_fire_in_order_before_the_watermark_goes_on(operator: Any, backend: Any) -> None:
    class Later(sa.KeyedOperator[str, Any, Any]):
        def process(self, value: Any, ctx: sa.Context[str, Any]) -> None:
            ctx.emit((value, ctx.timestamp, ctx.watermark))

    feed, sink, flow = Feed(chunk=1), ListSink[Any](), sa.Dataflow("alarms")
    stream = flow.source("in", feed, watermarks=MONOTONIC)
    fired = stream.key_by(lambda value: value[0]).process("alarms", operator)
    fired.key_by(lambda value: "k").process("later", Later).sink("out", sink)
    feed.put(("a", 10, sets(30, 20)), ("b", 11, sets(25)), ("a", 27, None), ("b", 28, None))
    feed.end()
    async with asyncio.timeout(PATIENCE):
        await sa.run(flow, sa.Config(state_backend=backend))
    found = {value[1]: (value[3:5], at, watermark) for value, at, watermark in sink.values if value[0] == "timer"}
    assert [value[1] for value, *_ in sink.values if value[0] == "timer"] == [20, 25, 30]
    # It came downstream in time: with its own time-stamp, before any watermark that it was due by.
    assert found[20] == (("a", 2), 20, 10) and found[25] == (("b", 1), 25, 10)
    own = {value[1]: value[5:] for value, *_ in sink.values if value[0] == "timer"}
    assert own == {20: (20, 26), 25: (25, 26), 30: (30, MAX_TIME)}


async def test_there_is_one_of_each_key_time_and_name() -> None:
    values = [("a", 1, sets(5, 5)), ("a", 2, sets(5, name="x")), ("b", 3, sets(5)), ("a", 4, sets(5))]
    assert sorted(each[:3] for each in timers_in(await run_over(values))) == [(5, "", "a"), (5, "", "b"), (5, "x", "a")]


async def test_what_is_deleted_does_not_fire() -> None:
    def change(timers: sa.Timers) -> None:
        timers.delete(5)
        timers.delete(6, "none")
        timers.delete(7, domain="processing")

    values = [("a", 1, sets(5, 6, 7)), ("b", 1, sets(5)), ("a", 2, change)]
    assert [(each[0], each[2]) for each in timers_in(await run_over(values))] == [(5, "b"), (6, "a"), (7, "a")]


class Deletes(sa.KeyedOperator[str, Any, Any]):
    """The first timer deletes the second, and sets one between the third and itself."""

    def process(self, value: Any, ctx: sa.Context[str, Any]) -> None:
        for time in (10, 20, 30):
            ctx.timers.event(time)

    def on_timer(self, timer: sa.Timer, ctx: sa.Context[str, Any]) -> None:
        ctx.emit(timer.timestamp)
        if timer.timestamp == 10:
            ctx.timers.delete(20)
            ctx.timers.event(25, "between")
            ctx.timers.event(9, "past")


@either_backend
async def test_a_timer_sees_what_those_before_it_did_to_the_timers(backend: Any) -> None:
    assert await run_over([("a", 1, None)], Deletes, state_backend=backend) == [10, 9, 25, 30]


class Chained(sa.KeyedOperator[str, Any, Any]):
    """Sets the next one, each a time that has been reached."""

    left = sa.ValueState(int, default=20)

    def process(self, value: Any, ctx: sa.Context[str, Any]) -> None:
        if value[1] == 1:
            ctx.timers.event(5)
        else:
            ctx.emit(value[1])

    def on_timer(self, timer: sa.Timer, ctx: sa.Context[str, Any]) -> None:
        ctx.emit(-timer.timestamp)
        if self.left.get():
            self.left.set(self.left.get() - 1)
            ctx.timers.event(5 + (timer.timestamp + 1) % 2, str(self.left.get()))


@either_backend
async def test_what_a_timer_sets_for_a_time_that_was_reached_fires_in_the_same_round(backend: Any) -> None:
    feed, sink = Feed(chunk=1), ListSink[Any]()
    feed.put(("a", 1, None), ("a", 10, None), ("a", 11, None))
    feed.end()
    async with asyncio.timeout(PATIENCE):
        await sa.run(alarms(feed, sink, Chained), sa.Config(state_backend=backend))
    assert sink.values[0] == 10 and sink.values[-1] == 11
    assert len(sink.values) == 23 and all(value < 0 for value in sink.values[1:-1])


@either_backend
@pytest.mark.parametrize("operator", [Alarms, AsyncAlarms])
async def test_one_set_late_fires_before_the_next_record(operator: Any, backend: Any) -> None:
    feed, sink = Feed(), ListSink[Any]()
    async with sa.start(alarms(feed, sink, operator), sa.Config(state_backend=backend), on_exit="cancel"):
        feed.put(("a", 100, None), ("a", 101, None))
        await until(lambda: len(sink.values) == 2)
        feed.put(("b", 102, None))  # behind the watermark of those
        feed.put(("a", 103, sets(50)), ("a", 104, None), ("a", 105, sets(40, 45)), ("a", 106, None))
        await until(lambda: len(sink.values) == 10)
    found = [value[:2] for value in sink.values]
    assert found[3:] == [
        ("record", 103), ("timer", 50), ("record", 104),
        ("record", 105), ("timer", 40), ("timer", 45), ("record", 106),
    ]  # fmt: skip
    assert [value[4] for value in sink.values if value[0] == "timer"] == [3, 5, 5]


@either_backend
async def test_all_event_timers_fire_at_the_end_and_no_processing_timer(backend: Any) -> None:
    def both(timers: sa.Timers) -> None:
        timers.event(10**15)
        timers.event(MAX_TIME, "last")
        timers.processing(SYSTEM.time_ms() + 10**9, "never")

    found = timers_in(await run_over([("a", 1, both), ("b", 2, None)], state_backend=backend))
    assert [each[:2] for each in found] == [(10**15, ""), (MAX_TIME, "last")]


async def test_many_at_one_time_fire_once_each_at_any_parallelism() -> None:
    values = [(f"k{number}", number, sets(10**6)) for number in range(3000)]
    for parallelism, backend in ((1, "heap"), (3, "rocksdb")):
        found = timers_in(await run_over(values, parallelism=parallelism, state_backend=backend))
        assert sorted(each[2] for each in found) == sorted(value[0] for value in values)


# ---------------------------------------------------------------------------------------------------- processing time
class Remind(sa.KeyedOperator[str, Any, Any]):
    """Record (key, milliseconds from now); a negative time was past already."""

    def process(self, value: Any, ctx: sa.Context[str, Any]) -> None:
        ctx.timers.processing(SYSTEM.time_ms() + value[1], value[0])

    def on_timer(self, timer: sa.Timer, ctx: sa.Context[str, Any]) -> None:
        assert SYSTEM.time_ms() >= timer.timestamp and timer.domain == "processing"
        ctx.emit((timer.name, ctx.key, ctx.timestamp))


@either_backend
async def test_processing_timers_fire_by_the_clock_in_order(backend: Any) -> None:
    feed, sink, flow = Feed(), ListSink[Any](), sa.Dataflow("reminders")
    flow.source("in", feed).key_by(lambda value: value[0]).process("remind", Remind).sink("out", sink)
    async with sa.start(flow, sa.Config(state_backend=backend), on_exit="cancel"):
        feed.put(("never", 10**7), ("second", 60), ("first", 30), ("past", -5))
        await until(lambda: len(sink.values) == 3)
        feed.put(("again", 1))
        await until(lambda: len(sink.values) == 4)
    assert [value[0] for value in sink.values] == ["past", "first", "second", "again"]
    assert all(name == key and stamp is None for name, key, stamp in sink.values)


@either_backend
async def test_what_is_past_due_after_a_restore_fires_at_once(tmp_path: Path, backend: Any) -> None:
    def settings() -> sa.Config:
        stored = sa.Checkpoints(tmp_path.as_uri(), interval=dt.timedelta(hours=1))
        return sa.Config(checkpoints=stored, state_backend=backend)

    def flow() -> sa.Dataflow:
        made = sa.Dataflow("reminders")
        made.source("in", feed).key_by(lambda value: value[0]).process("remind", Remind).sink("out", sink)
        return made

    feed, sink = Feed(), ListSink[Any]()
    async with sa.start(flow(), settings(), on_exit="cancel") as job:
        feed.put(("a", 200), ("b", 10**7))
        await until(lambda: pending(job) == 2)
        await job.checkpoint()
    assert sink.values == []
    async with sa.start(flow(), settings(), on_exit="cancel") as job:
        await until(lambda: pending(job) == 1)
        await job.checkpoint()
    assert [value[0] for value in sink.values] == ["a"]


def pending(job: sa.JobHandle) -> int:
    nodes = (node for each in job.metrics()["subtasks"].values() for node in each["nodes"].values())
    return sum(count for node in nodes for name, count in node.get("entries", {}).items() if "timers" in name)


class Restless(sa.KeyedOperator[str, Any, Any]):
    """A timer that sets itself again, for the time at which it fires."""

    fired = 0

    def process(self, value: Any, ctx: sa.Context[str, Any]) -> None:
        ctx.timers.event(0)

    def on_timer(self, timer: sa.Timer, ctx: sa.Context[str, Any]) -> None:
        type(self).fired += 1
        ctx.timers.event(timer.timestamp)


@pytest.mark.parametrize("ended", [False, True])
async def test_a_timer_that_never_stops_holds_up_neither_the_loop_nor_a_cancel(ended: bool) -> None:
    Restless.fired = 0
    feed, sink = Feed(), ListSink[Any]()
    feed.put(("a", 10, None))
    if ended:
        feed.end()
    async with asyncio.timeout(PATIENCE), sa.start(alarms(feed, sink, Restless), on_exit="cancel") as job:
        feed.put(("a", 20, None), ("a", 30, None))
        await until(lambda: Restless.fired > 1000)
        await job.cancel()


# --------------------------------------------------------------------------------------------------- what is refused
class Fails(Alarms):
    def on_timer(self, timer: sa.Timer, ctx: sa.Context[str, Any]) -> None:
        raise KeyError("no such thing")


@pytest.mark.parametrize("on_error", ["fail", sa.OutputTag("dead", sa.DeadLetter)])
async def test_a_failing_timer_names_operator_key_and_timer(on_error: Any) -> None:
    sink, flow = ListSink[Any](), sa.Dataflow("fails")
    stream = flow.source("in", ListSource([("a", 1, sets(5, name="x"))]), watermarks=MONOTONIC)
    fired = stream.key_by(lambda value: value[0]).process("alarms", Fails, on_error=on_error)
    fired.sink("out", sink)
    if on_error != "fail":
        fired.side_output(on_error).sink("dead", ListSink[Any]())
    with pytest.raises(sa.JobFailed) as failed:
        await sa.run(flow)
    cause = failed.value.__cause__
    assert isinstance(cause, sa.RecordFailed) and isinstance(cause.__cause__, KeyError)
    assert str(cause) == "operator 'alarms' failed, key 'a': event timer 'x' of 5: KeyError: 'no such thing'"


async def refused(flow: sa.Dataflow) -> str:
    with pytest.raises(sa.JobFailed) as failed:
        await sa.run(flow)
    return str(failed.value.__cause__)


async def test_event_timers_need_watermarks() -> None:
    flow = sa.Dataflow("alarms")
    stream = flow.source("in", ListSource([("a", 1, sets(5))])).key_by(lambda value: value[0])
    stream.process("alarms", Alarms).sink("out", ListSink[Any]())
    other = flow.source("other", ListSource([("a", 1, None)]), watermarks=MONOTONIC)
    other.sink("other-out", ListSink[Any]())
    assert "no source of this stream gives watermarks" in await refused(flow)


class Unkeyed(sa.Operator[Any, Any]):
    def process(self, value: Any, ctx: sa.Context[None, Any]) -> None:
        ctx.timers.processing(5)


class NoHook(sa.KeyedOperator[str, Any, Any]):
    def process(self, value: Any, ctx: sa.Context[str, Any]) -> None:
        ctx.timers.delete(5)


async def test_timers_are_for_keyed_operators_with_on_timer() -> None:
    for keyed, operator in ((False, Unkeyed), (True, NoHook)):
        flow = sa.Dataflow("alarms")
        stream: Any = flow.source("in", ListSource([("a", 1, None)]), watermarks=MONOTONIC)
        stream = stream.key_by(lambda value: value[0]) if keyed else stream
        stream.process("step", operator).sink("out", ListSink[Any]())
        assert "has no timers: they belong to keys" in await refused(flow)


@pytest.mark.parametrize("wrong", [1.5, "soon", None, True, 2**63])
async def test_a_time_is_a_whole_number(wrong: Any) -> None:
    source = ListSource([("a", 1, lambda timers: timers.event(wrong))])
    assert "whole number of milliseconds" in await refused(alarms(source, ListSink[Any]()))


class Leaks(Alarms):
    kept: Any = None

    def process(self, value: Any, ctx: sa.Context[str, Any]) -> None:
        Leaks.kept = ctx


async def test_outside_of_a_call_there_is_no_key() -> None:
    feed = Feed()
    async with sa.start(alarms(feed, ListSink[Any](), Leaks), on_exit="cancel"):
        feed.put(("a", 1, None))
        await until(lambda: Leaks.kept is not None)
        await asyncio.sleep(0)
        for use in (Leaks.kept.timers.event, Leaks.kept.timers.processing, Leaks.kept.timers.delete):
            with pytest.raises(sa.StateAccessError, match="key in hand"):
                use(5)


# --------------------------------------------------------------------------------------------------------- two inputs
class Match(sa.KeyedCoOperator[str, Any, Any, Any]):
    """The left record waits for the right one until its time is over."""

    waiting = sa.MapState(int, str)

    def process_left(self, value: Any, ctx: sa.Context[str, Any]) -> None:
        self.waiting[value[1]] = "left"
        ctx.timers.event(value[1] + 10)

    def process_right(self, value: Any, ctx: sa.Context[str, Any]) -> None:
        if self.waiting.pop(value[1], None) is not None:
            ctx.timers.delete(value[1] + 10)
            ctx.emit(("both", ctx.key, value[1]))

    def on_timer(self, timer: sa.Timer, ctx: sa.Context[str, Any]) -> None:
        del self.waiting[timer.timestamp - 10]
        ctx.emit(("alone", ctx.key, timer.timestamp - 10))


async def test_operators_with_two_inputs_have_timers() -> None:
    left, right, sink, flow = Feed(), Feed(), ListSink[Any](), sa.Dataflow("match")
    one, other = (flow.source(name, feed, watermarks=MONOTONIC) for name, feed in (("l", left), ("r", right)))
    matched = one.connect(other).key_by(lambda value: value[0], lambda value: value[0]).process("match", Match)
    matched.sink("out", sink)
    async with sa.start(flow, sa.Config(parallelism=2), on_exit="cancel") as job:
        left.put(("a", 1), ("b", 1), ("a", 2))
        await until(lambda: pending(job) == 3)
        right.put(("a", 2), ("b", 7))
        await until(lambda: ("both", "a", 2) in sink.values)
        left.end()
        right.end()
        await job.wait()
    assert sorted(sink.values) == [("alone", "a", 1), ("alone", "b", 1), ("both", "a", 2)]
