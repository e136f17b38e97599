"""Bytes to values and back, for connectors: `Json`, `MsgPack`, `Text`, `Raw`, or anything with `decode` and `encode`.

Decoding errors are those of the library underneath (`msgspec.DecodeError`, `msgspec.ValidationError`, pydantic's
`ValidationError`, `UnicodeDecodeError`); connectors add where the bytes came from.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar, get_args, overload

import msgspec

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)


class Decoder(Protocol[T_co]):
    def decode(self, data: bytes) -> T_co: ...


class Encoder(Protocol[T_contra]):
    def encode(self, value: T_contra) -> bytes: ...


class Json(Generic[T]):
    """msgspec underneath: builtins, Structs, dataclasses, TypedDicts, unions; pydantic models too when pydantic is
    installed. Without a type: whatever the JSON holds."""

    @overload
    def __init__(self: "Json[Any]", type: None = None) -> None: ...
    @overload
    def __init__(self, type: type[T]) -> None: ...
    @overload
    def __init__(self, type: Any) -> None: ...
    def __init__(self, type: Any = None) -> None:
        self.type = type
        self._decode, self._encode = self._codec(type)

    def __getstate__(self) -> dict[str, Any]:
        """Without what msgspec has compiled, which can't be copied into another process, and is made there again."""
        return {name: value for name, value in vars(self).items() if name not in ("_decode", "_encode")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._decode, self._encode = self._codec(self.type)

    def _codec(self, tp: Any) -> tuple[Callable[[bytes], Any], Callable[[Any], bytes]]:
        if _holds_pydantic(tp):
            adapter = _adapter(tp)
            return adapter.validate_json, adapter.dump_json
        decoder = msgspec.json.Decoder() if tp is None else msgspec.json.Decoder(tp)
        return decoder.decode, msgspec.json.Encoder().encode

    def decode(self, data: bytes) -> T:
        return self._decode(data)  # type: ignore[no-any-return]

    def encode(self, value: T) -> bytes:
        return self._encode(value)

    def __repr__(self) -> str:
        plain = isinstance(self.type, type) and not get_args(self.type)
        name = "" if self.type is None else self.type.__name__ if plain else str(self.type)
        return f"{type(self).__name__}({name})"


class MsgPack(Json[T]):
    """Like `Json`, in the msgpack format."""

    @overload
    def __init__(self: "MsgPack[Any]", type: None = None) -> None: ...
    @overload
    def __init__(self, type: type[T]) -> None: ...
    @overload
    def __init__(self, type: Any) -> None: ...
    def __init__(self, type: Any = None) -> None:
        super().__init__(type)

    def _codec(self, tp: Any) -> tuple[Callable[[bytes], Any], Callable[[Any], bytes]]:
        decoder, encode = msgspec.msgpack.Decoder(), msgspec.msgpack.Encoder().encode
        if _holds_pydantic(tp):
            adapter = _adapter(tp)
            return lambda data: adapter.validate_python(decoder.decode(data)), lambda value: encode(
                adapter.dump_python(value)
            )
        return (decoder if tp is None else msgspec.msgpack.Decoder(tp)).decode, encode


class Text:
    """UTF-8."""

    def decode(self, data: bytes) -> str:
        return data.decode()

    def encode(self, value: str) -> bytes:
        return value.encode()

    def __repr__(self) -> str:
        return "Text()"


class Raw:
    """Bytes as they are."""

    def decode(self, data: bytes) -> bytes:
        return data

    def encode(self, value: bytes) -> bytes:
        if not isinstance(value, bytes):
            raise TypeError(
                f"Raw() takes bytes, found {type(value).__name__}: give the sink a format such as Text() or Json()"
            )
        return value

    def __repr__(self) -> str:
        return "Raw()"


def decode_batch(decoder: Decoder[T], data: Sequence[bytes]) -> list[T]:
    """All of `data`, in order. Raises what the decoder raises for the first that can't be decoded."""
    return list(map(_fastest(decoder), data))


def encode_batch(encoder: Encoder[T], values: Sequence[T]) -> list[bytes]:
    """All of `values`, in order. Raises what the encoder raises for the first that can't be encoded."""
    if isinstance(encoder, Json) and type(encoder).encode is Json.encode:
        return list(map(encoder._encode, values))
    return list(map(encoder.encode, values))


def _fastest(decoder: Decoder[T]) -> Callable[[bytes], T]:
    """Past the Python frame of `Json.decode`, straight to msgspec, unless a subclass has its own."""
    if isinstance(decoder, Json) and type(decoder).decode is Json.decode:
        return decoder._decode
    return decoder.decode


def _holds_pydantic(tp: Any) -> bool:
    """Whether the type is, or is made of, pydantic models; whoever made such a model has imported pydantic."""
    pydantic = sys.modules.get("pydantic")
    if pydantic is None:
        return False
    if isinstance(tp, type) and issubclass(tp, pydantic.BaseModel):
        return True
    return any(map(_holds_pydantic, get_args(tp)))


def _adapter(tp: Any) -> Any:
    return sys.modules["pydantic"].TypeAdapter(tp)
