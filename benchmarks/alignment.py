"""How long checkpoints take under back-pressure: source → keyed operator → rebalance → a sink 100 times slower.

Each is asked for once all mailboxes are full, so that a barrier meets the longest queues that there can be.
"""

import asyncio
import datetime as dt
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import streamactors as sa
from benchmarks.flows import Discard
from connectors.memory import ListSource
from streamactors.sinks import SinkContext, SinkWriter

SINK_RATE = 7_000.0
"""Records/s; the source gives about 100 times as many."""
CAPACITIES = (1_000, 100_000)
KEYS = 1_000
PATIENCE = dt.timedelta(milliseconds=500)
MODES: dict[str, dict[str, Any]] = {
    "aligned": {},
    "aligned, then unaligned after 0.5 s": {"alignment_timeout": PATIENCE},
    "unaligned": {"alignment": "unaligned"},
}


class Slow(Discard):
    """Takes its time."""

    def writer(self, ctx: SinkContext) -> SinkWriter[Any]:
        return _SlowWriter(self)


class _SlowWriter(SinkWriter[Any]):
    def __init__(self, sink: Slow) -> None:
        self._sink = sink
        self._owed = 0.0

    async def open(self, restored: Sequence[Any], *, committed: bool) -> None:
        return None

    async def write(self, values: Sequence[Any], timestamps: Sequence[int | None] | None) -> None:
        # A sleep takes a millisecond more than it should: short ones are saved up.
        self._owed += len(values) / SINK_RATE
        if self._owed >= 0.01:
            owed, self._owed = self._owed, 0.0
            await asyncio.sleep(owed)
        self._sink.count += len(values)

    async def prepare(self, checkpoint: int) -> Sequence[Any]:
        return ()

    async def finish(self) -> None:
        return None

    async def close(self) -> None:
        return None


class Count(sa.KeyedOperator[int, int, tuple[int, int]]):
    count = sa.ValueState(int, default=0)

    def process(self, value: int, ctx: sa.Context[int, tuple[int, int]]) -> None:
        count = self.count.get() + 1
        self.count.set(count)
        ctx.emit((value, count))


@dataclass(frozen=True)
class Measured:
    """Checkpoints of one mode; times in seconds, sizes in bytes."""

    mode: str
    capacity: int
    durations: Sequence[float]
    in_flight_bytes: int
    total_bytes: int
    queued: int

    @property
    def seconds(self) -> float:
        return statistics.median(self.durations)


def measure(rounds: int) -> list[Measured]:
    return [asyncio.run(_measured(mode, capacity, rounds)) for capacity in CAPACITIES for mode in MODES]


async def _measured(mode: str, capacity: int, rounds: int) -> Measured:
    flow = sa.Dataflow("back-pressure")
    values = ListSource(range(4 * capacity + 100_000))
    counted = flow.source("values", values).key_by(lambda value: value % KEYS).process("count", Count)
    counted.rebalance().sink("out", Slow())
    with tempfile.TemporaryDirectory(prefix="streamactors-bench-") as folder:
        checkpoints = sa.Checkpoints(folder, interval=dt.timedelta(hours=1), **MODES[mode])
        config = sa.Config(checkpoints=checkpoints, mailbox_capacity=capacity)
        async with sa.start(flow, config, on_exit="cancel") as job:
            queued = await _full(job, capacity)
            infos = [await job.checkpoint() for _ in range(rounds if mode != "aligned" else 1)]
    durations = [info.duration.total_seconds() for info in infos]
    return Measured(mode, capacity, durations, infos[0].inflight_bytes, infos[0].state_bytes, queued)


async def _full(job: sa.JobHandle, capacity: int) -> int:
    """Until the slow sink and what is before it have as much as they can hold; the number of records queued."""
    while True:
        queued = [subtask["queued"] for subtask in job.metrics()["subtasks"].values()]
        if all(fill >= 0.9 * capacity for fill in queued[1:]):
            return sum(queued)
        await asyncio.sleep(0.02)
