"""Large keyed state: what RocksDB costs beside the heap, what a checkpoint of much state uploads, what memory it takes.

    python -m benchmarks.state                    10 M keys of 100 bytes, 1 GB: about 20 minutes
    python -m benchmarks.state --keys 1000000     the same in small

One job all along. It writes every key once, in random order (`fill`), then updates random keys, of all of them
(`uniform`: nearly every one has to be read from the disk), then random keys of 1 % between checkpoints (`changed`).
"""

import argparse
import asyncio
import contextlib
import datetime as dt
import gc
import itertools
import math
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

import streamactors as sa
from benchmarks import events, flows
from benchmarks.flows import Discard
from streamactors.runtime.nodes import NodeRuntime
from streamactors.sources import Position, SourceBatch, SourceContext, SplitReader, SplitSource

KEYS = 10_000_000
VALUE_BYTES = 100
MEMORY = 64 * 1024 * 1024
"""Blocks and write buffers of RocksDB; the state is 16 times as large."""
CACHE = 100_000
"""Decoded entries."""
BATCH = 1024
CHANGED = 0.01
CHECKPOINTS = 5
LAG_EVERY = 0.005
UNIFORM_UPDATES = 1_000_000


# -------------------------------------------------------------------------------------------------- the job under test
@dataclass
class Schedule:
    """What the source is to give next; None: nothing for the time being."""

    keys: Iterator[Sequence[int]] | None = None
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    given: int = 0

    def give(self, keys: Iterator[Sequence[int]]) -> None:
        self.idle.clear()
        self.keys = keys
        self.wake.set()

    async def next(self) -> Sequence[int]:
        while True:
            batch = next(self.keys, None) if self.keys is not None else None
            if batch is not None:
                self.given += len(batch)
                return batch
            self.keys = None
            self.idle.set()
            self.wake.clear()
            await self.wake.wait()


class Numbers(SplitSource[int]):
    """Keys as scheduled; "rewindable" only in name, since nothing is restored here."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    @property
    def bounded(self) -> bool:
        return False

    def reader(self, ctx: SourceContext) -> SplitReader[int]:
        return _NumbersReader(self.schedule)


class _NumbersReader(SplitReader[int]):
    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    async def open(self, restored: Mapping[str, Position] | None) -> Mapping[str, Position]:
        return {"all": 0}

    async def read(self) -> SourceBatch[int]:
        batch = await self._schedule.next()
        begin = self._schedule.given - len(batch)
        return SourceBatch("all", batch, lambda taken: begin + taken)

    async def close(self) -> None:
        return None


_RANDOM = random.Random(5).randbytes(1 << 20)


class Replace(sa.KeyedOperator[int, int, int]):
    """Reads what a key holds, and writes another hundred bytes that can't be compressed."""

    value = sa.ValueState(bytes)

    def open(self, ctx: sa.OperatorContext) -> None:
        self.changes = 0

    def process(self, number: int, ctx: sa.Context[int, int]) -> None:
        before = self.value.get()
        self.changes += 1
        start = (self.changes * 7919 + (before[0] if before else 0)) % (len(_RANDOM) - VALUE_BYTES)
        self.value.set(_RANDOM[start : start + VALUE_BYTES])
        ctx.emit(number)


def flow_of(schedule: Schedule, sink: Discard) -> sa.Dataflow:
    flow = sa.Dataflow("large-state")
    flow.source("keys", Numbers(schedule), parallelism=1).key_by(lambda number: number).process(
        "replace", Replace, parallelism=1
    ).sink("out", sink, parallelism=1)
    return flow


def in_random_order(count: int) -> Iterator[Sequence[int]]:
    """Every number once; in the order of multiples, which takes no memory."""
    step = next(step for step in range(int(count * 0.618), 2 * count) if math.gcd(step, count) == 1)
    places = range(0, count, BATCH)
    return ([number * step % count for number in range(start, min(start + BATCH, count))] for start in places)


def at_random(below: int, count: int, seed: int) -> Iterator[Sequence[int]]:
    chance = random.Random(seed)
    return ([chance.randrange(below) for _ in range(min(BATCH, count - start))] for start in range(0, count, BATCH))


