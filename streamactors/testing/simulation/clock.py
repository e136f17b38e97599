"""The clock of a simulated process: everything that it gives is drawn by seed, and blocking work runs inline."""

import asyncio
import contextlib
from collections.abc import Callable
from random import Random
from typing import Final, ParamSpec, TypeVar

from streamactors.testing.simulation.loop import VirtualTime

P = ParamSpec("P")
R = TypeVar("R")

EPOCH_MS: Final = 1_700_000_000_000
"""When virtual time begins."""
BLOCKING_SECONDS: Final = 0.002


class SimulatedClock:
    """Reading the time takes a little of it. Keeps no loop alive: the governor of a loop measures by it."""

    def __init__(self, time: VirtualTime, random: Random) -> None:
        self._time = time
        self._random = random

    def monotonic(self) -> float:
        return self._time.tick()

    def time_ms(self) -> int:
        return EPOCH_MS + int(self._time.now * 1000)

    def random(self) -> float:
        return self._random.random()

    def token(self) -> str:
        return f"{self._random.getrandbits(64):016x}"

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def run_blocking(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """As in a thread: once it has begun, it goes on even if whoever waits is cancelled."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[R] = loop.create_future()

        def run() -> None:
            try:
                result = fn(*args, **kwargs)
            except Exception as error:
                loop.call_later(self._delay(), _answer, lambda refusal=error: done.set_exception(refusal))
            else:
                loop.call_later(self._delay(), _answer, lambda: done.set_result(result))

        loop.call_later(self._delay(), run)
        return await done

    def _delay(self) -> float:
        return self._random.random() * BLOCKING_SECONDS


def _answer(answer: Callable[[], None]) -> None:
    with contextlib.suppress(asyncio.InvalidStateError):  # whoever waited has been cancelled
        answer()
