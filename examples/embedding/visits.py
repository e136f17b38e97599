"""The job that all of these hosts run: it counts the visits of pages, and tells each new count."""

import datetime as dt
from collections.abc import AsyncIterator
from pathlib import Path

import streamactors as sa
from connectors.queue import QueueSource


class Count(sa.KeyedOperator[str, str, str]):
    visits = sa.ValueState(int, default=0)

    def process(self, page: str, ctx: sa.Context[str, str]) -> None:
        self.visits.set(self.visits.get() + 1)
        ctx.emit(f"{page}: {self.visits.get()}")


def queue_in(folder: Path) -> QueueSource[str]:
    """What the host puts in is on the disk before `put` returns."""
    return QueueSource(str(folder / "visits"), value=sa.Text())


def build(visits: QueueSource[str]) -> sa.Dataflow:
    flow = sa.Dataflow("visits")
    flow.source("visits", visits).key_by(lambda page: page).process("count", Count)
    return flow


def config(folder: Path) -> sa.Config:
    storage = f"file://{folder.absolute()}/checkpoints"
    return sa.Config(checkpoints=sa.Checkpoints(storage, interval=dt.timedelta(seconds=10)))


async def events(job: sa.JobHandle) -> AsyncIterator[bytes]:
    """What is counted from now on, as server-sent events, until the client goes or the job ends."""
    async with job.subscribe("count") as counts:
        yield b": connected\n\n"
        async for line in counts:
            yield f"data: {line}\n\n".encode()
