"""Names of records: one each, and the same however the flow is cut into subtasks, chains and batches."""

import asyncio
import datetime as dt
import functools
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamactors as sa
from connectors.files import FileSource
from connectors.memory import ListSink
from streamactors.sources import SourceBatch
from streamactors.testing import OperatorHarness
from tests.runtime.feeds import PATIENCE, Feed, Gate, Undecodable, until

SIDE = sa.OutputTag("side", tuple[int, str])
DEAD = sa.OutputTag("dead", sa.DeadLetter)
GARBLED = sa.OutputTag("garbled", sa.DeadLetter)


class Several(sa.Operator[Any, Any]):
    """None, one or two outputs and one to the side; record 7 fails, when it has emitted."""

    async def process(self, value: tuple[int, str], ctx: sa.Context[None, Any]) -> None:
        number, path = value
        ctx.emit((number, f"{path}p"))
        if number % 3 == 0:
            ctx.emit_to(SIDE, (number, f"{path}s"))
            await ctx.drain()
            ctx.emit((number, f"{path}q"))
        if number % 7 == 6:
            raise ValueError(number)


class Named(sa.KeyedOperator[int, Any, Any]):
    def process(self, value: Any, ctx: sa.Context[int, Any]) -> None:
        ctx.emit((value, ctx.record_id))


def content(letter: sa.DeadLetter) -> tuple[int, str]:
    return (letter.value[0], letter.value[1] + "dead")


def shop(feed: Feed, chain: Callable[[int], bool], parallelism: Callable[[int], int | None]) -> tuple[Any, Any]:
    """Every way of records to fan out and to meet again; what comes out is (content, name)."""
    flow, sink = sa.Dataflow("shop"), ListSink[Any]()
    stream = flow.source("in", feed, parallelism=parallelism(0))
    twice = stream.flat_map(lambda n: [(n, f"f{i}") for i in range(n % 4)], chain=chain(1), parallelism=parallelism(1))
    several = twice.process("several", Several, on_error=DEAD, chain=chain(2), parallelism=parallelism(2))
    low = several.filter(lambda v: v[0] % 2 == 0, chain=chain(3), parallelism=parallelism(3))
    all_again = several.rebalance().map(lambda v: (v[0], v[1] + "m"), chain=chain(4), parallelism=parallelism(4))
    dead = several.side_output(DEAD).map(content, chain=chain(5), parallelism=parallelism(5))
    garbled = stream.side_output(GARBLED).map(lambda letter: (0, letter.origin))
    joined = low.union(all_again, several.side_output(SIDE), dead, garbled)
    joined.key_by(lambda v: v[0] % 5).process("named", Named, parallelism=parallelism(6)).sink("out", sink)
    return flow, sink


async def names(feed: Feed, *args: Any, **options: Any) -> dict[Any, str]:
    flow, sink = shop(feed, *args)
    async with asyncio.timeout(PATIENCE):
        await sa.run(flow, sa.Config(**options))
    found = dict(sink.values)
    assert len(found) == len(sink.values) == len(set(found.values()))
    return found


def feed(values: list[int], chunk: int = 64) -> Feed:
    made = Feed(2, chunk=chunk, dead=GARBLED)
    for place, value in enumerate(values):
        made.put(value if value % 50 else Undecodable(), split=place % 2)
    made.end()
    return made


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_the_same_in_every_execution(data: st.DataObject) -> None:
    values = list(range(120))
    bits = st.lists(st.booleans(), min_size=6, max_size=6)
    widths = st.lists(st.integers(1, 3), min_size=7, max_size=7)
    chains, wide, chunk = data.draw(bits), data.draw(widths), data.draw(st.sampled_from([1, 7, 64]))
    batch = data.draw(st.sampled_from(["streaming", "batch"]))
    plain = asyncio.run(names(feed(values), lambda _: True, lambda _: None))
    assert len(plain) > 300
    found = asyncio.run(
        names(
            feed(values, chunk),
            lambda step: chains[step],
            wide.__getitem__,
            execution=batch,
            mailbox_capacity=16,
        )
    )
    assert found == plain


async def test_what_they_look_like() -> None:
    found = await names(feed([1, 3, 50, 4, 6]), lambda _: True, lambda _: None)
    assert found[(1, "f0pm")] == "shop/in/0@0.0.0~map-4"
    assert found[(3, "f2s")] == "shop/in/1@0.2.1~several:side"
    assert found[(3, "f2q")] == "shop/in/1@0.2.2~filter-3" if (3, "f2q") in found else True
    assert found[(6, "f1dead")] == "shop/in/0@2.1.dead~map-5"
    assert found[(0, "0@1")] == "shop/in/0@!0@1~map-6"


async def test_spilled_rows_keep_theirs(tmp_path: Path) -> None:
    values = list(range(3000))
    options: dict[str, Any] = {"execution": "batch", "sort_memory": 1 << 20, "sort_folder": str(tmp_path)}
    found = await names(feed(values), lambda _: True, lambda _: None, **options)
    assert found == await names(feed(values), lambda _: True, lambda _: None)


