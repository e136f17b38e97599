"""`deduplicate`: of the records of one key, and of one value of `by` if that is given, the first or the newest.

Invariants. `first`: a record comes out if none has that is closer to it than the span, before or after; without a span,
if none has. So whatever the disorder, none is dropped but for one that came out. `last`: a record comes out unless one
has that is newer; so the last that comes out is the newest.

The span is event time where there are watermarks: then what is remembered goes once the watermark has passed the span,
so that it makes no difference for records that are not late. Those that are late are judged by what is left. Else it is
processing time, as a time to live.
"""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from streamactors.errors import InvalidDataflow
from streamactors.operators.base import Context, KeyedOperator, Link, LinkContext, OperatorSpec, is_async
from streamactors.operators.joins.base import time_of
from streamactors.operators.joins.rows import At, Rows, add, between, taken
from streamactors.operators.process import Hook, ProcessLink
from streamactors.state.descriptors import MapState, Ttl, ValueState
from streamactors.time.timers import Timer

Keep = Literal["first", "last"]
_MILLISECOND: Final = dt.timedelta(milliseconds=1)


class _Deduplicate(KeyedOperator[Any, Any, Any]):
    """`span` in milliseconds of event time; None: there is none, or the state has a time to live."""

    keep: Keep
    span: int | None
    timed: bool
    """Whether there is event time."""

    def _time(self, ctx: Context[Any, Any]) -> int:
        """Without event time, the order of arrival decides."""
        return time_of(ctx) if self.timed else 0

    def _passes(self, times: list[int], time: int) -> bool:
        """`times`: of those that came out, as far as they count."""
        if not times:
            return True
        if self.keep == "last":
            return time >= times[-1]
        span = self.span
        return span is not None and all(abs(time - other) >= span for other in times)

    def _with(self, times: list[int], time: int) -> list[int]:
        return [time] if self.keep == "last" or self.span is None else [*times, time]

    def _still(self, times: list[int], now: int) -> list[int]:
        """Those that count for a record that is not late."""
        span = self.span or 0
        return [time for time in times if time + span > now]


class OfKey(_Deduplicate):
    seen: ValueState[list[int]]

    def process(self, row: Any, ctx: Context[Any, Any], /) -> None:
        time, times = self._time(ctx), self.seen.get()
        if not self._passes(times, time):
            return
        self.seen.set(self._with(times, time))
        ctx.emit(row)
        if self.span is not None:
            ctx.timers.event(time + self.span)

    def on_timer(self, timer: Timer, ctx: Context[Any, Any], /) -> None:
        times = self._still(self.seen.get(), timer.timestamp)
        if times:
            self.seen.set(times)
            ctx.timers.event(min(times) + (self.span or 0))  # there is one, unless the span has become longer
        else:
            self.seen.clear()


class OfValue(_Deduplicate):
    by: Callable[[Any], Any]
    seen: MapState[Any, list[int]]
    due: Rows[Any]
    """By the time at which one of its times counts no more: the value."""

    def process(self, row: Any, ctx: Context[Any, Any], /) -> None:
        value = self.by(row)
        time, times = self._time(ctx), self.seen.get(value, [])
        if not self._passes(times, time):
            return
        self.seen[value] = self._with(times, time)
        ctx.emit(row)
        if self.span is not None:
            add(self.due, time + self.span, value)
            ctx.timers.event(time + self.span)

    def on_timer(self, timer: Timer, ctx: Context[Any, Any], /) -> None:
        for _, value in taken(self.due, timer.timestamp):
            times = self._still(self.seen.get(value, []), timer.timestamp)
            if times:
                self.seen[value] = times
                due = min(times) + (self.span or 0)
                if all(other != value for _, other in between(self.due, due, due)):  # the span has become longer
                    add(self.due, due, value)
                    ctx.timers.event(due)
            else:
                self.seen.pop(value, None)


@dataclass(frozen=True)
class DeduplicateSpec(OperatorSpec):
    """`by`: a function of a record, or None; `within` in milliseconds."""

    keep: Keep
    by: Any
    by_type: Any
    within: int | None

    @property
    def kind(self) -> str:
        return "deduplicate"

    @property
    def keeps_record_ids(self) -> bool:
        return True

    @property
    def keyed_state(self) -> bool:
        return True

    def validate(self, uid: str) -> None:
        if self.keep not in ("first", "last"):
            raise InvalidDataflow(f"deduplicate {uid!r}: keep={self.keep!r}: 'first' or 'last'")
        if self.by is not None and (not callable(self.by) or is_async(self.by)):
            raise InvalidDataflow(f"deduplicate {uid!r}: by= is a plain function of a record, not {self.by!r}")
        if self.within is not None and self.within <= 0:
            raise InvalidDataflow(f"deduplicate {uid!r}: within= is a time above zero, not {self.within} ms")

    def link(self, ctx: LinkContext) -> Link:
        operator = self._of_key(ctx) if self.by is None else self._of_value(ctx, self.by)
        timed = ctx.watermarks and self.within is not None
        on_timer = Hook.of(operator.on_timer, keyed=True) if timed else None
        return ProcessLink(ctx, operator, Hook.of(operator.process, keyed=True), on_timer)

    def _span(self, ctx: LinkContext) -> int | None:
        return self.within if ctx.watermarks else None

    def _ttl(self, ctx: LinkContext) -> Ttl | None:
        return None if ctx.watermarks or self.within is None else Ttl(self.within * _MILLISECOND)

    def _of_key(self, ctx: LinkContext) -> _Deduplicate:
        spec = self

        class Made(OfKey):
            keep, span, timed = spec.keep, spec._span(ctx), ctx.watermarks
            seen = ValueState[list[int]](list[int], default_factory=list, ttl=spec._ttl(ctx))

        return Made()

    def _of_value(self, ctx: LinkContext, function: Any) -> _Deduplicate:
        spec = self

        class Made(OfValue):
            keep, span, timed = spec.keep, spec._span(ctx), ctx.watermarks
            by = staticmethod(function)
            seen = MapState[Any, list[int]](spec.by_type, list[int], ttl=spec._ttl(ctx))
            due = MapState[At, Any](tuple[int, int], spec.by_type)

        return Made()
