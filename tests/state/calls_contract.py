"""What holds on every backend for state around an await. A test module derives a class from `CallsContract` for its
backend.

A model: what each key holds is plain Python objects; a call works on a deep copy of them, which replaces them when the
call takes effect.
"""

import asyncio
import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import strategies as st

from streamactors.errors import StateAccessError, UnserialisableValue
from streamactors.state.aggregates import Collect
from streamactors.state.backend import KeyedBackend
from streamactors.state.calls import KeyedCall, KeyedCalls, bind_for_calls
from streamactors.state.descriptors import (
    AggregatingState,
    Declaration,
    ListState,
    MapState,
    ReducingState,
    Ttl,
    ValueState,
)
from streamactors.state.key_groups import key_group
from tests.state.backend_contract import GROUPS, contents
from tests.state.kinds_contract import MINUTE, TOUCHED, Spot, merged, sweep
from tests.state.manual_clock import ManualClock

SMALL = st.integers(0, 5)
OPS = st.one_of(
    st.tuples(st.just("set"), SMALL),
    st.tuples(st.sampled_from(["clear_value", "clear_items", "clear_spots", "clear_best", "clear_all"])),
    st.tuples(st.just("append"), SMALL),
    st.tuples(st.just("extend"), st.lists(SMALL, max_size=3)),
    st.tuples(st.just("put"), SMALL, SMALL),
    st.tuples(st.just("delete"), SMALL),
    st.tuples(st.just("pop"), SMALL),
    st.tuples(st.just("popitem")),
    st.tuples(st.just("add"), SMALL),
    st.tuples(st.just("collect"), SMALL),
)
CALLS = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c"]), st.lists(OPS, max_size=8), st.booleans()), min_size=1, max_size=12
)


def all_kinds(ttl: Ttl | None = None) -> dict[str, Any]:
    return {
        "value": ValueState(Spot, ttl=ttl),
        "items": ListState(Spot, ttl=ttl),
        "spots": MapState(int, Spot, ttl=ttl),
        "best": ReducingState(Spot, merged, ttl=ttl),
        "all": AggregatingState(Collect(), ttl=ttl),
    }


SLOW_IS_FINE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
EMPTY: dict[str, Any] = {"value": None, "items": [], "spots": {}, "best": None, "all": []}
FULL: dict[str, Any] = {
    "value": Spot(1), "items": [Spot(1)], "spots": {1: Spot(1)}, "best": Spot(1), "all": [Spot(1)],
}  # fmt: skip


class States:
    """The states of an operator, for its calls."""

    def __init__(self, backend: KeyedBackend, clock: ManualClock, declared: dict[str, Any]) -> None:
        self.backend = backend
        self.calls = KeyedCalls("totals", backend.cursor, clock.time_ms)
        self.bound: dict[str, Any] = {
            name: bind_for_calls(backend, name, _named(declaration, name), self.calls)
            for name, declaration in declared.items()
        }

    def __getitem__(self, name: str) -> Any:
        return self.bound[name]

    def begin(self, key: str) -> KeyedCall:
        call = self.calls.begin(key, key_group(key, GROUPS))
        call.enter()
        return call

    def changing(self, key: str, change: Callable[[], Any]) -> None:
        """A call that takes effect."""
        call = self.begin(key)
        change()
        call.apply()
        call.end()

    def read(self, key: str) -> dict[str, Any]:
        call = self.begin(key)
        try:
            return self.seen()
        finally:
            call.end()

    def seen(self) -> dict[str, Any]:
        return {
            "value": self["value"].get(),
            "items": list(self["items"]),
            "spots": dict(self["spots"].items()),
            "best": self["best"].get(),
            "all": self["all"].get(),
        }


def _named(declaration: Declaration, name: str) -> Declaration:
    declaration.name = name
    return declaration


def reads_agree(states: States, model: dict[str, Any]) -> None:
    """By every way of reading."""
    spots, expected = states["spots"], model["spots"]
    assert states.seen() == model
    assert len(states["items"]) == len(model["items"])
    assert len(spots) == len(expected)
    assert set(spots) == set(expected)
    assert [key in spots for key in range(6)] == [key in expected for key in range(6)]
    assert [spots.get(key) for key in range(6)] == [expected.get(key) for key in range(6)]
    assert list(spots.range(1, 4)) == sorted((key, value) for key, value in expected.items() if 1 <= key < 4)
    assert list(spots.range()) == sorted(expected.items(), key=lambda item: int(item[0]))


