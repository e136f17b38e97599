"""Keyed state in dicts, one per key group: the default backend.

**Snapshots** cost nothing while none runs: bound states reach into `tables[group]`, which is a plain dict. While a
snapshot has not yet written a group, a `_GuardedTable` stands in for its dict and *captures on touch*: before an entry
is read or written for the first time, what it holds is kept for the snapshot. Reading counts, since `get` hands out the
stored object and the user may change it; where nothing can be changed in place, only writing does. When a group's turn
comes, its dict is copied (shallow, at memcpy speed), given out in bounded blocks, and the dict put back.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from types import MappingProxyType
from typing import Any, Final, TypeVar, cast, overload

from streamactors.clock import SYSTEM, Clock
from streamactors.errors import (
    InvalidDataflow,
    StateAccessError,
    StreamactorsError,
    UnserialisableValue,
)
from streamactors.state.backend import BLOCK_SECONDS, Cursor, StateBlock, StateT
from streamactors.state.blocks import EntryCodec, ListCodec, MapCodec, ValueCodec, codec_for
from streamactors.state.descriptors import Declaration, ListState, MapState, ValueState, stand_in
from streamactors.state.key_groups import KeyGroupRange
from streamactors.state.pace import Pace
from streamactors.state.stored import Reader, check_keys, check_own, check_schemas

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")

_MISSING: Final[Any] = object()


# --------------------------------------------------------------------------------------------------------------- tables
class _NoTable:
    """Stands where there is nothing to reach: no key in hand, a group of another subtask, a closed backend."""

    __slots__ = ("_why",)

    def __init__(self, why: str) -> None:
        self._why = why

    def _refuse(self, *_: Any) -> Any:
        raise StateAccessError(self._why)

    get = pop = __getitem__ = __setitem__ = _refuse

    def __len__(self) -> int:
        return 0


class _GuardedTable:
    """A group's dict while snapshots wait for it. Entries are reached by `get` to be read, by `[]` to be changed."""

    __slots__ = ("captures", "reading_touches", "table")

    def __init__(self, table: dict[Any, Any], reading_touches: bool) -> None:
        self.table = table
        self.reading_touches = reading_touches
        self.captures: list[_Capture] = []

    def get(self, key: Any, default: Any = None) -> Any:
        if self.reading_touches:
            self._touch(key)
        return self.table.get(key, default)

    def __getitem__(self, key: Any) -> Any:
        self._touch(key)
        return self.table[key]

    def __setitem__(self, key: Any, entry: Any) -> None:
        self._touch(key)
        self.table[key] = entry

    def pop(self, key: Any, default: Any) -> Any:
        self._touch(key)
        return self.table.pop(key, default)

    def __len__(self) -> int:
        return len(self.table)

    def _touch(self, key: Any) -> None:
        for capture in self.captures:
            capture.touch(key)


class _Store:
    """One state of one subtask: a table for each key group."""

    def __init__(
        self, uid: str, name: str, codec: EntryCodec[Any], groups: KeyGroupRange, max_parallelism: int
    ) -> None:
        self.name = name
        self.where = f"operator {uid!r}, state {name!r}"
        self.codec = codec
        self.groups = groups
        foreign = _NoTable(f"{self.where}: the key belongs to another subtask; this one has the key groups {groups}")
        inactive = _NoTable(
            f"{self.where}: there is no current key. State is reachable only during process, for the key of the record "
            "in hand: not in open, close or another task"
        )
        self.tables: list[Any] = []
        self.tables += [foreign] * max_parallelism + [inactive]  # INACTIVE is the index -1
        for group in groups:
            self.tables[group] = {}

    def table(self, group: int) -> dict[Any, Any]:
        """The dict itself, also where it is guarded."""
        found = self.tables[group]
        return found.table if isinstance(found, _GuardedTable) else found

    def guard(self, group: int) -> _GuardedTable:
        found = self.tables[group]
        if not isinstance(found, _GuardedTable):
            found = self.tables[group] = _GuardedTable(found, reading_touches=not self.codec.immutable)
        return found

    def release(self, group: int, capture: "_Capture") -> None:
        found = self.tables[group]
        if isinstance(found, _GuardedTable) and capture in found.captures:
            found.captures.remove(capture)
            if not found.captures:
                self.tables[group] = found.table

    def close(self) -> None:
        closed = _NoTable(f"{self.where}: the operator has been stopped")
        self.tables[:] = [closed] * len(self.tables)


