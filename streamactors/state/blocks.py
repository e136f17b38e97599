"""How entries of one state become a block of bytes and come back: the canonical format, one for all backends.

A block is a msgpack array `[version, keys, sizes, columns, singles]`: all keys at once; then the entries written
together, as columns (values; or items and the number of items of each list; or keys and values and the number of each
map); then the entries written one by one, which belong to the last keys. A backend that stores encoded entries writes
singles only. Last comes whether times are stored with the values (`ttl`): a block tells by itself, so that a ttl may be
given to state that had none, and taken away.
"""

import copy
import datetime as dt
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any, ClassVar, Final, Generic, Self, TypeVar

import msgspec

from streamactors.clock import SYSTEM
from streamactors.errors import (
    CorruptCheckpoint,
    IncompatibleState,
    InvalidDataflow,
    StreamactorsError,
    UnserialisableValue,
)
from streamactors.state.aggregates import signature_of, signature_problems
from streamactors.state.descriptors import (
    AggregatingState,
    Declaration,
    ListState,
    MapState,
    ReducingState,
    Ttl,
    ValueState,
)
from streamactors.state.layouts import decode_layout
from streamactors.state.serialisation.schemas import Schema, without_none
from streamactors.state.serialisation.serializer import Serializer
from streamactors.state.serialisation.serializers import KeySerializer, optional, serializer_for
from streamactors.state.timers import TimerState
from streamactors.state.ttl import UNSET, Lifetime, StampedSerializer

EntryT = TypeVar("EntryT")

_VERSION: Final = 1
_ANY_TIME: Final = dt.timedelta(days=1)
_LONG_AGO: Final = -(1 << 63)


def _never() -> int:
    return _LONG_AGO


class _Layout(msgspec.Struct, array_like=True):
    version: int
    keys: bytes
    sizes: list[int]
    columns: list[bytes]
    singles: list[bytes]
    stamped: bool = False


