"""What a job tells about its checkpoints and its failures."""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from streamactors.runtime.figures import SubtaskCheckpoint

Status = Literal["starting", "running", "restarting", "finished", "failed", "cancelled"]
"""Of a job."""


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

    def without_groups(self) -> "CheckpointInfo":
        """For the history: what is only told of the last one is left out."""
        return replace(self, subtasks=tuple(part.without_groups() for part in self.subtasks))


@dataclass(frozen=True, slots=True)
class CheckpointUnderWay:
    """`seconds` since it was triggered; `acknowledged`: the subtasks that have."""

    id: int
    seconds: float
    acknowledged: tuple[SubtaskCheckpoint, ...]
    savepoint: bool = False

    @property
    def quiet_seconds(self) -> float:
        """Since the last acknowledgement; since it was triggered if there is none."""
        return self.seconds - max((part.seconds for part in self.acknowledged), default=0.0)


@dataclass(frozen=True, slots=True)
class Restoring:
    """What has been read of a checkpoint that is being restored, in bytes. Some may be read twice, or not at all."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class CheckpointGivenUp:
    """`time_ms`: when, in milliseconds since the epoch; `subtasks`: the parts of those that had acknowledged."""

    id: int
    time_ms: int
    reason: str
    subtasks: tuple[SubtaskCheckpoint, ...] = ()


@dataclass(frozen=True, slots=True)
class RescaleInfo:
    """`time_ms`: when the job ran on, in milliseconds since the epoch; `pause`: from when the last source stopped
    reading until the first could read again; `before` and `after`: the parallelism of every step, by uid."""

    time_ms: int
    pause: dt.timedelta
    before: Mapping[str, int]
    after: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ChannelFill:
    """What waits on one input channel of a subtask: `queued` records of `capacity`, in `elements` with the barriers
    among them, by checkpoint id; `ahead`: how many of the records are ahead of each barrier."""

    sender: str
    tag: str | None
    side: int
    queued: int
    capacity: int
    bytes: int
    elements: int
    blocked: bool
    barriers: tuple[int, ...]
    ahead: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Incident:
    """What ended an attempt, and when, in milliseconds since the epoch. `attempt` counts from 1."""

    time_ms: int
    attempt: int
    error: BaseException