# ------------------------------------------------------------------------------------------------------------ snapshots
class _Capture:
    """One key group of one state, as it was when the snapshot began.

    Waiting: `kept` holds what touched entries were. Being written: `rest` holds all that is still to be written as it
    stands, and a touch moves an entry from `rest` to `kept`. Kept are copies where they are cheap, encoded entries
    elsewhere.
    """

    __slots__ = ("_group", "_kept", "_rest", "_steady", "_store", "_table", "codec", "error", "items")

    def __init__(self, store: _Store, group: int) -> None:
        self._store = store
        self.codec = store.codec
        self._group = group
        self._kept: dict[Any, Any] = {}
        self._rest: dict[Any, Any] | None = None
        self._steady: tuple[Iterator[Any], Iterator[Any]] | None = None
        self.error: StreamactorsError | None = None
        self.items = 0
        guard = store.guard(group)
        guard.captures.append(self)
        self._table = guard.table

    def touch(self, key: Any) -> None:
        if self._rest is None:
            if key not in self._kept:
                entry = self._table.get(key, _MISSING)
                self._kept[key] = entry if entry is _MISSING else self._keep(key, entry)
        else:
            entry = self._rest.pop(key, _MISSING)
            if entry is not _MISSING:
                self._kept[key] = self._keep(key, entry)

    def _keep(self, key: Any, entry: Any) -> Any:
        """An error is the snapshot's, and must not come up in the user's call that touches the entry."""
        try:
            return self.codec.detach(entry) if self.codec.detachable else self.codec.encode(entry)
        except StreamactorsError as error:
            self.error = type(error)(f"{self._store.where}, key {key!r}: {error}")
            return _MISSING

    def next_block(self, limit: int) -> StateBlock | None:
        """About `limit` items; None when the group is written."""
        if self._rest is None:
            self._rest = self._begin()
        if self.error is not None:
            raise self.error
        keys, entries = self._take_steady(limit) if self._steady else self._take(self._rest, limit)
        self.items = len(keys) if self.codec.stable else sum(map(self.codec.size, entries))
        kept_keys, kept = self._take(self._kept, limit - self.items)
        self.items += len(kept_keys)
        if not keys and not kept_keys:
            return None
        data = self._encode(keys, entries, kept_keys, kept)
        return StateBlock(self._store.name, self._group, len(keys) + len(kept_keys), data)

    def _begin(self) -> dict[Any, Any]:
        rest = self._table.copy()
        for key in self._kept:
            rest.pop(key, None)
        self._kept = {key: kept for key, kept in self._kept.items() if kept is not _MISSING}
        if self.codec.stable:  # references to what never changes: nobody's touch matters any more
            rest.update(self._kept)
            self._kept = {}
            self.release()
            self._steady = iter(rest), iter(rest.values())
        return rest

    def _take_steady(self, limit: int) -> tuple[list[Any], list[Any]]:
        assert self._steady is not None
        keys, entries = self._steady
        return list(islice(keys, limit)), list(islice(entries, limit))

    def _take(self, entries: dict[Any, Any], limit: int) -> tuple[list[Any], list[Any]]:
        """Out of `entries`: as many as make about `limit` items, at least one if there is room for any."""
        keys, taken = [], []
        while entries and limit > 0:
            key, entry = entries.popitem()
            keys.append(key)
            taken.append(entry)
            limit -= 1 if isinstance(entry, bytes) else self.codec.size(entry)
        return keys, taken

    def _encode(self, keys: list[Any], entries: list[Any], kept_keys: list[Any], kept: list[Any]) -> bytes:
        try:
            if self.codec.detachable:
                return self.codec.encode_block(keys + kept_keys, entries + kept)
            return self.codec.encode_block(keys, entries, kept_keys, kept)
        except StreamactorsError as error:
            raise type(error)(f"{self._store.where}, {error}") from error

    def release(self) -> None:
        self._store.release(self._group, self)


