"""Writes records to partitions: batches of bytes, one request at a time to each broker, in order per partition.

aiokafka's own producer keeps one transactional id for its life, and each of its `send` calls costs as much as the rest
of a record's way; so this one is built on its client, its record batches and its requests. Records gather while the
broker is busy with the request before, hence batches grow with the load and nothing waits when there is none.
"""

import asyncio
from collections import deque
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aiokafka.errors import KafkaError, for_code
from aiokafka.producer import AIOKafkaProducer
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import InitProducerIdRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.structs import TopicPartition

from connectors.kafka.cluster import DENIED, TOPIC_SECONDS, UNKNOWN_TOPIC, Cluster, Log, is_transient
from connectors.kafka.errors import AccessDenied, DeliveryFailed
from connectors.kafka.transactions import OVER, Session, TransactionCoordinator, explain
from streamactors.errors import InvalidConfig

BATCH_BYTES: Final = 256 * 1024
REQUEST_BYTES: Final = 1024 * 1024
BUFFER_BYTES: Final = 32 * 1024 * 1024
DELIVERY_SECONDS: Final = 120.0
REQUEST_MS: Final = 40_000
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 1.0
WARN_EVERY_ATTEMPTS: Final = 8

NO_SESSION: Final = Session(None, -1, -1)
DUPLICATE: Final = 46
TOO_LARGE: Final = frozenset({10, 18})
REFUSED_AGAIN: Final = frozenset({2, 10, 17, 18, 32, 43, 44, 87}) | DENIED
"""Corrupt, too large, invalid topic, invalid timestamp, …: the same records would be refused again."""
SEQUENCES: Final = 2**31
NOBODY: Final = -1
"""The node that leads a partition without a leader."""


class Sending:
    """A batch on its way: built once, and sent again as it is."""

    __slots__ = ("attempts", "buffer", "count", "deadline", "partition")

    def __init__(self, partition: "Partition", buffer: Any, count: int, deadline: float) -> None:
        self.partition = partition
        self.buffer = buffer
        self.count = count
        self.deadline = deadline
        self.attempts = 0


class Partition:
    """What is on its way to one partition, then full batches, then the one that records are being added to.

    `held` while a request is under way, and during the pause before it is repeated.
    """

    __slots__ = ("builder", "count", "first", "full", "held", "last", "sending", "sequence", "tp")

    def __init__(self, tp: TopicPartition) -> None:
        self.tp = tp
        self.builder: Any = None
        self.count = 0
        self.full: deque[tuple[Any, int]] = deque()
        self.sending: Sending | None = None
        self.held = False
        self.sequence = 0
        self.first = -1
        self.last = -1

    def __str__(self) -> str:
        return f"{self.tp.topic}[{self.tp.partition}]"


@dataclass(slots=True)
class Records:
    """Columns for one topic; timestamps in milliseconds since the epoch. Those but `values` may be endless."""

    values: Sequence[bytes | None]
    keys: Iterable[bytes | None]
    timestamps: Iterable[int]
    headers: Iterable[Sequence[tuple[str, bytes]]]


