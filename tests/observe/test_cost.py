"""What looking on costs a job of five hundred subtasks: by bytes and by calls, which do not depend on the machine."""

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import msgspec
import pytest

import streamactors as sa
from connectors.memory import ListSink
from streamactors.clock import SYSTEM
from streamactors.observe import model
from streamactors.observe.events import EVERY, Ticker
from streamactors.observe.registry import Entry
from streamactors.observe.views import JobView
from tests.runtime.feeds import Feed, until

pytestmark = pytest.mark.slow

FEW, MANY = 50, 500
BYTES_PER_SECOND = 12_000
CALLS_PER_SUBTASK = 150
RECORDS = 500


class Count(sa.KeyedOperator[int, int, int]):
    seen = sa.ValueState(int, default=0)

    def process(self, value: int, ctx: sa.Context[int, int]) -> None:
        self.seen.set(self.seen.get() + 1)
        ctx.emit(self.seen.get())


@asynccontextmanager
async def viewed(subtasks: int) -> AsyncIterator[tuple[sa.JobHandle, JobView]]:
    flow, feed, found = sa.Dataflow("sums"), Feed(), ListSink[int]()
    numbers = flow.source("numbers", feed).key_by(lambda value: value)
    numbers.process("count", Count, parallelism=subtasks).sink("out", found, parallelism=subtasks)
    config = sa.Config(parallelism=1, max_parallelism=1024)
    async with sa.start(flow, config, on_exit="cancel") as job:
        feed.put(*range(RECORDS))
        await until(lambda: len(found.values) == RECORDS)
        yield job, JobView(job, Entry(flow="sums", pid=1, started_ms=0), SYSTEM)


async def calls_of(work: Callable[[], Any]) -> int:
    """Functions that it calls, C's too, of whatever else runs on the loop meanwhile as well."""
    count = 0

    def counted(_: FrameType, event: str, __: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        await work()
    finally:
        sys.setprofile(None)
    return count


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one update."""

    bytes: int
    calls: int


async def cost_of(subtasks: int) -> Cost:
    async with viewed(subtasks) as (job, view):
        assert len(job.metrics()["subtasks"]) > subtasks
        async with aclosing(Ticker(view.tick, SYSTEM).stream()) as events:
            assert (await anext(events)).startswith(b"retry: ")
            event = await anext(events)
        calls = await calls_of(view.tick)
    tick = msgspec.json.decode(event.partition(b"data: ")[2], type=model.Tick)
    assert {each.vertex for each in tick.vertices} == {"numbers", "count"}
    assert next(each.records_in for each in tick.operators if each.uid == "count") == RECORDS
    return Cost(len(event), calls)


async def test_an_update_is_cheap_with_many_subtasks() -> None:
    """What is sent does not grow with them, and the work for it no faster than they."""
    few, many = await cost_of(FEW), await cost_of(MANY)
    assert many.bytes < few.bytes * 1.1 and many.bytes / EVERY < BYTES_PER_SECOND, (few, many)
    assert many.calls < CALLS_PER_SUBTASK * MANY and many.calls < few.calls * 1.2 * MANY / FEW, (few, many)
