"""The backend that the configuration names, for one operator subtask."""

from streamactors.clock import Clock
from streamactors.config import RocksDB, StateBackend
from streamactors.state.backend import KeyedBackend
from streamactors.state.heap import HeapBackend
from streamactors.state.key_groups import KeyGroupRange


def keyed_backend(
    setting: str | StateBackend, groups: KeyGroupRange, max_parallelism: int, *, uid: str, clock: Clock
) -> KeyedBackend:
    """Raises MissingExtra where the library that it needs is not installed."""
    if setting == "rocksdb":
        setting = RocksDB()
    if not isinstance(setting, RocksDB):
        return HeapBackend(groups, max_parallelism, uid=uid, clock=clock)
    # Only who uses it needs to have it installed.
    from streamactors.state.rocksdb import RocksDBBackend, RocksDBOptions

    options = RocksDBOptions(folder=setting.folder, memory=setting.memory, cache=setting.cache)
    return RocksDBBackend(groups, max_parallelism, uid=uid, clock=clock, options=options)


def require_installed(setting: str | StateBackend) -> None:
    """Before anything runs: raises MissingExtra."""
    if setting == "rocksdb" or isinstance(setting, RocksDB):
        from streamactors.state.rocksdb_database import rocksdict

        rocksdict()
