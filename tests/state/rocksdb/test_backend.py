"""The RocksDB backend: the contract, and what only RocksDB promises."""

import asyncio
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pytest

from streamactors.clock import SystemClock
from streamactors.errors import (
    CheckpointFailed,
    InvalidConfig,
    MissingExtra,
    StateAccessError,
    StorageFailed,
    UnserialisableValue,
)
from streamactors.state.backend import KeyedBackend
from streamactors.state.descriptors import ListState, MapState, ValueState
from streamactors.state.heap.backend import HeapBackend
from streamactors.state.key_groups import KeyGroupRange, key_group
from streamactors.state.rocksdb.backend import RocksDBBackend, RocksDBOptions
from streamactors.state.rocksdb.database import Database
from streamactors.state.rocksdb.states import RocksMap
from tests.state.backend_contract import ALL, GROUPS, BackendContract, Point, contents, drained, stand_on

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
Make = Callable[..., RocksDBBackend]
P = ParamSpec("P")
R = TypeVar("R")


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


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[RocksDBBackend] = []

    def open_one(**options: Any) -> RocksDBBackend:
        settings: dict[str, Any] = {"folder": str(tmp_path / "local"), "memory": 8 << 20} | options
        made.append(RocksDBBackend(KeyGroupRange(0, 1), 1, uid="totals", options=RocksDBOptions(**settings)))
        return made[-1]

    yield open_one
    for backend in made:
        backend.close()


class TestCache:
    def test_a_cached_value_is_handed_out_as_it_is(self, make: Make) -> None:
        backend = make()
        point = backend.bind("point", ValueState(Point))
        stand_on(backend.cursor, "a", 1)
        value = Point(1)
        point.set(value)
        assert point.get() is value
        drained(backend.begin_snapshot(1))
        assert point.get() is value

    def test_it_is_bounded(self, make: Make) -> None:
        backend = make(cache=1000, dirty=100)
        total, store = backend.bind("total", ValueState(int, default=0)), backend._stores["total"]
        for key in range(5000):
            stand_on(backend.cursor, key, 1)
            total.set(key)
            assert len(store.young) + len(store.old) <= 1000 + 2 * 100
            assert len(store.dirty) <= 100
        for key in range(5000):
            stand_on(backend.cursor, key, 1)
            assert total.get() == key
        assert backend.entries() == {"total": 5000}

    def test_what_is_used_stays(self, make: Make) -> None:
        backend = make(cache=100)
        point = backend.bind("point", ValueState(Point))
        stand_on(backend.cursor, "hot", 1)
        hot = Point(1)
        point.set(hot)
        for key in range(1000):
            stand_on(backend.cursor, key, 1)
            point.get()
            stand_on(backend.cursor, "hot", 1)
            assert point.get() is hot

    def test_keys_that_come_and_go_leave_nothing(self, make: Make) -> None:
        backend = make(cache=100, dirty=10)
        total, events = backend.bind("total", ValueState(int, default=0)), backend.bind("events", ListState(int))
        seen = backend.bind("seen", MapState(int, int))
        for key in range(500):
            stand_on(backend.cursor, key, 1)
            total.set(1)
            events.extend(range(150))
            seen.update({number: number for number in range(80)})
            stand_on(backend.cursor, key - 20, 1)
            total.clear()
            events.clear()
            seen.clear()
        for key in range(480, 500):
            stand_on(backend.cursor, key, 1)
            total.clear()
            events.clear()
            seen.clear()
        assert backend.entries() == {"total": 0, "events": 0, "seen": 0}
        written(backend)
        assert list(backend._database.rows(b"\0", b"\xff")) == []


