"""Sweeping RocksDB: rows are read off the loop, a bounded number at a time; what has expired is deleted on it.

Neither the block cache nor that of decoded entries notices: rows are read past the one, and what is not in the other is
written without it. What waits to be written is in memory, and newer than its rows: it is looked at there. A key that
was written after its rows were read is left to the next pass; so is one that is frozen by then, since it is written
before it is changed; and the key in hand, since its operator may be iterating over what it holds.
"""

from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, Final, NamedTuple, TypeVar

from streamactors.state.backend import Cursor
from streamactors.state.rocksdb.database import RowReader
from streamactors.state.rocksdb.stores.lists import ExpiredChunks, ListStore, head_of_list, tail_of_list
from streamactors.state.rocksdb.stores.maps import PRUNED, MapStore
from streamactors.state.rocksdb.stores.store import Shared, Store, after
from streamactors.state.storage_keys import LENGTH
from streamactors.state.ttl import Turn, time_in, times_in

T = TypeVar("T")
RunBlocking = Callable[[Callable[[], None]], Coroutine[Any, Any, None]]

_ROWS: Final = 512
"""Read at a time: about a millisecond, most of which holds the interpreter's lock."""
_SLICE: Final = 32
"""Keys changed between two turns."""
_LOOKED_AT: Final = 4096
"""Keys of which it is only asked what group they are of."""


class _Found(NamedTuple):
    """A key of which something has expired: see `Store.expire`."""

    key: Any
    what: Any
    stored: Any


async def sweep_group(
    store: Store[Any], group: int, shared: Shared, cursor: Cursor, run_blocking: RunBlocking, turn: Turn
) -> None:
    """Once over all keys that the group has now. May be cancelled."""
    await _sweep_dirty(store, group, cursor, turn)
    rows = _sweep_of(store, group)
    while rows.start is not None:
        step = _Step(store, rows, shared)
        try:
            await run_blocking(step.read)
            for part in _slices(step.found):
                fresh = [each for each in part if step.is_fresh(each.key) and not cursor.stands_on(each.key, group)]
                store.expire(group, fresh, step.limit)
                await turn()
        finally:
            step.let_go()


async def _sweep_dirty(store: Store[Any], group: int, cursor: Cursor, turn: Turn) -> None:
    lifetime = store.codec.lifetime
    assert lifetime is not None
    waiting: list[Any] = []
    for part in _slices(list(store.unwritten()), _LOOKED_AT):
        waiting += [key for key, marked in part if marked in (group, ~group)]
        await turn()
    while waiting:
        keys = waiting[-_SLICE:]
        del waiting[-_SLICE:]
        limit = lifetime.limit()
        here = [key for key in keys if store.is_unwritten(key) and not cursor.stands_on(key, group)]
        found = [_Found(key, store.unsaved(key, limit), None) for key in here]
        store.expire(group, found, limit)
        waiting += [each.key for each in found if isinstance(store, MapStore) and len(each.what) == PRUNED]
        await turn()


def _slices(items: list[T], size: int = _SLICE) -> Iterator[list[T]]:
    return (items[at : at + size] for at in range(0, len(items), size))


# ------------------------------------------------------------------------------------------------------- reading rows
class _Step:
    """Some rows. `read` may run in a thread while the loop goes on, which notes what is written meanwhile."""

    def __init__(self, store: Store[Any], rows: "_Rows", shared: Shared) -> None:
        lifetime = store.codec.lifetime
        assert lifetime is not None
        self.limit = lifetime.limit()
        self.found: list[_Found] = []
        self.stale: set[Any] = set()
        self._store = store
        self._rows = rows
        self._shared = shared
        shared.on_flush.append(self._written)

    def _written(self, state: str, keys: list[Any]) -> None:
        if state == self._store.name:
            self.stale.update(keys)

    def is_fresh(self, key: Any) -> bool:
        """Whether what was found of it may still be looked up in its entry."""
        return key not in self.stale and key not in self._store.frozen

    def read(self) -> None:
        """Blocks."""
        self.found = list(self._rows.some(self.limit))

    def let_go(self) -> None:
        self._shared.on_flush.remove(self._written)


