"""(b) in batch beside streaming, and the memory that a sort takes: `python -m benchmarks.batch`, part of `make bench`.

The memory is the largest resident set of a process of its own, whose input is 1 and 4 times `sort_memory`.
"""

import argparse
import asyncio
import datetime as dt
import gc
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

import streamactors as sa
from benchmarks import events, flows
from benchmarks.events import Order
from connectors.files import FileSource

MEMORY = 32 << 20
"""`sort_memory` while memory is measured; small, so that spilling shows within a minute."""
RECORD_BYTES = 660
"""About what the sort reckons for one order."""


@dataclass(frozen=True)
class Measured:
    """Seconds by round; megabytes by how many times `sort_memory` the input is."""

    records: int
    streaming: Sequence[float]
    batch: Sequence[float]
    peaks: dict[int, float]

    @property
    def ratio(self) -> float:
        pairs = zip(self.streaming, self.batch, strict=True)
        return statistics.median(streaming / batch for streaming, batch in pairs)


def measure(lines: Sequence[bytes], rounds: int) -> Measured:
    streaming, batch = [], []
    for _ in range(rounds):
        streaming.append(_seconds(lines, "streaming"))
        batch.append(_seconds(lines, "batch"))
    return Measured(len(lines), streaming, batch, {times: peak(times) for times in (1, 4)})


def _seconds(lines: Sequence[bytes], execution: Literal["streaming", "batch"]) -> float:
    gc.collect()
    flow = flows.running_sum(lines, flows.Discard(), 1)
    started = time.perf_counter()
    asyncio.run(sa.run(flow, sa.Config(execution=execution)))
    return time.perf_counter() - started


def peak(times: int) -> float:
    """Megabytes, of a process that sorts `times` as much as it may hold in memory."""
    with tempfile.TemporaryDirectory(prefix="streamactors-bench-") as folder:
        path = Path(folder) / "orders.jsonl"
        with path.open("wb") as file:
            file.writelines(line + b"\n" for line in events.orders(times * MEMORY // RECORD_BYTES, 100_000))
        told = subprocess.run(
            [sys.executable, "-m", "benchmarks.batch", "--sort", str(path)], capture_output=True, check=True
        )
        return float(told.stdout)


def sort(path: str) -> float:
    """Megabytes, the largest resident set of this process after sorting the orders in a file by key and time."""
    flow = sa.Dataflow("sorted")
    watermarks: sa.Watermarks[Order] = sa.Watermarks.bounded(lambda order: order.ts, dt.timedelta(seconds=1))
    orders = flow.source("orders", FileSource(path, value=sa.Json(Order)), watermarks=watermarks)
    orders.key_by(lambda order: order.customer).process("totals", flows.RunningTotal).sink("out", flows.Discard())
    asyncio.run(sa.run(flow, sa.Config(execution="batch", sort_memory=MEMORY)))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def table(measured: Measured) -> Table:
    shown = Table(title="(b) in batch; largest resident set by the size of the input, in multiples of sort_memory")
    for column in ("streaming", "batch", "batch to streaming", "to reach", *map(_times, measured.peaks)):
        shown.add_column(column, justify="right")
    rates = [_rate(measured, seconds) for seconds in (measured.streaming, measured.batch)]
    peaks = [f"{peak:.0f} MB" for peak in measured.peaks.values()]
    shown.add_row(*rates, f"{measured.ratio:.2f}", "≥ 1.0", *peaks)
    return shown


def _times(times: int) -> str:
    return f"{times} x sort_memory"


def _rate(measured: Measured, seconds: Sequence[float]) -> str:
    return f"{measured.records / statistics.median(seconds) / 1e6:.2f} M"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sort", help="sort the orders in this file, and tell how much memory that took")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.sort:
        print(sort(options.sort))
        return
    Console(width=110).print(table(measure(events.orders(options.events, 100_000), options.rounds)))


if __name__ == "__main__":
    main()
