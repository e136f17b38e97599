"""From a manifest to where event time stands at each node of each subtask: pure functions.

Invariant (rule 7 of the barrier protocols): no record becomes late that would not have been. A subtask starts from the
least watermark of those that it takes over; key groups that had come further are so still. Without keys nobody can tell
whose a record would have been: then the least one of all old subtasks, unless the parallelism is what it was.
"""

from streamactors.checkpoint.manifest import ChannelTime, EdgeKey, Manifest, NodeState, OperatorMeta, SubtaskState
from streamactors.elements import MIN_TIME
from streamactors.graph.logical import Node, SourceSpec
from streamactors.graph.physical import PhysicalPlan, Vertex
from streamactors.runtime.event_time import LaneStart, NodeTime
from streamactors.state.key_groups import subtask_range
from streamactors.time.progress import GroupTimes

_Stored = list[tuple[SubtaskState, NodeState]]


def restored_time(manifest: Manifest, plan: PhysicalPlan, uid: str, index: int) -> NodeTime:
    """Of subtask `index` of node `uid`, which the manifest and the plan both have."""
    vertex, node = plan.node[uid]
    before = manifest.operator(uid)
    stored = list(manifest.nodes(uid))
    if before is None or not any(state.watermark is not None for _, state in stored):
        return NodeTime()
    # Known by its place alone, it may be another step by now; its upstream steps tell it again.
    if not before.named and not same_steps(manifest, plan):
        return NodeTime()
    if isinstance(node.spec, SourceSpec):
        return _of_source(before, stored, vertex, node.spec, index)
    if (before.parallelism, before.max_parallelism) == (vertex.parallelism, vertex.max_parallelism):
        return _as_it_was(manifest, plan, stored, index, uid)
    if takes_over_groups(before, vertex, node):
        return _by_groups(before, stored, vertex, index)
    return NodeTime(_least(stored))


def takes_over_groups(before: OperatorMeta, vertex: Vertex, node: Node) -> bool:
    """Whether event time is that of key groups, after a rescale."""
    keyed = not isinstance(node.spec, SourceSpec) and node.spec.keyed_state
    return keyed and before.max_parallelism == vertex.max_parallelism


def overlap(before: OperatorMeta, old: int, vertex: Vertex, index: int) -> range:
    """The key groups of old subtask `old` that subtask `index` has now."""
    then, now = subtask_range(old, before.parallelism, before.max_parallelism), vertex.key_groups(index)
    return range(max(then.start, now.start), min(then.stop, now.stop))


def _as_it_was(manifest: Manifest, plan: PhysicalPlan, stored: _Stored, index: int, uid: str) -> NodeTime:
    for subtask, state in stored:
        if subtask.index == index:
            channels = _channels(subtask, uid)
            idle = bool(channels) and all(channel.idle or channel.ended for channel in channels)
            idle = idle and not state.splits  # one that gives time itself becomes idle anew
            kept = frozenset(channel.edge for channel in channels if _same_senders(manifest, plan, channel.edge))
            return NodeTime(_time(state), _ahead(state), idle, {index: LaneStart(channels)}, kept, state.splits)
    return NodeTime()


def _same_senders(manifest: Manifest, plan: PhysicalPlan, edge: EdgeKey) -> bool:
    before = manifest.operator(edge.upstream)
    if before is None or edge.upstream not in plan.node:
        return False
    known = before.named or same_steps(manifest, plan)
    return known and plan.node[edge.upstream][0].parallelism == before.parallelism


def _by_groups(before: OperatorMeta, stored: _Stored, vertex: Vertex, index: int) -> NodeTime:
    current: list[int] = []
    ahead: list[tuple[int, int, int]] = []
    lanes: dict[int, LaneStart] = {}
    for subtask, state in stored:
        if groups := overlap(before, subtask.index, vertex, index):
            current.append(_time(state))
            ahead += [(groups[0], groups[-1], _time(state)), *_ahead(state)]
            lanes[subtask.index] = LaneStart(_channels(subtask, before.uid), (groups[0], groups[-1]))
    return NodeTime(min(current, default=MIN_TIME), tuple(ahead), lanes=lanes)


def _of_source(before: OperatorMeta, stored: _Stored, vertex: Vertex, spec: SourceSpec, index: int) -> NodeTime:
    splits = {
        split: time
        for _, state in stored
        for split, time in state.splits.items()
        if spec.source.assign(split, vertex.parallelism) == index
    }
    same = before.parallelism == vertex.parallelism
    own = [item for item in stored if item[0].index == index] if same else stored
    return NodeTime(_least(own), splits=splits)


def _least(stored: _Stored) -> int:
    return min((_time(state) for _, state in stored), default=MIN_TIME)


def _time(state: NodeState) -> int:
    return MIN_TIME if state.watermark is None else state.watermark


def _ahead(state: NodeState) -> GroupTimes:
    return tuple((part.first, part.last, part.watermark) for part in state.ahead)


def _channels(subtask: SubtaskState, uid: str) -> tuple[ChannelTime, ...]:
    return tuple(channel for channel in subtask.channels if channel.edge.downstream == uid)


def same_steps(manifest: Manifest, plan: PhysicalPlan) -> bool:
    """Whether the flow has the steps that it had, so that those without a uid are found by their place."""
    then = {(operator.uid, operator.kind) for operator in manifest.operators}
    return then == {(uid, node.kind) for uid, (_, node) in plan.node.items()}
