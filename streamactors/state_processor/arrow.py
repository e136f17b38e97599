"""Python values as Arrow columns.

A column's type follows from the stored schema and, where that leaves it open (keys, time zones, the size of numbers),
from all the values: `observe` them first, then `convert` them. What has no type of its own in Arrow becomes JSON text.
"""

import datetime as dt
import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from streamactors.errors import MissingExtra
from streamactors.state.serialisation.generic import Member, Opaque, Record
from streamactors.state.serialisation.schemas import Schema, attribute, without_none
from streamactors.state.serialisation.tagged import field_names, is_record_class
from streamactors.state_processor.plain import as_json_text, is_unicode

_INT64: Final = 2**63
_DIGITS_128, _DIGITS_256 = 38, 76


def pyarrow() -> Any:
    """Raises MissingExtra."""
    try:
        import pyarrow
    except ImportError as error:
        raise MissingExtra("Arrow tables need pyarrow: pip install 'streamactors[parquet]'") from error
    return pyarrow


def to_pandas(table: Any) -> Any:
    """Raises MissingExtra."""
    try:
        import pandas  # noqa: F401 (pyarrow imports it)
    except ImportError as error:
        raise MissingExtra("data frames need pandas: pip install 'streamactors[pandas]'") from error
    return table.to_pandas(maps_as_pydicts="lossy")


class TableType:
    """The columns of a table in the making. `schemas`: of those columns whose stored type is known."""

    def __init__(self, columns: Sequence[str], schemas: Mapping[str, Schema]) -> None:
        self._pa = pyarrow()
        self._columns = {name: _column(schemas.get(name, {"kind": "any"})) for name in columns}

    def observe(self, rows: Sequence[tuple[Any, ...]]) -> None:
        for column, values in zip(self._columns.values(), zip(*rows, strict=True), strict=True):
            column.observe(values)

    @property
    def schema(self) -> Any:
        return self._pa.schema([(name, column.type(self._pa)) for name, column in self._columns.items()])

    def batch(self, rows: Sequence[tuple[Any, ...]]) -> Any:
        arrays = [
            self._pa.array(column.convert(values), type=column.type(self._pa))
            for column, values in zip(self._columns.values(), zip(*rows, strict=True), strict=True)
        ]
        return self._pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def table(self, lists: Iterable[Sequence[tuple[Any, ...]]]) -> Any:
        return self._pa.Table.from_batches([self.batch(rows) for rows in lists if rows], schema=self.schema)


# -------------------------------------------------------------------------------------------------------------- columns
class _Column(ABC):
    """Values may be None everywhere."""

    @abstractmethod
    def observe(self, values: Iterable[Any]) -> None: ...

    @abstractmethod
    def type(self, pa: Any) -> Any: ...

    @abstractmethod
    def convert(self, values: Iterable[Any]) -> list[Any]: ...


class _Fixed(_Column):
    """A type that is known; `adapt` turns a value into what Arrow takes."""

    def __init__(self, type: Callable[[Any], Any], adapt: Callable[[Any], Any] | None = None) -> None:
        self._type = type
        self._adapt = adapt

    def observe(self, values: Iterable[Any]) -> None:
        return None

    def type(self, pa: Any) -> Any:
        return self._type(pa)

    def convert(self, values: Iterable[Any]) -> list[Any]:
        adapt = self._adapt
        if adapt is None:
            return list(values)
        return [None if value is None else adapt(value) for value in values]


def _text() -> _Column:
    return _Fixed(lambda pa: pa.string(), as_json_text)


class _Whole(_Column):
    """Integers; beyond 64 bits as text."""

    def __init__(self) -> None:
        self._fits = True

    def observe(self, values: Iterable[Any]) -> None:
        self._fits = self._fits and all(-_INT64 <= value < _INT64 for value in values if value is not None)

    def type(self, pa: Any) -> Any:
        return pa.int64() if self._fits else pa.string()

    def convert(self, values: Iterable[Any]) -> list[Any]:
        return list(values) if self._fits else [None if value is None else str(value) for value in values]


class _Times(_Column):
    """Datetimes, by the microsecond: those with a zone as instants in UTC, those without as they are, both as text."""

    def __init__(self) -> None:
        self._zoned: set[bool] = set()

    def observe(self, values: Iterable[Any]) -> None:
        self._zoned |= {value.tzinfo is not None for value in values if value is not None}

    def type(self, pa: Any) -> Any:
        if len(self._zoned) > 1:
            return pa.string()
        return pa.timestamp("us", tz="UTC") if True in self._zoned else pa.timestamp("us")

    def convert(self, values: Iterable[Any]) -> list[Any]:
        if len(self._zoned) <= 1:
            return list(values)
        return [None if value is None else value.isoformat() for value in values]


