"""Savepoints are written whole or not at all, wherever they lie."""

import asyncio
import errno
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from connectors.memory import ListSource
from streamactors import state_processor
from streamactors.checkpoint.storage.local import LocalFiles
from streamactors.errors import InvalidConfig, StorageFailed
from streamactors.state_processor import SavepointWriter
from streamactors.testing.failing_files import FailingFiles
from tests.state_processor.jobs import all_of, config, entries_of, keeping, numbers, opened, sink, stored

DECLARED = {"text": sa.ValueState(str, default="")}


def rows(count: int) -> Iterator[tuple[int, dict[str, Any]]]:
    return ((key, {"text": "x" * 1000}) for key in range(count))


@pytest.mark.parametrize("operation", ["write", "create", "read_ranges", "sync_folder", "delete"])
async def test_a_storage_that_refuses_leaves_nothing(
    tmp_path: Path, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamactors.state_processor.regrouping.WAITING_BYTES", 100_000)
    files = FailingFiles(LocalFiles(str(tmp_path)))
    rule = files.fail(operation, "*", nth=1, times=1, error=errno.ENOSPC)
    writer = SavepointWriter("rows").with_keyed_state("keep", DECLARED, rows(1000))
    with pytest.raises(StorageFailed, match="No space left"):
        await writer.write(str(tmp_path / "made"), files=files)
    assert rule.hits == 1 and not (tmp_path / "made").exists()
    again = SavepointWriter("rows").with_keyed_state("keep", DECLARED, rows(1000))
    uri = await again.write(str(tmp_path / "made"), files=files)
    assert len(await entries_of(uri, "keep", "text")) == 1000


async def test_a_cancelled_one_leaves_nothing(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[tuple[int, dict[str, Any]]]:
        for row in rows(1000):
            yield row
        begun.set()
        await asyncio.Event().wait()

    writer = SavepointWriter("rows").with_keyed_state("keep", DECLARED, endless())
    task = asyncio.create_task(writer.write(str(tmp_path / "made")))
    async with asyncio.timeout(60):
        await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not (tmp_path / "made").exists()


async def test_reading_that_is_given_up_leaves_nothing_open(tmp_path: Path) -> None:
    """The fixtures would find a task, a thread or a file."""
    writer = SavepointWriter("rows").with_keyed_state("keep", DECLARED, rows(1000))
    uri = await writer.write(str(tmp_path / "made"))
    async with opened(uri) as snapshot:
        assert len(await snapshot.state("keep", "text").first(3)) == 3
        async for _ in snapshot.state("keep", "text"):
            break


async def test_object_stores(tmp_path: Path) -> None:
    """Made of rows there, looked at, transformed back to a local folder, and gone on from."""
    there = f"memory://{tmp_path.name}/made"
    held = [(key, {"numbers": found}) for key, found in all_of(120).items()]
    declared = {"numbers": sa.ListState(int)}
    uri = await SavepointWriter("keeping").with_keyed_state("keep", declared, held).write(there)
    assert uri == there and await entries_of(uri, "keep", "numbers") == all_of(120)
    with pytest.raises(InvalidConfig, match="not empty"):
        await SavepointWriter("keeping").with_keyed_state("keep", declared, held).write(there)
    async with opened(uri) as snapshot:
        local = await snapshot.transform().with_max_parallelism(16).write(str(tmp_path / "local"))
        other = await snapshot.transform().write(f"memory://{tmp_path.name}/other")
    after = await stored(keeping(ListSource(range(120, 300)), sink()), config(tmp_path / "job"), restore=local)
    assert await entries_of(after, "keep", "numbers") == all_of(300)
    again = await stored(keeping(ListSource(range(120, 300)), sink()), config(tmp_path / "again"), restore=other)
    assert await entries_of(again, "keep", "numbers") == all_of(300)


async def test_a_storage_and_a_flows_folder_mean_their_latest_checkpoint(tmp_path: Path) -> None:
    uri = await stored(keeping(numbers(120), sink()), config(tmp_path))
    for place in (str(tmp_path), str(tmp_path / "keeping"), f"{uri}/manifest"):
        snapshot = await state_processor.open(place, flow="keeping")
        assert snapshot.uri == uri and not snapshot.savepoint and snapshot.checkpoint == 1
        assert snapshot.flow == "keeping" and snapshot.time.tzinfo is not None
        await snapshot.close()
        await snapshot.close()
    with pytest.raises(InvalidConfig, match="does not exist"):
        await state_processor.open(str(tmp_path / "nothing"))
