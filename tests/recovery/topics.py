"""Orders into Kafka topics, and the totals that a read_committed consumer finds in one."""

import asyncio
from collections.abc import Sequence

import msgspec
from aiokafka import AIOKafkaProducer

from tests.connectors.kafka.driving import see_nothing_open, visible
from tests.recovery.jobs import Order, Total


async def produce_logs(brokers: str, topic: str, logs: Sequence[Sequence[Order]]) -> None:
    """Log n into partition n, in order."""
    encode = msgspec.json.Encoder().encode
    async with AIOKafkaProducer(bootstrap_servers=brokers, linger_ms=5) as producer:
        for partition, log in enumerate(logs):
            sent = [await producer.send(topic, encode(order), partition=partition) for order in log]
            await producer.flush()
            await asyncio.gather(*sent)


async def totals_of(brokers: str, topic: str) -> list[Total]:
    """Partition by partition; a customer's are all in one, by their key."""
    await see_nothing_open(brokers, topic)
    decode = msgspec.json.Decoder(Total).decode
    return [decode(record.value) for record in await visible(brokers, topic)]
