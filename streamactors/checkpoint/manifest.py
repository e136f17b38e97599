"""What a checkpoint consists of, and the envelope in which every small file of a store is kept. Pure: bytes in and out.

Envelope: magic, kind, flags, format version, length and digest of the payload, checksum of this header; then the
payload (msgpack). The header's layout never changes, so that every version can read the version number of every other.

Versions: another major number means that an older reader would misread, and it refuses. A higher minor number only adds
fields that an older reader may ignore, and ignores. What a reader must know although the format is the same, because
ignoring it would lose data (in-flight elements, increments), is named in `Manifest.requires`, and only by manifests
that use it.
"""

import hashlib
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple, TypeVar

import msgspec

from streamactors.checkpoint.storage.contract import DIGEST_SIZE, Written
from streamactors.checkpoint.storage.uris import is_plain_path
from streamactors.errors import CorruptCheckpoint, IncompatibleState, UnserialisableValue

S = TypeVar("S", bound=msgspec.Struct)

MAGIC: Final = b"strmactr"
FORMAT: Final = (1, 0)
HEADER: Final = struct.Struct(">8s4sBHHQ16sI")
_CHECKED: Final = HEADER.size - 4
_TRANSACTIONAL: Final = 1
_INCREMENTAL: Final = 2
"""Flags in the header, which may be readable where the payload is not."""

IN_FLIGHT: Final = "in-flight"
OPERATOR_LISTS: Final = "operator-lists"
WATERMARKS_IN_FLIGHT: Final = "watermarks-in-flight"
NATIVE_FILES: Final = "native-files"
BROADCAST_STATE: Final = "broadcast-state"
SECOND_INPUTS: Final = "second-inputs-in-flight"
PACKED_FILES: Final = "packed-files"
KNOWN_REQUIREMENTS: Final = frozenset(
    {IN_FLIGHT, OPERATOR_LISTS, WATERMARKS_IN_FLIGHT, NATIVE_FILES, BROADCAST_STATE, SECOND_INPUTS, PACKED_FILES}
)
"""What this version can restore beyond the plain format."""

EdgeKind = Literal["forward", "rebalance", "broadcast", "keyed"]
"""How an edge spread its records; "forward" includes edges inside a chain."""


