"""How jobs end, and what happens while they do: cancellation, failures at once, requests that race with the end."""

import asyncio
import datetime as dt
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from connectors.memory import ListSink, ListSource
from streamactors.checkpoint.restorable import list_checkpoints
from streamactors.checkpoint.storage.local import LocalFiles
from streamactors.clock import SYSTEM
from streamactors.cluster import slice
from streamactors.launch import _supervised
from streamactors.submission import job_here
from streamactors.testing.failing_files import FailingFiles
from tests.runtime.feeds import PATIENCE, Endless, Feed, Undecodable, until

NO_TIME = dt.timedelta(0)
RESTARTS = sa.Restart.fixed(NO_TIME, 5)


def config(folder: Path | None = None, **options: Any) -> sa.Config:
    """Checkpoints on request only, in practice."""
    restart = options.pop("restart", None)
    parallelism = options.pop("parallelism", 1)
    options.setdefault("interval", dt.timedelta(hours=1))
    checkpoints = sa.Checkpoints(folder.as_uri(), **options) if folder else None
    return sa.Config(checkpoints=checkpoints, restart=restart, parallelism=parallelism)


class Sum(sa.KeyedOperator[int, int, int]):
    total = sa.ValueState(int, default=0)

    def process(self, value: int, ctx: sa.Context[int, int]) -> None:
        self.total.set(self.total.get() + value)
        ctx.emit(self.total.get())


def summing(source: Any, sink: ListSink[int]) -> sa.Dataflow:
    flow = sa.Dataflow("sums")
    flow.source("numbers", source).key_by(lambda _: 0).process("sum", Sum).sink("out", sink)
    return flow


def through(source: Any, fn: Callable[[Any], Any], sink: ListSink[Any]) -> sa.Dataflow:
    flow = sa.Dataflow("through")
    flow.source("numbers", source).map(fn).sink("out", sink)
    return flow


# ------------------------------------------------------------------------------------------- cancellation in user code
async def test_a_cancellation_raised_by_user_code_fails_the_job_instead_of_hanging_it() -> None:
    async def fetch(_: int) -> int:
        call: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        call.cancel()  # such as a client that was closed under its user
        return await call

    async with asyncio.timeout(PATIENCE):
        with pytest.raises(sa.JobFailed, match="cancelled"):
            await sa.run(through(ListSource([1]), fetch, ListSink()))


async def test_cancelling_twice_while_the_job_ends_leaves_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    closing, may_close = asyncio.Event(), asyncio.Event()

    class SlowToClose(sa.Operator[int, int]):
        def process(self, value: int, ctx: sa.Context[None, int]) -> None:
            ctx.emit(value)

        async def close(self) -> None:
            closing.set()
            await may_close.wait()
            closed.append(True)

    closed: list[bool] = []
    flow = sa.Dataflow("slow")
    flow.source("numbers", Endless()).process("slow", SlowToClose).sink("out", ListSink())
    job = asyncio.create_task(sa.run(flow))
    await until(lambda: len(asyncio.all_tasks()) > 3)
    job.cancel()
    await closing.wait()
    job.cancel()
    await asyncio.sleep(0)
    may_close.set()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert closed == [True]


async def test_a_failure_cancels_no_subtask_that_is_closing_already() -> None:
    """Else a second failing subtask would leave its reader open."""
    closing, may_close = asyncio.Event(), asyncio.Event()
    feed = Feed(2)

    class Failing(sa.Operator[int, int]):
        def open(self, ctx: sa.OperatorContext) -> None:
            self.subtask = ctx.subtask

        def process(self, value: int, ctx: sa.Context[None, int]) -> None:
            raise ValueError(value)

        async def close(self) -> None:
            if self.subtask == 0:
                closing.set()
                await may_close.wait()

    flow = sa.Dataflow("failing")
    flow.source("numbers", feed).process("failing", Failing).sink("out", ListSink())
    job = asyncio.create_task(sa.run(flow, sa.Config(parallelism=2)))
    feed.put(0)
    await closing.wait()
    feed.put(1, split=1)
    await asyncio.sleep(0.01)
    may_close.set()
    with pytest.raises(sa.JobFailed):
        await job
    assert feed.opened == feed.closed == 2


