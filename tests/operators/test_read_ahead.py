"""What the keys of a batch hold is read before its operator gets it, a part ahead."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from streamactors.elements import Batch
from streamactors.operators.read_ahead import PART, ReadAhead


class Recorded:
    """A backend that notes which keys were asked for; `gate` holds up what was asked for after the first part."""

    def __init__(self) -> None:
        self.begun: list[list[Any]] = []
        self.done: list[list[Any]] = []
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    async def prefetch(self, keys: Sequence[Any], groups: Sequence[int]) -> None:
        assert len(keys) == len(groups)
        self.begun.append(list(keys))
        if len(self.begun) > 1:
            await self.gate.wait()
            if self.error is not None:
                raise self.error
        self.done.append(list(keys))

    @property
    def known(self) -> set[Any]:
        return {key for part in self.done for key in part}


def batch_of(count: int, first: int = 0) -> Batch:
    keys = list(range(first, first + count))
    return Batch([object() for _ in keys], None, keys, [0] * count)


async def processed(ahead: ReadAhead, batch: Batch, step: int, backend: Recorded) -> None:
    """As a chain does it, slice by slice."""
    while True:
        await ahead.ready(batch, step)
        assert batch.keys is not None
        assert set(batch.keys[:step]) <= backend.known
        if step >= len(batch):
            return
        batch = batch.slice(step, len(batch))


@pytest.mark.parametrize("step", [1, 13, PART - 1, PART, PART + 1, 3 * PART, 10 * PART])
@pytest.mark.parametrize("count", [1, PART - 1, PART, PART + 1, 4 * PART + 7])
async def test_every_slice_has_been_read_when_it_is_its_turn(step: int, count: int) -> None:
    backend = Recorded()
    backend.gate.set()
    ahead = ReadAhead(backend)
    for first in (0, count):
        await processed(ahead, batch_of(count, first), step, backend)
    assert backend.known == set(range(2 * count))
    await ahead.close()


async def test_the_next_part_is_read_while_the_first_is_processed() -> None:
    backend = Recorded()
    ahead = ReadAhead(backend)
    batch = batch_of(3 * PART)
    await ahead.ready(batch, PART // 2)  # returns though the second part waits
    await asyncio.sleep(0)
    assert [len(part) for part in backend.begun] == [PART, PART]
    assert backend.known == set(range(PART))
    await ahead.ready(batch.slice(PART // 2, len(batch)), PART // 2)
    assert len(backend.begun) == 2
    backend.gate.set()
    await ahead.close()


async def test_a_batch_that_is_another_is_read_from_its_beginning() -> None:
    backend = Recorded()
    backend.gate.set()
    ahead = ReadAhead(backend)
    first = batch_of(3 * PART)
    await ahead.ready(first, 10)
    await processed(ahead, batch_of(20, first=10_000), 20, backend)  # what a timer emitted, say
    await processed(ahead, first.slice(10, len(first)), 10, backend)
    await ahead.close()


async def test_what_could_not_be_read_ahead_is_the_error_of_its_own_slice() -> None:
    backend = Recorded()
    ahead = ReadAhead(backend)
    batch = batch_of(2 * PART)
    await ahead.ready(batch, PART)
    backend.error = OSError("the disk is gone")
    backend.gate.set()
    with pytest.raises(OSError, match="the disk is gone"):
        await ahead.ready(batch.slice(PART, len(batch)), PART)
    await ahead.close()


async def test_closed_in_the_middle_it_leaves_no_task() -> None:
    backend = Recorded()
    ahead = ReadAhead(backend)
    before = asyncio.all_tasks()
    await ahead.ready(batch_of(2 * PART), PART)
    await asyncio.sleep(0)
    assert len(backend.begun) == 2
    await ahead.close()
    assert asyncio.all_tasks() == before
    await ahead.close()


async def test_without_keys_there_is_nothing_to_read() -> None:
    backend = Recorded()
    await ReadAhead(backend).ready(Batch([1, 2], None, None, None), 2)
    assert backend.begun == []
