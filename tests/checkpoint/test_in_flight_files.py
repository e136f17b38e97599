"""In-flight records in a real store: their files are written, verified, kept, deleted and shown like others."""

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from streamactors.checkpoint.frames import FrameCodec
from streamactors.checkpoint.manifest import (
    EdgeKey,
    FrameRef,
    InFlightEdge,
    InFlightHandle,
    NodeState,
    OperatorMeta,
    SubtaskState,
    requirements,
)
from streamactors.checkpoint.restorable import Restorable
from streamactors.checkpoint.storage.local import LocalFiles
from streamactors.checkpoint.store import CheckpointStore
from streamactors.cli.commands import app
from streamactors.clock import SYSTEM
from streamactors.elements import Batch
from streamactors.errors import CorruptCheckpoint
from tests.checkpoint.checkpoints import begin, manifest_of, take

EDGES = (
    InFlightEdge(EdgeKey("orders", "totals"), "keyed"),
    InFlightEdge(EdgeKey("orders", "totals", "late", 1), "rebalance"),
)
BATCHES = (Batch([1, 2, 3], groups=[4, 9, 4]), Batch(["a", "b"]))


async def open_store(folder: Path) -> CheckpointStore:
    return await CheckpointStore.open(str(folder), "orders", clock=SYSTEM)


async def take_with_in_flight(store: CheckpointStore) -> Restorable:
    writer, codec = await begin(store), FrameCodec()
    frames = [codec.encode(batch, edge.key) for batch, edge in zip(BATCHES, EDGES, strict=True)]
    file = await writer.write("in-flight-0", [frame.data for frame in frames])
    first, second = (len(frame.data) for frame in frames)
    refs = (
        FrameRef(0, 0, 0, False, frames[0].groups, frames[0].records, 0, first),
        FrameRef(1, 0, 0, True, frames[1].groups, frames[1].records, first, second),
    )
    subtasks = (SubtaskState("totals", 0, (NodeState("totals"),), in_flight=InFlightHandle(file, EDGES, refs)),)
    content = msgspec.structs.replace(
        manifest_of(store, writer.checkpoint),
        operators=(OperatorMeta("orders", "source", 1, 128), OperatorMeta("totals", "process", 1, 128)),
        subtasks=subtasks,
        requires=requirements(subtasks),
    )
    return await store.complete(content)


def captured(restorable: Restorable) -> Path:
    return Path(restorable.uri.removeprefix("file://")) / "0001-in-flight-0"


async def test_they_are_read_again_by_the_next_process(tmp_path: Path) -> None:
    async with await open_store(tmp_path) as store:
        complete = await take_with_in_flight(store)
    async with await open_store(tmp_path) as store:
        found = await store.latest()
        assert found is not None and found.manifest == complete.manifest
        await found.verify("digests")
        [handle] = [subtask.in_flight for subtask in found.manifest.subtasks]
        assert handle is not None
        [last, first] = await found.read_frames(handle, handle.frames[::-1])
        assert FrameCodec().decode(first, "").groups == [4, 9, 4]
        assert FrameCodec().decode(last, "").values == ["a", "b"]


async def test_damage_is_found(tmp_path: Path) -> None:
    async with await open_store(tmp_path) as store:
        complete = await take_with_in_flight(store)
        [handle] = [subtask.in_flight for subtask in complete.manifest.subtasks]
        assert handle is not None
        data = captured(complete).read_bytes()
        captured(complete).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        found = Restorable(complete.manifest, LocalFiles(str(tmp_path), clock=SYSTEM), complete.folder)
        await found.verify("sizes")
        with pytest.raises(CorruptCheckpoint, match="0001-in-flight-0 is altered"):
            await found.verify("digests")
        with pytest.raises(CorruptCheckpoint, match="0001-in-flight-0 is altered"):
            await found.read_frames(handle, handle.frames[:1])
        captured(complete).write_bytes(data[:-1])
        with pytest.raises(CorruptCheckpoint, match="0001-in-flight-0 is truncated"):
            await found.verify("sizes")


async def test_they_go_with_their_checkpoint(tmp_path: Path) -> None:
    async with await open_store(tmp_path) as store:
        complete = await take_with_in_flight(store)
        await store.retire()
        assert captured(complete).exists()
        await take(store)
        await store.retire()
        assert not captured(complete).exists()


def test_inspect_shows_them(tmp_path: Path) -> None:
    async def take_both() -> tuple[Restorable, Restorable]:
        async with await open_store(tmp_path) as store:
            return await take_with_in_flight(store), await take(store)

    complete, other = asyncio.run(take_both())
    uri, plain, size = complete.uri, other.uri, complete.manifest.in_flight_bytes
    [without, listed] = shown_as_json(str(tmp_path))
    assert (listed["in_flight_records"], listed["in_flight_bytes"]) == (5, size)
    assert (without["in_flight_records"], without["in_flight_bytes"]) == (0, 0)
    one = shown_as_json(uri)
    assert (one["in_flight_records"], one["in_flight_bytes"], one["bytes"]) == (5, size, size)
    assert sum(edge.pop("bytes") for edge in one["in_flight"]) == size
    assert one["in_flight"] == [
        {
            "upstream": "orders",
            "downstream": "totals",
            "tag": None,
            "ordinal": 0,
            "side": 0,
            "kind": "keyed",
            "records": 3,
        },
        {
            "upstream": "orders",
            "downstream": "totals",
            "tag": "late",
            "ordinal": 1,
            "side": 0,
            "kind": "rebalance",
            "records": 2,
        },
    ]
    assert "in flight" in shown(str(tmp_path))
    text = shown(uri)
    assert "5 records in flight" in text and "in flight from" in text
    assert "totals (no. 2)" in text and "late" in text
    text = shown(plain)
    assert "0 records in flight" in text and "in flight from" not in text
    assert shown_as_json(plain)["in_flight"] == []


def shown_as_json(uri: str) -> Any:
    return json.loads(shown(uri, "--json"))


def shown(uri: str, *options: str) -> str:
    result = CliRunner().invoke(app, ["inspect", uri, "--verify", "digests", *options])
    assert result.exit_code == 0, result.output
    return result.stdout
