"""State around an await, in RocksDB, with nearly everything written and read again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamactors.state.backend import KeyedBackend
from streamactors.state.rocksdb.backend import RocksDBBackend, RocksDBOptions
from tests.state.backend_contract import ALL, GROUPS
from tests.state.calls_contract import CALLS, SLOW_IS_FINE, CallsContract
from tests.state.kinds_contract import MINUTE, TOUCHED
from tests.state.manual_clock import ManualClock

pytestmark = pytest.mark.slow


class TestRocksDBCalls(CallsContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> Iterator[None]:
        self.options = RocksDBOptions(folder=str(tmp_path), memory=8 << 20, cache=16, dirty=4)
        self.made: list[RocksDBBackend] = []
        yield
        for backend in self.made:
            backend.close()
        assert list(tmp_path.iterdir()) == []

    def make(self, clock: ManualClock) -> KeyedBackend:
        self.made.append(RocksDBBackend(ALL, GROUPS, uid="totals", clock=clock, options=self.options))
        return self.made[-1]

    @settings(
        max_examples=20,
        deadline=None,
        suppress_health_check=SLOW_IS_FINE,
    )
    @given(calls=CALLS, lasting=st.sampled_from([None, MINUTE, TOUCHED]))
    def test_against_the_model(self, calls: list[Any], lasting: Any) -> None:
        self.agrees_with_the_model(calls, lasting)
