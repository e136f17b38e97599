"""The links of one subtask, and the batches in hand between them.

Invariant: `_stack` holds every record that was taken from the input and is not yet fully processed, deepest link
last. A step takes a slice from the deepest link with work, so each link's output is consumed before its next input,
and between two steps nothing is in hand but the stack. Order within a link is the order of its input.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from streamactors.elements import Batch
from streamactors.metrics import MetricGroup
from streamactors.operators.base import Link
from streamactors.runtime.routing import Output

SLICE_SECONDS = 0.0005
"""A step aims at taking about this long, so that the governor and the barriers get their turn."""
LARGEST_SLICE = 1024


class LinkSlot:
    """A link's place in the chain: where its output goes, how much it takes at a time, what it has counted.

    `link` is None in the place of a source."""

    __slots__ = ("link", "main", "metrics", "records_in", "records_out", "sides", "slice", "undelivered")

    def __init__(
        self, link: Link | None, main: Sequence[Output], sides: Mapping[str, Sequence[Output]], metrics: MetricGroup
    ) -> None:
        self.link = link
        self.metrics = metrics
        self.main = main
        self.sides = sides
        self.slice = 64
        self.records_in = 0
        self.records_out = 0
        self.undelivered = 0

    def took(self, records: int, seconds: float) -> None:
        """Adapt the slice to how long the last one took."""
        self.records_in += records
        fitting = int(records * SLICE_SECONDS / seconds) if seconds > 0 else LARGEST_SLICE
        self.slice = max(1, min(fitting, 2 * self.slice, LARGEST_SLICE))


class Chain:
    """Slots in order; the first takes the input. They are added after the chain, since links reach back into it."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self.slots: list[LinkSlot] = []
        self.make_room: Callable[[], Awaitable[None]] | None = None
        """Waits for room downstream; the subtask's."""
        self.check_alive: Callable[[], None] | None = None
        """Raises CancelledError once the attempt is over; the subtask's."""
        self._opened: list[Link] = []
        self._last = -1
        self._monotonic = monotonic
        self._stack: list[tuple[int, Batch]] = []

    def add(self, slot: LinkSlot) -> None:
        self.slots.append(slot)
        self._last += 1

    @property
    def busy(self) -> bool:
        return bool(self._stack)

    @property
    def slice(self) -> int:
        """How many records a source should put in at a time: what its slowest link takes in one step."""
        return min((slot.slice for slot in self.slots if slot.link is not None), default=LARGEST_SLICE)

    def push(self, batch: Batch) -> None:
        """Input for the first link."""
        self._stack.append((0, batch))

    async def step(self) -> None:
        """One slice through one link."""
        index, batch = self._stack.pop()
        slot = self.slots[index]
        if len(batch) > slot.slice:
            self._stack.append((index, batch.slice(slot.slice, len(batch))))
            batch = batch.slice(0, slot.slice)
        link = slot.link
        assert link is not None
        started = self._monotonic()
        result = await link.process(batch)
        slot.took(len(batch), self._monotonic() - started)
        self.emit(index, result)
        if link.sides:
            sides, link.sides = link.sides, {}
            self.emit_sides(index, sides)

    def emit(self, index: int, batch: Batch | None) -> None:
        """What the link at `index` (or the source in its place) has put out."""
        if batch is None or not batch.values:
            return
        slot = self.slots[index]
        slot.records_out += len(batch)
        for output in slot.main:
            output.stage(batch)
        if index < self._last:
            self._stack.append((index + 1, batch))

    def emit_sides(self, index: int, sides: Mapping[str, Batch]) -> None:
        slot = self.slots[index]
        for name, batch in sides.items():
            outputs = slot.sides.get(name)
            if outputs is None:
                slot.undelivered += len(batch)
                continue
            for output in outputs:
                output.stage(batch)

    async def drain(self, index: int, batch: Batch | None, sides: Mapping[str, Batch]) -> None:
        """Push on what the link at `index` has emitted in the middle of a record, and wait for room."""
        if self.check_alive is not None:
            self.check_alive()
        self.emit(index, batch)
        self.emit_sides(index, sides)
        while self._stack and self._stack[-1][0] > index:
            await self.step()
        if self.make_room is not None:
            await self.make_room()

    async def open(self) -> None:
        """Downstream first, so that a link may emit as soon as it is open."""
        for slot in reversed(self.slots):
            if slot.link is not None:
                self._opened.append(slot.link)
                await slot.link.open()

    async def finish(self) -> None:
        """End of data: each link's last output goes through those after it."""
        for index, slot in enumerate(self.slots):
            if slot.link is not None:
                self.emit(index, await slot.link.finish())
                while self._stack:
                    await self.step()

    async def close(self) -> None:
        """Every link whose open was called is closed, upstream first, whatever another's close raises; the first error
        is raised at the end."""
        errors: list[BaseException] = []
        while self._opened:
            try:
                await self._opened.pop().close()
            except (Exception, asyncio.CancelledError) as error:
                errors.append(error)
        if errors:
            raise errors[0]
