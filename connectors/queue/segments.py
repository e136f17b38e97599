"""The format of a log's files. Pure.

A log is a sequence of bytes cut into segments, each a file named by the offset at which it begins. A segment is a
header and *groups*; a group is what was written and made durable at once. Invariant: a group is written only when the
one before it is durable. So what is behind a damaged group tells what happened: nothing valid, and the group was never
acknowledged as a whole (or was the very last); a valid one, and something that was durable has been altered.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

SUFFIX: Final = ".log"
_MAGIC: Final = b"SAQUEUE1"
_HEADER: Final = struct.Struct("<8s8sQQq")
"""Magic with version, id of the log, offset of the first group, number of the first record, time of creation."""
_CHECKSUM: Final = struct.Struct("<I")
HEADER_BYTES: Final = _HEADER.size + _CHECKSUM.size
_MARK: Final = b"\xf5SAG"
_GROUP: Final = struct.Struct("<IIQ")
"""Bytes of the payload, records, number of the first."""
GROUP_BYTES: Final = len(_MARK) + _CHECKSUM.size + _GROUP.size
_RECORD: Final = struct.Struct("<Iq")
"""Bytes, time-stamp."""
RECORD_BYTES: Final = _RECORD.size


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """`created` in milliseconds since the epoch."""

    log_id: bytes
    base: int
    first: int
    created: int

    def encode(self) -> bytes:
        fields = _HEADER.pack(_MAGIC, self.log_id, self.base, self.first, self.created)
        return fields + _CHECKSUM.pack(zlib.crc32(fields))

    @classmethod
    def decode(cls, data: bytes) -> "SegmentHeader | None":
        """None if it is none, or damaged."""
        if len(data) < HEADER_BYTES:
            return None
        fields = data[: _HEADER.size]
        magic, log_id, base, first, created = _HEADER.unpack(fields)
        if magic != _MAGIC or _CHECKSUM.unpack_from(data, _HEADER.size) != (zlib.crc32(fields),):
            return None
        return cls(log_id, base, first, created)


@dataclass(slots=True)
class Group:
    """Records `first`, `first` + 1, … of the log; `offset` and `end` are those of the log, not of a file."""

    offset: int
    end: int
    first: int
    payloads: list[bytes]
    timestamps: list[int]

    @property
    def next_number(self) -> int:
        return self.first + len(self.payloads)


def name_of(base: int) -> str:
    return f"{base:020}{SUFFIX}"


def seed_of(log_id: bytes) -> int:
    """What checksums begin with. Nobody outside knows it: a record can't be made to look like a group."""
    return zlib.crc32(log_id)


def encode_group(seed: int, first: int, records: Sequence[tuple[bytes, int]]) -> bytes:
    """`records`: payload and time-stamp of each."""
    parts = []
    for payload, timestamp in records:
        parts.append(_RECORD.pack(len(payload), timestamp))
        parts.append(payload)
    body = b"".join(parts)
    fields = _GROUP.pack(len(body), len(records), first)
    return b"".join((_MARK, _CHECKSUM.pack(zlib.crc32(body, zlib.crc32(fields, seed))), fields, body))


def group_size(data: bytes | memoryview, at: int) -> int | None:
    """How many bytes the group that begins at `at` says it has; None where none begins."""
    if len(data) - at < GROUP_BYTES or data[at : at + len(_MARK)] != _MARK:
        return None
    size, _, _ = _GROUP.unpack_from(data, at + len(_MARK) + _CHECKSUM.size)
    return GROUP_BYTES + int(size)


@dataclass(frozen=True, slots=True)
class GroupHeader:
    """`size` in bytes, this header included."""

    size: int
    first: int
    count: int


def verified(seed: int, data: bytes, at: int) -> GroupHeader | None:
    """What the group that begins at `at` holds; None unless it is there, whole and undamaged."""
    size = group_size(data, at)
    if size is None or len(data) - at < size:
        return None
    fields_at, body_at = at + len(_MARK) + _CHECKSUM.size, at + GROUP_BYTES
    body = memoryview(data)[body_at : at + size]
    checksum = zlib.crc32(body, zlib.crc32(data[fields_at:body_at], seed))
    if _CHECKSUM.unpack_from(data, at + len(_MARK)) != (checksum,):
        return None
    _, count, first = _GROUP.unpack_from(data, fields_at)
    return GroupHeader(size, first, count)


def decode_group(seed: int, data: bytes, at: int, offset: int) -> Group | None:
    """The group that begins at `at`, which is `offset` in the log; None as from `verified`."""
    header = verified(seed, data, at)
    if header is None:
        return None
    body = memoryview(data)[at + GROUP_BYTES : at + header.size]
    return _records(body, header.count, Group(offset, offset + header.size, header.first, [], []))


def _records(body: memoryview, count: int, group: Group) -> Group:
    at = 0
    for _ in range(count):
        size, timestamp = _RECORD.unpack_from(body, at)
        at += RECORD_BYTES
        group.payloads.append(bytes(body[at : at + size]))
        group.timestamps.append(timestamp)
        at += size
    return group


def holds_group_behind(seed: int, data: bytes, at: int, first: int) -> bool:
    """Whether a group with later records than `first` begins anywhere behind `at`."""
    found = data.find(_MARK, at + 1)
    while found >= 0:
        group = verified(seed, data, found)
        if group is not None and group.first > first:
            return True
        found = data.find(_MARK, found + 1)
    return False
