"""The input of a stage that takes in all its records before it works.

Invariant: whoever sends is always taken from, but while a run is being written; so no stage waits for itself, however
streams part and meet. The other side's broadcast records are given as they come; all others after the end of all
input, in order, each slice followed by `EndOfKeys` where keys end with it. Watermarks are dropped: event time moves
from before the first record to after the last one, key by key.
"""

import asyncio
from collections import deque
from collections.abc import Collection, Coroutine, Sequence
from typing import Any, Final

from streamactors.actors.mailbox import Mailbox
from streamactors.elements import END, Batch, Element, EndOfData, EndOfKeys
from streamactors.runtime.bounded.slices import Slice
from streamactors.runtime.bounded.sorter import Sorter
from streamactors.runtime.inputs import MailboxInput

WEIGHED_ONE_IN: Final = 8
"""Batches: weighing one costs as much as handling a few records."""


class SortedInput(MailboxInput):
    """`sides` by channel; `passing`: the channels whose records are given as they come; `keyed`: the others have keys.
    `direct`: about how many bytes of these go on as they come (hybrid hashing), where neither time nor side matters:
    each key's records keep their order, and what they leave in state is no larger than they are."""

    def __init__(
        self,
        mailbox: Mailbox[Element],
        sides: Sequence[int],
        passing: Collection[int],
        sorter: Sorter,
        *,
        keyed: bool,
        direct: int = 0,
    ) -> None:
        super().__init__(mailbox, len(sides))
        self._mailbox = mailbox
        self._sides = sides
        self._passing = frozenset(passing)
        self._sorter = sorter
        self._keyed = keyed
        self._direct = direct
        self._weighed = 0
        self._record_bytes = 0
        self._channel_of = {side: channel for channel, side in enumerate(sides) if channel not in self._passing}
        self._open = len(sides)
        self._ended = False
        self._work: asyncio.Task[Sequence[Slice] | None] | None = None
        self._ready: deque[tuple[int, Element]] = deque()
        self.take = self._next

    def _next(self, *, full: bool = False) -> tuple[int, Element] | None:
        """It goes on taking in, whether its step is `full` or not."""
        if self._ready:
            return None if full and isinstance(self._ready[0][1], Batch) else self._ready.popleft()
        if self._work is None and (self._open or self._ended):
            return self._take_in(full=full) if self._open else None
        if self._work is None:
            self._give()
            return self._next(full=full)
        if not self._work.done():
            return None
        slices, self._work = self._work.result(), None
        if slices is not None:
            self._receive(slices)
        return self._next(full=full)

    # ------------------------------------------------------------------------------------------------------ taking in
    def _take_in(self, *, full: bool) -> tuple[int, Element] | None:
        if full:
            self._direct = 0  # the rest is sorted, all of it: a later record of a key must not go on ahead of one
        taken = self._mailbox.take()
        if taken is None:
            return None
        channel, element = taken
        if isinstance(element, Batch):
            if channel in self._passing or self._goes_on(element):
                return taken
            self._add(channel, element)
        elif isinstance(element, EndOfData):
            self._open -= 1
        self._go_on()
        return None

    def _goes_on(self, batch: Batch) -> bool:
        if self._direct <= 0:
            return False
        if self._weighed % WEIGHED_ONE_IN == 0:
            self._record_bytes = batch.estimated_bytes() // max(1, len(batch))
        self._weighed += 1
        self._direct -= len(batch) * self._record_bytes
        return True

    def _add(self, channel: int, batch: Batch) -> None:
        if not self._keyed:  # held back, in the order of arrival
            batch = batch.with_keys([None] * len(batch), [0] * len(batch))
        self._sorter.add(batch, self._sides[channel])

    def _go_on(self) -> None:
        if not self._open:
            self._begin(self._sorter.settle())
        elif self._sorter.full:
            self._begin(self._sorter.spill())
        else:
            self._mailbox.signal.set()  # there may be more

    def _begin(self, work: Coroutine[Any, Any, Sequence[Slice] | None]) -> None:
        self._work = asyncio.get_running_loop().create_task(work, name="sort")
        self._work.add_done_callback(lambda _: self._mailbox.signal.set())

    # ----------------------------------------------------------------------------------------------------- giving out
    def _give(self) -> None:
        """Something to be given next, or to wait for."""
        if not self._sorter.in_memory:
            self._begin(self._sorter.read())
        elif (taken := self._sorter.take()) is not None:
            self._put(taken)
        else:
            self._end()

    def _receive(self, slices: Sequence[Slice]) -> None:
        for each in slices:
            self._put(each)
        if slices:
            self._begin(self._sorter.read())  # while these are worked on
        else:
            self._end()

    def _put(self, taken: Slice) -> None:
        self._ready.extend((self._channel_of[side], self._plain(batch)) for side, batch in taken.batches)
        if taken.ended is not None:
            self._ready.append((0, EndOfKeys(*taken.ended)))

    def _end(self) -> None:
        self._ended = True
        self._ready.extend((channel, END) for channel in range(self.channels))

    def _plain(self, batch: Batch) -> Batch:
        return batch if self._keyed else batch.unplaced()

    async def close(self) -> None:
        self._sorter.stop()
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
        await self._sorter.close()
