"""One process of a simulated job: from its start until the job ends, or until it crashes in the middle."""

import asyncio
import gc
from collections.abc import Callable, Coroutine, Iterator
from random import Random
from typing import Any, Final, Literal

from streamactors.errors import (
    CheckpointFailed,
    ConnectionLost,
    JobFailed,
    JobNotRunning,
    RescaleFailed,
    RescaleUnderWay,
    StorageFailed,
    WorkerLost,
)
from streamactors.launch import JobHandle
from streamactors.runtime.job import Job
from streamactors.testing.simulation.faults import MARK
from streamactors.testing.simulation.loop import FINALIZER
from streamactors.testing.simulation.process import Process
from streamactors.testing.simulation.sink import ALL_TAKEN, REFUSED
from streamactors.testing.simulation.world import World

Crash = Literal["kills", "power_losses"]
IDLE_SECONDS: Final = 60.0
IDLE_STEPS: Final = 20_000
"""So long and so many steps without anything read or written: it is going round in circles."""
COLLECT_STEPS: Final = 4000
"""A garbage collection comes at most every so many steps."""
LEAVING_STEPS: Final = 1000
REQUEST: Final = "request: "
OUTSIDE: Final = ("main", "job", REQUEST, "Job.", "autoscaler ")
"""How the names of tasks begin that are not the attempt's: a request may wait for the next one."""
REFUSALS: Final = (CheckpointFailed, JobFailed, JobNotRunning, RescaleFailed, RescaleUnderWay, StorageFailed)
"""How requests to a job that is disturbed may end."""


