"""The reading side of a store: which checkpoint of a flow to go on from, and its files, verified. Needs no ownership.

Invariants:
1. What is restored was complete: it has a manifest, and every byte that is read from it is verified.
2. "Latest" goes by (run, id) and never behind the base that a run was told to start from.
3. Nothing is skipped silently, and nothing at all where skipping could double output: see `FlowFolder.latest`.
4. A checkpoint may refer to files in the folders of earlier ones (see `registry`), which is why it can't be moved by
   itself. A savepoint can: it is complete in its folder.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from streamactors.checkpoint import layout, manifest
from streamactors.checkpoint.layout import Place
from streamactors.checkpoint.manifest import (
    BlockRef,
    FileHandle,
    FrameRef,
    InFlightHandle,
    KeyedHandle,
    ListRef,
    ListsHandle,
    Manifest,
    Reference,
)
from streamactors.checkpoint.storage.contract import Files
from streamactors.checkpoint.storage.opening import open_files
from streamactors.checkpoint.storage.uris import normalise_uri
from streamactors.clock import SYSTEM, Clock
from streamactors.errors import CorruptCheckpoint, IncompatibleState, InvalidConfig, TransactionAlreadyCommitted

log = logging.getLogger(__name__)

Verify = Literal["manifest", "sizes", "digests"]
"""How much of a checkpoint is checked: its manifest, also that its state files are there with the right size, or also
their every byte."""


class Restorable:
    """A complete checkpoint or savepoint. `committed`: a receipt says that all its sink transactions are committed.
    `receipt`: the URI where one belongs. `explicit`: it was named by the user, so nothing may take its place."""

    def __init__(
        self, manifest: Manifest, files: Files, folder: str, *, committed: bool = False, explicit: bool = False
    ) -> None:
        self.manifest = manifest
        self.files = files
        self.folder = folder
        self.committed = committed
        self.explicit = explicit
        self.receipt = files.uri_of(_join(folder, layout.RECEIPT))
        self._verified: set[str] = set()
        self._verifying: dict[str, asyncio.Lock] = {}

    def __repr__(self) -> str:
        return f"<Restorable {self.uri}>"

    @property
    def uri(self) -> str:
        return self.files.uri_of(self.folder)

    def path(self, handle: FileHandle) -> str:
        """Relative to `files`. Handles of a checkpoint are relative to the flow's folder; but one that was copied out
        of it still finds its own files."""
        place = Place(self.manifest.run, self.manifest.attempt, self.manifest.checkpoint).folder
        if not self.manifest.savepoint and f"/{self.folder}".endswith(f"/{place}"):
            return _join(self.folder.removesuffix(place).rstrip("/"), handle.path)
        return _join(self.folder, handle.path.removeprefix(f"{place}/"))

    async def verify(self, depth: Verify = "sizes") -> None:
        """Raises CorruptCheckpoint, naming the first file that is not as it was written."""
        if depth == "manifest":
            return
        for handle in self.manifest.files:
            await self.verify_size(handle)
        if depth == "digests":
            for handle in self.manifest.files:
                await self.verify_digest(handle)

    async def verify_size(self, handle: FileHandle) -> None:
        """Raises CorruptCheckpoint."""
        path = self.path(handle)
        found = await self.files.stat(path)
        if found is None or found.folder:
            why = self._why_missing(handle)
            raise CorruptCheckpoint(f"{self.files.uri_of(path)} is missing: expected {handle.size} bytes{why}")
        manifest.verify_size(handle, found.size, self.files.uri_of(path))

    def _why_missing(self, handle: FileHandle) -> str:
        own = Place(self.manifest.run, self.manifest.attempt, self.manifest.checkpoint)
        written_for = layout.place_of(handle.path)
        if self.manifest.savepoint or written_for in (None, own):
            return ""
        assert written_for is not None
        return (
            f". Checkpoint {own.checkpoint} is incremental: it uses files that were written for checkpoint "
            f"{written_for.checkpoint}, and lie in that one's folder. Keep the flow's folder as a whole; what can be "
            "moved by itself is a savepoint"
        )

    async def verify_digest(self, handle: FileHandle) -> None:
        """Once per file: subtasks that read parts of the same one wait for the first."""
        path = self.path(handle)
        async with self._verifying.setdefault(path, asyncio.Lock()):
            if path not in self._verified:
                manifest.verify(handle, await self.files.digest(path), self.files.uri_of(path))
                self._verified.add(path)

    async def read_blocks(self, handle: KeyedHandle, blocks: Sequence[BlockRef]) -> list[bytes]:
        """The bytes of some of a file's blocks; the whole file is verified first. Raises CorruptCheckpoint."""
        return await self._read(handle.file, blocks)

    async def read_lists(self, handle: ListsHandle, blocks: Sequence[ListRef]) -> list[bytes]:
        """Likewise."""
        return await self._read(handle.file, blocks)

    async def read_frames(self, handle: InFlightHandle, frames: Sequence[FrameRef]) -> list[bytes]:
        """Likewise."""
        return await self._read(handle.file, frames)

    async def _read(self, file: FileHandle, parts: Sequence[BlockRef | ListRef | FrameRef]) -> list[bytes]:
        await self.verify_digest(file)
        return await self.files.read_ranges(
            self.path(file), [(file.start + part.offset, part.length) for part in parts]
        )


