"""The links of one subtask, and the batches in hand between them.

Invariant: `_stack` holds every record that was taken from the input and is not yet fully processed, deepest link last,
and of one link the batch to go first last; what was restored waits in `_backlog`, and goes before all input. A step
takes a slice from the deepest link with work, so each link's output is consumed before its next input, and between two
steps nothing is in hand but these two. Order within a link is the order of its input, also where a drain was cut short
and has left work behind.

Timers: a watermark that comes to a link stays in the stack until all that are due by it have fired, a slice each step;
until then the link's `time` is stored as before it. An event timer that is due for another reason (it was set late, or
restored) fires before the link gets anything more.

Calls: an async link keeps what it is given, marks included (`AsyncLink`), and nothing of that is in the stack. What is
finished is fetched by `harvest`, while nothing is in hand: so the chain is at rest between two slices although calls
run, a barrier may pass then, and the snapshot stores what they hold (`held_by_calls`).
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Final

from streamactors.elements import MAX_TIME, Batch, EndOfKeys, TimeMark, Watermark
from streamactors.metrics import MetricGroup
from streamactors.operators.async_io.link import AsyncLink, Emitted
from streamactors.operators.base import Link
from streamactors.runtime.inflight import Route
from streamactors.runtime.taps import Receiver
from streamactors.state.timers import Domain, TimerRow
from streamactors.time.progress import EventTime
from streamactors.time.timers import TimerService

SLICE_SECONDS = 0.0005
"""A step aims at taking about this long, so that the governor and the barriers get their turn."""
LARGEST_SLICE = 1024


class LinkSlot:
    """A link's place in the chain: where its output goes, how much it takes at a time, what it has counted.

    `link` is None in the place of a source."""

    __slots__ = (
        "firing",
        "forget",
        "home",
        "link",
        "main",
        "metrics",
        "prove",
        "records_in",
        "records_out",
        "route",
        "sides",
        "slice",
        "time",
        "undelivered",
    )

    def __init__(
        self,
        link: Link | None,
        main: Sequence[Receiver],
        sides: Mapping[str, Sequence[Receiver]],
        metrics: MetricGroup,
        route: Route | None = None,
        prove: Callable[[Batch], None] | None = None,
        time: EventTime | None = None,
    ) -> None:
        self.link = link
        self.home: tuple[str, str] | None = None
        """That of the batch in process, and so of whatever is emitted for it."""
        self.time = EventTime() if time is None else time
        self.route = route
        """How records come to it from the link before; None for the first."""
        self.prove = prove
        """Called with its first batch from there: raises UnserialisableValue if it could not be captured."""
        self.metrics = metrics
        self.main = main
        self.sides = sides
        self.slice = 64
        self.firing = 16
        """Timers that it fires at a time."""
        self.forget: Callable[[range], None] | None = None
        """Drops the state of the keys in some key groups; None where the input is not sorted."""
        self.records_in = 0
        self.records_out = 0
        self.undelivered = 0

    def tell(self, mark: TimeMark) -> None:
        """Every step behind it that is not chained."""
        for output in self.main:
            output.tell(mark)
        for outputs in self.sides.values():
            for output in outputs:
                output.tell(mark)

    def attach(self, tag: str | None, tap: Receiver) -> None:
        """What is emitted from now on (to side output `tag`) goes there too."""
        if tag is None:
            self.main = [*self.main, tap]
        else:
            self.sides = {**self.sides, tag: [*self.sides.get(tag, ()), tap]}

    def detach(self, tag: str | None, tap: Receiver) -> None:
        if tag is None:
            self.main = [receiver for receiver in self.main if receiver is not tap]
            return
        left = [receiver for receiver in self.sides.get(tag, ()) if receiver is not tap]
        others = {name: receivers for name, receivers in self.sides.items() if name != tag}
        self.sides = {**others, tag: left} if left else others

    def took(self, records: int, seconds: float) -> None:
        """Adapt the slice to how long the last one took."""
        self.records_in += records
        self.slice = _next_slice(self.slice, records, seconds)

    def fired(self, timers: int, seconds: float) -> None:
        self.firing = _next_slice(self.firing, timers, seconds)


_END_OF_TIME: Final = Watermark(MAX_TIME, merged=True)


def _next_slice(now: int, taken: int, seconds: float) -> int:
    fitting = int(taken * SLICE_SECONDS / seconds) if seconds > 0 else LARGEST_SLICE
    return max(1, min(fitting, 2 * now, LARGEST_SLICE))


class Chain:
    """Slots in order; the first takes the input. They are added after the chain, since links reach back into it."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self.slots: list[LinkSlot] = []
        self.make_room: Callable[[], Awaitable[None]] | None = None
        """Waits for room downstream; the subtask's."""
        self.wait_for_calls: Callable[[], Awaitable[None]] | None = None
        """Until one may have ended; the subtask's."""
        self.check_alive: Callable[[], None] | None = None
        """Raises CancelledError once the attempt is over; the subtask's."""
        self.before_seen: Callable[[Batch], None] | None = None
        """Called with every batch before a link gets it; the subtask's, where barriers may overtake."""
        self.interrupted: Callable[[], bool] = bool
        """Whether a barrier waits to overtake; the subtask's."""
        self._opened: list[Link] = []
        self._last = -1
        self._monotonic = monotonic
        self._stack: list[tuple[int, Batch | TimeMark | EndOfKeys]] = []
        self._origin: Route | None = None
        """How the input in hand came to the first link."""
        self.working = 0
        """How many links are in the middle of a slice: a drain goes on with those behind it."""
        self._tellers: list[tuple[int, Link]] = []
        """The links that give event time."""
        self._timed: list[tuple[int, TimerService]] = []
        """The links that have timers, the deepest first."""
        self._backlog: deque[tuple[int, Route | None, Batch | TimeMark]] = deque()
        self._async: list[tuple[int, AsyncLink]] = []
        """The links that hold calls, the deepest first."""

    def add(self, slot: LinkSlot) -> None:
        self.slots.append(slot)
        self._last += 1
        if slot.link is not None and slot.link.timers is not None:
            self._timed.insert(0, (self._last, slot.link.timers))
        if slot.link is not None and slot.link.gives_time:
            self._tellers.append((self._last, slot.link))
        if isinstance(slot.link, AsyncLink):
            self._async.insert(0, (self._last, slot.link))

    @property
    def busy(self) -> bool:
        if self._stack or self._backlog:
            return True
        if self._timed and self._due_from(-1) is not None:
            return True
        return bool(self._tellers) and any(link.marks for _, link in self._tellers)

    @property
    def holding(self) -> bool:
        """Whether calls run or wait."""
        return bool(self._async) and any(link.holding for _, link in self._async)

    @property
    def full(self) -> bool:
        """Whether there are as many calls as may be, so that no new batch should be taken."""
        return bool(self._async) and any(link.full for _, link in self._async)

    @property
    def ready(self) -> bool:
        """Whether there is something to `harvest`."""
        return bool(self._async) and any(link.ready for _, link in self._async)

    @property
    def restoring(self) -> bool:
        """Whether some of what was in flight is still to be processed."""
        return bool(self._backlog)

    @property
    def timers(self) -> list[TimerService]:
        return [timers for _, timers in self._timed]

    @property
    def slice(self) -> int:
        """How many records a source should put in at a time: what its slowest link takes in one step."""
        return min((slot.slice for slot in self.slots if slot.link is not None), default=LARGEST_SLICE)

    def push(self, batch: Batch, origin: Route | None = None) -> None:
        """Input for the first link, when nothing is in hand."""
        self._origin = origin
        self._stack.append((0, batch))

    def push_marks(self, marks: Sequence[TimeMark], origin: Route | None = None) -> None:
        """Event time of the input of the first link, when nothing is in hand."""
        self._origin = origin
        for mark in reversed(marks):
            self._stack.append((0, mark))

    def push_end_of_keys(self, end: EndOfKeys) -> None:
        """Of the input of the first link, when nothing is in hand."""
        self._stack.append((0, end))

    def push_backlog(self, place: int, origin: Route | None, element: Batch | TimeMark) -> None:
        """Input for the link at `place`, to be processed before anything else but what was pushed so before it."""
        self._backlog.append((place, origin, element))

    def in_hand(self) -> Iterator[tuple[Route, Batch | TimeMark]]:
        """What is not yet fully processed, in the order in which it will be, with how it came to its link. Not the last
        watermark of all: whoever goes on from here meets the end of the data again."""
        for place, element in reversed(self._stack):
            if isinstance(element, EndOfKeys) or (isinstance(element, Watermark) and element.time_ms == MAX_TIME):
                continue
            route = self.slots[place].route or self._origin
            assert route is not None
            yield route, element
        for _, origin, element in self._backlog:
            if origin is not None:
                yield origin, element

    def held_by_calls(self) -> Iterator[tuple[Route, Batch | TimeMark]]:
        """What the async links hold, as `in_hand`; of each link, it was taken before what is in hand for it."""
        for _, link in self._async:
            for route, element in link.in_flight():
                assert isinstance(route, Route) and not isinstance(element, EndOfKeys)
                yield route, element

    async def harvest(self, behind: int = -1) -> None:
        """What calls have finished goes on, when nothing is in hand (of links `behind` a place, for them); and others
        begin. One link, the deepest."""
        for index, link in self._async:
            if link.ready and index > behind:
                for part in await link.harvest():
                    if isinstance(part, Emitted):
                        self.slots[index].home = part.home
                        self.emit(index, part.batch)
                        self.emit_sides(index, part.sides)
                    elif isinstance(part, EndOfKeys):
                        self._forget_keys(part)
                    else:
                        self._pass_on(index, part)
                return

    def flush_calls(self) -> None:
        """The data has ended: what waits in the first link that holds anything need not wait for more."""
        for _, link in reversed(self._async):
            if link.holding:
                link.flush()
                return

    async def step(self) -> None:
        """One slice through one link."""
        self._tell_given()
        if self._timed and (due := self._due_from(self._next_place())) is not None:
            await self._fire_due(due)
            return
        if not self._stack and not self._backlog:
            return
        if not self._stack:
            place, self._origin, restored = self._backlog.popleft()
            self._stack.append((place, restored))
        index, batch = self._stack.pop()
        if type(batch) is not Batch:
            assert not isinstance(batch, Batch)
            await (self._end_keys(batch) if isinstance(batch, EndOfKeys) else self._take_mark(index, batch))
            return
        if self.before_seen is not None:
            self.before_seen(batch)
        slot = self.slots[index]
        link = slot.link
        assert link is not None
        if link.read_ahead is not None:
            await link.read_ahead.ready(batch, slot.slice)
        if len(batch) > slot.slice:
            self._stack.append((index, batch.slice(slot.slice, len(batch))))
            batch = batch.slice(0, slot.slice)
        if index == 0 and self._origin is not None:
            link.side = self._origin.side
        if isinstance(link, AsyncLink):
            link.route = slot.route or self._origin
        slot.home = batch.home
        started = self._monotonic()
        self.working += 1
        result = await link.process(batch)
        self.working -= 1
        taken = len(batch)
        if link.rest is not None:
            taken -= len(link.rest)
            self._insert(index, index, link.rest)
            link.rest = None
        if taken:
            slot.took(taken, self._monotonic() - started)
        self._emit_all(index, link, result)
        self._tell_given()

    def _emit_all(self, index: int, link: Link, result: Batch | None) -> None:
        self.emit(index, result)
        if link.sides:
            sides, link.sides = link.sides, {}
            self.emit_sides(index, sides)

    # -------------------------------------------------------------------------------------------------------- timers
    def _next_place(self) -> int:
        """The link that has something to do next; -1 if none has."""
        if self._stack:
            return self._stack[-1][0]
        return self._backlog[0][0] if self._backlog else -1

    def _due_from(self, place: int) -> int | None:
        """The deepest link, from `place` on, that may have event timers to fire before anything else."""
        for index, timers in self._timed:
            if index < place:
                return None
            if timers.event_due:
                return index
        return None

    async def _fire_due(self, index: int) -> None:
        link, slot = self.slots[index].link, self.slots[index]
        assert link is not None and link.timers is not None
        await self._fire(index, "event", await link.timers.next_events(slot.firing))

    async def _take_mark(self, index: int, mark: TimeMark) -> None:
        """It goes on once all timers that are due by it have fired."""
        slot = self.slots[index]
        if isinstance(slot.link, AsyncLink) and self._held(index, slot.link, mark):
            return
        timers = None if slot.link is None else slot.link.timers
        if timers is not None and isinstance(mark, Watermark):
            await timers.reach(mark)
            rows = await timers.next_events(slot.firing)
            if rows:
                self._stack.append((index, mark))
                await self._fire(index, "event", rows)
                return
        self._pass_on(index, mark)

    def _pass_on(self, index: int, mark: TimeMark) -> None:
        link = self.slots[index].link
        for told in (mark,) if link is None else link.translate(mark):
            self.tell(index, told)

    def _held(self, index: int, link: AsyncLink, mark: TimeMark | EndOfKeys) -> bool:
        """Whether it waits behind calls."""
        link.route = self.slots[index].route or self._origin
        return link.hold(mark)

    def _tell_given(self) -> None:
        """The event time that links have given."""
        for index, link in self._tellers:
            if link.marks:
                marks, link.marks = link.marks, ()
                for mark in marks:
                    self.tell(index, mark)

    async def fire_processing(self, now: int) -> bool:
        """A slice of the processing timers due by `now`, of one link; False if there are none."""
        for index, timers in self._timed:
            rows = await timers.next_processing(now, self.slots[index].firing)
            if rows:
                await self._fire(index, "processing", rows)
                return True
        return False

    async def _fire(self, index: int, domain: Domain, rows: list[TimerRow]) -> None:
        slot = self.slots[index]
        link = slot.link
        if link is None or not rows:
            return
        slot.home = None  # what is emitted belongs to no split
        started = self._monotonic()
        result = await link.fire(domain, rows)
        slot.fired(len(rows), self._monotonic() - started)
        self._emit_all(index, link, result)

    async def _end_keys(self, end: EndOfKeys) -> None:
        """At the first link, event time goes to its end for these keys, and the processing timers follow; then their
        state is dropped, and event time begins anew for the next ones."""
        slot = self.slots[0]
        if isinstance(slot.link, AsyncLink) and self._held(0, slot.link, end):
            return
        timers = None if slot.link is None else slot.link.timers
        if timers is not None:
            await timers.reach(_END_OF_TIME)
            domain: Domain = "event"
            rows = await timers.next_events(slot.firing)
            if not rows:
                timers.closing = True  # one that sets itself again would go on for ever
                domain, rows = "processing", await timers.next_processing(MAX_TIME, slot.firing)
            if rows:
                self._stack.append((0, end))
                await self._fire(0, domain, rows)
                return
            timers.closing = False
        self._forget_keys(end)

    def _forget_keys(self, end: EndOfKeys) -> None:
        slot = self.slots[0]
        slot.time.begin_key()
        if slot.forget is not None:
            slot.forget(range(end.first, end.last + 1))

    def restate(self) -> None:
        """Where event time stands at each link, to those after it: they may have been started afresh."""
        # What is in the backlog may end an idleness; who comes behind it must not begin it anew.
        settled = not self._backlog
        for place, slot in enumerate(self.slots):
            for mark in slot.time.restated():
                slot.tell(mark)
                if place < self._last and (settled or isinstance(mark, Watermark)):
                    self.push_backlog(place + 1, self.slots[place + 1].route, mark)

    def tell(self, index: int, mark: TimeMark) -> None:
        """Event time has come to the link at `index` (or the source in its place): tell those after it, behind what it
        has emitted."""
        slot = self.slots[index]
        news = slot.time.on(mark)
        if news is None:
            return
        # The end of the data is that of event time: nothing else need tell those downstream.
        if not (isinstance(news, Watermark) and news.time_ms == MAX_TIME):
            slot.tell(news)
        if index < self._last:
            self._insert(index + 1, index, news)

    def _insert(self, place: int, emitter: int, batch: Batch | TimeMark) -> None:
        """For the link at `place`, behind what the link at `emitter` has emitted already: a drain that was cut short
        may have left some of it."""
        at = len(self._stack)
        while at and self._stack[at - 1][0] > emitter:
            at -= 1
        self._stack.insert(at, (place, batch))

    def emit(self, index: int, batch: Batch | None) -> None:
        """What the link at `index` (or the source in its place) has put out."""
        if batch is None or not batch.values:
            return
        slot = self.slots[index]
        slot.records_out += len(batch)
        if slot.link is not None:
            batch.home = slot.home
        for output in slot.main:
            output.stage(batch)
        if index < self._last:
            following = self.slots[index + 1]
            if following.prove is not None:
                following.prove(batch)
                following.prove = None
            self._insert(index + 1, index, batch)

    def emit_sides(self, index: int, sides: Mapping[str, Batch]) -> None:
        slot = self.slots[index]
        for name, batch in sides.items():
            outputs = slot.sides.get(name)
            if outputs is None:
                slot.undelivered += len(batch)
                continue
            if slot.link is not None:
                batch.home = slot.home
            for output in outputs:
                output.stage(batch)

    async def drain(self, index: int, batch: Batch | None, sides: Mapping[str, Batch]) -> None:
        """Push on what the link at `index` has emitted in the middle of a record, and wait for room."""
        if self.check_alive is not None:
            self.check_alive()
        self.emit(index, batch)
        self.emit_sides(index, sides)
        await self._step_behind(index)
        while any(link.full for link in self._calling_behind(index)) and not self.interrupted():
            await self._let_calls_end(index)
        if self.make_room is not None:
            await self.make_room()

    async def _step_behind(self, index: int) -> None:
        while self._stack and self._stack[-1][0] > index and not self.interrupted():
            await self.step()

    def _calling_behind(self, index: int) -> list[AsyncLink]:
        return [link for place, link in self._async if place > index]

    async def _let_calls_end(self, index: int) -> None:
        """In the middle of a record of the link at `index`: some of those behind it."""
        if any(link.ready for link in self._calling_behind(index)):
            await self.harvest(index)
            await self._step_behind(index)
        elif self.wait_for_calls is not None:
            await self.wait_for_calls()

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
                slot.home = None
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
