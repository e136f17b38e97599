"""Which items of state without a key each subtask starts from: a pure function.

Invariant: of a state that is dealt out, every stored item reaches exactly one subtask; of a union, every subtask; of a
broadcast map, every subtask gets the copy of one old subtask, whose in-flight copies it gets as well. Items keep their
order: by their old subtask, then as they stood in its list. At the parallelism of before, each subtask has its own
again; at another, all are cut into contiguous runs whose lengths differ by one at most.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from streamactors.checkpoint.manifest import ListRef, ListsHandle
from streamactors.runtime.messages import ListPiece


class _Stored(NamedTuple):
    """A block, and the subtask that has left it."""

    owner: int
    handle: ListsHandle
    ref: ListRef


def deal_lists(handles: Mapping[int, ListsHandle], index: int, before: int, now: int) -> tuple[ListPiece, ...]:
    """For subtask `index` of `now`. `handles`: by subtask of `before`; one that has left no items may be missing."""
    return tuple(piece for blocks in _by_state(handles) for piece in _share(blocks, index, before, now))


def _by_state(handles: Mapping[int, ListsHandle]) -> Iterable[Sequence[_Stored]]:
    states: dict[str, list[_Stored]] = {}
    for owner, handle in sorted(handles.items()):
        for ref in handle.blocks:
            states.setdefault(ref.state, []).append(_Stored(owner, handle, ref))
    return states.values()


def _share(blocks: Sequence[_Stored], index: int, before: int, now: int) -> Iterator[ListPiece]:
    if any(block.ref.union for block in blocks):
        return _whole(blocks)
    if before == now or any(block.ref.broadcast for block in blocks):
        return _whole([block for block in blocks if block.owner == index % before])
    smallest, larger = divmod(sum(block.ref.items for block in blocks), now)
    first = index * smallest + min(index, larger)
    return _cut(blocks, first, first + smallest + (index < larger))


def _whole(blocks: Sequence[_Stored]) -> Iterator[ListPiece]:
    for block in blocks:
        yield ListPiece(block.handle, block.ref, 0, block.ref.items)


def _cut(blocks: Sequence[_Stored], first: int, last: int) -> Iterator[ListPiece]:
    """The items `first` to `last` of all."""
    at = 0
    for block in blocks:
        start, stop = max(first - at, 0), min(last - at, block.ref.items)
        if start < stop:
            yield ListPiece(block.handle, block.ref, start, stop)
        at += block.ref.items
