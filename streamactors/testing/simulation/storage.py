"""The disk of the simulated machine, as one process sees it: slow at times, failing at times, gone with the process.

It also watches over manifests: a checkpoint is complete as soon as its manifest has its name, so everything that it
refers to must be durable by then.
"""

import errno
import hashlib
from collections.abc import Callable
from posixpath import basename, dirname, join
from typing import Final

from streamactors.checkpoint import layout, manifest
from streamactors.checkpoint.manifest import FileHandle, Manifest
from streamactors.checkpoint.storage.contract import DIGEST_SIZE
from streamactors.testing.simulation.disk import File, Folder, VolatileDisk
from streamactors.testing.simulation.faults import MARK
from streamactors.testing.simulation.process import Process

STALL_SECONDS: Final = 15.0
"""Longer than a job waits for a subtask to end."""
UNDONE: Final = frozenset({"link", "rename", "unlink", "make_folder", "sync_folder"})
"""Operations that may fail after they have taken effect, as on a network folder whose answer was lost."""


Published = Callable[[Manifest, str, dict[str, int], list[str]], None]


class SimulatedDisk(VolatileDisk):
    """`published` is told of every manifest, where it lies, which process has written each of its own files, and of
    what is wrong with it (empty: nothing)."""

    def __init__(self, root: Folder, process: Process, published: Published) -> None:
        super().__init__(root)
        self._process = process
        self._published = published
        self._failing: str | None = None

    async def step(self, operation: str, path: str) -> None:
        process = self._process
        await process.pause()
        process.note(f"disk {operation} {path}")
        await process.linger("slow_storage", STALL_SECONDS)
        if process.fate.strikes("storage_failures"):
            after = operation in UNDONE and process.chosen(2) == 1
            process.note(f"storage fails {'after' if after else 'before'} {operation}")
            if not after:
                raise _failure()
            self._failing = path

    def _fail_after(self, path: str) -> None:
        if self._failing == path:
            self._failing = None
            raise _failure()

    async def link(self, source: str, target: str) -> None:
        await super().link(source, target)
        self._look_at(target)
        self._fail_after(target)

    async def rename(self, source: str, target: str) -> None:
        await super().rename(source, target)
        self._look_at(target)
        self._fail_after(target)

    async def unlink(self, path: str) -> None:
        await super().unlink(path)
        self._fail_after(path)

    async def make_folder(self, path: str) -> None:
        await super().make_folder(path)
        self._fail_after(path)

    async def sync_folder(self, path: str) -> None:
        await super().sync_folder(path)
        self._fail_after(path)

    def _look_at(self, path: str) -> None:
        if basename(path) != layout.MANIFEST:
            return
        file = self.find(path)
        assert isinstance(file, File)
        content = manifest.decode_manifest(bytes(file.content), path)
        problems = [] if file.durable == bytes(file.content) else [f"{path} has its name before its bytes are durable"]
        place = layout.split_checkpoint(dirname(path))
        root = place[0] if place is not None and not content.savepoint else dirname(path)
        problems += [problem for handle in content.files for problem in self._problems(join(root, handle.path), handle)]
        writers = {handle.path: self._writer_of(join(root, handle.path)) for handle in content.own_files}
        self._published(content, path, writers, problems)

    def add(self, path: str, node: File | Folder) -> None:
        super().add(path, node)
        if isinstance(node, File):
            node.writer = node.writer or self._process.number

    def _writer_of(self, path: str) -> int:
        file = self.find(path)
        return file.writer if isinstance(file, File) else 0

    def _problems(self, path: str, handle: FileHandle) -> list[str]:
        file = self.find(path)
        if not isinstance(file, File):
            return [f"the manifest names {path}, which is not there"]
        if self.folder(dirname(path)).durable.get(basename(path)) is not file:
            return [f"the manifest was published before the name of {path} was durable"]
        if hashlib.blake2b(file.durable, digest_size=DIGEST_SIZE).digest() != handle.digest:
            return [f"the manifest was published before the bytes of {path} were durable"]
        return []


def _failure() -> OSError:
    return OSError(errno.EIO, f"{MARK}: Input/output error")