# ------------------------------------------------------------------------------------------------------ a flow's folder
@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint's folder: with a manifest, or a reference to the savepoint that it is; incomplete if neither.
    `names`: of its files."""

    place: Place
    names: frozenset[str]
    late: bool = False
    """It got its manifest from a process that was fenced off already, see `FlowFolder.by_run`."""

    @property
    def manifest(self) -> bool:
        return layout.MANIFEST in self.names

    @property
    def savepoint(self) -> bool:
        return layout.SAVEPOINT in self.names

    @property
    def receipt(self) -> bool:
        return layout.RECEIPT in self.names

    @property
    def unclaimed(self) -> bool:
        """Never to be deleted by a job."""
        return layout.UNCLAIMED in self.names

    @property
    def complete(self) -> bool:
        return (self.manifest or self.savepoint) and not self.late


@dataclass(frozen=True, slots=True)
class _Skipped:
    uri: str
    reason: CorruptCheckpoint
    transactional: bool


class FlowFolder:
    """One flow's folder, `root` in `files`. `flow`: whose checkpoints may lie there, None for anybody's."""

    def __init__(self, files: Files, root: str, flow: str | None = None) -> None:
        self.files = files
        self.root = root
        self._flow = flow
        self._known_after: dict[int, Place] = {}
        """By run: what `_after` has read, which is never changed."""

    def path(self, path: str) -> str:
        return _join(self.root, path)

    def uri(self, place: Place) -> str:
        return self.files.uri_of(self.path(place.folder))

    # -------------------------------------------------------------------------------------------------------- scanning
    async def numbers(self, folder: str, kind: str) -> list[int]:
        """Of the runs, attempts or checkpoints in a folder, the latest first."""
        names = [entry.name for entry in await self.files.list(self.path(folder))]
        return sorted((found for name in names if (found := layout.number(kind, name)) is not None), reverse=True)

    async def scan(self, run: int) -> list[Found]:
        """A run's checkpoints, the latest first."""
        places = [
            Place(run, attempt, checkpoint)
            for attempt in await self.numbers(layout.run_folder(run), "attempt")
            for checkpoint in await self.numbers(layout.attempt_folder(run, attempt), "chk")
        ]
        return [await self.look(place) for place in sorted(places, key=lambda place: -place.checkpoint)]

    async def look(self, place: Place) -> Found:
        return Found(place, frozenset([entry.name for entry in await self.files.list(self.path(place.folder))]))

    async def by_run(self) -> AsyncIterator[tuple[int, list[Found]]]:
        """Every run's, the latest first. What was not there when a later run began is `late`: that one went on without
        it, and has aborted its transactions."""
        last: Place | None = None
        for run in await self.numbers("", "run"):
            scanned = await self.scan(run)
            yield run, [replace(found, late=last is not None and found.place > last) for found in scanned]
            if (after := await self._after(run)) is not None:
                last = after if last is None else min(last, after)

    async def scan_all(self) -> list[Found]:
        """Every run's, the latest first."""
        return [found async for _, scanned in self.by_run() for found in scanned]

    async def _after(self, run: int) -> Place | None:
        """The last checkpoint there was when it began; None if that is not known."""
        if run > 1 and run not in self._known_after:  # nothing comes before the first
            path = f"{layout.run_folder(run)}/{layout.AFTER}"
            if (data := await self.read_if_there(path)) is None:
                return None  # not written yet, or retired with the whole run
            found = manifest.decode(data, Reference, self.files.uri_of(self.path(path))).path
            in_place = layout.split_checkpoint(found) if found else None
            self._known_after[run] = in_place[1] if in_place else layout.NOWHERE
        return self._known_after.get(run)

    async def has_receipt(self, run: int, checkpoint: int) -> bool:
        """Whether all sink transactions up to that checkpoint of the run are known to be committed."""
        return any(found.receipt and found.place.checkpoint >= checkpoint for found in await self.scan(run))

    # --------------------------------------------------------------------------------------------------------- reading
    async def read_if_there(self, path: str) -> bytes | None:
        """A whole file; None if there is none."""
        path = self.path(path)
        try:
            return await self.files.read(path)
        except CorruptCheckpoint:
            if await self.files.stat(path) is not None:
                raise
            return None

    async def open(self, place: Place, *, explicit: bool = False) -> Restorable:
        found = await self.look(place)
        if found.savepoint:
            return await self._open_savepoint(place)
        file = self.path(f"{place.folder}/{layout.MANIFEST}")
        content = manifest.decode_manifest(await self.files.read(file), self.files.uri_of(file))
        if self._flow is not None and content.flow != self._flow:
            raise IncompatibleState(
                f"{self.files.uri_of(file)} belongs to flow {content.flow!r}, not to {self._flow!r}: "
                "give each flow a storage of its own, or names that differ by more than case."
            )
        committed = await self.has_receipt(place.run, place.checkpoint)
        return Restorable(content, self.files, self.path(place.folder), committed=committed, explicit=explicit)

    async def _open_savepoint(self, place: Place) -> Restorable:
        """The savepoint that ended a job: it committed, so nothing before it may be gone on from."""
        path = self.path(f"{place.folder}/{layout.SAVEPOINT}")
        reference = manifest.decode(await self.files.read(path), Reference, self.files.uri_of(path))
        try:
            restorable = await load(self.files, reference.uri or "", explicit=False)
        except InvalidConfig as error:
            raise CorruptCheckpoint(
                f"checkpoint {place.checkpoint} is the savepoint {reference.uri}, which is not there any more: {error}"
            ) from error
        restorable.receipt = self.files.uri_of(self.path(f"{place.folder}/{layout.RECEIPT}"))
        restorable.committed = restorable.committed or await self.has_receipt(place.run, place.checkpoint)
        return restorable

    async def latest(
        self, verify: Verify = "sizes", damaged: Mapping[str, CorruptCheckpoint] | None = None
    ) -> Restorable | None:
        """The latest checkpoint, or the base of the latest run if that is later; None if there is nothing yet.

        A damaged one (`damaged` names more, by URI) is skipped with a warning if no transactional sink can have been
        notified of it. That is told from its manifest; if that is unreadable, from its header, from a receipt beside
        it, or from another manifest of its run; if none of them says, the worst is assumed. Raises
        TransactionAlreadyCommitted then, and CorruptCheckpoint if there is nothing to fall back to.
        """
        skipped: list[_Skipped] = []
        candidate = await self._best(verify, damaged or {}, skipped)
        if candidate is not None:
            _refuse_doubling(skipped, candidate)
        elif skipped:
            reasons = "; ".join(f"{skip.uri}: {skip.reason}" for skip in skipped)
            raise CorruptCheckpoint(
                f"no checkpoint in {self.files.uri_of(self.root)} can be restored ({reasons}). Restore a savepoint "
                "with restore=<its URI>, or begin anew with restore=None, fresh=True."
            )
        return candidate

    async def _best(
        self, verify: Verify, damaged: Mapping[str, CorruptCheckpoint], skipped: list[_Skipped]
    ) -> Restorable | None:
        async for run, scanned in self.by_run():
            # A receipt without a manifest: it was complete once, and is damaged.
            for found in (found for found in scanned if found.complete or found.receipt):
                try:
                    return await self._undamaged(found.place, verify, damaged)
                except CorruptCheckpoint as error:
                    log.warning("checkpoint %s is damaged and can't be restored: %s", self.uri(found.place), error)
                    transactional = await self._transactional(found, scanned)
                    skipped.append(_Skipped(self.uri(found.place), error, transactional))
            if (base := await self.base(run)) is not None:
                return await self.open_base(run, base)
        return None

    async def _undamaged(self, place: Place, verify: Verify, damaged: Mapping[str, CorruptCheckpoint]) -> Restorable:
        candidate = await self.open(place)
        if reason := damaged.get(candidate.uri):
            raise reason
        await candidate.verify(verify)
        return candidate

    async def _transactional(self, damaged: Found, run: Sequence[Found]) -> bool:
        """Whether a transactional sink can have been notified of the damaged checkpoint."""
        if damaged.receipt:
            return True
        for found in (damaged, *run):
            if found.manifest and (told := await self._told_by_header(found.place)) is not None:
                return told
        return True

    async def _told_by_header(self, place: Place) -> bool | None:
        try:
            return manifest.is_transactional(await self.files.read(self.path(f"{place.folder}/{layout.MANIFEST}")))
        except CorruptCheckpoint:
            return None

    # ------------------------------------------------------------------------------------------------------------ base
    async def base(self, run: int) -> Reference | None:
        """What the run was told to start from; None if it was told nothing."""
        path = f"{layout.run_folder(run)}/{layout.BASE}"
        data = await self.read_if_there(path)
        return None if data is None else manifest.decode(data, Reference, self.files.uri_of(self.path(path)))

    async def open_base(self, run: int, base: Reference) -> Restorable | None:
        """None: the run was told to begin afresh."""
        if base.uri is None and base.path is None:
            return None
        uri = base.uri or self.files.uri_of(self.path(base.path or ""))
        try:
            restorable = await load(self.files, uri)
        except InvalidConfig as error:
            raise CorruptCheckpoint(
                f"run {run} was told to start from {uri}, which is not there any more: {error}"
            ) from error
        if not restorable.uri.startswith(self.files.uri_of(self.root) + "/"):
            receipt = self.path(f"{layout.run_folder(run)}/{layout.BASE_RECEIPT}")
            restorable.receipt = self.files.uri_of(receipt)
            restorable.committed = restorable.committed or await self.files.stat(receipt) is not None
        return restorable


