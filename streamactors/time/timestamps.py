"""From records to time-stamps: what is one, and why something else is none. Pure, but for the clock that it is given.

Invariant: every record either gets a time-stamp or is refused with the reason; none is left out.
"""

import datetime as dt
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from streamactors.elements import MIN_TIME
from streamactors.errors import InvalidTimestamp

LATEST: Final = 100_000_000_000_000
"""In the year 5138: a time-stamp beyond it is none, whatever the clock says. Microseconds come to far more."""
SECONDS: Final = range(1_000_000_000, 5_000_000_000)
"""From 2001 to 2128 in seconds; in milliseconds, some weeks early in 1970."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Record `index` of a batch has no usable time-stamp. `ahead`: it has one, but too far in the future."""

    index: int
    error: Exception
    ahead: bool = False


class TimestampAssigner:
    """Gives the records of one subtask their time-stamps, by the user's function.

    `max_ahead` (milliseconds): how far in front of the clock one may be; None: up to `LATEST`. `reached`: watermarks
    that are restored, from which it is told whether time is made up (small numbers): then what looks like seconds is
    none.
    """

    def __init__(
        self,
        timestamp: Callable[[Any], int],
        time_ms: Callable[[], int],
        max_ahead: int | None = None,
        reached: Iterable[int] = (),
    ) -> None:
        self._timestamp = timestamp
        self._time_ms = time_ms
        self._max_ahead = max_ahead
        self._begun = False
        self._small = any(MIN_TIME < time < SECONDS.stop for time in reached)
        """Time-stamps began near 0: time is made up, and passes through what looks like seconds."""

    def assign(self, values: Sequence[Any]) -> tuple[list[int], Sequence[Refused]]:
        """The time-stamps of the records that are not refused, in order; a record's function may be called twice."""
        timestamp, latest = self._timestamp, self._latest()
        try:
            stamps = [timestamp(value) for value in values]
        except Exception:  # one of them: which, is found below
            return self._one_by_one(values, latest)
        if set(map(type, stamps)) == {int} and self._usual(min(stamps)) and max(stamps) <= latest:
            self._begun = True
            return stamps, ()
        return self._one_by_one(values, latest)

    def _latest(self) -> int:
        return LATEST if self._max_ahead is None else min(LATEST, self._time_ms() + self._max_ahead)

    def _usual(self, least: int) -> bool:
        """Beyond doubt, and so are all that are later."""
        return least >= SECONDS.stop or (self._small and least >= 0)

    def _one_by_one(self, values: Sequence[Any], latest: int) -> tuple[list[int], Sequence[Refused]]:
        stamps: list[int] = []
        refused: list[Refused] = []
        for index, value in enumerate(values):
            try:
                stamp = self._timestamp(value)
            except Exception as error:
                refused.append(Refused(index, error))
                continue
            if (problem := self._problem(stamp)) is not None:
                refused.append(Refused(index, InvalidTimestamp(problem, index)))
            elif stamp > latest:
                refused.append(Refused(index, InvalidTimestamp(self._too_far(stamp), index), ahead=True))
            else:
                self._accept(stamp)
                stamps.append(stamp)
        return stamps, tuple(refused)

    def _accept(self, stamp: int) -> None:
        if not self._begun:
            self._begun, self._small = True, self._small or stamp < SECONDS.start

    def _problem(self, stamp: object) -> str | None:
        if type(stamp) is not int:
            return f"{stamp!r} is no time-stamp: give an int, in milliseconds since the epoch{_cure(stamp)}"
        if stamp < 0:
            return f"{stamp} is negative: give milliseconds since the epoch (times before 1970 can't be used)"
        if stamp in SECONDS and not self._small:
            return f"{stamp} looks like seconds ({_day(stamp)}): give milliseconds, multiply by 1000"
        return None

    def _too_far(self, stamp: int) -> str:
        for unit, size in (("microseconds", 1000), ("nanoseconds", 1_000_000)):
            if stamp > LATEST and stamp // size // 1000 in SECONDS:
                return f"{stamp} looks like {unit} ({_day(stamp // size // 1000)}): give milliseconds, divide by {size}"
        if self._max_ahead is None or stamp > LATEST:
            return f"{stamp} is too far in the future: more than {LATEST}, in the year 5138"
        ahead = dt.timedelta(milliseconds=self._max_ahead)
        return f"{stamp} ({_day(stamp // 1000)}) is more than max_ahead={ahead} in front of the clock"


def _day(seconds: int) -> str:
    return (dt.datetime(1970, 1, 1) + dt.timedelta(seconds=seconds)).date().isoformat()


def _cure(stamp: object) -> str:
    if stamp is None:
        return "; a record that has none should be filtered out before, or get one"
    if isinstance(stamp, dt.datetime):
        return ", as int(time.timestamp() * 1000)"
    if isinstance(stamp, float):
        return ", as round(seconds * 1000) if these are seconds"
    return ""
