"""Jobs that tests look at and steer over the network."""

import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

import streamactors as sa
from connectors.memory import ListSink
from streamactors.service import Served, served
from tests.runtime.feeds import PATIENCE, Feed, until

FIRST_MS = 1_700_000_000_000


class Sum(sa.KeyedOperator[int, int, int]):
    """Measures itself too."""

    total = sa.ValueState(int, default=0)

    def open(self, ctx: sa.OperatorContext) -> None:
        self.seen = ctx.metrics.counter("seen")
        self.size = ctx.metrics.histogram("size")
        ctx.metrics.gauge("broken", lambda: 1 / 0)
        ctx.metrics.gauge("fixed", lambda: 1.5)

    def process(self, value: int, ctx: sa.Context[int, int]) -> None:
        if value < 0:
            raise ValueError("negative")
        self.seen.inc()
        self.size.observe(value / 10)
        self.total.set(self.total.get() + value)
        ctx.emit(self.total.get())


def flow_of(feed: Feed) -> sa.Dataflow:
    """Event time is the value, in seconds."""
    flow = sa.Dataflow("sums")
    watermarks: sa.Watermarks[int] = sa.Watermarks.monotonic(lambda value: FIRST_MS + 1000 * abs(value))
    (
        flow.source("numbers", feed, watermarks=watermarks)
        .key_by(lambda value: value % 2)
        .process("sum", Sum)
        .map(lambda value: value, name="same")
        .sink("out", ListSink())
    )
    return flow


def config(folder: Path, **checkpoints: Any) -> sa.Config:
    settings = {"interval": dt.timedelta(hours=1)} | checkpoints
    return sa.Config(
        parallelism=2,
        checkpoints=sa.Checkpoints(str(folder / "stored"), **settings),
        restart=sa.Restart.fixed(dt.timedelta(milliseconds=1), attempts=3),
    )


class Api:
    """What a client of the network's API sees of job `sums`."""

    def __init__(self, client: httpx.AsyncClient, where: Served) -> None:
        self.client = client
        self.where = where

    async def get(self, path: str = "") -> Any:
        answer = await self.client.get(f"/api/v1/jobs/sums{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(self, path: str, body: Any = None) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.where.token}"}
        return await self.client.post(f"/api/v1/jobs/sums{path}", json=body or {}, headers=headers)


@asynccontextmanager
async def client_at(where: Served) -> AsyncIterator[Api]:
    async with httpx.AsyncClient(base_url=where.url, timeout=PATIENCE, trust_env=False) as client:
        yield Api(client, where)


@asynccontextmanager
async def running(folder: Path, feed: Feed, **checkpoints: Any) -> AsyncIterator[tuple[sa.JobHandle, Api]]:
    """A job that has nothing in hand, and its API on a free port of loopback."""
    async with (
        sa.start(flow_of(feed), config(folder, **checkpoints), on_exit="cancel") as job,
        served(job, "127.0.0.1:0", savepoints=[str(folder / "saved")], target="jobs:flow") as where,
        client_at(where) as api,
    ):
        yield job, api


async def taken(job: sa.JobHandle, records: int) -> None:
    """Until `sum` has taken so many."""
    await until(lambda: sum(each["nodes"]["sum"]["records_in"] for each in of(job, "sum")) >= records)


def of(job: sa.JobHandle, uid: str) -> list[Any]:
    return [each for each in job.metrics()["subtasks"].values() if uid in each["nodes"]]
