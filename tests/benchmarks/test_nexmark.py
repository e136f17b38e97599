"""Every query gives what the oracle says: alone, in batch, over a crash, and restored at another parallelism."""

import asyncio
import datetime as dt
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from benchmarks.nexmark.generator import Generator, NexmarkReader, NexmarkSource
from benchmarks.nexmark.model import Bid, Event
from benchmarks.nexmark.oracle import Oracle
from benchmarks.nexmark.queries import windows
from benchmarks.nexmark.queries.catalogue import QUERIES
from benchmarks.nexmark.streams import Row, Streams, side_rows
from connectors.memory import ListSink, ListSource
from streamactors.checkpoint.storage.scratch import ScratchFile
from streamactors.sources import SourceBatch, SourceContext
from tests.recovery.flows import PATIENCE, config, until

pytestmark = pytest.mark.slow

EVENTS = 6_000
MIDNIGHT = 1_714_608_000_000
GENERATOR = Generator(start=MIDNIGHT - 20_000, rate=100, disorder=700)
"""A minute, over the end of a day: several windows of ten seconds, and sessions that end in it."""
EVENING = Generator(start=MIDNIGHT - 5 * 3_600_000 - 20_000, rate=100, disorder=700)
"""Over seven o'clock, where day and night are neither."""
STOPS = (1_500, 3_000, 4_200)
CRASH = 4_800
UNKEYED = {"q0", "q1", "q2", "q14", "q21", "q22"}


class StoppingSource(NexmarkSource):
    """Gives no event from number `limit` up until that is raised; fails once it comes to `crash`."""

    def __init__(self, generator: Generator, *, limit: int, crash: int | None = None) -> None:
        super().__init__(EVENTS, generator, splits=6, batch=32)
        self.crash = crash
        self._limit = limit
        self._raised = asyncio.Event()

    def raise_limit(self, limit: int = EVENTS) -> None:
        self._limit = limit
        self._raised.set()

    async def allowed(self, number: int) -> None:
        while number >= self._limit:
            self._raised.clear()
            await self._raised.wait()
        if self.crash is not None and number >= self.crash:
            self.crash = None
            raise OSError("connection lost")

    def reader(self, ctx: SourceContext) -> NexmarkReader:
        return _StoppingReader(self, ctx)


class _StoppingReader(NexmarkReader):
    def __init__(self, source: StoppingSource, ctx: SourceContext) -> None:
        super().__init__(source, ctx)
        self._stops = source

    async def read(self) -> SourceBatch[Event] | None:
        if (number := min(self._next.values(), default=EVENTS)) < EVENTS:
            await self._stops.allowed(number)
        return await super().read()


class Answers:
    """What each query is to give."""

    def __init__(self, generator: Generator) -> None:
        self._oracle = Oracle(generator.events(EVENTS), side_rows())
        self._known: dict[str, Counter[Row]] = {}

    def to(self, name: str) -> Counter[Row]:
        if name not in self._known:
            self._known[name] = Counter(self._oracle.rows(name))
        return self._known[name]

    def close(self) -> None:
        self._oracle.__exit__()


@pytest.fixture(scope="module")
def answers() -> Iterator[Mapping[Generator, Answers]]:
    made = {generator: Answers(generator) for generator in (GENERATOR, EVENING)}
    yield made
    for each in made.values():
        each.close()


def generator_of(name: str) -> Generator:
    return EVENING if name == "q14" else GENERATOR


def flow_of(name: str, source: NexmarkSource, sink: ListSink[Row]) -> sa.Dataflow:
    flow = sa.Dataflow(name)
    build = short_windows if name == "q12" else QUERIES[name].build
    build(Streams.of(flow, source)).sink("out", sink)
    return flow


def short_windows(house: Streams) -> sa.Stream[Row]:
    """Of the clock: several of them end while the job runs."""
    return windows.q12(house, size=1)


def settings(name: str, folder: Path, parallelism: int, **options: Any) -> sa.Config:
    """Every second query on RocksDB, every second pair of them with unaligned checkpoints; mailboxes so small that a
    checkpoint meets records on their way."""
    pair, rocksdb = divmod(int(name.removeprefix("q")), 2)
    options["alignment"] = "unaligned" if pair % 2 else "aligned"
    made = config(folder / "storage", parallelism=parallelism, **options)
    return sa.Config(
        checkpoints=made.checkpoints,
        restart=made.restart,
        parallelism=parallelism,
        mailbox_capacity=256,
        state_backend=sa.RocksDB(folder=str(folder), memory=8 << 20, cache=16) if rocksdb else "heap",
    )


