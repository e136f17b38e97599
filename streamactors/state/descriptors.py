"""What users declare: `ValueState`, `ListState`, `MapState`, `ReducingState`, `AggregatingState`, as class attributes
of a keyed operator; and, on any operator, `OperatorListState` and `UnionListState`, which belong to no key.

A declaration holds no state. The runtime asks the backend to `bind` it and puts what it gets, an instance of the same
class, into the operator's `__dict__`, where it shadows the declaration. Using a declaration itself raises
StateAccessError.
"""

import datetime as dt
import inspect
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, MutableMapping, ValuesView
from typing import Any, ClassVar, Final, Generic, Literal, NoReturn, TypeVar, overload

from streamactors.errors import InvalidDataflow, StateAccessError
from streamactors.state.aggregates import Aggregate, accumulator_type, refuse_no_aggregate
from streamactors.state.key_order import KeyOrder

T = TypeVar("T")
U = TypeVar("U")
R = TypeVar("R")
K = TypeVar("K")
V = TypeVar("V")
DeclarationT = TypeVar("DeclarationT", bound="Declaration")


_MILLISECOND: Final = dt.timedelta(milliseconds=1)


class Ttl:
    """How long an entry lives after it was last written, or last written or read; in processing time.

    `after`: from a millisecond up. Of a list each item has its own time, and of a map each entry.
    """

    def __init__(self, after: dt.timedelta, *, refresh_on: Literal["write", "read-write"] = "write") -> None:
        _refuse_senseless(after)
        if refresh_on not in ("write", "read-write"):
            raise InvalidDataflow(f"Ttl(refresh_on={refresh_on!r}): 'write' or 'read-write'")
        self.after = after
        self.refresh_on = refresh_on


def _refuse_senseless(after: Any) -> None:
    if not isinstance(after, dt.timedelta) or after < _MILLISECOND:
        raise InvalidDataflow(f"Ttl(after={after!r}): give a timedelta above zero, at least a millisecond")


class Declaration:
    """The common part: a name, and the class that declares it."""

    name: str = ""
    owner: str = ""
    stored: str = ""
    """What it is called where it is stored, if not as the attribute: see `stored_as`."""
    ttl: Ttl | None = None
    keyed: ClassVar[bool] = True
    """Bound to the key of the record in hand, and kept by the keyed backend; else it belongs to the subtask."""

    def __set_name__(self, owner: type, name: str) -> None:
        if not self.name:
            self.name, self.owner = name, owner.__qualname__

    def _set_ttl(self, ttl: Ttl | None) -> None:
        if ttl is None or isinstance(ttl, Ttl):
            self.ttl = ttl
        else:
            raise InvalidDataflow(f"{type(self).__name__}(ttl={ttl!r}): give a Ttl, as in ttl=sa.Ttl(after=…)")

    def _unbound(self) -> NoReturn:
        where = f" {self.name!r}, declared on class {self.owner}," if self.name else ""
        when = "inside process of a running keyed operator" if self.keyed else "inside a running operator, from open on"
        raise StateAccessError(
            f"{type(self).__name__}{where} holds nothing by itself: use it as self.{self.name or '<name>'}, {when}"
        )


class _NoDefault:
    """Tells "no default given" from `default=None` where they differ."""

    def __repr__(self) -> str:
        return "<no default>"


NO_DEFAULT: Final = _NoDefault()


class ValueState(Declaration, Generic[T]):
    """One value per key, bound to the current key by the runtime.

    Changed by `set` only: changing what `get` returned in place is a user error, which the test harness detects. A bare
    `object()` may be the default whatever the type, to tell "never set" from every value.
    """

    @overload
    def __init__(self: "ValueState[U | None]", type: type[U], *, ttl: Ttl | None = None) -> None: ...
    @overload
    def __init__(self, type: type[T], *, default: T, ttl: Ttl | None = None) -> None: ...
    @overload
    def __init__(self, type: type[T], *, default_factory: Callable[[], T], ttl: Ttl | None = None) -> None: ...
    @overload
    def __init__(self, type: Any, *, default: T, ttl: Ttl | None = None) -> None: ...
    def __init__(
        self,
        type: Any,
        *,
        default: Any = NO_DEFAULT,
        default_factory: Callable[[], Any] | None = None,
        ttl: Ttl | None = None,
    ) -> None:
        if default is not NO_DEFAULT and default_factory is not None:
            raise InvalidDataflow("ValueState: give default or default_factory, not both")
        self._set_ttl(ttl)
        self.type = type
        self.default = None if default is NO_DEFAULT else default
        self.default_factory = default_factory

    @property
    def nullable(self) -> bool:
        """Whether None may be stored beside values of the type: where it is the default, None has to be storable."""
        return self.default is None and self.default_factory is None

    def get(self) -> T:
        """The value, or the default if it was never set, was cleared or has expired (a default_factory is called each
        time)."""
        self._unbound()

    def set(self, value: T) -> None:
        """Raises UnserialisableValue for a value of another class than the declared one."""
        self._unbound()

    def clear(self) -> None:
        self._unbound()


