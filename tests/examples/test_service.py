"""The example service: orders that are acknowledged count once through SIGKILL, answers from state, a live feed."""

import asyncio
import datetime as dt
import itertools
import json
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
import uvloop
from fastapi import FastAPI

import streamactors as sa
from examples.service import CustomerTotal, Order, create_app
from tests.programs import ROOT
from tests.recovery.processes import new_seed
from tests.runtime.feeds import until

PATIENCE = 60.0


@pytest.fixture(scope="module", autouse=True)
def libuv() -> None:
    """The first loop makes libuv open a pipe that it keeps for the life of the process: that is no leak of a test."""
    uvloop.new_event_loop().close()


def config(folder: Path, *, restart: sa.Restart | None = None) -> sa.Config:
    """No checkpoint but the last: a second start has nothing else to go on from."""
    checkpoints = sa.Checkpoints(f"file://{folder}/checkpoints", interval=dt.timedelta(hours=1))
    return sa.Config(checkpoints=checkpoints, restart=restart)


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """In its lifespan, without a socket."""
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            yield client


@asynccontextmanager
async def listening(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Under uvicorn on loopback."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=5))
    serving = asyncio.ensure_future(server.serve())
    try:
        await until(lambda: server.started or serving.done())
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client:
            yield client
    finally:
        server.should_exit = True
        await serving


async def order(client: httpx.AsyncClient, customer: str, cents: int) -> None:
    answer = await client.post("/orders", json={"customer": customer, "cents": cents})
    assert answer.status_code == 202, answer.text


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


def looking_on(app: FastAPI) -> int:
    return len(app.state.job._job._subscriptions)


# ---------------------------------------------------------------------------------------------------- orders and totals
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
            answer = await client.post("/orders", content=body, headers={"content-type": "application/json"})
            assert answer.status_code == 422
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


async def test_a_failed_job_leaves_the_host_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = CustomerTotal.process

    def picky(self: CustomerTotal, value: Order, ctx: Any) -> None:
        if value.customer == "mallory":
            raise ValueError("no order")
        process(self, value, ctx)

    monkeypatch.setattr(CustomerTotal, "process", picky)
    app = create_app(tmp_path, config(tmp_path, restart=sa.Restart.none()))

    async def host() -> None:
        async with served(app) as client:
            await order(client, "alice", 500)
            await total_becomes(client, "alice", 500)
            await order(client, "mallory", 1)
            assert (await health_becomes(client, 503))["status"] == "failed"
            await order(client, "alice", 1)  # the host goes on: its log takes orders
            assert (await client.get("/totals/alice")).status_code == 503
            assert (await client.get("/feed")).text == ": connected\n\n"

    with pytest.raises(sa.JobFailed, match="mallory"):
        await host()
    monkeypatch.undo()
    async with served(create_app(tmp_path, config(tmp_path))) as client:
        await total_becomes(client, "alice", 501)  # what it took meanwhile counts


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_in_a_real_server(tmp_path: Path, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def life(cents: int, *, expected: int) -> None:
        async with listening(create_app(tmp_path, config(tmp_path))) as client:
            await order(client, "alice", cents)
            await total_becomes(client, "alice", expected)
            assert (await client.get("/health")).json()["status"] == "running"

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(life(5, expected=5))
        runner.run(life(2, expected=7))


# ------------------------------------------------------------------------------------------------------------- the feed
async def test_the_feed_tells_every_new_total_to_everybody(tmp_path: Path) -> None:
    app = create_app(tmp_path, config(tmp_path))
    async with listening(app) as client:
        async with client.stream("GET", "/feed") as first, client.stream("GET", "/feed") as second:
            assert first.headers["content-type"].startswith("text/event-stream")
            await until(lambda: looking_on(app) == 2)
            await order(client, "alice", 5)
            await order(client, "alice", 2)
            expected = [{"customer": "alice", "cents": 5}, {"customer": "alice", "cents": 7}]
            assert [await events_of(first, 2), await events_of(second, 2)] == [expected] * 2
        await until(lambda: looking_on(app) == 0)


async def events_of(response: httpx.Response, count: int) -> list[Any]:
    """The data of the next events."""
    found: list[Any] = []
    async with asyncio.timeout(PATIENCE):
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                found.append(json.loads(line.removeprefix("data: ")))
            if len(found) == count:
                break
    return found


async def test_clients_that_do_not_read_hold_nobody_up_and_may_go(tmp_path: Path) -> None:
    """The server can't send them any more: their feeds stand still, and the job does not."""
    app = create_app(tmp_path, config(tmp_path))
    async with listening(app) as client:
        writers = [await connect_to_feed(client) for _ in range(2)]
        await until(lambda: looking_on(app) == 2)
        customer, orders = "c" * 200_000, 80  # beyond all buffers of the system
        await asyncio.gather(*(order(client, customer, 1) for _ in range(orders)))
        async with asyncio.timeout(PATIENCE):
            while await app.state.job.query("totals", CustomerTotal.cents, customer) < orders:
                await asyncio.sleep(0.01)
        assert waiting(app) > 0
        for writer in writers:
            writer.transport.abort()
        await until(lambda: looking_on(app) == 0)


def waiting(app: FastAPI) -> int:
    """Values that subscribers have not taken yet."""
    return sum(len(subscription._values) for subscription in app.state.job._job._subscriptions)


async def test_clients_that_go_in_the_middle_of_a_feed_leave_nothing_behind(tmp_path: Path) -> None:
    """Some while nothing comes, some after much has come."""
    app = create_app(tmp_path, config(tmp_path))
    async with listening(app) as client:
        writers = [await connect_to_feed(client) for _ in range(20)]
        await until(lambda: looking_on(app) == 20)
        for writer in writers[:10]:
            writer.transport.abort()
        await until(lambda: looking_on(app) == 10)
        await asyncio.gather(*(order(client, f"customer-{number}", 1) for number in range(100)))
        for writer in writers[10:]:
            writer.transport.abort()
        await until(lambda: looking_on(app) == 0)
        await total_becomes(client, "customer-99", 1)


async def connect_to_feed(client: httpx.AsyncClient) -> asyncio.StreamWriter:
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(b"GET /feed HTTP/1.1\r\nHost: here\r\n\r\n")
    await reader.readuntil(b": connected\n\n")
    return writer


async def test_a_feed_that_is_open_does_not_keep_the_service_from_ending(tmp_path: Path) -> None:
    app = create_app(tmp_path, config(tmp_path))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=1))
    serving = asyncio.ensure_future(server.serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        writer = await connect_to_feed(client)
        await order(client, "alice", 5)
        server.should_exit = True
        async with asyncio.timeout(PATIENCE):
            await serving
        writer.transport.abort()
    assert list((tmp_path / "checkpoints").rglob("manifest"))  # the last one


# ---------------------------------------------------------------------------------------------------------------- kills
SERVICE = """
import datetime as dt, socket, sys, uvicorn
from pathlib import Path
import streamactors as sa
from examples.service import create_app

folder = Path(sys.argv[1])
checkpoints = sa.Checkpoints(f"file://{folder}/checkpoints", interval=dt.timedelta(milliseconds=100))
listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1], flush=True)
app = create_app(folder, sa.Config(checkpoints=checkpoints))
uvicorn.Server(uvicorn.Config(app, log_config=None)).run(sockets=[listening])
"""


@asynccontextmanager
async def process_serving(folder: Path) -> AsyncIterator[tuple[httpx.AsyncClient, asyncio.subprocess.Process]]:
    """Once it answers; killed at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVICE, str(folder), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        port = int(await process.stdout.readline())
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client:
            assert (await client.get("/health")).status_code == 200
            yield client, process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.wait()


async def put_orders(client: httpx.AsyncClient, name: str, tried: list[str], acknowledged: set[str]) -> None:
    """One after the other, one cent each, each from another customer, until the service is gone."""
    for number in itertools.count():
        tried.append(customer := f"{name}-{number}")
        try:
            await order(client, customer, 1)
        except httpx.TransportError:
            return
        acknowledged.add(customer)


@pytest.mark.kill
@pytest.mark.slow
async def test_killed_under_load_no_acknowledged_order_is_lost_or_doubled(tmp_path: Path) -> None:
    choose = random.Random(seed := new_seed())
    acknowledged: set[str] = set()
    tried: list[str] = []
    for life in range(3):
        async with process_serving(tmp_path) as (client, process):
            names = [f"customer-{life}-{number}" for number in range(8)]
            putting = [asyncio.ensure_future(put_orders(client, name, tried, acknowledged)) for name in names]
            enough = len(acknowledged) + choose.randrange(50, 400)
            await until(lambda enough=enough: len(acknowledged) >= enough)  # type: ignore[misc]
            process.send_signal(signal.SIGKILL)
            await asyncio.gather(*putting)
    async with process_serving(tmp_path) as (client, _):
        await order(client, "the last", 1)
        await total_becomes(client, "the last", 1)  # so all before it are in their totals
        for customer in acknowledged:
            assert (await client.get(f"/totals/{customer}")).json()["cents"] == 1, (seed, customer)
        in_doubt = [customer for customer in tried if customer not in acknowledged]
        assert len(in_doubt) == 3 * 8
        for customer in in_doubt:
            assert (await client.get(f"/totals/{customer}")).json()["cents"] in (0, 1), (seed, customer)
