"""The harsh flow: a known sequence through shuffles, tiny mailboxes, failures everywhere and a sink that checks it all.

After the idea of Flink's UnalignedCheckpointITCase. Every source partition counts 0, 1, 2, … without end, until the
test says that it has had enough; then each ends where it is. What must come out is known to the last record.
"""

import asyncio
import contextlib
import datetime as dt
import itertools
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import msgspec

import streamactors as sa
from connectors.memory import ListSink
from streamactors.checkpoint.manifest import Manifest, decode_manifest
from streamactors.checkpoint.storage.local import LocalFiles
from streamactors.clock import SYSTEM
from streamactors.launch import _supervised
from streamactors.runtime.job import Job
from streamactors.sinks import Pending, SinkContext, SinkWriter
from streamactors.sources import Position, SourceBatch, SourceContext, SplitReader, SplitSource
from streamactors.submission import job_here
from streamactors.testing.failing_files import FailingFiles

PATIENCE = 60.0
MAILBOX = 4
CHUNK = 16
"""Records of one partition that a chunked shuffle sends one way, before the next ones go another."""
NAME = "harsh"


class Record(msgspec.Struct, frozen=True, gc=False):
    partition: int
    number: int


class Checked(msgspec.Struct, frozen=True, gc=False):
    """A record as the verifying step has seen it. `problem`: empty, or what was wrong with it."""

    key: str
    partition: int
    number: int
    problem: str
    copy: int = 0


# ------------------------------------------------------------------------------------------------------------- sources
class Sequences(SplitSource[Record]):
    """Partitions `first`, `first + 1`, …; partition i is read by subtask i modulo parallelism, `batch` at a time."""

    def __init__(self, partitions: int, *, first: int = 0, batch: int = 7) -> None:
        self.partitions = range(first, first + partitions)
        self.batch = batch
        self.reached = dict.fromkeys(self.partitions, 0)
        """Behind the last number ever read."""
        self.enough = False

    @property
    def bounded(self) -> bool:
        return True

    def assign(self, split: str, parallelism: int) -> int:
        return int(split) % parallelism

    def reader(self, ctx: SourceContext) -> SplitReader[Record]:
        return _SequenceReader(self, ctx)

    def expected(self) -> list[tuple[int, int]]:
        return [(partition, number) for partition, end in self.reached.items() for number in range(end)]


class _SequenceReader(SplitReader[Record]):
    def __init__(self, source: Sequences, ctx: SourceContext) -> None:
        self._source = source
        self._own = [partition for partition in source.partitions if partition % ctx.parallelism == ctx.subtask]
        self._next: dict[int, int] = {}
        self._turn = 0

    async def open(self, restored: Mapping[str, Position] | None) -> Mapping[str, Position]:
        self._next = {partition: (restored or {}).get(str(partition), 0) for partition in self._own}
        return {str(partition): position for partition, position in self._next.items()}

    async def read(self) -> SourceBatch[Record] | None:
        await asyncio.sleep(0)  # as one that waits for a network would
        for _ in self._own:
            partition = self._own[self._turn % len(self._own)]
            self._turn += 1
            if numbers := self._numbers(partition):
                return self._batch(partition, numbers)
        return None

    def _numbers(self, partition: int) -> range:
        start, source = self._next[partition], self._source
        stop = start + source.batch
        if source.enough:
            stop = min(stop, source.reached[partition])
        source.reached[partition] = max(source.reached[partition], stop)
        self._next[partition] = max(start, stop)
        return range(start, stop)

    def _batch(self, partition: int, numbers: range) -> SourceBatch[Record]:
        values = [Record(partition, number) for number in numbers]
        return SourceBatch(str(partition), values, lambda taken: numbers.start + taken)

    async def close(self) -> None:
        return None


# -------------------------------------------------------------------------------------------------------------- faults
class Injected(Exception):
    """On purpose."""


