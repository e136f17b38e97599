"""The asynchronous part of a subtask's snapshots.

Invariant: a snapshot is reported as stored exactly once, and only when (a) every byte of it is durable and (b) its
barrier has left every output. A discarded one is never reported. Serialising takes turns with the actors on the loop;
writing happens off the loop.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from streamactors.actors.governor import Governor
from streamactors.checkpoint.manifest import BlockRef, FileHandle, KeyedHandle, NodeState, SubtaskState
from streamactors.elements import Barrier
from streamactors.errors import StreamactorsError
from streamactors.graph.physical import SubtaskId
from streamactors.runtime.messages import Failed, Reports, SnapshotDeclined, SnapshotStored
from streamactors.state.backend import KeyedSnapshot

log = logging.getLogger("streamactors.checkpoint")

BLOCK_SECONDS = 0.0005
"""One slice of serialising."""
CHUNK_BYTES = 1 << 20


class SnapshotStorage(Protocol):
    """Where the state of a checkpoint goes."""

    async def write(self, barrier: Barrier, name: str, chunks: AsyncIterator[bytes]) -> FileHandle: ...
    async def read(self, handle: KeyedHandle, blocks: Sequence[BlockRef]) -> list[bytes]: ...


@dataclass(frozen=True, slots=True)
class CapturedNode:
    """The synchronous part of one node's snapshot."""

    uid: str
    keyed: KeyedSnapshot | None = None
    schemas: dict[str, Any] = field(default_factory=dict)
    positions: dict[str, Any] = field(default_factory=dict)
    pending: tuple[Any, ...] = ()

    def abort(self) -> None:
        if self.keyed is not None:
            self.keyed.abort()


@dataclass(slots=True)
class _InFlight:
    nodes: Sequence[CapturedNode]
    task: asyncio.Task[None]
    left: bool = False
    state: SubtaskState | None = None


class Snapshots:
    """The snapshots that one subtask has in flight."""

    def __init__(self, subtask: SubtaskId, storage: SnapshotStorage, governor: Governor, reports: Reports) -> None:
        self._subtask = subtask
        self._storage = storage
        self._governor = governor
        self._reports = reports
        self._in_flight: dict[int, _InFlight] = {}
        self._dropped: set[asyncio.Task[None]] = set()
        """Cancelled, and on their way out: a storage that hangs may keep one of them, but not the subtask."""

    def begin(self, barrier: Barrier, nodes: Sequence[CapturedNode], *, ended: bool) -> None:
        """Write what was captured, in the background."""
        store = self._store(barrier, nodes, ended=ended)
        task = asyncio.get_running_loop().create_task(store, name=f"snapshot {barrier.checkpoint} of {self._subtask}")
        self._in_flight[barrier.checkpoint] = _InFlight(nodes, task)

    def barrier_left(self, checkpoint: int) -> None:
        snapshot = self._in_flight.get(checkpoint)
        if snapshot is not None:
            snapshot.left = True
            self._report_if_done(checkpoint, snapshot)

    def discard(self, checkpoint: int) -> None:
        """Drop it; `close` waits until nothing of it is being written."""
        snapshot = self._in_flight.pop(checkpoint, None)
        if snapshot is None:
            return
        if not snapshot.task.done():
            self._dropped.add(snapshot.task)
            snapshot.task.add_done_callback(self._dropped.discard)
            snapshot.task.cancel()
        for node in snapshot.nodes:
            node.abort()

    async def close(self) -> None:
        for checkpoint in list(self._in_flight):
            self.discard(checkpoint)
        await asyncio.gather(*self._dropped, return_exceptions=True)

    # ------------------------------------------------------------------------------------------------------- storing
    async def _store(self, barrier: Barrier, nodes: Sequence[CapturedNode], *, ended: bool) -> None:
        checkpoint = barrier.checkpoint
        try:
            states = [await self._store_node(barrier, node) for node in nodes]
        except Exception as error:
            self._in_flight.pop(checkpoint, None)
            for node in nodes:
                node.abort()
            self._report_failure(checkpoint, error)
            return
        snapshot = self._in_flight.get(checkpoint)
        if snapshot is None:
            return  # discarded at the very end
        snapshot.state = SubtaskState(self._subtask.vertex, self._subtask.index, tuple(states), ended=ended)
        self._report_if_done(checkpoint, snapshot)

    def _report_failure(self, checkpoint: int, error: Exception) -> None:
        """A storage that refuses may be better next time; a value that can't be serialised will not."""
        log.warning("checkpoint %d: the snapshot of %s failed: %s", checkpoint, self._subtask, error)
        if isinstance(error, StreamactorsError) and error.retryable:
            self._reports(SnapshotDeclined(self._subtask, checkpoint, str(error)))
        else:
            self._reports(Failed(self._subtask, error))

    async def _store_node(self, barrier: Barrier, node: CapturedNode) -> NodeState:
        keyed: tuple[KeyedHandle, ...] = ()
        if node.keyed is not None:
            refs: list[BlockRef] = []
            name = f"{node.uid}-{self._subtask.index}"
            blocks = self._blocks(node.keyed, refs)
            # An empty state needs no file: most subtasks of most flows hold none.
            first = await anext(blocks, None)
            if first is not None:
                file = await self._storage.write(barrier, name, _with_first(first, blocks))
                keyed = (KeyedHandle(file, tuple(refs)),)
        return NodeState(node.uid, keyed=keyed, schemas=node.schemas, positions=node.positions, pending=node.pending)

    async def _blocks(self, snapshot: KeyedSnapshot, refs: list[BlockRef]) -> AsyncIterator[bytes]:
        """Chunks to write. Blocks are small, one a key group at least: each write of its own would let the actors run
        in between, and touch (so copy) what the snapshot has not reached yet."""
        offset, chunk, size = 0, list[bytes](), 0
        while (block := snapshot.next_block(BLOCK_SECONDS)) is not None:
            refs.append(BlockRef(block.state, block.group, block.entries, offset, len(block.data)))
            offset += len(block.data)
            chunk.append(block.data)
            size += len(block.data)
            if size >= CHUNK_BYTES:
                yield b"".join(chunk)
                chunk, size = [], 0
            if self._governor.due():
                await self._governor.turn()
        if chunk:
            yield b"".join(chunk)

    def _report_if_done(self, checkpoint: int, snapshot: _InFlight) -> None:
        if snapshot.left and snapshot.state is not None:
            del self._in_flight[checkpoint]
            self._reports(SnapshotStored(self._subtask, checkpoint, snapshot.state))


async def _with_first(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk
