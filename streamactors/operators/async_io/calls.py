"""Calls of user code, each a task of its own: begun, repeated, timed out, given up, and never left behind.

Invariant: `on_done` is told of every call exactly once, and only while the link is open; a task that outlives its call
(because it swallows its cancellation) changes nothing any more.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context, copy_context
from typing import Any, Final

from streamactors.clock import Clock
from streamactors.errors import CallCancelled
from streamactors.operators.async_io.held import Held
from streamactors.operators.async_io.settings import Retry

GRACE: Final = 1.0
"""Seconds that a call has to end in after it was cancelled."""
PATIENCE: Final = 5.0
"""Seconds that all calls together have to end in when the link is closed."""


class Invocation:
    """One call of user code, with the records that it works on. `attempt` counts from 1."""

    __slots__ = ("attempt", "context", "error", "expired", "left", "records", "result", "task")

    def __init__(self, records: Sequence[Held]) -> None:
        self.records = records
        self.left = len(records)
        """Those that are not handed on yet."""
        self.attempt = 1
        self.task: asyncio.Task[None] | None = None
        self.context: Context | None = None
        self.expired = False
        self.result: Any = None
        self.error: BaseException | None = None


class Calls:
    """The calls that one link has begun. `call` makes the awaitable of an attempt; `on_done` finds the result or the
    error in the invocation. Seconds for `timeout`, of each attempt."""

    def __init__(
        self,
        name: str,
        call: Callable[[Invocation], Awaitable[Any]],
        on_done: Callable[[Invocation], None],
        *,
        clock: Clock,
        log: logging.LoggerAdapter[logging.Logger],
        timeout: float | None = None,
        retry: Retry | None = None,
    ) -> None:
        self._name = name
        self._call = call
        self._on_done = on_done
        self._clock = clock
        self._log = log
        self._timeout = timeout
        self._retry = retry
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._deadlines: dict[Invocation, float] = {}
        """Of the attempts under way, the earliest first: all have the same time."""
        self._timer: asyncio.TimerHandle | None = None
        self._graces: dict[Invocation, asyncio.TimerHandle] = {}
        self._closed = False

    def begin(self, invocation: Invocation, context: Context | None = None) -> None:
        """In a copy of the caller's context, unless another is given."""
        invocation.context = copy_context() if context is None else context
        self._begin(invocation, 0.0)

    def _begin(self, invocation: Invocation, delay: float) -> None:
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._live(invocation, delay), name=self._name, context=invocation.context)
        if not task.done():  # as where the service makes its tasks eager
            self._tasks[task] = None

    async def _live(self, invocation: Invocation, delay: float) -> None:
        """Attempts until one is the last."""
        task = invocation.task = asyncio.current_task()
        assert task is not None
        try:
            if delay:
                await self._clock.sleep(delay)
            while not await self._attempt(invocation, task):
                await self._clock.sleep(self._next_attempt(invocation))
        except asyncio.CancelledError as cancelled:
            if self._closed or invocation.task is not task:
                raise
            error = CallCancelled("the call was cancelled in the pause before another attempt")
            error.__cause__ = cancelled
            self._finish(invocation, None, error)
        finally:
            self._tasks.pop(task, None)

    async def _attempt(self, invocation: Invocation, task: asyncio.Task[None]) -> bool:
        """Whether it was the last one."""
        if self._timeout is not None:
            self._expect(invocation, self._timeout)
        error: BaseException | None = None
        result = None
        try:
            result = await self._call(invocation)
        except asyncio.CancelledError as cancelled:
            if self._closed:
                raise
            error = CallCancelled("the call was cancelled from within: something that it awaited was cancelled")
            error.__cause__ = cancelled
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise  # the loop's own end
        except BaseException as raised:
            error = raised
        if invocation.task is not task or self._closed:
            return True  # given up meanwhile
        while task.cancelling():  # or what the next attempt awaits would mind
            task.uncancel()
        if invocation.expired and error is not None:
            error = self._timed_out(error)
        self._ended(invocation)
        if error is not None and self._may_repeat(invocation, error):
            return False
        self._finish(invocation, result, error)
        return True

    def _finish(self, invocation: Invocation, result: Any, error: BaseException | None) -> None:
        invocation.result, invocation.error = result, error
        self._on_done(invocation)

    # --------------------------------------------------------------------------------------------------- once more
    def _may_repeat(self, invocation: Invocation, error: BaseException) -> bool:
        retry = self._retry
        return retry is not None and invocation.attempt < retry.attempts and isinstance(error, retry.on)

    def _next_attempt(self, invocation: Invocation) -> float:
        """In how many seconds."""
        assert self._retry is not None
        delay = self._retry.delay(invocation.attempt, self._clock.random())
        invocation.attempt += 1
        return delay

    # --------------------------------------------------------------------------------------------------- time-outs
    def _expect(self, invocation: Invocation, timeout: float) -> None:
        loop = asyncio.get_running_loop()
        self._deadlines[invocation] = loop.time() + timeout
        if self._timer is None:
            self._timer = loop.call_later(timeout, self._expire)

    def _ended(self, invocation: Invocation) -> None:
        invocation.expired = False
        self._deadlines.pop(invocation, None)
        if self._graces and (grace := self._graces.pop(invocation, None)) is not None:
            grace.cancel()

    def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        now = loop.time()
        while self._deadlines:
            invocation, deadline = next(iter(self._deadlines.items()))
            if deadline > now:
                self._timer = loop.call_at(deadline, self._expire)
                return
            del self._deadlines[invocation]
            invocation.expired = True
            assert invocation.task is not None
            self._graces[invocation] = loop.call_later(GRACE, self._give_up, invocation)
            invocation.task.cancel()

    def _give_up(self, invocation: Invocation) -> None:
        """It has swallowed its cancellation: whatever its task does now changes nothing."""
        del self._graces[invocation]
        self._log.warning(
            "%s: a call did not end within %.1f s of its time-out, and was given up: it swallows CancelledError",
            self._name,
            GRACE,
        )
        invocation.expired = False
        invocation.task = None
        error = self._timed_out()
        if self._may_repeat(invocation, error):
            # What its task sets in its context must not be seen by the next attempt, nor the other way round.
            invocation.context = copy_context() if invocation.context is None else invocation.context.copy()
            self._begin(invocation, self._next_attempt(invocation))
        else:
            self._finish(invocation, None, error)

    def _timed_out(self, cause: BaseException | None = None) -> Exception:
        error = TimeoutError(f"the call took longer than its timeout of {self._timeout} s")
        error.__cause__ = cause
        return error

    # ----------------------------------------------------------------------------------------------------- the end
    async def close(self) -> None:
        """Cancel what runs, and await it, for a bounded time."""
        self._closed = True
        for timer in (self._timer, *self._graces.values()):
            if timer is not None:
                timer.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if not tasks:
            return
        _, stuck = await asyncio.wait(tasks, timeout=PATIENCE)
        if stuck:
            self._log.error(
                "%s: %d calls did not end within %.1f s of their cancellation, and were left behind: they swallow "
                "CancelledError", self._name, len(stuck), PATIENCE
            )  # fmt: skip
