"""When windows fire: decisions of triggers, without windows; and that adding many is adding one after the other."""

import datetime as dt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamactors as sa
from streamactors.time.triggers import Trigger, trigger_of

SECOND = dt.timedelta(seconds=1)


def test_with_how_many_more_records_each_fires() -> None:
    assert Trigger.event_time().fires_after(5, over=False) is None
    assert Trigger.event_time().fires_after(5, over=True) == 1
    assert [Trigger.count(3).fires_after(unfired, over=True) for unfired in (0, 2, 3, 9)] == [3, 1, 1, 1]
    assert Trigger.processing_time(SECOND).fires_after(5, over=True) is None


def test_the_clock() -> None:
    early = Trigger.event_time().early(SECOND)
    assert early.ticks(over=False) and not early.ticks(over=True)
    assert Trigger.processing_time(SECOND).ticks(over=True)
    assert [early.next_tick(now) for now in (0, 999, 1000)] == [1000, 1000, 2000]
    with pytest.raises(sa.InvalidDataflow, match="has an end to be earlier than"):
        Trigger.count(2).early(SECOND)


def test_what_windows_ask_for() -> None:
    assert trigger_of(sa.Tumbling(SECOND), None) == Trigger.event_time()
    assert trigger_of(sa.CountWindow(4), None) == Trigger.count(4).purging()
    assert repr(Trigger.event_time().early(SECOND).purging()) == "Trigger.event_time().early(0:00:01).purging()"


def _itself(value: int) -> int:
    return value


class Doubled(sa.Sum[int]):
    """Changes `add` alone: its own is what counts."""

    def add(self, accumulator: float, value: int) -> float:
        return accumulator + 2 * value


@given(values=st.lists(st.integers(-9, 9)))
def test_adding_many_is_adding_each(values: list[int]) -> None:
    kinds: list[sa.Aggregate[int, Any, Any]] = [
        sa.Count(), sa.Sum(_itself), sa.Avg(_itself), sa.Min(_itself), sa.Max(_itself), sa.Distinct(_itself),
        sa.TopN(3, _itself), sa.Collect(), Doubled(_itself), sa.Aggregates(n=sa.Count(), s=Doubled(_itself)),
    ]  # fmt: skip
    for kind in kinds:
        one_by_one = kind.create()
        for value in values:
            one_by_one = kind.add(one_by_one, value)
        assert kind.add_many(kind.create(), values) == one_by_one
