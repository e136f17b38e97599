"""`BroadcastState`: a map of which every subtask has its own copy, written by what all of them are sent.

**Snapshots** cost nothing that depends on the number of entries when they begin. Beside the map there is a log of its
keys in the order in which they came, which only grows: a snapshot holds the log and how long it was. Whatever an entry
held is *kept on touch*: as long as a snapshot has not come to its place in the log, it is kept for the snapshot before
it is written, deleted, or (where it can be changed in place) handed out. `clear` puts a new map and log in the place of
the old ones.
"""

from collections.abc import ItemsView, Iterator, ValuesView
from typing import Any, ClassVar, Final, TypeVar, overload

import msgspec

from streamactors.errors import InvalidDataflow, StateAccessError, StreamactorsError, UnserialisableValue
from streamactors.state.descriptors import MapState, Ttl
from streamactors.state.layouts import decode_layout
from streamactors.state.serialisation.schemas import Schema
from streamactors.state.serialisation.serializers import serializer_for
from streamactors.state.unkeyed import ListBlock, UnkeyedCapture, UnkeyedStore

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")

_VERSION: Final = 1
_SPARE: Final = 1024
"""Places of the log that entries which are gone may take, however few are left."""


class BroadcastState(MapState[K, V]):
    """A map without a key, for a `KeyedBroadcastOperator`: each subtask has a copy.

    Written in `process_broadcast` only, which every subtask calls with the same records: write it the same way on each,
    by nothing but the record and the map itself. Readable from `open` on. Kept on the heap whatever the state backend.
    """

    keyed: ClassVar[bool] = False

    def _set_ttl(self, ttl: Ttl | None) -> None:
        if ttl is not None:
            raise InvalidDataflow(f"{type(self).__name__}(ttl=…): only the state of a key has a time to live")


class WriteAccess:
    """Whether broadcast state may be written: while what every subtask is sent is processed."""

    __slots__ = ("allowed",)

    def __init__(self) -> None:
        self.allowed = False


class _Layout(msgspec.Struct, array_like=True):
    version: int
    keys: bytes
    values: bytes


class BroadcastStore(UnkeyedStore):
    kind = "broadcast"

    def __init__(self, uid: str, name: str, declaration: BroadcastState[Any, Any], writes: WriteAccess) -> None:
        super().__init__(uid, name)
        self.keys = serializer_for(declaration.key_type)
        self.values = serializer_for(declaration.value_type)
        self._stored = self.keys, self.values
        self.captures: list[_Capture] = []
        self._writes = writes
        self._renew()

    def _renew(self) -> None:
        self._entries: dict[Any, Any] = {}
        self._log: list[Any] = []
        self._places: dict[Any, int] = {}
        """By key, where it stands in the log. Elsewhere in the log it was deleted."""

    @property
    def count(self) -> int:
        return len(self._entries)

    # ---------------------------------------------------------------------------------------------------------- using
    @property
    def entries(self) -> dict[Any, Any]:
        """To look at keys, and at values that nobody can change."""
        if self._closed:
            self.check_open()
        return self._entries

    @property
    def touchy(self) -> bool:
        """Whether a value has to be `handed_out`."""
        return bool(self.captures) and not self.values.immutable

    def handed_out(self, key: Any) -> Any:
        """The value, which may be changed in place from now on."""
        value = self._entries[key]
        self._touch(self._places[key])
        return value

    def put(self, key: Any, value: Any) -> None:
        self.check_writable()
        if type(key) not in self.keys.types:
            key = self.accept(self.keys, key)
        if type(value) not in self.values.types:
            value = self.accept(self.values, value)
        self._insert(key, value if self.values.immutable else self._own(key, value))

    def _own(self, key: Any, value: Any) -> Any:
        """What is stored is often the record itself, and that is the same object in every subtask of the process."""
        try:
            return self.values.copy(value)
        except StreamactorsError as error:
            raise UnserialisableValue(f"{self.where}, key {key!r}: {error}") from error

    def delete(self, key: Any) -> None:
        self.check_writable()
        self._touch(self._places[key])
        del self._entries[key], self._places[key]
        if len(self._log) > 2 * len(self._places) + _SPARE and not self.captures:
            self._log = list(self._entries)
            self._places = {key: place for place, key in enumerate(self._log)}

    def clear(self) -> None:
        self.check_writable()
        self._renew()

    def check_writable(self) -> None:
        self.check_open()
        if not self._writes.allowed:
            raise StateAccessError(
                f"{self.where}: broadcast state is written in process_broadcast only, since it has to come out the "
                "same on every subtask; elsewhere it can be read"
            )

    def _insert(self, key: Any, value: Any) -> None:
        place = self._places.get(key)
        if place is None:
            self._places[key] = len(self._log)
            self._log.append(key)
        elif self.captures:
            self._touch(place)
        self._entries[key] = value

    def _touch(self, place: int) -> None:
        for capture in self.captures:
            capture.touch(self._log, place)

    def close(self) -> None:
        super().close()
        self._renew()

    # ------------------------------------------------------------------------------------------------ to bytes and back
    def begin(self) -> UnkeyedCapture | None:
        if not self._entries:
            return None
        capture = _Capture(self, self._entries, self._log, self._places)
        self.captures.append(capture)
        return capture

    def schema(self) -> Schema:
        return {"kind": self.kind, "key": self.keys.schema, "type": self.values.schema}

    def _problems(self, old: Schema) -> list[str]:
        keys = [f"key {problem}" for problem in self.keys.check_compatible_keys(old["key"])]
        return keys + self.values.check_compatible(old["type"])

    def read_as(self, old: Schema) -> None:
        self._stored = self.keys.reader(old["key"]), self.values.reader(old["type"])

    def encode(self, keys: list[Any], values: list[Any]) -> bytes:
        try:
            layout = _Layout(_VERSION, self.keys.encode_many(keys), self.values.encode_many(values))
        except UnserialisableValue as error:
            self._name_culprit(keys, values)
            raise UnserialisableValue(f"{self.where}: {error}") from error
        return msgspec.msgpack.encode(layout)

    def _name_culprit(self, keys: list[Any], values: list[Any]) -> None:
        for key, value in zip(keys, values, strict=True):
            try:
                self.keys.encode(key)
                self.values.encode(value)
            except UnserialisableValue as error:
                raise UnserialisableValue(f"{self.where}, key {key!r}: {error}") from error

    def restore(self, block: ListBlock, start: int, stop: int) -> None:
        with self.reading():
            layout = decode_layout(block.data, _Layout, _VERSION)
            stored_keys, stored_values = self._stored
            keys, values = stored_keys.decode_many(layout.keys), stored_values.decode_many(layout.values)
            items = list(zip(keys, values, strict=True))
        self.check_count(len(items), block)
        for key, value in items[start:stop]:
            self._insert(key, value)