class Numberless(Feed):
    def reader(self, ctx: Any) -> Any:
        reader = super().reader(ctx)
        read = reader.read

        async def without() -> SourceBatch[Any] | None:
            batch = await read()
            if batch is not None:
                batch.origins = None
            return batch

        reader.read = without  # type: ignore[method-assign]
        return reader


async def test_a_source_without_numbers_is_named() -> None:
    source = Numberless()
    source.put(1)
    source.end()
    flow = sa.Dataflow("flow")
    flow.source("in", source).key_by(abs).process("named", Named).sink("out", ListSink())
    with pytest.raises((sa.InvalidDataflow, sa.JobFailed)) as failed:
        await sa.run(flow)
    assert "source 'in' gives its records no numbers" in "".join(traceback.format_exception(failed.value))


async def test_files_by_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x\ny\n")
    flow, sink = sa.Dataflow("flow"), ListSink[Any]()
    stream = flow.source("in", FileSource(str(tmp_path / "a.txt"), value=sa.Text()))
    stream.key_by(len).process("named", Named).sink("out", sink)
    await sa.run(flow)
    assert sink.values == [("x", f"flow/in/{tmp_path}/a.txt@1"), ("y", f"flow/in/{tmp_path}/a.txt@2")]


class Helper(sa.Operator[Any, Any]):
    def process(self, value: Any, ctx: sa.Context[None, Any]) -> None:
        ctx.emit(ask(ctx))


class Said(Helper):
    uses_record_id = True


def ask(ctx: sa.Context[Any, Any]) -> str:
    return ctx.record_id


async def test_what_can_not_be_seen_has_to_be_said() -> None:
    for operator in (Helper, Said):
        source = Feed()
        source.put(1)
        source.end()
        flow, sink = sa.Dataflow("flow"), ListSink[Any]()
        flow.source("in", source).process("named", operator).sink("out", sink)
        if operator is Said:
            await sa.run(flow)
            assert sink.values == ["flow/in/0@0"]
        else:
            with pytest.raises(sa.JobFailed) as failed:
                await sa.run(flow)
            assert "uses_record_id = True" in str(failed.value.__cause__)


class Timed(sa.KeyedOperator[int, int, str]):
    def process(self, value: int, ctx: sa.Context[int, str]) -> None:
        ctx.emit(ctx.record_id)
        ctx.timers.event(value)

    def on_timer(self, timer: sa.Timer, ctx: sa.Context[int, str]) -> None:
        ctx.emit(ctx.record_id)


async def test_none_for_a_timer() -> None:
    source = Feed()
    source.put(1, 2)
    source.end()
    flow = sa.Dataflow("flow")
    stream = flow.source("in", source, watermarks=sa.Watermarks[int].monotonic(int))
    stream.key_by(abs).process("timed", Timed).sink("out", ListSink())
    with pytest.raises(sa.JobFailed) as failed:
        await sa.run(flow)
    assert "There are none in other steps, nor in on_timer" in str(failed.value.__cause__)


# ------------------------------------------------------------------------------------------------ crashes and rescales
class Gated(sa.Operator[Any, Any]):
    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    async def process(self, value: Any, ctx: sa.Context[None, Any]) -> None:
        ctx.emit(await self.gate(value))


def gated(source: Feed, gate: Gate, *, chain: bool) -> tuple[sa.Dataflow, ListSink[Any]]:
    flow, sink = sa.Dataflow("shop"), ListSink[Any]()
    stream = flow.source("in", source, parallelism=1).process("several", Several, on_error=DEAD, chain=chain)
    late = stream.union(stream.side_output(SIDE)).process("gate", functools.partial(Gated, gate), chain=chain)
    late.key_by(lambda v: v[0] % 5).process("named", Named).sink("out", sink)
    stream.side_output(DEAD).sink("dead", ListSink[Any]())
    return flow, sink


@pytest.mark.parametrize("leg", [1, 2, 3])
async def test_in_flight_over_a_crash_and_a_rescale(tmp_path: Path, leg: int) -> None:
    """Stuck with full mailboxes, checkpointed, restored at another parallelism and in other chains."""
    values = [(number, "") for number in range(600)]

    def fed() -> Feed:
        source = Feed(chunk=16)
        source.put(*values)
        source.end()
        return source

    checkpoints = sa.Checkpoints(str(tmp_path), interval=dt.timedelta(hours=1), alignment="unaligned")
    gate = Gate(50)
    flow, sink = gated(fed(), gate, chain=True)
    async with sa.start(
        flow, sa.Config(checkpoints=checkpoints, restart=sa.Restart.none(), parallelism=2, mailbox_capacity=64)
    ) as job:
        await until(lambda: gate.held)
        await until(lambda: job.metrics()["subtasks"]["in[0]"]["unsent"])
        async with asyncio.timeout(PATIENCE):
            info = await job.checkpoint()
        await job.cancel()
    assert info.inflight_bytes > 0
    committed = list(sink.values)
    flow, sink = gated(fed(), Gate(), chain=False)
    async with asyncio.timeout(PATIENCE):
        await sa.run(flow, sa.Config(checkpoints=checkpoints, restart=sa.Restart.none(), parallelism=leg))
    undisturbed, plain = gated(fed(), Gate(), chain=True)
    async with asyncio.timeout(PATIENCE):
        await sa.run(undisturbed, sa.Config(parallelism=2))
    assert sorted([*committed, *sink.values]) == sorted(plain.values)
    assert len({name for _, name in plain.values}) == len(plain.values) > 600


