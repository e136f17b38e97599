"""An external sort: gathers in memory, spills sorted runs, and merges them.

Invariant: what is gathered takes about `memory` bytes at most; of each run on disk one block is in memory, and no more
than `FAN_IN` runs of one level ever wait, so that an input of any size takes about the same.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

from streamactors.clock import Clock, uninterrupted
from streamactors.elements import Batch
from streamactors.runtime.bounded.gathering import Gathered
from streamactors.runtime.bounded.merging import merged
from streamactors.runtime.bounded.rows import KeyRows
from streamactors.runtime.bounded.runs import RunFormat, SpilledRun
from streamactors.runtime.bounded.slices import Slice, slices
from streamactors.state.key_groups import KeyGrouper

FAN_IN: Final = 16
BLOCK_ROWS: Final = 512
READ_AHEAD: Final = 4
"""Slices that are made at a time."""


class Sorter:
    """Of one subtask. `memory` in bytes; `sided`: there are two inputs; `timed` False: the order of arrival is kept;
    `by_group`: see `slices`. What is awaited works in a thread, and no two of these, or `add`, overlap."""

    def __init__(
        self,
        format: RunFormat,
        clock: Clock,
        *,
        memory: int,
        folder: str | None,
        max_parallelism: int,
        sided: bool,
        timed: bool = True,
        by_group: bool = False,
    ) -> None:
        self.spilled_bytes = 0
        """Written so far, merges included."""
        self.spills = 0
        self._format = format
        self._clock = clock
        self._memory = memory
        self._folder = folder
        self._grouper = KeyGrouper(max_parallelism)
        self._sided = sided
        self._timed = timed
        self._by_group = by_group
        self._last_group = max_parallelism - 1
        self._gathered = self._new()
        self._runs: list[SpilledRun] = []
        self._split: str | None = None
        self._one_split = True
        self._slices: Iterator[Slice] | None = None
        self._hot = False
        self._stopped = False

    def _new(self) -> Gathered:
        return Gathered(self._grouper, self._format.order, sided=self._sided, timed=self._timed)

    # ------------------------------------------------------------------------------------------------------ taking in
    def add(self, batch: Batch, side: int = 0) -> None:
        """A keyed batch. Raises UnserialisableKey."""
        if self._split is None:
            self._split = batch.split
        self._one_split = self._one_split and batch.split == self._split
        self._gathered.add(batch, side)

    @property
    def full(self) -> bool:
        """Whether it is to `spill` before more is added."""
        return self._gathered.bytes >= self._memory

    @property
    def gathered_bytes(self) -> int:
        return self._gathered.bytes

    async def spill(self) -> None:
        """Raises StorageFailed, UnserialisableValue."""
        gathered, self._gathered = self._gathered, self._new()
        self.spills += 1
        await uninterrupted(self._clock.run_blocking(self._spill, gathered))

    def _spill(self, gathered: Gathered) -> None:
        rows = self._block_rows(gathered)
        self._write(gathered.sorted(), 0, rows)
        while not self._stopped and (level := self._ripe()) is not None:
            old = self._runs[-FAN_IN:]
            self._write(merged([run.read() for run in old], timed=self._timed), level, rows, replacing=old)

    def _ripe(self) -> int | None:
        """The level of the runs that are to be merged: those of one level follow each other, the latest last."""
        last = self._runs[-FAN_IN:]
        alike = len(last) == FAN_IN and len({run.level for run in last}) == 1
        return last[0].level + 1 if alike else None

    def _write(self, pieces: Iterator[KeyRows], level: int, rows: int, replacing: Sequence[SpilledRun] = ()) -> None:
        run = SpilledRun(self._format, self._folder, level)
        self._runs.append(run)  # closed with the others, whatever happens
        run.write(self._until_stopped(pieces), rows)
        self.spilled_bytes += run.size
        for old in replacing:
            self._runs.remove(old)
            old.close()

    def _block_rows(self, gathered: Gathered) -> int:
        """As many as let a block of each run fit, all together, into a fraction of the memory."""
        each = max(1, gathered.bytes // max(1, len(gathered)))
        return max(1, min(BLOCK_ROWS, self._memory // (4 * FAN_IN) // each))

    # ----------------------------------------------------------------------------------------------------- giving out
    @property
    def in_memory(self) -> bool:
        """Whether `take` can be used, which spares the way into a thread and back."""
        return not self._runs and not self._hot

    async def settle(self) -> None:
        """All is added."""
        self._hot = await uninterrupted(self._clock.run_blocking(self._gathered.has_hot_key))

    def take(self) -> Slice | None:
        """The next slice; None at the end. Once this is called, or `read`, nothing more is added."""
        return next(self._sorted(), None)

    async def read(self) -> list[Slice]:
        """The next slices; none at the end."""
        return await uninterrupted(self._clock.run_blocking(self._read))

    def _read(self) -> list[Slice]:
        return list(islice(self._sorted(), READ_AHEAD))

    def _sorted(self) -> Iterator[Slice]:
        if self._slices is None:
            gathered, self._gathered = self._gathered, self._new()
            runs = [run.read() for run in self._runs] + ([gathered.sorted()] if len(gathered) else [])
            split = self._split if self._one_split else None
            pieces = self._until_stopped(merged(runs, timed=self._timed) if runs else iter(()))
            self._slices = slices(pieces, split, last_group=self._last_group, by_group=self._by_group)
        return self._slices

    # --------------------------------------------------------------------------------------------------------- ending
    def stop(self) -> None:
        """What works in a thread ends soon, having done a part of it; only `close` is of use then."""
        self._stopped = True

    def _until_stopped(self, pieces: Iterator[KeyRows]) -> Iterator[KeyRows]:
        for piece in pieces:
            if self._stopped:
                return
            yield piece

    async def close(self) -> None:
        """Nothing is left on disk."""
        self._slices, self._gathered = None, self._new()
        await uninterrupted(self._clock.run_blocking(self._close))

    def _close(self) -> None:
        for run in self._runs:
            run.close()
        self._runs = []
