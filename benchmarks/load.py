"""What it costs that a job measures how busy, idle and back-pressured its subtasks are.

The running sum, with the measuring and with waits that measure nothing, in pairs, by the process's CPU time; and
without noise: how often subtasks wait, times what measuring one wait takes. Small mailboxes wait most often.
`python -m benchmarks.load`
"""

import argparse
import asyncio
import gc
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

import streamactors as sa
from benchmarks import events, flows
from streamactors.actors.signal import Signal
from streamactors.clock import SYSTEM
from streamactors.runtime import assembly
from streamactors.runtime.load import IDLE, Load

TARGET = 0.02
EVENTS = 1_000_000
KEYS = 100_000
CAPACITIES = (1_000, 10_000)
WAITS = 50_000


class Unmeasured(Load):
    """Counts its waits, and measures nothing."""

    waits = 0

    async def wait(self, kind: int, signal: Signal) -> None:
        Unmeasured.waits += 1
        await signal.wait()


@dataclass(frozen=True)
class Row:
    """`measured`, `unmeasured`: CPU seconds by round; `waits`: of one run; `wait_seconds`: that measuring one takes."""

    capacity: int
    measured: Sequence[float]
    unmeasured: Sequence[float]
    waits: int
    wait_seconds: float

    @property
    def in_pairs(self) -> float:
        pairs = zip(self.measured, self.unmeasured, strict=True)
        return statistics.median(measured / unmeasured - 1 for measured, unmeasured in pairs)

    @property
    def by_waits(self) -> float:
        return self.waits * self.wait_seconds / statistics.median(self.unmeasured)


def measure(lines: Sequence[bytes], rounds: int) -> list[Row]:
    wait_seconds = max(0.0, seconds_a_wait(Load) - seconds_a_wait(Unmeasured))
    return [_row(lines, rounds, capacity, wait_seconds) for capacity in CAPACITIES]


def _row(lines: Sequence[bytes], rounds: int, capacity: int, wait_seconds: float) -> Row:
    measured, unmeasured = list[float](), list[float]()
    _cpu_seconds(Load, lines, capacity)  # warm
    for number in range(rounds):
        if number % 2:
            measured.append(_cpu_seconds(Load, lines, capacity))
        Unmeasured.waits = 0
        unmeasured.append(_cpu_seconds(Unmeasured, lines, capacity))
        if not number % 2:
            measured.append(_cpu_seconds(Load, lines, capacity))
    return Row(capacity, measured, unmeasured, Unmeasured.waits, wait_seconds)


def _cpu_seconds(load: type[Load], lines: Sequence[bytes], capacity: int) -> float:
    flow = flows.running_sum(lines, flows.Discard(), 4)
    gc.collect()
    with _measuring_by(load):
        began = time.process_time()
        asyncio.run(sa.run(flow, sa.Config(mailbox_capacity=capacity)))
        return time.process_time() - began


@contextmanager
def _measuring_by(load: type[Load]) -> Iterator[None]:
    setattr(assembly, "Load", load)  # noqa: B010 (mypy takes a class for no variable)
    try:
        yield
    finally:
        setattr(assembly, "Load", Load)  # noqa: B010


def seconds_a_wait(load: type[Load]) -> float:
    """Of CPU time, for a signal that is set already; the best of three."""
    return min(asyncio.run(_waits(load)) for _ in range(3))


async def _waits(load: type[Load]) -> float:
    one, signal = load(SYSTEM.monotonic), Signal()
    one.begin()
    began = time.process_time()
    for _ in range(WAITS):
        signal.set()
        await one.wait(IDLE, signal)
    return (time.process_time() - began) / WAITS


def table(rows: Sequence[Row]) -> Table:
    shown = Table(title=f"what measuring busy, idle and back-pressured costs; to reach: under {TARGET:.0%} of CPU time")
    for column in ("mailboxes", "CPU seconds", "without", "in pairs", "waits", "a wait", "by waits"):
        shown.add_column(column, justify="right")
    for row in rows:
        cpu = (f"{statistics.median(seconds):.2f}" for seconds in (row.measured, row.unmeasured))
        shares = f"{row.wait_seconds * 1e6:.2f} µs", f"{row.by_waits:.2%}"
        shown.add_row(f"{row.capacity:,}", *cpu, f"{row.in_pairs:+.1%}", f"{row.waits:,}", *shares)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    Console(width=110).print(table(measure(events.orders(options.events, KEYS), options.rounds)))


if __name__ == "__main__":
    main()
