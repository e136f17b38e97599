"""What the windows of the key in hand hold: an accumulator each, or all of their elements.

Invariant: a window is there if and only if something has been added to it and it has not been merged or dropped since.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Final

from streamactors.errors import StreamactorsError
from streamactors.state.aggregates import Aggregate, accumulator_type, changes_in_place, takes_evenly
from streamactors.state.backend import KeyedBackend
from streamactors.state.descriptors import MapState
from streamactors.state.serialisation.serializers import serializer_for
from streamactors.time.windows import Window

Span = tuple[int, int]
"""A window as it is stored."""

CONTENTS: Final = "window.contents"
"""The state that has an entry for each window of a key."""
ELEMENTS: Final = "window.elements"
_SPAN: Final[Any] = tuple[int, int]
_CHUNK: Final[Any] = tuple[int, int, int]
_PIECES: Final[Any] = list[tuple[int, int, int]]


class Contents(ABC):
    """Of the windows of the key in hand, for which all methods are."""

    @abstractmethod
    def add(self, span: Span, values: Sequence[Any]) -> bool:
        """Whether the window is new. `values`: at least one, in the order in which they came."""

    @abstractmethod
    def merge(self, windows: Sequence[Window], into: Window) -> None:
        """What `windows` hold, in their order, is held by `into` from now on; they are gone."""

    @abstractmethod
    def read(self, window: Window) -> Any:
        """What it gives when it fires."""

    @abstractmethod
    def drop(self, window: Window) -> None: ...

    @abstractmethod
    def __contains__(self, window: Window) -> bool: ...

    @abstractmethod
    def windows(self, start: int, end: int) -> list[Window]:
        """Those that meet [start, end], in order."""

    @abstractmethod
    def check(self, windows: Sequence[Window], value: Any) -> None:
        """Raise what merging those of `windows` that are there, and then adding `value`, would raise; nothing
        changes."""

    @abstractmethod
    def culprit(self, span: Span, values: Sequence[Any]) -> int:
        """Which of them could not be added, after `add` has raised."""


class ContentsSpec(ABC):
    """How they are made; frozen, shared by all subtasks."""

    @abstractmethod
    def states(self) -> dict[str, MapState[Any, Any]]:
        """What they are kept in, by name; new declarations each time."""

    @abstractmethod
    def bind(self, backend: KeyedBackend) -> Contents:
        """Over states of this backend."""


# ------------------------------------------------------------------------------------------------------- accumulators
@dataclass(frozen=True)
class Folding(ContentsSpec):
    """One accumulator, of type `type`, for each window. `first` makes it of values, `fold` adds more of them.
    `in_place`: the accumulator that `fold` gets may be changed by it. `even`: what `first` takes `fold` takes too,
    whatever is in the accumulator, and any two can be merged."""

    type: Any
    in_place: bool
    even: bool
    first: Callable[[Sequence[Any]], Any]
    fold: Callable[[Any, Sequence[Any]], Any]
    merge: Callable[[Any, Any], Any]
    result: Callable[[Any], Any]

    def states(self) -> dict[str, MapState[Any, Any]]:
        return {CONTENTS: MapState[Span, Any](_SPAN, self.type)}

    def bind(self, backend: KeyedBackend) -> Contents:
        return _Folded(self, backend)


def aggregating(aggregate: Aggregate[Any, Any, Any]) -> Folding:
    create, add_many = aggregate.create, aggregate.add_many
    return Folding(
        accumulator_type(aggregate),
        changes_in_place(aggregate),
        takes_evenly(aggregate),
        lambda values: add_many(create(), values),
        add_many,
        aggregate.merge,
        aggregate.result,
    )


def reducing(fn: Callable[[Any, Any], Any], element_type: Any) -> Folding:
    return Folding(
        element_type,
        True,
        False,
        lambda values: reduce(fn, values),
        lambda before, values: reduce(fn, values, before),
        fn,
        _itself,
    )


_NOTHING: Final[Any] = object()


def _meeting(spans: Iterable[Span], start: int, end: int) -> list[Window]:
    return sorted(Window(*span) for span in spans if span[1] >= start and span[0] <= end)


def _itself(value: Any) -> Any:
    return value


class _Folded(Contents):
    def __init__(self, spec: Folding, backend: KeyedBackend) -> None:
        self._spec = spec
        self._type = serializer_for(spec.type)
        self._held: MapState[Span, Any] = backend.bind(CONTENTS, spec.states()[CONTENTS])
        self._fold = self._held.folder(spec.first, spec.fold, in_place=spec.in_place)
        self.add = self._fold  # type: ignore[method-assign, assignment]  # a call less on the hot path

    def add(self, span: Span, values: Sequence[Any]) -> bool:
        return self._fold(span, values)

    def merge(self, windows: Sequence[Window], into: Window) -> None:
        found = [self._held.pop((window.start, window.end)) for window in windows]
        self._held[into.start, into.end] = reduce(self._spec.merge, found)

    def read(self, window: Window) -> Any:
        return self._spec.result(self._held[window.start, window.end])

    def drop(self, window: Window) -> None:
        del self._held[window.start, window.end]

    def __contains__(self, window: Window) -> bool:
        return (window.start, window.end) in self._held

    def windows(self, start: int, end: int) -> list[Window]:
        return _meeting(self._held, start, end)

    def check(self, windows: Sequence[Window], value: Any) -> None:
        spec, accept = self._spec, self._type.accept
        accept(spec.first([value]))
        if spec.even:
            return
        found = [self._held.get((window.start, window.end), _NOTHING) for window in windows]
        copies = [self._copy(each) for each in found if each is not _NOTHING]
        if copies:
            accept(spec.fold(reduce(spec.merge, copies), [value]))

    def _copy(self, accumulator: Any) -> Any:
        return self._type.copy(accumulator) if self._spec.in_place else accumulator

    def culprit(self, span: Span, values: Sequence[Any]) -> int:
        """Tried one by one, by themselves and then on top of what is there."""
        held = self._held.get(span, _NOTHING)
        for index, value in enumerate(values):
            try:
                first = self._spec.first([value])
                held = first if held is _NOTHING else self._spec.fold(held, [value])
            except Exception:
                return index
        return len(values) - 1


# ------------------------------------------------------------------------------------------------------- all elements
class Keeping(ContentsSpec):
    """All elements, of type `type`."""

    def __init__(self, type: Any) -> None:
        self.type = type

    def states(self) -> dict[str, MapState[Any, Any]]:
        return {
            CONTENTS: MapState[Span, Pieces](_SPAN, _PIECES),
            ELEMENTS: MapState[Any, list[Any]](_CHUNK, list[self.type]),  # type: ignore[name-defined]
        }

    def bind(self, backend: KeyedBackend) -> Contents:
        return _Kept(self, backend)


Pieces = list[tuple[int, int, int]]
"""(start, end, number of chunks): the windows that a window was merged from, as they were when they began. Two of one
key never overlap, so they tell the chunks apart."""


class _Kept(Contents):
    """Elements lie in chunks, one for each batch that brought some: adding to a window writes nothing that was there
    before, and merging moves no element."""

    def __init__(self, spec: Keeping, backend: KeyedBackend) -> None:
        self._check = serializer_for(spec.type)
        states = spec.states()
        self._pieces: MapState[Span, Pieces] = backend.bind(CONTENTS, states[CONTENTS])
        self._chunks: MapState[tuple[int, int, int], list[Any]] = backend.bind(ELEMENTS, states[ELEMENTS])

    def add(self, span: Span, values: Sequence[Any]) -> bool:
        values = self._accepted(values)
        pieces = self._pieces.get(span)
        *others, (start, end, chunks) = pieces or [(*span, 0)]
        self._chunks[start, end, chunks] = values
        self._pieces[span] = [*others, (start, end, chunks + 1)]
        return pieces is None

    def _accepted(self, values: Sequence[Any]) -> list[Any]:
        """Raises UnserialisableValue."""
        if self._check.types.issuperset(map(type, values)):
            return list(values)
        return list(map(self._check.accept, values))

    def merge(self, windows: Sequence[Window], into: Window) -> None:
        pieces = [self._pieces.pop((window.start, window.end)) for window in windows]
        self._pieces[into.start, into.end] = [piece for each in pieces for piece in each]

    def read(self, window: Window) -> list[Any]:
        chunks = self._chunks
        return [value for chunk in self._chunks_of(window) for value in chunks[chunk]]

    def drop(self, window: Window) -> None:
        for chunk in list(self._chunks_of(window)):
            del self._chunks[chunk]
        del self._pieces[window.start, window.end]

    def _chunks_of(self, window: Window) -> Iterator[tuple[int, int, int]]:
        for start, end, chunks in self._pieces[window.start, window.end]:
            for number in range(chunks):
                yield start, end, number

    def __contains__(self, window: Window) -> bool:
        return (window.start, window.end) in self._pieces

    def windows(self, start: int, end: int) -> list[Window]:
        return _meeting(self._pieces, start, end)

    def check(self, windows: Sequence[Window], value: Any) -> None:
        self._accepted([value])

    def culprit(self, span: Span, values: Sequence[Any]) -> int:
        for index, value in enumerate(values):
            try:
                self._accepted([value])
            except StreamactorsError:
                return index
        return len(values) - 1
