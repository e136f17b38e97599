"""Object stores other than S3, by whatever fsspec has for them: in threads, or in memory.

What fsspec has for Google's and Azure's stores runs an event loop of its own in a thread of its own, and is called like
any blocking library.
"""

import asyncio
import errno
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, ParamSpec, Protocol, TypeVar

from streamactors.checkpoint.storage.contract import Entry
from streamactors.checkpoint.storage.object_storage import Checked, Upload
from streamactors.clock import Clock, uninterrupted
from streamactors.errors import InvalidConfig

P = ParamSpec("P")
T = TypeVar("T")

UPLOAD_BLOCK: Final = 8 * 1024 * 1024


class Runner(Protocol):
    """Where blocking calls run."""

    def __call__(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]: ...


async def inline(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """For what never blocks. So nothing comes in between its steps either."""
    return fn(*args, **kwargs)


class FsspecStore:
    """An `ObjectStore`. `uri`: of the bucket. `options` are those of the file system; connects on first use."""

    def __init__(self, uri: str, options: Mapping[str, Any], clock: Clock) -> None:
        self._uri = uri
        self._options = options
        self._in_memory = uri.startswith("memory:")
        self._run: Runner = inline if self._in_memory else clock.run_blocking
        self._connecting = asyncio.Lock()
        self._connected: tuple[Any, str] | None = None

    async def _connect(self) -> tuple[Any, str]:
        """The file system, and the bucket's path in it."""
        async with self._connecting:
            if self._connected is None:
                self._connected = await uninterrupted(self._run(self._opened))
            return self._connected

    def _opened(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        try:
            files, path = url_to_fs(self._uri, use_listings_cache=False, skip_instance_cache=True, **self._options)
        except (TypeError, ValueError, KeyError) as error:
            # Not chained: it may show values.
            raise InvalidConfig(
                f"{self._uri}: the storage options {', '.join(sorted(self._options)) or '(none)'} are not what its "
                f"file system takes ({type(error).__name__}). See docs/storage.md."
            ) from None
        return files, path.rstrip("/")

    async def _do(self, work: Callable[[Any, str], T], key: str) -> T:
        try:
            files, bucket = await self._connect()
            return await uninterrupted(self._run(work, files, f"{bucket}/{key}" if key else bucket))
        except (OSError, InvalidConfig):
            raise
        except Exception as error:  # each file system raises its own
            raise _os_error(error) from error

    async def put(self, key: str, data: Checked, *, token: str | None) -> None:
        mode = "overwrite" if token is None else "create"
        await self._do(lambda files, path: files.pipe_file(path, data.data, mode=mode), key)

    async def carries(self, key: str, token: str) -> bool | None:
        """Objects carry none; and a file system may well have tried again by itself."""
        return False if self._in_memory else None

    async def upload(self, key: str, token: str) -> Upload:
        if self._in_memory:
            return WholeUpload(self, key, token)

        def begin(files: Any, path: str) -> Any:
            if files.exists(path):
                raise FileExistsError(errno.EEXIST, "File exists")
            return files.open(path, "wb", block_size=UPLOAD_BLOCK)

        return StreamedUpload(await self._do(begin, key), self._run)

    async def get(self, key: str, start: int, length: int) -> bytes:
        def get(files: Any, path: str) -> bytes:
            size = files.info(path)["size"]
            stop = size if length < 0 else min(size, start + length)
            return bytes(files.cat_file(path, start=start, end=stop)) if start < stop else b""

        return await self._do(get, key)

    async def size(self, key: str) -> int | None:
        def size(files: Any, path: str) -> int | None:
            try:
                found = files.info(path)
            except FileNotFoundError:
                return None
            return int(found["size"]) if found["type"] == "file" else None

        return await self._do(size, key)

    async def children(self, prefix: str) -> list[Entry]:
        def entries(files: Any, path: str) -> list[Entry]:
            try:
                found = files.ls(path, detail=True)
            except FileNotFoundError:
                return []
            inside = [item for item in found if item["name"].strip("/") != path.strip("/")]
            return [_entry(item) for item in inside]

        return await self._do(entries, prefix.rstrip("/"))

    async def keys(self, prefix: str) -> list[str]:
        folder = prefix.rstrip("/")

        def keys(files: Any, path: str) -> list[str]:
            return [
                f"{prefix}{found.strip('/').removeprefix(path.strip('/')).lstrip('/')}" for found in files.find(path)
            ]

        return await self._do(keys, folder)

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            await self._do(_delete, key)

    async def abort_uploads(self, prefix: str) -> int:
        """The stores drop by themselves what was never finished."""
        return 0

    async def close(self) -> None:
        self._connected = None


def _os_error(error: Exception) -> OSError:
    """Their messages are left out, which may show a URL with more in it than should be seen."""
    name = type(error).__name__
    if isinstance(error, TypeError) or name == "NotImplementedError":
        return OSError(errno.ENOSYS, f"its file system does not offer that ({name})")
    return OSError(errno.EIO, f"its file system raised {name}")


def _delete(files: Any, path: str) -> None:
    try:
        files.rm_file(path)
    except FileNotFoundError:
        return


def _entry(found: Mapping[str, Any]) -> Entry:
    name = found["name"].rstrip("/").rpartition("/")[2]
    folder = found["type"] == "directory"
    return Entry(name, folder, 0 if folder else int(found["size"]))


class WholeUpload:
    """An `Upload` to where a file that is being written could be seen: it is made at the end, whole."""

    def __init__(self, store: FsspecStore, key: str, token: str) -> None:
        self._store = store
        self._key = key
        self._token = token
        self._parts: dict[int, bytes] = {}

    async def send(self, number: int, part: Checked) -> None:
        self._parts[number] = part.data

    async def finish(self) -> None:
        data = b"".join(part for _, part in sorted(self._parts.items()))
        await self._store.put(self._key, Checked(data, 0), token=self._token)

    async def abort(self) -> None:
        self._parts.clear()


class StreamedUpload:
    """An `Upload` by a file of fsspec, which can't take a part twice: the file system tries again by itself."""

    def __init__(self, file: Any, run: Runner) -> None:
        self._file = file
        self._run = run

    async def send(self, number: int, part: Checked) -> None:
        await self._once(lambda: self._file.write(part.data))

    async def finish(self) -> None:
        await self._once(self._file.close)

    async def _once(self, work: Callable[[], object]) -> None:
        try:
            await uninterrupted(self._run(work))
        except Exception as error:  # each file system raises its own
            raise OSError(errno.EIO, f"its file system raised {type(error).__name__}") from error

    async def abort(self) -> None:
        if not self._file.closed:
            await self._once(self._discard)

    def _discard(self) -> None:
        try:
            self._file.discard()
        finally:
            self._file.closed = True  # else it would be finished when the garbage collector closes it
