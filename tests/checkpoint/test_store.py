"""The store: one owner, nothing half, nothing lost, nothing doubled silently."""

import asyncio
import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from streamactors.checkpoint.manifest import encode_manifest
from streamactors.checkpoint.restorable import FlowFolder, Restorable, list_checkpoints, load
from streamactors.checkpoint.storage.contract import Files
from streamactors.checkpoint.storage.local import LocalFiles
from streamactors.checkpoint.store import CheckpointStore
from streamactors.checkpoint.writer import CheckpointWriter
from streamactors.clock import SYSTEM
from streamactors.errors import (
    CheckpointFailed,
    CorruptCheckpoint,
    FencedOff,
    IncompatibleState,
    InvalidConfig,
    StorageFailed,
    StorageInUse,
    TransactionAlreadyCommitted,
)
from streamactors.testing.failing_files import FailingFiles
from tests.checkpoint.checkpoints import BLOCKS, begin, manifest_of, restored, state, take

ROOT = Path(__file__).resolve().parents[2]


async def open_store(folder: Path, flow: str = "orders") -> CheckpointStore:
    return await CheckpointStore.open(str(folder), flow, clock=SYSTEM)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[CheckpointStore]:
    async with await open_store(tmp_path) as store:
        yield store


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def folder_of(restorable: Restorable) -> Path:
    return Path(restorable.uri.removeprefix("file://"))


def state_file(restorable: Restorable) -> Path:
    return folder_of(restorable) / "0001-totals"


