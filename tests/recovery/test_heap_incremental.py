"""Jobs on the heap whose checkpoints hold only the key groups that have changed: little is written; every one restores,
at any parallelism; whatever fails, the next one works; and what nobody uses is deleted."""

import asyncio
import datetime as dt
import errno
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from streamactors.checkpoint.layout import place_of
from streamactors.checkpoint.manifest import Manifest
from streamactors.checkpoint.restorable import load
from streamactors.checkpoint.storage.local import LocalFiles
from streamactors.errors import CheckpointFailed, CorruptCheckpoint
from streamactors.runtime.info import CheckpointInfo
from streamactors.state.key_groups import key_group
from streamactors.testing.failing_files import FailingFiles
from tests.recovery.test_native_checkpoints import KEYS, SMALL, World, damage, natives, retired, taken, uploaded
from tests.runtime.feeds import until

pytestmark = pytest.mark.slow

GROUPS = 128
FULL_EVERY = 5
INCREMENTAL = sa.Heap(incremental=True, full_every=FULL_EVERY)
ONE_GROUP = [key for key in range(KEYS) if key_group(key, GROUPS) == 5]


class HeapWorld(World):
    def config(self, backend: Any = None, parallelism: int = 2, **checkpoints: Any) -> sa.Config:
        return super().config(backend or INCREMENTAL, parallelism, **checkpoints)

    async def manifest(self, info: CheckpointInfo) -> Manifest:
        return (await self.load(info.uri)).manifest


@pytest.fixture
def world(tmp_path: Path) -> HeapWorld:
    return HeapWorld(tmp_path)


def used(manifest: Manifest) -> set[int]:
    """The checkpoints whose files it refers to."""
    places = [place_of(file.path) for file in manifest.files]
    return {place.checkpoint for place in places if place is not None}


def is_full(info: CheckpointInfo) -> bool:
    return info.uploaded_bytes == info.state_bytes > 4 * SMALL


# ------------------------------------------------------------------------------------------------------ what is written
async def test_one_key_group_of_a_hundred_has_changed(world: HeapWorld) -> None:
    async with world.job() as job:
        await world.feed_in(*range(KEYS))
        first = await taken(world, job)
        assert is_full(first)
        await world.feed_in(*(KEYS + key for key in ONE_GROUP))
        second = await taken(world, job)
        assert 0 < second.uploaded_bytes < first.state_bytes / 50
        assert second.state_bytes == first.state_bytes + second.uploaded_bytes
        manifest = await world.manifest(second)
        assert used(manifest) == {1, 2} and manifest.entries == (await world.manifest(first)).entries
        third = await taken(world, job)  # nothing has changed
        assert third.uploaded_bytes == 0 and used(await world.manifest(third)) == {1, 2}
        await world.check(job)
    async with world.job() as job:
        await world.check(job)
        assert await job.query("keep", "last", ONE_GROUP[0]) == world.expected[ONE_GROUP[0]]


async def test_without_the_option_all_is_written(world: HeapWorld) -> None:
    for config in (world.config(sa.Heap()), world.config("heap"), world.config(incremental=False)):
        async with world.job(config) as job:
            await world.feed_in(*range(KEYS))
            assert is_full(await taken(world, job))
            assert is_full(await taken(world, job))


@pytest.mark.parametrize("parallelisms", [(2, 2), (2, 3, 1), (1, 4, 2)])
async def test_after_a_restart_only_what_has_changed_is_written(
    world: HeapWorld, parallelisms: tuple[int, ...]
) -> None:
    for leg, parallelism in enumerate(parallelisms):
        async with world.job(world.config(parallelism=parallelism)) as job:
            if leg == 0:
                await world.feed_in(*range(KEYS))
                await taken(world, job)
            await world.check(job)
            await world.feed_in(leg, KEYS + leg)
            assert 0 < await uploaded(world, job) < SMALL
            await world.check(job)


async def test_all_is_written_in_time_and_what_nobody_uses_goes(world: HeapWorld) -> None:
    full: list[int] = []
    for run in range(3):
        async with world.job() as job:
            if run == 0:
                await world.feed_in(*range(KEYS))
            for step in range(4):
                await world.feed_in(run * 4 + step)
                info = await taken(world, job)
                ages = {info.id - checkpoint for checkpoint in used(await world.manifest(info))}
                assert max(ages) < FULL_EVERY
                full += [info.id] if info.uploaded_bytes > 4 * SMALL else []
            await retired(world, info.id - 2)
            await until(lambda job=job: not _unused(world, job))  # type: ignore[misc]
    assert full == [1, 6, 11]


def _unused(world: HeapWorld, job: sa.JobHandle) -> set[str]:
    """In folders of checkpoints that are older than any that could be used."""
    latest = job.metrics()["last_checkpoint"].id
    places = {path: place_of(path) for path in world.stored()}
    return {path for path, place in places.items() if place and place.checkpoint <= latest - FULL_EVERY - 1}


async def test_a_savepoint_is_complete(world: HeapWorld, tmp_path: Path) -> None:
    async with world.job() as job:
        await world.feed_in(*range(KEYS))
        await taken(world, job)
        await world.feed_in(7)
        saved = await job.savepoint((tmp_path / "saved").as_uri())
        assert await uploaded(world, job) < SMALL  # and it goes on from the checkpoint before
        expected = dict(world.expected)
    shutil.move(tmp_path / "saved", tmp_path / "moved")
    shutil.rmtree(world.storage)
    moved = saved.replace("/saved", "/moved")
    assert (await load(LocalFiles(world.local.as_uri()), moved, verify="digests")).manifest.entries
    async with world.job(restore=moved) as job:
        world.expected = expected
        await world.check(job)
        assert is_full(await taken(world, job))
        assert (await taken(world, job)).uploaded_bytes == 0


