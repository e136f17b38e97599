"""The few primitive operations on local files that a crash can fall between, and those of the operating system."""

import contextlib
import errno
import os
import sys
from collections.abc import Sequence
from typing import IO, Protocol

import aiofiles
from aiofiles.threadpool.binary import AsyncBufferedIOBase

from streamactors import forks
from streamactors.checkpoint.storage.contract import Entry
from streamactors.clock import SYSTEM, Clock
from streamactors.filelock import try_lock


class DiskFile(Protocol):
    """A new file, written front to back. Calls never overlap."""

    async def open(self) -> None:
        """Create it; FileExistsError if there is one."""

    async def write(self, data: bytes) -> None: ...
    async def sync(self) -> None:
        """Make its bytes (not its name) durable."""

    async def close(self) -> None:
        """No matter if it is closed, or was never opened."""

    @property
    def created(self) -> bool: ...


class DiskLock(Protocol):
    async def acquire(self, owner: str) -> str | None:
        """None if acquired, else what its owner has noted in it."""

    async def held(self) -> bool: ...
    async def release(self) -> None: ...


class Disk(Protocol):
    """Primitive operations on absolute local paths, each of which a crash lets happen or not; raise OSError."""

    def file(self, path: str) -> DiskFile: ...
    def lock(self, path: str) -> DiskLock: ...
    async def read(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of each (offset, length), fewer at the end of the file; length -1: all there is."""

    async def link(self, source: str, target: str) -> None: ...
    async def rename(self, source: str, target: str) -> None: ...
    async def unlink(self, path: str) -> None: ...
    async def make_folder(self, path: str) -> None: ...
    async def remove_folder(self, path: str) -> None: ...
    async def sync_folder(self, path: str) -> None:
        """Make the names in it durable."""

    async def scan(self, path: str) -> list[Entry]: ...
    async def stat(self, path: str) -> Entry | None: ...


class LocalFile:
    """A `DiskFile` of the operating system."""

    def __init__(self, path: str, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._file: AsyncBufferedIOBase | None = None
        self.created = False

    async def open(self) -> None:
        self._file = await aiofiles.open(self._path, "xb")
        self.created = True

    async def write(self, data: bytes) -> None:
        assert self._file is not None
        await self._file.write(data)

    async def sync(self) -> None:
        assert self._file is not None
        await self._file.flush()
        await self._clock.run_blocking(os.fsync, self._file.fileno())

    async def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            await file.close()


class LocalLock:
    """`flock`, freed by the kernel when the process dies, however it dies."""

    def __init__(self, path: str, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._file: IO[bytes] | None = None

    async def acquire(self, owner: str) -> str | None:
        return await self._clock.run_blocking(self._acquire, owner)

    async def held(self) -> bool:
        return await self._clock.run_blocking(self._held)

    async def release(self) -> None:
        await self._clock.run_blocking(self.let_go)

    def let_go(self) -> None:
        forks.keep_in_child(self)
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _acquire(self, owner: str) -> str | None:
        with contextlib.ExitStack() as opened:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            file = opened.enter_context(open(descriptor, "r+b", buffering=0))
            if not try_lock(file):
                return file.read().decode(errors="replace").strip() or "a process that is just starting"
            if not _is_at(file, self._path):
                return "a process that is just starting"  # it removed or replaced the file meanwhile
            file.truncate(0)
            file.write(f"{owner}\n".encode())
            self._file = file
            forks.let_go_in_child(self)
            opened.pop_all()
        return None

    def _held(self) -> bool:
        return self._file is not None and _is_at(self._file, self._path)


def _is_at(file: IO[bytes], path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


class LocalDisk:
    """The operating system's file system, its blocking calls in threads."""

    def __init__(self, clock: Clock = SYSTEM) -> None:
        self._clock = clock

    def file(self, path: str) -> LocalFile:
        return LocalFile(path, self._clock)

    def lock(self, path: str) -> LocalLock:
        return LocalLock(path, self._clock)

    async def read(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        return await self._clock.run_blocking(_read, path, ranges)  # all of it in one trip to a thread

    async def link(self, source: str, target: str) -> None:
        await self._clock.run_blocking(os.link, source, target)

    async def rename(self, source: str, target: str) -> None:
        await self._clock.run_blocking(os.replace, source, target)

    async def unlink(self, path: str) -> None:
        await self._clock.run_blocking(os.unlink, path)

    async def make_folder(self, path: str) -> None:
        await self._clock.run_blocking(os.mkdir, path)

    async def remove_folder(self, path: str) -> None:
        await self._clock.run_blocking(os.rmdir, path)

    async def sync_folder(self, path: str) -> None:
        await self._clock.run_blocking(_sync_folder, path)

    async def scan(self, path: str) -> list[Entry]:
        return await self._clock.run_blocking(_scan, path)

    async def stat(self, path: str) -> Entry | None:
        return await self._clock.run_blocking(_stat, path)


def _read(path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    with open(path, "rb") as file:
        parts = []
        for offset, length in ranges:
            file.seek(offset)
            parts.append(file.read(length))
        return parts


def _sync_folder(path: str) -> None:
    if sys.platform == "win32":
        return  # no folder can be opened there; NTFS journals names by itself
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # some network file systems can't
            raise
    finally:
        os.close(descriptor)


def _scan(path: str) -> list[Entry]:
    entries = []
    with os.scandir(path) as scanned:
        for entry in scanned:
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                folder = entry.is_dir(follow_symlinks=False)
                entries.append(Entry(entry.name, folder, 0 if folder else entry.stat(follow_symlinks=False).st_size))
    return sorted(entries)


def _stat(path: str) -> Entry | None:
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    folder = os.path.isdir(path)
    return Entry(os.path.basename(path), folder, 0 if folder else found.st_size)
