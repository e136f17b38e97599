"""`AsyncKeyedOperator`: calls that keep state per key, around an await.

Invariants. Of one key there is one call at a time, in the order of the input; `_lines` has what waits for it, and first
what runs. What a call does (state, timers, output) shows when the link completes it, all at once; and a timer is
pending until its call is completed. So a snapshot between two steps holds what completed calls have done, and the
inputs of all others: records as in flight, timers in state.

Time. A mark passes once all ahead of it is done, and the timers that are due by it. Calls behind a mark may run before
it has passed, and complete after. But where timers may be due by it, they wait: a timer of their key would come first.
A timer of a key that is set for a time that has come is called next for its key.
"""

import datetime as dt
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeVar

from streamactors.elements import MAX_TIME, MIN_TIME, Batch, EndOfKeys, OutputTag, Watermark
from streamactors.errors import InvalidDataflow, RecordFailed, StateAccessError, StreamactorsError
from streamactors.operators import record_ids
from streamactors.operators.async_io.calls import Invocation
from streamactors.operators.async_io.held import Held, Intake, Mark, UnorderedQueue
from streamactors.operators.async_io.link import AsyncLink, Emitted
from streamactors.operators.async_io.settings import Retry, check_duration, check_retry, check_whole
from streamactors.operators.base import (
    NO_TIMERS,
    Context,
    KeyedOperator,
    Link,
    LinkContext,
    call_hook,
    dead_letter,
    dense,
)
from streamactors.operators.process import Hook, ProcessSpec, bind_timers
from streamactors.operators.read_ahead import read_ahead_of
from streamactors.state.backend import Cursor, KeyedBackend, prefetch_of
from streamactors.state.calls import KeyedCall, KeyedCalls, bind_for_calls
from streamactors.state.descriptors import declared_states
from streamactors.state.timers import Domain, TimerRow, TimerStore, keys_of
from streamactors.time.timers import NoTimers, Timer, Timers, TimerService

K = TypeVar("K")
T = TypeVar("T")
U = TypeVar("U")

_HELD_PER_CALL: Final = 4
"""So many inputs are held for each call that may run: others may wait for a key that is in process."""
_END_OF_TIME: Final = Watermark(MAX_TIME, merged=True)


class AsyncKeyedOperator(KeyedOperator[K, T, U]):
    """Up to `capacity` keys in process at once, one record at a time per key, in order. Each call works on a copy bound
    to its key; its state changes and output take effect together when it returns, or not at all.

    Helper functions and tasks that the call starts reach its key too, until it returns; whatever goes on after that
    gets StateAccessError. `ctx.drain()` does not wait: the output of a call leaves when it returns. After a crash, the
    calls that had not taken effect are made again.
    """

    capacity: int = 100
    """Calls at once, in each subtask."""
    timeout: dt.timedelta | None = None
    """Of one attempt, of `process` or `on_timer`; then it fails with TimeoutError. None: a call that hangs blocks its
    key, and the end of the job, for ever."""
    retry: Retry | None = None
    """Another attempt after a failure: it begins anew, with nothing of what the last one has done."""


@dataclass(slots=True)
class _Emission:
    value: Any
    timestamp: int | None
    tag: str | None
    """None: the main output."""


@dataclass(slots=True)
class _TimerChange:
    timestamp: int
    name: str
    domain: Domain
    delete: bool


class _Part:
    """One input, a record or a timer, from when it comes until it is completed. `behind`: the latest mark ahead of it
    when it came, `watermark` the latest that holds for its key as well."""

    __slots__ = ("begun", "behind", "context", "group", "key", "row", "timer", "walled", "watermark")

    def __init__(
        self, key: Any, group: int, *, behind: int, watermark: int, walled: bool, timer: Timer | None, row: Any = None
    ) -> None:
        self.key = key
        self.group = group
        self.behind = behind
        self.watermark = watermark
        self.walled = walled
        """The keys so far end ahead of it."""
        self.timer = timer
        self.row: TimerRow = row
        self.begun = False
        self.context: CallContext | None = None
        """Of the last attempt."""

    def end_attempt(self) -> None:
        """What goes on of it, if it was given up, reaches nothing any more."""
        if self.context is not None:
            self.context.call.end()


