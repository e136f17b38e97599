"""How long a checkpoint takes with several workers, and how long until a job goes on when one of them is killed.

The source is slow: what is measured is the way of barriers and files, and finding and replacing a worker, on a machine
with fewer cores than workers.
"""

import asyncio
import datetime as dt
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

import streamactors as sa
from benchmarks.scale_out.job import Orders, TimedTotal, running_sum, seen, started, until

WORKERS = (1, 2, 4, 8)
CHECKPOINTS = 5
KEYS = 10_000
PAUSE = 0.5
"""Seconds between two batches of each subtask."""


@dataclass(frozen=True)
class Row:
    """In seconds. `first` and `all`: from a worker's SIGKILL until one subtask of the totals, and every one, has
    processed a record again."""

    workers: int
    subtasks: int
    checkpoints: Sequence[float]
    first: float
    all: float


def measure(workers: Sequence[int] = WORKERS, checkpoints: int = CHECKPOINTS) -> list[Row]:
    return [asyncio.run(_measured(each, checkpoints)) for each in workers]


async def _measured(workers: int, checkpoints: int) -> Row:
    with tempfile.TemporaryDirectory(prefix="streamactors-bench-") as folder:
        storage = sa.Checkpoints(Path(folder).as_uri(), interval=dt.timedelta(hours=1))
        restart = sa.Restart.fixed(dt.timedelta(0), 10)
        config = sa.Config(
            parallelism=workers, checkpoints=storage, restart=restart, deployment=sa.Ray(workers=workers)
        )
        flow = running_sum(Orders(KEYS, KEYS, pause=PAUSE), workers, TimedTotal)
        async with started(flow, config) as job:
            assert job.plan is not None
            await job.checkpoint()  # the first one opens the storage
            took = [await _checkpoint(job) for _ in range(checkpoints)]
            return Row(workers, len(job.plan.subtasks), took, *await _recovery(job))


async def _checkpoint(job: sa.JobHandle) -> float:
    began = time.monotonic()
    await job.checkpoint()
    return time.monotonic() - began


async def _recovery(job: sa.JobHandle) -> tuple[float, float]:
    before = seen(job)
    killed = time.monotonic()
    os.kill(next(iter(before.values())).pid, signal.SIGKILL)
    await until(lambda: all(told.first > killed for told in seen(job).values()) and len(seen(job)) == len(before))
    again = [told.first - killed for told in seen(job).values()]
    return min(again), max(again)


def table(rows: Sequence[Row]) -> Table:
    shown = Table(title="checkpoints, and recovery after a worker's SIGKILL; seconds")
    columns = ("workers", "subtasks", "a checkpoint: median", "most", "first record again", "every subtask again")
    for column in columns:
        shown.add_column(column, justify="right")
    for row in rows:
        checkpoints = f"{statistics.median(row.checkpoints):.3f}", f"{max(row.checkpoints):.3f}"
        shown.add_row(str(row.workers), str(row.subtasks), *checkpoints, f"{row.first:.1f}", f"{row.all:.1f}")
    return shown
