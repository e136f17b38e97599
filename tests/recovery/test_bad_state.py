"""State that can't be read, or can't be written, on either backend: a clear error that names the thing and says what to
do, and nothing lost: what was complete before still restores."""

import dataclasses
import datetime as dt
import errno
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import streamactors as sa
from streamactors.checkpoint.manifest import HEADER, decode_manifest, encode_manifest
from streamactors.checkpoint.storage.local import LocalFiles
from streamactors.testing.failing_files import FailingFiles
from tests.recovery.flows import (
    FLOW,
    Event,
    EventLog,
    PlainList,
    Sum,
    Sums,
    by_key,
    config,
    dropped,
    flip_byte,
    folders_of,
    part_files,
    read,
    run_on,
    sums,
    sums_in,
    until,
    until_total,
    warnings_in,
)

pytestmark = pytest.mark.slow

SOON = dt.timedelta(milliseconds=20)


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    log = EventLog(tmp_path / "events.jsonl")
    log.add(*((f"key-{number % 31}", number) for number in range(300)))
    return log


def on(backend: Any, storage: Path, **options: Any) -> sa.Config:
    return dataclasses.replace(config(storage, **options), state_backend=backend)


async def two_checkpoints(log: EventLog, storage: Path, sink: Any, backend: Any, **options: Any) -> list[Path]:
    """Of a job that crashed after the second one, with more events to come."""
    async with dropped(sums(log.source(follow=True), sink), on(backend, storage, **options)) as job:
        for _ in range(2):
            await read(job, log)
            await job.checkpoint()
            log.add(*((f"key-{number % 5}", number) for number in range(50)))
    return folders_of(storage)


# --------------------------------------------------------------------------------------------- damaged files of RocksDB
def tables_of(checkpoint: Path) -> list[Path]:
    """Those that no checkpoint before had."""
    manifest = decode_manifest((checkpoint / "manifest").read_bytes(), "manifest")
    root = checkpoint.parents[2]
    held = {
        root / part.file.path for _, node in manifest.nodes("sums") for handle in node.native for part in handle.files
    }
    return sorted(path for path in held if path.parent == checkpoint)


