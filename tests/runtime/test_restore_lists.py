"""Dealing out list state without a key: every item once, in order, evenly; a union's everywhere."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.memory import ListSink
from streamactors.checkpoint.manifest import (
    FileHandle,
    ListRef,
    ListsHandle,
    Manifest,
    NodeState,
    OperatorMeta,
    SubtaskState,
)
from streamactors.errors import IncompatibleState
from streamactors.graph.logical import SourceSpec
from streamactors.graph.planner import plan
from streamactors.operators.base import Context, Operator
from streamactors.operators.process import ProcessSpec
from streamactors.operators.sink import SinkSpec
from streamactors.runtime.messages import ListPiece
from streamactors.runtime.restore import plan_restore
from streamactors.runtime.restore_lists import deal_lists
from tests.graph.graphs import Graph
from tests.runtime.feeds import Feed

Item = tuple[int, int, int]
"""The subtask that has stored it, its block, and its number in there."""

blocks = st.lists(st.integers(1, 7), max_size=4)


def handle(
    owner: int, sizes: list[int], *, state: str = "held", union: bool = False, broadcast: bool = False
) -> ListsHandle:
    refs = tuple(ListRef(state, size, number, 1, union, broadcast) for number, size in enumerate(sizes))
    return ListsHandle(FileHandle(f"{owner}", 99, b""), refs)


def items_of(piece: ListPiece) -> list[Item]:
    return [(int(piece.handle.file.path), piece.ref.offset, number) for number in range(piece.start, piece.stop)]


def all_items(stored: list[list[int]]) -> list[Item]:
    return [(i, j, number) for i, sizes in enumerate(stored) for j, size in enumerate(sizes) for number in range(size)]


def dealt(stored: list[list[int]], now: int, **mode: Any) -> list[list[Item]]:
    """By subtask of now. Subtasks without items have left no file; and the last ones come first."""
    handles = {owner: handle(owner, sizes, **mode) for owner, sizes in enumerate(stored) if sizes}
    handles = dict(reversed(handles.items()))
    return [
        [item for piece in deal_lists(handles, index, len(stored), now) for item in items_of(piece)]
        for index in range(now)
    ]


@given(st.lists(blocks, min_size=1, max_size=6), st.integers(1, 9))
def test_every_item_reaches_one_subtask_in_order_and_evenly(stored: list[list[int]], now: int) -> None:
    shares = dealt(stored, now)
    assert [item for share in shares for item in share] == all_items(stored)
    if now != len(stored):
        lengths = sorted(map(len, shares))
        assert lengths[-1] - lengths[0] <= 1


@given(st.lists(blocks, min_size=1, max_size=6))
def test_at_the_parallelism_of_before_each_has_its_own_again(stored: list[list[int]]) -> None:
    own = [[item for item in all_items(stored) if item[0] == owner] for owner in range(len(stored))]
    assert dealt(stored, len(stored)) == own


@given(st.lists(blocks, min_size=1, max_size=6), st.integers(1, 9))
def test_every_subtask_has_all_items_of_a_union(stored: list[list[int]], now: int) -> None:
    assert dealt(stored, now, union=True) == [all_items(stored)] * now


@given(st.lists(blocks, min_size=1, max_size=6), st.integers(1, 9))
def test_every_subtask_has_one_old_subtasks_copy_of_a_broadcast_map(stored: list[list[int]], now: int) -> None:
    """The same one whose in-flight copies it gets."""
    own = [[item for item in all_items(stored) if item[0] == owner] for owner in range(len(stored))]
    assert dealt(stored, now, broadcast=True) == [own[index % len(stored)] for index in range(now)]


def test_states_are_dealt_out_one_by_one() -> None:
    """Together, the first subtask would have all of the first state."""
    refs = (ListRef("a", 2, 0, 1), ListRef("all", 1, 1, 1, True), ListRef("b", 2, 2, 1))
    handles = {0: ListsHandle(FileHandle("0", 99, b""), refs)}
    for index in range(2):
        pieces = [(piece.ref.state, piece.start, piece.stop) for piece in deal_lists(handles, index, 1, 2)]
        assert pieces == [("a", index, index + 1), ("all", 0, 1), ("b", index, index + 1)]


# --------------------------------------------------------------------------------------------- a whole restore
class Buffering(Operator[Any, Any]):
    def process(self, value: Any, ctx: Context[None, Any], /) -> None: ...


def planned(parallelism: int, *, buffer: str = "buffer", groups: int = 16) -> Any:
    graph = Graph().add("source", SourceSpec(Feed())).add(buffer, ProcessSpec(Buffering, keyed=False), "source")
    flow = graph.add("sink", SinkSpec(ListSink()), buffer).build()
    return plan(flow, parallelism=parallelism, max_parallelism=groups, checkpointing=True)


def stored(parallelism: int) -> Manifest:
    def node(index: int) -> NodeState:
        return NodeState("buffer", lists=handle(index, [index + 1]), list_schemas={"held": "int"})

    subtasks = tuple(SubtaskState("source", index, (node(index),)) for index in range(parallelism))
    operators = (OperatorMeta("buffer", "process", parallelism, 16),)
    return Manifest(flow="t", run=1, attempt=1, checkpoint=1, time_ms=0, operators=operators, subtasks=subtasks)


@given(before=st.integers(1, 5), now=st.integers(1, 5))
def test_reaches_every_subtask_with_its_schema(before: int, now: int) -> None:
    restores = plan_restore(stored(before), planned(now))
    own = {id.index: restore for (id, uid), restore in restores.items() if uid == "buffer"}
    found = [item for index in range(now) for piece in own[index].lists for item in items_of(piece)]
    assert found == all_items([[owner + 1] for owner in range(before)])
    assert all(restore.list_schemas == {"held": "int"} and not restore.allow_dropped for restore in own.values())


def test_of_an_operator_that_is_gone_it_is_refused_unless_given_up() -> None:
    with pytest.raises(IncompatibleState, match=r"'buffer', which flow 'test' does not have.*drop_state=\['buffer'\]"):
        plan_restore(stored(2), planned(2, buffer="renamed"))
    assert plan_restore(stored(2), planned(2, buffer="renamed"), {"buffer"}) == {}
    assert all(restore.allow_dropped for restore in plan_restore(stored(2), planned(2), {"buffer"}).values())


def test_has_nothing_to_do_with_key_groups() -> None:
    assert plan_restore(stored(2), planned(2, groups=32))
