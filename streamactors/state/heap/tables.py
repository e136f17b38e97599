"""The tables of keyed state on the heap, and snapshots of them: see `heap`."""

from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from typing import Any, Final

from streamactors.errors import StreamactorsError
from streamactors.state.backend import BLOCK_SECONDS, StateBlock
from streamactors.state.blocks import EntryCodec
from streamactors.state.bound import closed_tables, no_tables
from streamactors.state.key_groups import KeyGroupRange
from streamactors.state.pace import Pace
from streamactors.state.versions import StateGroup, Version

MISSING: Final[Any] = object()


class GuardedTable:
    """A group's dict while snapshots wait for it, and as long as it has a version. Entries are reached by `get` to be
    read, by `[]` to be changed. When nobody is left to be told of a change, `tables[group]` is the dict again."""

    __slots__ = ("_group", "_tables", "captures", "reading_touches", "table", "version")

    def __init__(self, tables: list[Any], group: int, reading_touches: bool) -> None:
        self._tables = tables
        self._group = group
        self.table: dict[Any, Any] = tables[group]
        self.reading_touches = reading_touches
        self.captures: list[Capture] = []
        self.version: Version | None = None
        tables[group] = self

    def get(self, key: Any, default: Any = None) -> Any:
        if self.reading_touches:
            self._touch(key)
        return self.table.get(key, default)

    def __getitem__(self, key: Any) -> Any:
        self._touch(key)
        return self.table[key]

    def __setitem__(self, key: Any, entry: Any) -> None:
        self._touch(key)
        self.table[key] = entry

    def pop(self, key: Any, default: Any) -> Any:
        self._touch(key)
        return self.table.pop(key, default)

    def clear(self) -> None:
        """Give back the memory of an empty table."""
        self.table.clear()

    def __len__(self) -> int:
        return len(self.table)

    def _touch(self, key: Any) -> None:
        for capture in self.captures:
            capture.touch(key)
        if self.version is not None:
            self.changed()

    def versioned(self) -> Version:
        if self.version is None:
            self.version = Version()
        return self.version

    def changed(self) -> None:
        self.version = None
        self.step_aside()

    def step_aside(self) -> None:
        """If nobody needs it. Whoever still holds it after that may go on using it."""
        if not self.captures and self.version is None and self._tables[self._group] is self:
            self._tables[self._group] = self.table


def drop(table: Any, key: Any) -> bool:
    """False if it was not there. A dict that has become empty keeps its memory until it is told."""
    if table.pop(key, MISSING) is MISSING:
        return False
    if not table:
        table.clear()
    return True


class Store:
    """One state of one subtask: a table for each key group."""

    def __init__(
        self, uid: str, name: str, codec: EntryCodec[Any], groups: KeyGroupRange, max_parallelism: int
    ) -> None:
        self.name = name
        self.where = f"operator {uid!r}, state {name!r}"
        self.codec = codec
        self.groups = groups
        self.tables = no_tables(self.where, groups, max_parallelism)
        for group in groups:
            self.tables[group] = {}

    def table(self, group: int) -> dict[Any, Any]:
        """The dict itself, also where it is guarded."""
        found = self.tables[group]
        return found.table if isinstance(found, GuardedTable) else found

    def guard(self, group: int) -> GuardedTable:
        found = self.tables[group]
        if not isinstance(found, GuardedTable):
            found = GuardedTable(self.tables, group, reading_touches=not self.codec.immutable)
        return found

    def version(self, group: int) -> Version:
        return self.guard(group).versioned()

    def changed(self, group: int) -> None:
        """By whoever reaches for `table`."""
        found = self.tables[group]
        if isinstance(found, GuardedTable):
            found.changed()

    def release(self, group: int, capture: "Capture") -> None:
        found = self.tables[group]
        if isinstance(found, GuardedTable) and capture in found.captures:
            found.captures.remove(capture)
            found.step_aside()

    def close(self) -> None:
        self.tables[:] = closed_tables(self.where, len(self.tables))


