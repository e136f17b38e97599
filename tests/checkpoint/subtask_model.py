"""A subtask reduced to what a barrier protocol sees, and the checks that hold after every step.

Elements arrive on channels, are taken into the hand, are processed, and what they emit waits in outputs until it is
sent: each is a step of its own, and the tests take them in every order that blocking allows. The model executes the
actions as `runtime/subtask.py` does. From the script of the channels alone it knows what every acknowledged checkpoint
must hold:

- effects in the snapshot + captured in hand + captured from the channel = every record ahead of the barrier, per
  channel, in order;
- sent ahead of the barrier + captured unsent = all that was emitted before the snapshot, per output, in order.
"""

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from streamactors.checkpoint import protocol as p
from streamactors.elements import Barrier

Record = tuple[int, int]
"""Channel and place in its script; of a source 0 and the number of the read."""
END: Final = "end"
Element = int | str | Barrier
Script = Sequence[Element]
"""Of one channel: 0 is a record, n (or a `Barrier`) a barrier of checkpoint n, "end" the end of data."""
Step = tuple[str, int]
"""What is done, and with which channel, output or checkpoint."""


def plain(checkpoint: int) -> Barrier:
    return Barrier(checkpoint)


def savepoint(checkpoint: int) -> Barrier:
    return Barrier(checkpoint, "file:///savepoint")


def overtaking(checkpoint: int) -> Barrier:
    return Barrier(checkpoint, overtakes=True)


def timed(checkpoint: int) -> Barrier:
    """Overtakes when its time comes."""
    return Barrier(checkpoint, overtakes_at=1000)


def timed_out(checkpoint: int) -> Barrier:
    """Its time has come upstream."""
    return Barrier(checkpoint, overtakes=True, overtakes_at=1000)


def head(channel: int, barrier: int | Barrier) -> p.BarrierAtHead:
    return p.BarrierAtHead(channel, _barrier(barrier))


def tail(channel: int, barrier: int | Barrier) -> p.BarrierAnnounced:
    return p.BarrierAnnounced(channel, _barrier(barrier))


def coming(channel: int, barrier: int | Barrier) -> p.BarrierAhead:
    return p.BarrierAhead(channel, _barrier(barrier))


def _barrier(barrier: int | Barrier) -> Barrier:
    return Barrier(barrier) if isinstance(barrier, int) else barrier


@dataclass
class Stored:
    """What is persisted of one checkpoint."""

    effects: list[list[int]]
    emitted: int
    read: int
    in_hand: list[Record] = field(default_factory=list)
    captured: dict[int, list[int]] = field(default_factory=dict)
    unsent: dict[int, list[int]] = field(default_factory=dict)
    sent: dict[int, int] = field(default_factory=dict)
    """How much had been sent ahead of the barrier, by output."""


NOTHING = Stored([], 0, 0)
"""Of a checkpoint that is done with: what was stored makes no difference any more."""