class ListState(Declaration, Generic[T]):
    """A list per key.

    With a ttl, each item expires by itself; `refresh_on="read-write"` makes iterating over the list write all of it.
    """

    def __init__(self, type: type[T], *, ttl: Ttl | None = None) -> None:
        self._set_ttl(ttl)
        self.type: Any = type

    def append(self, value: T) -> None:
        """Raises UnserialisableValue for a value of another class than the declared one."""
        self._unbound()

    def extend(self, values: Iterable[T]) -> None:
        self._unbound()

    def __iter__(self) -> Iterator[T]:
        self._unbound()

    def __len__(self) -> int:
        return self._unbound()

    def clear(self) -> None:
        self._unbound()


class _SubtaskListState(ListState[T]):
    keyed = False

    def _set_ttl(self, ttl: Ttl | None) -> None:
        if ttl is not None:
            raise InvalidDataflow(f"{type(self).__name__}(ttl=…): only the state of a key has a time to live")


class OperatorListState(_SubtaskListState[T]):
    """A list per subtask, without a key: usable from `open` on, on any operator but an AsyncKeyedOperator.

    A restore at the same parallelism gives each subtask its own list back; at another one the items of all subtasks,
    in order, are dealt out anew: contiguous, and as evenly as can be.
    """


class UnionListState(_SubtaskListState[T]):
    """A list per subtask, without a key: usable from `open` on, on any operator but an AsyncKeyedOperator.

    After a restore every subtask has the items of all, in the order of the subtasks. Keep what is yours in `open`: what
    stays in the list is stored again by every subtask.
    """


_NONE: Final[Any] = object()


class MapState(Declaration, MutableMapping[K, V]):
    """A dict per key.

    With a ttl, each entry expires by itself, and `len` has to look at all of them. Reading a value counts as reading
    (`[]`, `get`, `values`, `items`, `range`); `in`, `len` and the keys alone do not. Copy it by `dict(state.items())`:
    `dict(state)` looks up one key after the other, and one may expire meanwhile.
    """

    def __init__(self, key_type: type[K], value_type: type[V], *, ttl: Ttl | None = None) -> None:
        self._set_ttl(ttl)
        self.key_type: Any = key_type
        self.value_type: Any = value_type

    def __getitem__(self, key: K) -> V:
        self._unbound()

    def __setitem__(self, key: K, value: V) -> None:
        """Raises UnserialisableValue for a key or value of another class than the declared one."""
        self._unbound()

    def __delitem__(self, key: K) -> None:
        self._unbound()

    def __iter__(self) -> Iterator[K]:
        self._unbound()

    def __len__(self) -> int:
        return self._unbound()

    def range(self, start: K | None = None, stop: K | None = None) -> Iterator[tuple[K, V]]:
        """Entries from `start` up to (not with) `stop`, in the order of their keys; None: without that bound.

        RocksDB reads those alone; the heap sorts them. Defined for keys that are numbers, strings, bytes, dates,
        datetimes (those with a zone by the instant), durations, UUIDs, and tuples of these: others have no order, and
        raise StateAccessError, as do bounds beyond 64 bits.
        """
        return self._order().between(self._current(), start, stop)

    def folder(
        self, first: Callable[[Any], V], fold: Callable[[V, Any], V], *, in_place: bool
    ) -> Callable[[K, Any], bool]:
        """A function of an entry's key and of what goes into it, which returns whether the entry is new: its value is
        `first(more)` then, else `fold(value, more)`. `in_place`: `fold` may change the value that it gets."""

        def add(key: K, more: Any) -> bool:
            value: Any = self.get(key, _NONE)
            if value is _NONE:
                self[key] = first(more)
                return True
            if in_place:
                self[key] = value  # so that a snapshot which is still to be written keeps it as it is now
            self[key] = fold(value, more)
            return False

        return add

    def _order(self) -> KeyOrder:
        found: KeyOrder | None = vars(self).get("_key_order")
        if found is None:
            found = vars(self)["_key_order"] = KeyOrder(f"state {self.name!r}", self.key_type)
        return found

    # A declaration stands in sets and is compared by identity; bound state is compared as the mapping that it is.
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    # Iterating over a view must not look every key up again.
    def keys(self) -> KeysView[K]:
        return _Keys(self)

    def values(self) -> ValuesView[V]:
        return _Values(self)

    def items(self) -> ItemsView[K, V]:
        return _Items(self)

    def _current(self) -> dict[K, V]:
        """The current key's entries, for reading only."""
        self._unbound()


