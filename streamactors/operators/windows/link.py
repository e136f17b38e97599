"""Windows at work: records into windows, windows into results.

Invariants. A record is late for a window if the watermark, for its key, has come to the window's last millisecond plus
the allowed lateness: by then nothing of the window is left. A record that is late for all its windows goes to the late
output, or is dropped and counted, and is in no window; any other is in every window that it is not late for, or, if
one of them can't take it, in none. That is judged record by record, so it does not depend on how records came in
batches.

A window with an end has one event timer: for its end while that is to come and the trigger waits for it, else for when
its time is over. A window that is forgotten leaves no entry and no timer.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any, Final

from streamactors.elements import MAX_TIME, Batch, OutputTag
from streamactors.errors import InvalidTimestamp, RecordFailed, RecordRefused, StreamactorsError
from streamactors.operators.base import (
    GroupedContext,
    Link,
    LinkContext,
    RecordContext,
    blames_the_record,
    call_hook,
    dead_letter,
    is_async,
)
from streamactors.operators.process import bind_states, bind_timers
from streamactors.operators.read_ahead import read_ahead_of
from streamactors.operators.windows.base import Windowed, WindowOperator
from streamactors.operators.windows.contents import ContentsSpec, Span
from streamactors.state.backend import prefetch_of
from streamactors.state.descriptors import MapState
from streamactors.state.timers import Domain, TimerRow, keys_of
from streamactors.time.timers import NoTimers, TimerService
from streamactors.time.triggers import Trigger
from streamactors.time.windows import Window, WindowAssigner, merge_window

_SPAN: Final[Any] = tuple[int, int]
UNFIRED: Final = "window.unfired"
TICKS: Final = "window.ticks"
_start: Final = attrgetter("start")
_end: Final = attrgetter("end")
_NO_TIMESTAMP: Final = (
    "the record has no time-stamp, so it belongs to no window: give its source "
    "watermarks=sa.Watermarks.bounded(timestamp, …)"
)
_BEYOND: Final = "the record's window ends after the last moment there is"
_NO_TIMERS: Final = "a WindowOperator has no timers: when it is called is for the trigger to say"


class WindowLink(Link):
    """`operator` None: a window's result is what its contents give. `lateness`: milliseconds."""

    timers: TimerService

    def __init__(
        self,
        ctx: LinkContext,
        assigner: WindowAssigner,
        trigger: Trigger,
        lateness: int,
        late: OutputTag[Any] | None,
        contents: ContentsSpec,
        operator: WindowOperator[Any, Any, Any] | None,
    ) -> None:
        super().__init__(ctx)
        assert ctx.backend is not None
        self._assigner = assigner
        self._trigger = trigger
        self._lateness = lateness
        self._late = late
        self._operator = operator
        self._async = operator is not None and is_async(operator.process)
        self._time = ctx.time
        self._context = (GroupedContext if ctx.carry_groups else RecordContext)(self._drain, ctx.time)
        ctx.backend.attach(self._context)
        self._prefetch = prefetch_of(ctx.backend)
        self.read_ahead = read_ahead_of(ctx.backend)
        self._contents = contents.bind(ctx.backend)
        waiting = waiting_states()
        self._unfired = ctx.backend.bind(UNFIRED, waiting[UNFIRED])
        """Records since it last fired, where the trigger counts them."""
        self._ticks = ctx.backend.bind(TICKS, waiting[TICKS])
        """When it fires next by the clock, where records have come for that."""
        self.timers = TimerService(bind_timers(ctx.backend), self._context, ctx.time, watermarks=ctx.watermarks)
        self._context.timers = NoTimers(_NO_TIMERS)
        self._counted_late = ctx.operator.metrics.counter("late_records")
        self._opened = False
        if operator is not None:
            bind_states(operator, ctx)

    async def open(self) -> None:
        self._opened = True
        await self.timers.opened()
        if self._operator is not None:
            await call_hook(self._operator.open, self.ctx.operator)

    async def close(self) -> None:
        if self.read_ahead is not None:
            await self.read_ahead.close()
        if self._opened and self._operator is not None:
            self._opened = False
            await call_hook(self._operator.close)

    async def _drain(self, context: RecordContext) -> None:
        if self.ctx.drain is not None:
            await self.ctx.drain(context.take(), context.take_sides())

    # ------------------------------------------------------------------------------------------------------- batches
    async def process(self, batch: Batch) -> Batch | None:
        assert batch.keys is not None and batch.groups is not None
        context = self._context
        context.begin(stamped=self._assigner.timed or batch.timestamps is not None, grouped=self.ctx.carry_groups)
        try:
            if self._async or self.ctx.on_error != "fail":
                await self._one_by_one(batch)
            else:
                for window in self._take(batch):
                    self._give(window)
        except RecordRefused as culprit:
            raise self.failed(_cause_of(culprit), batch, self._place_of(culprit, batch)) from culprit.__cause__
        finally:
            context.clear()
        self.sides = context.take_sides()
        return context.take()

    def _place_of(self, culprit: RecordRefused, batch: Batch) -> int:
        """Values may be equal where keys are not: its key is the one in hand."""
        assert batch.keys is not None
        rows = enumerate(zip(batch.values, batch.keys, strict=True))
        return next(row for row, (value, key) in rows if value is culprit.value and key == self._context.key)

    async def _one_by_one(self, batch: Batch) -> None:
        """So that a barrier need not wait for many calls, and a record that fails can be told from the others."""
        for index in range(len(batch)):
            one = batch.slice(index, index + 1)
            if self.ctx.on_error == "fail" or self._passes(one):
                for window in self._take(one):
                    await self._give_awaiting(window)
            if self.ctx.interrupted() and index + 1 < len(batch):
                self.rest = batch.slice(index + 1, len(batch))
                return

    def _passes(self, one: Batch) -> bool:
        """Whether its windows can take a record, each of them. If not, it is among the dead letters now, and nothing
        has changed."""
        try:
            self._check(one)
        except RecordRefused as culprit:
            cause = _cause_of(culprit)
            if not blames_the_record(cause):
                raise self.failed(cause, one, 0) from cause
            self._to_dead_letters(one.values[0], one.origin(0), cause)
            return False
        return True

    def _check(self, one: Batch) -> None:
        assert one.keys is not None and one.groups is not None
        context, value = self._context, one.values[0]
        [context.key], [context.group] = one.keys, one.groups
        windows = self._assigned(one)[0] if self._assigner.timed else self._assigner.assign(0)
        try:
            for window in windows:
                self._check_window(window, value)
        except Exception as error:
            raise RecordRefused(value) from error

    def _check_window(self, window: Window, value: Any) -> None:
        taken: Sequence[Window] = [window]
        if self._assigner.merging:
            window, taken = merge_window(self._contents.windows(*window), window)
        if self._assigner.timed and self._over_at(window) <= self._context.watermark:
            return
        if window.end - 1 > MAX_TIME:
            raise InvalidTimestamp(_BEYOND, window.end)
        self._contents.check(taken, value)

    def _to_dead_letters(self, value: Any, origin: str | None, error: Exception) -> None:
        route = self.ctx.on_error
        assert isinstance(route, OutputTag)
        self.ctx.operator.metrics.counter("dead_letters").inc()
        self._context.emit_to(route, dead_letter(self.uid, value, origin, error))

    # ------------------------------------------------------------------------------------------------------- results
    def _give(self, window: Window) -> None:
        context = self._context
        try:
            windowed = self._windowed(window)
            if self._operator is None:
                context.emit(windowed)
            else:
                self._operator.process(windowed, context)
        except Exception as error:
            raise self._window_failed(window, error) from error

    async def _give_awaiting(self, window: Window) -> None:
        windowed = empty = Windowed[Any, Any](self._context.key, window.start, window.end, None)
        mark = self._context.mark()
        try:
            windowed = self._windowed(window)
            if self._operator is None:
                self._context.emit(windowed)
            elif self._async:
                await call_hook(self._operator.process, windowed, self._context)
            else:
                self._operator.process(windowed, self._context)
        except Exception as error:
            # What state can't give is no dead letter: the window's records would be lost.
            unread = windowed is empty and isinstance(error, StreamactorsError)
            if unread or self.ctx.on_error == "fail" or not blames_the_record(error):
                raise self._window_failed(window, error) from error
            self._context.roll_back(mark)
            self._to_dead_letters(windowed, None, error)

    def _windowed(self, window: Window) -> Windowed[Any, Any]:
        if self._assigner.timed:
            self._context.timestamp = window.end - 1
        return Windowed(self._context.key, window.start, window.end, self._contents.read(window))

    def _window_failed(self, window: Window, error: Exception) -> RecordFailed:
        what = f"window [{window.start}, {window.end}): {type(error).__name__}: {error}"
        retryable = not isinstance(error, StreamactorsError) or error.retryable
        return RecordFailed(self.uid, what, key=self._context.key, name=self.ctx.name, retryable=retryable)

    # --------------------------------------------------------------------------------------------- records to windows
    def _take(self, batch: Batch) -> Iterator[Window]:
        """Each window that fires, when it does, with its key in hand; it is to be read before the next step."""
        if not self._assigner.timed:
            return self._take_untimed(batch)
        windows = self._assigned(batch)
        return self._take_merging(batch, windows) if self._assigner.merging else self._take_timed(batch, windows)

    def _assigned(self, batch: Batch) -> Sequence[Sequence[Window]]:
        stamps: Any = batch.timestamps
        try:
            return self._assigner.assign_many(stamps)
        except Exception:  # then one by one, to see which it was
            return [self._assign(batch, index) for index in range(len(batch))]

    def _assign(self, batch: Batch, index: int) -> Sequence[Window]:
        assert batch.keys is not None
        self._context.key = batch.keys[index]
        stamp = None if batch.timestamps is None else batch.timestamps[index]
        try:
            if stamp is None:
                raise InvalidTimestamp(_NO_TIMESTAMP, 0)
            return self._assigner.assign(stamp)
        except Exception as error:
            raise RecordRefused(batch.values[index]) from error

    def _take_timed(self, batch: Batch, windows: Sequence[Sequence[Window]]) -> Iterator[Window]:
        assert batch.groups is not None
        reached = self._time.latest(batch.groups)
        if reached >= self._over_at(self._earliest(batch)):
            batch, windows = self._without_late(batch, windows)
        assert batch.keys is not None and batch.groups is not None
        groups = dict(zip(batch.keys, batch.groups, strict=True))
        plain = self._trigger.records is None and self._trigger.period is None
        for window, found in _by_window_and_key(windows, batch.keys, batch.values):
            if plain and window.end - 1 > reached:
                self._add_all(window, found, groups)
            else:
                yield from self._add_each(window, found, groups)

    def _earliest(self, batch: Batch) -> Window:
        """The last window of the earliest record: no other record's last window ends before it."""
        stamps: Any = batch.timestamps
        first = min(stamps)
        found = self._assigner.assign(first)
        return found[-1] if found else Window(first, first)

    def _without_late(self, batch: Batch, windows: Sequence[Sequence[Window]]) -> tuple[Batch, list[Sequence[Window]]]:
        """Those that are late for all their windows, which is for the last of them, are put out."""
        assert batch.groups is not None
        at, over_at = self._time.at, self._over_at
        kept = [not found or over_at(found[-1]) > at(group) for found, group in zip(windows, batch.groups, strict=True)]
        for index, in_time in enumerate(kept):
            if not in_time:
                self._put_out(batch, index)
        return batch.select(kept), [found for found, in_time in zip(windows, kept, strict=True) if in_time]

    def _put_out(self, batch: Batch, index: int) -> None:
        self._counted_late.inc()
        if self._late is None:
            return
        assert batch.keys is not None and batch.groups is not None
        context = self._context
        context.key, context.group = batch.keys[index], batch.groups[index]
        context.timestamp = None if batch.timestamps is None else batch.timestamps[index]
        context.emit_to(self._late, batch.values[index])

    def _over_at(self, window: Window) -> int:
        """The watermark by which nothing more can come to it."""
        return min(window.end - 1 + self._lateness, MAX_TIME)

    def _add_all(self, window: Window, found: dict[Any, list[Any]], groups: dict[Any, int]) -> None:
        """To a window that does not fire by that: the hot path."""
        context, add, span = self._context, self._contents.add, _span(window)
        values: list[Any] = []
        try:
            for context.key, values in found.items():
                context.group = groups[context.key]
                if add(span, values):
                    self._set_timer(window)
        except Exception as error:
            raise self._culprit(span, values) from error

    def _add_each(self, window: Window, found: dict[Any, list[Any]], groups: dict[Any, int]) -> Iterator[Window]:
        context, over_at = self._context, self._over_at(window)
        for key, values in found.items():
            context.key, context.group = key, groups[key]
            if over_at > context.watermark:
                yield from self._add(window, values)

    def _take_untimed(self, batch: Batch) -> Iterator[Window]:
        assert batch.keys is not None and batch.groups is not None
        [window] = self._assigner.assign(0)
        context = self._context
        for key, indices in _by_key(batch.keys):
            context.key, context.group = key, batch.groups[indices[0]]
            values = [batch.values[index] for index in indices]
            yield from self._add(window, values, batch.timestamps and [batch.timestamps[index] for index in indices])

    def _add(
        self, window: Window, values: Sequence[Any], stamps: Sequence[int | None] | None = None
    ) -> Iterator[Window]:
        """As many at a time as go in before it fires."""
        over = self._is_over(window)
        done = 0
        while done < len(values):
            room = self._room(window, over=over)
            some = values[done:] if room is None else values[done : done + room]
            self._add_some(window, some)
            done += len(some)
            if room == len(some):
                self._context.timestamp = None if stamps is None else stamps[done - 1]
                yield from self._fire_window(window)
            else:
                self._wait(window, len(some), over=over)

    def _add_some(self, window: Window, values: Sequence[Any]) -> None:
        try:
            if self._contents.add(_span(window), values):
                self._set_timer(window)
        except Exception as error:
            raise self._culprit(_span(window), values) from error

    def _culprit(self, span: Span, values: Sequence[Any]) -> RecordRefused:
        return RecordRefused(values[self._contents.culprit(span, values)])

    def _is_over(self, window: Window) -> bool:
        return window.end - 1 <= self._context.watermark

    def _room(self, window: Window, *, over: bool) -> int | None:
        counts = self._trigger.records is not None
        return self._trigger.fires_after(self._unfired.get(_span(window), 0) if counts else 0, over=over)

    def _wait(self, window: Window, more: int, *, over: bool) -> None:
        """It has got `more` records, and does not fire now."""
        if self._trigger.records is not None:
            self._unfired[_span(window)] = self._unfired.get(_span(window), 0) + more
        if self._trigger.ticks(over=over) and _span(window) not in self._ticks:
            self._set_tick(window, self._trigger.next_tick(self.ctx.time_ms()))

    def _fire_window(self, window: Window) -> Iterator[Window]:
        self._no_longer_waits(window)
        yield window
        if self._trigger.purges:
            self._delete_timers(window)
            self._contents.drop(window)

    def _no_longer_waits(self, window: Window) -> None:
        span = _span(window)
        if span in self._unfired:
            del self._unfired[span]
        tick = self._ticks.get(span)
        if tick is not None:
            del self._ticks[span]
            self.timers.delete(tick, _name(window), domain="processing")

    # ----------------------------------------------------------------------------------------------- windows that merge
    def _take_merging(self, batch: Batch, windows: Sequence[Sequence[Window]]) -> Iterator[Window]:
        assert batch.keys is not None and batch.groups is not None
        context = self._context
        for key, indices in _by_key(batch.keys):
            context.key, context.group = key, batch.groups[indices[0]]
            yield from self._take_merging_of_key(batch, indices, windows)

    def _take_merging_of_key(
        self, batch: Batch, indices: Sequence[int], windows: Sequence[Sequence[Window]]
    ) -> Iterator[Window]:
        """Each record as if it came alone; but what does not fire goes into state at the end, all at once."""
        reached = self._context.watermark
        new_ones = [windows[index][0] for index in indices]
        live = self._contents.windows(min(map(_start, new_ones)), max(map(_end, new_ones)))
        parts: dict[Window, _Part] = {}  # those that a record of this batch touches
        for index in indices:
            [new] = windows[index]
            merged, taken = merge_window(live, new)
            if self._over_at(merged) <= reached:
                self._put_out(batch, index)
                continue
            if len(taken) > 1:  # each with its own records, before they become one
                for window in taken:
                    yield from self._settle(window, parts.setdefault(window, _Part([window])))
            first = bisect_left(live, new.start, key=_end)
            live[first : first + len(taken)] = [merged]
            part = parts[merged] = _Part.joined([parts.pop(old) if old in parts else _Part([old]) for old in taken])
            part.values.append(batch.values[index])
            if self._trigger.records is not None or merged.end - 1 <= reached:
                yield from self._settle(merged, part)
                if merged not in self._contents:
                    live.remove(merged)
        for window, part in parts.items():
            yield from self._settle(window, part)

    def _settle(self, window: Window, part: "_Part") -> Iterator[Window]:
        """What waits goes into state."""
        if part.stored not in ([], [window]):
            self._move(part.stored, window)
        values, part.stored, part.values = part.values, [window], []
        yield from self._add(window, values)

    def _move(self, windows: Sequence[Window], into: Window) -> None:
        try:
            self._contents.merge(windows, into)
        except Exception as error:
            raise self._window_failed(into, error) from error
        unfired = sum(self._unfired.pop(_span(window), 0) for window in windows)
        if unfired:
            self._unfired[_span(into)] = unfired
        ticks = [self._ticks.get(_span(window)) for window in windows]
        for window in windows:
            self._no_longer_waits(window)
            self._delete_timers(window)
        self._set_timer(into)
        if pending := [tick for tick in ticks if tick is not None]:
            self._set_tick(into, min(pending))

    # -------------------------------------------------------------------------------------------------------- timers
    def _set_timer(self, window: Window) -> None:
        if self._trigger.at_end and not self._is_over(window):
            self.timers.event(window.end - 1, _name(window))
        elif self._assigner.timed:
            self.timers.event(self._over_at(window), _name(window))

    def _delete_timers(self, window: Window) -> None:
        if self._trigger.at_end or self._assigner.timed:
            name = _name(window)
            for time in {window.end - 1, self._over_at(window)}:
                self.timers.delete(time, name)

    def _set_tick(self, window: Window, time: int) -> None:
        self._ticks[_span(window)] = time
        self.timers.processing(time, _name(window))

    async def fire(self, domain: Domain, rows: list[TimerRow]) -> Batch | None:
        timers, context = self.timers, self._context
        if self._prefetch is not None:
            await self._prefetch(*keys_of(rows))
        context.begin(stamped=True, grouped=self.ctx.carry_groups)
        timers.begin_slice(rows)
        waiting = iter(rows)
        try:
            await self._fire(timers, domain, waiting)
        finally:
            context.clear()
            timers.end_slice(domain, list(waiting))
        self.sides = context.take_sides()
        return context.take()

    async def _fire(self, timers: TimerService, domain: Domain, rows: Iterator[TimerRow]) -> None:
        context, take = self._context, timers.stores[domain].take
        careful = self._async or self.ctx.on_error != "fail"
        for row in rows:
            if take(row):
                time, context.group, context.key, name = row
                context.timestamp = None
                for window in self._due(domain, time, _named(name)):
                    if careful:
                        await self._give_awaiting(window)
                    else:
                        self._give(window)
            if timers.upset or (self._async and self.ctx.interrupted()):
                return

    def _due(self, domain: Domain, time: int, window: Window) -> Iterator[Window]:
        """A timer of the window has fired."""
        if window not in self._contents:
            return
        if domain == "processing":
            yield from self._fire_window(window)
            return
        over_for_good = self._over_at(window) <= self._context.watermark
        if self._trigger.at_end:
            fires = time == window.end - 1
        else:
            fires = over_for_good and (_span(window) in self._unfired or _span(window) in self._ticks)
        if fires:
            yield from self._fire_window(window)
        if over_for_good:
            self._forget(window)
        elif window in self._contents:
            self.timers.event(self._over_at(window), _name(window))

    def _forget(self, window: Window) -> None:
        self._no_longer_waits(window)
        if window in self._contents:
            self._contents.drop(window)


