"""Subscriptions to a step's live output: all subtasks, through restarts, at most a buffer behind, leaving nothing."""

import asyncio
import datetime as dt
import gc
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

import streamactors as sa
from connectors.memory import ListSink
from streamactors.elements import Batch, Watermark
from streamactors.runtime.chain import LinkSlot
from streamactors.runtime.taps import Subscription, Tap
from streamactors.submission import job_here
from tests.runtime.feeds import PATIENCE, Endless, Feed, until

ODD = sa.OutputTag("odd", int)
RESTARTS = sa.Restart.fixed(dt.timedelta(0), 3)


@pytest.fixture(scope="module", autouse=True)
def libuv() -> None:
    """The first loop makes libuv open a pipe that it keeps for the life of the process: that is no leak of a test."""
    uvloop.new_event_loop().close()


class Split(sa.Operator[int, int]):
    def process(self, value: int, ctx: sa.Context[None, int]) -> None:
        if value % 2:
            ctx.emit_to(ODD, value)
        else:
            ctx.emit(value)


class Sum(sa.KeyedOperator[int, int, int]):
    total = sa.ValueState(int, default=0)

    def process(self, value: int, ctx: sa.Context[int, int]) -> None:
        self.total.set(self.total.get() + value)
        ctx.emit(self.total.get())


def doubling(feed: Feed, fn: Callable[[int], int] = lambda value: 2 * value) -> sa.Dataflow:
    flow = sa.Dataflow("doubling")
    flow.source("in", feed).map(fn, name="double").sink("out", ListSink[int]())
    return flow


async def take(results: AsyncIterator[Any], count: int) -> list[Any]:
    async with asyncio.timeout(PATIENCE):
        return [await anext(results) for _ in range(count)]


async def rest(results: AsyncIterator[Any]) -> list[Any]:
    async with asyncio.timeout(PATIENCE):
        return [value async for value in results]


def taps(job: sa.JobHandle) -> int:
    """How many hang on the running attempt."""
    slots = [slot for subtask in job._job._attempt._deployed._subtasks.values() for slot in subtask.chain.slots]  # type: ignore[attr-defined]
    outputs = [[*slot.main, *(each for side in slot.sides.values() for each in side)] for slot in slots]
    return sum(isinstance(output, Tap) for each in outputs for output in each)


