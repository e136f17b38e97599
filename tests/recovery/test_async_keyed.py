"""Keyed state around an await, over crashes, rescales and changes of the backend: state equal to the fold, every output
once, and calls that had not taken effect made again."""

import asyncio
import datetime as dt
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

import streamactors as sa
from connectors.memory import ListSink
from streamactors.checkpoint.restorable import list_checkpoints
from tests.operators.async_io.board import Board
from tests.recovery.test_backends import settings
from tests.runtime.feeds import PATIENCE, Feed, until

pytestmark = pytest.mark.slow

KEYS = 700
COUNT = 2400
EVENTS: sa.Watermarks[int] = sa.Watermarks.monotonic(lambda number: number)
Wait = Callable[[Any], Any]


class Counting(sa.AsyncKeyedOperator[int, int, Any]):
    """Every record once more, 1000 later, by a timer. `wait` comes twice in each call, with changes before, between and
    behind."""

    capacity = 1000
    numbers = sa.ListState(int)
    total = sa.ValueState(int, default=0)
    due = sa.MapState(str, int)

    def __init__(self, wait: Wait) -> None:
        self.wait = wait

    async def process(self, number: int, ctx: sa.Context[int, Any]) -> None:
        self.numbers.append(number)
        await self.wait(number)
        self.total.set(self.total.get() + number)
        ctx.timers.event(number + 1000, f"{number}")
        ctx.emit(("number", number, self.total.get(), len(self.numbers)))
        await self.wait(-number - 1)
        self.due[f"{number}"] = number

    async def on_timer(self, timer: sa.Timer, ctx: sa.Context[int, Any]) -> None:
        number = self.due.pop(timer.name)
        await self.wait(timer.name)
        ctx.emit(("timer", number))


def counting(feed: Feed, sink: ListSink[Any], wait: Wait) -> sa.Dataflow:
    flow = sa.Dataflow("counting")
    numbers = flow.source("numbers", feed, watermarks=EVENTS, parallelism=1).key_by(lambda number: number % KEYS)
    numbers.process("counting", lambda: Counting(wait)).sink("out", sink, parallelism=1)
    return flow


def expected(count: int) -> list[Any]:
    of_key: defaultdict[int, list[int]] = defaultdict(list)
    found: list[Any] = [("timer", number) for number in range(count)]
    for number in range(count):
        mine = of_key[number % KEYS]
        mine.append(number)
        found.append(("number", number, sum(mine), len(mine)))
    return sorted(found)


def small(folder: Path) -> sa.RocksDB:
    return sa.RocksDB(folder=str(folder), memory=8 << 20, cache=32)


def turned(folder: Path, leg: int, alignment: Any) -> sa.Config:
    """Each leg on another backend, at another parallelism."""
    return settings(folder, small(folder) if leg % 2 else "heap", (2, 3, 1)[leg % 3], alignment=alignment)


@pytest.mark.parametrize("alignment", ["aligned", "unaligned"])
@pytest.mark.parametrize("first", [0, 1])
async def test_a_crash_with_a_thousand_calls_in_flight(tmp_path: Path, alignment: Any, first: int) -> None:
    """Some of them done, others waiting for their key; twice, each time rescaled; and a savepoint too."""
    feed, sink = Feed(chunk=97), ListSink[Any]()
    for leg, until_leg in ((first, 1200), (first + 1, COUNT)):
        board, draw = Board(), Random(leg)
        feed.put(*range(len(feed.values[0]), until_leg))
        async with sa.start(counting(feed, sink, board), turned(tmp_path, leg, alignment), on_exit="cancel") as job:
            await until(lambda: len(board.running) >= 600)  # noqa: B023 (it is awaited here)
            running = board.running
            board.finish(*draw.sample(running, 300))
            await until(lambda: len(board.calls) >= len(running) + 250)  # noqa: B023
            async with asyncio.timeout(PATIENCE):
                info = await job.checkpoint()
                again = await job.savepoint((tmp_path / f"savepoint-{leg}").as_uri())
            assert info.inflight_bytes > 0 and again
            board.finish(*draw.sample(board.running, 100))
        assert not board.running
    feed.end()
    async with asyncio.timeout(PATIENCE):
        board.finish_all()
        await sa.run(counting(feed, sink, board), turned(tmp_path, first + 2, alignment))
    assert sorted(sink.values) == expected(COUNT)


