"""Values to bytes and back, by declared type: `serializer_for(type)`.

A serialised value begins with one byte for how the rest was written:

- `N` native msgpack by msgspec: what it gives back exactly. Almost everything.
- `W` wide: msgspec's builtins, with extension types for datetimes (msgspec would turn every time zone into UTC) and
  integers beyond 64 bits; also for strings that are no Unicode.
- `T` self-describing (`tagged`): for types that hold `Any`, numpy arrays and the like, and for keys.
- `P` pickle, only where the user said so by `Pickle`.
- `F` a format of the user's own, given by `Custom`.

A type chooses its way once; every serializer reads all of the first three, so that a field added later may change the
way.

**Declared types are enforced in two steps.** `accept` compares the value's own class when it is stored (one set
lookup); what is inside is checked when it is written: the whole block is decoded again and must equal what was encoded,
since msgspec encodes whatever it is given. A value that would come back as another is refused (UnserialisableValue).
"""

import builtins
import dataclasses
import datetime as dt
import pickle
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, Generic, Optional, Protocol, TypeVar, cast
from uuid import UUID

import msgspec
from msgspec import inspect as info

from streamactors.errors import IncompatibleState, InvalidDataflow, UnserialisableKey, UnserialisableValue
from streamactors.formats import Decoder, Encoder
from streamactors.state.serialisation.aliases import refuse_misplaced
from streamactors.state.serialisation.evolution import converter
from streamactors.state.serialisation.schemas import (
    Schema,
    attribute,
    class_name,
    class_of,
    describe,
    for_manifest,
    has_record_keys,
    problems,
    schema_of,
    with_none,
    without_none,
)
from streamactors.state.serialisation.tagged import TaggedCodec, field_names, is_record_class, place_of

T = TypeVar("T")

NATIVE: Final = b"N"
WIDE: Final = b"W"
TAGGED: Final = b"T"
PICKLE: Final = b"P"
FORMAT: Final = b"F"


class Everything(frozenset[Any]):
    """The classes that `Any` accepts."""

    def __contains__(self, _: object) -> bool:
        return True

    def issuperset(self, _: object) -> bool:
        return True


class Serializer(ABC, Generic[T]):
    """One type's way to bytes. All methods are pure and may run in any thread."""

    types: frozenset[Any]
    """The classes that a value itself may have, exactly. Ask with `in` before `accept`: that is the fast path."""

    immutable: bool
    """Values can't be changed in place: a reference is as good as a copy."""

    flat: bool
    """What a value holds can't be changed in place: a shallow copy is as good as a deep one."""

    schema: Schema
    """For the manifest."""

    def accept(self, value: Any) -> T:
        """The value as it is to be stored. Raises UnserialisableValue if it is of another class."""
        if type(value) in self.types:
            return cast(T, value)
        if type(value) is int and float in self.types and abs(value) < 2**1023:
            return cast(T, float(value))
        raise UnserialisableValue(f"expected {describe(self.schema)}, found {_name(type(value))}: {_shown(value)}")

    @abstractmethod
    def encode(self, value: T) -> bytes: ...

    @abstractmethod
    def decode(self, data: bytes) -> T: ...

    @abstractmethod
    def encode_many(self, values: list[T]) -> bytes:
        """All at once. Raises UnserialisableValue for one that does not fit the type."""

    @abstractmethod
    def decode_many(self, data: bytes) -> list[T]:
        """Raises IncompatibleState for what does not fit the type as it is now."""

    def copy(self, value: T) -> T:
        """Shares nothing that can be changed; the value itself if immutable."""
        if self.immutable:
            return value
        return cast(T, shallow_copy(value)) if self.flat else self.decode(self.encode(value))

    def check_compatible(self, old: Schema) -> list[str]:
        """Why values stored under the schema `old` can't be read; empty if they can."""
        return problems(old, self.schema)

    def check_compatible_keys(self, old: Schema) -> list[str]:
        """Likewise for what stands for a key: what was different has to stay so."""
        return self.check_compatible(old)

    def reader(self, old: Schema, *, nullable: bool = False) -> "Serializer[T]":
        """Reads what was stored under `old`, in which `check_compatible` has found no problem; writes as this one.
        `nullable`: or None, which `old` does not tell."""
        return self