# ------------------------------------------------------------------------------------------------------ calls in flight
class Calls:
    """The names under which each value was called; calls hang until they are let go."""

    def __init__(self) -> None:
        self.names: dict[int, set[str]] = {}
        self.go = asyncio.Event()

    async def one(self, value: int) -> tuple[int, str]:
        self.names.setdefault(value, set()).add(sa.record_id())
        await self.go.wait()
        return value, sa.record_id()

    async def several(self, values: list[int]) -> list[tuple[int, str]]:
        pairs = list(zip(values, sa.record_ids(), strict=True))
        for value, name in pairs:
            self.names.setdefault(value, set()).add(name)
        await self.go.wait()
        return pairs

    def flow(self, source: Feed, *, batched: bool) -> tuple[sa.Dataflow, ListSink[Any]]:
        flow, sink = sa.Dataflow("shop"), ListSink[Any]()
        stream = flow.source("in", source, parallelism=1).rebalance()
        if batched:
            batch = sa.BatchOf(8, dt.timedelta(milliseconds=10))
            called = stream.map_async("call", self.several, capacity=100, ordered=False, batch=batch)
        else:
            called = stream.map_async("call", self.one, capacity=300, ordered=False)
        # Behind it they go on, one name each.
        called.key_by(lambda pair: pair[0] % 5).process("named", Named).sink("out", sink)
        return flow, sink


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("alignment", ["aligned", "unaligned"])
async def test_calls_made_again_have_their_names(tmp_path: Path, alignment: Any, batched: bool) -> None:
    source, calls, count = Feed(chunk=16), Calls(), 400
    source.put(*range(count))
    checkpoints = sa.Checkpoints(str(tmp_path), interval=dt.timedelta(hours=1), alignment=alignment)
    flow, sink = calls.flow(source, batched=batched)
    options: dict[str, Any] = {"checkpoints": checkpoints, "restart": sa.Restart.none()}
    async with sa.start(flow, sa.Config(parallelism=2, **options)) as job:
        await until(lambda: len(calls.names) >= 200)
        async with asyncio.timeout(PATIENCE):
            await job.checkpoint()
        await job.cancel()
    called = set(calls.names)
    calls.go.set()
    source.end()
    flow, sink = calls.flow(source, batched=batched)
    async with asyncio.timeout(PATIENCE):
        await sa.run(flow, sa.Config(parallelism=3, **options))
    assert len(called) >= 200 and sorted(value for (value, _), _ in sink.values) == list(range(count))
    assert all(calls.names[value] == {name} == {behind} for (value, name), behind in sink.values)
    assert len({behind for _, behind in sink.values}) == count


async def test_an_operator_under_test_has_them() -> None:
    async with OperatorHarness(Said) as harness:
        await harness.push("a")
        await harness.push("b")
        first, second = harness.take()
    assert first != second and first.endswith("@0")


class Charging(sa.AsyncKeyedOperator[int, int, tuple[int, str]]):
    """Two outputs for each record, and one to the side; the name is known in what it calls, too."""

    async def process(self, value: int, ctx: sa.Context[int, tuple[int, str]]) -> None:
        await asyncio.sleep(value % 3 / 1000)
        assert ask(ctx) == ctx.record_id
        ctx.emit((value, ctx.record_id))
        ctx.emit_to(SIDE, (value, ctx.record_id))
        ctx.emit((-value, ctx.record_id))


@pytest.mark.parametrize("parallelism", [1, 3])
async def test_keyed_calls_have_them(parallelism: int) -> None:
    source, sink = Feed(chunk=7), ListSink[Any]()
    source.put(*range(1, 100))
    source.end()
    flow = sa.Dataflow("shop")
    charged = flow.source("in", source, parallelism=1).key_by(lambda n: n % 10).process("charging", Charging)
    both = charged.union(charged.side_output(SIDE).map(lambda pair: (1000 + pair[0], pair[1])))
    both.key_by(lambda pair: pair[0] % 5).process("named", Named).sink("out", sink)
    async with asyncio.timeout(PATIENCE):
        await sa.run(flow, sa.Config(parallelism=parallelism))
    by_value = {value: (inner, outer) for (value, inner), outer in sink.values}
    assert len(by_value) == 3 * 99
    for value in range(1, 100):
        name = f"shop/in/0@{value - 1}"
        assert by_value[value] == (name, f"{name}.0~charging")
        assert by_value[1000 + value] == (name, f"{name}.1~map-2")
        assert by_value[-value] == (name, f"{name}.2~charging")
