"""Jobs on RocksDB whose checkpoints are native and incremental: only new tables are written; whatever fails, the next
one works; a restore finds everything, at any parallelism and on either backend; and nothing of a user's is deleted."""

import asyncio
import contextlib
import datetime as dt
import errno
import random
import shutil
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from streamactors.checkpoint.manifest import Manifest
from streamactors.checkpoint.native_files import keyed_blocks
from streamactors.checkpoint.restorable import Restorable, list_checkpoints, load
from streamactors.checkpoint.storage.local import LocalFiles
from streamactors.errors import CheckpointFailed, CorruptCheckpoint, IncompatibleState, InvalidConfig, MissingExtra
from streamactors.launch import EXIT_TIMEOUT, _supervised
from streamactors.runtime.info import CheckpointInfo
from streamactors.state.blocks import codec_for
from streamactors.state.rocksdb.database import Database
from streamactors.submission import job_here
from streamactors.testing.failing_files import FailingFiles
from tests.runtime.feeds import PATIENCE, Feed, until

pytestmark = pytest.mark.slow

KEYS = 2000
HOUR = dt.timedelta(hours=1)
SMALL = 40_000
"""Bytes: less than one state, more than all that is new each time."""


def value_of(number: int) -> bytes:
    """What the key of `number` holds once that was its last."""
    return random.Random(number).randbytes(100)


class World:
    """A flow, where it stores what, and what it should hold."""

    def __init__(self, folder: Path) -> None:
        self.storage = folder / "checkpoints"
        self.local = folder / "local"
        self.local.mkdir()
        self.feed = Feed(chunk=500)
        self.processed = 0
        self.expected: dict[int, bytes] = {}
        self.files: FailingFiles | None = None

    def flow(self, name: str = "keep", types: Any = bytes) -> sa.Dataflow:
        world = self

        class Keep(sa.KeyedOperator[int, int, int]):
            last = sa.ValueState[Any](types)
            seen = sa.ListState(int)

            def process(self, number: int, ctx: sa.Context[int, int]) -> None:
                self.last.set(value_of(number))
                if number % 100 == 0:
                    self.seen.append(number)
                world.processed += 1

        flow = sa.Dataflow(name)
        flow.source("numbers", self.feed).key_by(lambda number: number % KEYS).process("keep", Keep)
        return flow

    def config(self, backend: Any = None, parallelism: int = 2, **checkpoints: Any) -> sa.Config:
        given = {"interval": HOUR, "retain": 2, **checkpoints}
        return sa.Config(
            checkpoints=sa.Checkpoints(self.storage.as_uri(), **given),
            parallelism=parallelism,
            state_backend=backend or sa.RocksDB(folder=str(self.local), memory=8 << 20, cache=4000),
        )

    @contextlib.asynccontextmanager
    async def job(
        self, config: sa.Config | None = None, *, restore: str | None = "latest", claim: bool = False, **flow: Any
    ) -> AsyncIterator[sa.JobHandle]:
        files = FailingFiles(LocalFiles(self.storage.as_uri())) if self.files is None else self.files
        job = job_here(
            self.flow(**flow).graph(),
            config or self.config(),
            restore=restore,
            fresh=False,
            resources=None,
            claim=claim,
            files=files,
        )
        async with _supervised(job, None, "cancel", EXIT_TIMEOUT) as handle:
            yield handle
        assert list(self.local.iterdir()) == []

    async def feed_in(self, *numbers: int) -> None:
        before = self.processed
        self.feed.put(*numbers)
        self.expected.update((number % KEYS, value_of(number)) for number in numbers)
        await until(lambda: self.processed == before + len(numbers))

    async def check(self, job: sa.JobHandle) -> None:
        for key in random.Random(7).sample(sorted(self.expected), 30):
            assert await job.query("keep", "last", key) == self.expected[key]
        entries = job.metrics()["subtasks"]
        assert sum(
            node["entries"]["last"] for each in entries.values() for uid, node in each["nodes"].items() if uid == "keep"
        ) == len(self.expected)

    def stored(self, flow: str = "keep") -> set[str]:
        """Files of state, relative to the flow's folder."""
        root = self.storage / flow
        return {path.relative_to(root).as_posix() for path in root.glob("run-*/*/chk-*/0*")}

    async def used(self) -> set[str]:
        found = await list_checkpoints(self.storage.as_uri())
        return {file.path for each in found if each.manifest is not None for file in each.manifest.files}

    async def load(self, uri: str) -> Restorable:
        return await load(LocalFiles(self.storage.as_uri()), uri, verify="digests")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def natives(manifest: Manifest) -> int:
    return sum(len(node.native) for _, node in manifest.nodes())