def _refuse_doubling(skipped: Sequence[_Skipped], candidate: Restorable) -> None:
    for skip in skipped:
        if skip.transactional:
            raise TransactionAlreadyCommitted(
                f"checkpoint {skip.uri} is damaged ({skip.reason}), and its sinks may have committed what they wrote "
                f"before it. Going back to {candidate.uri} would write that output a second time. Bring the damaged "
                f"file back from a copy; or accept doubled output by naming the older one: restore={candidate.uri!r}."
            )
    if skipped:
        log.warning(
            "falling back to checkpoint %s: what came after it is read and processed again. Damaged: %s",
            candidate.uri,
            ", ".join(skip.uri for skip in skipped),
        )


def _join(folder: str, path: str) -> str:
    return f"{folder}/{path}" if folder and path else folder or path


# ------------------------------------------------------------------------------------------------------- by any address
async def load(
    files: Files, uri: str, *, flow: str | None = None, verify: Verify = "sizes", explicit: bool = True
) -> Restorable:
    """What a user names: a checkpoint's or savepoint's folder or manifest; or the latest in a flow's folder; or that in
    a storage, of `flow` or of the only flow there. `files`: to read with, wherever rooted.

    Raises InvalidConfig if there is no such thing, CorruptCheckpoint if it is damaged.
    """
    uri = normalise_uri(uri).removesuffix(f"/{layout.MANIFEST}")
    if in_place := layout.split_checkpoint(uri):
        restorable = await _load_in_place(files, uri, *in_place)
    else:
        restorable = await _load_elsewhere(files.at(uri), flow, verify)
    restorable.explicit = explicit
    await restorable.verify(verify)
    return restorable


