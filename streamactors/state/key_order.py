"""Ranges over the keys of a map: which types of keys have an order, and which it is.

Invariant: both backends give a range in one order, that of the bytes under which RocksDB finds the keys. For the types
that are not refused, those sort as Python does: numbers, strings, bytes, dates, datetimes without a zone, durations,
UUIDs, and tuples of these. Datetimes with a zone sort by the instant.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from typing import Any, Final, TypeVar

from msgspec import inspect as info

from streamactors.errors import StateAccessError, StreamactorsError
from streamactors.state.storage_keys import StorageKeys

K = TypeVar("K")
V = TypeVar("V")

_NUMBERS: Final = (info.IntType, info.FloatType, info.BoolType)
_ALONE: Final = (
    info.StrType,
    info.BytesType,
    info.DateType,
    info.DateTimeType,
    info.TimeDeltaType,
    info.UUIDType,
)
_BIG: Final = 1 << 63
_first_bytes: Final = itemgetter(0)


class KeyOrder:
    """The order of the keys of one map. Raises StateAccessError for a type of keys that has none, naming it."""

    def __init__(self, where: str, key_type: Any) -> None:
        self._where = where
        self._keys = StorageKeys()
        kind = _type_info(key_type)
        if kind is None or not _has_order(kind):
            raise StateAccessError(
                f"{where}: keys of type {getattr(key_type, '__name__', key_type)} have no order, so there is no range "
                "of them; declare the map with numbers, strings, bytes, dates, datetimes, UUIDs or tuples of these"
            )
        self._mixed = isinstance(kind, info.UnionType)
        self._whole = _is_whole(kind)

    def bounds(self, start: Any, stop: Any) -> tuple[bytes, bytes]:
        """From the first up to the second; None is no bound."""
        first = b"\0" if start is None else self._bound(start)
        last = b"\xff" if stop is None else self._bound(stop)
        if start is not None and stop is not None and first[0] != last[0]:
            raise StateAccessError(f"{self._where}: {start!r} and {stop!r} can't be compared")
        return first, last

    def _bound(self, key: Any) -> bytes:
        self._refuse_inexact(key)
        try:
            return self._keys.encode(key)
        except StreamactorsError as error:
            raise type(error)(f"{self._where}: {error}") from error

    def _refuse_inexact(self, key: Any) -> None:
        """Beyond 64 bits, bytes sort only nearly as numbers do."""
        if isinstance(key, tuple):
            for part in key:
                self._refuse_inexact(part)
        elif (isinstance(key, int) and not -_BIG <= key < _BIG) or (
            self._mixed and isinstance(key, float) and math.isinf(key)
        ):
            raise StateAccessError(f"{self._where}: {key!r} can't bound a range; give a number of 64 bits")

    def between(self, entries: Mapping[K, V], start: Any, stop: Any) -> Iterator[tuple[K, V]]:
        """Of a dict: its entries as they are now, in order."""
        first, last = self.bounds(start, stop)
        if self._whole and start is not None and stop is not None:  # much faster, for what joins ask for each row
            return iter(sorted((item for item in entries.items() if start <= item[0] < stop), key=itemgetter(0)))
        found = [(data, item) for data, item in self._encoded(entries.items()) if first <= data < last]
        return iter([item for _, item in sorted(found, key=_first_bytes)])

    def _encoded(self, items: Iterable[tuple[K, V]]) -> Iterator[tuple[bytes, tuple[K, V]]]:
        encode = self._keys.encode
        return ((encode(item[0]), item) for item in items)


def _type_info(key_type: Any) -> info.Type | None:
    try:
        return info.type_info(key_type)
    except (TypeError, NameError):  # no type that msgspec knows
        return None


def _is_whole(kind: Any) -> bool:
    """Integers, and tuples of them: between bounds of 64 bits they sort as their bytes do."""
    match kind:
        case info.TupleType(item_types=items):
            return all(isinstance(item, info.IntType) for item in items)
    return isinstance(kind, info.IntType)


def _has_order(kind: Any) -> bool:
    match kind:
        case info.Metadata(type=inner):
            return _has_order(inner)
        case info.UnionType(types=types):
            return all(isinstance(each, _NUMBERS) for each in types)
        case info.TupleType(item_types=items):
            return all(map(_has_order, items))
        case info.VarTupleType(item_type=item):
            return _has_order(item)
        case info.NamedTupleType(fields=fields):
            return all(_has_order(field.type) for field in fields)
    return isinstance(kind, _NUMBERS + _ALONE)
