"""How much of a bounded input has been read: by the readers, the API, and what `streamactors run` shows."""

import datetime as dt
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from connectors.files import FileSource
from connectors.memory import ListSink, ListSource
from streamactors.cli.progress import InputRead, ProgressMeter, as_line
from streamactors.runtime.progress import input_progress
from streamactors.service import served
from streamactors.sources import InputProgress, SourceContext, SplitReader
from streamactors.testing.connector_contract import source_context
from tests.cli.test_conventions import drawn
from tests.observe.jobs import client_at
from tests.runtime.feeds import Feed, Gate, until

LINE = b"0123456\n"
SIZE = 8000
"""Bytes of a file."""


def reader(folder: Path, **options: Any) -> SplitReader[bytes]:
    return FileSource(str(folder), value=sa.Raw(), **options).reader(source_context(subtask=0, parallelism=1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files."""
    (tmp_path / "in").mkdir()
    for name in ("one.txt", "two.txt"):
        (tmp_path / "in" / name).write_bytes(LINE * (SIZE // len(LINE)))
    return tmp_path / "in"


async def test_of_files_bytes_are_told_those_read_before_a_restore_too(folder: Path) -> None:
    positions = {str(folder / "one.txt"): [800, 101, 8000], str(folder / "two.txt"): [8000, 1001, 8000]}
    going_on = reader(folder)
    await going_on.open(positions)
    assert going_on.progress() == InputProgress(8800, 16000, "bytes")
    while await going_on.read() is not None:
        pass
    assert going_on.progress() == InputProgress(16000, 16000, "bytes")
    await going_on.close()


async def test_what_is_followed_has_no_end(folder: Path) -> None:
    followed = reader(folder, follow=True)
    await followed.open(None)
    await followed.read()
    assert followed.progress() is None
    await followed.close()


def counts(vertex: str, progress: Any) -> dict[str, Any]:
    return {"vertex": vertex, "progress": progress}


def test_subtasks_are_put_together_if_all_know_their_end() -> None:
    told = input_progress(
        [
            counts("files", (10, 40, "bytes")),
            counts("files", (30, 30, "bytes")),
            counts("queue", None),
            counts("queue", (1, 2, "records")),
            {"vertex": "sum"},
        ]
    )
    assert told == {"files": InputProgress(40, 70, "bytes")}


async def test_a_job_that_is_held_up_tells_how_far_it_is(folder: Path) -> None:
    """In its API and in the command's table."""
    gate = Gate(100)
    flow = sa.Dataflow("sums")
    flow.source("numbers", FileSource(str(folder), value=sa.Raw())).rebalance().map(gate).sink("out", ListSink())
    meter = ProgressMeter("sums", ["numbers", "map-1", "out"])
    async with (
        sa.start(flow, sa.Config(parallelism=2, mailbox_capacity=64), on_exit="cancel") as job,
        served(job, "127.0.0.1:0") as where,
        client_at(where) as api,
    ):
        await until(lambda: gate.held)
        (source, *others) = (await api.get())["operators"]
        assert source["progress"]["total"] == 16000 and source["progress"]["unit"] == "bytes"
        assert 0 < source["progress"]["done"] <= 16000
        assert [each["progress"] for each in others] == [None] * len(others)
        progress = meter.measure(job.metrics(), 1.0)
        assert [(read.uid, read.total, read.unit) for read in progress.inputs] == [("numbers", 16000, "bytes")]
        assert "numbers 100% read (16.0 kB of 16.0 kB)" in as_line(progress)
        gate.passes = 10**9
        await job.wait()
        assert all(read.done == read.total for read in meter.measure(job.metrics(), 2.0).inputs)


class Numbers(ListSource[int]):
    """Tells no progress: it fails."""

    def reader(self, ctx: SourceContext) -> SplitReader[int]:
        made = super().reader(ctx)
        made.progress = lambda: InputProgress(1 // 0, 0, "records")  # type: ignore[method-assign]
        return made


async def test_a_reader_that_fails_to_tell_fails_no_job(caplog: pytest.LogCaptureFixture) -> None:
    gate, found = Gate(0), ListSink[int]()
    flow = sa.Dataflow("sums")
    flow.source("numbers", Numbers(range(10))).rebalance().map(gate).sink("out", found)
    async with sa.start(flow, sa.Config(parallelism=1)) as job:
        await until(lambda: gate.held)
        assert [input_progress(job.metrics()["subtasks"].values()) for _ in range(3)] == [{}] * 3
        gate.passes = 10**9
    assert sorted(found.values) == list(range(10))
    assert caplog.text.count("does not tell its progress: ZeroDivisionError") == 1


async def test_a_source_of_unknown_length_has_rates_and_no_bar() -> None:
    flow = sa.Dataflow("sums")
    flow.source("numbers", feed := Feed()).sink("out", ListSink())
    async with sa.start(flow, sa.Config(parallelism=1), on_exit="cancel") as job:
        feed.put(1)
        await until(lambda: job.metrics()["subtasks"]["numbers[0]"]["nodes"]["numbers"]["records_out"])
        progress = ProgressMeter("sums", ["numbers"]).measure(job.metrics(), 1.0)
        assert progress.inputs == () and "read (" not in drawn(progress)


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (InputRead("orders", 999_999, 1_000_000, "records"), "orders 99% read (999,999 of 1,000,000)"),
        (InputRead("orders", 0, 5_000_000_000, "bytes"), "orders 0% read (0 B of 5.0 GB)"),
        (InputRead("orders", 7, 7, "records"), "orders 100% read (7 of 7)"),
    ],
)
def test_a_bar_is_full_when_all_is_read(read: InputRead, words: str) -> None:
    meter = ProgressMeter("sums", ["orders"])
    subtasks = {"orders[0]": {**source_counts(), "progress": (read.done, read.total, read.unit)}}
    metrics = {"status": "running", "restarts": 0, "last_checkpoint": None, "subtasks": subtasks}
    progress = meter.measure(metrics, 1.0)
    assert words in as_line(progress) and words in drawn(progress)


def source_counts() -> dict[str, Any]:
    nodes = {"orders": {"records_in": 0, "records_out": 7}}
    return {"vertex": "orders", "queued": 0, "capacity": 0, "nodes": nodes}


async def test_after_a_restore_it_goes_on_from_there(folder: Path, tmp_path: Path) -> None:
    """By another parallelism."""
    checkpoints = sa.Checkpoints(str(tmp_path / "stored"), interval=dt.timedelta(hours=1))
    done: list[int] = []
    for parallelism, passes in ((1, 700), (2, 0)):
        gate = Gate(passes, delay=0.001)
        flow = sa.Dataflow("sums")
        flow.source("numbers", FileSource(str(folder), value=sa.Raw())).map(gate).sink("out", ListSink())
        config = sa.Config(parallelism=parallelism, checkpoints=checkpoints)
        async with sa.start(flow, config, on_exit="cancel") as job:
            await until(lambda gate=gate: gate.held)  # type: ignore[misc]
            told = input_progress(job.metrics()["subtasks"].values())["numbers"]
            assert told.total == 2 * SIZE
            done.append(told.done)
            await job.checkpoint()
    assert done[0] >= 700 * len(LINE) and done[1] >= 700 * len(LINE)