@dataclass
class Subtask:
    """What is common to all: the hand, the outputs, the snapshots. `exact`: nothing but what is ahead of the barrier
    may be in a snapshot. `prompt`: announcements and departures are told at once, not some steps later."""

    protocol: p.BarrierProtocol
    exact: bool = True
    prompt: bool = True
    outputs: int = 1
    hand_room: int = 1
    unsent_room: int = 2
    hand: list[Record] = field(default_factory=list)
    blocked: set[int] = field(default_factory=set)
    processed: list[list[int]] = field(default_factory=list)
    emitted: int = 0
    unsent: list[list[int | Barrier]] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    last_sent: list[int] = field(default_factory=list)
    """The checkpoint of the last barrier, by output."""
    leaving: dict[int, int] = field(default_factory=dict)
    to_tell: list[p.Event] = field(default_factory=list)
    stored: dict[int, Stored] = field(default_factory=dict)
    capturing: set[tuple[int, int]] = field(default_factory=set)
    """Checkpoint and channel whose barrier has yet to arrive."""
    barriers: dict[int, Barrier] = field(default_factory=dict)
    timers: set[int] = field(default_factory=set)
    fired: set[int] = field(default_factory=set)
    acknowledged: set[int] = field(default_factory=set)
    declined: set[int] = field(default_factory=set)
    discarded: set[int] = field(default_factory=set)
    aborted: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.unsent = [[] for _ in range(self.outputs)]
        self.sent = [0] * self.outputs
        self.last_sent = [0] * self.outputs

    # -------------------------------------------------------------------------------------------------------- stepping
    def steps(self) -> Iterator[Step]:
        """What may be done now, without aborts and timers."""
        if self.to_tell:
            yield "tell", 0
        for output, unsent in enumerate(self.unsent):
            if unsent:
                yield "send", output
        if self.hand and not self.to_tell and self._room():
            yield "process", 0

    def _room(self) -> bool:
        return all(sum(isinstance(e, int) for e in unsent) < self.unsent_room for unsent in self.unsent)

    def interruptions(self) -> list[Step]:
        """Timers that may fire now."""
        return [("time out", checkpoint) for checkpoint in sorted(self.timers - self.fired)]

    def do(self, step: Step) -> None:
        what, which = step
        getattr(self, what.replace(" ", "_"))(which)

    def process(self, _: int) -> None:
        channel, place = self.hand.pop(0)
        self.processed[channel].append(place)
        for unsent in self.unsent:
            unsent.append(self.emitted)
        self.emitted += 1

    def send(self, output: int) -> None:
        element = self.unsent[output].pop(0)
        if isinstance(element, int):
            assert element == self.sent[output]
            self.sent[output] += 1
            return
        assert element.checkpoint > self.last_sent[output], "a barrier has overtaken another"
        self.last_sent[output] = element.checkpoint
        self.stored[element.checkpoint].sent[output] = self.sent[output]
        self.leaving[element.checkpoint] -= 1
        self._tell_if_left(element.checkpoint)

    def _tell_if_left(self, checkpoint: int) -> None:
        if self.leaving[checkpoint] == 0:
            del self.leaving[checkpoint]
            self.tell_soon(p.BarrierLeft(checkpoint))

    def tell_soon(self, event: p.Event) -> None:
        self.to_tell.append(event)
        if self.prompt:
            self.tell(0)

    def tell(self, _: int) -> None:
        self.feed(self.to_tell.pop(0))

    def abort(self, checkpoint: int) -> None:
        self.aborted.add(checkpoint)
        self.feed(p.Aborted(checkpoint))
        assert checkpoint not in self.stored or checkpoint in self.discarded

    def time_out(self, checkpoint: int) -> None:
        self.fired.add(checkpoint)
        self.feed(p.AlignmentTimedOut(checkpoint))

    # ------------------------------------------------------------------------------------------------------- executing
    def feed(self, event: p.Event) -> None:
        for action in self.protocol.on(event):
            self.execute(action)

    def execute(self, action: p.Action) -> None:
        match action:
            case p.Block(channel):
                assert self.may_block(), "this protocol never blocks"
                self.blocked.add(channel)
            case p.UnblockAll():
                self.blocked.clear()
            case p.Snapshot(barrier):
                self.snapshot(barrier)
            case p.CaptureInHand(checkpoint):
                assert checkpoint == max(self.stored)
                self.stored[checkpoint].in_hand = list(self.hand)
            case p.Capture(checkpoint, channel):
                assert channel not in self.stored[checkpoint].captured, "captured twice"
                self.capture(checkpoint, channel)
            case p.Forward(barrier):
                self.forward(barrier)
            case p.Overtake(barrier):
                self.overtake(barrier)
            case p.StartTimer(barrier):
                assert barrier.overtakes_at is not None and not barrier.overtakes
                assert barrier.checkpoint not in self.timers, "two timers for one checkpoint"
                self.timers.add(barrier.checkpoint)
            case p.Acknowledge(checkpoint):
                self.acknowledge(checkpoint)
            case p.Discard(checkpoint):
                self.discard(checkpoint)
            case p.Decline(checkpoint, _):
                assert checkpoint not in self.declined | self.acknowledged
                assert checkpoint not in self.stored or checkpoint in self.discarded, "declined, but still captured"
                self.declined.add(checkpoint)

    def may_block(self) -> bool:
        return self.exact or any(barrier.savepoint for barrier in self.barriers.values())

    def snapshot(self, barrier: Barrier) -> None:
        checkpoint = barrier.checkpoint
        assert checkpoint not in self.stored, "snapshot twice"
        assert checkpoint > max(self.stored, default=0), "snapshots out of order"
        assert checkpoint not in self.aborted, "an aborted checkpoint was snapshot"
        assert checkpoint not in self.declined, "a declined checkpoint was snapshot"
        assert barrier.savepoint == self.barriers[checkpoint].savepoint
        effects = [list(places) for places in self.processed]
        self.stored[checkpoint] = Stored(effects, self.emitted, self.read_so_far())

    def forward(self, barrier: Barrier) -> None:
        assert barrier.checkpoint == max(self.stored, default=0), "forwarded without a snapshot"
        assert not barrier.overtakes
        self._start_leaving(barrier.checkpoint)
        for unsent in self.unsent:
            unsent.append(barrier)
        self._tell_if_left(barrier.checkpoint)

    def _start_leaving(self, checkpoint: int) -> None:
        assert checkpoint not in self.leaving
        self.leaving[checkpoint] = self.outputs

    def overtake(self, barrier: Barrier) -> None:
        checkpoint = barrier.checkpoint
        assert checkpoint in self.stored and checkpoint not in self.acknowledged | self.discarded
        assert barrier.overtakes, "downstream is not told that the barrier overtakes"
        if not self._known_to_outputs(checkpoint):
            self._start_leaving(checkpoint)
        for output, unsent in enumerate(self.unsent):
            if output not in self.stored[checkpoint].sent:
                overtaken = _move_ahead(unsent, barrier)
                self.stored[checkpoint].unsent[output] = overtaken + self.stored[checkpoint].unsent.get(output, [])
        if checkpoint in self.leaving:
            self._tell_if_left(checkpoint)

    def _known_to_outputs(self, checkpoint: int) -> bool:
        return checkpoint in self.leaving or p.BarrierLeft(checkpoint) in self.to_tell

    def discard(self, checkpoint: int) -> None:
        self.discarded.add(checkpoint)
        if checkpoint in self.stored:
            self.stored[checkpoint] = NOTHING
        self.leaving.pop(checkpoint, None)
        self.capturing = {(number, channel) for number, channel in self.capturing if number != checkpoint}
        for unsent in self.unsent:
            unsent[:] = [e for e in unsent if not isinstance(e, Barrier) or e.checkpoint != checkpoint]

    # --------------------------------------------------------------------------------------------------------- checking
    def acknowledge(self, checkpoint: int) -> None:
        assert checkpoint in self.stored, "acknowledged without a snapshot"
        assert checkpoint not in self.aborted | self.discarded, "acknowledged although aborted"
        assert checkpoint not in self.acknowledged, "acknowledged twice"
        self.acknowledged.add(checkpoint)
        stored = self.stored[checkpoint]
        for output in range(self.outputs):
            assert output in stored.sent, "acknowledged before the barrier left"
            kept = [*range(stored.sent[output]), *stored.unsent.get(output, [])]
            assert kept == list(range(stored.emitted)), f"output {output} of {checkpoint}: {kept} of {stored.emitted}"
        for channel, effects in enumerate(stored.effects):
            in_hand = [place for number, place in stored.in_hand if number == channel]
            kept = effects + in_hand + stored.captured.get(channel, [])
            wanted = self.ahead_of(checkpoint, channel)
            if self.exact or self.barriers[checkpoint].savepoint:
                assert kept == wanted, f"channel {channel} of {checkpoint}: {kept} instead of {wanted}"
            else:
                assert kept[: len(wanted)] == wanted, f"channel {channel} of {checkpoint}: {kept} lost from {wanted}"
        self.stored[checkpoint] = NOTHING

    def check_end(self) -> None:
        """Everything has been taken and sent: nothing is stuck, nothing was lost, and nothing is missing."""
        assert not list(self.steps())
        self.check_all_processed()
        assert self.emitted == sum(len(places) for places in self.processed)
        assert self.sent == [self.emitted] * self.outputs
        due = self.whole() - self.aborted
        assert due <= self.acknowledged, f"never acknowledged: {due - self.acknowledged}"
        assert not self.declined & (self.whole() - self.aborted), "declined for no reason"

    # ------------------------------------------------------------------------------ what differs for sources and others
    def read_so_far(self) -> int:
        return 0

    def capture(self, checkpoint: int, channel: int) -> None:
        raise AssertionError("a source has no channels")

    def ahead_of(self, checkpoint: int, channel: int) -> list[int]:
        raise AssertionError

    def check_all_processed(self) -> None:
        raise AssertionError

    def whole(self) -> set[int]:
        """Checkpoints that must be acknowledged unless they are aborted."""
        raise AssertionError


