"""The coordinator's side of a job over several processes: an attempt's subtasks as slices, one for each worker.

Invariants. Nothing runs before every slice is put together, and what fails one of them fails the deployment, as it
would in one process. Controls reach a worker in the order in which they were sent, and reports come back likewise. A
worker that is lost, by whatever sign, fails the attempt once; whoever has not said in time that nothing of its slice is
left is replaced before the next attempt, and fenced by the epoch in any case. What the epoch can't fence, such as the
transactions of a broker, one that may live on has let go before the next attempt: it has given itself up by then.
"""

import asyncio
import dataclasses
import logging
import math
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from typing import Any

import msgspec

from streamactors.actors.mailbox import Mailbox
from streamactors.actors.supervisor import despite_cancellation
from streamactors.clock import Clock
from streamactors.cluster.delivery import Delivery
from streamactors.cluster.failures import received as error_of
from streamactors.cluster.failures import to_send
from streamactors.cluster.line import Line
from streamactors.cluster.messages import (
    CONTROLS,
    FROM_WORKER,
    TO_WORKER,
    Answered,
    Beat,
    Broken,
    End,
    Ended,
    Go,
    MayReuse,
    Others,
    Prepare,
    Prepared,
    Reused,
    Settle,
    Settled,
    Slowest,
    Tapped,
    Told,
    Unprepared,
    Vitals,
)
from streamactors.cluster.onlookers import RemoteOnlookers
from streamactors.cluster.slice import fill_of
from streamactors.cluster.storage import restored_from
from streamactors.cluster.watch import Watch
from streamactors.cluster.wire import CONTROL, COORDINATOR, Epoch, Wire, header_of
from streamactors.cluster.workers import Times, Workers
from streamactors.elements import Element
from streamactors.errors import StreamactorsError, WorkerLost
from streamactors.graph.physical import SubtaskId
from streamactors.graph.placement import Placement, Strategy, place
from streamactors.metrics import Readings
from streamactors.runtime.assembly import AttemptSpec
from streamactors.runtime.info import ChannelFill
from streamactors.runtime.messages import AttachTap, Control, DetachTap, Failed, Query, Reports, Start
from streamactors.runtime.restore import Restores
from streamactors.runtime.restore_in_flight import Backlogs
from streamactors.runtime.snapshot_storage import StoredSnapshots

log = logging.getLogger("streamactors.job")

Ship = Callable[[Any], bytes]
"""Makes of an object, such as a plan with the user's classes, what `Unship` makes it of again in a worker."""


class ClusterDeployment:
    """Of one job, over all of its attempts. See `runtime.deployment.Deploy`."""

    def __init__(
        self,
        workers: Workers,
        wire: Wire,
        *,
        ship: Ship,
        strategy: Strategy = "spread",
        slots: int | None = None,
        times: Times | None = None,
    ) -> None:
        self._workers = workers
        self._wire = wire
        self._ship = ship
        self._strategy = strategy
        self._slots = slots
        self._times = times or Times()
        self._doubtful: set[int] = set()
        """To be replaced."""
        self._current: RemoteAttempt | None = None
        self._alone_at = -math.inf
        """By the clock: when no worker that was taken for dead can have anything of an attempt any more."""
        self._begun_ms: int | None = None

    async def __call__(
        self, spec: AttemptSpec, storage: StoredSnapshots, reports: Reports, clock: Clock
    ) -> "RemoteAttempt":
        await self._ready(clock)
        placement = place(spec.plan, self._workers.count, self._strategy, slots=self._slots)
        epoch = self._epoch(spec, clock)
        attempt = RemoteAttempt(
            spec, epoch, placement, storage, reports, clock, self._wire, self._times, self._doubtful
        )
        self._current = attempt
        try:
            await attempt.deploy(self._ship)
        except BaseException:
            await despite_cancellation(attempt.shut_down())
            raise
        return attempt

    async def _ready(self, clock: Clock) -> None:
        """Raises WorkerLost where one dies meanwhile, who is replaced the next time."""
        replaced = sorted(self._doubtful)
        self._doubtful.clear()
        try:
            living = await self._workers.ready(replaced)
        except BaseException:
            self._doubtful.update(replaced)
            raise
        if self._current is not None:
            for number in living:
                self._alone_at = max(self._alone_at, self._current.given_up_at(number))
        await self._alone(clock)
        if self._doubtful:
            raise WorkerLost(f"worker {min(self._doubtful)} has died while the others were started")

    async def _alone(self, clock: Clock) -> None:
        seconds = self._alone_at - clock.monotonic()
        if seconds > 0:
            log.warning("waiting %.1f s: a worker that nobody reaches may live on, and has to give itself up", seconds)
            await clock.sleep(seconds)

    def _epoch(self, spec: AttemptSpec, clock: Clock) -> Epoch:
        """Without checkpoints nobody counts the runs: then the time tells this one from an earlier process's."""
        if self._begun_ms is None:
            self._begun_ms = clock.time_ms()
        return Epoch(spec.run or self._begun_ms, spec.attempt)

    def received(self, peer: int, message: bytes) -> None:
        """Every message that a worker hands over. Raises ConnectionLost where it can't be taken yet."""
        if self._current is not None:
            self._current.received(peer, message)

    def worker_lost(self, number: int, why: str, *, dead: bool = True) -> None:
        """For whoever knows that a worker's process is dead; or, if not `dead`, that it is lost for good, though it may
        live on, and open what would fence its successor: then the next attempt waits until it has given itself up."""
        self._doubtful.add(number)
        if self._current is not None:
            if not dead:
                self._alone_at = max(self._alone_at, self._current.given_up_at(number))
            self._current.lost(number, why)


