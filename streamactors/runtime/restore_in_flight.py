"""From a manifest to the in-flight records that each subtask gets back: a pure function.

Invariants. Every stored record reaches exactly one subtask of today's plan (on a broadcast edge, and behind it up to
the next exchange: each of today's subtasks gets one old subtask's copies), whatever the parallelism then and now; what
has nowhere to go is refused by name. Records of one old channel that reach the same subtask do so in their old order:
what lay with the receiver, then what its senders had not sent.

Where the receiving step's parallelism is what it was, everything goes back to where it lay. Else: keyed edges by stored
key group; forward edges by the key group that travelled with the records, or between a source and the first exchange by
their split, or behind a broadcast as this one, or else by old index in contiguous blocks; rebalance, now or then, in
turn.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from streamactors.checkpoint.manifest import (
    EdgeKey,
    EdgeKind,
    FrameRef,
    InFlightEdge,
    InFlightHandle,
    Manifest,
    OperatorMeta,
)
from streamactors.errors import IncompatibleState
from streamactors.graph.edges import PlanEdge, edge_keys
from streamactors.graph.logical import Broadcast, Forward, SourceSpec
from streamactors.graph.physical import PhysicalPlan, SubtaskId, Vertex
from streamactors.runtime.backlog import All, Backlog, BacklogFrame, EveryNth, OfGroups, Pick
from streamactors.runtime.restore_time import overlap, same_steps, takes_over_groups
from streamactors.state.key_groups import subtask_of, subtask_range

Backlogs = dict[SubtaskId, Backlog]
"""Of the subtasks that have one."""


def plan_backlogs(manifest: Manifest, plan: PhysicalPlan, drop_state: Collection[str] = ()) -> Backlogs:
    """Raises IncompatibleState naming the edge and the remedy. `drop_state`: uids whose state may be given up, and so
    may be records in flight to or from them that have nowhere to go."""
    stored = _in_order(manifest)
    targets = _Targets(manifest, plan, stored, drop_state).by_edge
    told = _Told(manifest, plan)
    copied = _copied(plan)
    owners = {key: _owners(target, plan, copied) for key, target in targets.items()}
    backlogs: dict[SubtaskId, list[BacklogFrame]] = {}
    for handle, edge, ref in stored:
        if edge.key in targets:
            today = targets[edge.key].today
            for index, pick in owners[edge.key](ref) if ref.records else told.owners(today, ref):
                frame = BacklogFrame(handle, ref, today, pick)
                backlogs.setdefault(SubtaskId(today.vertex, index), []).append(frame)
    return {subtask: tuple(sorted(frames, key=_deepest_first)) for subtask, frames in backlogs.items()}


_Stored = tuple[InFlightHandle, InFlightEdge, FrameRef]


def _in_order(manifest: Manifest) -> list[_Stored]:
    """By old receiver: what lay with it, then what lay with each of its senders; otherwise as listed."""

    def place(stored: _Stored) -> tuple[int, bool, int]:
        _, _, ref = stored
        return ref.receiver, ref.unsent, ref.sender if ref.unsent else 0

    return sorted(manifest.in_flight(), key=place)


def _deepest_first(frame: BacklogFrame) -> int:
    return -frame.edge.place


# ------------------------------------------------------------------------------------------------- from edges to edges
@dataclass(frozen=True, slots=True)
class _Target:
    """Where the records of an edge go: `kind` and `before` (parallelism of the receiving operator) are as stored."""

    kind: EdgeKind
    today: PlanEdge
    before: int
    vertex: Vertex

    @property
    def groups(self) -> int:
        return self.vertex.max_parallelism

    @property
    def after(self) -> int:
        return self.vertex.parallelism


class _Targets:
    """Today's place of every edge that holds data. Without those that are given up."""

    def __init__(
        self, manifest: Manifest, plan: PhysicalPlan, stored: Iterable[_Stored], drop_state: Collection[str]
    ) -> None:
        self._manifest = manifest
        self._plan = plan
        self._today = edge_keys(plan).by_key
        self._records: dict[EdgeKey, int] = {}
        self._grouped: set[EdgeKey] = set()
        edges: dict[EdgeKey, InFlightEdge] = {}
        for _, edge, ref in stored:
            edges[edge.key] = edge
            self._records[edge.key] = self._records.get(edge.key, 0) + ref.records
            if ref.groups is not None:
                self._grouped.add(edge.key)
        self._same_steps = same_steps(manifest, plan)
        self.by_edge: dict[EdgeKey, _Target] = {}
        for key, edge in edges.items():
            try:
                self.by_edge[key] = self._target(edge)
            except IncompatibleState:
                # Nobody misses a watermark that has nowhere to go.
                if self._records[key] and key.upstream not in drop_state and key.downstream not in drop_state:
                    raise

    def _target(self, edge: InFlightEdge) -> _Target:
        key = edge.key
        self._check_places(key)
        today = self._today.get(key)
        if today is None:
            raise self._refused(key, "which the flow no longer has")
        if today.kind != edge.kind and not {today.kind, edge.kind} <= {"forward", "rebalance"}:
            raise self._refused(key, f"which was {_WORDS[edge.kind]} and is {_WORDS[today.kind]} now")
        receiver, vertex = self._operator(key.downstream), self._plan.vertex[today.vertex]
        by_group = key in self._grouped and {today.kind, edge.kind} <= {"keyed", "forward"}
        if by_group and receiver.max_parallelism != vertex.max_parallelism:
            raise self._refused(
                key,
                f"in {receiver.max_parallelism} key groups, but max_parallelism is {vertex.max_parallelism} now: set "
                f"max_parallelism={receiver.max_parallelism} (or leave it out)",
            )
        return _Target(edge.kind, today, receiver.parallelism, vertex)

    def _check_places(self, key: EdgeKey) -> None:
        """A step without a uid is known by its place alone, where another step may be by now."""
        unnamed = [uid for uid in (key.upstream, key.downstream) if not self._operator(uid).named]
        if unnamed and not self._same_steps:
            raise self._refused(
                key,
                f"where {' and '.join(map(repr, unnamed))} is a step without a uid, known by its place in the flow "
                "alone; and the flow has other steps now, so that the records could reach another step",
            )

    def _operator(self, uid: str) -> OperatorMeta:
        operator = self._manifest.operator(uid)
        assert operator is not None, "checked when the manifest was read"
        return operator

    def _refused(self, key: EdgeKey, why: str) -> IncompatibleState:
        return IncompatibleState(
            f"the checkpoint holds {self._records[key]} records in flight on the edge {key}, {why}. Run the flow as it "
            "was once more and take a savepoint (it holds nothing in flight but the inputs of calls), or let it "
            "finish, and then change it; "
            f"to give these records up, say so: drop_state=[{key.downstream!r}] (--drop-state {key.downstream})."
        )


