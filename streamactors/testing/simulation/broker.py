"""A log with transactions, after Kafka's protocol: producer sessions, fencing, time-outs, and the error codes.

(id, producer id, epoch) names a session, not a transaction: whoever holds the three commits whatever that session has
open at the moment. `InitProducerId` aborts what is open under an id and fences older sessions of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, TypeVar

from streamactors.errors import Disturbed
from streamactors.testing.simulation.faults import MARK
from streamactors.testing.simulation.process import here

R = TypeVar("R")

OK: Final = 0
FENCED: Final = 47
"""InvalidProducerEpoch."""
INVALID_STATE: Final = 48
"""InvalidTxnState: nothing is open, and the last one ended otherwise."""
UNKNOWN_ID: Final = 49
"""InvalidProducerIdMapping."""
STALL_SECONDS: Final = 3.0


class Session(NamedTuple):
    """A producer's identity, all that another process needs to commit what it has open."""

    transactional_id: str
    producer_id: int
    epoch: int


@dataclass(eq=False)
class Transaction:
    begun: float
    outcome: Literal["open", "committed", "aborted"] = "open"
    records: int = 0
    checkpoint: int | None = None
    """Whose state lists it first, for who looks in."""


@dataclass
class _Producer:
    producer_id: int
    epoch: int
    timeout: float
    current: Transaction | None = None
    last: Literal["committed", "aborted"] | None = None


@dataclass
class Broker:
    """Outlives every process. Calls take effect at once; `BrokerClient` is how a process reaches it."""

    topics: dict[str, list[tuple[Any, Transaction | None]]] = field(default_factory=dict)
    _producers: dict[str, _Producer] = field(default_factory=dict)

    def init_producer(self, transactional_id: str, timeout: float, now: float) -> Session:
        producer = self._producers.get(transactional_id)
        if producer is None:
            producer = self._producers[transactional_id] = _Producer(1000 + len(self._producers), 0, timeout)
        else:
            self._expire(producer, now)
            self._end(producer, "aborted")
            producer.epoch += 1
            producer.timeout = timeout
        producer.last = None
        return Session(transactional_id, producer.producer_id, producer.epoch)

    def append(self, topic: str, values: Sequence[Any], session: Session | None, now: float) -> int:
        """`session` None: visible at once."""
        transaction = None
        if session is not None:
            code = self._refusal(session, now)
            if code:
                return code
            producer = self._producers[session.transactional_id]
            if producer.current is None:
                producer.current = Transaction(now)
            transaction = producer.current
            transaction.records += len(values)
        self.topics.setdefault(topic, []).extend((value, transaction) for value in values)
        return OK

    def end(self, session: Session, *, commit: bool, now: float) -> int:
        code = self._refusal(session, now)
        if code:
            return code
        producer = self._producers[session.transactional_id]
        wanted: Literal["committed", "aborted"] = "committed" if commit else "aborted"
        if producer.current is not None:
            self._end(producer, wanted)
            return OK
        return OK if producer.last == wanted else INVALID_STATE

    def _refusal(self, session: Session, now: float) -> int:
        producer = self._producers.get(session.transactional_id)
        if producer is None or producer.producer_id != session.producer_id:
            return UNKNOWN_ID
        self._expire(producer, now)
        return FENCED if session.epoch != producer.epoch else OK

    def _expire(self, producer: _Producer, now: float) -> None:
        """The broker aborts what is open for too long, and fences whoever had opened it."""
        if producer.current is not None and now - producer.current.begun > producer.timeout:
            self._end(producer, "aborted")
            producer.epoch += 1

    def _end(self, producer: _Producer, outcome: Literal["committed", "aborted"]) -> None:
        if producer.current is not None:
            producer.current.outcome = producer.last = outcome
            producer.current = None

    # ------------------------------------------------------------------------------------------------------ looking in
    def prepared(self, session: Session, checkpoint: int) -> None:
        """What the session has open belongs to this checkpoint."""
        producer = self._producers.get(session.transactional_id)
        if producer is not None and producer.epoch == session.epoch and producer.current is not None:
            producer.current.checkpoint = checkpoint

    def go_back(self, checkpoint: int) -> None:
        """Take out of the log what was committed after that checkpoint. What is open is whoever's comes next."""
        for entries in self.topics.values():
            entries[:] = [(value, each) for value, each in entries if each is None or _before(each, checkpoint)]

    def read_committed(self, topic: str) -> list[Any]:
        """In the order of offsets."""
        entries = self.topics.get(topic, [])
        return [value for value, transaction in entries if transaction is None or transaction.outcome == "committed"]

    def undecided(self, topic: str) -> list[Any]:
        """What is neither committed nor aborted: readers of committed records wait behind it."""
        entries = self.topics.get(topic, [])
        return [value for value, transaction in entries if transaction is not None and transaction.outcome == "open"]


def _before(transaction: Transaction, checkpoint: int) -> bool:
    if transaction.outcome != "committed":
        return True
    return transaction.checkpoint is not None and transaction.checkpoint <= checkpoint


class BrokerClient:
    """A process's way to the broker: requests take time, fail, and take effect without an answer."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def init_producer(self, transactional_id: str, timeout: float) -> Session:
        now = here().loop.time
        return await self._ask(
            f"InitProducerId {transactional_id}", lambda: self._broker.init_producer(transactional_id, timeout, now())
        )

    async def append(self, topic: str, values: Sequence[Any], session: Session | None) -> int:
        now = here().loop.time
        what = f"Produce {len(values)} to {topic} as {session}"
        return await self._ask(what, lambda: self._broker.append(topic, values, session, now()))

    async def end(self, session: Session, *, commit: bool) -> int:
        now = here().loop.time
        what = f"{'Commit' if commit else 'Abort'} {session}"
        return await self._ask(what, lambda: self._broker.end(session, commit=commit, now=now()))

    def prepared(self, session: Session, checkpoint: int) -> None:
        """No request: for who looks in."""
        here().check_alive()
        self._broker.prepared(session, checkpoint)

    async def _ask(self, what: str, request: Callable[[], R]) -> R:
        process = here()
        await process.pause()
        await process.linger("slow_sinks", STALL_SECONDS)
        failing = process.fate.strikes("sink_failures")
        lost = failing and process.chosen(2) == 1
        if failing and not lost:
            process.note(f"sink fails before {what}")
            raise Disturbed(f"{MARK}: {what} failed")
        answer = request()
        process.advance(f"{what}: {answer}")
        await process.pause()
        if lost:
            process.note(f"sink fails after {what}")
            raise Disturbed(f"{MARK}: the answer to {what} was lost")
        return answer
