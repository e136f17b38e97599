"""The commit of a job without checkpoints whose output is to become visible all at once, at its end. Pure: see
`coordinator`, in whose place it is.

Invariant: `Commit` only after every subtask has seen the end of its data and, if it has sinks, has prepared what they
wrote; `Finish` only after every committing subtask has committed. Nothing durable remembers in between: whoever fails
while `committing` may have made some of the output visible, and must not begin again.
"""

from collections.abc import Collection, Hashable, Sequence
from typing import Final, Generic, TypeVar

from streamactors.checkpoint.coordinator import Action, Commit, Committed, DataEnded, Event, Finish

S = TypeVar("S", bound=Hashable)

FINAL: Final = 1
"""The number under which the sinks prepare."""


class FinalCommit(Generic[S]):
    """`committers`: the subtasks with transactional sinks."""

    in_flight: tuple[int, ...] = ()

    def __init__(self, subtasks: Collection[S], committers: Collection[S]) -> None:
        self.committing = False
        self.done = False
        """All is visible: who fails from now on takes nothing of it back, and must not begin again either."""
        self._running = set(subtasks)
        self._uncommitted = set(committers)

    def on(self, event: Event, now: float) -> Sequence[Action]:
        match event:
            case DataEnded(subtask):
                self._running.discard(subtask)
                return [] if self._running else self._commit()
            case Committed(subtask, _):
                self._uncommitted.discard(subtask)
                return [] if self._uncommitted else self._finish()
            case _:
                return []

    def _commit(self) -> Sequence[Action]:
        if not self._uncommitted:
            return self._finish()
        self.committing = True
        return [Commit(FINAL)]

    def _finish(self) -> Sequence[Action]:
        if self._running:
            return []
        self.committing, self.done = False, True
        return [Finish()]

    def deadline(self) -> float | None:
        """It waits for no time."""
        return None
