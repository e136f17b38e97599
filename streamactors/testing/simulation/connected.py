"""Flows with an operator of two inputs: both keyed, or one that every subtask gets all of."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from streamactors.api.dataflow import Dataflow
from streamactors.operators.base import Context
from streamactors.operators.two_inputs import KeyedBroadcastOperator, KeyedCoOperator
from streamactors.state.broadcast import BroadcastState
from streamactors.state.descriptors import ListState, MapState, ValueState
from streamactors.testing.simulation.checks import counted, no_loss, once_by_key
from streamactors.testing.simulation.events import Event, Update, events, inputs, key_of, named
from streamactors.testing.simulation.result import Outcome
from streamactors.testing.simulation.world import World

LEFT: Final = ("l", 2, 25)
RIGHT: Final = ("r", 2, 25)
NUMBERS: Final = ("n", 2, 40)
RULES: Final = ("rules", 1, 25)


# ----------------------------------------------------------------------------------------------------- two keyed inputs
class Sided(msgspec.Struct, frozen=True):
    """The `count`-th event of its key that came by this side."""

    side: str
    split: str
    number: int
    key: str
    count: int


class Join(KeyedCoOperator[str, Event, Event, Sided]):
    """Counts either side, and knows which event came by which."""

    lefts = ValueState(int, default=0)
    rights = ValueState(int, default=0)
    sides = MapState(str, str)

    def process_left(self, event: Event, ctx: Context[str, Sided], /) -> None:
        self.lefts.set(self.lefts.get() + 1)
        self._emit("left", self.lefts.get(), event, ctx)

    def process_right(self, event: Event, ctx: Context[str, Sided], /) -> None:
        self.rights.set(self.rights.get() + 1)
        self._emit("right", self.rights.get(), event, ctx)

    def _emit(self, side: str, count: int, event: Event, ctx: Context[str, Sided]) -> None:
        self.sides[f"{side} {named(event)}"] = side
        ctx.emit(Sided(side, event.split, event.number, event.key, count))


def connected(world: World) -> Dataflow:
    """What comes by the left comes by the right too: these edges differ by their side alone."""
    flow = Dataflow("connected")
    left = flow.source("left", world.source(events(world, *LEFT)))
    right = flow.source("right", world.source(events(world, *RIGHT)))
    joined = left.connect(left.union(right)).key_by(key_of, key_of).process("join", Join)
    joined.sink("out", world.sink())
    return flow


def joined_once(outcome: Outcome) -> None:
    """Every event once by each side that it takes, counted in the order of its split."""
    world = outcome.world
    wanted = {"left": inputs(LEFT)(world), "right": inputs(LEFT, RIGHT)(world)}
    found: list[Sided] = outcome.output()
    for side, events_of_side in wanted.items():
        _one_side([each for each in found if each.side == side], events_of_side, side, outcome)
    if outcome.exactly_once:
        states = outcome.states["join"]
        assert states["lefts"] == _counts(wanted["left"]), "join: its state holds the counts of others by the left"
        assert states["rights"] == _counts(wanted["right"]), "join: its state holds the counts of others by the right"
        ids = {f"{side} {named(event)}" for side in wanted for event in wanted[side]}
        held = {name for sides in states["sides"].values() for name in sides}
        assert held == ids, f"join: its state holds other records than those of the input: {sorted(held ^ ids)[:10]}"


def _one_side(found: Sequence[Sided], wanted: Sequence[Event], side: str, outcome: Outcome) -> None:
    no_loss(wanted, [(each.split, each.number) for each in found], side)
    if outcome.exactly_once:
        once_by_key(found, f"{side}, ")


def _counts(wanted: Sequence[Event]) -> dict[str, int]:
    return Counter(event.key for event in wanted)


# ------------------------------------------------------------------------------------------ one input for every subtask
class Rule(msgspec.Struct, frozen=True):
    """How many rules there were for a key, and the number of the last."""

    count: int
    last: int


class ApplyRules(KeyedBroadcastOperator[str, Event, Event, Update]):
    """Counts events by key, and knows the rules."""

    count = ValueState(int, default=0)
    last = MapState(str, int)
    seen = ListState(str)
    rules = BroadcastState(str, Rule)

    def process(self, event: Event, ctx: Context[str, Update], /) -> None:
        self.count.set(self.count.get() + 1)
        self.last[event.split] = event.number
        self.seen.append(named(event))
        ctx.emit(Update(event.split, event.number, event.key, self.count.get()))

    def process_broadcast(self, rule: Event, ctx: Context[None, Update], /) -> None:
        before = self.rules.get(rule.key, Rule(0, -1))
        self.rules[rule.key] = Rule(before.count + 1, rule.number)


def ruled(world: World) -> Dataflow:
    flow = Dataflow("rules")
    rules = flow.source("rules", world.source(events(world, *RULES)), parallelism=1)
    numbers = flow.source("numbers", world.source(events(world, *NUMBERS)))
    numbers.key_by(key_of).connect_broadcast(rules).process("rule", ApplyRules).sink("out", world.sink())
    return flow


_counted = counted(inputs(NUMBERS), "rule", keyed_sink=False)


def ruled_alike(outcome: Outcome) -> None:
    """Besides, every subtask has the same rules in the end: all of them, each once."""
    _counted(outcome)
    if not outcome.exactly_once:
        return
    wanted: dict[str, Rule] = {}
    for rule in inputs(RULES)(outcome.world):
        before = wanted.get(rule.key, Rule(0, -1))
        wanted[rule.key] = Rule(before.count + 1, rule.number)
    held: dict[int, dict[str, Any]] = outcome.states["rule"]["rules"]
    assert held, "rule: its state holds no rules"
    for subtask, rules in held.items():
        assert rules == wanted, f"rule[{subtask}]: its state holds the rules {rules}, not {wanted}"
