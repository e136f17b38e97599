"""The contract of sources: a source names its splits and assigns them to subtasks; a reader reads batches from them.

Invariant that a connector keeps: reading a split again from the position that `SourceBatch.position_after(n)` gave
yields exactly the records that follow the first `n` of that batch, in the same order. Positions are plain msgpack data.
"""

import logging
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Generic, Literal, Protocol, TypeVar

from streamactors.diagnosis import Finding, PlannedStep
from streamactors.elements import DeadLetter, OutputTag
from streamactors.metrics import MetricGroup

T_co = TypeVar("T_co", covariant=True)

PENDING_RECORDS: Final = "pending_records"
"""The gauge by which a reader tells how many records it could read now: what it is behind (Flink: pendingRecords). A
reader that knows makes one of this name in `SourceContext.metrics`; the autoscaler goes by it."""
SPLITS: Final = "splits"
"""The gauge by which the runtime tells how many splits a reader has."""

Position = Any
"""Plain msgpack data, opaque to the runtime."""


class _Crash:
    def __repr__(self) -> str:
        return "CRASH"

    def __reduce__(self) -> str:
        return "CRASH"  # the one instance, also after pickling


CRASH: Any = _Crash()
"""An element that fails the job once, there, in the sources that are for tests."""


class Source(Protocol[T_co]):
    """What `Dataflow.source` takes, for type checkers; a real one derives from `SplitSource`."""

    def _yields(self) -> T_co: ...


@dataclass(frozen=True, slots=True)
class SourceContext:
    """What a reader knows about where it runs."""

    flow: str
    uid: str
    subtask: int
    parallelism: int
    checkpointing: bool
    log: logging.LoggerAdapter[logging.Logger]
    metrics: MetricGroup
    resources: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UndecodableRecord:
    """A record that the reader could not decode, met after `index` good values of its batch: for the dead letters."""

    index: int
    origin: str
    value: Any
    error: BaseException


@dataclass(slots=True)
class SourceBatch(Generic[T_co]):
    """Records of ONE split, in order.

    `position_after(n)` is where a reader goes on when the first `n` values (0 ≤ n ≤ len) and the undecodable records
    with `index` ≤ n have been taken. `origins` are the records' numbers (offset, line); `origin_prefix` + number is
    what errors show. An empty batch is allowed: it announces a split, or moves its position. `ends`: no more records of
    this split are to come, so that nobody waits for its watermark; may be left False by readers that can't pause.
    """

    split: str
    values: Sequence[T_co]
    position_after: Callable[[int], Position]
    timestamps: Sequence[int] | None = None
    origins: Sequence[int] | None = None
    origin_prefix: str = ""
    undecodable: Sequence[UndecodableRecord] = ()
    ends: bool = False


@dataclass(frozen=True, slots=True)
class InputProgress:
    """`done` of `total`, in `unit`: how much of what one subtask is to read it has read, or holds ready."""

    done: int
    total: int
    unit: Literal["bytes", "records"]


class SplitReader(ABC, Generic[T_co]):
    """Reads the splits of one subtask. One reader lives for one attempt; its calls never overlap, except that
    `checkpoint_completed` may come while a `read` is pending."""

    @abstractmethod
    async def open(self, restored: Mapping[str, Position] | None) -> Mapping[str, Position]:
        """Start. `restored` holds the positions of the splits assigned to this subtask, None on a run without any
        checkpoint. Returns the positions of all splits it now reads (those restored and those newly found)."""

    @abstractmethod
    async def read(self) -> SourceBatch[T_co] | None:
        """The next batch, waiting for one; None once every split of a bounded source has ended. A pending call
        survives barriers; it is cancelled only when the attempt ends."""

    def pause(self, splits: Collection[str]) -> bool:
        """Until told anew, give no records of these splits, and those of all others. False: it can't. Comes between
        calls of `read`, or while one is pending."""
        return False

    def progress(self) -> InputProgress | None:
        """For people who watch a bounded read; None where its end is not known. Asked for again and again, also while a
        `read` is pending: it must cost next to nothing, and never wait."""
        return None

    async def checkpoint_completed(self, checkpoint: int, positions: Mapping[str, Position]) -> None:
        """`positions` are durable; for monitoring outside only (such as a Kafka group's offsets)."""
        return None

    async def positions_released(self, positions: Mapping[str, Position]) -> None:
        """No checkpoint that is retained goes on before `positions`; a savepoint may. A source that keeps its records
        itself may delete those before them. Comes after `checkpoint_completed`, and may come while a `read` is pending.
        """
        return None

    @abstractmethod
    async def close(self) -> None:
        """Release everything; called exactly once, also after a failed `open`."""


class SplitSource(ABC, Generic[T_co]):
    """Base class of every source. An instance is shared by all subtasks and attempts: it holds settings only."""

    rewindable: ClassVar[bool] = True
    """Whether reading again from a position gives the same records; needed under checkpoints."""

    def _yields(self) -> T_co:
        raise TypeError("for type checkers only")

    @property
    @abstractmethod
    def bounded(self) -> bool:
        """Whether it ends by itself."""

    @property
    def error_tag(self) -> OutputTag[DeadLetter] | None:
        """The OutputTag that undecodable records go to, None where they fail the job."""
        return None

    @abstractmethod
    def reader(self, ctx: SourceContext) -> SplitReader[T_co]: ...

    def assign(self, split: str, parallelism: int) -> int:
        """The subtask that reads `split`: the same answer in every process."""
        return zlib.crc32(split.encode()) % parallelism

    def validate(self, *, checkpointing: bool) -> None:
        """Raise InvalidConfig for settings that can't work; called when the job is planned, before anything opens."""
        return None

    async def diagnose(self, step: PlannedStep) -> Sequence[Finding]:
        """What `streamactors doctor` should tell of the systems that this needs. Changes nothing there; raises
        StreamactorsError for what would keep it from being opened."""
        return ()

    def describe(self) -> str:
        """A few words for `explain()`; never a secret."""
        return type(self).__name__
