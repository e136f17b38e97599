"""Sweeping the heap: what has expired goes, a bounded number of entries at a time.

The tables are looked at behind the guards of running snapshots, which only a deletion touches. The key in hand is left
alone, since its operator may be iterating over what it holds.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Final, TypeVar

from streamactors.state.backend import Cursor
from streamactors.state.blocks import ListCodec, MapCodec
from streamactors.state.heap.tables import MISSING, Store, drop
from streamactors.state.ttl import Turn

T = TypeVar("T")

_SLICE: Final = 128
"""Entries looked at between two turns: less than 0.1 ms, if none has expired."""

Sweep = Callable[[Store, int, Any, int], Iterable[None]]
"""Of one key: yields after each slice."""


async def sweep_group(store: Store, group: int, cursor: Cursor, turn: Turn) -> None:
    """Once over all keys that the group has now. May be dropped between two turns."""
    lifetime = store.codec.lifetime
    assert lifetime is not None
    sweep = _sweep_for(store)
    for keys in _slices(list(store.table(group))):
        limit = lifetime.limit()
        for key in keys:
            if cursor.stands_on(key, group):
                continue
            for _ in sweep(store, group, key, limit):
                await turn()
                if cursor.stands_on(key, group):
                    break
        await turn()


def _slices(items: list[T]) -> Iterator[list[T]]:
    """Lets go of what it has given."""
    while items:
        taken = items[-_SLICE:]
        del items[-_SLICE:]
        yield taken


def _sweep_for(store: Store) -> Sweep:
    match store.codec:
        case ListCodec():
            return _sweep_list
        case MapCodec():
            return _sweep_map
    return _sweep_value


def _sweep_value(store: Store, group: int, key: Any, limit: int) -> Iterable[None]:
    entry = store.table(group).get(key, MISSING)
    if entry is not MISSING and entry[1] <= limit:
        drop(store.tables[group], key)
    return ()


def _sweep_list(store: Store, group: int, key: Any, limit: int) -> Iterator[None]:
    """From its start on, which is the oldest but for a clock that was turned back."""
    while items := store.table(group).get(key):
        gone = _leading(items, limit)
        if gone:
            items = store.tables[group][key]  # tells snapshots that it will change
            del items[:gone]
            if not items:
                drop(store.tables[group], key)
        if gone < _SLICE:
            return
        yield


def _leading(items: list[Any], limit: int) -> int:
    """How many of the first items have expired, at most a slice."""
    for count, (_, time) in enumerate(islice(items, _SLICE)):
        if time > limit:
            return count
    return min(len(items), _SLICE)


def _sweep_map(store: Store, group: int, key: Any, limit: int) -> Iterator[None]:
    for inners in _slices(list(store.table(group).get(key, ()))):
        entries = store.table(group).get(key, {})
        gone = [inner for inner in inners if inner in entries and entries[inner][1] <= limit]
        if gone:
            entries = store.tables[group][key]
            for inner in gone:
                del entries[inner]
            if not entries:
                drop(store.tables[group], key)
                return
        if len(inners) == _SLICE:
            yield
