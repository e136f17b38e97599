"""List state without a key: what a snapshot holds whatever happens after it began, and what a restore takes."""

import copy
import datetime as dt
from collections.abc import Iterable
from itertools import islice
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamactors.errors import (
    CorruptCheckpoint,
    IncompatibleState,
    InvalidDataflow,
    StateAccessError,
    UnserialisableValue,
)
from streamactors.state.descriptors import ListState, OperatorListState, Ttl, UnionListState, ValueState
from streamactors.state.heap.backend import HeapBackend
from streamactors.state.key_groups import KeyGroupRange
from streamactors.state.operator_lists import ListsSnapshot, OperatorLists
from streamactors.state.serialisation.pickled import Pickle
from streamactors.state.unkeyed import ListBlock

TINY = 1e-9
"""A budget for one item."""


class Point(msgspec.Struct):
    x: int
    tags: list[str] = []


class Counting:
    """Counts how often it is pickled."""

    pickled: ClassVar[int] = 0

    def __reduce__(self) -> Any:
        Counting.pickled += 1
        return Counting, ()


def bound(tp: Any, items: Iterable[Any] = (), kind: type[Any] = OperatorListState) -> tuple[OperatorLists, Any]:
    lists = OperatorLists("buffer")
    state = lists.bind("held", kind(tp))
    state.extend(items)
    return lists, state


def begun(lists: OperatorLists) -> ListsSnapshot:
    snapshot = lists.begin_snapshot()
    assert snapshot is not None
    return snapshot


def drained(snapshot: ListsSnapshot, budget: float = 1.0) -> list[ListBlock]:
    return list(iter(lambda: snapshot.next_block(budget), None))


def restored(blocks: Iterable[ListBlock], tp: Any) -> list[Any]:
    lists, state = bound(tp)
    for block in blocks:
        lists.restore(block, 0, block.items)
    return list(state)


# --------------------------------------------------------------------------------------------------- using
@pytest.mark.parametrize("kind", [OperatorListState, UnionListState])
def test_is_a_list_without_a_key(kind: type[Any]) -> None:
    lists, state = bound(int, kind=kind)
    assert isinstance(state, kind) and isinstance(state, ListState)
    assert (list(state), len(state), state.name) == ([], 0, "held")
    state.append(1)
    state.extend(value for value in (2, 3))
    state.extend(state)
    assert (list(state), len(state), 3 in state) == ([1, 2, 3, 1, 2, 3], 6, True)
    assert lists.entries() == {"held": 6} and "held" in lists and "other" not in lists
    state.clear()
    assert (list(state), len(state), lists.begin_snapshot()) == ([], 0, None)


def test_items_of_another_class_are_refused_by_name_and_nothing_is_added() -> None:
    _, state = bound(int, [1])
    with pytest.raises(UnserialisableValue, match="state 'held': expected int, found str: 'two'"):
        state.append("two")
    with pytest.raises(UnserialisableValue, match="state 'held': expected int, found str: 'two'"):
        state.extend([2, "two"])
    assert list(state) == [1]


def test_an_int_becomes_the_float_that_was_declared() -> None:
    _, state = bound(float, [1])
    state.append(2)
    assert [(type(item), item) for item in state] == [(float, 1.0), (float, 2.0)]


def test_a_closed_one_refuses_everything() -> None:
    lists, state = bound(int, [1])
    lists.close()
    for use in (lambda: list(state), lambda: len(state), lambda: state.append(1), lambda: state.clear()):
        with pytest.raises(StateAccessError, match="operator 'buffer', state 'held': the operator has been stopped"):
            use()
    assert lists.entries() == {"held": 0}  # metrics are read once more at the end


