"""What must not keep a job over several workers from going on, or from telling the truth about its end."""

import asyncio
import datetime as dt
import decimal
import logging
import threading
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from connectors.memory import ListSink, ListSource
from streamactors.checkpoint.storage.local import LocalFiles
from streamactors.clock import SYSTEM, Clock
from streamactors.cluster.part import Part
from streamactors.cluster.wire import COORDINATOR, header_of
from streamactors.cluster.worker import Assignment
from streamactors.cluster.workers import Times
from streamactors.errors import ConnectionLost, IncompatibleState, JobFailed, RecordFailed, UnserialisableValue
from streamactors.sinks import SinkContext, SinkWriter
from streamactors.state.serialisation.serializers import AnySerializer
from streamactors.submission import job_here
from streamactors.testing.simulation.disk import VolatileDisk
from tests.cluster.jobs import FLOW, Jobs, Sum, by_rest, expected, last, sums
from tests.cluster.made_up import MadeUpCluster
from tests.cluster.virtual import virtually
from tests.runtime.feeds import Feed, until


def numbers(count: int = 200) -> Feed:
    feed = Feed(splits=2)
    for split in range(2):
        feed.put(*range(split, count, 2), split=split)
    return feed


def _records_in(job: sa.JobHandle, step: str) -> int:
    nodes = [node for each in job.metrics()["subtasks"].values() for node in each["nodes"].items()]
    return sum(node["records_in"] for uid, node in nodes if uid == step)


@pytest.mark.parametrize("gauge", [2**70, decimal.Decimal("1.5"), "many", None], ids=repr)
def test_a_gauge_of_whatever_kind_costs_no_worker_its_life(gauge: Any) -> None:
    class Measured(Sum):
        async def open(self, ctx: sa.OperatorContext) -> None:
            ctx.metrics.gauge("odd", lambda: gauge)

    async def main(clock: Clock) -> None:
        feed, sink = numbers(), ListSink[tuple[int, int]]()
        async with Jobs(clock).started(sums(feed, sink, Measured), 2) as (job, _):
            await until(lambda: job.metrics()["subtasks"])
            await clock.sleep(30)
            assert job.restarts == 0 and job.status == "running"
            told = next(each for id, each in job.metrics()["subtasks"].items() if id.startswith("sums"))
            value = told["nodes"]["sums"]["odd"]
            assert isinstance(value, float), value
            feed.end()
            await job.wait()
        assert last(sink.values) == expected(feed.values)

    virtually(0, main)


class Unreadable(Sum):
    def process(self, value: int, ctx: sa.Context[int, tuple[int, int]]) -> None:
        if value == 150:
            raise LookupError("no customer \ud800")
        super().process(value, ctx)


def test_an_error_whose_text_is_no_unicode_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("streamactors"), "propagate", False)  # pytest-xdist can't send such text

    async def main(clock: Clock) -> None:
        with pytest.raises(JobFailed) as failed:
            async with Jobs(clock).started(sums(numbers(), ListSink(), Unreadable), 2) as (job, _):
                await job.wait()
        record = failed.value.__cause__
        assert isinstance(record, RecordFailed), record
        assert isinstance(record.__cause__, LookupError)
        assert clock.monotonic() < 5

    virtually(1, main)


class AnotherVersion(AnySerializer):
    """As where a class has other fields than in the workers."""

    def decode(self, data: bytes) -> Any:
        raise IncompatibleState("another version")

    def decode_many(self, data: bytes) -> list[Any]:
        raise IncompatibleState("another version")


def test_what_who_looks_on_can_not_read_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def main(clock: Clock) -> None:
        feed, sink = Feed(splits=2), ListSink[tuple[int, int]]()
        async with Jobs(clock).started(sums(feed, sink), 2) as (job, cluster), job.subscribe("sums") as seen:
            cluster.attempts[0]._onlookers._values = AnotherVersion()
            feed.put(*range(10))
            await until(lambda: _records_in(job, "out") == 10)
            with pytest.raises(IncompatibleState, match="another version"):
                await job.query("sums", "total", 1)
            feed.end()
            await job.wait()
            assert job.restarts == 0
            assert [value async for value in seen] == []
        assert last(sink.values) == expected(feed.values)

    virtually(2, main)
    assert caplog.text.count("can't be looked at") == 1