async def test_user_code_that_swallows_its_cancellation_processes_nothing_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(slice, "PATIENCE", 0.05)
    entered, release = asyncio.Event(), asyncio.Event()
    seen: list[int] = []

    class Stubborn(sa.KeyedOperator[int, int, int]):
        total = sa.ValueState(int, default=0)

        async def process(self, value: int, ctx: sa.Context[int, int]) -> None:
            seen.append(value)
            entered.set()
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    pass
            try:
                self.total.set(1)
            except sa.StateAccessError as error:
                refused.append(error)
                raise

    refused: list[Exception] = []
    flow = sa.Dataflow("stubborn")
    numbers = flow.source("numbers", ListSource(range(10))).key_by(lambda v: 0)
    numbers.process("stubborn", Stubborn).sink("out", ListSink())
    async with sa.start(flow) as job:
        await entered.wait()
        async with asyncio.timeout(PATIENCE):
            await job.cancel()
        assert "stubborn[0] did not end within" in caplog.text
        release.set()
    await until(lambda: not [task for task in asyncio.all_tasks() if task.get_name().startswith("stubborn")])
    assert seen == [0]
    assert refused


# --------------------------------------------------------------------------------------------------- failures at close
async def test_an_error_in_close_does_not_hide_the_first_one(caplog: pytest.LogCaptureFixture) -> None:
    class Twice(sa.Operator[int, int]):
        def process(self, value: int, ctx: sa.Context[None, int]) -> None:
            raise ValueError("the first")

        def close(self) -> None:
            raise ValueError("the second")

    flow = sa.Dataflow("twice")
    flow.source("numbers", ListSource([1])).process("twice", Twice).sink("out", ListSink())
    with pytest.raises(sa.JobFailed, match="the first"):
        await sa.run(flow)
    assert "the second" in caplog.text


async def test_a_failure_is_told_before_a_close_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slice, "PATIENCE", 0.05)
    release = asyncio.Event()

    class Hanging(sa.Operator[int, int]):
        def process(self, value: int, ctx: sa.Context[None, int]) -> None:
            raise ValueError("the first")

        async def close(self) -> None:
            await release.wait()

    flow = sa.Dataflow("hanging")
    flow.source("numbers", ListSource([1])).process("hanging", Hanging).sink("out", ListSink())
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(sa.JobFailed, match="the first"):
            await sa.run(flow)
    release.set()
    await until(lambda: len(asyncio.all_tasks()) == 1)


async def test_a_part_that_was_never_opened_is_not_closed() -> None:
    class Unopened(sa.KeyedOperator[int, int, int]):
        total = sa.ValueState(int, default=0)

        def open(self, ctx: sa.OperatorContext) -> None:
            raise ValueError("no connection")

        def process(self, value: int, ctx: sa.Context[int, int]) -> None: ...

    feed = Feed()
    flow = sa.Dataflow("unopened")
    flow.source("numbers", feed).key_by(lambda v: 0).process("unopened", Unopened).sink("out", ListSink())
    with pytest.raises(sa.JobFailed, match="no connection"):
        await sa.run(flow)
    assert feed.closed == feed.opened


# ------------------------------------------------------------------------------------------- requests that race the end
async def test_requests_that_wait_for_a_restart_end_with_the_job() -> None:
    """Nobody waits for ever for an attempt that never comes."""
    feed = Feed()

    def fn(value: int) -> int:
        raise ValueError(value)

    flow = through(feed, fn, ListSink())
    hour = sa.Config(restart=sa.Restart.fixed(dt.timedelta(hours=1), 1))
    with pytest.raises(sa.JobFailed):  # noqa: PT012 (raised on leaving the block)
        async with sa.start(flow, sa.Config(restart=sa.Restart.none())) as job:
            feed.put(1)
            await until(lambda: job.status == "failed")
            async with asyncio.timeout(PATIENCE):
                with pytest.raises(sa.JobNotRunning, match="failed"):
                    await job.query("map-1", "x", 0)
    async with sa.start(through(feed, fn, ListSink()), hour, on_exit="cancel") as job:
        await until(lambda: job.status == "restarting")
        asked = asyncio.create_task(job.query("map-1", "x", 0))
        await asyncio.sleep(0)
        await job.cancel()
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(sa.StreamactorsError, match="cancelled"):
                await asked


