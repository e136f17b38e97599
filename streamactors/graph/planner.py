"""From the logical graph to the physical plan: which nodes share an actor, in how many subtasks, over which channels.

A pure function of the graph and the configuration. A *chain* is a run of nodes that work in one actor, without a
mailbox between them (Flink: operator chaining).
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from streamactors.errors import InvalidConfig, InvalidDataflow, MissingExtra
from streamactors.graph.logical import Edge, Forward, LogicalGraph, Node, Partitioning, Rebalance, SourceSpec
from streamactors.graph.physical import Execution, Exit, PhysicalPlan, Vertex
from streamactors.graph.record_ids import record_ids
from streamactors.operators.base import OperatorSpec
from streamactors.operators.sink import SinkSpec
from streamactors.state.key_groups import MAX_KEY_GROUPS, default_max_parallelism

_NO_SIDE_OUTPUTS = frozenset(
    {"map", "filter", "flat_map", "print", "reduce", "sink", "with_timestamps", "deduplicate", "top_n"}
)
"""Kinds of steps in which no user code can reach `emit_to`."""

NO_STEPS: Final[Mapping[str, int]] = MappingProxyType({})


def plan(
    graph: LogicalGraph,
    *,
    parallelism: int = 1,
    steps: Mapping[str, int] = NO_STEPS,
    max_parallelism: int | None = None,
    checkpointing: bool = False,
    execution: Execution = "streaming",
) -> PhysicalPlan:
    """Chain, expand and connect. `parallelism` holds for nodes that set none, `steps` (by uid) ahead of what they set.
    In batch, sinks commit though no checkpoints are taken.

    Raises InvalidDataflow or InvalidConfig, naming the operator and the remedy.
    """
    _check_graph(graph)
    widths = {
        node.id: steps.get(node.uid, parallelism if node.parallelism is None else node.parallelism)
        for node in graph.nodes
    }
    groups = _max_parallelism(graph, widths, max_parallelism)
    _check_connectors(graph, checkpointing=checkpointing, committing=checkpointing or execution == "batch")
    following = _following(graph, widths)
    chains = _chains(graph, following)
    return PhysicalPlan(
        graph.name,
        tuple(Vertex(chain, widths[chain[0].id], groups) for chain in chains),
        tuple(_exits(graph, chains, following, widths)),
        execution,
        record_ids(graph),
    )


# ------------------------------------------------------------------------------------------------------------- chains
def _following(graph: LogicalGraph, widths: Mapping[int, int]) -> dict[int, int]:
    """By node: the consumer that is chained to it."""
    following = {}
    for node in graph.nodes:
        for consumer, edge in graph.consumers[node.id]:
            if _chainable(node, graph.nodes[consumer], edge) and widths[node.id] == widths[consumer]:
                following[node.id] = consumer
                break  # a chain is a line: the other consumers get a channel
    return following


def _chainable(node: Node, consumer: Node, edge: Edge) -> bool:
    return (
        isinstance(edge.partitioning, Forward)
        and edge.tag is None
        and len(consumer.inputs) == 1
        and node.chain
        and consumer.chain
    )


def _chains(graph: LogicalGraph, following: Mapping[int, int]) -> list[tuple[Node, ...]]:
    """In the order of their first nodes, which is topological: every edge between chains enters a first node."""
    chained = set(following.values())
    return [tuple(_line(graph, node, following)) for node in graph.nodes if node.id not in chained]


def _line(graph: LogicalGraph, first: Node, following: Mapping[int, int]) -> Iterator[Node]:
    node: int | None = first.id
    while node is not None:
        yield graph.nodes[node]
        node = following.get(node)


# -------------------------------------------------------------------------------------------------------------- edges
def _exits(
    graph: LogicalGraph, chains: list[tuple[Node, ...]], following: Mapping[int, int], widths: Mapping[int, int]
) -> Iterator[Exit]:
    """Every logical edge that is not inside a chain."""
    for chain in chains:
        for link, node in enumerate(chain):
            for consumer, edge in graph.consumers[node.id]:
                if following.get(node.id) == consumer:
                    continue
                route = _realised(edge.partitioning, widths[node.id], widths[consumer])
                yield Exit(chain[0].uid, link, graph.nodes[consumer].uid, route, edge.tag, edge.side)


def _realised(partitioning: Partitioning, senders: int, receivers: int) -> Partitioning:
    return Rebalance() if isinstance(partitioning, Forward) and senders != receivers else partitioning


# ------------------------------------------------------------------------------------------------------- key groups
def _max_parallelism(graph: LogicalGraph, widths: Mapping[int, int], asked: int | None) -> int:
    """The number of key groups: as configured, or from the widest node."""
    if asked is not None and not 1 <= asked <= MAX_KEY_GROUPS:
        raise InvalidConfig(f"max_parallelism is {asked}: it must lie between 1 and {MAX_KEY_GROUPS}")
    limit = MAX_KEY_GROUPS if asked is None else asked
    for node in graph.nodes:
        if not 1 <= widths[node.id] <= limit:
            raise InvalidConfig(
                f"operator {node.uid!r} has parallelism {widths[node.id]}, which is not between 1 and the "
                f"max_parallelism of {limit}: change the one, or Config(max_parallelism=…), which is stored with "
                "the state and kept"
            )
    return default_max_parallelism(max(widths.values())) if asked is None else asked


# ------------------------------------------------------------------------------------------------------------- checks
def _check_graph(graph: LogicalGraph) -> None:
    if not any(node.is_source for node in graph.nodes):
        raise InvalidDataflow(f"dataflow {graph.name!r} has no source: begin with flow.source(uid, source)")
    for node in graph.nodes:
        taken = {edge.tag for _, edge in graph.consumers[node.id]}
        if node.is_source and not taken:
            raise InvalidDataflow(f"nothing consumes source {node.uid!r}: add a step to its stream, or remove it")
        _check_dead_letters(node, taken)
        _check_side_outputs(graph, node)
    _check_watermarks(graph)


def _check_watermarks(graph: LogicalGraph) -> None:
    """One input without any would hold back all others, for ever."""
    timed: set[int] = set()
    for node in graph.nodes:
        without = [graph.nodes[edge.upstream] for edge in node.inputs if edge.upstream not in timed]
        if without and isinstance(node.spec, OperatorSpec) and node.spec.needs_watermarks:
            raise InvalidDataflow(
                f"{node.kind} {node.uid!r} works in event time, and no watermarks come from {without[0].kind} "
                f"{without[0].uid!r}: give its source some, by flow.source(…, watermarks=sa.Watermarks.…), or put "
                ".with_timestamps(sa.Watermarks.…) in between"
            )
        if node.spec.gives_time or len(without) < len(node.inputs):
            timed.add(node.id)


def _error_tag(node: Node) -> str | None:
    return None if (tag := node.spec.error_tag) is None else tag.name


def _ahead_tag(node: Node) -> str | None:
    return None if (tag := node.spec.ahead_tag) is None else tag.name


def _check_dead_letters(node: Node, taken: set[str | None]) -> None:
    tag = _error_tag(node)
    if tag is not None and tag not in taken:
        raise InvalidDataflow(
            f"{node.kind} {node.uid!r} sends its dead letters to side output {tag!r}, which nothing consumes, so they "
            "would be lost: give its stream a .side_output(tag).sink(…), or set on_error='fail'"
        )
    ahead = _ahead_tag(node)
    if ahead is not None and ahead not in taken:
        raise InvalidDataflow(
            f"{node.kind} {node.uid!r} sends records that are too far in the future to side output {ahead!r}, which "
            "nothing consumes, so they would be lost: give its stream a .side_output(tag).sink(…), or leave ahead= out"
        )
    for option, other in node.spec.beside.items() if isinstance(node.spec, OperatorSpec) else ():
        if other.name not in taken:
            raise InvalidDataflow(
                f"{node.kind} {node.uid!r} sends records to side output {other.name!r} by {option}=, and nothing "
                f"consumes it, so they would be lost: give its stream a .side_output(tag).sink(…), or leave {option}= "
                "out"
            )
    if ahead is not None and ahead == tag:
        raise InvalidDataflow(
            f"{node.kind} {node.uid!r} sends both dead letters and the records that are too far in the future to side "
            f"output {ahead!r}: they are of two types, so give ahead= a tag of its own"
        )


def _check_side_outputs(graph: LogicalGraph, node: Node) -> None:
    for consumer, edge in graph.consumers[node.id]:
        if edge.tag is not None and not _may_emit(node, edge.tag):
            raise InvalidDataflow(
                f"{graph.nodes[consumer].uid!r} reads side output {edge.tag!r} of {node.kind} {node.uid!r}, which "
                "never emits to it: call side_output on the very stream that the step which emits to it has returned"
            )


def _may_emit(node: Node, tag: str) -> bool:
    """An operator's tags can't be known before it runs; where no user code emits to one, they are."""
    return tag in (_error_tag(node), _ahead_tag(node)) or not (node.is_source or node.kind in _NO_SIDE_OUTPUTS)


def _check_connectors(graph: LogicalGraph, *, checkpointing: bool, committing: bool) -> None:
    for node in graph.nodes:
        spec = node.spec
        if isinstance(spec, SourceSpec) and checkpointing and not spec.source.rewindable:
            raise InvalidDataflow(
                f"source {node.uid!r} ({type(spec.source).__name__}) can't be rewound, so a restart from a checkpoint "
                "would lose records: run without checkpoints, or read from a source that keeps them (Kafka, files)"
            )
        connector = spec.source if isinstance(spec, SourceSpec) else spec.sink if isinstance(spec, SinkSpec) else None
        if connector is None:
            continue
        try:
            connector.validate(checkpointing=committing if isinstance(spec, SinkSpec) else checkpointing)
        except (InvalidConfig, InvalidDataflow, MissingExtra) as error:
            raise type(error)(f"{node.kind} {node.uid!r}: {error}") from error