class Producer:
    """`begin` a session, append records by `extend`, `flush`; a failed delivery is raised by the next call."""

    def __init__(
        self,
        cluster: Cluster,
        log: Log,
        *,
        acks: int,
        coordinator: TransactionCoordinator | None = None,
        compression: str | None = None,
        batch_bytes: int = BATCH_BYTES,
        request_bytes: int = REQUEST_BYTES,
        request_ms: int = REQUEST_MS,
    ) -> None:
        self._cluster = cluster
        self._log = log
        self._acks = acks
        self._coordinator = coordinator
        self._compression = compression_code(compression)
        self._batch_bytes = batch_bytes
        self._request_bytes = max(request_bytes, batch_bytes)
        self._request_ms = request_ms
        self._session = NO_SESSION
        self._partitions: dict[tuple[str, int], Partition] = {}
        self._waiting: dict[Partition, None] = {}
        self._pauses: dict[Partition, asyncio.TimerHandle] = {}
        self._added: set[TopicPartition] = set()
        self._adding = asyncio.Lock()
        self._busy_nodes: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._progress = asyncio.Event()
        self._failure: BaseException | None = None
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self.opened = False
        """Whether the brokers may hold a transaction of this session open."""
        self.buffered = 0
        """Bytes in full batches and on their way."""
        self.sent = 0
        """Bytes that the brokers have acknowledged."""

    @property
    def metadata_updates(self) -> int:
        """Changes whenever `known_partitions` and `led_partitions` may have."""
        return self._cluster.metadata_updates

    async def begin_idempotent(self) -> None:
        """A session whose retries can't double or reorder records."""
        response = await self._cluster.ask_any(InitProducerIdRequest(None, -1), "getting a producer id")
        if response.error_code in DENIED:
            raise AccessDenied(
                f"Kafka at {self._cluster.brokers} gives no producer id ({for_code(response.error_code).__name__}); "
                "grant these credentials IdempotentWrite on the cluster"
            )
        if response.error_code:
            raise DeliveryFailed(f"getting a producer id failed: {for_code(response.error_code).__name__}")
        self.begin(Session(None, response.producer_id, response.producer_epoch))

    def begin(self, session: Session) -> None:
        """The records that follow belong to this session; everything before must have been flushed."""
        assert not self._unfinished
        self._session = session
        self._partitions.clear()
        self._added = set()
        self.opened = False

    async def partitions_of(self, topic: str) -> tuple[int, ...]:
        """Asks for the topic the first time; raises UnknownTopic or AccessDenied. Brokers may create it meanwhile."""
        if (known := self.known_partitions(topic)) is not None:
            return known
        await self._cluster.follow(topic)
        deadline = self._loop.time() + TOPIC_SECONDS
        retry = self._cluster.retry(f"asking for topic {topic!r}")
        while (known := self.known_partitions(topic)) is None:
            if topic in self._cluster.metadata.unauthorized_topics:
                raise self._cluster.topic_error(topic, min(DENIED))
            if self._loop.time() > deadline:
                raise self._cluster.topic_error(topic, UNKNOWN_TOPIC)
            await retry.pause("the brokers do not know it")
            await self._cluster.refresh()
        return known

    def known_partitions(self, topic: str) -> tuple[int, ...] | None:
        """As of the latest metadata, in order."""
        partitions = self._cluster.metadata.partitions_for_topic(topic)
        return tuple(sorted(partitions)) if partitions else None

    def led_partitions(self, topic: str) -> tuple[int, ...]:
        """Those that have a leader now."""
        return tuple(sorted(self._cluster.metadata.available_partitions_for_topic(topic) or ()))

    def partition(self, topic: str, number: int) -> Partition:
        """Where to append; the same object until the next `begin`."""
        key = (topic, number)
        if (partition := self._partitions.get(key)) is None:
            partition = self._partitions[key] = Partition(TopicPartition(topic, number))
        return partition

    async def extend(self, targets: Iterable[Partition], records: Records) -> None:
        """Append one record to each target, in order; waits where the buffers are full."""
        for partition, timestamp, key, value, headers in zip(
            targets, records.timestamps, records.keys, records.values, records.headers, strict=False
        ):
            builder = partition.builder
            if builder is not None and builder.append(partition.count, timestamp, key, value, headers) is not None:
                partition.count += 1
                continue
            if builder is not None:
                self._close_batch(partition)
                await self.room()
            partition.builder = builder = self._new_builder()
            self._waiting[partition] = None
            if builder.append(0, timestamp, key, value, headers) is None:
                raise DeliveryFailed(f"a record for {partition} does not fit into any batch", retryable=False)
            partition.count = 1

    def _close_batch(self, partition: Partition) -> None:
        self.buffered += partition.builder.size()
        partition.full.append((partition.builder, partition.count))
        partition.builder = None

    def _new_builder(self) -> Any:
        return DefaultRecordBatchBuilder(
            magic=2,
            compression_type=self._compression,
            is_transactional=int(self._session.transactional_id is not None),
            producer_id=-1,
            producer_epoch=-1,
            base_sequence=0,
            batch_size=self._batch_bytes,
        )

    async def room(self) -> None:
        """Waits while BUFFER_BYTES are on their way."""
        self.pump()
        while self.buffered > BUFFER_BYTES:
            await self._wait_for_progress()

    async def flush(self) -> None:
        """Returns when the brokers have acknowledged everything that was appended."""
        self.pump()
        while self._unfinished:
            await self._wait_for_progress()
        self.raise_failure()

    @property
    def _unfinished(self) -> bool:
        return bool(self._waiting or self._tasks or self._pauses)

    def written(self) -> list[tuple[str, int, int, int]]:
        """Of this session: topic, partition, first and last offset."""
        return [
            (each.tp.topic, each.tp.partition, each.first, each.last)
            for each in self._partitions.values()
            if each.sequence
        ]

    async def close(self, seconds: float) -> bool:
        """Ends what is on its way; True if all of it was answered, so that nothing can arrive late."""
        self._closed = True
        for pause in self._pauses.values():
            pause.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for task in (unanswered := list(self._tasks)):
            task.cancel()
        await asyncio.gather(*unanswered, return_exceptions=True)
        return all(each.sending is None for each in self._partitions.values())

    def raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _wait_for_progress(self) -> None:
        self.raise_failure()
        self._progress.clear()
        await self._progress.wait()
        self.raise_failure()

    def pump(self) -> None:
        """Give each idle broker what waits for the partitions that it leads."""
        if self._failure is not None or self._closed:
            return
        by_node: dict[int, list[Partition]] = {}
        leaderless = False
        for partition in self._waiting:
            node = self._cluster.metadata.leader_for_partition(partition.tp)
            if node is None or node == NOBODY:
                leaderless = True
            elif node not in self._busy_nodes and not partition.held:
                by_node.setdefault(node, []).append(partition)
        for node, partitions in by_node.items():
            self._spawn(node, self._deliver(node, partitions))
        if leaderless and NOBODY not in self._busy_nodes:
            self._spawn(NOBODY, self._find_leaders())

    def _spawn(self, node: int, work: Coroutine[Any, Any, None]) -> None:
        self._busy_nodes.add(node)
        task = self._loop.create_task(work)
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._busy_nodes.discard(node)
            if not task.cancelled() and (error := task.exception()) is not None:
                self._failure = self._failure or error
            self.pump()
            self._progress.set()

        task.add_done_callback(done)

    def _take(self, partitions: list[Partition]) -> list[Sending]:
        """The next batch of each, up to the size of a request; who was left out comes first the next time."""
        taken: list[Sending] = []
        size = 0
        for partition in partitions:
            if partition.held:
                continue  # its leader has just moved, and the new one was faster
            if partition.sending is None:
                self._build(partition)
            sending = partition.sending
            assert sending is not None
            if taken and size + len(sending.buffer) > self._request_bytes:
                break
            size += len(sending.buffer)
            taken.append(sending)
        for sending in taken:
            partition = sending.partition
            partition.held = True
            del self._waiting[partition]
            if partition.full or partition.builder is not None:
                self._waiting[partition] = None
        return taken

    def _build(self, partition: Partition) -> None:
        """The oldest batch, as bytes, with its place in the session's order."""
        if not partition.full:
            self._close_batch(partition)
        builder, count = partition.full.popleft()
        self.buffered -= builder.size()
        builder.set_producer_state(self._session.producer_id, self._session.epoch, partition.sequence)
        partition.sequence = (partition.sequence + count) % SEQUENCES
        partition.sending = Sending(partition, builder.build(), count, self._loop.time() + DELIVERY_SECONDS)
        self.buffered += len(partition.sending.buffer)

    async def _deliver(self, node: int, partitions: list[Partition]) -> None:
        """A batch of each is acknowledged, or will be sent again; raises for one that can't be delivered."""
        if not (batches := self._take(partitions)):
            return
        if self._coordinator is not None:
            await self._open_transaction([each.partition.tp for each in batches])
        topics: dict[str, list[tuple[int, Any]]] = {}
        for each in batches:
            topics.setdefault(each.partition.tp.topic, []).append((each.partition.tp.partition, each.buffer))
        request = ProduceRequest(self._session.transactional_id, self._acks, self._request_ms, list(topics.items()))
        try:
            response = await self._cluster.send(node, request)
        except KafkaError as error:
            if not is_transient(error):
                raise DeliveryFailed(f"writing to {_names(batches)} failed: {error}") from error
            self._send_again(batches, error)
        else:
            self._answered(response, {each.partition.tp: each for each in batches})

    def _answered(self, response: Any, batches: Mapping[TopicPartition, Sending]) -> None:
        for topic, results in response.topics:
            for number, code, offset, *_ in results:
                each = batches[TopicPartition(topic, number)]
                if code == 0 or code == DUPLICATE:
                    self._acknowledged(each, offset)
                elif for_code(code).retriable:
                    self._send_again([each], for_code(code)())
                else:
                    raise self._refusal(each, code)

    def _acknowledged(self, each: Sending, offset: int) -> None:
        partition = each.partition
        partition.sending = None
        partition.held = False
        if offset >= 0:
            partition.first = offset if partition.first < 0 else partition.first
            partition.last = offset + each.count - 1
        self.buffered -= len(each.buffer)
        self.sent += len(each.buffer)

    def _send_again(self, batches: list[Sending], reason: KafkaError) -> None:
        """After a pause, to whoever leads the partition by then; the partition's other batches wait."""
        self._cluster.request_refresh()
        for each in batches:
            each.attempts += 1
            if self._loop.time() > each.deadline:
                raise DeliveryFailed(
                    f"{each.partition} at {self._cluster.brokers} took no records for {DELIVERY_SECONDS:.0f} s "
                    f"({reason}); check that its brokers are up and its replicas in sync"
                ) from reason
            pause = min(FIRST_PAUSE * 2 ** min(each.attempts, 10), LONGEST_PAUSE)
            self._pauses[each.partition] = self._loop.call_later(pause, self._release, each.partition)
        if (attempts := batches[0].attempts) % WARN_EVERY_ATTEMPTS == 1:
            self._log.warning("writing to %s again, attempt %d (%s)", _names(batches), attempts + 1, reason)

    def _release(self, partition: Partition) -> None:
        del self._pauses[partition]
        partition.held = False
        self._waiting[partition] = None
        self.pump()

    def _refusal(self, each: Sending, code: int) -> DeliveryFailed:
        if code in OVER:
            reason = explain(code)
        elif code in TOO_LARGE and each.count > 1:
            reason = (
                f"a batch of {len(each.buffer)} bytes is more than the topic takes; raise its max.message.bytes, or "
                "lower client={'max_batch_size': …}"
            )
        elif code in TOO_LARGE:
            reason = f"a record of {len(each.buffer)} bytes is more than the topic takes; raise its max.message.bytes"
        else:
            reason = f"{for_code(code).__name__} (error {code})"
        return DeliveryFailed(
            f"{each.partition} at {self._cluster.brokers} did not take {each.count} records: {reason}",
            retryable=code not in REFUSED_AGAIN,
        )

    async def _open_transaction(self, partitions: list[TopicPartition]) -> None:
        assert self._coordinator is not None
        async with self._adding:  # the coordinator takes one request at a time
            if new := {each for each in partitions if each not in self._added}:
                new.update(each.tp for each in self._waiting if each.tp not in self._added)
                self.opened = True
                await self._coordinator.add_partitions(self._session, new)
                self._added |= new

    async def _find_leaders(self) -> None:
        """Some partition has no leader now: ask again until it has; one that has none for long ends the attempt."""
        deadline = self._loop.time() + DELIVERY_SECONDS
        attempts = 0
        while leaderless := [each for each in self._waiting if self._leaderless(each)]:
            if self._loop.time() > deadline:
                raise DeliveryFailed(
                    f"{leaderless[0]} at {self._cluster.brokers} had no leader for {DELIVERY_SECONDS:.0f} s; "
                    "check that its brokers are up, and that the topic was not deleted"
                )
            attempts += 1
            if attempts % WARN_EVERY_ATTEMPTS == 2:
                self._log.warning("%s has no leader; waiting for one (attempt %d)", leaderless[0], attempts)
            await asyncio.sleep(min(FIRST_PAUSE * 2 ** min(attempts, 10), LONGEST_PAUSE))
            await self._cluster.refresh()

    def _leaderless(self, partition: Partition) -> bool:
        return self._cluster.metadata.leader_for_partition(partition.tp) in (None, NOBODY)


def _names(batches: Sequence[Sending]) -> str:
    return ", ".join(str(each.partition) for each in batches)


def compression_code(name: str | None) -> int:
    """Raises InvalidConfig for a compression that there is not, or whose library is not installed."""
    if name is None:
        return 0
    compressors = AIOKafkaProducer._COMPRESSORS
    if name not in compressors:
        raise InvalidConfig(f"KafkaSink: compression_type {name!r} is none of {', '.join(sorted(compressors))}")
    installed, code = compressors[name]
    if not installed():
        raise InvalidConfig(f"KafkaSink: compression_type {name!r} needs its library: pip install 'aiokafka[{name}]'")
    return int(code)