async def test_a_checkpoint_asked_for_during_a_restart_fails_with_the_job(tmp_path: Path) -> None:
    feed = Feed()

    def fn(value: int) -> int:
        raise ValueError(value)

    feed.put(1)
    hour = config(tmp_path, restart=sa.Restart.fixed(dt.timedelta(hours=1), 1))
    async with sa.start(through(feed, fn, ListSink()), hour, on_exit="cancel") as job:
        await until(lambda: job.status == "restarting")
        asked = asyncio.create_task(job.checkpoint())
        await asyncio.sleep(0)
        await job.cancel()
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(sa.CheckpointFailed, match="cancelled"):
                await asked


async def test_a_query_in_flight_when_the_attempt_fails_is_answered_by_the_next() -> None:
    feed, entered, release = Feed(), asyncio.Event(), asyncio.Event()
    failed: list[int] = []

    class Failing(sa.KeyedOperator[int, int, int]):
        total = sa.ValueState(int, default=0)

        async def process(self, value: int, ctx: sa.Context[int, int]) -> None:
            self.total.set(value)
            if not failed:
                failed.append(value)
                entered.set()
                await release.wait()
                raise ValueError(value)

    flow = sa.Dataflow("failing")
    flow.source("numbers", feed).key_by(lambda _: 0).process("failing", Failing).sink("out", ListSink())
    feed.put(7)
    async with sa.start(flow, sa.Config(restart=RESTARTS), on_exit="cancel") as job:
        await entered.wait()
        asked = asyncio.create_task(job.query("failing", Failing.total, 0))
        await asyncio.sleep(0.01)
        release.set()
        async with asyncio.timeout(PATIENCE):
            assert await asked in (0, 7)


async def test_a_query_for_a_subtask_that_has_ended_is_refused() -> None:
    """Without checkpoints a subtask ends with its data, while others go on."""
    feed, ending = Feed(), Feed()
    flow = sa.Dataflow("two")
    flow.source("a", ending).key_by(lambda _: 0).process("sum", Sum).sink("sums", ListSink())
    flow.source("b", feed).sink("out", ListSink())
    async with sa.start(flow, on_exit="cancel") as job:
        ending.put(1)
        await until(lambda: job.metrics()["subtasks"]["sum[0]"]["nodes"]["sum"]["records_in"] == 1)
        assert await job.query("sum", Sum.total, 0) == 1
        ending.end()
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(sa.StateAccessError, match="ended"):  # noqa: PT012 (sooner or later)
                while True:
                    await job.query("sum", Sum.total, 0)


async def test_leaving_the_block_while_a_bounded_job_finishes_raises_nothing(tmp_path: Path) -> None:
    """At every moment of the end: `stop` races with the final checkpoint."""
    for turns in range(0, 120, 3):
        sink = ListSink[int]()
        async with sa.start(summing(ListSource([1, 2, 3]), sink), config(tmp_path), fresh=True):
            for _ in range(turns):
                await asyncio.sleep(0)
        assert sink.values == [1, 3, 6][: len(sink.values)]


async def test_stop_during_the_final_checkpoint_returns_it(tmp_path: Path) -> None:
    files = failing_files(tmp_path)
    stall = files.stall("create", "*/manifest")
    feed, sink = Feed(), ListSink[int]()
    graph = summing(feed, sink).graph()
    job = job_here(graph, config(tmp_path), restore="latest", fresh=False, resources=None, files=files)
    async with _supervised(job, None, "cancel", NO_TIME) as handle:
        feed.put(1)
        feed.end()
        await stall.reached.wait()
        stopping, asked = asyncio.create_task(handle.stop()), asyncio.create_task(handle.checkpoint())
        await asyncio.sleep(0.01)
        files.heal()
        async with asyncio.timeout(PATIENCE):
            uri = await stopping
            assert uri is not None and uri == (await asked).uri
    assert sink.values == [1]


def failing_files(folder: Path) -> FailingFiles:
    return FailingFiles(LocalFiles(folder.as_uri(), clock=SYSTEM))


