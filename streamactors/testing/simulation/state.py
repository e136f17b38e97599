"""The keyed state that the last checkpoint holds, for comparing it with a fold of the input."""

from typing import Any

from streamactors.checkpoint.restorable import Restorable
from streamactors.errors import InvalidConfig
from streamactors.graph.logical import LogicalGraph, Node
from streamactors.operators.process import ProcessSpec, ReduceSpec, reducer
from streamactors.state.backend import StateBlock
from streamactors.state.descriptors import declared_states
from streamactors.state.heap import HeapBackend
from streamactors.state.key_groups import KeyGroupRange

States = dict[str, dict[Any, Any]]
"""What each key holds, by the state's name."""


async def read_states(restorable: Restorable, graph: LogicalGraph) -> dict[str, States]:
    """By the operator's uid."""
    manifest = restorable.manifest
    groups = {operator.uid: operator.max_parallelism for operator in manifest.operators}
    return {
        node.uid: await _read(restorable, node, groups[node.uid])
        for node in graph.nodes
        if isinstance(node.spec, ProcessSpec | ReduceSpec) and node.spec.keyed_state
    }


async def _read(restorable: Restorable, node: Node, groups: int) -> States:
    backend = HeapBackend(KeyGroupRange(0, groups), groups, uid=node.uid)
    names = []
    for name, declaration in declared_states(_operator(node)).items():
        backend.bind(name, declaration)
        names.append(name)
    for _, state in restorable.manifest.nodes(node.uid):
        backend.check_schemas(state.schemas)
        for handle in state.keyed:
            blocks = zip(handle.blocks, await restorable.read_blocks(handle, handle.blocks), strict=True)
            backend.restore([StateBlock(ref.state, ref.group, ref.entries, data) for ref, data in blocks])
    states = {name: {key: value for _, key, value in backend.scan(name)} for name in names}
    backend.close()
    return states


def _operator(node: Node) -> Any:
    match node.spec:
        case ProcessSpec():
            return node.spec.factory()
        case ReduceSpec():
            return reducer(node.spec.fn, node.spec.element_type)()
    raise InvalidConfig(f"step {node.uid!r} keeps no state")
