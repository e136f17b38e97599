"""The checkpoint storage as the subtasks of one attempt reach it.

Invariant: it dies with its attempt: what a zombie would write is refused, since the writers are gone.
"""

from collections.abc import AsyncIterator, Callable, Sequence

from streamactors.checkpoint import native_files
from streamactors.checkpoint.manifest import (
    BlockRef,
    FileHandle,
    FrameRef,
    InFlightHandle,
    KeyedHandle,
    ListRef,
    ListsHandle,
    NativeFileHandle,
)
from streamactors.checkpoint.restorable import Restorable
from streamactors.checkpoint.storage.contract import Written
from streamactors.checkpoint.writer import CheckpointWriter
from streamactors.clock import Clock
from streamactors.elements import Barrier
from streamactors.errors import CheckpointFailed


class StoredSnapshots:
    """`writers`: of the checkpoints in flight, by id; `bytes_read`: of what is restored."""

    def __init__(self, restored: Restorable | None, clock: Clock) -> None:
        self.restored = restored
        self._clock = clock
        self.writers: dict[int, CheckpointWriter] = {}
        self.bytes_read = 0

    def _writer(self, barrier: Barrier) -> CheckpointWriter:
        writer = self.writers.get(barrier.checkpoint)
        if writer is None:
            raise CheckpointFailed(f"checkpoint {barrier.checkpoint} is no longer in flight")
        return writer

    async def write(
        self, barrier: Barrier, name: str, chunks: AsyncIterator[bytes], *, alone: bool = False
    ) -> FileHandle:
        return await self._writer(barrier).write(name, chunks, alone=alone)

    async def reuse(self, barrier: Barrier, contents: Sequence[Written]) -> list[FileHandle | None]:
        writer = self._writer(barrier)
        return [writer.reuse(content.size, content.digest) for content in contents]

    async def fetch(self, part: NativeFileHandle, receive: Callable[[bytes], None]) -> None:
        assert self.restored is not None
        await native_files.fetch(self.restored, part, receive, self._clock)
        self.bytes_read += part.size

    async def read(self, handle: KeyedHandle, blocks: Sequence[BlockRef]) -> list[bytes]:
        assert self.restored is not None
        return self._counted(await self.restored.read_blocks(handle, blocks))

    async def read_lists(self, handle: ListsHandle, blocks: Sequence[ListRef]) -> list[bytes]:
        assert self.restored is not None
        return self._counted(await self.restored.read_lists(handle, blocks))

    async def read_frames(self, handle: InFlightHandle, frames: Sequence[FrameRef]) -> list[bytes]:
        assert self.restored is not None
        return self._counted(await self.restored.read_frames(handle, frames))

    def _counted(self, read: list[bytes]) -> list[bytes]:
        self.bytes_read += sum(map(len, read))
        return read
