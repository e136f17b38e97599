"""The steps in event time of the flow whose checkpoints are kept: windows, joins and a pattern, of every kind of state.

Each result is noted with its time-stamp. None depends on the order in which subtasks send each other records.
"""

import datetime as dt
from collections.abc import Callable, Iterable
from typing import Any, Final

import streamactors as sa

SECOND: Final = dt.timedelta(seconds=1)
ONCE_A_CENTURY: Final = 36_500 * 24 * 3600 * SECOND
TIMED_OUT: Final[sa.OutputTag[sa.Match[int]]] = sa.OutputTag("timed-out", sa.Match)

STATES: Final = {
    "tumbling": {"window.contents", "window.ticks"},
    "sessions": {"window.contents", "window.elements"},
    "counted": {"window.contents", "window.unfired"},
    "outer": {"left", "right", "unmatched_left"},
    "together": {"left", "right"},
    "as_of": {"left", "right"},
    "pattern": {"waiting", "events", "partial_matches"},
}
"""What each step keeps; in the checkpoints, there is something in all of it."""

Came = dict[str, list[tuple[int, str]]]
"""Results by step: (time-stamp, as text)."""


class Elements(sa.WindowOperator[int, int, str]):
    """A window's elements, and how many windows of its key came before it."""

    before = sa.ValueState(int, default=0)

    def process(self, window: sa.Windowed[int, Iterable[int]], ctx: sa.Context[int, str]) -> None:
        ctx.emit(f"{ctx.key} {window.start}-{window.end} {sorted(window.value)} after {self.before.get()}")
        self.before.set(self.before.get() + 1)


def noting(came: list[tuple[int, str]], shown: Callable[[Any], str]) -> Any:
    class Note(sa.Operator[Any, Any]):
        def process(self, value: Any, ctx: sa.Context[None, Any]) -> None:
            assert ctx.timestamp is not None
            came.append((ctx.timestamp, shown(value)))

    return Note


def windowed(result: sa.Windowed[int, Any]) -> str:
    value = result.value
    shown = f"{value['count']} {sorted(value['all'])}" if isinstance(value, dict) else str(value)
    return f"{result.key} {result.start}-{result.end} {shown}"


def matched(match: sa.Match[int]) -> str:
    return f"{match.key} {match.start}-{match.end} {match.events}"


def add_steps(numbers: sa.Stream[int], came: Came, cycle: int, parallelism: int) -> None:
    """`cycle`: numbers that differ by it come in order, from one subtask."""

    def note(uid: str, results: sa.Stream[Any], shown: Callable[[Any], str] = str) -> None:
        results.process(f"{uid}-noted", noting(came.setdefault(uid, []), shown), parallelism=parallelism)

    many: dict[str, Any] = {"parallelism": parallelism}
    early = sa.Trigger.event_time().early(ONCE_A_CENTURY)
    both: sa.Aggregates[int, Any] = sa.Aggregates(count=sa.Count(), all=sa.Collect[int]())
    by_three = numbers.key_by(lambda number: number % 3)
    note(
        "tumbling",
        by_three.window("tumbling", sa.Tumbling(25 * SECOND), trigger=early).aggregate(both, **many),
        windowed,
    )
    by_ten = numbers.key_by(lambda number: number // 10 % 3)
    note("sessions", by_ten.window("sessions", sa.Session(5 * SECOND)).process(Elements, **many))
    in_order = numbers.key_by(lambda number: number % cycle)
    note("counted", in_order.window("counted", sa.CountWindow(4)).reduce(max, **many), windowed)

    left = numbers.key_by(lambda number: number % 2)
    right = numbers.filter(lambda number: number % 5 == 0).key_by(lambda number: number % 2)
    note("outer", left.outer_join("outer", right, -2 * SECOND, 4 * SECOND, "full", **many))
    note("together", left.window_join("together", right, sa.Tumbling(20 * SECOND), **many))
    note("as_of", left.as_of_join("as_of", right, **many))

    some: sa.Pattern[int] = sa.Pattern.begin("some", lambda number: number % 4 < 2)
    looked_for = some.times(1, 2).followed_by("tenth", lambda number: number % 10 > 7).within(30 * SECOND)
    found = left.pattern("pattern", looked_for, timed_out=TIMED_OUT, **many)
    note("pattern", found, matched)
    note("pattern-timed-out", found.side_output(TIMED_OUT), matched)
