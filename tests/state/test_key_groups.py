"""Key groups: the same for equal keys, in every process and version; and each owned by exactly one subtask."""

import dataclasses
import datetime as dt
import enum
import os
import subprocess
import sys
import uuid
import zoneinfo
from collections import Counter
from collections.abc import Hashable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streamactors.errors import InvalidConfig, UnserialisableKey
from streamactors.state.key_groups import (
    MAX_KEY_GROUPS,
    KeyGrouper,
    KeyGroupRange,
    canonical,
    default_max_parallelism,
    key_group,
    subtask_of,
    subtask_range,
)

ROOT = Path(__file__).resolve().parents[2]
BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
NEW_YORK = zoneinfo.ZoneInfo("America/New_York")


class Seat(NamedTuple):
    row: int
    letter: str


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


class Level(enum.IntEnum):
    LOW = 1


class Plan(enum.StrEnum):
    FREE = "free"


@dataclasses.dataclass(frozen=True)
class Account:
    tenant: str
    number: int
    note: str = dataclasses.field(default="", compare=False)


class Device(msgspec.Struct, frozen=True):
    site: str
    serial: int


@dataclasses.dataclass
class Changeable:
    number: int


@dataclasses.dataclass(frozen=True)
class CaseBlind:
    name: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CaseBlind) and self.name.lower() == other.name.lower()

    def __hash__(self) -> int:
        return hash(self.name.lower())


class ChangeableStruct(msgspec.Struct):
    number: int


class CaseBlindStruct(msgspec.Struct, frozen=True):
    name: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CaseBlindStruct) and self.name.lower() == other.name.lower()

    def __hash__(self) -> int:
        return hash(self.name.lower())


class Shouting(str):
    __slots__ = ()


GOLDEN: list[tuple[Any, int, int]] = [
    # key, group of 128, group of 1000
    (None, 33, 209),
    (True, 108, 356),
    (1, 108, 356),
    (-1, 39, 447),
    (2**53 + 1, 71, 415),
    (2**200, 120, 688),
    (0.5, 48, 216),
    (float("inf"), 101, 413),
    (Decimal("12.34"), 103, 879),
    (Fraction(1, 3), 125, 909),
    ("", 0, 0),
    ("customer-42", 21, 405),
    ("Käse", 115, 659),
    (b"\x00\xff", 81, 329),
    ((), 40, 752),
    (("eu", 7), 119, 783),
    (frozenset({"a", "b", "c"}), 47, 87),
    (dt.date(2024, 2, 29), 78, 214),
    (dt.datetime(2024, 2, 29, 12, 30, 15, 123456), 126, 998),
    (dt.datetime(2024, 2, 29, 12, 30, tzinfo=BERLIN), 24, 512),
    (dt.time(12, 30), 78, 814),
    (dt.timedelta(days=-1, microseconds=7), 124, 644),
    (uuid.UUID(int=0x0123456789ABCDEF0123456789ABCDEF), 63, 423),
    (Colour.RED, 48, 496),
    (Seat(3, "b"), 122, 754),
    (Account("eu", 7, note="not part of it"), 15, 239),
    (Device("plant", 12), 74, 658),
]


class TestRanges:
    @given(st.integers(1, 300), st.integers(1, MAX_KEY_GROUPS))
    @example(1, 1)
    @example(300, MAX_KEY_GROUPS)
    def test_partition_all_groups_among_the_subtasks(self, parallelism: int, max_parallelism: int) -> None:
        ranges = [subtask_range(index, parallelism, max_parallelism) for index in range(parallelism)]
        assert [group for owned in ranges for group in owned] == list(range(max_parallelism))

    @given(st.integers(1, 300), st.integers(1, 2000))
    def test_agree_with_the_subtask_of_each_group(self, parallelism: int, max_parallelism: int) -> None:
        for index in range(parallelism):
            for group in subtask_range(index, parallelism, max_parallelism):
                assert subtask_of(group, parallelism, max_parallelism) == index

    @given(*[st.integers(0, 50)] * 4)
    def test_intersect_as_sets_do(self, a: int, b: int, c: int, d: int) -> None:
        left, right = KeyGroupRange(a, a + b), KeyGroupRange(c, c + d)
        both = left.intersect(right)
        assert set(both) == set(left) & set(right)
        assert len(both) == len(set(both))
        assert all(group in both for group in set(left) & set(right))

    def test_tell_what_they_hold(self) -> None:
        owned = KeyGroupRange(3, 5)
        assert (3 in owned, 4 in owned, 5 in owned, "3" in owned, len(owned), str(owned)) == (
            True,
            True,
            False,
            False,
            2,
            "3..4",
        )

    @pytest.mark.parametrize(
        ("parallelism", "expected"),
        [(1, 128), (85, 128), (86, 256), (128, 256), (170, 256), (171, 512), (20_000, 32768), (32768, 32768)],
    )
    def test_default_number_of_groups(self, parallelism: int, expected: int) -> None:
        assert default_max_parallelism(parallelism) == expected

    @pytest.mark.parametrize("parallelism", [0, -1, 32769])
    def test_refuse_an_impossible_parallelism(self, parallelism: int) -> None:
        with pytest.raises(InvalidConfig, match=f"parallelism {parallelism} is not between 1 and 32768"):
            default_max_parallelism(parallelism)


