"""Decoding many lines at once gives what decoding line by line gives."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from connectors.files.lines import Decoded, LineDecoder, LineEncoder, LineOffsets, length_of_lines
from streamactors.errors import RecordFailed
from streamactors.formats import Json, Raw, Text


class Order(msgspec.Struct):
    customer: str
    amount: float = 0.0


LINES = st.sampled_from(
    [
        b'{"customer":"a"}',
        b'{"customer":"b","amount":1.5}',
        b'{"customer":"c"}{"customer":"d"}',
        b'{"customer":"e"} {"customer":"f"}',
        b'{"customer":',
        b'"g"}',
        b'{"customer":{',
        b'{"other":1}',
        b"}",
        b"{",
        b"[1,",
        b"2]",
        b"",
        b"  ",
        b'{"customer":"h"}\r',
        b"\r",
        b'{"customer":"\xff"}',
    ]
)
FILES = st.builds(
    lambda lines, newline: b"\n".join(lines) + (b"\n" if newline or not lines[-1] else b""),
    st.lists(LINES, min_size=1, max_size=12),
    st.booleans(),
)


def decode(decoder: LineDecoder[Any], data: bytes, first: int = 1, prefix: str = "") -> Decoded[Any]:
    return decoder.decode(data, len(data.removesuffix(b"\n").split(b"\n")), first, prefix)


def line_by_line(value: Json[Any], data: bytes) -> tuple[list[object], list[int], list[tuple[int, str]]]:
    values: list[object] = []
    numbers: list[int] = []
    refused: list[tuple[int, str]] = []
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n"), 1):
        try:
            values.append(value.decode(line))
        except ValueError:
            if line.strip():
                refused.append((len(numbers), f"f:{number}"))
        else:
            numbers.append(number)
    return values, numbers, refused


@pytest.mark.parametrize("value", [Json(), Json(Order)], ids=repr)
@given(data=FILES)
@example(data=b'{"customer":"a",\n"amount":1}\n{"customer":"b"}{"customer":"c"}\n')  # as many values as lines
@example(data=b"[1,\n2]\n3 4\n")
@example(data=b'{"a":[{"customer":"a"}\n{"customer":"b"}]}\n')
def test_json_lines_are_lines(value: Json[Any], data: bytes) -> None:
    decoded = decode(LineDecoder(value), data, 1, "f:")
    refused = [(record.index, record.origin) for record in decoded.undecodable]
    assert (list(decoded.values), list(decoded.numbers), refused) == line_by_line(value, data)


def test_a_refused_line_comes_with_its_text_origin_and_error() -> None:
    decoded = decode(LineDecoder(Json(Order)), b'{"customer":"a"}\n{"customer":1}\n\xff\n', 17, "events.jsonl:")
    wrong, no_text = decoded.undecodable
    assert (wrong.index, wrong.origin, wrong.value) == (1, "events.jsonl:18", '{"customer":1}')
    assert isinstance(wrong.error, msgspec.ValidationError)
    assert (no_text.origin, no_text.value) == ("events.jsonl:19", b"\xff")


def test_blank_lines_are_records_of_text_and_nothing_in_json() -> None:
    assert decode(LineDecoder(Text()), b"a\n\nb\n").values == ["a", "", "b"]
    decoded = decode(LineDecoder(Json()), b"1\n\n  \n2\n\n")
    assert (decoded.values, decoded.numbers, decoded.undecodable) == ([1, 2], [1, 4], [])


def test_carriage_returns_end_lines_too() -> None:
    assert decode(LineDecoder(Raw()), b"a\r\nb\rc\r\n\r\nd").values == [b"a", b"b\rc", b"", b"d"]


class Shouted(Json[Any]):
    def decode(self, data: bytes) -> Any:
        return super().decode(data)["customer"].upper()


def test_a_subclass_decodes_in_its_own_way() -> None:
    assert decode(LineDecoder(Shouted()), b'{"customer":"a"}\n{"customer":"b"}\n').values == ["A", "B"]


def test_what_only_the_decoder_itself_understands_is_left_to_it() -> None:
    """As with pydantic models, which msgspec takes for classes that it does not know."""

    class Model:
        pass

    class Modelled(Json[Any]):
        def _codec(self, tp: Any) -> Any:
            return (lambda data: Model()), bytes

    decoder = LineDecoder(Json(Order))
    decoder._value = Modelled(Model)
    decoder._together = msgspec.json.Decoder(Model).decode_lines
    for _ in range(2):
        values: list[object] = list(decode(decoder, b"{}\n{}\n").values)
        assert [type(value) for value in values] == [Model, Model]
    assert decoder._together is None


@given(st.lists(st.binary(max_size=5).filter(lambda line: b"\n" not in line), min_size=1), st.data())
def test_lengths_and_offsets_of_lines(lines: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(line + b"\n" for line in lines)
    offsets = LineOffsets(whole)
    for count in data.draw(st.lists(st.integers(0, len(lines)), min_size=1)):
        assert length_of_lines(whole, count) == offsets.of(count) == sum(len(line) + 1 for line in lines[:count])


class TestEncoder:
    @given(st.lists(st.builds(Order, st.text(), st.floats(allow_nan=False, allow_infinity=False)), min_size=1))
    def test_json_lines(self, orders: list[Order]) -> None:
        data = LineEncoder(Json(Order), "out").encode(orders)
        assert decode(LineDecoder(Json(Order)), data).values == orders
        assert [json.loads(line) for line in data.splitlines()] == [msgspec.to_builtins(order) for order in orders]

    def test_any_encoder(self) -> None:
        assert LineEncoder(Text(), "out").encode(["a", "", "b"]) == b"a\n\nb\n"

    def test_a_newline_in_a_value_is_refused(self) -> None:
        with pytest.raises(RecordFailed, match="'out' failed: a value has a newline.*use Json"):
            LineEncoder(Text(), "out").encode(["a", "b\nc"])
        assert LineEncoder(Json(), "out").encode(["b\nc"]) == b'"b\\nc"\n'

    def test_the_value_that_can_not_be_encoded_is_named(self) -> None:
        with pytest.raises(RecordFailed, match="'out' failed: <object object at .* can't be encoded") as failed:
            LineEncoder(Json(), "out").encode([1, object()])
        assert isinstance(failed.value.__cause__, TypeError)
