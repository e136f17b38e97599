"""A job over several workers does what it does in one process: savepoints, queries, taps, figures, failures, its
end."""

import asyncio
import datetime as dt
import functools
import traceback
from itertools import pairwise
from random import Random
from typing import Any

import pytest

import streamactors as sa
from connectors.memory import ListSink
from streamactors.clock import Clock
from streamactors.cluster.workers import Times
from streamactors.elements import Barrier
from streamactors.errors import (
    CheckpointFailed,
    IncompatibleState,
    JobFailed,
    RecordFailed,
    StateAccessError,
    WorkerLost,
)
from streamactors.graph.physical import SubtaskId
from streamactors.submission import job_here
from streamactors.testing.network import STORM, Weather
from tests.cluster.jobs import FLOW, STORAGE, Jobs, Sum, by_rest, expected, last, sums
from tests.cluster.made_up import MadeUpCluster
from tests.cluster.virtual import virtually
from tests.runtime.feeds import Feed, Gate, until

ONCE_MORE = sa.Restart.fixed(dt.timedelta(0), 3)


def numbers(count: int = 200) -> Feed:
    feed = Feed(splits=2)
    for split in range(2):
        feed.put(*range(split, count, 2), split=split)
    return feed


def test_to_its_end() -> None:
    async def main(clock: Clock) -> None:
        feed, sink = numbers(), ListSink[tuple[int, int]]()
        feed.end()
        async with Jobs(clock).started(sums(feed, sink), 3) as (job, cluster):
            await job.wait()
            subtasks = job.metrics()["subtasks"]
        assert last(sink.values) == expected(feed.values) and len(sink.values) == 200
        assert len(cluster.attempts) == 1 and cluster.attempts[0].placement.used == 3
        read = [node["records_in"] for each in subtasks.values() for uid, node in each["nodes"].items() if uid == "out"]
        assert sum(read) == 200, "the last figures are those of the end"

    virtually(0, main)


def _restarted(job: sa.JobHandle, restarts: int) -> bool:
    return job.restarts == restarts


@pytest.mark.parametrize("workers", [1, 3])
def test_a_savepoint_is_a_savepoint(workers: int) -> None:
    """From every worker, in one folder; one process goes on from it, or others do."""

    async def main(clock: Clock) -> None:
        jobs, feed, sink = Jobs(clock), numbers(), ListSink[tuple[int, int]]()
        async with jobs.started(sums(feed, sink), workers) as (job, _):
            await until(lambda: job.metrics()["subtasks"])
            assert await job.savepoint("/savepoints/one") == "file:///savepoints/one"
        names = jobs.names("/savepoints/one")
        assert "manifest" in names and all(name[4:7] in ("-w0", "-w1", "-w2") for name in names if name[0] == "0")
        again = ListSink[tuple[int, int]]()
        feed.put(*range(1000, 1050))
        feed.end()
        async with jobs.started(sums(feed, again), 4 - workers, restore="/savepoints/one") as (job, _):
            await job.wait()
        assert last(again.values) == expected(feed.values)

    virtually(1, main)


def test_a_stop_commits_and_the_next_start_goes_on() -> None:
    async def main(clock: Clock) -> None:
        jobs, feed, sink = Jobs(clock), numbers(), ListSink[tuple[int, int]]()
        async with jobs.started(sums(feed, sink), on_exit="checkpoint") as (job, _):
            await until(lambda: _processed(job) >= 200)
        assert len(sink.values) == 200
        feed.put(1, 2, 3, split=1)
        feed.end()
        async with jobs.started(sums(feed, sink), 1) as (job, _):
            await job.wait()
        assert last(sink.values) == expected(feed.values) and len(sink.values) == 203

    virtually(2, main)


def _processed(job: sa.JobHandle) -> int:
    nodes = [node for each in job.metrics()["subtasks"].values() for node in each["nodes"].items()]
    return sum(node["records_in"] for uid, node in nodes if uid == "sums")


# ------------------------------------------------------------------------------------------------------------ onlookers
def test_queries_reach_the_worker_that_has_the_key() -> None:
    async def main(clock: Clock) -> None:
        feed = numbers()
        async with Jobs(clock).started(sums(feed, ListSink()), 3) as (job, _):
            await until(lambda: _processed(job) >= 200)
            assert {key: await job.query("sums", "total", key) for key in range(50)} == expected(feed.values)
            with pytest.raises(StateAccessError, match="no state 'nothing'|nothing"):
                await job.query("sums", "nothing", 1)

    virtually(3, main)


