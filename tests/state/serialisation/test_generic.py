"""Values known by their schema alone: read as plain data, and written as their classes read them."""

import datetime as dt
import enum
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamactors as sa
from streamactors.errors import UnserialisableValue
from streamactors.state.serialisation.generic import Member, Opaque, Record, StoredKeys, stored_serializer
from streamactors.state.serialisation.serializers import KeySerializer, serializer_for


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Point(NamedTuple):
    x: int
    y: float = 0.0


class Plain(msgspec.Struct):
    name: str
    point: Point
    colour: Colour = Colour.RED


class Frozen(msgspec.Struct, frozen=True):
    a: int
    b: str = "b"


class Camel(msgspec.Struct, rename="camel"):
    first_name: str
    last_name: str = "unknown"


class Omitting(msgspec.Struct, omit_defaults=True):
    a: int = 0
    b: list[int] = []
    c: str | None = None


class Array(msgspec.Struct, array_like=True):
    a: int
    b: Frozen
    c: float = 1.5


class Cat(msgspec.Struct, tag=True):
    lives: int


class Dog(msgspec.Struct, tag="dog", tag_field="species"):
    name: str


class Cow(msgspec.Struct, tag="cow", tag_field="species"):
    name: str
    at: dt.datetime | None = None


class Left(msgspec.Struct, tag="l", array_like=True):
    value: int


class Right(msgspec.Struct, tag="r", array_like=True):
    value: int


class Tree(msgspec.Struct):
    value: int
    children: list["Tree"] = []


@dataclass
class Data:
    at: dt.datetime
    price: Decimal = Decimal("1.50")
    tags: set[str] = field(default_factory=set)


class Typed(TypedDict):
    a: int
    b: NotRequired[list[Frozen]]


class Loose(msgspec.Struct, rename="camel"):
    any_thing: Any
    known_point: Point
    colour: Colour = Colour.RED


class LooseDict(TypedDict):
    anything: Any
    inner: Plain
    optional: NotRequired[int]


class Mixed(msgspec.Struct, tag="mixed"):
    anything: Any
    pets: list[Dog | Cow]
    by_name: dict[str, Loose]
    place: Array | None = None
    level: Level = Level.LOW


class Vector(msgspec.Struct):
    weights: np.ndarray[Any, Any]
    bias: Fraction


NOON = dt.datetime(2024, 2, 29, 12, tzinfo=ZoneInfo("Europe/Berlin"))
POINT, POINT_AS_DICT = Point(1, 2.5), {"x": 1, "y": 2.5}

CASES: list[tuple[Any, Any, Any]] = [
    (int, 5, 5),
    (int, 2**80, 2**80),
    (float, 2.5, 2.5),
    (str, "ü", "ü"),
    (bytes, b"\x00\xff", b"\x00\xff"),
    (bool, True, True),
    (Decimal, Decimal("1.50"), Decimal("1.50")),
    (UUID, UUID(int=7), UUID(int=7)),
    (dt.datetime, NOON, NOON),
    (dt.date, NOON.date(), NOON.date()),
    (dt.time, dt.time(1, 2, 3), dt.time(1, 2, 3)),
    (dt.timedelta, dt.timedelta(days=1, microseconds=5), dt.timedelta(days=1, microseconds=5)),
    (list[int], [1, 2], [1, 2]),
    (set[str], {"a", "b"}, {"a", "b"}),
    (frozenset[tuple[int, str]], frozenset({(1, "a")}), frozenset({(1, "a")})),
    (tuple[int, ...], (1, 2, 3), (1, 2, 3)),
    (tuple[int, Point, str], (1, POINT, "a"), (1, POINT_AS_DICT, "a")),
    (tuple[()], (), ()),
    (dict[str, list[Decimal]], {"a": [Decimal(1)]}, {"a": [Decimal(1)]}),
    (dict[tuple[int, UUID], bytes], {(1, UUID(int=1)): b"x"}, {(1, UUID(int=1)): b"x"}),
    (int | None, None, None),
    (int | str | None, "a", "a"),
    (int | float, 3.0, 3.0),
    (list[int | Point], [1, POINT], [1, POINT_AS_DICT]),
    (Point | None, POINT, POINT_AS_DICT),
    (Colour, Colour.BLUE, "blue"),
    (Level, Level.HIGH, 2),
    (Literal["a", 3], 3, 3),
    (Plain, Plain("n", POINT, Colour.BLUE), {"name": "n", "point": POINT_AS_DICT, "colour": "blue"}),
    (Camel, Camel("Ada"), {"first_name": "Ada", "last_name": "unknown"}),
    (Omitting, Omitting(a=3), {"a": 3}),
    (Omitting, Omitting(), {}),
    (Array, Array(1, Frozen(2)), {"a": 1, "b": {"a": 2, "b": "b"}, "c": 1.5}),
    (Cat, Cat(9), {"type": "Cat", "lives": 9}),
    (Dog | Cow, Cow("Else", NOON), {"species": "cow", "name": "Else", "at": NOON}),
    (list[Dog | Cow | None], [Dog("Rex"), None], [{"species": "dog", "name": "Rex"}, None]),
    (Left | Right, Right(3), {"type": "r", "value": 3}),
    (Tree, Tree(1, [Tree(2, [Tree(3)])]),
     {"value": 1, "children": [{"value": 2, "children": [{"value": 3, "children": []}]}]}),
    (set[Frozen], {Frozen(1)}, {Record({"a": 1, "b": "b"}, "Frozen")}),
    (Data, Data(NOON, tags={"x"}), {"at": NOON, "price": Decimal("1.50"), "tags": {"x"}}),
    (Typed, {"a": 1, "b": [Frozen(2)]}, {"a": 1, "b": [{"a": 2, "b": "b"}]}),
    (Typed, {"a": 1}, {"a": 1}),
    (Any, ("a", {1: {2}}, NOON), ("a", {1: {2}}, NOON)),
    (Any, POINT, {"x": 1, "y": 2.5}),
    (Loose, Loose((1, POINT), POINT),
     {"any_thing": (1, POINT_AS_DICT), "known_point": POINT_AS_DICT, "colour": Member("?", "red")}),
]  # fmt: skip


