"""A job that dies after any of its file operations, again and again: every value is visible exactly once in the end.

The job's own part is played here: what is complete, what a new attempt restores, how pending parts are dealt out.
"""

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.files import FileSink
from connectors.files.parts import PartFolder
from streamactors.formats import Text
from streamactors.sinks import Pending, SinkWriter
from streamactors.testing.connector_contract import sink_context, stored

pytestmark = pytest.mark.slow

VALUES = [f"value {number:02}" for number in range(24)]


class Killed(Exception):
    """Stands for SIGKILL, or for the power going off."""


class Machine:
    """Dies when so many operations are done; a dead one does nothing more. Knows what is on the disk for good."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.operations_left = -1
        self.operations = 0
        self._synced_sizes: dict[int, int] = {}
        self._synced_names: dict[str, int] = {}

    def step(self, operation: Callable[[], object]) -> None:
        if self.operations_left == 0:
            raise Killed
        operation()
        self.operations += 1
        self.operations_left -= 1
        if self.operations_left == 0:
            raise Killed

    def synced(self, descriptor: int) -> None:
        """Called for every fsync."""
        synced = os.fstat(descriptor)
        if stat.S_ISREG(synced.st_mode):
            self._synced_sizes[synced.st_ino] = synced.st_size
        elif os.path.samestat(synced, self.folder.stat()):
            self._synced_names = {name: (self.folder / name).stat().st_ino for name in os.listdir(self.folder)}

    def lose_power(self) -> None:
        """Whatever was not synced is gone: bytes, new names, renames, removals."""
        if not self.folder.exists():
            return
        written = {path.stat().st_ino: path.read_bytes() for path in self.folder.iterdir()}
        for path in self.folder.iterdir():
            path.unlink()
        for name, inode in self._synced_names.items():
            with (self.folder / name).open("xb") as file:
                file.write(written.get(inode, b"")[: self._synced_sizes.get(inode, 0)])
                file.flush()
                os.fsync(file.fileno())
        sync_folder(self.folder)


def sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sink_on(machine: Machine, roll_bytes: int) -> FileSink[str]:
    class MortalFolder(PartFolder):
        def make(self) -> None:
            machine.step(super().make)

        def create(self, hidden: str) -> BinaryIO:
            made: list[BinaryIO] = []
            try:
                machine.step(lambda: made.append(super(MortalFolder, self).create(hidden)))
            except Killed:
                for file in made:
                    file.close()
                raise
            return made[0]

        def append(self, file: BinaryIO, data: bytes) -> None:
            half = len(data) // 2
            for piece in (data[:half], data[half:]):
                machine.step(lambda piece=piece: super(MortalFolder, self).append(file, piece))  # type: ignore[misc]

        def seal(self, file: BinaryIO) -> None:
            machine.step(lambda: super(MortalFolder, self).seal(file))

        def sync(self, folder: str) -> None:
            machine.step(lambda: super(MortalFolder, self).sync(folder))

        def rename(self, source: str, target: str) -> None:
            machine.step(lambda: super(MortalFolder, self).rename(source, target))

        def delete(self, hidden: str) -> None:
            machine.step(lambda: super(MortalFolder, self).delete(hidden))

    sink = FileSink[str](str(machine.folder), value=Text(), roll_bytes=roll_bytes)
    sink.folder_type = MortalFolder  # type: ignore[misc]
    return sink


@dataclass
class Durable:
    """What a checkpoint storage would hold: the latest complete checkpoint, and its receipt."""

    position: int = 0
    checkpoint: int = 0
    pending: list[list[Pending]] = field(default_factory=list)
    receipt: bool = False


@dataclass
class Job:
    machine: Machine
    sink: FileSink[str]
    aborted: frozenset[int] = frozenset()
    """Checkpoints that never complete, though every subtask has prepared for them."""
    durable: Durable = field(default_factory=Durable)
    attempts: int = 0

    async def attempt(self, parallelism: int) -> None:
        """From the latest checkpoint to the end; Killed comes through."""
        self.attempts += 1
        writers = [
            self.sink.writer(sink_context(subtask=subtask, parallelism=parallelism, attempt=self.attempts))
            for subtask in range(parallelism)
        ]
        try:
            await self._run(writers)
        finally:
            for writer in writers:
                with contextlib.suppress(Killed):
                    await writer.close()

    async def _run(self, writers: Sequence[SinkWriter[str]]) -> None:
        restored, parallelism = self.durable, len(writers)
        for subtask, writer in enumerate(writers):
            dealt = [part for old in restored.pending[subtask::parallelism] for part in old]
            await writer.open(stored(dealt), committed=restored.receipt)
        position, checkpoint = restored.position, restored.checkpoint
        while position < len(VALUES):
            for writer in writers:
                await writer.write(VALUES[position : position + 2], None)
                position += 2
            checkpoint += 1
            prepared = [stored(await writer.prepare(checkpoint)) for writer in writers]
            if checkpoint not in self.aborted or position >= len(VALUES):
                await self._complete(writers, Durable(position, checkpoint, prepared))

    async def _complete(self, writers: Sequence[SinkWriter[str]], completed: Durable) -> None:
        def manifest() -> None:
            self.durable = completed

        def receipt() -> None:
            self.durable = Durable(completed.position, completed.checkpoint, completed.pending, receipt=True)

        self.machine.step(manifest)
        for writer in writers:
            await writer.commit(completed.checkpoint)
        self.machine.step(receipt)


async def live(job: Job, deaths: Sequence[int], parallelisms: Sequence[int], power: bool) -> None:
    """Attempt after attempt, each but the last dying after so many operations."""
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        job.machine.synced(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", watched)
        for number, operations in enumerate([*deaths, -1]):
            job.machine.operations_left = operations
            try:
                await job.attempt(parallelisms[number % len(parallelisms)])
            except Killed:
                if power:
                    job.machine.lose_power()
            else:
                return
    raise AssertionError("the last attempt died")


def check(machine: Machine) -> None:
    names = sorted(os.listdir(machine.folder))
    assert [name for name in names if name.startswith(".")] == []
    lines = [line for name in names for line in (machine.folder / name).read_text().splitlines()]
    assert sorted(lines) == VALUES


@pytest.fixture(scope="module")
def parent() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def fresh(parent: Path) -> Machine:
    shutil.rmtree(parent / "out", ignore_errors=True)
    return Machine(parent / "out")


@pytest.mark.parametrize("power", [False, True], ids=["process killed", "power lost"])
@pytest.mark.parametrize("parallelisms", [(1,), (2, 3)], ids=["one subtask", "rescaled"])
async def test_killed_after_each_operation(parent: Path, parallelisms: tuple[int, ...], power: bool) -> None:
    undisturbed = fresh(parent)
    await live(Job(undisturbed, sink_on(undisturbed, roll_bytes=20)), [], parallelisms, power)
    check(undisturbed)
    assert undisturbed.operations > 50
    for death in range(1, undisturbed.operations + 1):
        machine = fresh(parent)
        await live(Job(machine, sink_on(machine, roll_bytes=20)), [death], parallelisms, power)
        check(machine)


@settings(deadline=None, max_examples=60)
@given(
    deaths=st.lists(st.integers(1, 60), max_size=6),
    parallelisms=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    aborted=st.frozensets(st.integers(1, 12), max_size=4),
    roll_bytes=st.sampled_from([1, 20, 10**9]),
    power=st.booleans(),
)
async def test_killed_again_and_again(
    parent: Path, deaths: list[int], parallelisms: list[int], aborted: frozenset[int], roll_bytes: int, power: bool
) -> None:
    machine = fresh(parent)
    await live(Job(machine, sink_on(machine, roll_bytes), aborted), deaths, parallelisms, power)
    check(machine)
