"""State around an await: each call works on a copy that is bound to its key, and what it changes takes effect at once.

Invariants. A call is found by a ContextVar, so that helper functions and child tasks of the call reach its key, and
calls that run side by side do not meet. What it reads shares nothing with what is stored. What it writes goes to its
own `writes`, which its later reads see, and to the store only by `KeyedCall.apply`, which does not pause: all of it,
or, if that is never called, nothing. So a snapshot between two `apply` holds whole calls. Of one key there is one call
at a time; who starts them sees to that. Once ended, a call is dead: whatever still has it in its context gets
StateAccessError. So does another thread, which may have the call in its context too (`asyncio.to_thread`): where the
cursor stands, the loop's own thread decides, and between two of its steps.

Time to live: reading judges by the time when the call began, so that what was there stays there during the call; what
it wrote, and what it read where reading refreshes, is stamped when it takes effect.
"""

from asyncio import _get_running_loop
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from heapq import merge
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeVar, cast, overload

from streamactors.errors import StateAccessError
from streamactors.state.backend import Cursor, KeyedBackend
from streamactors.state.blocks import Codec, ListCodec, MapCodec, ValueCodec
from streamactors.state.bound import naming
from streamactors.state.descriptors import (
    AggregatingState,
    Declaration,
    ListState,
    MapState,
    ReducingState,
    ValueState,
    stand_in,
)
from streamactors.state.folding import BoundAggregating, BoundReducing
from streamactors.state.map_view import MapView
from streamactors.state.serialisation.serializer import Serializer
from streamactors.state.stored import codec_of
from streamactors.state.ttl import UNSET, TtlCell, TtlList, TtlMap, TtlValue

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")

_IN_HAND: ContextVar["KeyedCall | None"] = ContextVar("streamactors_call", default=None)
_ABSENT: Final[Any] = object()
"""A map has no such key."""


class _Written(Protocol):
    """A state that calls may change."""

    def apply(self, writes: Any) -> None:
        """Put what a call wrote into the store; the cursor stands on its key."""


class KeyedCall:
    """One call: its key, and what it has changed so far. `began_ms` in milliseconds of processing time."""

    __slots__ = ("alive", "began_ms", "calls", "group", "key", "loop", "writes")

    def __init__(self, calls: "KeyedCalls", key: Any, group: int, began_ms: int) -> None:
        self.calls = calls
        self.key = key
        self.group = group
        self.began_ms = began_ms
        self.alive = True
        self.loop = _get_running_loop()
        self.writes: dict[_Written, Any] = {}

    def enter(self) -> Token["KeyedCall | None"]:
        """From now on it is the one in hand in this context, and those that are copied from it."""
        return _IN_HAND.set(self)

    def end(self) -> None:
        """It has returned, or failed: from now on it reaches nothing."""
        self.alive = False

    def apply(self) -> None:
        """All that it changed takes effect."""
        with self.calls.standing_on(self):
            for state, writes in self.writes.items():
                state.apply(writes)
        self.writes = {}