class HeapSnapshot:
    """See `KeyedSnapshot`."""

    def __init__(
        self,
        checkpoint_id: int,
        stores: Iterable[_Store],
        on_end: Callable[["HeapSnapshot"], None],
        monotonic: Callable[[], float],
    ) -> None:
        self.checkpoint_id = checkpoint_id
        self._on_end = on_end
        self._monotonic = monotonic
        self._pace = Pace()
        self._waiting = [_Capture(store, group) for store in stores for group in store.groups if store.table(group)]
        self._waiting.reverse()

    def next_block(self, budget_seconds: float = BLOCK_SECONDS, *, max_entries: int | None = None) -> StateBlock | None:
        limit = self._pace.items(budget_seconds)
        started = self._monotonic()
        try:
            block = self._next(limit if max_entries is None else min(limit, max_entries))
        except BaseException:
            self.abort()
            raise
        if block is not None:
            self._pace.measured(self._waiting[-1].items, self._monotonic() - started)
        return block

    def _next(self, limit: int) -> StateBlock | None:
        while self._waiting:
            block = self._waiting[-1].next_block(limit)
            if block is not None:
                return block
            self._waiting.pop().release()
        self.abort()
        return None

    def abort(self) -> None:
        for capture in self._waiting:
            capture.release()
        self._waiting = []
        self._on_end(self)


