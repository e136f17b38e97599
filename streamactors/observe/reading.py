"""What metrics are made of."""

from dataclasses import dataclass

from streamactors.observe import model


@dataclass(frozen=True, slots=True)
class Reading:
    """Of one job. `last`: its latest complete checkpoint; `state`: what that holds."""

    status: model.JobStatus
    checkpoints: model.Checkpoints
    last: model.CheckpointDetail | None = None
    state: model.State | None = None
