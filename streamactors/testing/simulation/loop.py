"""An event loop without I/O: what runs next is drawn by seed, and time is virtual.

Invariants. Of all tasks that are ready, any may run next; plain callbacks and the first steps of tasks keep their order
among themselves, as asyncio promises, and no task overtakes one that was registered before it. Time moves a little with
every step, and jumps to the next timer when nothing is ready. Iterating over a set of tasks gives the same order in
every process.
"""

import asyncio
import heapq
from asyncio import events
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Executor
from contextvars import Context
from random import Random
from typing import Any, Final, Literal, TypeVar, TypeVarTuple, Unpack

from streamactors.errors import Crashed
from streamactors.testing.simulation.trace import Trace

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Order = Literal["uniform", "priorities", "fifo"]
"""How the next task is drawn. `priorities`: some tasks are nearly starved, which finds other interleavings than equal
chances do (Burckhardt et al., "A Randomized Scheduler with Probabilistic Guarantees of Finding Bugs", 2010)."""

FINALIZER: Final = "end of an async generator"
"""Name of the task by which asyncio closes one that was dropped without being closed."""
FAIR: Final = 0.15
"""Under `priorities`, the share of steps that are drawn with equal chances: whoever polls must not poll for ever."""
BURIALS: Final = 100
"""How often a coroutine of a crashed process may catch its death and wait again."""


class VirtualTime:
    """Seconds. Knows no loop, so that whoever measures by it keeps none alive."""

    def __init__(self, random: Random, now: float, step_seconds: float) -> None:
        self.now = now
        self._random = random.random
        self._step_seconds = step_seconds

    def tick(self) -> float:
        """The time, after a little work."""
        self.now += self._random() * self._step_seconds
        return self.now


class SimulatedTask(asyncio.Task[T]):
    """Hashes by its number: the address, by which sets order tasks otherwise, differs from process to process."""

    def __init__(
        self, coro: Any, loop: "SimulationLoop", number: int, priority: float, *, name: str | None, **options: Any
    ) -> None:
        self.number = number
        self.priority = priority
        super().__init__(
            coro, loop=loop, name=name or f"{getattr(coro, '__qualname__', FINALIZER)} {number}", **options
        )

    def __hash__(self) -> int:
        return self.number


class Step(asyncio.Handle):
    """Something ready to run; `task` None: a plain callback. `in_order`: after all that were registered before it and
    are in order too."""

    __slots__ = ("in_order", "task")

    def __init__(self, callback: Any, args: Any, loop: "SimulationLoop", context: Any, *, first: bool) -> None:
        super().__init__(callback, args, loop, context)
        owner = getattr(callback, "__self__", None)
        self.task: SimulatedTask[Any] | None = owner if isinstance(owner, SimulatedTask) else None
        self.in_order = first or self.task is None


class Timer(asyncio.TimerHandle):
    """A step that becomes ready at a time. Most wake a task by a future: those are plain callbacks."""

    __slots__ = ("in_order", "task")

    def __init__(self, when: float, callback: Any, args: Any, loop: "SimulationLoop", context: Any) -> None:
        super().__init__(when, callback, args, loop, context)
        self.task: SimulatedTask[Any] | None = None
        self.in_order = True


