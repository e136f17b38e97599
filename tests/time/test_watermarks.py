"""What a source tells of event time: per split, merged, idle by the clock that it is given, aligned, restored."""

import datetime as dt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamactors as sa
from streamactors.elements import IDLE, MIN_TIME, Watermark
from streamactors.errors import InvalidDataflow
from streamactors.time.watermarks import SplitWatermarks

SECOND = dt.timedelta(seconds=1)


def value(record: int) -> int:
    return record


def of(watermarks: sa.Watermarks[int], *splits: str, restored: Any = None) -> SplitWatermarks:
    opened = watermarks.of_splits(restored)
    opened.opened(splits)
    return opened


def give(of: SplitWatermarks, split: str, *records: int, now: float = 0.0) -> list[Any]:
    marks = [*of.found(split), *of.before(split, now)]
    return [*marks, *of.asked(now), *of.after(split, records)]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.lists(st.integers(0, 99), min_size=1)), max_size=20))
def test_per_split_and_merged_as_the_least(batches: list[tuple[str, list[int]]]) -> None:
    splits = of(sa.Watermarks.bounded(value, dt.timedelta(milliseconds=10)), "a", "b")
    latest: dict[str, int] = {}
    told = MIN_TIME
    for split, records in batches:
        for mark in give(splits, split, *records):
            assert mark.time_ms > told
            told = mark.time_ms
        latest[split] = max(latest.get(split, 0), *records)
        assert told == (MIN_TIME if len(latest) < 2 else min(latest.values()) - 11)


@given(st.lists(st.integers(0, 100), min_size=1), st.integers(0, 50), st.integers(0, 30))
def test_a_generator_goes_on_from_its_snapshot(records: list[int], cut: int, disorder: int) -> None:
    watermarks = sa.Watermarks.bounded(value, dt.timedelta(milliseconds=disorder))
    straight, parted = of(watermarks, "a"), of(watermarks, "a")
    for number, record in enumerate(records):
        if number == cut:
            parted = of(watermarks, "a", restored=parted.snapshot())
        assert give(straight, "a", record) == give(parted, "a", record)


def test_no_split_is_idle_and_a_new_one_counts() -> None:
    splits = sa.Watermarks.monotonic(value).of_splits()
    assert splits.opened([]) == [IDLE]
    assert give(splits, "a", 10) == [Watermark(MIN_TIME), Watermark(9)]
    assert give(splits, "b", 3) == [] and give(splits, "b", 20) == []
    assert give(splits, "a", 30) == [Watermark(19)]


def test_a_split_is_idle_by_the_clock_and_comes_back_before_its_record() -> None:
    splits = of(sa.Watermarks.monotonic(value, idle_after=SECOND), "a", "b")
    give(splits, "a", 10, now=0.0)
    assert splits.asked(0.5) == []
    assert give(splits, "b", 5, now=0.6) == [Watermark(4)]
    assert splits.idle_in() == pytest.approx(1 - 0.1 - 0.5, abs=0.6)
    assert splits.asked(1.5) == [], "'a' gave its last at 0.0, of which 0.1 s of work count"
    assert [*splits.asked(1.65), *splits.asked(3.0)] == [Watermark(9), IDLE]
    assert splits.idle_in() is None
    assert give(splits, "b", 6, now=4.0) == [Watermark(9)]
    assert splits.snapshot()["b"][1] is False and splits.snapshot()["a"][1] is True


def test_back_pressure_makes_no_split_idle() -> None:
    splits = of(sa.Watermarks.monotonic(value, idle_after=SECOND), "a", "b")
    now = 0.0
    for record in range(5):
        assert IDLE not in give(splits, "a", record, now=now)
        now += 100.0  # nobody asks
    assert splits.asked(now) == []


def test_idleness_and_end_go_on_after_a_restore() -> None:
    watermarks = sa.Watermarks.monotonic(value, idle_after=SECOND)
    splits = of(watermarks, "a", "b", "c")
    give(splits, "a", 10), give(splits, "b", 20), give(splits, "c", 30)
    splits.ended("a")
    assert [*splits.asked(0.1), *splits.before("c", 0.9), *splits.asked(0.9)] == []
    assert splits.asked(1.25) == [Watermark(29)]
    again = watermarks.of_splits(splits.snapshot())
    assert again.opened(["a", "b", "c"]) == [Watermark(29)]


