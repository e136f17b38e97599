"""Many small snapshots in few files: whole, verified, and none of them harmed by what happens to the others."""

import asyncio
import datetime as dt
import errno
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import streamactors as sa
from connectors.memory import ListSink
from streamactors.checkpoint import manifest
from streamactors.checkpoint.manifest import BlockRef, FileHandle, KeyedHandle, Manifest
from streamactors.checkpoint.packing import FULL, PACKED, SMALL
from streamactors.checkpoint.restorable import list_checkpoints
from streamactors.checkpoint.storage.local import LocalFiles
from streamactors.checkpoint.store import CheckpointStore
from streamactors.checkpoint.writer import CheckpointWriter
from streamactors.clock import SYSTEM
from streamactors.errors import CheckpointFailed, CorruptCheckpoint, StorageFailed
from streamactors.testing.failing_files import FailingFiles
from tests.checkpoint.checkpoints import BLOCKS, begin, manifest_of, state, take
from tests.runtime.feeds import PATIENCE, Feed, until


class Storage:
    """A store, and what lies in its checkpoints' folders."""

    def __init__(self, folder: Path, store: CheckpointStore, files: FailingFiles) -> None:
        self.folder = folder
        self.store = store
        self.files = files

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("orders/run-*/*/chk-*/*"))


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[Storage]:
    files = FailingFiles(LocalFiles(str(tmp_path)))
    async with await CheckpointStore.open(str(tmp_path), "orders", clock=SYSTEM, files=files) as store:
        yield Storage(tmp_path, store, files)


async def two_waves(storage: Storage, writer: CheckpointWriter, count: int = 20) -> list[FileHandle]:
    """One member is being written when the others come."""
    stall = storage.files.stall("write")
    first = asyncio.create_task(writer.write("first", state(0)))
    await stall.reached.wait()
    others = [asyncio.create_task(writer.write("other", state(number))) for number in range(1, count)]
    await asyncio.sleep(0)
    stall.release.set()
    return await asyncio.gather(first, *others)


async def test_what_waits_at_the_same_time_shares_a_file(storage: Storage) -> None:
    writer = await begin(storage.store)
    handles = await two_waves(storage, writer)
    assert storage.names() == ["0001-first", "0002-packed"]
    assert [handle.start for handle in handles] == [0, *range(0, 19 * 24, 24)]
    content = manifest_of(storage.store, writer.checkpoint, *handles)
    assert content.state_bytes == 20 * 24
    assert [(file.path.rpartition("/")[2], file.start) for file in content.files] == [
        ("0001-first", 0), ("0002-packed", 0),
    ]  # fmt: skip
    complete = await storage.store.complete(content)
    await complete.verify("digests")
    for number, handle in enumerate(handles):
        assert await complete.read_blocks(KeyedHandle(handle, BLOCKS), BLOCKS[1:]) == state(number)[1:]
        assert await complete.read_blocks(KeyedHandle(handle, BLOCKS), BLOCKS) == state(number)


async def test_what_is_large_has_its_own_file(storage: Storage) -> None:
    writer = await begin(storage.store)
    small, large, alone = b"s" * SMALL, b"l" * (SMALL + 1), b"a"
    handles = await asyncio.gather(
        writer.write("small", [small[:9], small[9:]]),
        writer.write("large", [large[:SMALL], large[SMALL:]]),
        writer.write("alone", [alone], alone=True),
        writer.write("empty", []),
    )
    assert [handle.path.rpartition("-")[2] for handle in handles] == [PACKED, "large", "alone", PACKED]
    assert handles[3].start in (0, SMALL) and handles[0].size == SMALL
    assert handles[1] == FileHandle(handles[1].path, len(large), hashlib.blake2b(large, digest_size=16).digest())
    assert (storage.folder / "orders" / handles[1].path).read_bytes() == large