# ----------------------------------------------------------------------------------------------------------- structure
class FileHandle(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file; `path` is relative to the flow's folder, in a savepoint to its own folder. `size` in bytes, and `digest`,
    are those of the whole file. What the handle stands for begins at byte `start`: offsets in it count from there."""

    path: str
    size: int
    digest: bytes
    start: int = 0

    def holds(self, offset: int, length: int) -> bool:
        return 0 <= offset <= offset + length and self.start >= 0 and self.start + offset + length <= self.size


class BlockRef(msgspec.Struct, frozen=True, array_like=True):
    """The entries of one state and key group, as `length` bytes at `offset` of a file."""

    state: str
    group: int
    entries: int
    offset: int
    length: int


class KeyedHandle(msgspec.Struct, frozen=True):
    """Keyed state of one operator subtask, in one file."""

    file: FileHandle
    blocks: tuple[BlockRef, ...]


class NativeFileHandle(msgspec.Struct, frozen=True, array_like=True):
    """One file of a native snapshot, called `name` by whoever made it: `size` bytes at `offset` of a stored file. What
    later checkpoints may refer to as well is a stored file by itself."""

    name: str
    file: FileHandle
    offset: int
    size: int


class NativeHandle(msgspec.Struct, frozen=True):
    """Keyed state of one operator subtask, of the key groups from `start` up to `stop`, as files in the format of a
    state backend. `entries`: keys by state and key group."""

    format: str
    start: int
    stop: int
    files: tuple[NativeFileHandle, ...]
    entries: dict[str, dict[int, int]]


class ListRef(msgspec.Struct, frozen=True, array_like=True):
    """Consecutive items of one state without a key, as `length` bytes at `offset` of a file. `union`: every subtask is
    given them; `broadcast`: every subtask has left such entries, and is given those of one; else they are dealt out."""

    state: str
    items: int
    offset: int
    length: int
    union: bool = False
    broadcast: bool = False


class ListsHandle(msgspec.Struct, frozen=True):
    """List state without a key of one operator subtask, in one file; per state, `blocks` are in the list's order."""

    file: FileHandle
    blocks: tuple[ListRef, ...]


class EdgeKey(msgspec.Struct, frozen=True, array_like=True):
    """Names an edge between two operators, whether chained or not, over versions of the flow. `tag`: the side output
    that it carries. `ordinal`: among edges that are otherwise alike, as in a union of a stream with itself. `side`: the
    input that it enters, 0, or 1 for the right (or broadcast) one of an operator with two."""

    upstream: str
    downstream: str
    tag: str | None = None
    ordinal: int = 0
    side: int = 0

    def __str__(self) -> str:
        tag = "" if self.tag is None else f" (side output {self.tag!r})"
        ordinal = f" (no. {self.ordinal + 1})" if self.ordinal else ""
        side = " (second input)" if self.side else ""
        return f"{self.upstream!r} → {self.downstream!r}{tag}{ordinal}{side}"


class InFlightEdge(msgspec.Struct, frozen=True, array_like=True):
    """An edge as it was when the checkpoint was taken."""

    key: EdgeKey
    kind: EdgeKind


class FrameRef(msgspec.Struct, frozen=True, array_like=True):
    """One batch in flight on edge `edge` (an index into the handle's), to subtask `receiver` of its downstream
    operator, as `length` bytes at `offset` of a file. `unsent`: it lay with subtask `sender` of its upstream operator,
    behind all that lay with its receiver; else `sender` only tells channels apart, since who sent it may be long gone.
    `groups`: the lowest and the highest key group of its records; None where they have none. `records` 0: it is a
    watermark, or idleness, between batches."""

    edge: int
    sender: int
    receiver: int
    unsent: bool
    groups: tuple[int, int] | None
    records: int
    offset: int
    length: int
    home: tuple[str, str] | None = None


class ChannelTime(msgspec.Struct, frozen=True, array_like=True):
    """What an input channel of a subtask, from subtask `sender` of the upstream operator, had told of event time.
    `ended`: no record was to come on it."""

    edge: EdgeKey
    sender: int
    watermark: int
    idle: bool = False
    ended: bool = False


class GroupTime(msgspec.Struct, frozen=True, array_like=True):
    """The watermark of the key groups from `first` to `last`."""

    first: int
    last: int
    watermark: int


class InFlightHandle(msgspec.Struct, frozen=True):
    """What was in flight in one subtask, in one file. Per channel, `frames` are listed in the channel's order."""

    file: FileHandle
    edges: tuple[InFlightEdge, ...]
    frames: tuple[FrameRef, ...]


class NodeState(msgspec.Struct, frozen=True, omit_defaults=True):
    """One operator in one subtask. `positions` by split; `pending`: a sink's transactions not known to be committed.
    `lists`: its list state without a key, None if that is empty, whose schemas are `list_schemas`. `ahead`: the key
    groups whose watermark is later than `watermark`. `splits`: by split, where its watermarks go on."""

    uid: str
    keyed: tuple[KeyedHandle, ...] = ()
    schemas: dict[str, Any] = msgspec.field(default_factory=dict)
    positions: dict[str, Any] = msgspec.field(default_factory=dict)
    pending: tuple[Any, ...] = ()
    watermark: int | None = None
    lists: ListsHandle | None = None
    list_schemas: dict[str, Any] = msgspec.field(default_factory=dict)
    ahead: tuple[GroupTime, ...] = ()
    splits: dict[str, Any] = msgspec.field(default_factory=dict)
    native: tuple[NativeHandle, ...] = ()

    @property
    def entries(self) -> int:
        """Of keyed state, in whatever format."""
        native = sum(sum(groups.values()) for handle in self.native for groups in handle.entries.values())
        return native + sum(block.entries for keyed in self.keyed for block in keyed.blocks)


class SubtaskState(msgspec.Struct, frozen=True, omit_defaults=True):
    """A subtask's acknowledgement; its nodes are the operators chained in it. `ended`: it had seen its end of data.
    `channels`: event time by input channel, of all of them where the flow has watermarks."""

    vertex: str
    index: int
    nodes: tuple[NodeState, ...]
    ended: bool = False
    in_flight: InFlightHandle | None = None
    channels: tuple[ChannelTime, ...] = ()


class OperatorMeta(msgspec.Struct, frozen=True):
    """`named` False: the uid was made from the step's place in the flow."""

    uid: str
    kind: str
    parallelism: int
    max_parallelism: int
    named: bool = True


class Manifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`transactional`: the flow has transactional sinks. `final`: nothing is to be read after this checkpoint.
    `rescaled`: the job ran by another parallelism than it was started with. `requires`: what a reader must know (see
    the module)."""

    flow: str
    run: int
    attempt: int
    checkpoint: int
    time_ms: int
    operators: tuple[OperatorMeta, ...]
    subtasks: tuple[SubtaskState, ...]
    savepoint: bool = False
    transactional: bool = False
    final: bool = False
    rescaled: bool = False
    requires: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[FileHandle, ...]:
        """Every file that it refers to, once."""
        files = (file for subtask in self.subtasks for file in _files(subtask))
        return tuple({file.path: FileHandle(file.path, file.size, file.digest) for file in files}.values())

    @property
    def state_bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def own_files(self) -> tuple[FileHandle, ...]:
        """Those that were written for it, and not for an earlier checkpoint."""
        own = f"run-{self.run}/attempt-{self.attempt}/chk-{self.checkpoint}/"
        return self.files if self.savepoint else tuple(file for file in self.files if file.path.startswith(own))

    def reusable_files(self) -> Iterator[FileHandle]:
        """Those that a later checkpoint may refer to."""
        for _, node in self.nodes():
            yield from (keyed.file for keyed in node.keyed)
            for native in node.native:
                yield from (part.file for part in native.files if part.size == part.file.size)

    @property
    def entries(self) -> int:
        """Entries of keyed state."""
        return sum(node.entries for _, node in self.nodes())

    @property
    def in_flight_records(self) -> int:
        return sum(frame.records for _, _, frame in self.in_flight())

    @property
    def in_flight_bytes(self) -> int:
        return sum(frame.length for _, _, frame in self.in_flight())

    def in_flight(self) -> Iterator[tuple[InFlightHandle, InFlightEdge, FrameRef]]:
        """Every frame, by subtask, in listing order."""
        for subtask in self.subtasks:
            handle = subtask.in_flight
            if handle is not None:
                for frame in handle.frames:
                    yield handle, handle.edges[frame.edge], frame

    def nodes(self, uid: str | None = None) -> Iterator[tuple[SubtaskState, NodeState]]:
        """Every operator subtask, or those of operator `uid`."""
        for subtask in self.subtasks:
            for node in subtask.nodes:
                if uid is None or node.uid == uid:
                    yield subtask, node

    def operator(self, uid: str) -> OperatorMeta | None:
        return next((operator for operator in self.operators if operator.uid == uid), None)


def requirements(subtasks: Iterable[SubtaskState]) -> tuple[str, ...]:
    """What a manifest of these has to put into `requires`."""
    subtasks = tuple(subtasks)
    in_flight = any(subtask.in_flight is not None and subtask.in_flight.frames for subtask in subtasks)
    lists = any(node.lists is not None for subtask in subtasks for node in subtask.nodes)
    marks = any(not frame.records for subtask in subtasks for frame in _frames(subtask))
    native = any(node.native for subtask in subtasks for node in subtask.nodes)
    named = {
        IN_FLIGHT: in_flight,
        OPERATOR_LISTS: lists,
        WATERMARKS_IN_FLIGHT: marks,
        NATIVE_FILES: native,
        BROADCAST_STATE: any(ref.broadcast for subtask in subtasks for ref in _lists(subtask)),
        SECOND_INPUTS: any(edge.key.side for subtask in subtasks for edge in _edges(subtask)),
        PACKED_FILES: any(file.start for subtask in subtasks for file in _files(subtask)),
    }
    return tuple(name for name, needed in named.items() if needed)


def _files(subtask: SubtaskState) -> Iterator[FileHandle]:
    for node in subtask.nodes:
        for keyed in node.keyed:
            yield keyed.file
        for native in node.native:
            yield from (part.file for part in native.files)
        if node.lists is not None:
            yield node.lists.file
    if subtask.in_flight is not None:
        yield subtask.in_flight.file


def _frames(subtask: SubtaskState) -> tuple[FrameRef, ...]:
    return subtask.in_flight.frames if subtask.in_flight is not None else ()


def _edges(subtask: SubtaskState) -> tuple[InFlightEdge, ...]:
    return subtask.in_flight.edges if subtask.in_flight is not None else ()


def _lists(subtask: SubtaskState) -> Iterator[ListRef]:
    return (ref for node in subtask.nodes if node.lists is not None for ref in node.lists.blocks)


class Epoch(msgspec.Struct, frozen=True):
    """A run's claim to the storage."""

    run: int
    owner: str
    time_ms: int


class Widest(msgspec.Struct, frozen=True):
    """The widest parallelism by uid that was ever started, over all runs."""

    parallelism: dict[str, int]


class Reference(msgspec.Struct, frozen=True):
    """Names a checkpoint: by `path` in the flow's folder (which may be moved), else by `uri`; neither: none at all.
    As a run's base it is what the run was told to start from; `claimed`: and is to be deleted once it is superseded."""

    uri: str | None = None
    path: str | None = None
    claimed: bool = False


class Receipt(msgspec.Struct, frozen=True):
    """All sink transactions up to this checkpoint are committed."""

    checkpoint: int
    time_ms: int


_KINDS: Final[dict[type[msgspec.Struct], bytes]] = {
    Manifest: b"mani",
    Epoch: b"epoc",
    Widest: b"wide",
    Reference: b"refr",
    Receipt: b"rcpt",
}


# ------------------------------------------------------------------------------------------------------------ envelope
class _Header(NamedTuple):
    magic: bytes
    kind: bytes
    flags: int
    major: int
    minor: int
    length: int
    digest: bytes
    checksum: int


def _digest(payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=DIGEST_SIZE).digest()


def _seal(kind: bytes, payload: bytes, flags: int = 0, version: tuple[int, int] = FORMAT) -> bytes:
    header = HEADER.pack(MAGIC, kind, flags, *version, len(payload), _digest(payload), 0)[:_CHECKED]
    return header + struct.pack(">I", zlib.crc32(header)) + payload


def _header(data: bytes, kind: bytes, file: str) -> _Header:
    if len(data) < HEADER.size:
        raise CorruptCheckpoint(f"{file} is truncated: expected at least {HEADER.size} bytes, found {len(data)}")
    header = _Header(*HEADER.unpack_from(data))
    if header.magic != MAGIC or header.kind != kind:
        raise CorruptCheckpoint(
            f"{file} is not the kind of file that it should be: expected it to begin with {MAGIC + kind!r}, "
            f"found {header.magic + header.kind!r}"
        )
    if header.checksum != (found := zlib.crc32(data[:_CHECKED])):
        raise CorruptCheckpoint(f"{file} is altered: expected header checksum {header.checksum:08x}, found {found:08x}")
    return header


def _unseal(data: bytes, kind: bytes, file: str) -> bytes:
    header = _header(data, kind, file)
    if header.major != FORMAT[0]:
        raise IncompatibleState(
            f"{file} has format {header.major}.{header.minor}, and this version of streamactors reads {FORMAT[0]}.x: "
            "use the version that wrote it, or a newer one."
        )
    payload = data[HEADER.size :]
    if len(payload) != header.length:
        what = "truncated" if len(payload) < header.length else "altered"
        raise CorruptCheckpoint(f"{file} is {what}: expected {HEADER.size + header.length} bytes, found {len(data)}")
    if (found := _digest(payload)) != header.digest:
        raise CorruptCheckpoint(f"{file} is altered: expected digest {header.digest.hex()}, found {found.hex()}")
    return payload


def encode(value: msgspec.Struct) -> bytes:
    """A small record, such as a `Receipt`, in its envelope."""
    return _seal(_KINDS[type(value)], msgspec.msgpack.encode(value))


def decode(data: bytes, type: type[S], file: str) -> S:
    """Raises CorruptCheckpoint or IncompatibleState, naming `file`."""
    payload = _unseal(data, _KINDS[type], file)
    try:
        return msgspec.msgpack.decode(payload, type=type)
    except msgspec.MsgspecError as error:
        raise CorruptCheckpoint(f"{file} is malformed, though its checksum is right: {error}") from error


# ------------------------------------------------------------------------------------------------------------ manifest
def encode_manifest(manifest: Manifest) -> bytes:
    """Raises UnserialisableValue, naming the operator, where positions or transactions are not plain msgpack data."""
    incremental = len(manifest.own_files) < len(manifest.files)
    flags = _TRANSACTIONAL * manifest.transactional | _INCREMENTAL * incremental
    assert set(requirements(manifest.subtasks)) <= set(manifest.requires), "an older reader would lose data"
    try:
        return _seal(_KINDS[Manifest], msgspec.msgpack.encode(manifest), flags)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UnserialisableValue(
            f"checkpoint {manifest.checkpoint} can't be written: operator {_unserialisable(manifest)!r} has a "
            f"position, a pending transaction or a schema that is not plain msgpack data ({error}). Make it of None, "
            "bool, int, float, str, bytes, lists and dicts."
        ) from error


def _unserialisable(manifest: Manifest) -> str:
    for _, node in manifest.nodes():
        try:
            msgspec.msgpack.encode(node)
        except (TypeError, ValueError, OverflowError, RecursionError):
            return node.uid
    return manifest.flow


def decode_manifest(data: bytes, file: str) -> Manifest:
    """Raises CorruptCheckpoint or IncompatibleState, naming `file`."""
    manifest = decode(data, Manifest, file)
    if unknown := sorted(set(manifest.requires) - KNOWN_REQUIREMENTS):
        raise IncompatibleState(
            f"{file} needs {', '.join(unknown)}, which this version of streamactors can't restore: "
            "use the version that wrote it, or a newer one."
        )
    for handle in manifest.files:
        if not is_plain_path(handle.path) or handle.size < 0 or len(handle.digest) != DIGEST_SIZE:
            raise CorruptCheckpoint(f"{file} is malformed: it refers to {handle}")
    _check_in_flight(manifest, file)
    _check_lists(manifest, file)
    _check_native(manifest, file)
    return manifest


def _check_native(manifest: Manifest, file: str) -> None:
    for _, node in manifest.nodes():
        for handle in node.native:
            for part in handle.files:
                if not part.file.holds(part.offset, part.size) or "/" in part.name or not is_plain_path(part.name):
                    raise CorruptCheckpoint(f"{file} is malformed: of operator {node.uid!r} it lists {part}")


def _check_lists(manifest: Manifest, file: str) -> None:
    for _, node in manifest.nodes():
        if node.lists is not None:
            for ref in node.lists.blocks:
                if not node.lists.file.holds(ref.offset, ref.length) or ref.items <= 0:
                    raise CorruptCheckpoint(f"{file} is malformed: of operator {node.uid!r} it lists {ref}")


def _check_in_flight(manifest: Manifest, file: str) -> None:
    operators = {operator.uid: operator for operator in manifest.operators}
    for subtask in manifest.subtasks:
        if subtask.in_flight is not None:
            _check_frames(subtask.in_flight, operators, file)


def _check_frames(handle: InFlightHandle, operators: Mapping[str, OperatorMeta], file: str) -> None:
    for frame in handle.frames:
        if not 0 <= frame.edge < len(handle.edges):
            raise CorruptCheckpoint(f"{file} is malformed: {frame} is on none of its {len(handle.edges)} edges")
        edge = handle.edges[frame.edge]
        if not _is_sound(operators, handle.file, edge, frame):
            raise CorruptCheckpoint(f"{file} is malformed: on the {edge.kind} edge {edge.key} it lists {frame}")


def _is_sound(operators: Mapping[str, OperatorMeta], written: FileHandle, edge: InFlightEdge, frame: FrameRef) -> bool:
    upstream, downstream = operators.get(edge.key.upstream), operators.get(edge.key.downstream)
    if upstream is None or downstream is None:
        return False
    inside = written.holds(frame.offset, frame.length)
    senders = upstream.parallelism if frame.unsent else frame.sender + 1
    between = 0 <= frame.sender < senders and 0 <= frame.receiver < downstream.parallelism
    grouped = frame.groups is not None or edge.kind != "keyed" or frame.records == 0
    return inside and between and grouped and frame.records >= 0


def is_transactional(data: bytes) -> bool | None:
    """Whether a manifest's flow has transactional sinks, also if its payload is damaged; None if that can't be told."""
    try:
        return bool(_header(data, _KINDS[Manifest], "").flags & _TRANSACTIONAL)
    except CorruptCheckpoint:
        return None


def is_incremental(data: bytes) -> bool | None:
    """Likewise, whether it refers to files that were written for others."""
    try:
        return bool(_header(data, _KINDS[Manifest], "").flags & _INCREMENTAL)
    except CorruptCheckpoint:
        return None


def verify(handle: FileHandle, found: Written, file: str) -> None:
    """Raises CorruptCheckpoint if what was found is not what was written."""
    verify_size(handle, found.size, file)
    if found.digest != handle.digest:
        raise CorruptCheckpoint(f"{file} is altered: expected digest {handle.digest.hex()}, found {found.digest.hex()}")


def verify_size(handle: FileHandle, size: int, file: str) -> None:
    if size != handle.size:
        what = "truncated" if size < handle.size else "altered"
        raise CorruptCheckpoint(f"{file} is {what}: expected {handle.size} bytes, found {size}")
