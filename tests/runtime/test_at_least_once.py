"""At-least-once checkpoints of whole jobs: what comes on one input behind its barrier, while another's is still to
come, is in the snapshot, and comes again after a crash. Where every step has one input, nothing comes twice."""

import asyncio
import datetime as dt
from pathlib import Path
from typing import Any

import streamactors as sa
from connectors.memory import ListSink
from tests.runtime.feeds import PATIENCE, Feed, until


class Count(sa.KeyedOperator[str, str, tuple[str, int]]):
    count = sa.ValueState(int, default=0)

    def process(self, value: str, ctx: sa.Context[str, tuple[str, int]]) -> None:
        self.count.set(self.count.get() + 1)
        ctx.emit((value, self.count.get()))


class Gate:
    """Holds every record while it is shut."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.held = 0

    async def __call__(self, value: str) -> str:
        self.held += 1
        await self.opened.wait()
        return value


def config(folder: Path) -> sa.Config:
    checkpoints = sa.Checkpoints(folder.as_uri(), interval=dt.timedelta(hours=1), mode="at-least-once")
    return sa.Config(checkpoints=checkpoints)


def taken_by(job: sa.JobHandle, subtask: str) -> Any:
    """Whether it has taken its snapshot."""
    return job.metrics()["subtasks"][subtask]["snapshot_seconds"]


def two_inputs(left: Feed, right: Feed, gate: Gate, sink: ListSink[Any]) -> sa.Dataflow:
    flow = sa.Dataflow("two-inputs")
    slow = flow.source("right", right).map(gate)
    flow.source("left", left).union(slow).key_by(lambda value: value).process("count", Count).sink("out", sink)
    return flow


async def test_a_step_with_two_inputs_counts_some_records_twice(tmp_path: Path) -> None:
    left, right, gate = Feed(), Feed(), Gate()
    left.put(*["left"] * 10)
    right.put("right")
    async with sa.start(two_inputs(left, right, gate, ListSink[Any]()), config(tmp_path), on_exit="cancel") as job:
        await until(lambda: gate.held)
        asked = asyncio.create_task(job.checkpoint())
        await until(lambda: taken_by(job, "left[0]"))
        left.put(*["left"] * 5)  # behind the barrier of its channel; the other channel's is still to come
        async with asyncio.timeout(PATIENCE):
            while await job.query("count", Count.count, "left") < 15:
                await asyncio.sleep(0)
            gate.opened.set()
            await asked
    left.end()
    right.end()
    sink = ListSink[Any]()
    await sa.run(two_inputs(left, right, gate, sink), config(tmp_path))
    assert max(count for value, count in sink.values if value == "left") == 15 + 5


def one_input(feed: Feed, gate: Gate, sink: ListSink[Any]) -> sa.Dataflow:
    flow = sa.Dataflow("one-input")
    kept = flow.source("numbers", feed).map(lambda value: value, chain=False).map(gate, chain=False)
    kept.filter(lambda value: value != "no", chain=False).key_by(lambda value: value).process("count", Count).sink(
        "out", sink
    )
    return flow


async def test_steps_with_one_input_each_count_every_record_once(tmp_path: Path) -> None:
    feed, gate = Feed(), Gate()
    feed.put(*["yes", "no"] * 10)
    async with sa.start(one_input(feed, gate, ListSink[Any]()), config(tmp_path), on_exit="cancel") as job:
        await until(lambda: gate.held)
        asked = asyncio.create_task(job.checkpoint())
        await until(lambda: taken_by(job, "numbers[0]"))
        feed.put(*["yes", "no"] * 5)
        gate.opened.set()
        async with asyncio.timeout(PATIENCE):
            await asked
            while await job.query("count", Count.count, "yes") < 15:
                await asyncio.sleep(0)
    feed.end()
    sink = ListSink[Any]()
    await sa.run(one_input(feed, gate, sink), config(tmp_path))
    assert [count for _, count in sink.values] == list(range(11, 16))
