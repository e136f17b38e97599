"""(b), the running sum, with a source that each worker makes for itself, and gauges by which its rate is measured."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import streamactors as sa
from benchmarks import events, flows
from streamactors.sources import Position, SourceBatch, SourceContext, SplitReader, SplitSource

BATCH = 1024


class Orders(SplitSource[bytes]):
    """`count` orders over and over, without end; split i is read by subtask i, and has others than the rest.
    `pin`: the process of subtask i, all of its threads, stays on core `cores[i % len(cores)]`; none: where it likes."""

    def __init__(self, count: int, keys: int, splits: int, cores: Sequence[int] = ()) -> None:
        self.count = count
        self.keys = keys
        self.splits = splits
        self.cores = cores

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
        self._ctx = ctx
        self._lines: list[bytes] = []
        self._next = 0

    async def open(self, restored: Mapping[str, Position] | None) -> Mapping[str, Position]:
        source, split = self._source, self._ctx.subtask
        if source.cores:
            pin(source.cores[split % len(source.cores)])
        self._lines = events.orders(source.count, source.keys, seed=split)
        positions = {str(split): 0} if restored is None else dict(restored)
        self._next = positions[str(split)]
        return positions

    async def read(self) -> SourceBatch[bytes]:
        first = self._next
        at = first % len(self._lines)
        values = self._lines[at : at + BATCH]
        self._next += len(values)
        return SourceBatch(str(self._ctx.subtask), values, lambda taken: first + taken, origins=range(first, self._next))

    async def close(self) -> None:
        self._lines = []


class MeasuredTotal(flows.RunningTotal):
    """Tells when it was asked for its figures, in which process, and what that process has used by then."""

    async def open(self, ctx: sa.OperatorContext) -> None:
        ctx.metrics.gauge("at", time.monotonic)
        ctx.metrics.gauge("cpu", time.process_time)
        ctx.metrics.gauge("pid", os.getpid)


def pin(core: int) -> None:
    """This process, all its threads, to one core; threads that are started later follow the one that starts them."""
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})