async def test_only_what_was_claimed_is_referred_to(world: HeapWorld) -> None:
    async with world.job() as job:
        await world.feed_in(*range(KEYS))
        uri = (await taken(world, job)).uri
    async with world.job(restore=uri) as job:
        info = await taken(world, job)
        assert is_full(info) and used(await world.manifest(info)) == {info.id}
        await world.check(job)
    async with world.job(restore=uri, claim=True) as job:
        info = await taken(world, job)
        assert info.uploaded_bytes == 0 and used(await world.manifest(info)) == {1}
        await world.check(job)


async def test_under_another_schema_all_of_that_state_is_written(world: HeapWorld) -> None:
    async with world.job() as job:
        await world.feed_in(*range(KEYS))
        await taken(world, job)
    for leg in range(3):
        async with world.job(types=bytes | int) as job:
            await world.check(job)
            info = await taken(world, job)
            assert info.uploaded_bytes > 4 * SMALL if leg == 0 else info.uploaded_bytes == 0
            if leg == 0:  # the lists are as they were
                assert used(await world.manifest(info)) == {1, info.id}
            await world.check(job)


@pytest.mark.parametrize("before", ["rocksdb", "heap"])
async def test_after_another_backend(world: HeapWorld, before: str) -> None:
    other = sa.RocksDB(folder=str(world.local)) if before == "rocksdb" else before
    async with world.job(world.config(other)) as job:
        await world.feed_in(*range(KEYS))
        await taken(world, job)
    async with world.job() as job:
        await world.check(job)
        info = await taken(world, job)
        assert is_full(info) if before == "rocksdb" else info.uploaded_bytes == 0
        await world.feed_in(1)
        assert await uploaded(world, job) < SMALL
    async with world.job(world.config(other, parallelism=3)) as job:
        await world.check(job)
        info = await taken(world, job)
        assert is_full(info) and natives(await world.manifest(info)) == (3 if before == "rocksdb" else 0)


# ------------------------------------------------------------------------------------------------------------- failures
async def test_nothing_of_a_failed_checkpoint_is_referred_to(world: HeapWorld) -> None:
    world.files = FailingFiles(LocalFiles(world.storage.as_uri()))
    async with world.job(world.config(tolerable_failures=3)) as job:
        await world.feed_in(*range(KEYS))
        await taken(world, job)
        for number in range(2):
            await world.feed_in(*(key + number * KEYS for key in ONE_GROUP))
            # The state is stored, and then there is no manifest.
            failure = world.files.fail("create", "*manifest", times=1, error=errno.EIO)
            with pytest.raises(CheckpointFailed, match="Input/output error"):
                await job.checkpoint()
            assert failure.hits == 1
        await world.feed_in(3 * KEYS + ONE_GROUP[0])
        info = await taken(world, job)
        assert 0 < info.uploaded_bytes < SMALL and used(await world.manifest(info)) == {1, info.id}
        await world.check(job)
    world.files = None
    async with world.job() as job:
        await world.check(job)
        assert await job.query("keep", "last", ONE_GROUP[0]) == world.expected[ONE_GROUP[0]]


async def test_several_at_once(world: HeapWorld) -> None:
    async with world.job(world.config(max_concurrent=3, tolerable_failures=5)) as job:
        await world.feed_in(*range(KEYS))
        for step in range(8):
            asked = [asyncio.ensure_future(job.checkpoint()) for _ in range(3)]
            await world.feed_in(*range(step * 20, step * 20 + 20))
            ends = await asyncio.gather(*asked, return_exceptions=True)
            # A later one may complete first, which gives an earlier one up.
            assert not isinstance(ends[-1], BaseException)
            assert all(isinstance(end, CheckpointFailed) for end in ends if isinstance(end, BaseException))
            await world.load(job.metrics()["last_checkpoint"].uri)
        await world.check(job)
    async with world.job(world.config(parallelism=3)) as job:
        await world.check(job)


async def test_a_failed_attempt_goes_on_from_the_last_checkpoint(world: HeapWorld) -> None:
    checkpoints = world.config().checkpoints
    restart = sa.Restart.fixed(dt.timedelta(0), 3)
    config = sa.Config(checkpoints=checkpoints, parallelism=2, state_backend=INCREMENTAL, restart=restart)
    async with world.job(config) as job:
        await world.feed_in(*range(KEYS))
        await taken(world, job)
        await world.feed_in(*(KEYS + key for key in ONE_GROUP))  # read again after the failure
        before = world.processed
        world.feed.fail(ValueError("broken"))
        await until(lambda: job.metrics()["restarts"] == 1 and world.processed == before + len(ONE_GROUP))
        await world.feed_in(2 * KEYS)
        assert 0 < await uploaded(world, job) < SMALL
        await world.check(job)
    async with world.job() as job:
        await world.check(job)
        for key in random.Random(3).sample(ONE_GROUP, 5):
            assert await job.query("keep", "last", key) == world.expected[key]


async def test_a_damaged_file_that_all_use(world: HeapWorld) -> None:
    async with world.job() as job:
        await world.feed_in(*range(KEYS))
        first = await taken(world, job)
        await world.feed_in(1)
        await taken(world, job)
    [file] = (await world.manifest(first)).files
    damage(world.storage / "keep" / file.path, "altered")
    with pytest.raises((CorruptCheckpoint, sa.JobFailed), match="is altered"):
        async with world.job():
            pass
