"""The source's input: positions exact at every slice, undecodable records routed once, stop and drain."""

import asyncio
import datetime as dt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamactors.elements import END, Batch, Watermark
from streamactors.errors import RecordFailed
from streamactors.metrics import MetricGroup
from streamactors.runtime.inputs import SourceInput, SourceTime
from streamactors.sources import SourceContext
from streamactors.time.alignment import AlignmentGroup
from streamactors.time.watermarks import Watermarks
from tests.runtime.feeds import Feed, FeedReader, Undecodable, source_time, until

LOG: Any = None


def open_input(
    feed: Feed,
    restored: Any = None,
    *,
    limit: Any = None,
    letters: list[Any] | None = None,
    watermarks: SourceTime | None = None,
    monotonic: Any = float,
    retain: int = 1,
) -> SourceInput:
    context = SourceContext("flow", "source", 0, 1, True, LOG, MetricGroup())
    into = None if letters is None else lambda batch: letters.extend(letter.value for letter in batch.values)
    return SourceInput(
        "source",
        feed.reader(context),
        restored,
        wake=lambda: None,
        limit=limit or (lambda: 3),
        dead_letters=into,
        watermarks=watermarks,
        monotonic=monotonic,
        retain=retain,
    )


async def next_of(source: SourceInput) -> Any:
    taken: Any = None

    def took() -> bool:
        nonlocal taken
        taken = source.take()
        return taken is not None

    await until(took)
    return taken[1]


@given(
    raw=st.lists(st.lists(st.booleans(), max_size=12), min_size=1, max_size=3),
    limits=st.lists(st.integers(1, 5), min_size=1),
    cut=st.integers(0, 20),
    chunk=st.integers(1, 6),
)
def test_positions_are_exact_at_any_slice(raw: list[list[bool]], limits: list[int], cut: int, chunk: int) -> None:
    """What was taken before a snapshot and what a new reader gives from there is everything, once, in order."""

    async def run() -> None:
        feed = Feed(len(raw), chunk=chunk)
        for split, kinds in enumerate(raw):
            feed.values[split] = [(split, n) if good else Undecodable() for n, good in enumerate(kinds)]
        feed.end()
        wanted = [[value for value in values if isinstance(value, tuple)] for values in feed.values]
        garbled = [id(value) for values in feed.values for value in values if isinstance(value, Undecodable)]
        step = iter(limits * 100)
        seen: list[Any] = []
        letters: list[Any] = []
        first = open_input(feed, limit=lambda: next(step), letters=letters)
        await first.open()
        for _ in range(cut):
            element = await next_of(first)
            if element is END:
                break
            seen += element.values
        positions = first.snapshot(1)
        await first.close()
        second = open_input(feed, positions, letters=letters)
        await second.open()
        while (element := await next_of(second)) is not END:
            seen += element.values
        await second.close()
        for split in range(len(raw)):
            assert [value for value in seen if value[0] == split] == wanted[split]
        assert sorted(map(id, letters)) == sorted(garbled)

    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(run())


async def test_an_undecodable_record_without_a_route_fails_with_its_origin() -> None:
    feed = Feed()
    feed.put(1, Undecodable())
    source = open_input(feed)
    await source.open()
    with pytest.raises(RecordFailed, match="operator 'source' failed, record 0@1: undecodable: ValueError: garbled"):
        await next_of(source)
    await source.close()


async def test_stop_gives_nothing_more_and_keeps_the_position() -> None:
    feed = Feed()
    feed.put(1, 2, 3, 4)
    source = open_input(feed)
    await source.open()
    assert (await next_of(source)).values == [1, 2, 3]
    source.stop(drain=False)
    assert source.take() is None
    assert source.snapshot(1) == {"0": 3}
    await source.close()


async def test_it_reads_on_where_it_stopped() -> None:
    feed = Feed()
    feed.put(1, 2, 3, 4, 5)
    source = open_input(feed)
    await source.open()
    assert (await next_of(source)).values == [1, 2, 3]
    for _ in range(2):
        source.stop(drain=False)
        assert source.take() is None
        source.resume()
    assert (await next_of(source)).values == [4, 5]
    feed.end()
    assert await next_of(source) is END
    source.stop(drain=False)
    source.resume()
    assert source.take() is None, "it ends once"
    await source.close()


async def test_those_that_wait_for_each_other_do_so_again() -> None:
    group = AlignmentGroup()
    feed, other = Feed(), group.join(lambda: None)
    watermarks = Watermarks[int].bounded(lambda value: value, dt.timedelta(0), align=dt.timedelta(hours=1))
    source = open_input(feed, watermarks=source_time(watermarks, group=group))
    await source.open()
    for value in (10, 20):
        source.resume()
        feed.put(value)
        while not isinstance(await next_of(source), Batch):
            pass
        assert other.tell(100) == value - 1, "the slowest is the one that reads"
        source.stop(drain=False)
        assert other.tell(100) == 100, "nobody waits for who reads no further"
    await source.close()


