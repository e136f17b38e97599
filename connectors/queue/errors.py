"""What can go wrong with a queue, by condition. `retryable = False`: a restart would meet the same condition."""

from streamactors.errors import StreamactorsError


class QueueInUse(StreamactorsError):
    """Another live process, source or job has the queue; `retryable` where that is an earlier attempt of this job."""

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class QueueFull(StreamactorsError):
    """The backlog is at its bound: the job has not read enough of it yet. Nothing was put."""


class QueueClosed(StreamactorsError):
    """The queue takes no more records: it was closed, or told that no more are to come."""

    retryable = False


class RecordTooLarge(StreamactorsError):
    """One record is larger than a queue takes. Nothing was put."""

    retryable = False


class WriteFailed(StreamactorsError):
    """The operating system refused to write (disk full, permission): what was being put is not acknowledged."""


class ReadFailed(StreamactorsError):
    """The operating system refused to read."""


class CorruptQueue(StreamactorsError):
    """A segment of the log is missing, truncated or altered."""

    retryable = False


class PositionGone(StreamactorsError):
    """What a checkpoint would go on with is not in the log: deleted, or the log is another one."""

    retryable = False
