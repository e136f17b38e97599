"""Time-stamps and watermarks given in mid-stream, and where records go that can have none.

Invariants of `TimestampLink`. What it tells is at most what its generator says after the records that it has given on,
and never goes backwards. Watermarks from upstream end here (but the last one): the records have another time now. Its
generator is stored with what it has told, so that after a crash it goes on from there. After a rescale each subtask
begins with a generator that has seen nothing, and with the least watermark of the old subtasks, up to which every
record was late before: so no record becomes late that would not have been.
"""

import asyncio
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from streamactors.elements import (
    IDLE,
    MAX_TIME,
    MIN_TIME,
    Batch,
    DeadLetter,
    ErrorRoute,
    OutputTag,
    TimeMark,
    Watermark,
)
from streamactors.errors import InvalidDataflow, InvalidTimestamp, RecordFailed
from streamactors.metrics import MetricGroup
from streamactors.operators.base import Link, LinkContext, OperatorSpec, dead_letter
from streamactors.time.timestamps import Refused
from streamactors.time.watermarks import WatermarkGenerator, Watermarks


class RefusedRecords:
    """Routes the records of one subtask that have no usable time-stamp: to `ahead` those that are too far in the
    future, to `errors` (as dead letters) the others, and those too where there is no `ahead`. None: the job fails."""

    def __init__(
        self,
        uid: str,
        ahead: OutputTag[Any] | None,
        errors: OutputTag[DeadLetter] | None,
        metrics: MetricGroup,
        name: str | None = None,
    ) -> None:
        self._uid = uid
        self._name = name
        self._ahead = ahead
        self._errors = errors
        self._count_ahead = metrics.counter("ahead_records")
        self._count_bad = metrics.counter("bad_timestamps")

    def sort_out(self, batch: Batch, refused: Sequence[Refused]) -> tuple[Batch, dict[str, Batch]]:
        """The other records, and the side outputs by tag name. Raises RecordFailed for the first that has no route."""
        indices = {each.index for each in refused}
        kept = batch.select([index not in indices for index in range(len(batch))])
        ahead = [each for each in refused if each.ahead and self._ahead is not None]
        bad = [each for each in refused if not each.ahead or self._ahead is None]
        sides = {}
        if bad:
            tag = self._errors
            if tag is None:
                raise self._failed(batch, bad[0])
            sides[tag.name] = self._letters(batch, bad)
        if ahead and self._ahead is not None:
            sides[self._ahead.name] = batch.take([each.index for each in ahead])
        self._count_bad.inc(len(bad))
        self._count_ahead.inc(sum(each.ahead for each in refused))
        return kept, sides

    def _letters(self, batch: Batch, bad: Sequence[Refused]) -> Batch:
        taken = batch.take([each.index for each in bad])
        origins = [batch.origin(each.index) for each in bad]
        rows = zip(taken.values, origins, bad, strict=True)
        letters = [dead_letter(self._uid, value, origin, each.error) for value, origin, each in rows]
        return Batch(letters, None, None, taken.groups, None, "", batch.home, taken.ids)

    def _failed(self, batch: Batch, refused: Refused) -> RecordFailed:
        error, value = refused.error, batch.values[refused.index]
        what = f"timestamp: {type(error).__name__}: {error}, in {reprlib.repr(value)}"
        known = isinstance(error, InvalidTimestamp)
        failed = RecordFailed(self._uid, what, origin=batch.origin(refused.index), name=self._name, retryable=not known)
        failed.__cause__ = error
        return failed


