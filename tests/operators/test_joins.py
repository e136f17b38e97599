"""Joins at their boundaries: what matches, when it comes out, what is late, when state goes; and what is refused."""

import datetime as dt
from typing import Any

import pytest

import streamactors as sa
from connectors.memory import ListSink, ListSource
from streamactors.elements import MAX_TIME
from streamactors.operators.joins.as_of import AsOfJoinSpec
from streamactors.operators.joins.interval import IntervalJoinSpec, OuterJoinSpec
from streamactors.operators.joins.rows import add, taken
from streamactors.operators.joins.window import WindowJoinSpec
from streamactors.state.descriptors import MapState
from streamactors.time.windows import WindowAssigner
from tests.operators.driven import LATE, Driven
from tests.runtime.feeds import Feed
from tests.state.backend_contract import stand_on
from tests.state.timer_stores import BACKENDS

LEFT, RIGHT = 0, 1
either_backend = pytest.mark.parametrize("backend", ["heap", "rocksdb", "narrow"])


def ms(milliseconds: int) -> dt.timedelta:
    return dt.timedelta(milliseconds=milliseconds)


def late_records(driven: Driven) -> float:
    return driven.metrics.read().get("late_records", 0)


# ------------------------------------------------------------------------------------------------------------ interval
@either_backend
def test_both_ends_of_an_interval_match(backend: str) -> None:
    joined = Driven(IntervalJoinSpec(str, str, None, -5, 10), backend)
    joined.put(LEFT, ("k", "l", 100))
    for time in (94, 95, 110, 111):
        joined.put(RIGHT, ("k", f"r{time}", time), ("other", f"o{time}", time))
    assert joined.out == [(("l", "r95"), 100), (("l", "r110"), 110)]
    joined.close()


@either_backend
def test_a_row_is_kept_as_long_as_something_may_match(backend: str) -> None:
    """Up to the millisecond: the left row until the watermark is at the end of its interval, the right one until it is
    at the time of the last left row that could match."""
    joined = Driven(IntervalJoinSpec(str, str, None, -5, 10), backend)
    joined.put(LEFT, ("k", "l", 100))
    joined.put(RIGHT, ("k", "r", 200))
    joined.reach(109)
    assert joined.entries == {"left": 1, "right": 1, "@timers.event": 2}
    joined.put(RIGHT, ("k", "last", 110))
    assert joined.values == [("l", "last")]
    joined.reach(110)
    assert len(joined.held("left")) == 0 and joined.entries["right"] == 1
    joined.reach(204)
    joined.put(LEFT, ("k", "l205", 205))
    assert joined.out[1:] == [(("l205", "r"), 205)]
    joined.reach(205)
    assert len(joined.held("right")) == 0
    joined.reach(215)
    assert joined.entries == {}
    joined.close()


def test_what_nothing_can_match_any_more_is_not_kept() -> None:
    """The right row would have to be before the left one by 10 to 20, and it would be late."""
    joined = Driven(IntervalJoinSpec(str, str, None, -20, -10))
    joined.put(RIGHT, ("k", "r", 35))
    joined.reach(40)
    joined.put(LEFT, ("k", "l", 50), ("k", "m", 51), ("k", "n", 45))
    assert joined.values == [("l", "r"), ("m", "r"), ("n", "r")]
    assert set(joined.held("left")) == {"k"} and list(joined.held("left")["k"]) == [(51, 0)]
    joined.close()


@either_backend
def test_late_rows_are_put_aside_and_counted(backend: str) -> None:
    joined = Driven(IntervalJoinSpec(str, str, LATE, -50, 50), backend)
    joined.put(LEFT, ("k", "l", 100))
    joined.reach(99)
    joined.put(RIGHT, ("k", "late", 99), ("k", "punctual", 100))
    assert joined.values == [("l", "punctual")] and joined.late == ["late"] and late_records(joined) == 1
    quiet = Driven(IntervalJoinSpec(str, str, None, -50, 50), backend)
    quiet.reach(99)
    quiet.put(LEFT, ("k", "late", 98))
    assert (quiet.out, quiet.late, late_records(quiet), quiet.entries) == ([], [], 1, {})
    joined.close()
    quiet.close()


@either_backend
def test_rows_of_one_time_all_match(backend: str) -> None:
    joined = Driven(IntervalJoinSpec(int, int, None, 0, 0), backend)
    joined.put(LEFT, *(("k", number, 7) for number in range(70)))
    joined.put(RIGHT, ("k", -1, 7), ("k", -2, 7))
    assert sorted(joined.values) == sorted((number, right) for number in range(70) for right in (-1, -2))
    joined.reach(7)
    assert joined.entries == {}
    joined.close()


