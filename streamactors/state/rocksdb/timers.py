"""Timers in RocksDB: rows in the order of their times, and the nearest of them in memory.

A row's key is the key group, the hidden state's name, the time (8 bytes that sort), the key with its length, and the
name; its value is what the key's bytes do not tell of the key. So the next timers of a key group are a range of rows.

Of each key group there is a *horizon*: every timer before it that is pending is in memory (*near*), whatever the
database holds; of those behind it (*far*) nobody knows without reading. A group without a horizon is near as a whole.
Changes are `dirty` until they are written: at most `DIRTY`, and none when a snapshot begins (`write_all`). Rows are
read by `bring` and `early` alone, in a thread, from the horizon on, which moves behind them.

Invariants: near and far timers overlap nowhere; a timer is pending if it is near, or dirty and set, or far, stored and
not dirty and deleted. What was set and went again while it was dirty and known not to be stored never reaches the
database.

A group's count is exact while it is near as a whole. Else whoever sets a far timer twice, or deletes one that is not
there, makes it inexact; it is right again when the group's last row has been read, and never zero before.
"""

import struct
from collections.abc import Awaitable, Callable, Iterable
from itertools import islice
from typing import Any, Final, NamedTuple

from streamactors.elements import MIN_TIME
from streamactors.errors import StateAccessError, StreamactorsError, UnserialisableKey
from streamactors.state.backend import StateBlock
from streamactors.state.blocks import TimersCodec
from streamactors.state.rocksdb.database import WRITE_ROWS, Database, Rows
from streamactors.state.rocksdb.stores.store import Shared, after
from streamactors.state.storage_keys import LENGTH
from streamactors.state.stored import check_keys
from streamactors.state.timers import TimeIndex, TimerRow, TimerState, in_order

RunBlocking = Callable[[Callable[[], None]], Awaitable[None]]
Groups = set[int]

NEAR: Final = 8192
"""Timers in memory, about: more only where so many are due at once."""
DIRTY: Final = 4096
_WRITTEN: Final = 256
"""Rows written behind at a time."""

_TIME: Final = struct.Struct(">Q")
_BIAS: Final = 1 << 63
_NEW, _SET, _GONE = range(3)
"""Of a dirty timer: to be written, and not stored so far; to be written; to be deleted."""


class _Horizon(NamedTuple):
    """The first row that is far: its time, and its bytes behind the group and the state."""

    time: int
    row: bytes


class _Read(NamedTuple):
    """What was read of one group; `horizon` None: all of it."""

    group: int
    rows: list[TimerRow]
    horizon: _Horizon | None


