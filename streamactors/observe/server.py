"""HTTP for one ASGI application on a socket of one's own, on the running loop: no thread, no signal handlers, and no
logging set up, since the process, and perhaps another web server in it, is somebody else's.

uvicorn's own server would take over signals and logging and look ten times a second whether it should end; its
connections are used without it.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from h11 import Data, EndOfMessage, LocalProtocolError, Response
from starlette.applications import Starlette
from starlette.responses import Response as HTTPResponse
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from streamactors.actors.supervisor import despite_cancellation
from streamactors.observe.control import refusal

GRACE: Final = 5.0
"""Seconds that answers under way may take once the server ends."""
MOST_CONNECTIONS: Final = 64


class _Config(Config):
    def configure_logging(self) -> None:
        return None


class _Server:
    """What its connections share."""

    def __init__(self, app: Starlette) -> None:
        self.state = ServerState()
        self.config = _Config(
            app,
            http=H11Protocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            proxy_headers=False,
            server_header=False,
            date_header=False,
        )
        self.config.load()
        self.idle = asyncio.Event()
        self.idle.set()
        self.closed = False

    def connection(self) -> "_Connection":
        return _Connection(self)

    async def close(self) -> None:
        """Answers under way are given; then no connection is left, and no task."""
        self.closed = True
        for connection in tuple(self.state.connections):
            connection.end()  # type: ignore[union-attr]
        try:
            async with asyncio.timeout(GRACE):
                await self._ended()
        except TimeoutError:
            self._abort()
            await self._ended()

    async def _ended(self) -> None:
        await self.idle.wait()
        while self.state.tasks:
            await asyncio.wait(tuple(self.state.tasks))

    def _abort(self) -> None:
        for task in self.state.tasks:
            task.cancel()
        for connection in self.state.connections:
            connection.transport.abort()


class _Connection(H11Protocol):
    def __init__(self, server: _Server) -> None:
        super().__init__(server.config, server.state, {}, asyncio.get_running_loop())
        self.access_log = False
        self._server = server

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._server.idle.clear()
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            self.app = _closing(refusal("busy", f"{MOST_CONNECTIONS} connections are open already", 503))
        if self._server.closed:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if not self.connections:
            self._server.idle.set()

    def send_400_response(self, msg: str) -> None:
        answer = _closing(refusal("bad-request", msg, 400))
        head = Response(status_code=400, headers=answer.raw_headers, reason=b"Bad Request")
        for event in (head, Data(data=bytes(answer.body)), EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.more_body:
            self.transport.close()  # the rest of a request that is refused already would be read, however long it is

    def end(self) -> None:
        """At once, or when the request in hand has been answered; whoever is still sending one is not waited for."""
        if self._is_receiving():
            self.transport.abort()
            return
        try:
            self.shutdown()
        except LocalProtocolError:  # the client has broken the protocol before
            self.transport.abort()

    def _is_receiving(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and cycle.more_body and not cycle.response_complete


def _closing(answer: HTTPResponse) -> HTTPResponse:
    answer.headers["connection"] = "close"
    return answer


@asynccontextmanager
async def serve(app: Starlette, listener: socket.socket) -> AsyncIterator[None]:
    """On a bound Unix socket, which is closed with it."""
    server = _Server(app)
    listening: Any = None
    try:
        listening = await asyncio.get_running_loop().create_unix_server(server.connection, sock=listener)
        yield
    finally:
        if listening is not None:
            listening.close()
        listener.close()
        await despite_cancellation(server.close())
