"""All kinds of state in RocksDB, cached and not."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from streamactors.state.backend import KeyedBackend
from streamactors.state.rocksdb import RocksDBBackend, RocksDBOptions
from tests.state.backend_contract import ALL, GROUPS
from tests.state.kinds_contract import KindsContract
from tests.state.manual_clock import ManualClock

pytestmark = pytest.mark.slow


class TestRocksDBKinds(KindsContract):
    cache = 100_000
    dirty = 8192

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> Iterator[None]:
        self.options = RocksDBOptions(folder=str(tmp_path), memory=8 << 20, cache=self.cache, dirty=self.dirty)
        self.made: list[RocksDBBackend] = []
        yield
        for backend in self.made:
            backend.close()
        assert list(tmp_path.iterdir()) == []

    def make(self, clock: ManualClock) -> KeyedBackend:
        self.made.append(RocksDBBackend(ALL, GROUPS, uid="totals", clock=clock, options=self.options))
        return self.made[-1]


class TestRocksDBKindsWithATinyCache(TestRocksDBKinds):
    """Nearly everything is written and read again."""

    cache = 16
    dirty = 4
