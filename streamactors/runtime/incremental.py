"""Checkpoints that hold only the key groups that may have changed, and refer to files of earlier ones for the rest.

Invariants:
1. A checkpoint refers to what was stored of exactly the entries that it would otherwise have to write: of the same
   `Version`, under the same schema.
2. It refers only to what the checkpoint that the job goes on from refers to as well. Which files those are, the
   target's `reuse` knows; nothing has to be told of here when checkpoints complete or are given up.
3. It refers to nothing that was written `full_every` checkpoints ago, or earlier. So no more than that many have files
   that are needed to restore one, also over restarts.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, Protocol, TypeVar
from weakref import WeakKeyDictionary

from streamactors.checkpoint import layout
from streamactors.checkpoint.manifest import BlockRef, FileHandle, KeyedHandle
from streamactors.checkpoint.storage.contract import Written
from streamactors.elements import Barrier
from streamactors.runtime.messages import NodeRestore
from streamactors.state.backend import KeyedSnapshot
from streamactors.state.ttl import Turn
from streamactors.state.versions import StateGroup, Version, VersionedBackend, VersionedSnapshot

T = TypeVar("T")

SLICE: Final = 256
"""Key groups between two turns: less than a millisecond."""
COPIES: Final = 4
"""A version is stored more than once while no checkpoint that holds it has completed. So many are remembered."""

Write = Callable[[KeyedSnapshot], Awaitable[KeyedHandle | None]]


class ReuseTarget(Protocol):
    """The checkpoint that a snapshot becomes a part of."""

    async def reuse(self, barrier: Barrier, contents: Sequence[Written]) -> list[FileHandle | None]: ...


class Increments:
    """What one operator subtask has in storage, by version."""

    def __init__(self, backend: VersionedBackend, full_every: int) -> None:
        self._backend = backend
        self._full_every = full_every
        self._stored: WeakKeyDictionary[Version, tuple[KeyedHandle, ...]] = WeakKeyDictionary()

    async def restored(self, start: NodeRestore, schemas: Mapping[str, Any], turn: Turn) -> None:
        """The backend holds what it was restored from, and nothing else. `schemas`: today's. What was merged from
        several files, read from native ones or under another schema, is not there as it would be written now."""
        found: dict[StateGroup, list[KeyedHandle]] = {}
        for handle, refs in start.blocks:
            for place, part in await _by_group(KeyedHandle(handle.file, refs), turn):
                found.setdefault(place, []).append(part)
        same = {state for state, schema in schemas.items() if schema == start.schemas.get(state)}
        for some in _slices(found.items()):
            for (state, group), parts in some:
                native = any(handle.start <= group < handle.stop for handle in start.native)
                if state in same and not native and len(parts) == 1:
                    self.stored(self._backend.version(state, group), parts[0])
            await turn()

    def begin(self, checkpoint: int) -> "IncrementalStoring":
        """The synchronous part."""
        return IncrementalStoring(self._backend.begin_versioned_snapshot(checkpoint), self)

    def stored(self, version: Version, part: KeyedHandle) -> None:
        """`part`: of one state and key group."""
        self._stored[version] = (*self._stored.get(version, ())[1 - COPIES :], part)

    def files(self, version: Version) -> Iterator[FileHandle]:
        """All that it lies in, as far as is known."""
        return (part.file for part in self._stored.get(version, ()))

    def found(self, version: Version, there: Mapping[str, FileHandle]) -> KeyedHandle | None:
        """Where it lies, and may be referred to: `there`, by path. The latest is tried first, which is to stay the
        longest."""
        for part in reversed(self._stored.get(version, ())):
            file = there.get(part.file.path)
            if file is not None:
                return KeyedHandle(FileHandle(file.path, file.size, file.digest, part.file.start), part.blocks)
        return None

    def is_young(self, file: FileHandle, checkpoint: int) -> bool:
        place = layout.place_of(file.path)
        return place is not None and checkpoint - place.checkpoint < self._full_every


class IncrementalStoring:
    """The storing of one snapshot, in this order: `refer`, `store`; or `abort`."""

    def __init__(self, snapshot: VersionedSnapshot, increments: Increments) -> None:
        self._snapshot = snapshot
        self._increments = increments
        self._referred: tuple[KeyedHandle, ...] = ()

    async def refer(self, target: ReuseTarget, barrier: Barrier, turn: Turn) -> None:
        """Early, so that nothing is kept aside for what need not be written. Raises CheckpointFailed."""
        there = await self._there(target, barrier, turn)
        found: dict[StateGroup, KeyedHandle] = {}
        for some in _slices(self._snapshot.versions.items()):
            for place, version in some:
                if (part := self._increments.found(version, there)) is not None:
                    found[place] = part
            await turn()
        self._snapshot.leave_out(found)
        self._referred = _by_file(found.values())

    async def _there(self, target: ReuseTarget, barrier: Barrier, turn: Turn) -> dict[str, FileHandle]:
        """What may be referred to, by the path where it was stored. Asks once for each file, which holds many groups,
        and for all of them at once."""
        files: dict[str, FileHandle] = {}
        for some in _slices(self._snapshot.versions.values()):
            files.update((file.path, file) for version in some for file in self._increments.files(version))
            await turn()
        young = [file for file in files.values() if self._increments.is_young(file, barrier.checkpoint)]
        answers = await target.reuse(barrier, [Written(file.size, file.digest) for file in young])
        # The same content may have been stored before, under another name.
        return {
            file.path: there
            for file, there in zip(young, answers, strict=True)
            if there is not None and self._increments.is_young(there, barrier.checkpoint)
        }

    async def store(self, write: Write, turn: Turn) -> tuple[KeyedHandle, ...]:
        """`write` stores what the snapshot gives out."""
        versions = dict(self._snapshot.versions)
        written = await write(self._snapshot)
        if written is None:
            return self._referred
        for place, part in await _by_group(written, turn):
            self._increments.stored(versions[place], part)
        return (*self._referred, written)

    def abort(self) -> None:
        self._snapshot.abort()


def _slices(items: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while some := list(islice(rest, SLICE)):
        yield some


async def _by_group(handle: KeyedHandle, turn: Turn) -> list[tuple[StateGroup, KeyedHandle]]:
    """Blocks of a group keep their order."""
    refs: dict[StateGroup, list[BlockRef]] = {}
    for some in _slices(handle.blocks):
        for ref in some:
            refs.setdefault((ref.state, ref.group), []).append(ref)
        await turn()
    parts: list[tuple[StateGroup, KeyedHandle]] = []
    for groups in _slices(refs.items()):
        parts += [(place, KeyedHandle(handle.file, tuple(found))) for place, found in groups]
        await turn()
    return parts


def _by_file(parts: Iterable[KeyedHandle]) -> tuple[KeyedHandle, ...]:
    refs: dict[FileHandle, list[BlockRef]] = {}
    for part in parts:
        refs.setdefault(part.file, []).extend(part.blocks)
    return tuple(KeyedHandle(file, tuple(blocks)) for file, blocks in refs.items())
