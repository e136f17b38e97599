"""What an attempt asks of its deployment: to place subtasks and start them, and what can be asked of those."""

from typing import Any, Protocol

from streamactors.clock import Clock
from streamactors.graph.physical import SubtaskId
from streamactors.runtime.assembly import AttemptSpec
from streamactors.runtime.info import ChannelFill
from streamactors.runtime.messages import Control, Reports
from streamactors.runtime.snapshot_storage import StoredSnapshots


class Deployed(Protocol):
    """Subtasks that have been placed and started, wherever they are."""

    def send(self, subtask: SubtaskId, message: Control) -> None: ...
    def metrics(self) -> dict[str, Any]: ...
    def channels(self, subtask: SubtaskId) -> list[ChannelFill]: ...
    async def delivered(self) -> None:
        """Until all that was sent so far is with the subtasks, or will never be."""

    async def settle(self, checkpoint: int) -> None:
        """Of one that is given up: until nobody but this process writes anything for it, or as long as is worth it."""

    async def shut_down(self) -> None:
        """Cancel what still runs, and wait until nothing is left."""


class Deploy(Protocol):
    """Places and starts every subtask of an attempt; their reports go to `reports`."""

    async def __call__(self, spec: AttemptSpec, storage: StoredSnapshots, reports: Reports, clock: Clock) -> Deployed:
        """Where it raises, nothing is left of them."""