class CallContext(Context[Any, Any]):
    """The `Context` of one call: what it emits and does to timers waits here until it has returned."""

    __slots__ = ("_id", "_named", "_timestamp", "_watermark", "call", "changes", "emissions", "timers")

    def __init__(self, call: KeyedCall, part: _Part, timestamp: int | None, id: str | None, *, named: bool) -> None:
        self.call = call
        self._timestamp = timestamp
        self._watermark = part.watermark
        self._id = id
        self._named = named
        self.emissions: list[_Emission] = []
        self.changes: list[_TimerChange] = []
        self.timers: Timers = NoTimers(NO_TIMERS)

    @property
    def key(self) -> Any:
        return self.call.key

    @property
    def timestamp(self) -> int | None:
        return self._timestamp

    @property
    def watermark(self) -> int:
        """As it was for the record when its call began."""
        return self._watermark

    @property
    def record_id(self) -> str:
        if not self._named:
            raise StateAccessError(record_ids.NOT_CARRIED)
        return record_ids.known(self._id)

    def emit(self, value: Any, timestamp: int | None = None) -> None:
        self._add(value, self._timestamp if timestamp is None else timestamp, None)

    def emit_to(self, tag: OutputTag[T], value: T) -> None:
        self._add(value, self._timestamp, tag.name)

    def _add(self, value: Any, timestamp: int | None, tag: str | None) -> None:
        self.check_alive()
        self.emissions.append(_Emission(value, timestamp, tag))

    async def drain(self) -> None:
        """Nothing leaves before the call returns: it does not wait."""
        self.check_alive()

    def check_alive(self) -> None:
        """Raises StateAccessError once the call has ended."""
        self.call.calls.check_alive(self.call)


class CallTimers(Timers):
    """The timers of a call's key, changed when the call takes effect."""

    __slots__ = ("_context", "_service")

    def __init__(self, context: CallContext, service: TimerService) -> None:
        self._context = context
        self._service = service

    def event(self, timestamp: int, name: str = "") -> None:
        self._service.check(timestamp, name, "event")
        self._change(timestamp, name, "event", delete=False)

    def processing(self, timestamp: int, name: str = "") -> None:
        self._service.check(timestamp, name, "processing")
        self._change(timestamp, name, "processing", delete=False)

    def delete(self, timestamp: int, name: str = "", *, domain: Literal["event", "processing"] = "event") -> None:
        self._service.check(timestamp, name, domain, delete=True)
        self._change(timestamp, name, domain, delete=True)

    def _change(self, timestamp: int, name: str, domain: Domain, *, delete: bool) -> None:
        self._context.check_alive()
        self._context.changes.append(_TimerChange(timestamp, name, domain, delete))


class _KeyedTimers(TimerService):
    """Those of an async step. `enough`: whether so many event timers wait for their calls that no more are to come."""

    __slots__ = ("_due", "_enough")

    def __init__(
        self,
        stores: dict[Domain, TimerStore],
        cursor: Cursor,
        ctx: LinkContext,
        enough: Callable[[], bool],
    ) -> None:
        self._due = True
        self._enough = enough
        super().__init__(stores, cursor, ctx.time, watermarks=ctx.watermarks)

    @property
    def some_left(self) -> bool:
        """Whether more event timers may be due than wait for their calls."""
        return self._due and self._enough()

    @property
    def event_due(self) -> bool:
        return self._due and not self._enough()

    @event_due.setter
    def event_due(self, due: bool) -> None:
        self._due = due


