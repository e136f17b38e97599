"""A flow's graph with other sources and sinks in the place of its own: pure functions from graph to graph.

Invariant: every step keeps its uid, its operator and its partitioning; the user's flow is not changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from streamactors.elements import OutputTag, Watermark
from streamactors.errors import InvalidConfig
from streamactors.graph.logical import Edge, Forward, LogicalGraph, Node, SourceSpec
from streamactors.listsink import ListSink
from streamactors.operators.base import OperatorSpec
from streamactors.operators.sink import SinkSpec
from streamactors.testing.feed import Feed, FeedSource
from streamactors.testing.script import ScriptSpec

Sides = Mapping[tuple[str, str], ListSink[Any]]
"""By the uid of a step and the name of its side output."""


def sources_of(graph: LogicalGraph) -> list[str]:
    return [node.uid for node in graph.nodes if node.is_source]


def sinks_of(graph: LogicalGraph) -> list[str]:
    return [node.uid for node in graph.nodes if isinstance(node.spec, SinkSpec)]


def error_tags(graph: LogicalGraph) -> list[tuple[str, str]]:
    """Every side output of dead letters: the uid of its step, and its name."""
    return [(node.uid, node.spec.error_tag.name) for node in graph.nodes if node.spec.error_tag is not None]


def rewired(
    graph: LogicalGraph, feeds: Mapping[str, Feed], sinks: Mapping[str, ListSink[Any]], sides: Sides
) -> LogicalGraph:
    """`sides`: where side outputs go besides."""
    wiring = _Wiring([], {})
    for node in graph.nodes:
        if isinstance(node.spec, SourceSpec):
            wiring.add_source(node, node.spec, feeds[node.uid])
        elif isinstance(node.spec, SinkSpec):
            wiring.add(node, replace(node.spec, sink=sinks[node.uid]))
        else:
            wiring.add(node, node.spec)
    for (uid, tag), sink in sides.items():
        wiring.add_side(uid, tag, sink)
    return LogicalGraph(graph.name, tuple(wiring.nodes))


@dataclass(frozen=True)
class _Wiring:
    """`place`: the id that a step of the old graph has now."""

    nodes: list[Node]
    place: dict[int, int]

    def add(self, node: Node, spec: SourceSpec | OperatorSpec) -> None:
        inputs = tuple(replace(edge, upstream=self.place[edge.upstream]) for edge in node.inputs)
        self.place[node.id] = len(self.nodes)
        self.nodes.append(replace(node, id=len(self.nodes), spec=spec, inputs=inputs))

    def add_source(self, node: Node, spec: SourceSpec, feed: Feed) -> None:
        if not feed.steps:
            self.add(node, replace(spec, source=FeedSource(feed)))
            return
        self.add(node, SourceSpec(FeedSource(feed)))
        place = len(self.nodes)
        edge, uid = Edge(self.place[node.id], Forward()), f"{node.uid}-watermarks"
        stamp = None if spec.watermarks is None else spec.watermarks._timestamp
        script = ScriptSpec(timed=True, timestamp=stamp)
        self.nodes.append(Node(place, uid, uid, script, (edge,), node.parallelism))
        self.place[node.id] = place

    def add_side(self, uid: str, tag: str, sink: ListSink[Any]) -> None:
        step = next((node for node in self.nodes if node.uid == uid), None)
        if step is None:
            known = ", ".join(node.uid for node in self.nodes if node.named)
            raise InvalidConfig(f"tags: the flow has no step {uid!r}; it has: {known}")
        name = f"side-output-{len(self.nodes)}"
        self.nodes.append(Node(len(self.nodes), name, name, SinkSpec(sink), (Edge(step.id, Forward(), tag),)))


def at_parallelism(graph: LogicalGraph, parallelism: int) -> LogicalGraph:
    """Steps that say themselves how many subtasks they have get another number, unless it is one."""
    nodes = (
        replace(node, parallelism=parallelism) if node.parallelism not in (None, 1) else node for node in graph.nodes
    )
    return LogicalGraph(graph.name, tuple(nodes))


def gives_watermarks(elements: Mapping[str, Any]) -> bool:
    """Whether the test gives the watermarks of a source, and not the flow's own strategy."""
    return any(isinstance(element, Watermark) for split in elements.values() for element in split)


def tag_name(tag: OutputTag[Any] | str) -> str:
    return tag if isinstance(tag, str) else tag.name
