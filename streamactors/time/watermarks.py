"""How a source tells event time: time-stamps from records, and per split a generator of watermarks from these.

Invariants. A record is given before the watermark that it has moved. A split that is idle holds nobody back; it counts
again before its next record is given. What `SplitWatermarks.snapshot` gives, goes on from there.
"""

import datetime as dt
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

from streamactors.elements import MAX_TIME, MIN_TIME, TimeMark
from streamactors.errors import InvalidDataflow, InvalidTimestamp
from streamactors.time.progress import InputTime, WatermarkMerge

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

LARGEST_GAP: Final = 0.1
"""Seconds of work or back-pressure count at most so much towards idleness: no split is idle because nobody asks."""


# ----------------------------------------------------------------------------------------------------------- generators
class WatermarkGenerator(ABC):
    """Event time of one split."""

    @abstractmethod
    def advance(self, timestamps: Sequence[int]) -> int:
        """The watermark after these records (at least one); may stay, or be what it was before the first one."""

    @abstractmethod
    def snapshot(self) -> Any:
        """Plain msgpack data."""

    @abstractmethod
    def restore(self, state: Any) -> None:
        """Go on from a snapshot."""


class BoundedDisorder(WatermarkGenerator):
    """No record is more than `disorder` milliseconds earlier than the latest before it."""

    def __init__(self, disorder: int) -> None:
        self._disorder = disorder
        self._latest: int | None = None

    def advance(self, timestamps: Sequence[int]) -> int:
        latest = max(timestamps)
        self._latest = latest if self._latest is None else max(self._latest, latest)
        return max(MIN_TIME, self._latest - self._disorder - 1)

    def snapshot(self) -> int | None:
        return self._latest

    def restore(self, state: int | None) -> None:
        self._latest = state


# ------------------------------------------------------------------------------------------------------ what users give
class Watermarks(Generic[T_contra]):
    """How a source tells event time. `timestamp` gives a record's, in milliseconds since the epoch.

    `idle_after`: a split that gives nothing for so long is no longer waited for. `max_ahead`: a split that is further
    ahead of the slowest one of its subtask is not read until that has caught up, where the connector can pause splits.
    """

    def __init__(
        self,
        timestamp: Callable[[T_contra], int] | None,
        generator: Callable[[], WatermarkGenerator] | None,
        *,
        idle_after: dt.timedelta | None = None,
        max_ahead: dt.timedelta | None = None,
    ) -> None:
        """Use `bounded`, `monotonic`, `custom` or `none`."""
        self._timestamp = timestamp
        self._generator = generator
        self._idle_after = _positive("idle_after", idle_after)
        self._max_ahead = _positive("max_ahead", max_ahead)

    @classmethod
    def bounded(
        cls,
        timestamp: Callable[[T], int],
        out_of_orderness: dt.timedelta,
        *,
        idle_after: dt.timedelta | None = None,
        max_ahead: dt.timedelta | None = None,
    ) -> "Watermarks[T]":
        """Per split, records come at most `out_of_orderness` late: the watermark is the latest time-stamp less that
        (and less one millisecond, since more records of that very time may come)."""
        _check_timestamp(timestamp)
        disorder = _milliseconds("out_of_orderness", out_of_orderness)
        return Watermarks(timestamp, lambda: BoundedDisorder(disorder), idle_after=idle_after, max_ahead=max_ahead)

    @classmethod
    def monotonic(cls, timestamp: Callable[[T], int], *, idle_after: dt.timedelta | None = None) -> "Watermarks[T]":
        """Per split, time-stamps never go backwards."""
        return cls.bounded(timestamp, dt.timedelta(0), idle_after=idle_after)

    @classmethod
    def custom(
        cls,
        timestamp: Callable[[T], int],
        generator: Callable[[], WatermarkGenerator],
        *,
        idle_after: dt.timedelta | None = None,
        max_ahead: dt.timedelta | None = None,
    ) -> "Watermarks[T]":
        """`generator` is a class or factory without arguments, called once per split."""
        _check_timestamp(timestamp)
        if not callable(generator):
            raise InvalidDataflow(f"Watermarks: generator is a class or a factory without arguments, not {generator!r}")
        return Watermarks(timestamp, generator, idle_after=idle_after, max_ahead=max_ahead)

    @classmethod
    def none(cls) -> "Watermarks[Any]":
        """No watermarks. Records keep the time-stamp that the source has for them."""
        return Watermarks(None, None)

    @property
    def generated(self) -> bool:
        """Whether there are any."""
        return self._generator is not None

    def of_splits(self, restored: Mapping[str, Any] | None = None) -> "SplitWatermarks":
        """For one source subtask; `restored`: what its splits had stored."""
        assert self._timestamp is not None and self._generator is not None
        return SplitWatermarks(self._timestamp, self._generator, self._idle_after, self._max_ahead, restored or {})


# --------------------------------------------------------------------------------------------------- one source subtask
class _Split:
    __slots__ = ("generator", "seen", "time")

    def __init__(self, generator: WatermarkGenerator, time: InputTime, seen: float) -> None:
        self.generator = generator
        self.time = time
        self.seen = seen


