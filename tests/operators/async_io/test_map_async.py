"""map_async in whole jobs: order, capacity, back-pressure, event time, failures, the end."""

import asyncio
import contextvars
import datetime as dt
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import uvloop

import streamactors as sa
from connectors.memory import ListSink, ListSource
from tests.operators.async_io.board import Board
from tests.runtime.feeds import PATIENCE, Feed, until

uvloop.new_event_loop().close()  # opens what libuv keeps open for the whole process

DEAD: sa.OutputTag[sa.DeadLetter] = sa.OutputTag("dead", sa.DeadLetter)
SOON = dt.timedelta(milliseconds=20)
LONG = dt.timedelta(hours=1)


@asynccontextmanager
async def mapped(feed: Feed, fn: Any, config: sa.Config | None = None, **options: Any) -> AsyncIterator[ListSink[Any]]:
    """A job that runs, and has ended well at the end of the block."""
    flow, sink = sa.Dataflow("calls"), ListSink[Any]()
    flow.source("in", feed).map_async("call", fn, **options).sink("out", sink)
    async with asyncio.timeout(PATIENCE), sa.start(flow, config) as job:
        yield sink
        feed.end()
        await job.wait()


async def results(values: Sequence[Any], fn: Any, **options: Any) -> list[Any]:
    flow = sa.Dataflow("calls")
    async with asyncio.timeout(PATIENCE):
        return await sa.collect(flow.source("in", ListSource(values)).map_async("call", fn, **options))


# ---------------------------------------------------------------------------------------------- order and capacity
@pytest.mark.parametrize("ordered", [True, False])
async def test_up_to_capacity_calls_run_at_once(ordered: bool) -> None:
    board, feed = Board(), Feed()
    feed.put(*range(50))
    async with mapped(feed, board, capacity=8, ordered=ordered) as sink:
        await until(lambda: len(board.running) == 8)
        board.finish(0, 3)
        await until(lambda: len(board.calls) == (9 if ordered else 10))
        board.finish_all()
        await until(lambda: len(sink.values) == 50)
    assert board.most == 8 and sorted(sink.values) == list(range(50))
    if ordered:
        assert sink.values == list(range(50))


async def test_unordered_results_do_not_wait_for_a_slow_one() -> None:
    board, feed = Board(), Feed()
    feed.put(*range(5))
    async with mapped(feed, board, ordered=False) as sink:
        await until(lambda: len(board.running) == 5)
        for value in (3, 1, 4, 2):
            board.finish(value)
            await until(lambda: value in sink.values)  # noqa: B023 (it is awaited here)
        board.finish(0)
    assert sink.values == [3, 1, 4, 2, 0]


async def test_a_full_link_holds_the_source_back() -> None:
    board, feed = Board(), Feed(chunk=4)
    feed.put(*range(4000))
    flow, sink = sa.Dataflow("calls"), ListSink[Any]()
    flow.source("in", feed).map_async("call", board, capacity=4).sink("out", sink)
    async with asyncio.timeout(PATIENCE), sa.start(flow) as job:
        await until(lambda: len(board.running) == 4)
        for _ in range(20):
            await asyncio.sleep(0)
        assert job.metrics()["subtasks"]["in[0]"]["nodes"]["in"]["records_out"] <= 8
        board.finish_all()
        feed.end()
        await job.wait()
    assert sink.values == list(range(4000))


@pytest.mark.parametrize("chain", [True, False])
async def test_several_in_one_chain_and_behind_channels(chain: bool) -> None:
    async def plus(value: int) -> int:
        await asyncio.sleep(value % 3 / 1000)
        return value + 1

    flow = sa.Dataflow("calls")
    stream = flow.source("in", ListSource(range(3000)))
    for place in range(3):
        stream = stream.map(lambda v: v, chain=chain).map_async(f"call-{place}", plus, ordered=place != 1, chain=chain)
    async with asyncio.timeout(PATIENCE):
        assert sorted(await sa.collect(stream, sa.Config(parallelism=2))) == list(range(3, 3003))