class Life:
    """`run` it once; then `crash` says how it ended, None in peace."""

    def __init__(
        self, world: World, process: Process, job: Job, widths: Callable[[Random], dict[str, int]] | None = None
    ) -> None:
        """`widths`: draws the parallelism of steps, by uid, to rescale to; None: it never is."""
        self.crash: Crash | None = None
        self._world = world
        self._process = process
        self._loop = process.loop
        self._job = job
        self._widths = widths
        self._actors: frozenset[str] = frozenset()
        self._stopper: asyncio.Task[None] | None = None
        self._requests: list[asyncio.Task[None]] = []
        self._running: asyncio.Task[None] | None = None
        self._draw = process.fate.random(f"life {process.number}")
        self._next_look = 1
        self._idle_since = 0

    def run(self) -> None:
        loop = self._loop
        main = loop.create_task(self._main(), name="main")
        main.add_done_callback(lambda _: loop.stop())
        self._process.run(self._before_step)
        self._process.trace.note(f"process {self._process.number} ends at {loop.time():.6f}: {self.crash}")
        if main.done():
            main.result()

    async def _main(self) -> None:
        self._running = self._loop.create_task(self._job.run(), name="job")
        await asyncio.wait([self._running])
        if self._requests:
            await asyncio.wait(self._requests)
        for _ in range(LEAVING_STEPS):
            if len(self._loop.unfinished()) == 1:
                break
            await asyncio.sleep(0)

    @property
    def finished(self) -> bool:
        """Whether the job has come to the end of its input."""
        ended = self._running is not None and self._running.done() and self.crash is None
        return ended and self._stopper is None and self._error() is None

    def _error(self) -> BaseException | None:
        running = self._running
        if running is None or not running.done():
            return None
        return asyncio.CancelledError() if running.cancelled() else running.exception()

    # ------------------------------------------------------------------------------------------------------- every step
    def _before_step(self) -> bool:
        strikes = self._process.fate.strikes
        if strikes("kills"):
            return self._die("kills")
        if strikes("power_losses"):
            return self._die("power_losses")
        if strikes("actor_crashes"):
            self._crash_actor()
        if strikes("stops"):
            self._stop()
        if strikes("savepoints"):
            self._take_savepoint()
        if strikes("rescales"):
            self._rescale()
        if self._process.steps >= self._next_look:
            self._look()
        if self._world.broken:
            self._loop.stop()
            return False
        return True

    def _die(self, crash: Crash) -> bool:
        self.crash = crash
        self._process.trace.note(crash)
        self._loop.stop()
        return False

    def _crash_actor(self) -> None:
        actors = [task for task in self._process.unfinished() if task.get_name() in self._actors]
        if not actors:
            self._process.fate.struck["actor_crashes"] -= 1
            return
        victim = self._draw.choice(actors)
        self._process.note(f"actor {victim.get_name()} crashes")
        victim.cancel(MARK)

    def _stop(self) -> None:
        if self._stopper is not None or (handle := self._handle()) is None:
            self._process.fate.struck["stops"] -= 1
            return
        savepoint = None
        if self._process.fate.faults.savepoints and self._draw.random() < 0.5:
            savepoint = self._world.timeline.new_savepoint()
        self._process.note(f"stop, savepoint {savepoint}")
        self._stopper = self._request("stop", lambda: self._stop_in_peace(handle, savepoint))

    async def _stop_in_peace(self, handle: JobHandle, savepoint: str | None) -> None:
        self._taken(savepoint, await handle.stop(savepoint))

    def _take_savepoint(self) -> None:
        """At any moment, also while checkpoints or other savepoints are in flight."""
        if (handle := self._handle()) is None:
            self._process.fate.struck["savepoints"] -= 1
            return
        uri = self._world.timeline.new_savepoint()
        self._process.note(f"savepoint {uri}")
        self._request(f"savepoint {uri}", lambda: self._save(handle, uri))

    async def _save(self, handle: JobHandle, uri: str) -> None:
        self._taken(uri, await handle.savepoint(uri))

    def _rescale(self) -> None:
        """At any moment, also while it is rescaled already, or stops."""
        if self._widths is None or (handle := self._handle()) is None:
            self._process.fate.struck["rescales"] -= 1
            return
        widths = self._widths(self._draw)
        self._process.note(f"rescale to {sorted(widths.items())}")
        self._request("rescale", lambda: self._rescaled(handle, widths))

    async def _rescaled(self, handle: JobHandle, widths: dict[str, int]) -> None:
        restarts = handle.restarts
        await handle.rescale(parallelism=widths)
        plan = handle.plan
        assert plan is not None
        found = {uid: plan.node[uid][0].parallelism for uid in widths}
        if found != widths and handle.restarts == restarts:  # else it may have failed at once, and gone back
            self._world.broken.append(f"rescaled to {widths}, and it is {found}")
        self._process.note("rescaled")

    def _taken(self, asked: str | None, answer: str | None) -> None:
        if asked is None or answer is None:
            return
        self._process.note(f"{answer} is taken")
        if answer == asked:
            self._world.timeline.told(asked)
        else:
            self._world.broken.append(f"a savepoint in {asked} was asked for, and the answer is {answer}")

    def _handle(self) -> JobHandle | None:
        running = self._running
        return None if running is None or running.done() else JobHandle(self._job, running)

    def _request(self, name: str, request: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        task = self._loop.create_task(self._refusable(name, request), name=f"{REQUEST}{name}")
        self._requests.append(task)
        return task

    async def _refusable(self, name: str, request: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await request()
        except REFUSALS as error:
            self._process.note(f"{name} ended with {type(error).__name__}: {error}")

    def _look(self) -> None:
        """Now and then: collect garbage, and see that it gets on."""
        self._next_look = self._process.steps + 1 + int(self._draw.random() * COLLECT_STEPS)
        gc.collect()
        if self._loop.time() - self._process.pulse.progress < IDLE_SECONDS:
            self._idle_since = self._process.steps
        elif self._process.steps - self._idle_since > IDLE_STEPS:
            quiet = f"nothing was read or written for {IDLE_SECONDS:g} s"
            self._world.broken.append(f"{quiet}; tasks: {self._waiting()}")

    # ---------------------------------------------------------------------------------------------------- every attempt
    def give_up(self, why: str) -> None:
        self._world.broken.append(why)

    def attempt_begins(self, actors: Iterator[str]) -> None:
        """Nothing may be left of the attempt before, unless it hangs in an operation of the disk: these can't be cut
        short, and are waited for only so long."""
        if self.unexpected() is not None:
            self._loop.stop()
        self._actors = frozenset(actors)
        self._world.timeline.attempt_begins()
        left = self._left(OUTSIDE)
        if left and self._stopper is None and not self._process.lingering:
            self._world.broken.append(f"tasks of an earlier attempt are still there when the next begins: {left}")

    def _left(self, but: tuple[str, ...]) -> list[str]:
        """Whose end a job has to wait for. An async generator that the garbage collector found is asyncio's affair."""
        names = [task.get_name() for task in self._loop.unfinished()]
        return [name for name in names if not name.startswith((FINALIZER, *but))]

    # ---------------------------------------------------------------------------------------------------------- verdict
    def problems(self) -> list[str]:
        """What must not happen, whatever goes wrong."""
        found = list(self._world.broken) + self._process.complaints
        if self._process.stuck:
            found.append(f"nothing is ready, no timer is set, and the job has not ended: {self._waiting()}")
        elif self.crash is None and not found and not self._process.lingering and (left := self._left(())):
            found.append(f"the job has ended, and left tasks: {left}")
        return found

    def unexpected(self) -> BaseException | None:
        """The first failure that no fault explains."""
        ended = [error] if (error := self._error()) is not None else []
        return next((error for error in [*self._job.failures, *ended] if not self._explained(error)), None)

    def _explained(self, error: BaseException) -> bool:
        return any(
            MARK in str(link)
            or (isinstance(link, CheckpointFailed) and "not acknowledged within" in str(link))
            or (isinstance(link, WorkerLost | ConnectionLost) and self._cluster_disturbed)
            # Workers of an older attempt, which live on, fence as they open; checkpoints outrun their notifications.
            or (self._world.fleet is not None and (REFUSED in str(link) or ALL_TAKEN in str(link)))
            or ("cancelled from within" in str(link) and self._process.fate.struck["actor_crashes"] > 0)
            for link in causes(error)
        )

    @property
    def _cluster_disturbed(self) -> bool:
        struck = self._process.fate.struck
        return any(struck[kind] > 0 for kind in ("worker_kills", "worker_pauses", "false_deaths", "cuts"))

    def _waiting(self) -> str:
        return ", ".join(task.get_name() for task in self._process.unfinished())


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
