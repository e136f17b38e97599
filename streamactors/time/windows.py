"""Which windows a record belongs to: pure functions of its time-stamp.

Invariant: the windows of `Tumbling` cut all of time into pieces, each instant in exactly one; a record is in a window
[start, end) if and only if start ≤ its time-stamp < end. What `merge_window` is given in whatever order makes the same
sessions. (Akidau et al., *The Dataflow Model*, 2015: AssignWindows, MergeWindows.)
"""

import datetime as dt
import zoneinfo
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from streamactors.elements import MAX_TIME, MIN_TIME
from streamactors.errors import InvalidDataflow

_ZERO: Final = dt.timedelta(0)
_MILLISECOND: Final = dt.timedelta(milliseconds=1)
_DAY: Final = dt.timedelta(days=1)
_EPOCH: Final = dt.datetime(1970, 1, 1)
_UTC: Final = dt.UTC
_KEPT: Final = 64
"""Days whose ends are remembered: looking them up in a time zone takes microseconds."""


class Window(NamedTuple):
    """[start, end), in milliseconds since the epoch."""

    start: int
    end: int


ALL_TIME: Final = Window(MIN_TIME, MAX_TIME)


class WindowAssigner(ABC):
    """Gives each record its windows. Frozen; one instance may serve many steps."""

    merging: bool = False
    """Whether windows of one key that meet become one."""
    timed: bool = True
    """Whether its windows end at a time."""

    @abstractmethod
    def assign(self, timestamp: int) -> Sequence[Window]:
        """The windows of a record, the earliest first."""

    def assign_many(self, timestamps: Sequence[int]) -> Sequence[Sequence[Window]]:
        """Those of each."""
        return list(map(self.assign, timestamps))

    def __repr__(self) -> str:
        """The same in every process: it tells whether stored rows wait for these windows."""
        return type(self).__name__


class Tumbling(WindowAssigner):
    """Windows of one size, one after another. They begin at the epoch, moved by `offset`.

    With `tz` (a name as in the IANA database) they are days, or several, of local time: `size` has to be a whole number
    of days, and a window is as many hours long as its days have. `offset` is local time too: six hours, say, for days
    that begin at six in the morning. Raises InvalidDataflow.
    """

    def __init__(self, size: dt.timedelta, *, offset: dt.timedelta = _ZERO, tz: str | None = None) -> None:
        self.size = _milliseconds("Tumbling", "size", size)
        self.offset = _any_milliseconds("Tumbling", "offset", offset)
        self.tz = tz
        self._days = None if tz is None else _LocalDays(size, offset, _zone(tz))

    def assign(self, timestamp: int) -> Sequence[Window]:
        if self._days is not None:
            return (self._days.window(timestamp),)
        start = timestamp - (timestamp - self.offset) % self.size
        return (Window(start, start + self.size),)

    def assign_many(self, timestamps: Sequence[int]) -> Sequence[Sequence[Window]]:
        """One tuple for all records of a window."""
        if self._days is not None:
            return super().assign_many(timestamps)
        size, offset = self.size, self.offset
        starts = [timestamp - (timestamp - offset) % size for timestamp in timestamps]
        shared = {start: (Window(start, start + size),) for start in set(starts)}
        return [shared[start] for start in starts]

    def __repr__(self) -> str:
        zone = "" if self.tz is None else f", tz={self.tz!r}"
        return f"Tumbling({dt.timedelta(milliseconds=self.size)}{_moved(self.offset)}{zone})"


class Sliding(WindowAssigner):
    """Windows of one size, of which one begins every `slide`: a record is in about `size / slide` of them, and in
    none if it falls into the gap that a slide longer than the size leaves. Raises InvalidDataflow."""

    def __init__(self, size: dt.timedelta, slide: dt.timedelta, *, offset: dt.timedelta = _ZERO) -> None:
        self.size = _milliseconds("Sliding", "size", size)
        self.slide = _milliseconds("Sliding", "slide", slide)
        self.offset = _any_milliseconds("Sliding", "offset", offset)

    def assign(self, timestamp: int) -> Sequence[Window]:
        size, slide = self.size, self.slide
        last = timestamp - (timestamp - self.offset) % slide
        first = last - (last - timestamp + size - 1) // slide * slide
        return tuple([Window(start, start + size) for start in range(first, last + 1, slide)])

    def assign_many(self, timestamps: Sequence[int]) -> Sequence[Sequence[Window]]:
        known: dict[int, Sequence[Window]] = {}
        assigned = []
        for timestamp in timestamps:
            windows = known.get(timestamp)
            if windows is None:
                windows = known[timestamp] = self.assign(timestamp)
            assigned.append(windows)
        return assigned

    def __repr__(self) -> str:
        size, slide = (dt.timedelta(milliseconds=each) for each in (self.size, self.slide))
        return f"Sliding({size}, {slide}{_moved(self.offset)})"


