"""What `KafkaSource.records` yields."""

from collections.abc import Sequence
from typing import Generic, TypeVar

import msgspec

K = TypeVar("K")
T = TypeVar("T")


class KafkaRecord(msgspec.Struct, Generic[K, T], frozen=True):
    """One record as Kafka has it; `timestamp` in milliseconds since the epoch.

    `value` is None for a tombstone. `key` is None where the record has none.
    """

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: K
    value: T | None
    headers: Sequence[tuple[str, bytes]] = ()
