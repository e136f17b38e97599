"""Server-sent events: how a job does, again and again, for as many as listen.

Invariants: the job is read at most once every `EVERY` seconds, however many listen; a slow listener is given the latest
reading, and nothing queues up for it; every stream ends, by itself after `LONGEST` at the latest (a browser then comes
back by itself), so that no server waits for a listener to go.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from streamactors.clock import Clock
from streamactors.errors import InvalidRequest
from streamactors.observe import model

EVERY: Final = 0.5
LONGEST: Final = 60.0
"""Seconds."""
MOST_STREAMS: Final = 16
ENDED: Final = frozenset({"finished", "failed", "cancelled"})


class Ticker:
    """The readings of one job, shared."""

    def __init__(self, read: Callable[[], Awaitable[model.Tick]], clock: Clock) -> None:
        self._read = read
        self._clock = clock
        self._closed = asyncio.Event()
        self._reading = asyncio.Lock()
        self._at = float("-inf")
        self._number = 0
        self._event = b""
        self._last = False
        self._streams = 0

    def close(self) -> None:
        """Ends every stream."""
        self._closed.set()

    def require_room(self) -> None:
        """Raises InvalidRequest where too many listen already."""
        if self._streams >= MOST_STREAMS:
            raise InvalidRequest(f"{MOST_STREAMS} streams of events are open already", "busy", 503)

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The first reading is given at once, or as soon as `EVERY` lets it."""
        with self._listening():
            seen, end = 0, self._clock.monotonic() + LONGEST
            yield b"retry: 1000\n\n"
            while self._clock.monotonic() < end and await self._after(seen):
                seen = self._number
                yield self._event
                if self._last:
                    return

    async def _after(self, seen: int) -> bool:
        """Whether there is a reading after that one; False once closed."""
        while self._number <= seen and not self._closed.is_set():
            pause = self._at + EVERY - self._clock.monotonic()
            if pause > 0:
                await self._pause(pause)
                continue
            async with self._reading:
                if self._number <= seen:
                    await self._take()
        return not self._closed.is_set()

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._closed.wait()
        except TimeoutError:
            return

    async def _take(self) -> None:
        self._at = self._clock.monotonic()
        tick = await self._read()
        self._number += 1
        self._last = tick.job.status in ENDED
        self._event = b"id: %d\nevent: tick\ndata: %b\n\n" % (self._number, msgspec.json.encode(tick))

    @contextmanager
    def _listening(self) -> Iterator[None]:
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1
