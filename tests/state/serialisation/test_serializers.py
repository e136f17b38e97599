"""Values come back as the type they were, or are refused; and schemas tell what can be read after a change."""

import collections
import dataclasses
import datetime as dt
import enum
import importlib
import itertools
import math
import subprocess
import sys
import zoneinfo
from collections import Counter, defaultdict
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, NotRequired, TypedDict, TypeVar, cast
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamactors.errors import IncompatibleState, InvalidDataflow, UnserialisableKey, UnserialisableValue
from streamactors.state.serialisation.pickled import Pickle
from streamactors.state.serialisation.serializer import Serializer
from streamactors.state.serialisation.serializers import AnySerializer, KeySerializer, serializer_for

ROOT = Path(__file__).resolve().parents[3]
BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
T = TypeVar("T")


class Order(msgspec.Struct):
    customer: str
    amount: float
    ts: int = 0


class Payload(msgspec.Struct):
    name: str
    data: dict[str, Any]


class Node(msgspec.Struct):
    label: str
    children: "list[Node]" = []


class Box(msgspec.Struct, Generic[T]):
    content: T


class Cat(msgspec.Struct, tag="cat"):
    lives: int


class Dog(msgspec.Struct, tag="dog"):
    name: str


class Frozen(msgspec.Struct, frozen=True):
    name: str
    tags: tuple[str, ...]


class FrozenHoldingAList(msgspec.Struct, frozen=True):
    tags: list[str]


class Meeting(msgspec.Struct):
    title: str
    at: dt.datetime


@dataclasses.dataclass
class Account:
    number: int
    opened: dt.date
    limits: dict[str, Decimal] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(eq=False)
class Identity:
    number: float


@dataclasses.dataclass
class Derived(Account):
    extra: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
    number: int
    doubled: int = dataclasses.field(init=False, default=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "doubled", self.number * 2)


class Seat(NamedTuple):
    row: int
    letter: str = "a"


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


class OneColour(enum.Enum):
    RED = "red"


class Options(TypedDict):
    depth: int
    label: NotRequired[str]


class OptionalN(TypedDict):
    n: NotRequired[int]


class RequiredN(TypedDict):
    n: int


class Opaque:
    def __repr__(self) -> str:
        return "Opaque()"


class Doubling(msgspec.Struct):
    number: int
    held: list[int]

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError("no negative numbers")
        self.number *= 2


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


AT = dt.datetime(2024, 7, 1, 12, 30, tzinfo=BERLIN)

FITTING: list[tuple[Any, list[Any]]] = [
    (bool, [True, False]),
    (int, [0, -1, 2**63, -(2**63), 2**64, 2**200, -(2**200)]),
    (float, [0.5, -0.0, math.inf, 1e308]),
    (str, ["", "Käse", "\U0001f9c0", "half a pair: \ud83e"]),
    (dict[str, Order], [{"\ud83e": Order("\ud83e", 1.0)}]),
    (bytes, [b"", b"\x00\xff"]),
    (int | None, [None, 3]),
    (int | str, [1, "a"]),
    (dt.date, [dt.date(2024, 2, 29)]),
    (dt.datetime, [AT, AT.replace(tzinfo=None), AT.astimezone(dt.UTC), AT.replace(month=10, day=27, hour=2, fold=1)]),
    (dt.time, [dt.time(1, 2, 3, 4), dt.time(1, tzinfo=dt.UTC)]),
    (dt.timedelta, [dt.timedelta(days=-3, microseconds=1), dt.timedelta.max]),
    (Decimal, [Decimal("1.500"), Decimal("-0"), Decimal("Infinity")]),
    (UUID, [UUID(int=7)]),
    (Colour, [Colour.RED]),
    (Literal["a", "b"], ["a"]),
    (list[int], [[], [1, 2**70]]),
    (set[str], [{"a", "b"}]),
    (frozenset[int], [frozenset({1})]),
    (tuple[int, str], [(1, "a")]),
    (tuple[int, ...], [(), (1, 2)]),
    (dict[str, list[int]], [{}, {"a": [1]}]),
    (dict[tuple[int, str], int], [{(1, "a"): 2}]),
    (dict[dt.datetime, int], [{AT: 1}]),
    (Order, [Order("a", 1.5, 3)]),
    (Account, [Account(1, dt.date(2024, 1, 1), {"day": Decimal("9.99")})]),
    (Prepared, [Prepared(4)]),
    (Seat, [Seat(1, "b")]),
    (Options, [{"depth": 1}, {"depth": 1, "label": "x"}]),
    (Node, [Node("a", [Node("b")])]),
    (Box[list[int]], [Box([1])]),
    (Cat | Dog, [Cat(7), Dog("Rex")]),
    (Frozen, [Frozen("a", ("b",))]),
    (Meeting, [Meeting("stand-up", AT)]),
    (list[Meeting], [[Meeting("stand-up", AT)]]),
    (list, [[1, (2, {3}), "a"]]),
    (dict[str, Any], [{"a": (1, [2]), "b": AT, "c": {Seat(1)}}]),
    (Payload, [Payload("a", {"nested": Order("b", 1.0), "n": 2**80})]),
    (Fraction, [Fraction(1, 3)]),
    (bytearray, [bytearray(b"a")]),
]
FITTING_IDS = [str(tp) for tp, _ in FITTING]


