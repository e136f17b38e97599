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
    """`exists`: whether this process is connected; `end`: so that it is no more."""

    def __init__(self, exists: Callable[[], bool], end: Callable[[], None]) -> None:
        self._exists = exists
        self._end = end
        self._lock = threading.Lock()
        self._uses: set[Use] = set()
        self._made_here = False
        self._address: str | None = None

    def begin(self, use: Use, make: Callable[[], None]) -> bool:
        """Whether it was made just now. Blocks. Raises InvalidConfig where the process is connected elsewhere, and what
        `make` raises."""
        with self._lock:
            if new := not self._exists():
                self._make(use.address, make)
            elif self._made_here and use.address not in (None, self._address):
                raise InvalidConfig(
                    f"another job of this process is connected to Ray at {self._address or 'an address of its own'} "
                    f"already, and a process has one connection: run the job at {use.address} in another process"
                )
            self._uses.add(use)
            return new

    def _make(self, address: str | None, make: Callable[[], None]) -> None:
        self._uses.clear()  # of one that somebody else has ended
        self._made_here = False
        try:
            make()
        except BaseException:
            self._end()  # what there is half of
            raise
        self._made_here, self._address = True, address

    def leave(self, use: Use) -> None:
        """Blocks. Does nothing where it was not begun."""
        with self._lock:
            if use not in self._uses:
                return
            self._uses.remove(use)
            if not self._uses and self._made_here:
                self._made_here = False
                self._end()
