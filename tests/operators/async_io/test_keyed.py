"""AsyncKeyedOperator in whole jobs: keys side by side, one call after another of each; state, output and timers
together; event time; failures; the end."""

import asyncio
import datetime as dt
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

import streamactors as sa
from connectors.memory import ListSink, ListSource
from tests.operators.async_io.board import Board
from tests.runtime.feeds import PATIENCE, Feed, until

DEAD: sa.OutputTag[sa.DeadLetter] = sa.OutputTag("dead", sa.DeadLetter)
SIDE: sa.OutputTag[int] = sa.OutputTag("side", int)
BACKENDS: list[Any] = ["heap", sa.RocksDB(memory=8 << 20, cache=32)]
EVENTS: sa.Watermarks[int] = sa.Watermarks.monotonic(lambda number: number)


def config(backend: Any = "heap", **options: Any) -> sa.Config:
    return sa.Config(state_backend=backend, **options)


@asynccontextmanager
async def running(
    feed: Feed, operator: Any, settings: sa.Config | None = None, keys: int = 10, **options: Any
) -> AsyncIterator[tuple[ListSink[Any], sa.JobHandle]]:
    """A job that runs, and has ended well at the end of the block."""
    flow, sink = sa.Dataflow("calls"), ListSink[Any]()
    stream = flow.source("in", feed, **options)
    stream.key_by(lambda number: number % keys).process("keyed", operator).sink("out", sink)
    async with asyncio.timeout(PATIENCE), sa.start(flow, settings) as job:
        yield sink, job
        feed.end()
        await job.wait()


async def results(
    values: Sequence[Any], operator: Any, settings: sa.Config | None = None, keys: int = 10, time: int = 1
) -> list[Any]:
    flow = sa.Dataflow("calls")
    watermarks: sa.Watermarks[int] = sa.Watermarks.monotonic(lambda number: number * time)
    stream = flow.source("in", ListSource(values), watermarks=watermarks, parallelism=1)
    async with asyncio.timeout(PATIENCE):
        return await sa.collect(stream.key_by(lambda number: number % keys).process("keyed", operator), settings)


async def some_turns(count: int = 50) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def waiting_on(board: Board) -> type[sa.AsyncKeyedOperator[int, int, tuple[int, int]]]:
    class Counting(sa.AsyncKeyedOperator[int, int, tuple[int, int]]):
        capacity = 4
        count = sa.ValueState(int, default=0)

        async def process(self, number: int, ctx: sa.Context[int, tuple[int, int]]) -> None:
            before = self.count.get()
            await board(number)
            self.count.set(before + 1)
            ctx.emit((number, before + 1))

    return Counting


# ----------------------------------------------------------------------------------------------------- side by side
async def test_one_call_at_a_time_of_each_key_and_up_to_capacity_in_all() -> None:
    board, feed = Board(), Feed()
    feed.put(0, 10, 20, 1, 2, 3, 4, 5)
    async with running(feed, waiting_on(board)) as (sink, _):
        await until(lambda: len(board.running) == 4)
        assert board.calls == [0, 1, 2, 3]
        board.finish(2)
        await until(lambda: len(board.calls) == 5)
        assert board.calls[-1] == 4
        board.finish(0)
        await until(lambda: len(board.calls) == 6)
        assert sink.values[:2] == [(2, 1), (0, 1)]
        board.finish_all()
    assert board.most == 4
    assert sorted(sink.values) == [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (10, 2), (20, 3)]
    assert [number for number in board.calls if number % 10 == 0] == [0, 10, 20]