def test_who_is_too_far_ahead_waits_for_the_slowest_that_counts() -> None:
    ahead = dt.timedelta(milliseconds=100)
    splits = of(sa.Watermarks.bounded(value, dt.timedelta(0), align=ahead, idle_after=SECOND), "a", "b")
    assert splits.slowest() is None and splits.too_far_ahead(None) == frozenset()
    give(splits, "b", 0)
    give(splits, "a", 100)
    assert splits.slowest() == -1 and splits.too_far_ahead(-1) == frozenset()
    give(splits, "a", 101)
    assert splits.too_far_ahead(-1) == {"a"} and splits.resumes_at() == 0 and not splits.all_wait()
    assert splits.too_far_ahead(-2) == {"a"} and splits.too_far_ahead(-102) == {"a", "b"} and splits.all_wait()
    give(splits, "b", 50)
    assert splits.too_far_ahead(49) == frozenset() and splits.resumes_at() is None


def test_who_waits_does_not_become_idle() -> None:
    """It has records: were it taken for idle, others would overtake them, and they would be late."""
    ahead = dt.timedelta(milliseconds=100)
    splits = of(sa.Watermarks.bounded(value, dt.timedelta(0), align=ahead, idle_after=SECOND), "a", "b")
    give(splits, "b", 0, now=0.0)
    give(splits, "a", 500, now=0.0)
    assert splits.too_far_ahead(splits.slowest()) == {"a"}
    splits.asked(0.1)
    assert give(splits, "b", 5, now=3.0) == [Watermark(4)]
    assert splits.snapshot()["a"][1] is False and splits.idle_in() == pytest.approx(1.0)
    assert splits.too_far_ahead(399) == frozenset()
    assert splits.asked(3.9) == [] and splits.snapshot()["a"][1] is False, "its time begins when it goes on"
    splits.asked(5.0)
    assert splits.snapshot()["a"][1] is True


class EveryHundred(sa.WatermarkGenerator):
    def __init__(self) -> None:
        self.reached = MIN_TIME

    def advance(self, timestamps: Any) -> int:
        self.reached = max(self.reached, max(timestamps) // 100 * 100)
        return self.reached

    def snapshot(self) -> int:
        return self.reached

    def restore(self, state: int) -> None:
        self.reached = state


def test_a_generator_of_the_users_own() -> None:
    watermarks = sa.Watermarks.custom(value, EveryHundred)
    splits = of(watermarks, "a")
    assert give(splits, "a", 250) == [Watermark(200)] and give(splits, "a", 260) == []
    assert give(of(watermarks, "a", restored=splits.snapshot()), "a", 150) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: sa.Watermarks.monotonic(5),  # type: ignore[arg-type]
        lambda: sa.Watermarks.bounded(value, dt.timedelta(seconds=-1)),
        lambda: sa.Watermarks.bounded(value, 5),  # type: ignore[arg-type]
        lambda: sa.Watermarks.monotonic(value, idle_after=dt.timedelta(0)),
        lambda: sa.Watermarks.bounded(value, SECOND, max_ahead=dt.timedelta(0)),
        lambda: sa.Watermarks.bounded(value, SECOND, align=dt.timedelta(0)),
        lambda: sa.Watermarks.bounded(value, SECOND, align_group="orders"),
        lambda: sa.Watermarks.bounded(value, SECOND, ahead="orders"),  # type: ignore[arg-type]
        lambda: sa.Watermarks.custom(value, 5),  # type: ignore[arg-type]
    ],
)
def test_settings_that_can_not_be(make: Any) -> None:
    with pytest.raises(InvalidDataflow, match="Watermarks: "):
        make()


def test_none_gives_none() -> None:
    assert not sa.Watermarks.none().generated and sa.Watermarks.monotonic(value).generated
