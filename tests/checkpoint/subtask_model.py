"""A subtask reduced to what a barrier protocol sees, and the checks that hold after every step.

Channels are lists of records, barriers and the end of data. The model takes elements in any order that the protocol's
blocking allows, executes the actions as `runtime/subtask.py` does, and knows by itself, from the script of the channels
alone, which records each snapshot must hold.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from streamactors.checkpoint import protocol as p
from streamactors.elements import Barrier

Record = tuple[int, int]
"""Channel and place in it."""
END = "end"
Script = Sequence[int | str]
"""Of one channel: 0 is a record, n a barrier of checkpoint n, "end" the end of data."""


@dataclass
class Model:
    protocol: p.BarrierProtocol
    scripts: Sequence[Script]
    exact: bool = True
    taken: list[int] = field(default_factory=list)
    blocked: set[int] = field(default_factory=set)
    processed: set[Record] = field(default_factory=set)
    snapshots: dict[int, set[Record]] = field(default_factory=dict)
    output: list[Record | int] = field(default_factory=list)
    leaving: list[int] = field(default_factory=list)
    acknowledged: list[int] = field(default_factory=list)
    declined: list[int] = field(default_factory=list)
    discarded: list[int] = field(default_factory=list)
    aborted: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.taken = [0] * len(self.scripts)

    # -------------------------------------------------------------------------------------------------------- stepping
    def choices(self) -> list[int]:
        """Channels from which something may be taken now."""
        return [
            channel
            for channel, script in enumerate(self.scripts)
            if channel not in self.blocked and self.taken[channel] < len(script)
        ]

    def take(self, channel: int) -> None:
        place = self.taken[channel]
        element = self.scripts[channel][place]
        self.taken[channel] += 1
        assert channel not in self.blocked
        if element == 0:
            self.processed.add((channel, place))
            self.output.append((channel, place))
        elif element == END:
            self.feed(p.ChannelEnded(channel))
        else:
            assert isinstance(element, int)
            self.feed(p.BarrierAtHead(channel, Barrier(element)))

    def abort(self, checkpoint: int) -> None:
        self.aborted.add(checkpoint)
        self.feed(p.Aborted(checkpoint))
        assert checkpoint not in self.snapshots or checkpoint in self.discarded

    def leave(self) -> None:
        """The oldest forwarded barrier leaves the outputs."""
        if self.leaving:
            self.feed(p.BarrierLeft(self.leaving.pop(0)))

    def feed(self, event: p.Event) -> None:
        for action in self.protocol.on(event):
            self.execute(action)

    def execute(self, action: p.Action) -> None:
        match action:
            case p.Block(channel):
                assert self.exact, "an at-least-once protocol never blocks"
                self.blocked.add(channel)
            case p.UnblockAll():
                self.blocked.clear()
            case p.Snapshot(barrier):
                self.snapshot(barrier.checkpoint)
            case p.Forward(barrier):
                assert self.snapshots and barrier.checkpoint == max(self.snapshots), "forwarded without a snapshot"
                self.output.append(barrier.checkpoint)
                self.leaving.append(barrier.checkpoint)
            case p.Acknowledge(checkpoint):
                assert checkpoint in self.snapshots, "acknowledged without a snapshot"
                assert checkpoint not in self.leaving, "acknowledged before the barrier left"
                assert checkpoint not in self.aborted, "acknowledged although aborted"
                assert checkpoint not in self.acknowledged, "acknowledged twice"
                self.acknowledged.append(checkpoint)
            case p.Discard(checkpoint):
                self.discarded.append(checkpoint)
            case p.Decline(checkpoint, _):
                assert checkpoint not in self.snapshots and checkpoint not in self.declined
                self.declined.append(checkpoint)

    def snapshot(self, checkpoint: int) -> None:
        assert checkpoint not in self.snapshots, "snapshot twice"
        assert checkpoint > max(self.snapshots, default=0), "snapshots out of order"
        assert checkpoint not in self.aborted, "an aborted checkpoint was snapshot"
        assert checkpoint not in self.declined
        self.snapshots[checkpoint] = set(self.processed)
        wanted = self.ahead_of(checkpoint)
        if self.exact:
            assert self.processed == wanted, f"snapshot {checkpoint}: {self.processed} instead of {wanted}"
        else:
            assert self.processed >= wanted, f"snapshot {checkpoint} lost {wanted - self.processed}"

    # ------------------------------------------------------------------------------------------- what the scripts say
    def ahead_of(self, checkpoint: int) -> set[Record]:
        """All records ahead of the checkpoint's barrier; of a channel without it, or whose end comes first, all."""
        records = set()
        for channel, script in enumerate(self.scripts):
            for place, element in enumerate(script):
                if element == checkpoint:
                    break
                if element == 0:
                    records.add((channel, place))
        return records

    def check_end(self) -> None:
        """Everything has been taken: nothing is stuck, nothing was lost, and nothing is missing."""
        while self.leaving:
            self.leave()
        assert not self.choices()
        assert all(taken == len(script) for taken, script in zip(self.taken, self.scripts, strict=True)), "deadlock"
        records = {(c, i) for c, script in enumerate(self.scripts) for i, element in enumerate(script) if element == 0}
        assert self.processed == records
        whole = {n for n in self.everywhere() if n not in self.aborted}
        assert whole <= set(self.snapshots), f"never snapshot: {whole - set(self.snapshots)}"
        assert set(self.snapshots) - self.aborted <= set(self.acknowledged) <= set(self.snapshots)
        assert set(self.declined) <= set(range(1, 99)) - whole
        if self.exact:
            self.check_output()

    def everywhere(self) -> set[int]:
        """Checkpoints whose barrier is on every channel that does not end without it."""
        numbers = {element for script in self.scripts for element in script if isinstance(element, int) and element}
        return {n for n in numbers if all(n in script or _ends_before(n, script) for script in self.scripts)}

    def check_output(self) -> None:
        """Each barrier stands in the output behind exactly what its snapshot holds."""
        ahead: set[Record] = set()
        for element in self.output:
            if isinstance(element, int):
                assert ahead == self.snapshots[element], f"barrier {element} left in the wrong place"
            else:
                ahead.add(element)


def _ends_before(checkpoint: int, script: Script) -> bool:
    return END in script and not any(isinstance(element, int) and element > checkpoint for element in script)
