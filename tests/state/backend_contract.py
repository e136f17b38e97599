"""What holds for every backend of keyed state. A test module derives a class from `BackendContract` for its backend."""

import dataclasses
import datetime as dt
import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec
import pytest

from streamactors.errors import (
    CorruptCheckpoint,
    IncompatibleState,
    InvalidDataflow,
    StateAccessError,
    UnserialisableKey,
    UnserialisableValue,
)
from streamactors.state.backend import Cursor, KeyedBackend, KeyedSnapshot, StateBlock
from streamactors.state.descriptors import ListState, MapState, ValueState
from streamactors.state.key_groups import KeyGroupRange, key_group
from streamactors.state.serialisation.pickled import Pickle

GROUPS = 16
ALL = KeyGroupRange(0, GROUPS)


class Point(msgspec.Struct):
    x: int
    y: int = 0


@dataclasses.dataclass(frozen=True)
class Tenant:
    country: str
    number: int


class Device(msgspec.Struct, frozen=True):
    site: str


class Seat(NamedTuple):
    row: int
    letter: str


class Colour(enum.Enum):
    RED = 1


class Blob:
    def __init__(self, text: str) -> None:
        self.text = text


KEYS: list[Any] = [
    None, True, 2, 2**70, 0.5, "a", "\ud800", b"a", ("a", 1), frozenset({1}), dt.date(2024, 1, 1), Tenant("de", 1),
    Device("x"), Seat(1, "a"), Colour.RED, dt.datetime(2024, 1, 1, tzinfo=dt.UTC), ((1, Seat(2, "b")), "c"),
]  # fmt: skip


def stand_on(cursor: Cursor, key: Any, groups: int = GROUPS) -> None:
    cursor.key, cursor.group = key, key_group(key, groups)


def drained(snapshot: KeyedSnapshot, max_entries: int | None = None) -> list[StateBlock]:
    blocks = []
    while (block := snapshot.next_block(max_entries=max_entries)) is not None:
        blocks.append(block)
    return blocks


def contents(backend: KeyedBackend, name: str) -> dict[Any, Any]:
    return {key: held for _, key, held in backend.scan(name)}