# --------------------------------------------------------------------------------------------------------- bound states
def _naming(store: _Store, accept: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`accept`, whose refusal also names the state: the value alone does not tell which one it was meant for."""

    def accept_for_state(value: Any) -> Any:
        try:
            return accept(value)
        except UnserialisableValue as error:
            raise UnserialisableValue(f"state {store.name!r}: {error}") from error

    return accept_for_state


class _HeapValue(ValueState[T]):
    """`get` and `set` are closures laid over the class's methods: every record calls them, and looking up attributes of
    `self` would take a third of their time."""

    def __init__(self, store: _Store, codec: ValueCodec, cursor: Cursor) -> None:
        self._tables = store.tables
        self._codec = codec
        self._accept = _naming(store, codec.serializer.accept)
        self.attach(cursor)

    def attach(self, cursor: Cursor) -> None:
        self._cursor = cursor
        vars(self)["get"] = self._getter()
        vars(self)["set"] = self._setter()

    def _getter(self) -> Callable[[], T]:
        tables, cursor, empty = self._tables, self._cursor, self._codec.empty

        def get() -> T:
            value = tables[cursor.group].get(cursor.key, _MISSING)
            return empty() if value is _MISSING else value  # type: ignore[no-any-return]

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

    def clear(self) -> None:
        cursor = self._cursor
        self._tables[cursor.group].pop(cursor.key, None)


class _HeapList(ListState[T]):
    def __init__(self, store: _Store, codec: ListCodec, cursor: Cursor) -> None:
        self._tables = store.tables
        self.attach(cursor)
        self._accept = _naming(store, codec.items.accept)
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
        self._tables[cursor.group].pop(cursor.key, None)

    def _current(self) -> list[T]:
        cursor = self._cursor
        return cast(list[T], self._tables[cursor.group].get(cursor.key, ()))


class _HeapMap(MapState[K, V]):  # noqa: PLW1641 (compared by what it holds, so not hashable)
    def __init__(self, store: _Store, codec: MapCodec, cursor: Cursor) -> None:
        self._tables = store.tables
        self.attach(cursor)
        self._accept_key = _naming(store, codec.keys.accept)
        self._accept_value = _naming(store, codec.values.accept)
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

    def __delitem__(self, key: K) -> None:
        cursor = self._cursor
        table = self._tables[cursor.group]
        if key not in table.get(cursor.key, ()):
            raise KeyError(key)
        entries = table[cursor.key]
        del entries[key]
        if not entries:
            table.pop(cursor.key, None)

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
        self._tables[cursor.group].pop(cursor.key, None)

    def __eq__(self, other: object) -> bool:
        return self._current() == (other._current() if isinstance(other, _HeapMap) else other)

    def _current(self) -> dict[K, V]:
        cursor = self._cursor
        return cast(dict[K, V], self._tables[cursor.group].get(cursor.key, _NOTHING))


_NOTHING: Final[Mapping[Any, Any]] = MappingProxyType({})


def _bind(declaration: Declaration, store: _Store, codec: EntryCodec[Any], cursor: Cursor) -> Declaration:
    match codec:
        case ValueCodec():
            return _HeapValue[Any](store, codec, cursor)
        case ListCodec():
            return _HeapList[Any](store, codec, cursor)
        case MapCodec():
            return _HeapMap[Any, Any](store, codec, cursor)
    raise InvalidDataflow(f"{type(declaration).__name__} is not kept on the heap")


# -------------------------------------------------------------------------------------------------------------- backend
class HeapBackend:
    """See `KeyedBackend`. `uid` names the operator in errors."""

    def __init__(
        self,
        groups: KeyGroupRange,
        max_parallelism: int,
        *,
        uid: str = "",
        cursor: Cursor | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        self._monotonic = clock.monotonic
        self.groups = groups
        self.cursor = Cursor() if cursor is None else cursor
        self._uid = uid
        self._max_parallelism = max_parallelism
        self._stores: dict[str, _Store] = {}
        self._bound: list[Any] = []
        self._snapshots: list[HeapSnapshot] = []

    def attach(self, cursor: Cursor) -> None:
        self.cursor = cursor
        for state in self._bound:
            state.attach(cursor)

    def bind(self, name: str, declaration: StateT) -> StateT:
        if name in self._stores:
            raise InvalidDataflow(f"operator {self._uid!r}: two states have the name {name!r}")
        try:
            codec = codec_for(declaration)
        except InvalidDataflow as error:
            raise InvalidDataflow(f"operator {self._uid!r}, state {name!r}: {error}") from error
        store = self._stores[name] = _Store(self._uid, name, codec, self.groups, self._max_parallelism)
        bound = _bind(declaration, store, codec, self.cursor)
        stand_in(bound, declaration, name)
        self._bound.append(bound)
        return cast(StateT, bound)

    # ---------------------------------------------------------------------------------------------------- snapshots
    def begin_snapshot(self, checkpoint_id: int) -> HeapSnapshot:
        snapshot = HeapSnapshot(checkpoint_id, self._stores.values(), self._ended, self._monotonic)
        self._snapshots.append(snapshot)
        return snapshot

    def _ended(self, snapshot: HeapSnapshot) -> None:
        if snapshot in self._snapshots:
            self._snapshots.remove(snapshot)

    def schemas(self) -> dict[str, Any]:
        return {name: store.codec.schema() for name, store in self._stores.items()}

    def check_schemas(self, stored: Mapping[str, Any], *, allow_dropped: bool = False) -> None:
        readers = {name: Reader(store.where, store.codec.problems) for name, store in self._stores.items()}
        check_schemas(stored, readers, self._uid, allow_dropped=allow_dropped)

    def restore(self, blocks: Iterable[StateBlock]) -> None:
        for block in blocks:
            check_own(block, self.groups, self._uid)
            if (store := self._stores.get(block.state)) is not None:
                self._add(store, block)

    def _add(self, store: _Store, block: StateBlock) -> None:
        try:
            keys, entries = store.codec.decode_block(block.data)
        except StreamactorsError as error:
            raise type(error)(f"{store.where}: {error}") from error
        check_keys(keys, block.group, self._max_parallelism, store.where)
        table = store.table(block.group)
        for key, entry in zip(keys, entries, strict=True):
            table[key] = store.codec.merge(table[key], entry) if key in table else entry

    # ------------------------------------------------------------------------------------------------------ looking in
    def query(self, name: str, key: Any, group: int) -> Any:
        store = self._store(name)
        if group not in self.groups:
            raise StateAccessError(f"{store.where}: key group {group} is not among the {self.groups} of this subtask")
        entry = store.table(group).get(key, _MISSING)
        if entry is not _MISSING:
            return store.codec.copy(entry)
        default = store.codec.empty()
        return None if type(default) is object else default

    def scan(self, name: str) -> Iterator[tuple[int, Any, Any]]:
        store = self._store(name)
        for group in self.groups:
            for key, entry in list(store.table(group).items()):
                yield group, key, store.codec.copy(entry)

    def _store(self, name: str) -> _Store:
        if name not in self._stores:
            known = ", ".join(self._stores) or "none"
            raise StateAccessError(f"operator {self._uid!r} has no state {name!r}; it declares: {known}")
        return self._stores[name]

    def entries(self) -> dict[str, int]:
        return {name: sum(len(store.tables[group]) for group in self.groups) for name, store in self._stores.items()}

    def close(self) -> None:
        for snapshot in self._snapshots.copy():
            snapshot.abort()
        for store in self._stores.values():
            store.close()
