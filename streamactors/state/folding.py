"""`ReducingState` and `AggregatingState`, over the value that a backend keeps per key: one closure per record, which
reaches into the backend's table once."""

from collections.abc import Callable
from typing import Any, TypeVar

from streamactors.state.aggregates import Aggregate
from streamactors.state.backend import Cursor
from streamactors.state.descriptors import AggregatingState, ReducingState
from streamactors.state.ttl import UNSET, ValueCell

T = TypeVar("T")
R = TypeVar("R")


def _itself(value: Any) -> Any:
    return value


class BoundReducing(ReducingState[T]):
    def __init__(self, cell: ValueCell, fn: Callable[[T, T], T]) -> None:
        self._cell = cell
        self.fn = fn
        self._lay()

    @property
    def cell(self) -> ValueCell:
        """What it is kept in."""
        return self._cell

    def attach(self, cursor: Cursor) -> None:
        self._cell.attach(cursor)
        self._lay()

    def _lay(self) -> None:
        vars(self)["add"] = self._cell.folder(_itself, self.fn)

    def get(self) -> T | None:
        value = self._cell.get()
        return None if value is UNSET else value

    def clear(self) -> None:
        self._cell.clear()


class BoundAggregating(AggregatingState[T, R]):
    def __init__(self, cell: ValueCell, aggregate: Aggregate[T, Any, R]) -> None:
        self._cell = cell
        self.aggregate = aggregate
        self._lay()

    @property
    def cell(self) -> ValueCell:
        """What it is kept in."""
        return self._cell

    def attach(self, cursor: Cursor) -> None:
        self._cell.attach(cursor)
        self._lay()

    def _lay(self) -> None:
        create, add = self.aggregate.create, self.aggregate.add
        vars(self)["add"] = self._cell.folder(lambda value: add(create(), value), add)

    def get(self) -> R:
        accumulator = self._cell.get()
        return self.aggregate.result(self.aggregate.create() if accumulator is UNSET else accumulator)

    def clear(self) -> None:
        self._cell.clear()
