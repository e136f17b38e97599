"""The backend that the configuration names, for one operator subtask."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from streamactors.clock import Clock
from streamactors.config import Heap, RocksDB, StateBackend
from streamactors.errors import IncompatibleState, MissingExtra
from streamactors.state.backend import KeyedBackend, NativeBackend
from streamactors.state.descriptors import Declaration
from streamactors.state.heap.backend import HeapBackend
from streamactors.state.key_groups import KeyGroupRange

_READ_CACHE = 1024
"""Decoded entries: what is only read needs no more."""


@runtime_checkable
class MakesBackends(Protocol):
    """A setting that opens its backends by itself: the simulation's, whose processes die without any clean-up."""

    def make_backend(self, groups: KeyGroupRange, max_parallelism: int, *, uid: str, clock: Clock) -> KeyedBackend: ...


def keyed_backend(
    setting: str | StateBackend, groups: KeyGroupRange, max_parallelism: int, *, uid: str, clock: Clock
) -> KeyedBackend:
    """Raises MissingExtra where the library that it needs is not installed."""
    if isinstance(setting, MakesBackends):
        return setting.make_backend(groups, max_parallelism, uid=uid, clock=clock)
    if setting == "rocksdb":
        setting = RocksDB()
    if not isinstance(setting, RocksDB):
        return HeapBackend(groups, max_parallelism, uid=uid, clock=clock)
    # Only who uses it needs to have it installed.
    from streamactors.state.rocksdb.backend import RocksDBBackend, RocksDBOptions

    options = RocksDBOptions(folder=setting.folder, memory=setting.memory, cache=setting.cache)
    return RocksDBBackend(groups, max_parallelism, uid=uid, clock=clock, options=options)


def full_every(setting: str | StateBackend) -> int | None:
    """How many checkpoints may refer to the same blocks; None where each writes all of its own."""
    return setting.full_every if isinstance(setting, Heap) and setting.incremental else None


def require_installed(setting: str | StateBackend) -> None:
    """Before anything runs: raises MissingExtra."""
    if setting == "rocksdb" or isinstance(setting, RocksDB):
        from streamactors.state.rocksdb.database import rocksdict

        rocksdict()


class NativeReader(KeyedBackend, NativeBackend, Protocol):
    """A backend of its own for reading native files."""


def native_reader(
    format: str,
    declarations: Mapping[str, Declaration],
    groups: KeyGroupRange,
    max_parallelism: int,
    *,
    uid: str,
    clock: Clock,
) -> NativeReader:
    """For a job whose backend has another format. Raises MissingExtra where the library that it needs is not installed,
    IncompatibleState for an unknown format."""
    if not format.startswith("rocksdb-"):
        raise IncompatibleState(
            f"operator {uid!r}: its state is stored as files in the format {format!r}, which this version can't read: "
            "use the version that wrote it, or a newer one"
        )
    from streamactors.state.rocksdb.backend import RocksDBBackend, RocksDBOptions
    from streamactors.state.rocksdb.database import rocksdict

    try:
        rocksdict()
    except MissingExtra as error:
        raise MissingExtra(
            f"operator {uid!r}: its state was stored as files of RocksDB, and rocksdict is needed to read them: pip "
            "install 'streamactors[rocksdb]'. What any backend reads without it is a savepoint"
        ) from error
    backend = RocksDBBackend(groups, max_parallelism, uid=uid, clock=clock, options=RocksDBOptions(cache=_READ_CACHE))
    try:
        for name, declaration in declarations.items():
            backend.bind(name, declaration)
    except BaseException:
        backend.close()
        raise
    return backend
