"""Aligned barriers (Carbone et al., "Lightweight Asynchronous Snapshots for Distributed Dataflows", 2015).

Invariants, for every checkpoint n that a subtask acknowledges:
1. Its snapshot holds the effects of exactly the elements ahead of barrier n on every input channel: a channel whose
   barrier has been taken is blocked until the snapshot is done, and a channel that has not given it yet goes on.
2. Barrier n leaves every output after everything emitted for those elements, and before anything else.
3. One snapshot and one forward per checkpoint, in increasing order of n.
4. A channel that has ended counts as aligned: nothing comes on it any more. A barrier that follows the end of data on
   such a channel is taken like any other, and is the only way to align a subtask whose inputs have all ended.
5. A checkpoint that was aborted, or overtaken by a later one on any channel, is never snapshot: its barriers are
   taken and dropped, whenever they come.
"""

from streamactors.checkpoint.protocol import (
    Aborted,
    Acknowledge,
    Action,
    BarrierAtHead,
    BarrierLeft,
    Block,
    ChannelEnded,
    Decline,
    Discard,
    Event,
    Forward,
    Snapshot,
    Triggered,
    UnblockAll,
)
from streamactors.elements import Barrier


class AlignedBarriers:
    """The aligned protocol of a subtask with `channels` input channels (0: a source)."""

    def __init__(self, channels: int) -> None:
        self._ended: set[int] = set()
        self._channels = channels
        self._aligning: Barrier | None = None
        self._aligned: set[int] = set()
        self._highest = 0
        """The highest checkpoint snapshot or given up here: barriers at or below it are dropped."""
        self._aborted: set[int] = set()
        self._leaving: set[int] = set()

    def on(self, event: Event) -> list[Action]:
        match event:
            case BarrierAtHead(channel, barrier):
                return self._barrier(channel, barrier)
            case Triggered(barrier):
                return self._triggered(barrier)
            case ChannelEnded(channel):
                self._ended.add(channel)
                return self._complete_if_aligned()
            case BarrierLeft(checkpoint):
                return self._left(checkpoint)
            case Aborted(checkpoint):
                return self._abort(checkpoint)

    def _stale(self, checkpoint: int) -> bool:
        return checkpoint <= self._highest or checkpoint in self._aborted

    def _triggered(self, barrier: Barrier) -> list[Action]:
        if self._stale(barrier.checkpoint):
            return []
        return self._snapshot(barrier)

    def _barrier(self, channel: int, barrier: Barrier) -> list[Action]:
        if self._stale(barrier.checkpoint):
            return []
        actions: list[Action] = []
        if self._aligning is not None and barrier.checkpoint < self._aligning.checkpoint:
            return []
        if self._aligning is None or barrier.checkpoint > self._aligning.checkpoint:
            actions += self._overtaken()
            self._aligning = barrier
        self._aligned.add(channel)
        actions.append(Block(channel))
        return actions + self._complete_if_aligned()

    def _overtaken(self) -> list[Action]:
        """A later barrier came first on some channel: the earlier checkpoint was given up upstream."""
        if self._aligning is None:
            return []
        checkpoint = self._aligning.checkpoint
        self._highest = checkpoint
        return [*self._stop_aligning(), Decline(checkpoint, "a later checkpoint's barrier came first")]

    def _stop_aligning(self) -> list[Action]:
        self._aligning = None
        self._aligned.clear()
        return [UnblockAll()]

    def _complete_if_aligned(self) -> list[Action]:
        if self._aligning is None or len(self._aligned | self._ended) < self._channels:
            return []
        barrier = self._aligning
        return [*self._snapshot(barrier), *self._stop_aligning()]

    def _snapshot(self, barrier: Barrier) -> list[Action]:
        self._highest = barrier.checkpoint
        self._aborted = {checkpoint for checkpoint in self._aborted if checkpoint > barrier.checkpoint}
        self._leaving.add(barrier.checkpoint)
        return [Snapshot(barrier), Forward(barrier)]

    def _left(self, checkpoint: int) -> list[Action]:
        if checkpoint not in self._leaving:
            return []
        self._leaving.discard(checkpoint)
        return [Acknowledge(checkpoint)]

    def _abort(self, checkpoint: int) -> list[Action]:
        if checkpoint <= self._highest:
            self._leaving.discard(checkpoint)
            return [Discard(checkpoint)]
        self._aborted.add(checkpoint)
        if self._aligning is not None and self._aligning.checkpoint == checkpoint:
            return self._stop_aligning()
        return []
