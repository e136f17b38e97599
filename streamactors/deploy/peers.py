"""The wire between the processes of a job: by their actors, and past these between workers of one node.

Invariant: at most one way leads to a peer, the one to whom it leads at present; what leads to a predecessor is closed.
"""

import logging
from typing import Protocol

from streamactors.cluster.sockets import Way
from streamactors.cluster.wire import DATA, header_of
from streamactors.errors import ConnectionLost

log = logging.getLogger("streamactors.ray")


class Peer(Protocol):
    """Another process, as its actor is reached: equal to another if it leads to the same. Every call raises
    ConnectionLost."""

    async def take(self, sender: int, message: bytes) -> str | None:
        """Why it was refused."""

    async def door(self) -> str | None:
        """Where it is reached past its actor; None where it is not, such as on another node."""


class PeerWire:
    """`peers`: by their numbers; changed where a worker is replaced. See `wire.Wire`."""

    def __init__(self, me: int) -> None:
        self.me = me
        self.peers: dict[int, Peer] = {}
        self._ways: dict[int, tuple[Peer, Way | None]] = {}
        """By number: which peer it leads to."""

    async def call(self, peer: int, message: bytes) -> None:
        """Raises ConnectionLost."""
        other = self.peers.get(peer)
        if other is None:
            raise ConnectionLost(f"there is no worker {peer} at present")
        if (way := await self._way(peer, other, message)) is not None:
            await way.call(message)
        elif (refused := await other.take(self.me, message)) is not None:
            raise ConnectionLost(refused)

    async def _way(self, number: int, peer: Peer, message: bytes) -> Way | None:
        """What workers on one node tell each other goes past their actors, where a call costs a millisecond."""
        if header_of(message).plane != DATA:
            return None
        known, way = self._ways.get(number, (None, None))
        if known != peer:
            if way is not None:
                way.close()
            way = await self._find(number, peer)
        return None if way is None or way.broken else way

    async def _find(self, number: int, peer: Peer) -> Way | None:
        """None where a successor has been looked for meanwhile, too."""
        finding: tuple[Peer, Way | None] = peer, None
        self._ways[number] = finding  # what is sent before it is found, or where there is none, goes by actors
        way: Way | None = None
        try:
            way = await self._way_to(peer)
        except BaseException:
            if self._ways.get(number) is finding:
                del self._ways[number]  # by whoever calls next
            raise
        if self._ways.get(number) is not finding:
            if way is not None:
                way.close()
            return None
        self._ways[number] = peer, way
        return way

    async def _way_to(self, peer: Peer) -> Way | None:
        if (name := await peer.door()) is None:
            return None
        way = Way(self.me)
        try:
            await way.connect(name)
        except ConnectionLost as error:
            log.warning("worker %d reaches another one of its node by Ray alone: %s", self.me, error)
            return None
        return way
