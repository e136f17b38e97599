"""Stored values as plain data, for JSON: nothing is lost to the eye, though types are."""

import base64
import datetime as dt
import enum
import json
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final
from uuid import UUID

from streamactors.state.serialisation.generic import Member, Opaque
from streamactors.state.serialisation.tagged import field_names, is_record_class

_AS_THEY_ARE: Final = frozenset({str, int, bool, type(None)})


def as_json(value: Any) -> Any:
    """Bytes as base64, times in ISO 8601, numbers beyond JSON's as text; a dict whose keys are no strings as pairs."""
    kind = type(value)
    if kind in _AS_THEY_ARE:
        return value
    if kind is float:
        return value if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, Opaque):
        return {value.what: as_json(value.data)}
    if isinstance(value, Member | enum.Enum):
        return as_json(value.value)
    if isinstance(value, dict):
        return _object(value)
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return list(map(as_json, value))
    if isinstance(value, set | frozenset):
        return sorted(map(as_json, value), key=repr)
    return _leaf(value)


def _object(value: dict[Any, Any]) -> Any:
    if all(isinstance(key, str) for key in value):
        return {key: as_json(item) for key, item in value.items()}
    return [[as_json(key), as_json(item)] for key, item in value.items()]


def _leaf(value: Any) -> Any:
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, bytes | bytearray):
        return base64.b64encode(value).decode()
    if isinstance(value, Decimal | Fraction | UUID | dt.timedelta):
        return str(value)
    if is_record_class(type(value)):
        return {name: as_json(getattr(value, name)) for name in _names(type(value))}
    if type(value).__module__ == "numpy":
        return as_json(value.tolist())
    return repr(value)


def _names(cls: Any) -> list[str]:
    """In the order in which they were declared."""
    ordered = getattr(cls, "__struct_fields__", None) or getattr(cls, "_fields", None)
    return list(ordered or getattr(cls, "__dataclass_fields__", None) or sorted(field_names(cls)))


def as_json_text(value: Any) -> str:
    return written(as_json(value))


def written(value: Any) -> str:
    """JSON in Unicode; escaped where it holds half a surrogate pair, which Unicode has no bytes for."""
    text = json.dumps(value, ensure_ascii=False)
    return text if is_unicode(text) else json.dumps(value)


def is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def leaves_like(text: str) -> Iterator[Any]:
    """What may be shown as this text: dates, times, UUIDs, decimals; bytes last."""
    for read in (UUID, dt.datetime.fromisoformat, dt.date.fromisoformat, dt.time.fromisoformat, Decimal):
        try:
            yield read(text)
        except (ValueError, ArithmeticError):  # it is none of these
            continue
    try:
        yield base64.b64decode(text, validate=True)
    except ValueError:  # nor that
        return
