"""Trying again what a storage over the network could not do this time.

Invariant: an operation is tried again only for an error that may pass by itself (a time-out, a broken connection, a
server that is down or wants fewer requests), a bounded number of times and for a bounded time, with growing pauses.
"""

import errno
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from streamactors.clock import Clock

T = TypeVar("T")
log = logging.getLogger("streamactors.checkpoint")

TRANSIENT: Final = frozenset({errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED})
"""What a storage raises OSError with where another try may succeed, besides TimeoutError and ConnectionError."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """`tries` in all; pauses of `first` seconds, doubled up to `longest`, half of each by chance; no try begins later
    than `give_up_after` seconds after the first."""

    tries: int = 8
    first: float = 0.1
    longest: float = 10.0
    give_up_after: float = 60.0

    def pause(self, failures: int, chance: float) -> float:
        """Seconds after so many failures; `chance` is from 0 to 1."""
        return min(self.first * 2.0 ** (failures - 1), self.longest) * (0.5 + chance / 2)


class Retries:
    """Shared by all operations of one storage."""

    def __init__(self, clock: Clock, backoff: Backoff) -> None:
        self.count = 0
        """Tries after the first one, of all operations."""
        self._clock = clock
        self._backoff = backoff

    async def call(self, what: str, operation: Callable[[], Awaitable[T]]) -> T:
        """The operation's result, or its last OSError; `what` is for the log. A try that failed may have been done."""
        begun = self._clock.monotonic()
        failures = 0
        while True:
            try:
                return await operation()
            except OSError as error:
                failures += 1
                pause = self._backoff.pause(failures, self._clock.random())
                late = self._clock.monotonic() + pause - begun > self._backoff.give_up_after
                if not is_transient(error) or failures >= self._backoff.tries or late:
                    raise
                reason = error.strerror or error
            log.log(logging.INFO if failures < 3 else logging.WARNING, "%s: %s; again in %.1f s", what, reason, pause)
            self.count += 1
            await self._clock.sleep(pause)


def is_transient(error: OSError) -> bool:
    return isinstance(error, TimeoutError | ConnectionError) or error.errno in TRANSIENT
