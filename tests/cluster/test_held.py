"""A job that is held by a handle in another process: here in the same one, but reached only by what its host tells."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from connectors.memory import ListSink
from streamactors.clock import SYSTEM
from streamactors.cluster import hosted as hosted_module
from streamactors.cluster.held import HeldJob
from streamactors.cluster.hosted import (
    CancelJob,
    Follow,
    Host,
    JobHost,
    JobState,
    Known,
    NextValues,
    Piece,
    QueryState,
    Request,
)
from streamactors.deploy.driver import RemoteHost
from streamactors.deploy.local import deploy_locally
from streamactors.errors import ConnectionLost
from streamactors.graph.parallelism import widths
from streamactors.launch import EXIT_TIMEOUT, JobHandle, _supervised
from streamactors.runtime.events import CheckpointCompleted, JobEnded
from streamactors.runtime.job import Job, JobSpec
from streamactors.submission import job_here
from tests.runtime.feeds import PATIENCE, Feed, until


class Sum(sa.KeyedOperator[int, int, int]):
    total = sa.ValueState(int, default=0)

    def process(self, value: int, ctx: sa.Context[int, int]) -> None:
        self.total.set(self.total.get() + value)
        ctx.emit(self.total.get())


def job(feed: Feed, config: sa.Config, sink: ListSink[int] | None = None) -> Job:
    flow = sa.Dataflow("summing")
    flow.source("in", feed).key_by(lambda value: value % 2).process("sum", Sum).sink("out", sink or ListSink[int]())
    return job_here(flow.graph(), config, restore="latest", fresh=False, resources=None)


def checkpointing(tmp_path: Path, **settings: Any) -> sa.Config:
    return sa.Config(checkpoints=sa.Checkpoints(tmp_path.as_uri(), interval=dt.timedelta(hours=1)), **settings)


@asynccontextmanager
async def hosted(*jobs: Job) -> AsyncIterator[Host]:
    """The first one, until it has ended; then the next one, as by another host: the one before was lost."""
    hosts = [JobHost(job, SYSTEM) for job in jobs]
    running = [asyncio.ensure_future(hosts[0].run())]

    class Hosts:
        async def tell(self, known: Known) -> JobState:
            state = await hosts[0].tell(known)
            if state.ended is None or len(hosts) == 1:
                return state
            hosts.pop(0)
            running.append(asyncio.ensure_future(hosts[0].run()))
            return await hosts[0].tell(known)

        async def ask(self, request: Request) -> Any:
            return await hosts[0].ask(request)

    try:
        yield Hosts()
    finally:
        await asyncio.gather(*running)


@asynccontextmanager
async def held(*jobs: Job, on_exit: Any = "checkpoint") -> AsyncIterator[JobHandle]:
    made = HeldJob("summing", jobs[0].config, lambda: hosted(*jobs))
    async with asyncio.timeout(PATIENCE), _supervised(made, None, on_exit, EXIT_TIMEOUT) as handle:
        yield handle


async def test_it_is_as_the_job_itself(tmp_path: Path) -> None:
    feed, sink = Feed(), ListSink[int]()
    made = job(feed, checkpointing(tmp_path / "checkpoints"), sink)
    async with held(made) as handle:
        assert handle.status == "running" and handle.plan is not None and handle.name == "summing"
        feed.put(1, 2, 3)
        await until(lambda: feed.values and records_in(handle, "sum") == 3)
        assert await handle.query("sum", Sum.total, 1) == 4
        info = await handle.checkpoint()
        await until(lambda: info in handle.checkpoints)
        uri = await handle.savepoint((tmp_path / "savepoint").as_uri())
        assert Path(uri.removeprefix("file://")).is_dir()
        assert {fill.sender for fill in handle.channels("sum", 0)} == {"in[0]"}
        last = await handle.stop()
    assert handle.checkpoints == tuple(made.checkpoints) and handle.checkpoints[-1].uri == last
    assert handle.checkpoint_counts == (len(made.checkpoints), 0)
    assert sink.values == [1, 2, 4]


def records_in(handle: JobHandle, uid: str) -> int:
    subtasks = handle.metrics()["subtasks"].values()
    return sum(node["records_in"] for subtask in subtasks for name, node in subtask["nodes"].items() if name == uid)


async def test_a_failure_is_told_with_what_ended_each_attempt() -> None:
    feed = Feed()
    made = job(feed, sa.Config(restart=sa.Restart.fixed(dt.timedelta(0), 1)))
    with pytest.raises(sa.JobFailed, match="torn again"):
        await failing(feed, made)


async def failing(feed: Feed, made: Job) -> None:
    async with held(made) as handle:
        feed.fail(ValueError("torn"))
        await until(lambda: handle.restarts == 1 and handle.status == "running")
        feed.fail(ValueError("torn again"))
        with pytest.raises(sa.JobFailed) as caught:
            await handle.wait()
        assert str(caught.value.__cause__) == "torn again" and handle.status == "failed"
        assert [str(error) for error in handle.failures] == ["torn", "torn again"]


async def test_what_keeps_it_from_starting_is_raised(tmp_path: Path) -> None:
    made = job_here(
        job_graph(), checkpointing(tmp_path), restore=str(tmp_path / "nowhere"), fresh=False, resources=None
    )
    with pytest.raises(sa.StreamactorsError, match="nowhere"):
        async with held(made):
            pytest.fail("it has started")


def job_graph() -> Any:
    flow = sa.Dataflow("summing")
    flow.source("in", Feed()).sink("out", ListSink[int]())
    return flow.graph()


async def test_cancelling_the_handle_cancels_the_job() -> None:
    feed = Feed()
    made = job(feed, sa.Config())
    async with held(made, on_exit="cancel") as handle:
        await handle.cancel()
        assert made.status == handle.status == "cancelled"
    assert feed.opened == feed.closed == 1


async def test_cancelling_outlasts_a_host_that_is_lost_meanwhile(tmp_path: Path) -> None:
    jobs = [job(Feed(), checkpointing(tmp_path)) for _ in range(2)]
    async with held(*jobs, on_exit="cancel") as handle:
        await handle.cancel()
    assert [made.status for made in jobs] == ["cancelled", "cancelled"] and handle.status == "cancelled"


async def test_leaving_in_peace_stops_it_with_a_last_checkpoint(tmp_path: Path) -> None:
    feed = Feed()
    made = job(feed, checkpointing(tmp_path))
    async with held(made) as handle:
        feed.put(1)
    assert made.status == handle.status == "finished" and made.last_checkpoint == handle.checkpoints[-1]


async def test_a_subscriber_gets_every_value_and_the_end() -> None:
    feed, values = Feed(), list[int]()
    async with held(job(feed, sa.Config())) as handle, handle.subscribe("sum") as results:
        feed.put(*range(100))
        feed.end()
        async for value in results:
            values.append(value)
    assert values == [sum(range(value % 2, value + 1, 2)) for value in range(100)]


async def test_a_subscriber_that_leaves_is_forgotten() -> None:
    made = job(Feed(), sa.Config())
    async with held(made) as handle:
        async with handle.subscribe("sum"):
            assert len(made._subscriptions) == 1
        await until(lambda: not made._subscriptions)
        with pytest.raises(sa.NoSuchStep, match="'total'.*in, sum"):
            async with handle.subscribe("total"):
                pytest.fail("there is no such step")


async def test_events_are_told_once_and_in_order(tmp_path: Path) -> None:
    told: list[Any] = []
    async with held(job(Feed(), checkpointing(tmp_path))) as handle:
        with handle.listening(lambda event, at: told.append((event, at))):
            for _ in range(3):
                await handle.checkpoint()
            await handle.stop()
    completed = [event.info.id for event, _ in told if isinstance(event, CheckpointCompleted)]
    assert completed == sorted(completed) == [info.id for info in handle.checkpoints]
    assert sum(isinstance(event, JobEnded) for event, _ in told) == 1


async def test_the_figures_of_a_large_job_come_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosted_module, "PIECE", 4)
    monkeypatch.setattr(hosted_module, "REFRESHED", 0.01)
    pieces: list[Piece] = []
    feed = Feed(splits=3)
    made = job(feed, checkpointing(tmp_path, parallelism=3))

    @asynccontextmanager
    async def watched() -> AsyncIterator[Host]:
        async with hosted(made) as host:
            tell = host.tell

            async def told(known: Known) -> JobState:
                state = await tell(known)
                pieces.extend([] if state.piece is None else [state.piece])
                return state

            host.tell = told  # type: ignore[method-assign]
            yield host

    held_job = HeldJob("summing", made.config, watched)
    async with asyncio.timeout(PATIENCE), _supervised(held_job, None, "checkpoint", EXIT_TIMEOUT) as handle:
        for number in range(100):
            feed.put(number, split=number % 3)
        await until(lambda: records_in(handle, "sum") == 100)
        assert handle.plan is not None
        assert list(handle.metrics()["subtasks"]) == [str(subtask) for subtask in handle.plan.subtasks]
        assert len(handle.channels("sum", 2)) == 3
        feed.put(100)
        feed.end()
        await handle.wait()
    assert records_in(handle, "sum") == 101, "the last pass is of the end"
    assert max(piece.stop - piece.start for piece in pieces) <= 4 < len(handle.plan.subtasks)
    whole = [piece.last for piece in pieces].index(True) + 1
    assert [piece.start for piece in pieces[1:whole]] == [piece.stop for piece in pieces[: whole - 1]]


async def test_a_host_that_is_lost_counts_as_a_restart(tmp_path: Path) -> None:
    feeds = Feed(), Feed()
    jobs = [job(feed, checkpointing(tmp_path)) for feed in feeds]
    async with held(*jobs) as handle:
        feeds[0].put(1)
        await handle.checkpoint()
        await jobs[0].stop(drain=False)
        await until(lambda: handle.restarts == 1 and handle.status == "running")
        await handle.checkpoint()
    assert [info.id for info in handle.checkpoints] == ids(jobs[0]) + ids(jobs[1])
    assert len(handle.incidents) == 1 and "coordinator" in str(handle.failures[0])


@pytest.mark.parametrize("drain", [False, True])
async def test_a_stop_is_not_forgotten_with_its_host(tmp_path: Path, drain: bool) -> None:
    """It has stopped, and is lost before it has told so: its successor goes on from that last checkpoint."""
    jobs = [job(Feed(), checkpointing(tmp_path)) for _ in range(2)]
    async with held(*jobs, on_exit="cancel") as handle:
        stopped = await handle.stop(drain=drain)
        assert (handle.status, handle.restarts) == ("finished", 1)
        assert jobs[1].last_checkpoint is not None and stopped == jobs[1].last_checkpoint.uri


async def test_a_rescale_ends_with_its_host_and_that_is_told(tmp_path: Path) -> None:
    feeds = Feed(), Feed()
    jobs = [job(feed, checkpointing(tmp_path)) for feed in feeds]
    async with held(*jobs) as handle:
        await handle.rescale(parallelism={"sum": 2})
        await until(lambda: handle.last_rescale is not None)
        await jobs[0].stop(drain=False)
        await until(lambda: handle.metrics()["restored_parallelism"] == {"sum": 2, "out": 2})
        assert handle.last_rescale is None and handle.restarts == 1


class Coordinator:
    """See `driver.Coordinator`: here in this process. Another one takes its place at once."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self._host: JobHost | None = None
        self._running: asyncio.Task[None] | None = None

    async def begin(self, arguments: Any) -> Any:
        [spec, *_] = arguments
        self.jobs.append(Job(spec, deploy=deploy_locally, clock=SYSTEM))
        host = self._host = JobHost(self.jobs[-1], SYSTEM)
        self._running = asyncio.ensure_future(host.run())
        return True, await self.incarnation()

    begin_again = begin

    async def incarnation(self) -> str:
        return str(len(self.jobs)) if self._host is not None else "started again"

    async def call(self, method: str, arguments: Any) -> Any:
        host = self._host
        if host is None:
            raise ConnectionLost("it has died")
        answer = await getattr(host, method)(*arguments)
        if host is not self._host:
            raise ConnectionLost("it has died meanwhile")
        return True, answer

    async def die(self) -> None:
        assert self._running is not None
        self._host = None
        self._running.cancel()
        await asyncio.wait([self._running])


