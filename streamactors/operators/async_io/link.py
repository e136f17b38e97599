"""A link that holds *calls*: inputs taken and not finished, running or waiting, with the marks that came between them.

Invariants. `process` takes the whole batch, and emits nothing: results are handed on by `harvest`, which the chain
calls when nothing is in hand, and only there do the effects of calls show (`complete`). So at every moment between two
steps each input that came is either held, or all its effects are in state and behind the link. A snapshot stores what
is held (`in_flight`) as in flight on the edge that it came by, in its order, marks included; after recovery it comes
again, and its calls are made again. No barrier waits for a call.

A mark is held behind the calls ahead of it. Nothing is begun but in `process` and `harvest`, that is, in the subtask's
own task and context.
"""

from abc import abstractmethod
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from streamactors.elements import MAX_TIME, Batch, EndOfKeys, Watermark
from streamactors.errors import UnserialisableValue
from streamactors.operators.async_io.calls import Calls, Invocation
from streamactors.operators.async_io.held import TAKEN_TOGETHER, CallQueue, Held, Intake, Mark, originals
from streamactors.operators.async_io.settings import Retry
from streamactors.operators.base import Link, LinkContext

BEGIN_AT_ONCE: Final = 64
"""Calls that are begun in one step, which so takes about half a millisecond."""


@dataclass(slots=True)
class Emitted:
    """What some finished calls have put out. `home`: of their records (see `Batch.home`)."""

    batch: Batch | None
    sides: dict[str, Batch] = field(default_factory=dict)
    home: tuple[str, str] | None = None


