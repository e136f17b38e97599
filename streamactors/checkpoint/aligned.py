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
    AlignmentTimedOut,
    BarrierAhead,
    BarrierAnnounced,
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
from streamactors.checkpoint.settled import Settled
from streamactors.elements import Barrier


class AlignedBarriers:
    """The aligned protocol of a subtask with `channels` input channels (0: a source). `settled` is shared with the
    other protocols of the subtask, where there are any."""

    def __init__(self, channels: int, settled: Settled | None = None) -> None:
        self._ended: set[int] = set()
        self._channels = channels
        self._settled = Settled(channels) if settled is None else settled
        self._aligning: Barrier | None = None
        self._aligned: set[int] = set()
        self._leaving: dict[int, Barrier] = {}

    def on(self, event: Event) -> list[Action]:
        match event:
            case BarrierAtHead(channel, barrier):
                self._settled.taken(channel, barrier.checkpoint)
                return self._barrier(channel, barrier)
            case Triggered(barrier):
                self._settled.taken(0, barrier.checkpoint)
                return [] if barrier.checkpoint in self._settled else self._snapshot(barrier)
            case ChannelEnded(channel):
                self._ended.add(channel)
                return self._complete_if_aligned()
            case BarrierLeft(checkpoint):
                return [] if self._leaving.pop(checkpoint, None) is None else [Acknowledge(checkpoint)]
            case Aborted(checkpoint):
                return self._abort(checkpoint)
            case BarrierAnnounced() | BarrierAhead() | AlignmentTimedOut():
                return []

    # --------------------------------------------------------------------------- for the protocols that wrap this one
    @property
    def leaving(self) -> list[Barrier]:
        """Of checkpoints that are snapshot but not acknowledged, in their order."""
        return list(self._leaving.values())

    def hand_over(self, checkpoint: int) -> frozenset[int]:
        """Stop aligning it, if it is being aligned; the channels on which its barrier was taken: they are blocked."""
        if self._aligning is None or self._aligning.checkpoint != checkpoint:
            return frozenset()
        taken = frozenset(self._aligned)
        self._stop_aligning()
        return taken

    def overtaken_by(self, checkpoint: int) -> list[Action]:
        """Barrier `checkpoint` came on some channel: an earlier one that did not was given up upstream."""
        if self._aligning is None or self._aligning.checkpoint >= checkpoint:
            return []
        given_up = self._aligning.checkpoint
        self._settled.give_up(given_up)  # and not all before it: another protocol may be at work on those
        return [*self._stop_aligning(), Decline(given_up, "a later checkpoint's barrier came first")]

    # ------------------------------------------------------------------------------------------------------- aligning
    def _barrier(self, channel: int, barrier: Barrier) -> list[Action]:
        if barrier.checkpoint in self._settled:
            return []
        if self._aligning is not None and barrier.checkpoint < self._aligning.checkpoint:
            return []
        actions = self.overtaken_by(barrier.checkpoint)
        self._aligning = self._aligning or barrier
        self._aligned.add(channel)
        actions.append(Block(channel))
        return actions + self._complete_if_aligned()

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
        self._settled.up_to(barrier.checkpoint)
        self._leaving[barrier.checkpoint] = barrier
        return [Snapshot(barrier), Forward(barrier)]

    def _abort(self, checkpoint: int) -> list[Action]:
        if checkpoint <= self._settled.highest:
            self._leaving.pop(checkpoint, None)
            return [Discard(checkpoint)]
        self._settled.give_up(checkpoint)
        return [UnblockAll()] if self.hand_over(checkpoint) else []
