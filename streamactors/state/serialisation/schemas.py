"""What a stored type looks like, as plain msgpack-able data, and whether a newer type still reads it.

A type is known by its structure and tag, never by its module or class name. Allowed on restore: fields added with a
default, removed, reordered or renamed with an alias; a tag added or taken away; int widened to float or Decimal, T to a
union that holds it, a literal to the type of its values; values added to an enum or a literal. Everything else is a
problem. (`evolution` brings what is allowed into today's shape.)
"""

import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple, get_origin

import msgspec
from msgspec import NODEFAULT
from msgspec import inspect as info

from streamactors.state.serialisation.aliases import Names, aliases_of, pair_up

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


_WIDER: Final = {("int", "float"), ("int", "Decimal")}
_BUILTIN_FACTORIES: Final = (list, dict, set)

ALIASES: Final = "aliases"
FIELD: Final = "field"
"""What only the schema of today's type has, and no manifest: a field's old names, and where its default is found."""


# ------------------------------------------------------------------------------------------------------- making schemas
def schema_of(kind: info.Type) -> Schema:
    """With all that helps to read older ones. Raises TypeError for an alias in the wrong place."""
    return _Maker().make(kind)


class _Maker:
    """Remembers the classes it is inside of: a recursive type refers to its own by how many levels up they are."""

    def __init__(self) -> None:
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
                return {"kind": "enum", "name": cls.__name__, "values": [_plain(member.value) for member in cls]}
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
        aliases = aliases_of(class_of(kind.cls))
        fields = [self._field(field, omits, aliases.get(field.name, ())) for field in kind.fields]
        self._inside.pop()
        array = isinstance(kind, info.NamedTupleType) or getattr(kind, "array_like", False)
        made: Schema = {"kind": "array record" if array else "record", "name": class_name(kind.cls), "fields": fields}
        if getattr(kind, "forbid_unknown_fields", False):
            made["closed"] = True
        if (tag := getattr(kind, "tag", None)) is not None:
            made |= {"tag": tag, "tag_field": kind.tag_field}
        return made

    def _field(self, field: info.Field, omits: bool, aliases: tuple[str, ...]) -> Schema:
        """`name` is that in encoded data; `attribute` that of the class, if it is another."""
        made: Schema = {"name": field.encode_name, "type": self.make(field.type), "required": field.required}
        if field.encode_name != field.name:
            made["attribute"] = field.name
        if omits and _is_omitted(field):
            made["omitted"] = _default_name(field)
        return made | {ALIASES: aliases, FIELD: field}


def _omits_defaults(kind: Any) -> bool:
    if isinstance(kind, info.StructType):
        config: Any = class_of(kind.cls).__struct_config__
        return bool(config.omit_defaults)
    return isinstance(kind, info.TypedDictType)


def _is_omitted(field: info.Field) -> bool:
    """As msgspec does: of what factories make, only empty containers. The optional keys of a TypedDict have neither."""
    if field.required:
        return False
    return field.default_factory is NODEFAULT or field.default_factory in _BUILTIN_FACTORIES


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


def fingerprint(cls: Any) -> int:
    """Of the fields and their types, whatever the order and the defaults; 0 for a class of which they can't be told."""
    try:
        schema = schema_of(info.type_info(cls))
    except (TypeError, NameError):
        return 0
    return zlib.crc32(msgspec.msgpack.encode(_structure(schema), order="deterministic"))


def _structure(schema: Any) -> Any:
    match schema:
        case {"kind": "record" | "array record", "fields": fields}:
            return {attribute(field): _structure(field["type"]) for field in fields}
        case {"kind": "enum", "values": values}:
            return values
        case dict():
            return {name: _structure(part) for name, part in schema.items()}
        case list():
            return list(map(_structure, schema))
    return schema


def for_manifest(schema: Any) -> Any:
    """Without what only the schema of today's type has."""
    if isinstance(schema, dict):
        return {name: for_manifest(part) for name, part in schema.items() if name not in (ALIASES, FIELD)}
    return list(map(for_manifest, schema)) if isinstance(schema, list) else schema


