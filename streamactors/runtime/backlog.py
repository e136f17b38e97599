"""What was in flight when a checkpoint was taken, as one subtask gets it back: planned frames, read batch by batch."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from streamactors.checkpoint.frames import FrameCodec
from streamactors.checkpoint.manifest import EdgeKey, FrameRef, InFlightHandle
from streamactors.elements import Batch, TimeMark
from streamactors.errors import CorruptCheckpoint, IncompatibleState
from streamactors.graph.edges import PlanEdge
from streamactors.runtime.routing import Router, router
from streamactors.state.key_groups import KeyGroupRange

READ_AHEAD: Final = 4 << 20
"""Bytes of frames that are read at a time (one frame at least)."""


# ------------------------------------------------------------------------------------- which records are this subtask's
@dataclass(frozen=True, slots=True)
class All:
    """Every record of the frame."""


@dataclass(frozen=True, slots=True)
class OfGroups:
    """Those whose stored key group is in `groups`."""

    groups: KeyGroupRange


@dataclass(frozen=True, slots=True)
class EveryNth:
    """Records first, first + step, first + 2·step, …"""

    first: int
    step: int


Pick = All | OfGroups | EveryNth


@dataclass(frozen=True, slots=True)
class BacklogFrame:
    """`edge` is today's: `edge.place` tells which link of the chain takes the records."""

    handle: InFlightHandle
    ref: FrameRef
    edge: PlanEdge
    pick: Pick


Backlog = tuple[BacklogFrame, ...]
"""Of one subtask, in the order in which it is to be processed (the deepest place of the chain first), before any new
input."""


# -------------------------------------------------------------------------------------------------------------- reading
class FrameStorage(Protocol):
    async def read_frames(self, handle: InFlightHandle, frames: Sequence[FrameRef]) -> list[bytes]: ...


class RestoredMark(NamedTuple):
    """A watermark or idleness; `ref` tells whose."""

    edge: PlanEdge
    ref: FrameRef
    mark: TimeMark


class RestoredBatch(NamedTuple):
    edge: PlanEdge
    batch: Batch


class BacklogReader:
    """The batches of a backlog, one at a time; at most about `READ_AHEAD` bytes of frames are in memory."""

    def __init__(self, backlog: Backlog, storage: FrameStorage, codec: FrameCodec, max_parallelism: int) -> None:
        self._waiting = deque(backlog)
        self._storage = storage
        self._codec = codec
        self._max_parallelism = max_parallelism
        self._read: deque[tuple[BacklogFrame, bytes]] = deque()
        self._routers: dict[EdgeKey, Router] = {}

    async def next(self) -> RestoredBatch | RestoredMark | None:
        """The next batch (never an empty one), on a keyed edge with its keys; None after the last. Raises
        CorruptCheckpoint, or IncompatibleState where its records no longer fit the flow. A cancelled call may be made
        again."""
        while self._read or self._waiting:
            if not self._read:
                await self._read_ahead()
            frame, data = self._read.popleft()
            if not frame.ref.records:
                return RestoredMark(frame.edge, frame.ref, self._codec.decode_mark(data, _where(frame)))
            batch = self._restore(frame, data)
            if batch:
                return RestoredBatch(frame.edge, batch)
        return None

    async def _read_ahead(self) -> None:
        """The next frames that lie in one file."""
        handle, size = self._waiting[0].handle, 0
        frames: list[BacklogFrame] = []
        for frame in self._waiting:
            if frame.handle.file != handle.file or (frames and size + frame.ref.length > READ_AHEAD):
                break
            frames.append(frame)
            size += frame.ref.length
        data = await self._storage.read_frames(handle, [frame.ref for frame in frames])
        for _ in frames:
            self._waiting.popleft()
        self._read.extend(zip(frames, data, strict=True))

    def _restore(self, frame: BacklogFrame, data: bytes) -> Batch:
        where = _where(frame)
        batch = self._codec.decode(data, where)
        _check_as_listed(batch, frame.ref, where)
        batch = _picked(batch, frame.pick)
        match frame.edge.kind:
            case "keyed":
                return self._with_keys(batch, frame.edge) if batch else batch
            case "forward":
                return batch
        return batch.unplaced()

    def _with_keys(self, batch: Batch, edge: PlanEdge) -> Batch:
        """Keys by today's selector, which must be what it was: the state of a key lies where its old group is."""
        stored = batch.groups
        if edge.key not in self._routers:
            self._routers[edge.key] = router(edge.partitioning, edge.key.upstream, 1, self._max_parallelism)
        [(_, keyed)] = self._routers[edge.key].route(batch)
        if keyed.groups != stored:
            raise IncompatibleState(
                f"the checkpoint holds records in flight on the edge {edge.key}, and its key_by gives them other keys "
                "now than when the checkpoint was taken: restore with the old key_by, take a savepoint (it holds "
                "nothing in flight but the inputs of calls), and restore that with the new one"
            )
        return keyed


def _where(frame: BacklogFrame) -> str:
    return f"{frame.handle.file.path}, records in flight on the edge {frame.edge.key}"


def _check_as_listed(batch: Batch, ref: FrameRef, where: str) -> None:
    span = (min(batch.groups), max(batch.groups)) if batch.groups else None
    if (len(batch), span, batch.home) != (ref.records, ref.groups, ref.home):
        raise CorruptCheckpoint(
            f"{where}: expected {ref.records} records of the key groups {ref.groups}, found {len(batch)} of {span}"
        )


def _picked(batch: Batch, pick: Pick) -> Batch:
    match pick:
        case OfGroups(groups):
            return batch.select([group in groups for group in batch.groups or ()])
        case EveryNth(first, step):
            return batch.stride(first, step)
    return batch
