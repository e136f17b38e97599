"""Batch execution: its results are those of streaming, its sinks commit once and together, and what it can't do it
refuses by name."""

import asyncio
import datetime as dt
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

import streamactors as sa
from connectors.memory import CRASH, ListSink, ListSource
from streamactors.errors import CommitInterrupted
from streamactors.sinks import Pending, SinkContext, SinkWriter, WriterSink
from tests.runtime.feeds import PATIENCE, Endless, Feed

Order = tuple[str, int, int]
"""(key, time, number)."""

DISORDER = 20
TIMED: sa.Watermarks[Order] = sa.Watermarks.bounded(lambda order: order[1], dt.timedelta(milliseconds=DISORDER))
AT_ONCE = sa.Restart.fixed(dt.timedelta(0), 5)
TINY = 2000
"""Bytes: nearly everything is spilled."""


def ms(count: int) -> dt.timedelta:
    return dt.timedelta(milliseconds=count)


def key_of(order: Order) -> str:
    return order[0]


# ------------------------------------------------------------------------------------------- batch equals streaming
class Totals(sa.KeyedOperator[str, Order, tuple[str, int]]):
    total = sa.ValueState(int, default=0)

    def process(self, order: Order, ctx: sa.Context[str, tuple[str, int]]) -> None:
        self.total.set(self.total.get() + order[2])
        ctx.emit((ctx.key, self.total.get()))


class AtEnd(sa.KeyedOperator[str, Order, tuple[str, int, int]]):
    """Counts per ten milliseconds, told when these are over: independent of when the timers fire exactly."""

    counts = sa.MapState(int, int)

    def process(self, order: Order, ctx: sa.Context[str, tuple[str, int, int]]) -> None:
        end = order[1] // 10 * 10 + 10
        self.counts[end] = self.counts.get(end, 0) + 1
        ctx.timers.event(end - 1)

    async def on_timer(self, timer: sa.Timer, ctx: sa.Context[str, tuple[str, int, int]]) -> None:
        ctx.emit((ctx.key, timer.timestamp, self.counts[timer.timestamp + 1]))
        del self.counts[timer.timestamp + 1]


class Both(sa.KeyedCoOperator[str, Order, Order, tuple[str, int, int]]):
    left, right = sa.ValueState(int, default=0), sa.ValueState(int, default=0)

    def process_left(self, order: Order, ctx: sa.Context[str, tuple[str, int, int]]) -> None:
        self.left.set(self.left.get() + order[2])
        ctx.emit((ctx.key, self.left.get(), self.right.get()))

    def process_right(self, order: Order, ctx: sa.Context[str, tuple[str, int, int]]) -> None:
        self.right.set(self.right.get() + order[2])
        ctx.emit((ctx.key, self.left.get(), self.right.get()))


class Pairs(sa.WindowOperator[str, Order, tuple[Any, ...]]):
    def process(self, window: sa.Windowed[str, Iterable[Order]], ctx: sa.Context[str, tuple[Any, ...]]) -> None:
        ctx.emit((ctx.key, window.start, tuple(sorted(window.value))))


def totals(left: Any, right: Any) -> Any:
    return left.process("totals", Totals, parallelism=2)


def reduced(left: Any, right: Any) -> Any:
    summed = left.reduce("sum", lambda one, two: (one[0], 0, one[2] + two[2]))
    return summed.map(lambda order: (order[0], order[2]))


def timers(left: Any, right: Any) -> Any:
    return left.process("timers", AtEnd, parallelism=2)


def two_stages(left: Any, right: Any) -> Any:
    return left.process("first", AtEnd).key_by(lambda told: told[1]).process("second", Told, parallelism=2)


class Told(sa.KeyedOperator[int, Any, tuple[str, int]]):
    told = sa.ValueState(int, default=0)

    def process(self, value: Any, ctx: sa.Context[int, tuple[str, int]]) -> None:
        self.told.set(self.told.get() + value[2])
        ctx.emit((str(ctx.key), self.told.get()))


def connected(left: Any, right: Any) -> Any:
    return left.connect(right).process("both", Both, parallelism=2)


def tumbling(left: Any, right: Any) -> Any:
    return left.window("tumbling", sa.Tumbling(ms(10))).aggregate(sa.Count())


def sliding(left: Any, right: Any) -> Any:
    return left.window("sliding", sa.Sliding(ms(20), ms(5))).process(Pairs)


def sessions(left: Any, right: Any) -> Any:
    return left.window("sessions", sa.Session(ms(5))).process(Pairs, parallelism=2)


