"""Files in an object store: no folders, no renaming, and nothing to make durable after the answer to a request.

Invariants, beside those of `Files`:
1. A file is made by one request (or by the one that ends an upload in parts), so it appears whole or not at all. An
   upload in parts that failed or was cancelled is aborted.
2. `create` and `write` never overwrite: they ask the store to make an object only if there is none. A store that can't
   is refused before anything relies on it (`ObjectFiles.require_exclusive`).
3. A request that changes anything is never abandoned: whoever is cancelled waits for its answer or its time-out. When
   the answer was lost, the object says whether it was done: it carries a token of the operation that made it. (Also if
   nobody here has tried twice: HTTP clients send a request again on a new connection when a kept one turns out dead.)

Assumed of the store: what a request has made or deleted, every later read and listing of any client sees.
"""

import asyncio
import contextlib
import errno
import hashlib
import logging
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Final, NamedTuple, NoReturn, Protocol, TypeVar

from streamactors.checkpoint.storage.chunks import again, each_chunk
from streamactors.checkpoint.storage.contract import (
    DIGEST_SIZE,
    HASH_INLINE,
    READ_BLOCK,
    Chunks,
    Elsewhere,
    Entry,
    Files,
    Written,
)
from streamactors.checkpoint.storage.lease import Lease, LeaseTimes
from streamactors.checkpoint.storage.retries import Backoff, Retries
from streamactors.checkpoint.storage.uris import is_plain_path, normalise_uri, temporary_name
from streamactors.clock import Clock, uninterrupted
from streamactors.errors import CorruptCheckpoint, InvalidConfig, StorageFailed

T = TypeVar("T")
log = logging.getLogger("streamactors.checkpoint")

PART: Final = 5 * 1024 * 1024
"""Bytes of one part of an upload: S3's least. A file that is being written takes three times that of memory: what comes
together, what is being sent, and the client's copy of that."""
LARGE_PART: Final = 64 * 1024 * 1024
"""So large are those after the first `SMALL_PARTS`, since an upload may have no more than 10,000."""
SMALL_PARTS: Final = 5000
NEAR: Final = 64 * 1024
"""Ranges that lie no further apart than this are read at once."""
READS_AT_ONCE: Final = 8
PROBES: Final = 3
CLEANING: Final = Backoff(tries=3, first=0.1, longest=1.0, give_up_after=10.0)


class Checked(NamedTuple):
    """Bytes to send, and their CRC-32 for the store to check."""

    data: bytes
    crc: int


class Upload(Protocol):
    """An object in the making, of parts; calls never overlap."""

    async def send(self, number: int, part: Checked) -> None:
        """Parts are numbered from 1 in order. Sending one anew replaces it."""

    async def finish(self) -> None:
        """FileExistsError where the store can tell that there is such an object; FileNotFoundError if the upload is not
        there any more."""

    async def abort(self) -> None:
        """No matter if it is finished or aborted."""


class ObjectStore(Protocol):
    """Requests to a bucket, each of which may fail; keys have slashes, but there are no folders.

    Raise OSError: FileNotFoundError if there is no such object, ENODEV if there is no such bucket; see `TRANSIENT` in
    retries.py for what is worth another try.
    """

    async def put(self, key: str, data: Checked, *, token: str | None) -> None:
        """With a token, which the object then carries: FileExistsError, and nothing done, if there is an object."""

    async def upload(self, key: str, token: str) -> Upload: ...
    async def carries(self, key: str, token: str) -> bool | None:
        """Whether there is an object made with the token; None if only its bytes can tell."""

    async def get(self, key: str, start: int, length: int) -> bytes:
        """Fewer bytes at the end of the object; length -1: all the rest."""

    async def size(self, key: str) -> int | None:
        """None if there is no such object."""

    async def children(self, prefix: str) -> list[Entry]:
        """What comes after `prefix` (which ends with a slash, or is empty), up to the next slash, in any order."""

    async def keys(self, prefix: str) -> list[str]:
        """All that begin with it."""

    async def delete(self, keys: Sequence[str]) -> None:
        """No matter if they are gone."""

    async def abort_uploads(self, prefix: str) -> int:
        """Uploads that nobody will finish, of a key, or of all that begin with a prefix which ends with a slash; how
        many there were."""

    async def close(self) -> None: ...


class Bucket:
    """One object store, and what all `ObjectFiles` in it share. `name`: of the store, for people."""

    def __init__(self, name: str, store: ObjectStore, clock: Clock, backoff: Backoff) -> None:
        self.name = name
        self.store = store
        self.clock = clock
        self.retries = Retries(clock, backoff)
        self.cleaning = Retries(clock, CLEANING)
        self.checking = asyncio.Lock()
        self.exclusive = False
        """Whether it is known to create only what is absent."""
        self.reading = asyncio.Semaphore(READS_AT_ONCE)