def serializer_for(tp: Any) -> Serializer[Any]:
    """For a type expression, or what `Pickle` returned. Raises InvalidDataflow for a type that can't be stored."""
    if isinstance(tp, Serializer):  # of a type that is only known by its stored schema
        return tp
    if isinstance(tp, Pickled):
        return _PickleSerializer(tp)
    if isinstance(tp, Formatted):
        return _FormatSerializer(tp)
    if tp is Any or tp is object:
        return AnySerializer()
    try:
        refuse_misplaced(tp)
        kind = info.type_info(tp)
        return _TypedSerializer(tp, kind, _Facts(kind))
    except (TypeError, NameError) as error:
        raise InvalidDataflow(f"state can't be of type {_name(tp)}: {error}") from error


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
            raise UnserialisableKey(f"key {_shown(value)}: {error}") from error

    def encode_many(self, values: list[Any]) -> bytes:
        try:
            return TAGGED + self._codec.encode_list(values)
        except UnserialisableValue:
            for value in values:
                self.encode(value)  # raises for the one
            raise


# ------------------------------------------------------------------------------------------------------ declared types
class _TypedSerializer(Serializer[Any]):
    def __init__(self, tp: Any, kind: info.Type, facts: "_Facts") -> None:
        self.types = facts.accepted
        self.immutable = facts.immutable
        self.flat = facts.flat
        self.tagged = facts.tagged
        self.today = schema_of(kind)
        self.schema = for_manifest(self.today)
        self.type, self._list = tp, list[tp]
        self._exact = facts.exact
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
            if not self._exact:
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
    def _compare(self, values: list[Any], decoded: list[Any]) -> None:
        arrays = self.tagged and "numpy" in sys.modules  # whose == gives an array
        if not arrays and values == decoded:
            return
        for value, other in zip(values, decoded, strict=True):
            if not _same(value, other):
                raise self._misfit(f"{_shown(value)} would come back as {_shown(other)}")

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
    raise TypeError(f"it holds a {_name(type(value))}: {_shown(value)}")


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


# ------------------------------------------------------------------------------------------------- facts about a type
_ACCEPTED: Final[dict[type, type]] = {
    info.NoneType: type(None),
    info.BoolType: bool,
    info.IntType: int,
    info.FloatType: float,
    info.StrType: str,
    info.BytesType: bytes,
    info.ByteArrayType: bytearray,
    info.DateTimeType: dt.datetime,
    info.TimeType: dt.time,
    info.DateType: dt.date,
    info.TimeDeltaType: dt.timedelta,
    info.UUIDType: UUID,
    info.DecimalType: Decimal,
    info.ListType: list,
    info.SetType: set,
    info.FrozenSetType: frozenset,
    info.TupleType: tuple,
    info.VarTupleType: tuple,
    info.DictType: dict,
    info.TypedDictType: dict,
}
_EXACT: Final = (info.NoneType, info.BoolType, info.IntType, info.FloatType, info.StrType, info.BytesType)
_MUTABLE: Final = (
    info.AnyType,
    info.CustomType,
    info.ByteArrayType,
    info.ListType,
    info.SetType,
    info.DictType,
    info.TypedDictType,
)
# What `shallow_copy` copies, fast.
_COPIED: Final = (info.ListType, info.SetType, info.DictType, info.TypedDictType, info.ByteArrayType, info.StructType)


class _Facts:
    """What the choice of a way depends on. Raises TypeError for a type that can't be stored."""

    def __init__(self, kind: info.Type) -> None:
        nodes = list(_nodes(kind))
        for node in nodes:
            _refuse_unknown(node)
        self.accepted = _accepted(kind)
        self.tagged = any(isinstance(node, info.AnyType | info.CustomType) for node in nodes)
        self.wide = any(isinstance(node, info.DateTimeType | info.TimeType) for node in nodes)
        self.immutable = not any(map(_is_mutable, nodes))
        alternatives = kind.types if isinstance(kind, info.UnionType) else (kind,)
        self.flat = all(map(_is_flat, alternatives))
        self.exact = all(isinstance(each, _EXACT) and each == type(each)() for each in alternatives)
        classes = [class_of(node.cls) for node in nodes if hasattr(node, "cls")]
        self.classes = [cls for cls in classes if is_record_class(cls)]


def _nodes(kind: Any) -> Iterator[Any]:
    """The type and all that it is made of, each once."""
    seen: set[int] = set()
    waiting = [kind]
    while waiting:
        node = waiting.pop()
        if id(node) not in seen:
            seen.add(id(node))
            waiting += _parts(node)
            yield node


def _parts(node: Any) -> Iterable[Any]:
    match node:
        case info.Metadata(type=inner):
            return [inner]
        case info.DictType(key_type=key, value_type=value):
            return [key, value]
        case info.UnionType(types=types):
            return types
        case info.TupleType(item_types=types):
            return types
    if hasattr(node, "fields"):
        return [field.type for field in node.fields]
    return [node.item_type] if hasattr(node, "item_type") else []