@pytest.mark.parametrize(("tp", "values"), FITTING, ids=FITTING_IDS)
class TestRoundTrip:
    def test_one_by_one(self, tp: Any, values: list[Any]) -> None:
        serializer = serializer_for(tp)
        for value in values:
            assert_identical(serializer.decode(serializer.encode(value)), value)

    def test_all_at_once(self, tp: Any, values: list[Any]) -> None:
        serializer = serializer_for(tp)
        assert_identical(serializer.decode_many(serializer.encode_many(values)), values)

    def test_without_a_declared_type(self, tp: Any, values: list[Any]) -> None:
        if tp is bytearray:
            return  # the one exception: comes back as bytes
        serializer = AnySerializer()
        assert_identical(serializer.decode_many(serializer.encode_many(values)), values)
        for value in values:
            assert_identical(serializer.decode(serializer.encode(value)), value)

    def test_its_schema_survives_storage_and_fits_itself(self, tp: Any, values: list[Any]) -> None:
        serializer = serializer_for(tp)
        stored = msgspec.msgpack.decode(msgspec.msgpack.encode(serializer.schema))
        assert stored == serializer.schema
        assert serializer.check_compatible(stored) == []
        assert "__main__" not in str(stored) and "test_serializers" not in str(stored)


def assert_identical(found: Any, expected: Any) -> None:
    """Equal, of the same types all the way down, and datetimes in the same zone."""
    assert type(found) is type(expected)
    if isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_identical(a, b)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_identical(found[key], expected[key])
    elif isinstance(expected, msgspec.Struct):
        for name in expected.__struct_fields__:
            assert_identical(getattr(found, name), getattr(expected, name))
    elif isinstance(expected, dt.datetime):
        assert (found, found.tzinfo, found.fold) == (expected, expected.tzinfo, expected.fold)
    else:
        assert found == expected
        assert repr(found) == repr(expected) or isinstance(expected, set | frozenset)


@pytest.mark.parametrize(
    ("tp", "immutable"),
    [
        (int, True),
        (float | None, True),
        (tuple[int, dt.datetime], True),
        (frozenset[str], True),
        (Seat, True),
        (Frozen, True),
        (Colour, True),
        (Prepared, True),
        (Literal["a"], True),
        (list[int], False),
        (tuple[list[int], ...], False),
        (Order, False),
        (Account, False),
        (FrozenHoldingAList, False),
        (Options, False),
        (Any, False),
        (bytearray, False),
        (Fraction, False),
    ],
)
def test_knows_what_can_be_changed_in_place(tp: Any, immutable: bool) -> None:
    assert serializer_for(tp).immutable is immutable