class AsyncKeyedLink(AsyncLink):
    """Runs an AsyncKeyedOperator."""

    hand_on_at_once = 64
    queue: UnorderedQueue

    def __init__(self, ctx: LinkContext, operator: Any, hook: Hook, on_timer: Hook | None) -> None:
        timeout = None if operator.timeout is None else operator.timeout.total_seconds()
        super().__init__(ctx, UnorderedQueue(), capacity=operator.capacity, timeout=timeout, retry=operator.retry)
        assert ctx.backend is not None
        self._operator = operator
        self._hook, self._on_timer = hook, on_timer
        self._opened = False
        self._cursor = Cursor()
        self._keyed_calls = KeyedCalls(ctx.uid, self._cursor, ctx.time_ms)
        self._bind(ctx.backend, operator)
        self._prefetch = prefetch_of(ctx.backend)
        self.read_ahead = read_ahead_of(ctx.backend)
        self._lines: dict[Any, deque[Held]] = {}
        """By key, what runs or may run next, and what comes after."""
        self._free: deque[Any] = deque()
        """Keys of which the next may begin."""
        self._back: list[Any] = []
        """Keys of which the next has to wait for a mark."""
        self._look_again = False
        """At those in `_back`."""
        self._latest = self._watermark = MIN_TIME
        self._walled = False
        self._mark_given = False
        """Whether a mark has been handed on in this harvest."""
        self._timers_held: dict[Domain, dict[TimerRow, Held]] = {"event": {}, "processing": {}}
        self._no_record = Intake(Batch([None]), None, None)
        self.timers: _KeyedTimers | None = None
        if on_timer is not None:
            self.timers = _KeyedTimers(bind_timers(ctx.backend), self._cursor, ctx, self._enough_timers)

    def _bind(self, backend: KeyedBackend, operator: Any) -> None:
        backend.attach(self._cursor)
        for name, declaration in declared_states(operator).items():
            stored = declaration.stored or name
            setattr(operator, name, bind_for_calls(backend, stored, declaration, self._keyed_calls))

    def _enough_timers(self) -> bool:
        return len(self._timers_held["event"]) >= self.capacity

    async def open(self) -> None:
        self._opened = True
        if self.timers is not None:
            await self.timers.opened()
        await call_hook(self._operator.open, self.ctx.operator)

    async def close(self) -> None:
        await super().close()
        if self.read_ahead is not None:
            await self.read_ahead.close()
        if self._opened:
            self._opened = False
            await call_hook(self._operator.close)

    # ------------------------------------------------------------------------------------------------------- the lines
    @property
    def full(self) -> bool:
        held = len(self.queue)
        return held >= _HELD_PER_CALL * self.capacity or (held >= self.capacity and self.running >= self.capacity)

    @property
    def waiting(self) -> bool:
        return bool(self._free) or (self._look_again and bool(self._back))

    def hold(self, mark: Mark) -> bool:
        holds = super().hold(mark)
        if holds and isinstance(mark, Watermark):
            self._latest = max(self._latest, mark.time_ms)
            if mark.groups is None:
                self._watermark = max(self._watermark, mark.time_ms)
        elif holds and isinstance(mark, EndOfKeys):
            self._walled = True
        return holds

    def arrived(self, held: Held) -> None:
        key, group = held.key, held.group
        assert group is not None
        held.owner = _Part(key, group, behind=self._latest, watermark=self._watermark, walled=self._walled, timer=None)
        line = self._lines.get(key)
        if line is None:
            self._lines[key] = deque((held,))
            self._free.append(key)
        else:
            line.append(held)

    def _arrived_timer(self, domain: Domain, row: TimerRow) -> None:
        """It is called next for its key, behind those that are due before."""
        time, group, key, name = row
        held = Held(self._no_record, 0)
        held.owner = part = _Part(
            key,
            group,
            behind=MIN_TIME,
            watermark=self._watermark_reached(group),
            walled=False,
            timer=Timer(time, domain, name),
            row=row,
        )
        self._timers_held[domain][row] = held
        line = self._lines.get(key)
        if line is None:
            self._lines[key] = deque((held,))
            self._free.append(key)
            self.queue.add_first(held)
            return
        taken = line[0].owner.begun or line[0].done
        line.insert(_place_of(line, part, int(taken)), held)
        if taken:
            self.queue.add_beside(held, line[0])  # what runs may be behind a mark, and this comes after it
        else:
            self.queue.add_first(held)
            self._look_again = True

    def next_call(self) -> Invocation | None:
        if self._look_again:
            self._look_again = False
            self._free.extend(self._back)
            self._back.clear()
        while self._free:
            key = self._free.popleft()
            held = self._lines[key][0]
            part: _Part = held.owner
            if part.timer is not None and not self._pending(part):
                self.queue.finished(held)  # another call of the key has deleted it
            elif not self._may_begin(held, part):
                self._back.append(key)
            else:
                part.begun = True
                return Invocation((held,))
        return None

    def _pending(self, part: _Part) -> bool:
        assert self.timers is not None and part.timer is not None
        return self.timers.stores[part.timer.domain].pending(part.row)

    def _may_begin(self, held: Held, part: _Part) -> bool:
        """Whether no timer of its key can be due before it."""
        timers = self.timers
        if part.timer is not None:
            return True
        if self.queue.is_first(held):
            return timers is None or not timers.some_left
        if timers is None or part.walled:
            return not part.walled
        earliest = timers.stores["event"].earliest()
        return earliest is None or earliest > part.behind

    def _context(self, held: Held, part: _Part) -> CallContext:
        timer = part.timer
        part.watermark = max(part.watermark, self.ctx.time.at(part.group))
        timestamp = held.timestamp
        if timer is not None:
            timestamp = timer.timestamp if timer.domain == "event" else None
        named = self.ctx.record_ids and timer is None
        call = self._keyed_calls.begin(part.key, part.group)
        context = CallContext(call, part, timestamp, None if timer is not None else held.id, named=named)
        if self.timers is not None:
            context.timers = CallTimers(context, self.timers)
        return context

    # ----------------------------------------------------------------------------------------------------------- calls
    async def call(self, invocation: Invocation) -> None:
        [held] = invocation.records
        part: _Part = held.owner
        part.end_attempt()
        context = part.context = self._context(held, part)
        context.call.enter()
        if self.ctx.record_ids and part.timer is None:
            record_ids.CURRENT.set((held.id,))
        try:
            if part.timer is None:
                await _called(self._hook, held.value, context)
            elif self._on_timer is not None:
                await _called(self._on_timer, part.timer, context)
        finally:
            context.call.end()

    def failed_call(self, invocation: Invocation, error: Exception) -> None:
        if self._failure is None:
            [held] = invocation.records
            self._failure = self._error(held, held.owner, error)
            self._failure.__cause__ = error

    def _error(self, held: Held, part: _Part, error: Exception) -> RecordFailed:
        if part.timer is None:
            return self.failed(error, held.intake.batch, held.index)
        return self._timer_failed(part, part.timer, error)

    def _timer_failed(self, part: _Part, timer: Timer, error: Exception) -> RecordFailed:
        named = f" {timer.name!r}" if timer.name else ""
        what = f"{timer.domain} timer{named} of {timer.timestamp}: {type(error).__name__}: {error}"
        retryable = not isinstance(error, StreamactorsError) or error.retryable
        return RecordFailed(self.uid, what, key=part.key, name=self.ctx.name, retryable=retryable)

    # --------------------------------------------------------------------------------------------------- taking effect
    def over(self, invocation: Invocation) -> None:
        """It makes room at once: what is done behind a mark must not keep calls ahead of it from running."""
        self.running -= 1
        part: _Part = invocation.records[0].owner
        part.end_attempt()

    def handed_on(self, done: list[Held]) -> None:
        """They have made room before."""

    def complete(self, done: list[Held]) -> list[Emitted]:
        output = _Output(carry=self.ctx.carry_groups, name=self.ctx.passes_ids)
        for held in done:
            part: _Part = held.owner
            if held.error is not None:
                self._failed_in(held, part, held.error, output)
            elif part.begun:
                self._show(held, part, output)
            self._next_of(held, part)
        return output.emitted()

    def _next_of(self, held: Held, part: _Part) -> None:
        """The key is free."""
        if part.timer is not None:
            waiting = self._timers_held[part.timer.domain]
            if waiting.get(part.row) is held:  # else it has set itself again
                del waiting[part.row]
        line = self._lines[part.key]
        line.popleft()
        if line:
            self._free.append(part.key)
        else:
            del self._lines[part.key]

    def _failed_in(self, held: Held, part: _Part, error: Exception, output: "_Output") -> None:
        route = self.ctx.on_error
        if part.timer is not None or not isinstance(route, OutputTag):
            raise self._error(held, part, error) from error
        self.ctx.operator.metrics.counter("dead_letters").inc()
        [value] = held.intake.originals([held.index])  # as it came, whatever the call has done to it
        letter = dead_letter(self.uid, value, held.intake.batch.origin(held.index), error)
        output.begin(held, part)
        output.add(_Emission(letter, held.timestamp, route.name), record_ids.dead(held.id))

    def _show(self, held: Held, part: _Part, output: "_Output") -> None:
        try:
            self._take_effect(held, part, output)
        except StreamactorsError as error:  # a timer whose key can't be stored, say
            raise self._error(held, part, error) from error

    def _take_effect(self, held: Held, part: _Part, output: "_Output") -> None:
        context = part.context
        assert context is not None
        if self.timers is not None:
            self._change_timers(self.timers, part, context)
        context.call.apply()
        output.begin(held, part)
        for place, emission in enumerate(context.emissions):
            output.add(emission, record_ids.output(held.id, place))

    def _change_timers(self, timers: TimerService, part: _Part, context: CallContext) -> None:
        if part.timer is not None:
            time, group, key, name = part.row
            timers.stores[part.timer.domain].delete(key, group, time, name)
        with self._keyed_calls.standing_on(context.call):
            for change in context.changes:
                if change.delete:
                    timers.delete(change.timestamp, change.name, domain=change.domain)
                elif change.domain == "event":
                    timers.event(change.timestamp, change.name)
                else:
                    timers.processing(change.timestamp, change.name)
        self._next_timers(timers, part, context.changes)

    def _next_timers(self, timers: TimerService, part: _Part, changes: Sequence[_TimerChange]) -> None:
        """Those that the call has set for a time that has come."""
        reached = timers.time.at(part.group)
        for change in changes:
            row = change.timestamp, part.group, part.key, change.name
            late = change.domain == "event" and not change.delete and change.timestamp <= reached
            if late and timers.stores["event"].pending(row) and self._is_new("event", row, part):
                self._arrived_timer("event", row)

    def _is_new(self, domain: Domain, row: TimerRow, completing: _Part | None = None) -> bool:
        """Whether it does not wait already. That which is completing does not."""
        held = self._timers_held[domain].get(row)
        return held is None or held.owner is completing

    # ---------------------------------------------------------------------------------------------------------- timers
    async def fire(self, domain: Domain, rows: list[TimerRow]) -> Batch | None:
        """Their calls begin as soon as their keys are free; they are pending until then."""
        await self._put(domain, rows)
        self.begin_calls()
        return None

    async def _put(self, domain: Domain, rows: list[TimerRow]) -> bool:
        """Whether any are to be called."""
        assert self.timers is not None
        if self._prefetch is not None:
            await self._prefetch(*keys_of(rows))
        store, any_put = self.timers.stores[domain], False
        for row in rows:
            if store.pending(row) and self._is_new(domain, row):
                self._arrived_timer(domain, row)
                any_put = True
        return any_put

    def _watermark_reached(self, group: int) -> int:
        return self.ctx.time.at(group)

    async def harvest(self) -> list[Emitted | Mark]:
        self._mark_given = False
        self._look_again = True
        if self._prefetch is not None:
            await self._read_again(self._prefetch)
        return await super().harvest()

    async def _read_again(self, prefetch: Callable[[Sequence[Any], Sequence[int]], Awaitable[None]]) -> None:
        """What is about to be changed, where it has left the cache during the call."""
        done: list[_Part] = [held.owner for held in self.queue.next_done(self.hand_on_at_once)]
        await prefetch([part.key for part in done], [part.group for part in done])

    async def reached(self, mark: Mark) -> bool:
        if self.timers is None or not isinstance(mark, Watermark | EndOfKeys):
            return True
        if self._mark_given:
            return False  # event time is to come to that one first
        self._mark_given = await self._set_off(self.timers, mark)
        return self._mark_given

    async def _set_off(self, timers: TimerService, mark: Watermark | EndOfKeys) -> bool:
        """Whether all that is due by it has been called."""
        await timers.reach(mark if isinstance(mark, Watermark) else _END_OF_TIME)
        if await self._put_due_events(timers):
            return False
        return not isinstance(mark, EndOfKeys) or not await self._put_last(timers)

    async def _put_due_events(self, timers: TimerService) -> bool:
        """Whether any are to be called."""
        while rows := await timers.next_events(self.capacity):
            if await self._put("event", rows):
                return True
        return False

    async def _put_last(self, timers: TimerService) -> bool:
        """The clock ends with the keys: one that sets itself again would go on for ever."""
        timers.closing = True
        while rows := await timers.next_processing(MAX_TIME, self.capacity):
            if await self._put("processing", rows):
                return True
        timers.closing = False
        return False

    # ----------------------------------------------------------------------------------------------------- checkpoints
    def stored_elements(self) -> "Iterator[Held | tuple[Mark, object]]":
        """Without timers, which are in state."""
        for element in self.queue.elements():
            if not isinstance(element, Held) or element.owner.timer is None:
                yield element


