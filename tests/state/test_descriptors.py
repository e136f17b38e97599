"""What users declare, and what they get told when they declare or use it wrongly."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest

from streamactors.errors import InvalidDataflow, StateAccessError
from streamactors.state.aggregates import Count
from streamactors.state.descriptors import (
    AggregatingState,
    Declaration,
    ListState,
    MapState,
    ReducingState,
    Ttl,
    ValueState,
    declared_states,
    stored_as,
)
from streamactors.state.heap.backend import HeapBackend
from streamactors.state.key_groups import KeyGroupRange


class Base:
    total = ValueState(float, default=0.0)
    last = ValueState(int)


class Derived(Base):
    seen = MapState(str, int)
    last = None  # type: ignore[assignment]


class Replaced(Base):
    total = ValueState(int, default=0)


class MadeInInit:
    def __init__(self) -> None:
        self.count = ValueState(int)


class Twice:
    a = ValueState(int)
    b = a


class TestDeclared:
    def test_are_found_along_the_bases(self) -> None:
        assert declared_states(Base()) == {"total": Base.total, "last": Base.last}
        assert declared_states(Derived) == {"total": Base.total, "seen": Derived.seen}
        assert declared_states(Replaced()) == {"total": Replaced.total, "last": Base.last}
        assert declared_states(object()) == {}

    def test_are_found_as_well_once_they_are_bound(self) -> None:
        operator, backend = Base(), HeapBackend(KeyGroupRange(0, 1), 1)
        for name, declaration in declared_states(operator).items():
            setattr(operator, name, backend.bind(name, declaration))
        assert declared_states(operator) == {"total": Base.total, "last": Base.last}
        assert operator.total is not Base.total and isinstance(operator.total, ValueState)
        assert (operator.total.name, operator.total.owner) == ("total", "Base")

    def test_state_made_in_init_is_refused(self) -> None:
        with pytest.raises(
            InvalidDataflow, match="MadeInInit.count is made in __init__: declare state as a class attr"
        ):
            declared_states(MadeInInit())

    def test_one_state_under_two_names_is_refused(self) -> None:
        with pytest.raises(InvalidDataflow, match="Twice declares one state under two names, 'a' and 'b'"):
            declared_states(Twice)

    def test_two_states_under_one_stored_name_are_refused(self) -> None:
        class Both:
            total = ValueState(int)
            sum = stored_as("total", ValueState(float))

        with pytest.raises(InvalidDataflow, match="Both stores 'total' and 'sum' both as 'total'"):
            declared_states(Both)


class TestUnbound:
    seen = MapState(str, int)
    items = ListState(int)
    value = ValueState(int)
    reduced = ReducingState(int, max)
    counted = AggregatingState(Count())

    @pytest.mark.parametrize(
        "use",
        [
            lambda: TestUnbound.value.get(),
            lambda: TestUnbound.value.set(1),
            lambda: TestUnbound.value.clear(),
            lambda: TestUnbound.items.append(1),
            lambda: TestUnbound.items.extend([1]),
            lambda: list(TestUnbound.items),
            lambda: len(TestUnbound.items),
            lambda: TestUnbound.items.clear(),
            lambda: TestUnbound.seen.range(),
            lambda: TestUnbound.reduced.add(1),
            lambda: TestUnbound.reduced.get(),
            lambda: TestUnbound.reduced.clear(),
            lambda: TestUnbound.counted.add(1),
            lambda: TestUnbound.counted.get(),
            lambda: TestUnbound.counted.clear(),
            lambda: TestUnbound.seen["a"],
            lambda: TestUnbound.seen.update(a=1),
            lambda: TestUnbound.seen.pop("a"),
            lambda: list(TestUnbound.seen.items()),
            lambda: "a" in TestUnbound.seen,
            lambda: len(TestUnbound.seen),
            lambda: TestUnbound.seen.clear(),
        ],
    )
    def test_use_of_a_declaration_names_it(self, use: Callable[[], Any]) -> None:
        with pytest.raises(
            StateAccessError,
            match=r"declared on class TestUnbound, holds nothing .* use it as self\.\w+, inside process",
        ):
            use()

    def test_a_declaration_without_a_name(self) -> None:
        with pytest.raises(StateAccessError, match="ValueState holds nothing by itself"):
            ValueState(int).get()

    def test_declarations_can_be_kept_in_sets(self) -> None:
        assert len({self.seen, self.items, self.value, self.seen}) == 3
        assert self.seen == self.seen and self.seen != MapState(str, int)


class TestArguments:
    def test_default_and_factory_exclude_each_other(self) -> None:
        both: Any = {"default": [], "default_factory": list}
        with pytest.raises(InvalidDataflow, match="give default or default_factory, not both"):
            ValueState(list, **both)

    @pytest.mark.parametrize(
        "declare",
        [
            lambda ttl: ValueState(int, ttl=ttl),
            lambda ttl: ListState(int, ttl=ttl),
            lambda ttl: MapState(int, int, ttl=ttl),
            lambda ttl: ReducingState(int, max, ttl=ttl),
            lambda ttl: AggregatingState(Count(), ttl=ttl),
        ],
    )
    def test_time_to_live_is_a_ttl(self, declare: Callable[[Any], Declaration]) -> None:
        hour = Ttl(dt.timedelta(hours=1))
        assert declare(hour).ttl is hour
        with pytest.raises(
            InvalidDataflow, match=r"State\(ttl=datetime.timedelta\(.*\)\): give a Ttl, as in ttl=sa.Ttl"
        ):
            declare(dt.timedelta(hours=1))

    def test_a_reducing_function_is_a_plain_one(self) -> None:
        async def larger(a: int, b: int) -> int:
            return max(a, b)

        anything: list[Any] = [larger, 3]
        for fn in anything:
            with pytest.raises(InvalidDataflow, match="give a plain function of two values"):
                ReducingState(int, fn)

    def test_senseless_times_to_live(self) -> None:
        for after in (dt.timedelta(0), 5):
            with pytest.raises(InvalidDataflow, match="give a timedelta above zero"):
                Ttl(after)  # type: ignore[arg-type]
        with pytest.raises(InvalidDataflow, match="at least a millisecond"):
            Ttl(dt.timedelta(microseconds=999))
        with pytest.raises(InvalidDataflow, match="'write' or 'read-write'"):
            Ttl(dt.timedelta(1), refresh_on="read")  # type: ignore[arg-type]
