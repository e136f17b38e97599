"""Calls in flight over checkpoints, savepoints, crashes and rescaling: nothing is lost, nothing doubled."""

import asyncio
import datetime as dt
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from connectors.memory import ListSink
from tests.operators.async_io.board import Board
from tests.runtime.feeds import PATIENCE, Feed, until

pytestmark = pytest.mark.slow

MODES: dict[str, dict[str, Any]] = {
    "aligned": {},
    "unaligned": {"alignment": "unaligned"},
    "timeout": {"alignment_timeout": dt.timedelta(0)},
}
LAYOUTS = ("behind the source", "own actor", "keyed")


def config(path: Path, mode: str = "aligned", parallelism: int = 1, **checkpoints: Any) -> sa.Config:
    settings: dict[str, Any] = {"interval": dt.timedelta(hours=1), **MODES[mode], **checkpoints}
    return sa.Config(checkpoints=sa.Checkpoints(path.as_uri(), **settings), parallelism=parallelism)


def calling(feed: Feed, board: Any, sink: ListSink[Any], layout: str, **options: Any) -> sa.Dataflow:
    flow = sa.Dataflow("calls")
    stream: sa.Stream[Any] = flow.source("in", feed, watermarks=sa.Watermarks.monotonic(number_of))
    if layout == "keyed":
        stream = stream.key_by(lambda v: number_of(v) % 7)
    chain = layout != "own actor"
    stream.map_async("call", board, chain=chain, **options).sink("out", sink, parallelism=1)
    return flow


def number_of(value: Any) -> int:
    return int(value["n"]) if isinstance(value, dict) else int(value)


async def within(work: Any) -> Any:
    async with asyncio.timeout(PATIENCE):
        return await work


# ----------------------------------------------------------------------------------------------------------- barriers
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("mode", MODES)
async def test_a_thousand_calls_in_flight_when_the_job_crashes(
    tmp_path: Path, mode: str, ordered: bool, layout: str
) -> None:
    feed, sink, board = Feed(chunk=64), ListSink[int](), Board()
    options = {"capacity": 1000, "ordered": ordered}
    behind = 0 if mode == "aligned" else 500  # an aligned barrier waits for those ahead of it to be taken
    feed.put(*range(1000 + behind))
    settings = config(tmp_path, mode)
    async with sa.start(calling(feed, board, sink, layout, **options), settings, on_exit="cancel") as job:
        await until(lambda: len(board.running) == 1000)
        board.finish(*range(500, 600))
        for _ in range(20):
            await asyncio.sleep(0)
        info = await within(job.checkpoint())
        assert info.inflight_bytes > 0
        board.finish(*range(200))
        await until(lambda: len(board.running) == 700 + min(behind, 200))
        await job.cancel()
    assert len(sink.values) <= 100  # what was committed with the checkpoint
    again = Board()
    again.free = True
    feed.put(*range(1000 + behind, 2000))
    feed.end()
    await within(sa.run(calling(feed, again, sink, layout, **options), settings))
    assert Counter(sink.values) == Counter(range(2000))
    if ordered:
        assert sink.values == list(range(2000))


@pytest.mark.parametrize("mode", MODES)
async def test_a_barrier_waits_for_no_call(tmp_path: Path, mode: str) -> None:
    """Also for the end of the data nobody waits who is to be checkpointed meanwhile."""
    feed, sink, board = Feed(), ListSink[int](), Board()
    feed.put(*range(10))
    feed.end()
    flow = calling(feed, board, sink, "own actor", capacity=4)
    async with asyncio.timeout(PATIENCE), sa.start(flow, config(tmp_path, mode)) as job:
        await until(lambda: len(board.running) == 4)
        for done in range(3):
            assert (await job.checkpoint()).inflight_bytes > 0
            board.finish(done)
            await until(lambda: len(board.calls) == 5 + done)  # noqa: B023
        board.finish_all()
        await job.wait()
    assert sink.values == list(range(10))


