"""The one door to files. A `Files` is what checkpoints are written to and read from; `LocalFiles` is one on a local
file system, built over a `Disk`: the few primitive operations that a crash can fall between.

Invariants of every `Files`:
1. A file appears whole under its name or not at all, except that a crash may leave a part of one made by `write`.
2. What `create` and `replace` have returned for survives a crash. What `write` has made survives once `sync_folder` has
   returned for its folder.
3. An operation that failed or was cancelled leaves no file behind that it made, and no thread at work.
"""

import contextlib
import errno
import hashlib
import os
import socket
import sys
import weakref
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Coroutine, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, Protocol, TypeVar
from urllib.parse import quote, unquote

import aiofiles
from aiofiles.threadpool.binary import AsyncBufferedIOBase

from streamactors.clock import SYSTEM, Clock, uninterrupted
from streamactors.errors import CorruptCheckpoint, InvalidConfig, StorageFailed, StorageInUse

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

T = TypeVar("T")
Chunks = Iterable[bytes] | AsyncIterable[bytes]

DIGEST_SIZE: Final = 16
BLOCK: Final = 256 * 1024
"""Bytes that are written at once: smaller chunks are joined, since every trip to a thread costs some 50 µs."""
READ_BLOCK: Final = 4 * 1024 * 1024
HASH_INLINE: Final = 32 * 1024
"""Up to this many bytes (about 30 µs) are hashed on the loop."""


class Entry(NamedTuple):
    """A file or folder; `size` in bytes, 0 for a folder."""

    name: str
    folder: bool
    size: int


class Written(NamedTuple):
    """`digest` is blake2b over the whole file."""

    size: int
    digest: bytes


class Lock(Protocol):
    """Ownership of a lock file, until released or until the process dies."""

    async def held(self) -> bool:
        """False if the lock file was removed or replaced, so that somebody else may hold a lock of that name."""

    async def release(self) -> None: ...