def _refuse_unknown(node: Any) -> None:
    if isinstance(node, info.CustomType) and not _is_known_custom(node.cls):
        raise TypeError(
            f"{_name(node.cls)} has no declared fields; make it a dataclass or a msgspec Struct, "
            f"or write sa.Pickle({class_name(node.cls)}) to have it pickled"
        )
    if isinstance(node, info.RawType | info.ExtType | info.MemoryViewType):
        raise TypeError(f"{type(node).__name__.removesuffix('Type')} is a view of a buffer; use bytes")


def _is_known_custom(cls: Any) -> bool:
    return cls in (object, Fraction) or (isinstance(cls, type) and cls.__module__ == "numpy")


def _accepted(node: Any) -> frozenset[Any]:
    match node:
        case info.AnyType() | info.CustomType(cls=builtins.object):
            return Everything()
        case info.Metadata(type=inner):
            return _accepted(inner)
        case info.LiteralType(values=values):
            return frozenset(map(type, values))
        case info.UnionType(types=types):
            each = [_accepted(one) for one in types]
            return Everything() if any(isinstance(one, Everything) for one in each) else frozenset().union(*each)
    accepted = _ACCEPTED.get(type(node))
    return frozenset({accepted or class_of(node.cls)})


def _is_flat(node: Any) -> bool:
    within = [each for part in _parts(node) for each in _nodes(part)]
    return (type(node) in _COPIED or not _is_mutable(node)) and not any(map(_is_mutable, within))


def shallow_copy(value: Any) -> Any:
    """Of a value whose serializer is `flat`."""
    if isinstance(value, msgspec.Struct):
        return value.__copy__()  # type: ignore[attr-defined]  # is not in its stubs
    return value.copy() if isinstance(value, list | dict | set | bytearray) else value


def _is_mutable(node: Any) -> bool:
    if isinstance(node, info.StructType):
        return not class_of(node.cls).__struct_config__.frozen
    if isinstance(node, info.DataclassType):
        params = getattr(class_of(node.cls), "__dataclass_params__", None)
        return params is None or not params.frozen
    return type(node) in _MUTABLE


# --------------------------------------------------------------------------------------------------------------- pickle
@dataclasses.dataclass(frozen=True)
class Pickled:
    """What `Pickle` returns."""

    type: Any
    nullable: bool = False


def Pickle(type: builtins.type[T]) -> builtins.type[T]:  # noqa: N802 (used like a type)
    """A state type stored with pickle: for classes that nothing else can store.

    The class must be importable wherever the state is restored, and stored bytes run code when they are read: only from
    storage that you trust.
    """
    return cast(builtins.type[T], Pickled(type))


class _PickleSerializer(Serializer[Any]):
    immutable = False
    flat = False

    def __init__(self, declared: Pickled) -> None:
        self._class = object if declared.type is Any else class_of(declared.type)
        self._nullable = declared.nullable
        self.types = frozenset({self._class, type(None)} if declared.nullable else {self._class})
        self.schema = {"kind": "pickle", "name": class_name(self._class)}

    def accept(self, value: Any) -> Any:
        """Subclasses too: pickle keeps them."""
        return value if isinstance(value, self._class) else super().accept(value)

    def encode(self, value: Any) -> bytes:
        try:
            return PICKLE + pickle.dumps(self.accept(value), protocol=5)
        except (pickle.PicklingError, AttributeError, TypeError, RecursionError) as error:
            raise UnserialisableValue(f"{_shown(value)} can't be pickled: {error}") from error

    def decode(self, data: bytes) -> Any:
        try:
            return pickle.loads(data[1:])
        except (pickle.UnpicklingError, AttributeError, ImportError, TypeError) as error:
            raise IncompatibleState(f"a pickled {self.schema['name']} can't be read: {error}") from error

    def encode_many(self, values: list[Any]) -> bytes:
        """One by one: values that share an object must not share it after a restore."""
        return PICKLE + msgspec.msgpack.encode(list(map(self.encode, values)))

    def decode_many(self, data: bytes) -> list[Any]:
        return list(map(self.decode, msgspec.msgpack.decode(data[1:], type=list[bytes])))


# ------------------------------------------------------------------------------------------------ formats of the user's
FormatT = TypeVar("FormatT")


class Format(Encoder[FormatT], Decoder[FormatT], Protocol[FormatT]):
    """How a user writes values of a type: `Json(Model)`, or anything with `encode` and `decode`.

    Whoever changes what `encode` writes gives the format a `version` (an int, 1 if there is none), and a method
    `decode_version(data, version)`, which is called for what older ones wrote.
    """


@dataclasses.dataclass(frozen=True)
class Formatted:
    """What `Custom` returned."""

    type: Any
    format: Format[Any]
    nullable: bool = False


