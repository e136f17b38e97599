"""What an operator holds in its hands: state bound to the key of the record, over a RocksDB store."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar, cast, overload

from streamactors.state.backend import Cursor
from streamactors.state.bound import naming
from streamactors.state.descriptors import ListState, MapState, ValueState
from streamactors.state.rocksdb.stores.lists import ListStore
from streamactors.state.rocksdb.stores.maps import MapStore, SpreadMap
from streamactors.state.rocksdb.stores.store import ABSENT, MISSING, SPILL, Store
from streamactors.state.rocksdb.stores.values import ValueStore

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")


class RocksValue(ValueState[T]):
    """`get` and `set` are closures, as those of the heap are: with the entry in the cache they cost about the same."""

    def __init__(self, store: ValueStore, cursor: Cursor) -> None:
        self._store = store
        self._accept = naming(store.name, store.codec.serializer.accept)
        self.attach(cursor)

    def attach(self, cursor: Cursor) -> None:
        self._cursor = cursor
        vars(self)["get"] = self._getter()
        vars(self)["set"] = self._setter()

    def _getter(self) -> Callable[[], T]:
        store, cursor, empty = self._store, self._cursor, self._store.codec.empty
        tables, load = store.tables, store.load
        fixed = store.codec.fixed_default
        default: Any = empty() if fixed else None

        def get() -> T:
            value: Any = tables[cursor.group].get(cursor.key, MISSING)
            if value is MISSING:
                value = load(cursor.key, cursor.group)
            if value is ABSENT:
                return default if fixed else empty()  # type: ignore[no-any-return]
            return value  # type: ignore[no-any-return]

        return get

    def _setter(self) -> Callable[[T], None]:
        store, cursor = self._store, self._cursor
        tables, dirty, mark = store.tables, store.dirty, store.mark
        types, accept = store.codec.serializer.types, self._accept

        def set_(value: T) -> None:
            if type(value) not in types:
                value = accept(value)
            key = cursor.key
            if key not in dirty:
                mark(key, cursor.group)
            tables[cursor.group][key] = value

        return set_

    def folder(self, first: Callable[[Any], T], fold: Callable[[T, Any], T]) -> Callable[[Any], None]:
        store, cursor = self._store, self._cursor
        tables, dirty, mark, load = store.tables, store.dirty, store.mark, store.load
        types, accept = store.codec.serializer.types, self._accept

        def add(value: Any) -> None:
            key, group = cursor.key, cursor.group
            if key not in dirty:
                mark(key, group)  # first: the fold may change what is cached in place
            before: Any = tables[group].get(key, MISSING)
            if before is MISSING:
                before = load(key, group)
            try:
                after = first(value) if before is ABSENT else fold(before, value)
                if type(after) not in types:
                    after = accept(after)
            except BaseException:
                store.emptied.add(key)  # if it held nothing, it still does
                raise
            tables[group][key] = after

        return add

    def clear(self) -> None:
        store, cursor = self._store, self._cursor
        if store.entry(cursor.key, cursor.group) is not ABSENT:
            if cursor.key not in store.dirty:
                store.mark(cursor.key, cursor.group)
            store.tables[cursor.group][cursor.key] = ABSENT
            store.emptied.add(cursor.key)


class RocksList(ListState[T]):
    def __init__(self, store: ListStore, cursor: Cursor) -> None:
        self._store = store
        self._accept = naming(store.name, store.codec.items.accept)
        self._types = store.codec.items.types
        self.attach(cursor)

    def attach(self, cursor: Cursor) -> None:
        self._cursor = cursor

    def append(self, value: T) -> None:
        if type(value) not in self._types:
            value = self._accept(value)
        store, cursor = self._store, self._cursor
        key = cursor.key
        if key not in store.dirty:
            store.mark(key, cursor.group)
        tail = store.entry(key, cursor.group).tail
        tail.append(value)
        if len(tail) >= SPILL:
            store.write_out([key])

    def extend(self, values: Iterable[T]) -> None:
        items = list(values)
        if not self._types.issuperset(map(type, items)):
            items = list(map(self._accept, items))
        if items:
            self._store.extend(self._cursor.key, self._cursor.group, items)

    def __iter__(self) -> Iterator[T]:
        store, cursor = self._store, self._cursor
        return store.items(cursor.key, cursor.group, store.entry(cursor.key, cursor.group))

    def __len__(self) -> int:
        return len(self._store.entry(self._cursor.key, self._cursor.group))

    def clear(self) -> None:
        store, cursor = self._store, self._cursor
        if len(store.entry(cursor.key, cursor.group)):
            if cursor.key not in store.dirty:
                store.mark(cursor.key, cursor.group)
            store.entry(cursor.key, cursor.group).clear()
            store.emptied.add(cursor.key)


class RocksMap(MapState[K, V]):  # noqa: PLW1641 (compared by what it holds, so not hashable)
    """Small maps are in memory as a whole and keep the order of insertion while they are; large ones are read entry by
    entry, in the order of their keys."""

    def __init__(self, store: MapStore, cursor: Cursor) -> None:
        self._store = store
        self._accept_key = naming(store.name, store.codec.keys.accept)
        self._accept_value = naming(store.name, store.codec.values.accept)
        self._key_types = store.codec.keys.types
        self._value_types = store.codec.values.types
        self.attach(cursor)

    def attach(self, cursor: Cursor) -> None:
        self._cursor = cursor

    def __getitem__(self, key: K) -> V:
        value = self._find(key)
        if value is ABSENT:
            raise KeyError(key)
        return cast(V, value)

    def __setitem__(self, key: K, value: V) -> None:
        if type(key) not in self._key_types:
            key = self._accept_key(key)
        if type(value) not in self._value_types:
            value = self._accept_value(value)
        self._store.put(self._cursor.key, self._cursor.group, key, value)

    def __delitem__(self, key: K) -> None:
        if not self._store.remove(self._cursor.key, self._cursor.group, key):
            raise KeyError(key)

    def __iter__(self) -> Iterator[K]:
        return iter(self._current())

    def __len__(self) -> int:
        return self._store.entry(self._cursor.key, self._cursor.group).size

    def __contains__(self, key: object) -> bool:
        return self._find(key) is not ABSENT

    @overload
    def get(self, key: K, /) -> V | None: ...
    @overload
    def get(self, key: K, /, default: V) -> V: ...
    @overload
    def get(self, key: K, /, default: D) -> V | D: ...
    def get(self, key: K, /, default: Any = None) -> Any:
        value = self._find(key)
        return default if value is ABSENT else value

    def range(self, start: K | None = None, stop: K | None = None) -> Iterator[tuple[K, V]]:
        first, last = self._order().bounds(start, stop)
        store, cursor = self._store, self._cursor
        cell = store.entry(cursor.key, cursor.group)
        return store.in_order(cursor.key, cursor.group, cell, first, last)

    def clear(self) -> None:
        self._store.clear(self._cursor.key, self._cursor.group)

    def __eq__(self, other: object) -> bool:
        return dict(self._current()) == (dict(other._current()) if isinstance(other, RocksMap) else other)

    def _find(self, key: object) -> Any:
        store, cursor = self._store, self._cursor
        cell = store.entry(cursor.key, cursor.group)
        value = cell.known.get(key, MISSING)
        return store.find(cursor.key, cursor.group, cell, key) if value is MISSING else value

    def _current(self) -> dict[K, V]:
        """All of it: a dict, or what reads as one."""
        store, cursor = self._store, self._cursor
        cell = store.entry(cursor.key, cursor.group)
        found: Mapping[Any, Any] = cell.known if cell.complete else SpreadMap(store, cursor.key, cursor.group)
        return cast(dict[K, V], found)


def bound_state(store: Store[Any], cursor: Cursor) -> Any:
    match store:
        case ValueStore():
            return RocksValue[Any](store, cursor)
        case ListStore():
            return RocksList[Any](store, cursor)
        case MapStore():
            return RocksMap[Any, Any](store, cursor)
    raise AssertionError(f"{store.name!r} is no kind of state")
