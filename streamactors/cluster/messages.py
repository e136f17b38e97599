"""What the coordinator and a worker tell each other about one attempt, as typed msgpack.

Controls and reports of the runtime go as they are, but for those that hold a future, an object or an error of this
process: these become numbers and data here. Both sides run the same version of this package.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, get_args

import msgspec

from streamactors.checkpoint.manifest import FileHandle
from streamactors.checkpoint.storage.contract import Written
from streamactors.cluster.failures import SentError
from streamactors.elements import Barrier
from streamactors.graph.physical import SubtaskId
from streamactors.runtime.info import ChannelFill
from streamactors.runtime.messages import (
    AlignmentExpired,
    AttachTap,
    Control,
    DetachTap,
    Failed,
    Query,
    Report,
)


class Post(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A message, by its kind's number in a vocabulary."""

    kind: int
    data: msgspec.Raw


class Vocabulary:
    """The kinds of messages that go one way."""

    def __init__(self, kinds: Iterable[type]) -> None:
        self._kinds = tuple(kinds)
        self._numbers = {kind: number for number, kind in enumerate(self._kinds)}
        self._decoders: list[msgspec.msgpack.Decoder[Any]] = [msgspec.msgpack.Decoder(kind) for kind in self._kinds]
        self._posts = msgspec.msgpack.Decoder(list[Post])

    def post(self, message: object, hook: Callable[[Any], Any] | None = None) -> Post:
        """`hook` makes plain data of what is none. Raises what msgspec does where that is not done."""
        return Post(self._numbers[type(message)], msgspec.Raw(msgspec.msgpack.encode(message, enc_hook=hook)))

    def open(self, post: Post) -> Any:
        return self._decoders[post.kind].decode(post.data)

    def read(self, body: bytes | memoryview) -> Iterator[Any]:
        return map(self.open, self._posts.decode(body))


def bundled(posts: Sequence[Post]) -> bytes:
    return msgspec.msgpack.encode(posts)


# ---------------------------------------------------------------------------------------------------- to a worker: once
class RestoredFrom(msgspec.Struct, frozen=True):
    """What of a restored checkpoint a worker needs to find its files: `folder` is relative to `root`."""

    root: str
    folder: str
    run: int
    attempt: int
    checkpoint: int
    savepoint: bool


class Prepare(msgspec.Struct, frozen=True):
    """Put your slice together; nothing of it runs yet. `common` (the AttemptSpec but for what is restored, and the
    Placement) and `own` (what your subtasks restore): as the deployment ships objects."""

    common: bytes
    own: bytes
    restored: RestoredFrom | None


class Go(msgspec.Struct, frozen=True):
    """All are prepared: run."""


class End(msgspec.Struct, frozen=True):
    """Shut your slice down."""


class Beat(msgspec.Struct, frozen=True):
    """The coordinator lives."""


# ---------------------------------------------------------------------------------------------------------- to a worker
@dataclass(slots=True)
class Told:
    """A control message to some subtasks, by their numbers in the plan. More are added while it waits to be sent."""

    post: Post
    subtasks: list[int]


class Asked(msgspec.Struct, frozen=True):
    """A Query, which `number` stands for. `key`: by AnySerializer."""

    number: int
    subtask: int
    uid: str
    state: str
    key: bytes
    group: int


class Tapping(msgspec.Struct, frozen=True):
    """AttachTap: what is emitted goes on to tap `number`, `buffer` values at most waiting for it in each worker."""

    number: int
    subtask: int
    uid: str
    tag: str | None
    buffer: int


class Untapping(msgspec.Struct, frozen=True):
    number: int
    subtask: int
    uid: str
    tag: str | None


class Settle(msgspec.Struct, frozen=True):
    """The checkpoint was given up: write nothing more for it, and say so."""

    checkpoint: int


class Reused(msgspec.Struct, frozen=True):
    """The answer to MayReuse."""

    number: int
    files: tuple[FileHandle | None, ...]
    error: SentError | None = None


@dataclass(slots=True)
class Others:
    """By group of aligned sources, where the slowest of the other workers is; None: none of them counts. Changed while
    it waits to be sent."""

    groups: dict[str, int | None]


# -------------------------------------------------------------------------------------------------------- from a worker
class Prepared(msgspec.Struct, frozen=True):
    """It can run."""


class Unprepared(msgspec.Struct, frozen=True):
    error: SentError


class Broken(msgspec.Struct, frozen=True):
    """Failed."""

    subtask: SubtaskId | None
    error: SentError


class MayReuse(msgspec.Struct, frozen=True):
    """Which of these contents has an earlier checkpoint stored already?"""

    number: int
    barrier: Barrier
    contents: tuple[Written, ...]


class Answered(msgspec.Struct, frozen=True):
    """`value`: by AnySerializer."""

    number: int
    value: bytes
    error: SentError | None = None


class Tapped(msgspec.Struct, frozen=True):
    """`values`: many, by AnySerializer; `lost`: how many have given way ahead of them."""

    number: int
    values: bytes
    lost: int


class Settled(msgspec.Struct, frozen=True):
    checkpoint: int


@dataclass(frozen=True, slots=True)
class Vitals:
    """The worker lives, and so do its subtasks. `fills`: by subtask and place, of channels on which anything waits."""

    metrics: dict[str, Any] = field(default_factory=dict)
    fills: dict[str, dict[int, ChannelFill]] = field(default_factory=dict)
    bytes_read: int = 0


@dataclass(slots=True)
class Slowest:
    """By group of aligned sources, where the slowest here is; changed while it waits to be sent."""

    groups: dict[str, int | None]


class Ended(msgspec.Struct, frozen=True):
    """Nothing of the slice is left."""


_LOCAL: Final = (Query, AttachTap, DetachTap, AlignmentExpired, Failed)

CONTROLS: Final = Vocabulary(kind for kind in get_args(Control) if kind not in _LOCAL)
"""What subtasks are told."""
TO_WORKER: Final = Vocabulary(
    (Prepare, Go, Told, Asked, Tapping, Untapping, Settle, Reused, Others, Beat, End),
)
FROM_WORKER: Final = Vocabulary(
    (
        *(kind for kind in get_args(Report) if kind not in _LOCAL),
        *(Prepared, Unprepared, Broken, MayReuse, Answered, Tapped, Settled, Slowest, Vitals, Ended),
    )
)
