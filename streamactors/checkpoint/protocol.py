"""The vocabulary of the barrier protocols: events in, actions out. Pure: no asyncio, no I/O.

A protocol object lives in one subtask. `runtime/subtask.py` feeds it events and executes, in order, the actions that
it returns. A source has no input channels: its barriers come by `Triggered`.
"""

from typing import Protocol

import msgspec

from streamactors.elements import Barrier


class Triggered(msgspec.Struct, frozen=True, gc=False):
    """A source has nothing in hand, and may put in a barrier that was announced."""

    barrier: Barrier


class BarrierAnnounced(msgspec.Struct, frozen=True, gc=False):
    """A barrier has arrived at the tail of channel `channel`; what is queued ahead of it is still to be processed. (Of
    a source, on channel 0: the coordinator's trigger has come.)"""

    channel: int
    barrier: Barrier


class BarrierAhead(msgspec.Struct, frozen=True, gc=False):
    """A barrier that overtakes has come ahead of elements that are still on their way on channel `channel`, between two
    processes. It is announced when they have arrived; and no earlier barrier of that channel is yet to be told of."""

    channel: int
    barrier: Barrier


class BarrierAtHead(msgspec.Struct, frozen=True, gc=False):
    """A barrier was taken from channel `channel`: everything ahead of it has been processed."""

    channel: int
    barrier: Barrier


class ChannelEnded(msgspec.Struct, frozen=True, gc=False):
    """End of data was taken from channel `channel`. Barriers may still come on it."""

    channel: int


class BarrierLeft(msgspec.Struct, frozen=True, gc=False):
    """The barrier has left every output of this subtask."""

    checkpoint: int


class AlignmentTimedOut(msgspec.Struct, frozen=True, gc=False):
    """The timer of checkpoint `checkpoint` has run out (see `StartTimer`). May come when all is done."""

    checkpoint: int


class Aborted(msgspec.Struct, frozen=True, gc=False):
    """The coordinator gave checkpoint `checkpoint` up. May come before its barrier."""

    checkpoint: int


Event = (
    Triggered
    | BarrierAnnounced
    | BarrierAhead
    | BarrierAtHead
    | ChannelEnded
    | BarrierLeft
    | AlignmentTimedOut
    | Aborted
)


class Block(msgspec.Struct, frozen=True, gc=False):
    """Take nothing more from this channel."""

    channel: int


class UnblockAll(msgspec.Struct, frozen=True, gc=False):
    """Take from every channel again."""


class Snapshot(msgspec.Struct, frozen=True, gc=False):
    """Take the synchronous part of the snapshot now, between two records."""

    barrier: Barrier


class Forward(msgspec.Struct, frozen=True, gc=False):
    """Send the barrier into every output, behind all that has been emitted."""

    barrier: Barrier


class StartTimer(msgspec.Struct, frozen=True, gc=False):
    """Tell when it is `barrier.overtakes_at`, unless the checkpoint has been acknowledged or discarded by then."""

    barrier: Barrier


class CaptureInHand(msgspec.Struct, frozen=True, gc=False):
    """Persist, for this checkpoint, what is in hand at every link of the chain."""

    checkpoint: int


class Capture(msgspec.Struct, frozen=True, gc=False):
    """Persist, for this checkpoint, what is queued on this channel ahead of its barrier; where that has not arrived
    yet, all that is queued and what still comes, until it does (or a later barrier does)."""

    checkpoint: int
    channel: int


class Overtake(msgspec.Struct, frozen=True, gc=False):
    """Send the barrier ahead of all that waits in each output, whether it waits there itself or not yet, though not
    ahead of an earlier barrier; persist what it overtook. An output that it has left already stays as it is."""

    barrier: Barrier


class Acknowledge(msgspec.Struct, frozen=True, gc=False):
    """Nothing more is to be captured. As soon as the snapshot is durable, tell the coordinator."""

    checkpoint: int


class Discard(msgspec.Struct, frozen=True, gc=False):
    """Drop what a snapshot of this checkpoint still has under way, and its barrier where it waits in an output."""

    checkpoint: int


class Decline(msgspec.Struct, frozen=True, gc=False):
    """Tell the coordinator that this subtask can't take part in the checkpoint any more."""

    checkpoint: int
    reason: str


Action = (
    Block
    | UnblockAll
    | Snapshot
    | Forward
    | StartTimer
    | CaptureInHand
    | Capture
    | Overtake
    | Acknowledge
    | Discard
    | Decline
)


class BarrierProtocol(Protocol):
    """One per subtask."""

    def on(self, event: Event) -> list[Action]: ...
