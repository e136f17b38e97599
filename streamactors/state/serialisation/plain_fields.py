"""Proof that Structs of plain fields come back as they are, faster than by decoding what was encoded.

Invariant: what is proved here, and then encoded by msgspec itself, is decoded to an equal value. The converse does not
hold: what is not proved may come back all the same, which only decoding it tells.
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec import inspect as info

from streamactors.state.serialisation.facts import is_plain, plain_types
from streamactors.state.serialisation.schemas import class_of

Proof = Callable[[Sequence[Any]], bool]
"""Of values that all are of the type itself."""


def proof_for(kind: info.Type) -> Proof | None:
    """None where only decoding proves anything."""
    if not isinstance(kind, info.StructType) or not kind.fields:
        return None
    cls = class_of(kind.cls)
    if hasattr(cls, "__post_init__") or cls.__struct_config__.omit_defaults:
        return None  # decoding runs code, or puts in what was left out
    types = [field.type for field in kind.fields]
    return _FieldsProof(types) if all(map(is_plain, types)) else None


class _FieldsProof:
    def __init__(self, types: Sequence[info.Type]) -> None:
        accepted = [plain_types(each) for each in types]
        self._rows = list[tuple[tuple(_union(each) for each in accepted)]]  # type: ignore[misc]
        # Converting takes an integer for a float, a Decimal too, and a string for bytes: these it must not be.
        self._loose = [(place, types) for place, types in enumerate(accepted) if types & {float, bytes}]

    def __call__(self, values: Sequence[Any]) -> bool:
        rows = list(map(msgspec.structs.astuple, values))
        try:
            msgspec.convert(rows, self._rows)
        except (msgspec.ValidationError, ValueError, OverflowError):  # half a surrogate pair; a huge integer
            return False
        return all(types.issuperset([type(row[place]) for row in rows]) for place, types in self._loose)


def _union(types: frozenset[type]) -> Any:
    first, *others = types
    joined: Any = first
    for other in others:
        joined = joined | other
    return joined