class ReducingState(Declaration, Generic[T]):
    """One value per key, into which others are folded by `fn(before, value)`: a plain function, since it may run for
    every record without a pause."""

    def __init__(self, type: type[T], fn: Callable[[T, T], T], *, ttl: Ttl | None = None) -> None:
        self._set_ttl(ttl)
        _refuse_no_function(fn)
        self.type: Any = type
        self.fn = fn

    def add(self, value: T) -> None:
        """The first value is kept as it is. Raises UnserialisableValue for a result of another class than the declared
        one."""
        self._unbound()

    def get(self) -> T | None:
        """None if nothing was added, or all of it has been cleared or has expired."""
        self._unbound()

    def clear(self) -> None:
        self._unbound()


def _refuse_no_function(fn: Any) -> None:
    if not callable(fn) or inspect.iscoroutinefunction(fn):
        raise InvalidDataflow(f"ReducingState(…, {fn!r}): give a plain function of two values")


class AggregatingState(Declaration, Generic[T, R]):
    """An accumulator per key, into which values are added, and from which a result is read: see `Aggregate`."""

    def __init__(self, aggregate: Aggregate[T, Any, R], *, ttl: Ttl | None = None) -> None:
        self._set_ttl(ttl)
        refuse_no_aggregate(aggregate, "AggregatingState")
        self.aggregate = aggregate
        self.type: Any = accumulator_type(aggregate)

    def add(self, value: T) -> None:
        """Raises UnserialisableValue for an accumulator of another class than the declared one."""
        self._unbound()

    def get(self) -> R:
        """The result; of an empty accumulator if nothing was added, or all of it has been cleared or has expired."""
        self._unbound()

    def clear(self) -> None:
        self._unbound()


class _Keys(KeysView[K]):
    _mapping: MapState[K, Any]

    def __iter__(self) -> Iterator[K]:
        return iter(self._mapping._current())


class _Values(ValuesView[V]):
    _mapping: MapState[Any, V]

    def __iter__(self) -> Iterator[V]:
        return iter(self._mapping._current().values())


class _Items(ItemsView[K, V]):
    _mapping: MapState[K, V]

    def __iter__(self) -> Iterator[tuple[K, V]]:
        return iter(self._mapping._current().items())


def declared_states(operator: object) -> dict[str, Declaration]:
    """What an operator (or its class) declares, by attribute name, base classes first.

    Raises InvalidDataflow for state that is made in `__init__`, or declared under two names.
    """
    cls = operator if isinstance(operator, type) else type(operator)
    found: dict[str, Declaration] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            found.pop(name, None)  # a subclass may replace what its base declares
            if isinstance(value, Declaration):
                found[name] = value
    _refuse_shared(found, cls)
    _refuse_made_in_init(operator, cls)
    return found


def _refuse_shared(found: dict[str, Declaration], cls: type) -> None:
    names: dict[int, str] = {}
    for name, declaration in found.items():
        other = names.setdefault(id(declaration), name)
        if other != name:
            raise InvalidDataflow(
                f"{cls.__qualname__} declares one state under two names, {other!r} and {name!r}: make two"
            )
    stored: dict[str, str] = {}
    for name, declaration in found.items():
        other = stored.setdefault(declaration.stored or name, name)
        if other != name:
            raise InvalidDataflow(
                f"{cls.__qualname__} stores {other!r} and {name!r} both as {declaration.stored or name!r}: "
                "change one stored_as"
            )


def _refuse_made_in_init(operator: object, cls: type) -> None:
    for name, value in getattr(operator, "__dict__", {}).items():
        if isinstance(value, Declaration) and not value.name and not isinstance(operator, type):
            raise InvalidDataflow(
                f"{cls.__qualname__}.{name} is made in __init__: declare state as a class attribute, which names it"
            )


def stored_as(name: str, state: DeclarationT) -> DeclarationT:
    """A state whose attribute was renamed, under the name that checkpoints know it by:
    `amount = stored_as("total", ValueState(float, default=0.0))`. Queries, too, find it by that name."""
    if not name or name.startswith("@"):  # which is for what belongs to the runtime
        raise InvalidDataflow(f"stored_as({name!r}, …): give the name under which the state is stored")
    if name.startswith("@"):
        raise InvalidDataflow(
            f"stored_as({name!r}, …): names that begin with @ are kept for what is stored beside state"
        )
    state.stored = name
    return state


def stand_in(bound: Declaration, declaration: Declaration, name: str) -> None:
    """Give a bound state the declaration's attributes. What is bound already may be the declaration of another."""
    declared = vars(declaration).get("_declared", declaration)
    vars(bound).update(vars(declared), name=name, _declared=declared)
