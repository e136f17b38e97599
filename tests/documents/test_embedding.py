"""The snippets of docs/embedding.md, run as they stand there: one service, made of all of them."""

import asyncio
import datetime as dt
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

import streamactors as sa
from connectors.queue import QueueSource
from streamactors.service import health
from tests.programs import ROOT
from tests.runtime.feeds import PATIENCE

PAGE = (ROOT / "docs" / "embedding.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@dataclass
class Order:
    customer: str
    cents: int


@dataclass
class Total:
    customer: str
    cents: int


def service(folder: Path) -> dict[str, Any]:
    """The names that the page defines; `app` is made of them."""
    names: dict[str, Any] = {
        **{each.__name__: each for each in (Order, Total, QueueSource, AsyncIterator, Starlette, Request, Response)},
        **{each.__name__: each for each in (JSONResponse, StreamingResponse, Route, asynccontextmanager, health)},
        "sa": sa,
        "dt": dt,
        "msgspec": msgspec,
        "folder": folder,
    }
    for snippet in SNIPPETS:
        exec(snippet, names)
    paths = {"/totals/{customer}": names["read_total"], "/feed": names["feed"]}
    routes = [Route(path, endpoint) for path, endpoint in paths.items()]
    orders = Route("/orders", names["add_order"], methods=["POST"])
    names["app"] = Starlette(routes=[*names["routes"], *routes, orders], lifespan=names["lifespan"])
    return names


async def test_the_service(tmp_path: Path) -> None:
    app = service(tmp_path)["app"]
    transport = httpx.ASGITransport(app=app)
    async with (
        asyncio.timeout(PATIENCE),
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://service") as client,
        app.state.job.subscribe("totals") as totals,
    ):
        for cents in (5, 2):
            assert (await client.post("/orders", content=msgspec.json.encode(Order("alice", cents)))).status_code == 202
        assert [await anext(totals), await anext(totals)] == [Total("alice", 5), Total("alice", 7)]
        assert (await client.get("/totals/alice")).json() == {"cents": 7}
        assert (await client.get("/totals/nobody")).json() == {"cents": 0}
        assert (await client.get("/health")).json()["status"] == "running"


async def test_the_feeds(tmp_path: Path) -> None:
    names = service(tmp_path)
    async with asyncio.timeout(PATIENCE), names["app"].router.lifespan_context(names["app"]):
        job, orders = names["app"].state.job, names["orders"]
        events, patient = names["events"](job), names["patient"](job)
        first = asyncio.ensure_future(anext(events)), asyncio.ensure_future(anext(patient))
        while len(job._job._subscriptions) < 2:
            await asyncio.sleep(0)
        await orders.put(Order("alice", 1))
        assert await first[0] == b'data: {"customer":"alice","cents":1}\n\n'
        assert await first[1] == Total("alice", 1)
        for _ in range(15):
            await orders.put(Order("alice", 1))
        while await job.query("totals", "cents", "alice") < 16:
            await asyncio.sleep(0.001)
        assert await anext(patient) == 5
        assert [(await anext(patient)).cents for _ in range(10)] == list(range(7, 17))
        await events.aclose()
        await patient.aclose()
        assert job._job._subscriptions == []


def test_every_snippet_is_run() -> None:
    assert len(SNIPPETS) == PAGE.count("```python") == 6


@pytest.mark.parametrize(
    "name", ["visits.py", "starlette_app.py", "fastapi_app.py", "litestar_app.py", "aiohttp_app.py"]
)
def test_the_examples_that_it_names_exist(name: str) -> None:
    assert f"(../examples/embedding/{name})" in PAGE
    assert (ROOT / "examples" / "embedding" / name).is_file()
