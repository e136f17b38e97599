"""What a job tells about its checkpoints and its failures."""

import datetime as dt
from dataclasses import dataclass

from streamactors.runtime.figures import SubtaskCheckpoint


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A complete checkpoint, or savepoint. `state_bytes`: all that it refers to; `uploaded_bytes`: what was written for
    it; `inflight_bytes`: the records that its barriers have overtaken; `time_ms`: when it was complete, in milliseconds
    since the epoch; `subtasks`: the part that each one had in it."""

    id: int
    uri: str
    duration: dt.timedelta
    state_bytes: int
    uploaded_bytes: int
    inflight_bytes: int
    savepoint: bool = False
    time_ms: int = 0
    subtasks: tuple[SubtaskCheckpoint, ...] = ()

    @classmethod
    def of(
        cls,
        id: int,
        uri: str,
        seconds: float,
        *,
        state_bytes: int,
        uploaded_bytes: int,
        inflight_bytes: int,
        savepoint: bool = False,
        time_ms: int = 0,
        subtasks: tuple[SubtaskCheckpoint, ...] = (),
    ) -> "CheckpointInfo":
        duration = dt.timedelta(seconds=seconds)
        return cls(id, uri, duration, state_bytes, uploaded_bytes, inflight_bytes, savepoint, time_ms, subtasks)


@dataclass(frozen=True, slots=True)
class CheckpointUnderWay:
    """`seconds` since it was triggered; `acknowledged`: the subtasks that have."""

    id: int
    seconds: float
    acknowledged: tuple[SubtaskCheckpoint, ...]


@dataclass(frozen=True, slots=True)
class Restoring:
    """What has been read of a checkpoint that is being restored, in bytes. Some may be read twice, or not at all."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class CheckpointGivenUp:
    """`time_ms`: when, in milliseconds since the epoch."""

    id: int
    time_ms: int
    reason: str


@dataclass(frozen=True, slots=True)
class ChannelFill:
    """What waits on one input channel of a subtask: `queued` records of `capacity`, in `elements` with the barriers
    among them, by checkpoint id."""

    sender: str
    tag: str | None
    side: int
    queued: int
    capacity: int
    bytes: int
    elements: int
    blocked: bool
    barriers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Incident:
    """What ended an attempt, and when, in milliseconds since the epoch. `attempt` counts from 1."""

    time_ms: int
    attempt: int
    error: BaseException
