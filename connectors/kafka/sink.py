"""Kafka as a sink: settings, and the writer of one subtask."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Generic, Literal, TypeVar

from connectors.kafka.cluster import Cluster
from connectors.kafka.diagnosis import of_sink
from connectors.kafka.errors import DeliveryFailed
from connectors.kafka.options import WRITING, ClientOptions, checked_brokers
from connectors.kafka.producer import BATCH_BYTES, REQUEST_BYTES, REQUEST_MS, Producer, compression_code
from connectors.kafka.routing import Columns, Router
from connectors.kafka.transactions import TransactionCoordinator, Transactions, slots_for, timeout_ms
from streamactors.diagnosis import Finding, PlannedStep
from streamactors.errors import InvalidConfig, StreamactorsError
from streamactors.formats import Encoder
from streamactors.sinks import Pending, SinkContext, SinkWriter, WriterSink

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

Delivery = Literal["exactly-once", "at-least-once", "none"]
CLOSE_SECONDS: Final = 5.0


class KafkaSink(WriterSink[T_contra], Generic[T_contra]):
    """Writes records to one topic, or to the one that `topic` names for each.

    `delivery`: "exactly-once" writes in transactions that commit with the checkpoints (readers need
    isolation_level=read_committed); "at-least-once" flushes before each checkpoint; "none" waits for nothing. By
    default the first under exactly-once checkpoints, else the second.

    `key` gives the record's key, hashed to a partition as Java's producer does; records without go to the partitions
    in turn. `timestamp` (milliseconds) is by default the record's event time, or else now. An encoder that returns None
    writes a tombstone. `client` goes to aiokafka (TLS, SASL, compression_type, …) and is never shown.

    When brokers go away it tries again for two minutes; then the attempt fails.
    """

    def __init__(
        self,
        brokers: str,
        topic: str | Callable[[T_contra], str],
        *,
        value: Encoder[T_contra],
        key: Callable[[T_contra], bytes | None] | None = None,
        headers: Callable[[T_contra], Sequence[tuple[str, bytes]]] | None = None,
        timestamp: Callable[[T_contra], int] | None = None,
        delivery: Delivery | None = None,
        transactional_id_prefix: str | None = None,
        client: Mapping[str, Any] | None = None,
    ) -> None:
        if delivery not in (None, "exactly-once", "at-least-once", "none"):
            raise InvalidConfig(f"KafkaSink: delivery {delivery!r} is none of exactly-once, at-least-once, none")
        if not topic:
            raise InvalidConfig("KafkaSink: the topic is empty")
        if transactional_id_prefix == "":
            raise InvalidConfig("KafkaSink: transactional_id_prefix is empty; leave it out to use the flow's name")
        self.brokers = checked_brokers("KafkaSink", brokers)
        self.topic = topic
        self.value = value
        self.key = key
        self.headers = headers
        self.timestamp = timestamp
        self.delivery = delivery
        self.transactional_id_prefix = transactional_id_prefix
        self.client = ClientOptions("KafkaSink", client, WRITING)
        compression_code(self.client.get("compression_type", None))

    def __repr__(self) -> str:
        return f"<{self.describe()}>"

    @property
    def transactional(self) -> bool:
        return self.delivery in (None, "exactly-once")

    def validate(self, *, checkpointing: bool) -> None:
        if self.delivery == "exactly-once" and not checkpointing:
            raise InvalidConfig(
                f"{self.describe()} has delivery='exactly-once', which commits with checkpoints, and there are none: "
                "its output would never become visible. Give Config(checkpoints=…), or delivery='at-least-once'"
            )

    async def diagnose(self, step: PlannedStep) -> Sequence[Finding]:
        topic = self.topic if isinstance(self.topic, str) else None
        transactional = self.transactional and step.checkpointing and step.exactly_once
        return await of_sink(self.brokers, self.client, topic, step, transactional=transactional)

    def describe(self) -> str:
        topic = self.topic if isinstance(self.topic, str) else "topic by record"
        return f"KafkaSink({topic} at {self.brokers}, {self.delivery or 'default'} delivery)"

    def delivery_in(self, ctx: SinkContext) -> Delivery:
        """What holds for one run; InvalidConfig where that can't be."""
        if self.delivery == "exactly-once" and not ctx.exactly_once:
            raise InvalidConfig(
                f"sink {ctx.uid!r}: delivery='exactly-once' needs Checkpoints(mode='exactly-once'); with at-least-once "
                "checkpoints records come twice after a failure whatever the sink does. Use delivery='at-least-once'"
            )
        return self.delivery or ("exactly-once" if ctx.checkpointing and ctx.exactly_once else "at-least-once")

    def writer(self, ctx: SinkContext) -> "KafkaWriter[T_contra]":
        return KafkaWriter(self, ctx)


