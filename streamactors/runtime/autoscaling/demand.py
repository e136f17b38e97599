"""How much each chain has to do, from what its subtasks have counted at two moments. Pure.

The model is that of DS2 (Kalavri et al., "Three steps is all you need", OSDI 2018), which Flink's autoscaler follows
too: what a subtask could do is its rate divided by the share of its time in which it was busy; what it should do
follows from the sources, through the graph.

- `busy` is the greatest share of any subtask: one hot subtask is enough to hold back all.
- `growth` is how many times the present rate would be needed. Of a source that tells what is pending: the rate at which
  records arrive, and what it takes to work off the rest in time. Of one that does not: what it would read if nothing
  held it back. Of any other chain: that of those it reads from, weighed by how much comes from each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final

from streamactors.graph.logical import Broadcast
from streamactors.graph.physical import Exit, PhysicalPlan, Vertex
from streamactors.sources import PENDING_RECORDS, SPLITS

LARGEST: Final = 10.0
"""Growth that is believed: who is held back nearly always says little about how far."""
HELD: Final = 0.05
"""A share of time that is more than chance."""

Spent = tuple[float, float, float]
"""Seconds busy, idle, held back, since the attempt began."""


@dataclass(frozen=True, slots=True)
class ChainCounts:
    """Of one chain since the attempt began. `spent`: of each subtask; `records`: taken in, by a source given out;
    `out`: given out by each node; `pending`, `splits`: of a source that tells them."""

    spent: tuple[Spent, ...]
    records: float
    out: tuple[float, ...]
    pending: float | None = None
    splits: int | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """At one moment, in monotonic seconds. Every attempt has a plan object of its own."""

    time: float
    plan: PhysicalPlan
    chains: Mapping[str, ChainCounts]


@dataclass(frozen=True, slots=True)
class Demand:
    """Of one chain. `rate`: records a second that its subtasks took together; `growth` None: nothing came through, and
    something was to come."""

    busy: float
    held_back: float
    rate: float
    growth: float | None
    pending: float | None = None
    splits: int | None = None

    @property
    def load(self) -> float | None:
        """The share of time that each subtask would have to work; above 1, they are too few."""
        return None if self.growth is None else self.busy * self.growth


# ------------------------------------------------------------------------------------------------------------ observing
def observe(plan: PhysicalPlan, subtasks: Mapping[str, Any], time: float) -> Observation | None:
    """`subtasks`: as the job's metrics have them; None where they are not those of the plan."""
    counts: dict[str, list[Mapping[str, Any]]] = {vertex.uid: [] for vertex in plan.vertices}
    for subtask in subtasks.values():
        counts.setdefault(subtask["vertex"], []).append(subtask)
    if any(len(counts[vertex.uid]) != vertex.parallelism for vertex in plan.vertices):
        return None
    return Observation(time, plan, {vertex.uid: _counted(vertex, counts[vertex.uid]) for vertex in plan.vertices})


def _counted(vertex: Vertex, subtasks: Sequence[Mapping[str, Any]]) -> ChainCounts:
    def total(uid: str, name: str) -> float:
        return float(sum(subtask["nodes"][uid][name] for subtask in subtasks))

    out = tuple(total(node.uid, "records_out") for node in vertex.nodes)
    splits = _told(vertex, subtasks, SPLITS)
    return ChainCounts(
        tuple((one["busy_seconds"], one["idle_seconds"], one["backpressured_seconds"]) for one in subtasks),
        out[0] if vertex.is_source else total(vertex.uid, "records_in"),
        out,
        _told(vertex, subtasks, PENDING_RECORDS),
        None if splits is None else int(splits),
    )