async def taken(world: World, job: sa.JobHandle) -> CheckpointInfo:
    """A checkpoint, after which retention has done its work."""
    await job.checkpoint()
    info = job.metrics()["last_checkpoint"]
    assert isinstance(info, CheckpointInfo)
    return info


async def uploaded(world: World, job: sa.JobHandle) -> int:
    info = await taken(world, job)
    assert info.state_bytes > 5 * SMALL
    return info.uploaded_bytes


# ------------------------------------------------------------------------------------------------------ what is written
async def test_only_what_is_new_is_written(world: World) -> None:
    async with world.job() as job:
        await world.feed_in(*range(KEYS))
        first = await taken(world, job)
        assert first.uploaded_bytes == first.state_bytes > 5 * SMALL
        for step in range(4):
            await world.feed_in(*range(KEYS + step * 10, KEYS + step * 10 + 10))
            assert await uploaded(world, job) < SMALL
        last = job.metrics()["last_checkpoint"]
        manifest = (await world.load(last.uri)).manifest
        assert natives(manifest) == 2 and "native-files" in manifest.requires
        assert manifest.entries == KEYS + KEYS // 100
        assert {file.path.split("/")[2] for file in manifest.files} > {"chk-1", "chk-5"}


async def test_nothing_is_kept_that_nobody_uses(world: World) -> None:
    async with world.job() as job:
        for step in range(12):  # so many that tables are merged
            await world.feed_in(*range(step * 200, step * 200 + 200))
            await taken(world, job)
        await until(lambda: not (world.storage / "keep/run-1/attempt-1/chk-10/manifest").exists())
    async with world.job() as job:
        await taken(world, job)
        async with asyncio.timeout(PATIENCE):
            while world.stored() - await world.used():  # retirement goes on beside
                await asyncio.sleep(0.01)
        assert world.stored() == await world.used()
        assert len(await list_checkpoints(world.storage.as_uri())) == 2


async def test_after_a_restart_only_what_is_new_is_written(world: World) -> None:
    async with world.job() as job:
        await world.feed_in(*range(KEYS))
        await taken(world, job)
    async with world.job() as job:
        await world.check(job)
        await world.feed_in(KEYS, KEYS + 1)
        assert await uploaded(world, job) < SMALL
        await world.check(job)


async def test_a_savepoint_and_full_checkpoints_are_canonical(world: World, tmp_path: Path) -> None:
    async with world.job() as job:
        await world.feed_in(*range(KEYS))
        await taken(world, job)
        saved = await world.load(await job.savepoint((tmp_path / "saved").as_uri()))
        assert natives(saved.manifest) == 0 and "native-files" not in saved.manifest.requires
        await world.feed_in(KEYS)
        assert await uploaded(world, job) < SMALL  # and it goes on from the checkpoint before
    async with world.job(world.config(incremental=False)) as job:
        await world.check(job)
        for _ in range(2):
            info = await taken(world, job)
            assert info.uploaded_bytes == info.state_bytes > 5 * SMALL
        assert natives((await world.load(info.uri)).manifest) == 0


async def test_no_state_needs_no_file(world: World) -> None:
    async with world.job() as job:
        info = await taken(world, job)
        assert (info.state_bytes, world.stored()) == (0, set())