async def test_what_is_done_and_not_yet_handed_on_is_in_no_checkpoint_twice(tmp_path: Path) -> None:
    """Checkpoints again and again while calls end in any order."""
    feed, sink, board = Feed(chunk=16), ListSink[int](), Board()
    feed.put(*range(200))
    settings = config(tmp_path)
    for attempt in range(6):
        flow = calling(feed, board, sink, "behind the source", capacity=16, ordered=attempt % 2 == 0)
        async with asyncio.timeout(PATIENCE), sa.start(flow, settings, on_exit="cancel") as job:
            await until(lambda: len(board.running) == 16)
            for place in range(attempt, 12):
                board.finish(board.running[place % len(board.running)])
                if place % 3 == 0:
                    await job.checkpoint()
                await asyncio.sleep(0)
            await job.cancel()
        await until(lambda: not board.running)
    board.free = True
    feed.end()
    await within(sa.run(calling(feed, board, sink, "behind the source"), settings))
    assert Counter(sink.values) == Counter(range(200))


async def test_inputs_come_back_as_they_were_before_the_call_changed_them(tmp_path: Path) -> None:
    feed, sink, free = Feed(), ListSink[Any](), asyncio.Event()
    feed.put({"n": 1, "tags": ["a"]}, {"n": 2, "tags": []})
    seen: list[Any] = []

    async def call(value: dict[str, Any]) -> dict[str, Any]:
        seen.append({**value, "tags": list(value["tags"])})
        value["tags"].append("seen")
        await free.wait()
        return value

    settings = config(tmp_path)
    async with sa.start(calling(feed, call, sink, "own actor"), settings, on_exit="cancel") as job:
        await until(lambda: len(seen) == 2)
        await within(job.checkpoint())
        await job.cancel()
    free.set()
    feed.end()
    await within(sa.run(calling(feed, call, sink, "own actor"), settings))
    assert seen[2:] == seen[:2]
    assert [value["tags"] for value in sink.values] == [["a", "seen"], ["seen"]]


async def test_a_step_whose_calls_are_in_a_savepoint_can_t_be_left_out(tmp_path: Path) -> None:
    feed, sink, board = Feed(), ListSink[int](), Board()
    feed.put(*range(3))
    async with asyncio.timeout(PATIENCE), sa.start(calling(feed, board, sink, "keyed"), config(tmp_path / "a")) as job:
        await until(lambda: len(board.running) == 3)
        savepoint = await job.stop((tmp_path / "saved").as_uri())
    feed.end()
    without = sa.Dataflow("calls")
    without.source("in", feed, watermarks=sa.Watermarks.monotonic(number_of)).sink("out", sink, parallelism=1)
    with pytest.raises(sa.IncompatibleState, match=r"3 records in flight on the edge .*call.*no longer has"):
        await within(sa.run(without, config(tmp_path / "b"), restore=savepoint))
    await within(sa.run(without, config(tmp_path / "b"), restore=savepoint, drop_state=["call"]))
    assert not sink.values  # given up, as was asked for


class Opaque:
    pass


async def test_an_input_that_can_t_be_stored_is_refused_at_once(tmp_path: Path) -> None:
    feed = Feed()
    flow = sa.Dataflow("calls")
    stream: sa.Stream[Any] = flow.source("in", feed).map(lambda v: Opaque())
    stream.map_async("call", Board()).sink("out", ListSink[Any]())
    feed.put(1)
    with pytest.raises(sa.JobFailed, match=r"Opaque come to the async step 'call' and can't be stored"):
        await within(sa.run(flow, config(tmp_path)))