# -------------------------------------------------------------------------------------------------------------- meters
class Lag:
    """How late the loop is, sampled each 5 ms."""

    def __init__(self) -> None:
        self.late: list[float] = []

    @contextlib.asynccontextmanager
    async def measured(self) -> AsyncIterator["Lag"]:
        task = asyncio.create_task(self._sample())
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _sample(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(LAG_EVERY)
            self.late.append(time.perf_counter() - before - LAG_EVERY)

    def quantile(self, share: float) -> float:
        ordered = sorted(self.late)
        return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


@contextlib.contextmanager
def synchronous_parts() -> Iterator[list[float]]:
    """Seconds that the loop was held by the beginning of each keyed snapshot."""
    found: list[float] = []
    begin = NodeRuntime.begin_snapshot

    def timed(self: NodeRuntime, *args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return begin(self, *args, **options)
        finally:
            found.append(time.perf_counter() - started)

    NodeRuntime.begin_snapshot = timed  # type: ignore[method-assign]
    try:
        yield found
    finally:
        NodeRuntime.begin_snapshot = begin  # type: ignore[method-assign]


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


# ------------------------------------------------------------------------------------------------------- what is asked
@dataclass
class Found:
    """One row of the table."""

    what: str
    value: str
    wanted: str = ""


async def large_state(keys: int, folder: str, tell: Callable[[str], None]) -> list[Found]:
    schedule, sink = Schedule(), Discard()
    config = sa.Config(
        state_backend=sa.RocksDB(folder=f"{folder}/local", memory=MEMORY, cache=CACHE),
        checkpoints=sa.Checkpoints(
            f"{folder}/checkpoints", interval=dt.timedelta(days=1), timeout=dt.timedelta(hours=1)
        ),
    )
    found: list[Found] = []
    with synchronous_parts() as parts:
        async with sa.start(flow_of(schedule, sink), config, on_exit="cancel") as job:
            found += await _fill(schedule, sink, keys, tell)
            first = await job.checkpoint()
            tell(f"first checkpoint: {first.state_bytes / 1e6:,.0f} MB in {first.duration.total_seconds():.1f} s")
            found += await _uniform(schedule, sink, keys, tell)
            await job.checkpoint()
            parts.clear()
            found += await _changed(job, schedule, sink, keys, parts, tell)
            found += await _while_checkpointing(job, schedule, sink, keys, tell)
    return found


async def _drained(schedule: Schedule, sink: Discard) -> None:
    await schedule.idle.wait()
    while sink.count < schedule.given:  # noqa: ASYNC110 (the sink counts, and tells nobody)
        await asyncio.sleep(0.001)


async def _fill(schedule: Schedule, sink: Discard, keys: int, tell: Callable[[str], None]) -> list[Found]:
    sizes: list[int] = []
    started = time.perf_counter()
    order = in_random_order(keys)
    for part in range(10):
        schedule.give(itertools.islice(order, math.ceil(keys / BATCH / 10)))
        await _drained(schedule, sink)
        sizes.append(resident_bytes())
        tell(f"filled {part + 1}0 %: {sizes[-1] / 1e6:,.0f} MB resident")
    seconds = time.perf_counter() - started
    growth = max(sizes[4:]) / sizes[3] - 1  # from 40 % on every cache and buffer is full
    return [
        Found("fill, keys/s", f"{keys / seconds:,.0f}"),
        Found(f"resident memory, state {keys * VALUE_BYTES / MEMORY:.0f} times `memory`", f"{sizes[-1] / 1e6:,.0f} MB"),
        Found("growth of it from 40 % to 100 % of the keys", f"{growth:+.0%}", "flat"),
    ]


async def _uniform(schedule: Schedule, sink: Discard, keys: int, tell: Callable[[str], None]) -> list[Found]:
    gc.collect()
    updates = min(UNIFORM_UPDATES, keys)
    async with Lag().measured() as lag:
        started = time.perf_counter()
        schedule.give(at_random(keys, updates, seed=2))
        await _drained(schedule, sink)
        seconds = time.perf_counter() - started
    tell(f"uniform updates: {updates / seconds:,.0f}/s")
    return [
        Found("uniform updates of cold keys, records/s", f"{updates / seconds:,.0f}", "≥ 40,000"),
        Found(
            "loop lag meanwhile, p50 and p99",
            f"{lag.quantile(0.5) * 1e3:.1f} ms, {lag.quantile(0.99) * 1e3:.1f} ms",
            "p99 ≤ 20 ms",
        ),
    ]


async def _changed(
    job: Any, schedule: Schedule, sink: Discard, keys: int, parts: list[float], tell: Callable[[str], None]
) -> list[Found]:
    """1 % of the keys changed between checkpoints."""
    shares, seconds = [], []
    for number in range(CHECKPOINTS):
        schedule.give(at_random(keys, int(keys * CHANGED), seed=100 + number))
        await _drained(schedule, sink)
        info = await job.checkpoint()
        shares.append(info.uploaded_bytes / info.state_bytes)
        seconds.append(info.duration.total_seconds())
        tell(f"checkpoint: {shares[-1]:.1%} of {info.state_bytes / 1e6:,.0f} MB uploaded in {seconds[-1]:.2f} s")
    return [
        Found("uploaded, 1 % changed: median and most", f"{statistics.median(shares):.1%}, {max(shares):.1%}", "≤ 5 %"),
        Found("checkpoint takes, median and most", f"{statistics.median(seconds):.2f} s, {max(seconds):.2f} s"),
        Found(
            "of that synchronous, median and most",
            f"{statistics.median(parts) * 1e3:.0f} ms, {max(parts) * 1e3:.0f} ms",
            "≤ 50 ms",
        ),
    ]


async def _while_checkpointing(
    job: Any, schedule: Schedule, sink: Discard, keys: int, tell: Callable[[str], None]
) -> list[Found]:
    """Updates of 1 % of the keys all the time: with checkpoints one after another, and without, in turns."""
    hot = max(int(keys * CHANGED), 1)
    rates: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(6):
        checkpointing = turn % 2 == 0
        before, started = sink.count, time.perf_counter()
        schedule.give(at_random(hot, 100_000_000, seed=200 + turn))
        if checkpointing:
            for _ in range(3):
                await job.checkpoint()
        else:
            await asyncio.sleep(5)
        rates[checkpointing].append((sink.count - before) / (time.perf_counter() - started))
        schedule.keys = iter(())
        await _drained(schedule, sink)
    share = statistics.median(rates[True]) / statistics.median(rates[False])
    tell(f"throughput during checkpoints: {share:.0%}")
    return [
        Found("throughput during checkpoints, of that without", f"{share:.0%}", "≥ 80 %"),
        Found("that is, records/s", f"{statistics.median(rates[True]):,.0f} of {statistics.median(rates[False]):,.0f}"),
    ]


def skewed(count: int, rounds: int) -> Found:
    """(b) on either backend."""
    lines = events.orders(count, 100_000)
    ratios = []
    for _ in range(rounds):
        gc.collect()
        heap = flows.seconds(flows.running_sum(lines, Discard(), 1), checkpoints=False)
        gc.collect()
        ratios.append(
            heap / flows.seconds(flows.running_sum(lines, Discard(), 1), checkpoints=False, backend="rocksdb")
        )
    return Found("(b), skewed keys: rate on RocksDB of that on the heap", f"{statistics.median(ratios):.2f}", "≥ 0.5")


def table(found: Sequence[Found], keys: int) -> Table:
    shown = Table(title=f"state of {keys:,} keys, {keys * VALUE_BYTES / 1e6:,.0f} MB, RocksDB with {MEMORY >> 20} MB")
    for column in ("measured", "", "to reach"):
        shown.add_column(column, justify="left" if column == "measured" else "right")
    for row in found:
        shown.add_row(row.what, row.value, row.wanted)
    return shown


def measure(keys: int, console: Console, rounds: int = 5) -> list[Found]:
    with tempfile.TemporaryDirectory(prefix="streamactors-bench-") as folder:
        Path(folder, "local").mkdir()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            found = runner.run(large_state(keys, folder, lambda line: console.print(f"   {line}", style="dim")))
    return [*found, skewed(1_000_000, rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--keys", type=int, default=KEYS)
    options = parser.parse_args()
    console = Console(width=110)
    console.print(table(measure(options.keys, console), options.keys))


if __name__ == "__main__":
    main()