class SplitWatermarks:
    """The watermarks of the splits that one subtask reads, merged. `now`: monotonic seconds; methods that return marks
    return what is news to whoever comes after."""

    def __init__(
        self,
        timestamp: Callable[[Any], int],
        generator: Callable[[], WatermarkGenerator],
        idle_after: float | None,
        max_ahead: float | None,
        restored: Mapping[str, Any],
    ) -> None:
        self._timestamp = timestamp
        self._generator = generator
        self._idle_after = idle_after
        self._max_ahead = None if max_ahead is None else round(max_ahead * 1000)
        self._restored = restored
        self._splits: dict[str, _Split] = {}
        self._merge: WatermarkMerge[str] = WatermarkMerge({})
        self._counted = 0.0
        self._asked: float | None = None
        self._gave = False

    def opened(self, splits: Iterable[str]) -> Sequence[TimeMark]:
        for split in splits:
            self._add(split)
        return self._merge.merged()

    def _add(self, name: str) -> _Split:
        generator = self._generator()
        time = InputTime()
        if (stored := self._restored.get(name)) is not None:
            watermark, idle, ended, state = stored
            generator.restore(state)
            time = InputTime(watermark, idle=idle, ended=ended)
        split = self._splits[name] = _Split(generator, time, self._counted)
        self._merge.inputs[name] = time
        return split

    # ------------------------------------------------------------------------------------------------------- records
    def stamps(self, values: Iterable[Any]) -> list[int]:
        """Their time-stamps. Raises what the user's function raises, InvalidTimestamp for what is none."""
        timestamp = self._timestamp
        stamps = [timestamp(value) for value in values]
        if stamps and (set(map(type, stamps)) != {int} or min(stamps) <= MIN_TIME or max(stamps) >= MAX_TIME):
            wrong = [type(stamp) is not int or not MIN_TIME < stamp < MAX_TIME for stamp in stamps].index(True)
            what = f"{stamps[wrong]!r} is no time-stamp: give an int, in milliseconds since the epoch"
            raise InvalidTimestamp(what, wrong)
        return stamps

    def found(self, name: str) -> Sequence[TimeMark]:
        """A split that may be new."""
        if name in self._splits:
            return ()
        self._add(name)
        return self._merge.merged()

    def before(self, name: str, now: float) -> Sequence[TimeMark]:
        """Records of a split are about to be given."""
        self._count(now)
        split = self._splits[name]
        split.seen = self._counted
        return () if split.time.counts else self._merge.advanced(name, split.time.watermark)

    def after(self, name: str, stamps: Sequence[int]) -> Sequence[TimeMark]:
        """Records of a split (at least one) have been given."""
        self._gave = True
        return self._merge.advanced(name, self._splits[name].generator.advance(stamps))

    def ended(self, name: str) -> Sequence[TimeMark]:
        """A split has no more records."""
        return self._merge.ended(name)

    # ------------------------------------------------------------------------------------------------------ idleness
    def asked(self, now: float) -> Sequence[TimeMark]:
        """Records are wanted now."""
        if self._idle_after is None:
            return ()
        self._count(now)
        marks: list[TimeMark] = []
        for name, split in self._splits.items():
            if split.time.counts and self._counted - split.seen >= self._idle_after:
                marks += self._merge.idled(name)
        return marks

    def _count(self, now: float) -> None:
        elapsed = 0.0 if self._asked is None else max(0.0, now - self._asked)
        self._counted += min(elapsed, LARGEST_GAP) if self._gave else elapsed
        self._asked, self._gave = now, False

    def idle_in(self) -> float | None:
        """Seconds until the next split may be idle, if nothing comes; None if none may."""
        if self._idle_after is None:
            return None
        left = [self._idle_after - (self._counted - split.seen) for split in self._splits.values() if split.time.counts]
        return min(left, default=None)

    # ----------------------------------------------------------------------------------------------------- alignment
    def too_far_ahead(self) -> frozenset[str]:
        """The splits that are to wait for the slowest one (of those that have given anything: others may be empty)."""
        if self._max_ahead is None:
            return frozenset()
        times = {name: split.time for name, split in self._splits.items()}
        counting = {name: time.watermark for name, time in times.items() if time.counts and time.watermark > MIN_TIME}
        limit = min(counting.values(), default=MAX_TIME) + self._max_ahead
        return frozenset(name for name, watermark in counting.items() if watermark > limit)

    # --------------------------------------------------------------------------------------------------- checkpoints
    def snapshot(self) -> dict[str, Any]:
        """By split, plain msgpack data."""
        return {
            name: [split.time.watermark, split.time.idle, split.time.ended, split.generator.snapshot()]
            for name, split in self._splits.items()
        }


# --------------------------------------------------------------------------------------------------------------- checks
def _check_timestamp(timestamp: object) -> None:
    if not callable(timestamp) or inspect.iscoroutinefunction(timestamp):
        raise InvalidDataflow(f"Watermarks: timestamp is a plain function of a record, not {timestamp!r}")


def _milliseconds(name: str, duration: object) -> int:
    if not isinstance(duration, dt.timedelta) or duration < dt.timedelta(0):
        raise InvalidDataflow(f"Watermarks: {name} is a timedelta of 0 or more, not {duration!r}")
    return duration // dt.timedelta(milliseconds=1)


def _positive(name: str, duration: object) -> float | None:
    if duration is None:
        return None
    if not isinstance(duration, dt.timedelta) or duration <= dt.timedelta(0):
        raise InvalidDataflow(f"Watermarks: {name} is a timedelta of more than 0, or None, not {duration!r}")
    return duration.total_seconds()