class _Rows:
    """The rows of one group, from `start` on; None when all are read."""

    def __init__(self, store: Store[Any], group: int) -> None:
        self._store = store
        self._group = group
        self._prefix = store.prefixes[group]
        self._cut = len(self._prefix)
        self.start: bytes | None = self._prefix

    def some(self, limit: int) -> Iterator[_Found]:
        """What has expired in the next rows; moves `start`."""
        assert self.start is not None
        reader = self._store.database.rows(self.start, after(self._prefix), keep_blocks=False)
        self.start = None
        try:
            yield from self._find(self._bounded(reader), limit)
        finally:
            reader.close()

    def _bounded(self, reader: RowReader) -> Iterator[tuple[bytes, bytes]]:
        for count, (data, row) in enumerate(reader, 1):
            yield data, row
            if count == _ROWS:
                self.start = data + b"\0"
                return

    def _find(self, rows: Iterable[tuple[bytes, bytes]], limit: int) -> Iterator[_Found]:
        for data, row in rows:
            time = time_in(self._store.without_key(row))
            if time <= limit:
                key, _ = self._store.key_and_row(data[self._cut :], row)
                yield _Found(key, None, (None, time))

    def _head(self, data: bytes) -> bytes | None:
        """What all rows of the key begin with, if this is its first one."""
        length = self._cut + LENGTH.size + LENGTH.unpack_from(data, self._cut)[0]
        return data if len(data) == length else None

    def _key(self, head: bytes, row: bytes) -> Any:
        return self._store.key_and_row(head[self._cut + LENGTH.size :], row)[0]


class _ListRows(_Rows):
    """Chunks are looked at from the first on, up to one that has not expired."""

    _store: ListStore

    def __init__(self, store: ListStore, group: int) -> None:
        super().__init__(store, group)
        self._again: tuple[bytes, int] | None = None
        """A list that is looked at once more, since rows ended before its chunks, and its first chunk then."""

    def _find(self, rows: Iterable[tuple[bytes, bytes]], limit: int) -> Iterator[_Found]:
        store, rows = self._store, iter(rows)
        for data, row in rows:
            head = self._head(data)
            if head is None:
                continue
            chunks, _, first = head_of_list(store.without_key(row))
            if chunks > first:
                sizes = self._expired_chunks(rows, head, range(first, chunks), limit)
            else:
                sizes = []
                times = times_in(tail) if (tail := tail_of_list(store.without_key(row))) else []
                if not times or times[0] > limit:
                    continue
            if sizes or chunks == first:
                key = self._key(head, row)
                yield _Found(key, ExpiredChunks(first, sizes), store.read(key, self._group, row))
            if len(sizes) < chunks - first:  # past the chunks that have not expired, or were not read
                return

    def _expired_chunks(self, rows: Iterator[tuple[bytes, bytes]], head: bytes, chunks: range, limit: int) -> list[int]:
        """The sizes of the leading ones. Moves `start`: to the list once more if there may be others, else past it."""
        sizes: list[int] = []
        for _, row in rows:
            times = times_in(row)
            if max(times) > limit:
                break
            sizes.append(len(times))
            if len(sizes) == len(chunks):
                return sizes
        else:
            if self._again != (head, chunks.start):
                self.start, self._again = head, (head, chunks.start)
                return sizes
        self.start = after(head)
        return sizes


class _MapRows(_Rows):
    _store: MapStore

    def __init__(self, store: MapStore, group: int) -> None:
        super().__init__(store, group)
        self._first: tuple[bytes, Any] | None = None
        """Of the map whose rows come: what they begin with, and its key."""

    def _find(self, rows: Iterable[tuple[bytes, bytes]], limit: int) -> Iterator[_Found]:
        store = self._store
        found: dict[Any, Any] = {}
        for data, row in rows:
            if (head := self._head(data)) is not None:
                yield from self._found(found)
                found = {}
                self._first = head, self._key(head, row)
            elif self._first is not None and data.startswith(self._first[0]):
                time = time_in(store.without_key(row))
                if time <= limit:
                    inner, _ = store.key_and_row(data[len(self._first[0]) :], row)
                    found[inner] = None, time
        yield from self._found(found)

    def _found(self, found: dict[Any, Any]) -> Iterator[_Found]:
        if found and self._first is not None:
            head, key = self._first
            row = self._store.database.get(head)
            if row is not None:
                yield _Found(key, found, self._store.bare(row))


def _sweep_of(store: Store[Any], group: int) -> _Rows:
    match store:
        case ListStore():
            return _ListRows(store, group)
        case MapStore():
            return _MapRows(store, group)
    return _Rows(store, group)
