"""What a job tells about its checkpoints."""

import datetime as dt
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A complete checkpoint. `state_bytes`: all that it refers to; `uploaded_bytes`: what was written for it;
    `inflight_bytes`: the records that its barriers have overtaken."""

    id: int
    uri: str
    duration: dt.timedelta
    state_bytes: int
    uploaded_bytes: int
    inflight_bytes: int

    @classmethod
    def of(
        cls, id: int, uri: str, seconds: float, *, state_bytes: int, uploaded_bytes: int, inflight_bytes: int
    ) -> "CheckpointInfo":
        return cls(id, uri, dt.timedelta(seconds=seconds), state_bytes, uploaded_bytes, inflight_bytes)