@either_backend
def test_an_unmatched_row_comes_out_when_that_is_certain(backend: str) -> None:
    joined = Driven(OuterJoinSpec(str, str, None, -5, 10), backend)
    joined.put(LEFT, ("k", "alone", 100), ("k", "matched", 200))
    joined.put(RIGHT, ("k", "r", 205), ("k", "lonely", 300))
    assert joined.out == [(("matched", "r"), 205)]
    joined.reach(109)
    assert len(joined.out) == 1
    joined.move(backend, 2)
    joined.reach(110)
    assert joined.out[1:] == [(("alone", None), 110)]
    joined.reach(304)
    assert len(joined.out) == 2
    joined.reach(305)
    assert joined.out[2:] == [((None, "lonely"), 305)]
    joined.reach(MAX_TIME)
    assert len(joined.out) == 3 and joined.entries == {}
    joined.close()


def test_an_unmatched_row_whose_interval_is_over_comes_out_at_once() -> None:
    joined = Driven(OuterJoinSpec(str, str, None, -20, -10, "left"))
    joined.reach(40)
    joined.put(LEFT, ("k", "l", 50))
    assert joined.out == [(("l", None), 50)] and joined.entries == {}
    joined.close()


@pytest.mark.parametrize("how", ["left", "right"])
def test_an_outer_join_may_change_its_sides(how: Any) -> None:
    """Rows of both are on the books."""
    joined = Driven(OuterJoinSpec(str, str, None, -5, 5, "full"))
    joined.put(LEFT, ("k", "l", 100))
    joined.put(RIGHT, ("k", "r", 200))
    joined.spec = OuterJoinSpec(str, str, None, -5, 5, how)
    joined.move("rocksdb", 2)
    joined.reach(MAX_TIME)
    assert joined.values == ([("l", None)] if how == "left" else [(None, "r")])
    joined.close()


@either_backend
@pytest.mark.parametrize("upper", [5, 20])
def test_another_version_may_have_other_bounds(backend: str, upper: int) -> None:
    """A row that was stored under the ones comes out alone under the others, and nothing is left of it."""
    joined = Driven(OuterJoinSpec(str, str, None, -5, 10), backend)
    joined.put(LEFT, ("k", "l", 100))
    joined.spec = OuterJoinSpec(str, str, None, -5, upper)
    joined.move("heap", 2)
    joined.put(RIGHT, ("k", "r", 300))
    joined.reach(MAX_TIME)
    assert sorted(joined.values, key=repr) == [("l", None), (None, "r")]
    assert joined.entries == {}
    joined.close()


@either_backend
@pytest.mark.parametrize(("before", "after"), [("full", "left"), ("left", "full"), ("right", "left")])
def test_another_version_may_ask_for_other_sides(backend: str, before: Any, after: Any) -> None:
    joined = Driven(OuterJoinSpec(str, str, None, -5, 5, before), backend)
    joined.put(LEFT, ("k", "l", 100), ("k", "m", 200))
    joined.put(RIGHT, ("k", "r", 150), ("k", "s", 200))
    joined.spec = OuterJoinSpec(str, str, None, -5, 5, after)
    joined.move(backend, 1)
    joined.reach(MAX_TIME)
    alone = [("l", None), (None, "r")] if after == "full" else [("l", None)]
    assert sorted(joined.values[1:], key=repr) == sorted(alone, key=repr) and joined.values[0] == ("m", "s")
    assert joined.entries == {}
    joined.close()


# -------------------------------------------------------------------------------------------------------------- windows
@either_backend
def test_a_window_join_waits_for_the_end(backend: str) -> None:
    joined = Driven(WindowJoinSpec(str, str, LATE, sa.Tumbling(ms(10))), backend)
    joined.put(LEFT, ("k", "a0", 0), ("k", "a9", 9), ("k", "a10", 10))
    joined.put(RIGHT, ("k", "b5", 5), ("k", "b19", 19), ("k", "b30", 30))
    joined.reach(8)
    assert joined.out == []
    joined.reach(9)
    assert joined.out == [(("a0", "b5"), 9), (("a9", "b5"), 9)]
    joined.put(LEFT, ("k", "late", 9), ("k", "a19", 19))
    assert joined.late == ["late"] and late_records(joined) == 1
    joined.reach(19)
    assert joined.out[2:] == [(("a10", "b19"), 19), (("a19", "b19"), 19)]
    joined.reach(39)
    assert len(joined.out) == 4 and joined.entries == {}
    joined.close()


