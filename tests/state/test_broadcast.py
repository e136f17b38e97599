"""Broadcast state by itself: a map that only one input may write, and what a snapshot holds whatever happens after."""

import copy
import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamactors.errors import (
    CorruptCheckpoint,
    IncompatibleState,
    InvalidDataflow,
    StateAccessError,
    UnserialisableValue,
)
from streamactors.state.broadcast import BroadcastState
from streamactors.state.descriptors import MapState, OperatorListState, Ttl
from streamactors.state.heap.backend import HeapBackend
from streamactors.state.key_groups import KeyGroupRange
from streamactors.state.operator_lists import ListsSnapshot, OperatorLists
from streamactors.state.serialisation.pickled import Pickle
from streamactors.state.unkeyed import ListBlock

TINY = 1e-9
"""A budget for one item."""


class Rule(msgspec.Struct):
    limit: int
    tags: list[str] = []


class Frozen(msgspec.Struct, frozen=True):
    limit: int


class Counting:
    """Counts how often it is pickled."""

    pickled: ClassVar[int] = 0

    def __reduce__(self) -> Any:
        Counting.pickled += 1
        return Counting, ()


def bound(key: Any = str, value: Any = int, entries: Mapping[Any, Any] | None = None) -> tuple[OperatorLists, Any]:
    lists = OperatorLists("judge")
    state = lists.bind("rules", BroadcastState(key, value))
    with lists.broadcasting():
        state.update(entries or {})
    return lists, state


def begun(lists: OperatorLists) -> ListsSnapshot:
    snapshot = lists.begin_snapshot()
    assert snapshot is not None
    return snapshot


def drained(snapshot: ListsSnapshot, budget: float = 1.0) -> list[ListBlock]:
    return list(iter(lambda: snapshot.next_block(budget), None))


def restored(blocks: Iterable[ListBlock], key: Any, value: Any) -> list[tuple[Any, Any]]:
    lists, state = bound(key, value)
    for block in blocks:
        lists.restore(block, 0, block.items)
    return list(state.items())


# --------------------------------------------------------------------------------------------------- using
def test_is_a_map_without_a_key() -> None:
    lists, state = bound()
    assert isinstance(state, BroadcastState) and isinstance(state, MapState)
    assert (dict(state), len(state), state.name, state.get("a"), state.get("a", 7)) == ({}, 0, "rules", None, 7)
    with lists.broadcasting():
        state["a"] = 1
        state.update(b=2, c=3)
        assert state.setdefault("a", 9) == 1
        del state["a"]
        assert state.pop("b") == 2
        state["a"] = 4
    assert list(state) == ["c", "a"] and list(state.items()) == [("c", 3), ("a", 4)] and list(state.values()) == [3, 4]
    assert state == {"a": 4, "c": 3} and "a" in state and "b" not in state and state["c"] == 3
    assert list(state.keys()) == ["c", "a"] and state.keys() & {"a", "x"} == {"a"}
    assert lists.entries() == {"rules": 2} and "rules" in lists
    for missing in (lambda: state["b"], lambda: state.pop("b")):
        with lists.broadcasting(), pytest.raises(KeyError, match="b"):
            missing()  # type: ignore[no-untyped-call]
    with lists.broadcasting():
        state.clear()
    assert (dict(state), lists.begin_snapshot()) == ({}, None)


def test_is_written_only_where_every_subtask_gets_the_same() -> None:
    lists, state = bound(entries={"a": 1})
    for write in (
        lambda: state.__setitem__("a", 2),
        lambda: state.__delitem__("a"),
        lambda: state.update(b=2),
        lambda: state.pop("a"),
        lambda: state.setdefault("b", 2),
        state.popitem,
        state.clear,
    ):
        with pytest.raises(StateAccessError, match="operator 'judge', state 'rules': .* in process_broadcast only"):
            write()
    assert state == {"a": 1}
    with pytest.raises(RuntimeError), lists.broadcasting():
        raise RuntimeError("in the user's code")
    with pytest.raises(StateAccessError, match="process_broadcast only"):
        state["a"] = 2


def test_what_does_not_fit_is_refused_by_name_and_nothing_is_stored() -> None:
    lists, state = bound(entries={"a": 1})
    with lists.broadcasting():
        for key, value, wanted in (("b", "two", "expected int, found str"), (2, 2, "expected str, found int")):
            with pytest.raises(UnserialisableValue, match=f"state 'rules': {wanted}"):
                state[key] = value
    assert state == {"a": 1}


def test_an_entry_is_a_copy_of_what_was_put() -> None:
    """That may be the record itself, which all subtasks of a process get as one object."""
    rule = Rule(1)
    (_, one), (_, another) = (bound(str, Rule, {"a": rule}) for _ in range(2))
    one["a"].tags.append("mine")
    assert (rule, another["a"], one["a"]) == (Rule(1), Rule(1), Rule(1, ["mine"]))


