"""Keyed state in dicts, one per key group: the default backend.

**Snapshots** cost nothing while none runs: bound states reach into `tables[group]`, which is a plain dict. While a
snapshot has not yet written a group, a `GuardedTable` stands in for its dict and *captures on touch*: before an entry
is read or written for the first time, what it holds is kept for the snapshot. Reading counts, since `get` hands out the
stored object and the user may change it; where nothing can be changed in place, only writing does. When a group's turn
comes, its dict is copied (shallow, at memcpy speed), given out in bounded blocks, and the dict put back.

**Versions**, for incremental checkpoints, are kept by the same tables: after the snapshot, one stays in the place of
its dict until an entry is touched for the first time. That ends the version, and puts the dict back.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from streamactors.clock import SYSTEM, Clock
from streamactors.errors import StateAccessError
from streamactors.state.backend import Cursor, StateBlock, StateT
from streamactors.state.bound import dressed
from streamactors.state.descriptors import Declaration
from streamactors.state.heap.states import kept_state
from streamactors.state.heap.sweep import sweep_group
from streamactors.state.heap.tables import MISSING, HeapSnapshot, Store
from streamactors.state.heap.timers import HeapTimers
from streamactors.state.key_groups import KeyGroupRange
from streamactors.state.stored import (
    check_keys,
    check_new,
    check_own,
    check_reachable,
    check_stores,
    codec_of,
    located,
    named,
)
from streamactors.state.timers import TimerState
from streamactors.state.ttl import UNSET, Turn, lifetimes_of
from streamactors.state.versions import Version


class HeapBackend:
    """See `KeyedBackend`. `uid` names the operator in errors."""

    def __init__(
        self,
        groups: KeyGroupRange,
        max_parallelism: int,
        *,
        uid: str = "",
        cursor: Cursor | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        self._clock = clock
        self.groups = groups
        self.cursor = Cursor() if cursor is None else cursor
        self._uid = uid
        self._max_parallelism = max_parallelism
        self._stores: dict[str, Store] = {}
        self._bound: list[Any] = []
        self._snapshots: list[HeapSnapshot] = []

    @property
    def declarations(self) -> dict[str, Declaration]:
        timers = (store for store in self._stores.values() if isinstance(store, HeapTimers))
        return {state.name: state for state in self._bound} | {store.name: store.declaration for store in timers}

    def attach(self, cursor: Cursor) -> None:
        self.cursor = cursor
        for state in self._bound:
            state.attach(cursor)

    def bind(self, name: str, declaration: StateT) -> StateT:
        check_new(name, self._stores, self._uid)
        if isinstance(declaration, TimerState):
            timers = HeapTimers(self._uid, name, declaration, self.groups, self._max_parallelism)
            self._stores[name] = timers
            return cast(StateT, timers)
        codec = codec_of(declaration, name, self._uid, self._clock.time_ms)
        store = self._stores[name] = Store(self._uid, name, codec, self.groups, self._max_parallelism)
        kept = kept_state(store, self.cursor)
        bound = dressed(declaration, name, kept, codec, self.cursor)
        self._bound.append(bound)
        return cast(StateT, bound)

    # ---------------------------------------------------------------------------------------------------- snapshots
    def begin_snapshot(self, checkpoint_id: int) -> HeapSnapshot:
        return self._begin(checkpoint_id, versioned=False)

    def begin_versioned_snapshot(self, checkpoint_id: int) -> HeapSnapshot:
        return self._begin(checkpoint_id, versioned=True)

    def _begin(self, checkpoint_id: int, *, versioned: bool) -> HeapSnapshot:
        stores, monotonic = self._stores.values(), self._clock.monotonic
        snapshot = HeapSnapshot(checkpoint_id, stores, self._ended, monotonic, versioned=versioned)
        self._snapshots.append(snapshot)
        return snapshot

    def version(self, state: str, group: int) -> Version:
        store = self._stores.get(state)
        if store is None or group not in self.groups:
            raise StateAccessError(f"operator {self._uid!r} has no key group {group} of a state {state!r} here")
        return store.version(group)

    def _ended(self, snapshot: HeapSnapshot) -> None:
        if snapshot in self._snapshots:
            self._snapshots.remove(snapshot)

    def schemas(self) -> dict[str, Any]:
        return {name: store.codec.schema() for name, store in self._stores.items()}

    def check_schemas(self, stored: Mapping[str, Any], *, allow_dropped: bool = False) -> None:
        check_stores(stored, self._stores, self._uid, allow_dropped=allow_dropped)

    def restore(self, blocks: Iterable[StateBlock]) -> None:
        for block in blocks:
            check_own(block, self.groups, self._uid)
            if (store := self._stores.get(block.state)) is not None:
                self._add(store, block)

    def _add(self, store: Store, block: StateBlock) -> None:
        with located(store.where):
            if isinstance(store, HeapTimers):
                store.add(block)
                return
            keys, entries = store.codec.decode_block(block.data, rewritten=block.rewritten)
        check_keys(keys, block.group, self._max_parallelism, store.where)
        store.changed(block.group)
        table = store.table(block.group)
        for key, entry in zip(keys, entries, strict=True):
            table[key] = store.codec.merge(table[key], entry) if key in table else entry

    # ------------------------------------------------------------------------------------------------------ looking in
    def query(self, name: str, key: Any, group: int) -> Any:
        store = self._store(name)
        check_reachable(group, self.groups, store.where)
        entry = store.table(group).get(key, MISSING)
        return store.codec.answer(UNSET if entry is MISSING else store.codec.seen(store.codec.copy(entry)))

    def scan(self, name: str) -> Iterator[tuple[int, Any, Any]]:
        store = self._store(name)
        for group in self.groups:
            for key, entry in list(store.table(group).items()):
                seen = store.codec.seen(store.codec.copy(entry))
                if seen is not UNSET:
                    yield group, key, seen

    def _store(self, name: str) -> Store:
        return named(self._stores, name, self._uid)

    # ------------------------------------------------------------------------------------------------- what has expired
    @property
    def lifetimes(self) -> dict[str, float]:
        return lifetimes_of((store.name, store.codec) for store in self._stores.values())

    async def sweep(self, name: str, group: int, turn: Turn) -> None:
        await sweep_group(self._store(name), group, self.cursor, turn)

    def forget(self, groups: range) -> None:
        """All that the keys of its own among them hold. Only where no snapshots are taken."""
        own = range(max(groups.start, self.groups.start), min(groups.stop, self.groups.stop))
        for store in self._stores.values():
            for group in own:
                store.tables[group].clear()

    def entries(self) -> dict[str, int]:
        return {name: sum(len(store.tables[group]) for group in self.groups) for name, store in self._stores.items()}

    def close(self) -> None:
        for snapshot in self._snapshots.copy():
            snapshot.abort()
        for store in self._stores.values():
            store.close()
