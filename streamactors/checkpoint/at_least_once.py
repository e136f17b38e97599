"""Counting barriers without blocking (Flink: CheckpointBarrierTracker).

Invariant: the snapshot of checkpoint n holds at least the effects of every element ahead of barrier n on every
channel, and possibly of later ones: after a recovery those are processed twice, never lost. Since nothing blocks,
barriers of several checkpoints may be counted at once; a snapshot gives up the counts of all earlier ones.
"""

from streamactors.checkpoint.protocol import (
    Aborted,
    Acknowledge,
    Action,
    BarrierAtHead,
    BarrierLeft,
    ChannelEnded,
    Discard,
    Event,
    Forward,
    Snapshot,
    Triggered,
)
from streamactors.elements import Barrier


class CountedBarriers:
    """The at-least-once protocol of a subtask with `channels` input channels (0: a source)."""

    def __init__(self, channels: int) -> None:
        self._channels = channels
        self._ended: set[int] = set()
        self._counts: dict[int, tuple[Barrier, set[int]]] = {}
        self._highest = 0
        self._aborted: set[int] = set()
        self._leaving: set[int] = set()

    def on(self, event: Event) -> list[Action]:
        match event:
            case BarrierAtHead(channel, barrier):
                if not self._stale(barrier.checkpoint):
                    self._counts.setdefault(barrier.checkpoint, (barrier, set()))[1].add(channel)
                return self._snapshot_if_counted()
            case Triggered(barrier):
                return [] if self._stale(barrier.checkpoint) else self._snapshot(barrier)
            case ChannelEnded(channel):
                self._ended.add(channel)
                return self._snapshot_if_counted()
            case BarrierLeft(checkpoint):
                if checkpoint not in self._leaving:
                    return []
                self._leaving.discard(checkpoint)
                return [Acknowledge(checkpoint)]
            case Aborted(checkpoint):
                return self._abort(checkpoint)

    def _stale(self, checkpoint: int) -> bool:
        return checkpoint <= self._highest or checkpoint in self._aborted

    def _snapshot_if_counted(self) -> list[Action]:
        """The end of a channel may complete several counts at once: each gets its snapshot, in order."""
        counted = [barrier for barrier, seen in self._counts.values() if len(seen | self._ended) >= self._channels]
        in_order = sorted(counted, key=lambda barrier: barrier.checkpoint)
        return [action for barrier in in_order for action in self._snapshot(barrier)]

    def _snapshot(self, barrier: Barrier) -> list[Action]:
        self._highest = barrier.checkpoint
        self._counts = {number: count for number, count in self._counts.items() if number > barrier.checkpoint}
        self._aborted = {checkpoint for checkpoint in self._aborted if checkpoint > barrier.checkpoint}
        self._leaving.add(barrier.checkpoint)
        return [Snapshot(barrier), Forward(barrier)]

    def _abort(self, checkpoint: int) -> list[Action]:
        self._counts.pop(checkpoint, None)
        if checkpoint <= self._highest:
            self._leaving.discard(checkpoint)
            return [Discard(checkpoint)]
        self._aborted.add(checkpoint)
        return []
