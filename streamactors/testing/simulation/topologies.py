"""The built-in flows, with known input, and what must come out of each whatever goes wrong."""

from collections.abc import Callable
from typing import Any, Final

from streamactors.api.dataflow import Dataflow
from streamactors.operators.base import Context, KeyedOperator, Operator, OperatorContext
from streamactors.state.descriptors import ListState, MapState, ValueState
from streamactors.testing.simulation.alarms import alarms, rang_once
from streamactors.testing.simulation.called import READ, called, called_in_any_order
from streamactors.testing.simulation.called_by_key import called_by_key, remembered
from streamactors.testing.simulation.checks import counted, no_loss, nothing_twice, passed_on
from streamactors.testing.simulation.connected import connected, joined_once, ruled, ruled_alike
from streamactors.testing.simulation.events import Copy, Event, Update, bucket_of, events, inputs, key_of, named
from streamactors.testing.simulation.faults import Faults
from streamactors.testing.simulation.joined import joined, paired_once
from streamactors.testing.simulation.kinds import folded, kinds
from streamactors.testing.simulation.listing import kept_once, lists
from streamactors.testing.simulation.patterns import matched_once, pattern
from streamactors.testing.simulation.result import Check, Outcome
from streamactors.testing.simulation.scenario import Scenario
from streamactors.testing.simulation.settings import EXACTLY_ONCE, MODES
from streamactors.testing.simulation.timed import (
    aligned_time,
    event_time,
    judged_as_ever,
    mid_stream_time,
    nothing_late,
)
from streamactors.testing.simulation.windowed import windowed, windowed_once
from streamactors.testing.simulation.world import World


class Count(KeyedOperator[str, Any, Update]):
    """Emits every update, so that each record's part in the state can be told from the output."""

    count = ValueState(int, default=0)
    last = MapState(str, int)
    seen = ListState(str)

    def process(self, event: Any, ctx: Context[str, Update], /) -> None:
        count = self.count.get() + 1
        self.count.set(count)
        self.last[event.split] = event.number
        self.seen.append(named(event))
        ctx.emit(Update(event.split, event.number, event.key, count))


class Receive(Operator[Event, Copy]):
    """Says which subtask has got a record."""

    def open(self, ctx: OperatorContext, /) -> None:
        self.subtask = ctx.subtask

    def process(self, event: Event, ctx: Context[None, Copy], /) -> None:
        ctx.emit(Copy(event.split, event.number, self.subtask if event.split.startswith("rules") else -1))


# --------------------------------------------------------------------------------------------------------------- flows
def pipeline(world: World) -> Dataflow:
    flow = Dataflow("pipeline")
    source = flow.source("events", world.source(events(world, "e", 3)))
    counted = source.map(_same).filter(_all).key_by(key_of).process("count", Count)
    return counted.key_by(key_of).sink("out", world.sink())


def two_input(world: World) -> Dataflow:
    flow = Dataflow("two-input")
    left = flow.source("left", world.source(events(world, "l")))
    right = flow.source("right", world.source(events(world, "r"))).map(_same)
    return left.union(right).key_by(key_of).process("count", Count).sink("out", world.sink())


def union(world: World) -> Dataflow:
    flow = Dataflow("union")
    first, second, third = (flow.source(f"source-{name}", world.source(events(world, name, 1))) for name in "abc")
    merged = first.union(second.map(_same), third).map(_same).rebalance().filter(_all)
    return merged.sink("out", world.sink())


def diamond(world: World) -> Dataflow:
    """Each event takes both ways, and is counted twice."""
    flow = Dataflow("diamond")
    source = flow.source("events", world.source(events(world, "e", 2, 30)))
    left = source.map(_left)
    right = source.flat_map(_right)
    return left.union(right).key_by(key_of).process("count", Count).sink("out", world.sink())


def keyed_chain(world: World) -> Dataflow:
    flow = Dataflow("keyed-chain")
    source = flow.source("events", world.source(events(world, "e", 2, 30)))
    by_key = source.key_by(key_of).process("first", Count)
    by_bucket = by_key.key_by(bucket_of).process("second", CountBuckets)
    by_key_again = by_bucket.key_by(key_of).process("third", Count)
    return by_key_again.key_by(key_of).sink("out", world.sink())


