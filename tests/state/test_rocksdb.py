"""The RocksDB backend: the contract, and what only RocksDB promises."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamactors.state.backend import KeyedBackend
from streamactors.state.key_groups import KeyGroupRange
from streamactors.state.rocksdb import RocksDBBackend, RocksDBOptions
from tests.state.backend_contract import ALL, GROUPS, BackendContract

SMALL = RocksDBOptions(memory=8 << 20)


class TestRocksDB(BackendContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> Iterator[None]:
        self.options = RocksDBOptions(folder=str(tmp_path), memory=8 << 20)
        self.made: list[RocksDBBackend] = []
        yield
        for backend in self.made:
            backend.close()
        assert list(tmp_path.iterdir()) == []

    def make(self, groups: KeyGroupRange = ALL, max_parallelism: int = GROUPS, uid: str = "totals") -> KeyedBackend:
        backend = RocksDBBackend(groups, max_parallelism, uid=uid, options=self.options)
        self.made.append(backend)
        return backend


class TestRocksDBWithATinyCache(TestRocksDB):
    """Nearly everything is written and read again."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> Iterator[None]:
        self.options = RocksDBOptions(folder=str(tmp_path), memory=8 << 20, cache=16, dirty=4)
        self.made: list[RocksDBBackend] = []
        yield
        for backend in self.made:
            backend.close()
        assert list(tmp_path.iterdir()) == []