# ------------------------------------------------------------------------------------------------------------ snapshots
class _Capture(UnkeyedCapture):
    """The entries of the first `_length` places of `_log`: those in `_kept` (by place) as they were, the others as they
    are, where the key still stands in this place."""

    def __init__(self, store: BroadcastStore, entries: dict[Any, Any], log: list[Any], places: dict[Any, int]) -> None:
        self._store = store
        self._entries = entries
        self._log = log
        self._places = places
        self._length = len(log)
        self._next = 0
        self._kept: dict[int, Any] = {}
        self._error: StreamactorsError | None = None

    def touch(self, log: list[Any], place: int) -> None:
        """An error is the snapshot's, and must not come up in the user's call that touches the entry."""
        if log is self._log and self._next <= place < self._length and place not in self._kept:
            key = log[place]
            try:
                self._kept[place] = self._store.values.copy(self._entries[key])
            except StreamactorsError as error:
                self._error = type(error)(f"{self._store.where}, key {key!r}: {error}")

    def next_block(self, limit: int) -> ListBlock | None:
        if self._error is not None:
            raise self._error
        keys, values = list[Any](), list[Any]()
        while len(keys) < limit and self._next < self._length:
            place, key = self._next, self._log[self._next]
            self._next += 1
            if place in self._kept:
                keys.append(key)
                values.append(self._kept.pop(place))
            elif self._places.get(key) == place:
                keys.append(key)
                values.append(self._entries[key])
        if not keys:
            return None
        return ListBlock(self._store.name, False, len(keys), self._store.encode(keys, values), broadcast=True)

    def release(self) -> None:
        if self in self._store.captures:
            self._store.captures.remove(self)


# ---------------------------------------------------------------------------------------------------------- bound state
class BoundBroadcast(BroadcastState[K, V]):  # noqa: PLW1641 (compared by what it holds, so not hashable)
    """Laid over the declaration's class."""

    def __init__(self, store: BroadcastStore) -> None:
        self._store = store

    def __getitem__(self, key: K) -> V:
        store = self._store
        value: V = store.entries[key]
        return store.handed_out(key) if store.touchy else value

    def __setitem__(self, key: K, value: V) -> None:
        self._store.put(key, value)

    def __delitem__(self, key: K) -> None:
        self._store.delete(key)

    def __iter__(self) -> Iterator[K]:
        return iter(self._current())

    def __len__(self) -> int:
        return len(self._current())

    def __contains__(self, key: object) -> bool:
        return key in self._current()

    @overload
    def get(self, key: K, /) -> V | None: ...
    @overload
    def get(self, key: K, /, default: V) -> V: ...
    @overload
    def get(self, key: K, /, default: D) -> V | D: ...
    def get(self, key: K, /, default: Any = None) -> Any:
        return self[key] if key in self._current() else default

    def setdefault(self, key: K, default: Any = None) -> Any:
        if key not in self._current():
            self[key] = default
        return self[key]

    def clear(self) -> None:
        self._store.clear()

    def values(self) -> ValuesView[V]:
        return _Values(self)

    def items(self) -> ItemsView[K, V]:
        return _Items(self)

    def range(self, start: K | None = None, stop: K | None = None) -> Iterator[tuple[K, V]]:
        found = super().range(start, stop)
        return ((key, self[key]) for key, _ in found) if self._store.touchy else found

    def __eq__(self, other: object) -> bool:
        return self._current() == (other._current() if isinstance(other, BoundBroadcast) else other)

    def _current(self) -> dict[K, V]:
        return self._store.entries


class _Values(ValuesView[V]):
    _mapping: BoundBroadcast[Any, V]

    def __iter__(self) -> Iterator[V]:
        store = self._mapping._store
        return map(store.handed_out, store.entries) if store.touchy else iter(store.entries.values())


class _Items(ItemsView[K, V]):
    _mapping: BoundBroadcast[K, V]

    def __iter__(self) -> Iterator[tuple[K, V]]:
        store = self._mapping._store
        if store.touchy:
            return ((key, store.handed_out(key)) for key in store.entries)
        return iter(store.entries.items())