def change_state(states: States, op: tuple[Any, ...]) -> None:
    match op:
        case ("set", x):
            states["value"].set(Spot(x))
        case ("append", x):
            states["items"].append(Spot(x))
        case ("extend", xs):
            states["items"].extend(map(Spot, xs))
        case ("put", key, x):
            states["spots"][key] = Spot(x)
        case ("delete", key):
            if key in states["spots"]:
                del states["spots"][key]
        case ("pop", key):
            states["spots"].pop(key, None)
        case ("popitem",):
            if states["spots"]:
                states["spots"].pop(min(states["spots"]))
        case ("add", x):
            states["best"].add(Spot(x))
        case ("collect", x):
            states["all"].add(Spot(x))
        case (what,):
            states[what.removeprefix("clear_")].clear()


def fill(states: States) -> None:
    """Each with one of them."""
    for op in [("set", 1), ("append", 1), ("put", 1, 1), ("add", 1), ("collect", 1)]:
        change_state(states, op)


def change_model(model: dict[str, Any], op: tuple[Any, ...]) -> None:
    match op:
        case ("set", x):
            model["value"] = Spot(x)
        case ("append", x):
            model["items"].append(Spot(x))
        case ("extend", xs):
            model["items"].extend(map(Spot, xs))
        case ("put", key, x):
            model["spots"][key] = Spot(x)
        case ("delete" | "pop", key):
            model["spots"].pop(key, None)
        case ("popitem",):
            if model["spots"]:
                model["spots"].pop(min(model["spots"]))
        case ("add", x):
            model["best"] = Spot(x) if model["best"] is None else merged(model["best"], Spot(x))
        case ("collect", x):
            model["all"].append(Spot(x))
        case (what,):
            name = what.removeprefix("clear_")
            model[name] = copy.deepcopy(EMPTY[name])


