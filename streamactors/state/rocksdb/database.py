"""One RocksDB database on the local disk: rows of bytes, errors in our words, and its share of the process's memory.

No write-ahead log: what was lost in a crash is restored from the last checkpoint. Writes hold the interpreter's lock
in rocksdict 0.3 (reads, flushes and compactions do not), so they are small, and never wait for RocksDB: rows that it
does not take at once, or that a snapshot must not see yet, wait in memory, where every read looks first.

Invariant of a hold, from `hold` to `release`: RocksDB gets the rows of before it, and none of those of after it.
`before` are rows of the moment of the hold that RocksDB has not taken so far; what is written meanwhile is newer, and
waits in `waiting`. So a reading is of `waiting`, else of `before`, else of RocksDB.
"""

import heapq
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, TypeVar

from streamactors.errors import (
    CorruptCheckpoint,
    InvalidConfig,
    MissingExtra,
    StateAccessError,
    StorageFailed,
    StreamactorsError,
)

T = TypeVar("T")
Rows = dict[bytes, bytes | None]
"""What to write; None deletes."""

WRITE_ROWS: Final = 512
"""Rows written at once: about half a millisecond."""
_STALLED: Final = "Write stall"


@dataclass(frozen=True, slots=True)
class RocksDBOptions:
    """`folder`: where local files lie while the job runs; None: where temporary files go. `memory`: bytes for blocks
    read and rows not yet flushed, of all databases of the process that give the same number. `cache`: decoded entries
    kept per operator subtask. The rest are the choices that `docs/state.md` measures."""

    folder: str | None = None
    memory: int = 256 << 20
    cache: int = 100_000
    compression: Literal["none", "lz4", "zstd"] = "lz4"
    bloom_bits: float = 10.0
    block_size: int = 16 << 10
    compaction: Literal["level", "universal", "none"] = "universal"
    dirty: int = 1 << 30
    """Entries of one subtask changed and not yet written, at most (but for those of the record in hand): as many as the
    cache holds, unless told."""

    def __post_init__(self) -> None:
        for name, least in (("memory", 4 << 20), ("cache", 16), ("dirty", 4), ("block_size", 1024)):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < least:
                raise InvalidConfig(f"RocksDB({name}={getattr(self, name)!r}): give a whole number from {least} up")


def rocksdict() -> Any:
    """The library, when it is first used. Raises MissingExtra."""
    try:
        import rocksdict as found
    except ImportError as error:
        raise MissingExtra(
            "the state backend 'rocksdb' needs rocksdict: pip install 'streamactors[rocksdb]', or use 'heap'"
        ) from error
    return found


