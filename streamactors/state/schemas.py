"""What a stored type looks like, as plain msgpack-able data, and whether a newer type still reads it.

A type is known by its structure and tag, never by its module or class name. Allowed on restore: fields added with a
default, fields removed, int widened to float. Everything else is a problem.
"""

from collections.abc import Sequence
from typing import Any, get_origin

from msgspec import NODEFAULT
from msgspec import inspect as info

Schema = dict[str, Any]

_LEAVES: dict[type, str] = {
    info.AnyType: "any",
    info.NoneType: "None",
    info.BoolType: "bool",
    info.IntType: "int",
    info.FloatType: "float",
    info.StrType: "str",
    info.BytesType: "bytes",
    info.ByteArrayType: "bytearray",
    info.DateTimeType: "datetime",
    info.TimeType: "time",
    info.DateType: "date",
    info.TimeDeltaType: "timedelta",
    info.UUIDType: "UUID",
    info.DecimalType: "Decimal",
}
_ITEMS: dict[type, str] = {
    info.ListType: "list",
    info.SetType: "set",
    info.FrozenSetType: "frozenset",
    info.VarTupleType: "tuple of",
}


# ------------------------------------------------------------------------------------------------------- making schemas
def schema_of(kind: info.Type, *, by_name: bool = False) -> Schema:
    """`by_name` for values stored with self-describing tags: then names of classes and attributes are part of it."""
    return _Maker(by_name).make(kind)


class _Maker:
    """Remembers the classes it is inside of: a recursive type refers to its own by how many levels up they are."""

    def __init__(self, by_name: bool) -> None:
        self._by_name = by_name
        self._inside: list[Any] = []

    def make(self, kind: info.Type) -> Schema:
        if isinstance(kind, info.Metadata):
            return self.make(kind.type)
        if leaf := _LEAVES.get(type(kind)):
            return {"kind": leaf}
        if items := _ITEMS.get(type(kind)):
            return {"kind": items, "item": self.make(kind.item_type)}  # type: ignore[attr-defined]
        return self._composite(kind)

    def _composite(self, kind: info.Type) -> Schema:
        match kind:
            case info.TupleType(item_types=items):
                return {"kind": "tuple", "items": [self.make(item) for item in items]}
            case info.DictType(key_type=key, value_type=value):
                return {"kind": "dict", "key": self.make(key), "value": self.make(value)}
            case info.UnionType(types=types):
                return {"kind": "union", "of": [self.make(each) for each in types]}
            case info.EnumType(cls=cls):
                tag = {"tag": cls.__name__} if self._by_name else {}
                return {"kind": "enum", "name": cls.__name__, "values": [_plain(member.value) for member in cls], **tag}
            case info.LiteralType(values=values):
                return {"kind": "literal", "values": list(values)}
            case info.StructType() | info.DataclassType() | info.TypedDictType() | info.NamedTupleType():
                return self._record(kind)
            case info.CustomType(cls=cls):
                return {"kind": "custom", "name": cls.__name__}
        raise TypeError(f"{kind} has no schema")

    def _record(self, kind: Any) -> Schema:
        if kind.cls in self._inside:
            return {"kind": "ref", "levels": len(self._inside) - self._inside.index(kind.cls)}
        self._inside.append(kind.cls)
        omits = _omits_defaults(kind)
        fields = [self._field(field, omits) for field in kind.fields]
        self._inside.pop()
        made: Schema = {"kind": "record", "name": class_name(kind.cls), "fields": fields}
        if not self._by_name and (isinstance(kind, info.NamedTupleType) or getattr(kind, "array_like", False)):
            made["kind"] = "array record"
        if getattr(kind, "forbid_unknown_fields", False):
            made["closed"] = True
        tag = made["name"] if self._by_name else getattr(kind, "tag", None)
        return made if tag is None else {**made, "tag": tag}

    def _field(self, field: info.Field, omits: bool) -> Schema:
        name = field.name if self._by_name else field.encode_name
        made: Schema = {"name": name, "type": self.make(field.type), "required": field.required}
        if not field.required:
            made |= {"default": _default_name(field), "omitted": omits and not self._by_name}
        return made


def _omits_defaults(kind: Any) -> bool:
    if isinstance(kind, info.StructType):
        config: Any = class_of(kind.cls).__struct_config__
        return bool(config.omit_defaults)
    return isinstance(kind, info.TypedDictType)


def _default_name(field: info.Field) -> str:
    if field.default is not NODEFAULT:
        return repr(field.default)
    return "" if field.default_factory is NODEFAULT else class_name(field.default_factory)


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | None) else repr(value)


def class_of(cls: Any) -> Any:
    """The class behind a parametrised generic."""
    return get_origin(cls) or cls


def class_name(cls: Any) -> str:
    """Also of a parametrised generic."""
    return str(getattr(cls, "__name__", cls))