def flipped(path: Path) -> None:
    flip_byte(path, path.stat().st_size // 2)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def missing(path: Path) -> None:
    path.unlink()


DAMAGE = pytest.mark.parametrize("damage", [flipped, cut, missing])
Damage = Callable[[Path], None]


@DAMAGE
@pytest.mark.parametrize("after", ["heap", "rocksdb"])
async def test_a_damaged_file_falls_back_loudly(
    tmp_path: Path, log: EventLog, damage: Damage, after: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no transaction can have been committed since."""
    counts_at_first = {key: len(totals) for key, totals in log.expected.items()}
    first, second = await two_checkpoints(log, tmp_path / "storage", PlainList[Sum](), "rocksdb")
    damaged = tables_of(second)[0]
    damage(damaged)
    out = PlainList[Sum]()
    await sa.run(sums(log.source(), out), on(after, tmp_path / "storage"))
    told = warnings_in(caplog.records)
    assert damaged.name in told and f"falling back to checkpoint {first.as_uri()}" in told
    read_again = {key: totals[counts_at_first[key] :] for key, totals in log.expected.items()}
    assert by_key(out.values) == {key: totals for key, totals in read_again.items() if totals}


@DAMAGE
async def test_a_damaged_file_of_a_checkpoint_that_was_asked_for(tmp_path: Path, log: EventLog, damage: Damage) -> None:
    storage, out = tmp_path / "storage", tmp_path / "out"
    first, second = await two_checkpoints(log, storage, part_files(out), "rocksdb")
    damaged = tables_of(second)[0]
    content, before = damaged.read_bytes(), sums_in(out)
    damage(damaged)
    with pytest.raises(sa.TransactionAlreadyCommitted, match=rf"{damaged.name}.*restore='{first.as_uri()}'"):
        await sa.run(sums(log.source(), part_files(out)), on("rocksdb", storage))
    with pytest.raises(sa.CorruptCheckpoint, match=damaged.name):
        await sa.run(sums(log.source(), part_files(out)), on("rocksdb", storage), restore=second.as_uri())
    assert sums_in(out) == before
    damaged.write_bytes(content)
    await sa.run(sums(log.source(), part_files(out)), on("rocksdb", storage))
    assert sums_in(out) == log.expected


# ----------------------------------------------------------------------------------------------------- foreign folders
BACKENDS = pytest.mark.parametrize("backend", ["heap", "rocksdb"])


async def untouched(log: EventLog, storage: Path, backend: Any) -> None:
    """The job's own checkpoints are as good as before."""
    out = PlainList[Sum]()
    await sa.run(sums(log.source(), out), on(backend, storage))
    assert {key: totals[-1] for key, totals in by_key(out.values).items()} == {
        key: totals[-1] for key, totals in log.expected.items() if key in by_key(out.values)
    }
    assert out.values


@BACKENDS
async def test_a_checkpoint_of_another_flow(tmp_path: Path, log: EventLog, backend: Any) -> None:
    own, foreign = tmp_path / "own", tmp_path / "foreign"
    await two_checkpoints(log, own, PlainList[Sum](), backend)
    other = sa.Dataflow("other")
    events = other.source("clicks", log.source(follow=True)).key_by(lambda event: event.key)
    events.process("visits", Sums).sink("out", PlainList[Sum]())
    async with dropped(other, on(backend, foreign)) as job:
        await until(lambda: job.status == "running")
        uri = (await job.checkpoint()).uri
    with pytest.raises(sa.IncompatibleState, match=r"of flow 'other'.*operator 'clicks'.*flow 'sums' does not"):
        await sa.run(sums(log.source(), PlainList[Sum]()), on(backend, own), restore=uri)
    await untouched(log, own, backend)


async def test_folders_that_hold_no_checkpoint(tmp_path: Path, log: EventLog) -> None:
    storage = tmp_path / "storage"
    first, second = await two_checkpoints(log, storage, PlainList[Sum](), "heap")
    holiday = tmp_path / "holiday"
    holiday.mkdir()
    (holiday / "photo.jpeg").write_bytes(b"\xff\xd8\xff\xe0")
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "manifest").write_bytes(b"name: an app of another kind\n" * 10)
    empty = storage / FLOW / "run-1" / "attempt-1" / "chk-9"
    empty.mkdir()
    for uri, error, problem in (
        (holiday.as_uri(), sa.InvalidConfig, r"holiday holds no complete checkpoint\. Name the folder of a checkpoint"),
        ((tmp_path / "gone").as_uri(), sa.InvalidConfig, r"gone does not exist\. Name the folder of a checkpoint"),
        (odd.as_uri(), sa.CorruptCheckpoint, r"odd/manifest is not the kind of file that it should be"),
        (
            empty.as_uri(),
            sa.CorruptCheckpoint,
            rf"chk-9 has no manifest.* there: {second.as_uri()}, {first.as_uri()}\.",
        ),
    ):
        with pytest.raises(error, match=problem):
            await sa.run(sums(log.source(), PlainList[Sum]()), config(storage), restore=uri)
    empty.rmdir()
    await untouched(log, storage, "heap")


@BACKENDS
async def test_a_folder_without_the_files_that_it_refers_to(tmp_path: Path, log: EventLog, backend: Any) -> None:
    """Somebody has copied the manifest alone."""
    _, second = await two_checkpoints(log, tmp_path / "storage", PlainList[Sum](), backend)
    copied = tmp_path / "copied" / FLOW / second.relative_to(second.parents[2])
    copied.mkdir(parents=True)
    shutil.copyfile(second / "manifest", copied / "manifest")
    with pytest.raises(sa.CorruptCheckpoint, match=r"copied/sums/run-1/attempt-1/chk-\d/\S+ is missing"):
        await sa.run(sums(log.source(), PlainList[Sum]()), on(backend, tmp_path / "new"), restore=copied.as_uri())
    await untouched(log, tmp_path / "storage", backend)


# ------------------------------------------------------------------------------------------------------- newer versions
@BACKENDS
async def test_a_checkpoint_of_a_newer_version(tmp_path: Path, log: EventLog, backend: Any) -> None:
    """It is not damaged: falling back behind it would lose what it holds."""
    storage = tmp_path / "storage"
    _, second = await two_checkpoints(log, storage, PlainList[Sum](), backend)
    path = second / "manifest"
    content = path.read_bytes()
    path.write_bytes(of_version(9, content))
    for restore in ("latest", second.as_uri()):
        with pytest.raises(
            sa.IncompatibleState, match=r"manifest has format 9\.\d, and this version .* reads 1\.x: use"
        ):
            await sa.run(sums(log.source(), PlainList[Sum]()), on(backend, storage), restore=restore)
    path.write_bytes(content)
    await untouched(log, storage, backend)


def of_version(major: int, data: bytes) -> bytes:
    """With the checksum of its header, whose layout never changes."""
    *fields, _ = HEADER.unpack_from(data)
    fields[3] = major
    header = HEADER.pack(*fields, 0)[:-4]
    return header + zlib.crc32(header).to_bytes(4, "big") + data[HEADER.size :]


# ------------------------------------------------------------------------------------------------------- a disk is full
@pytest.mark.parametrize(("backend", "nth"), [("heap", 1), ("rocksdb", 1), ("rocksdb", 2), ("rocksdb", 3)])
async def test_a_disk_that_is_full_in_the_middle_of_a_snapshot(
    tmp_path: Path, log: EventLog, backend: Any, nth: int, caplog: pytest.LogCaptureFixture
) -> None:
    """That checkpoint is given up, the job goes on, and the next one is complete."""
    storage, out = tmp_path / "storage", tmp_path / "out"
    files = FailingFiles(LocalFiles(str(storage)))
    full = files.fail("write", "*/chk-*/*", nth=nth, times=1, error=errno.ENOSPC)
    await run_on(sums(log.source(), part_files(out)), on(backend, storage, tolerable_failures=3, interval=SOON), files)
    assert full.hits == 1
    told = warnings_in(caplog.records)
    assert "was given up" in told and "No space left" in told
    assert sums_in(out) == log.expected


@BACKENDS
async def test_a_full_disk_leaves_the_checkpoint_before_as_it_was(tmp_path: Path, log: EventLog, backend: Any) -> None:
    storage, out = tmp_path / "storage", tmp_path / "out"
    await two_checkpoints(log, storage, part_files(out), backend)
    files = FailingFiles(LocalFiles(str(storage)))
    files.fail("write", "*/chk-*/*", error=errno.ENOSPC)
    with pytest.raises(sa.JobFailed, match=r"(?i)no space left on device.*Free space there"):
        await run_on(sums(log.source(), part_files(out)), on(backend, storage), files)
    files.heal()
    await run_on(sums(log.source(), part_files(out)), on(backend, storage), files)
    assert sums_in(out) == log.expected


# -------------------------------------------------------------------------------- what can't be stored; max parallelism
class Opaque:
    """No stable serialisation."""


class Poisoned(Sums):
    anything = sa.ValueState[Any](Any, default=None)

    def process(self, event: Event, ctx: sa.Context[str, Sum], /) -> None:
        super().process(event, ctx)
        if event.amount == 321:
            self.anything.set(Opaque())


class Mended(Poisoned):
    def process(self, event: Event, ctx: sa.Context[str, Sum], /) -> None:
        Sums.process(self, event, ctx)


@BACKENDS
async def test_a_value_that_can_not_be_stored_leaves_the_checkpoint_before(
    tmp_path: Path, log: EventLog, backend: Any
) -> None:
    storage, out = tmp_path / "storage", tmp_path / "out"
    flow = sums(log.source(follow=True), part_files(out), operator=Poisoned)
    problem = r"'sums', state 'anything', key 'key-6'.*Opaque can't be stored"

    async def poisoned() -> None:
        async with dropped(flow, on(backend, storage)) as job:
            await read(job, log)
            await job.checkpoint()
            log.add(("key-6", 321))
            await until_total(job, "key-6", log.total("key-6"))
            with pytest.raises(sa.CheckpointFailed, match=problem):
                await job.checkpoint()
            await until(lambda: job.status == "failed")

    with pytest.raises(sa.JobFailed, match=problem):
        await poisoned()
    assert len(folders_with_manifest(storage)) == 1
    await sa.run(sums(log.source(), part_files(out), operator=Mended), on(backend, storage))
    assert sums_in(out) == log.expected


def folders_with_manifest(storage: Path) -> list[Path]:
    return [folder for folder in folders_of(storage) if (folder / "manifest").exists()]


@BACKENDS
@pytest.mark.parametrize("bad", [Opaque(), ["a"], float("nan")], ids=lambda key: type(key).__name__)
async def test_a_key_that_can_not_be_stored_leaves_the_checkpoint_before(
    tmp_path: Path, log: EventLog, backend: Any, bad: Any
) -> None:
    storage, out = tmp_path / "storage", tmp_path / "out"

    def key(event: Event) -> Any:
        return bad if event.amount == 321 else event.key

    flow = sums(log.source(follow=True), part_files(out), key=key)

    async def poisoned() -> None:
        async with dropped(flow, on(backend, storage)) as job:
            await read(job, log)
            await job.checkpoint()
            log.add(("key-6", 321))
            await until(lambda: job.status == "failed")

    with pytest.raises(sa.JobFailed, match="key") as raised:
        await poisoned()
    assert isinstance(raised.value.__cause__, sa.UnserialisableKey)
    await sa.run(sums(log.source(), part_files(out)), on(backend, storage))
    assert sums_in(out) == log.expected


@BACKENDS
@pytest.mark.parametrize("after", ["heap", "rocksdb"])
async def test_another_max_parallelism(tmp_path: Path, log: EventLog, backend: Any, after: Any) -> None:
    storage, out = tmp_path / "storage", tmp_path / "out"
    await two_checkpoints(log, storage, part_files(out), backend, max_parallelism=16)
    for wrong in (8, 32):
        with pytest.raises(sa.IncompatibleState, match=rf"'sums'.*16 key groups.*{wrong} now.*max_parallelism=16"):
            await sa.run(sums(log.source(), part_files(out)), on(after, storage, max_parallelism=wrong))
    await sa.run(sums(log.source(), part_files(out)), on(after, storage))  # left out, what was stored is kept
    assert sums_in(out) == log.expected


async def test_a_stored_type_of_state_that_nobody_knows(tmp_path: Path, log: EventLog) -> None:
    """Of a newer version that has more kinds of state."""
    storage = tmp_path / "storage"
    _, second = await two_checkpoints(log, storage, PlainList[Sum](), "heap")
    path = second / "manifest"
    content = path.read_bytes()
    manifest = decode_manifest(content, "manifest")

    def changed(node: Any) -> Any:
        schemas = {name: {"kind": "sketch", "type": {"kind": "bitmap"}} for name in node.schemas}
        return msgspec.structs.replace(node, schemas=schemas)

    subtasks = tuple(
        msgspec.structs.replace(subtask, nodes=tuple(map(changed, subtask.nodes))) for subtask in manifest.subtasks
    )
    path.write_bytes(encode_manifest(msgspec.structs.replace(manifest, subtasks=subtasks)))
    with pytest.raises(sa.IncompatibleState, match=r"'sums', state 'total': stored as sketch state, now value state"):
        await sa.run(sums(log.source(), PlainList[Sum]()), config(storage), restore=second.as_uri())
    path.write_bytes(content)
    await untouched(log, storage, "heap")
