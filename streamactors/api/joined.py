"""What a join's arguments say: bounds in milliseconds, and the types of its rows, of its pairs and of both keys."""

import datetime as dt
from typing import Any, Final

from streamactors.api.inference import stored_type
from streamactors.errors import InvalidDataflow

_MILLISECOND: Final = dt.timedelta(milliseconds=1)
_NUMBERS: Final = (bool, int, float)


def bound(step: str, name: str, duration: object) -> int:
    """In milliseconds; may be negative. Raises InvalidDataflow."""
    if not isinstance(duration, dt.timedelta):
        raise InvalidDataflow(f"{step}: {name}={duration!r}: give a datetime.timedelta")
    if duration % _MILLISECOND:
        raise InvalidDataflow(f"{step}: {name}={duration}: time-stamps are milliseconds, so give whole ones")
    return duration // _MILLISECOND


def stored_types(types: tuple[Any, Any]) -> tuple[Any, Any]:
    return stored_type(types[0]), stored_type(types[1])


def pair_type(left: Any, right: Any, *, optional: tuple[bool, bool] = (False, False)) -> Any:
    """Of what comes out; `optional`: which of the two may be None."""
    kinds = [kind | None if nullable else kind for kind, nullable in zip((left, right), optional, strict=True)]
    return tuple[kinds[0], kinds[1]]  # type: ignore[valid-type]


def check_key_types(step: str, left: Any, right: Any) -> None:
    """Raises InvalidDataflow for classes of which no instance equals one of the other, so that nothing would match; as
    far as annotations tell."""
    if not (isinstance(left, type) and isinstance(right, type)) or issubclass(left, right) or issubclass(right, left):
        return
    if issubclass(left, _NUMBERS) and issubclass(right, _NUMBERS):
        return
    raise InvalidDataflow(
        f"{step}: the keys of the left stream are of type {left.__name__}, those of the right one of type "
        f"{right.__name__}, so no row would match: key_by both by the same"
    )