@dataclass
class Faults:
    """Each place asks whether it is to fail now. Armed one at a time; strikes once, some calls later."""

    hits: Counter[str] = field(default_factory=Counter)
    _armed: dict[str, int] = field(default_factory=dict)

    def arm(self, place: str, after: int = 0) -> None:
        self._armed[place] = after

    def strike(self, place: str) -> None:
        if place not in self._armed:
            return
        self._armed[place] -= 1
        if self._armed[place] < 0:
            del self._armed[place]
            self.hits[place] += 1
            raise Injected(f"{place} fails")


class FailingMap(sa.Operator[Record, Record]):
    """Hands everything on; fails in a record, on opening and on closing."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def open(self, ctx: sa.OperatorContext, /) -> None:
        self._faults.strike("open")

    async def process(self, value: Record, ctx: sa.Context[None, Record], /) -> None:
        self._faults.strike("map")
        ctx.emit(value)
        if value.number % 11 == 0:
            await ctx.drain()

    def close(self) -> None:
        self._faults.strike("close")


ODD = sa.OutputTag("odd", Record)


class Parting(FailingMap):
    """Odd numbers leave by a side output."""

    async def process(self, value: Record, ctx: sa.Context[None, Record], /) -> None:
        self._faults.strike("map")
        if value.number % 2:
            ctx.emit_to(ODD, value)
        else:
            ctx.emit(value)
        if value.number % 11 == 0:
            await ctx.drain()


class Copies(FailingMap):
    """Behind a broadcast: tells its own copy from those of the others."""

    def open(self, ctx: sa.OperatorContext, /) -> None:
        super().open(ctx)
        self._subtask = ctx.subtask

    async def process(self, value: Record, ctx: sa.Context[None, Any], /) -> None:
        self._faults.strike("map")
        ctx.emit((self._subtask, value))


class SlowSink(ListSink[Checked]):
    """Waits a little with every write; fails in the snapshot."""

    def __init__(self, faults: Faults, seconds: float) -> None:
        super().__init__()
        self.faults = faults
        self.seconds = seconds

    def writer(self, ctx: SinkContext) -> SinkWriter[Checked]:
        return _SlowWriter(self, super().writer(ctx))


class _SlowWriter(SinkWriter[Checked]):
    def __init__(self, sink: SlowSink, inner: SinkWriter[Checked]) -> None:
        self._sink = sink
        self._inner = inner

    async def open(self, restored: Sequence[Pending], *, committed: bool) -> None:
        await self._inner.open(restored, committed=committed)

    async def write(self, values: Sequence[Checked], timestamps: Sequence[int | None] | None) -> None:
        await asyncio.sleep(self._sink.seconds)
        await self._inner.write(values, timestamps)

    async def prepare(self, checkpoint: int) -> Sequence[Pending]:
        await asyncio.sleep(0)
        self._sink.faults.strike("prepare")
        return await self._inner.prepare(checkpoint)

    async def commit(self, checkpoint: int) -> None:
        self._sink.faults.strike("commit")
        await self._inner.commit(checkpoint)

    async def finish(self) -> None:
        await self._inner.finish()

    async def close(self) -> None:
        await self._inner.close()


# ----------------------------------------------------------------------------------------------------------- verifying
class InOrder(sa.KeyedOperator[str, Record, Checked]):
    """Of one key, every record is the one after the last; the first one is where its key begins."""

    next = sa.ValueState(int, default=-1)

    def process(self, value: Record, ctx: sa.Context[str, Checked], /) -> None:
        expected = self.next.get()
        problem = ""
        if expected < 0:
            expected = self.begin(value)
        if value.number != expected:
            problem = f"{'repeated or out of order' if value.number < expected else 'skipped'}: expected {expected}"
        self.next.set(max(expected, value.number + 1))
        ctx.emit(Checked(ctx.key, value.partition, value.number, problem))

    def begin(self, value: Record) -> int:
        return 0


class InOrderOfChunk(InOrder):
    def begin(self, value: Record) -> int:
        return value.number // CHUNK * CHUNK


class Once(sa.KeyedOperator[str, Record, Checked]):
    """No record of a key comes twice; they may come in any order."""

    seen = sa.MapState(int, int)

    def process(self, value: Record, ctx: sa.Context[str, Checked], /) -> None:
        block, bit = value.number // 32, 1 << value.number % 32
        before = self.seen.get(block) or 0
        self.seen[block] = before | bit
        ctx.emit(Checked(ctx.key, value.partition, value.number, "repeated" if before & bit else ""))


class CopiesInOrder(sa.KeyedOperator[str, tuple[int, Record], Checked]):
    """Of one copy: as `InOrder`, but a subtask that came with a rescale begins where the one that it copies was."""

    next = sa.ValueState(int, default=-1)

    def process(self, copy: tuple[int, Record], ctx: sa.Context[str, Checked], /) -> None:
        value, expected = copy[1], self.next.get()
        problem = "" if expected in (-1, value.number) else f"expected {expected}"
        self.next.set(max(expected, value.number + 1))
        ctx.emit(Checked(ctx.key, value.partition, value.number, problem, copy[0]))


def partition_key(record: Record) -> str:
    return f"p{record.partition}"


def chunk_key(record: Record) -> str:
    return f"p{record.partition}/{record.number // CHUNK}"


def parity_key(record: Record) -> str:
    return f"p{record.partition}%{record.number % 2}"


def copy_key(copy: tuple[int, Record]) -> str:
    return f"{copy[0]}:p{copy[1].partition}"


# ----------------------------------------------------------------------------------------------------------- topologies
Topology = Callable[["World"], sa.Dataflow]


def pipeline(world: "World") -> sa.Dataflow:
    """source → shuffle → failing map → chunked shuffle → verifying step → slow sink."""
    flow = sa.Dataflow(NAME)
    mapped = flow.source("numbers", world.source()).key_by(partition_key).process("map", world.failing_map)
    mapped.key_by(chunk_key).process("verify", InOrderOfChunk).sink("out", world.sink)
    return flow


def multi_input(world: "World") -> sa.Dataflow:
    """Three sources, one of them behind a step of its own, meet before the shuffle and again after it."""
    flow = sa.Dataflow(NAME)
    first, second, third = (flow.source(f"numbers-{place}", world.source()) for place in range(3))
    met = first.union(second.map(lambda record: record)).key_by(partition_key).process("map", world.failing_map)
    met.union(third).key_by(partition_key).process("verify", InOrder).sink("out", world.sink)
    return flow


def rebalanced(world: "World") -> sa.Dataflow:
    flow = sa.Dataflow(NAME)
    mapped = flow.source("numbers", world.source()).rebalance().process("map", world.failing_map)
    spread = mapped.rebalance().map(lambda record: record)
    spread.key_by(partition_key).process("verify", Once).sink("out", world.sink)
    return flow


def forward(world: "World") -> sa.Dataflow:
    """Behind the shuffle, four actors of one chain each in its own, and the last again chained."""
    flow = sa.Dataflow(NAME)
    shuffled = flow.source("numbers", world.source()).key_by(partition_key)
    mapped = shuffled.process("map", world.failing_map, chain=False).map(lambda record: record, chain=False)
    mapped = mapped.filter(lambda record: True, chain=False).flat_map(lambda record: [record])
    mapped.key_by(partition_key).process("verify", InOrder).sink("out", world.sink, chain=False)
    return flow


def sided(world: "World") -> sa.Dataflow:
    """What leaves by a side output meets the rest again."""
    flow = sa.Dataflow(NAME)
    even = flow.source("numbers", world.source()).key_by(partition_key).process("map", world.parting)
    odd = even.side_output(ODD).map(lambda record: record, chain=False)
    even.union(odd).key_by(parity_key).process("verify", Once).sink("out", world.sink)
    return flow


def diamond(world: "World") -> sa.Dataflow:
    """Two ways from the one step to the other, chained and over an exchange."""
    flow = sa.Dataflow(NAME)
    mapped = flow.source("numbers", world.source()).key_by(partition_key).process("map", world.failing_map)
    even = mapped.filter(lambda record: record.number % 2 == 0)
    odd = mapped.key_by(partition_key).filter(lambda record: record.number % 2 == 1)
    even.union(odd).key_by(parity_key).process("verify", Once).sink("out", world.sink)
    return flow


def broadcast(world: "World") -> sa.Dataflow:
    flow = sa.Dataflow(NAME)
    copies: Any = flow.source("numbers", world.source()).broadcast().process("map", world.copies)
    copies.key_by(copy_key).process("verify", CopiesInOrder).sink("out", world.sink)
    return flow


# -------------------------------------------------------------------------------------------------------------- running
@dataclass
class Restored:
    """What one attempt started from."""

    uri: str
    in_flight: int
    """Records."""


class World:
    """What outlives the job's crashes: sources, sink, storage, faults; and what was seen of its recoveries."""

    def __init__(
        self,
        folder: Path,
        topology: Topology,
        *,
        partitions: int = 6,
        seconds: float = 0.002,
        overtaking: bool = True,
        kept: int = 1,
        backends: Sequence[str] = ("heap",),
        **checkpoints: Any,
    ) -> None:
        """`backends`: of the legs, in turn."""
        self.faults = Faults()
        self.sink = SlowSink(self.faults, seconds)
        self.files = FailingFiles(LocalFiles(folder.as_uri(), clock=SYSTEM))
        self.sources: list[Sequences] = []
        self.restored: list[Restored] = []
        self.restarts = 0
        self.given_up = 0
        """Checkpoints."""
        self.overtaking = overtaking
        self._topology = topology
        self._kept = kept
        self._folder = folder
        self._partitions = partitions
        self._checkpoints = checkpoints
        self._made = 0
        self._backends = itertools.cycle(backends)
        self.local = folder / "local"

    # ------------------------------------------------------------------------------------------ what the topology takes
    def source(self) -> Sequences:
        """The same ones, in the same order, whenever the flow is built."""
        self._made += 1
        if self._made > len(self.sources):
            self.sources.append(Sequences(self._partitions, first=100 * len(self.sources)))
        return self.sources[self._made - 1]

    def failing_map(self) -> FailingMap:
        return FailingMap(self.faults)

    def parting(self) -> Parting:
        return Parting(self.faults)

    def copies(self) -> Copies:
        return Copies(self.faults)

    # ------------------------------------------------------------------------------------------------------------- legs
    @contextlib.asynccontextmanager
    async def leg(self, parallelism: int, **checkpoints: Any) -> AsyncIterator["Leg"]:
        """The job at one parallelism, from the latest checkpoint; ends by a crash if nothing else ends it."""
        self._made = 0
        flow = self._topology(self)
        settings: dict[str, Any] = {"interval": dt.timedelta(milliseconds=5), "retain": 4}
        settings |= self._checkpoints | checkpoints
        config = sa.Config(
            parallelism=parallelism,
            mailbox_capacity=MAILBOX,
            state_backend=self._backend(next(self._backends)),
            checkpoints=sa.Checkpoints(self._folder.as_uri(), **settings),
            restart=sa.Restart.fixed(dt.timedelta(0), 100),
        )
        job = self.job(flow, config)
        with _listening(self):
            async with _supervised(job, None, "cancel", dt.timedelta(0)) as handle:
                yield Leg(self, handle)
                self.restarts += handle.metrics()["restarts"]
                await handle.cancel()

    def manifest(self, uri: str) -> Manifest:
        return manifest_of(uri)

    def job(self, flow: sa.Dataflow, config: sa.Config) -> Job:
        return job_here(flow.graph(), config, restore="latest", fresh=False, resources=None, files=self.files)

    def _backend(self, name: str) -> Any:
        """RocksDB with so little memory that nearly every record is read from the disk."""
        return name if name == "heap" else sa.RocksDB(folder=str(self.local), memory=4 << 20, cache=16)

    async def finish(self, leg: "Leg") -> None:
        for source in self.sources:
            source.enough = True
        self.sink.seconds = 0.0
        async with asyncio.timeout(PATIENCE):
            await leg.job.wait()

    # ---------------------------------------------------------------------------------------------------------- verdict
    def verdict(self) -> dict[str, int]:
        """Of the committed output: all of it must be 0."""
        found = Counter((checked.copy, checked.partition, checked.number) for checked in self.sink.values)
        records = [record for source in self.sources for record in source.expected()]
        if self._topology is broadcast:
            # Subtasks that were not there all the time have missed something, and rightly so.
            found = Counter({record: count for record, count in found.items() if record[0] < self._kept})
            expected = Counter((copy, *record) for copy in range(self._kept) for record in records)
        else:
            expected = Counter((0, *record) for record in records)
        wrong = sum(checked.problem != "" for checked in self.sink.values)
        ordered = self._topology is not rebalanced
        return {
            "lost": (expected - found).total(),
            "duplicated": (found - expected).total(),
            "out of order": wrong + (_out_of_order(self.sink.values) if ordered else 0),
        }


