"""A list as a sink, exactly-once within one process; and what writes to such a list, wherever it is.

Values are any objects, so a pending transaction holds no values, only the number under which the list's shelf keeps
them. It is worth nothing to another process, whose list is another one and begins empty.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from streamactors.clock import SYSTEM
from streamactors.sinks import Pending, SinkContext, SinkWriter, WriterSink

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Author:
    """Who has written something: a sink, by its flow and uid, in one attempt, by its run and number."""

    sink: tuple[str, str]
    attempt: tuple[int, int]


class Shelf(Protocol):
    """A list, and what waits for its checkpoint beside it. Outlives attempts; every call but `add` may be repeated."""

    @property
    def identity(self) -> str:
        """Another one for each list."""

    async def add(self, values: Sequence[Any]) -> None:
        """At once."""

    async def prepare(self, author: Author, values: list[Any]) -> Sequence[int]:
        """The numbers under which they are kept."""

    async def commit(self, numbers: Sequence[int]) -> None: ...
    async def drop(self, numbers: Sequence[int]) -> None: ...

    async def drop_before(self, author: Author) -> None:
        """What attempts before this one left prepared and no checkpoint lists: its records come again."""


class ListSink(WriterSink[T], Generic[T]):
    """For tests and notebooks: `values` holds what was written, in commit order under checkpoints; without them at
    once, in order of arrival."""

    values: list[T]

    def __init__(self) -> None:
        self.values = []
        self._shelf = ListShelf(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a ListSink's values are those of one process: to another one, write by a sink such as FileSink"
        )

    @property
    def transactional(self) -> bool:
        return True

    def writer(self, ctx: SinkContext) -> SinkWriter[T]:
        return shelf_writer(ctx, self._shelf)


class ListShelf(Generic[T]):
    """That of a `ListSink`. Shared by all attempts on purpose: a transaction outlives the attempt that prepared it."""

    def __init__(self, sink: ListSink[T]) -> None:
        self.identity = SYSTEM.token()
        self._sink = sink
        self._numbers = count()
        self._prepared: dict[int, tuple[Author, list[T]]] = {}

    async def add(self, values: Sequence[T]) -> None:
        self._sink.values += values

    async def prepare(self, author: Author, values: list[T]) -> Sequence[int]:
        number = next(self._numbers)
        self._prepared[number] = author, values
        return [number]

    async def commit(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            if number in self._prepared:
                _, values = self._prepared.pop(number)
                self._sink.values += values

    async def drop(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._prepared.pop(number, None)

    async def drop_before(self, author: Author) -> None:
        for number, (other, _) in list(self._prepared.items()):
            if other.sink == author.sink and other.attempt < author.attempt:
                del self._prepared[number]


def shelf_writer(ctx: SinkContext, shelf: Shelf) -> SinkWriter[Any]:
    return _TransactionWriter(ctx, shelf) if ctx.checkpointing else _DirectWriter(shelf)


class _DirectWriter(SinkWriter[Any]):
    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    async def open(self, restored: Sequence[Pending], *, committed: bool) -> None:
        return None

    async def write(self, values: Sequence[Any], timestamps: Sequence[int | None] | None) -> None:
        await self._shelf.add(values)

    async def prepare(self, checkpoint: int) -> Sequence[Pending]:
        return []

    async def finish(self) -> None:
        return None

    async def close(self) -> None:
        return None


class _TransactionWriter(SinkWriter[Any]):
    def __init__(self, ctx: SinkContext, shelf: Shelf) -> None:
        self._ctx = ctx
        self._shelf = shelf
        self._author = Author((ctx.flow, ctx.uid), (ctx.run, ctx.attempt))
        self._open: list[Any] = []
        self._pending: list[tuple[int, int]] = []  # checkpoint, number

    async def open(self, restored: Sequence[Pending], *, committed: bool) -> None:
        own = sorted(number for identity, number in restored if identity == self._shelf.identity)
        await (self._shelf.drop if committed else self._shelf.commit)(own)
        if len(own) < len(restored) and not committed:
            self._ctx.log.warning("results of another process were in its ListSink and are gone with it")

    async def write(self, values: Sequence[Any], timestamps: Sequence[int | None] | None) -> None:
        self._open += values

    async def prepare(self, checkpoint: int) -> Sequence[Pending]:
        if self._open:
            opened, self._open = self._open, []
            self._pending += [(checkpoint, number) for number in await self._shelf.prepare(self._author, opened)]
        return [[self._shelf.identity, number] for _, number in self._pending]

    async def commit(self, checkpoint: int) -> None:
        await self._shelf.commit([number for prepared_for, number in self._pending if prepared_for <= checkpoint])
        self._pending = [pending for pending in self._pending if pending[0] > checkpoint]
        # Not before a checkpoint of this attempt: until then other subtasks may still have to commit what is theirs.
        await self._shelf.drop_before(self._author)

    async def finish(self) -> None:
        return None

    async def close(self) -> None:
        self._open = []
