"""What the heap keeps per key, bound to the key of the record in hand."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeVar, cast, overload

from streamactors.state.backend import Cursor
from streamactors.state.blocks import ListCodec, MapCodec, ValueCodec
from streamactors.state.bound import naming
from streamactors.state.descriptors import ListState, MapState, ValueState
from streamactors.state.heap.tables import MISSING, Store, drop

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")


class HeapValue(ValueState[T]):
    """`get` and `set` are closures laid over the class's methods: every record calls them, and looking up attributes of
    `self` would take a third of their time."""

    def __init__(self, store: Store, codec: ValueCodec, cursor: Cursor) -> None:
        self._tables = store.tables
        self._codec = codec
        self._accept = naming(store.name, codec.serializer.accept)
        self.attach(cursor)

    def attach(self, cursor: Cursor) -> None:
        self._cursor = cursor
        vars(self)["get"] = self._getter()
        vars(self)["set"] = self._setter()

    def _getter(self) -> Callable[[], T]:
        tables, cursor, empty = self._tables, self._cursor, self._codec.empty

        def get() -> T:
            value = tables[cursor.group].get(cursor.key, MISSING)
            return empty() if value is MISSING else value  # type: ignore[no-any-return]

        if not self._codec.fixed_default:
            return get
        default = empty()

        def get_or_default() -> T:
            return tables[cursor.group].get(cursor.key, default)  # type: ignore[no-any-return]

        return get_or_default

    def _setter(self) -> Callable[[T], None]:
        tables, cursor = self._tables, self._cursor
        types, accept = self._codec.serializer.types, self._accept

        def set_(value: T) -> None:
            if type(value) not in types:
                value = accept(value)
            tables[cursor.group][cursor.key] = value

        return set_

    def folder(self, first: Callable[[Any], T], fold: Callable[[T, Any], T]) -> Callable[[Any], None]:
        tables, cursor = self._tables, self._cursor
        types, accept = self._codec.serializer.types, self._accept

        def add(value: Any) -> None:
            table, key = tables[cursor.group], cursor.key
            before = table.get(key, MISSING)
            after = first(value) if before is MISSING else fold(before, value)
            if type(after) not in types:
                after = accept(after)
            table[key] = after

        return add

    def clear(self) -> None:
        cursor = self._cursor
        drop(self._tables[cursor.group], cursor.key)


class HeapList(ListState[T]):
    def __init__(self, store: Store, codec: ListCodec, cursor: Cursor) -> None:
        self._tables = store.tables
        self.attach(cursor)
        self._accept = naming(store.name, codec.items.accept)
        self._types = codec.items.types

    def attach(self, cursor: Cursor) -> None:
        self._cursor = cursor

    def append(self, value: T) -> None:
        if type(value) not in self._types:
            value = self._accept(value)
        cursor = self._cursor
        table = self._tables[cursor.group]
        try:
            table[cursor.key].append(value)
        except KeyError:
            table[cursor.key] = [value]

    def extend(self, values: Iterable[T]) -> None:
        items = list(values)
        if not self._types.issuperset(map(type, items)):
            items = list(map(self._accept, items))
        if items:
            cursor = self._cursor
            table = self._tables[cursor.group]
            try:
                table[cursor.key].extend(items)
            except KeyError:
                table[cursor.key] = items

    def __iter__(self) -> Iterator[T]:
        return iter(self._current())

    def __len__(self) -> int:
        return len(self._current())

    def clear(self) -> None:
        cursor = self._cursor
        drop(self._tables[cursor.group], cursor.key)

    def _current(self) -> list[T]:
        cursor = self._cursor
        return cast(list[T], self._tables[cursor.group].get(cursor.key, ()))


class HeapMap(MapState[K, V]):  # noqa: PLW1641 (compared by what it holds, so not hashable)
    def __init__(self, store: Store, codec: MapCodec, cursor: Cursor) -> None:
        self._tables = store.tables
        self.attach(cursor)
        self._accept_key = naming(store.name, codec.keys.accept)
        self._accept_value = naming(store.name, codec.values.accept)
        self._key_types = codec.keys.types
        self._value_types = codec.values.types

    def attach(self, cursor: Cursor) -> None:
        self._cursor = cursor

    def __getitem__(self, key: K) -> V:
        return self._current()[key]

    def __setitem__(self, key: K, value: V) -> None:
        if type(key) not in self._key_types:
            key = self._accept_key(key)
        if type(value) not in self._value_types:
            value = self._accept_value(value)
        cursor = self._cursor
        table = self._tables[cursor.group]
        try:
            entries = table[cursor.key]
        except KeyError:
            table[cursor.key] = {key: value}
        else:
            entries[key] = value

    def folder(
        self, first: Callable[[Any], V], fold: Callable[[V, Any], V], *, in_place: bool
    ) -> Callable[[K, Any], bool]:
        tables, cursor = self._tables, self._cursor
        types, accept = self._value_types, self._accept_value
        key_types, accept_key = self._key_types, self._accept_key

        def add(key: K, more: Any) -> bool:
            table = tables[cursor.group]
            try:
                entries = table[cursor.key]  # which snapshots take note of, before anything changes
            except KeyError:
                entries = None
            before = MISSING if entries is None else entries.get(key, MISSING)
            after = first(more) if before is MISSING else fold(before, more)
            if type(after) not in types:
                after = accept(after)
            if before is MISSING and type(key) not in key_types:
                key = accept_key(key)
            if entries is None:
                table[cursor.key] = {key: after}
            else:
                entries[key] = after
            return before is MISSING

        return add

    def __delitem__(self, key: K) -> None:
        cursor = self._cursor
        table = self._tables[cursor.group]
        if key not in table.get(cursor.key, ()):
            raise KeyError(key)
        entries = table[cursor.key]
        del entries[key]
        if not entries:
            drop(table, cursor.key)

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
        return self._current().get(key, default)

    def clear(self) -> None:
        cursor = self._cursor
        drop(self._tables[cursor.group], cursor.key)

    def __eq__(self, other: object) -> bool:
        return self._current() == (other._current() if isinstance(other, HeapMap) else other)

    def _current(self) -> dict[K, V]:
        cursor = self._cursor
        return cast(dict[K, V], self._tables[cursor.group].get(cursor.key, _NOTHING))


_NOTHING: Final[Mapping[Any, Any]] = MappingProxyType({})


def kept_state(store: Store, cursor: Cursor) -> Any:
    codec = store.codec
    match codec:
        case ValueCodec():
            return HeapValue[Any](store, codec, cursor)
        case ListCodec():
            return HeapList[Any](store, codec, cursor)
        case MapCodec():
            return HeapMap[Any, Any](store, codec, cursor)
    raise AssertionError(f"{store.name!r} is no kind of state")
