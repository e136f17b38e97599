"""What a type expression says of its values: the choice of a way to bytes depends on that."""

import builtins
import datetime as dt
from collections.abc import Iterable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final
from uuid import UUID

from msgspec import inspect as info

from streamactors.state.serialisation.schemas import class_name, class_of
from streamactors.state.serialisation.serializer import Everything, type_name
from streamactors.state.serialisation.tagged import is_record_class

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


class Facts:
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
        self.exact = is_plain(kind)
        classes = [class_of(node.cls) for node in nodes if hasattr(node, "cls")]
        self.classes = [cls for cls in classes if is_record_class(cls)]


def is_plain(kind: info.Type) -> bool:
    """Whether it is None, bool, int, float, str, bytes, or a union of these, without constraints."""
    alternatives = kind.types if isinstance(kind, info.UnionType) else (kind,)
    return all(isinstance(each, _EXACT) and each == type(each)() for each in alternatives)


def plain_types(kind: info.Type) -> frozenset[type]:
    """The classes of a plain type."""
    alternatives = kind.types if isinstance(kind, info.UnionType) else (kind,)
    return frozenset(_ACCEPTED[type(each)] for each in alternatives)


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
            f"{type_name(node.cls)} has no declared fields; make it a dataclass or a msgspec Struct, "
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


def _is_mutable(node: Any) -> bool:
    if isinstance(node, info.StructType):
        return not class_of(node.cls).__struct_config__.frozen
    if isinstance(node, info.DataclassType):
        params = getattr(class_of(node.cls), "__dataclass_params__", None)
        return params is None or not params.frozen
    return type(node) in _MUTABLE
