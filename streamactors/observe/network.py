"""Serves a job's control API and metrics at a TCP address, for as long as a block lasts.

Invariants. Without a token of the owner's, only loopback addresses are served. What is generated or read as a token is
in no log and no error. Nothing of it is left when the block is left: no socket, no connection, no task.

The web libraries are imported only here, when it is asked for: `import streamactors` stays light.
"""

import contextlib
import ipaddress
import os
import socket
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from streamactors import forks
from streamactors.clock import SYSTEM
from streamactors.errors import ControlUnavailable, InvalidConfig
from streamactors.launch import JobHandle
from streamactors.observe.steering import entry_of

TOKEN: Final = "STREAMACTORS_TOKEN"
PORT: Final = 8077
DEFAULT: Final = f"127.0.0.1:{PORT}"


@dataclass(frozen=True, slots=True)
class Served:
    """Where it is. `generated`: nobody knows the token yet, so tell it to whoever runs this."""

    url: str
    token: str = field(repr=False)
    generated: bool


@asynccontextmanager
async def served(
    handle: JobHandle,
    listen: str = DEFAULT,
    *,
    token: str | None = None,
    hosts: Collection[str] = (),
    savepoints: Sequence[str] = (),
    target: str | None = None,
) -> AsyncIterator[Served]:
    """The REST API and the metrics of a job at `listen` (host:port; port 0 for any free one).

    Changes need `token`, by default that of the environment (STREAMACTORS_TOKEN), else a new one; at other addresses
    than loopback there must be one, and reading needs it too. `hosts`: names, besides addresses and localhost, by which
    it is reached. `savepoints`: the folders below which savepoints may be asked for. Raises InvalidConfig,
    ControlUnavailable.
    """
    try:
        from streamactors.observe.control import SteeredJob
        from streamactors.observe.guard import Access
        from streamactors.observe.rest import job_app
        from streamactors.observe.savepoints import SavepointFolders
        from streamactors.observe.server import serve
    except ImportError as error:
        raise ControlUnavailable(f"{error.name} is missing here: pip install 'streamactors[web]'") from error
    address = Address.parse(listen)
    secret, generated = token_for(address, token)
    access = Access(secret, closed=not address.loopback, hosts=hosts)
    job = SteeredJob(handle, entry_of(handle, target), SYSTEM, SavepointFolders(savepoints))
    with bound(address) as listener:
        async with job.operations(), serve(job_app([job], access), listener), job.streams():
            yield Served(url_of(listener), secret, generated)


@asynccontextmanager
async def serving_all(
    listen: str = DEFAULT,
    *,
    token: str | None = None,
    hosts: Collection[str] = (),
    savepoints: Sequence[str] = (),
) -> AsyncIterator[Served]:
    """As `served`, of all jobs of this user on this machine."""
    try:
        from streamactors.observe.gateway import Gateway
        from streamactors.observe.guard import Access
        from streamactors.observe.rest import web_app
        from streamactors.observe.savepoints import SavepointFolders
        from streamactors.observe.server import serve
    except ImportError as error:
        raise ControlUnavailable(f"{error.name} is missing here: pip install 'streamactors[web]'") from error
    address = Address.parse(listen)
    secret, generated = token_for(address, token)
    gateway = Gateway(SavepointFolders(savepoints))
    app = web_app(gateway.app, gateway.readings, Access(secret, closed=not address.loopback, hosts=hosts))
    with bound(address) as listener:
        async with serve(app, listener), gateway.streams():
            yield Served(url_of(listener), secret, generated)


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Address":
        """`127.0.0.1:8077`, `[::1]:8077`, `localhost:8077`. Raises InvalidConfig."""
        host, colon, port = text.rpartition(":")
        host = "127.0.0.1" if host == "localhost" else host.removeprefix("[").removesuffix("]")
        if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535 or not _is_address(host):
            raise InvalidConfig(f"listen = {text!r}: it must be an address and a port, such as {DEFAULT}")
        return cls(host, int(port))

    @property
    def loopback(self) -> bool:
        return ipaddress.ip_address(self.host).is_loopback


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def token_for(address: Address, token: str | None) -> tuple[str, bool]:
    """The token, and whether it is new."""
    given = token or os.environ.get(TOKEN)
    if given:
        return given, False
    if not address.loopback:
        raise InvalidConfig(
            f"listen = '{address.host}:{address.port}' can be reached from other machines: set {TOKEN} to a secret of "
            "at least 16 characters, which every request then needs, or listen on 127.0.0.1"
        )
    return SYSTEM.token() + SYSTEM.token(), True


@contextlib.contextmanager
def bound(address: Address) -> Iterator[socket.socket]:
    """Raises ControlUnavailable."""
    with _listening(address) as listener:
        held = _Listener(listener)
        forks.let_go_in_child(held)
        try:
            yield listener
        finally:
            forks.keep_in_child(held)


def _listening(address: Address) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address.host, address.port))
        listener.listen()
    except OSError as error:
        listener.close()
        where = f"{address.host}:{address.port}"
        raise ControlUnavailable(f"{where} can't be listened on ({error.strerror}): name another one") from error
    return listener


class _Listener:
    """A forked child would keep the port."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener

    def let_go(self) -> None:
        self._listener.close()


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
