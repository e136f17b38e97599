"""The snapshot storage of one worker in one attempt: it writes and reads by itself, and asks the coordinator only which
files of earlier checkpoints may be used again.

Invariants. A file goes into the folder of the checkpoint that it is for, which the coordinator has made before any
barrier goes out, under a name that no other worker gives. Nothing is written for a checkpoint that has ended, nor once
the storage is closed, whoever asks: the writers are stopped, and no new one is made.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Final

from streamactors.checkpoint import layout
from streamactors.checkpoint.layout import Place
from streamactors.checkpoint.manifest import FileHandle, Manifest
from streamactors.checkpoint.restorable import Restorable
from streamactors.checkpoint.storage.contract import Files, Written
from streamactors.checkpoint.writer import CheckpointWriter
from streamactors.clock import Clock
from streamactors.cluster.failures import received as error_of
from streamactors.cluster.messages import MayReuse, RestoredFrom, Reused
from streamactors.cluster.wire import Epoch
from streamactors.elements import Barrier
from streamactors.errors import CheckpointFailed
from streamactors.runtime.snapshot_storage import StoredSnapshots

Ask = Callable[[Barrier, Sequence[Written]], Awaitable[list[FileHandle | None]]]
"""See `SnapshotStorage.reuse`."""
REMEMBERED: Final = 1000
"""Checkpoints. What is so much older than another one that has ended has ended, too."""


def restored_from(restored: Restorable) -> RestoredFrom:
    content = restored.manifest
    return RestoredFrom(
        restored.files.uri, restored.folder, content.run, content.attempt, content.checkpoint, content.savepoint
    )


def reopened(source: RestoredFrom, files: Files, flow: str) -> Restorable:
    """Enough of it to read its files."""
    content = Manifest(
        flow=flow,
        run=source.run,
        attempt=source.attempt,
        checkpoint=source.checkpoint,
        time_ms=0,
        operators=(),
        subtasks=(),
        savepoint=source.savepoint,
    )
    return Restorable(content, files.at(source.root), source.folder)


class WorkerSnapshots(StoredSnapshots):
    """`files` None: no checkpoints are taken. The caller closes them."""

    def __init__(
        self,
        restored: Restorable | None,
        clock: Clock,
        *,
        files: Files | None,
        flow: str,
        epoch: Epoch,
        worker: int,
        ask: Ask,
    ) -> None:
        super().__init__(restored, clock)
        self._files = files
        self._root = layout.flow_folder(flow) if files is not None else ""
        self._epoch = epoch
        self._worker = worker
        self._ask = ask
        self._ended: set[int] = set()
        self._newest = 0
        """Of those."""
        self._closed = False

    async def reuse(self, barrier: Barrier, contents: Sequence[Written]) -> list[FileHandle | None]:
        self._writer(barrier)
        if barrier.savepoint or not contents:  # it is complete in its folder
            return [None for _ in contents]
        return await self._ask(barrier, contents)

    def completed(self, checkpoint: int) -> None:
        """Nothing is added to it."""
        self._note_ended(checkpoint)
        self.writers.pop(checkpoint, None)

    async def settle(self, checkpoint: int) -> None:
        """Until nothing is written for it any more."""
        self._note_ended(checkpoint)
        writer = self.writers.pop(checkpoint, None)
        if writer is not None:
            await writer.stop()

    def _note_ended(self, checkpoint: int) -> None:
        self._ended.add(checkpoint)
        self._newest = max(self._newest, checkpoint)
        if len(self._ended) > 2 * REMEMBERED:
            self._ended = {ended for ended in self._ended if ended > self._newest - REMEMBERED}

    def _has_ended(self, checkpoint: int) -> bool:
        return checkpoint <= self._newest - REMEMBERED or checkpoint in self._ended

    async def close(self) -> None:
        self._closed = True
        for checkpoint in list(self.writers):
            await self.settle(checkpoint)

    def _writer(self, barrier: Barrier) -> CheckpointWriter:
        if self._closed or self._has_ended(barrier.checkpoint) or self._files is None:
            raise CheckpointFailed(f"checkpoint {barrier.checkpoint} is no longer in flight")
        writer = self.writers.get(barrier.checkpoint)
        if writer is None:
            writer = self.writers[barrier.checkpoint] = self._new_writer(barrier, self._files)
        return writer

    def _new_writer(self, barrier: Barrier, files: Files) -> CheckpointWriter:
        place = Place(self._epoch.run, self._epoch.attempt, barrier.checkpoint)
        folder, root = f"{self._root}/{place.folder}", f"{self._root}/"
        if barrier.target is not None:
            files, folder, root = files.at(barrier.target), "", ""
        return CheckpointWriter(place, files, folder, root, self.settle, self._clock, names=f"w{self._worker}-")


class ReuseQuestions:
    """What a worker has asked its coordinator about files, and has no answer to yet. See `Ask`."""

    def __init__(self, give: Callable[[MayReuse], None]) -> None:
        self._give = give
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[list[FileHandle | None]]] = {}

    async def __call__(self, barrier: Barrier, contents: Sequence[Written]) -> list[FileHandle | None]:
        number = next(self._numbers)
        answer: asyncio.Future[list[FileHandle | None]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        self._give(MayReuse(number, barrier, tuple(contents)))
        try:
            return await answer
        finally:
            del self._waiting[number]

    def answered(self, reused: Reused) -> None:
        answer = self._waiting.get(reused.number)
        if answer is None or answer.done():
            return
        if reused.error is not None:
            answer.set_exception(error_of(reused.error))
        else:
            answer.set_result(list(reused.files))
