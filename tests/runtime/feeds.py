"""Sources that a test feeds by hand or lets run without end, and waiting for a condition instead of for a time."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from streamactors.clock import SYSTEM
from streamactors.elements import Batch, DeadLetter, OutputTag
from streamactors.metrics import MetricGroup
from streamactors.operators.timestamps import RefusedRecords
from streamactors.runtime.inputs import SourceTime
from streamactors.sources import Position, SourceBatch, SourceContext, SplitReader, SplitSource, UndecodableRecord
from streamactors.time.alignment import AlignmentGroup
from streamactors.time.watermarks import Watermarks

PATIENCE = 60.0
"""Seconds until a wait counts as a hang."""


async def until(condition: Callable[[], Any]) -> None:
    """Lets the loop turn until `condition` is true."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


class Feed(SplitSource[Any]):
    """Gives what the test has put in, split by split, and waits for more until `end`; rewindable. Split i is read by
    subtask i modulo the parallelism."""

    def __init__(self, splits: int = 1, *, chunk: int = 64, dead: OutputTag[DeadLetter] | None = None) -> None:
        self.values: list[list[Any]] = [[] for _ in range(splits)]
        self.chunk = chunk
        self.ended = False
        self.opened = 0
        self.closed = 0
        self.broken: BaseException | None = None
        """Raised by the next read."""
        self.completed: list[tuple[int, Mapping[str, Position]]] = []
        self.released: list[Mapping[str, Position]] = []
        self._dead = dead
        self._news = asyncio.Event()

    def put(self, *values: Any, split: int = 0) -> None:
        self.values[split] += values
        self._news.set()

    def end(self) -> None:
        self.ended = True
        self._news.set()

    def fail(self, error: BaseException) -> None:
        self.broken = error
        self._news.set()

    async def news(self) -> None:
        self._news.clear()
        await self._news.wait()

    @property
    def bounded(self) -> bool:
        return True

    @property
    def error_tag(self) -> OutputTag[DeadLetter] | None:
        return self._dead

    def assign(self, split: str, parallelism: int) -> int:
        return int(split) % parallelism

    def reader(self, ctx: SourceContext) -> "FeedReader":
        return FeedReader(self, ctx)


class Undecodable:
    """Put in to be met as an undecodable record."""


class FeedReader(SplitReader[Any]):
    def __init__(self, feed: Feed, ctx: SourceContext) -> None:
        self._feed = feed
        self._ctx = ctx
        self._next: dict[int, int] = {}

    async def open(self, restored: Mapping[str, Position] | None) -> Mapping[str, Position]:
        self._feed.opened += 1
        own = [split for split in range(len(self._feed.values)) if split % self._ctx.parallelism == self._ctx.subtask]
        self._next = {split: (restored or {}).get(str(split), 0) for split in own}
        return {str(split): position for split, position in self._next.items()}

    async def read(self) -> SourceBatch[Any] | None:
        while True:
            if self._feed.broken is not None:
                error, self._feed.broken = self._feed.broken, None
                raise error
            for split in sorted(self._next, key=self._next.__getitem__):
                if (batch := self._take(split)) is not None:
                    return batch
            if self._feed.ended:
                return None
            await self._feed.news()

    def _take(self, split: int) -> SourceBatch[Any] | None:
        start = self._next[split]
        raw = self._feed.values[split][start : start + self._feed.chunk]
        if not raw:
            return None
        self._next[split] = start + len(raw)
        return batch_of(raw, split=str(split), start=start)

    async def checkpoint_completed(self, checkpoint: int, positions: Mapping[str, Position]) -> None:
        self._feed.completed.append((checkpoint, dict(positions)))

    async def positions_released(self, positions: Mapping[str, Position]) -> None:
        self._feed.released.append(dict(positions))

    async def close(self) -> None:
        self._feed.closed += 1


def batch_of(raw: Sequence[Any], *, split: str = "0", start: int = 0) -> SourceBatch[Any]:
    """Positions count all of `raw`; what is `Undecodable` is no value."""
    good = [number for number, value in enumerate(raw) if not isinstance(value, Undecodable)]

    def position_after(taken: int) -> int:
        """Behind the undecodable records that follow the first `taken` values, too."""
        return start + (good[taken] if taken < len(good) else len(raw))

    undecodable = [
        UndecodableRecord(sum(one < number for one in good), f"{split}@{start + number}", value, ValueError("garbled"))
        for number, value in enumerate(raw)
        if isinstance(value, Undecodable)
    ]
    return SourceBatch(
        split,
        [raw[number] for number in good],
        position_after,
        origins=[start + number for number in good],
        origin_prefix=f"{split}@",
        undecodable=undecodable,
    )


class Endless(SplitSource[int]):
    """Counts up without end, as fast as it is read."""

    def __init__(self, chunk: int = 256) -> None:
        self.chunk = chunk
        self.read = 0

    @property
    def bounded(self) -> bool:
        return False

    def reader(self, ctx: SourceContext) -> SplitReader[int]:
        return _EndlessReader(self)


class _EndlessReader(SplitReader[int]):
    def __init__(self, source: Endless) -> None:
        self._source = source
        self._next = 0

    async def open(self, restored: Mapping[str, Position] | None) -> Mapping[str, Position]:
        self._next = (restored or {}).get("all", 0)
        return {"all": self._next}

    async def read(self) -> SourceBatch[int]:
        start = self._next
        self._next += self._source.chunk
        self._source.read = max(self._source.read, self._next)
        return SourceBatch("all", range(start, self._next), lambda taken: start + taken)

    async def close(self) -> None:
        return None


def source_time(
    watermarks: Watermarks[Any],
    *,
    restored: Mapping[str, Any] | None = None,
    group: AlignmentGroup | None = None,
    sides: dict[str, list[Any]] | None = None,
    errors: OutputTag[DeadLetter] | None = None,
) -> SourceTime:
    """Of a source alone. `sides`: gets what goes to side outputs."""

    def emit(emitted: Mapping[str, Batch]) -> None:
        for name, batch in emitted.items():
            (sides if sides is not None else {}).setdefault(name, []).extend(batch.values)

    if group is None and watermarks.aligned:
        group = AlignmentGroup()
    refused = RefusedRecords("source", watermarks.ahead, errors, MetricGroup())
    assigner = watermarks.assigner(SYSTEM.time_ms)
    return SourceTime(watermarks.of_splits(restored), assigner, refused, emit, group)


class Gate:
    """Lets `passes` records pass, then each only after `delay` seconds: everything before it is full."""

    def __init__(self, passes: int = 10**9, delay: float = 0.02) -> None:
        self.passes = passes
        self.delay = delay
        self.held = 0

    async def __call__(self, value: Any) -> Any:
        if self.passes > 0:
            self.passes -= 1
            return value
        self.held += 1
        await asyncio.sleep(self.delay)
        return value