async def test_state_that_has_all_gone_needs_no_file(tmp_path: Path) -> None:
    class Once(sa.KeyedOperator[int, int, int]):
        value = sa.ValueState(int)

        def process(self, number: int, ctx: sa.Context[int, int]) -> None:
            done.append(number)
            self.value.clear() if number < 0 else self.value.set(number)

    done: list[int] = []
    feed = Feed()
    flow = sa.Dataflow("once")
    flow.source("numbers", feed).key_by(abs).process("once", Once)
    checkpoints = sa.Checkpoints((tmp_path / "c").as_uri(), interval=HOUR)
    config = sa.Config(checkpoints=checkpoints, state_backend=sa.RocksDB(folder=str(tmp_path / "l")))
    async with sa.start(flow, config, on_exit="cancel") as job:
        feed.put(1, 2, 3)
        await until(lambda: len(done) == 3)
        assert (await job.checkpoint()).state_bytes
        feed.put(-1, -2, -3)
        await until(lambda: len(done) == 6)
        assert (await job.checkpoint()).state_bytes == 0


# ------------------------------------------------------------------------------------------------------------- restores
@pytest.mark.parametrize("parallelisms", [(2, 3, 1), (1, 4, 2), (3, 2, 5)])
async def test_rescaled(world: World, parallelisms: tuple[int, ...]) -> None:
    for number, parallelism in enumerate(parallelisms):
        async with world.job(world.config(parallelism=parallelism)) as job:
            if world.expected:
                await world.check(job)
            await world.feed_in(*range(number * 700, number * 700 + 1000))
            await taken(world, job)
            await world.feed_in(number + 1)
            await taken(world, job)
            await world.check(job)
    async with world.job() as job:
        await world.check(job)


@pytest.mark.parametrize("parallelism", [1, 2, 3])
async def test_heap_restores_native_files(world: World, parallelism: int) -> None:
    async with world.job() as job:
        await world.feed_in(*range(KEYS))
        await taken(world, job)
    async with world.job(world.config("heap", parallelism)) as job:
        await world.check(job)
        await world.feed_in(KEYS)
        await taken(world, job)
    async with world.job() as job:
        await world.check(job)


