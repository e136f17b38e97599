"""A job that runs in one process and is held in another: what its host tells of it, and what its holder asks for.

Invariants. Every event of the job is told once and in order to a holder that asks on from the last one; what else is
told is as it was when it was told. The figures of subtasks go in pieces, so that neither side is busy with those of a
large job for long: pass after pass over all of them, and a holder shows those of the last whole pass. The job never
waits for its holder.
"""

import asyncio
import itertools
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from streamactors.actors.supervisor import despite_cancellation
from streamactors.clock import Clock
from streamactors.errors import ConnectionLost, JobNotRunning
from streamactors.graph.physical import PhysicalPlan, SubtaskId
from streamactors.runtime.events import JobEvent, Moment
from streamactors.runtime.info import ChannelFill, CheckpointInfo, CheckpointUnderWay, RescaleInfo, Restoring, Status
from streamactors.runtime.job import Job
from streamactors.runtime.taps import Subscription

REFRESHED: Final = 1.0
"""Seconds after which a holder is told how things are, though nothing has happened."""
KEPT: Final = 1000
"""Events for a holder that is late."""
PIECE: Final = 128
"""Subtasks and channels whose figures are told at once: a few milliseconds' work."""


# ------------------------------------------------------------------------------------------------------------- requests
@dataclass(frozen=True)
class TakeCheckpoint:
    pass


@dataclass(frozen=True)
class TakeSavepoint:
    uri: str


@dataclass(frozen=True)
class StopJob:
    drain: bool
    savepoint: str | None


@dataclass(frozen=True)
class CancelJob:
    pass


@dataclass(frozen=True)
class RescaleJob:
    steps: Mapping[str, int]
    default: int | None


@dataclass(frozen=True)
class QueryState:
    uid: str
    state: str
    key: Any


@dataclass(frozen=True)
class Follow:
    """The live output of a step. Answered by a number."""

    uid: str
    tag: str | None
    buffer: int


@dataclass(frozen=True)
class NextValues:
    """Answered by values and how many were lost ahead of them; None at the end."""

    number: int


@dataclass(frozen=True)
class Unfollow:
    number: int


Request = (
    TakeCheckpoint | TakeSavepoint | StopJob | CancelJob | RescaleJob | QueryState | Follow | NextValues | Unfollow
)


# ------------------------------------------------------------------------------------------------------------- answers
@dataclass(frozen=True)
class Ended:
    """`run` has returned; `error` is what it raised. A cancelled job has none."""

    error: BaseException | None


@dataclass(frozen=True)
class Known:
    """What a holder has been told: by which host, how many events, plans and checkpoints; of the pass over figures that
    began at `begun`, how many subtasks. 0: all of them."""

    host: str = ""
    events: int = 0
    plans: int = 0
    checkpoints: int = 0
    begun: float = -math.inf
    place: int = 0


@dataclass(frozen=True)
class Piece:
    """Figures of the subtasks from `start` up to `stop`, in the plan's order, of one pass over all. `last`: of it."""

    start: int
    stop: int
    last: bool
    metrics: Mapping[str, Any]
    channels: Mapping[SubtaskId, list[ChannelFill]]


@dataclass(frozen=True)
class JobState:
    """`first`: the number of the first of `events`; `plans`: how many plans there were, and so `checkpoints`. `plan`,
    `last_checkpoint`: the last of them, None where the holder has it. `metrics`: but for the subtasks'; of these, the
    next `piece` of the pass that began at `begun`, if one was due. `run`: see `Job.run_number`."""

    host: str
    first: int
    events: Sequence[tuple[JobEvent, Moment]]
    status: Status
    restarts: int
    stopping: bool
    running: bool
    settled: bool
    plans: int
    plan: PhysicalPlan | None
    checkpoints: int
    last_checkpoint: CheckpointInfo | None
    under_way: Sequence[CheckpointUnderWay]
    restoring: Restoring | None
    last_rescale: RescaleInfo | None
    metrics: Mapping[str, Any]
    begun: float
    piece: Piece | None
    ended: Ended | None
    run: int = 0

    @property
    def known(self) -> "Known":
        place = 0 if self.piece is None or self.piece.last else self.piece.stop
        return Known(self.host, self.first + len(self.events), self.plans, self.checkpoints, self.begun, place)