def unplaced(value: Any) -> Any:
    """Without where classes were."""
    if isinstance(value, Member):
        return Member("?", value.value)
    if isinstance(value, dict):
        return {unplaced(key): unplaced(each) for key, each in value.items()}
    return type(value)(map(unplaced, value)) if type(value) in (list, tuple) else value


@pytest.mark.parametrize(("tp", "value", "expected"), CASES, ids=lambda value: getattr(value, "__name__", None))
def test_values_are_read_without_their_classes_and_written_as_they_read_them(
    tp: Any, value: Any, expected: Any
) -> None:
    typed = serializer_for(tp)
    schema = msgspec.msgpack.decode(msgspec.msgpack.encode(typed.schema))  # as it comes from a manifest
    generic = stored_serializer(schema)
    found = generic.decode(typed.encode(value))
    assert (unplaced(found) == expected and type(unplaced(found)) is type(expected)) or isinstance(found, Record)
    assert typed.decode(generic.encode(found)) == value
    many = generic.decode_many(typed.encode_many([value, value]))
    assert unplaced(many) == [expected, expected]
    assert typed.decode_many(generic.encode_many(many)) == [value, value]
    nullable = stored_serializer(schema, nullable=True)
    optional: Any = serializer_for(tp | None if tp is not Any else Any)
    both = nullable.decode_many(optional.encode_many([None, value]))
    assert unplaced(both) == [None, expected]
    assert optional.decode_many(nullable.encode_many(both)) == [None, value]


def test_numpy_arrays_and_fractions_describe_themselves() -> None:
    typed = serializer_for(Vector)
    generic = stored_serializer(typed.schema)
    found = generic.decode(typed.encode(Vector(np.array([1.5, 2]), Fraction(1, 3))))
    assert found.keys() == {"weights", "bias"} and found["bias"] == Fraction(1, 3)
    back = typed.decode(generic.encode(found))
    assert type(back) is Vector and (back.weights == [1.5, 2]).all() and back.weights.dtype == np.float64


def test_a_list_of_one_class_that_nobody_declared() -> None:
    typed = serializer_for(Any)
    values = [Plain("a", POINT), Plain("b", POINT, Colour.BLUE)]
    found = stored_serializer(typed.schema).decode_many(typed.encode_many(values))
    assert found[1] == {"name": "b", "point": POINT_AS_DICT, "colour": "blue"} and isinstance(found[1], Record)


def test_pickled_values_and_formats_stay_closed_and_whole() -> None:
    class Format:
        def encode(self, value: Plain) -> bytes:
            return value.name.encode()

        def decode(self, data: bytes) -> Plain:
            return Plain(data.decode(), POINT)

    for tp, value in ((sa.Pickle(Plain), Plain("n", POINT)), (sa.Custom(Plain, Format()), Plain("n", POINT))):
        typed = serializer_for(tp)
        generic = stored_serializer(typed.schema)
        found = generic.decode(typed.encode(value))
        assert isinstance(found, Opaque) and "Plain" in found.what
        assert typed.decode(generic.encode(found)) == value
        many = generic.decode_many(typed.encode_many([value] * 3))
        assert typed.decode_many(generic.encode_many(many)) == [value] * 3
        with pytest.raises(UnserialisableValue, match="its own declaration"):
            generic.encode({"name": "n"})


