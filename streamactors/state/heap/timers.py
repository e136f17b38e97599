"""Timers on the heap: a set for each key group, whose snapshots are those of other tables, and an index by time."""

from collections.abc import Iterable
from typing import Any

from streamactors.state.backend import StateBlock
from streamactors.state.blocks import TimersCodec
from streamactors.state.heap.tables import MISSING, Store, drop
from streamactors.state.key_groups import KeyGroupRange
from streamactors.state.stored import check_keys
from streamactors.state.timers import TimeIndex, TimerRow, TimerState, in_order


class _RowsCodec(TimersCodec):
    """Of tables whose keys are whole timers, with nothing behind them: there is nothing to copy."""

    stable = True

    def encode_block(self, keys: list[Any], entries: list[Any], single_keys: Any = (), singles: Any = ()) -> bytes:
        timers = [{(time, name): True} for time, _, _, name in keys]
        return super().encode_block([key for _, _, key, _ in keys], timers)

    def detach(self, entry: Any) -> Any:
        return entry

    def size(self, entry: Any) -> int:
        return 1


class HeapTimers(Store):
    """See `TimerStore`."""

    def __init__(
        self, uid: str, name: str, declaration: TimerState, groups: KeyGroupRange, max_parallelism: int
    ) -> None:
        super().__init__(uid, name, _RowsCodec(declaration), groups, max_parallelism)
        self.declaration = declaration
        self._index = TimeIndex()
        self._max_parallelism = max_parallelism

    def set(self, key: Any, group: int, time: int, name: str) -> TimerRow:
        row = time, group, key, name
        table = self.tables[group]
        if table.get(row, MISSING) is MISSING:
            table[row] = None
            self._index.add(row)
        return row

    def delete(self, key: Any, group: int, time: int, name: str) -> None:
        row = time, group, key, name
        if self.take(row):
            self._index.remove(row)

    def earliest(self) -> int | None:
        return self._index.earliest()

    async def bring(self, limit: int) -> None:
        """All is in memory."""

    def draw(self, limit: int, count: int) -> list[TimerRow]:
        return self._index.take_first(limit, count)

    def put_back(self, rows: Iterable[TimerRow]) -> None:
        for row in rows:
            if row in self.table(row[1]):
                self._index.add(row)

    def pending(self, row: TimerRow) -> bool:
        return row in self.table(row[1])

    def take(self, row: TimerRow) -> bool:
        return drop(self.tables[row[1]], row)

    async def early(self, groups: range, limit: int) -> list[TimerRow]:
        own = range(max(groups.start, self.groups.start), min(groups.stop, self.groups.stop))
        return in_order(row for group in own for row in self.table(group) if row[0] <= limit)

    def add(self, block: StateBlock) -> None:
        """Restore a block. Raises what `HeapBackend.restore` does."""
        keys, entries = self.codec.decode_block(block.data, rewritten=block.rewritten)
        check_keys(keys, block.group, self._max_parallelism, self.where)
        for key, timers in zip(keys, entries, strict=True):
            for time, name in timers:
                self.set(key, block.group, time, name)

    def close(self) -> None:
        super().close()
        self._index = TimeIndex()