class _Value:
    """Of no kind that could be sent."""


class Opaque(sa.KeyedOperator[int, int, Any]):
    def process(self, value: int, ctx: sa.Context[int, Any]) -> None:
        ctx.emit(_Value())


def test_a_subscriber_sees_what_all_workers_emit() -> None:
    async def main(clock: Clock) -> None:
        feed = Feed(splits=2)
        async with (
            Jobs(clock).started(sums(feed, ListSink()), 3) as (job, _),
            job.subscribe("sums", buffer=1000) as results,
        ):
            feed.put(*range(50), split=0)
            feed.put(*range(50, 100), split=1)
            seen = [await anext(results) for _ in range(100)]
            assert last(seen) == expected(feed.values)
        async with asyncio.timeout(1):
            assert await anext(results, None) is None

    virtually(4, main)


def test_a_slow_subscriber_holds_nobody_up_and_is_told_what_it_lost() -> None:
    async def main(clock: Clock) -> None:
        feed = Feed(splits=2)
        async with (
            Jobs(clock).started(sums(feed, ListSink()), 2) as (job, _),
            job.subscribe("sums", buffer=10) as results,
        ):
            feed.put(*range(2000))
            await until(lambda: _processed(job) >= 2000)
            await asyncio.sleep(1)
            with pytest.raises(sa.SubscriptionLagged) as lagged:
                await anext(results)
            left = [await anext(results) for _ in range(10)]
            assert lagged.value.lost + len(left) == 2000

    virtually(5, main)


@pytest.mark.parametrize("seed", range(3))
def test_whatever_fails_a_subscriber_misses_nothing(seed: int) -> None:
    """What a checkpoint holds has been seen; the rest comes again."""

    async def main(clock: Clock) -> None:
        jobs, feed, draw = Jobs(clock), Feed(chunk=5), Random(seed)
        flow = sa.Dataflow(FLOW)
        flow.source("numbers", feed).map(lambda value: value, name="same").rebalance().sink("out", ListSink())
        cluster = MadeUpCluster(2, clock=clock, weather=Weather(delay=(0.0, 0.03)))
        often: Any = {"interval": dt.timedelta(milliseconds=30), "restart": sa.Restart.fixed(dt.timedelta(0), 99)}
        async with (
            jobs.started(flow, cluster=cluster, **often) as (job, _),
            job.subscribe("map-1", buffer=100_000) as results,
        ):
            for value in range(300):
                feed.put(value)
                if draw.random() < 0.03:
                    feed.fail(RuntimeError("broken"))
                await clock.sleep(0.01)
            feed.end()
            seen = [value async for value in results]
        assert job.restarts > 2
        assert set(seen) == set(range(300))
        assert all(after <= before + 1 for before, after in pairwise(seen))

    virtually(seed, main)


def test_what_can_not_be_sent_is_not_seen_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def main(clock: Clock) -> None:
        feed, flow, sink = Feed(splits=1), sa.Dataflow(FLOW), ListSink[Any]()
        flow.source("numbers", feed).key_by(by_rest).process("opaque", Opaque).sink("out", sink)
        async with Jobs(clock).started(flow, 1) as (job, _), job.subscribe("opaque"):
            feed.put(*range(10))
            feed.end()
            await job.wait()
        assert len(sink.values) == 10

    virtually(6, main)
    assert "can't be looked at from another process" in caplog.text


def test_channels_and_figures_are_told_with_the_heartbeat() -> None:
    async def main(clock: Clock) -> None:
        feed = numbers()
        async with Jobs(clock).started(sums(feed, ListSink()), 2) as (job, cluster):
            await until(lambda: _processed(job) >= 200)
            [attempt] = cluster.attempts
            fills = [fill for id in attempt._plan.subtasks if id.vertex == "sums" for fill in attempt.channels(id)]
            assert [fill.sender for fill in fills] == 2 * ["numbers[0]", "numbers[1]"]
            node = next(iter(job.metrics()["subtasks"].values()))["nodes"]["numbers"]
            assert node["own"].flat() == {"splits": 1.0}

    virtually(7, main)


