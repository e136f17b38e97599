"""RocksDB in a simulated process: real databases on the real disk, gone with the process.

Invariant: what RocksDB does by itself, in threads of its own, decides nothing. It merges its tables when the simulation
says so, and never by itself; its write buffers are too large to fill up. What differs from run to run nevertheless (the
digests of tables, which hold names drawn by RocksDB) is seen by nobody but the storage.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from random import Random
from typing import Final

from streamactors.clock import Clock
from streamactors.config import RocksDB
from streamactors.state.key_groups import KeyGroupRange
from streamactors.state.rocksdb.backend import RocksDBBackend, RocksDBOptions
from streamactors.state.rocksdb.native import RocksNativeSnapshot

IN_MEMORY: Final = "/dev/shm"
CACHE: Final = 16
DIRTY: Final = 4
"""Entries, as few as can be: what is read again was written behind, and comes from the tables."""
MERGED: Final = 0.15
"""The share of snapshots before which all tables are merged, so that none of them is known."""


class LocalState:
    """The databases of one simulated process, where temporary files go (see `scratch`)."""

    def __init__(self, draw: Random) -> None:
        self.draw = draw
        self._backends: list[SimulatedBackend] = []

    def open(self, groups: KeyGroupRange, max_parallelism: int, *, uid: str, clock: Clock) -> "SimulatedBackend":
        options = RocksDBOptions(cache=CACHE, dirty=DIRTY, compaction="none")
        backend = SimulatedBackend(self.draw, groups, max_parallelism, uid=uid, clock=clock, options=options)
        self._backends.append(backend)
        return backend

    def destroy(self) -> None:
        """As the machine does when a process ends: what was open is closed, and what lay there is of no use."""
        for backend in self._backends:
            backend.close()
        self._backends.clear()


@dataclass(frozen=True)
class SimulatedRocksDB(RocksDB):
    """The setting: "rocksdb", but on the local disk of the simulated process that opens it."""

    _: KW_ONLY
    local: Callable[[], LocalState]

    def make_backend(self, groups: KeyGroupRange, max_parallelism: int, *, uid: str, clock: Clock) -> RocksDBBackend:
        return self.local().open(groups, max_parallelism, uid=uid, clock=clock)


class SimulatedBackend(RocksDBBackend):
    """Merges its tables at drawn moments."""

    def __init__(
        self,
        draw: Random,
        groups: KeyGroupRange,
        max_parallelism: int,
        *,
        uid: str,
        clock: Clock,
        options: RocksDBOptions,
    ) -> None:
        super().__init__(groups, max_parallelism, uid=uid, clock=clock, options=options)
        self._draw = draw

    def begin_native_snapshot(self, checkpoint_id: int) -> RocksNativeSnapshot:
        if self._draw.random() < MERGED:
            self._database.library_database().compact_range(None, None)
        return super().begin_native_snapshot(checkpoint_id)


@contextlib.contextmanager
def scratch(*, wanted: bool) -> Iterator[None]:
    """While a run lasts, temporary files go into a folder of its own, in memory where that can be."""
    if not wanted:
        yield
        return
    place = IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else None
    before = tempfile.tempdir
    tempfile.tempdir = folder = tempfile.mkdtemp(prefix="streamactors-simulation-", dir=place)
    try:
        yield
    finally:
        tempfile.tempdir = before
        shutil.rmtree(folder, ignore_errors=True)