COPIED: list[tuple[Any, Any, bool]] = [
    # type, value, whether a shallow copy will do
    (list[int], [1], True),
    (set[str], {"a"}, True),
    (dict[str, tuple[int, ...]], {"a": (1,)}, True),
    (list[int] | None, [1], True),
    (Order, Order("a", 1.0), True),
    (Options, {"depth": 1}, True),
    (bytearray, bytearray(b"a"), True),
    (Cat | Dog, Cat(7), True),
    (list[list[int]], [[1]], False),
    (list[int] | dict[str, list[int]], {"a": [1]}, False),
    (dict[str, Order], {"a": Order("b", 1.0)}, False),
    (tuple[list[int], ...], ([1],), False),
    (FrozenHoldingAList, FrozenHoldingAList(["a"]), False),
    (Node, Node("a", [Node("b")]), False),
    (Account, Account(1, dt.date(2024, 1, 1), {"a": Decimal(1)}), False),
    (dict[str, Any], {"a": [1]}, False),
    (Any, [1], False),
]


@pytest.mark.parametrize(("tp", "value", "flat"), COPIED, ids=[str(tp) for tp, _, _ in COPIED])
def test_copies_share_nothing_that_can_be_changed(tp: Any, value: Any, flat: bool) -> None:
    serializer = serializer_for(tp)
    assert serializer.flat is flat
    copied = serializer.copy(value)
    assert_identical(copied, value)
    assert not _mutable_ids(copied) & _mutable_ids(value)


def _mutable_ids(value: Any) -> set[int]:
    """Of everything in a value that can be changed in place."""
    if isinstance(value, list | tuple | set):
        within = list(value)
    elif isinstance(value, dict):
        within = list(value.values())
    elif isinstance(value, msgspec.Struct):
        within = [getattr(value, name) for name in value.__struct_fields__]
    else:
        within = list(vars(value).values()) if dataclasses.is_dataclass(value) else []
    own = set() if isinstance(value, tuple | str | int | float | Decimal | dt.date | None) else {id(value)}
    return own.union(*map(_mutable_ids, within))


