"""Messages between processes of one machine, past whatever starts them: over sockets that have a name and no file.

Invariants. What is sent over one connection is taken in that order, each message answered by whether it was refused.
A call whose connection breaks raises ConnectionLost, and may have arrived or not: as the contract of `wire` has it.
Only processes of the same user are talked to, at either end. Names can't be guessed, and one of another machine, or of
a process that is gone, leads nowhere at once. Such names are Linux's (abstract ones): nothing is left by who is killed.
"""

import asyncio
import os
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable
from typing import Final, cast

from streamactors.clock import Clock
from streamactors.errors import ConnectionLost

_HEAD: Final = struct.Struct(">iI")
"""Of a message: its sender, and its length in bytes."""
_ANSWER: Final = struct.Struct(">I")
"""The length of why it was refused, which follows; 0: it was taken."""
_CREDENTIALS: Final = struct.Struct("3i")
"""Linux: process, user and group of the other end."""
_BUFFER: Final = 4 << 20
"""Bytes on their way that are asked for, so that a message of a megabyte goes in few turns; less is given."""

Received = Callable[[int, bytes], None]
"""Takes the sender and its message. Raises ConnectionLost to refuse it."""


class Door:
    """Where this process is reached. `name` tells others; None where there are no such sockets."""

    def __init__(self, received: Received, clock: Clock) -> None:
        self.name = f"streamactors-{clock.token()}" if sys.platform == "linux" else None
        self._received = received
        self._server: asyncio.Server | None = None
        self._visitors: set[_Visitor] | None = set()
        """None once it is closed."""

    async def open(self) -> None:
        if self.name is None:
            return
        listening = _socket()
        try:
            listening.bind(_abstract(self.name))
            loop = asyncio.get_running_loop()
            self._server = await loop.create_unix_server(lambda: _Visitor(self, self._received), sock=listening)
        except BaseException:
            listening.close()
            raise

    def enter(self, visitor: "_Visitor") -> bool:
        """Whether it may: what has been accepted just before the end may not."""
        if self._visitors is not None:
            self._visitors.add(visitor)
        return self._visitors is not None

    def leave(self, visitor: "_Visitor") -> None:
        if self._visitors is not None:
            self._visitors.discard(visitor)

    async def close(self) -> None:
        visitors, self._visitors = self._visitors, None
        if self._server is not None:
            self._server.close()
            for visitor in visitors or ():
                visitor.cut()
            await self._server.wait_closed()


class Way:
    """To the door of one process."""

    def __init__(self, me: int) -> None:
        self._me = me
        self._caller = _Caller()

    async def connect(self, name: str) -> None:
        """Raises ConnectionLost."""
        loop = asyncio.get_running_loop()
        calling = _socket()
        try:
            await loop.sock_connect(calling, _abstract(name))
            _refuse_strangers(calling)
            await loop.create_unix_connection(lambda: self._caller, sock=calling)
        except OSError as error:
            calling.close()
            raise ConnectionLost(f"there is no way to {name}: {error}") from error
        except BaseException:
            calling.close()
            raise

    @property
    def broken(self) -> bool:
        return self._caller.transport is None

    async def call(self, message: bytes) -> None:
        """See `wire.Wire`."""
        refused = await self._caller.ask(self._me, message)
        if refused:
            raise ConnectionLost(refused)

    def close(self) -> None:
        if self._caller.transport is not None:
            self._caller.transport.abort()


def _socket() -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
    return made


def _abstract(name: str) -> str:
    return f"\0{name}"


def _refuse_strangers(end: socket.socket) -> None:
    """Raises PermissionError where a process of another user is at the other end."""
    found = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    user = _CREDENTIALS.unpack(found)[1]
    if user != os.geteuid():
        raise PermissionError(f"the process there is of user {user}")


class _Frames(asyncio.BufferedProtocol):
    """Reads heads of one size, each followed by as many bytes as it says; into place, without copies."""

    def __init__(self, head: int) -> None:
        self.transport: asyncio.Transport | None = None
        self._head = memoryview(bytearray(head))
        self._into = self._head
        self._got = 0

    def length(self, head: memoryview) -> int:
        raise AssertionError("of each kind its own")

    def take(self, body: bytes) -> None:
        """What followed the last head."""

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._into[self._got :]

    def buffer_updated(self, nbytes: int) -> None:
        self._got += nbytes
        if self._got < len(self._into):
            return
        filled, self._got = self._into, 0
        if filled is self._head and (length := self.length(filled)):
            self._into = memoryview(bytearray(length))
            return
        self._into = self._head
        self.take(b"" if filled is self._head else bytes(filled))


class _Visitor(_Frames):
    """The end of a connection at a door."""

    def __init__(self, door: Door, received: Received) -> None:
        super().__init__(_HEAD.size)
        self._door = door
        self._received = received
        self._sender = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        try:
            _refuse_strangers(transport.get_extra_info("socket"))
        except PermissionError:
            self.cut()
        else:
            if not self._door.enter(self):
                self.cut()

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.leave(self)

    def cut(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def length(self, head: memoryview) -> int:
        self._sender, length = _HEAD.unpack(head)
        return int(length)

    def take(self, body: bytes) -> None:
        refused = b""
        try:
            self._received(self._sender, body)
        except ConnectionLost as error:
            refused = str(error).encode() or b"refused"
        except Exception as error:  # a bug, of which the caller is told, since only it can say so
            refused = f"{type(error).__name__}: {error}".encode()
        if self.transport is not None:
            self.transport.write(_ANSWER.pack(len(refused)) + refused)


class _Caller(_Frames):
    """The other end: what is asked is answered in order."""

    def __init__(self) -> None:
        super().__init__(_ANSWER.size)
        self._waiting: deque[asyncio.Future[str]] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(ConnectionLost(f"the connection has ended: {exc or 'the process is gone'}"))
        self._waiting.clear()

    async def ask(self, sender: int, message: bytes) -> str:
        """Why it was refused; nothing if it was taken."""
        if self.transport is None:
            raise ConnectionLost("the connection has ended")
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        self.transport.writelines((_HEAD.pack(sender, len(message)), message))
        return await answer

    def length(self, head: memoryview) -> int:
        return int(_ANSWER.unpack(head)[0])

    def take(self, body: bytes) -> None:
        answer = self._waiting.popleft()
        if not answer.done():
            answer.set_result(body.decode())
