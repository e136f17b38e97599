"""`process`, keyed and not, and `reduce`: the steps that run a user's operator, and bind its state."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any, NamedTuple, Self, cast

from streamactors.elements import Batch, DeadLetter, ErrorRoute, OutputTag
from streamactors.errors import InvalidDataflow, RecordFailed, StreamactorsError
from streamactors.operators.base import (
    GroupedContext,
    IdentifiedContext,
    KeyedOperator,
    Link,
    LinkContext,
    Operator,
    OperatorSpec,
    RecordContext,
    blames_the_record,
    call_hook,
    check_usage,
    dead_letter,
    done_of,
    is_async,
    make_operator,
    refuse_instance,
)
from streamactors.operators.read_ahead import read_ahead_of
from streamactors.operators.record_ids import made_by, uses_record_id
from streamactors.state.backend import INACTIVE, KeyedBackend, prefetch_of
from streamactors.state.broadcast import BroadcastState
from streamactors.state.descriptors import ValueState, declared_states
from streamactors.state.timers import Domain, TimerRow, TimerState, TimerStore, keys_of
from streamactors.time.timers import Timer, TimerService


class Hook(NamedTuple):
    """What is called with each record. `keyed`: for the record's key, whose state it reaches."""

    call: Callable[..., Any]
    is_async: bool
    keyed: bool

    @classmethod
    def of(cls, method: Callable[..., Any], *, keyed: bool) -> Self:
        return cls(method, is_async(method), keyed)


