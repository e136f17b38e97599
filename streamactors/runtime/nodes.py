"""One node of one subtask, as far as checkpoints and queries see it: its state, and how that is restored."""

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from streamactors.actors.governor import Governor
from streamactors.errors import IncompatibleState, StateAccessError
from streamactors.runtime.messages import ListPiece, NodeRestore
from streamactors.runtime.snapshot import SnapshotStorage
from streamactors.state.backend import KeyedBackend, KeyedSnapshot, StateBlock
from streamactors.state.operator_lists import ListBlock, ListsSnapshot, OperatorLists


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
    ) -> None:
        self.uid = uid
        self.is_source = is_source
        self._backend = backend
        self._lists = lists
        self._start = start
        self._storage = storage
        self._governor = governor

    async def restore(self) -> None:
        """Check that the state fits, then read it, block by block in turn with other actors."""
        if self._storage is not None:
            await self._restore_keyed(self._storage)
            await self._restore_lists(self._storage)

    async def _restore_keyed(self, storage: SnapshotStorage) -> None:
        if self._backend is None:
            self._refuse_lost_keys()
            return
        self._backend.check_schemas(self._start.schemas, allow_dropped=self._start.allow_dropped)
        for handle, refs in self._start.blocks:
            for ref, data in zip(refs, await storage.read(handle, refs), strict=True):
                self._backend.restore([StateBlock(ref.state, ref.group, ref.entries, data)])
                if self._governor.due():
                    await self._governor.turn()

    def _refuse_lost_keys(self) -> None:
        if self._start.schemas and not self._start.allow_dropped:
            raise IncompatibleState(
                f"operator {self.uid!r} had keyed state in the checkpoint ({', '.join(self._start.schemas)}), and has "
                "no keys now: use it after key_by again, or allow dropping state"
            )

    async def _restore_lists(self, storage: SnapshotStorage) -> None:
        if self._lists is None:
            return
        self._lists.check_schemas(self._start.list_schemas, allow_dropped=self._start.allow_dropped)
        for _, group in groupby(self._start.lists, key=_file):
            pieces = list(group)
            blocks = await storage.read_lists(pieces[0].handle, [piece.ref for piece in pieces])
            for piece, data in zip(pieces, blocks, strict=True):
                ref = piece.ref
                self._lists.restore(ListBlock(ref.state, ref.union, ref.items, data), piece.start, piece.stop)
                if self._governor.due():
                    await self._governor.turn()

    def begin_snapshot(self, checkpoint: int) -> KeyedSnapshot | None:
        return None if self._backend is None else self._backend.begin_snapshot(checkpoint)

    def begin_lists_snapshot(self) -> ListsSnapshot | None:
        return None if self._lists is None else self._lists.begin_snapshot()

    def list_schemas(self) -> dict[str, Any]:
        return {} if self._lists is None else self._lists.schemas()

    def schemas(self) -> dict[str, Any]:
        return {} if self._backend is None else self._backend.schemas()

    def entries(self) -> Mapping[str, int]:
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

    def close(self) -> None:
        if self._backend is not None:
            self._backend.close()
        if self._lists is not None:
            self._lists.close()


def _file(piece: ListPiece) -> str:
    return piece.handle.file.path
