"""A map state read as a dict, without copying it."""

from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from typing import Generic, Protocol, TypeVar, cast

K = TypeVar("K")
V = TypeVar("V")
V_co = TypeVar("V_co", covariant=True)


class Readable(Protocol[K, V_co]):
    def __getitem__(self, key: K) -> V_co: ...
    def __iter__(self) -> Iterator[K]: ...
    def __len__(self) -> int: ...
    def pairs(self) -> Iterator[tuple[K, V_co]]:
        """Cheaper than to look each key up."""


class MapView(Mapping[K, V], Generic[K, V]):
    """Of a map state, for reading."""

    def __init__(self, state: Readable[K, V]) -> None:
        self._state = state

    def __getitem__(self, key: K) -> V:
        return self._state[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)

    def values(self) -> ValuesView[V]:
        return cast(ValuesView[V], (value for _, value in self._state.pairs()))

    def items(self) -> ItemsView[K, V]:
        return cast(ItemsView[K, V], self._state.pairs())