# ------------------------------------------------------------------------------------------------------------ snapshots
class Capture:
    """One key group of one state, as it was when the snapshot began.

    Waiting: `kept` holds what touched entries were. Being written: `rest` holds all that is still to be written as it
    stands, and a touch moves an entry from `rest` to `kept`. Kept are copies where they are cheap, encoded entries
    elsewhere.
    """

    __slots__ = ("_group", "_kept", "_rest", "_steady", "_store", "_table", "codec", "error", "items", "version")

    def __init__(self, store: Store, group: int, *, versioned: bool) -> None:
        self._store = store
        self.codec = store.codec
        self._group = group
        self._kept: dict[Any, Any] = {}
        self._rest: dict[Any, Any] | None = None
        self._steady: tuple[Iterator[Any], Iterator[Any]] | None = None
        self.error: StreamactorsError | None = None
        self.items = 0
        guard = store.guard(group)
        guard.captures.append(self)
        self.version = guard.versioned() if versioned else None
        self._table = guard.table

    @property
    def place(self) -> StateGroup:
        return self._store.name, self._group

    def touch(self, key: Any) -> None:
        if self._rest is None:
            if key not in self._kept:
                entry = self._table.get(key, MISSING)
                self._kept[key] = entry if entry is MISSING else self._keep(key, entry)
        else:
            entry = self._rest.pop(key, MISSING)
            if entry is not MISSING:
                self._kept[key] = self._keep(key, entry)

    def _keep(self, key: Any, entry: Any) -> Any:
        """An error is the snapshot's, and must not come up in the user's call that touches the entry."""
        try:
            return self.codec.detach(entry) if self.codec.detachable else self.codec.encode(entry)
        except StreamactorsError as error:
            self.error = type(error)(f"{self._store.where}, key {key!r}: {error}")
            return MISSING

    def next_block(self, limit: int) -> StateBlock | None:
        """About `limit` items; None when the group is written."""
        if self._rest is None:
            self._rest = self._begin()
        if self.error is not None:
            raise self.error
        keys, entries = self._take_steady(limit) if self._steady else self._take(self._rest, limit)
        self.items = len(keys) if self.codec.stable else sum(map(self.codec.size, entries))
        kept_keys, kept = self._take(self._kept, limit - self.items)
        self.items += len(kept_keys)
        if not keys and not kept_keys:
            return None
        data = self._encode(keys, entries, kept_keys, kept)
        return StateBlock(self._store.name, self._group, len(keys) + len(kept_keys), data)

    def _begin(self) -> dict[Any, Any]:
        rest = self._table.copy()
        for key in self._kept:
            rest.pop(key, None)
        self._kept = {key: kept for key, kept in self._kept.items() if kept is not MISSING}
        if self.codec.stable:  # references to what never changes: nobody's touch matters any more
            rest.update(self._kept)
            self._kept = {}
            self.release()
            self._steady = iter(rest), iter(rest.values())
        return rest

    def _take_steady(self, limit: int) -> tuple[list[Any], list[Any]]:
        assert self._steady is not None
        keys, entries = self._steady
        return list(islice(keys, limit)), list(islice(entries, limit))

    def _take(self, entries: dict[Any, Any], limit: int) -> tuple[list[Any], list[Any]]:
        """Out of `entries`: as many as make about `limit` items, at least one if there is room for any."""
        keys, taken = [], []
        while entries and limit > 0:
            key, entry = entries.popitem()
            keys.append(key)
            taken.append(entry)
            limit -= 1 if isinstance(entry, bytes) else self.codec.size(entry)
        return keys, taken

    def _encode(self, keys: list[Any], entries: list[Any], kept_keys: list[Any], kept: list[Any]) -> bytes:
        try:
            if self.codec.detachable:
                return self.codec.encode_block(keys + kept_keys, entries + kept)
            return self.codec.encode_block(keys, entries, kept_keys, kept)
        except StreamactorsError as error:
            raise type(error)(f"{self._store.where}, {error}") from error

    def release(self) -> None:
        self._store.release(self._group, self)


class HeapSnapshot:
    """See `KeyedSnapshot` and, where it is `versioned`, `VersionedSnapshot`."""

    def __init__(
        self,
        checkpoint_id: int,
        stores: Iterable[Store],
        on_end: Callable[["HeapSnapshot"], None],
        monotonic: Callable[[], float],
        *,
        versioned: bool = False,
    ) -> None:
        self.checkpoint_id = checkpoint_id
        self._on_end = on_end
        self._monotonic = monotonic
        self._pace = Pace()
        self._waiting = [
            Capture(store, group, versioned=versioned)
            for store in stores
            for group in store.groups
            if store.table(group)
        ]
        self._waiting.reverse()

    @property
    def versions(self) -> dict[StateGroup, Version]:
        return {capture.place: capture.version for capture in self._waiting if capture.version is not None}

    def leave_out(self, groups: Collection[StateGroup]) -> None:
        left = [capture for capture in self._waiting if capture.place in groups]
        self._waiting = [capture for capture in self._waiting if capture.place not in groups]
        for capture in left:
            capture.release()

    def next_block(self, budget_seconds: float = BLOCK_SECONDS, *, max_entries: int | None = None) -> StateBlock | None:
        limit = self._pace.items(budget_seconds)
        started = self._monotonic()
        try:
            block = self._next(limit if max_entries is None else min(limit, max_entries))
        except BaseException:
            self.abort()
            raise
        if block is not None:
            self._pace.measured(self._waiting[-1].items, self._monotonic() - started)
        return block

    def _next(self, limit: int) -> StateBlock | None:
        while self._waiting:
            block = self._waiting[-1].next_block(limit)
            if block is not None:
                return block
            self._waiting.pop().release()
        self.abort()
        return None

    def abort(self) -> None:
        for capture in self._waiting:
            capture.release()
        self._waiting = []
        self._on_end(self)
