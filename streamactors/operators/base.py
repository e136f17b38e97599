"""The classes that users derive from, and `Link`: one operator of one subtask, working on batches.

Invariant of a link: `process(batch)` takes the whole batch, or all of it but `rest`, and returns everything it emitted
for what it took, in order; between two calls nothing is held back outside state. That is what lets a barrier pass
between two calls.
"""

import functools
import inspect
import logging
import traceback
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, ClassVar, Final, Generic, NamedTuple, TypeVar

from streamactors.clock import SYSTEM, Clock
from streamactors.elements import Batch, DeadLetter, ErrorRoute, OutputTag, TimeMark
from streamactors.errors import (
    CorruptCheckpoint,
    InvalidDataflow,
    NotBound,
    RecordFailed,
    StateAccessError,
    StorageFailed,
    StreamactorsError,
)
from streamactors.metrics import MetricGroup
from streamactors.operators import record_ids
from streamactors.operators.read_ahead import ReadAhead
from streamactors.state.backend import Cursor, KeyedBackend
from streamactors.state.operator_lists import OperatorLists
from streamactors.state.serialisation.serializers import AnySerializer
from streamactors.state.timers import Domain, TimerRow
from streamactors.time.progress import EventTime
from streamactors.time.timers import NoTimers, Timer, Timers, TimerService

