"""A queue that is open: its folder's lock, its partitions, and the backlog that bounds what may be put."""

import asyncio
import os
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from connectors.queue import disk
from connectors.queue.committing import GroupCommit, QueuePosition, Submitted
from connectors.queue.errors import CorruptQueue, QueueInUse
from connectors.queue.lock import FolderLock
from connectors.queue.log import PartitionLog, Retention
from streamactors.clock import uninterrupted

_PARTITION: Final = re.compile(r"partition-(\d+)")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the log is, and how it is cut."""

    folder: str
    partitions: int
    segment_bytes: int
    retention: Retention


@dataclass(slots=True)
class Partition:
    """`read_to` and `read_number`: how far a job has read it; what was there before any did is no backlog."""

    commit: GroupCommit
    read_to: int
    read_number: int
    owner: str | None = None

    @property
    def pending(self) -> int:
        return self.commit.next_number + self.commit.unwritten - self.read_number

    @property
    def pending_bytes(self) -> int:
        return self.commit.end + self.commit.unwritten_bytes - self.read_to


@dataclass
class Session:
    """From opening to closing, on one event loop."""

    loop: asyncio.AbstractEventLoop
    layout: Layout
    max_pending: int
    max_pending_bytes: int
    lock: FolderLock
    partitions: dict[int, Partition] = field(default_factory=dict)
    ended: bool = False
    holders: int = 0
    _waiting: "OrderedDict[asyncio.Future[QueuePosition], tuple[int, Submitted]]" = field(default_factory=OrderedDict)
    _listeners: set[Callable[[], None]] = field(default_factory=set)

    @classmethod
    async def open(cls, layout: Layout, max_pending: int, max_pending_bytes: int) -> "Session":
        """Raises QueueInUse, CorruptQueue, WriteFailed."""
        lock = FolderLock(layout.folder)
        session = cls(asyncio.get_running_loop(), layout, max_pending, max_pending_bytes, lock)
        logs: dict[int, PartitionLog] = {}
        try:
            await uninterrupted(asyncio.to_thread(_open_logs, layout, lock, logs))
        except BaseException:
            for log in logs.values():
                log.close()
            lock.let_go()
            raise
        for number, log in logs.items():
            commit = GroupCommit(number, log, session._changed)
            session.partitions[number] = Partition(commit, commit.end, commit.next_number)
        return session

    async def close(self) -> None:
        """Once all that was submitted is durable, or refused. Not to be cancelled."""
        try:
            await self.settle()
        finally:
            self.abandon()

    async def settle(self) -> None:
        """Until all that was submitted is durable, or refused."""
        for partition in self.partitions.values():
            await partition.commit.settle()

    def abandon(self) -> None:
        """Let go of the files, at once."""
        for partition in self.partitions.values():
            partition.commit.log.close()
        self.lock.let_go()

    # --------------------------------------------------------------------------------------------------------- backlog
    @property
    def pending(self) -> int:
        return sum(partition.pending for partition in self.partitions.values())

    def has_room(self) -> bool:
        if self._waiting:
            return False  # who waits goes first
        return self._fits()

    def submit(self, partition: int, record: Submitted) -> None:
        self.partitions[partition].commit.submit(record)

    def wait_for_room(self, partition: int, record: Submitted) -> None:
        """It is submitted as soon as it fits, in turn."""
        self._waiting[record.answer] = partition, record

    def leave(self, record: Submitted) -> None:
        """Whoever put it has gone. No matter if it does not wait for room."""
        self._waiting.pop(record.answer, None)

    @property
    def quiet(self) -> bool:
        """Nobody waits for room."""
        return not self._waiting

    def refuse_waiting(self, error: Exception) -> None:
        while self._waiting:
            answer, _ = self._waiting.popitem(last=False)
            if not answer.done():
                answer.set_exception(error)

    def _fits(self) -> bool:
        if self.pending >= self.max_pending:
            return False
        used = sum(partition.pending_bytes for partition in self.partitions.values())
        return used < self.max_pending_bytes

    def _admit(self) -> None:
        while self._waiting and self._fits():
            answer, (partition, record) = self._waiting.popitem(last=False)
            if not answer.done():  # cancelled just now
                self.submit(partition, record)

    # --------------------------------------------------------------------------------------------------------- reading
    def claim(self, number: int, owner: str) -> Partition:
        """Raises QueueInUse: a record is for one job."""
        partition = self.partitions[number]
        if partition.owner is not None:
            raise QueueInUse(
                f"the queue in {self.layout.folder!r} is being read by {partition.owner} already, so not by {owner} "
                "too: give each job a queue of its own",
                retryable=partition.owner == owner,  # an earlier attempt, which is about to let go
            )
        partition.owner = owner
        return partition

    def read_up_to(self, partition: Partition, offset: int, number: int) -> None:
        """A job has taken what lies before; or goes back to there."""
        partition.read_to, partition.read_number = offset, number
        self._admit()
        if self.ended:
            self._tell()

    def listen(self, listener: Callable[[], None]) -> None:
        """It is called when there is more to read, or the end."""
        self._listeners.add(listener)

    def forget(self, listener: Callable[[], None]) -> None:
        self._listeners.discard(listener)

    def end(self) -> None:
        self.ended = True
        self._changed()

    def _changed(self) -> None:
        self._admit()  # a group that was refused leaves room
        self._tell()

    def _tell(self) -> None:
        for listener in list(self._listeners):
            listener()


def _open_logs(layout: Layout, lock: FolderLock, logs: dict[int, PartitionLog]) -> None:
    """All partitions that are there, and those that are to be, into `logs`, which the caller closes."""
    disk.make_folder(layout.folder)
    lock.acquire()
    numbers = sorted({*range(layout.partitions), *_numbers_in(layout.folder)})
    for number in numbers:
        folder = os.path.join(layout.folder, f"partition-{number}")
        log = PartitionLog(folder, segment_bytes=layout.segment_bytes, retention=layout.retention)
        logs[number] = log
        log.open()


def _numbers_in(folder: str) -> list[int]:
    with disk.refused_reads(folder):
        found = [int(match[1]) for name in os.listdir(folder) if (match := _PARTITION.fullmatch(name))]
    if sorted(found) != list(range(len(found))):
        raise CorruptQueue(f"{folder!r} has partitions {sorted(found)}: one in between is missing. Put its folder back")
    return found
