"""A flow that runs in no time: what its subtasks would have counted, under some load and parallelism."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from streamactors.graph.logical import Keyed, LogicalGraph
from streamactors.graph.physical import PhysicalPlan
from streamactors.graph.planner import plan
from streamactors.runtime.autoscaling.demand import ChainCounts, Observation, Spent
from tests.graph.graphs import Graph, identity


def orders() -> LogicalGraph:
    """One reader, and totals by key with their sink behind it."""
    graph = Graph().add("orders", "source", parallelism=1)
    return graph.add("totals", "process", ("orders", Keyed(identity))).add("out", "sink", "totals").build()


def planned(graph: LogicalGraph, **steps: int) -> PhysicalPlan:
    return plan(graph, steps=steps, max_parallelism=128)


def spent(seconds: float, busy: float, held_back: float = 0.0) -> Spent:
    return seconds * busy, seconds * (1.0 - busy - held_back), seconds * held_back


def counts(
    seconds: float,
    *busy: float,
    records: float = 0.0,
    held_back: float = 0.0,
    pending: float | None = None,
    splits: int | None = None,
    nodes: int = 1,
) -> ChainCounts:
    """After so many seconds of the same: a busy share for each subtask."""
    each = tuple(spent(seconds, share, held_back) for share in busy)
    return ChainCounts(each, records * seconds, (records * seconds,) * nodes, pending, splits)


@dataclass
class Plant:
    """`orders` under a load: what a subtask of `totals` can do is `capacity` records a second, and what can't be done
    waits at the source. `shared`: at most so many times that, however many subtasks there are."""

    capacity: float = 1000.0
    parallelism: int = 1
    tells: bool = True
    shared: float = float("inf")
    time: float = 0.0
    waiting: float = 0.0
    plan: PhysicalPlan = field(init=False)
    records: float = 0.0
    _busy: float = 0.0
    _held: float = 0.0
    _began: float = 0.0

    def __post_init__(self) -> None:
        self.rescale({"totals": self.parallelism})

    def rescale(self, asked: Mapping[str, int], pause: float = 0.0) -> None:
        """With `pause` seconds in which nothing is read."""
        self.parallelism = asked["totals"]
        self.plan = planned(orders(), totals=self.parallelism, out=self.parallelism)
        self.time += pause
        self._began, self.records, self._busy, self._held = self.time, 0.0, 0.0, 0.0

    def run(self, seconds: float, rate: float) -> Observation:
        """`rate`: records a second that arrive."""
        able = self.capacity * min(self.parallelism, self.shared)
        arrived = self.waiting + rate * seconds
        done = min(arrived, able * seconds)
        self.waiting = arrived - done
        self.records += done
        self._busy += done / able
        self._held += 0.0 if done < able * seconds else seconds * max(0.0, 1.0 - able / max(rate, able))
        self.time += seconds
        return self.look()

    def look(self) -> Observation:
        lived = self.time - self._began
        source = (0.0, lived - self._held, self._held)
        worker = (self._busy, lived - self._busy, 0.0)
        pending = self.waiting if self.tells else None
        return Observation(
            self.time,
            self.plan,
            {
                "orders": ChainCounts((source,), self.records, (self.records,), pending, 8),
                "totals": ChainCounts((worker,) * self.parallelism, self.records, (self.records, 0.0)),
            },
        )
