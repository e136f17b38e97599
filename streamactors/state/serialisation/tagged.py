"""Self-describing values: whatever is decoded has the type that was encoded, without a declared type.

Plain msgpack, with extension types for what msgpack can't tell apart (tuple from list, set, datetime, Decimal, …) and
for instances of dataclasses, msgspec Structs, NamedTuples and enums. Those carry their class's name and field names, by
which it is found again among the classes loaded in the decoding process: a script's `__main__.Order` is `orders.Order`
under `streamactors run orders:flow`. The one exception: bytearray and memoryview come back as bytes.

With an instance goes a fingerprint of its class's fields and their types. Where that is what it was, the instance comes
back as it was, whatever it held. Else the stored fields are brought into today's: by name or alias, and only if each
value is one of its field's type (an integer also where a float is wanted).
"""

import dataclasses
import datetime as dt
import enum
import functools
import importlib
import io
import sys
import typing
import uuid
import zoneinfo
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePath
from typing import Any, Final, NamedTuple

import msgpack  # type: ignore[import-untyped]
import msgspec

from streamactors.errors import IncompatibleState, UnserialisableValue
from streamactors.state.serialisation.aliases import Names, aliases_of, pair_up
from streamactors.state.serialisation.schemas import fingerprint

# Extension codes: part of the stored format. Never change or reuse one.
_TUPLE: Final = 1
_SET: Final = 2
_FROZENSET: Final = 3
_BIG_INT: Final = 4
_DECIMAL: Final = 5
_UUID: Final = 6
_DATETIME: Final = 7
_DATE: Final = 8
_TIME: Final = 9
_TIMEDELTA: Final = 10
_FRACTION: Final = 11
INSTANCE: Final = 12
ENUM: Final = 13
_NUMPY: Final = 14

_EPOCH: Final = dt.datetime(1970, 1, 1)
_MICROSECOND: Final = dt.timedelta(microseconds=1)
_EXACTLY: Final[dict[str, Any]] = {"strict_types": True, "unicode_errors": "surrogatepass"}
_PLAIN: Final = frozenset({str, bytes, float, bool, type(None)})

Fields = frozenset[str]


# ------------------------------------------------------------------------------------------------ classes by their name
class ClassNames:
    """Finds the class of a stored instance: by name, among classes given first, then among all that are loaded.

    Of several with the name, the one at the place that was stored with it, or else the one with the same fields.
    """

    def __init__(self, known: Iterable[type] = ()) -> None:
        self._known = tuple(known)
        self._found: dict[tuple[str, Fields], type] = {}

    def find(self, place: str, fields: Fields) -> type:
        """`place` as `place_of` gave it. Raises IncompatibleState if no class fits, or if several do."""
        found = self._found.get((place, fields))
        if found is None:
            found = self._found[place, fields] = self._search(place, fields)
        return found

    def refuse_unfindable(self, cls: type) -> None:
        """Raises UnserialisableValue if `cls` would not be found again: at its first value, rather than on restore."""
        place, fields = place_of(cls), field_names(cls)
        found = self._found[place, fields] = self._search(place, fields)
        if found is not cls:
            raise UnserialisableValue(
                f"{place} can't be stored: a later class has its name and place; make the value with that class"
            )

    def _search(self, place: str, fields: Fields) -> type:
        name = place.rpartition(".")[2]
        for classes in (self._known, _loaded_classes()):
            named = [cls for cls in classes if cls.__name__ == name and is_record_class(cls)]
            if named:
                return _choose(place, fields, named)
        raise IncompatibleState(
            f"stored state holds an instance of {place} with the fields ({', '.join(sorted(fields))}), and no class of "
            "that name is loaded: import the module that defines it before the flow starts"
        )


def _choose(place: str, fields: Fields, named: list[type]) -> type:
    """At one place, several are versions of one class (a notebook cell run again): the latest counts."""
    same_place = [cls for cls in named if place_of(cls) == place]
    same_place = list(filter(_is_at_its_place, same_place)) or same_place
    fitting = same_place or [cls for cls in named if field_names(cls) == fields] or named
    places = sorted(set(map(place_of, fitting)))
    if len(places) > 1:
        raise IncompatibleState(
            f"stored state holds an instance of {place}, which is gone, and its successor may be any of "
            f"{', '.join(places)}: rename all but one"
        )
    return fitting[-1]


