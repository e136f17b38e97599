"""Durations as people write them."""

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamactors.durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10),
        ("500ms", 0.5),
        ("5m", 300),
        ("5min", 300),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        (" 2 s ", 2),
        ("1.5s", 1.5),
        ("1d", 86400),
        ("250us", 0.00025),
        ("0s", 0),
        ("0", 0),
        ("PT1H30M", 5400),
        ("pt0.5s", 0.5),
        ("P1DT2H", 93600),
    ],
)
def test_reads(text: str, seconds: float) -> None:
    assert parse_duration(text) == dt.timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "10", "s", "-5s", "10 parsecs", "1h30", "P", "PT", "P1Y", "1,5s", "1e3s", "10S"])
def test_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="with its unit"):
        parse_duration(text)


def test_refuses_what_no_timedelta_can_hold() -> None:
    with pytest.raises(ValueError, match="too long"):
        parse_duration("99999999999999d")


@given(st.timedeltas(min_value=dt.timedelta(0)))
def test_what_is_written_reads_back_exactly(duration: dt.timedelta) -> None:
    assert parse_duration(format_duration(duration)) == duration


def test_writes_short() -> None:
    assert format_duration(dt.timedelta(hours=1, minutes=30)) == "1h30m"
    assert format_duration(dt.timedelta(milliseconds=1500)) == "1s500ms"
    assert format_duration(dt.timedelta(0)) == "0s"
