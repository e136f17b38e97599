"""The rules that keep the barrier protocols sound (DESIGN section 4), each against a whole job."""

import asyncio
import contextlib
import datetime as dt
import gc
import logging
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from connectors.memory import ListSink
from streamactors.checkpoint import writer
from streamactors.checkpoint.restorable import list_checkpoints
from streamactors.checkpoint.storage.local import LocalFiles
from streamactors.clock import SYSTEM
from streamactors.launch import _supervised
from streamactors.runtime import inflight
from streamactors.sinks import Pending, SinkContext, SinkWriter
from streamactors.submission import job_here
from streamactors.testing.failing_files import FailingFiles
from tests.recovery.flows import PlainList
from tests.recovery.harsh import manifest_of
from tests.runtime.feeds import PATIENCE, Feed, until
from tests.runtime.test_snapshots import Keyed, Storage, begin, snapshots

UNALIGNED: dict[str, Any] = {"alignment": "unaligned"}
TIMEOUT: dict[str, Any] = {"alignment_timeout": dt.timedelta(0)}
BIG = "x" * 300_000
"""Four of these fill what is written at once; what is captured behind them waits to be encoded."""
NAME = "rules"


class Door:
    """A step that calls pass one by one, as the test lets them."""

    def __init__(self, *, open: bool = False) -> None:
        self.entered = 0
        self.passed = 0
        self._passes = asyncio.Semaphore(0)
        self._open = open

    async def __call__(self, value: Any) -> Any:
        self.entered += 1
        if not self._open:
            await self._passes.acquire()
        self.passed += 1
        return value

    def let(self, calls: int) -> None:
        for _ in range(calls):
            self._passes.release()

    def open(self) -> None:
        self._open = True
        self.let(1000)


class RecordingSink(ListSink[Any]):
    """Tells for which checkpoints each of its subtasks was snapshot."""

    def __init__(self) -> None:
        super().__init__()
        self.prepared: list[tuple[int, int]] = []

    def writer(self, ctx: SinkContext) -> SinkWriter[Any]:
        writer = super().writer(ctx)
        prepare = writer.prepare

        async def recorded(checkpoint: int) -> Sequence[Pending]:
            self.prepared.append((ctx.subtask, checkpoint))
            return await prepare(checkpoint)

        writer.prepare = recorded  # type: ignore[method-assign]
        return writer


def config(folder: Path, *, parallelism: int = 1, capacity: int = 4096, **checkpoints: Any) -> sa.Config:
    settings: dict[str, Any] = {"interval": dt.timedelta(hours=1), "retain": 10, **checkpoints}
    return sa.Config(
        checkpoints=sa.Checkpoints(folder.as_uri(), **settings),
        parallelism=parallelism,
        mailbox_capacity=capacity,
        restart=sa.Restart.none(),
    )


@contextlib.asynccontextmanager
async def crashing(
    flow: sa.Dataflow, settings: sa.Config, files: FailingFiles | None = None, restore: str = "latest"
) -> AsyncIterator[sa.JobHandle]:
    """Leaves no last checkpoint."""
    job = job_here(flow.graph(), settings, restore=restore, fresh=False, resources=None, files=files)
    async with asyncio.timeout(PATIENCE), _supervised(job, None, "cancel", dt.timedelta(0)) as handle:
        yield handle
        await handle.cancel()


async def finish(flow: sa.Dataflow, settings: sa.Config, restore: str = "latest") -> None:
    async with asyncio.timeout(PATIENCE):
        await sa.run(flow, settings, restore=restore)


def failing(folder: Path) -> FailingFiles:
    return FailingFiles(LocalFiles(folder.as_uri(), clock=SYSTEM))


def in_flight(info: Any) -> Counter[tuple[str, str, str]]:
    """Records by their edge, and where they lay."""
    found: Counter[tuple[str, str, str]] = Counter()
    for _, edge, ref in manifest_of(info.uri).in_flight():
        found[edge.key.upstream, edge.key.downstream, "unsent" if ref.unsent else "received"] += ref.records
    return found


def fed(*values: Any, chunk: int = 64, ended: bool = True) -> Feed:
    feed = Feed(chunk=chunk)
    feed.put(*values)
    if ended:
        feed.end()
    return feed


