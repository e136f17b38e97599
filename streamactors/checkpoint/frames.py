"""In-flight batches to bytes and back.

A frame: format version, checksum of all the rest, then its columns as msgpack (of a watermark, its fields; the list of
frames tells which it is); the version and the checksum stay where
they are, so that every version can tell a newer format from damage. Values are self-describing (`AnySerializer`), a
column in one call. Keys are not stored: they are computed again by the selector of whoever restores. What is sent to
another process has them.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from streamactors.checkpoint.manifest import EdgeKey
from streamactors.elements import IDLE, Batch, Idle, TimeMark, Watermark
from streamactors.errors import CorruptCheckpoint, IncompatibleState, UnserialisableValue
from streamactors.state.serialisation.serializers import AnySerializer

VERSION: Final = 1
_HEADER: Final = struct.Struct(">BI")
_UNSTORABLE: Final = (
    "records of type {kinds} on the edge {edge} can't be stored, and checkpoints that overtake (alignment_timeout, "
    "alignment='unaligned') have to store records in flight: {error}. Or leave such checkpoints out: "
    "alignment='aligned'"
)
_OF_STORED: Final = "Or go on from a savepoint of the version that wrote them: it holds none in flight"
_OF_SENT: Final = "Every worker needs the same modules, in the same version, as the process that starts the job"
_UNSENDABLE: Final = (
    "records or keys of type {kinds} on the edge {edge} can't be sent to another process: {error}. Or run the flow in "
    "one process, without a deployment"
)


@dataclass(frozen=True, slots=True)
class Frame:
    """An encoded batch; with `records` 0, a watermark or idleness. `groups`: the lowest and the highest key group; None
    where the records have none."""

    data: bytes
    records: int
    groups: tuple[int, int] | None
    home: tuple[str, str] | None = None


class _Columns(msgspec.Struct, array_like=True, gc=False):
    values: bytes
    timestamps: list[int | None] | None
    groups: list[int] | None
    origins: list[int] | None
    split: str
    home: tuple[str, str] | None = None
    ids: list[str | None] | None = None


class _WithKeys(_Columns, array_like=True, gc=False):
    """Of records on their way; of those that are stored, `keys` is left out."""

    keys: bytes | None = None


class _Time(msgspec.Struct, array_like=True, gc=False):
    """`time_ms` None: idle."""

    time_ms: int | None
    merged: bool
    groups: tuple[int, int] | None


class FrameCodec:
    """Shared by the subtasks of one attempt: it remembers the classes of the records that it has met."""

    def __init__(self) -> None:
        self._values = AnySerializer()
        self._decoder = msgspec.msgpack.Decoder(_WithKeys)
        self._time_decoder = msgspec.msgpack.Decoder(_Time)

    def check(self, value: Any, edge: EdgeKey) -> None:
        """For an edge's first record. Raises UnserialisableValue, naming the edge, if it could not be stored."""
        self._encode_values([value], edge)

    def check_sendable(self, value: Any, edge: EdgeKey) -> None:
        """As `check`, of an edge that leads to another process."""
        self._encode_values([value], edge, _UNSENDABLE)

    def encode(self, batch: Batch, edge: EdgeKey) -> Frame:
        """Raises UnserialisableValue, naming the edge."""
        columns = _Columns(self._encode_values(_listed(batch.values) or [], edge), *_about(batch))
        groups = columns.groups
        span = (min(groups), max(groups)) if groups else None
        return Frame(_packed(columns, edge), len(batch), span, batch.home)

    def encode_to_send(self, batch: Batch, edge: EdgeKey) -> bytes:
        """With its keys. Raises UnserialisableValue, naming the edge."""
        values = self._encode_values(_listed(batch.values) or [], edge, _UNSENDABLE)
        keys = None if batch.keys is None else self._encode_values(_listed(batch.keys) or [], edge, _UNSENDABLE)
        return _packed(_WithKeys(values, *_about(batch), keys), edge)

    def encode_mark(self, mark: TimeMark) -> Frame:
        time = _Time(mark.time_ms, mark.merged, mark.groups) if isinstance(mark, Watermark) else None
        data = msgspec.msgpack.encode(time or _Time(None, mark.merged, None))
        return Frame(_sealed(data), 0, time.groups if time else None)

    def decode_mark(self, data: bytes, where: str) -> TimeMark:
        """As `decode`, of a frame without records."""
        try:
            time = self._time_decoder.decode(self._payload(data, where))
        except msgspec.MsgspecError as error:
            raise CorruptCheckpoint(f"{where} is malformed, though its checksum is right: {error}") from error
        if time.time_ms is None:
            return Idle(merged=True) if time.merged else IDLE
        return Watermark(time.time_ms, time.merged, time.groups)

    def decode(self, data: bytes, where: str, advice: str = _OF_STORED) -> Batch:
        """`where` names the file and the edge. Raises CorruptCheckpoint if this is not what was written,
        IncompatibleState if the records no longer fit their classes."""
        columns = self._columns(data, where)
        values = self._decode_values(columns.values, where, advice)
        keys = None if columns.keys is None else self._decode_values(columns.keys, where, advice)
        for column in (columns.timestamps, columns.groups, columns.origins, columns.ids, keys):
            if column is not None and len(column) != len(values):
                raise CorruptCheckpoint(f"{where}: columns of {len(values)} and of {len(column)} records")
        return Batch(
            values,
            columns.timestamps,
            keys,
            columns.groups,
            columns.origins,
            columns.split,
            columns.home,
            columns.ids,
        )

    def decode_sent(self, data: bytes, edge: EdgeKey) -> Batch:
        """What `encode_to_send` gave in another process. Raises as `decode` does."""
        return self.decode(data, f"what came on the edge {edge}", _OF_SENT)

    def _encode_values(self, values: list[Any], edge: EdgeKey, refusal: str = _UNSTORABLE) -> bytes:
        try:
            return self._values.encode_many(values)
        except UnserialisableValue as error:
            kinds = sorted({f"{type(value).__module__}.{type(value).__qualname__}" for value in values})
            raise UnserialisableValue(refusal.format(kinds=", ".join(kinds), edge=edge, error=error)) from error

    def _columns(self, data: bytes, where: str) -> _WithKeys:
        try:
            return self._decoder.decode(self._payload(data, where))
        except msgspec.MsgspecError as error:
            raise CorruptCheckpoint(f"{where} is malformed, though its checksum is right: {error}") from error

    def _payload(self, data: bytes, where: str) -> bytes:
        if len(data) < _HEADER.size:
            raise CorruptCheckpoint(f"{where} is truncated: {len(data)} bytes")
        version, checksum = _HEADER.unpack_from(data)
        payload = data[_HEADER.size :]
        if checksum != (found := _checksum(version, payload)):
            raise CorruptCheckpoint(f"{where} is altered: expected checksum {checksum:08x}, found {found:08x}")
        if version != VERSION:
            raise IncompatibleState(
                f"{where} has format {version}, and this version of streamactors reads {VERSION}: "
                "use the version that wrote it, or a newer one."
            )
        return payload

    def _decode_values(self, data: bytes, where: str, advice: str) -> list[Any]:
        try:
            return self._values.decode_many(data)
        except IncompatibleState as error:
            raise IncompatibleState(f"{where}: {error}. {advice}") from error
        except (ValueError, TypeError, LookupError, msgspec.MsgspecError) as error:
            raise IncompatibleState(
                f"{where}: its records can't be read, though its checksum is right: {error}; "
                "has their class been changed?"
            ) from error


_About = tuple[
    list[int | None] | None, list[int] | None, list[int] | None, str, tuple[str, str] | None, list[str | None] | None
]


def _about(batch: Batch) -> _About:
    """The columns beside the values and the keys."""
    timestamps, groups, origins = _listed(batch.timestamps), _listed(batch.groups), _listed(batch.origins)
    return timestamps, groups, origins, batch.split, batch.home, _listed(batch.ids)


def _packed(columns: _Columns, edge: EdgeKey) -> bytes:
    try:
        return _sealed(msgspec.msgpack.encode(columns))
    except (TypeError, ValueError, OverflowError) as error:
        raise UnserialisableValue(
            f"a time-stamp or record number on the edge {edge} can't be stored: {error}; give an int"
        ) from error


def _sealed(payload: bytes) -> bytes:
    return _HEADER.pack(VERSION, _checksum(VERSION, payload)) + payload


def _listed(column: Sequence[Any] | None) -> list[Any] | None:
    """Columns may be tuples or ranges."""
    return column if column is None or isinstance(column, list) else list(column)


def _checksum(version: int, payload: bytes) -> int:
    return zlib.crc32(payload, version)
