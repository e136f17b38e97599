"""What is a time-stamp: each record gets one or is refused with the reason, and what is unambiguously wrong is told."""

import datetime as dt
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamactors.errors import InvalidTimestamp
from streamactors.time.timestamps import LATEST, SECONDS, Refused, TimestampAssigner

NOW = 1_764_000_000_000
"""In November 2025."""


def assigner(max_ahead: int | None = None, *reached: int) -> TimestampAssigner:
    return TimestampAssigner(lambda record: record, lambda: NOW, max_ahead, reached)


def refused(value: Any, max_ahead: int | None = None) -> Refused:
    """Among records that are all right."""
    stamps, [only] = assigner(max_ahead).assign([NOW, value, NOW - 5])
    assert stamps == [NOW, NOW - 5] and only.index == 1
    return only


@pytest.mark.parametrize(
    ("stamp", "why"),
    [
        (None, "None is no time-stamp: give an int, in milliseconds since the epoch; a record that has none should be"),
        (1.5, "1.5 is no time-stamp: .*, as round"),
        ("7", "'7' is no time-stamp"),
        (True, "True is no time-stamp"),
        (dt.datetime(2025, 1, 1), r"is no time-stamp: .*, as int\(time.timestamp\(\) \* 1000\)"),
        (-1, "-1 is negative"),
        (-(2**70), "is negative"),
        (NOW // 1000, r"1764000000 looks like seconds \(2025-11-24\): give milliseconds, multiply by 1000"),
        (NOW * 1000, r"1764000000000000 looks like microseconds \(2025-11-24\): .*divide by 1000$"),
        (NOW * 1000_000, "looks like nanoseconds .*divide by 1000000$"),
        (2**63, "too far in the future"),
        (LATEST + 1, "too far in the future"),
    ],
)
def test_what_is_none(stamp: Any, why: str) -> None:
    with pytest.raises(InvalidTimestamp, match=why):
        raise refused(stamp).error


def test_in_front_of_the_clock() -> None:
    hour = 3_600_000
    found = refused(NOW + hour + 1, max_ahead=hour)
    assert found.ahead and "(2025-11-24) is more than max_ahead=1:00:00 in front of the clock" in str(found.error)
    assert assigner(hour).assign([NOW + hour]) == ([NOW + hour], ())
    assert assigner().assign([NOW + 1000 * hour]) == ([NOW + 1000 * hour], ()), "without max_ahead"
    assert refused(NOW * 1000, max_ahead=hour).ahead and not refused(None, max_ahead=hour).ahead


def test_a_function_that_fails_fails_for_its_record_alone() -> None:
    stamps, [only] = TimestampAssigner(lambda record: record["at"], lambda: NOW).assign([{"at": 5}, {}, {"at": 7}])
    assert stamps == [5, 7] and only.index == 1 and isinstance(only.error, KeyError)


def test_small_times_are_made_up_and_pass_through_what_looks_like_seconds() -> None:
    made_up = assigner()
    assert made_up.assign([0, 999]) == ([0, 999], ())
    assert made_up.assign([SECONDS.start, SECONDS.stop]) == ([SECONDS.start, SECONDS.stop], ())
    restored = assigner(None, SECONDS.start + 5)
    assert restored.assign([SECONDS.start + 6]) == ([SECONDS.start + 6], ()), "after a restart, too"
    assert assigner(None, NOW).assign([SECONDS.start])[0] == []


def test_one_that_is_very_old_does_not_make_seconds_valid() -> None:
    usual = assigner()
    assert usual.assign([NOW, 0]) == ([NOW, 0], ())
    assert usual.assign([NOW // 1000])[0] == []
    assert usual.assign([NOW, 3, NOW // 1000])[0] == [NOW, 3]


GOOD = st.integers(SECONDS.stop, NOW)
BAD = st.one_of(st.none(), st.integers(max_value=-1), st.floats(), st.booleans(), st.integers(min_value=LATEST + 1))


@settings(max_examples=60)
@given(st.lists(st.one_of(GOOD, BAD), max_size=30), st.integers(1, 5))
def test_every_record_gets_one_or_is_refused(records: list[Any], size: int) -> None:
    """However they are cut into batches."""
    given_out: list[int] = []
    wrong: list[int] = []
    stamps = assigner()
    for start in range(0, len(records), size):
        good, bad = stamps.assign(records[start : start + size])
        assert len(good) + len(bad) == len(records[start : start + size])
        given_out += good
        wrong += [start + each.index for each in bad]
    fits = [type(record) is int and 0 <= record <= LATEST for record in records]
    assert given_out == [record for record, fit in zip(records, fits, strict=True) if fit]
    assert wrong == [number for number, fit in enumerate(fits) if not fit]
