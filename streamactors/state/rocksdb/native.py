"""Native snapshots: RocksDB's own files, linked at one point in time, for checkpoints that store only new ones.

A file is known by its content: its name may come again after a fail-over. Tables (`shared`) never change once written;
the few small files beside them say which tables make up the state, and are new each time.

What was dirty at the barrier is written first (see `freeze`), by `settle`, in slices; `link` does what is left
of it, and then has to be called on the loop, too.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from streamactors.errors import CorruptCheckpoint, IncompatibleState, StateAccessError, StreamactorsError
from streamactors.state.backend import NativeFile, NativePart
from streamactors.state.key_groups import KeyGroupRange
from streamactors.state.layouts import check_version
from streamactors.state.rocksdb.database import Database, RocksDBOptions, RowReader, Rows
from streamactors.state.rocksdb.folder import LocalFolder, copy, digest, empty, link_or_copy, read, remove, sizes
from streamactors.state.rocksdb.freeze import Freeze
from streamactors.state.rocksdb.stores.store import group_start
from streamactors.state.storage_keys import Shape, same_shapes

FORMAT: Final = "rocksdb-1"
_META: Final = b"\xff\xffmeta"
"""Behind all key groups, of which there are at most 32768."""
_TABLE: Final = ".sst"
_NOT_STORED: Final = (".log", ".dbtmp", "LOCK", "LOG")
_OPTIONS: Final = "OPTIONS-"
"""How whoever wrote it had opened it: larger than all else that is new each time, and never read."""
_ESSENTIAL: Final = "CURRENT"


class _Format(msgspec.Struct):
    """What every version's description has."""

    format: str


class _Meta(msgspec.Struct, forbid_unknown_fields=False):
    """What the rows of a database are. `counts`: keys by state and key group. `shapes`: of the classes of keys."""

    format: str
    max_parallelism: int
    schemas: dict[str, Any]
    counts: dict[str, dict[int, int]]
    shapes: dict[str, Shape] | None = None


def meta_row(
    schemas: Mapping[str, Any],
    counts: dict[str, dict[int, int]],
    shapes: Mapping[str, Shape],
    max_parallelism: int,
) -> Rows:
    """`counts` without zeros."""
    return {_META: msgspec.msgpack.encode(_Meta(FORMAT, max_parallelism, dict(schemas), counts, dict(shapes)))}


# ------------------------------------------------------------------------------------------------------------ snapshots
class RocksNativeSnapshot:
    """See `NativeSnapshot`. `describe` makes the row that says whose rows these are. `digests`: of tables hashed
    before, by name and size: a database gives each name once."""

    format: Final = FORMAT

    def __init__(
        self,
        checkpoint_id: int,
        freeze: Freeze,
        database: Database,
        place: LocalFolder,
        name: str,
        describe: Callable[[dict[str, dict[int, int]]], Rows],
        digests: dict[str, tuple[int, bytes]],
        run_blocking: Callable[[Callable[[], None]], Awaitable[None]],
        on_end: Callable[["RocksNativeSnapshot"], None],
    ) -> None:
        self.checkpoint_id = checkpoint_id
        self._counts: dict[str, dict[int, int]] | None = None
        self._error: StreamactorsError | None = None
        self._freeze = freeze
        self._database = database
        self._place = place
        self._folder = place.path / name
        self._describe = describe
        self._digests = digests
        self._run_blocking = run_blocking
        self._on_end = on_end
        self._ended = False
        if not freeze.is_left:
            self._hurry_at_once()

    def _hurry_at_once(self) -> None:
        try:
            self.hurry()
        except BaseException:  # nobody gets to know it, to give it up
            self._freeze.end()
            raise

    @property
    def entries(self) -> Mapping[str, Mapping[int, int]]:
        return self._counts or {}

    async def settle(self, turn: Callable[[], Awaitable[None]]) -> None:
        """See `SettlingSnapshot`."""
        while self._counts is None and self._freeze.write_some():
            await turn()
        self.hurry()
        self._check()
        while left := len(self._database.before) if self.entries else 0:
            self._database.settle()
            if len(self._database.before) == left:  # RocksDB takes nothing now
                await self._run_blocking(self._database.flush)
            await turn()

    def hurry(self) -> None:
        """Write what is still frozen now."""
        if self._counts is None and not self._freeze.ended:
            self._freeze.write_all()
            counts = self._freeze.counts
            if counts:
                self._database.write_before(self._describe(counts))
            else:
                self._freeze.end()
            self._error, self._counts = self._freeze.error, counts  # the next freeze forgets the error
            if counts:
                self._database.settle()

    def _check(self) -> None:
        """What was given up must not pass for empty."""
        if self._error is not None:
            raise self._error
        if self._counts is None:
            raise StateAccessError(f"{self._database.where}: the snapshot {self.checkpoint_id} has been given up")

    def link(self) -> None:
        self.hurry()
        self._check()
        if self.entries:
            with self._place.in_use():
                self._write_before()
                self._database.checkpoint(self._folder)

    def _write_before(self) -> None:
        while left := len(self._database.before):
            self._database.settle()
            if len(self._database.before) == left:
                self._database.flush()

    def linked(self) -> None:
        self._freeze.end()

    def files(self) -> list[NativeFile]:
        if not self.entries:
            return []
        with self._place.in_use():
            found = sizes(self._folder)
            stored = {name: size for name, size in found.items() if _is_stored(name)}
            return [self._file(name, size) for name, size in sorted(stored.items())]

    def read(self, file: NativeFile, offset: int, length: int) -> bytes:
        with self._place.in_use():
            return read(Path(file.path), offset, length)

    def _file(self, name: str, size: int) -> NativeFile:
        path = self._folder / name
        shared = name.endswith(_TABLE)
        known = self._digests.get(name) if shared else None
        if known is not None and known[0] == size:
            return NativeFile(name, str(path), size, known[1], shared)
        content = digest(path)
        if shared:
            self._digests[name] = size, content
        return NativeFile(name, str(path), size, content, shared)

    def abort(self) -> None:
        self.linked()
        if not self._ended:
            self._ended = True
            remove(self._folder)
            self._on_end(self)