async def test_drain_takes_its_checkpoint_after_every_end_of_data(tmp_path: Path) -> None:
    for _ in range(5):
        feed, sink = Feed(3), ListSink[int]()
        async with sa.start(summing(feed, sink), config(tmp_path, parallelism=2), fresh=True) as job:
            feed.put(1)
            uri = await job.stop(drain=True)
        assert uri is not None
        latest = (await list_checkpoints(tmp_path.as_uri()))[0].manifest
        assert latest is not None
        assert all(subtask.ended for subtask in latest.subtasks)


async def test_a_storage_that_fails_while_a_restart_looks_for_its_checkpoint_is_asked_again(tmp_path: Path) -> None:
    files = failing_files(tmp_path)
    feed, sink = Feed(), ListSink[int]()
    failure = None

    def fn(value: int) -> int:
        nonlocal failure
        if value == 2 and failure is None:
            failure = files.fail("list", "*", times=2)
            raise ValueError("once")
        return value

    job = job_here(
        through(feed, fn, sink).graph(), config(tmp_path, restart=RESTARTS), restore="latest", fresh=False,
        resources=None, files=files,
    )  # fmt: skip
    feed.put(1, 2, 3)
    feed.end()
    async with asyncio.timeout(PATIENCE):
        await job.run()
    assert sink.values == [1, 2, 3]
    assert failure is not None and failure.hits == 2


async def test_a_manifest_published_by_a_dying_attempt_is_not_taken_away_from_the_next(tmp_path: Path) -> None:
    """`complete` is cut off after its manifest has its name: either that checkpoint holds, or it is gone before the
    next attempt looks for the latest one."""
    files = failing_files(tmp_path)
    feed, sink = Feed(), ListSink[int]()
    failed: list[int] = []

    def fn(value: int) -> int:
        if value == 2 and not failed:
            failed.append(value)
            raise ValueError("once")
        return value

    flow = sa.Dataflow("sums")
    flow.source("numbers", feed).key_by(lambda _: 0).process("sum", Sum).map(fn).sink("out", sink)
    restarting = config(tmp_path, restart=RESTARTS)
    job = job_here(flow.graph(), restarting, restore="latest", fresh=False, resources=None, files=files)
    feed.put(1)
    async with _supervised(job, None, "cancel", NO_TIME) as handle:
        await until(lambda: handle.metrics()["subtasks"]["sum[0]"]["nodes"]["sum"]["records_in"] == 1)
        # The second look whether a newer run has begun, which follows the manifest.
        published = tmp_path / "sums/run-1/attempt-1/chk-1/manifest"
        stall = files.stall("list", "*")
        asked = asyncio.create_task(handle.checkpoint())
        await stall.reached.wait()
        while not published.exists():
            stall.reached.clear()
            files.heal()
            stall = files.stall("list", "*")
            await asyncio.sleep(0.001)
        feed.put(1)
        await until(lambda: not job.running.is_set())
        files.heal()
        await until(lambda: job.restarts == 1)
        feed.end()
        async with asyncio.timeout(PATIENCE):
            await handle.wait()
        with pytest.raises(sa.CheckpointFailed):
            await asked
    assert sink.values == [1, 2]
    assert job.restarts == 1
    assert not [error for error in job.failures if isinstance(error, sa.CorruptCheckpoint)]


async def test_dead_letters_leave_at_once_on_a_quiet_stream() -> None:
    dead = sa.OutputTag("dead", sa.DeadLetter)
    feed, letters = Feed(dead=dead), ListSink[sa.DeadLetter]()
    flow = sa.Dataflow("quiet")
    stream = flow.source("numbers", feed)
    stream.sink("out", ListSink())
    stream.side_output(dead).sink("letters", letters)
    async with sa.start(flow, on_exit="cancel"):
        feed.put(Undecodable())
        await until(lambda: letters.values)


async def test_one_failure_is_logged_as_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    told: list[BaseException] = []
    with pytest.raises(sa.JobFailed):
        async with sa.start(through(ListSource([0]), lambda v: 1 // v, ListSink()), on_failure=told.append) as job:
            await job.wait()
    assert len(told) == 1
    assert [record.levelname for record in caplog.records] == ["CRITICAL"]
