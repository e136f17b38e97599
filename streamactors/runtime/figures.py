"""How long one subtask took over one checkpoint, and what it stored: for people, nothing is decided by it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from streamactors.checkpoint.manifest import NodeState, SubtaskState
from streamactors.runtime.group_figures import GroupFigures


@dataclass(frozen=True, slots=True)
class SnapshotFigures:
    """In seconds. `alignment`: from the first barrier to the last one, while channels were held back or what the
    barrier overtook was captured. `synchronous`: nothing else of the subtask ran. `asynchronous`: until all was
    durable, beside the processing."""

    alignment: float = 0.0
    synchronous: float = 0.0
    asynchronous: float = 0.0


@dataclass(frozen=True, slots=True)
class SubtaskCheckpoint:
    """One subtask's part in a checkpoint. `seconds`: from the trigger to its acknowledgement; `state_bytes` by
    operator, of those that hold any; `groups`: how that of keys is spread over key groups,
    which only the last checkpoint of a job keeps."""

    subtask: str
    seconds: float
    figures: SnapshotFigures
    state_bytes: dict[str, int]
    inflight_bytes: int
    groups: tuple[GroupFigures, ...] = field(default=(), compare=False, repr=False)

    @classmethod
    def of(
        cls,
        subtask: str,
        seconds: float,
        figures: SnapshotFigures,
        state: SubtaskState,
        groups: tuple[GroupFigures, ...] = (),
    ) -> "SubtaskCheckpoint":
        stored = {node.uid: size for node in state.nodes if (size := _stored_bytes(node))}
        in_flight = () if state.in_flight is None else state.in_flight.frames
        return cls(subtask, seconds, figures, stored, sum(frame.length for frame in in_flight), groups)

    def without_groups(self) -> "SubtaskCheckpoint":
        return replace(self, groups=()) if self.groups else self


def _stored_bytes(node: NodeState) -> int:
    keyed = sum(block.length for handle in node.keyed for block in handle.blocks)
    lists = 0 if node.lists is None else sum(block.length for block in node.lists.blocks)
    return keyed + lists + sum(part.size for handle in node.native for part in handle.files)


class Stopwatch:
    """Of one checkpoint at one subtask, told as things happen."""

    __slots__ = ("_acknowledged", "_blocked", "_monotonic", "_overtook", "_snapshot", "_stored", "_synchronous")

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._blocked: float | None = None
        self._snapshot: float | None = None
        self._acknowledged: float | None = None
        self._stored: float | None = None
        self._synchronous = 0.0
        self._overtook = False

    def blocked(self) -> None:
        if self._blocked is None:
            self._blocked = self._monotonic()

    def snapshot_taken(self, seconds: float) -> None:
        self._snapshot, self._synchronous = self._monotonic(), seconds

    def overtook(self) -> None:
        self._overtook = True

    def acknowledged(self) -> None:
        self._acknowledged = self._monotonic()

    def stored(self) -> None:
        """A part of it; the last one ends the asynchronous part."""
        self._stored = self._monotonic()

    def read(self) -> SnapshotFigures:
        if self._snapshot is None:
            return SnapshotFigures()
        begun = self._snapshot - self._synchronous
        waited = 0.0 if self._blocked is None else begun - self._blocked
        if self._overtook and self._acknowledged is not None:
            waited += self._acknowledged - self._snapshot
        written = 0.0 if self._stored is None else self._stored - self._snapshot
        return SnapshotFigures(max(0.0, waited), self._synchronous, max(0.0, written))
