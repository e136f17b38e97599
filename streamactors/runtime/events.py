"""What happens to a job, told to those who listen as it happens: for people, nothing is decided by it.

Invariants: events are told in the order in which things happen, on the event loop; a checkpoint that was triggered is
completed or given up, or its attempt fails, or the job ends; an attempt that has begun runs, fails, hands over
to the next one (of a rescale), or ends with the job.
"""

from collections.abc import Callable, Mapping

import msgspec

from streamactors.checkpoint.coordinator import Cause
from streamactors.runtime.info import CheckpointGivenUp, CheckpointInfo, RescaleInfo


class Moment(msgspec.Struct, frozen=True):
    """The same one, in milliseconds since the epoch and in monotonic seconds."""

    time_ms: int
    monotonic: float


class AttemptBegun(msgspec.Struct, frozen=True):
    """`checkpoint`: what it restores; None: it begins afresh."""

    attempt: int
    checkpoint: int | None = None
    uri: str | None = None


class AttemptRunning(msgspec.Struct, frozen=True):
    """Every subtask is restored, and records move."""


class AttemptFailed(msgspec.Struct, frozen=True):
    """Nothing of it is left."""

    attempt: int
    error: BaseException


class RestartScheduled(msgspec.Struct, frozen=True):
    """`delay`: seconds until the next attempt."""

    delay: float


class RescaleBegun(msgspec.Struct, frozen=True):
    """The sources are told to stop reading; or an attempt by a new parallelism has failed at once, and the job goes
    back. `before` and `after`: the parallelism of every step, by uid. It ends as `Rescaled` or `RescaleAbandoned`, or
    with the job."""

    before: Mapping[str, int]
    after: Mapping[str, int]


class Rescaled(msgspec.Struct, frozen=True):
    info: RescaleInfo


class RescaleAbandoned(msgspec.Struct, frozen=True):
    """The job goes on as it was."""

    before: Mapping[str, int]
    after: Mapping[str, int]
    error: BaseException


class CheckpointTriggered(msgspec.Struct, frozen=True):
    checkpoint: int
    cause: Cause
    savepoint: bool = False


class CheckpointCompleted(msgspec.Struct, frozen=True):
    info: CheckpointInfo


class CheckpointAbandoned(msgspec.Struct, frozen=True):
    given_up: CheckpointGivenUp


class JobEnded(msgspec.Struct, frozen=True):
    status: str


JobEvent = (
    AttemptBegun
    | AttemptRunning
    | AttemptFailed
    | RestartScheduled
    | RescaleBegun
    | Rescaled
    | RescaleAbandoned
    | CheckpointTriggered
    | CheckpointCompleted
    | CheckpointAbandoned
    | JobEnded
)
Listener = Callable[[JobEvent, Moment], None]
"""Called on the event loop: it must not wait."""