numbers = st.one_of(
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(2**70), max_value=2**70),
    st.floats(allow_nan=False),
    st.fractions(),
    st.decimals(allow_nan=False),
)
scalars = st.one_of(
    numbers,
    st.none(),
    st.text(),
    st.binary(),
    st.dates(),
    st.uuids(),
    st.timedeltas(),
    st.datetimes(timezones=st.none() | st.sampled_from([dt.UTC, BERLIN, NEW_YORK])),
    st.times(timezones=st.none() | st.just(dt.UTC)),
    st.sampled_from([*Colour, *Level, *Plan]),
)
keys: st.SearchStrategy[Hashable] = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.tuples(inner, inner),
        st.lists(inner, max_size=3).map(tuple),
        st.frozensets(inner, max_size=3),
        st.builds(Seat, inner, inner),
        st.builds(Account, inner, inner),
        st.builds(Device, inner, inner),
    ),
    max_leaves=4,
)


def representations(number: Any) -> list[Any]:
    """Everything of another type that equals a number."""
    made: list[Any] = [Fraction(number)]
    for kind in (int, float, bool):
        try:
            made.append(kind(number))
        except OverflowError:
            continue
    ratio = Fraction(number)
    made.append(Decimal(ratio.numerator) / Decimal(ratio.denominator))
    return [other for other in made if other == number]


class TestEqualKeys:
    @given(st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.fractions() | st.booleans())
    @example(0.1)
    @example(-0.0)
    @example(5e-324)
    @example(1e308)
    @example(2**61 - 1)
    @example(2**53 + 1)
    def test_numbers_of_every_type_share_their_group(self, number: Any) -> None:
        for other in representations(number):
            assert canonical(other) == canonical(number), (other, number)

    @given(keys, keys)
    def test_equality_implies_one_canonical_form(self, a: Any, b: Any) -> None:
        if a == b:
            assert canonical(a) == canonical(b)

    @pytest.mark.parametrize(
        ("a", "b"),
        [
            (1, True),
            (0, -0.0),
            (1, Decimal("1.000")),
            (Decimal("0.5"), Fraction(1, 2)),
            (10**30, Decimal("1e30")),
            (float("inf"), Decimal("Infinity")),
            (float("-inf"), Decimal("-Infinity")),
            (Level.LOW, 1),
            (Plan.FREE, "free"),
            (Seat(1, "a"), (1, "a")),
            ((1, (True, 2.0)), (1.0, (1, 2))),
            (frozenset({1, 2}), frozenset({2.0, 1})),
            (dt.datetime(2024, 7, 1, 12, tzinfo=dt.UTC), dt.datetime(2024, 7, 1, 14, tzinfo=BERLIN)),
            (dt.datetime(2024, 7, 1, 8, tzinfo=NEW_YORK), dt.datetime(2024, 7, 1, 14, tzinfo=BERLIN)),
            # The hour that comes twice: datetimes of one zone are equal whatever their fold.
            (dt.datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN), dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=BERLIN)),
            (dt.time(12, tzinfo=dt.UTC), dt.time(13, tzinfo=dt.timezone(dt.timedelta(hours=1)))),
            (Account("a", 1, note="x"), Account("a", 1, note="y")),
            (Account("a", 1), Account("a", True)),
            (Device("a", 1), Device("a", 1)),
        ],
    )
    def test_share_their_group(self, a: Any, b: Any) -> None:
        assert a == b
        assert key_group(a, MAX_KEY_GROUPS) == key_group(b, MAX_KEY_GROUPS)

    @pytest.mark.parametrize(
        ("a", "b"),
        [
            ("1", 1),
            ("a", b"a"),
            (None, 0),
            (("ab", "c"), ("a", "bc")),
            ((1, 2), (1, (2,))),
            (dt.date(2024, 1, 1), dt.datetime(2024, 1, 1)),
            (dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 1, tzinfo=dt.UTC)),
            (0.1, Fraction(1, 10)),
            (Colour.RED, Colour.GREEN),
        ],
    )
    def test_different_keys_have_different_forms(self, a: Any, b: Any) -> None:
        assert a != b
        assert canonical(a) != canonical(b)

    def test_huge_exponents_cost_nothing(self) -> None:
        assert canonical(Decimal("1e999999")) != canonical(Decimal("-1e999999"))

    def test_a_fraction_whose_denominator_has_no_inverse(self) -> None:
        prime = 2**61 - 1
        assert canonical(Fraction(1, prime)) == canonical(Fraction(2, 2 * prime))


