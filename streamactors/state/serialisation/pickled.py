"""State that the user said is to be pickled."""

import builtins
import dataclasses
import pickle
from typing import Any, TypeVar, cast

import msgspec

from streamactors.errors import IncompatibleState, UnserialisableValue
from streamactors.state.serialisation.schemas import class_name, class_of
from streamactors.state.serialisation.serializer import PICKLE, Serializer, shown

T = TypeVar("T")


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


class PickleSerializer(Serializer[Any]):
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
            raise UnserialisableValue(f"{shown(value)} can't be pickled: {error}") from error

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
