"""The coordinator of a job, as the driver reaches it: one that dies is started again, and goes on from the storage.

Invariants. What a successor knows nothing of is asked again only where it does no harm that it may have been done. No
job ends, and none begins again, because its coordinator was out of reach for a while.
"""

import logging
from collections.abc import Callable
from typing import Any, Final, Protocol

from streamactors.clock import Clock
from streamactors.cluster.hosted import CancelJob, Follow, JobState, Known, NextValues, QueryState, Request, StopJob
from streamactors.config import Ray, Restart
from streamactors.errors import CheckpointFailed, ConnectionLost, JobFailed, StreamactorsError
from streamactors.runtime.job import JobSpec

log = logging.getLogger("streamactors.ray")

_AGAIN: Final = 0.2
"""Seconds until a coordinator that is being started again is asked again."""


class Coordinator(Protocol):
    """Its actor: takes and gives bytes."""

    async def incarnation(self) -> str | None:
        """Of the process that it is; None where it is gone for good. Raises ConnectionLost."""

    async def begin(self, arguments: bytes) -> bytes:
        """The first time: of which incarnation the job is. Raises ConnectionLost where it is being started again; else
        what keeps it from starting."""

    async def begin_again(self, arguments: bytes) -> bytes:
        """The same of one that was started in its place. Raises ConnectionLost while that is, and ClusterUnfit."""

    async def call(self, method: str, arguments: bytes) -> bytes:
        """Raises ConnectionLost."""


class RemoteHost:
    """See `hosted.Host`."""

    def __init__(
        self,
        spec: JobSpec,
        settings: Ray,
        coordinator: Coordinator,
        ship: Callable[[Any], bytes],
        unship: Callable[[bytes], Any],
        clock: Clock,
    ) -> None:
        self._spec = spec
        self._settings = settings
        self._coordinator = coordinator
        self._ship = ship
        self._unship = unship
        self._clock = clock
        self._rest = settings, logging.getLogger("streamactors").getEffectiveLevel()
        self._incarnation: str | None = None
        """That has the job."""
        self._settled = False
        """Whether the job is known to go on from its storage, if it has to begin again."""
        self._run: int | None = None
        """The first that a coordinator has told of."""

    async def begin(self) -> None:
        try:
            answer = await self._coordinator.begin(self._ship((self._spec, *self._rest)))
        except ConnectionLost as error:
            await self._begin_again(error)
        else:
            self._incarnation = self._told(answer)

    async def tell(self, known: Known) -> JobState:
        while True:
            try:
                state: JobState = await self._answer("tell", known)
            except ConnectionLost as error:
                await self._begin_again(error)
                continue
            self._settled = self._settled or state.settled
            self._run = self._run or state.run or None
            return state

    async def ask(self, request: Request) -> Any:
        while True:
            try:
                return await self._answer("ask", request)
            except ConnectionLost as error:
                if not _may_be_asked_again(request):
                    raise _unanswered(request) from error
                await self._begin_again(error)

    async def _answer(self, method: str, *arguments: Any) -> Any:
        return self._told(await self._coordinator.call(method, self._ship(arguments)))

    def _told(self, answer: bytes) -> Any:
        succeeded, told = self._unship(answer)
        if not succeeded:
            raise told
        return told

    async def _begin_again(self, error: Exception) -> None:
        """The coordinator is started anew by whoever has started it; the job in it goes on from its storage."""
        until = self._clock.monotonic() + self._settings.patience.total_seconds()
        if await self._was_out_of_reach(until):
            log.warning("%s: the coordinator was out of reach: %s", self._spec.name, error)
            return
        self._refuse_to_begin_again(error)
        log.warning("%s: the coordinator has died, and is started again: %s", self._spec.name, error)
        again = self._spec.again(self._run)
        while True:
            try:
                answer = await self._coordinator.begin_again(self._ship((again, *self._rest)))
                self._incarnation = self._told(answer)
            except ConnectionLost as failure:
                if self._clock.monotonic() >= until:
                    raise JobFailed(f"job {self._spec.name!r}: the coordinator could not be started again") from failure
                await self._clock.sleep(_AGAIN)
            else:
                return

    async def _was_out_of_reach(self, until: float) -> bool:
        """And has the job still. False where another one is there in its place, or none."""
        while self._incarnation is not None:
            try:
                return await self._coordinator.incarnation() == self._incarnation
            except ConnectionLost:
                if self._clock.monotonic() >= until:
                    return False
                await self._clock.sleep(_AGAIN)
        return False

    def _refuse_to_begin_again(self, error: Exception) -> None:
        """Raises JobFailed."""
        if self._spec.config.effective_restart == Restart.none():
            raise JobFailed(f"job {self._spec.name!r}: the coordinator has died, and restarts are off") from error
        if self._spec.config.execution == "batch":
            raise JobFailed(
                f"job {self._spec.name!r}: the coordinator has died, and whether the output is visible is not known: "
                "remove what there is of it, and start the job again"
            ) from error
        if not self._settled and not (self._spec.restore == "latest" and not self._spec.fresh):
            raise JobFailed(
                f"job {self._spec.name!r}: the coordinator died before the job ran, so that it is not known whether "
                f"restore={self._spec.restore!r}, fresh={self._spec.fresh} has been recorded: start it again"
            ) from error


def _may_be_asked_again(request: Request) -> bool:
    """Of a coordinator that knows nothing of it, though the one before may have done it, or a half of it."""
    return isinstance(request, CancelJob | QueryState | StopJob | Follow) and not _takes_savepoint(request)


def _takes_savepoint(request: Request) -> bool:
    """Its folder may hold a half of it."""
    return isinstance(request, StopJob) and request.savepoint is not None


def _unanswered(request: Request) -> StreamactorsError:
    if _takes_savepoint(request):  # the job goes on: nobody is to wait for its end
        return ConnectionLost(
            "the coordinator has died while the job stopped, which goes on: stop it again, with a new folder for the "
            "savepoint"
        )
    if isinstance(request, NextValues):  # and the holder follows its successor
        return ConnectionLost("the coordinator has died meanwhile")
    return CheckpointFailed("the coordinator has died meanwhile: ask again once it is back")
