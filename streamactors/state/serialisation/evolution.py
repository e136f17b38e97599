"""Stored values of an older schema, brought into the shape that today's type is decoded from.

A value comes as msgpack's builtins (of native and wide bytes), or, where it described itself, as objects with
`StoredInstance` and `StoredEnum` in place of those of classes. It leaves as builtins under today's names, which msgspec
then converts and checks. Only for schemas that `problems` finds nothing against.

Invariant: no stored field is lost unless it is gone, and no number changes its value.
"""

from collections.abc import Callable
from typing import Any, Final

from msgspec import NODEFAULT

from streamactors.errors import IncompatibleState
from streamactors.state.serialisation.schemas import (
    FIELD,
    Schema,
    alternatives,
    attribute,
    describe,
    for_manifest,
    is_record,
    paired,
    successors,
)
from streamactors.state.serialisation.tagged import StoredEnum, StoredInstance, built

Convert = Callable[[Any], Any]

_MISSING: Final = object()
_SEQUENCES: Final = (list, tuple, set, frozenset)
_TEXTS: Final = frozenset({"str", "UUID", "date", "time", "datetime", "timedelta", "Decimal", "enum", "literal"})


def converter(old: Schema, today: Schema) -> Convert:
    """`today` is a `schema_of`. What it gives raises IncompatibleState for a value that can't be brought over
    exactly, or that is not what `old` says."""
    return _Maker().make(old, today)


class _Maker:
    """Remembers the records that it is inside of, to which a recursive type refers."""

    def __init__(self) -> None:
        self._inside: list[_Record] = []

    def make(self, old: Schema, today: Schema) -> Convert:
        if "union" in (old["kind"], today["kind"]):
            return self._union(old, today)
        if is_record(old):
            return self._record(old, today)
        if "item" in old:
            return _items(self.make(old["item"], today["item"]))
        match old["kind"]:
            case "tuple":
                return _tuple([self.make(*pair) for pair in zip(old["items"], today["items"], strict=True)])
            case "dict":
                same = old["key"] == for_manifest(today["key"])
                return _dict(
                    built if same else self.make(old["key"], today["key"]), self.make(old["value"], today["value"])
                )
            case "ref":
                levels: int = old["levels"]
                return self._inside[-levels]
        return _leaf(old["kind"], today["kind"])

    def _record(self, old: Schema, today: Schema) -> Convert:
        record = _Record(old, today)
        self._inside.append(record)
        for before, now in paired(old, today).kept:
            record.add(before, now, self.make(before["type"], now["type"]))
        self._inside.pop()
        return record

    def _union(self, old: Schema, today: Schema) -> Convert:
        """What a value was among the old alternatives tells what it is now."""
        now = alternatives(today)
        ways = [(each, self.make(each, successors(each, now)[0])) for each in alternatives(old)]
        if len(ways) == 1:
            return ways[0][1]

        def convert(value: Any) -> Any:
            for fits in (_is, _is_encoded):
                for alternative, way in ways:
                    if fits(alternative, value):
                        return way(value)
            raise IncompatibleState(f"stored as {describe(old)}, found {value!r}")

        return convert


# -------------------------------------------------------------------------------------------------------------- records
class _Record:
    """Field by field. A record stored by places leaves as one stored by names and the other way round, as need be."""

    def __init__(self, old: Schema, today: Schema) -> None:
        self._old, self._today = old, today
        self._first = 1 if "tag" in old else 0
        self._places = {field["name"]: place for place, field in enumerate(old["fields"])}
        self._ways: list[tuple[Schema, str, Convert]] = []

    def add(self, before: Schema, now: Schema, way: Convert) -> None:
        self._ways.append((before, now["name"], way))

    def __call__(self, value: Any) -> Any:
        if isinstance(value, StoredInstance):
            fields = {name: value.fields.get(attribute(old), _MISSING) for name, old in self._named()}
        elif isinstance(value, dict):
            fields = {name: value.get(name, _MISSING) for name, _ in self._named()}
        elif isinstance(value, list | tuple):
            stored = value[self._first :]
            fields = {name: stored[place] if place < len(stored) else _MISSING for name, place in self._places.items()}
        else:
            raise IncompatibleState(f"stored as {describe(self._old)}, found {value!r}")
        made = {name: way(found) for old, name, way in self._ways if (found := fields[old["name"]]) is not _MISSING}
        return self._in_places(made) if self._today["kind"] == "array record" else self._tag() | made

    def _named(self) -> list[tuple[str, Schema]]:
        return [(field["name"], field) for field in self._old["fields"]]

    def _tag(self) -> dict[str, Any]:
        return {self._today["tag_field"]: self._today["tag"]} if "tag" in self._today else {}

    def _in_places(self, made: dict[str, Any]) -> tuple[Any, ...]:
        """Up to the first that there is nothing for, which msgspec then misses."""
        row = [self._today["tag"]] if "tag" in self._today else []
        for field in self._today["fields"]:
            value = made.get(field["name"], _MISSING)
            value = _default(field) if value is _MISSING else value
            if value is _MISSING:
                break
            row.append(value)
        return tuple(row)


