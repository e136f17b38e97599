"""What is proved to come back is what decoding gives: of every plain type, whatever the fields hold in fact."""

import datetime as dt
import enum
import uuid
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any

import msgspec
import pytest

from streamactors.state.serialisation.plain_fields import proof_for
from streamactors.state.serialisation.serializers import AnySerializer


class Text(str):
    pass


class Whole(int):
    pass


class Real(float):
    pass


class Raw(bytes):
    pass


class Colour(enum.Enum):
    RED = "r"


class Shade(str, enum.Enum):  # noqa: UP042 (as older programs have it)
    DARK = "d"


class Level(enum.IntEnum):
    ONE = 1


VALUES: list[Any] = [
    "x", "", "aGk=", 1, 0, -1, True, False, None, 1.5, 1.0, -0.0, float("nan"), float("inf"), b"b", Text("t"), Whole(2),
    Real(1.5), Raw(b"q"), Colour.RED, Shade.DARK, Level.ONE, bytearray(b"x"), memoryview(b"z"), dt.date(2020, 1, 1),
    dt.datetime(2020, 1, 1), dt.datetime(2020, 1, 1, tzinfo=dt.UTC), dt.time(1), dt.timedelta(1), Decimal(1),
    Decimal("1.5"), Decimal("NaN"), uuid.UUID(int=5), Fraction(1, 2), 2**60 + 1, 2**70, 2**2000, "\ud800",
    msgspec.UNSET, [1], (1,), {}, set(), msgspec.Raw(b"\x01"), 1 + 0j,
]  # fmt: skip
TYPES: list[Any] = [
    str, int, bool, float, bytes, None, str | None, int | None, float | None, bytes | None, int | float, str | int,
    bool | int, int | float | str | None,
]  # fmt: skip


def comes_back(values: list[Any], tp: Any) -> bool:
    try:
        decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(values), type=list[tp])
    except (TypeError, ValueError, OverflowError, UnicodeEncodeError):
        return False
    return all(same(a.field, b.field) for a, b in zip(values, decoded, strict=True))


def same(a: Any, b: Any) -> bool:
    return bool(a == b) or (a != a and b != b)


def encodable(values: list[Any]) -> bool:
    try:
        msgspec.msgpack.encode(values)
    except (TypeError, OverflowError, UnicodeEncodeError):
        return False
    return True


@pytest.mark.parametrize("tp", TYPES, ids=str)
def test_whatever_is_proved_and_encoded_comes_back(tp: Any) -> None:
    made = msgspec.defstruct("Made", [("first", int), ("field", tp), ("last", str)])
    prove = proof_for(msgspec.inspect.type_info(made))
    assert prove is not None
    proved = 0
    for value in VALUES:
        values = [made(1, value, "a"), made(2, value, "b")]
        if prove(values) and encodable(values):
            assert comes_back(values, made), value
            proved += 1
    assert proved >= 1


def test_one_that_does_not_fit_is_not_proved_by_the_others() -> None:
    class Order(msgspec.Struct):
        amount: float

    prove = proof_for(msgspec.inspect.type_info(Order))
    assert prove is not None
    assert prove([Order(1.0), Order(2.0)])
    assert not prove([Order(1.0), Order(2)])
    assert not prove([Order(1.0), Order(Decimal(2))])  # type: ignore[arg-type]


class Inner(msgspec.Struct):
    value: int


class Checked(msgspec.Struct):
    value: int

    def __post_init__(self) -> None:
        self.value += 1


class Sparse(msgspec.Struct, omit_defaults=True):
    value: int = 0


class Constrained(msgspec.Struct):
    value: Annotated[int, msgspec.Meta(gt=0)]


class Nested(msgspec.Struct):
    inner: Inner


class Nothing(msgspec.Struct):
    pass


@pytest.mark.parametrize("cls", [Checked, Sparse, Constrained, Nested, Nothing, int, list[int]], ids=str)
def test_of_other_types_only_decoding_proves_anything(cls: Any) -> None:
    assert proof_for(msgspec.inspect.type_info(cls)) is None


class Typed(msgspec.Struct, array_like=True, tag="typed", rename="camel", frozen=True):
    some_name: int
    other: str | None = None


def test_a_class_comes_back_however_it_is_laid_out() -> None:
    values: list[Any] = [Typed(1), Typed(2, "x"), Typed(-3, None)]
    serializer = AnySerializer()
    assert serializer.decode_many(serializer.encode_many(values)) == values


@pytest.mark.parametrize("value", [Colour.RED, dt.date(2020, 1, 1), Decimal("1.5"), 7, None, "\ud800"], ids=str)
def test_what_a_field_holds_against_its_declaration_comes_back_as_it_was(value: Any) -> None:
    values: list[Any] = [Typed(1, "x"), Typed(2, value)]
    serializer = AnySerializer()
    decoded = serializer.decode_many(serializer.encode_many(values))
    assert decoded == values and type(decoded[1].other) is type(value)
