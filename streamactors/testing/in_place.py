"""Finds stored values that were changed in place, without `set`: by comparing encodings.

Invariant: for every key, `_expected` holds the encoding of each stored value as it was when it was last written (or
restored). What differs between two records was changed behind the back of the state. Such a change is in some snapshots
and not in others on the heap, and lost on RocksDB.

Watched are all keyed states. Of an `AggregatingState` it is the result, once `get` has given it out: it may be the
accumulator itself. What has expired is no more looked at. A default that was given out and changed is stored nowhere,
and is found as well.
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
_CODEC: Final = TaggedCodec()

Encoded = bytes | None


def _encoded(value: Any) -> Encoded:
    """None: it can't be changed in place, or only its own serializer knows how."""
    try:
        return None if type(value) in _FROZEN else _CODEC.encode(value)
    except StreamactorsError:
        return None


def _is(value: Any, expected: Encoded) -> bool:
    """Whether this is its encoding, as far as that is known. A copy of a set may have another order."""
    encoded = _encoded(value)
    return expected is None or encoded == expected or (encoded is not None and _decoded_equal(encoded, expected))


def _decoded_equal(one: bytes, other: bytes) -> bool:
    try:
        return bool(_CODEC.decode(one) == _CODEC.decode(other))
    except (StreamactorsError, ValueError):  # not comparable, as arrays are not
        return False


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
                self._check_default(name, watched, key)
                if watched.knows(key):
                    self._check(name, watched, key)

    def _check_default(self, name: str, watched: "_Watched", key: Any) -> None:
        if key in watched.defaults and not _is(*watched.defaults.pop(key)):
            raise StateAccessError(
                f"operator {self._uid!r}, state {name!r}: the default that key {key!r} was given was changed, without "
                "set; such a change is stored nowhere: set what is to be stored"
            )

    def _check(self, name: str, watched: "_Watched", key: Any) -> None:
        group = key_group(key, self._max_parallelism)
        if group not in self._backend.groups or not watched.differs(key, self._backend.query(name, key, group)):
            return
        if not self._holds(name, key):  # it has expired since
            watched.forget(key)
            return
        watched.begin(key, self._backend.query(name, key, group))
        raise StateAccessError(
            f"operator {self._uid!r}, state {name!r}: what key {key!r} holds was changed in place, without "
            "set; such a change is in some snapshots and not in others: change a copy, and set that"
        )

    def _holds(self, name: str, key: Any) -> bool:
        return any(key == held for _, held, _ in self._backend.scan(name))


def _watched_by(declaration: Declaration) -> "type[_Watched] | None":
    if not declaration.keyed:
        return None
    match declaration:
        case ValueState() | ReducingState():
            return _Value
        case ListState():
            return _List
        case MapState():
            return _Map
        case AggregatingState():
            return _Result
    return None


class _Watched:
    """One state. `key` gives the one in hand."""

    def __init__(self, state: Any, key: Callable[[], Any]) -> None:
        self._key = key
        self._expected: dict[Any, Any] = {}
        self.defaults: dict[Any, tuple[Any, Encoded]] = {}
        """Those given out since the last check, and their encodings."""
        self.lay_over(state)

    def lay_over(self, state: Any) -> None:
        """See every write from now on."""

    def keys(self) -> list[Any]:
        return list(self._expected | self.defaults)

    def knows(self, key: Any) -> bool:
        return key in self._expected

    def forget(self, key: Any) -> None:
        self._expected.pop(key, None)
        self.defaults.pop(key, None)

    def begin(self, key: Any, content: Any) -> None:
        """This is how it should be."""

    def differs(self, key: Any, content: Any) -> bool:
        """From how it should be, as far as that is known."""
        return False


class _Value(_Watched):
    def lay_over(self, state: Any) -> None:
        for name in {"set", "add", "clear"} & set(dir(state)):
            vars(state)[name] = self._writing(state, getattr(state, name))
        if isinstance(state, ValueState):
            vars(state)["get"] = self._reading(state.get)

    def _reading(self, read: Callable[[], Any]) -> Callable[[], Any]:
        def given() -> Any:
            value, key = read(), self._key()
            if not self.knows(key) and key not in self.defaults and (encoded := _encoded(value)) is not None:
                self.defaults[key] = value, encoded
            return value

        return given

    def _writing(self, state: Any, write: Callable[..., None]) -> Callable[..., None]:
        def wrote(*args: Any) -> None:
            write(*args)
            self.forget(self._key())
            if args:
                self.begin(self._key(), state.get())

        return wrote

    def begin(self, key: Any, content: Any) -> None:
        self._expected[key] = _encoded(content)
        self.defaults.pop(key, None)

    def differs(self, key: Any, content: Any) -> bool:
        return not _is(content, self._expected.get(key))


class _Result(_Watched):
    """`_expected`: of the result, since it was given out."""

    def lay_over(self, state: Any) -> None:
        get = state.get
        for name in ("add", "clear"):
            vars(state)[name] = self._writing(getattr(state, name))

        def given() -> Any:
            result = get()
            self._expected[self._key()] = _encoded(result)
            return result

        vars(state)["get"] = given

    def _writing(self, write: Callable[..., None]) -> Callable[..., None]:
        def wrote(*args: Any) -> None:
            write(*args)
            self.forget(self._key())

        return wrote

    def begin(self, key: Any, content: Any) -> None:
        self.forget(key)

    def differs(self, key: Any, content: Any) -> bool:
        return not _is(content, self._expected.get(key))


class _List(_Watched):
    """`_expected`: of each item. Those that expire are the first ones."""

    def lay_over(self, state: Any) -> None:
        cls = type(state)
        lifetime = getattr(state, "_lifetime", None)
        self._still = state if lifetime is None else state.still(lifetime.now)

        def append(self_: Any, value: Any) -> None:
            cls.append(self_, value)
            self._grown(1)

        def extend(self_: Any, values: Iterable[Any]) -> None:
            items = list(values)
            cls.extend(self_, items)
            self._grown(len(items))

        def clear(self_: Any) -> None:
            cls.clear(self_)
            self._expected.pop(self._key(), None)

        _overlay(state, {"append": append, "extend": extend, "clear": clear})

    def _grown(self, more: int) -> None:
        if more:
            self._expected.setdefault(self._key(), []).extend(map(_encoded, list(self._still)[-more:]))

    def begin(self, key: Any, content: Any) -> None:
        self._expected[key] = list(map(_encoded, content))

    def differs(self, key: Any, content: Any) -> bool:
        pairs = zip(reversed(self._expected.get(key, ())), reversed(content), strict=False)
        return not all(_is(item, before) for before, item in pairs)


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
        return not all(_is(value, expected.get(entry)) for entry, value in content.items())


def _overlay(state: Any, methods: dict[str, Callable[..., None]]) -> None:
    """Python finds `state[k] = v` by the class: so it gets one of its own."""
    state.__class__ = type(f"Watched{type(state).__name__}", (type(state),), methods)
