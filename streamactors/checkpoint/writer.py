"""The files of one checkpoint in the making.

Invariant: a handle is returned only for a file whose every byte is durable; what is aborted leaves nothing, and nothing
is added to what is complete.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Literal

from streamactors.checkpoint import layout
from streamactors.checkpoint.layout import Place
from streamactors.checkpoint.manifest import FileHandle
from streamactors.checkpoint.packing import SMALL, Packer
from streamactors.checkpoint.storage.chunks import again, each_chunk
from streamactors.checkpoint.storage.contract import Chunks, Files
from streamactors.clock import Clock
from streamactors.errors import CheckpointFailed


class CheckpointWriter:
    """The files of one checkpoint in the making. Any number of subtasks write at the same time."""

    def __init__(
        self,
        place: Place,
        files: Files,
        folder: str,
        root: str,
        abort: Callable[[int], Awaitable[None]],
        clock: Clock,
        reuse: Callable[[int, int, bytes], FileHandle | None] | None = None,
        names: str = "",
    ) -> None:
        """`folder`, relative to `files`, is where the files go; paths in handles are relative to `root`. `reuse` is
        `FileRegistry.take`; None where the checkpoint must be complete in its folder. `names`: what this writer's names
        begin with, so that no other one of the same checkpoint gives a file the same."""
        self.place = place
        self.checkpoint = place.checkpoint
        self.files = files
        self.folder = folder
        self._root = root
        self._abort = abort
        self._reuse = reuse
        self._names = names
        self._state: Literal["open", "completing", "complete", "aborted"] = "open"
        self._sequence = 0
        self._writes: dict[asyncio.Task[FileHandle], None] = {}
        """In order: a set's would differ from run to run."""
        self._packer = Packer(self._write_alone, clock)

    def path(self, name: str) -> str:
        return f"{self.folder}/{name}" if self.folder else name

    @property
    def uri(self) -> str:
        return self.files.uri_of(self.folder)

    def reuse(self, size: int, digest: bytes) -> FileHandle | None:
        """The file of an earlier checkpoint with this content, which this one now uses too; None: write it."""
        self._check_open()
        return None if self._reuse is None else self._reuse(self.checkpoint, size, digest)

    async def write(self, name: str, chunks: Chunks, *, alone: bool = False) -> FileHandle:
        """Write a file, or a part of one where it is small (`packing`); `name` is for people and need not be unique.
        `alone`: later checkpoints may refer to it, so nothing else is to be in it. Raises CheckpointFailed if the
        checkpoint was or is aborted meanwhile, StorageFailed if the storage refuses; either way nothing is left of it.
        """
        self._check_open()
        task = asyncio.create_task(self._write_alone(name, chunks) if alone else self._write_or_pack(name, chunks))
        self._writes[task] = None
        task.add_done_callback(self._writes.pop)
        caller = asyncio.current_task()
        cancelled_before = caller.cancelling() if caller else 0
        try:
            return await task
        except asyncio.CancelledError:
            if self._state == "aborted" and (caller.cancelling() if caller else 0) == cancelled_before:
                raise self._aborted() from None
            raise

    async def _write_or_pack(self, name: str, chunks: Chunks) -> FileHandle:
        async with contextlib.aclosing(each_chunk(chunks)) as each:
            first = await _small(each)
            if isinstance(first, bytes):
                return await self._packer.add(name, first)
            return await self._write_alone(name, again(first, each))

    async def _write_alone(self, name: str, chunks: Chunks) -> FileHandle:
        self._sequence += 1
        path = self.path(layout.state_file(self._sequence, f"{self._names}{name}"))
        written = await self.files.write(path, chunks)
        return FileHandle(path.removeprefix(self._root), written.size, written.digest)

    def _check_open(self) -> None:
        if self._state == "aborted":
            raise self._aborted()
        if self._state != "open":
            raise CheckpointFailed(f"checkpoint {self.checkpoint} is complete: nothing can be added to it")

    def _aborted(self) -> CheckpointFailed:
        return CheckpointFailed(f"checkpoint {self.checkpoint} was aborted")

    async def abort(self) -> None:
        """See `CheckpointStore.abort`."""
        await self._abort(self.checkpoint)

    @property
    def savepoint(self) -> bool:
        """Whether it lies in a folder of its own, outside the store."""
        return not self.folder

    def begin_completing(self) -> None:
        self._check_open()
        self._state = "completing"

    def end_completing(self, *, complete: bool) -> None:
        self._state = "complete" if complete else "open"

    @property
    def can_abort(self) -> bool:
        return self._state == "open"

    async def stop(self) -> None:
        """End all writes under way, and refuse all later ones."""
        self._state = "aborted"
        writes = list(self._writes)
        for write in writes:
            write.cancel()
        if writes:
            await asyncio.wait(writes)


async def _small(chunks: AsyncGenerator[bytes, None]) -> bytes | list[bytes]:
    """All of it where that is small; else the first chunks, which are no longer small."""
    taken: list[bytes] = []
    size = 0
    async for chunk in chunks:
        taken.append(chunk)
        size += len(chunk)
        if size > SMALL:
            return taken
    return b"".join(taken)
