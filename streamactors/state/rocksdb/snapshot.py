"""Snapshots of a RocksDB backend in the canonical format: rows as they are, read from a view of the database.

The view is pinned once what was dirty at the barrier has been written (see `freeze`): by `settle`, in slices;
or at once, when the first block is asked for or another snapshot begins.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from streamactors.errors import StreamactorsError
from streamactors.state.backend import BLOCK_SECONDS, StateBlock
from streamactors.state.pace import Pace
from streamactors.state.rocksdb.database import RowReader
from streamactors.state.rocksdb.freeze import Freeze
from streamactors.state.rocksdb.stores.lists import ListStore, tail_of_list
from streamactors.state.rocksdb.stores.maps import MapStore
from streamactors.state.rocksdb.stores.store import Store
from streamactors.state.rocksdb.timers import RocksTimers
from streamactors.state.storage_keys import LENGTH

_GROUP_BYTES: Final = 2


class _Part:
    """The rows of one state and key group that make one block."""

    def __init__(self, store: Store[Any] | RocksTimers, codec: Any, group: int) -> None:
        self.store = store
        self.codec = codec
        self.group = group
        self.entries = 0
        self.keys: list[Any] = []
        self.singles: list[bytes] = []
        self.maps: list[dict[Any, Any]] = []

    def block(self) -> StateBlock | None:
        """None if there is nothing in it."""
        if not self.keys:
            return None
        try:
            if self.maps:
                data = self.codec.encode_block(self.keys, self.maps)
            else:
                data = self.codec.encode_block([], [], self.keys, self.singles)
        except StreamactorsError as error:
            raise type(error)(f"{self.store.where}, {error}") from error
        rewritten = self.codec is not self.store.codec and isinstance(self.store, MapStore)
        return StateBlock(self.store.name, self.group, self.entries, data, rewritten)


class RocksSnapshot:
    """See `KeyedSnapshot`. `pin` makes the view, when nothing is left of `freeze`. `error`: what an entry could not be
    written for, which is this snapshot's error. `older`: the rows were written under what the codecs' `read_as` was
    told."""

    def __init__(
        self,
        checkpoint_id: int,
        stores: Mapping[bytes, Store[Any] | RocksTimers],
        pin: Callable[[], RowReader],
        freeze: Freeze | None,
        error: StreamactorsError | None,
        on_end: Callable[["RocksSnapshot"], None],
        monotonic: Callable[[], float],
        *,
        older: bool = False,
    ) -> None:
        self._older = older
        self.checkpoint_id = checkpoint_id
        self._stores = stores
        self._pin = pin
        self._freeze = freeze
        self._reader: RowReader | None = None
        self._error = error
        self._on_end = on_end
        self._monotonic = monotonic
        self._pace = Pace()
        self._over = False
        self._kept: tuple[bytes, bytes] | None = None
        """A row that was read and belongs to the next block."""
        self._key: Any = None
        """Of the list or map whose rows are being read."""
        self._begun = False
        """Its first row was read, and it is in no block so far."""
        self._length = 0
        self._tail = b""
        if freeze is None or not freeze.is_left:
            self._pin_at_once()

    def _pin_at_once(self) -> None:
        try:
            self.hurry()
        except BaseException:  # nobody gets to know it, to give it up
            self._thaw()
            raise

    async def settle(self, turn: Callable[[], Awaitable[None]]) -> None:
        """See `SettlingSnapshot`."""
        while self._freeze is not None and self._freeze.write_some():
            await turn()
        self.hurry()

    def hurry(self) -> None:
        """Take the point in time now, whatever is still to be written for it."""
        freeze = self._freeze
        if freeze is not None:
            freeze.write_all()
            self._error = freeze.error
        if self._reader is None and not self._over:
            self._reader = self._pin()
        self._thaw()

    def _thaw(self) -> None:
        freeze, self._freeze = self._freeze, None
        if freeze is not None:
            freeze.end()

    def next_block(self, budget_seconds: float = BLOCK_SECONDS, *, max_entries: int | None = None) -> StateBlock | None:
        limit = self._pace.items(budget_seconds)
        started = self._monotonic()
        try:
            self.hurry()
            block, rows = self._next(limit if max_entries is None else min(limit, max_entries))
        except BaseException:
            self.abort()
            raise
        if block is None:
            self.abort()
        else:
            self._pace.measured(rows, self._monotonic() - started)
        return block

    def abort(self) -> None:
        self._over = True
        self._thaw()
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        self._on_end(self)

    # ------------------------------------------------------------------------------------------------------ the rows
    def _next(self, limit: int) -> tuple[StateBlock | None, int]:
        if self._error is not None and self._reader is not None:
            raise self._error
        while self._reader is not None:
            first = self._take()
            if first is None:
                break
            part, rows = self._part(first, limit)
            if part is None:
                continue
            if (block := part.block()) is not None:
                return block, rows
        return None, 0

    def _take(self) -> tuple[bytes, bytes] | None:
        assert self._reader is not None
        kept, self._kept = self._kept, None
        return kept or next(self._reader, None)

    def _part(self, first: tuple[bytes, bytes], limit: int) -> tuple[_Part | None, int]:
        """Rows of the same state and group as the first; None for state that is declared no more."""
        assert self._reader is not None
        prefix = first[0][: _GROUP_BYTES + 1 + first[0][_GROUP_BYTES]]
        store = self._stores.get(prefix[_GROUP_BYTES:])
        if store is None:
            return None, 1
        codec = store.codec.older if self._older else store.codec
        part = _Part(store, codec, int.from_bytes(prefix[:_GROUP_BYTES], "big"))
        take, cut = self._taker(part), len(prefix)
        take(first[0][cut:], first[1])
        rows = 1
        for data, row in self._reader:
            if rows >= limit or not data.startswith(prefix):
                self._kept = data, row
                break
            take(data[cut:], row)
            rows += 1
        if isinstance(store, ListStore) and not self._continues(prefix):
            self._end_list(part)
        return part, rows

    def _continues(self, prefix: bytes) -> bool:
        """Whether the row that was kept belongs to the list that was read last."""
        data = self._kept[0] if self._kept else b""
        return data.startswith(prefix) and not _is_head(data[len(prefix) :])

    def _taker(self, part: _Part) -> Callable[[bytes, bytes], None]:
        match part.store:
            case ListStore() as lists:
                return lambda data, row: self._take_list(part, lists, data, row)
            case MapStore() as maps:
                return lambda data, row: self._take_map(part, maps, data, row)
            case RocksTimers() as timers:
                return lambda data, row: self._take_timer(part, timers, data, row)
            case store:
                return lambda data, row: self._take_value(part, store, data, row)

    def _take_timer(self, part: _Part, timers: RocksTimers, data: bytes, row: bytes) -> None:
        key, entry = timers.decoded(data, row)
        part.keys.append(key)
        part.maps.append(entry)
        part.entries += 1

    def _take_value(self, part: _Part, store: Store[Any], data: bytes, row: bytes) -> None:
        key, value = store.key_and_row(data, row)
        part.keys.append(key)
        part.singles.append(value)
        part.entries += 1

    def _take_head(self, store: Store[Any], data: bytes, row: bytes) -> bytes | None:
        """What a key's first row holds; None for its other rows."""
        if not _is_head(data):
            return None
        self._length = len(data)
        self._key, head = store.key_and_row(data[LENGTH.size :], row)
        self._begun = True
        return head

    def _add_key(self, part: _Part) -> None:
        """Once for all the blocks that a list or map is spread over, it counts as an entry."""
        part.keys.append(self._key)
        part.entries += self._begun
        self._begun = False

    def _take_list(self, part: _Part, store: ListStore, data: bytes, row: bytes) -> None:
        """The first row has the last items, which go behind the chunks."""
        if _is_head(data):
            self._end_list(part)
        head = self._take_head(store, data, row)
        if head is None:
            self._add_key(part)
            part.singles.append(row)
        else:
            self._tail = tail_of_list(head)

    def _end_list(self, part: _Part) -> None:
        if self._tail:
            self._add_key(part)
            part.singles.append(self._tail)
            self._tail = b""

    def _take_map(self, part: _Part, store: MapStore, data: bytes, row: bytes) -> None:
        if self._take_head(store, data, row) is None:
            inner, value = store.key_and_row(data[self._length :], row)
            if not part.keys or part.keys[-1] is not self._key:
                self._add_key(part)
                part.maps.append({})
            part.maps[-1][inner] = part.codec.values.decode(value)


def _is_head(data: bytes) -> bool:
    """Whether it is the first row of a list or map, without its group and state."""
    return len(data) == LENGTH.size + int(LENGTH.unpack_from(data)[0])
