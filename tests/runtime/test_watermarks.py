"""Event time of whole jobs: what operators see, and that no crash and no rescale changes which record is late."""

import asyncio
import datetime as dt
import random
from collections.abc import Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from connectors.memory import ListSink, ListSource
from streamactors.actors.mailbox import Mailbox
from streamactors.checkpoint.manifest import Manifest
from streamactors.checkpoint.restorable import list_checkpoints
from streamactors.elements import END, IDLE, MAX_TIME, MIN_TIME, Batch, Watermark
from streamactors.metrics import MetricGroup
from streamactors.runtime.channel import MailboxChannel
from streamactors.runtime.inputs import SourceInput
from streamactors.runtime.routing import ForwardRouter, Output
from streamactors.sources import SourceContext
from streamactors.time.alignment import AlignmentGroup
from tests.runtime.feeds import PATIENCE, Feed, FeedReader, Gate, source_time, until

KEYS = 7
DISORDER = 30
BOUNDED = dt.timedelta(milliseconds=DISORDER)


def disordered(count: int, seed: int) -> list[int]:
    """By record number, its time-stamp: a fifth of them too late."""
    draw = random.Random(seed)
    delays = (draw.randint(31, 400) if draw.random() < 0.2 else draw.randint(0, 30) for _ in range(count))
    return [1000 + 10 * number - delay for number, delay in enumerate(delays)]


STAMPS = disordered(600, seed=1)


def late_ones(stamps: list[int] = STAMPS) -> dict[int, bool]:
    """By record number, where each record's watermark follows it at once."""
    late, latest = {}, MIN_TIME + DISORDER + 1
    for number, stamp in enumerate(stamps):
        late[number] = stamp <= latest - DISORDER - 1
        latest = max(latest, stamp)
    return late


class Judge(sa.KeyedOperator[int, int, tuple[int, bool]]):
    def process(self, number: int, ctx: sa.Context[int, tuple[int, bool]]) -> None:
        assert ctx.timestamp is not None
        ctx.emit((number, ctx.timestamp <= ctx.watermark))


class JudgeUnkeyed(sa.Operator[Any, Any]):
    def process(self, number: Any, ctx: sa.Context[None, Any]) -> None:
        assert ctx.timestamp is not None
        ctx.emit((number, ctx.timestamp <= ctx.watermark))


def judged(
    feed: Feed, sink: ListSink[Any], gate: Gate | None = None, *, chain: bool = True, keyed: bool = True
) -> sa.Dataflow:
    """One source subtask, so that every record's lateness is certain."""
    flow = sa.Dataflow("judged")
    watermarks = sa.Watermarks.bounded(STAMPS.__getitem__, BOUNDED)
    numbers = flow.source("numbers", feed, watermarks=watermarks, parallelism=1)
    numbers = numbers.map(lambda v: v, parallelism=1, chain=chain)
    if keyed:
        found = numbers.key_by(lambda v: v % KEYS).process("judge", Judge)
    else:
        found = numbers.process("judge", JudgeUnkeyed, chain=chain)
    found.map(lambda v: v, chain=chain).map(gate or Gate(), chain=False, parallelism=1, name="gate").sink(
        "out", sink, parallelism=1
    )
    return flow


def config(path: Path, parallelism: int = 1, **checkpoints: Any) -> sa.Config:
    settings: dict[str, Any] = {"interval": dt.timedelta(hours=1), **checkpoints}
    stored = sa.Checkpoints(path.as_uri(), **settings)
    return sa.Config(checkpoints=stored, parallelism=parallelism, mailbox_capacity=16)


@asynccontextmanager
async def crashing(flow: sa.Dataflow, settings: sa.Config) -> Any:
    async with asyncio.timeout(PATIENCE), sa.start(flow, settings) as job:
        yield job
        await job.cancel()


async def finish(flow: sa.Dataflow, settings: sa.Config) -> None:
    async with asyncio.timeout(PATIENCE):
        await sa.run(flow, settings)


async def latest(path: Path) -> Manifest:
    manifest = (await list_checkpoints(path.as_uri()))[0].manifest
    assert manifest is not None
    return manifest


def marks_in_flight(manifest: Manifest) -> int:
    return sum(not frame.records for _, _, frame in manifest.in_flight())


def one_by_one(*numbers: int) -> Feed:
    feed = Feed(chunk=1)
    feed.put(*numbers)
    return feed


