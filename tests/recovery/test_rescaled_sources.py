"""Sources and rescale: positions go where their splits are read now, also of subtasks that had read all of theirs."""

from collections import Counter, defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from connectors.memory import ListSink
from streamactors.checkpoint.manifest import Manifest
from streamactors.checkpoint.restorable import list_checkpoints
from streamactors.sources import SourceBatch, SourceContext
from tests.recovery.flows import config, dropped, until
from tests.runtime.feeds import Feed, FeedReader

pytestmark = pytest.mark.slow

SPLITS = 5


class Unequal(Feed):
    """Its splits end one by one. Values are (split, number)."""

    def __init__(self, splits: int = SPLITS) -> None:
        super().__init__(splits, chunk=3)
        self.complete: set[int] = set()
        self.read_from: dict[int, list[int]] = defaultdict(list)
        """By split, every place where reading began or went on."""

    def add(self, count: int, splits: Collection[int] = range(SPLITS)) -> None:
        for split in splits:
            known = len(self.values[split])
            self.put(*((split, number) for number in range(known, known + count)), split=split)

    def complete_splits(self, *splits: int) -> None:
        self.complete.update(splits)
        self._news.set()

    @property
    def everything(self) -> list[tuple[int, int]]:
        return [value for values in self.values for value in values]

    def reader(self, ctx: SourceContext) -> FeedReader:
        return _UnequalReader(self, ctx)


class _UnequalReader(FeedReader):
    _feed: Unequal

    async def read(self) -> SourceBatch[Any] | None:
        while True:
            for split in sorted(self._next, key=self._next.__getitem__):
                self._feed.read_from[split].append(self._next[split])
                if (batch := self._take(split)) is not None:
                    return batch
            if self._feed.complete.issuperset(self._next):
                return None
            await self._feed.news()


class Order(sa.KeyedOperator[int, tuple[int, int], tuple[int, int]]):
    """Fails for a record of a split that is not the next one: it was lost, doubled or overtaken."""

    following = sa.ValueState(int, default=0)

    def process(self, value: tuple[int, int], ctx: sa.Context[int, tuple[int, int]], /) -> None:
        if value[1] != self.following.get():
            raise ValueError(f"{value} came instead of number {self.following.get()}")
        self.following.set(value[1] + 1)
        ctx.emit(value)


def flow_of(feed: Any, sink: Any, parallelism: int) -> sa.Dataflow:
    flow = sa.Dataflow("splits")
    values: Any = flow.source("splits", feed, parallelism=parallelism)
    values.key_by(lambda value: value[0]).process("order", Order, parallelism=2).sink("out", sink)
    return flow


def processed(job: sa.JobHandle) -> int:
    """Since the attempt began."""
    subtasks = [subtask["nodes"] for subtask in job.metrics()["subtasks"].values()]
    return sum(nodes["order"]["records_in"] for nodes in subtasks if "order" in nodes)


async def latest(storage: Path) -> Manifest:
    (found, *_) = await list_checkpoints(str(storage))
    assert found.manifest is not None
    return found.manifest


def positions(manifest: Manifest) -> dict[int, dict[str, Any]]:
    """By subtask of the source."""
    return {subtask.index: node.positions for subtask, node in manifest.nodes("splits")}


@pytest.mark.parametrize("rescales", [[1, 5, 2], [5, 1, 7], [2, 3, 8, 1]], ids=str)
@pytest.mark.parametrize("alignment", ["aligned", "unaligned"])
async def test_positions_go_to_the_subtasks_of_now(tmp_path: Path, rescales: list[int], alignment: Any) -> None:
    feed, sink = Unequal(), ListSink[tuple[int, int]]()
    settings = config(tmp_path, alignment=alignment)
    for round, parallelism in enumerate(rescales):
        feed.read_from.clear()
        async with dropped(flow_of(feed, sink, parallelism), settings) as job:
            feed.add(10)
            await until(lambda job=job: processed(job) >= 10 * SPLITS)  # type: ignore[misc]
            await job.checkpoint()
            feed.add(4)
            await until(lambda job=job: processed(job) >= 14 * SPLITS)  # type: ignore[misc]
        stored = positions(await latest(tmp_path))
        after = 10 * (round + 1) + 4 * round
        assert stored == {
            index: {str(split): after for split in range(SPLITS) if split % parallelism == index}
            for index in range(parallelism)
        }
        # The four that no checkpoint held are read again.
        assert {split: places[0] for split, places in feed.read_from.items()} == dict.fromkeys(
            range(SPLITS), max(0, 14 * round - 4)
        )
    feed.complete_splits(*range(SPLITS))
    await sa.run(flow_of(feed, sink, 3), settings)
    assert Counter(sink.values) == Counter(feed.everything)


@pytest.mark.parametrize("now", [1, 3, 5, 8])
@pytest.mark.parametrize("alignment", ["aligned", "unaligned"])
async def test_some_subtasks_had_ended(tmp_path: Path, now: int, alignment: Any) -> None:
    """At another parallelism a subtask gets splits that are all read together with some that are not, or none."""
    feed, sink = Unequal(), ListSink[tuple[int, int]]()
    settings = config(tmp_path, alignment=alignment)
    async with dropped(flow_of(feed, sink, SPLITS), settings) as job:
        feed.add(7)
        feed.complete_splits(0, 1, 3)
        await until(lambda: processed(job) == 7 * SPLITS)
        await job.checkpoint()
        feed.add(5, [2, 4])
        await until(lambda: processed(job) == 7 * SPLITS + 10)
    manifest = await latest(tmp_path)
    ended = {subtask.index for subtask, _ in manifest.nodes("splits") if subtask.ended}
    assert ended == {0, 1, 3} and not manifest.final
    assert positions(manifest) == {split: {str(split): 7} for split in range(SPLITS)}
    async with dropped(flow_of(feed, sink, now), settings) as job:
        feed.add(6, [2, 4])
        await until(lambda: processed(job) == 22)
        await job.checkpoint()
    feed.complete_splits(2, 4)
    await sa.run(flow_of(feed, sink, 2), settings)
    assert Counter(sink.values) == Counter(feed.everything)


@pytest.mark.parametrize("widths", [[5, 2, 7, 1], [1, 4]], ids=str)
async def test_a_job_that_had_ended_ends_again_and_doubles_nothing(tmp_path: Path, widths: list[int]) -> None:
    feed, sink = Unequal(), ListSink[tuple[int, int]]()
    feed.add(20)
    feed.complete_splits(*range(SPLITS))
    for parallelism in widths:
        await sa.run(flow_of(feed, sink, parallelism), config(tmp_path))
        assert Counter(sink.values) == Counter(feed.everything)
        manifest = await latest(tmp_path)
        assert manifest.final and all(subtask.ended for subtask in manifest.subtasks)
        assert sorted(place for each in positions(manifest).values() for place in each.items()) == [
            (str(split), 20) for split in range(SPLITS)
        ]


async def test_a_job_that_had_ended_reads_what_has_come_since(tmp_path: Path) -> None:
    """As a bounded read of files that grow does, started again every night."""
    feed, sink = Unequal(), ListSink[tuple[int, int]]()
    feed.complete_splits(*range(SPLITS))
    for parallelism in (2, 5, 1):
        feed.add(9)
        await sa.run(flow_of(feed, sink, parallelism), config(tmp_path))
        assert Counter(sink.values) == Counter(feed.everything)
