"""(b) over one worker and over two, each on a core of its own."""

import asyncio
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

import streamactors as sa
from benchmarks.scale_out.job import Orders, Seen, running_sum, seen, started

TARGET = 1.7
KEYS = 100_000
COUNT = 200_000
"""Orders that each worker makes beforehand, and reads over and over."""
PARALLELISM = 2


@dataclass(frozen=True)
class Row:
    """By round: records/s; microseconds of the workers' CPU for each record; seconds of CPU that the workers had, of
    each second and core."""

    workers: int
    mailbox_capacity: int
    rates: Sequence[float]
    cpu_micros: Sequence[float]
    shares: Sequence[float]


def measure(seconds: float, rounds: int, capacities: Sequence[int], count: int = COUNT) -> list[Row]:
    """One worker and two in turn."""
    cases = [(workers, capacity) for capacity in capacities for workers in (1, 2)]
    told = {case: list[tuple[float, float, float]]() for case in cases}
    for _ in range(rounds):
        for case in cases:
            told[case].append(asyncio.run(_measured(*case, seconds, count)))
    return [Row(*case, *zip(*measured, strict=True)) for case, measured in told.items()]


async def _measured(workers: int, capacity: int, seconds: float, count: int) -> tuple[float, float, float]:
    cores = sorted(os.sched_getaffinity(0))[:workers]
    flow = running_sum(Orders(count, KEYS, cores), PARALLELISM)
    config = sa.Config(parallelism=PARALLELISM, mailbox_capacity=capacity, deployment=sa.Ray(workers=workers))
    async with started(flow, config) as job:
        await asyncio.sleep(seconds / 5)  # the state has most of its keys
        before = seen(job)
        await asyncio.sleep(seconds)
        return figures(before, seen(job), workers)


def figures(before: dict[str, Seen], after: dict[str, Seen], workers: int) -> tuple[float, float, float]:
    """See `Row`. Each subtask has told of a time of its own."""
    rate = sum((after[name].records - one.records) / (after[name].at - one.at) for name, one in before.items())
    cpu = {after[name].pid: (after[name].cpu - one.cpu) / (after[name].at - one.at) for name, one in before.items()}
    used = sum(cpu.values())
    return rate, 1e6 * used / rate, used / workers


def ratio(one: Row, two: Row) -> float:
    return statistics.median(b / a for a, b in zip(one.rates, two.rates, strict=True))


def ratio_by_cpu(one: Row, two: Row) -> float:
    """What it would be if each worker had its core to itself."""
    return statistics.median(2 * a / b for a, b in zip(one.cpu_micros, two.cpu_micros, strict=True))


def table(rows: Sequence[Row]) -> Table:
    shown = Table(title=f"(b) over workers with a core each; two of one: to reach ≥ {TARGET}")
    for column in ("mailboxes", "workers", "records/s", "CPU µs", "share of its core", "two of one", "by CPU alone"):
        shown.add_column(column, justify="right")
    ones = {row.mailbox_capacity: row for row in rows if row.workers == 1}
    for row in rows:
        one = ones[row.mailbox_capacity]
        both = (f"{ratio(one, row):.2f}", f"{ratio_by_cpu(one, row):.2f}") if row is not one else ("", "")
        rate, cpu, share = map(statistics.median, (row.rates, row.cpu_micros, row.shares))
        shown.add_row(
            f"{row.mailbox_capacity:,}", str(row.workers), f"{rate / 1e6:.2f} M", f"{cpu:.2f}", f"{share:.0%}", *both
        )
    return shown
