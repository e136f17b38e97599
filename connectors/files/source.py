"""Files as a source: one file is one split, one line one record.

The files of one subtask are read in turn, a batch (about 1,000 lines) from each, in the order of their names; of very
many files, some at a time. A bounded read covers what was there when the flow first started, also after a restore:
files that came later and lines that were added are for `follow=True`, or for another start.
"""

import asyncio
import contextlib
import glob
import os
import re
import zlib
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Final, TypeVar

from connectors.files.cursor import FileCursor, Pace, Seen, look
from connectors.files.errors import NoSuchFiles
from connectors.files.lines import LineDecoder, require_format
from connectors.files.offload import Offload
from streamactors.diagnosis import Finding, PlannedStep
from streamactors.elements import DeadLetter, ErrorRoute, OutputTag
from streamactors.errors import InvalidConfig
from streamactors.formats import Decoder
from streamactors.sources import InputProgress, Position, SourceBatch, SourceContext, SplitReader, SplitSource

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_DIGITS: Final = re.compile(r"\d+")


class FileSource(SplitSource[T_co]):
    """A path, a folder or a glob (`**` too; hidden files never match); one line one record. `follow` waits for more
    lines and more files: files then must only grow, and stay."""

    pace: ClassVar[Pace] = Pace()

    def __init__(self, path: str, *, value: Decoder[T_co], follow: bool = False, on_error: ErrorRoute = "fail") -> None:
        if not os.fspath(path):
            raise InvalidConfig("FileSource: the path is empty; give a file, a folder, or a glob such as 'in/*.jsonl'")
        require_format(f"FileSource({path!r})", value, "decode")
        if on_error != "fail" and not isinstance(on_error, OutputTag):
            raise InvalidConfig(f"FileSource({path!r}): on_error={on_error!r} must be 'fail' or an OutputTag")
        self._path = os.path.expanduser(os.fspath(path))
        self._value = value
        self._follow = follow
        self._on_error = on_error

    @property
    def bounded(self) -> bool:
        return not self._follow

    @property
    def error_tag(self) -> OutputTag[DeadLetter] | None:
        return None if self._on_error == "fail" else self._on_error

    def reader(self, ctx: SourceContext) -> SplitReader[T_co]:
        return _FileReader(self, ctx, LineDecoder(self._value))

    def assign(self, split: str, parallelism: int) -> int:
        """Files that are numbered in any way go round the subtasks; a plain hash would pile some up on one."""
        numbers = sum(map(int, _DIGITS.findall(split)))
        return (numbers + zlib.crc32(_DIGITS.sub("", split).encode())) % parallelism

    def describe(self) -> str:
        return f"FileSource {self._path!r}{', followed' if self._follow else ''}"

    async def diagnose(self, step: PlannedStep) -> Sequence[Finding]:
        if count := len(await asyncio.to_thread(self.matching)):
            return [Finding("ok", "files", f"{self._path!r}: {count} file{'s' if count > 1 else ''}")]
        told = f"{self._path!r} matches no file"
        if self._follow:
            return [Finding("warning", "files", f"{told}: nothing is read until there is one")]
        return [Finding("problem", "files", told, "check the path; a relative one starts in the current folder")]

    def matching(self) -> list[str]:
        """The files that are there now, by name. Blocks."""
        if os.path.isdir(self._path):
            names = [name for name in os.listdir(self._path) if not name.startswith(".")]
            found = [os.path.join(self._path, name) for name in names]
        else:
            found = [self._path] if os.path.exists(self._path) else glob.glob(self._path, recursive=True)
        return sorted(path for path in found if os.path.isfile(path))


