"""When a subtask looks for processing timers: one timer of the loop, for the earliest of all its operators.

Invariant: while a processing timer is pending, either `due` is true, or a wake-up is scheduled that comes no later than
the timer's time (by the clock as it was when it was scheduled: at least every minute it is asked again).
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from streamactors.clock import Clock
from streamactors.time.timers import TimerService

_LONGEST_MS: Final = 60_000
"""A clock may be set."""


class Alarm:
    """`wake` lets the subtask's loop look again."""

    def __init__(self, services: Sequence[TimerService], clock: Clock, wake: Callable[[], None]) -> None:
        self.due = False
        self._services = services
        self._clock = clock
        self._wake = wake
        self._handle: asyncio.Handle | None = None
        self._started = False
        for service in services:
            service.on_alarm = self._earlier

    def start(self) -> None:
        """State is restored. What is past due rings at once."""
        self._started = True
        self.schedule()

    def now(self) -> int:
        return self._clock.time_ms()

    def schedule(self) -> None:
        """After a look: for the earliest that is pending, in the next turn of the loop at the soonest, so that what is
        set for a time that has come holds nothing else up."""
        self.due = False
        for service in self._services:
            service.alarm_at = service.stores["processing"].earliest()
        self._set()

    def _earlier(self) -> None:
        """One was set that is earlier than all others of its operator."""
        if self._started and not self.due:
            self._set()

    def _set(self) -> None:
        self.stop()
        times = [service.alarm_at for service in self._services if service.alarm_at is not None]
        if times:
            delay = min(min(times) - self._clock.time_ms(), _LONGEST_MS)
            loop = asyncio.get_running_loop()
            self._handle = loop.call_later(delay / 1000, self._ring) if delay > 0 else loop.call_soon(self._ring)

    def _ring(self) -> None:
        self._handle = None
        self.due = True
        self._wake()

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