def _out_of_order(values: Sequence[Checked]) -> int:
    last: dict[str, int] = {}
    wrong = 0
    for checked in values:
        wrong += checked.number <= last.get(checked.key, -1)
        last[checked.key] = checked.number
    return wrong


class Leg:
    def __init__(self, world: World, job: sa.JobHandle) -> None:
        self.world = world
        self.job = job

    async def checkpointed(self) -> None:
        """Waits for the next checkpoint, which is what a failure now would restore; one with records in flight, where
        there can be such."""
        before = self._last()
        await self.until(lambda: self._last() > before and (self._in_flight() or not self.world.overtaking))

    async def fail(self, place: str, after: int = 0) -> None:
        """After a checkpoint: arm, and wait until it has struck and the job has been restarted for it."""
        await self.checkpointed()
        hits, restarts = self.world.faults.hits[place], self.job.metrics()["restarts"]
        self.world.faults.arm(place, after)
        await self.until(lambda: self.world.faults.hits[place] > hits and self._restarted(restarts))

    async def aborts(self, least: int) -> None:
        """Waits until so many more checkpoints were given up."""
        before = self.world.given_up
        await self.until(lambda: self.world.given_up - before >= least)

    async def fail_storage(self, operation: str, path: str) -> None:
        await self.checkpointed()
        restarts = self.job.metrics()["restarts"]
        failure = self.world.files.fail(operation, path, times=1)
        await self.until(lambda: failure.hits and self._restarted(restarts))
        self.world.faults.hits["storage"] += 1
        failure.active = False

    def _restarted(self, before: int) -> bool:
        return bool(self.job.metrics()["restarts"] > before and self.job.status == "running")

    def _last(self) -> int:
        info = self.job.metrics()["last_checkpoint"]
        return 0 if info is None else info.id

    def _in_flight(self) -> int:
        return int(self.job.metrics()["last_checkpoint"].inflight_bytes)

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                if self.job.status in ("failed", "finished"):
                    await self.job.wait()
                    raise AssertionError("the job has ended")
                await asyncio.sleep(0.001)


class _Listener(logging.Handler):
    def __init__(self, world: World) -> None:
        super().__init__(logging.INFO)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg == "%s: restoring %s" and isinstance(record.args, tuple):
            uri = str(record.args[1])
            self._world.restored.append(Restored(uri, self._world.manifest(uri).in_flight_records))
        elif "was given up" in record.msg:
            self._world.given_up += 1


@contextlib.contextmanager
def _listening(world: World) -> Iterator[None]:
    """To the job's own word on what it restores."""
    log, listener = logging.getLogger("streamactors.job"), _Listener(world)
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(listener)
    try:
        yield
    finally:
        log.removeHandler(listener)
        log.setLevel(level)


def manifest_of(uri: str) -> Manifest:
    path = Path(urlparse(uri).path) / "manifest"
    return decode_manifest(path.read_bytes(), str(path))
