"""A bounded mailbox with several input channels and a priority lane.

Invariants. Items of one channel are taken in the order they were put. What is queued on a channel never weighs more
than its quota (an item of weight 0 needs no room). A blocked channel gives nothing, and holds nobody else up. The
control lane is neither bounded nor blocked. Ready channels are served round-robin. An announced item is told of on its
arrival (or before, where others ahead of it are still on their way), and still taken in its turn. The tap sees every
item on its arrival, before anybody can take it.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from streamactors.actors.signal import Signal

M = TypeVar("M")


class Ahead(Generic[M]):
    """An item that is told of, though others ahead of it on its channel have yet to be put."""

    __slots__ = ("item",)

    def __init__(self, item: M) -> None:
        self.item = item


class _Channel(Generic[M]):
    __slots__ = ("blocked", "bytes", "items", "on_room", "queued", "replaceable")

    def __init__(self) -> None:
        self.items: deque[tuple[M, int, int]] = deque()
        self.queued = 0
        self.bytes = 0
        self.blocked = False
        self.on_room: Callable[[], None] | None = None
        self.replaceable: M | None = None


class Mailbox(Generic[M]):
    """`capacity` (records) and `byte_capacity` are shared fairly by `channels` input channels."""

    def __init__(self, channels: int, capacity: int, byte_capacity: int = 64 << 20) -> None:
        self.channels = channels
        self.signal = Signal()
        self.control: deque[Any] = deque()
        self.announced: deque[tuple[int, M | Ahead[M]]] = deque()
        """Items put with `announce`, or told of ahead, in the order of that, with their channels; taken by the
        receiver."""
        self.tap: Callable[[int, M], None] | None = None
        self.quota = max(1, capacity // max(1, channels))
        self.byte_quota = max(1, byte_capacity // max(1, channels))
        self._channels: list[_Channel[M]] = [_Channel() for _ in range(channels)]
        self._ready: deque[int] = deque()

    # ------------------------------------------------------------------------------------------ the sender's side
    def room(self, channel: int) -> int:
        """Records that may be put now; 0 also where the bound in bytes is reached."""
        state = self._channels[channel]
        return 0 if state.bytes >= self.byte_quota else self.quota - state.queued

    def put(
        self, channel: int, item: M, weight: int, size: int = 0, *, announce: bool = False, replace: bool = False
    ) -> None:
        """Queue an item of `weight` records and `size` bytes; the sender has asked for room. `replace`: it takes the
        place of one put so right before it, so that weightless items never pile up."""
        state = self._channels[channel]
        if weight > self.quota - state.queued:
            raise OverflowError(f"channel {channel}: {weight} records put, room for {self.quota - state.queued}")
        if not state.items and not state.blocked:
            self._ready.append(channel)
        if replace and state.items and state.items[-1][0] is state.replaceable:
            state.items.pop()
        if replace:
            state.replaceable = item
        state.items.append((item, weight, size))
        state.queued += weight
        state.bytes += size
        if announce:
            self.announced.append((channel, item))
        if self.tap is not None:
            self.tap(channel, item)
        self.signal.set()

    def announce(self, channel: int, item: M) -> None:
        """Tell the receiver of an item that is yet to be put."""
        self.announced.append((channel, Ahead(item)))
        self.signal.set()

    def notify_room(self, channel: int, wake: Callable[[], None]) -> None:
        """Call `wake` once, when at least half of the channel's quota is free again: fewer, larger batches."""
        self._channels[channel].on_room = wake

    def send_control(self, message: Any) -> None:
        self.control.append(message)
        self.signal.set()

    # ---------------------------------------------------------------------------------------- the receiver's side
    def take(self, *, full: bool = False) -> tuple[int, M] | None:
        """The next item of an unblocked channel, with its channel; None if there is none. `full`: one that weighs
        nothing."""
        if not self._ready or (full and not self._weightless_first()):
            return None
        channel = self._ready.popleft()
        state = self._channels[channel]
        item, weight, size = state.items.popleft()
        state.queued -= weight
        state.bytes -= size
        if state.items:
            self._ready.append(channel)
        if state.on_room is not None and state.queued <= self.quota // 2:
            wake, state.on_room = state.on_room, None
            wake()
        return channel, item

    def _weightless_first(self) -> bool:
        """Whether there is one that weighs nothing; its channel is then the next."""
        for _ in range(len(self._ready)):
            if not self._channels[self._ready[0]].items[0][1]:
                return True
            self._ready.rotate(-1)
        return False

    def block(self, channel: int) -> None:
        state = self._channels[channel]
        if not state.blocked:
            state.blocked = True
            if state.items:
                self._ready.remove(channel)

    def unblock_all(self) -> None:
        for channel, state in enumerate(self._channels):
            if state.blocked:
                state.blocked = False
                if state.items:
                    self._ready.append(channel)
                    self.signal.set()

    def items(self, channel: int) -> Iterator[M]:
        """What is queued on a channel, in order."""
        return (item for item, _, _ in self._channels[channel].items)

    def fill(self, channel: int) -> tuple[int, int]:
        """Records and bytes that are queued on a channel."""
        state = self._channels[channel]
        return state.queued, state.bytes

    @property
    def queued(self) -> int:
        """Records in all channels."""
        return sum(state.queued for state in self._channels)

    @property
    def blocked(self) -> list[int]:
        return [channel for channel, state in enumerate(self._channels) if state.blocked]
