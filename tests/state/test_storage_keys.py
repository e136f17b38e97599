"""Keys as bytes: equal exactly if the keys are, sorted as they are, and the same for ever."""

import datetime as dt
import enum
import uuid
import zoneinfo
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamactors.errors import UnserialisableKey
from streamactors.state.storage_keys import StorageKeys

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")


class Pair(NamedTuple):
    left: Any
    right: Any


class Site(msgspec.Struct, frozen=True):
    name: str


class Level(enum.IntEnum):
    LOW = 1


class Colour(enum.Enum):
    RED = 1


numbers = st.one_of(
    st.integers(),
    st.booleans(),
    st.floats(allow_nan=False),
    st.decimals(allow_nan=False),
    st.fractions(),
    st.sampled_from([0, -0.0, Decimal("0.50"), 0.5, Fraction(1, 2), 2**53, 2**53 + 1, 2.0**53, 2**70, 2.0**70]),
    st.just(10**400),
)
leaves = st.one_of(
    numbers,
    st.none(),
    st.text(st.characters(), max_size=4),
    st.sampled_from(["n1", "", "\0", "\ud800", "s", b"", b"\0\1", b"s"]),
    st.binary(max_size=4),
    st.datetimes(),
    st.datetimes(timezones=st.just(dt.UTC)),
    st.datetimes(timezones=st.just(BERLIN)),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.uuids(),
    st.sampled_from([Level.LOW, Colour.RED, Site("a")]),
)
any_key = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple),
        st.builds(Pair, inner, inner),
        st.frozensets(inner, max_size=3),
    ),
    max_leaves=4,
)


def sortable(value: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, Any]]:
    return st.tuples(value, value)


@given(any_key, any_key)
def test_bytes_are_equal_exactly_if_keys_are(a: Any, b: Any) -> None:
    keys = StorageKeys()
    assert (keys.encode(a) == keys.encode(b)) == (a == b)


@given(numbers, numbers)
def test_numbers_of_all_types(a: Any, b: Any) -> None:
    keys = StorageKeys()
    assert (keys.encode(a) == keys.encode(b)) == (a == b)


@given(any_key)
def test_every_key_comes_back_as_it_was(key: Any) -> None:
    keys = StorageKeys()
    carried = keys.carried(key)
    found = keys.plain(keys.encode(key)) if carried is None else keys.uncarried(carried)
    assert found == key
    assert type(found) is type(key)


@given(
    st.one_of(
        sortable(st.text(st.characters(exclude_categories=["Cs"]))),
        sortable(st.binary()),
        sortable(st.integers(-(2**63), 2**63 - 1)),
        sortable(st.floats(allow_nan=False)),
        sortable(st.one_of(st.integers(-(2**53), 2**53), st.floats(allow_nan=False))),
        sortable(st.datetimes()),
        sortable(st.datetimes(timezones=st.just(dt.UTC))),
        sortable(st.dates()),
        sortable(st.timedeltas()),
        sortable(st.tuples(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), st.integers(-9, 9))),
    )
)
def test_bytes_sort_as_the_keys_do(pair: tuple[Any, Any]) -> None:
    keys = StorageKeys()
    a, b = pair
    assert (keys.encode(a) < keys.encode(b)) == (a < b)


GOLDEN: list[tuple[Any, str]] = [
    (None, "30"),
    ("a\0é", "736100c3a9"),
    (b"a", "6261"),
    (1, "6ebff00000000000008000"),
    (True, "6ebff00000000000008000"),
    (-2, "6e3fffffffffffffff8000"),
    (2**53 + 1, "6ec3400000000000008001"),
    (0.1, "6ebfb999999999999a8000"),
    (Decimal("0.1"), "6ebfb999999999999a8000312f61"),
    (float("inf"), "6efff00000000000008000"),
    (("a\0", 1), "74736100ff00016ebff000ff00ff00ff00ff00ff00ff8000ff0001"),
    (frozenset({"b", "a"}), "7a7361000173620001"),
    (dt.datetime(2024, 1, 1), "4e800000060dd710212000"),
    (dt.datetime(2024, 1, 1, 1, tzinfo=BERLIN), "49800000060dd710212000"),
    (dt.date(2024, 1, 1), "64000b4646"),
    (dt.time(1, 2, 3), "77800000000000dde878c0"),
    (dt.timedelta(seconds=-1), "6c7ffffffffffffff0bdc0"),
    (uuid.UUID(int=5), "7500000000000000000000000000000005"),
    (Site("x"), "6f5369746500016e616d65000173780001"),
    (Colour.RED, "6f436f6c6f757200016ebff000ff00ff00ff00ff00ff00ff8000ff0001"),
]


@pytest.mark.parametrize(("key", "expected"), GOLDEN, ids=lambda value: type(value).__name__)
def test_golden_values(key: Any, expected: str) -> None:
    """Stored files are found by these bytes."""
    assert StorageKeys().encode(key).hex() == expected


@pytest.mark.parametrize("key", [float("nan"), Decimal("nan"), [1], {"a": 1}, object(), Decimal("1e200000")])
def test_what_can_be_no_key(key: Any) -> None:
    with pytest.raises(UnserialisableKey):
        StorageKeys().encode(key)


def test_two_key_classes_of_one_name_are_refused() -> None:
    keys = StorageKeys()
    keys.encode(Colour.RED)

    class Inner:
        class Colour(enum.Enum):
            RED = 1

    with pytest.raises(UnserialisableKey, match="Colour"):
        keys.encode(Inner.Colour.RED)