class TimestampLink(Link):
    """Gives records new time-stamps, and tells watermarks of its own."""

    gives_time = True

    def __init__(self, ctx: LinkContext, watermarks: Watermarks[Any], on_error: ErrorRoute) -> None:
        super().__init__(ctx)
        tag = on_error if isinstance(on_error, OutputTag) else None
        reached, stored = _stored(ctx)
        self._assigner = watermarks.assigner(ctx.time_ms, reached)
        self._refused = RefusedRecords(ctx.uid, watermarks.ahead, tag, ctx.operator.metrics, ctx.name)
        self._generator: WatermarkGenerator = watermarks.generator()
        if stored:
            self._generator.restore(stored[0])
        self._begun = bool(stored)
        """Whether the generator has seen a record."""
        self._idleness = None if watermarks.idle_after is None else _Idleness(watermarks.idle_after, ctx, self._idled)

    async def open(self) -> None:
        if self._idleness is not None:
            self._idleness.restart()

    async def process(self, batch: Batch) -> Batch | None:
        if self.ctx.time.idle:  # told first: whoever comes after is to wait for it again
            self.rest = batch
            self.marks = [Watermark(self.ctx.time.current)]
            return None
        stamps, refused = self._assigner.assign(batch.values)
        if refused:
            batch, self.sides = self._refused.sort_out(batch, refused)
        if self._idleness is not None:
            self._idleness.restart()
        if not stamps:
            return None
        self._begun = True
        reached = self._generator.advance(stamps)
        if reached > self.ctx.time.current:
            self.marks = [Watermark(reached)]
        return Batch(batch.values, stamps, None, batch.groups, batch.origins, batch.split, batch.home, batch.ids)

    def translate(self, mark: TimeMark) -> Sequence[TimeMark]:
        """What event time upstream is to those after it: no input is to be waited for, or all has come."""
        if isinstance(mark, Watermark) and mark.time_ms != MAX_TIME:
            return ()
        if self._idleness is not None:
            self._idleness.stop()
        return (mark,)

    def split_times(self) -> dict[str, Any]:
        """The generator, stored as a source's split is."""
        state = [self._generator.snapshot()] if self._begun else []
        return {str(self.ctx.operator.subtask): [self.ctx.time.stored, *state]}

    async def close(self) -> None:
        if self._idleness is not None:
            self._idleness.stop()

    def _idled(self) -> None:
        self.marks = [IDLE]


class _Idleness:
    """Rings when nothing has come for `seconds`. Time in which something waits to be processed does not count."""

    def __init__(self, seconds: float, ctx: LinkContext, ring: Callable[[], None]) -> None:
        self._seconds = seconds
        self._ctx = ctx
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None
        self._last = 0.0

    def restart(self) -> None:
        """A record has come. One timer is enough for many of them."""
        self._last = asyncio.get_running_loop().time()
        if self._timer is None:
            self._set(self._seconds)

    def _set(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(max(seconds, 0.001), self._over)

    def _over(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        if not self._ctx.starved():
            self._last = now
        left = self._last + self._seconds - now
        if left > 0:
            self._set(left)
            return
        self._ring()
        self._ctx.wake()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _stored(ctx: LinkContext) -> tuple[list[int], list[Any]]:
    """From a checkpoint: how far event time had come, and the generator's state if it had begun."""
    known = [ctx.time.current] if ctx.time.current > MIN_TIME else []
    stored = ctx.split_times.get(str(ctx.operator.subtask))
    return known, [] if stored is None else list(stored[1:])


@dataclass(frozen=True)
class TimestampSpec(OperatorSpec):
    """`with_timestamps`."""

    watermarks: Watermarks[Any]
    on_error: ErrorRoute = "fail"

    @property
    def kind(self) -> str:
        return "with_timestamps"

    @property
    def keeps_record_ids(self) -> bool:
        return True

    @property
    def gives_time(self) -> bool:
        return True

    @property
    def error_tag(self) -> OutputTag[DeadLetter] | None:
        return self.on_error if isinstance(self.on_error, OutputTag) else None

    @property
    def ahead_tag(self) -> OutputTag[Any] | None:
        return self.watermarks.ahead

    def validate(self, uid: str) -> None:
        if not self.watermarks.generated:
            raise InvalidDataflow(f"step {uid!r}: Watermarks.none() gives no time-stamps: leave with_timestamps out")
        if self.watermarks.aligned:
            raise InvalidDataflow(
                f"step {uid!r}: align is for sources, which can be paused: give it to flow.source(…, watermarks=…)"
            )

    def link(self, ctx: LinkContext) -> Link:
        return TimestampLink(ctx, self.watermarks, self.on_error)