class _Pass(NamedTuple):
    """Over all subtasks. `last`: the job has ended."""

    begun: float
    plan: PhysicalPlan | None
    metrics: Mapping[str, Any]
    last: bool

    @property
    def subtasks(self) -> Sequence[SubtaskId]:
        return () if self.plan is None else self.plan.subtasks


class Host(Protocol):
    """What a holder reaches its job by."""

    async def tell(self, known: Known) -> JobState:
        """Returns once there is an event that is not known, the job has ended, or some time has passed."""

    async def ask(self, request: Request) -> Any: ...


class JobHost:
    """Holds a job on behalf of others. `run` runs it; the others call meanwhile, and afterwards."""

    def __init__(self, job: Job, clock: Clock) -> None:
        self._job = job
        self._clock = clock
        self._name = clock.token()
        self._events: deque[tuple[JobEvent, Moment]] = deque(maxlen=KEPT)
        self._told = 0
        """Events so far; the last ones are kept."""
        self._ended: Ended | None = None
        self._cancelled = False
        self._task: asyncio.Task[None] | None = None
        self._numbers = itertools.count(1)
        self._followed: dict[int, Subscription] = {}
        self._plan: PhysicalPlan | None = None
        self._plans = 0
        self._checkpoint: CheckpointInfo | None = None
        self._checkpoints = 0
        self._pass = _Pass(-math.inf, None, {}, last=False)
        self._woken = asyncio.Event()
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Raises nothing that the job does: that is told. Whoever cancels it cancels the job."""
        self._job.listeners.append(self._heard)
        task = self._task = asyncio.get_running_loop().create_task(self._job.run(), name=f"job {self._job.name}")
        try:
            await asyncio.wait([task])
        finally:
            self._cancel()
            await despite_cancellation(self._ended_by(task))

    async def _ended_by(self, task: "asyncio.Task[None]") -> None:
        await asyncio.wait([task])
        error = None if task.cancelled() else task.exception()
        for subscription in self._followed.values():
            subscription.end(error)
        self._ended = Ended(error)
        self._over.set()
        self._woken.set()

    def _heard(self, event: JobEvent, at: Moment) -> None:
        self._events.append((event, at))
        self._told += 1
        self._woken.set()

    async def tell(self, known: Known) -> JobState:
        if known.host != self._name:
            known = Known()
        if not known.place:
            await self._news(known)
        return self._state(known)

    async def _news(self, known: Known) -> None:
        waited = asyncio.ensure_future(self._clock.sleep(REFRESHED))
        try:
            while self._told <= known.events and self._ended is None and not waited.done():
                self._woken.clear()
                await self._woken_or(waited)
        finally:
            waited.cancel()

    async def _woken_or(self, waited: asyncio.Future[None]) -> None:
        woken = asyncio.ensure_future(self._woken.wait())
        either: list[asyncio.Future[Any]] = [woken, waited]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()

    def _state(self, known: Known) -> JobState:
        job, first = self._job, max(known.events, self._told - len(self._events))
        plan = job.plan
        if plan is not self._plan:
            self._plan, self._plans = plan, self._plans + 1
        checkpoint = job.last_checkpoint
        if checkpoint is not self._checkpoint:
            self._checkpoint, self._checkpoints = checkpoint, self._checkpoints + 1
        piece = self._piece(known)
        return JobState(
            self._name,
            first,
            list(self._events)[len(self._events) - (self._told - first) :],
            job.status,
            job.restarts,
            job.stopping,
            job.running.is_set(),
            job.settled.is_set(),
            self._plans,
            plan if known.plans < self._plans else None,
            self._checkpoints,
            checkpoint if known.checkpoints < self._checkpoints else None,
            job.checkpoints_under_way,
            job.restoring,
            job.last_rescale,
            {name: figure for name, figure in job.overview().items() if name != "last_checkpoint"},
            known.begun if piece is None else self._pass.begun,
            piece,
            self._ended if self._pass.last and piece is not None and piece.last else None,
            job.run_number,
        )

    def _piece(self, known: Known) -> Piece | None:
        start = known.place if known.begun == self._pass.begun and self._pass.plan is self._plan else 0
        if not start and not self._begin_pass(known):
            return None
        subtasks, channels, stop, weight = self._pass.subtasks, dict[SubtaskId, list[ChannelFill]](), start, 0
        while stop < len(subtasks) and weight < PIECE:
            fills = channels[subtasks[stop]] = self._job.channels(subtasks[stop])
            stop, weight = stop + 1, weight + 1 + len(fills)
        told = self._pass.metrics
        metrics = {name: told[name] for name in map(str, subtasks[start:stop]) if name in told}
        return Piece(start, stop, stop == len(subtasks), metrics, channels)

    def _begin_pass(self, known: Known) -> bool:
        """Unless it is too early: what happens meanwhile is told without figures, where these are many."""
        now, last = self._clock.monotonic(), self._ended is not None
        many = self._plan is not None and len(self._plan.subtasks) > PIECE // 2
        if many and not last and now - known.begun < REFRESHED:
            return False
        self._pass = _Pass(now, self._plan, self._job.subtask_metrics(), last)
        return True

    # ------------------------------------------------------------------------------------------------------ requests
    async def ask(self, request: Request) -> Any:
        """Raises what the job does; JobNotRunning where it ends before it answers."""
        if self._ended is not None or isinstance(request, NextValues):  # what is left for a follower comes at the end
            return await self._answer(request)
        answer, over = asyncio.ensure_future(self._answer(request)), asyncio.ensure_future(self._over.wait())
        try:
            await asyncio.wait([answer, over], return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise JobNotRunning(f"job {self._job.name!r} is not running any more: {self._job.status}")
            return await answer
        finally:
            answer.cancel()
            over.cancel()
            await asyncio.gather(answer, over, return_exceptions=True)

    async def _answer(self, request: Request) -> Any:
        job = self._job
        match request:
            case TakeCheckpoint():
                return await job.checkpoint()
            case TakeSavepoint(uri):
                return await job.savepoint(uri)
            case StopJob(drain, savepoint):
                return await job.stop(drain=drain, savepoint=savepoint)
            case RescaleJob(steps, default):
                return await job.rescale(steps, default)
            case QueryState(uid, state, key):
                return await job.query(uid, state, key)
            case CancelJob():
                return self._cancel()
            case Follow(uid, tag, buffer):
                return await self._follow(uid, tag, buffer)
            case NextValues(number):
                return await self._follower(number).take()
            case Unfollow(number):
                if (left := self._followed.pop(number, None)) is not None:
                    job.unsubscribe(left)
                return None

    def _cancel(self) -> None:
        """Once: the job's own ending is not to be cut short."""
        if self._task is not None and not self._cancelled:
            self._cancelled = True
            self._task.cancel()

    def _follower(self, number: int) -> Subscription:
        """Raises ConnectionLost for one of another host."""
        if number not in self._followed:
            raise ConnectionLost(f"job {self._job.name!r}: the coordinator was started again, and knows of no follower")
        return self._followed[number]

    async def _follow(self, uid: str, tag: str | None, buffer: int) -> int:
        number = next(self._numbers)
        subscription = self._followed[number] = await self._job.subscribe(uid, tag, buffer)
        if self._ended is not None:
            subscription.end(self._ended.error)
        return number
