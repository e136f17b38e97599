"""The heap backend: the contract, and what only the heap promises."""

from typing import Any

import msgspec
import pytest

from streamactors.state.backend import KeyedBackend
from streamactors.state.descriptors import ListState, MapState, ValueState
from streamactors.state.heap.backend import HeapBackend
from streamactors.state.key_groups import KeyGroupRange
from tests.state.backend_contract import ALL, GROUPS, BackendContract, Point, contents, drained, stand_on


class TestHeap(BackendContract):
    def make(self, groups: KeyGroupRange = ALL, max_parallelism: int = GROUPS, uid: str = "totals") -> KeyedBackend:
        return HeapBackend(groups, max_parallelism, uid=uid)


class SteppingClock:
    """Time passes only when state is serialised: one unit for each reading."""

    def __init__(self, step: float) -> None:
        self.now = 0.0
        self.step = step

    def monotonic(self) -> float:
        self.now += self.step
        return self.now

    def time_ms(self) -> int:
        return round(self.now * 1000)


def filled(keys: int, clock: Any = None) -> tuple[HeapBackend, ValueState[Any], ListState[Any]]:
    backend = HeapBackend(KeyGroupRange(0, 1), 1, uid="totals", **({"clock": clock} if clock else {}))
    total = backend.bind("total", ValueState(float, default=0.0))
    points = backend.bind("points", ListState(Point))
    for key in range(keys):
        stand_on(backend.cursor, key, 1)
        total.set(1.0)
        points.append(Point(key))
    return backend, total, points


class TestSnapshots:
    def test_tables_are_plain_dicts_again_when_the_last_snapshot_ends(self) -> None:
        backend, total, _ = filled(10)
        tables = backend._stores["total"].tables
        snapshots = [backend.begin_snapshot(number) for number in range(3)]
        assert type(tables[0]) is not dict
        drained(snapshots[0])
        snapshots[1].abort()
        assert type(tables[0]) is not dict
        stand_on(backend.cursor, 3, 1)
        total.set(2.0)
        drained(snapshots[2])
        assert type(tables[0]) is dict
        assert tables[0][3] == 2.0

    def test_the_synchronous_part_looks_at_no_key(self) -> None:
        class Untouchable(dict[Any, Any]):
            """A table that says when its keys are walked."""

            def copy(self) -> Any:
                raise AssertionError("copied")

            __iter__ = items = values = keys = copy

        backend, _, _ = filled(10)
        store = backend._stores["total"]
        store.tables[0] = Untouchable(store.tables[0])
        snapshot = backend.begin_snapshot(1)
        with pytest.raises(AssertionError, match="copied"):
            drained(snapshot)

    def test_reading_what_cannot_be_changed_captures_nothing(self) -> None:
        backend, total, points = filled(10)
        snapshot = backend.begin_snapshot(1)
        for key in range(10):
            stand_on(backend.cursor, key, 1)
            total.get()
        waiting = {capture._store.name: capture for capture in snapshot._waiting}
        assert not waiting["total"]._kept
        list(points)
        assert list(waiting["points"]._kept) == [9]

    def test_a_touched_entry_is_kept_once(self) -> None:
        backend, total, points = filled(10)
        snapshot = backend.begin_snapshot(1)
        stand_on(backend.cursor, 3, 1)
        for _ in range(5):
            total.set(total.get() + 1)
            points.append(Point(0))
        assert all(len(capture._kept) == 1 for capture in snapshot._waiting)

    def test_blocks_are_as_long_as_the_time_allows(self) -> None:
        """Each block takes a millisecond by this clock. The pace follows the last block, but at most doubles."""
        backend, _, _ = filled(20_000, SteppingClock(0.001))
        snapshot = backend.begin_snapshot(1)
        sizes = []
        for budget in (0.0005, 0.001, 0.01, 0.0001):
            block = snapshot.next_block(budget)
            assert block is not None
            sizes.append(block.entries)
        assert sizes == [100, 100, 1000, 20]

    def test_a_budget_of_nothing_still_gets_on(self) -> None:
        backend, _, _ = filled(5)
        snapshot = backend.begin_snapshot(1)
        sizes = []
        while (block := snapshot.next_block(0.0)) is not None:
            sizes.append(block.entries)
        assert sizes == [1] * 10

    def test_long_lists_count_by_their_items(self) -> None:
        backend = HeapBackend(KeyGroupRange(0, 1), 1)
        events = backend.bind("events", ListState(int))
        for key in range(10):
            stand_on(backend.cursor, key, 1)
            events.extend(range(50))
        assert [block.entries for block in drained(backend.begin_snapshot(1), 100)] == [2] * 5


class TestBoundState:
    def test_values_are_stored_as_they_are(self) -> None:
        """No copies on the hot path: a value changes by `set` only, so who changes it in place is to blame."""
        backend = HeapBackend(KeyGroupRange(0, 1), 1)
        point = backend.bind("point", ValueState(Point))
        stand_on(backend.cursor, "a", 1)
        value = Point(1)
        point.set(value)
        assert point.get() is value

    def test_a_map_compares_as_a_mapping(self) -> None:
        backend = HeapBackend(KeyGroupRange(0, 1), 1)
        left, right = backend.bind("left", MapState(str, int)), backend.bind("right", MapState(str, int))
        stand_on(backend.cursor, "a", 1)
        left["x"] = right["x"] = 1
        assert left == right
        right["y"] = 2
        assert left != right

    def test_a_state_of_structs_survives_with_all_its_fields(self) -> None:
        wide = msgspec.defstruct("Wide", [(f"field_{number}", int) for number in range(40)])
        backend = HeapBackend(KeyGroupRange(0, 1), 1)
        state: ValueState[Any] = backend.bind("wide", ValueState(wide))
        stand_on(backend.cursor, "a", 1)
        state.set(wide(*range(40)))
        later = HeapBackend(KeyGroupRange(0, 1), 1)
        later.bind("wide", ValueState(wide))
        later.restore(drained(backend.begin_snapshot(1)))
        assert contents(later, "wide") == {"a": wide(*range(40))}
