"""Jobs beside a host's own work: its context and loggers, several jobs on one loop, one owner per storage, queries."""

import asyncio
import contextvars
import datetime as dt
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

import streamactors as sa
from connectors.memory import ListSink
from streamactors.actors.governor import Governor
from tests.runtime.feeds import PATIENCE, Feed, until

TENANT: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")
OWN: contextvars.ContextVar[str] = contextvars.ContextVar("own", default="of the host")
RESTARTS = sa.Restart.fixed(dt.timedelta(0), 3)


@pytest.fixture(scope="module", autouse=True)
def libuv() -> None:
    """The first loop makes libuv open a pipe that it keeps for the life of the process: that is no leak of a test."""
    uvloop.new_event_loop().close()


class Told(sa.Operator[int, str]):
    """What each hook sees of the host's context."""

    def open(self, ctx: sa.OperatorContext) -> None:
        self.opened = TENANT.get()
        self.log = ctx.log

    async def process(self, value: int, ctx: sa.Context[None, str]) -> None:
        self.log.info("took %d", value)
        await asyncio.sleep(0)
        ctx.emit(f"{self.opened} {TENANT.get()}")
        OWN.set("of an operator")


class Sum(sa.KeyedOperator[str, int, int]):
    total = sa.ValueState(int, default=0)
    latest = sa.ListState(int)

    def process(self, value: int, ctx: sa.Context[str, int]) -> None:
        self.total.set(self.total.get() + value)
        self.latest.append(value)
        ctx.emit(self.total.get())


class SlowSum(Sum):
    """Waits in the middle of its record, with the state half written."""

    def __init__(self, entered: asyncio.Event, release: asyncio.Event) -> None:
        self._entered, self._release = entered, release

    async def process(self, value: int, ctx: sa.Context[str, int]) -> None:  # type: ignore[override]
        self.total.set(self.total.get() + value)
        self._entered.set()
        await self._release.wait()
        self.latest.append(value)


def telling(name: str, feed: Feed) -> sa.Dataflow:
    flow = sa.Dataflow(name)
    flow.source("in", feed).process("told", Told).sink("out", ListSink[str]())
    return flow


def summing(name: str, feed: Feed, operator: Callable[[], Sum] = Sum) -> sa.Dataflow:
    flow = sa.Dataflow(name)
    flow.source("in", feed).key_by(lambda value: f"key-{value % 2}").process("sum", operator).sink(
        "out", ListSink[int]()
    )
    return flow


def config(folder: Path, **more: Any) -> sa.Config:
    return sa.Config(checkpoints=sa.Checkpoints(f"file://{folder}", interval=dt.timedelta(hours=1)), **more)


async def take(job: sa.JobHandle, uid: str, feed: Feed, *values: int) -> list[Any]:
    """What the step emits for these values."""
    async with asyncio.timeout(PATIENCE), job.subscribe(uid) as results:
        feed.put(*values)
        return [await anext(results) for _ in values]


