"""Whole jobs on in-memory connectors: what comes out, back-pressure, recovery, checkpoints that fail or overlap."""

import asyncio
import datetime as dt
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

import streamactors as sa
from connectors.memory import CRASH, ListSink, ListSource
from streamactors.checkpoint.restorable import list_checkpoints
from streamactors.checkpoint.storage.local import LocalFiles
from streamactors.clock import SYSTEM
from streamactors.launch import _supervised
from streamactors.submission import job_here
from streamactors.testing.failing_files import FailingFiles
from tests.runtime.feeds import PATIENCE, Endless, Feed, until

uvloop.new_event_loop().close()  # opens what libuv keeps open for the whole process
AT_ONCE = sa.Restart.fixed(dt.timedelta(0), 20)
NUMBERS = list(range(1500))


class Count(sa.KeyedOperator[int, int, tuple[int, int]]):
    count = sa.ValueState(int, default=0)

    def process(self, value: int, ctx: sa.Context[int, tuple[int, int]]) -> None:
        self.count.set(self.count.get() + 1)
        ctx.emit((value, self.count.get()))


class CountAsync(Count):
    async def process(self, value: int, ctx: sa.Context[int, tuple[int, int]]) -> None:  # type: ignore[override]
        if value % 97 == 0:
            await asyncio.sleep(0)
        super().process(value, ctx)


SPLIT = sa.OutputTag("odd", int)


class Odd(sa.Operator[int, int]):
    async def process(self, value: int, ctx: sa.Context[None, int]) -> None:
        if value % 2:
            ctx.emit_to(SPLIT, value)
        else:
            ctx.emit(value)
        if value % 50 == 0:
            await ctx.drain()


def keyed(flow: sa.Dataflow, numbers: Any, sink: ListSink[Any]) -> None:
    flow.source("numbers", numbers).key_by(lambda v: v % 10).process("count", Count).sink("out", sink)


def keyed_async(flow: sa.Dataflow, numbers: Any, sink: ListSink[Any]) -> None:
    values = flow.source("numbers", numbers).map(lambda v: v)
    values.key_by(lambda v: v % 10).process("count", CountAsync).sink("out", sink)


def union(flow: sa.Dataflow, numbers: Any, sink: ListSink[Any]) -> None:
    low = flow.source("numbers", numbers).filter(lambda v: v < 700)
    high = flow.source("others", ListSource(NUMBERS)).filter(lambda v: v >= 700)
    low.union(high).key_by(lambda v: v % 10).process("count", Count).sink("out", sink)


def diamond(flow: sa.Dataflow, numbers: Any, sink: ListSink[Any]) -> None:
    source = flow.source("numbers", numbers)
    even, odd = source.filter(lambda v: v % 2 == 0), source.rebalance().filter(lambda v: v % 2 == 1)
    even.union(odd).key_by(lambda v: v % 10).process("count", Count).sink("out", sink)


def side_outputs(flow: sa.Dataflow, numbers: Any, sink: ListSink[Any]) -> None:
    even = flow.source("numbers", numbers).process("odd", Odd)
    even.union(even.side_output(SPLIT)).key_by(lambda v: v % 10).process("count", Count).sink("out", sink)


TOPOLOGIES: list[Callable[[sa.Dataflow, Any, ListSink[Any]], None]] = [keyed, keyed_async, union, diamond, side_outputs]