@pytest.mark.parametrize(
    ("tp", "value", "message"),
    [
        (int, "a", "expected int, found 'a'"),
        (float, "a", "expected float"),
        (list[int], (1,), "expected a list"),
        (tuple[int, int], (1,), "a tuple of 2"),
        (Plain, {"name": "n"}, "without its field 'point'"),
        (Plain, {"name": "n", "point": POINT_AS_DICT, "colur": "red"}, "no field 'colur'"),
        (Plain, {"name": 3, "point": POINT_AS_DICT}, "expected str, found 3"),
        (Colour, "green", "no value of Colour"),
        (Literal["a"], "b", "no value of"),
        (Array, {"a": 1, "c": 1.0}, "without its field 'b'"),
        (Dog | Cow, {"name": "Else"}, "none of the alternatives"),
        (int | Point, "a", "none of the alternatives"),
        (Loose, {"known_point": POINT_AS_DICT}, "without its field 'any_thing'"),
    ],
)
def test_what_would_come_back_as_something_else_is_refused(tp: Any, value: Any, message: str) -> None:
    generic = stored_serializer(serializer_for(tp).schema)
    with pytest.raises(UnserialisableValue, match=message):
        generic.encode(value)
    with pytest.raises(UnserialisableValue, match=message):
        generic.encode_many([value])


MIXED = Mixed({"a": POINT}, [Dog("Rex"), Cow("Else", NOON)], {"x": Loose(Colour.RED, POINT)}, Array(1, Frozen(2)))


@pytest.mark.parametrize(
    ("tp", "value"),
    [(Mixed, MIXED), (LooseDict, {"anything": MIXED, "inner": Plain("n", POINT)}), (list[Mixed | int], [MIXED, 3])],
)
def test_what_describes_itself_comes_back_as_it_was(tp: Any, value: Any) -> None:
    typed = serializer_for(tp)
    generic = stored_serializer(typed.schema)
    data = typed.encode(value)
    assert typed.tagged and generic.encode(generic.decode(data)) == data  # type: ignore[attr-defined]
    assert typed.decode(data) == value


def test_what_describes_itself_can_be_edited() -> None:
    """Whatever was replaced by plain data becomes what the class declares."""
    typed = serializer_for(Mixed)
    generic = stored_serializer(typed.schema)
    found = generic.decode(typed.encode(MIXED))
    pets = [found["pets"][1], {"species": "dog", "name": "Max"}, {**found["pets"][1], "species": "cow", "name": "Olga"}]
    edited = {
        **found,
        "pets": pets,
        "by_name": {"y": {**found["by_name"]["x"], "colour": "blue"}},
        "place": {**found["place"], "c": 9.5},
        "level": 2,
    }
    assert typed.decode(generic.encode(edited)) == Mixed(
        MIXED.anything,
        [Cow("Else", NOON), Dog("Max"), Cow("Olga", NOON)],
        {"y": Loose(Colour.RED, POINT, Colour.BLUE)},
        Array(1, Frozen(2), 9.5),
        Level.HIGH,
    )
    with pytest.raises(UnserialisableValue, match="expected float, found 'x'"):
        generic.encode({**found, "place": {**found["place"], "c": "x"}})
    with pytest.raises(UnserialisableValue, match="3 is no value of Level"):
        generic.encode({**found, "level": 3})


def test_stored_instances_are_not_changed_in_place() -> None:
    """Whoever reads them relies on their class's stamp."""
    typed = serializer_for(Mixed)
    found = stored_serializer(typed.schema).decode(typed.encode(MIXED))
    with pytest.raises(TypeError, match="a stored Mixed can't be changed in place"):
        found["level"] = 2
    with pytest.raises(TypeError, match="in place"):
        found.update(level=2)


def test_a_tag_may_be_left_out_where_there_is_but_one() -> None:
    typed = serializer_for(Cat)
    assert typed.decode(stored_serializer(typed.schema).encode({"lives": 7})) == Cat(7)


def test_plain_dicts_are_written_under_the_names_of_the_class() -> None:
    """Where values describe themselves, as where they are declared."""
    typed = serializer_for(Loose)
    data = stored_serializer(typed.schema).encode({"any_thing": 1, "known_point": POINT_AS_DICT, "colour": "blue"})
    assert typed.decode(data) == Loose(1, POINT, Colour.BLUE)


@given(st.recursive(st.integers() | st.text() | st.none() | st.floats(allow_nan=False) | st.binary(),
                    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
                    max_leaves=8))  # fmt: skip
def test_self_describing_values_are_themselves(value: Any) -> None:
    typed = serializer_for(Any)
    generic = stored_serializer(typed.schema)
    found = generic.decode(typed.encode(value))
    assert found == value and generic.encode(found) == typed.encode(value)


# ----------------------------------------------------------------------------------------------------------------- keys
def test_keys_of_classes_that_are_gone() -> None:
    def encoded() -> bytes:
        class Gone(msgspec.Struct, frozen=True):
            a: int

        class Lost(enum.Enum):
            A = 1

        KeySerializer.keep = (Gone, Lost)  # type: ignore[attr-defined]  # until it is written
        return KeySerializer().encode_many([Gone(1), Lost.A, Frozen(2), ("t", 1)])

    data = encoded()
    data = data.replace(b"Gone", b"Qone").replace(b"Lost", b"Qost")
    gone, lost, frozen, plain = keys = StoredKeys().decode_many(data)
    assert gone == {"a": 1} and gone.place.endswith("Qone") and {gone: 1}[gone] == 1
    assert isinstance(lost, Member) and lost.value == 1
    assert (frozen, plain) == (Frozen(2), ("t", 1))
    assert StoredKeys().encode_many(keys) == data