_WORDS: dict[EdgeKind, str] = {
    "forward": "forward",
    "rebalance": "a rebalance",
    "broadcast": "a broadcast",
    "keyed": "a key_by",
}


# ------------------------------------------------------------------------------------------ from subtasks to subtasks
Owners = Callable[[FrameRef], Iterable[tuple[int, Pick]]]
"""The subtasks (by index) that get records of a frame. Called for the frames of one edge in their order."""


def _owners(target: _Target, plan: PhysicalPlan, copied: Collection[str]) -> Owners:
    before, after = target.before, target.after
    copies = target.kind == target.today.kind == "forward" and target.today.key.upstream in copied
    if target.kind == "broadcast" or copies:
        return lambda ref: [(index, All()) for index in range(ref.receiver, after, before)]
    if before == after:
        return lambda ref: [(ref.receiver, All())]
    if target.kind == "rebalance" or target.today.kind == "rebalance":
        return _InTurn(after)
    return lambda ref: _by_group(ref, ref.groups, target) if ref.groups else [(_by_split(ref, target, plan), All())]


def _copied(plan: PhysicalPlan) -> set[str]:
    """The uids of the nodes each of whose subtasks gets all records: behind a broadcast, up to the next exchange."""
    found: set[str] = set()
    for vertex in plan.vertices:  # in topological order
        entering = [edge for edge in plan.edges if edge.downstream == vertex.uid]
        if entering and all(
            isinstance(edge.partitioning, Broadcast)
            or (isinstance(edge.partitioning, Forward) and plan.vertex[edge.upstream].nodes[edge.link].uid in found)
            for edge in entering
        ):
            found.update(node.uid for node in vertex.nodes)
    return found


class _Told:
    """Watermarks tell the subtasks that take over the one with which they lay, where that can be told."""

    def __init__(self, manifest: Manifest, plan: PhysicalPlan) -> None:
        self._manifest = manifest
        self._plan = plan

    def owners(self, edge: PlanEdge, ref: FrameRef) -> list[tuple[int, Pick]]:
        vertex, node = self._plan.node[edge.key.downstream]
        before = self._manifest.operator(edge.key.downstream)
        assert before is not None, "checked when the manifest was read"
        if (before.parallelism, before.max_parallelism) == (vertex.parallelism, vertex.max_parallelism):
            return [(ref.receiver, All())]
        if not takes_over_groups(before, vertex, node):
            return []
        return [(index, All()) for index in range(vertex.parallelism) if overlap(before, ref.receiver, vertex, index)]


def _by_split(ref: FrameRef, target: _Target, plan: PhysicalPlan) -> int:
    """Between a source and the first exchange: where the rest of the split is read from now on, or it would overtake
    these; else by old index."""
    if ref.home is not None and ref.home[0] in plan.node:
        uid, split = ref.home
        vertex, node = plan.node[uid]
        if isinstance(node.spec, SourceSpec) and vertex.parallelism == target.after:
            return node.spec.source.assign(split, vertex.parallelism)
    return ref.receiver * target.after // target.before


class _InTurn:
    def __init__(self, parallelism: int) -> None:
        self._parallelism = parallelism
        self._next = 0

    def __call__(self, ref: FrameRef) -> list[tuple[int, Pick]]:
        width, start = self._parallelism, self._next
        self._next = (start + ref.records) % width
        return [((start + k) % width, EveryNth(k, width)) for k in range(min(width, ref.records))]


def _by_group(ref: FrameRef, span: tuple[int, int], target: _Target) -> Iterator[tuple[int, Pick]]:
    lowest, highest = span
    first, last = (subtask_of(group, target.after, target.groups) for group in span)
    for index in range(first, last + 1):
        own = subtask_range(index, target.after, target.groups)
        whole = lowest in own and highest in own
        yield index, All() if whole else OfGroups(own)
