"""A job that is held here and runs elsewhere: stands for it, as `JobHandle` asks."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple

from streamactors.actors.supervisor import despite_cancellation
from streamactors.checkpoint.storage.uris import normalise_uri
from streamactors.cluster.hosted import (
    CancelJob,
    Ended,
    Follow,
    Host,
    JobState,
    Known,
    NextValues,
    Piece,
    QueryState,
    Request,
    RescaleJob,
    StopJob,
    TakeCheckpoint,
    TakeSavepoint,
    Unfollow,
)
from streamactors.config import Config
from streamactors.errors import ConnectionLost, JobNotRunning
from streamactors.graph.physical import PhysicalPlan, SubtaskId
from streamactors.runtime.events import (
    AttemptFailed,
    CheckpointAbandoned,
    CheckpointCompleted,
    JobEvent,
    Listener,
    Moment,
)
from streamactors.runtime.info import (
    ChannelFill,
    CheckpointGivenUp,
    CheckpointInfo,
    CheckpointUnderWay,
    Incident,
    RescaleInfo,
    Restoring,
    Status,
)
from streamactors.runtime.job import HISTORY, INCIDENTS
from streamactors.runtime.taps import Subscription

Reach = Callable[[], AbstractAsyncContextManager[Host]]
"""Starts the job where it runs, and ends it if it still does on leaving."""


class _Figures(NamedTuple):
    """Of all subtasks."""

    metrics: dict[str, Any]
    channels: dict[SubtaskId, list[ChannelFill]]


class HeldJob:
    """Runs once, by `run`, which follows what the host tells. What it tells without waiting is as old as the last
    word from the host."""

    def __init__(self, name: str, config: Config, reach: Reach) -> None:
        self.name = name
        self.config = config
        self.status: Status = "starting"
        self.restarts = 0
        self._restarts_before = 0
        """Those of hosts that are gone, whose going counts as one."""
        self.stopping = False
        self.plan: PhysicalPlan | None = None
        self.last_checkpoint: CheckpointInfo | None = None
        self.checkpoints: deque[CheckpointInfo] = deque(maxlen=HISTORY)
        self.checkpoints_completed = 0
        self.checkpoints_under_way: tuple[CheckpointUnderWay, ...] = ()
        self.given_up: deque[CheckpointGivenUp] = deque(maxlen=HISTORY)
        self.checkpoints_given_up = 0
        self.restoring: Restoring | None = None
        self.last_rescale: RescaleInfo | None = None
        self.incidents: deque[Incident] = deque(maxlen=INCIDENTS)
        self.listeners: list[Listener] = []
        self.running = asyncio.Event()
        self.settled = asyncio.Event()
        self._reach = reach
        self._host: Host | None = None
        self._stopped: StopJob | None = None
        """What a host has done, as a successor is to do."""
        self._hosted = asyncio.Event()
        self._state: JobState | None = None
        self._figures = _Figures({}, {})
        self._coming = _Figures({}, {})
        """Those of the pass that is under way."""
        self._followed: dict[Subscription, tuple[int, asyncio.Task[None]]] = {}
        """By which number the host knows each, and the task that asks for its values."""
        self._beside: set[asyncio.Task[None]] = set()

    @property
    def batch(self) -> bool:
        return self.config.execution == "batch"

    @property
    def failures(self) -> list[BaseException]:
        return [incident.error for incident in self.incidents]

    # ------------------------------------------------------------------------------------------------------ lifetime
    async def run(self) -> None:
        """Until finished; raises what the job does."""
        try:
            async with self._reach() as host:
                self._host = host
                self._hosted.set()
                await self._run_to_its_end(host)
            self.status = "finished"
        except asyncio.CancelledError:
            self.status = "cancelled"
            raise
        except BaseException:
            self.status = "failed"
            raise
        finally:
            self.running.clear()
            self._host = None
            self._hosted.set()
            await despite_cancellation(self._end_requests())

    async def _end_requests(self) -> None:
        for subscription, (_, pulling) in self._followed.items():
            pulling.cancel()
            self._beside.add(pulling)
            subscription.end()
        await asyncio.gather(*self._beside, return_exceptions=True)

    async def _run_to_its_end(self, host: Host) -> None:
        try:
            ended = await self._followed_to_its_end(host)
        except asyncio.CancelledError:
            await despite_cancellation(self._cancelled(host))
            raise
        await asyncio.gather(*(pulling for _, pulling in self._followed.values()))  # what is left for subscribers
        if ended.error is not None:
            raise ended.error
        if self.status == "cancelled":
            raise asyncio.CancelledError(f"job {self.name!r} was cancelled where it runs")

    async def _followed_to_its_end(self, host: Host) -> Ended:
        while (ended := await self._follow(host)) is None:
            pass
        return ended

    async def _follow(self, host: Host) -> Ended | None:
        """Take in what the host tells next."""
        state = await host.tell(Known() if self._state is None else self._state.known)
        self._take(state)
        return state.ended

    async def _cancelled(self, host: Host) -> None:
        """Asked again and again: a host that is lost meanwhile has a successor, which knows nothing of it."""
        ended = None
        while ended is None:
            await host.ask(CancelJob())
            ended = await self._follow(host)

    def _take(self, state: JobState) -> None:
        if self._state is not None and state.host != self._state.host:
            self._host_lost(state)
        self._state = state
        if state.piece is not None:
            self._take_figures(state.piece)
        self.status, self.stopping = state.status, state.stopping
        self.restarts = self._restarts_before + state.restarts
        self.plan = state.plan or self.plan
        self.last_checkpoint = state.last_checkpoint or self.last_checkpoint
        self.checkpoints_under_way, self.restoring = tuple(state.under_way), state.restoring
        self.last_rescale = state.last_rescale or self.last_rescale
        for event, at in state.events:
            self._heard(event, at)
        (self.running.set if state.running else self.running.clear)()
        if state.settled:
            self.settled.set()

    def _take_figures(self, piece: Piece) -> None:
        if not piece.start:
            self._coming = _Figures({}, {})
        self._coming.metrics.update(piece.metrics)
        self._coming.channels.update(piece.channels)
        if piece.last:
            self._figures = self._coming

    def _host_lost(self, successor: JobState) -> None:
        begun = next((at.time_ms for _, at in successor.events), 0)
        error = ConnectionLost(f"job {self.name!r}: the coordinator has died, and another one goes on")
        self.incidents.append(Incident(begun, self.restarts + 1, error))
        self._restarts_before = self.restarts + 1
        if self._stopped is not None and self._host is not None:  # and lost before it could tell its end
            self._run_beside(self._host.ask(self._stopped))
        self.last_rescale = None  # that was of the one before, which may not have stored it

    def _heard(self, event: JobEvent, at: Moment) -> None:
        match event:
            case AttemptFailed(attempt, error):
                self.incidents.append(Incident(at.time_ms, attempt, error))
            case CheckpointCompleted(info):
                self.checkpoints.append(info)
                self.checkpoints_completed += 1
            case CheckpointAbandoned(given_up):
                self.given_up.append(given_up)
                self.checkpoints_given_up += 1
        for listener in tuple(self.listeners):
            listener(event, at)

    # ------------------------------------------------------------------------------------------------------ requests
    async def checkpoint(self) -> CheckpointInfo:
        info: CheckpointInfo = await self._ask(TakeCheckpoint())
        return info

    async def savepoint(self, uri: str) -> CheckpointInfo:
        info: CheckpointInfo = await self._ask(TakeSavepoint(normalise_uri(uri)))
        return info

    async def stop(self, *, drain: bool, savepoint: str | None = None) -> bool:
        target = None if savepoint is None else normalise_uri(savepoint)
        as_asked: bool = await self._ask(StopJob(drain, target))
        if as_asked:
            self._stopped = StopJob(drain, None)
        return as_asked

    async def rescale(self, steps: Mapping[str, int], default: int | None = None) -> RescaleInfo | None:
        info: RescaleInfo | None = await self._ask(RescaleJob(steps, default))
        return info

    async def query(self, uid: str, state: str, key: Any) -> Any:
        return await self._ask(QueryState(uid, state, key))

    async def _ask(self, request: Request) -> Any:
        await self._hosted.wait()
        if self._host is None:
            raise JobNotRunning(f"job {self.name!r} is not running any more: {self.status}")
        return await self._host.ask(request)

    async def subscribe(self, uid: str, tag: str | None, buffer: int) -> Subscription:
        number = await self._ask(Follow(uid, tag, buffer))
        subscription = Subscription(uid, tag, buffer)
        pulling = asyncio.get_running_loop().create_task(self._pull(number, subscription))
        self._followed[subscription] = number, pulling
        return subscription

    async def _pull(self, number: int, subscription: Subscription) -> None:
        try:
            while True:
                try:
                    taken = await self._ask(NextValues(number))
                except ConnectionLost:
                    number = await self._follow_successor(subscription)
                    continue
                if taken is None:
                    break
                values, lost = taken
                subscription.lose(lost)
                subscription.receive(values)
            subscription.end()
        except Exception as error:
            subscription.end(error)

    async def _follow_successor(self, subscription: Subscription) -> int:
        """Of a host that is gone: it knows of nobody who follows."""
        number: int = await self._ask(Follow(subscription.uid, subscription.tag, subscription.buffer))
        _, pulling = self._followed[subscription]
        self._followed[subscription] = number, pulling
        return number

    def unsubscribe(self, subscription: Subscription) -> None:
        subscription.close()
        number, pulling = self._followed.pop(subscription)
        pulling.cancel()
        if self._host is not None:
            self._run_beside(self._host.ask(Unfollow(number)))

    def _run_beside(self, request: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(request)
        self._beside.add(task)
        task.add_done_callback(self._ran_beside)

    def _ran_beside(self, task: "asyncio.Task[None]") -> None:
        self._beside.discard(task)
        if not task.cancelled():
            task.exception()  # of a host that is gone: it has forgotten the request, too

    def channels(self, subtask: SubtaskId) -> list[ChannelFill]:
        return list(self._figures.channels.get(subtask, ()))

    def metrics(self) -> dict[str, Any]:
        told: Mapping[str, Any] = {} if self._state is None else self._state.metrics
        nothing: dict[str, Any] = {"last_checkpoint": self.last_checkpoint, "last_rescale": None, "autoscale": None}
        nothing["restored_parallelism"] = {}
        subtasks = dict(self._figures.metrics)
        return {**nothing, **told, "subtasks": subtasks, "status": self.status, "restarts": self.restarts}
