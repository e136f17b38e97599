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
from starlette.responses import Response as HTTPResponse
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from streamactors.actors.supervisor import despite_cancellation
from streamactors.observe.control import refusal

GRACE: Final = 5.0
"""Seconds that answers under way may take once the server ends."""
MOST_CONNECTIONS: Final = 64
HEAD_WITHIN: Final = 30.0
"""Seconds in which a request's head must have come, and half of what its body may take: else a few who send slowly
would keep all others out."""
LONGEST_HEAD: Final = 1 << 16
"""Bytes of a request's head, beyond what one read of the socket gives."""


class _Config(Config):
    def configure_logging(self) -> None:
        return None


class _Server:
    """What its connections share."""

    def __init__(self, app: Any) -> None:
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
            h11_max_incomplete_event_size=LONGEST_HEAD,
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
        self._expiry: asyncio.TimerHandle | None = None
        self._slow: RequestResponseCycle | None = None
        """What was still being received at the last look."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._server.idle.clear()
        super().connection_made(transport)
        self._expiry = self.loop.call_later(HEAD_WITHIN, self._expire)
        if len(self.connections) > MOST_CONNECTIONS:
            self.app = _closing(refusal("busy", f"{MOST_CONNECTIONS} connections are open already", 503))
        if self._server.closed:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._expiry is not None:
            self._expiry.cancel()
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

    def _expire(self) -> None:
        """Looks again and again, so that later requests of the connection are timed too; between two the server closes
        it sooner."""
        cycle: RequestResponseCycle | None = self.cycle
        slow = cycle if self._is_receiving() else None
        if cycle is None or (slow is not None and slow is self._slow):
            self.transport.abort()
            return
        self._slow = slow
        self._expiry = self.loop.call_later(HEAD_WITHIN, self._expire)

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
async def serve(app: Any, listener: socket.socket) -> AsyncIterator[None]:
    """On a bound socket, which is closed with it."""
    server = _Server(app)
    listening: Any = None
    try:
        loop = asyncio.get_running_loop()
        listen: Any = loop.create_unix_server if listener.family == socket.AF_UNIX else loop.create_server
        listening = await listen(server.connection, sock=listener)
        yield
    finally:
        if listening is not None:
            listening.close()
        listener.close()
        await despite_cancellation(server.close())
