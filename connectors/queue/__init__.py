"""A queue that a service feeds and its job reads, kept in a write-ahead log on the local disk."""

from connectors.queue.committing import QueuePosition
from connectors.queue.errors import (
    CorruptQueue,
    PositionGone,
    QueueClosed,
    QueueFull,
    QueueInUse,
    ReadFailed,
    RecordTooLarge,
    WriteFailed,
)
from connectors.queue.source import QueueSource

__all__ = [
    "CorruptQueue",
    "PositionGone",
    "QueueClosed",
    "QueueFull",
    "QueueInUse",
    "QueuePosition",
    "QueueSource",
    "ReadFailed",
    "RecordTooLarge",
    "WriteFailed",
]
