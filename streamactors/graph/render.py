"""Both graphs as text, and the plan by worker: for a terminal, and as a Mermaid flowchart."""

import functools
import itertools
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from streamactors.graph.execution import TAKES_IN, intake
from streamactors.graph.logical import Edge, Forward, Keyed, LogicalGraph, Node, SourceSpec
from streamactors.graph.physical import ChannelId, Exit, PhysicalPlan, SubtaskId, Vertex, partitioning_name
from streamactors.graph.placement import Placement
from streamactors.operators.base import OperatorSpec
from streamactors.operators.process import ProcessSpec, ReduceSpec
from streamactors.operators.sink import SinkSpec
from streamactors.operators.stateless import FunctionSpec

_WIDTH = 100
_INDENT = " " * 6


# ------------------------------------------------------------------------------------------------------- for a terminal
def explain(graph: LogicalGraph, plan: PhysicalPlan, why: str = "", placement: Placement | None = None) -> str:
    """The logical graph, then the plan: chains, subtasks, channels, and the key groups of each subtask; and which
    worker runs which, where there are several. `why`: who has chosen how it is executed."""
    lines = [f"Dataflow {graph.name}", "", *_logical(graph), "", *_execution(plan, why), *_physical(plan)]
    lines += [] if placement is None else ["", *_placed(plan, placement)]
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


# -------------------------------------------------------------------------------------------------------------- workers
def _placed(plan: PhysicalPlan, placement: Placement) -> Iterator[str]:
    channels = sum(plan.channel_count(edge) for edge in plan.edges)
    crossing = sum(placement.crosses(channel) for channel in _channels(plan))
    workers = _count(placement.workers, "worker")
    slots = _count(placement.slots, "slot")
    between = f"{crossing} of {_count(channels, 'channel')} between them"
    yield f"Placement: {workers} ({placement.strategy}, {slots} each), {between}"
    for worker, slice in enumerate(placement.slices):
        text = f"  worker {worker}: {', '.join(map(_nonbreaking, _by_vertex(slice))) or 'nothing'}"
        lines = textwrap.wrap(text, _WIDTH, subsequent_indent=_INDENT * 2, break_on_hyphens=False)
        yield from (line.replace("\N{NO-BREAK SPACE}", " ") for line in lines)


def _channels(plan: PhysicalPlan) -> Iterator[ChannelId]:
    for number, edge in enumerate(plan.edges):
        for sender in plan.vertex[edge.upstream].subtasks():
            yield from plan.channels_out(number, sender)


def _by_vertex(slice: Iterable[SubtaskId]) -> list[str]:
    """Such as `totals[0-2, 5]`."""
    return [
        f"{vertex}[{_ranges([subtask.index for subtask in subtasks])}]"
        for vertex, subtasks in itertools.groupby(slice, key=lambda subtask: subtask.vertex)
    ]


def _ranges(indexes: Iterable[int]) -> str:
    """Of ascending numbers: neighbours as the first and the last."""
    runs: list[list[int]] = []
    for index in indexes:
        if runs and runs[-1][-1] == index - 1:
            runs[-1][1:] = [index]
        else:
            runs.append([index])
    return ", ".join("-".join(map(str, run)) for run in runs)


def _nonbreaking(text: str) -> str:
    return text.replace(" ", "\N{NO-BREAK SPACE}")


# ------------------------------------------------------------------------------------------------------------- Mermaid
def mermaid(graph: LogicalGraph) -> str:
    """A flowchart: sources are rounded, sinks are cylinders, side outputs are dotted."""
    lines = ["flowchart LR"]
    lines += [f"    n{node.id}{_shape(node)}" for node in graph.nodes]
    lines += [f"    n{edge.upstream} {_arrow(node, edge)} n{node.id}" for node in graph.nodes for edge in node.inputs]
    return "\n".join(lines) + "\n"


def placed_mermaid(plan: PhysicalPlan, placement: Placement) -> str:
    """A flowchart of the chains on each worker. Thick arrows lead from one worker to another."""
    lines = ["flowchart LR"]
    for worker, slice in enumerate(placement.slices):
        lines += [f'    subgraph w{worker}["worker {worker}"]', *_boxes(plan, worker, slice), "    end"]
    return "\n".join([*lines, *_between(plan, placement)]) + "\n"


def _boxes(plan: PhysicalPlan, worker: int, slice: Iterable[SubtaskId]) -> Iterator[str]:
    for uid, subtasks in itertools.groupby(slice, key=lambda subtask: subtask.vertex):
        indexes = [subtask.index for subtask in subtasks]
        what = "subtask" if len(indexes) == 1 else "subtasks"
        words = [plan.vertex[uid].name, f"{what} {_ranges(indexes)} of {plan.vertex[uid].parallelism}"]
        yield f'        {_box(plan, worker, uid)}["{"<br/>".join(map(_escaped, words))}"]'


def _box(plan: PhysicalPlan, worker: int, uid: str) -> str:
    return f"w{worker}n{plan.vertex[uid].nodes[0].id}"


def _between(plan: PhysicalPlan, placement: Placement) -> Iterator[str]:
    """One arrow for all channels from a chain on one worker to a chain on another, or on the same."""
    arrows: dict[tuple[int, str, int, str], Exit] = {}
    for channel in _channels(plan):
        workers = placement.worker_of(channel.sender), placement.worker_of(channel.receiver)
        arrows.setdefault(
            (workers[0], channel.sender.vertex, workers[1], channel.receiver.vertex), plan.edges[channel.edge]
        )
    for (sender, upstream, receiver, downstream), edge in arrows.items():
        line = "-->" if sender == receiver else "==>"
        label = "" if isinstance(edge.partitioning, Forward) else f"|{partitioning_name(edge.partitioning)}|"
        yield f"    {_box(plan, sender, upstream)} {line}{label} {_box(plan, receiver, downstream)}"


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