def _is_at_its_place(cls: type) -> bool:
    """Whether it is what its module has under its name; not so for local classes, and those that were made anew."""
    found: Any = sys.modules.get(cls.__module__)
    for name in cls.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is cls


def place_of(cls: type) -> str:
    """Module and qualified name. It tells classes of one name apart, and is not what identifies them."""
    module = _main_name() if cls.__module__ == "__main__" else cls.__module__
    return f"{module}.{cls.__qualname__}"


def _main_name() -> str:
    """The name under which the running script would be imported."""
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None:
        return str(spec.name)
    return "__main__" if file is None else PurePath(file).stem


def _loaded_classes() -> Iterator[type]:
    """Every class in this process, bases before subclasses, each once."""
    seen: set[type] = set()
    waiting: deque[type] = deque([object])
    while waiting:
        cls = waiting.popleft()
        below: list[type] = type.__subclasses__(cls)
        for each in below:
            if each not in seen:
                seen.add(each)
                waiting.append(each)
                yield each


def is_record_class(cls: Any) -> bool:
    """Whether instances can be taken apart and put together by fields, or, for an enum, by value."""
    return issubclass(cls, msgspec.Struct | enum.Enum) or is_named_tuple(cls) or dataclasses.is_dataclass(cls)


def is_named_tuple(cls: type) -> bool:
    return issubclass(cls, tuple) and hasattr(cls, "_fields")


def _runs_code(cls: type) -> bool:
    """When an instance is made of its fields."""
    return issubclass(cls, msgspec.Struct) and hasattr(cls, "__post_init__")


def _as_it_is(value: Any, fields: dict[str, Any]) -> None:
    """Nothing to check."""


def field_names(cls: Any) -> Fields:
    """Names of the fields; empty for an enum."""
    if issubclass(cls, msgspec.Struct):
        return frozenset(cls.__struct_fields__)
    if issubclass(cls, tuple):
        return frozenset(cls._fields)
    if dataclasses.is_dataclass(cls):
        return frozenset(field.name for field in dataclasses.fields(cls))
    return frozenset()