class CallsContract(ABC):
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

    @pytest.fixture
    def states(self, backend: KeyedBackend, clock: ManualClock) -> States:
        return States(backend, clock, all_kinds())

    # ------------------------------------------------------------------------------------------------------- the model
    def agrees_with_the_model(self, calls: list[Any], lasting: Ttl | None) -> None:
        """A call sees what it wrote, and others do once it took effect."""
        clock = ManualClock()
        backend = self.make(clock)
        states = States(backend, clock, all_kinds(lasting))
        models: dict[str, dict[str, Any]] = {key: copy.deepcopy(EMPTY) for key in "abc"}
        for key, ops, succeeds in calls:
            call, model = states.begin(key), copy.deepcopy(models[key])
            for op in ops:
                change_state(states, op)
                change_model(model, op)
                reads_agree(states, model)
            if succeeds:
                call.apply()
                models[key] = model
            call.end()
            for each, expected in models.items():
                assert states.read(each) == expected
        backend.close()

    # ----------------------------------------------------------------------------------------------------- copies
    def test_changing_what_was_read_or_written_changes_nothing(self, states: States) -> None:
        spot = Spot(1)
        states.begin("a")
        states["value"].set(spot)
        states["items"].append(spot)
        states["spots"][1] = spot
        states["best"].add(spot)
        spot.x = 9
        assert (states["value"].get(), list(states["items"]), states["spots"][1]) == (Spot(1), [Spot(1)], Spot(1))
        assert states["best"].get() == Spot(1)
        states["value"].get().x = 9
        next(iter(states["items"])).x = 9
        states["spots"][1].x = 9
        next(iter(states["spots"].values())).x = 9
        next(states["spots"].range())[1].x = 9
        assert (states["value"].get(), list(states["items"]), states["spots"][1]) == (Spot(1), [Spot(1)], Spot(1))

    def test_changing_what_is_stored_after_reading_it_changes_nothing(self, states: States) -> None:
        states.changing("a", lambda: fill(states))
        before = states.read("a")
        call = states.begin("a")
        states["value"].get().x = 9
        for spot in [*states["items"], *states["spots"].values(), *states["all"].get(), states["best"].get()]:
            spot.x = 9
        states["best"].add(Spot(5))
        states["all"].add(Spot(5))
        call.end()
        assert states.read("a") == before

    def test_two_calls_at_once_do_not_meet(self, states: States) -> None:
        async def call(key: str, x: int, mine: asyncio.Event, other: asyncio.Event) -> None:
            held = states.begin(key)
            states["value"].set(Spot(x))
            mine.set()
            await other.wait()
            assert states["value"].get() == Spot(x)
            states["items"].append(await asyncio.create_task(helper()))
            held.apply()
            held.end()

        async def helper() -> Spot:
            value: Spot = states["value"].get()
            return value

        async def both() -> None:
            first, second = asyncio.Event(), asyncio.Event()
            async with asyncio.TaskGroup() as group:
                group.create_task(call("a", 1, first, second))
                group.create_task(call("b", 2, second, first))

        asyncio.run(both())
        assert contents(states.backend, "value") == {"a": Spot(1), "b": Spot(2)}
        assert contents(states.backend, "items") == {"a": [Spot(1)], "b": [Spot(2)]}

    def test_nothing_is_stored_before_it_takes_effect(self, states: States) -> None:
        call = states.begin("a")
        fill(states)
        assert all(contents(states.backend, name) == {} for name in EMPTY)
        call.end()
        assert all(contents(states.backend, name) == {} for name in EMPTY)

    # ------------------------------------------------------------------------------------------------------ refusals
    def test_a_call_that_has_ended_reaches_nothing(self, states: States) -> None:
        states.changing("a", lambda: states["spots"].update({1: Spot(1), 2: Spot(2)}))
        call = states.begin("a")
        entries, keys, between = iter(states["spots"].items()), iter(states["spots"]), states["spots"].range()
        assert next(entries) == (1, Spot(1))
        call.end()
        for reach in (
            states["value"].get,
            lambda: states["value"].set(Spot(1)),
            states["items"].__len__,
            lambda: states["items"].append(Spot(1)),
            lambda: states["spots"].get(1),
            lambda: states["best"].add(Spot(1)),
            states["all"].get,
            lambda: next(entries),
            lambda: next(keys),
            lambda: next(between),
        ):
            with pytest.raises(StateAccessError, match="operator 'totals': the call for the key 'a' has ended"):
                reach()

    async def test_another_thread_reaches_nothing(self, states: States) -> None:
        call = states.begin("a")
        fill(states)
        entries = iter(states["spots"].items())
        for reach in (
            states["value"].get,
            lambda: states["value"].set(Spot(1)),
            states["items"].__len__,
            lambda: list(entries),
            lambda: states["best"].add(Spot(1)),
        ):
            with pytest.raises(StateAccessError, match="operator 'totals': another thread .* for the key 'a'"):
                await asyncio.to_thread(reach)
        assert states.seen() == FULL
        call.end()

    def test_without_a_call_there_is_no_key(self, states: States) -> None:
        for name in EMPTY:
            with pytest.raises(StateAccessError, match="operator 'totals': there is no current key"):
                states[name].clear()

    def test_the_call_of_another_operator_is_none(self, states: States, clock: ManualClock) -> None:
        other = KeyedCalls("other", states.backend.cursor, clock.time_ms)
        other.begin("a", 0).enter()
        with pytest.raises(StateAccessError, match="'totals': there is no current key"):
            states["value"].get()

    def test_what_does_not_fit_is_refused_when_it_is_written(self, states: States) -> None:
        states.begin("a")
        with pytest.raises(UnserialisableValue, match="state 'value'"):
            states["value"].set("text")
        with pytest.raises(UnserialisableValue, match="state 'items'"):
            states["items"].append(1)
        with pytest.raises(UnserialisableValue, match="state 'spots'"):
            states["spots"]["one"] = Spot(1)
        with pytest.raises(UnserialisableValue, match="state 'best'"):
            states["best"].add(3)

    def test_what_raises_in_a_fold_leaves_what_was_there(self, states: States) -> None:
        states.changing("a", lambda: states["best"].add(Spot(1)))
        call = states.begin("a")
        with pytest.raises(AttributeError):
            states["best"].add("no spot")
        assert states["best"].get() == Spot(1)
        call.apply()
        assert contents(states.backend, "best") == {"a": Spot(1)}

    # -------------------------------------------------------------------------------------------------------- defaults
    def test_defaults(self, backend: KeyedBackend, clock: ManualClock) -> None:
        unset = object()
        states = States(
            backend,
            clock,
            {
                "marked": ValueState(list, default=unset),
                "listed": ValueState(list[int], default=[1]),
                "made": ValueState(dict, default_factory=dict),
            },
        )
        states.begin("a")
        assert states["marked"].get() is unset
        states["listed"].get().append(2)
        assert states["listed"].get() == [1]
        states["listed"].set([3])
        states["listed"].clear()
        assert states["listed"].get() == [1]
        assert states["made"].get() == {}

    # ---------------------------------------------------------------------------------------------------- time to live
    def lasting(self, backend: KeyedBackend, clock: ManualClock, ttl: Ttl) -> States:
        states = States(backend, clock, all_kinds(ttl))
        states.changing("a", lambda: fill(states))
        return states

    async def test_what_a_call_wrote_lives_from_when_it_took_effect(
        self, backend: KeyedBackend, clock: ManualClock
    ) -> None:
        states = States(backend, clock, all_kinds(MINUTE))
        call = states.begin("a")
        fill(states)
        clock.advance(40)
        call.apply()
        clock.advance(59)
        assert states.read("a") == FULL
        clock.advance(1)
        assert states.read("a") == EMPTY

    async def test_what_was_there_when_a_call_began_stays_there_for_it(
        self, backend: KeyedBackend, clock: ManualClock
    ) -> None:
        states = self.lasting(backend, clock, TOUCHED)
        clock.advance(59)
        call = states.begin("a")
        clock.advance(2)
        assert states.seen() == FULL
        reads_agree(states, FULL)
        call.apply()
        call.end()
        assert states.read("a") == EMPTY  # reading does not bring back what has expired

    async def test_reading_refreshes_when_the_call_takes_effect_and_only_then(
        self, backend: KeyedBackend, clock: ManualClock
    ) -> None:
        states = self.lasting(backend, clock, TOUCHED)
        clock.advance(30)
        states.read("a")  # a call that takes no effect
        clock.advance(25)
        states.changing("a", states.seen)
        clock.advance(59)
        assert states.read("a") == FULL
        clock.advance(1)
        assert states.read("a") == EMPTY

    async def test_reading_does_not_refresh_where_writing_does(self, backend: KeyedBackend, clock: ManualClock) -> None:
        states = self.lasting(backend, clock, MINUTE)
        clock.advance(30)
        states.changing("a", states.seen)
        clock.advance(30)
        assert states.read("a") == EMPTY

    async def test_a_sweep_during_an_iteration_disturbs_nobody(self, backend: KeyedBackend, clock: ManualClock) -> None:
        states = States(backend, clock, all_kinds(MINUTE))
        states.changing("a", lambda: states["spots"].update({key: Spot(key) for key in range(5)}))
        clock.advance(59)
        call = states.begin("a")
        entries = iter(states["spots"].items())
        assert next(entries) == (0, Spot(0))
        clock.advance(1)
        await sweep(backend)
        assert [key for key, _ in entries] == [1, 2, 3, 4]
        assert dict(states["spots"]) == {}
        call.end()

    def test_a_large_map_is_read_on_from_where_it_was(self, states: States) -> None:
        states.changing("a", lambda: states["spots"].update({key: Spot(key) for key in range(0, 3000, 2)}))
        call = states.begin("a")
        states["spots"].update({key: Spot(-key) for key in range(1, 20, 2)})
        del states["spots"][4]
        seen = []
        for key, spot in states["spots"].range(2, 10):
            seen.append((key, spot.x))
            states["spots"][key] = Spot(100)
        assert seen == [(2, 2), (3, -3), (5, -5), (6, 6), (7, -7), (8, 8), (9, -9)]
        assert len(states["spots"]) == 1509
        call.apply()
        assert len(contents(states.backend, "spots")["a"]) == 1509
        assert contents(states.backend, "spots")["a"][6] == Spot(100)
