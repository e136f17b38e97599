"""The two ends of a channel between workers.

Invariants. Elements are numbered from 1 in the order sent, and put into the receiver's mailbox in that order, each
once; what comes early is held back. The sender counts what it has sent, and is told how much the receiver has taken,
both from the start, so that to hear it late, twice or out of order does no harm. What is sent and not taken never
weighs more than the quota of the receiver's mailbox, wherever it is: so the receiver always has room for what comes.

A barrier that overtakes leaves at once, ahead of all that waits on this side, with its number. The receiver is told of
it on its arrival, though not before the barriers ahead of it, and gets it in its turn.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from streamactors.actors.mailbox import Mailbox
from streamactors.cluster.packet import ChannelName
from streamactors.elements import Barrier, Batch, Element, Watermark


class Piece(NamedTuple):
    """A part of a batch as it travels. `size`: bytes, as its sender estimates it."""

    frame: bytes
    records: int
    size: int


class Unsent:
    """An element that waits to leave."""

    __slots__ = ("channel", "content", "gone", "number", "ordinal")

    def __init__(self, channel: ChannelName, number: int, content: Piece | Element, ordinal: int = 0) -> None:
        self.channel = channel
        self.number = number
        self.content = content
        self.ordinal = ordinal
        self.gone = False


class Outbox(Protocol):
    """Where all channels to one peer put what they send."""

    @property
    def full(self) -> bool: ...
    def put(self, unsent: Unsent, *, urgent: bool = False) -> None:
        """`urgent`: ahead of all that waits."""

    def notify_room(self, wake: Callable[[], None]) -> None:
        """Call `wake` once it is full no longer."""


class RemoteChannel:
    """The sending end. `pieces` encodes a batch, at once; `prove`: see `Demanding`."""

    def __init__(
        self,
        name: ChannelName,
        outbox: Outbox,
        pieces: Callable[[Batch], Sequence[Piece]],
        prove: Callable[[Batch], None],
        quota: int,
        byte_quota: int,
    ) -> None:
        self.quota = quota
        self.prove = prove
        self._name = name
        self._outbox = outbox
        self._pieces = pieces
        self._byte_quota = byte_quota
        self._number = 0
        self._barriers = 0
        self._sent = 0
        self._sent_bytes = 0
        self._taken = 0
        self._taken_bytes = 0
        self._watermark: Unsent | None = None
        """Put right before, if it still waits."""
        self._wake: Callable[[], None] | None = None

    @property
    def in_flight(self) -> int:
        """Records that were sent, and are not known to be taken."""
        return self._sent - self._taken

    def room(self) -> int:
        if self._sent_bytes - self._taken_bytes >= self._byte_quota or self._outbox.full:
            return 0
        return self.quota - self.in_flight

    def send(self, element: Element) -> None:
        if isinstance(element, Batch):
            self._send_batch(element)
        elif isinstance(element, Barrier):
            self._barriers += 1
            self._put(element, ordinal=self._barriers, urgent=element.overtakes)
        elif isinstance(element, Watermark) and self._watermark is not None and not self._watermark.gone:
            self._watermark.content = element
        else:
            unsent = self._put(element)
            self._watermark = unsent if isinstance(element, Watermark) else None

    def _send_batch(self, batch: Batch) -> None:
        if len(batch) > self.quota - self.in_flight:
            free = self.quota - self.in_flight
            raise OverflowError(f"channel {self._name}: {len(batch)} records sent, room for {free}")
        for piece in self._pieces(batch):
            self._sent += piece.records
            self._sent_bytes += piece.size
            self._put(piece)

    def _put(self, content: Piece | Element, *, ordinal: int = 0, urgent: bool = False) -> Unsent:
        self._number += 1
        self._watermark = None
        unsent = Unsent(self._name, self._number, content, ordinal)
        self._outbox.put(unsent, urgent=urgent)
        return unsent

    def notify_room(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        if self._outbox.full:
            self._outbox.notify_room(self._look)

    def granted(self, records: int, size: int) -> None:
        """How much the receiver has taken by now."""
        self._taken = max(self._taken, records)
        self._taken_bytes = max(self._taken_bytes, size)
        self._look()

    def _look(self) -> None:
        """Half of the quota, as with a mailbox: fewer, larger batches."""
        if self._wake is None:
            return
        if self._outbox.full:
            self._outbox.notify_room(self._look)
        elif self.room() >= self.quota - self.quota // 2:
            wake, self._wake = self._wake, None
            wake()


class Inlet:
    """The receiving end: into channel `place` of a mailbox. `grant(records, bytes)`: taken since the start; it is told
    when a quarter of the quota has been taken since it was told last."""

    def __init__(self, mailbox: Mailbox[Element], place: int, grant: Callable[[int, int], None]) -> None:
        self._mailbox = mailbox
        self._place = place
        self._grant = grant
        self._next = 1
        self._early: dict[int, tuple[Element, int, int]] = {}
        self._told = 0
        """Ordinal of the last barrier that the receiver knows of."""
        self._coming: dict[int, Barrier] = {}
        """By ordinal: barriers that have come ahead of others, which the receiver is to know of first."""
        self._put_records = 0
        self._put_bytes = 0
        self._granted = 0
        self._granted_bytes = 0
        self._step = max(1, mailbox.quota // 4)
        self._byte_step = max(1, mailbox.byte_quota // 4)
        mailbox.notify_room(place, self._note_taken)

    def arrive(self, number: int, element: Element, size: int = 0, ordinal: int = 0) -> None:
        """An element, each once, in any order."""
        if number != self._next:
            self._early[number] = element, size, ordinal
            if isinstance(element, Barrier) and element.overtakes:
                self._coming[ordinal] = element
                self._tell_coming()
            return
        self._put(element, size, ordinal)
        while (early := self._early.pop(self._next, None)) is not None:
            self._put(*early)

    def _put(self, element: Element, size: int, ordinal: int) -> None:
        self._next += 1
        if isinstance(element, Batch):
            self._put_records += len(element)
            self._put_bytes += size
            self._mailbox.put(self._place, element, len(element), size)
        elif isinstance(element, Barrier):
            self._mailbox.put(self._place, element, 0, announce=True)
            self._coming.pop(ordinal, None)
            self._told = max(self._told, ordinal)
            self._tell_coming()
        else:
            self._mailbox.put(self._place, element, 0, replace=isinstance(element, Watermark))

    def _tell_coming(self) -> None:
        while (barrier := self._coming.pop(self._told + 1, None)) is not None:
            self._told += 1
            self._mailbox.announce(self._place, barrier)

    def _note_taken(self) -> None:
        queued, size = self._mailbox.fill(self._place)
        taken, taken_bytes = self._put_records - queued, self._put_bytes - size
        if taken - self._granted >= self._step or taken_bytes - self._granted_bytes >= self._byte_step:
            self._granted, self._granted_bytes = taken, taken_bytes
            self._grant(taken, taken_bytes)
        self._mailbox.notify_room(self._place, self._note_taken)