class Files(Protocol):
    """Paths are relative to the root `uri`, with slashes, "" being the root itself.

    Raises StorageFailed where the storage refuses, CorruptCheckpoint where a file to be read is missing or too short.
    """

    @property
    def uri(self) -> str: ...
    def uri_of(self, path: str) -> str: ...
    def at(self, uri: str) -> "Files":
        """The same kind of files, rooted elsewhere."""

    async def write(self, path: str, chunks: Chunks) -> Written:
        """A new file. `sync_folder` makes its name durable."""

    async def create(self, path: str, data: bytes) -> bool:
        """Create durably if absent: False, and nothing done, if it exists."""

    async def replace(self, path: str, data: bytes) -> None:
        """Create durably, or replace in one step."""

    async def read(self, path: str) -> bytes: ...
    async def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of each (offset, length)."""

    async def digest(self, path: str) -> Written:
        """What `write` returned, computed anew from the stored bytes."""

    async def stat(self, path: str) -> Entry | None:
        """None if there is nothing."""

    async def list(self, folder: str) -> list[Entry]:
        """Sorted by name; empty if there is no such folder."""

    async def make_folder(self, path: str) -> None:
        """With its parents, durably; no matter if it exists."""

    async def sync_folder(self, path: str) -> None: ...
    async def delete(self, path: str) -> None:
        """Delete a file durably; no matter if it is gone."""

    async def delete_tree(self, path: str, *, keep_folder: bool = False) -> None:
        """Delete all that a folder holds, and the folder; no matter if it is gone."""

    async def lock(self, path: str, what: str, owner: str) -> Lock:
        """Take a lock that dies with the process, and note `owner` in it; `what` names the locked thing in the
        StorageInUse that is raised if a live process, this one included, holds it."""

    async def close(self) -> None:
        """Give up connections, also those of all that came by `at`. For whoever opened the first of them."""


class Elsewhere(Protocol):
    """Files of other kinds, by normalised URI."""

    def files(self, uri: str) -> Files: ...
    async def close(self) -> None: ...


# ------------------------------------------------------------------------------------------------------- the primitives
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


_held_locks: "weakref.WeakSet[LocalLock]" = weakref.WeakSet()


def _forget_locks_in_child() -> None:
    """A lock belongs to its open file: a forked child that outlives its parent would keep the storage locked."""
    for lock in list(_held_locks):
        lock.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks_in_child)


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
        await self._clock.run_blocking(self.close)

    def close(self) -> None:
        _held_locks.discard(self)
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _acquire(self, owner: str) -> str | None:
        with contextlib.ExitStack() as opened:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            file = opened.enter_context(open(descriptor, "r+b", buffering=0))
            if not _try_lock(file):
                return file.read().decode(errors="replace").strip() or "a process that is just starting"
            if not _is_at(file, self._path):
                return "a process that is just starting"  # it removed or replaced the file meanwhile
            file.truncate(0)
            file.write(f"{owner}\n".encode())
            self._file = file
            _held_locks.add(self)
            opened.pop_all()
        return None

    def _held(self) -> bool:
        return self._file is not None and _is_at(self._file, self._path)


def _is_at(file: IO[bytes], path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


if sys.platform == "win32":
    _LOCKED_BYTE = 1 << 30  # locks are mandatory there: one far behind the note, which others must be able to read

    def _try_lock(file: IO[bytes]) -> bool:
        file.seek(_LOCKED_BYTE)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            file.seek(0)
        return True

else:

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


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


# ---------------------------------------------------------------------------------------------------------- local files
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
            async with contextlib.aclosing(_blocks(chunks)) as blocks:
                async for block in blocks:
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


async def _blocks(chunks: Chunks) -> AsyncGenerator[bytes, None]:
    """The same bytes in blocks of at least `BLOCK` bytes, the last one excepted."""
    small: list[bytes] = []
    size = 0
    async with contextlib.aclosing(each_chunk(chunks)) as each:
        async for chunk in each:
            small.append(chunk)
            size += len(chunk)
            if size >= BLOCK:
                yield small[0] if len(small) == 1 else b"".join(small)
                small, size = [], 0
    if size:
        yield b"".join(small)


async def each_chunk(chunks: Chunks) -> AsyncGenerator[bytes, None]:
    """Closes an asynchronous generator that it was given when it is closed itself."""
    if isinstance(chunks, AsyncIterable):
        iterator = aiter(chunks)
        try:
            async for chunk in iterator:
                yield chunk
        finally:
            if isinstance(iterator, AsyncGenerator):
                await iterator.aclose()
    else:
        for chunk in chunks:
            yield chunk


async def again(taken: list[bytes], rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """What was taken from the front of `rest`, and the rest. Lets go of each chunk as it is written."""
    taken.reverse()
    while taken:
        yield taken.pop()
    async for chunk in rest:
        yield chunk


# ------------------------------------------------------------------------------------------------------- names, errors
OBJECT_STORES: Final = ("s3", "gs", "az", "abfs", "abfss", "memory")
"""Schemes of the stores whose files appear whole, or not at all."""
_SAME_STORE: Final = {"s3a": "s3", "gcs": "gs"}


def normalise_uri(uri: str) -> str:
    """`file:///absolute/path` for such a URI or a plain path, `s3://bucket/path` for an object store; raises
    InvalidConfig for anything else."""
    if not uri or "\0" in uri:
        raise InvalidConfig(f"storage {uri!r} names no folder. Give a path, or file:///absolute/path.")
    scheme, colon, rest = uri.partition(":")
    if colon and rest.startswith("//") and scheme.lower() != "file":
        return _normalise_object_uri(scheme.lower(), rest[2:])
    return _normalise_local_uri(uri)


def _normalise_local_uri(uri: str) -> str:
    scheme, colon, rest = uri.partition(":")
    if colon and scheme.lower() == "file":
        host, slash, path = rest[2:].partition("/") if rest.startswith("//") else ("", rest[:1], rest[1:])
        if slash != "/" or host not in ("", "localhost"):
            raise InvalidConfig(f"storage {uri!r} is no absolute file URI. Write three slashes: file:///absolute/path.")
        path = unquote(path if sys.platform == "win32" else f"/{path}")
    else:
        path = os.path.expanduser(uri)
    return Path(os.path.abspath(path)).as_uri()


def _normalise_object_uri(scheme: str, rest: str) -> str:
    """What is wrong is not repeated: it may hold a secret."""
    scheme = _SAME_STORE.get(scheme, scheme)
    if scheme not in OBJECT_STORES:
        raise InvalidConfig(
            f"storage {scheme}://… is not supported: {scheme!r} is none of {', '.join(OBJECT_STORES)}. Local and "
            "mounted folders are, as file:///absolute/path or a plain path."
        )
    bucket, _, path = rest.partition("/")
    user, at, host = bucket.rpartition("@")
    names_account = at and scheme not in ("s3", "gs", "memory") and ":" not in user  # abfs://container@account.…
    if (at and not names_account) or "?" in rest or "#" in rest:
        raise InvalidConfig(
            f"storage {scheme}://…: credentials and options don't belong into a URI. Give them by the environment, or "
            "as Checkpoints(storage_options=…)."
        )
    path = path.rstrip("/")
    if not host or (path and not is_plain_path(path)):
        raise InvalidConfig(f"storage {scheme}://… names no bucket and path: write {scheme}://bucket/path.")
    return f"{scheme}://{bucket}/{path}" if path else f"{scheme}://{bucket}"


def is_object_uri(uri: str) -> bool:
    """Of a normalised URI."""
    return not uri.startswith("file:")


def local_path(uri: str) -> str:
    """The path of a normalised file URI."""
    path = unquote(uri.removeprefix("file://"))
    return path.removeprefix("/") if sys.platform == "win32" else path


def is_plain_path(path: str) -> bool:
    """Whether a relative path stays below its root."""
    return all(part not in ("", ".", "..") and "\\" not in part and "\0" not in part for part in path.split("/"))


def temporary_name(name: str, token: str) -> str:
    return f".{name}.{token}.tmp"


def is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def this_process(clock: Clock) -> str:
    """Names this process to people: pid, host, time."""
    since = datetime.fromtimestamp(clock.time_ms() // 1000, UTC).isoformat()
    return f"process {os.getpid()} on {socket.gethostname()}, since {since}"


def process_identity(pid: int | None = None) -> str | None:
    """Tells a live process (this one) from all others, of whatever machine and time; None if there is no such process,
    or the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
        status = Path(f"/proc/{os.getpid() if pid is None else pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    since = status.rpartition(")")[2].split()[19]
    return f"{boot} {namespace} {os.getpid() if pid is None else pid} {since}"


