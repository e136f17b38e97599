"""What users declare: `ValueState`, `ListState`, `MapState`, as class attributes of a keyed operator; and, on any
operator, `OperatorListState` and `UnionListState`, which belong to no key.

A declaration holds no state. The runtime asks the backend to `bind` it and puts what it gets, an instance of the same
class, into the operator's `__dict__`, where it shadows the declaration. Using a declaration itself raises
StateAccessError.
"""

import datetime as dt
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, MutableMapping, ValuesView
from typing import Any, ClassVar, Final, Generic, Literal, NoReturn, TypeVar, overload

from streamactors.errors import InvalidDataflow, StateAccessError

T = TypeVar("T")
U = TypeVar("U")
K = TypeVar("K")
V = TypeVar("V")


class Ttl:
    """How long an entry lives after it was last written, or last written or read."""

    def __init__(self, after: dt.timedelta, *, refresh_on: Literal["write", "read-write"] = "write") -> None:
        if after <= dt.timedelta(0):
            raise InvalidDataflow(f"Ttl(after={after!r}): give a time above zero")
        if refresh_on not in ("write", "read-write"):
            raise InvalidDataflow(f"Ttl(refresh_on={refresh_on!r}): 'write' or 'read-write'")
        self.after = after
        self.refresh_on = refresh_on


class Declaration:
    """The common part: a name, and the class that declares it."""

    name: str = ""
    owner: str = ""
    ttl: Ttl | None = None
    keyed: ClassVar[bool] = True
    """Bound to the key of the record in hand, and kept by the keyed backend; else it belongs to the subtask."""

    def __set_name__(self, owner: type, name: str) -> None:
        if not self.name:
            self.name, self.owner = name, owner.__qualname__

    def _set_ttl(self, ttl: Ttl | None) -> None:
        if ttl is not None:
            raise InvalidDataflow(
                f"{type(self).__name__}(ttl=…): time to live is not available in this version; clear the state by a "
                "record or a timer of your own"
            )

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
        """The value, or the default if it was never set or was cleared (a default_factory is called each time)."""
        self._unbound()

    def set(self, value: T) -> None:
        """Raises UnserialisableValue for a value of another class than the declared one."""
        self._unbound()

    def clear(self) -> None:
        self._unbound()


class ListState(Declaration, Generic[T]):
    """A list per key."""

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
    """A list per subtask, without a key: usable from `open` on, on any operator.

    A restore at the same parallelism gives each subtask its own list back; at another one the items of all subtasks,
    in order, are dealt out anew: contiguous, and as evenly as can be.
    """


class UnionListState(_SubtaskListState[T]):
    """A list per subtask, without a key: usable from `open` on, on any operator.

    After a restore every subtask has the items of all, in the order of the subtasks. Keep what is yours in `open`: what
    stays in the list is stored again by every subtask.
    """


class MapState(Declaration, MutableMapping[K, V]):
    """A dict per key."""

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


def _refuse_made_in_init(operator: object, cls: type) -> None:
    for name, value in getattr(operator, "__dict__", {}).items():
        if isinstance(value, Declaration) and not value.name and not isinstance(operator, type):
            raise InvalidDataflow(
                f"{cls.__qualname__}.{name} is made in __init__: declare state as a class attribute, which names it"
            )


def stand_in(bound: Declaration, declaration: Declaration, name: str) -> None:
    """Give a bound state the declaration's attributes."""
    vars(bound).update(vars(declaration), name=name)
