"""What is known of the checkpoints of one attempt, for people: each subtask's part, how long they take. Nothing is
decided by it.
"""

from streamactors.checkpoint.manifest import Manifest
from streamactors.clock import Clock
from streamactors.elements import Barrier
from streamactors.runtime.figures import SubtaskCheckpoint
from streamactors.runtime.info import CheckpointGivenUp, CheckpointInfo, CheckpointUnderWay
from streamactors.runtime.messages import SnapshotStored


class _Entry:
    """A checkpoint in flight. `began` in monotonic seconds."""

    def __init__(self, began: float, savepoint: bool) -> None:
        self.began = began
        self.savepoint = savepoint
        self.parts: list[SubtaskCheckpoint] = []


class CheckpointBook:
    """From `triggered` to `completed` or `given_up`, by checkpoint id."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._entries: dict[int, _Entry] = {}

    def triggered(self, barrier: Barrier) -> None:
        self._entries[barrier.checkpoint] = _Entry(self._clock.monotonic(), barrier.savepoint)

    def stored(self, message: SnapshotStored) -> None:
        """Late ones are of no interest."""
        entry = self._entries.get(message.checkpoint)
        if entry is not None:
            seconds = self._clock.monotonic() - entry.began
            part = SubtaskCheckpoint.of(str(message.subtask), seconds, message.figures, message.state, message.groups)
            entry.parts.append(part)

    def completed(self, manifest: Manifest, uri: str, began: float) -> CheckpointInfo:
        """`began`: in monotonic seconds."""
        return CheckpointInfo.of(
            manifest.checkpoint,
            uri,
            self._clock.monotonic() - began,
            state_bytes=manifest.state_bytes,
            uploaded_bytes=sum(file.size for file in manifest.own_files),
            inflight_bytes=manifest.in_flight_bytes,
            savepoint=manifest.savepoint,
            time_ms=manifest.time_ms,
            subtasks=self._parts(manifest.checkpoint),
        )

    def given_up(self, checkpoint: int, reason: str) -> CheckpointGivenUp:
        return CheckpointGivenUp(checkpoint, self._clock.time_ms(), reason, self._parts(checkpoint))

    def _parts(self, checkpoint: int) -> tuple[SubtaskCheckpoint, ...]:
        entry = self._entries.pop(checkpoint, None)
        return () if entry is None else tuple(entry.parts)

    @property
    def under_way(self) -> list[CheckpointUnderWay]:
        now = self._clock.monotonic()
        return [
            CheckpointUnderWay(checkpoint, now - entry.began, tuple(entry.parts), entry.savepoint)
            for checkpoint, entry in self._entries.items()
        ]
