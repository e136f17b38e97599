"""What every connector must keep, as pytest classes to derive from (pytest-asyncio in auto mode runs them):

    class TestMySource(SourceContract[int]):
        def source(self) -> MySource: ...
        async def expected(self) -> list[int]: ...

A reader or writer that is dropped without `close` stands for a process that was killed.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

import msgspec

from streamactors.errors import TransactionLost
from streamactors.metrics import MetricGroup
from streamactors.sinks import Pending, SinkContext, SinkWriter, WriterSink
from streamactors.sources import Position, SourceBatch, SourceContext, SplitReader, SplitSource

T = TypeVar("T")

_LOG = logging.LoggerAdapter(logging.getLogger(__name__), {})


def source_context(*, subtask: int = 0, parallelism: int = 1, flow: str = "flow", uid: str = "source") -> SourceContext:
    return SourceContext(flow, uid, subtask, parallelism, checkpointing=True, log=_LOG, metrics=MetricGroup())


def sink_context(
    *,
    subtask: int = 0,
    parallelism: int = 1,
    widest_parallelism: int | None = None,
    run: int = 1,
    attempt: int = 1,
    checkpointing: bool = True,
    flow: str = "flow",
    uid: str = "sink",
) -> SinkContext:
    return SinkContext(
        flow,
        uid,
        subtask,
        parallelism,
        widest_parallelism or parallelism,
        checkpointing=checkpointing,
        exactly_once=checkpointing,
        max_concurrent=1,
        tolerable_failures=0,
        checkpoint_timeout=60.0,
        run=run,
        attempt=attempt,
        log=_LOG,
        metrics=MetricGroup(),
    )


def stored(data: Any) -> Any:
    """What a checkpoint gives back for `data`: plain msgpack, or it fails here."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(data))


@dataclass
class Reading(Generic[T]):
    """What one subtask has read: `positions` as a checkpoint after the last batch would hold them."""

    positions: dict[str, Position] = field(default_factory=dict)
    values: dict[str, list[T]] = field(default_factory=lambda: defaultdict(list))
    batches: list[SourceBatch[T]] = field(default_factory=list)

    def take(self, batch: SourceBatch[T], taken: int) -> None:
        self.batches.append(batch)
        self.values[batch.split] += batch.values[:taken]
        self.positions[batch.split] = stored(batch.position_after(taken))

    def all_values(self) -> list[T]:
        return [value for values in self.values.values() for value in values]


async def read(
    reader: SplitReader[T], restored: Mapping[str, Position] | None, at_most: int | None = None
) -> Reading[T]:
    """Open, read at most so many batches, close."""
    reading = Reading[T]()
    try:
        reading.positions |= stored(await reader.open(restored))
        while len(reading.batches) != at_most and (batch := await reader.read()) is not None:
            reading.take(batch, len(batch.values))
    finally:
        await reader.close()
    return reading


def _numbers(batches: Iterable[SourceBatch[Any]]) -> dict[str, list[int]]:
    """By split; of those that number their records."""
    numbers: dict[str, list[int]] = defaultdict(list)
    for batch in batches:
        numbers[batch.split] += batch.origins or ()
    return numbers


_PAUSED_SECONDS: Final = 0.02
"""After it, nothing is to be had for now; if there was, the test sees less, and fails no earlier."""


async def _while_paused(reader: SplitReader[T], paused: Collection[str]) -> SourceBatch[T] | None:
    """The next batch; of a split that is paused only once it goes on."""
    reading = asyncio.ensure_future(reader.read())
    try:
        done, _ = await asyncio.wait([reading], timeout=_PAUSED_SECONDS)
        if done and (batch := reading.result()) is not None:
            assert batch.split not in paused, f"{batch.split} is paused, and gave records"
        reader.pause(())
        return await reading
    finally:
        reading.cancel()


