"""The health endpoint, under Starlette and as plain ASGI, over jobs in every state."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount, Route

import streamactors as sa
from connectors.files import FileSource
from connectors.memory import CRASH, ListSink, ListSource
from streamactors.service import health


def endless(folder: Path) -> sa.Dataflow:
    flow = sa.Dataflow("endless")
    flow.source("lines", FileSource(str(folder), value=sa.Text(), follow=True)).sink("out", ListSink[str]())
    return flow


def of_values(*values: Any) -> sa.Dataflow:
    flow = sa.Dataflow("bounded")
    flow.source("values", ListSource(values)).sink("out", ListSink[Any]())
    return flow


async def ask(app: Any, method: str = "GET", path: str = "/health") -> httpx.Response:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
        return await client.request(method, path)


async def test_a_running_job_is_well(tmp_path: Path) -> None:
    async with sa.start(endless(tmp_path)) as job:
        answer = await ask(Starlette(routes=[Route("/health", health(job))]))
        await job.cancel()
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"job": "endless", "status": "running", "restarts": 0, "last_checkpoint": None}


async def test_it_tells_of_the_last_checkpoint(tmp_path: Path) -> None:
    checkpoints = sa.Checkpoints(f"file://{tmp_path}/checkpoints", interval=dt.timedelta(hours=1))
    (tmp_path / "in").mkdir()
    async with sa.start(endless(tmp_path / "in"), sa.Config(checkpoints=checkpoints)) as job:
        info = await job.checkpoint()
        answer = await ask(health(job))
    assert answer.json()["last_checkpoint"] == {"id": info.id, "seconds": info.duration.total_seconds()}


async def test_a_job_that_has_finished_is_not_dead() -> None:
    async with sa.start(of_values(1, 2)) as job:
        await job.wait()
        answer = await ask(health(job))
    assert (answer.status_code, answer.json()["status"]) == (200, "finished")


async def test_a_failed_job_is_dead() -> None:
    answers: list[httpx.Response] = []

    async def host() -> None:
        async with sa.start(of_values(1, CRASH)) as job:
            with pytest.raises(sa.JobFailed):
                await job.wait()
            answers.append(await ask(health(job)))

    with pytest.raises(sa.JobFailed):
        await host()
    (answer,) = answers
    assert (answer.status_code, answer.json()["status"]) == (503, "failed")


async def test_a_cancelled_job_is_dead(tmp_path: Path) -> None:
    async with sa.start(endless(tmp_path)) as job:
        await job.cancel()
        answer = await ask(health(job))
    assert (answer.status_code, answer.json()["status"]) == (503, "cancelled")


async def test_a_job_that_restarts_is_well(tmp_path: Path) -> None:
    restart = sa.Restart.fixed(dt.timedelta(hours=1), attempts=1)
    async with sa.start(of_values(CRASH), sa.Config(restart=restart), on_exit="cancel") as job:
        async with asyncio.timeout(60):
            while job.status != "restarting":
                await asyncio.sleep(0.001)
        answer = await ask(health(job))
    assert answer.status_code == 200
    assert answer.json() == {"job": "bounded", "status": "restarting", "restarts": 1, "last_checkpoint": None}


async def test_a_job_that_begins_in_the_lifespan(tmp_path: Path) -> None:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with sa.start(endless(tmp_path), on_exit="cancel") as job:
            app.state.job = job
            yield

    app = Starlette(routes=[Route("/health", health(lambda: app.state.job))], lifespan=lifespan)
    async with app.router.lifespan_context(app):
        assert (await ask(app)).json()["status"] == "running"
    assert (await ask(app)).status_code == 503


async def test_without_a_job_it_is_not_well() -> None:
    answer = await ask(health(lambda: None))
    assert (answer.status_code, answer.json()) == (503, {"job": None, "status": "not started"})


async def test_methods() -> None:
    endpoint = health(lambda: None)
    head = await ask(endpoint, "HEAD")
    assert (head.status_code, head.content) == (503, b"")
    post = await ask(endpoint, "POST")
    assert (post.status_code, post.headers["allow"]) == (405, "GET, HEAD")


async def test_mounted() -> None:
    app = Starlette(routes=[Mount("/internal/health", health(lambda: None))])
    assert (await ask(app, path="/internal/health/")).status_code == 503


async def test_anything_but_http_is_not_for_it() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("asked for a message")

    async def send(message: Any) -> None:
        sent.append(message)

    await health(lambda: None)({"type": "websocket"}, receive, send)
    assert sent == []