def flip(path: Path, position: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


async def latest_id(store: CheckpointStore) -> int | None:
    found = await store.latest()
    return None if found is None else await restored(found)


# ------------------------------------------------------------------------------------------------------------ ownership
async def test_a_second_owner_in_the_same_process_is_refused(store: CheckpointStore, tmp_path: Path) -> None:
    with pytest.raises(
        StorageInUse, match=rf"flow 'orders' in file://.* is in use by process {os.getpid()} on .*since"
    ):
        await open_store(tmp_path)
    async with await open_store(tmp_path, "other"):
        pass


async def test_each_start_is_a_run_of_its_own(tmp_path: Path) -> None:
    runs = []
    for _ in range(3):
        async with await open_store(tmp_path) as store:
            runs.append(store.run)
    assert runs == [1, 2, 3]


OWNER = """
import asyncio, signal, sys
from streamactors.checkpoint.store import CheckpointStore
from streamactors.checkpoint.writer import CheckpointWriter
from streamactors.clock import SYSTEM
from tests.checkpoint.checkpoints import begin, take

async def main():
    store = await CheckpointStore.open(sys.argv[1], "orders", clock=SYSTEM)
    await take(store)
    await (await begin(store)).write("half", [b"x"])
    print("owner", flush=True)
    signal.pause()

asyncio.run(main())
"""


@contextmanager
def other_process(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Owns the storage, has completed checkpoint 1 and begun 2."""
    with subprocess.Popen([sys.executable, "-c", OWNER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"owner\n"
            yield process
        finally:
            process.kill()


@pytest.mark.kill
async def test_a_live_owner_is_refused_and_a_killed_one_succeeded(tmp_path: Path) -> None:
    with other_process(tmp_path) as process:
        with pytest.raises(StorageInUse, match=f"in use by process {process.pid} on "):
            await open_store(tmp_path)
        [half, complete] = await list_checkpoints(str(tmp_path))
        assert (complete.checkpoint, half.checkpoint, half.manifest) == (1, 2, None)
        process.send_signal(signal.SIGKILL)
        process.wait()
        async with await open_store(tmp_path) as store:
            assert store.run == 2
            assert await latest_id(store) == 1
            assert store.next_checkpoint_id() == 3


@pytest.mark.kill
async def test_a_zombie_completes_nothing(store: CheckpointStore, tmp_path: Path) -> None:
    """Its lock was lost, as on a network folder whose server restarted, and another process has taken over."""
    writer = await begin(store)
    file = await writer.write("totals", state(1))
    (tmp_path / "orders" / "owner.lock").unlink()
    with other_process(tmp_path) as process:
        fenced = rf"run 1 of flow 'orders' was fenced off: run 2 \(process {process.pid} on"
        with pytest.raises(FencedOff, match=fenced):
            await store.complete(manifest_of(store, 1, file))
        for forbidden in (store.ensure_owner(), store.begin_attempt({}), store.write_receipt(1), store.retire()):
            with pytest.raises(FencedOff, match=fenced):
                await forbidden
        with pytest.raises(FencedOff, match=fenced):
            await store.record_base(None)
        await store.abort(1)
        assert [found.checkpoint for found in await list_checkpoints(str(tmp_path)) if found.manifest] == [2]


async def test_a_lost_lock_fences_by_itself(store: CheckpointStore, tmp_path: Path) -> None:
    writer = await begin(store)
    (tmp_path / "orders" / "owner.lock").unlink()
    with pytest.raises(FencedOff, match=r"lost its lock: owner.lock in file://.*/orders was deleted or replaced"):
        await store.complete(manifest_of(store, writer.checkpoint))


async def test_what_a_zombie_completes_late_no_later_run_goes_on_from(tmp_path: Path) -> None:
    files = FailingFiles(LocalFiles(str(tmp_path)))
    zombie = await CheckpointStore.open(str(tmp_path), "orders", clock=SYSTEM, files=files)
    writer = await begin(zombie)
    file = await writer.write("totals", state(1))
    stall = files.stall("create", "*/manifest")
    completing = asyncio.create_task(zombie.complete(manifest_of(zombie, 1, file)))
    await stall.reached.wait()  # ownership has been checked
    (tmp_path / "orders" / "owner.lock").unlink()
    async with await open_store(tmp_path) as successor:
        stall.release.set()
        with pytest.raises(FencedOff):
            await completing
        await zombie.close()
        assert await latest_id(successor) is None
    async with await open_store(tmp_path) as third:
        assert await latest_id(third) is None
        assert [summary.problem for summary in await list_checkpoints(str(tmp_path))] == [
            "late: a process completed it that had been fenced off"
        ]
        await take(third)
        await third.retire()
        assert not [name for name in tree(tmp_path) if "run-1" in name]


async def test_a_closed_store_does_nothing(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    await begin(store)
    await store.close()
    await store.close()
    with pytest.raises(FencedOff, match="has closed its storage"):
        await store.ensure_owner()
    with pytest.raises(CheckpointFailed, match="checkpoint 1 was aborted"):
        await store.complete(manifest_of(store, 1))
    assert not [name for name in tree(tmp_path) if "chk" in name]


async def test_a_failed_start_gives_up_ownership(tmp_path: Path) -> None:
    files = FailingFiles(LocalFiles(str(tmp_path)))
    files.fail("create", "*/epoch", error=errno.ENOSPC)
    with pytest.raises(StorageFailed, match=r"run-1/epoch: No space left on device. Free space"):
        await CheckpointStore.open(str(tmp_path), "orders", clock=SYSTEM, files=files)
    await (await open_store(tmp_path)).close()


async def test_a_cancelled_start_gives_up_ownership(tmp_path: Path) -> None:
    files = FailingFiles(LocalFiles(str(tmp_path)))
    stall = files.stall("create", "*/epoch")
    task = asyncio.create_task(CheckpointStore.open(str(tmp_path), "orders", clock=SYSTEM, files=files))
    await stall.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await (await open_store(tmp_path)).close()


async def test_unsupported_storage() -> None:
    with pytest.raises(InvalidConfig, match="hdfs://… is not supported"):
        await CheckpointStore.open("hdfs://host/x", "orders", clock=SYSTEM)


# ------------------------------------------------------------------------------------------------------- attempts, ids
async def test_the_widest_parallelism_of_all_attempts_and_runs(tmp_path: Path) -> None:
    async with await open_store(tmp_path) as store:
        assert store.widest == {}
        assert await store.begin_attempt({"out": 3, "log": 1}) == 1
        assert await store.begin_attempt({"out": 2, "log": 5}) == 2
        assert store.widest == {"out": 3, "log": 5}
    async with await open_store(tmp_path) as store:
        assert store.widest == {"out": 3, "log": 5}
        await store.begin_attempt({"new": 1, "out": 9})
        await take(store)
        await store.retire()
    async with await open_store(tmp_path) as store:
        assert store.widest == {"out": 9, "log": 5, "new": 1}


async def test_a_damaged_record_of_the_widest_parallelism_says_what_to_do(tmp_path: Path) -> None:
    async with await open_store(tmp_path) as store:
        await store.begin_attempt({"out": 3})
    record = tmp_path / "orders/run-1/attempt-1/widest"
    flip(record)
    with pytest.raises(CorruptCheckpoint, match=r"run-1/attempt-1/widest is altered.*delete that file and start again"):
        await open_store(tmp_path)
    record.unlink()
    await (await open_store(tmp_path)).close()


async def test_ids_are_never_used_again(tmp_path: Path) -> None:
    async with await open_store(tmp_path) as store:
        assert store.next_checkpoint_id() == 1
        await take(store)  # 2
        assert await latest_id(store) == 2
        await store.writer(7)
        assert store.next_checkpoint_id() == 8
        await store.abort(7)
        await (await store.writer(8)).abort()
        await store.begin_attempt({})
        assert store.next_checkpoint_id() == 9
        assert tree(tmp_path / "orders") == {
            "owner.lock",
            "used-8",
            "run-1/epoch",
            "run-1/attempt-1/widest",
            "run-1/attempt-1/chk-2/0001-totals",
            "run-1/attempt-1/chk-2/manifest",
            "run-1/attempt-2/widest",
        }
    async with await open_store(tmp_path) as store:
        assert store.next_checkpoint_id() == 9
        await store.begin_attempt({})
        await store.writer(30)  # in flight at the end
    async with await open_store(tmp_path) as store:
        assert store.next_checkpoint_id() == 31


async def test_ids_go_on_from_a_checkpoint_restored_from_elsewhere(tmp_path: Path) -> None:
    async with await open_store(tmp_path / "a") as store:
        await store.begin_attempt({})
        await (await store.writer(40)).abort()
        base = await take(store)
    async with await open_store(tmp_path / "b") as store:
        await store.load(base.uri)
        assert store.next_checkpoint_id() == 42


async def test_a_writer_needs_an_attempt(store: CheckpointStore) -> None:
    with pytest.raises(ValueError, match="begin_attempt"):
        await store.writer(1)


# -------------------------------------------------------------------------------------------------------------- writing
async def test_a_checkpoint_is_restored_by_the_next_process(tmp_path: Path) -> None:
    async with await open_store(tmp_path) as store:
        assert await store.latest() is None
        assert not await store.holds_checkpoints()
        complete = await take(store)
        assert await store.holds_checkpoints()
        assert complete.uri == f"{tmp_path.as_uri()}/orders/run-1/attempt-1/chk-1"
    async with await open_store(tmp_path) as store:
        found = await store.latest()
        assert found is not None
        assert (found.uri, found.manifest, found.committed) == (complete.uri, complete.manifest, False)
        assert await restored(found) == 1
        [handle] = next(found.manifest.nodes())[1].keyed
        assert await store.read_blocks(found, handle, BLOCKS[2:]) == state(1)[2:]


async def test_many_subtasks_write_at_once(store: CheckpointStore) -> None:
    writer = await begin(store)
    files = await asyncio.gather(*(writer.write("totals", state(number), alone=True) for number in range(50)))
    assert len({file.path for file in files}) == 50
    complete = await store.complete(manifest_of(store, writer.checkpoint, *files))
    await store.verify(complete)
    assert complete.manifest.state_bytes == 50 * 24
    [(_, node)] = complete.manifest.nodes()
    for number, handle in enumerate(node.keyed):
        assert await store.read_blocks(complete, handle, BLOCKS) == state(number)


async def test_without_a_manifest_it_never_existed(tmp_path: Path) -> None:
    async with await open_store(tmp_path) as store:
        writer = await begin(store)
        await writer.write("totals", state(1))
        shutil.copytree(tmp_path / "orders", tmp_path / "crashed")
        assert await store.latest() is None
    async with await open_store(tmp_path, "crashed") as store:
        assert await store.latest() is None
        assert not await store.holds_checkpoints()


async def test_a_manifest_is_written_once(store: CheckpointStore) -> None:
    complete = await take(store)
    with pytest.raises(CheckpointFailed, match="checkpoint 1 was aborted"):
        await store.complete(complete.manifest)
    writer = await begin(store)
    (folder_of(complete).parent / f"chk-{writer.checkpoint}" / "manifest").write_bytes(b"")
    with pytest.raises(StorageFailed, match="chk-2/manifest exists already"):
        await store.complete(manifest_of(store, 2))


async def test_a_manifest_of_another_attempt_is_refused(store: CheckpointStore) -> None:
    writer = await begin(store)
    other = manifest_of(store, writer.checkpoint)
    await store.begin_attempt({})
    with pytest.raises(CheckpointFailed, match="was aborted"):
        await store.complete(other)
    writer = await begin(store)
    with pytest.raises(ValueError, match="was expected"):
        await store.complete(manifest_of(store, writer.checkpoint, savepoint=True))


async def test_nothing_is_added_to_a_complete_checkpoint(store: CheckpointStore) -> None:
    writer = await begin(store)
    await store.complete(manifest_of(store, 1))
    with pytest.raises(CheckpointFailed, match="checkpoint 1 is complete"):
        await writer.write("late", [b"x"])
    await writer.abort()
    assert await latest_manifest_id(store) == 1


async def latest_manifest_id(store: CheckpointStore) -> int | None:
    found = await store.latest()
    return None if found is None else found.manifest.checkpoint


# ---------------------------------------------------------------------------------------------------------------- abort
async def test_abort_ends_writes_under_way_and_refuses_later_ones(store: CheckpointStore, tmp_path: Path) -> None:
    writer = await begin(store)
    await writer.write("done", [b"x"])
    under_way, closed = asyncio.Event(), asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 300_000
                under_way.set()
        finally:
            closed.set()

    write = asyncio.create_task(writer.write("endless", endless()))
    await under_way.wait()
    await writer.abort()
    with pytest.raises(CheckpointFailed, match="checkpoint 1 was aborted"):
        await write
    assert closed.is_set()
    with pytest.raises(CheckpointFailed, match="checkpoint 1 was aborted"):
        await writer.write("late", [b"x"])
    await writer.abort()
    assert tree(tmp_path / "orders") == {"owner.lock", "used-1", "run-1/epoch", "run-1/attempt-1/widest"}
    assert store.in_flight == ()


async def test_cancelling_a_writer_leaves_no_file(store: CheckpointStore) -> None:
    writer = await begin(store)
    waiting = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        yield b"x" * 300_000
        waiting.set()
        await asyncio.Event().wait()

    write = asyncio.create_task(writer.write("stuck", stuck()))
    await waiting.wait()
    write.cancel()
    with pytest.raises(asyncio.CancelledError):
        await write
    assert list(Path(writer.uri.removeprefix("file://")).iterdir()) == []
    file = await writer.write("totals", state(1))
    await store.complete(manifest_of(store, 1, file))


async def test_a_writer_that_is_cancelled_while_aborted_is_cancelled(store: CheckpointStore) -> None:
    writer = await begin(store)
    waiting = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        yield b""
        waiting.set()
        await asyncio.Event().wait()

    write = asyncio.create_task(writer.write("stuck", stuck()))
    await waiting.wait()
    abort = asyncio.create_task(writer.abort())
    await asyncio.sleep(0)
    write.cancel()
    with pytest.raises(asyncio.CancelledError):
        await write
    await abort


async def test_a_new_attempt_aborts_what_the_old_one_had_in_flight(store: CheckpointStore, tmp_path: Path) -> None:
    old = await begin(store)
    await old.write("totals", state(1))
    await store.begin_attempt({})
    with pytest.raises(CheckpointFailed, match="aborted"):
        await old.write("late", [b""])
    assert not list(tmp_path.rglob("0001*"))


async def test_an_abort_waits_for_nothing_and_leaves_a_manifest_under_way(tmp_path: Path) -> None:
    files = FailingFiles(LocalFiles(str(tmp_path)))
    async with await CheckpointStore.open(str(tmp_path), "orders", clock=SYSTEM, files=files) as store:
        writer = await begin(store)
        file = await writer.write("totals", state(1))
        stall = files.stall("create", "*/manifest")
        completing = asyncio.create_task(store.complete(manifest_of(store, 1, file)))
        await stall.reached.wait()
        await store.abort(1)
        stall.release.set()
        await completing
        assert await latest_id(store) == 1


@pytest.mark.parametrize("operation", ["sync_folder", "create"])
async def test_a_cancelled_completion_can_be_aborted(tmp_path: Path, operation: str) -> None:
    files = FailingFiles(LocalFiles(str(tmp_path)))
    async with await CheckpointStore.open(str(tmp_path), "orders", clock=SYSTEM, files=files) as store:
        await take(store)
        writer = await begin(store)
        file = await writer.write("totals", state(2))
        stall = files.stall(operation, "*/chk-2*")
        completing = asyncio.create_task(store.complete(manifest_of(store, 2, file)))
        await stall.reached.wait()
        completing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await completing
        files.heal()
        assert store.in_flight == (2,)
        await store.begin_attempt({})
        assert await latest_id(store) == 1


# ----------------------------------------------------------------------------------------------------------- full disk
async def test_a_full_disk_fails_the_checkpoint_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = FailingFiles(LocalFiles(str(tmp_path)))
    async with await CheckpointStore.open(str(tmp_path), "orders", clock=SYSTEM, files=files) as store:
        await take(store)
        writer = await begin(store)
        files.fill_after(10)
        with pytest.raises(StorageFailed, match=r"chk-2/0001-totals: No space left on device. Free space there"):
            await writer.write("totals", [b"12345678", b"87654321"])
        await writer.abort()
        files.heal()
        assert not (tmp_path / "orders/run-1/attempt-1/chk-2").exists()
        assert await latest_id(store) == 1
        assert await restored(await take(store)) == 3
    assert not caplog.records


async def test_an_abort_on_a_full_disk_makes_room_before_it_needs_some(tmp_path: Path) -> None:
    files = FailingFiles(LocalFiles(str(tmp_path)))
    async with await CheckpointStore.open(str(tmp_path), "orders", clock=SYSTEM, files=files) as store:
        writer = await begin(store)
        await writer.write("totals", state(1))
        files.fail("create", "*/used-1", error=errno.ENOSPC)
        await writer.abort()
        assert list((tmp_path / "orders/run-1/attempt-1/chk-1").iterdir()) == [], "only the id is left"
        files.heal()
        await take(store)
        await store.retire()
        assert not (tmp_path / "orders/run-1/attempt-1/chk-1").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("operation", ["sync_folder", "create"])
async def test_a_manifest_that_can_not_be_written(tmp_path: Path, operation: str, code: int) -> None:
    files = FailingFiles(LocalFiles(str(tmp_path)))
    async with await CheckpointStore.open(str(tmp_path), "orders", clock=SYSTEM, files=files) as store:
        await take(store)
        writer = await begin(store)
        file = await writer.write("totals", state(2))
        failure = files.fail(operation, "*/chk-2*", error=code)
        with pytest.raises(StorageFailed, match=os.strerror(code)):
            await store.complete(manifest_of(store, 2, file))
        assert failure.hits == 1
        await store.abort(2)
        files.heal()
        assert await latest_id(store) == 1
        assert await restored(await take(store)) == 3


async def test_what_can_not_be_deleted_now_is_deleted_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = FailingFiles(LocalFiles(str(tmp_path)))
    async with await CheckpointStore.open(str(tmp_path), "orders", clock=SYSTEM, files=files) as store:
        for _ in range(2):
            await take(store)
        writer = await begin(store)
        await writer.write("totals", state(3))
        files.fail("delete*")
        await writer.abort()
        await store.retire()
        assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
        files.heal()
        await take(store)
        await store.retire(retain=1)
        assert [found.checkpoint for found in await list_checkpoints(str(tmp_path))] == [4]


# ------------------------------------------------------------------------------------------------------------- receipts
async def test_a_receipt_covers_the_checkpoints_before_it_in_its_run(tmp_path: Path) -> None:
    async with await open_store(tmp_path) as store:
        for _ in range(3):
            await take(store, transactional=True)
        await store.write_receipt(2)
        await store.write_receipt(2)
        assert [await store.has_receipt(1, number) for number in (1, 2, 3)] == [True, True, False]
    async with await open_store(tmp_path) as store:
        found = await store.latest()
        assert found is not None
        assert (found.manifest.checkpoint, found.committed) == (3, False)
        await store.write_receipt(found)
        assert (await store.latest() or found).committed
        await take(store, transactional=True)
        assert not (await store.latest() or found).committed, "a receipt says nothing about another run"


async def test_a_receipt_for_a_retired_checkpoint_is_no_matter(store: CheckpointStore, tmp_path: Path) -> None:
    first = await take(store)
    await take(store)
    await store.retire()
    await store.write_receipt(1)
    await store.write_receipt(first)
    assert not list(tmp_path.rglob("committed"))


async def test_a_checkpoint_that_is_still_being_completed_replaces_none(store: CheckpointStore) -> None:
    """Its manifest has its name already, but it may yet be withdrawn."""
    first = await take(store)
    writer = await begin(store)
    file = await writer.write("totals", state(writer.checkpoint))
    data = encode_manifest(manifest_of(store, writer.checkpoint, file))
    await writer.files.create(writer.path("manifest"), data)
    await store.retire(retain=1)
    await store.abort(writer.checkpoint)
    found = await store.latest(verify="digests")
    assert found is not None and found.uri == first.uri


async def test_a_receipt_for_a_checkpoint_that_is_being_retired_is_no_matter(tmp_path: Path) -> None:
    """Its manifest has gone, and the files in its folder are on their way."""
    files = FailingFiles(LocalFiles(str(tmp_path)))
    async with await CheckpointStore.open(str(tmp_path), "orders", clock=SYSTEM, files=files) as store:
        first = await take(store)
        await take(store)
        failure = files.fail("create", "*/committed", error=errno.ENOENT)
        stall = files.stall("create", "*/committed")
        writing = asyncio.create_task(store.write_receipt(1))
        await stall.reached.wait()
        (folder_of(first) / "manifest").unlink()
        stall.release.set()
        await writing
        assert failure.hits == 1


async def test_a_receipt_that_can_not_be_written_is_an_error(tmp_path: Path) -> None:
    files = FailingFiles(LocalFiles(str(tmp_path)))
    async with await CheckpointStore.open(str(tmp_path), "orders", clock=SYSTEM, files=files) as store:
        await take(store)
        files.fail("create", "*/committed", error=errno.ENOSPC)
        with pytest.raises(StorageFailed, match="No space left"):
            await store.write_receipt(1)


async def test_no_receipt_for_a_savepoint_whose_attempt_was_rolled_back(tmp_path: Path) -> None:
    """Checkpoint 1; savepoint 2; the attempt fails, 1 is restored: what was prepared for 2 is aborted by fencing. A
    checkpoint of the new attempt, taken before the sources have come as far as in 2, commits nothing of that."""
    async with await CheckpointStore.open(str(tmp_path / "chk"), "orders", clock=SYSTEM) as store:
        await take(store, transactional=True)
        await take(store, transactional=True, savepoint=str(tmp_path / "saved"))
        await store.begin_attempt({})
        third = await take(store, transactional=True)
        await store.write_receipt(third.manifest.checkpoint)
        assert not (await store.load(str(tmp_path / "saved"))).committed, "its records would be lost on a restore"


async def test_receipts_written_at_once_over_two_savepoints(tmp_path: Path) -> None:
    async with await CheckpointStore.open(str(tmp_path / "chk"), "orders", clock=SYSTEM) as store:
        for name in ("a", "b"):
            await take(store, transactional=True, savepoint=str(tmp_path / name))
        numbers = [(await take(store, transactional=True)).manifest.checkpoint for _ in range(2)]
        await asyncio.gather(*map(store.write_receipt, numbers))  # as one commit that covers both makes it


# --------------------------------------------------------------------------------------------------------- damaged ones
DAMAGES = [
    "state flipped",
    "state truncated",
    "state missing",
    "manifest flipped",
    "manifest truncated",
    "manifest empty",
]


def damage(checkpoint: Restorable, how: str) -> None:
    what, _, how = how.partition(" ")
    path = state_file(checkpoint) if what == "state" else folder_of(checkpoint) / "manifest"
    match how:
        case "flipped":
            flip(path)
        case "truncated":
            path.write_bytes(path.read_bytes()[:-1])
        case "empty":
            path.write_bytes(b"")
        case _:
            path.unlink()


@pytest.mark.parametrize("how", DAMAGES)
async def test_a_damaged_latest_falls_back_loudly(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    async with await open_store(tmp_path) as store:
        older = await take(store)
        newer = await take(store)
    damage(newer, how)
    async with await open_store(tmp_path) as store:
        found = await store.latest(verify="digests")
        assert found is not None
        assert await restored(found) == 1
        assert caplog.records[0].levelno == logging.WARNING
        assert f"checkpoint {newer.uri} is damaged" in caplog.text
        assert f"falling back to checkpoint {older.uri}" in caplog.text
        assert store.next_checkpoint_id() == 3


@pytest.mark.parametrize("how", DAMAGES)
async def test_falling_back_never_doubles_output(tmp_path: Path, how: str) -> None:
    async with await open_store(tmp_path) as store:
        older = await take(store, transactional=True)
        newer = await take(store, transactional=True)
    damage(newer, how)
    async with await open_store(tmp_path) as store:
        with pytest.raises(TransactionAlreadyCommitted) as caught:
            await store.latest(verify="digests")
        assert newer.uri in str(caught.value)
        assert f"restore='{older.uri}'" in str(caught.value)
        accepted = await store.load(older.uri)
        assert await restored(accepted) == 1
        await store.record_base(accepted)
        assert await latest_id(store) == 1
    async with await open_store(tmp_path) as store:
        assert await latest_id(store) == 1, "the run before was told so, and died before its first checkpoint"


async def test_the_caller_finds_the_damage(tmp_path: Path) -> None:
    async with await open_store(tmp_path) as store:
        for _ in range(3):
            complete = await take(store)
            if complete.manifest.checkpoint > 1:
                flip(state_file(complete))
        found = await store.latest()
        assert found is not None
        for expected in (2, 1):
            with pytest.raises(CorruptCheckpoint, match=r"chk-./0001-totals is altered: expected digest") as caught:
                await store.verify(found)
            found = await store.fall_back(found, caught.value)
            assert found.manifest.checkpoint == expected
        await store.verify(found)
        assert await latest_id(store) == 1


async def test_a_named_checkpoint_is_not_replaced_by_another(tmp_path: Path) -> None:
    async with await open_store(tmp_path) as store:
        await take(store)
        flip(state_file(await take(store)))
        found = await store.load(f"{tmp_path}/orders/run-1/attempt-1/chk-2")
        with pytest.raises(CorruptCheckpoint) as caught:
            await store.verify(found)
        with pytest.raises(CorruptCheckpoint, match="chk-2"):
            await store.fall_back(found, caught.value)


async def test_nothing_to_fall_back_to(tmp_path: Path) -> None:
    async with await open_store(tmp_path) as store:
        damage(await take(store), "manifest flipped")
        with pytest.raises(
            CorruptCheckpoint, match=r"no checkpoint in .*orders can be restored.*chk-1/manifest is altered"
        ):
            await store.latest()
        assert await store.holds_checkpoints()


@pytest.mark.parametrize(
    ("readable", "receipt", "refused"),
    [(True, False, False), (False, False, True), (True, True, True)],
    ids=["its run says no", "nobody says", "a receipt says yes"],
)
async def test_an_unreadable_manifest_is_judged_by_what_else_is_there(
    tmp_path: Path, readable: bool, receipt: bool, refused: bool
) -> None:
    async with await open_store(tmp_path) as store:
        await take(store)
    async with await open_store(tmp_path) as store:
        other = await take(store)
        worst = await take(store)
        if receipt:
            await store.write_receipt(worst.manifest.checkpoint)
    damage(worst, "manifest empty")
    if not readable:
        damage(other, "manifest empty")
    async with await open_store(tmp_path) as store:
        if refused:
            with pytest.raises(TransactionAlreadyCommitted):
                await store.latest()
        else:
            assert await latest_id(store) == 2


async def test_a_receipt_without_a_manifest_is_damage(tmp_path: Path) -> None:
    async with await open_store(tmp_path) as store:
        await take(store, transactional=True)
        worst = await take(store, transactional=True)
        await store.write_receipt(2)
        damage(worst, "manifest missing")
        with pytest.raises(TransactionAlreadyCommitted, match="chk-2/manifest is missing"):
            await store.latest()


async def test_a_storage_that_fails_is_not_damage(tmp_path: Path) -> None:
    files = FailingFiles(LocalFiles(str(tmp_path)))
    async with await CheckpointStore.open(str(tmp_path), "orders", clock=SYSTEM, files=files) as store:
        await take(store)
        await take(store)
        files.fail("read", "*/chk-2/manifest", times=1, error=errno.EIO)
        with pytest.raises(StorageFailed, match=r"can't read .*chk-2/manifest: Input/output error"):
            await store.latest()
        assert await latest_id(store) == 2


async def test_another_flows_checkpoints_are_refused(tmp_path: Path) -> None:
    async with await open_store(tmp_path) as store:
        await take(store)
    (tmp_path / "orders").rename(tmp_path / "sales")
    async with await open_store(tmp_path, "sales") as store:
        with pytest.raises(IncompatibleState, match="chk-1/manifest belongs to flow 'orders', not to 'sales'"):
            await store.latest()
        assert await restored(await store.load(str(tmp_path / "sales"))) == 1, "unless it is asked for"


# ----------------------------------------------------------------------------------------------------------------- base
async def test_a_crash_before_the_first_checkpoint_returns_to_the_base(tmp_path: Path) -> None:
    async with await open_store(tmp_path / "old") as store:
        await take(store)
        await take(store)
    async with await open_store(tmp_path / "new") as store:
        base = await store.load(str(tmp_path / "old"))
        await store.record_base(base)
        assert await latest_id(store) == 2
        await store.write_receipt(base)
        assert not list((tmp_path / "old").rglob("committed")), "what is not ours stays as it is"
    for _ in range(2):
        async with await open_store(tmp_path / "new") as store:
            found = await store.latest()
            assert found is not None
            assert (await restored(found), found.committed, found.explicit) == (2, True, True)
            await store.write_receipt(found)
    async with await open_store(tmp_path / "new") as store:
        assert store.next_checkpoint_id() == 1
        await store.latest()
        assert store.next_checkpoint_id() == 3
        await take(store)
        assert await latest_id(store) == 4


async def test_a_base_in_the_same_folder_moves_with_it(tmp_path: Path) -> None:
    async with await open_store(tmp_path / "a") as store:
        first = await take(store)
        await take(store)
        await store.record_base(first)
    shutil.move(tmp_path / "a", tmp_path / "b")
    async with await open_store(tmp_path / "b") as store:
        assert await latest_id(store) == 2, "its own checkpoints come first"
    async with await open_store(tmp_path / "b") as store:
        await store.record_base(await store.load(f"{tmp_path}/b/orders/run-1/attempt-1/chk-1"))
    shutil.move(tmp_path / "b", tmp_path / "c")
    async with await open_store(tmp_path / "c") as store:
        assert await latest_id(store) == 1


async def test_a_fresh_start_stays_fresh(tmp_path: Path) -> None:
    async with await open_store(tmp_path) as store:
        await take(store)
    async with await open_store(tmp_path) as store:
        assert await store.holds_checkpoints()
        await store.record_base(None)
        assert await store.latest() is None
    async with await open_store(tmp_path) as store:
        assert await store.latest() is None
        assert await restored(await take(store)) == 2
        assert await latest_id(store) == 2


async def test_a_base_that_is_gone_is_named(tmp_path: Path) -> None:
    async with await open_store(tmp_path / "old") as store:
        base = await take(store)
    async with await open_store(tmp_path / "new") as store:
        await store.record_base(base)
        shutil.rmtree(tmp_path / "old")
        with pytest.raises(CorruptCheckpoint, match=f"run 1 was told to start from {base.uri}, which is not there"):
            await store.latest()


# ----------------------------------------------------------------------------------------------------------------- load
async def test_every_way_to_name_a_checkpoint(tmp_path: Path) -> None:
    async with await open_store(tmp_path / "storage") as store:
        first = await take(store)
        await take(store)
    async with await open_store(tmp_path / "here") as store:
        folder = tmp_path / "storage/orders/run-1/attempt-1/chk-1"
        for name in (first.uri, f"{first.uri}/", f"{first.uri}/manifest", str(folder), str(folder / "manifest")):
            assert await restored(await store.load(name)) == 1
        for folder in (tmp_path / "storage", tmp_path / "storage/orders"):
            assert await restored(await store.load(str(folder))) == 2
        copied = shutil.copytree(folder_of(first), tmp_path / "copied")
        assert await restored(await store.load(str(copied))) == 1
        shutil.move(tmp_path / "storage", tmp_path / "moved")
        assert await restored(await store.load(f"file://{tmp_path}/moved/orders/run-1/attempt-1/chk-1")) == 1


async def test_the_own_flow_is_chosen_in_a_storage_of_several(tmp_path: Path) -> None:
    for flow in ("orders", "sales"):
        async with await open_store(tmp_path / "storage", flow) as store:
            await take(store)
    async with await open_store(tmp_path / "here") as store:
        assert (await store.load(str(tmp_path / "storage"))).manifest.flow == "orders"
    async with await open_store(tmp_path / "here", "third") as store:
        with pytest.raises(InvalidConfig, match=r"holds checkpoints of several flows \(orders, sales\): name one"):
            await store.load(str(tmp_path / "storage"))


async def test_what_is_no_checkpoint_is_named(store: CheckpointStore, tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/file").write_text("x")
    complete = await take(store)
    await begin(store)
    with pytest.raises(InvalidConfig, match=f"{tmp_path.as_uri()}/no does not exist. Name the folder of a checkpoint"):
        await store.load(str(tmp_path / "no"))
    with pytest.raises(InvalidConfig, match="/foreign holds no complete checkpoint"):
        await store.load(str(tmp_path / "foreign"))
    with pytest.raises(
        InvalidConfig, match=rf"there is no checkpoint .*chk-9. Complete checkpoints there: {complete.uri}"
    ):
        await store.load(complete.uri.replace("chk-1", "chk-9"))
    with pytest.raises(CorruptCheckpoint, match=r"chk-2 has no manifest.*never completed.*Complete checkpoints there"):
        await store.load(complete.uri.replace("chk-1", "chk-2"))
    (folder_of(complete) / "manifest").write_bytes(b"no manifest")
    with pytest.raises(CorruptCheckpoint, match="chk-1/manifest is truncated"):
        await store.load(complete.uri)
    with pytest.raises(InvalidConfig, match="hdfs://… is not supported"):
        await store.load("hdfs://host/x")


# ----------------------------------------------------------------------------------------------------------- savepoints
async def test_a_savepoint_is_self_contained_and_moves(store: CheckpointStore, tmp_path: Path) -> None:
    await take(store)
    savepoint = await take(store, savepoint=str(tmp_path / "saved"))
    assert savepoint.uri == f"{tmp_path.as_uri()}/saved"
    assert tree(tmp_path / "saved") == {"0001-totals", "manifest"}
    assert await latest_id(store) == 1, "a job that lives on goes on from its checkpoints"
    assert store.next_checkpoint_id() == 3
    shutil.move(tmp_path / "saved", tmp_path / "moved")
    assert await restored(await store.load(str(tmp_path / "moved"))) == 2


async def test_a_savepoint_overwrites_nothing(store: CheckpointStore, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    with pytest.raises(InvalidConfig, match="/full: the folder is not empty. Name a new one"):
        await begin(store, savepoint=str(tmp_path / "full"))
    writer = await begin(store, savepoint=str(tmp_path / "aborted"))
    await writer.write("totals", state(1))
    await writer.abort()
    assert not (tmp_path / "aborted").exists()
    assert tree(tmp_path / "full") == {"file"}


async def test_a_savepoint_that_ended_the_job_is_the_latest(tmp_path: Path) -> None:
    """It has committed: going on from the checkpoint before it would double its output."""
    async with await open_store(tmp_path) as store:
        await take(store, transactional=True)
        await take(store, transactional=True, final=True, savepoint=str(tmp_path / "saved"))
        await store.write_receipt(2)
    async with await open_store(tmp_path) as store:
        found = await store.latest()
        assert found is not None
        assert (await restored(found), found.committed) == (2, True)
        [two, one] = await list_checkpoints(str(tmp_path))
        assert (two.checkpoint, two.manifest, two.committed, one.checkpoint) == (2, found.manifest, True, 1)
        assert (await store.load(str(tmp_path / "saved"))).committed
        await take(store)
        await store.retire()
        assert tree(tmp_path / "saved") == {"0001-totals", "manifest", "committed"}
        assert await latest_id(store) == 3


async def test_a_savepoint_that_ended_the_job_and_is_gone(tmp_path: Path) -> None:
    async with await open_store(tmp_path) as store:
        await take(store, transactional=True)
        await take(store, transactional=True, final=True, savepoint=str(tmp_path / "saved"))
    shutil.rmtree(tmp_path / "saved")
    async with await open_store(tmp_path) as store:
        with pytest.raises(
            TransactionAlreadyCommitted, match=f"is the savepoint {tmp_path.as_uri()}/saved, which is not"
        ):
            await store.latest()


async def test_an_uncommitted_savepoint_gets_its_receipt_from_the_run_that_restores_it(tmp_path: Path) -> None:
    async with await open_store(tmp_path) as store:
        await take(store, transactional=True, final=True, savepoint=str(tmp_path / "saved"))
    async with await open_store(tmp_path) as store:
        found = await store.latest()
        assert found is not None
        assert not found.committed
        await store.write_receipt(found)
    async with await open_store(tmp_path) as store:
        assert (await store.latest() or found).committed


async def test_an_aborted_final_savepoint_leaves_the_checkpoint_before_it(tmp_path: Path) -> None:
    files = FailingFiles(LocalFiles(str(tmp_path)))
    async with await CheckpointStore.open(str(tmp_path), "orders", clock=SYSTEM, files=files) as store:
        await take(store)
        files.fail("replace", "*/chk-2/savepoint", error=errno.ENOSPC)
        with pytest.raises(StorageFailed):
            await take(store, final=True, savepoint=str(tmp_path / "saved"))
        await store.abort(2)
        files.heal()
        assert await latest_id(store) == 1
        assert not (tmp_path / "saved").exists()


# ------------------------------------------------------------------------------------------------------------ retention
async def ids(folder: Path) -> list[int]:
    return [found.checkpoint for found in await list_checkpoints(str(folder))]


async def test_retention(store: CheckpointStore, tmp_path: Path) -> None:
    for _ in range(5):
        await take(store)
    await store.retire(retain=3)
    assert await ids(tmp_path) == [5, 4, 3]
    await store.retire({3}, retain=1)
    assert await ids(tmp_path) == [5, 3]
    await store.retire(retain=0)
    assert await ids(tmp_path) == [5], "the latest is never deleted"
    assert await latest_id(store) == 5


async def test_retention_spares_what_is_in_flight(store: CheckpointStore, tmp_path: Path) -> None:
    await take(store)
    flying = await begin(store)
    await flying.write("a", [b"x"])
    await take(store)
    await store.retire()
    assert await ids(tmp_path) == [3, 2]
    await flying.write("b", [b"x"])
    await flying.abort()
    assert await ids(tmp_path) == [3]


async def test_leftovers_of_dead_runs_go_once_this_run_has_a_checkpoint(tmp_path: Path) -> None:
    async with await open_store(tmp_path / "live") as store:
        await take(store)
        await begin(store)
        await begin(store)
        shutil.copytree(tmp_path / "live", tmp_path / "dead")
    async with await open_store(tmp_path / "dead") as store:
        await store.begin_attempt({"out": 1})
        await store.retire()
        assert await ids(tmp_path / "dead") == [1]
        await store.begin_attempt({})
        assert await restored(await take(store)) == 4
        await store.retire(retain=2)
        assert await ids(tmp_path / "dead") == [4, 1]
        await take(store)
        await store.retire(retain=2)
        assert tree(tmp_path / "dead/orders") == {
            "owner.lock",
            "used-3",
            "run-2/after",
            "run-2/epoch",
            "run-2/attempt-2/widest",
            "run-2/attempt-2/chk-4/0001-totals",
            "run-2/attempt-2/chk-4/manifest",
            "run-2/attempt-2/chk-5/0001-totals",
            "run-2/attempt-2/chk-5/manifest",
        }
        assert store.widest == {"out": 1}
    async with await open_store(tmp_path / "dead") as store:
        assert (store.run, store.widest) == (3, {"out": 1})


async def test_retention_spares_the_base_of_the_run(tmp_path: Path) -> None:
    async with await open_store(tmp_path) as store:
        first = await take(store)
        await take(store)
    async with await open_store(tmp_path) as store:
        await store.record_base(await store.load(first.uri))
        for _ in range(3):
            await take(store)
        await store.retire()
        assert await ids(tmp_path) == [5, 1]


async def test_retention_deletes_nothing_complete_before_the_run_has_a_checkpoint(tmp_path: Path) -> None:
    async with await open_store(tmp_path) as store:
        await take(store)
        damage(await take(store), "manifest flipped")
    async with await open_store(tmp_path) as store:
        await store.begin_attempt({})
        assert await latest_id(store) == 1
        await store.retire()
        assert await latest_id(store) == 1


async def test_retention_spares_the_base_of_an_earlier_run_until_it_is_not_needed(tmp_path: Path) -> None:
    async with await open_store(tmp_path / "old") as store:
        base = await take(store)
    async with await open_store(tmp_path / "new") as store:
        await store.record_base(base)
    async with await open_store(tmp_path / "new") as store:
        await store.begin_attempt({})
        await store.retire()
        assert await latest_id(store) == 1
        await take(store)
        await store.retire()
        assert not (tmp_path / "new/orders/run-1").exists()
        assert await latest_id(store) == 2


async def test_retention_while_a_checkpoint_completes(tmp_path: Path) -> None:
    """It was begun before the folder was listed, and is complete before anything is deleted."""
    files = FailingFiles(LocalFiles(str(tmp_path)))
    async with await CheckpointStore.open(str(tmp_path), "orders", clock=SYSTEM, files=files) as store:
        for _ in range(2):
            await take(store)
        writer: CheckpointWriter | None
        for begun_before in (True, False):
            writer = await begin(store) if begun_before else None
            stall = files.stall("delete", "*/chk-*/manifest")
            retiring = asyncio.create_task(store.retire())
            await stall.reached.wait()
            writer = writer or await begin(store)
            file = await writer.write("totals", state(writer.checkpoint))
            await store.complete(manifest_of(store, writer.checkpoint, file))
            files.heal()
            await retiring
            assert await latest_id(store) == writer.checkpoint


async def test_retention_never_touches_a_newer_run(tmp_path: Path) -> None:
    zombie = await open_store(tmp_path)
    await take(zombie)
    (tmp_path / "orders/owner.lock").unlink()
    async with await open_store(tmp_path) as store:
        await take(store)
        with pytest.raises(FencedOff):
            await zombie.retire()
        await zombie.close()
        assert await ids(tmp_path) == [2, 1]


# ----------------------------------------------------------------------------------------------------------- inspection
async def test_listing_needs_no_ownership(store: CheckpointStore, tmp_path: Path) -> None:
    await take(store)
    damage(await take(store), "manifest flipped")
    await begin(store)
    await store.write_receipt(1)
    async with await open_store(tmp_path, "sales") as sales:
        await take(sales)
    found = await list_checkpoints(str(tmp_path))
    assert [(item.uri.split("/")[-4], item.checkpoint, item.manifest is None, item.committed) for item in found] == [
        ("orders", 3, True, False),
        ("orders", 2, True, False),
        ("orders", 1, False, True),
        ("sales", 1, False, False),
    ]
    assert found[0].problem == "incomplete: it has no manifest"
    assert "chk-2/manifest is altered" in (found[1].problem or "")
    assert [item.checkpoint for item in await list_checkpoints(str(tmp_path / "sales"))] == [1]
    assert await list_checkpoints(str(tmp_path / "nowhere")) == []


async def test_a_damaged_record_of_a_base_matters_only_to_who_falls_back_to_it(tmp_path: Path) -> None:
    async with await open_store(tmp_path) as store:
        await store.record_base(None)
        await take(store)
    flip(tmp_path / "orders/run-1/base")
    async with await open_store(tmp_path) as store:
        assert await latest_id(store) == 1
        await take(store)
        await store.retire()
        assert await latest_id(store) == 2


async def test_a_manifest_that_cannot_be_read_keeps_what_it_may_refer_to(tmp_path: Path) -> None:
    """Its header is damaged too: nobody knows whether it builds on the checkpoint before it."""
    async with await open_store(tmp_path) as store:
        await take(store)
        damaged = await take(store)
    (folder_of(damaged) / "manifest").write_bytes(b"no manifest")
    async with await open_store(tmp_path) as store:
        await take(store)
        await store.retire(retain=2)
        assert (tmp_path / "orders/run-1/attempt-1/chk-1/manifest").exists()
        await take(store)
        await store.retire(retain=2)
        assert not (tmp_path / "orders/run-1").exists()


async def test_two_savepoints_into_one_folder_do_not_harm_each_other(tmp_path: Path) -> None:
    """Both had found it empty."""
    saved = (tmp_path / "saved").as_uri()
    async with await open_store(tmp_path / "a") as one, await open_store(tmp_path / "b") as two:
        await two.begin_attempt({})
        await two.check_savepoint(saved)
        first = await begin(one, savepoint=saved)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(two, "check_savepoint", _unchecked)
            with pytest.raises(InvalidConfig, match="another one is being written there"):
                await begin(two, savepoint=saved)
        file = await first.write("totals", state(1))
        await one.complete(manifest_of(one, 1, file, savepoint=True))
        assert "being-written" not in tree(tmp_path / "saved")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(two, "check_savepoint", _unchecked)
            with pytest.raises(InvalidConfig, match="the folder is not empty"):
                await begin(two, savepoint=saved)
        assert "being-written" not in tree(tmp_path / "saved")
        await load(LocalFiles(str(tmp_path)), saved, verify="digests")


async def _unchecked(savepoint: str) -> Files:
    """As if the folder had been empty when it was asked."""
    return LocalFiles(savepoint)


class RetiredMeanwhile(LocalFiles):
    """A run goes just as its note is about to be read: another task of the same process retires it."""

    async def read(self, path: str) -> bytes:
        if path.endswith("/run-2/after"):
            await self.delete_tree("orders/run-2")
        return await super().read(path)


async def test_a_run_that_is_retired_while_it_is_looked_at_is_no_damage(tmp_path: Path) -> None:
    async with await open_store(tmp_path) as store:
        await take(store)
    async with await open_store(tmp_path):
        pass
    folder = FlowFolder(RetiredMeanwhile(str(tmp_path)), "orders", "orders")
    assert [found.place.run for found in await folder.scan_all()] == [1]
