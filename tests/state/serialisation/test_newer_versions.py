"""What a newer version of streamactors wrote is refused by its number, never taken for damage or read as something."""

import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

import streamactors as sa
from streamactors.errors import IncompatibleState
from streamactors.state.backend import Cursor, StateBlock
from streamactors.state.heap.backend import HeapBackend
from streamactors.state.key_groups import KeyGroupRange, key_group
from streamactors.state.operator_lists import OperatorLists
from streamactors.state.serialisation.serializers import AnySerializer, serializer_for
from streamactors.state.serialisation.tagged import TaggedCodec

GROUPS = KeyGroupRange(0, 8)
Change = Callable[[list[Any]], list[Any]]

NEWER: list[Change] = [
    lambda items: [2, *items[1:]],
    lambda items: [2, *items[1:], {"more": 1}],
    lambda items: [2, {"all": "else", "is": "another"}],
]
IDS = ["the same otherwise", "with more", "with other types"]


def changed(data: bytes, change: Change) -> bytes:
    return msgspec.msgpack.encode(change(msgspec.msgpack.decode(data)))


def keyed_block() -> StateBlock:
    backend, cursor = HeapBackend(GROUPS, 8, uid="totals"), Cursor()
    backend.attach(cursor)
    state = backend.bind("total", sa.ValueState(int, default=0))
    cursor.key, cursor.group = "a", key_group("a", 8)
    state.set(3)
    block = backend.begin_snapshot(1).next_block()
    assert block is not None
    return block


@pytest.mark.parametrize("change", NEWER, ids=IDS)
def test_a_block_of_keyed_state(change: Change) -> None:
    block = keyed_block()
    backend = HeapBackend(GROUPS, 8, uid="totals")
    backend.bind("total", sa.ValueState(int, default=0))
    newer = dataclasses.replace(block, data=changed(block.data, change))
    with pytest.raises(
        IncompatibleState, match=r"'totals', state 'total': stored in format 2, .* reads 1: use the vers"
    ):
        backend.restore([newer])


@pytest.mark.parametrize(
    "declaration", [sa.OperatorListState(int), sa.UnionListState(int), sa.BroadcastState(int, int)]
)
@pytest.mark.parametrize("change", NEWER, ids=IDS)
def test_a_block_of_state_without_a_key(change: Change, declaration: Any) -> None:
    lists = OperatorLists("rules")
    state: Any = lists.bind("held", declaration)
    if isinstance(state, sa.BroadcastState):
        with lists.broadcasting():
            state[1] = 2
    else:
        state.append(1)
    snapshot = lists.begin_snapshot()
    block = snapshot.next_block() if snapshot is not None else None
    assert block is not None
    newer = dataclasses.replace(block, data=changed(block.data, change))
    with pytest.raises(IncompatibleState, match=r"'rules', state 'held': stored in format 2, .* reads 1: use the vers"):
        lists.restore(newer, 0, 1)


@pytest.mark.parametrize("tp", [int, list[int], Any])
def test_a_value_stored_in_an_unknown_way(tp: Any) -> None:
    """Each begins with how it was written."""
    serializer = serializer_for(tp)
    value: Any = [1] if tp == list[int] else 1
    for read, data in (
        (serializer.decode, serializer.encode(value)),
        (serializer.decode_many, serializer.encode_many([value])),
    ):
        with pytest.raises(IncompatibleState, match=r"stored in the way b'Z', which this version does not know"):
            read(b"Z" + data[1:])


def test_a_value_of_an_unknown_kind() -> None:
    newer = msgspec.msgpack.encode([1, msgspec.msgpack.Ext(77, b"?")])
    for read in (TaggedCodec().decode, TaggedCodec().decode_parts, lambda data: AnySerializer().decode(b"T" + data)):
        with pytest.raises(IncompatibleState, match="of unknown kind 77: written by a newer version"):
            read(newer)


def test_a_type_of_an_unknown_kind() -> None:
    (problem,) = serializer_for(int).check_compatible({"kind": "bitmap", "of": "anything"})
    assert problem == "stored as bitmap, now int"