class ObjectFiles:
    """Files below a URI such as `s3://bucket/path`, `key` being the path in the bucket."""

    def __init__(self, uri: str, key: str, bucket: Bucket, elsewhere: Elsewhere, times: LeaseTimes) -> None:
        self.uri = uri
        self._root = key
        self._bucket = bucket
        self._store = bucket.store
        self._clock = bucket.clock
        self._elsewhere = elsewhere
        self._times = times

    def at(self, uri: str) -> Files:
        return self._elsewhere.files(normalise_uri(uri))

    def uri_of(self, path: str) -> str:
        return f"{self.uri}/{path}" if path else self.uri

    async def close(self) -> None:
        await self._elsewhere.close()

    def _key(self, path: str) -> str:
        if path and not is_plain_path(path):
            raise ValueError(f"{path!r} leads out of {self.uri}")
        return f"{self._root}/{path}" if self._root and path else self._root or path

    def _prefix(self, path: str) -> str:
        key = self._key(path)
        return f"{key}/" if key else ""

    # ------------------------------------------------------------------------------------------------------- requests
    async def _do(
        self,
        doing: str,
        path: str,
        request: Callable[[], Awaitable[T]],
        *,
        retries: Retries | None = None,
        expected: tuple[type[OSError], ...] = (),
    ) -> T:
        """What is `expected` is for the caller; all else is StorageFailed."""
        uri = self.uri_of(path)
        try:
            return await (retries or self._bucket.retries).call(f"can't {doing} {uri}", request)
        except expected:
            raise
        except OSError as error:
            raise object_storage_failed(doing, uri, error) from error

    async def _change(
        self,
        doing: str,
        path: str,
        request: Callable[[], Awaitable[T]],
        *,
        retries: Retries | None = None,
        expected: tuple[type[OSError], ...] = (),
    ) -> T:
        """Likewise, but a request under way is not abandoned."""

        async def whole() -> T:
            return await request()

        return await self._do(doing, path, lambda: uninterrupted(whole()), retries=retries, expected=expected)

    # -------------------------------------------------------------------------------------------------------- writing
    async def write(self, path: str, chunks: Chunks) -> Written:
        digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
        async with contextlib.aclosing(_parts(chunks)) as parts:
            taken = [await anext(parts, b"")]
            if len(taken[0]) == PART:
                return await self._write_in_parts(path, again(taken, parts), digest)
            data = await self._checked(taken[0], digest)
            written = Written(len(data.data), digest.digest())
            await self._write_at_once(path, data, written)
            return written

    async def _write_at_once(self, path: str, data: Checked, written: Written) -> None:
        key, token = self._key(path), self._clock.token()

        async def put() -> None:
            await self._store.put(key, data, token=token)

        await self._make(path, put, token, written)

    async def _write_in_parts(self, path: str, parts: AsyncGenerator[bytes, None], digest: hashlib.blake2b) -> Written:
        token = self._clock.token()
        upload = await self._begin_upload(path, token)
        try:
            size = number = 0
            async with contextlib.aclosing(parts):
                async for part in parts:
                    number += 1
                    size += await self._send(upload, path, number, await self._checked(part, digest))
            written = Written(size, digest.digest())
            await self._make(path, upload.finish, token, written)
        except BaseException:
            await self._clean("abort", path, upload.abort)
            raise
        return written

    async def _begin_upload(self, path: str, token: str) -> Upload:
        key = self._key(path)

        async def abort() -> int:
            return await self._store.abort_uploads(key)

        try:
            return await self._change("write", path, lambda: self._store.upload(key, token))
        except BaseException:
            await self._clean("abort", path, abort)  # it may have begun; the key is ours alone
            raise

    async def _send(self, upload: Upload, path: str, number: int, part: Checked) -> int:
        await self._change("write", path, lambda: upload.send(number, part))
        return len(part.data)

    async def _clean(self, doing: str, path: str, request: Callable[[], Awaitable[object]]) -> None:
        """Must not hide why, nor be cut short; what can't be cleaned up now is when the job starts again."""
        try:
            await uninterrupted(self._change(doing, path, request, retries=self._bucket.cleaning))
        except StorageFailed as error:
            log.warning("something may be left behind: %s", error)

    async def _make(self, path: str, request: Callable[[], Awaitable[None]], token: str, written: Written) -> None:
        """Make an object that is not there, or leave nothing; raises StorageFailed if there is another one."""
        in_the_way = False

        async def make() -> None:
            nonlocal in_the_way
            try:
                await request()
            except FileExistsError:
                in_the_way = True
                raise

        try:
            created = await self._created("write", path, make, token, written)
        except BaseException:
            if not in_the_way:
                await self._discard(path)
            raise
        if not created:
            raise object_storage_failed("write", self.uri_of(path), FileExistsError(errno.EEXIST, "File exists"))

    async def _created(
        self, doing: str, path: str, request: Callable[[], Awaitable[None]], token: str, written: Written
    ) -> bool:
        """Whether the request made the object. It may have, and be refused since the object is there, or since the
        upload is not there any more: when it was sent again after its answer was lost."""
        try:
            await self._change(doing, path, request, expected=(FileExistsError, FileNotFoundError))
        except (FileExistsError, FileNotFoundError) as error:
            if await self._is_ours(path, token, written):
                return True
            if isinstance(error, FileExistsError):
                return False
            raise object_storage_failed(doing, self.uri_of(path), error) from error
        return True

    async def _is_ours(self, path: str, token: str, written: Written) -> bool:
        key = self._key(path)
        ours = await self._do("look at", path, lambda: self._store.carries(key, token))
        if ours is None:
            return await self._size(path) == written.size and await self.digest(path) == written
        return ours

    async def _discard(self, path: str) -> None:
        key = self._key(path)
        await self._clean("delete", path, lambda: self._store.delete([key]))

    async def create(self, path: str, data: bytes) -> bool:
        await self.require_exclusive(_parent(path))
        return await self._create(path, data)

    async def _create(self, path: str, data: bytes) -> bool:
        key, token = self._key(path), self._clock.token()
        checked = Checked(data, zlib.crc32(data))

        async def put() -> None:
            await self._store.put(key, checked, token=token)

        return await self._created("create", path, put, token, _written(data))

    async def replace(self, path: str, data: bytes) -> None:
        key = self._key(path)
        checked = Checked(data, zlib.crc32(data))

        await self._change("replace", path, lambda: self._store.put(key, checked, token=None))

    async def _checked(self, data: bytes, digest: hashlib.blake2b) -> Checked:
        def check() -> Checked:
            digest.update(data)
            return Checked(data, zlib.crc32(data))

        return check() if len(data) <= HASH_INLINE else await uninterrupted(self._clock.run_blocking(check))

    async def require_exclusive(self, folder: str) -> None:
        """Find out by trying whether the store creates only what is absent; raises InvalidConfig if it overwrites."""
        async with self._bucket.checking:
            # More than once: another process may have taken it for left behind, and deleted it in between.
            for _ in range(PROBES):
                if self._bucket.exclusive:
                    return
                name = temporary_name("probe", self._clock.token())
                self._bucket.exclusive = await self._probe(f"{folder}/{name}" if folder else name)
        if not self._bucket.exclusive:
            self._refuse()

    async def _probe(self, path: str) -> bool:
        try:
            return await self._create(path, b"1") and not await self._create(path, b"2")
        except StorageFailed as error:
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in (errno.ENOSYS, errno.ENOTSUP):
                raise
            return False
        finally:
            await self._discard(path)

    def _refuse(self) -> NoReturn:
        raise InvalidConfig(
            f"{self._bucket.name} can't be used for checkpoints: it does not create an object only if it is absent "
            "(If-None-Match), so that two processes could not be kept from overwriting each other's. Use a newer "
            "version of that store, another one, or a local or mounted folder."
        )

    # -------------------------------------------------------------------------------------------------------- reading
    async def read(self, path: str) -> bytes:
        return await self._get(path, 0, -1)

    async def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        spans = _spans(ranges)
        tasks = [asyncio.ensure_future(self._get_span(path, start, stop)) for start, stop in spans]
        try:
            parts = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [self._cut(path, spans, parts, offset, length) for offset, length in ranges]

    def _cut(
        self, path: str, spans: Sequence[tuple[int, int]], parts: Sequence[bytes], offset: int, length: int
    ) -> bytes:
        if not length:
            return b""
        at = next(index for index, (start, stop) in enumerate(spans) if start <= offset and offset + length <= stop)
        begin = offset - spans[at][0]
        part = parts[at][begin : begin + length]
        if len(part) != length:
            raise CorruptCheckpoint(
                f"{self.uri_of(path)} is truncated: expected {length} bytes at offset {offset}, found {len(part)}"
            )
        return part

    async def _get_span(self, path: str, start: int, stop: int) -> bytes:
        async with self._bucket.reading:
            return await self._get(path, start, stop - start)

    async def _get(self, path: str, start: int, length: int) -> bytes:
        key = self._key(path)
        try:
            return await self._do(
                "read", path, lambda: self._store.get(key, start, length), expected=(FileNotFoundError,)
            )
        except FileNotFoundError as error:
            raise CorruptCheckpoint(f"{self.uri_of(path)} is missing: expected a file, found none") from error

    async def digest(self, path: str) -> Written:
        digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
        size = 0
        while True:
            block = await self._get_span(path, size, size + READ_BLOCK)
            if len(block) <= HASH_INLINE:
                digest.update(block)
            else:
                await uninterrupted(self._clock.run_blocking(digest.update, block))
            size += len(block)
            if len(block) < READ_BLOCK:
                return Written(size, digest.digest())

    async def stat(self, path: str) -> Entry | None:
        name = path.rpartition("/")[2]
        if path and (size := await self._size(path)) is not None:
            return Entry(name, False, size)
        return Entry(name, True, 0) if await self.list(path) else None

    async def _size(self, path: str) -> int | None:
        key = self._key(path)
        return await self._do("look at", path, lambda: self._store.size(key))

    async def list(self, folder: str) -> list[Entry]:
        prefix = self._prefix(folder)
        found = await self._do("list", folder, lambda: self._store.children(prefix))
        return sorted(entry for entry in found if entry.name)  # some tools mark a folder by an empty object

    # ------------------------------------------------------------------------------------------------ folders, deletion
    async def make_folder(self, path: str) -> None:
        self._key(path)

    async def sync_folder(self, path: str) -> None:
        self._key(path)

    async def delete(self, path: str) -> None:
        key = self._key(path)
        await self._change("delete", path, lambda: self._store.delete([key]))

    async def delete_tree(self, path: str, *, keep_folder: bool = False) -> None:
        prefix = self._prefix(path)
        keys = await self._do("list", path, lambda: self._store.keys(prefix))
        if keys:
            await self._change("delete", path, lambda: self._store.delete(keys))

    # ------------------------------------------------------------------------------------------------------- ownership
    async def lock(self, path: str, what: str, owner: str) -> Lease:
        """A lease. Whoever takes it is the owner, so uploads under way beside it belong to a dead process."""
        folder = _parent(path)
        await self.require_exclusive(folder)
        lease = await Lease.take(self, path, what=what, owner=owner, clock=self._clock, times=self._times)
        try:
            await self._abort_uploads(folder)
        except BaseException:
            await lease.release()
            raise
        return lease

    async def _abort_uploads(self, folder: str) -> None:
        prefix = self._prefix(folder)
        try:
            count = await self._change("list uploads in", folder, lambda: self._store.abort_uploads(prefix))
        except StorageFailed as error:
            log.warning("unfinished uploads of an earlier process, if any, are left behind: %s", error)
        else:
            if count:
                log.info("aborted %d unfinished uploads of an earlier process in %s", count, self.uri_of(folder))


