"""Sweeping of state with a ttl, beside the subtask: key group by key group, in turn with the other actors.

Invariant: every key group of a state is swept about once in its ttl, or an hour if that is shorter; so what has expired
takes memory for about twice its ttl at most, and for no more than an hour longer.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from streamactors.actors.governor import Governor
from streamactors.clock import Clock
from streamactors.errors import StateAccessError
from streamactors.state.backend import KeyedBackend

_PASS_SECONDS: Final = 3600.0
_TICK_SECONDS: Final = 0.1
"""Between two wake-ups, at least."""


class _Rotation:
    """The key groups of one state, one after another. It begins anywhere: else a job that is restarted often would
    sweep the first ones only."""

    def __init__(self, backend: KeyedBackend, state: str, lifetime: float, clock: Clock) -> None:
        self._backend = backend
        self._state = state
        self._clock = clock
        count, duration = len(backend.groups), min(lifetime, _PASS_SECONDS)
        self._interval = max(duration / count, _TICK_SECONDS)
        self._together = min(math.ceil(count * self._interval / duration), count)
        self._next = int(clock.random() * count)
        self.due = clock.monotonic() + self._interval

    async def step(self, turn: Callable[[], Awaitable[None]]) -> None:
        started = self._clock.monotonic()
        for _ in range(self._together):
            group = self._backend.groups.start + self._next
            self._next = (self._next + 1) % len(self._backend.groups)
            await self._backend.sweep(self._state, group, turn)
            await turn()
        now = self._clock.monotonic()
        self.due = max(self.due + self._interval, now + (now - started))  # at most half of the time, however short


class Sweeper:
    """One task for all state of a subtask; none where nothing has a ttl. `failed` is told of an error that ends it."""

    def __init__(
        self,
        backends: Iterable[KeyedBackend],
        clock: Clock,
        governor: Governor,
        failed: Callable[[Exception], None],
    ) -> None:
        self._backends = list(backends)
        self._clock = clock
        self._governor = governor
        self._failed = failed
        self._task: asyncio.Task[None] | None = None

    def start(self, name: str) -> None:
        rotations = [
            _Rotation(backend, state, lifetime, self._clock)
            for backend in self._backends
            for state, lifetime in backend.lifetimes.items()
        ]
        if rotations:
            self._task = asyncio.get_running_loop().create_task(self._run(rotations), name=f"sweeping of {name}")

    async def _run(self, rotations: list[_Rotation]) -> None:
        try:
            while True:
                rotation = min(rotations, key=lambda each: each.due)
                await self._clock.sleep(max(0.0, rotation.due - self._clock.monotonic()))
                await rotation.step(self._governor.give_way)
        except StateAccessError:
            return  # the backend is closed
        except Exception as error:
            self._failed(error)

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        """Waits for what it reads, a few milliseconds at most."""
        self.stop()
        if self._task is not None:
            await asyncio.wait([self._task])
