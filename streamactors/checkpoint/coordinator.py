"""When to checkpoint, when a checkpoint is complete, and what follows: pure decisions (Flink: CheckpointCoordinator).

`on(event, now)` takes an event and the time in seconds, and returns what to do, in order; `runtime/job.py` does it.

Invariants:
1. `WriteManifest(n)` only after every subtask has acknowledged n; `Notify(n)` only after n's manifest is written; so no
   sink ever commits for a checkpoint that could not be restored.
2. `WriteReceipt(n)` only after every committing subtask has committed n.
3. Manifests are written one at a time; when a checkpoint n completes, everything in flight before n is given up, so
   that checkpoints complete in increasing order of n; whoever asked for those is given n. A savepoint gives up nothing,
   may complete before an earlier checkpoint, and no checkpoint starts while one is in flight. Where sinks commit, a
   checkpoint follows each savepoint before the next one: else transactions that only savepoints list would pile up.
4. `Finish` only after the final checkpoint, which starts when every subtask has ended (or every source has stopped),
   is complete, and all its transactions are committed and receipted.
"""

from collections.abc import Collection, Hashable, Mapping
from typing import Any, Final, Generic, Literal, TypeVar

import msgspec

from streamactors.elements import Barrier

S = TypeVar("S", bound=Hashable)

Cause = Literal["interval", "request", "follow-up", "rescale", "final"]
"""Why a checkpoint was triggered. `follow-up`: of a savepoint; `rescale`: the next attempt goes on from it."""
NOBODY: Final = 0
"""The ticket of a request that nobody waits for."""


class Settings(msgspec.Struct, frozen=True):
    """Durations in seconds. `interval` None: only on request."""

    interval: float | None
    timeout: float
    min_pause: float = 0.0
    max_concurrent: int = 1
    tolerable_failures: int = 0
    overtaking: bool = False
    """Barriers overtake what is queued."""
    alignment_timeout: float | None = None
    """Barriers begin to overtake so long after the trigger; None: never."""


# ------------------------------------------------------------------------------------------------------------- events
class Started(msgspec.Struct, frozen=True):
    """Every subtask runs."""


class Tick(msgspec.Struct, frozen=True):
    """Time has passed."""


class Requested(msgspec.Struct, frozen=True):
    """Somebody wants a checkpoint now; a savepoint if `target` is given. `ticket` names the request in the answers."""

    ticket: int
    target: str | None = None


class Acknowledged(msgspec.Struct, frozen=True):
    subtask: Any
    checkpoint: int
    state: Any


class Declined(msgspec.Struct, frozen=True):
    subtask: Any
    checkpoint: int
    reason: str


class ManifestWritten(msgspec.Struct, frozen=True):
    checkpoint: int


class ManifestFailed(msgspec.Struct, frozen=True):
    checkpoint: int
    reason: str


class Committed(msgspec.Struct, frozen=True):
    subtask: Any
    checkpoint: int


class ReceiptWritten(msgspec.Struct, frozen=True):
    checkpoint: int


class DataEnded(msgspec.Struct, frozen=True):
    """A subtask has seen the end of data on all its inputs."""

    subtask: Any


class SourcesStopped(msgspec.Struct, frozen=True):
    """`stop`: no source reads any further; take the last checkpoint (a savepoint if `target`) and finish.
    `drain`: only once every subtask has seen the end of data, which the sources have sent. `resumable`: where that
    checkpoint fails, nothing else does, and the sources read on."""

    ticket: int
    target: str | None = None
    drain: bool = False
    resumable: bool = False


Event = (
    Started
    | Tick
    | Requested
    | Acknowledged
    | Declined
    | ManifestWritten
    | ManifestFailed
    | Committed
    | ReceiptWritten
    | DataEnded
    | SourcesStopped
)


_FOLLOW_UP: Final = Requested(NOBODY)
"""After a savepoint, before the next one: else transactions that only savepoints list would pile up."""


