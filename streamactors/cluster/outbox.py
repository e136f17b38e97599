"""What waits in this process for one peer, and the packets that it leaves in.

Invariants. What is put in one turn of the loop leaves in one packet, and so does what is put while a packet is under
way, up to `PACKET_BYTES`. Packets that are not full follow each other; full ones travel side by side, `SIDE_BY_SIDE` at
most. What is urgent leaves at the end of the turn, whatever is under way. What waits is bounded, beside the bounds of
the channels: at `FULL` bytes, senders wait; so they do until the next turn when `TURN_BYTES` were put in one, since all
that is put was encoded.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from streamactors.cluster.channels import Piece, Unsent
from streamactors.cluster.packet import ChannelName, Records, Sign, Taken, packed, sign

PACKET_BYTES: Final = 1 << 20
PACKET_ELEMENTS: Final = 1000
"""So that neither end is busy with one packet for long."""
LARGE: Final = PACKET_BYTES // 4
SIDE_BY_SIDE: Final = 4
FULL: Final = 4 << 20
TURN_BYTES: Final = 1 << 20
_SIGN_BYTES: Final = 32


class PeerOutbox:
    """Of one peer. `wake`: something was put, so that `flush` is to be called at the end of the turn.
    `post(outbox, body, taken)`: sends a packet, and calls `taken` when it has been taken."""

    def __init__(self, wake: Callable[["PeerOutbox"], None], post: "Post") -> None:
        self._wake = wake
        self._post = post
        self._waiting: deque[Unsent] = deque()
        self._urgent: list[Unsent] = []
        self._taken: dict[ChannelName, Taken] = {}
        self._bytes = 0
        self._put = 0
        """Bytes in this turn."""
        self._under_way = 0
        self._on_room: dict[Callable[[], None], None] = {}
        self._closed = False

    @property
    def full(self) -> bool:
        return self._bytes >= FULL or self._put >= TURN_BYTES

    def put(self, unsent: Unsent, *, urgent: bool = False) -> None:
        if self._closed:
            return
        if urgent:
            self._urgent.append(unsent)
        else:
            self._waiting.append(unsent)
            weight = _weight(unsent)
            self._bytes += weight
            self._put += weight
        self._wake(self)

    def grant(self, channel: ChannelName, records: int, size: int) -> None:
        """Tell the peer how much of a channel has been taken since it was opened."""
        if not self._closed:
            self._taken[channel] = Taken(channel, records, size)
            self._wake(self)

    def notify_room(self, wake: Callable[[], None]) -> None:
        self._on_room[wake] = None

    def close(self) -> None:
        """Nothing leaves any more."""
        self._closed = True
        self._waiting.clear()
        self._urgent.clear()
        self._taken.clear()
        self._on_room.clear()
        self._bytes = self._put = 0

    # ---------------------------------------------------------------------------------------------------------- leaving
    def flush(self) -> None:
        self._put = 0
        if self._urgent:
            urgent, self._urgent = self._urgent, []
            for start in range(0, len(urgent), PACKET_ELEMENTS):
                self._post(self, _packet(urgent[start : start + PACKET_ELEMENTS], []), _nothing)
        while (self._waiting or self._taken) and self._may_leave():
            taken, self._taken = list(self._taken.values()), {}
            self._under_way += 1
            self._post(self, _packet(list(self._next()), taken), self._landed)
        if not self.full and self._on_room:
            waiting, self._on_room = self._on_room, {}
            for wake in waiting:
                wake()

    def _may_leave(self) -> bool:
        large = self._bytes >= LARGE or len(self._waiting) >= PACKET_ELEMENTS
        return not self._under_way or (large and self._under_way < SIDE_BY_SIDE)

    def _next(self) -> Iterable[Unsent]:
        """What goes into the next packet: one element at least."""
        size = count = 0
        while self._waiting and count < PACKET_ELEMENTS:
            weight = _weight(self._waiting[0])
            if count and size + weight > PACKET_BYTES:
                return
            size, count = size + weight, count + 1
            self._bytes -= weight
            yield self._waiting.popleft()

    def _landed(self) -> None:
        self._under_way -= 1
        if not self._closed:
            self.flush()


Post = Callable[[PeerOutbox, bytes, Callable[[], None]], None]


def _nothing() -> None:
    """Nobody waits for what is urgent."""


def _weight(unsent: Unsent) -> int:
    return len(unsent.content.frame) if isinstance(unsent.content, Piece) else _SIGN_BYTES


def _packet(elements: list[Unsent], taken: list[Taken]) -> bytes:
    frames: list[bytes] = []
    places: dict[int, int] = {}
    parts: dict[ChannelName, list[Records | Sign]] = {}
    for unsent in elements:
        unsent.gone = True
        content = unsent.content
        if isinstance(content, Piece):
            place = places.setdefault(id(content.frame), len(frames))
            if place == len(frames):
                frames.append(content.frame)
            element: Records | Sign = Records(unsent.number, place, content.records, content.size)
        else:
            element = sign(unsent.number, content, unsent.ordinal)
        parts.setdefault(unsent.channel, []).append(element)
    return packed(frames, parts.items(), taken)
