"""The asynchronous part of a subtask's snapshots.

Invariant: a snapshot is reported as stored exactly once, and only when (a) every byte of it is durable, in-flight data
included, and (b) the protocol has acknowledged it: its barrier has left every output, and nothing more is to be
captured. A discarded one is never reported. Serialising takes turns with the actors on the loop; writing happens off
the loop.
"""

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from streamactors.actors.governor import Governor
from streamactors.checkpoint.manifest import (
    BlockRef,
    ChannelTime,
    FileHandle,
    FrameRef,
    GroupTime,
    InFlightHandle,
    KeyedHandle,
    ListRef,
    ListsHandle,
    NativeFileHandle,
    NodeState,
    SubtaskState,
)
from streamactors.checkpoint.storage.contract import Written
from streamactors.elements import Barrier
from streamactors.errors import StreamactorsError
from streamactors.graph.physical import SubtaskId
from streamactors.runtime.figures import SnapshotFigures, Stopwatch
from streamactors.runtime.group_figures import GroupFigures, spread_over_groups
from streamactors.runtime.incremental import IncrementalStoring
from streamactors.runtime.inflight import CHUNK_BYTES, Capture, Captures
from streamactors.runtime.messages import Failed, Reports, SnapshotDeclined, SnapshotStored
from streamactors.runtime.native import NativeStoring
from streamactors.state.backend import KeyedSnapshot, SettlingSnapshot, StateBlock
from streamactors.state.operator_lists import ListsSnapshot
from streamactors.state.unkeyed import ListBlock

log = logging.getLogger("streamactors.checkpoint")

BLOCK_SECONDS = 0.0005
"""One slice of serialising."""


class _Block(Protocol):
    @property
    def data(self) -> bytes: ...


B = TypeVar("B", bound=_Block)
B_co = TypeVar("B_co", bound=_Block, covariant=True)


class _Snapshot(Protocol[B_co]):
    def next_block(self, budget_seconds: float = ..., /) -> B_co | None: ...


class SnapshotStorage(Protocol):
    """Where the state of a checkpoint goes."""

    async def write(
        self, barrier: Barrier, name: str, chunks: AsyncIterator[bytes], *, alone: bool = False
    ) -> FileHandle:
        """`alone`: nothing else is to be in that file."""

    async def reuse(self, barrier: Barrier, contents: Sequence[Written]) -> list[FileHandle | None]:
        """For each what an earlier checkpoint has stored with this content; None if it has to be written."""

    async def fetch(self, part: NativeFileHandle, receive: Callable[[bytes], None]) -> None:
        """See `native_files.Fetch`."""

    async def read(self, handle: KeyedHandle, blocks: Sequence[BlockRef]) -> list[bytes]: ...
    async def read_lists(self, handle: ListsHandle, blocks: Sequence[ListRef]) -> list[bytes]: ...
    async def read_frames(self, handle: InFlightHandle, frames: Sequence[FrameRef]) -> list[bytes]: ...


@dataclass(frozen=True, slots=True)
class CapturedNode:
    """The synchronous part of one node's snapshot."""

    uid: str
    keyed: KeyedSnapshot | NativeStoring | IncrementalStoring | None = None
    schemas: dict[str, Any] = field(default_factory=dict)
    positions: dict[str, Any] = field(default_factory=dict)
    pending: tuple[Any, ...] = ()
    lists: ListsSnapshot | None = None
    list_schemas: dict[str, Any] = field(default_factory=dict)
    watermark: int | None = None
    ahead: tuple[GroupTime, ...] = ()
    splits: dict[str, Any] = field(default_factory=dict)

    def abort(self) -> None:
        if self.keyed is not None:
            self.keyed.abort()
        if self.lists is not None:
            self.lists.abort()


@dataclass(slots=True)
class _Pending:
    """A snapshot on its way. `tasks`: the writing of its state, and of what its barrier has overtaken."""

    barrier: Barrier
    nodes: Sequence[CapturedNode]
    ended: bool
    channels: tuple[ChannelTime, ...] = ()
    watch: Stopwatch | None = None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    capture: Capture | None = None
    acknowledged: bool = False
    states: tuple[NodeState, ...] | None = None
    groups: tuple[GroupFigures, ...] = ()
    in_flight: InFlightHandle | None = None

    @property
    def done(self) -> bool:
        return self.acknowledged and all(task.done() for task in self.tasks)


