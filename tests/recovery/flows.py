"""A small job in this process: events from a log file that grows, a sum per key, and a sink."""

import asyncio
import datetime as dt
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

import streamactors as sa
from connectors.files import FileSink, FileSource
from streamactors.checkpoint.storage.contract import Files
from streamactors.clock import SYSTEM
from streamactors.sinks import Pending, SinkContext, SinkWriter, WriterSink
from streamactors.submission import job_here

T = TypeVar("T")
PATIENCE = 60.0
FLOW = "sums"
NEVER = dt.timedelta(hours=1)


class Event(msgspec.Struct):
    key: str
    amount: int


class Sum(msgspec.Struct):
    key: str
    total: int


class Sums(sa.KeyedOperator[str, Event, Sum]):
    total = sa.ValueState(int, default=0)

    def process(self, event: Event, ctx: sa.Context[str, Sum], /) -> None:
        self.total.set(self.total.get() + event.amount)
        ctx.emit(Sum(event.key, self.total.get()))


class EventLog:
    """`expected` is what the sums of all events so far must be, per key in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.expected: defaultdict[str, list[int]] = defaultdict(list)
        path.touch()

    def add(self, *events: tuple[str, int]) -> None:
        with self.path.open("ab") as file:
            for key, amount in events:
                file.write(msgspec.json.encode(Event(key, amount)) + b"\n")
                self.expected[key].append((self.expected[key] or [0])[-1] + amount)

    def total(self, key: str) -> int:
        return self.expected[key][-1]

    def source(self, *, follow: bool = False, **options: Any) -> FileSource[Event]:
        return FileSource(str(self.path), value=sa.Json(Event), follow=follow, **options)


class PlainList(WriterSink[T]):
    """Not transactional: what is read again is seen again."""

    def __init__(self) -> None:
        self.values: list[T] = []

    @property
    def transactional(self) -> bool:
        return False

    def writer(self, ctx: SinkContext) -> SinkWriter[T]:
        return _PlainWriter(self.values)


class _PlainWriter(SinkWriter[T]):
    def __init__(self, values: list[T]) -> None:
        self._values = values

    async def open(self, restored: Sequence[Pending], *, committed: bool) -> None:
        return None

    async def write(self, values: Sequence[T], timestamps: Sequence[int | None] | None) -> None:
        self._values += values

    async def prepare(self, checkpoint: int) -> Sequence[Pending]:
        return []

    async def finish(self) -> None:
        return None

    async def close(self) -> None:
        return None


def key_of(event: Event) -> str:
    return event.key


def sums(
    source: Any,
    sink: Any,
    *,
    key: Callable[[Any], Any] = key_of,
    operator: Any = Sums,
    uid: str = "sums",
    parallelism: int = 2,
) -> sa.Dataflow:
    flow = sa.Dataflow(FLOW)
    flow.source("events", source).key_by(key).process(uid, operator, parallelism=parallelism).sink("out", sink)
    return flow


def config(storage: Path, *, restart: sa.Restart | None = None, **options: Any) -> sa.Config:
    """Checkpoints only on request, unless an `interval` is given."""
    job = {name: options.pop(name) for name in ("max_parallelism", "parallelism") if name in options}
    checkpoints = sa.Checkpoints(str(storage), **{"interval": NEVER, **options})
    return sa.Config(checkpoints=checkpoints, restart=restart or sa.Restart.none(), **job)


def part_files(folder: Path) -> FileSink[Sum]:
    return FileSink(str(folder), value=sa.Json(Sum))


def sums_in(folder: Path) -> dict[str, list[int]]:
    """Of the visible parts, in the order written."""
    parts = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return by_key(msgspec.json.decode(line, type=Sum) for part in parts for line in part.read_bytes().splitlines())


def by_key(found: Any) -> dict[str, list[int]]:
    totals: defaultdict[str, list[int]] = defaultdict(list)
    for each in found:
        totals[each.key].append(each.total)
    return dict(totals)


async def run_on(flow: sa.Dataflow, settings: sa.Config, files: Files) -> None:
    """`sa.run` on a storage that is not the local file system."""
    await job_here(
        flow.graph(), settings, restore="latest", fresh=False, resources=None, clock=SYSTEM, files=files
    ).run()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


async def until_total(job: sa.JobHandle, key: str, total: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while await job.query("sums", "total", key) != total:
            await asyncio.sleep(0.005)


async def read(job: sa.JobHandle, log: EventLog) -> None:
    """Until every event of the log has been processed."""
    for key in log.expected:
        await until_total(job, key, log.total(key))


@asynccontextmanager
async def dropped(flow: sa.Dataflow, settings: sa.Config, **options: Any) -> AsyncIterator[sa.JobHandle]:
    """A job that ends as by a crash, without a last checkpoint."""
    async with sa.start(flow, settings, on_exit="cancel", **options) as job:
        yield job


def folders_of(storage: Path) -> list[Path]:
    """Of the checkpoints, the oldest first."""
    folders = (storage / FLOW).glob("run-*/attempt-*/chk-*")
    return sorted(folders, key=lambda folder: int(folder.name.removeprefix("chk-")))


def state_files(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.iterdir() if path.name[0] == "0")


def flip_byte(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def frames(error: BaseException) -> list[str]:
    """The functions in its traceback."""
    names, trace = [], error.__traceback__
    while trace is not None:
        names.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    return names


def warnings_in(records: Sequence[logging.LogRecord]) -> str:
    return "\n".join(record.getMessage() for record in records if record.levelno >= logging.WARNING)