def waiting_states() -> dict[str, MapState[Span, int]]:
    """What is known of the windows that wait for more records, or for the clock."""
    return {name: MapState[Span, int](_SPAN, int) for name in (UNFIRED, TICKS)}


class _Part:
    """What is to become one window: the windows of state that it takes in, and the records after them."""

    __slots__ = ("stored", "values")

    def __init__(self, stored: list[Window]) -> None:
        self.stored = stored
        self.values: list[Any] = []

    @classmethod
    def joined(cls, parts: "Iterable[_Part]") -> "_Part":
        """Of several, all but the last have no records that wait."""
        part = cls([])
        for each in parts:
            part.stored += each.stored
            part.values += each.values
        return part


# ------------------------------------------------------------------------------------------------------------ grouping
def _by_window_and_key(
    windows: Sequence[Sequence[Window]], keys: Sequence[Any], values: Sequence[Any]
) -> Iterable[tuple[Window, dict[Any, list[Any]]]]:
    tables: dict[Window, dict[Any, list[Any]]] = {}
    current: Any = None
    targets: list[dict[Any, list[Any]]] = []
    only: dict[Any, list[Any]] | None = None
    for found, key, value in zip(windows, keys, values, strict=True):
        if found is not current:
            current = found
            targets = [tables.get(window) or tables.setdefault(window, defaultdict(list)) for window in found]
            only = targets[0] if len(targets) == 1 else None
        if only is not None:
            only[key].append(value)
        else:
            for target in targets:
                target[key].append(value)
    return tables.items()


def _by_key(keys: Sequence[Any]) -> Iterable[tuple[Any, list[int]]]:
    indices: dict[Any, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        indices[key].append(index)
    return indices.items()


def _span(window: Window) -> Span:
    """As it is stored: a map on a disk may keep the very object that it is asked for."""
    return window.start, window.end


def _name(window: Window) -> str:
    return f"{window.start}:{window.end}"


def _named(name: str) -> Window:
    start, _, end = name.partition(":")
    return Window(int(start), int(end))


def _cause_of(culprit: RecordRefused) -> Exception:
    assert isinstance(culprit.__cause__, Exception)
    return culprit.__cause__
