"""Small files of one checkpoint, written as one: whatever waits at the same time shares a file (a group commit).

Invariants:
1. `add` returns only when every byte of the shared file is durable.
2. A member that is cancelled harms no other; with the last one, the file is given up, and nothing is left of it.
3. A file that can't be written fails each of its members.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, Final

from streamactors.checkpoint.manifest import FileHandle
from streamactors.checkpoint.storage.contract import Chunks
from streamactors.clock import Clock
from streamactors.errors import StorageFailed

SMALL: Final = 256 * 1024
"""Up to so many bytes a file is packed."""
FULL: Final = 4 * 1024 * 1024
"""From so many bytes on a pack waits for no more members: each who reads one of them verifies all."""
GATHERING_SECONDS: Final = 0.005
"""That a pack waits for more members in any case: subtasks take their snapshots one after the other."""

PACKED: Final = "packed"

Write = Callable[[str, Chunks], Coroutine[Any, Any, FileHandle]]


class _Pack:
    def __init__(self) -> None:
        self.names: list[str] = []
        self.chunks: list[bytes] = []
        self.size = 0
        self.members = 0
        self.full: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[FileHandle] | None = None

    @property
    def name(self) -> str:
        return self.names[0] if len(self.names) == 1 else PACKED

    def append(self, name: str, data: bytes) -> int:
        """Where it begins."""
        start = self.size
        self.names.append(name)
        self.chunks.append(data)
        self.size += len(data)
        if self.size >= FULL:
            self.full.set_result(None)
        return start


class Packer:
    """While one pack is being written, the next one gathers."""

    def __init__(self, write: Write, clock: Clock) -> None:
        self._write = write
        self._clock = clock
        self._gathering: _Pack | None = None
        self._before: asyncio.Task[FileHandle] | None = None

    async def add(self, name: str, data: bytes) -> FileHandle:
        """Its `start` tells where in the file it lies. Raises StorageFailed."""
        pack = self._gathering if self._gathering is not None else self._begin()
        start = pack.append(name, data)
        if pack.full.done():
            self._close(pack)
        pack.members += 1
        assert pack.task is not None
        try:
            await asyncio.wait([pack.task])
        except asyncio.CancelledError:
            pack.members -= 1
            if not pack.members:
                await self._give_up(pack, pack.task)
            raise
        file = _result(pack.task)
        return FileHandle(file.path, file.size, file.digest, start)

    def _begin(self) -> _Pack:
        pack = self._gathering = _Pack()
        pack.task = asyncio.create_task(self._store(pack, self._before))
        self._before = pack.task
        return pack

    def _close(self, pack: _Pack) -> None:
        if self._gathering is pack:
            self._gathering = None

    async def _store(self, pack: _Pack, before: "asyncio.Task[FileHandle] | None") -> FileHandle:
        await self._gather(pack, before)
        self._close(pack)
        return await self._write(pack.name, pack.chunks)

    async def _gather(self, pack: _Pack, before: "asyncio.Task[FileHandle] | None") -> None:
        """Until the pack before is written, or this one is full."""
        await self._clock.sleep(GATHERING_SECONDS)
        if before is not None:
            first: list[asyncio.Future[Any]] = [before, pack.full]
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)

    async def _give_up(self, pack: _Pack, task: "asyncio.Task[FileHandle]") -> None:
        self._close(pack)
        task.cancel()
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):  # the caller is being cancelled already
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # seen: the cancellation comes first


def _result(task: "asyncio.Task[FileHandle]") -> FileHandle:
    """Each member gets an error of its own, since each adds its own traceback."""
    error = None if task.cancelled() else task.exception()
    if isinstance(error, StorageFailed):
        raise StorageFailed(str(error)) from error
    return task.result()