class SimulationLoop(asyncio.BaseEventLoop):
    """Of one simulated process. `before_step` is called before every step; it may stop the loop instead."""

    def __init__(self, random: Random, trace: Trace, time: VirtualTime, *, order: Order) -> None:
        super().__init__()
        self._ready: list[asyncio.Handle] = []
        self._scheduled: list[asyncio.TimerHandle] = []
        self._stopping = False
        self._random = random.random
        self._trace = trace
        self._time = time
        self._order = order
        self._tasks: list[SimulatedTask[Any]] = []
        self._task_count = 0
        self._prune_at = 256
        self._creating = False
        self._dead = False
        self.steps = 0
        self.before_step: Callable[[], bool] = lambda: True
        """Whether the step may be taken."""
        self.stuck = False
        """It had nothing to do, and no timer to wait for."""
        self.owner: object = None
        """The process that it is the loop of."""
        self.complaints: list[str] = []
        """What asyncio would have logged: exceptions that nobody has seen, tasks destroyed."""
        self.hooks = self._asyncgen_firstiter_hook, self._asyncgen_finalizer_hook  # type: ignore[attr-defined]
        """For async generators that begin in a step of its own."""
        self.set_exception_handler(self._complain)

    # ----------------------------------------------------------------------------------------------------------- time
    def time(self) -> float:
        return self._time.now

    # ------------------------------------------------------------------------------------------------------ scheduling
    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        step = Step(callback, args, self, context, first=self._creating)
        if not self._dead:
            self._ready.append(step)
        return step

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = Timer(when, callback, args, self, context)
        if not self._dead:
            timer._scheduled = True  # type: ignore[attr-defined]
            heapq.heappush(self._scheduled, timer)
        return timer

    def call_soon_threadsafe(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        if self._dead:
            raise Crashed
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, T] | Generator[Any, None, T], *, name: str | None = None, **options: Any
    ) -> SimulatedTask[T]:
        if self._dead:
            coro.close()
            raise Crashed
        self._task_count += 1
        self._creating = True
        task: SimulatedTask[T] = SimulatedTask(coro, self, self._task_count, self._random(), name=name, **options)
        self._creating = False
        self._tasks.append(task)
        if len(self._tasks) > self._prune_at:
            self._tasks = self.unfinished()
            self._prune_at = 2 * len(self._tasks) + 256
        return task

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        raise RuntimeError("a simulated process has no threads: reach blocking work through clock.run_blocking")

    def unfinished(self) -> list[SimulatedTask[Any]]:
        """In the order they were made."""
        return [task for task in self._tasks if not task.done()]

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stopping

    def runnable(self) -> bool:
        """Whether there is a step to take now."""
        scheduled = self._scheduled
        return bool(self._ready) or (bool(scheduled) and scheduled[0].when() <= self._time.now)

    def next_timer(self) -> float | None:
        """When it has a step to take if nothing comes from outside; None: never."""
        while self._scheduled and self._scheduled[0].cancelled():
            self._due(heapq.heappop(self._scheduled))
        return self._scheduled[0].when() if self._scheduled else None

    def _run_once(self) -> None:
        if not self._ready:
            self._jump()
        self.step()

    def step(self) -> None:
        """One of those that may be taken now, if there is any."""
        ready, scheduled = self._ready, self._scheduled
        while scheduled and scheduled[0].when() <= self._time.now:
            self._due(heapq.heappop(scheduled))
        if not ready:
            return
        choice, among = self._choose(ready)
        handle = ready.pop(choice)
        if handle.cancelled():
            return
        self._trace.decided(choice, among)
        self._time.tick()
        self.steps += 1
        if self.before_step():
            if self._trace.followed:
                self._trace.tell(_described(handle))
            handle._run()

    def _jump(self) -> None:
        """To the next timer; with none, nothing will ever happen again."""
        due = self.next_timer()
        if due is not None:
            self._time.now = max(self._time.now, due)
        elif not self._stopping:
            self.stuck = True
            self.stop()

    def _due(self, timer: asyncio.TimerHandle) -> None:
        timer._scheduled = False  # type: ignore[attr-defined]
        if not timer.cancelled():
            self._ready.append(timer)

    def _choose(self, ready: list[asyncio.Handle]) -> tuple[int, int]:
        """The place of the step to take, and among how many it was drawn."""
        if self._order == "fifo" or len(ready) == 1:
            return 0, 1
        among = 0
        for handle in ready:
            among += 1
            if handle.in_order:  # type: ignore[attr-defined]
                break
        if among == 1:
            return 0, 1
        if self._order == "priorities" and self._random() > FAIR:
            return max(range(among), key=lambda place: _priority(ready[place])), among
        return int(self._random() * among), among

    # ------------------------------------------------------------------------------------------------------------- end
    def bury(self) -> None:
        """End as a crash does: nothing of this process acts any more. What its coroutines would do on their way out
        meets handles that are dead, and a loop that takes nothing."""
        self._dead = True
        self._ready.clear()
        self._scheduled.clear()
        running = events._get_running_loop()
        events._set_running_loop(self)
        try:
            for task in self.unfinished():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                _end_coroutine(task)
        finally:
            events._set_running_loop(running)
        self._tasks.clear()
        self.close()

    def _complain(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not self._dead:
            error = context.get("exception")
            self.complaints.append(f"{context['message']}{f': {error!r}' if error is not None else ''}")

    def _asyncgen_finalizer_hook(self, agen: Any) -> None:
        if not self._dead:
            super()._asyncgen_finalizer_hook(agen)  # type: ignore[misc]

    def _process_events(self, event_list: Any) -> None:
        """There is no I/O."""

    def _write_to_self(self) -> None:
        """There is nothing to wake it from."""


def _end_coroutine(task: SimulatedTask[Any]) -> BaseException | None:
    """How it ended; None if it goes on waiting whatever is thrown at it."""
    coroutine: Any = task.get_coro()
    for _ in range(BURIALS):
        try:
            coroutine.throw(Crashed())
        except BaseException as error:
            return error
    return None


def _priority(handle: asyncio.Handle) -> float:
    task: SimulatedTask[Any] | None = handle.task  # type: ignore[attr-defined]
    return 0.5 if task is None else task.priority


def _described(handle: asyncio.Handle) -> str:
    task: SimulatedTask[Any] | None = handle.task  # type: ignore[attr-defined]
    if task is not None:
        return f"step {task.number} {task.get_name()}"
    callback = handle._callback  # type: ignore[attr-defined]
    return f"call {getattr(callback, '__qualname__', type(callback).__name__)}"
