"""The store's promises hold whatever operation of the disk a crash comes before: of the process alone, or of the power,
which loses or keeps by seed each thing that was not yet made durable."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

from streamactors.checkpoint.storage.local import LocalFiles
from streamactors.checkpoint.store import CheckpointStore
from streamactors.clock import SYSTEM
from streamactors.errors import Crashed
from streamactors.testing.simulation.disk import VolatileDisk
from tests.checkpoint.checkpoints import begin, manifest_of, restored, state

STORAGE = "/data/storage"


@dataclass
class Promises:
    """What the store has returned for so far, over all crashes."""

    run: int = 0
    checkpoint: int = 0
    """The highest id for which `writer` has returned."""
    widest: int = 0
    latest: set[int | None] = field(default_factory=lambda: {None})
    """What may be found: one, or either of two when the crash came while it changed."""
    receipts: set[int] = field(default_factory=set)

    async def hold(self, store: CheckpointStore) -> None:
        assert store.run > self.run
        self.run = store.run
        assert store.widest.get("out", 0) >= self.widest
        found = await store.latest(verify="digests")
        checkpoint = None if found is None else await restored(found)
        assert checkpoint in self.latest
        self.latest = {checkpoint}  # and it has to stay so: somebody may have acted on it
        if found is not None and checkpoint in self.receipts:
            assert found.committed
        assert store.next_checkpoint_id() > self.checkpoint
        for place in [item.place for item in await store._folder.scan_all() if item.complete]:
            await restored(await store._folder.open(place))  # never a manifest without its files


Life = Callable[[CheckpointStore, Promises], Awaitable[None]]


async def take(store: CheckpointStore, promises: Promises, *, savepoint: str | None = None) -> int:
    writer = await begin(store, savepoint=savepoint)
    checkpoint = promises.checkpoint = writer.checkpoint
    file = await writer.write("totals", state(checkpoint))
    promises.latest.add(checkpoint)
    final = savepoint is not None
    await store.complete(manifest_of(store, checkpoint, file, transactional=True, savepoint=final, final=final))
    promises.latest = {checkpoint}
    return checkpoint


async def receipt(store: CheckpointStore, promises: Promises, checkpoint: int) -> None:
    await store.write_receipt(checkpoint)
    promises.receipts.add(checkpoint)


async def attempt(store: CheckpointStore, promises: Promises, parallelism: int) -> None:
    await store.begin_attempt({"out": parallelism})
    promises.widest = max(promises.widest, parallelism)


async def abort(store: CheckpointStore, promises: Promises) -> None:
    writer = await begin(store)
    promises.checkpoint = writer.checkpoint
    await writer.write("totals", state(writer.checkpoint))
    await writer.abort()


async def plain_life(store: CheckpointStore, promises: Promises) -> None:
    await attempt(store, promises, 3)
    await receipt(store, promises, await take(store, promises))
    await take(store, promises)
    await store.retire(retain=1)
    await abort(store, promises)
    promises.checkpoint = (await begin(store)).checkpoint  # an attempt dies with it in flight
    await attempt(store, promises, 2)
    await receipt(store, promises, await take(store, promises))
    await store.retire(retain=2)


async def based_life(store: CheckpointStore, promises: Promises) -> None:
    """Told to go back to an earlier checkpoint, then to begin afresh."""
    first = await take(store, promises)
    await take(store, promises)
    promises.latest.add(first)
    base = await store.load(f"{STORAGE}/orders/run-{store.run}/attempt-1/chk-{first}")
    await store.close()
    async with await reopened(store) as store:
        promises.run = store.run
        await store.record_base(base)
        promises.latest = {first}
        assert await restored(await store.latest() or base) == first
        await abort(store, promises)
    async with await reopened(store) as store:
        promises.run = store.run
        promises.latest.add(None)
        await store.record_base(None)
        promises.latest = {None}
        await attempt(store, promises, 4)
        await take(store, promises)
        await store.retire()


async def stopped_life(store: CheckpointStore, promises: Promises) -> None:
    """Ends with a savepoint, and goes on from it."""
    await take(store, promises)
    saved = await take(store, promises, savepoint=f"/data/saved-{store.run}")
    await receipt(store, promises, saved)
    await store.close()
    async with await reopened(store) as store:
        await promises.hold(store)
        await take(store, promises)
        await store.retire()


async def reopened(store: CheckpointStore) -> CheckpointStore:
    return await CheckpointStore.open(STORAGE, "orders", clock=SYSTEM, files=store._files)


async def live(disk: VolatileDisk, life: Life, promises: Promises) -> None:
    """Until the end, or until the crash."""
    try:
        files = LocalFiles(STORAGE, disk=disk)
        async with await CheckpointStore.open(STORAGE, "orders", clock=SYSTEM, files=files) as store:
            await promises.hold(store)
            await life(store, promises)
        assert not disk.crashed
    except Crashed:
        assert disk.crashed


async def operations(life: Life) -> int:
    disk = VolatileDisk()
    await live(disk, life, Promises())
    assert not disk.crashed
    return disk.operations


@pytest.mark.slow
@pytest.mark.parametrize("life", [plain_life, based_life, stopped_life])
@pytest.mark.parametrize("power_loss", [False, True])
async def test_a_crash_before_any_operation(life: Life, power_loss: bool) -> None:
    for crash_after in range(await operations(life) + 1):
        chance = random.Random(crash_after)
        promises = Promises()
        disk = VolatileDisk(crash_after=crash_after)
        await live(disk, life, promises)
        # A second crash, soon after: what was visible but not durable after the first one may be lost now.
        disk = disk.after_crash(chance if power_loss else None, crash_after=chance.randrange(150))
        await live(disk, plain_life, promises)
        disk = disk.after_crash(chance)
        await live(disk, plain_life, promises)
        assert not disk.crashed


def interrupted_life(turns: int, what: str) -> Life:
    """An attempt fails just while a receipt (of its own run, or of the one that it was restored from), or a checkpoint,
    is being completed; the next one, of the same process, builds on what it finds."""

    async def life(store: CheckpointStore, promises: Promises) -> None:
        await attempt(store, promises, 3)
        if what == "receipt":
            await interrupted(store.write_receipt(await take(store, promises)), turns)
            await look(store, promises)
            return
        if what == "receipt of what was restored":
            await take(store, promises)
            await store.close()
            async with await reopened(store) as store:
                promises.run = store.run
                found = await store.latest()
                assert found is not None
                await attempt(store, promises, 3)
                await interrupted(store.write_receipt(found), turns)
                await look(store, promises)
            return
        writer = await begin(store)
        promises.checkpoint = writer.checkpoint
        file = await writer.write("totals", state(writer.checkpoint))
        promises.latest.add(writer.checkpoint)
        manifest = manifest_of(store, writer.checkpoint, file, transactional=True)
        await interrupted(store.complete(manifest), turns)
        for checkpoint in tuple(store.in_flight):  # as an attempt does at its end
            await store.abort(checkpoint)
        await look(store, promises)

    return life


async def interrupted(work: Coroutine[Any, Any, object], turns: int) -> None:
    task = asyncio.create_task(work)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def look(store: CheckpointStore, promises: Promises) -> None:
    """What has been found once was acted on, and has to stay."""
    found = await store.latest(verify="digests")
    checkpoint = None if found is None else await restored(found)
    assert checkpoint in promises.latest
    promises.latest = {checkpoint}
    if found is not None and found.committed:
        promises.receipts.add(found.manifest.checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("turns", range(2, 50, 3))
@pytest.mark.parametrize("what", ["receipt", "receipt of what was restored", "checkpoint"])
async def test_what_an_interrupted_attempt_left_is_trusted_only_once_it_is_durable(what: str, turns: int) -> None:
    for seed in range(5):
        promises, disk = Promises(), VolatileDisk()
        await live(disk, interrupted_life(turns, what), promises)
        disk = disk.after_crash(random.Random(seed))
        await live(disk, plain_life, promises)
        assert not disk.crashed


@pytest.mark.slow
async def test_nothing_is_left_of_crashed_runs() -> None:
    disk = VolatileDisk()
    promises = Promises()
    for crash_after in range(0, await operations(plain_life), 5):
        disk = disk.after_crash(None, crash_after=crash_after)
        await live(disk, plain_life, promises)
    disk = disk.after_crash(None)
    await live(disk, plain_life, promises)
    folder = disk.folder(f"{STORAGE}/orders")
    assert [name for name in sorted(folder.names) if not name.startswith("used-")] == [
        "owner.lock",
        f"run-{promises.run}",
    ]
    run = disk.folder(f"{STORAGE}/orders/run-{promises.run}")
    assert sorted(run.names) == ["after", "attempt-1", "attempt-2", "epoch"]
    checkpoints = [name for attempt in ("attempt-1", "attempt-2") for name in await _names(disk, promises.run, attempt)]
    assert len([name for name in checkpoints if name.startswith("chk-")]) == 2


async def _names(disk: VolatileDisk, run: int, attempt: str) -> list[str]:
    return [entry.name for entry in await disk.scan(f"{STORAGE}/orders/run-{run}/{attempt}")]
