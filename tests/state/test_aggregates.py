"""What the built-in aggregates give, for any values and any split of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import reduce
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamactors.errors import InvalidDataflow, UnserialisableValue
from streamactors.state.aggregates import (
    Aggregate,
    Aggregates,
    Avg,
    Collect,
    Count,
    Distinct,
    Max,
    Min,
    Sum,
    TopN,
    signature_of,
    signature_problems,
)
from streamactors.state.descriptors import AggregatingState
from streamactors.state.serialisation.serializers import serializer_for

pytestmark = pytest.mark.slow


def itself(value: Any) -> Any:
    return value


def folded(aggregate: Aggregate[Any, Any, Any], values: list[Any]) -> Any:
    return reduce(aggregate.add, values, aggregate.create())


def result(aggregate: Aggregate[Any, Any, Any], values: list[Any]) -> Any:
    return aggregate.result(folded(aggregate, values))


@dataclass
class Totals:
    count: int
    largest: Any


class Blob:
    """Nothing knows how to store it."""


BUILT_IN: dict[str, Callable[[], Aggregate[Any, Any, Any]]] = {
    "count": Count,
    "sum": lambda: Sum(lambda value: float(value[0])),
    "avg": lambda: Avg(lambda value: float(value[0])),
    "min": lambda: Min(itself),
    "max": lambda: Max(lambda value: value[0]),
    "distinct": lambda: Distinct(lambda value: value[0]),
    "top": lambda: TopN(3, lambda value: value[0]),
    "collect": Collect,
    "several": lambda: Aggregates(Totals, count=Count(), largest=Max(itself)),
    "nested": lambda: Aggregates(top=TopN(2, lambda value: value[0]), inner=Aggregates(n=Count(), all=Collect())),
}
each_aggregate = pytest.mark.parametrize("make", BUILT_IN.values(), ids=BUILT_IN.keys())

# The second part tells equal ones apart. Whole numbers, whose sums are exact.
pairs = st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 99)), max_size=12)


@each_aggregate
@given(parts=st.lists(pairs, max_size=4))
def test_any_split_and_merge_equals_the_whole(
    make: Callable[[], Aggregate[Any, Any, Any]], parts: list[list[Any]]
) -> None:
    aggregate = make()
    merged = reduce(aggregate.merge, [folded(aggregate, part) for part in parts], aggregate.create())
    whole = result(aggregate, list(chain.from_iterable(parts)))
    assert repr(aggregate.result(merged)) == repr(whole)  # by repr, since NaN is not equal to itself


@each_aggregate
@given(values=pairs)
def test_accumulators_are_of_their_declared_type(
    make: Callable[[], Aggregate[Any, Any, Any]], values: list[Any]
) -> None:
    aggregate = make()
    serializer = serializer_for(aggregate.accumulator)
    accumulator = folded(aggregate, values)
    assert type(accumulator) in serializer.types
    assert serializer.decode(serializer.encode(accumulator)) == accumulator


@given(values=pairs)
def test_results(values: list[Any]) -> None:
    numbers = [number for number, _ in values]
    assert result(Count(), values) == len(values)
    assert result(Sum(itself), [float(number) for number in numbers]) == sum(numbers)
    assert result(Min(itself), values) == min(values, default=None)
    assert result(Max(itself), values) == max(values, default=None)
    assert result(Distinct(itself), numbers) == len(set(numbers))
    assert result(TopN(3, lambda value: value[0]), values) == sorted(values, key=lambda value: -value[0])[:3]
    assert result(Collect(), values) == values
    assert result(Aggregates(n=Count(), top=Max(itself)), values) == {
        "n": len(values),
        "top": max(values, default=None),
    }


def test_results_of_nothing() -> None:
    assert [result(make(), []) for make in (Count, Collect)] == [0, []]
    assert (result(Sum(itself), []), result(Min(itself), []), result(Max(itself), [])) == (0.0, None, None)
    assert math.isnan(result(Avg(itself), []))
    assert (result(Distinct(itself), []), result(TopN(1, itself), [])) == (0, [])
    assert result(Aggregates(Totals, count=Count(), largest=Max(itself)), []) == Totals(0, None)


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_none_and_nan_are_no_values_where_they_compare_with_nothing(nothing: Any) -> None:
    for values in ([nothing, 2, 1], [2, nothing, 1], [2, 1, nothing]):
        assert result(Min(itself), values) == 1
        assert result(Max(itself), values) == 2
        assert result(Distinct(itself), values) == 2
        assert result(TopN(5, itself), values) == [2, 1]
        assert result(Count(), values) == 3


def test_nan_spoils_sums_and_none_is_an_error() -> None:
    assert math.isnan(result(Sum(itself), [1.0, math.nan])) and math.isnan(result(Avg(itself), [1.0, math.nan]))
    for nothing in (None, "3", Decimal(3)):
        for aggregate in (Sum(itself), Avg(itself)):
            with pytest.raises(TypeError, match="expected a number"):
                result(aggregate, [nothing])


@pytest.mark.parametrize("number", [np.float32, np.float64, np.int64, Fraction, bool])
def test_sums_of_other_numbers_are_floats_that_can_be_stored(number: Any) -> None:
    several = Aggregates[Any, dict[str, Any]](sum=Sum(itself), avg=Avg(itself))
    accumulator = folded(several, [1e8, number(1), number(0)])
    serializer = serializer_for(several.accumulator)
    assert serializer.decode(serializer.encode(accumulator)) == {"sum": 1e8 + 1, "avg": (1e8 + 1, 3)}


@pytest.mark.parametrize("make", [lambda: Min(itself), lambda: Max(itself), lambda: Distinct(itself), Collect])
def test_a_class_that_cannot_be_stored_is_refused_at_its_first_value(
    make: Callable[[], Aggregate[Any, Any, Any]],
) -> None:
    with pytest.raises(UnserialisableValue, match="Blob can't be stored"):
        result(make(), [Blob()])


def test_a_result_gives_no_accumulator_away() -> None:
    for aggregate in (Collect[int](), TopN[int](3, itself)):
        accumulator = folded(aggregate, [1])
        aggregate.result(accumulator).append(2)
        assert aggregate.result(accumulator) == [1]


def test_a_value_that_one_of_several_fails_for_counts_in_none() -> None:
    several = Aggregates[Any, dict[str, Any]](count=Count(), least=Min(itself), sum=Sum(itself))
    accumulator = folded(several, [3])
    with pytest.raises(TypeError):
        several.add(accumulator, None)
    assert several.result(accumulator) == {"count": 1, "least": 3, "sum": 3.0}


def test_what_is_no_aggregate_is_refused() -> None:
    anything: Any = Count
    with pytest.raises(InvalidDataflow, match=r"Count is a class; give an instance, Count\("):
        AggregatingState(anything)
    with pytest.raises(InvalidDataflow, match=r"Aggregates\(n=…\): expected an Aggregate such as Count\(\), found 3"):
        Aggregates(n=3)  # type: ignore[call-overload]
    with pytest.raises(InvalidDataflow, match=r"Aggregates\(\): name at least one"):
        Aggregates()
    with pytest.raises(InvalidDataflow, match="from 1 up"):
        TopN(0, itself)
    with pytest.raises(InvalidDataflow, match=r"AggregatingState: make Awaiting.add a plain function, not async"):
        AggregatingState(Awaiting())


class Awaiting(Count):
    async def add(self, accumulator: int, value: Any) -> int:  # type: ignore[override]
        return accumulator


class Own(Aggregate[int, int, int]):
    def create(self) -> int:
        return 0

    def add(self, accumulator: int, value: int) -> int:
        return accumulator + value

    def merge(self, left: int, right: int) -> int:
        return left + right

    def result(self, accumulator: int) -> int:
        return accumulator


def test_an_aggregate_tells_the_type_of_its_accumulator() -> None:
    with pytest.raises(InvalidDataflow, match=r"Own.accumulator: give its type, as in `accumulator = tuple\["):
        AggregatingState(Own())


def test_which_aggregate_may_go_on_with_what_another_has_stored() -> None:
    def problems(old: Aggregate[Any, Any, Any], new: Aggregate[Any, Any, Any]) -> list[str]:
        return signature_problems(signature_of(old), signature_of(new))

    several = Aggregates(a=Min(itself), b=Count())
    assert problems(Min(itself), Min(str)) == problems(Own(), Min(itself)) == problems(several, several) == []
    assert problems(Min(itself), Max(itself)) == ["stored by Min, now Max"]
    assert problems(several, Aggregates(a=Max(itself), b=Count())) == ["aggregate 'a': stored by Min, now Max"]
    assert problems(several, Count()) == ["stored by Aggregates, now Count"]
