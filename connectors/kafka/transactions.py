"""Two-phase commit over Kafka transactions.

(transactional id, producer id, epoch) names a producer *session*. Whoever holds the three can commit what that session
has open, also from another process, and that is what a checkpoint stores. So a session is used for one transaction
only: `InitProducerId` begins a new one before each, and aborts on the way whatever an older session had left open
under that id. An id comes back into use only when no checkpoint that may be restored can still name its old session.
"""

import asyncio
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aiokafka.client import CoordinationType
from aiokafka.errors import for_code
from aiokafka.protocol.transaction import AddPartitionsToTxnRequest, EndTxnRequest, InitProducerIdRequest
from aiokafka.structs import TopicPartition

from connectors.kafka.cluster import BUSY, DENIED, OPERATION_SECONDS, UNKNOWN_TOPIC, Cluster, Log, by_topic
from connectors.kafka.errors import AccessDenied, DeliveryFailed, TransactionsExhausted
from streamactors.errors import InvalidConfig, StreamactorsError, TransactionLost
from streamactors.sinks import alone

FENCED: Final = frozenset({47, 90})
INVALID_STATE: Final = 48
UNKNOWN_ID: Final = 49
OVER: Final = FENCED | {INVALID_STATE, UNKNOWN_ID}
"""Codes that say: not this session, or no longer. Repeating changes nothing."""
INVALID_TIMEOUT: Final = 50
BROKER_MAXIMUM_MS: Final = 900_000
"""The default of the brokers' `transaction.max.timeout.ms`."""
RESTART_SECONDS: Final = 300.0
"""What a restart may take, on top of a checkpoint, before the brokers give up a transaction."""
FENCING_AT_ONCE: Final = 8
SETTLED: Final = "KAFKA_SINK_SETTLED_TRANSACTIONS"
"""Environment variable: `id:producer_id:epoch`, comma-separated: lost transactions that somebody has looked into."""


