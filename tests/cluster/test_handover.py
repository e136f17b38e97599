"""A job whose predecessor is given up by the cluster, and lives a moment longer."""

import asyncio
import dataclasses
from pathlib import Path

import pytest

import streamactors as sa
from streamactors.checkpoint.store import CheckpointStore
from streamactors.clock import SYSTEM
from streamactors.runtime.job import Job
from tests.cluster.test_held import checkpointing, job
from tests.runtime.feeds import PATIENCE, Feed, until


def following(feed: Feed, tmp_path: Path, handover: float) -> Job:
    made = job(feed, checkpointing(tmp_path))
    return Job(dataclasses.replace(made._spec, handover=handover), deploy=made._deploy, clock=SYSTEM)


async def test_the_storage_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "streamactors.job")
    feed = Feed()
    successor = following(feed, tmp_path, handover=PATIENCE)
    async with asyncio.timeout(PATIENCE):
        async with await CheckpointStore.open(tmp_path.as_uri(), "summing", clock=SYSTEM):
            running = asyncio.ensure_future(successor.run())
            await until(lambda: "waiting for the one before to end" in caplog.text)
            assert not running.done()
        await successor.running.wait()
        running.cancel()
        await asyncio.wait([running])
    assert running.cancelled()


async def test_it_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    async with await CheckpointStore.open(tmp_path.as_uri(), "summing", clock=SYSTEM):
        with pytest.raises(sa.StorageInUse, match="flow 'summing' .* is in use by process"):
            await following(Feed(), tmp_path, handover=0.0).run()
