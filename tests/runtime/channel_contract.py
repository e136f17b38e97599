"""What holds for every channel, whatever carries it: a real output sends into it, a mailbox is at its end.

The sender puts in batches, marks and barriers as a subtask does; the receiver takes them at its own pace, and does at a
barrier what an unaligned checkpoint does: it notes what it has taken, and captures what is ahead of the barrier.
"""

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

from hypothesis import strategies as st

from streamactors.actors.mailbox import Ahead, Mailbox
from streamactors.actors.signal import Signal
from streamactors.checkpoint.manifest import EdgeKey, InFlightEdge
from streamactors.elements import END, IDLE, Barrier, Batch, Element, EndOfData, TimeMark, Watermark
from streamactors.runtime.channel import Channel
from streamactors.runtime.inflight import Route
from streamactors.runtime.routing import ForwardRouter, Output, Outputs

Step = int | str
"""So many records in a batch; or "watermark", "idle", "plain" (a barrier), "overtaking" (one that overtakes)."""
SCRIPTS: Final = st.lists(
    st.one_of(st.integers(1, 9), st.sampled_from(["watermark", "idle", "plain", "overtaking", "overtaking"])),
    max_size=25,
)
EDGE: Final = EdgeKey("up", "down")
ROUTE: Final = Route(InFlightEdge(EDGE, "forward"), 0, 0)


class Recorded:
    """A channel that remembers what has left, and checks that the sender keeps to the room."""

    def __init__(self, channel: Channel) -> None:
        self.quota = channel.quota
        self.left: list[Any] = []
        self._channel = channel
        self.notify_room = channel.notify_room

    def room(self) -> int:
        room = self._channel.room()
        assert 0 <= room <= self.quota
        return room

    def send(self, element: Element) -> None:
        self.left += shown(element)
        self._channel.send(element)


def shown(element: Element) -> list[Any]:
    """Records one by one, and anything else as it is, whether a barrier began to overtake or not."""
    if isinstance(element, Batch):
        return list(element.values)
    return [("barrier", element.checkpoint)] if isinstance(element, Barrier) else [element]


def settled(elements: Sequence[Any]) -> list[Any]:
    """Of watermarks in a row the last: they take each other's place."""
    following = [*elements[1:], None]
    return [
        element
        for element, after in zip(elements, following, strict=True)
        if not (isinstance(element, Watermark) and isinstance(after, Watermark))
    ]


class Sender:
    def __init__(self, channel: Recorded, random: Random) -> None:
        self._signal = Signal()
        self._outputs = Outputs([Output(ForwardRouter(), [channel], [ROUTE])], self._signal.set)
        self._random = random
        self._records = 0
        self._barriers = 0

    async def run(self, script: Sequence[Step]) -> None:
        for step in script:
            self._do(step)
            while not self._outputs.flush() and self._random.random() < 0.7:
                await self._signal.wait()
            if self._random.random() < 0.3:
                await asyncio.sleep(self._random.random() * 0.01)
        self._outputs.broadcast(END)
        while not self._outputs.flush():
            await self._signal.wait()

    def _do(self, step: Step) -> None:
        if isinstance(step, int):
            self._outputs._outputs[0].stage(Batch(range(self._records, self._records + step)))
            self._outputs.seal()
            self._records += step
        elif step in ("plain", "overtaking"):
            self._barriers += 1
            if step == "plain":
                self._outputs.forward(Barrier(self._barriers))
            else:
                self._outputs.overtake(Barrier(self._barriers, overtakes=True), lambda route, element: None)
        else:
            mark: TimeMark = IDLE if step == "idle" else Watermark(self._records)
            self._outputs._outputs[0].tell(mark)


class Receiver:
    """Takes from channel 0 of its mailbox until the end of data."""

    def __init__(self, mailbox: Mailbox[Element], random: Random) -> None:
        self.taken: list[Any] = []
        self.told: list[int] = []
        """Checkpoints, as the receiver has first heard of them."""
        self.kept: dict[int, list[Any]] = {}
        """Of those that overtake: the records that were taken, and those that were captured."""
        self._mailbox = mailbox
        self._random = random
        self._tapped: set[int] = set()
        mailbox.tap = self._arrived

    async def run(self) -> None:
        while not self.taken or not isinstance(self.taken[-1], EndOfData):
            while self._mailbox.announced:
                self._hear(self._mailbox.announced.popleft()[1])
            if self._random.random() < 0.1:
                self._mailbox.block(0)
                await asyncio.sleep(self._random.random() * 0.02)
                self._mailbox.unblock_all()
            elif (taken := self._mailbox.take()) is not None:
                self.taken += shown(taken[1])
            else:
                await self._mailbox.signal.wait()
            if self._random.random() < 0.2:
                await asyncio.sleep(self._random.random() * 0.01)

    def _hear(self, element: Element | Ahead[Element]) -> None:
        barrier = element.item if isinstance(element, Ahead) else element
        assert isinstance(barrier, Barrier) and (barrier.overtakes or not isinstance(element, Ahead))
        if barrier.checkpoint in self.told:
            assert not isinstance(element, Ahead), "told of twice"
            return
        self.told.append(barrier.checkpoint)
        if barrier.overtakes:
            self._capture(barrier.checkpoint)

    def _capture(self, checkpoint: int) -> None:
        self.kept[checkpoint] = [record for record in self.taken if isinstance(record, int)]
        for element in self._mailbox.items(0):
            if _ends(element, checkpoint):
                return
            self.kept[checkpoint] += [record for record in shown(element) if isinstance(record, int)]
        self._tapped.add(checkpoint)

    def _arrived(self, channel: int, element: Element) -> None:
        self._tapped = {checkpoint for checkpoint in self._tapped if not _ends(element, checkpoint)}
        for checkpoint in self._tapped:
            self.kept[checkpoint] += [record for record in shown(element) if isinstance(record, int)]


def _ends(element: Element, checkpoint: int) -> bool:
    return isinstance(element, Barrier) and element.checkpoint >= checkpoint


async def keeps_the_contract(
    opened: Callable[[Mailbox[Element]], Channel], script: Sequence[Step], quota: int, byte_quota: int, random: Random
) -> None:
    """Every element once and in order; never more than the room; never stuck; every barrier told of in order, and all
    that is ahead of one that overtakes either taken before or captured."""
    mailbox: Mailbox[Element] = Mailbox(1, quota, byte_quota)
    channel = Recorded(opened(mailbox))
    receiver = Receiver(mailbox, random)
    await asyncio.gather(Sender(channel, random).run(script), receiver.run())
    assert settled(receiver.taken) == settled(channel.left)
    barriers = [element[1] for element in channel.left if isinstance(element, tuple)]
    assert receiver.told == barriers == sorted(barriers)
    for checkpoint, kept in receiver.kept.items():
        ahead = channel.left[: channel.left.index(("barrier", checkpoint))]
        assert kept == [record for record in ahead if isinstance(record, int)], f"checkpoint {checkpoint}"