class EntryCodec(ABC, Generic[EntryT]):
    """One state's entries: what a key holds is a value, a list or a dict."""

    kind: str
    immutable: bool
    """Nothing that an entry holds can be changed in place: whoever only reads an entry can't change it."""
    stable: bool
    """Nor is the entry itself ever changed in place."""
    detachable: bool
    """`detach` makes a copy that shares nothing that can be changed; otherwise `encode` has to do."""

    parts: ClassVar[Mapping[str, str]]
    """The attributes that hold its serializers, and what of its schema each of them reads."""

    lifetime: Lifetime | None = None
    """What an entry holds is stored with the time of its last write, in the way of `ttl`."""

    def __init__(self) -> None:
        self._keys = KeySerializer()
        self.plain: EntryCodec[EntryT] = self
        """The codec of what users see: without times."""
        self._older: Schema | None = None
        """What is stored was stored under this schema."""
        self._readers: dict[bool, Self] = {}

    # ------------------------------------------------------------------------------------- what each kind does its way
    @abstractmethod
    def encode(self, entry: EntryT) -> bytes:
        """One entry by itself."""

    @abstractmethod
    def decode(self, data: bytes) -> EntryT: ...

    @abstractmethod
    def size(self, entry: EntryT) -> int:
        """Items in an entry, at least 1."""

    @abstractmethod
    def detach(self, entry: EntryT) -> EntryT:
        """A copy that shares what the entry holds."""

    @abstractmethod
    def empty(self) -> EntryT:
        """A copy of what a key without an entry has."""

    @abstractmethod
    def merge(self, entry: EntryT, more: EntryT) -> EntryT:
        """What one key holds in two blocks."""

    @abstractmethod
    def schema(self) -> Schema: ...

    @abstractmethod
    def _problems(self, old: Schema) -> list[str]: ...

    @abstractmethod
    def _columns(self, entries: list[EntryT]) -> tuple[list[int], list[bytes]]: ...

    @abstractmethod
    def _entries(self, sizes: list[int], columns: list[bytes]) -> list[EntryT]: ...

    @abstractmethod
    def _stamp(self) -> None:
        """Make the serializer one of stamped values."""

    @abstractmethod
    def with_time(self, entry: EntryT, time: int) -> Any:
        """A plain entry as one of stamped values."""

    @abstractmethod
    def younger(self, entry: Any, limit: int) -> EntryT:
        """What of an entry of stamped values was written after `limit`, without times; UNSET if nothing."""

    # ---------------------------------------------------------------------------------------------- the same for all
    def stamped(self, lifetime: Lifetime, plain: "EntryCodec[Any]") -> Self:
        """This codec, from now on of stamped values."""
        self.lifetime, self.plain = lifetime, plain
        self._stamp()
        return self

    def again(self, *, stamped: bool) -> Self:
        """A codec of the same declaration, with times or without."""
        codec: Self = self._make()
        return codec.stamped(Lifetime(Ttl(_ANY_TIME), _never), self.plain) if stamped else codec

    def made_by(self, make: Callable[[], Any]) -> Self:
        self._make = make
        return self

    def seen(self, entry: EntryT) -> Any:
        """What users see of an entry: what has not expired; UNSET if nothing."""
        return entry if self.lifetime is None else self.plain.younger(entry, self.lifetime.limit())

    def answer(self, seen: Any) -> Any:
        """To a query, given a copy of what is `seen` of a key, or UNSET: what `get` would give."""
        if seen is not UNSET:
            return seen
        default = self.plain.empty()
        return None if type(default) is object else default

    def _lifetime_schema(self) -> Schema:
        return {} if self.lifetime is None else {"ttl": self.lifetime.schema()}

    def use_keys(self, keys: KeySerializer) -> None:
        """Read and write keys by this one, instead of finding their classes among those that are loaded."""
        self._keys = keys

    def copy(self, entry: EntryT) -> EntryT:
        """Shares nothing that can be changed with the entry."""
        return self.detach(entry) if self.detachable else self.decode(self.encode(entry))

    def encode_block(
        self, keys: list[Any], entries: list[EntryT], single_keys: Sequence[Any] = (), singles: Sequence[bytes] = ()
    ) -> bytes:
        """Raises UnserialisableKey or UnserialisableValue, naming the key."""
        encoded_keys = self._keys.encode_many([*keys, *single_keys])
        try:
            sizes, columns = self._columns(entries) if entries else ([], [])
        except UnserialisableValue:
            self._name_culprit(keys, entries)
            raise
        stamped = self.lifetime is not None
        return msgspec.msgpack.encode(_Layout(_VERSION, encoded_keys, sizes, columns, list(singles), stamped))

    def read_as(self, old: Schema) -> None:
        """From now on, `decode_block` reads what was stored under `old`, in which `problems` has found none."""
        self._older = None if old == self.schema() else old
        self._readers.clear()

    @property
    def older(self) -> Self:
        """The codec that reads what was stored, and writes as this one does, with times if what was stored has them."""
        return self._reader(self.lifetime is not None if self._older is None else "ttl" in self._older)

    def _reader(self, stamped: bool) -> Self:
        if stamped not in self._readers:
            codec = self if stamped == (self.lifetime is not None) else self.again(stamped=stamped)
            self._readers[stamped] = codec if self._older is None else codec._reading(self._older)
        return self._readers[stamped]

    def _reading(self, old: Schema) -> Self:
        made = copy.copy(self)
        for name, part in self.parts.items():
            setattr(made, name, getattr(self, name).reader(old[part]))
        return made

    def decode_block(self, data: bytes, *, rewritten: bool = False) -> tuple[list[Any], list[EntryT]]:
        """Keys and entries. `rewritten`: by `older`. Raises CorruptCheckpoint for what no version has written,
        IncompatibleState for another."""
        try:
            layout = decode_layout(data, _Layout, _VERSION)
            keys = self._keys.decode_many(layout.keys)
            entries = self._decoded(layout, rewritten)
        except StreamactorsError:
            raise
        except Exception as error:
            raise CorruptCheckpoint(f"a block of state can't be read: {type(error).__name__}: {error}") from error
        if len(keys) != len(entries):
            raise CorruptCheckpoint(f"a block of state holds {len(keys)} keys and {len(entries)} entries")
        return keys, entries

    def _decoded(self, layout: _Layout, rewritten: bool) -> list[EntryT]:
        if layout.stamped == (self.lifetime is not None):
            return (self if rewritten else self._reader(layout.stamped))._as_stored(layout)
        reader = self.again(stamped=layout.stamped) if rewritten else self._reader(layout.stamped)
        entries = reader._as_stored(layout)
        if self.lifetime is None:
            return [self.younger(entry, _LONG_AGO) for entry in entries]
        now = self.lifetime.now()
        return [self.with_time(entry, now) for entry in entries]

    def _as_stored(self, layout: _Layout) -> list[EntryT]:
        entries = self._entries(layout.sizes, layout.columns) if layout.columns else []
        entries += map(self.decode, layout.singles)
        return entries

    def problems(self, old: Schema) -> list[str]:
        """Why blocks written under the schema `old` can't be read; empty if they can."""
        kind = old.get("kind")
        return self._problems(old) if kind == self.kind else [f"stored as {kind} state, now {self.kind} state"]

    def _name_culprit(self, keys: list[Any], entries: list[EntryT]) -> None:
        for key, entry in zip(keys, entries, strict=True):
            try:
                self.encode(entry)
            except UnserialisableValue as error:
                raise UnserialisableValue(f"key {key!r}: {error}") from error