class ProcessLink(Link):
    """Runs an operator record by record, without an await per record where the hook is a `def`.

    A record that fails under `on_error=tag` goes to the dead letters; what it had emitted is taken back, what it had
    written to state stays, as after any handled exception. A timer that fails is no record, and fails the job.

    `on_timer` None: it has no timers. What a record sets for a time that has come fires before the next record: then
    the others are left in `rest`.
    """

    def __init__(self, ctx: LinkContext, operator: Any, hook: Hook, on_timer: Hook | None = None) -> None:
        super().__init__(ctx)
        self._operator = operator
        self._carry = ctx.carry_groups
        self._prefetch = prefetch_of(ctx.backend)
        self.read_ahead = read_ahead_of(ctx.backend)
        self._identified = IdentifiedContext(self._drain, ctx.time, passes=ctx.passes_ids) if ctx.record_ids else None
        plain = GroupedContext if ctx.carry_groups else RecordContext
        self._context = self._identified or plain(self._drain, ctx.time)
        self._process, self._async, self._keyed = self._called(hook)
        self._opened = False
        self._on_timer = on_timer
        if ctx.backend is not None:
            ctx.backend.attach(self._context)
        bind_states(operator, ctx)
        if ctx.backend is not None and on_timer is not None:
            self.timers = TimerService(bind_timers(ctx.backend), self._context, ctx.time, watermarks=ctx.watermarks)
            self._context.timers = self.timers

    def _called(self, hook: Hook) -> Hook:
        """What is called with each record in place of the hook: nothing else, unless records have names."""
        identified, call = self._identified, hook.call
        if identified is None:
            return hook

        def named(value: Any, ctx: RecordContext) -> Any:
            identified.name_record()
            return call(value, ctx)

        return hook._replace(call=named)

    async def open(self) -> None:
        self._opened = True
        if self.timers is not None:
            await self.timers.opened()
        await call_hook(self._operator.open, self.ctx.operator)

    async def close(self) -> None:
        if self.read_ahead is not None:
            await self.read_ahead.close()
        if self._opened:
            self._opened = False
            await call_hook(self._operator.close)

    async def process(self, batch: Batch) -> Batch | None:
        context = self._context
        grouped = self._carry and batch.groups is not None
        context.begin(stamped=batch.timestamps is not None, grouped=grouped)
        if self._identified is not None:
            self._identified.name_batch(batch)
        values = iter(batch.values)
        try:
            if self.ctx.on_error != "fail":
                await self._run_routed(batch)
            elif self._async:
                await self._run_async(values, batch)
            elif grouped and not self._keyed:
                self._run_grouped(values, batch)
            else:
                self._run(values, batch)
        except Exception as error:
            raise self.failed(error, batch, done_of(values, len(batch)) - 1) from error
        finally:
            context.clear()
        self.sides = context.take_sides()
        return context.take()

    def _run(self, values: Iterator[Any], batch: Batch) -> None:
        process, ctx = self._process, self._context
        stamps = repeat(None) if batch.timestamps is None else batch.timestamps
        if self.timers is not None and self._keyed:
            self._run_timed(self.timers, values, batch)
            return
        if not self._keyed:
            for value, ctx.timestamp in zip(values, stamps, strict=False):
                process(value, ctx)
            return
        assert batch.keys is not None and batch.groups is not None
        if batch.timestamps is None:  # the hot path: one attribute less to write per record
            for value, ctx.key, ctx.group in zip(values, batch.keys, batch.groups, strict=False):
                process(value, ctx)
        else:
            for value, ctx.key, ctx.group, ctx.timestamp in zip(values, batch.keys, batch.groups, stamps, strict=False):
                process(value, ctx)

    def _run_timed(self, timers: TimerService, values: Iterator[Any], batch: Batch) -> None:
        process, ctx = self._process, self._context
        taken = 0
        for value, ctx.key, ctx.group, ctx.timestamp in _rows(values, batch.keys, batch.groups, batch.timestamps):
            process(value, ctx)
            taken += 1
            if timers.event_due:
                break
        self.rest = _after(batch, taken)

    def _run_grouped(self, values: Iterator[Any], batch: Batch) -> None:
        process, ctx = self._process, self._context
        groups = repeat(INACTIVE) if batch.groups is None else batch.groups
        for value, ctx.group, ctx.timestamp in _rows(values, groups, batch.timestamps):
            process(value, ctx)

    async def _run_async(self, values: Iterator[Any], batch: Batch) -> None:
        process, ctx, interrupted = self._process, self._context, self.ctx.interrupted
        taken = 0
        groups = repeat(INACTIVE) if batch.groups is None else batch.groups
        for value, ctx.key, ctx.group, ctx.timestamp in _rows(values, batch.keys, groups, batch.timestamps):
            await process(value, ctx)
            taken += 1
            if interrupted() or self._timer_due():
                break
        self.rest = _after(batch, taken)

    def _timer_due(self) -> bool:
        return self.timers is not None and self.timers.event_due

    async def _run_routed(self, batch: Batch) -> None:
        """Slower: a failing record must leave no output behind."""
        context = self._context
        for index in range(len(batch)):
            one = batch.slice(index, index + 1)
            mark = context.mark()
            try:
                if self._async:
                    await self._run_async(iter(one.values), one)
                elif self._keyed:
                    self._run(iter(one.values), one)
                else:
                    self._run_grouped(iter(one.values), one)
            except Exception as error:
                if not blames_the_record(error):
                    raise self.failed(error, one, 0) from error
                context.roll_back(mark)
                self._to_dead_letters(one, error)
            if (self._async and self.ctx.interrupted()) or self._timer_due():
                self.rest = _after(batch, index + 1)
                return

    def _to_dead_letters(self, one: Batch, error: Exception) -> None:
        route = self.ctx.on_error
        assert isinstance(route, OutputTag)
        self.ctx.operator.metrics.counter("dead_letters").inc()
        self._context.emit_dead(route, dead_letter(self.uid, one.values[0], one.origin(0), error))

    # ------------------------------------------------------------------------------------------------------- timers
    async def fire(self, domain: Domain, rows: list[TimerRow]) -> Batch | None:
        timers, context, on_timer = self.timers, self._context, self._on_timer
        assert timers is not None and on_timer is not None
        if self._prefetch is not None:
            await self._prefetch(*keys_of(rows))
        context.begin(stamped=True, grouped=self._carry)
        timers.begin_slice(rows)
        waiting = iter(rows)
        try:
            if on_timer.is_async:
                await self._fire_async(timers, domain, waiting)
            else:
                self._fire(timers, domain, waiting)
        finally:
            context.clear()
            timers.end_slice(domain, list(waiting))
        self.sides = context.take_sides()
        return context.take()

    def _fire(self, timers: TimerService, domain: Domain, rows: Iterator[TimerRow]) -> None:
        assert self._on_timer is not None
        on_timer, ctx = self._on_timer.call, self._context
        for timer in self._taken(timers, domain, rows):
            try:
                on_timer(timer, ctx)
            except Exception as error:
                raise self._timer_failed(timer, error) from error
            if timers.upset:
                return

    async def _fire_async(self, timers: TimerService, domain: Domain, rows: Iterator[TimerRow]) -> None:
        assert self._on_timer is not None
        on_timer, ctx, interrupted = self._on_timer.call, self._context, self.ctx.interrupted
        for timer in self._taken(timers, domain, rows):
            try:
                await on_timer(timer, ctx)
            except Exception as error:
                raise self._timer_failed(timer, error) from error
            if timers.upset or interrupted():
                return

    def _taken(self, timers: TimerService, domain: Domain, rows: Iterator[TimerRow]) -> Iterator[Timer]:
        """Those that are pending still, each with its key in hand."""
        take, ctx, by_event = timers.stores[domain].take, self._context, domain == "event"
        for row in rows:
            if take(row):
                time, ctx.group, ctx.key, name = row
                ctx.timestamp = time if by_event else None
                yield Timer(time, domain, name)

    def _timer_failed(self, timer: Timer, error: Exception) -> RecordFailed:
        named = f" {timer.name!r}" if timer.name else ""
        what = f"{timer.domain} timer{named} of {timer.timestamp}: {type(error).__name__}: {error}"
        retryable = not isinstance(error, StreamactorsError) or error.retryable
        return RecordFailed(self.uid, what, key=self._context.key, name=self.ctx.name, retryable=retryable)

    async def _drain(self, context: RecordContext) -> None:
        if self.ctx.drain is not None:
            await self.ctx.drain(context.take(), context.take_sides())


