"""Both graphs as text: for a terminal, and as a Mermaid flowchart."""

import functools
import textwrap
from collections.abc import Iterator
from typing import Any

from streamactors.graph.execution import TAKES_IN, intake
from streamactors.graph.logical import Edge, Forward, Keyed, LogicalGraph, Node, SourceSpec
from streamactors.graph.physical import Exit, PhysicalPlan, Vertex, partitioning_name
from streamactors.operators.base import OperatorSpec
from streamactors.operators.process import ProcessSpec, ReduceSpec
from streamactors.operators.sink import SinkSpec
from streamactors.operators.stateless import FunctionSpec

_WIDTH = 100
_INDENT = " " * 6


# ------------------------------------------------------------------------------------------------------- for a terminal
def explain(graph: LogicalGraph, plan: PhysicalPlan, why: str = "") -> str:
    """The logical graph, then the plan: chains, subtasks, channels, and the key groups of each subtask. `why`: who has
    chosen how it is executed."""
    lines = [f"Dataflow {graph.name}", "", *_logical(graph), "", *_execution(plan, why), *_physical(plan)]
    return "\n".join(lines) + "\n"


def _execution(plan: PhysicalPlan, why: str) -> list[str]:
    """Nothing where it is what nobody need ask for."""
    if plan.execution == "streaming" and not why:
        return []
    return [f"Execution: {plan.execution}" + (f" ({why})" if why else ""), ""]


def _logical(graph: LogicalGraph) -> Iterator[str]:
    yield "Logical graph"
    rows = [(node.uid, node.kind, _detail(node), _inputs(graph, node)) for node in graph.nodes]
    widths = [max(len(row[column]) for row in rows) for column in range(3)] if rows else []
    for row in rows:
        columns = [text.ljust(width) for text, width in zip(row, widths, strict=False)]
        yield "  " + "  ".join([*columns, row[3]]).rstrip()


def _inputs(graph: LogicalGraph, node: Node) -> str:
    return "".join(f"← {_origin(graph, edge)} ({_entering(node, edge)})  " for edge in node.inputs)


def _entering(node: Node, edge: Edge) -> str:
    return ", ".join([*_input_name(node, edge), partitioning_name(edge.partitioning)])


def _input_name(node: Node, edge: Edge | Exit) -> tuple[str, ...]:
    """Of a node with two."""
    return node.spec.inputs[edge.side : edge.side + 1] if isinstance(node.spec, OperatorSpec) else ()


def _origin(graph: LogicalGraph, edge: Edge) -> str:
    return graph.nodes[edge.upstream].uid + (f".{edge.tag}" if edge.tag else "")


def _physical(plan: PhysicalPlan) -> Iterator[str]:
    channels = sum(plan.channel_count(edge) for edge in plan.edges)
    counts = [_count(len(plan.vertices), "chain"), _count(len(plan.subtasks), "subtask"), _count(channels, "channel")]
    groups = plan.vertices[0].max_parallelism
    yield f"Physical plan: {', '.join(counts)}, {_count(groups, 'key group')} (max parallelism)"
    for vertex in plan.vertices:
        taken = TAKES_IN[intake(plan, vertex)]
        subtasks = _count(vertex.parallelism, "subtask") + (f", {taken}" if taken else "")
        yield f"  [{' → '.join(node.uid for node in vertex.nodes)}]  {subtasks}"
        if _has_keys(plan, vertex):
            yield from _key_groups(vertex)
        yield from _exits(plan, vertex)


def _key_groups(vertex: Vertex) -> list[str]:
    ranges = [f"{subtask}\N{NO-BREAK SPACE}{vertex.key_groups(subtask.index)}" for subtask in vertex.subtasks()]
    text = f"{_INDENT}key groups: {', '.join(ranges)}"
    lines = textwrap.wrap(text, _WIDTH, subsequent_indent=_INDENT * 3)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def _has_keys(plan: PhysicalPlan, vertex: Vertex) -> bool:
    return any(edge.downstream == vertex.uid and isinstance(edge.partitioning, Keyed) for edge in plan.edges)


def _exits(plan: PhysicalPlan, vertex: Vertex) -> Iterator[str]:
    for edge in plan.edges:
        if edge.upstream == vertex.uid:
            leaves = vertex.nodes[edge.link].uid + (f".{edge.tag}" if edge.tag else "")
            enters = plan.vertex[edge.downstream]
            channels = _count(plan.channel_count(edge), "channel")
            name = ", ".join([*_input_name(enters.nodes[0], edge), partitioning_name(edge.partitioning)])
            yield f"      {leaves} → {enters.uid}: {name}, {vertex.parallelism} to {enters.parallelism}, {channels}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


# ------------------------------------------------------------------------------------------------------------- Mermaid
def mermaid(graph: LogicalGraph) -> str:
    """A flowchart: sources are rounded, sinks are cylinders, side outputs are dotted."""
    lines = ["flowchart LR"]
    lines += [f"    n{node.id}{_shape(node)}" for node in graph.nodes]
    lines += [f"    n{edge.upstream} {_arrow(node, edge)} n{node.id}" for node in graph.nodes for edge in node.inputs]
    return "\n".join(lines) + "\n"


def _shape(node: Node) -> str:
    opening, closing = ("([", "])") if node.is_source else ("[(", ")]") if node.kind == "sink" else ("[", "]")
    words = [node.name, *([] if node.name == node.uid else [node.uid]), _made_of(node.spec) or node.kind]
    return f'{opening}"{"<br/>".join(map(_escaped, words))}"{closing}'


def _arrow(node: Node, edge: Edge) -> str:
    plain = isinstance(edge.partitioning, Forward)
    labels = [*([edge.tag] if edge.tag else []), *_input_name(node, edge)]
    labels += [] if plain else [partitioning_name(edge.partitioning)]
    line = "-.->" if edge.tag else "-->"
    return f'{line}|"{_escaped(" / ".join(labels))}"|' if labels else line


def _escaped(text: str) -> str:
    """As Mermaid's entity codes, which have no ampersand."""
    return "".join(char if char.isalnum() or char in " _-.,:=+*/()[]" else f"#{ord(char)};" for char in text)


# ------------------------------------------------------------------------------------------------------------- details
def _detail(node: Node) -> str:
    """What the user gave the step: connector, operator, function; and the name, if it has one of its own."""
    named = "" if node.name == node.uid else f"named {node.name!r}"
    return ", ".join(filter(None, [_made_of(node.spec), named]))


def _made_of(spec: Any) -> str:
    match spec:
        case SourceSpec(source=source):
            return source.describe()
        case SinkSpec(sink=sink):
            return sink.describe()
        case ProcessSpec(factory=made) | ReduceSpec(fn=made) | FunctionSpec(fn=made):
            return _name_of(made)
    return ""


def _name_of(made: Any) -> str:
    while isinstance(made, functools.partial):
        made = made.func
    name: str = getattr(made, "__name__", type(made).__name__)
    return "lambda" if name == "<lambda>" else name