class TestDeclarations:
    own = OperatorListState(int)
    shared = UnionListState(int)

    @pytest.mark.parametrize("state", [own, shared])
    def test_hold_nothing_by_themselves(self, state: ListState[int]) -> None:
        for use in (lambda: list(state), lambda: len(state), lambda: state.append(1), lambda: state.clear()):
            with pytest.raises(
                StateAccessError, match=r"use it as self\.(own|shared), inside a running operator, from"
            ):
                use()

    @pytest.mark.parametrize("kind", [OperatorListState, UnionListState])
    def test_have_no_time_to_live(self, kind: type[Any]) -> None:
        with pytest.raises(InvalidDataflow, match=rf"{kind.__name__}\(ttl=…\): only the state of a key"):
            kind(int, ttl=Ttl(dt.timedelta(hours=1)))

    def test_keyed_and_other_state_are_kept_apart(self) -> None:
        with pytest.raises(InvalidDataflow, match="state 'own': OperatorListState belongs to no key"):
            HeapBackend(KeyGroupRange(0, 1), 1).bind("own", OperatorListState(int))
        with pytest.raises(InvalidDataflow, match="state 'total': ValueState is no state without a key"):
            OperatorLists().bind("total", ValueState(int))

    def test_a_type_that_can_not_be_stored(self) -> None:
        with pytest.raises(
            InvalidDataflow, match=r"operator 'buffer', state 'held': .*Counting has no declared fields"
        ):
            bound(Counting)


# --------------------------------------------------------------------------------------------- snapshots
TYPES: dict[str, tuple[Any, Any, Any]] = {
    "immutable": (int, st.integers(), lambda item: None),
    "flat": (list[int], st.lists(st.integers(), max_size=3), lambda item: item.append(0)),
    "deep": (Point, st.builds(Point, st.integers(0, 9), st.lists(st.text(), max_size=2)), lambda p: p.tags.append("?")),
    "any": (Any, st.lists(st.integers() | st.lists(st.none())), lambda item: item.append(0)),
}
STEPS = st.lists(
    st.sampled_from(["append", "extend", "clear", "touch some", "touch all", "begin", "block", "block", "abort"]),
    max_size=25,
)


@pytest.mark.parametrize("kind", TYPES)
@given(st.data())
def test_holds_what_was_there_when_it_began(kind: str, data: st.DataObject) -> None:
    """Whatever is added, cleared and changed in place meanwhile, over several snapshots at once."""
    tp, items, change = TYPES[kind]
    lists, state = bound(tp, data.draw(st.lists(items, max_size=6)))
    running: list[tuple[ListsSnapshot, list[Any], list[ListBlock]]] = []
    for step in data.draw(STEPS):
        match step:
            case "append":
                state.append(data.draw(items))
            case "extend":
                state.extend(data.draw(st.lists(items, max_size=4)))
            case "clear":
                state.clear()
            case "touch some" | "touch all":
                for item in islice(state, None if step == "touch all" else 2):
                    change(item)
            case "begin" if len(state):
                running.append((begun(lists), copy.deepcopy(list(state)), []))
            case "block" if running:
                snapshot, _, blocks = data.draw(st.sampled_from(running))
                blocks += filter(None, [snapshot.next_block(TINY)])
            case "abort" if len(running) > 1:
                running.pop()[0].abort()
    for snapshot, expected, blocks in running:
        assert restored([*blocks, *drained(snapshot, TINY)], tp) == expected


def test_keeps_only_what_is_handed_out() -> None:
    lists, state = bound(Pickle(Counting), [Counting() for _ in range(1000)])
    Counting.pickled = 0
    snapshot = begun(lists)
    assert Counting.pickled == 0, "the synchronous part has nothing to do with the items"
    assert len(list(islice(state, 3))) == 3
    assert Counting.pickled == 3
    list(islice(state, 3))
    assert Counting.pickled == 3, "kept once is enough"
    while snapshot.next_block() is not None:
        pass
    Counting.pickled = 0
    list(state)
    assert Counting.pickled == 0, "nothing is kept once all is written"


def test_items_are_written_in_blocks_of_bounded_time_that_carry_the_mode() -> None:
    lists, _ = bound(int, range(1000), UnionListState)
    first = begun(lists).next_block(50 / 200_000)
    assert first is not None and (first.state, first.union, first.items) == ("held", True, 50)
    one = begun(lists).next_block(TINY)
    assert one is not None and one.items == 1


