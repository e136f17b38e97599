"""Which steps carry names, and where there can be none."""

import datetime as dt
import functools
from typing import Any

import pytest

import streamactors as sa
from connectors.memory import ListSink, ListSource
from streamactors.graph.planner import plan
from streamactors.graph.record_ids import RecordIds

LATE = sa.OutputTag("late", int)
SIDE = sa.OutputTag("side", int)
OPAQUE: Any = functools.partial(lambda: Plain())
TIME = sa.Watermarks[int].monotonic(int)


class Asking(sa.Operator[Any, Any]):
    def process(self, value: Any, ctx: sa.Context[None, Any]) -> None:
        ctx.emit((ctx.record_id, value))


class Plain(sa.Operator[Any, Any]):
    def process(self, value: Any, ctx: sa.Context[None, Any]) -> None:
        ctx.emit(value)


class Both(sa.CoOperator[Any, Any, Any]):
    def process_left(self, value: Any, ctx: sa.Context[None, Any]) -> None:
        ctx.emit(ctx.record_id)

    def process_right(self, value: Any, ctx: sa.Context[None, Any]) -> None:
        ctx.emit(ctx.record_id)


class Timed(sa.KeyedOperator[Any, Any, Any]):
    def process(self, value: Any, ctx: sa.Context[Any, Any]) -> None:
        ctx.emit(ctx.record_id)

    def on_timer(self, timer: sa.Timer, ctx: sa.Context[Any, Any]) -> None:
        ctx.emit("no record's")


class Ruled(sa.KeyedBroadcastOperator[Any, Any, Any, Any]):
    def process(self, value: Any, ctx: sa.Context[Any, Any]) -> None:
        ctx.emit(ctx.record_id)

    def process_broadcast(self, value: Any, ctx: sa.Context[None, Any]) -> None:
        pass


def ids(flow: sa.Dataflow) -> RecordIds:
    return plan(flow.graph(), parallelism=2).record_ids


def begun() -> tuple[sa.Dataflow, sa.Stream[int]]:
    flow = sa.Dataflow("flow")
    return flow, flow.source("in", ListSource([1]), watermarks=TIME)


def test_nobody_pays_where_nobody_asks() -> None:
    flow, stream = begun()
    stream.map(abs).process("plain", Plain).sink("out", ListSink())
    assert ids(flow) == RecordIds()


def test_only_the_steps_up_to_the_last_one_that_asks() -> None:
    flow, stream = begun()
    other = flow.source("other", ListSource([1]))
    asked = stream.map(abs, name="m").process("asking", Asking).process("after", Plain)
    asked.sink("out", ListSink())
    other.sink("else", ListSink())
    assert ids(flow) == RecordIds(frozenset({"map-2", "asking"}), frozenset({"in", "map-2"}))


def test_where_one_record_may_come_twice() -> None:
    flow, stream = begun()
    again = flow.source("again", ListSource([1]))
    small, big = stream.filter(bool), stream.map(abs)
    small.union(big).process("diamond", Asking).sink("out", ListSink())
    stream.union(stream).process("twice", Asking).sink("out2", ListSink())
    stream.union(again).process("apart", Asking).sink("out3", ListSink())
    small.connect(big).process("sides", Both).sink("out4", ListSink())
    assert ids(flow).reunited == {"diamond", "twice", "sides"}


def test_broadcast_rules_need_no_names() -> None:
    flow, stream = begun()
    rules = flow.source("rules", ListSource([1]))
    stream.key_by(abs).connect_broadcast(rules).process("ruled", Ruled).sink("out", ListSink())
    assert ids(flow).given == {"in"}


def window(stream: sa.Stream[int]) -> sa.Stream[Any]:
    return stream.key_by(abs).window("w", sa.Tumbling(dt.timedelta(seconds=1))).aggregate(sa.Count())


def pattern(stream: sa.Stream[int]) -> sa.Stream[Any]:
    pattern: Any = sa.Pattern.begin("a", bool).within(dt.timedelta(seconds=1))
    return stream.key_by(abs).pattern("w", pattern)


@pytest.mark.parametrize(
    ("before", "kind"),
    [
        (window, "window"),
        (pattern, "pattern"),
        (lambda stream: stream.key_by(abs).process("w", Timed), "process"),
        (lambda stream: stream.key_by(abs).top_n("w", 3, abs), "top_n"),
        (lambda stream: stream.key_by(abs).connect_broadcast(stream).process("w", Ruled), "process"),
        (lambda stream: stream.process("w", lambda: OPAQUE()), "process"),
        (lambda stream: stream.key_by(abs).process("w", Timed).side_output(SIDE).map(abs), "process"),
    ],
)
def test_refused_behind_what_is_no_single_record(before: Any, kind: str) -> None:
    flow, stream = begun()
    before(stream).map(str).process("asking", Asking).sink("out", ListSink())
    with pytest.raises(sa.InvalidDataflow, match=f"'asking' uses record_id, and {kind} 'w' before it"):
        ids(flow)


def test_refused_behind_a_broadcast() -> None:
    flow, stream = begun()
    stream.broadcast().map(str).process("asking", Asking).sink("out", ListSink())
    with pytest.raises(sa.InvalidDataflow, match="'asking' uses record_id, and map 'map-1' gets its records by broad"):
        ids(flow)


def test_refused_where_some_come_by_broadcast() -> None:
    flow, stream = begun()
    again = flow.source("again", ListSource([1]))
    stream.union(again.broadcast()).process("asking", Asking).sink("out", ListSink())
    with pytest.raises(sa.InvalidDataflow, match="process 'asking' gets its records by broadcast"):
        ids(flow)


def test_an_operator_with_timers_may_ask_itself() -> None:
    flow, stream = begun()
    stream.key_by(abs).process("timed", Timed).sink("out", ListSink())
    assert ids(flow).taken == {"timed"}


class OwnField(sa.Operator[Any, Any]):
    uses_record_id = False

    def process(self, value: Any, ctx: sa.Context[None, Any]) -> None:
        ctx.emit(value.record_id)


def test_a_field_of_that_name_is_no_obstacle() -> None:
    flow, stream = begun()
    window(stream).process("own", OwnField).sink("out", ListSink())
    assert ids(flow) == RecordIds()
