"""Maps, a row for each entry (see `store`)."""

import struct
from collections.abc import Iterable, Iterator, Mapping
from heapq import merge
from itertools import islice
from typing import Any, Final

from streamactors.errors import UnserialisableKey
from streamactors.state.blocks import MapCodec
from streamactors.state.rocksdb.database import Rows
from streamactors.state.rocksdb.stores.store import ABSENT, HEAD, MISSING, SPILL, ManyRows, check_head

WHOLE: Final = 64
"""Up to so many entries a map is read as a whole."""
PRUNED: Final = 512
"""Entries of a map that expire at once, at most."""
LOADED: Final = 512
"""Entries of a map kept decoded between two writes of it."""
_MAP_HEAD: Final = struct.Struct(">BQ")


class MapCell:
    """`known` are entries in memory: all of them if `complete`, else ABSENT for those known not to exist. `changed` are
    keys not written, with whether the database holds them."""

    __slots__ = ("changed", "complete", "known", "size")

    def __init__(self, size: int, known: dict[Any, Any], *, complete: bool) -> None:
        self.size = size
        self.known = known
        self.complete = complete
        self.changed: dict[Any, bool] = {}


class MapStore(ManyRows[MapCell]):
    codec: MapCodec

    def read(self, key: Any, group: int, row: bytes | None) -> MapCell:
        if row is None:
            return MapCell(0, {}, complete=True)
        cell = self.bare(row)
        if cell.size > WHOLE:
            return cell
        return MapCell(cell.size, {inner: value for _, inner, value in self._stored_entries(key, group)}, complete=True)

    def bare(self, row: bytes) -> MapCell:
        """Nothing of it in memory."""
        mark, size = _MAP_HEAD.unpack_from(self.without_key(row))
        check_head(mark)
        return MapCell(size, {}, complete=False)

    def _stored_entries(self, key: Any, group: int, start: bytes = b"\0") -> Iterator[tuple[bytes, Any, Any]]:
        """Bytes of the map's key, the key, its value; in order."""
        head = self.row_of(key, group)
        cut = len(head)
        for data, row in self.database.rows(head + start, head + b"\xff"):
            inner, value = self.key_and_row(data[cut:], row)
            yield data[cut:], inner, self.codec.values.decode(value)

    def holds(self, entry: MapCell) -> bool:
        return entry.size > 0

    def weigh(self, entry: MapCell) -> int:
        return 1 + len(entry.known)

    def write(self, key: Any, group: int, entry: MapCell, rows: Rows) -> None:
        head = self.row_of(key, group)
        encode, known = self.codec.values.encode, entry.known
        made: Rows = {head: self.carrying(key, _MAP_HEAD.pack(HEAD, entry.size))}
        for inner, existed in entry.changed.items():
            value = known.get(inner, ABSENT)
            if value is not ABSENT:
                made[head + self.keys.encode(inner)] = self.carrying(inner, encode(value))
            elif existed:
                made[head + self.keys.encode(inner)] = None
        rows.update(made)
        self._settled(entry)

    def erase(self, key: Any, group: int, entry: MapCell, rows: Rows) -> None:
        head = self.row_of(key, group)
        rows[head] = None
        rows.update((head + self.keys.encode(inner), None) for inner, existed in entry.changed.items() if existed)
        self._settled(entry)

    def _settled(self, entry: MapCell) -> None:
        entry.changed = {}
        if len(entry.known) > LOADED:  # a new dict: somebody may be walking over the other
            entry.known, entry.complete = {}, False

    def prune(self, key: Any, group: int, entry: MapCell, found: Mapping[Any, Any], limit: int) -> MapCell | None:
        """`found`: by the map's keys, as they are stored."""
        before = entry.size
        for inner, stored in found.items():
            value = entry.known.get(inner, ABSENT if entry.complete or inner in entry.changed else stored)
            if value is not ABSENT and value[1] <= limit:
                self._remove(entry, inner)
        return entry if entry.size < before else None

    def unsaved(self, key: Any, limit: int) -> dict[Any, Any]:
        known = self.cached(key).known
        expired = ((inner, value) for inner, value in known.items() if value is not ABSENT and value[1] <= limit)
        return dict(islice(expired, PRUNED))

    def whole(self, key: Any, group: int, entry: MapCell) -> dict[Any, Any]:
        return self.codec.copy(dict(self.items(key, group, entry)))

    def add(self, key: Any, group: int, entry: dict[Any, Any]) -> None:
        for inner, value in entry.items():
            self.put(key, group, inner, value)

    # ------------------------------------------------------------------------------------------------- entry by entry
    def find(self, key: Any, group: int, cell: MapCell, inner: Any) -> Any:
        """The value, or ABSENT. Blocks if it has to be read."""
        value = cell.known.get(inner, MISSING)
        if value is not MISSING:
            return value
        if cell.complete:
            hash(inner)
            return ABSENT
        row = self.database.get(self.row_of(key, group) + self._inner(inner))
        value = ABSENT if row is None else self.codec.values.decode(self.without_key(row))
        if len(cell.known) > LOADED and not cell.changed:
            cell.known = {}
        cell.known[inner] = value
        return value

    def _inner(self, inner: Any) -> bytes:
        try:
            return self.keys.encode(inner)
        except UnserialisableKey as error:
            raise UnserialisableKey(f"{self.where}: {error}") from error

    def put(self, key: Any, group: int, inner: Any, value: Any) -> None:
        existed = self.find(key, group, self.entry(key, group), inner) is not ABSENT
        cell = self._changing(key, group)
        cell.changed.setdefault(inner, existed)
        cell.known[inner] = value
        cell.size += not existed
        self._weight += not existed
        if len(cell.changed) >= SPILL:
            self.write_out([key])

    def remove(self, key: Any, group: int, inner: Any) -> bool:
        """False if it was not there."""
        if self.find(key, group, self.entry(key, group), inner) is ABSENT:
            return False
        cell = self._changing(key, group)
        self.find(key, group, cell, inner)  # again: it may have been dropped meanwhile
        self._remove(cell, inner)
        if not cell.size:
            self.emptied.add(key)
        return True

    def _remove(self, cell: MapCell, inner: Any) -> None:
        cell.changed.setdefault(inner, True)
        if cell.complete:
            del cell.known[inner]
        else:
            cell.known[inner] = ABSENT
        cell.size -= 1

    def clear(self, key: Any, group: int) -> None:
        if self.entry(key, group).size == 0:
            return
        cell = self._changing(key, group)
        stored = cell.known if cell.complete else (inner for _, inner, _ in self._stored_entries(key, group))
        for inner in stored:
            cell.changed.setdefault(inner, True)
        cell.known, cell.complete, cell.size = {}, True, 0
        self.emptied.add(key)

    def _changing(self, key: Any, group: int) -> MapCell:
        if key not in self.dirty:
            self.mark(key, group)
        return self.entry(key, group)

    def items(self, key: Any, group: int, cell: MapCell) -> Iterable[tuple[Any, Any]]:
        return cell.known.items() if cell.complete else self.in_order(key, group, cell)

    def in_order(
        self, key: Any, group: int, cell: MapCell, first: bytes = b"\0", last: bytes = b"\xff"
    ) -> Iterator[tuple[Any, Any]]:
        """Entries from `first` up to `last`, in the order of their keys' bytes, without reading others."""
        known, changed = dict(cell.known), dict(cell.changed)
        new = [
            (data, inner, known[inner])
            for inner, existed in changed.items()
            if not existed and known.get(inner, ABSENT) is not ABSENT and first <= (data := self._inner(inner))
        ]
        for data, inner, value in merge(sorted(new, key=_data), self._stored_entries(key, group, first), key=_data):
            if data >= last:
                return
            if changed.get(inner):
                value = known.get(inner, ABSENT)
            if value is not ABSENT:
                yield inner, value


def _data(row: tuple[bytes, Any, Any]) -> bytes:
    return row[0]


class SpreadMap(Mapping[Any, Any]):
    """A map that is not in memory as a whole, for reading."""

    def __init__(self, store: MapStore, key: Any, group: int) -> None:
        self._store, self._key, self._group = store, key, group

    def __getitem__(self, inner: Any) -> Any:
        store = self._store
        value = store.find(self._key, self._group, store.entry(self._key, self._group), inner)
        if value is ABSENT:
            raise KeyError(inner)
        return value

    def __iter__(self) -> Iterator[Any]:
        return (inner for inner, _ in self._pairs())

    def __len__(self) -> int:
        return self._store.entry(self._key, self._group).size

    def values(self) -> Any:
        return [value for _, value in self._pairs()]

    def items(self) -> Any:
        return self._pairs()

    def _pairs(self) -> Iterator[tuple[Any, Any]]:
        store = self._store
        return store.in_order(self._key, self._group, store.entry(self._key, self._group))
