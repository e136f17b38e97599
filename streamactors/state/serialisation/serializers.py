"""The serializer of each type (see `serializer`)."""

import dataclasses
import datetime as dt
import sys
from collections.abc import Callable
from typing import Any, Final, Optional, cast

import msgspec
from msgspec import inspect as info

from streamactors.errors import IncompatibleState, InvalidDataflow, UnserialisableKey, UnserialisableValue
from streamactors.state.serialisation.aliases import refuse_misplaced
from streamactors.state.serialisation.evolution import converter
from streamactors.state.serialisation.facts import Facts
from streamactors.state.serialisation.formats import FormatSerializer, Formatted
from streamactors.state.serialisation.pickled import Pickled, PickleSerializer
from streamactors.state.serialisation.plain_fields import proof_for
from streamactors.state.serialisation.schemas import (
    Schema,
    attribute,
    describe,
    for_manifest,
    has_record_keys,
    problems,
    schema_of,
    with_none,
    without_none,
)
from streamactors.state.serialisation.serializer import NATIVE, TAGGED, WIDE, Everything, Serializer, shown, type_name
from streamactors.state.serialisation.tagged import TaggedCodec, field_names, is_record_class, place_of


def serializer_for(tp: Any) -> Serializer[Any]:
    """For a type expression, or what `Pickle` returned. Raises InvalidDataflow for a type that can't be stored."""
    if isinstance(tp, Serializer):  # of a type that is only known by its stored schema
        return tp
    if isinstance(tp, Pickled):
        return PickleSerializer(tp)
    if isinstance(tp, Formatted):
        return FormatSerializer(tp)
    if tp is Any or tp is object:
        return AnySerializer()
    try:
        refuse_misplaced(tp)
        kind = info.type_info(tp)
        return _TypedSerializer(tp, kind, Facts(kind))
    except (TypeError, NameError) as error:
        raise InvalidDataflow(f"state can't be of type {type_name(tp)}: {error}") from error


def optional(tp: Any) -> Any:
    """`tp | None`."""
    if isinstance(tp, Pickled | Formatted):
        return dataclasses.replace(tp, nullable=True)
    return tp if tp is Any or tp is object else Optional[tp]  # noqa: UP045 (`|` does not take every type form)


# --------------------------------------------------------------------------------------------------------- any value
class AnySerializer(Serializer[Any]):
    """Self-describing: every value comes back as the type it was, without a declared type.

    Also for batches of records whose type nobody declared: a list of one class is written as that class's own type.
    """

    types = Everything()
    immutable = False
    flat = False
    schema: Schema = {"kind": "any"}  # noqa: RUF012 (never changed)

    def __init__(self) -> None:
        self._codec = TaggedCodec()
        self._typed: dict[type, _TypedSerializer | None] = {}
        self._readers: dict[bytes, Serializer[Any]] = {}

    def encode(self, value: Any) -> bytes:
        return TAGGED + self._codec.encode(value)

    def decode(self, data: bytes) -> Any:
        if data[:1] != TAGGED:
            raise _unknown_mark(data)
        return self._codec.decode(data[1:])

    def encode_many(self, values: list[Any]) -> bytes:
        return self._encode_one_class(values) or TAGGED + self._codec.encode_list(values)

    def decode_many(self, data: bytes) -> list[Any]:
        if data[:1] == TAGGED:
            return cast(list[Any], self._codec.decode(data[1:]))
        if data[:1] != NATIVE:
            raise _unknown_mark(data)
        stored = RECORDS.decode(data[1:])
        reader = self._readers.get(stored.head)
        if reader is None:
            reader = self._readers[stored.head] = self._reader(*msgspec.msgpack.decode(stored.head))
        return reader.decode_many(stored.data)

    def _reader(self, place: str, schema: Schema) -> Serializer[Any]:
        """Of records of the class that was at `place`, and had this schema."""
        found = self._class_serializer(self._codec.classes.find(place, frozenset(map(attribute, schema["fields"]))))
        if found is None:
            raise IncompatibleState(
                f"stored records of class {place} can't be read: its fields have types of no serialiser"
            )
        if problems := found.check_compatible(schema):
            raise IncompatibleState(f"stored records of class {place} can't be read: {'; '.join(problems)}")
        return found.reader(schema)

    def _encode_one_class(self, values: list[Any]) -> bytes | None:
        """The fast way for a whole batch of Structs; None where it does not apply."""
        classes = set(map(type, values))
        serializer = self._class_serializer(classes.pop()) if len(classes) == 1 else None
        if serializer is None:
            return None
        try:
            data = serializer.encode_many(values)
        except UnserialisableValue:  # not what its fields declare: the slow way keeps it as it is
            return None
        head = msgspec.msgpack.encode((place_of(type(values[0])), serializer.schema))
        return NATIVE + msgspec.msgpack.encode(_Records(head, data))

    def _class_serializer(self, cls: type) -> "_TypedSerializer | None":
        if cls not in self._typed:
            self._typed[cls] = self._make_class_serializer(cls)
        return self._typed[cls]

    def _make_class_serializer(self, cls: Any) -> "_TypedSerializer | None":
        if not issubclass(cls, msgspec.Struct) and not dataclasses.is_dataclass(cls):
            return None
        self._codec.classes.refuse_unfindable(cls)
        try:
            serializer = serializer_for(cls)
        except InvalidDataflow:
            return None
        return serializer if isinstance(serializer, _TypedSerializer) and not serializer.tagged else None


