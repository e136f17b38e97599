"""run_flow: whole flows in this process, with crashes at exact points, checkpoints, and other parallelisms."""

import asyncio
import datetime as dt
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamactors as sa
from connectors.kafka import KafkaSource
from connectors.memory import CRASH as MEMORY_CRASH
from connectors.memory import ListSink, ListSource
from streamactors.testing import CHECKPOINT, CRASH, At, Watermark, run_flow

pytestmark = pytest.mark.slow
DEAD = sa.OutputTag("dead", sa.DeadLetter)
ODD = sa.OutputTag("odd", int)
Pair = tuple[str, int]


class Total(sa.KeyedOperator[str, Pair, Pair]):
    total = sa.ValueState(int, default=0)

    def process(self, pair: Pair, ctx: sa.Context[str, Pair]) -> None:
        if pair[1] < 0:
            raise ValueError("negative")
        self.total.set(self.total.get() + pair[1])
        ctx.emit((ctx.key, self.total.get()))
        if pair[1] % 2:
            ctx.emit_to(ODD, pair[1])


def first(pair: Pair) -> str:
    return pair[0]


def totals(flow: sa.Dataflow, parallelism: int | None = None, **options: Any) -> sa.Stream[Pair]:
    """What the flow itself would read is nowhere to be had."""
    pairs = flow.source("pairs", KafkaSource("nowhere:1", "pairs", value=sa.MsgPack(tuple[str, int])))
    return pairs.key_by(first).process("totals", Total, parallelism=parallelism, **options)


def running_totals(pairs: list[Pair]) -> list[Pair]:
    sums: dict[str, int] = {}
    out = []
    for key, amount in pairs:
        sums[key] = sums.get(key, 0) + amount
        out.append((key, sums[key]))
    return out


async def test_in_the_place_of_sources_and_sinks() -> None:
    flow = sa.Dataflow("orders")
    replaced: ListSink[Pair] = ListSink()
    totals(flow).sink("out", replaced)
    for _ in range(2):  # the flow is as it was
        result = await run_flow(flow, {"pairs": [("a", 1), ("b", 2), ("a", 3)]})
        assert result["out"] == result.output == [("a", 1), ("b", 2), ("a", 4)]
        assert (result.restarts, result.checkpoints, result.dead_letters) == (0, 1, [])
    assert replaced.values == []


async def test_a_stream_without_a_sink() -> None:
    result = await run_flow(totals(sa.Dataflow("orders")), {"pairs": [("a", 1)]})
    assert result.output == [("a", 1)]


async def test_a_crash_goes_on_from_the_checkpoint_ahead_of_it() -> None:
    seen: list[Pair] = []

    def see(pair: Pair) -> Pair:
        seen.append(pair)
        return pair

    flow = sa.Dataflow("orders")
    source = flow.source("pairs", ListSource[Pair]([])).map(see)
    stream = source.key_by(first).process("totals", Total)
    result = await run_flow(stream, {"pairs": [("a", 1), CRASH, ("a", 2), MEMORY_CRASH, ("b", 3)]})
    assert result.output == [("a", 1), ("a", 3), ("b", 3)]
    assert result.restarts == 2
    assert seen == [("a", 1), ("a", 2), ("b", 3)]  # nothing was read twice
    seen.clear()
    result = await run_flow(stream, {"pairs": [("a", 1), CHECKPOINT, ("a", 2), ("b", 1), CRASH, ("b", 3)]})
    assert result.output == [("a", 1), ("a", 3), ("b", 1), ("b", 4)]
    assert result.restarts == 1
    assert seen[0] == ("a", 1) and seen.count(("a", 1)) == 1 and seen.count(("a", 2)) == 2


@settings(max_examples=15)
@given(
    elements=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 5)) | st.sampled_from([CHECKPOINT, CRASH]), max_size=25
    ),
    widths=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    alignment=st.sampled_from(["aligned", "unaligned"]),
)
async def test_whatever_crashes_nothing_is_lost_or_doubled(
    elements: list[Any], widths: list[int], alignment: Any
) -> None:
    pairs = [each for each in elements if isinstance(each, tuple)]
    checkpoints = sa.Checkpoints("unused", interval=dt.timedelta(days=1), alignment=alignment)
    config = sa.Config(checkpoints=checkpoints)
    stream = totals(sa.Dataflow("orders"), parallelism=3)
    result = await run_flow(stream, {"pairs": elements}, config=config, parallelism=widths)
    wanted = running_totals(pairs)
    for key in "abc":
        assert [pair for pair in result.output if pair[0] == key] == [pair for pair in wanted if pair[0] == key]
    assert result.restarts == elements.count(CRASH)


