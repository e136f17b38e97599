"""What the control API says and takes: the documents of version 1, for the server and for its clients.

Fields may be added; readers ignore what they don't know. What is sent *to* a job is refused if it holds anything else.
"""

from typing import Literal

import msgspec

Status = Literal["starting", "running", "restarting", "finished", "failed", "cancelled"]


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A complete one; `time_ms`: when that was, in milliseconds since the epoch."""

    id: int
    kind: Literal["checkpoint", "savepoint"]
    uri: str
    time_ms: int
    seconds: float
    state_bytes: int
    uploaded_bytes: int
    inflight_bytes: int


class Operator(msgspec.Struct, frozen=True, kw_only=True):
    """One operator over all its subtasks; counts are of the running attempt."""

    uid: str
    name: str
    kind: str
    parallelism: int
    max_parallelism: int
    records_in: int
    records_out: int


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One operator in one subtask."""

    records_in: int
    records_out: int


class Subtask(msgspec.Struct, frozen=True, kw_only=True):
    """One actor: a chain of operators (`nodes`, by uid). `queued` of `capacity` records wait in its mailbox; `blocked`
    are the input channels that an aligned barrier holds back; `unsent` records found no room further on."""

    id: str
    queued: int
    capacity: int
    blocked: list[int]
    unsent: int
    nodes: dict[str, Node]


class JobSummary(msgspec.Struct, frozen=True, kw_only=True):
    """`stopping`: it has been asked to stop, and reads no further. `restarts`: attempts after the first.
    `last_failure` ended an earlier attempt."""

    name: str
    status: Status
    stopping: bool
    pid: int
    started_ms: int
    uptime_seconds: float
    restarts: int
    storage: str | None
    target: str | None
    last_checkpoint: Checkpoint | None
    last_failure: str | None


class JobStatus(JobSummary, frozen=True, kw_only=True):
    """With all that it counts; `operators` in the order of the flow."""

    operators: list[Operator]
    subtasks: list[Subtask]


class Jobs(msgspec.Struct, frozen=True, kw_only=True):
    jobs: list[JobSummary]


class Checkpoints(msgspec.Struct, frozen=True, kw_only=True):
    """The completed ones of this process, the latest first; the oldest are forgotten."""

    checkpoints: list[Checkpoint]


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How a job has ended that was asked to. `checkpoint`: where it can go on from."""

    name: str
    status: Status
    checkpoint: Checkpoint | None = None


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    code: str
    message: str


class Error(msgspec.Struct, frozen=True, kw_only=True):
    error: Problem


# ------------------------------------------------------------------------------------------------------------ requests
class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Takes no options."""


class SavepointRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    uri: str


class StopRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    savepoint: str | None = None
    drain: bool = False
