"""What one state of one subtask holds in RocksDB, and the bounded cache of decoded entries in front of it.

Rows, each beginning with the key group (2 bytes, big endian) and the state's name, so that a key group is a range:

- value: the key → the value.
- list: the key → how many chunks there are, and the last items; the key and a chunk's number → its items. Appending
  rewrites the last items only, of which there are fewer than `TAIL`. Where chunks have expired, the number of the first
  one left stands there too.
- map: the key → how many entries; the key and the map's key → the value. In the order of the map's keys.

A row of a key that its bytes do not give back in its own type (True, a tuple, an instance) carries it.

Invariants. What a state holds is what is in the database, and newer than that its *frozen* entries, and newer than
those the *dirty* ones. Every frozen or dirty entry is in the cache; no key is both. A frozen one is as it was at the
freeze (see `freeze`): before it can be changed it is written, among the rows of that moment.
"""

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, Final, Generic, TypeVar

from streamactors.errors import CorruptCheckpoint, StreamactorsError, UnserialisableKey
from streamactors.state.blocks import EntryCodec
from streamactors.state.bound import closed_tables, no_tables
from streamactors.state.key_groups import KeyGroupRange
from streamactors.state.rocksdb.database import Database, Rows
from streamactors.state.storage_keys import LENGTH, StorageKeys

EntryT = TypeVar("EntryT")
MISSING: Final[Any] = object()
ABSENT: Final[Any] = object()
"""In the cache: the key is known to hold nothing."""
LEAVING: Final = 256
"""Entries that leave the full cache at once: about a millisecond if all of them have to be written."""
SPILL: Final = 4096
"""Items or entries of one key that are changed and not written, at most."""
_CARRIED: Final = ord("K")
HEAD: Final = ord("H")
_GROUP: Final = struct.Struct(">H")


def group_start(group: int) -> bytes:
    """Where the rows of a key group begin, and those of the one before end."""
    return _GROUP.pack(group)


class Shared:
    """What all states of one backend have in common. `room` is called before an entry is changed that was not."""

    def __init__(self, uid: str, groups: KeyGroupRange, max_parallelism: int, database: Database) -> None:
        self.uid = uid
        self.groups = groups
        self.max_parallelism = max_parallelism
        self.database = database
        self.keys = StorageKeys()
        self.room: Callable[[], None] = lambda: None
        self.on_flush: list[Callable[[str, list[Any]], None]] = []
        """Told of the state and the keys that are written."""