class TestPrefetch:
    async def test_what_a_batch_needs_is_in_memory_then(self, make: Make) -> None:
        backend = make()
        total, events = backend.bind("total", ValueState(int, default=0)), backend.bind("events", ListState(int))
        seen = backend.bind("seen", MapState(str, int))
        keys = list(range(100))
        for key in keys[:50]:
            stand_on(backend.cursor, key, 1)
            total.set(key)
            events.extend([key] * 10)
            seen["a"] = key
        later = make()
        total = later.bind("total", ValueState(int, default=0))
        events, seen = later.bind("events", ListState(int)), later.bind("seen", MapState(str, int))
        later.restore(drained(backend.begin_snapshot(1)))
        forget(later)
        await later.prefetch(keys, [0] * 100)
        assert later.fetch(keys, [0] * 100) is None
        later._database.close()  # so that nothing can be read any more
        for key in keys:
            stand_on(later.cursor, key, 1)
            there = key < 50
            assert total.get() == (key if there else 0)
            assert list(events) == ([key] * 10 if there else [])
            assert dict(seen) == ({"a": key} if there else {})

    async def test_what_changed_while_it_was_read_is_not_overwritten(self, make: Make) -> None:
        backend = make(cache=16, dirty=4)
        total = backend.bind("total", ValueState(int, default=0))
        keys = list(range(8))
        stand_on(backend.cursor, 1, 1)
        total.set(1)
        forget(backend)
        fetch = backend.fetch(keys, [0] * 8)
        assert fetch is not None
        fetch.read()
        for key in range(40):
            stand_on(backend.cursor, key, 1)
            total.set(key + 100)
        forget(backend)
        fetch.keep()
        for key in keys:
            stand_on(backend.cursor, key, 1)
            assert total.get() == key + 100

    async def test_what_leaves_the_cache_while_it_is_kept_is_not_overwritten(self, make: Make) -> None:
        """Changed while it was read, and written only to make room for the others of what was read."""
        backend = make(cache=16)
        total = backend.bind("total", ValueState(int, default=0))
        keys = list(range(20))
        for key in keys:
            stand_on(backend.cursor, key, 1)
            total.set(key)
        forget(backend)
        fetch = backend.fetch(keys, [0] * 20)
        assert fetch is not None
        fetch.read()
        stand_on(backend.cursor, 19, 1)
        total.set(1000)
        fetch.keep()
        stand_on(backend.cursor, 19, 1)
        assert total.get() == 1000
        assert backend._shared.on_flush == []

    async def test_it_waits_while_too_much_waits_to_be_written(self, make: Make) -> None:
        backend = make(dirty=8)
        total = backend.bind("total", ValueState(int, default=0))
        stand_on(backend.cursor, "held", 1)
        total.set(1)
        snapshot = backend.begin_native_snapshot(1)
        for key in range(100):
            stand_on(backend.cursor, key, 1)
            total.set(key)
        assert len(backend._database.waiting) > 8
        waiting = asyncio.create_task(backend.prefetch([1], [0]))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not waiting.done()
        snapshot.abort()
        await waiting
        assert len(backend._database.waiting) <= 8

    async def test_it_finds_what_waits_to_be_written(self, make: Make) -> None:
        backend = make()
        total, events = backend.bind("total", ValueState(int, default=0)), backend.bind("events", ListState(int))
        keys = list(range(50))
        stand_on(backend.cursor, "held", 1)
        total.set(1)
        snapshot = backend.begin_native_snapshot(1)
        for key in keys:
            stand_on(backend.cursor, key, 1)
            total.set(key)
            events.extend(range(100))
        forget(backend)
        assert backend._database.waiting
        await backend.prefetch(keys, [0] * 50)
        for key in keys:
            stand_on(backend.cursor, key, 1)
            assert (total.get(), list(events)) == (key, list(range(100)))
        snapshot.abort()

    def test_what_the_database_cannot_hold_is_not_looked_for(self, make: Make) -> None:
        backend = make()
        total = backend.bind("total", ValueState(int, default=0))
        assert backend.fetch([1, 2], [0, 0]) is None
        stand_on(backend.cursor, 1, 1)
        total.set(1)
        assert backend.fetch([1, 2], [0, 0]) is None
        written(backend)
        fetch = backend.fetch([1, 2], [0, 0])
        assert fetch is not None
        fetch.let_go()
        assert fetch.size == 1
        total.clear()
        written(backend)
        assert backend.fetch([1, 2], [0, 0]) is None

    async def test_few_keys_are_read_at_once_unless_reading_is_slow(self, make: Make) -> None:
        backend = make()
        total = backend.bind("total", ValueState(int, default=0))
        for key in range(100):
            stand_on(backend.cursor, key, 1)
            total.set(key)
        for seconds, here in ((0.0, True), (10.0, False)):
            forget(backend)
            backend._reading.measured(1000, seconds)
            task = asyncio.create_task(backend.prefetch(list(range(30)), [0] * 30))
            await asyncio.sleep(0)
            assert task.done() == here
            await task
            assert backend.fetch(list(range(30)), [0] * 30) is None
        for _ in range(2000):
            backend._reading.recover()
        assert backend._reading.items(0.001) > 100

    async def test_giving_up_leaves_nothing(self, make: Make) -> None:
        backend = make()
        total = backend.bind("total", ValueState(int, default=0))
        stand_on(backend.cursor, "there", 1)
        total.set(1)
        written(backend)
        task = asyncio.create_task(backend.prefetch(list(range(1000)), [0] * 1000))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert backend._shared.on_flush == []