async def test_a_keyed_stream_stays_with_its_keys() -> None:
    seen: dict[int, set[int]] = {}

    class Where(sa.Operator[int, int]):
        def open(self, ctx: sa.OperatorContext) -> None:
            self.subtask = ctx.subtask

        def process(self, value: int, ctx: sa.Context[None, int]) -> None:
            seen.setdefault(value % 7, set()).add(self.subtask)
            ctx.emit(value)

    async def same(value: int) -> int:
        return value

    flow = sa.Dataflow("calls")
    keyed = flow.source("in", ListSource(range(500))).key_by(lambda v: v % 7)
    stream = keyed.map_async("call", same, ordered=False).process("where", Where)
    assert sorted(await sa.collect(stream, sa.Config(parallelism=3))) == list(range(500))
    assert all(len(subtasks) == 1 for subtasks in seen.values()) and len(set.union(*seen.values())) > 1


async def test_in_batch_execution() -> None:
    async def call(value: int) -> int:
        await asyncio.sleep(value % 3 / 1000)
        return value

    flow, sink = sa.Dataflow("calls"), ListSink[int]()
    called = flow.source("in", ListSource(range(3000))).map_async("call", call, ordered=False, capacity=20)
    summed = called.key_by(lambda v: v % 7).reduce("sum", lambda a, b: a + b)
    again = summed.map_async("again", call, capacity=3)
    again.key_by(lambda v: 0).reduce("most", max).sink("out", sink)
    async with asyncio.timeout(PATIENCE):
        await sa.run(flow, sa.Config(execution="batch", parallelism=2))
    assert max(sink.values) == max(sum(range(key, 3000, 7)) for key in range(7))


def test_on_uvloop() -> None:
    async def call(value: int) -> int:
        await asyncio.sleep(0.001)
        return value

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(results(range(200), call, timeout=LONG, retry=sa.Retry(2))) == list(range(200))


async def test_where_the_service_makes_its_tasks_eager() -> None:
    """Where the version of Python has that: a call may be over before it was begun."""
    if factory := getattr(asyncio, "eager_task_factory", None):
        asyncio.get_running_loop().set_task_factory(factory)

    async def call(value: int) -> int:
        if value % 3:
            await asyncio.sleep(0)
        return value

    assert await results(range(200), call, timeout=LONG, capacity=7) == list(range(200))


@pytest.mark.parametrize("ordered", [True, False])
async def test_no_result_passes_a_watermark(ordered: bool) -> None:
    board, feed = Board(), Feed(chunk=1)
    late: list[int] = []

    class Late(sa.Operator[int, int]):
        def process(self, value: int, ctx: sa.Context[None, int]) -> None:
            assert ctx.timestamp is not None
            if ctx.timestamp <= ctx.watermark:
                late.append(value)
            ctx.emit(ctx.watermark)

    flow, sink = sa.Dataflow("calls"), ListSink[int]()
    stream = flow.source("in", feed, watermarks=sa.Watermarks.monotonic(lambda v: v))
    stream.map_async("call", board, ordered=ordered).process("late", Late).sink("out", sink)
    feed.put(10, 20, 30)
    async with asyncio.timeout(PATIENCE), sa.start(flow) as job:
        await until(lambda: len(board.running) == 3)
        board.finish(30, 20)
        for _ in range(50):
            await asyncio.sleep(0)
        assert not sink.values
        board.finish(10)
        await until(lambda: len(sink.values) == 3)
        feed.end()
        await job.wait()
    assert not late and sink.values == [-(2**63), 9, 19]


class Bursts(sa.Operator[int, int]):
    emitted = 0

    async def process(self, value: int, ctx: sa.Context[None, int]) -> None:
        for number in range(value):
            ctx.emit(number)
            type(self).emitted += 1
            await ctx.drain()