def held_by(job: sa.JobHandle, door: Any) -> list[Any]:
    """The subtasks with that step, at which a barrier waits for a call to be over."""
    attempt: Any = job._job._attempt  # type: ignore[attr-defined]
    subtasks = attempt._deployed._subtasks.values() if attempt is not None else ()
    own = [subtask for subtask in subtasks if any(getattr(slot.link, "_fn", 0) is door for slot in subtask.chain.slots)]
    return [subtask for subtask in own if subtask.barriers.urgent() or subtask.mailbox.announced]


async def knocked(job: sa.JobHandle, door: Any) -> None:
    await until(lambda: held_by(job, door))


async def past(job: sa.JobHandle, door: Door, asked: "asyncio.Task[Any]") -> Any:
    """Lets a call pass as often as a barrier waits for one; gives what `asked` does."""
    while not asked.done():
        if held_by(job, door) and door.entered > door.passed:
            door.let(1)
        await asyncio.sleep(0.001)
    return await asked


def node(job: sa.JobHandle, uid: str) -> Any:
    """The counts of a step with one subtask."""
    return job.metrics()["subtasks"][f"{uid}[0]"]["nodes"][uid]


async def turns(count: int = 50) -> None:
    """Time enough for whatever would happen, in turns of the loop."""
    for _ in range(count):
        await asyncio.sleep(0)


# ------------------------------------------------------------------------------------------------------------- rule 1
class Burst(sa.Operator[int, int]):
    """100 records of one, with a `drain` behind every tenth."""

    calls = 0

    async def process(self, value: int, ctx: sa.Context[None, int], /) -> None:
        Burst.calls += 1
        for number in range(100):
            ctx.emit(value * 100 + number)
            if number % 10 == 9:
                await ctx.drain()


class TestRule1NeverInsideARecord:
    def held(self, feed: Feed, door: Door, sink: Any) -> sa.Dataflow:
        flow = sa.Dataflow(NAME)
        flow.source("numbers", feed).rebalance().map(door, name="door").sink("out", sink)
        return flow

    @pytest.mark.parametrize("mode", [UNALIGNED, TIMEOUT], ids=["unaligned", "timeout"])
    async def test_a_call_delays_the_snapshot_by_itself_only(self, mode: dict[str, Any], tmp_path: Path) -> None:
        door, sink, feed = Door(), ListSink[Any](), fed(*range(100))
        async with crashing(self.held(feed, door, sink), config(tmp_path, **mode)) as job:
            await until(lambda: door.entered)
            asked = asyncio.create_task(job.checkpoint())
            await knocked(job, door)
            assert not asked.done()
            door.let(1)
            info = await asked
            assert (door.passed, door.entered) == (1, 2)
        # The one that has passed is in hand behind the call.
        assert in_flight(info) == {("numbers", "map-1", "received"): 99, ("map-1", "out", "received"): 1}
        await finish(self.held(feed, Door(open=True), sink), config(tmp_path, **mode))
        assert sink.values == list(range(100))

    def bursting(self, feed: Feed, door: Door, sink: Any, *, chain: bool) -> sa.Dataflow:
        flow = sa.Dataflow(NAME)
        burst = flow.source("numbers", feed).rebalance().process("burst", Burst)
        burst.map(door, name="door", chain=chain).sink("out", sink)
        return flow

    async def test_a_drain_does_not_wait_while_a_barrier_does(self, tmp_path: Path) -> None:
        """The overflow, one record's output, is captured as unsent."""
        Burst.calls = 0
        door, sink, feed = Door(), ListSink[Any](), fed(*range(5))
        settings = config(tmp_path, capacity=20, **UNALIGNED)
        async with crashing(self.bursting(feed, door, sink, chain=False), settings) as job:
            await until(lambda: door.entered and job.metrics()["subtasks"]["burst[0]"]["unsent"])
            asked = asyncio.create_task(job.checkpoint())
            await knocked(job, door)
            # Behind the drain, the rest of the call; then the snapshot, though nothing has moved downstream.
            assert (door.entered, door.passed, Burst.calls) == (1, 0, 1)
            door.let(1)  # the call downstream has its own record in hand
            info = await asked
            assert door.passed == 1 and Burst.calls == 1
        assert in_flight(info) == {
            ("numbers", "burst", "received"): 4,
            ("burst", "map-2", "unsent"): 70,
            ("burst", "map-2", "received"): 29,
            ("map-2", "out", "unsent"): 1,
        }
        await finish(self.bursting(feed, Door(open=True), sink, chain=False), settings)
        assert sink.values == list(range(500))

    async def test_a_drain_into_its_own_chain_is_cut_short(self, tmp_path: Path) -> None:
        Burst.calls = 0
        door, sink, feed = Door(), ListSink[Any](), fed(*range(5))
        settings = config(tmp_path, capacity=20, **UNALIGNED)
        async with crashing(self.bursting(feed, door, sink, chain=True), settings) as job:
            await until(lambda: door.entered)
            asked = asyncio.create_task(job.checkpoint())
            await knocked(job, door)
            assert not asked.done()
            door.let(1)
            info = await asked
            assert (door.passed, Burst.calls) == (1, 1)
        assert sum(in_flight(info).values()) >= 99
        await finish(self.bursting(feed, Door(open=True), sink, chain=True), settings)
        assert sink.values == list(range(500))

    async def test_a_barrier_that_comes_late_on_one_channel(self, tmp_path: Path) -> None:
        """What still comes ahead of it is captured, though the snapshot is done: processed here, and again after."""
        feed, counts = Feed(2), PlainList[Any]()

        def flow(first: Door, second: Door) -> sa.Dataflow:
            flow = sa.Dataflow(NAME)
            numbers = flow.source("numbers", feed, parallelism=2)
            late = numbers.process("late", lambda: Late(first, second), parallelism=2, chain=False)
            late.key_by(lambda v: v % 3).process("count", Count, parallelism=1).sink("out", counts)
            return flow

        settings, first, second = config(tmp_path, **UNALIGNED), Door(), Door()
        feed.put(*range(10), split=0)
        feed.put(-1, *range(-20, -1), split=1)
        async with crashing(flow(first, second), settings) as job:
            await until(lambda: first.entered and len(counts.values) == 10)
            asked = asyncio.create_task(job.checkpoint())
            await until(lambda: job.metrics()["subtasks"]["count[0]"]["snapshot_seconds"])
            first.let(1)
            await until(lambda: len(counts.values) == 11)
            assert not asked.done()
            second.let(1)
            info = await asked
            before = list(counts.values)
        assert in_flight(info) == {("late", "count", "received"): 1, ("numbers", "late", "received"): 19}
        feed.end()
        await finish(flow(Door(open=True), Door(open=True)), settings)
        # Not transactional: what was counted behind the snapshot is counted again, and comes to the same.
        again = counts.values[len(before) :]
        assert again[0] == before[-1] and before[-1][0] == -1
        assert Counter(value for value, _ in again) == Counter(range(-20, 0))
        assert Counter(set(counts.values)).total() == 30


