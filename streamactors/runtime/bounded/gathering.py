"""What a stage has taken in, in memory: rows by key, as they arrive. Pure."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from heapq import heapify, heappop
from itertools import islice
from typing import Any, Final

from streamactors.elements import Batch
from streamactors.runtime.bounded.ordering import MANY, RowOrder
from streamactors.runtime.bounded.rows import PIECE, KeyRows
from streamactors.state.key_groups import KeyGrouper

ROW_BYTES: Final = 96
"""About what a row takes beside its value: its number, and its places in the columns."""
KEY_BYTES: Final = 400
"""About what a key takes beside its rows."""


class Gathered:
    """Adding is a dict look-up per record; nothing is sorted before `sorted`, and then key by key, so that no step
    takes long, unless a key has many rows: these take a while, in small steps."""

    def __init__(self, grouper: KeyGrouper, order: Callable[[Any], bytes], *, sided: bool, timed: bool = True) -> None:
        """`timed` False: the order of arrival is kept."""
        self.bytes = 0
        """About what it takes in memory."""
        self._grouper = grouper
        self._order = order
        self._timed = timed
        self._values: list[Any] = []
        self._stamps: list[int | None] | None = None
        self._origins: list[int] | None = None
        self._ids: list[str | None] | None = None
        self._sides: list[int] | None = [] if sided else None
        self._rows: defaultdict[Any, list[int]] = defaultdict(list)
        self._keys: defaultdict[int, list[tuple[bytes, Any]]] = defaultdict(list)
        """By key group, with what they are ordered by."""

    def __len__(self) -> int:
        return len(self._values)

    def add(self, batch: Batch, side: int = 0) -> None:
        """A keyed batch. Raises UnserialisableKey."""
        assert batch.keys is not None
        first, known, rows = len(self._values), len(self._rows), self._rows
        for row, key in enumerate(batch.keys, first):
            rows[key].append(row)
        fresh = len(rows) - known
        self._place(list(islice(reversed(rows), fresh)))
        self._add_columns(batch, first)
        if self._sides is not None:
            self._sides += [side] * len(batch)
        self.bytes += batch.estimated_bytes() + len(batch) * ROW_BYTES + fresh * KEY_BYTES

    def _place(self, fresh: list[Any]) -> None:
        order = self._order
        for key, group in zip(fresh, self._grouper.groups(fresh), strict=True):
            self._keys[group].append((order(key), key))

    def _add_columns(self, batch: Batch, first: int) -> None:
        self._values += batch.values
        if self._stamps is not None or batch.timestamps is not None:
            self._stamps = [None] * first if self._stamps is None else self._stamps
            self._stamps += batch.timestamps or [None] * len(batch)
        if batch.ids is not None:
            self._ids = [None] * first if self._ids is None else self._ids
            self._ids += batch.ids
        elif self._ids is not None:
            self._ids += [None] * len(batch)
        if batch.origins is None:
            self._origins = None
        elif first == 0:
            self._origins = list(batch.origins)
        elif self._origins is not None:
            self._origins += batch.origins

    def has_hot_key(self) -> bool:
        """Whether some key's rows take long to sort."""
        return any(len(rows) > MANY for rows in self._rows.values())

    def sorted(self) -> Iterator[KeyRows]:
        """Takes everything out."""
        for group in sorted(self._keys):
            keys = self._keys.pop(group)
            heapify(keys)  # and not sort, which would take long in one go
            while keys:
                order, key = heappop(keys)
                yield from self._pieces(group, order, key, self._rows.pop(key))

    def _pieces(self, group: int, order: bytes, key: Any, rows: list[int]) -> Iterator[KeyRows]:
        for some in RowOrder(self._stamps if self._timed else None, self._sides).ordered(rows):
            for start in range(0, len(some), PIECE):
                yield self._piece(group, order, key, some[start : start + PIECE] if len(some) > PIECE else some)

    def _piece(self, group: int, order: bytes, key: Any, rows: list[int]) -> KeyRows:
        values, stamps, sides, origins, ids = self._values, self._stamps, self._sides, self._origins, self._ids
        taken = [values[row] for row in rows]
        for row in rows:  # nothing is freed all at once
            values[row] = None
        return KeyRows(
            group,
            order,
            key,
            taken,
            None if stamps is None else [stamps[row] for row in rows],
            None if sides is None else [sides[row] for row in rows],
            None if origins is None else [origins[row] for row in rows],
            None if ids is None else [ids[row] for row in rows],
        )
