"""What goes between a subtask and its job: control messages down (the mailbox's priority lane), reports up."""

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from streamactors.checkpoint.manifest import BlockRef, KeyedHandle, ListRef, ListsHandle, NativeHandle, SubtaskState
from streamactors.elements import Barrier
from streamactors.graph.physical import SubtaskId
from streamactors.runtime.event_time import NodeTime
from streamactors.runtime.figures import SnapshotFigures
from streamactors.runtime.group_figures import GroupFigures
from streamactors.runtime.taps import Tap


# -------------------------------------------------------------------------------------------------------------- control
class Start(msgspec.Struct, frozen=True):
    """Every subtask is open and restored: begin."""


class TriggerBarrier(msgspec.Struct, frozen=True):
    """To sources: put the barrier in here."""

    barrier: Barrier


class AlignmentExpired(msgspec.Struct, frozen=True):
    """To itself: the checkpoint may not wait for its alignment any longer."""

    checkpoint: int


class CheckpointComplete(msgspec.Struct, frozen=True):
    checkpoint: int
    commit: bool


class CheckpointAborted(msgspec.Struct, frozen=True):
    checkpoint: int


class StopReading(msgspec.Struct, frozen=True):
    """To sources: read no further. `drain`: and send the end of data."""

    drain: bool = False


class ResumeReading(msgspec.Struct, frozen=True):
    """To sources that were told to stop: read on."""


class Finish(msgspec.Struct, frozen=True):
    """All is durable: end."""


class Query(msgspec.Struct, frozen=True):
    """Read `state` of operator `uid` for one key, between two records."""

    uid: str
    state: str
    key: Any
    group: int
    answer: asyncio.Future[Any]


class AttachTap(msgspec.Struct, frozen=True):
    """What node `uid` emits (to side output `tag`) goes to the tap too."""

    uid: str
    tag: str | None
    tap: Tap


class DetachTap(msgspec.Struct, frozen=True):
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
    | ResumeReading
    | Finish
    | Query
    | AttachTap
    | DetachTap
)


# -------------------------------------------------------------------------------------------------------------- reports
class Ready(msgspec.Struct, frozen=True):
    subtask: SubtaskId


class SnapshotStored(msgspec.Struct, frozen=True):
    subtask: SubtaskId
    checkpoint: int
    state: SubtaskState
    figures: SnapshotFigures = msgspec.field(default_factory=SnapshotFigures)
    groups: tuple[GroupFigures, ...] = ()


class SnapshotDeclined(msgspec.Struct, frozen=True):
    subtask: SubtaskId
    checkpoint: int
    reason: str


class TransactionsCommitted(msgspec.Struct, frozen=True):
    subtask: SubtaskId
    checkpoint: int


class EndReached(msgspec.Struct, frozen=True):
    """All inputs have ended, and so has this subtask's output."""

    subtask: SubtaskId


class ReadingStopped(msgspec.Struct, frozen=True):
    """A source reads no further."""

    subtask: SubtaskId


class Stopped(msgspec.Struct, frozen=True):
    """The actor has ended, and released everything."""

    subtask: SubtaskId


class Failed(msgspec.Struct, frozen=True):
    """`subtask` None: something of the job itself."""

    subtask: SubtaskId | None
    error: BaseException


Report = (
    Ready | SnapshotStored | SnapshotDeclined | TransactionsCommitted | EndReached | ReadingStopped | Stopped | Failed
)


class Reports(Protocol):
    """The way up: never blocks."""

    def __call__(self, report: Report, /) -> None: ...


class ListPiece(msgspec.Struct, frozen=True):
    """The items `start` to `stop` of those in one block."""

    handle: ListsHandle
    ref: ListRef
    start: int
    stop: int


class NodeRestore(msgspec.Struct, frozen=True):
    """What one node of one subtask starts from."""

    blocks: tuple[tuple[KeyedHandle, tuple[BlockRef, ...]], ...] = ()
    schemas: Mapping[str, Any] = msgspec.field(default_factory=dict)
    positions: Mapping[str, Any] | None = None
    """None: the source was never part of a checkpoint."""
    pending: tuple[Any, ...] = ()
    allow_dropped: bool = False
    lists: tuple[ListPiece, ...] = ()
    list_schemas: Mapping[str, Any] = msgspec.field(default_factory=dict)
    time: NodeTime = msgspec.field(default_factory=NodeTime)
    native: tuple[NativeHandle, ...] = ()
    """Those that hold some of its key groups."""