@dataclass
class Model(Subtask):
    """A subtask with input channels. `doomed`: a checkpoint that the coordinator is going to abort. `remote`: barriers
    that overtake may be told of while what is ahead of them on their channel is still on its way."""

    scripts: Sequence[Script] = ()
    doomed: int | None = None
    remote: bool = False
    told: list[int] = field(default_factory=list)
    """Up to where in its script a channel's barriers have been told of."""
    arrived: list[int] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.scripts = [[Barrier(e) if isinstance(e, int) and e > 0 else e for e in script] for script in self.scripts]
        self.told = [0] * len(self.scripts)
        self.arrived = [0] * len(self.scripts)
        self.taken = [0] * len(self.scripts)
        self.processed = [[] for _ in self.scripts]
        self.barriers = {e.checkpoint: e for script in self.scripts for e in script if isinstance(e, Barrier)}
        self._whole = self._find_whole()

    def steps(self) -> Iterator[Step]:
        yield from super().steps()
        for channel, script in enumerate(self.scripts):
            arrived, taken = self.arrived[channel], self.taken[channel]
            if arrived < len(script) and self._may_arrive(script[arrived]):
                yield "arrive", channel
            if self.remote and self._next_ahead(channel) is not None:
                yield "tell ahead", channel
            if taken < arrived and channel not in self.blocked and self._may_take(script[taken]):
                yield "take", channel

    def _may_take(self, element: Element) -> bool:
        """Only a record may be taken while another is in hand: at another link of the chain."""
        hands_free = len(self.hand) < self.hand_room if element == 0 else not self.hand
        return hands_free and not self.to_tell and self._room()

    def _may_arrive(self, element: Element) -> bool:
        """Nothing starts while a savepoint is in flight; plain barriers beside others are savepoints."""
        if not isinstance(element, Barrier):
            return True
        alone = {
            n
            for n, b in self.barriers.items()
            if n < element.checkpoint and (b.savepoint or (_is_plain(b) and not _is_plain(element)))
        }
        return not (alone & self.whole()) - self.acknowledged - self.aborted

    def _next_ahead(self, channel: int) -> int | None:
        """Where the first barrier stands that is not told of yet, if it may overtake what has not arrived."""
        for place in range(max(self.told[channel], self.arrived[channel]), len(self.scripts[channel])):
            element = self.scripts[channel][place]
            if isinstance(element, Barrier):
                may = element.overtakes and place > self.arrived[channel] and self._may_arrive(element)
                return place if may else None
        return None

    def tell_ahead(self, channel: int) -> None:
        place = self._next_ahead(channel)
        assert place is not None
        self.told[channel] = place + 1
        barrier = self.scripts[channel][place]
        assert isinstance(barrier, Barrier)
        self.tell_soon(p.BarrierAhead(channel, barrier))

    def arrive(self, channel: int) -> None:
        place = self.arrived[channel]
        element = self.scripts[channel][place]
        self.arrived[channel] += 1
        if element == 0:
            for checkpoint, capturing in self.capturing:
                if capturing == channel:
                    assert checkpoint not in self.acknowledged, "something was captured after the acknowledgement"
                    self.stored[checkpoint].captured[channel].append(place)
        elif isinstance(element, Barrier):
            self.capturing = {(n, c) for n, c in self.capturing if c != channel or n > element.checkpoint}
            self.tell_soon(p.BarrierAnnounced(channel, element))

    def take(self, channel: int) -> None:
        place = self.taken[channel]
        element = self.scripts[channel][place]
        self.taken[channel] += 1
        if element == 0:
            self.hand.append((channel, place))
        elif isinstance(element, Barrier):
            self.feed(p.BarrierAtHead(channel, element))
        else:
            self.feed(p.ChannelEnded(channel))

    def capture(self, checkpoint: int, channel: int) -> None:
        captured = self.stored[checkpoint].captured.setdefault(channel, [])
        for place in range(self.taken[channel], self.arrived[channel]):
            element = self.scripts[channel][place]
            if isinstance(element, Barrier) and element.checkpoint >= checkpoint:
                return
            if element == 0:
                captured.append(place)
        self.capturing.add((checkpoint, channel))

    # ------------------------------------------------------------------------------------------- what the scripts say
    def ahead_of(self, checkpoint: int, channel: int) -> list[int]:
        """All records ahead of the checkpoint's barrier; of a channel without it, or whose end comes first, all."""
        records = []
        for place, element in enumerate(self.scripts[channel]):
            if isinstance(element, Barrier) and element.checkpoint == checkpoint:
                break
            if element == 0:
                records.append(place)
        return records

    def check_all_processed(self) -> None:
        assert self.taken == [len(script) for script in self.scripts], "deadlock"
        for channel, script in enumerate(self.scripts):
            assert self.processed[channel] == [place for place, element in enumerate(script) if element == 0]

    def whole(self) -> set[int]:
        return self._whole - {self.doomed}

    def _find_whole(self) -> set[int]:
        """Checkpoints whose barrier is on every channel that does not end without it."""
        return {n for n in self.barriers if all(_gives(n, script) for script in self.scripts)}