async def test_one_record_that_turns_into_many_waits_for_calls_too() -> None:
    board, feed = Board(), Feed()
    flow, sink = sa.Dataflow("calls"), ListSink[int]()
    flow.source("in", feed).process("burst", Bursts).map_async("call", board, capacity=5).sink("out", sink)
    feed.put(500)
    async with asyncio.timeout(PATIENCE), sa.start(flow) as job:
        await until(lambda: len(board.running) == 5)
        for _ in range(50):
            await asyncio.sleep(0)
        assert Bursts.emitted == 5
        board.finish(0, 1)
        await until(lambda: len(board.calls) == 7)
        board.finish_all()
        feed.end()
        await job.wait()
    assert sink.values == list(range(500))


# ----------------------------------------------------------------------------------------------------------- failures
async def test_a_failing_call_fails_the_job_and_names_the_record() -> None:
    async def call(value: int) -> int:
        await asyncio.sleep(0)
        return 1 // (value - 3)

    with pytest.raises(sa.JobFailed) as caught:
        await results(range(10), call)
    failure = caught.value.__cause__
    assert isinstance(failure, sa.RecordFailed) and "'call'" in str(failure) and "ListSource:3" in str(failure)
    assert isinstance(failure.__cause__, ZeroDivisionError)


async def test_failures_and_time_outs_go_to_the_dead_letters() -> None:
    async def call(value: dict[str, int]) -> int:
        if value["n"] == 1:
            await asyncio.sleep(3600)
        value["seen"] = 1  # never mind: what is dead is as it came
        return 1 // (value["n"] - 3)

    flow, sink, dead = sa.Dataflow("calls"), ListSink[int](), ListSink[sa.DeadLetter]()
    values = [{"n": n} for n in range(6)]
    mapped = flow.source("in", ListSource(values)).map_async("call", call, timeout=SOON, on_error=DEAD)
    mapped.sink("out", sink)
    mapped.side_output(DEAD).sink("dead", dead)
    await sa.run(flow)
    assert len(sink.values) == 4
    assert [(letter.value["n"], letter.error.split(":")[0]) for letter in dead.values] == [
        (1, "TimeoutError"),
        (3, "ZeroDivisionError"),
    ]
    assert all(letter.uid == "call" and letter.origin and letter.traceback for letter in dead.values)


async def test_a_call_that_was_cancelled_from_within_is_a_failure_like_any_other() -> None:
    board, feed = Board(), Feed()
    flow, sink, dead = sa.Dataflow("calls"), ListSink[int](), ListSink[sa.DeadLetter]()
    mapped = flow.source("in", feed).map_async("call", board, on_error=DEAD)
    mapped.sink("out", sink)
    mapped.side_output(DEAD).sink("dead", dead)
    feed.put(1, 2)
    async with asyncio.timeout(PATIENCE), sa.start(flow) as job:
        await until(lambda: len(board.running) == 2)
        board.cancel(1)
        board.finish(2)
        feed.end()
        await job.wait()
    assert sink.values == [2] and [letter.value for letter in dead.values] == [1]
    assert "CallCancelled" in dead.values[0].error


async def test_a_call_that_is_cancelled_in_the_pause_before_another_attempt_has_failed() -> None:
    async def call(value: int) -> int:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_soon(task.cancel)
        raise ValueError("no")

    with pytest.raises(sa.JobFailed, match="CallCancelled: .* in the pause before another attempt"):
        await results([1], call, retry=sa.Retry(3, initial=LONG, maximum=LONG))


class NoException(BaseException):
    """As test libraries raise."""


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize("kind", [NoException, Speechless])
@pytest.mark.parametrize("batch", [None, sa.BatchOf(2, SOON)])
async def test_whatever_a_call_raises_ends_the_job(kind: type[BaseException], batch: Any) -> None:
    async def call(value: int) -> int:
        await asyncio.sleep(0)
        raise kind

    with pytest.raises((sa.JobFailed, NoException)) as caught:
        await results([1], call, batch=batch, retry=sa.Retry(2, initial=dt.timedelta(0)))
    assert isinstance(caught.value, NoException) or "no words" in str(caught.value)


