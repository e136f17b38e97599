"""How entries of one state become a block of bytes and come back: the canonical format, one for all backends.

A block is a msgpack array `[version, keys, sizes, columns, singles]`: all keys at once; then the entries written
together, as columns (values; or items and the number of items of each list; or keys and values and the number of each
map); then the entries written one by one, which belong to the last keys. A backend that stores encoded entries writes
singles only.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain, islice
from typing import Any, Final, Generic, TypeVar

import msgspec

from streamactors.errors import (
    CorruptCheckpoint,
    IncompatibleState,
    InvalidDataflow,
    StreamactorsError,
    UnserialisableValue,
)
from streamactors.state.descriptors import Declaration, ListState, MapState, ValueState
from streamactors.state.schemas import Schema, problems, without_none
from streamactors.state.serializers import KeySerializer, optional, serializer_for, shallow_copy

EntryT = TypeVar("EntryT")

_VERSION: Final = 1


class _Layout(msgspec.Struct, array_like=True):
    version: int
    keys: bytes
    sizes: list[int]
    columns: list[bytes]
    singles: list[bytes]


class EntryCodec(ABC, Generic[EntryT]):
    """One state's entries: what a key holds is a value, a list or a dict."""

    kind: str
    immutable: bool
    """Nothing that an entry holds can be changed in place: whoever only reads an entry can't change it."""
    stable: bool
    """Nor is the entry itself ever changed in place."""
    detachable: bool
    """`detach` makes a copy that shares nothing that can be changed; otherwise `encode` has to do."""

    def __init__(self) -> None:
        self._keys = KeySerializer()

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

    # ---------------------------------------------------------------------------------------------- the same for all
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
        return msgspec.msgpack.encode(_Layout(_VERSION, encoded_keys, sizes, columns, list(singles)))

    def decode_block(self, data: bytes) -> tuple[list[Any], list[EntryT]]:
        """Keys and entries. Raises CorruptCheckpoint for what no version has written, IncompatibleState for another."""
        try:
            layout = msgspec.msgpack.decode(data, type=_Layout)
            if layout.version != _VERSION:
                raise IncompatibleState(f"stored in format {layout.version}, this version reads {_VERSION}")
            keys = self._keys.decode_many(layout.keys)
            entries = self._entries(layout.sizes, layout.columns) if layout.columns else []
            entries += map(self.decode, layout.singles)
        except StreamactorsError:
            raise
        except Exception as error:
            raise CorruptCheckpoint(f"a block of state can't be read: {type(error).__name__}: {error}") from error
        if len(keys) != len(entries):
            raise CorruptCheckpoint(f"a block of state holds {len(keys)} keys and {len(entries)} entries")
        return keys, entries

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

    def __init__(self, declaration: ValueState[Any]) -> None:
        super().__init__()
        tp = declaration.type
        declared = serializer_for(tp)
        self._schema = without_none(declared.schema)
        self.serializer = serializer_for(optional(tp)) if declaration.nullable else declared
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
        return entry if self.immutable else shallow_copy(entry)

    def empty(self) -> Any:
        """A default that can be changed in place is never handed out itself: it would change for all keys."""
        if self._factory is not None:
            return self.serializer.accept(self._factory())
        return self._default if self.fixed_default else self.serializer.copy(self._default)

    def merge(self, entry: Any, more: Any) -> Any:
        return more

    def schema(self) -> Schema:
        return {"kind": self.kind, "type": self._schema}

    def _problems(self, old: Schema) -> list[str]:
        return problems(old["type"], self._schema)

    def _columns(self, entries: list[Any]) -> tuple[list[int], list[bytes]]:
        return [], [self.serializer.encode_many(entries)]

    def _entries(self, sizes: list[int], columns: list[bytes]) -> list[Any]:
        (values,) = columns
        return self.serializer.decode_many(values)


class ListCodec(EntryCodec[list[Any]]):
    """An entry is the list of items, never empty."""

    kind = "list"
    stable = False

    def __init__(self, declaration: ListState[Any]) -> None:
        super().__init__()
        self.items = serializer_for(declaration.type)
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
        return {"kind": self.kind, "type": self.items.schema}

    def _problems(self, old: Schema) -> list[str]:
        return self.items.check_compatible(old["type"])

    def _columns(self, entries: list[list[Any]]) -> tuple[list[int], list[bytes]]:
        return list(map(len, entries)), [self.items.encode_many(list(chain.from_iterable(entries)))]

    def _entries(self, sizes: list[int], columns: list[bytes]) -> list[list[Any]]:
        (column,) = columns
        items = iter(self.items.decode_many(column))
        return [list(islice(items, size)) for size in sizes]


class MapCodec(EntryCodec[dict[Any, Any]]):
    """An entry is the dict, never empty."""

    kind = "map"
    stable = False

    def __init__(self, declaration: MapState[Any, Any]) -> None:
        super().__init__()
        self.keys = serializer_for(declaration.key_type)
        self.values = serializer_for(declaration.value_type)
        self.immutable = self.detachable = self.keys.immutable and self.values.immutable

    def encode(self, entry: dict[Any, Any]) -> bytes:
        return msgspec.msgpack.encode(
            (self.keys.encode_many(list(entry)), self.values.encode_many(list(entry.values())))
        )

    def decode(self, data: bytes) -> dict[Any, Any]:
        keys, values = msgspec.msgpack.decode(data, type=tuple[bytes, bytes])
        return dict(zip(self.keys.decode_many(keys), self.values.decode_many(values), strict=True))

    def size(self, entry: dict[Any, Any]) -> int:
        return len(entry)

    def detach(self, entry: dict[Any, Any]) -> dict[Any, Any]:
        return entry.copy()

    def empty(self) -> dict[Any, Any]:
        return {}

    def merge(self, entry: dict[Any, Any], more: dict[Any, Any]) -> dict[Any, Any]:
        return entry | more

    def schema(self) -> Schema:
        return {"kind": self.kind, "key": self.keys.schema, "type": self.values.schema}

    def _problems(self, old: Schema) -> list[str]:
        keys = [f"key {problem}" for problem in self.keys.check_compatible(old["key"])]
        return keys + self.values.check_compatible(old["type"])

    def _columns(self, entries: list[dict[Any, Any]]) -> tuple[list[int], list[bytes]]:
        keys = self.keys.encode_many(list(chain.from_iterable(entries)))
        values = self.values.encode_many(list(chain.from_iterable(map(dict.values, entries))))
        return list(map(len, entries)), [keys, values]

    def _entries(self, sizes: list[int], columns: list[bytes]) -> list[dict[Any, Any]]:
        keys, values = columns
        items = zip(self.keys.decode_many(keys), self.values.decode_many(values), strict=True)
        return [dict(islice(items, size)) for size in sizes]


def codec_for(declaration: Declaration) -> ValueCodec | ListCodec | MapCodec:
    """Raises InvalidDataflow for a type that can't be stored, or a default that does not fit it."""
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
        case MapState():
            return MapCodec(declaration)
    raise InvalidDataflow(f"{type(declaration).__name__} is no kind of keyed state")