async def test_a_flow_that_is_wrong_is_found() -> None:
    """It keeps its sum in an attribute: nothing stores that, and what is read again counts twice."""
    lost = {"sum": 0}

    class Sum(sa.KeyedOperator[str, Pair, int]):
        def open(self, ctx: sa.OperatorContext) -> None:
            self.sum = 0

        def process(self, pair: Pair, ctx: sa.Context[str, int]) -> None:
            self.sum += pair[1]
            lost["sum"] += pair[1]
            ctx.emit(self.sum)

    flow = sa.Dataflow("orders")
    stream = flow.source("pairs", ListSource[Pair]([])).key_by(first).process("sum", Sum)
    inputs = [("a", 1), CHECKPOINT, ("a", 2), CRASH, ("a", 4)]
    assert (await run_flow(stream, {"pairs": inputs})).output == [1, 2, 6]
    assert lost["sum"] == 9


async def test_on_rocksdb() -> None:
    checkpoints = sa.Checkpoints("unused", interval=dt.timedelta(milliseconds=5), alignment="unaligned")
    config = sa.Config(checkpoints=checkpoints, state_backend="rocksdb")
    pairs = [("ab"[number % 2], number) for number in range(40)]
    inputs = [*pairs[:20], CHECKPOINT, *pairs[20:30], CRASH, *pairs[30:]]
    result = await run_flow(totals(sa.Dataflow("orders")), {"pairs": inputs}, config=config, parallelism=[2, 3])
    assert sorted(result.output) == sorted(running_totals(pairs))


async def test_each_life_has_its_parallelism() -> None:
    opened: list[tuple[int, int]] = []

    class Opened(Total):
        def open(self, ctx: sa.OperatorContext) -> None:
            opened.append((ctx.subtask, ctx.parallelism))

    flow = sa.Dataflow("orders")
    source = flow.source("pairs", ListSource[Pair]([]), parallelism=1)
    stream = source.key_by(first).process("totals", Opened, parallelism=5)
    result = await run_flow(stream, {"pairs": [("a", 1), CRASH, ("a", 1), CRASH, ("a", 1)]}, parallelism=(2, 3))
    assert result.output == [("a", 1), ("a", 2), ("a", 3)]
    assert opened[:2] == [(0, 2), (1, 2)]
    assert sorted(opened[2:]) == sorted([(each, 3) for each in range(3)] * 2)


async def test_dead_letters_and_side_outputs() -> None:
    stream = totals(sa.Dataflow("orders"), on_error=DEAD)
    result = await run_flow(stream, {"pairs": [("a", 1), ("a", -2), CRASH, ("a", 2), ("b", 5)]}, tags={"totals": ODD})
    assert result.side("totals", ODD) == [1, 5]
    assert [letter.value for letter in result.dead_letters] == [("a", -2)]
    assert result.side("totals", DEAD) == result.dead_letters
    assert result.dead_letters[0].origin == "pairs:1"
    with pytest.raises(KeyError, match="run_flow"):
        result.side("totals", sa.OutputTag("other", int))
    with pytest.raises(KeyError, match="it has: output"):
        result["outputs"]
    with pytest.raises(sa.InvalidConfig, match="no step 'total'; it has: pairs, totals"):
        await run_flow(stream, {"pairs": []}, tags={"total": [ODD]})


# ----------------------------------------------------------------------------------------------------------- event time
Windows = list[sa.Windowed[str, int]]


def counted(flow: sa.Dataflow) -> sa.Stream[sa.Windowed[str, int]]:
    marks: sa.Watermarks[Pair] = sa.Watermarks.monotonic(lambda pair: pair[1])
    source = flow.source("pairs", ListSource[Pair]([]), watermarks=marks).key_by(first)
    return source.window("counts", sa.Tumbling(dt.timedelta(milliseconds=10))).aggregate(sa.Count())


