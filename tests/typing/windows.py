"""What mypy --strict and pyright make of windows. Checked, never run."""

import datetime as dt
from collections.abc import Iterable
from typing import Any, assert_type

import msgspec

import streamactors as sa


class View(msgspec.Struct):
    campaign: str
    price: float


class Spread(sa.WindowOperator[str, View, float]):
    """All of a window's views, with state of the key."""

    largest = sa.ValueState(float, default=0.0)

    async def process(self, window: sa.Windowed[str, Iterable[View]], ctx: sa.Context[str, float], /) -> None:
        assert_type(window.key, str)
        prices = [view.price for view in window.value]
        self.largest.set(max(self.largest.get(), *prices))
        ctx.emit(max(prices) - min(prices))


class Totals(msgspec.Struct):
    views: int
    paid: float


def cheaper(left: View, right: View) -> View:
    return min(left, right, key=lambda view: view.price)


def by_type(views: sa.Stream[View]) -> None:
    minute = sa.Tumbling(dt.timedelta(minutes=1))
    late = sa.OutputTag("late", View)
    keyed = views.key_by(lambda view: view.campaign)
    windows = keyed.window("a", minute, allowed_lateness=dt.timedelta(seconds=5), late=late)
    assert_type(windows, sa.WindowedStream[str, View])
    assert_type(windows.reduce(cheaper), sa.Stream[sa.Windowed[str, View]])
    assert_type(windows.aggregate(sa.Count()), sa.Stream[sa.Windowed[str, int]])
    paid: sa.Sum[View] = sa.Sum(lambda view: view.price)
    both = sa.Aggregates[View, Totals](Totals, views=sa.Count(), paid=paid)
    assert_type(windows.aggregate(both), sa.Stream[sa.Windowed[str, Totals]])
    assert_type(windows.process(Spread), sa.Stream[float])
    assert_type(windows.process(Spread).side_output(late), sa.Stream[View])
    everything = views.window_all("b", sa.Session(dt.timedelta(minutes=5)))
    assert_type(everything, sa.WindowedStream[None, View])
    assert_type(everything.reduce(cheaper), sa.Stream[sa.Windowed[None, View]])
    ahead = sa.Trigger.event_time().early(dt.timedelta(seconds=1)).purging()
    assert_type(ahead, sa.Trigger)
    kinds: list[sa.WindowAssigner] = [
        sa.Sliding(dt.timedelta(1), dt.timedelta(2)),
        sa.CountWindow(3),
        sa.GlobalWindow(),
    ]
    for number, kind in enumerate(kinds):
        counted: sa.Stream[Any] = keyed.window(f"c{number}", kind, trigger=sa.Trigger.count(3)).aggregate(sa.Count())
        counted.print()
