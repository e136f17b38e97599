"""Time to live: values are kept with the time of their last write, and are seen only while they are young enough.

Invariant: a value is seen exactly while `now - time < after`, where `time` is stored beside it in milliseconds of
processing time, and `after` is what the state is declared with now. So time goes on over restores, and another `after`
holds for what was stored before. Reading deletes nothing: what has expired goes when the backend sweeps, or is
overwritten.

An entry is `(value, time)`; in a list each item is, and in a map each value.
"""

import copy
import struct
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Final, Protocol, TypeVar, cast, overload

import msgspec

from streamactors.state.backend import Cursor
from streamactors.state.descriptors import ListState, MapState, Ttl, ValueState
from streamactors.state.map_view import MapView
from streamactors.state.serialisation.serializer import Serializer

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")

Stamped = tuple[Any, int]
"""A value, and when it was written."""
Check = Callable[[Any], Any]
"""The value as it is to be stored. Raises UnserialisableValue."""

Turn = Callable[[], Awaitable[None]]
"""Lets others work if it is their turn: to be awaited between slices of a sweep."""

UNSET: Final[Any] = object()
"""A key holds nothing."""
_TIME: Final = struct.Struct(">q")
_MILLISECOND: Final = 0.001


class Lifetime:
    """A `Ttl` and the clock that it is measured by. `after` in milliseconds."""

    def __init__(self, ttl: Ttl, time_ms: Callable[[], int]) -> None:
        self.after = round(ttl.after.total_seconds() / _MILLISECOND)
        self.on_read = ttl.refresh_on == "read-write"
        self.now = time_ms

    def limit(self) -> int:
        """What was written then, or before, has expired."""
        return self.now() - self.after

    def still(self, time_ms: Callable[[], int]) -> "Lifetime":
        """The same, where reading refreshes nothing, and judges by another time."""
        made = copy.copy(self)
        made.on_read, made.now = False, time_ms
        return made

    def schema(self) -> dict[str, Any]:
        return {"after": self.after, "refresh_on": "read-write" if self.on_read else "write"}


class StampedSerializer(Serializer[Stamped]):
    """The time as 8 bytes, then the value; of many, all times first."""

    types = frozenset({tuple})

    def __init__(self, values: Serializer[Any]) -> None:
        self._values = values
        self.immutable = values.immutable
        self.flat = values.flat
        self.schema = values.schema

    def encode(self, value: Stamped) -> bytes:
        return _TIME.pack(value[1]) + self._values.encode(value[0])

    def decode(self, data: bytes) -> Stamped:
        return self._values.decode(data[_TIME.size :]), time_in(data)

    def encode_many(self, values: list[Stamped]) -> bytes:
        times = [time for _, time in values]
        return msgspec.msgpack.encode((times, self._values.encode_many([value for value, _ in values])))

    def decode_many(self, data: bytes) -> list[Stamped]:
        times, values = msgspec.msgpack.decode(data, type=tuple[list[int], bytes])
        return list(zip(self._values.decode_many(values), times, strict=True))

    def copy(self, value: Stamped) -> Stamped:
        return value if self.immutable else (self._values.copy(value[0]), value[1])

    def check_compatible(self, old: dict[str, Any]) -> list[str]:
        return self._values.check_compatible(old)

    def reader(self, old: dict[str, Any], *, nullable: bool = False) -> "StampedSerializer":
        return StampedSerializer(self._values.reader(old, nullable=nullable))


class HasLifetime(Protocol):
    @property
    def lifetime(self) -> Lifetime | None: ...


def lifetimes_of(codecs: Iterable[tuple[str, HasLifetime]]) -> dict[str, float]:
    """In seconds, of the states that have a ttl."""
    found = {name: codec.lifetime for name, codec in codecs}
    return {name: lifetime.after * _MILLISECOND for name, lifetime in found.items() if lifetime is not None}


def time_in(data: bytes) -> int:
    """Of what `encode` gave."""
    return int(_TIME.unpack_from(data)[0])


def times_in(data: bytes) -> list[int]:
    """Of what `encode_many` gave."""
    return msgspec.msgpack.decode(data, type=tuple[list[int], msgspec.Raw])[0]


# ---------------------------------------------------------------------------------------------------------- one value
class ValueCell(Protocol):
    """One value per key, as a backend keeps it: `get` gives UNSET where there is none."""

    get: Callable[[], Any]
    set: Callable[[Any], None]

    def attach(self, cursor: Cursor) -> None: ...
    def clear(self) -> None: ...

    def folder(self, first: Callable[[Any], Any], fold: Callable[[Any, Any], Any]) -> Callable[[Any], None]:
        """What replaces the value by `fold(value, more)`, or by `first(more)` where there is none. To be made anew
        after `attach`."""


