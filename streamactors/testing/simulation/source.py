"""A rewindable, bounded source whose splits and records are known."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Final, TypeVar

from streamactors.sources import Position, SourceBatch, SourceContext, SplitReader, SplitSource
from streamactors.testing.simulation.process import Process, here

T = TypeVar("T")
LARGEST_READ: Final = 8
WAIT_SECONDS: Final = 0.02


class SimulatedSource(SplitSource[T]):
    """Reads a few records at a time, of any of its splits, and waits for some of them."""

    def __init__(self, splits: Mapping[str, Sequence[T]], wait: float) -> None:
        self._splits = splits
        self._places = {split: place for place, split in enumerate(splits)}
        self._wait = wait

    @property
    def bounded(self) -> bool:
        return True

    def assign(self, split: str, parallelism: int) -> int:
        return self._places[split] % parallelism

    def reader(self, ctx: SourceContext) -> SplitReader[T]:
        mine = {
            split: values
            for split, values in self._splits.items()
            if self.assign(split, ctx.parallelism) == ctx.subtask
        }
        return _Reader(here(), ctx.uid, mine, self._wait)

    def describe(self) -> str:
        return f"SimulatedSource of {len(self._splits)} splits"


class _Reader(SplitReader[T]):
    def __init__(self, process: Process, uid: str, splits: Mapping[str, Sequence[T]], wait: float) -> None:
        self._process = process
        self._uid = uid
        self._splits = splits
        self._wait = wait
        self._next: dict[str, int] = {}
        self._paused: frozenset[str] = frozenset()
        self._resumed = asyncio.Event()

    async def open(self, restored: Mapping[str, Position] | None) -> Mapping[str, Position]:
        await self._process.pause()
        self._process.fail("source_failures", f"opening source {self._uid}")
        self._next = dict.fromkeys(self._splits, 0) | dict(restored or {})
        return dict(self._next)

    async def read(self) -> SourceBatch[T] | None:
        process = self._process
        if not self._unread():
            return None
        await process.pause()
        if self._wait and process.often():
            await process.take_time(self._wait * process.up_to(10) / 5)
        process.fail("source_failures", f"reading source {self._uid}")
        while not (readable := [split for split in self._unread() if split not in self._paused]):
            self._resumed.clear()
            await self._resumed.wait()
        split = readable[process.chosen(len(readable))]
        start = self._next[split]
        values = self._splits[split][start : start + process.up_to(LARGEST_READ)]
        self._next[split] = start + len(values)
        process.advance(f"read {len(values)} of {split} from {start}")
        return SourceBatch(
            split,
            values,
            lambda taken: start + taken,
            origins=range(start, start + len(values)),
            origin_prefix=f"{split}@",
            ends=self._next[split] == len(self._splits[split]),
        )

    def _unread(self) -> list[str]:
        return [split for split, start in self._next.items() if start < len(self._splits[split])]

    def pause(self, splits: Collection[str]) -> bool:
        self._paused = frozenset(splits)
        self._resumed.set()
        return True

    async def close(self) -> None:
        self._next.clear()