def _is_stored(name: str) -> bool:
    return not name.endswith(_NOT_STORED) and not name.startswith(_OPTIONS)


# -------------------------------------------------------------------------------------------------------------- restore
def open_part(part: NativePart, path: Path, options: RocksDBOptions, where: str) -> tuple[Database, _Meta]:
    """A database at `path` made of a part's files, which stay as they are."""
    folder = Path(part.folder)
    found = sizes(folder) if folder.is_dir() else {}
    if _ESSENTIAL not in found:
        raise CorruptCheckpoint(f"{where}: {part.folder} holds no RocksDB snapshot ({_ESSENTIAL} is missing)")
    empty(path)
    for name in found:
        (link_or_copy if name.endswith(_TABLE) else copy)(folder / name, path / name)
    database = Database(path, options, where, create=False)
    try:
        return database, _meta_of(database)
    except BaseException:
        database.close()
        raise


def known_tables(part: NativePart) -> dict[str, tuple[int, bytes]]:
    """Size and digest by name, of those that need not be hashed again."""
    found = sizes(Path(part.folder))
    return {name: (found[name], digest) for name, digest in part.digests.items() if name in found}


def _meta_of(database: Database) -> _Meta:
    data = database.get(_META)
    if data is None:
        raise CorruptCheckpoint(f"{database.where}: a RocksDB folder that is no snapshot of state: it says not whose")
    try:
        _check_format(database, msgspec.msgpack.decode(data, type=_Format).format)
        found = msgspec.msgpack.decode(data, type=_Meta)
    except msgspec.MsgspecError as error:
        raise CorruptCheckpoint(f"{database.where}: the description of the state can't be read: {error}") from error
    return found


def _check_format(database: Database, found: str) -> None:
    try:
        check_version(found, FORMAT)
    except IncompatibleState as error:
        raise IncompatibleState(f"{database.where}: {error}") from error


def same_rows(meta: _Meta, schemas: Mapping[str, Any]) -> bool:
    """Whether the rows are what would be written now. What changed is rewritten when it is restored: rows of several
    versions in one database could not be told apart later."""
    if meta.shapes is None or not same_shapes(meta.shapes):
        return False
    return all(name in schemas and _rows(schemas[name]) == _rows(stored) for name, stored in meta.schemas.items())


def _rows(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """What of a schema the rows depend on: whether there is a ttl, but not how long it is."""
    return {**schema, "ttl": "ttl" in schema}


def check_max_parallelism(meta: _Meta, max_parallelism: int, where: str) -> None:
    if meta.max_parallelism != max_parallelism:
        raise IncompatibleState(
            f"{where}: stored with the max parallelism {meta.max_parallelism}, and it is {max_parallelism} now"
        )


def keep_only(database: Database, groups: KeyGroupRange) -> None:
    """Delete the rows of all other key groups."""
    database.delete_range(group_start(0), group_start(groups.start))
    database.delete_range(group_start(groups.stop), b"\xff\xff")


def rows_of(database: Database, groups: KeyGroupRange) -> RowReader:
    return database.rows(group_start(groups.start), group_start(groups.stop), keep_blocks=False)


def counts_in(meta: _Meta, groups: KeyGroupRange) -> Iterator[tuple[str, dict[int, int]]]:
    for state, counts in meta.counts.items():
        yield state, {group: count for group, count in counts.items() if group in groups}


def base_of(parts: Sequence[NativePart], groups: KeyGroupRange) -> NativePart | None:
    """The part that is worth opening as it is, and to delete from: at least half of it is wanted."""
    best = max(parts, key=lambda part: len(part.groups.intersect(groups)), default=None)
    return best if best and 2 * len(best.groups.intersect(groups)) >= len(best.groups) else None
