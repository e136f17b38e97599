"""Subtasks in this process: what their metrics tell, and that a shut-down leaves nothing that could still act."""

import asyncio
import datetime as dt
from pathlib import Path
from typing import Any

import streamactors as sa
from connectors.memory import ListSink
from tests.runtime.feeds import Feed, until


class Last(sa.KeyedOperator[int, int, int]):
    value = sa.ValueState(int, default=0)

    def process(self, value: int, ctx: sa.Context[int, int]) -> None:
        self.value.set(value)
        ctx.emit(value)


async def test_metrics_count_records_state_and_what_is_held(tmp_path: Path) -> None:
    feed = Feed()
    flow = sa.Dataflow("job")
    flow.source("numbers", feed).key_by(lambda v: v % 4).process("last", Last, parallelism=2).sink("out", ListSink())
    checkpoints = sa.Checkpoints(tmp_path.as_uri(), interval=dt.timedelta(hours=1))
    async with sa.start(flow, sa.Config(mailbox_capacity=64, checkpoints=checkpoints)) as job:
        feed.put(*range(100))
        await until(lambda: sum(s["nodes"]["last"]["records_in"] for n, s in subtasks(job) if n[:4] == "last") == 100)
        await job.checkpoint()
        metrics = dict(subtasks(job))
        assert metrics.keys() >= {"numbers[0]", "last[0]", "last[1]"}
        assert metrics["numbers[0]"]["nodes"]["numbers"]["records_out"] == 100
        nodes = [metrics[f"last[{index}]"]["nodes"]["last"] for index in range(2)]
        assert sum(node["records_out"] for node in nodes) == 100
        assert sum(sum(node["entries"].values()) for node in nodes) == 4
        for subtask in metrics.values():
            assert subtask["queued"] == subtask["unsent"] == 0 and subtask["blocked"] == []
            assert subtask["snapshot_seconds"] >= 0
        assert metrics["last[0]"]["capacity"] == 64


def subtasks(job: sa.JobHandle) -> list[tuple[str, Any]]:
    return list(job.metrics()["subtasks"].items())


async def test_a_drain_that_swallowed_its_cancellation_sends_nothing_more() -> None:
    entered, refused = asyncio.Event(), asyncio.Event()
    written: list[int] = []

    class Stubborn(sa.Operator[int, int]):
        async def process(self, value: int, ctx: sa.Context[None, int]) -> None:
            entered.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ctx.emit(value)
                try:
                    await ctx.drain()
                except asyncio.CancelledError:
                    refused.set()
                    raise

    def write(value: int) -> int:
        written.append(value)
        return value

    feed = Feed()
    flow = sa.Dataflow("job")
    flow.source("numbers", feed).process("stubborn", Stubborn).map(write).sink("out", ListSink())
    async with sa.start(flow, on_exit="cancel"):
        feed.put(1)
        await entered.wait()
    assert refused.is_set() and written == []