class TestRefusals:
    @pytest.mark.parametrize(
        ("tp", "value", "message"),
        [
            (float, "1.0", "expected float, found str: '1.0'"),
            (int, 1.0, r"expected int, found float: 1\.0"),
            (int, True, "expected int, found bool: True"),
            (int | None, "a", r"expected int \| None, found str"),
            (str, b"a", "expected str, found bytes"),
            (list[int], (1, 2), "expected list.int., found tuple"),
            (list[str], ["a", 1], r"type list\[str\]: Expected `str`, got `int` - at `\$\[0\]\[1\]`|at `\$\[1\]`"),
            (list[list[int]], [[1], (2,)], r"would come back as \[\[1\], \[2\]\]"),
            (list[Seat], [[1, "a"]], r"would come back as \[Seat\(row=1, letter='a'\)\]"),
            (dict[str, int], defaultdict(int), "expected dict.str, int., found collections.defaultdict"),
            (Order, {"customer": "a", "amount": 1.0}, "expected Order, found dict"),
            (Order, Account(1, dt.date(2024, 1, 1)), "expected Order, found .*Account"),
            (list[Order], [{"customer": "a", "amount": 1.0, "ts": 0}], "would come back as .Order"),
            (Order, Order("a", "b"), "type Order: Expected `float`, got `str`"),  # type: ignore[arg-type]
            (Account, Derived(1, dt.date(2024, 1, 1)), "expected Account, found .*Derived"),
            (list[Account], [Derived(1, dt.date(2024, 1, 1))], "would come back as .Account"),
            (Options, {"depth": 1, "unknown": 2}, "would come back as {'depth': 1}"),
            (Literal["a"], "b", "Invalid enum value 'b'"),
            (Annotated[int, msgspec.Meta(ge=0)], -1, "Expected `int` >= 0"),
            (dict[str, Any], {"a": Opaque()}, "Opaque can't be stored: use builtins, a dataclass"),
            (Payload, Payload("a", {"b": Opaque()}), "Opaque can't be stored"),
            (list[Order], [Opaque()], r"holds a .*Opaque: Opaque\(\)"),
            (list[Order], [Unprintable()], "holds a .*Unprintable: <.*whose repr fails: no repr>"),
            (list[float], [2**60 + 1], "would come back as"),
            (float, 2**2000, "expected float, found int: 1148"),
            (dt.datetime, dt.date(2024, 1, 1), "expected datetime, found datetime.date"),
            (dict[str, Any], {"a": Counter("a")}, "Counter can't be stored"),
        ],
    )
    def test_a_value_that_would_come_back_as_another_is_refused(self, tp: Any, value: Any, message: str) -> None:
        serializer = serializer_for(tp)
        with pytest.raises(UnserialisableValue, match=message):
            serializer.encode(value)
        with pytest.raises(UnserialisableValue, match=message):
            serializer.encode_many([value])

    def test_whatever_class_holds_itself(self) -> None:
        endless: list[Any] = []
        endless.append(endless)
        for serializer in (serializer_for(list[Any]), AnySerializer()):
            with pytest.raises(UnserialisableValue):
                serializer.encode(endless)

    @pytest.mark.parametrize("zone", [type("Odd", (dt.tzinfo,), {"utcoffset": lambda *_: dt.timedelta(0)})()])
    def test_a_time_zone_that_cannot_be_stored_exactly(self, zone: dt.tzinfo) -> None:
        with pytest.raises(UnserialisableValue, match="type Odd can't be stored exactly: use zoneinfo"):
            serializer_for(dt.datetime).encode(AT.replace(tzinfo=zone))

    @pytest.mark.parametrize(
        ("tp", "message"),
        [
            (Opaque, r"Opaque has no declared fields; make it a dataclass .* or write sa.Pickle\(Opaque\)"),
            (dict[str, Opaque], "Opaque has no declared fields"),
            (Order | Account, "more than one dict-like type"),
            (5, "Type '5' is not supported"),
            (memoryview, "view of a buffer"),
            (type(lambda: 0), "function has no declared fields"),
        ],
    )
    def test_a_type_that_cannot_be_stored_is_refused_at_once(self, tp: Any, message: str) -> None:
        with pytest.raises(InvalidDataflow, match=message):
            serializer_for(tp)


class TestAccept:
    def test_an_integer_where_a_float_is_declared_becomes_one_at_once(self) -> None:
        """Otherwise it would be 0 before a restore and 0.0 after."""
        stored = serializer_for(float).accept(0)
        assert type(stored) is float

    def test_floats_that_are_no_numbers_are_values(self) -> None:
        for tp, value in ((float, math.nan), (list[float], [math.nan]), (Identity, Identity(math.nan))):
            serializer: Serializer[Any] = serializer_for(tp)
            found = serializer.decode_many(serializer.encode_many([value, value]))
            assert repr(found).count("nan") == 2 or all(isinstance(each, Identity) for each in found)


def made_in(module: str, name: str, *fields: str) -> Any:
    made = dataclasses.make_dataclass(name, fields)
    made.__module__ = module
    return made