@dataclass(frozen=True, slots=True)
class Session:
    """A producer's identity; `transactional_id` is None for one that is only idempotent."""

    transactional_id: str | None
    producer_id: int
    epoch: int

    def __str__(self) -> str:
        return f"{self.transactional_id}:{self.producer_id}:{self.epoch}"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A transaction whose records are all on the brokers, awaiting its checkpoint.

    `written` says where: (topic, partition, first offset, last offset), for whoever must look after it by hand.
    """

    session: Session
    checkpoint: int
    subtask: int
    slots: int
    written: tuple[tuple[str, int, int, int], ...]

    def to_state(self) -> dict[str, Any]:
        """As it stands in checkpoints: plain data, read back by `from_state`, also of later versions."""
        return {
            "id": self.session.transactional_id,
            "producer_id": self.session.producer_id,
            "epoch": self.session.epoch,
            "checkpoint": self.checkpoint,
            "subtask": self.subtask,
            "slots": self.slots,
            "written": [list(entry) for entry in self.written],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Prepared":
        return cls(
            Session(state["id"], state["producer_id"], state["epoch"]),
            state["checkpoint"],
            state["subtask"],
            state["slots"],
            tuple((topic, partition, first, last) for topic, partition, first, last in state["written"]),
        )


def slots_for(max_concurrent: int, tolerable_failures: int) -> int:
    """How many ids a subtask can need at once, and a spare one.

    The last completed checkpoint lists up to `tolerable_failures` transactions of aborted ones beside its own and those
    in flight then, and one of a savepoint, which commits nothing and is always followed by a checkpoint; these stay in
    use, though committed, until the next one completes; as many may be prepared by then, and one is open.
    """
    return 2 * (max_concurrent + tolerable_failures + 1) + 2


class IdPool:
    """Which slots of one subtask may begin a transaction. Pure: no broker, no clock.

    A slot that a checkpoint has listed is free again once a later checkpoint, which no longer lists it, is complete.
    """

    def __init__(self, slots: int) -> None:
        self._free = list(range(slots))
        self._last_listed: dict[int, int | None] = {}
        self._first_checkpoint: int | None = None

    @property
    def free(self) -> int:
        """How many can be taken."""
        return len(self._free)

    def take(self) -> int | None:
        """The slot that was free for the longest time; None if all are in use."""
        return self._free.pop(0) if self._free else None

    def occupy(self, slot: int) -> None:
        """The restored checkpoint lists it, and no checkpoint of this attempt will."""
        self._free.remove(slot)
        self._last_listed[slot] = None

    def listed(self, slots: Iterable[int], checkpoint: int) -> None:
        """The state of `checkpoint` holds these and no others."""
        if self._first_checkpoint is None:
            self._first_checkpoint = checkpoint
        self._last_listed.update(dict.fromkeys(slots, checkpoint))

    def completed(self, checkpoint: int) -> None:
        """Frees what the state of this completed checkpoint no longer lists."""
        if self._first_checkpoint is None or checkpoint < self._first_checkpoint:
            return  # of an earlier attempt: it may be the very one that lists what was restored
        for slot in [slot for slot, last in self._last_listed.items() if last is None or last < checkpoint]:
            del self._last_listed[slot]
            self._free.append(slot)


def timeout_ms(given: int | None, checkpoint_timeout: float) -> int:
    """How long the brokers keep a transaction open; InvalidConfig if a checkpoint may take longer than that."""
    wanted = int((2 * checkpoint_timeout + RESTART_SECONDS) * 1000)
    milliseconds = min(wanted, BROKER_MAXIMUM_MS) if given is None else given
    if milliseconds <= checkpoint_timeout * 1000:
        raise InvalidConfig(
            f"KafkaSink: the transaction time-out of {milliseconds / 1000:.0f} s does not exceed the checkpoint "
            f"time-out of {checkpoint_timeout:.0f} s: the brokers would abort what a checkpoint has prepared. Lower "
            "Checkpoints(timeout=…), or raise client={'transaction_timeout_ms': …} and, on the brokers, "
            "transaction.max.timeout.ms"
        )
    return milliseconds


class TransactionCoordinator:
    """The requests of a transaction, with their transient errors ridden out."""

    def __init__(self, cluster: Cluster, timeout_ms: int, check_alive: Callable[[], None] = alone) -> None:
        """`check_alive`: see `SinkContext`."""
        self._cluster = cluster
        self._timeout_ms = timeout_ms
        self._check_alive = check_alive

    async def begin(self, transactional_id: str) -> Session:
        """A new session; what an older one left open under this id is aborted, and that one fenced."""
        response = await self._ask(
            transactional_id,
            InitProducerIdRequest(transactional_id, self._timeout_ms),
            f"beginning a transaction as {transactional_id!r}",
            may_send=self._check_alive,
        )
        if response.error_code == INVALID_TIMEOUT:
            raise InvalidConfig(
                f"KafkaSink: the brokers at {self._cluster.brokers} refuse a transaction time-out of "
                f"{self._timeout_ms / 1000:.0f} s as above their transaction.max.timeout.ms: raise that, or give "
                "client={'transaction_timeout_ms': …}, which must exceed the longest checkpoint plus a restart"
            )
        self._refuse(response.error_code, transactional_id, "InitProducerId")
        return Session(transactional_id, response.producer_id, response.producer_epoch)

    async def add_partitions(self, session: Session, partitions: Collection[TopicPartition]) -> None:
        """Must precede the first record of each partition in a transaction."""
        transactional_id = _named(session)
        request = AddPartitionsToTxnRequest(transactional_id, session.producer_id, session.epoch, by_topic(partitions))
        response = await self._ask(
            transactional_id,
            request,
            f"adding partitions to transaction {transactional_id!r}",
            codes=_codes_of_partitions,
            busy=BUSY | {UNKNOWN_TOPIC},  # the coordinator may hear of a new topic later than we do
        )
        for topic, results in response.errors:
            for partition, code in results:
                self._refuse(code, transactional_id, f"adding {topic}[{partition}] to the transaction")

    async def end(self, session: Session, *, commit: bool, seconds: float = OPERATION_SECONDS) -> int:
        """Commit or abort; 0 also if it was so already, else the error code (in `OVER`) of one that ended otherwise."""
        transactional_id = _named(session)
        request = EndTxnRequest(transactional_id, session.producer_id, session.epoch, commit)
        what = f"{'committing' if commit else 'aborting'} transaction {transactional_id!r}"
        response = await self._ask(transactional_id, request, what, seconds=seconds)
        code: int = response.error_code
        if code not in OVER:
            self._refuse(code, transactional_id, what)
        return code

    async def _ask(self, transactional_id: str, request: Any, what: str, **options: Any) -> Any:
        return await self._cluster.ask_coordinator(
            CoordinationType.TRANSACTION, transactional_id, request, what, **options
        )

    def _refuse(self, code: int, transactional_id: str, what: str) -> None:
        if code == 0:
            return
        if code in DENIED:
            raise AccessDenied(
                f"Kafka at {self._cluster.brokers} does not allow {what} for {transactional_id!r} "
                f"({for_code(code).__name__}); grant these credentials Write on the topics and on transactional ids "
                "with this prefix"
            )
        raise DeliveryFailed(f"{what} for {transactional_id!r} failed: {explain(code)}")


def explain(code: int) -> str:
    """What an error of a producer's session means to the user."""
    if code in OVER:
        return (
            f"the brokers have ended this transaction (error {code}): it was open for longer than its time-out, or "
            "another process uses the same transactional ids. A second live copy of a flow needs its own "
            "transactional_id_prefix=; slow checkpoints need a longer client={'transaction_timeout_ms': …}"
        )
    return f"{for_code(code).__name__} (error {code})"