T = TypeVar("T")
U = TypeVar("U")
K = TypeVar("K")
K_co = TypeVar("K_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)


# ---------------------------------------------------------------------------------------------- what users derive from
class OperatorContext:
    """Where an operator runs, and what it may use; handed to `open`."""

    def __init__(
        self,
        *,
        uid: str,
        subtask: int,
        parallelism: int,
        metrics: MetricGroup | None = None,
        resources: Mapping[str, Any] | None = None,
        flow: str = "",
    ) -> None:
        self.uid = uid
        self.subtask = subtask
        self.parallelism = parallelism
        self.metrics = metrics or MetricGroup()
        self.resources: Mapping[str, Any] = resources or {}
        """What the caller of run/start handed in by `resources=`, such as one shared HTTP client."""
        self.log = logging.LoggerAdapter(
            logging.getLogger("streamactors.operator"), {"flow": flow, "uid": uid, "subtask": subtask}
        )


class Context(Generic[K_co, T_contra]):
    """What an operator sees of the record in hand. Valid during the call only."""

    __slots__ = ()

    @property
    def key(self) -> K_co:
        raise NotBound("Context.key")

    @property
    def timestamp(self) -> int | None:
        """Milliseconds since the epoch; None where the stream has no event time."""
        raise NotBound("Context.timestamp")

    @property
    def watermark(self) -> int:
        """Milliseconds since the epoch: a record with a timestamp up to this is late. -2**63 before the first one,
        2**63 - 1 after the last record."""
        raise NotBound("Context.watermark")

    @property
    def record_id(self) -> str:
        """What the record in hand is called: the same over retries, replays, restarts and rescaling, and no other
        record's in this step. An idempotency key for calls outside."""
        raise NotBound("Context.record_id")

    @property
    def timers(self) -> Timers:
        """Those of the key in hand, on which on_timer is called."""
        raise NotBound("Context.timers")

    def emit(self, value: T_contra, timestamp: int | None = None) -> None:
        """Send a value on, with the record's own timestamp (that of the timer in hand) unless another is given."""
        raise NotBound("Context.emit")

    def emit_to(self, tag: OutputTag[T], value: T) -> None:
        """Send a value to a side output."""
        raise NotBound("Context.emit_to")

    async def drain(self) -> None:
        """For one record that turns into very many: waits for room downstream, as StreamWriter.drain does."""
        raise NotBound("Context.drain")


class Lifecycle:
    """The hooks that every operator may have."""

    _usage: ClassVar[str] = ""
    """What kind of operator it is, and how one is used: for errors."""

    def open(self, ctx: OperatorContext, /) -> Awaitable[None] | None:
        """Before the first record; get what the operator needs."""
        return None

    def close(self) -> Awaitable[None] | None:
        """After the last record, and after a failure."""
        return None


class Operator(Lifecycle, ABC, Generic[T, U]):
    """Any hook may be `def` or `async def`; which one is seen once per subtask. A plain `def` is the faster."""

    _usage = "an Operator, used as stream.process(uid, …)"

    @abstractmethod
    def process(self, value: T, ctx: Context[None, U], /) -> Awaitable[None] | None: ...


class KeyedOperator(Lifecycle, ABC, Generic[K, T, U]):
    """Like `Operator`, on a keyed stream: may declare state, which is bound to the key of the record in hand."""

    _usage = "a KeyedOperator, used as stream.key_by(…).process(uid, …)"

    @abstractmethod
    def process(self, value: T, ctx: Context[K, U], /) -> Awaitable[None] | None: ...

    def on_timer(self, timer: Timer, ctx: Context[K, U], /) -> Awaitable[None] | None:
        """Called for each timer that `ctx.timers` was given, once its time has come, with its key in hand."""
        return None


# ---------------------------------------------------------------------------------------------------- links of a chain
@dataclass(frozen=True, slots=True)
class LinkContext:
    """What a link is made with."""

    uid: str
    name: str
    operator: OperatorContext
    on_error: ErrorRoute = "fail"
    backend: KeyedBackend | None = None
    lists: OperatorLists | None = None
    """Keeps what is declared without a key."""
    drain: Callable[[Batch | None, dict[str, Batch]], Coroutine[Any, Any, None]] | None = None
    """Pushes what was emitted so far on, and waits for room downstream."""
    interrupted: Callable[[], bool] = bool
    """Whether the subtask has something to do that should not wait for a whole batch: a link whose records may take
    long asks between two of them, and leaves the others in `rest`."""
    time: EventTime = field(default_factory=EventTime)
    """How far event time has come for this link."""
    watermarks: bool = True
    """Whether any come."""
    record_ids: bool = False
    """Whether this step or one behind it asks what its records are called: those that come have `Batch.ids`."""
    passes_ids: bool = False
    """Whether one behind it does: those that it emits need them."""
    carry_groups: bool = False
    """Whether what a keyed operator emits is to carry the key group of the record that it was emitted for."""
    time_ms: Callable[[], int] = SYSTEM.time_ms
    clock: Clock = SYSTEM
    keep: AnySerializer | None = None
    """Encodes the inputs of calls before user code gets them, as a checkpoint would store them; None where there are
    none."""
    wake: Callable[[], None] = lambda: None
    """Lets the subtask look again for what there is to do."""
    starved: Callable[[], bool] = lambda: True
    """Whether nothing waits to be processed."""
    split_times: Mapping[str, Any] = field(default_factory=dict)
    """For a link that gives time: what it had stored by its own `split_times`."""


class Link(ABC):
    """One operator of one subtask."""

    sides: dict[str, Batch]
    """What the last `process` emitted to side outputs, by tag name; taken by the chain."""
    rest: Batch | None
    """What the last `process` has left of its batch, having been interrupted; taken by the chain."""
    side: int
    """The input that the next batch came in by, where there are two: 0 the left one, 1 the right; set by the chain."""
    timers: TimerService | None = None
    read_ahead: ReadAhead | None = None
    """Where what its records hold is read before it gets them."""
    gives_time: ClassVar[bool] = False
    """Whether it gives event time instead of passing it on: `marks`, `translate` and `split_times` are for that."""
    marks: Sequence[TimeMark]
    """To be told behind what it has emitted; taken by the chain."""

    def __init__(self, ctx: LinkContext) -> None:
        self.ctx = ctx
        self.uid = ctx.uid
        self.sides = {}
        self.marks = ()
        self.rest = None
        self.side = 0

    async def open(self) -> None:
        return None

    @abstractmethod
    async def process(self, batch: Batch) -> Batch | None:
        """All that this batch (up to `rest`) turns into; None or empty for nothing."""

    async def fire(self, domain: Domain, rows: list[TimerRow]) -> Batch | None:
        """All that these timers turn into; those that it does not come to are put back. Only where it has `timers`."""
        raise StateAccessError(f"operator {self.uid!r} has no timers")

    def translate(self, mark: TimeMark) -> Sequence[TimeMark]:
        """What event time before it means to those after it."""
        return (mark,)

    def split_times(self) -> dict[str, Any]:
        """Where its event time goes on, as plain msgpack data."""
        return {}

    async def finish(self) -> Batch | None:
        """End of data: the last output."""
        return None

    async def close(self) -> None:
        return None

    def failed(self, error: Exception, batch: Batch, index: int) -> RecordFailed:
        """The error to raise for record `index` of `batch`, naming operator, key and origin; `error` is its cause."""
        key = None if batch.keys is None else batch.keys[index]
        what = f"{type(error).__name__}: {error}"
        # What streamactors itself refuses (a value that can't be stored, say) it would refuse again.
        retryable = not isinstance(error, StreamactorsError) or error.retryable
        return RecordFailed(
            self.uid, what, key=key, origin=batch.origin(index), name=self.ctx.name, retryable=retryable
        )


@dataclass(frozen=True)
class OperatorSpec(ABC):
    """The part of a logical node that makes links; frozen, shared by all subtasks."""

    @property
    @abstractmethod
    def kind(self) -> str: ...

    @property
    def keyed_state(self) -> bool:
        """Whether it needs a keyed backend."""
        return False

    @property
    def needs_watermarks(self) -> bool:
        """Whether it waits for them, so that every input has to have them."""
        return False

    @property
    def gives_time(self) -> bool:
        """Whether it sends watermarks of its own, in place of those that come."""
        return False

    @property
    def holds_calls(self) -> bool:
        """Whether its links hold calls (`AsyncLink`), whose inputs are in flight in every checkpoint."""
        return False

    @property
    def uses_record_id(self) -> bool:
        """Whether the user's code in it asks what its records are called."""
        return False

    @property
    def keeps_record_ids(self) -> bool:
        """Whether everything that it emits is made of one record, in an order that is the same when it is made again:
        so that what it emits can be called by its name."""
        return False

    @property
    def inputs(self) -> tuple[str, ...]:
        """What its inputs are called, where it has two and their partitionings do not tell."""
        return ()

    @property
    def error_tag(self) -> OutputTag[DeadLetter] | None:
        return None

    @property
    def ahead_tag(self) -> OutputTag[Any] | None:
        """Where it sends records that are too far in the future."""
        return None

    @property
    def beside(self) -> Mapping[str, OutputTag[Any]]:
        """Where else it was told to send records, by the name of the option: each tag has to be read."""
        return {}

    def validate(self, uid: str) -> None:
        """Raise InvalidDataflow for what can be seen to be wrong before anything runs."""
        return None

    @abstractmethod
    def link(self, ctx: LinkContext) -> Link: ...


# ------------------------------------------------------------------------------------------------------- user callables
def is_async(fn: Any) -> bool:
    """Whether calling `fn` gives a coroutine, seen through partials and callable objects."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004


async def call_hook(hook: Callable[..., Awaitable[None] | None], *args: Any) -> None:
    """Call a lifecycle hook that may be `def` or `async def`."""
    result = hook(*args)
    if inspect.isawaitable(result):
        await result


def make_operator(factory: Callable[[], Any], kinds: tuple[type, ...], uid: str) -> Any:
    """One operator for one subtask."""
    operator = factory()
    if not isinstance(operator, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise InvalidDataflow(f"operator {uid!r}: the factory made a {type(operator).__name__}, wanted: {wanted}")
    return operator


def refuse_instance(factory: Any, kinds: tuple[type, ...], uid: str) -> None:
    """An instance would be shared by subtasks."""
    if isinstance(factory, kinds):
        raise InvalidDataflow(
            f"operator {uid!r} is given as an instance, which all subtasks would share: "
            f"give the class, or functools.partial({type(factory).__name__}, …)"
        )
    if not callable(factory):
        raise InvalidDataflow(f"operator {uid!r}: {factory!r} is neither a class nor a factory without arguments")


def check_usage(cls: type, kinds: tuple[type, ...], uid: str) -> None:
    """Raises InvalidDataflow for an operator of another kind than this step takes, and says where it belongs."""
    if issubclass(cls, Lifecycle) and cls._usage and not issubclass(cls, kinds):
        raise InvalidDataflow(f"operator {uid!r}: {cls.__name__} is {cls._usage}")


def refuse_one_tag(where: str, **tags: OutputTag[Any] | None) -> None:
    """Raises InvalidDataflow where two options, given by name, send different things to one side output."""
    options: dict[str, str] = {}
    for option, tag in tags.items():
        if tag is not None and (other := options.setdefault(tag.name, option)) != option:
            raise InvalidDataflow(
                f"{where}: {other}= and {option}= both send to the side output {tag.name!r}: give them two names"
            )


def done_of(iterator: Any, total: int) -> int:
    """How many of `total` items a list iterator has handed out: finds the failing record without counting each."""
    return total - int(iterator.__length_hint__())


def blames_the_record(error: Exception) -> bool:
    """Whether it may be routed to the dead letters. Where state could not be read or written, the record is not to
    blame: the step fails, and a restart may mend it."""
    return not isinstance(error, StorageFailed | CorruptCheckpoint)


def dead_letter(uid: str, value: Any, origin: str | None, error: BaseException) -> DeadLetter:
    trace = "".join(traceback.format_exception(error))
    what = f"{type(error).__name__}: {error}"
    return DeadLetter(uid=uid, origin=origin or "", value=value, error=what, traceback=trace)


class Mark(NamedTuple):
    """How much a context had emitted at one moment, into which lists: `take` begins new ones."""

    values: list[Any]
    emitted: int
    sides: dict[str, "_Side"]
    counts: dict[str, int]


class _Side(NamedTuple):
    """What was emitted to one side output."""

    values: list[Any]
    stamps: list[int | None]
    groups: list[int]
    ids: list[str | None]

    def cut(self, length: int) -> None:
        del self.values[length:], self.stamps[length:], self.groups[length:], self.ids[length:]


NO_TIMERS: Final = (
    "it has no timers: they belong to keys, and are for a KeyedOperator or KeyedCoOperator that defines on_timer; "
    "use key_by first, and derive the operator from one of these"
)


class RecordContext(Cursor, Context[Any, Any]):
    """The one `Context` of a link: the cursor of its state, and the collector of its output."""

    __slots__ = ("_append", "_drain", "_groups", "_sides", "_stamps", "_time", "_values", "timers", "timestamp")

    def __init__(
        self, drain: Callable[["RecordContext"], Coroutine[Any, Any, None]], time: EventTime | None = None
    ) -> None:
        super().__init__()
        self.timestamp: int | None = None
        self.timers: Timers = NoTimers(NO_TIMERS)
        self._time = EventTime() if time is None else time
        self._drain = drain
        self._values: list[Any] = []
        self._append = self._values.append
        self._stamps: list[int | None] | None = None
        self._groups: list[int] | None = None
        self._sides: dict[str, _Side] = {}

    def begin(self, *, stamped: bool, grouped: bool = False) -> None:
        """Start collecting for a batch. One unstamped batch may have left stamps behind, by explicit time-stamps."""
        self._values = []
        self._append = self._values.append
        self._stamps = [] if stamped else None
        self._groups = [] if grouped else None
        self.timestamp = None

    @property
    def watermark(self) -> int:
        return self._time.at(self.group)

    @property
    def record_id(self) -> str:
        raise StateAccessError(record_ids.NOT_CARRIED)

    def emit(self, value: Any, timestamp: int | None = None) -> None:
        self._append(value)
        stamps = self._stamps
        if stamps is not None:
            stamps.append(self.timestamp if timestamp is None else timestamp)
        elif timestamp is not None:
            self._stamps = [None] * (len(self._values) - 1) + [timestamp]

    def emit_to(self, tag: OutputTag[T], value: T) -> None:
        side = self._sides.get(tag.name)
        if side is None:
            side = self._sides[tag.name] = _Side([], [], [], [])
        side.values.append(value)
        side.stamps.append(self.timestamp)
        side.groups.append(self.group)

    def emit_dead(self, tag: OutputTag[DeadLetter], letter: DeadLetter) -> None:
        """For the record in hand, which failed."""
        self.emit_to(tag, letter)

    async def drain(self) -> None:
        await self._drain(self)

    def mark(self) -> "Mark":
        counts = {name: len(side.values) for name, side in self._sides.items()}
        return Mark(self._values, len(self._values), self._sides, counts)

    def roll_back(self, mark: "Mark") -> None:
        """Take back what was emitted since: the record in hand failed, and goes to the dead letters instead. What it
        has drained is gone; then all that is left is its own."""
        emitted = mark.emitted if self._values is mark.values else 0
        del self._values[emitted:]
        if self._stamps is not None:
            del self._stamps[emitted:]
        if self._groups is not None:
            del self._groups[emitted:]
        counts = mark.counts if self._sides is mark.sides else {}
        for name, side in self._sides.items():
            side.cut(counts.get(name, 0))

    def take(self) -> Batch | None:
        """The main output so far; the next emit begins a new one."""
        if not self._values:
            return None
        batch = Batch(self._values, self._stamps, None, self._groups)
        self._values = []
        self._append = self._values.append
        if self._stamps is not None:
            self._stamps = []
        if self._groups is not None:
            self._groups = []
        return batch

    def take_sides(self) -> dict[str, Batch]:
        if not self._sides:
            return {}
        grouped = self._groups is not None
        sides = {
            name: Batch(side.values, dense(side.stamps), None, side.groups if grouped else None, ids=side.ids or None)
            for name, side in self._sides.items()
        }
        self._sides = {}
        return sides


class GroupedContext(RecordContext):
    """Gives each emitted record the key group of the one in hand."""

    __slots__ = ()

    def emit(self, value: Any, timestamp: int | None = None) -> None:
        RecordContext.emit(self, value, timestamp)
        if self._groups is not None:
            self._groups.append(self.group)


class IdentifiedContext(GroupedContext):
    """Knows what the record in hand is called, and where that is of use, names what is emitted for it."""

    __slots__ = ("_coming", "_ids", "_outputs", "_passes", "_record", "in_record")

    def __init__(
        self, drain: Callable[["RecordContext"], Coroutine[Any, Any, None]], time: EventTime | None, *, passes: bool
    ) -> None:
        super().__init__(drain, time)
        self._passes = passes
        self._coming: Iterator[str | None] = iter(())
        self._ids: list[str | None] = []
        self._record: str | None = None
        self._outputs = 0
        self.in_record = False

    def name_batch(self, batch: Batch) -> None:
        """`name_record` is called before each of its records."""
        self._coming = repeat(None) if batch.ids is None else iter(batch.ids)

    def name_record(self) -> None:
        self._record = next(self._coming)
        self._outputs = 0
        self.in_record = True

    def begin(self, *, stamped: bool, grouped: bool = False) -> None:
        super().begin(stamped=stamped, grouped=grouped)
        self._ids = []
        self.in_record = False

    def clear(self) -> None:
        super().clear()
        self.in_record = False

    @property
    def record_id(self) -> str:
        if not self.in_record:
            raise StateAccessError(record_ids.NOT_CARRIED)
        return record_ids.known(self._record)

    def _next_id(self) -> str | None:
        id = record_ids.output(self._record, self._outputs)
        self._outputs += 1
        return id

    def emit(self, value: Any, timestamp: int | None = None) -> None:
        GroupedContext.emit(self, value, timestamp)
        if self._passes:
            self._ids.append(self._next_id())

    def emit_to(self, tag: OutputTag[T], value: T) -> None:
        RecordContext.emit_to(self, tag, value)
        if self._passes:
            self._sides[tag.name].ids.append(self._next_id())

    def emit_dead(self, tag: OutputTag[DeadLetter], letter: DeadLetter) -> None:
        RecordContext.emit_to(self, tag, letter)
        if self._passes:
            self._sides[tag.name].ids.append(record_ids.dead(self._record))

    def roll_back(self, mark: "Mark") -> None:
        del self._ids[mark.emitted if self._values is mark.values else 0 :]
        super().roll_back(mark)

    def take(self) -> Batch | None:
        batch = super().take()
        if batch is not None and self._passes:
            batch.ids, self._ids = self._ids, []
        return batch


def dense(stamps: list[int | None]) -> list[int | None] | None:
    return None if all(stamp is None for stamp in stamps) else stamps
