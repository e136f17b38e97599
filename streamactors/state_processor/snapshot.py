"""An opened checkpoint or savepoint: what is in it, read without running a job.

Invariants: nothing is written; what is read is verified by its checksum; memory is bounded by one key group of one
state, whatever the size of all of it.
"""

import datetime as dt
from collections.abc import Generator, Mapping
from types import TracebackType
from typing import Any, Self

from streamactors.checkpoint.manifest import Manifest
from streamactors.checkpoint.restorable import Restorable, Verify, load
from streamactors.checkpoint.storage.contract import Files
from streamactors.clock import SYSTEM, Clock
from streamactors.errors import StateAccessError
from streamactors.state.descriptors import Declaration
from streamactors.state_processor.files import close_files, files_at
from streamactors.state_processor.overview import InFlightInfo, OperatorInfo, StateInfo, in_flight_of, operators_of
from streamactors.state_processor.rows import StoredRows
from streamactors.state_processor.stored_states import BroadcastRows, KeyedRows, ListRows, SnapshotSource
from streamactors.state_processor.transformation import Transformation
from streamactors.state_processor.types import Types, declaration_of


class Snapshot:
    """A checkpoint or savepoint. Close it, or leave its `async with` block, when done."""

    def __init__(self, restorable: Restorable, files: Files, clock: Clock, *, own_files: bool) -> None:
        self._restorable = restorable
        self._files = files
        self._clock = clock
        self._own_files = own_files
        self._operators = operators_of(restorable.manifest)

    def __repr__(self) -> str:
        return f"<Snapshot {self.uri}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the storage. No matter if it is closed."""
        if self._own_files:
            self._own_files = False
            await close_files(self._files)

    # ------------------------------------------------------------------------------------------------------- overview
    @property
    def uri(self) -> str:
        return self._restorable.uri

    @property
    def manifest(self) -> Manifest:
        """All that is known, as it is stored."""
        return self._restorable.manifest

    @property
    def flow(self) -> str:
        return self.manifest.flow

    @property
    def checkpoint(self) -> int:
        return self.manifest.checkpoint

    @property
    def time(self) -> dt.datetime:
        """When it was completed."""
        return dt.datetime.fromtimestamp(self.manifest.time_ms / 1000, dt.UTC)

    @property
    def savepoint(self) -> bool:
        return self.manifest.savepoint

    @property
    def committed(self) -> bool:
        """All its sink transactions are known to be committed."""
        return self._restorable.committed

    @property
    def operators(self) -> Mapping[str, OperatorInfo]:
        """By uid, in the order of the flow."""
        return self._operators

    @property
    def in_flight(self) -> list[InFlightInfo]:
        """By edge; empty in savepoints, and where no barrier has overtaken a record."""
        return in_flight_of(self.manifest)

    def operator(self, uid: str) -> OperatorInfo:
        """Raises StateAccessError naming those there are."""
        if uid not in self._operators:
            raise StateAccessError(f"{self.uri} holds no operator {uid!r}; it holds: {', '.join(self._operators)}")
        return self._operators[uid]

    def info(self, uid: str, name: str) -> StateInfo:
        """Likewise."""
        states = self.operator(uid).states
        if name not in states:
            known = ", ".join(states) or "none"
            raise StateAccessError(f"operator {uid!r} has no state {name!r} in {self.uri}; it has: {known}")
        return states[name]

    # ---------------------------------------------------------------------------------------------------------- state
    def state(
        self, uid: str, name: str, declaration: Declaration | type | None = None, *, types: Types = None
    ) -> StoredRows:
        """The rows of a state, `async for row in snapshot.state("totals", "total")`.

        Its values come as they were declared if told how: by the `declaration` (`RunningTotal.total`, or the operator's
        class), or by `types` (the value's; of a map, the key's and the value's). Else by their stored schema: instances
        of classes are dicts then. Raises StateAccessError for what there is not, IncompatibleState for a declaration
        that does not fit.
        """
        info = self.info(uid, name)
        declared = declaration_of(info, declaration, types)
        source = SnapshotSource(self._restorable, self.operator(uid), info, declared, self._clock)
        if info.keyed:
            return KeyedRows(source)
        return ListRows(source) if info.kind != "broadcast" else BroadcastRows(source)

    def transform(self) -> Transformation:
        """A new savepoint made of this one."""
        return Transformation(self._restorable, self._operators, self._clock)


class Opening:
    """What `open` returns: await it, or enter it by `async with`."""

    def __init__(self, uri: str, flow: str | None, verify: Verify, files: Files | None, clock: Clock) -> None:
        self._uri = uri
        self._flow = flow
        self._verify: Verify = verify
        self._given = files
        self._clock = clock
        self._opened: Snapshot | None = None

    def __await__(self) -> Generator[Any, None, Snapshot]:
        return self._open().__await__()

    async def __aenter__(self) -> Snapshot:
        self._opened = await self._open()
        return self._opened

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._opened is not None:
            await self._opened.close()

    async def _open(self) -> Snapshot:
        files = self._given if self._given is not None else files_at(self._uri, self._clock)
        own = self._given is None
        try:
            restorable = await load(files, self._uri, flow=self._flow, verify=self._verify)
        except BaseException:
            if own:
                await close_files(files)
            raise
        return Snapshot(restorable, files, self._clock, own_files=own)


def open(
    uri: str,
    *,
    flow: str | None = None,
    verify: Verify = "sizes",
    files: Files | None = None,
    clock: Clock = SYSTEM,
) -> Opening:
    """Open a savepoint, a checkpoint, or the latest checkpoint in a flow's folder or in a storage (of `flow`).

    `await` it, or `async with` it. Raises InvalidConfig if there is none, CorruptCheckpoint if it is damaged,
    IncompatibleState if a newer version wrote it. A running job may delete a checkpoint while it is read.
    """
    return Opening(uri, flow, verify, files, clock)
