"""Records in flight, as a job of any shape would have left them, kept in memory; and what every subtask gets back."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from streamactors.checkpoint.frames import Frame, FrameCodec
from streamactors.checkpoint.manifest import (
    EdgeKey,
    FileHandle,
    FrameRef,
    InFlightEdge,
    InFlightHandle,
    Manifest,
    OperatorMeta,
    SubtaskState,
    requirements,
)
from streamactors.elements import Batch
from streamactors.graph.edges import PlanEdge, edge_keys
from streamactors.graph.physical import PhysicalPlan, SubtaskId
from streamactors.runtime.backlog import BacklogReader, RestoredBatch
from streamactors.runtime.restore_in_flight import plan_backlogs
from streamactors.state.key_groups import KeyGrouper

GROUPS = 16


@dataclass(frozen=True)
class PlacedFrame:
    """A frame and the channel that it was found on."""

    edge: InFlightEdge
    sender: int
    receiver: int
    unsent: bool
    frame: Frame


def in_flight_handle(file: FileHandle, frames: Sequence[PlacedFrame]) -> InFlightHandle:
    """Of a file that holds these frames one behind the other."""
    edges: dict[InFlightEdge, int] = {}
    refs: list[FrameRef] = []
    offset = 0
    for placed in frames:
        frame, length = placed.frame, len(placed.frame.data)
        channel = edges.setdefault(placed.edge, len(edges)), placed.sender, placed.receiver, placed.unsent
        refs.append(FrameRef(*channel, frame.groups, frame.records, offset, length))
        offset += length
    return InFlightHandle(file, tuple(edges), tuple(refs))


@dataclass
class Channel:
    """One old channel's batches in order: those with the receiver, then those that were not sent."""

    sender: int
    receiver: int
    queued: list[Batch] = field(default_factory=list)
    unsent: list[Batch] = field(default_factory=list)


class Memory:
    """Files of frames. `reads`: how many frames and bytes were read at a time."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.reads: list[tuple[int, int]] = []

    async def read_frames(self, handle: InFlightHandle, frames: Sequence[FrameRef]) -> list[bytes]:
        data = [self.files[handle.file.path][ref.offset : ref.offset + ref.length] for ref in frames]
        self.reads.append((len(data), sum(map(len, data))))
        return data


class Captured:
    """A checkpoint of a job that ran `plan`, with what was in flight on its edges."""

    def __init__(self, plan: PhysicalPlan) -> None:
        self.plan = plan
        self.memory = Memory()
        self._edges = edge_keys(plan).by_key
        self._frames: dict[SubtaskId, list[PlacedFrame]] = {subtask: [] for subtask in plan.subtasks}
        self._codec = FrameCodec()

    def add(self, upstream: str, downstream: str, channels: Iterable[Channel], **key: Any) -> "Captured":
        edge = self._edges[EdgeKey(upstream, downstream, **key)]
        for channel in channels:
            for batch in channel.queued:
                self._place(edge, channel, batch, downstream, channel.receiver, unsent=False)
            for batch in channel.unsent:
                self._place(edge, channel, batch, upstream, channel.sender, unsent=True)
        return self

    def _place(self, edge: PlanEdge, channel: Channel, batch: Batch, uid: str, index: int, *, unsent: bool) -> None:
        vertex, _ = self.plan.node[uid]
        frame = self._codec.encode(batch, edge.key)
        placed = PlacedFrame(edge.stored, channel.sender, channel.receiver, unsent, frame)
        self._frames[SubtaskId(vertex.uid, index)].append(placed)

    def manifest(self) -> Manifest:
        subtasks = tuple(
            SubtaskState(subtask.vertex, subtask.index, (), in_flight=self._written(subtask, frames))
            for subtask, frames in self._frames.items()
        )
        operators = (
            OperatorMeta(uid, node.kind, vertex.parallelism, vertex.max_parallelism, node.named)
            for uid, (vertex, node) in self.plan.node.items()
        )
        return Manifest(
            flow=self.plan.name,
            run=1,
            attempt=1,
            checkpoint=1,
            time_ms=0,
            operators=tuple(operators),
            subtasks=subtasks,
            requires=requirements(subtasks),
        )

    def _written(self, subtask: SubtaskId, frames: list[PlacedFrame]) -> InFlightHandle | None:
        if not frames:
            return None
        data = b"".join(placed.frame.data for placed in frames)
        self.memory.files[str(subtask)] = data
        return in_flight_handle(FileHandle(str(subtask), len(data), b""), frames)

    async def restored(
        self, plan: PhysicalPlan, drop_state: Collection[str] = ()
    ) -> dict[SubtaskId, list[RestoredBatch]]:
        """What each subtask of today's plan gets, in order."""
        found: dict[SubtaskId, list[RestoredBatch]] = {}
        for subtask, backlog in plan_backlogs(self.manifest(), plan, drop_state).items():
            groups = plan.vertex[subtask.vertex].max_parallelism
            reader = BacklogReader(backlog, self.memory, FrameCodec(), groups)
            batches = found.setdefault(subtask, [])
            while (batch := await reader.next()) is not None:
                assert isinstance(batch, RestoredBatch)
                batches.append(batch)
        return found


def grouped(values: Sequence[Any], key: Callable[[Any], Any]) -> Batch:
    """As it leaves a key_by, or travels on behind a keyed step."""
    return Batch(values, groups=KeyGrouper(GROUPS).groups([key(value) for value in values]))