# ---------------------------------------------------------------------------------------------------- comparing schemas
def problems(old: Schema, new: Schema, where: str = "", *, key: bool = False) -> list[str]:
    """Why `new` can't read what was stored as `old`; empty if it can. Each names the field and both types. `key`: what
    was different has to stay so."""
    if old == new or (old["kind"], new["kind"]) in _WIDER:
        return []
    if "union" in (old["kind"], new["kind"]):
        return _union_problems(old, new, where, key)
    if old["kind"] == "literal" and all(type(value).__name__ == new["kind"] for value in old["values"]):
        return []
    if is_record(old) and is_record(new):
        return _record_problems(old, new, where, key)
    if old["kind"] != new["kind"]:
        return [_changed(old, new, where)]
    match old["kind"]:
        case "dict":
            keys = problems(old["key"], new["key"], f"{where}[key]", key=True)
            return keys + problems(old["value"], new["value"], f"{where}[]", key=key)
        case "tuple" if len(old["items"]) == len(new["items"]):
            pairs = enumerate(zip(old["items"], new["items"], strict=True))
            return [problem for index, pair in pairs for problem in problems(*pair, f"{where}[{index}]", key=key)]
        case "enum" | "literal":
            gone = [value for value in old["values"] if value not in new["values"]]
            return [f"{_at(where)}the values {gone} of {describe(old)} are gone"] if gone else []
    if "item" in old:
        return problems(old["item"], new["item"], f"{where}[]", key=key)
    return [_changed(old, new, where)]


def _record_problems(old: Schema, new: Schema, where: str, key: bool) -> list[str]:
    tags = old.get("tag"), new.get("tag")
    if None not in tags and tags[0] != tags[1]:
        return [f"{_at(where)}stored under the tag {tags[0]!r}, now {tags[1]!r}"]
    pairs = paired(old, new)
    found = [f"{_at(where)}{clash}" for clash in pairs.clashes]
    found += [
        f"{_at(where)}field {attribute(field)!r} of type {describe(field['type'])} is new and has no default"
        for field in pairs.added
        if field["required"]
    ]
    if new.get("closed"):
        found += [f"{_at(where)}field {name!r} is gone, and unknown fields are forbidden" for name in pairs.gone]
    elif key:
        found += [
            f"{_at(where)}field {name!r} is gone, and keys that differ in it alone would be one" for name in pairs.gone
        ]
    for before, now in pairs.kept:
        found += problems(before["type"], now["type"], f"{where}.{attribute(before)}", key=key)
        found += _requirement_problems(before, now, where)
    return found


def _requirement_problems(old: Schema, new: Schema, where: str) -> list[str]:
    """A field that was left out when it had its default (omit_defaults, TypedDict) must still have that default."""
    if "omitted" not in old or (not new["required"] and _todays_default(new) == old["omitted"]):
        return []
    now = "is required now" if new["required"] else f"has the default {_todays_default(new)} now"
    return [f"{_at(where)}field {attribute(new)!r} was left out where it had its default {old['omitted']}, and {now}"]


def _todays_default(field: Schema) -> str | None:
    return _default_name(field[FIELD]) if FIELD in field else field.get("omitted")


def has_record_keys(schema: Any) -> bool:
    """Whether it holds a dict whose keys are stored as dicts themselves, which nothing reads without their type."""
    match schema:
        case {"kind": "dict", "key": key, "value": value}:
            return _has_record(key) or has_record_keys(value)
        case dict():
            return any(map(has_record_keys, schema.values()))
        case list():
            return any(map(has_record_keys, schema))
    return False


def _has_record(schema: Any) -> bool:
    if isinstance(schema, dict):
        return schema.get("kind") in ("record", "ref") or any(map(_has_record, schema.values()))
    return isinstance(schema, list) and any(map(_has_record, schema))


