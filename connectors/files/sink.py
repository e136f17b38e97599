"""Part files as a sink: exactly-once for whoever reads the visible ones.

Each subtask writes parts of its own; a part ends with its checkpoint, or before when it is large or old enough.
Under checkpoints, what earlier attempts left hidden and no checkpoint lists is removed at the start. Two live jobs may
share a folder unless flow and uid are both the same. A job that is killed without checkpoints leaves its hidden `.open`
files behind.
"""

import asyncio
import datetime as dt
import os
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, BinaryIO, ClassVar, Final, ParamSpec, TypeVar

from connectors.files import diagnosis
from connectors.files.errors import WriteFailed
from connectors.files.lines import LineEncoder, require_format
from connectors.files.offload import Offload
from connectors.files.parts import PENDING, UNCHECKED, Part, PartFolder, PartName, hidden_name, prefix_of, writer_of
from streamactors.clock import SYSTEM
from streamactors.diagnosis import Finding, PlannedStep
from streamactors.errors import InvalidConfig
from streamactors.formats import Encoder, Json, Text
from streamactors.sinks import Pending, SinkContext, SinkWriter, WriterSink

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
P = ParamSpec("P")
R = TypeVar("R")

WRITE_BYTES: Final = 2**20
"""What is gathered in memory before it is written."""


class FileSink(WriterSink[T_contra]):
    """One line per value. `roll_bytes` and `roll_after` (looked at when values come) are about where a part ends that
    no checkpoint has ended before; without checkpoints parts become visible there, and at the end."""

    folder_type: ClassVar[type[PartFolder]] = PartFolder

    def __init__(
        self,
        folder: str,
        *,
        value: Encoder[T_contra],
        roll_bytes: int = 128 * 2**20,
        roll_after: dt.timedelta = dt.timedelta(minutes=15),
    ) -> None:
        if not os.fspath(folder):
            raise InvalidConfig("FileSink: the folder is empty; name the folder that part files shall lie in")
        require_format(f"FileSink({folder!r})", value, "encode")
        if roll_bytes < 1:
            raise InvalidConfig(f"FileSink({folder!r}): roll_bytes={roll_bytes} must be at least 1")
        if roll_after <= dt.timedelta(0):
            raise InvalidConfig(f"FileSink({folder!r}): roll_after={roll_after} must be longer than zero")
        self._folder = os.path.expanduser(os.fspath(folder))
        self._value = value
        self._roll_bytes = roll_bytes
        self._roll_after = roll_after.total_seconds()

    @property
    def transactional(self) -> bool:
        return True

    def writer(self, ctx: SinkContext) -> SinkWriter[T_contra]:
        return _PartWriter(self, ctx)

    async def diagnose(self, step: PlannedStep) -> Sequence[Finding]:
        return await asyncio.to_thread(diagnosis.of_sink, self._folder, step)

    def describe(self) -> str:
        return f"FileSink {self._folder!r}"