class RemoteAttempt:
    """See `runtime.deployment.Deployed`. `doubtful`: gets the workers of which nobody knows whether they have ended."""

    def __init__(
        self,
        spec: AttemptSpec,
        epoch: Epoch,
        placement: Placement,
        storage: StoredSnapshots,
        reports: Reports,
        clock: Clock,
        wire: Wire,
        times: Times,
        doubtful: set[int],
    ) -> None:
        self.placement = placement
        self._spec = spec
        self._plan = spec.plan
        self._numbers = {subtask: number for number, subtask in enumerate(spec.plan.subtasks)}
        self._storage = storage
        self._reports = reports
        self._clock = clock
        self._times = times
        self._doubtful = doubtful
        self._delivery = Delivery(
            CONTROL, epoch, COORDINATOR, wire, clock, self._undelivered, times.lost_at_start_after
        )
        workers = [number for number, slice in enumerate(placement.slices) if slice]
        self._lines = {number: Line(self._delivery, number, TO_WORKER) for number in workers}
        self._watch = Watch(
            workers,
            clock,
            times,
            beat=self._beat,
            on_silent=lambda worker, silent: self.lost(worker, f"it has not been heard of for {silent:.1f} s"),
            forgiving=True,
        )
        self._prepared: dict[int, asyncio.Future[None]] = {}
        self._ended: dict[int, asyncio.Event] = {number: asyncio.Event() for number in workers}
        """Set too once a worker is lost."""
        self._lost: set[int] = set()
        self._over = False
        self._silent_since: float | None = None
        """By the clock: since when no worker is told anything."""
        self._started: dict[int, int] = {}
        """How many messages a worker has taken once it knows that the subtasks run."""
        self._vitals: dict[int, Vitals] = {}
        self._told: tuple[Control, dict[int, Told]] | None = None
        """The latest control message, and by worker what it has become."""
        self._onlookers = RemoteOnlookers(self._give)
        self._settled: dict[int, dict[int, asyncio.Event]] = {}
        """By checkpoint that is being given up, and by worker."""
        self._alignment = SharedAlignment(self._lines)
        self._tasks: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------------------------------------------------ deploying
    async def deploy(self, ship: Ship) -> None:
        """Raises what a worker was refused its slice for, and WorkerLost."""
        bare = dataclasses.replace(self._spec, plan=dataclasses.replace(self._plan), restores={}, backlogs={})
        common = ship((bare, self.placement))
        restored = None if self._storage.restored is None else restored_from(self._storage.restored)
        loop = asyncio.get_running_loop()
        self._watch.start(self._plan.name)
        self._prepared = {number: loop.create_future() for number in self._lines}
        for number, line in self._lines.items():
            own = ship(part_of(self._spec, self.placement.slices[number]))
            line.give(Prepare(common, own, restored))
        try:
            await asyncio.gather(*self._prepared.values())
        finally:
            for prepared in self._prepared.values():
                prepared.cancel()
            await asyncio.gather(*self._prepared.values(), return_exceptions=True)
        self._to_all(Go())

    def _to_all(self, message: object) -> None:
        for line in self._lines.values():
            line.give(message)

    # ------------------------------------------------------------------------------------------------------- control
    def send(self, subtask: SubtaskId, message: Control) -> None:
        match message:
            case Query() | AttachTap() | DetachTap():
                self._onlookers.send(subtask, message)
            case Start():
                self._watch.running()
                self._delivery.give_up = self._times.lost_after
                self._tell(subtask, message)
                worker = self.placement.worker_of(subtask)
                self._started.setdefault(worker, self._lines[worker].given)
            case _:
                self._tell(subtask, message)

    def _tell(self, subtask: SubtaskId, message: Control) -> None:
        """One message for all subtasks of a worker that are told the same, one after another."""
        worker = self.placement.worker_of(subtask)
        if self._told is None or self._told[0] is not message:
            self._told = message, {}
        line, told = self._lines[worker], self._told[1].get(worker)
        if told is not None and line.last is told:
            told.subtasks.append(self._numbers[subtask])
            return
        told = self._told[1][worker] = Told(CONTROLS.post(message), [self._numbers[subtask]])
        line.give(told)

    def _give(self, subtask: SubtaskId, message: Callable[[int], object]) -> None:
        self._lines[self.placement.worker_of(subtask)].give(message(self._numbers[subtask]))

    # --------------------------------------------------------------------------------------------------------- reports
    def received(self, peer: int, message: bytes) -> None:
        """Raises ConnectionLost where it is of a later attempt."""
        body = self._delivery.accept(peer, message)
        if header_of(message).epoch == self._delivery.epoch:
            self._watch.heard(peer)
        if body is not None and peer not in self._lost:
            self._take_all(peer, body)

    def _take_all(self, worker: int, body: memoryview) -> None:
        """It is accepted, and does not come again: if one of its messages can't be taken, nor can those behind it."""
        try:
            for told in FROM_WORKER.read(body):
                self._take(worker, told)
        except Exception as error:
            self._reports(Failed(None, error))

    def _take(self, worker: int, message: Any) -> None:
        match message:
            case Prepared():
                self._now_prepared(worker, None)
            case Unprepared(error):
                self._now_prepared(worker, error_of(error))
            case Broken(subtask, error):
                self._reports(Failed(subtask, error_of(error)))
            case MayReuse():
                self._run(self._reuse(worker, message), f"files for worker {worker}")
            case Answered() | Tapped():
                self._onlookers.take(message)
            case Settled(checkpoint):
                if (settled := self._settled.get(checkpoint, {}).get(worker)) is not None:
                    settled.set()
            case Slowest(groups):
                self._alignment.told(worker, groups)
            case Vitals():
                self._vitals[worker] = message
                self._storage.bytes_read = sum(vitals.bytes_read for vitals in self._vitals.values())
            case Ended():
                self._now_ended(worker)
            case _:
                self._reports(message)

    def _now_prepared(self, worker: int, error: BaseException | None) -> None:
        prepared = self._prepared.get(worker)
        if prepared is None or prepared.done():
            return
        if error is None:
            prepared.set_result(None)
        else:
            prepared.set_exception(error)

    def _now_ended(self, worker: int) -> None:
        """A worker that was not told to end has given up, which is as bad as its death."""
        if not self._over:
            self.lost(worker, "it has given up its part, since it could not reach the coordinator")
        self._ended[worker].set()

    async def _reuse(self, worker: int, asked: MayReuse) -> None:
        try:
            files = await self._storage.reuse(asked.barrier, asked.contents)
        except StreamactorsError as error:
            self._lines[worker].give(Reused(asked.number, (), to_send(error)))
            return
        self._lines[worker].give(Reused(asked.number, tuple(files)))

    def _run(self, work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=f"{self._plan.name}: {what}")
        self._tasks.add(task)
        task.add_done_callback(self._ran)
        return task

    def _ran(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._reports(Failed(None, error))

    # --------------------------------------------------------------------------------------------------------- figures
    def metrics(self) -> dict[str, Any]:
        """As they were told last: about as old as the time between two signs of life."""
        told = {name: figures for vitals in self._vitals.values() for name, figures in vitals.metrics.items()}
        return {name: _restored(told[name]) for name in map(str, self._plan.subtasks) if name in told}

    def channels(self, subtask: SubtaskId) -> list[ChannelFill]:
        """Likewise."""
        vitals = self._vitals.get(self.placement.worker_of(subtask), Vitals())
        told, channels = vitals.fills.get(str(subtask), {}), self._plan.channels_in(subtask)
        nothing = Mailbox[Element](len(channels), self._spec.mailbox_capacity)
        return [
            told.get(place) or fill_of(nothing, place, self._plan.edges[channel.edge], str(channel.sender))
            for place, channel in enumerate(channels)
        ]

    # ------------------------------------------------------------------------------------------------------ life signs
    def _beat(self, worker: int) -> None:
        if self._lines[worker].idle:
            self._lines[worker].give(Beat())

    def _undelivered(self, peer: int, error: BaseException) -> None:
        self.lost(peer, str(error))

    def given_up_at(self, worker: int) -> float:
        """By the clock: when this worker has ended its part, if it hears nothing from now on, or from the end of this
        attempt on. Until it has heard that the subtasks run, it is patient as at the start."""
        if worker not in self._lines:
            return -math.inf
        since = self._clock.monotonic() if self._silent_since is None else self._silent_since
        started = worker in self._started and self._lines[worker].taken >= self._started[worker]
        patience = self._times.lost_after if started else self._times.lost_at_start_after
        return since + patience + 2 * self._times.heartbeat

    def lost(self, worker: int, why: str) -> None:
        """It fails the attempt, and is not waited for."""
        if worker not in self._lines or worker in self._lost:
            return
        self._lost.add(worker)
        self._watch.forget(worker)
        self._doubtful.add(worker)
        self._lines[worker].cut()
        self._ended[worker].set()
        for settled in self._settled.values():
            settled[worker].set()
        error = WorkerLost(f"worker {worker} of {self._plan.name!r} is lost: {why}")
        self._now_prepared(worker, error)
        if not self._over:
            self._reports(Failed(None, error))

    # -------------------------------------------------------------------------------------------------------------- end
    async def delivered(self) -> None:
        for line in self._lines.values():
            await line.flush()

    async def settle(self, checkpoint: int) -> None:
        live = [worker for worker in self._lines if worker not in self._lost]
        settled = self._settled[checkpoint] = {worker: asyncio.Event() for worker in self._lines}
        for worker in live:
            self._lines[worker].give(Settle(checkpoint))
        await self._all([settled[worker] for worker in live], self._times.lost_after)
        del self._settled[checkpoint]

    async def shut_down(self) -> None:
        self._over = True
        self._to_all(End())
        await self._all(list(self._ended.values()), self._times.patience)
        self._doubtful.update(worker for worker, ended in self._ended.items() if not ended.is_set())
        await self._watch.stop()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for line in self._lines.values():
            await line.close()
        self._silent_since = self._clock.monotonic()

    async def _all(self, events: Collection[asyncio.Event], patience: float) -> None:
        """Of all of them, or for so many seconds."""
        try:
            async with asyncio.timeout(patience):
                for event in events:
                    await event.wait()
        except TimeoutError:
            log.warning("%s: a worker does not answer", self._plan.name)


def part_of(spec: AttemptSpec, subtasks: Collection[SubtaskId]) -> tuple[Restores, Backlogs]:
    """What some subtasks restore."""
    own = frozenset(subtasks)
    restores = {place: start for place, start in spec.restores.items() if place[0] in own}
    return restores, {subtask: backlog for subtask, backlog in spec.backlogs.items() if subtask in own}


class SharedAlignment:
    """Where the slowest of each group of aligned sources is, told to every worker of all others."""

    def __init__(self, lines: Mapping[int, Line]) -> None:
        self._lines = lines
        self._slowest: dict[int, Mapping[str, int | None]] = {}
        self._others = {worker: Others({}) for worker in lines}

    def told(self, worker: int, groups: Mapping[str, int | None]) -> None:
        self._slowest[worker] = groups
        for other, message in self._others.items():
            if other != worker:
                message.groups = self._but(other)
                if not self._lines[other].holds(message):
                    self._lines[other].give(message)

    def _but(self, worker: int) -> dict[str, int | None]:
        told = [groups for other, groups in self._slowest.items() if other != worker]
        names = dict.fromkeys(name for groups in told for name in groups)
        return {name: _least(groups.get(name) for groups in told) for name in names}


def _least(watermarks: Iterable[int | None]) -> int | None:
    return min((watermark for watermark in watermarks if watermark is not None), default=None)


def _restored(figures: Mapping[str, Any]) -> dict[str, Any]:
    """A subtask's metrics, as `slice.read_metrics` made them."""
    nodes = {uid: {**node, "own": msgspec.convert(node["own"], Readings)} for uid, node in figures["nodes"].items()}
    return {**figures, "nodes": nodes}
