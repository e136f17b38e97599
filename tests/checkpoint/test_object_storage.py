"""One contract for files wherever they lie; then what only object stores do: retries, leases, uploads in parts."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec.asyn
import pytest

from streamactors.checkpoint.files import FileSystems, open_files
from streamactors.checkpoint.fsspec_storage import FsspecStore
from streamactors.checkpoint.lease import LeaseTimes
from streamactors.checkpoint.object_storage import NEAR, PART, Bucket
from streamactors.checkpoint.retries import Backoff
from streamactors.checkpoint.storage import READ_BLOCK, Entry, Files, Written, normalise_uri
from streamactors.clock import SYSTEM
from streamactors.errors import CorruptCheckpoint, StorageFailed, StorageInUse
from tests.s3_server import S3Bucket

# Named here, so that they are there before any test begins, and what it has left behind is looked for.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("s3_server", "fsspec_loop")]

PATIENCE = 30.0
QUICK = Backoff(tries=6, first=0.01, longest=0.05, give_up_after=PATIENCE)
SHORT = LeaseTimes(beat=0.05, expiry=0.5, look=0.02)
KINDS = ["local", "s3", "memory", "threads"]


@pytest.fixture(scope="module")
def fsspec_loop() -> Iterator[None]:
    """Blocking file systems over asynchronous ones share a loop in a thread, for the life of the process."""
    loop = fsspec.asyn.get_loop()
    with ThreadPoolExecutor(1) as executor:
        executor.submit(os.getpid).result()  # its thread is there before any test
        loop.set_default_executor(executor)
        yield
        loop.call_soon_threadsafe(loop.stop)
        fsspec.asyn.iothread[0].join()
        loop.close()
        fsspec.asyn.reset_lock()


class S3InThreads(FsspecStore):
    """As the stores of Google and Azure are reached."""

    async def close(self) -> None:
        if self._connected is not None:
            files, _ = self._connected
            await SYSTEM.run_blocking(fsspec.asyn.sync, files.loop, files.s3.close)
        await super().close()


def in_threads(bucket: S3Bucket) -> Files:
    systems = FileSystems("s3", {}, SYSTEM, QUICK, SHORT)
    systems._buckets[bucket.uri] = Bucket(bucket.uri, S3InThreads(bucket.uri, {}, SYSTEM), SYSTEM, QUICK)
    return systems.files(f"{bucket.uri}/root")


@pytest.fixture(params=KINDS)
async def files(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Files]:
    if request.param == "local":
        opened = open_files(str(tmp_path))
    elif request.param == "memory":
        opened = open_files(f"memory://{tmp_path.name}/root", backoff=QUICK, times=SHORT)
    elif request.param == "s3":
        bucket = request.getfixturevalue("bucket")
        opened = open_files(f"{bucket.uri}/root", backoff=QUICK, times=SHORT)
    else:
        opened = in_threads(request.getfixturevalue("bucket"))
    yield opened
    await opened.delete_tree("", keep_folder=True)
    await opened.close()


def written(data: bytes) -> Written:
    return Written(len(data), hashlib.blake2b(data, digest_size=16).digest())


async def chunks_of(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]
        await asyncio.sleep(0)


# --------------------------------------------------------------------------------------------------------- the contract
@pytest.mark.parametrize("size", [0, 1, 1000, PART, 2 * PART + 17])
async def test_writes_any_chunks_as_one_file(files: Files, size: int) -> None:
    data = os.urandom(size)
    await files.make_folder("a")
    assert await files.write("a/x", chunks_of(data, 300_000)) == written(data)
    await files.sync_folder("a")
    assert await files.read("a/x") == data
    assert await files.digest("a/x") == written(data)
    assert await files.stat("a/x") == Entry("x", False, size)


async def test_digests_and_ranges_end_where_the_file_does(files: Files) -> None:
    data = os.urandom(READ_BLOCK)
    await files.write("a", [data])
    assert await files.digest("a") == written(data)
    far = 2 * NEAR
    ranges = [(far, 5), (0, 3), (3, 2), (READ_BLOCK, 0), (READ_BLOCK - 4, 4), (far + 1, 2)]
    assert await files.read_ranges("a", ranges) == [data[offset : offset + size] for offset, size in ranges]
    assert await files.read_ranges("a", []) == []
    for beyond in ([(0, 4), (READ_BLOCK - 2, 4)], [(READ_BLOCK, 4)], [(READ_BLOCK + far, 4)]):
        with pytest.raises(CorruptCheckpoint, match="/a is truncated: expected 4 bytes at offset"):
            await files.read_ranges("a", beyond)


@pytest.mark.parametrize("size", [3, PART + 1])
async def test_write_never_overwrites(files: Files, size: int) -> None:
    await files.write("a", [b"old"])
    with pytest.raises(StorageFailed, match="/a: File exists"):
        await files.write("a", [b"x" * size])
    assert await files.read("a") == b"old"


async def test_create_only_if_absent(files: Files) -> None:
    assert await files.create("a", b"first")
    assert not await files.create("a", b"second")
    assert await files.read("a") == b"first"
    assert [entry.name for entry in await files.list("")] == ["a"]


async def test_one_of_many_creators_wins(files: Files) -> None:
    won = await asyncio.gather(*(files.create("a", str(number).encode()) for number in range(10)))
    assert won.count(True) == 1
    assert await files.read("a") == str(won.index(True)).encode()


async def test_replace(files: Files) -> None:
    await files.replace("a", b"first")
    await files.replace("a", b"second")
    assert await files.read("a") == b"second"


@pytest.mark.parametrize("size", [10, 2 * PART + 1])
async def test_nothing_is_left_when_the_chunks_fail(files: Files, size: int) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"x" * size
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await files.write("a", chunks())
    assert await files.list("") == []


@pytest.mark.parametrize("size", [10, 2 * PART + 1])
async def test_nothing_is_left_of_a_cancelled_write(files: Files, size: int) -> None:
    waiting, closed = asyncio.Event(), asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        try:
            yield b"x" * size
            waiting.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    task = asyncio.create_task(files.write("a", chunks()))
    async with asyncio.timeout(PATIENCE):
        await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed.is_set()
    assert await files.list("") == []


async def test_a_missing_file_is_corruption(files: Files) -> None:
    for reading in (files.read("a"), files.read_ranges("a", [(0, 1)]), files.digest("b/c")):
        with pytest.raises(CorruptCheckpoint, match=r"://.*/(a|b/c) is missing: expected a file, found none"):
            await reading


async def test_folders(files: Files) -> None:
    assert await files.list("no") == []
    assert await files.stat("no") is None
    await files.make_folder("b/c/d")
    await files.write("b/c/d/deep", [b"1"])
    await files.write("b/x", [b"123"])
    await files.make_folder("bb")
    await files.write("bb/y", [b"1"])
    assert await files.list("b") == [Entry("c", True, 0), Entry("x", False, 3)]
    assert [entry.name for entry in await files.list("")] == ["b", "bb"]
    assert await files.stat("b") == Entry("b", True, 0)
    assert await files.stat("b/x/y") is None
    await files.delete("b/x")
    await files.delete("b/x")
    await files.delete("no/x")
    await files.delete_tree("b")
    await files.delete_tree("b")
    assert await files.stat("b") is None
    assert [entry.name for entry in await files.list("")] == ["bb"]


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "a//b", "a/./b", "a\\b", "a/"])
async def test_no_path_leads_out_of_the_root(files: Files, path: str) -> None:
    with pytest.raises(ValueError, match="leads out of"):
        await files.read(path)


async def test_the_same_file_by_any_address(files: Files) -> None:
    await files.make_folder("one two")
    await files.write("one two/a%20b", [b"x"])
    assert await files.at(files.uri_of("one two")).read("a%20b") == b"x"
    assert files.at(files.uri_of("one two")).uri == files.uri_of("one two")
    assert normalise_uri(files.uri) == files.uri


async def test_a_lock_is_exclusive_even_in_one_process(files: Files) -> None:
    lock = await files.lock("lock", "flow 'x'", "process 1 on here")
    assert await lock.held()
    with pytest.raises(StorageInUse, match="flow 'x' is in use by process 1 on here. Stop that job first"):
        await files.lock("lock", "flow 'x'", "process 2 on here")
    await lock.release()
    await lock.release()
    assert not await lock.held()
    other = await files.lock("lock", "flow 'x'", "process 3")
    await other.release()


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_removed_lock_file_is_noticed(files: Files, replaced: bool) -> None:
    lock = await files.lock("lock", "x", "owner")
    if replaced:
        await files.replace("lock", b"other")
    else:
        await files.delete("lock")
    assert not await lock.held()
    await lock.release()
    assert (await files.stat("lock") is not None) == replaced
