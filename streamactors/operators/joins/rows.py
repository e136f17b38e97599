"""Rows of one side of a join, of the key in hand: a map from (time, place among those of one time) to the row.

Invariant: the places of one time are 0, 1, 2, … without gaps, since all rows of one time go together.
"""

from collections.abc import Iterator
from operator import itemgetter
from typing import Any, Final, TypeVar

from streamactors.elements import MAX_TIME, MIN_TIME
from streamactors.state.descriptors import MapState

T = TypeVar("T")

At = tuple[int, int]
"""(time, place)."""
Rows = MapState[At, T]

_FEW: Final = 64
"""So many are looked through: no backend has to go to a disk for them."""
_first: Final = itemgetter(0)


def add(rows: Rows[T], time: int, row: T) -> At:
    """Behind those of the same time."""
    at = time, _free_place(rows, time)
    rows[at] = row
    return at


def _free_place(rows: Rows[Any], time: int) -> int:
    """By doubling, then halving: many may have one time."""
    if (time, 0) not in rows:
        return 0
    taken, free = 0, 1
    while (time, free) in rows:
        taken, free = free, 2 * free
    while free - taken > 1:
        middle = (taken + free) // 2
        taken, free = (middle, free) if (time, middle) in rows else (taken, middle)
    return free


def between(rows: Rows[T], first: int, last: int) -> list[tuple[At, T]]:
    """From time `first` to `last`, both included, in the order of (time, place)."""
    if len(rows) <= _FEW:
        return sorted((item for item in rows.items() if first <= item[0][0] <= last), key=_first)
    start, stop = max(first, MIN_TIME), min(last, MAX_TIME)
    return list(rows.range((start, 0), (stop, MAX_TIME))) if start <= stop else []


def taken(rows: Rows[T], time: int) -> Iterator[tuple[At, T]]:
    """Each row of that time, in order, and deletes it."""
    at = time, 0
    while at in rows:
        yield at, rows.pop(at)
        at = time, at[1] + 1
