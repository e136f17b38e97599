"""Flows of a user, as the command line and the tests of the simulation run them: sound ones, and one with a mistake."""

import datetime as dt
from dataclasses import replace

import streamactors as sa
from connectors.memory import ListSource
from streamactors.testing import Faults, Scenario, World


def numbers(world: World) -> dict[str, list[int]]:
    """Each split has its own thousand."""
    draw = world.random("numbers")
    return {f"split-{split}": [1000 * split + draw.randrange(1000) for _ in range(40)] for split in range(3)}


class Total(sa.KeyedOperator[int, int, tuple[int, int]]):
    total = sa.ValueState(int, default=0)

    def process(self, value: int, ctx: sa.Context[int, tuple[int, int]]) -> None:
        self.total.set(self.total.get() + value)
        ctx.emit((ctx.key, value))


class TotalInMemory(sa.KeyedOperator[int, int, tuple[int, int]]):
    """Forgets that a process may end."""

    def open(self, ctx: sa.OperatorContext) -> None:
        self.totals: dict[int, int] = {}

    def process(self, value: int, ctx: sa.Context[int, tuple[int, int]]) -> None:
        self.totals[ctx.key] = self.totals.get(ctx.key, 0) + 1
        ctx.emit((ctx.key, self.totals[ctx.key]))


class ChangesInPlace(sa.KeyedOperator[int, int, int]):
    seen = sa.ValueState[list[int]](list[int], default_factory=list)

    def process(self, value: int, ctx: sa.Context[int, int]) -> None:
        seen = self.seen.get()
        if not seen:
            self.seen.set([value])
        else:
            seen.append(value)
        ctx.emit(value)


def key_of(value: int) -> int:
    """All values of a key are from one split, so that their order is given."""
    return value // 1000 * 7 + value % 7


def totals(world: World, operator: type[sa.KeyedOperator[int, int, tuple[int, int]]] = Total) -> sa.Dataflow:
    flow = sa.Dataflow("totals")
    source = flow.source("numbers", world.source(numbers(world)))
    source.key_by(key_of).process("total", operator).sink("out", world.sink())
    return flow


def forgetful(world: World) -> sa.Dataflow:
    return totals(world, TotalInMemory)


def in_place(world: World) -> sa.Dataflow:
    flow = sa.Dataflow("in-place")
    source = flow.source("numbers", world.source(numbers(world)))
    source.key_by(key_of).process("seen", ChangesInPlace).sink("out", world.sink())
    return flow


def reduced(world: World) -> sa.Dataflow:
    flow = sa.Dataflow("reduced")
    source = flow.source("numbers", world.source(numbers(world)))
    source.key_by(key_of).reduce("largest", max).map(str).sink("out", world.sink())
    return flow


def without_a_world() -> sa.Dataflow:
    """A source and a sink of its own: nothing of them is simulated."""
    flow = sa.Dataflow("alone")
    flow.source("numbers", ListSource(range(50))).key_by(key_of).process("total", Total)
    return flow


def slow(world: World) -> sa.Dataflow:
    """A record a minute or so."""
    flow = sa.Dataflow("slow")
    source = flow.source("numbers", world.source([list(range(600))], wait=600.0))
    source.key_by(key_of).process("total", Total).sink("out", world.sink())
    return flow


PER_MINUTE = sa.Config(
    checkpoints=sa.Checkpoints("file:///simulation", interval=dt.timedelta(minutes=1), timeout=dt.timedelta(minutes=5)),
    restart=sa.Restart.exponential(),
    max_parallelism=8,
)
CALM = Scenario(slow, config=PER_MINUTE, faults=Faults.none(kills=1, spread=5.0))
EAGER = replace(CALM, faults=Faults())