class _OfDay(_Column):
    """Times of day; with a zone as text, since Arrow knows none."""

    def __init__(self) -> None:
        self._zoned = False

    def observe(self, values: Iterable[Any]) -> None:
        self._zoned = self._zoned or any(value is not None and value.tzinfo is not None for value in values)

    def type(self, pa: Any) -> Any:
        return pa.string() if self._zoned else pa.time64("us")

    def convert(self, values: Iterable[Any]) -> list[Any]:
        if not self._zoned:
            return list(values)
        return [None if value is None else value.isoformat() for value in values]


class _Decimals(_Column):
    """As many digits as there are; text where that is too many, or where one is infinite or no number."""

    def __init__(self) -> None:
        self._before = self._after = 0
        self._finite = True

    def observe(self, values: Iterable[Any]) -> None:
        for value in values:
            if value is not None:
                self._observe(value)

    def _observe(self, value: Decimal) -> None:
        if not value.is_finite():
            self._finite = False
            return
        _, digits, exponent = value.as_tuple()
        assert isinstance(exponent, int)
        self._after = max(self._after, -exponent)
        self._before = max(self._before, len(digits) + exponent)

    @property
    def _precision(self) -> int:
        return max(1, self._before + self._after)

    @property
    def _fits(self) -> bool:
        return self._finite and self._precision <= _DIGITS_256

    def type(self, pa: Any) -> Any:
        if not self._fits:
            return pa.string()
        make = pa.decimal128 if self._precision <= _DIGITS_128 else pa.decimal256
        return make(self._precision, self._after)

    def convert(self, values: Iterable[Any]) -> list[Any]:
        return list(values) if self._fits else [None if value is None else str(value) for value in values]


class _List(_Column):
    def __init__(self, item: _Column) -> None:
        self._item = item

    def observe(self, values: Iterable[Any]) -> None:
        self._item.observe([item for value in values if value is not None for item in value])

    def type(self, pa: Any) -> Any:
        return pa.list_(self._item.type(pa))

    def convert(self, values: Iterable[Any]) -> list[Any]:
        return [None if value is None else self._item.convert(value) for value in values]


class _Map(_Column):
    def __init__(self, key: _Column, value: _Column) -> None:
        self._key, self._value = key, value

    def observe(self, values: Iterable[Any]) -> None:
        held = [value for value in values if value is not None]
        self._key.observe([key for value in held for key in value])
        self._value.observe([item for value in held for item in value.values()])

    def type(self, pa: Any) -> Any:
        return pa.map_(self._key.type(pa), self._value.type(pa))

    def convert(self, values: Iterable[Any]) -> list[Any]:
        return [None if value is None else self._pairs(value) for value in values]

    def _pairs(self, value: Mapping[Any, Any]) -> list[Any]:
        return list(zip(self._key.convert(value), self._value.convert(value.values()), strict=True))


class _Parts(_Column):
    """Tuples, and instances of classes by their fields. `get` gives the part of that name."""

    def __init__(self, parts: Mapping[str, _Column], get: Callable[[Any, str], Any]) -> None:
        self._parts = parts
        self._get = get

    def observe(self, values: Iterable[Any]) -> None:
        held = [value for value in values if value is not None]
        for name, part in self._parts.items():
            part.observe([self._get(value, name) for value in held])

    def type(self, pa: Any) -> Any:
        return pa.struct([(name, part.type(pa)) for name, part in self._parts.items()])

    def convert(self, values: Iterable[Any]) -> list[Any]:
        values = list(values)
        held = [value for value in values if value is not None]
        columns = [part.convert([self._get(value, name) for value in held]) for name, part in self._parts.items()]
        rows = iter(zip(*columns, strict=True) if columns else [()] * len(held))
        return [None if value is None else dict(zip(self._parts, next(rows), strict=True)) for value in values]


def _place(value: Any, name: str) -> Any:
    return value[int(name)]


def _field(value: Any, name: str) -> Any:
    """None for one that was left out."""
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)


