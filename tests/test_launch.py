"""Running a flow as a library: the block of `start`, its handle, and ends of every kind."""

import asyncio
import datetime as dt
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import streamactors as sa
from connectors.memory import ListSink, ListSource
from streamactors.launch import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, run_until_signalled
from tests.runtime.feeds import PATIENCE, Endless, Feed, until


class Sum(sa.KeyedOperator[int, int, int]):
    total = sa.ValueState(int, default=0)

    def process(self, value: int, ctx: sa.Context[int, int]) -> None:
        self.total.set(self.total.get() + value)
        ctx.emit(self.total.get())


def flow_of(feed: Feed, sink: ListSink[int]) -> sa.Dataflow:
    flow = sa.Dataflow("sums")
    flow.source("numbers", feed).key_by(lambda _: 0).process("sum", Sum).sink("out", sink)
    return flow


def config(folder: Path) -> sa.Config:
    return sa.Config(checkpoints=sa.Checkpoints(folder.as_uri(), interval=dt.timedelta(hours=1)))


def seen(job: sa.JobHandle) -> int:
    return int(job.metrics()["subtasks"]["sum[0]"]["nodes"]["sum"]["records_in"])


async def test_leaving_in_peace_takes_a_last_checkpoint_and_the_next_start_goes_on(tmp_path: Path) -> None:
    feed, sink = Feed(), ListSink[int]()
    async with sa.start(flow_of(feed, sink), config(tmp_path)) as job:
        assert job.status == "running" and job.name == "sums"
        feed.put(1, 2)
        await until(lambda: seen(job) == 2)
        assert sink.values == []
    assert str(job.status) == "finished"
    assert sink.values == [1, 3]
    feed.put(3)
    feed.end()
    await sa.run(flow_of(feed, sink), config(tmp_path))
    assert sink.values == [1, 3, 6]


async def test_leaving_by_an_exception_cancels(tmp_path: Path) -> None:
    feed, sink = Feed(), ListSink[int]()
    with pytest.raises(KeyError):  # noqa: PT012 (raised by the block itself)
        async with sa.start(flow_of(feed, sink), config(tmp_path)) as job:
            feed.put(1)
            await until(lambda: seen(job) == 1)
            raise KeyError
    assert job.status == "cancelled" and sink.values == []