@asynccontextmanager
async def started(spec: JobSpec, coordinator: Coordinator) -> AsyncIterator[JobHandle]:
    """By its user."""

    @asynccontextmanager
    async def reach() -> AsyncIterator[Host]:
        def same(thing: Any) -> Any:
            return thing

        host = RemoteHost(spec, sa.Ray(workers=1), coordinator, same, same, SYSTEM)
        await host.begin()
        yield host
        await coordinator.die()

    made = HeldJob("summing", spec.config, reach)
    async with asyncio.timeout(PATIENCE), _supervised(made, None, "cancel", EXIT_TIMEOUT) as handle:
        yield handle


async def succeeded(handle: JobHandle, coordinator: Coordinator) -> dict[str, int]:
    """By which parallelism the one goes on that comes after a dead coordinator."""
    restarts = handle.restarts
    await coordinator.die()
    await until(lambda: handle.restarts == restarts + 1 and handle.status == "running")
    assert handle.plan is not None
    return widths(handle.plan)


async def test_a_rescale_outlives_the_coordinator(tmp_path: Path) -> None:
    coordinator, spec = Coordinator(), job(Feed(splits=4), checkpointing(tmp_path))._spec
    async with started(spec, coordinator) as handle:
        await handle.rescale(parallelism={"sum": 2})
        await handle.checkpoint()
        for _ in range(2):
            assert await succeeded(handle, coordinator) == {"in": 1, "sum": 2, "out": 2}
        assert handle.metrics()["restored_parallelism"] == {}
        await handle.rescale(parallelism=3)
        await handle.checkpoint()
        assert await succeeded(handle, coordinator) == {"in": 3, "sum": 2, "out": 2}
        await handle.rescale(parallelism=dict.fromkeys(("in", "sum", "out"), 1))
        await handle.checkpoint()
        assert await succeeded(handle, coordinator) == {"in": 1, "sum": 1, "out": 1}


