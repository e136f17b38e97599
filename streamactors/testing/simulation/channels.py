"""A channel that gives no room for a while, now and then."""

from collections.abc import Callable
from typing import Any, Final

from streamactors.graph.physical import ChannelId
from streamactors.runtime.channel import Channel
from streamactors.testing.simulation.process import Process

STALL_SECONDS: Final = 3.0


class StallingChannel:
    """Around any channel; what it does not know of goes to that one."""

    def __init__(self, id: ChannelId, inner: Channel, process: Process) -> None:
        self._id = id
        self._inner = inner
        self._process = process
        self._until = 0.0
        self.quota = inner.quota

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def room(self) -> int:
        process = self._process
        if process.loop.time() < self._until:
            return 0
        if process.fate.strikes("channel_stalls"):
            seconds = STALL_SECONDS * process.up_to(100) / 100
            process.note(f"channel {self._id.sender} → {self._id.receiver} stalls: {seconds:.2f} s")
            self._until = process.loop.time() + seconds
            return 0
        return self._inner.room()

    def notify_room(self, wake: Callable[[], None]) -> None:
        if self._process.loop.time() < self._until:
            self._process.loop.call_at(self._until, wake)
        else:
            self._inner.notify_room(wake)