@pytest.mark.parametrize("backend", ["heap", "rocksdb"])
async def test_timers_in_process_are_pending_in_the_checkpoint(tmp_path: Path, backend: str) -> None:
    """Their calls run while it is taken: what is stored is the timers, and no call of theirs as in flight."""
    feed, sink, board = Feed(chunk=100), ListSink[Any](), Board()

    async def wait(what: Any) -> None:
        if isinstance(what, str):
            await board(what)

    feed.put(*range(300), 1150)
    async with sa.start(
        counting(feed, sink, wait), settings(tmp_path, backend, 2, alignment="aligned"), on_exit="cancel"
    ) as job:
        await until(lambda: len(board.running) >= 100)
        board.finish(*board.running[:40])
        await until(lambda: sum(value[0] == "timer" for value in sink.values) == 0 and len(board.calls) >= 140)
        async with asyncio.timeout(PATIENCE):
            await job.checkpoint()
        feed_of = await list_checkpoints((tmp_path / "checkpoints").as_uri())
        manifest = feed_of[0].manifest
        assert manifest is not None
        stored = sum(frame.records for _, _, frame in manifest.in_flight())
        assert stored <= 1, "a timer's call was stored as a record"
        board.finish(*board.running[:20])
    fired = sum(value[0] == "timer" for value in sink.values)
    assert 0 < fired < 150
    feed.end()
    async with asyncio.timeout(PATIENCE):
        await sa.run(
            counting(feed, sink, lambda what: asyncio.sleep(0)), settings(tmp_path, backend, 3, alignment="aligned")
        )
    assert sorted(value[1] for value in sink.values if value[0] == "timer") == [*range(300), 1150]
    assert sorted(value[1] for value in sink.values if value[0] == "number") == [*range(300), 1150]


@pytest.mark.parametrize("seed", range(4))
async def test_calls_that_crash_at_any_await(tmp_path: Path, seed: int) -> None:
    """Every so many awaits one raises, is cancelled or hangs until the job has failed by another: the job starts again
    from its last checkpoint."""
    draw, feed, sink = Random(seed), Feed(chunk=31), ListSink[Any]()
    feed.put(*range(800))
    feed.end()
    left = [draw.randrange(100, 500) for _ in range(6)]

    async def wait(what: Any) -> None:
        for _ in range(draw.randrange(4)):
            await asyncio.sleep(0)
        if left:
            left[-1] -= 1
            if left[-1] <= 0:
                left.pop()
                if draw.random() < 0.5:
                    raise OSError(f"lost at {what}")
                asyncio.get_running_loop().call_soon(_task().cancel)
                await asyncio.sleep(3600)

    given = settings(
        tmp_path,
        small(tmp_path) if seed % 2 else "heap",
        1 + seed % 3,
        alignment=("aligned", "unaligned")[seed % 2],
    )
    assert given.checkpoints is not None
    often = sa.Checkpoints(
        given.checkpoints.storage, interval=dt.timedelta(milliseconds=20), alignment=given.checkpoints.alignment
    )
    again = sa.Config(
        checkpoints=often,
        restart=sa.Restart.fixed(dt.timedelta(0), 100),
        parallelism=given.parallelism,
        state_backend=given.state_backend,
    )
    async with asyncio.timeout(PATIENCE):
        await sa.run(counting(feed, sink, wait), again)
    assert not left and sorted(sink.values) == expected(800)


def _task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def test_state_of_a_plain_operator_is_taken_over(tmp_path: Path) -> None:
    """And the other way round: to a checkpoint there is no difference."""

    class Plain(sa.KeyedOperator[int, int, Any]):
        total = sa.ValueState(int, default=0)

        def process(self, number: int, ctx: sa.Context[int, Any]) -> None:
            self.total.set(self.total.get() + number)
            ctx.emit((number, self.total.get()))

    class Waiting(sa.AsyncKeyedOperator[int, int, Any]):
        total = sa.ValueState(int, default=0)

        async def process(self, number: int, ctx: sa.Context[int, Any]) -> None:
            await asyncio.sleep(0)
            self.total.set(self.total.get() + number)
            ctx.emit((number, self.total.get()))

    def flow(operator: Any) -> sa.Dataflow:
        made = sa.Dataflow("plain")
        keyed = made.source("numbers", feed, parallelism=1).key_by(lambda number: number % 7)
        keyed.process("total", operator).sink("out", sink)
        return made

    feed, sink = Feed(), ListSink[Any]()
    for leg, operator in enumerate((Plain, Waiting, Plain)):
        feed.put(*range(leg * 100, (leg + 1) * 100))
        async with asyncio.timeout(PATIENCE), sa.start(flow(operator), turned(tmp_path, leg, "aligned")) as job:
            await until(lambda: job.metrics()["subtasks"]["numbers[0]"]["nodes"]["numbers"]["records_out"] >= 100)
    sums: defaultdict[int, int] = defaultdict(int)
    for number in range(300):
        sums[number % 7] += number
        assert (number, sums[number % 7]) in sink.values
    assert len(sink.values) == 300
