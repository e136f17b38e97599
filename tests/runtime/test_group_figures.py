"""How state is spread over key groups, out of what a checkpoint has stored."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamactors.checkpoint.manifest import BlockRef, FileHandle, KeyedHandle, NativeHandle, NodeState
from streamactors.runtime.group_figures import (
    BUCKETS,
    SLICE,
    GroupFigures,
    bounds_of,
    bucket_of,
    buckets_of,
    spread_over_groups,
)

FILE = FileHandle("file", 10**9, b"")


def stored(uid: str, *blocks: tuple[str, int, int, int]) -> NodeState:
    """As state, key group, entries, bytes."""
    refs = tuple(BlockRef(state, group, entries, 0, size) for state, group, entries, size in blocks)
    return NodeState(uid, keyed=(KeyedHandle(FILE, refs[::2]), KeyedHandle(FILE, refs[1::2])))


class Turns:
    def __init__(self) -> None:
        self.taken = 0

    async def __call__(self) -> None:
        self.taken += 1


async def of(node: NodeState, max_parallelism: int = 128) -> GroupFigures:
    (figures,) = await spread_over_groups([node, NodeState("without")], max_parallelism, Turns())
    return figures


@given(st.integers(1, 32768), st.data())
def test_each_group_is_in_one_bucket(max_parallelism: int, data: st.DataObject) -> None:
    group = data.draw(st.integers(0, max_parallelism - 1))
    bucket = bucket_of(group, max_parallelism)
    first, last = bounds_of(bucket, max_parallelism)
    assert 0 <= bucket < buckets_of(max_parallelism) <= BUCKETS and first <= group <= last
    assert first == 0 or bucket_of(first - 1, max_parallelism) == bucket - 1
    assert (last == max_parallelism - 1) == (bucket == buckets_of(max_parallelism) - 1)


async def test_states_of_a_group_count_together() -> None:
    node = stored("sum", ("a", 64, 1, 10), ("b", 64, 2, 30), ("a", 65, 4, 5), ("a", 68, 4, 41), ("b", 127, 1, 1))
    assert await of(node) == GroupFigures(
        "sum", 128, 32, (7, 0, 4, *[0] * 28, 1), (65, 4), (45, 0, 41, *[0] * 28, 1), (68, 41)
    )


async def test_files_of_a_backend_tell_keys_only() -> None:
    node = NodeState("sum", native=(NativeHandle("rocksdb", 0, 64, (), {"a": {3: 5, 4: 2}, "b": {4: 2}}),))
    figures = await of(node)
    assert (figures.first, figures.entries, figures.fullest) == (1, (5, 4), (3, 5))
    assert (figures.sizes, figures.largest) == ((), None)


async def test_what_is_kept_is_bounded_and_the_loop_is_given_way() -> None:
    node = stored("sum", *(("a", group, 1, 8) for group in range(32768)))
    turns = Turns()
    (figures,) = await spread_over_groups([node], 32768, turns)
    assert len(figures.entries) == len(figures.sizes) == BUCKETS and set(figures.sizes) == {512 * 8}
    assert turns.taken == 32768 // SLICE


@pytest.mark.parametrize("node", [NodeState("sum"), NodeState("sum", native=(NativeHandle("rocksdb", 0, 9, (), {}),))])
async def test_where_nothing_is_stored_nothing_is_told(node: NodeState) -> None:
    assert await spread_over_groups([node], 128, Turns()) == ()
