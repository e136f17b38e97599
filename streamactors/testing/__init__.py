"""For tests of flows and connectors: a real Kafka broker."""

from streamactors.testing.kafka_broker import KafkaBroker

__all__ = ["KafkaBroker"]
