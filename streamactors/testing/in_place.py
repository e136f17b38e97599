"""Finds stored values that were changed in place, without `set`: by comparing encodings.

Invariant: for every key, `_expected` holds the encoding of each stored value as it was when it was last written (or
restored). What differs between two records was changed behind the back of the state. Such a change is in some snapshots
and not in others on the heap, and lost on RocksDB.

Watched are `ValueState`, `ReducingState`, `ListState` and `MapState` without a time to live.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from streamactors.errors import StateAccessError, StreamactorsError
from streamactors.state.backend import KeyedBackend
from streamactors.state.descriptors import (
    AggregatingState,
    Declaration,
    ListState,
    MapState,
    ReducingState,
    ValueState,
    declared_states,
)
from streamactors.state.key_groups import key_group
from streamactors.state.serialisation.tagged import TaggedCodec

_FROZEN: Final = frozenset({int, float, bool, str, bytes, type(None)})
_ENCODE: Final = TaggedCodec().encode

Encoded = bytes | None


def _encoded(value: Any) -> Encoded:
    """None: it can't be changed in place, or only its own serializer knows how."""
    try:
        return None if type(value) in _FROZEN else _ENCODE(value)
    except StreamactorsError:
        return None


class InPlaceWatch:
    """Over the keyed states of one operator of one subtask, once they are bound and restored."""

    def __init__(self, uid: str, operator: Any, backend: KeyedBackend, max_parallelism: int) -> None:
        self._uid = uid
        self._backend = backend
        self._max_parallelism = max_parallelism
        self._watched: dict[str, _Watched] = {}
        for attribute, declaration in declared_states(operator).items():
            name = declaration.stored or attribute
            if (make := _watched_by(declaration)) is not None:
                self._watched[name] = make(getattr(operator, attribute), lambda: backend.cursor.key)
                for _, key, content in backend.scan(name):
                    self._watched[name].begin(key, content)

    def check(self, keys: Iterable[Any] | None = None) -> None:
        """Between two records; None: all keys. Raises StateAccessError."""
        for name, watched in self._watched.items():
            for key in watched.keys() if keys is None else keys:
                group = key_group(key, self._max_parallelism)
                if group in self._backend.groups and watched.differs(key, self._backend.query(name, key, group)):
                    watched.begin(key, self._backend.query(name, key, group))
                    raise StateAccessError(
                        f"operator {self._uid!r}, state {name!r}: what key {key!r} holds was changed in place, without "
                        "set; such a change is in some snapshots and not in others: change a copy, and set that"
                    )


def _watched_by(declaration: Declaration) -> "type[_Watched] | None":
    if not declaration.keyed or declaration.ttl is not None:
        return None
    match declaration:
        case ValueState() | ReducingState():
            return _Value
        case ListState():
            return _List
        case MapState():
            return _Map
        case AggregatingState():
            return None  # what is handed out is a result, not what is stored
    return None


class _Watched:
    """One state. `key` gives the one in hand."""

    def __init__(self, state: Any, key: Callable[[], Any]) -> None:
        self._key = key
        self._expected: dict[Any, Any] = {}
        self.lay_over(state)

    def lay_over(self, state: Any) -> None:
        """See every write from now on."""

    def keys(self) -> list[Any]:
        return list(self._expected)

    def begin(self, key: Any, content: Any) -> None:
        """This is how it should be."""

    def differs(self, key: Any, content: Any) -> bool:
        """From how it should be, as far as that is known."""
        return False


class _Value(_Watched):
    def lay_over(self, state: Any) -> None:
        for name in {"set", "add", "clear"} & set(dir(state)):
            vars(state)[name] = self._writing(state, getattr(state, name))

    def _writing(self, state: Any, write: Callable[..., None]) -> Callable[..., None]:
        def wrote(*args: Any) -> None:
            write(*args)
            self._expected.pop(self._key(), None)
            if args:
                self.begin(self._key(), state.get())

        return wrote

    def begin(self, key: Any, content: Any) -> None:
        self._expected[key] = _encoded(content)

    def differs(self, key: Any, content: Any) -> bool:
        expected = self._expected.get(key)
        return expected is not None and _encoded(content) != expected


class _List(_Watched):
    """`_expected`: of each item."""

    def lay_over(self, state: Any) -> None:
        cls = type(state)

        def append(self_: Any, value: Any) -> None:
            cls.append(self_, value)
            self._grown(self_)

        def extend(self_: Any, values: Iterable[Any]) -> None:
            cls.extend(self_, values)
            self._grown(self_)

        def clear(self_: Any) -> None:
            cls.clear(self_)
            self._expected.pop(self._key(), None)

        _overlay(state, {"append": append, "extend": extend, "clear": clear})

    def _grown(self, state: Any) -> None:
        known = self._expected.setdefault(self._key(), [])
        known += map(_encoded, list(state)[len(known) :])

    def begin(self, key: Any, content: Any) -> None:
        self._expected[key] = list(map(_encoded, content))

    def differs(self, key: Any, content: Any) -> bool:
        pairs = zip(self._expected.get(key, ()), content, strict=False)
        return any(before not in (None, _encoded(item)) for before, item in pairs)


class _Map(_Watched):
    """`_expected`: of each entry, by its key."""

    def lay_over(self, state: Any) -> None:
        cls = type(state)

        def set_item(self_: Any, entry: Any, value: Any) -> None:
            cls.__setitem__(self_, entry, value)
            self._expected.setdefault(self._key(), {})[entry] = _encoded(cls.__getitem__(self_, entry))

        def del_item(self_: Any, entry: Any) -> None:
            cls.__delitem__(self_, entry)
            self._expected.get(self._key(), {}).pop(entry, None)

        def clear(self_: Any) -> None:
            cls.clear(self_)
            self._expected.pop(self._key(), None)

        _overlay(state, {"__setitem__": set_item, "__delitem__": del_item, "clear": clear})

    def begin(self, key: Any, content: Mapping[Any, Any]) -> None:
        self._expected[key] = {entry: _encoded(value) for entry, value in content.items()}

    def differs(self, key: Any, content: Mapping[Any, Any]) -> bool:
        expected = self._expected.get(key, {})
        return any(expected.get(entry) not in (None, _encoded(value)) for entry, value in content.items())


def _overlay(state: Any, methods: dict[str, Callable[..., None]]) -> None:
    """Python finds `state[k] = v` by the class: so it gets one of its own."""
    state.__class__ = type(f"Watched{type(state).__name__}", (type(state),), methods)
