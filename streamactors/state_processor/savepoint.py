"""A savepoint in the making, outside of any job.

Invariant: it is complete from the moment its manifest has its name, which is after all its files are durable. What is
not completed leaves nothing behind.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar

from streamactors.checkpoint import layout
from streamactors.checkpoint.manifest import (
    BlockRef,
    FileHandle,
    KeyedHandle,
    ListRef,
    ListsHandle,
    Manifest,
    Receipt,
    encode,
    encode_manifest,
)
from streamactors.checkpoint.storage.contract import Files
from streamactors.clock import Clock
from streamactors.errors import InvalidConfig, StorageFailed
from streamactors.state.backend import StateBlock
from streamactors.state.unkeyed import ListBlock

FILE_BYTES: Final = 256 * 1024 * 1024
"""State beyond this goes into another file."""
COPY_BYTES: Final = 4 * 1024 * 1024


class _Block(Protocol):
    @property
    def data(self) -> bytes: ...


B = TypeVar("B", bound=_Block)


class NewSavepoint:
    """Enter it by `async with`; what is not `complete` when the block is left is deleted."""

    def __init__(self, files: Files, clock: Clock) -> None:
        """`files`: rooted at the savepoint's folder."""
        self._files = files
        self._clock = clock
        self._sequence = 0
        self._complete = False

    @property
    def uri(self) -> str:
        return self._files.uri

    async def __aenter__(self) -> Self:
        """Raises InvalidConfig where something lies already."""
        if await self._files.list(""):
            raise InvalidConfig(f"savepoint {self.uri}: the folder is not empty. Name a new one.")
        await self._files.make_folder("")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._complete:
            await self._files.delete_tree("")

    async def complete(self, content: Manifest, *, committed: bool = False) -> None:
        """`committed`: all its sink transactions are known to be."""
        await self._files.sync_folder("")
        if committed:
            receipt = Receipt(content.checkpoint, self._clock.time_ms())
            await self._files.create(layout.RECEIPT, encode(receipt))
        if not await self._files.create(layout.MANIFEST, encode_manifest(content)):
            raise StorageFailed(f"{self._files.uri_of(layout.MANIFEST)} exists already: what else writes there?")
        self._complete = True

    # --------------------------------------------------------------------------------------------------------- files
    async def write(self, name: str, chunks: AsyncGenerator[bytes, None]) -> FileHandle:
        self._sequence += 1
        path = layout.state_file(self._sequence, name)
        async with aclosing(chunks):
            written = await self._files.write(path, chunks)
        return FileHandle(path, written.size, written.digest)

    async def write_keyed(self, uid: str, blocks: AsyncGenerator[StateBlock, None]) -> tuple[KeyedHandle, ...]:
        """In no file if there are no blocks, and in several if there are very many."""
        handles: list[KeyedHandle] = []
        async with aclosing(blocks):
            while True:
                refs: list[BlockRef] = []

                def note(block: StateBlock, offset: int, refs: list[BlockRef] = refs) -> None:
                    refs.append(BlockRef(block.state, block.group, block.entries, offset, len(block.data)))

                if (file := await self._write_blocks(uid, blocks, note)) is None:
                    return tuple(handles)
                handles.append(KeyedHandle(file, tuple(refs)))

    async def read_blocks(self, handle: KeyedHandle, blocks: Sequence[BlockRef]) -> list[bytes]:
        """Of what was just written."""
        return await self._files.read_ranges(handle.file.path, [(ref.offset, ref.length) for ref in blocks])

    async def delete(self, file: FileHandle) -> None:
        await self._files.delete(file.path)

    async def write_lists(self, uid: str, blocks: AsyncGenerator[ListBlock, None]) -> ListsHandle | None:
        """All in one file; None for no blocks."""
        refs: list[ListRef] = []

        def note(block: ListBlock, offset: int) -> None:
            refs.append(ListRef(block.state, block.items, offset, len(block.data), block.union, block.broadcast))

        async with aclosing(blocks):
            file = await self._write_blocks(f"{uid}-lists", blocks, note, limit=None)
        return None if file is None else ListsHandle(file, tuple(refs))

    async def _write_blocks(
        self,
        name: str,
        blocks: AsyncIterator[B],
        note: Callable[[B, int], None],
        limit: int | None = FILE_BYTES,
    ) -> FileHandle | None:
        first = await anext(blocks, None)
        return None if first is None else await self.write(name, _chunks(first, blocks, note, limit))


async def _chunks(
    first: B, rest: AsyncIterator[B], note: Callable[[B, int], None], limit: int | None
) -> AsyncGenerator[bytes, None]:
    block: B | None = first
    offset = 0
    while block is not None:
        note(block, offset)
        offset += len(block.data)
        yield block.data
        block = await anext(rest, None) if limit is None or offset < limit else None


async def copied(files: Files, path: str, size: int) -> AsyncGenerator[bytes, None]:
    """The bytes of a file."""
    for offset in range(0, size, COPY_BYTES):
        [part] = await files.read_ranges(path, [(offset, min(COPY_BYTES, size - offset))])
        yield part


async def in_new_savepoint(files: Files, clock: Clock, fill: Callable[[NewSavepoint], Awaitable[Any]]) -> str:
    """The URI of what `fill` has completed."""
    async with NewSavepoint(files, clock) as savepoint:
        await fill(savepoint)
    return savepoint.uri
