"""Where a subtask's elements come from: its mailbox, or for a source, a split reader.

Invariant of `SourceInput`: `positions()` are exact between two calls of `take`: reading from them again yields exactly
the records that `take` has not given yet.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from streamactors.actors.mailbox import Mailbox
from streamactors.elements import END, Batch, DeadLetter, Element, TimeMark
from streamactors.errors import InvalidDataflow, RecordFailed
from streamactors.operators import record_ids
from streamactors.operators.base import dead_letter
from streamactors.operators.timestamps import RefusedRecords
from streamactors.sources import InputProgress, SourceBatch, SplitReader, UndecodableRecord
from streamactors.time.alignment import Aligned, AlignmentGroup
from streamactors.time.timestamps import TimestampAssigner
from streamactors.time.watermarks import SplitWatermarks

log = logging.getLogger("streamactors.source")


class Input(Protocol):
    """What the loop takes from. `take` never waits; whoever has something new sets the actor's signal."""

    channels: int
    """Input channels that barriers are aligned over; 0 for a source, whose barriers come by control."""

    async def open(self) -> None: ...
    def take(self, *, full: bool = False) -> tuple[int, Element] | None:
        """`full`: no records, whatever there may be."""

    def stop(self, *, drain: bool) -> None: ...
    def resume(self) -> None:
        """Read on, after a `stop` that did not drain."""

    def progress(self) -> InputProgress | None: ...
    def snapshot(self, checkpoint: int, *, savepoint: bool = False) -> dict[str, Any]: ...
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

    def resume(self) -> None:
        raise TypeError("only sources are stopped; the others follow")

    def progress(self) -> InputProgress | None:
        return None

    def snapshot(self, checkpoint: int, *, savepoint: bool = False) -> dict[str, Any]:
        return {}

    def split_times(self) -> dict[str, Any]:
        return {}

    async def completed(self, checkpoint: int) -> None:
        return None

    def aborted(self, checkpoint: int) -> None:
        return None

    async def close(self) -> None:
        return None