# ---------------------------------------------------------------------------------------------------- comparing schemas
def problems(old: Schema, new: Schema, where: str = "") -> list[str]:
    """Why `new` can't read what was stored as `old`; empty if it can. Each names the field and both types."""
    if old == new or (old["kind"], new["kind"]) == ("int", "float"):
        return []
    if old["kind"] != new["kind"]:
        return [_changed(old, new, where)]
    match old["kind"]:
        case "record":
            return _record_problems(old, new, where)
        case "array record":
            return _array_problems(old, new, where)
        case "dict":
            return _each([old["key"], old["value"]], [new["key"], new["value"]], [f"{where}[key]", f"{where}[]"])
        case "tuple" if len(old["items"]) == len(new["items"]):
            return _each(old["items"], new["items"], [f"{where}[{index}]" for index in range(len(old["items"]))])
        case "union" if len(old["of"]) == len(new["of"]):
            return [] if _unions_match(old["of"], new["of"]) else [_changed(old, new, where)]
        case "enum" | "literal" if old.get("tag") == new.get("tag"):
            gone = [value for value in old["values"] if value not in new["values"]]
            return [f"{_at(where)}the values {gone} of {describe(old)} are gone"] if gone else []
    if "item" in old:
        return problems(old["item"], new["item"], f"{where}[]")
    return [_changed(old, new, where)]


def _record_problems(old: Schema, new: Schema, where: str) -> list[str]:
    if old.get("tag") != new.get("tag"):
        return [f"{_at(where)}stored under the tag {old.get('tag')!r}, now {new.get('tag')!r}"]
    before, now = _fields(old), _fields(new)
    found = [
        f"{_at(where)}field {name!r} of type {describe(field['type'])} is new and has no default"
        for name, field in now.items()
        if field["required"] and name not in before
    ]
    if new.get("closed"):
        gone = before.keys() - now.keys()
        found += [f"{_at(where)}field {name!r} is gone, and unknown fields are forbidden" for name in gone]
    for name in before:
        if name in now:
            found += problems(before[name]["type"], now[name]["type"], f"{where}.{name}")
            found += _requirement_problems(before[name], now[name], where)
    return found


def _requirement_problems(old: Schema, new: Schema, where: str) -> list[str]:
    """A field that was left out when it had its default (omit_defaults, TypedDict) must still have that default."""
    if not old.get("omitted") or (not new["required"] and new["default"] == old["default"]):
        return []
    now = "is required now" if new["required"] else f"has the default {new['default']} now"
    return [f"{_at(where)}field {new['name']!r} was left out where it had its default {old['default']}, and {now}"]


def _array_problems(old: Schema, new: Schema, where: str) -> list[str]:
    """Stored by position: fields may only be added at the end."""
    before, now = old["fields"], new["fields"]
    kept = [each["name"] for each in now[: len(before)]]
    if old.get("tag") != new.get("tag") or [each["name"] for each in before] != kept:
        return [_changed(old, new, where)]
    added = [
        f"{_at(where)}field {field['name']!r} of type {describe(field['type'])} is new and has no default"
        for field in now[len(before) :]
        if field["required"]
    ]
    names = [f"{where}.{each['name']}" for each in before]
    return added + _each([each["type"] for each in before], [each["type"] for each in now], names)


def _each(old: Sequence[Schema], new: Sequence[Schema], where: Sequence[str]) -> list[str]:
    return [problem for a, b, at in zip(old, new, where, strict=False) for problem in problems(a, b, at)]


def _unions_match(old: list[Schema], new: list[Schema]) -> bool:
    """Whether they pair off one to one, in any order."""
    left = list(new)
    for alternative in old:
        match = next((each for each in left if each == alternative), None)
        match = match or next((each for each in left if not problems(alternative, each)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _fields(record: Schema) -> dict[str, Schema]:
    return {field["name"]: field for field in record["fields"]}


def _at(where: str) -> str:
    return f"field {where.lstrip('.')!r}: " if where else ""


def _changed(old: Schema, new: Schema, where: str) -> str:
    return f"{_at(where)}stored as {describe(old)}, now {describe(new)}"


def describe(schema: Schema) -> str:
    """The type as a user would write it."""
    kind = schema["kind"]
    match kind:
        case "record" | "array record" | "enum":
            return str(schema["name"])
        case "dict":
            return f"dict[{describe(schema['key'])}, {describe(schema['value'])}]"
        case "tuple":
            return f"tuple[{', '.join(map(describe, schema['items']))}]"
        case "tuple of":
            return f"tuple[{describe(schema['item'])}, ...]"
        case "union":
            return " | ".join(map(describe, schema["of"]))
        case "literal":
            return f"Literal[{', '.join(map(repr, schema['values']))}]"
        case "custom" | "pickle":
            return f"{kind} {schema['name']}"
        case "ref":
            return "itself"
    return f"{kind}[{describe(schema['item'])}]" if "item" in schema else str(kind)


def without_none(schema: Schema) -> Schema:
    """The schema of T, given that of T | None."""
    if schema["kind"] != "union":
        return schema
    rest = [each for each in schema["of"] if each["kind"] != "None"]
    return rest[0] if len(rest) == 1 else {**schema, "of": rest}
