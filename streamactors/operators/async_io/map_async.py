"""`map_async`: `await fn(record)` for many records at once, in one subtask."""

import asyncio
import datetime as dt
import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from streamactors.elements import Batch, DeadLetter, ErrorRoute, OutputTag
from streamactors.errors import InvalidDataflow
from streamactors.operators import record_ids
from streamactors.operators.async_io.calls import Invocation
from streamactors.operators.async_io.held import Held, OrderedQueue, UnorderedQueue, gather
from streamactors.operators.async_io.link import AsyncLink, Emitted
from streamactors.operators.async_io.settings import BatchOf, Retry, check_duration, check_whole
from streamactors.operators.base import Link, LinkContext, OperatorSpec, dead_letter, is_async


class MapAsyncLink(AsyncLink):
    """One call for each record."""

    def __init__(self, ctx: LinkContext, spec: "MapAsyncSpec") -> None:
        queue = OrderedQueue() if spec.ordered else UnorderedQueue()
        timeout = None if spec.timeout is None else spec.timeout.total_seconds()
        super().__init__(ctx, queue, capacity=spec.capacity, timeout=timeout, retry=spec.retry)
        self._fn = spec.fn
        self._waiting: deque[Invocation] = deque()

    @property
    def waiting(self) -> bool:
        return bool(self._waiting)

    def arrived(self, held: Held) -> None:
        self._waiting.append(Invocation((held,)))

    def next_call(self) -> Invocation | None:
        return self._waiting.popleft() if self._waiting else None

    def begin(self, invocation: Invocation) -> None:
        context = None
        if self.ctx.record_ids:
            context = copy_context()
            context.run(record_ids.CURRENT.set, tuple(held.id for held in invocation.records))
        self.calls.begin(invocation, context)

    def call(self, invocation: Invocation) -> Awaitable[Any]:
        return _awaitable(self._fn(invocation.records[0].value))

    # --------------------------------------------------------------------------------------------------------- results
    def complete(self, done: list[Held]) -> list[Emitted]:
        return [self._emitted(list(lot)) for _, lot in groupby(done, _lot)]

    def _emitted(self, lot: list[Held]) -> Emitted:
        """Of records of one lot: what has come of them, and dead letters of those that failed."""
        good = lot
        sides: dict[str, Batch] = {}
        if isinstance(self.ctx.on_error, OutputTag):
            good = [held for held in lot if held.error is None]
            if len(good) < len(lot):
                failed = [held for held in lot if held.error is not None]
                sides[self.ctx.on_error.name] = self._dead_letters(failed)
        batch = gather(good, [held.result for held in good]) if good else None
        return Emitted(batch, sides, lot[0].intake.batch.home)

    def _dead_letters(self, failed: list[Held]) -> Batch:
        self.ctx.operator.metrics.counter("dead_letters").inc(len(failed))
        letters = gather(failed, [self._letter(held) for held in failed])
        if letters.ids is not None:
            letters.ids = [record_ids.dead(id) for id in letters.ids]
        return letters

    def _letter(self, held: Held) -> DeadLetter:
        assert held.error is not None
        [value] = held.intake.originals([held.index])  # as it came, whatever the call has done to it
        return dead_letter(self.uid, value, held.intake.batch.origin(held.index), held.error)


