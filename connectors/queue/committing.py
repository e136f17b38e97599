"""Group commit: records that are put while others are being made durable go together, in one write and one fsync.

Invariant: a put is answered only after its group is durable; records of one partition are in the log in the order in
which they were submitted; and what was submitted is written, though whoever put it has gone.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from connectors.queue.errors import QueueClosed
from connectors.queue.log import PartitionLog
from connectors.queue.segments import RECORD_BYTES
from streamactors.clock import uninterrupted

GROUP_RECORDS: Final = 1024
"""More would hold the loop for too long when all of them are answered."""
GROUP_PAYLOAD: Final = 1024 * 1024


class QueuePosition(NamedTuple):
    """Where a record is: it is `number` of its partition, counted from 0, for good."""

    partition: int
    number: int


class Submitted(NamedTuple):
    payload: bytes
    timestamp: int
    answer: asyncio.Future[QueuePosition]


class GroupCommit:
    """Of one partition. `committed` is called on the loop after each group, and after one that was refused."""

    def __init__(self, partition: int, log: PartitionLog, committed: Callable[[], None]) -> None:
        self.partition = partition
        self.log = log
        self.end = log.end
        self.next_number = log.next_number
        """What is durable, as the loop knows it: `log` may be ahead while a thread is at work."""
        self.unwritten = 0
        self.unwritten_bytes = 0
        self._committed = committed
        self._queued: deque[Submitted] = deque()
        self._needed: int | None = None
        self._task: asyncio.Task[None] | None = None

    def submit(self, record: Submitted) -> None:
        self._queued.append(record)
        self.unwritten += 1
        self.unwritten_bytes += len(record.payload) + RECORD_BYTES
        self._work()

    def trim(self, needed: int) -> None:
        """Delete what lies before that offset, some time soon."""
        self._needed = needed
        self._work()

    async def settle(self) -> None:
        """Until everything submitted is durable or refused."""
        while self._task is not None:
            await asyncio.wait([self._task])

    def _work(self) -> None:
        if self._task is None:
            # Of nobody's context: it goes on for others than whoever comes first.
            self._task = asyncio.get_running_loop().create_task(
                self._run(), name=f"commit {self.log.folder}", context=contextvars.Context()
            )

    async def _run(self) -> None:
        try:
            while self._queued or self._needed is not None:
                if self._queued:
                    await self._commit(self._next_group())
                if self._needed is not None:
                    await self._trim(self._needed)
        except BaseException as error:
            self._refuse(self._queued, error if isinstance(error, Exception) else QueueClosed(_STOPPED))
            self._queued.clear()
            raise
        finally:
            self._task = None  # here, and not in a callback: what is submitted from now on needs another

    async def _trim(self, needed: int) -> None:
        """One segment: whoever puts waits for no more, and a log that is put into without a pause is trimmed too."""
        more = await uninterrupted(asyncio.to_thread(self.log.trim, needed, 1))
        if not more and self._needed == needed:
            self._needed = None

    def _next_group(self) -> list[Submitted]:
        group = [self._queued.popleft()]
        size = len(group[0].payload)
        while self._queued and len(group) < GROUP_RECORDS:
            size += len(self._queued[0].payload)
            if size > GROUP_PAYLOAD:
                break
            group.append(self._queued.popleft())
        return group

    async def _commit(self, group: list[Submitted]) -> None:
        records = [(record.payload, record.timestamp) for record in group]
        try:
            first = await uninterrupted(asyncio.to_thread(self.log.append, records))
        except Exception as error:  # whatever it was, those who put are told, and others may go on
            self._refuse(group, error)
        except BaseException:
            self._refuse(group, QueueClosed(_STOPPED))
            raise
        else:
            self._answer(group, first)
        self._committed()

    def _answer(self, group: list[Submitted], first: int) -> None:
        self._forget(group)
        self.end, self.next_number = self.log.end, self.log.next_number
        for number, record in enumerate(group, first):
            if not record.answer.done():  # whoever put it may have gone
                record.answer.set_result(QueuePosition(self.partition, number))

    def _refuse(self, records: Iterable[Submitted], error: BaseException) -> None:
        for record in records:
            self._forget([record])
            if not record.answer.done():
                record.answer.set_exception(error)

    def _forget(self, group: list[Submitted]) -> None:
        self.unwritten -= len(group)
        self.unwritten_bytes -= sum(len(record.payload) + RECORD_BYTES for record in group)


_STOPPED: Final = "the queue's event loop was stopped before the record was durable: it may be in the log or not"
