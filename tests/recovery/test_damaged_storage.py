"""Checkpoints that are damaged, and storage that refuses: a clear error, and nothing lost once it is put right."""

import datetime as dt
import errno
import random
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import streamactors as sa
from streamactors.checkpoint.storage.local import LocalFiles
from streamactors.testing.failing_files import FailingFiles
from tests.recovery.flows import (
    FLOW,
    Event,
    EventLog,
    PlainList,
    Sum,
    by_key,
    config,
    dropped,
    flip_byte,
    folders_of,
    part_files,
    read,
    run_on,
    state_files,
    sums,
    sums_in,
    truncate,
    until,
    until_total,
    warnings_in,
)
from tests.recovery.jobs import Settings, config_of, flow_of
from tests.recovery.orders import by_customer, check, random_orders, totals_in, write_logs
from tests.recovery.processes import CHECKPOINTED, finish, started


def truncated_manifest(checkpoint: Path) -> Path:
    truncate(checkpoint / "manifest")
    return checkpoint / "manifest"


def missing_state_file(checkpoint: Path) -> Path:
    file = state_files(checkpoint)[0]
    file.unlink()
    return file


def flipped_byte(checkpoint: Path) -> Path:
    file = state_files(checkpoint)[0]
    flip_byte(file, file.stat().st_size // 2)
    return file


DAMAGE = pytest.mark.parametrize("damage", [truncated_manifest, missing_state_file, flipped_byte])
Damage = Callable[[Path], Path]


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    log = EventLog(tmp_path / "events.jsonl")
    log.add(*((f"key-{number % 7}", number) for number in range(100)))
    return log


async def two_checkpoints(log: EventLog, storage: Path, sink: object) -> list[Path]:
    """Of a job that crashed after the second one, with more events to come."""
    async with dropped(sums(log.source(follow=True), sink), config(storage)) as job:
        for _ in range(2):
            await read(job, log)
            await job.checkpoint()
            log.add(*((f"key-{number % 5}", number) for number in range(50)))
    return folders_of(storage)


# ---------------------------------------------------------------------------------------------------- damaged files
@DAMAGE
async def test_without_transactions_it_falls_back_loudly(
    tmp_path: Path, log: EventLog, damage: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    counts_at_first = {key: len(totals) for key, totals in log.expected.items()}
    first, second = await two_checkpoints(log, tmp_path / "storage", PlainList[Sum]())
    damaged = damage(second)
    out = PlainList[Sum]()
    await sa.run(sums(log.source(), out), config(tmp_path / "storage"))
    told = warnings_in(caplog.records)
    assert damaged.as_uri() in told and f"falling back to checkpoint {first.as_uri()}" in told
    read_again = {key: totals[counts_at_first[key] :] for key, totals in log.expected.items()}
    assert by_key(out.values) == {key: totals for key, totals in read_again.items() if totals}


@DAMAGE
async def test_with_transactions_it_stops_and_names_the_option(tmp_path: Path, log: EventLog, damage: Damage) -> None:
    storage, out = tmp_path / "storage", tmp_path / "out"
    first, second = await two_checkpoints(log, storage, part_files(out))
    kept = {path: path.read_bytes() for path in second.iterdir()}
    before = sums_in(out)
    damaged = damage(second)
    with pytest.raises(sa.TransactionAlreadyCommitted) as raised:
        await sa.run(sums(log.source(), part_files(out)), config(storage))
    assert damaged.as_uri() in str(raised.value)
    assert f"restore={first.as_uri()!r}" in str(raised.value)
    assert sums_in(out) == before
    # The first way out that it names: put the file back. Nothing is lost, nothing doubled.
    for path, content in kept.items():
        path.write_bytes(content)
    await sa.run(sums(log.source(), part_files(out)), config(storage))
    assert sums_in(out) == log.expected


async def test_the_named_option_accepts_doubled_output(tmp_path: Path, log: EventLog) -> None:
    storage, out = tmp_path / "storage", tmp_path / "out"
    first, second = await two_checkpoints(log, storage, part_files(out))
    truncated_manifest(second)
    await sa.run(sums(log.source(), part_files(out)), config(storage), restore=first.as_uri())
    for key, totals in log.expected.items():
        found = sums_in(out)[key]
        assert found[-1] == totals[-1] and set(found) == set(totals) and len(found) >= len(totals)


async def test_a_checkpoint_named_by_the_user_is_not_replaced_by_another(tmp_path: Path, log: EventLog) -> None:
    storage = tmp_path / "storage"
    _, second = await two_checkpoints(log, storage, PlainList[Sum]())
    damaged = flipped_byte(second)
    with pytest.raises(sa.CorruptCheckpoint, match=damaged.name):
        await sa.run(sums(log.source(), PlainList[Sum]()), config(storage), restore=second.as_uri())


async def test_all_checkpoints_are_damaged(tmp_path: Path, log: EventLog) -> None:
    storage = tmp_path / "storage"
    for checkpoint in await two_checkpoints(log, storage, PlainList[Sum]()):
        truncated_manifest(checkpoint)
    with pytest.raises(sa.CorruptCheckpoint, match=r"no checkpoint .* can be restored .*fresh=True"):
        await sa.run(sums(log.source(), PlainList[Sum]()), config(storage))


async def test_falls_back_in_a_restart_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The checkpoint was well when the job began, and is damaged when it restarts."""
    log = EventLog(tmp_path / "events.jsonl")
    log.add(("a", 1), ("b", 2))
    storage, out = tmp_path / "storage", PlainList[Sum]()
    refused: list[Event] = []

    def key(event: Event) -> str:
        if event.amount == 13 and not refused:
            refused.append(event)
            raise ValueError("thirteen")
        return event.key

    settings = config(storage, restart=sa.Restart.fixed(dt.timedelta(milliseconds=10), 1))
    async with dropped(sums(log.source(follow=True), out, key=key), settings) as job:
        for _ in range(2):
            await read(job, log)
            await job.checkpoint()
            log.add(("a", 3))
        first, second = folders_of(storage)
        await read(job, log)
        flipped_byte(second)
        log.add(("b", 13))
        await until_total(job, "b", 15)
        assert refused
    assert f"falling back to checkpoint {first.as_uri()}" in warnings_in(caplog.records)
    assert by_key(out.values) == {"a": [1, 4, 7, 4, 7], "b": [2, 15]}


# --------------------------------------------------------------------------------------------------- refusing storage
async def test_a_full_disk_ends_the_job_with_advice_and_loses_nothing(tmp_path: Path, log: EventLog) -> None:
    storage, out = tmp_path / "storage", tmp_path / "out"
    files = FailingFiles(LocalFiles(str(storage)))
    files.fill_after(600)
    with pytest.raises(sa.JobFailed, match=r"(?i)no space left on device.*Free space there") as raised:
        await run_on(sums(log.source(), part_files(out)), config(storage), files)
    assert storage.as_uri() in str(raised.value)
    files.heal()
    await run_on(sums(log.source(), part_files(out)), config(storage), files)
    assert sums_in(out) == log.expected


async def test_a_disk_that_was_full_for_a_while(tmp_path: Path, log: EventLog) -> None:
    storage, out = tmp_path / "storage", tmp_path / "out"
    files = FailingFiles(LocalFiles(str(storage)))
    full = [
        files.fail("write", "*-sums-*", times=2, error=errno.ENOSPC),
        files.fail("create", "*/manifest", times=2, error=errno.ENOSPC),
        files.fail("create", "*/committed", times=1, error=errno.ENOSPC),
    ]
    restart = sa.Restart.fixed(dt.timedelta(milliseconds=5), 10)
    await run_on(sums(log.source(), part_files(out)), config(storage, restart=restart), files)
    assert [failure.hits for failure in full] == [2, 2, 1]
    assert sums_in(out) == log.expected


async def test_tolerated_failures_of_checkpoints_restart_nothing(
    tmp_path: Path, log: EventLog, caplog: pytest.LogCaptureFixture
) -> None:
    storage, out = tmp_path / "storage", tmp_path / "out"
    files = FailingFiles(LocalFiles(str(storage)))
    files.fail("write", "*-sums-*", times=2, error=errno.ENOSPC)
    await run_on(sums(log.source(), part_files(out)), config(storage, tolerable_failures=4), files)
    assert "was given up" in warnings_in(caplog.records) and "No space left" in warnings_in(caplog.records)
    assert sums_in(out) == log.expected


# -------------------------------------------------------------------------------------------------- lost transactions
async def test_a_lost_part_file_stops_the_job(tmp_path: Path, log: EventLog) -> None:
    """A checkpoint lists a transaction that is nowhere, and no receipt says that it was committed."""
    storage, out = tmp_path / "storage", tmp_path / "out"
    async with dropped(sums(log.source(follow=True), part_files(out)), config(storage)) as job:
        await read(job, log)
        await job.checkpoint()
        await until(lambda: bool(list(storage.rglob("committed"))))
    (receipt,) = storage.rglob("committed")
    parts = sorted(out.iterdir())
    lost = parts[0]
    content = lost.read_bytes()
    receipt.unlink()
    lost.unlink()
    with pytest.raises(sa.JobFailed) as raised:
        await sa.run(sums(log.source(), part_files(out)), config(storage))
    assert isinstance(raised.value.__cause__, sa.TransactionLost)
    assert lost.name in str(raised.value) and "Put it back" in str(raised.value) and "fresh=True" in str(raised.value)
    lost.write_bytes(content)
    await sa.run(sums(log.source(), part_files(out)), config(storage))
    assert sums_in(out) == log.expected


async def test_with_a_receipt_nobody_asks_for_the_part_files(tmp_path: Path, log: EventLog) -> None:
    """Whoever consumed them may have taken them away."""
    storage, out = tmp_path / "storage", tmp_path / "out"
    async with dropped(sums(log.source(follow=True), part_files(out)), config(storage)) as job:
        await read(job, log)
        await job.checkpoint()
        await until(lambda: bool(list(storage.rglob("committed"))))
    for part in out.iterdir():
        part.unlink()
    log.add(("later", 1))
    await sa.run(sums(log.source(follow=False), part_files(out)), config(storage))
    assert sums_in(out) == {"later": [1]}


# ---------------------------------------------------------------------------------------------------------- ownership
async def test_a_second_job_in_the_same_process_is_refused(tmp_path: Path, log: EventLog) -> None:
    storage = tmp_path / "storage"
    async with dropped(sums(log.source(follow=True), part_files(tmp_path / "out")), config(storage)) as job:
        with pytest.raises(sa.StorageInUse, match=r"flow 'sums' .* in use by process \d+ on .* Stop that job first"):
            await sa.run(sums(log.source(), part_files(tmp_path / "out")), config(storage))
        await read(job, log)
        assert await job.stop() is not None
    await sa.run(sums(log.source(), part_files(tmp_path / "out")), config(storage))
    assert sums_in(tmp_path / "out") == log.expected


@pytest.mark.kill
@pytest.mark.slow
async def test_a_second_process_is_refused_and_a_killed_ones_successor_is_not(tmp_path: Path) -> None:
    logs = random_orders(random.Random(3), 2_000, logs=2)
    write_logs(tmp_path / "in", logs)
    settings = Settings(storage=str(tmp_path / "storage"), sources=[str(tmp_path / "in")], output=str(tmp_path / "out"))
    endless = msgspec.structs.replace(settings, pace=100.0, most=1_000)
    async with started(endless) as child:
        assert await child.logged(CHECKPOINTED), child.log
        with pytest.raises(sa.StorageInUse, match=rf"in use by process {child.pid} on "):
            await sa.run(flow_of(settings), config_of(settings))
        async with started(settings) as second:
            assert await second.ended() == 2, second.log
            assert f"in use by process {child.pid} on " in second.log
        child.send(signal.SIGKILL)
        await child.ended()
    await finish(settings)
    check(by_customer(totals_in(tmp_path / "out")), logs, settings)


async def checkpoint_when_fenced(log: EventLog, storage: Path, out: Path) -> None:
    """A lock that can't be trusted: somebody has begun a newer run on the same storage."""
    async with dropped(sums(log.source(follow=True), part_files(out)), config(storage)) as job:
        await read(job, log)
        (storage / FLOW / "run-7").mkdir()
        (storage / FLOW / "run-7" / "epoch").write_bytes(b"taken")
        with pytest.raises(sa.CheckpointFailed, match=r"fenced off.*run 7"):
            await job.checkpoint()
        with pytest.raises(sa.JobFailed, match=r"fenced off.*run 7"):
            await job.wait()


async def test_a_fenced_job_completes_and_commits_nothing(tmp_path: Path, log: EventLog) -> None:
    storage, out = tmp_path / "storage", tmp_path / "out"
    with pytest.raises(sa.JobFailed, match=r"fenced off.*run 7"):
        await checkpoint_when_fenced(log, storage, out)
    assert sums_in(out) == {}
    assert not list(storage.rglob("manifest"))