class TestStability:
    @pytest.mark.parametrize(("key", "of_128", "of_1000"), GOLDEN)
    def test_golden_values(self, key: Any, of_128: int, of_1000: int) -> None:
        """State is found by these: a change here loses the state of every job."""
        assert (key_group(key, 128), key_group(key, 1000)) == (of_128, of_1000)

    @pytest.mark.parametrize("seed", ["0", "1", "4711"])
    def test_the_same_in_a_process_with_another_hash_seed(self, seed: str) -> None:
        script = (
            "from tests.state.test_key_groups import GOLDEN, key_group; print([key_group(g[0], 1000) for g in GOLDEN])"
        )
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == str([of_1000 for _, _, of_1000 in GOLDEN])

    @pytest.mark.parametrize(
        "made",
        [
            [f"customer-{i}" for i in range(20_000)],
            list(range(20_000)),
            [i * 4096 for i in range(20_000)],
            [(f"tenant-{i % 50}", i // 50) for i in range(20_000)],
            [uuid.UUID(int=i) for i in range(20_000)],
        ],
        ids=["strings", "integers", "strides", "tuples", "uuids"],
    )
    @pytest.mark.parametrize("max_parallelism", [128, 100])
    def test_groups_are_evenly_filled(self, made: list[Any], max_parallelism: int) -> None:
        filled = Counter(key_group(key, max_parallelism) for key in made)
        mean = len(made) / max_parallelism
        assert len(filled) == max_parallelism
        assert max(filled.values()) < 1.6 * mean
        assert min(filled.values()) > 0.5 * mean


class TestRefusals:
    @pytest.mark.parametrize(
        ("key", "message"),
        [
            (float("nan"), "NaN can't be a key"),
            (Decimal("NaN"), "NaN can't be a key"),
            (Decimal("sNaN"), "NaN can't be a key"),
            (("a", float("nan")), "NaN can't be a key"),
            ([1], "list .*can be changed; use tuple"),
            ({1}, "set .*use an immutable type"),
            (("a", [1]), "list .*use tuple"),
            (Changeable(1), r"Changeable .*frozen=True"),
            (ChangeableStruct(1), r"ChangeableStruct .*frozen=True"),
            (CaseBlind("a"), r"CaseBlind .*without an __eq__ of its own"),
            (CaseBlindStruct("a"), r"CaseBlindStruct .*without an __eq__ of its own"),
            (Shouting("a"), r"Shouting .*convert it with str\(key\)"),
            (object(), "builtins.object has no stable serialisation: use a str, int"),
            (1j, "builtins.complex has no stable serialisation"),
            (dt.datetime(2024, 1, 1, tzinfo=type("Odd", (dt.tzinfo,), {})()), "time zone type Odd can't be stored"),
        ],
    )
    def test_a_key_that_cannot_be_stored_is_named(self, key: Any, message: str) -> None:
        with pytest.raises(UnserialisableKey, match=message):
            key_group(key, 128)

    @pytest.mark.parametrize("key", [[1], Shouting("a"), object(), float("nan")])
    def test_whole_batches_refuse_the_same(self, key: Any) -> None:
        for batch in ([key], ["fine", key]):
            with pytest.raises(UnserialisableKey):
                KeyGrouper(128).groups(batch)

    def test_a_refused_type_is_refused_even_if_an_equal_key_was_seen(self) -> None:
        grouper = KeyGrouper(128)
        grouper.groups(["a"])
        with pytest.raises(UnserialisableKey, match="Shouting"):
            grouper.groups([Shouting("a")])

    def test_a_class_that_could_not_be_found_again_is_refused(self) -> None:
        first, second = [dataclasses.make_dataclass("Twin", ["number"], frozen=True) for _ in range(2)]
        first.__module__ = second.__module__ = "a"
        with pytest.raises(
            UnserialisableKey, match=r"type Twin: a\.Twin can't be stored: a later class has its name and"
        ):
            key_group(first(1), 128)


class TestBatches:
    @given(st.lists(keys, max_size=20))
    def test_agree_with_single_keys(self, batch: list[Any]) -> None:
        grouper = KeyGrouper(1000)
        for _ in range(2):
            assert grouper.groups(batch) == [key_group(key, 1000) for key in batch]

    @given(st.lists(st.integers(0, 50), max_size=300), st.integers(1, 10))
    def test_the_cache_stays_within_its_bound(self, batch: list[int], size: int) -> None:
        grouper = KeyGrouper(1000, cache_size=size)
        for start in range(0, len(batch), 7):
            part = batch[start : start + 7]
            assert grouper.groups(part) == [key_group(key, 1000) for key in part]
            assert all(len(cache) <= size for cache in grouper._caches.values())

    def test_an_empty_batch(self) -> None:
        assert KeyGrouper(128).groups([]) == []
