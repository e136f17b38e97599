"""Timer stores of both backends, driven from synchronous tests."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar, cast

from streamactors.state.backend import KeyedBackend
from streamactors.state.heap.backend import HeapBackend
from streamactors.state.key_groups import KeyGroupRange
from streamactors.state.rocksdb.backend import RocksDBBackend, RocksDBOptions
from streamactors.state.timers import Domain, TimerRow, TimerState, TimerStore
from tests.state.manual_clock import ManualClock

P = ParamSpec("P")
R = TypeVar("R")

FEW = RocksDBOptions(memory=8 << 20, cache=16, dirty=4)
"""So little in memory that most is far."""
MANY = RocksDBOptions(memory=8 << 20)


class InlineClock(ManualClock):
    async def run_blocking(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        return fn(*args, **kwargs)


def done(work: Coroutine[Any, Any, R]) -> R:
    """Its result."""
    with asyncio.Runner() as runner:
        return runner.run(work)


def heap(groups: KeyGroupRange, max_parallelism: int) -> KeyedBackend:
    return HeapBackend(groups, max_parallelism, uid="op", clock=InlineClock())


def rocksdb(groups: KeyGroupRange, max_parallelism: int) -> KeyedBackend:
    return RocksDBBackend(groups, max_parallelism, uid="op", clock=InlineClock(), options=MANY)


def narrow(groups: KeyGroupRange, max_parallelism: int) -> KeyedBackend:
    return RocksDBBackend(groups, max_parallelism, uid="op", clock=InlineClock(), options=FEW)


BACKENDS: dict[str, Callable[[KeyGroupRange, int], KeyedBackend]] = {
    "heap": heap,
    "rocksdb": rocksdb,
    "narrow": narrow,
}


def timers_of(backend: KeyedBackend, domain: Domain = "event") -> TimerStore:
    declaration = TimerState(domain)
    return cast(TimerStore, backend.bind(declaration.name, declaration))


def fired(store: TimerStore, limit: int, count: int = 3) -> list[TimerRow]:
    """All that are due, taken, a few at a time."""
    found: list[TimerRow] = []
    while True:
        done(store.bring(limit))
        rows = store.draw(limit, count)
        if not rows:
            return found
        found += [row for row in rows if store.take(row)]
