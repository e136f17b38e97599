"""Unaligned barriers (Flink: FLIP-76; Chandy and Lamport, "Distributed Snapshots", 1985, with barriers that overtake).

Invariants, for every checkpoint n that a subtask acknowledges:
1. Its snapshot was taken when barrier n was first told of on any channel, and holds the effects of what had been
   processed by then. What was in hand, and on every channel what had been queued or still came ahead of barrier n, is
   captured. So effects and captures together are exactly the elements ahead of barrier n, each once, in order.
2. Barrier n leaves every output ahead of all that the snapshot found unsent there, which is captured, and behind every
   earlier barrier.
3. One snapshot and one overtaking per checkpoint, in increasing order of n. Several checkpoints may capture at once,
   each for itself. Nothing is ever blocked: barriers at the head have no more to say, and are dropped.
4. It is acknowledged when barrier n has left every output, and has been announced on every channel that has not ended:
   only then can nothing more be captured. On a channel that has ended, no record comes any more.
5. A checkpoint that was aborted is neither snapshot nor acknowledged, whenever its barriers come. Nor is one that a
   later barrier shows to have been given up upstream, by being announced on a channel that has not given the earlier
   one: what it would have to capture there has no end.
"""

from collections.abc import Set

from streamactors.checkpoint.protocol import (
    Aborted,
    Acknowledge,
    Action,
    AlignmentTimedOut,
    BarrierAhead,
    BarrierAnnounced,
    BarrierAtHead,
    BarrierLeft,
    Capture,
    CaptureInHand,
    ChannelEnded,
    Decline,
    Discard,
    Event,
    Overtake,
    Snapshot,
    Triggered,
)
from streamactors.checkpoint.settled import Settled
from streamactors.elements import Barrier


class UnalignedBarriers:
    """The unaligned protocol of a subtask with `channels` input channels (0: a source). `settled` is shared with the
    other protocols of the subtask, where there are any."""

    def __init__(self, channels: int, settled: Settled | None = None) -> None:
        self._channels = range(channels)
        self._settled = Settled(channels) if settled is None else settled
        self._ended: set[int] = set()
        self._latest = [0] * max(1, channels)
        """The last checkpoint announced on each channel."""
        self._announced: dict[int, set[int]] = {}
        """Channels, of each checkpoint that is captured or may still be."""
        self._capturing: set[int] = set()
        self._left: set[int] = set()

    def on(self, event: Event) -> list[Action]:
        match event:
            case BarrierAnnounced(channel, barrier):
                actions = self.note(channel, barrier.checkpoint)
                return actions if barrier.checkpoint in self._settled else actions + self.overtake(barrier)
            case BarrierAhead(_, barrier):
                actions = self.expect(barrier.checkpoint)
                return actions if barrier.checkpoint in self._settled else actions + self.overtake(barrier)
            case BarrierAtHead(channel, barrier):
                self._settled.taken(channel, barrier.checkpoint)
                return []
            case Triggered(barrier):
                self._settled.taken(0, barrier.checkpoint)
                return []
            case ChannelEnded(channel):
                self._ended.add(channel)
                return self._acknowledge_whole()
            case BarrierLeft(checkpoint):
                self._left.update({checkpoint} & self._capturing)
                return self._acknowledge_whole()
            case Aborted(checkpoint):
                return self._abort(checkpoint)
            case AlignmentTimedOut():
                return []

    # --------------------------------------------------------------------------- for the protocols that wrap this one
    def note(self, channel: int, checkpoint: int) -> list[Action]:
        """Barrier `checkpoint` was announced, whether it is to overtake or not."""
        self._forget_settled()
        skipped = [n for n, announced in self._announced.items() if n < checkpoint and channel not in announced]
        actions = [action for n in sorted(skipped) for action in self._given_up_upstream(n)]
        actions += self._begin(checkpoint)
        self._latest[channel] = checkpoint
        if checkpoint in self._announced:
            self._announced[checkpoint].add(channel)
        return actions + self._acknowledge_whole()

    def expect(self, checkpoint: int) -> list[Action]:
        """Barrier `checkpoint` is to overtake, and known to come on some channel, on which it will be noted then."""
        self._forget_settled()
        return self._begin(checkpoint)

    def _begin(self, checkpoint: int) -> list[Action]:
        if checkpoint in self._announced or checkpoint in self._settled:
            return []
        self._announced[checkpoint] = set()
        # On the channel of a later one it will not come any more.
        return self._given_up_upstream(checkpoint) if max(self._latest) > checkpoint else []

    def overtake(self, barrier: Barrier, taken: Set[int] = frozenset()) -> list[Action]:
        """Begin, with a barrier that was noted; `taken`: the channels that have given it at their head already."""
        checkpoint = barrier.checkpoint
        self._settled.up_to(checkpoint)
        self._capturing.add(checkpoint)
        to_capture = [channel for channel in self._channels if channel not in taken and channel not in self._ended]
        captures = [Capture(checkpoint, channel) for channel in to_capture]
        return [Snapshot(barrier), CaptureInHand(checkpoint), *captures, Overtake(barrier)]

    # ------------------------------------------------------------------------------------------------------ capturing
    def _acknowledge_whole(self) -> list[Action]:
        whole = [checkpoint for checkpoint in sorted(self._left) if self._everywhere(checkpoint)]
        for checkpoint in whole:
            self._forget(checkpoint)
        return [Acknowledge(checkpoint) for checkpoint in whole]

    def _everywhere(self, checkpoint: int) -> bool:
        return self._announced[checkpoint].union(self._ended).issuperset(self._channels)

    def _given_up_upstream(self, checkpoint: int) -> list[Action]:
        self._settled.give_up(checkpoint)
        decline = Decline(checkpoint, "a later checkpoint's barrier came first")
        return [Discard(checkpoint), decline] if self._forget(checkpoint) else [decline]

    def _abort(self, checkpoint: int) -> list[Action]:
        self._forget(checkpoint)
        self._settled.give_up(checkpoint)
        return [Discard(checkpoint)] if checkpoint <= self._settled.highest else []

    def _forget(self, checkpoint: int) -> bool:
        """Whether it was being captured."""
        capturing = checkpoint in self._capturing
        self._announced.pop(checkpoint, None)
        self._capturing.discard(checkpoint)
        self._left.discard(checkpoint)
        return capturing

    def _forget_settled(self) -> None:
        """Those that were aligned in the end, or aborted before."""
        for checkpoint in [n for n in self._announced if n in self._settled and n not in self._capturing]:
            del self._announced[checkpoint]