def is_dead(identity: str) -> bool:
    """Whether that process is known to have ended: it ran here, and does no more."""
    mine = (process_identity() or "").split()
    other = identity.split()
    if len(mine) != 4 or len(other) != 4 or other[:2] != mine[:2] or not other[2].isdigit():
        return False
    return process_identity(int(other[2])) != identity


_FREE_SPACE = "Free space there, or give the job a storage with more room."
_PERMIT = "Let the user that runs this process write there, or give the job another storage."
_MORE_FILES = "Raise the limit of open files (ulimit -n)."
_CHECK_DISK = "Check that the disk or network folder is healthy and mounted."
_ADVICE: Final = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EFBIG: _FREE_SPACE,
    errno.EACCES: _PERMIT,
    errno.EPERM: _PERMIT,
    errno.EROFS: _PERMIT,
    errno.EMFILE: _MORE_FILES,
    errno.ENFILE: _MORE_FILES,
    errno.ENOTDIR: "A file is in the way of a folder: give the job another storage.",
    errno.EEXIST: "A file of that name is in the way: was it put there by hand?",
    errno.ENAMETOOLONG: "Use shorter names for the flow and its operators, or a storage with a shorter path.",
    errno.ENOLCK: "This file system can't lock: put the storage on one that can (local disk, NFS 4).",
}


def storage_failed(doing: str, uri: str, error: OSError) -> StorageFailed:
    """Names what was tried on which file, the reason, and what to do."""
    advice = _ADVICE.get(error.errno or 0, _CHECK_DISK)
    return StorageFailed(f"can't {doing} {uri}: {error.strerror or error}. {advice}")
