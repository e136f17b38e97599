"""What all state without a key has in common: a store for each, and what a snapshot holds of it."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from streamactors.errors import (
    CorruptCheckpoint,
    StateAccessError,
    StreamactorsError,
    UnserialisableValue,
)
from streamactors.state.serialisation.schemas import Schema
from streamactors.state.serialisation.serializer import Serializer


@dataclass(frozen=True, slots=True)
class ListBlock:
    """Consecutive items of one state. A restore gives those of a `union` to every subtask, those of a `broadcast` map,
    of which each subtask has a copy, to one subtask or several."""

    state: str
    union: bool
    items: int
    data: bytes
    broadcast: bool = False


class UnkeyedCapture(ABC):
    """One state as it was when the snapshot began."""

    @abstractmethod
    def next_block(self, limit: int) -> ListBlock | None:
        """About `limit` items, at least one; None when all are given out. Raises UnserialisableValue."""

    @abstractmethod
    def release(self) -> None:
        """Let go of everything. No harm if that was done."""


class UnkeyedStore(ABC):
    """One state of one operator subtask: what it holds, and how that becomes bytes and comes back."""

    kind: str
    """As a schema has it."""

    def __init__(self, uid: str, name: str) -> None:
        self.name = name
        self.where = f"operator {uid!r}, state {name!r}"
        self._closed = False

    def check_open(self) -> None:
        if self._closed:
            raise StateAccessError(f"{self.where}: the operator has been stopped")

    @property
    @abstractmethod
    def count(self) -> int:
        """Items. Also of a closed one."""

    @abstractmethod
    def begin(self) -> UnkeyedCapture | None:
        """The synchronous part of a snapshot: takes no longer for more items. None where there are none."""

    @abstractmethod
    def schema(self) -> Schema: ...

    @abstractmethod
    def _problems(self, old: Schema) -> list[str]: ...

    @abstractmethod
    def read_as(self, old: Schema) -> None:
        """From now on, `restore` reads what was stored under `old`, in which `problems` has found none."""

    @abstractmethod
    def restore(self, block: ListBlock, start: int, stop: int) -> None:
        """Add the items `start` to `stop` of the block."""

    def problems(self, old: Schema) -> list[str]:
        """Why what was stored under the schema `old` can't be read; empty if it can."""
        kind = old.get("kind")
        return self._problems(old) if kind == self.kind else [f"stored as {kind} state, now {self.kind} state"]

    def close(self) -> None:
        self._closed = True

    def accept(self, serializer: Serializer[Any], value: Any) -> Any:
        """As it is to be stored. Raises UnserialisableValue, naming the state."""
        try:
            return serializer.accept(value)
        except UnserialisableValue as error:
            raise UnserialisableValue(f"state {self.name!r}: {error}") from error

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Around whatever turns bytes into items: errors name the state."""
        try:
            yield
        except StreamactorsError as error:
            raise type(error)(f"{self.where}: {error}") from error
        except Exception as error:
            raise CorruptCheckpoint(
                f"{self.where}: a block of items can't be read: {type(error).__name__}: {error}"
            ) from error

    def check_count(self, found: int, block: ListBlock) -> None:
        if found != block.items:
            raise CorruptCheckpoint(f"{self.where}: a block holds {found} items, and should hold {block.items}")
