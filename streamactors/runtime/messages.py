"""What goes between a subtask and its job: control messages down (the mailbox's priority lane), reports up."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from streamactors.checkpoint.manifest import BlockRef, KeyedHandle, ListRef, ListsHandle, NativeHandle, SubtaskState
from streamactors.elements import Barrier
from streamactors.graph.physical import SubtaskId
from streamactors.runtime.event_time import NodeTime
from streamactors.runtime.figures import SnapshotFigures
from streamactors.runtime.taps import Tap


# -------------------------------------------------------------------------------------------------------------- control
@dataclass(frozen=True, slots=True)
class Start:
    """Every subtask is open and restored: begin."""


@dataclass(frozen=True, slots=True)
class TriggerBarrier:
    """To sources: put the barrier in here."""

    barrier: Barrier


@dataclass(frozen=True, slots=True)
class AlignmentExpired:
    """To itself: the checkpoint may not wait for its alignment any longer."""

    checkpoint: int


@dataclass(frozen=True, slots=True)
class CheckpointComplete:
    checkpoint: int
    commit: bool


@dataclass(frozen=True, slots=True)
class CheckpointAborted:
    checkpoint: int


@dataclass(frozen=True, slots=True)
class StopReading:
    """To sources: read no further. `drain`: and send the end of data."""

    drain: bool = False


@dataclass(frozen=True, slots=True)
class Finish:
    """All is durable: end."""


@dataclass(frozen=True, slots=True)
class Query:
    """Read `state` of operator `uid` for one key, between two records."""

    uid: str
    state: str
    key: Any
    group: int
    answer: asyncio.Future[Any]


@dataclass(frozen=True, slots=True)
class AttachTap:
    """What node `uid` emits (to side output `tag`) goes to the tap too."""

    uid: str
    tag: str | None
    tap: Tap


@dataclass(frozen=True, slots=True)
class DetachTap:
    uid: str
    tag: str | None
    tap: Tap


Control = (
    Start
    | TriggerBarrier
    | AlignmentExpired
    | CheckpointComplete
    | CheckpointAborted
    | StopReading
    | Finish
    | Query
    | AttachTap
    | DetachTap
)


# -------------------------------------------------------------------------------------------------------------- reports
@dataclass(frozen=True, slots=True)
class Ready:
    subtask: SubtaskId


@dataclass(frozen=True, slots=True)
class SnapshotStored:
    subtask: SubtaskId
    checkpoint: int
    state: SubtaskState
    figures: SnapshotFigures = field(default_factory=SnapshotFigures)


@dataclass(frozen=True, slots=True)
class SnapshotDeclined:
    subtask: SubtaskId
    checkpoint: int
    reason: str


@dataclass(frozen=True, slots=True)
class TransactionsCommitted:
    subtask: SubtaskId
    checkpoint: int


@dataclass(frozen=True, slots=True)
class EndReached:
    """All inputs have ended, and so has this subtask's output."""

    subtask: SubtaskId


@dataclass(frozen=True, slots=True)
class ReadingStopped:
    """A source reads no further."""

    subtask: SubtaskId


@dataclass(frozen=True, slots=True)
class Stopped:
    """The actor has ended, and released everything."""

    subtask: SubtaskId


@dataclass(frozen=True, slots=True)
class Failed:
    """`subtask` None: something of the job itself."""

    subtask: SubtaskId | None
    error: BaseException


Report = (
    Ready | SnapshotStored | SnapshotDeclined | TransactionsCommitted | EndReached | ReadingStopped | Stopped | Failed
)


class Reports(Protocol):
    """The way up: never blocks."""

    def __call__(self, report: Report, /) -> None: ...


@dataclass(frozen=True, slots=True)
class ListPiece:
    """The items `start` to `stop` of those in one block."""

    handle: ListsHandle
    ref: ListRef
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class NodeRestore:
    """What one node of one subtask starts from."""

    blocks: tuple[tuple[KeyedHandle, tuple[BlockRef, ...]], ...] = ()
    schemas: Mapping[str, Any] = field(default_factory=dict)
    positions: Mapping[str, Any] | None = None
    """None: the source was never part of a checkpoint."""
    pending: tuple[Any, ...] = ()
    allow_dropped: bool = False
    lists: tuple[ListPiece, ...] = ()
    list_schemas: Mapping[str, Any] = field(default_factory=dict)
    time: NodeTime = field(default_factory=NodeTime)
    native: tuple[NativeHandle, ...] = ()
    """Those that hold some of its key groups."""