@either_backend
def test_a_row_in_several_windows_is_kept_once(backend: str) -> None:
    joined = Driven(WindowJoinSpec(str, str, LATE, sa.Sliding(ms(30), ms(10))), backend)
    joined.put(LEFT, ("k", "l", 25))
    joined.put(RIGHT, ("k", "r", 15))
    assert joined.held("left") == {"k": {(25, 0): "l"}}
    joined.reach(29)  # of its windows [0, 30), [10, 40) and [20, 50) the first has ended
    joined.put(RIGHT, ("k", "too late for one", 12))
    assert joined.late == []
    joined.reach(MAX_TIME)
    assert joined.out == [(("l", "r"), 29), (("l", "too late for one"), 39), (("l", "r"), 39)]
    assert joined.entries == {}
    joined.close()


@either_backend
def test_sessions_are_those_of_both_sides(backend: str) -> None:
    joined = Driven(WindowJoinSpec(str, str, LATE, sa.Session(ms(10))), backend)
    joined.put(LEFT, ("k", "a", 0), ("k", "d", 40))
    joined.put(RIGHT, ("k", "c", 18), ("k", "e", 60))
    joined.put(LEFT, ("k", "b", 9))  # makes one of two
    joined.reach(26)
    assert joined.out == []
    joined.reach(27)
    assert joined.out == [(("a", "c"), 27), (("b", "c"), 27)]
    joined.reach(MAX_TIME)
    assert len(joined.out) == 2 and joined.entries == {}
    joined.close()


def test_a_late_row_belongs_to_a_session_that_is_not_over() -> None:
    joined = Driven(WindowJoinSpec(str, str, LATE, sa.Session(ms(10))))
    joined.put(LEFT, ("k", "a", 20))
    joined.reach(25)
    joined.put(RIGHT, ("k", "b", 12), ("k", "late", 1))
    joined.reach(MAX_TIME)
    assert joined.out == [(("a", "b"), 29)] and joined.late == ["late"] and joined.entries == {}
    joined.close()


# ---------------------------------------------------------------------------------------------------------------- as of
@either_backend
def test_a_left_row_waits_for_what_was_in_force(backend: str) -> None:
    joined = Driven(AsOfJoinSpec(str, str, LATE), backend)
    joined.put(LEFT, ("k", "l9", 9), ("k", "l10", 10), ("k", "l25", 25))
    joined.put(RIGHT, ("k", "r20", 20), ("k", "r10", 10))
    assert joined.out == []
    joined.reach(10)
    assert joined.out == [(("l9", None), 9), (("l10", "r10"), 10)]
    joined.reach(24)
    joined.put(RIGHT, ("k", "r25", 25), ("k", "r25 again", 25))
    joined.reach(25)
    assert joined.out[2:] == [(("l25", "r25 again"), 25)]
    joined.close()


@either_backend
def test_of_the_right_side_one_row_stays_in_force(backend: str) -> None:
    joined = Driven(AsOfJoinSpec(str, str, LATE), backend)
    joined.put(RIGHT, *(("k", f"r{time}", time) for time in range(0, 100, 10)))
    joined.reach(55)
    assert joined.held("in_force") == {"k": (50, "r50")}
    assert sorted(joined.held("right")["k"]) == [60, 70, 80, 90]
    joined.reach(MAX_TIME)
    assert joined.entries == {"in_force": 1}
    joined.close()


def test_a_late_right_row_counts_for_what_is_not_decided() -> None:
    joined = Driven(AsOfJoinSpec(str, str, LATE))
    joined.reach(50)
    joined.put(RIGHT, ("k", "late", 30), ("k", "late, and the newest", 30))
    joined.put(RIGHT, ("k", "older", 20))
    joined.put(LEFT, ("k", "late", 50), ("k", "l", 60))
    joined.reach(60)
    assert joined.values == [("l", "late, and the newest")]
    assert joined.late == ["older", "late"] and late_records(joined) == 2
    joined.close()


# ----------------------------------------------------------------------------------------------------------------- rows
@either_backend
@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 200])
def test_rows_of_one_time_have_places_without_gaps(backend: str, count: int) -> None:
    kept = BACKENDS[backend](range(4), 4)  # type: ignore[arg-type]
    rows = kept.bind("rows", MapState[tuple[int, int], int](tuple[int, int], int))
    stand_on(kept.cursor, "k", 4)
    assert [add(rows, 5, number) for number in range(count)] == [(5, number) for number in range(count)]
    add(rows, 6, -1)
    assert [row for _, row in taken(rows, 5)] == list(range(count))
    assert list(rows.values()) == [-1]
    kept.close()


# -------------------------------------------------------------------------------------------------------------- refused
WATERMARKS: sa.Watermarks[Any] = sa.Watermarks.monotonic(lambda value: value[1])


def name_of(value: Any) -> str:
    return str(value)


def number_of(value: Any) -> int:
    return int(value)