class KeyedCalls:
    """The calls of one operator subtask. `cursor` is its backend's, which stands on no key but while a call reads, or
    takes effect. `time_ms`: what a ttl is measured by."""

    def __init__(self, uid: str, cursor: Cursor, time_ms: Callable[[], int]) -> None:
        self.uid = uid
        self._cursor = cursor
        self.time_ms = time_ms
        self._reading: KeyedCall | None = None

    def begin(self, key: Any, group: int) -> KeyedCall:
        return KeyedCall(self, key, group, self.time_ms())

    def in_hand(self) -> KeyedCall:
        """Raises StateAccessError outside of a call, and after it."""
        call = _IN_HAND.get()
        if call is None or call.calls is not self:
            raise StateAccessError(
                f"operator {self.uid!r}: there is no current key. State is reachable only during process and on_timer, "
                "for the key of the call, and in tasks that the call has started: not in open, close or another task"
            )
        self.check_alive(call)
        return call

    def check_alive(self, call: KeyedCall) -> None:
        """Raises StateAccessError."""
        if not call.alive:
            raise StateAccessError(
                f"operator {self.uid!r}: the call for the key {call.key!r} has ended, and with it the use of its "
                "state, its timers and its context; await what the call has started before it returns"
            )
        if _get_running_loop() is not call.loop:
            raise StateAccessError(
                f"operator {self.uid!r}: another thread reaches for the state, the timers or the context of the call "
                f"for the key {call.key!r}: read what the thread needs before, hand it in, and write what it returns"
            )

    def reading_since(self) -> int:
        """The time by which what is read now is judged."""
        return self.time_ms() if self._reading is None else self._reading.began_ms

    @contextmanager
    def standing_on(self, call: KeyedCall) -> Iterator[None]:
        """The backend's cursor is on the call's key."""
        cursor, before = self._cursor, self._reading
        cursor.key, cursor.group, self._reading = call.key, call.group, call
        try:
            yield
        finally:
            cursor.clear()
            self._reading = before


def bind_for_calls(backend: KeyedBackend, name: str, declaration: Declaration, calls: KeyedCalls) -> Declaration:
    """The declaration's living twin, for the calls of an operator. Raises what `backend.bind` does."""
    stored = backend.bind(name, declaration)
    codec = cast(Codec, codec_of(declaration, name, calls.uid, calls.time_ms).plain)
    bound = _for_calls(declaration, name, stored, codec, calls)
    stand_in(bound, declaration, name)
    return bound


def _for_calls(declaration: Declaration, name: str, stored: Any, codec: Codec, calls: KeyedCalls) -> Declaration:
    match codec:
        case ListCodec():
            return CallList[Any](stored, name, codec, calls)
        case MapCodec():
            return CallMap[Any, Any](stored, name, codec, calls)
        case ValueCodec():
            return _value_for_calls(declaration, name, stored, codec, calls)


def _value_for_calls(
    declaration: Declaration, name: str, stored: Any, codec: ValueCodec, calls: KeyedCalls
) -> Declaration:
    match declaration:
        case ReducingState():
            return BoundReducing[Any](CallCell(stored.cell, name, codec, calls), declaration.fn)
        case AggregatingState():
            return BoundAggregating[Any, Any](CallCell(stored.cell, name, codec, calls), declaration.aggregate)
    return CallValue[Any](CallCell(stored, name, codec, calls))


_Checked = Callable[[Any], Any]


def _taker(name: str, serializer: Serializer[Any]) -> _Checked:
    """What is written, as a copy that nobody else can change. Raises UnserialisableValue naming the state."""
    types, accept, copy = serializer.types, naming(name, serializer.accept), naming(name, serializer.copy)

    def take(value: Any) -> Any:
        return copy(value if type(value) in types else accept(value))

    return take


def _given(serializer: Serializer[Any]) -> _Checked:
    """What is read, as a copy."""
    copy = serializer.copy
    return lambda value: value if type(value) is object else copy(value)  # a bare object() stands for no value


def _still(stored: Any, calls: KeyedCalls) -> Any:
    """The same state, reading which refreshes nothing, and finds what had not expired when the call began."""
    if isinstance(stored, TtlCell | TtlValue | TtlList | TtlMap):
        return stored.still(calls.reading_since)
    return stored


# ------------------------------------------------------------------------------------------------------------ one value
_REFRESHED: Final[Any] = object()
"""Read, and not written."""


