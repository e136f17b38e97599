"""How a subtask spends its time: idle, held back by what comes after it, or busy.

Measured where the loop waits, never per record: a wait for input is idle time, a wait for room is back-pressure, and
all else is busy, a user's await and the wait for a turn on the event loop included.
"""

from collections.abc import Callable
from typing import Final

from streamactors.actors.signal import Signal

IDLE: Final = 0
HELD_BACK: Final = 1


class Load:
    """Of one subtask, in seconds since `begin`; a wait that has not ended counts too."""

    __slots__ = ("_began", "_kind", "_monotonic", "_seconds", "_since")

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._since: float | None = None
        self._kind = IDLE
        self._began: float | None = None
        """Of the wait in hand."""
        self._seconds = [0.0, 0.0]

    def begin(self) -> None:
        self._since = self._monotonic()
        self._seconds = [0.0, 0.0]

    async def wait(self, kind: int, signal: Signal) -> None:
        began = self._began = self._monotonic()
        self._kind = kind
        try:
            await signal.wait()
        finally:
            self._seconds[kind] += self._monotonic() - began
            self._began = None

    def read(self) -> tuple[float, float, float]:
        """Busy, idle, held back; all zero until it has begun."""
        if self._since is None:
            return 0.0, 0.0, 0.0
        now = self._monotonic()
        spent = list(self._seconds)
        if self._began is not None:
            spent[self._kind] += now - max(self._began, self._since)
        return max(0.0, now - self._since - sum(spent)), spent[IDLE], spent[HELD_BACK]