@dataclass
class Source(Subtask):
    """A source that reads `records` and is told to put in `triggers`, which may come at any time."""

    triggers: Sequence[Barrier] = ()
    records: int = 0
    read_records: int = 0
    announced: int = 0
    waiting: list[Barrier] = field(default_factory=list)
    positions: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.processed = [[]]
        self.barriers = {barrier.checkpoint: barrier for barrier in self.triggers}

    def steps(self) -> Iterator[Step]:
        yield from super().steps()
        if self.announced < len(self.triggers):
            yield "announce", 0
        if self.waiting and not self.hand and not self.to_tell:
            yield "trigger", 0
        if self.read_records < self.records and len(self.hand) < self.hand_room and not self.to_tell and self._room():
            yield "read", 0

    def announce(self, _: int) -> None:
        barrier = self.triggers[self.announced]
        self.announced += 1
        self.waiting.append(barrier)
        self.tell_soon(p.BarrierAnnounced(0, barrier))

    def trigger(self, _: int) -> None:
        self.feed(p.Triggered(self.waiting.pop(0)))

    def read(self, _: int) -> None:
        self.hand.append((0, self.read_records))
        self.read_records += 1

    def read_so_far(self) -> int:
        return self.read_records

    def ahead_of(self, checkpoint: int, channel: int) -> list[int]:
        """The position is where the barrier went in."""
        return list(range(self.stored[checkpoint].read))

    def check_all_processed(self) -> None:
        assert self.processed == [list(range(self.records))]
        assert not self.waiting

    def whole(self) -> set[int]:
        return set(self.barriers)


