"""Every error that streamactors raises on purpose, named by its condition; each message says what to do.

`StreamactorsError` is the root. Errors marked `retryable = False` end the job at once: a restart from the same
checkpoint would meet the same condition, or could double output.
"""


class StreamactorsError(Exception):
    """Root of all errors raised by streamactors."""

    retryable: bool = True


class JobFailed(StreamactorsError):
    """The job ended without finishing; its cause is the first failure of the last attempt."""


class InvalidDataflow(StreamactorsError):
    """The flow can't be run as it is built; raised before anything runs."""

    retryable = False


class InvalidConfig(StreamactorsError):
    """A setting is unknown, malformed, or does not go with another."""

    retryable = False


class InvalidTimestamp(StreamactorsError):
    """What a `timestamp` function gave for record `record` of a batch is no time-stamp."""

    retryable = False

    def __init__(self, what: str, record: int) -> None:
        super().__init__(what)
        self.record = record


class StateAccessError(StreamactorsError):
    """State was touched outside the call that it belongs to."""

    retryable = False


class IncompatibleState(StreamactorsError):
    """Stored state does not fit the flow: another type, a missing operator, another max parallelism."""

    retryable = False


class CorruptCheckpoint(StreamactorsError):
    """A file of a checkpoint is missing, truncated or altered."""

    retryable = False


class StorageInUse(StreamactorsError):
    """Another live process owns the checkpoint storage of this flow."""

    retryable = False


class StorageFailed(StreamactorsError):
    """The checkpoint storage refused a read or a write (disk full, permission, time-out)."""


class FencedOff(StreamactorsError):
    """A newer run has taken over the storage: this process may write no manifest and commit no transaction."""

    retryable = False


class TransactionLost(StreamactorsError):
    """A prepared transaction of a sink can be neither committed nor shown to have been committed."""

    retryable = False


class CommitInterrupted(StreamactorsError):
    """A batch job failed while its sinks committed, which nothing durable remembers: some of its output is visible, and
    running it again would double that."""

    retryable = False


class TransactionAlreadyCommitted(StreamactorsError):
    """Falling back to an older checkpoint would double output that a later one has already committed."""

    retryable = False


class UnserialisableKey(StreamactorsError):
    """A key whose type has no stable serialisation."""

    retryable = False


class UnserialisableValue(StreamactorsError):
    """A value that its serializer can't write, or that does not fit its declared type."""

    retryable = False


class MissingExtra(StreamactorsError):
    """An optional part was used without its extra installed."""

    retryable = False


class RecordFailed(StreamactorsError):
    """User code or a decoder failed on one record; the cause is the user's exception. `name`: what the user calls an
    operator whose uid was made up."""

    def __init__(
        self,
        uid: str,
        what: str,
        *,
        key: object = None,
        origin: str | None = None,
        name: str | None = None,
        retryable: bool = True,
    ) -> None:
        self.uid, self.key, self.origin = uid, key, origin
        self.retryable = retryable
        where = f", key {key!r}" if key is not None else ""
        source = f", record {origin}" if origin else ""
        called = f" ({name})" if name not in (None, uid) else ""
        super().__init__(f"operator {uid!r}{called} failed{where}{source}: {what}")


class CallCancelled(StreamactorsError):
    """A call of an async step was cancelled, and not by the job: something that it awaited was cancelled."""


class TooManyPartialMatches(StreamactorsError):
    """A key has more partial matches of a pattern than were allowed."""

    retryable = False


class RecordRefused(StreamactorsError):
    """A step could not take `value`, of the batch in hand; the cause tells why. It becomes a RecordFailed, or a dead
    letter."""

    retryable = False

    def __init__(self, value: object) -> None:
        super().__init__("a record could not be taken")
        self.value = value


class CheckpointFailed(StreamactorsError):
    """A checkpoint that somebody waits for was declined, aborted or timed out."""


class NotBound(StreamactorsError):
    """A `Context` that the runtime did not make."""

    retryable = False

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} works only on the context that the runtime hands to an operator")


class AttemptEnded(StreamactorsError):
    """Whoever was asked is gone with its attempt; the next one may answer."""


class ConnectionLost(StreamactorsError):
    """A message to another process of the same job has not been taken: it may have arrived or not."""


class WorkerLost(StreamactorsError):
    """A worker of a job that runs in several processes has died, hangs, or can't be reached: the attempt is over."""


class ClusterUnfit(StreamactorsError):
    """The cluster can't run the job: there is none, it is too small, or a node has another Python, another version, or
    not the flow's own code; the message names what."""

    retryable = False


class JobNotRunning(CheckpointFailed):
    """A request (a checkpoint, a stop, a query) to a job that has ended."""

    retryable = False


class RescaleFailed(StreamactorsError):
    """The job failed as soon as it ran by the new parallelism, and goes on as it was. The cause says by what."""

    retryable = False


class RescaleUnderWay(StreamactorsError):
    """A job was asked to rescale while it does so already. Ask again once it runs."""

    retryable = False


class NoSuchStep(StreamactorsError):
    """The flow has no step of that uid, or none that emits anything."""

    retryable = False


class SubscriptionLagged(StreamactorsError):
    """A subscriber did not keep up: the `lost` oldest of the values that waited for it are gone. It may read on."""

    retryable = False

    def __init__(self, uid: str, lost: int, buffer: int) -> None:
        self.uid, self.lost = uid, lost
        super().__init__(
            f"the subscriber of step {uid!r} did not keep up: {lost} values were lost. It may read on; subscribe with "
            f"a larger buffer= (it is {buffer}) where the step emits in bursts"
        )


class ControlUnavailable(StreamactorsError):
    """This process can't offer the control of its jobs, or look for that of others."""

    retryable = False


class NoSuchJob(StreamactorsError):
    """Of the jobs that run, none is the one that is meant; or, as AmbiguousJob, more than one is."""

    retryable = False


class AmbiguousJob(NoSuchJob):
    """More than one of the jobs that run could be meant."""


class InvalidRequest(StreamactorsError):
    """What was asked of a job's control is malformed. `code` and `status` are those of the answer."""

    retryable = False

    def __init__(self, what: str, code: str = "invalid-request", status: int = 400) -> None:
        self.code, self.status = code, status
        super().__init__(what)


class RequestFailed(StreamactorsError):
    """A job's control answered with an error, or not at all; `code` is stable, the message is for people."""

    retryable = False

    def __init__(self, code: str, what: str) -> None:
        self.code = code
        super().__init__(what)

    @property
    def is_gone(self) -> bool:
        """Whether the job ended before it could answer."""
        return self.code == "job-gone"


class SimulationFailed(StreamactorsError):
    """A simulated run broke an invariant; the message ends with the command that replays it."""

    retryable = False


class Disturbed(StreamactorsError):
    """A fault that the simulation has put in: a record, a read or a request that fails for no reason."""


class Crashed(BaseException):
    """Raised by every operation of a simulated process from its crash on: nothing that it does reaches the world."""
