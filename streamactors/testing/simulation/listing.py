"""A flow whose state belongs to no key: over rescales, every item is where it belongs, once."""

from collections import Counter
from typing import Any

import msgspec

from streamactors.api.dataflow import Dataflow
from streamactors.operators.base import Context, Operator, OperatorContext
from streamactors.state.descriptors import OperatorListState, UnionListState
from streamactors.testing.simulation.checks import no_loss, nothing_twice
from streamactors.testing.simulation.events import Event, events, inputs, named
from streamactors.testing.simulation.result import Outcome
from streamactors.testing.simulation.world import World

READ = ("e", 3, 30)


class Share(msgspec.Struct, frozen=True):
    """What a subtask has counted, and those whose shares it has taken over."""

    subtask: int
    count: int


class Keep(Operator[Event, Event]):
    """Keeps every record, and counts them: a share goes to one of the subtasks that are given it."""

    kept = OperatorListState(str)
    shares = UnionListState(Share)

    def open(self, ctx: OperatorContext, /) -> None:
        self.subtask = ctx.subtask
        self.count = sum(share.count for share in self.shares if share.subtask % ctx.parallelism == ctx.subtask)
        self._note()

    def process(self, event: Event, ctx: Context[None, Event], /) -> None:
        self.kept.append(named(event))
        self.count += 1
        self._note()
        ctx.emit(event)

    def _note(self) -> None:
        self.shares.clear()
        if self.count:
            self.shares.append(Share(self.subtask, self.count))


def lists(world: World) -> Dataflow:
    flow = Dataflow("lists")
    read = flow.source("events", world.source(events(world, *READ)))
    read.rebalance().process("keep", Keep).sink("out", world.sink())
    return flow


def kept_once(outcome: Outcome) -> None:
    wanted = inputs(READ)(outcome.world)
    found = [(event.split, event.number) for event in outcome.output()]
    no_loss(wanted, found)
    if not outcome.exactly_once:
        return
    nothing_twice(found)
    held: dict[str, dict[int, list[Any]]] = outcome.states["keep"]
    kept = Counter(item for items in held["kept"].values() for item in items)
    assert kept == Counter(map(named, wanted)), "keep: its state holds another list than that of the input"
    count = sum(share.count for shares in held["shares"].values() for share in shares)
    assert count == len(wanted), f"keep: its state holds the counts of {count} records, and there were {len(wanted)}"