class Kept(sa.KeyedOperator[int, int, int]):
    kept = sa.ValueState(Any, default=None)

    def process(self, value: int, ctx: sa.Context[int, int]) -> None:
        unstorable: Any = object()
        self.kept.set(unstorable)
        ctx.emit(value)


def test_state_that_can_not_be_told_costs_a_query_and_not_the_job() -> None:
    async def main(clock: Clock) -> None:
        feed, flow, sink = Feed(splits=1), sa.Dataflow(FLOW), ListSink[int]()
        flow.source("numbers", feed).key_by(by_rest).process("keeps", Kept).sink("out", sink)
        async with Jobs(clock).started(flow, 1) as (job, _):
            feed.put(*range(10))
            await until(lambda: _records_in(job, "out") == 10)
            with pytest.raises(UnserialisableValue):
                await job.query("keeps", "kept", 1)
            assert job.status == "running" and job.restarts == 0

    virtually(3, main)


async def _without_checkpoints(flow: sa.Dataflow, cluster: MadeUpCluster, clock: Clock) -> None:
    job = job_here(flow.graph(), sa.Config(), restore="latest", fresh=False, resources=None, clock=clock)
    job._deploy = cluster
    await job.run()


def test_without_checkpoints_too_a_successor_s_messages_are_told_from_its_predecessor_s() -> None:
    """No run is counted there; and its workers still hold their part of the predecessor's first attempt."""

    async def main(clock: Clock) -> None:
        cluster = MadeUpCluster(2, clock=clock, times=Times(patience=0.5))
        endless, feed, sink = numbers(), numbers(), ListSink[tuple[int, int]]()
        first = asyncio.create_task(_without_checkpoints(sums(endless, ListSink()), cluster, clock))
        await clock.sleep(3)
        cluster.succeed()
        first.cancel()
        await asyncio.wait([first])
        parts = [worker._assignment for worker in cluster.workers.values()]
        assert all(part is not None and part._ending is None for part in parts)
        feed.end()
        async with asyncio.timeout(60):
            await _without_checkpoints(sums(feed, sink), cluster, clock)
        await cluster.close()
        assert last(sink.values) == expected(feed.values)

    virtually(4, main)


class Mortal(MadeUpCluster):
    """A worker dies once while the others are started."""

    died = False

    async def ready(self, replace: Collection[int]) -> Collection[int]:
        living = await super().ready(replace)
        if replace and not self.died:
            self.died = True
            self.kill(1)
        return living


def test_a_replacement_that_dies_while_others_are_started_is_replaced_too() -> None:
    async def main(clock: Clock) -> None:
        feed, sink = numbers(), ListSink[tuple[int, int]]()
        cluster = Mortal(2, clock=clock, silent=True)
        twice = sa.Restart.fixed(dt.timedelta(0), 2)
        async with Jobs(clock).started(sums(feed, sink), cluster=cluster, restart=twice) as (job, _):
            await until(lambda: job.metrics()["subtasks"])
            before = clock.monotonic()
            cluster.kill(1)
            await until(lambda: job.restarts == 2 and job.status == "running")
            assert clock.monotonic() - before < 5, "nobody waits for one that is known to be dead"
            feed.end()
            await job.wait()
        assert cluster.replaced == [1, 1]
        assert last(sink.values) == expected(feed.values)

    virtually(5, main)


