"""The owning side of a store: everything that a live job writes into its flow's folder of checkpoints.

Invariants, whatever fails or dies at whatever moment:
1. One live process owns the folder. A run number is taken once, and completes nothing once a higher one is taken: a
   manifest that it is just publishing then counts if the next run finds it when it begins, and never later.
2. A checkpoint is complete from the moment its manifest has its name, which is after all its files are durable.
3. A checkpoint id is used once, also over crashes and aborted checkpoints: it is durable before `writer` returns.
4. What `complete`, `write_receipt`, `record_base` and `begin_attempt` returned for is found by every later run, until
   `retire` deletes it; and `retire` leaves whatever a restart would start from.
5. A file lies in the folder of the checkpoint that it was written for, and stays there as long as any complete
   checkpoint, or one in flight, refers to it (`registry`); a manifest goes durably before the files that it refers to.
6. What a job was told to start from and did not claim is never deleted, nor used by its checkpoints.
"""

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Self

import msgspec

from streamactors.checkpoint import layout, manifest
from streamactors.checkpoint.deletion import delete_all, delete_claimed
from streamactors.checkpoint.layout import Place
from streamactors.checkpoint.manifest import (
    BlockRef,
    Epoch,
    KeyedHandle,
    Manifest,
    Receipt,
    Reference,
    Widest,
)
from streamactors.checkpoint.registry import FileRegistry
from streamactors.checkpoint.restorable import FlowFolder, Found, Restorable, Verify, load
from streamactors.checkpoint.storage.contract import Files, Lock
from streamactors.checkpoint.storage.opening import open_files
from streamactors.checkpoint.storage.processes import this_process
from streamactors.checkpoint.storage.uris import is_temporary
from streamactors.checkpoint.writer import CheckpointWriter
from streamactors.clock import Clock
from streamactors.errors import (
    CheckpointFailed,
    CorruptCheckpoint,
    FencedOff,
    IncompatibleState,
    InvalidConfig,
    StorageFailed,
)

log = logging.getLogger(__name__)