async def test_another_attempt_after_a_failure() -> None:
    attempts: dict[int, int] = {}

    async def call(value: int) -> int:
        attempts[value] = attempts.get(value, 0) + 1
        if attempts[value] <= value:
            raise ConnectionError(f"attempt {attempts[value]}")
        return value

    retry = sa.Retry(4, initial=dt.timedelta(milliseconds=1), on=(ConnectionError,))
    assert await results(range(4), call, retry=retry) == [0, 1, 2, 3]
    assert attempts == {0: 1, 1: 2, 2: 3, 3: 4}
    attempts.clear()
    with pytest.raises(sa.JobFailed) as caught:
        await results([7], call, retry=retry)
    assert attempts == {7: 4} and "attempt 4" in str(caught.value.__cause__)
    attempts.clear()
    with pytest.raises(sa.JobFailed):
        await results([1], call, retry=sa.Retry(4, on=(ValueError,)))
    assert attempts == {1: 1}


async def test_a_call_that_took_too_long_is_made_again() -> None:
    attempts: list[int] = []

    async def call(value: int) -> int:
        attempts.append(value)
        if attempts.count(value) == 1:
            await asyncio.sleep(3600)
        return value

    retry = sa.Retry(2, initial=dt.timedelta(0))
    assert await results([1, 2], call, timeout=SOON, retry=retry) == [1, 2]
    assert sorted(attempts) == [1, 1, 2, 2]


async def test_a_call_that_swallows_its_time_out_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("streamactors.operators.async_io.calls.GRACE", 0.02)
    stop = asyncio.Event()

    async def call(value: int) -> int:
        while value == 1 and not stop.is_set():
            try:
                await stop.wait()
            except asyncio.CancelledError:
                continue
        return value

    flow, sink, dead = sa.Dataflow("calls"), ListSink[int](), ListSink[sa.DeadLetter]()
    mapped = flow.source("in", ListSource([1, 2])).map_async("call", call, timeout=SOON, capacity=1, on_error=DEAD)
    mapped.sink("out", sink)
    mapped.side_output(DEAD).sink("dead", dead)
    async with asyncio.timeout(PATIENCE), sa.start(flow):
        await until(lambda: sink.values == [2])  # its place is free again
        assert [letter.value for letter in dead.values] == [1]
        stop.set()
    assert sink.values == [2]  # its late result goes nowhere
    assert "did not end" in caplog.text and "call of call[0]" in caplog.text


async def test_one_that_was_given_up_is_made_again_in_its_own_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamactors.operators.async_io.calls.GRACE", 0.02)
    stop = asyncio.Event()
    attempts: list[tuple[int, str]] = []
    seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="nothing")

    async def call(value: int) -> int:
        attempts.append((value, seen.get()))
        seen.set(f"of {value}")
        if value == 1 and attempts.count((1, "nothing")) + attempts.count((1, "of 1")) == 1:
            while not stop.is_set():
                try:
                    await stop.wait()
                except asyncio.CancelledError:
                    continue
            return -1  # too late: nobody is to see it
        await asyncio.sleep(0)
        return value

    retry = sa.Retry(2, initial=dt.timedelta(milliseconds=1))
    feed = Feed()
    feed.put(0, 1, 2)
    async with mapped(feed, call, timeout=SOON, retry=retry) as sink:
        await until(lambda: len(sink.values) == 3)
        stop.set()
    assert sink.values == [0, 1, 2]
    assert [context for value, context in attempts if value == 1] == ["nothing", "of 1"]  # and none of another call's


