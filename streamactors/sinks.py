"""The contract of sinks, two-phase commit included.

Invariant that a transactional writer keeps: what it wrote before `prepare(n)` becomes visible outside exactly when
checkpoint n, or a later one, has completed, and then exactly once, also across crashes: `prepare` returns everything
that `commit` would need in another process, as plain msgpack data, for all transactions not yet known to be committed.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from streamactors.diagnosis import Finding, PlannedStep
from streamactors.metrics import MetricGroup

T_contra = TypeVar("T_contra", contravariant=True)

Pending = Any
"""A prepared transaction as plain msgpack data, opaque to the runtime."""


class Sink(Protocol[T_contra]):
    """What `Stream.sink` takes, for type checkers; a real one derives from `WriterSink`."""

    def _takes(self, value: T_contra) -> None: ...


def alone() -> None:
    """The check of a process whose place no other one takes."""


@dataclass(frozen=True, slots=True)
class SinkContext:
    """What a writer knows about where it runs."""

    flow: str
    uid: str
    subtask: int
    parallelism: int
    widest_parallelism: int
    """The largest parallelism that this sink was ever started with on this storage: every id up to it may be open."""
    checkpointing: bool
    exactly_once: bool
    """False under `mode="at-least-once"`."""
    max_concurrent: int
    tolerable_failures: int
    checkpoint_timeout: float
    """Seconds a checkpoint may take: an external transaction must live longer than this and a restart."""
    run: int
    attempt: int
    log: logging.LoggerAdapter[logging.Logger]
    metrics: MetricGroup
    resources: Mapping[str, Any] = field(default_factory=dict)
    check_alive: Callable[[], None] = alone
    """Raises ConnectionLost where another process may have taken this one's place, such as after it has stood still.
    For writers to call right before whatever fences others off, as beginning a transaction does."""


class SinkWriter(ABC, Generic[T_contra]):
    """Writes for one subtask during one attempt. Calls never overlap."""

    @abstractmethod
    async def open(self, restored: Sequence[Pending], *, committed: bool) -> None:
        """Start. `restored` are the pending transactions of the restored checkpoint dealt to this subtask: those that
        the old subtasks i with i % parallelism == subtask had returned, since it is this subtask that fences what they
        left open. If `committed`, a durable receipt says that they all were committed: send nothing. Otherwise commit
        them now, before returning, or raise TransactionLost. Also fence whatever an earlier process may have left
        open."""

    @abstractmethod
    async def write(self, values: Sequence[T_contra], timestamps: Sequence[int | None] | None) -> None:
        """Take records, in order. May return before they are durable outside. `timestamps` are event times in
        milliseconds since the epoch, None where there is none."""

    @abstractmethod
    async def prepare(self, checkpoint: int) -> Sequence[Pending]:
        """Phase one, at the barrier: everything written is durable outside (flushed). Returns ALL transactions that
        are prepared and not yet known to be committed, this one included; begins the next."""

    async def commit(self, checkpoint: int) -> None:
        """Phase two: checkpoint `checkpoint` is complete; commit every transaction prepared for it or an earlier
        one (aborted ones included: their records precede this checkpoint). Idempotent."""
        return None

    @abstractmethod
    async def finish(self) -> None:
        """End of data without checkpoints: flush, and make everything written visible."""

    @abstractmethod
    async def close(self) -> None:
        """Release everything, within a bounded time; called exactly once, also after a failed `open` and after
        cancellation. Never touches a transaction that `prepare` has returned; drops the one that is still open."""


class WriterSink(ABC, Generic[T_contra]):
    """Base class of every sink. An instance is shared by all subtasks and attempts: it holds settings only."""

    def _takes(self, value: T_contra) -> None:
        raise TypeError("for type checkers only")

    @abstractmethod
    def writer(self, ctx: SinkContext) -> SinkWriter[T_contra]: ...

    @property
    @abstractmethod
    def transactional(self) -> bool:
        """Whether output becomes visible by `commit` (then falling back over a damaged checkpoint could double it)."""

    def validate(self, *, checkpointing: bool) -> None:
        """Raise InvalidConfig for settings that can't work; called when the job is planned, before anything opens."""
        return None

    async def diagnose(self, step: PlannedStep) -> Sequence[Finding]:
        """What `streamactors doctor` should tell of the systems that this needs. Changes nothing there; raises
        StreamactorsError for what would keep it from being opened."""
        return ()

    def describe(self) -> str:
        """A few words for `explain()`; never a secret."""
        return type(self).__name__
