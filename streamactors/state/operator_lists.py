"""State that belongs to no key: one operator subtask's `OperatorListState` and `UnionListState`, and (see `broadcast`)
its `BroadcastState`.

**Snapshots** of lists cost nothing that depends on the number of items when they begin: a list only grows until
`clear`, which puts a new one in its place, so that what a snapshot holds is the list and how long it was. Items that
can be changed in place are *kept on touch*: as long as a snapshot has not written an item, iteration copies it for the
snapshot before it hands the item out. Items are written in blocks of bounded time.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar, cast

import msgspec

from streamactors.clock import SYSTEM, Clock
from streamactors.errors import InvalidDataflow, StreamactorsError, UnserialisableValue
from streamactors.state.backend import BLOCK_SECONDS
from streamactors.state.broadcast import BoundBroadcast, BroadcastState, BroadcastStore, WriteAccess
from streamactors.state.descriptors import Declaration, ListState, OperatorListState, UnionListState, stand_in
from streamactors.state.layouts import decode_layout
from streamactors.state.pace import Pace
from streamactors.state.serialisation.schemas import Schema
from streamactors.state.serialisation.serializers import serializer_for
from streamactors.state.stored import Reader, check_schemas
from streamactors.state.unkeyed import ListBlock, UnkeyedCapture, UnkeyedStore

T = TypeVar("T")
StateT = TypeVar("StateT", bound=Declaration)

_VERSION: Final = 1


class _Layout(msgspec.Struct, array_like=True):
    version: int
    items: bytes


class _Store(UnkeyedStore):
    def __init__(self, uid: str, name: str, declaration: ListState[Any]) -> None:
        super().__init__(uid, name)
        self.union = isinstance(declaration, UnionListState)
        self.kind = "union list" if self.union else "operator list"
        self.serializer = self._stored = serializer_for(declaration.type)
        self.captures: list[_Capture] = []
        self._items: list[Any] = []

    @property
    def items(self) -> list[Any]:
        """Append to it, and do nothing else: snapshots hold on to it."""
        if self._closed:
            self.check_open()
        return self._items

    @property
    def count(self) -> int:
        return len(self._items)

    def clear(self) -> None:
        if self.items:
            self._items = []

    def touch(self, items: list[Any], number: int) -> None:
        for capture in self.captures:
            capture.touch(items, number)

    def close(self) -> None:
        super().close()
        self._items = []

    # ------------------------------------------------------------------------------------------------ to bytes and back
    def begin(self) -> UnkeyedCapture | None:
        return _Capture(self, self._items) if self._items else None

    def schema(self) -> Schema:
        return {"kind": self.kind, "type": self.serializer.schema}

    def _problems(self, old: Schema) -> list[str]:
        return self.serializer.check_compatible(old["type"])

    def read_as(self, old: Schema) -> None:
        self._stored = self.serializer.reader(old["type"])

    def encode(self, items: list[Any], first: int) -> bytes:
        """`first`: the number of the first of them, for errors."""
        try:
            return msgspec.msgpack.encode(_Layout(_VERSION, self.serializer.encode_many(items)))
        except UnserialisableValue as error:
            self._name_culprit(items, first)
            raise UnserialisableValue(f"{self.where}: {error}") from error

    def _name_culprit(self, items: list[Any], first: int) -> None:
        for number, item in enumerate(items, first):
            try:
                self.serializer.encode(item)
            except UnserialisableValue as error:
                raise UnserialisableValue(f"{self.where}, item {number}: {error}") from error

    def restore(self, block: ListBlock, start: int, stop: int) -> None:
        with self.reading():
            layout = decode_layout(block.data, _Layout, _VERSION)
            items = self._stored.decode_many(layout.items)
        self.check_count(len(items), block)
        self._items.extend(items[start:stop])


# --------------------------------------------------------------------------------------------------------- bound states
class _Bound(ListState[T]):
    """Laid over the declaration's class."""

    _store: _Store

    def append(self, value: T) -> None:
        store = self._store
        if type(value) not in store.serializer.types:
            value = store.accept(store.serializer, value)
        store.items.append(value)

    def extend(self, values: Iterable[T]) -> None:
        store = self._store
        items = list(values)
        if not store.serializer.types.issuperset(map(type, items)):
            items = [store.accept(store.serializer, item) for item in items]
        store.items.extend(items)

    def __iter__(self) -> Iterator[T]:
        items = self._store.items
        return iter(items) if self._store.serializer.immutable else self._hand_out(items)

    def _hand_out(self, items: list[T]) -> Iterator[T]:
        for number, item in enumerate(items):
            self._store.touch(items, number)
            yield item

    def __len__(self) -> int:
        return len(self._store.items)

    def clear(self) -> None:
        self._store.clear()


class _BoundOperatorList(_Bound[T], OperatorListState[T]):
    def __init__(self, store: _Store) -> None:
        self._store = store


class _BoundUnionList(_Bound[T], UnionListState[T]):
    def __init__(self, store: _Store) -> None:
        self._store = store


