"""The connection to a cluster, of which a process has one.

Invariant: whoever has made it ends it, once none of the process's jobs uses it any more; one that was there before,
made by the user, stays. Jobs may come and go on several event loops: all of this runs in threads.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from streamactors.errors import InvalidConfig


@dataclass(frozen=True, eq=False)
class Use:
    """By one job. `address`: None for any."""

    address: str | None


class SharedConnection:
    """`current`: what tells the connection that there is from any other; None where there is none. `end`: ends it."""

    def __init__(self, current: Callable[[], object | None], end: Callable[[], None]) -> None:
        self._current = current
        self._end = end
        self._lock = threading.Lock()
        self._uses: set[Use] = set()
        self._made: object | None = None
        """The connection that was made here."""
        self._address: str | None = None

    def begin(self, use: Use, make: Callable[[], None]) -> bool:
        """Whether it was made just now. Blocks. Raises InvalidConfig where the process is connected elsewhere, and what
        `make` raises."""
        with self._lock:
            current = self._current()
            if current is None:
                self._make(use.address, make)
            elif current == self._made and use.address not in (None, self._address):
                raise InvalidConfig(
                    f"another job of this process is connected to Ray at {self._address or 'an address of its own'} "
                    f"already, and a process has one connection: run the job at {use.address} in another process"
                )
            self._uses.add(use)
            return current is None

    def _make(self, address: str | None, make: Callable[[], None]) -> None:
        self._uses.clear()  # of one that somebody else has ended
        try:
            make()
        except BaseException:
            self._end()  # what there is half of
            raise
        self._made, self._address = self._current(), address

    def leave(self, use: Use) -> None:
        """Blocks. Does nothing where it was not begun."""
        with self._lock:
            if use not in self._uses:
                return
            self._uses.remove(use)
            if not self._uses and self._made is not None and self._current() == self._made:
                self._made = None
                self._end()
