"""(c) Kafka → running sum → Kafka: by aiokafka alone, at-least-once; and by streamactors, exactly-once."""

import datetime as dt
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

import streamactors as sa
from benchmarks.events import Order, Total
from benchmarks.flows import RunningTotal
from connectors.kafka import KafkaSink, KafkaSource

POLL_RECORDS = 5000


async def fill(bootstrap: str, topic: str, lines: Sequence[bytes]) -> None:
    """Produce the events, in batches."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, max_batch_size=1 << 20, linger_ms=5)
    await producer.start()
    try:
        await _send_batches(producer, topic, lines)
        await producer.flush()
    finally:
        await producer.stop()


async def _send_batches(producer: Any, topic: str, values: Sequence[bytes]) -> list[Any]:
    """The fastest way that aiokafka offers: whole record batches, built by hand."""
    sent = []
    batch = producer.create_batch()
    for value in values:
        if batch.append(key=None, value=value, timestamp=None) is None:
            sent.append(await producer.send_batch(batch, topic, partition=0))
            batch = producer.create_batch()
            batch.append(key=None, value=value, timestamp=None)
    sent.append(await producer.send_batch(batch, topic, partition=0))
    return sent


async def plain(bootstrap: str, topic: str, out: str, count: int) -> float:
    """Consume, decode, sum, encode, produce; seconds from the first fetch to the last acknowledgement."""
    decode, encode = msgspec.json.Decoder(Order).decode, msgspec.json.Encoder().encode
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, auto_offset_reset="earliest")
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, max_batch_size=1 << 20, linger_ms=5)
    await consumer.start()
    await producer.start()
    try:
        consumer.assign([TopicPartition(topic, 0)])
        totals: dict[str, int] = {}
        seen = 0
        started = time.perf_counter()
        while seen < count:
            values = []
            for records in (await consumer.getmany(timeout_ms=1000, max_records=POLL_RECORDS)).values():
                for record in records:
                    order = decode(record.value)
                    total = totals[order.customer] = totals.get(order.customer, 0) + order.amount
                    values.append(encode(Total(order.customer, total)))
            seen += len(values)
            if values:
                await _send_batches(producer, out, values)
        await producer.flush()
        return time.perf_counter() - started
    finally:
        await consumer.stop()
        await producer.stop()


async def flow(bootstrap: str, topic: str, out: str, *, checkpoints: bool) -> float:
    """The same by streamactors, bounded: exactly-once with checkpoints each second, or at-least-once without; seconds
    from start to the last commit."""
    totals = sa.Dataflow(f"bench-{out}")
    (
        totals.source("orders", KafkaSource(bootstrap, topic, value=sa.Json(Order), bounded=True))
        .key_by(lambda order: order.customer)
        .process("totals", RunningTotal)
        .sink("out", KafkaSink(bootstrap, out, value=sa.Json(Total)))
    )
    with tempfile.TemporaryDirectory(prefix="streamactors-bench-") as folder:
        every_second = sa.Checkpoints(folder, interval=dt.timedelta(seconds=1))
        started = time.perf_counter()
        await sa.run(totals, sa.Config(checkpoints=every_second if checkpoints else None))
        return time.perf_counter() - started


async def measure(broker: Any, lines: Sequence[bytes], rounds: int) -> list[tuple[float, float, float]]:
    """Seconds of the plain loop, exactly-once, and at-least-once, by round."""
    await broker.create_topic("bench-in")
    await fill(broker.bootstrap, "bench-in", lines)
    results = []
    for number in range(rounds):
        outs = [f"bench-{kind}-{number}" for kind in ("plain", "exactly-once", "at-least-once")]
        await broker.create_topics(outs)
        loop_seconds = await plain(broker.bootstrap, "bench-in", outs[0], len(lines))
        exactly = await flow(broker.bootstrap, "bench-in", outs[1], checkpoints=True)
        at_least = await flow(broker.bootstrap, "bench-in", outs[2], checkpoints=False)
        results.append((loop_seconds, exactly, at_least))
    return results