class TtlCell:
    """A cell of values over one of stamped values."""

    def __init__(self, stamped: ValueCell, lifetime: Lifetime, check: Check) -> None:
        self._stamped = stamped
        self._lifetime = lifetime
        self._check = check
        self._make()

    def attach(self, cursor: Cursor) -> None:
        self._stamped.attach(cursor)
        self._make()

    def _make(self) -> None:
        self.get = self.getter(lambda: UNSET)
        self.set = self._setter()

    def clear(self) -> None:
        self._stamped.clear()

    @property
    def refreshes(self) -> bool:
        """Whether reading is as good as writing."""
        return self._lifetime.on_read

    def still(self, time_ms: Callable[[], int]) -> "TtlCell":
        """Another one over what is stored, reading which refreshes nothing, and judges by another time."""
        return TtlCell(self._stamped, self._lifetime.still(time_ms), self._check)

    def getter(self, empty: Callable[[], Any]) -> Callable[[], Any]:
        """`empty` gives what stands for no value."""
        read, write, lifetime = self._stamped.get, self._stamped.set, self._lifetime
        now, after, on_read = lifetime.now, lifetime.after, lifetime.on_read

        def get() -> Any:
            entry = read()
            if entry is UNSET:
                return empty()
            value, time = entry
            at = now()
            if at - time >= after:
                return empty()
            if on_read and at > time:
                write((value, at))
            return value

        return get

    def _setter(self) -> Callable[[Any], None]:
        write, now, check = self._stamped.set, self._lifetime.now, self._check

        def set_(value: Any) -> None:
            write((check(value), now()))

        return set_

    def folder(self, first: Callable[[Any], Any], fold: Callable[[Any, Any], Any]) -> Callable[[Any], None]:
        now, after, check = self._lifetime.now, self._lifetime.after, self._check

        def first_stamped(value: Any) -> Stamped:
            return check(first(value)), now()

        def fold_stamped(entry: Stamped, value: Any) -> Stamped:
            before, time = entry
            at = now()
            return check(fold(before, value) if at - time < after else first(value)), at

        return self._stamped.folder(first_stamped, fold_stamped)


class TtlValue(ValueState[T]):
    """`empty` gives the default."""

    def __init__(self, cell: TtlCell, empty: Callable[[], T]) -> None:
        self._cell = cell
        self._empty = empty
        self._lay()

    def attach(self, cursor: Cursor) -> None:
        self._cell.attach(cursor)
        self._lay()

    def _lay(self) -> None:
        vars(self)["get"] = self._cell.getter(self._empty)
        vars(self)["set"] = self._cell.set

    @property
    def refreshes(self) -> bool:
        return self._cell.refreshes

    def still(self, time_ms: Callable[[], int]) -> "TtlValue[T]":
        """See `TtlCell`."""
        return TtlValue(self._cell.still(time_ms), self._empty)

    def clear(self) -> None:
        self._cell.clear()


# --------------------------------------------------------------------------------------------------------------- lists
class TtlList(ListState[T]):
    def __init__(self, stamped: Any, lifetime: Lifetime, check: Check) -> None:
        self._stamped: ListState[Stamped] = stamped
        self._attach: Callable[[Cursor], None] = stamped.attach
        self._lifetime = lifetime
        self._check = check

    @property
    def refreshes(self) -> bool:
        return self._lifetime.on_read

    def still(self, time_ms: Callable[[], int]) -> "TtlList[T]":
        """See `TtlCell`."""
        return TtlList(self._stamped, self._lifetime.still(time_ms), self._check)

    def attach(self, cursor: Cursor) -> None:
        self._attach(cursor)

    def append(self, value: T) -> None:
        self._stamped.append((self._check(value), self._lifetime.now()))

    def extend(self, values: Iterable[T]) -> None:
        items = list(map(self._check, values))
        at = self._lifetime.now()
        self._stamped.extend([(item, at) for item in items])

    def __iter__(self) -> Iterator[T]:
        if self._lifetime.on_read:
            return iter(self._refreshed())
        limit = self._lifetime.limit()
        return (item for item, time in self._stamped if time > limit)

    def _refreshed(self) -> list[T]:
        at = self._lifetime.now()
        entries = list(self._stamped)
        items = [item for item, time in entries if at - time < self._lifetime.after]
        if any(time < at for _, time in entries):
            self._stamped.clear()
            self._stamped.extend([(item, at) for item in items])
        return items

    def __len__(self) -> int:
        limit = self._lifetime.limit()
        return sum(time > limit for _, time in self._stamped)

    def clear(self) -> None:
        self._stamped.clear()


