"""Drives readers and writers as the runtime does, and looks at topics from outside."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import ConsumerRecord, TopicPartition

from connectors.kafka import KafkaSink, KafkaSource
from streamactors.metrics import MetricGroup
from streamactors.sinks import SinkContext, SinkWriter
from streamactors.sources import Position, SourceBatch, SourceContext, SplitReader

T = TypeVar("T")
LOG = logging.LoggerAdapter(logging.getLogger("streamactors.test"), {})
PATIENCE = 60.0
SOURCE = SourceContext("flow", "in", 0, 1, True, LOG, MetricGroup())
SINK = SinkContext(
    flow="flow",
    uid="out",
    subtask=0,
    parallelism=1,
    widest_parallelism=1,
    checkpointing=True,
    exactly_once=True,
    max_concurrent=1,
    tolerable_failures=0,
    checkpoint_timeout=60.0,
    run=1,
    attempt=1,
    log=LOG,
    metrics=MetricGroup(),
)


class Numbers:
    """Decodes decimal numbers and encodes them; anything else is an error."""

    def decode(self, data: bytes) -> int:
        return int(data)

    def encode(self, value: int) -> bytes:
        return b"%d" % value


NUMBERS = Numbers()


@asynccontextmanager
async def opened(
    source: KafkaSource[T], restored: Mapping[str, Position] | None = None, **context: Any
) -> AsyncIterator[tuple[SplitReader[T], Mapping[str, Position]]]:
    """A reader, and the positions that it begins with."""
    reader = source.reader(replace(SOURCE, metrics=MetricGroup(), **context))
    try:
        async with asyncio.timeout(PATIENCE):
            positions = await reader.open(restored)
        yield reader, positions
    finally:
        await reader.close()


async def batches(reader: SplitReader[T]) -> list[SourceBatch[T]]:
    """Of a bounded source, to its end."""
    found = []
    async with asyncio.timeout(PATIENCE):
        while (batch := await reader.read()) is not None:
            found.append(batch)
    return found


async def some(reader: SplitReader[T], count: int) -> list[SourceBatch[T]]:
    """At least `count` records, undecodable ones included."""
    found: list[SourceBatch[T]] = []
    async with asyncio.timeout(PATIENCE):
        while sum(len(batch.values) + len(batch.undecodable) for batch in found) < count:
            batch = await reader.read()
            assert batch is not None, f"ended after {found}"
            found.append(batch)
    return found


def values(found: Sequence[SourceBatch[T]]) -> list[T]:
    return [value for batch in found for value in batch.values]


def positions_after(positions: Mapping[str, Position], found: Sequence[SourceBatch[Any]]) -> dict[str, Position]:
    return dict(positions) | {batch.split: batch.position_after(len(batch.values)) for batch in found}


async def read_all(source: KafkaSource[T], restored: Mapping[str, Position] | None = None, **context: Any) -> list[T]:
    async with opened(source, restored, **context) as (reader, _):
        return values(await batches(reader))


@asynccontextmanager
async def writing(
    sink: KafkaSink[T], restored: Sequence[Any] = (), *, committed: bool = False, **context: Any
) -> AsyncIterator[SinkWriter[T]]:
    writer = sink.writer(replace(SINK, metrics=MetricGroup(), **context))
    try:
        async with asyncio.timeout(PATIENCE):
            await writer.open(restored, committed=committed)
        yield writer
    finally:
        await writer.close()


async def produce(brokers: str, topic: str, *records: bytes | None, partition: int = 0, **options: Any) -> int:
    """One after the other; the offset of the last."""
    offset = -1
    async with AIOKafkaProducer(bootstrap_servers=brokers) as producer:
        for record in records:
            key = options.get("key", b"key" if record is None else None)
            sent = await producer.send_and_wait(topic, record, **{**options, "key": key}, partition=partition)
            offset = sent.offset
    return offset


async def transact(brokers: str, topic: str, *records: bytes, commit: bool, partition: int = 0) -> None:
    """Ended for all readers when this returns."""
    async with AIOKafkaProducer(bootstrap_servers=brokers, transactional_id=f"test-{topic}") as producer:
        await producer.begin_transaction()
        for record in records:
            await producer.send_and_wait(topic, record, partition=partition)
        if commit:
            await producer.commit_transaction()
        else:
            await producer.abort_transaction()
    await see_nothing_open(brokers, topic)


async def end_offsets(brokers: str, topic: str, *, isolation: str = "read_committed") -> dict[int, int]:
    consumer = AIOKafkaConsumer(bootstrap_servers=brokers, isolation_level=isolation)
    async with consumer:
        consumer._client.add_topic(topic)
        await consumer._client.force_metadata_update()
        partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic) or ()]
        return {tp.partition: end for tp, end in (await consumer.end_offsets(partitions)).items()}


async def visible(brokers: str, topic: str, *, isolation: str = "read_committed") -> list[ConsumerRecord[bytes, bytes]]:
    """All records that a reader sees now, partition by partition."""
    ends = await end_offsets(brokers, topic, isolation=isolation)
    found: list[ConsumerRecord[bytes, bytes]] = []
    consumer = AIOKafkaConsumer(bootstrap_servers=brokers, isolation_level=isolation, auto_offset_reset="none")
    async with asyncio.timeout(PATIENCE), consumer:
        await asyncio.sleep(0)  # aiokafka's consumer can't be stopped before its tasks have begun
        for number, end in sorted(ends.items()):
            tp = TopicPartition(topic, number)
            consumer.assign([tp])
            consumer.seek(tp, 0)
            while await consumer.position(tp) < end:
                found += [record for records in (await consumer.getmany(timeout_ms=100)).values() for record in records]
    return found


async def committed_values(brokers: str, topic: str) -> list[bytes | None]:
    return [record.value for record in await visible(brokers, topic)]


async def eventually(condition: Callable[[], Awaitable[object]], wanted: object) -> None:
    """The brokers make commits visible a moment after they have acknowledged them."""
    async with asyncio.timeout(PATIENCE):
        while (found := await condition()) != wanted:
            if isinstance(found, list) and isinstance(wanted, list):
                assert len(found) <= len(wanted), f"more than wanted: {found}"
            await asyncio.sleep(0.02)


async def see(brokers: str, topic: str, *wanted: bytes | None) -> None:
    """These are visible, sooner or later, in this order in a topic of one partition, and no others."""
    await eventually(lambda: committed_values(brokers, topic), list(wanted))
    await see_nothing_open(brokers, topic)
    assert await committed_values(brokers, topic) == list(wanted)


async def see_nothing_open(brokers: str, topic: str) -> None:
    """No transaction holds readers back: what is stable reaches as far as what is written."""

    async def held_back() -> bool:
        return await end_offsets(brokers, topic) != await end_offsets(brokers, topic, isolation="read_uncommitted")

    await eventually(held_back, False)
