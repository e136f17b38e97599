"""What a pending timer costs: setting, deleting and firing it while a million others wait, on both backends.

As an operator does it (`ctx.timers`, `on_timer`), without the mailboxes around it. In CPU time of the process with its
threads: the machine may be busy. `python -m benchmarks.timers`
"""

import argparse
import asyncio
import gc
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

import streamactors as sa
from streamactors.elements import Batch, Watermark
from streamactors.operators.base import LinkContext, OperatorContext
from streamactors.operators.process import ProcessSpec
from streamactors.state.backend import KeyedBackend
from streamactors.state.heap.backend import HeapBackend
from streamactors.state.key_groups import KeyGroupRange, key_group
from streamactors.state.rocksdb.backend import RocksDBBackend
from streamactors.time.progress import EventTime
from streamactors.time.timers import TimerService

TIMERS = 1_000_000
GROUPS = 128
SLICE = 256
SPREADS = {"at one time": 1, "over a quarter of an hour": 900_000, "over a month": 30 * 86_400_000}
"""Milliseconds over which the timers are spread."""


@dataclass(frozen=True)
class Costs:
    """Microseconds for each timer; `collecting`: of `set`, in Python's garbage collector. `longest`: milliseconds of
    one slice of firing, by the clock on the wall."""

    backend: str
    spread: str
    set: float
    collecting: float
    delete: float
    fire: float
    longest: float


class Waits(sa.KeyedOperator[str, Any, Any]):
    """Record (time, whether to set the timer or to delete it)."""

    fired = 0

    def process(self, value: Any, ctx: sa.Context[str, Any]) -> None:
        if value[1]:
            ctx.timers.event(value[0])
        else:
            ctx.timers.delete(value[0])

    def on_timer(self, timer: sa.Timer, ctx: sa.Context[str, Any]) -> None:
        self.fired += 1


class _Spent:
    """CPU seconds; `collecting` of them in the garbage collector."""

    seconds = 0.0
    collecting = 0.0
    begun = 0.0

    def collected(self, phase: str, _: object) -> None:
        if phase == "start":
            self.begun = time.process_time()
        else:
            self.collecting += time.process_time() - self.begun


@contextmanager
def _spent() -> Iterator[_Spent]:
    spent, started = _Spent(), time.process_time()
    gc.callbacks.append(spent.collected)
    try:
        yield spent
    finally:
        gc.callbacks.remove(spent.collected)
    spent.seconds = time.process_time() - started


async def measure_one(backend: KeyedBackend, name: str, spread: str, count: int) -> Costs:
    """All timers set, every second deleted, the others fired by one watermark."""
    operator, now = Waits(), EventTime()
    context = OperatorContext(uid="waits", subtask=0, parallelism=1)
    link: Any = ProcessSpec(lambda: operator, keyed=True).link(
        LinkContext("waits", "waits", context, backend=backend, time=now)
    )
    await link.open()
    timers: TimerService = link.timers
    await timers.next_events(1)
    draw = random.Random(0)
    due = [draw.randrange(1, SPREADS[spread] + 1) for _ in range(count)]
    batches = list(_batches(due, [True] * count))
    gone = list(_batches(due, [False] * count))[::2]
    gc.collect()
    gc.freeze()
    with _spent() as setting:
        for batch in batches:
            await link.process(batch)
    with _spent() as deleting:
        for batch in gone:
            await link.process(batch)
    left = count - sum(map(len, gone))
    longest = 0.0
    with _spent() as firing:
        await timers.reach(Watermark(SPREADS[spread] + 1))
        while rows := await timers.next_events(SLICE):
            begun = time.perf_counter()
            await link.fire("event", rows)
            longest = max(longest, time.perf_counter() - begun)
    assert operator.fired == left, f"{operator.fired} of {left} timers have fired"
    gc.unfreeze()
    set_each, collecting = 1e6 * setting.seconds / count, 1e6 * setting.collecting / count
    delete_each, fire_each = 1e6 * deleting.seconds / (count - left), 1e6 * firing.seconds / left
    return Costs(name, spread, set_each, collecting, delete_each, fire_each, 1e3 * longest)


def _batches(times: Sequence[int], flags: Sequence[bool]) -> Iterator[Batch]:
    """Each timer has a key of its own."""
    for start in range(0, len(times), SLICE):
        stop = min(start + SLICE, len(times))
        keys = [f"k{number}" for number in range(start, stop)]
        groups = [key_group(key, GROUPS) for key in keys]
        yield Batch(list(zip(times[start:stop], flags[start:stop], strict=True)), None, keys, groups)


def measure(count: int = TIMERS) -> list[Costs]:
    """On both backends."""
    groups = KeyGroupRange(0, GROUPS)
    costs: list[Costs] = []
    for name, made in (("heap", HeapBackend), ("RocksDB", RocksDBBackend)):
        for spread in SPREADS:
            backend = made(groups, GROUPS)
            try:
                costs.append(asyncio.run(measure_one(backend, name, spread, count)))
            finally:
                backend.close()
    return costs


def table(costs: Sequence[Costs], count: int) -> Table:
    """As `make bench` prints it."""
    shown = Table(title=f"{count:,} pending timers: µs of CPU for each (to reach on the heap: below 3)")
    for column in ("backend", "spread", "set", "of it gc", "delete", "fire", "longest slice, ms"):
        shown.add_column(column, justify="left" if column in ("backend", "spread") else "right")
    for row in costs:
        figures = row.set, row.collecting, row.delete, row.fire, row.longest
        shown.add_row(row.backend, row.spread, *(f"{figure:.1f}" for figure in figures))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timers", type=int, default=TIMERS)
    options = parser.parse_args()
    Console(width=110).print(table(measure(options.timers), options.timers))


if __name__ == "__main__":
    main()