async def test_no_split_is_idle_because_nobody_has_read() -> None:
    now = 0.0
    feed = Feed(2)
    watermarks = source_time(Watermarks[int].monotonic(lambda value: value, idle_after=dt.timedelta(seconds=1)))
    source = open_input(feed, watermarks=watermarks, monotonic=lambda: now)
    await source.open()
    feed.put(10, split=0)
    feed.put(20, split=1)
    given: list[Any] = []
    while given != [10, 20]:
        given += getattr(await next_of(source), "values", ())
    assert source.take() == (0, Watermark(9)) and source.take() is None, "it waits for records"
    source.stop(drain=False)
    now = 100.0
    source.resume()
    feed.put(30, split=0)
    while not isinstance(await next_of(source), Batch):
        pass
    idle = {split: stored[1] for split, stored in source.split_times().items()}
    assert idle == {"0": False, "1": False}, "the next record of split 1 would be late"
    await source.close()


async def test_positions_are_released_once_as_many_checkpoints_are_complete_as_are_retained() -> None:
    """Of a savepoint never, nor of one that was aborted."""
    feed = Feed()
    feed.put(1, 2, 3, 4, 5, 6)
    source = open_input(feed, limit=lambda: 1, retain=2)
    await source.open()
    for checkpoint, (savepoint, completes) in enumerate(
        [(False, True), (True, True), (False, False), (False, True), (False, True)], start=1
    ):
        await next_of(source)
        source.snapshot(checkpoint, savepoint=savepoint)
        if completes:
            await source.completed(checkpoint)
        else:
            source.aborted(checkpoint)
    assert feed.released == [{"0": 1}, {"0": 4}]
    await source.close()


async def test_drain_ends_the_data_once_at_the_position_reached() -> None:
    feed = Feed()
    feed.put(1, 2, 3, 4)
    source = open_input(feed)
    await source.open()
    await next_of(source)
    source.stop(drain=True)
    assert source.take() == (0, END)
    source.stop(drain=True)
    assert source.take() is None and source.snapshot(1) == {"0": 3}
    await source.close()


async def test_the_reader_hears_of_completed_checkpoints_only() -> None:
    feed = Feed()
    feed.put(1, 2, 3, 4)
    source = open_input(feed)
    await source.open()
    for number in (1, 2, 3):
        source.snapshot(number)
        if number == 1:
            await next_of(source)
    source.aborted(3)
    await source.completed(2)
    await source.completed(3)
    await source.completed(1)
    assert feed.completed == [(2, {"0": 3})]
    assert source._at_checkpoint == {}
    await source.close()


async def test_a_reader_that_was_not_opened_is_not_closed() -> None:
    feed = Feed()
    await open_input(feed).close()
    assert feed.closed == 0


async def test_closing_ends_the_read_under_way() -> None:
    feed = Feed()
    source = open_input(feed)
    await source.open()
    assert source.take() is None
    before = asyncio.all_tasks()
    await source.close()
    assert len(before) == len(asyncio.all_tasks()) + 1 and feed.closed == 1


class _Late(FeedReader):
    """Its splits are found only by what it reads, as new partitions are."""

    async def open(self, restored: Any) -> Any:
        given = await super().open(restored)
        return given if restored is not None else {}


async def test_leading_undecodable_records_survive_a_snapshot_between_a_watermark_and_its_records() -> None:
    """A split that is new, or was idle, is heralded by a watermark: the batch is in hand, and nothing of it given."""
    feed, letters = Feed(), list[Any]()
    context = SourceContext("flow", "source", 0, 1, True, LOG, MetricGroup())

    def source(restored: Any) -> SourceInput:
        watermarks = source_time(Watermarks[int].bounded(lambda v: v, dt.timedelta(0)))
        return SourceInput(
            "source", _Late(feed, context), restored, wake=lambda: None, limit=lambda: 8,
            dead_letters=lambda batch: letters.extend(batch.values), watermarks=watermarks,
        )  # fmt: skip

    feed.put(Undecodable(), 1, 2)
    feed.end()
    first = source(None)
    await first.open()
    while not first._batch:
        mark = await next_of(first)
    assert not isinstance(mark, Batch) and not letters
    stored = first.snapshot(1)
    await first.close()
    second = source(stored)
    await second.open()
    while not isinstance(await next_of(second), Batch):
        pass
    await second.close()
    assert len(letters) == 1, f"lost; the snapshot said {stored}"
