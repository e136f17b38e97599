"""How async steps call: again after a failure (`Retry`), for several records at once (`BatchOf`)."""

import datetime as dt
from dataclasses import dataclass

from streamactors.errors import InvalidDataflow


@dataclass(frozen=True, slots=True)
class Retry:
    """`attempts` in all, the first one included. The first pause is `initial`, and each is twice the one before, up to
    `maximum`; a random share of up to a half is taken off each, so that calls that failed together do not come back
    together. `on`: the exceptions after which there is another attempt; a time-out is a TimeoutError."""

    attempts: int
    initial: dt.timedelta = dt.timedelta(milliseconds=100)
    maximum: dt.timedelta = dt.timedelta(seconds=30)
    on: tuple[type[Exception], ...] = (Exception,)

    def __init__(
        self,
        attempts: int,
        *,
        initial: dt.timedelta = dt.timedelta(milliseconds=100),
        maximum: dt.timedelta = dt.timedelta(seconds=30),
        on: tuple[type[Exception], ...] = (Exception,),
    ) -> None:
        """Raises InvalidDataflow."""
        check_whole("Retry(attempts)", attempts)
        check_duration("Retry(initial)", initial)
        check_duration("Retry(maximum)", maximum)
        if maximum < initial:
            raise InvalidDataflow(f"Retry(maximum) is {maximum}, which is less than initial, {initial}")
        _check_exceptions(on)
        for name, value in (("attempts", attempts), ("initial", initial), ("maximum", maximum), ("on", on)):
            object.__setattr__(self, name, value)

    def delay(self, attempt: int, random: float) -> float:
        """Seconds between `attempt` (from 1) and the next one; `random` from 0 to 1."""
        longest = self.maximum.total_seconds()
        exponent = min(attempt - 1, 62)
        return min(self.initial.total_seconds() * 2.0**exponent, longest) * (1 - random / 2)


@dataclass(frozen=True, slots=True)
class BatchOf:
    """One call for up to `max_size` records: as soon as there are so many, or the first of them has waited for
    `max_wait`."""

    max_size: int
    max_wait: dt.timedelta

    def __post_init__(self) -> None:
        check_whole("BatchOf(max_size)", self.max_size)
        check_duration("BatchOf(max_wait)", self.max_wait)


def _check_exceptions(on: object) -> None:
    if not isinstance(on, tuple) or not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in on):
        raise InvalidDataflow(f"Retry(on) is a tuple of exception classes, such as (TimeoutError,), not {on!r}")


def check_retry(name: str, value: object) -> None:
    if value is not None and not isinstance(value, Retry):
        raise InvalidDataflow(f"{name} is {value!r}: give a Retry(…), or None")


def check_whole(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidDataflow(f"{name} is {value!r}: give a whole number from 1 up")


def check_duration(name: str, value: object, *, positive: bool = False) -> None:
    if not isinstance(value, dt.timedelta):
        raise InvalidDataflow(f"{name} is {value!r}: give a datetime.timedelta, such as dt.timedelta(seconds=10)")
    if value < dt.timedelta(0) or (positive and not value):
        raise InvalidDataflow(f"{name} is {value}: {'longer than zero' if positive else 'not negative'}, please")
