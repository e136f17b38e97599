"""Names of records under crashes, rescales and every kind of checkpoint: the same as where nothing goes wrong."""

import asyncio
from typing import Any

import pytest

import streamactors as sa
from streamactors.testing import World, simulate
from streamactors.testing.simulation import Outcome

SEEDS = 8
SIDE = sa.OutputTag("side", tuple[int, int])


class Several(sa.Operator[Any, Any]):
    def process(self, value: tuple[int, int], ctx: sa.Context[None, Any]) -> None:
        number, part = value
        for place in range(number % 3):
            ctx.emit((number, 10 * part + place))
        ctx.emit_to(SIDE, (number, 10 * part + 9))


class Named(sa.KeyedOperator[int, Any, Any]):
    """Keeps every name, so that one record under two names is seen in its state, too."""

    names = sa.MapState(str, str)

    def process(self, value: tuple[int, int, str], ctx: sa.Context[int, Any]) -> None:
        number, part, called = value
        self.names[f"{number}/{part}"] = ctx.record_id
        ctx.emit((number, part, called, ctx.record_id))


async def call(value: tuple[int, int]) -> tuple[int, int, str]:
    await asyncio.sleep(value[0] % 7 / 100)
    return *value, sa.record_id()


def named(world: World) -> sa.Dataflow:
    flow = sa.Dataflow("named")
    numbers = {f"split-{split}": [100 * split + number for number in range(30)] for split in range(3)}
    parts = flow.source("numbers", world.source(numbers)).flat_map(lambda n: [(n, part) for part in range(n % 2 + 1)])
    several = parts.process("several", Several)
    both = several.union(several.side_output(SIDE)).map_async("call", call, capacity=8, ordered=False)
    both.key_by(lambda value: value[0]).process("named", Named).sink("out", world.sink())
    return flow


def one_name_each(outcome: Outcome) -> None:
    found = outcome.output()
    assert len(found) > 200
    assert len({name for *_, name in found}) == len({(number, part) for number, part, *_ in found}) == len(found)
    assert all(name == called for _, _, called, name in found)


@pytest.mark.slow
def test_they_are_those_of_a_run_in_which_nothing_goes_wrong() -> None:
    for seed in range(SEEDS):
        simulate(named, seed=seed)


def test_no_two_records_have_one() -> None:
    simulate(named, seed=1, check=one_name_each)