class Late(sa.Operator[int, int]):
    """Of a negative number, waits twice: before it sends it on, and before it is done with it."""

    def __init__(self, first: Door, second: Door) -> None:
        self._first, self._second = first, second

    async def process(self, value: int, ctx: sa.Context[None, int], /) -> None:
        if value < 0:
            await self._first(value)
        ctx.emit(value)
        if value < 0:
            await ctx.drain()
            await self._second(value)


class Count(sa.KeyedOperator[int, int, tuple[int, int]]):
    count = sa.ValueState(int, default=0)

    def process(self, value: int, ctx: sa.Context[int, tuple[int, int]]) -> None:
        self.count.set(self.count.get() + 1)
        ctx.emit((value, self.count.get()))


# ------------------------------------------------------------------------------------------------------------- rule 2
def ten_of(value: int) -> list[int]:
    return [value * 10 + number for number in range(10)]


class TestRule2BatchInHandAtEveryLink:
    def flow(self, feed: Feed, door: Door, sink: Any, *, chain: bool) -> sa.Dataflow:
        flow = sa.Dataflow(NAME)
        first = flow.source("numbers", feed, parallelism=1).rebalance().flat_map(ten_of, name="first")
        second = first.flat_map(ten_of, name="second", chain=chain)
        second.map(door, name="third", chain=chain).sink("out", sink, chain=chain)
        return flow

    @pytest.mark.parametrize("width", [1, 2])
    @pytest.mark.parametrize(("before", "after"), [(True, True), (True, False), (False, True), (False, False)])
    async def test_it_comes_back_also_when_chained_otherwise(
        self, before: bool, after: bool, width: int, tmp_path: Path
    ) -> None:
        door, sink, feed = Door(), ListSink[Any](), fed(*range(300), chunk=300)
        settings = config(tmp_path, capacity=1000, **UNALIGNED)
        async with crashing(self.flow(feed, door, sink, chain=before), settings) as job:
            await until(lambda: door.entered)
            asked = asyncio.create_task(job.checkpoint())
            await knocked(job, door)
            door.let(1)
            info = await asked
            assert door.passed == 1
        if before:
            edges = [edge for (*edge, where), count in in_flight(info).items() if count and where == "received"]
            assert len(edges) >= 3, "something in hand at every link"
        await finish(self.flow(feed, Door(open=True), sink, chain=after), config(
            tmp_path, parallelism=width, capacity=1000, **UNALIGNED
        ))  # fmt: skip
        assert Counter(sink.values) == Counter(range(30_000))
        if width == 1:
            assert sink.values == list(range(30_000))