def test_a_default_that_was_set_is_the_entry() -> None:
    lists, state = bound(str, list[int])
    with lists.broadcasting():
        for number in range(3):
            state.setdefault("a", []).append(number)
    assert state == {"a": [0, 1, 2]}


def test_what_does_not_fit_inside_is_refused_by_its_key() -> None:
    bad: Any = Rule("x")  # type: ignore[arg-type]
    lists, state = bound(str, Rule)
    with lists.broadcasting(), pytest.raises(UnserialisableValue, match="state 'rules', key 'bad': .*str"):
        state["bad"] = bad
    assert state == {}


def test_an_int_becomes_the_float_that_was_declared() -> None:
    lists, state = bound(str, float)
    with lists.broadcasting():
        state["a"] = 1
    assert type(state["a"]) is float


def test_a_closed_one_refuses_everything() -> None:
    lists, state = bound(entries={"a": 1})
    lists.close()
    with lists.broadcasting():
        for use in (
            lambda: state["a"],
            lambda: list(state),
            lambda: len(state),
            lambda: list(state.items()),
            lambda: state.__setitem__("a", 1),
            lambda: state.__delitem__("a"),
            state.clear,
        ):
            with pytest.raises(StateAccessError, match="operator 'judge', state 'rules': the operator has been stop"):
                use()
    assert lists.entries() == {"rules": 0}


class TestDeclaration:
    rules = BroadcastState(str, int)

    def test_holds_nothing_by_itself(self) -> None:
        for use in (lambda: self.rules["a"], lambda: list(self.rules), lambda: len(self.rules), self.rules.clear):
            with pytest.raises(StateAccessError, match=r"use it as self\.rules, inside a running operator, from open"):
                use()

    def test_has_no_time_to_live(self) -> None:
        with pytest.raises(InvalidDataflow, match=r"BroadcastState\(ttl=…\): only the state of a key"):
            BroadcastState(str, int, ttl=Ttl(dt.timedelta(hours=1)))

    def test_is_kept_apart_from_keyed_state(self) -> None:
        with pytest.raises(InvalidDataflow, match="state 'rules': BroadcastState belongs to no key"):
            HeapBackend(KeyGroupRange(0, 1), 1).bind("rules", BroadcastState(str, int))
        with pytest.raises(InvalidDataflow, match="state 'seen': MapState is no state without a key"):
            OperatorLists().bind("seen", MapState(str, int))

    def test_of_a_type_that_can_not_be_stored(self) -> None:
        with pytest.raises(InvalidDataflow, match=r"operator 'judge', state 'rules': .*Counting has no declared"):
            bound(str, Counting)


# --------------------------------------------------------------------------------------------- snapshots
TYPES: dict[str, tuple[Any, Any, Any]] = {
    "immutable": (int, st.integers(), lambda value: None),
    "frozen": (Frozen, st.builds(Frozen, st.integers(0, 9)), lambda value: None),
    "flat": (list[int], st.lists(st.integers(), max_size=3), lambda value: value.append(0)),
    "deep": (Rule, st.builds(Rule, st.integers(0, 9), st.lists(st.text(), max_size=2)), lambda r: r.tags.append("?")),
    "any": (Any, st.lists(st.integers() | st.lists(st.none())), lambda value: value.append(0)),
}
KEYS = st.sampled_from("abcdef")
STEPS = st.lists(
    st.sampled_from(
        ["put"] * 3 + ["delete", "clear", "get", "values", "items", "range", "begin"] + ["block"] * 3 + ["abort"]
    ),
    max_size=40,
)


@pytest.mark.parametrize("kind", TYPES)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_snapshot_holds_what_was_there_when_it_began(kind: str, data: st.DataObject) -> None:
    """In its order, whatever is put, deleted, cleared and changed in place meanwhile, over several snapshots at once;
    and the map itself is the dict that it seems to be."""
    tp, values, change = TYPES[kind]
    lists, state = bound(str, tp)
    model: dict[str, Any] = {}
    running: list[tuple[ListsSnapshot, list[Any], list[ListBlock]]] = []
    with lists.broadcasting():
        for step in data.draw(STEPS):
            match step:
                case "put":
                    key, value = data.draw(KEYS), data.draw(values)
                    state[key] = value
                    model[key] = copy.deepcopy(value)
                case "delete" if model:
                    key = data.draw(st.sampled_from(sorted(model)))
                    del state[key], model[key]
                case "clear":
                    state.clear()
                    model.clear()
                case "get" if model:
                    key = data.draw(st.sampled_from(sorted(model)))
                    change(state[key])
                    change(model[key])
                case "values" | "items":
                    for value in state.values() if step == "values" else (value for _, value in state.items()):
                        change(value)
                    for value in model.values():
                        change(value)
                case "range":
                    found = []
                    for key, value in state.range("b", "e"):
                        change(value)
                        found.append(key)
                    assert found == [key for key in sorted(model) if "b" <= key < "e"]
                    for key in found:
                        change(model[key])
                case "begin" if model:
                    running.append((begun(lists), copy.deepcopy(list(model.items())), []))
                case "block" if running:
                    snapshot, _, blocks = data.draw(st.sampled_from(running))
                    blocks += filter(None, [snapshot.next_block(TINY)])
                case "abort" if len(running) > 1:
                    running.pop()[0].abort()
            assert list(model) == list(state) and len(model) == len(state)
        assert list(state.items()) == list(model.items())
    for snapshot, expected, blocks in running:
        assert restored([*blocks, *drained(snapshot, TINY)], str, tp) == expected