def test_opening_may_take_longer_than_a_worker_may_be_silent_later() -> None:
    """Such as where it loads a model, and holds its process meanwhile."""

    async def main(clock: Clock) -> None:
        cluster = MadeUpCluster(2, clock=clock, times=Times(lost_after=10, starting=60))
        silent: list[float] = []

        class Loading(Sum):
            async def open(self, ctx: sa.OperatorContext) -> None:
                if not silent:
                    silent.append(25)
                    cluster.network.cut(-1, 1)
                    await clock.sleep(silent[0])
                    cluster.network.heal()

        feed, sink = numbers(), ListSink[tuple[int, int]]()
        once_more = sa.Restart.fixed(dt.timedelta(0), 1)
        async with Jobs(clock).started(sums(feed, sink, Loading), cluster=cluster, restart=once_more) as (job, _):
            assert clock.monotonic() >= 25 and job.restarts == 0
            cluster.network.cut(-1, 1)
            cut = clock.monotonic()
            await until(lambda: job.restarts == 1)
            assert clock.monotonic() - cut < 15, "once it runs, it is missed sooner"
            cluster.network.heal()
            feed.end()
            await job.wait()
        assert last(sink.values) == expected(feed.values)

    virtually(6, main)


@pytest.mark.parametrize("dead", [True, False])
def test_who_may_live_on_has_given_itself_up_before_the_next_attempt(dead: bool) -> None:
    """What it opens then, such as transactions, would fence its successor's."""

    async def main(clock: Clock) -> None:
        cluster, feed, sink = MadeUpCluster(2, clock=clock, zombies=True), numbers(), ListSink[tuple[int, int]]()
        once_more = sa.Restart.fixed(dt.timedelta(0), 1)
        async with Jobs(clock).started(sums(feed, sink), cluster=cluster, restart=once_more) as (job, _):
            await until(lambda: _records_in(job, "out") == 200)
            zombie, lost = cluster.workers[1]._assignment, clock.monotonic()
            assert zombie is not None
            cluster.deployment.worker_lost(1, "its node is gone", dead=dead)
            await until(lambda: len(cluster.attempts) == 2)
            took, ended = clock.monotonic() - lost, zombie._ending is not None
            assert (took < 1 and not ended) if dead else (10 < took < 15 and ended), (took, ended)
            feed.end()
            await job.wait()
        assert last(sink.values) == expected(feed.values)

    virtually(13, main)


class _Opening(Sum):
    opened: Callable[[int], Awaitable[None]]
    """Is told the subtask."""

    async def open(self, ctx: sa.OperatorContext) -> None:
        await type(self).opened(ctx.subtask)


def test_who_is_cut_off_while_it_starts_has_given_itself_up_before_the_next_attempt() -> None:
    """Until then it is as patient as a start may take."""

    async def main(clock: Clock) -> None:
        cluster = MadeUpCluster(2, clock=clock, zombies=True, known=True, times=Times(starting=60.0))
        feed, sink, zombies = numbers(), ListSink[tuple[int, int]](), list[Assignment]()

        async def opened(subtask: int) -> None:
            """At the first start, one part fails when the other, which takes long, is cut off."""
            if zombies:
                with pytest.raises(ConnectionLost):
                    zombies[0]._check_alive()
            elif subtask == 1:
                await clock.sleep(40)
            else:
                await clock.sleep(1)
                assert cluster.workers[1]._assignment is not None
                zombies.append(cluster.workers[1]._assignment)
                cluster.network.detach(1)
                cluster._cords[1].cut = True
                raise RuntimeError("not yet")

        _Opening.opened = opened
        once_more = sa.Restart.fixed(dt.timedelta(0), 1)
        async with Jobs(clock).started(sums(feed, sink, _Opening), cluster=cluster, restart=once_more) as (job, _):
            feed.end()
            await job.wait()
        assert clock.monotonic() > 61
        assert last(sink.values) == expected(feed.values)

    virtually(15, main)


def test_what_was_on_its_way_while_it_stood_still_is_no_sign_of_life() -> None:
    async def main(clock: Clock) -> None:
        cluster, feed, sink = MadeUpCluster(2, clock=clock), numbers(), ListSink[tuple[int, int]]()
        once_more = sa.Restart.fixed(dt.timedelta(0), 1)
        async with Jobs(clock).started(sums(feed, sink), cluster=cluster, restart=once_more) as (job, _):
            await until(lambda: _records_in(job, "out") == 200)
            stood = cluster.workers[1]._assignment
            assert stood is not None
            told: list[bytes] = []

            def received(peer: int, message: bytes) -> None:
                cluster.workers[1].received(peer, message)
                if peer == COORDINATOR:
                    told.append(message)

            cluster.network.attach(1, received)
            await until(lambda: told)
            stood._watch._heard[COORDINATOR] -= 60.0
            stood._watch._looked -= 60.0
            stood.received(COORDINATOR, header_of(told[-1]), told[-1])
            with pytest.raises(ConnectionLost, match="another process may have taken its place"):
                stood._check_alive()
            await until(lambda: job.restarts == 1 and job.status == "running")
            feed.end()
            await job.wait()
        assert last(sink.values) == expected(feed.values)

    virtually(16, main)


