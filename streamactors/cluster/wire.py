"""What the processes of one job send each other: messages between numbered peers, over whatever carries them.

Contract of a wire: `call` returns once the peer's `received` has returned. Calls made at the same time may arrive in
any order. One that raises `ConnectionLost` may have arrived or not, and may arrive later. `received` that raises
`ConnectionLost` refuses the message, and makes the call raise it: the caller then tries again. What else is needed
(each message once, none lost in silence, nobody heard from another epoch) is made of that in `delivery`.
"""

import struct
from typing import Final, NamedTuple, Protocol

import msgspec

COORDINATOR: Final = -1
"""The peer that holds the job; workers are 0, 1, …"""

CONTROL: Final = 0
"""Plane of what the coordinator and a worker tell each other."""
DATA: Final = 1
"""Plane of the channels between workers."""

_HEADER: Final = struct.Struct(">BqqiQ")


class Epoch(msgspec.Struct, frozen=True, order=True, array_like=True, gc=False):
    """One attempt of one run. A later one fences all earlier ones."""

    run: int
    attempt: int

    def __str__(self) -> str:
        return f"run {self.run}, attempt {self.attempt}"


class Wire(Protocol):
    async def call(self, peer: int, message: bytes) -> None:
        """Hand one message to a peer. Raises ConnectionLost."""


class Header(NamedTuple):
    """Ahead of every message's body. `number`: of this sender's messages to this peer in this epoch and plane."""

    plane: int
    epoch: Epoch
    sender: int
    number: int


def sealed(header: Header, body: bytes) -> bytes:
    plane, epoch, sender, number = header
    return _HEADER.pack(plane, epoch.run, epoch.attempt, sender, number) + body


def header_of(message: bytes) -> Header:
    """For whoever decides where a message goes. Raises ValueError where it is none."""
    if len(message) < _HEADER.size:
        raise ValueError(f"a message of {len(message)} bytes has no header")
    plane, run, attempt, sender, number = _HEADER.unpack_from(message)
    return Header(plane, Epoch(run, attempt), sender, number)


def body_of(message: bytes) -> memoryview:
    return memoryview(message)[_HEADER.size :]
