"""What a manifest says about a checkpoint or savepoint, for people and programs. Pure; no state file is read."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from streamactors.checkpoint.manifest import EdgeKey, Manifest, NodeState, OperatorMeta
from streamactors.state.serialisation.schemas import Schema, describe

LISTS: Final = ("operator list", "union list")
BROADCAST: Final = "broadcast"


@dataclass(frozen=True, slots=True)
class GroupSize:
    """What one key group holds. `bytes` counts canonical blocks; of native files nobody can tell the groups apart."""

    entries: int
    bytes: int


@dataclass(frozen=True, slots=True)
class StateInfo:
    """One state of one operator. `entries`: keys; of list state without a key, and of broadcast state, its items over
    all subtasks. `groups`: by key group, without the empty ones; `subtasks`: items by subtask, of state without a key.
    """

    uid: str
    name: str
    kind: str
    schema: Schema
    entries: int
    bytes: int
    groups: Mapping[int, GroupSize] = field(default_factory=dict)
    subtasks: Mapping[int, int] = field(default_factory=dict)

    @property
    def keyed(self) -> bool:
        return self.kind not in (*LISTS, BROADCAST)

    @property
    def type(self) -> str:
        """What it holds, as a user would write it."""
        value = describe(self.schema["type"]) if "type" in self.schema else self.kind
        return f"{describe(self.schema['key'])} → {value}" if "key" in self.schema else value

    def largest_groups(self, count: int = 5) -> list[tuple[int, GroupSize]]:
        """The key groups with the most entries: a key that is too frequent shows here."""
        return sorted(self.groups.items(), key=lambda item: (-item[1].entries, item[0]))[:count]


@dataclass(frozen=True, slots=True)
class OperatorInfo:
    """`positions` by split; `pending`: a sink's transactions not known to be committed; `watermarks` by subtask, in
    milliseconds. `bytes`: of the files that hold its state. `named` False: its uid was made from its place."""

    uid: str
    kind: str
    parallelism: int
    max_parallelism: int
    named: bool
    bytes: int
    states: Mapping[str, StateInfo]
    positions: Mapping[str, Any]
    pending: tuple[Any, ...]
    watermarks: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class InFlightInfo:
    """What was in flight on one edge. `tag`: the side output that it carries; `side`: 1 for the second input of an
    operator with two; `ordinal`: among edges that are otherwise alike."""

    upstream: str
    downstream: str
    tag: str | None
    kind: str
    records: int
    bytes: int
    side: int = 0
    ordinal: int = 0


def operators_of(manifest: Manifest) -> dict[str, OperatorInfo]:
    """By uid."""
    return {meta.uid: _operator(manifest, meta) for meta in manifest.operators}


def _operator(manifest: Manifest, meta: OperatorMeta) -> OperatorInfo:
    nodes = {subtask.index: node for subtask, node in manifest.nodes(meta.uid)}
    return OperatorInfo(
        uid=meta.uid,
        kind=meta.kind,
        parallelism=meta.parallelism,
        max_parallelism=meta.max_parallelism,
        named=meta.named,
        bytes=_file_bytes(nodes.values()),
        states=_keyed_states(meta.uid, nodes) | _list_states(meta.uid, nodes),
        positions={split: position for node in nodes.values() for split, position in node.positions.items()},
        pending=tuple(pending for node in nodes.values() for pending in node.pending),
        watermarks={index: node.watermark for index, node in nodes.items() if node.watermark is not None},
    )


def _file_bytes(nodes: Iterable[NodeState]) -> int:
    """Part by part: a small file is packed with those of other operators."""
    parts: dict[tuple[str, int], int] = {}
    for node in nodes:
        for keyed in node.keyed:
            parts[keyed.file.path, keyed.file.start] = sum(block.length for block in keyed.blocks)
        for file in (file for native in node.native for file in native.files):
            parts[file.file.path, file.file.start + file.offset] = file.size
        if node.lists is not None:
            parts[node.lists.file.path, node.lists.file.start] = sum(ref.length for ref in node.lists.blocks)
    return sum(parts.values())


# ----------------------------------------------------------------------------------------------------------- its states
def _keyed_states(uid: str, nodes: Mapping[int, NodeState]) -> dict[str, StateInfo]:
    schemas = {name: schema for node in nodes.values() for name, schema in node.schemas.items()}
    groups: dict[str, dict[int, GroupSize]] = {name: {} for name in schemas}
    for node in nodes.values():
        for state, group, entries, size in _parts(node):
            before = groups[state].get(group, GroupSize(0, 0))
            groups[state][group] = GroupSize(before.entries + entries, before.bytes + size)
    return {name: _keyed_state(uid, name, schema, groups[name]) for name, schema in schemas.items()}


def _parts(node: NodeState) -> Iterable[tuple[str, int, int, int]]:
    """State, key group, entries and bytes."""
    for keyed in node.keyed:
        for ref in keyed.blocks:
            yield ref.state, ref.group, ref.entries, ref.length
    for native in node.native:
        for state, counts in native.entries.items():
            for group, entries in counts.items():
                yield state, group, entries, 0


def _keyed_state(uid: str, name: str, schema: Schema, groups: Mapping[int, GroupSize]) -> StateInfo:
    entries = sum(size.entries for size in groups.values())
    size = sum(group.bytes for group in groups.values())
    return StateInfo(uid, name, str(schema.get("kind")), schema, entries, size, dict(sorted(groups.items())))


def _list_states(uid: str, nodes: Mapping[int, NodeState]) -> dict[str, StateInfo]:
    schemas = {name: schema for node in nodes.values() for name, schema in node.list_schemas.items()}
    return {name: _list_state(uid, name, schema, nodes) for name, schema in schemas.items()}


def _list_state(uid: str, name: str, schema: Schema, nodes: Mapping[int, NodeState]) -> StateInfo:
    items: dict[int, int] = {}
    size = 0
    for index, node in sorted(nodes.items()):
        blocks = [ref for ref in node.lists.blocks if ref.state == name] if node.lists is not None else []
        size += sum(ref.length for ref in blocks)
        if blocks:
            items[index] = sum(ref.items for ref in blocks)
    return StateInfo(uid, name, str(schema.get("kind")), schema, sum(items.values()), size, subtasks=items)


# ------------------------------------------------------------------------------------------------------------ in flight
def in_flight_of(manifest: Manifest) -> list[InFlightInfo]:
    """By edge."""
    edges: dict[EdgeKey, tuple[str, int, int]] = {}
    for _, edge, frame in manifest.in_flight():
        kind, records, size = edges.get(edge.key, (edge.kind, 0, 0))
        edges[edge.key] = kind, records + frame.records, size + frame.length
    return [
        InFlightInfo(key.upstream, key.downstream, key.tag, kind, records, size, key.side, key.ordinal)
        for key, (kind, records, size) in edges.items()
    ]
