"""One contract for files wherever they lie; then what only object stores do: retries, leases, uploads in parts."""

import asyncio
import errno
import hashlib
import itertools
import os
import subprocess
import sys
import traceback
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import fsspec
import fsspec.asyn
import msgspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from streamactors.checkpoint.storage.contract import READ_BLOCK, Entry, Files, Written
from streamactors.checkpoint.storage.file_systems import FileSystems
from streamactors.checkpoint.storage.fsspec_storage import FsspecStore
from streamactors.checkpoint.storage.lease import LeaseTimes, Note
from streamactors.checkpoint.storage.object_storage import NEAR, PART, Bucket, ObjectFiles
from streamactors.checkpoint.storage.opening import open_files
from streamactors.checkpoint.storage.processes import is_dead, process_identity
from streamactors.checkpoint.storage.retries import Backoff, Retries
from streamactors.checkpoint.storage.uris import normalise_uri
from streamactors.clock import SYSTEM, SystemClock
from streamactors.errors import CorruptCheckpoint, InvalidConfig, MissingExtra, StorageFailed, StorageInUse
from tests.s3_server import Damage, Proxy, S3Bucket, proxied

# Named here, so that they are there before any test begins, and what it has left behind is looked for.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("s3_server", "fsspec_loop")]

PATIENCE = 60.0
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
@pytest.mark.parametrize("size", [0, PART, 2 * PART + 17])
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


async def test_no_path_leads_out_of_the_root(files: Files) -> None:
    for path in ("../x", "a/../../x", "/etc/passwd", "a//b", "a/./b", "a\\b", "a/"):
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


