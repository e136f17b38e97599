"""What the control API says and takes: the documents of version 1, for the server and for its clients.

Fields may be added; readers ignore what they don't know. What is sent *to* a job is refused if it holds anything else.
"""

from typing import Annotated, Literal

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


class SubtaskCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One subtask's part in a checkpoint. `seconds`: from the trigger to its acknowledgement. `alignment_seconds`: from
    the first barrier to the last; `synchronous_seconds`: nothing else ran; `asynchronous_seconds`: until all was
    durable. `operators`: bytes of state by uid, where there are any."""

    subtask: str
    seconds: float
    alignment_seconds: float
    synchronous_seconds: float
    asynchronous_seconds: float
    state_bytes: int
    inflight_bytes: int
    operators: dict[str, int]


class CheckpointDetail(Checkpoint, frozen=True, kw_only=True):
    subtasks: list[SubtaskCheckpoint]


class CheckpointUnderWay(msgspec.Struct, frozen=True, kw_only=True):
    """`seconds` since it was triggered. `waiting_for`: the subtasks that have not acknowledged, the first twenty."""

    id: int
    seconds: float
    acknowledged: int
    waiting_for: list[str]


class CheckpointGivenUp(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    time_ms: int
    reason: str


class Operator(msgspec.Struct, frozen=True, kw_only=True):
    """One operator over all its subtasks; counts are of the running attempt. `watermark_ms`: the least of its subtasks,
    None before the first and at the end of the data; `skew_ms`: how far the furthest is ahead of that."""

    uid: str
    name: str
    kind: str
    parallelism: int
    max_parallelism: int
    records_in: int
    records_out: int
    watermark_ms: int | None = None
    skew_ms: int = 0
    entries: int = 0
    """Keys in its states."""


class Histogram(msgspec.Struct, frozen=True, kw_only=True):
    """`counts`: how many observations were in each bucket; the last one is above all bounds."""

    bounds: list[float]
    counts: list[int]
    sum: float


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One operator in one subtask. `idle`: none of its inputs gives it time. `counters`, `gauges`, `histograms`: what
    the operator itself measures; None for a gauge that can't be read."""

    records_in: int
    records_out: int
    undelivered: int = 0
    watermark_ms: int | None = None
    idle: bool = False
    entries: dict[str, int] = msgspec.field(default_factory=dict)
    counters: dict[str, float | None] = msgspec.field(default_factory=dict)
    gauges: dict[str, float | None] = msgspec.field(default_factory=dict)
    histograms: dict[str, Histogram] = msgspec.field(default_factory=dict)


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """How a subtask has spent its time lately, as shares of one: busy, idle (it waited for input), back-pressured (it
    waited for room). `seconds`: over how long this was measured."""

    busy: float
    idle: float
    backpressured: float
    seconds: float


class Subtask(msgspec.Struct, frozen=True, kw_only=True):
    """One actor: a chain of operators (`nodes`, by uid). `queued` of `capacity` records wait in its mailbox; `blocked`
    are the input channels that an aligned barrier holds back; `unsent` records found no room further on. The seconds
    are since the attempt began."""

    id: str
    queued: int
    capacity: int
    blocked: list[int]
    unsent: int
    nodes: dict[str, Node]
    vertex: str = ""
    index: int = 0
    busy_seconds: float = 0.0
    idle_seconds: float = 0.0
    backpressured_seconds: float = 0.0


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
    """Those of this process, the latest first; the oldest are forgotten. `completed` and `failed` count all."""

    checkpoints: list[Checkpoint]
    under_way: list[CheckpointUnderWay] = []
    given_up: list[CheckpointGivenUp] = []
    completed: int = 0
    failed: int = 0


class GraphNode(msgspec.Struct, frozen=True, kw_only=True):
    """One step. `vertex`: the chain that it runs in, called by the uid of its first step."""

    uid: str
    name: str
    kind: str
    vertex: str
    parallelism: int
    max_parallelism: int


class GraphEdge(msgspec.Struct, frozen=True, kw_only=True):
    """From step to step. `partitioning`: how records find a subtask, None where the two share an actor. `tag`: the side
    output; `side`: the input that it enters, 1 for the right one."""

    upstream: str
    downstream: str
    partitioning: str | None = None
    tag: str | None = None
    side: int = 0
    channels: int = 0


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    """Empty before the first attempt."""

    nodes: list[GraphNode]
    edges: list[GraphEdge]


class Subtasks(msgspec.Struct, frozen=True, kw_only=True):
    subtasks: list[Subtask]


class Channel(msgspec.Struct, frozen=True, kw_only=True):
    """One input channel. `queued` records of `capacity` and `bytes` wait; `barriers` (checkpoint ids) are among them;
    `blocked`: an aligned barrier holds it back."""

    sender: str
    tag: str | None
    side: int
    queued: int
    capacity: int
    bytes: int
    elements: int
    blocked: bool
    barriers: list[int]


class SubtaskDetail(msgspec.Struct, frozen=True, kw_only=True):
    subtask: Subtask
    load: Load
    channels: list[Channel]


class SubtaskLoad(Load, frozen=True, kw_only=True):
    subtask: str


class VertexLoad(msgspec.Struct, frozen=True, kw_only=True):
    """Of a chain: the greatest shares of any of its subtasks, and each."""

    vertex: str
    busy: float
    backpressured: float
    subtasks: list[SubtaskLoad]


class BackPressure(msgspec.Struct, frozen=True, kw_only=True):
    vertices: list[VertexLoad]


class SubtaskWatermark(msgspec.Struct, frozen=True, kw_only=True):
    subtask: str
    watermark_ms: int | None
    idle: bool


class OperatorWatermarks(msgspec.Struct, frozen=True, kw_only=True):
    """See `Operator`. `lag_ms`: how far `watermark_ms` is behind the clock of the job's process."""

    uid: str
    watermark_ms: int | None
    skew_ms: int
    lag_ms: int | None
    subtasks: list[SubtaskWatermark]


class Watermarks(msgspec.Struct, frozen=True, kw_only=True):
    operators: list[OperatorWatermarks]


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """What ended an attempt. `operator`, `key`, `origin`: of the record in process, where one was."""

    time_ms: int
    attempt: int
    kind: str
    message: str
    traceback: str
    operator: str | None = None
    key: str | None = None
    origin: str | None = None


class Exceptions(msgspec.Struct, frozen=True, kw_only=True):
    """The latest first; the oldest are forgotten. `restarts`: attempts after the first."""

    restarts: int
    exceptions: list[Failure]


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """`value`: as text, without secrets."""

    name: str
    value: str


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    settings: list[Setting]


class VertexTick(msgspec.Struct, frozen=True, kw_only=True):
    """Of a chain, at one moment: the greatest and the mean shares over its subtasks, and what is queued for it."""

    vertex: str
    busy: float
    backpressured: float
    mean_busy: float
    mean_backpressured: float
    queued: int
    capacity: int
    unsent: int
    blocked: int


class Tick(msgspec.Struct, frozen=True, kw_only=True):
    """What `/events` sends. Its size goes with the flow, not with the number of subtasks."""

    time_ms: int
    job: "JobSummary"
    operators: list[Operator]
    vertices: list[VertexTick]
    under_way: list[CheckpointUnderWay]
    completed: int
    failed: int
    exceptions: int


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


Uri = Annotated[str, msgspec.Meta(max_length=2000)]


class SavepointRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    uri: Uri


class StopRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    savepoint: Uri | None = None
    drain: bool = False