async def test_a_full_pack_waits_for_nobody(storage: Storage) -> None:
    writer = await begin(storage.store)
    stall = storage.files.stall("write")
    writes = [asyncio.create_task(writer.write("x", [b"x" * SMALL])) for _ in range(2 * FULL // SMALL + 1)]
    await until(lambda: len(storage.names()) == 0 and stall.reached.is_set())
    stall.release.set()
    handles = await asyncio.gather(*writes)
    assert sorted({handle.size for handle in handles}) == [SMALL, FULL]
    assert len({handle.path for handle in handles}) == 3


async def test_the_source_of_chunks_is_closed(storage: Storage) -> None:
    closed = 0

    async def chunks(size: int) -> AsyncIterator[bytes]:
        nonlocal closed
        try:
            yield b"x" * size
            yield b"y" * size
        finally:
            closed += 1

    writer = await begin(storage.store)
    for size in (1, SMALL):
        storage.files.fail("write", times=1)
        with pytest.raises(StorageFailed):
            await writer.write("x", chunks(size))
        await writer.write("x", chunks(size))
    assert closed == 4


# -------------------------------------------------------------------------------------------------------------- failure
async def test_a_pack_that_fails_fails_its_members_and_no_others(storage: Storage) -> None:
    writer = await begin(storage.store)
    storage.files.fail("write", "*packed", times=1, error=errno.ENOSPC)
    results = await asyncio.gather(*(writer.write("x", state(n)) for n in range(3)), return_exceptions=True)
    errors = [error for error in results if isinstance(error, StorageFailed)]
    assert len(errors) == 3 == len({id(error) for error in errors})
    assert all("0001-packed: No space left on device" in str(error) for error in errors)
    assert storage.names() == []
    handle = await writer.write("x", state(4))
    complete = await storage.store.complete(manifest_of(storage.store, writer.checkpoint, handle))
    assert await complete.read_blocks(KeyedHandle(handle, BLOCKS), BLOCKS) == state(4)


@pytest.mark.parametrize("when", ["gathering", "writing"])
async def test_a_cancelled_member_harms_no_other(storage: Storage, when: str) -> None:
    writer = await begin(storage.store)
    stall = storage.files.stall("write")
    tasks = [asyncio.create_task(writer.write("x", state(number))) for number in range(3)]
    await asyncio.sleep(0)
    if when == "writing":
        await stall.reached.wait()
    tasks[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[1]
    stall.release.set()
    handles = [await tasks[0], await tasks[2]]
    complete = await storage.store.complete(manifest_of(storage.store, writer.checkpoint, *handles))
    for number, handle in zip((0, 2), handles, strict=True):
        assert await complete.read_blocks(KeyedHandle(handle, BLOCKS), BLOCKS) == state(number)


@pytest.mark.parametrize("when", ["gathering", "writing"])
async def test_with_the_last_member_the_file_goes(storage: Storage, when: str) -> None:
    writer = await begin(storage.store)
    stall = storage.files.stall("write")
    tasks = [asyncio.create_task(writer.write("x", state(number))) for number in range(3)]
    await asyncio.sleep(0)
    if when == "writing":
        await stall.reached.wait()
    for task in tasks:
        task.cancel()
    assert all(
        isinstance(each, asyncio.CancelledError) for each in await asyncio.gather(*tasks, return_exceptions=True)
    )
    assert storage.names() == []
    stall.release.set()
    assert (await writer.write("x", state(7))).size == 24


async def test_an_abort_ends_packs_that_are_written_and_that_gather(storage: Storage) -> None:
    writer = await begin(storage.store)
    stall = storage.files.stall("write")
    first = asyncio.create_task(writer.write("x", state(1)))
    await stall.reached.wait()
    second = asyncio.create_task(writer.write("x", state(2)))
    await asyncio.sleep(0)
    await writer.abort()
    for task in (first, second):
        with pytest.raises(CheckpointFailed, match="checkpoint 1 was aborted"):
            await task
    assert storage.names() == []
    stall.release.set()
    await take(storage.store)


async def test_damage_in_a_pack_is_found_by_each_who_reads_it(storage: Storage) -> None:
    writer = await begin(storage.store)
    handles = await asyncio.gather(*(writer.write("x", state(number)) for number in range(2)))
    complete = await storage.store.complete(manifest_of(storage.store, writer.checkpoint, *handles))
    path = storage.folder / "orders" / handles[0].path
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    for handle in handles:
        with pytest.raises(CorruptCheckpoint, match="0001-packed is altered"):
            await complete.read_blocks(KeyedHandle(handle, BLOCKS), BLOCKS)


# ------------------------------------------------------------------------------------------------------------ manifests
def packed(start: int, offset: int) -> Manifest:
    file = FileHandle("run-1/attempt-1/chk-1/0001-packed", 100, b"d" * 16, start)
    keyed = KeyedHandle(file, (BlockRef("total", 0, 1, offset, 8),))
    node = manifest.NodeState("totals", keyed=(keyed,))
    subtasks = (manifest.SubtaskState("totals", 0, (node,)),)
    return Manifest(
        flow="orders",
        run=1,
        attempt=1,
        checkpoint=1,
        time_ms=0,
        operators=(manifest.OperatorMeta("totals", "process", 1, 128),),
        subtasks=subtasks,
        requires=manifest.requirements(subtasks),
    )


def test_a_manifest_says_that_its_reader_must_know_of_packs() -> None:
    assert packed(0, 0).requires == ()
    assert packed(24, 0).requires == (manifest.PACKED_FILES,)
    assert manifest.decode_manifest(manifest.encode_manifest(packed(24, 4)), "file") == packed(24, 4)


# ----------------------------------------------------------------------------------------------------------------- jobs
class Count(sa.KeyedOperator[int, int, tuple[int, int]]):
    count = sa.ValueState(int, default=0)

    def process(self, value: int, ctx: sa.Context[int, tuple[int, int]]) -> None:
        self.count.set(self.count.get() + 1)
        ctx.emit((value, self.count.get()))


@pytest.mark.slow
async def test_two_hundred_subtasks_write_few_files_and_restore(tmp_path: Path) -> None:
    keys, wide = 2000, 200

    def flow(feed: Feed, sink: ListSink[tuple[int, int]]) -> sa.Dataflow:
        flow = sa.Dataflow("counting")
        counted = (
            flow.source("numbers", feed).key_by(lambda value: value % keys).process("count", Count, parallelism=wide)
        )
        counted.sink("out", sink, parallelism=1)
        return flow

    checkpoints = sa.Checkpoints(tmp_path.as_uri(), interval=dt.timedelta(hours=1), alignment="unaligned")
    config = sa.Config(checkpoints=checkpoints, max_parallelism=1024)
    feed, sink = Feed(), ListSink[tuple[int, int]]()
    feed.put(*range(keys))
    async with asyncio.timeout(2 * PATIENCE), sa.start(flow(feed, sink), config, on_exit="cancel") as job:
        await until(lambda: job.metrics()["status"] == "running")
        taken = await job.checkpoint()
    [summary] = await list_checkpoints(tmp_path.as_uri())
    assert summary.uri == taken.uri
    assert summary.manifest is not None
    assert len(summary.manifest.files) <= 10
    feed.put(*range(keys, 2 * keys))
    feed.end()
    again = ListSink[tuple[int, int]]()
    async with asyncio.timeout(2 * PATIENCE):
        await sa.run(flow(feed, again), config)
    assert sorted(again.values)[-keys:] == [(value, 2) for value in range(keys, 2 * keys)]
