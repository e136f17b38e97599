"""The contract finds connectors that break it."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from connectors.memory import ListSink, ListSource
from streamactors.sinks import Pending, SinkContext, SinkWriter
from streamactors.sources import Position, SourceBatch, SourceContext, SplitReader
from streamactors.testing.connector_contract import SinkContract, SourceContract


class Reader(SplitReader[int]):
    """Passes everything on; tests break one method each."""

    def __init__(self, inner: SplitReader[int]) -> None:
        self.inner = inner

    async def open(self, restored: Mapping[str, Position] | None) -> Mapping[str, Position]:
        return await self.inner.open(restored)

    async def read(self) -> SourceBatch[int] | None:
        return await self.inner.read()

    async def close(self) -> None:
        await self.inner.close()


class OffByOne(Reader):
    async def read(self) -> SourceBatch[int] | None:
        if batch := await self.inner.read():
            after = batch.position_after
            batch.position_after = lambda taken: after(max(taken - 1, 0))
        return batch


class EndOfBatchOnly(Reader):
    async def read(self) -> SourceBatch[int] | None:
        if batch := await self.inner.read():
            end = batch.position_after(len(batch.values))
            batch.position_after = lambda taken: end
        return batch


class ReadsEverySplit(Reader):
    async def open(self, restored: Mapping[str, Position] | None) -> Mapping[str, Position]:
        return await self.inner.open({"0/1": 0} if restored is None else restored)


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (OffByOne, "test_goes_on_exactly_after_any_record"),
        (EndOfBatchOnly, "test_goes_on_exactly_after_any_record"),
        (OffByOne, "test_a_source_that_was_read_to_its_end_has_nothing_more"),
        (ReadsEverySplit, "test_reads_everything_once_with_any_parallelism"),
        (ReadsEverySplit, "test_every_split_is_read_by_the_subtask_it_is_assigned_to"),
    ],
)
async def test_finds_broken_sources(broken: type[Reader], test: str) -> None:
    class BrokenSource(ListSource[int]):
        def reader(self, ctx: SourceContext) -> SplitReader[int]:
            return broken(super().reader(ctx))

    class Contract(SourceContract[int]):
        def source(self) -> ListSource[int]:
            return BrokenSource(range(3000))

        async def expected(self) -> list[int]:
            return list(range(3000))

    with pytest.raises(AssertionError):
        await getattr(Contract(), test)()


class Writer(SinkWriter[int]):
    """Passes everything on; tests break one method each."""

    def __init__(self, inner: SinkWriter[int]) -> None:
        self.inner = inner

    async def open(self, restored: Sequence[Pending], *, committed: bool) -> None:
        await self.inner.open(restored, committed=committed)

    async def write(self, values: Sequence[int], timestamps: Sequence[int | None] | None) -> None:
        await self.inner.write(values, timestamps)

    async def prepare(self, checkpoint: int) -> Sequence[Pending]:
        return await self.inner.prepare(checkpoint)

    async def commit(self, checkpoint: int) -> None:
        await self.inner.commit(checkpoint)

    async def finish(self) -> None:
        await self.inner.finish()

    async def close(self) -> None:
        await self.inner.close()


class CommitsWhenItPrepares(Writer):
    async def prepare(self, checkpoint: int) -> Sequence[Pending]:
        pending = await self.inner.prepare(checkpoint)
        await self.inner.commit(checkpoint)
        return pending


class NamesTheLatestOnly(Writer):
    async def prepare(self, checkpoint: int) -> Sequence[Pending]:
        return (await self.inner.prepare(checkpoint))[-1:]


class ForgetsWhatWasRestored(Writer):
    async def open(self, restored: Sequence[Pending], *, committed: bool) -> None:
        await self.inner.open([], committed=committed)


class CommitsAll(Writer):
    async def commit(self, checkpoint: int) -> None:
        await self.inner.commit(checkpoint + 1)


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (CommitsWhenItPrepares, "test_visible_when_its_checkpoint_is_complete_and_not_before"),
        (CommitsWhenItPrepares, "test_what_was_prepared_for_a_checkpoint_that_never_completed_is_never_seen"),
        (NamesTheLatestOnly, "test_another_process_commits_what_was_prepared"),
        (ForgetsWhatWasRestored, "test_another_process_commits_what_was_prepared"),
        (ForgetsWhatWasRestored, "test_a_rescale_loses_and_doubles_nothing"),
        (CommitsAll, "test_a_checkpoint_commits_nothing_that_a_later_one_prepared"),
    ],
)
async def test_finds_broken_sinks(broken: type[Writer], test: str) -> None:
    class BrokenSink(ListSink[int]):
        def writer(self, ctx: SinkContext) -> SinkWriter[int]:
            return broken(super().writer(ctx))

    class Contract(SinkContract[int]):
        broken_sink = BrokenSink()

        def sink(self) -> ListSink[int]:
            return self.broken_sink

        def values(self) -> Sequence[int]:
            return range(12)

        async def visible(self) -> list[Any]:
            return self.broken_sink.values

    with pytest.raises(AssertionError):
        await getattr(Contract(), test)()