async def test_a_failure_cancels_nothing_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    told: list[BaseException] = []
    feed = Feed()
    flow = sa.Dataflow("sums")
    flow.source("numbers", feed).map(lambda v: 1 // v).sink("out", ListSink())
    with pytest.raises(sa.JobFailed, match="ZeroDivisionError"):  # noqa: PT012 (raised on leaving the block)
        async with sa.start(flow, on_failure=told.append) as job:
            feed.put(0)
            await until(lambda: told)
            assert job.status == "failed" and told[0].__cause__ is not None
            with pytest.raises(sa.JobFailed):
                await job.wait()
    assert "the job has failed" in caplog.text


async def test_the_reaction_to_a_failure_may_be_async_and_is_awaited() -> None:
    told: list[str] = []

    async def tell(error: BaseException) -> None:
        await asyncio.sleep(0)
        told.append(type(error).__name__)

    flow = sa.Dataflow("sums")
    flow.source("numbers", feed := Feed()).map(lambda v: 1 // v).sink("out", ListSink())
    with pytest.raises(sa.JobFailed):  # noqa: PT012 (raised on leaving the block)
        async with sa.start(flow, on_failure=tell) as job:
            feed.put(0)
            with pytest.raises(sa.JobFailed):
                await job.wait()
    assert told == ["JobFailed"]


async def test_what_keeps_it_from_starting_is_raised_on_entering(tmp_path: Path) -> None:
    feed = Feed()
    async with sa.start(flow_of(feed, ListSink()), config(tmp_path), on_exit="cancel"):
        with pytest.raises(sa.StorageInUse):
            async with sa.start(flow_of(feed, ListSink()), config(tmp_path)):
                pass
    with pytest.raises(sa.InvalidConfig, match="needs checkpoints"):
        await sa.run(flow_of(feed, ListSink()), restore="file:///nowhere")


async def test_a_storage_with_checkpoints_is_not_left_behind_by_mistake(tmp_path: Path) -> None:
    feed, sink = Feed(), ListSink[int]()
    feed.put(1)
    feed.end()
    await sa.run(flow_of(feed, sink), config(tmp_path))
    with pytest.raises(sa.InvalidConfig, match="fresh=True"):
        await sa.run(flow_of(feed, sink), config(tmp_path), restore=None)
    await sa.run(flow_of(feed, sink), config(tmp_path), restore=None, fresh=True)
    assert sink.values == [1, 1]


async def test_an_explicit_checkpoint_is_restored(tmp_path: Path) -> None:
    feed, sink = Feed(), ListSink[int]()
    async with sa.start(flow_of(feed, sink), config(tmp_path)) as job:
        feed.put(1)
        await until(lambda: seen(job) == 1)
        early = (await job.checkpoint()).uri
        feed.put(2)
        await until(lambda: seen(job) == 2)
        assert await job.query("sum", Sum.total, 0) == 3
        late = await job.stop()
    assert late is not None and late != early and await job.stop() is None
    feed.end()
    await sa.run(flow_of(feed, sink), config(tmp_path), restore=early)
    assert sink.values == [1, 3, 3]


async def test_without_checkpoints_there_are_none_to_ask_for() -> None:
    async with sa.start(flow_of(Feed(), ListSink())) as job:
        with pytest.raises(sa.InvalidConfig, match="checkpoints are off"):
            await job.checkpoint()
        with pytest.raises(sa.StateAccessError, match="no operator 'nobody'"):
            await job.query("nobody", "total", 0)
        assert await job.stop() is None


def stuck_flow(entered: asyncio.Event) -> sa.Dataflow:
    class Stuck(sa.Operator[int, int]):
        async def process(self, value: int, ctx: sa.Context[None, int]) -> None:
            entered.set()
            await asyncio.Event().wait()

    flow = sa.Dataflow("stuck")
    flow.source("numbers", Endless()).process("stuck", Stuck).sink("out", ListSink())
    return flow


async def test_an_exit_that_takes_too_long_cancels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entered = asyncio.Event()
    flow = stuck_flow(entered)
    async with sa.start(flow, config(tmp_path), exit_timeout=dt.timedelta(milliseconds=20)) as job:
        await entered.wait()
    assert job.status == "cancelled" and "no last checkpoint" in caplog.text


async def test_cancelled_by_another_meanwhile_an_exit_is_over_without_a_word(tmp_path: Path) -> None:
    """As it is when the block cancels the job itself."""
    entered = asyncio.Event()

    async def cancel_when_it_stops(job: sa.JobHandle) -> None:
        await until(lambda: job.stopping)
        await job.cancel()

    async with sa.start(stuck_flow(entered), config(tmp_path)) as job:
        await entered.wait()
        cancelling = asyncio.create_task(cancel_when_it_stops(job))
    await cancelling
    assert job.status == "cancelled"


async def test_collect_gives_a_streams_values() -> None:
    flow = sa.Dataflow("notebook")
    assert await sa.collect(flow.source("numbers", ListSource([1, 2, 3])).map(lambda v: v * v)) == [1, 4, 9]


async def test_signals_stop_cleanly_and_a_second_one_cancels(tmp_path: Path) -> None:
    async def until_signalled(count: int) -> tuple[int, list[sa.JobHandle]]:
        handles: list[sa.JobHandle] = []
        entered = asyncio.Event()

        async def fn(value: int) -> int:
            entered.set()
            if count == 2:
                await asyncio.Event().wait()
            return value

        flow = sa.Dataflow(f"signalled-{count}")
        flow.source("numbers", Endless()).map(fn).sink("out", ListSink())
        running = asyncio.create_task(run_until_signalled(flow, config(tmp_path), watch=handles.append))
        await entered.wait()
        for _ in range(count):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.02)
        async with asyncio.timeout(PATIENCE):
            return await running, handles

    code, [job] = await until_signalled(1)
    assert (code, job.status) == (EXIT_OK, "finished")
    code, [job] = await until_signalled(2)
    assert (code, job.status) == (EXIT_INTERRUPTED, "cancelled")
    flow = sa.Dataflow("failing")
    flow.source("numbers", ListSource([0])).map(lambda v: 1 // v).sink("out", ListSink())
    assert await run_until_signalled(flow, sa.Config()) == EXIT_FAILED


async def test_signals_are_heeded_while_a_job_starts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    opening, may_go_on = asyncio.Event(), asyncio.Event()

    class Slow(sa.Operator[int, int]):
        async def open(self, ctx: sa.OperatorContext) -> None:
            opening.set()
            await may_go_on.wait()

        def process(self, value: int, ctx: sa.Context[None, int]) -> None:
            ctx.emit(value)

    async def started(name: str) -> "asyncio.Task[int]":
        opening.clear()
        caplog.clear()
        flow = sa.Dataflow(name)
        flow.source("numbers", Endless()).process("slow", Slow).sink("out", ListSink())
        running = asyncio.create_task(run_until_signalled(flow, config(tmp_path)))
        await opening.wait()
        os.kill(os.getpid(), signal.SIGINT)
        await until(lambda: "stops once it runs; a second signal cancels" in caplog.text)
        return running

    caplog.set_level("INFO", "streamactors")
    async with asyncio.timeout(PATIENCE):
        running = await started("impatient")
        os.kill(os.getpid(), signal.SIGINT)
        assert await running == EXIT_INTERRUPTED
        assert "stopped" not in caplog.text
        running = await started("patient")
        may_go_on.set()
        assert await running == EXIT_OK


FROZEN = """
import gc
import streamactors as sa
from connectors.memory import ListSink, ListSource

counts = []
flow = sa.Dataflow("frozen")
flow.source("numbers", ListSource([1])).map(lambda _: counts.append(gc.get_freeze_count())).sink("out", ListSink())
try:
    sa.main(flow)
finally:
    print(*counts, gc.get_freeze_count())
"""


def test_a_program_of_its_own_freezes_what_was_there_before() -> None:
    """The garbage collector would walk through all of it over and over."""
    ended = subprocess.run([sys.executable, "-c", FROZEN], capture_output=True, text=True, timeout=300, check=True)
    while_it_ran, afterwards = map(int, ended.stdout.split())
    assert while_it_ran > 1000 and afterwards == 0
