"""All kinds of state in RocksDB, cached and not."""

import datetime as dt
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pytest

from streamactors.state.backend import KeyedBackend, NativePart
from streamactors.state.descriptors import ListState, MapState, Ttl, ValueState
from streamactors.state.key_groups import key_group
from streamactors.state.rocksdb.backend import RocksDBBackend, RocksDBOptions
from streamactors.state.rocksdb.native import RocksNativeSnapshot
from streamactors.state.rocksdb.snapshot import RocksSnapshot
from streamactors.state.rocksdb.stores.maps import LOADED
from tests.state.backend_contract import ALL, GROUPS, contents, drained, stand_on
from tests.state.kinds_contract import MINUTE, TOUCHED, KindsContract, no_turn, sweep
from tests.state.manual_clock import ManualClock

P = ParamSpec("P")
R = TypeVar("R")

pytestmark = pytest.mark.slow


class Interrupting(ManualClock):
    """Begins a snapshot once, when the thread is through and nobody knows it."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[], RocksSnapshot | RocksNativeSnapshot] | None = None
        self.begun: RocksSnapshot | RocksNativeSnapshot | None = None

    async def run_blocking(self, work: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        result = await super().run_blocking(work, *args, **kwargs)
        if (begin := self.meanwhile) is not None:
            self.meanwhile, self.begun = None, begin()
        return result


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

    async def test_what_a_fetch_has_read_may_be_swept_before_it_is_kept(self, clock: ManualClock) -> None:
        backend = self.make(clock)
        assert isinstance(backend, RocksDBBackend)
        value = backend.bind("value", ValueState(int, ttl=MINUTE))
        items = backend.bind("items", ListState(int, ttl=MINUTE))
        keys = list(range(100))
        groups = [key_group(key, GROUPS) for key in keys]
        for key in keys:
            stand_on(backend.cursor, key)
            value.set(key)
            items.extend(range(200))
        backend.cursor.clear()
        self.forget(backend)
        clock.advance(60)
        fetch = backend.fetch(keys, groups)
        assert fetch is not None
        fetch.read()
        await sweep(backend)
        fetch.keep()
        for key in keys:
            stand_on(backend.cursor, key)
            value.set(1)
            items.append(1)
        drained(backend.begin_snapshot(1))
        assert backend.entries() == {"value": 100, "items": 100}
        assert contents(backend, "items") == {key: [1] for key in keys}

    @pytest.mark.parametrize("native", [True, False])
    async def test_what_a_sweep_has_read_is_older_than_what_is_frozen_meanwhile(self, native: bool) -> None:
        clock = Interrupting()
        backend = self.make(clock)
        assert isinstance(backend, RocksDBBackend)
        items = backend.bind("items", ListState(int, ttl=MINUTE))
        seen = backend.bind("seen", MapState(int, int, ttl=MINUTE))
        for number in range(2):
            stand_on(backend.cursor, "a")
            items.clear()
            items.extend(range(number, 200 * (number + 1)))
            seen.update(dict.fromkeys(range(2 * LOADED), number))
            if not number:
                drained(backend.begin_snapshot(1))
                clock.advance(60)
        backend.cursor.clear()
        for name in ("items", "seen"):
            clock.meanwhile = lambda: backend.begin_native_snapshot(2) if native else backend.begin_snapshot(2)
            await backend.sweep(name, key_group("a", GROUPS), no_turn)
            assert clock.begun is not None
            clock.begun.abort()
        stand_on(backend.cursor, "a")
        assert list(items) == list(range(1, 400))
        assert dict(seen) == dict.fromkeys(range(2 * LOADED), 1)

    def forget(self, backend: RocksDBBackend) -> None:
        """Write all, and empty the cache."""
        drained(backend.begin_snapshot(1))
        for store in backend._stores.values():
            store.young.clear()
            store.old.clear()

    async def test_sweeping_leaves_the_cache_alone(self, clock: ManualClock) -> None:
        backend = self.make(clock)
        assert isinstance(backend, RocksDBBackend)
        for name, declared in self.all_kinds(MINUTE).items():
            backend.bind(name, declared)
        states = {name: backend._bound[number] for number, name in enumerate(self.all_kinds(None))}
        for key in range(200):
            stand_on(backend.cursor, key)
            self.write(states, 1)
        self.forget(backend)
        clock.advance(60)
        for key in range(1000, 1003):
            stand_on(backend.cursor, key)
            self.write(states, 1)
        drained(backend.begin_snapshot(1))
        backend.cursor.clear()
        cached = {name: [*store.young, *store.old] for name, store in backend._stores.items()}
        await sweep(backend)
        assert {name: [*store.young, *store.old] for name, store in backend._stores.items()} == cached
        assert all(not store.dirty for store in backend._stores.values())
        assert set(backend.entries().values()) == {3}

    @pytest.mark.parametrize(
        ("before", "after", "left"),
        [
            (MINUTE, Ttl(dt.timedelta(seconds=45)), True),
            (MINUTE, TOUCHED, True),
            (None, MINUTE, True),
            (MINUTE, None, True),
            (MINUTE, Ttl(dt.timedelta(seconds=5)), False),
        ],
    )
    def test_native_files_are_read_under_another_ttl(
        self, clock: ManualClock, tmp_path_factory: pytest.TempPathFactory, before: Any, after: Any, left: bool
    ) -> None:
        backend, folder = self.make(clock), tmp_path_factory.mktemp("native")
        assert isinstance(backend, RocksDBBackend)
        states = {name: backend.bind(name, declared) for name, declared in self.all_kinds(before).items()}
        for key in range(50):
            stand_on(backend.cursor, key)
            for x in range(1, 101):
                self.write(states, x)
        snapshot = backend.begin_native_snapshot(1)
        snapshot.link()
        snapshot.linked()
        for file in snapshot.files():
            shutil.copyfile(file.path, folder / file.name)
        snapshot.abort()
        held, schemas = self.held(backend), backend.schemas()
        clock.advance(30)
        again = self.make(clock)
        assert isinstance(again, RocksDBBackend)
        for name, declared in self.all_kinds(after).items():
            again.bind(name, declared)
        again.check_schemas(schemas)
        again.restore_native([NativePart(str(folder), ALL)])
        assert self.held(again) == (held if left else {name: {} for name in held})
        assert set(again.entries().values()) == {50}
        clock.advance(60)
        assert self.held(again) == (held if after is None else {name: {} for name in held})


class TestRocksDBKindsWithATinyCache(TestRocksDBKinds):
    """Nearly everything is written and read again."""

    cache = 16
    dirty = 4
