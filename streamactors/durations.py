"""Durations as people write them: "10s", "500ms", "1h30m", or ISO 8601 ("PT1H30M")."""

import datetime as dt
import re
from fractions import Fraction

_MICROSECONDS = {
    "us": 1,
    "ms": 1_000,
    "s": 1_000_000,
    "m": 60_000_000,
    "min": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
}
_FORMATTED = ("d", "h", "m", "s", "ms", "us")
_PART = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*")
_ISO = re.compile(
    r"P(?:(?P<d>\d+)D)?(?:T(?=\d)(?:(?P<h>\d+)H)?(?:(?P<m>\d+)M)?(?:(?P<s>\d+(?:\.\d+)?)S)?)?", re.IGNORECASE
)

EXPECTED = 'a duration with its unit, such as "500ms", "10s", "5m", "1h30m" or "PT1H30M"'


def parse_duration(text: str) -> dt.timedelta:
    """Raises ValueError for anything without a unit (but for 0), negative, or out of range."""
    text = text.strip()
    if text == "0":
        return dt.timedelta(0)
    parts = _iso_parts(text) or _unit_parts(text)
    if not parts:
        raise ValueError(f"{text!r} is not {EXPECTED}")
    try:
        return dt.timedelta(microseconds=round(sum(Fraction(number) * _MICROSECONDS[unit] for number, unit in parts)))
    except OverflowError as error:
        raise ValueError(f"{text!r} is too long for a duration") from error


def format_duration(duration: dt.timedelta) -> str:
    """The shortest text of a duration ≥ 0 that `parse_duration` reads back to the same: "1h30m"."""
    rest = duration // dt.timedelta(microseconds=1)
    text = ""
    for unit in _FORMATTED:
        count, rest = divmod(rest, _MICROSECONDS[unit])
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def _unit_parts(text: str) -> list[tuple[str, str]]:
    """Number and unit of each part; empty where `text` is not such a sequence."""
    parts, at = [], 0
    while at < len(text):
        match = _PART.match(text, at)
        if match is None or match[2] not in _MICROSECONDS:
            return []
        parts.append((match[1], match[2]))
        at = match.end()
    return parts


def _iso_parts(text: str) -> list[tuple[str, str]]:
    match = _ISO.fullmatch(text)
    return [] if match is None else [(number, unit) for unit, number in match.groupdict().items() if number]
