"""Messages that arrive once, over a wire that loses, repeats, delays and reorders them.

Invariants. What `deliver` was given is accepted exactly once by the peer of the same epoch, or the peer is lost within
`give_up` seconds, and said to be. A message of an older epoch changes nothing; one of a newer epoch is refused, so that
its sender tries again when this process has got there. Messages delivered at the same time may be accepted in any
order; one after another, in theirs.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Final

from streamactors.clock import Clock
from streamactors.cluster.wire import Epoch, Header, Wire, body_of, header_of, sealed
from streamactors.errors import ConnectionLost

GIVE_UP: Final = 10.0
"""Seconds after which a peer that takes nothing is lost."""
_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 0.5
_TRIES: Final = 4
"""At least as many, where a call neither succeeds nor fails."""

OnLost = Callable[[int, BaseException], None]
"""Told once of each peer that is lost, and why."""


class Delivery:
    """What one process sends and accepts on one plane in one epoch."""

    def __init__(
        self, plane: int, epoch: Epoch, me: int, wire: Wire, clock: Clock, on_lost: OnLost, give_up: float = GIVE_UP
    ) -> None:
        self.epoch = epoch
        self.me = me
        self.dropped = 0
        """Messages of older epochs, and repeated ones."""
        self._plane = plane
        self._wire = wire
        self._clock = clock
        self._on_lost = on_lost
        self.give_up = give_up
        self._sent: Counter[int] = Counter()
        self._accepted: defaultdict[int, _Numbers] = defaultdict(_Numbers)
        self._lost: set[int] = set()

    async def deliver(self, peer: int, body: bytes) -> None:
        """Returns once the peer has taken it. Raises ConnectionLost once it is given up, after `on_lost` was told."""
        self._sent[peer] += 1
        message = sealed(Header(self._plane, self.epoch, self.me, self._sent[peer]), body)
        until = self._clock.monotonic() + self.give_up
        pause = _FIRST_PAUSE
        while (error := await self._failure(peer, message, until)) is not None:
            if self._clock.monotonic() + pause >= until:
                raise self._lose(peer, error) from error
            await self._clock.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _failure(self, peer: int, message: bytes, until: float) -> Exception | None:
        """One try: None if it was taken."""
        patience = min(self.give_up / _TRIES, max(0.0, until - self._clock.monotonic()))
        try:
            async with asyncio.timeout(patience):
                await self._wire.call(peer, message)
        except (ConnectionLost, TimeoutError) as error:
            return error
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            return ConnectionLost("the call was cancelled")  # by whoever carries it: what it carried is not to get lost
        return None

    def _lose(self, peer: int, error: Exception) -> ConnectionLost:
        name = "the coordinator" if peer < 0 else f"worker {peer}"
        why = str(error) or "no answer"
        lost = ConnectionLost(f"{name} has taken nothing for {self.give_up:g} s ({why}): is it dead, or cut off?")
        if peer not in self._lost:
            self._lost.add(peer)
            self._on_lost(peer, lost)
        return lost

    def accept(self, peer: int, message: bytes) -> memoryview | None:
        """The body; None where it changes nothing. Raises ConnectionLost to one of a newer epoch."""
        header = header_of(message)
        if header.epoch > self.epoch:
            raise ConnectionLost(f"not there yet: this is {self.epoch}, and the message of {header.epoch}")
        if header.epoch < self.epoch or header.sender != peer or not self._accepted[peer].add(header.number):
            self.dropped += 1
            return None
        return body_of(message)


def _is_cancelled() -> bool:
    """The task that runs, and not something that it awaits."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


class _Numbers:
    """Which of 1, 2, … were seen; those that have come out of turn one by one, which are few."""

    __slots__ = ("_ahead", "_upto")

    def __init__(self) -> None:
        self._upto = 0
        self._ahead: set[int] = set()

    def add(self, number: int) -> bool:
        """Whether it is new."""
        if number <= self._upto or number in self._ahead:
            return False
        self._ahead.add(number)
        while self._upto + 1 in self._ahead:
            self._upto += 1
            self._ahead.remove(self._upto)
        return True
