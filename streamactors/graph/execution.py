"""How a flow is executed: `streaming`, record by record for as long as there are any; or `batch`, over bounded input
(Flink: RuntimeExecutionMode). Pure.

In batch a stage takes its input in one of three ways, which its first step decides: as it comes; `sorted` by key, where
that step has state for keys; or `held` back until the side that every subtask gets all of has been read.
"""

from typing import Final, Literal

from streamactors.errors import InvalidConfig, InvalidDataflow
from streamactors.graph.logical import Broadcast, Keyed, LogicalGraph, Node, SourceSpec
from streamactors.graph.physical import Execution, PhysicalPlan, Vertex
from streamactors.operators.base import OperatorSpec

Asked = Literal["streaming", "batch", "auto"]
Intake = Literal["as it comes", "sorted", "held"]


def choose_execution(graph: LogicalGraph, asked: Asked, *, checkpointing: bool, restarts: bool = False) -> Execution:
    """`auto` is batch where every source is bounded and no checkpoints are asked for: who asks for them means to go on
    from the middle. Raises InvalidConfig for a source that has no end, InvalidDataflow for one that can be read only
    once, where a restart would read it again."""
    endless = [_named(node) for node in graph.nodes if _is_endless(node)]
    if asked == "streaming" or (asked == "auto" and (endless or checkpointing)):
        return "streaming"
    if endless:
        raise InvalidConfig(
            f"execution = 'batch' needs sources that end, and these do not: {', '.join(endless)}: bound them (such as "
            "KafkaSource(bounded=True), FileSource without follow), or use execution = 'streaming'"
        )
    _check_rewindable(graph, restarts=restarts)
    return "batch"


def why(graph: LogicalGraph, asked: Asked, *, checkpointing: bool) -> str:
    """Why `auto` has chosen what it has; empty where it was not asked."""
    if asked != "auto":
        return ""
    endless = [_named(node) for node in graph.nodes if _is_endless(node)]
    if endless:
        return f"auto: no end to {', '.join(endless)}"
    return "auto: checkpoints are asked for" if checkpointing else "auto: all sources are bounded"


def intake(plan: PhysicalPlan, vertex: Vertex) -> Intake:
    """How the subtasks of a vertex take their input."""
    spec = vertex.nodes[0].spec
    if plan.execution == "streaming" or not isinstance(spec, OperatorSpec):
        return "as it comes"
    entering = [edge for edge in plan.edges if edge.downstream == vertex.uid]
    if spec.keyed_state and any(isinstance(edge.partitioning, Keyed) for edge in entering):
        return "sorted"
    everywhere = {edge.side for edge in entering if isinstance(edge.partitioning, Broadcast)}
    others = {edge.side for edge in entering} - everywhere
    return "held" if everywhere and others else "as it comes"


TAKES_IN: Final[dict[Intake, str]] = {
    "as it comes": "",
    "sorted": "input sorted by key",
    "held": "input held back until the broadcast side is read",
}


def gathering_subtasks(plan: PhysicalPlan) -> int:
    """How many subtasks share the memory for sorting."""
    return sum(vertex.parallelism for vertex in plan.vertices if intake(plan, vertex) != "as it comes")


def _is_endless(node: Node) -> bool:
    return isinstance(node.spec, SourceSpec) and not node.spec.source.bounded


def _named(node: Node) -> str:
    assert isinstance(node.spec, SourceSpec)
    return f"source {node.uid!r} ({node.spec.source.describe()})"


def _check_rewindable(graph: LogicalGraph, *, restarts: bool) -> None:
    for node in graph.nodes:
        if restarts and isinstance(node.spec, SourceSpec) and not node.spec.source.rewindable:
            raise InvalidDataflow(
                f"{_named(node)} can't be rewound, and a restart in batch reads everything again: leave restart out, "
                "or read from a source that keeps its records (Kafka, files)"
            )