class _Adapted(_Column):
    """Values that Arrow knows as something else."""

    def __init__(self, column: _Column, adapt: Callable[[Any], Any]) -> None:
        self._column = column
        self._adapt = adapt

    def observe(self, values: Iterable[Any]) -> None:
        self._column.observe(self._adapted(values))

    def _adapted(self, values: Iterable[Any]) -> list[Any]:
        return [None if value is None else self._adapt(value) for value in values]

    def type(self, pa: Any) -> Any:
        return self._column.type(pa)

    def convert(self, values: Iterable[Any]) -> list[Any]:
        return self._column.convert(self._adapted(values))


def _unicode(text: str) -> str:
    """With half a surrogate pair as its escape."""
    return text if text.isascii() or is_unicode(text) else text.encode(errors="backslashreplace").decode()


_MIXED: Final = object()


class _Inferred(_Column):
    """Of values whose type nobody declared: by what they are, if all are alike."""

    def __init__(self) -> None:
        self._column: _Column | None = None
        self._kind: Any = None

    def observe(self, values: Iterable[Any]) -> None:
        held = [value for value in values if value is not None]
        for kind in set(map(_kind_of, held)):
            self._meet(kind)
        if self._column is not None:
            self._column.observe(held)

    def _meet(self, kind: Any) -> None:
        if self._kind is None:
            self._kind, self._column = kind, _column_of(kind)
        elif {kind, self._kind} == {int, float}:
            self._kind, self._column = float, _Fixed(lambda pa: pa.float64(), float)
        elif self._kind not in (kind, _MIXED):
            self._kind, self._column = _MIXED, _text()

    def type(self, pa: Any) -> Any:
        return pa.null() if self._column is None else self._column.type(pa)

    def convert(self, values: Iterable[Any]) -> list[Any]:
        return list(values) if self._column is None else self._column.convert(values)


def _kind_of(value: Any) -> Any:
    """Values of one kind go into one column."""
    kind = type(value)
    if kind in _SCALARS or kind in (list, set, frozenset, Opaque):
        return kind
    if kind is tuple:
        return kind, len(value)
    if isinstance(value, Record):
        return Record, value.place, tuple(sorted(value))
    if isinstance(value, Member | enum.Enum):
        return enum.Enum
    if is_record_class(kind):
        return Record, kind, tuple(sorted(field_names(kind)))
    return "array" if kind.__module__ == "numpy" else "text"


def _column_of(kind: Any) -> _Column:
    if kind in _SCALARS:
        return _SCALARS[kind]()
    if kind in (list, set, frozenset):
        return _List(_Inferred())
    if kind is enum.Enum:
        return _Adapted(_Inferred(), lambda member: member.value)
    if kind is Opaque:
        return _Fixed(lambda pa: pa.binary(), lambda opaque: opaque.data)
    if kind == "array":
        return _Adapted(_Inferred(), lambda array: array.tolist())
    if kind == "text":
        return _text()
    if kind[0] is tuple:
        return _Parts({str(place): _Inferred() for place in range(kind[1])}, _place)
    return _Parts({name: _Inferred() for name in kind[2]}, _field)


_SCALARS: Final[dict[Any, Callable[[], _Column]]] = {
    bool: lambda: _Fixed(lambda pa: pa.bool_()),
    int: _Whole,
    float: lambda: _Fixed(lambda pa: pa.float64(), float),
    str: lambda: _Fixed(lambda pa: pa.string(), _unicode),
    bytes: lambda: _Fixed(lambda pa: pa.binary()),
    bytearray: lambda: _Fixed(lambda pa: pa.binary(), bytes),
    Decimal: _Decimals,
    UUID: lambda: _Fixed(lambda pa: pa.string(), str),
    dt.datetime: _Times,
    dt.date: lambda: _Fixed(lambda pa: pa.date32()),
    dt.time: _OfDay,
    dt.timedelta: lambda: _Fixed(lambda pa: pa.duration("us")),
}
_BY_NAME: Final = {kind.__name__: make for kind, make in _SCALARS.items()}


def _column(schema: Schema) -> _Column:
    kind = schema["kind"]
    if kind in _BY_NAME:
        return _BY_NAME[kind]()
    match kind:
        case "list" | "set" | "frozenset" | "tuple of":
            return _List(_column(schema["item"]))
        case "tuple":
            return _Parts({str(place): _column(item) for place, item in enumerate(schema["items"])}, _place)
        case "dict":
            return _Map(_column(schema["key"]), _column(schema["value"]))
        case "record" | "array record":
            return _Parts({attribute(field): _column(field["type"]) for field in schema["fields"]}, _field)
        case "ref":
            return _text()
    rest = without_none(schema)
    return _column(rest) if rest["kind"] != "union" and rest != schema else _Inferred()