@pytest.mark.parametrize("kind", [ValueError, TimeoutError])
async def test_what_is_raised_instead_of_the_cancellation_is_a_time_out_all_the_same(kind: type[Exception]) -> None:
    """As HTTP clients do; and what the next attempt awaits does not mind that this one was cancelled."""
    attempts: list[int] = []

    async def call(value: int) -> int:
        attempts.append(value)
        async with asyncio.timeout(60), asyncio.TaskGroup():
            if len(attempts) > 1:
                return value
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError as error:
                raise kind("gave up") from error
        return -1

    retry = sa.Retry(2, initial=dt.timedelta(0), on=(TimeoutError,))
    assert await results([7], call, timeout=SOON, retry=retry) == [7]
    assert attempts == [7, 7]


async def test_a_job_ends_although_a_call_swallows_its_cancellation(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("streamactors.operators.async_io.calls.PATIENCE", 0.05)
    stop, begun = asyncio.Event(), asyncio.Event()
    left: list[asyncio.Task[Any]] = []

    async def call(value: int) -> int:
        task = asyncio.current_task()
        assert task is not None
        left.append(task)
        begun.set()
        while not stop.is_set():
            try:
                await stop.wait()
            except asyncio.CancelledError:
                continue
        return value

    flow = sa.Dataflow("calls")
    flow.source("in", ListSource([1])).map_async("call", call).sink("out", ListSink[int]())
    async with asyncio.timeout(PATIENCE), sa.start(flow, on_exit="cancel") as job:
        await begun.wait()
        await job.cancel()
    assert "left behind" in caplog.text
    stop.set()
    await asyncio.gather(*left)


async def test_no_call_is_left_behind_when_the_job_fails() -> None:
    board, feed = Board(), Feed()
    feed.put(*range(20))
    flow = sa.Dataflow("calls")
    flow.source("in", feed).map_async("call", board, capacity=10).sink("out", ListSink[Any]())
    before = asyncio.all_tasks()
    with pytest.raises(sa.JobFailed):  # noqa: PT012
        async with asyncio.timeout(PATIENCE), sa.start(flow) as job:
            await until(lambda: len(board.running) == 10)
            board.fail(4, ValueError("no"))
            await job.wait()
    assert sorted(board.cancelled) == [value for value in range(10) if value != 4]
    assert not board.running and asyncio.all_tasks() == before


# ------------------------------------------------------------------------------------------------------- micro-batches
async def test_calls_get_lists_and_the_rest_at_the_end() -> None:
    sizes: list[int] = []

    async def call(values: list[int]) -> list[int]:
        sizes.append(len(values))
        return [value + 1 for value in values]

    assert await results(range(250), call, batch=sa.BatchOf(100, LONG)) == list(range(1, 251))
    assert sizes == [100, 100, 50]


async def test_the_first_record_of_a_batch_waits_no_longer_than_it_may() -> None:
    async def call(values: list[int]) -> Any:
        return np.array(values) * 2

    feed = Feed()
    feed.put(1, 2, 3)
    async with mapped(feed, call, batch=sa.BatchOf(100, SOON), capacity=2) as sink:
        await until(lambda: sink.values == [2, 4, 6])
        feed.put(4)
        await until(lambda: sink.values == [2, 4, 6, 8])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [([1], "gave 1 results"), (None, "gave a NoneType"), ("ab", "gave a str"), ({1, 2}, "gave a set")],
)
async def test_what_a_batched_function_gives_wrongly_is_said(wrong: Any, said: str) -> None:
    async def call(values: list[int]) -> Any:
        return wrong

    with pytest.raises(sa.JobFailed) as caught:
        await results([1, 2], call, batch=sa.BatchOf(2, LONG))
    assert said in str(caught.value.__cause__) and "'call'" in str(caught.value.__cause__)


async def test_each_record_of_a_failing_batch_gets_a_dead_letter() -> None:
    async def call(values: list[int]) -> list[int]:
        if 3 in values:
            raise ValueError("three")
        return values

    flow, sink, dead = sa.Dataflow("calls"), ListSink[int](), ListSink[sa.DeadLetter]()
    stream = flow.source("in", ListSource(range(8)))
    mapped = stream.map_async("call", call, batch=sa.BatchOf(4, LONG), on_error=DEAD, ordered=False)
    mapped.sink("out", sink)
    mapped.side_output(DEAD).sink("dead", dead)
    await sa.run(flow)
    assert sink.values == [4, 5, 6, 7] and [letter.value for letter in dead.values] == [0, 1, 2, 3]