class _Records(msgspec.Struct, array_like=True):
    """Of one class. `head`: its place and its schema."""

    head: bytes
    data: bytes


RECORDS: Final = msgspec.msgpack.Decoder(_Records)


class KeySerializer(AnySerializer):
    """For the keys of keyed state: self-describing, since no stream declares its key type."""

    def encode(self, value: Any) -> bytes:
        try:
            return super().encode(value)
        except UnserialisableValue as error:
            raise UnserialisableKey(f"key {shown(value)}: {error}") from error

    def encode_many(self, values: list[Any]) -> bytes:
        try:
            return TAGGED + self._codec.encode_list(values)
        except UnserialisableValue:
            for value in values:
                self.encode(value)  # raises for the one
            raise


# ------------------------------------------------------------------------------------------------------ declared types
class _TypedSerializer(Serializer[Any]):
    def __init__(self, tp: Any, kind: info.Type, facts: "Facts") -> None:
        self.types = facts.accepted
        self.immutable = facts.immutable
        self.flat = facts.flat
        self.tagged = facts.tagged
        self.today = schema_of(kind)
        self.schema = for_manifest(self.today)
        self.type, self._list = tp, list[tp]
        self._exact = facts.exact
        self._proof = proof_for(kind)
        self._codec = TaggedCodec(facts.classes)
        self._write = self._tagged if facts.tagged else self._wide if facts.wide else self._native
        self._decode_one = msgspec.msgpack.Decoder(self.type).decode
        self._decode_many = msgspec.msgpack.Decoder(self._list).decode

    def encode(self, value: Any) -> bytes:
        if type(value) not in self.types:
            value = self.accept(value)
        try:
            data = self._write(value)
            if not self._exact:
                self._compare([value], [self.decode(data)])
        except _MISFITS as error:
            raise self._misfit(error) from error
        return data

    def encode_many(self, values: list[Any]) -> bytes:
        if not self.types.issuperset(map(type, values)):
            values = list(map(self.accept, values))
        try:
            data = self._write(values)
            if not self._exact and not self._is_proved(values, data):
                self._compare(values, self.decode_many(data))
        except _MISFITS as error:
            raise self._misfit(error) from error
        return data

    def decode(self, data: bytes) -> Any:
        return self._read(data, self._decode_one, self.type)

    def decode_many(self, data: bytes) -> list[Any]:
        return cast(list[Any], self._read(data, self._decode_many, self._list))

    # ------------------------------------------------------------------------------------------- what is stored already
    def check_compatible(self, old: Schema) -> list[str]:
        return self._problems(old)

    def check_compatible_keys(self, old: Schema) -> list[str]:
        return self._problems(old, key=True)

    def _problems(self, old: Schema, *, key: bool = False) -> list[str]:
        found = problems(old, self.today, key=key)
        if not found and has_record_keys(old) and without_none(old) != without_none(self.schema):
            return [
                f"stored as {describe(old)}, now {describe(self.schema)}: a dict whose keys are instances can't change"
            ]
        return found

    def reader(self, old: Schema, *, nullable: bool = False) -> Serializer[Any]:
        stored = with_none(old) if nullable else old
        return self if stored == self.schema else _OlderReader(self, stored)

    def read_older(self, data: bytes, convert: Callable[[Any], Any], tp: Any) -> Any:
        """`convert` brings what was stored into the shape of `tp`."""
        _refuse_unknown_mark(data)
        try:
            stored = msgspec.msgpack.decode(data[1:]) if data[:1] == NATIVE else self._codec.decode_parts(data[1:])
            return msgspec.convert(convert(stored), tp)
        except msgspec.ValidationError as error:
            raise self._unreadable(error) from error
        except (IncompatibleState, TypeError) as error:  # a TypeError: keys that msgpack can't have without a type
            raise IncompatibleState(f"a stored value can't be read as {describe(self.schema)}: {error}") from error

    # ------------------------------------------------------------------------------------------------- one way there
    def _native(self, value: Any) -> bytes:
        try:
            return NATIVE + msgspec.msgpack.encode(value, enc_hook=_refuse_class)
        except (OverflowError, UnicodeEncodeError):  # an integer beyond 64 bits; half a surrogate pair
            return self._wide(value)

    def _wide(self, value: Any) -> bytes:
        return WIDE + self._codec.encode(msgspec.to_builtins(value, builtin_types=KEPT, enc_hook=_refuse_class))

    def _tagged(self, value: Any) -> bytes:
        return TAGGED + self._codec.encode(value)

    def _read(self, data: bytes, native: Callable[[bytes], Any], tp: Any) -> Any:
        try:
            if data[:1] == NATIVE:
                return native(data[1:])
            _refuse_unknown_mark(data)
            return msgspec.convert(self._codec.decode(data[1:]), tp)
        except msgspec.ValidationError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: msgspec.ValidationError) -> IncompatibleState:
        return IncompatibleState(f"a stored value is not of type {describe(self.schema)}: {error}")

    # ----------------------------------------------------------------------------------------------------- and back
    def _is_proved(self, values: list[Any], data: bytes) -> bool:
        return self._proof is not None and data[:1] == NATIVE and self._proof(values)

    def _compare(self, values: list[Any], decoded: list[Any]) -> None:
        arrays = self.tagged and "numpy" in sys.modules  # whose == gives an array
        if not arrays and values == decoded:
            return
        for value, other in zip(values, decoded, strict=True):
            if not _same(value, other):
                raise self._misfit(f"{shown(value)} would come back as {shown(other)}")

    def _misfit(self, why: object) -> UnserialisableValue:
        if isinstance(why, IncompatibleState) and why.__cause__ is not None:
            why = why.__cause__  # that it can't be read is no news about a value that is just being stored
        return UnserialisableValue(f"a value does not fit its type {describe(self.schema)}: {why}")