# ------------------------------------------------------------------------------------------------------------ actions
class Trigger(msgspec.Struct, frozen=True):
    """Put the barrier into every source. `patience`: how long it may wait for its alignment; None: for ever."""

    barrier: Barrier
    patience: float | None = None


class Abort(msgspec.Struct, frozen=True):
    """Tell every subtask, drop the checkpoint's files, answer the `tickets` with the reason."""

    checkpoint: int
    reason: str
    tickets: tuple[int, ...] = ()


class WriteManifest(msgspec.Struct, frozen=True):
    """`states` by subtask. `final`: nothing is to be read after it."""

    barrier: Barrier
    states: Mapping[Any, Any]
    final: bool
    started: float


class Notify(msgspec.Struct, frozen=True):
    """Tell every subtask that the checkpoint is complete; answer the tickets. `commit`: sinks commit too."""

    checkpoint: int
    commit: bool
    tickets: tuple[int, ...] = ()


class Commit(msgspec.Struct, frozen=True):
    """Without a checkpoint: every sink commits what it has prepared under this number."""

    checkpoint: int


class WriteReceipt(msgspec.Struct, frozen=True):
    checkpoint: int


class Retire(msgspec.Struct, frozen=True):
    """Older checkpoints may go; those in `in_flight` may not."""

    in_flight: tuple[int, ...]


class FailAttempt(msgspec.Struct, frozen=True):
    reason: str


class Resume(msgspec.Struct, frozen=True):
    """The last checkpoint has failed, and is not to be the last one: the sources read on."""

    reason: str


class Finish(msgspec.Struct, frozen=True):
    """All is durable and visible: end every subtask."""


Action = Trigger | Abort | WriteManifest | Notify | Commit | WriteReceipt | Retire | FailAttempt | Resume | Finish


class _Pending(Generic[S]):
    """A checkpoint in flight."""

    def __init__(self, barrier: Barrier, started: float, tickets: list[int], cause: Cause, final: bool) -> None:
        self.barrier = barrier
        self.started = started
        self.tickets = tickets
        self.cause = cause
        self.final = final
        self.states: dict[S, Any] = {}
        self.writing = False


