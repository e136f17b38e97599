"""Jobs over several workers, on virtual time: whatever the network does and whoever dies, nothing is lost, comes twice
or comes out of order, and the next attempt may have other workers and another parallelism."""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest

import streamactors as sa
from streamactors.checkpoint.manifest import Manifest, decode_manifest
from streamactors.checkpoint.storage.local import LocalFiles
from streamactors.clock import Clock
from streamactors.runtime.job import Job
from streamactors.submission import job_here
from streamactors.testing.failing_files import FailingFiles
from streamactors.testing.network import FAIR, STORM, Weather
from streamactors.testing.simulation.disk import File, VolatileDisk
from tests.cluster.made_up import MadeUpCluster
from tests.cluster.virtual import virtually
from tests.recovery.harsh import Leg, Topology, World, broadcast, diamond, forward, multi_input, pipeline
from tests.recovery.test_harsh_flow import MODES, NOTHING_WRONG

pytestmark = pytest.mark.slow


class ClusterWorld(World):
    """Each leg has a cluster of its own, as another deployment of the same job has."""

    def __init__(self, folder: Path, topology: Topology, clock: Clock, mode: str, **options: Any) -> None:
        super().__init__(folder, topology, overtaking=mode != "aligned", **MODES[mode], **options)
        self.disk = VolatileDisk()
        self.files = FailingFiles(LocalFiles(folder.as_uri(), clock=clock, disk=self.disk))
        self.clock = clock
        self.cluster = MadeUpCluster(1)

    def begin(self, workers: int, **options: Any) -> MadeUpCluster:
        self.cluster = MadeUpCluster(workers, files=self.files, clock=self.clock, **options)
        return self.cluster

    def manifest(self, uri: str) -> Manifest:
        path = f"{urlparse(uri).path}/manifest"
        file = self.disk.find(path)
        assert isinstance(file, File)
        return decode_manifest(bytes(file.content), path)

    def job(self, flow: sa.Dataflow, config: sa.Config) -> Job:
        options: Any = {"restore": "latest", "fresh": False, "resources": None}
        job = job_here(flow.graph(), config, clock=self.clock, files=self.files, **options)
        job._deploy = self.cluster
        return job


async def killed(leg: Leg, cluster: MadeUpCluster, worker: int, *, told: bool = True) -> None:
    """After a checkpoint that the job then goes back to."""
    await leg.checkpointed()
    restarts = leg.job.restarts
    cluster.kill(worker, told=told)
    await leg.until(lambda: leg.job.restarts > restarts and leg.job.status == "running")
    assert worker in cluster.replaced or told


async def survives(
    clock: Clock,
    folder: Path,
    topology: Topology,
    mode: str,
    legs: Sequence[tuple[int, int]],
    *,
    weather: Weather = FAIR,
    seed: int = 0,
    backends: Sequence[str] = ("heap",),
) -> None:
    """`legs`: workers and parallelism; in each a worker dies, and a record fails."""
    widths = [width for _, width in legs]
    world = ClusterWorld(folder, topology, clock, mode, partitions=max(widths) + 3, kept=min(widths), backends=backends)
    for place, (workers, width) in enumerate(legs):
        cluster = world.begin(workers, weather=weather, seed=seed)
        async with world.leg(width) as leg:
            await leg.fail("map", after=5)
            await killed(leg, cluster, seed % workers)
            await leg.checkpointed()
            if place == len(legs) - 1:
                await world.finish(leg)
        await cluster.close()
    assert world.verdict() == NOTHING_WRONG
    assert world.restarts >= 2 * len(legs), "each was to die"
    restored = [restored.in_flight for restored in world.restored]
    assert max(restored) > 0 if world.overtaking else max(restored) == 0


@pytest.mark.parametrize("mode", ["aligned", "unaligned", "timeout-3ms"])
@pytest.mark.parametrize("legs", [((2, 3), (3, 5), (1, 2))], ids=str)
def test_any_number_of_workers_at_any_parallelism(legs: Sequence[tuple[int, int]], mode: str, tmp_path: Path) -> None:
    virtually(3, lambda clock: survives(clock, tmp_path, pipeline, mode, legs))


@pytest.mark.parametrize("topology", [multi_input, forward, diamond, broadcast])
def test_topologies(topology: Topology, tmp_path: Path) -> None:
    virtually(5, lambda clock: survives(clock, tmp_path, topology, "unaligned", [(2, 3), (3, 3)], seed=1))


@pytest.mark.parametrize("seed", range(2))
def test_in_a_storm(seed: int, tmp_path: Path) -> None:
    legs = [(3, 4), (2, 2)]
    virtually(seed, lambda clock: survives(clock, tmp_path, pipeline, "unaligned", legs, weather=STORM, seed=seed))


def test_rocksdb(tmp_path: Path) -> None:
    legs = [(2, 3), (3, 2)]
    both = ("rocksdb", "heap")
    virtually(7, lambda clock: survives(clock, tmp_path, pipeline, "timeout-3ms", legs, backends=both))


def test_a_worker_that_dies_in_silence_is_missed(tmp_path: Path) -> None:
    """Nobody is told: it is noticed by what it does not say, in a bounded time, and replaced."""

    async def main(clock: Clock) -> None:
        world = ClusterWorld(tmp_path, pipeline, clock, "aligned", partitions=6)
        cluster = world.begin(2, silent=True)
        async with world.leg(3, interval=dt.timedelta(milliseconds=50)) as leg:
            await leg.checkpointed()
            before = clock.monotonic()
            await killed(leg, cluster, 1, told=False)
            assert 5 < clock.monotonic() - before < 60
            assert cluster.replaced == [1]
            await world.finish(leg)
        await cluster.close()
        assert world.verdict() == NOTHING_WRONG

    virtually(11, main)