def test_several_states_come_one_after_the_other() -> None:
    lists = OperatorLists("buffer")
    for name, kind in (("a", OperatorListState[Any]), ("empty", OperatorListState[Any]), ("b", UnionListState[Any])):
        state = lists.bind(name, kind(int))
        state.extend([] if name == "empty" else [1, 2])
    blocks = drained(begun(lists))
    assert [(block.state, block.union, block.items) for block in blocks] == [("a", False, 2), ("b", True, 2)]


def test_an_item_that_can_not_be_written_is_named_and_fails_the_snapshot_only() -> None:
    """Also where iterating meets it first: the user's loop goes on."""
    bad: Any = Point("x")  # type: ignore[arg-type]
    for touched in (False, True):
        lists, state = bound(Point, [Point(0), Point(1), bad])
        snapshot = begun(lists)
        if touched:
            assert len(list(state)) == 3
        with pytest.raises(UnserialisableValue, match=r"operator 'buffer', state 'held', item 2: .*str"):
            drained(snapshot)
        assert snapshot.next_block() is None
        state.clear()
        state.append(Point(3))
        assert restored(drained(begun(lists)), Point) == [Point(3)]


# --------------------------------------------------------------------------------------------------- restore
def test_a_part_of_a_block() -> None:
    lists, _ = bound(int, range(10))
    (block,) = drained(begun(lists))
    other, state = bound(int)
    other.restore(block, 8, 10)
    other.restore(block, 0, 1)
    assert list(state) == [8, 9, 0]
    other.restore(ListBlock("gone", False, block.items, block.data), 0, 1)  # which check_schemas has let pass
    assert len(state) == 3


class PointOfLater(msgspec.Struct):
    tags: list[str] = []
    weight: float = 1.0


def test_a_type_that_has_evolved() -> None:
    lists, _ = bound(Point, [Point(1, ["a"])])
    now, state = bound(PointOfLater)
    now.check_schemas(lists.schemas())
    for block in drained(begun(lists)):
        now.restore(block, 0, block.items)
    assert list(state) == [PointOfLater(["a"], 1.0)]


@pytest.mark.parametrize(
    ("then", "now", "problem"),
    [
        ((int, OperatorListState), (str, OperatorListState), "stored as int, now str"),
        ((int, OperatorListState), (int, UnionListState), "stored as operator list state, now union list state"),
        ((int, UnionListState), (int, OperatorListState), "stored as union list state, now operator list state"),
    ],
)
def test_another_type_or_mode_is_refused(then: Any, now: Any, problem: str) -> None:
    stored, declared = bound(then[0], kind=then[1])[0].schemas(), bound(now[0], kind=now[1])[0]
    with pytest.raises(IncompatibleState, match=f"operator 'buffer', state 'held': {problem}"):
        declared.check_schemas(stored)


def test_a_state_that_is_gone_is_refused_unless_given_up() -> None:
    stored = bound(int)[0].schemas()
    with pytest.raises(IncompatibleState, match="operator 'buffer', state 'held': stored in the .* no longer declared"):
        OperatorLists("buffer").check_schemas(stored)
    OperatorLists("buffer").check_schemas(stored, allow_dropped=True)


def test_damage_is_told() -> None:
    lists, _ = bound(int, [1, 2])
    (block,) = drained(begun(lists))
    for data, error, message in (
        (b"\xc1", CorruptCheckpoint, "a block of items can't be read"),
        (msgspec.msgpack.encode((2, b"")), IncompatibleState, "stored in format 2, this version reads 1"),
    ):
        with pytest.raises(error, match=f"operator 'buffer', state 'held': {message}"):
            lists.restore(ListBlock("held", False, 2, data), 0, 2)
    with pytest.raises(CorruptCheckpoint, match="a block holds 2 items, and should hold 3"):
        lists.restore(ListBlock("held", False, 3, block.data), 0, 3)