def _is_plain(barrier: Barrier) -> bool:
    return not barrier.overtakes and barrier.overtakes_at is None


def _gives(checkpoint: int, script: Script) -> bool:
    """Gives this barrier, or ends without any later one."""
    numbers = [element.checkpoint for element in script if isinstance(element, Barrier)]
    return checkpoint in numbers or (END in script and max(numbers, default=0) < checkpoint)


def _move_ahead(unsent: list[int | Barrier], barrier: Barrier) -> list[int]:
    """Put the barrier behind the last earlier one; what it has overtaken, in order."""
    waits = [i for i, e in enumerate(unsent) if isinstance(e, Barrier) and e.checkpoint == barrier.checkpoint]
    end = waits[0] if waits else len(unsent)
    earlier = [i for i, e in enumerate(unsent[:end]) if isinstance(e, Barrier) and e.checkpoint < barrier.checkpoint]
    start = earlier[-1] + 1 if earlier else 0
    overtaken = [element for element in unsent[start:end] if isinstance(element, int)]
    del unsent[end : end + len(waits)]
    unsent.insert(start, barrier)
    return overtaken


# ------------------------------------------------------------------------------------------------------------- running
def exhaust(subtask: Subtask, *, abort: int | None = None) -> int:
    """Every order of steps, with every timer and the abort at every place or nowhere; returns the number of states."""
    start = _frozen(subtask)
    fixed = {name: value for name, value in vars(subtask).items() if name in FIXED}
    seen = {start}
    stack = [start]
    while stack:
        for state in _successors(stack.pop(), fixed, abort):
            if state not in seen:
                seen.add(state)
                stack.append(state)
    return len(seen)