# ------------------------------------------------------------------------------------------------------------ the codec
class TaggedCodec:
    """Encodes values of any known kind; decodes to the very same types. `classes` are looked at first for theirs."""

    def __init__(self, classes: Iterable[type] = ()) -> None:
        self.classes = ClassNames(classes)
        self._packers: list[msgpack.Packer] = []  # idle: each packs one value at a time, and a value may hold others
        self._writers: dict[type, Callable[[Any], tuple[int, bytes]]] = dict(_EXTENSIONS)
        self._writers |= {tuple: self._items(_TUPLE), set: self._items(_SET), frozenset: self._items(_FROZENSET)}
        self._readers = self._containers(self.decode) | {INSTANCE: self._read_instance, ENUM: self._read_enum}
        self._part_readers = self._containers(self.decode_parts) | {
            INSTANCE: self._stored_instance,
            ENUM: self._stored_enum,
        }
        self._builders: dict[tuple[Any, ...], Callable[[dict[str, Any]], Any]] = {}

    def encode(self, value: Any) -> bytes:
        """Raises UnserialisableValue for a value, or a part of one, of an unknown class."""
        packer = self._packers.pop() if self._packers else msgpack.Packer(default=self._extension, **_EXACTLY)
        try:
            data: bytes = packer.pack(value)
            self._packers.append(packer)
            return data
        except (ValueError, RecursionError) as error:
            raise UnserialisableValue(
                f"a value can't be stored (nested too deeply? holding itself?): {error}"
            ) from error

    def decode(self, data: bytes) -> Any:
        """Raises IncompatibleState if an instance's class is not loaded."""
        return msgpack.unpackb(data, ext_hook=self._read, strict_map_key=False, unicode_errors="surrogatepass")

    def decode_parts(self, data: bytes) -> Any:
        """Without classes: instances are `StoredInstance`s, and members of enums `StoredEnum`s."""
        return msgpack.unpackb(data, ext_hook=self._read_part, strict_map_key=False, unicode_errors="surrogatepass")

    def encode_list(self, values: list[Any]) -> bytes:
        """The same bytes as `encode`, faster for strings, bytes and floats."""
        if _PLAIN.issuperset(map(type, values)):
            try:
                return msgspec.msgpack.encode(values)
            except UnicodeEncodeError:  # lone surrogates, which only msgpack can be told to take
                pass
        return self.encode(values)

    def _extension(self, value: Any) -> msgpack.ExtType:
        writer = self._writers.get(type(value))
        if writer is None:
            writer = self._writers[type(value)] = self._writer_for(type(value))
        return msgpack.ExtType(*writer(value))

    def _read(self, code: int, data: bytes) -> Any:
        return _reader(self._readers, code)(data)

    def _read_part(self, code: int, data: bytes) -> Any:
        return _reader(self._part_readers, code)(data)

    @staticmethod
    def _containers(decode: Callable[[bytes], Any]) -> dict[int, Callable[[bytes], Any]]:
        return _READERS | {
            _TUPLE: lambda data: tuple(decode(data)),
            _SET: lambda data: set(decode(data)),
            _FROZENSET: lambda data: frozenset(decode(data)),
        }

    def _items(self, code: int) -> Callable[[Any], tuple[int, bytes]]:
        return lambda value: (code, self.encode(list(value)))

    # ------------------------------------------------------------------------------------------- instances of classes
    def _writer_for(self, cls: type) -> Callable[[Any], tuple[int, bytes]]:
        if _is_numpy(cls):
            return _write_numpy
        if not is_record_class(cls):
            raise UnserialisableValue(
                f"a value of type {cls.__module__}.{cls.__qualname__} can't be stored: use builtins, a dataclass, "
                "a msgspec Struct, or declare the state with sa.Pickle"
            )
        self.classes.refuse_unfindable(cls)
        place = place_of(cls)
        if issubclass(cls, enum.Enum):
            return lambda value: (ENUM, self.encode([place, value.value]))
        names, stamp = sorted(field_names(cls)), fingerprint(cls)
        check = self._refuse_unsteady if _runs_code(cls) else _as_it_is

        def write(value: Any) -> tuple[int, bytes]:
            fields = {name: getattr(value, name) for name in names}
            check(value, fields)
            return INSTANCE, self.encode([place, fields, stamp])

        return write

    def _refuse_unsteady(self, value: Any, fields: dict[str, Any]) -> None:
        """A Struct can't be made without its __post_init__, which must then leave it as it was."""
        try:
            again = _made(type(value), fields)
            changed = [name for name in fields if not self._is_same(fields[name], getattr(again, name))]
        except Exception as error:  # whatever a user's code raises
            raise UnserialisableValue(f"{value!r} could not be made again of its fields: {error}") from error
        if changed:
            raise UnserialisableValue(
                f"{value!r} would come back as {again!r}: its __post_init__ changes {changed[0]!r} once more"
            )

    def _is_same(self, a: Any, b: Any) -> bool:
        return a is b or self.encode(a) == self.encode(b)

    def _read_instance(self, data: bytes) -> Any:
        place, fields, *stamp = self.decode(data)
        which = place, frozenset(fields), *stamp
        builder = self._builders.get(which)
        if builder is None:
            cls = self.classes.find(place, which[1])
            same = stamp == [fingerprint(cls)] and which[1] == field_names(cls)
            builder = self._builders[which] = functools.partial(_made if same else build, cls)
        return builder(fields)

    def _read_enum(self, data: bytes) -> Any:
        place, value = self.decode(data)
        try:
            return self.classes.find(place, frozenset())(value)
        except ValueError as error:
            raise IncompatibleState(
                f"stored state holds the value {value!r} of the enum {place}, which is gone"
            ) from error

    def _stored_instance(self, data: bytes) -> "StoredInstance":
        place, fields, *_ = self.decode_parts(data)
        return StoredInstance(place, fields, self, data)

    def _stored_enum(self, data: bytes) -> "StoredEnum":
        place, value = self.decode(data)
        return StoredEnum(place, value, self, data)


def _reader(readers: dict[int, Callable[[bytes], Any]], code: int) -> Callable[[bytes], Any]:
    if code not in readers:
        raise IncompatibleState(f"stored state holds a value of unknown kind {code}: written by a newer version?")
    return readers[code]