def interval(left: Any, right: Any) -> Any:
    return left.interval_join("interval", right, ms(-5), ms(5))


def outer(left: Any, right: Any) -> Any:
    return left.outer_join("outer", right, ms(-5), ms(5))


def window_join(left: Any, right: Any) -> Any:
    return left.window_join("windows", right, sa.Tumbling(ms(10)))


def as_of(left: Any, right: Any) -> Any:
    return left.as_of_join("as-of", right)


def top(left: Any, right: Any) -> Any:
    return left.top_n("top", 2, by=lambda order: order[1]).map(lambda orders: (orders[0][0], orders))


def everything(left: Any, right: Any) -> Any:
    return left.window_all("everything", sa.Tumbling(ms(25))).aggregate(sa.Count())


def deduplicated(left: Any, right: Any) -> Any:
    return left.deduplicate("once", by=lambda order: order[2] % 3).map(lambda order: (order[0], order[2] % 3))


def pattern(left: Any, right: Any) -> Any:
    found: sa.Pattern[Order] = sa.Pattern.begin("a", lambda order: order[2] % 2 == 0).followed_by(
        "b", lambda order: order[2] % 2 == 1
    )
    return left.pattern("pattern", found.within(ms(30))).map(lambda match: (match.key, match.start, match.end))


UPDATING = [totals, reduced, connected, top]
"""The last value of each key is what counts; of the others, all of them."""
EXACT = [timers, tumbling, sliding, sessions, interval, outer, window_join, as_of, everything, deduplicated, pattern]


def last_of(values: list[Any]) -> Any:
    return {value[0]: value[1:] for value in values}


def all_of(values: list[Any]) -> Any:
    return Counter(map(repr, values))


async def results(shape: Any, lefts: Any, rights: Any, config: sa.Config) -> list[Any]:
    flow, sink = sa.Dataflow("flow"), ListSink[Any]()
    left = flow.source("left", ListSource(lefts), watermarks=TIMED).key_by(key_of)
    right = flow.source("right", ListSource(rights), watermarks=TIMED).key_by(key_of)
    if shape not in (connected, interval, outer, window_join, as_of):
        right.filter(lambda _: False).sink("unused", ListSink[Any]())
    shape(left, right).sink("out", sink)
    await sa.run(flow, config)
    return sink.values


@st.composite
def orders(draw: Any, first: int = 0) -> list[Order]:
    """Out of order, within the bound, and no two alike in time."""
    times = draw(st.lists(st.integers(1, 60), max_size=25))
    numbers = draw(st.lists(st.integers(0, 5), min_size=len(times), max_size=len(times)))
    keys = draw(st.lists(st.sampled_from("abc"), min_size=len(times), max_size=len(times)))
    behind = draw(st.lists(st.integers(0, DISORDER - 2), min_size=len(times), max_size=len(times)))
    at, made = 0, []
    for step, number, key, late in zip(times, numbers, keys, behind, strict=True):
        at += step % 7
        made.append((at * 2 + first, late, key, number))
    made.sort(key=lambda each: each[0] + each[1])
    unique = {time: (key, time, number) for time, _, key, number in made}
    return list(unique.values())


@pytest.mark.parametrize("shape", [*UPDATING, *EXACT], ids=lambda shape: shape.__name__)
@given(lefts=orders(), rights=orders(first=1), memory=st.sampled_from([TINY, 1 << 20]))
@settings(max_examples=15, deadline=None)
async def test_batch_gives_what_streaming_gives(
    shape: Callable[..., Any], lefts: list[Order], rights: list[Order], memory: int
) -> None:
    view = last_of if shape in UPDATING else all_of
    batch = await results(shape, lefts, rights, sa.Config(execution="batch", sort_memory=memory))
    event(f"results: {bool(batch)}")
    assert view(batch) == view(await results(shape, lefts, rights, sa.Config()))