class AsyncLink(Link):
    """One async operator of one subtask."""

    hand_on_at_once: ClassVar[int] = 1024
    """Results in one step, which so takes a millisecond or two."""
    route: object = None
    """How the next batch or mark comes to it; set by the chain."""

    def __init__(
        self,
        ctx: LinkContext,
        queue: CallQueue,
        *,
        capacity: int,
        timeout: float | None = None,
        retry: Retry | None = None,
    ) -> None:
        super().__init__(ctx)
        self.capacity = capacity
        self.queue = queue
        self.running = 0
        """Calls begun, and not yet handed on."""
        self._together = TAKEN_TOGETHER
        self._failure: BaseException | None = None
        ctx.operator.metrics.gauge("calls_running", lambda: self.running)
        ctx.operator.metrics.gauge("calls_held", lambda: len(self.queue))
        name = f"call of {ctx.uid}[{ctx.operator.subtask}]"
        log = ctx.operator.log
        self.calls = Calls(name, self.call, self._done, clock=ctx.clock, log=log, timeout=timeout, retry=retry)

    # ------------------------------------------------------------------------------------------- what each one defines
    @abstractmethod
    def call(self, invocation: Invocation) -> Awaitable[Any]:
        """User code on these records."""

    @abstractmethod
    def arrived(self, held: Held) -> None:
        """It is in the queue; note when it is to be called."""

    @abstractmethod
    def next_call(self) -> Invocation | None:
        """The next one that may begin, whatever the capacity."""

    @property
    @abstractmethod
    def waiting(self) -> bool:
        """Whether `next_call` has one."""

    @abstractmethod
    def complete(self, done: list[Held]) -> list[Emitted]:
        """Their calls are over, without error unless errors have an output: let all that they have done take effect
        now, and give what they have put out."""

    def over(self, invocation: Invocation) -> None:
        """A call has ended: its result to its records. What it has done takes effect later, in `complete`."""
        for held in invocation.records:
            held.result = invocation.result

    async def reached(self, mark: Mark) -> bool:
        """All ahead of a mark is handed on. False: the link has put more ahead of it (`UnorderedQueue.add_first`)."""
        return True

    def flush(self) -> None:
        """No more is to come for now that could go with what waits: the end of the data."""

    # --------------------------------------------------------------------------------------------------- for the chain
    @property
    def holding(self) -> bool:
        return not self.queue.empty

    @property
    def full(self) -> bool:
        """Whether no new batch should be taken: that is the back-pressure. Marks and barriers still are."""
        return len(self.queue) >= self.capacity

    @property
    def ready(self) -> bool:
        """Whether `harvest` has something to do."""
        return self.queue.ready or self._failure is not None or (self.waiting and self.running < self.capacity)

    async def process(self, batch: Batch) -> Batch | None:
        start = 0
        while start < len(batch):
            intake = self._taken_in(batch.slice(start, start + self._together))
            start += len(intake.batch)
            self._together = intake.fitting
            for index in range(len(intake.batch)):
                held = Held(intake, index)
                self.queue.add(held)
                self.arrived(held)
        self.begin_calls()
        return None

    def hold(self, mark: Mark) -> bool:
        """Whether it waits behind the calls ahead of it."""
        if self.queue.empty:
            return False
        self.queue.mark(mark, self.route)
        return True

    async def harvest(self) -> list[Emitted | Mark]:
        """What may go on, in order; and begin calls in the place of those that are over. Raises what a call has raised
        where errors have no output."""
        if self._failure is not None:
            raise self._failure
        out: list[Emitted | Mark] = []
        while self.queue.ready:
            mark = self.queue.next_mark()
            if mark is not None and not await self.reached(mark):
                break
            taken = self.queue.take(self.hand_on_at_once)
            if isinstance(taken, list):
                self.handed_on(taken)
                out += self.complete(taken)
                if len(taken) == self.hand_on_at_once:
                    break
            elif taken is not None:
                out.append(taken)
        self.begin_calls()
        return out

    def in_flight(self) -> Iterator[tuple[object, Batch | Mark]]:
        """What is held, as it came, in its order, with its routes. Not the end of the data: whoever goes on from here
        meets it again."""
        for route, element in originals(self.stored_elements()):
            if isinstance(element, EndOfKeys) or (isinstance(element, Watermark) and element.time_ms == MAX_TIME):
                continue
            yield route, element

    def stored_elements(self) -> Iterator[Held | tuple[Mark, object]]:
        """What is held and in no state."""
        return self.queue.elements()

    async def close(self) -> None:
        await self.calls.close()

    # --------------------------------------------------------------------------------------------------------- helpers
    def begin_calls(self) -> None:
        """As many as there is room for, a slice of them at a time."""
        for _ in range(min(BEGIN_AT_ONCE, self.capacity - self.running)):
            invocation = self.next_call()
            if invocation is None:
                return
            self.running += 1
            self.begin(invocation)

    def begin(self, invocation: Invocation) -> None:
        self.calls.begin(invocation)

    def handed_on(self, done: list[Held]) -> None:
        """They make room for other calls."""
        self.running -= len(done)

    def failed_call(self, invocation: Invocation, error: Exception) -> None:
        """Errors have no output: the job fails by it."""
        if self._failure is None:
            held = invocation.records[0]
            self._failure = self.failed(error, held.intake.batch, held.index)
            self._failure.__cause__ = error

    def _done(self, invocation: Invocation) -> None:
        try:
            self._ended(invocation, invocation.error)
        except Exception as error:  # such as that of an exception's own __str__: else nobody would hear of the call
            self._failure = self._failure or error
        self.ctx.wake()

    def _ended(self, invocation: Invocation, error: BaseException | None) -> None:
        if error is not None and not isinstance(error, Exception):
            self._failure = self._failure or error  # as it would go through any other step
        elif error is not None and self.ctx.on_error == "fail":
            self.failed_call(invocation, error)
        else:
            self.over(invocation)
            for held in invocation.records:
                held.error = error
                self.queue.finished(held)

    def _taken_in(self, batch: Batch) -> Intake:
        try:
            return Intake(batch, self.route, self.ctx.keep)
        except UnserialisableValue as error:
            kinds = sorted({f"{type(value).__module__}.{type(value).__qualname__}" for value in batch.values})
            raise UnserialisableValue(
                f"records of type {', '.join(kinds)} come to the async step {self.uid!r} and can't be stored, and a "
                f"checkpoint stores those that its calls are working on: {error}"
            ) from error
