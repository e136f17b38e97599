"""A broker that all tests of a session share, and topics that no other test uses."""

import asyncio
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from streamactors.testing.kafka_broker import KafkaBroker


@contextmanager
def session_broker() -> Iterator[KafkaBroker]:
    """For a fixture that is no coroutine, since the event loops of its tests come and go. Raises StreamactorsError
    where what it needs is not installed."""
    broker = KafkaBroker()
    # A factory of our own, so that no event loop set by a test runner is replaced.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(broker.start())
    try:
        yield broker
    finally:
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            runner.run(broker.close())


@dataclass(frozen=True)
class KafkaTopics:
    """`await topics.new("orders", partitions=4)` gives `orders-5f0c…`, ready to be written to."""

    broker: KafkaBroker

    def name(self, prefix: str = "topic") -> str:
        """A unique name, of no topic yet."""
        return f"{prefix}-{uuid.uuid4().hex[:12]}"

    async def new(self, prefix: str = "topic", *, partitions: int = 1, config: Mapping[str, str] | None = None) -> str:
        name = self.name(prefix)
        await self.broker.create_topic(name, partitions=partitions, config=config)
        return name
