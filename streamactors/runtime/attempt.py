"""One attempt at running a plan: executes what the coordinator decides, until the plan ends or something fails.

Invariant: reports and requests are handled one at a time, in the order they come; nothing that a decision waits for
(writing a manifest, opening a checkpoint's folder) is waited for here: it runs beside, and comes back as an event.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from itertools import count
from typing import Any, Protocol

import msgspec

from streamactors.actors.signal import Signal
from streamactors.actors.supervisor import despite_cancellation
from streamactors.checkpoint import coordinator as decide
from streamactors.checkpoint import native_files
from streamactors.checkpoint.coordinator import CheckpointCoordinator
from streamactors.checkpoint.final_commit import FinalCommit
from streamactors.checkpoint.manifest import (
    BlockRef,
    FileHandle,
    FrameRef,
    InFlightHandle,
    KeyedHandle,
    ListRef,
    ListsHandle,
    Manifest,
    NativeFileHandle,
    OperatorMeta,
    SubtaskState,
    requirements,
)
from streamactors.checkpoint.restorable import Restorable
from streamactors.checkpoint.storage.contract import Written
from streamactors.checkpoint.store import CheckpointStore
from streamactors.checkpoint.writer import CheckpointWriter
from streamactors.clock import Clock
from streamactors.config import Checkpoints
from streamactors.elements import Barrier
from streamactors.errors import (
    AttemptEnded,
    CheckpointFailed,
    CommitInterrupted,
    InvalidConfig,
    StateAccessError,
    StorageFailed,
    StreamactorsError,
)
from streamactors.graph.physical import PhysicalPlan, SubtaskId
from streamactors.operators.sink import SinkSpec
from streamactors.runtime.assembly import AttemptSpec
from streamactors.runtime.events import CheckpointTriggered
from streamactors.runtime.figures import SnapshotFigures, SubtaskCheckpoint
from streamactors.runtime.group_figures import GroupFigures
from streamactors.runtime.info import ChannelFill, CheckpointGivenUp, CheckpointInfo, CheckpointUnderWay, Restoring
from streamactors.runtime.messages import (
    AttachTap,
    CheckpointAborted,
    CheckpointComplete,
    Control,
    DetachTap,
    EndReached,
    Failed,
    Finish,
    Query,
    ReadingStopped,
    Ready,
    Report,
    Reports,
    ResumeReading,
    SnapshotDeclined,
    SnapshotStored,
    Start,
    Stopped,
    StopReading,
    TransactionsCommitted,
    TriggerBarrier,
)
from streamactors.runtime.taps import Subscription, Tap
from streamactors.state.key_groups import key_group, subtask_of

log = logging.getLogger("streamactors.job")


class Deployed(Protocol):
    """Subtasks that have been placed and started, wherever they are."""

    def send(self, subtask: SubtaskId, message: Control) -> None: ...
    def metrics(self) -> dict[str, Any]: ...
    def channels(self, subtask: SubtaskId) -> list[ChannelFill]: ...
    async def delivered(self) -> None:
        """Until all that was sent so far is with the subtasks, or will never be."""

    async def settle(self, checkpoint: int) -> None:
        """Of one that is given up: until nobody but this process writes anything for it, or as long as is worth it."""

    async def shut_down(self) -> None:
        """Cancel what still runs, and wait until nothing is left."""


class Deploy(Protocol):
    """Places and starts every subtask of an attempt; their reports go to `reports`."""

    async def __call__(self, spec: AttemptSpec, storage: "StoredSnapshots", reports: Reports, clock: Clock) -> Deployed:
        """Where it raises, nothing is left of them."""


class StoredSnapshots:
    """The snapshot storage of one attempt. Dies with it: a zombie's writes are refused by the closed writers."""

    def __init__(self, restored: Restorable | None, clock: Clock) -> None:
        self.restored = restored
        self._clock = clock
        self.writers: dict[int, CheckpointWriter] = {}
        self.bytes_read = 0

    def _writer(self, barrier: Barrier) -> CheckpointWriter:
        writer = self.writers.get(barrier.checkpoint)
        if writer is None:
            raise CheckpointFailed(f"checkpoint {barrier.checkpoint} is no longer in flight")
        return writer

    async def write(
        self, barrier: Barrier, name: str, chunks: AsyncIterator[bytes], *, alone: bool = False
    ) -> FileHandle:
        return await self._writer(barrier).write(name, chunks, alone=alone)

    async def reuse(self, barrier: Barrier, contents: Sequence[Written]) -> list[FileHandle | None]:
        writer = self._writer(barrier)
        return [writer.reuse(content.size, content.digest) for content in contents]

    async def fetch(self, part: NativeFileHandle, receive: Callable[[bytes], None]) -> None:
        assert self.restored is not None
        await native_files.fetch(self.restored, part, receive, self._clock)
        self.bytes_read += part.size

    async def read(self, handle: KeyedHandle, blocks: Sequence[BlockRef]) -> list[bytes]:
        assert self.restored is not None
        return self._counted(await self.restored.read_blocks(handle, blocks))

    async def read_lists(self, handle: ListsHandle, blocks: Sequence[ListRef]) -> list[bytes]:
        assert self.restored is not None
        return self._counted(await self.restored.read_lists(handle, blocks))

    async def read_frames(self, handle: InFlightHandle, frames: Sequence[FrameRef]) -> list[bytes]:
        assert self.restored is not None
        return self._counted(await self.restored.read_frames(handle, frames))

    def _counted(self, read: list[bytes]) -> list[bytes]:
        self.bytes_read += sum(map(len, read))
        return read


