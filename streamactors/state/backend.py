"""What every store of keyed state offers to the runtime. `heap` fulfils it; the contract tests hold for each.

State lives under (state name, key group, key). A backend belongs to one operator subtask and one event loop; it is
never called from two threads at once.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

from streamactors.state.descriptors import Declaration
from streamactors.state.key_groups import KeyGroupRange

StateT = TypeVar("StateT", bound=Declaration)

INACTIVE: Final = -1
"""The group of a cursor that stands on no key."""

BLOCK_SECONDS: Final = 0.0005
"""What making one block of a snapshot may take, unless told."""


class Cursor:
    """The key in hand.

    The runtime writes `key` and `group` before each record, and calls `clear` after each batch: state reached while it
    is inactive raises StateAccessError.
    """

    __slots__ = ("group", "key")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.key: Any = None
        self.group: int = INACTIVE

    def stands_on(self, key: Any, group: int) -> bool:
        return self.group == group and bool(self.key == key)


@dataclass(frozen=True, slots=True)
class StateBlock:
    """Some entries of one key group of one state, in the canonical format that every backend reads. `rewritten`: under
    today's schema, whatever the checkpoint's is."""

    state: str
    group: int
    entries: int
    data: bytes
    rewritten: bool = False


class KeyedSnapshot(Protocol):
    """The state as it was at `begin_snapshot`, given out bit by bit while processing goes on."""

    @property
    def checkpoint_id(self) -> int: ...

    def next_block(self, budget_seconds: float = BLOCK_SECONDS, *, max_entries: int | None = None) -> StateBlock | None:
        """The next block: about as much as can be serialised in `budget_seconds`; None when all was given out.

        Call it between batches. An entry is never split: a long list takes the time that it takes. Raises
        UnserialisableValue or UnserialisableKey, naming operator, state and key; the snapshot is then aborted.
        """

    def abort(self) -> None:
        """Let go of everything. No harm if it has ended."""


class KeyedBackend(Protocol):
    """Keyed state of one operator subtask."""

    @property
    def groups(self) -> KeyGroupRange: ...

    @property
    def cursor(self) -> Cursor: ...

    def attach(self, cursor: Cursor) -> None:
        """Use this cursor from now on, also for states that are bound already."""

    def bind(self, name: str, declaration: StateT) -> StateT:
        """The declaration's living twin, an instance of the same class. Bind all states before restoring.

        Raises InvalidDataflow for a type that can't be stored, a default that does not fit, or a name taken.
        """

    @property
    def declarations(self) -> Mapping[str, Declaration]:
        """Of the states bound, by name."""

    def begin_snapshot(self, checkpoint_id: int) -> KeyedSnapshot:
        """The synchronous part: takes time by the number of key groups, never of keys. Several may run at once."""

    def check_schemas(self, stored: Mapping[str, Any], *, allow_dropped: bool = False) -> None:
        """Whether the states bound now can read what was written under `stored`: what `schemas` returned then.

        Raises IncompatibleState naming operator, state, field and both types. `allow_dropped` gives up stored states
        that are no longer declared.
        """

    def restore(self, blocks: Iterable[StateBlock]) -> None:
        """Add what the blocks hold; may be called again and again. Blocks of states that are not bound are skipped:
        `check_schemas` has refused them or was allowed to drop them.

        Raises IncompatibleState for a group outside `groups` or a value that does not fit, CorruptCheckpoint for what
        can't be read at all.
        """

    def query(self, name: str, key: Any, group: int) -> Any:
        """A copy of what a key holds: the value, a list, a dict, an aggregate's result. Call it between records.

        A key without a value has the default, or None where that is a bare `object()`.
        Raises StateAccessError for an unknown state or a group outside `groups`.
        """

    def scan(self, name: str) -> Iterator[tuple[int, Any, Any]]:
        """(group, key, copy of what it holds) of every entry of one state; of an aggregate, its accumulator."""

    def schemas(self) -> dict[str, Any]:
        """By state name, plain and msgpack-able; goes into the manifest."""

    def entries(self) -> dict[str, int]:
        """How many keys each state holds, for metrics. What has expired counts until it is swept."""

    @property
    def lifetimes(self) -> Mapping[str, float]:
        """In seconds, of the states that have a ttl: those are to be swept."""

    async def sweep(self, name: str, group: int, turn: Callable[[], Awaitable[None]]) -> None:
        """Delete what has expired in one key group of one state. Works in slices of less than a millisecond, and awaits
        `turn` between them; reads no disk on the loop. Snapshots that are running and what is cached stay as they are,
        and so does the key in hand. Ends early, or raises StateAccessError, if the backend is closed meanwhile."""

    def close(self) -> None:
        """Abort snapshots and let go of all state; what is bound raises StateAccessError from now on."""


@runtime_checkable
class SettlingSnapshot(Protocol):
    """A snapshot, canonical or native, for which something is to be written before anything of it is given out."""

    async def settle(self, turn: Callable[[], Awaitable[None]]) -> None:
        """Do that, soon after the beginning, in slices of less than a millisecond; `turn` is awaited between them. What
        is changed meanwhile waits in memory. May be cancelled. Raises what the snapshot's giving out would."""


