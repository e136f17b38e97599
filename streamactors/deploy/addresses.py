"""A cluster's address: whether anything answers there, and what to say where it does not."""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from typing import Final

from streamactors.errors import ClusterUnfit
from streamactors.settings import redacted

REACHED_WITHIN: Final = 10.0
"""Seconds for a connection to the cluster's address, and a first answer."""
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS: Final = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""An HTTP/2 frame without content, of which each side's first one is."""
_KIND: Final = 3
"""Where a frame's kind is."""


async def reach(address: str) -> None:
    """Raises ClusterUnfit at once, where Ray would go on trying for minutes."""
    if address.startswith("ray://"):
        raise ClusterUnfit(
            f"ray.address = {redacted(address)!r}: jobs don't run over Ray Client: give 'auto' on a node of the "
            "cluster, or submit the job (ray job submit)"
        )
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return
    try:
        async with asyncio.timeout(REACHED_WITHIN):
            await _greet(host, int(port))
    except (OSError, EOFError, TimeoutError) as error:
        raise ClusterUnfit(unconnected(address, error)) from error


async def _greet(host: str, port: int) -> None:
    """Ray's head speaks gRPC, so HTTP/2: it greets whoever greets it. Raises OSError, EOFError."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return  # it would have to be greeted by Ray's own certificate
        writer.write(_PREFACE + _SETTINGS)
        if (await reader.readexactly(len(_SETTINGS)))[_KIND] != _SETTINGS[_KIND]:
            raise ConnectionError("what listens there is not Ray")
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def unconnected(address: str | None, error: Exception) -> str:
    """What to do. `address`: None for a Ray that is started for one job."""
    if address is None:
        return f"Ray could not be started on this machine: {error}"
    if any("AuthToken" in str(each) or "AuthenticationError" in type(each).__name__ for each in _causes(error)):
        return (
            f"ray.address = {address!r}: the cluster asks for a token, which is not among what this process has: set "
            "RAY_AUTH_MODE=token, and the cluster's token by RAY_AUTH_TOKEN or in ~/.ray/auth_token"
        )
    if "ersion mismatch" in str(error):
        told = " ".join(str(error).split())
        return f"ray.address = {address!r}: {told}: run the job with the cluster's own Ray and Python"
    return (
        f"ray.address = {address!r}: no Ray cluster answers there ({type(error).__name__}): start one by "
        "`ray start --head`, correct the address, or leave it out for a Ray of this machine alone"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Itself among them, the latest first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
