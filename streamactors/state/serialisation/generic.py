"""Stored values without the classes that they were made of: read, and written again, by their schema alone.

Builtins, datetimes, Decimals, UUIDs, tuples and sets come back as they were; instances of classes (Structs,
dataclasses, NamedTuples) as dicts of their fields, without those that were left out because they had their default;
members of enums as their values. Where the stored bytes describe themselves instead of having a declared type,
instances are `Record`s and members of enums `Member`s, which also know their class. What was pickled stays `Opaque`:
unpickling runs code, and needs a declaration that says so.

Invariant: what is written is what the class reads, as if it had written it itself; what would come back as something
else is refused.
"""

import datetime as dt
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, NamedTuple, NotRequired, Optional, Required, TypedDict, Union
from uuid import UUID

import msgspec

from streamactors.errors import IncompatibleState, UnserialisableValue
from streamactors.state.serialisation.schemas import Schema, attribute, describe
from streamactors.state.serialisation.serializer import FORMAT, NATIVE, PICKLE, TAGGED, WIDE, Everything, Serializer
from streamactors.state.serialisation.serializers import KEPT, RECORDS, KeySerializer
from streamactors.state.serialisation.tagged import ENUM, INSTANCE, TaggedCodec


class Record(dict[str, Any]):
    """The fields of an instance whose class is not at hand; `place` says which it was, and `stamp` which version of it.
    Never changed, so that the stamp holds; hashable where its values are, since it may have been a key."""

    __slots__ = ("place", "stamp")

    def __init__(self, fields: Mapping[str, Any], place: str, stamp: Sequence[int] = ()) -> None:
        super().__init__(fields)
        self.place = place
        self.stamp = tuple(stamp)

    @property
    def class_name(self) -> str:
        return self.place.rpartition(".")[2]

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"a stored {self.class_name} can't be changed in place: make a dict of it, as in dict(record)")

    __setitem__ = __delitem__ = __ior__ = update = pop = popitem = clear = setdefault = _refuse


class Member(NamedTuple):
    """A member of an enum whose class, `place`, is not at hand."""

    place: str
    value: Any


class Opaque(NamedTuple):
    """What only the class itself can read: it was pickled, or written by a serializer of its own."""

    what: str
    data: bytes


class StoredCodec(TaggedCodec):
    """Takes classes as what they are only if asked to, and otherwise as their fields."""

    def __init__(self, *, find_classes: bool = False) -> None:
        super().__init__()
        self._find_classes = find_classes
        self._writers |= {
            Record: lambda record: (INSTANCE, self.encode([record.place, dict(record), *record.stamp])),
            Member: lambda member: (ENUM, self.encode([member.place, member.value])),
        }

    def _read_instance(self, data: bytes) -> Any:
        if self._find_classes:
            try:
                return super()._read_instance(data)
            except IncompatibleState:
                pass  # not loaded here: its fields have to do
        place, fields, *stamp = self.decode(data)
        return Record(fields, place, stamp)

    def _read_enum(self, data: bytes) -> Any:
        if self._find_classes:
            try:
                return super()._read_enum(data)
            except IncompatibleState:
                pass  # not loaded here: its value has to do
        return Member(*self.decode(data))


class StoredKeys(KeySerializer):
    """Keys whose class is loaded come back as they were, others as `Record`s and `Member`s."""

    def __init__(self) -> None:
        super().__init__()
        self._codec = StoredCodec(find_classes=True)


# --------------------------------------------------------------------------------------------------------------- shapes
class _Shape(ABC):
    """A schema, ready for use. `type` is what msgspec is to decode; `direct`: that is the value already."""

    type: Any = Any
    direct: bool = True

    def lift(self, raw: Any) -> Any:
        """The value, given what msgspec has made of `type`."""
        return raw

    @abstractmethod
    def lower(self, value: Any) -> Any:
        """What msgspec encodes as it would have encoded an instance of the class. Raises UnserialisableValue."""

    @abstractmethod
    def checked(self, value: Any) -> Any:
        """For values that describe themselves: the value itself, or what it has to be so that the class can be told;
        dicts that are no `Record`s go under encoded names. Raises UnserialisableValue."""

    def from_raw(self, raw: Any) -> Any:
        """The value, given what msgspec has made of no type at all."""
        return self.lift(msgspec.convert(raw, self.type))


