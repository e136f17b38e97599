"""The files of one checkpoint in the making.

Invariant: a handle is returned only for a file whose every byte is durable; what is aborted leaves nothing, and nothing
is added to what is complete.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal

from streamactors.checkpoint import layout
from streamactors.checkpoint.layout import Place
from streamactors.checkpoint.manifest import FileHandle
from streamactors.checkpoint.storage import Chunks, Files
from streamactors.errors import CheckpointFailed


class CheckpointWriter:
    """The files of one checkpoint in the making. Any number of subtasks write at the same time."""

    def __init__(
        self, place: Place, files: Files, folder: str, root: str, abort: Callable[[int], Awaitable[None]]
    ) -> None:
        """`folder`, relative to `files`, is where the files go; paths in handles are relative to `root`."""
        self.place = place
        self.checkpoint = place.checkpoint
        self.files = files
        self.folder = folder
        self._root = root
        self._abort = abort
        self._state: Literal["open", "completing", "complete", "aborted"] = "open"
        self._sequence = 0
        self._writes: set[asyncio.Task[FileHandle]] = set()

    def path(self, name: str) -> str:
        return f"{self.folder}/{name}" if self.folder else name

    @property
    def uri(self) -> str:
        return self.files.uri_of(self.folder)

    async def write(self, name: str, chunks: Chunks) -> FileHandle:
        """Write a file; `name` is for people and need not be unique. Raises CheckpointFailed if the checkpoint was or
        is aborted meanwhile, StorageFailed if the storage refuses; either way nothing is left of the file."""
        self._check_open()
        self._sequence += 1
        task = asyncio.create_task(self._write(self.path(layout.state_file(self._sequence, name)), chunks))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        caller = asyncio.current_task()
        cancelled_before = caller.cancelling() if caller else 0
        try:
            return await task
        except asyncio.CancelledError:
            if self._state == "aborted" and (caller.cancelling() if caller else 0) == cancelled_before:
                raise self._aborted() from None
            raise

    async def _write(self, path: str, chunks: Chunks) -> FileHandle:
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
        writes = set(self._writes)
        for write in writes:
            write.cancel()
        if writes:
            await asyncio.wait(writes)
