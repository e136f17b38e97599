"""One file and how far it has been read.

A position is [byte offset of the next line, its number from 1, end]: `end` is the byte offset where a bounded read
stops, fixed when the file was first seen, so that reading again gives the same records though the file has grown; it
is None where the file is followed. Seeking to the offset is all that a restore does.
"""

import os
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

import aiofiles

from connectors.files.errors import FileChanged, ReadFailed
from connectors.files.lines import LineDecoder, LineOffsets, length_of_lines
from connectors.files.offload import Offload
from streamactors.errors import RecordFailed
from streamactors.sources import Position, SourceBatch

T = TypeVar("T")

LONGEST_LINE: Final = 64 * 2**20
"""Bytes without a newline after which a file is taken for no text file at all."""


class _Handle(Protocol):
    async def read(self, size: int, /) -> bytes: ...
    async def seek(self, offset: int, /) -> int: ...
    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Pace:
    """How much at once: bytes per read, lines per batch, files open; and seconds between looks for more."""

    block_bytes: int = 512 * 1024
    batch_lines: int = 1000
    open_files: int = 16
    poll_seconds: float = 0.2


@dataclass(frozen=True, slots=True)
class Seen:
    """A file as the operating system describes it."""

    size: int
    identity: tuple[int, int]


def look(path: str) -> Seen | None:
    """None if there is no such file."""
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ReadFailed(f"the file {path!r} can't be read: {error.strerror}") from error
    return Seen(stat.st_size, (stat.st_dev, stat.st_ino))


class FileCursor(Generic[T]):
    """Holds its file open from the first block that it reads until `close`."""

    def __init__(
        self, path: str, position: Position, seen: Seen, uid: str, decoder: LineDecoder[T], pace: Pace
    ) -> None:
        self.path = path
        start: tuple[int, int, int | None] = (position[0], position[1], position[2])
        self._offset, self._line, self._end = start
        self._seen = seen
        self._uid = uid
        self._decoder = decoder
        self._pace = pace
        self._handle: _Handle | None = None
        self._block = b""  # begins at or before `offset`
        self._at = 0  # where in the block `offset` is
        self._chunk_bytes = 64 * pace.batch_lines

    @property
    def position(self) -> Position:
        return [self._offset, self._line, self._end]

    @property
    def offset(self) -> int:
        """Of the next line, in bytes."""
        return self._offset

    @property
    def finished(self) -> bool:
        return self._end is not None and self._offset >= self._end

    def check(self, now: Seen | None) -> None:
        """Raise FileChanged unless it is the same file still, with all in it that was there before."""
        if self.finished:
            return
        if now is None:
            raise FileChanged(
                f"the file {self.path!r} is gone, which was read up to line {self._line - 1}: what came after is lost. "
                f"Put it back, or start afresh with fresh=True"
            )
        if now.identity != self._seen.identity:
            raise FileChanged(f"another file was put in the place of {self.path!r} while it was read; {_ROTATION}")
        if now.size < (self._read_to if self._end is None else self._end):
            raise FileChanged(
                f"the file {self.path!r} has been truncated: it has {now.size} bytes, and line {self._line} began at "
                f"byte {self._offset}; {_ROTATION}"
            )

    def has_more(self, now: Seen) -> bool:
        """Whether a followed file has grown."""
        return now.size > self._read_to

    async def read(self, offload: Offload) -> SourceBatch[T] | None:
        """The next lines; None where the file ends, for now if it is followed."""
        while not self.finished:
            if lines := self._next_lines():
                return self._batch(*lines)
            if not await self._read_block(offload):
                return None
        return None

    async def close(self, offload: Offload) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            await offload.run(handle.close())

    @property
    def _read_to(self) -> int:
        """The byte offset behind the block."""
        return self._offset + len(self._block) - self._at

    def _next_lines(self) -> tuple[bytes, int] | None:
        """Some whole lines out of the block, or a last one without newline, and how many."""
        block, at, target = self._block, self._at, self._at + self._chunk_bytes
        stop = block.rfind(b"\n", at, target) + 1 or block.find(b"\n", target) + 1
        if stop:
            return self._shortened(block[at:stop])
        return (block[at:], 1) if self._end is not None and self._read_to >= self._end else None

    def _shortened(self, chunk: bytes) -> tuple[bytes, int]:
        """Adapts to the length of lines, so that a batch has about the size it should have."""
        count, wanted = chunk.count(b"\n"), self._pace.batch_lines
        self._chunk_bytes = max(len(chunk) * wanted // count, 1)
        return (chunk, count) if count <= wanted + wanted // 4 else (chunk[: length_of_lines(chunk, wanted)], wanted)

    def _batch(self, chunk: bytes, count: int) -> SourceBatch[T]:
        start, first, end = self._offset, self._line, self._end
        prefix = f"{self.path}:"
        decoded = self._decoder.decode(chunk, count, first, prefix)
        self._at += len(chunk)
        self._offset += len(chunk)
        self._line += count
        after, offsets = self.position, LineOffsets(chunk)

        def position_after(taken: int) -> Position:
            if taken == len(decoded.values):
                return after
            number = decoded.numbers[taken]
            return [start + offsets.of(number - first), number, end]

        return SourceBatch(
            self.path,
            decoded.values,
            position_after,
            origins=decoded.numbers,
            origin_prefix=prefix,
            undecodable=decoded.undecodable,
        )

    async def _read_block(self, offload: Offload) -> bool:
        """Reads on behind what is left of the block; False where the file ends."""
        rest = self._block[self._at :]
        if len(rest) > LONGEST_LINE:
            raise RecordFailed(
                self._uid,
                f"it goes on for more than {LONGEST_LINE} bytes; is this a file of lines?",
                origin=f"{self.path}:{self._line}",
            )
        size = self._pace.block_bytes if self._end is None else min(self._pace.block_bytes, self._end - self._read_to)
        try:
            block = await offload.run(self._read_bytes(size))
        except OSError as error:
            raise ReadFailed(f"the file {self.path!r} can't be read: {error.strerror}") from error
        if not block and self._end is not None:
            raise FileChanged(f"the file {self.path!r} was truncated while it was read; {_ROTATION}")
        self._block, self._at = rest + block, 0
        return bool(block)

    async def _read_bytes(self, size: int) -> bytes:
        if self._handle is None:
            await self._open()
        assert self._handle is not None
        return await self._handle.read(size)

    async def _open(self) -> None:
        self._handle = await aiofiles.open(self.path, "rb")
        if self._read_to:
            await self._handle.seek(self._read_to - 1)
            before = await self._handle.read(1)
            if self._read_to == self._offset and before != b"\n":
                raise FileChanged(
                    f"the file {self.path!r} is not what it was: line {self._line} no longer begins at byte "
                    f"{self._offset}. Put the old one back, or start afresh with fresh=True"
                )


_ROTATION: Final = (
    "lines that had not been read may be lost. Files that are read must only grow: write to new files instead, "
    "or start afresh with fresh=True"
)