def _codes_of_partitions(response: Any) -> list[int]:
    return [code for _, results in response.errors for _, code in results]


def _named(session: Session) -> str:
    assert session.transactional_id is not None
    return session.transactional_id


class Transactions:
    """The transactions of one writer, from their beginning to their commit, over one attempt."""

    def __init__(
        self, coordinator: TransactionCoordinator, log: Log, *, prefix: str, subtask: int, parallelism: int, slots: int
    ) -> None:
        self._coordinator = coordinator
        self._log = log
        self._prefix = prefix
        self._subtask = subtask
        self._parallelism = parallelism
        self._slots = slots
        self._pool = IdPool(slots)
        self._current: Session | None = None
        self._prepared: list[Prepared] = []

    async def recover(self, restored: Sequence[Mapping[str, Any]], *, committed: bool, widest: int) -> None:
        """Commit what the restored checkpoint lists, then abort whatever else may be open under our ids.

        That order: fencing an id aborts its transaction, and one that is listed must not be aborted.
        """
        pending = sorted((Prepared.from_state(state) for state in restored), key=lambda each: each.checkpoint)
        for each in pending:
            self._refuse_foreign(each)
        # With a receipt, a listed id may have gone on to a later transaction, which is to be aborted like any other.
        committing = [] if committed else pending
        kept = {each.session.transactional_id for each in committing if await self._commit_restored(each)}
        slots = max([self._slots, *(each.slots for each in pending)])
        owned = range(self._subtask, max(widest, self._parallelism), self._parallelism)
        ids = (self._id(subtask, slot) for subtask in owned for slot in range(slots))
        await self._fence([each for each in ids if each not in kept])
        for slot in range(self._slots):
            if self._id(self._subtask, slot) in kept:
                self._pool.occupy(slot)

    async def begin(self) -> Session:
        """The session of the next transaction; raises TransactionsExhausted."""
        slot = self._pool.take()
        if slot is None:
            raise TransactionsExhausted(
                f"all {self._slots} transactional ids of {self._prefix}-{self._subtask} await a completed checkpoint "
                f"({len(self._prepared)} are prepared and not committed): checkpoints begin but do not complete. "
                "The job goes back to its last checkpoint; see why they fail, or allow for more of them by "
                "Checkpoints(tolerable_failures=…)"
            )
        self._current = await self._coordinator.begin(self._id(self._subtask, slot))
        return self._current

    def prepare(self, checkpoint: int, written: Sequence[tuple[str, int, int, int]]) -> list[dict[str, Any]]:
        """List the current transaction if it has records, and give all that are listed."""
        if self._current is not None and written:
            self._prepared.append(
                Prepared(self._current, checkpoint, self._subtask, self._slots, tuple(sorted(written)))
            )
            self._current = None
        self._pool.listed((self._slot(each) for each in self._prepared), checkpoint)
        return [each.to_state() for each in self._prepared]

    async def commit(self, checkpoint: int) -> None:
        """All that were prepared for this checkpoint or an earlier one, in that order."""
        while self._prepared and self._prepared[0].checkpoint <= checkpoint:
            first = self._prepared[0]
            code = await self._coordinator.end(first.session, commit=True)
            if code:
                raise lost(first, code)
            self._prepared.pop(0)
        self._pool.completed(checkpoint)

    async def abandon(self, seconds: float) -> None:
        """Abort the transaction that is open and not listed, if there is one."""
        session, self._current = self._current, None
        if session is not None:
            await self._coordinator.end(session, commit=False, seconds=seconds)

    async def _commit_restored(self, each: Prepared) -> bool:
        """False if it was lost, and the user said that this is settled."""
        code = await self._coordinator.end(each.session, commit=True)
        if code == 0:
            self._log.info("committed transaction %s of checkpoint %d", each.session, each.checkpoint)
        elif str(each.session) in _settled():
            self._log.warning("passing over transaction %s (error %d), as %s says", each.session, code, SETTLED)
        else:
            raise lost(each, code)
        return code == 0

    async def _fence(self, ids: Sequence[str]) -> None:
        room = asyncio.Semaphore(FENCING_AT_ONCE)

        async def fence(transactional_id: str) -> None:
            async with room:
                await self._coordinator.begin(transactional_id)

        try:
            async with asyncio.TaskGroup() as group:
                for each in ids:
                    group.create_task(fence(each))
        except BaseExceptionGroup as errors:
            raise _first(errors) from None

    def _refuse_foreign(self, each: Prepared) -> None:
        """Another subtask would fence what we are about to commit."""
        if each.subtask % self._parallelism != self._subtask:
            raise StreamactorsError(
                f"the transactions of subtask {each.subtask} came to subtask {self._subtask} of {self._parallelism} "
                f"instead of {each.subtask % self._parallelism}; this is a fault of the runtime"
            )

    def _id(self, subtask: int, slot: int) -> str:
        return f"{self._prefix}-{subtask}-{slot}"

    def _slot(self, each: Prepared) -> int:
        return int(_named(each.session).rpartition("-")[2])


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _settled() -> set[str]:
    return {each.strip() for each in os.environ.get(SETTLED, "").split(",")}


def lost(each: Prepared, code: int) -> TransactionLost:
    """Says what to look at, and how to go on."""
    topics = ", ".join(sorted({topic for topic, *_ in each.written}))
    places = "; ".join(f"{topic}[{part}] offsets {first} to {last}" for topic, part, first, last in each.written)
    over = {INVALID_STATE: "aborted", UNKNOWN_ID: "forgotten by the brokers"}.get(code, "replaced by a newer session")
    return TransactionLost(
        f"transaction {each.session.transactional_id!r} of checkpoint {each.checkpoint} (topic {topics}) can't be "
        f"committed: it was {over} (error {code}). Either it had been committed before, or it timed out and its "
        f"records are lost. Look with isolation_level=read_committed at {places}. If the records are there, go on with "
        f"the environment variable {SETTLED}={each.session} set. If not, restore the checkpoint before "
        f"{each.checkpoint}, which reads their input again (what other subtasks have committed for it is then written "
        "twice), or accept the loss by setting the same variable"
    )
