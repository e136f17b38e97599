"""Whether Ray answers at an address: found out in bounded time, whatever listens there."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from streamactors.deploy import addresses
from streamactors.deploy.addresses import reach, unconnected
from streamactors.errors import ClusterUnfit

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[str]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


def answering(answer: bytes) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"SM\r\n\r\n")
        writer.write(answer)
        await reader.read()
        writer.close()

    return serve


async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def test_what_speaks_as_ray_does_is_let_through() -> None:
    async with listening(answering(SETTINGS)) as address:
        await reach(address)


@pytest.mark.parametrize(
    "serve", [answering(b"HTTP/1.1 400 Bad Request\r\n\r\n"), hang_up], ids=["a web server", "one that hangs up"]
)
async def test_what_speaks_otherwise_is_refused(serve: Serve) -> None:
    async with listening(serve) as address:
        with pytest.raises(ClusterUnfit, match=rf"ray.address = '{address}': no Ray cluster answers there"):
            await reach(address)


async def test_what_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a head whose process is stopped: its kernel still takes connections."""
    monkeypatch.setattr(addresses, "REACHED_WITHIN", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ClusterUnfit, match=r"no Ray cluster answers there \(TimeoutError\)"):
            await reach(address)


async def test_behind_tls_the_connection_is_all_that_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")
    async with listening(hang_up) as address:
        await reach(address)


async def test_names_are_left_to_ray() -> None:
    await reach("auto")


async def test_ray_client_is_refused() -> None:
    with pytest.raises(ClusterUnfit, match="jobs don't run over Ray Client"):
        await reach("ray://127.0.0.1:10001")


def test_what_ray_says_of_other_versions_is_passed_on() -> None:
    error = RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.60.0\n    Python: 3.12.1\n")
    told = unconnected("head:6379", error)
    assert told == (
        "ray.address = 'head:6379': Version mismatch: The cluster was started with: Ray: 2.60.0 Python: 3.12.1: run "
        "the job with the cluster's own Ray and Python"
    )
