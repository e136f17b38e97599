"""Topics that no other test uses."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from streamactors.testing import KafkaBroker


@dataclass(frozen=True)
class Topics:
    """The `topics` fixture: `await topics.new("orders", partitions=4)` gives `orders-5f0c…`, ready to be written to."""

    broker: KafkaBroker

    def name(self, prefix: str = "topic") -> str:
        """A unique name, of no topic yet."""
        return f"{prefix}-{uuid.uuid4().hex[:12]}"

    async def new(self, prefix: str = "topic", *, partitions: int = 1, config: Mapping[str, str] | None = None) -> str:
        name = self.name(prefix)
        await self.broker.create_topic(name, partitions=partitions, config=config)
        return name