async def test_a_large_file_takes_the_memory_of_a_few_parts(bucket: S3Bucket) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(8 * 16):
            yield bytes(PART // 16)

    files = open_files(f"{bucket.uri}/root")
    await files.list("")  # connects
    tracemalloc.start()
    try:
        await files.write("a", chunks())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        await files.close()
    assert peak < 3.5 * PART, peak / PART


# ---------------------------------------------------------------------------------------------------- failures, retries
class Damaged:
    """Files whose requests go through a proxy that lets them fail."""

    def __init__(self, proxy: Proxy, files: Files, bucket: S3Bucket) -> None:
        self.proxy = proxy
        self.files = files
        self.bucket = bucket

    def names(self) -> list[str]:
        return [key.removeprefix("root/") for key in self.bucket.objects()]

    @property
    def retries(self) -> int:
        assert isinstance(self.files, ObjectFiles)
        return self.files._bucket.retries.count


@asynccontextmanager
async def damaged_files(bucket: S3Bucket, **options: object) -> AsyncIterator[Damaged]:
    async with proxied(bucket.server) as proxy:
        given = {"endpoint_url": proxy.url, **options}
        files = open_files(f"{bucket.uri}/root", options=given, backoff=QUICK, times=SHORT)
        try:
            yield Damaged(proxy, files, bucket)
        finally:
            proxy.heal()
            await files.close()


@pytest.fixture
async def damaged(bucket: S3Bucket) -> AsyncIterator[Damaged]:
    async with damaged_files(bucket) as damaged:
        yield damaged


LARGE = os.urandom(2 * PART + 100)


@pytest.mark.parametrize(
    ("damage", "data"),
    [
        pytest.param("503", b"small", id="at once, 503"),
        pytest.param("500", b"small", id="at once, 500"),
        pytest.param("cut before", b"small", id="at once, cut before"),
        pytest.param("cut inside", b"small", id="at once, cut inside"),
        pytest.param("answer lost", b"small", id="at once, answer lost"),
        pytest.param("503", LARGE, id="in parts, 503"),
        pytest.param("answer lost", LARGE, id="in parts, answer lost"),
    ],
)
async def test_a_write_is_tried_again(damaged: Damaged, damage: Damage, data: bytes) -> None:
    damaged.proxy.damage(damage, "P*", times=2)
    assert await damaged.files.write("a", [data]) == written(data)
    assert damaged.retries >= 1
    assert damaged.bucket.read("root/a") == data
    # Whether the begin of an upload was done, nobody knows whose answer was lost: the next start aborts it.
    await (await damaged.files.lock("lock", "x", "owner")).release()
    assert (damaged.names(), damaged.bucket.uploads()) == (["a"], [])


@pytest.mark.parametrize("request_of", ["*partNumber=1*", "*partNumber=3*", "*uploadId=??????*"])
@pytest.mark.parametrize("damage", ["cut inside", "answer lost"])
async def test_each_request_of_an_upload_is_tried_again(damaged: Damaged, damage: Damage, request_of: str) -> None:
    rule = damaged.proxy.damage(damage, "P*", request_of, times=2)
    assert await damaged.files.write("a", [LARGE]) == written(LARGE)
    assert rule.hits >= 1 and damaged.retries >= 1
    assert damaged.bucket.read("root/a") == LARGE
    assert damaged.bucket.uploads() == []


@pytest.mark.parametrize("damage", ["503", "answer lost", "answer cut"])
async def test_reading_is_tried_again(damaged: Damaged, damage: Damage) -> None:
    await damaged.files.write("a", [LARGE])
    damaged.proxy.damage(damage, "GET", times=2)
    assert await damaged.files.read("a") == LARGE
    damaged.proxy.damage(damage, "GET", times=2)
    assert await damaged.files.read_ranges("a", [(3, 4), (PART, 2)]) == [LARGE[3:7], LARGE[PART : PART + 2]]
    damaged.proxy.damage(damage, "GET", times=1)
    assert await damaged.files.digest("a") == written(LARGE)
    damaged.proxy.damage(damage, "GET", times=1)
    assert await damaged.files.list("") == [Entry("a", False, len(LARGE))]
    if damage != "answer cut":  # there is nothing to cut
        damaged.proxy.damage(damage, "HEAD", times=1)
    assert await damaged.files.stat("a") == Entry("a", False, len(LARGE))


@pytest.mark.parametrize("damage", ["503", "cut before", "answer lost"])
async def test_who_created_is_told_by_what_is_stored(damaged: Damaged, damage: Damage) -> None:
    await damaged.files.create("before", b"")
    damaged.proxy.damage(damage, "PUT", times=1)
    assert await damaged.files.create("a", b"ours")
    damaged.bucket.put("root/b", b"theirs")
    damaged.proxy.damage(damage, "PUT", times=1)
    assert not await damaged.files.create("b", b"ours!!")
    assert damaged.bucket.read("root/b") == b"theirs"
    damaged.proxy.damage(damage, "PUT", times=1)
    with pytest.raises(StorageFailed, match="/b: File exists"):
        await damaged.files.write("b", [b"ours!!"])
    assert damaged.bucket.read("root/b") == b"theirs"


@pytest.mark.parametrize("damage", ["503", "answer lost"])
async def test_deleting_is_tried_again(damaged: Damaged, damage: Damage) -> None:
    for name in ("a", "b/1", "b/2", "b/c/3"):
        await damaged.files.write(name, [b""])
    rules = [damaged.proxy.damage(damage, "DELETE", times=2), damaged.proxy.damage(damage, "POST", times=2)]
    await damaged.files.delete("a")
    await damaged.files.delete_tree("b")
    assert damaged.names() == []
    assert [rule.hits for rule in rules] == [2, 2]


@pytest.mark.parametrize("data", [b"small", LARGE], ids=["at once", "in parts"])
async def test_a_store_that_stays_down_is_given_up(damaged: Damaged, data: bytes) -> None:
    outage = damaged.proxy.damage("503", "P*", "*a*", times=QUICK.tries)
    with pytest.raises(StorageFailed, match=r"can't write s3://.*/root/a: .*SlowDown.* Check that the store is up"):
        await damaged.files.write("a", [data])
    assert outage.hits == QUICK.tries
    assert (damaged.names(), damaged.bucket.uploads()) == ([], [])


@pytest.mark.parametrize("stage", ["*uploads*", "*partNumber=3*", "*uploadId=??????*"])
async def test_a_failed_upload_is_aborted(damaged: Damaged, stage: str) -> None:
    damaged.proxy.damage("cut inside", "P*", stage, times=None)
    with pytest.raises(StorageFailed, match=r"can't write s3://.*/root/a: .*connection failed"):
        await damaged.files.write("a", [LARGE])
    assert (damaged.names(), damaged.bucket.uploads()) == ([], [])


@pytest.mark.parametrize("stage", ["*uploads*", "*partNumber=3*", "*uploadId=??????*"])
async def test_a_cancelled_upload_waits_for_the_answer_and_leaves_nothing(damaged: Damaged, stage: str) -> None:
    held = damaged.proxy.damage("hold", "P*", stage)
    task = asyncio.create_task(damaged.files.write("a", [LARGE]))
    async with asyncio.timeout(PATIENCE):
        await held.struck.wait()
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done(), "a request is under way"
        held.release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (damaged.names(), damaged.bucket.uploads()) == ([], [])


async def test_a_cancelled_write_at_once_leaves_nothing(damaged: Damaged) -> None:
    held = damaged.proxy.damage("hold", "PUT", "*/a*")
    task = asyncio.create_task(damaged.files.write("a", [b"small"]))
    async with asyncio.timeout(PATIENCE):
        await held.struck.wait()
        task.cancel()
        held.release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert damaged.names() == []


async def test_an_answer_that_does_not_come_in_time(bucket: S3Bucket) -> None:
    async with damaged_files(bucket, config_kwargs={"read_timeout": 0.3}) as damaged:
        await damaged.files.create("before", b"")
        held = damaged.proxy.damage("hold", "PUT", "*/a*")
        assert await damaged.files.create("a", b"x")
        assert held.hits == 1 and damaged.retries >= 1
        held = damaged.proxy.damage("hold", "GET")
        assert await damaged.files.read("a") == b"x"


async def test_an_unfinished_upload_of_a_dead_process_is_aborted_by_the_next(damaged: Damaged) -> None:
    damaged.proxy.damage("cut before", "DELETE", "*uploadId*", times=None)  # as if there had been no time to abort
    damaged.proxy.damage("cut inside", "PUT", "*partNumber=2*", times=None)
    for path in ("flow/run-1/a", "other/a"):
        with pytest.raises(StorageFailed):
            await damaged.files.write(path, [LARGE])
    damaged.proxy.heal()
    assert sorted(damaged.bucket.uploads()) == ["root/flow/run-1/a", "root/other/a"]
    await (await damaged.files.lock("flow/lock", "x", "owner")).release()
    assert damaged.bucket.uploads() == ["root/other/a"]


# ---------------------------------------------------------------------------------------------------- clear errors
async def test_what_will_not_pass_is_not_tried_again(damaged: Damaged, bucket: S3Bucket) -> None:
    refused = damaged.proxy.damage("403", "PUT", times=None)
    with pytest.raises(
        StorageFailed, match=r"can't write s3://.*/root/a: refused by the test \(AccessDenied\). Check the"
    ):
        await damaged.files.write("a", [b""])
    assert refused.hits == 1
    damaged.proxy.heal()
    nowhere = damaged.files.at(f"s3://no-{bucket.name}/x")
    for fails in (lambda: nowhere.list("a"), lambda: nowhere.write("a", []), lambda: nowhere.lock("lock", "x", "me")):
        with pytest.raises(StorageFailed, match=rf"s3://no-{bucket.name}/x.*there is no bucket 'no-.*Create it, or"):
            await fails()
    assert damaged.retries == 0


async def test_credentials_are_missing(bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    files = open_files(bucket.uri, backoff=QUICK)
    with pytest.raises(StorageFailed, match="there are no usable credentials.*Check the credentials"):
        await files.list("")
    await files.close()


async def test_a_profile_that_is_not_there(bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    files = open_files(bucket.uri, backoff=QUICK)
    with pytest.raises(StorageFailed, match=r"the request can't be made \(ProfileNotFound\). Check the URI"):
        await files.list("")
    await files.close()


async def test_an_endpoint_that_is_no_store(damaged: Damaged) -> None:
    """It knows of nothing at all."""
    damaged.proxy.damage("404", times=None)
    for fails in (
        lambda: damaged.files.list("a"),
        lambda: damaged.files.write("a", [b"x"]),
        lambda: damaged.files.write("a", [LARGE]),
        lambda: damaged.files.replace("a", b"x"),
        lambda: damaged.files.delete_tree("a"),
        lambda: damaged.files.lock("lock", "x", "me"),
    ):
        with pytest.raises(StorageFailed, match=r"can't \w+ s3://.*Check the URI"):
            await fails()


async def test_secrets_are_never_shown(bucket: S3Bucket, caplog: pytest.LogCaptureFixture) -> None:
    secrets = {"key": "K-hidden", "secret": "S-hidden", "token": "T-hidden"}
    shown = []
    async with damaged_files(bucket, **secrets) as damaged:
        for damage in ("403", "cut before", "503"):
            damaged.proxy.damage(damage, times=None)
            with pytest.raises(StorageFailed) as caught:
                await damaged.files.write("a", [b""])
            shown.append("".join(traceback.format_exception(caught.value)))
            damaged.proxy.heal()
        shown += [repr(damaged.files), repr(vars(damaged.files)), str(damaged.files.uri)]
        assert isinstance(damaged.files, ObjectFiles)
        shown.append(repr(damaged.files._store))
    wrong = open_files(bucket.uri, options={**secrets, "no_such_option": "N-hidden"})
    with pytest.raises(
        InvalidConfig, match=r"the storage options key, no_such_option, .* are not what s3fs takes"
    ) as bad:
        await wrong.list("")
    await wrong.close()
    shown.append("".join(traceback.format_exception(bad.value)))
    assert "hidden" not in "\n".join([*shown, caplog.text])


async def test_options_are_for_the_scheme_of_the_storage(bucket: S3Bucket, tmp_path: Path) -> None:
    files = open_files(bucket.uri, options={"endpoint_url": "http://127.0.0.1:1"}, backoff=Backoff(tries=1))
    with pytest.raises(StorageFailed, match="connection failed"):
        await files.list("")
    local, memory = files.at(str(tmp_path)), files.at("memory://x")
    assert await local.create("a", b"1") and await memory.create("a", b"2")
    assert await local.at("memory://x").read("a") == b"2"
    assert await memory.at(tmp_path.as_uri()).read("a") == b"1"
    await memory.delete("a")
    await files.close()
    elsewhere = open_files(str(tmp_path), options={"endpoint_url": "http://127.0.0.1:1"})
    assert await elsewhere.at(bucket.uri).list("") == []
    await elsewhere.close()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        MissingExtra, match=r"gs://… needs the package gcsfs: pip install 'streamactors\[objectstore\]'"
    ):
        open_files("gs://bucket/x")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"s3://… needs the package s3fs: pip install 'streamactors\[s3\]'"):
        open_files("s3://bucket/x")


def carelessly(self: MemoryFileSystem, path: str, value: bytes, mode: str = "overwrite") -> None:
    """As a store does that does not know of conditions."""
    self.open(path, "wb", data=value)


async def test_a_store_that_overwrites_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", carelessly)
    files = open_files("memory://careless/x")
    with pytest.raises(InvalidConfig, match="memory://careless can't be used for checkpoints.*only if it is absent"):
        await files.lock("lock", "x", "owner")
    with pytest.raises(InvalidConfig, match="memory://careless can't be used"):
        await files.create("a", b"")
    assert await files.list("") == []


# --------------------------------------------------------------------------------------------------------------- leases
class Virtual(SystemClock):
    """Seconds pass by sleeping."""

    def __init__(self, chance: float) -> None:
        self.slept: list[float] = []
        self.random = lambda: chance
        self.monotonic = lambda: sum(self.slept)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


@pytest.fixture
async def in_memory(tmp_path: Path) -> AsyncIterator[Files]:
    files = open_files(f"memory://{tmp_path.name}", times=SHORT)
    yield files
    await files.delete_tree("")


async def foreign(files: Files, *, process: str | None = None, token: str = "t") -> None:
    """A lease of another process, of which nothing is known unless told."""
    await files.replace("lock", msgspec.json.encode(Note(token, "process 7 on there", process)))
    await files.replace(f"lock.{token}", b"1")


async def test_a_silent_lease_is_taken_over(in_memory: Files) -> None:
    await foreign(in_memory)
    async with asyncio.timeout(PATIENCE):
        lock = await in_memory.lock("lock", "x", "successor")
    assert await lock.held()
    assert await in_memory.stat("lock.t") is None
    await lock.release()
    assert await in_memory.list("") == []


async def test_a_lease_that_is_kept_is_not(in_memory: Files) -> None:
    await foreign(in_memory)
    beats = itertools.count(2)

    async def beat() -> None:
        while True:
            await in_memory.replace("lock.t", str(next(beats)).encode())
            await asyncio.sleep(SHORT.beat)

    beating = asyncio.create_task(beat())
    with pytest.raises(StorageInUse, match="x is in use by process 7 on there"):
        await in_memory.lock("lock", "x", "me")
    beating.cancel()
    assert [entry.name for entry in await in_memory.list("")] == ["lock", "lock.t"]


class Hasty(Virtual):
    """By its clock much more time has passed than it has slept: it was paused, or the clock has jumped."""

    def __init__(self, files: Files) -> None:
        super().__init__(0.0)
        self.monotonic = lambda: 100.0 * sum(self.slept)
        self.files = files

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds)
        await asyncio.sleep(0)
        if sum(self.slept) > SHORT.beat:
            await self.files.replace("lock.t", b"2")


