"""Values, each in a row of its own (see `store`)."""

from collections.abc import Iterator
from typing import Any

from streamactors.state.blocks import ValueCodec
from streamactors.state.rocksdb.database import Rows
from streamactors.state.rocksdb.stores.store import ABSENT, Store, after


class ValueStore(Store[Any]):
    """An entry is the value, or ABSENT."""

    codec: ValueCodec

    def read(self, key: Any, group: int, row: bytes | None) -> Any:
        return ABSENT if row is None else self.codec.decode(self.without_key(row))

    def holds(self, entry: Any) -> bool:
        return entry is not ABSENT

    def weigh(self, entry: Any) -> int:
        return 1

    def write(self, key: Any, group: int, entry: Any, rows: Rows) -> None:
        rows[self.row_of(key, group)] = self.carrying(key, self.codec.encode(entry))

    def erase(self, key: Any, group: int, entry: Any, rows: Rows) -> None:
        rows[self.row_of(key, group)] = None

    def prune(self, key: Any, group: int, entry: Any, found: None, limit: int) -> Any:
        return ABSENT if entry is not ABSENT and entry[1] <= limit else None

    def unsaved(self, key: Any, limit: int) -> None:
        return None

    def whole(self, key: Any, group: int, entry: Any) -> Any:
        return self.codec.copy(entry)

    def add(self, key: Any, group: int, entry: Any) -> None:
        if key not in self.dirty:
            self.mark(key, group)
        self.young[key] = entry

    def row_of(self, key: Any, group: int) -> bytes:
        return self.prefixes[group] + self.keys.encode(key)

    def stored(self, group: int, *, keep_blocks: bool) -> Iterator[tuple[Any, bytes]]:
        start = self.prefixes[group]
        cut = len(start)
        for data, row in self.database.rows(start, after(start), keep_blocks=keep_blocks):
            yield self.key_and_row(data[cut:], row)
