"""The vocabulary: everything that travels through a channel.

A `Batch` holds parallel lists. `Watermark`, `Idle`, `Barrier` and `EndOfData` are elements between batches. Timestamps
are milliseconds since the epoch.
"""

import builtins
import sys
from collections.abc import Callable, Sequence
from itertools import compress
from operator import itemgetter
from typing import Any, Final, Generic, Literal, TypeVar

import msgspec

T = TypeVar("T")


class Batch:
    """Records as parallel lists of one length.

    `timestamps`, `keys`, `groups` (key groups) and `origins` (record numbers, `split` being their prefix) are None
    where the stream has none. Groups may travel on without keys, as those of the records that these were made from.
    `home`: the source (its uid) and the split that all records come from, up to the first exchange.
    `ids`: what records are called, where a step downstream wants to know; None in it for one of which that is unknown.
    Lists are shared between batches and never changed once a batch has been handed on.
    """

    __slots__ = ("groups", "home", "ids", "keys", "origins", "split", "timestamps", "values")

    def __init__(
        self,
        values: Sequence[Any],
        timestamps: Sequence[int | None] | None = None,
        keys: Sequence[Any] | None = None,
        groups: Sequence[int] | None = None,
        origins: Sequence[int] | None = None,
        split: str = "",
        home: tuple[str, str] | None = None,
        ids: Sequence[str | None] | None = None,
    ) -> None:
        self.home = home
        self.ids = ids
        self.values = values
        self.timestamps = timestamps
        self.keys = keys
        self.groups = groups
        self.origins = origins
        self.split = split

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return f"<Batch of {len(self.values)}>"

    def _over_columns(self, pick: Callable[[Sequence[Any]], Sequence[Any]]) -> "Batch":
        return Batch(
            pick(self.values),
            None if self.timestamps is None else pick(self.timestamps),
            None if self.keys is None else pick(self.keys),
            None if self.groups is None else pick(self.groups),
            None if self.origins is None else pick(self.origins),
            self.split,
            self.home,
            None if self.ids is None else pick(self.ids),
        )

    def slice(self, start: int, stop: int) -> "Batch":
        """Records [start, stop)."""
        if start <= 0 and stop >= len(self.values):
            return self
        return self._over_columns(lambda column: column[start:stop])

    def stride(self, start: int, step: int) -> "Batch":
        """Records start, start + step, start + 2·step, …"""
        return self._over_columns(lambda column: column[start::step])

    def select(self, mask: Sequence[Any]) -> "Batch":
        """The records whose mask is true."""
        return self._over_columns(lambda column: list(compress(column, mask)))

    def take(self, indices: Sequence[int]) -> "Batch":
        """The records at `indices` (at least one), in that order."""
        if len(indices) == 1:
            index = indices[0]
            return self._over_columns(lambda column: [column[index]])
        return self._over_columns(itemgetter(*indices))

    def with_values(self, values: Sequence[Any]) -> "Batch":
        """Other values one for one; keys go, since they belonged to the old values."""
        return Batch(values, self.timestamps, None, self.groups, self.origins, self.split, self.home, self.ids)

    def with_keys(self, keys: Sequence[Any], groups: Sequence[int]) -> "Batch":
        return Batch(self.values, self.timestamps, keys, groups, self.origins, self.split, None, self.ids)

    def with_ids(self, ids: Sequence[str | None]) -> "Batch":
        return Batch(self.values, self.timestamps, self.keys, self.groups, self.origins, self.split, self.home, ids)

    def unplaced(self) -> "Batch":
        """Behind an exchange that minds neither keys nor splits: where a record goes says nothing about either."""
        if self.groups is None and self.home is None:
            return self
        return Batch(self.values, self.timestamps, None, None, self.origins, self.split, None, self.ids)

    def origin(self, index: int) -> str | None:
        """Where a record came from, such as `orders[3]@18234` or `events.jsonl:17`; None if no longer known."""
        return None if self.origins is None else f"{self.split}{self.origins[index]}"

    def estimated_bytes(self) -> int:
        """A rough size in memory, from its first and last value: for bounds, not for accounts."""
        values = self.values
        if not values:
            return 0
        return (_shallow_size(values[0]) + _shallow_size(values[-1])) * len(values) // 2


def _shallow_size(value: Any) -> int:
    """The value and one level of what it holds."""
    size = sys.getsizeof(value, 64)
    if isinstance(value, dict):
        return size + sum(sys.getsizeof(item, 64) for item in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return size + sum(sys.getsizeof(item, 64) for item in value)
    if isinstance(value, msgspec.Struct):
        return size + sum(sys.getsizeof(getattr(value, name, None), 64) for name in value.__struct_fields__)
    return size


class Barrier(msgspec.Struct, frozen=True, gc=False):
    """Separates what belongs to checkpoint `checkpoint` from what comes after it (Carbone et al., ABS, 2015)."""

    checkpoint: int
    target: str | None = None
    """The URI of a savepoint; None for a checkpoint."""
    overtakes: bool = False
    """Goes ahead of what is queued, which is then in flight (Flink: unaligned checkpoint)."""
    overtakes_at: int | None = None
    """When it begins to, in milliseconds since the epoch, where it has not been aligned until then (Flink: aligned
    checkpoint timeout); None: never."""

    @property
    def savepoint(self) -> bool:
        return self.target is not None


class EndOfData(msgspec.Struct, frozen=True, gc=False):
    """No record is to come on this channel; barriers still may."""


class EndOfKeys(msgspec.Struct, frozen=True, gc=False):
    """Of a sorted input: no more records come of the keys so far, which lie in the key groups `first` to `last`."""

    first: int
    last: int


MIN_TIME: Final = -(2**63)
"""The watermark before the first one."""
MAX_TIME: Final = 2**63 - 1
"""The watermark after the last record."""


class Watermark(msgspec.Struct, frozen=True, gc=False):
    """Promises that what follows is later than `time_ms` (Akidau et al., MillWheel, 2013); what is not, is late. Who
    sends one is not idle, whether it moves or not.

    On a channel it is its sender's. `merged`: it holds for all inputs of the step already, and of a restored one that
    lay with another subtask, for the key groups (first, last) in `groups` alone.
    """

    time_ms: int
    merged: bool = False
    groups: tuple[int, int] | None = None


class Idle(msgspec.Struct, frozen=True, gc=False):
    """Until the next watermark nobody is to wait for its sender's."""

    merged: bool = False


TimeMark = Watermark | Idle
IDLE: Final = Idle()

Element = Batch | TimeMark | Barrier | EndOfData | EndOfKeys
END: Final = EndOfData()


class OutputTag(Generic[T]):
    """Names a side output; equal by name."""

    __slots__ = ("name", "type")

    def __init__(self, name: str, type: builtins.type[T]) -> None:
        self.name = name
        self.type = type

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OutputTag) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"OutputTag({self.name!r})"


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """What could not be decoded or processed, where it came from, and why."""

    uid: str
    origin: str
    value: Any
    error: str
    traceback: str


ErrorRoute = Literal["fail"] | OutputTag[DeadLetter]
