"""The inputs that an async link holds: taken from its input, and not yet finished. Pure.

Invariants. A record is held from the moment in which it is taken until its result is handed on, and a mark (event
time, the end of keys) from the moment in which it comes until everything ahead of it has been handed on. `elements`
gives all of that in the order of the input. No result passes a mark, in either direction; an `OrderedQueue` keeps the
order of the records too.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, overload

from streamactors.elements import Batch, EndOfKeys, Idle, TimeMark, Watermark
from streamactors.state.serialisation.serializers import AnySerializer

Mark = TimeMark | EndOfKeys

_IMMUTABLE: Final = frozenset({str, bytes, int, float, bool, type(None)})
"""Values of exactly these types are what they were, whoever has had them."""
_SIZED: Final = frozenset({str, bytes})


TAKEN_TOGETHER: Final = 16
"""Records of one `Intake`, which is kept whole until the last of them is handed on."""
STORED_TOGETHER: Final = 256
STORED_BYTES: Final = 1 << 18
"""Records of one frame, and bytes (of whole intakes): it is decoded and encoded in one go."""


class Intake:
    """A batch that was taken, with the `route` by which it came (the runtime's; opaque here).

    Its records are handed to user code, which may change them, while a checkpoint may still have to store them: so they
    are encoded first, where they are not immutable and there are checkpoints (`keep`)."""

    __slots__ = ("_keep", "_kept", "batch", "lot", "record_bytes", "route")

    def __init__(self, batch: Batch, route: object, keep: AnySerializer | None) -> None:
        """Raises UnserialisableValue for records that could not be stored."""
        self.batch = batch
        self.route = route
        self.lot = _lot_of(batch)
        """Results of different lots can't go into one batch."""
        self.record_bytes = 0
        """Of a record, about; 0 where nothing is stored."""
        self._keep = keep
        self._kept: bytes | None = None
        if keep is not None and not _IMMUTABLE.issuperset(map(type, batch.values)):
            self._kept = keep.encode_many(list(batch.values))
            self.record_bytes = len(self._kept) // len(batch)
        elif keep is not None:
            self.record_bytes = sum(len(value) for value in batch.values if type(value) in _SIZED) // len(batch)

    @property
    def fitting(self) -> int:
        """How many records like these one intake should have."""
        return max(1, min(TAKEN_TOGETHER, STORED_BYTES // (self.record_bytes or 1)))

    def originals(self, indices: Iterable[int]) -> list[Any]:
        """Some of its values, as they came."""
        values = self.batch.values
        if self._kept is not None and self._keep is not None:
            values = self._keep.decode_many(self._kept)
        return [values[index] for index in indices]


class Held:
    """One record that is held."""

    __slots__ = ("done", "error", "index", "intake", "owner", "result", "segment")

    def __init__(self, intake: Intake, index: int) -> None:
        self.intake = intake
        self.index = index
        self.done = False
        self.result: Any = None
        self.error: Exception | None = None
        self.owner: Any = None
        """Whatever the link wants to know of it, such as the call that it is part of."""
        self.segment: _Segment | None = None

    @property
    def value(self) -> Any:
        return self.intake.batch.values[self.index]

    @property
    def timestamp(self) -> int | None:
        stamps = self.intake.batch.timestamps
        return None if stamps is None else stamps[self.index]

    @property
    def key(self) -> Any:
        keys = self.intake.batch.keys
        return None if keys is None else keys[self.index]

    @property
    def group(self) -> int | None:
        groups = self.intake.batch.groups
        return None if groups is None else groups[self.index]

    @property
    def id(self) -> str | None:
        ids = self.intake.batch.ids
        return None if ids is None else ids[self.index]


ALL: Final = 1 << 62


class CallQueue(ABC):
    """What is held, in order. `len`: records."""

    records = 0

    def __len__(self) -> int:
        return self.records

    @property
    @abstractmethod
    def empty(self) -> bool:
        """Whether nothing is held, marks included."""

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether `take` would give something."""

    @abstractmethod
    def add(self, held: Held) -> None: ...

    @abstractmethod
    def mark(self, mark: Mark, route: object) -> None: ...

    @abstractmethod
    def finished(self, held: Held) -> None:
        """Its call is over, and has left its result or its error in it."""

    @abstractmethod
    def take(self, most: int = ALL) -> "list[Held] | Mark | None":
        """What may go on next: finished records, up to `most`, or the mark behind them; they are held no longer."""

    @abstractmethod
    def next_mark(self) -> Mark | None:
        """The mark that `take` would give: nothing is ahead of it any more."""

    @abstractmethod
    def elements(self) -> "Iterator[Held | tuple[Mark, object]]":
        """All that is held, in the order of the input; marks with their routes."""


class _Segment:
    """The records between two marks."""

    __slots__ = ("done", "mark", "records", "route")

    def __init__(self) -> None:
        self.records: dict[Held, None] = {}
        self.done: list[Held] = []
        self.mark: Mark | None = None
        """The one behind them; None while there is none."""
        self.route: object = None

    @property
    def ready(self) -> bool:
        return bool(self.done) or (not self.records and self.mark is not None)


class UnorderedQueue(CallQueue):
    """Records go on in the order in which they are finished; none passes a mark."""

    def __init__(self) -> None:
        self._segments = deque([_Segment()])

    @property
    def empty(self) -> bool:
        return not self.records and len(self._segments) == 1

    @property
    def ready(self) -> bool:
        return self._segments[0].ready

    def add(self, held: Held) -> None:
        held.segment = segment = self._segments[-1]
        segment.records[held] = None
        self.records += 1

    def add_first(self, held: Held) -> None:
        """Ahead of the first mark that is held, such as what that mark has set off."""
        held.segment = segment = self._segments[0]
        segment.records[held] = None
        self.records += 1

    def add_beside(self, held: Held, other: Held) -> None:
        """Ahead of the mark that `other` is ahead of, and behind those that it is behind."""
        held.segment = segment = other.segment
        assert segment is not None
        segment.records[held] = None
        self.records += 1

    def is_first(self, held: Held) -> bool:
        """Whether no mark is ahead of it."""
        return held.segment is self._segments[0]

    def mark(self, mark: Mark, route: object) -> None:
        segments = self._segments
        while len(segments) > 1 and not segments[-1].records and _replaces(mark, segments[-2].mark):
            segments.pop()
        last = segments[-1]
        last.mark, last.route = mark, route
        self._segments.append(_Segment())

    def finished(self, held: Held) -> None:
        held.done = True
        assert held.segment is not None
        held.segment.done.append(held)

    def next_done(self, most: int) -> list[Held]:
        """The records that `take` would give."""
        return self._segments[0].done[:most]

    def take(self, most: int = ALL) -> list[Held] | Mark | None:
        first = self._segments[0]
        if first.done:
            done, first.done = first.done[:most], first.done[most:]
            for held in done:
                del first.records[held]
            self.records -= len(done)
            return done
        if first.records or first.mark is None:
            return None
        self._segments.popleft()
        return first.mark

    def next_mark(self) -> Mark | None:
        first = self._segments[0]
        return None if first.records else first.mark

    def elements(self) -> Iterator[Held | tuple[Mark, object]]:
        for segment in self._segments:
            yield from segment.records
            if segment.mark is not None:
                yield segment.mark, segment.route


class OrderedQueue(CallQueue):
    """Records go on in the order in which they came."""

    def __init__(self) -> None:
        self._line: deque[Held | tuple[Mark, object]] = deque()

    @property
    def empty(self) -> bool:
        return not self._line

    @property
    def ready(self) -> bool:
        if not self._line:
            return False
        first = self._line[0]
        return first.done if isinstance(first, Held) else True

    def add(self, held: Held) -> None:
        self._line.append(held)
        self.records += 1

    def mark(self, mark: Mark, route: object) -> None:
        while self._line and isinstance(last := self._line[-1], tuple) and _replaces(mark, last[0]):
            self._line.pop()
        self._line.append((mark, route))

    def finished(self, held: Held) -> None:
        held.done = True

    def take(self, most: int = ALL) -> list[Held] | Mark | None:
        line = self._line
        if (mark := self.next_mark()) is not None:
            line.popleft()
            return mark
        done: list[Held] = []
        while line and len(done) < most and isinstance(first := line[0], Held) and first.done:
            done.append(first)
            line.popleft()
        self.records -= len(done)
        return done or None

    def next_mark(self) -> Mark | None:
        first = self._line[0] if self._line else None
        return first[0] if isinstance(first, tuple) else None

    def elements(self) -> Iterator[Held | tuple[Mark, object]]:
        return iter(self._line)


def _replaces(mark: Mark, before: Mark | None) -> bool:
    """A watermark right behind one for the same key groups says all that the first said: they never pile up. One right
    behind idleness says that this is over: told now, others would go on without who has been calling meanwhile."""
    if isinstance(mark, Watermark) and isinstance(before, Idle):
        return mark.groups is None and mark.merged == before.merged
    if not isinstance(mark, Watermark) or not isinstance(before, Watermark):
        return False
    return (mark.groups, mark.merged) == (before.groups, before.merged) and mark.time_ms >= before.time_ms


def originals(elements: Iterable[Held | tuple[Mark, object]]) -> Iterator[tuple[object, Batch | Mark]]:
    """With their routes, as they came; in batches, without keys."""
    for _, run in groupby(elements, _route_and_lot):
        first, *others = run
        if isinstance(first, Held):
            yield from _in_batches([first, *(held for held in others if isinstance(held, Held))])
        else:
            for mark, route in (first, *(other for other in others if not isinstance(other, Held))):
                yield route, mark


def _route_and_lot(element: Held | tuple[Mark, object]) -> object:
    return (element.intake.route, element.intake.lot) if isinstance(element, Held) else None


def _in_batches(records: list[Held]) -> Iterator[tuple[object, Batch]]:
    """Of one route and one lot."""
    several: list[Held] = []
    size = 0
    for held in records:
        fits = size < STORED_BYTES or held.intake is several[-1].intake
        if not fits or len(several) == STORED_TOGETHER:
            yield several[0].intake.route, gather(several, _Originals(several))
            several, size = [], 0
        several.append(held)
        size += held.intake.record_bytes
    yield several[0].intake.route, gather(several, _Originals(several))


class _Originals(Sequence[Any]):
    """The values of some records as they came, decoded only when somebody wants them: a snapshot is taken at one
    moment, and written in many."""

    def __init__(self, records: Sequence[Held]) -> None:
        self._records = [(held.intake, held.index) for held in records]

    @cached_property
    def _values(self) -> list[Any]:
        values: list[Any] = []
        for intake, several in groupby(self._records, itemgetter(0)):
            values += intake.originals([index for _, index in several])
        return values

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self._values[index]


def gather(done: list[Held], values: Sequence[Any]) -> Batch:
    """One value for each of some records of one lot."""
    first = done[0].intake.batch
    columns = [
        None if getattr(first, name) is None else [getattr(held.intake.batch, name)[held.index] for held in done]
        for name in ("timestamps", "groups", "origins", "ids")
    ]
    stamps, groups, origins, ids = columns
    return Batch(values, stamps, None, groups, origins, first.split, first.home, ids)


def _lot_of(batch: Batch) -> tuple[Any, ...]:
    columns = batch.timestamps, batch.groups, batch.origins, batch.ids
    return (batch.split, batch.home, *(column is None for column in columns))
