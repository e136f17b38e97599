"""A source that the service itself feeds: what it puts is on the disk before it is told so, and read from there."""

import asyncio
import datetime as dt
import os
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, Self, TypeVar

from connectors.queue.committing import QueuePosition, Submitted
from connectors.queue.errors import QueueClosed, QueueFull, QueueInUse, RecordTooLarge
from connectors.queue.log import Retention
from connectors.queue.reader import QueueReader
from connectors.queue.session import Layout, Session
from streamactors.clock import SYSTEM, uninterrupted
from streamactors.diagnosis import Finding, PlannedStep, of_written_folder
from streamactors.elements import DeadLetter, ErrorRoute, OutputTag
from streamactors.errors import InvalidConfig, InvalidTimestamp
from streamactors.sources import SourceContext, SplitReader, SplitSource
from streamactors.state.key_groups import canonical
from streamactors.time.timestamps import LATEST

T = TypeVar("T")

LARGEST_RECORD: Final = 64 * 2**20


class Format(Protocol[T]):
    """`sa.Json`, `sa.MsgPack`, `sa.Text`, `sa.Raw`, or anything with both methods."""

    def encode(self, value: T, /) -> bytes: ...
    def decode(self, data: bytes, /) -> T: ...


class QueueSource(SplitSource[T]):
    """`await queue.put(value)` returns once the value is durable in a log in `folder`; the job reads the log.

    It opens by itself when it is first used, and stays open until `close()`; or use `async with queue:`. Opened by a
    job alone, it closes when the job ends. One process has it at a time, and one job reads it. `partitions`: logs of
    their own, which as many subtasks can read; records of one `key` are in one of them, in order; without `key` they go
    round. The number may change: keys then move, and what is left of one in its old partition has no order with what is
    new. `timestamp` (milliseconds since the epoch) is the time of the put unless given. `max_pending` records, or about
    `max_pending_bytes`, may be ahead of the job. What no retained checkpoint needs is deleted, segment by segment; for
    savepoints keep what is younger than `retention`, or the latest `retention_bytes`.
    """

    def __init__(
        self,
        folder: str,
        *,
        value: Format[T],
        partitions: int = 1,
        key: Callable[[T], object] | None = None,
        timestamp: Callable[[T], int] | None = None,
        max_pending: int = 1_000_000,
        max_pending_bytes: int = 2**30,
        retention: dt.timedelta = dt.timedelta(0),
        retention_bytes: int = 0,
        segment_bytes: int = 16 * 2**20,
        on_error: ErrorRoute = "fail",
    ) -> None:
        path = _checked_folder(folder)
        where = f"QueueSource({folder!r})"
        _check_format(where, value)
        _check_numbers(
            where,
            partitions=partitions,
            max_pending=max_pending,
            max_pending_bytes=max_pending_bytes,
            segment_bytes=segment_bytes,
        )
        if on_error != "fail" and not isinstance(on_error, OutputTag):
            raise InvalidConfig(f"{where}: on_error={on_error!r} must be 'fail' or an OutputTag")
        if retention < dt.timedelta(0) or retention_bytes < 0:
            raise InvalidConfig(f"{where}: retention and retention_bytes can't be negative")
        self.value = value
        self.name = os.path.basename(path) or path
        self._layout = Layout(path, partitions, segment_bytes, Retention(retention, retention_bytes))
        self._key = key
        self._timestamp = timestamp
        self._max_pending = max_pending
        self._max_pending_bytes = max_pending_bytes
        self._on_error = on_error
        self._session: Session | None = None
        self._turns: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None
        self._kept = False
        """Open until `close`, and not only as long as a job reads."""
        self._closed = False
        self._ended = False
        self._next_partition = 0

    # ---------------------------------------------------------------------------------------------------------- putting
    async def put(self, value: T) -> QueuePosition:
        """Returns when `value` is durable; waits while the backlog is at its bound.

        Cancelled, or with an error of the disk, it may have been put or not, but never in part; while it waits for room
        a cancelled one is not. Raises QueueClosed, RecordTooLarge, WriteFailed (disk full, …), what `value=` raises for
        a value that it can't encode, and when it has to open the log, what `open` raises.
        """
        partition, record = self._record(value)
        session = await self._accepting(record.answer)
        if session.has_room():
            session.submit(partition, record)
        else:
            session.wait_for_room(partition, record)
        try:
            return await record.answer
        except asyncio.CancelledError:
            session.leave(record)
            raise

    def put_nowait(self, value: T) -> "asyncio.Future[QueuePosition]":
        """Raises QueueFull where `put` would wait for room. The future is done when `value` is durable; the queue must
        be open."""
        session = self._session
        self._check_accepting()
        if session is None or session.loop is not asyncio.get_running_loop():
            raise QueueClosed(f"{self._where} is not open yet: `async with queue:`, or `await queue.open()`")
        if not session.has_room():
            raise QueueFull(
                f"{self._where} has {session.pending} records that the job has not read yet (max_pending="
                f"{self._max_pending}, max_pending_bytes={self._max_pending_bytes}): try again later, or use put"
            )
        partition, record = self._record(value)
        session.submit(partition, record)
        return record.answer

    @property
    def pending(self) -> int:
        """How many records the job has not read yet, of those put since the log was opened, if it has read none."""
        return 0 if self._session is None else self._session.pending

    def _record(self, value: T) -> tuple[int, Submitted]:
        payload = self.value.encode(value)
        if not isinstance(payload, bytes):
            raise TypeError(f"{self._where}: value={self.value!r}: encode() gave {type(payload).__name__!r}, not bytes")
        if len(payload) > LARGEST_RECORD:
            raise RecordTooLarge(f"{self._where}: a record of {len(payload)} bytes; {LARGEST_RECORD} are the most")
        answer = asyncio.get_running_loop().create_future()
        return self._partition_of(value), Submitted(payload, self._time_of(value), answer)

    def _time_of(self, value: T) -> int:
        if self._timestamp is None:
            return SYSTEM.time_ms()
        timestamp = self._timestamp(value)
        if type(timestamp) is not int or abs(timestamp) > LATEST:
            raise InvalidTimestamp(f"{self._where}: timestamp= gave {timestamp!r}, not milliseconds since the epoch", 0)
        return timestamp

    def _partition_of(self, value: T) -> int:
        partitions = self._layout.partitions
        if partitions == 1:
            return 0
        if self._key is not None:
            return zlib.crc32(canonical(self._key(value))) % partitions
        self._next_partition = (self._next_partition + 1) % partitions
        return self._next_partition

    async def _accepting(self, answer: "asyncio.Future[QueuePosition]") -> Session:
        self._check_accepting()
        session = self._session
        if session is None or session.loop is not answer.get_loop() or not self._kept:
            async with self._turn():
                self._check_accepting()  # it may have been closed meanwhile, and is not to be opened again then
                session = await self._kept_open()
                self._check_accepting()
        return session

    def _check_accepting(self) -> None:
        if self._ended:
            raise QueueClosed(f"{self._where} was told that no more records come, by end()")
        if self._closed:
            raise QueueClosed(f"{self._where} is closed: put while it is open, or open() it again")

    # ------------------------------------------------------------------------------------------------------ open, close
    async def open(self) -> None:
        """Raises QueueInUse naming who has it, CorruptQueue, WriteFailed. Needed only for `put_nowait`, and to see such
        errors early."""
        async with self._turn():
            self._closed = False
            await self._kept_open()

    async def close(self) -> None:
        """Take no more; return when what was put is durable. Puts that wait for room raise QueueClosed. A job that
        reads goes on, and waits for more; see `end`."""
        await uninterrupted(self._close())

    async def _close(self) -> None:
        async with self._turn():
            session = self._session_of_this_loop()
            self._kept, self._closed = False, True
            if session is not None:
                session.refuse_waiting(QueueClosed(f"{self._where} was closed while a put waited for room"))
                await session.settle()
            await self._shut_if_unused()

    def end(self) -> None:
        """No more will be put by this object: a job that reads finishes once it has read all, what is being put
        included."""
        self._ended = True
        if self._session is not None:
            self._session.end()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def hold(self) -> Session:
        """For readers: open until `release`."""
        async with self._turn():
            session = await self._session_here()
            session.holders += 1
            return session

    async def release(self) -> None:
        await uninterrupted(self._release())

    async def _release(self) -> None:
        async with self._turn():
            if self._session is not None:
                self._session.holders -= 1
                await self._shut_if_unused()

    async def _kept_open(self) -> Session:
        session = await self._session_here()
        self._kept = True
        return session

    def _session_of_this_loop(self) -> Session | None:
        """What another one left behind that is closed by now is let go of. Raises QueueInUse if it is not."""
        session = self._session
        if session is None or session.loop is asyncio.get_running_loop():
            return session
        if not session.loop.is_closed():
            raise QueueInUse(
                f"{self._where} is open on another event loop: use it from there (asyncio.run_coroutine_threadsafe)"
            )
        session.abandon()
        self._session = None
        return None

    async def _session_here(self) -> Session:
        """On this event loop."""
        session = self._session_of_this_loop()
        if session is None:
            session = await Session.open(self._layout, self._max_pending, self._max_pending_bytes)
            session.ended = self._ended
            self._session = session
        return session

    async def _shut_if_unused(self) -> None:
        session = self._session
        if session is not None and not self._kept and not session.holders:
            self._session = None
            await session.close()

    def _turn(self) -> asyncio.Lock:
        """One opens or closes at a time; a source may be used on one loop after another."""
        loop = asyncio.get_running_loop()
        if self._turns is None or self._turns[0] is not loop:
            self._turns = loop, asyncio.Lock()
        return self._turns[1]

    # --------------------------------------------------------------------------------------------------------- a source
    @property
    def bounded(self) -> bool:
        return False

    @property
    def error_tag(self) -> OutputTag[DeadLetter] | None:
        return None if self._on_error == "fail" else self._on_error

    def reader(self, ctx: SourceContext) -> SplitReader[T]:
        return QueueReader(self, ctx)

    def assign(self, split: str, parallelism: int) -> int:
        return int(split) % parallelism

    async def diagnose(self, step: PlannedStep) -> Sequence[Finding]:
        remedy = "give the user access, or name another folder for the queue"
        return await asyncio.to_thread(lambda: list(of_written_folder("folder", self._layout.folder, remedy)))

    def describe(self) -> str:
        partitions = self._layout.partitions
        return f"QueueSource {self._layout.folder!r}{f', {partitions} partitions' if partitions > 1 else ''}"

    @property
    def _where(self) -> str:
        return f"the queue in {self._layout.folder!r}"

    def __reduce__(self) -> Any:
        raise TypeError(
            f"{self._where} belongs to the process that puts into it: its source can't be sent to another one"
        )


def _checked_folder(folder: str) -> str:
    path = os.path.expanduser(os.fspath(folder))
    if not path:
        raise InvalidConfig("QueueSource: the folder is empty; name one that outlives the process")
    return os.path.abspath(path)


def _check_numbers(where: str, **settings: object) -> None:
    for name, number in settings.items():
        if not isinstance(number, int) or number < 1:
            raise InvalidConfig(f"{where}: {name}={number!r} must be a whole number of at least 1")


def _check_format(where: str, value: object) -> None:
    if isinstance(value, type) or not all(callable(getattr(value, name, None)) for name in ("encode", "decode")):
        raise InvalidConfig(f"{where}: value={value!r} must encode and decode, such as sa.Json(Order)")
