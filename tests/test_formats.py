"""Formats: typed bytes in both directions, and errors that are the library's own."""

import dataclasses
import datetime as dt
import pickle
import subprocess
import sys
from typing import Any, TypedDict, assert_type

import msgspec
import pydantic
import pytest

from streamactors.formats import Decoder, Encoder, Json, MsgPack, Raw, Text, decode_batch, encode_batch


class Order(msgspec.Struct):
    customer: str
    amount: float


class Refund(msgspec.Struct, tag="refund"):
    order: int


class Payment(msgspec.Struct, tag="payment"):
    order: int
    at: dt.datetime


@dataclasses.dataclass
class Customer:
    name: str
    since: dt.date


class Options(TypedDict):
    depth: int


class Invoice(pydantic.BaseModel):
    number: int
    lines: list[str] = []
    due: dt.date | None = None


class Shouting(Json[str]):
    def decode(self, data: bytes) -> str:
        return super().decode(data).upper()

    def encode(self, value: str) -> bytes:
        return super().encode(value.lower())


TYPED: list[tuple[Any, Any]] = [
    (Order, Order("a", 1.5)),
    (Customer, Customer("a", dt.date(2024, 1, 1))),
    (Options, {"depth": 1}),
    (Refund | Payment, Payment(1, dt.datetime(2024, 1, 1, tzinfo=dt.UTC))),
    (int | str, "a"),
    (list[Order], [Order("a", 1.0)]),
    (None, {"anything": [1, None, "x"]}),
    (Any, [1]),
    (Invoice, Invoice(number=1, due=dt.date(2024, 1, 1))),
    (list[Invoice], [Invoice(number=1, lines=["x"])]),
    (Invoice | None, None),
]


@pytest.mark.parametrize("kind", [Json, MsgPack])
@pytest.mark.parametrize(("tp", "value"), TYPED, ids=[str(tp) for tp, _ in TYPED])
def test_values_of_a_type_come_back(kind: type[Json[Any]], tp: Any, value: Any) -> None:
    made = kind(tp)
    data = [made.encode(value)] * 3
    assert made.decode(data[0]) == value
    assert type(made.decode(data[0])) is type(value)
    assert decode_batch(made, data) == [value] * 3
    assert encode_batch(made, [value] * 3) == data


def test_json_is_json_and_msgpack_is_msgpack() -> None:
    assert Json(Order).encode(Order("a", 1.5)) == b'{"customer":"a","amount":1.5}'
    assert Json(Invoice).encode(Invoice(number=1)) == b'{"number":1,"lines":[],"due":null}'
    assert MsgPack(Invoice).decode(msgspec.msgpack.encode({"number": 1})) == Invoice(number=1)


def test_text_and_raw() -> None:
    assert (Text().decode("Käse".encode()), Text().encode("Käse")) == ("Käse", "Käse".encode())
    assert (Raw().decode(b"\xff"), Raw().encode(b"\xff")) == (b"\xff", b"\xff")
    assert decode_batch(Text(), [b"a", b"b"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("decoder", "data", "error", "message"),
    [
        (Json(Order), b"{", msgspec.DecodeError, "truncated"),
        (Json(Order), b'{"customer":"a"}', msgspec.ValidationError, "missing required field `amount`"),
        (Json(Order), b'{"customer":"a","amount":"x"}', msgspec.ValidationError, r"got `str` - at `\$.amount`"),
        (MsgPack(Order), b"\xc1", msgspec.DecodeError, "invalid opcode"),
        (Json(Invoice), b'{"number":"x"}', pydantic.ValidationError, "number\n  Input should be a valid integer"),
        (MsgPack(Invoice), b"\x80", pydantic.ValidationError, "Field required"),
        (Text(), b"\xff", UnicodeDecodeError, "invalid start byte"),
    ],
)  # fmt: skip
def test_errors_are_those_of_the_library(
    decoder: Decoder[Any], data: bytes, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        decoder.decode(data)
    with pytest.raises(error, match=message):
        decode_batch(decoder, [data])


def test_raw_takes_nothing_but_bytes() -> None:
    text: Any = "text"
    with pytest.raises(TypeError, match=r"Raw\(\) takes bytes, found str: give the sink a format such as Text\(\)"):
        Raw().encode(text)


def test_a_type_that_json_cannot_hold_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="more than one"):
        Json(Order | Customer)


def test_a_subclass_keeps_its_own_decoding_in_batches() -> None:
    assert decode_batch(Shouting(str), [b'"a"']) == ["A"]
    assert encode_batch(Shouting(str), ["A"]) == [b'"a"']


def test_any_object_with_the_two_methods_will_do() -> None:
    class Number:
        def decode(self, data: bytes) -> int:
            return int(data)

        def encode(self, value: int) -> bytes:
            return b"%d" % value

    assert decode_batch(Number(), [b"1", b"2"]) == [1, 2]
    assert encode_batch(Number(), [1, 2]) == [b"1", b"2"]


def test_types_are_inferred() -> None:
    assert_type(Json(Order), Json[Order])
    assert_type(Json(), Json[Any])
    assert_type(MsgPack(Order), MsgPack[Order])
    assert_type(MsgPack(), MsgPack[Any])
    assert_type(Json(Order).decode(b'{"customer":"a","amount":1}'), Order)
    assert_type(decode_batch(Text(), [b"a"]), list[str])
    decoder: Decoder[Order] = Json(Order)
    encoder: Encoder[Order] = MsgPack(Order)
    assert encoder.encode(decoder.decode(b'{"customer":"a","amount":1}')) == MsgPack().encode(
        {"customer": "a", "amount": 1.0}
    )


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (Json(Order), "Json(Order)"),
        (Json(), "Json()"),
        (MsgPack(list[int]), "MsgPack(list[int])"),
        (Text(), "Text()"),
        (Raw(), "Raw()"),
    ],
)
def test_show_what_they_are(made: object, text: str) -> None:
    assert repr(made) == text


def test_pydantic_is_not_imported_by_those_who_do_not_use_it() -> None:
    script = "import sys, streamactors.formats as f; f.Json(int).decode(b'1'); assert 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("format", [Json(), Json(dict[str, int]), MsgPack(dict[str, int])], ids=repr)
def test_a_format_goes_with_its_source_to_another_process(format: Any) -> None:
    """As a copy, which is also what a subclass adds."""
    format.own = 7
    again = pickle.loads(pickle.dumps(format))
    assert again.decode(format.encode({"a": 1})) == {"a": 1} and again.own == 7
    assert repr(again) == repr(format)