@pytest.mark.parametrize("chain", [True, False])
@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize("parallelism", [1, 3])
async def test_every_record_is_judged_by_those_before_it(parallelism: int, keyed: bool, chain: bool) -> None:
    feed, sink = one_by_one(*range(len(STAMPS))), ListSink[Any]()
    feed.end()
    await finish(judged(feed, sink, chain=chain, keyed=keyed), sa.Config(parallelism=parallelism, mailbox_capacity=16))
    assert dict(sink.values) == late_ones() and len(sink.values) == len(STAMPS)


class Told(sa.KeyedOperator[int, Any, Any]):
    """Gives the watermark that it sees."""

    def process(self, value: Any, ctx: sa.Context[int, Any]) -> None:
        ctx.emit((value, ctx.watermark))


async def told(flow: sa.Dataflow, sink: ListSink[Any], ask: Callable[[], None], wanted: int) -> None:
    """Ask until the watermark is what it must become."""
    async with sa.start(flow) as job:
        async with asyncio.timeout(PATIENCE):
            while not sink.values or sink.values[-1][1] != wanted:
                assert all(watermark <= wanted for _, watermark in sink.values)
                seen = len(sink.values)
                ask()
                await until(lambda seen=seen: len(sink.values) > seen)  # type: ignore[misc]
        await job.cancel()


async def test_a_step_waits_for_the_slowest_of_its_inputs() -> None:
    slow, fast, sink, flow = Feed(), Feed(), ListSink[Any](), sa.Dataflow("union")
    monotonic = sa.Watermarks.monotonic(lambda v: v)
    streams = [flow.source(f"in-{n}", feed, watermarks=monotonic) for n, feed in enumerate([slow, fast])]
    streams[0].union(streams[1]).key_by(lambda v: 0).process("told", Told).sink("out", sink)
    slow.put(10)
    await told(flow, sink, lambda: fast.put(500), wanted=9)


async def test_an_input_that_has_ended_is_not_waited_for() -> None:
    slow, fast, sink, flow = Feed(), Feed(), ListSink[Any](), sa.Dataflow("union")
    monotonic = sa.Watermarks.monotonic(lambda v: v)
    streams = [flow.source(f"in-{n}", feed, watermarks=monotonic) for n, feed in enumerate([slow, fast])]
    streams[0].union(streams[1]).key_by(lambda v: 0).process("told", Told).sink("out", sink)
    slow.put(10)
    slow.end()
    await told(flow, sink, lambda: fast.put(500), wanted=499)


async def test_subtasks_without_a_split_hold_nobody_back() -> None:
    feed, sink, flow = Feed(splits=1), ListSink[Any](), sa.Dataflow("narrow")
    numbers = flow.source("in", feed, watermarks=sa.Watermarks.monotonic(lambda v: v), parallelism=3)
    numbers.rebalance().map(lambda v: v, parallelism=2).key_by(lambda v: 0).process("told", Told).sink("out", sink)
    await told(flow, sink, lambda: feed.put(500), wanted=499)


async def test_an_idle_source_holds_nobody_back() -> None:
    quiet, lively, sink, flow = Feed(), Feed(), ListSink[Any](), sa.Dataflow("idle")
    idling = sa.Watermarks.monotonic(lambda v: v, idle_after=dt.timedelta(milliseconds=20))
    streams = [flow.source(f"in-{n}", feed, watermarks=idling) for n, feed in enumerate([quiet, lively])]
    streams[0].union(streams[1]).key_by(lambda v: 0).process("told", Told).sink("out", sink)
    quiet.put(10)
    await told(flow, sink, lambda: lively.put(500), wanted=499)


async def test_without_watermarks_there_are_none_and_time_stamps_are_the_sources() -> None:
    sink, flow = ListSink[Any](), sa.Dataflow("none")
    numbers = flow.source("in", ListSource([1, 2, 3]), watermarks=sa.Watermarks.none())
    numbers.key_by(lambda v: 0).process("told", Told).sink("out", sink)
    await finish(flow, sa.Config())
    assert {watermark for _, watermark in sink.values} == {MIN_TIME}