def Custom(type: builtins.type[T], format: Format[T]) -> builtins.type[T]:  # noqa: N802 (used like a type)
    """A state type stored in a format of one's own: `ValueState(Custom(Model, ModelFormat()))`.

    What the class looks like is the format's business; that it is the same format, by the name of its class and its
    version, is checked on restore. Values are copied by encoding and decoding them.
    """
    return cast(builtins.type[T], Formatted(type, format))


class _FormatSerializer(Serializer[Any]):
    """None, where that may be stored, is an empty value behind the mark."""

    immutable = False
    flat = False

    def __init__(self, declared: Formatted) -> None:
        self._declared = declared
        self._format = declared.format
        self._class = object if declared.type is Any else class_of(declared.type)
        self._version = getattr(declared.format, "version", 1)
        if not isinstance(self._version, int):
            raise InvalidDataflow(f"the version of {_name(type(self._format))} is {self._version!r}: make it an int")
        self.types = frozenset({self._class, type(None)} if declared.nullable else {self._class})
        format = type(declared.format).__name__
        self.schema = {"kind": "format", "name": class_name(self._class), "format": format, "version": self._version}

    def accept(self, value: Any) -> Any:
        """Subclasses too: what they come back as is the format's business."""
        return value if isinstance(value, self._class) else super().accept(value)

    def encode(self, value: Any) -> bytes:
        return FORMAT + msgspec.msgpack.encode(self._written(self.accept(value)))

    def encode_many(self, values: list[Any]) -> bytes:
        return FORMAT + msgspec.msgpack.encode([self._written(self.accept(value)) for value in values])

    def _written(self, value: Any) -> bytes | None:
        if value is None and self._declared.nullable:
            return None
        try:
            data = self._format.encode(value)
        except Exception as error:  # whatever a user's code raises
            raise UnserialisableValue(f"{_shown(value)}: {self._called()} can't write it: {error}") from error
        if not isinstance(data, bytes):
            raise UnserialisableValue(f"{self._called()} gave {_shown(data)} for {_shown(value)}: give bytes")
        return data

    def decode(self, data: bytes) -> Any:
        return self._read(self._format.decode, msgspec.msgpack.decode(data[1:], type=bytes | None))

    def decode_many(self, data: bytes) -> list[Any]:
        stored = msgspec.msgpack.decode(data[1:], type=list[bytes | None])
        return [self._read(self._format.decode, each) for each in stored]

    def _read(self, decode: Callable[[bytes], Any], data: bytes | None) -> Any:
        if data is None:
            return None
        try:
            return decode(data)
        except Exception as error:  # whatever a user's code raises
            raise IncompatibleState(f"{self._called()} can't read a stored {self.schema['name']}: {error}") from error

    def _called(self) -> str:
        return f"the format {_name(type(self._format))}"

    def check_compatible(self, old: Schema) -> list[str]:
        if (old["kind"], old.get("format")) != ("format", self.schema["format"]):
            return [f"stored as {describe(old)}, now {describe(self.schema)}"]
        if old["version"] == self._version:
            return []
        versions = f"stored by version {old['version']} of {self._called()}, which is version {self._version} now"
        if old["version"] > self._version:
            return [f"{versions}: use the newer one"]
        return (
            [] if hasattr(self._format, "decode_version") else [f"{versions}, and has no decode_version(data, version)"]
        )

    def reader(self, old: Schema, *, nullable: bool = False) -> Serializer[Any]:
        return self if old["version"] == self._version else _OlderFormat(self._declared, old["version"])


class _OlderFormat(_FormatSerializer):
    def __init__(self, declared: Formatted, version: int) -> None:
        super().__init__(declared)
        self._stored_version = version

    def copy(self, value: Any) -> Any:
        return _FormatSerializer(self._declared).copy(value)

    def _read(self, decode: Callable[[bytes], Any], data: bytes | None) -> Any:
        return super()._read(self._decode_older, data)

    def _decode_older(self, data: bytes) -> Any:
        format: Any = self._format
        return format.decode_version(data, self._stored_version)


# --------------------------------------------------------------------------------------------------------- for messages
def _name(tp: Any) -> str:
    if not isinstance(tp, type):
        return str(tp)
    return tp.__qualname__ if tp.__module__ in ("builtins", "__main__") else f"{tp.__module__}.{tp.__qualname__}"


def _shown(value: Any) -> str:
    """Short enough for a message."""
    try:
        text = repr(value)
    except Exception as error:  # a user's __repr__ must not hide the error being told
        text = f"<{_name(type(value))} whose repr fails: {error}>"
    return text if len(text) <= 200 else f"{text[:200]}…"
