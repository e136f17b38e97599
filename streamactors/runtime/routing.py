"""From the output of a chain into channels.

Invariants. What is emitted leaves on each channel in the order emitted; a barrier or end of data leaves behind all
that was emitted before it, but for a barrier that overtakes: what it went ahead of is captured as in flight, once, and
no barrier goes ahead of an earlier one. Records of one input batch leave together: they are staged until it is done (or
there are `STAGED_LIMIT` of them), so that a quiet stream has no added latency and a busy one sends large batches.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, groupby, islice
from typing import Any, Protocol

import msgspec

from streamactors.elements import Barrier, Batch, Element, Idle, TimeMark, Watermark
from streamactors.errors import RecordFailed, StreamactorsError
from streamactors.graph.logical import Broadcast, Forward, Keyed, Partitioning, Rebalance
from streamactors.operators.base import done_of
from streamactors.operators.record_ids import by_edge
from streamactors.runtime.channel import Channel
from streamactors.runtime.inflight import Route
from streamactors.state.key_groups import KeyGrouper, subtask_of

STAGED_LIMIT = 1024
PORTION_BYTES = 512 << 10
"""About what leaves at once of large records: between one such and the next a channel may ask to wait."""


class Router(Protocol):
    def route(self, batch: Batch) -> Iterable[tuple[int, Batch]]:
        """The parts of a batch with the channel that each goes to."""
        ...


class ForwardRouter:
    def route(self, batch: Batch) -> Iterable[tuple[int, Batch]]:
        return ((0, batch),)


class BroadcastRouter:
    def __init__(self, channels: int) -> None:
        self._channels = range(channels)

    def route(self, batch: Batch) -> Iterable[tuple[int, Batch]]:
        batch = batch.unplaced()
        return ((channel, batch) for channel in self._channels)


class RebalanceRouter:
    """Record by record in turn, by strides of the batch."""

    def __init__(self, channels: int) -> None:
        self._channels = channels
        self._next = 0

    def route(self, batch: Batch) -> Iterable[tuple[int, Batch]]:
        batch = batch.unplaced()
        count, first = self._channels, self._next
        self._next = (first + len(batch)) % count
        if count == 1:
            return ((0, batch),)
        strides = range(min(count, len(batch)))
        return [((first + start) % count, batch.stride(start, count)) for start in strides]


class KeyedRouter:
    """By key group. Keys and groups travel with the records, so that they are computed once."""

    def __init__(self, uid: str, selector: Callable[[Any], Any], channels: int, max_parallelism: int) -> None:
        self._uid = uid
        self._selector = selector
        self._single = channels == 1
        self._grouper = KeyGrouper(max_parallelism)
        self._buckets: list[list[int]] = [[] for _ in range(channels)]
        # Which bucket takes the records of a key group, as its bound `append`: one call per record.
        owners = (subtask_of(group, channels, max_parallelism) for group in range(max_parallelism))
        self._append = [self._buckets[owner].append for owner in owners]

    def route(self, batch: Batch) -> Iterable[tuple[int, Batch]]:
        batch = self._keyed(batch)
        if self._single:
            return ((0, batch),)
        append = self._append
        for index, group in enumerate(batch.groups or ()):
            append[group](index)
        parts = [(channel, batch.take(bucket)) for channel, bucket in enumerate(self._buckets) if bucket]
        for bucket in self._buckets:
            bucket.clear()
        return parts

    def _keyed(self, batch: Batch) -> Batch:
        values = iter(batch.values)
        selector = self._selector
        try:
            keys = [selector(value) for value in values]
        except Exception as error:
            origin = batch.origin(done_of(values, len(batch)) - 1)
            raise RecordFailed(self._uid, f"key_by: {type(error).__name__}: {error}", origin=origin) from error
        try:
            return batch.with_keys(keys, self._grouper.groups(keys))
        except StreamactorsError as error:
            error.add_note(f"in key_by after operator {self._uid!r}")
            raise


def router(partitioning: Partitioning, uid: str, channels: int, max_parallelism: int) -> Router:
    match partitioning:
        case Keyed(selector):
            return KeyedRouter(uid, selector, channels, max_parallelism)
        case Rebalance():
            return RebalanceRouter(channels)
        case Broadcast():
            return BroadcastRouter(channels)
        case Forward():
            return ForwardRouter()


class Output:
    """One edge out of a chain: stages, routes, and holds what its channels have no room for.

    Where barriers may overtake: `routes` by channel; `prove`, called with the first batch, raises UnserialisableValue
    if its records could not be captured; `before_seen` is called with every batch before its receiver gets it.
    `name`: what tells the edge apart in the names of its records; None where nothing need.
    """

    def __init__(
        self,
        router: Router,
        channels: Sequence[Channel],
        routes: Sequence[Route] = (),
        prove: Callable[[Batch], None] | None = None,
        before_seen: Callable[[Batch], None] | None = None,
        name: str | None = None,
    ) -> None:
        self._router = router
        self._name = name
        self._forward = isinstance(router, ForwardRouter)
        self._channels = channels
        self._routes = routes
        self._prove = prove
        self._before_seen = before_seen
        self._staged: list[Batch] = []
        self._staged_records = 0
        self._unsent: list[deque[Element]] = [deque() for _ in channels]
        self._waiting: set[int] = set()

    def stage(self, batch: Batch) -> None:
        if self._prove is not None:
            self._prove(batch)
            self._prove = None
        if self._name is not None and batch.ids is not None:
            batch = batch.with_ids(by_edge(batch.ids, self._name))
        self._staged.append(batch)
        self._staged_records += len(batch)
        if self._staged_records >= STAGED_LIMIT:
            self.seal()

    def seal(self) -> None:
        """What is staged may leave."""
        staged, self._staged, self._staged_records = self._staged, [], 0
        # An exchange mixes splits; elsewhere they are told apart.
        runs = [staged] if len(staged) <= 1 or not self._forward else _by_home(staged)
        for run in runs:
            if run:
                for portion in _portions(concatenate(run)):
                    for channel, part in self._router.route(portion):
                        self._unsent[channel].append(part)

    def broadcast(self, element: Element) -> None:
        """Into every channel, behind everything emitted so far."""
        self.seal()
        for unsent in self._unsent:
            unsent.append(element)

    def tell(self, mark: TimeMark) -> None:
        """As `broadcast`; a watermark takes the place of one right before it, so that they never pile up."""
        self.seal()
        for unsent in self._unsent:
            if isinstance(mark, Watermark) and unsent and isinstance(unsent[-1], Watermark):
                unsent[-1] = mark
            else:
                unsent.append(mark)

    def overtake(self, barrier: Barrier, capture: Callable[[Route, Batch | TimeMark], None], *, waiting: bool) -> None:
        """Put the barrier ahead of what is unsent, behind an earlier barrier. `waiting`: it was forwarded before, and
        is not here any more where it has left."""
        self.seal()
        for route, unsent in zip(self._routes, self._unsent, strict=True):
            place = _place(barrier.checkpoint, unsent)
            if place == len(unsent) and waiting:
                continue
            start = _behind_barriers(unsent, place)
            for element in islice(unsent, start, place):
                if isinstance(element, Batch | Watermark | Idle):
                    capture(route, element)
            if place < len(unsent):
                del unsent[place]
            unsent.insert(start, barrier)

    def drop(self, checkpoint: int) -> None:
        """The barrier of a checkpoint that was given up is of no use to anybody."""
        for unsent in self._unsent:
            if (place := _place(checkpoint, unsent)) < len(unsent):
                del unsent[place]

    def flush(self, wake: Callable[[], None], left: Callable[[Barrier], None]) -> bool:
        """Send what there is room for; whether nothing is left unsent. `wake` is called when there is room again."""
        empty = True
        for index, unsent in enumerate(self._unsent):
            if unsent and not self._send(index, unsent, wake, left):
                empty = False
        return empty

    def _send(
        self, index: int, unsent: deque[Element], wake: Callable[[], None], left: Callable[[Barrier], None]
    ) -> bool:
        channel = self._channels[index]
        while unsent:
            element = unsent[0]
            if not isinstance(element, Batch):
                channel.send(unsent.popleft())
                if isinstance(element, Barrier):
                    left(element)
                continue
            room = channel.room()
            # Half a channel at least, unless the batch is smaller: else a full mailbox trickles single records.
            if room < len(element) and room < channel.quota - channel.quota // 2:
                channel.notify_room(wake)
                return False
            if self._before_seen is not None:
                self._before_seen(element)
            if room >= len(element):
                channel.send(unsent.popleft())
            else:
                channel.send(element.slice(0, room))
                unsent[0] = element.slice(room, len(element))
        return True

    @property
    def fan_out(self) -> int:
        return len(self._channels)

    @property
    def unsent(self) -> int:
        """Records that wait for room, or for their input batch to be done."""
        waiting = (len(element) for unsent in self._unsent for element in unsent if isinstance(element, Batch))
        return self._staged_records + sum(waiting)


def _portions(batch: Batch) -> Iterable[Batch]:
    size = batch.estimated_bytes()
    if size <= PORTION_BYTES:
        return (batch,)
    step = max(1, len(batch) * PORTION_BYTES // size)
    return (batch.slice(start, min(start + step, len(batch))) for start in range(0, len(batch), step))


def _place(checkpoint: int, unsent: deque[Element]) -> int:
    """Where the barrier waits; the length if it does not."""
    for place, element in enumerate(unsent):
        if isinstance(element, Barrier) and element.checkpoint == checkpoint:
            return place
    return len(unsent)


def _behind_barriers(unsent: deque[Element], end: int) -> int:
    """The first place that is behind every barrier ahead of place `end`."""
    places = [place for place, element in enumerate(islice(unsent, end)) if isinstance(element, Barrier)]
    return places[-1] + 1 if places else 0


class Outputs:
    """All edges out of a subtask."""

    def __init__(self, outputs: Sequence[Output], wake: Callable[[], None]) -> None:
        self._outputs = outputs
        self._wake = wake
        self._leaving: dict[int, int] = {}
        self._fan_out = sum(output.fan_out for output in outputs)
        self._latest = 0
        """The latest checkpoint whose barrier was sent on; they come in increasing order."""
        self.departed: list[int] = []
        """Checkpoints whose barrier has left every channel; taken by the subtask."""

    def seal(self) -> None:
        for output in self._outputs:
            output.seal()

    def broadcast(self, element: Element) -> None:
        for output in self._outputs:
            output.broadcast(element)

    def forward(self, barrier: Barrier) -> None:
        self._begin(barrier.checkpoint)
        self.broadcast(barrier)

    def _begin(self, checkpoint: int) -> None:
        self._latest = checkpoint
        if self._fan_out:
            self._leaving[checkpoint] = self._fan_out
        else:
            self.departed.append(checkpoint)

    def overtake(self, barrier: Barrier, capture: Callable[[Route, Batch | TimeMark], None]) -> None:
        """Send it ahead of all that waits, whether it waits itself or not yet. Downstream, it overtakes too. Nothing is
        done if it has left everywhere, or was dropped: its time may be out just then."""
        waiting = barrier.checkpoint in self._leaving
        if not waiting:
            if barrier.checkpoint <= self._latest:
                return
            self._begin(barrier.checkpoint)
        ahead = msgspec.structs.replace(barrier, overtakes=True)
        for output in self._outputs:
            output.overtake(ahead, capture, waiting=waiting)
        self.flush()

    def drop(self, checkpoint: int) -> None:
        if self._leaving.pop(checkpoint, None) is not None:
            for output in self._outputs:
                output.drop(checkpoint)

    def flush(self) -> bool:
        """Whether nothing is left unsent."""
        empty = True
        for output in self._outputs:
            if not output.flush(self._wake, self._left):
                empty = False
        return empty

    def _left(self, barrier: Barrier) -> None:
        missing = self._leaving[barrier.checkpoint] - 1
        if missing:
            self._leaving[barrier.checkpoint] = missing
        else:
            del self._leaving[barrier.checkpoint]
            self.departed.append(barrier.checkpoint)

    @property
    def unsent(self) -> int:
        return sum(output.unsent for output in self._outputs)


def _by_home(batches: Sequence[Batch]) -> list[list[Batch]]:
    """Runs that can be joined without losing where their records belong."""
    return [list(run) for _, run in groupby(batches, lambda batch: (batch.home, batch.groups is None))]


def concatenate(batches: Sequence[Batch]) -> Batch:
    """One batch. A column that only some have: time-stamps are filled with None, the others are dropped."""
    if len(batches) == 1:
        return batches[0]
    same_split = len({batch.split for batch in batches}) == 1 and all(batch.origins is not None for batch in batches)
    grouped = all(batch.groups is not None for batch in batches)
    return Batch(
        _joined([batch.values for batch in batches]),
        _stamps(batches),
        None,
        _joined([batch.groups or () for batch in batches]) if grouped else None,
        _joined([batch.origins or () for batch in batches]) if same_split else None,
        batches[0].split,
        batches[0].home if len({batch.home for batch in batches}) == 1 else None,
        _ids(batches),
    )


def _joined(columns: Sequence[Sequence[Any]]) -> list[Any]:
    return list(chain.from_iterable(columns))


def _ids(batches: Sequence[Batch]) -> list[str | None] | None:
    if all(batch.ids is None for batch in batches):
        return None
    return _joined([batch.ids or (None,) * len(batch) for batch in batches])


def _stamps(batches: Sequence[Batch]) -> list[int | None] | None:
    if all(batch.timestamps is None for batch in batches):
        return None
    return _joined([batch.timestamps or (None,) * len(batch) for batch in batches])