async def test_a_time_stamp_that_is_none_fails_naming_source_and_record() -> None:
    flow = sa.Dataflow("bad")
    flow.source("in", ListSource([5, 0]), watermarks=sa.Watermarks.monotonic(lambda v: v or 0.5)).print()  # type: ignore[arg-type,return-value]
    with pytest.raises(sa.JobFailed) as failed:
        await sa.run(flow)
    assert "'in'" in str(failed.value.__cause__) and "0.5 is no time-stamp" in str(failed.value.__cause__)


# --------------------------------------------------------------------------------------------------- the source's input
class PausableReader(FeedReader):
    _feed: "Pausable"

    def pause(self, splits: Any) -> bool:
        self._feed.paused = splits
        self._feed._news.set()
        return True

    def _take(self, split: int) -> Any:
        return None if str(split) in self._feed.paused else super()._take(split)


class Pausable(Feed):
    paused: frozenset[str] = frozenset()

    def reader(self, ctx: SourceContext) -> FeedReader:
        return PausableReader(self, ctx)


def open_input(
    feed: Feed,
    watermarks: sa.Watermarks[int],
    now: Callable[[], float] = float,
    *,
    group: AlignmentGroup | None = None,
) -> SourceInput:
    log: Any = None
    context = SourceContext("flow", "source", 0, 1, True, log, MetricGroup())
    return SourceInput(
        "source",
        feed.reader(context),
        None,
        wake=lambda: None,
        limit=lambda: 4,
        dead_letters=None,
        watermarks=source_time(watermarks, group=group),
        monotonic=now,
    )


async def next_of(source: SourceInput) -> Any:
    taken: list[Any] = []

    def took() -> bool:
        taken.append(source.take())
        return taken[-1] is not None

    await until(took)
    element = taken[-1][1]
    return (list(element.values), element.timestamps) if isinstance(element, Batch) else element


async def test_a_record_goes_before_the_watermark_that_it_moves() -> None:
    feed = Feed()
    feed.put(*range(1, 7), 3)
    feed.end()
    source = open_input(feed, sa.Watermarks.monotonic(lambda v: 10 * v))
    await source.open()
    given = [await next_of(source) for _ in range(5)]
    assert given == [
        ([1, 2, 3, 4], [10, 20, 30, 40]), Watermark(39), ([5, 6, 3], [50, 60, 30]), Watermark(59), END,
    ]  # fmt: skip
    await source.close()


async def test_a_split_that_is_far_ahead_is_paused_and_nothing_of_it_is_lost() -> None:
    feed = Pausable(splits=2, chunk=1)
    feed.put(0, split=1)
    feed.put(*range(0, 1000, 50), split=0)
    ahead = dt.timedelta(milliseconds=100)
    source = open_input(feed, sa.Watermarks.bounded(lambda v: v, dt.timedelta(0), align=ahead))
    await source.open()
    given: list[Any] = []
    while "0" not in feed.paused:
        given.append(await next_of(source))
    for _ in range(20):
        source.take()
        await asyncio.sleep(0)
    values = [value for element in given if isinstance(element, tuple) for value in element[0]]
    assert max(values) == 150 and source.take() is None
    assert source.snapshot(1) == {"0": 4, "1": 1}, "what is parked was not given"
    feed.put(2000, split=1)
    feed.end()
    while given[-1] is not END:
        given.append(await next_of(source))
    values = [value for element in given if isinstance(element, tuple) for value in element[0]]
    assert sorted(values) == sorted([*range(0, 1000, 50), 0, 2000])
    await source.close()


@pytest.mark.parametrize("size", [1, 7, 30])
async def test_what_is_left_of_a_batch_waits_too_and_positions_are_exact(size: int) -> None:
    """A snapshot at any moment, and what comes after it, are all records once."""
    feed = Pausable(splits=2, chunk=size)
    feed.put(*range(0, 1000, 10), split=0)
    feed.put(*range(0, 1000, 25), split=1)
    feed.end()
    watermarks = sa.Watermarks.bounded(lambda v: v, dt.timedelta(0), align=dt.timedelta(milliseconds=100))
    source, given, parked = open_input(feed, watermarks), {"0": 0, "1": 0}, 0
    await source.open()
    element: Any = None
    while element is not END:
        await until(lambda: source._marks or source._batch or source._read is None or source._read.done())
        taken = source.take()
        element = None if taken is None else taken[1]
        if isinstance(element, Batch):
            given[element.split.removesuffix("@")] += len(element)
        parked += any(before for _, before, _ in source._parked)
        assert source.snapshot(1) == given
    assert given == {"0": 100, "1": 40} and (parked or size == 1)
    await source.close()