class KafkaWriter(SinkWriter[T]):
    """One subtask's writer, for one attempt."""

    def __init__(self, sink: KafkaSink[T], ctx: SinkContext) -> None:
        self._sink = sink
        self._ctx = ctx
        self._delivery = sink.delivery_in(ctx)
        self._cluster = Cluster(sink.brokers, sink.client, ctx.log)
        self._producer: Producer | None = None
        self._transactions: Transactions | None = None
        self._in_session = False
        self._columns = Columns(sink, ctx.uid)
        self._router: Router | None = None

    async def open(self, restored: Sequence[Pending], *, committed: bool) -> None:
        await self._cluster.connect()
        coordinator = self._coordinator() if self._delivery == "exactly-once" or restored else None
        if coordinator is not None:
            # Restored transactions are committed also where the sink is no longer transactional.
            transactions = self._transactions_of(coordinator)
            await transactions.recover(restored, committed=committed, widest=self._ctx.widest_parallelism)
            if self._delivery == "exactly-once":
                self._transactions = transactions
        self._producer = self._new_producer(coordinator if self._transactions else None)
        if self._delivery == "at-least-once":
            await self._producer.begin_idempotent()
        self._in_session = self._transactions is None
        self._router = Router(self._producer, self._sink.client.get("partitioner", None), turn=self._ctx.subtask)
        if isinstance(self._sink.topic, str):
            await self._router.route(self._sink.topic)
        self._ctx.metrics.gauge("kafka.buffered_bytes", lambda: self._opened.buffered)
        self._ctx.metrics.gauge("kafka.sent_bytes", lambda: self._opened.sent)

    async def write(self, values: Sequence[T], timestamps: Sequence[int | None] | None) -> None:
        producer, router = self._opened, self._router
        assert router is not None
        producer.raise_failure()
        if not values:
            return
        if not self._in_session and self._transactions is not None:
            producer.begin(await self._transactions.begin())
            self._in_session = True
            router.forget_partitions()
        for topic, records in self._columns.of(values, timestamps):
            await router.write(topic, records)
        await producer.room()

    async def prepare(self, checkpoint: int) -> Sequence[Pending]:
        if self._transactions is None:
            if self._delivery == "at-least-once":
                await self._opened.flush()
            return []
        # Flushed before the next transaction's first record is sent: else a key's records could change their order.
        await self._opened.flush()
        written = self._opened.written() if self._in_session else []
        self._in_session = self._in_session and not written
        return self._transactions.prepare(checkpoint, written)

    async def commit(self, checkpoint: int) -> None:
        if self._transactions is not None:
            await self._transactions.commit(checkpoint)

    async def finish(self) -> None:
        await self._opened.flush()
        if self._transactions is not None and self._opened.written() and self._in_session:
            raise DeliveryFailed(
                f"sink {self._ctx.uid!r} was told to finish without a checkpoint, which an exactly-once sink needs to "
                "commit; this is a fault of the runtime",
                retryable=False,
            )

    async def close(self) -> None:
        try:
            await self._drop_open_transaction()
        finally:
            await self._cluster.close()

    async def _drop_open_transaction(self) -> None:
        """Or leave it to the next start, if records may still arrive: they would come after its abort."""
        if self._producer is None:
            return
        answered = await self._producer.close(CLOSE_SECONDS)
        if self._transactions is not None and self._in_session and self._producer.opened and answered:
            try:
                await self._transactions.abandon(CLOSE_SECONDS)
            except StreamactorsError as error:
                self._ctx.log.warning("an open transaction was left to be aborted by the next start: %s", error)

    @property
    def _opened(self) -> Producer:
        assert self._producer is not None, "not open"
        return self._producer

    def _coordinator(self) -> TransactionCoordinator:
        given = self._sink.client.get("transaction_timeout_ms", None)
        milliseconds = timeout_ms(given, self._ctx.checkpoint_timeout)
        return TransactionCoordinator(self._cluster, milliseconds, self._ctx.check_alive)

    def _transactions_of(self, coordinator: TransactionCoordinator) -> Transactions:
        ctx = self._ctx
        return Transactions(
            coordinator,
            ctx.log,
            prefix=f"{self._sink.transactional_id_prefix or ctx.flow}-{ctx.uid}",
            subtask=ctx.subtask,
            parallelism=ctx.parallelism,
            slots=slots_for(ctx.max_concurrent, ctx.tolerable_failures),
        )

    def _new_producer(self, coordinator: TransactionCoordinator | None) -> Producer:
        options = self._sink.client
        return Producer(
            self._cluster,
            self._ctx.log,
            acks=1 if self._delivery == "none" else -1,
            coordinator=coordinator,
            compression=options.get("compression_type", None),
            batch_bytes=options.get("max_batch_size", BATCH_BYTES),
            request_bytes=options.get("max_request_size", REQUEST_BYTES),
            request_ms=options.get("request_timeout_ms", REQUEST_MS),
        )
