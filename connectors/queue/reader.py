"""Reads the partitions of one subtask: only what is durable, in the order of the log.

A position is [id of the log, offset of the group that holds the next record, number of that record]. An id of its own
for each log keeps a checkpoint from being applied to another one that was put in its place.
"""

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from connectors.queue.errors import CorruptQueue, PositionGone
from connectors.queue.segments import Group
from connectors.queue.session import Partition, Session
from streamactors.clock import uninterrupted
from streamactors.formats import Decoder, decode_batch
from streamactors.sources import (
    PENDING_RECORDS,
    Position,
    SourceBatch,
    SourceContext,
    SplitReader,
    UndecodableRecord,
)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

BATCH: Final = 1024
BATCH_BYTES: Final = 256 * 1024
"""Decoding holds the loop."""


class Queue(Protocol[T_co]):
    """What a reader needs of its source."""

    name: str

    @property
    def value(self) -> Decoder[T_co]: ...

    async def hold(self) -> Session: ...
    async def release(self) -> None: ...
    def assign(self, split: str, parallelism: int) -> int: ...


class PartitionCursor(Generic[T]):
    """One partition and how far it has been read."""

    def __init__(self, split: str, session: Session, partition: Partition, value: Decoder[T], name: str) -> None:
        self.split = split
        self.paused = False
        self._session = session
        self._partition = partition
        self._log = partition.commit.log
        self._value = value
        self._prefix = f"{name}[{split}]@"
        self._offset, self._number = self._log.begin, self._log.first_number
        self._groups: deque[Group] = deque()

    @property
    def position(self) -> Position:
        return [self._log.log_id.hex(), self._offset, self._number]

    def seek(self, position: Position, uid: str) -> None:
        """Raises PositionGone."""
        log_id, offset, number = position
        self._log.check((log_id, offset, number), f"source {uid!r}: the checkpoint's position {self._prefix}{number}")
        self._offset, self._number = offset, number

    def begin(self, uid: str, *, restored: bool) -> str | None:
        """At the first record. What is to be warned of, if there were others before it."""
        if not self._number:
            return None
        if restored:
            raise PositionGone(
                f"source {uid!r}: the checkpoint knows nothing of partition {self.split}, whose records before "
                f"{self._prefix}{self._number} are deleted by now: restore a later one, or start afresh with fresh=True"
            )
        return f"begins with {self._prefix}{self._number}: the records before it were read by an earlier job"

    def tell(self) -> None:
        """The backlog begins here."""
        self._session.read_up_to(self._partition, self._offset, self._number)

    @property
    def at_end(self) -> bool:
        """Of what is durable, and nothing more is on its way."""
        return self._number >= self._partition.commit.next_number and not self._partition.commit.unwritten

    @property
    def has_more(self) -> bool:
        return self._number < self._partition.commit.next_number

    async def read(self) -> SourceBatch[T]:
        """The next records; there must be some."""
        if not self._groups:
            until = self._partition.commit.end
            self._groups.extend(await uninterrupted(asyncio.to_thread(self._log.read, self._offset, until)))
            self._check(self._groups[0])
        taken = self._take()
        self.tell()
        return self._batch(taken)

    def _check(self, group: Group) -> None:
        if not group.first <= self._number < group.next_number:
            raise CorruptQueue(
                f"{self._log.folder!r}: record {self._number} should be at offset {group.offset}, where there are "
                f"{group.first} to {group.next_number - 1}: files of different copies were mixed. Put back one copy"
            )

    def _take(self) -> "_Taken":
        taken = _Taken(self._number, [], [], [], [])
        room, size = BATCH, BATCH_BYTES
        while self._groups and room > 0 and size > 0:
            group = self._groups[0]
            begin = self._number - group.first
            stop = _stop(group.payloads, begin, begin + room, size)
            taken.add(group, begin, stop)
            room, size = room - (stop - begin), size - sum(map(len, group.payloads[begin:stop]))
            self._number, self._offset = group.first + stop, group.offset
            if stop == len(group.payloads):
                self._offset = group.end
                self._groups.popleft()
        return taken

    def _batch(self, taken: "_Taken") -> SourceBatch[T]:
        values, numbers, stamps, undecodable = self._decoded(taken)
        log_id, after = self._log.log_id.hex(), self.position

        def position_after(count: int) -> Position:
            if count == len(values):
                return after
            return [log_id, taken.offset_of(numbers[count]), numbers[count]]

        return SourceBatch(
            self.split,
            values,
            position_after,
            timestamps=stamps,
            origins=numbers,
            origin_prefix=self._prefix,
            undecodable=undecodable,
            ends=self._session.ended and self._session.quiet and self.at_end,
        )

    def _decoded(self, taken: "_Taken") -> tuple[list[T], Sequence[int], Sequence[int], Sequence[UndecodableRecord]]:
        """All at once; one by one only where that fails."""
        numbers = range(taken.first, taken.first + len(taken.payloads))
        try:
            return decode_batch(self._value, taken.payloads), numbers, taken.timestamps, ()
        except Exception:  # whatever it was, it comes again below, with its record
            return self._one_by_one(taken, numbers)

    def _one_by_one(
        self, taken: "_Taken", numbers: Sequence[int]
    ) -> tuple[list[T], Sequence[int], Sequence[int], Sequence[UndecodableRecord]]:
        values: list[T] = []
        good: list[int] = []
        stamps: list[int] = []
        undecodable: list[UndecodableRecord] = []
        for number, payload, stamp in zip(numbers, taken.payloads, taken.timestamps, strict=True):
            try:
                values.append(self._value.decode(payload))
            except Exception as error:  # any decoder, any error: the user chose what becomes of it
                undecodable.append(UndecodableRecord(len(values), f"{self._prefix}{number}", payload, error))
            else:
                good.append(number)
                stamps.append(stamp)
        return values, good, stamps, undecodable