async def test_a_rescale_by_default_leaves_nothing_that_a_later_one_would_not_change(tmp_path: Path) -> None:
    coordinator, spec = Coordinator(), job(Feed(splits=4), checkpointing(tmp_path))._spec
    async with started(spec, coordinator) as handle:
        for width in (2, 4):
            await handle.rescale(parallelism=width)
            await handle.checkpoint()
            assert await succeeded(handle, coordinator) == dict.fromkeys(("in", "sum", "out"), width)


async def test_whoever_starts_it_anew_starts_with_the_parallelism_of_the_settings(tmp_path: Path) -> None:
    """And so does who takes the place of that one, though the last checkpoint is of before."""
    coordinator, spec = Coordinator(), job(Feed(splits=4), checkpointing(tmp_path))._spec
    async with started(spec, coordinator) as handle:
        await handle.rescale(parallelism={"sum": 2})
        await handle.checkpoint()
    async with started(spec, coordinator) as handle:
        await until(lambda: handle.status == "running")
        for _ in range(2):
            assert await succeeded(handle, coordinator) == {"in": 1, "sum": 1, "out": 1}
        assert handle.metrics()["restored_parallelism"] == {"sum": 2, "out": 2}


def ids(made: Job) -> list[int]:
    return [info.id for info in made.checkpoints]


