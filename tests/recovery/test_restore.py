"""What a start finds in the storage: which checkpoint it goes on from, and what it refuses to do with it."""

import datetime as dt
import random
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

import streamactors as sa
from connectors.memory import CRASH, ListSink, ListSource
from tests.recovery.flows import (
    Event,
    EventLog,
    PlainList,
    Sum,
    by_key,
    config,
    dropped,
    folders_of,
    part_files,
    read,
    sums,
    sums_in,
    until,
    until_total,
)
from tests.recovery.jobs import Settings, config_of, flow_of
from tests.recovery.orders import by_customer, check, random_orders, totals_in, write_logs
from tests.recovery.processes import started


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    log = EventLog(tmp_path / "events.jsonl")
    log.add(*((f"key-{number % 7}", number) for number in range(300)))
    return log


async def leave_behind(log: EventLog, storage: Path, sink: Any, **options: Any) -> None:
    """A checkpoint of all events, by a job that then crashes."""
    async with dropped(sums(log.source(follow=True), sink), config(storage, **options)) as job:
        await read(job, log)
        await job.checkpoint()


# ------------------------------------------------------------------------------------------------------- where to begin
async def test_restore_none_on_stored_checkpoints_is_refused(tmp_path: Path, log: EventLog) -> None:
    storage, out = tmp_path / "storage", tmp_path / "out"
    await leave_behind(log, storage, part_files(out))
    with pytest.raises(sa.InvalidConfig, match=r"restore=None.*already holds checkpoints of flow 'sums'.*fresh=True"):
        await sa.run(sums(log.source(), part_files(out)), config(storage), restore=None)
    # A bounded read covers the log as it was, which is what the restored checkpoint holds: nothing comes twice.
    await sa.run(sums(log.source(), part_files(out)), config(storage))
    assert sums_in(out) == log.expected


async def test_fresh_leaves_stored_checkpoints_behind(tmp_path: Path, log: EventLog) -> None:
    storage = tmp_path / "storage"
    await leave_behind(log, storage, PlainList[Sum]())
    out = PlainList[Sum]()
    await sa.run(sums(log.source(), out), config(storage), fresh=True)
    assert by_key(out.values) == log.expected


async def test_a_fresh_start_that_crashes_before_its_first_checkpoint_begins_afresh_again(
    tmp_path: Path, log: EventLog
) -> None:
    """Not from the checkpoint that it was told to leave behind."""
    storage = tmp_path / "storage"
    await leave_behind(log, storage, PlainList[Sum]())
    async with dropped(sums(log.source(follow=True), PlainList[Sum]()), config(storage), fresh=True) as job:
        await read(job, log)
    out = PlainList[Sum]()
    await sa.run(sums(log.source(), out), config(storage))
    assert by_key(out.values) == log.expected


async def test_restore_by_uri_goes_back_to_an_older_checkpoint(tmp_path: Path, log: EventLog) -> None:
    storage = tmp_path / "storage"
    async with dropped(sums(log.source(follow=True), PlainList[Sum]()), config(storage)) as job:
        await read(job, log)
        older = await job.checkpoint()
        log.add(("again", 5))
        await read(job, log)
        await job.checkpoint()
    assert older.uri == folders_of(storage)[0].as_uri()
    out = PlainList[Sum]()
    await sa.run(sums(log.source(), out), config(storage), restore=older.uri)
    assert by_key(out.values) == {"again": [5]}


async def test_a_checkpoint_that_is_not_there(tmp_path: Path, log: EventLog) -> None:
    storage = tmp_path / "storage"
    await leave_behind(log, storage, PlainList[Sum]())
    missing = f"{folders_of(storage)[0].parent.as_uri()}/chk-77"
    with pytest.raises(sa.InvalidConfig, match=r"no checkpoint .*/chk-77\. Complete checkpoints there: .*/chk-1"):
        await sa.run(sums(log.source(), PlainList[Sum]()), config(storage), restore=missing)


async def test_the_log_is_told_what_was_restored(
    tmp_path: Path, log: EventLog, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="streamactors.job")
    await leave_behind(log, tmp_path / "storage", PlainList[Sum]())
    await sa.run(sums(log.source(), PlainList[Sum]()), config(tmp_path / "storage"))
    assert f"restoring {folders_of(tmp_path / 'storage')[0].as_uri()}" in caplog.text


# ----------------------------------------------------------------------------------------------------- another flow now
async def test_an_operator_that_is_gone(tmp_path: Path, log: EventLog) -> None:
    storage, out = tmp_path / "storage", tmp_path / "out"
    await leave_behind(log, storage, part_files(out))
    renamed = sums(log.source(), part_files(out), uid="totals")
    with pytest.raises(sa.IncompatibleState, match=r"state of operator 'sums'.*old uid.*drop_state=\['sums'\]"):
        await sa.run(renamed, config(storage))
    await sa.run(sums(log.source(), part_files(out)), config(storage))
    assert sums_in(out) == log.expected


async def test_drop_state_gives_it_up(tmp_path: Path, log: EventLog) -> None:
    storage = tmp_path / "storage"
    await leave_behind(log, storage, PlainList[Sum]())
    log.add(("key-1", 5))
    out = PlainList[Sum]()
    flow = sums(log.source(follow=True), out, uid="totals")
    async with dropped(flow, config(storage), drop_state=["sums"]):
        await until(lambda: bool(out.values))
    assert by_key(out.values) == {"key-1": [5]}


