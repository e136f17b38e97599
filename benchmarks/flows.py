"""The flows that are measured, written as a user would."""

import asyncio
import datetime as dt
import tempfile
import time
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

import streamactors as sa
from benchmarks.events import Order, Total
from connectors.memory import ListSource
from streamactors.sinks import Pending, SinkContext, SinkWriter, WriterSink


class RunningTotal(sa.KeyedOperator[str, Order, Total]):
    total = sa.ValueState(int, default=0)

    def process(self, order: Order, ctx: sa.Context[str, Total]) -> None:
        total = self.total.get() + order.amount
        self.total.set(total)
        ctx.emit(Total(order.customer, total))


class Discard(WriterSink[Any]):
    """Counts and forgets."""

    count = 0

    @property
    def transactional(self) -> bool:
        return False

    def writer(self, ctx: SinkContext) -> SinkWriter[Any]:
        return _DiscardWriter(self)


class _DiscardWriter(SinkWriter[Any]):
    def __init__(self, sink: Discard) -> None:
        self._sink = sink

    async def open(self, restored: Sequence[Pending], *, committed: bool) -> None:
        return None

    async def write(self, values: Sequence[Any], timestamps: Sequence[int | None] | None) -> None:
        self._sink.count += len(values)

    async def prepare(self, checkpoint: int) -> Sequence[Pending]:
        return ()

    async def finish(self) -> None:
        return None

    async def close(self) -> None:
        return None


def stateless(lines: Sequence[bytes], sink: Discard) -> sa.Dataflow:
    flow = sa.Dataflow("stateless")
    (
        flow.source("lines", ListSource(lines))
        .map(msgspec.json.Decoder(Order).decode)
        .filter(lambda order: order.valid)
        .map(lambda order: order.amount * 2)
        .sink("out", sink)
    )
    return flow


def running_sum(lines: Sequence[bytes], sink: Discard, parallelism: int) -> sa.Dataflow:
    flow = sa.Dataflow("running-sum")
    (
        flow.source("lines", ListSource(lines), parallelism=1)
        .map(msgspec.json.Decoder(Order).decode, parallelism=1)
        .key_by(lambda order: order.customer)
        .process("totals", RunningTotal, parallelism=parallelism)
        .sink("out", sink, parallelism=parallelism)
    )
    return flow


def seconds(flow: sa.Dataflow, *, checkpoints: bool, backend: Literal["heap", "rocksdb"] = "heap") -> float:
    """How long the flow runs, start and end included."""
    with tempfile.TemporaryDirectory(prefix="streamactors-bench-") as folder:
        every_second = sa.Checkpoints(folder, interval=dt.timedelta(seconds=1))
        config = sa.Config(state_backend=backend, checkpoints=every_second if checkpoints else None)
        return asyncio.run(_timed(flow, config))


async def _timed(flow: sa.Dataflow, config: sa.Config) -> float:
    started = time.perf_counter()
    await sa.run(flow, config)
    return time.perf_counter() - started
