"""Small jobs over a made-up cluster, on virtual time."""

import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import streamactors as sa
from streamactors.checkpoint.storage.contract import Files
from streamactors.checkpoint.storage.local import LocalFiles
from streamactors.clock import Clock
from streamactors.launch import _supervised
from streamactors.submission import job_here
from streamactors.testing.simulation.disk import Folder, VolatileDisk
from tests.cluster.made_up import MadeUpCluster
from tests.runtime.feeds import Feed

STORAGE: Final = "/checkpoints"
FLOW: Final = "over-workers"
NEVER: Final = dt.timedelta(days=1)


class Sum(sa.KeyedOperator[int, int, tuple[int, int]]):
    total = sa.ValueState(int, default=0)

    def process(self, value: int, ctx: sa.Context[int, tuple[int, int]]) -> None:
        self.total.set(self.total.get() + value)
        ctx.emit((ctx.key, self.total.get()))


def by_rest(value: int) -> int:
    return value % 50


def sums(feed: Feed, sink: Any, operator: Any = Sum) -> sa.Dataflow:
    """Two subtasks of each step."""
    flow = sa.Dataflow(FLOW)
    summed = flow.source("numbers", feed, parallelism=2).key_by(by_rest).process("sums", operator, parallelism=2)
    summed.rebalance().sink("out", sink, parallelism=2)
    return flow


def expected(values: list[list[int]]) -> dict[int, int]:
    totals = dict[int, int]()
    for split in values:
        for value in split:
            totals[by_rest(value)] = totals.get(by_rest(value), 0) + value
    return totals


def last(values: list[tuple[int, int]]) -> dict[int, int]:
    """The largest total of each key."""
    totals = dict[int, int]()
    for key, total in values:
        totals[key] = max(total, totals.get(key, 0))
    return totals


class Jobs:
    """Those of one storage, one after another."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.disk = VolatileDisk()
        self.files = LocalFiles("/", clock=clock, disk=self.disk)

    @asynccontextmanager
    async def started(
        self,
        flow: sa.Dataflow,
        workers: int = 2,
        *,
        cluster: MadeUpCluster | None = None,
        restart: sa.Restart | None = None,
        restore: str | None = "latest",
        resources: Any = None,
        on_exit: Any = "cancel",
        backend: Any = "heap",
        parallelism: int = 1,
        files: Files | None = None,
        keep: bool = False,
        **checkpoints: Any,
    ) -> AsyncIterator[tuple[sa.JobHandle, MadeUpCluster]]:
        """Checkpoints are taken on request, unless an `interval` is given. `keep` the cluster for another job."""
        storage = sa.Checkpoints(STORAGE, **{"interval": NEVER, **checkpoints})
        config = sa.Config(
            parallelism=parallelism, checkpoints=storage, state_backend=backend, restart=restart or sa.Restart.none()
        )
        files = files or LocalFiles(STORAGE, clock=self.clock, disk=self.disk)
        cluster = cluster or MadeUpCluster(workers, clock=self.clock)
        cluster.files = cluster.files or files
        job = job_here(
            flow.graph(), config, restore=restore, fresh=False, resources=resources, clock=self.clock, files=files
        )
        job._deploy = cluster
        try:
            async with _supervised(job, None, on_exit, dt.timedelta(minutes=1)) as handle:
                yield handle, cluster
        finally:
            if not keep:
                await cluster.close()

    def names(self, folder: str) -> list[str]:
        """Of all files in it, at whatever depth."""
        found: list[str] = []
        open_folders = [self.disk.folder(folder)]
        while open_folders:
            for name, node in sorted(open_folders.pop().names.items()):
                if isinstance(node, Folder):
                    open_folders.append(node)
                else:
                    found.append(name)
        return found
