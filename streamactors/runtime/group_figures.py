"""How unevenly the state of one operator is spread over key groups: for people, nothing is decided by it.

Made of what a checkpoint has stored, and never of live state. Invariants: what is kept is bounded, however many key
groups there are (`BUCKETS` ranges of them, and the single groups that hold most); the loop is never held for longer
than a slice of blocks.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeVar

from streamactors.checkpoint.manifest import NodeState

T = TypeVar("T")
Turn = Callable[[], Awaitable[None]]

BUCKETS: Final = 64
SLICE: Final = 1000


@dataclass(frozen=True, slots=True)
class GroupFigures:
    """One operator in one subtask, of `max_parallelism` key groups in all. `entries` (keys) and `sizes` (bytes) are by
    bucket, from bucket `first` on; `fullest` and `largest`: the single key groups that have most of them, and how much.
    Files in the format of a state backend tell no bytes by key group: then there are no `sizes`."""

    uid: str
    max_parallelism: int
    first: int
    entries: tuple[int, ...]
    fullest: tuple[int, int]
    sizes: tuple[int, ...] = ()
    largest: tuple[int, int] | None = None


def buckets_of(max_parallelism: int) -> int:
    return min(BUCKETS, max_parallelism)


def bucket_of(group: int, max_parallelism: int) -> int:
    return group * buckets_of(max_parallelism) // max_parallelism


def bounds_of(bucket: int, max_parallelism: int) -> tuple[int, int]:
    """The first and the last key group in it."""
    buckets = buckets_of(max_parallelism)
    return -(-bucket * max_parallelism // buckets), -(-(bucket + 1) * max_parallelism // buckets) - 1


async def spread_over_groups(nodes: Iterable[NodeState], max_parallelism: int, turn: Turn) -> tuple[GroupFigures, ...]:
    """Of those that hold keyed state."""
    found = [await _figures(node, max_parallelism, turn) for node in nodes if node.keyed or node.native]
    return tuple(figures for figures in found if figures is not None)


async def _figures(node: NodeState, max_parallelism: int, turn: Turn) -> GroupFigures | None:
    entries, sizes = Counter[int](), Counter[int]()
    for number, some in enumerate(_slices(_blocks(node))):
        if number:
            await turn()
        for group, count, size in some:
            entries[group] += count
            sizes[group] += size
    if not entries:
        return None
    first, last = (bucket_of(group, max_parallelism) for group in (min(entries), max(entries)))
    by_size = () if node.native else _by_bucket(sizes, first, last, max_parallelism)
    largest = None if node.native else _most(sizes)
    by_entries = _by_bucket(entries, first, last, max_parallelism)
    return GroupFigures(node.uid, max_parallelism, first, by_entries, _most(entries), by_size, largest)


def _blocks(node: NodeState) -> Iterator[tuple[int, int, int]]:
    """Key group, entries, bytes."""
    for handle in node.keyed:
        for block in handle.blocks:
            yield block.group, block.entries, block.length
    for native in node.native:
        for groups in native.entries.values():
            for group, entries in groups.items():
                yield group, entries, 0


def _by_bucket(amounts: Mapping[int, int], first: int, last: int, max_parallelism: int) -> tuple[int, ...]:
    buckets = [0] * (last - first + 1)
    for group, amount in amounts.items():
        buckets[bucket_of(group, max_parallelism) - first] += amount
    return tuple(buckets)


def _most(amounts: Mapping[int, int]) -> tuple[int, int]:
    """The group of the lowest number, of several."""
    group = min(amounts, key=lambda group: (-amounts[group], group))
    return group, amounts[group]


def _slices(items: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while some := list(islice(rest, SLICE)):
        yield some