@pytest.mark.parametrize("ordered", [True, False])
async def test_a_watermark_does_not_cut_a_batch_short(ordered: bool) -> None:
    sizes: list[int] = []

    async def call(values: list[int]) -> list[int]:
        sizes.append(len(values))
        return values

    flow, feed, sink = sa.Dataflow("calls"), Feed(chunk=1), ListSink[int]()
    stream = flow.source("in", feed, watermarks=sa.Watermarks.monotonic(lambda v: v))
    stream.map_async("call", call, batch=sa.BatchOf(5, LONG), ordered=ordered).sink("out", sink)
    feed.put(*range(10))
    feed.end()
    async with asyncio.timeout(PATIENCE):
        await sa.run(flow)
    assert sizes == [5, 5] and sink.values == list(range(10))


# ----------------------------------------------------------------------------------------------- refused, and context
def plain(value: int) -> int:
    return value


async def fine(value: int) -> int:
    return value


@pytest.mark.parametrize(
    ("fn", "options", "said"),
    [
        (plain, {}, r"'call'.*plain is a plain def"),
        (fine, {"capacity": 0}, "'call': capacity is 0"),
        (fine, {"timeout": 3}, "'call': timeout is 3: give a datetime.timedelta"),
        (fine, {"timeout": dt.timedelta(0)}, "'call': timeout"),
        (fine, {"retry": 3}, r"'call': retry is a Retry\(…\)"),
        (fine, {"batch": 3}, r"'call': batch is a BatchOf\(…\)"),
        (fine, {"on_error": "skip"}, "'call': on_error"),
        (3, {}, "map_async takes a function, not 3"),
    ],
)
def test_wrong_use_is_refused_by_name(fn: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(sa.InvalidDataflow, match=said):
        sa.Dataflow("calls").source("in", ListSource([1])).map_async("call", fn, **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: sa.Retry(0),
        lambda: sa.Retry(2, initial=1),  # type: ignore[arg-type]
        lambda: sa.Retry(2, initial=LONG),
        lambda: sa.Retry(2, on=[ValueError]),  # type: ignore[arg-type]
        lambda: sa.BatchOf(0, SOON),
        lambda: sa.BatchOf(2, -SOON),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Any) -> None:
    with pytest.raises(sa.InvalidDataflow):
        make()


def test_pauses_double_up_to_the_longest() -> None:
    retry = sa.Retry(9, initial=dt.timedelta(seconds=1), maximum=dt.timedelta(seconds=5))
    assert [retry.delay(attempt, 0.0) for attempt in (1, 2, 3, 4, 2000)] == [1, 2, 4, 5, 5]
    assert retry.delay(1, 1.0) == 0.5


async def test_a_lambda_that_gives_nothing_to_await_is_told_so() -> None:
    with pytest.raises(sa.JobFailed) as caught:
        await results([1], lambda value: value)
    assert "async def" in str(caught.value.__cause__) and "gave a int" in str(caught.value.__cause__)


async def test_each_call_sees_the_service_s_context_and_no_other_call_s() -> None:
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request")
    token = request.set("of the service")

    async def call(value: int) -> str:
        seen = request.get()
        request.set(f"of {value}")
        await asyncio.sleep(0)
        return seen

    assert await results(range(5), call, capacity=2) == ["of the service"] * 5
    request.reset(token)


async def test_metrics_and_logs_belong_to_the_step(caplog: pytest.LogCaptureFixture) -> None:
    async def call(value: int) -> int:
        logging.getLogger("mine").warning("calling %d", value)
        return value

    assert await results([1], call) == [1] and "calling 1" in caplog.text
