"""What a job tells about its checkpoints."""

import datetime as dt
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A complete checkpoint, or savepoint. `state_bytes`: all that it refers to; `uploaded_bytes`: what was written for
    it; `inflight_bytes`: the records that its barriers have overtaken; `time_ms`: when it was complete, in milliseconds
    since the epoch."""

    id: int
    uri: str
    duration: dt.timedelta
    state_bytes: int
    uploaded_bytes: int
    inflight_bytes: int
    savepoint: bool = False
    time_ms: int = 0

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
    ) -> "CheckpointInfo":
        duration = dt.timedelta(seconds=seconds)
        return cls(id, uri, duration, state_bytes, uploaded_bytes, inflight_bytes, savepoint, time_ms)
