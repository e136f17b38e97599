"""One node of one subtask, as far as checkpoints and queries see it: its state, and how that is restored."""

import contextlib
import logging
from collections.abc import Mapping
from itertools import groupby
from typing import Any

from streamactors.actors.governor import Governor
from streamactors.checkpoint import native_files
from streamactors.clock import Clock, uninterrupted
from streamactors.elements import Barrier
from streamactors.errors import (
    CheckpointFailed,
    IncompatibleState,
    StateAccessError,
    StorageFailed,
    StreamactorsError,
)
from streamactors.runtime.incremental import IncrementalStoring, Increments
from streamactors.runtime.messages import ListPiece, NodeRestore
from streamactors.runtime.native import NativeStoring
from streamactors.runtime.snapshot import SnapshotStorage
from streamactors.state.backend import KeyedBackend, KeyedSnapshot, StateBlock, native_of
from streamactors.state.operator_lists import ListsSnapshot, OperatorLists
from streamactors.state.unkeyed import ListBlock
from streamactors.state.versions import versioned

log = logging.getLogger("streamactors.checkpoint")


class NodeRuntime:
    """`backend` is None for a node without keyed state, `lists` for one without operators; `storage` None where nothing
    is restored."""

    def __init__(
        self,
        uid: str,
        *,
        is_source: bool,
        backend: KeyedBackend | None,
        lists: OperatorLists | None = None,
        start: NodeRestore,
        storage: SnapshotStorage | None,
        governor: Governor,
        clock: Clock,
        max_parallelism: int,
        incremental: bool,
        full_every: int | None = None,
    ) -> None:
        """`full_every`: see `Increments`; None where blocks are not referred to by later checkpoints."""
        self.uid = uid
        self.is_source = is_source
        self._backend = backend
        self._lists = lists
        self._start = start
        self._storage = storage
        self._governor = governor
        self._clock = clock
        self._max_parallelism = max_parallelism
        self._native = native_of(backend) if incremental else None
        self._increments = _increments(backend, full_every) if incremental else None
        self._restored = False

    def check(self) -> None:
        """Whether what is stored fits: for all subtasks, before any of them runs. Raises IncompatibleState."""
        if self._backend is None:
            self._refuse_lost_keys()
        else:
            self._backend.check_schemas(self._start.schemas, allow_dropped=self._start.allow_dropped)
        if self._lists is not None:
            self._lists.check_schemas(self._start.list_schemas, allow_dropped=self._start.allow_dropped)

    async def restore(self) -> None:
        """Read the state, which `check` has found to fit, block by block in turn with other actors."""
        if self._storage is not None:
            await self._restore_keyed(self._storage)
            await self._restore_lists(self._storage)
        self._restored = True

    async def _restore_keyed(self, storage: SnapshotStorage) -> None:
        if self._backend is None:
            return
        await self._restore_native(self._backend, storage)
        for handle, refs in self._start.blocks:
            for ref, data in zip(refs, await storage.read(handle, refs), strict=True):
                self._backend.restore([StateBlock(ref.state, ref.group, ref.entries, data)])
                await self._governor.give_way()
        if self._increments is not None:
            await self._increments.restored(self._start, self._backend.schemas(), self._governor.give_way)

    async def _restore_native(self, backend: KeyedBackend, storage: SnapshotStorage) -> None:
        """First, since files are taken over into empty state only."""
        native = native_of(backend)
        readable = native.native_format if native is not None else None
        own = [handle for handle in self._start.native if handle.format == readable]
        if own and native is not None:
            await native_files.restore_native(native, own, storage.fetch, self._clock)
        blocks = native_files.converted(
            [handle for handle in self._start.native if handle.format != readable],
            backend.declarations,
            backend.groups,
            self._max_parallelism,
            storage.fetch,
            schemas=self._start.schemas,
            uid=self.uid,
            clock=self._clock,
        )
        async with contextlib.aclosing(blocks):
            async for block in blocks:
                backend.restore([block])
                await self._governor.give_way()

    def _refuse_lost_keys(self) -> None:
        if self._start.schemas and not self._start.allow_dropped:
            raise IncompatibleState(
                f"operator {self.uid!r} had keyed state in the checkpoint ({', '.join(self._start.schemas)}), and has "
                "no keys now: use it after key_by again, or allow dropping state"
            )

    async def _restore_lists(self, storage: SnapshotStorage) -> None:
        if self._lists is None:
            return
        for _, group in groupby(self._start.lists, key=_file):
            pieces = list(group)
            blocks = await storage.read_lists(pieces[0].handle, [piece.ref for piece in pieces])
            for piece, data in zip(pieces, blocks, strict=True):
                ref = piece.ref
                block = ListBlock(ref.state, ref.union, ref.items, data, ref.broadcast)
                self._lists.restore(block, piece.start, piece.stop)
                await self._governor.give_way()

    async def ready_for_snapshot(self, barrier: Barrier) -> None:
        """Wait until `begin_snapshot` can be as cheap as it should be."""
        native = native_of(self._backend)
        if native is not None:
            await native.ready_for_native()

    def begin_snapshot(self, barrier: Barrier) -> KeyedSnapshot | NativeStoring | IncrementalStoring | None:
        """The synchronous part. A savepoint is complete, in the canonical format, which every backend reads."""
        if self._backend is None:
            return None
        if self._increments is not None and not barrier.savepoint:
            return self._increments.begin(barrier.checkpoint)
        try:
            native = None if barrier.savepoint else self._begin_native(self._backend, barrier.checkpoint)
            return self._backend.begin_snapshot(barrier.checkpoint) if native is None else native
        except StorageFailed as error:  # the snapshot's error, not that of the record in hand
            return _Refused(barrier.checkpoint, error)

    def _begin_native(self, backend: KeyedBackend, checkpoint: int) -> NativeStoring | None:
        """None if that can't be done now, or never."""
        if self._native is None:
            return None
        try:
            return NativeStoring(self._native.begin_native_snapshot(checkpoint), backend.groups, self._clock)
        except CheckpointFailed as error:
            log.info("operator %r, checkpoint %d: stored in full: %s", self.uid, checkpoint, error)
            return None

    def begin_lists_snapshot(self) -> ListsSnapshot | None:
        return None if self._lists is None else self._lists.begin_snapshot()

    def list_schemas(self) -> dict[str, Any]:
        return {} if self._lists is None else self._lists.schemas()

    def schemas(self) -> dict[str, Any]:
        return {} if self._backend is None else self._backend.schemas()

    def entries(self) -> Mapping[str, int]:
        if not self._restored:
            return {}  # a thread may be at work
        keyed = {} if self._backend is None else self._backend.entries()
        return keyed if self._lists is None else {**keyed, **self._lists.entries()}

    def query(self, state: str, key: Any, group: int) -> Any:
        if self._lists is not None and state in self._lists:
            raise StateAccessError(
                f"operator {self.uid!r}: state {state!r} belongs to no key, and a query reads what one key holds: emit "
                "what you want to see of it"
            )
        if self._backend is None:
            raise StateAccessError(f"operator {self.uid!r} has no keyed state to query")
        return self._backend.query(state, key, group)

    async def release(self) -> None:
        """As `close`; local files are deleted off the loop."""
        if self._backend is not None and native_of(self._backend) is not None:
            await uninterrupted(self._clock.run_blocking(self._backend.close))
        self.close()

    def close(self) -> None:
        """From now on, state raises StateAccessError. No matter if it is closed."""
        if self._backend is not None:
            self._backend.close()
        if self._lists is not None:
            self._lists.close()


def _increments(backend: KeyedBackend | None, full_every: int | None) -> Increments | None:
    found = versioned(backend)
    return None if full_every is None or found is None else Increments(found, full_every)


class _Refused:
    """See `KeyedSnapshot`: one that could not be begun."""

    def __init__(self, checkpoint_id: int, error: StreamactorsError) -> None:
        self.checkpoint_id = checkpoint_id
        self._error = error

    def next_block(self, budget_seconds: float = 0.0, *, max_entries: int | None = None) -> StateBlock | None:
        raise self._error

    def abort(self) -> None:
        """There is nothing to let go of."""


def _file(piece: ListPiece) -> tuple[str, int]:
    """What small states are packed into is one file, and each begins elsewhere in it."""
    return piece.handle.file.path, piece.handle.file.start
