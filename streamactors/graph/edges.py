"""The edges of a plan by what names them over versions of a flow, chained or not: in-flight records are found by it."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from streamactors.checkpoint.manifest import EdgeKey, EdgeKind, InFlightEdge
from streamactors.graph.logical import Broadcast, Forward, Keyed, Partitioning, Rebalance
from streamactors.graph.physical import PhysicalPlan

_KINDS: Final[dict[type[Partitioning], EdgeKind]] = {
    Forward: "forward",
    Rebalance: "rebalance",
    Broadcast: "broadcast",
    Keyed: "keyed",
}


@dataclass(frozen=True, slots=True)
class PlanEdge:
    """An edge into the node at `place` in the chain of vertex `vertex`; chained if `place` is not 0."""

    key: EdgeKey
    partitioning: Partitioning
    vertex: str
    place: int

    @property
    def kind(self) -> EdgeKind:
        return _KINDS[type(self.partitioning)]

    @property
    def stored(self) -> InFlightEdge:
        """As a manifest lists it."""
        return InFlightEdge(self.key, self.kind)


@dataclass(frozen=True)
class PlanEdges:
    """`exits` by index in `plan.edges`; `chained` by vertex uid and place of the node that the edge enters (1 up)."""

    exits: tuple[PlanEdge, ...]
    chained: Mapping[tuple[str, int], PlanEdge]

    @cached_property
    def by_key(self) -> dict[EdgeKey, PlanEdge]:
        return {edge.key: edge for edge in (*self.exits, *self.chained.values())}


def edge_keys(plan: PhysicalPlan) -> PlanEdges:
    """Ordinals count in the order of the downstream step's inputs, which no chaining and no parallelism changes: an
    edge can be chained only where it is its downstream node's only one."""
    return PlanEdges(tuple(_exits(plan)), {(vertex, place): edge for vertex, place, edge in _chained(plan)})


def _exits(plan: PhysicalPlan) -> Iterator[PlanEdge]:
    alike: Counter[tuple[str, str, str | None]] = Counter()
    for edge in plan.edges:
        upstream = plan.vertex[edge.upstream].nodes[edge.link].uid
        same = upstream, edge.downstream, edge.tag
        yield PlanEdge(EdgeKey(*same, alike[same]), edge.partitioning, edge.downstream, 0)
        alike[same] += 1


def _chained(plan: PhysicalPlan) -> Iterator[tuple[str, int, PlanEdge]]:
    for vertex in plan.vertices:
        for place, node in enumerate(vertex.nodes[1:], 1):
            key = EdgeKey(vertex.nodes[place - 1].uid, node.uid)
            yield vertex.uid, place, PlanEdge(key, Forward(), vertex.uid, place)