def _written(data: bytes) -> Written:
    return Written(len(data), hashlib.blake2b(data, digest_size=DIGEST_SIZE).digest())


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


async def _parts(chunks: Chunks) -> AsyncGenerator[bytes, None]:
    """The same bytes in parts of one size, the last one excepted: some stores want that."""
    number, size, waiting = 1, PART, bytearray()
    async with contextlib.aclosing(each_chunk(chunks)) as each:
        async for chunk in each:
            waiting += chunk
            while len(waiting) >= size:
                yield _take(waiting, size)
                number += 1
                size = PART if number <= SMALL_PARTS else LARGE_PART
    if waiting:
        yield bytes(waiting)


def _take(waiting: bytearray, size: int) -> bytes:
    with memoryview(waiting) as view:
        taken = bytes(view[:size])
    del waiting[:size]
    return taken


def _spans(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Where to read (start, stop) for these (offset, length): what lies side by side at once, but not without end."""
    spans: list[tuple[int, int]] = []
    for offset, length in sorted(ranges):
        if not length:
            continue
        start, stop = spans[-1] if spans else (0, 0)
        if spans and offset <= stop + NEAR and offset + length - start <= max(READ_BLOCK, stop - start):
            spans[-1] = (start, max(stop, offset + length))
        else:
            spans.append((offset, offset + length))
    return spans


# --------------------------------------------------------------------------------------------------------------- errors
_ADVICE: Final = {
    errno.EACCES: "Check the credentials, and that they may read, write, list and delete there.",
    errno.EPERM: "Check the credentials, and that they may read, write, list and delete there.",
    errno.ENODEV: "Create it, or correct the URI, the region or the endpoint.",
    errno.ENOENT: "Check the URI and the endpoint: is that the store?",
    errno.EEXIST: "A file of that name is in the way: was it put there by hand?",
    errno.EINVAL: "Check the URI and the storage options.",
}
_CHECK_STORE: Final = "Check that the store is up and can be reached from here."


def object_storage_failed(doing: str, uri: str, error: OSError) -> StorageFailed:
    """Names what was tried on which object, the reason, and what to check."""
    number = errno.EACCES if isinstance(error, PermissionError) else error.errno or 0
    reason = error.strerror or str(error) or type(error).__name__
    failure = StorageFailed(f"can't {doing} {uri}: {reason}. {_ADVICE.get(number, _CHECK_STORE)}")
    failure.__cause__ = error
    return failure