def test_keeps_only_what_is_handed_out_once_and_nothing_when_all_is_written() -> None:
    lists, state = bound(int, Pickle(Counting), {number: Counting() for number in range(1000)})
    Counting.pickled = 0
    snapshot = begun(lists)
    assert Counting.pickled == 0, "the synchronous part has nothing to do with the entries"
    for _ in range(2):
        assert [state.get(number) is not None for number in range(3)] == [True] * 3
        assert len(state) == 1000 and list(state) == list(range(1000))
    assert Counting.pickled == 3
    drained(snapshot)
    Counting.pickled = 0
    list(state.values())
    assert Counting.pickled == 0


def test_entries_are_written_in_blocks_of_bounded_time() -> None:
    lists, _ = bound(int, int, {number: number for number in range(1000)})
    first = begun(lists).next_block(50 / 200_000)
    assert first is not None
    assert (first.state, first.items, first.union, first.broadcast) == ("rules", 50, False, True)
    one = begun(lists).next_block(TINY)
    assert one is not None and one.items == 1


def test_what_comes_and_goes_leaves_nothing_behind() -> None:
    lists, state = bound(int, int, {-1: 0})
    store: Any = state._store
    with lists.broadcasting():
        for number in range(20_000):
            state[number] = number
            del state[number]
    assert len(store._log) < 2000 and len(store._places) == 1 and dict(state) == {-1: 0}
    assert restored(drained(begun(lists)), int, int) == [(-1, 0)]


def test_beside_a_list() -> None:
    lists, _ = bound(entries={"a": 1})
    held = lists.bind("held", OperatorListState(int))
    held.append(7)
    blocks = drained(begun(lists))
    assert [(block.state, block.broadcast) for block in blocks] == [("rules", True), ("held", False)]
    assert lists.entries() == {"rules": 1, "held": 1}


def test_an_entry_that_can_not_be_written_is_named_and_fails_the_snapshot_only() -> None:
    for touched in (False, True):
        lists, state = bound(str, Rule, {"good": Rule(1), "bad": Rule(2)})
        state["bad"].limit = "x"
        snapshot = begun(lists)
        if touched:
            assert len(list(state.values())) == 2
        with pytest.raises(UnserialisableValue, match=r"operator 'judge', state 'rules', key 'bad': .*str"):
            drained(snapshot)
        assert snapshot.next_block() is None
        with lists.broadcasting():
            state["bad"] = Rule(3)
        assert restored(drained(begun(lists)), str, Rule) == [("good", Rule(1)), ("bad", Rule(3))]


# --------------------------------------------------------------------------------------------------- restore
class RuleOfLater(msgspec.Struct):
    limit: float
    weight: float = 1.0


def test_a_type_that_has_evolved() -> None:
    lists, _ = bound(str, Rule, {"a": Rule(1, ["x"])})
    now, state = bound(str, RuleOfLater)
    now.check_schemas(lists.schemas())
    for block in drained(begun(lists)):
        now.restore(block, 0, block.items)
    assert dict(state) == {"a": RuleOfLater(1.0, 1.0)}


@pytest.mark.parametrize(
    ("then", "now", "problem"),
    [
        ((str, int), (int, int), "key stored as str, now int"),
        ((str, int), (str, str), "stored as int, now str"),
    ],
)
def test_another_type_is_refused(then: Any, now: Any, problem: str) -> None:
    with pytest.raises(IncompatibleState, match=f"operator 'judge', state 'rules': {problem}"):
        bound(*now)[0].check_schemas(bound(*then)[0].schemas())


def test_another_kind_is_refused() -> None:
    lists = OperatorLists("judge")
    lists.bind("rules", OperatorListState(int))
    with pytest.raises(IncompatibleState, match="stored as broadcast state, now operator list state"):
        lists.check_schemas(bound()[0].schemas())


def test_damage_is_told() -> None:
    lists, _ = bound(entries={"a": 1})
    (block,) = drained(begun(lists))
    for data, error, message in (
        (b"\xc1", CorruptCheckpoint, "a block of items can't be read"),
        (msgspec.msgpack.encode((2, b"", b"")), IncompatibleState, "stored in format 2, this version reads 1"),
    ):
        with pytest.raises(error, match=f"operator 'judge', state 'rules': {message}"):
            lists.restore(ListBlock("rules", False, 1, data, True), 0, 1)
    with pytest.raises(CorruptCheckpoint, match="a block holds 1 items, and should hold 2"):
        lists.restore(ListBlock("rules", False, 2, block.data, True), 0, 2)
