"""What an exactly-once job uses: each checkpoint is aligned, unaligned, or first the one and then the other.

A plain barrier (savepoints, the final checkpoint, `alignment="aligned"`) is aligned. One that `overtakes` is unaligned.
One with `overtakes_at` starts aligned, and goes on unaligned when that time has come, or when the same barrier comes
as an overtaking one from a subtask upstream whose time has come earlier.

Invariants, beside those of the two protocols:
1. Snapshots are taken in increasing order of n over all kinds (a sink's transactions are committed by checkpoint). So
   when n overtakes while an earlier m waits, m overtakes first; if m may not, it was given up, and is declined: nothing
   starts while a savepoint is in flight.
2. An alignment is handed over while it runs: a channel that has given the barrier is unblocked and not captured, any
   other is captured ahead of the barrier, wherever that is.
3. A barrier sent on as an overtaking one says so, and downstream follows. So does one that was aligned here, but waits
   in an output when its time comes.
"""

import msgspec

from streamactors.checkpoint.aligned import AlignedBarriers
from streamactors.checkpoint.protocol import (
    Action,
    AlignmentTimedOut,
    BarrierAhead,
    BarrierAnnounced,
    BarrierAtHead,
    Decline,
    Event,
    Overtake,
    StartTimer,
    Triggered,
    UnblockAll,
)
from streamactors.checkpoint.settled import Settled
from streamactors.checkpoint.unaligned import UnalignedBarriers
from streamactors.elements import Barrier


class ExactlyOnceBarriers:
    """The protocol of a subtask with `channels` input channels (0: a source)."""

    def __init__(self, channels: int) -> None:
        self._settled = Settled(channels)
        self._aligned = AlignedBarriers(channels, self._settled)
        self._unaligned = UnalignedBarriers(channels, self._settled)
        self._waiting: dict[int, Barrier] = {}
        """Announced, but neither snapshot nor given up."""

    def on(self, event: Event) -> list[Action]:
        match event:
            case BarrierAnnounced(channel, barrier):
                return self._announced(channel, barrier)
            case BarrierAhead(_, barrier):
                return self._told(barrier, self._unaligned.expect(barrier.checkpoint))
            case AlignmentTimedOut(checkpoint):
                return self._timed_out(checkpoint)
            case BarrierAtHead() | Triggered():
                return self._aligned.on(event)
            case _:
                actions = self._unaligned.on(event)
                return actions + [action for action in self._aligned.on(event) if action not in actions]

    def _announced(self, channel: int, barrier: Barrier) -> list[Action]:
        return self._told(barrier, self._unaligned.note(channel, barrier.checkpoint))

    def _told(self, barrier: Barrier, noted: list[Action]) -> list[Action]:
        checkpoint = barrier.checkpoint
        actions = noted + self._forget_settled()
        if checkpoint in self._settled:
            return actions
        first = checkpoint not in self._waiting
        self._waiting.setdefault(checkpoint, barrier)
        if barrier.overtakes:
            return actions + self._overtake(checkpoint)
        if first and barrier.overtakes_at is not None:
            actions.append(StartTimer(barrier))
        return actions

    def _forget_settled(self) -> list[Action]:
        settled = [checkpoint for checkpoint in self._waiting if checkpoint in self._settled]
        blocked = [channel for checkpoint in settled for channel in self._aligned.hand_over(checkpoint)]
        for checkpoint in settled:
            del self._waiting[checkpoint]
        return [UnblockAll()] if blocked else []

    # ----------------------------------------------------------------------------------------------------- overtaking
    def _timed_out(self, checkpoint: int) -> list[Action]:
        actions = self._forget_settled()
        under_way = [*self._waiting.values(), *self._aligned.leaving]
        if any(barrier.checkpoint == checkpoint and _may_overtake(barrier) for barrier in under_way):
            actions += self._overtake(checkpoint)
        return actions

    def _overtake(self, checkpoint: int) -> list[Action]:
        """This one, behind all earlier ones that are still under way."""
        leaving = [barrier for barrier in self._aligned.leaving if barrier.checkpoint <= checkpoint]
        actions: list[Action] = [Overtake(_overtaking(barrier)) for barrier in leaving if _may_overtake(barrier)]
        for number in sorted(number for number in self._waiting if number <= checkpoint):
            actions += self._hand_over(self._waiting.pop(number))
        return actions

    def _hand_over(self, barrier: Barrier) -> list[Action]:
        checkpoint = barrier.checkpoint
        taken = self._aligned.hand_over(checkpoint)
        actions: list[Action] = [UnblockAll()] if taken else []
        if _may_overtake(barrier):
            return self._unaligned.overtake(_overtaking(barrier), taken) + actions
        self._settled.give_up(checkpoint)
        return [Decline(checkpoint, "a later checkpoint has overtaken it"), *actions]


def _may_overtake(barrier: Barrier) -> bool:
    return barrier.overtakes or barrier.overtakes_at is not None


def _overtaking(barrier: Barrier) -> Barrier:
    return msgspec.structs.replace(barrier, overtakes=True)