def _told(vertex: Vertex, subtasks: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """A gauge of a source, over all of its subtasks; None unless all tell it."""
    if not vertex.is_source:
        return None
    values = [subtask["nodes"][vertex.uid].get(name) for subtask in subtasks]
    told = [value for value in values if value is not None and isfinite(value)]
    return sum(told) if len(told) == len(values) else None


def goes_on(before: Observation, now: Observation) -> bool:
    """Whether both are of one attempt. What is told of workers far away may for a moment be of the one before."""
    return now.plan is before.plan and all(
        sum(map(sum, counts.spent)) >= sum(map(sum, before.chains[uid].spent)) for uid, counts in now.chains.items()
    )


# ------------------------------------------------------------------------------------------------------------ measuring
def measure(before: Observation, now: Observation, catch_up: float) -> dict[str, Demand]:
    """By chain, between two moments of one attempt. `catch_up`: seconds within which a source's pending records are to
    be worked off; 0: those are left out of it."""
    seconds = now.time - before.time
    demands: dict[str, Demand] = {}
    for vertex in now.plan.vertices:  # in topological order
        was, counts = before.chains[vertex.uid], now.chains[vertex.uid]
        rate = max(0.0, counts.records - was.records) / seconds
        busy, held_back = _shares(was.spent, counts.spent)
        if vertex.is_source:
            growth = _source_growth(was, counts, rate, held_back, seconds, catch_up)
        else:
            growth = _growth_behind(vertex, before, now, demands, held_back)
        demands[vertex.uid] = Demand(busy, held_back, rate, growth, counts.pending, counts.splits)
    return demands


def _shares(before: Sequence[Spent], now: Sequence[Spent]) -> tuple[float, float]:
    """The greatest busy share of any subtask, and the mean share of time held back."""
    shares = [_share(*pair) for pair in zip(before, now, strict=True)]
    return max(busy for busy, _ in shares), sum(held for _, held in shares) / len(shares)


def _share(before: Spent, now: Spent) -> tuple[float, float]:
    busy, idle, held = (max(0.0, later - earlier) for later, earlier in zip(now, before, strict=True))
    total = busy + idle + held
    return (busy / total, held / total) if total > 0 else (0.0, 0.0)


def _source_growth(
    was: ChainCounts, now: ChainCounts, rate: float, held_back: float, seconds: float, catch_up: float
) -> float | None:
    unhindered = _unhindered(held_back)
    if now.pending is None or was.pending is None:
        return unhindered if rate > 0 or held_back < HELD else None
    if rate <= 0:
        return None if now.pending > 0 else 1.0
    arriving = rate + (now.pending - was.pending) / seconds
    wanted = max(0.0, arriving) + (now.pending / catch_up if catch_up else 0.0)
    # What is pending may be known late, where it is read late.
    return min(LARGEST, max(wanted / rate, 1.0 if held_back > HELD else 0.0))


def _growth_behind(
    vertex: Vertex, before: Observation, now: Observation, demands: Mapping[str, Demand], held_back: float
) -> float | None:
    entering = [edge for edge in now.plan.edges if edge.downstream == vertex.uid]
    if any(demands[edge.upstream].growth is None for edge in entering):
        return None
    weights = [_carried(edge, before, now, vertex.parallelism) for edge in entering]
    growths = [demands[edge.upstream].growth or 0.0 for edge in entering]
    total = sum(weights)
    wanted = sum(map(float.__mul__, weights, growths)) / total if total > 0 else max(growths, default=1.0)
    return min(LARGEST, max(wanted, _unhindered(held_back) if held_back > HELD else 0.0))


def _carried(edge: Exit, before: Observation, now: Observation, receivers: int) -> float:
    """Records over an edge, about: the main output and the side outputs of a step are counted together."""
    given = now.chains[edge.upstream].out[edge.link] - before.chains[edge.upstream].out[edge.link]
    return max(0.0, given) * (receivers if isinstance(edge.partitioning, Broadcast) else 1)


def _unhindered(held_back: float) -> float:
    return min(LARGEST, 1.0 / max(1.0 - held_back, 1.0 / LARGEST))
