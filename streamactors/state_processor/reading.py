"""The blocks of keyed state, however they are stored: those of one key group and state together."""

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from itertools import groupby
from typing import Any, Final

from streamactors.checkpoint.manifest import BlockRef, KeyedHandle, NodeState
from streamactors.checkpoint.native_files import keyed_blocks
from streamactors.checkpoint.restorable import Restorable
from streamactors.clock import Clock
from streamactors.state.backend import StateBlock
from streamactors.state.descriptors import Declaration
from streamactors.state.key_groups import KeyGroupRange

READ_BYTES: Final = 1024 * 1024
"""About so much of a file is read at once."""

Part = tuple[KeyedHandle, BlockRef]
BlockLists = AsyncGenerator[list[StateBlock], None]


def block_lists(
    restorable: Restorable,
    node: NodeState,
    declarations: Mapping[str, Declaration],
    max_parallelism: int,
    clock: Clock,
    groups: KeyGroupRange | None = None,
) -> BlockLists:
    """Of one operator subtask, by key group and state; of the states that are declared, and of `groups` if given."""
    if not node.native:
        return canonical_block_lists(node.keyed, declarations, groups, restorable.read_blocks)
    blocks = keyed_blocks(restorable, node, declarations, max_parallelism, uid=node.uid, groups=groups, clock=clock)
    return _together(blocks)


async def canonical_block_lists(
    handles: Sequence[KeyedHandle],
    states: Mapping[str, Any],
    groups: KeyGroupRange | None,
    read: Callable[[KeyedHandle, Sequence[BlockRef]], Any],
) -> BlockLists:
    parts = [
        (handle, ref)
        for handle in handles
        for ref in handle.blocks
        if ref.state in states and (groups is None or ref.group in groups)
    ]
    for portion in _portions(sorted(parts, key=_place)):
        blocks: list[StateBlock] = []
        for _, of_file in groupby(portion, key=lambda part: id(part[0])):
            wanted = list(of_file)
            data = await read(wanted[0][0], [ref for _, ref in wanted])
            blocks += map(_block, wanted, data)
        for _, together in groupby(blocks, key=_place_of_block):
            yield list(together)


def _block(part: Part, data: bytes) -> StateBlock:
    _, ref = part
    return StateBlock(ref.state, ref.group, ref.entries, data)


def _place(part: Part) -> tuple[int, str]:
    return part[1].group, part[1].state


def _place_of_block(block: StateBlock) -> tuple[int, str]:
    return block.group, block.state


def _portions(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """What belongs together undivided, in all about READ_BYTES."""
    portion: list[Part] = []
    size = 0
    for _, together in groupby(parts, key=_place):
        portion += (added := list(together))
        size += sum(ref.length for _, ref in added)
        if size >= READ_BYTES:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


async def _together(blocks: AsyncGenerator[StateBlock, None]) -> BlockLists:
    """They come in the order of key groups and states."""
    waiting: list[StateBlock] = []
    async with aclosing(blocks):
        async for block in blocks:
            if waiting and _place_of_block(waiting[0]) != _place_of_block(block):
                yield waiting
                waiting = []
            waiting.append(block)
    if waiting:
        yield waiting
