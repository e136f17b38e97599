"""Who of the other processes lives: both sides give signs of life regularly, and whoever is silent too long is lost."""

import asyncio
import math
from collections.abc import Callable, Collection

from streamactors.clock import Clock
from streamactors.cluster.workers import Times


class Watch:
    """`beat(peer)`: give a sign of life; `on_silent(peer, seconds)`: it has not been heard of for so long, and is asked
    no more. `forgiving`: what this process itself was paused for is nobody else's silence. Else the others may have
    gone on without it meanwhile, and what had waited for it when it went on tells nothing of them."""

    def __init__(
        self,
        peers: Collection[int],
        clock: Clock,
        times: Times,
        *,
        beat: Callable[[int], None],
        on_silent: Callable[[int, float], None],
        forgiving: bool,
    ) -> None:
        self._clock = clock
        self._times = times
        self._beat = beat
        self._on_silent = on_silent
        self._forgiving = forgiving
        self.lost_after = times.lost_at_start_after
        """Seconds, at present."""
        self._looked = clock.monotonic()
        """When this process was not paused, for certain."""
        self._heard = dict.fromkeys(peers, self._looked)
        self._task: asyncio.Task[None] | None = None

    def start(self, name: str) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"{name}: heartbeat")

    def running(self) -> None:
        """No longer starting."""
        self.lost_after = self._times.lost_after

    def heard(self, peer: int) -> None:
        if peer in self._heard:
            self._heard[peer] = self._clock.monotonic() if self._forgiving else self._looked

    def silent(self, peer: int) -> float:
        """Seconds since it was heard of; no end of them once it was forgotten."""
        return self._clock.monotonic() - self._heard.get(peer, -math.inf)

    def forget(self, peer: int) -> None:
        self._heard.pop(peer, None)

    async def _run(self) -> None:
        self._looked = self._clock.monotonic()
        while True:
            await self._clock.sleep(self._times.heartbeat)
            now = self._clock.monotonic()
            paused, self._looked = now - self._looked - self._times.heartbeat, now
            for peer in list(self._heard):
                self._look(peer, now, max(0.0, paused) if self._forgiving else 0.0)

    def _look(self, peer: int, now: float, paused: float) -> None:
        silent = now - self._heard[peer] - paused
        self._heard[peer] += paused
        if silent > self.lost_after:
            self.forget(peer)
            self._on_silent(peer, silent)
        else:
            self._beat(peer)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