# ------------------------------------------------------------------------------------------------------------- rescale
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (3, 2)])
@pytest.mark.parametrize("mode", ["aligned", "unaligned"])
async def test_another_parallelism_with_calls_in_flight(
    tmp_path: Path, mode: str, before: int, after: int, layout: str
) -> None:
    feed, sink, board = Feed(splits=6, chunk=8), ListSink[int](), Board()
    first = 42 if mode == "aligned" else 300
    for split in range(6):
        feed.put(*range(split, first, 6), split=split)
    flow = calling(feed, board, sink, layout, capacity=50 if mode == "aligned" else 20)
    async with sa.start(flow, config(tmp_path, mode, before), on_exit="cancel") as job:
        await until(lambda: len(board.running) >= min(20 * before, 40))
        board.finish(*board.running[:7])
        await within(job.checkpoint())
        await job.cancel()
    again = Board()
    again.free = True
    for split in range(6):
        feed.put(*range(first + split, 300, 6), split=split)
    feed.end()
    await within(sa.run(calling(feed, again, sink, layout, capacity=20), config(tmp_path, mode, after)))
    assert Counter(sink.values) == Counter(range(300))
    if layout == "keyed":  # per key in order, over whatever crash and rescale; splits mix before that
        by_key: dict[tuple[int, int], list[int]] = {}
        for value in sink.values:
            by_key.setdefault((value % 7, value % 6), []).append(value)
        assert all(values == sorted(values) for values in by_key.values())


class Numbered(sa.KeyedOperator[int, int, tuple[int, int]]):
    count = sa.ValueState(int, default=0)

    def process(self, value: int, ctx: sa.Context[int, tuple[int, int]]) -> None:
        self.count.set(self.count.get() + 1)
        ctx.emit((ctx.key, self.count.get()))


class InOrder(sa.KeyedOperator[int, tuple[int, int], tuple[int, int]]):
    last = sa.ValueState(int, default=0)

    def process(self, value: tuple[int, int], ctx: sa.Context[int, tuple[int, int]]) -> None:
        assert value[1] == self.last.get() + 1, f"key {value[0]}: {value[1]} came after {self.last.get()}"
        self.last.set(value[1])
        ctx.emit(value)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 2), (2, 5)])
@pytest.mark.parametrize("mode", ["aligned", "unaligned"])
async def test_behind_a_keyed_step_inputs_go_where_their_key_goes(
    tmp_path: Path, mode: str, before: int, after: int
) -> None:
    """Or the calls that are made again would be overtaken by those for later records of their key."""
    feed, sink = Feed(chunk=8), ListSink[tuple[int, int]]()
    feed.put(*range(200))

    def flow(call: Any) -> sa.Dataflow:
        flow = sa.Dataflow("keyed")
        counted = flow.source("in", feed).key_by(lambda v: v % 20).process("number", Numbered)
        called: sa.Stream[tuple[int, int]] = counted.map_async("call", call, capacity=500)
        called.key_by(lambda pair: pair[0]).process("check", InOrder).sink("out", sink)
        return flow

    board = Board()
    async with sa.start(flow(board), config(tmp_path, mode, before), on_exit="cancel") as job:
        await until(lambda: len(board.running) == 200)
        await within(job.checkpoint())
        await job.cancel()

    async def slow_at_first(pair: tuple[int, int]) -> tuple[int, int]:
        if pair[1] <= 10:
            await asyncio.sleep(0.01)
        return pair

    feed.put(*range(200, 400))
    feed.end()
    await within(sa.run(flow(slow_at_first), config(tmp_path, mode, after)))
    assert Counter(sink.values) == Counter((key, count) for key in range(20) for count in range(1, 21))


class Where(sa.Operator[Any, tuple[int, Any]]):
    def open(self, ctx: sa.OperatorContext) -> None:
        self.subtask = ctx.subtask

    def process(self, value: Any, ctx: sa.Context[None, tuple[int, Any]]) -> None:
        ctx.emit((self.subtask, value))


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 2)])
@pytest.mark.parametrize("mode", ["aligned", "unaligned"])
async def test_behind_a_broadcast_each_subtask_gets_one_copy(
    tmp_path: Path, mode: str, before: int, after: int
) -> None:
    """Also where another step lies between."""
    feed, sink, free = Feed(chunk=4), ListSink[Any](), asyncio.Event()
    called: list[Any] = []

    async def call(value: Any) -> Any:
        called.append(value)
        await free.wait()
        return value[1]

    def flow(parallelism: int) -> sa.Dataflow:
        flow = sa.Dataflow("copies")
        copies = flow.source("in", feed, parallelism=1).broadcast().process("first", Where, parallelism=parallelism)
        stream = copies.map_async("call", call, parallelism=parallelism)
        stream.process("where", Where, parallelism=parallelism).sink("out", sink, parallelism=1)
        return flow

    settings = config(tmp_path, mode)
    feed.put(*range(10))
    async with sa.start(flow(before), settings, on_exit="cancel") as job:
        await until(lambda: len(called) == 10 * before)
        await within(job.checkpoint())
        await job.cancel()
    free.set()
    feed.put(*range(10, 20))
    feed.end()
    await within(sa.run(flow(after), settings))
    assert Counter(sink.values) == Counter((index, value) for index in range(after) for value in range(20))