def _default(field: Schema) -> Any:
    declared = field[FIELD]
    if declared.default_factory is not NODEFAULT:
        return declared.default_factory()
    return _MISSING if declared.default is NODEFAULT else declared.default


# --------------------------------------------------------------------------------------------------- containers, leaves
def _items(way: Convert) -> Convert:
    return lambda value: tuple(map(way, _expect(value, *_SEQUENCES)))


def _tuple(ways: list[Convert]) -> Convert:
    return lambda value: tuple(
        way(item) for way, item in zip(ways, _expect(value, list, tuple, size=len(ways)), strict=True)
    )


def _dict(key_way: Convert, value_way: Convert) -> Convert:
    def convert(value: Any) -> Any:
        try:
            return {key_way(key): value_way(each) for key, each in _expect(value, dict).items()}
        except TypeError as error:
            raise IncompatibleState(f"keys that are records can't be brought over: {error}") from error

    return convert


def _expect(value: Any, *kinds: Any, size: int | None = None) -> Any:
    if isinstance(value, kinds) and size in (None, len(value)):
        return value
    raise IncompatibleState(f"expected a {kinds[0].__name__}, found {value!r}")


def _leaf(old: str, today: str) -> Convert:
    if (old, today) == ("int", "float"):
        return _as_float
    return _value_of_member if old in ("enum", "literal") else built


def _as_float(value: Any) -> Any:
    """Beyond 2^53 not every integer is one: what would come back as another is refused."""
    try:
        exact = type(value) is not int or int(float(value)) == value
    except OverflowError:
        exact = False
    if not exact:
        raise IncompatibleState(f"the integer {value} is no float")
    return value


def _value_of_member(value: Any) -> Any:
    return value.value if isinstance(value, StoredEnum) else value


# ----------------------------------------------------------------------------------------- which of a union a value was
def _is(schema: Schema, value: Any) -> bool:
    """It says so itself."""
    kind: str = schema["kind"]
    if isinstance(value, StoredInstance | StoredEnum):
        return bool(value.name == schema.get("name"))
    if isinstance(value, dict) and kind == "record" and "tag" in schema:
        return bool(value.get(schema["tag_field"]) == schema["tag"])
    if isinstance(value, list) and kind == "array record" and "tag" in schema:
        return bool(value[:1] == [schema["tag"]])
    if kind in ("enum", "literal"):
        return any(type(each) is type(value) and each == value for each in schema["values"])
    return bool(type(value).__name__ in (schema.get("name"), "NoneType" if value is None and kind == "None" else kind))


def _is_encoded(schema: Schema, value: Any) -> bool:
    """Nothing else is encoded so: msgspec refuses unions of which more than one is."""
    kind: str = schema["kind"]
    match value:
        case str():
            return kind in _TEXTS
        case list() | tuple() | set() | frozenset():
            return "item" in schema or kind in ("tuple", "array record", "ref")
        case dict():
            return kind in ("record", "dict", "ref") and "tag" not in schema
        case StoredInstance():
            return is_record(schema) or kind == "ref"
        case bytes():
            return kind == "bytearray"
        case int():
            return kind in ("float", "Decimal")
    return kind in ("any", "custom", "ref")