def _rows(values: Iterator[Any], *columns: Iterable[Any] | None) -> Iterator[tuple[Any, ...]]:
    """Record by record. A column that the batch has not gives None."""
    return zip(values, *(repeat(None) if column is None else column for column in columns), strict=False)


def _after(batch: Batch, taken: int) -> Batch | None:
    """What is left of a batch."""
    return batch.slice(taken, len(batch)) if taken < len(batch) else None


def bind_states(operator: Any, ctx: LinkContext) -> None:
    """Shadow the class's declarations by state bound to this subtask."""
    for name, declaration in declared_states(operator).items():
        keeper = ctx.backend if declaration.keyed else ctx.lists
        if keeper is not None:
            # setattr keeps the compact attribute layout of the instance: 10 ns less an access than by __dict__.
            setattr(operator, name, keeper.bind(declaration.stored or name, declaration))


def bind_timers(backend: KeyedBackend) -> dict[Domain, TimerStore]:
    declared = (TimerState("event"), TimerState("processing"))
    return {each.domain: cast(TimerStore, backend.bind(each.name, each)) for each in declared}


class Kinds(NamedTuple):
    """The classes of which the operators of a step may be, and whether they may have broadcast state."""

    plain: type
    keyed: type
    broadcast: bool = False

    @property
    def all(self) -> tuple[type, ...]:
        return tuple(dict.fromkeys((self.plain, self.keyed)))


