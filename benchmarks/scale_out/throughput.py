"""(b) over one worker and over two, each on a core of its own; and two jobs of one worker each, side by side.

The two jobs have nothing to send each other: they are what the machine can give to two workers, whose processors share
caches and memory.
"""

import asyncio
import os
import statistics
from collections.abc import Sequence
from contextlib import AsyncExitStack
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
    each second and core. `workers`: of each job."""

    workers: int
    mailbox_capacity: int
    rates: Sequence[float]
    cpu_micros: Sequence[float]
    shares: Sequence[float]
    jobs: int = 1


def measure(seconds: float, rounds: int, capacities: Sequence[int], count: int = COUNT) -> list[Row]:
    """One worker, two, and two jobs, in turn."""
    cases = [(jobs, workers, capacity) for capacity in capacities for jobs, workers in ((1, 1), (1, 2), (2, 1))]
    told = {case: list[tuple[float, float, float]]() for case in cases}
    for _ in range(rounds):
        for case in cases:
            told[case].append(asyncio.run(_measured(*case, seconds, count)))
    return [_row(*case, told[case]) for case in cases]


def _row(jobs: int, workers: int, capacity: int, told: Sequence[tuple[float, float, float]]) -> Row:
    rates, cpu_micros, shares = zip(*told, strict=True)
    return Row(workers, capacity, rates, cpu_micros, shares, jobs)


async def _measured(jobs: int, workers: int, capacity: int, seconds: float, count: int) -> tuple[float, float, float]:
    cores = sorted(os.sched_getaffinity(0))[: jobs * workers]
    config = sa.Config(parallelism=PARALLELISM, mailbox_capacity=capacity, deployment=sa.Ray(workers=workers))
    async with AsyncExitStack() as all_started:
        running = []
        for job in range(jobs):
            source = Orders(count, KEYS, cores[job * workers :][:workers])
            flow = running_sum(source, PARALLELISM, name=f"scale-out-{job}")
            running.append(await all_started.enter_async_context(started(flow, config)))
        await asyncio.sleep(seconds / 5)  # the state has most of its keys
        before = _seen(running)
        await asyncio.sleep(seconds)
        return figures(before, _seen(running), jobs * workers)


def _seen(jobs: Sequence[sa.JobHandle]) -> dict[str, Seen]:
    return {f"{job.name}/{name}": one for job in jobs for name, one in seen(job).items()}


def figures(before: dict[str, Seen], after: dict[str, Seen], processes: int) -> tuple[float, float, float]:
    """See `Row`. Each subtask has told of a time of its own."""
    rate = sum((after[name].records - one.records) / (after[name].at - one.at) for name, one in before.items())
    cpu = {after[name].pid: (after[name].cpu - one.cpu) / (after[name].at - one.at) for name, one in before.items()}
    used = sum(cpu.values())
    return rate, 1e6 * used / rate, used / processes


def ratio(one: Row, other: Row) -> float:
    return statistics.median(b / a for a, b in zip(one.rates, other.rates, strict=True))


def ratio_by_cpu(one: Row, other: Row) -> float:
    """What it would be if each worker had its core to itself."""
    return statistics.median(2 * a / b for a, b in zip(one.cpu_micros, other.cpu_micros, strict=True))


def table(rows: Sequence[Row]) -> Table:
    shown = Table(
        title=f"(b) over workers with a core each: two of one, to reach ≥ {TARGET}; two jobs are what the machine gives"
    )
    columns = "mailboxes", "jobs", "workers each", "records/s", "CPU µs", "share of its core", "of one", "by CPU alone"
    for column in columns:
        shown.add_column(column, justify="right")
    ones = {row.mailbox_capacity: row for row in rows if row.jobs == row.workers == 1}
    for row in rows:
        one = ones[row.mailbox_capacity]
        both = (f"{ratio(one, row):.2f}", f"{ratio_by_cpu(one, row):.2f}") if row is not one else ("", "")
        rate, cpu, share = map(statistics.median, (row.rates, row.cpu_micros, row.shares))
        cells = f"{row.mailbox_capacity:,}", str(row.jobs), str(row.workers), f"{rate / 1e6:.2f} M"
        shown.add_row(*cells, f"{cpu:.2f}", f"{share:.0%}", *both)
    return shown