def check(name: str, sink: ListSink[Row], answers: Mapping[Generator, Answers]) -> None:
    found, expected = Counter(QUERIES[name].settle(sink.values)), answers[generator_of(name)].to(name)
    assert expected and found == expected, (
        f"{name}: {(found - expected).total()} rows too many, {(expected - found).total()} too few: "
        f"{list((found - expected).elements())[:5]}, {list((expected - found).elements())[:5]}"
    )


async def finish(job: sa.JobHandle) -> None:
    async with asyncio.timeout(PATIENCE):
        await job.wait()


@pytest.mark.parametrize("name", QUERIES)
async def test_at_parallelism_1(name: str, answers: Mapping[Generator, Answers]) -> None:
    sink = ListSink[Row]()
    async with asyncio.timeout(PATIENCE):
        await sa.run(flow_of(name, NexmarkSource(EVENTS, generator_of(name)), sink))
    check(name, sink, answers)


@pytest.mark.parametrize("name", QUERIES)
async def test_in_batch(
    name: str, tmp_path: Path, answers: Mapping[Generator, Answers], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With so little memory that what is sorted by key goes through files."""
    sink, written = ListSink[Row](), list[int]()
    append = ScratchFile.append

    def counted(file: ScratchFile, data: bytes) -> None:
        written.append(len(data))
        append(file, data)

    monkeypatch.setattr(ScratchFile, "append", counted)
    batch = sa.Config(parallelism=2, execution="batch", sort_memory=64 << 10, sort_folder=str(tmp_path))
    async with asyncio.timeout(PATIENCE):
        await sa.run(flow_of(name, NexmarkSource(EVENTS, generator_of(name)), sink), batch)
    check(name, sink, answers)
    assert bool(written) == (name not in UNKEYED)


@pytest.mark.parametrize("name", QUERIES)
async def test_at_parallelism_2_with_three_checkpoints_and_a_crash(
    name: str, tmp_path: Path, answers: Mapping[Generator, Answers]
) -> None:
    source, sink = StoppingSource(generator_of(name), limit=STOPS[0], crash=CRASH), ListSink[Row]()
    again = sa.Restart.fixed(dt.timedelta(0), 1)
    async with sa.start(flow_of(name, source, sink), settings(name, tmp_path, 2, restart=again)) as job:
        for limit in (*STOPS[1:], EVENTS):
            await job.checkpoint()  # while the events up to the limit before are on their way
            source.raise_limit(limit)
        await finish(job)
        assert len(job.failures) == 1 and len(job.checkpoints) >= 3
    check(name, sink, answers)
    if name == "q12":
        assert len(sink.values) > len(answers[GENERATOR].to(name)), "each bidder had one window only"


@pytest.mark.parametrize("name", QUERIES)
async def test_restored_at_parallelism_3(name: str, tmp_path: Path, answers: Mapping[Generator, Answers]) -> None:
    source, sink = StoppingSource(generator_of(name), limit=STOPS[1]), ListSink[Row]()
    async with sa.start(flow_of(name, source, sink), settings(name, tmp_path, 2), on_exit="cancel") as job:
        await until(lambda: out_of_source(job) >= STOPS[0])
        await job.checkpoint()
        source.raise_limit(STOPS[2])
        await until(lambda: out_of_source(job) >= STOPS[1] + 100)  # which come again
    async with sa.start(flow_of(name, source, sink), settings(name, tmp_path, 3)) as job:
        source.raise_limit()
        await finish(job)
    check(name, sink, answers)


async def test_every_hour_has_its_time_of_day() -> None:
    bids = [Bid(1, 2, 2_000_000, "", "", MIDNIGHT + hour * 3_600_000, str(hour)) for hour in range(24)]
    flow = sa.Dataflow("day")
    rows = await sa.collect(QUERIES["q14"].build(Streams(flow, ListSource(bids), dt.timedelta(0))))
    with Oracle(bids) as oracle:
        assert Counter(rows) == Counter(oracle.rows("q14"))
    assert Counter(row[3] for row in rows) == {"dayTime": 11, "nightTime": 11, "otherTime": 2}


def out_of_source(job: sa.JobHandle) -> int:
    subtasks = job.metrics()["subtasks"]
    return sum(found["nodes"]["events"]["records_out"] for uid, found in subtasks.items() if uid.startswith("events["))