class Store(ABC, Generic[EntryT]):
    """One state. `tables[group]` is `young`, the newer generation of the cache, for each group of this subtask.

    An entry is looked for in `young`, in `old`, then in the database, and is in `young` then. When the cache is full,
    entries leave `old`, written if they have to be; when that is empty, `young` becomes `old`. `dirty` are the keys
    whose entry was changed and not written, with their group: as it is if the database holds the key, else inverted.
    """

    def __init__(self, name: str, codec: Any, shared: Shared, capacity: int) -> None:
        self.name = name
        self.where = f"operator {shared.uid!r}, state {name!r}"
        self.codec: EntryCodec[Any] = codec
        self.groups = shared.groups
        self._shared = shared
        self.keys = shared.keys
        self.state = bytes([len(name.encode())]) + name.encode()
        self.prefixes = [_GROUP.pack(group) + self.state for group in range(shared.max_parallelism)]
        self.counts: dict[int, int] = dict.fromkeys(shared.groups, 0)
        """Keys in the database."""
        self.dirty: dict[Any, int] = {}
        self.stuck: dict[Any, StreamactorsError] = {}
        """Of `dirty`, those that can't be written."""
        self.emptied: set[Any] = set()
        """Of `dirty` and `frozen`, those that may hold nothing though they have been changed."""
        self._new = 0
        """Of `dirty` and `frozen`, those that the database does not hold."""
        self.frozen: dict[Any, int] = {}
        """As `dirty`: what was that at the freeze, and is not written."""
        self.frozen_counts: dict[int, int] = {}
        """Keys in the database and among its rows of before the freeze."""
        self.frozen_error: StreamactorsError | None = None
        self._unwritten: list[Any] = []
        """All frozen keys, and some that are written."""
        self.resize(capacity)
        self._weight = 0
        self.young: dict[Any, Any] = {}
        self.old: dict[Any, Any] = {}
        self._order: Iterator[Any] = iter(())
        """Keys of `old`, and such as were: in this order they leave."""
        self.tables = no_tables(self.where, self.groups, shared.max_parallelism)
        self._use(self.young)

    @property
    def database(self) -> Database:
        return self._shared.database

    # ------------------------------------------------------------------------------------- what each kind does its way
    @abstractmethod
    def read(self, key: Any, group: int, row: bytes | None) -> EntryT:
        """The entry of a key, given its first row; ABSENT or an empty one if there is none. In any thread."""

    @abstractmethod
    def holds(self, entry: EntryT) -> bool:
        """Whether a key with this entry exists."""

    @abstractmethod
    def weigh(self, entry: EntryT) -> int: ...

    @abstractmethod
    def write(self, key: Any, group: int, entry: EntryT, rows: Rows) -> None:
        """Add what makes the database hold the entry, which does `holds`. Changes nothing if it raises."""

    @abstractmethod
    def erase(self, key: Any, group: int, entry: EntryT, rows: Rows) -> None: ...

    @abstractmethod
    def prune(self, key: Any, group: int, entry: EntryT, found: Any, limit: int) -> EntryT | None:
        """The entry without what was written until `limit`; None if there is nothing of it. `found`: where to look, as
        `unsaved` gives it, or a sweep of the rows."""

    @abstractmethod
    def unsaved(self, key: Any, limit: int) -> Any:
        """What has expired of a dirty entry, as far as it is in memory: not necessarily all."""

    @abstractmethod
    def whole(self, key: Any, group: int, entry: EntryT) -> Any:
        """What the codec knows as an entry: a copy that shares nothing that can be changed."""

    @abstractmethod
    def add(self, key: Any, group: int, entry: Any) -> None:
        """Merge in an entry of the codec's."""

    @abstractmethod
    def row_of(self, key: Any, group: int) -> bytes:
        """The first row of a key."""

    @abstractmethod
    def stored(self, group: int, *, keep_blocks: bool) -> Iterator[tuple[Any, bytes]]:
        """Each key that the database holds, with its first row."""

    # -------------------------------------------------------------------------------------------------------- the cache
    def _use(self, young: dict[Any, Any]) -> None:
        self.young = young
        self._set_tables()

    def _set_tables(self) -> None:
        guarded = bool(self.frozen) and not self.codec.immutable
        table: Any = _GuardedTable(self) if guarded else self.young
        self.tables[self.groups.start : self.groups.stop] = [table] * len(self.groups)

    def load(self, key: Any, group: int) -> EntryT:
        """The entry of a key that is not in `young`, which then has it. Blocks if it has to be read."""
        entry: EntryT = self.old.pop(key, MISSING)
        if entry is MISSING:
            entry = self.read(key, group, self._stored_row(key, group))
            self.admit(key, entry)
        else:
            self.young[key] = entry
        return entry

    def _stored_row(self, key: Any, group: int) -> bytes | None:
        if not self.counts[group]:
            return None
        try:
            row = self.row_of(key, group)
        except UnserialisableKey:  # it has none; and what is set for it can't be written, which the snapshot will say
            return None
        return self.database.get(row)

    def admit(self, key: Any, entry: EntryT) -> None:
        """Into the cache, which it is not in."""
        self._weight += self.weigh(entry)
        if self._weight > self._full:
            self._make_room()
        self.young[key] = entry

    def _make_room(self) -> None:
        if not self.old:
            self._age()
            self._full = self._capacity
            if self._weight <= self._full:
                return
        leaving, excess = [], self._weight - self._capacity + self._slack
        for key in self._order:
            if key in self.old:
                leaving.append(key)
                excess -= self.weigh(self.old[key])
                if excess <= 0 or len(leaving) == LEAVING:
                    break
        if not leaving and self.old:  # they could not leave before
            self._order = iter(list(self.old))
        self._dismiss(leaving)
        if not self.old:  # early: what is used comes into `young` again before it is its turn to leave
            self._age()

    def _age(self) -> None:
        self.old = self.young
        self._order = iter(list(self.old))
        self._weight = sum(map(self.weigh, self.old.values()))
        self._use({})

    def _dismiss(self, keys: list[Any]) -> None:
        weights = [self.weigh(self.old[key]) for key in keys]
        if self.frozen:
            self.write_frozen([key for key in keys if key in self.frozen])
        self.write_out([key for key in keys if key in self.dirty])
        for key, weight in zip(keys, weights, strict=True):
            entry = self.old.pop(key)
            if key in self.dirty:  # it can't be written
                self.young.setdefault(key, entry)
            else:
                self._weight -= weight
        if len(self.stuck) > max(self._capacity // 2, LEAVING):
            raise next(iter(self.stuck.values()))

    def resize(self, capacity: int) -> None:
        self._capacity = max(capacity, 4)
        self._slack = min(LEAVING, self._capacity // 4)
        self._full = self._capacity - self._slack

    def not_cached(self, keys: Sequence[Any], groups: Sequence[int]) -> dict[Any, int]:
        """Keys that the database may hold, with their groups. Those in `old` are brought into `young`."""
        young, old, counts = self.young, self.old, self.counts
        if not set(keys).difference(young):
            return {}
        missing: dict[Any, int] = {}
        for key, group in zip(keys, groups, strict=True):
            if key not in young:
                if key in old:
                    young[key] = old.pop(key)
                elif counts[group]:
                    missing[key] = group
        return missing

    def cached(self, key: Any) -> Any:
        """MISSING if it is not."""
        entry = self.young.get(key, MISSING)
        return self.old.get(key, MISSING) if entry is MISSING else entry

    def entry(self, key: Any, group: int) -> EntryT:
        """For the bound state: refuses a group that can't be reached."""
        entry: EntryT = self.tables[group].get(key, MISSING)
        return self.load(key, group) if entry is MISSING else entry

    def mark(self, key: Any, group: int) -> None:
        """Before a key that is not dirty changes."""
        entry = self.entry(key, group)
        self._shared.room()
        if key in self.frozen:
            self.touch(key)
        if key not in self.dirty:
            holds = self.holds(entry)
            self.dirty[key] = group if holds else ~group
            self._new += not holds

    # -------------------------------------------------------------------------------------------------------- writing
    def flush(self, limit: int) -> int:
        """Write up to `limit` dirty entries, the first changed first; returns how many. Those that can't be are stuck
        until `retry`."""
        waiting = self.dirty if not self.stuck else (key for key in self.dirty if key not in self.stuck)
        return self.write_out(list(islice(waiting, limit)))

    def write_out(self, keys: list[Any]) -> int:
        """Write these, which are dirty."""
        rows: Rows = {}
        written, changes = self._rows_of(keys, self.dirty, rows)
        if written:
            self.database.write(rows)
            self._note_written(written, self.dirty, changes, self.counts)
        return len(written)

    def _rows_of(self, keys: list[Any], marks: dict[Any, int], rows: Rows) -> tuple[list[Any], list[tuple[int, int]]]:
        """Which of them are written by these rows, and by how many keys that changes which group."""
        written: list[Any] = []
        changes: list[tuple[int, int]] = []
        for key in keys:
            marked = marks[key]
            group = marked if marked >= 0 else ~marked
            entry = self.cached(key)
            holds = self.holds(entry)
            try:
                if holds:
                    self.write(key, group, entry, rows)
                elif marked >= 0:
                    self.erase(key, group, entry, rows)
            except StreamactorsError as error:
                self.stuck[key] = type(error)(f"{self.where}, key {key!r}: {error}")
                continue
            written.append(key)
            if holds != (marked >= 0):
                changes.append((group, 1 if holds else -1))
        return written, changes

    def _note_written(
        self, keys: list[Any], marks: dict[Any, int], changes: list[tuple[int, int]], *counted: dict[int, int]
    ) -> None:
        for key in keys:
            self._new -= marks.pop(key) < 0
        if self.emptied:
            self.emptied.difference_update(keys)
        for group, change in changes:
            for counts in counted:
                counts[group] += change
        self._tell_written(keys)

    def _tell_written(self, keys: list[Any]) -> None:
        """Whoever has read rows meanwhile must not keep them."""
        for told in self._shared.on_flush:
            told(self.name, keys)

    def expire(self, group: int, found: Iterable[tuple[Any, Any, EntryT | None]], limit: int) -> None:
        """Prune keys. With each comes what was found, and its entry as it is stored (None for a dirty key). What is not
        in the cache is written without it."""
        rows: Rows = {}
        written: list[Any] = []
        gone = 0
        for key, what, stored in found:
            if self.cached(key) is not MISSING:
                self._expire_cached(key, group, what, limit)
            elif stored is not None and (left := self.prune(key, group, stored, what, limit)) is not None:
                holds = self.holds(left)
                (self.write if holds else self.erase)(key, group, left, rows)
                gone += not holds
                written.append(key)
        if written:
            self.database.write(rows)
            self.counts[group] -= gone
            self._tell_written(written)

    def _expire_cached(self, key: Any, group: int, found: Any, limit: int) -> None:
        if key not in self.dirty:
            self.mark(key, group)
        entry = self.entry(key, group)
        left = self.prune(key, group, entry, found, limit)
        if left is not None:
            entry = self.tables[group][key] = left
        if not self.holds(entry):
            self.emptied.add(key)

    def retry(self) -> None:
        """What was stuck may have been mended."""
        self.stuck.clear()

    def count(self) -> int:
        """Keys with an entry."""
        empty = sum(self.is_unwritten(key) and not self.holds(self.cached(key)) for key in self.emptied)
        return sum(self.counts.values()) + self._new - empty

    # ----------------------------------------------------------------------------------------------------- the freeze
    def freeze(self) -> None:
        """What is dirty belongs to a snapshot from now on. Only while nothing is frozen."""
        self.retry()
        self.frozen = self.dirty.copy()
        self.dirty.clear()  # the same dict: bound state has it at hand
        self._unwritten = list(self.frozen)
        self.frozen_counts = self.counts.copy()
        self.frozen_error = None
        self._set_tables()

    def touch(self, key: Any) -> None:
        """Before a frozen entry may be changed."""
        self.write_frozen([key])

    def write_some_frozen(self, limit: int) -> int:
        """About so many; returns how many, 0 if there are none left."""
        if not self._unwritten:
            self._unwritten = list(self.frozen)  # of those left something has failed
        keys = self._unwritten[-limit:]
        del self._unwritten[-limit:]
        self.write_frozen([key for key in keys if key in self.frozen])
        return len(keys)

    def write_frozen(self, keys: list[Any]) -> None:
        """Write these, which are frozen. One that can't be written is dirty again, and the snapshot fails."""
        rows: Rows = {}
        written, changes = self._rows_of(keys, self.frozen, rows)
        self.database.write_before(rows)
        self._note_written(written, self.frozen, changes, self.counts, self.frozen_counts)
        for key in keys if len(written) < len(keys) else ():
            if key in self.frozen:
                self.dirty[key] = self.frozen.pop(key)
                self.frozen_error = self.frozen_error or self.stuck[key]
        if not self.frozen:
            self._set_tables()

    def thaw(self) -> None:
        """What is still frozen is dirty as before: nobody waits for it any more."""
        self.dirty.update(self.frozen)
        self.frozen = {}
        self._unwritten = []
        self._set_tables()

    def is_unwritten(self, key: Any) -> bool:
        return key in self.dirty or key in self.frozen

    def unwritten(self) -> Iterator[tuple[Any, int]]:
        """Keys with their group, as `dirty` has it."""
        return chain(self.dirty.items(), self.frozen.items())

    # ----------------------------------------------------------------------------------------------------- looking in
    def copy_of(self, key: Any, group: int) -> Any:
        """MISSING if the key holds nothing. Leaves the cache as it is."""
        entry = self.cached(key)
        if entry is MISSING:
            entry = self.read(key, group, self._stored_row(key, group))
        return self.whole(key, group, entry) if self.holds(entry) else MISSING

    def scan(self, group: int) -> Iterator[tuple[Any, Any]]:
        changed = {key: marked for key, marked in self.unwritten() if marked in (group, ~group)}
        stored = [(key, row) for key, row in self.stored(group, keep_blocks=False) if key not in changed]
        for key, row in stored:
            yield key, self.whole(key, group, self.read(key, group, row))
        for key in changed:
            found = self.copy_of(key, group)
            if found is not MISSING:
                yield key, found

    # ------------------------------------------------------------------------------------------------------------ keys
    def encode_key(self, key: Any) -> bytes:
        return self.keys.encode(key)

    def carrying(self, key: Any, row: bytes) -> bytes:
        carried = self.keys.carried(key)
        return row if carried is None else b"K" + LENGTH.pack(len(carried)) + carried + row

    def key_and_row(self, data: bytes, row: bytes) -> tuple[Any, bytes]:
        """What `encode_key` and `carrying` were given."""
        if row[0] != _CARRIED:
            return self.keys.plain(data), row
        end = 5 + LENGTH.unpack_from(row, 1)[0]
        return self.keys.uncarried(row[5:end]), row[end:]

    def without_key(self, row: bytes) -> bytes:
        return row[5 + LENGTH.unpack_from(row, 1)[0] :] if row[0] == _CARRIED else row

    def close(self) -> None:
        self.tables[:] = closed_tables(self.where, len(self.tables))
        self.young, self.old, self.dirty, self.frozen = {}, {}, {}, {}
        self.emptied, self._new, self._order = set(), 0, iter(())
        self.counts = dict.fromkeys(self.groups, 0)


class _GuardedTable:
    """Stands for `young` while entries are frozen that can be changed in place, by whoever has got them."""

    __slots__ = ("_store",)

    def __init__(self, store: Store[Any]) -> None:
        self._store = store

    def get(self, key: Any, default: Any = None) -> Any:
        store = self._store
        if key in store.frozen:
            store.touch(key)
        return store.young.get(key, default)

    def __setitem__(self, key: Any, entry: Any) -> None:
        self._store.young[key] = entry


def after(prefix: bytes) -> bytes:
    """The first bytes behind all that begin with `prefix`."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1])


class ManyRows(Store[EntryT]):
    """A key has several rows: each begins with the key and its length."""

    def row_of(self, key: Any, group: int) -> bytes:
        data = self.keys.encode(key)
        return self.prefixes[group] + LENGTH.pack(len(data)) + data

    def stored(self, group: int, *, keep_blocks: bool) -> Iterator[tuple[Any, bytes]]:
        start = self.prefixes[group]
        cut = len(start) + LENGTH.size
        for data, row in self.database.rows(start, after(start), keep_blocks=keep_blocks):
            length = LENGTH.unpack_from(data, len(start))[0]
            if len(data) == cut + length:
                yield self.key_and_row(data[cut:], row)


def check_head(mark: int) -> None:
    if mark != HEAD:
        raise CorruptCheckpoint(f"a row of state begins with {mark}, which no version has written")