class CallCell:
    """See `ValueCell`. `stored`: what the backend has bound, a state or a cell."""

    def __init__(self, stored: Any, name: str, codec: ValueCodec, calls: KeyedCalls) -> None:
        self._stored = stored
        self._still = _still(stored, calls)
        self._refreshes = self._still is not stored and stored.refreshes
        self._calls = calls
        self._empty = codec.empty
        self._take = _taker(name, codec.serializer)
        self._give = _given(codec.serializer)
        self._accept = naming(name, codec.serializer.accept)
        self.get: Callable[[], Any] = self._get
        self.set: Callable[[Any], None] = self._set

    def attach(self, cursor: Cursor) -> None:
        """The calls' own cursor stays."""

    def _get(self) -> Any:
        call = self._calls.in_hand()
        value = call.writes.get(self, _REFRESHED)
        if value is _ABSENT:
            return self._empty()
        return self._give(self._read(call) if value is _REFRESHED else value)

    def _read(self, call: KeyedCall) -> Any:
        with self._calls.standing_on(call):
            value = self._still.get()
        if self._refreshes:
            call.writes.setdefault(self, _REFRESHED)
        return value

    def _set(self, value: Any) -> None:
        self._calls.in_hand().writes[self] = self._take(value)

    def clear(self) -> None:
        self._calls.in_hand().writes[self] = _ABSENT

    def folder(self, first: Callable[[Any], Any], fold: Callable[[Any, Any], Any]) -> Callable[[Any], None]:
        def add(more: Any) -> None:
            call = self._calls.in_hand()
            before = self._own(call)
            after = first(more) if before is _ABSENT else fold(before, more)
            call.writes[self] = self._take(after) if after is more else self._accept(after)  # others may have it

        return add

    def _own(self, call: KeyedCall) -> Any:
        """What a fold may change in place; _ABSENT if there is nothing."""
        value = call.writes.get(self, _REFRESHED)
        if value is _REFRESHED:
            found = self._read(call)
            value = _ABSENT if found is UNSET else self._give(found)
        return value

    def apply(self, writes: Any) -> None:
        if writes is _REFRESHED:
            self._stored.get()
        elif writes is _ABSENT:
            self._stored.clear()
        else:
            self._stored.set(writes)


class CallValue(ValueState[T]):
    def __init__(self, cell: CallCell) -> None:
        self._cell = cell

    def get(self) -> T:
        return cast(T, self._cell.get())

    def set(self, value: T) -> None:
        self._cell.set(value)

    def clear(self) -> None:
        self._cell.clear()


# ---------------------------------------------------------------------------------------------------------------- lists
class _ListWrites:
    """`cleared`: what was stored goes, and `items` alone stay; else they are appended."""

    __slots__ = ("cleared", "items", "read")

    def __init__(self) -> None:
        self.cleared = self.read = False
        self.items: list[Any] = []


class CallList(ListState[T]):
    def __init__(self, stored: Any, name: str, codec: ListCodec, calls: KeyedCalls) -> None:
        self._stored = stored
        self._still = _still(stored, calls)
        self._refreshes = self._still is not stored and stored.refreshes
        self._calls = calls
        self._take = _taker(name, codec.items)
        self._give = codec.items.copy

    def _writes(self, call: KeyedCall) -> _ListWrites:
        found: _ListWrites | None = call.writes.get(self)
        if found is None:
            found = call.writes[self] = _ListWrites()
        return found

    def append(self, value: T) -> None:
        item = self._take(value)
        self._writes(self._calls.in_hand()).items.append(item)

    def extend(self, values: Iterable[T]) -> None:
        items = list(map(self._take, values))
        self._writes(self._calls.in_hand()).items.extend(items)

    def __iter__(self) -> Iterator[T]:
        """Of the list as it is now."""
        call = self._calls.in_hand()
        own: _ListWrites | None = call.writes.get(self)
        if self._refreshes:
            own = self._writes(call)
            own.read = True
        items: list[T] = [] if own is not None and own.cleared else self._stored_items(call)
        return iter(items if own is None else items + list(map(self._give, own.items)))

    def _stored_items(self, call: KeyedCall) -> list[T]:
        with self._calls.standing_on(call):
            return list(map(self._give, self._still))

    def __len__(self) -> int:
        call = self._calls.in_hand()
        own: _ListWrites | None = call.writes.get(self)
        if own is not None and own.cleared:
            return len(own.items)
        with self._calls.standing_on(call):
            return len(self._still) + (0 if own is None else len(own.items))

    def clear(self) -> None:
        own = self._writes(self._calls.in_hand())
        own.cleared, own.items = True, []

    def apply(self, writes: _ListWrites) -> None:
        if writes.cleared:
            self._stored.clear()
        elif writes.read:
            iter(self._stored)
        self._stored.extend(writes.items)


