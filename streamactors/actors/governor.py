"""Fairness per event loop: all actors together work at most `BUDGET` seconds a loop turn.

Yielding actor by actor is not enough: 13 actors that each yield every 3 ms hold a web endpoint on the same loop for
40 ms a turn. So one governor per loop owns one budget, which runs from the first actor's work in a turn. An actor asks
`due()` between slices of work, and where it is spent, waits its turn. Waiting actors are released one a turn, first
come first served; one that finds its turn's budget spent by an actor that was idle before has the next turn to itself,
so that it gets its slice however busy the loop is.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from weakref import WeakKeyDictionary

from streamactors.clock import SYSTEM

BUDGET = 0.002

_governors: WeakKeyDictionary[asyncio.AbstractEventLoop, "Governor"] = WeakKeyDictionary()


class Governor:
    """The budget of one loop. Use `Governor.of_running_loop()`."""

    def __init__(self, monotonic: Callable[[], float] = SYSTEM.monotonic) -> None:
        self._monotonic = monotonic
        self._open = False
        self._worked = False
        """Whether somebody has begun to work in this turn."""
        self._reserved = False
        """Whether the turn is kept for the waiter that was released last."""
        self._deadline = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @classmethod
    def of_running_loop(cls, monotonic: Callable[[], float] = SYSTEM.monotonic) -> "Governor":
        """The loop's one governor. It measures by the clock that it was first asked for with."""
        loop = asyncio.get_running_loop()
        governor = _governors.get(loop)
        if governor is None:
            # A governor keeps no reference to its loop, so that this entry goes with the loop.
            governor = _governors[loop] = cls(monotonic)
        return governor

    def due(self) -> bool:
        """Whether this turn's budget is spent; the first caller of a turn opens it."""
        if self._reserved:
            return True
        if not self._open:
            self._open_turn()
        if not self._worked:
            self._begin()
            return False
        return self._monotonic() >= self._deadline

    def _begin(self) -> None:
        self._worked = True
        self._deadline = self._monotonic() + BUDGET

    async def give_way(self) -> None:
        """Wait for the next turn if the budget of this one is spent: between two pieces of work."""
        if self.due():
            await self.turn()

    async def turn(self) -> None:
        """Until a turn with budget left is this actor's."""
        await self._released(self._waiting.append)
        if not self.due():
            return
        self._reserved = True
        try:
            await self._released(self._waiting.appendleft)
        finally:
            self._reserved = False
        self._begin()

    async def _released(self, enqueue: Callable[[asyncio.Future[None]], None]) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        enqueue(waiter)
        if not self._open:
            self._open_turn()
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            raise

    def _open_turn(self) -> None:
        self._open = True
        self._worked = False
        asyncio.get_running_loop().call_soon(self._close_turn)

    def _close_turn(self) -> None:
        """Runs in the next loop iteration, after I/O and whoever else was ready had their chance."""
        self._open = False
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                self._open_turn()
                return
