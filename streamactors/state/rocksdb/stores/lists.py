"""Lists, in chunks (see `store`)."""

import struct
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Final, NamedTuple

from streamactors.state.blocks import ListCodec
from streamactors.state.rocksdb.database import Rows
from streamactors.state.rocksdb.stores.store import HEAD, SPILL, ManyRows, check_head
from streamactors.state.storage_keys import LENGTH

TAIL: Final = 64
"""Items of a list from which on they become a chunk."""
CHUNK: Final = 1024
"""Items of a chunk at most."""
_HEAD_AND_FIRST: Final = ord("F")
_LIST_HEAD: Final = struct.Struct(">BIQ")
_LIST_HEAD_AND_FIRST: Final = struct.Struct(">BIQI")


class ListCell:
    """The chunks from `first` up to `chunks` make up the list, with `sealed` items; `tail` comes after them. The
    database has those from `oldest` up to `stored`: some may be left from before it was cleared, or have expired."""

    __slots__ = ("chunks", "first", "oldest", "sealed", "stored", "tail")

    def __init__(self, chunks: int, sealed: int, tail: list[Any], first: int = 0) -> None:
        self.chunks = self.stored = chunks
        self.first = self.oldest = first
        self.sealed = sealed
        self.tail = tail

    def __len__(self) -> int:
        return self.sealed + len(self.tail)

    def clear(self) -> None:
        self.first = self.chunks = self.sealed = 0
        self.tail = []


class ExpiredChunks(NamedTuple):
    """Of one list, one after another: the number of the first, and how many items are in each."""

    first: int
    sizes: Sequence[int]


class ListStore(ManyRows[ListCell]):
    codec: ListCodec

    def read(self, key: Any, group: int, row: bytes | None) -> ListCell:
        if row is None:
            return ListCell(0, 0, [])
        data = self.without_key(row)
        chunks, sealed, first = head_of_list(data)
        tail = tail_of_list(data)
        return ListCell(chunks, sealed, self.codec.items.decode_many(tail) if tail else [], first)

    def holds(self, entry: ListCell) -> bool:
        return len(entry) > 0

    def weigh(self, entry: ListCell) -> int:
        return 1 + len(entry.tail)

    def write(self, key: Any, group: int, entry: ListCell, rows: Rows) -> None:
        head = self.row_of(key, group)
        encode, tail = self.codec.items.encode_many, entry.tail
        sealing = [] if len(tail) < TAIL else [tail[at : at + CHUNK] for at in range(0, len(tail), CHUNK)]
        if sealing and len(sealing[-1]) < TAIL:
            tail = sealing.pop()
        elif sealing:
            tail = []
        chunks = [encode(items) for items in sealing]
        last = encode(tail) if tail else b""
        count, sealed = entry.chunks + len(chunks), entry.sealed + sum(map(len, sealing))
        rows[head] = self.carrying(key, _packed_head(count, sealed, entry.first) + last)
        rows.update((head + LENGTH.pack(number), None) for number in range(entry.oldest, entry.first))
        rows.update((head + LENGTH.pack(number), data) for number, data in enumerate(chunks, entry.chunks))
        rows.update((head + LENGTH.pack(number), None) for number in range(max(count, entry.oldest), entry.stored))
        entry.chunks = entry.stored = count
        entry.oldest = entry.first
        entry.sealed, entry.tail = sealed, tail

    def erase(self, key: Any, group: int, entry: ListCell, rows: Rows) -> None:
        head = self.row_of(key, group)
        rows[head] = None
        rows.update((head + LENGTH.pack(number), None) for number in range(entry.oldest, entry.stored))
        entry.first = entry.oldest = entry.chunks = entry.stored = 0

    def items(self, key: Any, group: int, entry: ListCell) -> Iterator[Any]:
        """Chunk by chunk; the items of chunks are made anew each time."""
        return chain(self._sealed(key, group, entry), entry.tail) if entry.sealed else iter(entry.tail)

    def _sealed(self, key: Any, group: int, entry: ListCell) -> Iterator[Any]:
        head = self.row_of(key, group)
        reader = self.database.rows(head + LENGTH.pack(entry.first), head + LENGTH.pack(entry.chunks))
        return chain.from_iterable(self.codec.items.decode_many(row) for _, row in reader)

    def whole(self, key: Any, group: int, entry: ListCell) -> list[Any]:
        return [*self._sealed(key, group, entry), *self.codec.copy(entry.tail)]

    def prune(self, key: Any, group: int, entry: ListCell, found: ExpiredChunks, limit: int) -> ListCell | None:
        """From its start on, which is the oldest but for a clock that was turned back: whole chunks, and once there are
        none, of the tail."""
        before = len(entry)
        stop = found.first + len(found.sizes)
        if found.first <= entry.first < stop <= entry.chunks:  # else it was cleared meanwhile, or it did that before
            entry.sealed -= sum(found.sizes[entry.first - found.first :])
            entry.first = stop
        if not entry.sealed:
            young = next((number for number, (_, time) in enumerate(entry.tail) if time > limit), len(entry.tail))
            del entry.tail[:young]
        return entry if len(entry) < before else None

    def unsaved(self, key: Any, limit: int) -> ExpiredChunks:
        return ExpiredChunks(0, ())

    def add(self, key: Any, group: int, entry: list[Any]) -> None:
        self.extend(key, group, entry)

    def extend(self, key: Any, group: int, items: list[Any]) -> None:
        if key not in self.dirty:
            self.mark(key, group)
        tail = self.entry(key, group).tail
        tail.extend(items)
        self._weight += len(items)
        if len(tail) >= SPILL:
            self.write_out([key])


def _packed_head(chunks: int, sealed: int, first: int) -> bytes:
    if first:
        return _LIST_HEAD_AND_FIRST.pack(_HEAD_AND_FIRST, chunks, sealed, first)
    return _LIST_HEAD.pack(HEAD, chunks, sealed)


def head_of_list(data: bytes) -> tuple[int, int, int]:
    """The number behind the last chunk, the items in all chunks, and the number of the first one."""
    if data[0] == _HEAD_AND_FIRST:
        _, chunks, sealed, first = _LIST_HEAD_AND_FIRST.unpack_from(data)
        return chunks, sealed, first
    mark, chunks, sealed = _LIST_HEAD.unpack_from(data)
    check_head(mark)
    return chunks, sealed, 0


def tail_of_list(data: bytes) -> bytes:
    """The last items, encoded; empty if all are in chunks."""
    return data[(_LIST_HEAD_AND_FIRST if data[0] == _HEAD_AND_FIRST else _LIST_HEAD).size :]