class Session(WindowAssigner):
    """A key's records, each no later than `gap` after another, make a session: it begins with the first of them and
    ends `gap` after the last. Windows closer than or exactly at the gap merge. Raises InvalidDataflow."""

    merging = True

    def __init__(self, gap: dt.timedelta) -> None:
        self.gap = _milliseconds("Session", "gap", gap)

    def assign(self, timestamp: int) -> Sequence[Window]:
        return (Window(timestamp, timestamp + self.gap),)

    def __repr__(self) -> str:
        return f"Session({dt.timedelta(milliseconds=self.gap)})"


class CountWindow(WindowAssigner):
    """Each `size` records of a key make a window, whatever their time-stamps. Raises InvalidDataflow."""

    timed = False

    def __init__(self, size: int) -> None:
        if type(size) is not int or size < 1:
            raise InvalidDataflow(f"CountWindow(size={size!r}): give a whole number of records, at least 1")
        self.size = size

    def assign(self, timestamp: int) -> Sequence[Window]:
        return (ALL_TIME,)

    def __repr__(self) -> str:
        return f"CountWindow({self.size})"


class GlobalWindow(WindowAssigner):
    """All records of a key are in one window, which never ends by itself: give a trigger."""

    timed = False

    def assign(self, timestamp: int) -> Sequence[Window]:
        return (ALL_TIME,)

    def __repr__(self) -> str:
        return "GlobalWindow()"


def _moved(offset: int) -> str:
    return f", offset={dt.timedelta(milliseconds=offset)}" if offset else ""


# ------------------------------------------------------------------------------------------------------------- merging
def merge_window(windows: Sequence[Window], new: Window) -> tuple[Window, Sequence[Window]]:
    """What `new` becomes among `windows`, which are in order and don't meet: (the merged window, those it takes in)."""
    first = bisect_left(windows, new.start, key=_end)
    last = first
    start, end = new
    while last < len(windows) and windows[last].start <= end:
        start, end = min(start, windows[last].start), max(end, windows[last].end)
        last += 1
    return Window(start, end), windows[first:last]


def merged(windows: Iterable[Window]) -> list[Window]:
    """All of them, those that meet being one; in order."""
    kept: list[Window] = []
    for window in sorted(windows):
        if kept and kept[-1].end >= window.start:
            kept[-1] = Window(kept[-1].start, max(kept[-1].end, window.end))
        else:
            kept.append(window)
    return kept


def _end(window: Window) -> int:
    return window.end


# --------------------------------------------------------------------------------------------------- days of local time
class _LocalDays:
    """Cuts time where local days begin. Which day an instant belongs to is settled by these instants and not by what a
    clock on the wall shows, since that shows some times twice and some never."""

    def __init__(self, size: dt.timedelta, offset: dt.timedelta, zone: zoneinfo.ZoneInfo) -> None:
        if size % _DAY:
            raise InvalidDataflow(f"Tumbling(size={size}, tz={zone.key!r}): with a time zone, give whole days")
        self._size = size
        self._offset = offset
        self._zone = zone
        self._starts: dict[int, int] = {}
        self._latest = Window(0, 0)

    def window(self, timestamp: int) -> Window:
        if not self._latest.start <= timestamp < self._latest.end:
            try:
                self._latest = self._find(timestamp)
            except (OverflowError, ValueError) as error:
                raise ValueError(f"{timestamp} ms is no time in the years 2 to 9998, which time zones know") from error
        return self._latest

    def _find(self, timestamp: int) -> Window:
        instant = dt.datetime(1970, 1, 1, tzinfo=_UTC) + timestamp * _MILLISECOND
        local = instant.astimezone(self._zone).replace(tzinfo=None)
        number = (local - self._offset - _EPOCH) // self._size
        while self._start(number) > timestamp:
            number -= 1
        while self._start(number + 1) <= timestamp:
            number += 1
        return Window(self._start(number), self._start(number + 1))

    def _start(self, number: int) -> int:
        start = self._starts.get(number)
        if start is None:
            if len(self._starts) >= _KEPT:
                self._starts.clear()
            local = (_EPOCH + number * self._size + self._offset).replace(tzinfo=self._zone)
            start = self._starts[number] = (local - dt.datetime(1970, 1, 1, tzinfo=_UTC)) // _MILLISECOND
        return start


def _zone(name: str) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, TypeError, AttributeError) as error:
        raise InvalidDataflow(
            f"Tumbling(tz={name!r}): no such time zone. Give a name such as 'Europe/Zurich'; on a system without the "
            "IANA database, install the package tzdata."
        ) from error


# ----------------------------------------------------------------------------------------------------------- durations
def _any_milliseconds(where: str, name: str, duration: dt.timedelta) -> int:
    if not isinstance(duration, dt.timedelta):
        raise InvalidDataflow(f"{where}({name}={duration!r}): give a datetime.timedelta")
    if duration % _MILLISECOND:
        raise InvalidDataflow(f"{where}({name}={duration}): time-stamps are milliseconds, so give whole ones")
    return duration // _MILLISECOND


def _milliseconds(where: str, name: str, duration: dt.timedelta) -> int:
    found = _any_milliseconds(where, name, duration)
    if found <= 0:
        raise InvalidDataflow(f"{where}({name}={duration}): give a time above zero")
    return found