def _refuse_unknown_mark(data: bytes) -> None:
    if data[:1] not in (NATIVE, WIDE, TAGGED):
        raise _unknown_mark(data)


def _unknown_mark(data: bytes) -> IncompatibleState:
    return IncompatibleState(
        f"stored in the way {data[:1]!r}, which this version does not know: use the version of streamactors that wrote "
        "it, or a newer one"
    )


class _OlderReader(Serializer[Any]):
    """A serializer that reads what was stored under an older schema."""

    def __init__(self, today: _TypedSerializer, old: Schema) -> None:
        self.types, self.immutable, self.flat, self.schema = today.types, today.immutable, today.flat, today.schema
        self._today = today
        self._convert = converter(old, today.today)

    def encode(self, value: Any) -> bytes:
        return self._today.encode(value)

    def encode_many(self, values: list[Any]) -> bytes:
        return self._today.encode_many(values)

    def decode(self, data: bytes) -> Any:
        return self._today.read_older(data, self._convert, self._today.type)

    def copy(self, value: Any) -> Any:
        return self._today.copy(value)

    def decode_many(self, data: bytes) -> list[Any]:
        found = self._today.read_older(data, self._convert_all, list[self._today.type])  # type: ignore[name-defined]
        return cast(list[Any], found)

    def _convert_all(self, values: list[Any]) -> list[Any]:
        return list(map(self._convert, values))


_MISFITS: Final = (TypeError, ValueError, RecursionError, IncompatibleState)
KEPT: Final = (dt.datetime, dt.time, bytes, bytearray)


def _refuse_class(value: Any) -> Any:
    raise TypeError(f"it holds a {type_name(type(value))}: {shown(value)}")


def _same(a: Any, b: Any) -> bool:
    """Equality where == does not tell: NaN, numpy arrays, classes that compare by identity."""
    if type(a) is not type(b):
        return bool(a == b)
    if type(a) in (list, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if type(a) is dict:
        return a.keys() == b.keys() and all(_same(value, b[key]) for key, value in a.items())
    if is_record_class(type(a)) and (names := field_names(type(a))):
        return all(_same(getattr(a, name), getattr(b, name)) for name in names)
    if type(a).__module__ == "numpy":
        return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
    return bool(a == b) or bool(a != a and b != b)
