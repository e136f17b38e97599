"""Reading a backlog: one batch at a time, a bounded number of bytes ahead, and nothing that does not fit."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from streamactors.checkpoint.frames import FrameCodec
from streamactors.checkpoint.manifest import FrameRef, InFlightHandle
from streamactors.elements import Batch
from streamactors.errors import CorruptCheckpoint, IncompatibleState, RecordFailed
from streamactors.graph.logical import Keyed, Rebalance
from streamactors.graph.physical import PhysicalPlan
from streamactors.graph.planner import plan
from streamactors.runtime.backlog import READ_AHEAD, Backlog, BacklogReader, RestoredBatch
from streamactors.runtime.restore_in_flight import plan_backlogs
from tests.graph.graphs import Graph, identity
from tests.runtime.in_flight import GROUPS, Captured, Channel, Memory, grouped


def one_edge(partitioning: Any) -> PhysicalPlan:
    graph = Graph().add("up", "source").add("down", "process", ("up", partitioning))
    return plan(graph.build(), max_parallelism=GROUPS)


def captured(partitioning: Any, *batches: Batch) -> tuple[Memory, Backlog]:
    """Queued and read again under the same plan."""
    kept = Captured(one_edge(partitioning)).add("up", "down", [Channel(0, 0, list(batches))])
    [backlog] = plan_backlogs(kept.manifest(), kept.plan).values()
    return kept.memory, backlog


def read(memory: Any, backlog: Backlog) -> BacklogReader:
    return BacklogReader(backlog, memory, FrameCodec(), GROUPS)


async def batch_of(reader: BacklogReader) -> Batch:
    """The next one."""
    restored = await reader.next()
    assert isinstance(restored, RestoredBatch)
    return restored.batch


async def test_reads_ahead_some_megabytes_at_a_time() -> None:
    value = b"x" * (READ_AHEAD // 4 + 1)
    memory, backlog = captured(Rebalance(), *[Batch([value, number]) for number in range(10)])
    reader = read(memory, backlog)
    for number in range(10):
        assert (await batch_of(reader)).values == [value, number]
        assert len(memory.reads) == number // 3 + 1
    assert await reader.next() is None
    assert await reader.next() is None
    assert [frames for frames, _ in memory.reads] == [3, 3, 3, 1]
    assert all(size <= READ_AHEAD for _, size in memory.reads)


async def test_a_frame_larger_than_that_is_read_alone() -> None:
    memory, backlog = captured(Rebalance(), Batch([1]), Batch([b"x" * READ_AHEAD]), Batch([2]))
    reader = read(memory, backlog)
    while await reader.next() is not None:
        pass
    assert [frames for frames, _ in memory.reads] == [1, 1, 1]


async def test_a_read_that_was_cancelled_is_made_again() -> None:
    memory, backlog = captured(Rebalance(), Batch([1]), Batch([2]))
    hung = asyncio.Event()

    class Hanging:
        async def read_frames(self, handle: InFlightHandle, frames: Sequence[FrameRef]) -> list[bytes]:
            if not hung.is_set():
                hung.set()
                await asyncio.Event().wait()
            return await memory.read_frames(handle, frames)

    reader = read(Hanging(), backlog)
    task = asyncio.create_task(reader.next())
    await hung.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [(await batch_of(reader)).values, (await batch_of(reader)).values] == [[1], [2]]


async def test_time_stamps_and_origins_come_along() -> None:
    batch = Batch(["a", "b"], [5, None], None, None, [17, 18], "orders[3]@")
    restored = await batch_of(read(*captured(Rebalance(), batch)))
    assert [restored.origin(index) for index in range(2)] == ["orders[3]@17", "orders[3]@18"]
    assert restored.timestamps == [5, None]


# ------------------------------------------------------------------------------------------------- what does not fit
def keyed_differently(backlog: Backlog, selector: Any) -> Backlog:
    return tuple(replace(frame, edge=replace(frame.edge, partitioning=Keyed(selector))) for frame in backlog)


async def test_another_key_by_is_refused() -> None:
    memory, backlog = captured(Keyed(identity), grouped(range(50), identity))
    assert (await batch_of(read(memory, backlog))).keys == list(range(50))
    with pytest.raises(IncompatibleState, match="edge 'up' → 'down', and its key_by gives them other keys now"):
        await read(memory, keyed_differently(backlog, lambda value: value + 1)).next()
    with pytest.raises(RecordFailed, match="'up' failed.*key_by: ZeroDivisionError"):
        await read(memory, keyed_differently(backlog, lambda value: 1 // value)).next()


async def test_a_frame_that_is_not_what_the_manifest_lists() -> None:
    memory, backlog = captured(Keyed(identity), grouped([1, 2, 3], identity))
    for changes in ({"records": 2}, {"groups": None}, {"groups": (0, 15)}):
        wrong = tuple(replace(frame, ref=msgspec.structs.replace(frame.ref, **changes)) for frame in backlog)
        with pytest.raises(CorruptCheckpoint, match=r"^up\[0\]|^down\[0\], records in flight .*expected"):
            await read(memory, wrong).next()


async def test_damage_names_file_and_edge() -> None:
    memory, backlog = captured(Rebalance(), Batch([1]))
    memory.files = {path: data[:-1] + b"\x00" for path, data in memory.files.items()}
    with pytest.raises(CorruptCheckpoint, match=r"^down\[0\], records in flight on the edge 'up' → 'down' is altered"):
        await read(memory, backlog).next()