class _Remembering(ListSink[Any]):
    def __init__(self) -> None:
        super().__init__()
        self.contexts: list[SinkContext] = []

    def writer(self, ctx: SinkContext) -> SinkWriter[Any]:
        self.contexts.append(ctx)
        return super().writer(ctx)


def test_a_sink_can_ask_whether_another_process_may_have_taken_its_place() -> None:
    """As where this one goes on after it has stood still, and has not looked how late it is."""

    async def main(clock: Clock) -> None:
        cluster, feed, sink = MadeUpCluster(2, clock=clock), numbers(), _Remembering()
        once_more = sa.Restart.fixed(dt.timedelta(0), 1)
        async with Jobs(clock).started(sums(feed, sink), cluster=cluster, restart=once_more) as (job, _):
            await until(lambda: _records_in(job, "out") == 200)
            assignment = cluster.workers[1]._assignment
            assert assignment is not None and len(sink.contexts) == 2
            for each in sink.contexts:
                each.check_alive()
            [of_its_sink] = [each for each in sink.contexts if each.check_alive == assignment._check_alive]
            assignment._watch._heard[-1] -= 11.0
            with pytest.raises(ConnectionLost, match="another process may have taken its place"):
                of_its_sink.check_alive()
            await until(lambda: len(sink.contexts) == 4)
            with pytest.raises(ConnectionLost):
                of_its_sink.check_alive()
            for each in sink.contexts[2:]:
                each.check_alive()
            feed.end()
            await job.wait()
        assert last(sink.values) == expected(feed.values)

    virtually(14, main)


class Unshipping(MadeUpCluster):
    """Notes which threads make objects of what was shipped."""

    def __init__(self, count: int) -> None:
        super().__init__(count, times=Times(lost_after=120.0, patience=120.0))
        self.threads: set[int] = set()

    def unship(self, data: bytes) -> Any:
        self.threads.add(threading.get_ident())
        return super().unship(data)


async def test_modules_are_imported_beside_the_loop() -> None:
    """That may take longer than a worker may be silent."""
    cluster, feed, sink = Unshipping(2), numbers(), ListSink[tuple[int, int]]()
    feed.end()
    await _without_checkpoints(sums(feed, sink), cluster, SYSTEM)
    await cluster.close()
    assert cluster.threads and threading.get_ident() not in cluster.threads
    assert last(sink.values) == expected(feed.values)


def test_a_worker_that_reaches_another_storage_is_refused_by_name() -> None:
    """Such as a folder on the disk of its own node."""

    async def main(clock: Clock) -> None:
        jobs, feed = Jobs(clock), numbers()
        elsewhere = LocalFiles("/checkpoints", clock=clock, disk=VolatileDisk())
        cluster = MadeUpCluster(2, clock=clock, files=elsewhere)
        forever = sa.Restart.fixed(dt.timedelta(seconds=1), 100)
        with pytest.raises(
            JobFailed, match=r"worker [01] does not find .* in file:///checkpoints/over-workers: each node"
        ):
            async with jobs.started(sums(feed, ListSink()), cluster=cluster, restart=forever):
                raise AssertionError("it runs")
        assert feed.opened == 0

    virtually(7, main)


