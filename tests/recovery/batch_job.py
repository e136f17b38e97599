"""A batch job in a process of its own: sums from a file into a folder, through a sort that spills.

python -m tests.recovery.batch_job EVENTS FOLDER SCRATCH [MOST]

With MOST so many sums come out, and then it waits to be killed.
"""

import asyncio
import datetime as dt
import signal
import sys

import msgspec

import streamactors as sa
from connectors.files import FileSink, FileSource


class Event(msgspec.Struct):
    key: str
    amount: int
    at: int


class Sum(msgspec.Struct):
    key: str
    total: int


class Sums(sa.KeyedOperator[str, Event, Sum]):
    total = sa.ValueState(int, default=0)

    def process(self, event: Event, ctx: sa.Context[str, Sum], /) -> None:
        self.total.set(self.total.get() + event.amount)
        ctx.emit(Sum(ctx.key, self.total.get()))


def job(events: str, folder: str) -> sa.Dataflow:
    flow = sa.Dataflow("batch-job")
    watermarks: sa.Watermarks[Event] = sa.Watermarks.bounded(lambda event: event.at, dt.timedelta(milliseconds=10))
    source = flow.source("events", FileSource(events, value=sa.Json(Event)), watermarks=watermarks)
    sums = source.key_by(lambda event: event.key).process("sums", Sums, parallelism=2)
    sums.map(told).sink("out", FileSink(folder, value=sa.Json(Sum), roll_bytes=20_000), parallelism=2)
    return flow


def told(value: Sum) -> Sum:
    """The first result, which comes in the middle, is announced to whoever watches."""
    global _told
    if not _told:
        print("giving out", flush=True)
    _told += 1
    if _told == _most:
        signal.pause()
    return value


_told, _most = 0, 0


def config(scratch: str) -> sa.Config:
    return sa.Config(execution="batch", sort_memory=400_000, sort_folder=scratch)


if __name__ == "__main__":
    _most = int(sys.argv[4]) if len(sys.argv) > 4 else 0
    asyncio.run(sa.run(job(sys.argv[1], sys.argv[2]), config(sys.argv[3])))