def found(windows: Windows) -> list[tuple[str, int, int]]:
    return sorted((window.key, window.start, window.value) for window in windows)


async def test_the_flows_own_watermarks() -> None:
    result = await run_flow(counted(sa.Dataflow("w")), {"pairs": [("a", 1), ("a", 15), CRASH, ("a", 3), ("a", 16)]})
    assert found(result.output) == [("a", 0, 1), ("a", 10, 2)]


async def test_watermarks_of_the_test() -> None:
    inputs = [("a", 1), ("a", 15), CRASH, ("a", 3), Watermark(9), ("a", 4), CRASH, ("a", 5), ("a", 16)]
    result = await run_flow(counted(sa.Dataflow("w")), {"pairs": inputs}, parallelism=2)
    assert found(result.output) == [("a", 0, 2), ("a", 10, 2)]  # 4 and 5 are late


async def test_time_stamps_of_the_source() -> None:
    class Stamp(sa.Operator[str, tuple[str, int | None]]):
        def process(self, value: str, ctx: sa.Context[None, tuple[str, int | None]]) -> None:
            ctx.emit((value, ctx.timestamp))

    stream = sa.Dataflow("w").source("in", ListSource[str]([])).process("stamp", Stamp)
    assert (await run_flow(stream, {"in": [At("a", 7), CRASH, At("b", 8)]})).output == [("a", 7), ("b", 8)]
    assert (await run_flow(stream, {"in": ["a"]})).output == [("a", None)]
    with pytest.raises(sa.InvalidConfig, match="for all of its records, or for none"):
        await run_flow(stream, {"in": [At("a", 7), "b"]})


async def test_splits() -> None:
    inputs = {"one": [("a", 1), CRASH, ("a", 2)], "two": [("b", 1), CHECKPOINT, ("b", 2), CRASH, ("b", 3)]}
    result = await run_flow(totals(sa.Dataflow("orders")), {"pairs": inputs}, parallelism=[2, 1, 3])
    assert sorted(result.output) == [("a", 1), ("a", 3), ("b", 1), ("b", 3), ("b", 6)]
    assert result.restarts == 2


# ------------------------------------------------------------------------------------------------------ what goes wrong
async def test_inputs_and_sources_have_to_match() -> None:
    stream = totals(sa.Dataflow("orders"))
    with pytest.raises(sa.InvalidConfig, match="inputs for 'orders': the flow's sources are: pairs"):
        await run_flow(stream, {"orders": []})
    with pytest.raises(sa.InvalidConfig, match="no inputs for the source 'pairs'"):
        await run_flow(stream, {})
    with pytest.raises(sa.InvalidConfig, match="leave CRASH"):
        await run_flow(stream, {"pairs": [CRASH]}, config=sa.Config(execution="batch"))
    result = await run_flow(stream, {"pairs": [("a", 1), ("a", 2)]}, config=sa.Config(execution="batch"))
    assert result.output == [("a", 1), ("a", 3)]


async def test_the_flows_own_failure_comes_out() -> None:
    stream = totals(sa.Dataflow("orders"))
    with pytest.raises(sa.JobFailed) as caught:
        await run_flow(stream, {"pairs": [("a", 1), CRASH, ("a", -2), CRASH]})
    assert isinstance(caught.value.__cause__, sa.RecordFailed)
    assert isinstance(caught.value.__cause__.__cause__, ValueError)


async def test_restarts_of_the_job_itself() -> None:
    failures = iter([True, False])

    def fail_once(pair: Pair) -> Pair:
        if pair[1] == 7 and next(failures, False):
            raise OSError("for once")
        return pair

    flow = sa.Dataflow("orders")
    stream = flow.source("pairs", ListSource[Pair]([])).map(fail_once).key_by(first).process("totals", Total)
    config = sa.Config(restart=sa.Restart.fixed(dt.timedelta(0), 5))
    result = await run_flow(stream, {"pairs": [("a", 1), CHECKPOINT, ("a", 7), CRASH, ("a", 1)]}, config=config)
    assert (result.output, result.restarts) == ([("a", 1), ("a", 8), ("a", 9)], 2)


