"""The edges of a plan by what names them over versions of a flow, chained or not: in-flight records are found by it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import msgspec

from streamactors.checkpoint.manifest import EdgeKey, EdgeKind, InFlightEdge
from streamactors.graph.logical import Broadcast, Forward, Keyed, Partitioning, Rebalance
from streamactors.graph.physical import PhysicalPlan

_KINDS: Final[dict[type[Partitioning], EdgeKind]] = {
    Forward: "forward",
    Rebalance: "rebalance",
    Broadcast: "broadcast",
    Keyed: "keyed",
}


_Emitter = tuple[str, int]
"""A vertex's uid, and the place of a node in its chain."""


@dataclass(frozen=True, slots=True)
class PlanEdge:
    """An edge into the node at `place` in the chain of vertex `vertex`; chained if `place` is not 0. `shared`: somebody
    else may have been handed the same records, here or further upstream."""

    key: EdgeKey
    partitioning: Partitioning
    vertex: str
    place: int
    shared: bool

    @property
    def kind(self) -> EdgeKind:
        return _KINDS[type(self.partitioning)]

    @property
    def stored(self) -> InFlightEdge:
        """As a manifest lists it."""
        return InFlightEdge(self.key, self.kind)

    @property
    def name(self) -> str:
        """Among those into its step."""
        key = self.key
        tag, side = "" if key.tag is None else f":{key.tag}", "" if key.side == 0 else f"/{key.side}"
        return f"{key.upstream}{tag}{side}{f'#{key.ordinal}' if key.ordinal else ''}"


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
    sharing = _sharing(plan)
    chained = {(vertex, place): edge for vertex, place, edge in _chained(plan, sharing)}
    return PlanEdges(tuple(_exits(plan, sharing)), chained)


def _exits(plan: PhysicalPlan, sharing: Set[_Emitter]) -> Iterator[PlanEdge]:
    alike: Counter[EdgeKey] = Counter()
    for edge in plan.edges:
        upstream = plan.vertex[edge.upstream].nodes[edge.link].uid
        key = EdgeKey(upstream, edge.downstream, edge.tag, side=edge.side)
        shared = (edge.upstream, edge.link) in sharing
        numbered = msgspec.structs.replace(key, ordinal=alike[key])
        yield PlanEdge(numbered, edge.partitioning, edge.downstream, 0, shared)
        alike[key] += 1


def _chained(plan: PhysicalPlan, sharing: Set[_Emitter]) -> Iterator[tuple[str, int, PlanEdge]]:
    for vertex in plan.vertices:
        for place, node in enumerate(vertex.nodes[1:], 1):
            key = EdgeKey(vertex.nodes[place - 1].uid, node.uid)
            shared = (vertex.uid, place - 1) in sharing
            yield vertex.uid, place, PlanEdge(key, Forward(), vertex.uid, place, shared)


def _sharing(plan: PhysicalPlan) -> Set[_Emitter]:
    """The nodes whose output several may hold: they have several consumers, or a copying edge, or pass on (as a filter
    does) what they were given by such a node."""
    consumers = Counter((edge.upstream, edge.link) for edge in plan.edges)
    copying = {(edge.upstream, edge.link) for edge in plan.edges if isinstance(edge.partitioning, Broadcast)}
    sharing: set[_Emitter] = set()
    for vertex in plan.vertices:  # in topological order
        entering = {(edge.upstream, edge.link) for edge in plan.edges if edge.downstream == vertex.uid}
        shared = bool(entering & sharing)
        for place in range(len(vertex.nodes)):
            emitter, last = (vertex.uid, place), place == len(vertex.nodes) - 1
            shared = shared or emitter in copying or consumers[emitter] + (not last) > 1
            if shared:
                sharing.add(emitter)
    return sharing
