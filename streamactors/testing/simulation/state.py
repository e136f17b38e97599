"""The state that the last checkpoint holds, for comparing it with a fold of the input."""

import contextlib
from collections import defaultdict
from typing import Any

from streamactors.checkpoint.manifest import NodeState
from streamactors.checkpoint.native_files import keyed_blocks
from streamactors.checkpoint.restorable import Restorable
from streamactors.clock import Clock
from streamactors.errors import InvalidConfig
from streamactors.graph.logical import LogicalGraph, Node
from streamactors.operators.joins.base import JoinSpec
from streamactors.operators.patterns.operator import PatternSpec
from streamactors.operators.process import ProcessSpec, ReduceSpec, reducer
from streamactors.operators.windows.spec import WindowSpec
from streamactors.state.broadcast import BroadcastState
from streamactors.state.descriptors import Declaration, declared_states
from streamactors.state.heap.backend import HeapBackend
from streamactors.state.key_groups import KeyGroupRange
from streamactors.state.operator_lists import OperatorLists
from streamactors.state.unkeyed import ListBlock

States = dict[str, dict[Any, Any]]
"""By the state's name: what each key holds; of state without a key, what each subtask holds."""


async def read_states(restorable: Restorable, graph: LogicalGraph, clock: Clock) -> dict[str, States]:
    """By the operator's uid."""
    groups = {operator.uid: operator.max_parallelism for operator in restorable.manifest.operators}
    found: dict[str, States] = {}
    for node in graph.nodes:
        if isinstance(node.spec, ProcessSpec | ReduceSpec | JoinSpec | PatternSpec | WindowSpec):
            declared = node.spec.states() if isinstance(node.spec, WindowSpec) else declared_states(_operator(node))
            keyed = {name: declaration for name, declaration in declared.items() if declaration.keyed}
            lists = {name: declaration for name, declaration in declared.items() if not declaration.keyed}
            found[node.uid] = {
                **await _read_keyed(restorable, node.uid, keyed, groups[node.uid], clock),
                **await _read_lists(restorable, node.uid, lists),
            }
    return found


async def _read_keyed(
    restorable: Restorable, uid: str, declared: dict[str, Declaration], groups: int, clock: Clock
) -> States:
    backend = HeapBackend(KeyGroupRange(0, groups), groups, uid=uid, clock=clock)
    for name, declaration in declared.items():
        backend.bind(name, declaration)
    for _, state in restorable.manifest.nodes(uid):
        backend.check_schemas(state.schemas, allow_dropped=True)  # timers are no declared state
        blocks = keyed_blocks(restorable, state, declared, groups, uid=uid, clock=clock)
        async with contextlib.aclosing(blocks):
            async for block in blocks:
                backend.restore([block])
    states = {name: {key: value for _, key, value in backend.scan(name)} for name in declared}
    backend.close()
    return states


async def _read_lists(restorable: Restorable, uid: str, declared: dict[str, Declaration]) -> States:
    found: defaultdict[str, dict[int, Any]] = defaultdict(dict)
    for subtask, state in restorable.manifest.nodes(uid) if declared else ():
        lists = OperatorLists(uid)
        bound: dict[str, Any] = {name: lists.bind(name, declaration) for name, declaration in declared.items()}
        for block in await _list_blocks(restorable, state):
            lists.restore(block, 0, block.items)
        for name, items in bound.items():
            found[name][subtask.index] = dict(items) if isinstance(items, BroadcastState) else list(items)
        lists.close()
    return dict(found)


async def _list_blocks(restorable: Restorable, state: NodeState) -> list[ListBlock]:
    if state.lists is None:
        return []
    refs = state.lists.blocks
    blocks = zip(refs, await restorable.read_lists(state.lists, refs), strict=True)
    return [ListBlock(ref.state, ref.union, ref.items, data, ref.broadcast) for ref, data in blocks]


def _operator(node: Node) -> Any:
    match node.spec:
        case ProcessSpec():
            return node.spec.factory()
        case ReduceSpec():
            return reducer(node.spec.fn, node.spec.element_type)()
        case JoinSpec() | PatternSpec():
            return node.spec.operator()
    raise InvalidConfig(f"step {node.uid!r} keeps no state")
