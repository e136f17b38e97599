"""A disk in memory that can crash between any two operations and then forgets, by seed, what was not made durable.

It separates write, fsync, link or rename, and fsync of the folder. At a power loss each change of a folder since its
last fsync happened or not, one by one and in no order (a rename as a whole); a file keeps what was synced, and a prefix
of the rest. When only the process dies, everything stays, but is no more durable than it was.
"""

import asyncio
import errno
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from posixpath import basename, dirname
from typing import Union

from streamactors.checkpoint.storage.contract import Entry
from streamactors.errors import Crashed


@dataclass(eq=False)
class File:
    content: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    writer: int = 0
    """Whoever has made it, by a number of theirs."""

    def lose(self, chance: random.Random) -> None:
        tail = self.content[len(self.durable) :]
        # One draw however long it is: the size of a table may differ from run to run.
        self.content = bytearray(self.durable) + tail[: int(chance.random() * (len(tail) + 1))]


Names = dict[str, Union[File, "Folder"]]


@dataclass(eq=False)
class Folder:
    names: Names = field(default_factory=dict)
    durable: Names = field(default_factory=dict)
    changes: list[Callable[[Names], object]] = field(default_factory=list)

    def find(self, path: str) -> "File | Folder | None":
        """By a path from here."""
        node: File | Folder | None = self
        for name in filter(None, path.split("/")):
            node = node.names.get(name) if isinstance(node, Folder) else None
        return node

    def change(self, change: Callable[[Names], object]) -> None:
        change(self.names)
        self.changes.append(change)

    def sync(self) -> None:
        self.durable = dict(self.names)
        self.changes.clear()

    def lose(self, chance: random.Random) -> None:
        self.names = dict(self.durable)
        for change in self.changes:
            if chance.random() < 0.5:
                change(self.names)
        self.sync()
        for _, node in sorted(self.names.items()):
            node.lose(chance)


class VolatileDisk:
    """`crash_after`: how many operations succeed."""

    def __init__(self, root: Folder | None = None, crash_after: int | None = None) -> None:
        self._root = root if root is not None else Folder()
        self._crash_after = crash_after
        self.operations = 0
        self.crashed = False
        self.locks: dict[str, File] = {}

    def after_crash(self, chance: random.Random | None, crash_after: int | None = None) -> "VolatileDisk":
        """What the next process finds; `chance`: after a power loss."""
        self.crashed = True
        if chance is not None:
            self._root.lose(chance)
        return VolatileDisk(self._root, crash_after)

    async def step(self, operation: str, path: str) -> None:
        """Before each operation."""
        await asyncio.sleep(0)
        if self.crashed or self.operations == self._crash_after:
            self.crashed = True
            raise Crashed
        self.operations += 1

    # -------------------------------------------------------------------------------------------------------- looking
    def find(self, path: str) -> File | Folder | None:
        return self._root.find(path)

    def folder(self, path: str) -> Folder:
        match self.find(path):
            case Folder() as folder:
                return folder
            case None:
                raise _refused(errno.ENOENT, path)
            case _:
                raise _refused(errno.ENOTDIR, path)

    def add(self, path: str, node: File | Folder) -> None:
        folder, name = self.folder(dirname(path)), basename(path)
        if name in folder.names:
            raise _refused(errno.EEXIST, path)
        folder.change(lambda names: names.__setitem__(name, node))

    # ------------------------------------------------------------------------------------------------------ operations
    def file(self, path: str) -> "VolatileFile":
        return VolatileFile(self, path)

    def lock(self, path: str) -> "VolatileLock":
        return VolatileLock(self, path)

    async def read(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        await self.step("read", path)
        node = self.find(path)
        if not isinstance(node, File):
            raise _refused(errno.ENOENT, path)
        return [bytes(node.content[at : None if length < 0 else at + length]) for at, length in ranges]

    async def link(self, source: str, target: str) -> None:
        await self.step("link", target)
        node = self.find(source)
        if not isinstance(node, File):
            raise _refused(errno.ENOENT, source)
        self.add(target, node)

    async def rename(self, source: str, target: str) -> None:
        await self.step("rename", target)
        assert dirname(source) == dirname(target)
        old, new = basename(source), basename(target)
        node = self.folder(dirname(source)).names.get(old)
        if node is None:
            raise _refused(errno.ENOENT, source)

        def change(names: Names) -> None:
            names.pop(old, None)
            names[new] = node

        self.folder(dirname(source)).change(change)

    async def unlink(self, path: str) -> None:
        await self.step("unlink", path)
        if not isinstance(self.find(path), File):
            raise _refused(errno.ENOENT, path)
        self.folder(dirname(path)).change(lambda names: names.pop(basename(path), None))

    async def make_folder(self, path: str) -> None:
        await self.step("make_folder", path)
        self.add(path, Folder())

    async def remove_folder(self, path: str) -> None:
        await self.step("remove_folder", path)
        if self.folder(path).names:
            raise _refused(errno.ENOTEMPTY, path)
        self.folder(dirname(path)).change(lambda names: names.pop(basename(path), None))

    async def sync_folder(self, path: str) -> None:
        await self.step("sync_folder", path)
        self.folder(path).sync()

    async def scan(self, path: str) -> list[Entry]:
        await self.step("scan", path)
        return [_entry(name, node) for name, node in sorted(self.folder(path).names.items())]

    async def stat(self, path: str) -> Entry | None:
        await self.step("stat", path)
        node = self.find(path)
        return None if node is None else _entry(basename(path), node)


def _refused(code: int, path: str) -> OSError:
    return OSError(code, os.strerror(code), path)


def _entry(name: str, node: File | Folder) -> Entry:
    return Entry(name, True, 0) if isinstance(node, Folder) else Entry(name, False, len(node.content))


class VolatileFile:
    def __init__(self, disk: VolatileDisk, path: str) -> None:
        self._disk = disk
        self._path = path
        self._file = File()
        self.created = False

    async def open(self) -> None:
        await self._disk.step("open", self._path)
        self._disk.add(self._path, self._file)
        self.created = True

    async def write(self, data: bytes) -> None:
        await self._disk.step("write", self._path)
        self._file.content += data

    async def sync(self) -> None:
        await self._disk.step("sync", self._path)
        self._file.durable = bytes(self._file.content)

    async def close(self) -> None:
        await self._disk.step("close", self._path)


class VolatileLock:
    def __init__(self, disk: VolatileDisk, path: str) -> None:
        self._disk = disk
        self._path = path
        self._file: File | None = None

    async def acquire(self, owner: str) -> str | None:
        await self._disk.step("lock", self._path)
        node = self._disk.find(self._path)
        if node is None:
            node = File()
            self._disk.add(self._path, node)
        assert isinstance(node, File)
        if node in self._disk.locks.values():
            return node.content.decode()
        node.content[:] = owner.encode()
        self._file = self._disk.locks[self._path] = node
        return None

    async def held(self) -> bool:
        await self._disk.step("held", self._path)
        return self._file is not None and self._disk.find(self._path) is self._file

    async def release(self) -> None:
        if self._file is not None and self._disk.locks.get(self._path) is self._file:
            del self._disk.locks[self._path]
        self._file = None