# ------------------------------------------------------------------------------------------------------------ snapshots
class _Capture(UnkeyedCapture):
    """The first `_length` items of `_items`, those in `_kept` instead of the ones that were handed out since."""

    def __init__(self, store: _Store, items: list[Any]) -> None:
        self.store = store
        self._items = items
        self._length = len(items)
        self._written = 0
        self._kept: dict[int, Any] = {}
        self._error: StreamactorsError | None = None
        store.captures.append(self)

    def touch(self, items: list[Any], number: int) -> None:
        """An error is the snapshot's, and must not come up in the user's loop over the items."""
        if items is self._items and self._written <= number < self._length and number not in self._kept:
            try:
                self._kept[number] = self.store.serializer.copy(items[number])
            except StreamactorsError as error:
                self._error = type(error)(f"{self.store.where}, item {number}: {error}")

    def next_block(self, limit: int) -> ListBlock | None:
        if self._error is not None:
            raise self._error
        first, last = self._written, min(self._written + limit, self._length)
        items = self._items[first:last]
        if not items:
            return None
        if self._kept:
            items = [self._kept.pop(number, item) for number, item in enumerate(items, first)]
        self._written = last
        return ListBlock(self.store.name, self.store.union, len(items), self.store.encode(items, first))

    def release(self) -> None:
        if self in self.store.captures:
            self.store.captures.remove(self)


class ListsSnapshot:
    """The items as they were when it began, given out bit by bit while processing goes on."""

    def __init__(self, stores: Iterable[UnkeyedStore], monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._pace = Pace()
        self._waiting = [capture for store in stores if (capture := store.begin()) is not None]
        self._waiting.reverse()

    def next_block(self, budget_seconds: float = BLOCK_SECONDS) -> ListBlock | None:
        """The next block: about as much as can be serialised in `budget_seconds`, at least one item; None when all was
        given out. Raises UnserialisableValue naming operator, state and item; the snapshot is then aborted."""
        started = self._monotonic()
        try:
            block = self._next(self._pace.items(budget_seconds))
        except BaseException:
            self.abort()
            raise
        if block is not None:
            self._pace.measured(block.items, self._monotonic() - started)
        return block

    def _next(self, limit: int) -> ListBlock | None:
        while self._waiting:
            block = self._waiting[-1].next_block(limit)
            if block is not None:
                return block
            self._waiting.pop().release()
        return None

    def abort(self) -> None:
        """Let go of everything. No harm if it has ended."""
        for capture in self._waiting:
            capture.release()
        self._waiting = []


# ------------------------------------------------------------------------------------------------------- one operator's
class OperatorLists:
    """The states without a key of one operator subtask. `uid` names the operator in errors."""

    def __init__(self, uid: str = "", *, clock: Clock = SYSTEM) -> None:
        self._uid = uid
        self._monotonic = clock.monotonic
        self._stores: dict[str, UnkeyedStore] = {}
        self._writes = WriteAccess()

    def __contains__(self, name: str) -> bool:
        return name in self._stores

    def bind(self, name: str, declaration: StateT) -> StateT:
        """The declaration's living twin, an instance of the same class. Raises InvalidDataflow for a type that can't be
        stored, or another kind of state."""
        where = f"operator {self._uid!r}, state {name!r}"
        if name in self._stores:
            raise InvalidDataflow(f"operator {self._uid!r}: two states have the name {name!r}")
        try:
            store, bound = self._made(name, declaration)
        except InvalidDataflow as error:
            raise InvalidDataflow(f"{where}: {error}") from error
        self._stores[name] = store
        stand_in(bound, declaration, name)
        return cast(StateT, bound)

    def _made(self, name: str, declaration: Declaration) -> tuple[UnkeyedStore, Declaration]:
        if isinstance(declaration, BroadcastState):
            entries = BroadcastStore(self._uid, name, declaration, self._writes)
            return entries, BoundBroadcast[Any, Any](entries)
        if not isinstance(declaration, OperatorListState | UnionListState):
            raise InvalidDataflow(f"{type(declaration).__name__} is no state without a key")
        items = _Store(self._uid, name, declaration)
        return items, _BoundUnionList[Any](items) if items.union else _BoundOperatorList[Any](items)

    @contextlib.contextmanager
    def broadcasting(self) -> Iterator[None]:
        """What every subtask is sent is processed: broadcast state may be written."""
        self._writes.allowed = True
        try:
            yield
        finally:
            self._writes.allowed = False

    def begin_snapshot(self) -> ListsSnapshot | None:
        """The synchronous part: takes no longer for more items. Several may run at once; None where all is empty."""
        if not any(store.count for store in self._stores.values()):
            return None
        return ListsSnapshot(self._stores.values(), self._monotonic)

    def schemas(self) -> dict[str, Any]:
        """By state name, plain and msgpack-able; goes into the manifest."""
        return {name: store.schema() for name, store in self._stores.items()}

    def check_schemas(self, stored: Mapping[str, Any], *, allow_dropped: bool = False) -> None:
        """Whether the states bound now can read what was written under `stored`.

        Raises IncompatibleState naming operator, state and both types. `allow_dropped` gives up stored states that are
        no longer declared.
        """
        readers = {name: Reader(store.where, store.problems, store.read_as) for name, store in self._stores.items()}
        check_schemas(stored, readers, self._uid, allow_dropped=allow_dropped)

    def restore(self, block: ListBlock, start: int, stop: int) -> None:
        """Add the items `start` to `stop` of what a block holds; blocks of states that are not bound are skipped.

        Raises IncompatibleState for items that do not fit, CorruptCheckpoint for what can't be read at all.
        """
        if (store := self._stores.get(block.state)) is not None:
            store.restore(block, start, stop)

    def entries(self) -> dict[str, int]:
        """How many items each state holds, for metrics."""
        return {name: store.count for name, store in self._stores.items()}

    def close(self) -> None:
        """Let go of all items; what is bound raises StateAccessError from now on."""
        for store in self._stores.values():
            store.close()