def test_a_part_that_never_ran_leaves_nothing_on_the_disk(tmp_path: Path) -> None:
    """Its state was opened when it was put together, and another worker was not ready in time."""

    async def main(clock: Clock) -> None:
        cluster = MadeUpCluster(2, clock=clock)
        cluster.network.cut(-1, 1)
        graph, config = sums(numbers(), ListSink()).graph(), sa.Config(state_backend=sa.RocksDB(folder=str(tmp_path)))
        job = job_here(graph, config, restore="latest", fresh=False, resources=None, clock=clock)
        job._deploy = cluster
        running = asyncio.create_task(job.run())
        await until(lambda: list(tmp_path.iterdir()))
        with pytest.raises(JobFailed, match="worker 1 of 'over-workers' is lost"):
            await running
        assert list(tmp_path.iterdir()) == []
        await cluster.close()

    virtually(11, main)


def test_a_part_that_does_not_end_in_peace_leaves_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Part.close

    async def close(part: Part) -> None:
        await original(part)
        raise OSError("the storage hangs up")

    monkeypatch.setattr(Part, "close", close)

    async def main(clock: Clock) -> None:
        feed, sink = Feed(splits=2), ListSink[tuple[int, int]]()
        async with Jobs(clock).started(sums(feed, sink), 2) as (job, _), job.subscribe("sums"):
            feed.put(*range(10))
            await until(lambda: _records_in(job, "out") == 10)
            feed.end()
            await job.wait()
        assert last(sink.values) == expected(feed.values)

    virtually(12, main)


def _leaving() -> Sum:
    raise SystemExit("no more")


def test_a_worker_s_exit_is_no_exit_of_the_coordinator() -> None:
    async def main(clock: Clock) -> None:
        with pytest.raises(JobFailed, match="no more") as failed:
            async with Jobs(clock).started(sums(numbers(), ListSink(), _leaving), 2):
                raise AssertionError("it runs")
        assert type(failed.value.__cause__).__name__ == "SystemExit"

    virtually(8, main)


def test_a_worker_that_has_given_up_says_so_when_it_can() -> None:
    """Nobody waits for its signs of life once more."""

    async def main(clock: Clock) -> None:
        cluster, feed, sink = MadeUpCluster(2, clock=clock), numbers(), ListSink[tuple[int, int]]()
        once_more = sa.Restart.fixed(dt.timedelta(0), 1)
        async with Jobs(clock).started(sums(feed, sink), cluster=cluster, restart=once_more) as (job, _):
            await until(lambda: _records_in(job, "out") == 200)
            [attempt] = cluster.attempts
            attempt._watch.lost_after = attempt._delivery.give_up = 1000.0  # as where it was paused itself
            cluster.network.cut(-1, 1)
            assignment = cluster.workers[1]._assignment
            assert assignment is not None
            await until(lambda: assignment._ending is not None)
            cluster.network.heal()
            healed = clock.monotonic()
            await until(lambda: job.restarts == 1)
            assert clock.monotonic() - healed < 5
            assert "it has given up its part" in str(job.failures[-1])
            feed.end()
            await job.wait()
        assert last(sink.values) == expected(feed.values)

    virtually(9, main)


def test_what_dies_when_a_batch_job_has_committed_changes_nothing() -> None:
    """It must not run again: its output would be there twice."""

    async def main(clock: Clock) -> None:
        closing = asyncio.Event()

        class Slow(Sum):
            async def close(self) -> None:
                closing.set()
                await clock.sleep(5)

        sink, cluster = ListSink[tuple[int, int]](), MadeUpCluster(2, clock=clock)
        flow, often = sa.Dataflow(FLOW), sa.Restart.fixed(dt.timedelta(0), 3)
        summed = flow.source("numbers", ListSource(range(200))).key_by(by_rest).process("sums", Slow, parallelism=2)
        summed.rebalance().sink("out", sink, parallelism=2)
        config = sa.Config(execution="batch", restart=often)
        job = job_here(flow.graph(), config, restore="latest", fresh=False, resources=None, clock=clock)
        job._deploy = cluster
        running = asyncio.create_task(job.run())
        await closing.wait()
        assert len(sink.values) == 200
        cluster.kill(1)
        await running
        await cluster.close()
        assert job.restarts == 0 and len(sink.values) == 200

    virtually(10, main)