class CheckpointStore:
    """One flow's folder, owned. Made by `open`; ended by `close`, or by leaving its `async with` block."""

    def __init__(self, files: Files, flow: str, clock: Clock, lock: Lock, owner: str) -> None:
        self.flow = flow
        self.run = 0
        self._files = files
        self._clock = clock
        self._lock: Lock | None = lock
        self._owner = owner
        self._opened: Files | None = None
        """To be closed with the store."""
        self._folder = FlowFolder(files, layout.flow_folder(flow), flow)
        self._attempt = 0
        self._widest: dict[str, int] = {}
        self._last_id = 0
        self._used = 0
        """The highest `used-n` mark."""
        self._writers: dict[int, CheckpointWriter] = {}
        self._publishing = asyncio.Lock()
        """Held while a manifest is published, and while an attempt's writers are dropped."""
        self._begun = 0
        """The highest id that `writer` was asked for."""
        self._savepoints: dict[int, Files] = {}
        """Those that this process has completed."""
        self._registry = FileRegistry()
        self._bases: dict[int, Reference] = {}
        """By run: what each was told to start from."""
        self._damaged: dict[str, CorruptCheckpoint] = {}

    # ------------------------------------------------------------------------------------------------------ ownership
    @classmethod
    async def open(cls, uri: str, flow: str, *, clock: Clock, files: Files | None = None) -> "CheckpointStore":
        """Take ownership and the next run number. `files`: to write with, rooted at `uri`; the caller closes them.

        Raises StorageInUse if a live process is the owner, InvalidConfig for a storage or flow name that can't be.
        """
        if files is None:
            return await cls._open_with_files(uri, flow, clock)
        root = layout.flow_folder(flow)
        await files.make_folder(root)
        owner = this_process(clock)
        what = f"the checkpoints of flow {flow!r} in {files.uri}"
        lock = await files.lock(f"{root}/{layout.OWNER_LOCK}", what, owner)
        try:
            store = cls(files, flow, clock, lock, owner)
            await store._begin_run()
        except BaseException:
            await lock.release()
            raise
        return store

    @classmethod
    async def _open_with_files(cls, uri: str, flow: str, clock: Clock) -> "CheckpointStore":
        files = open_files(uri, clock=clock)
        try:
            store = await cls.open(uri, flow, clock=clock, files=files)
        except BaseException:
            await files.close()
            raise
        store._opened = files
        return store

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Drop what is in flight and give up ownership. No matter if it is closed."""
        lock = self._lock
        if lock is None:
            return
        try:
            await self._drop_writers()
        finally:
            self._lock = None
            try:
                await lock.release()
            finally:
                if self._opened is not None:
                    await self._opened.close()

    async def _begin_run(self) -> None:
        for entry in await self._files.list(self._folder.root):
            if is_temporary(entry.name):
                await self._files.delete(self._folder.path(entry.name))
        await self._settle()
        self.run = await self._take_run()
        scanned = await self._folder.scan_all()
        if self.run > 1:
            await self._note_what_is_there(scanned)
        await self._read_ids(scanned)
        await self._read_widest()
        await self._read_bases()

    async def _read_bases(self) -> None:
        """What can't be read matters only to who falls back to it; what it claims is then left alone."""
        for run in await self._folder.numbers("", "run"):
            try:
                base = await self._folder.base(run)
            except CorruptCheckpoint as error:
                log.warning("what run %d was told to start from can't be read: %s", run, error)
                continue
            if base is not None:
                self._bases[run] = base

    async def _settle(self) -> None:
        """A process may have died after it gave a file its name and before that was durable. We see the name, build on
        it, and must not lose it to a power failure then."""
        for run in await self._folder.numbers("", "run"):
            for found in await self._folder.scan(run):
                await self._files.sync_folder(self._folder.path(found.place.folder))
            await self._files.sync_folder(self._folder.path(layout.run_folder(run)))

    async def _take_run(self) -> int:
        """The first number that nobody has taken, created exclusively: it fences also where a lock can't be trusted."""
        run = max(await self._folder.numbers("", "run"), default=0) + 1
        while True:
            await self._files.make_folder(self._folder.path(layout.run_folder(run)))
            epoch = Epoch(run, self._owner, self._clock.time_ms())
            if await self._files.create(self._epoch(run), manifest.encode(epoch)):
                return run
            run += 1

    async def _note_what_is_there(self, scanned: Sequence[Found]) -> None:
        """A process that was paused amid `complete`, and lost its lease meanwhile, may publish a manifest yet. It finds
        out then, and commits nothing; we, having gone on from the one before, abort what that manifest promises. So
        no later run may find it."""
        there = [found.place for found in scanned if found.complete or found.receipt]
        last = Reference(path=max(there).folder) if there else Reference()
        path = self._folder.path(f"{layout.run_folder(self.run)}/{layout.AFTER}")
        await self._files.create(path, manifest.encode(last))

    def _epoch(self, run: int) -> str:
        return self._folder.path(f"{layout.run_folder(run)}/{layout.EPOCH}")

    async def ensure_owner(self) -> None:
        """Raises FencedOff if a newer run has begun, or the lock is lost. To be asked before anything that is visible
        outside: completing a checkpoint does it by itself."""
        if self._lock is None:
            raise FencedOff(f"run {self.run} of flow {self.flow!r} has closed its storage")
        for run in await self._folder.numbers("", "run"):
            if run > self.run and await self._files.stat(self._epoch(run)) is not None:
                raise FencedOff(
                    f"run {self.run} of flow {self.flow!r} was fenced off: run {run} ({await self._owner_of(run)}) has "
                    f"taken over {self._files.uri_of(self._folder.root)}. This process completes no checkpoint and "
                    "commits nothing any more; stop it, unless the other one should not be running."
                )
        if not await self._lock.held():
            raise FencedOff(
                f"run {self.run} of flow {self.flow!r} lost its lock: {layout.OWNER_LOCK} in "
                f"{self._files.uri_of(self._folder.root)} was deleted or replaced. Restart the job."
            )

    async def _owner_of(self, run: int) -> str:
        try:
            epoch = manifest.decode(await self._files.read(self._epoch(run)), Epoch, self._epoch(run))
        except CorruptCheckpoint:
            return "its owner can't be read"
        return epoch.owner

    # -------------------------------------------------------------------------------------------------------- attempts
    @property
    def attempt(self) -> int:
        """The attempt begun last, 0 before the first."""
        return self._attempt

    @property
    def widest(self) -> Mapping[str, int]:
        """The widest parallelism by uid that any attempt of any run has begun with."""
        return MappingProxyType(self._widest)

    async def begin_attempt(self, widest: Mapping[str, int], restored: Restorable | None = None) -> int:
        """The next attempt's number. When it returns, `widest` (parallelism by uid) is durable; what an earlier attempt
        of this process still had in flight is aborted. Its checkpoints build on the files of `restored`, if that is
        ours."""
        await self.ensure_owner()
        await self._drop_writers()
        self._registry.go_on_from(restored.manifest if restored is not None and await self.owns(restored) else None)
        self._savepoints.clear()  # what an earlier attempt prepared for them, fencing may have aborted
        merged = {uid: max(self._widest.get(uid, 0), widest.get(uid, 0)) for uid in {**self._widest, **widest}}
        attempt = self._attempt + 1
        folder = self._folder.path(layout.attempt_folder(self.run, attempt))
        await self._files.make_folder(folder)
        await self._files.replace(f"{folder}/{layout.WIDEST}", manifest.encode(Widest(merged)))
        self._attempt, self._widest = attempt, merged
        return attempt

    async def owns(self, restored: Restorable) -> bool:
        """Whether it lies in this flow's folder, and may be built on."""
        path = self._inside(restored.uri)
        if path is None or restored.manifest.savepoint:
            return False
        return await self._files.stat(self._folder.path(f"{path}/{layout.UNCLAIMED}")) is None

    async def _read_widest(self) -> None:
        """Each record holds the maxima up to it; all are merged, since the last one may have been half deleted."""
        for run in await self._folder.numbers("", "run"):
            for attempt in await self._folder.numbers(layout.run_folder(run), "attempt"):
                self._merge_widest(await self._read_widest_record(run, attempt))

    def _merge_widest(self, widest: Mapping[str, int]) -> None:
        for uid, parallelism in widest.items():
            self._widest[uid] = max(parallelism, self._widest.get(uid, 0))

    async def _read_widest_record(self, run: int, attempt: int) -> Mapping[str, int]:
        """Empty if there is none."""
        path = f"{layout.attempt_folder(run, attempt)}/{layout.WIDEST}"
        try:
            data = await self._folder.read_if_there(path)
            if data is None:
                return {}
            return manifest.decode(data, Widest, self._files.uri_of(self._folder.path(path))).parallelism
        except CorruptCheckpoint as error:
            raise CorruptCheckpoint(
                f"{error}. It tells which transactions of sinks may still be open. If no sink ever ran at a higher "
                "parallelism than now, delete that file and start again."
            ) from error

    # ------------------------------------------------------------------------------------------------------------- ids
    def next_checkpoint_id(self) -> int:
        """Above every id ever used here; counts on with each call. Ids that a coordinator counts on by itself become
        known by `writer`."""
        self._last_id += 1
        return self._last_id

    async def _read_ids(self, scanned: Sequence[Found]) -> None:
        names = [entry.name for entry in await self._files.list(self._folder.root)]
        self._used = max((found for name in names if (found := layout.number("used", name))), default=0)
        self._last_id = max([self._used, *(found.place.checkpoint for found in scanned)])

    async def _mark_used(self, checkpoint: int) -> None:
        """Durably, before the last trace of an id goes. A name can't be half written: the mark is an empty file."""
        if checkpoint <= self._used:
            return
        await self._files.create(self._folder.path(layout.used(checkpoint)), b"")
        before, self._used = self._used, checkpoint
        if before:
            await self._files.delete(self._folder.path(layout.used(before)))

    # --------------------------------------------------------------------------------------------------------- writing
    async def check_savepoint(self, savepoint: str) -> Files:
        """Raises InvalidConfig where a savepoint could not lie."""
        files = self._files.at(savepoint)
        if await files.list(""):
            raise _not_empty(files)
        return files

    async def writer(self, checkpoint: int, *, savepoint: str | None = None) -> CheckpointWriter:
        """Begin a checkpoint, or a savepoint in the new or empty folder `savepoint`. When it returns, the id is
        durable: await it before the first barrier goes out."""
        if not self._attempt:
            raise ValueError("begin_attempt comes first")
        self._last_id = max(self._last_id, checkpoint)
        self._begun = max(self._begun, checkpoint)
        place = Place(self.run, self._attempt, checkpoint)
        if savepoint is None:
            folder = self._folder.path(place.folder)
            root = f"{self._folder.root}/"
            writer = CheckpointWriter(place, self._files, folder, root, self.abort, self._clock, self._registry.take)
        else:
            files = await self.check_savepoint(savepoint)
            await self._mark_used(checkpoint)
            await self._take_folder(files)
            writer = CheckpointWriter(place, files, "", "", self.abort, self._clock)
        self._writers[checkpoint] = writer
        try:
            await writer.files.make_folder(writer.folder)
        except BaseException:
            await self.abort(checkpoint)
            raise
        return writer

    async def _take_folder(self, files: Files) -> None:
        """For a savepoint: two that are begun at the same time may both have found it empty."""
        await files.make_folder("")
        mark = manifest.encode(Epoch(self.run, self._owner, self._clock.time_ms()))
        if not await files.create(layout.BEING_WRITTEN, mark):
            raise InvalidConfig(f"savepoint {files.uri}: another one is being written there. Name a new folder.")
        if [entry.name for entry in await files.list("")] != [layout.BEING_WRITTEN]:
            await files.delete(layout.BEING_WRITTEN)
            raise _not_empty(files)

    @property
    def in_flight(self) -> Collection[int]:
        """The checkpoints begun and neither complete nor aborted."""
        return tuple(self._writers)

    async def abort(self, checkpoint: int) -> None:
        """Give a checkpoint up: end its writes, refuse later ones, delete its files. No matter if it is not in flight;
        one that `complete` is busy with is left to it. What can't be deleted is left to `retire`."""
        writer = self._writers.get(checkpoint)
        if writer is None or not writer.can_abort:
            return
        try:
            await writer.stop()
            await self._discard(writer)
        except (StorageFailed, FencedOff) as error:
            log.warning("files of aborted checkpoint %d are left behind: %s", checkpoint, error)
        finally:
            self._writers.pop(checkpoint, None)
            self._registry.aborted(checkpoint)

    async def _discard(self, writer: CheckpointWriter) -> None:
        if await writer.files.stat(writer.path(layout.MANIFEST)) is not None:
            await self._withdraw(writer)
        # The folder stays until the id is remembered otherwise, for which a full disk may need the room.
        await writer.files.delete_tree(writer.folder, keep_folder=True)
        await self._mark_used(writer.checkpoint)
        await writer.files.delete_tree(writer.folder)

    async def _withdraw(self, writer: CheckpointWriter) -> None:
        """Make a checkpoint incomplete that `complete` published before it failed. Not if a newer run has begun: it may
        be restoring this very one."""
        await self.ensure_owner()
        if writer.savepoint:
            await self._files.delete(self._folder.path(f"{writer.place.folder}/{layout.SAVEPOINT}"))
        await writer.files.delete(writer.path(layout.MANIFEST))

    async def _drop_writers(self) -> None:
        async with self._publishing:
            for checkpoint in list(self._writers):
                await self.abort(checkpoint)

    async def complete(self, content: Manifest) -> Restorable:
        """Make a checkpoint complete; its files are all written. Sinks may be notified once it has returned. If it is
        cancelled or fails, the checkpoint may be complete nevertheless, until it is aborted.

        Raises FencedOff if this process is no longer the owner, CheckpointFailed if the checkpoint is not in flight.
        """
        async with self._publishing:
            writer = self._writers.get(content.checkpoint)
            if writer is None:
                raise CheckpointFailed(f"checkpoint {content.checkpoint} was aborted")
            self._check_own(content, writer)
            complete = False
            writer.begin_completing()
            try:
                await self._publish(content, writer)
                complete = True
            finally:
                writer.end_completing(complete=complete)
            del self._writers[content.checkpoint]
            if not writer.savepoint:
                self._registry.completed(writer.place, content)
        return Restorable(content, writer.files, writer.folder)

    def _check_own(self, content: Manifest, writer: CheckpointWriter) -> None:
        own = (self.flow, self.run, self._attempt, writer.savepoint)
        if (content.flow, content.run, content.attempt, content.savepoint) != own:
            raise ValueError(f"a manifest of {own} was expected, not {content}")

    async def _publish(self, content: Manifest, writer: CheckpointWriter) -> None:
        data = manifest.encode_manifest(content)
        await self.ensure_owner()
        await writer.files.sync_folder(writer.folder)
        path = writer.path(layout.MANIFEST)
        if not await writer.files.create(path, data):
            raise StorageFailed(f"{writer.files.uri_of(path)} exists already: what else writes there?")
        # Again: a newer run that has begun meanwhile may have seen this manifest, and then commits in our place.
        await self.ensure_owner()
        if writer.savepoint:
            await self._note_savepoint(content, writer)
            await self._unmark(writer.files)

    async def _unmark(self, files: Files) -> None:
        try:
            await files.delete(layout.BEING_WRITTEN)
        except StorageFailed as error:
            log.warning("savepoint %s is complete; %s may be deleted: %s", files.uri, layout.BEING_WRITTEN, error)

    async def _note_savepoint(self, content: Manifest, writer: CheckpointWriter) -> None:
        """A savepoint that ends the job commits: "latest" must not mean the checkpoint before it."""
        if content.transactional:
            self._savepoints[content.checkpoint] = writer.files
        if content.final:
            folder = self._folder.path(writer.place.folder)
            await self._files.make_folder(folder)
            await self._files.replace(f"{folder}/{layout.SAVEPOINT}", manifest.encode(Reference(uri=writer.uri)))

    # -------------------------------------------------------------------------------------------------------- receipts
    async def write_receipt(self, checkpoint: int | Restorable) -> None:
        """Record durably that all sink transactions up to a complete checkpoint are committed: one of this run by its
        id, or the one that was restored. No matter if it has been deleted since."""
        await self.ensure_owner()
        if isinstance(checkpoint, Restorable):
            path = self._inside(checkpoint.receipt)
            base = f"{layout.run_folder(self.run)}/{layout.BASE_RECEIPT}"
            await self._write_receipt(self._files, self._folder.path(path or base), checkpoint.manifest.checkpoint)
            return
        covered = [number for number in self._savepoints if number <= checkpoint]
        for number, files in [(number, self._savepoints.pop(number)) for number in covered]:
            await self._write_savepoint_receipt(files, number, needed=number == checkpoint)
        for found in await self._folder.scan(self.run):
            if found.place.checkpoint == checkpoint:
                path = self._folder.path(f"{found.place.folder}/{layout.RECEIPT}")
                try:
                    await self._write_receipt(self._files, path, checkpoint)
                except StorageFailed:
                    # Retirement takes the manifest first: what is left of the folder needs no receipt.
                    if (await self._folder.look(found.place)).complete:
                        raise

    def _inside(self, uri: str) -> str | None:
        """The path in this flow's folder. What lies elsewhere may be somebody else's, or read-only."""
        inside = self._files.uri_of(self._folder.root) + "/"
        return uri.removeprefix(inside) if uri.startswith(inside) else None

    async def _write_receipt(self, files: Files, path: str, checkpoint: int) -> None:
        folder = path.rpartition("/")[0]
        try:
            await files.create(path, manifest.encode(Receipt(checkpoint, self._clock.time_ms())))
        except StorageFailed:
            if await files.stat(folder) is not None:
                raise

    async def _write_savepoint_receipt(self, files: Files, savepoint: int, *, needed: bool) -> None:
        """What was prepared for an earlier savepoint is committed too: whoever restores it has nothing to send. Its
        folder is the user's, though, and may refuse by now: that must not fail the job."""
        try:
            await self._write_receipt(files, layout.RECEIPT, savepoint)
        except StorageFailed as error:
            if needed:
                raise
            log.warning("savepoint %s could not be marked as committed: %s", files.uri, error)

    async def has_receipt(self, run: int, checkpoint: int) -> bool:
        """Whether all sink transactions up to that checkpoint of this folder are known to be committed."""
        return await self._folder.has_receipt(run, checkpoint)

    # ------------------------------------------------------------------------------------------------------- restoring
    async def holds_checkpoints(self) -> bool:
        """Whether a start from nothing would leave checkpoints of this flow behind."""
        return any(found.complete for found in await self._folder.scan_all())

    async def record_base(self, base: Restorable | None, *, claim: bool = False) -> None:
        """Note durably what the user told this run to start from, None being afresh: a restart before the first
        checkpoint returns there. Not for "latest", which is found by itself. `claim`: it belongs to this flow from now
        on, and is deleted like any checkpoint of its own once there are enough later ones; else it never is."""
        await self.ensure_owner()
        if base is not None and (path := self._inside(base.uri)) is not None:
            await self._mark_unclaimed(path, unclaimed=not claim)
        await self._record_base(self.run, self._reference(base, claim))

    async def _record_base(self, run: int, base: Reference) -> None:
        path = self._folder.path(f"{layout.run_folder(run)}/{layout.BASE}")
        await self._files.replace(path, manifest.encode(base))
        self._bases[run] = base

    async def _mark_unclaimed(self, folder: str, *, unclaimed: bool) -> None:
        """In its own folder, so that runs to come know it too."""
        mark = self._folder.path(f"{folder}/{layout.UNCLAIMED}")
        if unclaimed:
            await self._files.create(mark, b"")
        else:
            await self._files.delete(mark)

    def _reference(self, base: Restorable | None, claim: bool) -> Reference:
        if base is None:
            return Reference()
        path = self._inside(base.uri)
        return Reference(uri=base.uri, claimed=claim) if path is None else Reference(path=path, claimed=claim)

    async def latest(self, *, verify: Verify = "sizes") -> Restorable | None:
        """See `FlowFolder.latest`. What an earlier attempt of this process gave its name, and no more, is made durable
        first: whoever asks builds on it. A receipt may lie in the run of what was restored."""
        await self._settle()
        return self._known(await self._folder.latest(verify, self._damaged))

    async def load(self, uri: str, *, verify: Verify = "sizes") -> Restorable:
        """See `restorable.load`."""
        restorable = await load(self._files, uri, flow=self.flow, verify=verify)
        self._known(restorable)
        return restorable

    def _known(self, restorable: Restorable | None) -> Restorable | None:
        """Sinks commit "all up to n", so that ids must go on from what was restored."""
        if restorable is not None:
            self._last_id = max(self._last_id, restorable.manifest.checkpoint)
        return restorable

    async def verify(self, restorable: Restorable, *, verify: Verify = "digests") -> None:
        """Raises CorruptCheckpoint; then ask `fall_back`."""
        await restorable.verify(verify)

    async def fall_back(
        self, damaged: Restorable, reason: CorruptCheckpoint, *, verify: Verify = "sizes"
    ) -> Restorable:
        """The latest but those found damaged; raises as `latest` does, and `reason` where the user named this one."""
        if damaged.explicit:
            raise reason
        self._damaged[damaged.uri] = reason
        restorable = await self.latest(verify=verify)
        if restorable is None:
            raise reason
        return restorable

    async def read_blocks(self, restorable: Restorable, handle: KeyedHandle, blocks: Sequence[BlockRef]) -> list[bytes]:
        """The bytes of some blocks, verified. Raises CorruptCheckpoint."""
        return await restorable.read_blocks(handle, blocks)

    # ------------------------------------------------------------------------------------------------------- retention
    async def retire(self, keep: Collection[int] = (), *, retain: int = 1) -> None:
        """Delete complete checkpoints but those in `keep` and the latest `retain` (at least 1; no damaged ones),
        and what is left of incomplete ones; but no file that what stays refers to. Never deletes a savepoint, what a
        job was started from without claiming it, or what is in flight; and nothing complete before this run has
        completed one of its own. What can't be deleted is logged, and tried again the next time."""
        in_flight = set(self._writers)
        begun = self._begun
        await self.ensure_owner()
        scanned = [found for found in await self._folder.scan_all() if found.place.run <= self.run]
        # What is in flight may have its manifest already, and be withdrawn yet: it neither goes nor lets others go.
        in_flight.update(self._writers)
        settled = [found for found in scanned if found.place.checkpoint not in in_flight]
        kept = self._kept(settled, set(keep), max(retain, 1))
        places = {found.place for found in kept}
        doomed = [
            found
            for found in settled
            if found.place not in places
            and (found.place < Place(self.run, self._attempt, 0) or found.place.checkpoint <= begun)
        ]
        try:
            await self._learn(kept)
            self._registry.forget([found.place for found in doomed])
            in_use = self._registry.in_use()
            await self._mark_if_last(doomed, places)
            await delete_all(self._folder, list(reversed(doomed)), in_use)
            await self._delete_empty(places, in_use)
            await self._delete_claimed(kept, max(retain, 1))
        except (StorageFailed, CorruptCheckpoint, IncompatibleState) as error:
            log.warning("old checkpoints of flow %r are left for later: %s", self.flow, error)

    def _kept(self, scanned: Sequence[Found], keep: Collection[int], retain: int) -> list[Found]:
        complete = [found for found in scanned if found.complete and self._folder.uri(found.place) not in self._damaged]
        if not any(found.place.run == self.run for found in complete):
            return complete
        bases = {base.path for run, base in self._bases.items() if not _superseded(run, complete, retain)}
        latest = {found.place for found in complete[:retain]}
        return [
            found
            for found in complete
            if found.place in latest or found.place.checkpoint in keep or found.unclaimed or found.place.folder in bases
        ]

    async def _learn(self, kept: Sequence[Found]) -> None:
        """What those refer to that earlier processes took. One that can't be read may refer to anything, unless it says
        at least that it does not; then nothing goes as long as it stays."""
        for found in kept:
            if found.manifest and not self._registry.knows(found.place):
                file = self._folder.path(f"{found.place.folder}/{layout.MANIFEST}")
                data = await self._files.read(file)
                if manifest.is_incremental(data) is not False:
                    content = manifest.decode_manifest(data, self._files.uri_of(file))
                    self._registry.found(found.place, content)

    async def _mark_if_last(self, doomed: Sequence[Found], kept: Collection[Place]) -> None:
        highest = max((found.place.checkpoint for found in doomed), default=0)
        if highest > max((place.checkpoint for place in kept), default=0):
            await self._mark_used(highest)

    async def _delete_empty(self, kept: Collection[Place], in_use: Collection[str]) -> None:
        """Folders of earlier runs and attempts in which nothing is kept. This attempt's `widest` includes theirs, and a
        base matters only to runs without a complete checkpoint."""
        if not self._attempt or not any(place.run == self.run for place in kept):
            return
        places = {*kept, *(place for path in in_use if (place := layout.place_of(path)) is not None)}
        needed = {place.run for place in places} | {run for run, base in self._bases.items() if base.claimed}
        for run in await self._folder.numbers("", "run"):
            if run < self.run and run not in needed:
                self._bases.pop(run, None)
                await self._files.delete_tree(self._folder.path(layout.run_folder(run)))
        occupied = {place.attempt for place in places if place.run == self.run}
        for attempt in await self._folder.numbers(layout.run_folder(self.run), "attempt"):
            if attempt < self._attempt and attempt not in occupied:
                await self._files.delete_tree(self._folder.path(layout.attempt_folder(self.run, attempt)))

    async def _delete_claimed(self, complete: Sequence[Found], retain: int) -> None:
        """What runs were started from and claimed, once there are `retain` later checkpoints."""
        for run, base in list(self._bases.items()):
            if base.claimed and _superseded(run, complete, retain):
                if base.uri is not None:
                    await delete_claimed(self._files, base.uri, self._owner)
                # What may lie there later is not ours.
                await self._record_base(run, msgspec.structs.replace(base, claimed=False))


def _not_empty(savepoint: Files) -> InvalidConfig:
    return InvalidConfig(f"savepoint {savepoint.uri}: the folder is not empty. Name a new one.")


def _superseded(run: int, complete: Sequence[Found], retain: int) -> bool:
    """Whether what a run was started from is not needed any more."""
    return sum(found.place.run >= run for found in complete) >= retain
