"""Which records of a flow are called by names (`ctx.record_id`), and whether they can be. Pure.

A step whose code asks for names needs them from all steps before it, up to the sources.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from streamactors.errors import InvalidDataflow
from streamactors.graph.logical import Broadcast, Edge, LogicalGraph, Node
from streamactors.operators.base import OperatorSpec
from streamactors.operators.two_inputs import BroadcastProcessSpec

_OWN_NAME: Final = (
    "if record_id in its code is a name of yours, such as a field of the records, say so by uses_record_id = False, an "
    "attribute of the class or function"
)


@dataclass(frozen=True, slots=True)
class RecordIds:
    """Uids. `taken`: of the steps whose input has names; `given`: of those, sources too, whose output has; `reunited`:
    of those that one record may come to by several edges, so that its name has to say which."""

    taken: frozenset[str] = frozenset()
    given: frozenset[str] = frozenset()
    reunited: frozenset[str] = frozenset()


def record_ids(graph: LogicalGraph) -> RecordIds:
    """Raises InvalidDataflow, naming the step, where a step asks for names that there can't be."""
    askers = _askers(graph)
    for node in graph.nodes:
        if node.id in askers:
            _check(graph, node, askers)
    given = {edge.upstream for id in askers for edge in _named(graph.nodes[id])}
    return RecordIds(_uids(graph, askers), _uids(graph, given), _uids(graph, _reunited(graph, askers)))


def _uids(graph: LogicalGraph, ids: Iterable[int]) -> frozenset[str]:
    return frozenset(graph.nodes[id].uid for id in ids)


def _askers(graph: LogicalGraph) -> dict[int, str]:
    """By step that takes names: the uid of one that asks for them, itself or behind it."""
    askers: dict[int, str] = {}
    for node in reversed(graph.nodes):
        if not isinstance(node.spec, OperatorSpec):
            continue
        behind = [askers[id] for id, edge in graph.consumers[node.id] if id in askers and _is_named(edge)]
        if node.spec.uses_record_id:
            askers[node.id] = node.uid
        elif behind:
            askers[node.id] = behind[0]
    return askers


def _is_named(edge: Edge) -> bool:
    return not isinstance(edge.partitioning, Broadcast)


def _has_rules(node: Node) -> bool:
    """Whether what it gets by broadcast is told apart from its records."""
    return isinstance(node.spec, BroadcastProcessSpec)


def _named(node: Node) -> Iterator[Edge]:
    return filter(_is_named, node.inputs)


def _check(graph: LogicalGraph, node: Node, askers: dict[int, str]) -> None:
    """That the steps right before it have names to give."""
    asker = askers[node.id]
    if not all(map(_is_named, node.inputs)) and not _has_rules(node):
        raise InvalidDataflow(
            f"step {asker!r} uses record_id, and {node.kind} {node.uid!r} gets its records by broadcast: each of its "
            "subtasks works on every record, under one name. Ask for record_id before the broadcast, or leave it out; "
            + _OWN_NAME
        )
    for edge in _named(node):
        before = graph.nodes[edge.upstream]
        if isinstance(before.spec, OperatorSpec) and not before.spec.keeps_record_ids:
            raise InvalidDataflow(
                f"step {asker!r} uses record_id, and {before.kind} {before.uid!r} before it emits what is not made of "
                "one record (windows, joins, patterns, rankings, timers and broadcast rules do), or can't be seen "
                "through (give the operator's class as its factory). Use record_id before that step, or a key of your "
                f"own: such as the key and the window's end; {_OWN_NAME}"
            )


def _reunited(graph: LogicalGraph, askers: Collection[int]) -> set[int]:
    """The steps that take names and have two edges behind one source."""
    sources: list[frozenset[int]] = []
    """By node: those that its records come from."""
    reunited = set()
    for node in graph.nodes:
        entering = [sources[edge.upstream] for edge in _named(node)]
        sources.append(frozenset({node.id}) if node.is_source else frozenset().union(*entering))
        if node.id in askers and sum(map(len, entering)) > len(sources[node.id]):
            reunited.add(node.id)
    return reunited