def test_what_waits_on_a_channel_is_told_too() -> None:
    async def main(clock: Clock) -> None:
        feed, gate, flow = numbers(20_000), Gate(0, 0.1), sa.Dataflow(FLOW)
        stream = flow.source("numbers", feed, parallelism=2).rebalance().map(gate, parallelism=2)
        stream.sink("out", ListSink())
        async with Jobs(clock).started(flow, 2) as (job, cluster):
            [attempt] = cluster.attempts
            slow = list(attempt._plan.vertices[1].subtasks())
            await until(lambda: all(fill.queued for id in slow for fill in attempt.channels(id)))
            fill = attempt.channels(slow[0])[1]
            assert fill.sender == "numbers[1]" and 0 < fill.queued <= fill.capacity and fill.bytes
            assert job.metrics()["subtasks"][str(slow[0])]["queued"]

    virtually(19, main)


# ------------------------------------------------------------------------------------------------------------- failures
class Broken(Sum):
    def process(self, value: int, ctx: sa.Context[int, tuple[int, int]]) -> None:
        if value == 150:
            raise LookupError("no such customer")
        super().process(value, ctx)


def test_a_failure_of_user_code_is_told_as_in_one_process() -> None:
    async def main(clock: Clock) -> None:
        with pytest.raises(JobFailed) as failed:
            async with Jobs(clock).started(sums(numbers(), ListSink(), Broken), 2) as (job, _):
                await job.wait()
        record = failed.value.__cause__
        assert isinstance(record, RecordFailed) and (record.uid, record.key) == ("sums", by_rest(150))
        own = record.__cause__
        assert type(own) is LookupError and str(own) == "no such customer"
        frame = traceback.extract_tb(own.__traceback__)[-1]
        assert frame.filename == __file__ and frame.line == 'raise LookupError("no such customer")'

    virtually(8, main)


def _refused() -> Sum:
    raise RuntimeError("no licence")


class OtherState(sa.KeyedOperator[int, int, Any]):
    total = sa.ValueState(str, default="")

    def process(self, value: int, ctx: sa.Context[int, Any]) -> None:
        self.total.set(str(value))


def test_what_fails_one_slice_fails_the_deployment() -> None:
    """And the other worker's, which was put together, is gone before anybody is told."""

    async def main(clock: Clock) -> None:
        cluster = MadeUpCluster(2, clock=clock)
        feed = numbers()
        with pytest.raises(JobFailed, match="no licence"):
            async with Jobs(clock).started(sums(feed, ListSink(), _refused), cluster=cluster):
                raise AssertionError("it runs")
        assert feed.opened == 0

    virtually(9, main)


def test_state_that_does_not_fit_is_refused_before_anything_runs() -> None:
    async def main(clock: Clock) -> None:
        jobs, feed = Jobs(clock), numbers()
        async with jobs.started(sums(feed, ListSink()), 2, on_exit="checkpoint") as (job, _):
            await until(lambda: _processed(job) >= 200)
        opened = feed.opened
        with pytest.raises(IncompatibleState, match="'sums'.*total"):
            async with jobs.started(sums(feed, ListSink(), OtherState), 2):
                raise AssertionError("it runs")
        assert feed.opened == opened

    virtually(10, main)


def test_a_worker_that_never_answers_is_lost_in_bounded_time() -> None:
    async def main(clock: Clock) -> None:
        cluster = MadeUpCluster(2, clock=clock, silent=True)
        cluster.network.cut(-1, 1)
        before = clock.monotonic()
        with pytest.raises(JobFailed) as failed:
            async with Jobs(clock).started(sums(numbers(), ListSink()), cluster=cluster):
                raise AssertionError("it runs")
        assert isinstance(failed.value.__cause__, WorkerLost) and "worker 1" in str(failed.value)
        assert clock.monotonic() - before < 30
        assert cluster.workers.keys() == {0, 1} and cluster.replaced == []

    virtually(11, main)


def test_a_partition_between_two_workers_fails_the_attempt_and_heals() -> None:
    async def main(clock: Clock) -> None:
        jobs, feed, sink = Jobs(clock), numbers(), ListSink[tuple[int, int]]()
        async with jobs.started(sums(feed, sink), 2, restart=ONCE_MORE) as (job, cluster):
            await until(lambda: _processed(job) >= 200)
            await job.checkpoint()
            cluster.network.cut(0, 1)
            feed.put(*range(200, 400))
            await until(lambda: job.restarts == 1)
            assert isinstance(job.failures[-1], sa.StreamactorsError) and job.failures[-1].retryable
            cluster.network.heal()
            feed.end()
            await job.wait()
            assert cluster.replaced == [], "both workers answered the coordinator"
        assert last(sink.values) == expected(feed.values) and len(sink.values) == 400

    virtually(12, main)