@dataclass(frozen=True, slots=True)
class SourceTime:
    """How a source subtask tells event time. `emit`: to side outputs. `alignment`: whom it waits for, in reading."""

    splits: SplitWatermarks
    assigner: TimestampAssigner
    refused: RefusedRecords
    emit: Callable[[Mapping[str, Batch]], None]
    alignment: AlignmentGroup | None = None


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
        watermarks: SourceTime | None = None,
        monotonic: Callable[[], float] = float,
        names_in: str | None = None,
        retain: int = 1,
    ) -> None:
        """`dead_letters` None: an undecodable record fails the job. `watermarks` None: there are none. `names_in`: the
        flow whose records get names; None where nobody asks for them. `retain`: how many complete checkpoints
        are kept."""
        self._uid = uid
        self._reader = reader
        self._restored = restored
        self._wake = wake
        self._limit = limit
        self._dead_letters = dead_letters
        self._source_time = watermarks
        self._time = None if watermarks is None else watermarks.splits
        self._aligned = self._join()
        self._monotonic = monotonic
        self._names_in = names_in
        self._marks: deque[TimeMark] = deque()
        """To be given next."""
        self._idle_timer: asyncio.TimerHandle | None = None
        self._can_pause = True
        self._ahead: frozenset[str] = frozenset()
        """The splits that are to wait; those that do are `_paused`."""
        self._paused: frozenset[str] = frozenset()
        self._parked: deque[tuple[SourceBatch[Any], int, int]] = deque()
        """Batches of paused splits, no more than what the reader had begun to give; and how many of their values, and
        of their undecodable records, have been given."""
        self._read: asyncio.Task[SourceBatch[Any] | None] | None = None
        self._batch: SourceBatch[Any] | None = None
        self._taken = 0
        self._undecodable = 0
        self._positions: dict[str, Any] = {}
        self._progress_failed = False
        self._at_checkpoint: dict[int, dict[str, Any]] = {}
        self._savepoints: set[int] = set()
        self._retained: deque[Mapping[str, Any]] = deque(maxlen=retain)
        """Of this attempt's latest complete checkpoints. Until there are as many as are retained, others are too."""
        self._opened = False
        self._exhausted = False
        self._stopped = False
        self._ending = False
        self._ended = False
        """It has given the end of the data."""

    @property
    def splits(self) -> int:
        """How many it reads, or has read."""
        return len(self._positions)

    async def open(self) -> None:
        self._opened = True
        self._positions = dict(await self._reader.open(self._restored))
        if self._time is not None:
            self._marks.extend(self._time.opened(self._positions))

    # ------------------------------------------------------------------------------------------------------- reading
    def take(self, *, full: bool = False) -> tuple[int, Element] | None:
        if self._marks:
            return 0, self._marks.popleft()
        if self._ending:
            self._ending = False
            self._stopped = self._ended = True
            return 0, END
        if self._stopped or full:
            return None
        if self._batch is not None and self._batch.split in self._paused:
            self._park(self._batch)
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
        if self._withheld(batch := self._read.result()):
            return False
        self._read = None
        if batch is None:
            self._exhausted, self._ahead, self._paused = True, frozenset(), frozenset()
            self._leave()
            return self._receive()
        self._begin_read()
        if batch.split in self._paused:
            self._parked.append((batch, 0, 0))
            return self._receive()
        self._begin(batch)
        return True

    def _withheld(self, batch: SourceBatch[Any] | None) -> bool:
        """Whether it waits where it is: a reader that can't pause splits waits once all of them are ahead."""
        ahead = batch is not None and batch.split in self._ahead and not self._can_pause
        return ahead and self._time is not None and self._time.all_wait()

    def _begin(self, batch: SourceBatch[Any], taken: int = 0, undecodable: int = 0) -> None:
        self._batch, self._taken, self._undecodable = batch, taken, undecodable

    def _park(self, batch: SourceBatch[Any]) -> None:
        """The rest of the batch in hand, ahead of what came later."""
        if not self._unrouted(batch, self._taken):
            self._positions[batch.split] = batch.position_after(self._taken)
        self._parked.appendleft((batch, self._taken, self._undecodable))
        self._batch = None

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
        if self._names_in is not None and batch.values:
            batch.ids = self._named(self._names_in, source, batch)
        if self._source_time is not None and batch.values:
            batch = self._timed(self._source_time, source.split, batch)
        self._tell_end(source)
        return batch

    def _named(self, flow: str, source: SourceBatch[Any], batch: Batch) -> list[str | None]:
        if batch.origins is None:
            raise InvalidDataflow(
                f"source {self._uid!r} gives its records no numbers (SourceBatch.origins), and a step behind it uses "
                "record_id, which is made of them: leave record_id out, or have the connector number its records"
            )
        return record_ids.at_source(flow, self._uid, source.split, batch.origins)

    def _route_undecodable(self, source: SourceBatch[Any], stop: int) -> bool:
        """Whether there were any: the slice is then handed on even if it is empty, so that they leave at once."""
        letters: list[DeadLetter] = []
        ids: list[str | None] = []
        while self._undecodable < len(source.undecodable) and source.undecodable[self._undecodable].index <= stop:
            bad = source.undecodable[self._undecodable]
            letters.append(self._letter(bad))
            if self._names_in is not None:
                ids.append(record_ids.undecodable(self._names_in, self._uid, source.split, bad.origin))
            self._undecodable += 1
        if letters and self._dead_letters is not None:
            self._dead_letters(Batch(letters, home=(self._uid, source.split), ids=ids or None))
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
        self._leave()
        self._wake()

    def resume(self) -> None:
        self._stopped = self._ended
        if self._time is not None:
            self._time.resumed()
        if not self._exhausted and not self._ended and self._aligned is None:
            self._aligned = self._join()
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

    def _timed(self, source: SourceTime, split: str, batch: Batch) -> Batch:
        """The records with their time-stamps; what these move is told behind them."""
        stamps, refused = source.assigner.assign(batch.values)
        if refused:
            batch, sides = source.refused.sort_out(batch, refused)
            source.emit(sides)
        time = source.splits
        self._marks.extend(time.asked(self._monotonic()))
        if stamps:
            self._marks.extend(time.after(split, stamps))
        self._align(time)
        return Batch(batch.values, stamps, None, None, batch.origins, batch.split, batch.home, batch.ids)

    def _tell_end(self, source: SourceBatch[Any]) -> None:
        if self._time is not None and source.ends and self._batch is None:
            self._marks.extend(self._time.ended(source.split))
            self._align(self._time)

    def _nothing_yet(self, time: SplitWatermarks) -> tuple[int, Element] | None:
        """Splits may become idle meanwhile, or go on that had to wait."""
        self._marks.extend(time.asked(self._monotonic()))
        if self._align(time) or self._marks or self._unpark():
            return self.take()
        left = time.idle_in()
        if left is not None and self._idle_timer is None:
            self._idle_timer = asyncio.get_running_loop().call_later(max(left, 0.001), self._idle_over)
        return None

    def _idle_over(self) -> None:
        self._idle_timer = None
        self._wake()

    def _align(self, time: SplitWatermarks) -> bool:
        """Pause the splits that are too far ahead, and no others. Whether some go on that had to wait."""
        if self._aligned is None or self._exhausted:
            return False
        before = self._ahead
        self._ahead = time.too_far_ahead(self._aligned.tell(time.slowest()))
        self._aligned.wait(time.resumes_at())
        if self._ahead != before and self._can_pause:
            self._can_pause = self._reader.pause(self._ahead)
            self._paused = self._ahead if self._can_pause else frozenset()
        return bool(before - self._ahead)

    def _join(self) -> Aligned | None:
        """Those that wait for each other; it counts from when it has told where it is."""
        group = None if self._source_time is None else self._source_time.alignment
        return None if group is None else group.join(self._wake)

    def _leave(self) -> None:
        """Nobody is to wait for it, and it for nobody."""
        if self._aligned is not None:
            self._aligned.leave()
            self._aligned = None

    def _unpark(self) -> bool:
        for place, parked in enumerate(self._parked):
            if parked[0].split not in self._paused:
                del self._parked[place]
                self._begin(*parked)
                return True
        return False

    def progress(self) -> InputProgress | None:
        """None too where the reader can't tell for an error of its own: no job is to fail by it."""
        try:
            return self._reader.progress()
        except Exception as error:
            if not self._progress_failed:  # it is asked for again and again
                self._progress_failed = True
                log.warning("source %r does not tell its progress: %s: %s", self._uid, type(error).__name__, error)
            return None

    # --------------------------------------------------------------------------------------------------- checkpoints
    def split_times(self) -> dict[str, Any]:
        return {} if self._time is None else self._time.snapshot()

    def snapshot(self, checkpoint: int, *, savepoint: bool = False) -> dict[str, Any]:
        positions = dict(self._positions)
        if self._batch is not None and not self._unrouted(self._batch, self._taken):
            positions[self._batch.split] = self._batch.position_after(self._taken)
        self._at_checkpoint[checkpoint] = positions
        if savepoint:
            self._savepoints.add(checkpoint)
        return positions

    async def completed(self, checkpoint: int) -> None:
        positions = self._at_checkpoint.pop(checkpoint, None)
        self._at_checkpoint = {number: kept for number, kept in self._at_checkpoint.items() if number > checkpoint}
        if positions is None:
            return
        await self._reader.checkpoint_completed(checkpoint, positions)
        if checkpoint in self._savepoints:
            self._savepoints.discard(checkpoint)  # it lets no checkpoint go
            return
        self._retained.append(positions)
        if len(self._retained) == self._retained.maxlen:
            await self._reader.positions_released(self._retained[0])

    def aborted(self, checkpoint: int) -> None:
        self._at_checkpoint.pop(checkpoint, None)
        self._savepoints.discard(checkpoint)

    async def close(self) -> None:
        self._leave()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self._read is not None:
            self._read.cancel()
            await asyncio.gather(self._read, return_exceptions=True)
        if self._opened:
            await self._reader.close()
