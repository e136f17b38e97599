"""Keys of state as the bytes under which RocksDB finds them.

`a == b` exactly if their bytes are equal: 1, True and 1.0 are one key, as in a dict. (Of the canonical form of
`key_groups` only one direction holds, since it is hashed.) Within strings, bytes, numbers, dates and times, and tuples
of these, bytes sort as the values do, so that a map can be read in order and from a key on; numbers beyond 2^53 that
are neither float nor 64-bit int sort only nearly. Never change this: stored files are found by it (golden values in the
tests).
"""

import dataclasses
import datetime as dt
import enum
import math
import struct
import uuid
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import msgspec

from streamactors.errors import IncompatibleState, UnserialisableKey
from streamactors.state.key_groups import canonical
from streamactors.state.serialisation.schemas import fingerprint
from streamactors.state.serialisation.serializers import KeySerializer
from streamactors.state.serialisation.tagged import ClassNames, field_names, is_named_tuple, place_of

_Writer = Callable[[Any], bytes]

_FLOAT: Final = struct.Struct(">d")
_LONG: Final = struct.Struct(">Q")
_SHORT: Final = struct.Struct(">H")
_NEGATIVE: Final = 1 << 63
_ALL: Final = (1 << 64) - 1
_EXACT: Final = b"\x80\x00"
_MAX_EXPONENT: Final = 100_000
_EPOCH: Final = dt.datetime(1970, 1, 1)
_MICROSECOND: Final = dt.timedelta(microseconds=1)

LENGTH: Final = struct.Struct(">I")


Shape = tuple[list[str], int]
"""A class's fields, none of an enum, and its fingerprint."""


def _shape_of(cls: type) -> Shape:
    return [] if issubclass(cls, enum.Enum) else sorted(field_names(cls)), fingerprint(cls)


def same_shapes(stored: Mapping[str, Shape]) -> bool:
    """Whether the classes of keys that were stored are what they were: else their bytes are others now."""
    for place, (fields, stamp) in stored.items():
        try:
            found = ClassNames().find(place, frozenset(fields))
        except IncompatibleState:  # whoever reads a key says so
            return False
        if not stamp or _shape_of(found) != (fields, stamp):
            return False
    return True