class SourceContract(ABC, Generic[T]):
    """For bounded sources without undecodable records."""

    @abstractmethod
    def source(self) -> SplitSource[T]:
        """As a new process would make it: always of the same data."""

    @abstractmethod
    async def expected(self) -> list[T]:
        """All its values, in any order."""

    def reader(self, subtask: int = 0, parallelism: int = 1) -> SplitReader[T]:
        return self.source().reader(source_context(subtask=subtask, parallelism=parallelism))

    async def read_by(self, parallelism: int, positions: Mapping[str, Position] | None = None) -> list[Reading[T]]:
        """Everything, with that many subtasks; from `positions`, dealt out as the runtime does."""
        readings = []
        for subtask in range(parallelism):
            restored = None if positions is None else self.dealt_to(subtask, parallelism, positions)
            readings.append(await read(self.reader(subtask, parallelism), restored))
        return readings

    def dealt_to(self, subtask: int, parallelism: int, positions: Mapping[str, Position]) -> dict[str, Position]:
        assign = self.source().assign
        return {split: position for split, position in positions.items() if assign(split, parallelism) == subtask}

    async def test_reads_everything_once_with_any_parallelism(self) -> None:
        for parallelism in (1, 2, 3, 7):
            readings = await self.read_by(parallelism)
            read = [value for reading in readings for value in reading.all_values()]
            assert _sorted(read) == _sorted(await self.expected()), f"parallelism {parallelism}"

    async def test_reads_the_same_in_the_same_order_again(self) -> None:
        first, second = await read(self.reader(), None), await read(self.reader(), None)
        assert first.values == second.values

    async def test_splits_that_are_paused_give_nothing_and_lose_nothing(self) -> None:
        """Each time, the split that has given last is paused until another gives, or none does."""
        usual = await read(self.reader(), None)
        reader, found = self.reader(), defaultdict[str, list[T]](list)
        try:
            await reader.open(None)
            paused: set[str] = set()
            while reader.pause(paused) and (batch := await _while_paused(reader, paused)) is not None:
                found[batch.split] += batch.values
                paused = {batch.split}
        finally:
            await reader.close()
        if found:  # else it can't pause
            assert {split: values for split, values in found.items() if values} == {
                split: values for split, values in usual.values.items() if values
            }

    async def test_progress_goes_on_to_the_end(self) -> None:
        """Of a reader that tells any: nobody is to see all of it read too early, or go back."""
        reader = self.reader()
        try:
            await reader.open(None)
            told = [reader.progress()]
            while await reader.read() is not None:
                told.append(reader.progress())
        finally:
            await reader.close()
        seen = [one for one in told if one is not None]
        if seen:
            assert len(seen) == len(told) and len({(one.total, one.unit) for one in seen}) == 1
            assert [one.done for one in seen] == sorted(one.done for one in seen)
            assert seen[0].done == 0 and seen[-1].done == seen[-1].total

    async def test_every_split_is_read_by_the_subtask_it_is_assigned_to(self) -> None:
        for parallelism in (1, 2, 3):
            for subtask, reading in enumerate(await self.read_by(parallelism)):
                assert set(reading.values) <= set(reading.positions)
                for split in reading.positions:
                    assert self.source().assign(split, parallelism) == subtask

    async def test_columns_have_one_length(self) -> None:
        for batch in (await read(self.reader(), None)).batches:
            assert batch.timestamps is None or len(batch.timestamps) == len(batch.values)
            assert batch.origins is None or len(batch.origins) == len(batch.values)

    async def test_a_record_keeps_its_number(self) -> None:
        """Its name is made of it (`ctx.record_id`): no two of a split have one, and who goes on gives the same."""
        whole = (await read(self.reader(), None)).batches
        numbers = _numbers(whole)
        assert {split: len(set(own)) for split, own in numbers.items()} == {
            split: len(own) for split, own in numbers.items()
        }
        begun = Reading[T](dict((await read(self.reader(), None, at_most=0)).positions))
        for batch in whole[:1]:
            begun.take(batch, len(batch.values) // 2)
        again = _numbers((await read(self.reader(), begun.positions)).batches)
        assert all(own == numbers[split][-len(own) :] for split, own in again.items() if own)

    async def test_goes_on_exactly_after_any_record(self) -> None:
        whole = await read(self.reader(), None)
        so_far = Reading[T](positions=dict((await read(self.reader(), None, at_most=0)).positions))
        for batch in whole.batches:
            for taken in _some(len(batch.values)):
                at = Reading[T](
                    dict(so_far.positions), defaultdict(list, {k: list(v) for k, v in so_far.values.items()})
                )
                at.take(batch, taken)
                rest = await read(self.reader(), at.positions)
                for split, values in whole.values.items():
                    assert at.values[split] + rest.values[split] == values, f"{split} after {taken} of a batch"
            so_far.take(batch, len(batch.values))

    async def test_a_rescale_loses_and_doubles_nothing(self) -> None:
        for before, after in ((1, 2), (2, 1), (2, 3), (3, 2), (2, 7)):
            positions: dict[str, Position] = {}
            values: list[T] = []
            for subtask in range(before):
                begun = await read(self.reader(subtask, before), None, at_most=1 + subtask)
                positions |= begun.positions
                values += begun.all_values()
            for reading in await self.read_by(after, positions):
                values += reading.all_values()
            assert _sorted(values) == _sorted(await self.expected()), f"{before} → {after}"

    async def test_a_source_that_was_read_to_its_end_has_nothing_more(self) -> None:
        positions = (await read(self.reader(), None)).positions
        again = await read(self.reader(), positions)
        assert again.all_values() == []
        assert again.positions == positions

    async def test_closes_also_when_it_was_never_opened(self) -> None:
        await self.reader().close()


class SinkContract(ABC, Generic[T]):
    """For transactional sinks."""

    @abstractmethod
    def sink(self) -> WriterSink[T]:
        """As a new attempt, or a new process, would get it: always to the same place."""

    @abstractmethod
    def values(self) -> Sequence[T]:
        """At least twelve, all different, in ascending order."""

    @abstractmethod
    async def visible(self) -> list[T]:
        """What a careful reader outside sees now; one subtask's values in their order."""

    async def writer(self, restored: Sequence[Pending] = (), *, committed: bool = False, **ctx: Any) -> SinkWriter[T]:
        writer = self.sink().writer(sink_context(**ctx))
        try:
            await writer.open(stored(list(restored)), committed=committed)
        except BaseException:
            await writer.close()
            raise
        return writer

    async def test_visible_when_its_checkpoint_is_complete_and_not_before(self) -> None:
        a, b, c = _parts(self.values(), 3)
        writer = await self.writer()
        await writer.write(a, None)
        await writer.write(b, None)
        assert await self.visible() == []
        stored(await writer.prepare(1))
        await writer.write(c, None)
        assert await self.visible() == []
        await writer.commit(1)
        assert await self.visible() == [*a, *b]
        await writer.prepare(2)
        await writer.commit(2)
        assert await self.visible() == [*a, *b, *c]
        await writer.close()

    async def test_committing_twice_is_committing_once(self) -> None:
        writer = await self.writer()
        await writer.write(self.values(), None)
        await writer.prepare(1)
        for _ in range(2):
            await writer.commit(1)
        assert await self.visible() == list(self.values())
        await writer.close()

    async def test_a_checkpoint_commits_what_aborted_ones_before_it_prepared(self) -> None:
        a, b = _parts(self.values(), 2)
        writer = await self.writer()
        await writer.write(a, None)
        await writer.prepare(1)
        await writer.write(b, None)
        await writer.prepare(2)
        await writer.commit(2)
        assert await self.visible() == [*a, *b]
        await writer.close()

    async def test_a_checkpoint_commits_nothing_that_a_later_one_prepared(self) -> None:
        a, b = _parts(self.values(), 2)
        writer = await self.writer()
        await writer.write(a, None)
        await writer.prepare(1)
        await writer.write(b, None)
        await writer.prepare(2)
        await writer.commit(1)
        assert await self.visible() == a
        await writer.commit(2)
        assert await self.visible() == [*a, *b]
        await writer.close()

    async def test_a_checkpoint_without_records(self) -> None:
        writer = await self.writer()
        await writer.prepare(1)
        await writer.commit(1)
        await writer.close()
        assert await self.visible() == []

    async def test_another_process_commits_what_was_prepared(self) -> None:
        a, b = _parts(self.values(), 2)
        writer = await self.writer()
        await writer.write(a, None)
        await writer.prepare(1)
        await writer.write(b, None)
        pending = stored(await writer.prepare(2))  # of both checkpoints
        await writer.close()
        assert await self.visible() == []
        await (await self.writer(pending, attempt=2)).close()
        assert await self.visible() == [*a, *b]

    async def test_restored_again_without_a_receipt_nothing_doubles(self) -> None:
        writer = await self.writer()
        await writer.write(self.values(), None)
        pending = stored(await writer.prepare(1))
        await writer.commit(1)
        await writer.close()
        for attempt in (2, 3):
            try:
                await (await self.writer(pending, attempt=attempt)).close()
            except TransactionLost:
                break  # a sink that can't tell "committed" from "lost" must stop the job
        assert await self.visible() == list(self.values())

    async def test_with_a_receipt_nothing_doubles(self) -> None:
        writer = await self.writer()
        await writer.write(self.values(), None)
        pending = stored(await writer.prepare(1))
        await writer.commit(1)
        await writer.close()
        await (await self.writer(pending, committed=True, attempt=2)).close()
        assert await self.visible() == list(self.values())

    async def test_what_was_not_prepared_is_never_seen(self) -> None:
        a, b = _parts(self.values(), 2)
        writer = await self.writer()
        await writer.write(a, None)
        pending = stored(await writer.prepare(1))
        await writer.commit(1)
        await writer.write(b, None)
        await writer.close()
        writer = await self.writer(pending, committed=True, attempt=2)
        assert await self.visible() == a
        await writer.write(b, None)  # as the source reads it again
        await writer.prepare(2)
        await writer.commit(2)
        await writer.close()
        assert await self.visible() == [*a, *b]

    async def test_what_was_prepared_for_a_checkpoint_that_never_completed_is_never_seen(self) -> None:
        a, b = _parts(self.values(), 2)
        writer = await self.writer()
        await writer.write(a, None)
        pending = stored(await writer.prepare(1))
        await writer.write(b, None)
        await writer.prepare(2)
        await writer.close()
        writer = await self.writer(pending, attempt=2)
        await writer.write(b, None)
        await writer.prepare(3)
        await writer.commit(3)
        await writer.close()
        assert await self.visible() == [*a, *b]

    async def test_a_rescale_loses_and_doubles_nothing(self) -> None:
        written = list(self.values())
        pending: list[list[Pending]] = []
        for subtask, part in enumerate(_parts(written, 3)):
            writer = await self.writer(subtask=subtask, parallelism=3)
            await writer.write(part, None)
            pending.append(stored(await writer.prepare(1)))
            await writer.close()
        deal: dict[str, Any] = {"parallelism": 2, "widest_parallelism": 3, "attempt": 2}
        dealt = [pending[0] + pending[2], pending[1]]
        writers = [await self.writer(dealt[subtask], subtask=subtask, **deal) for subtask in (0, 1)]
        for writer in writers:
            await writer.prepare(2)
        for writer in writers:
            await writer.commit(2)
            await writer.close()
        assert _sorted(await self.visible()) == _sorted(written)

    async def test_without_checkpoints_all_is_visible_at_the_end(self) -> None:
        writer = await self.writer(checkpointing=False)
        for part in _parts(self.values(), 3):
            await writer.write(part, None)
        await writer.finish()
        await writer.close()
        assert await self.visible() == list(self.values())

    async def test_closes_also_when_it_was_never_opened(self) -> None:
        await self.sink().writer(sink_context()).close()


def _parts(values: Sequence[T], count: int) -> Iterator[list[T]]:
    size = -(-len(values) // count)
    return (list(values[start : start + size]) for start in range(0, size * count, size))


def _some(length: int, at_most: int = 20) -> list[int]:
    """0, `length`, and what lies evenly between."""
    return sorted({length * part // at_most for part in range(at_most + 1)})


def _sorted(values: Sequence[T]) -> list[T]:
    """Any order that equal collections have in common."""
    return sorted(values, key=repr)
