"""Ownership where there are no locks: a lease, kept by a heartbeat, that others may take over once that has stopped.

The lease file names who holds it by a token. Its holder writes beats to a file of its own, `<lease>.<token>`, so that a
process which was paused can't overwrite what belongs to its successor.

Invariants:
1. A lease is taken by creating the file where there is none, or over from a holder that is known to be dead, or whose
   beats have not changed for `expiry` seconds by whoever watches, who looks all the time: no two clocks are compared,
   and one that is paused itself, or jumps, proves nothing.
2. `held` is false from the moment that anybody else's token is in the file.

What a lease can't do: keep a process from writing that was paused and does not know yet that it was taken over, or
choose between two that take over at the same moment. Both are fenced by the number of the run, which is created
exclusively (`CheckpointStore.ensure_owner`).
"""

import asyncio
import logging
import math
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from streamactors.checkpoint.storage.contract import Entry
from streamactors.checkpoint.storage.processes import is_dead, process_identity
from streamactors.clock import Clock, uninterrupted
from streamactors.errors import CorruptCheckpoint, StorageFailed, StorageInUse

log = logging.getLogger("streamactors.checkpoint")


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """In seconds. `beat`: between two beats; `expiry`: without one, until the lease may be taken over."""

    beat: float = 5.0
    expiry: float = 20.0
    look: float = 1.0
    """Between two looks at another one's beats."""


class Note(msgspec.Struct, frozen=True):
    """What a lease file holds. `process`: see `process_identity`."""

    token: str
    owner: str
    process: str | None = None


class LeaseFiles(Protocol):
    async def create(self, path: str, data: bytes) -> bool: ...
    async def replace(self, path: str, data: bytes) -> None: ...
    async def read(self, path: str) -> bytes: ...
    async def delete(self, path: str) -> None: ...
    async def list(self, folder: str) -> list[Entry]: ...


_held_here: Final[set[str]] = set()
"""Tokens of the leases that this process holds: it may have failed to release others."""


class Lease:
    """A `Lock` of an `ObjectFiles`. Made by `take`; its heartbeat ends with `release`."""

    def __init__(self, files: LeaseFiles, path: str, note: Note, clock: Clock, times: LeaseTimes) -> None:
        self._files = files
        self._path = path
        self._note = note
        self._clock = clock
        self._times = times
        self._beating: asyncio.Task[None] | None = None
        self._lost = False

    @classmethod
    async def take(
        cls, files: LeaseFiles, path: str, *, what: str, owner: str, clock: Clock, times: LeaseTimes
    ) -> "Lease":
        """Raises StorageInUse if the holder is alive; waits up to `expiry` to find out that it is not."""
        note = Note(clock.token(), owner, process_identity())
        lease = cls(files, path, note, clock, times)
        _held_here.add(note.token)
        try:
            await lease._take(what)
            await lease._clear_away()
        except BaseException:
            await lease.release()
            raise
        lease._beating = asyncio.create_task(lease._beat(), name=f"heartbeat {path}")
        return lease

    async def _take(self, what: str) -> None:
        await self._files.replace(self._beat_file(self._note), b"1")
        while not await self._files.create(self._path, msgspec.json.encode(self._note)):
            holder = await self._holder()
            if holder is None:
                continue  # released meanwhile
            if await self._alive(holder):
                raise StorageInUse(
                    f"{what} is in use by {holder.owner}. Stop that job first, or give this one another storage: "
                    "one live job at a time may write a flow's checkpoints."
                )
            if await self._take_over(holder):
                return

    async def _take_over(self, holder: Note) -> bool:
        """False if somebody else was faster."""
        if await self._holder() != holder:
            return False
        log.warning("taking over from %s, whose lease has expired", holder.owner)
        await self._files.replace(self._path, msgspec.json.encode(self._note))
        await self._files.delete(self._beat_file(holder))
        return await self._holder() == self._note

    async def _clear_away(self) -> None:
        """Beats of those that died while they took or released it. One that waits for its turn does not miss its own:
        it writes it again with its first heartbeat, long before the lease could expire."""
        folder, _, name = self._path.rpartition("/")
        own = f"{name}.{self._note.token}"
        for entry in await self._files.list(folder):
            if entry.name.startswith(f"{name}.") and entry.name != own:
                await self._files.delete(f"{folder}/{entry.name}" if folder else entry.name)

    async def _alive(self, holder: Note) -> bool:
        if holder.process is not None and holder.process == process_identity():
            return holder.token in _held_here
        if holder.process is not None and is_dead(holder.process):
            return False
        return await self._beats(holder)

    async def _beats(self, holder: Note) -> bool:
        """Watch until there is another beat (or another holder, or none: `_take` looks again), or none for `expiry`."""
        first = await self._last_beat(holder)
        for _ in range(
            math.ceil(self._times.expiry / self._times.look)
        ):  # a time when we were paused counts for little
            await self._clock.sleep(self._times.look)
            if await self._last_beat(holder) != first:
                return await self._holder() == holder
        return False

    async def _last_beat(self, holder: Note) -> bytes | None:
        return await self._read(self._beat_file(holder))

    async def _holder(self) -> Note | None:
        data = await self._read(self._path)
        if data is None:
            return None
        try:
            return msgspec.json.decode(data, type=Note)
        except msgspec.MsgspecError:
            return Note("", "a process that can't be read")

    async def _read(self, path: str) -> bytes | None:
        try:
            return await self._files.read(path)
        except CorruptCheckpoint:
            return None

    def _beat_file(self, note: Note) -> str:
        return f"{self._path}.{note.token}"

    # ------------------------------------------------------------------------------------------------------ the holder
    async def held(self) -> bool:
        if not self._lost and (self._note.token not in _held_here or await self._holder() != self._note):
            self._lost = True
        return not self._lost

    async def _beat(self) -> None:
        number = 1
        while not self._lost:
            await self._clock.sleep(self._times.beat)
            number += 1
            try:
                if await self.held():
                    await self._files.replace(self._beat_file(self._note), str(number).encode())
            except StorageFailed as error:
                expiry = self._times.expiry
                log.warning("no heartbeat: %s. Without one for %g s the storage may be taken over.", error, expiry)

    async def release(self) -> None:
        """What can't be deleted now expires. No matter if it is released."""
        await uninterrupted(self._release())

    async def _release(self) -> None:
        beating, self._beating = self._beating, None
        if beating is not None:
            beating.cancel()
            await asyncio.wait([beating])
        if self._note.token not in _held_here:
            return
        try:
            if await self._holder() == self._note:
                await self._files.delete(self._path)
            await self._files.delete(self._beat_file(self._note))
        except StorageFailed as error:
            log.warning("the lease could not be released, and expires by itself: %s", error)
        finally:
            self._lost = True
            _held_here.discard(self._note.token)
