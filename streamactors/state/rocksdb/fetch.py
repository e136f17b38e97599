"""Reading what a batch will need into the cache, off the loop."""

from collections.abc import Mapping
from typing import Any

from streamactors.state.rocksdb.stores.store import MISSING, Shared, Store

Wanted = dict[Any, int]
"""Keys with their groups."""


class Fetch:
    """Entries that are not in the cache, by state. `read` may run in a thread while the loop goes on."""

    def __init__(self, stores: Mapping[str, Store[Any]], wanted: Mapping[str, Wanted], shared: Shared) -> None:
        self._stores = stores
        self._wanted = wanted
        self._shared = shared
        self._found: dict[str, list[tuple[Any, Any]]] = {}
        self._stale: set[tuple[str, Any]] = set()
        shared.on_flush.append(self._written)

    @property
    def size(self) -> int:
        return sum(map(len, self._wanted.values()))

    def _written(self, state: str, keys: list[Any]) -> None:
        self._stale.update((state, key) for key in keys)

    def read(self) -> None:
        """Blocks."""
        for name, wanted in self._wanted.items():
            self._found[name] = self._read(self._stores[name], wanted)

    def _read(self, store: Store[Any], wanted: Wanted) -> list[tuple[Any, Any]]:
        rows = store.database.get_many([store.row_of(key, group) for key, group in wanted.items()])
        return [(key, store.read(key, group, row)) for (key, group), row in zip(wanted.items(), rows, strict=True)]

    def keep(self) -> None:
        """Put into the cache what was read, unless it was changed meanwhile: also if that is written only now, to make
        room for the others."""
        for name, found in self._found.items():
            store = self._stores[name]
            for key, entry in found:
                if (name, key) not in self._stale and store.cached(key) is MISSING:
                    store.admit(key, entry)
        self.let_go()

    def let_go(self) -> None:
        """It will be kept now, or never."""
        if self._written in self._shared.on_flush:
            self._shared.on_flush.remove(self._written)