def forget(backend: RocksDBBackend) -> None:
    """Everything written, nothing cached."""
    written(backend)
    for store in backend._stores.values():
        assert not store.dirty
        while store.old or store.young:
            store._dismiss(list(store.old))
            store._age()


def written(backend: RocksDBBackend) -> None:
    backend.begin_snapshot(99).hurry()
    assert not any(store.dirty or store.frozen for store in backend._stores.values())


class TestLargeEntries:
    def test_a_list_is_appended_to_without_reading_it(self, make: Make) -> None:
        backend = make()
        events = backend.bind("events", ListState(int))
        stand_on(backend.cursor, "a", 1)
        events.extend(range(100_000))
        forget(backend)
        events.append(-1)
        assert len(events) == 100_001
        cell = backend._stores["events"].cached("a")
        assert len(cell.tail) < 65
        assert list(events) == [*range(100_000), -1]
        assert backend.query("events", "a", 0) == [*range(100_000), -1]

    def test_a_short_tail_is_all_that_is_rewritten(self, make: Make) -> None:
        backend = make()
        events = backend.bind("events", ListState(str))
        stand_on(backend.cursor, "a", 1)
        for number in range(1000):
            events.append(f"{number:0100}")
            if number % 3 == 0:
                forget(backend)
        rows = list(backend._database.rows(b"\0", b"\xff"))
        assert 1000 // 70 <= len(rows) <= 1000 // 64 + 1
        assert [int(item) for item in events] == list(range(1000))

    def test_one_key_that_grows_without_end_is_written_behind(self, make: Make) -> None:
        backend = make()
        events, seen = backend.bind("events", ListState(int)), backend.bind("seen", MapState(int, int))
        stand_on(backend.cursor, "a", 1)
        for number in range(20_000):
            events.append(number)
            seen[number] = number
        assert len(backend._stores["events"].cached("a").tail) <= 4096
        assert len(backend._stores["seen"].cached("a").known) <= 4096
        assert list(events) == list(seen) == list(range(20_000))

    def test_a_map_is_read_in_part(self, make: Make) -> None:
        backend = make()
        seen = backend.bind("seen", MapState(int, Point))
        assert isinstance(seen, RocksMap)
        stand_on(backend.cursor, "a", 1)
        seen.update({number: Point(number) for number in range(10_000, 0, -1)})
        forget(backend)
        assert seen[77] == Point(77)
        del seen[5001]
        seen[5003] = Point(0)
        seen[50_000] = Point(1)
        found = [(key, point.x) for key, point in seen.range(5000, 5005)]
        assert found == [(5000, 5000), (5002, 5002), (5003, 0), (5004, 5004)]
        assert len(backend._stores["seen"].cached("a").known) < 20
        assert (len(seen), 5001 in seen, 50_000 in seen) == (10_000, False, True)
        keys = list(seen)
        assert keys == [number for number in range(1, 10_001) if number != 5001] + [50_000]
        assert sum(point.x for point in seen.values()) == sum(range(10_001)) - 5001 - 5003 + 1
        assert backend.query("seen", "a", 0)[5003] == Point(0)

    def test_what_was_loaded_is_let_go(self, make: Make) -> None:
        backend = make()
        seen = backend.bind("seen", MapState(int, int))
        stand_on(backend.cursor, "a", 1)
        seen.update({number: number for number in range(5000)})
        forget(backend)
        for number in range(5000):
            assert seen[number] == number
        assert len(backend._stores["seen"].cached("a").known) < 600

    def test_they_are_spread_over_blocks(self, make: Make) -> None:
        backend = make()
        events, seen = backend.bind("events", ListState(int)), backend.bind("seen", MapState(int, int))
        for key in ("a", ("b", 1)):
            stand_on(backend.cursor, key, 1)
            events.extend(range(5000))
            seen.update({number: number for number in range(500)})
        blocks = drained(backend.begin_snapshot(1), 3)
        assert len(blocks) > 300
        assert sum(block.entries for block in blocks) == 4
        heap = HeapBackend(KeyGroupRange(0, 1), 1)
        heap.bind("events", ListState(int))
        heap.bind("seen", MapState(int, int))
        heap.restore(blocks)
        numbers = {number: number for number in range(500)}
        assert contents(heap, "events") == {"a": list(range(5000)), ("b", 1): list(range(5000))}
        assert contents(heap, "seen") == {"a": numbers, ("b", 1): numbers}

    def test_reading_on_after_the_end_is_refused(self, make: Make) -> None:
        backend = make()
        events = backend.bind("events", ListState(int))
        stand_on(backend.cursor, "a", 1)
        events.extend(range(5000))
        forget(backend)
        items = iter(events)
        next(items)
        backend.close()
        with pytest.raises(StateAccessError, match="the operator has been stopped"):
            list(items)


