"""Apache Kafka as a source and as a sink, on aiokafka."""

from streamactors.errors import MissingExtra

try:
    import aiokafka  # noqa: F401
except ImportError as error:
    raise MissingExtra("connectors.kafka needs aiokafka: pip install 'streamactors[kafka]'") from error

from connectors.kafka.errors import (
    AccessDenied,
    BrokersUnreachable,
    DeliveryFailed,
    OffsetExpired,
    ReadFailed,
    TransactionsExhausted,
    UnknownTopic,
)
from connectors.kafka.records import KafkaRecord
from connectors.kafka.sink import KafkaSink
from connectors.kafka.source import KafkaSource

__all__ = [
    "AccessDenied",
    "BrokersUnreachable",
    "DeliveryFailed",
    "KafkaRecord",
    "KafkaSink",
    "KafkaSource",
    "OffsetExpired",
    "ReadFailed",
    "TransactionsExhausted",
    "UnknownTopic",
]