async def _load_in_place(files: Files, uri: str, root: str, place: Place) -> Restorable:
    folder = FlowFolder(files.at(root), "")
    if await folder.files.stat(place.folder) is None:
        raise InvalidConfig(f"there is no checkpoint {uri}. {_present(await folder.scan_all(), folder)}")
    if not (await folder.look(place)).complete:
        raise CorruptCheckpoint(
            f"{uri} has no manifest: expected {layout.MANIFEST}, found none. The checkpoint was never completed, or is "
            f"being deleted. {_present(await folder.scan_all(), folder)}"
        )
    return await folder.open(place)


def _present(scanned: Sequence[Found], folder: FlowFolder) -> str:
    complete = [folder.uri(found.place) for found in scanned if found.complete]
    return f"Complete checkpoints there: {', '.join(complete)}." if complete else "No complete checkpoint lies there."


async def _load_elsewhere(files: Files, flow: str | None, verify: Verify) -> Restorable:
    names = {entry.name for entry in await files.list("")}
    if layout.MANIFEST in names:
        content = manifest.decode_manifest(await files.read(layout.MANIFEST), files.uri_of(layout.MANIFEST))
        return Restorable(content, files, "", committed=layout.RECEIPT in names)
    folders = await flow_folders(files)
    wanted = layout.flow_folder(flow) if flow is not None else None
    chosen = [folder for folder in folders if folder.root == wanted] or folders
    if len(chosen) > 1:
        raise InvalidConfig(
            f"{files.uri} holds checkpoints of several flows ({', '.join(folder.root for folder in chosen)}): "
            "name one flow's folder."
        )
    restorable = await chosen[0].latest(verify) if chosen else None
    if restorable is None:
        there = "holds no complete checkpoint" if await files.stat("") is not None else "does not exist"
        raise InvalidConfig(
            f"{files.uri} {there}. Name the folder of a checkpoint (…/chk-7), of a savepoint, or of a flow."
        )
    return restorable


