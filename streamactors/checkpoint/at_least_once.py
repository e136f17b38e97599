"""Counting barriers without blocking (Flink: CheckpointBarrierTracker), and what a whole at-least-once job uses.

Invariant: the snapshot of checkpoint n holds at least the effects of every element ahead of barrier n on every
channel, and possibly of later ones: after a recovery those are processed twice, never lost. Since nothing blocks,
barriers of several checkpoints may be counted at once; a snapshot gives up the counts of all earlier ones.
"""

from streamactors.checkpoint.aligned import AlignedBarriers
from streamactors.checkpoint.protocol import (
    Aborted,
    Acknowledge,
    Action,
    AlignmentTimedOut,
    BarrierAhead,
    BarrierAnnounced,
    BarrierAtHead,
    BarrierLeft,
    ChannelEnded,
    Decline,
    Discard,
    Event,
    Forward,
    Snapshot,
    Triggered,
)
from streamactors.checkpoint.settled import Settled
from streamactors.elements import Barrier


class CountedBarriers:
    """The at-least-once protocol of a subtask with `channels` input channels (0: a source). `settled` is shared with
    the other protocols of the subtask, where there are any."""

    def __init__(self, channels: int, settled: Settled | None = None) -> None:
        self._channels = channels
        self._settled = Settled(channels) if settled is None else settled
        self._ended: set[int] = set()
        self._counts: dict[int, tuple[Barrier, set[int]]] = {}
        self._leaving: set[int] = set()

    def on(self, event: Event) -> list[Action]:
        match event:
            case BarrierAtHead(channel, barrier):
                self._settled.taken(channel, barrier.checkpoint)
                if barrier.checkpoint not in self._settled:
                    self._counts.setdefault(barrier.checkpoint, (barrier, set()))[1].add(channel)
                return self._snapshot_if_counted()
            case Triggered(barrier):
                self._settled.taken(0, barrier.checkpoint)
                return [] if barrier.checkpoint in self._settled else self._snapshot(barrier)
            case ChannelEnded(channel):
                self._ended.add(channel)
                return self._snapshot_if_counted()
            case BarrierLeft(checkpoint):
                return self._left(checkpoint)
            case Aborted(checkpoint):
                return self._abort(checkpoint)
            case BarrierAnnounced() | BarrierAhead() | AlignmentTimedOut():
                return []

    def _snapshot_if_counted(self) -> list[Action]:
        """The end of a channel may complete several counts at once: each gets its snapshot, in order."""
        self._counts = {number: count for number, count in self._counts.items() if number not in self._settled}
        counted = [barrier for barrier, seen in self._counts.values() if len(seen | self._ended) >= self._channels]
        in_order = sorted(counted, key=lambda barrier: barrier.checkpoint)
        return [action for barrier in in_order for action in self._snapshot(barrier)]

    def _snapshot(self, barrier: Barrier) -> list[Action]:
        self._settled.up_to(barrier.checkpoint)
        self._leaving.add(barrier.checkpoint)
        return [Snapshot(barrier), Forward(barrier)]

    def _left(self, checkpoint: int) -> list[Action]:
        if checkpoint not in self._leaving:
            return []
        self._leaving.discard(checkpoint)
        return [Acknowledge(checkpoint)]

    def _abort(self, checkpoint: int) -> list[Action]:
        self._counts.pop(checkpoint, None)
        if checkpoint <= self._settled.highest:
            self._leaving.discard(checkpoint)
            return [Discard(checkpoint)]
        self._settled.give_up(checkpoint)
        return []


class AtLeastOnceBarriers:
    """Checkpoints are counted; savepoints are aligned, since what they hold is exactly-once whatever the mode.

    Invariant: snapshots are taken in increasing order over both kinds. Nothing starts while a savepoint is in flight:
    so one that is older than a checkpoint whose barrier has come on any channel was given up, and must block nothing.
    """

    def __init__(self, channels: int) -> None:
        settled = Settled(channels)
        self._settled = settled
        self._latest = 0
        """The latest checkpoint, savepoints aside, whose barrier has come."""
        self._counted = CountedBarriers(channels, settled)
        self._aligned = AlignedBarriers(channels, settled)

    def on(self, event: Event) -> list[Action]:
        match event:
            case BarrierAtHead(_, barrier) | Triggered(barrier):
                if barrier.savepoint:
                    return self._decline_if_late(barrier.checkpoint) + self._aligned.on(event)
                self._latest = max(self._latest, barrier.checkpoint)
                return [*self._aligned.overtaken_by(barrier.checkpoint), *self._counted.on(event)]
            case _:
                # Counts first: a checkpoint that is still counted beside a savepoint is the earlier one.
                actions = self._counted.on(event)
                return actions + [action for action in self._aligned.on(event) if action not in actions]

    def _decline_if_late(self, savepoint: int) -> list[Action]:
        if savepoint > self._latest or savepoint in self._settled:
            return []
        self._settled.give_up(savepoint)
        return [Decline(savepoint, "a later checkpoint's barrier came first")]
