"""The example service: answers from the job's state, outlives the job, and goes on where it was."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
import uvloop
from starlette.applications import Starlette

import streamactors as sa
from examples.service import create_app

PATIENCE = 30.0


@pytest.fixture(scope="module", autouse=True)
def libuv() -> None:
    """The first loop makes libuv open a pipe that it keeps for the life of the process: that is no leak of a test."""
    uvloop.new_event_loop().close()


def config(folder: Path, *, restart: sa.Restart | None = None) -> sa.Config:
    """No checkpoint but the last: a second start has nothing else to go on from."""
    checkpoints = sa.Checkpoints(f"file://{folder}/checkpoints", interval=dt.timedelta(hours=1))
    return sa.Config(checkpoints=checkpoints, restart=restart)


@asynccontextmanager
async def served(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    """In its lifespan, without a socket."""
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            yield client


async def order(client: httpx.AsyncClient, customer: str, cents: int) -> None:
    answer = await client.post("/orders", json={"customer": customer, "cents": cents})
    assert answer.status_code == 202


async def total_becomes(client: httpx.AsyncClient, customer: str, cents: int) -> None:
    """The total follows the log: soon, not at once."""
    async with asyncio.timeout(PATIENCE):
        while (await client.get(f"/totals/{customer}")).json() != {"customer": customer, "cents": cents}:
            await asyncio.sleep(0.01)


async def health_becomes(client: httpx.AsyncClient, code: int) -> dict[str, Any]:
    async with asyncio.timeout(PATIENCE):
        while (answer := await client.get("/health")).status_code != code:
            await asyncio.sleep(0.01)
    report: dict[str, Any] = answer.json()
    return report


async def test_totals_follow_the_orders(tmp_path: Path) -> None:
    async with served(create_app(tmp_path)) as client:
        await order(client, "alice", 500)
        await order(client, "bob", 30)
        await order(client, "alice", 1)
        await total_becomes(client, "alice", 501)
        await total_becomes(client, "bob", 30)
        assert (await client.get("/totals/nobody")).json() == {"customer": "nobody", "cents": 0}
        assert (await client.get("/health")).json()["status"] == "running"


async def test_what_is_no_order_is_refused(tmp_path: Path) -> None:
    async with served(create_app(tmp_path)) as client:
        for body in (b"", b"{", b'{"customer": "alice"}', b'{"customer": "alice", "cents": "much"}'):
            assert (await client.post("/orders", content=body)).status_code == 400
        await order(client, "alice", 1)
        await total_becomes(client, "alice", 1)


async def test_leaving_takes_a_checkpoint_and_a_second_start_goes_on_from_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "streamactors.job")
    async with served(create_app(tmp_path, config(tmp_path))) as client:
        await order(client, "alice", 500)
        await total_becomes(client, "alice", 500)
    (manifest,) = (tmp_path / "checkpoints").rglob("manifest")
    async with served(create_app(tmp_path, config(tmp_path))) as client:
        await total_becomes(client, "alice", 500)
        await order(client, "alice", 7)
        await total_becomes(client, "alice", 507)
    assert f"order-totals: restoring file://{manifest.parent}" in caplog.messages


async def test_a_failed_job_leaves_the_host_alive(tmp_path: Path) -> None:
    app = create_app(tmp_path, config(tmp_path, restart=sa.Restart.none()))

    async def host() -> None:
        async with served(app) as client:
            await order(client, "alice", 500)
            await total_becomes(client, "alice", 500)
            with (tmp_path / "orders" / "orders.jsonl").open("a") as log:
                log.write("this is no order\n")
            assert (await health_becomes(client, 503))["status"] == "failed"
            await order(client, "alice", 1)  # the host goes on: its log takes orders
            assert (await client.get("/totals/alice")).status_code == 503

    with pytest.raises(sa.JobFailed, match=r"orders\.jsonl:2"):
        await host()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_in_a_real_server(tmp_path: Path, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(serve_and_ask(tmp_path, 5, expected=5))
        runner.run(serve_and_ask(tmp_path, 2, expected=7))


async def serve_and_ask(folder: Path, cents: int, *, expected: int) -> None:
    """One life of the service under uvicorn on loopback."""
    server = uvicorn.Server(uvicorn.Config(create_app(folder, config(folder)), port=0, log_config=None))
    serving = asyncio.ensure_future(server.serve())
    try:
        async with asyncio.timeout(PATIENCE):
            while not server.started:
                assert not serving.done(), "the server did not start"
                await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            await order(client, "alice", cents)
            await total_becomes(client, "alice", expected)
            assert (await client.get("/health")).json()["status"] == "running"
    finally:
        server.should_exit = True
        await serving
