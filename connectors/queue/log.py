"""The log of one partition on disk. Its methods block; `append` and `trim` never overlap, `read` may come beside them.

Invariant: what `append` has returned for is on the disk for good, and nothing is in front of `end` that is not. After a
refusal the file is cut back to there before anything else is written; whatever fsync said of it, a segment whose write
was refused gets no more records. `close` waits for what is being written: a file's number may be another file's next.
"""

import contextlib
import datetime as dt
import logging
import os
import sys
import threading
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from connectors.queue import disk
from connectors.queue.errors import CorruptQueue, PositionGone, QueueClosed, WriteFailed
from connectors.queue.segments import (
    GROUP_BYTES,
    HEADER_BYTES,
    SUFFIX,
    Group,
    SegmentHeader,
    decode_group,
    encode_group,
    group_size,
    holds_group_behind,
    name_of,
    seed_of,
    verified,
)
from streamactors.clock import SYSTEM, Clock

_log = logging.getLogger(__name__)

_READ_BYTES: Final = 256 * 1024
_BINARY: Final = getattr(os, "O_BINARY", 0)  # Windows would translate newlines


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept of what no retained checkpoint needs: records of that long ago, so many bytes of the latest."""

    time: dt.timedelta = dt.timedelta(0)
    size: int = 0


@dataclass(frozen=True, slots=True)
class Segment:
    path: str
    header: SegmentHeader

    @property
    def base(self) -> int:
        return self.header.base


class PartitionLog:
    """`open`, then `append`, `read` and `trim`, at last `close`. Offsets count bytes of groups since the log began."""

    def __init__(self, folder: str, *, segment_bytes: int, retention: Retention, clock: Clock = SYSTEM) -> None:
        self.folder = folder
        self.log_id = b""
        self.end = 0
        self.next_number = 0
        self._segment_bytes = segment_bytes
        self._retention = retention
        self._clock = clock
        self._seed = 0
        self._segments: tuple[Segment, ...] = ()
        """Replaced as a whole, never changed: a read beside it goes on with what it has."""
        self._descriptor = -1
        self._refused = False
        self._writing = threading.Lock()

    @property
    def begin(self) -> int:
        """The offset of the oldest record that is kept."""
        return self._segments[0].base

    @property
    def first_number(self) -> int:
        return self._segments[0].header.first

    # --------------------------------------------------------------------------------------------------------- opening
    def open(self) -> None:
        """Raises CorruptQueue where records that were acknowledged are missing or altered; changes nothing then."""
        disk.make_folder(self.folder)
        found = self._scan()
        if not found:
            self._begin(bytes.fromhex(self._clock.token()))
            return
        self._segments = tuple(found)
        self.log_id = found[-1].header.log_id
        self._seed = seed_of(self.log_id)
        self._check_chain()
        self._recover(found[-1])

    def close(self) -> None:
        with self._writing:
            self._close_file()

    def _close_file(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _begin(self, log_id: bytes) -> None:
        self.log_id, self._seed = log_id, seed_of(log_id)
        self._add_segment()

    def _scan(self) -> list[Segment]:
        with disk.refused_reads(self.folder):
            names = sorted(name for name in os.listdir(self.folder) if name.endswith(SUFFIX))
        segments = [self._look(os.path.join(self.folder, name), last=name == names[-1]) for name in names]
        return [segment for segment in segments if segment is not None]

    def _look(self, path: str, *, last: bool) -> Segment | None:
        data = disk.read(path, 0, HEADER_BYTES + 1)
        header = SegmentHeader.decode(data[:HEADER_BYTES])
        if header is not None and os.path.basename(path) == name_of(header.base):
            return Segment(path, header)
        if last and header is None and len(data) <= HEADER_BYTES:
            self._remove(path)  # it was being made: no record was ever in it
            return None
        raise CorruptQueue(f"{path!r} does not begin as a segment does: {_RESTORE_FILES}")

    def _remove(self, path: str) -> None:
        with disk.refused_writes(path):
            os.unlink(path)

    def _check_chain(self) -> None:
        """Every segment but the last must end where the next one begins."""
        for segment, following in zip(self._segments, self._segments[1:], strict=False):
            if segment.header.log_id != following.header.log_id:
                raise CorruptQueue(
                    f"{segment.path!r} and {following.path!r} are of two different logs: {_RESTORE_FILES}"
                )
            end = segment.base + _size_of(segment.path) - HEADER_BYTES
            if end < following.base:
                raise CorruptQueue(
                    f"{segment.path!r} ends at offset {end} and {following.path!r} begins at {following.base}: "
                    f"{following.base - end} bytes between them are missing. {_RESTORE_FILES}"
                )

    def _recover(self, last: Segment) -> None:
        """Find the end; cut off what was never acknowledged."""
        data = disk.read(last.path, 0, _size_of(last.path))
        at, number = HEADER_BYTES, last.header.first
        while (group := verified(self._seed, data, at)) and group.first == number:
            at, number = at + group.size, number + group.count
        self.end, self.next_number = last.base + at - HEADER_BYTES, number
        if at < len(data) and holds_group_behind(self._seed, data, at, number):
            raise self._damaged(last.path, at)
        self._open_file(last.path)
        if at < len(data):
            self._cut_off(last.path, data, at)
        disk.cut(self._descriptor, at, last.path)  # and for good, before anybody reads it

    def _cut_off(self, path: str, data: bytes, at: int) -> None:
        """A group that is not all there was never acknowledged. One that is, but damaged, may have been."""
        left, size = len(data) - at, group_size(data, at)
        aside = None
        if left >= GROUP_BYTES and (size is None or size <= left):
            aside = f"{path}.cut-{at}"
            self._keep_aside(aside, data[at:])
        _log.warning(
            "%s: the last %d bytes, from byte %d, are no whole group of records: the process or the machine stopped "
            "while they were written, and nobody was told that they were. They are cut off%s",
            path,
            left,
            at,
            f", and kept in {aside}: if the disk altered them afterwards, they were acknowledged" if aside else "",
        )

    def _keep_aside(self, path: str, data: bytes) -> None:
        with disk.refused_writes(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _BINARY, 0o600)
        try:
            disk.append(descriptor, data, path)
        finally:
            os.close(descriptor)

    def _damaged(self, path: str, at: int) -> CorruptQueue:
        return CorruptQueue(
            f"{path!r} is damaged at byte {at}: records there were acknowledged and have been altered since. "
            f"Nothing was changed. {_RESTORE_FILES}"
        )

    # --------------------------------------------------------------------------------------------------------- writing
    def append(self, records: Sequence[tuple[bytes, int]]) -> int:
        """Payload and time-stamp of each; the number of the first. They are durable when this returns. Raises
        WriteFailed, and has written nothing then; QueueClosed."""
        with self._writing:
            if self._descriptor < 0:
                raise QueueClosed(f"{self.folder!r} was closed before the record was written")
            return self._append(records)

    def _append(self, records: Sequence[tuple[bytes, int]]) -> int:
        if self._refused:
            self._mend()
        if self.end - self._segments[-1].base >= self._segment_bytes:
            self._add_segment()
        data = encode_group(self._seed, self.next_number, records)
        try:
            disk.append(self._descriptor, data, self._segments[-1].path)
        except BaseException:
            self._refused = True
            with contextlib.suppress(WriteFailed):  # the next append tries again, and tells
                self._mend()
            raise
        first, self.next_number = self.next_number, self.next_number + len(records)
        self.end += len(data)
        return first

    def _mend(self) -> None:
        last = self._segments[-1]
        disk.cut(self._descriptor, self.end - last.base + HEADER_BYTES, last.path)
        if self.end > last.base:
            self._add_segment()
        self._refused = False

    def _add_segment(self) -> None:
        """Its header is durable, and its name, before any record goes in."""
        header = SegmentHeader(self.log_id, self.end, self.next_number, self._clock.time_ms())
        path = os.path.join(self.folder, name_of(self.end))
        with disk.refused_writes(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | _BINARY, 0o600)
        try:
            disk.append(descriptor, header.encode(), path)
            disk.sync_folder(self.folder)
        except BaseException:
            os.close(descriptor)
            with contextlib.suppress(OSError):  # what is left is no whole header, or holds no record
                os.unlink(path)
            raise
        self._close_file()
        self._descriptor = descriptor
        self._segments = (*self._segments, Segment(path, header))

    def _open_file(self, path: str) -> None:
        with disk.refused_writes(path):
            self._descriptor = os.open(path, os.O_RDWR | _BINARY)

    # --------------------------------------------------------------------------------------------------------- reading
    def read(self, at: int, until: int) -> list[Group]:
        """Some groups from offset `at` on, at least one; `until` is an end that is durable. Raises CorruptQueue,
        PositionGone."""
        segments = self._segments
        if at < segments[0].base:
            raise PositionGone(
                f"the log in {self.folder!r} begins with record {segments[0].header.first} by now: what was to be read "
                "was deleted at an earlier job's wish. Start the job again"
            )
        following = bisect_right(segments, at, key=lambda segment: segment.base)
        segment = segments[following - 1]
        limit = until if following == len(segments) else min(until, segments[following].base)
        begin = at - segment.base + HEADER_BYTES
        data = disk.read(segment.path, begin, min(limit - at, _READ_BYTES))
        size = group_size(data, 0)
        if size is not None and len(data) < size <= limit - at:
            data = disk.read(segment.path, begin, size)
        return self._groups_in(data, at) or self._no_group(segment.path, begin)

    def _groups_in(self, data: bytes, offset: int) -> list[Group]:
        groups, at = [], 0
        while group := decode_group(self._seed, data, at, offset + at):
            groups.append(group)
            at += group.end - group.offset
        return groups

    def _no_group(self, path: str, at: int) -> list[Group]:
        raise self._damaged(path, at)

    def check(self, position: tuple[str, int, int], where: str) -> None:
        """Raise PositionGone unless the log can be read from there: [id of the log, offset, number of the next]."""
        log_id, offset, number = position
        if log_id != self.log_id.hex():
            raise PositionGone(f"{where} is of another log than the one in {self.folder!r}: {_ANOTHER_LOG}")
        if offset < self.begin:
            raise PositionGone(
                f"{where} goes on with record {number}, and the log in {self.folder!r} begins with record "
                f"{self.first_number}: what no retained checkpoint needed is deleted. Restore a later checkpoint, or "
                "start afresh with fresh=True, which reads what is left; to keep records for savepoints, give the "
                "queue a retention="
            )
        if offset > self.end or number > self.next_number:
            raise PositionGone(
                f"{where} goes on with record {number}, and the log in {self.folder!r} ends before record "
                f"{self.next_number}: records that the job has read are gone. {_ANOTHER_LOG}"
            )

    # -------------------------------------------------------------------------------------------------------- deletion
    def trim(self, needed: int, most: int = sys.maxsize) -> bool:
        """Delete the segments that end at `needed` or before, the oldest first, but what is to be retained; `most` of
        them. Whether there are more."""
        with self._writing:
            while most and self._descriptor >= 0 and self._deletable(needed):
                if not self._delete_oldest():
                    return False
                most -= 1
            return self._descriptor >= 0 and self._deletable(needed)

    def _deletable(self, needed: int) -> bool:
        return len(self._segments) > 1 and self._segments[1].base <= needed and not self._retained()

    def _delete_oldest(self) -> bool:
        oldest = self._segments[0]
        try:
            self._remove(oldest.path)
            self._segments = self._segments[1:]
            disk.sync_folder(self.folder)  # one by one: no gap can be left by a power failure
        except WriteFailed as error:
            _log.warning("%s is left for the next time: %s", oldest.path, error)
            return False
        return True

    def _retained(self) -> bool:
        following, time = self._segments[1], self._retention.time
        age = dt.timedelta(milliseconds=self._clock.time_ms() - following.header.created)
        # Without a time nothing is too young, not even what was made before the clock was set back.
        return self.end - following.base < self._retention.size or (bool(time) and age < time)


def _size_of(path: str) -> int:
    with disk.refused_reads(path):
        return os.path.getsize(path)


_RESTORE_FILES: Final = (
    "Put the file back from a copy if there is one. Without it, records may be lost: move the queue's folder away, and "
    "start the job with fresh=True"
)
_ANOTHER_LOG: Final = (
    "put back the folder that belongs to the checkpoint, or start afresh with fresh=True, which reads what is there"
)