def is_record(schema: Schema) -> bool:
    return schema["kind"] in ("record", "array record")


def attribute(field: Schema) -> str:
    """The name that the class knows it by."""
    return str(field.get("attribute", field["name"]))


class Pairs(NamedTuple):
    """The fields of a record as it was and as it is."""

    kept: list[tuple[Schema, Schema]]
    added: list[Schema]
    gone: list[str]
    clashes: list[str]


def paired(old: Schema, new: Schema) -> Pairs:
    stored = {field["name"]: field for field in old["fields"]} | {attribute(field): field for field in old["fields"]}
    now = {attribute(field): field for field in new["fields"]}
    found, clashes = pair_up(
        {name: Names(field.get(ALIASES, ()), field["name"]) for name, field in now.items()}, stored
    )
    kept = [(found[name], field) for name, field in now.items() if name in found]
    gone = [attribute(field) for field in old["fields"] if all(field is not before for before, _ in kept)]
    added = [field for name, field in now.items() if name not in found and name not in clashes]
    return Pairs(kept, added, gone, list(clashes.values()))


# --------------------------------------------------------------------------------------------------------------- unions
def alternatives(schema: Schema) -> list[Schema]:
    return list(schema["of"]) if schema["kind"] == "union" else [schema]


def _union_problems(old: Schema, new: Schema, where: str, key: bool) -> list[str]:
    for alternative in alternatives(old):
        fitting = successors(alternative, alternatives(new))
        if not fitting:
            return list(_no_successor(alternative, old, new, where))
        if len(fitting) > 1:
            may = " or ".join(map(describe, fitting))
            return [f"{_changed(old, new, where)}: {describe(alternative)} may be {may} now; give it its old name"]
        if found := problems(alternative, fitting[0], where, key=key):
            return found
    return []


def successors(alternative: Schema, now: Iterable[Schema]) -> list[Schema]:
    """Which of today's alternatives read it; one of them, if one stands out."""
    fitting = [each for each in now if not problems(alternative, each)]
    for stands_out in (_same, _same_tag, _same_name, _same_kind):
        if len(same := [each for each in fitting if stands_out(each, alternative)]) == 1:
            return same
    return fitting


def _same(a: Schema, b: Schema) -> bool:
    return a == b


def _same_tag(a: Schema, b: Schema) -> bool:
    return "tag" in a and a["tag"] == b.get("tag")


def _same_name(a: Schema, b: Schema) -> bool:
    return "name" in a and a["name"] == b.get("name")


def _same_kind(a: Schema, b: Schema) -> bool:
    return bool(a["kind"] == b["kind"])


def _no_successor(alternative: Schema, old: Schema, new: Schema, where: str) -> Iterator[str]:
    """In detail, where there is only one that may have been meant."""
    meant = [each for each in alternatives(new) if _same_kind(each, alternative) and _tags_agree(each, alternative)]
    if len(meant) == 1 and (is_record(alternative) or "item" in alternative):
        yield from problems(alternative, meant[0], where)
    else:
        gone = f": {describe(alternative)} is gone" if old["kind"] == "union" else ""
        yield _changed(old, new, where) + gone


def _tags_agree(a: Schema, b: Schema) -> bool:
    return a.get("tag") is None or b.get("tag") is None or bool(a["tag"] == b["tag"])


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
        case "format":
            return f"{schema['name']} in the format {schema['format']}"
        case "ref":
            return "itself"
    return f"{kind}[{describe(schema['item'])}]" if "item" in schema else str(kind)


def without_none(schema: Schema) -> Schema:
    """The schema of T, given that of T | None."""
    if schema["kind"] != "union":
        return schema
    rest = [each for each in schema["of"] if each["kind"] != "None"]
    return rest[0] if len(rest) == 1 else {**schema, "of": rest}


def with_none(schema: Schema) -> Schema:
    """The schema of T | None, given that of T."""
    rest = alternatives(without_none(schema))
    return {"kind": "union", "of": [*rest, {"kind": "None"}]}
