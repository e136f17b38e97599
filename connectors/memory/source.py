"""A list as a source.

Splits are stripes: on a first start with parallelism p, stripe "i/p" holds the positions i, i + p, i + 2p, … of the
list. Stripes are kept for good, so that positions survive a rescale: stripe "i/p" then goes to subtask i mod the new
parallelism, and a subtask with several of them reads on where the lowest position is.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from typing import Final, TypeVar

from streamactors.errors import RecordFailed
from streamactors.sources import CRASH, InputProgress, Position, SourceBatch, SourceContext, SplitReader, SplitSource

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

BATCH: Final = 1024


class ListSource(SplitSource[T_co]):
    """Rewindable; dealt out over the subtasks by position. Takes a copy of `values`, and never waits. An element CRASH
    fails the job there: once per process and ListSource."""

    def __init__(self, values: Sequence[T_co]) -> None:
        self._values = list(values)
        self._crashes = [index for index, value in enumerate(self._values) if value is CRASH]
        # Outlives attempts on purpose, or the job would fail at the same element for ever.
        self._crashed: set[int] = set()

    @property
    def bounded(self) -> bool:
        return True

    def reader(self, ctx: SourceContext) -> SplitReader[T_co]:
        return _ListReader(ctx, self._values, self._crashes, self._crashed)

    def assign(self, split: str, parallelism: int) -> int:
        return _stripe_of(split)[0] % parallelism

    def describe(self) -> str:
        return f"ListSource of {len(self._values)}"


class _ListReader(SplitReader[T]):
    def __init__(self, ctx: SourceContext, values: Sequence[T], crashes: Sequence[int], crashed: set[int]) -> None:
        self._ctx = ctx
        self._values = values
        self._crashes = crashes
        self._crashed = crashed
        self._next: dict[str, int] = {}
        self._over: list[str] = []
        """Stripes that have ended without a last value that told so."""
        self._paused: frozenset[str] = frozenset()
        self._resumed = asyncio.Event()

    async def open(self, restored: Mapping[str, Position] | None) -> Mapping[str, Position]:
        first = {f"{self._ctx.subtask}/{self._ctx.parallelism}": self._ctx.subtask}
        positions = dict(first if restored is None else restored)
        self._next = dict(positions)
        self._over = [split for split, start in self._next.items() if start >= len(self._values)]
        return positions

    async def read(self) -> SourceBatch[T] | None:
        while not self._over and (unread := self._unread()):
            readable = unread.keys() - self._paused
            if not readable:
                self._resumed.clear()
                await self._resumed.wait()
            elif values := self._take(min(readable, key=unread.__getitem__)):
                return values
        return self._ended(self._over.pop()) if self._over else None

    def progress(self) -> InputProgress | None:
        done = total = 0
        for split, start in self._next.items():
            offset, step = _stripe_of(split)
            done += len(range(offset, min(start, len(self._values)), step))
            total += len(range(offset, len(self._values), step))
        return InputProgress(done, total, "records")

    def _unread(self) -> dict[str, int]:
        return {split: start for split, start in self._next.items() if start < len(self._values)}

    def _ended(self, split: str) -> SourceBatch[T]:
        position = self._next[split]
        return SourceBatch(split, (), lambda taken: position, origins=(), ends=True)

    def pause(self, splits: Collection[str]) -> bool:
        self._paused = frozenset(splits)
        self._resumed.set()
        return True

    async def close(self) -> None:
        self._next.clear()

    def _take(self, split: str) -> SourceBatch[T] | None:
        """The next values of a stripe, up to a CRASH; None where only a CRASH that has had its turn was passed."""
        start, (_, step) = self._next[split], _stripe_of(split)
        numbers = range(start, min(start + BATCH * step, len(self._values)), step)
        if (crash := self._first_crash(numbers)) is not None:
            numbers = range(start, crash, step)
        if crash == start:
            self._pass_crash(start)
            self._next[split] = start + step
            if start + step >= len(self._values):
                self._over.append(split)
            return None
        self._next[split] = start + len(numbers) * step
        return SourceBatch(
            split,
            self._values[numbers.start : numbers.stop : step],
            lambda taken: start + taken * step,
            origins=numbers,
            origin_prefix="ListSource:",
            ends=self._next[split] >= len(self._values),
        )

    def _first_crash(self, numbers: range) -> int | None:
        first = bisect_left(self._crashes, numbers.start)
        return next((index for index in self._crashes[first:] if index in numbers), None) if self._crashes else None

    def _pass_crash(self, index: int) -> None:
        if index not in self._crashed:
            self._crashed.add(index)
            raise RecordFailed(self._ctx.uid, "the element CRASH fails the job once", origin=f"ListSource:{index}")


def _stripe_of(split: str) -> tuple[int, int]:
    """Offset and step of a stripe."""
    offset, _, step = split.partition("/")
    return int(offset), int(step)