class ValueCodec(EntryCodec[Any]):
    """An entry is the value. Where None is the default it can be stored, though it is not in the declared type."""

    kind = "value"
    parts = {"serializer": "type"}  # noqa: RUF012 (never changed)

    def __init__(self, declaration: ValueState[Any]) -> None:
        super().__init__()
        tp = declaration.type
        declared = serializer_for(tp)
        self._declared = declared
        self._nullable = declaration.nullable
        self.serializer: Serializer[Any] = serializer_for(optional(tp)) if declaration.nullable else declared
        self.immutable = self.stable = self.serializer.immutable
        self.detachable = self.immutable or self.serializer.flat
        self._default = None if declaration.nullable else declaration.default
        self._factory = declaration.default_factory
        marker = type(self._default) is object  # the idiom `UNSET = object()`: never stored, told apart by `is`
        if self._factory is None and not marker:
            self._default = self.serializer.accept(self._default)
        self.fixed_default = self._factory is None and (self._default is None or marker or self.immutable)

    def encode(self, entry: Any) -> bytes:
        return self.serializer.encode(entry)

    def decode(self, data: bytes) -> Any:
        return self.serializer.decode(data)

    def size(self, entry: Any) -> int:
        return 1

    def detach(self, entry: Any) -> Any:
        return self.serializer.copy(entry)

    def empty(self) -> Any:
        """A default that can be changed in place is never handed out itself: it would change for all keys."""
        if self._factory is not None:
            return self.serializer.accept(self._factory())
        return self._default if self.fixed_default else self.serializer.copy(self._default)

    def merge(self, entry: Any, more: Any) -> Any:
        return more

    def schema(self) -> Schema:
        return {"kind": self.kind, "type": without_none(self._declared.schema), **self._lifetime_schema()}

    def _problems(self, old: Schema) -> list[str]:
        return self._declared.check_compatible(old["type"])

    def _reading(self, old: Schema) -> Self:
        made = copy.copy(self)
        made.serializer = self.serializer.reader(old["type"], nullable=self._nullable)
        return made

    def _columns(self, entries: list[Any]) -> tuple[list[int], list[bytes]]:
        return [], [self.serializer.encode_many(entries)]

    def _entries(self, sizes: list[int], columns: list[bytes]) -> list[Any]:
        (values,) = columns
        return self.serializer.decode_many(values)

    def _stamp(self) -> None:
        """Without a default: those of users are handed out by the bound state, which knows what has expired."""
        self.serializer = StampedSerializer(self.serializer)
        self._default, self._factory, self.fixed_default = UNSET, None, True

    def with_time(self, entry: Any, time: int) -> Any:
        return entry, time

    def younger(self, entry: Any, limit: int) -> Any:
        value, time = entry
        return value if time > limit else UNSET


