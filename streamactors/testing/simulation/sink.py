"""A sink on the simulated broker, exactly-once by the protocol of `connectors.kafka`: a session per transaction, from a
pool of ids; what is prepared stands in the checkpoint, and is committed by whoever goes on from it."""

from collections.abc import Iterable, Sequence
from typing import Final, TypeVar

from streamactors.errors import StreamactorsError, TransactionLost
from streamactors.sinks import Pending, SinkContext, SinkWriter, WriterSink
from streamactors.testing.simulation.broker import OK, BrokerClient, Session

T = TypeVar("T")
ALL_TAKEN: Final = "await a completed checkpoint"
"""In the message of sinks that have no transactional id left."""
REFUSED: Final = "the broker refuses records"
"""In that of sinks that were fenced."""
TIMEOUT: Final = 24 * 3600.0
"""Seconds: longer than anything that goes wrong here may take."""


class SimulatedSink(WriterSink[T]):
    """Transactional under exactly-once checkpoints; else what is written is visible at once."""

    def __init__(self, client: BrokerClient, topic: str, timeout: float = TIMEOUT) -> None:
        self._client = client
        self._topic = topic
        self._timeout = timeout

    @property
    def transactional(self) -> bool:
        return True

    def writer(self, ctx: SinkContext) -> SinkWriter[T]:
        transactional = ctx.checkpointing and ctx.exactly_once
        return SimulatedWriter(self._client, self._topic, ctx, self._timeout, transactional=transactional)

    def describe(self) -> str:
        return f"SimulatedSink {self._topic!r}"


class SlotPool:
    """Which ids of one subtask may begin a transaction: one that a checkpoint has listed is free again once a later
    checkpoint, which lists it no longer, is complete."""

    def __init__(self, slots: int) -> None:
        self._free = list(range(slots))
        self._listed: dict[int, int] = {}
        self._first: int | None = None

    def take(self) -> int | None:
        return self._free.pop(0) if self._free else None

    def occupy(self, slot: int) -> None:
        """The restored checkpoint lists it."""
        if slot in self._free:
            self._free.remove(slot)
        self._listed[slot] = 0

    def listed(self, slots: Iterable[int], checkpoint: int) -> None:
        if self._first is None:
            self._first = checkpoint
        self._listed.update(dict.fromkeys(slots, checkpoint))

    def completed(self, checkpoint: int) -> None:
        if self._first is None or checkpoint < self._first:
            return
        for slot in [slot for slot, last in self._listed.items() if last < checkpoint]:
            del self._listed[slot]
            self._free.append(slot)


class SimulatedWriter(SinkWriter[T]):
    """One subtask's, for one attempt. A pending transaction is [id, producer id, epoch, checkpoint, subtask]."""

    def __init__(
        self, client: BrokerClient, topic: str, ctx: SinkContext, timeout: float, *, transactional: bool
    ) -> None:
        self._client = client
        self._topic = topic
        self._ctx = ctx
        self._timeout = timeout
        self._transactional = transactional
        self._slots = 2 * (ctx.max_concurrent + ctx.tolerable_failures) + 3
        self._pool = SlotPool(self._slots)
        self._current: Session | None = None
        self._prepared: list[tuple[Session, int]] = []

    async def open(self, restored: Sequence[Pending], *, committed: bool) -> None:
        pending = [(Session(*each[:3]), each[3]) for each in restored]
        kept: set[str] = set()
        if not committed:
            for session, checkpoint in sorted(pending, key=lambda each: each[1]):
                await self._commit(session, checkpoint)
                kept.add(session.transactional_id)
        if self._ctx.checkpointing:
            await self._fence(kept)  # under at-least-once checkpoints too: an earlier process may have run otherwise
        for slot in range(self._slots):
            if self._id(self._ctx.subtask, slot) in kept:
                self._pool.occupy(slot)

    async def _fence(self, kept: set[str]) -> None:
        """Abort what an earlier process may have left open, listed nowhere."""
        ctx = self._ctx
        for subtask in range(ctx.subtask, max(ctx.widest_parallelism, ctx.parallelism), ctx.parallelism):
            for slot in range(self._slots):
                if (name := self._id(subtask, slot)) not in kept:
                    await self._session(name)

    async def write(self, values: Sequence[T], timestamps: Sequence[int | None] | None) -> None:
        if not values:
            return
        if self._transactional and self._current is None:
            self._current = await self._begin()
        code = await self._client.append(self._topic, list(values), self._current)
        if code != OK:
            raise StreamactorsError(f"{REFUSED} of {self._current}: error {code}")

    async def _begin(self) -> Session:
        slot = self._pool.take()
        if slot is None:
            raise StreamactorsError(f"all {self._slots} transactional ids of {self._ctx.uid!r} {ALL_TAKEN}")
        return await self._session(self._id(self._ctx.subtask, slot))

    async def _session(self, transactional_id: str) -> Session:
        self._ctx.check_alive()
        return await self._client.init_producer(transactional_id, self._timeout)

    async def prepare(self, checkpoint: int) -> Sequence[Pending]:
        if self._current is not None:
            self._prepared.append((self._current, checkpoint))
            self._client.prepared(self._current, checkpoint)
            self._current = None
        self._pool.listed((_slot(session) for session, _ in self._prepared), checkpoint)
        return [[*session, prepared, self._ctx.subtask] for session, prepared in self._prepared]

    async def commit(self, checkpoint: int) -> None:
        while self._prepared and self._prepared[0][1] <= checkpoint:
            session, prepared = self._prepared[0]
            await self._commit(session, prepared)
            self._prepared.pop(0)
        self._pool.completed(checkpoint)

    async def _commit(self, session: Session, checkpoint: int) -> None:
        code = await self._client.end(session, commit=True)
        if code != OK:
            raise TransactionLost(f"transaction {session} of checkpoint {checkpoint} can't be committed: error {code}")

    async def finish(self) -> None:
        if self._current is not None:
            await self._commit(self._current, 0)
            self._current = None

    async def close(self) -> None:
        session, self._current = self._current, None
        if session is not None:
            await self._client.end(session, commit=False)

    def _id(self, subtask: int, slot: int) -> str:
        return f"{self._ctx.flow}-{self._ctx.uid}-{subtask}-{slot}"


def _slot(session: Session) -> int:
    return int(session.transactional_id.rpartition("-")[2])