async def test_who_was_paused_while_it_watched_takes_nothing_over(in_memory: Files) -> None:
    await foreign(in_memory)
    hasty = open_files(in_memory.uri, clock=Hasty(in_memory), times=SHORT)
    with pytest.raises(StorageInUse, match="x is in use by process 7 on there"):
        await hasty.lock("lock", "x", "me")
    assert [entry.name for entry in await in_memory.list("")] == ["lock", "lock.t"]


async def test_a_lease_that_is_released_meanwhile_is_free(in_memory: Files) -> None:
    await foreign(in_memory)
    task = asyncio.create_task(in_memory.lock("lock", "x", "me"))
    await asyncio.sleep(0)
    await in_memory.delete("lock")
    await in_memory.delete("lock.t")
    async with asyncio.timeout(PATIENCE):
        await (await task).release()


async def test_a_process_of_this_machine_that_has_ended_is_known_to_be_dead(in_memory: Files) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        identity = process_identity(process.pid)
    assert identity is not None and is_dead(identity)
    assert not is_dead(process_identity() or "") and not is_dead("elsewhere x 1 2") and not is_dead("")
    patient = open_files(in_memory.uri, times=LeaseTimes(expiry=3600.0))
    await foreign(patient, process=identity)
    async with asyncio.timeout(PATIENCE):
        await (await patient.lock("lock", "x", "successor")).release()


