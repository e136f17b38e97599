"""The vocabulary of the barrier protocols: events in, actions out. Pure: no asyncio, no I/O.

A protocol object lives in one subtask. `runtime/subtask.py` feeds it events and executes, in order, the actions that
it returns. A source has no input channels: its barriers come by `Triggered`.
"""

from typing import Protocol

import msgspec

from streamactors.elements import Barrier


class Triggered(msgspec.Struct, frozen=True, gc=False):
    """The coordinator asks a source to put in a barrier."""

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


class Aborted(msgspec.Struct, frozen=True, gc=False):
    """The coordinator gave checkpoint `checkpoint` up. May come before its barrier."""

    checkpoint: int


Event = Triggered | BarrierAtHead | ChannelEnded | BarrierLeft | Aborted


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


class Acknowledge(msgspec.Struct, frozen=True, gc=False):
    """As soon as the snapshot is durable, tell the coordinator."""

    checkpoint: int


class Discard(msgspec.Struct, frozen=True, gc=False):
    """Drop what a snapshot of this checkpoint still has under way."""

    checkpoint: int


class Decline(msgspec.Struct, frozen=True, gc=False):
    """Tell the coordinator that this subtask can't take part in the checkpoint any more."""

    checkpoint: int
    reason: str


Action = Block | UnblockAll | Snapshot | Forward | Acknowledge | Discard | Decline


class BarrierProtocol(Protocol):
    """One per subtask."""

    def on(self, event: Event) -> list[Action]: ...
