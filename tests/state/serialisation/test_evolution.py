"""Types that change while values of theirs are stored: read as they were meant, or refused by name."""

import collections
import dataclasses
import datetime as dt
import enum
import re
import typing
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, Required, TypedDict
from uuid import UUID

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamactors as sa
from streamactors.errors import IncompatibleState, InvalidDataflow, UnserialisableValue
from streamactors.state.blocks import codec_for
from streamactors.state.operator_lists import OperatorLists
from streamactors.state.serialisation.serializer import Serializer
from streamactors.state.serialisation.serializers import AnySerializer, serializer_for

AT = dt.datetime(2024, 5, 1, 12, 30, tzinfo=dt.UTC)
SET: Any = set
DICT: Any = dict
TUPLE: Any = tuple
LIST: Any = list
FROZENSET: Any = frozenset


def stored_schema(tp: Any) -> Any:
    """As it comes back from a manifest."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(serializer_for(tp).schema))


def problems(old: Any, new: Any) -> list[str]:
    return serializer_for(new).check_compatible(stored_schema(old))


def reread(old: Any, new: Any, value: Any) -> Any:
    """A value stored as `old`, read as `new`; alone and among others."""
    assert problems(old, new) == []
    reader = serializer_for(new).reader(stored_schema(old))
    before = serializer_for(old)
    alone = reader.decode(before.encode(value))
    first, second = reader.decode_many(before.encode_many([value, value]))
    assert type(first) is type(second) is type(alone)
    assert repr(first) == repr(second) == repr(alone)
    again = serializer_for(new)
    assert repr(again.decode(reader.encode(alone))) == repr(alone), "what it writes is today's"
    return alone


# ------------------------------------------------------------------------------------- every kind of record, everywhere
Fields = list[tuple[Any, ...]]


def struct(fields: Fields, *, name: str = "Event", **options: Any) -> Any:
    return msgspec.defstruct(name, fields, **options)


def frozen_struct(fields: Fields) -> Any:
    return struct(fields, frozen=True)


def array_struct(fields: Fields) -> Any:
    return struct(fields, array_like=True)


def renaming_struct(fields: Fields) -> Any:
    return struct(fields, rename="camel")


def sparse_struct(fields: Fields) -> Any:
    return struct(fields, omit_defaults=True)


def record(fields: Fields, **options: Any) -> Any:
    made = [
        (name, tp, dataclasses.field(default=default[0])) if default else (name, tp) for name, tp, *default in fields
    ]
    return dataclasses.make_dataclass("Event", made, **options)


def frozen_record(fields: Fields) -> Any:
    return record(fields, frozen=True, slots=True)


def typed_dict(fields: Fields) -> Any:
    make: Any = TypedDict
    return make("Event", {name: NotRequired[tp] if default else tp for name, tp, *default in fields})


def named_tuple(fields: Fields) -> Any:
    defaults = [default[0] for _, _, *default in fields if default]
    make: Any = collections.namedtuple
    made = make("Event", [name for name, *_ in fields], defaults=defaults)
    made.__annotations__ = {name: tp for name, tp, *_ in fields}
    return made


RECORDS = [
    struct, frozen_struct, array_struct, renaming_struct, sparse_struct, record, frozen_record, typed_dict, named_tuple,
]  # fmt: skip
WAYS: dict[str, tuple[Any, Any]] = {"native": (bool, True), "wide": (dt.datetime, AT), "tagged": (Any, (1, "a"))}
WRAPPERS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "bare": (lambda tp: tp, lambda value: value),
    "list": (lambda tp: LIST[tp], lambda value: [value, value]),
    "dict": (lambda tp: DICT[str, tp], lambda value: {"a": value}),
    "tuple": (lambda tp: TUPLE[int, tp], lambda value: (1, value)),
    "tuple of": (lambda tp: TUPLE[tp, ...], lambda value: (value,)),
    "optional": (lambda tp: LIST[typing.Optional[tp]], lambda value: [value, None]),  # noqa: UP045
    "union": (lambda tp: LIST[typing.Union[tp, int, str]], lambda value: [1, value, "b"]),  # noqa: UP007
    "nested": (
        lambda tp: struct([("inner", DICT[str, LIST[tp]])], name="Outer"),
        lambda value: {"inner": {"a": [value]}},
    ),
}


def plain(value: Any) -> Any:
    """Comparable over versions of a class."""
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: plain(each) for name, each in value._asdict().items()}
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return type(value)(map(plain, value)) if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", RECORDS)
def test_fields_come_go_widen_and_are_renamed(make: Any, way: str, wrapper: str) -> None:
    tp, held = WAYS[way]
    wrap, put = WRAPPERS[wrapper]
    old = make([("user_name", str), ("held", tp), ("amount", int), ("gone", str, "x"), ("kept", int, 7)])
    values = {"user_name": "a", "held": held, "amount": 3, "gone": "y", "kept": 8}
    wrapped = wrap(old)
    inside = put(old(**values))
    stored = wrapped(**inside) if wrapper == "nested" else inside
    data = serializer_for(wrapped).encode_many([stored])
    schema = stored_schema(wrapped)
    new = make(
        [
            ("user_name", str),
            ("total", Annotated[float, sa.Alias("sum", "amount")]),
            ("held", tp),
            ("kept", int | None, 7),
            ("note", str, "-"),
        ]
    )
    wrapped = wrap(new)
    assert serializer_for(wrapped).check_compatible(schema) == []
    (found,) = serializer_for(wrapped).reader(schema).decode_many(data)
    wanted = {"user_name": "a", "total": 3.0, "held": held, "kept": 8} | ({} if make is typed_dict else {"note": "-"})
    assert plain(found) == put(wanted)
    assert "3.0" in repr(found), "an integer has become a float"
    assert f"{held!r}" in repr(found)


@pytest.mark.parametrize("after", RECORDS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("before", RECORDS)
def test_a_record_may_become_one_of_another_kind(before: Any, way: str, after: Any) -> None:
    """Identified by its fields."""
    tp, held = WAYS[way]
    fields: Fields = [("name", str), ("held", tp), ("first_count", int)]
    old = before(fields)
    stored = old(name="a", held=held, first_count=3)
    data, schema = serializer_for(old).encode(stored), stored_schema(old)
    new = after([fields[2], fields[0], fields[1]])
    assert serializer_for(new).check_compatible(schema) == []
    found = serializer_for(new).reader(schema).decode(data)
    assert plain(found) == {"first_count": 3, "name": "a", "held": held}
    assert isinstance(found, dict if after is typed_dict else new)


@pytest.mark.parametrize("before", WAYS)
@pytest.mark.parametrize("after", WAYS)
def test_the_way_of_storing_may_change(before: str, after: str) -> None:
    """A field of a type that has to be stored another way comes or goes."""
    old = struct([("name", str), ("before", WAYS[before][0])], rename="upper")
    stored = old(name="a", before=WAYS[before][1])
    data, schema = serializer_for(old).encode(stored), stored_schema(old)
    new = struct([("name", str), ("after", WAYS[after][0] | None if after != "tagged" else Any, None)])
    found = serializer_for(new).reader(schema).decode(data)
    assert serializer_for(new).check_compatible(schema) == []
    assert plain(found) == {"name": "a", "after": None}


# ---------------------------------------------------------------------------------------------------------- what widens
class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


class MoreColours(enum.Enum):
    BLUE = "blue"
    GREEN = "green"
    RED = "red"


class OneColour(enum.Enum):
    RED = "red"


class Cat(msgspec.Struct, tag="cat"):
    name: str


class Dog(msgspec.Struct, tag="dog"):
    name: str


class NewCat(msgspec.Struct, tag="cat", tag_field="species"):
    name: str
    lives: int = 9


class Untagged(msgspec.Struct):
    name: str


Tagged: Any = msgspec.defstruct("Untagged", [("name", str)], tag="untagged", module="tests.elsewhere")


class Place(NamedTuple):
    row: int
    letter: str


WIDENED: list[tuple[Any, Any, Any, Any]] = [
    (int, float, 3, 3.0),
    (int, Decimal, 3, Decimal(3)),
    (int, int | None, 3, 3),
    (int, int | str, 3, 3),
    (int, float | None, 3, 3.0),
    (int | str, str | float, 3, 3.0),
    (int | str, str | float, "3", "3"),
    (int | float, float, 3, 3.0),
    (str | None, str | int | None, None, None),
    (list[int], list[float], [1, 2], [1.0, 2.0]),
    (list[int], list[int | None] | None, [1], [1]),
    (set[int], set[float], {1, 2}, {1.0, 2.0}),
    (frozenset[int], frozenset[int | str], frozenset({1}), frozenset({1})),
    (tuple[int, str], tuple[float, str | None], (1, "a"), (1.0, "a")),
    (tuple[int, ...], tuple[float, ...], (1,), (1.0,)),
    (dict[int, int], dict[float, float], {1: 2}, {1.0: 2.0}),
    (dict[Place, int], dict[Place, float], {Place(1, "a"): 2}, {Place(1, "a"): 2.0}),
    (Colour, MoreColours, Colour.RED, MoreColours.RED),
    (list[Colour], list[MoreColours | None], [Colour.RED], [MoreColours.RED]),
    (Literal["a"], Literal["a", "b"], "a", "a"),
    (Literal["a", "b"], str, "a", "a"),
    (Literal["a", None], Literal["a", None, "b"], None, None),
    (UUID, UUID | None, UUID(int=7), UUID(int=7)),
    (dt.date, dt.date | int, dt.date(2024, 5, 1), dt.date(2024, 5, 1)),
    (dt.datetime, dt.datetime | None, AT, AT),
    (dt.timedelta, dt.timedelta | None, dt.timedelta(seconds=1.5), dt.timedelta(seconds=1.5)),
    (Decimal, Decimal | None, Decimal("1.10"), Decimal("1.10")),
    (bytes, bytes | None, b"a", b"a"),
    (bytearray | int, bytearray | float, bytearray(b"a"), bytearray(b"a")),
    (Cat, Cat | Dog, Cat("a"), Cat("a")),
    (Cat | Dog, NewCat | Dog, Cat("a"), None),
    (Cat, NewCat, Cat("a"), NewCat("a")),
    (Untagged, Tagged | Dog, Untagged("a"), Tagged("a")),
    (Cat, Untagged, Cat("a"), Untagged("a")),
    (dict[str, Any], dict[str, Any] | None, {"a": (1, {2}, Colour.RED)}, {"a": (1, {2}, Colour.RED)}),
    (tuple[Any, int], tuple[Any, float], (Place(2, "a"), 1), (Place(2, "a"), 1.0)),
    (tuple[Any, Untagged | int], tuple[Any, Untagged | float], (1, Untagged("a")), (1, Untagged("a"))),
    (tuple[Any, Colour], tuple[Any, MoreColours], (1, Colour.RED), (1, MoreColours.RED)),
    (tuple[Any, dict[Place, int]], tuple[Any, dict[Place, float]], (1, {Place(1, "a"): 2}), (1, {Place(1, "a"): 2.0})),
]


@pytest.mark.parametrize(("old", "new", "value", "now"), WIDENED, ids=[f"{case[0]} {case[1]}" for case in WIDENED])
def test_widened(old: Any, new: Any, value: Any, now: Any) -> None:
    if (old, new) == (Cat | Dog, NewCat | Dog):
        with pytest.raises(TypeError):  # msgspec wants one tag_field for all
            msgspec.msgpack.Decoder(new)
        return
    found = reread(old, new, value)
    assert found == now and repr(found) == repr(now)


def test_an_array_of_numpy_stays_what_it_was() -> None:
    old = struct([("row", np.ndarray), ("count", int)])
    data = serializer_for(old).encode(old(np.arange(3), 4))
    schema = stored_schema(old)
    new = struct([("row", np.ndarray), ("count", float)])
    found = serializer_for(new).reader(schema).decode(data)
    assert found.row.tolist() == [0, 1, 2] and repr(found.count) == "4.0"


@given(st.integers() | st.integers(min_value=2**52))
def test_an_integer_becomes_the_same_number_or_is_refused(number: int) -> None:
    reader = serializer_for(list[float]).reader(stored_schema(list[int]))
    data = serializer_for(list[int]).encode([number])
    if abs(number) < 2**1023 and int(float(number)) == number:
        (found,) = reader.decode(data)
        assert type(found) is float and found == number
    else:
        with pytest.raises(IncompatibleState, match=f"the integer {number} is no float"):
            reader.decode(data)


class Node(msgspec.Struct):
    label: str
    children: list["Node"] = []


class Grown(msgspec.Struct):
    name: Annotated[str, sa.Alias("label")]
    weight: float = 1.0
    children: list["Grown | None"] = []
    parent: "Grown | None" = None


class Anything(msgspec.Struct):
    held: Any
    next: "Anything | None" = None
    count: int = 0


class AnythingGrown(msgspec.Struct):
    held: Any
    next: "AnythingGrown | int | None" = None
    count: float = 0


def test_a_recursive_type_may_grow() -> None:
    found = reread(Node, Grown, Node("a", [Node("b", [Node("c")])]))
    assert found == Grown("a", children=[Grown("b", children=[Grown("c")])])


def test_a_recursive_type_that_describes_itself_may_grow() -> None:
    found = reread(Anything, AnythingGrown, Anything({1}, Anything((2,), count=5)))
    assert found == AnythingGrown({1}, AnythingGrown((2,), count=5.0))
    assert type(found.next.count) is float


# ---------------------------------------------------------------------------------------------------------- what is not
class Options(TypedDict):
    n: NotRequired[int]


class RequiredN(TypedDict):
    n: int


class Opaque:
    pass


OLD: Fields = [("name", str), ("count", int)]
Aliased = Annotated[int, sa.Alias("amount")]

REFUSED: list[tuple[Any, Any, str]] = [
    (int, str, "^stored as int, now str$"),
    (float, int, "^stored as float, now int$"),
    (int, bool, "stored as int, now bool"),
    (bool, int, "stored as bool, now int"),
    (float, Decimal, "stored as float, now Decimal"),
    (int | None, int, r"stored as int \| None, now int: None is gone"),
    (int | str, bytes | int, r"stored as int \| str, now bytes \| int: str is gone"),
    (Cat | Dog, Cat, r"stored as Cat \| Dog, now Cat: Dog is gone"),
    (list[int], list[str], r"field '\[\]': stored as int, now str"),
    (list[int], list[str] | None, r"field '\[\]': stored as int, now str"),
    (list[int], set[int], r"stored as list\[int\], now set\[int\]"),
    (dict[str, int], dict[int, int], r"field '\[key\]': stored as str, now int"),
    (dict[str, int], struct(OLD), r"stored as dict\[str, int\], now Event"),
    (tuple[int, int], tuple[int, str], r"field '\[1\]': stored as int, now str"),
    (tuple[int, int], tuple[int, int, int], r"stored as tuple\[int, int\], now tuple\[int, int, int\]"),
    (tuple[int, int], tuple[int, ...], r"stored as tuple\[int, int\], now tuple\[int, \.\.\.\]"),
    (struct(OLD), struct([*OLD, ("note", str)]), "field 'note' of type str is new and has no default"),
    (struct(OLD), struct([OLD[0], ("count", str)]), "field 'count': stored as int, now str"),
    (struct([OLD[0], ("count", float)]), record(OLD), "field 'count': stored as float, now int"),
    (struct(OLD), record([OLD[0], ("count", str)]), "field 'count': stored as int, now str"),
    (
        struct(OLD),
        struct(OLD[:1], forbid_unknown_fields=True),
        "field 'count' is gone, and unknown fields are forbidden",
    ),
    (struct(OLD, tag="a"), struct(OLD, tag="b"), "stored under the tag 'a', now 'b'"),
    (struct(OLD, array_like=True), struct([*OLD, ("note", str)], array_like=True), "field 'note' of type str is new"),
    (
        DICT[str, struct(OLD)],
        DICT[str, struct([("name", bytes), OLD[1]])],
        r"field '\[\].name': stored as str, now bytes",
    ),
    (
        struct([("n", int, 0)], omit_defaults=True),
        struct([("n", int, 5)], omit_defaults=True),
        "field 'n' was left out where it had its default 0, and has the default 5 now",
    ),
    (struct([("n", int, 0)], omit_defaults=True), struct([("n", int)]), "field 'n' was left out .* is required now"),
    (Options, RequiredN, "'n' was left out .* is required now"),
    (Colour, OneColour, r"the values \['green'\] of Colour are gone"),
    (Literal["a", "b"], Literal["b"], r"the values \['a'\] of Literal\['a', 'b'\] are gone"),
    (Literal["a", 1], str, r"stored as Literal\[1, 'a'\], now str"),
    (Colour, str, "stored as Colour, now str"),
    (int, Any, "stored as int, now any"),
    (dict[str, Any], dict[str, int], r"field '\[\]': stored as any, now int"),
    (sa.Pickle(Opaque), sa.Pickle(Colour), "stored as pickle Opaque, now pickle Colour"),
    (sa.Pickle(int), int, "stored as pickle int, now int"),
    (Node, struct([("label", str), ("children", list[Place], [])]), r"field 'children\[\]': stored as itself"),
    (struct([("amount", int)]), struct([("amount", int), ("total", Aliased)]), "'total' is stored under the name of"),
    (
        struct([("amount", int), ("total", int)]),
        struct([("total", Aliased)]),
        "field 'total' is stored under 'total' and 'amount'",
    ),
    (
        struct([("amount", int), ("sum", int)]),
        struct([("total", Annotated[int, sa.Alias("amount", "sum")])]),
        "field 'total' is stored under 'amount' and 'sum'",
    ),
    (struct([("amount", str)]), struct([("total", Aliased)]), "field 'amount': stored as str, now int"),
    (struct([("amounts", int)]), struct([("total", Aliased)]), "field 'total' of type int is new and has no default"),
    (Untagged, Cat | Dog, "stored as Untagged, now Cat | Dog: Untagged may be Cat or Dog now"),
]


@pytest.mark.parametrize(("old", "new", "problem"), REFUSED, ids=[case[2] for case in REFUSED])
def test_any_other_change_is_refused_naming_both_types(old: Any, new: Any, problem: str) -> None:
    (found,) = problems(old, new)
    assert re.search(problem, found), found


@pytest.mark.parametrize(("old", "new", "problem"), REFUSED, ids=[case[2] for case in REFUSED])
def test_it_is_refused_wherever_it_is(old: Any, new: Any, problem: str) -> None:
    if any(type(each).__name__ == "Pickled" for each in (old, new)):
        return  # only as a whole
    found = problems(struct([("a", DICT[str, LIST[old]])]), struct([("a", DICT[str, LIST[new]])]))
    assert found and "field 'a[][]" in found[0]


def test_two_problems_are_both_told() -> None:
    found = problems(struct(OLD), struct([("name", int), ("count", str)]))
    assert found == ["field 'name': stored as str, now int", "field 'count': stored as int, now str"]


def test_values_that_fit_no_more_are_refused_on_reading() -> None:
    stored = serializer_for(int).encode_many([-1])
    with pytest.raises(IncompatibleState, match="a stored value is not of type int: Expected `int` >= 0"):
        serializer_for(Annotated[int, msgspec.Meta(ge=0)]).decode_many(stored)


# -------------------------------------------------------------------------------------------------------------- aliases
class TestAliases:
    @pytest.mark.parametrize("names", [(), ("",)])
    def test_needs_a_name(self, names: tuple[str, ...]) -> None:
        with pytest.raises(InvalidDataflow, match="give the old names"):
            sa.Alias(*names)

    @pytest.mark.parametrize(
        "tp",
        [
            Annotated[int, sa.Alias("amount")],
            list[Aliased],
            struct([("a", list[Aliased])]),
            record([("a", Aliased | None)]),
            struct([("b", struct([("a", dict[str, Aliased])]))]),
        ],
    )
    def test_is_refused_where_it_names_no_field(self, tp: Any) -> None:
        with pytest.raises(InvalidDataflow, match=r"Alias\(names=\('amount',\)\) names no field"):
            serializer_for(tp)

    def test_goes_with_a_required_or_optional_key(self) -> None:
        old = typed_dict([("a", int), ("b", int, 0)])

        class New(TypedDict):
            c: Required[Annotated[int, sa.Alias("a")]]
            d: NotRequired[Annotated[int, sa.Alias("b")]]

        assert reread(old, New, {"a": 1}) == {"c": 1}
        assert reread(old, New, {"a": 1, "b": 2}) == {"c": 1, "d": 2}

    def test_does_not_change_the_schema(self) -> None:
        """So that nothing is rewritten when it is given, or taken away."""
        assert serializer_for(struct([("total", Aliased)])).schema == serializer_for(struct([("total", int)])).schema

    def test_is_the_name_that_the_class_gave_or_that_the_data_had(self) -> None:
        old = struct([("user_name", str)], rename="camel")
        for alias in ("user_name", "userName"):
            new = struct([("label", Annotated[str, sa.Alias(alias)])])
            assert reread(old, new, old("a")).label == "a"

    def test_a_field_that_keeps_its_name_in_the_data_needs_none(self) -> None:
        old = struct([("amount", int)])
        new = struct([("total", int, msgspec.field(name="amount"))])
        assert reread(old, new, old(3)).total == 3


# ----------------------------------------------------------------------------------------------- self-describing values
def made(name: str, fields: Fields, make: Any = record) -> Any:
    cls = make(fields)
    cls.__name__ = cls.__qualname__ = name
    return cls


class TestWithoutDeclaredType:
    """Of values whose class is only known by name: keys, records in flight, `Any`."""

    @pytest.mark.parametrize("make", [struct, record, frozen_record, named_tuple])
    def test_an_instance_is_read_as_its_class_is_now(self, make: Any) -> None:
        name = f"Moved_{make.__name__}"  # nobody can tell which of two kinds of class is the later
        data = AnySerializer().encode([made(name, [("name", str), ("amount", int), ("gone", int)], make)("a", 3, 0)])
        new = made(name, [("total", Annotated[float, sa.Alias("amount")]), ("name", str), ("note", str, "-")], make)
        (found,) = AnySerializer().decode(data)
        assert type(found) is new
        assert repr(plain(found)) == "{'total': 3.0, 'name': 'a', 'note': '-'}"

    @pytest.mark.parametrize(
        ("before", "after", "value", "problem"),
        [
            (int, str, 1, "'Typed' whose field|Typed whose field 'held' is of another type now: 1 does not fit"),
            (float, int, 1.5, "field 'held' is of another type now: 1.5 does not fit"),
            (str, UUID, str(UUID(int=1)), "it would come back as UUID"),
            (list[int], list[float], [2**53 + 1], "field 'held' is of another type now"),
            (list[str], set[str], ["a"], "field 'held' is of another type now"),
        ],
    )
    def test_a_value_that_is_not_of_its_new_type_is_refused(
        self, before: Any, after: Any, value: Any, problem: str
    ) -> None:
        data = AnySerializer().encode(made("Typed", [("held", before)])(value))
        new = made("Typed", [("held", after)])
        with pytest.raises(IncompatibleState, match=problem):
            AnySerializer().decode(data)
        del new

    def test_what_did_not_fit_its_annotation_comes_back_as_long_as_the_class_is_the_same(self) -> None:
        cls = made("Loose", [("held", int)])
        assert AnySerializer().decode(AnySerializer().encode(cls("not a number"))) == cls("not a number")

    def test_values_that_fit_both_types_may_change_theirs(self) -> None:
        data = AnySerializer().encode(made("Fits", [("held", int | str)])(1))
        new = made("Fits", [("held", int)])
        assert AnySerializer().decode(data) == new(1)

    def test_two_stored_names_of_one_field_are_refused(self) -> None:
        data = AnySerializer().encode(made("Doubled", [("amount", int), ("total", int)])(1, 2))
        new = made("Doubled", [("total", Aliased)])
        with pytest.raises(IncompatibleState, match=r"Doubled: field 'total' is stored under 'total' and 'amount'"):
            AnySerializer().decode(data)
        del new

    def test_a_member_of_an_enum_that_is_gone_is_refused(self) -> None:
        make: Any = enum.Enum
        gone = make("Fading", {"A": "a", "B": "b"}, module=__name__)
        data = AnySerializer().encode(gone.B)
        now = make("Fading", {"A": "a"}, module=__name__)
        with pytest.raises(IncompatibleState, match=r"holds the value 'b' of the enum .*Fading, which is gone"):
            AnySerializer().decode(data)
        del now

    @pytest.mark.parametrize("make", [struct, record, renaming_struct, sparse_struct, array_struct])
    def test_a_batch_of_one_class_is_read_as_its_class_is_now(self, make: Any) -> None:
        old = made("Batched", [("user_name", str), ("amount", int), ("kept", int, 7)], make)
        data = AnySerializer().encode_many([old("a", 3), old("b", 4, 8)])
        assert data[:1] == b"N"
        new = made(
            "Batched",
            [("total", Annotated[float, sa.Alias("amount")]), ("user_name", str), ("kept", int, 7), ("note", str, "-")],
            make,
        )
        found = AnySerializer().decode_many(data)
        assert [type(each) for each in found] == [new, new]
        assert repr(plain(found)) == repr(
            [
                {"total": 3.0, "user_name": "a", "kept": 7, "note": "-"},
                {"total": 4.0, "user_name": "b", "kept": 8, "note": "-"},
            ]
        )

    def test_a_batch_of_one_class_that_fits_no_more_is_refused(self) -> None:
        """Also where each value would still be decoded as something: a default that was left out is another now."""
        data = AnySerializer().encode_many([made("Batch", [("n", int, 0)], sparse_struct)(0)])
        new = made("Batch", [("n", int, 5)], sparse_struct)
        with pytest.raises(IncompatibleState, match=r"records of class .*Batch can't be read: field 'n' was left out"):
            AnySerializer().decode_many(data)
        del new


# ------------------------------------------------------------------------------------------------- state without a key
def filled(declaration: Any) -> tuple[OperatorLists, Any]:
    lists = OperatorLists("shop")
    return lists, lists.bind("held", declaration)


@pytest.mark.parametrize("kind", [sa.OperatorListState, sa.UnionListState, sa.BroadcastState])
def test_state_without_a_key_is_read_as_its_type_is_now(kind: Any) -> None:
    old, new = record([("name", str), ("amount", int)]), record([("total", Annotated[float, sa.Alias("amount")])])
    keys = (int,) if kind is sa.BroadcastState else ()
    lists, state = filled(kind(*keys, old))
    with lists.broadcasting():
        for number in range(3):
            value = old(name="a", amount=number)
            state.append(value) if not keys else state.__setitem__(number, value)
    snapshot = lists.begin_snapshot()
    assert snapshot is not None
    blocks = list(iter(snapshot.next_block, None))
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode(lists.schemas()))
    restored, state = filled(kind(*(float for _ in keys), new))
    restored.check_schemas(stored)
    for block in blocks:
        assert block is not None
        restored.restore(block, 0, block.items)
    found = list(state.items()) if keys else list(state)
    wanted = [new(total=float(number)) for number in range(3)]
    assert repr(found) == repr([(float(number), each) for number, each in enumerate(wanted)] if keys else wanted)
    restored, state = filled(kind(*keys, str))
    with pytest.raises(IncompatibleState, match=r"operator 'shop', state 'held': stored as Event, now str"):
        restored.check_schemas(stored)


# ----------------------------------------------------------------------------------------------------- a user's formats
class Point:
    def __init__(self, x: int, y: int) -> None:
        self.x, self.y = x, y

    def __repr__(self) -> str:
        return f"Point({self.x}, {self.y})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and (self.x, self.y) == (other.x, other.y)

    __hash__ = None  # type: ignore[assignment]


class PointFormat:
    def encode(self, value: Point) -> bytes:
        return b"%d %d" % (value.x, value.y)

    def decode(self, data: bytes) -> Point:
        return Point(*map(int, data.split()))


class NewPointFormat(PointFormat):
    """Named as the first one: a later state of the program."""

    version = 2

    def encode(self, value: Point) -> bytes:
        return b"%d,%d" % (value.x, value.y)

    def decode(self, data: bytes) -> Point:
        return Point(*map(int, data.split(b",")))


class ReadingPointFormat(NewPointFormat):
    def decode_version(self, data: bytes, version: int) -> Point:
        assert version == 1
        return super(NewPointFormat, self).decode(data)


NewPointFormat.__name__ = ReadingPointFormat.__name__ = "PointFormat"


class TestCustomFormats:
    def test_values_go_through_it(self) -> None:
        serializer: Serializer[Point] = serializer_for(sa.Custom(Point, PointFormat()))
        assert serializer.decode(serializer.encode(Point(1, 2))) == Point(1, 2)
        assert serializer.decode_many(serializer.encode_many([Point(1, 2), Point(3, 4)])) == [Point(1, 2), Point(3, 4)]
        point = Point(1, 2)
        assert serializer.copy(point) == point and serializer.copy(point) is not point

    def test_json_is_one(self) -> None:
        serializer: Serializer[Any] = serializer_for(sa.Custom(Untagged, sa.Json(Untagged)))
        assert serializer.decode(serializer.encode(Untagged("a"))) == Untagged("a")

    def test_none_may_be_stored_where_it_is_the_default(self) -> None:
        class Op(sa.KeyedOperator[str, str, str]):
            point = sa.ValueState(sa.Custom(Point, PointFormat()))

        codec: Any = codec_for(Op.point)
        _, entries = codec.decode_block(codec.encode_block(["a", "b"], [None, Point(1, 2)]))
        assert entries == [None, Point(1, 2)]

    def test_another_class_is_refused(self) -> None:
        with pytest.raises(UnserialisableValue, match=r"expected Point in the format PointFormat, found int: 1"):
            serializer_for(sa.Custom(Point, PointFormat())).encode(1)

    def test_an_error_of_the_format_is_named(self) -> None:
        serializer = serializer_for(sa.Custom(Point, PointFormat()))
        with pytest.raises(UnserialisableValue, match=r"PointFormat can't write it"):
            serializer.encode(Point("a", 1))  # type: ignore[arg-type]
        with pytest.raises(IncompatibleState, match=r"PointFormat can't read a stored Point"):
            serializer.decode(serializer.encode(Point(1, 2)).replace(b"1 2", b"1 x"))

    def test_bytes_are_wanted(self) -> None:
        class Text(PointFormat):
            def encode(self, value: Point) -> Any:
                return "1 2"

        with pytest.raises(UnserialisableValue, match=r"gave '1 2' for .*: give bytes"):
            serializer_for(sa.Custom(Point, Text())).encode_many([Point(1, 2)])

    def test_an_older_version_is_read_by_the_format(self) -> None:
        old, new = sa.Custom(Point, PointFormat()), sa.Custom(Point, ReadingPointFormat())
        assert reread(old, new, Point(1, 2)) == Point(1, 2)

    @pytest.mark.parametrize(
        ("old", "new", "problem"),
        [
            (
                PointFormat(),
                NewPointFormat(),
                r"version 1 of .* version 2 now, and has no decode_version",
            ),
            (NewPointFormat(), PointFormat(), r"version 2 of .* version 1 now: use the newer one"),
            (PointFormat(), sa.Json(), "stored as Point in the format PointFormat, now Point in the format Json"),
        ],
    )
    def test_what_can_not_be_read_is_refused(self, old: Any, new: Any, problem: str) -> None:
        (found,) = problems(sa.Custom(Point, old), sa.Custom(Point, new))
        assert re.search(problem, found), found

    def test_a_type_with_a_format_is_not_one_without(self) -> None:
        assert problems(sa.Custom(Untagged, sa.Json(Untagged)), Untagged) == [
            "stored as Untagged in the format Json, now Untagged"
        ]
        assert problems(Untagged, sa.Custom(Untagged, sa.Json(Untagged))) == [
            "stored as Untagged, now Untagged in the format Json"
        ]

    def test_a_version_is_a_number(self) -> None:
        class Odd(PointFormat):
            version = "2"

        with pytest.raises(InvalidDataflow, match=r"Odd is '2': make it an int"):
            serializer_for(sa.Custom(Point, Odd()))


# ----------------------------------------------------------------------------------------------------------------- keys
XY = struct([("x", int), ("y", int)], name="Spot", frozen=True)
X = struct([("x", int)], name="Spot", frozen=True)


@pytest.mark.parametrize(
    ("before", "after"),
    [(XY, X), (TUPLE[XY, int], TUPLE[X, int]), (int | XY, int | X), (FROZENSET[XY], FROZENSET[X])],
    ids=["itself", "tuple", "union", "set"],
)
def test_keys_of_a_map_stay_apart(before: Any, after: Any) -> None:
    """Of two entries one would be lost."""
    old, new = codec_for(sa.MapState(before, int)), codec_for(sa.MapState(after, int))
    (problem,) = new.problems(old.schema())
    assert problem.startswith("key ") and "field 'y' is gone, and keys that differ in it alone would be one" in problem


def test_keys_of_broadcast_state_stay_apart() -> None:
    old, new = OperatorLists("judge"), OperatorLists("judge")
    old.bind("rules", sa.BroadcastState(XY, int))
    new.bind("rules", sa.BroadcastState(X, int))
    with pytest.raises(IncompatibleState, match="'judge', state 'rules': key field 'y' is gone, and keys that differ"):
        new.check_schemas(old.schemas())


def test_keys_of_a_map_may_have_more() -> None:
    old: Any = codec_for(sa.MapState(X, int))
    new = codec_for(sa.MapState(Any, int))
    with_default: Any = codec_for(sa.MapState(struct([("x", int), ("y", int, 0)], name="Spot", frozen=True), int))
    assert with_default.problems(old.schema()) == []
    with_default.read_as(old.schema())
    data = old.encode_block(["a"], [{X(1): 1, X(2): 2}])
    keys, (held,) = with_default.decode_block(data)
    assert (keys, repr(held)) == (["a"], "{Spot(x=1, y=0): 1, Spot(x=2, y=0): 2}")
    assert new.problems(old.schema()) == ["key stored as Spot, now any"]


def test_entries_of_a_map_whose_keys_have_become_one_are_refused() -> None:
    """Keys that describe themselves have no schema that could have told it before."""
    codec: Any = codec_for(sa.MapState(Any, int))
    old = made("Shrinking", [("x", int), ("y", int)], frozen_record)
    entry = {old(1, 1): 1, old(1, 2): 2}
    blocks = codec.encode_block(["a"], [entry]), codec.encode_block([], [], ["a"], [codec.encode(entry)])
    new = made("Shrinking", [("x", int)], frozen_record)
    for block in blocks:
        with pytest.raises(IncompatibleState, match="2 stored keys of a map are 1 now"):
            codec_for(sa.MapState(Any, int)).decode_block(block)
    del new


@pytest.mark.parametrize("wrap", [lambda tp: tp, lambda tp: LIST[tp]], ids=["itself", "list"])
def test_a_dict_whose_keys_are_instances_can_not_change(wrap: Any) -> None:
    """Nothing reads such keys without their type."""
    old, new = wrap(DICT[X, int]), wrap(DICT[X, float])
    assert problems(old, old) == []
    assert problems(DICT[TUPLE[int, int], X], DICT[TUPLE[int, int], XY]) == [
        "field '[]': field 'y' of type int is new and has no default"
    ]
    (problem,) = problems(old, new)
    assert "a dict whose keys are instances can't change" in problem
    for declared in (sa.ValueState(old), sa.ValueState(typing.Optional[old], default=None)):  # noqa: UP045 (no type form)
        codec: Any = codec_for(declared)
        assert codec.problems(msgspec.msgpack.decode(msgspec.msgpack.encode(codec.schema()))) == []


def test_what_only_reads_an_older_version_copies_todays() -> None:
    old, new = struct([("held", list[int])]), struct([("held", list[int]), ("more", int, 0)])
    value = new([1], 5)
    copy = serializer_for(new).reader(stored_schema(old)).copy(value)
    assert copy == value and copy.held is not value.held
    formatted = sa.Custom(Point, ReadingPointFormat())
    reader = serializer_for(formatted).reader(stored_schema(sa.Custom(Point, PointFormat())))
    point = Point(1, 2)
    assert vars(reader.copy(point)) == vars(point)
