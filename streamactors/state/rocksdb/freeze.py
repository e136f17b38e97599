"""What lets a snapshot begin in a moment, however much is dirty: it is frozen then, and written afterwards.

Protocol, all of it on the loop: `Freeze` at the barrier; `write_some` until nothing is left, in turn with the actors;
then the point in time is taken (a view pinned, or files linked, which a thread may do); `end`. One at a time.

Invariants, from the beginning to the end:
1. The database is held: its rows and those of before (`Database.before`), with what is still frozen, are the state at
   the barrier. When nothing is frozen any more, the rows alone are.
2. What is changed meanwhile is dirty, and its rows wait until the end, newer than those of before.
3. A frozen entry is written before anybody can change it; so it is written as it was at the barrier.

Given up before its point is taken, what is still frozen is dirty as before, and nothing is lost. An entry that can't be
written is the error of this snapshot; it is dirty again, so that the next one finds it mended, or fails likewise.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from streamactors.errors import StreamactorsError
from streamactors.state.pace import Pace
from streamactors.state.rocksdb.database import WRITE_ROWS, Database
from streamactors.state.rocksdb.stores.store import Store

SLICE_SECONDS: Final = 0.0005


class Freeze:
    """Begins with its making. Raises nothing then. `others` and `error`: keys by state and key group of what has been
    written at once, and why some of it could not be."""

    def __init__(
        self,
        stores: Iterable[Store[Any]],
        others: Mapping[str, Mapping[int, int]],
        error: StreamactorsError | None,
        database: Database,
        monotonic: Callable[[], float],
        pace: Pace,
    ) -> None:
        self._stores = list(stores)
        self._others = others
        self._error = error
        self._database = database
        self._monotonic = monotonic
        self._pace = pace
        self.ended = False
        database.hold()
        for store in self._stores:
            store.freeze()

    @property
    def is_left(self) -> bool:
        """Whether anything is still frozen."""
        return any(store.frozen for store in self._stores)

    def write_some(self) -> bool:
        """For about `SLICE_SECONDS`; False if nothing was left. Raises StorageFailed."""
        store = next((store for store in self._stores if store.frozen), None)
        if store is None:
            return False
        started = self._monotonic()
        written = store.write_some_frozen(min(self._pace.items(SLICE_SECONDS), WRITE_ROWS))
        self._database.settle()
        self._pace.measured(written, self._monotonic() - started)
        return True

    def write_all(self) -> None:
        while self.write_some():
            pass

    @property
    def error(self) -> StreamactorsError | None:
        """The first of what can't be written."""
        errors = (store.frozen_error for store in self._stores)
        return self._error or next((error for error in errors if error is not None), None)

    @property
    def counts(self) -> dict[str, dict[int, int]]:
        """Keys by state and key group at the barrier, without zeros, once all is written."""
        every = {**{store.name: store.frozen_counts for store in self._stores}, **self._others}
        counts = {name: {group: count for group, count in held.items() if count} for name, held in every.items()}
        return {name: held for name, held in counts.items() if held}

    def end(self) -> None:
        """The point in time is taken, or given up. No harm if it has ended."""
        if not self.ended:
            self.ended = True
            for store in self._stores:
                store.thaw()
            self._database.release()
