"""Keyed state in RocksDB, for state larger than memory: rows on the local disk behind a cache of decoded entries.

What an operator changes is changed in the cache, and written when it leaves the cache, or for a snapshot. So `get` and
`set` of a cached entry are as cheap as the heap's. What a snapshot has to write it freezes at the barrier, and writes
in turn with the actors (`freeze`): its synchronous part hardly depends on how much that is.

Only one snapshot's point in time is in the making at once. Another one that begins meanwhile has the frozen entries of
the first written at once; while files are being linked, a native one is refused, and a canonical one writes all that is
dirty at once. That is right, but holds the loop: so wait for `ready_for_native`.

Reading an entry that is not cached blocks: call `prefetch` for a batch before it enters the operator.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from streamactors.clock import SYSTEM, Clock, uninterrupted
from streamactors.errors import (
    CheckpointFailed,
    IncompatibleState,
    InvalidDataflow,
    StreamactorsError,
)
from streamactors.state.backend import Cursor, NativePart, StateBlock, StateT
from streamactors.state.bound import dressed
from streamactors.state.descriptors import Declaration
from streamactors.state.key_groups import KeyGroupRange
from streamactors.state.pace import Pace
from streamactors.state.rocksdb.database import WRITE_ROWS, Database, RocksDBOptions
from streamactors.state.rocksdb.fetch import Fetch
from streamactors.state.rocksdb.folder import LocalFolder, append, empty, remove
from streamactors.state.rocksdb.freeze import Freeze
from streamactors.state.rocksdb.native import (
    FORMAT,
    RocksNativeSnapshot,
    base_of,
    check_max_parallelism,
    counts_in,
    keep_only,
    known_tables,
    meta_row,
    open_part,
    rows_of,
    same_rows,
)
from streamactors.state.rocksdb.snapshot import RocksSnapshot
from streamactors.state.rocksdb.states import bound_state
from streamactors.state.rocksdb.stores.kinds import store_for
from streamactors.state.rocksdb.stores.store import MISSING, Shared, Store, group_start
from streamactors.state.rocksdb.sweep import sweep_group
from streamactors.state.rocksdb.timers import DIRTY, NEAR, RocksTimers
from streamactors.state.stored import (
    check_keys,
    check_new,
    check_own,
    check_reachable,
    check_stores,
    codec_of,
    located,
    named,
)
from streamactors.state.timers import TimerState
from streamactors.state.ttl import UNSET, Turn, lifetimes_of

__all__ = ["RocksDBBackend", "RocksDBOptions"]

_INLINE_SECONDS: Final = 0.0003
"""Reading that is done on the loop: a trip to a thread and back, beside other threads, takes about as long."""
_FEW: Final = 8
"""So many entries are read on the loop anyway."""
_WAITING_ROWS: Final = 16_384
_WAIT_SECONDS: Final = 0.002
DATABASE: Final = "db"
_ALL_ROWS: Final = group_start(0), group_start(1 << 15)


class RocksDBBackend:
    """See `KeyedBackend`; besides, `prefetch`, and native snapshots. `uid` names the operator in errors.

    Raises MissingExtra without rocksdict, StorageFailed if the local folder can't be used.
    """

    def __init__(
        self,
        groups: KeyGroupRange,
        max_parallelism: int,
        *,
        uid: str = "",
        cursor: Cursor | None = None,
        clock: Clock = SYSTEM,
        options: RocksDBOptions | None = None,
    ) -> None:
        self.groups = groups
        self.cursor = Cursor() if cursor is None else cursor
        self.options = RocksDBOptions() if options is None else options
        self._uid = uid
        self._max_parallelism = max_parallelism
        self._clock = clock
        self._where = where = f"operator {uid!r}, key groups {groups}"
        self._folder = LocalFolder.make(self.options.folder, clock.token)
        try:
            database = Database(self._folder.path / DATABASE, self.options, where)
        except BaseException:
            self._folder.delete()
            raise
        self._shared = Shared(uid, groups, max_parallelism, database)
        if self.options.dirty < self.options.cache:
            self._shared.room = self._room
        self._stores: dict[str, Store[Any]] = {}
        self._timers: dict[str, RocksTimers] = {}
        self._bound: list[Any] = []
        self._snapshots: list[RocksSnapshot] = []
        self._native: list[RocksNativeSnapshot] = []
        self._native_digests: dict[str, tuple[int, bytes]] = {}
        self._native_made = 0
        self._opened: list[Database] = []
        """Databases that are being read from for a restore."""
        self._writing = Pace()
        self._reading = Pace()
        self._settling: RocksSnapshot | RocksNativeSnapshot | None = None
        """The last snapshot that had something to write."""
        self._limit = self.options.dirty
        self._closed = False

    @property
    def _database(self) -> Database:
        return self._shared.database

    @property
    def native_format(self) -> str:
        return FORMAT

    @property
    def declarations(self) -> dict[str, Declaration]:
        timers = {name: timers.declaration for name, timers in self._timers.items()}
        return {state.name: state for state in self._bound} | timers

    @property
    def _kept(self) -> dict[str, Store[Any] | RocksTimers]:
        """All that has rows."""
        return {**self._stores, **self._timers}

    def attach(self, cursor: Cursor) -> None:
        self.cursor = cursor
        for state in self._bound:
            state.attach(cursor)

    def bind(self, name: str, declaration: StateT) -> StateT:
        check_new(name, self._kept, self._uid)
        if len(name.encode()) > 255:
            raise InvalidDataflow(f"operator {self._uid!r}, state {name!r}: the name is longer than 255 bytes")
        if isinstance(declaration, TimerState):
            return cast(StateT, self._bind_timers(name, declaration))
        codec = codec_of(declaration, name, self._uid, self._clock.time_ms)
        store = self._stores[name] = store_for(codec, name, self._shared, self.options.cache)
        kept = bound_state(store, self.cursor)
        bound = dressed(declaration, name, kept, codec, self.cursor)
        self._bound.append(bound)
        self._share_cache()
        return cast(StateT, bound)

    def _bind_timers(self, name: str, declaration: TimerState) -> RocksTimers:
        near, dirty = min(NEAR, self.options.cache), min(DIRTY, self.options.dirty)
        timers = RocksTimers(declaration, name, self._shared, self._in_thread, near=near, dirty=dirty)
        self._timers[name] = timers
        return timers

    def _share_cache(self) -> None:
        each = max(self.options.cache // len(self._stores), 8)
        for store in self._stores.values():
            store.resize(each)
        self._limit = min(self.options.dirty, max(each // 4, 2), _WAITING_ROWS)

    # ------------------------------------------------------------------------------------------------------- writing
    def _room(self) -> None:
        """Write behind: some of the oldest, when too many are dirty."""
        if sum([len(store.dirty) for store in self._stores.values()]) >= self._limit:
            fullest = max(self._stores.values(), key=lambda store: len(store.dirty) - len(store.stuck))
            fullest.flush(min(WRITE_ROWS, max(self._limit // 4, 1)))
            if len(fullest.stuck) > self._limit:
                raise next(iter(fullest.stuck.values()))

    def _write_all(self) -> StreamactorsError | None:
        """The first error of what can't be written."""
        error = self._write_timers()
        for store in self._stores.values():
            store.retry()
            while len(store.dirty) > len(store.stuck):
                store.flush(WRITE_ROWS)
        return error or next((error for store in self._stores.values() for error in store.stuck.values()), None)

    def _write_timers(self) -> StreamactorsError | None:
        """They are few."""
        refused = [error for timers in self._timers.values() if (error := timers.write_all()) is not None]
        return next(iter(refused), None)

    # ------------------------------------------------------------------------------------------------------- reading
    async def prefetch(self, keys: Sequence[Any], groups: Sequence[int]) -> None:
        """Bring what the keys hold into the cache, so that processing them does not block; and wait while too much is
        waiting to be written."""
        fetch = self.fetch(keys, groups)
        if fetch is not None:
            try:
                if fetch.size <= max(_FEW, self._reading.items(_INLINE_SECONDS)):
                    self._read_here(fetch)
                else:
                    self._reading.recover()
                    await self._in_thread(fetch.read)
                fetch.keep()
            finally:
                fetch.let_go()
        while len(self._database.waiting) > self._limit and not self._closed:
            await self._settle()

    def _read_here(self, fetch: Fetch) -> None:
        started = self._clock.monotonic()
        fetch.read()
        self._reading.measured(fetch.size, self._clock.monotonic() - started)

    def fetch(self, keys: Sequence[Any], groups: Sequence[int]) -> Fetch | None:
        """What of it is not in the cache: `read` it in any thread, then `keep` it; None if all is there."""
        wanted = {name: missing for name, store in self._stores.items() if (missing := store.not_cached(keys, groups))}
        return Fetch(self._stores, wanted, self._shared) if wanted else None

    async def _settle(self) -> None:
        if self._database.held:
            await self._clock.sleep(_WAIT_SECONDS)
            return
        before = len(self._database.waiting)
        self._database.settle()
        if len(self._database.waiting) == before:
            await self._in_thread(self._database.flush)

    async def _in_thread(self, work: Callable[[], None]) -> None:
        """To its end, even if cancelled meanwhile: it keeps the database open, and so the folder in use."""
        with self._folder.in_use():
            await uninterrupted(self._clock.run_blocking(work))

    # ----------------------------------------------------------------------------------------------------- snapshots
    def begin_snapshot(self, checkpoint_id: int) -> RocksSnapshot:
        self._hurry()
        freeze, error = None, None
        if self._database.held:  # files are being linked
            error = self._write_all()
        else:
            freeze = self._freeze()
        pin = self._database.rows if freeze is None else self._database.rows_before
        stores = {store.state: store for store in self._kept.values()}
        snapshot = RocksSnapshot(
            checkpoint_id, stores, lambda: pin(*_ALL_ROWS), freeze, error, self._ended, self._clock.monotonic
        )
        self._settling = snapshot
        self._snapshots.append(snapshot)
        return snapshot

    def _freeze(self) -> Freeze:
        error = self._write_timers()
        counts = {timers.name: timers.counts.copy() for timers in self._timers.values()}
        return Freeze(self._stores.values(), counts, error, self._database, self._clock.monotonic, self._writing)

    def _hurry(self) -> None:
        """One point in time after another."""
        if self._settling is not None:
            self._settling.hurry()
            self._settling = None

    def _ended(self, snapshot: RocksSnapshot) -> None:
        if snapshot in self._snapshots:
            self._snapshots.remove(snapshot)
        if snapshot is self._settling:
            self._settling = None

    async def ready_for_native(self) -> None:
        while (self._database.held or self._database.waiting) and not self._closed:
            await self._settle()

    def begin_native_snapshot(self, checkpoint_id: int) -> RocksNativeSnapshot:
        """See `NativeSnapshot`. Raises CheckpointFailed while another one has not written its files yet."""
        self._hurry()
        if self._database.held:
            raise CheckpointFailed(f"{self._where}: the snapshot before this one has not written its files yet")
        if not self._database.drain():
            raise CheckpointFailed(f"{self._where}: RocksDB is too busy for a native snapshot")
        self._native_made += 1
        snapshot = RocksNativeSnapshot(
            checkpoint_id,
            self._freeze(),
            self._database,
            self._folder,
            f"native-{self._native_made}",
            lambda counts: meta_row(self.schemas(), counts, self._shared.keys.shapes, self._max_parallelism),
            self._native_digests,
            self._in_thread,
            self._native_ended,
        )
        self._settling = snapshot
        self._native.append(snapshot)
        return snapshot

    def _native_ended(self, snapshot: RocksNativeSnapshot) -> None:
        if snapshot in self._native:
            self._native.remove(snapshot)

    def new_part(self, groups: KeyGroupRange) -> NativePart:
        self._native_made += 1
        with self._folder.in_use():
            return NativePart(str(empty(self._folder.path / f"fetched-{self._native_made}")), groups)

    def receive(self, part: NativePart, name: str, data: bytes) -> None:
        with self._folder.in_use():
            append(Path(part.folder) / name, data)

    def drop(self, part: NativePart) -> None:
        with self._folder.in_use():
            remove(Path(part.folder))

    def restore_native(self, parts: Sequence[NativePart]) -> None:
        """Take over our key groups from files of native snapshots, before anything else is restored. Blocks: for a
        thread. The files stay as they are.

        A part that is ours for the most is opened as it is; of the others, our key groups are copied. State whose
        schema has changed (see `check_schemas`, to be called before) is rewritten. Raises IncompatibleState for another
        max parallelism or a newer format, CorruptCheckpoint for files that are missing, damaged or no snapshot.
        """
        if any(store.count() for store in self._kept.values()):
            raise IncompatibleState(f"operator {self._uid!r}: native files can only be restored into empty state")
        with self._folder.in_use():
            try:
                self._restore_native(parts)
                for timers in self._timers.values():
                    timers.took_over()
            finally:
                if self._closed:  # meanwhile, by whoever waits for this thread no longer
                    self._database.close()

    def _restore_native(self, parts: Sequence[NativePart]) -> None:
        wanted = [part for part in parts if part.groups.intersect(self.groups)]
        base = base_of(wanted, self.groups)
        if base is not None and self._open(base):
            wanted.remove(base)
        for number, part in enumerate(wanted):
            self._copy(part, self._folder.path / f"part-{number}")

    def _open(self, part: NativePart) -> bool:
        """Go on with a part's files; False if they have to be rewritten."""
        path = self._folder.path / f"{DATABASE}-restored"
        database, meta = open_part(part, path, self.options, self._where)
        self._opened.append(database)
        try:
            check_max_parallelism(meta, self._max_parallelism, self._where)
            if not same_rows(meta, self.schemas()):
                database.close()
                return False
            keep_only(database, self.groups)
        except BaseException:
            database.close()
            raise
        finally:
            self._opened.remove(database)
        self._shared.database.close()
        self._shared.database = database
        self._native_digests.update(known_tables(part))
        self._shared.keys.shapes.update(meta.shapes or {})
        for state, counts in counts_in(meta, self.groups):
            self._kept[state].counts.update(counts)
        return True

    def _copy(self, part: NativePart, path: Path) -> None:
        groups = part.groups.intersect(self.groups)
        source, meta = open_part(part, path, self.options, self._where)
        self._opened.append(source)
        try:
            check_max_parallelism(meta, self._max_parallelism, self._where)
            if same_rows(meta, self.schemas()):
                self._database.ingest(iter(rows_of(source, groups)), path.with_suffix(".sst"), self.options)
                self._shared.keys.shapes.update(meta.shapes or {})
                for state, counts in counts_in(meta, groups):
                    self._kept[state].counts.update(counts)
            else:
                self._rewrite(source, groups)
        finally:
            self._opened.remove(source)
            source.close()
            remove(path)

    def _rewrite(self, source: Database, groups: KeyGroupRange) -> None:
        stores = {store.state: store for store in self._kept.values()}
        reader = rows_of(source, groups)
        snapshot = RocksSnapshot(
            0, stores, lambda: reader, None, None, lambda _: None, self._clock.monotonic, older=True
        )
        while (block := snapshot.next_block()) is not None:
            self.restore([block])

    def schemas(self) -> dict[str, Any]:
        return {name: store.codec.schema() for name, store in self._kept.items()}

    def check_schemas(self, stored: Mapping[str, Any], *, allow_dropped: bool = False) -> None:
        check_stores(stored, self._kept, self._uid, allow_dropped=allow_dropped)

    def restore(self, blocks: Iterable[StateBlock]) -> None:
        for block in blocks:
            check_own(block, self.groups, self._uid)
            if (store := self._kept.get(block.state)) is not None:
                self._add(store, block)

    def _add(self, store: Store[Any] | RocksTimers, block: StateBlock) -> None:
        with located(store.where):
            if isinstance(store, RocksTimers):
                store.add(block, self._max_parallelism)
                return
            keys, entries = store.codec.decode_block(block.data, rewritten=block.rewritten)
        check_keys(keys, block.group, self._max_parallelism, store.where)
        for key, entry in zip(keys, entries, strict=True):
            store.add(key, block.group, entry)

    # ------------------------------------------------------------------------------------------------------ looking in
    def query(self, name: str, key: Any, group: int) -> Any:
        store = self._store(name)
        check_reachable(group, self.groups, store.where)
        found = store.copy_of(key, group)
        return store.codec.answer(UNSET if found is MISSING else store.codec.seen(found))

    def scan(self, name: str) -> Iterator[tuple[int, Any, Any]]:
        store = self._store(name)
        held = ((group, key, store.codec.seen(entry)) for group in self.groups for key, entry in store.scan(group))
        return (each for each in held if each[2] is not UNSET)

    def _store(self, name: str) -> Store[Any]:
        return named(self._stores, name, self._uid)

    # ------------------------------------------------------------------------------------------------- what has expired
    @property
    def lifetimes(self) -> dict[str, float]:
        return lifetimes_of((name, store.codec) for name, store in self._stores.items())

    async def sweep(self, name: str, group: int, turn: Turn) -> None:
        await sweep_group(self._store(name), group, self._shared, self.cursor, self._in_thread, turn)

    def entries(self) -> dict[str, int]:
        return {name: store.count() for name, store in self._kept.items()}

    @property
    def memory_used(self) -> int:
        """Bytes of blocks and write buffers, over all databases that share the memory."""
        return self._database.memory_used

    def close(self) -> None:
        """Besides, delete the local files."""
        if self._closed:
            return
        self._closed = True
        for snapshot in self._snapshots.copy():
            snapshot.abort()
        for native in self._native.copy():
            native.abort()
        for store in self._kept.values():
            store.close()
        try:
            for database in (*self._opened, self._database):
                database.close()
        finally:
            self._folder.delete()
