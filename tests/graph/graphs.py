"""Graphs for the tests of the planner: a short way to write one, and random ones."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from connectors.memory import ListSink, ListSource
from streamactors.elements import DeadLetter, OutputTag
from streamactors.graph.logical import (
    Broadcast,
    Edge,
    Forward,
    Keyed,
    LogicalGraph,
    Node,
    Partitioning,
    Rebalance,
    SourceSpec,
)
from streamactors.graph.physical import Exit, PhysicalPlan
from streamactors.operators.base import Context, Operator, OperatorSpec
from streamactors.operators.process import ProcessSpec
from streamactors.operators.sink import SinkSpec
from streamactors.operators.stateless import FunctionSpec
from streamactors.operators.two_inputs import CoOperator, CoProcessSpec

DEAD = OutputTag("dead", DeadLetter)


class Passing(Operator[Any, Any]):
    def process(self, value: Any, ctx: Context[None, Any], /) -> None:
        ctx.emit(value)


class Joining(CoOperator[Any, Any, Any]):
    def process_left(self, value: Any, ctx: Context[None, Any], /) -> None:
        ctx.emit(value)

    def process_right(self, value: Any, ctx: Context[None, Any], /) -> None:
        ctx.emit(value)


def identity(value: Any) -> Any:
    return value


SPECS: dict[str, SourceSpec | OperatorSpec] = {
    "source": SourceSpec(ListSource([1])),
    "map": FunctionSpec("map", identity),
    "process": ProcessSpec(Passing, keyed=False),
    "routed": ProcessSpec(Passing, keyed=False, on_error=DEAD),
    "connected": CoProcessSpec(Joining, keyed=False),
    "sink": SinkSpec(ListSink()),
}


class Graph:
    """Steps by uid; inputs are uids, with a partitioning where it isn't forward."""

    def __init__(self) -> None:
        self._nodes: list[Node] = []

    def add(
        self,
        uid: str,
        kind: str | SourceSpec | OperatorSpec,
        *inputs: str | tuple[str, Partitioning],
        right: Sequence[str | tuple[str, Partitioning]] = (),
        **options: Any,
    ) -> "Graph":
        """`right`: what goes into its second input."""
        spec = SPECS[kind] if isinstance(kind, str) else kind
        edges = *self._edges(inputs), *(replace(edge, side=1) for edge in self._edges(right))
        self._nodes.append(Node(len(self._nodes), uid, uid, spec, edges, **options))
        return self

    def _edges(self, inputs: Sequence[str | tuple[str, Partitioning]]) -> list[Edge]:
        return [self._edge(*(item if isinstance(item, tuple) else (item, Forward()))) for item in inputs]

    def _edge(self, origin: str, partitioning: Partitioning) -> Edge:
        uid, _, tag = origin.partition(".")
        return Edge(next(node.id for node in self._nodes if node.uid == uid), partitioning, tag or None)

    def build(self) -> LogicalGraph:
        return LogicalGraph("test", tuple(self._nodes))


def chains(plan: PhysicalPlan) -> list[list[str]]:
    return [[node.uid for node in vertex.nodes] for vertex in plan.vertices]


def exits(plan: PhysicalPlan) -> list[tuple[str, str, type[Partitioning], str | None]]:
    """(upstream node, downstream node, partitioning, tag) of each physical edge."""
    return [(leaving(plan, edge).uid, edge.downstream, type(edge.partitioning), edge.tag) for edge in plan.edges]


def leaving(plan: PhysicalPlan, edge: Exit) -> Node:
    return plan.vertex[edge.upstream].nodes[edge.link]


PARTITIONINGS: list[Partitioning] = [Forward(), Rebalance(), Broadcast(), Keyed(identity)]
MOSTLY_FORWARD = st.sampled_from([Forward(), *[Forward()] * 3, *PARTITIONINGS])
WIDTHS = st.sampled_from([None, None, None, 1, 2, 3])


@st.composite
def graphs(draw: st.DrawFn) -> LogicalGraph:
    """Any valid graph: unions and connected streams (of one with itself too), side outputs, fans, sinks, steps that
    nothing consumes."""
    nodes: list[Node] = []
    for _ in range(draw(st.integers(1, 3))):
        nodes.append(Node(len(nodes), f"n{len(nodes)}", "", SPECS["source"], (), draw(WIDTHS), draw(st.booleans())))
    for _ in range(draw(st.integers(1, 10))):
        edges = draw(st.lists(_edge(nodes), min_size=1, max_size=3))
        kind = draw(st.sampled_from(["map", "process", "process", "connected", "sink"]))
        if kind == "connected":
            edges += [replace(edge, side=1) for edge in draw(st.lists(_edge(nodes), min_size=1, max_size=2))]
        chain = draw(st.sampled_from([True, True, True, False]))
        nodes.append(Node(len(nodes), f"n{len(nodes)}", "", SPECS[kind], tuple(edges), draw(WIDTHS), chain))
    return LogicalGraph("random", tuple(_with_unused_sources_in(nodes)))


@st.composite
def _edge(draw: st.DrawFn, nodes: list[Node]) -> Edge:
    upstream = draw(st.sampled_from([node for node in nodes if node.kind != "sink"]))
    tag = draw(st.sampled_from([None, "side"])) if upstream.kind == "process" else None
    return Edge(upstream.id, draw(MOSTLY_FORWARD), tag)


def _with_unused_sources_in(nodes: list[Node]) -> list[Node]:
    """The planner refuses a source that nothing consumes: the last step takes them."""
    used = {edge.upstream for node in nodes for edge in node.inputs}
    unused = tuple(Edge(node.id, Forward()) for node in nodes if node.is_source and node.id not in used)
    return [*nodes[:-1], replace(nodes[-1], inputs=nodes[-1].inputs + unused)]