class BackendContract(ABC):
    """`make` opens an empty backend."""

    @abstractmethod
    def make(self, groups: KeyGroupRange = ALL, max_parallelism: int = GROUPS, uid: str = "totals") -> KeyedBackend: ...

    @pytest.fixture
    def backend(self) -> Iterable[KeyedBackend]:
        backend = self.make()
        yield backend
        backend.close()

    def restored(self, blocks: Iterable[StateBlock], **states: Any) -> KeyedBackend:
        backend = self.make()
        for name, declaration in states.items():
            backend.bind(name, declaration)
        backend.restore(blocks)
        return backend

    # ------------------------------------------------------------------------------------------------ kinds of state
    def test_a_value_belongs_to_its_key(self, backend: KeyedBackend) -> None:
        total = backend.bind("total", ValueState(float, default=0.0))
        for key in KEYS:
            stand_on(backend.cursor, key)
            assert total.get() == 0.0
            total.set(float(KEYS.index(key)))
        for key in KEYS:
            stand_on(backend.cursor, key)
            assert total.get() == KEYS.index(key)
        total.clear()
        assert total.get() == 0.0
        assert backend.entries() == {"total": len(KEYS) - 1}

    def test_equal_keys_are_one_key(self, backend: KeyedBackend) -> None:
        count = backend.bind("count", ValueState(int, default=0))
        for key in (1, True, 1.0, ("a", 1), ("a", 1.0)):
            stand_on(backend.cursor, key)
            count.set(count.get() + 1)
        assert contents(backend, "count") == {1: 3, ("a", 1): 2}

    def test_none_is_a_value_unlike_nothing(self, backend: KeyedBackend) -> None:
        last = backend.bind("last", ValueState(int))
        assert last.nullable
        stand_on(backend.cursor, "a")
        assert last.get() is None
        last.set(None)
        assert backend.entries() == {"last": 1}
        assert contents(self.restored(drained(backend.begin_snapshot(1)), last=ValueState(int)), "last") == {"a": None}

    def test_a_factory_makes_a_default_each_time(self, backend: KeyedBackend) -> None:
        tags = backend.bind("tags", ValueState(list[str], default_factory=list))
        stand_on(backend.cursor, "a")
        tags.get().append("lost, since it was not set")
        assert tags.get() == []

    def test_a_default_that_can_be_changed_is_not_shared(self, backend: KeyedBackend) -> None:
        point = backend.bind("point", ValueState(Point, default=Point(1)))
        stand_on(backend.cursor, "a")
        changed = point.get()
        changed.x = 99
        point.set(changed)
        stand_on(backend.cursor, "b")
        assert point.get() == Point(1)

    def test_an_integer_in_a_float_state_is_a_float_at_once(self, backend: KeyedBackend) -> None:
        total = backend.bind("total", ValueState(float, default=0))
        stand_on(backend.cursor, "a")
        assert repr(total.get()) == "0.0"
        total.set(3)
        assert repr(total.get()) == "3.0"

    @pytest.mark.parametrize("tp", [int | None, Point, object])
    def test_a_bare_object_as_the_default_tells_what_was_never_set(self, backend: KeyedBackend, tp: Any) -> None:
        unset = object()
        state: ValueState[Any] = backend.bind("state", ValueState(tp, default=unset))
        stand_on(backend.cursor, "a")
        assert state.get() is unset
        assert backend.query("state", "a", backend.cursor.group) is None
        state.set(Point(1) if tp is Point else None)
        assert state.get() is not unset
        state.clear()
        assert state.get() is unset

    def test_a_list_grows_and_goes(self, backend: KeyedBackend) -> None:
        events = backend.bind("events", ListState(int))
        stand_on(backend.cursor, "a")
        assert (list(events), len(events)) == ([], 0)
        events.extend([])
        assert backend.entries() == {"events": 0}
        events.append(1)
        events.extend(iter([2, 3]))
        events.extend(events)
        assert (list(events), len(events)) == ([1, 2, 3, 1, 2, 3], 6)
        stand_on(backend.cursor, "b")
        assert list(events) == []
        stand_on(backend.cursor, "a")
        events.clear()
        assert (list(events), backend.entries()) == ([], {"events": 0})

    def test_a_map_is_a_mutable_mapping(self, backend: KeyedBackend) -> None:
        seen = backend.bind("seen", MapState(str, int))
        stand_on(backend.cursor, "a")
        assert (dict(seen), seen.get("x"), seen.get("x", 5), "x" in seen, len(seen)) == ({}, None, 5, False, 0)
        seen["x"] = 1
        seen.update(y=2, z=3)
        assert seen.setdefault("x", 9) == 1
        assert (seen["x"], seen.get("y"), "z" in seen, len(seen)) == (1, 2, True, 3)
        assert seen == {"x": 1, "y": 2, "z": 3}
        assert (list(seen), list(seen.keys()), list(seen.values())) == (["x", "y", "z"], ["x", "y", "z"], [1, 2, 3])
        assert ("y", 2) in seen.items() and seen.keys() & {"y", "q"} == {"y"}
        assert seen.pop("y") == 2
        with pytest.raises(KeyError, match="y"):
            seen["y"]
        with pytest.raises(KeyError, match="y"):
            del seen["y"]
        stand_on(backend.cursor, "b")
        assert dict(seen.items()) == {}

    def test_a_view_of_a_map_stays_alive(self, backend: KeyedBackend) -> None:
        seen = backend.bind("seen", MapState(str, int))
        stand_on(backend.cursor, "a")
        items = seen.items()
        seen["x"] = 1
        seen.clear()
        seen["y"] = 2
        assert (list(items), len(items)) == ([("y", 2)], 1)

    def test_what_becomes_empty_leaves_nothing_behind(self, backend: KeyedBackend) -> None:
        total = backend.bind("total", ValueState(int, default=0))
        events = backend.bind("events", ListState(int))
        seen = backend.bind("seen", MapState(str, int))
        for key in range(100):
            stand_on(backend.cursor, key)
            total.set(1)
            events.append(1)
            seen["a"] = 1
            seen["b"] = 2
            total.clear()
            events.clear()
            del seen["a"]
            seen.pop("b")
        assert backend.entries() == {"total": 0, "events": 0, "seen": 0}
        for key in range(100):
            stand_on(backend.cursor, key)
            assert (total.get(), list(events), dict(seen)) == (0, [], {})
            total.clear()
            seen.clear()
        assert backend.entries() == {"total": 0, "events": 0, "seen": 0}
        assert drained(backend.begin_snapshot(1)) == []

    # ------------------------------------------------------------------------------------------------------- refusals
    def test_values_of_another_type_are_refused_where_they_are_stored(self, backend: KeyedBackend) -> None:
        value: ValueState[Any] = backend.bind("value", ValueState(float, default=0.0))
        items: ListState[Any] = backend.bind("items", ListState(int))
        mapping: MapState[Any, Any] = backend.bind("mapping", MapState(str, Point))
        stand_on(backend.cursor, "a")
        attempts: list[tuple[Callable[[], None], str]] = [
            (lambda: value.set("1"), "expected float, found str: '1'"),
            (lambda: value.set(None), "expected float, found NoneType"),
            (lambda: items.append("1"), "expected int, found str"),
            (lambda: items.extend([1, 2.0]), "expected int, found float"),
            (lambda: mapping.update({"a": Point(1), "b": (1, 2)}), "expected Point, found tuple"),
            (lambda: mapping.update({3: Point(1)}), "expected str, found int: 3"),
        ]
        for attempt, message in attempts:
            with pytest.raises(UnserialisableValue, match=message):
                attempt()
        assert (list(items), dict(mapping)) == ([], {"a": Point(1)})

    def test_state_is_out_of_reach_without_a_key(self, backend: KeyedBackend) -> None:
        total = backend.bind("total", ValueState(int, default=0))
        events = backend.bind("events", ListState(int))
        seen = backend.bind("seen", MapState(str, int))
        stand_on(backend.cursor, "a")
        total.set(1)
        backend.cursor.clear()
        uses: list[Callable[[], object]] = [
            total.get, lambda: total.set(1), total.clear, lambda: events.append(1), lambda: list(events), events.clear,
            lambda: seen["a"], lambda: seen.update(a=1), lambda: seen.pop("a"), lambda: list(seen.items()), seen.clear,
        ]  # fmt: skip
        for use in uses:
            with pytest.raises(StateAccessError, match="operator 'totals', state '.*': there is no current key"):
                use()

    def test_the_key_of_another_subtask_is_out_of_reach(self) -> None:
        backend = self.make(KeyGroupRange(0, 4))
        total = backend.bind("total", ValueState(int, default=0))
        backend.cursor.key, backend.cursor.group = "a", 4
        with pytest.raises(StateAccessError, match=r"another subtask; this one has the key groups 0\.\.3"):
            total.get()

    def test_a_closed_backend_is_dead(self) -> None:
        backend = self.make()
        total = backend.bind("total", ValueState(int, default=0))
        stand_on(backend.cursor, "a")
        total.set(1)
        snapshot = backend.begin_snapshot(1)
        backend.close()
        with pytest.raises(StateAccessError, match="'totals', state 'total': the operator has been stopped"):
            total.set(2)
        assert snapshot.next_block() is None
        backend.close()

    def test_a_name_is_taken_once(self, backend: KeyedBackend) -> None:
        backend.bind("total", ValueState(int))
        with pytest.raises(InvalidDataflow, match="operator 'totals': two states have the name 'total'"):
            backend.bind("total", ListState(int))

    @pytest.mark.parametrize(
        ("declaration", "message"),
        [
            (ValueState(Blob), r"state 'x': state can't be of type .*Blob: .*write sa.Pickle\(Blob\)"),
            (MapState(str, Blob), "state 'x': state can't be of type"),
            (ValueState(Any, default=3), None),
            (ValueState(int, default="3"), "state 'x': the default does not fit: expected int, found str"),
        ],
    )
    def test_what_cannot_be_stored_is_refused_when_it_is_bound(
        self, backend: KeyedBackend, declaration: Any, message: str | None
    ) -> None:
        if message is None:
            backend.bind("x", declaration)
        else:
            with pytest.raises(InvalidDataflow, match=f"operator 'totals', {message}"):
                backend.bind("x", declaration)

    def test_another_cursor_moves_what_is_bound_already(self, backend: KeyedBackend) -> None:
        total = backend.bind("total", ValueState(int, default=0))
        events = backend.bind("events", ListState(int))
        seen = backend.bind("seen", MapState(str, int))
        cursor = Cursor()
        backend.attach(cursor)
        stand_on(cursor, "a")
        total.set(1)
        events.append(2)
        seen["x"] = 3
        assert (total.get(), list(events), dict(seen), backend.cursor) == (1, [2], {"x": 3}, cursor)

    # ----------------------------------------------------------------------------------------------- snapshot, restore
    def fill(self, backend: KeyedBackend) -> dict[str, Any]:
        """All kinds of state, under all kinds of keys; returns what is declared."""
        declared: dict[str, Any] = {
            "total": ValueState(float, default=0.0),
            "point": ValueState(Point),
            "events": ListState(Point),
            "seen": MapState(str, tuple[int, ...]),
            "blob": ValueState(Pickle(dict)),
            "anything": ValueState(object, default=None),
        }
        bound = {name: backend.bind(name, declaration) for name, declaration in declared.items()}
        for number, key in enumerate(KEYS):
            stand_on(backend.cursor, key)
            bound["total"].set(float(number))
            bound["point"].set(Point(number))
            bound["events"].extend([Point(number), Point(0)])
            bound["seen"].update({"a": (number,), "b": ()})
            bound["blob"].set({"number": number})
            bound["anything"].set((number, {key}))
        backend.cursor.clear()
        return declared

    @pytest.mark.parametrize("max_entries", [1, 3, None])
    def test_everything_comes_back(self, backend: KeyedBackend, max_entries: int | None) -> None:
        declared = self.fill(backend)
        blocks = drained(backend.begin_snapshot(1), max_entries)
        assert sum(block.entries for block in blocks) == len(KEYS) * len(declared)
        restored = self.restored(blocks, **declared)
        for name in declared:
            found = contents(restored, name)
            assert found == contents(backend, name)
            assert sorted(map(str, map(type, found))) == sorted(map(str, map(type, KEYS)))
        assert restored.entries() == backend.entries()

    def test_blocks_go_to_their_groups(self, backend: KeyedBackend) -> None:
        declared = self.fill(backend)
        blocks = drained(backend.begin_snapshot(1))
        parts = [KeyGroupRange(0, 5), KeyGroupRange(5, 6), KeyGroupRange(6, GROUPS)]
        found: dict[Any, Any] = {}
        for part in parts:
            target = self.make(part)
            for name, declaration in declared.items():
                target.bind(name, declaration)
            target.restore(block for block in blocks if block.group in part)
            assert all(group in part for group, _, _ in target.scan("total"))
            found |= contents(target, "total")
        assert found == contents(backend, "total")

    def test_a_block_of_another_subtask_is_refused(self, backend: KeyedBackend) -> None:
        declared = self.fill(backend)
        blocks = drained(backend.begin_snapshot(1))
        target = self.make(KeyGroupRange(0, 1))
        for name, declaration in declared.items():
            target.bind(name, declaration)
        with pytest.raises(
            IncompatibleState, match=r"a block of key group \d+ was given to the subtask of the key groups 0"
        ):
            target.restore(blocks)

    def test_a_key_that_falls_into_another_group_now_is_refused(self, backend: KeyedBackend) -> None:
        declared = self.fill(backend)
        moved = [
            dataclasses.replace(block, group=(block.group + 1) % GROUPS) for block in drained(backend.begin_snapshot(1))
        ]
        with pytest.raises(
            IncompatibleState, match=r"'totals', state '\w+': the key .* is stored in key group \d+, and falls"
        ):
            self.restored(moved, **declared)

    def test_blocks_that_are_no_blocks(self, backend: KeyedBackend) -> None:
        declared = self.fill(backend)
        (block, *_) = drained(backend.begin_snapshot(1))
        for data in (b"", b"garbage", block.data[:-1], block.data[: len(block.data) // 2]):
            with pytest.raises(CorruptCheckpoint, match=f"'totals', state '{block.state}': a block of state"):
                self.restored([dataclasses.replace(block, data=data)], **declared)

    def test_a_block_of_a_newer_format(self, backend: KeyedBackend) -> None:
        declared = self.fill(backend)
        (block, *_) = drained(backend.begin_snapshot(1))
        newer = msgspec.msgpack.encode([99, *msgspec.msgpack.decode(block.data)[1:]])
        with pytest.raises(IncompatibleState, match="stored in format 99, this version reads 1"):
            self.restored([dataclasses.replace(block, data=newer)], **declared)

    def test_a_list_in_several_blocks_is_put_together(self, backend: KeyedBackend) -> None:
        events, seen = backend.bind("events", ListState(int)), backend.bind("seen", MapState(str, int))
        blocks: list[StateBlock] = []
        for number in (1, 2):
            stand_on(backend.cursor, "a")
            events.append(number)
            seen[str(number)] = number
            blocks += drained(backend.begin_snapshot(number))
            events.clear()
            seen.clear()
        restored = self.restored(blocks, events=ListState(int), seen=MapState(str, int))
        assert contents(restored, "events") == {"a": [1, 2]}
        assert contents(restored, "seen") == {"a": {"1": 1, "2": 2}}

    # ------------------------------------------------------------------------- snapshots while processing goes on
    def test_in_place_changes_after_get_do_not_reach_a_running_snapshot(self, backend: KeyedBackend) -> None:
        point = backend.bind("point", ValueState(Point))
        for key in range(50):
            stand_on(backend.cursor, key)
            point.set(Point(key))
        snapshot = backend.begin_snapshot(1)
        blocks = []
        for key in range(50):
            stand_on(backend.cursor, key)
            changed = point.get()
            assert changed is not None
            changed.y = 99
            point.set(changed)
            if key % 10 == 0 and (block := snapshot.next_block(max_entries=2)) is not None:
                blocks.append(block)
        blocks += drained(snapshot, 2)
        assert contents(self.restored(blocks, point=ValueState(Point)), "point") == {
            key: Point(key) for key in range(50)
        }
        assert contents(backend, "point") == {key: Point(key, 99) for key in range(50)}

    def test_appending_and_changing_items_do_not_reach_a_running_snapshot(self, backend: KeyedBackend) -> None:
        events, seen = backend.bind("events", ListState(Point)), backend.bind("seen", MapState(str, Point))
        for key in range(20):
            stand_on(backend.cursor, key)
            events.extend([Point(key), Point(key)])
            seen["a"] = Point(key)
        snapshot = backend.begin_snapshot(1)
        for key in range(20):
            stand_on(backend.cursor, key)
            for item in [*events, *seen.values(), seen["a"]]:
                item.y = 99
            events.append(Point(-1))
            seen["b"] = Point(-1)
            if key == 10:
                blocks = [snapshot.next_block(max_entries=3)]
        restored = self.restored(
            [*filter(None, blocks), *drained(snapshot)], events=ListState(Point), seen=MapState(str, Point)
        )
        assert contents(restored, "events") == {key: [Point(key), Point(key)] for key in range(20)}
        assert contents(restored, "seen") == {key: {"a": Point(key)} for key in range(20)}

    def test_entries_touched_while_their_group_is_being_written(self) -> None:
        backend = self.make(KeyGroupRange(0, 1), 1)
        declared: dict[str, Any] = {"point": ValueState(Point), "events": ListState(int), "books": MapState(str, Point)}
        bound = {name: backend.bind(name, declaration) for name, declaration in declared.items()}
        for key in range(10):
            stand_on(backend.cursor, key, 1)
            bound["point"].set(Point(key))
            bound["events"].append(key)
            bound["books"]["a"] = Point(key)
        snapshot, blocks = backend.begin_snapshot(1), []
        for _ in declared:
            blocks.append(snapshot.next_block(max_entries=4))
            for key in range(10):
                stand_on(backend.cursor, key, 1)
                bound["point"].get().y += 1
                bound["events"].append(-1)
                bound["books"]["a"].y += 1
            blocks += [snapshot.next_block(max_entries=4) for _ in range(2)]
        later = self.make(KeyGroupRange(0, 1), 1)
        for name, declaration in declared.items():
            later.bind(name, declaration)
        later.restore([*filter(None, blocks), *drained(snapshot)])
        assert contents(later, "point") == {key: Point(key) for key in range(10)}
        assert contents(later, "events") == {key: [key] for key in range(10)}
        assert contents(later, "books") == {key: {"a": Point(key)} for key in range(10)}

    def test_each_of_several_snapshots_sees_its_own_moment(self, backend: KeyedBackend) -> None:
        total = backend.bind("total", ValueState(int, default=0))
        events = backend.bind("events", ListState(int))
        snapshots: dict[int, KeyedSnapshot] = {}
        blocks: dict[int, list[StateBlock]] = {}
        for moment in range(5):
            for key in range(12):
                stand_on(backend.cursor, key)
                total.set(moment)
                events.append(moment)
            snapshots[moment] = backend.begin_snapshot(moment)
            for number, snapshot in snapshots.items():
                block = snapshot.next_block(max_entries=1)
                assert block is not None
                blocks.setdefault(number, []).append(block)
        for moment, snapshot in snapshots.items():
            found = self.restored(blocks[moment] + drained(snapshot), total=ValueState(int), events=ListState(int))
            assert contents(found, "total") == dict.fromkeys(range(12), moment)
            assert contents(found, "events") == {key: list(range(moment + 1)) for key in range(12)}

    def test_keys_that_come_later_and_keys_that_go(self, backend: KeyedBackend) -> None:
        total = backend.bind("total", ValueState(int, default=0))
        for key in range(10):
            stand_on(backend.cursor, key)
            total.set(key)
        snapshot = backend.begin_snapshot(1)
        for key in range(20):
            stand_on(backend.cursor, key)
            total.clear()
            total.set(-1)
            total.clear()
        assert contents(self.restored(drained(snapshot), total=ValueState(int)), "total") == {
            key: key for key in range(10)
        }
        assert backend.entries() == {"total": 0}

    def test_an_aborted_snapshot_lets_go(self, backend: KeyedBackend) -> None:
        point = backend.bind("point", ValueState(Point))
        for key in range(50):
            stand_on(backend.cursor, key)
            point.set(Point(key))
        aborted, kept = backend.begin_snapshot(1), backend.begin_snapshot(2)
        aborted.next_block(max_entries=1)
        aborted.abort()
        aborted.abort()
        assert aborted.next_block() is None
        for key in range(50):
            stand_on(backend.cursor, key)
            point.clear()
        assert len(contents(self.restored(drained(kept), point=ValueState(Point)), "point")) == 50

    @pytest.mark.parametrize("touched", [False, True])
    def test_a_value_that_does_not_fit_inside_is_the_snapshots_error(
        self, backend: KeyedBackend, touched: bool
    ) -> None:
        tags = backend.bind("tags", ValueState(list[str], default_factory=list))
        wrong: Any = ["fine", 3]
        for key, value in (("a", ["fine"]), ("b", wrong)):
            stand_on(backend.cursor, key)
            tags.set(value)
        snapshot = backend.begin_snapshot(1)
        if touched:
            assert tags.get() is not None
        with pytest.raises(
            UnserialisableValue, match=r"'totals', state 'tags', key 'b': .*list\[str\]: Expected `str`, got"
        ):
            drained(snapshot)
        assert snapshot.next_block() is None
        tags.set(["mended"])
        assert len(drained(backend.begin_snapshot(2))) > 0

    def test_a_key_that_cannot_be_stored_is_named(self, backend: KeyedBackend) -> None:
        count = backend.bind("count", ValueState(int))
        backend.cursor.key, backend.cursor.group = Blob("x"), 3
        count.set(1)
        with pytest.raises(UnserialisableKey, match=r"'totals', state 'count', key .*Blob"):
            drained(backend.begin_snapshot(1))

    # -------------------------------------------------------------------------------------------------- query, schemas
    def test_query_gives_copies(self, backend: KeyedBackend) -> None:
        self.fill(backend)
        group = key_group("a", GROUPS)
        number = KEYS.index("a")
        assert backend.query("total", "a", group) == number
        assert backend.query("events", "a", group) == [Point(number), Point(0)]
        assert backend.query("seen", "a", group) == {"a": (number,), "b": ()}
        backend.query("point", "a", group).x = 99
        backend.query("events", "a", group).clear()
        backend.query("seen", "a", group).clear()
        assert backend.query("point", "a", group) == Point(number)
        assert (len(backend.query("events", "a", group)), len(backend.query("seen", "a", group))) == (2, 2)

    def test_query_of_a_key_without_state_gives_what_get_would(self, backend: KeyedBackend) -> None:
        self.fill(backend)
        group = key_group("unheard of", GROUPS)
        found = [backend.query(name, "unheard of", group) for name in ("total", "point", "events", "seen")]
        assert found == [0.0, None, [], {}]

    def test_query_during_a_snapshot_leaves_it_alone(self, backend: KeyedBackend) -> None:
        self.fill(backend)
        snapshot = backend.begin_snapshot(1)
        backend.query("events", "a", key_group("a", GROUPS)).append(Point(-1))
        (found,) = [b for b in drained(snapshot) if b.state == "events" and b.group == key_group("a", GROUPS)][:1]
        assert contents(self.restored([found], events=ListState(Point)), "events")["a"][-1] == Point(0)

    def test_query_of_what_is_not_there(self, backend: KeyedBackend) -> None:
        backend.bind("total", ValueState(int))
        with pytest.raises(StateAccessError, match="operator 'totals' has no state 'totl'; it declares: total"):
            backend.query("totl", "a", 0)
        with pytest.raises(StateAccessError, match="key group 16 is not among"):
            backend.query("total", "a", 16)

    def test_schemas_are_plain_data_and_fit_themselves(self, backend: KeyedBackend) -> None:
        self.fill(backend)
        stored = msgspec.msgpack.decode(msgspec.msgpack.encode(backend.schemas()))
        assert stored == backend.schemas()
        backend.check_schemas(stored)

    @pytest.mark.parametrize(
        ("before", "after", "message"),
        [
            (ValueState(int), ValueState(str), "stored as int, now str"),
            (ValueState(int), ListState(int), "stored as value state, now list state"),
            (ListState(int), ListState(str), "stored as int, now str"),
            (MapState(str, int), MapState(int, int), "key stored as str, now int"),
            (MapState(str, list[int]), MapState(str, list[str]), r"field '\[\]': stored as int, now str"),
            (
                ValueState(Point),
                ValueState(Tenant),
                "field 'country' of type str is new and has no default; field 'number'",
            ),
        ],
    )
    def test_another_type_is_refused_naming_all_of_it(
        self, backend: KeyedBackend, before: Any, after: Any, message: str
    ) -> None:
        earlier = self.make()
        earlier.bind("x", before)
        backend.bind("x", after)
        with pytest.raises(IncompatibleState, match=f"operator 'totals', state 'x': {message}"):
            backend.check_schemas(earlier.schemas())

    @pytest.mark.parametrize(
        ("before", "after", "stored", "now"),
        [
            (ValueState(int), ValueState(float, default=0.0), 1, 1.0),
            (ValueState(int), ValueState(int | None, default=None), 1, 1),
            (ValueState(int, default=0), ValueState(int), 1, 1),
            (
                ValueState(Point),
                ValueState(msgspec.defstruct("Point", [("x", float), ("z", int, 7)])),
                Point(3),
                (3.0, 7),
            ),
        ],
    )
    def test_an_allowed_change_reads_what_was_stored(
        self, backend: KeyedBackend, before: Any, after: Any, stored: Any, now: Any
    ) -> None:
        value = backend.bind("x", before)
        stand_on(backend.cursor, "a")
        value.set(stored)
        later = self.restored(drained(backend.begin_snapshot(1)), x=after)
        later.check_schemas(backend.schemas())
        found = contents(later, "x")["a"]
        assert (msgspec.structs.astuple(found) if isinstance(found, msgspec.Struct) else found) == now

    def test_a_stored_none_is_refused_where_none_is_no_value_any_more(self, backend: KeyedBackend) -> None:
        value = backend.bind("x", ValueState(int))
        stand_on(backend.cursor, "a")
        value.set(None)
        with pytest.raises(IncompatibleState, match="'totals', state 'x': a stored value is not of type int"):
            self.restored(drained(backend.begin_snapshot(1)), x=ValueState(int, default=0))

    def test_state_that_is_declared_no_more(self, backend: KeyedBackend) -> None:
        declared = self.fill(backend)
        kept = {"total": declared["total"]}
        later = self.restored(drained(backend.begin_snapshot(1)), **kept)
        with pytest.raises(IncompatibleState, match="state 'point': stored in the checkpoint, but no longer declared"):
            later.check_schemas(backend.schemas())
        later.check_schemas(backend.schemas(), allow_dropped=True)
        assert contents(later, "total") == contents(backend, "total")