# ----------------------------------------------------------------------------------------------------- native snapshots
@dataclass(frozen=True, slots=True)
class NativeFile:
    """A file of a native snapshot: `path` is where it lies until the snapshot is aborted, `name` what a restore wants
    it called. `digest` is blake2b (16 bytes) over the whole file; content is its identity, since names may come again.
    `shared`: it never changes, and later snapshots are likely to have it as well."""

    name: str
    path: str
    size: int
    digest: bytes
    shared: bool


class NativeSnapshot(Protocol):
    """The state as it was when it began, as files in the backend's own format. In this order:

    `settle` on the loop (see `SettlingSnapshot`), `link` in a thread, `linked` on the loop, `files` and `read` in a
    thread; then `abort`.
    """

    @property
    def checkpoint_id(self) -> int: ...

    @property
    def format(self) -> str:
        """What can restore it."""

    @property
    def entries(self) -> Mapping[str, Mapping[int, int]]:
        """Keys by state and key group, without zeros, once it has settled. Empty: there is no state, and there are no
        files."""

    async def settle(self, turn: Callable[[], Awaitable[None]]) -> None: ...

    def link(self) -> None:
        """Blocks. What is changed meanwhile stays in memory."""

    def linked(self) -> None:
        """`link` is through, or has failed, or will not be called."""

    def files(self) -> list[NativeFile]:
        """Blocks: new files are read, to hash them."""

    def read(self, file: NativeFile, offset: int, length: int) -> bytes:
        """Some of a file's bytes. Blocks."""

    def abort(self) -> None:
        """Let go of the files, stored or not, and delete the links; in any thread. Not while another call runs. No harm
        if it has ended."""


@dataclass(frozen=True, slots=True)
class NativePart:
    """Files of one native snapshot, in a local folder under their names; `groups` is what its subtask owned. `digests`:
    of shared files, as `NativeFile` has them, where they are known."""

    folder: str
    groups: KeyGroupRange
    digests: dict[str, bytes] = field(default_factory=dict)


@runtime_checkable
class NativeBackend(Protocol):
    """What a backend offers besides, if it has a format of its own."""

    @property
    def native_format(self) -> str:
        """Of the files that it writes and reads."""

    async def ready_for_native(self) -> None:
        """Wait until `begin_native_snapshot` is likely to be possible: the one before it is linked."""

    def begin_native_snapshot(self, checkpoint_id: int) -> NativeSnapshot:
        """The synchronous part. Raises CheckpointFailed if it can't be done now: another one is not `linked` yet, or
        the backend is too busy; and what `KeyedSnapshot.next_block` raises."""

    def new_part(self, groups: KeyGroupRange) -> NativePart:
        """An empty local folder to `receive` the files of a part in; it goes with the backend at the latest. Blocks."""

    def receive(self, part: NativePart, name: str, data: bytes) -> None:
        """More of a file. Blocks."""

    def drop(self, part: NativePart) -> None:
        """It has been restored. Blocks."""

    def restore_native(self, parts: Sequence[NativePart]) -> None:
        """Take over our key groups, into empty state. Blocks: for a thread. The files stay as they are.

        Raises IncompatibleState for another max parallelism or a newer format, CorruptCheckpoint for files that are
        missing, damaged or no snapshot. `check_schemas` comes first; state whose schema has changed is rewritten.
        """


def native_of(backend: object) -> NativeBackend | None:
    """The same backend, if it has a format of its own."""
    return backend if isinstance(backend, NativeBackend) else None


@runtime_checkable
class PrefetchingBackend(Protocol):
    """A backend whose entries may have to be read from a disk."""

    async def prefetch(self, keys: Sequence[Any], groups: Sequence[int]) -> None:
        """Bring what a batch will need into memory, so that processing it does not block; and wait while too much is
        waiting to be written. Call it before the batch enters the operator."""


def prefetch_of(backend: object) -> Callable[[Sequence[Any], Sequence[int]], Awaitable[None]] | None:
    """How to bring what a batch needs into memory; None where all of it always is."""
    return backend.prefetch if isinstance(backend, PrefetchingBackend) else None