def test_a_worker_cut_off_from_its_coordinator_gives_up_and_writes_nothing_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It lives on as a zombie, whose successor goes on from the last checkpoint."""

    async def main(clock: Clock) -> None:
        jobs, feed, sink = Jobs(clock), numbers(), ListSink[tuple[int, int]]()
        cluster = MadeUpCluster(2, clock=clock, silent=True, zombies=True)
        async with jobs.started(sums(feed, sink), cluster=cluster, restart=ONCE_MORE) as (job, _):
            await until(lambda: _processed(job) >= 200)
            await job.checkpoint()
            cluster.network.cut(-1, 1)
            await until(lambda: job.restarts == 1)
            cluster.network.heal()  # for its successor, which has its number
            await until(lambda: cluster.undead)
            assignment = cluster.undead[0]._assignment
            assert assignment is not None and assignment._part is not None
            storage = assignment._part.storage
            await until(lambda: assignment._ending is not None and assignment._ending.done())
            with pytest.raises(CheckpointFailed, match="no longer in flight"):
                storage._writer(Barrier(99))
            feed.end()
            await job.wait()
        assert cluster.replaced == [1]
        assert last(sink.values) == expected(feed.values) and len(sink.values) == 200

    virtually(13, main)
    assert "this part of the job is given up" in caplog.text


def test_a_coordinator_that_dies_is_succeeded_and_its_workers_go_on_with_the_next_one() -> None:
    """They still run the part that nobody wants any more, and end it before they begin the next."""

    async def main(clock: Clock) -> None:
        jobs, feed, sink = Jobs(clock), numbers(), ListSink[tuple[int, int]]()
        cluster = MadeUpCluster(2, clock=clock, times=Times(patience=0.5))
        async with jobs.started(sums(feed, sink), cluster=cluster, keep=True) as (job, _):
            await until(lambda: _processed(job) >= 200)
            await job.checkpoint()
            feed.put(*range(100))
            cluster.succeed()
        parts = [worker._assignment for worker in cluster.workers.values()]
        assert all(part is not None and part._ending is None for part in parts)
        feed.end()
        async with jobs.started(sums(feed, sink), cluster=cluster) as (job, _):
            await job.wait()
        assert all(part is not None and part._ending is not None for part in parts)
        assert cluster.replaced == [], "they are the same ones"
        assert last(sink.values) == expected(feed.values) and len(sink.values) == 300

    virtually(20, main)


def test_a_worker_that_dies_while_the_job_is_deployed() -> None:
    async def main(clock: Clock) -> None:
        feed, sink = numbers(), ListSink[tuple[int, int]]()
        feed.end()
        cluster = MadeUpCluster(3, clock=clock)
        killed: list[int] = []

        def operator() -> Sum:
            if not killed:
                killed.append(1)
                asyncio.get_running_loop().call_soon(cluster.kill, 1)
            return Sum()

        jobs = Jobs(clock)
        async with jobs.started(sums(feed, sink, operator), cluster=cluster, restart=ONCE_MORE) as (job, _):
            await job.wait()
            assert job.restarts == 1 and isinstance(job.failures[0], WorkerLost)
        assert last(sink.values) == expected(feed.values)

    virtually(21, main)


def test_messages_of_an_attempt_that_is_over_change_nothing() -> None:
    """A storm that brings them late, and restarts without end."""

    async def main(clock: Clock) -> None:
        jobs, feed, sink = Jobs(clock), numbers(), ListSink[tuple[int, int]]()
        cluster = MadeUpCluster(3, clock=clock, weather=STORM)
        forever = sa.Restart.fixed(dt.timedelta(0), 100)
        async with jobs.started(
            sums(feed, sink), cluster=cluster, restart=forever, interval=dt.timedelta(seconds=0.2)
        ) as (
            job,
            _,
        ):
            for restarts in range(1, 6):
                await until(lambda: job.status == "running")
                feed.put(*range(10))
                cluster.kill(restarts % 3)
                await until(functools.partial(_restarted, job, restarts))
            feed.end()
            await job.wait()
        assert last(sink.values) == expected(feed.values) and len(sink.values) == 250

    virtually(14, main)


def test_a_checkpoint_that_is_given_up_leaves_nothing() -> None:
    """Its folder goes when no worker writes into it any more, however late the barrier comes there."""

    async def main(clock: Clock) -> None:
        jobs, feed = Jobs(clock), numbers()
        gate = asyncio.Event()
        flow = sa.Dataflow(FLOW)

        async def slowly(value: tuple[int, int]) -> tuple[int, int]:
            if value[1] > 3000:
                await gate.wait()
            return value

        summed = flow.source("numbers", feed, parallelism=2).key_by(by_rest).process("sums", Sum, parallelism=2)
        summed.map(slowly, chain=False).sink("out", ListSink(), parallelism=2)
        timeout = dt.timedelta(seconds=5)
        async with jobs.started(flow, 2, timeout=timeout, tolerable_failures=5) as (job, _):
            await until(lambda: _processed(job) >= 200)
            feed.put(*range(10000, 10014))
            with pytest.raises(CheckpointFailed, match="given up"):
                await job.checkpoint()
            await clock.sleep(1)
            assert [name for name in jobs.names(f"{STORAGE}/{FLOW}/run-1/attempt-1") if name != "widest"] == []
            gate.set()
            info = await job.checkpoint()
            assert info.id == 2
            left = jobs.names(f"{STORAGE}/{FLOW}/run-1/attempt-1/chk-1") if _there(jobs, "chk-1") else []
            assert left == []

    virtually(15, main)


def _there(jobs: Jobs, checkpoint: str) -> bool:
    return jobs.disk.find(f"{STORAGE}/{FLOW}/run-1/attempt-1/{checkpoint}") is not None


@pytest.mark.parametrize("strategy", ["spread", "pack"])
def test_resources_come_with_the_plan(strategy: Any) -> None:
    class Scaled(sa.KeyedOperator[int, int, int]):
        async def open(self, ctx: sa.OperatorContext) -> None:
            self.factor = ctx.resources["factor"]

        def process(self, value: int, ctx: sa.Context[int, int]) -> None:
            ctx.emit(value * self.factor)

    async def main(clock: Clock) -> None:
        feed, sink = numbers(20), ListSink[int]()
        feed.end()
        flow = sa.Dataflow(FLOW)
        flow.source("numbers", feed).key_by(by_rest).process("scaled", Scaled, parallelism=3).sink("out", sink)
        cluster = MadeUpCluster(2, clock=clock, strategy=strategy)
        async with Jobs(clock).started(flow, cluster=cluster, resources={"factor": 3}) as (job, _):
            await job.wait()
        assert sorted(sink.values) == [3 * value for value in range(20)]

    virtually(16, main)


def test_a_job_without_checkpoints_needs_no_storage() -> None:
    async def main(clock: Clock) -> None:
        feed, sink = numbers(), ListSink[tuple[int, int]]()
        feed.end()
        cluster = MadeUpCluster(2, clock=clock)
        graph = sums(feed, sink).graph()
        job = job_here(graph, sa.Config(), restore="latest", fresh=False, resources=None, clock=clock)
        job._deploy = cluster
        await job.run()
        await cluster.close()
        assert last(sink.values) == expected(feed.values)

    virtually(17, main)


# ------------------------------------------------------------------------------------------------------------ alignment
def test_aligned_sources_of_two_workers_wait_for_each_other() -> None:
    """The one's split is far ahead of the other's, which gets its records only by and by."""

    async def main(clock: Clock) -> None:
        feed, sink, flow = Feed(splits=2), ListSink[int](), sa.Dataflow(FLOW)
        marks = sa.Watermarks.monotonic(lambda value: value, align=dt.timedelta(milliseconds=100))
        given: list[int] = []

        def note(value: int) -> int:
            if value % 10:
                given.append(value)
            return value

        noted = flow.source("both", feed, watermarks=marks, parallelism=2).map(note, parallelism=2)
        noted.rebalance().sink("out", sink)
        feed.put(0, split=0)
        async with Jobs(clock).started(flow, 2) as (job, cluster):
            placement = cluster.attempts[0].placement
            assert {placement.worker_of(SubtaskId("both", index)) for index in range(2)} == {0, 1}
            await clock.sleep(1)  # the fast one has been told of the slow one
            feed.put(*range(1, 100_000, 10), split=1)
            for reached in range(2000, 20_000, 2000):
                feed.put(reached, split=0)
                await until(functools.partial(_beyond, given, reached))
                assert given[-1] <= reached + 100 + 2 * 64 * 10, "no further than what was in hand"
            feed.put(100_000, split=0)
            feed.end()
            await job.wait()
        assert len(sink.values) == 10_011

    virtually(18, main)


def _beyond(given: list[int], reached: int) -> bool:
    return bool(given) and given[-1] > reached