@pytest.mark.parametrize("shape", [totals, timers, two_stages, sessions, interval], ids=lambda shape: shape.__name__)
async def test_much_is_spilled(shape: Callable[..., Any]) -> None:
    lefts = [(f"key-{number % 50}", number // 3, number % 5) for number in range(6000)]
    view = last_of if shape in (totals, two_stages) else all_of
    batch = await results(shape, lefts, lefts[:500], sa.Config(execution="batch", sort_memory=100_000, parallelism=2))
    assert view(batch) == view(await results(shape, lefts, lefts[:500], sa.Config(parallelism=2)))
    assert batch


# ------------------------------------------------------------------------------------------------------ order of work
class Seen(sa.KeyedOperator[str, Order, Any]):
    """What it is given, in order, and how many keys have state."""

    seen = sa.ListState(int)

    def process(self, order: Order, ctx: sa.Context[str, Any]) -> None:
        self.seen.append(order[1])
        ctx.timers.processing(0, "processing")
        ctx.timers.event(10_000 - order[1])
        ctx.emit(("record", ctx.key, order[1], ctx.watermark))

    def on_timer(self, timer: sa.Timer, ctx: sa.Context[str, Any]) -> None:
        ctx.emit((timer.domain, ctx.key, timer.timestamp, len(self.seen)))


async def test_a_key_goes_by_time_then_event_timers_then_processing_timers() -> None:
    values = [("a", 5, 0), ("b", 1, 0), ("a", 3, 0), ("b", 2, 0), ("a", 4, 0)]
    flow, sink = sa.Dataflow("flow"), ListSink[Any]()
    source = flow.source("in", ListSource(values), watermarks=TIMED)
    source.key_by(key_of).process("seen", Seen).sink("out", sink)
    await sa.run(flow, sa.Config(execution="batch"))
    assert [each for each in sink.values if each[1] == "a"] == [
        *[("record", "a", time, -(2**63)) for time in (3, 4, 5)],
        *[("event", "a", 10_000 - time, 3) for time in (5, 4, 3)],
        ("processing", "a", 0, 3),
    ]


class Rules(sa.KeyedBroadcastOperator[str, Order, str, tuple[str, int]]):
    rules = sa.BroadcastState(str, int)

    def process(self, order: Order, ctx: sa.Context[str, tuple[str, int]]) -> None:
        ctx.emit((ctx.key, len(self.rules)))

    def process_broadcast(self, rule: str, ctx: sa.Context[None, tuple[str, int]]) -> None:
        self.rules[rule] = 1


class PlainRules(sa.CoOperator[Order, str, tuple[int, int]]):
    def __init__(self) -> None:
        self.rules: set[str] = set()

    def process_left(self, order: Order, ctx: sa.Context[None, tuple[int, int]]) -> None:
        ctx.emit((order[1], len(self.rules)))

    def process_right(self, rule: str, ctx: sa.Context[None, tuple[int, int]]) -> None:
        self.rules.add(rule)


@pytest.mark.parametrize("memory", [TINY, 1 << 20])
async def test_broadcast_sides_are_read_first(memory: int) -> None:
    values = [("a", number, number) for number in range(1000)]
    flow, keyed, plain = sa.Dataflow("flow"), ListSink[Any](), ListSink[Any]()
    source = flow.source("in", ListSource(values), watermarks=TIMED)
    rules = flow.source("rules", ListSource([f"rule-{number}" for number in range(3000)]))
    source.key_by(key_of).connect_broadcast(rules).process("keyed", Rules, parallelism=2).sink("out", keyed)
    source.connect(rules.broadcast()).process("plain", PlainRules).sink("plain-out", plain)
    await sa.run(flow, sa.Config(execution="batch", sort_memory=memory))
    assert keyed.values == [("a", 3000)] * 1000
    assert plain.values == [(number, 3000) for number in range(1000)]  # in the order of their arrival


async def test_streams_that_part_and_meet_do_not_wait_for_each_other() -> None:
    values = [("a", number, number) for number in range(20_000)]
    flow, sink = sa.Dataflow("flow"), ListSink[Any]()
    source = flow.source("in", ListSource(values))
    rules = source.map(lambda order: str(order[2] % 7))
    source.connect(rules.broadcast()).process("plain", PlainRules).sink("out", sink)
    async with asyncio.timeout(PATIENCE):
        await sa.run(flow, sa.Config(execution="batch", sort_memory=50_000, mailbox_capacity=64))
    assert {rules for _, rules in sink.values} == {7} and len(sink.values) == 20_000


class Alive(sa.KeyedOperator[int, int, int]):
    """Looks every now and then at how many keys have state."""

    items = sa.ListState(int)
    look: Callable[[], None]

    def process(self, value: int, ctx: sa.Context[int, int]) -> None:
        self.items.append(value)
        if value % 100 == 0:
            type(self).look()


async def test_state_is_dropped_with_its_key() -> None:
    values = list(range(30_000))
    flow = sa.Dataflow("flow")
    watermarks = sa.Watermarks[int].monotonic(lambda value: value)
    source = flow.source("in", ListSource(values), watermarks=watermarks)
    source.key_by(lambda value: value % 10_000).process("alive", Alive).sink("out", ListSink[int]())
    seen: list[int] = []
    async with sa.start(flow, sa.Config(execution="batch"), on_exit="cancel") as job:

        def look() -> None:
            for subtask in job.metrics()["subtasks"].values():
                seen.extend(node["entries"].get("items", 0) for node in subtask["nodes"].values())

        Alive.look = staticmethod(look)
        await job.wait()
    assert 0 < max(seen) < 1200


# ---------------------------------------------------------------------------------------------- sinks, failure, restart
class Watched(WriterSink[Any]):
    """Tells what is called when; fails where it is told."""

    def __init__(self, fails: str = "", times: int = 1) -> None:
        self.calls: list[tuple[str, int]] = []
        self.fails, self.times = fails, times

    @property
    def transactional(self) -> bool:
        return True

    def writer(self, ctx: SinkContext) -> SinkWriter[Any]:
        assert ctx.checkpointing and ctx.exactly_once
        return _WatchedWriter(self, ctx)


class _WatchedWriter(SinkWriter[Any]):
    def __init__(self, sink: Watched, ctx: SinkContext) -> None:
        self._sink, self._ctx = sink, ctx

    def _call(self, name: str) -> None:
        self._sink.calls.append((name, self._ctx.subtask))
        if self._sink.fails == name and self._sink.times and self._ctx.subtask == 0:
            self._sink.times -= 1
            raise RuntimeError(f"no {name}")

    async def open(self, restored: Any, *, committed: bool) -> None: ...

    async def write(self, values: Any, timestamps: Any) -> None: ...

    async def prepare(self, checkpoint: int) -> list[Pending]:
        self._call("prepare")
        return []

    async def commit(self, checkpoint: int) -> None:
        self._call("commit")

    async def finish(self) -> None:
        self._call("finish")

    async def close(self) -> None:
        if self._sink.fails == "close":
            self._call("close")


def summed(source: Any, sink: Any, parallelism: int = 2) -> sa.Dataflow:
    flow = sa.Dataflow("flow")
    keyed = flow.source("in", source).key_by(key_of)
    keyed.process("totals", Totals, parallelism=parallelism).sink("out", sink, parallelism=parallelism)
    return flow


VALUES: list[Any] = [(f"key-{number % 10}", number, 1) for number in range(1000)]


async def test_all_sinks_prepare_before_any_commits() -> None:
    sink = Watched()
    await sa.run(summed(ListSource(VALUES), sink), sa.Config(execution="batch"))
    assert [name for name, _ in sink.calls] == ["prepare", "prepare", "commit", "commit"]
    assert sorted(subtask for _, subtask in sink.calls) == [0, 0, 1, 1]


async def test_a_failure_leaves_nothing_and_a_restart_begins_anew(tmp_path: Path) -> None:
    sink = ListSink[Any]()
    crashing = [*VALUES[:700], CRASH, *VALUES[700:]]
    with pytest.raises(sa.JobFailed):
        await sa.run(summed(ListSource(crashing), sink), sa.Config(execution="batch"))
    assert sink.values == []
    await sa.run(summed(ListSource(crashing), sink), sa.Config(execution="batch", restart=AT_ONCE, sort_memory=TINY))
    assert last_of(sink.values) == {f"key-{key}": (100,) for key in range(10)}
    assert len(sink.values) == 1000


async def test_a_failure_while_sinks_commit_is_no_reason_to_begin_anew() -> None:
    sink = Watched("commit")
    with pytest.raises(sa.JobFailed) as failed:
        await sa.run(summed(ListSource(VALUES), sink), sa.Config(execution="batch", restart=AT_ONCE))
    assert isinstance(failed.value.__cause__, CommitInterrupted)
    assert "remove what is there" in str(failed.value)


async def test_nor_is_one_when_all_is_visible(caplog: pytest.LogCaptureFixture) -> None:
    sink = Watched("close")
    await sa.run(summed(ListSource(VALUES), sink), sa.Config(execution="batch", restart=AT_ONCE))
    assert [name for name, _ in sink.calls if name != "close"] == ["prepare", "prepare", "commit", "commit"]
    assert "flow has finished, but not cleaned up: " in caplog.text


async def test_a_failure_before_that_is() -> None:
    sink = Watched("prepare")
    await sa.run(summed(ListSource(VALUES), sink), sa.Config(execution="batch", restart=AT_ONCE))
    assert [name for name, _ in sink.calls][-2:] == ["commit", "commit"]


def fed() -> Feed:
    """Its end has yet to come."""
    feed = Feed()
    feed.put(*[("a", 0, 1)] * 10)
    return feed


async def test_a_job_that_is_stopped_shows_nothing() -> None:
    sink, feed = ListSink[Any](), fed()
    async with sa.start(summed(feed, sink), sa.Config(execution="batch")) as job:
        assert await job.stop() is None
        assert job.status == "cancelled"
    assert sink.values == []


async def test_the_end_can_be_asked_for() -> None:
    sink, feed = ListSink[Any](), fed()
    async with sa.start(summed(feed, sink), sa.Config(execution="batch"), on_exit="cancel") as job:
        async with asyncio.timeout(PATIENCE):
            while not any(
                subtask["nodes"].get("in", {}).get("records_out") for subtask in job.metrics()["subtasks"].values()
            ):
                await asyncio.sleep(0)
            await job.stop(drain=True)
    assert job.status == "finished" and last_of(sink.values) == {"a": (10,)}


async def test_a_block_that_is_left_shows_nothing() -> None:
    sink, feed = ListSink[Any](), fed()
    async with sa.start(summed(feed, sink), sa.Config(execution="batch")) as job:
        pass
    assert (job.status, sink.values) == ("cancelled", [])


# ------------------------------------------------------------------------------------------------------------- refusals
async def test_what_has_no_end_is_refused_by_name() -> None:
    flow = sa.Dataflow("flow")
    both = flow.source("endless", Endless()).union(flow.source("bounded", ListSource([1])))
    both.sink("out", ListSink[int]())
    with pytest.raises(sa.InvalidConfig, match=r"these do not: source 'endless' \(Endless\): "):
        await sa.run(flow, sa.Config(execution="batch"))


async def test_checkpoints_and_savepoints_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    feed = fed()
    checkpoints = sa.Checkpoints((tmp_path / "storage").as_uri(), interval=ms(1))
    config = sa.Config(execution="batch", checkpoints=checkpoints)
    async with sa.start(summed(feed, ListSink[Any]()), config, on_exit="cancel") as job:
        with pytest.raises(sa.InvalidConfig, match="'flow' has no checkpoint: execution = 'batch' takes none"):
            await job.checkpoint()
        for request in (job.savepoint, job.stop):
            with pytest.raises(sa.InvalidConfig, match="'flow' has no savepoint: execution = 'batch' takes none"):
                await request((tmp_path / "savepoint").as_uri())
    assert "those that are configured are left out" in caplog.text
    assert not (tmp_path / "storage").exists()


async def test_a_restore_is_refused(tmp_path: Path) -> None:
    with pytest.raises(sa.InvalidConfig, match=r"restore='file:.*begins from the start"):
        await sa.run(
            summed(ListSource(VALUES), ListSink[Any]()), sa.Config(execution="batch"), restore=tmp_path.as_uri()
        )


@pytest.mark.parametrize("checkpointing", [False, True])
async def test_auto(checkpointing: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    checkpoints = sa.Checkpoints(tmp_path.as_uri(), interval=ms(1000)) if checkpointing else None
    sink, config = Watched(), sa.Config(execution="auto", checkpoints=checkpoints)
    flow = summed(ListSource(VALUES), sink)
    await sa.run(flow, config)
    execution = "streaming" if checkpointing else "batch"
    assert f"execution {execution!r} (auto: " in caplog.text
    assert f"Execution: {execution} (auto: " in flow.explain(config)


async def test_collect_in_batch() -> None:
    flow = sa.Dataflow("flow")
    counts = flow.source("in", ListSource(VALUES)).key_by(key_of).process("totals", Totals)
    assert len(await sa.collect(counts, sa.Config(execution="batch"))) == 1000


async def test_a_timer_that_sets_itself_again_by_the_clock_fires_once() -> None:
    """As the key ends, the clock ends with it: else it would fire for ever."""

    class Again(sa.KeyedOperator[str, str, str]):
        def process(self, value: str, ctx: sa.Context[str, str]) -> None:
            ctx.timers.processing(1)

        def on_timer(self, timer: sa.Timer, ctx: sa.Context[str, str]) -> None:
            ctx.emit(f"{ctx.key} {timer.domain}")
            if timer.domain == "processing":
                ctx.timers.processing(timer.timestamp + 1000)

    flow = sa.Dataflow("again")
    source = ListSource(["a", "b", "a"])
    given = sa.Config(execution="batch")
    async with asyncio.timeout(60):
        found = await sa.collect(flow.source("in", source).key_by(lambda value: value).process("again", Again), given)
    assert sorted(found) == ["a processing", "b processing"]