# ----------------------------------------------------------------------------------------------- instances, unassembled
@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class StoredInstance:
    """What is stored of an instance, whatever has become of its class. Its fields may hold others."""

    place: str
    fields: dict[str, Any]
    codec: TaggedCodec
    data: bytes

    @property
    def name(self) -> str:
        return self.place.rpartition(".")[2]

    def build(self) -> Any:
        return self.codec._read_instance(self.data)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class StoredEnum:
    """A member of an enum, likewise."""

    place: str
    value: Any
    codec: TaggedCodec
    data: bytes

    @property
    def name(self) -> str:
        return self.place.rpartition(".")[2]

    def build(self) -> Any:
        return self.codec._read_enum(self.data)


def built(value: Any) -> Any:
    """With instances in place of all that `decode_parts` left unassembled."""
    match value:
        case StoredInstance() | StoredEnum():
            return value.build()
        case list() | tuple() | set() | frozenset():
            return type(value)(map(built, value))
        case dict():
            return {built(key): built(each) for key, each in value.items()}
    return value


# ----------------------------------------------------------------------------------------------------------- assembling
def build(cls: Any, fields: dict[str, Any]) -> Any:
    """An instance from fields stored of another version of the class: those that are gone are dropped, new ones take
    their default. Raises IncompatibleState for what can't be told, or is not of its field's type."""
    traits = _Traits.of(cls)
    found, clashes = pair_up(traits.names, {name: name for name in fields})
    if clashes:
        raise IncompatibleState(f"stored state holds an instance of {cls.__name__}: {'; '.join(clashes.values())}")
    kept = {name: traits.fitting(name, fields[stored]) for name, stored in found.items()}
    return _made(cls, kept, stored=fields)


def _made(cls: Any, fields: dict[str, Any], *, stored: Iterable[str] = ()) -> Any:
    try:
        return _build_dataclass(cls, fields) if dataclasses.is_dataclass(cls) else cls(**fields)
    except TypeError as error:
        raise IncompatibleState(
            f"stored state holds an instance of {cls.__name__} with the fields "
            f"({', '.join(sorted(stored or fields))}), which the class no longer takes: {error}; "
            "give new fields a default"
        ) from error


class _Traits(NamedTuple):
    """What is known of a class's fields: under which names they may be stored, and of which type each is, where that
    can be told."""

    cls: str
    names: dict[str, Names]
    types: dict[str, Any]

    @classmethod
    def of(cls, record: Any) -> "_Traits":
        fields = field_names(record)
        try:
            types = typing.get_type_hints(record)
            aliases = aliases_of(record)
        except (TypeError, NameError):  # names that only a type checker knows
            types, aliases = {}, {}
        names = {name: Names(aliases.get(name, ()), _encoded(record, name)) for name in fields}
        return cls(record.__name__, names, types)

    def fitting(self, name: str, value: Any) -> Any:
        if name not in self.types:
            return value
        try:
            found = msgspec.convert(value, self.types[name])
        except msgspec.ValidationError as error:
            raise self._misfit(name, value, error) from error
        except TypeError:  # a type that msgspec does not know
            return value
        if found is value or ((type(found) is type(value) or type(value) is int) and found == value):
            return found
        raise self._misfit(name, value, f"it would come back as {found!r}")

    def _misfit(self, name: str, value: Any, why: object) -> IncompatibleState:
        return IncompatibleState(
            f"stored state holds an instance of {self.cls} whose field {name!r} is of another type now: {value!r} does "
            f"not fit ({why})"
        )


def _encoded(cls: Any, name: str) -> str:
    """The field's name in encoded data."""
    if not issubclass(cls, msgspec.Struct):
        return name
    return str(cls.__struct_encode_fields__[cls.__struct_fields__.index(name)])


def _build_dataclass(cls: Any, fields: dict[str, Any]) -> Any:
    """Without its __init__: init=False fields are restored as well, and __post_init__ has run before."""
    instance = object.__new__(cls)
    for field in dataclasses.fields(cls):
        object.__setattr__(instance, field.name, fields[field.name] if field.name in fields else _default(field))
    return instance


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    raise TypeError(f"missing field {field.name!r}")


# ------------------------------------------------------------------------------------------------------ leaf by leaf
def _int_bytes(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)


def _read_int(data: bytes) -> int:
    return int.from_bytes(data, "big", signed=True)


