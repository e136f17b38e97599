"""From a manifest to what each subtask starts from: a pure function.

Invariant: every piece of stored state reaches exactly one subtask of today's plan, whatever the parallelism then and
now: keyed state by key group, lists without a key as `restore_lists` deals them (a union list reaches every subtask),
positions by the source's own assignment, pending transactions by their old subtask
modulo the new parallelism (which is how a sink fences what an older attempt may have left open). What has nowhere to go
is refused by name.
"""

from collections.abc import Collection, Sequence
from typing import Any

from streamactors.checkpoint.manifest import Manifest, NativeHandle, NodeState, OperatorMeta
from streamactors.errors import IncompatibleState
from streamactors.graph.logical import SourceSpec
from streamactors.graph.physical import PhysicalPlan, SubtaskId, Vertex
from streamactors.runtime.messages import ListPiece, NodeRestore
from streamactors.runtime.restore_lists import deal_lists
from streamactors.runtime.restore_time import restored_time
from streamactors.state.key_groups import KeyGroupRange

Restores = dict[tuple[SubtaskId, str], NodeRestore]
"""By subtask and node uid."""


def plan_restore(manifest: Manifest, plan: PhysicalPlan, drop_state: Collection[str] = ()) -> Restores:
    """Raises IncompatibleState naming the operator and the remedy. `drop_state`: uids whose state may be given up."""
    stored = {operator.uid: operator for operator in manifest.operators}
    _check_known(manifest, plan, drop_state)
    restores: Restores = {}
    keyed = {node.uid for _, node in manifest.nodes() if node.keyed or node.native or node.schemas}
    for uid, operator in stored.items():
        if uid in plan.node:
            vertex, node = plan.node[uid]
            _check_same(operator, vertex, node.kind, keyed=uid in keyed)
            for id in vertex.subtasks():
                restores[id, uid] = _restore(manifest, plan, uid, vertex, id.index, dropped=uid in drop_state)
    return restores


def _check_known(manifest: Manifest, plan: PhysicalPlan, drop_state: Collection[str]) -> None:
    for _, node in manifest.nodes():
        if _holds_state(node) and node.uid not in plan.node and node.uid not in drop_state:
            raise IncompatibleState(
                f"{_unknown(manifest, plan, node.uid)}. If it was renamed, give it its old uid; to give its state up, "
                f"say so: drop_state=[{node.uid!r}] (--drop-state {node.uid})."
            )


def _unknown(manifest: Manifest, plan: PhysicalPlan, uid: str) -> str:
    if manifest.flow == plan.name:
        return f"the checkpoint holds state of operator {uid!r}, which the flow no longer has"
    return (
        f"the checkpoint is one of flow {manifest.flow!r}, and holds state of operator {uid!r}, which flow "
        f"{plan.name!r} does not have: perhaps another folder was meant"
    )


def _holds_state(node: NodeState) -> bool:
    return bool(node.keyed or node.native or node.lists or node.positions or node.pending)


def _check_same(stored: OperatorMeta, vertex: Vertex, kind: str, *, keyed: bool) -> None:
    if stored.kind != kind:
        raise IncompatibleState(
            f"operator {stored.uid!r} was a {stored.kind} when the checkpoint was taken, and is a {kind} now: "
            "give the new step another uid"
        )
    if keyed and stored.max_parallelism != vertex.max_parallelism:
        raise IncompatibleState(
            f"operator {stored.uid!r} has state in {stored.max_parallelism} key groups, but max_parallelism is "
            f"{vertex.max_parallelism} now: set max_parallelism={stored.max_parallelism} (or leave it out), since keys "
            "can't move to other key groups"
        )


def _restore(
    manifest: Manifest, plan: PhysicalPlan, uid: str, vertex: Vertex, index: int, *, dropped: bool
) -> NodeRestore:
    states = list(manifest.nodes(uid))
    groups = vertex.key_groups(index)
    blocks = tuple(
        (handle, refs)
        for _, node in states
        for handle in node.keyed
        if (refs := tuple(ref for ref in handle.blocks if ref.group in groups))
    )
    pending = tuple(
        transaction
        for subtask, node in states
        if subtask.index % vertex.parallelism == index
        for transaction in node.pending
    )
    schemas = {name: schema for _, node in states for name, schema in node.schemas.items()}
    return NodeRestore(
        blocks,
        schemas,
        _positions([node for _, node in states], vertex, index),
        pending,
        dropped,
        _lists(manifest, uid, vertex, index),
        {name: schema for _, node in states for name, schema in node.list_schemas.items()},
        restored_time(manifest, plan, uid, index),
        tuple(handle for _, node in states for handle in node.native if _groups_of(handle).intersect(groups)),
    )


def _groups_of(handle: NativeHandle) -> KeyGroupRange:
    return KeyGroupRange(handle.start, handle.stop)


def _lists(manifest: Manifest, uid: str, vertex: Vertex, index: int) -> tuple[ListPiece, ...]:
    before = manifest.operator(uid)
    assert before is not None
    handles = {subtask.index: node.lists for subtask, node in manifest.nodes(uid) if node.lists is not None}
    return deal_lists(handles, index, before.parallelism, vertex.parallelism)


def _positions(nodes: Sequence[NodeState], vertex: Vertex, index: int) -> dict[str, Any] | None:
    spec = vertex.nodes[0].spec
    if not isinstance(spec, SourceSpec):
        return None
    return {
        split: position
        for node in nodes
        for split, position in node.positions.items()
        if spec.source.assign(split, vertex.parallelism) == index
    }


def stored_max_parallelism(manifest: Manifest) -> int | None:
    """What was chosen once is kept."""
    return max((operator.max_parallelism for operator in manifest.operators), default=None)
