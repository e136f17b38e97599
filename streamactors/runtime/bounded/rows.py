"""Rows of one key, as gathering, sorting, spilling and merging hand them to each other.

Invariant of every iterator of `KeyRows`: rows are ordered by (key group, key, time, side, arrival). All pieces of one
key follow each other; keys are compared by `order`, which is equal exactly where the keys are.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from streamactors.elements import MIN_TIME

PIECE: Final = 1024
"""Rows of one key that are handed on together, at most."""


class KeyRows(NamedTuple):
    """Some rows of one key. `sides` None: there is one input. `stamps` None: there is no event time."""

    group: int
    order: bytes
    key: Any
    values: Sequence[Any]
    stamps: Sequence[int | None] | None = None
    sides: Sequence[int] | None = None
    origins: Sequence[int] | None = None
    ids: Sequence[str | None] | None = None

    @property
    def place(self) -> tuple[int, bytes]:
        return self.group, self.order

    def part(self, start: int, stop: int) -> "KeyRows":
        return self._replace(
            values=self.values[start:stop],
            stamps=None if self.stamps is None else self.stamps[start:stop],
            sides=None if self.sides is None else self.sides[start:stop],
            origins=None if self.origins is None else self.origins[start:stop],
            ids=None if self.ids is None else self.ids[start:stop],
        )


def time_of(stamp: int | None) -> int:
    """For sorting: a record without a time-stamp goes before all others."""
    return MIN_TIME if stamp is None else stamp