class RocksTimers:
    """See `TimerStore`. `near` and `dirty`: how many there may be."""

    def __init__(
        self,
        declaration: TimerState,
        name: str,
        shared: Shared,
        run_blocking: RunBlocking,
        *,
        near: int = NEAR,
        dirty: int = DIRTY,
    ) -> None:
        self.name = name
        self.declaration = declaration
        self.where = f"operator {shared.uid!r}, state {name!r}"
        self.codec = TimersCodec(declaration)
        self.codec.made_by(lambda: TimersCodec(declaration))
        self.state = bytes([len(name.encode())]) + name.encode()
        self.counts: dict[int, int] = dict.fromkeys(shared.groups, 0)
        self.dirty: dict[TimerRow, int] = {}
        self._shared = shared
        self._run_blocking = run_blocking
        self._prefixes = {group: group.to_bytes(2, "big") + self.state for group in shared.groups}
        self._capacity = max(near, 16)
        self._portion = max(self._capacity // max(len(shared.groups), 1), 4)
        """Rows of a group that are read at a time."""
        self._dirty_limit = dirty
        self._near: set[TimerRow] = set()
        self._near_counts: dict[int, int] = dict.fromkeys(shared.groups, 0)
        self._index = TimeIndex()
        self._horizons: dict[int, _Horizon] = {}
        self._closed = False

    @property
    def _database(self) -> Database:
        return self._shared.database

    # ------------------------------------------------------------------------------------------------------- changing
    def set(self, key: Any, group: int, time: int, name: str) -> TimerRow:
        row = time, group, key, name
        self._check_open()
        if row in self._near:
            return row
        state = self.dirty.get(row)
        if self._is_near(row):
            if state is None:
                self._check_key(key)
            self._add_near(row)
            self.dirty[row] = _NEW if state is None else _SET
        elif state in (None, _GONE):
            self._check_key(key)
            self.dirty[row] = _SET
        else:
            return row
        self.counts[group] += 1
        self._write_behind()
        return row

    def delete(self, key: Any, group: int, time: int, name: str) -> None:
        row = time, group, key, name
        self._check_open()
        if row in self._near:
            self._index.remove(row)
            self.take(row)
        elif not self._is_near(row):
            self._delete_far(row)

    def _delete_far(self, row: TimerRow) -> None:
        state, group = self.dirty.get(row), row[1]
        if state == _GONE:
            return
        self._count_one_less(group)
        if state == _NEW:
            del self.dirty[row]
        else:
            self.dirty[row] = _GONE
            self._write_behind()

    def pending(self, row: TimerRow) -> bool:
        if row in self._near:
            return True
        state = self.dirty.get(row)
        if state is not None or self._is_near(row):
            return state is not None and state != _GONE
        return self._database.get(self._prefixes[row[1]] + self._row(row)) is not None

    def take(self, row: TimerRow) -> bool:
        self._check_open()
        if row not in self._near:
            return False
        group = row[1]
        self._near.discard(row)
        self._near_counts[group] -= 1
        self._count_one_less(group)
        if self.dirty.get(row) == _NEW:
            del self.dirty[row]
        else:
            self.dirty[row] = _GONE
            self._write_behind()
        return True

    def _count_one_less(self, group: int) -> None:
        """Where some are far the count may be too low; yet whoever takes over the files looks by it where there are
        any."""
        left = self.counts[group] - 1
        self.counts[group] = max(left, 1) if group in self._horizons else left

    def _check_open(self) -> None:
        if self._closed:
            raise StateAccessError(f"{self.where}: the operator has been stopped")

    def _check_key(self, key: Any) -> None:
        """Before it is in memory: else a snapshot would meet what it can't write."""
        if type(key) is not str and type(key) is not int:
            try:
                self._shared.keys.encode(key)
            except UnserialisableKey as error:
                raise UnserialisableKey(f"{self.where}: {error}") from error

    # ---------------------------------------------------------------------------------------------------- near and far
    def _is_near(self, row: TimerRow) -> bool:
        horizon = self._horizons.get(row[1])
        if horizon is None or row[0] < horizon.time:
            return True
        return row[0] == horizon.time and self._row(row) < horizon.row

    def _add_near(self, row: TimerRow) -> None:
        self._near.add(row)
        self._near_counts[row[1]] += 1
        self._index.add(row)
        if len(self._near) > self._capacity + self._capacity // 4:
            self._forget_last()

    def _forget_last(self) -> None:
        """Those behind a time are far from now on."""
        cut = self._index.cut(len(self._near) - self._capacity)
        if cut is None:
            return
        start, gone = cut
        horizon = _Horizon(start, _TIME.pack(start + _BIAS))
        for group in self._near_counts:
            known = self._horizons.get(group)
            if known is None or horizon < known:
                self._horizons[group] = horizon
        for row in gone:  # what is drawn at the moment is not in the index, and stays near
            if row in self._near:
                self._near.discard(row)
                self._near_counts[row[1]] -= 1

    # -------------------------------------------------------------------------------------------------------- in order
    def earliest(self) -> int | None:
        """Behind a horizon there may be none at that time."""
        times = [horizon.time for horizon in self._horizons.values()]
        if (near := self._index.earliest()) is not None:
            times.append(near)
        return min(times, default=None)

    def draw(self, limit: int, count: int) -> list[TimerRow]:
        """None behind the first horizon: others may come before them."""
        last = min((horizon.time for horizon in self._horizons.values()), default=limit)
        return self._index.take_first(min(last, limit), count)

    def put_back(self, rows: Iterable[TimerRow]) -> None:
        for row in rows:
            if row in self._near:
                self._index.add(row)

    # --------------------------------------------------------------------------------------------------------- reading
    async def bring(self, limit: int) -> None:
        while groups := self._wanting(limit):
            await self._read(groups)

    def _wanting(self, limit: int) -> list[int]:
        """The groups of which more has to be read for `draw` to give what comes next. Of a group whose horizon has come
        closer while some of its timers were drawn, those that were put back lie behind it, however many they are."""
        near, first = self._near_counts, self._index.earliest()
        return [
            group
            for group in self._short(limit)
            if near[group] < self._portion or first is None or self._horizons[group].time < first
        ]

    def _short(self, limit: int) -> list[int]:
        """The groups that may have timers up to `limit` behind their horizon."""
        return [group for group, horizon in self._horizons.items() if horizon.time <= limit]

    async def early(self, groups: range, limit: int) -> list[TimerRow]:
        while short := [group for group in self._short(limit) if group in groups]:
            await self._read(short)
        return in_order(row for row in self._near if row[1] in groups and row[0] <= limit)

    async def _read(self, groups: list[int]) -> None:
        found: list[_Read] = []
        starts = [(group, self._horizons[group].row) for group in groups]

        def read() -> None:
            found.extend(self._portion_of(group, start) for group, start in starts)

        await self._run_blocking(read)
        for each in found:
            self._keep(each)
        self._add_dirty({each.group for each in found})
        for each in found:
            if each.horizon is None:
                self.counts[each.group] = self._near_counts[each.group]

    def _portion_of(self, group: int, start: bytes) -> _Read:
        """Blocks."""
        prefix = self._prefixes[group]
        cut = len(prefix)
        rows: list[TimerRow] = []
        reader = self._database.rows(prefix + start, after(prefix), keep_blocks=False)
        try:
            for data, value in reader:
                if len(rows) == self._portion:
                    return _Read(group, rows, _Horizon(_time_in(data[cut:]), data[cut:]))
                rows.append(self._decoded(data[cut:], value, group))
        finally:
            reader.close()
        return _Read(group, rows, None)

    def _keep(self, read: _Read) -> None:
        if read.horizon is None:
            del self._horizons[read.group]
        else:
            self._horizons[read.group] = read.horizon
        for row in read.rows:
            if self.dirty.get(row) != _GONE:
                self._add_read(row)

    def _add_dirty(self, groups: Groups) -> None:
        for row, state in self.dirty.items():
            if state != _GONE and row[1] in groups and self._is_near(row):
                self._add_read(row)

    def _add_read(self, row: TimerRow) -> None:
        if row not in self._near:
            self._near.add(row)
            self._near_counts[row[1]] += 1
            self._index.add(row)

    # ------------------------------------------------------------------------------------------------------------ rows
    def _row(self, row: TimerRow) -> bytes:
        """Its bytes behind the group and the state."""
        time, _, key, name = row
        data = self._shared.keys.encode(key)
        return _TIME.pack(time + _BIAS) + LENGTH.pack(len(data)) + data + name.encode("utf-8", "surrogatepass")

    def _decoded(self, data: bytes, value: bytes, group: int) -> TimerRow:
        start = _TIME.size + LENGTH.size
        end = start + LENGTH.unpack_from(data, _TIME.size)[0]
        keys = self._shared.keys
        key = keys.uncarried(value) if value else keys.plain(data[start:end])
        return _time_in(data), group, key, data[end:].decode("utf-8", "surrogatepass")

    def decoded(self, data: bytes, value: bytes) -> tuple[Any, dict[Any, bool]]:
        """Key and entry, as the codec has them, of a row without its group and state."""
        time, _, key, name = self._decoded(data, value, 0)
        return key, {(time, name): True}

    # --------------------------------------------------------------------------------------------------------- writing
    def _write_behind(self) -> None:
        if len(self.dirty) > self._dirty_limit:
            self._write(_WRITTEN)

    def write_all(self) -> StreamactorsError | None:
        """Before a snapshot of the database: from then on it holds all that is pending. The error of what can't be
        written, if there is any."""
        try:
            while self.dirty:
                self._write(WRITE_ROWS)
        except StreamactorsError as error:
            return error
        return None

    def _write(self, limit: int) -> None:
        rows: Rows = {}
        written = list(islice(self.dirty.items(), limit))
        for row, state in written:
            stored = self._prefixes[row[1]] + self._row(row)
            rows[stored] = None if state == _GONE else self._shared.keys.carried(row[2]) or b""
        self._database.write(rows)
        for row, _ in written:
            del self.dirty[row]

    # --------------------------------------------------------------------------------------------- as states are kept
    def count(self) -> int:
        return sum(self.counts.values())

    def add(self, block: StateBlock, max_parallelism: int) -> None:
        """Restore a block. Raises what `RocksDBBackend.restore` does."""
        keys, entries = self.codec.decode_block(block.data, rewritten=block.rewritten)
        check_keys(keys, block.group, max_parallelism, self.where)
        for key, timers in zip(keys, entries, strict=True):
            for time, name in timers:
                self.set(key, block.group, time, name)

    def took_over(self) -> None:
        """The database has been given rows, and `counts` tells of which groups."""
        for group, count in self.counts.items():
            if count and not self._near_counts[group]:
                self._horizons[group] = _Horizon(MIN_TIME, _TIME.pack(0))

    def close(self) -> None:
        self._closed = True
        self.dirty, self._near, self._horizons = {}, set(), {}
        self._index = TimeIndex()


def _time_in(data: bytes) -> int:
    return int(_TIME.unpack_from(data)[0]) - _BIAS