class ReducingCodec(ValueCodec):
    """An entry is the reduced value."""

    kind = "reducing"

    def __init__(self, declaration: ReducingState[Any] | AggregatingState[Any, Any]) -> None:
        super().__init__(ValueState(declaration.type, default=UNSET))


class AggregatingCodec(ReducingCodec):
    """An entry is the accumulator."""

    kind = "aggregating"

    def __init__(self, declaration: AggregatingState[Any, Any]) -> None:
        super().__init__(declaration)
        self._aggregate = declaration.aggregate
        self._signature = signature_of(declaration.aggregate)

    def answer(self, seen: Any) -> Any:
        aggregate = self._aggregate
        return aggregate.result(aggregate.create() if seen is UNSET else seen)

    def schema(self) -> Schema:
        signature = {} if self._signature is None else {"aggregate": self._signature}
        return super().schema() | signature

    def _problems(self, old: Schema) -> list[str]:
        return signature_problems(old.get("aggregate"), self._signature) or super()._problems(old)


class ListCodec(EntryCodec[list[Any]]):
    """An entry is the list of items, never empty."""

    kind = "list"
    parts = {"items": "type"}  # noqa: RUF012 (never changed)
    stable = False

    def __init__(self, declaration: ListState[Any]) -> None:
        super().__init__()
        self.items: Serializer[Any] = serializer_for(declaration.type)
        self.immutable = self.detachable = self.items.immutable

    def encode(self, entry: list[Any]) -> bytes:
        return self.items.encode_many(entry)

    def decode(self, data: bytes) -> list[Any]:
        return self.items.decode_many(data)

    def size(self, entry: list[Any]) -> int:
        return len(entry)

    def detach(self, entry: list[Any]) -> list[Any]:
        return entry.copy()

    def empty(self) -> list[Any]:
        return []

    def merge(self, entry: list[Any], more: list[Any]) -> list[Any]:
        return entry + more

    def schema(self) -> Schema:
        return {"kind": self.kind, "type": self.items.schema, **self._lifetime_schema()}

    def _problems(self, old: Schema) -> list[str]:
        return self.items.check_compatible(old["type"])

    def _columns(self, entries: list[list[Any]]) -> tuple[list[int], list[bytes]]:
        return list(map(len, entries)), [self.items.encode_many(list(chain.from_iterable(entries)))]

    def _entries(self, sizes: list[int], columns: list[bytes]) -> list[list[Any]]:
        (column,) = columns
        items = iter(self.items.decode_many(column))
        return [list(islice(items, size)) for size in sizes]

    def _stamp(self) -> None:
        self.items = StampedSerializer(self.items)

    def with_time(self, entry: list[Any], time: int) -> list[Any]:
        return [(item, time) for item in entry]

    def younger(self, entry: list[Any], limit: int) -> list[Any]:
        return [item for item, time in entry if time > limit] or UNSET


