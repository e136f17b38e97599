"""A flow that uses the kinds of keyed state that fold what is added, and time to live."""

import datetime as dt
from typing import Any, Final

from streamactors.api.dataflow import Dataflow
from streamactors.operators.base import Context, KeyedOperator
from streamactors.state import aggregates
from streamactors.state.descriptors import AggregatingState, MapState, ReducingState, Ttl, ValueState
from streamactors.testing.simulation.checks import no_loss, once_by_key
from streamactors.testing.simulation.events import Event, Update, events, inputs, key_of, named
from streamactors.testing.simulation.result import Outcome
from streamactors.testing.simulation.world import World

READ: Final = ("e", 2, 40)
NEVER: Final = Ttl(dt.timedelta(days=365))
SOON: Final = Ttl(dt.timedelta(milliseconds=200), refresh_on="read-write")
"""Shorter than a run takes, and than many a crash."""
FULL: Final = 4
"""So many events, and a key's round is over: all of it is cleared."""


def number_of(event: Event) -> int:
    return event.number


class Fold(KeyedOperator[str, Event, Update]):
    """What expires may be forgotten, and is never wrong; what lives long is as if it had no time to live."""

    largest = ReducingState(int, max)
    summed = AggregatingState(
        aggregates.Aggregates(count=aggregates.Count(), total=aggregates.Sum(number_of)),
        ttl=NEVER,
    )
    count = ValueState(int, default=0, ttl=NEVER)
    round = MapState(str, int, ttl=NEVER)
    before = ValueState(str, default="", ttl=SOON)
    last = ValueState(str, default="")

    def process(self, event: Event, ctx: Context[str, Update], /) -> None:
        if self.before.get() not in ("", self.last.get()):
            raise ValueError(f"key {ctx.key}: {self.before.get()!r} has come back, after it was {self.last.get()!r}")
        self.before.set(named(event))
        self.last.set(named(event))
        self.largest.add(event.number)
        self.summed.add(event)
        self.count.set(self.count.get() + 1)
        self.round[named(event)] = self.count.get()
        if len(self.round) == FULL:
            self.round.clear()
        ctx.emit(Update(event.split, event.number, event.key, self.count.get()))


def kinds(world: World) -> Dataflow:
    flow = Dataflow("kinds")
    read = flow.source("events", world.source(events(world, *READ)))
    read.key_by(key_of).process("fold", Fold).sink("out", world.sink())
    return flow


def folded(outcome: Outcome) -> None:
    """Every event counted once; the state is the fold of the input, and rounds that are over have left nothing."""
    wanted = inputs(READ)(outcome.world)
    found: list[Update] = outcome.output()
    no_loss(wanted, [(update.split, update.number) for update in found])
    if not outcome.exactly_once:
        return
    for key, updates in once_by_key(found).items():
        _is_fold(key, updates, {name: held.get(key) for name, held in outcome.states["fold"].items()})


def _is_fold(key: str, updates: list[Update], held: dict[str, Any]) -> None:
    numbers = [update.number for update in updates]
    wanted = {
        "largest": max(numbers),
        "summed": {"count": len(numbers), "total": sum(numbers)},
        "count": len(numbers),
        "round": {named(update): update.count for update in updates[len(updates) // FULL * FULL :]} or None,
        "last": named(updates[-1]),
    }
    unequal = {name: (held.get(name), value) for name, value in wanted.items() if held.get(name) != value}
    assert not unequal, f"key {key}: its state holds (and should hold) {unequal}"
    assert held.get("before") in (None, wanted["last"]), f"key {key}: its state holds {held['before']!r}"