# ---------------------------------------------------------------------------------------------------------------- maps
class TtlMap(MapState[K, V]):  # noqa: PLW1641 (compared by what it holds, so not hashable)
    """Reading deletes nothing, so that it may go on while somebody iterates."""

    def __init__(self, stamped: Any, lifetime: Lifetime, check: Check, cursor: Cursor) -> None:
        self._stamped: MapState[K, Stamped] = stamped
        self._attach: Callable[[Cursor], None] = stamped.attach
        self._lifetime = lifetime
        self._check = check
        self._cursor = cursor
        self._given: tuple[int, Any, Any] | None = None
        """The key group and key in hand, and the key that an iteration over them has given out last."""

    @property
    def refreshes(self) -> bool:
        return self._lifetime.on_read

    @property
    def stamped(self) -> MapState[K, Stamped]:
        """What is stored."""
        return self._stamped

    def still(self, time_ms: Callable[[], int]) -> "TtlMap[K, V]":
        """See `TtlCell`."""
        return TtlMap(self._stamped, self._lifetime.still(time_ms), self._check, self._cursor)

    def attach(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._attach(cursor)

    def _young(self, key: Any) -> Stamped | None:
        entry = self._stamped.get(key)
        if entry is None or (entry[1] <= self._lifetime.limit() and not self._is_given(key)):
            return None
        return entry

    def _is_given(self, key: Any) -> bool:
        """Whoever has just been given a key may look it up, though it has expired since."""
        return self._given is not None and self._given == (self._cursor.group, self._cursor.key, key)

    def _read(self, key: K) -> Stamped | None:
        entry = self._young(key)
        if entry is not None and self._lifetime.on_read:
            self._refresh(key, entry)
        return entry

    def _refresh(self, key: K, entry: Stamped) -> None:
        at = self._lifetime.now()
        if at > entry[1]:
            self._stamped[key] = entry[0], at

    def __getitem__(self, key: K) -> V:
        entry = self._read(key)
        if entry is None:
            raise KeyError(key)
        return cast(V, entry[0])

    @overload
    def get(self, key: K, /) -> V | None: ...
    @overload
    def get(self, key: K, /, default: V) -> V: ...
    @overload
    def get(self, key: K, /, default: D) -> V | D: ...
    def get(self, key: K, /, default: Any = None) -> Any:
        entry = self._read(key)
        return default if entry is None else entry[0]

    def __setitem__(self, key: K, value: V) -> None:
        self._stamped[key] = self._check(value), self._lifetime.now()

    def __delitem__(self, key: K) -> None:
        if self._take(key) is UNSET:
            raise KeyError(key)

    def _take(self, key: K) -> Any:
        """The value, no longer there; UNSET if it has expired, or there was none."""
        entry = self._stamped.get(key)
        if entry is None:
            return UNSET
        del self._stamped[key]
        return UNSET if entry[1] <= self._lifetime.limit() else entry[0]

    # What `MutableMapping` makes of two steps would fail for an entry that expires between them.
    @overload
    def pop(self, key: K, /) -> V: ...
    @overload
    def pop(self, key: K, /, default: V) -> V: ...
    @overload
    def pop(self, key: K, /, default: D) -> V | D: ...
    def pop(self, key: K, /, default: Any = UNSET) -> Any:
        value = self._take(key)
        if value is not UNSET:
            return value
        if default is UNSET:
            raise KeyError(key)
        return default

    def popitem(self) -> tuple[K, V]:
        for key, (value, _) in self._entries():
            del self._stamped[key]
            return key, value
        raise KeyError("the map is empty")

    def __contains__(self, key: object) -> bool:
        return self._young(key) is not None

    def __iter__(self) -> Iterator[K]:
        return self._giving(self._entries())

    def _giving(self, entries: Iterable[tuple[K, Stamped]]) -> Iterator[K]:
        cursor = self._cursor
        for key, _ in entries:
            before, self._given = self._given, (cursor.group, cursor.key, key)
            try:
                yield key
            finally:
                self._given = before

    def __len__(self) -> int:
        return sum(1 for _ in self._entries())

    def range(self, start: K | None = None, stop: K | None = None) -> Iterator[tuple[K, V]]:
        return self._reading(self._stamped.range(start, stop))

    def clear(self) -> None:
        self._stamped.clear()

    def __eq__(self, other: object) -> bool:
        return dict(self.items()) == (dict(other.items()) if isinstance(other, TtlMap) else other)

    # ------------------------------------------------------------------------------------------------------ iterating
    def _current(self) -> dict[K, V]:
        """What reads as a dict."""
        return cast(dict[K, V], MapView(self))

    def pairs(self) -> Iterator[tuple[K, V]]:
        """Those that have not expired."""
        return self._reading(self._stamped._current().items())

    def _entries(self) -> Iterator[tuple[K, Stamped]]:
        limit = self._lifetime.limit()
        return ((key, entry) for key, entry in self._stamped._current().items() if entry[1] > limit)

    def _reading(self, entries: Iterable[tuple[K, Stamped]]) -> Iterator[tuple[K, V]]:
        limit, cursor = self._lifetime.limit(), self._cursor
        key_in_hand, group, on_read = cursor.key, cursor.group, self._lifetime.on_read
        for key, entry in entries:
            if entry[1] > limit:
                # An iterator that outlives its record must not write into the map of another key.
                if on_read and cursor.key is key_in_hand and cursor.group == group:
                    self._refresh(key, entry)
                yield key, entry[0]