@pytest.mark.parametrize("pausable", [True, False])
async def test_sources_of_one_group_wait_for_each_other(pausable: bool) -> None:
    """A reader that can't pause its splits waits as a whole. What waits goes on, and neither gets far ahead."""
    group = AlignmentGroup()
    watermarks = sa.Watermarks.bounded(lambda v: v, dt.timedelta(0), align=dt.timedelta(milliseconds=100))
    feeds = [Pausable(chunk=1) if pausable else Feed(chunk=1) for _ in range(2)]
    slow, fast = (open_input(feed, watermarks, group=group) for feed in feeds)
    feeds[0].put(0)
    feeds[1].put(*range(0, 1000, 50))
    await slow.open()
    await fast.open()
    seen: list[int] = []

    async def give(source: SourceInput) -> None:
        for _ in range(30):
            while (taken := source.take()) is not None:
                if isinstance(taken[1], Batch):
                    seen.extend(taken[1].values)
            await asyncio.sleep(0)

    await give(slow)
    await give(fast)
    assert max(seen) == 150, "one record too many tells that it is too far ahead"
    feeds[0].put(500)
    await give(slow)
    await give(fast)
    assert max(seen) == 650
    slow.stop(drain=False)
    await give(fast)
    assert max(seen) == 950, "who has ended is not waited for"
    await slow.close()
    await fast.close()


async def test_sources_of_a_job_wait_for_each_other() -> None:
    """By the job's own group; and who waits is not taken for idle."""
    slow, fast, sink, flow = Feed(chunk=1), Pausable(chunk=64), ListSink[Any](), sa.Dataflow("aligned")
    align, idle_after = dt.timedelta(milliseconds=100), dt.timedelta(milliseconds=20)
    monotonic = sa.Watermarks.monotonic(lambda v: v, align=align)
    idling = sa.Watermarks.monotonic(lambda v: v, align=align, idle_after=idle_after)
    given: list[int] = []

    def note(value: int) -> int:
        given.append(value)
        return value

    quick = flow.source("fast", fast, watermarks=idling).map(note)
    flow.source("slow", slow, watermarks=monotonic).union(quick).key_by(lambda v: 0).process("told", Told).sink(
        "out", sink
    )
    slow.put(0)
    async with asyncio.timeout(PATIENCE), sa.start(flow) as job:
        await until(lambda: sink.values)
        fast.put(*range(0, 100_000, 10))
        for reached in range(2000, 20_000, 2000):
            slow.put(reached)
            await until(lambda reached=reached: given and given[-1] > reached)  # type: ignore[misc]
            assert given[-1] <= reached + 100 + 2 * 64 * 10, "no further than what was in hand"
        slow.end()
        await until(lambda: len(given) == 10_000)
        fast.end()
        await job.wait()
    assert len(sink.values) == 10_010
    assert not [value for value, watermark in sink.values if value <= watermark], "late"


async def test_a_split_becomes_idle_while_nothing_comes() -> None:
    feed, time = Feed(splits=2, chunk=1), [0.0]
    source = open_input(feed, sa.Watermarks.monotonic(lambda v: v, idle_after=dt.timedelta(hours=1)), lambda: time[0])
    await source.open()
    feed.put(7)
    assert await next_of(source) == ([7], [7])
    assert source.take() is None
    time[0] = 3700.0
    assert [await next_of(source), await next_of(source)] == [Watermark(6), IDLE]
    feed.put(8, split=1)
    assert [await next_of(source), await next_of(source)] == [Watermark(6), ([8], [8])]
    await source.close()


def test_watermarks_that_wait_do_not_pile_up() -> None:
    mailbox: Mailbox[Any] = Mailbox(1, 2)
    channel = MailboxChannel(mailbox, 0)
    output = Output(ForwardRouter(), [channel])
    for time in range(100):
        channel.send(Watermark(time))
    channel.send(IDLE)
    channel.send(Watermark(200))
    assert list(mailbox.items(0)) == [Watermark(99), IDLE, Watermark(200)]
    assert [mailbox.take() for _ in range(4)] == [(0, Watermark(99)), (0, IDLE), (0, Watermark(200)), None]
    output.stage(Batch([1, 2, 3]))
    for time in range(100):
        output.tell(Watermark(time))
    assert not output.flush(lambda: None, lambda barrier: None), "three records have no room"
    assert mailbox.queued == 2 and not mailbox.control
    mailbox.take()
    assert output.flush(lambda: None, lambda barrier: None)
    left = [element for _, element in iter(mailbox.take, None)]
    assert isinstance(left[0], Batch) and left[1:] == [Watermark(99)]


