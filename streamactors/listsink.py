"""A list as a sink, exactly-once within one process.

Values are any objects, so a pending transaction holds no values, only the number under which the `ListSink` keeps
them. It is worth nothing to another process, whose list is another one and begins empty.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Generic, NoReturn, TypeVar

from streamactors.clock import SYSTEM
from streamactors.sinks import Pending, SinkContext, SinkWriter, WriterSink

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Prepared(Generic[T]):
    """Values that wait for their checkpoint, and the attempt that wrote them."""

    sink: tuple[str, str]
    attempt: tuple[int, int]
    values: list[T]


class ListSink(WriterSink[T], Generic[T]):
    """For tests and notebooks: `values` holds what was written, in commit order under checkpoints; without them at
    once, in order of arrival."""

    values: list[T]

    def __init__(self) -> None:
        self.values = []
        # Shared by all attempts on purpose: a transaction outlives the attempt that prepared it.
        self._identity = SYSTEM.token()
        self._numbers = count()
        self._prepared: dict[int, _Prepared[T]] = {}

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a ListSink's values are those of one process: to another one, write by a sink such as FileSink"
        )

    @property
    def transactional(self) -> bool:
        return True

    def writer(self, ctx: SinkContext) -> SinkWriter[T]:
        return _TransactionWriter(ctx, self) if ctx.checkpointing else _DirectWriter(self.values)

    def _prepare(self, prepared: _Prepared[T]) -> int:
        number = next(self._numbers)
        self._prepared[number] = prepared
        return number

    def _commit(self, number: int) -> None:
        if prepared := self._prepared.pop(number, None):
            self.values += prepared.values

    def _drop(self, number: int) -> None:
        self._prepared.pop(number, None)

    def _drop_before(self, sink: tuple[str, str], attempt: tuple[int, int]) -> None:
        """What attempts before this one left prepared and no checkpoint lists: its records come again."""
        for number, prepared in list(self._prepared.items()):
            if prepared.sink == sink and prepared.attempt < attempt:
                del self._prepared[number]


class _DirectWriter(SinkWriter[T]):
    def __init__(self, values: list[T]) -> None:
        self._values = values

    async def open(self, restored: Sequence[Pending], *, committed: bool) -> None:
        return None

    async def write(self, values: Sequence[T], timestamps: Sequence[int | None] | None) -> None:
        self._values += values

    async def prepare(self, checkpoint: int) -> Sequence[Pending]:
        return []

    async def finish(self) -> None:
        return None

    async def close(self) -> None:
        return None


class _TransactionWriter(SinkWriter[T]):
    def __init__(self, ctx: SinkContext, sink: ListSink[T]) -> None:
        self._ctx = ctx
        self._sink = sink
        self._name = (ctx.flow, ctx.uid)
        self._attempt = (ctx.run, ctx.attempt)
        self._open: list[T] = []
        self._pending: list[tuple[int, int]] = []  # checkpoint, number

    async def open(self, restored: Sequence[Pending], *, committed: bool) -> None:
        own = sorted(number for identity, number in restored if identity == self._sink._identity)
        for number in own:
            (self._sink._drop if committed else self._sink._commit)(number)
        if len(own) < len(restored) and not committed:
            self._ctx.log.warning("results of another process were in its ListSink and are gone with it")

    async def write(self, values: Sequence[T], timestamps: Sequence[int | None] | None) -> None:
        self._open += values

    async def prepare(self, checkpoint: int) -> Sequence[Pending]:
        if self._open:
            number = self._sink._prepare(_Prepared(self._name, self._attempt, self._open))
            self._pending.append((checkpoint, number))
            self._open = []
        return [[self._sink._identity, number] for _, number in self._pending]

    async def commit(self, checkpoint: int) -> None:
        for prepared_for, number in self._pending:
            if prepared_for <= checkpoint:
                self._sink._commit(number)
        self._pending = [pending for pending in self._pending if pending[0] > checkpoint]
        # Not before a checkpoint of this attempt: until then other subtasks may still have to commit what is theirs.
        self._sink._drop_before(self._name, self._attempt)

    async def finish(self) -> None:
        return None

    async def close(self) -> None:
        self._open = []