class BatchedMapLink(MapAsyncLink):
    """One call for several records. `capacity` counts calls."""

    def __init__(self, ctx: LinkContext, spec: "MapAsyncSpec", batch: BatchOf) -> None:
        super().__init__(ctx, spec)
        self._max_size = batch.max_size
        self._max_wait = batch.max_wait.total_seconds()
        self._forming: list[Held] = []
        self._timer: asyncio.TimerHandle | None = None

    @property
    def full(self) -> bool:
        return len(self.queue) >= self.capacity * self._max_size

    def arrived(self, held: Held) -> None:
        self._forming.append(held)
        if len(self._forming) == self._max_size:
            self.flush()
        elif len(self._forming) == 1:
            self._timer = asyncio.get_running_loop().call_later(self._max_wait, self._waited)

    def _waited(self) -> None:
        self.flush()
        self.ctx.wake()

    def flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._forming:
            invocation = Invocation(self._forming)
            for held in self._forming:
                held.owner = invocation
            self._waiting.append(invocation)
            self._forming = []

    def call(self, invocation: Invocation) -> Awaitable[Any]:
        return self._results([held.value for held in invocation.records])

    async def _results(self, values: list[Any]) -> Sequence[Any]:
        wanted = len(values)  # counted before: the list is the function's
        results = await _awaitable(self._fn(values))
        if not isinstance(results, Sequence) and hasattr(results, "tolist"):
            results = list(results)  # a numpy array is no Sequence
        if not isinstance(results, Sequence) or isinstance(results, str | bytes):
            raise TypeError(
                f"the function of {self.uid!r} got a list of {wanted} records (batch=…), and gave a "
                f"{type(results).__name__}: it has to return a list of as many results, in the order of the records"
            )
        if len(results) != wanted:
            raise ValueError(
                f"the function of {self.uid!r} got a list of {wanted} records (batch=…), and gave {len(results)} "
                "results: it has to return one for each record, in their order"
            )
        return results

    def over(self, invocation: Invocation) -> None:
        if invocation.error is None:
            for held, result in zip(invocation.records, invocation.result, strict=True):
                held.result = result

    def handed_on(self, done: list[Held]) -> None:
        """A call makes room once all of its records are handed on."""
        for held in done:
            invocation: Invocation = held.owner
            invocation.left -= 1
            if not invocation.left:
                self.running -= 1

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await super().close()


def _lot(held: Held) -> Any:
    return held.intake.lot


def _awaitable(result: Any) -> Awaitable[Any]:
    if not inspect.isawaitable(result):
        raise TypeError(
            "a function of map_async gives something to await (async def), and this one gave a "
            f"{type(result).__name__}: where there is nothing to await, use map; what blocks goes into a thread, as by "
            "asyncio.to_thread"
        )
    return result


@dataclass(frozen=True)
class MapAsyncSpec(OperatorSpec):
    fn: Callable[[Any], Awaitable[Any]]
    capacity: int
    timeout: dt.timedelta | None
    ordered: bool
    retry: Retry | None
    batch: BatchOf | None
    on_error: ErrorRoute

    @property
    def kind(self) -> str:
        return "map_async"

    @property
    def error_tag(self) -> OutputTag[DeadLetter] | None:
        return self.on_error if isinstance(self.on_error, OutputTag) else None

    @property
    def holds_calls(self) -> bool:
        return True

    @property
    def uses_record_id(self) -> bool:
        return record_ids.uses_record_id(self.fn)

    @property
    def keeps_record_ids(self) -> bool:
        return True

    def validate(self, uid: str) -> None:
        check_whole(f"map_async {uid!r}: capacity", self.capacity)
        if self.timeout is not None:
            check_duration(f"map_async {uid!r}: timeout", self.timeout, positive=True)
        for name, kind in (("retry", Retry), ("batch", BatchOf)):
            given = getattr(self, name)
            if given is not None and not isinstance(given, kind):
                raise InvalidDataflow(f"map_async {uid!r}: {name} is a {kind.__name__}(…), not {given!r}")
        if _is_plain(self.fn):
            raise InvalidDataflow(
                f"map_async {uid!r} takes an async function, and {self.fn.__qualname__} is a plain def: make it an "
                "async def, or use map; what blocks goes into a thread, as by asyncio.to_thread"
            )

    def link(self, ctx: LinkContext) -> Link:
        ctx = replace(ctx, on_error=self.on_error)
        return MapAsyncLink(ctx, self) if self.batch is None else BatchedMapLink(ctx, self, self.batch)


def _is_plain(fn: Any) -> bool:
    """A lambda may give an awaitable, and what is annotated may say so."""
    if is_async(fn) or not inspect.isroutine(fn) or fn.__name__ == "<lambda>":
        return False
    returned = getattr(fn, "__annotations__", {}).get("return")
    return inspect.isfunction(fn) and "wait" not in str(returned) and "Coroutine" not in str(returned)