async def test_one_that_hangs_is_cancelled() -> None:
    async def hang(pair: Pair) -> Pair:
        await asyncio.Event().wait()
        return pair

    stream = sa.Dataflow("hangs").source("in", ListSource[Pair]([])).map(hang)
    with pytest.raises(TimeoutError, match="'hangs' has not come to its end"):
        await run_flow(stream, {"in": [("a", 1)]}, timeout=0.05)


async def test_an_async_map_with_calls_in_flight() -> None:
    started: Iterator[int] = iter(range(10**6))

    async def slow(number: int) -> int:
        for _ in range(next(started) % 5):
            await asyncio.sleep(0)
        return number * 2

    stream = sa.Dataflow("calls").source("in", ListSource[int]([])).map_async("double", slow, capacity=4)
    result = await run_flow(stream, {"in": [1, 2, 3, CHECKPOINT, 4, 5, CRASH, 6, CRASH, 7]}, parallelism=[1, 2])
    assert sorted(result.output) == [2, 4, 6, 8, 10, 12, 14]


# ----------------------------------------------------------------------------------------------------------- at its end
class Held(sa.KeyedOperator[str, Pair, int]):
    total = sa.ValueState(int, default=0)
    amounts = sa.ListState(int)
    count_of = sa.MapState(int, int)
    most = sa.ReducingState(int, max)
    mean = sa.AggregatingState(sa.Avg[int](float))
    left = sa.stored_as("rest", sa.ValueState(int, default=0))
    seen = sa.OperatorListState(int)

    def process(self, pair: Pair, ctx: sa.Context[str, int]) -> None:
        self.total.set(self.total.get() + pair[1])
        self.amounts.append(pair[1])
        self.count_of[pair[1]] = self.count_of.get(pair[1], 0) + 1
        self.most.add(pair[1])
        self.mean.add(pair[1])
        self.left.set(-pair[1])


@pytest.mark.parametrize("backend", ["heap", "rocksdb"])
async def test_state_at_the_end(backend: Any) -> None:
    stream = sa.Dataflow("held").source("in", ListSource[Pair]([])).key_by(first).process("held", Held)
    states = [Held.total, Held.amounts, Held.count_of, Held.most, Held.mean, Held.left]
    pairs = [("a", 1), ("b", 5), CHECKPOINT, ("a", 2), CRASH, ("a", 3), CRASH, ("b", 5)]
    config = sa.Config(state_backend=backend)
    result = await run_flow(stream, {"in": pairs}, states={"held": states}, parallelism=[1, 3], config=config)
    assert result.state("held", Held.total) == result.state("held", "total") == {"a": 6, "b": 10}
    assert result.state("held", Held.amounts) == {"a": [1, 2, 3], "b": [5, 5]}
    assert result.state("held", Held.count_of) == {"a": {1: 1, 2: 1, 3: 1}, "b": {5: 2}}
    assert result.state("held", Held.most) == {"a": 3, "b": 5}
    assert result.state("held", Held.mean) == {"a": 2.0, "b": 5.0}
    assert result.state("held", Held.left) == result.state("held", "rest") == {"a": -3, "b": -5}


async def test_state_that_there_is_not() -> None:
    stream = sa.Dataflow("held").source("in", ListSource[Pair]([])).key_by(first).process("held", Held)
    result = await run_flow(stream, {"in": []}, states={"held": "total"})
    assert result.state("held", Held.total) == {}
    with pytest.raises(KeyError, match=r"states=\{'held': 'most'\}"):
        result.state("held", Held.most)
    with pytest.raises(sa.InvalidConfig, match="no step 'hold'; it has: in, held, output"):
        await run_flow(stream, {"in": []}, states={"hold": "total"})
    with pytest.raises(sa.StateAccessError, match="no state 'sum'.*it has: total, "):
        await run_flow(stream, {"in": []}, states={"held": ["sum"]})
    with pytest.raises(sa.InvalidConfig, match="'seen' is no keyed state"):
        await run_flow(stream, {"in": []}, states={"held": Held.seen})
    with pytest.raises(sa.InvalidConfig, match="none is left"):
        await run_flow(stream, {"in": []}, states={"held": "total"}, config=sa.Config(execution="batch"))
