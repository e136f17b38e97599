"""The order of one key's rows: by time and side; what arrived first goes first. Pure.

Invariant: many rows are put in order a few thousand at a time. `list.sort` holds the interpreter until it is done, also
in a thread: sorted in one go, the rows of one hot key would hold up the event loop for as long as that takes.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Any, Final

from streamactors.runtime.bounded.rows import time_of

MANY: Final = 8192
"""Rows that take about a millisecond to sort."""
_BUCKET: Final = 2048
"""Rows that a bucket is to have."""
_SAMPLES: Final = 16
"""Looked at for each bucket, to tell where it begins."""


class RowOrder:
    """`sides` None: there is one input; `stamps` None: there is no time."""

    def __init__(self, stamps: Sequence[int | None] | None, sides: Sequence[int] | None) -> None:
        self._stamps = stamps
        self._sides = sides

    def ordered(self, rows: list[int]) -> Iterator[list[int]]:
        """All rows, given in the order of arrival, in lists of which each goes before the next. May empty `rows`."""
        if len(rows) <= MANY:
            yield self._sorted(rows, self._time)
        elif self._stamps is None:
            yield from self._by_side(rows)
        else:
            yield from self._by_time(rows, self._stamps.__getitem__ if self._all_stamped(rows) else self._time)

    def _time(self, row: int) -> int:
        assert self._stamps is not None
        return time_of(self._stamps[row])

    def _all_stamped(self, rows: Sequence[int]) -> bool:
        stamps = self._stamps
        assert stamps is not None
        return all(stamps[row] is not None for row in rows)

    def _sorted(self, rows: list[int], time: Callable[[int], Any]) -> list[int]:
        if self._sides is not None:
            rows.sort(key=self._sides.__getitem__)
        if self._stamps is not None:
            rows.sort(key=time)
        return rows

    def _by_side(self, rows: list[int]) -> Iterator[list[int]]:
        sides = self._sides
        if sides is None:
            yield rows
            return
        for side in (0, 1):
            yield [row for row in rows if sides[row] == side]

    def _by_time(self, rows: list[int], time: Callable[[int], Any]) -> Iterator[list[int]]:
        """Dealt out into buckets of times, each of which is sorted by itself."""
        bounds = _bounds(rows, time)
        if len(bounds) < 2:
            yield from self._around(bounds[0], rows, time)
            return
        buckets = _dealt_out(rows, bounds, time)
        rows.clear()
        for place, bucket in enumerate(buckets):
            buckets[place] = []  # nothing is freed all at once
            yield from self._part(bucket, time)

    def _part(self, rows: list[int], time: Callable[[int], Any]) -> Iterator[list[int]]:
        if len(rows) <= MANY:
            yield self._sorted(rows, time)
        else:
            yield from self._by_time(rows, time)

    def _around(self, most: int, rows: list[int], time: Callable[[int], Any]) -> Iterator[list[int]]:
        """Most rows are of one time, and what is of one time need not be sorted."""
        yield from self._part([row for row in rows if time(row) < most], time)
        yield from self._by_side([row for row in rows if time(row) == most])
        yield from self._part([row for row in rows if time(row) > most], time)


def _bounds(rows: Sequence[int], time: Callable[[int], Any]) -> list[int]:
    """Times that cut the rows into parts of about one size, the first of which is empty or so."""
    count = len(rows) // _BUCKET
    sample = sorted(map(time, rows[:: max(1, len(rows) // (count * _SAMPLES))]))
    return sorted({sample[len(sample) * number // count] for number in range(count)})


def _dealt_out(rows: Sequence[int], bounds: Sequence[int], time: Callable[[int], Any]) -> list[list[int]]:
    """Those before the first bound, those from it on, and so on."""
    buckets: list[list[int]] = [[] for _ in range(len(bounds) + 1)]
    for start in range(0, len(rows), MANY):
        some = rows[start : start + MANY]
        for row, place in zip(some, map(bisect_right, repeat(bounds), map(time, some)), strict=True):
            buckets[place].append(row)
    return buckets