async def test_a_lease_that_was_not_released_in_this_process_is_free(in_memory: Files) -> None:
    await foreign(in_memory, process=process_identity())
    async with asyncio.timeout(PATIENCE):
        await (await in_memory.lock("lock", "x", "me")).release()


async def test_what_was_left_by_who_died_on_the_way_is_cleared_away(in_memory: Files) -> None:
    """Killed after its first beat and before the lease was its own, or between its release and its last deletion."""
    await in_memory.replace("lock.dead", b"1")
    await in_memory.replace("lockets", b"of somebody else")
    async with asyncio.timeout(PATIENCE):
        lock = await in_memory.lock("lock", "x", "me")
    assert await in_memory.stat("lock.dead") is None
    await lock.release()
    assert [entry.name for entry in await in_memory.list("")] == ["lockets"]


async def test_who_was_taken_over_from_knows_and_disturbs_nobody(in_memory: Files) -> None:
    paused = await in_memory.lock("lock", "x", "paused")
    await foreign(in_memory)
    assert not await paused.held()
    await paused.release()
    assert [entry.name for entry in await in_memory.list("")] == ["lock", "lock.t"]


async def test_the_heartbeat_beats_and_outlives_an_outage(damaged: Damaged) -> None:
    lock = await damaged.files.lock("lock", "x", "me")
    [beat] = [key for key in damaged.names() if key.startswith("lock.")]
    before = damaged.bucket.read(f"root/{beat}")
    outage = damaged.proxy.damage("503", times=2 * QUICK.tries)
    async with asyncio.timeout(PATIENCE):
        while outage.hits < 2 * QUICK.tries or damaged.bucket.read(f"root/{beat}") == before:
            await asyncio.sleep(SHORT.beat)
    assert await lock.held()
    await lock.release()
    assert damaged.names() == []


