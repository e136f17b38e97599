"""How far event time has come: over several inputs, and at one step. Pure.

Invariants. What `WatermarkMerge` has given never goes backwards, and is at most the least watermark of the inputs that
count at that moment. `EventTime.at(group)` never goes backwards either, for any key group.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Generic, TypeVar

from streamactors.elements import IDLE, MAX_TIME, MIN_TIME, TimeMark, Watermark

K = TypeVar("K", bound=Hashable)

GroupTimes = tuple[tuple[int, int, int], ...]
"""(first key group, last key group, watermark)."""


class InputTime:
    """What one input has told. `ended`: no record is to come on it."""

    __slots__ = ("ended", "idle", "watermark")

    def __init__(self, watermark: int = MIN_TIME, *, idle: bool = False, ended: bool = False) -> None:
        self.watermark = watermark
        self.idle = idle
        self.ended = ended

    @property
    def counts(self) -> bool:
        return not (self.idle or self.ended)


class WatermarkMerge(Generic[K]):
    """The least watermark of the inputs that count: those that are neither idle nor ended.

    Where none counts, it is idle itself, at the greatest watermark of those that are idle: whichever of them became
    idle first, the result is the same. Methods return what is news to whoever comes after, in order.
    """

    def __init__(self, inputs: Mapping[K, InputTime]) -> None:
        self.inputs = dict(inputs)
        self.current = MIN_TIME
        self.idle = False
        if self.inputs:
            self.merged()

    def advanced(self, key: K, watermark: int) -> Sequence[TimeMark]:
        """An input not heard of before is added."""
        known = self.inputs.get(key)
        if known is None:
            known = self.inputs[key] = InputTime()
        held_back = known.counts and known.watermark <= self.current
        awake = known.counts
        known.idle = known.ended = False
        known.watermark = max(known.watermark, watermark)
        # Who was ahead of the least one, and counted, changes nothing.
        return self.merged() if held_back or not awake or self.idle else ()

    def idled(self, key: K) -> Sequence[TimeMark]:
        self.inputs.setdefault(key, InputTime()).idle = True
        return self.merged()

    def ended(self, key: K) -> Sequence[TimeMark]:
        self.inputs.setdefault(key, InputTime()).ended = True
        return self.merged()

    def merged(self) -> Sequence[TimeMark]:
        active = [known.watermark for known in self.inputs.values() if known.counts]
        waiting = [known.watermark for known in self.inputs.values() if known.idle and not known.ended]
        reached = min(active) if active else max(waiting, default=self.current)
        was_idle, self.idle = self.idle, not active
        moved = reached > self.current
        self.current = max(self.current, reached)
        marks: list[TimeMark] = []
        if moved or (was_idle and not self.idle):
            marks.append(Watermark(self.current))
        if self.idle and (marks or not was_idle):
            marks.append(IDLE)
        return marks


class EventTime:
    """Where event time stands at one step of one subtask. `groups`: the subtask's key groups, where its records have
    them; after a rescale some of them may be ahead of the subtask, having been another's."""

    __slots__ = ("_ahead", "_before_end", "_groups", "_reaching", "current", "idle")

    def __init__(
        self, current: int = MIN_TIME, *, groups: range = range(0), ahead: GroupTimes = (), idle: bool = False
    ) -> None:
        self.current = current
        self.idle = idle
        self._before_end: tuple[int, GroupTimes] | None = None
        self._groups = groups
        self._reaching: Watermark | None = None
        """A watermark in hand: what is due by it has not all been done."""
        self._ahead: dict[int, int] = {}
        for first, last, time in ahead:
            self._raise(first, last, time)
        self._settle(self.current)

    def at(self, group: int) -> int:
        """For records of one key group (any number that is none: for those without)."""
        ahead = self._ahead
        time = ahead.get(group, self.current) if ahead else self.current
        return time if self._reaching is None else max(time, self._reached_by(self._reaching, group))

    def latest(self, groups: Iterable[int]) -> int:
        """The largest `at` of some key groups, at least one."""
        if not self._ahead and self._reaching is None:
            return self.current
        return max(map(self.at, set(groups)))

    def _reached_by(self, mark: Watermark, group: int) -> int:
        in_scope = mark.groups is None or mark.groups[0] <= group <= mark.groups[1]
        return mark.time_ms if in_scope else self.current

    @property
    def reached(self) -> int:
        """As far as it is for every key group."""
        mark = self._reaching
        return self.current if mark is None or mark.groups is not None else max(self.current, mark.time_ms)

    def reach(self, mark: Watermark) -> None:
        """It has come, and until `on` is told of it, only `at` and `reached` show it: not what is stored."""
        self._reaching = mark

    def begin_key(self) -> None:
        """Of a sorted input: its next key begins before all time, however far the one before has come."""
        self._reaching = None

    def on(self, mark: TimeMark) -> TimeMark | None:
        """What is to be passed on."""
        self._reaching = None
        if not isinstance(mark, Watermark):
            was_idle, self.idle = self.idle, True
            return None if was_idle else IDLE
        was_idle, self.idle = self.idle, False
        before = self.current
        if mark.time_ms == MAX_TIME and self._before_end is None:
            self._before_end = self.current, self.ahead
        if mark.groups is None:
            self._settle(mark.time_ms)
        else:
            self._raise(*mark.groups, mark.time_ms)
            self._settle(self.current)
        return Watermark(self.current) if self.current > before or was_idle else None

    def restated(self) -> Sequence[TimeMark]:
        """What was passed on so far, in short."""
        told: Sequence[TimeMark] = [Watermark(self.current)] if self.current > MIN_TIME else []
        return [*told, IDLE] if self.idle else told

    def _raise(self, first: int, last: int, time: int) -> None:
        for group in range(max(first, self._groups.start), min(last + 1, self._groups.stop)):
            if time > self.at(group):
                self._ahead[group] = time

    def _settle(self, time: int) -> None:
        """The subtask has come to `time`, or as far as the last of its key groups."""
        reached = max(self.current, time)
        if self._ahead:
            if len(self._ahead) == len(self._groups):
                reached = max(reached, min(self._ahead.values()))
            self._ahead = {group: ahead for group, ahead in self._ahead.items() if ahead > reached}
        self.current = reached

    # --------------------------------------------------------------------------------------------------- checkpoints
    @property
    def stored(self) -> int:
        """As it goes into a checkpoint: not the one after the last record."""
        return self.current if self._before_end is None else self._before_end[0]

    @property
    def ahead(self) -> GroupTimes:
        """The key groups that are ahead of `stored`."""
        return tuple(_joined(sorted(self._ahead.items()))) if self._before_end is None else self._before_end[1]


def _joined(times: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Runs of neighbouring groups with one time."""
    for (_, time), run in groupby(enumerate(times), lambda at: (at[1][0] - at[0], at[1][1])):
        groups = [group for _, (group, _) in run]
        yield groups[0], groups[-1], time
