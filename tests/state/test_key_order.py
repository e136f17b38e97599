"""Ranges over a map's keys: the order of both backends is Python's, or there is none."""

import datetime as dt
import enum
import uuid
from collections.abc import Iterator
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamactors.errors import StateAccessError, UnserialisableKey
from streamactors.state.backend import KeyedBackend
from streamactors.state.descriptors import MapState
from streamactors.state.heap.backend import HeapBackend
from streamactors.state.key_groups import KeyGroupRange
from streamactors.state.key_order import KeyOrder
from streamactors.state.rocksdb.backend import RocksDBBackend, RocksDBOptions
from streamactors.state.storage_keys import StorageKeys

pytestmark = pytest.mark.slow


class Seat(NamedTuple):
    row: int
    letter: str


class Colour(enum.Enum):
    RED = 1


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
ORDERED: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, st.integers(-(2**63), 2**63 - 1)),
    (int, st.integers(-3, 3)),
    (float, st.floats(allow_nan=False)),
    (int | float, st.one_of(st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False))),
    (bool, st.booleans()),
    (str, text),
    (bytes, st.binary(max_size=4)),
    (dt.date, st.dates()),
    (dt.datetime, st.datetimes()),
    (dt.datetime, st.datetimes(timezones=st.just(dt.UTC))),
    (dt.timedelta, st.timedeltas()),
    (uuid.UUID, st.uuids()),
    (tuple[str, int], st.tuples(text, st.integers(-9, 9))),
    (tuple[int, ...], st.lists(st.integers(-2, 2), max_size=3).map(tuple)),
    (Seat, st.builds(Seat, st.integers(0, 3), text)),
]


@pytest.mark.parametrize(("key_type", "keys"), ORDERED, ids=[str(tp) for tp, _ in ORDERED])
@settings(max_examples=50)
@given(data=st.data())
def test_a_range_is_that_of_sorted_keys(key_type: Any, keys: st.SearchStrategy[Any], data: st.DataObject) -> None:
    entries = data.draw(st.dictionaries(keys, st.integers(), max_size=12))
    start, stop = data.draw(st.none() | keys), data.draw(st.none() | keys)
    found = list(KeyOrder("state 'x'", key_type).between(entries, start, stop))
    inside = [key for key in entries if (start is None or key >= start) and (stop is None or key < stop)]
    assert found == [(key, entries[key]) for key in sorted(inside)]


@pytest.mark.parametrize(("key_type", "keys"), ORDERED, ids=[str(tp) for tp, _ in ORDERED])
def test_rocksdb_gives_the_range_of_the_heap(
    key_type: Any, keys: st.SearchStrategy[Any], tmp_path: Path, numbers: Iterator[int]
) -> None:
    """Small maps are in memory as a whole; of large ones some entries are read, and some not written yet."""
    options = RocksDBOptions(folder=str(tmp_path), memory=8 << 20, cache=16, dirty=4)
    one = KeyGroupRange(0, 1)
    backends: list[KeyedBackend] = [RocksDBBackend(one, 1, options=options), HeapBackend(one, 1)]
    states: list[MapState[Any, int]] = [backend.bind("state", MapState(key_type, int)) for backend in backends]

    @settings(max_examples=25, deadline=None)
    @given(
        stored=st.lists(keys, max_size=90), later=st.lists(keys, max_size=9), bounds=st.tuples(*[st.none() | keys] * 2)
    )
    def same(stored: list[Any], later: list[Any], bounds: tuple[Any, Any]) -> None:
        number = next(numbers)
        for backend, state in zip(backends, states, strict=True):
            backend.cursor.key, backend.cursor.group = number, 0
            state.update((key, place) for place, key in enumerate(stored))
            backend.begin_snapshot(number).abort()  # writes
            state.update((key, -place) for place, key in enumerate(later))
            for key in stored[::3]:
                state.pop(key, None)
        in_rocksdb, on_heap = (list(state.range(*bounds)) for state in states)
        assert in_rocksdb == on_heap

    try:
        same()
    finally:
        for backend in backends:
            backend.close()


@pytest.fixture
def numbers() -> Iterator[int]:
    return count()


@pytest.mark.parametrize(
    "key_type", [Decimal, Colour, frozenset[int], dt.time, int | None, int | str, object, tuple[str, Decimal], Any]
)
def test_a_type_without_an_order_is_refused_by_name(key_type: Any) -> None:
    name = getattr(key_type, "__name__", str(key_type))
    with pytest.raises(StateAccessError) as refused:
        KeyOrder("state 'x'", key_type)
    assert f"state 'x': keys of type {name} have no order" in str(refused.value)


@pytest.mark.parametrize(
    ("key_type", "start", "stop", "message"),
    [
        (int, 2**63, None, "can't bound a range; give a number of 64 bits"),
        (int, None, -(2**63) - 1, "can't bound a range"),
        (tuple[int, int], (1, 2**70), None, "can't bound a range"),
        (int | float, float("inf"), None, "inf can't bound a range"),
        (int, 1, "a", "1 and 'a' can't be compared"),
        (dt.datetime, dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 1, tzinfo=dt.UTC), "can't be compared"),
    ],
)
def test_bounds_that_are_none(key_type: Any, start: Any, stop: Any, message: str) -> None:
    with pytest.raises(StateAccessError, match=message):
        KeyOrder("state 'x'", key_type).bounds(start, stop)


def test_nan_bounds_nothing() -> None:
    with pytest.raises(UnserialisableKey, match="state 'x': NaN"):
        KeyOrder("state 'x'", float).bounds(float("nan"), None)


def test_large_numbers_may_be_keys_as_long_as_they_bound_nothing() -> None:
    entries = {2**70 + number: number for number in range(3)} | {1: 1, 2: 2}
    assert list(KeyOrder("state 'x'", int).between(entries, 2, 2**63 - 1)) == [(2, 2)]


@given(st.lists(st.integers(-12, 12), unique=True).map(lambda hours: [h / 2 for h in hours]))
def test_datetimes_with_zones_sort_by_the_instant(offsets: list[float]) -> None:
    keys = [dt.datetime(2024, 1, 1, 12, tzinfo=dt.timezone(dt.timedelta(hours=offset))) for offset in offsets]
    found = [key for key, _ in KeyOrder("state 'x'", dt.datetime).between(dict.fromkeys(keys, 0), None, None)]
    assert found == sorted(keys)


whole = st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3)


@given(keys=st.sets(st.tuples(whole, whole), max_size=12), start=st.tuples(whole, whole), stop=st.tuples(whole, whole))
def test_whole_numbers_between_bounds_are_in_the_order_of_their_bytes(
    keys: set[tuple[int, int]], start: tuple[int, int], stop: tuple[int, int]
) -> None:
    encode = StorageKeys().encode
    found = [key for key, _ in KeyOrder("state 'x'", tuple[int, int]).between(dict.fromkeys(keys, 0), start, stop)]
    assert found == sorted((key for key in keys if encode(start) <= encode(key) < encode(stop)), key=encode)