class _FileReader(SplitReader[T]):
    def __init__(self, source: FileSource[Any], ctx: SourceContext, decoder: LineDecoder[T]) -> None:
        self._source = source
        self._ctx = ctx
        self._decoder = decoder
        self._offload = Offload()
        self._active: deque[FileCursor[T]] = deque()  # read in turn; the only ones with an open file
        self._waiting: deque[FileCursor[T]] = deque()  # for a place among those
        self._dry: dict[str, FileCursor[T]] = {}  # followed files, read to their end for now
        self._paused: frozenset[str] = frozenset()
        self._aside: dict[str, FileCursor[T]] = {}  # paused: closed, so that they keep no place
        self._changed = asyncio.Event()
        self._known: set[str] = set()
        self._over: deque[FileCursor[T]] = deque()  # at their end from the beginning, and not yet told so
        self._next_look = 0.0
        self._bytes_read = self._bytes_to_read = 0  # of a bounded read

    async def open(self, restored: Mapping[str, Position] | None) -> Mapping[str, Position]:
        if restored is not None:
            await self._restore(restored)
        if restored is None or not self._source.bounded:
            await self._discover()
        else:
            await self._warn_of_files_left_out()
        self._next_look = self._now() + self._source.pace.poll_seconds
        self._over = deque(cursor for cursor in self._waiting if cursor.finished)
        return {cursor.path: cursor.position for cursor in self._waiting}

    async def read(self) -> SourceBatch[T] | None:
        while True:
            if self._over:
                return _ended(self._over.popleft())
            if not self._source.bounded and self._now() >= self._next_look:
                await self._look_for_more()
            await self._put_aside()
            self._activate()
            if not self._active:
                if self._source.bounded and not self._aside:
                    return None
                await self._wait_for_change()
            elif batch := await self._read_from(self._active[0]):
                return batch

    def progress(self) -> InputProgress | None:
        if not self._source.bounded:
            return None
        return InputProgress(self._bytes_read, self._bytes_to_read, "bytes")

    def pause(self, splits: Collection[str]) -> bool:
        self._paused = frozenset(splits)
        self._changed.set()
        return True

    async def _put_aside(self) -> None:
        """Files that are paused; and those back that no longer are."""
        self._changed.clear()
        for path in [path for path in self._aside if path not in self._paused]:
            self._waiting.append(self._aside.pop(path))
        for cursor in [cursor for cursor in self._active if cursor.path in self._paused]:
            self._active.remove(cursor)
            self._aside[cursor.path] = cursor
            await cursor.close(self._offload)
        for cursor in [cursor for cursor in self._waiting if cursor.path in self._paused]:
            self._waiting.remove(cursor)
            self._aside[cursor.path] = cursor

    async def _wait_for_change(self) -> None:
        """Until it is time to look for more, or other files are paused."""
        seconds = None if self._source.bounded else max(self._next_look - self._now(), 0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    async def close(self) -> None:
        await self._offload.settle()
        while self._active:
            await self._active.popleft().close(self._offload)

    async def _read_from(self, cursor: FileCursor[T]) -> SourceBatch[T] | None:
        before = cursor.offset
        batch = await cursor.read(self._offload)
        self._bytes_read += cursor.offset - before
        if batch is not None:
            batch.ends = cursor.finished
            self._active.rotate(-1)
            return batch
        await cursor.close(self._offload)
        self._active.popleft()
        if not self._source.bounded:
            self._dry[cursor.path] = cursor
        return None

    def _activate(self) -> None:
        while self._waiting and len(self._active) < self._source.pace.open_files:
            self._active.append(self._waiting.popleft())

    async def _restore(self, restored: Mapping[str, Position]) -> None:
        seen = await self._look_at(list(restored))
        for path, (offset, line, end) in sorted(restored.items()):
            now = seen[path]
            cursor = self._add(path, [offset, line, self._end_of(end, now)], now)
            cursor.check(now)

    def _end_of(self, end: int | None, now: Seen | None) -> int | None:
        """Where to stop, also for a file that was followed and now is not, or the other way round."""
        if not self._source.bounded:
            return None
        return now.size if end is None and now is not None else end

    async def _discover(self) -> None:
        """Files not known yet that are this subtask's."""
        found = await self._matching()
        if not found and not self._known:
            self._nothing_there()
        seen = await self._look_at(self._new_and_own(found))
        for path, now in seen.items():
            if now is not None:
                self._add(path, [0, 1, None if not self._source.bounded else now.size], now)

    async def _matching(self) -> list[str]:
        return await self._offload.run(asyncio.to_thread(self._source.matching))

    def _new_and_own(self, found: list[str]) -> list[str]:
        new = [path for path in found if path not in self._known]
        return [path for path in new if self._source.assign(path, self._ctx.parallelism) == self._ctx.subtask]

    async def _warn_of_files_left_out(self) -> None:
        if left_out := self._new_and_own(await self._matching()):
            self._ctx.log.warning(
                "%d files such as %r are not read: they were not there when this bounded flow first started. "
                "Use follow=True, or start afresh with fresh=True",
                len(left_out),
                left_out[0],
            )

    def _nothing_there(self) -> None:
        if self._source.bounded:
            raise NoSuchFiles(
                f"source {self._ctx.uid!r}: {self._source._path!r} matches no file (current folder: {os.getcwd()!r}); "
                f"correct the path, or wait for files with follow=True"
            )
        if not self._next_look:
            self._ctx.log.warning("%r matches no file yet; waiting", self._source._path)

    def _add(self, path: str, position: Position, seen: Seen | None) -> FileCursor[T]:
        gone = Seen(0, (0, 0))
        cursor = FileCursor(path, position, seen or gone, self._ctx.uid, self._decoder, self._source.pace)
        self._known.add(path)
        self._waiting.append(cursor)
        self._bytes_read += cursor.offset
        self._bytes_to_read += position[2] or 0
        return cursor

    async def _look_for_more(self) -> None:
        seen = await self._look_at(list(self._dry))
        for path, now in seen.items():
            self._dry[path].check(now)
            if now is not None and self._dry[path].has_more(now):
                self._waiting.append(self._dry.pop(path))
        await self._discover()
        self._next_look = self._now() + self._source.pace.poll_seconds

    async def _look_at(self, paths: list[str]) -> dict[str, Seen | None]:
        return await self._offload.run(asyncio.to_thread(lambda: {path: look(path) for path in paths}))

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _ended(cursor: FileCursor[T]) -> SourceBatch[T]:
    position = cursor.position
    return SourceBatch(cursor.path, (), lambda taken: position, origins=(), ends=True)