# ---------------------------------------------------------------------------------------------------------- savepoints
@pytest.mark.parametrize("after", [1, 3])
async def test_a_savepoint_holds_the_inputs_of_calls(tmp_path: Path, after: int) -> None:
    feed, sink, board = Feed(splits=2), ListSink[int](), Board()
    feed.put(*range(0, 40, 2), split=0)
    feed.put(*range(1, 40, 2), split=1)
    flow = calling(feed, board, sink, "keyed")
    async with asyncio.timeout(PATIENCE), sa.start(flow, config(tmp_path / "a", parallelism=2)) as job:
        await until(lambda: len(board.running) == 40)
        savepoint = await job.stop((tmp_path / "saved").as_uri())
    assert savepoint is not None and not sink.values and len(board.cancelled) == 40
    again = Board()
    again.free = True
    feed.end()
    await within(
        sa.run(calling(feed, again, sink, "keyed"), config(tmp_path / "b", parallelism=after), restore=savepoint)
    )
    assert Counter(sink.values) == Counter(range(40))


async def test_draining_waits_for_the_calls(tmp_path: Path) -> None:
    feed, sink, board = Feed(), ListSink[int](), Board()
    feed.put(*range(10))
    flow = calling(feed, board, sink, "own actor")
    async with asyncio.timeout(PATIENCE), sa.start(flow, config(tmp_path)) as job:
        await until(lambda: len(board.running) == 10)
        stopping = asyncio.create_task(job.stop(drain=True))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not stopping.done()
        board.finish_all()
        await stopping
    assert sink.values == list(range(10))


# ---------------------------------------------------------------------------------------------------------- event time
class Judge(sa.Operator[int, tuple[int, bool]]):
    def process(self, value: int, ctx: sa.Context[None, tuple[int, bool]]) -> None:
        assert ctx.timestamp is not None
        ctx.emit((value, ctx.timestamp <= ctx.watermark))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("chain", [True, False])
async def test_a_watermark_that_waits_for_calls_waits_after_a_crash_too(tmp_path: Path, mode: str, chain: bool) -> None:
    feed, sink, board = Feed(chunk=1), ListSink[Any](), Board()
    feed.put(10, 20, 30)

    def flow(board: Board) -> sa.Dataflow:
        flow = sa.Dataflow("judged")
        stream = flow.source("in", feed, watermarks=sa.Watermarks.monotonic(number_of))
        called = stream.map_async("call", board, ordered=False, chain=chain)
        called.process("judge", Judge).sink("out", sink)
        return flow

    settings = config(tmp_path, mode)
    async with sa.start(flow(board), settings, on_exit="cancel") as job:
        await until(lambda: len(board.running) == 3)
        board.finish(20, 30)
        await within(job.checkpoint())
        await job.cancel()
    again = Board()
    async with asyncio.timeout(PATIENCE), sa.start(flow(again), settings) as job:
        await until(lambda: len(again.running) == 3)
        again.finish(30)
        feed.put(40)
        await until(lambda: 40 in again.running)
        again.finish(10, 20, 40)
        feed.end()
        await job.wait()
    assert sorted(sink.values) == [(value, False) for value in (10, 20, 30, 40)]