# ------------------------------------------------------------------------------------------------------ what it gives
@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_what_is_emitted_from_now_on(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def main() -> None:
        feed = Feed()
        async with sa.start(doubling(feed)) as job:
            feed.put(1)
            await until(lambda: job.metrics()["subtasks"]["in[0]"]["nodes"]["map-1"]["records_out"] == 1)
            async with job.subscribe("map-1") as results, job.subscribe("in") as read:
                feed.put(2, 3)
                assert (await take(results, 2), await take(read, 2)) == ([4, 6], [2, 3])
                feed.end()
                assert (await rest(results), await rest(read)) == ([], [])

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


async def test_of_all_subtasks_in_the_order_of_each() -> None:
    feed, flow = Feed(), sa.Dataflow("sums")
    stream = flow.source("in", feed, parallelism=1).key_by(lambda value: value % 10)
    stream.process("sum", Sum, parallelism=3).sink("out", ListSink[int](), parallelism=1)
    async with sa.start(flow) as job, job.subscribe("sum") as results:
        feed.put(*range(100))
        feed.end()
        seen = await rest(results)
    per_key = {key: [total for total in seen if total in _totals(key)] for key in range(10)}
    assert len(seen) == 100
    assert all(sorted(totals) == totals for totals in per_key.values())


def _totals(key: int) -> set[int]:
    return {sum(range(key, end, 10)) for end in range(key + 1, 101, 10)}


async def test_of_a_side_output() -> None:
    feed, flow = Feed(), sa.Dataflow("split")
    flow.source("in", feed).process("split", Split).sink("out", ListSink[int]())
    async with sa.start(flow) as job:
        async with job.subscribe("split", tag=ODD) as odd, job.subscribe("split") as even:
            feed.put(*range(10))
            assert await take(odd, 5) == [1, 3, 5, 7, 9]
            assert await take(even, 5) == [0, 2, 4, 6, 8]
            assert taps(job) == 2
        await until(lambda: taps(job) == 0)
        feed.put(11)  # nobody takes it: it is counted as undelivered again
        feed.end()
        await job.wait()
        assert job.metrics()["subtasks"]["in[0]"]["nodes"]["split"]["undelivered"] == 1


async def test_it_goes_on_in_the_next_attempt(tmp_path: Path) -> None:
    feed, flow = Feed(), sa.Dataflow("sums")
    flow.source("in", feed).key_by(lambda _: 0).process("sum", Sum).sink("out", ListSink[int]())
    checkpoints = sa.Checkpoints(f"file://{tmp_path}", interval=dt.timedelta(hours=1))
    config = sa.Config(checkpoints=checkpoints, restart=RESTARTS)
    async with sa.start(flow, config) as job, job.subscribe("sum") as results:
        feed.put(1)
        assert await take(results, 1) == [1]
        await job.checkpoint()
        feed.put(2)
        assert await take(results, 1) == [3]
        feed.fail(RuntimeError("broken"))
        assert await take(results, 1) == [3]  # what came after the checkpoint comes again
        assert job.restarts == 1
        feed.put(3)
        feed.end()
        assert await rest(results) == [6]


async def test_restarts_repeat_values_and_leave_none_out(tmp_path: Path) -> None:
    """Wherever the job fails: what goes back goes back to a checkpoint, and from there on there is no gap."""
    choose, feed = random.Random(11), Feed(chunk=5)
    checkpoints = sa.Checkpoints(f"file://{tmp_path}", interval=dt.timedelta(milliseconds=5))
    config = sa.Config(checkpoints=checkpoints, restart=sa.Restart.fixed(dt.timedelta(0), 100))
    start = sa.start(doubling(feed, lambda value: value), config)
    async with start as job, job.subscribe("map-1", buffer=100_000) as results:
        for value in range(500):
            feed.put(value)
            if choose.random() < 0.02:
                await until(lambda: feed.broken is None)  # the failure before this one has been met
                feed.fail(RuntimeError("broken"))
            if choose.random() < 0.2:
                await asyncio.sleep(0.001)
        feed.end()
        seen = await rest(results)
    assert job.restarts > 2
    assert (seen[0], seen[-1], set(seen)) == (0, 499, set(range(500)))
    assert all(after <= before + 1 for before, after in pairwise(seen))


async def test_it_begins_while_the_job_restarts() -> None:
    feed = Feed()
    feed.fail(RuntimeError("broken"))
    config = sa.Config(restart=sa.Restart.fixed(dt.timedelta(milliseconds=50), 1))
    async with sa.start(doubling(feed), config) as job:
        await until(lambda: job.status == "restarting")
        async with job.subscribe("map-1") as results:
            assert job.status == "restarting"
            feed.put(1)
            feed.end()
            assert await rest(results) == [2]


async def test_it_begins_before_the_job_has_started() -> None:
    """As for whoever runs beside a job from its very start."""
    feed = Feed()
    job = job_here(doubling(feed).graph(), None, restore="latest", fresh=False, resources=None)
    task = asyncio.create_task(job.run())
    async with sa.JobHandle(job, task).subscribe("map-1") as results:
        assert job.status == "running"
        feed.put(1)
        feed.end()
        assert await rest(results) == [2]
    await task


async def test_a_job_that_never_starts_is_not_waited_for() -> None:
    job = job_here(doubling(Feed()).graph(), None, restore="/nowhere", fresh=False, resources=None)
    task = asyncio.create_task(job.run())
    with pytest.raises(sa.InvalidConfig, match="needs checkpoints"):
        await sa.JobHandle(job, task).subscribe("map-1").__aenter__()


# ------------------------------------------------------------------------------------------------------------- its end
async def test_it_ends_with_the_job_after_what_is_buffered() -> None:
    feed = Feed()
    async with sa.start(doubling(feed)) as job:
        async with job.subscribe("map-1") as results:
            feed.put(1, 2)
            feed.end()
            await job.wait()
            assert await rest(results) == [2, 4]
        async with job.subscribe("map-1") as late:
            assert await rest(late) == []


async def test_it_raises_what_the_job_failed_with() -> None:
    feed = Feed()
    with pytest.raises(sa.JobFailed):  # noqa: PT012 (raised on leaving the block)
        async with sa.start(doubling(feed, lambda value: 6 // value)) as job, job.subscribe("map-1") as results:
            feed.put(2)
            assert await take(results, 1) == [3]
            feed.put(0)
            with pytest.raises(sa.JobFailed, match="map-1"):
                await rest(results)
            assert job.status == "failed"


async def test_it_ends_when_the_job_is_cancelled() -> None:
    async with sa.start(doubling(Feed())) as job, job.subscribe("map-1") as results:
        waiting = asyncio.ensure_future(rest(results))
        await asyncio.sleep(0)
        await job.cancel()
        assert await waiting == []


async def test_whoever_is_cancelled_leaves_nothing_behind() -> None:
    feed = Feed()

    async def look_on(job: sa.JobHandle, seen: list[int]) -> None:
        async with job.subscribe("map-1") as results:
            async for value in results:
                seen.append(value)  # noqa: PERF401 (as they come)

    async with sa.start(doubling(feed)) as job:
        seen: list[list[int]] = [[] for _ in range(100)]
        tasks = [asyncio.ensure_future(look_on(job, each)) for each in seen]
        await until(lambda: taps(job) == 100)
        feed.put(1)
        await until(lambda: seen == [[2]] * 100)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
        await until(lambda: taps(job) == 0)
        assert job._job._subscriptions == []  # type: ignore[attr-defined]
        assert not job._job._attempt._taps  # type: ignore[attr-defined]
        feed.end()


async def test_whoever_looks_on_at_a_step_that_has_ended_leaves_nothing_behind() -> None:
    """The job goes on without it."""
    ends, goes_on = Feed(), Feed()
    flow = doubling(ends)
    flow.source("others", goes_on).map(str).sink("texts", ListSink[str]())
    async with sa.start(flow) as job:
        ends.end()
        await until(lambda: bool(job._job._attempt._stopped))  # type: ignore[attr-defined]
        for _ in range(100):
            async with job.subscribe("map-1"):
                pass
        assert sum(isinstance(found, Tap) for found in gc.get_objects()) < 50
        goes_on.end()


async def test_after_the_block_there_is_nothing_more() -> None:
    feed = Feed()
    async with sa.start(doubling(feed)) as job:
        async with job.subscribe("map-1") as results:
            feed.put(1, 2)
            assert await take(results, 1) == [2]
        assert await rest(results) == []
        feed.end()


# ---------------------------------------------------------------------------------------------------------- bad wishes
async def test_what_emits_nothing_is_refused_by_name() -> None:
    feed = Feed()
    async with sa.start(doubling(feed), on_exit="cancel") as job:
        with pytest.raises(sa.NoSuchStep, match=r"no step 'totals'; those that emit: in, map-1$"):
            await job.subscribe("totals").__aenter__()
        with pytest.raises(sa.NoSuchStep, match=r"step 'out' is a sink and emits nothing; .*: in, map-1$"):
            await job.subscribe("out").__aenter__()
        with pytest.raises(sa.InvalidConfig, match=r"buffer=0"):
            job.subscribe("map-1", buffer=0)


# ------------------------------------------------------------------------------------------------------- not keeping up
async def test_a_subscriber_that_does_not_keep_up_is_told_and_may_read_on() -> None:
    feed = Feed()
    async with sa.start(doubling(feed)) as job, job.subscribe("map-1", buffer=3) as results:
        feed.put(1, 2)
        feed.put(3, 4, 5)
        feed.end()
        await job.wait()  # the job never waits for it
        with pytest.raises(sa.SubscriptionLagged, match=r"'map-1' did not keep up: 2 values were lost") as raised:
            await anext(results)
        assert raised.value.lost == 2
        assert await rest(results) == [6, 8, 10]


async def test_a_stalled_subscriber_holds_nobody_up() -> None:
    flow = sa.Dataflow("endless")
    flow.source("in", source := Endless()).map(lambda value: value).sink("out", Discarding())
    async with sa.start(flow, on_exit="cancel") as job, AsyncExitStack() as stack:
        stalled = [await stack.enter_async_context(job.subscribe("map-1", buffer=10)) for _ in range(3)]
        begun = source.read
        await until(lambda: source.read > begun + 100_000)
        for results in stalled:
            with pytest.raises(sa.SubscriptionLagged):
                await anext(results)
            first = await take(results, 10)
            assert first == list(range(first[0], first[0] + 10))


class Discarding(ListSink[int]):
    """Keeps nothing."""

    @property
    def transactional(self) -> bool:
        return False

    def writer(self, ctx: Any) -> Any:
        writer = super().writer(ctx)
        self.values.clear()
        return writer


@given(
    buffer=st.integers(1, 8),
    steps=st.lists(st.one_of(st.lists(st.just(0), min_size=1, max_size=12), st.none()), max_size=30),
)
async def test_every_value_is_given_or_counted_as_lost(buffer: int, steps: list[list[int] | None]) -> None:
    """None: one value is taken. Given and lost together are all that came, in order, without a gap unaccounted for."""
    subscription, sent, reached = Subscription("uid", None, buffer), 0, 0

    async def read() -> None:
        nonlocal reached
        try:
            assert await anext(subscription) == reached
            reached += 1
        except sa.SubscriptionLagged as lagged:
            reached += max(1, lagged.lost)

    for step in steps:
        if step is not None:
            subscription.receive(range(sent, sent + len(step)))
            sent += len(step)
        elif reached < sent:
            await read()
    while reached < sent:
        await read()
    subscription.end()
    with pytest.raises(StopAsyncIteration):
        await anext(subscription)


async def test_reading_a_large_buffer_lets_others_have_their_turns() -> None:
    subscription = Subscription("uid", None, 10_000)
    subscription.receive(range(10_000))
    subscription.end()
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(others())
    assert await rest(subscription) == list(range(10_000))
    beside.cancel()
    assert turns > 30


async def test_two_readers_of_one_subscription_share_it() -> None:
    subscription = Subscription("uid", None, 10)
    readers = [asyncio.ensure_future(rest(subscription)) for _ in range(2)]
    await asyncio.sleep(0)
    subscription.receive([1, 2, 3])
    subscription.end()
    first, second = await asyncio.gather(*readers)
    assert sorted(first + second) == [1, 2, 3]


async def test_a_tap_dies_with_its_attempt() -> None:
    subscription = Subscription("uid", None, 10)
    tap = Tap(subscription)
    tap.stage(Batch([1]))
    tap.tell(Watermark(5))
    tap.close()
    tap.stage(Batch([2]))  # of a zombie
    subscription.end()
    assert await rest(subscription) == [1]


def test_a_slot_without_taps_is_as_it_was() -> None:
    slot = LinkSlot(None, [], {}, sa.MetricGroup())
    main, side, other = (Tap(Subscription("uid", None, 1)) for _ in range(3))
    slot.attach(None, main)
    slot.attach("late", side)
    slot.attach("late", other)
    slot.detach("late", side)
    assert (slot.main, slot.sides) == ([main], {"late": [other]})
    slot.detach("late", other)
    slot.detach(None, main)
    slot.detach(None, main)
    assert (slot.main, slot.sides) == ([], {})
