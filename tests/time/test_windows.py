"""Which windows a record is in, and which sessions records make."""

import datetime as dt
import itertools
import zoneinfo
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamactors.elements import MAX_TIME, MIN_TIME
from streamactors.errors import InvalidDataflow
from streamactors.time.windows import (
    CountWindow,
    GlobalWindow,
    Session,
    Sliding,
    Tumbling,
    Window,
    merge_window,
    merged,
)

SECOND = dt.timedelta(seconds=1)
DAY = dt.timedelta(days=1)
HOUR = 3_600_000

timestamps = st.integers(-(2**45), 2**45)
sizes = st.integers(1, 10**9).map(lambda size: dt.timedelta(milliseconds=size))
offsets = st.integers(-(10**9), 10**9).map(lambda offset: dt.timedelta(milliseconds=offset))
ZONES = [
    "Europe/Zurich",
    "America/Havana",
    "America/Sao_Paulo",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Asia/Kathmandu",
]


class TestTumbling:
    def test_they_begin_at_the_epoch(self) -> None:
        assert Tumbling(10 * SECOND).assign(12_345) == (Window(10_000, 20_000),)
        assert Tumbling(10 * SECOND).assign(20_000) == (Window(20_000, 30_000),)
        assert Tumbling(10 * SECOND).assign(-1) == (Window(-10_000, 0),)

    def test_or_beside_it(self) -> None:
        assert Tumbling(10 * SECOND, offset=3 * SECOND).assign(12_345) == (Window(3_000, 13_000),)
        assert Tumbling(10 * SECOND, offset=-7 * SECOND).assign(12_345) == (Window(3_000, 13_000),)

    @given(timestamps, sizes, offsets)
    def test_every_instant_is_in_one_window_and_windows_meet(
        self, timestamp: int, size: dt.timedelta, offset: dt.timedelta
    ) -> None:
        tumbling = Tumbling(size, offset=offset)
        ((start, end),) = tumbling.assign(timestamp)
        assert start <= timestamp < end == start + tumbling.size
        assert tumbling.assign(end)[0].start == end
        assert tumbling.assign(start - 1)[0].end == start

    @given(st.lists(timestamps), sizes, offsets)
    def test_many_at_once_are_as_one_by_one(self, many: list[int], size: dt.timedelta, offset: dt.timedelta) -> None:
        tumbling = Tumbling(size, offset=offset)
        assert list(tumbling.assign_many(many)) == list(map(tumbling.assign, many))


class TestLocalDays:
    def test_a_day_is_as_long_as_it_is(self) -> None:
        days = Tumbling(DAY, tz="Europe/Zurich")
        assert [self.hours(days, date) for date in ("2026-03-28", "2026-03-29", "2026-10-25")] == [24, 23, 25]

    def test_weeks_begin_where_they_are_told_to(self) -> None:
        weeks = Tumbling(7 * DAY, offset=4 * DAY, tz="Europe/Zurich")  # the epoch was a Thursday
        start = dt.datetime.fromtimestamp(
            weeks.assign(instant("2026-11-25"))[0].start / 1000, zoneinfo.ZoneInfo("Europe/Zurich")
        )
        assert (start.isoformat(), start.strftime("%A")) == ("2026-11-23T00:00:00+01:00", "Monday")

    @given(st.integers(-(2**41), 2**42), st.sampled_from(ZONES), st.sampled_from([0, 1, 1.5, 6, -4]), st.integers(1, 3))
    def test_every_instant_is_in_one_window_and_windows_meet(
        self, timestamp: int, zone: str, offset: float, days: int
    ) -> None:
        tumbling = Tumbling(days * DAY, offset=dt.timedelta(hours=offset), tz=zone)
        ((start, end),) = tumbling.assign(timestamp)
        assert start <= timestamp < end
        assert tumbling.assign(end)[0].start == end
        assert tumbling.assign(start - 1)[0].end == start

    @given(st.datetimes(dt.datetime(1950, 1, 1), dt.datetime(2060, 1, 1)), st.sampled_from(ZONES))
    def test_a_window_is_the_date_that_a_calendar_shows(self, local: dt.datetime, zone: str) -> None:
        at = local.replace(tzinfo=zoneinfo.ZoneInfo(zone))
        seen = dt.datetime.fromtimestamp(at.timestamp(), zoneinfo.ZoneInfo(zone))
        ((start, _),) = Tumbling(DAY, tz=zone).assign(int(at.timestamp() * 1000))
        assert dt.datetime.fromtimestamp(start / 1000, zoneinfo.ZoneInfo(zone)).date() == seen.date()

    def test_a_time_that_no_calendar_has_is_refused(self) -> None:
        with pytest.raises(ValueError, match="999999999999999999 ms"):
            Tumbling(DAY, tz="Europe/Zurich").assign(999_999_999_999_999_999)

    @staticmethod
    def hours(days: Tumbling, date: str) -> float:
        ((start, end),) = days.assign(instant(date))
        return (end - start) / HOUR


