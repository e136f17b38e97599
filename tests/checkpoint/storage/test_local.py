"""Local files: whole or absent, verified, cleaned up after any failure; ownership that dies with its process."""

import asyncio
import errno
import hashlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest

from streamactors.checkpoint.storage.chunks import BLOCK
from streamactors.checkpoint.storage.contract import READ_BLOCK, Entry, Written
from streamactors.checkpoint.storage.disk import LocalDisk, LocalFile
from streamactors.checkpoint.storage.local import LocalFiles
from streamactors.checkpoint.storage.uris import is_plain_path, normalise_uri
from streamactors.clock import SYSTEM, Clock, SystemClock
from streamactors.errors import CorruptCheckpoint, InvalidConfig, StorageFailed, StorageInUse
from streamactors.testing.failing_files import FailingFiles

P = ParamSpec("P")
R = TypeVar("R")
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def files(tmp_path: Path) -> LocalFiles:
    return LocalFiles(str(tmp_path))


def written(data: bytes) -> Written:
    return Written(len(data), hashlib.blake2b(data, digest_size=16).digest())


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


async def chunks_of(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        await asyncio.sleep(0)
        yield data[start : start + size]


# -------------------------------------------------------------------------------------------------------------- writing
@pytest.mark.parametrize("size", [0, 1, 1000, BLOCK, 3 * BLOCK + 17])
@pytest.mark.parametrize("chunk", [7919, BLOCK, 5 * BLOCK])
async def test_writes_any_chunks_as_one_file(files: LocalFiles, tmp_path: Path, size: int, chunk: int) -> None:
    data = os.urandom(size)
    assert await files.write("a", chunks_of(data, chunk)) == written(data)
    assert await files.write("b", [data[:1], data[1:]]) == written(data)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == data
    assert await files.digest("a") == written(data)


async def test_a_digest_covers_more_than_one_read(files: LocalFiles, tmp_path: Path) -> None:
    data = os.urandom(2 * READ_BLOCK)
    (tmp_path / "a").write_bytes(data)
    assert await files.digest("a") == written(data)


async def test_write_never_overwrites(files: LocalFiles, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(StorageFailed, match="/a: File exists"):
        await files.write("a", [b"new"])
    assert (tmp_path / "a").read_bytes() == b"old"


async def test_create_only_if_absent(files: LocalFiles, tmp_path: Path) -> None:
    assert await files.create("a", b"first")
    assert not await files.create("a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first"
    assert tree(tmp_path) == ["a"]


async def test_one_of_many_creators_wins(files: LocalFiles, tmp_path: Path) -> None:
    won = await asyncio.gather(*(files.create("a", str(number).encode()) for number in range(10)))
    assert won.count(True) == 1
    assert (tmp_path / "a").read_bytes() == str(won.index(True)).encode()
    assert tree(tmp_path) == ["a"]


class WithoutLinks(LocalDisk):
    async def link(self, source: str, target: str) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))


async def test_create_where_there_are_no_hard_links(tmp_path: Path) -> None:
    files = LocalFiles(str(tmp_path), disk=WithoutLinks())
    assert await files.create("a", b"first")
    assert not await files.create("a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first"
    assert tree(tmp_path) == ["a"]


async def test_replace(files: LocalFiles, tmp_path: Path) -> None:
    await files.replace("a", b"first")
    await files.replace("a", b"second")
    assert (tmp_path / "a").read_bytes() == b"second"
    assert tree(tmp_path) == ["a"]


# -------------------------------------------------------------------------------------------------------------- failure
async def test_nothing_is_left_when_the_chunks_fail(files: LocalFiles, tmp_path: Path) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"x" * BLOCK
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await files.write("a", chunks())
    assert tree(tmp_path) == []


async def test_the_source_of_chunks_is_closed(files: LocalFiles, tmp_path: Path) -> None:
    waiting, closed = asyncio.Event(), asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        try:
            yield b"x" * BLOCK
            waiting.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    writing = asyncio.create_task(files.write("a", chunks()))
    await waiting.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert closed.is_set()
    assert tree(tmp_path) == []


class StoppingClock(SystemClock):
    """Holds back what comes from one function run in a thread, until the test says go on."""

    def __init__(self, operation: str) -> None:
        self.operation = operation
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()

    async def run_blocking(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        result = await super().run_blocking(fn, *args, **kwargs)
        if getattr(fn, "__name__", "") == self.operation:
            self.reached.set()
            await self.go_on.wait()
        return result


@pytest.mark.parametrize("operation", ["fsync", "link", "unlink", "_sync_folder"])
@pytest.mark.parametrize("times", [1, 2])
async def test_a_cancelled_create_leaves_all_or_nothing(tmp_path: Path, operation: str, times: int) -> None:
    clock = StoppingClock(operation)
    files = LocalFiles(str(tmp_path), clock=SYSTEM, disk=LocalDisk(clock))
    task = asyncio.create_task(files.create("a", b"data"))
    await clock.reached.wait()
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done(), "a thread is at work"
    clock.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert tree(tmp_path) == ([] if operation == "fsync" else ["a"])


class SlowFile(LocalFile):
    def __init__(self, path: str, clock: Clock, operation: str) -> None:
        super().__init__(path, clock)
        self._operation = operation
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()

    async def _pass(self, operation: str) -> None:
        if operation == self._operation:
            self.reached.set()
            await self.go_on.wait()

    async def open(self) -> None:
        await super().open()
        await self._pass("open")

    async def write(self, data: bytes) -> None:
        await super().write(data)
        await self._pass("write")

    async def sync(self) -> None:
        await super().sync()
        await self._pass("sync")

    async def close(self) -> None:
        await super().close()
        await self._pass("close")


class SlowDisk(LocalDisk):
    def __init__(self, operation: str) -> None:
        super().__init__()
        self._operation = operation

    def file(self, path: str) -> LocalFile:
        self.last = SlowFile(path, SYSTEM, self._operation)
        return self.last


@pytest.mark.parametrize("operation", ["open", "write", "sync", "close"])
async def test_a_cancelled_write_leaves_nothing(tmp_path: Path, operation: str) -> None:
    disk = SlowDisk(operation)
    files = LocalFiles(str(tmp_path), disk=disk)
    task = asyncio.create_task(files.write("a", [b"data"]))
    while not hasattr(disk, "last"):
        await asyncio.sleep(0)
    await disk.last.reached.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done(), "a thread is at work"
    disk.last.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert tree(tmp_path) == []


@pytest.fixture
def limited_file_size() -> Iterator[int]:
    """The kernel refuses to let a file grow beyond it: a real failing write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * BLOCK, before[1]))
    yield 2 * BLOCK
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


async def test_a_write_that_the_kernel_refuses(files: LocalFiles, tmp_path: Path, limited_file_size: int) -> None:
    with pytest.raises(StorageFailed, match=r"can't (write|sync) file://.*/a: File too large. Free space"):
        await files.write("a", [b"x" * BLOCK] * 3)
    with pytest.raises(StorageFailed, match="File too large"):
        await files.create("b", b"x" * 3 * BLOCK)
    assert tree(tmp_path) == []


async def test_a_folder_that_is_a_file(files: LocalFiles, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(StorageFailed, match=r"/a/b/c: Not a directory. A file is in the way"):
        await files.make_folder("a/b/c")


async def test_a_missing_folder(files: LocalFiles) -> None:
    with pytest.raises(StorageFailed, match="No such file or directory"):
        await files.write("gone/a", [b""])
    with pytest.raises(StorageFailed, match="No such file or directory"):
        await files.replace("gone/a", b"")


class Refusing(LocalDisk):
    def __init__(self, code: int) -> None:
        super().__init__()
        self._code = code

    async def scan(self, path: str) -> list[Entry]:
        raise OSError(self._code, os.strerror(self._code))

    async def read(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        raise OSError(self._code, os.strerror(self._code))


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "Free space"),
        (errno.EACCES, "Let the user that runs this process"),
        (errno.EROFS, "Let the user that runs this process"),
        (errno.EMFILE, "ulimit"),
        (errno.EIO, "healthy"),
        (errno.ESTALE, "healthy"),
    ],
)
async def test_errors_say_what_to_do(tmp_path: Path, code: int, advice: str) -> None:
    files = LocalFiles(str(tmp_path), disk=Refusing(code))
    with pytest.raises(StorageFailed, match=f"can't list {tmp_path.as_uri()}/x: {os.strerror(code)}.*{advice}"):
        await files.list("x")
    with pytest.raises(StorageFailed, match=f"can't read .*{advice}"):
        await files.read("x")


# -------------------------------------------------------------------------------------------------------------- reading
async def test_reads_whole_and_in_ranges(files: LocalFiles) -> None:
    await files.write("a", [b"0123456789"])
    assert await files.read("a") == b"0123456789"
    assert await files.read_ranges("a", [(2, 3), (0, 1), (10, 0), (5, 5)]) == [b"234", b"0", b"", b"56789"]
    assert await files.read_ranges("a", []) == []


async def test_a_missing_file_is_corruption(files: LocalFiles) -> None:
    for reading in (files.read("a"), files.read_ranges("a", [(0, 1)]), files.digest("b/c")):
        with pytest.raises(CorruptCheckpoint, match=r"file:///.*/(a|b/c) is missing: expected a file, found none"):
            await reading


async def test_a_truncated_file_is_corruption(files: LocalFiles) -> None:
    await files.write("a", [b"0123456789"])
    with pytest.raises(CorruptCheckpoint, match="/a is truncated: expected 4 bytes at offset 8, found 2"):
        await files.read_ranges("a", [(0, 4), (8, 4)])


# ------------------------------------------------------------------------------------------------------- folders, names
async def test_folders(files: LocalFiles, tmp_path: Path) -> None:
    assert await files.list("no") == []
    await files.make_folder("b/c/d")
    await files.make_folder("b/c")
    await files.write("b/x", [b"123"])
    (tmp_path / "b" / "link").symlink_to(tmp_path)
    found = await files.list("b")
    assert [entry for entry in found if entry.name != "link"] == [Entry("c", True, 0), Entry("x", False, 3)]
    assert await files.stat("b/x") == Entry("x", False, 3)
    assert (await files.stat("b") or Entry("", False, 1)).folder
    assert await files.stat("b/x/y") is None
    await files.delete("b/x")
    await files.delete("b/x")
    await files.delete("no/x")
    await files.delete_tree("b", keep_folder=True)
    assert tree(tmp_path) == ["b"]
    await files.delete_tree("b")
    await files.delete_tree("b")
    assert tree(tmp_path) == []


async def test_the_root_itself_is_made_and_deleted(tmp_path: Path) -> None:
    files = LocalFiles(f"file://{tmp_path}/new/root")
    await files.make_folder("")
    await files.create("a", b"")
    await files.delete_tree("")
    assert tree(tmp_path) == ["new"]


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "a//b", "a/./b", "a\\b", "a/"])
async def test_no_path_leads_out_of_the_root(files: LocalFiles, path: str) -> None:
    assert not is_plain_path(path)
    with pytest.raises(ValueError, match="leads out of"):
        await files.read(path)


def test_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert normalise_uri("/var/lib/x/") == "file:///var/lib/x"
    assert normalise_uri("file:///var/lib/x") == "file:///var/lib/x"
    assert normalise_uri("file:/var/lib/x") == "file:///var/lib/x"
    assert normalise_uri("FILE://localhost/var/../x") == "file:///x"
    assert normalise_uri("a b") == f"{tmp_path.as_uri()}/a%20b"
    assert normalise_uri("file:///a%20b") == "file:///a%20b"
    assert normalise_uri("~/x") == "file:///home/somebody/x"
    assert normalise_uri("a:b") == f"{tmp_path.as_uri()}/a%3Ab"
    assert LocalFiles("a b").uri_of("c d/e") == f"{tmp_path.as_uri()}/a%20b/c%20d/e"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "names no folder"),
        ("a\0b", "names no folder"),
        ("file://relative/path", "three slashes"),
        ("file:relative", "three slashes"),
        ("file://", "three slashes"),
        ("s3://key:secret@bucket/x", r"credentials and options don't belong into a URI.*storage_options"),
        ("s3://bucket/x?versionId=secret", "don't belong into a URI"),
        ("abfs://user:secret@account/x", "don't belong into a URI"),
        ("hdfs://secret@host/x", r"hdfs://… is not supported: 'hdfs' is none of s3, gs.*file:///absolute/path"),
        ("s3://", "names no bucket and path: write s3://bucket/path"),
        ("s3://bucket//x", "names no bucket and path"),
        ("s3://bucket/a/../x", "names no bucket and path"),
        ("s3://bucket/x", "s3://bucket/x is no local folder"),
    ],
)
def test_refused_uris(uri: str, message: str) -> None:
    with pytest.raises(InvalidConfig, match=message) as caught:
        LocalFiles(uri)
    assert "secret" not in str(caught.value)


def test_uris_of_object_stores() -> None:
    assert normalise_uri("s3://bucket") == normalise_uri("s3://bucket/") == "s3://bucket"
    assert normalise_uri("S3A://bucket/a b/c%20d/") == "s3://bucket/a b/c%20d"
    assert normalise_uri("gcs://bucket/a") == "gs://bucket/a"
    azure = "abfs://container@account.dfs.core.windows.net/a"
    assert normalise_uri(azure) == azure


# ------------------------------------------------------------------------------------------------------------ ownership
async def test_a_lock_is_exclusive_even_in_one_process(files: LocalFiles) -> None:
    lock = await files.lock("lock", "flow 'x'", "process 1 on here")
    assert await lock.held()
    with pytest.raises(StorageInUse, match="flow 'x' is in use by process 1 on here. Stop that job first"):
        await files.lock("lock", "flow 'x'", "process 2 on here")
    await lock.release()
    assert not await lock.held()
    other = await files.lock("lock", "flow 'x'", "process 3")
    await other.release()


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_removed_lock_file_is_noticed(files: LocalFiles, tmp_path: Path, replaced: bool) -> None:
    lock = await files.lock("lock", "x", "owner")
    (tmp_path / "lock").unlink()
    if replaced:
        (tmp_path / "lock").write_text("other")
    assert not await lock.held()
    await lock.release()


async def test_a_cancelled_lock_is_free(tmp_path: Path) -> None:
    clock = StoppingClock("_acquire")
    files = LocalFiles(str(tmp_path), disk=LocalDisk(clock))
    task = asyncio.create_task(files.lock("lock", "x", "one"))
    await clock.reached.wait()
    task.cancel()
    clock.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await (await files.lock("lock", "x", "two")).release()


FORKS = """
import asyncio, os, signal, sys
from streamactors.checkpoint.storage.local import LocalFiles

async def main():
    return await LocalFiles(sys.argv[1]).lock("lock", "x", "the parent")

lock = asyncio.run(main())
if os.fork() == 0:
    sys.stdout.write("forked\\n")
    sys.stdout.flush()
    sys.stdin.read()  # outlives its parent, until the test closes the pipe
    os._exit(0)
sys.stdout.write("parent\\n")
sys.stdout.flush()
signal.pause()
"""


@pytest.mark.kill
@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_a_forked_child_does_not_keep_the_lock(files: LocalFiles, tmp_path: Path) -> None:
    """Such as a worker of multiprocessing that was orphaned by SIGKILL."""
    with subprocess.Popen(
        [sys.executable, "-c", FORKS, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert {await asyncio.to_thread(process.stdout.readline) for _ in range(2)} == {b"forked\n", b"parent\n"}
        with pytest.raises(StorageInUse, match="the parent"):
            await files.lock("lock", "x", "successor")
        process.kill()
        await asyncio.to_thread(process.wait)
        await (await files.lock("lock", "x", "successor")).release()


# -------------------------------------------------------------------------------------------------------- failing files
async def test_failing_files_by_rule(files: LocalFiles, tmp_path: Path) -> None:
    failing = FailingFiles(files)
    failure = failing.fail("write", "*/chk-2/*", nth=2, times=1, error=errno.ENOSPC)
    await failing.make_folder("run/chk-2")
    await failing.write("run/chk-2/a", [b"a"])
    await failing.write("other", [b"a"])
    with pytest.raises(StorageFailed, match=r"run/chk-2/b: No space left on device. Free space"):
        await failing.write("run/chk-2/b", [b"b"])
    assert (failure.seen, failure.hits) == (2, 1)
    await failing.write("run/chk-2/b", [b"b"])
    assert tree(tmp_path) == ["other", "run", "run/chk-2", "run/chk-2/a", "run/chk-2/b"]


async def test_a_full_disk_fails_in_the_middle_of_a_file(files: LocalFiles, tmp_path: Path) -> None:
    failing = FailingFiles(files)
    failing.fill_after(BLOCK + 100)
    await failing.write("a", [b"a" * 50, b"b" * 50])
    with pytest.raises(StorageFailed, match="No space left"):
        await failing.at(files.uri).write("b", [b"x" * BLOCK, b"y"])
    with pytest.raises(StorageFailed, match="No space left"):
        await failing.create("c", b"z" * 10)
    assert tree(tmp_path) == ["a"]
    failing.heal()
    await failing.write("b", [b"x" * BLOCK, b"y"])


async def test_a_stalled_operation(files: LocalFiles) -> None:
    failing = FailingFiles(files)
    stall = failing.stall("create", "a")
    task = asyncio.create_task(failing.create("a", b""))
    await stall.reached.wait()
    assert await files.stat("a") is None
    stall.release.set()
    assert await task


async def test_a_slow_operation_waits_by_the_clock(files: LocalFiles) -> None:
    class Virtual(SystemClock):
        slept = 0.0

        async def sleep(self, seconds: float) -> None:
            self.slept += seconds

    clock = Virtual()
    failing = FailingFiles(files, clock=clock)
    failing.slow(30.0, "stat")
    await failing.stat("a")
    await failing.list("")
    assert clock.slept == 30.0