async def test_a_cancelled_lock_is_free(damaged: Damaged) -> None:
    held = damaged.proxy.damage("hold", "PUT", "*/lock?*")
    task = asyncio.create_task(damaged.files.lock("lock", "x", "one"))
    async with asyncio.timeout(PATIENCE):
        await held.struck.wait()
        task.cancel()
        held.release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert damaged.names() == []
    await (await damaged.files.lock("lock", "x", "two")).release()


# -------------------------------------------------------------------------------------------------------------- retries
async def always(error: OSError) -> None:
    raise error


async def test_pauses_grow_up_to_a_bound_and_differ_by_chance() -> None:
    slow, fast = Virtual(1.0), Virtual(0.0)
    backoff = Backoff(tries=6, first=1.0, longest=5.0, give_up_after=1000.0)
    for clock in (slow, fast):
        with pytest.raises(TimeoutError):
            await Retries(clock, backoff).call("x", lambda: always(TimeoutError()))
    assert slow.slept == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert fast.slept == [0.5, 1.0, 2.0, 2.5, 2.5]


async def test_it_ends_after_a_time_whatever_the_number_of_tries() -> None:
    clock = Virtual(1.0)
    backoff = Backoff(tries=1000, first=1.0, longest=5.0, give_up_after=10.0)
    with pytest.raises(ConnectionResetError):
        await Retries(clock, backoff).call("x", lambda: always(ConnectionResetError()))
    assert clock.slept == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOENT, errno.EEXIST, errno.ENODEV, errno.ENOSPC, errno.EINVAL])
async def test_other_errors_come_at_once(code: int) -> None:
    clock = Virtual(1.0)
    with pytest.raises(OSError, match=os.strerror(code)):
        await Retries(clock, Backoff()).call("x", lambda: always(OSError(code, os.strerror(code))))
    assert clock.slept == []