class Now(sa.Operator[int, int]):
    def process(self, value: int, ctx: sa.Context[None, int]) -> None:
        ctx.emit(ctx.watermark)


@pytest.mark.parametrize("mode", MODES)
async def test_an_input_that_became_idle_behind_calls_is_waited_for_after_a_crash(tmp_path: Path, mode: str) -> None:
    left, right = Feed(chunk=1), Feed(chunk=1)
    sink, seen = ListSink[Any](), ListSink[int]()
    numbers = iter(range(20, 10**6))
    left.put(10)

    def flow(board: Board) -> sa.Dataflow:
        flow = sa.Dataflow("judged")
        idling = sa.Watermarks.monotonic(number_of, idle_after=dt.timedelta(milliseconds=20))
        one = flow.source("left", left, watermarks=idling)
        other = flow.source("right", right, watermarks=sa.Watermarks.monotonic(number_of))
        one.union(other).process("now", Now).sink("seen", seen)
        called = one.map_async("call", board, ordered=False, chain=False)
        called.union(other).process("judge", Judge).sink("out", sink)
        return flow

    async def let_it_be_idle(job: sa.JobHandle) -> None:
        """Until others see it."""
        start = next(numbers)
        while not any(time >= start for time in seen.values):
            right.put(next(numbers))
            await job.checkpoint()

    settings, board, again = config(tmp_path, mode), Board(), Board()
    async with asyncio.timeout(PATIENCE), sa.start(flow(board), settings, on_exit="cancel") as job:
        await until(lambda: board.running == [10])
        await let_it_be_idle(job)
        await job.cancel()
    async with asyncio.timeout(PATIENCE), sa.start(flow(again), settings) as job:
        await until(lambda: again.running == [10])
        await let_it_be_idle(job)
        again.finish_all()
        left.end()
        right.end()
        await job.wait()
    assert (10, False) in sink.values and not any(late for _, late in sink.values)


# -------------------------------------------------------------------------------------------------------- micro-batches
@pytest.mark.parametrize("ordered", [True, False])
async def test_a_barrier_does_not_flush_a_batch_and_stores_it(tmp_path: Path, ordered: bool) -> None:
    feed, sink = Feed(chunk=4), ListSink[int]()
    sizes: list[int] = []

    async def call(values: list[int]) -> list[int]:
        sizes.append(len(values))
        if len(values) == 10 and len(sizes) == 2:
            await asyncio.sleep(3600)
        return values

    options = {"batch": sa.BatchOf(10, dt.timedelta(hours=1)), "ordered": ordered}
    feed.put(*range(25))
    settings = config(tmp_path)
    async with sa.start(calling(feed, call, sink, "own actor", **options), settings, on_exit="cancel") as job:
        await until(lambda: len(sizes) == 2)
        await within(job.checkpoint())
        await within(job.checkpoint())
        assert sizes == [10, 10]
        await job.cancel()
    assert sink.values == list(range(10))
    feed.put(*range(25, 31))
    feed.end()
    await within(sa.run(calling(feed, call, sink, "own actor", **options), settings))
    assert sink.values == list(range(31)) and sizes == [10, 10, 10, 10, 1]


# ---------------------------------------------------------------------------------------------------------- restarts
async def test_a_failing_call_restarts_the_job_which_calls_again(tmp_path: Path) -> None:
    feed, sink = Feed(), ListSink[int]()
    failures = iter([True, True, False])
    made: Counter[int] = Counter()

    async def call(value: int) -> int:
        made[value] += 1
        await asyncio.sleep(0)
        if value == 50 and next(failures, False):
            raise ConnectionError("gone")
        return value

    feed.put(*range(100))
    feed.end()
    checkpoints = sa.Checkpoints(tmp_path.as_uri(), interval=dt.timedelta(milliseconds=50))
    settings = sa.Config(checkpoints=checkpoints, restart=sa.Restart.fixed(dt.timedelta(0), 5))
    await within(sa.run(calling(feed, call, sink, "own actor"), settings))
    assert sink.values == list(range(100)) and made[50] == 3