@dataclass(slots=True)
class _Taken:
    """Records from `first` on; of each group among them, the first record's number and the group's offset."""

    first: int
    payloads: list[bytes]
    timestamps: list[int]
    starts: list[int]
    offsets: list[int]

    def add(self, group: Group, begin: int, stop: int) -> None:
        self.starts.append(group.first + begin)
        self.offsets.append(group.offset)
        self.payloads += group.payloads[begin:stop]
        self.timestamps += group.timestamps[begin:stop]

    def offset_of(self, number: int) -> int:
        return self.offsets[bisect_right(self.starts, number) - 1]


def _stop(payloads: Sequence[bytes], begin: int, most: int, size: int) -> int:
    """Where to stop so that no more than about `size` bytes are taken; one record at least."""
    stop = begin
    while stop < min(most, len(payloads)) and size > 0:
        size -= len(payloads[stop])
        stop += 1
    return stop


class QueueReader(SplitReader[T]):
    def __init__(self, queue: Queue[T], ctx: SourceContext) -> None:
        self._queue = queue
        self._ctx = ctx
        self._session: Session | None = None
        self._cursors: deque[PartitionCursor[T]] = deque()
        self._claimed: list[Partition] = []
        self._news = asyncio.Event()
        self._wake: Callable[[], None] = self._news.set

    async def open(self, restored: Mapping[str, Position] | None) -> Mapping[str, Position]:
        self._session = session = await self._queue.hold()
        session.listen(self._wake)
        self._check_partitions(session, restored or {})
        for number in session.partitions:
            split = str(number)
            if self._queue.assign(split, self._ctx.parallelism) == self._ctx.subtask:
                self._cursors.append(self._cursor(session, split, restored))
        for cursor in self._cursors:
            cursor.tell()
        self._ctx.metrics.gauge("queue.pending", self._pending)
        self._ctx.metrics.gauge(PENDING_RECORDS, self._pending)
        return {cursor.split: cursor.position for cursor in self._cursors}

    def _pending(self) -> float:
        return float(sum(partition.pending for partition in self._claimed))

    def _check_partitions(self, session: Session, restored: Mapping[str, Position]) -> None:
        if missing := [split for split in restored if int(split) not in session.partitions]:
            raise PositionGone(
                f"source {self._ctx.uid!r}: partition {missing[0]} is not in {session.layout.folder!r}, which the "
                "checkpoint has read from: put its folder back, or start afresh with fresh=True"
            )

    def _cursor(self, session: Session, split: str, restored: Mapping[str, Position] | None) -> PartitionCursor[T]:
        ctx = self._ctx
        owner = f"source {ctx.uid!r} of flow {ctx.flow!r}"
        partition = session.claim(int(split), owner)
        self._claimed.append(partition)
        cursor = PartitionCursor(split, session, partition, self._queue.value, self._queue.name)
        if restored is not None and split in restored:
            cursor.seek(restored[split], ctx.uid)
        elif warning := cursor.begin(ctx.uid, restored=restored is not None):
            ctx.log.warning("%s", warning)
        return cursor

    async def read(self) -> SourceBatch[T] | None:
        assert self._session is not None
        while True:
            self._news.clear()
            for cursor in list(self._cursors):
                self._cursors.rotate(-1)
                if cursor.has_more and not cursor.paused:
                    return await cursor.read()
            if self._session.ended and self._session.quiet and all(cursor.at_end for cursor in self._cursors):
                return None
            await self._news.wait()

    def pause(self, splits: Collection[str]) -> bool:
        for cursor in self._cursors:
            cursor.paused = cursor.split in splits
        self._news.set()
        return True

    async def positions_released(self, positions: Mapping[str, Position]) -> None:
        if self._session is not None:
            for split, (_, offset, _) in positions.items():
                self._session.partitions[int(split)].commit.trim(offset)

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is None:
            return
        session.forget(self._wake)
        for partition in self._claimed:
            partition.owner = None
        self._cursors.clear()
        await self._queue.release()
