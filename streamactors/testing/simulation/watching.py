"""Finds stored values that are changed in place: by comparing encodings of what `ValueState.get` has handed out.

On the heap such a change is kept, and is in some snapshots and not in others; on other backends it is lost. Elements of
`ListState` and values of `MapState` are not watched.
"""

from typing import Any, Final

from streamactors.errors import StateAccessError, StreamactorsError
from streamactors.state.descriptors import ValueState, declared_states
from streamactors.state.serialisation.tagged import TaggedCodec

FROZEN: Final = frozenset({int, float, bool, str, bytes, type(None)})


class StateWatch:
    """Over the states of one operator, once they are bound."""

    def __init__(self, uid: str, operator: Any) -> None:
        self._uid = uid
        self._encode = TaggedCodec().encode
        self._handed_out: dict[str, tuple[Any, bytes | None]] = {}
        self._kept: dict[tuple[str, Any], bytes | None] = {}
        self._key: Any = None
        for name, declaration in declared_states(operator).items():
            if isinstance(declaration, ValueState):
                self._watch(name, getattr(operator, name))

    def _watch(self, name: str, state: Any) -> None:
        get, set_ = state.get, state.set

        def watched_get() -> Any:
            value = get()
            if type(value) not in FROZEN and name not in self._handed_out:
                self._compare(name, self._kept.get((name, self._key)), value)
                self._handed_out[name] = value, self._encoded(value)
            return value

        def watched_set(value: Any) -> None:
            set_(value)
            self._handed_out[name] = value, self._encoded(value)

        state.get, state.set = watched_get, watched_set

    def begin(self, key: Any) -> None:
        """A record of this key comes."""
        self._key = key
        self._handed_out.clear()

    def end(self) -> None:
        """It is done; raises StateAccessError."""
        for name, (value, encoded) in self._handed_out.items():
            self._compare(name, encoded, value)
            self._kept[name, self._key] = encoded

    def _compare(self, name: str, before: bytes | None, value: Any) -> None:
        if before is not None and self._encoded(value) != before:
            raise StateAccessError(
                f"operator {self._uid!r}, state {name!r}: what key {self._key!r} holds was changed in place, without "
                "set; such a change is in some snapshots and not in others: set the new value"
            )

    def _encoded(self, value: Any) -> bytes | None:
        try:
            return None if type(value) in FROZEN else self._encode(value)
        except StreamactorsError:
            return None  # only its own serializer knows how