# ------------------------------------------------------------------------------------------------------------- rule 3
class Change:
    """Changes its records, as no user code should that hands them on; a later encoding would show it."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, value: list[Any]) -> list[Any]:
        value[0] += 1000
        self.count += 1
        return value


class TestRule3EncodedBeforeSeen:
    async def test_records_changed_in_place_after_the_snapshot(self, tmp_path: Path) -> None:
        feed, sink, door, change = fed(*([n, BIG] for n in range(12)), chunk=1), ListSink[Any](), Door(), Change()

        def flow(door: Door, change: Change) -> sa.Dataflow:
            flow = sa.Dataflow(NAME)
            flow.source("lists", feed).rebalance().map(door).map(change).map(lambda v: v[0]).sink("out", sink)
            return flow

        files, settings = failing(tmp_path), config(tmp_path, **UNALIGNED)
        async with crashing(flow(door, change), settings, files) as job:
            await until(lambda: door.entered)
            stall = files.stall("write", "*-in-flight")
            asked = asyncio.create_task(job.checkpoint())
            await knocked(job, door)
            door.let(1)
            await stall.reached.wait()
            door.open()
            await until(lambda: change.count == 12)
            files.heal()
            await asked
        # The source's own list was changed too: what comes now comes from the checkpoint alone.
        feed.values[0][:] = [[-1, ""]] * 12
        await finish(flow(Door(open=True), Change()), settings)
        assert sink.values == [n + 1000 for n in range(12)]

    @pytest.mark.parametrize("behind", [False, True], ids=["directly", "behind a filter"])
    async def test_records_handed_to_several_consumers(self, behind: bool, tmp_path: Path) -> None:
        feed, changed, kept = fed(*([n, BIG] for n in range(12)), chunk=1), ListSink[Any](), ListSink[Any]()

        def flow(changing: Door, keeping: Door, change: Change) -> sa.Dataflow:
            flow = sa.Dataflow(NAME)
            lists = flow.source("lists", feed)
            a = lists.map(changing, chain=False).map(change).map(lambda v: v[0])
            a.sink("changed", changed)
            others = lists.filter(lambda v: True, chain=False) if behind else lists
            others.map(keeping, chain=False).map(lambda v: v[0]).sink("kept", kept)
            return flow

        files, settings = failing(tmp_path), config(tmp_path, **UNALIGNED)
        changing, keeping, change = Door(), Door(), Change()
        async with crashing(flow(changing, keeping, change), settings, files) as job:
            await until(lambda: changing.entered and keeping.entered)
            stall = files.stall("write", "*-in-flight")
            asked = asyncio.create_task(job.checkpoint())
            await knocked(job, keeping)
            await knocked(job, changing)
            keeping.let(1)
            changing.let(1)
            await stall.reached.wait()
            await turns()
            changing.open()
            await until(lambda: change.count == 12)
            files.heal()
            await asked
        feed.values[0][:] = [[-1, ""]] * 12
        await finish(flow(Door(open=True), Door(open=True), Change()), settings)
        assert changed.values == [n + 1000 for n in range(12)]
        # The first was in hand at the consumer, whose state is the snapshot's.
        assert kept.values == list(range(12))


# ------------------------------------------------------------------------------------------------------------- rule 4
class TestRule4NoBarrierOvertakesAnother:
    @pytest.mark.parametrize("mode", [UNALIGNED, TIMEOUT], ids=["unaligned", "timeout"])
    async def test_three_at_once(self, mode: dict[str, Any], tmp_path: Path) -> None:
        """All are under way at once, each with its own records in flight; each of them can be restored."""
        feed, door = Feed(2, chunk=16), Door()

        def flow(door: Door, sink: Any) -> sa.Dataflow:
            flow = sa.Dataflow(NAME)
            counted = flow.source("numbers", feed).key_by(lambda v: v % 7).process("count", Count)
            counted.key_by(lambda v: v[0] % 7).map(door).sink("out", sink)
            return flow

        sink, files = RecordingSink(), failing(tmp_path)
        settings = config(tmp_path, parallelism=2, capacity=64, max_concurrent=3, **mode)
        async with crashing(flow(door, sink), settings, files) as job:
            asked = []
            for number in range(1, 4):
                feed.put(*range(100 * number, 100 * number + 50), split=0)
                feed.put(*range(100 * number + 50, 100 * number + 100), split=1)
                await until(lambda: door.entered > door.passed)
                asked.append(asyncio.create_task(job.checkpoint()))
                await until(lambda number=number: any(tmp_path.rglob(f"chk-{number}")))  # type: ignore[misc]
                await knocked(job, door)
            assert not any(task.done() for task in asked)
            await past(job, door, asked[-1])
            infos = await asyncio.gather(*asked)
        for subtask in range(2):
            own = [checkpoint for index, checkpoint in sink.prepared if index == subtask]
            assert own == sorted(set(own))
        # One that a later one has overtaken to completion is given up, and only then: that one is told instead of it.
        complete = list({info.id: info for info in infos}.values())
        assert complete[-1].id == 3 and all(info.id >= number for number, info in enumerate(infos, 1))
        feed.end()
        for info in complete:
            assert info.inflight_bytes > 0
            again = PlainList[Any]()
            elsewhere = config(tmp_path / f"from-{info.id}", parallelism=3, capacity=64, **mode)
            await finish(flow(Door(open=True), again), elsewhere, restore=info.uri)
            numbers = Counter(value for value, _ in again.values)
            passed = Counter(range(100, 400)) - numbers
            assert numbers <= Counter(range(100, 400)) and passed.total() <= 20
            for key in range(7):
                counts = [count for value, count in again.values if value % 7 == key]
                assert counts == sorted(set(counts))


# ------------------------------------------------------------------------------------------------------------- rule 5
class TestRule5AbortsBeforeTheirBarrier:
    def flow(self, feed: Feed, door: Door, sink: Any) -> sa.Dataflow:
        flow = sa.Dataflow(NAME)
        counted = flow.source("numbers", feed).key_by(lambda v: v % 7).process("count", Count)
        counted.map(door, chain=False).sink("out", sink)
        return flow

    @pytest.mark.parametrize("mode", [UNALIGNED, TIMEOUT], ids=["unaligned", "timeout"])
    async def test_it_times_out_with_its_barrier_under_way(self, mode: dict[str, Any], tmp_path: Path) -> None:
        feed, door, sink = Feed(), Door(), RecordingSink()
        feed.put(*range(500))
        soon = {"timeout": dt.timedelta(seconds=1), "tolerable_failures": 3, **mode}
        settings = config(tmp_path, capacity=64, **soon)
        async with crashing(self.flow(feed, door, sink), settings) as job:
            await until(lambda: door.entered)
            with pytest.raises(sa.CheckpointFailed, match="not acknowledged within 1 s"):
                await job.checkpoint()
            assert sink.prepared == []
            await until(lambda: not any(tmp_path.rglob("chk-1")))
            door.let(100)
            await until(lambda: door.passed == 100)
            # Its late barrier has neither blocked nor snapshot anything.
            assert sink.prepared == []
            asked = asyncio.create_task(job.checkpoint())
            await knocked(job, door)
            door.let(1)
            info = await asked
            assert info.id == 2 and {checkpoint for _, checkpoint in sink.prepared} == {2}
        feed.end()
        await finish(self.flow(feed, Door(open=True), sink), config(tmp_path, capacity=64, **mode))
        assert Counter(value for value, _ in sink.values) == Counter(range(500))

    async def test_it_stops_capturing_and_deletes_its_files(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(writer, "SMALL", 0)  # each has a file of its own
        feed, door, sink, files = Feed(), Door(), ListSink[Any](), failing(tmp_path)
        feed.put(*range(500))
        soon = {"timeout": dt.timedelta(seconds=1), "tolerable_failures": 3, **UNALIGNED}
        async with crashing(self.flow(feed, door, sink), config(tmp_path, capacity=64, **soon), files) as job:
            await until(lambda: door.entered)
            stall = files.stall("create", "*/chk-1/manifest")
            slow = files.stall("write", "*/chk-1/*map*-in-flight")
            asked = asyncio.create_task(job.checkpoint())
            await knocked(job, door)
            door.let(1)
            await slow.reached.wait()
            await until(lambda: any(tmp_path.rglob("*-in-flight*")))
            with pytest.raises(sa.CheckpointFailed, match="not acknowledged"):
                await asked
            assert not stall.reached.is_set()
            await until(lambda: not any(tmp_path.rglob("chk-1")))
            asked = asyncio.create_task(job.checkpoint())
            await knocked(job, door)
            door.let(1)
            assert (await asked).id == 2
            files.heal()
            await turns()
            assert not any(tmp_path.rglob("chk-1"))
        feed.end()
        await finish(self.flow(feed, Door(open=True), sink), config(tmp_path, capacity=64, **UNALIGNED))
        assert Counter(value for value, _ in sink.values) == Counter(range(500))

    @pytest.mark.parametrize("captured", [False, True])
    async def test_it_is_aborted_in_the_turn_of_its_snapshot(self, captured: bool) -> None:
        """What was begun for it, and has had no turn yet, is dropped without a trace (nor a warning)."""
        taken, reports = snapshots(Storage())
        begin(taken, Keyed())
        if captured:
            assert taken.capture(1) is not None
        taken.discard(1)
        await taken.close()
        gc.collect()
        assert reports == [] and taken.capture(1) is None


# ------------------------------------------------------------------------------------------------------------- rule 6
class TestRule6EndOfData:
    def flow(self, feeds: Sequence[Feed], door: Door, sink: Any) -> sa.Dataflow:
        flow = sa.Dataflow(NAME)
        streams = [flow.source(f"numbers-{place}", feed) for place, feed in enumerate(feeds)]
        counted = streams[0].union(*streams[1:]).key_by(lambda v: v % 7).process("count", Count)
        counted.map(door, chain=False).sink("out", sink)
        return flow

    @pytest.mark.parametrize("mode", [UNALIGNED, TIMEOUT], ids=["unaligned", "timeout"])
    @pytest.mark.parametrize("width", [1, 2])
    async def test_sources_of_different_length(self, width: int, mode: dict[str, Any], tmp_path: Path) -> None:
        """Checkpoints go on when some inputs have ended, and when all have; the last one is the final one."""
        feeds, sink, door = [Feed(chunk=16), Feed(chunk=16), Feed(chunk=16)], RecordingSink(), Door()
        feeds[0].end()
        feeds[1].put(*range(30))
        feeds[1].end()
        feeds[2].put(*range(30, 300))
        settings = config(tmp_path, parallelism=width, capacity=32, **mode)
        async with crashing(self.flow(feeds, door, sink), settings) as job:
            for number in range(1, 4):
                await until(lambda: door.entered > door.passed)
                asked = asyncio.create_task(job.checkpoint())
                info = await past(job, door, asked)
                assert info.id == number and info.inflight_bytes > 0
        feeds[2].end()
        door = Door()
        async with crashing(self.flow(feeds, door, sink), settings) as job:
            # All has been read, and nobody knows it yet but the sources.
            door.let(200)
            await until(lambda: door.passed == 200)
            asked = asyncio.create_task(job.checkpoint())
            info = await past(job, door, asked)
            assert info.inflight_bytes > 0
        await finish(self.flow(feeds, Door(open=True), sink), settings)
        assert Counter(value for value, _ in sink.values) == Counter(range(300))
        latest = (await list_checkpoints(tmp_path.as_uri()))[0].manifest
        assert latest is not None and latest.final and latest.in_flight_records == 0

    async def test_all_sources_have_ended_but_much_is_in_flight(self, tmp_path: Path) -> None:
        feeds, sink, door = [fed(*range(40)), fed(*range(40, 80))], ListSink[Any](), Door()
        settings = config(tmp_path, **UNALIGNED)
        async with crashing(self.flow(feeds, door, sink), settings) as job:
            await until(lambda: door.entered and node(job, "count")["records_in"] == 80)
            asked = asyncio.create_task(job.checkpoint())
            await knocked(job, door)
            door.let(1)
            info = await asked
            assert sum(in_flight(info).values()) == 80
        await finish(self.flow(feeds, Door(open=True), sink), config(tmp_path, parallelism=3, **UNALIGNED))
        assert Counter(value for value, _ in sink.values) == Counter(range(80))


# ------------------------------------------------------------------------------------------------------ what is stored
class Opaque:
    """Nothing that could be stored."""

    def __init__(self, number: int) -> None:
        self.number = number


def as_opaque(value: Any) -> Any:
    return Opaque(value) if value >= 0 else value


class TestRecordsThatCannotBeStored:
    def flow(self, feed: Feed, sink: Any, **options: Any) -> sa.Dataflow:
        flow = sa.Dataflow(NAME)
        flow.source("numbers", feed).map(as_opaque).map(lambda v: v, **options).map(
            lambda v: v.number if isinstance(v, Opaque) else v
        ).sink("out", sink)
        return flow

    @pytest.mark.parametrize("mode", [UNALIGNED, TIMEOUT], ids=["unaligned", "timeout"])
    @pytest.mark.parametrize("chain", [True, False])
    async def test_are_refused_at_the_first_by_name(self, chain: bool, mode: dict[str, Any], tmp_path: Path) -> None:
        with pytest.raises(sa.JobFailed, match=r"Opaque on the edge .*map.* can't be stored") as raised:
            await finish(self.flow(fed(1), ListSink[Any](), chain=chain), config(tmp_path, **mode))
        assert isinstance(raised.value.__cause__, sa.UnserialisableValue)

    @pytest.mark.parametrize("chain", [True, False])
    async def test_are_fine_where_no_barrier_overtakes(self, chain: bool, tmp_path: Path) -> None:
        sink = ListSink[Any]()
        await finish(self.flow(fed(1), sink, chain=chain), config(tmp_path))
        assert sink.values == [1]

    @pytest.mark.parametrize("seen", [False, True], ids=["written", "seen"])
    async def test_among_others_fail_the_job_once_captured(self, seen: bool, tmp_path: Path) -> None:
        """Only the first one of an edge is tried: one that comes later is found when it is captured."""
        door, feed = Door(), fed(-1, *([-2] * 10), 3, 4, chunk=1)

        def flow() -> sa.Dataflow:
            flow = sa.Dataflow(NAME)
            flow.source("numbers", feed).map(as_opaque).rebalance().map(door).map(lambda v: 1).sink("out", ListSink())
            return flow

        with pytest.raises(sa.JobFailed, match=r"Opaque.* can't be stored") as raised:  # noqa: PT012
            async with crashing(flow(), config(tmp_path, **UNALIGNED)) as job:
                await until(lambda: door.entered)
                asked = asyncio.create_task(job.checkpoint())
                await knocked(job, door)
                door.let(20 if seen else 1)
                with pytest.raises(sa.CheckpointFailed):
                    await asked
                await job.wait()
        cause = raised.value.__cause__
        assert isinstance(cause, sa.UnserialisableValue) and not getattr(cause, "__notes__", ())


class TestBoundedMemory:
    async def test_a_slow_storage_pauses_the_subtask(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(inflight, "LIMIT", 1000)
        monkeypatch.setattr(inflight, "CHUNK_BYTES", 100)
        monkeypatch.setattr(writer, "SMALL", 0)  # what is packed is gathered first
        feed, door, sink, files = fed(*range(2000), chunk=10), Door(), ListSink[Any](), failing(tmp_path)

        def flow(door: Door) -> sa.Dataflow:
            flow = sa.Dataflow(NAME)
            flow.source("numbers", feed).map(lambda v: v).rebalance().map(door, name="door").sink("out", sink)
            return flow

        settings = config(tmp_path, **UNALIGNED)
        async with crashing(flow(door), settings, files) as job:
            await until(lambda: door.entered and node(job, "numbers")["records_out"] == 2000)
            stall = files.stall("write", "*-in-flight")
            asked = asyncio.create_task(job.checkpoint())
            await knocked(job, door)
            door.let(1)
            await stall.reached.wait()
            door.open()
            await turns(300)
            paused = door.passed
            # A batch of ten is less than 100 bytes.
            assert 0 < paused < 1500
            await turns(300)
            assert door.passed == paused and not asked.done()
            files.heal()
            info = await asked
            await until(lambda: door.passed == 2000)
        assert sum(in_flight(info).values()) == 2000
        await finish(flow(Door(open=True)), settings)
        assert sink.values == list(range(2000))


class TestStop:
    @pytest.mark.parametrize("mode", [UNALIGNED, TIMEOUT], ids=["unaligned", "timeout"])
    async def test_its_checkpoint_is_aligned_and_holds_nothing_in_flight(
        self, mode: dict[str, Any], tmp_path: Path
    ) -> None:
        feed, sink = Feed(), ListSink[Any]()
        feed.put(*range(1000))
        door = Door()

        def flow(door: Door) -> sa.Dataflow:
            flow = sa.Dataflow(NAME)
            counted = flow.source("numbers", feed).key_by(lambda v: v % 7).process("count", Count)
            counted.rebalance().map(door).sink("out", sink)
            return flow

        settings = config(tmp_path, parallelism=2, capacity=64, **mode)
        async with crashing(flow(door), settings) as job:
            await until(lambda: door.entered >= 2)
            stopping = asyncio.create_task(job.stop())
            await turns()
            assert not stopping.done()
            door.open()
            await stopping
            await job.wait()
        latest = (await list_checkpoints(tmp_path.as_uri()))[0].manifest
        assert latest is not None and latest.final and latest.in_flight_records == 0
        # All that was read has been processed.
        committed = len(sink.values)
        assert committed == door.passed
        feed.end()
        await finish(flow(Door(open=True)), settings)
        assert Counter(value for value, _ in sink.values) == Counter(range(1000))


class TestRestoredBacklog:
    @pytest.mark.parametrize("widths", [(1, 3, 2), (3, 1, 2), (2, 2, 5)], ids=str)
    @pytest.mark.parametrize("mode", [UNALIGNED, TIMEOUT], ids=["unaligned", "timeout"])
    async def test_a_checkpoint_before_it_is_drained_holds_it_again(
        self, mode: dict[str, Any], widths: tuple[int, ...], tmp_path: Path
    ) -> None:
        feed, sink = Feed(3, chunk=32), ListSink[Any]()
        for split in range(3):
            feed.put(*range(split * 300, split * 300 + 300), split=split)

        def flow(door: Door) -> sa.Dataflow:
            flow = sa.Dataflow(NAME)
            counted = flow.source("numbers", feed).key_by(lambda v: v % 7).process("count", Count)
            counted.map(door, name="door").key_by(lambda v: v[0] % 5).process("again", Pass).sink("out", sink)
            return flow

        held = []
        for width in widths:
            door = Door()
            settings = config(tmp_path, parallelism=width, capacity=64, **mode)
            async with crashing(flow(door), settings) as job:
                for _ in range(2):
                    await until(lambda: door.entered > door.passed)  # noqa: B023
                    asked = asyncio.create_task(job.checkpoint())
                    info = await past(job, door, asked)
                    held.append(sum(in_flight(info).values()))
        assert min(held) > 100
        feed.end()
        await finish(flow(Door(open=True)), config(tmp_path, parallelism=3, capacity=64, **mode))
        assert Counter(value for value, _ in sink.values) == Counter(range(900))
        for key in range(7):
            counts = sorted(count for value, count in sink.values if value % 7 == key)
            assert counts == list(range(1, len(counts) + 1))


class Pass(sa.KeyedOperator[int, Any, Any]):
    def process(self, value: Any, ctx: sa.Context[int, Any], /) -> None:
        ctx.emit(value)


class TestDamage:
    @pytest.mark.parametrize("how", ["flipped", "truncated", "missing"])
    async def test_of_in_flight_data_falls_back_loudly(
        self, how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        feed, door, out = Feed(), Door(), PlainList[Any]()
        feed.put(*range(500))

        def flow(door: Door, sink: Any) -> sa.Dataflow:
            flow = sa.Dataflow(NAME)
            counted = flow.source("numbers", feed).key_by(lambda v: v % 7).process("count", Count)
            counted.map(door, chain=False).sink("out", sink)
            return flow

        settings = config(tmp_path, capacity=64, **UNALIGNED)
        infos = []
        async with crashing(flow(door, PlainList[Any]()), settings) as job:
            for _ in range(2):
                await until(lambda: door.entered > door.passed)
                asked = asyncio.create_task(job.checkpoint())
                await knocked(job, door)
                door.let(1)
                infos.append(await asked)
        assert all(info.inflight_bytes for info in infos)
        handle = next(iter(manifest_of(infos[1].uri).in_flight()))[0]
        [damaged] = [path for path in tmp_path.rglob("*") if str(path).endswith(handle.file.path)]
        damage(damaged, how)
        feed.end()
        with caplog.at_level(logging.WARNING):
            await finish(flow(Door(open=True), out), settings)
        assert damaged.as_uri() in caplog.text and f"falling back to checkpoint {infos[0].uri}" in caplog.text
        assert Counter(value for value, _ in out.values) == Counter(range(500))


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :])