def _successors(state: bytes, fixed: dict[str, Any], abort: int | None) -> Iterator[bytes]:
    subtask = _thawed(state, fixed)
    steps = list(subtask.steps())
    if not steps and (incomplete := set(subtask.barriers) - subtask.whole() - subtask.aborted):
        steps = [("abort", min(incomplete))]  # the coordinator times out what is incomplete: then everything goes on
    if not steps:
        subtask.check_end()
    if abort is not None and abort not in subtask.aborted:
        steps.append(("abort", abort))
    for step in steps + subtask.interruptions():
        after = _thawed(state, fixed)
        after.do(step)
        yield _frozen(after)


FIXED: Final = ("scripts", "triggers", "barriers", "_whole")
"""What never changes is not frozen with the rest: that halves the time."""


def _frozen(subtask: Subtask) -> bytes:
    state = {name: value for name, value in vars(subtask).items() if name not in FIXED}
    return pickle.dumps((type(subtask), state), pickle.HIGHEST_PROTOCOL)


def _thawed(state: bytes, fixed: dict[str, Any]) -> Subtask:
    cls, variable = pickle.loads(state)
    subtask: Subtask = cls.__new__(cls)
    vars(subtask).update(variable, **fixed)
    return subtask


def run(subtask: Subtask, choices: Sequence[int]) -> None:
    """One order of steps, by the numbers given; what upstream dropped is aborted in the end."""
    numbers = iter(choices)
    while True:
        steps: list[Any] = list(subtask.steps())
        incomplete = sorted(set(subtask.barriers) - subtask.whole() - subtask.aborted)
        if not steps and not incomplete:
            break
        rare = subtask.interruptions() + [("abort", n) for n in sorted(set(subtask.barriers) - subtask.aborted)]
        kind, which = divmod(next(numbers, 0), 100)
        if not steps:
            steps = [("abort", incomplete[0])]
        elif kind == 9 and rare:
            steps = rare
        subtask.do(steps[which % len(steps)])
    subtask.check_end()
