"""How a source tells event time: time-stamps from records, and per split a generator of watermarks from these.

Invariants. A record is given before the watermark that it has moved. A split that is idle holds nobody back; it counts
again before its next record is given. A split that is paused does not become idle: it has records. What
`SplitWatermarks.snapshot` gives, goes on from there.
"""

import datetime as dt
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

from streamactors.elements import MIN_TIME, OutputTag, TimeMark
from streamactors.errors import InvalidDataflow
from streamactors.time.progress import InputTime, WatermarkMerge
from streamactors.time.timestamps import TimestampAssigner

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

    `idle_after`: a split that gives nothing for so long is no longer waited for. `max_ahead`: a record whose time-stamp
    is further in front of the clock goes to the side output `ahead`; without that, where records go that fail.
    `align`: a split that is further in front of the slowest one is not read until that has caught up, over all sources
    of the job that name the same `align_group`.
    """

    def __init__(
        self,
        timestamp: Callable[[T_contra], int] | None,
        generator: Callable[[], WatermarkGenerator] | None,
        *,
        idle_after: dt.timedelta | None = None,
        max_ahead: dt.timedelta | None = None,
        ahead: OutputTag[Any] | None = None,
        align: dt.timedelta | None = None,
        align_group: str = "",
    ) -> None:
        """Use `bounded`, `monotonic`, `custom` or `none`."""
        self._timestamp = timestamp
        self._generator = generator
        self._idle_after = _positive("idle_after", idle_after)
        furthest = _positive("max_ahead", max_ahead)
        self._max_ahead = None if furthest is None else round(furthest * 1000)
        self._align = _positive("align", align)
        self.ahead = _tag(ahead)
        """Where records go that are too far in the future; None: nowhere of their own."""
        self.align_group = align_group
        if align_group and align is None:
            raise InvalidDataflow(f"Watermarks: align_group={align_group!r} needs align, which says how far is too far")

    @classmethod
    def bounded(
        cls,
        timestamp: Callable[[T], int],
        out_of_orderness: dt.timedelta,
        *,
        idle_after: dt.timedelta | None = None,
        max_ahead: dt.timedelta | None = None,
        ahead: OutputTag[T] | None = None,
        align: dt.timedelta | None = None,
        align_group: str = "",
    ) -> "Watermarks[T]":
        """Per split, records come at most `out_of_orderness` late: the watermark is the latest time-stamp less that
        (and less one millisecond, since more records of that very time may come)."""
        _check_timestamp(timestamp)
        disorder = _milliseconds("out_of_orderness", out_of_orderness)
        return Watermarks(
            timestamp,
            lambda: BoundedDisorder(disorder),
            idle_after=idle_after,
            max_ahead=max_ahead,
            ahead=ahead,
            align=align,
            align_group=align_group,
        )

    @classmethod
    def monotonic(
        cls,
        timestamp: Callable[[T], int],
        *,
        idle_after: dt.timedelta | None = None,
        max_ahead: dt.timedelta | None = None,
        ahead: OutputTag[T] | None = None,
        align: dt.timedelta | None = None,
        align_group: str = "",
    ) -> "Watermarks[T]":
        """Per split, time-stamps never go backwards."""
        return cls.bounded(
            timestamp,
            dt.timedelta(0),
            idle_after=idle_after,
            max_ahead=max_ahead,
            ahead=ahead,
            align=align,
            align_group=align_group,
        )

    @classmethod
    def custom(
        cls,
        timestamp: Callable[[T], int],
        generator: Callable[[], WatermarkGenerator],
        *,
        idle_after: dt.timedelta | None = None,
        max_ahead: dt.timedelta | None = None,
        ahead: OutputTag[T] | None = None,
        align: dt.timedelta | None = None,
        align_group: str = "",
    ) -> "Watermarks[T]":
        """`generator` is a class or factory without arguments, called once per split."""
        _check_timestamp(timestamp)
        if not callable(generator):
            raise InvalidDataflow(f"Watermarks: generator is a class or a factory without arguments, not {generator!r}")
        return Watermarks(
            timestamp,
            generator,
            idle_after=idle_after,
            max_ahead=max_ahead,
            ahead=ahead,
            align=align,
            align_group=align_group,
        )

    @classmethod
    def none(cls) -> "Watermarks[Any]":
        """No watermarks. Records keep the time-stamp that the source has for them."""
        return Watermarks(None, None)

    @property
    def generated(self) -> bool:
        """Whether there are any."""
        return self._generator is not None

    @property
    def aligned(self) -> bool:
        return self._align is not None

    @property
    def idle_after(self) -> float | None:
        """In seconds."""
        return self._idle_after

    def generator(self) -> WatermarkGenerator:
        assert self._generator is not None
        return self._generator()

    def assigner(self, time_ms: Callable[[], int], reached: Iterable[int] = ()) -> TimestampAssigner:
        """For one subtask; see there."""
        assert self._timestamp is not None
        return TimestampAssigner(self._timestamp, time_ms, self._max_ahead, reached)

    def of_splits(self, restored: Mapping[str, Any] | None = None) -> "SplitWatermarks":
        """For one source subtask; `restored`: what its splits had stored."""
        return SplitWatermarks(self.generator, self._idle_after, self._align, restored or {})


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
        generator: Callable[[], WatermarkGenerator],
        idle_after: float | None,
        align: float | None,
        restored: Mapping[str, Any],
    ) -> None:
        """`align`: seconds."""
        self._generator = generator
        self._idle_after = idle_after
        self._align = None if align is None else round(align * 1000)
        self._restored = restored
        self._splits: dict[str, _Split] = {}
        self._merge: WatermarkMerge[str] = WatermarkMerge({})
        self._counted = 0.0
        self._asked: float | None = None
        self._gave = False
        self._waiting: frozenset[str] = frozenset()
        """The splits that are too far ahead."""

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
            if name in self._waiting:
                split.seen = self._counted
            elif split.time.counts and self._counted - split.seen >= self._idle_after:
                marks += self._merge.idled(name)
        return marks

    def _count(self, now: float) -> None:
        elapsed = 0.0 if self._asked is None else max(0.0, now - self._asked)
        self._counted += min(elapsed, LARGEST_GAP) if self._gave else elapsed
        self._asked, self._gave = now, False

    def resumed(self) -> None:
        """Nobody has asked for a while, and that says nothing about the splits."""
        self._asked = None

    def idle_in(self) -> float | None:
        """Seconds until the next split may be idle, if nothing comes; None if none may."""
        if self._idle_after is None:
            return None
        running = [split for name, split in self._splits.items() if split.time.counts and name not in self._waiting]
        return min((self._idle_after - (self._counted - split.seen) for split in running), default=None)

    # ----------------------------------------------------------------------------------------------------- alignment
    def slowest(self) -> int | None:
        """The least watermark of the splits that count and have given anything (others may be empty); None: none."""
        return min(self._counting().values(), default=None)

    def too_far_ahead(self, slowest: int | None) -> frozenset[str]:
        """The splits that are to wait for the slowest one of their group (None: for nobody)."""
        ahead: frozenset[str] = frozenset()
        if self._align is not None and slowest is not None:
            limit = slowest + self._align
            ahead = frozenset(name for name, watermark in self._counting().items() if watermark > limit)
        for name in self._waiting - ahead:
            self._splits[name].seen = self._counted
        self._waiting = ahead
        return ahead

    def resumes_at(self) -> int | None:
        """Where the slowest has to be for the next of them to go on; None: nobody waits."""
        if self._align is None:
            return None
        waiting = (self._splits[name].time.watermark for name in self._waiting)
        first = min(waiting, default=None)
        return None if first is None else first - self._align

    def all_wait(self) -> bool:
        """Whether every split that has not ended is too far ahead."""
        return bool(self._waiting) and all(
            split.time.ended or name in self._waiting for name, split in self._splits.items()
        )

    def _counting(self) -> dict[str, int]:
        times = {name: split.time for name, split in self._splits.items()}
        return {name: time.watermark for name, time in times.items() if time.counts and time.watermark > MIN_TIME}

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


def _tag(ahead: object) -> OutputTag[Any] | None:
    if ahead is None or isinstance(ahead, OutputTag):
        return ahead
    raise InvalidDataflow(f"Watermarks: ahead is an OutputTag(name, type), not {ahead!r}")


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
