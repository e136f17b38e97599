"""Which partition a record goes to: by key as Java's default partitioner has it, else spread in runs."""

from collections.abc import Callable, Sequence
from typing import Final

from aiokafka.partitioner import murmur2

POSITIVE: Final = 0x7FFFFFFF
KEPT_KEYS: Final = 2**17
LONGEST_KEPT_KEY: Final = 64
RUN_BYTES: Final = 16 * 1024
"""How much goes to one partition before records without a key turn to the next (as Java's, KIP-794)."""

Partitioner = Callable[[bytes | None, Sequence[int], Sequence[int]], int]
"""aiokafka's: key, all partitions, those with a leader."""


class KeyPartitions(dict[bytes, int]):
    """Key → partition, hashing a key the first time only; bounded, since keys need not be."""

    def __init__(self, partitions: Sequence[int]) -> None:
        super().__init__()
        self.partitions = partitions

    def __missing__(self, key: bytes) -> int:
        number: int = self.partitions[(murmur2(key) & POSITIVE) % len(self.partitions)]
        if len(key) <= LONGEST_KEPT_KEY:
            if len(self) >= KEPT_KEYS:
                self.clear()
            self[key] = number
        return number


class Runs:
    """Records without a key: one partition for a while, then the next, so that batches stay large."""

    def __init__(self, first: int) -> None:
        self._turn = first
        self._left = RUN_BYTES

    def choose(self, partitions: Sequence[int], size: int) -> int:
        """For `size` bytes of records."""
        if self._left <= 0:
            self._turn += 1
            self._left = RUN_BYTES
        self._left -= size
        return partitions[self._turn % len(partitions)]
