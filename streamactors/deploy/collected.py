"""A list as a sink of a job over several processes: its workers write to a shelf that none of them holds.

Invariants. As `listsink` has it, whoever of the job dies: the shelf is not a process of the job. It holds values in
pieces, as bytes, so that it knows nothing of the user's classes, and no message grows with their number.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final, Protocol

from streamactors.errors import UnserialisableValue
from streamactors.listsink import Author, ListShelf, ListSink, shelf_writer
from streamactors.sinks import SinkContext, SinkWriter, WriterSink

PIECE: Final = 500
"""Values that are sent at once."""


class CollectingSink(WriterSink[Any]):
    def __init__(self, shelf: "RemoteShelf") -> None:
        self._shelf = shelf

    @property
    def transactional(self) -> bool:
        return True

    def writer(self, ctx: SinkContext) -> SinkWriter[Any]:
        return shelf_writer(ctx, self._shelf)


class Call(Protocol):
    """What a worker reaches the shelf by. Raises TransactionLost where it is gone, else ConnectionLost."""

    async def __call__(self, method: str, *arguments: Any) -> Any: ...


class RemoteShelf:
    """See `listsink.Shelf`. Goes to the workers: `call` and `ship` must, too."""

    def __init__(self, identity: str, call: Call, ship: Callable[[Any], bytes]) -> None:
        self.identity = identity
        self._call = call
        self._ship = ship

    async def add(self, values: Sequence[Any]) -> None:
        for piece in self._pieces(values):
            await self._call("add", [piece])

    async def prepare(self, author: Author, values: list[Any]) -> Sequence[int]:
        """Under a number for each piece."""
        return [number for piece in self._pieces(values) for number in await self._call("prepare", author, [piece])]

    async def commit(self, numbers: Sequence[int]) -> None:
        if numbers:
            await self._call("commit", numbers)

    async def drop(self, numbers: Sequence[int]) -> None:
        if numbers:
            await self._call("drop", numbers)

    async def drop_before(self, author: Author) -> None:
        await self._call("drop_before", author)

    def _pieces(self, values: Sequence[Any]) -> Iterator[bytes]:
        """One is made when the one before it is sent: all at once would hold the event loop for long."""
        return (self._shipped(values[start : start + PIECE]) for start in range(0, len(values), PIECE))

    def _shipped(self, values: Sequence[Any]) -> bytes:
        try:
            return self._ship(list(values))
        except Exception as error:  # whatever the classes in it raise
            kinds = ", ".join(sorted({type(value).__qualname__ for value in values}))
            raise UnserialisableValue(
                f"collect: values ({kinds}) can't be sent to the process that collects them: {error}; map them to "
                "plain ones first"
            ) from error


class Pieces:
    """What the shelf's process holds."""

    def __init__(self) -> None:
        self._sink: ListSink[bytes] = ListSink()
        self._shelf = ListShelf(self._sink)

    async def call(self, method: str, *arguments: Any) -> Any:
        return await getattr(self if method == "at" else self._shelf, method)(*arguments)

    async def at(self, place: int) -> bytes | None:
        """What is visible; None behind the last piece."""
        return self._sink.values[place] if place < len(self._sink.values) else None


async def gathered(at: Callable[[int], Awaitable[bytes | None]], unship: Callable[[bytes], list[Any]]) -> list[Any]:
    """All that is visible, piece by piece."""
    values: list[Any] = []
    place = 0
    while (piece := await at(place)) is not None:
        values += unship(piece)
        place += 1
    return values
