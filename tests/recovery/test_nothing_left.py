"""However a job ends (finished, failed, cancelled, stopped), with whatever connector: no task, no thread that was not
there, no open file and no socket is left of it, on the very loop that goes on."""

import asyncio
import datetime as dt
import threading
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


def poisoned(event: Event) -> str:
    if event.amount == POISON:
        raise ValueError("thirteen")
    return event.key


class Holding(sa.KeyedOperator[str, Event, Sum]):
    """Makes a bounded list endless: it never gets done with an event of a negative amount."""

    total = sa.ValueState(int, default=0)

    async def process(self, event: Event, ctx: sa.Context[str, Sum], /) -> None:
        self.total.set(self.total.get() + event.amount)
        ctx.emit(Sum(event.key, self.total.get()))
        if event.amount < 0:
            await asyncio.Event().wait()


class Flows:
    """Flows on one kind of connector."""

    def __init__(self, kind: str, folder: Path, kafka: KafkaBroker | None) -> None:
        self.kind = kind
        self.folder = folder
        self.kafka = kafka

    async def flow(self, amounts: list[int], *, endless: bool) -> sa.Dataflow:
        """Sums those amounts; an endless one then waits for more."""
        if self.kind == "memory":
            held = [Event("held", -1)] if endless else []
            source: Any = ListSource([*(Event("a", amount) for amount in amounts), *held])
            return sums(source, ListSink[Sum](), key=poisoned, operator=Holding)
        if self.kind == "files":
            log = EventLog(self.folder / "events.jsonl")
            log.add(*(("a", amount) for amount in amounts))
            return sums(log.source(follow=endless), part_files(self.folder / "out"), key=poisoned)
        assert self.kafka is not None
        topics = Topics(self.kafka)
        source_topic, sink_topic = await topics.new("in", partitions=2), await topics.new("out")
        await produce(self.kafka.bootstrap, source_topic, *(b'{"key":"a","amount":%d}' % amount for amount in amounts))
        source = KafkaSource(self.kafka.bootstrap, source_topic, value=sa.Json(Event), bounded=not endless)
        sink = KafkaSink(self.kafka.bootstrap, sink_topic, value=sa.Json(Sum), transactional_id_prefix=sink_topic)
        return sums(source, sink, key=poisoned)


@pytest.fixture(params=["memory", "files", pytest.param("kafka", marks=pytest.mark.kafka)])
def flows(request: pytest.FixtureRequest, tmp_path: Path) -> Flows:
    kafka = request.getfixturevalue("kafka") if request.param == "kafka" else None
    return Flows(request.param, tmp_path, kafka)


@pytest.fixture(params=["checkpoints", "none"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> sa.Config:
    if request.param == "none":
        return sa.Config()
    return config(tmp_path / "storage", interval=dt.timedelta(milliseconds=20))


class Before:
    """What the process held before the job; threads of the loop's pool stay with the loop."""

    def __init__(self) -> None:
        self._tasks = asyncio.all_tasks()
        self._threads = set(threading.enumerate())
        self._files = open_files()

    def left(self) -> list[str]:
        pool = getattr(asyncio.get_running_loop(), "_default_executor", None)
        pooled = getattr(pool, "_threads", set())
        threads = set(threading.enumerate()) - self._threads - pooled
        return [
            *(repr(task) for task in asyncio.all_tasks() - self._tasks),
            *(thread.name for thread in threads),
            *(open_files() - self._files).elements(),
        ]

    async def assert_nothing_left(self) -> None:
        """At once; only that the transports of closed sockets close takes the loop a turn."""
        for _ in range(3):
            await asyncio.sleep(0)
        assert self.left() == []


async def test_finished(flows: Flows, settings: sa.Config) -> None:
    flow = await flows.flow([1, 2, 3], endless=False)
    before = Before()
    await sa.run(flow, settings)
    await before.assert_nothing_left()


async def test_failed(flows: Flows, settings: sa.Config) -> None:
    flow = await flows.flow([1, 2, POISON, 3], endless=False)
    before = Before()
    with pytest.raises(sa.JobFailed, match="thirteen"):
        await sa.run(flow, settings)
    await before.assert_nothing_left()


async def test_failed_after_restarts(flows: Flows, tmp_path: Path) -> None:
    flow = await flows.flow([1, 2, POISON, 3], endless=True)
    before = Before()
    restart = sa.Restart.fixed(dt.timedelta(milliseconds=1), 3)
    with pytest.raises(sa.JobFailed, match="thirteen"):
        await sa.run(flow, config(tmp_path / "storage", restart=restart))
    await before.assert_nothing_left()


async def test_cancelled(flows: Flows, settings: sa.Config) -> None:
    flow = await flows.flow([1, 2, 3], endless=True)
    before = Before()
    async with sa.start(flow, settings, on_exit="cancel") as job:
        await reached(job)
        await job.cancel()
        assert job.status == "cancelled"
    await before.assert_nothing_left()


async def test_the_task_that_runs_it_is_cancelled(flows: Flows, settings: sa.Config) -> None:
    flow = await flows.flow([1, 2, 3], endless=True)
    before = Before()
    for turns in (0, 1, 5, 50, 500):
        running = asyncio.ensure_future(sa.run(flow, settings))
        for _ in range(turns):
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    await before.assert_nothing_left()


async def test_stopped(flows: Flows, settings: sa.Config) -> None:
    if flows.kind == "memory":
        flow = await flows.flow([1, 2, 3] * 1000, endless=False)
    else:
        flow = await flows.flow([1, 2, 3], endless=True)
    before = Before()
    async with sa.start(flow, settings) as job:
        if flows.kind != "memory":
            await reached(job)
        await job.stop()
        assert job.status == "finished"
    await before.assert_nothing_left()


async def test_left_in_peace_and_by_an_exception(flows: Flows, settings: sa.Config) -> None:
    flow = await flows.flow([1, 2, 3], endless=flows.kind != "memory")
    before = Before()
    async with sa.start(flow, settings):
        pass
    with pytest.raises(KeyError):
        async with sa.start(flow, settings):
            raise KeyError("the host's own")
    await before.assert_nothing_left()


async def reached(job: sa.JobHandle) -> None:
    """The three events have been processed."""

    def taken() -> int:
        subtasks = job.metrics()["subtasks"].values()
        return sum(
            node["records_in"] for subtask in subtasks for uid, node in subtask["nodes"].items() if uid == "sums"
        )

    await until(lambda: taken() >= 3)
