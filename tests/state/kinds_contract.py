"""What holds on every backend for reducing and aggregating state, ranges of maps, and time to live.

A test module derives a class from `KindsContract` for its backend.
"""

import datetime as dt
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from streamactors.errors import IncompatibleState, StateAccessError, UnserialisableValue
from streamactors.state.aggregates import Aggregates, Avg, Collect, Count, Distinct, Max, Min, Sum, TopN
from streamactors.state.backend import KeyedBackend, StateBlock
from streamactors.state.descriptors import AggregatingState, ListState, MapState, ReducingState, Ttl, ValueState
from streamactors.state.key_groups import key_group
from tests.state.backend_contract import GROUPS, contents, drained, stand_on
from tests.state.manual_clock import ManualClock

MINUTE = Ttl(dt.timedelta(minutes=1))
TOUCHED = Ttl(dt.timedelta(minutes=1), refresh_on="read-write")


class Spot(msgspec.Struct):
    x: int
    y: int = 0


def merged(a: Spot, b: Spot) -> Spot:
    return Spot(a.x + b.x, max(a.y, b.y))


class ExpiringClock(ManualClock):
    """Leaps by a minute after it was looked at so many times."""

    left: int | None = None

    def time_ms(self) -> int:
        now = super().time_ms()
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.left = None
                self.advance(60)
        return now

    @contextmanager
    def last_look(self, looks: int, before: Callable[[], None]) -> Iterator[None]:
        self.left = None
        before()
        self.left = looks
        yield
        self.left = None
        before()


async def no_turn() -> None:
    """Nobody else wants to work."""


async def sweep(backend: KeyedBackend) -> None:
    for state in backend.lifetimes:
        for group in backend.groups:
            await backend.sweep(state, group, no_turn)


