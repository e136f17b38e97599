"""State in a format of the user's own."""

import builtins
import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

import msgspec

from streamactors.errors import IncompatibleState, InvalidDataflow, UnserialisableValue
from streamactors.formats import Decoder, Encoder
from streamactors.state.serialisation.schemas import Schema, class_name, class_of, describe
from streamactors.state.serialisation.serializer import FORMAT, Serializer, shown, type_name

T = TypeVar("T")


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


class FormatSerializer(Serializer[Any]):
    """None, where that may be stored, is an empty value behind the mark."""

    immutable = False
    flat = False

    def __init__(self, declared: Formatted) -> None:
        self._declared = declared
        self._format = declared.format
        self._class = object if declared.type is Any else class_of(declared.type)
        self._version = getattr(declared.format, "version", 1)
        if not isinstance(self._version, int):
            raise InvalidDataflow(
                f"the version of {type_name(type(self._format))} is {self._version!r}: make it an int"
            )
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
            raise UnserialisableValue(f"{shown(value)}: {self._called()} can't write it: {error}") from error
        if not isinstance(data, bytes):
            raise UnserialisableValue(f"{self._called()} gave {shown(data)} for {shown(value)}: give bytes")
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
        return f"the format {type_name(type(self._format))}"

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


class _OlderFormat(FormatSerializer):
    def __init__(self, declared: Formatted, version: int) -> None:
        super().__init__(declared)
        self._stored_version = version

    def copy(self, value: Any) -> Any:
        return FormatSerializer(self._declared).copy(value)

    def _read(self, decode: Callable[[bytes], Any], data: bytes | None) -> Any:
        return super()._read(self._decode_older, data)

    def _decode_older(self, data: bytes) -> Any:
        format: Any = self._format
        return format.decode_version(data, self._stored_version)