def _place_of(line: deque[Held], new: _Part, start: int) -> int:
    """Of a timer: behind those that come before it, and ahead of all records."""
    assert new.timer is not None
    place = start
    while place < len(line):
        timer: Timer | None = line[place].owner.timer
        if timer is None or (timer.domain == new.timer.domain and timer.timestamp > new.timer.timestamp):
            break
        place += 1
    return place


async def _called(hook: Hook, what: Any, context: CallContext) -> None:
    result = hook.call(what, context)
    if hook.is_async:
        await result


def _refuse_lists(operator: Any, who: str) -> None:
    """What belongs to no key is no call's alone: its changes would show before the call's, and come twice."""
    lists = [name for name, declaration in declared_states(operator).items() if not declaration.keyed]
    if lists:
        raise InvalidDataflow(
            f"{who} declares {', '.join(lists)}, a list of the subtask. Calls of many keys run side by side, and only "
            "state of a key is exactly-once around their awaits: use a ListState, or a KeyedOperator"
        )


class _Columns:
    """What goes into one batch."""

    __slots__ = ("groups", "ids", "stamps", "values")

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.stamps: list[int | None] = []
        self.groups: list[int] = []
        self.ids: list[str | None] = []


class _Output:
    """What completed calls have put out, in batches of one home each (see `Batch.home`)."""

    def __init__(self, *, carry: bool, name: bool) -> None:
        self._carry = carry
        self._name = name
        self._lots: list[tuple[tuple[str, str] | None, dict[str | None, _Columns]]] = []
        self._home: tuple[str, str] | None = None
        self._group = 0

    def begin(self, held: Held, part: _Part) -> None:
        """From now on, of this one."""
        self._home, self._group = held.intake.batch.home, part.group

    def add(self, emission: _Emission, id: str | None) -> None:
        if not self._lots or self._lots[-1][0] != self._home:
            self._lots.append((self._home, {}))
        columns = self._lots[-1][1].setdefault(emission.tag, _Columns())
        columns.values.append(emission.value)
        columns.stamps.append(emission.timestamp)
        columns.groups.append(self._group)
        columns.ids.append(id)

    def emitted(self) -> list[Emitted]:
        return [self._emitted(home, outputs) for home, outputs in self._lots]

    def _emitted(self, home: tuple[str, str] | None, outputs: dict[str | None, _Columns]) -> Emitted:
        batches = {tag: self._batch(columns) for tag, columns in outputs.items()}
        main = batches.pop(None, None)
        return Emitted(main, {tag: batch for tag, batch in batches.items() if tag is not None}, home)

    def _batch(self, columns: _Columns) -> Batch:
        groups = columns.groups if self._carry else None
        ids = columns.ids if self._name else None
        return Batch(columns.values, dense(columns.stamps), None, groups, ids=ids)