class _Leaf(_Shape):
    def __init__(self, type: Any = Any) -> None:
        self.type = type
        self._classes = {type, int} if type is float else {type}

    def lower(self, value: Any) -> Any:
        if self.type is not Any and type(value) not in self._classes:
            raise UnserialisableValue(f"expected {self.type.__name__}, found {value!r}")
        return value

    checked = lower


class _Choice(_Leaf):
    """An enum's values, or a literal's."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self._name = describe(schema)
        self._values = schema["values"]

    def lower(self, value: Any) -> Any:
        if value not in self._values:
            raise UnserialisableValue(f"{value!r} is no value of {self._name}")
        return value

    def checked(self, value: Any) -> Any:
        self.lower(value.value if isinstance(value, Member) else value)
        return value


class _Items(_Shape):
    def __init__(self, container: Any, item: _Shape) -> None:
        self._container = container
        self._item = item
        self.direct = item.direct
        inside: Any = item.type
        whole = tuple[inside, ...] if container is tuple else container[inside]
        self.type = whole if item.direct else list[inside]

    def lift(self, raw: Any) -> Any:
        return raw if self.direct else self._container(map(self._item.lift, raw))

    def lower(self, value: Any) -> Any:
        _expect(value, self._container)
        lowered = map(self._item.lower, value)
        return list(lowered) if self._container is list else tuple(lowered)

    def checked(self, value: Any) -> Any:
        _expect(value, self._container)
        items = list(map(self._item.checked, value))
        return value if _same(items, value) else self._container(items)


class _Tuple(_Shape):
    def __init__(self, items: Sequence[_Shape]) -> None:
        self._items = items
        self.direct = all(item.direct for item in items)
        self.type = tuple.__class_getitem__(tuple(item.type for item in items) or ((),))

    def lift(self, raw: Any) -> Any:
        return raw if self.direct else tuple(item.lift(each) for item, each in zip(self._items, raw, strict=True))

    def lower(self, value: Any) -> Any:
        return tuple(item.lower(each) for item, each in self._pairs(value))

    def checked(self, value: Any) -> Any:
        items = [item.checked(each) for item, each in self._pairs(value)]
        return value if _same(items, value) else tuple(items)

    def _pairs(self, value: Any) -> Any:
        _expect(value, tuple)
        if len(value) != len(self._items):
            raise UnserialisableValue(f"expected a tuple of {len(self._items)}, found {value!r}")
        return zip(self._items, value, strict=True)


class _Dict(_Shape):
    def __init__(self, key: _Shape, value: _Shape) -> None:
        self._key, self._value = key, value
        self.direct = key.direct and value.direct
        self.type = dict[key.type, value.type]  # type: ignore[name-defined]

    def lift(self, raw: Any) -> Any:
        if self.direct:
            return raw
        return {self._key.lift(key): self._value.lift(value) for key, value in raw.items()}

    def lower(self, value: Any) -> Any:
        _expect(value, dict)
        return {self._key.lower(key): self._value.lower(each) for key, each in value.items()}

    def checked(self, value: Any) -> Any:
        _expect(value, dict)
        keys, values = list(map(self._key.checked, value)), list(map(self._value.checked, value.values()))
        same = _same(keys, value) and _same(values, value.values())
        return value if same else dict(zip(keys, values, strict=True))


class _Fields(_Shape):
    """A record by the names of its fields. `hashed`: where it must be hashable. A tag stays among the fields."""

    def __init__(self, schema: Schema, *, hashed: bool) -> None:
        self._name = str(schema["name"])
        self._required = {attribute(field) for field in schema["fields"] if field["required"]}
        self._keys = {attribute(field): str(field["name"]) for field in schema["fields"]}
        self._names = {key: name for name, key in self._keys.items()}
        self._hashed = hashed
        self._shapes: dict[str, _Shape] = {}
        self.tag = schema.get("tag")
        self.tag_field = str(schema.get("tag_field", "type"))

    def complete(self, shapes: Mapping[str, _Shape]) -> None:
        """Once the fields are known, which may refer to this very record."""
        self._shapes = dict(shapes)
        plain = not self._hashed and self.tag is None and all(map(str.__eq__, self._keys, self._keys.values()))
        self.direct = plain and all(shape.direct for shape in shapes.values())
        self.type = dict[str, Any] if self.tag is not None else self._typed()

    def _typed(self) -> Any:
        annotations = {
            self._keys[name]: Required[shape.type] if name in self._required else NotRequired[shape.type]
            for name, shape in self._shapes.items()
        }
        return _typed_dict(self._name, annotations)

    def lift(self, raw: Any) -> Any:
        if self.direct:
            return raw
        if self.tag is None:
            return self._made(
                {self._names[key]: self._shapes[self._names[key]].lift(each) for key, each in raw.items()}
            )
        return self._made({self.tag_field: self.tag, **self._lift_tagged(raw)})

    def _lift_tagged(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        if missing := [name for name in self._required if self._keys[name] not in raw]:
            raise msgspec.ValidationError(f"{self._name} without its field {missing[0]!r}")
        return {name: shape.from_raw(raw[key]) for name, key, shape in self._parts() if key in raw}

    def _parts(self) -> Iterator[tuple[str, str, _Shape]]:
        return ((name, self._keys[name], shape) for name, shape in self._shapes.items())

    def _made(self, fields: dict[str, Any]) -> dict[str, Any]:
        return Record(fields, self._name) if self._hashed else fields

    def is_own(self, raw: Any) -> bool:
        """Whether it has the tag, or the name of the class."""
        if isinstance(raw, Record):
            return raw.class_name == self._name
        return self.tag is not None and isinstance(raw, dict) and bool(raw.get(self.tag_field) == self.tag)

    def lower(self, value: Any) -> Any:
        self._check(value)
        fields = {key: shape.lower(value[name]) for name, key, shape in self._parts() if name in value}
        return fields if self.tag is None else {self.tag_field: self.tag, **fields}

    def checked(self, value: Any) -> Any:
        self._check(value)
        fields = {name: shape.checked(value[name]) for name, shape in self._shapes.items() if name in value}
        if isinstance(value, Record) and _same(fields.values(), (value[name] for name in fields)):
            return value
        return self._plain(fields)

    def _plain(self, fields: dict[str, Any]) -> Any:
        encoded = {self._keys[name]: value for name, value in fields.items()}
        return encoded if self.tag is None else {self.tag_field: self.tag, **encoded}

    def _check(self, value: Any) -> None:
        _expect(value, dict)
        if missing := sorted(self._required - value.keys()):
            raise UnserialisableValue(f"{self._name} without its field {missing[0]!r}: {value!r}")
        unknown = [name for name in value if name not in self._shapes and not self._is_tag(name, value[name])]
        if unknown:
            raise UnserialisableValue(f"{self._name} has no field {unknown[0]!r}: {value!r}")

    def _is_tag(self, name: str, value: Any) -> bool:
        return self.tag is not None and name == self.tag_field and bool(value == self.tag)


class _Array(_Fields):
    """A record by the places of its fields, behind its tag."""

    def complete(self, shapes: Mapping[str, _Shape]) -> None:
        self._shapes = dict(shapes)
        self.direct = False
        self.type = list[Any]

    def lift(self, raw: Any) -> Any:
        values = raw if self.tag is None else raw[1:]
        if len(values) < len(self._required):
            raise msgspec.ValidationError(f"{self._name} without all of its fields")
        pairs = zip(self._shapes.items(), values, strict=False)
        fields = {name: shape.from_raw(value) for (name, shape), value in pairs}
        return self._made(fields if self.tag is None else {self.tag_field: self.tag, **fields})

    def is_own(self, raw: Any) -> bool:
        if isinstance(raw, list | tuple):
            return self.tag is not None and bool(raw) and bool(raw[0] == self.tag)
        return super().is_own(raw)

    def lower(self, value: Any) -> Any:
        self._check(value)
        fields = {name: shape.lower(value[name]) for name, shape in self._shapes.items() if name in value}
        return tuple(self._plain(fields))

    def _plain(self, fields: dict[str, Any]) -> list[Any]:
        if list(fields) != list(self._shapes)[: len(fields)]:
            raise UnserialisableValue(f"{self._name} is stored by the places of its fields: give all of them")
        return [*(() if self.tag is None else (self.tag,)), *fields.values()]


class _Union(_Shape):
    """The first alternative that fits; records are told apart by their tags."""

    def __init__(self, alternatives: Sequence[_Shape]) -> None:
        self._alternatives = alternatives
        self.direct = all(shape.direct for shape in alternatives)
        if self.direct:
            self._use_type(Union[tuple(shape.type for shape in alternatives)])  # noqa: UP007 (of a tuple)

    def _use_type(self, union: Any) -> None:
        try:
            msgspec.msgpack.Decoder(union)
            self.type = union
        except TypeError:  # alternatives that only their classes tell apart
            self.direct = False

    def lift(self, raw: Any) -> Any:
        if self.direct:
            return raw
        for shape in self._possible(raw):
            try:
                return shape.from_raw(raw)
            except msgspec.ValidationError:
                continue
        raise msgspec.ValidationError(f"{raw!r} is none of the alternatives")

    def _possible(self, value: Any) -> Iterable[_Shape]:
        own = [shape for shape in self._alternatives if isinstance(shape, _Fields) and shape.is_own(value)]
        untagged = (shape for shape in self._alternatives if not isinstance(shape, _Fields) or shape.tag is None)
        return own or untagged

    def lower(self, value: Any) -> Any:
        return self._first(value, lambda shape: shape.lower(value))

    def checked(self, value: Any) -> Any:
        return self._first(value, lambda shape: shape.checked(value))

    def _first(self, value: Any, attempt: Callable[[_Shape], Any]) -> Any:
        reasons = []
        for shape in self._possible(value):
            try:
                return attempt(shape)
            except UnserialisableValue as error:
                reasons.append(str(error))
        raise UnserialisableValue(f"{value!r} is none of the alternatives ({'; '.join(reasons)})")


class _Optional(_Shape):
    def __init__(self, shape: _Shape) -> None:
        self._shape = shape
        self.direct = shape.direct
        self.type = Any if shape.type is Any else Optional[shape.type]  # noqa: UP045 (`|` takes not every type form)

    def lift(self, raw: Any) -> Any:
        return None if raw is None else self._shape.lift(raw)

    def lower(self, value: Any) -> Any:
        return None if value is None else self._shape.lower(value)

    def checked(self, value: Any) -> Any:
        return None if value is None else self._shape.checked(value)

    def from_raw(self, raw: Any) -> Any:
        return None if raw is None else self._shape.from_raw(raw)


class _Inside(_Shape):
    """A record inside itself."""

    direct = False

    def __init__(self, record: _Shape) -> None:
        self._record = record

    def lift(self, raw: Any) -> Any:
        return self._record.from_raw(raw)

    def lower(self, value: Any) -> Any:
        return self._record.lower(value)

    def checked(self, value: Any) -> Any:
        return self._record.checked(value)


def _same(values: Iterable[Any], before: Iterable[Any]) -> bool:
    return all(map(operator.is_, values, before))


def _expect(value: Any, container: Any) -> None:
    if not isinstance(value, container):
        raise UnserialisableValue(f"expected a {container.__name__}, found {value!r}")


def _typed_dict(name: str, annotations: Mapping[str, Any]) -> Any:
    make: Any = TypedDict
    return make(name if name.isidentifier() else "Fields", dict(annotations))


# ---------------------------------------------------------------------------------------------------- schemas to shapes
_LEAVES: Final[dict[str, Any]] = {
    "None": type(None),
    "bool": bool,
    "int": int,
    "float": float,
    "str": str,
    "bytes": bytes,
    "bytearray": bytearray,
    "datetime": dt.datetime,
    "time": dt.time,
    "date": dt.date,
    "timedelta": dt.timedelta,
    "UUID": UUID,
    "Decimal": Decimal,
}
_ITEMS: Final[dict[str, Any]] = {"list": list, "set": set, "frozenset": frozenset, "tuple of": tuple}
_HASHED: Final = frozenset({"set", "frozenset"})


class _ShapeMaker:
    """Remembers the records that it is inside of, which a recursive type refers to."""

    def __init__(self) -> None:
        self._inside: list[_Fields] = []

    def make(self, schema: Schema, *, hashed: bool = False) -> _Shape:
        kind = schema["kind"]
        if kind in _LEAVES:
            return _Leaf(_LEAVES[kind])
        if kind in _ITEMS:
            return _Items(_ITEMS[kind], self.make(schema["item"], hashed=hashed or kind in _HASHED))
        match kind:
            case "tuple":
                return _Tuple([self.make(item, hashed=hashed) for item in schema["items"]])
            case "dict":
                return _Dict(self.make(schema["key"], hashed=True), self.make(schema["value"]))
            case "union":
                return self._union(schema, hashed)
            case "enum" | "literal":
                return _Choice(schema)
            case "record" | "array record":
                return self._record(schema, hashed)
            case "ref":
                return _Inside(self._inside[-schema["levels"]])
        return _Leaf()

    def _union(self, schema: Schema, hashed: bool) -> _Shape:
        rest = [each for each in schema["of"] if each["kind"] != "None"]
        shapes = [self.make(each, hashed=hashed) for each in rest]
        shape = shapes[0] if len(shapes) == 1 else _Union(shapes)
        return _Optional(shape) if len(rest) < len(schema["of"]) else shape

    def _record(self, schema: Schema, hashed: bool) -> _Shape:
        record = (_Array if schema["kind"] == "array record" else _Fields)(schema, hashed=hashed)
        self._inside.append(record)
        record.complete({attribute(field): self.make(field["type"], hashed=hashed) for field in schema["fields"]})
        self._inside.pop()
        return record


def _kinds(schema: Any) -> set[str]:
    """Of the schema and all that it is made of."""
    if isinstance(schema, Mapping):
        own = {str(schema["kind"])} if "kind" in schema else set()
        return own.union(*map(_kinds, schema.values()))
    return set().union(*map(_kinds, schema)) if isinstance(schema, list | tuple) else set()


# ---------------------------------------------------------------------------------------------------------- serializers
_KNOWN: Final = frozenset(
    {*_LEAVES, *_ITEMS, "any", "tuple", "dict", "union", "enum", "literal", "record", "array record", "ref", "custom"}
)


def stored_serializer(schema: Schema, *, nullable: bool = False) -> Serializer[Any]:
    """For what was stored under `schema`; `nullable`: or None."""
    kinds = _kinds({**schema, "fields": schema.get("fields", [])})
    return _StoredSerializer(schema, nullable) if kinds <= _KNOWN else _OpaqueSerializer(schema)


class _StoredSerializer(Serializer[Any]):
    types = Everything()
    immutable = False
    flat = False

    def __init__(self, schema: Schema, nullable: bool) -> None:
        self.schema = schema
        kinds = _kinds(schema)
        shape = _ShapeMaker().make(schema)
        self._shape = _Optional(shape) if nullable else shape
        self._codec = StoredCodec()
        self._decode_one = msgspec.msgpack.Decoder(self._shape.type).decode
        self._decode_many = msgspec.msgpack.Decoder(list[self._shape.type]).decode  # type: ignore[name-defined]
        tagged, wide = bool(kinds & {"any", "custom"}), bool(kinds & {"datetime", "time"})
        self._write = self._tagged if tagged else self._wide if wide else self._native

    def encode(self, value: Any) -> bytes:
        return self._checked(self._write(value, self._shape.lower, self._shape.checked), self.decode)

    def encode_many(self, values: list[Any]) -> bytes:
        return self._checked(self._write(values, self._lower_all, self._check_all), self.decode_many)

    def decode(self, data: bytes) -> Any:
        if data[:1] == TAGGED:
            return self._codec.decode(data[1:])
        try:
            return self._shape.lift(self._read(data, self._decode_one, self._shape.type))
        except msgspec.ValidationError as error:
            raise self._misfit(error) from error

    def decode_many(self, data: bytes) -> list[Any]:
        if data[:1] == TAGGED:
            return list(self._codec.decode(data[1:]))
        if self.schema["kind"] == "any":
            return _records(data)
        try:
            values: list[Any] = self._read(data, self._decode_many, list[self._shape.type])  # type: ignore[name-defined]
            return values if self._shape.direct else list(map(self._shape.lift, values))
        except msgspec.ValidationError as error:
            raise self._misfit(error) from error

    def _read(self, data: bytes, native: Callable[[bytes], Any], type: Any) -> Any:
        return native(data[1:]) if data[:1] == NATIVE else msgspec.convert(self._codec.decode(data[1:]), type)

    def _misfit(self, error: Exception) -> IncompatibleState:
        return IncompatibleState(f"a stored value is not of type {describe(self.schema)}: {error}")

    # ------------------------------------------------------------------------------------------------------- writing
    def _lower_all(self, values: list[Any]) -> list[Any]:
        return list(map(self._shape.lower, values))

    def _check_all(self, values: list[Any]) -> list[Any]:
        return list(map(self._shape.checked, values))

    def _native(self, value: Any, lower: Callable[[Any], Any], checked: Callable[[Any], Any]) -> bytes:
        try:
            return NATIVE + msgspec.msgpack.encode(lower(value))
        except (OverflowError, UnicodeEncodeError):  # an integer beyond 64 bits; half a surrogate pair
            return self._wide(value, lower, checked)

    def _wide(self, value: Any, lower: Callable[[Any], Any], checked: Callable[[Any], Any]) -> bytes:
        return WIDE + self._codec.encode(msgspec.to_builtins(lower(value), builtin_types=KEPT))

    def _tagged(self, value: Any, lower: Callable[[Any], Any], checked: Callable[[Any], Any]) -> bytes:
        return TAGGED + self._codec.encode(checked(value))

    def _checked(self, data: bytes, decode: Callable[[bytes], Any]) -> bytes:
        try:
            decode(data)
        except IncompatibleState as error:
            raise UnserialisableValue(
                f"a value does not fit its type {describe(self.schema)}: {error.__cause__ or error}"
            ) from error
        return data


def _records(data: bytes) -> list[Any]:
    """Those of one class, as `AnySerializer` writes them."""
    stored = RECORDS.decode(data[1:])
    place, schema = msgspec.msgpack.decode(stored.head)
    return [Record(fields, place) for fields in stored_serializer(schema).decode_many(stored.data)]


class _OpaqueSerializer(Serializer[Any]):
    """What was pickled, or what another version knows how to read, byte for byte."""

    types = Everything()
    immutable = True
    flat = True

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self._what = describe(schema)

    def encode(self, value: Any) -> bytes:
        if not isinstance(value, Opaque):
            raise UnserialisableValue(f"{self._what} can only be written by its own declaration: give it")
        return value.data

    def decode(self, data: bytes) -> Opaque:
        return Opaque(self._what, data)

    def encode_many(self, values: list[Any]) -> bytes:
        data = list(map(self.encode, values))
        if data and data[0][:1] == FORMAT:
            return FORMAT + msgspec.msgpack.encode([msgspec.Raw(each[1:]) for each in data])
        return PICKLE + msgspec.msgpack.encode(data)

    def decode_many(self, data: bytes) -> list[Any]:
        try:
            if data[:1] == FORMAT:
                parts = [FORMAT + bytes(part) for part in msgspec.msgpack.decode(data[1:], type=list[msgspec.Raw])]
            else:
                parts = msgspec.msgpack.decode(data[1:], type=list[bytes])
        except msgspec.MsgspecError as error:
            raise IncompatibleState(f"stored as {self._what}, which only its own declaration reads: give it") from error
        return list(map(self.decode, parts))
