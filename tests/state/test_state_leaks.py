"""Keys that come and go leave nothing behind: no entries, no memory, no rows, no files; whether they are cleared or
expire."""

import asyncio
import datetime as dt
import gc
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamactors.state.aggregates import Collect
from streamactors.state.backend import KeyedBackend
from streamactors.state.descriptors import AggregatingState, ListState, MapState, ReducingState, Ttl, ValueState
from streamactors.state.heap.backend import HeapBackend
from streamactors.state.key_groups import KeyGroupRange
from streamactors.state.rocksdb.backend import RocksDBBackend, RocksDBOptions
from tests.state.backend_contract import drained
from tests.state.kinds_contract import sweep
from tests.state.manual_clock import ManualClock

pytestmark = pytest.mark.slow

GROUPS = 16
ALL = KeyGroupRange(0, GROUPS)
TTL = Ttl(dt.timedelta(minutes=1))
Use = Callable[[Any, int], None]

KINDS: dict[str, tuple[Callable[[Ttl | None], Any], Use]] = {
    "value": (lambda ttl: ValueState(int, ttl=ttl), lambda state, key: state.set(key)),
    "list": (lambda ttl: ListState(int, ttl=ttl), lambda state, key: state.append(key)),
    "map": (lambda ttl: MapState(int, int, ttl=ttl), lambda state, key: state.update({key: 1})),
    "reducing": (lambda ttl: ReducingState(int, max, ttl=ttl), lambda state, key: state.add(key)),
    "aggregating": (lambda ttl: AggregatingState(Collect[int](), ttl=ttl), lambda state, key: state.add(key)),
}


def come_and_go(
    backend: KeyedBackend, clock: ManualClock, kind: str, rounds: int, together: int, *, expire: bool
) -> None:
    """`together` keys at a time."""
    declared, use = KINDS[kind]
    bound = backend.bind("state", declared(TTL if expire else None))
    cursor = backend.cursor
    for start in range(0, rounds * together, together):
        for key in range(start, start + together):
            cursor.key, cursor.group = key, key % GROUPS
            use(bound, key)
        for key in () if expire else range(start, start + together):
            cursor.key, cursor.group = key, key % GROUPS
            bound.clear()
        cursor.clear()
        clock.advance(60)
        if expire:
            asyncio.run(sweep(backend))
        assert backend.entries() == {"state": 0}
    assert drained(backend.begin_snapshot(1)) == []


@pytest.mark.parametrize("expire", [False, True], ids=["cleared", "expired"])
@pytest.mark.parametrize("kind", KINDS)
def test_on_the_heap(kind: str, expire: bool) -> None:
    clock = ManualClock()
    come_and_go(HeapBackend(ALL, GROUPS, clock=clock), clock, kind, 1, 10, expire=expire)  # what is made once
    backend = HeapBackend(ALL, GROUPS, clock=clock)
    rounds, keys = (10, 100_000) if (kind, expire) == ("value", False) else (1, 40_000)
    gc.collect()
    tracemalloc.start()
    try:
        come_and_go(backend, clock, kind, rounds, keys, expire=expire)
        gc.collect()
        left, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert left < 100_000  # not even a pointer for each key


@pytest.mark.parametrize("expire", [False, True], ids=["cleared", "expired"])
@pytest.mark.parametrize("kind", KINDS)
def test_in_rocksdb(tmp_path: Path, kind: str, expire: bool) -> None:
    clock = ManualClock()
    options = RocksDBOptions(folder=str(tmp_path), memory=8 << 20, cache=1000, dirty=256)
    backend = RocksDBBackend(ALL, GROUPS, clock=clock, options=options)
    try:
        come_and_go(backend, clock, kind, 2, 25_000 if kind == "value" else 5_000, expire=expire)
        database = backend._database
        database.flush()
        database.library_database().compact_range(None, None)
        assert next(database.rows(b"", b"\xff"), None) is None
        assert database.number("estimate-num-keys") == 0
        assert database.number("live-sst-files-size") < 2000
        assert all(len(store.young) + len(store.old) <= 1000 for store in backend._stores.values())
    finally:
        backend.close()