def test_joins_that_make_no_sense_are_refused_by_name() -> None:
    flow = sa.Dataflow("shop")
    orders = flow.source("orders", ListSource[Any]([]), watermarks=WATERMARKS)
    left = orders.key_by(name_of)
    with pytest.raises(sa.InvalidDataflow, match="interval_join works key by key, and .* has no keys: key_by first"):
        orders.interval_join("join", left, ms(0), ms(1))  # type: ignore[attr-defined]
    right: Any = orders
    with pytest.raises(sa.InvalidDataflow, match=r"interval_join 'join': rows of equal keys are joined, .* key_by"):
        left.interval_join("join", right, ms(0), ms(1))
    with pytest.raises(sa.InvalidDataflow, match="interval_join 'join': the keys of the left stream are of type str"):
        left.interval_join("join", orders.key_by(number_of), ms(0), ms(1))  # type: ignore[arg-type]
    with pytest.raises(sa.InvalidDataflow, match=r"interval_join 'join': lower \(2 ms\) is after upper \(1 ms\)"):
        left.interval_join("join", left, ms(2), ms(1))
    with pytest.raises(sa.InvalidDataflow, match=r"interval_join 'join': lower=3: give a datetime.timedelta"):
        left.interval_join("join", left, 3, ms(1))  # type: ignore[arg-type]
    with pytest.raises(sa.InvalidDataflow, match="time-stamps are milliseconds, so give whole ones"):
        left.interval_join("join", left, ms(0), dt.timedelta(microseconds=1))
    with pytest.raises(sa.InvalidDataflow, match="outer_join 'join': how='inner': 'left', 'right' or 'full'"):
        left.outer_join("join", left, ms(0), ms(1), "inner")  # type: ignore[arg-type]
    with pytest.raises(sa.InvalidDataflow, match="needs a uid first"):
        left.as_of_join(left)  # type: ignore[arg-type, call-arg]
    with pytest.raises(sa.InvalidDataflow, match="window_join 'join' takes windows such as"):
        left.window_join("join", left, ms(1))  # type: ignore[arg-type]
    endless: list[WindowAssigner] = [sa.CountWindow(3), sa.GlobalWindow()]
    for assigner in endless:
        with pytest.raises(sa.InvalidDataflow, match=r"window_join 'join': .* does not end at a time"):
            left.window_join("join", left, assigner)
    with pytest.raises(sa.InvalidDataflow, match="window_join 'join': late= is an OutputTag, not 'late'"):
        left.window_join("join", left, sa.Tumbling(ms(1)), late="late")  # type: ignore[arg-type]
    with pytest.raises(sa.InvalidDataflow, match="two Dataflow objects"):
        left.as_of_join("join", sa.Dataflow("x").source("s", ListSource[Any]([])).key_by(name_of))


@pytest.mark.parametrize("timed", ["left", "right"])
def test_a_side_without_watermarks_is_refused_by_name(timed: str) -> None:
    flow = sa.Dataflow("shop")
    left, right = (
        flow.source(side, ListSource[Any]([]), watermarks=WATERMARKS if side == timed else None).key_by(name_of)
        for side in ("left", "right")
    )
    left.as_of_join("join", right).sink("out", ListSink[Any]())
    without = "right" if timed == "left" else "left"
    with pytest.raises(
        sa.InvalidDataflow,
        match=f"as_of_join 'join' works in event time, and no watermarks come from source '{without}'",
    ):
        flow.explain()


def test_a_row_without_a_time_is_an_error() -> None:
    joined = Driven(AsOfJoinSpec(str, str, None))
    with pytest.raises(sa.RecordFailed, match="a step in event time was given a record without a time-stamp") as raised:
        joined.put(LEFT, ("k", "l", None))
    assert not raised.value.retryable
    joined.close()


# ---------------------------------------------------------------------------------------------------------- whole jobs
@pytest.mark.parametrize("backend", ["heap", "rocksdb"])
@pytest.mark.parametrize("parallelism", [1, 2])
async def test_late_rows_come_out_by_the_side_output_of_a_job(backend: Any, parallelism: int) -> None:
    flow, late = sa.Dataflow("late"), sa.OutputTag("late", tuple[str, int])
    sink, late_sink = ListSink[Any](), ListSink[Any]()
    values, feed = [("k", 10), ("k", 20), ("k", 1000), ("k", 15)], Feed(chunk=1)
    feed.put(*values)
    feed.end()
    left = flow.source("left", feed, watermarks=WATERMARKS, parallelism=1).key_by(lambda v: v[0])
    joined = left.interval_join("join", left, ms(0), ms(0), late=late)
    joined.sink("out", sink)
    joined.side_output(late).sink("late", late_sink)
    await sa.run(flow, sa.Config(state_backend=backend, parallelism=parallelism))
    assert sorted(sink.values) == [(row, row) for row in values[:3]]
    assert late_sink.values == [("k", 15)] * 2