def _zone(zone: dt.tzinfo | None) -> int | str | None:
    """An offset in microseconds, or a zone's name."""
    if zone is None:
        return None
    if isinstance(zone, dt.timezone):
        return zone.utcoffset(None) // _MICROSECOND
    if isinstance(zone, zoneinfo.ZoneInfo) and zone.key is not None:
        return zone.key
    raise UnserialisableValue(
        f"a time in the zone {zone!r} of type {type(zone).__qualname__} can't be stored exactly: use zoneinfo.ZoneInfo "
        "or datetime.timezone.utc"
    )


def _read_zone(zone: int | str | None) -> dt.tzinfo | None:
    if zone is None:
        return None
    return zoneinfo.ZoneInfo(zone) if isinstance(zone, str) else dt.timezone(dt.timedelta(microseconds=zone))


def _write_datetime(value: dt.datetime) -> tuple[int, bytes]:
    wall = (value.replace(tzinfo=None) - _EPOCH) // _MICROSECOND
    return _DATETIME, msgpack.packb((wall, value.fold, _zone(value.tzinfo)))


def _read_datetime(data: bytes) -> dt.datetime:
    wall, fold, zone = msgpack.unpackb(data)
    return (_EPOCH + dt.timedelta(microseconds=wall)).replace(fold=fold, tzinfo=_read_zone(zone))


def _write_time(value: dt.time) -> tuple[int, bytes]:
    return _TIME, msgpack.packb((value.replace(tzinfo=None, fold=0).isoformat(), value.fold, _zone(value.tzinfo)))


def _read_time(data: bytes) -> dt.time:
    wall, fold, zone = msgpack.unpackb(data)
    return dt.time.fromisoformat(wall).replace(fold=fold, tzinfo=_read_zone(zone))


def _write_fraction(value: Fraction) -> tuple[int, bytes]:
    return _FRACTION, msgpack.packb((_int_bytes(value.numerator), _int_bytes(value.denominator)))


def _read_fraction(data: bytes) -> Fraction:
    numerator, denominator = msgpack.unpackb(data)
    return Fraction(_read_int(numerator), _read_int(denominator))


_EXTENSIONS: dict[type, Callable[[Any], tuple[int, bytes]]] = {
    int: lambda value: (_BIG_INT, _int_bytes(value)),
    Decimal: lambda value: (_DECIMAL, str(value).encode()),
    uuid.UUID: lambda value: (_UUID, value.bytes),
    dt.datetime: _write_datetime,
    dt.date: lambda value: (_DATE, value.isoformat().encode()),
    dt.time: _write_time,
    dt.timedelta: lambda value: (_TIMEDELTA, b"%d" % (value // _MICROSECOND)),
    Fraction: _write_fraction,
}

_READERS: dict[int, Callable[[bytes], Any]] = {
    _BIG_INT: _read_int,
    _DECIMAL: lambda data: Decimal(data.decode()),
    _UUID: lambda data: uuid.UUID(bytes=data),
    _DATETIME: _read_datetime,
    _DATE: lambda data: dt.date.fromisoformat(data.decode()),
    _TIME: _read_time,
    _TIMEDELTA: lambda data: dt.timedelta(microseconds=int(data)),
    _FRACTION: _read_fraction,
}


# ---------------------------------------------------------------------------------------------------------------- numpy
def _is_numpy(cls: type) -> bool:
    """Without importing it: a value of its types exists only where it has been imported."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and (cls is numpy.ndarray or issubclass(cls, numpy.generic))


def _write_numpy(value: Any) -> tuple[int, bytes]:
    numpy = sys.modules["numpy"]
    buffer = io.BytesIO()
    try:
        numpy.save(buffer, value, allow_pickle=False)
    except ValueError as error:
        raise UnserialisableValue(f"a numpy array of dtype {value.dtype} can't be stored: {error}") from error
    return _NUMPY, (b"a" if isinstance(value, numpy.ndarray) else b"s") + buffer.getvalue()


def _read_numpy(data: bytes) -> Any:
    numpy = importlib.import_module("numpy")
    array = numpy.load(io.BytesIO(data[1:]), allow_pickle=False)
    return array if data[:1] == b"a" else array[()]


_READERS[_NUMPY] = _read_numpy