async def test_heap_without_rocksdict_says_what_to_install(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world.job() as job:
        await world.feed_in(*range(10))
        await taken(world, job)
    monkeypatch.setitem(sys.modules, "rocksdict", None)
    with pytest.raises(sa.JobFailed) as failed:
        async with world.job(world.config("heap")):
            pass
    assert isinstance(failed.value.__cause__, MissingExtra)
    assert "'keep'" in str(failed.value) and "pip install 'streamactors[rocksdb]'" in str(failed.value)


async def test_blocks_of_a_native_checkpoint(world: World) -> None:
    async with world.job() as job:
        await world.feed_in(*range(KEYS))
        restorable = await world.load((await taken(world, job)).uri)
    declared = sa.ValueState(bytes)
    codec, found = codec_for(declared), dict[Any, Any]()
    for _, node in restorable.manifest.nodes("keep"):
        async with contextlib.aclosing(keyed_blocks(restorable, node, {"last": declared}, 128)) as blocks:
            async for block in blocks:
                keys, values = codec.decode_block(block.data)
                found.update(zip(keys, values, strict=True))
                assert block.state == "last"
    assert found == world.expected


async def test_another_max_parallelism(world: World) -> None:
    async with world.job() as job:
        await world.feed_in(*range(10))
        await taken(world, job)
    config = sa.Config(
        checkpoints=world.config().checkpoints, max_parallelism=256, state_backend=world.config().state_backend
    )
    with pytest.raises(IncompatibleState, match="'keep' has state in 128 key groups, but max_parallelism is 256 now"):
        async with world.job(config):
            pass


async def test_another_type_is_refused_before_any_file_is_fetched(world: World) -> None:
    async with world.job() as job:
        await world.feed_in(*range(10))
        await taken(world, job)
    world.files = FailingFiles(LocalFiles(world.storage.as_uri()))
    fetched = world.files.fail("read_ranges", "*0*")
    with pytest.raises(IncompatibleState, match="operator 'keep', state 'last'.*bytes"):
        async with world.job(types=int):
            pass
    assert fetched.hits == 0


# ------------------------------------------------------------------------------------------------------ what is claimed
async def ran_on(world: World, *, gone: Path | None = None, **options: Any) -> list[CheckpointInfo]:
    async with world.job(**options) as job:
        await world.check(job)
        infos: list[CheckpointInfo] = []
        for _ in range(3):
            await world.feed_in(random.Random(len(infos)).randrange(KEYS))
            infos.append(await taken(world, job))
        await retired(world, infos[-1].id - 2)
        await until(lambda: not gone or not list(gone.glob("**/manifest")))
    return infos


async def retired(world: World, checkpoint: int) -> None:
    """Until it is there no more, or was never there."""
    await until(lambda: not list(world.storage.glob(f"keep/run-*/attempt-*/chk-{checkpoint}/manifest")))


async def started(world: World) -> str:
    async with world.job() as job:
        await world.feed_in(*range(KEYS))
        await taken(world, job)
        return (await taken(world, job)).uri


async def test_what_was_not_claimed_is_neither_used_nor_deleted(world: World) -> None:
    uri = await started(world)
    infos = await ran_on(world, restore=uri)
    assert infos[0].uploaded_bytes == infos[0].state_bytes  # full
    assert infos[1].uploaded_bytes < SMALL
    await ran_on(world)  # nor by later runs
    await ran_on(world)
    async with world.job(restore=uri) as job:
        await until(lambda: world.processed > KEYS)  # all that came after it
        await taken(world, job)
        await world.check(job)


async def test_what_was_claimed_is_used_and_deleted(world: World) -> None:
    uri = await started(world)
    infos = await ran_on(world, restore=uri, claim=True)
    assert infos[0].uploaded_bytes < SMALL
    with pytest.raises((InvalidConfig, CorruptCheckpoint)):
        await world.load(uri)
    await ran_on(world)


async def test_a_claimed_savepoint_is_deleted_once_it_is_superseded(world: World, tmp_path: Path) -> None:
    async with world.job() as job:
        await world.feed_in(*range(KEYS))
        uri = await job.savepoint((tmp_path / "saved").as_uri())
    (tmp_path / "saved" / "letter.txt").write_text("mine")
    shutil.rmtree(world.storage)
    async with world.job(restore=uri, claim=True) as job:
        await taken(world, job)
        assert (tmp_path / "saved" / "manifest").exists()
    async with world.job() as job:  # a later run knows that it was claimed
        await taken(world, job)
        await until(lambda: [path.name for path in (tmp_path / "saved").iterdir()] == ["letter.txt"])
    await ran_on(world)


async def test_a_savepoint_is_not_deleted_unless_it_was_claimed(world: World, tmp_path: Path) -> None:
    async with world.job() as job:
        await world.feed_in(*range(KEYS))
        uri = await job.savepoint((tmp_path / "saved").as_uri())
    shutil.rmtree(world.storage)
    await ran_on(world, restore=uri)
    await ran_on(world)
    await world.load(uri)


async def test_a_claimed_checkpoint_of_another_storage(world: World, tmp_path: Path) -> None:
    uri = await started(world)
    elsewhere = tmp_path / "elsewhere"
    shutil.move(world.storage, elsewhere)
    moved = uri.replace(world.storage.as_uri(), elsewhere.as_uri())
    infos = await ran_on(world, restore=moved, claim=True, gone=Path(moved.removeprefix("file://")))
    assert infos[0].uploaded_bytes == infos[0].state_bytes  # no file of another folder is used
    # What the checkpoint before it uses stays.
    [left] = await list_checkpoints(elsewhere.as_uri())
    await load(LocalFiles(elsewhere.as_uri()), left.uri, verify="digests")


async def test_claiming_goes_with_a_name(world: World) -> None:
    with pytest.raises(InvalidConfig, match="claim=True goes with restore="):
        async with world.job(restore=None, claim=True):
            pass


# ------------------------------------------------------------------------------------------------------------- failures
async def test_a_full_disk_in_the_middle_declines_the_checkpoint(world: World) -> None:
    world.files = FailingFiles(LocalFiles(world.storage.as_uri()))
    async with world.job(world.config(tolerable_failures=3)) as job:
        await world.feed_in(*range(KEYS))
        world.files.fill_after(100_000)
        with pytest.raises(CheckpointFailed, match="No space left"):
            await job.checkpoint()
        world.files.heal()
        first = await taken(world, job)
        assert first.uploaded_bytes == first.state_bytes  # nothing of the failed one is used
        failure = world.files.fail("write", "*.sst", times=1, error=errno.EIO)
        await world.feed_in(KEYS)
        with pytest.raises(CheckpointFailed, match="Input/output error"):
            await job.checkpoint()
        assert failure.hits == 1
        assert await uploaded(world, job) < SMALL
        await world.check(job)
        assert job.metrics()["restarts"] == 0
        assert not [path for path in world.local.rglob("native-*") if path.exists()]
    async with world.job() as job:
        await world.check(job)


async def test_a_local_disk_that_refuses_declines_the_checkpoint(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Database.checkpoint

    def refuse(self: Database, path: Path) -> None:
        raise sa.StorageFailed(f"{self.where}: no room") if failing else None  # type: ignore[misc]

    failing = True
    async with world.job(world.config(tolerable_failures=3)) as job:
        await world.feed_in(*range(KEYS))
        with monkeypatch.context() as full:
            full.setattr(Database, "checkpoint", refuse)
            with pytest.raises(CheckpointFailed, match="no room"):
                await job.checkpoint()
        assert Database.checkpoint is real
        await world.feed_in(KEYS)
        await taken(world, job)
        await world.check(job)


@pytest.mark.parametrize("operation", ["write", "create"])
async def test_cancelled_in_the_middle(world: World, operation: str) -> None:
    """`job` looks whether anything is left."""
    world.files = FailingFiles(LocalFiles(world.storage.as_uri()))
    async with world.job() as job:
        await world.feed_in(*range(KEYS))
        await taken(world, job)
        await world.feed_in(*range(100))
        stall = world.files.stall(operation, "*/chk-2/*")
        asking = asyncio.ensure_future(job.checkpoint())
        await stall.reached.wait()
        cancelling = asyncio.ensure_future(job.cancel())
        stall.release.set()
        await cancelling
        await asyncio.gather(asking, return_exceptions=True)
    world.files = None
    async with world.job() as job:
        await world.check(job) if operation == "write" else None


async def test_cancelled_while_it_restores(world: World) -> None:
    uri = await started(world)
    world.files = FailingFiles(LocalFiles(world.storage.as_uri()))
    stall = world.files.stall("read_ranges", "*.sst")
    starting = asyncio.ensure_future(world.job(restore=uri).__aenter__())
    await stall.reached.wait()
    starting.cancel()
    stall.release.set()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert list(world.local.iterdir()) == []


async def test_aborted_while_its_files_are_being_linked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one waits for that, and is incremental."""
    real, linking, go_on = Database.checkpoint, threading.Event(), threading.Event()

    def slow(self: Database, path: Path) -> None:
        if "groups 0.." in self.where and not go_on.is_set():
            linking.set()
            assert go_on.wait(PATIENCE)
        real(self, path)

    world.files = FailingFiles(LocalFiles(world.storage.as_uri()))
    async with world.job(world.config(tolerable_failures=3)) as job:
        await world.feed_in(*range(KEYS))
        await taken(world, job)
        await world.feed_in(*range(50))
        monkeypatch.setattr(Database, "checkpoint", slow)
        world.files.fail("write", "*/chk-2/*.sst", times=1)
        asking = asyncio.ensure_future(job.checkpoint())
        await until(linking.is_set)
        with pytest.raises(CheckpointFailed, match="Input/output error"):
            await asking
        await world.feed_in(*range(50, 100))  # processing goes on, in memory
        asking = asyncio.ensure_future(job.checkpoint())
        await until(lambda: (world.storage / "keep/run-1/attempt-1/chk-3").exists())
        go_on.set()
        assert (await asking).uploaded_bytes < SMALL
        await world.check(job)
        await until(lambda: not list(world.local.glob("*/native-*")))
    async with world.job() as job:
        await world.check(job)


async def test_too_busy_for_a_native_snapshot(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written in full, rather than not at all."""
    async with world.job() as job:
        await world.feed_in(*range(KEYS))
        await taken(world, job)
        with monkeypatch.context() as busy:
            busy.setattr(Database, "drain", lambda self: False)
            info = await taken(world, job)
        restorable = await world.load(info.uri)
        assert natives(restorable.manifest) == 0 and restorable.manifest.entries == KEYS + KEYS // 100
    async with world.job() as job:
        await world.check(job)


async def test_several_at_once(world: World) -> None:
    """The second begins while the first is being stored, and may be complete before it: then that is told instead."""
    async with world.job(world.config(max_concurrent=3, tolerable_failures=5)) as job:
        await world.feed_in(*range(KEYS))
        for step in range(5):
            asked = [asyncio.ensure_future(job.checkpoint()) for _ in range(3)]
            await world.feed_in(*range(step * 20, step * 20 + 20))
            taken = [info.id for info in await asyncio.gather(*asked)]
            assert taken == sorted(taken)
        await world.check(job)
    async with world.job() as job:
        await world.check(job)


async def test_a_failed_attempt_goes_on_from_the_last_checkpoint(world: World) -> None:
    config = sa.Config(
        checkpoints=world.config().checkpoints,
        parallelism=2,
        state_backend=world.config().state_backend,
        restart=sa.Restart.fixed(dt.timedelta(0), 3),
    )
    async with world.job(config) as job:
        await world.feed_in(*range(KEYS))
        await taken(world, job)
        world.feed.fail(ValueError("broken"))
        await until(lambda: job.metrics()["restarts"] == 1 and job.status == "running")
        await world.feed_in(KEYS)
        assert await uploaded(world, job) < SMALL
        await world.check(job)


# --------------------------------------------------------------------------------------------------------- bad storages
async def two_checkpoints(world: World) -> Restorable:
    """The latest, which has a table of its own and uses one of the first."""
    async with world.job() as job:
        await world.feed_in(*range(KEYS))
        await taken(world, job)
        await world.feed_in(*range(KEYS, KEYS + 20))
        return await world.load((await taken(world, job)).uri)


def table(restorable: Restorable, *, own: bool) -> Path:
    manifest = restorable.manifest
    tables = [file for file in manifest.reusable_files() if (file in manifest.own_files) == own]
    return Path(restorable.files.uri_of(restorable.path(tables[0])).removeprefix("file://"))


@pytest.mark.parametrize("how", ["altered", "truncated", "missing"])
async def test_a_damaged_table_of_the_latest_falls_back(world: World, how: str) -> None:
    path = table(await two_checkpoints(world), own=True)
    damage(path, how)
    async with world.job() as job:  # what came after the first is read again
        await until(lambda: world.processed == KEYS + 40)
        await world.check(job)
        await taken(world, job)
        await world.check(job)
    async with world.job() as job:
        await world.check(job)


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(data[:-1])
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


@pytest.mark.parametrize("how", ["altered", "missing"])
async def test_a_damaged_table_that_all_use(world: World, how: str) -> None:
    path = table(await two_checkpoints(world), own=False)
    damage(path, how)
    with pytest.raises((CorruptCheckpoint, sa.JobFailed), match=f"{path.name} is {how}"):
        async with world.job():
            pass
    assert list(world.local.iterdir()) == []


async def test_a_folder_moved_without_what_it_uses(world: World, tmp_path: Path) -> None:
    latest = await two_checkpoints(world)
    moved = tmp_path / "moved"
    shutil.copytree(latest.uri.removeprefix("file://"), moved)
    with pytest.raises(
        CorruptCheckpoint, match=r"moved/.*\.sst is missing.*Checkpoint 2 is incremental.*written for checkpoint 1"
    ):
        await world.load(moved.as_uri())
    # The flow's folder as a whole can be moved.
    shutil.move(world.storage, tmp_path / "all")
    await world.load((tmp_path / "all/keep").as_uri())
