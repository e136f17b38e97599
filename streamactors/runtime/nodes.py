"""One node of one subtask, as far as checkpoints and queries see it: its keyed state, and how that is restored."""

from collections.abc import Mapping
from typing import Any

from streamactors.actors.governor import Governor
from streamactors.errors import StateAccessError
from streamactors.runtime.messages import NodeRestore
from streamactors.runtime.snapshot import SnapshotStorage
from streamactors.state.backend import KeyedBackend, KeyedSnapshot, StateBlock


class NodeRuntime:
    """`backend` is None for a node without keyed state; `storage` None where nothing is restored."""

    def __init__(
        self,
        uid: str,
        *,
        is_source: bool,
        backend: KeyedBackend | None,
        start: NodeRestore,
        storage: SnapshotStorage | None,
        governor: Governor,
    ) -> None:
        self.uid = uid
        self.is_source = is_source
        self._backend = backend
        self._start = start
        self._storage = storage
        self._governor = governor

    async def restore(self) -> None:
        """Check that the state fits, then read it, block by block in turn with other actors."""
        if self._backend is None or self._storage is None:
            return
        self._backend.check_schemas(self._start.schemas, allow_dropped=self._start.allow_dropped)
        for handle, refs in self._start.blocks:
            for ref, data in zip(refs, await self._storage.read(handle, refs), strict=True):
                self._backend.restore([StateBlock(ref.state, ref.group, ref.entries, data)])
                if self._governor.due():
                    await self._governor.turn()

    def begin_snapshot(self, checkpoint: int) -> KeyedSnapshot | None:
        return None if self._backend is None else self._backend.begin_snapshot(checkpoint)

    def schemas(self) -> dict[str, Any]:
        return {} if self._backend is None else self._backend.schemas()

    def entries(self) -> Mapping[str, int]:
        return {} if self._backend is None else self._backend.entries()

    def query(self, state: str, key: Any, group: int) -> Any:
        if self._backend is None:
            raise StateAccessError(f"operator {self.uid!r} has no keyed state to query")
        return self._backend.query(state, key, group)

    def close(self) -> None:
        if self._backend is not None:
            self._backend.close()
