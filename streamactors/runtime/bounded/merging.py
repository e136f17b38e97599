"""Sorted runs into one. Pure; holds one frame of each run in memory."""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, repeat
from operator import itemgetter
from typing import Any

from streamactors.runtime.bounded.rows import PIECE, KeyRows, time_of

_Row = tuple[int, int, Any, int | None, int | None, str | None]
"""(time, side, value, time-stamp, origin, name)."""


def merged(runs: Sequence[Iterator[KeyRows]], *, timed: bool = True) -> Iterator[KeyRows]:
    """The runs in the order of their arrival: of what is equal, an earlier one's goes first. `timed` False: as all of
    them have, the rows of a key keep the order of arrival, side by side."""
    if len(runs) == 1:
        return runs[0]
    return _Merge(runs, timed).pieces()


class _Merge:
    def __init__(self, runs: Sequence[Iterator[KeyRows]], timed: bool) -> None:
        self._runs = runs
        self._timed = timed
        self._heads: list[KeyRows | None] = [None] * len(runs)
        self._waiting: list[tuple[int, bytes, int]] = []
        """(key group, key's order, run) of every head."""

    def pieces(self) -> Iterator[KeyRows]:
        for run in range(len(self._runs)):
            self._advance(run)
        while self._waiting:
            yield from self._next_key()

    def _advance(self, run: int) -> None:
        head = self._heads[run] = next(self._runs[run], None)
        if head is not None:
            heapq.heappush(self._waiting, (head.group, head.order, run))

    def _next_key(self) -> Iterator[KeyRows]:
        group, order, run = heapq.heappop(self._waiting)
        alike = [run]
        while self._waiting and self._waiting[0][:2] == (group, order):
            alike.append(heapq.heappop(self._waiting)[2])
        if len(alike) == 1:
            return self._pieces_of(run)
        sources = [self._pieces_of(run) for run in alike]
        return _by_time(sources, self._timed)

    def _pieces_of(self, run: int) -> Iterator[KeyRows]:
        """All that a run has of the key of its head, which is off the heap. Then the next head is on it."""
        head = self._heads[run]
        assert head is not None
        place = head.place
        while head is not None and head.place == place:
            yield head
            head = self._heads[run] = next(self._runs[run], None)
        if head is not None:
            heapq.heappush(self._waiting, (head.group, head.order, run))


def _by_time(sources: Sequence[Iterator[KeyRows]], timed: bool) -> Iterator[KeyRows]:
    """Rows of one key, out of several runs."""
    firsts = [next(source) for source in sources]
    first = firsts[0]
    whole = [chain([head], rest) for head, rest in zip(firsts, sources, strict=True)]
    if first.sides is None and not timed:
        yield from chain.from_iterable(whole)
        return
    rows = heapq.merge(*(_rows(pieces, timed) for pieces in whole), key=itemgetter(0, 1))
    while gathered := list(islice(rows, PIECE)):
        yield _regathered(first, gathered)


def _rows(pieces: Iterable[KeyRows], timed: bool) -> Iterator[_Row]:
    for piece in pieces:
        stamps, sides, origins = piece.stamps or repeat(None), piece.sides or repeat(0), piece.origins or repeat(None)
        ids = piece.ids or repeat(None)
        for value, stamp, side, origin, id in zip(piece.values, stamps, sides, origins, ids, strict=False):
            yield time_of(stamp) if timed else 0, side, value, stamp, origin, id


def _regathered(like: KeyRows, rows: Sequence[_Row]) -> KeyRows:
    _, sides, values, stamps, origins, ids = (list(column) for column in zip(*rows, strict=True))
    return KeyRows(
        like.group,
        like.order,
        like.key,
        values,
        None if all(stamp is None for stamp in stamps) else stamps,
        None if like.sides is None else sides,
        None if None in origins else origins,
        None if all(id is None for id in ids) else ids,
    )