async def test_a_request_that_waits_ends_with_the_job() -> None:
    feed = Feed()
    made = job(feed, sa.Config(restart=sa.Restart.fixed(dt.timedelta(hours=1), 1)))
    host = JobHost(made, SYSTEM)
    async with asyncio.timeout(PATIENCE):
        running = asyncio.ensure_future(host.run())
        await until(lambda: made.status == "running")
        feed.fail(ValueError("torn"))
        await until(lambda: made.status == "restarting")
        asked = asyncio.ensure_future(host.ask(QueryState("sum", "total", 1)))
        await asyncio.sleep(0)
        await host.ask(CancelJob())
        await running
        with pytest.raises(sa.JobNotRunning, match="'summing' is not running any more: cancelled"):
            await asked


async def test_who_asks_and_asks_no_more_leaves_nothing() -> None:
    host = JobHost(job(Feed(), sa.Config()), SYSTEM)
    async with asyncio.timeout(PATIENCE):
        before = asyncio.all_tasks()
        asking = asyncio.ensure_future(host.tell(Known()))
        await until(lambda: len(asyncio.all_tasks() - before) == 3)  # itself, and what it waits for
        asking.cancel()
        await asyncio.wait([asking])
        await until(lambda: asyncio.all_tasks() == before)


async def test_a_host_that_is_cancelled_ends_its_job() -> None:
    made = job(Feed(), sa.Config())
    host = JobHost(made, SYSTEM)
    async with asyncio.timeout(PATIENCE):
        before = asyncio.all_tasks()
        running = asyncio.ensure_future(host.run())
        await until(lambda: made.status == "running")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert made.status == "cancelled"
        await until(lambda: asyncio.all_tasks() == before)
        assert (await host.tell(Known())).status == "cancelled"


@pytest.mark.parametrize("error", [None, ValueError("torn")])
async def test_who_follows_a_job_that_has_ended_is_told_so(error: ValueError | None) -> None:
    feed = Feed()
    host = JobHost(job(feed, sa.Config()), SYSTEM)
    async with asyncio.timeout(PATIENCE):
        running = asyncio.ensure_future(host.run())
        feed.end() if error is None else feed.fail(error)
        await running
        number = await host.ask(Follow("sum", None, 10))
        if error is None:
            assert await host.ask(NextValues(number)) is None
        else:
            with pytest.raises(sa.JobFailed, match="torn"):
                await host.ask(NextValues(number))


async def test_a_rescale_beyond_the_slots_touches_nothing(tmp_path: Path) -> None:
    made = job(Feed(), checkpointing(tmp_path, deployment=sa.Ray(workers=2, slots=1)))
    async with held(made) as handle:
        with pytest.raises(sa.InvalidConfig, match="3 subtasks, and 2 workers with 1 slots each have room for 2"):
            await handle.rescale(parallelism=3)
        assert (handle.status, handle.restarts, handle.last_rescale) == ("running", 0, None)
        await handle.rescale(parallelism=2)
        assert handle.last_rescale is not None