async def test_another_max_parallelism_is_refused(tmp_path: Path, log: EventLog) -> None:
    storage, out = tmp_path / "storage", tmp_path / "out"
    await leave_behind(log, storage, part_files(out), max_parallelism=16)
    with pytest.raises(sa.IncompatibleState, match=r"'sums'.*16 key groups.*32 now.*max_parallelism=16"):
        await sa.run(sums(log.source(), part_files(out)), config(storage, max_parallelism=32))
    # Left out, what was stored is kept.
    async with dropped(sums(log.source(follow=True), part_files(out), parallelism=5), config(storage)) as job:
        log.add(*((f"key-{number}", 1) for number in range(7)))
        await read(job, log)
        await job.checkpoint()
        await until(lambda: sums_in(out) == log.expected)


class TextSums(sa.KeyedOperator[str, Event, Sum]):
    """The state of `Sums`, with another type."""

    total = sa.ValueState(str, default="")

    def process(self, event: Event, ctx: sa.Context[str, Sum], /) -> None:
        self.total.set(f"{self.total.get()}+{event.amount}")


async def test_a_state_of_another_type_is_refused(tmp_path: Path, log: EventLog) -> None:
    storage, out = tmp_path / "storage", tmp_path / "out"
    await leave_behind(log, storage, part_files(out))
    with pytest.raises(sa.IncompatibleState, match=r"operator 'sums', state 'total'.*int.*str"):
        await sa.run(sums(log.source(), part_files(out), operator=TextSums), config(storage))
    await sa.run(sums(log.source(), part_files(out)), config(storage))
    assert sums_in(out) == log.expected


class Unkeyed(sa.Operator[Event, Sum]):
    """Under the uid of `Sums`."""

    def process(self, event: Event, ctx: sa.Context[None, Sum], /) -> None: ...


async def test_keyed_state_of_a_step_without_keys_is_refused_unless_given_up(tmp_path: Path, log: EventLog) -> None:
    storage, out = tmp_path / "storage", PlainList[Sum]()
    await leave_behind(log, storage, out)

    def flow() -> sa.Dataflow:
        made = sa.Dataflow("sums")
        made.source("events", log.source()).process("sums", Unkeyed).sink("out", out)
        return made

    with pytest.raises(sa.IncompatibleState, match=r"operator 'sums' had keyed state .*\(total\), and has no keys now"):
        await sa.run(flow(), config(storage))
    await sa.run(flow(), config(storage), drop_state=["sums"])


# ------------------------------------------------------------------------------------------------------- a finished job
async def test_a_finished_job_that_is_started_again_ends_and_doubles_nothing(tmp_path: Path, log: EventLog) -> None:
    storage, out = tmp_path / "storage", tmp_path / "out"
    for parallelism in (2, 2, 3, 1):
        await sa.run(sums(log.source(), part_files(out), parallelism=parallelism), config(storage))
        assert sums_in(out) == log.expected


async def test_a_finished_job_whose_commit_was_lost_commits_on_the_next_start(tmp_path: Path, log: EventLog) -> None:
    """Its last manifest was written, and then it died: the next start commits, reads nothing and ends."""
    storage, out = tmp_path / "storage", tmp_path / "out"
    await sa.run(sums(log.source(), part_files(out)), config(storage))
    for receipt in storage.rglob("committed"):
        receipt.unlink()
    for part in list(out.iterdir()):
        part.rename(out / f".{part.name}.pending")
    assert sums_in(out) == {}
    await sa.run(sums(log.source(), part_files(out)), config(storage))
    assert sums_in(out) == log.expected


async def test_a_crash_in_process_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    values: list[Any] = [Event(f"key-{number % 5}", number) for number in range(2_000)]
    expected: dict[str, list[int]] = {}
    for event in values:
        totals = expected.setdefault(event.key, [])
        totals.append((totals or [0])[-1] + event.amount)
    for place in (3, 700, 1_400, 1_999):
        values.insert(place, CRASH)
    out = ListSink[Sum]()
    settings = config(
        tmp_path / "storage",
        interval=dt.timedelta(milliseconds=2),
        restart=sa.Restart.fixed(dt.timedelta(milliseconds=1), 10),
    )
    await sa.run(sums(ListSource(values), out), settings)
    assert by_key(out.values) == expected


async def test_stop_and_go(tmp_path: Path, log: EventLog) -> None:
    storage, out = tmp_path / "storage", tmp_path / "out"
    for round in range(3):
        async with sa.start(
            sums(log.source(follow=True), part_files(out), parallelism=1 + round), config(storage)
        ) as job:
            log.add(*((f"key-{number % 7}", number) for number in range(20)))
            await until_total(job, "key-0", log.total("key-0"))
            uri = await job.stop()
        assert uri == folders_of(storage)[-1].as_uri()
    await sa.run(sums(log.source(), part_files(out)), config(storage))
    assert sums_in(out) == log.expected


# ------------------------------------------------------------------------------------------------- types under __main__
@pytest.mark.kill
@pytest.mark.slow
async def test_state_of_types_under_main_is_restored_where_they_have_another_name(tmp_path: Path) -> None:
    """A script's classes are `__main__.…` there, and belong to its module where it is imported."""
    logs = random_orders(random.Random(4), 3_000, logs=2)
    write_logs(tmp_path / "in", logs)
    settings = Settings(storage=str(tmp_path / "storage"), sources=[str(tmp_path / "in")], output=str(tmp_path / "out"))
    async with started(msgspec.structs.replace(settings, pace=100.0)) as child:
        await until((tmp_path / "out").is_dir)
        await until(lambda: bool(totals_in(tmp_path / "out")))
        child.send(signal.SIGKILL)
        await child.ended()
    assert len(totals_in(tmp_path / "out")) < 3_000
    await sa.run(flow_of(settings), config_of(settings))
    check(by_customer(totals_in(tmp_path / "out")), logs, settings)