class Attempt:
    """Runs once. `store` and `checkpoints` are None where none are taken."""

    def __init__(
        self,
        spec: AttemptSpec,
        *,
        deploy: Deploy,
        store: CheckpointStore | None,
        restored: Restorable | None,
        clock: Clock,
        on_running: Callable[[bool], None],
        on_checkpoint: Callable[[CheckpointInfo], None],
        on_given_up: Callable[[CheckpointGivenUp], None],
        on_triggered: Callable[[CheckpointTriggered], None],
        on_resumed: Callable[[str], None],
        subscriptions: Sequence[Subscription] = (),
    ) -> None:
        self._spec = spec
        self._plan: PhysicalPlan = spec.plan
        self._deploy = deploy
        self._store = store
        self._restored = restored
        self._clock = clock
        self._on_running = on_running
        self._on_checkpoint = on_checkpoint
        self._on_given_up = on_given_up
        self._on_triggered = on_triggered
        self._on_resumed = on_resumed
        self._storage = StoredSnapshots(restored, clock)
        self._committers = _committers(spec.plan) if spec.committing else []
        self._coordinator = self._make_coordinator(spec.checkpoints)
        self._inbox: deque[Report | decide.Event] = deque()
        self._signal = Signal()
        self._beside: set[asyncio.Task[None]] = set()
        self._tickets: dict[int, asyncio.Future[CheckpointInfo]] = {}
        self._numbers = count(1)
        self._savepoint_tickets: set[int] = set()
        self._queries: dict[asyncio.Future[Any], SubtaskId] = {}
        self._taps = {subscription: Tap(subscription) for subscription in subscriptions}
        self._triggering = asyncio.Lock()
        """Barriers go out in the order decided, though opening a checkpoint's folder takes its time."""
        self._last_info: CheckpointInfo | None = None
        self._started_at: dict[int, float] = {}
        self._savepoints: set[int] = set()
        """Of the checkpoints of this attempt."""
        self._parts: dict[int, list[SubtaskCheckpoint]] = {}
        """Those acknowledged, of the checkpoints in `_started_at`."""
        self._infos: dict[int, CheckpointInfo] = {}
        self._deployed: Deployed | None = None
        self._ready: set[SubtaskId] = set()
        self._stopped: set[SubtaskId] = set()
        self._reading_stopped: set[SubtaskId] = set()
        self._stop_ticket: int | None = None
        self._stop_target: str | None = None
        self._drain = False
        self._handing_over = False
        """To a next attempt, in peace."""
        self._handed_over = False
        self.read_until: float | None = None
        """When the last source stopped reading, to hand over; monotonic seconds."""
        self._failure: BaseException | None = None
        self._running = False

    def _make_coordinator(
        self, checkpoints: Checkpoints | None
    ) -> CheckpointCoordinator[SubtaskId] | FinalCommit[SubtaskId] | None:
        if checkpoints is None or self._store is None:
            return FinalCommit(self._plan.subtasks, self._committers) if self._spec.batch else None
        settings = decide.Settings(
            interval=checkpoints.interval.total_seconds(),
            timeout=checkpoints.timeout.total_seconds(),
            min_pause=checkpoints.min_pause.total_seconds(),
            max_concurrent=checkpoints.max_concurrent,
            tolerable_failures=checkpoints.tolerable_failures,
            overtaking=checkpoints.alignment == "unaligned",
            alignment_timeout=None if (patience := checkpoints.alignment_timeout) is None else patience.total_seconds(),
        )
        first = self._store.next_checkpoint_id()
        return CheckpointCoordinator(settings, self._plan.subtasks, self._committers, first)

    # ------------------------------------------------------------------------------------------------------ lifetime
    async def run(self) -> None:
        """Until every subtask has ended; raises the first failure."""
        try:
            self._deployed = await self._deploy(self._spec, self._storage, self._receive, self._clock)
            while len(self._stopped) < len(self._plan.subtasks):
                await self._step()
            await self._finish()
        finally:
            self._running = False
            self._on_running(False)
            for tap in self._taps.values():
                tap.close()
            await despite_cancellation(self._end())

    async def _finish(self) -> None:
        """All is durable and visible. What still runs beside, such as retention, may end; and whoever waits for a
        checkpoint is given the last one, which holds everything."""
        while self._beside:
            await asyncio.wait(self._beside)
        for message in self._inbox:
            if isinstance(message, Failed):
                log.warning("%s has finished, but not cleaned up: %s", self._plan.name, message.error)
        missed = tuple(ticket for ticket in self._tickets if ticket in self._savepoint_tickets)
        self._answer(missed, CheckpointFailed("the job has finished, and the savepoint was not taken"))
        if self._last_info is not None:
            self._answer(tuple(self._tickets), self._last_info)

    async def _end(self) -> None:
        for task in self._beside:
            task.cancel()
        if self._beside:
            await asyncio.wait(self._beside)
        if self._deployed is not None:
            await self._deployed.shut_down()
        if self._store is not None:
            # Before anybody looks for the latest checkpoint: one of these may have got its manifest just now.
            for checkpoint in tuple(self._store.in_flight):
                await self._store.abort(checkpoint)
        reason = str(self._failure) if self._failure else "the job has ended"
        self._answer(tuple(self._tickets), CheckpointFailed(f"the checkpoint was not completed: {reason}"))
        self._refuse_queries(list(self._queries), AttemptEnded())

    def _refuse_queries(self, queries: Sequence[asyncio.Future[Any]], error: StreamactorsError) -> None:
        for query in queries:
            if not query.done():
                query.set_exception(error)

    async def _step(self) -> None:
        while self._inbox:
            self._handle(self._inbox.popleft())
            if self._failure is not None:
                raise self._failure
        if len(self._stopped) < len(self._plan.subtasks):
            await self._wait()

    async def _wait(self) -> None:
        deadline = self._coordinator.deadline() if self._coordinator is not None and self._running else None
        delay = None if deadline is None else max(0.0, deadline - self._clock.monotonic())
        try:
            async with asyncio.timeout(delay):
                await self._signal.wait()
        except TimeoutError:
            self._inbox.append(decide.Tick())

    def _receive(self, message: Report | decide.Event) -> None:
        self._inbox.append(message)
        self._signal.set()

    # ------------------------------------------------------------------------------------------------------ requests
    def checkpoint(self, savepoint: str | None = None) -> asyncio.Future[CheckpointInfo]:
        """Ask for a checkpoint now, or for a savepoint in that folder."""
        ticket, answer = self._new_ticket(savepoint)
        self._receive(decide.Requested(ticket, savepoint))
        return answer

    def stop(self, *, drain: bool, savepoint: str | None = None) -> asyncio.Future[CheckpointInfo] | None:
        """Read no further; the attempt ends by itself once all is durable. None where no checkpoints are taken."""
        if self._store is None:
            self._to_sources(StopReading(drain=True))
            return None
        self._stop_ticket, answer = self._new_ticket(savepoint)
        self._drain, self._stop_target = drain, savepoint
        self._to_sources(StopReading(drain=drain))
        if drain:
            self._receive(decide.SourcesStopped(self._stop_ticket, savepoint, drain=True))
        return answer

    def hand_over(self) -> None:
        """Ask the sources to read no further, take an aligned checkpoint that commits, and end, for a next attempt to
        go on. Where that checkpoint fails, this one goes on: `on_resumed` is told why."""
        self._handing_over = True
        self._stop_ticket = decide.NOBODY
        self._to_sources(StopReading())

    def query(self, uid: str, state: str, key: Any) -> asyncio.Future[Any]:
        """Asks the subtask that owns the key; AttemptEnded if there will be no answer."""
        vertex, _ = self._plan.node[uid]
        group = key_group(key, vertex.max_parallelism)
        subtask = SubtaskId(vertex.uid, subtask_of(group, vertex.parallelism, vertex.max_parallelism))
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if subtask in self._stopped:
            answer.set_exception(self._unanswered(subtask))
            return answer
        self._queries[answer] = subtask
        answer.add_done_callback(lambda done: self._queries.pop(done, None))
        self._send([subtask], Query(uid, state, key, group, answer))
        return answer

    async def tap(self, subscription: Subscription) -> None:
        """Once this returns, it is given what its step emits."""
        tap = self._taps[subscription] = Tap(subscription)
        if self._running and self._deployed is not None:
            self._attach(subscription, tap)
            await self._deployed.delivered()

    def untap(self, subscription: Subscription) -> None:
        tap = self._taps.pop(subscription, None)
        if tap is None:
            return
        tap.close()
        if self._running:
            self._send(self._emitting(subscription.uid), DetachTap(subscription.uid, subscription.tag, tap))

    def _attach(self, subscription: Subscription, tap: Tap) -> None:
        self._send(self._emitting(subscription.uid), AttachTap(subscription.uid, subscription.tag, tap))

    def _emitting(self, uid: str) -> list[SubtaskId]:
        """Those that may emit yet: nobody would take what is sent to one that has ended."""
        return [subtask for subtask in self._plan.node[uid][0].subtasks() if subtask not in self._stopped]

    def _unanswered(self, subtask: SubtaskId) -> StreamactorsError:
        return AttemptEnded() if self._handed_over else _has_ended(subtask)

    def metrics(self) -> dict[str, Any]:
        return {} if self._deployed is None else self._deployed.metrics()

    def channels(self, subtask: SubtaskId) -> list[ChannelFill]:
        """What waits on the inputs of a subtask."""
        return [] if self._deployed is None else self._deployed.channels(subtask)

    @property
    def plan(self) -> PhysicalPlan:
        return self._plan

    @property
    def running(self) -> bool:
        return self._running and not self._handed_over

    def _new_ticket(self, savepoint: str | None = None) -> tuple[int, asyncio.Future[CheckpointInfo]]:
        ticket = next(self._numbers)
        if savepoint is not None:
            self._savepoint_tickets.add(ticket)
        answer: asyncio.Future[CheckpointInfo] = asyncio.get_running_loop().create_future()
        self._tickets[ticket] = answer
        return ticket, answer

    def _answer(self, tickets: Sequence[int], answer: CheckpointInfo | CheckpointFailed) -> None:
        for ticket in tickets:
            future = self._tickets.pop(ticket, None)
            self._savepoint_tickets.discard(ticket)
            if future is None or future.done():
                continue
            if isinstance(answer, CheckpointInfo):
                future.set_result(answer)
            else:
                future.set_exception(answer)
                future.exception()  # retrieved: whoever asked may have gone

    # ------------------------------------------------------------------------------------------------------- reports
    def _handle(self, message: Report | decide.Event) -> None:
        match message:
            case Ready(subtask):
                self._ready.add(subtask)
                if len(self._ready) == len(self._plan.subtasks):
                    self._begin()
            case Stopped(subtask):
                self._stopped.add(subtask)
                asked = [query for query, owner in self._queries.items() if owner == subtask]
                self._refuse_queries(asked, self._unanswered(subtask))
            case Failed(_, error) if isinstance(self._coordinator, FinalCommit) and self._coordinator.done:
                log.warning("%s has finished, but not cleaned up: %s", self._plan.name, error)
                self._stopped.update(self._plan.subtasks)
            case Failed(_, error):
                self._failure = self._in_doubt(error)
            case ReadingStopped(subtask):
                self._reading_stopped.add(subtask)
                everywhere = len(self._reading_stopped) == len(self._plan.sources)
                if everywhere and self._stop_ticket is not None and not self._drain:
                    self.read_until = self._clock.monotonic()
                    resumable = self._handing_over
                    self._decide(decide.SourcesStopped(self._stop_ticket, self._stop_target, resumable=resumable))
            case SnapshotStored(subtask, checkpoint, state, figures, groups):
                self._note_part(subtask, checkpoint, state, figures, groups)
                self._decide(decide.Acknowledged(subtask, checkpoint, state))
            case SnapshotDeclined(subtask, checkpoint, reason):
                self._decide(decide.Declined(subtask, checkpoint, reason))
            case TransactionsCommitted(subtask, checkpoint):
                self._decide(decide.Committed(subtask, checkpoint))
            case EndReached(subtask):
                self._decide(decide.DataEnded(subtask))
            case _:
                self._decide(message)

    def _note_part(
        self,
        subtask: SubtaskId,
        checkpoint: int,
        state: SubtaskState,
        figures: SnapshotFigures,
        groups: tuple[GroupFigures, ...],
    ) -> None:
        started = self._started_at.get(checkpoint)
        if started is not None:
            part = SubtaskCheckpoint.of(str(subtask), self._clock.monotonic() - started, figures, state, groups)
            self._parts.setdefault(checkpoint, []).append(part)

    @property
    def restoring(self) -> Restoring | None:
        """None where nothing is, or nothing is any more."""
        if self._restored is None or self._running:
            return None
        total = self._restored.manifest.state_bytes
        return Restoring(min(self._storage.bytes_read, total), total)

    @property
    def under_way(self) -> list[CheckpointUnderWay]:
        now = self._clock.monotonic()
        return [
            CheckpointUnderWay(
                checkpoint, now - started, tuple(self._parts.get(checkpoint, ())), checkpoint in self._savepoints
            )
            for checkpoint, started in self._started_at.items()
        ]

    def _in_doubt(self, error: BaseException) -> BaseException:
        """What a failure is that came while a batch job committed."""
        if not (isinstance(self._coordinator, FinalCommit) and self._coordinator.committing):
            return error
        doubtful = CommitInterrupted(
            f"{self._plan.name}: failed while its sinks committed, so that some of the output is visible and some is "
            f"not: remove what is there before you run it again: {error}"
        )
        doubtful.__cause__ = error
        return doubtful

    def _begin(self) -> None:
        """Every subtask is restored, and every restored transaction committed."""
        restored, store = self._restored, self._store
        if restored is not None and store is not None and not restored.committed and self._committers:
            self._run_beside("receipt", store.write_receipt(restored))
        self._running = True
        self._on_running(True)
        for subscription, tap in self._taps.items():  # first, so that nothing is missed
            self._attach(subscription, tap)
        self._broadcast(Start())
        self._decide(decide.Started())

    def _decide(self, event: decide.Event) -> None:
        if self._coordinator is None:
            return
        for action in self._coordinator.on(event, self._clock.monotonic()):
            self._execute(action)

    # ------------------------------------------------------------------------------------------------------- actions
    def _execute(self, action: decide.Action) -> None:
        match action:
            case decide.Trigger(barrier, patience):
                self._started_at[barrier.checkpoint] = self._clock.monotonic()
                if barrier.savepoint:
                    self._savepoints.add(barrier.checkpoint)
                self._tell_triggered(barrier)
                if patience is not None:
                    overtakes_at = self._clock.time_ms() + round(patience * 1000)
                    barrier = msgspec.structs.replace(barrier, overtakes_at=overtakes_at)
                self._run_beside(f"checkpoint {barrier.checkpoint}", self._trigger(barrier))
            case decide.WriteManifest():
                self._run_beside(f"manifest {action.barrier.checkpoint}", self._write_manifest(action))
            case decide.Notify(checkpoint, commit, tickets):
                self._broadcast(CheckpointComplete(checkpoint, commit))
                self._last_info = info = self._infos.pop(checkpoint)
                self._on_checkpoint(info)
                self._answer(tickets, info)
            case decide.Commit(checkpoint):
                self._broadcast(CheckpointComplete(checkpoint, commit=True))
            case decide.Abort(checkpoint, reason, tickets):
                log.warning("%s: checkpoint %d was given up: %s", self._plan.name, checkpoint, reason)
                parts = tuple(self._parts.get(checkpoint, ()))
                self._on_given_up(CheckpointGivenUp(checkpoint, self._clock.time_ms(), reason, parts))
                self._broadcast(CheckpointAborted(checkpoint))
                self._run_beside(f"abort {checkpoint}", self._abort(checkpoint))
                self._answer(tickets, CheckpointFailed(f"checkpoint {checkpoint} was given up: {reason}"))
            case decide.WriteReceipt(checkpoint):
                self._run_beside(f"receipt {checkpoint}", self._write_receipt(checkpoint))
            case decide.Retire(in_flight):
                self._run_beside("retention", self._retire(in_flight))
            case decide.FailAttempt(reason):
                self._failure = self._failure or CheckpointFailed(reason)
            case decide.Resume(reason):
                self._resume(reason)
            case decide.Finish():
                if self._handing_over:
                    self._handed_over = True
                    self._on_running(False)
                self._broadcast(Finish())

    def _tell_triggered(self, barrier: Barrier) -> None:
        assert isinstance(self._coordinator, CheckpointCoordinator)
        cause = self._coordinator.cause(barrier.checkpoint)
        self._on_triggered(CheckpointTriggered(barrier.checkpoint, cause, barrier.savepoint))

    def _resume(self, reason: str) -> None:
        self._handing_over, self._stop_ticket, self.read_until = False, None, None
        self._reading_stopped.clear()
        self._to_sources(ResumeReading())
        self._on_resumed(reason)

    def _run_beside(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name=f"{self._plan.name}: {name}")
        self._beside.add(task)
        task.add_done_callback(self._beside_done)

    def _beside_done(self, task: asyncio.Task[None]) -> None:
        self._beside.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._receive(Failed(None, error))

    async def _trigger(self, barrier: Barrier) -> None:
        assert self._store is not None and self._coordinator is not None
        number = barrier.checkpoint
        async with self._triggering:
            if number not in self._coordinator.in_flight:
                return  # given up while it waited
            try:
                writer = await self._store.writer(number, savepoint=barrier.target)
            except (StorageFailed, InvalidConfig) as error:
                self._receive(decide.ManifestFailed(number, str(error)))
                return
            if number in self._coordinator.in_flight:
                self._storage.writers[number] = writer
                if barrier.savepoint:  # in full: a relative path means something else in another process
                    barrier = msgspec.structs.replace(barrier, target=writer.uri)
                self._to_sources(TriggerBarrier(barrier))
            else:
                await self._store.abort(number)  # given up before it was begun

    async def _write_manifest(self, action: decide.WriteManifest) -> None:
        assert self._store is not None
        number = action.barrier.checkpoint
        manifest = self._manifest(action)
        try:
            stored = await self._store.complete(manifest)
        except StreamactorsError as error:
            if not error.retryable:
                raise
            self._receive(decide.ManifestFailed(number, str(error)))
            return
        self._storage.writers.pop(number, None)
        duration = self._clock.monotonic() - self._started_at.pop(number, action.started)
        self._infos[number] = CheckpointInfo.of(
            number,
            stored.uri,
            duration,
            state_bytes=manifest.state_bytes,
            uploaded_bytes=sum(file.size for file in manifest.own_files),
            inflight_bytes=manifest.in_flight_bytes,
            savepoint=manifest.savepoint,
            time_ms=manifest.time_ms,
            subtasks=tuple(self._parts.pop(number, ())),
        )
        self._receive(decide.ManifestWritten(number))

    def _manifest(self, action: decide.WriteManifest) -> Manifest:
        assert self._store is not None
        states: list[SubtaskState] = [action.states[subtask] for subtask in self._plan.subtasks]
        return Manifest(
            flow=self._plan.name,
            run=self._store.run,
            attempt=self._store.attempt,
            checkpoint=action.barrier.checkpoint,
            time_ms=self._clock.time_ms(),
            operators=tuple(
                OperatorMeta(uid, node.kind, vertex.parallelism, vertex.max_parallelism, node.named)
                for uid, (vertex, node) in self._plan.node.items()
            ),
            subtasks=tuple(states),
            savepoint=action.barrier.savepoint,
            transactional=bool(self._committers),
            final=action.final,
            requires=requirements(states),
        )

    async def _abort(self, checkpoint: int) -> None:
        assert self._store is not None
        self._storage.writers.pop(checkpoint, None)
        self._started_at.pop(checkpoint, None)
        self._parts.pop(checkpoint, None)
        if self._deployed is not None:
            await self._deployed.settle(checkpoint)
        await self._store.abort(checkpoint)

    async def _write_receipt(self, checkpoint: int) -> None:
        assert self._store is not None
        await self._store.write_receipt(checkpoint)
        self._receive(decide.ReceiptWritten(checkpoint))

    async def _retire(self, in_flight: tuple[int, ...]) -> None:
        assert self._store is not None and self._spec.checkpoints is not None
        try:
            await self._store.retire(in_flight, retain=self._spec.checkpoints.retain)
        except StorageFailed as error:
            log.warning("%s: old checkpoints are left for the next time: %s", self._plan.name, error)

    # -------------------------------------------------------------------------------------------------------- sending
    def _to_sources(self, message: Control) -> None:
        self._send(self._plan.sources, message)

    def _broadcast(self, message: Control) -> None:
        self._send(self._plan.subtasks, message)

    def _send(self, subtasks: Sequence[SubtaskId], message: Control) -> None:
        assert self._deployed is not None
        for subtask in subtasks:
            self._deployed.send(subtask, message)


def _has_ended(subtask: SubtaskId) -> StateAccessError:
    return StateAccessError(f"subtask {subtask} has ended with its data, and its state with it")


def _committers(plan: PhysicalPlan) -> list[SubtaskId]:
    """The subtasks that hold a transactional sink."""
    return [
        subtask
        for vertex in plan.vertices
        if any(isinstance(node.spec, SinkSpec) and node.spec.sink.transactional for node in vertex.nodes)
        for subtask in vertex.subtasks()
    ]
