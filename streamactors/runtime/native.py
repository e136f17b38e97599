"""The storing of one native snapshot: its files become files of a checkpoint, those of earlier ones excepted.

Invariant: no thread is at work with a snapshot when it is let go, and then none of its local files are left, however
its storing has ended; what is changed meanwhile waits in memory only until the files are linked.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, ParamSpec, Protocol, TypeVar

from streamactors.checkpoint.manifest import FileHandle, NativeFileHandle, NativeHandle
from streamactors.checkpoint.storage.contract import Written
from streamactors.clock import Clock, uninterrupted
from streamactors.elements import Barrier
from streamactors.errors import StorageFailed
from streamactors.state.backend import NativeFile, NativeSnapshot
from streamactors.state.key_groups import KeyGroupRange

P = ParamSpec("P")
R = TypeVar("R")

READ_BYTES: Final = 1 << 20


class NativeTarget(Protocol):
    """The checkpoint that a snapshot becomes a part of."""

    async def reuse(self, barrier: Barrier, contents: Sequence[Written]) -> list[FileHandle | None]: ...
    async def write(
        self, barrier: Barrier, name: str, chunks: AsyncIterator[bytes], *, alone: bool = False
    ) -> FileHandle: ...


class NativeStoring:
    """In this order: `settle`, `link`, `store`, `release`, all by one task; or `abort`. `groups`: those of the
    subtask."""

    def __init__(self, snapshot: NativeSnapshot, groups: KeyGroupRange, clock: Clock) -> None:
        self._snapshot = snapshot
        self._groups = groups
        self._clock = clock
        self._begun = False

    async def _in_thread(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await uninterrupted(self._clock.run_blocking(work, *args, **kwargs))

    async def settle(self, turn: Callable[[], Awaitable[None]]) -> None:
        """See `SettlingSnapshot`."""
        self._begun = True
        await self._snapshot.settle(turn)

    async def link(self) -> None:
        """Before anything is stored: what is changed meanwhile waits in memory."""
        self._begun = True
        try:
            if self._snapshot.entries:
                await self._in_thread(self._snapshot.link)
        finally:
            self._snapshot.linked()

    async def store(self, target: NativeTarget, barrier: Barrier, name: str) -> NativeHandle | None:
        """None if there is no state. Raises StorageFailed."""
        if not self._snapshot.entries:
            return None
        files = await self._in_thread(self._snapshot.files)
        parts = await self._store_shared(target, barrier, name, [file for file in files if file.shared])
        parts += await self._store_own(target, barrier, name, [file for file in files if not file.shared])
        entries = {state: dict(groups) for state, groups in self._snapshot.entries.items()}
        return NativeHandle(self._snapshot.format, self._groups.start, self._groups.stop, tuple(parts), entries)

    async def _store_shared(
        self, target: NativeTarget, barrier: Barrier, name: str, files: Sequence[NativeFile]
    ) -> list[NativeFileHandle]:
        there = await target.reuse(barrier, [Written(file.size, file.digest) for file in files])
        return [
            NativeFileHandle(file.name, stored or await self._upload(target, barrier, name, file), 0, file.size)
            for file, stored in zip(files, there, strict=True)
        ]

    async def _upload(self, target: NativeTarget, barrier: Barrier, name: str, file: NativeFile) -> FileHandle:
        stored = await target.write(barrier, f"{name}-{file.name}", self._chunks([file]), alone=True)
        if (stored.size, stored.digest) != (file.size, file.digest):
            raise StorageFailed(f"{file.path} was changed while it was stored: is the local disk damaged?")
        return stored

    async def _store_own(
        self, target: NativeTarget, barrier: Barrier, name: str, files: Sequence[NativeFile]
    ) -> list[NativeFileHandle]:
        """The small ones, which are new each time, as one."""
        stored = await target.write(barrier, f"{name}-native", self._chunks(files))
        parts, offset = [], 0
        for file in files:
            parts.append(NativeFileHandle(file.name, stored, offset, file.size))
            offset += file.size
        return parts

    async def _chunks(self, files: Sequence[NativeFile]) -> AsyncGenerator[bytes, None]:
        for file in files:
            for offset in range(0, file.size, READ_BYTES):
                yield await self._in_thread(self._snapshot.read, file, offset, min(READ_BYTES, file.size - offset))

    async def release(self) -> None:
        """Delete the local files, stored or not."""
        self._snapshot.linked()
        await self._in_thread(self._snapshot.abort)

    def abort(self) -> None:
        """For whoever has cancelled the task that stores it, or has none: that task releases it once it has begun."""
        if not self._begun:
            self._snapshot.abort()