class _PartWriter(SinkWriter[T]):
    def __init__(self, sink: FileSink[Any], ctx: SinkContext) -> None:
        self._sink = sink
        self._ctx = ctx
        self._lines = LineEncoder[T](sink._value, ctx.uid)
        self._folder = sink.folder_type(sink._folder)
        self._offload = Offload()
        self._token = SYSTEM.token()[:8]
        self._sequence = count()
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self._part: _OpenPart | None = None
        self._sealed: list[Part] = []  # since the last barrier
        self._prepared: list[tuple[int, list[Part]]] = []
        self._failed: WriteFailed | None = None

    async def open(self, restored: Sequence[Pending], *, committed: bool) -> None:
        await self._blocking(self._folder.make)
        parts = [Part.of_pending(pending) for pending in restored]
        if parts and not committed:
            await self._blocking(self._folder.publish, parts)
        if self._ctx.checkpointing:
            await self._blocking(self._remove_leftovers)

    async def write(self, values: Sequence[T], timestamps: Sequence[int | None] | None) -> None:
        if not values:
            return
        data = self._lines.encode(values)
        if self._part is None:
            self._part = self._new_part()
        self._gathered.append(data)
        self._gathered_bytes += len(data)
        if self._is_due(self._part):
            await self._roll()
        elif self._gathered_bytes >= WRITE_BYTES:
            await self._write_gathered(self._part)

    async def prepare(self, checkpoint: int) -> Sequence[Pending]:
        await self._roll()
        if self._sealed:
            await self._writing(self._folder.sync, self._folder.path)
            self._prepared.append((checkpoint, self._sealed))
            self._sealed = []
        return [part.as_pending() for _, parts in self._prepared for part in parts]

    async def commit(self, checkpoint: int) -> None:
        parts = [part for prepared_for, parts in self._prepared if prepared_for <= checkpoint for part in parts]
        if parts:
            await self._blocking(self._folder.publish, parts)
            self._prepared = [prepared for prepared in self._prepared if prepared[0] > checkpoint]

    async def finish(self) -> None:
        await self._roll()

    async def close(self) -> None:
        await self._offload.settle()
        part, self._part = self._part, None
        sealed, self._sealed = self._sealed, []
        if part or sealed:
            await self._blocking(self._drop, part, sealed)

    def _new_part(self) -> "_OpenPart":
        ctx = self._ctx
        suffix = _suffix_of(self._sink._value)
        name = str(
            PartName(ctx.flow, ctx.uid, ctx.run, ctx.attempt, ctx.subtask, next(self._sequence), self._token, suffix)
        )
        return _OpenPart(name, hidden_name(name, PENDING if ctx.checkpointing else UNCHECKED), SYSTEM.monotonic())

    def _is_due(self, part: "_OpenPart") -> bool:
        size = part.size + self._gathered_bytes
        return size >= self._sink._roll_bytes or SYSTEM.monotonic() - part.begun >= self._sink._roll_after

    async def _write_gathered(self, part: "_OpenPart") -> None:
        data = b"".join(self._gathered)
        self._gathered.clear()
        self._gathered_bytes = 0
        await self._writing(part.append, self._folder, data)

    async def _roll(self) -> None:
        """End the part that is being written, if any."""
        if self._part is None:
            return
        await self._write_gathered(self._part)
        sealed = await self._writing(self._part.seal, self._folder)
        self._part = None
        if self._ctx.checkpointing:
            self._sealed.append(sealed)
        else:
            await self._blocking(self._folder.publish, [sealed])

    def _remove_leftovers(self) -> None:
        """Of those old subtasks whose pending transactions were dealt to this one, which are published by now: what
        is hidden still belongs to no checkpoint. Never of a later attempt, should this one be long fenced off."""
        ctx = self._ctx
        for hidden in self._folder.hidden(prefix_of(ctx.flow, ctx.uid)):
            if (writer := writer_of(hidden)) is None:
                continue
            *attempt, subtask = writer
            if subtask % ctx.parallelism == ctx.subtask and attempt < [ctx.run, ctx.attempt]:
                self._folder.delete(hidden)

    def _drop(self, part: "_OpenPart | None", sealed: Sequence[Part]) -> None:
        hidden = [sealed_part.hidden for sealed_part in sealed]
        if part is not None:
            part.close()
            hidden.append(part.hidden)
        for name in hidden:
            try:
                self._folder.delete(name)
            except WriteFailed as error:
                self._ctx.log.warning("left for the next attempt to remove: %s", error)

    async def _writing(self, operation: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """After a refusal, of an fsync above all, no part is to be trusted: the attempt can't go on."""
        if self._failed is not None:
            raise self._failed
        try:
            return await self._blocking(operation, *args, **kwargs)
        except WriteFailed as error:
            self._failed = error
            raise

    async def _blocking(self, operation: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await self._offload.run(asyncio.to_thread(operation, *args, **kwargs))


class _OpenPart:
    """The part that is being written. Its methods block."""

    def __init__(self, name: str, hidden: str, begun: float) -> None:
        self.name = name
        self.hidden = hidden
        self.begun = begun
        self.size = 0
        self._file: BinaryIO | None = None

    def append(self, folder: PartFolder, data: bytes) -> None:
        if self._file is None:
            self._file = folder.create(self.hidden)
        self.size += len(data)
        folder.append(self._file, data)

    def seal(self, folder: PartFolder) -> Part:
        assert self._file is not None
        folder.seal(self._file)
        return Part(folder.path, self.name, self.size, self.hidden)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _suffix_of(encoder: object) -> str:
    if isinstance(encoder, Json):
        return ".jsonl"
    return ".txt" if isinstance(encoder, Text) else ""