@pytest.mark.parametrize("backend", BACKENDS, ids=["heap", "rocksdb"])
@pytest.mark.parametrize("parallelism", [1, 3])
async def test_state_is_the_fold_whatever_the_calls_wait_for(backend: Any, parallelism: int) -> None:
    class Everything(sa.AsyncKeyedOperator[int, int, Any]):
        total = sa.ValueState(int, default=0)
        numbers = sa.ListState(int)
        places = sa.MapState(int, list[int])
        largest = sa.ReducingState(int, max)
        amount = sa.AggregatingState(sa.Avg(float))

        async def process(self, number: int, ctx: sa.Context[int, Any]) -> None:
            await asyncio.sleep(number % 3 / 5000)
            await asyncio.gather(self.write(number), self.write_more(number))
            places = {place: sorted(held) for place, held in self.places.range()}
            ctx.emit((number, self.total.get(), list(self.numbers), places, self.largest.get(), self.amount.get()))

        async def write(self, number: int) -> None:
            await asyncio.sleep(0)
            self.total.set(self.total.get() + number)
            self.numbers.append(number)

        async def write_more(self, number: int) -> None:
            self.places[number // 100] = [*self.places.get(number // 100, []), number]
            await asyncio.sleep(0)
            self.largest.add(number)
            self.amount.add(number)

    found = await results(range(400), Everything, config(backend, parallelism=parallelism))
    seen: defaultdict[int, list[int]] = defaultdict(list)
    wanted = []
    for number in range(400):
        mine = seen[number % 10]
        mine.append(number)
        places = {place: [each for each in mine if each // 100 == place] for place in range(number // 100 + 1)}
        wanted.append((number, sum(mine), list(mine), places, number, sum(mine) / len(mine)))
    assert sorted(found) == wanted


async def test_nothing_shows_before_a_call_returns() -> None:
    board, feed = Board(), Feed()

    class Early(sa.AsyncKeyedOperator[int, int, int]):
        count = sa.ValueState(int, default=0)

        async def process(self, number: int, ctx: sa.Context[int, int]) -> None:
            self.count.set(number)
            ctx.emit(number)
            await ctx.drain()
            assert self.count.get() == number
            await board(number)

    feed.put(7)
    async with running(feed, Early) as (sink, job):
        await until(lambda: board.running)
        await some_turns()
        assert not sink.values and await job.query("keyed", "count", 7) == 0
        board.finish(7)
        await until(lambda: sink.values == [7])
        assert await job.query("keyed", "count", 7) == 7


async def test_side_outputs_and_timestamps_go_with_the_rest() -> None:
    class Sides(sa.AsyncKeyedOperator[int, int, Any]):
        async def process(self, number: int, ctx: sa.Context[int, Any]) -> None:
            ctx.emit((number, ctx.timestamp, ctx.key))
            ctx.emit_to(SIDE, -number)
            await asyncio.sleep(0)

    flow, sink, side = sa.Dataflow("calls"), ListSink[Any](), ListSink[int]()
    numbers = flow.source("in", ListSource(range(30)), watermarks=EVENTS).key_by(lambda number: number % 3)
    done = numbers.process("keyed", Sides)
    done.sink("out", sink)
    done.side_output(SIDE).sink("side", side)
    await sa.run(flow)
    assert sorted(sink.values) == [(number, number, number % 3) for number in range(30)]
    assert sorted(side.values) == sorted(-number for number in range(30))


async def test_a_plain_def_and_a_factory_will_do() -> None:
    class Plain(sa.AsyncKeyedOperator[int, int, int]):
        count = sa.ValueState(int, default=0)

        def __init__(self, step: int = 1) -> None:
            self.step = step

        def process(self, number: int, ctx: sa.Context[int, int]) -> None:
            self.count.set(self.count.get() + self.step)
            ctx.emit(self.count.get())

    assert sorted(await results(range(20), lambda: Plain(5))) == sorted([5, 10] * 10)


# ----------------------------------------------------------------------------------------------------------- refusals
async def test_what_lives_on_after_the_call_reaches_nothing() -> None:
    errors: list[str] = []
    tasks: list[asyncio.Task[None]] = []

    class Careless(sa.AsyncKeyedOperator[int, int, int]):
        count = sa.ValueState(int, default=0)

        async def process(self, number: int, ctx: sa.Context[int, int]) -> None:
            returned = asyncio.Event()
            tasks.append(asyncio.create_task(self.later(returned, ctx)))
            asyncio.get_running_loop().call_soon(returned.set)

        async def later(self, returned: asyncio.Event, ctx: sa.Context[int, int]) -> None:
            await returned.wait()
            await some_turns(5)
            for reach in (
                self.count.get,
                lambda: self.count.set(1),
                lambda: ctx.emit(1),
                lambda: ctx.emit_to(SIDE, 1),
                lambda: ctx.timers.processing(1),
            ):
                try:
                    reach()
                except sa.StateAccessError as error:
                    errors.append(str(error))

        def on_timer(self, timer: sa.Timer, ctx: sa.Context[int, int]) -> None:
            raise AssertionError("nobody set one")

    assert await results([3], Careless) == []
    await asyncio.gather(*tasks)
    assert len(errors) == 5 and all("operator 'keyed': the call for the key 3 has ended" in error for error in errors)


async def test_state_is_out_of_reach_in_open_and_close() -> None:
    errors: list[str] = []

    class Opening(sa.AsyncKeyedOperator[int, int, int]):
        count = sa.ValueState(int, default=0)

        async def open(self, ctx: sa.OperatorContext) -> None:
            self.reach()

        async def close(self) -> None:
            self.reach()

        def reach(self) -> None:
            with pytest.raises(sa.StateAccessError) as caught:
                self.count.get()
            errors.append(str(caught.value))

        async def process(self, number: int, ctx: sa.Context[int, int]) -> None:
            self.count.set(1)

    await results(range(3), Opening)
    assert len(errors) == 2 and all("operator 'keyed': there is no current key" in error for error in errors)


@pytest.mark.parametrize("capacity", [0, -1, 2.5, None])
def test_a_capacity_that_makes_no_sense_is_refused(capacity: Any) -> None:
    wrong = type("Wrong", (waiting_on(Board()),), {"capacity": capacity})
    flow = sa.Dataflow("calls")
    with pytest.raises(sa.InvalidDataflow, match=r"operator 'keyed': Wrong.capacity"):
        flow.source("in", ListSource([1])).key_by(lambda number: number).process("keyed", wrong)


def test_keys_come_first() -> None:
    flow = sa.Dataflow("calls")
    with pytest.raises(sa.InvalidDataflow, match="key_by first"):
        flow.source("in", ListSource([1])).process("keyed", waiting_on(Board()))  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------------------------- failures
class Failing(sa.AsyncKeyedOperator[int, int, int]):
    count = sa.ValueState(int, default=0)
    seen = sa.ListState(int)

    async def process(self, number: int, ctx: sa.Context[int, int]) -> None:
        self.count.set(self.count.get() + 1)
        self.seen.append(number)
        ctx.emit(number)
        ctx.emit_to(SIDE, number)
        ctx.timers.processing(0, "never")
        await asyncio.sleep(0)
        if number % 7 == 3:
            raise ValueError(number)
        ctx.timers.delete(0, "never", domain="processing")
        if number >= 90:
            ctx.emit(-self.count.get())

    def on_timer(self, timer: sa.Timer, ctx: sa.Context[int, int]) -> None:
        raise AssertionError("of a call that has failed")


async def test_a_call_that_fails_leaves_nothing_behind() -> None:
    flow, sink, side, dead = sa.Dataflow("calls"), ListSink[int](), ListSink[int](), ListSink[sa.DeadLetter]()
    numbers = flow.source("in", ListSource(range(100))).key_by(lambda number: number % 10)
    done = numbers.process("keyed", Failing, on_error=DEAD)
    done.sink("out", sink)
    done.side_output(SIDE).sink("side", side)
    done.side_output(DEAD).sink("dead", dead)
    await sa.run(flow)
    good = [number for number in range(100) if number % 7 != 3]
    counts = [-sum(1 for each in good if each % 10 == number % 10) for number in good if number >= 90]
    assert sorted(sink.values) == sorted(good + counts) and sorted(side.values) == good
    assert sorted(letter.value for letter in dead.values) == [number for number in range(100) if number % 7 == 3]
    assert all("ValueError" in letter.error and letter.uid == "keyed" and letter.origin for letter in dead.values)


async def test_a_failure_names_operator_key_and_record() -> None:
    with pytest.raises(sa.JobFailed) as caught:
        await results(range(10), Failing)
    failure = caught.value.__cause__
    assert isinstance(failure, sa.RecordFailed) and isinstance(failure.__cause__, ValueError)
    assert "'keyed'" in str(failure) and "key 3" in str(failure) and "ListSource:3" in str(failure)


async def test_a_timer_that_fails_fails_the_job() -> None:
    class Bad(sa.AsyncKeyedOperator[int, int, int]):
        async def process(self, number: int, ctx: sa.Context[int, int]) -> None:
            ctx.timers.event(number + 5, "bad")

        async def on_timer(self, timer: sa.Timer, ctx: sa.Context[int, int]) -> None:
            raise ValueError(timer.name)

    with pytest.raises(sa.JobFailed) as caught:
        await results(range(10), Bad)
    assert "event timer 'bad' of 5" in str(caught.value.__cause__)


async def test_calls_are_cancelled_with_the_job_and_none_is_left() -> None:
    board, feed = Board(), Feed()
    feed.put(*range(8))
    flow, sink = sa.Dataflow("calls"), ListSink[Any]()
    flow.source("in", feed).key_by(lambda number: number).process("keyed", waiting_on(board)).sink("out", sink)
    async with asyncio.timeout(PATIENCE), sa.start(flow, on_exit="cancel") as job:
        await until(lambda: len(board.running) == 4)
        await job.cancel()
    assert not board.running and sorted(board.cancelled) == [0, 1, 2, 3] and not sink.values
    assert [task for task in asyncio.all_tasks() if "call of" in task.get_name()] == []


# ------------------------------------------------------------------------------------------- time-outs, and once more
AT_ONCE = sa.Retry(3, initial=dt.timedelta(0), maximum=dt.timedelta(0))


async def test_a_call_that_hangs_fails_by_its_timeout_and_frees_its_key() -> None:
    class Hanging(sa.AsyncKeyedOperator[int, int, int]):
        timeout = dt.timedelta(milliseconds=50)

        async def process(self, number: int, ctx: sa.Context[int, int]) -> None:
            if number == 0:
                await asyncio.sleep(3600)
            ctx.emit(number)

    flow, sink, dead = sa.Dataflow("calls"), ListSink[int](), ListSink[sa.DeadLetter]()
    done = flow.source("in", ListSource(range(20))).key_by(lambda number: number % 10)
    hanging = done.process("keyed", Hanging, on_error=DEAD)
    hanging.sink("out", sink)
    hanging.side_output(DEAD).sink("dead", dead)
    async with asyncio.timeout(PATIENCE):
        await sa.run(flow)
    assert sorted(sink.values) == list(range(1, 20))
    [letter] = dead.values
    assert letter.value == 0 and "TimeoutError" in letter.error and "0.05 s" in letter.error


async def test_a_timer_that_hangs_fails_the_job_by_its_timeout() -> None:
    class Hanging(sa.AsyncKeyedOperator[int, int, int]):
        timeout = dt.timedelta(milliseconds=20)

        async def process(self, number: int, ctx: sa.Context[int, int]) -> None:
            ctx.timers.event(number, "hangs")

        async def on_timer(self, timer: sa.Timer, ctx: sa.Context[int, int]) -> None:
            await asyncio.sleep(3600)

    with pytest.raises(sa.JobFailed, match=r"event timer 'hangs' of 3: TimeoutError: the call took longer"):
        await results([3], Hanging)


async def test_another_attempt_begins_anew() -> None:
    attempts: defaultdict[Any, int] = defaultdict(int)

    class Trying(sa.AsyncKeyedOperator[int, int, Any]):
        retry = AT_ONCE
        count = sa.ValueState(int, default=0)
        seen = sa.ListState(int)

        async def process(self, number: int, ctx: sa.Context[int, Any]) -> None:
            self.count.set(self.count.get() + 1)
            self.seen.append(number)
            ctx.emit(("record", number, self.count.get(), list(self.seen)[-2:]))
            ctx.timers.event(number, f"{attempts[number]}")
            await self.trouble(number)

        async def on_timer(self, timer: sa.Timer, ctx: sa.Context[int, Any]) -> None:
            self.count.set(self.count.get() + 100)
            ctx.emit(("timer", timer.timestamp, timer.name))
            await self.trouble(("timer", timer.timestamp))

        async def trouble(self, what: Any) -> None:
            await asyncio.sleep(0)
            attempts[what] += 1
            if attempts[what] < 3:
                raise OSError(what)

    found = await results(range(20), Trying, keys=20)
    assert sorted(found) == sorted(
        [("record", number, 1, [number]) for number in range(20)] + [("timer", number, "2") for number in range(20)]
    )
    assert set(attempts.values()) == {3}


async def test_an_attempt_that_was_given_up_reaches_nothing_of_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamactors.operators.async_io.calls.GRACE", 0.02)
    errors: list[str] = []
    given_up, over = asyncio.Event(), asyncio.Event()

    class Stubborn(sa.AsyncKeyedOperator[int, int, Any]):
        timeout = dt.timedelta(milliseconds=20)
        retry = AT_ONCE
        count = sa.ValueState(int, default=0)

        async def process(self, number: int, ctx: sa.Context[int, Any]) -> None:
            if given_up.is_set():
                return await self.next_attempt(ctx)
            given_up.set()
            while not over.is_set():
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    await self.go_on(ctx)

        async def go_on(self, ctx: sa.Context[int, Any]) -> None:
            await began.wait()
            for reach in (self.count.get, lambda: self.count.set(1000), lambda: ctx.emit("too late")):
                try:
                    reach()
                except sa.StateAccessError as error:
                    errors.append(str(error))
            over.set()

        async def next_attempt(self, ctx: sa.Context[int, Any]) -> None:
            self.count.set(self.count.get() + 1)
            began.set()
            await over.wait()
            ctx.emit(self.count.get())

    began = asyncio.Event()
    assert await results([7], Stubborn) == [1]
    assert len(errors) == 3 and all("the call for the key 7 has ended" in error for error in errors)


@pytest.mark.parametrize(
    ("name", "value"), [("timeout", 5), ("timeout", dt.timedelta(0)), ("retry", 3), ("retry", sa.Retry)]
)
def test_a_timeout_or_retry_that_makes_no_sense_is_refused(name: str, value: Any) -> None:
    wrong = type("Wrong", (waiting_on(Board()),), {name: value})
    flow = sa.Dataflow("calls")
    with pytest.raises(sa.InvalidDataflow, match=rf"operator 'keyed': Wrong.{name}"):
        flow.source("in", ListSource([1])).key_by(lambda number: number).process("keyed", wrong)


@pytest.mark.parametrize("kind", [sa.OperatorListState, sa.UnionListState])
def test_lists_of_the_subtask_are_refused(kind: Any) -> None:
    """A call's changes to them would show before the call's, and come again with it."""
    listing = type("Listing", (waiting_on(Board()),), {"numbers": kind(int)})
    flow = sa.Dataflow("calls")
    with pytest.raises(sa.InvalidDataflow, match=r"operator 'keyed': Listing declares numbers, a list of the subtask"):
        flow.source("in", ListSource([1])).key_by(lambda number: number).process("keyed", listing)


# ------------------------------------------------------------------------------------------------------- event time
def reminding(board: Board, log: list[Any]) -> type[sa.AsyncKeyedOperator[int, int, Any]]:
    class Reminding(sa.AsyncKeyedOperator[int, int, Any]):
        numbers = sa.ListState(int)

        async def process(self, number: int, ctx: sa.Context[int, Any]) -> None:
            log.append(("begins", number, ctx.watermark))
            await board(number)
            self.numbers.append(number)
            ctx.timers.event(number + 15, str(number))
            ctx.emit(("record", number))

        async def on_timer(self, timer: sa.Timer, ctx: sa.Context[int, Any]) -> None:
            assert ctx.timestamp == timer.timestamp
            await board(timer.name)
            log.append(("rings", timer.name, ctx.watermark))
            ctx.emit((timer.name, list(self.numbers)))

    return Reminding


async def test_a_watermark_waits_for_calls_and_for_what_it_sets_off() -> None:
    board, feed, log = Board(), Feed(chunk=1), list[Any]()
    feed.put(0, 10, 20, 30)
    async with running(feed, reminding(board, log), keys=1, watermarks=EVENTS) as (sink, _):
        await until(lambda: board.running == [0])
        await some_turns()
        assert board.running == [0]
        for number in (0, 10):
            board.finish(number)
            await until(lambda: number + 10 in board.running)  # noqa: B023 (it is awaited here)
        board.finish(20)
        # 0's timer, of 15, is due by the watermark behind 20, which waits; 30 waits for both
        await until(lambda: board.running == ["0"])
        await some_turns()
        assert board.running == ["0"] and ("record", 20) in sink.values
        board.finish("0")
        await until(lambda: board.running == [30])
        board.finish_all()
    assert [found for found in sink.values if found[0] != "record"] == [
        ("0", [0, 10, 20]),
        ("10", [0, 10, 20, 30]),
        ("20", [0, 10, 20, 30]),
        ("30", [0, 10, 20, 30]),
    ]
    assert [entry for entry in log if entry[0] == "begins"] == [
        ("begins", 0, -(2**63)), ("begins", 10, -1), ("begins", 20, 9), ("begins", 30, 19),
    ]  # fmt: skip


async def test_what_is_done_behind_a_watermark_keeps_no_call_ahead_of_it_from_running() -> None:
    board, feed = Board(), Feed(chunk=2)
    feed.put(0, 10, 11, 12)
    two = type("Two", (waiting_on(board),), {"capacity": 2})
    async with running(feed, two, watermarks=EVENTS) as (sink, _):
        await until(lambda: board.running == [0, 11])
        board.finish(11)
        await until(lambda: board.running == [0, 12])
        board.finish(12)
        await some_turns()
        board.finish(0)
        await until(lambda: board.running == [10])
        board.finish(10)
        await until(lambda: len(sink.values) == 4)
    assert sink.values[:2] == [(0, 1), (10, 2)]


async def test_calls_behind_a_watermark_run_while_no_timer_is_due_by_it() -> None:
    board, feed, log = Board(), Feed(chunk=1), list[Any]()
    feed.put(0, 1, 2, 3)
    async with running(feed, reminding(board, log), keys=4, watermarks=EVENTS) as (sink, _):
        await until(lambda: board.running == [0, 1, 2, 3])
        board.finish(3, 2, 1)
        await some_turns()
        assert not sink.values  # what is behind a watermark shows behind it
        board.finish(0)
        await until(lambda: len(sink.values) == 4)
        board.finish_all()
    assert sink.values[:4] == [("record", number) for number in range(4)]


@pytest.mark.parametrize("backend", BACKENDS, ids=["heap", "rocksdb"])
@pytest.mark.parametrize("execution", ["streaming", "batch"])
async def test_timers_in_the_order_of_a_plain_operator(backend: Any, execution: Any) -> None:
    """Per key, records, timers and what timers set are what they are without any waiting."""

    def numbered(base: Any, pause: bool) -> Any:
        class Steps(base):  # type: ignore[misc]
            log = sa.ListState(str)

            async def process(self, number: int, ctx: sa.Context[int, Any]) -> None:
                await self.linger(number)
                self.log.append(f"r{number}")
                # no two of a key for one time: their order would be anyone's
                ctx.timers.event(100 * (number + number % 13) + number // 10, f"{number}")
                ctx.timers.event(100 * (number + 40) + 75, "once")
                if number % 5 == 0:
                    ctx.timers.event(100 * number - 1, f"late{number}")
                    ctx.timers.delete(100 * (number + 20) + 75, "once")

            async def on_timer(self, timer: sa.Timer, ctx: sa.Context[int, Any]) -> None:
                await self.linger(timer.timestamp)
                self.log.append(f"{timer.name}@{timer.timestamp}")
                if timer.name.isdigit():
                    ctx.timers.event(timer.timestamp - 260, f"again{timer.name}")
                ctx.emit((ctx.key, list(self.log)[-3:], timer.timestamp))

            async def linger(self, number: int) -> None:
                for _ in range(number % 4 if pause else 0):
                    await asyncio.sleep(0)

        return Steps

    settings = config(backend, execution=execution)
    plain = await results(range(300), numbered(sa.KeyedOperator, False), settings, time=100)
    found = await results(range(300), numbered(sa.AsyncKeyedOperator, True), settings, time=100)
    assert len(found) == len(plain) > 600
    assert _of_each(found) == _of_each(plain)


def _of_each(found: list[Any]) -> dict[int, Any]:
    """Of each key what was emitted, in order."""
    by_key: defaultdict[int, list[Any]] = defaultdict(list)
    for key, *rest in found:
        by_key[key].append(rest)
    return dict(by_key)


async def test_very_many_timers_at_once() -> None:
    class Alarm(sa.AsyncKeyedOperator[int, int, int]):
        capacity = 8

        async def process(self, number: int, ctx: sa.Context[int, int]) -> None:
            ctx.timers.event(5000, f"{number}")

        async def on_timer(self, timer: sa.Timer, ctx: sa.Context[int, int]) -> None:
            await asyncio.sleep(0)
            ctx.emit(int(timer.name))

    assert sorted(await results([*range(3000), 6000], Alarm, keys=500)) == [*range(3000), 6000]


async def test_processing_timers() -> None:
    board, feed = Board(), Feed()

    class Soon(sa.AsyncKeyedOperator[int, int, Any]):
        rang = sa.ValueState(int, default=0)

        async def process(self, number: int, ctx: sa.Context[int, Any]) -> None:
            ctx.timers.processing(number, "now")
            await board(number)

        async def on_timer(self, timer: sa.Timer, ctx: sa.Context[int, Any]) -> None:
            assert ctx.timestamp is None and timer.domain == "processing"
            await asyncio.sleep(0)
            self.rang.set(self.rang.get() + 1)
            ctx.emit((ctx.key, self.rang.get()))
            if self.rang.get() < 3:
                ctx.timers.processing(timer.timestamp + 1, "again")

    feed.put(1, 2, 11)
    async with running(feed, Soon) as (sink, _):
        await until(lambda: board.running == [1, 2])
        await some_turns()
        assert not sink.values
        board.finish(1, 2)
        await until(lambda: board.running == [11])
        board.finish_all()
        await until(lambda: len(sink.values) >= 6)
    assert [rang for key, rang in sink.values if key == 2] == [1, 2, 3]
    assert [rang for key, rang in sink.values if key == 1][:3] == [1, 2, 3]


async def test_event_timers_need_watermarks() -> None:
    class Never(sa.AsyncKeyedOperator[int, int, int]):
        async def process(self, number: int, ctx: sa.Context[int, int]) -> None:
            ctx.timers.event(1)

        def on_timer(self, timer: sa.Timer, ctx: sa.Context[int, int]) -> None:
            raise AssertionError("it can't fire")

    flow = sa.Dataflow("calls")
    stream = flow.source("in", ListSource([1])).key_by(lambda number: number).process("keyed", Never)
    with pytest.raises(sa.JobFailed, match="an event timer would never fire"):
        await sa.collect(stream)


async def test_without_on_timer_there_are_no_timers() -> None:
    class Timerless(sa.AsyncKeyedOperator[int, int, int]):
        async def process(self, number: int, ctx: sa.Context[int, int]) -> None:
            ctx.timers.processing(1)

    with pytest.raises(sa.JobFailed, match="it has no timers"):
        await results([1], Timerless)


# ----------------------------------------------------------------------------------------------------------- the rest
async def test_calls_know_the_name_of_their_record() -> None:
    class Named(sa.AsyncKeyedOperator[int, int, Any]):
        async def process(self, number: int, ctx: sa.Context[int, Any]) -> None:
            await asyncio.sleep(0)
            ctx.emit((number, ctx.record_id, sa.record_id()))

    found = await results(range(20), Named)
    assert len({name for _, name, _ in found}) == 20 and all(name == by_call for _, name, by_call in found)
    assert all(name.endswith(f"@{number}") for number, name, _ in found)


async def test_one_hot_key_does_not_keep_others_from_running() -> None:
    board, feed = Board(), Feed()
    feed.put(*[0] * 6, *range(1, 5))
    async with running(feed, waiting_on(board)) as (_, _):
        await until(lambda: len(board.running) == 4)
        assert board.running == [0, 1, 2, 3]
        board.finish_all()


async def test_records_for_a_key_wait_for_a_bounded_number() -> None:
    board, feed = Board(), Feed(chunk=2)
    feed.put(*range(0, 4000, 10))
    flow, sink = sa.Dataflow("calls"), ListSink[Any]()
    flow.source("in", feed).key_by(lambda number: number % 10).process("keyed", waiting_on(board)).sink("out", sink)
    async with asyncio.timeout(PATIENCE), sa.start(flow, sa.Config(mailbox_capacity=8)) as job:
        await until(lambda: bool(board.running))
        await some_turns()
        assert job.metrics()["subtasks"]["in[0]"]["nodes"]["in"]["records_out"] <= 40
        board.finish_all()
        feed.end()
        await job.wait()
    assert [number for number, _ in sink.values] == list(range(0, 4000, 10))
    assert sink.values[-1] == (3990, 400)
