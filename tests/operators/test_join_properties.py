"""Joins against oracles that know all rows: whatever the disorder within the bound, the order between the sides, the
watermarks, the backend and the crashes."""

import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamactors.elements import MAX_TIME
from streamactors.operators.joins.as_of import AsOfJoinSpec
from streamactors.operators.joins.base import JoinSpec
from streamactors.operators.joins.interval import IntervalJoinSpec, OuterJoinSpec
from streamactors.operators.joins.window import WindowJoinSpec
from streamactors.time.windows import Session, Sliding, Tumbling, WindowAssigner
from tests.operators.driven import LATE, Driven

pytestmark = pytest.mark.slow

LEFT, RIGHT = 0, 1
SPAN = 60
few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
either_backend = pytest.mark.parametrize("backends", [("heap", "rocksdb"), ("narrow", "heap")])


class Row(NamedTuple):
    """The `number`-th to arrive. Times are even, and watermarks are odd or even: none is in the gap of a session."""

    side: int
    key: str
    time: int
    number: int


class Move(NamedTuple):
    """To the other backend, at another parallelism."""

    parallelism: int


Step = Row | Move | int
"""An int is a watermark."""


@st.composite
def scripts(draw: st.DrawFn, *, punctual: bool = True) -> list[Step]:
    """What happens, in order. `punctual`: each row is after the watermark in force."""
    steps: list[Step] = []
    watermark, moves = -1, 0
    for number in range(draw(st.integers(1, 30))):
        match draw(st.integers(0, 9)):
            case 0 if moves < 2:
                steps.append(Move(draw(st.integers(1, 3))))
                moves += 1
            case 1 | 2 | 3:
                watermark += draw(st.integers(0, 12))
                steps.append(watermark)
            case _:
                low = watermark // 2 + 1 if punctual else 0
                time = 2 * draw(st.integers(low, low + SPAN // 3))
                steps.append(Row(draw(st.sampled_from([LEFT, RIGHT])), draw(st.sampled_from("ab")), time, number))
    return steps


def played(spec: JoinSpec, steps: Sequence[Step], backends: Sequence[str]) -> Driven:
    """All of them, and the end of the data; asserts that nothing is left."""
    driven = Driven(spec, backends[0], 2)
    try:
        moved = 0
        for step in steps:
            match step:
                case Row():
                    driven.put(step.side, (step.key, step, step.time))
                case Move():
                    moved += 1
                    driven.move(backends[moved % 2], step.parallelism)
                case _:
                    driven.reach(step)
        driven.reach(MAX_TIME)
        assert set(driven.entries) <= {"in_force"}, "state is left behind"
    finally:
        driven.close()
    return driven


def rows_of(steps: Iterable[Step], side: int) -> list[Row]:
    return [step for step in steps if isinstance(step, Row) and step.side == side]


def matches(steps: Sequence[Step], lower: int, upper: int) -> list[tuple[Row, Row]]:
    return [
        (left, right)
        for left in rows_of(steps, LEFT)
        for right in rows_of(steps, RIGHT)
        if left.key == right.key and left.time + lower <= right.time <= left.time + upper
    ]


bounds = st.tuples(st.integers(-20, 20), st.integers(0, 20)).map(lambda pair: (pair[0], pair[0] + pair[1]))


# ------------------------------------------------------------------------------------------------------------ interval
@either_backend
@few
@given(steps=scripts(), bounds=bounds)
def test_an_interval_join_gives_every_pair_once(
    backends: Sequence[str], steps: list[Step], bounds: tuple[int, int]
) -> None:
    driven = played(IntervalJoinSpec(Any, Any, LATE, *bounds), steps, backends)
    wanted = {(pair, max(pair[0].time, pair[1].time)): 1 for pair in matches(steps, *bounds)}
    assert Counter(driven.out) == wanted
    assert driven.late == []


@either_backend
@few
@given(steps=scripts(), bounds=bounds, how=st.sampled_from(["left", "right", "full"]))
def test_an_outer_join_gives_unmatched_rows_once_too(
    backends: Sequence[str], steps: list[Step], bounds: tuple[int, int], how: Literal["left", "right", "full"]
) -> None:
    driven = played(OuterJoinSpec(Any, Any, LATE, *bounds, how), steps, backends)
    lower, upper = bounds
    pairs = matches(steps, lower, upper)
    wanted: Counter[Any] = Counter((pair, max(pair[0].time, pair[1].time)) for pair in pairs)
    if how in ("left", "full"):
        alone = set(rows_of(steps, LEFT)) - {left for left, _ in pairs}
        wanted.update(((row, None), max(row.time, row.time + upper)) for row in alone)
    if how in ("right", "full"):
        alone = set(rows_of(steps, RIGHT)) - {right for _, right in pairs}
        wanted.update(((None, row), max(row.time, row.time - lower)) for row in alone)
    assert Counter(driven.out) == wanted


# -------------------------------------------------------------------------------------------------------------- windows
ASSIGNERS: list[WindowAssigner] = [
    Tumbling(dt.timedelta(milliseconds=10)),
    Tumbling(dt.timedelta(milliseconds=7), offset=dt.timedelta(milliseconds=3)),
    Sliding(dt.timedelta(milliseconds=12), dt.timedelta(milliseconds=4)),
    Sliding(dt.timedelta(milliseconds=6), dt.timedelta(milliseconds=10)),
    Session(dt.timedelta(milliseconds=6)),
]


def fixed_pairs(steps: Sequence[Step], assigner: WindowAssigner) -> Counter[Any]:
    lefts, rights = rows_of(steps, LEFT), rows_of(steps, RIGHT)
    return Counter(
        ((left, right), window.end - 1)
        for left in lefts
        for window in assigner.assign(left.time)
        for right in rights
        if right.key == left.key and window.start <= right.time < window.end
    )


def session_pairs(steps: Sequence[Step], gap: int) -> Counter[Any]:
    by_key: defaultdict[str, list[Row]] = defaultdict(list)
    for row in sorted((step for step in steps if isinstance(step, Row)), key=lambda row: row.time):
        by_key[row.key].append(row)
    sessions: list[list[Row]] = []
    for rows in by_key.values():
        for before, row in zip([None, *rows], rows, strict=False):
            if before is None or row.time - before.time > gap:
                sessions.append([])
            sessions[-1].append(row)
    return Counter(
        ((left, right), session[-1].time + gap - 1)
        for session in sessions
        for left in session
        for right in session
        if (left.side, right.side) == (LEFT, RIGHT)
    )


@either_backend
@few
@given(steps=scripts(), assigner=st.sampled_from(ASSIGNERS))
def test_a_window_join_gives_the_pairs_of_each_window(
    backends: Sequence[str], steps: list[Step], assigner: WindowAssigner
) -> None:
    if assigner.merging:
        steps = [step + step % 2 if isinstance(step, int) else step for step in steps]  # see below
        steps = [step for step, mark in _with_watermarks(steps) if not isinstance(step, Row) or step.time > mark]
    driven = played(WindowJoinSpec(Any, Any, LATE, assigner), steps, backends)
    wanted = session_pairs(steps, assigner.gap) if isinstance(assigner, Session) else fixed_pairs(steps, assigner)
    assert Counter(driven.out) == wanted


def _with_watermarks(steps: Iterable[Step]) -> Iterable[tuple[Step, int]]:
    """A session ends one millisecond before the time of the last row that would continue it: where the watermark stands
    on that very millisecond, such a row comes too late or not, as in Flink. Even watermarks never do."""
    watermark = -1
    for step in steps:
        if not isinstance(step, (Row, Move)):
            watermark = max(watermark, step)
        yield step, watermark


# ---------------------------------------------------------------------------------------------------------------- as of
@either_backend
@few
@given(steps=scripts())
def test_an_as_of_join_finds_what_was_in_force(backends: Sequence[str], steps: list[Step]) -> None:
    driven = played(AsOfJoinSpec(Any, Any, LATE), steps, backends)
    rights = rows_of(steps, RIGHT)
    wanted = []
    for left in rows_of(steps, LEFT):
        known = [row for row in rights if row.key == left.key and row.time <= left.time]
        latest = max(known, key=lambda row: (row.time, row.number), default=None)
        wanted.append(((left, latest), left.time))
    assert Counter(driven.out) == Counter(wanted)


# ----------------------------------------------------------------------------------------------------------------- late
SPECS: dict[str, Callable[[], JoinSpec]] = {
    "interval": lambda: IntervalJoinSpec(Any, Any, LATE, -5, 5),
    "outer": lambda: OuterJoinSpec(Any, Any, LATE, -5, 5),
    "as of": lambda: AsOfJoinSpec(Any, Any, LATE),
    "tumbling": lambda: WindowJoinSpec(Any, Any, LATE, ASSIGNERS[0]),
    "sliding": lambda: WindowJoinSpec(Any, Any, LATE, ASSIGNERS[2]),
    "session": lambda: WindowJoinSpec(Any, Any, LATE, ASSIGNERS[4]),
}


@pytest.mark.parametrize("spec", SPECS)
@settings(few, max_examples=30)
@given(steps=scripts(punctual=False))
def test_rows_beyond_the_bound_are_joined_or_late(spec: str, steps: list[Step]) -> None:
    """A row that is late comes out by the side output alone, and is counted; nothing comes out twice."""
    driven = played(SPECS[spec](), steps, ("heap", "heap"))
    late = Counter(driven.late)
    assert set(late.values()) <= {1}
    assert max(Counter(driven.values).values(), default=1) == 1 or spec == "sliding"
    joined = {row for pair in driven.values for row in pair if row is not None}
    assert not joined & set(late)
    punctual = {step for step, mark in _with_watermarks(steps) if isinstance(step, Row) and step.time > mark}
    assert not punctual & set(late)
    if spec == "outer":
        assert joined | set(late) == {step for step in steps if isinstance(step, Row)}
    if spec == "as of":
        assert set(rows_of(steps, LEFT)) == {left for left, _ in driven.values} | set(rows_of(driven.late, LEFT))
