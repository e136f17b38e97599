"""Storage that refuses, fills up or stalls by rule, around a real one: for tests of what a job does then."""

import asyncio
import contextlib
import errno
import fnmatch
import os
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from streamactors.checkpoint.storage.chunks import each_chunk
from streamactors.checkpoint.storage.contract import Chunks, Entry, Files, Lock, Written
from streamactors.checkpoint.storage.refusals import storage_failed
from streamactors.clock import SYSTEM, Clock


@dataclass
class Failure:
    """A rule. `hits` counts the operations that it has refused; `active = False` ends it."""

    operation: str
    path: str
    nth: int
    times: int | None
    error: int
    active: bool = True
    seen: int = 0
    hits: int = 0

    def strikes(self, operation: str, path: str) -> bool:
        if not self.active or not fnmatch.fnmatch(operation, self.operation) or not fnmatch.fnmatch(path, self.path):
            return False
        self.seen += 1
        if self.seen < self.nth or (self.times is not None and self.hits >= self.times):
            return False
        self.hits += 1
        return True


@dataclass
class Stall:
    """A rule. The first operation that matches sets `reached`; all that match wait for `release`."""

    operation: str
    path: str
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def pass_by(self, operation: str, path: str) -> None:
        if fnmatch.fnmatch(operation, self.operation) and fnmatch.fnmatch(path, self.path):
            self.reached.set()
            await self.release.wait()


@dataclass
class _Rules:
    """Shared by all `FailingFiles` that come from one another by `at`."""

    failures: list[Failure] = field(default_factory=list)
    stalls: list[Stall] = field(default_factory=list)
    seconds: list[tuple[float, str, str]] = field(default_factory=list)
    free: int | None = None
    """Bytes until the disk is full; None: endless."""


class FailingFiles:
    """A `Files` around another one.

    Operations are named like the methods of `Files`; patterns are those of `fnmatch`; paths are relative to the root,
    such as `orders/run-1/attempt-1/chk-2/manifest`, so `*/manifest` and `*/chk-2/*` are useful.
    """

    def __init__(self, inner: Files, *, clock: Clock = SYSTEM, rules: _Rules | None = None) -> None:
        self._inner = inner
        self._clock = clock
        self._rules = rules if rules is not None else _Rules()

    # ---------------------------------------------------------------------------------------------------------- rules
    def fail(
        self,
        operation: str = "*",
        path: str = "*",
        *,
        nth: int = 1,
        times: int | None = None,
        error: int = errno.EIO,
    ) -> Failure:
        """From the `nth` matching operation on, `times` of them (None: all) fail with StorageFailed for `error`."""
        failure = Failure(operation, path, nth, times, error)
        self._rules.failures.append(failure)
        return failure

    def stall(self, operation: str = "*", path: str = "*") -> Stall:
        """Matching operations wait until the test releases them."""
        stall = Stall(operation, path)
        self._rules.stalls.append(stall)
        return stall

    def slow(self, seconds: float, operation: str = "*", path: str = "*") -> None:
        """Matching operations take that much longer, by the clock."""
        self._rules.seconds.append((seconds, operation, path))

    def fill_after(self, size: int) -> None:
        """The disk is full once `size` more bytes are written: the write that exceeds it fails in its middle."""
        self._rules.free = size

    def heal(self) -> None:
        """No rule holds any more."""
        self._rules.failures.clear()
        self._rules.seconds.clear()
        for stall in self._rules.stalls:
            stall.release.set()
        self._rules.stalls.clear()
        self._rules.free = None

    async def _obey(self, operation: str, path: str) -> None:
        for seconds, slow_operation, slow_path in self._rules.seconds:
            if fnmatch.fnmatch(operation, slow_operation) and fnmatch.fnmatch(path, slow_path):
                await self._clock.sleep(seconds)
        for stall in list(self._rules.stalls):
            await stall.pass_by(operation, path)
        for failure in self._rules.failures:
            if failure.strikes(operation, path):
                raise storage_failed(operation, self.uri_of(path), OSError(failure.error, os.strerror(failure.error)))

    def _take_room(self, size: int, path: str) -> None:
        if self._rules.free is None:
            return
        if size > self._rules.free:
            raise storage_failed("write", self.uri_of(path), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        self._rules.free -= size

    async def _metered(self, chunks: Chunks, path: str) -> AsyncGenerator[bytes, None]:
        async with contextlib.aclosing(each_chunk(chunks)) as each:
            async for chunk in each:
                self._take_room(len(chunk), path)
                yield chunk

    # ----------------------------------------------------------------------------------------------------- operations
    @property
    def uri(self) -> str:
        return self._inner.uri

    def uri_of(self, path: str) -> str:
        return self._inner.uri_of(path)

    def at(self, uri: str) -> "FailingFiles":
        return FailingFiles(self._inner.at(uri), clock=self._clock, rules=self._rules)

    async def write(self, path: str, chunks: Chunks) -> Written:
        await self._obey("write", path)
        return await self._inner.write(path, self._metered(chunks, path))

    async def create(self, path: str, data: bytes) -> bool:
        await self._obey("create", path)
        self._take_room(len(data), path)
        return await self._inner.create(path, data)

    async def replace(self, path: str, data: bytes) -> None:
        await self._obey("replace", path)
        self._take_room(len(data), path)
        await self._inner.replace(path, data)

    async def read(self, path: str) -> bytes:
        await self._obey("read", path)
        return await self._inner.read(path)

    async def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        await self._obey("read_ranges", path)
        return await self._inner.read_ranges(path, ranges)

    async def digest(self, path: str) -> Written:
        await self._obey("digest", path)
        return await self._inner.digest(path)

    async def stat(self, path: str) -> Entry | None:
        await self._obey("stat", path)
        return await self._inner.stat(path)

    async def list(self, folder: str) -> list[Entry]:
        await self._obey("list", folder)
        return await self._inner.list(folder)

    async def make_folder(self, path: str) -> None:
        await self._obey("make_folder", path)
        await self._inner.make_folder(path)

    async def sync_folder(self, path: str) -> None:
        await self._obey("sync_folder", path)
        await self._inner.sync_folder(path)

    async def delete(self, path: str) -> None:
        await self._obey("delete", path)
        await self._inner.delete(path)

    async def delete_tree(self, path: str, *, keep_folder: bool = False) -> None:
        await self._obey("delete_tree", path)
        await self._inner.delete_tree(path, keep_folder=keep_folder)

    async def lock(self, path: str, what: str, owner: str) -> Lock:
        await self._obey("lock", path)
        return await self._inner.lock(path, what, owner)

    async def close(self) -> None:
        await self._inner.close()
