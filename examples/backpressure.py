"""Aligned and unaligned checkpoints side by side, under back-pressure: two jobs, alike but for one setting.

    python -m examples.backpressure [seconds]

A source fills every mailbox, since what is behind it takes 1,000 records a second only. An aligned barrier waits its
turn behind all that is queued. An unaligned one goes ahead of it, and what it went ahead of is stored with the
checkpoint. Both give the same guarantee. docs/checkpoints.md says when to choose which.
"""

import asyncio
import datetime as dt
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Literal

import streamactors as sa
from connectors.memory import ListSource

RECORDS_PER_SECOND = 1_000
CAPACITY = 1_000
Alignment = Literal["aligned", "unaligned"]


class Count(sa.KeyedOperator[int, int, tuple[int, int]]):
    count = sa.ValueState(int, default=0)

    def process(self, value: int, ctx: sa.Context[int, tuple[int, int]]) -> None:
        self.count.set(self.count.get() + 1)
        ctx.emit((ctx.key, self.count.get()))


class SlowDatabase(sa.Operator[tuple[int, int], None]):
    """Stands for a service that takes its time."""

    async def process(self, count: tuple[int, int], ctx: sa.Context[None, None]) -> None:
        await asyncio.sleep(1 / RECORDS_PER_SECOND)


def build(alignment: Alignment) -> sa.Dataflow:
    flow = sa.Dataflow(f"slow-{alignment}")
    (
        flow.source("numbers", ListSource(range(1_000_000)))
        .key_by(lambda number: number % 100)
        .process("count", Count)
        .rebalance()
        .process("database", SlowDatabase)
    )
    return flow


def config(folder: str, alignment: Alignment) -> sa.Config:
    checkpoints = sa.Checkpoints(folder, interval=dt.timedelta(hours=1), alignment=alignment)
    return sa.Config(checkpoints=checkpoints, mailbox_capacity=CAPACITY)


async def full(job: sa.JobHandle) -> None:
    """Until the back-pressure has reached the source."""
    while job.metrics()["subtasks"]["numbers[0]"]["unsent"] == 0:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def checkpoints(job: sa.JobHandle, deadline: float) -> AsyncIterator[sa.CheckpointInfo]:
    """One after another, with a little pause."""
    await full(job)
    while asyncio.get_running_loop().time() < deadline:
        yield await job.checkpoint()
        await asyncio.sleep(0.5)


async def show(job: sa.JobHandle, alignment: str, deadline: float, print: Callable[[str], None]) -> float:
    """Print each checkpoint as it completes; the longest one, in seconds."""
    longest = 0.0
    async for info in checkpoints(job, deadline):
        seconds = info.duration.total_seconds()
        bar = "█" * round(seconds * 20)
        print(
            f"{alignment:>9}  checkpoint {info.id:2}  {seconds:6.3f} s  {info.inflight_bytes:7,} bytes in flight  {bar}"
        )
        longest = max(longest, seconds)
    return longest


async def compare(seconds: float, print: Callable[[str], None] = print) -> dict[str, float]:
    """Run both for so long; the longest checkpoint of each, in seconds."""
    alignments: tuple[Alignment, ...] = ("aligned", "unaligned")
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="streamactors-backpressure-"))
        jobs = [
            await stack.enter_async_context(sa.start(build(each), config(folder, each), on_exit="cancel"))
            for each in alignments
        ]
        deadline = asyncio.get_running_loop().time() + seconds
        shown = [show(job, each, deadline, print) for job, each in zip(jobs, alignments, strict=True)]
        longest: dict[str, float] = dict(zip(alignments, await asyncio.gather(*shown), strict=True))
    for alignment, duration in longest.items():
        print(f"longest {alignment} checkpoint: {duration:.3f} s")
    return longest


if __name__ == "__main__":
    asyncio.run(compare(float(sys.argv[1]) if len(sys.argv) > 1 else 15.0))
