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

from abc import ABC, abstractmethod
from typing import Any, Final, Generic, TypeVar, cast

import msgspec

from streamactors.errors import UnserialisableValue
from streamactors.state.serialisation.schemas import (
    Schema,
    describe,
    problems,
)

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
        raise UnserialisableValue(f"expected {describe(self.schema)}, found {type_name(type(value))}: {shown(value)}")

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


def shallow_copy(value: Any) -> Any:
    """Of a value whose serializer is `flat`."""
    if isinstance(value, msgspec.Struct):
        return value.__copy__()  # type: ignore[attr-defined]  # is not in its stubs
    return value.copy() if isinstance(value, list | dict | set | bytearray) else value


def type_name(tp: Any) -> str:
    if not isinstance(tp, type):
        return str(tp)
    return tp.__qualname__ if tp.__module__ in ("builtins", "__main__") else f"{tp.__module__}.{tp.__qualname__}"


def shown(value: Any) -> str:
    """Short enough for a message."""
    try:
        text = repr(value)
    except Exception as error:  # a user's __repr__ must not hide the error being told
        text = f"<{type_name(type(value))} whose repr fails: {error}>"
    return text if len(text) <= 200 else f"{text[:200]}…"