class HeldClock(SystemClock):
    """Its threads begin, and go on only once they are let."""

    def __init__(self) -> None:
        self.begun, self.let = threading.Event(), threading.Event()

    async def run_blocking(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        def held() -> R:
            self.begun.set()
            assert self.let.wait(30)
            return fn(*args, **kwargs)

        return await asyncio.to_thread(held)


class TestThreads:
    @pytest.fixture
    def clock(self) -> HeldClock:
        return HeldClock()

    @pytest.fixture
    def backend(self, tmp_path: Path, clock: HeldClock) -> RocksDBBackend:
        """Whose keys 0 to 199 are on disk, and not in its cache."""
        options = RocksDBOptions(folder=str(tmp_path), memory=8 << 20, cache=16)
        backend = RocksDBBackend(ALL, GROUPS, options=options, clock=clock)
        total = backend.bind("total", ValueState(int, default=0))
        for key in range(200):
            stand_on(backend.cursor, key, GROUPS)
            total.set(key)
        forget(backend)
        return backend

    async def read(self, backend: RocksDBBackend, clock: HeldClock) -> asyncio.Task[None]:
        keys = list(range(200))
        reading = asyncio.create_task(backend.prefetch(keys, [key_group(key, GROUPS) for key in keys]))
        await asyncio.to_thread(clock.begun.wait, 30)
        return reading

    async def test_who_is_cancelled_waits_for_its_thread(
        self, backend: RocksDBBackend, clock: HeldClock, tmp_path: Path
    ) -> None:
        """Else it might still hold the files open when the folder is deleted."""
        reading = await self.read(backend, clock)
        reading.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not reading.done()
        clock.let.set()
        with pytest.raises(asyncio.CancelledError):
            await reading
        backend.close()
        assert list(tmp_path.iterdir()) == []

    async def test_the_folder_goes_with_the_last_of_them(
        self, backend: RocksDBBackend, clock: HeldClock, tmp_path: Path
    ) -> None:
        reading = await self.read(backend, clock)
        backend.close()
        assert len(list(tmp_path.iterdir())) == 1
        clock.let.set()
        with pytest.raises(StateAccessError, match="the operator has been stopped"):
            await reading
        assert list(tmp_path.iterdir()) == []


class TestFolder:
    def test_what_a_crash_has_left_is_deleted_and_what_lives_is_not(self, make: Make, tmp_path: Path) -> None:
        script = (
            "import os, sys\n"
            "from streamactors.state.key_groups import KeyGroupRange\n"
            "from streamactors.state.rocksdb.backend import RocksDBBackend, RocksDBOptions\n"
            "backend = RocksDBBackend(KeyGroupRange(0, 1), 1, options=RocksDBOptions(folder=sys.argv[1]))\n"
            "os._exit(9)\n"
        )
        folder = tmp_path / "local"
        living = make()
        died = subprocess.run([sys.executable, "-c", script, str(folder)], cwd=ROOT, check=False)
        assert died.returncode == 9
        (folder / "streamactors-state-without-a-lock").mkdir()  # by one that was killed before it had made it
        (folder / "something else").mkdir()
        assert len(list(folder.iterdir())) == 4
        make().close()
        left = {path.name for path in folder.iterdir()}
        assert left == {living._folder.path.name, "something else"}
        assert living.bind("total", ValueState(int)) is not None

    def test_a_folder_that_cannot_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageFailed, match=r"RocksDB can't use the folder .*file.*RocksDB\(folder=…\)"):
            RocksDBBackend(ALL, GROUPS, options=RocksDBOptions(folder=str(tmp_path / "file")))

    def test_temporary_by_default(self) -> None:
        backend = RocksDBBackend(ALL, GROUPS, options=RocksDBOptions(memory=8 << 20))
        path = backend._folder.path
        assert path.parent == Path(tempfile.gettempdir())
        backend.close()
        assert not path.exists()

    def test_a_full_disk_is_a_clear_error(self, tmp_path: Path) -> None:
        """A limit on the size of files stands in for it."""
        script = (
            "import resource, sys\n"
            "from streamactors.errors import StorageFailed\n"
            "from streamactors.state.descriptors import ValueState\n"
            "from streamactors.state.key_groups import KeyGroupRange\n"
            "from streamactors.state.rocksdb.backend import RocksDBBackend, RocksDBOptions\n"
            "options = RocksDBOptions(folder=sys.argv[1])\n"
            "backend = RocksDBBackend(KeyGroupRange(0, 1), 1, uid='totals', options=options)\n"
            "total = backend.bind('total', ValueState(bytes, default=b''))\n"
            "for backend.cursor.key in range(2000):\n"
            "    backend.cursor.group = 0\n"
            "    total.set(b'%08d' % backend.cursor.key * 100)\n"
            "snapshot = backend.begin_native_snapshot(1)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
            "try:\n"
            "    snapshot.link()\n"
            "except StorageFailed as error:\n"
            "    print(error)\n"
            "snapshot.abort()\n"
            "assert total.get() == b'%08d' % 1999 * 100\n"
            "backend.close()\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "operator 'totals', key groups 0..0: RocksDB failed: IO error" in done.stdout
        assert "is the disk full?" in done.stdout
        assert list(tmp_path.iterdir()) == []


def test_without_rocksdict_the_cure_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "rocksdict", None)
    with pytest.raises(MissingExtra, match=r"pip install 'streamactors\[rocksdb\]', or use 'heap'"):
        RocksDBBackend(ALL, GROUPS, options=RocksDBOptions(folder=str(tmp_path), memory=9 << 20))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "value"), [("memory", 1000), ("cache", 0), ("dirty", 1.5), ("block_size", 1)])
