"""From bytes to values: one line, one record, decoded many at a time."""

import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from streamactors.errors import InvalidConfig, RecordFailed
from streamactors.formats import Decoder, Encoder, Json, MsgPack, decode_batch, encode_batch
from streamactors.sources import UndecodableRecord

T = TypeVar("T")

_SHORT = reprlib.Repr()
_SHORT.maxother = _SHORT.maxstring = 200


@dataclass(frozen=True, slots=True)
class Decoded(Generic[T]):
    """The values of some lines, the number of each one's line, and the lines that the decoder refused."""

    values: Sequence[T]
    numbers: Sequence[int]
    undecodable: Sequence[UndecodableRecord] = ()


def require_format(where: str, value: object, method: str) -> None:
    """Raise InvalidConfig unless `value` is a format, and one whose records fit on lines."""
    if isinstance(value, type) or not callable(getattr(value, method, None)):
        raise InvalidConfig(
            f"{where}: value={value!r} has no {method}(); give an instance such as Json(Order) or Text()"
        )
    if isinstance(value, MsgPack):
        raise InvalidConfig(f"{where}: value={value!r} may hold newlines, and one line is one record; use Json")


def length_of_lines(data: bytes, count: int) -> int:
    """Bytes up to the end of the first `count` lines."""
    parts = data.split(b"\n", count)
    return len(data) - len(parts[count]) if len(parts) > count else len(data)


class LineOffsets:
    """Where each line of some data begins. Asked for one line after the other, it goes over the data once."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._line = 0
        self._offset = 0

    def of(self, line: int) -> int:
        """Bytes before line `line`, counted from 0."""
        if line < self._line:
            self._line = self._offset = 0
        if line > self._line:
            self._offset += length_of_lines(self._data[self._offset :], line - self._line)
            self._line = line
        return self._offset


class LineDecoder(Generic[T]):
    """`\\n` and `\\r\\n` end a line. A blank line that the decoder refuses is no record, and no error either."""

    def __init__(self, value: Decoder[T]) -> None:
        self._value = value
        self._together = _bulk_decoder(value)

    def decode(self, data: bytes, count: int, first: int, prefix: str) -> Decoded[T]:
        """`data` holds `count` whole lines, at least one, the first of them being number `first`."""
        values = self._decode_together(data, count) or self._decode_each(data)
        if values is None:
            return self._decode_one_by_one(data, first, prefix)
        return Decoded(values, range(first, first + count))

    def _decode_together(self, data: bytes, count: int) -> list[T] | None:
        """All values at once, a third faster than line by line; None unless each line surely is one JSON object.

        A bulk decoder takes any white space between values for a newline, and a newline within one for white space.
        Where every newline stands between `}` and `{` it is within no value, so that as many values as lines means one
        for each.
        """
        if self._together is None or not data.startswith(b"{") or data.count(b"}\n{") != count - 1:
            return None
        try:
            values = self._together(data)
        except Exception:  # the slower ways find out where, and whether it is an error at all
            if self._decode_each(data) is not None:
                self._together = None  # pydantic models, for one, are nothing to msgspec
            return None
        return values if len(values) == count else None

    def _decode_each(self, data: bytes) -> list[T] | None:
        """None if any line is refused."""
        try:
            return decode_batch(self._value, _lines_of(data))
        except Exception:
            return None

    def _decode_one_by_one(self, data: bytes, first: int, prefix: str) -> Decoded[T]:
        values: list[T] = []
        numbers: list[int] = []
        undecodable: list[UndecodableRecord] = []
        for number, line in enumerate(_lines_of(data), first):
            try:
                value = self._value.decode(line)
            except Exception as error:
                if line.strip():
                    undecodable.append(UndecodableRecord(len(values), f"{prefix}{number}", _readable(line), error))
            else:
                values.append(value)
                numbers.append(number)
        return Decoded(values, numbers, undecodable)


class LineEncoder(Generic[T]):
    """One line per value, a batch at a time."""

    def __init__(self, value: Encoder[T], uid: str) -> None:
        self._value = value
        self._together = msgspec.json.Encoder().encode_lines if type(value) is Json else None
        self._uid = uid

    def encode(self, values: Sequence[T]) -> bytes:
        """Raises RecordFailed for a value that the encoder refuses, and for one that makes several lines."""
        data = self._encode_together(values) or self._encode_each(values)
        if data.count(b"\n") != len(values):
            raise RecordFailed(
                self._uid, "a value has a newline in its encoded form; one line is one record: use Json, or escape it"
            )
        return data

    def _encode_together(self, values: Sequence[T]) -> bytes | None:
        if self._together is None:
            return None
        try:
            return self._together(values)
        except Exception:  # pydantic models, for one, are nothing to msgspec
            return None

    def _encode_each(self, values: Sequence[T]) -> bytes:
        try:
            return b"\n".join([*encode_batch(self._value, values), b""])
        except Exception as error:
            refused = _SHORT.repr(self._first_refused(values))
            raise RecordFailed(self._uid, f"{refused} can't be encoded: {error}") from error

    def _first_refused(self, values: Sequence[T]) -> T | None:
        for value in values:
            try:
                self._value.encode(value)
            except Exception:
                return value
        return None


def _bulk_decoder(value: Decoder[Any]) -> Callable[[bytes], list[Any]] | None:
    if type(value) is not Json:  # a subclass may decode in another way
        return None
    try:
        return msgspec.json.Decoder(Any if value.type is None else value.type).decode_lines
    except TypeError:
        return None


def _lines_of(data: bytes) -> list[bytes]:
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix(b"\r") for line in lines] if b"\r" in data else lines


def _readable(line: bytes) -> str | bytes:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line
