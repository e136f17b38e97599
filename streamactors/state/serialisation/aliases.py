"""Old names of fields: what users write on a field that they have renamed, and under which of its names it was stored.

A field is found by its name, else by an alias, else by the name that its class gives it in encoded data. More than one
answer is a clash, and refused: which of two stored values is meant, nobody can tell.
"""

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_origin

from streamactors.errors import InvalidDataflow

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, init=False)
class Alias:
    """Names under which a field was stored before: `total: Annotated[float, Alias("amount")]`.

    On fields of Structs, dataclasses, NamedTuples and TypedDicts. State that is restored keeps its values; what is
    stored from then on has the new name, so that an alias may go when nothing older is to be restored.
    """

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        if not names or not all(names):
            raise InvalidDataflow(f"Alias{names!r}: give the old names of the field")
        object.__setattr__(self, "names", names)


# ------------------------------------------------------------------------------------------------ finding them in types
def aliases_of(cls: Any) -> dict[str, tuple[str, ...]]:
    """Of the fields of a class that have any. Raises TypeError where one stands in the wrong place."""
    found: dict[str, tuple[str, ...]] = {}
    for field, hint in typing.get_type_hints(cls, include_extras=True).items():
        names, inner = _taken_off(hint)
        refuse_misplaced(inner)
        if names:
            found[field] = names
    return found


def refuse_misplaced(hint: Any) -> None:
    """Raises TypeError for an alias that belongs to no field: nobody would look at it, and what it stands for be
    lost."""
    names, inner = _own(hint)
    if names:
        raise TypeError(f"{Alias(*names)} names no field: write field: Annotated[type, Alias(…)] in the class")
    for argument in get_args(inner):
        refuse_misplaced(argument)


_WRAPPERS = (typing.Required, typing.NotRequired, typing.ClassVar, typing.Final)


def _taken_off(hint: Any) -> tuple[tuple[str, ...], Any]:
    """The aliases of a field, and what its annotation is without them."""
    names, inner = _own(hint)
    if get_origin(inner) in _WRAPPERS:
        more, inner = _taken_off(get_args(inner)[0])
        names += more
    return names, inner


def _own(hint: Any) -> tuple[tuple[str, ...], Any]:
    hint = getattr(hint, "__value__", hint)  # `type Amount = Annotated[…]`
    if get_origin(hint) is not Annotated:
        return (), hint
    inner, *notes = get_args(hint)
    return tuple(name for note in notes if isinstance(note, Alias) for name in note.names), inner


# -------------------------------------------------------------------------------------------- today's fields and stored
class Names(NamedTuple):
    """What a field may have been stored as, besides its own name. `key`: its name in encoded data."""

    aliases: tuple[str, ...] = ()
    key: str | None = None


def pair_up(fields: Mapping[str, Names], stored: Mapping[str, T]) -> tuple[dict[str, T], dict[str, str]]:
    """For each field that was stored, what `stored` has for it; and the clashes, by field."""
    found: dict[str, T] = {}
    clashes: dict[str, str] = {}
    for name, names in fields.items():
        aliased = _different(stored[alias] for alias in names.aliases if alias in stored)
        own = stored.get(name)
        if len(_different([*aliased, *([] if own is None else [own])])) > 1:
            there = [each for each in (name, *names.aliases) if each in stored]
            clashes[name] = f"field {name!r} is stored under {' and '.join(map(repr, there))}: drop an alias"
        elif (match := own or next(iter(aliased), None) or stored.get(names.key or name)) is not None:
            found[name] = match
    return found, clashes | _claimed_twice(found)


def _different(stored: Iterable[T]) -> list[T]:
    return list({id(each): each for each in stored}.values())


def _claimed_twice(found: Mapping[str, Any]) -> dict[str, str]:
    claims: dict[int, str] = {}
    return {
        name: f"field {name!r} is stored under the name of {first!r}: drop the alias"
        for name, match in found.items()
        if (first := claims.setdefault(id(match), name)) != name
    }
