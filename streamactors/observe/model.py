"""What the control API says and takes: the documents of version 1, for the server and for its clients.

Fields may be added; readers ignore what they don't know. What is sent *to* a job is refused if it holds anything else.
"""

from typing import Annotated, Literal

import msgspec

from streamactors.state.key_groups import MAX_KEY_GROUPS

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
    """`seconds` since it was triggered, `quiet_seconds` since then or the last acknowledgement. `waiting_for`: the
    subtasks that have not acknowledged, the first twenty."""

    id: int
    seconds: float
    acknowledged: int
    waiting_for: list[str]
    kind: Literal["checkpoint", "savepoint"] = "checkpoint"
    quiet_seconds: float = 0.0


class CheckpointGivenUp(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    time_ms: int
    reason: str


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How much of its input a source has read that knows its end: `done` of `total`."""

    done: int
    total: int
    unit: Literal["bytes", "records"]


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
    progress: Progress | None = None


class KeyGroups(msgspec.Struct, frozen=True, kw_only=True):
    """What the key groups from `first` to `last` hold together: keys, and bytes where that is known."""

    first: int
    last: int
    entries: int
    bytes: int | None


class OperatorState(msgspec.Struct, frozen=True, kw_only=True):
    """What one operator has stored, over all its subtasks. `bytes`: all of it; `entries`: keys in its states.
    `key_groups`: ranges of equal width, 64 at most. `skew`: what the largest key group (`largest`) holds, over the mean
    of all key groups; of `bytes`, or of `entries` where a backend's own files tell no bytes by key group; None where
    nothing is stored by key. `subtask_skew`: of bytes, the largest subtask over the mean."""

    uid: str
    max_parallelism: int
    subtasks: int
    entries: int
    bytes: int
    key_groups: list[KeyGroups]
    skew: float | None = None
    skew_of: Literal["bytes", "entries"] = "bytes"
    largest: int | None = None
    subtask_skew: float | None = None


class State(msgspec.Struct, frozen=True, kw_only=True):
    """As the last complete checkpoint or savepoint of this process has stored it; None: there was none yet."""

    checkpoint: int | None
    operators: list[OperatorState]


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


class Rescale(msgspec.Struct, frozen=True, kw_only=True):
    """`time_ms`: when the job ran on; `pause_seconds`: nothing was read; `before`, `after`: the parallelism of every
    step, by uid."""

    time_ms: int
    pause_seconds: float
    before: dict[str, int]
    after: dict[str, int]


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
    last_rescale: Rescale | None = None


class AutoscaledSteps(msgspec.Struct, frozen=True, kw_only=True):
    """Steps that are equally wide, called by the first of them. `load`: the share of time that each subtask would have
    to work to keep up, above 1 they are too few; None where it is not known. `rate`: records a second; `pending`: what
    waits at a source that tells it."""

    uid: str
    parallelism: int
    wanted: int
    load: float | None
    busy: float
    rate: float
    pending: float | None
    reason: str


class Autoscaling(msgspec.Struct, frozen=True, kw_only=True):
    """What the autoscaler has decided last; `parallelism`: what it has asked for, by uid. `steps` are empty while it
    waits."""

    action: Literal["wait", "keep", "rescale"]
    reason: str
    dry_run: bool
    parallelism: dict[str, int]
    steps: list[AutoscaledSteps]


class JobStatus(JobSummary, frozen=True, kw_only=True):
    """With all that it counts; `operators` in the order of the flow. `autoscale`: None where it is off, or has not
    looked yet. `restored_parallelism`: by uid, of steps that ran by another one in the checkpoint that this process
    began with."""

    operators: list[Operator]
    subtasks: list[Subtask]
    autoscale: Autoscaling | None = None
    restored_parallelism: dict[str, int] = {}


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
    """One input channel. `queued` records of `capacity` and `bytes` wait; `barriers` (checkpoint ids) are among them,
    with so many records `ahead` of each; `blocked`: an aligned barrier holds it back."""

    sender: str
    tag: str | None
    side: int
    queued: int
    capacity: int
    bytes: int
    elements: int
    blocked: bool
    barriers: list[int]
    ahead: list[int] = []


class SubtaskUnderWay(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint under way, as one subtask sees it. `acknowledged`: it has done its part."""

    id: int
    kind: Literal["checkpoint", "savepoint"]
    seconds: float
    acknowledged: bool


class SubtaskDetail(msgspec.Struct, frozen=True, kw_only=True):
    subtask: Subtask
    load: Load
    channels: list[Channel]
    under_way: list[SubtaskUnderWay] = []


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
    autoscale: Autoscaling | None = None


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


Width = Annotated[int, msgspec.Meta(ge=1, le=MAX_KEY_GROUPS)]


class RescaleRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`parallelism`: of steps that have none of their own; `steps`: by uid, or by name. At least one of them."""

    parallelism: Width | None = None
    steps: dict[str, Width] = {}


class Rescaled(msgspec.Struct, frozen=True, kw_only=True):
    """`changed`: False where it ran by that parallelism already."""

    name: str
    changed: bool
    last_rescale: Rescale | None


class StopRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    savepoint: Uri | None = None
    drain: bool = False