# ----------------------------------------------------------------------------------------------------------------- maps
class _MapWrites:
    """`values` by key, _ABSENT for those deleted; `cleared`: what was stored goes; `read`: keys to be refreshed."""

    __slots__ = ("cleared", "read", "values")

    def __init__(self) -> None:
        self.cleared = False
        self.values: dict[Any, Any] = {}
        self.read: dict[Any, None] = {}


_UNTOUCHED: Final = _MapWrites()
"""Of a call that has changed nothing; never changed itself."""


class CallMap(MapState[K, V]):
    """Iterating shows the map as it was when it began, whatever the call changes meanwhile."""

    def __init__(self, stored: Any, name: str, codec: MapCodec, calls: KeyedCalls) -> None:
        self._stored = stored
        self._still = _still(stored, calls)
        self._refreshes = self._still is not stored and stored.refreshes
        self._calls = calls
        self._take_key = _taker(name, codec.keys)
        self._take = _taker(name, codec.values)
        self._give = codec.values.copy

    __hash__ = object.__hash__  # by which a call finds what it wrote

    def _own(self, call: KeyedCall) -> _MapWrites:
        return cast(_MapWrites, call.writes.get(self, _UNTOUCHED))

    def _writes(self, call: KeyedCall) -> _MapWrites:
        found: _MapWrites | None = call.writes.get(self)
        if found is None:
            found = call.writes[self] = _MapWrites()
        return found

    def _note_read(self, call: KeyedCall, key: Any) -> None:
        if self._refreshes:
            self._writes(call).read[key] = None

    # ------------------------------------------------------------------------------------------------- entry by entry
    def _find(self, key: Any) -> Any:
        """A copy of the value, or _ABSENT."""
        call = self._calls.in_hand()
        own = self._own(call)
        value = own.values.get(key, UNSET)
        if value is UNSET:
            value = _ABSENT if own.cleared else self._stored_value(call, key)
        return value if value is _ABSENT else self._give(value)

    def _stored_value(self, call: KeyedCall, key: Any) -> Any:
        with self._calls.standing_on(call):
            value = self._still.get(key, _ABSENT)
        if value is not _ABSENT:
            self._note_read(call, key)
        return value

    def __contains__(self, key: object) -> bool:
        call = self._calls.in_hand()
        own = self._own(call)
        value = own.values.get(key, UNSET)
        if value is not UNSET or own.cleared:
            return value is not UNSET and value is not _ABSENT
        with self._calls.standing_on(call):
            return key in self._still

    def __getitem__(self, key: K) -> V:
        value = self._find(key)
        if value is _ABSENT:
            raise KeyError(key)
        return cast(V, value)

    @overload
    def get(self, key: K, /) -> V | None: ...
    @overload
    def get(self, key: K, /, default: V) -> V: ...
    @overload
    def get(self, key: K, /, default: D) -> V | D: ...
    def get(self, key: K, /, default: Any = None) -> Any:
        value = self._find(key)
        return default if value is _ABSENT else value

    def __setitem__(self, key: K, value: V) -> None:
        key, value = self._take_key(key), self._take(value)
        self._writes(self._calls.in_hand()).values[key] = value

    def __delitem__(self, key: K) -> None:
        if key not in self:
            raise KeyError(key)
        self._writes(self._calls.in_hand()).values[key] = _ABSENT

    # What `MutableMapping` makes of two steps would fail for an entry that is swept between them.
    @overload
    def pop(self, key: K, /) -> V: ...
    @overload
    def pop(self, key: K, /, default: V) -> V: ...
    @overload
    def pop(self, key: K, /, default: D) -> V | D: ...
    def pop(self, key: K, /, default: Any = UNSET) -> Any:
        value = self._find(key)
        if value is not _ABSENT:
            self._writes(self._calls.in_hand()).values[key] = _ABSENT
            return value
        if default is UNSET:
            raise KeyError(key)
        return default

    def clear(self) -> None:
        own = self._writes(self._calls.in_hand())
        own.cleared, own.values = True, {}

    # ------------------------------------------------------------------------------------------------------ iterating
    def __iter__(self) -> Iterator[K]:
        return (key for key, _ in self._entries(self._calls.in_hand()))

    def __len__(self) -> int:
        call = self._calls.in_hand()
        own = self._own(call)
        added = sum(value is not _ABSENT for value in own.values.values())
        if own.cleared:
            return added
        with self._calls.standing_on(call):
            return len(self._still) + added - sum(key in self._still for key in own.values)

    def range(self, start: K | None = None, stop: K | None = None) -> Iterator[tuple[K, V]]:
        call = self._calls.in_hand()
        own = self._own(call)
        order = self._order()
        written = order.between(dict(own.values), start, stop)
        stored: Iterator[tuple[K, V]] = iter(())
        if not own.cleared:
            with self._calls.standing_on(call):
                stored = self._still.range(start, stop)
        replaced = frozenset(own.values)
        kept = (item for item in self._advanced(call, stored) if item[0] not in replaced)
        found = merge(kept, written, key=lambda item: order.bounds(item[0], None)[0])
        return self._giving(call, (item for item in found if item[1] is not _ABSENT))

    def _current(self) -> dict[K, V]:
        """What reads as a dict."""
        return cast(dict[K, V], MapView(self))

    def pairs(self) -> Iterator[tuple[K, V]]:
        call = self._calls.in_hand()
        return self._giving(call, self._entries(call))

    def _entries(self, call: KeyedCall) -> Iterator[tuple[Any, Any]]:
        """As the call sees them, not copied: first what is stored, in its order."""
        own = self._own(call)
        values = dict(own.values)
        if own.cleared:
            return ((key, value) for key, value in values.items() if value is not _ABSENT)
        with self._calls.standing_on(call):
            items = self._still._current().items()
            # A dict may change meanwhile, by a sweep, say. What is not in memory is read from the disk bit by bit.
            stored = list(items) if _in_memory(self._stored) else items
        return self._merged(call, iter(stored), values)

    def _merged(
        self, call: KeyedCall, stored: Iterator[tuple[Any, Any]], own: dict[Any, Any]
    ) -> Iterator[tuple[Any, Any]]:
        for key, value in self._advanced(call, stored):
            found = own.pop(key, value)
            if found is not _ABSENT:
                yield key, found
        yield from ((key, value) for key, value in own.items() if value is not _ABSENT)

    def _advanced(self, call: KeyedCall, stored: Iterator[Any]) -> Iterator[Any]:
        """One step after another, each for the call's key, while it lives."""
        while True:
            self._calls.check_alive(call)
            with self._calls.standing_on(call):
                item = next(stored, None)
            if item is None:
                return
            yield item

    def _giving(self, call: KeyedCall, entries: Iterable[tuple[Any, Any]]) -> Iterator[tuple[K, V]]:
        for key, value in entries:
            self._note_read(call, key)
            yield key, self._give(value)

    def __eq__(self, other: object) -> bool:
        mine = dict(self.pairs())
        return mine == (dict(other.pairs()) if isinstance(other, CallMap) else other)

    # ---------------------------------------------------------------------------------------------------- taking effect
    def apply(self, writes: _MapWrites) -> None:
        stored = self._stored
        if writes.cleared:
            stored.clear()
        for key in writes.read:
            stored.get(key)
        for key, value in writes.values.items():
            if value is _ABSENT:
                stored.pop(key, None)
            else:
                stored[key] = value


def _in_memory(state: Any) -> bool:
    """Whether what a map holds for the key in hand is a dict."""
    kept = state.stamped if isinstance(state, TtlMap) else state
    return isinstance(kept._current(), dict | MappingProxyType)