class TestSliding:
    def test_a_record_is_in_each_window_that_covers_it(self) -> None:
        assert Sliding(10 * SECOND, 5 * SECOND).assign(12_000) == (Window(5_000, 15_000), Window(10_000, 20_000))

    def test_a_slide_longer_than_the_size_leaves_gaps(self) -> None:
        sliding = Sliding(2 * SECOND, 5 * SECOND)
        assert sliding.assign(6_999) == (Window(5_000, 7_000),)
        assert sliding.assign(7_000) == ()

    @given(timestamps, st.integers(1, 10_000), st.integers(1, 10_000), offsets)
    def test_in_those_and_no_others(self, timestamp: int, size: int, slide: int, offset: dt.timedelta) -> None:
        moved = offset // dt.timedelta(milliseconds=1)
        windows = Sliding(dt.timedelta(milliseconds=size), dt.timedelta(milliseconds=slide), offset=offset).assign(
            timestamp
        )
        near = (timestamp - moved) // slide
        starts = [number * slide + moved for number in range(near - size // slide - 2, near + 2)]
        assert list(windows) == [Window(start, start + size) for start in starts if start <= timestamp < start + size]

    @given(st.lists(st.integers(0, 100)))
    def test_many_at_once_are_as_one_by_one(self, many: list[int]) -> None:
        sliding = Sliding(dt.timedelta(milliseconds=10), dt.timedelta(milliseconds=3))
        assert list(sliding.assign_many(many)) == list(map(sliding.assign, many))


class TestSession:
    def test_a_record_begins_one(self) -> None:
        assert Session(5 * SECOND).assign(1_000) == (Window(1_000, 6_000),)

    def test_windows_exactly_at_the_gap_merge(self) -> None:
        assert merged([Window(0, 5), Window(5, 10), Window(11, 12)]) == [Window(0, 10), Window(11, 12)]

    @given(st.lists(st.integers(-100, 100)), st.integers(1, 20))
    def test_the_order_of_arrival_does_not_matter(self, times: list[int], gap: int) -> None:
        session = Session(dt.timedelta(milliseconds=gap))
        windows: list[Window] = []
        for time in times:
            window, taken = merge_window(windows, session.assign(time)[0])
            windows = sorted([other for other in windows if other not in taken] + [window])
        assert windows == merged(session.assign(time)[0] for time in times)

    @given(st.lists(st.integers(-100, 100), min_size=1), st.integers(1, 20))
    def test_sessions_are_stretches_without_a_longer_pause(self, times: list[int], gap: int) -> None:
        ordered = sorted(set(times))
        sessions = merged(Window(time, time + gap) for time in times)
        breaks = [(a, b) for a, b in itertools.pairwise(ordered) if b - a > gap]
        assert len(sessions) == len(breaks) + 1
        assert [window.start for window in sessions] == [ordered[0], *(b for _, b in breaks)]
        assert [window.end for window in sessions] == [*(a + gap for a, _ in breaks), ordered[-1] + gap]


@pytest.mark.parametrize("assigner", [GlobalWindow(), CountWindow(3)])
def test_windows_without_time_hold_all_of_it(assigner: GlobalWindow | CountWindow) -> None:
    assert assigner.assign(5) == (Window(MIN_TIME, MAX_TIME),)
    assert not assigner.timed


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Tumbling(dt.timedelta(0)), "Tumbling(size=0:00:00): give a time above zero"),
        (lambda: Tumbling(-SECOND), "Tumbling(size=-1 day, 23:59:59): give a time above zero"),
        (lambda: Tumbling(dt.timedelta(microseconds=1500)), "time-stamps are milliseconds"),
        (
            lambda: Tumbling(10),  # type: ignore[arg-type]
            "Tumbling(size=10): give a datetime.timedelta",
        ),
        (lambda: Tumbling(DAY, tz="Europe/Nowhere"), "no such time zone"),
        (lambda: Tumbling(SECOND, tz="Europe/Zurich"), "with a time zone, give whole days"),
        (lambda: Sliding(SECOND, dt.timedelta(0)), "Sliding(slide=0:00:00): give a time above zero"),
        (lambda: Session(dt.timedelta(0)), "Session(gap=0:00:00): give a time above zero"),
        (lambda: Tumbling(DAY, tz=5), "Tumbling(tz=5): no such time zone"),  # type: ignore[arg-type]
        (lambda: CountWindow(0), "CountWindow(size=0): give a whole number of records"),
        (lambda: CountWindow("a"), "CountWindow(size='a'): give a whole"),  # type: ignore[arg-type]
        (lambda: CountWindow(None), "CountWindow(size=None): give a whole"),  # type: ignore[arg-type]
        (lambda: CountWindow(float("inf")), "CountWindow(size=inf): give a whole"),  # type: ignore[arg-type]
        (lambda: CountWindow(2.0), "CountWindow(size=2.0): give a whole"),  # type: ignore[arg-type]
        (lambda: CountWindow(True), "CountWindow(size=True): give a whole"),
    ],
)
def test_what_makes_no_windows_is_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(InvalidDataflow) as refused:
        make()
    assert says in str(refused.value)


def instant(date: str) -> int:
    """Noon of that day, in Zurich."""
    return (
        int(
            dt.datetime.fromisoformat(f"{date}T12:00:00").replace(tzinfo=zoneinfo.ZoneInfo("Europe/Zurich")).timestamp()
        )
        * 1000
    )
