"""What goes to the workers is copied, as to other processes: nothing of the job's own objects is needed there."""

import asyncio
import datetime as dt
import functools
import pickle
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from streamactors.cluster.workers import Times
from streamactors.launch import _supervised
from streamactors.submission import job_here
from tests.cluster.made_up import MadeUpCluster
from tests.recovery.flows import EventLog, part_files, sums, sums_in, until

pytestmark = pytest.mark.slow


class Copied(MadeUpCluster):
    """What is shipped is shipped as bytes."""

    def __init__(self, count: int) -> None:
        super().__init__(count, times=Times(lost_after=120.0, patience=120.0))
        self.shipped: list[bytes] = []

    def ship(self, value: Any) -> bytes:
        self.shipped.append(pickle.dumps(value))
        return self.shipped[-1]

    def unship(self, data: bytes) -> Any:
        return pickle.loads(data)


@pytest.mark.parametrize("backend", ["heap", "rocksdb"])
async def test_a_job_of_copies_survives_the_death_of_a_worker(backend: Any, tmp_path: Path) -> None:
    log, out = EventLog(tmp_path / "events.jsonl"), tmp_path / "out"
    log.add(*((f"key {number % 30}", number) for number in range(300)))
    cluster = Copied(2)
    checkpoints = sa.Checkpoints(str(tmp_path / "checkpoints"), interval=dt.timedelta(milliseconds=20))
    config = sa.Config(
        checkpoints=checkpoints, state_backend=backend, restart=sa.Restart.fixed(dt.timedelta(0), 50), parallelism=2
    )
    flow = sums(log.source(follow=True), part_files(out))
    job = job_here(flow.graph(), config, restore="latest", fresh=False, resources=None)
    job._deploy = cluster
    try:
        async with _supervised(job, None, "checkpoint", dt.timedelta(minutes=1)) as handle:
            for round in range(2):
                await until(lambda: job.last_checkpoint is not None and job.last_checkpoint.state_bytes > 0)
                log.add(*((f"key {number % 30}", number) for number in range(300)))
                cluster.kill(round)
                await until(functools.partial(_runs_again, handle, round + 1))
            await asyncio.wait_for(_read(handle, log), 60)
    finally:
        await cluster.close()
    assert sums_in(out) == log.expected
    assert len(cluster.shipped) >= 3 * 3 and max(map(len, cluster.shipped)) < 100_000


def _runs_again(job: sa.JobHandle, restarts: int) -> bool:
    return job.restarts >= restarts and job.status == "running"


async def _read(job: sa.JobHandle, log: EventLog) -> None:
    for key in log.expected:
        while await job.query("sums", "total", key) != log.total(key):
            await asyncio.sleep(0.01)
