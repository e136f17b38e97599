"""A sorted run on disk.

A run is a row of blocks, each behind its length: how many rows each key has, their sides, and two frames as in-flight
data has them (`checkpoint/frames`), of the keys and of the rows.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, pairwise
from typing import Any, Final

import msgspec

from streamactors.checkpoint.frames import FrameCodec
from streamactors.checkpoint.manifest import EdgeKey
from streamactors.checkpoint.storage.scratch import ScratchFile
from streamactors.elements import Batch
from streamactors.errors import StorageFailed, UnserialisableValue
from streamactors.runtime.bounded.rows import KeyRows
from streamactors.state.storage_keys import StorageKeys

_LENGTH: Final = 8
_ADVICE: Final = "Free space there, name another folder by Config(sort_folder=…), or raise sort_memory"


class _Block(msgspec.Struct, array_like=True, gc=False):
    counts: list[int]
    sides: list[int] | None
    keys: bytes
    rows: bytes


class RunFormat:
    """Of one stage's runs. `edge` names it in errors."""

    def __init__(self, codec: FrameCodec, edge: EdgeKey) -> None:
        self._codec = codec
        self._edge = edge
        self._keys = StorageKeys()
        self._decoder = msgspec.msgpack.Decoder(_Block)

    def order(self, key: Any) -> bytes:
        """Equal keys have the same. Raises UnserialisableKey."""
        return self._keys.encode(key)

    def encode(self, pieces: Sequence[KeyRows]) -> bytes:
        """Raises UnserialisableValue."""
        try:
            block = msgspec.msgpack.encode(self._block(pieces))
        except UnserialisableValue as error:
            kinds = sorted({type(value).__qualname__ for piece in pieces for value in piece.values})
            raise UnserialisableValue(
                f"{self._edge.downstream!r} takes in more than sort_memory holds, and records of type "
                f"{', '.join(kinds)} can't be written to disk: {error.__cause__ or error}. Raise Config(sort_memory=…)"
            ) from error
        return len(block).to_bytes(_LENGTH) + block

    def _block(self, pieces: Sequence[KeyRows]) -> _Block:
        stamped = any(piece.stamps is not None for piece in pieces)
        known = all(piece.origins is not None for piece in pieces)
        named = any(piece.ids is not None for piece in pieces)
        rows = Batch(
            _joined([piece.values for piece in pieces]),
            _joined([piece.stamps or [None] * len(piece.values) for piece in pieces]) if stamped else None,
            origins=_joined([piece.origins or () for piece in pieces]) if known else None,
            ids=_joined([piece.ids or [None] * len(piece.values) for piece in pieces]) if named else None,
        )
        keys = Batch([piece.key for piece in pieces], groups=[piece.group for piece in pieces])
        return _Block(
            [len(piece.values) for piece in pieces],
            None if pieces[0].sides is None else _joined([piece.sides or () for piece in pieces]),
            self._codec.encode(keys, self._edge).data,
            self._codec.encode(rows, self._edge).data,
        )

    def decode(self, data: bytes) -> Iterator[KeyRows]:
        """Raises CorruptCheckpoint if it is not what was written."""
        where = f"a sorted run of {self._edge.downstream!r}"
        block = self._decoder.decode(data)
        keys, rows = self._codec.decode(block.keys, where), self._codec.decode(block.rows, where)
        whole = KeyRows(0, b"", None, rows.values, rows.timestamps, block.sides, rows.origins, rows.ids)
        bounds = pairwise(accumulate(block.counts, initial=0))
        for key, group, (start, stop) in zip(keys.values, keys.groups or (), bounds, strict=True):
            yield whole.part(start, stop)._replace(group=group, order=self.order(key), key=key)


class SpilledRun:
    """Blocks: for threads. `level`: how often its rows have been merged."""

    def __init__(self, format: RunFormat, folder: str | None, level: int = 0) -> None:
        self.level = level
        self._format = format
        try:
            self._file = ScratchFile(folder)
        except StorageFailed as error:
            raise _advised(error) from error

    def write(self, pieces: Iterable[KeyRows], block_rows: int) -> None:
        """All of it, `block_rows` or so at a time. Raises StorageFailed, UnserialisableValue."""
        held: list[KeyRows] = []
        rows = 0
        for piece in _cut(pieces, block_rows):
            if held and rows + len(piece.values) > block_rows:
                self._append(held)
                held, rows = [], 0
            held.append(piece)
            rows += len(piece.values)
        if held:
            self._append(held)

    def _append(self, pieces: Sequence[KeyRows]) -> None:
        try:
            self._file.append(self._format.encode(pieces))
        except StorageFailed as error:
            raise _advised(error) from error

    def read(self) -> Iterator[KeyRows]:
        """Holds one block in memory."""
        at = 0
        while at < self._file.size:
            length = int.from_bytes(self._file.read(at, _LENGTH))
            yield from self._format.decode(self._file.read(at + _LENGTH, length))
            at += _LENGTH + length

    @property
    def size(self) -> int:
        """Bytes."""
        return self._file.size

    def close(self) -> None:
        self._file.close()


def _cut(pieces: Iterable[KeyRows], rows: int) -> Iterator[KeyRows]:
    for piece in pieces:
        if len(piece.values) <= rows:
            yield piece
        else:
            yield from (piece.part(start, start + rows) for start in range(0, len(piece.values), rows))


def _joined(columns: Sequence[Sequence[Any]]) -> list[Any]:
    return list(chain.from_iterable(columns))


def _advised(error: StorageFailed) -> StorageFailed:
    return StorageFailed(f"{error}. {_ADVICE}")
