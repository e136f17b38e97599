"""The source that stands in for a flow's own: it gives what a test has written down, crashes included.

Invariant: a CRASH fails the attempt when everything ahead of it in its split has been given, and a checkpoint is
complete that the next attempt goes on from: one that covers all of that, unless the test has put a CHECKPOINT earlier;
then what lies between is read again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from streamactors.elements import Watermark
from streamactors.errors import RecordFailed
from streamactors.sources import CRASH, Position, SourceBatch, SourceContext, SplitReader, SplitSource
from streamactors.testing.script import Step

LARGEST_BATCH: Final = 64


class _Checkpoint:
    def __repr__(self) -> str:
        return "CHECKPOINT"

    def __reduce__(self) -> str:
        return "CHECKPOINT"


CHECKPOINT: Any = _Checkpoint()
"""An element of an input of `run_flow`: what is behind it is read once a checkpoint of all ahead of it is complete."""


@dataclass(frozen=True, slots=True)
class At:
    """An element of an input of `run_flow`: a value that the source itself has a time-stamp for, in milliseconds since
    the epoch, as Kafka has."""

    value: Any
    timestamp: int


def _is_control(element: Any) -> bool:
    return element is CRASH or element is CHECKPOINT


@dataclass
class Feed:
    """What one source gives, by split. `steps`: as `Step`s, for a flow whose test gives the watermarks too; `passed`:
    the control elements (split, index) that have had their turn, in this job or one before it."""

    splits: Mapping[str, Sequence[Any]]
    steps: bool = False
    passed: set[tuple[str, int]] = field(default_factory=set)
    crashed: bool = False
    """Whether a CRASH is what has failed the attempt; taken by who runs the job."""
    checkpoint: Callable[[], Awaitable[object]] | None = None
    """Takes one now; set by who runs the job."""

    @property
    def crashes(self) -> int:
        return sum(element is CRASH for elements in self.splits.values() for element in elements)

    def value_of(self, element: Any) -> Any:
        if not self.steps:
            return element.value if isinstance(element, At) else element
        if isinstance(element, Watermark):
            return Step(watermark=element.time_ms)
        return Step(element.value, element.timestamp) if isinstance(element, At) else Step(element)


class FeedSource(SplitSource[Any]):
    """Bounded. The i-th split goes to subtask i, modulo the parallelism."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._places = {split: place for place, split in enumerate(feed.splits)}

    @property
    def bounded(self) -> bool:
        return True

    def reader(self, ctx: SourceContext) -> SplitReader[Any]:
        mine = [split for split in self._feed.splits if self.assign(split, ctx.parallelism) == ctx.subtask]
        return _FeedReader(ctx, self._feed, mine)

    def assign(self, split: str, parallelism: int) -> int:
        return self._places.get(split, 0) % parallelism

    def describe(self) -> str:
        return "what the test gives"


class _FeedReader(SplitReader[Any]):
    def __init__(self, ctx: SourceContext, feed: Feed, splits: Sequence[str]) -> None:
        self._uid = ctx.uid
        self._feed = feed
        self._next = dict.fromkeys(splits, 0)
        self._covered: Mapping[str, Position] = {}
        self._completed = asyncio.Event()

    async def open(self, restored: Mapping[str, Position] | None) -> Mapping[str, Position]:
        self._next |= restored or {}
        self._covered = dict(restored or {})
        return dict(self._next)

    async def read(self) -> SourceBatch[Any] | None:
        """One split after the other gives a batch: those that are the least far go first."""
        while unread := [split for split, at in self._next.items() if at < len(self._feed.splits[split])]:
            split = min(unread, key=self._next.__getitem__)
            at = self._next[split]
            if not _is_control(self._feed.splits[split][at]):
                return self._batch(split, at)
            await self._pass(split, at)
            self._next[split] = at + 1
        return None

    def _batch(self, split: str, start: int) -> SourceBatch[Any]:
        elements = self._feed.splits[split][start : start + LARGEST_BATCH]
        length = next((place for place, element in enumerate(elements) if _is_control(element)), len(elements))
        given = elements[:length]
        self._next[split] = start + length
        return SourceBatch(
            split,
            [self._feed.value_of(element) for element in given],
            lambda taken: start + taken,
            timestamps=self._stamps(given),
            origins=range(start, start + length),
            origin_prefix=f"{self._uid}:" if len(self._feed.splits) == 1 else f"{self._uid}/{split}:",
            ends=start + length == len(self._feed.splits[split]),
        )

    def _stamps(self, elements: Sequence[Any]) -> list[int] | None:
        stamps = [element.timestamp for element in elements if isinstance(element, At)]
        return stamps if stamps and not self._feed.steps else None

    async def _pass(self, split: str, at: int) -> None:
        feed, elements = self._feed, self._feed.splits[split]
        if (split, at) in feed.passed:
            return
        crash = elements[at] is CRASH
        if not crash or not self._has_checkpoint(elements[:at]):
            await self._cover(split, at)
        feed.passed.add((split, at))
        if crash:
            feed.crashed = True
            raise RecordFailed(self._uid, "the element CRASH fails the job once", origin=f"{self._uid}:{at}")

    @staticmethod
    def _has_checkpoint(before: Sequence[Any]) -> bool:
        """Since the last CRASH."""
        controls = [element for element in before if _is_control(element)]
        return bool(controls) and controls[-1] is CHECKPOINT

    async def _cover(self, split: str, at: int) -> None:
        """Until a checkpoint is complete that goes on from there: positions tell of records, not of what controls."""
        elements = self._feed.splits[split]
        while at and _is_control(elements[at - 1]):
            at -= 1
        while self._covered.get(split, 0) < at and self._feed.checkpoint is not None:
            self._completed.clear()
            await self._feed.checkpoint()
            await self._completed.wait()

    async def checkpoint_completed(self, checkpoint: int, positions: Mapping[str, Position]) -> None:
        self._covered = positions
        self._completed.set()

    async def close(self) -> None:
        return None