@dataclass(frozen=True)
class ProcessSpec(OperatorSpec):
    """`factory` makes one operator per subtask."""

    factory: Callable[[], Any]
    keyed: bool
    on_error: ErrorRoute = "fail"

    @property
    def kind(self) -> str:
        return "process"

    @property
    def keyed_state(self) -> bool:
        return self.keyed

    @property
    def uses_record_id(self) -> bool:
        made = made_by(self.factory, self.kinds.all)
        return uses_record_id(self.factory) or any(map(uses_record_id, made))

    @property
    def keeps_record_ids(self) -> bool:
        """Not where something is emitted for a timer. A class that can't be told may have them."""
        made = made_by(self.factory, self.kinds.all)
        return bool(made) and not any(self._defines_on_timer(cls) for cls in made)

    @property
    def error_tag(self) -> OutputTag[DeadLetter] | None:
        return None if self.on_error == "fail" else self.on_error

    @property
    def kinds(self) -> Kinds:
        return Kinds(Operator, KeyedOperator)

    def validate(self, uid: str) -> None:
        refuse_instance(self.factory, self.kinds.all, uid)
        made = _class_behind(self.factory)
        if made is not None:
            self._check(made, uid)

    def _check(self, operator: Any, uid: str) -> None:
        cls = operator if isinstance(operator, type) else type(operator)
        check_usage(cls, self.kinds.all, uid)
        if not self.keyed and issubclass(cls, self.kinds.keyed):
            raise InvalidDataflow(
                f"operator {uid!r}: {cls.__name__} is a {self.kinds.keyed.__name__} on a stream without keys: "
                "key_by first"
            )
        self._check_states(operator, cls, uid)

    def _check_states(self, operator: Any, cls: type, uid: str) -> None:
        states = declared_states(operator)
        keyed = [name for name, declaration in states.items() if declaration.keyed]
        if keyed and not issubclass(cls, self.kinds.keyed):
            raise InvalidDataflow(
                f"operator {uid!r}: {cls.__name__} declares state ({', '.join(keyed)}), which needs a key: "
                f"derive it from {self.kinds.keyed.__name__} and use it after key_by"
            )
        broadcast = [name for name, declaration in states.items() if isinstance(declaration, BroadcastState)]
        if broadcast and not self.kinds.broadcast:
            raise InvalidDataflow(
                f"operator {uid!r}: {cls.__name__} declares broadcast state ({', '.join(broadcast)}), which needs an "
                "input that every subtask gets all of: derive it from KeyedBroadcastOperator and use it after "
                "key_by(…).connect_broadcast(…)"
            )

    def link(self, ctx: LinkContext) -> Link:
        operator = make_operator(self.factory, self.kinds.all, ctx.uid)
        self._check(operator, ctx.uid)
        return self._link(replace(ctx, on_error=self.on_error), operator)

    def _link(self, ctx: LinkContext, operator: Any) -> Link:
        return ProcessLink(ctx, operator, Hook.of(operator.process, keyed=self.keyed), self._on_timer(operator))

    def _on_timer(self, operator: Any) -> Hook | None:
        """None where the operator has not defined it: then it can't mean to use timers."""
        return Hook.of(operator.on_timer, keyed=True) if self._defines_on_timer(type(operator)) else None

    def _defines_on_timer(self, cls: type) -> bool:
        return self.keyed and getattr(cls, "on_timer", None) not in (None, getattr(self.kinds.keyed, "on_timer", None))


def _class_behind(factory: Any) -> type | None:
    """The operator class, where it can be told without calling the factory."""
    factory = getattr(factory, "func", factory)
    return factory if isinstance(factory, type) else None


_UNSET: Any = object()


def reducer(fn: Callable[[Any, Any], Any], element_type: Any) -> type[KeyedOperator[Any, Any, Any]]:
    """The operator behind `reduce`: emits the key's running result for every record (Flink: KeyedStream.reduce)."""

    class Reduce(KeyedOperator[Any, Any, Any]):
        result = ValueState[Any](element_type, default=_UNSET)

        def process(self, value: Any, ctx: Any, /) -> None:
            before = self.result.get()
            after = value if before is _UNSET else fn(before, value)
            self.result.set(after)
            ctx.emit(after)

    class AsyncReduce(Reduce):
        async def process(self, value: Any, ctx: Any, /) -> None:  # type: ignore[override]
            before = self.result.get()
            after = value if before is _UNSET else await fn(before, value)
            self.result.set(after)
            ctx.emit(after)

    return AsyncReduce if is_async(fn) else Reduce


@dataclass(frozen=True)
class ReduceSpec(OperatorSpec):
    fn: Callable[[Any, Any], Any]
    element_type: Any

    @property
    def kind(self) -> str:
        return "reduce"

    @property
    def keeps_record_ids(self) -> bool:
        return True

    @property
    def keyed_state(self) -> bool:
        return True

    def link(self, ctx: LinkContext) -> Link:
        operator = reducer(self.fn, self.element_type)()
        return ProcessLink(ctx, operator, Hook.of(operator.process, keyed=True))
