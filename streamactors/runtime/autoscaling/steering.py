"""Looking at a job again and again, and rescaling it as decided.

Invariant: whatever happens here, the job goes on: what can't be measured or done is logged.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

from streamactors.actors.supervisor import despite_cancellation
from streamactors.clock import Clock
from streamactors.config import Autoscale
from streamactors.errors import JobNotRunning, StreamactorsError
from streamactors.graph.parallelism import widths
from streamactors.graph.physical import PhysicalPlan
from streamactors.runtime.autoscaling.decisions import Autoscaler, Decision
from streamactors.runtime.autoscaling.demand import observe

log = logging.getLogger("streamactors.autoscale")


class Scalable(Protocol):
    """What is needed of a job."""

    @property
    def name(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def stopping(self) -> bool: ...
    @property
    def plan(self) -> PhysicalPlan | None: ...
    def metrics(self) -> Mapping[str, Any]: ...
    async def rescale(self, asked: Mapping[str, int], /) -> object: ...


@asynccontextmanager
async def autoscaled(
    job: Scalable,
    settings: Autoscale | None,
    clock: Clock,
    tell: Callable[[Decision], None],
    room: int | None = None,
) -> AsyncIterator[None]:
    """For as long as the block lasts. `tell` gets every decision; `room`: see `Autoscaler`."""
    if settings is None:
        yield
        return
    running = _Steering(job, Autoscaler(settings, room), settings, clock, tell).run()
    steering = asyncio.get_running_loop().create_task(running, name=f"autoscaler of {job.name}")
    try:
        yield
    finally:
        steering.cancel()
        await despite_cancellation(_ended(steering))


async def _ended(task: "asyncio.Task[None]") -> None:
    await asyncio.wait([task])


class _Steering:
    def __init__(
        self,
        job: Scalable,
        autoscaler: Autoscaler,
        settings: Autoscale,
        clock: Clock,
        tell: Callable[[Decision], None],
    ) -> None:
        self._job = job
        self._autoscaler = autoscaler
        self._settings = settings
        self._clock = clock
        self._tell = tell
        self._asked: Mapping[str, int] = {}
        """Of the last rescale, by uid, until it is known whether it holds."""

    async def run(self) -> None:
        while True:
            await self._clock.sleep(self._settings.every.total_seconds())
            try:
                await self._look()
            except JobNotRunning:
                return
            except Exception as error:
                log.warning(
                    "%s: autoscaling goes on after %s: %s",
                    self._job.name,
                    type(error).__name__,
                    error,
                    exc_info=None if isinstance(error, StreamactorsError) else error,
                )

    async def _look(self) -> None:
        """Raises what a rescale may, and JobNotRunning."""
        plan = self._job.plan
        if self._job.status != "running" or self._job.stopping or plan is None:
            return
        observation = observe(plan, self._job.metrics()["subtasks"], self._clock.monotonic())
        if observation is None:
            return
        if self._has_gone_back(plan):
            self._autoscaler.failed(self._clock.monotonic())
        decision = self._autoscaler.on(observation)
        if self._asked and decision.action != "wait":
            self._autoscaler.held()
            self._asked = {}
        self._tell(decision)
        self._explain(decision)
        if decision.action == "rescale" and not self._settings.dry_run:
            await self._rescale(decision.parallelism)

    async def _rescale(self, asked: Mapping[str, int]) -> None:
        """It rests from the end of it."""
        try:
            await self._job.rescale(asked)
        except Exception:
            self._autoscaler.failed(self._clock.monotonic())
            raise
        self._autoscaler.rescaled(self._clock.monotonic())
        self._asked = asked

    def _has_gone_back(self, plan: PhysicalPlan) -> bool:
        """From what it was rescaled to; or somebody else has rescaled it."""
        now = widths(plan)
        if all(now.get(uid) == width for uid, width in self._asked.items()):
            return False
        self._asked = {}
        return True

    def _explain(self, decision: Decision) -> None:
        """One line for each rescale; why nothing is done, when that is news."""
        if decision.action == "rescale":
            doing = "would rescale (dry run)" if self._settings.dry_run else "rescaling"
            log.info("%s: autoscaler: %s: %s", self._job.name, doing, decision.reason)
        else:
            log.debug("%s: autoscaler: %s: %s", self._job.name, decision.action, decision.reason)