class StorageKeys:
    """The way of one backend's keys to bytes and back."""

    def __init__(self) -> None:
        self._tagged = KeySerializer()
        self._classes: dict[str, type] = {}
        self.shapes: dict[str, Shape] = {}
        """By place, of every class whose instances are in keys: their bytes depend on it."""
        self._writers: dict[type, _Writer] = {
            str: _str,
            bytes: lambda value: b"b" + value,
            type(None): lambda _: b"0",
            bool: _int,
            int: _int,
            float: _float,
            Decimal: _decimal,
            Fraction: _fraction,
            tuple: self._tuple,
            frozenset: lambda value: b"z" + _joined(sorted(map(self.encode, value))),
            dt.datetime: _datetime,
            dt.time: _time,
            dt.date: lambda value: b"d" + LENGTH.pack(value.toordinal()),
            dt.timedelta: lambda value: b"l" + _biased(value // _MICROSECOND),
            uuid.UUID: lambda value: b"u" + value.bytes,
        }

    def encode(self, key: Any) -> bytes:
        """Raises UnserialisableKey."""
        cls: type = type(key)
        writer = self._writers.get(cls)
        if writer is None:
            canonical(key)  # refuses what can't be a key, saying why
            self._tagged.encode(key)
            writer = self._writers[cls] = self._class_writer(cls)
            self.shapes[place_of(cls)] = _shape_of(cls)
        return writer(key)

    def carried(self, key: Any) -> bytes | None:
        """What has to be stored beside the value, since `plain` would give another key; None for most."""
        cls = type(key)
        if cls is str or cls is bytes or key is None or (cls is int and -_NEGATIVE <= key < _NEGATIVE):
            return None
        if cls is float and not key.is_integer() and math.isfinite(key):
            return None
        return self._tagged.encode(key)

    def plain(self, data: bytes) -> Any:
        """The key of which nothing was carried."""
        match data[:1]:
            case b"s":
                return data[1:].decode("utf-8", "surrogatepass")
            case b"n":
                return _number(data)
            case b"b":
                return data[1:]
            case b"0":
                return None
        raise ValueError(f"{data!r} is no key")

    def uncarried(self, data: bytes) -> Any:
        return self._tagged.decode(data)

    # ------------------------------------------------------------------------------------------------ keys of parts
    def _tuple(self, value: tuple[Any, ...]) -> bytes:
        return b"t" + _joined(list(map(self.encode, value)))

    def _class_writer(self, cls: Any) -> _Writer:
        if issubclass(cls, enum.Enum):
            for base in (int, str, float, bytes):
                if issubclass(cls, base) and cls.__eq__ is base.__eq__:
                    return self._writers[base]
            return self._named(cls, lambda value: [self.encode(value.value)])
        if is_named_tuple(cls):  # equals the tuple
            return self._tuple
        names = sorted(field_names(cls))
        if not issubclass(cls, msgspec.Struct):
            names = sorted(field.name for field in dataclasses.fields(cls) if field.compare)
        return self._named(
            cls, lambda value: [part for name in names for part in (name.encode(), self.encode(getattr(value, name)))]
        )

    def _named(self, cls: type, parts: Callable[[Any], list[bytes]]) -> _Writer:
        """By the class's name alone, since its module may change; so one backend has one class of a name."""
        other = self._classes.setdefault(cls.__name__, cls)
        if other is not cls and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise UnserialisableKey(
                f"keys of two classes with the name {cls.__name__}, in {other.__module__} and {cls.__module__}: "
                "RocksDB finds keys by the name, so rename one"
            )
        mark = b"o" + _joined([cls.__name__.encode()])
        return lambda value: mark + _joined(parts(value))


def _joined(parts: list[bytes]) -> bytes:
    """Each part ends in 0 1, and a 0 within is 0 255: so bytes sort part by part."""
    return b"".join(part.replace(b"\0", b"\0\xff") + b"\0\1" for part in parts)


def _str(value: str) -> bytes:
    return b"s" + value.encode("utf-8", "surrogatepass")


# -------------------------------------------------------------------------------------------------------------- numbers
# The nearest float, as 8 bytes that sort; then what is missing to the number itself.
def _sortable(value: float) -> bytes:
    (bits,) = _LONG.unpack(_FLOAT.pack(value or 0.0))
    return b"n" + _LONG.pack(bits ^ _ALL if bits & _NEGATIVE else bits | _NEGATIVE)


def _int(value: int) -> bytes:
    try:
        near = float(value)
    except OverflowError:
        return _beyond(value > 0, b"%x" % value)
    missing = value - int(near)
    if not missing:
        return _sortable(near) + _EXACT
    if -0x8000 < missing < 0x8000:
        return _sortable(near) + _SHORT.pack(missing + 0x8000)
    return _sortable(near) + _EXACT + b"%x" % value


def _float(value: float) -> bytes:
    if math.isnan(value):
        raise UnserialisableKey("NaN can't be a key: it is not equal to itself; give such records a key of their own")
    return _sortable(value) + _EXACT


def _decimal(value: Decimal) -> bytes:
    if not value.is_finite():
        return _float(math.nan if value.is_nan() else float(value))
    if abs(value.adjusted()) > _MAX_EXPONENT:
        raise UnserialisableKey(f"a Decimal with the exponent {value.adjusted()} can't be a key in RocksDB: round it")
    return _fraction(Fraction(value))


def _fraction(value: Fraction) -> bytes:
    if value.denominator == 1:
        return _int(value.numerator)
    try:
        near = float(value)
    except OverflowError:
        return _beyond(value > 0, b"%x/%x" % (value.numerator, value.denominator))
    if Fraction(near) == value:
        return _float(near)
    return _sortable(near) + _EXACT + b"%x/%x" % (value.numerator, value.denominator)


def _beyond(positive: bool, digits: bytes) -> bytes:
    return _sortable(math.inf if positive else -math.inf) + _EXACT + digits


def _number(data: bytes) -> int | float:
    (bits,) = _LONG.unpack_from(data, 1)
    (near,) = _FLOAT.unpack(_LONG.pack(bits & ~_NEGATIVE if bits & _NEGATIVE else bits ^ _ALL))
    if not near.is_integer():
        return float(near)
    return int(near) + int(_SHORT.unpack_from(data, 9)[0]) - 0x8000


# ------------------------------------------------------------------------------------------------------ dates and times
def _biased(value: int) -> bytes:
    return (value + (1 << 79)).to_bytes(10, "big")


def _datetime(value: dt.datetime) -> bytes:
    wall = (value.replace(tzinfo=None, fold=0) - _EPOCH) // _MICROSECOND
    offset = value.replace(fold=0).utcoffset()
    return b"N" + _biased(wall) if offset is None else b"I" + _biased(wall - offset // _MICROSECOND)


def _time(value: dt.time) -> bytes:
    of_day = dt.timedelta(hours=value.hour, minutes=value.minute, seconds=value.second, microseconds=value.microsecond)
    offset = value.replace(fold=0).utcoffset()
    return (
        b"w"
        + _biased(of_day // _MICROSECOND if offset is None else (of_day - offset) // _MICROSECOND)
        + (b"" if offset is None else b"Z")
    )