# ------------------------------------------------------------------------------------------------------------- rule 7
MODES: Mapping[str, Mapping[str, Any]] = {
    "aligned": {"alignment": "aligned"},
    "unaligned": {"alignment": "unaligned"},
    "timeout": {"alignment": "aligned", "alignment_timeout": dt.timedelta(milliseconds=1)},
    "at-least-once": {"mode": "at-least-once"},
}


class TestRule7WatermarksInSnapshots:
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (2, 3), (3, 1)])
    async def test_a_crash_at_rest_changes_no_decision(
        self, before: int, after: int, mode: str, tmp_path: Path
    ) -> None:
        feed, sink = one_by_one(*range(300)), ListSink[Any]()
        async with crashing(judged(feed, sink), config(tmp_path, before, **MODES[mode])) as job:
            await until(lambda: self.nodes(job, "numbers", "records_out") == 300)
            await job.checkpoint()
        feed.put(*range(300, len(STAMPS)))
        feed.end()
        await finish(judged(feed, sink), config(tmp_path, after, **MODES[mode]))
        assert dict(sink.values) == late_ones() and len(sink.values) == len(STAMPS)

    @pytest.mark.parametrize("chain", [True, False])
    @pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (1, 3), (3, 2)])
    async def test_watermarks_in_flight_come_back_in_their_place(
        self, before: int, after: int, chain: bool, tmp_path: Path
    ) -> None:
        feed, sink, gate = one_by_one(*range(300)), ListSink[Any](), Gate(60, delay=0.005)
        flow = judged(feed, sink, gate, chain=chain)
        async with crashing(flow, config(tmp_path, before, **MODES["unaligned"])) as job:
            await until(lambda: gate.held > 3)
            await job.checkpoint()
        assert marks_in_flight(await latest(tmp_path)) > 0
        feed.put(*range(300, len(STAMPS)))
        feed.end()
        await finish(judged(feed, sink, chain=chain), config(tmp_path, after, **MODES["unaligned"]))
        assert dict(sink.values) == late_ones() and len(sink.values) == len(STAMPS)

    @pytest.mark.parametrize("widths", [(2, 3, 1), (1, 2, 3), (3, 3, 2), (3, 1, 3)])
    async def test_a_checkpoint_of_what_was_just_restored(self, widths: tuple[int, int, int], tmp_path: Path) -> None:
        feed, sink = one_by_one(*range(300)), ListSink[Any]()
        for passes, width in zip([60, 0], widths, strict=False):
            gate = Gate(passes, delay=0.005)
            async with crashing(judged(feed, sink, gate), config(tmp_path, width, **MODES["unaligned"])) as job:
                await until(lambda gate=gate: gate.held > 1)  # type: ignore[misc]
                await job.checkpoint()
            assert marks_in_flight(await latest(tmp_path)) > 0
        feed.put(*range(300, len(STAMPS)))
        feed.end()
        await finish(judged(feed, sink), config(tmp_path, widths[2], **MODES["unaligned"]))
        assert dict(sink.values) == late_ones() and len(sink.values) == len(STAMPS)

    @pytest.mark.parametrize("mode", ["aligned", "unaligned", "at-least-once"])
    @pytest.mark.parametrize("widths", [(2, 2), (2, 3), (3, 2), (3, 1)])
    async def test_several_sources_any_parallelism(self, widths: tuple[int, int], mode: str, tmp_path: Path) -> None:
        """What is late before the crash is so after it, before anything new was told."""
        feed, sink, asked = Feed(splits=3, chunk=1), ListSink[Any](), 0

        def flow() -> sa.Dataflow:
            made = sa.Dataflow("several")
            watermarks: sa.Watermarks[Any] = sa.Watermarks.monotonic(lambda pair: pair[1])
            pairs = made.source("pairs", feed, watermarks=watermarks)
            pairs.key_by(lambda pair: pair[0]).process("judge", Told).sink("out", sink)
            return made

        async with crashing(flow(), config(tmp_path, widths[0], **MODES[mode])) as job:
            while not sink.values or {w for _, w in sink.values[-KEYS:]} != {999}:
                for split in range(3):
                    feed.put(*((key, 1000) for key in range(KEYS)), split=split)
                    asked += KEYS
                await until(lambda asked=asked: self.nodes(job, "judge", "records_in") == asked)  # type: ignore[misc]
                await job.checkpoint()
        sink.values.clear()
        feed.put(*((key, 500) for key in range(KEYS)))
        feed.end()
        await finish(flow(), config(tmp_path, widths[1], **MODES[mode]))
        assert sorted(sink.values) == [((key, 500), 999) for key in range(KEYS)]

    @pytest.mark.parametrize("mode", ["aligned", "unaligned"])
    @pytest.mark.parametrize("sources", [1, 2])
    @pytest.mark.parametrize("widths", [(1, 1), (2, 2), (2, 3), (2, 1)])
    async def test_what_a_quiet_input_had_told_is_not_forgotten(
        self, widths: tuple[int, int], sources: int, mode: str, tmp_path: Path
    ) -> None:
        """Two splits, of one source or of two: the slower one moves on, the other one has nothing more to say."""
        feeds = [Feed(splits=2, chunk=1)] if sources == 1 else [Feed(chunk=1), Feed(chunk=1)]
        sink = ListSink[Any]()

        def flow() -> sa.Dataflow:
            made = sa.Dataflow("quiet")
            monotonic: sa.Watermarks[Any] = sa.Watermarks.monotonic(lambda pair: pair[1])
            # Where the sources are what they were, nothing they have told is news to them.
            kept = None if sources == 1 else 1
            streams = [
                made.source(f"in-{n}", feed, watermarks=monotonic, parallelism=kept) for n, feed in enumerate(feeds)
            ]
            both = streams[0].union(*streams[1:])
            both.key_by(lambda pair: pair[0]).process("told", Told).sink("out", sink)
            return made

        def put(split: int, time: int) -> None:
            feed, own = (feeds[0], split) if sources == 1 else (feeds[split], 0)
            feed.put(*((key, time) for key in range(KEYS)), split=own)

        async def until_told(job: sa.JobHandle, wanted: int, times: dict[int, int]) -> None:
            """What a checkpoint has committed can be seen."""
            while not sink.values or {watermark for _, watermark in sink.values[-KEYS:]} != {wanted}:
                for split, time in times.items():
                    put(split, time)
                await job.checkpoint()

        async with crashing(flow(), config(tmp_path, widths[0], **MODES[mode])) as job:
            await until_told(job, 999, {0: 2000, 1: 1000})
        sink.values.clear()
        async with crashing(flow(), config(tmp_path, widths[1], **MODES[mode])) as job:
            await until_told(job, 1499, {1: 1500})

    @staticmethod
    def nodes(job: sa.JobHandle, uid: str, count: str) -> int:
        """Over all subtasks."""
        return sum(of["nodes"][uid][count] for of in job.metrics()["subtasks"].values() if uid in of["nodes"])

    @pytest.mark.parametrize("after", [1, 3])
    async def test_a_job_that_has_ended_commits_and_ends_and_has_not_stored_the_end(
        self, after: int, tmp_path: Path
    ) -> None:
        feed, sink = one_by_one(*range(100)), ListSink[Any]()
        feed.end()
        await finish(judged(feed, sink), config(tmp_path, 2))
        stored = await latest(tmp_path)
        reached = max(STAMPS[:100]) - DISORDER - 1
        assert {node.watermark for _, node in stored.nodes()} == {reached}
        assert all(channel.watermark < MAX_TIME for subtask in stored.subtasks for channel in subtask.channels)
        await finish(judged(feed, sink), config(tmp_path, after))
        assert dict(sink.values) == {number: late_ones()[number] for number in range(100)} and len(sink.values) == 100

    async def test_a_job_without_watermarks_stores_nothing_of_them(self, tmp_path: Path) -> None:
        flow, sink = sa.Dataflow("none"), ListSink[Any]()
        flow.source("in", ListSource([1, 2])).key_by(lambda v: v).process("told", Told).sink("out", sink)
        await finish(flow, config(tmp_path, 2))
        stored = await latest(tmp_path)
        assert all(node.watermark is None and not node.splits for _, node in stored.nodes())
        assert not any(subtask.channels for subtask in stored.subtasks)
