"""A network between the processes of one job, made up in one process: it delays, loses, repeats and reorders by seed.

What it may do is what the contract of `cluster.wire.Wire` allows, and no more.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from streamactors.errors import ConnectionLost

Received = Callable[[int, bytes], None]
"""Takes the sender and its message. Raises ConnectionLost to refuse it."""


@dataclass(frozen=True, slots=True)
class Weather:
    """`delay`: seconds, of a message and of its answer. `loss`: how often either is lost; half of those that are lost
    arrive later all the same. `repeat`: how often a message comes a second time. `straggle`: how often one takes
    twenty times as long."""

    delay: tuple[float, float] = (0.0, 0.002)
    loss: float = 0.0
    repeat: float = 0.0
    straggle: float = 0.0


FAIR: Final = Weather()
STORM: Final = Weather(loss=0.15, repeat=0.15, straggle=0.2)


class MadeUpNetwork:
    """Peers by number. `silent`: calls to a peer that is cut off or dead hang, and do not fail."""

    def __init__(self, seed: int, weather: Weather = FAIR, *, silent: bool = False) -> None:
        self.weather = weather
        self.silent = silent
        self.messages: Counter[tuple[int, int]] = Counter()
        """By sender and receiver, those that were asked to be carried."""
        self.bytes: Counter[tuple[int, int]] = Counter()
        self._random = Random(f"network {seed}")
        self._peers: dict[int, Received] = {}
        self._cut: set[frozenset[int]] = set()

    def attach(self, peer: int, received: Received) -> "MadeUpWire":
        """`received` gets what is sent to `peer` from now on: a later one takes the place of an earlier one."""
        self._peers[peer] = received
        return self.wire(peer)

    def wire(self, sender: int) -> "MadeUpWire":
        return MadeUpWire(self, sender)

    def detach(self, peer: int) -> None:
        """As if it had died: nothing reaches it."""
        self._peers.pop(peer, None)

    def cut(self, one: int, other: int) -> None:
        """Nothing passes between the two, either way."""
        self._cut.add(frozenset((one, other)))

    def isolate(self, peer: int) -> None:
        """From everybody who is attached."""
        for other in self._peers:
            if other != peer:
                self.cut(peer, other)

    def heal(self) -> None:
        self._cut.clear()

    # ------------------------------------------------------------------------------------------------------- carrying
    async def carry(self, sender: int, peer: int, message: bytes) -> None:
        self.messages[sender, peer] += 1
        self.bytes[sender, peer] += len(message)
        if self._strikes(self.weather.loss):
            if self._strikes(0.5):
                self._later(sender, peer, message)
            await self._fail(sender, peer, "the message was lost")
        if self._strikes(self.weather.repeat):
            self._later(sender, peer, message)
        await asyncio.sleep(self._delay())
        if self._unreachable(sender, peer):
            await self._fail(sender, peer, "out of reach")
        self._peers[peer](sender, message)
        if self._strikes(self.weather.loss):
            await self._fail(sender, peer, "the answer was lost")
        await asyncio.sleep(self._delay())
        if self._unreachable(sender, peer):
            await self._fail(sender, peer, "out of reach")

    def _unreachable(self, sender: int, peer: int) -> bool:
        return peer not in self._peers or frozenset((sender, peer)) in self._cut

    async def _fail(self, sender: int, peer: int, why: str) -> None:
        if self.silent:
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(self._delay())
        raise ConnectionLost(f"{sender} → {peer}: {why}")

    def _later(self, sender: int, peer: int, message: bytes) -> None:
        asyncio.get_running_loop().call_later(2 * self._delay(), self._arrive, sender, peer, message)

    def _arrive(self, sender: int, peer: int, message: bytes) -> None:
        """Nobody waits for an answer any more."""
        if not self._unreachable(sender, peer):
            try:
                self._peers[peer](sender, message)
            except ConnectionLost:
                return

    def _delay(self) -> float:
        low, high = self.weather.delay
        straggling = 20 if self._strikes(self.weather.straggle) else 1
        return (low + self._random.random() * (high - low)) * straggling

    def _strikes(self, chance: float) -> bool:
        return chance > 0 and self._random.random() < chance


class MadeUpWire:
    """One peer's way to all others."""

    def __init__(self, network: MadeUpNetwork, sender: int) -> None:
        self._network = network
        self._sender = sender

    async def call(self, peer: int, message: bytes) -> None:
        await self._network.carry(self._sender, peer, message)