class CheckpointCoordinator(Generic[S]):
    """The decisions of one attempt. `first_id`: above every checkpoint id ever used."""

    def __init__(self, settings: Settings, subtasks: Collection[S], committers: Collection[S], first_id: int) -> None:
        self._settings = settings
        self._subtasks = frozenset(subtasks)
        self._committers = frozenset(committers)
        self._next_id = first_id
        self._running = False
        self._last_trigger = float("-inf")
        self._last_end = float("-inf")
        self._pending: dict[int, _Pending[S]] = {}
        self._requests: list[Requested] = []
        self._stop: SourcesStopped | None = None
        self._ended: set[S] = set()
        self._failures = 0
        self._committing: dict[int, set[S]] = {}
        self._final: int | None = None
        self._final_complete = False

    # ---------------------------------------------------------------------------------------------------- questions
    def deadline(self) -> float | None:
        """When the next `Tick` is wanted, in seconds."""
        times = [
            pending.started + self._settings.timeout for pending in self._pending.values() if self._awaited(pending)
        ]
        if self._may_trigger() and (due := self._due()) is not None:
            times.append(due)
        return min(times, default=None)

    @property
    def in_flight(self) -> tuple[int, ...]:
        return tuple(self._pending)

    def cause(self, checkpoint: int) -> Cause:
        return self._pending[checkpoint].cause

    # ------------------------------------------------------------------------------------------------------- events
    def on(self, event: Event, now: float) -> list[Action]:
        actions = self._handle(event, now)
        actions += self._time_out(now)
        actions += self._trigger_if_due(now)
        return actions

    def _handle(self, event: Event, now: float) -> list[Action]:
        match event:
            case Started():
                self._running = True
                self._last_trigger = now
            case Requested():
                self._requests.append(event)
            case SourcesStopped():
                self._stop = event
            case DataEnded(subtask):
                self._ended.add(subtask)
            case Acknowledged(subtask, checkpoint, state):
                return self._acknowledged(subtask, checkpoint, state)
            case Declined(subtask, checkpoint, reason):
                return self._failed(checkpoint, f"subtask {subtask} declined: {reason}", now)
            case ManifestWritten(checkpoint):
                return self._completed(checkpoint, now)
            case ManifestFailed(checkpoint, reason):
                return self._failed(checkpoint, f"its manifest could not be written: {reason}", now)
            case Committed(subtask, checkpoint):
                return self._committed(subtask, checkpoint)
            case ReceiptWritten(checkpoint):
                return self._finish_if_final(checkpoint)
            case Tick():
                pass
        return []

    # ---------------------------------------------------------------------------------------------------- triggering
    def _may_trigger(self) -> bool:
        if not self._running or self._final is not None:
            return False
        if self._wants_final() and self._pending:
            return False  # the final checkpoint is alone: what is in flight is let finish first
        if any(pending.barrier.savepoint for pending in self._pending.values()):
            return False
        return len(self._pending) < self._settings.max_concurrent

    def _due(self) -> float | None:
        """When the next checkpoint may start; None: not without a request."""
        if self._wants_final() or self._requests:
            return float("-inf")
        if self._settings.interval is None:
            return None
        return max(self._last_trigger + self._settings.interval, self._last_end + self._settings.min_pause)

    def _wants_final(self) -> bool:
        stopped = self._stop is not None and not self._stop.drain
        return stopped or self._ended >= self._subtasks

    def _trigger_if_due(self, now: float) -> list[Action]:
        due = self._due()
        if not self._may_trigger() or due is None or now < due:
            return []
        return [self._trigger(now)]

    def _trigger(self, now: float) -> Action:
        final = self._wants_final() and not any(self._is_ahead_of_final(request) for request in self._requests)
        tickets = []
        target = None
        cause: Cause = "final" if final else "interval"
        if final and self._stop is not None:
            tickets.append(self._stop.ticket)
            target = self._stop.target
            cause = "rescale" if self._stop.resumable else "final"
        elif self._requests:
            target = self._requests[0].target
            # One checkpoint serves all plain requests that wait; a savepoint serves its own.
            served = self._requests[:1] if target else [request for request in self._requests if not request.target]
            tickets += [request.ticket for request in served if request.ticket != NOBODY]
            self._requests = [request for request in self._requests if request not in served]
            if not final:
                cause = "request" if tickets else "follow-up"
        # Savepoints hold nothing in flight but the inputs of calls; nor does the final checkpoint, after which nothing
        # would process it.
        may_overtake = target is None and not final
        barrier = Barrier(self._next_id, target, overtakes=may_overtake and self._settings.overtaking)
        self._next_id += 1
        self._last_trigger = now
        self._pending[barrier.checkpoint] = _Pending(barrier, now, tickets, cause, final)
        if final:
            self._final = barrier.checkpoint
        return Trigger(barrier, self._settings.alignment_timeout if may_overtake else None)

    def _is_ahead_of_final(self, request: Requested) -> bool:
        """A savepoint that was asked for before the end is one of its own; and where the final checkpoint may fail,
        again and again, one that commits comes in between."""
        resumable = self._stop is not None and self._stop.resumable
        return request.target is not None or (resumable and request == _FOLLOW_UP)

    # ---------------------------------------------------------------------------------------------------- completion
    def _acknowledged(self, subtask: S, checkpoint: int, state: Any) -> list[Action]:
        pending = self._pending.get(checkpoint)
        if pending is None or pending.writing:
            return []  # late: it was aborted, or this is a repetition
        pending.states[subtask] = state
        return self._write_next_manifest()

    def _write_next_manifest(self) -> list[Action]:
        if any(pending.writing for pending in self._pending.values()):
            return []
        for pending in self._pending.values():
            if pending.states.keys() >= self._subtasks:
                pending.writing = True
                return [WriteManifest(pending.barrier, dict(pending.states), pending.final, pending.started)]
        return []

    def _completed(self, checkpoint: int, now: float) -> list[Action]:
        pending = self._pending.pop(checkpoint)
        self._last_end = now
        actions: list[Action] = []
        tickets = pending.tickets
        if not pending.barrier.savepoint:
            self._failures = 0  # after a savepoint sinks hold as much as before
            subsumed = [number for number in self._pending if number < checkpoint]
            tickets = [ticket for number in subsumed for ticket in self._pending[number].tickets] + tickets
            actions += [self._subsume(number, checkpoint) for number in subsumed]
        # A savepoint that the job lives on after does not commit: the next checkpoint does (Flink: FLIP-203).
        commit = pending.final or not pending.barrier.savepoint
        actions.append(Notify(checkpoint, commit, tuple(tickets)))
        actions.append(Retire(self.in_flight))
        if pending.final:
            self._final_complete = True
        if not commit and self._committers:
            self._requests.insert(0, _FOLLOW_UP)
        if commit and self._committers:
            self._committing[checkpoint] = set(self._committers)
        else:
            actions += self._finish_if_final(checkpoint)
        return actions + self._write_next_manifest()

    def _subsume(self, checkpoint: int, later: int) -> Abort:
        """Nobody is told that it failed: the later one holds all that it would have."""
        self._pending[checkpoint].tickets.clear()
        return self._give_up(checkpoint, f"subsumed by checkpoint {later}, which completed first")

    def _give_up(self, checkpoint: int, reason: str) -> Abort:
        pending = self._pending.pop(checkpoint)
        if self._final == checkpoint:
            self._final = None
        return Abort(checkpoint, reason, tuple(pending.tickets))

    def _committed(self, subtask: S, checkpoint: int) -> list[Action]:
        """A commit for n covers every earlier one."""
        done = []
        for number, missing in self._committing.items():
            if number <= checkpoint:
                missing.discard(subtask)
                if not missing:
                    done.append(number)
        for number in done:
            del self._committing[number]
        return [WriteReceipt(number) for number in done]

    def _finish_if_final(self, checkpoint: int) -> list[Action]:
        return [Finish()] if self._final_complete and checkpoint == self._final else []

    # ------------------------------------------------------------------------------------------------------- failure
    def _awaited(self, pending: _Pending[S]) -> bool:
        """Whether some subtask has yet to acknowledge it; else it may be waiting for another one's manifest."""
        return pending.states.keys() < self._subtasks

    def _time_out(self, now: float) -> list[Action]:
        late = [
            number
            for number, pending in self._pending.items()
            if self._awaited(pending) and now >= pending.started + self._settings.timeout
        ]
        actions: list[Action] = []
        for number in late:
            pending = self._pending[number]
            missing = ", ".join(sorted(str(subtask) for subtask in self._subtasks - pending.states.keys())[:5])
            actions += self._failed(number, f"not acknowledged within {self._settings.timeout:g} s by {missing}", now)
        return actions

    def _failed(self, checkpoint: int, reason: str, now: float) -> list[Action]:
        if checkpoint not in self._pending:
            return []
        stopping = checkpoint == self._final and self._stop is not None
        savepoint = self._pending[checkpoint].barrier.savepoint
        actions: list[Action] = [self._give_up(checkpoint, reason)]
        if stopping and self._stop is not None and self._stop.resumable:
            self._stop, stopping, savepoint = None, False, True
            actions.append(Resume(f"checkpoint {checkpoint} failed: {reason}"))
        if savepoint and not stopping:
            # Whoever asked for it is told; the job has lost nothing. Its sinks have prepared, though.
            if self._committers:
                self._requests.insert(0, _FOLLOW_UP)
            return actions + self._write_next_manifest()
        self._last_end = now
        self._failures += 1
        if self._failures > self._settings.tolerable_failures:
            actions.append(FailAttempt(f"checkpoint {checkpoint} failed: {reason}"))
            self._running = False
        elif stopping:
            actions.append(FailAttempt(f"the last checkpoint ({checkpoint}) failed: {reason}"))
            self._running = False
        return actions + self._write_next_manifest()