@dataclass(frozen=True)
class KeyedProcessSpec(ProcessSpec):
    """`process` on a keyed stream: whether the operator is an async one may be seen only once it is made."""

    keyed: bool = True

    @property
    def holds_calls(self) -> bool:
        made = record_ids.made_by(self.factory, self.kinds.all)
        return any(issubclass(cls, AsyncKeyedOperator) for cls in made)

    def _check(self, operator: Any, uid: str) -> None:
        super()._check(operator, uid)
        cls = operator if isinstance(operator, type) else type(operator)
        if issubclass(cls, AsyncKeyedOperator):
            check_whole(f"operator {uid!r}: {cls.__name__}.capacity", operator.capacity)
            if operator.timeout is not None:
                check_duration(f"operator {uid!r}: {cls.__name__}.timeout", operator.timeout, positive=True)
            check_retry(f"operator {uid!r}: {cls.__name__}.retry", operator.retry)
            _refuse_lists(operator, f"operator {uid!r}: {cls.__name__}")

    def _link(self, ctx: LinkContext, operator: Any) -> Link:
        if not isinstance(operator, AsyncKeyedOperator):
            return super()._link(ctx, operator)
        hook = Hook.of(operator.process, keyed=True)
        return AsyncKeyedLink(replace(ctx, on_error=self.on_error), operator, hook, self._on_timer(operator))
