"""A network between the processes of one job, made up in one process: it delays, loses, repeats and reorders by seed.

What it may do is what the contract of `cluster.wire.Wire` allows, and no more.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final, TypeVarTuple, Unpack

from streamactors.errors import ConnectionLost

Ts = TypeVarTuple("Ts")
Answer = asyncio.Future[None] | None
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


@dataclass(frozen=True, slots=True)
class _Peer:
    received: Received
    loop: asyncio.AbstractEventLoop | None


class MadeUpNetwork:
    """Peers by number. `silent`: calls to a peer that is cut off or dead hang, and do not fail. `loop`: where messages
    are under way, so that they arrive though their sender has died meanwhile; None: the sender's."""

    def __init__(
        self,
        seed: int,
        weather: Weather = FAIR,
        *,
        silent: bool = False,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.weather = weather
        self.silent = silent
        self.messages: Counter[tuple[int, int]] = Counter()
        """By sender and receiver, those that were asked to be carried."""
        self.bytes: Counter[tuple[int, int]] = Counter()
        self._loop = loop
        self._random = Random(f"network {seed}")
        self._peers: dict[int, _Peer] = {}
        self._cut: set[frozenset[int]] = set()

    def attach(self, peer: int, received: Received, loop: asyncio.AbstractEventLoop | None = None) -> "MadeUpWire":
        """`received` gets what is sent to `peer` from now on: a later one takes the place of an earlier one. `loop`:
        that of the peer's process, where it has one of its own."""
        self._peers[peer] = _Peer(received, loop)
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

    def heal(self, peer: int | None = None) -> None:
        """All that was cut, or all that was cut from one peer."""
        self._cut = {pair for pair in self._cut if peer is not None and peer not in pair}

    # ------------------------------------------------------------------------------------------------------- carrying
    async def carry(self, sender: int, peer: int, message: bytes) -> None:
        self.messages[sender, peer] += 1
        self.bytes[sender, peer] += len(message)
        if self._strikes(self.weather.repeat):
            self._send(2, sender, peer, message, None)
        if self._strikes(self.weather.loss):
            if self._strikes(0.5):
                self._send(2, sender, peer, message, None)
            await asyncio.sleep(self._delay())
            raise ConnectionLost(f"{sender} → {peer}: the message was lost")
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._send(1, sender, peer, message, answer)
        await answer

    def _send(self, slowness: int, sender: int, peer: int, message: bytes, answer: Answer) -> None:
        self._later(slowness * self._delay(), self._arrive, sender, peer, message, answer)

    def _arrive(self, sender: int, peer: int, message: bytes, answer: Answer) -> None:
        receiver = self._peers.get(peer)
        if receiver is None or self._unreachable(sender, peer):
            self._refuse(sender, peer, answer)
        elif receiver.loop is None:
            self._hand_over(receiver, sender, peer, message, answer)
        else:
            receiver.loop.call_soon(self._hand_over, receiver, sender, peer, message, answer)

    def _hand_over(self, receiver: _Peer, sender: int, peer: int, message: bytes, answer: Answer) -> None:
        try:
            receiver.received(sender, message)
        except ConnectionLost as error:
            self._later(self._delay(), _answered, answer, error)
            return
        if self._strikes(self.weather.loss):
            self._fail(sender, peer, answer, "the answer was lost")
        else:
            self._later(self._delay(), self._come_back, sender, peer, answer)

    def _come_back(self, sender: int, peer: int, answer: Answer) -> None:
        if peer not in self._peers or self._unreachable(sender, peer):
            self._refuse(sender, peer, answer)
        else:
            _answered(answer, None)

    def _refuse(self, sender: int, peer: int, answer: Answer) -> None:
        if not self.silent:
            self._fail(sender, peer, answer, "out of reach")

    def _fail(self, sender: int, peer: int, answer: Answer, why: str) -> None:
        self._later(self._delay(), _answered, answer, ConnectionLost(f"{sender} → {peer}: {why}"))

    def _unreachable(self, sender: int, peer: int) -> bool:
        return frozenset((sender, peer)) in self._cut

    def _later(self, seconds: float, then: Callable[[Unpack[Ts]], object], *args: *Ts) -> None:
        (self._loop or asyncio.get_running_loop()).call_later(seconds, then, *args)

    def _delay(self) -> float:
        low, high = self.weather.delay
        straggling = 20 if self._strikes(self.weather.straggle) else 1
        return (low + self._random.random() * (high - low)) * straggling

    def _strikes(self, chance: float) -> bool:
        return chance > 0 and self._random.random() < chance


def _answered(answer: Answer, error: ConnectionLost | None) -> None:
    """None: nobody waits for it (any more)."""
    if answer is None or answer.done():
        return
    if error is None:
        answer.set_result(None)
    else:
        answer.set_exception(error)


class MadeUpWire:
    """One peer's way to all others."""

    def __init__(self, network: MadeUpNetwork, sender: int) -> None:
        self._network = network
        self._sender = sender

    async def call(self, peer: int, message: bytes) -> None:
        await self._network.carry(self._sender, peer, message)
