"""A job: attempts at running a flow, one after another, until it has finished, failed for good, or been cancelled.

Invariant: at most one attempt is alive, and it starts from the latest complete checkpoint; nothing of an attempt (task,
file, transaction still open) is left when the next one begins.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from streamactors.actors.supervisor import despite_cancellation
from streamactors.checkpoint.restorable import Restorable
from streamactors.checkpoint.storage.contract import Files
from streamactors.checkpoint.storage.opening import open_files
from streamactors.checkpoint.store import CheckpointStore
from streamactors.clock import Clock
from streamactors.config import Config, Ray
from streamactors.errors import (
    AttemptEnded,
    CheckpointFailed,
    CorruptCheckpoint,
    IncompatibleState,
    InvalidConfig,
    InvalidDataflow,
    JobFailed,
    JobNotRunning,
    StateAccessError,
    StorageFailed,
    StreamactorsError,
)
from streamactors.graph.parallelism import Parallelism, widths
from streamactors.graph.physical import PhysicalPlan, SubtaskId
from streamactors.operators.sink import SinkSpec
from streamactors.runtime.assembly import AttemptSpec
from streamactors.runtime.attempt import Attempt
from streamactors.runtime.autoscaling.decisions import Decision
from streamactors.runtime.autoscaling.steering import autoscaled
from streamactors.runtime.beginning import choose_restore, open_store
from streamactors.runtime.deployment import Deploy
from streamactors.runtime.events import (
    AttemptBegun,
    AttemptFailed,
    AttemptRunning,
    CheckpointAbandoned,
    CheckpointCompleted,
    JobEnded,
    JobEvent,
    Listener,
    Moment,
    RestartScheduled,
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
from streamactors.runtime.rescaling import Rescales
from streamactors.runtime.restart import RestartPolicy
from streamactors.runtime.restore import Restores, plan_restore, stored_max_parallelism
from streamactors.runtime.restore_in_flight import Backlogs, plan_backlogs
from streamactors.runtime.taps import Subscription, check_emits

log = logging.getLogger("streamactors.job")

HISTORY: Final = 100
"""Completed checkpoints that a job remembers, and those given up."""
INCIDENTS: Final = 10


@dataclass(frozen=True)
class JobSpec:
    """What to run. `plan` makes the physical plan for a max parallelism (None: the default) and what the job was
    rescaled to."""

    name: str
    plan: Callable[[int | None, Parallelism], PhysicalPlan]
    config: Config
    restore: str | None = "latest"
    fresh: bool = False
    drop_state: Collection[str] = ()
    resources: Mapping[str, Any] = field(default_factory=dict)
    claim: bool = False
    handover: float = 0.0
    """Seconds for which a live owner of the storage is waited for: what a cluster has given up may live on a moment."""
    folder: str = ""
    """Where it was started, for processes that were not; there, relative paths of sources and sinks mean the same."""
    rescaled_since: int | None = None
    """For a process that takes the place of one that has died: the run in which its user has started it, since when a
    rescale holds. None: it begins with the parallelism of its settings."""

    def again(self, since: int | None) -> "JobSpec":
        """For a process that takes the place of one that has died. `since`: see `rescaled_since`."""
        since = since if self.rescaled_since is None else self.rescaled_since
        return replace(self, restore="latest", fresh=False, claim=False, rescaled_since=since)


class Job:
    """Runs once, by `run`. `files` replaces what the checkpoint storage is reached by."""

    def __init__(self, spec: JobSpec, *, deploy: Deploy, clock: Clock, files: Files | None = None) -> None:
        self.status: Status = "starting"
        self.restarts = 0
        self.last_checkpoint: CheckpointInfo | None = None
        self.incidents: deque[Incident] = deque(maxlen=INCIDENTS)
        """What ended attempts, the latest last."""
        self.given_up: deque[CheckpointGivenUp] = deque(maxlen=HISTORY)
        self.checkpoints_given_up = 0
        self.checkpoints_completed = 0
        self.checkpoints: deque[CheckpointInfo] = deque(maxlen=HISTORY)
        """Those completed in this process, savepoints among them, the latest last."""
        self.plan: PhysicalPlan | None = None
        """Of the current attempt, or the last one."""
        self.stopping = False
        """Whether it has been asked to stop."""
        self.autoscale: Decision | None = None
        """What the autoscaler has decided last; None where there is none, or not yet."""
        self._stop_asked = asyncio.Lock()
        """Held until it is known whether it can be stopped, or rescaled, as asked: whoever asks meanwhile waits."""
        self._rescales = Rescales(spec.name, Parallelism(spec.config.parallelism), clock, self._tell)
        self._unretired = False
        """Whether the attempt before has left old checkpoints that are not needed any more."""
        self._handed_over = 0
        """Attempts that have ended in peace, for the next one to go on."""
        self._replaced = 0
        """Attempts that could not restore what they were to: the next one begins with something else, and is no
        restart."""
        self._spec = spec
        self._deploy = deploy
        self._clock = clock
        self._files = files
        self._opened: Files | None = None
        """By this job, to be closed at its end."""
        self._store: CheckpointStore | None = None
        self._policy = RestartPolicy.of(spec.config.effective_restart)
        self._attempt: Attempt | None = None
        self._last_metrics: dict[str, Any] = {}
        self._subscriptions: list[Subscription] = []
        """Those that each attempt feeds."""
        self._begun_ms = clock.time_ms()
        self.listeners: list[Listener] = []
        self.running = asyncio.Event()
        """Set while an attempt runs."""
        self.settled = asyncio.Event()
        """Set once it is known whether the job can start: the first attempt runs, or has failed."""

    @property
    def name(self) -> str:
        return self._spec.name

    @property
    def config(self) -> Config:
        return self._spec.config

    @property
    def run_number(self) -> int:
        """Among those that have owned its storage; 0 before it does, and where it has none."""
        return 0 if self._store is None else self._store.run

    @property
    def last_rescale(self) -> RescaleInfo | None:
        return self._rescales.last

    # ------------------------------------------------------------------------------------------------------ lifetime
    async def run(self) -> None:
        """Until finished; raises JobFailed, or what says that the job can't start at all."""
        spec = self._spec
        room = deployment.room if isinstance(deployment := spec.config.deployment, Ray) else None
        try:
            await self._open_store()
            restored = await choose_restore(
                self._store, self.name, spec.restore, fresh=spec.fresh, claim=spec.claim, check=self._planned
            )
            await self._go_on_rescaled(restored)
            async with autoscaled(self, spec.config.autoscale, self._clock, self._now_decided, room):
                await self._run_attempts(restored)
            self.status = "finished"
        except asyncio.CancelledError:
            self.status = "cancelled"
            raise
        except BaseException:
            self.status = "failed"
            raise
        finally:
            self.running.clear()
            self._tell(JobEnded(self.status))
            if self._store is not None:
                await despite_cancellation(self._store.close())
            if self._opened is not None:
                await despite_cancellation(self._opened.close())

    async def _open_store(self) -> None:
        checkpoints = self._spec.config.checkpoints
        if checkpoints is not None:
            if self._files is None:
                options = checkpoints.storage_options
                self._files = self._opened = open_files(checkpoints.storage, clock=self._clock, options=options)
            self._store = await open_store(
                checkpoints.storage, self.name, self._files, self._spec.handover, self._clock
            )
        elif self._spec.restore not in (None, "latest"):
            raise InvalidConfig(
                f"restore={self._spec.restore!r} needs checkpoints: give Config(checkpoints=Checkpoints(storage, …)), "
                "so that the job can go on from where it was"
            )

    async def _go_on_rescaled(self, restored: Restorable | None) -> None:
        since = self._spec.rescaled_since
        if since is None or restored is None or self._store is None:
            return
        stored = restored.manifest
        if stored.rescaled and stored.run >= since and await self._store.owns(restored):
            plan = self._plan_of(self._rescales.parallelism, stored_max_parallelism(stored))
            self._rescales.go_on(plan, stored)

    async def _run_attempts(self, restored: Restorable | None) -> None:
        while True:
            try:
                await self._run_attempt(restored)
                if self._rescales.under_way is None or self._store is None:
                    return
                restored = None  # what it began with is not what there is to fall back from
                restored = await self._store.latest()
                self._handed_over += 1
            except Exception as error:
                restored = await self._recover_in_the_end(error, restored)

    async def _run_attempt(self, restored: Restorable | None) -> None:
        stored = (None, None) if restored is None else (restored.manifest.checkpoint, restored.uri)
        self._tell(AttemptBegun(self._number, *stored))
        self._rescales.attempt_begins()
        spec = await self._prepare(restored)
        if restored is not None:
            log.info("%s: restoring %s", self.name, restored.uri)
        attempt = Attempt(
            spec,
            deploy=self._deploy,
            store=self._store,
            restored=restored,
            clock=self._clock,
            on_running=self._now_running,
            on_checkpoint=self._now_checkpointed,
            on_given_up=self._now_given_up,
            on_triggered=self._tell,
            on_resumed=self._now_resumed,
            subscriptions=self._subscriptions,
            unretired=self._unretired,
        )
        self._attempt = attempt
        try:
            await attempt.run()
        finally:
            self._last_metrics = attempt.metrics()
            self._attempt = None
            self._unretired = attempt.unretired
            self._rescales.attempt_ended(attempt.read_until)

    @property
    def _number(self) -> int:
        """Of the attempt; the first is 1."""
        return self.restarts + self._handed_over + self._replaced + 1

    def _planned(self, restored: Restorable | None) -> tuple[PhysicalPlan, Restores, Backlogs]:
        plan = self._plan_of(
            self._rescales.parallelism, stored_max_parallelism(restored.manifest) if restored else None
        )
        if restored is None:
            return plan, {}, {}
        restores = plan_restore(restored.manifest, plan, self._spec.drop_state)
        return plan, restores, plan_backlogs(restored.manifest, plan, self._spec.drop_state)

    def _plan_of(self, parallelism: Parallelism, kept: int | None = None) -> PhysicalPlan:
        """`kept`: the max parallelism that is stored; None: that of this process so far, if there was an attempt."""
        if kept is None and self.plan is not None:
            kept = self.plan.vertices[0].max_parallelism
        return self._spec.plan(self._spec.config.max_parallelism or kept, parallelism)

    async def _prepare(self, restored: Restorable | None) -> AttemptSpec:
        config = self._spec.config
        plan, restores, backlogs = self._planned(restored)
        if self.plan is None and restored is not None:
            self._rescales.compare(widths(plan), restored.manifest)
        self.plan = plan
        run, attempt, widest = 0, self._number, dict[str, int]()
        if plan.execution == "batch":  # later than that of an earlier process: nobody has counted them
            attempt += self._begun_ms
        if self._store is not None:
            sinks = {
                uid: vertex.parallelism for uid, (vertex, node) in plan.node.items() if isinstance(node.spec, SinkSpec)
            }
            attempt = await self._store.begin_attempt(sinks, restored)
            run, widest = self._store.run, dict(self._store.widest)
        return AttemptSpec(
            plan,
            run,
            attempt,
            config.checkpoints,
            config.mailbox_capacity,
            restores,
            backlogs,
            restored.committed if restored is not None else False,
            widest,
            self._spec.resources,
            config.state_backend,
            config.sort_memory,
            config.sort_folder,
            self._rescales.rescaled,
        )

    def _now_running(self, running: bool) -> None:
        if not running:
            self.running.clear()
            if self._rescales.under_way is not None:
                self.status = "restarting"
            return
        self.status = "running"
        self.running.set()
        self.settled.set()
        self._tell(AttemptRunning())
        self._rescales.running()

    def _now_checkpointed(self, info: CheckpointInfo) -> None:
        self.last_checkpoint = info
        self._rescales.checkpointed()
        if self.checkpoints:
            self.checkpoints[-1] = self.checkpoints[-1].without_groups()
        self.checkpoints.append(info)
        self.checkpoints_completed += 1
        seconds = info.duration.total_seconds()
        log.info("%s: checkpoint %d complete in %.3f s, %d bytes", self.name, info.id, seconds, info.state_bytes)
        self._tell(CheckpointCompleted(info))

    def _now_decided(self, decision: Decision) -> None:
        self.autoscale = decision

    def _now_given_up(self, checkpoint: CheckpointGivenUp) -> None:
        self.given_up.append(checkpoint)
        self.checkpoints_given_up += 1
        self._tell(CheckpointAbandoned(checkpoint))

    def _tell(self, event: JobEvent) -> None:
        """Whoever listens can't make the job fail."""
        if not self.listeners:
            return
        at = Moment(self._clock.time_ms(), self._clock.monotonic())
        for listener in tuple(self.listeners):
            try:
                listener(event, at)
            except Exception:
                log.exception("%s: a listener has failed on %s", self.name, type(event).__name__)

    # ------------------------------------------------------------------------------------------------------- failure
    @property
    def failures(self) -> list[BaseException]:
        """What ended attempts, the latest last; the ten latest are kept."""
        return [incident.error for incident in self.incidents]

    async def _recover_in_the_end(self, error: Exception, restored: Restorable | None) -> Restorable | None:
        """A storage that fails now too may be better the next time."""
        while True:
            try:
                return await self._recover(error, restored)
            except StorageFailed as failure:
                error = failure

    async def _recover(self, error: Exception, restored: Restorable | None) -> Restorable | None:
        """What the next attempt starts from; raises JobFailed if there is to be none."""
        self.incidents.append(Incident(self._clock.time_ms(), self._number, error))
        self._tell(AttemptFailed(self._number, error))
        if isinstance(error, IncompatibleState | InvalidConfig | InvalidDataflow):  # refused before anything ran
            if not self._rescales.has_switched:
                raise error
            self._rescales.give_up(error)
            self._replaced += 1
            return restored
        if isinstance(error, CorruptCheckpoint) and restored is not None and self._store is not None:
            restored = await self._store.fall_back(restored, error)
            self._replaced += 1
            return restored
        await self._wait_for_restart(error)
        return await self._store.latest() if self._store is not None else None

    async def _wait_for_restart(self, error: Exception) -> None:
        delay = None
        if self._worth_a_restart(error):
            delay = self._policy.delay_after_failure(self._clock.monotonic(), self._clock.random())
            if self._rescales.go_back(error):
                delay = delay or 0.0  # once, and as it was: whatever the policy
        if delay is None:
            raise JobFailed(f"job {self.name!r} failed: {error}") from error
        self.status = "restarting"
        self.settled.set()
        self.restarts += 1
        log.warning("%s: attempt failed, restarting in %.2f s: %s", self.name, delay, error, exc_info=error)
        self._tell(RestartScheduled(delay))
        await self._clock.sleep(delay)

    def _worth_a_restart(self, error: Exception) -> bool:
        return not self.stopping and (not isinstance(error, StreamactorsError) or error.retryable)

    # ------------------------------------------------------------------------------------------------------ requests
    async def checkpoint(self) -> CheckpointInfo:
        """Take one now. Raises CheckpointFailed, InvalidConfig if checkpoints are off."""
        self._refuse_in_batch("checkpoint")
        if self._spec.config.checkpoints is None:
            raise InvalidConfig("checkpoints are off: give Config(checkpoints=Checkpoints(storage, interval=…))")
        return await (await self._undisturbed()).checkpoint()

    async def savepoint(self, uri: str) -> CheckpointInfo:
        """Take one in the new or empty folder `uri`. Raises CheckpointFailed, InvalidConfig, StorageFailed."""
        await self._check_target(uri)
        return await (await self._undisturbed()).checkpoint(uri)

    @property
    def batch(self) -> bool:
        return self._spec.config.execution == "batch"

    def _refuse_in_batch(self, what: str) -> None:
        if self.batch:
            raise InvalidConfig(
                f"job {self.name!r} has no {what}: execution = 'batch' takes none, since a failed run begins again "
                "from the start; use execution = 'streaming'"
            )

    async def _check_target(self, uri: str) -> None:
        """Before anything is asked to stop."""
        self._refuse_in_batch("savepoint")
        if self._spec.config.checkpoints is None:
            raise InvalidConfig(
                "savepoints need checkpoints to be on: give Config(checkpoints=Checkpoints(storage, interval=…))"
            )
        await self._current()
        assert self._store is not None
        await self._store.check_savepoint(uri)

    async def stop(self, *, drain: bool, savepoint: str | None = None) -> bool:
        """Ask the sources to read no further, and wait for the last checkpoint. The job then finishes. False, at once,
        where it is stopping already: that is not changed any more, or its savepoint would be lost."""
        async with self._stop_asked:
            if self.stopping:
                return False
            if savepoint is not None:
                await self._check_target(savepoint)
            attempt = await self._undisturbed()
            self.stopping = True
            answer = attempt.stop(drain=drain, savepoint=savepoint)
        if answer is not None:
            await answer
        return True

    async def rescale(self, steps: Mapping[str, int], default: int | None = None) -> RescaleInfo | None:
        """Go on by another parallelism (of `steps` by uid, of all others by `default`; None leaves it), from an aligned
        checkpoint that commits; None where it runs by that already. It goes on if the caller does not wait. Raises
        InvalidConfig, RescaleUnderWay, JobNotRunning, CheckpointFailed."""
        self._refuse_rescale()
        async with self._stop_asked:
            attempt = await self._current()
            if self.stopping:
                raise JobNotRunning(f"job {self.name!r} is stopping: start it again with another parallelism")
            self._rescales.refuse_another()
            plan, parallelism = attempt.plan, self._rescales.parallelism.rescaled(default, steps, attempt.plan)
            before, after = widths(plan), widths(self._plan_of(parallelism, plan.vertices[0].max_parallelism))
            if before == after:
                log.info("%s: runs by that parallelism already", self.name)
                return None
            rescaling = self._rescales.begin(parallelism, before, after)
            attempt.hand_over()
        return await rescaling.answer()

    def _refuse_rescale(self) -> None:
        if self.batch:
            raise InvalidConfig(
                f"job {self.name!r} can't be rescaled: execution = 'batch' takes no checkpoint to go on from; cancel "
                "it, and run it again with another parallelism"
            )
        if self._spec.config.checkpoints is None:
            raise InvalidConfig(
                f"job {self.name!r} can't be rescaled: it goes on from a checkpoint, and these are off: give "
                "Config(checkpoints=Checkpoints(storage, …))"
            )

    def _now_resumed(self, reason: str) -> None:
        self._rescales.give_up(CheckpointFailed(f"job {self.name!r} was not rescaled, and goes on as it was: {reason}"))

    async def query(self, uid: str, state: str, key: Any) -> Any:
        """A copy of what `key` holds, as of between two records. Raises StateAccessError."""
        while True:
            attempt = await self._current()
            if uid not in attempt.plan.node:
                raise StateAccessError(f"the flow has no operator {uid!r}; it has: {', '.join(attempt.plan.node)}")
            try:
                return await attempt.query(uid, state, key)
            except AttemptEnded:
                await asyncio.sleep(0)  # the next attempt may answer

    async def subscribe(self, uid: str, tag: str | None, buffer: int) -> Subscription:
        """Fed with what the step emits from now on. Raises NoSuchStep."""
        check_emits(self.plan or (await self._current()).plan, uid)
        subscription = Subscription(uid, tag, buffer)
        self._subscriptions.append(subscription)
        try:
            if self._attempt is not None:
                await self._attempt.tap(subscription)
        except BaseException:
            self.unsubscribe(subscription)
            raise
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        subscription.close()
        self._subscriptions.remove(subscription)
        if self._attempt is not None:
            self._attempt.untap(subscription)

    async def _current(self) -> Attempt:
        """The running attempt, waiting for one while the job starts or restarts."""
        while self._attempt is None or not self._attempt.running:
            if self.status in ("finished", "failed", "cancelled"):
                raise JobNotRunning(f"job {self.name!r} is not running any more: {self.status}")
            await self.running.wait()
        return self._attempt

    async def _undisturbed(self) -> Attempt:
        """The running attempt, waiting for a rescale that is under way."""
        while True:
            attempt = await self._current()
            if self._rescales.under_way is None:
                return attempt
            await self._rescales.under_way.ended()

    @property
    def checkpoints_under_way(self) -> list[CheckpointUnderWay]:
        return [] if self._attempt is None else self._attempt.under_way

    @property
    def restoring(self) -> Restoring | None:
        return None if self._attempt is None else self._attempt.restoring

    def channels(self, subtask: SubtaskId) -> list[ChannelFill]:
        """What waits on the inputs of a subtask; nothing between two attempts."""
        return [] if self._attempt is None else self._attempt.channels(subtask)

    def metrics(self) -> dict[str, Any]:
        return {**self.overview(), "subtasks": self.subtask_metrics()}

    def overview(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "restarts": self.restarts,
            "last_checkpoint": self.last_checkpoint,
            "last_rescale": self.last_rescale,
            "restored_parallelism": self._rescales.restored,
            "autoscale": self.autoscale,
        }

    def subtask_metrics(self) -> dict[str, Any]:
        return self._attempt.metrics() if self._attempt is not None else self._last_metrics