# ------------------------------------------------------------------------------------------------- context and loggers
@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_operators_see_the_context_in_which_start_was_called(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Each job that of its own start, also after a restart; what an operator sets there does not reach the host."""

    async def main() -> None:
        acme, other = Feed(), Feed()
        TENANT.set("acme")
        async with sa.start(telling("acme", acme), sa.Config(restart=RESTARTS)) as first:
            TENANT.set("other")
            async with sa.start(telling("other", other)) as second:
                TENANT.set("a request")
                assert await take(first, "told", acme, 1) == ["acme acme"]
                assert await take(second, "told", other, 1) == ["other other"]
                acme.fail(RuntimeError("broken"))
                await until(lambda: first.restarts == 1 and first.status == "running")
                assert await take(first, "told", acme, 2) == ["acme acme"]
                assert (TENANT.get(), OWN.get()) == ("a request", "of the host")
                acme.end()
                other.end()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


async def test_loggers_are_left_as_they_are_and_records_say_where_from(caplog: pytest.LogCaptureFixture) -> None:
    feed = Feed()
    names = ("", "streamactors", "streamactors.job", "streamactors.operator")
    before = [(logging.getLogger(name).level, list(logging.getLogger(name).handlers)) for name in names]
    async with sa.start(telling("logs", feed)) as job:
        assert [(logging.getLogger(name).level, list(logging.getLogger(name).handlers)) for name in names] == before
        with caplog.at_level("INFO", "streamactors.operator"):
            await take(job, "told", feed, 7)
        feed.end()
    (record,) = [each for each in caplog.records if each.name == "streamactors.operator"]
    assert record.getMessage() == "took 7"
    assert {key: vars(record)[key] for key in ("flow", "uid", "subtask")} == {
        "flow": "logs",
        "uid": "told",
        "subtask": 0,
    }


# --------------------------------------------------------------------------------------------------------- several jobs
async def test_several_jobs_share_one_storage_and_the_governor_of_the_loop(tmp_path: Path) -> None:
    feeds = [Feed() for _ in range(3)]
    async with (
        sa.start(summing("a", feeds[0]), config(tmp_path)) as first,
        sa.start(summing("b", feeds[1]), config(tmp_path)) as second,
        sa.start(summing("c", feeds[2]), config(tmp_path)) as third,
    ):
        jobs = [first, second, third]
        subtasks = [list(job._job._attempt._deployed._subtasks.values()) for job in jobs]  # type: ignore[attr-defined]
        assert {subtask._governor for each in subtasks for subtask in each} == {Governor.of_running_loop()}
        totals = [await take(job, "sum", feed, 2, 4) for job, feed in zip(jobs, feeds, strict=True)]
        assert totals == [[2, 6]] * 3
        await first.cancel()
        assert await take(second, "sum", feeds[1], 6) == [12]
        assert (await third.checkpoint()).uri != (await second.checkpoint()).uri
        for feed in feeds:
            feed.end()


async def test_a_second_live_job_on_one_storage_is_refused_naming_the_owner(tmp_path: Path) -> None:
    feed = Feed()
    async with sa.start(summing("one", feed), config(tmp_path)) as job:
        with pytest.raises(sa.StorageInUse, match=rf"flow 'one' .* is in use by process {os.getpid()} on "):
            await sa.start(summing("one", Feed()), config(tmp_path)).__aenter__()
        assert await take(job, "sum", feed, 2) == [2]  # the owner is not disturbed
        feed.end()
    async with sa.start(summing("one", second := Feed()), config(tmp_path)):
        second.end()


# -------------------------------------------------------------------------------------------------------------- queries
@pytest.mark.parametrize("backend", ["heap", "rocksdb"])
async def test_a_query_sees_a_record_whole_or_not_at_all(tmp_path: Path, backend: Any) -> None:
    """It waits for the call that has written half of the state."""
    entered, release, feed = asyncio.Event(), asyncio.Event(), Feed()
    flow = summing("slow", feed, lambda: SlowSum(entered, release))
    async with sa.start(flow, config(tmp_path, state_backend=backend)) as job:
        feed.put(4)
        await entered.wait()
        total = asyncio.ensure_future(job.query("sum", Sum.total, "key-0"))
        latest = asyncio.ensure_future(job.query("sum", "latest", "key-0"))
        await asyncio.sleep(0)
        assert not total.done()
        release.set()
        async with asyncio.timeout(PATIENCE):
            assert (await total, await latest) == (4, [4])
        feed.end()


@pytest.mark.parametrize("backend", ["heap", "rocksdb"])
async def test_a_query_survives_restarts_and_a_rescale(tmp_path: Path, backend: Any) -> None:
    feed = Feed()
    settings = config(tmp_path, state_backend=backend, restart=RESTARTS)
    async with sa.start(summing("again", feed), settings) as job:
        assert sorted(await take(job, "sum", feed, 1, 2, 3)) == [1, 2, 4]
        await job.checkpoint()
        feed.fail(RuntimeError("broken"))
        await until(lambda: job.restarts == 1)
        assert await job.query("sum", Sum.total, "key-1") == 4  # waits for the next attempt
    settings = config(tmp_path, state_backend=backend, parallelism=3)
    async with sa.start(summing("again", feed), settings) as job:
        assert await job.query("sum", Sum.total, "key-1") == 4
        answer = await job.query("sum", Sum.latest.name, "key-1")
        answer.clear()  # a copy
        assert await job.query("sum", "latest", "key-1") == [1, 3]
        feed.end()


@pytest.mark.parametrize("backend", ["heap", "rocksdb"])
async def test_what_was_never_seen_and_what_does_not_exist(tmp_path: Path, backend: Any) -> None:
    feed = Feed()
    async with sa.start(summing("odd", feed), config(tmp_path, state_backend=backend)) as job:
        await take(job, "sum", feed, 2)
        assert await job.query("sum", Sum.total, "never seen") == 0
        assert await job.query("sum", "latest", "never seen") == []
        for key in (7, b"key-0", ("key-0",), None):  # of another type: another key
            assert await job.query("sum", Sum.total, key) == 0
        with pytest.raises(sa.UnserialisableKey, match="object"):
            await job.query("sum", Sum.total, object())
        with pytest.raises(sa.StateAccessError, match="no operator 'total'; it has: in, sum, out"):
            await job.query("total", Sum.total, "key-0")
        with pytest.raises(sa.StateAccessError, match="'sum'.*'nothing'"):
            await job.query("sum", "nothing", "key-0")
        with pytest.raises(sa.StateAccessError, match="no keyed state"):
            await job.query("out", "total", "key-0")
        assert await take(job, "sum", feed, 4) == [6]  # no question hurts the job
        feed.end()


async def test_whoever_asked_and_went_leaves_nothing_behind() -> None:
    entered, release, feed = asyncio.Event(), asyncio.Event(), Feed()
    async with sa.start(summing("gone", feed, lambda: SlowSum(entered, release))) as job:
        feed.put(4)
        await entered.wait()
        asked = [asyncio.ensure_future(job.query("sum", Sum.total, "key-0")) for _ in range(10)]
        await asyncio.sleep(0)
        for query in asked:
            query.cancel()
        await asyncio.wait(asked)
        release.set()
        assert await job.query("sum", Sum.total, "key-0") == 4
        assert not job._job._attempt._queries  # type: ignore[attr-defined]
        feed.end()


class CallingSum(sa.AsyncKeyedOperator[str, int, int]):
    """Asks somebody, in the middle of its record, with the state half written."""

    total = sa.ValueState(int, default=0)
    latest = sa.ListState(int)

    def __init__(self, entered: asyncio.Event, release: asyncio.Event) -> None:
        self._entered, self._release = entered, release

    async def process(self, value: int, ctx: sa.Context[str, int]) -> None:
        self.total.set(self.total.get() + value)
        self._entered.set()
        await self._release.wait()
        self.latest.append(value)
        ctx.emit(self.total.get())


@pytest.mark.parametrize("backend", ["heap", "rocksdb"])
async def test_a_query_does_not_wait_for_calls_and_sees_those_that_have_returned(tmp_path: Path, backend: Any) -> None:
    entered, release, feed = asyncio.Event(), asyncio.Event(), Feed()
    flow = sa.Dataflow("calls")
    stream = flow.source("in", feed).key_by(lambda value: f"key-{value % 2}")
    stream.process("sum", lambda: CallingSum(entered, release)).sink("out", ListSink[int]())
    settings = config(tmp_path, state_backend=backend)
    async with asyncio.timeout(PATIENCE), sa.start(flow, settings) as job, job.subscribe("sum") as sums:
        feed.put(4)
        await entered.wait()
        assert await job.query("sum", CallingSum.total, "key-0") == 0
        assert await job.query("sum", "latest", "key-0") == []
        release.set()
        assert await anext(sums) == 4
        assert await job.query("sum", CallingSum.total, "key-0") == 4
        assert await job.query("sum", "latest", "key-0") == [4]
        feed.end()


@pytest.mark.parametrize("ordered", [True, False])
async def test_results_of_calls_are_seen_as_they_leave(ordered: bool) -> None:
    feed, flow = Feed(), sa.Dataflow("calls")
    slow = asyncio.Event()

    async def call(value: int) -> int:
        if value == 0:
            await slow.wait()
        return value

    flow.source("in", feed).map_async("call", call, ordered=ordered).sink("out", ListSink[int]())
    async with asyncio.timeout(PATIENCE), sa.start(flow) as job, job.subscribe("call") as results:
        feed.put(0, 1, 2)
        if not ordered:
            assert [await anext(results) for _ in range(2)] == [1, 2]
        slow.set()
        assert await anext(results) == 0
        feed.end()
        assert [value async for value in results] == ([1, 2] if ordered else [])
