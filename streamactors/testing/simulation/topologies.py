"""Six flows with known input, and what must come out of each whatever goes wrong."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from streamactors.api.dataflow import Dataflow
from streamactors.operators.base import Context, KeyedOperator, Operator, OperatorContext
from streamactors.state.descriptors import MapState, ValueState
from streamactors.testing.simulation.faults import Faults
from streamactors.testing.simulation.result import Check, Outcome
from streamactors.testing.simulation.scenario import Scenario
from streamactors.testing.simulation.settings import EXACTLY_ONCE, MODES
from streamactors.testing.simulation.world import World


class Event(msgspec.Struct, frozen=True):
    """Record `number` of `split`, counted from 0."""

    split: str
    number: int
    key: str


class Update(msgspec.Struct, frozen=True):
    """The `count`-th event of its key, as operator `stage` has counted it."""

    split: str
    number: int
    key: str
    count: int


class Copy(msgspec.Struct, frozen=True):
    """A broadcast record, as subtask `subtask` has got it; -1 for one that was not broadcast."""

    split: str
    number: int
    subtask: int


class Count(KeyedOperator[str, Any, Update]):
    """Emits every update, so that each record's part in the state can be told from the output."""

    count = ValueState(int, default=0)
    last = MapState(str, int)

    def process(self, event: Any, ctx: Context[str, Update], /) -> None:
        count = self.count.get() + 1
        self.count.set(count)
        self.last[event.split] = event.number
        ctx.emit(Update(event.split, event.number, event.key, count))


class Receive(Operator[Event, Copy]):
    """Says which subtask has got a record."""

    def open(self, ctx: OperatorContext, /) -> None:
        self.subtask = ctx.subtask

    def process(self, event: Event, ctx: Context[None, Copy], /) -> None:
        ctx.emit(Copy(event.split, event.number, self.subtask if event.split.startswith("rules") else -1))


def key_of(record: Any) -> str:
    key: str = record.key
    return key


def bucket_of(record: Any) -> int:
    return len(record.key) + int(record.key[-1]) % 3


def events(world: World, name: str, splits: int = 2, most: int = 40) -> dict[str, list[Event]]:
    """Few keys, shared by all splits."""
    draw = world.random(f"events {name}")
    return {
        f"{name}{split}": [
            Event(f"{name}{split}", number, f"k{draw.randrange(5)}") for number in range(draw.randint(5, most))
        ]
        for split in range(splits)
    }


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
def _inputs(*names: tuple[str, int, int]) -> Callable[[World], list[Event]]:
    def read(world: World) -> list[Event]:
        return [event for name in names for split in events(world, *name).values() for event in split]

    return read


def counted(inputs: Callable[[World], Sequence[Event]], *stages: str, keyed_sink: bool) -> Check:
    """Every event counted once per key, in the order of its split; the state is the fold of the input. `keyed_sink`:
    its own order tells too."""

    def check(outcome: Outcome) -> None:
        wanted = inputs(outcome.world)
        found: list[Update] = outcome.output()
        _no_loss(wanted, [(update.split, update.number) for update in found])
        if not outcome.exactly_once:
            return
        _nothing_twice([(update.split, update.number) for update in found])
        by_key: defaultdict[str, list[Update]] = defaultdict(list)
        for update in found:
            by_key[update.key].append(update)
        for key, updates in by_key.items():
            if not keyed_sink:
                updates.sort(key=lambda update: update.count)
            counts = [update.count for update in updates]
            assert counts == list(range(1, len(updates) + 1)), f"key {key}: counted {counts}"
            _in_order([(update.split, update.number) for update in updates], f"key {key}")
        for stage in stages:
            _is_fold(wanted, outcome.states[stage], stage)

    return check


def _is_fold(wanted: Sequence[Event], states: dict[str, dict[Any, Any]], stage: str) -> None:
    counts: defaultdict[str, int] = defaultdict(int)
    last: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for event in wanted:
        counts[event.key] += 1
        last[event.key][event.split] = event.number
    held = states["count"], states["last"]
    assert held[0] == counts, f"{stage}: its state holds the counts {held[0]}, not {dict(counts)}"
    assert held[1] == last, f"{stage}: its state holds the last numbers {held[1]}, not {dict(last)}"


def passed_on(inputs: Callable[[World], Sequence[Event]]) -> Check:
    """Every event once, in any order."""

    def check(outcome: Outcome) -> None:
        found = [(event.split, event.number) for event in outcome.output()]
        _no_loss(inputs(outcome.world), found)
        if outcome.exactly_once:
            _nothing_twice(found)

    return check


def received(outcome: Outcome) -> None:
    """Broadcast records once for each subtask that there always was, and never twice for any; others once."""
    copies: list[Copy] = outcome.output()
    world = outcome.world
    rules, others = _inputs(("rules", 1, 25))(world), _inputs(("others", 2, 25))(world)
    _no_loss(others, [(copy.split, copy.number) for copy in copies if copy.subtask < 0])
    for subtask in range(min(outcome.widths["receive"])):
        _no_loss(rules, [(copy.split, copy.number) for copy in copies if copy.subtask == subtask], f"subtask {subtask}")
    if outcome.exactly_once:
        _nothing_twice([(copy.split, copy.number, copy.subtask) for copy in copies])


def _no_loss(wanted: Sequence[Event], found: Sequence[tuple[str, int]], where: str = "output") -> None:
    lost = {(event.split, event.number) for event in wanted} - set(found)
    assert not lost, f"{where}: {len(lost)} of {len(wanted)} records are lost: {sorted(lost)[:10]}"


def _nothing_twice(found: Sequence[Any]) -> None:
    seen: set[Any] = set()
    doubled = [record for record in found if record in seen or seen.add(record)]  # type: ignore[func-returns-value]
    assert not doubled, f"{len(doubled)} records came twice: {sorted(doubled)[:10]}"


def _in_order(found: Sequence[tuple[str, int]], where: str) -> None:
    last: dict[str, int] = {}
    for split, number in found:
        assert number > last.get(split, -1), f"{where}: {split}@{number} came after {split}@{last[split]}"
        last[split] = number


def _both_ways(world: World) -> list[Event]:
    return [way for event in _inputs(("e", 2, 30))(world) for way in (_left(event), *_right(event))]


# ----------------------------------------------------------------------------------------------------------- scenarios
TOPOLOGIES: Final[dict[str, tuple[Callable[[World], Dataflow], Check]]] = {
    "pipeline": (pipeline, counted(_inputs(("e", 3, 40)), "count", keyed_sink=True)),
    "two-input": (
        two_input,
        counted(_inputs(("l", 2, 40), ("r", 2, 40)), "count", keyed_sink=False),
    ),
    "union": (union, passed_on(_inputs(("a", 1, 40), ("b", 1, 40), ("c", 1, 40)))),
    "diamond": (diamond, counted(_both_ways, "count", keyed_sink=False)),
    "keyed-chain": (keyed_chain, counted(_inputs(("e", 2, 30)), "first", "third", keyed_sink=True)),
    "broadcast": (broadcast, received),
}


def scenario(topology: str, mode: str) -> Scenario:
    """`mode` is that of the first process; those that begin exactly-once may switch to another one that is."""
    flow, check = TOPOLOGIES[topology]
    modes = EXACTLY_ONCE if mode in EXACTLY_ONCE else tuple(MODES)
    faults = Faults(modes=modes)
    arguments = f"--topology {topology} --mode {mode}"
    return Scenario(flow, faults=faults, check=check, mode=mode, arguments=arguments, usual_faults=faults)
