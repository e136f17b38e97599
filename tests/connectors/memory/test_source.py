"""A list is dealt out by position, and read on exactly from any of them."""

import asyncio
import copy
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.memory import CRASH, ListSource
from streamactors.errors import RecordFailed
from streamactors.sources import Position, SplitReader
from streamactors.testing.connector_contract import Reading, SourceContract, read, source_context


class TestContract(SourceContract[int]):
    def source(self) -> ListSource[int]:
        return ListSource(range(5000))

    async def expected(self) -> list[int]:
        return list(range(5000))


def reader(source: ListSource[Any], subtask: int = 0, parallelism: int = 1) -> SplitReader[Any]:
    return source.reader(source_context(subtask=subtask, parallelism=parallelism))


async def test_one_subtask_keeps_the_order_of_the_list() -> None:
    values = list(range(10_000))
    assert (await read(reader(ListSource(values)), None)).all_values() == values


async def test_position_i_goes_to_subtask_i_modulo_parallelism() -> None:
    source = ListSource("abcdefgh")
    readings = [await read(reader(source, subtask, 3), None) for subtask in range(3)]
    assert ["".join(reading.all_values()) for reading in readings] == ["adg", "beh", "cf"]


async def test_more_subtasks_than_values() -> None:
    source = ListSource([1, 2])
    readings = [await read(reader(source, subtask, 4), None) for subtask in range(4)]
    assert [reading.all_values() for reading in readings] == [[1], [2], [], []]


async def test_origins_are_positions_in_the_list() -> None:
    (batch,) = (await read(reader(ListSource("abcdef"), 1, 2), None)).batches
    assert batch.origins is not None
    assert [batch.origin_prefix + str(origin) for origin in batch.origins] == [
        "ListSource:1",
        "ListSource:3",
        "ListSource:5",
    ]


async def test_several_stripes_are_read_where_the_lowest_position_is() -> None:
    source = ListSource(range(10_000))
    begun = [await read(reader(source, subtask, 2), None, at_most=1) for subtask in range(2)]
    rest = await read(reader(source), begun[0].positions | begun[1].positions)
    assert [batch.split for batch in rest.batches] == [f"{n % 2}/2" for n in range(len(rest.batches))]


async def test_changing_the_list_later_changes_nothing() -> None:
    values = [1, 2, 3]
    source = ListSource(values)
    values.append(4)
    assert (await read(reader(source), None)).all_values() == [1, 2, 3]


async def test_large_lists_are_read_in_few_batches() -> None:
    batches = (await read(reader(ListSource(range(100_000))), None)).batches
    assert len(batches) <= 100


async def run_with_crashes(values: Sequence[Any], parallelism: int, sizes: Sequence[int]) -> tuple[list[Any], int]:
    """A job that checkpoints in the middle of batches: the values of completed work, and how often it failed."""
    source = ListSource(values)
    positions: dict[str, Position] | None = None
    done: list[Any] = []
    for failures in range(len(values) + 1):
        failed = False
        merged: dict[str, Position] = {}
        for subtask in range(parallelism):
            restored = None
            if positions is not None:
                restored = {s: p for s, p in positions.items() if source.assign(s, parallelism) == subtask}
            got, crashed = await read_until_crash(reader(source, subtask, parallelism), restored, sizes)
            merged |= got.positions
            done += got.all_values()
            failed |= crashed
        positions = merged
        if not failed:
            return done, failures
    raise AssertionError("fails for ever")


async def read_until_crash(
    reader: SplitReader[Any], restored: dict[str, Position] | None, sizes: Sequence[int]
) -> tuple[Reading[Any], bool]:
    reading = Reading[Any]()
    reading.positions |= await reader.open(restored)
    try:
        while (batch := await reader.read()) is not None:
            reading.take(batch, len(batch.values))
    except RecordFailed:
        # The last checkpoint was somewhere in the last batch.
        if reading.batches:
            last = reading.batches[-1]
            taken = sizes[len(last.values) % len(sizes)] % (len(last.values) + 1)
            del reading.values[last.split][len(reading.values[last.split]) - len(last.values) + taken :]
            reading.positions[last.split] = last.position_after(taken)
        return reading, True
    finally:
        await reader.close()
    return reading, False


@given(
    st.lists(st.just(CRASH) | st.integers(0, 9), max_size=40),
    st.integers(1, 4),
    st.lists(st.integers(0, 50), min_size=1),
)
async def test_crashes_fail_once_each_and_lose_and_double_nothing(
    values: list[Any], parallelism: int, sizes: list[int]
) -> None:
    done, failures = await run_with_crashes(values, parallelism, sizes)
    crashes = sum(value is CRASH for value in values)
    assert sorted(done) == sorted(value for value in values if value is not CRASH)
    assert (failures > 0) == (crashes > 0)
    assert failures <= crashes


class TestCrash:
    async def test_fails_there_and_names_the_place(self) -> None:
        crashing = reader(ListSource([1, 2, CRASH, 3]))
        await crashing.open(None)
        batch = await crashing.read()
        assert batch is not None
        assert list(batch.values) == [1, 2]
        with pytest.raises(RecordFailed, match=r"'source' failed, record ListSource:2: .*CRASH"):
            await crashing.read()
        await crashing.close()

    async def test_once_per_source_but_again_for_another(self) -> None:
        source = ListSource([CRASH, 1])
        with pytest.raises(RecordFailed):
            await read(reader(source), None)
        assert (await read(reader(source), None)).all_values() == [1]
        with pytest.raises(RecordFailed):
            await read(reader(ListSource([CRASH, 1])), None)

    async def test_is_known_by_identity(self) -> None:
        class EqualToAll:
            def __eq__(self, other: object) -> bool:
                raise AssertionError("compared")

            __hash__ = None  # type: ignore[assignment]

        assert len((await read(reader(ListSource([EqualToAll()])), None)).all_values()) == 1

    def test_survives_copies(self) -> None:
        assert pickle.loads(pickle.dumps(CRASH)) is CRASH
        assert copy.deepcopy([CRASH])[0] is CRASH
        assert repr(CRASH) == "CRASH"


async def test_a_paused_stripe_waits_and_a_pending_read_goes_on_once_it_is_resumed() -> None:
    stripes = reader(ListSource(range(10)))
    await stripes.open({"0/2": 0, "1/2": 1})
    assert stripes.pause({"0/2"})
    first = await stripes.read()
    assert first is not None and first.split == "1/2" and list(first.values) == [1, 3, 5, 7, 9]
    pending = asyncio.ensure_future(stripes.read())
    await asyncio.wait([pending], timeout=0.01)
    assert not pending.done(), "it is not the end: the other stripe is paused"
    stripes.pause(())
    async with asyncio.timeout(60):
        second = await pending
    assert second is not None and list(second.values) == [0, 2, 4, 6, 8]
    assert await stripes.read() is None
    await stripes.close()