class TestWithoutDeclaredType:
    @given(
        st.lists(
            st.recursive(
                st.none()
                | st.booleans()
                | st.integers()
                | st.floats(allow_nan=False)
                | st.text()
                | st.binary()
                | st.text(st.characters())
                | st.datetimes(timezones=st.none() | st.just(BERLIN))
                | st.dates()
                | st.decimals(allow_nan=False)
                | st.fractions()
                | st.uuids()
                | st.timedeltas()
                | st.sampled_from(list(Colour)),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.tuples(inner, inner)
                    | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
                    | st.builds(Seat, inner, st.text())
                    | st.builds(Order, inner, inner)
                ),
                max_leaves=6,
            ),
            max_size=5,
        )
    )
    def test_everything_comes_back_as_it_was(self, values: list[Any]) -> None:
        serializer = AnySerializer()
        assert_identical(serializer.decode_many(serializer.encode_many(values)), values)

    def test_a_batch_of_one_class_is_written_as_that_class(self) -> None:
        serializer = AnySerializer()
        orders = [Order(f"customer-{i}", float(i)) for i in range(100)]
        together = serializer.encode_many(orders)
        assert serializer.decode_many(together) == orders
        assert len(together) < sum(len(serializer.encode(order)) for order in orders)

    def test_a_batch_of_one_class_with_fields_of_other_types_keeps_them(self) -> None:
        serializer = AnySerializer()
        odd = [Order("a", "not a number"), Order("b", 1.0)]  # type: ignore[arg-type]
        assert serializer.decode_many(serializer.encode_many(odd)) == odd

    @pytest.mark.parametrize("tp", [Any, Doubling], ids=["undeclared", "declared"])
    def test_a_struct_that_changes_whenever_it_is_made_is_refused(self, tp: Any) -> None:
        serializer = serializer_for(tp)
        for write in (serializer.encode, lambda value: serializer.encode_many([value, value])):
            with pytest.raises(UnserialisableValue, match=r"would come back as .?Doubling\(number=4"):
                write(Doubling(1, []))
        steady = Doubling(0, [1])
        assert serializer.decode(serializer.encode(steady)) == steady
        broken = Doubling(0, [])
        broken.number = -1
        with pytest.raises(UnserialisableValue, match="no negative numbers"):
            serializer.encode(broken)

    def test_a_key_of_an_unknown_class_is_named(self) -> None:
        with pytest.raises(UnserialisableKey, match=r"key Opaque\(\): .*Opaque can't be stored"):
            KeySerializer().encode(Opaque())
        with pytest.raises(UnserialisableKey, match=r"key Opaque\(\): .*Opaque can't be stored"):
            KeySerializer().encode_many(["a", Opaque()])

    def test_a_class_that_is_not_loaded_is_named_on_reading(self) -> None:
        data = AnySerializer().encode(Order("a", 1.0)).replace(b"Order", b"Ordre")
        with pytest.raises(
            IncompatibleState, match=r"test_serializers\.Ordre with the fields \(amount, customer, ts\), and no"
        ):
            AnySerializer().decode(data)

    def test_of_a_class_that_was_made_anew_the_one_that_its_module_has_is_found(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As in a notebook, whatever kind of class it was before."""
        makes: list[Any] = [
            lambda: dataclasses.make_dataclass("Cell", [("x", int)], frozen=True),
            lambda: collections.namedtuple("Cell", ["x"]),
            lambda: msgspec.defstruct("Cell", [("x", int)], frozen=True),
        ]
        for first, second in itertools.permutations(makes, 2):
            versions = [first(), second()]
            for cls in versions:
                cls.__module__, cls.__qualname__ = __name__, "Cell"
            monkeypatch.setattr(sys.modules[__name__], "Cell", versions[1], raising=False)
            value = versions[1](1)
            assert type(AnySerializer().decode(AnySerializer().encode(value))) is versions[1]

    def test_of_several_classes_of_a_name_the_one_at_its_place_is_found(self) -> None:
        one, other = made_in("one", "Twin", "number"), made_in("other", "Twin", "number")
        serializer = AnySerializer()
        found = serializer.decode(serializer.encode([one(1), other(2)]))
        assert list(map(type, found)) == [one, other]

    def test_a_class_that_moved_is_found_by_its_fields(self) -> None:
        moved, _ = made_in("after", "Nomad", "x", "y"), made_in("elsewhere", "Nomad", "x", "z")
        data = AnySerializer().encode(moved(1, 2)).replace(b"after.Nomad", b"afore.Nomad")
        assert AnySerializer().decode(data) == moved(1, 2)

    def test_a_class_that_moved_to_nobody_knows_where_is_named(self) -> None:
        here, _ = made_in("here", "Lost", "x"), made_in("there", "Lost", "x")
        data = AnySerializer().encode(here(1)).replace(b"here.Lost", b"gone.Lost")
        with pytest.raises(IncompatibleState, match=r"of gone\.Lost, which is gone, .* any of here\.Lost, there\.Lost"):
            AnySerializer().decode(data)

    def test_fields_may_come_and_go(self) -> None:
        data = AnySerializer().encode(Order("a", 1.0, 7)).replace(b"\xa2ts\x07", b"\xa2tz\x07")
        assert AnySerializer().decode(data) == Order("a", 1.0, 0)

    def test_a_field_that_is_missing_and_has_no_default_is_named(self) -> None:
        data = AnySerializer().encode(Order("a", 1.0)).replace(b"\xa8customer", b"\xa8consumer")
        with pytest.raises(IncompatibleState, match="no longer takes: .*customer"):
            AnySerializer().decode(data)

    def test_an_unknown_kind_of_value_is_refused(self) -> None:
        with pytest.raises(IncompatibleState, match="unknown kind 99"):
            AnySerializer().decode(b"T" + msgspec.msgpack.encode(msgspec.msgpack.Ext(99, b"")))


class TestTypesUnderMain:
    SCRIPT = """
import dataclasses, sys
from streamactors.state.serialisation.serializers import AnySerializer, KeySerializer, serializer_for

@dataclasses.dataclass(frozen=True)
class Customer:
    country: str
    number: int

if __name__ == "__main__":
    typed = serializer_for(list[Customer])
    data = [typed.encode([Customer("de", 1)]), AnySerializer().encode({"a": Customer("de", 2)}),
            KeySerializer().encode_many([Customer("de", 3)])]
    sys.stdout.write(repr((data, typed.schema)))
"""

    def test_what_a_script_wrote_is_read_where_it_is_a_module(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        script = tmp_path / "customers_job.py"
        script.write_text(self.SCRIPT)
        done = subprocess.run(
            [sys.executable, str(script)],
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        (typed, anything, keys), schema = eval(done.stdout)
        monkeypatch.syspath_prepend(str(tmp_path))
        customer = importlib.import_module("customers_job").Customer
        serializer = serializer_for(cast(Any, list)[customer])
        assert serializer.check_compatible(schema) == []
        assert serializer.decode(typed) == [customer("de", 1)]
        assert AnySerializer().decode(anything) == {"a": customer("de", 2)}
        assert KeySerializer().decode_many(keys) == [customer("de", 3)]


class TestPickle:
    def test_stores_what_nothing_else_can(self) -> None:
        serializer = serializer_for(Pickle(Opaque))
        (found,) = serializer.decode_many(serializer.encode_many([Opaque()]))
        assert type(found) is Opaque
        assert not serializer.immutable

    def test_values_do_not_share_objects_after_a_restore(self) -> None:
        shared = [1]
        first, second = serializer_for(Pickle(list)).decode_many(
            serializer_for(Pickle(list)).encode_many([shared, shared])
        )
        assert first == second and first is not second

    def test_refuses_another_class(self) -> None:
        with pytest.raises(UnserialisableValue, match="expected pickle Opaque, found int: 1"):
            serializer_for(Pickle(Opaque)).encode(1)

    def test_refuses_what_cannot_be_pickled(self) -> None:
        with pytest.raises(UnserialisableValue, match="can't be pickled"):
            serializer_for(Pickle(list)).encode([lambda: 0])

    def test_a_class_that_is_gone_is_named_on_reading(self) -> None:
        data = serializer_for(Pickle(Opaque)).encode(Opaque()).replace(b"Opaque", b"Opague")
        with pytest.raises(IncompatibleState, match="pickled Opaque can't be read: .*Opague"):
            serializer_for(Pickle(Opaque)).decode(data)