async def flow_folders(files: Files) -> list[FlowFolder]:
    """The root itself if it is a flow's folder, else those in it."""
    entries = await files.list("")
    if any(layout.number("run", entry.name) for entry in entries):
        return [FlowFolder(files, "")]
    inside = [FlowFolder(files, entry.name) for entry in entries if entry.folder]
    return [folder for folder in inside if await folder.numbers("", "run")]


@dataclass(frozen=True, slots=True)
class CheckpointSummary:
    """A checkpoint as `list_checkpoints` finds it. `manifest` is None, and `problem` says why, if it is incomplete or
    damaged."""

    uri: str
    run: int
    attempt: int
    checkpoint: int
    committed: bool
    manifest: Manifest | None
    problem: str | None


async def list_checkpoints(uri: str, *, clock: Clock = SYSTEM, files: Files | None = None) -> list[CheckpointSummary]:
    """All checkpoints in a storage or a flow's folder, complete or not, by flow, the latest first. Takes no ownership:
    what a live job deletes meanwhile is left out."""
    if files is None:
        opened = open_files(uri, clock=clock)
        try:
            return await list_checkpoints(uri, clock=clock, files=opened)
        finally:
            await opened.close()
    files = files.at(uri)
    return [summary for folder in await flow_folders(files) for summary in await _summaries(folder)]


async def _summaries(folder: FlowFolder) -> list[CheckpointSummary]:
    """Without what is left of deleted checkpoints because others use it."""
    summaries = [(found, await _summary(folder, found)) for found in await folder.scan_all()]
    contents = [summary.manifest for _, summary in summaries if summary is not None and summary.manifest is not None]
    used = {layout.place_of(file.path) for content in contents for file in content.files}
    return [
        each
        for found, each in summaries
        if each is not None and (found.complete or found.late or found.place not in used)
    ]


async def _summary(folder: FlowFolder, found: Found) -> CheckpointSummary | None:
    place = found.place
    content, problem, committed = None, None, found.receipt
    try:
        restorable = await folder.open(place)
        content, committed = restorable.manifest, restorable.committed
    except (CorruptCheckpoint, IncompatibleState) as error:
        if await folder.files.stat(folder.path(place.folder)) is None:
            return None
        problem = str(error) if found.complete else "incomplete: it has no manifest"
    if found.late:
        problem = "late: a process completed it that had been fenced off"
    return CheckpointSummary(folder.uri(place), place.run, place.attempt, place.checkpoint, committed, content, problem)