# --------------------------------------------------------------------------------------------------------------- memory
class _Memory:
    """Blocks read and write buffers under one limit, for all databases of the process."""

    _shared: ClassVar["weakref.WeakValueDictionary[int, _Memory]"] = weakref.WeakValueDictionary()

    def __init__(self, size: int) -> None:
        library = rocksdict()
        self.blocks = library.Cache(size)
        self.buffers = library.WriteBufferManager.new_write_buffer_manager_with_cache(size // 3, False, self.blocks)

    @classmethod
    def of(cls, size: int) -> "_Memory":
        found = cls._shared.get(size)
        if found is None:
            found = cls._shared[size] = cls(size)
        return found


def _set_compaction(made: Any, options: RocksDBOptions) -> None:
    """Universal merges runs of about one size, and so leaves most tables as they are: what incremental checkpoints
    upload."""
    library = rocksdict()
    made.set_level_compaction_dynamic_level_bytes(options.compaction == "level")
    made.set_disable_auto_compactions(options.compaction == "none")
    if options.compaction == "universal":
        made.set_compaction_style(library.DBCompactionStyle.universal())
        how = library.UniversalCompactOptions()
        how.max_size_amplification_percent = 100
        made.set_universal_compaction_options(how)


def _library_options(options: RocksDBOptions, memory: _Memory, *, create: bool) -> Any:
    library = rocksdict()
    made = library.Options(raw_mode=True)
    made.create_if_missing(create)
    made.set_write_buffer_manager(memory.buffers)
    made.set_write_buffer_size(min(max(options.memory // 8, 1 << 20), 64 << 20))
    made.set_max_write_buffer_number(6)
    made.set_compression_type(getattr(library.DBCompressionType, options.compression)())
    _set_compaction(made, options)
    made.set_target_file_size_base(32 << 20)
    made.set_max_background_jobs(2)
    made.set_max_open_files(512)
    # A writer that RocksDB slows down would hold the whole process; reading from many files is the lesser evil.
    made.set_level_zero_file_num_compaction_trigger(8)
    made.set_level_zero_slowdown_writes_trigger(64)
    made.set_level_zero_stop_writes_trigger(128)
    made.set_soft_pending_compaction_bytes_limit(0)
    made.set_hard_pending_compaction_bytes_limit(0)
    made.set_keep_log_file_num(1)
    made.set_max_log_file_size(1 << 20)
    made.set_stats_dump_period_sec(0)
    blocks = library.BlockBasedOptions()
    blocks.set_block_cache(memory.blocks)
    blocks.set_block_size(options.block_size)
    blocks.set_cache_index_and_filter_blocks(True)
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(True)
    blocks.set_format_version(5)
    if options.bloom_bits:
        blocks.set_bloom_filter(options.bloom_bits, False)
    made.set_block_based_table_factory(blocks)
    return made


# -------------------------------------------------------------------------------------------------------------- reading
class RowReader:
    """The rows from `start` up to `stop` as they were when it was made, in order. Belongs to one thread at a time.
    `waiting`: rows that RocksDB has not taken."""

    def __init__(self, database: "Database", start: bytes, stop: bytes, waiting: Rows, *, keep_blocks: bool) -> None:
        self._where = database.where
        between = [(key, row) for key, row in waiting.items() if start <= key < stop]
        bounds = rocksdict().ReadOptions()
        bounds.set_iterate_upper_bound(stop)
        bounds.fill_cache(keep_blocks)
        self._bounds = bounds  # rocksdict 0.3: the iterator points into it, and reads freed memory if it is gone
        opened = database.library_database()
        self._rows: Any = _guarded(self._where, lambda: opened.iter(bounds))
        _guarded(self._where, lambda: self._rows.seek(start))
        self._merged = self._merge(sorted(between)) if between else self._stored()

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return self._merged

    def __next__(self) -> tuple[bytes, bytes]:
        return next(self._merged)

    def close(self) -> None:
        self._rows = None

    def _stored(self) -> Iterator[tuple[bytes, bytes]]:
        """An iterator of RocksDB also ends where it can't read on: only its status tells."""
        rows = self._rows
        try:
            while rows.valid():
                yield rows.key(), rows.value()
                rows = self._rows
                if rows is None:
                    raise StateAccessError(f"{self._where}: the operator has been stopped")
                rows.next()
            rows.status()
        except StreamactorsError:
            raise
        except Exception as error:
            raise failure(self._where, error) from error

    def _merge(self, waiting: list[tuple[bytes, bytes | None]]) -> Iterator[tuple[bytes, bytes]]:
        last = None
        for key, row in heapq.merge(waiting, self._stored(), key=itemgetter(0)):  # waiting before stored
            if key != last:
                last = key
                if row is not None:
                    yield key, row


# ------------------------------------------------------------------------------------------------------------- database
class Database:
    """Reads may come from any thread, writes from one only. `where` names its owner in errors."""

    def __init__(self, path: Path, options: RocksDBOptions, where: str, *, create: bool = True) -> None:
        self.where = where
        self.path = path
        self._layers: tuple[Rows, Rows] = {}, {}
        """`before` and `waiting`: replaced together, since threads read them."""
        self._held = False
        self._memory = _Memory.of(options.memory)
        self._readers: dict[int, weakref.ref[RowReader]] = {}
        library = rocksdict()
        self._write_options = library.WriteOptions()
        self._write_options.disable_wal = True
        self._write_options.no_slowdown = True
        settings = _library_options(options, self._memory, create=create)
        self._database: Any = _guarded(where, lambda: library.Rdict(str(path), settings))
        self._database.set_write_options(self._write_options)

    # -------------------------------------------------------------------------------------------------------- reading
    def library_database(self) -> Any:
        if self._database is None:
            raise StateAccessError(f"{self.where}: the operator has been stopped")
        return self._database

    @property
    def waiting(self) -> Rows:
        return self._layers[1]

    @property
    def before(self) -> Rows:
        return self._layers[0]

    def _in_memory(self) -> Rows:
        """Rows that RocksDB has not taken. To be called before RocksDB is read: a row moving there meanwhile is then
        seen twice, not never."""
        before, waiting = self._layers
        return {**before, **waiting} if before else waiting.copy()

    def get(self, key: bytes) -> bytes | None:
        before, waiting = self._layers
        if waiting or before:
            for layer in (waiting, before):
                try:
                    return layer[key]
                except KeyError:
                    pass
        try:
            found: bytes | None = self.library_database().get(key)
        except Exception as error:
            raise failure(self.where, error) from error
        return found

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        waiting = self._in_memory()
        database = self.library_database()
        found: list[bytes | None] = _guarded(self.where, lambda: database.get(keys))
        return [waiting.get(key, row) for key, row in zip(keys, found, strict=True)] if waiting else found

    def rows(self, start: bytes, stop: bytes, *, keep_blocks: bool = True) -> RowReader:
        """`keep_blocks` False: reading all of it leaves the block cache alone."""
        return self._noted(RowReader(self, start, stop, self._in_memory(), keep_blocks=keep_blocks))

    def rows_before(self, start: bytes, stop: bytes) -> RowReader:
        """While it is held: as they were at that moment."""
        return self._noted(RowReader(self, start, stop, self.before.copy(), keep_blocks=False))

    def _noted(self, reader: RowReader) -> RowReader:
        number = id(reader)
        self._readers[number] = weakref.ref(reader, partial(self._forget, number))
        return reader

    def _forget(self, number: int, _: object) -> None:
        self._readers.pop(number, None)

    # -------------------------------------------------------------------------------------------------------- writing
    def write(self, rows: Rows) -> None:
        """Never waits for the disk. Raises StorageFailed if RocksDB has given up (disk full)."""
        if self._held or self.waiting:
            self.waiting.update(rows)
            self.settle()
        elif not self._write(rows):
            self.waiting.update(rows)

    def write_before(self, rows: Rows) -> None:
        """While it is held: rows of that moment. They are in memory first: nothing is lost if RocksDB gives up."""
        self.before.update(rows)

    def drain(self) -> bool:
        """Write all that waits; False if RocksDB does not take it now."""
        while left := len(self.waiting):
            self.settle(left)
            if len(self.waiting) == left:
                return False
        return True

    def settle(self, rows: int = 2 * WRITE_ROWS) -> None:
        """Write some of what waits, if it may be written."""
        waiting = self.before if self._held else self.waiting
        part = dict(islice(waiting.items(), rows))
        if part and self._write(part):
            if len(part) == len(waiting):
                waiting.clear()
            for key in part if waiting else ():
                del waiting[key]

    def _write(self, rows: Rows) -> bool:
        batch = rocksdict().WriteBatch(raw_mode=True)
        for key, row in rows.items():
            if row is None:
                batch.delete(key)
            else:
                batch.put(key, row)
        try:
            self.library_database().write(batch, self._write_options)
        except Exception as error:
            if _STALLED in str(error):
                return False
            raise failure(self.where, error) from error
        return True

    def delete_range(self, start: bytes, stop: bytes) -> None:
        """Only while nothing waits. Blocks."""
        options = rocksdict().WriteOptions()
        options.disable_wal = True
        database = self.library_database()
        _guarded(self.where, lambda: database.delete_range(start, stop, options))

    def ingest(self, sorted_rows: Iterator[tuple[bytes, bytes]], path: Path, options: RocksDBOptions) -> None:
        """Add rows whose range holds nothing yet, by a file made beside the write buffers. Blocks."""
        first = next(sorted_rows, None)
        if first is None:
            return
        library = rocksdict()
        database = self.library_database()

        def add() -> None:
            writer = library.SstFileWriter(_library_options(options, self._memory, create=True))
            writer.open(str(path))
            writer[first[0]] = first[1]
            for key, row in sorted_rows:
                writer[key] = row
            writer.finish()
            how = library.IngestExternalFileOptions()
            how.set_move_files(True)
            database.ingest_external_file([str(path)], how)

        _guarded(self.where, add)

    # ---------------------------------------------------------------------------------------------- points in time
    def hold(self) -> None:
        """From now on, writes wait: a snapshot must not see them. Only while it is not held."""
        self._layers = self.waiting, {}
        self._held = True

    def release(self) -> None:
        before, waiting = self._layers
        self._layers = {}, {**before, **waiting} if before else waiting
        self._held = False

    @property
    def held(self) -> bool:
        return self._held

    def checkpoint(self, path: Path) -> None:
        """Flush, then link all files into a new folder. Blocks; for a thread."""
        database = self.library_database()
        _guarded(self.where, lambda: rocksdict().Checkpoint(database).create_checkpoint(str(path)))

    def flush(self) -> None:
        """Blocks until the write buffers are on disk; for a thread."""
        database = self.library_database()
        _guarded(self.where, lambda: database.flush(True))

    def number(self, name: str) -> int:
        """One of RocksDB's own figures, `rocksdb.<name>`."""
        return int(self.library_database().property_int_value(f"rocksdb.{name}") or 0)

    @property
    def memory_used(self) -> int:
        """Bytes, of all databases that share the memory."""
        return int(self._memory.blocks.get_usage())

    def close(self) -> None:
        """No matter if it is closed. What is still read from ends: an iterator would keep the database open."""
        if self._database is None:
            return
        for known in list(self._readers.values()):
            if (reader := known()) is not None:
                reader.close()
        database, self._database = self._database, None
        self._layers = {}, {}
        database.cancel_all_background(True)
        del database


def failure(where: str, error: Exception) -> StreamactorsError:
    """RocksDB's error in our words."""
    if isinstance(error, StreamactorsError):
        return error
    text = str(error)
    if "lock hold by" in text or "LOCK" in text:
        return StorageFailed(f"{where}: the RocksDB folder is in use: {text}")
    if "Corruption" in text or "does not exist" in text or "raw mode" in text.lower():
        return CorruptCheckpoint(f"{where}: RocksDB can't read its files: {text}")
    return StorageFailed(f"{where}: RocksDB failed: {text}; is the disk full? RocksDB(folder=…) chooses another")


def _guarded(where: str, call: Callable[[], T]) -> T:
    try:
        return call()
    except Exception as error:
        raise failure(where, error) from error
