"""However a job ends (finished, failed, cancelled, stopped), with whatever connector: no task, no thread that was not
there, no open file and no socket is left of it, on the very loop that goes on."""

import asyncio
import datetime as dt
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from connectors.kafka import KafkaSink, KafkaSource
from connectors.memory import ListSink, ListSource
from streamactors.testing import KafkaBroker
from tests.connectors.kafka.driving import produce
from tests.kafka_topics import Topics
from tests.leaks import open_files
from tests.recovery.flows import Event, EventLog, Sum, config, part_files, sums, until

POISON = 13
HELD = -1


class Holding(sa.KeyedOperator[str, Event, Sum]):
    """Makes a bounded list endless: it never gets done with one event."""

    total = sa.ValueState(int, default=0)

    async def process(self, event: Event, ctx: sa.Context[str, Sum], /) -> None:
        self.total.set(self.total.get() + event.amount)
        ctx.emit(Sum(event.key, self.total.get()))
        if event.amount == HELD:
            await asyncio.Event().wait()


class Flows:
    """Makes flows on one kind of connector; `seen` are the amounts that have come so far."""

    ends_by_stopping = True
    """Whether an endless flow can be stopped: none can while a call of the user's does not return."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def key(self, event: Event) -> str:
        self.seen.append(event.amount)
        if event.amount == POISON:
            raise ValueError("thirteen")
        return event.key

    async def of(self, *amounts: int, endless: bool) -> sa.Dataflow:
        raise AssertionError("the kind of connector says how")


class MemoryFlows(Flows):
    ends_by_stopping = False

    async def of(self, *amounts: int, endless: bool) -> sa.Dataflow:
        events = [Event("a", amount) for amount in (*amounts, *([HELD] if endless else []))]
        return sums(ListSource(events), ListSink[Sum](), key=self.key, operator=Holding)


class FileFlows(Flows):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    async def of(self, *amounts: int, endless: bool) -> sa.Dataflow:
        log = EventLog(self._folder / "events.jsonl")
        log.add(*(("a", amount) for amount in amounts))
        return sums(log.source(follow=endless), part_files(self._folder / "out"), key=self.key)


class KafkaFlows(Flows):
    def __init__(self, kafka: KafkaBroker) -> None:
        super().__init__()
        self._brokers = kafka.bootstrap
        self._topics = Topics(kafka)

    async def of(self, *amounts: int, endless: bool) -> sa.Dataflow:
        events, totals = await self._topics.new("events", partitions=2), await self._topics.new("totals")
        await produce(self._brokers, events, *(b'{"key":"a","amount":%d}' % amount for amount in amounts))
        source = KafkaSource(self._brokers, events, value=sa.Json(Event), bounded=not endless)
        sink = KafkaSink(self._brokers, totals, value=sa.Json(Sum), transactional_id_prefix=totals)
        return sums(source, sink, key=self.key)


@pytest.fixture(params=["checkpoints", "none"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> sa.Config:
    if request.param == "none":
        return sa.Config()
    return config(tmp_path / "storage", interval=dt.timedelta(milliseconds=20))


class Before:
    """What there was before the job. The threads of the loop's own pool stay with the loop."""

    def __init__(self) -> None:
        self._tasks = asyncio.all_tasks()
        self._threads = set(threading.enumerate())
        self._files = open_files()

    async def assert_nothing_left(self) -> None:
        """At once: only what a closed transport still has to do on the loop's next turns is waited for."""
        for _ in range(3):
            await asyncio.sleep(0)
        assert self._left() == []

    def _left(self) -> list[str]:
        pool: Any = getattr(asyncio.get_running_loop(), "_default_executor", None)
        pooled: set[threading.Thread] = getattr(pool, "_threads", set())
        threads = set(threading.enumerate()) - self._threads - pooled
        tasks = asyncio.all_tasks() - self._tasks
        files = open_files() - self._files
        return [*map(repr, tasks), *(thread.name for thread in threads), *files.elements()]


class Endings:
    """For each kind of connector, which gives the fixture `flows`."""

    async def test_finished(self, flows: Flows, settings: sa.Config) -> None:
        flow = await flows.of(1, 2, 3, endless=False)
        before = Before()
        await sa.run(flow, settings)
        await before.assert_nothing_left()
        assert flows.seen == [1, 2, 3]

    async def test_failed(self, flows: Flows, settings: sa.Config) -> None:
        flow = await flows.of(1, 2, POISON, 3, endless=True)
        before = Before()
        with pytest.raises(sa.JobFailed, match="thirteen"):
            await sa.run(flow, settings)
        await before.assert_nothing_left()

    async def test_failed_after_restarts(self, flows: Flows, tmp_path: Path) -> None:
        flow = await flows.of(1, 2, POISON, 3, endless=True)
        before = Before()
        restart = sa.Restart.fixed(dt.timedelta(milliseconds=1), 3)
        with pytest.raises(sa.JobFailed, match="thirteen"):
            await sa.run(flow, config(tmp_path / "storage", restart=restart))
        await before.assert_nothing_left()
        assert flows.seen.count(POISON) == 4

    async def test_cancelled(self, flows: Flows, settings: sa.Config) -> None:
        flow = await flows.of(1, 2, 3, endless=True)
        before = Before()
        async with sa.start(flow, settings) as job:
            await until(lambda: len(flows.seen) >= 3)
            await job.cancel()
            assert job.status == "cancelled"
        await before.assert_nothing_left()

    async def test_cancelled_at_any_moment_of_its_start(self, flows: Flows, settings: sa.Config) -> None:
        flow = await flows.of(1, 2, 3, endless=True)
        before = Before()
        for turns in (0, 1, 2, 5, 10, 20, 50, 100, 200):
            running = asyncio.ensure_future(sa.run(flow, settings))
            await _turns(turns)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
        await before.assert_nothing_left()

    async def test_stopped(self, flows: Flows, settings: sa.Config) -> None:
        flow = await flows.of(1, 2, 3, endless=flows.ends_by_stopping)
        before = Before()
        async with sa.start(flow, settings) as job:
            await until(lambda: len(flows.seen) >= 3)
            await job.stop()
            assert job.status == "finished"
        await before.assert_nothing_left()

    async def test_left_in_peace(self, flows: Flows, settings: sa.Config) -> None:
        flow = await flows.of(1, 2, 3, endless=flows.ends_by_stopping)
        before = Before()
        async with sa.start(flow, settings) as job:
            pass
        assert job.status == "finished"
        await before.assert_nothing_left()

    async def test_left_by_an_exception(self, flows: Flows, settings: sa.Config) -> None:
        flow = await flows.of(1, 2, 3, endless=True)
        before = Before()
        with pytest.raises(KeyError):
            await _raise_beside(flow, settings)
        await before.assert_nothing_left()


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def _raise_beside(flow: sa.Dataflow, settings: sa.Config) -> None:
    async with sa.start(flow, settings):
        raise KeyError("the host's own")


class TestLocal(Endings):
    @pytest.fixture(params=[lambda _: MemoryFlows(), FileFlows], ids=["memory", "files"])
    def flows(self, request: pytest.FixtureRequest, tmp_path: Path) -> Flows:
        make: Callable[[Path], Flows] = request.param
        return make(tmp_path)


class TestKafka(Endings):
    @pytest.fixture
    def flows(self, kafka: KafkaBroker) -> Flows:
        return KafkaFlows(kafka)
