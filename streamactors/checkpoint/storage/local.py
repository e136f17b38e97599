"""`Files` on a local file system, built over a `Disk`."""

import contextlib
import errno
import hashlib
import os
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

from streamactors.checkpoint.storage.chunks import blocks
from streamactors.checkpoint.storage.contract import (
    DIGEST_SIZE,
    HASH_INLINE,
    READ_BLOCK,
    Chunks,
    Elsewhere,
    Entry,
    Files,
    Lock,
    Written,
)
from streamactors.checkpoint.storage.disk import Disk, DiskFile, DiskLock, LocalDisk
from streamactors.checkpoint.storage.refusals import storage_failed
from streamactors.checkpoint.storage.uris import is_object_uri, is_plain_path, local_path, normalise_uri, temporary_name
from streamactors.clock import SYSTEM, Clock, uninterrupted
from streamactors.errors import CorruptCheckpoint, InvalidConfig, StorageInUse

T = TypeVar("T")


class LocalFiles:
    """Files under a local folder, given as `file:///path` or as a plain path. `elsewhere`: what `at` finds in no local
    folder."""

    def __init__(
        self, root: str, *, clock: Clock = SYSTEM, disk: Disk | None = None, elsewhere: Elsewhere | None = None
    ) -> None:
        self.uri = normalise_uri(root)
        if is_object_uri(self.uri):
            raise InvalidConfig(f"storage {self.uri} is no local folder. Give a path, or file:///absolute/path.")
        self._root = local_path(self.uri)
        self._clock = clock
        self._disk = disk if disk is not None else LocalDisk(clock)
        self._elsewhere = elsewhere

    def at(self, uri: str) -> Files:
        uri = normalise_uri(uri)
        if is_object_uri(uri) and self._elsewhere is not None:
            return self._elsewhere.files(uri)
        return LocalFiles(uri, clock=self._clock, disk=self._disk, elsewhere=self._elsewhere)

    async def close(self) -> None:
        if self._elsewhere is not None:
            await self._elsewhere.close()

    def uri_of(self, path: str) -> str:
        return f"{self.uri.rstrip('/')}/{quote(path)}" if path else self.uri

    def _local(self, path: str) -> str:
        if not path:
            return self._root
        if not is_plain_path(path):
            raise ValueError(f"{path!r} leads out of {self.uri}")
        return os.path.join(self._root, *path.split("/"))

    async def _do(self, doing: str, path: str, operation: Coroutine[Any, Any, T]) -> T:
        try:
            return await uninterrupted(operation)
        except OSError as error:
            raise storage_failed(doing, self.uri_of(path), error) from error

    # -------------------------------------------------------------------------------------------------------- writing
    async def write(self, path: str, chunks: Chunks) -> Written:
        file = self._disk.file(self._local(path))
        digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
        size = 0
        try:
            await self._do("create", path, file.open())
            async with contextlib.aclosing(blocks(chunks)) as each:
                async for block in each:
                    await self._hash(digest, block)
                    await self._do("write", path, file.write(block))
                    size += len(block)
            await self._do("sync", path, file.sync())
            await self._do("close", path, file.close())
        except BaseException:
            await self._discard(file, self._local(path))
            raise
        return Written(size, digest.digest())

    async def _hash(self, digest: hashlib.blake2b, block: bytes) -> None:
        if len(block) <= HASH_INLINE:
            digest.update(block)
        else:
            await self._clock.run_blocking(digest.update, block)

    async def _discard(self, file: DiskFile, local: str) -> None:
        """Cleaning up must not hide why: what can't be removed now is removed with its folder."""
        with contextlib.suppress(OSError):  # the bytes that a full disk refused are tried once more by close
            await uninterrupted(file.close())
        if file.created:
            with contextlib.suppress(OSError):
                await uninterrupted(self._disk.unlink(local))

    async def create(self, path: str, data: bytes) -> bool:
        async with self._temporary(path, data) as temporary:
            created = await self._publish(temporary, path)
        if created:
            await self.sync_folder(_parent(path))
        return created

    async def _publish(self, temporary: str, path: str) -> bool:
        """Give a file its name, which nothing else may have: a hard link can't overwrite."""
        target = self._local(path)
        try:
            await uninterrupted(self._disk.link(temporary, target))
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise storage_failed("create", self.uri_of(path), error) from error
            # No hard links here (FAT, some network folders). The lock on the flow's folder keeps others out meanwhile.
            if await self.stat(path) is not None:
                return False
            await self._do("create", path, self._disk.rename(temporary, target))
        return True

    async def replace(self, path: str, data: bytes) -> None:
        async with self._temporary(path, data) as temporary:
            await self._do("replace", path, self._disk.rename(temporary, self._local(path)))
        await self.sync_folder(_parent(path))

    @contextlib.asynccontextmanager
    async def _temporary(self, path: str, data: bytes) -> AsyncIterator[str]:
        """A file with these bytes, durable, that is gone afterwards unless it was renamed."""
        folder, name = os.path.split(self._local(path))
        local = os.path.join(folder, temporary_name(name, self._clock.token()))
        file = self._disk.file(local)
        try:
            await self._do("create", path, file.open())
            await self._do("write", path, file.write(data))
            await self._do("sync", path, file.sync())
            await self._do("close", path, file.close())
            yield local
        finally:
            await self._discard(file, local)

    # -------------------------------------------------------------------------------------------------------- reading
    async def read(self, path: str) -> bytes:
        return (await self._read(path, [(0, -1)]))[0]

    async def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        parts = await self._read(path, ranges)
        for (offset, length), part in zip(ranges, parts, strict=True):
            if len(part) != length:
                raise CorruptCheckpoint(
                    f"{self.uri_of(path)} is truncated: expected {length} bytes at offset {offset}, found {len(part)}"
                )
        return parts

    async def _read(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        try:
            return await uninterrupted(self._disk.read(self._local(path), ranges))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CorruptCheckpoint(f"{self.uri_of(path)} is missing: expected a file, found none") from error
        except OSError as error:
            raise storage_failed("read", self.uri_of(path), error) from error

    async def digest(self, path: str) -> Written:
        digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
        size = 0
        while True:
            [block] = await self._read(path, [(size, READ_BLOCK)])
            await self._hash(digest, block)
            size += len(block)
            if len(block) < READ_BLOCK:
                return Written(size, digest.digest())

    async def stat(self, path: str) -> Entry | None:
        return await self._do("look at", path, self._disk.stat(self._local(path)))

    async def list(self, folder: str) -> list[Entry]:
        try:
            return await uninterrupted(self._disk.scan(self._local(folder)))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise storage_failed("list", self.uri_of(folder), error) from error

    # ------------------------------------------------------------------------------------------------ folders, deletion
    async def make_folder(self, path: str) -> None:
        folder = self._local(path)
        missing = []
        while await self._do("look at", path, self._disk.stat(folder)) is None:
            missing.append(folder)
            folder = os.path.dirname(folder)
        # Whoever made the deepest folder there is may have died before its name was durable.
        with contextlib.suppress(OSError):  # often not ours to open; then not ours to make durable either
            await uninterrupted(self._disk.sync_folder(os.path.dirname(folder)))
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):
                await self._make_folder(path, folder)
            await self._do("sync", path, self._disk.sync_folder(os.path.dirname(folder)))

    async def _make_folder(self, path: str, folder: str) -> None:
        try:
            await uninterrupted(self._disk.make_folder(folder))
        except FileExistsError:
            raise
        except OSError as error:
            raise storage_failed("create folder", self.uri_of(path), error) from error

    async def sync_folder(self, path: str) -> None:
        await self._do("sync folder", path, self._disk.sync_folder(self._local(path)))

    async def delete(self, path: str) -> None:
        try:
            await uninterrupted(self._disk.unlink(self._local(path)))
            await uninterrupted(self._disk.sync_folder(self._local(_parent(path))))
        except FileNotFoundError:
            return
        except OSError as error:
            raise storage_failed("delete", self.uri_of(path), error) from error

    async def delete_tree(self, path: str, *, keep_folder: bool = False) -> None:
        folder = self._local(path)
        try:
            with contextlib.suppress(FileNotFoundError):
                await self._empty(folder)
                if not keep_folder:
                    await uninterrupted(self._disk.remove_folder(folder))
        except OSError as error:
            raise storage_failed("delete", self.uri_of(path), error) from error

    async def _empty(self, folder: str) -> None:
        for entry in await uninterrupted(self._disk.scan(folder)):
            path = os.path.join(folder, entry.name)
            with contextlib.suppress(FileNotFoundError):
                if entry.folder:
                    await self._empty(path)
                    await uninterrupted(self._disk.remove_folder(path))
                else:
                    await uninterrupted(self._disk.unlink(path))

    # ------------------------------------------------------------------------------------------------------- ownership
    async def lock(self, path: str, what: str, owner: str) -> Lock:
        lock = self._disk.lock(self._local(path))
        try:
            holder = await self._do("lock", path, lock.acquire(owner))
        except BaseException:
            await uninterrupted(lock.release())
            raise
        if holder is not None:
            raise StorageInUse(
                f"{what} is in use by {holder}. Stop that job first, or give this one another storage: "
                "one live job at a time may write a flow's checkpoints."
            )
        return LocalLockOf(self, path, lock)


class LocalLockOf:
    """A `Lock` of a `LocalFiles`."""

    def __init__(self, files: LocalFiles, path: str, lock: DiskLock) -> None:
        self._files = files
        self._path = path
        self._lock = lock

    async def held(self) -> bool:
        return await self._files._do("look at", self._path, self._lock.held())

    async def release(self) -> None:
        await uninterrupted(self._lock.release())


def _parent(path: str) -> str:
    return path.rpartition("/")[0]