class Snapshots:
    """The snapshots that one subtask has in flight."""

    def __init__(
        self,
        subtask: SubtaskId,
        storage: SnapshotStorage,
        governor: Governor,
        reports: Reports,
        captures: Captures,
        *,
        max_parallelism: int,
    ) -> None:
        self._subtask = subtask
        self._max_parallelism = max_parallelism
        self._storage = storage
        self._governor = governor
        self._reports = reports
        self._captures = captures
        self._pending: dict[int, _Pending] = {}
        self._dropped: set[asyncio.Task[None]] = set()
        """Cancelled, and on their way out: a storage that hangs may keep one of them, but not the subtask."""

    def begin(
        self,
        barrier: Barrier,
        nodes: Sequence[CapturedNode],
        *,
        ended: bool,
        channels: tuple[ChannelTime, ...] = (),
        watch: Stopwatch | None = None,
    ) -> None:
        """Write what was captured, in the background."""
        pending = self._pending[barrier.checkpoint] = _Pending(barrier, nodes, ended, channels, watch)
        self._write(pending, "snapshot", functools.partial(self._store_nodes, pending))

    def capture(self, checkpoint: int) -> Capture | None:
        """Where in-flight data of a snapshot under way goes; None if that has failed or was given up meanwhile."""
        pending = self._pending.get(checkpoint)
        if pending is None:
            return None
        if pending.capture is None:
            pending.capture = Capture(self._captures, checkpoint)
            self._write(pending, "in-flight data", functools.partial(self._store_in_flight, pending, pending.capture))
        return pending.capture

    def acknowledge(self, checkpoint: int) -> None:
        """Nothing more is to be captured: report it as soon as all of it is durable."""
        pending = self._pending.get(checkpoint)
        if pending is None:
            return
        pending.acknowledged = True
        if pending.capture is not None:
            self._captures.finish(pending.capture)
            pending.capture.seal()
        self._report_if_done(pending)

    def discard(self, checkpoint: int) -> None:
        """Drop it; `close` waits until nothing of it is being written."""
        pending = self._pending.pop(checkpoint, None)
        if pending is None:
            return
        for task in pending.tasks:
            if not task.done() and task is not asyncio.current_task():
                self._dropped.add(task)
                task.add_done_callback(self._dropped.discard)
                task.cancel()
        self._release(pending)

    def _release(self, pending: _Pending) -> None:
        for node in pending.nodes:
            node.abort()
        if pending.capture is not None:
            self._captures.finish(pending.capture)
            pending.capture.drop()

    async def close(self) -> None:
        for checkpoint in list(self._pending):
            self.discard(checkpoint)
        await asyncio.gather(*self._dropped, return_exceptions=True)

    # ------------------------------------------------------------------------------------------------------- storing
    def _write(self, pending: _Pending, what: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        name = f"{what} {pending.barrier.checkpoint} of {self._subtask}"
        task = asyncio.get_running_loop().create_task(self._or_fail(pending, work), name=name)
        pending.tasks.append(task)
        task.add_done_callback(lambda _: self._report_if_done(pending))

    async def _or_fail(self, pending: _Pending, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """A storage that refuses may be better next time; a value that can't be serialised will not. (`work` is called
        here, since what is discarded at once never gets so far.)"""
        try:
            await work()
            if pending.watch is not None:  # told here: an acknowledgement may report before the callbacks of this task
                pending.watch.stored()
        except Exception as error:
            checkpoint = pending.barrier.checkpoint
            if self._pending.get(checkpoint) is not pending:
                return
            self.discard(checkpoint)
            log.warning("checkpoint %d: the snapshot of %s failed: %s", checkpoint, self._subtask, error)
            if isinstance(error, StreamactorsError) and error.retryable:
                self._reports(SnapshotDeclined(self._subtask, checkpoint, str(error)))
            else:
                self._reports(Failed(self._subtask, error))

    async def _store_nodes(self, pending: _Pending) -> None:
        for node in pending.nodes:
            if isinstance(node.keyed, IncrementalStoring):
                await node.keyed.refer(self._storage, pending.barrier, self._governor.give_way)
        natives = [node.keyed for node in pending.nodes if isinstance(node.keyed, NativeStoring)]
        async with contextlib.AsyncExitStack() as stack:
            for native in natives:
                stack.push_async_callback(native.release)
            for node in pending.nodes:
                if isinstance(node.keyed, SettlingSnapshot):
                    await node.keyed.settle(self._governor.give_way)
            for native in natives:
                await native.link()
            states = [await self._store_node(pending.barrier, node) for node in pending.nodes]
            pending.groups = await spread_over_groups(states, self._max_parallelism, self._governor.give_way)
            pending.states = tuple(states)

    async def _store_in_flight(self, pending: _Pending, capture: Capture) -> None:
        chunks = capture.chunks(self._governor)
        # Most subtasks have nothing in flight, and need no file.
        first = await anext(chunks, None)
        if first is not None:
            name = f"{self._subtask.vertex}-{self._subtask.index}-in-flight"
            file = await self._storage.write(pending.barrier, name, _with_first(first, chunks))
            pending.in_flight = capture.handle(file)

    async def _store_node(self, barrier: Barrier, node: CapturedNode) -> NodeState:
        native = None
        if isinstance(node.keyed, NativeStoring):
            native = await node.keyed.store(self._storage, barrier, f"{node.uid}-{self._subtask.index}")
        return NodeState(
            node.uid,
            keyed=await self._store_blocks_of(barrier, node),
            native=() if native is None else (native,),
            schemas=node.schemas,
            positions=node.positions,
            pending=node.pending,
            watermark=node.watermark,
            ahead=node.ahead,
            splits=node.splits,
            lists=None if node.lists is None else await self._store_lists(barrier, node.uid, node.lists),
            list_schemas=node.list_schemas,
        )

    async def _store_blocks_of(self, barrier: Barrier, node: CapturedNode) -> tuple[KeyedHandle, ...]:
        match node.keyed:
            case None | NativeStoring():
                return ()
            case IncrementalStoring():
                return await node.keyed.store(
                    functools.partial(self._store_keyed, barrier, node.uid), self._governor.give_way
                )
        written = await self._store_keyed(barrier, node.uid, node.keyed)
        return () if written is None else (written,)

    async def _store_keyed(self, barrier: Barrier, uid: str, keyed: KeyedSnapshot) -> KeyedHandle | None:
        refs: list[BlockRef] = []

        def note(block: StateBlock, offset: int) -> None:
            refs.append(BlockRef(block.state, block.group, block.entries, offset, len(block.data)))

        file = await self._store_blocks(barrier, uid, keyed, note)
        return None if file is None else KeyedHandle(file, tuple(refs))

    async def _store_lists(self, barrier: Barrier, uid: str, lists: ListsSnapshot) -> ListsHandle | None:
        refs: list[ListRef] = []

        def note(block: ListBlock, offset: int) -> None:
            refs.append(ListRef(block.state, block.items, offset, len(block.data), block.union, block.broadcast))

        file = await self._store_blocks(barrier, f"{uid}-lists", lists, note)
        return None if file is None else ListsHandle(file, tuple(refs))

    async def _store_blocks(
        self, barrier: Barrier, name: str, snapshot: _Snapshot[B], note: Callable[[B, int], None]
    ) -> FileHandle | None:
        """`note` is told of every block and its offset."""
        blocks = self._blocks(snapshot, note)
        # An empty state needs no file: most subtasks of most flows hold none.
        first = await anext(blocks, None)
        if first is None:
            return None
        return await self._storage.write(barrier, f"{name}-{self._subtask.index}", _with_first(first, blocks))

    async def _blocks(self, snapshot: _Snapshot[B], note: Callable[[B, int], None]) -> AsyncGenerator[bytes, None]:
        """Chunks to write. Blocks are small, one a key group at least: each write of its own would let the actors run
        in between, and touch (so copy) what the snapshot has not reached yet."""
        offset, chunk, size = 0, list[bytes](), 0
        while (block := snapshot.next_block(BLOCK_SECONDS)) is not None:
            note(block, offset)
            offset += len(block.data)
            chunk.append(block.data)
            size += len(block.data)
            if size >= CHUNK_BYTES:
                yield b"".join(chunk)
                chunk, size = [], 0
            await self._governor.give_way()
        if chunk:
            yield b"".join(chunk)

    def _report_if_done(self, pending: _Pending) -> None:
        checkpoint = pending.barrier.checkpoint
        if pending.done and self._pending.get(checkpoint) is pending and pending.states is not None:
            del self._pending[checkpoint]
            id = self._subtask
            state = SubtaskState(
                id.vertex,
                id.index,
                pending.states,
                ended=pending.ended,
                in_flight=pending.in_flight,
                channels=pending.channels,
            )
            figures = SnapshotFigures() if pending.watch is None else pending.watch.read()
            self._reports(SnapshotStored(id, checkpoint, state, figures, pending.groups))


async def _with_first(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Closed with the rest: else that would be left to the garbage collector, and end in some later attempt."""
    async with contextlib.aclosing(rest):
        yield first
        async for chunk in rest:
            yield chunk
