"""Where a subtask's elements come from: its mailbox, or for a source, a split reader.

Invariant of `SourceInput`: `positions()` are exact between two calls of `take`: reading from them again yields exactly
the records that `take` has not given yet.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from streamactors.actors.mailbox import Mailbox
from streamactors.elements import END, Batch, DeadLetter, Element, TimeMark
from streamactors.errors import InvalidTimestamp, RecordFailed
from streamactors.operators.base import dead_letter, done_of
from streamactors.sources import SourceBatch, SplitReader, UndecodableRecord
from streamactors.time.watermarks import SplitWatermarks


class Input(Protocol):
    """What the loop takes from. `take` never waits; whoever has something new sets the actor's signal."""

    channels: int
    """Input channels that barriers are aligned over; 0 for a source, whose barriers come by control."""

    async def open(self) -> None: ...
    def take(self) -> tuple[int, Element] | None: ...
    def stop(self, *, drain: bool) -> None: ...
    def snapshot(self, checkpoint: int) -> dict[str, Any]: ...
    def split_times(self) -> dict[str, Any]: ...
    async def completed(self, checkpoint: int) -> None: ...
    def aborted(self, checkpoint: int) -> None: ...
    async def close(self) -> None: ...


class MailboxInput:
    """Elements from upstream subtasks."""

    def __init__(self, mailbox: Mailbox[Element], channels: int) -> None:
        self.channels = channels
        self.take = mailbox.take

    async def open(self) -> None:
        return None

    def stop(self, *, drain: bool) -> None:
        raise TypeError("only sources are stopped; the others follow")

    def snapshot(self, checkpoint: int) -> dict[str, Any]:
        return {}

    def split_times(self) -> dict[str, Any]:
        return {}

    async def completed(self, checkpoint: int) -> None:
        return None

    def aborted(self, checkpoint: int) -> None:
        return None

    async def close(self) -> None:
        return None


class SourceInput:
    """Reads ahead by one batch; hands out at most `limit()` records at a time."""

    channels = 0

    def __init__(
        self,
        uid: str,
        reader: SplitReader[Any],
        restored: Mapping[str, Any] | None,
        *,
        wake: Callable[[], None],
        limit: Callable[[], int],
        dead_letters: Callable[[Batch], None] | None,
        watermarks: SplitWatermarks | None = None,
        monotonic: Callable[[], float] = float,
    ) -> None:
        """`dead_letters` None: an undecodable record fails the job. `watermarks` None: there are none."""
        self._uid = uid
        self._reader = reader
        self._restored = restored
        self._wake = wake
        self._limit = limit
        self._dead_letters = dead_letters
        self._time = watermarks
        self._monotonic = monotonic
        self._marks: deque[TimeMark] = deque()
        """To be given next."""
        self._idle_timer: asyncio.TimerHandle | None = None
        self._can_pause = True
        self._paused: frozenset[str] = frozenset()
        self._parked: deque[SourceBatch[Any]] = deque()
        """Of paused splits; no more than what the reader had begun to give."""
        self._read: asyncio.Task[SourceBatch[Any] | None] | None = None
        self._batch: SourceBatch[Any] | None = None
        self._taken = 0
        self._undecodable = 0
        self._positions: dict[str, Any] = {}
        self._at_checkpoint: dict[int, dict[str, Any]] = {}
        self._opened = False
        self._exhausted = False
        self._stopped = False
        self._ending = False

    async def open(self) -> None:
        self._opened = True
        self._positions = dict(await self._reader.open(self._restored))
        if self._time is not None:
            self._marks.extend(self._time.opened(self._positions))

    # ------------------------------------------------------------------------------------------------------- reading
    def take(self) -> tuple[int, Element] | None:
        if self._marks:
            return 0, self._marks.popleft()
        if self._ending:
            self._ending = False
            self._stopped = True
            return 0, END
        if self._stopped:
            return None
        if self._batch is None and not self._receive():
            return None if self._time is None else self._nothing_yet(self._time)
        if self._time is not None and self._herald(self._time):
            return 0, self._marks.popleft()
        batch = self._next_slice()
        return (0, batch) if batch is not None else self.take()

    def _receive(self) -> bool:
        """Whether there is a batch, or the end, to go on with; a read is under way otherwise."""
        if self._unpark():
            return True
        if self._exhausted:
            self._ending = True
            return True
        if self._read is None:
            self._begin_read()
            return False
        if not self._read.done():
            return False
        batch = self._read.result()
        self._read = None
        if batch is None:
            self._exhausted, self._paused = True, frozenset()
            return self._receive()
        self._begin_read()
        if batch.split in self._paused:
            self._parked.append(batch)
            return self._receive()
        self._begin(batch)
        return True

    def _begin(self, batch: SourceBatch[Any]) -> None:
        self._batch, self._taken, self._undecodable = batch, 0, 0

    def _begin_read(self) -> None:
        self._read = asyncio.get_running_loop().create_task(self._reader.read(), name=f"read {self._uid}")
        self._read.add_done_callback(lambda _: self._wake())

    def _next_slice(self) -> Batch | None:
        source = self._batch
        if source is None:
            return None
        start = self._taken
        stop = min(start + self._limit(), len(source.values))
        self._taken = stop
        routed = self._route_undecodable(source, stop)
        if stop == len(source.values):
            self._positions[source.split] = source.position_after(stop)
            self._batch = None
        if start == stop and not routed:
            self._tell_end(source)
            return None
        home = self._uid, source.split
        batch = Batch(source.values, source.timestamps, None, None, source.origins, source.origin_prefix, home)
        batch = batch.slice(start, stop)
        if self._time is not None and batch.values:
            batch = self._timed(self._time, source.split, batch)
        self._tell_end(source)
        return batch

    def _route_undecodable(self, source: SourceBatch[Any], stop: int) -> bool:
        """Whether there were any: the slice is then handed on even if it is empty, so that they leave at once."""
        letters: list[DeadLetter] = []
        while self._undecodable < len(source.undecodable) and source.undecodable[self._undecodable].index <= stop:
            letters.append(self._letter(source.undecodable[self._undecodable]))
            self._undecodable += 1
        if letters and self._dead_letters is not None:
            self._dead_letters(Batch(letters, home=(self._uid, source.split)))
        return bool(letters)

    def _unrouted(self, source: SourceBatch[Any], taken: int) -> bool:
        """Whether undecodable records ahead of the next value have not been handed on, as when nothing of the batch has
        been given yet: then the position is still the one before it."""
        bad = source.undecodable
        return self._undecodable < len(bad) and bad[self._undecodable].index <= taken

    def _letter(self, record: UndecodableRecord) -> DeadLetter:
        if self._dead_letters is None:
            what = f"undecodable: {type(record.error).__name__}: {record.error}"
            # Not worth a restart: the same bytes would be refused again.
            raise RecordFailed(self._uid, what, origin=record.origin, retryable=False) from record.error
        return dead_letter(self._uid, record.value, record.origin, record.error)

    def stop(self, *, drain: bool) -> None:
        """Give nothing more; with `drain`, the end of data."""
        if drain and not self._stopped:
            self._ending = True
        else:
            self._stopped = True
        self._wake()

    # ---------------------------------------------------------------------------------------------------- event time
    def _herald(self, time: SplitWatermarks) -> bool:
        """Whether something is to be told ahead of the records in hand."""
        source = self._batch
        if source is not None:
            self._marks.extend(time.found(source.split))
            if self._taken < len(source.values):
                self._marks.extend(time.before(source.split, self._monotonic()))
        return bool(self._marks)

    def _timed(self, time: SplitWatermarks, split: str, batch: Batch) -> Batch:
        """The records with their time-stamps; what these move is told behind them."""
        values = iter(batch.values)
        try:
            stamps = time.stamps(values)
        except Exception as error:
            known = isinstance(error, InvalidTimestamp)
            index = error.record if isinstance(error, InvalidTimestamp) else done_of(values, len(batch)) - 1
            what = f"timestamp: {type(error).__name__}: {error}"
            raise RecordFailed(self._uid, what, origin=batch.origin(index), retryable=not known) from error
        self._marks.extend(time.asked(self._monotonic()))
        self._marks.extend(time.after(split, stamps))
        self._align(time)
        return Batch(batch.values, stamps, None, None, batch.origins, batch.split, batch.home)

    def _tell_end(self, source: SourceBatch[Any]) -> None:
        if self._time is not None and source.ends and self._batch is None:
            self._marks.extend(self._time.ended(source.split))
            self._align(self._time)

    def _nothing_yet(self, time: SplitWatermarks) -> tuple[int, Element] | None:
        """Splits may become idle meanwhile."""
        self._marks.extend(time.asked(self._monotonic()))
        self._align(time)
        if self._marks or self._unpark():
            return self.take()
        left = time.idle_in()
        if left is not None and self._idle_timer is None:
            self._idle_timer = asyncio.get_running_loop().call_later(max(left, 0.001), self._idle_over)
        return None

    def _idle_over(self) -> None:
        self._idle_timer = None
        self._wake()

    def _align(self, time: SplitWatermarks) -> None:
        """Pause the splits that are too far ahead, and no others."""
        ahead = time.too_far_ahead()
        if ahead != self._paused and self._can_pause and not self._exhausted:
            self._can_pause = self._reader.pause(ahead)
            self._paused = ahead if self._can_pause else frozenset()

    def _unpark(self) -> bool:
        for batch in self._parked:
            if batch.split not in self._paused:
                self._parked.remove(batch)
                self._begin(batch)
                return True
        return False

    # --------------------------------------------------------------------------------------------------- checkpoints
    def split_times(self) -> dict[str, Any]:
        return {} if self._time is None else self._time.snapshot()

    def snapshot(self, checkpoint: int) -> dict[str, Any]:
        positions = dict(self._positions)
        if self._batch is not None and not self._unrouted(self._batch, self._taken):
            positions[self._batch.split] = self._batch.position_after(self._taken)
        self._at_checkpoint[checkpoint] = positions
        return positions

    async def completed(self, checkpoint: int) -> None:
        positions = self._at_checkpoint.pop(checkpoint, None)
        self._at_checkpoint = {number: kept for number, kept in self._at_checkpoint.items() if number > checkpoint}
        if positions is not None:
            await self._reader.checkpoint_completed(checkpoint, positions)

    def aborted(self, checkpoint: int) -> None:
        self._at_checkpoint.pop(checkpoint, None)

    async def close(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self._read is not None:
            self._read.cancel()
            await asyncio.gather(self._read, return_exceptions=True)
        if self._opened:
            await self._reader.close()
