"""All subtasks in this process, on the loop that starts the job."""

from streamactors.clock import Clock
from streamactors.cluster.slice import ChannelWrapper, Slice
from streamactors.runtime.assembly import AttemptSpec
from streamactors.runtime.messages import Reports
from streamactors.runtime.snapshot import SnapshotStorage


async def deploy_locally(
    spec: AttemptSpec,
    storage: SnapshotStorage | None,
    reports: Reports,
    clock: Clock,
    wrap: ChannelWrapper | None = None,
) -> Slice:
    """`wrap` is given every channel, and gives what is used in its place."""
    attempt = Slice(spec, spec.plan.subtasks, storage, reports, clock, wrap=wrap)
    attempt.start()
    return attempt
