"""The hosts of examples/embedding, each with its real framework and server, by real requests over loopback."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from aiohttp import web

import streamactors as sa
from examples.embedding import aiohttp_app, asyncio_server, fastapi_app, litestar_app, starlette_app
from examples.embedding.visits import build, config, queue_in
from tests.programs import ROOT
from tests.runtime.feeds import PATIENCE, until

Find = Callable[[], sa.JobHandle]
"""Finds the job."""


@asynccontextmanager
async def uvicorn_serving(app: Any) -> AsyncIterator[tuple[int, Find]]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=5))
    serving = asyncio.ensure_future(server.serve())
    try:
        await until(lambda: server.started)
        yield server.servers[0].sockets[0].getsockname()[1], lambda: app.state.job
    finally:
        server.should_exit = True
        await serving


@asynccontextmanager
async def aiohttp_serving(app: web.Application) -> AsyncIterator[tuple[int, Find]]:
    """With the options that the example runs it with."""
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=5.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield runner.addresses[0][1], lambda: app[aiohttp_app.JOB]
    finally:
        await runner.cleanup()


HOSTS: dict[str, tuple[Callable[[Path], Any], Callable[[Any], Any]]] = {
    "starlette": (starlette_app.create_app, uvicorn_serving),
    "fastapi": (fastapi_app.create_app, uvicorn_serving),
    "litestar": (litestar_app.create_app, uvicorn_serving),
    "aiohttp": (aiohttp_app.create_app, aiohttp_serving),
}


@pytest.mark.parametrize("host", HOSTS)
async def test_in_a_web_framework(host: str, tmp_path: Path) -> None:
    """Put, asked, fed; a client that goes in the middle of its feed; and a second life that goes on."""
    create_app, serving = HOSTS[host]
    async with serving(create_app(tmp_path)) as (port, find), client_of(port) as client:
        async with client.stream("GET", "/feed") as feed:
            lines = feed.aiter_lines()
            assert await anext(lines) == ": connected"
            assert (await client.post("/pages/home")).status_code == 202
            assert (await client.post("/pages/home")).status_code == 202
            async with asyncio.timeout(PATIENCE):
                assert [await anext(lines) for _ in range(4)] == ["", "data: home: 1", "", "data: home: 2"]
        await until(lambda: find()._job._subscriptions == [])
        assert (await client.get("/pages/home")).json() == 2
        assert (await client.get("/pages/never-seen")).json() == 0
        assert (await client.get("/health")).json()["status"] == "running"
    assert find().status == "finished"
    async with serving(create_app(tmp_path)) as (port, _), client_of(port) as client:
        assert (await client.get("/pages/home")).json() == 2
        assert (await client.post("/pages/home")).status_code == 202
        await count_becomes(client, 3)


def client_of(port: int) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE)


async def count_becomes(client: httpx.AsyncClient, count: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while (await client.get("/pages/home")).json() != count:
            await asyncio.sleep(0.01)


async def test_in_a_server_of_plain_asyncio(tmp_path: Path) -> None:
    async with asyncio_server.serving(tmp_path) as port:
        feed = await Client.connect(port, "feed")
        assert await feed.line() == "connected"
        client = await Client.connect(port, "visit home", "visit home", "what?")
        assert [await client.line() for _ in range(3)] == ["ok", "ok", "visit <page>, count <page> or feed"]
        assert [await feed.line() for _ in range(2)] == ["home: 1", "home: 2"]
        feed.close()
        client.ask("count home")
        assert await client.line() == "2"
        client.close()
    async with asyncio_server.serving(tmp_path) as port:  # and its end, with a feed still open
        again = await Client.connect(port, "count home")
        assert await again.line() == "2"
        open_feed = await Client.connect(port, "feed")
        assert await open_feed.line() == "connected"
    assert await open_feed.line() == ""
    again.close()
    open_feed.close()


async def test_a_feed_over_plain_asyncio_ends_with_the_job(tmp_path: Path) -> None:
    """And the client sees that it does."""
    visits = queue_in(tmp_path)
    conversations: list[asyncio.Task[None]] = []
    async with visits, sa.start(build(visits), config(tmp_path)) as job:

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            talk = asyncio_server.Conversation(visits, job, reader, writer)
            conversations.append(asyncio.create_task(talk.run()))

        async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
            feed = await Client.connect(server.sockets[0].getsockname()[1], "feed")
            assert await feed.line() == "connected"
            await job.stop()
            assert await feed.line() == ""
            feed.close()
            await asyncio.gather(*conversations)


class Client:
    """Of the line protocol."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, port: int, *questions: str) -> "Client":
        client = cls(*await asyncio.open_connection("127.0.0.1", port))
        for question in questions:
            client.ask(question)
        return client

    def ask(self, question: str) -> None:
        self._writer.write(f"{question}\n".encode())

    async def line(self) -> str:
        async with asyncio.timeout(PATIENCE):
            return (await self._reader.readline()).decode().strip()

    def close(self) -> None:
        self._writer.transport.abort()


EXECUTE = """
import json, sys
import nbformat
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], as_version=4)
kernel = AsyncKernelManager(kernel_name="python3", transport="ipc")  # no ports, which others may take meanwhile
NotebookClient(notebook, km=kernel, timeout=300, startup_timeout=300).execute()
print(json.dumps([[output.get("text") or output["data"]["text/plain"] for output in cell.outputs]
                  for cell in notebook.cells if cell.cell_type == "code"]))
"""


@pytest.mark.slow
def test_in_a_notebook(tmp_path: Path, registry_folder: Path) -> None:
    """In a real kernel, cell by cell."""
    notebook = ROOT / "examples" / "embedding" / "notebook.ipynb"
    places = {
        "IPYTHONDIR": tmp_path,
        "JUPYTER_RUNTIME_DIR": registry_folder.parent,  # sockets need a short path
        "JUPYTER_CONFIG_DIR": tmp_path,
        "TMPDIR": tmp_path,
    }
    environ = {**os.environ, **{name: str(place) for name, place in places.items()}, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(notebook)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == ("""[["[1, 4, 9]"], ["'running'"], ["home: 1 home: 2\\n", "2"], ["'cancelled'"]]""")
