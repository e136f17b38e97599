"""What is inferred for `streamactors.testing`. Checked, never run."""

from collections.abc import Iterable
from typing import Any, assert_type

import streamactors as sa
from streamactors.testing import FlowResult, HarnessSnapshot, OperatorHarness, run_flow


class Counted(sa.KeyedOperator[str, int, float]):
    total = sa.ValueState(int, default=0)
    items = sa.ListState(str)
    entries = sa.MapState(str, int)
    most = sa.ReducingState(int, max)
    mean = sa.AggregatingState(sa.Avg[int](float))

    def process(self, v: int, ctx: sa.Context[str, float]) -> None: ...


class Shown(sa.Operator[int, str]):
    def process(self, v: int, ctx: sa.Context[None, str]) -> None: ...


class Spread(sa.WindowOperator[str, int, bytes]):
    def process(self, window: sa.Windowed[str, Iterable[int]], ctx: sa.Context[str, bytes]) -> None: ...


class Ruled(sa.KeyedBroadcastOperator[str, int, int, bytes]):
    def process(self, v: int, ctx: sa.Context[str, bytes]) -> None: ...
    def process_broadcast(self, v: int, ctx: sa.Context[None, bytes]) -> None: ...


class Asked(sa.AsyncKeyedOperator[str, int, bytes]):
    async def process(self, v: int, ctx: sa.Context[str, bytes]) -> None: ...


def make_counted() -> Counted:
    return Counted()


async def under_test(
    late: sa.OutputTag[int], flow: sa.Dataflow, stream: sa.Stream[int], snapshot: HarnessSnapshot
) -> None:
    h = OperatorHarness(Counted, key=str)
    assert_type(h, OperatorHarness[float])
    assert_type(OperatorHarness(make_counted, key=str), OperatorHarness[float])
    assert_type(OperatorHarness(Shown), OperatorHarness[str])
    assert_type(OperatorHarness(Spread), OperatorHarness[bytes])
    assert_type(OperatorHarness(Ruled), OperatorHarness[bytes])
    assert_type(OperatorHarness(Asked), OperatorHarness[bytes])
    assert_type(OperatorHarness.restore(Asked, snapshot), OperatorHarness[bytes])
    async with h as opened:
        assert_type(opened, OperatorHarness[float])
        assert_type(opened.take(), list[float])
        assert_type(opened.side(late), list[int])
        assert_type(opened.read(Counted.total, "a"), int)
        assert_type(opened.read(Counted.items, "a"), list[str])
        assert_type(opened.read(Counted.entries, "a"), dict[str, int])
        assert_type(opened.read(Counted.most, "a"), int | None)
        assert_type(opened.read(Counted.mean, "a"), float)
        assert_type(await opened.timers("a"), list[sa.Timer])
        assert_type(await opened.snapshot(), HarnessSnapshot)
    result = await run_flow(stream, {})
    assert_type(result, FlowResult[int])
    assert_type(result.output, list[int])
    assert_type(await run_flow(flow, {}), FlowResult[Any])
    assert_type((await run_flow(flow, {})).side("a", late), list[int])
    held = await run_flow(flow, {"a": [1]}, states={"a": [Counted.total, Counted.items], "b": "name"})
    assert_type(held.state("a", Counted.total), dict[Any, int])
    assert_type(held.state("a", Counted.items), dict[Any, list[str]])
    assert_type(held.state("a", Counted.entries), dict[Any, dict[str, int]])
    assert_type(held.state("a", Counted.most), dict[Any, int])
    assert_type(held.state("a", Counted.mean), dict[Any, float])
    assert_type(held.state("b", "name"), dict[Any, Any])