def test_options_that_cannot_be(name: str, value: Any) -> None:
    with pytest.raises(InvalidConfig, match=rf"RocksDB\({name}="):
        RocksDBOptions(**{name: value})


def test_more_than_the_write_buffers_take(make: Make) -> None:
    """Everything is still found while RocksDB flushes and compacts behind."""
    backend = make(memory=4 << 20, cache=2000)
    blob = backend.bind("blob", ValueState(bytes, default=b""))
    for key in range(20_000):
        stand_on(backend.cursor, key, 1)
        blob.set(b"%06d" % key * 150)
    for key in range(0, 20_000, 7):
        stand_on(backend.cursor, key, 1)
        assert blob.get() == b"%06d" % key * 150
    assert backend.entries() == {"blob": 20_000}
    assert backend.memory_used < 12 << 20


def test_a_value_in_no_snapshot_is_refused_at_last(make: Make) -> None:
    """Without snapshots, what can't be written would pile up in memory."""
    backend = make(dirty=8)
    tags: ValueState[Any] = backend.bind("tags", ValueState(list[str], default_factory=list))

    def store_wrong_values() -> None:
        for key in range(100):
            stand_on(backend.cursor, key, 1)
            tags.set([3])

    with pytest.raises(UnserialisableValue, match="'totals', state 'tags', key 0"):
        store_wrong_values()


def test_what_rocksdb_does_not_take_at_once_waits(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that waited for RocksDB would hold the whole process."""
    backend = make(dirty=8)
    total = backend.bind("total", ValueState(int, default=0))
    with monkeypatch.context() as stalled:
        stalled.setattr(Database, "_write", lambda self, rows: False)
        for key in range(100):
            stand_on(backend.cursor, key, 1)
            total.set(key)
        found = drained(backend.begin_snapshot(1))
        with pytest.raises(CheckpointFailed, match="RocksDB is too busy for a native snapshot"):
            backend.begin_native_snapshot(2)
    assert len(backend._database.waiting) > 90
    backend.begin_native_snapshot(3).abort()
    assert not backend._database.waiting
    for blocks in (found, drained(backend.begin_snapshot(4))):
        heap = HeapBackend(KeyGroupRange(0, 1), 1)
        heap.bind("total", ValueState(int, default=0))
        heap.restore(blocks)
        assert contents(heap, "total") == {key: key for key in range(100)}
