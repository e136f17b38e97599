"""Links on batches: values, time-stamps, keys and origins; failures that name the record; dead letters; lifecycles."""

import asyncio
import functools
from collections.abc import Callable
from typing import Any

import pytest

import streamactors as sa
from streamactors.elements import Batch
from streamactors.operators.base import LinkContext, OperatorContext, RecordContext
from streamactors.operators.process import ProcessSpec
from streamactors.operators.stateless import FunctionSpec, PrintSpec

DEAD = sa.OutputTag("dead", sa.DeadLetter)


def context() -> LinkContext:
    return LinkContext("step", "step", OperatorContext(uid="step", subtask=0, parallelism=1))


async def plus_one(value: int) -> int:
    await asyncio.sleep(0)
    return value + 1


@pytest.mark.parametrize(
    "fn",
    [lambda v: v + 1, plus_one, functools.partial(plus_one), lambda v: plus_one(v)],
    ids=["def", "async def", "partial", "returns an awaitable"],
)
async def test_map_takes_any_callable(fn: Callable[[int], Any]) -> None:
    link = FunctionSpec("map", fn).link(context())
    for _ in range(2):
        batch = await link.process(Batch([1, 2, 3], [10, 20, 30], origins=[5, 6, 7], split="log:"))
        assert batch is not None and list(batch.values) == [2, 3, 4]
        assert batch.timestamps == [10, 20, 30] and batch.origin(2) == "log:7"


async def test_filter_keeps_columns_together() -> None:
    link = FunctionSpec("filter", lambda v: v % 2).link(context())
    batch = await link.process(Batch([1, 2, 3], [10, 20, 30], ["a", "b", "c"], [0, 1, 2]))
    assert batch is not None
    assert [batch.values, batch.timestamps, batch.keys, batch.groups] == [[1, 3], [10, 30], ["a", "c"], [0, 2]]


async def test_flat_map_repeats_the_time_stamp_and_origin() -> None:
    link = FunctionSpec("flat_map", lambda v: (v for _ in range(v))).link(context())
    batch = await link.process(Batch([2, 0, 1], [10, 20, 30], origins=[5, 6, 7], split="log:"))
    assert batch is not None and (batch.values, batch.timestamps, batch.origins) == ([2, 2, 1], [10, 10, 30], [5, 5, 7])
    assert await link.process(Batch([0])) is None


@pytest.mark.parametrize("step", ["map", "filter", "flat_map"])
@pytest.mark.parametrize("failing", [0, 2])
async def test_a_failing_function_names_the_record(step: str, failing: int) -> None:
    def fn(value: int) -> Any:
        if value == failing:
            raise KeyError("missing")
        return [value]

    link = FunctionSpec(step, fn).link(context())
    with pytest.raises(sa.RecordFailed, match=f"'step' failed, record log:{failing}: KeyError: 'missing'") as failed:
        await link.process(Batch([0, 1, 2], origins=[0, 1, 2], split="log:"))
    assert isinstance(failed.value.__cause__, KeyError)


async def test_print_writes_a_line_per_record(capsys: pytest.CaptureFixture[str]) -> None:
    batch = Batch([1, "two"])
    assert await PrintSpec("seen").link(context()).process(batch) is batch
    assert capsys.readouterr().out == "seen> 1\nseen> two\n"


class Emitting(sa.Operator[int, int]):
    def process(self, value: int, ctx: sa.Context[None, int]) -> None:
        ctx.emit(value)
        if value == 2:
            ctx.emit(value, timestamp=99)
        if value < 0:
            raise ValueError("negative")


class EmittingAsync(Emitting):
    async def process(self, value: int, ctx: sa.Context[None, int]) -> None:  # type: ignore[override]
        super().process(value, ctx)


@pytest.mark.parametrize("operator", [Emitting, EmittingAsync])
async def test_time_stamps_of_what_is_emitted(operator: type[Emitting]) -> None:
    link = ProcessSpec(operator, keyed=False).link(context())
    stamped = await link.process(Batch([1, 2], [10, 20]))
    assert stamped is not None and (stamped.values, stamped.timestamps) == ([1, 2, 2], [10, 20, 99])
    explicit = await link.process(Batch([1, 2, 3]))
    assert explicit is not None and explicit.timestamps == [None, None, 99, None]
    plain = await link.process(Batch([1]))
    assert plain is not None and plain.timestamps is None


@pytest.mark.parametrize("operator", [Emitting, EmittingAsync])
async def test_failures_fail_or_go_to_the_dead_letters(operator: type[Emitting]) -> None:
    batch = Batch([1, -1, 3], [10, 20, 30], origins=[7, 8, 9], split="log:")
    with pytest.raises(sa.RecordFailed, match="record log:8: ValueError: negative"):
        await ProcessSpec(operator, keyed=False).link(context()).process(batch)
    link = ProcessSpec(operator, keyed=False, on_error=DEAD).link(context())
    result = await link.process(batch)
    assert result is not None and (result.values, result.timestamps) == ([1, 3], [10, 30])
    [letter] = link.sides["dead"].values
    assert (letter.uid, letter.origin, letter.value, letter.error) == ("step", "log:8", -1, "ValueError: negative")
    assert "in process" in letter.traceback


async def test_a_roll_back_after_a_drain_takes_all_that_is_left() -> None:
    async def drain(drained: RecordContext) -> None:
        drained.take(), drained.take_sides()

    ctx = RecordContext(drain)
    ctx.begin(stamped=True)
    for value in (1, 2, 3):
        ctx.emit(value)
    mark = ctx.mark()
    ctx.emit(4)
    await ctx.drain()
    ctx.emit(5)
    ctx.emit_to(sa.OutputTag("side", int), 5)
    ctx.roll_back(mark)
    assert ctx.take() is None and ctx.take_sides()["side"].values == []


async def test_close_follows_an_open_that_failed_and_comes_once() -> None:
    calls: list[str] = []

    class Broken(sa.Operator[int, int]):
        async def open(self, ctx: sa.OperatorContext) -> None:
            calls.append("open")
            raise ValueError("no connection")

        def close(self) -> None:
            calls.append("close")

        def process(self, value: int, ctx: sa.Context[None, int]) -> None: ...

    link = ProcessSpec(Broken, keyed=False).link(context())
    with pytest.raises(ValueError, match="no connection"):
        await link.open()
    await link.close()
    await link.close()
    assert calls == ["open", "close"]


def test_what_can_not_be_an_operator_is_refused() -> None:
    with pytest.raises(sa.InvalidDataflow, match="given as an instance, which all subtasks would share"):
        ProcessSpec(Emitting(), keyed=False).validate("step")  # type: ignore[arg-type]
    with pytest.raises(sa.InvalidDataflow, match="the factory made a int"):
        ProcessSpec(lambda: 3, keyed=False).link(context())