class KindsContract(ABC):
    """`make` opens an empty backend that measures time by the clock."""

    @abstractmethod
    def make(self, clock: ManualClock) -> KeyedBackend: ...

    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    @pytest.fixture
    def backend(self, clock: ManualClock) -> Iterable[KeyedBackend]:
        backend = self.make(clock)
        yield backend
        backend.close()

    def restored(self, clock: ManualClock, blocks: Iterable[StateBlock], **states: Any) -> tuple[KeyedBackend, Any]:
        """Standing on the key "a"."""
        backend = self.make(clock)
        bound = [backend.bind(name, declaration) for name, declaration in states.items()]
        backend.restore(blocks)
        stand_on(backend.cursor, "a")
        return backend, bound[0]

    # ---------------------------------------------------------------------------------------- reducing and aggregating
    def test_reducing_state(self, backend: KeyedBackend) -> None:
        total = backend.bind("total", ReducingState(Spot, merged))
        stand_on(backend.cursor, "a")
        assert total.get() is None
        total.add(Spot(1, 5))
        total.add(Spot(2, 3))
        assert total.get() == Spot(3, 5)
        assert backend.query("total", "a", backend.cursor.group) == Spot(3, 5)
        stand_on(backend.cursor, "b")
        assert (total.get(), backend.query("total", "b", backend.cursor.group)) == (None, None)
        stand_on(backend.cursor, "a")
        total.clear()
        assert (total.get(), backend.entries()) == (None, {"total": 0})

    def test_aggregating_state(self, backend: KeyedBackend) -> None:
        number: Callable[[int], int] = lambda value: value  # noqa: E731
        stats = backend.bind(
            "stats",
            AggregatingState(
                Aggregates[int, Any](
                    count=Count(), sum=Sum(number), least=Min(number), largest=Max(number), mean=Avg(number),
                    different=Distinct(number), top=TopN(2, number), all=Collect(),
                )
            ),
        )  # fmt: skip
        stand_on(backend.cursor, "a")
        assert stats.get()["count"] == 0
        for value in (3, 1, 3):
            stats.add(value)
        expected = {
            "count": 3, "sum": 7.0, "least": 1, "largest": 3, "mean": 7 / 3, "different": 2, "top": [3, 3],
            "all": [3, 1, 3],
        }  # fmt: skip
        assert stats.get() == expected == backend.query("stats", "a", backend.cursor.group)
        blocks = drained(backend.begin_snapshot(1))
        stats.clear()
        assert (stats.get()["all"], backend.entries()) == ([], {"stats": 0})
        assert backend.query("stats", "a", backend.cursor.group)["different"] == 0
        restored, again = self.restored(ManualClock(), blocks, stats=stats)
        assert again.get() == expected
        again.add(9)
        assert (again.get()["largest"], again.get()["all"]) == (9, [3, 1, 3, 9])
        restored.close()

    def test_what_is_added_after_a_snapshot_began_is_not_in_it(self, backend: KeyedBackend) -> None:
        """Accumulators may be changed in place."""
        every = backend.bind("every", AggregatingState(Collect[int]()))
        for key in range(40):
            stand_on(backend.cursor, key)
            every.add(1)
        snapshot = backend.begin_snapshot(1)
        blocks = [snapshot.next_block(max_entries=1)]
        for key in range(40):
            stand_on(backend.cursor, key)
            every.add(2)
        blocks += drained(snapshot)
        again = self.make(ManualClock())
        again.bind("every", AggregatingState(Collect[int]()))
        again.restore(block for block in blocks if block is not None)
        assert contents(again, "every") == {key: [1] for key in range(40)}
        again.close()

    def test_a_result_of_another_class_is_refused(self, backend: KeyedBackend) -> None:
        longest: ReducingState[Any] = backend.bind("longest", ReducingState(str, lambda a, b: len(a) + len(b)))
        stand_on(backend.cursor, "a")
        with pytest.raises(UnserialisableValue, match="state 'longest': expected str, found int: 1"):
            longest.add(1)
        longest.add("one")
        with pytest.raises(UnserialisableValue, match="state 'longest': expected str, found int: 6"):
            longest.add("two")
        assert longest.get() == "one"

    def test_another_aggregate_is_refused(self, backend: KeyedBackend, clock: ManualClock) -> None:
        backend.bind("best", AggregatingState(Min[Any, Any](len)))
        other = self.make(clock)
        other.bind("best", AggregatingState(Max[Any, Any](len)))
        with pytest.raises(IncompatibleState, match="state 'best': stored by Min, now Max"):
            other.check_schemas(msgspec.msgpack.decode(msgspec.msgpack.encode(backend.schemas())))
        other.close()

    def test_out_of_reach_without_a_key(self, backend: KeyedBackend) -> None:
        states: list[Any] = [
            backend.bind("reduced", ReducingState(int, max)),
            backend.bind("count", AggregatingState(Count())),
            backend.bind("reduced with ttl", ReducingState(int, max, ttl=MINUTE)),
        ]
        for state in states:
            for use in (state.get, lambda state=state: state.add(1), state.clear):
                with pytest.raises(StateAccessError, match="there is no current key"):
                    use()

    # ---------------------------------------------------------------------------------------------------------- ranges
    @pytest.mark.parametrize("count", [10, 300])
    @pytest.mark.parametrize("ttl", [None, MINUTE])
    def test_ranges_of_a_map(self, backend: KeyedBackend, count: int, ttl: Ttl | None) -> None:
        seen = backend.bind("seen", MapState(int, str, ttl=ttl))
        stand_on(backend.cursor, "a")
        for number in reversed(range(count)):
            seen[number - 5] = str(number)
        drained(backend.begin_snapshot(1))  # RocksDB: written
        del seen[2]
        seen[3] = "changed"
        seen[count] = "new"
        expected = {number - 5: str(number) for number in range(count)} | {3: "changed", count: "new"}
        del expected[2]
        ordered = sorted(expected.items())
        assert list(seen.range()) == ordered
        assert list(seen.range(1, 4)) == [(1, "6"), (3, "changed")]
        assert list(seen.range(start=4)) == [each for each in ordered if each[0] >= 4]
        assert list(seen.range(stop=-3)) == [(-5, "0"), (-4, "1")]
        assert list(seen.range(4, 1)) == []
        assert sorted(seen.items()) == ordered

    def test_a_map_without_an_order_has_no_range(self, backend: KeyedBackend) -> None:
        seen = backend.bind("seen", MapState(frozenset[int], int))
        stand_on(backend.cursor, "a")
        with pytest.raises(StateAccessError, match="state 'seen': keys of type frozenset have no order"):
            seen.range()

    # --------------------------------------------------------------------------------------------------- time to live
    def test_a_value_expires(self, backend: KeyedBackend, clock: ManualClock) -> None:
        last = backend.bind("last", ValueState(int, default=-1, ttl=MINUTE))
        stand_on(backend.cursor, "a")
        assert last.get() == -1
        last.set(1)
        clock.advance(59.999)
        assert last.get() == 1
        last.set(2)
        clock.advance(59.999)
        assert (last.get(), contents(backend, "last")) == (2, {"a": 2})
        clock.advance(0.001)
        assert (last.get(), contents(backend, "last")) == (-1, {})
        assert backend.query("last", "a", backend.cursor.group) == -1

    def test_reading_keeps_alive_if_asked_to(self, backend: KeyedBackend, clock: ManualClock) -> None:
        last = backend.bind("last", ValueState(int, ttl=TOUCHED))
        items = backend.bind("items", ListState(int, ttl=TOUCHED))
        seen = backend.bind("seen", MapState(str, int, ttl=TOUCHED))
        total = backend.bind("total", ReducingState(int, max, ttl=TOUCHED))
        stand_on(backend.cursor, "a")
        last.set(1)
        items.extend([1, 2])
        seen.update(a=1, b=2, c=3)
        total.add(1)
        for _ in range(3):
            clock.advance(40)
            assert (last.get(), list(items), total.get()) == (1, [1, 2], 1)
            assert (seen["a"], list(seen.range("b", "c"))) == (1, [("b", 2)])
        assert dict(seen) == {"a": 1, "b": 2}
        clock.advance(40)
        assert (len(items), len(seen), "a" in seen) == (2, 2, True)  # looking is not reading
        clock.advance(20)
        assert (last.get(), list(items), dict(seen), total.get()) == (None, [], {}, None)

    def test_items_and_entries_expire_one_by_one(self, backend: KeyedBackend, clock: ManualClock) -> None:
        items = backend.bind("items", ListState(str, ttl=MINUTE))
        seen = backend.bind("seen", MapState(str, int, ttl=MINUTE))
        stand_on(backend.cursor, "a")
        for number, name in enumerate("abc"):
            items.append(name)
            seen[name] = number
            clock.advance(20)
        assert (list(items), len(items)) == (["b", "c"], 2)
        assert (dict(seen), len(seen), "a" in seen, seen.get("a"), "b" in seen) == (
            {"b": 1, "c": 2},
            2,
            False,
            None,
            True,
        )
        assert (list(seen.values()), list(seen.items())) == ([1, 2], [("b", 1), ("c", 2)])
        assert seen == {"b": 1, "c": 2}
        assert contents(backend, "seen") == {"a": {"b": 1, "c": 2}}
        assert backend.query("items", "a", backend.cursor.group) == ["b", "c"]
        with pytest.raises(KeyError):
            del seen["a"]
        assert seen.pop("a", None) is None
        seen["b"] = 7
        clock.advance(20)
        assert (dict(seen), list(items), seen.setdefault("c", 9)) == ({"b": 7, "c": 2}, ["c"], 2)
        assert seen.popitem()[0] in "bc"

    @pytest.mark.parametrize("ttl", [MINUTE, TOUCHED], ids=["write", "read"])
    def test_what_an_iteration_gives_can_be_looked_up_though_it_expires_meanwhile(self, ttl: Ttl) -> None:
        clock = ExpiringClock()
        backend = self.make(clock)
        seen = backend.bind("seen", MapState(str, int, ttl=ttl))
        other = backend.bind("other", MapState(str, int, ttl=ttl))
        held = {f"k{number}": number for number in range(10)}
        for number in range(20):
            with clock.last_look(number, lambda: self._write_both(backend, seen, other, held)):
                assert dict(seen.items()) in (held, {})
            with clock.last_look(number, lambda: self._write_both(backend, seen, other, held)):
                assert {key: seen[key] for key in seen}.items() <= held.items()
            with clock.last_look(number, lambda: self._write_both(backend, seen, other, held)):
                assert (seen == other) in (True, False)
        keys = iter(seen)
        assert next(keys) in held
        clock.advance(60)
        stand_on(backend.cursor, "b")
        assert dict(seen.items()) == {}
        stand_on(backend.cursor, "a")
        del keys
        assert dict(seen.items()) == {}
        assert all(key not in seen for key in held)
        backend.close()

    @staticmethod
    def _write_both(backend: KeyedBackend, seen: Any, other: Any, held: dict[str, int]) -> None:
        stand_on(backend.cursor, "a")
        seen.update(held)
        other.update(held)

    def test_folding_begins_afresh(self, backend: KeyedBackend, clock: ManualClock) -> None:
        total = backend.bind("total", ReducingState(int, lambda a, b: a + b, ttl=MINUTE))
        count = backend.bind("count", AggregatingState(Count(), ttl=MINUTE))
        stand_on(backend.cursor, "a")
        for seconds, expected in ((0, 1), (59, 2), (59, 3), (60, 1)):
            clock.advance(seconds)
            total.add(1)
            count.add("x")
            assert (total.get(), count.get()) == (expected, expected)
        clock.advance(60)
        assert (total.get(), count.get(), backend.query("count", "a", backend.cursor.group)) == (None, 0, 0)

    def test_types_are_enforced_under_a_ttl(self, backend: KeyedBackend) -> None:
        value: ValueState[Any] = backend.bind("value", ValueState(float, default=0.0, ttl=MINUTE))
        items: ListState[Any] = backend.bind("items", ListState(int, ttl=MINUTE))
        seen: MapState[Any, Any] = backend.bind("seen", MapState(str, int, ttl=MINUTE))
        count: ReducingState[Any] = backend.bind("count", ReducingState(int, max, ttl=MINUTE))
        stand_on(backend.cursor, "a")
        uses: list[tuple[str, Callable[[], object]]] = [
            ("'value': expected float, found str", lambda: value.set("1")),
            ("'items': expected int, found str", lambda: items.append("1")),
            ("'items': expected int, found tuple", lambda: items.extend([1, (1, 2)])),
            ("'seen': expected int, found str", lambda: seen.update(a="1")),
            ("'seen': expected str, found int", lambda: seen.update({1: 1})),
            ("'count': expected int, found str", lambda: count.add("1")),
        ]
        for message, use in uses:
            with pytest.raises(UnserialisableValue, match=f"state {message}"):
                use()
        value.set(3)
        assert (repr(value.get()), list(items), dict(seen), count.get()) == ("3.0", [], {}, None)

    def test_another_cursor_moves_what_is_bound_already(self, backend: KeyedBackend) -> None:
        value = backend.bind("value", ValueState(int, ttl=MINUTE))
        total = backend.bind("total", ReducingState(int, max))
        cursor = type(backend.cursor)()
        backend.attach(cursor)
        stand_on(cursor, "a")
        value.set(1)
        total.add(2)
        assert (value.get(), total.get()) == (1, 2)

    # ------------------------------------------------------------------------------------------- restore under a ttl
    def all_kinds(self, ttl: Ttl | None) -> dict[str, Any]:
        return {
            "last": ValueState(Spot, ttl=ttl),
            "items": ListState(Spot, ttl=ttl),
            "seen": MapState(str, Spot, ttl=ttl),
            "total": ReducingState(Spot, merged, ttl=ttl),
            "top": AggregatingState(TopN[Spot](2, lambda point: point.x), ttl=ttl),
        }

    def write(self, states: dict[str, Any], x: int) -> None:
        states["last"].set(Spot(x))
        states["items"].append(Spot(x))
        states["seen"][f"k{x}"] = Spot(x)
        states["total"].add(Spot(x))
        states["top"].add(Spot(x))

    def filled(self, clock: ManualClock, ttl: Ttl | None) -> tuple[dict[str, Any], list[StateBlock]]:
        """ "a" was written at 0 and 30 seconds, "b" at 0; it is 40 seconds now. Gives schemas and blocks."""
        backend = self.make(clock)
        states = {name: backend.bind(name, declared) for name, declared in self.all_kinds(ttl).items()}
        for key in ("a", "b"):
            stand_on(backend.cursor, key)
            self.write(states, 1)
        clock.advance(30)
        stand_on(backend.cursor, "a")
        self.write(states, 2)
        clock.advance(10)
        schemas = msgspec.msgpack.decode(msgspec.msgpack.encode(backend.schemas()))
        blocks = drained(backend.begin_snapshot(1), 2)
        backend.close()
        return schemas, blocks

    def reopened(self, clock: ManualClock, filled: tuple[dict[str, Any], list[StateBlock]], ttl: Ttl | None) -> Any:
        backend = self.make(clock)
        for name, declared in self.all_kinds(ttl).items():
            backend.bind(name, declared)
        schemas, blocks = filled
        backend.check_schemas(schemas)
        backend.restore(blocks)
        return backend

    def held(self, backend: KeyedBackend) -> dict[str, Any]:
        return {name: contents(backend, name) for name in self.all_kinds(None)}

    def expected(self, *keys: str, xs: list[int]) -> dict[str, Any]:
        points = [Spot(x) for x in xs]
        return {
            "last": dict.fromkeys(keys, points[-1]),
            "items": dict.fromkeys(keys, points),
            "seen": {key: {f"k{x}": Spot(x) for x in xs} for key in keys},
            "total": dict.fromkeys(keys, Spot(3)),
            "top": {key: [Spot(2), Spot(1)] for key in keys},
        }

    def test_time_goes_on_over_a_restore(self, clock: ManualClock) -> None:
        filled = self.filled(clock, MINUTE)
        clock.advance(20)
        backend = self.reopened(clock, filled, MINUTE)
        assert self.held(backend) == self.expected("a", xs=[2])
        clock.advance(30)
        assert self.held(backend) == {name: {} for name in self.all_kinds(None)}
        backend.close()

    def test_another_time_holds_for_what_was_stored(self, clock: ManualClock) -> None:
        filled = self.filled(clock, MINUTE)
        shorter = self.reopened(clock, filled, Ttl(dt.timedelta(seconds=20)))
        assert self.held(shorter)["items"] == {"a": [Spot(2)]}
        shorter.close()
        clock.advance(3600)
        longer = self.reopened(clock, filled, Ttl(dt.timedelta(days=1)))
        assert self.held(longer)["items"] == {"a": [Spot(1), Spot(2)], "b": [Spot(1)]}
        longer.close()

    def test_a_ttl_that_is_added_counts_from_the_restore(self, clock: ManualClock) -> None:
        filled = self.filled(clock, None)
        clock.advance(3600)
        backend = self.reopened(clock, filled, MINUTE)
        clock.advance(59)
        assert self.held(backend)["seen"] == {"a": {"k1": Spot(1), "k2": Spot(2)}, "b": {"k1": Spot(1)}}
        assert (self.held(backend)["total"], self.held(backend)["top"]["a"]) == (
            {"a": Spot(3), "b": Spot(1)},
            [Spot(2), Spot(1)],
        )
        clock.advance(1)
        assert self.held(backend) == {name: {} for name in self.all_kinds(None)}
        backend.close()

    def test_a_ttl_that_is_taken_away_keeps_what_was_there(self, clock: ManualClock) -> None:
        filled = self.filled(clock, MINUTE)
        backend = self.reopened(clock, filled, None)
        clock.advance(3600)
        assert self.held(backend)["items"] == {"a": [Spot(1), Spot(2)], "b": [Spot(1)]}
        assert self.held(backend)["last"] == {"a": Spot(2), "b": Spot(1)}
        backend.close()

    def test_the_schema_tells_the_ttl(self, backend: KeyedBackend) -> None:
        backend.bind("plain", ValueState(int))
        backend.bind("last", ValueState(int, ttl=TOUCHED))
        schemas = backend.schemas()
        assert "ttl" not in schemas["plain"]
        assert schemas["last"]["ttl"] == {"after": 60_000, "refresh_on": "read-write"}
        assert backend.lifetimes == {"last": 60.0}

    # --------------------------------------------------------------------------------------------------------- sweeping
    async def test_sweeping_removes_what_has_expired_and_nothing_else(
        self, backend: KeyedBackend, clock: ManualClock
    ) -> None:
        states = {name: backend.bind(name, declared) for name, declared in self.all_kinds(MINUTE).items()}
        for key in range(300):
            stand_on(backend.cursor, key)
            self.write(states, key)
        clock.advance(40)
        for key in range(100):
            stand_on(backend.cursor, key)
            self.write(states, 1000)
        backend.cursor.clear()
        clock.advance(20)
        before = self.held(backend)
        await sweep(backend)
        assert set(backend.entries().values()) == {100}
        assert self.held(backend) == before
        assert before["items"] == {key: [Spot(1000)] for key in range(100)}
        clock.advance(40)
        await sweep(backend)
        assert set(backend.entries().values()) == {0}
        assert drained(backend.begin_snapshot(1)) == []

    @pytest.mark.parametrize("count", [5_000])
    async def test_sweeping_long_lists_and_large_maps(
        self, backend: KeyedBackend, clock: ManualClock, count: int
    ) -> None:
        items = backend.bind("items", ListState(int, ttl=MINUTE))
        seen = backend.bind("seen", MapState(int, int, ttl=MINUTE))
        for key in ("a", "b"):
            stand_on(backend.cursor, key)
            for start in range(0, count, 100):
                items.extend(range(start, start + 100))
                seen.update(dict.fromkeys(range(start, start + 100), 1))
                drained(backend.begin_snapshot(1))  # RocksDB: written
                clock.advance(0.001)
        clock.advance(59.94)  # half of "a" has expired, nothing of "b"
        backend.cursor.clear()
        before = {name: contents(backend, name) for name in ("items", "seen")}
        assert 0 < len(before["items"]["a"]) < count
        await sweep(backend)
        after = {name: contents(backend, name) for name in ("items", "seen")}
        assert after == before
        stand_on(backend.cursor, "a")
        items.append(-1)
        seen[-1] = 1
        assert (list(items), len(seen)) == ([*before["items"]["a"], -1], len(before["seen"]["a"]) + 1)
        backend.cursor.clear()
        clock.advance(60)
        await sweep(backend)
        assert backend.entries() == {"items": 0, "seen": 0}

    async def test_a_snapshot_that_runs_meanwhile_holds_what_there_was(
        self, backend: KeyedBackend, clock: ManualClock
    ) -> None:
        items = backend.bind("items", ListState(Spot, ttl=MINUTE))
        seen = backend.bind("seen", MapState(int, Spot, ttl=MINUTE))
        for key in range(50):
            stand_on(backend.cursor, key)
            items.extend([Spot(key), Spot(1)])
            seen.update({1: Spot(key), 2: Spot(2)})
        backend.cursor.clear()
        snapshot = backend.begin_snapshot(1)
        first = snapshot.next_block(max_entries=3)
        assert first is not None
        clock.advance(60)
        await sweep(backend)
        clock.advance(-30)
        again = self.make(clock)
        again.bind("items", ListState(Spot, ttl=MINUTE))
        again.bind("seen", MapState(int, Spot, ttl=MINUTE))
        again.restore([first, *drained(snapshot)])
        assert contents(again, "items") == {key: [Spot(key), Spot(1)] for key in range(50)}
        assert contents(again, "seen") == {key: {1: Spot(key), 2: Spot(2)} for key in range(50)}
        again.close()
        assert backend.entries() == {"items": 0, "seen": 0}

    async def test_the_key_in_hand_is_left_alone(self, backend: KeyedBackend, clock: ManualClock) -> None:
        seen = backend.bind("seen", MapState(int, int, ttl=MINUTE))
        stand_on(backend.cursor, "a")
        seen.update({1: 1})
        clock.advance(59)
        seen.update({2: 2, 3: 3})
        walking = iter(seen)
        assert next(walking) == 1
        clock.advance(1)
        await sweep(backend)
        assert list(walking) == [2, 3]
        stand_on(backend.cursor, "b")
        await sweep(backend)
        assert contents(backend, "seen") == {"a": {2: 2, 3: 3}}

    async def test_sweeping_lets_others_work(self, backend: KeyedBackend, clock: ManualClock) -> None:
        """A long list and a large map take many slices, and may be changed in between."""
        items = backend.bind("items", ListState(int, ttl=MINUTE))
        seen = backend.bind("seen", MapState(int, int, ttl=MINUTE))
        stand_on(backend.cursor, "a")
        items.extend(range(3000))
        seen.update({number: number for number in range(3000)})
        clock.advance(60)
        backend.cursor.clear()
        turns = 0

        async def turn() -> None:
            nonlocal turns
            turns += 1
            stand_on(backend.cursor, "a")
            items.append(-turns)
            seen[-turns] = turns
            if turns == 2:
                seen.clear()
                items.clear()
            backend.cursor.clear()

        for state in ("items", "seen"):
            await backend.sweep(state, key_group("a", GROUPS), turn)
        assert turns >= 3
        stand_on(backend.cursor, "a")
        assert list(items) == [-number for number in range(3, turns + 1)]
        assert dict(seen) == {-number: number for number in range(3, turns + 1)}
        backend.cursor.clear()
        await sweep(backend)
        assert contents(backend, "items") == {"a": [-number for number in range(3, turns + 1)]}
