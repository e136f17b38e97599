"""What can go wrong with Kafka, by condition. `retryable = False`: a restart would meet the same condition."""

from streamactors.errors import StreamactorsError


class BrokersUnreachable(StreamactorsError):
    """No broker answered in time."""


class AccessDenied(StreamactorsError):
    """The brokers refuse these credentials, or these credentials may not do this."""

    retryable = False


class UnknownTopic(StreamactorsError):
    """A topic, or a partition that a checkpoint names, is not there."""

    retryable = False


class OffsetExpired(StreamactorsError):
    """The next offset to read is not in the partition: deleted by retention, or never written."""

    retryable = False


class ReadFailed(StreamactorsError):
    """Records that are there can't be read."""


class DeliveryFailed(StreamactorsError):
    """Records could not be written; `retryable` is False where the brokers would refuse them again."""

    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


class TransactionsExhausted(StreamactorsError):
    """More transactions await their checkpoint than the sink keeps transactional ids for."""
