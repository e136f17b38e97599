"""(b), the running sum, as a job on Ray: its source is made by each worker for itself, and its gauges tell its rate."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

import streamactors as sa
from benchmarks import events, flows
from streamactors.sources import Position, SourceBatch, SourceContext, SplitReader, SplitSource

BATCH = 1024
PATIENCE = 120.0
TOTALS = "totals"


class Orders(SplitSource[bytes]):
    """`count` orders over and over, without end; each subtask has others. `cores`: the process of subtask i, all its
    threads, stays on `cores[i % len(cores)]`; none: where it likes. `pause`: seconds after each batch."""

    def __init__(self, count: int, keys: int, cores: Sequence[int] = (), *, pause: float = 0.0) -> None:
        self.count = count
        self.keys = keys
        self.cores = cores
        self.pause = pause

    @property
    def bounded(self) -> bool:
        return False

    def assign(self, split: str, parallelism: int) -> int:
        return int(split) % parallelism

    def reader(self, ctx: SourceContext) -> SplitReader[bytes]:
        return _Reader(self, ctx)


class _Reader(SplitReader[bytes]):
    def __init__(self, source: Orders, ctx: SourceContext) -> None:
        self._source = source
        self._split = ctx.subtask
        self._lines: list[bytes] = []
        self._next = 0

    async def open(self, restored: Mapping[str, Position] | None) -> Mapping[str, Position]:
        source, split = self._source, str(self._split)
        if source.cores:
            pin(source.cores[self._split % len(source.cores)])
        self._lines = events.orders(source.count, source.keys, seed=self._split)
        positions = {split: 0} if restored is None else dict(restored)
        self._next = positions[split]
        return positions

    async def read(self) -> SourceBatch[bytes]:
        await asyncio.sleep(self._source.pause)
        first = self._next
        at = first % len(self._lines)
        values = self._lines[at : at + BATCH]
        self._next += len(values)
        return SourceBatch(str(self._split), values, lambda taken: first + taken, origins=range(first, self._next))

    async def close(self) -> None:
        self._lines = []


def pin(core: int) -> None:
    """This process, all its threads, to one core; threads that are started later follow the one that starts them."""
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


class MeasuredTotal(flows.RunningTotal):
    """Tells when it was asked for its figures, in which process, what that has used by then, and when this attempt has
    processed its first record."""

    async def open(self, ctx: sa.OperatorContext) -> None:
        self._first = 0.0
        ctx.metrics.gauge("at", time.monotonic)
        ctx.metrics.gauge("cpu", time.process_time)
        ctx.metrics.gauge("pid", os.getpid)
        ctx.metrics.gauge("first", lambda: self._first)


class TimedTotal(MeasuredTotal):
    """Looks at the clock with its first record, which costs every record something."""

    def process(self, order: events.Order, ctx: sa.Context[str, events.Total]) -> None:
        self._first = self._first or time.monotonic()
        super().process(order, ctx)


def running_sum(
    source: Orders, parallelism: int, operator: type[MeasuredTotal] = MeasuredTotal, name: str = "scale-out"
) -> sa.Dataflow:
    flow = sa.Dataflow(name)
    (
        flow.source("lines", source, parallelism=parallelism)
        .map(msgspec.json.Decoder(events.Order).decode)
        .key_by(lambda order: order.customer)
        .process(TOTALS, operator, parallelism=parallelism)
        .sink("out", flows.Discard(), parallelism=parallelism)
    )
    return flow


@dataclass(frozen=True)
class Seen:
    """What a subtask of the totals had done at one moment: on the machine's monotonic clock, in seconds."""

    at: float
    records: int
    cpu: float
    pid: int
    first: float


def seen(job: sa.JobHandle) -> dict[str, Seen]:
    """By subtask, those that have told by now."""
    found: dict[str, Seen] = {}
    for name, subtask in job.metrics()["subtasks"].items():
        told: Mapping[str, Any] = subtask["nodes"].get(TOTALS, {})
        if told.get("at"):
            found[name] = Seen(told["at"], told["records_in"], told["cpu"], int(told["pid"]), told["first"])
    return found


@asynccontextmanager
async def started(flow: sa.Dataflow, config: sa.Config) -> AsyncIterator[sa.JobHandle]:
    """Once every subtask of the totals has told of records."""
    async with sa.start(flow, config, on_exit="cancel") as job:
        await until(lambda: len(told := seen(job)) == config.parallelism and all(one.records for one in told.values()))
        yield job


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 (figures come about once a second, and nobody tells of them)
            await asyncio.sleep(0.05)