def check(values: list[tuple[int, int]]) -> None:
    """Every number once, and per key a count without gap or double."""
    assert Counter(value for value, _ in values) == Counter(NUMBERS)
    for key in range(10):
        counts = [count for value, count in values if value % 10 == key]
        assert counts == list(range(1, len(NUMBERS) // 10 + 1))


def checkpoints(folder: Path, **options: Any) -> sa.Checkpoints:
    options.setdefault("interval", dt.timedelta(hours=1))
    return sa.Checkpoints(folder.as_uri(), **options)


@pytest.mark.parametrize("parallelism", [1, 3])
@pytest.mark.parametrize("topology", TOPOLOGIES)
async def test_results_without_checkpoints(topology: Callable[..., None], parallelism: int) -> None:
    flow, sink = sa.Dataflow("job"), ListSink[Any]()
    topology(flow, ListSource(NUMBERS), sink)
    await sa.run(flow, sa.Config(parallelism=parallelism, mailbox_capacity=32))
    check(sink.values)


@pytest.mark.parametrize("parallelism", [1, 2])
@pytest.mark.parametrize("topology", TOPOLOGIES)
async def test_crashes_lose_and_double_nothing(topology: Callable[..., None], parallelism: int, tmp_path: Path) -> None:
    numbers: list[Any] = list(NUMBERS)
    for place in (1400, 900, 400, 20):
        numbers.insert(place, CRASH)
    flow, sink = sa.Dataflow("job"), ListSink[Any]()
    topology(flow, ListSource(numbers), sink)
    await sa.run(flow, sa.Config(
        parallelism=parallelism, mailbox_capacity=64, restart=AT_ONCE,
        checkpoints=checkpoints(tmp_path, interval=dt.timedelta(milliseconds=2), max_concurrent=2),
    ))  # fmt: skip
    check(sink.values)


async def test_at_least_once_loses_nothing(tmp_path: Path) -> None:
    numbers: list[Any] = [*NUMBERS[:700], CRASH, *NUMBERS[700:]]
    flow, sink = sa.Dataflow("job"), ListSink[Any]()
    diamond(flow, ListSource(numbers), sink)
    often = checkpoints(tmp_path, interval=dt.timedelta(milliseconds=2), mode="at-least-once")
    await sa.run(flow, sa.Config(parallelism=2, mailbox_capacity=64, restart=AT_ONCE, checkpoints=often))
    assert {value for value, _ in sink.values} == set(NUMBERS)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_on_either_loop(loop: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path) -> None:
    flow, sink = sa.Dataflow("job"), ListSink[Any]()
    keyed(flow, ListSource([*NUMBERS[:700], CRASH, *NUMBERS[700:]]), sink)
    often = checkpoints(tmp_path, interval=dt.timedelta(milliseconds=2))
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(sa.run(flow, sa.Config(parallelism=2, restart=AT_ONCE, checkpoints=often)))
    check(sink.values)


async def test_several_jobs_in_one_loop(tmp_path: Path) -> None:
    sinks = [ListSink[Any]() for _ in range(3)]

    async def one(number: int) -> None:
        flow = sa.Dataflow(f"job-{number}")
        keyed(flow, ListSource([*NUMBERS[:700], CRASH, *NUMBERS[700:]]), sinks[number])
        often = checkpoints(tmp_path, interval=dt.timedelta(milliseconds=5))
        await sa.run(flow, sa.Config(parallelism=2, restart=AT_ONCE, checkpoints=often))

    await asyncio.gather(*map(one, range(3)))
    for sink in sinks:
        check(sink.values)


@pytest.mark.parametrize("widths", [(1, 3, 2), (3, 1, 1)])
async def test_a_job_goes_on_at_another_parallelism(widths: tuple[int, ...], tmp_path: Path) -> None:
    feed, sink = Feed(4), ListSink[Any]()
    sent = 0
    for width in widths:
        flow = sa.Dataflow("job")
        keyed(flow, feed, sink)
        async with sa.start(flow, sa.Config(parallelism=width, checkpoints=checkpoints(tmp_path))) as job:
            for _ in range(200):
                feed.put(sent, split=sent % 4)
                sent += 1
            await until(lambda: records_in(job, "count") == 200)
            assert await job.query("count", Count.count, 0) == sent // 10
    assert sorted(value for value, _ in sink.values) == list(range(sent))
    for key in range(10):
        counts = sorted(count for value, count in sink.values if value % 10 == key)
        assert counts == list(range(1, sent // 10 + 1))


def records_in(job: sa.JobHandle, uid: str) -> int:
    nodes = [node for subtask in job.metrics()["subtasks"].values() for node in [subtask["nodes"].get(uid)] if node]
    return sum(node["records_in"] for node in nodes)


# ------------------------------------------------------------------------------------------------------- back-pressure
async def test_an_endless_source_before_a_slow_sink_fills_no_memory() -> None:
    """Measured: the records that are queued or unsent anywhere, again and again while the sink crawls."""
    source, taken, go = Endless(), [0], asyncio.Semaphore(0)

    class Slow(sa.Operator[int, int]):
        async def process(self, value: int, ctx: sa.Context[None, int]) -> None:
            await go.acquire()
            taken[0] += 1

    flow = sa.Dataflow("job")
    numbers = flow.source("numbers", source, parallelism=1).rebalance().map(lambda v: v, parallelism=2)
    numbers.rebalance().process("slow", Slow, parallelism=1).sink("out", ListSink())
    held: list[int] = []
    async with sa.start(flow, sa.Config(mailbox_capacity=100), on_exit="cancel") as job:
        for goal in range(50, 1001, 50):
            for _ in range(50):
                go.release()
            await until(lambda goal=goal: taken[0] == goal)  # type: ignore[misc]
            subtasks = job.metrics()["subtasks"].values()
            assert all(subtask["queued"] <= subtask["capacity"] for subtask in subtasks)
            held.append(sum(subtask["queued"] + subtask["unsent"] for subtask in subtasks))
        read = source.read
    # Three mailboxes of 100, what one slice leaves unsent at three subtasks, and the reader's batches.
    assert max(held) <= 300 + 3 * 1024
    assert max(held[-5:]) <= max(held[:10]) + 256, "grows"
    assert read <= 1000 + 300 + 6 * 1024


# -------------------------------------------------------------------------------------------------------- checkpoints
def failing(folder: Path) -> FailingFiles:
    return FailingFiles(LocalFiles(folder.as_uri(), clock=SYSTEM))


def job_of(flow: sa.Dataflow, config: sa.Config, files: FailingFiles | None = None) -> Any:
    return job_here(flow.graph(), config, restore="latest", fresh=False, resources=None, files=files)


async def test_processing_goes_on_while_a_checkpoint_hangs_and_times_out(tmp_path: Path) -> None:
    files, feed, sink = failing(tmp_path), Feed(), ListSink[Any]()
    flow = sa.Dataflow("job")
    keyed(flow, feed, sink)
    soon = checkpoints(tmp_path, timeout=dt.timedelta(seconds=1), tolerable_failures=3)
    async with _supervised(job_of(flow, sa.Config(checkpoints=soon), files), None, "cancel", dt.timedelta(0)) as job:
        feed.put(*range(10))
        await until(lambda: records_in(job, "count") == 10)
        stall = files.stall("write", "*")
        asked = asyncio.create_task(job.checkpoint())
        await stall.reached.wait()
        feed.put(*range(10, 20))
        await until(lambda: records_in(job, "count") == 20)
        with pytest.raises(sa.CheckpointFailed, match=r"not acknowledged within 1 s by count\[0\]"):
            await asked
        files.heal()
        info = await job.checkpoint()
        assert info.id == 2 and sorted(sink.values)[:3] == [(0, 1), (1, 1), (2, 1)]
        assert job.metrics()["restarts"] == 0
    assert [found.checkpoint for found in await list_checkpoints(tmp_path.as_uri())] == [2]


@pytest.mark.parametrize("operation", ["write", "create", "make_folder", "sync_folder", "list", "delete*"])
async def test_a_storage_that_fails_now_and_then_costs_restarts_but_no_record(operation: str, tmp_path: Path) -> None:
    files, sink = failing(tmp_path), ListSink[Any]()
    flow = sa.Dataflow("job")
    keyed(flow, ListSource([*NUMBERS[:800], CRASH, *NUMBERS[800:]]), sink)
    often = checkpoints(tmp_path, interval=dt.timedelta(milliseconds=2), retain=1)
    job = job_of(flow, sa.Config(parallelism=2, mailbox_capacity=64, checkpoints=often, restart=AT_ONCE), files)
    failure = files.fail(operation, "*run-1/attempt-*", times=3)
    async with asyncio.timeout(PATIENCE * 5):
        await job.run()
    check(sink.values)
    assert failure.hits or operation in ("list", "delete*")


async def test_a_full_disk_ends_the_job_with_its_name_and_loses_nothing(tmp_path: Path) -> None:
    files, feed, sink = failing(tmp_path), Feed(), ListSink[Any]()
    none = sa.Config(checkpoints=checkpoints(tmp_path), restart=sa.Restart.none())
    flow = sa.Dataflow("job")
    keyed(flow, feed, sink)
    feed.put(*range(100))
    with pytest.raises(sa.JobFailed, match="No space left"):  # noqa: PT012 (raised on leaving the block)
        async with _supervised(job_of(flow, none, files), None, "cancel", dt.timedelta(0)) as job:
            await until(lambda: records_in(job, "count") == 100)
            await job.checkpoint()
            files.fill_after(10)
            with pytest.raises(sa.CheckpointFailed, match="No space left"):
                await job.checkpoint()
            await job.wait()
    feed.put(*range(100, 200))
    feed.end()
    again = sa.Dataflow("job")
    keyed(again, feed, sink)
    await sa.run(again, none)
    assert sorted(sink.values) == [(value, value // 10 + 1) for value in range(200)]


async def test_checkpoints_overlap_and_a_later_one_may_overtake(tmp_path: Path) -> None:
    files, feed, sink = failing(tmp_path), Feed(), ListSink[Any]()
    flow = sa.Dataflow("job")
    keyed(flow, feed, sink)
    three = sa.Config(checkpoints=checkpoints(tmp_path, max_concurrent=3))
    async with _supervised(job_of(flow, three, files), None, "checkpoint", dt.timedelta(seconds=5)) as job:
        feed.put(*range(10))
        await until(lambda: records_in(job, "count") == 10)
        stall = files.stall("write", "*/chk-1/*")
        first = asyncio.create_task(job.checkpoint())
        await stall.reached.wait()
        assert (await job.checkpoint()).id == 2
        assert (await first).id == 2, "which holds all that the first one would have"
        assert [given_up.reason for given_up in job.checkpoints_given_up] == [
            "subsumed by checkpoint 2, which completed first"
        ]
        assert len(sink.values) == 10
    assert len(sink.values) == 10


async def test_a_bounded_job_keeps_no_more_than_retain(tmp_path: Path) -> None:
    flow, sink = sa.Dataflow("job"), ListSink[Any]()
    keyed(flow, ListSource(NUMBERS * 20), sink)
    often = checkpoints(tmp_path, interval=dt.timedelta(milliseconds=1), retain=2)
    await sa.run(flow, sa.Config(checkpoints=often, mailbox_capacity=64))
    found = await list_checkpoints(tmp_path.as_uri())
    assert 1 <= len(found) <= 2 and found[0].manifest is not None and found[0].manifest.final and found[0].committed


async def test_user_errors_restart_until_the_strategy_gives_up() -> None:
    tries = itertools.count()

    def fn(value: int) -> int:
        next(tries)
        raise ValueError(value)

    flow = sa.Dataflow("job")
    flow.source("numbers", ListSource([1])).map(fn).sink("out", ListSink())
    with pytest.raises(sa.JobFailed, match="ValueError: 1") as failed:
        await sa.run(flow, sa.Config(restart=sa.Restart.fixed(dt.timedelta(0), 3)))
    assert next(tries) == 4
    assert isinstance(failed.value.__cause__, sa.RecordFailed)


@pytest.mark.parametrize("refusal", [sa.StorageFailed("no room"), sa.CorruptCheckpoint("a file is damaged")])
async def test_what_is_no_fault_of_the_record_is_no_dead_letter(refusal: sa.StreamactorsError) -> None:
    """State could not be read or written: the job fails, and restarts if it may, and the record is not lost."""
    dead = sa.OutputTag("dead", sa.DeadLetter)

    class Reads(sa.Operator[int, int]):
        def process(self, value: int, ctx: sa.Context[None, int]) -> None:
            raise refusal

    class Counts(sa.Count):
        def add(self, accumulator: int, value: int) -> int:
            raise refusal

    for window in (False, True):
        letters = ListSink[sa.DeadLetter]()
        flow = sa.Dataflow("halves")
        numbers = flow.source("numbers", ListSource([1]))
        step = (
            numbers.key_by(lambda value: value).window("w", sa.CountWindow(1)).aggregate(Counts(), on_error=dead)
            if window
            else numbers.process("reads", Reads, on_error=dead)
        )
        step.side_output(dead).sink("letters", letters)
        with pytest.raises(sa.JobFailed, match=str(refusal)):
            await sa.run(flow)
        assert not letters.values


async def test_dead_letters_take_the_place_of_what_a_failed_record_emitted() -> None:
    dead = sa.OutputTag("dead", sa.DeadLetter)

    class Half(sa.Operator[int, int]):
        async def process(self, value: int, ctx: sa.Context[None, int]) -> None:
            ctx.emit(value)
            if value == 2:
                await ctx.drain()
            ctx.emit(value * 10)
            if value in (1, 2):
                raise ValueError("no")

    flow, sink, letters = sa.Dataflow("job"), ListSink[int](), ListSink[sa.DeadLetter]()
    halves = flow.source("numbers", ListSource([0, 1, 2, 3])).process("half", Half, on_error=dead)
    halves.sink("out", sink)
    halves.side_output(dead).sink("letters", letters)
    await sa.run(flow)
    # What was drained can't be taken back.
    assert sink.values == [0, 0, 2, 3, 30]
    assert [(letter.value, letter.error, letter.origin) for letter in letters.values] == [
        (1, "ValueError: no", "ListSource:1"),
        (2, "ValueError: no", "ListSource:2"),
    ]


async def test_what_one_record_drains_is_bounded_by_the_room_downstream() -> None:
    held: list[int] = []

    class Many(sa.Operator[int, int]):
        async def process(self, value: int, ctx: sa.Context[None, int]) -> None:
            for number in range(5000):
                ctx.emit(number)
                if number % 100 == 99:
                    await ctx.drain()

    class Watch(sa.Operator[int, int]):
        async def process(self, value: int, ctx: sa.Context[None, int]) -> None:
            subtasks = job.metrics()["subtasks"].values()
            held.append(sum(subtask["queued"] + subtask["unsent"] for subtask in subtasks))
            ctx.emit(value)

    flow, sink = sa.Dataflow("job"), ListSink[int]()
    many = flow.source("numbers", ListSource([1])).process("many", Many)
    many.process("watch", Watch, chain=False).sink("out", sink)
    async with sa.start(flow, sa.Config(mailbox_capacity=200)) as job:
        await job.wait()
    assert sink.values == list(range(5000)) and max(held) <= 400
