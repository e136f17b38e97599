"""Durations that are given as options."""

from streamactors.durations import parse_duration
from streamactors.errors import InvalidConfig


def seconds_of(flag: str, text: str) -> float:
    """Raises InvalidConfig naming the option."""
    try:
        seconds = parse_duration(text).total_seconds()
    except ValueError as error:
        raise InvalidConfig(f"{flag}: {error}") from None
    if not seconds:
        raise InvalidConfig(f"{flag} = {text}: it must be longer than zero")
    return seconds