class CountBuckets(KeyedOperator[int, Update, Update]):
    """Keyed otherwise; hands the records on as they are."""

    count = ValueState(int, default=0)

    def process(self, update: Update, ctx: Context[int, Update], /) -> None:
        self.count.set(self.count.get() + 1)
        ctx.emit(update)


def broadcast(world: World) -> Dataflow:
    flow = Dataflow("broadcast")
    rules = flow.source("rules", world.source(events(world, "rules", 1, 25)))
    others = flow.source("others", world.source(events(world, "others", 2, 25)))
    received = rules.broadcast().union(others.rebalance()).process("receive", Receive)
    return received.sink("out", world.sink())


def _same(event: Event) -> Event:
    return event


def _all(event: Event) -> bool:
    return True


def _left(event: Event) -> Event:
    return Event(f"{event.split} left", event.number, event.key)


def _right(event: Event) -> list[Event]:
    return [Event(f"{event.split} right", event.number, event.key)]


# -------------------------------------------------------------------------------------------------------------- checks
def received(outcome: Outcome) -> None:
    """Broadcast records once for each subtask that there always was, and never twice for any; others once."""
    copies: list[Copy] = outcome.output()
    world = outcome.world
    rules, others = inputs(("rules", 1, 25))(world), inputs(("others", 2, 25))(world)
    no_loss(others, [(copy.split, copy.number) for copy in copies if copy.subtask < 0])
    for subtask in range(min(outcome.widths["receive"])):
        no_loss(rules, [(copy.split, copy.number) for copy in copies if copy.subtask == subtask], f"subtask {subtask}")
    if outcome.exactly_once:
        nothing_twice([(copy.split, copy.number, copy.subtask) for copy in copies])


def _both_ways(world: World) -> list[Event]:
    return [way for event in inputs(("e", 2, 30))(world) for way in (_left(event), *_right(event))]


# ----------------------------------------------------------------------------------------------------------- scenarios
TOPOLOGIES: Final[dict[str, tuple[Callable[[World], Dataflow], Check]]] = {
    "pipeline": (pipeline, counted(inputs(("e", 3, 40)), "count", keyed_sink=True)),
    "two-input": (
        two_input,
        counted(inputs(("l", 2, 40), ("r", 2, 40)), "count", keyed_sink=False),
    ),
    "union": (union, passed_on(inputs(("a", 1, 40), ("b", 1, 40), ("c", 1, 40)))),
    "diamond": (diamond, counted(_both_ways, "count", keyed_sink=False)),
    "keyed-chain": (keyed_chain, counted(inputs(("e", 2, 30)), "first", "third", keyed_sink=True)),
    "broadcast": (broadcast, received),
    "lists": (lists, kept_once),
    "connected": (connected, joined_once),
    "rules": (ruled, ruled_alike),
    "kinds": (kinds, folded),
    "event-time": (event_time, judged_as_ever),
    "mid-stream-time": (mid_stream_time, judged_as_ever),
    "aligned-time": (aligned_time, nothing_late),
    "timers": (alarms, rang_once),
    "windowed": (windowed, windowed_once),
    "pattern": (pattern, matched_once),
    "joined": (joined, paired_once),
    "called": (called(Count), counted(inputs(READ), "count", keyed_sink=True)),
    "called-in-any-order": (called_in_any_order, judged_as_ever),
    "called-by-key": (called_by_key, remembered),
}


WORKERS: Final = (*(12 * [0]), 2, 3, 5)
"""Of a run's job. 0: four in five run in one process."""


def scenario(topology: str, mode: str) -> Scenario:
    """`mode` is that of the first process; those that begin exactly-once may switch to another one that is."""
    flow, check = TOPOLOGIES[topology]
    modes = EXACTLY_ONCE if mode in EXACTLY_ONCE else tuple(MODES)
    faults = Faults(modes=modes, backends=("heap", "rocksdb"), savepoints=2, rewinds=2, workers=WORKERS)
    arguments = f"--topology {topology} --mode {mode}"
    return Scenario(flow, faults=faults, check=check, mode=mode, arguments=arguments, usual_faults=faults)