class MapCodec(EntryCodec[dict[Any, Any]]):
    """An entry is the dict, never empty."""

    kind = "map"
    parts = {"keys": "key", "values": "type"}  # noqa: RUF012 (never changed)
    stable = False

    def __init__(self, declaration: MapState[Any, Any]) -> None:
        super().__init__()
        self.keys = serializer_for(declaration.key_type)
        self.values: Serializer[Any] = serializer_for(declaration.value_type)
        self.immutable = self.detachable = self.keys.immutable and self.values.immutable

    def encode(self, entry: dict[Any, Any]) -> bytes:
        return msgspec.msgpack.encode(
            (self.keys.encode_many(list(entry)), self.values.encode_many(list(entry.values())))
        )

    def decode(self, data: bytes) -> dict[Any, Any]:
        keys, values = msgspec.msgpack.decode(data, type=tuple[bytes, bytes])
        found = self.keys.decode_many(keys)
        return _distinct(zip(found, self.values.decode_many(values), strict=True), len(found))

    def size(self, entry: dict[Any, Any]) -> int:
        return len(entry)

    def detach(self, entry: dict[Any, Any]) -> dict[Any, Any]:
        return entry.copy()

    def empty(self) -> dict[Any, Any]:
        return {}

    def merge(self, entry: dict[Any, Any], more: dict[Any, Any]) -> dict[Any, Any]:
        return entry | more

    def schema(self) -> Schema:
        types = {"key": self.keys.schema, "type": self.values.schema}
        return {"kind": self.kind, **types, **self._lifetime_schema()}

    def _problems(self, old: Schema) -> list[str]:
        keys = [f"key {problem}" for problem in self.keys.check_compatible_keys(old["key"])]
        return keys + self.values.check_compatible(old["type"])

    def _columns(self, entries: list[dict[Any, Any]]) -> tuple[list[int], list[bytes]]:
        keys = self.keys.encode_many(list(chain.from_iterable(entries)))
        values = self.values.encode_many(list(chain.from_iterable(map(dict.values, entries))))
        return list(map(len, entries)), [keys, values]

    def _entries(self, sizes: list[int], columns: list[bytes]) -> list[dict[Any, Any]]:
        keys, values = columns
        items = zip(self.keys.decode_many(keys), self.values.decode_many(values), strict=True)
        return [_distinct(islice(items, size), size) for size in sizes]

    def _stamp(self) -> None:
        self.values = StampedSerializer(self.values)

    def with_time(self, entry: dict[Any, Any], time: int) -> dict[Any, Any]:
        return {key: (value, time) for key, value in entry.items()}

    def younger(self, entry: dict[Any, Any], limit: int) -> dict[Any, Any]:
        return {key: value for key, (value, time) in entry.items() if time > limit} or UNSET


def _distinct(items: Iterable[tuple[Any, Any]], count: int) -> dict[Any, Any]:
    made = dict(items)
    if len(made) != count:
        raise IncompatibleState(
            f"{count} stored keys of a map are {len(made)} now: what told them apart is gone from their class"
        )
    return made


class TimersCodec(MapCodec):
    """An entry is a dict of one key's timers: see `timers`."""

    kind = "timers"


Codec = ValueCodec | ListCodec | MapCodec


def codec_for(declaration: Declaration, time_ms: Callable[[], int] = SYSTEM.time_ms) -> Codec:
    """`time_ms` is what a ttl is measured by. Raises InvalidDataflow for a type that can't be stored, or a default that
    does not fit it."""
    make = partial(_codec_for, declaration)
    codec = make().made_by(make)
    return codec if declaration.ttl is None else codec.stamped(Lifetime(declaration.ttl, time_ms), make().made_by(make))


def _codec_for(declaration: Declaration) -> Codec:
    match declaration:
        case Declaration(keyed=False):
            raise InvalidDataflow(f"{type(declaration).__name__} belongs to no key")
        case ValueState():
            try:
                return ValueCodec(declaration)
            except UnserialisableValue as error:
                raise InvalidDataflow(f"the default does not fit: {error}") from error
        case ListState():
            return ListCodec(declaration)
        case TimerState():
            return TimersCodec(declaration)
        case MapState():
            return MapCodec(declaration)
        case ReducingState():
            return ReducingCodec(declaration)
        case AggregatingState():
            return AggregatingCodec(declaration)
    raise InvalidDataflow(f"{type(declaration).__name__} is no kind of keyed state")
