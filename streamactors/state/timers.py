"""Timers as keyed state: what every store of them offers, and the order in which they fire.

Invariant: a timer is pending from `set` until `delete` or `take`, whatever was drawn meanwhile; `take` alone decides
that it fires. So one that another deletes while both are due does not fire, and a snapshot between two of them holds
all that have not fired.

In the canonical format the timers of one domain are a map of each key's: (time, name) → True.
"""

from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush
from typing import Any, Final, Literal, Protocol

from streamactors.state.descriptors import MapState

Domain = Literal["event", "processing"]

TimerRow = tuple[int, int, Any, str]
"""(time, key group, key, name): a timer of one domain."""

HIDDEN: Final = "@"
"""What the names of states begin with that nobody can declare."""
_NAME: Final = f"{HIDDEN}timers."


class TimerState(MapState[tuple[int, str], bool]):
    """The declaration of the timers of one domain, which a backend binds as a `TimerStore`."""

    def __init__(self, domain: Domain) -> None:
        super().__init__(tuple[int, str], bool)
        self.domain = domain
        self.stored = self.name = _NAME + domain


def domain_of(name: str) -> Domain:
    """Of the state that has this name."""
    return "processing" if name == _NAME + "processing" else "event"


class TimerStore(Protocol):
    """The timers of one domain of one operator subtask. Times are in milliseconds since the epoch."""

    def set(self, key: Any, group: int, time: int, name: str) -> TimerRow:
        """No harm if it is set already. Raises StateAccessError outside of a call, UnserialisableKey."""

    def delete(self, key: Any, group: int, time: int, name: str) -> None:
        """No harm if there is none."""

    def earliest(self) -> int | None:
        """No timer is earlier; None: there is none. One at that very time there need not be."""

    async def bring(self, limit: int) -> None:
        """Bring some of the timers up to `limit` into memory, all that come next: then `draw` gives at least one, if
        any is left."""

    def draw(self, limit: int, count: int) -> list[TimerRow]:
        """Up to `count` of those in memory up to `limit`, in the order of their times. Each is to be taken or put back.
        Some may no longer be pending."""

    def put_back(self, rows: Iterable[TimerRow]) -> None:
        """They were drawn, and not taken."""

    def take(self, row: TimerRow) -> bool:
        """Whether it is pending; then it no longer is."""

    async def early(self, groups: range, limit: int) -> list[TimerRow]:
        """All those of some key groups up to `limit`, in the order of their times. Takes time by how many timers these
        groups have: for groups that are ahead of the others after a rescale."""


# ---------------------------------------------------------------------------------------------------------------- order
_SPAN_BITS: Final = 14
"""About 16 seconds."""
_SPARE: Final = 64


class TimeIndex:
    """Timers in the order of their times; those of one time in no particular one.

    Times are gathered in *spans* of 16,384 ms. Of the first span that has any, the times are a heap; the others wait
    unsorted, and a heap has their numbers. So nothing is ever sorted that has more than 16,384 items, but for the
    numbers of spans. What is gone from a span stays in the heaps until it comes up, or is most of them.
    """

    def __init__(self) -> None:
        self._spans: dict[int, dict[int, Any]] = {}
        """By number and time: the timer, or a dict of several."""
        self._order: list[int] = []
        self._first: int | None = None
        """The span whose times are `_times`."""
        self._times: list[int] = []

    def add(self, row: TimerRow) -> None:
        """No harm if it is there."""
        time = row[0]
        number = time >> _SPAN_BITS
        span = self._spans.get(number)
        if span is None:
            self._begin_span(number, row)
            return
        held = span.setdefault(time, row)
        if held is row:
            if number == self._first:
                self._push_time(span, time)
        elif type(held) is dict:
            held[row] = None
        elif held != row:
            span[time] = {held: None, row: None}

    def _begin_span(self, number: int, row: TimerRow) -> None:
        span = self._spans[number] = {row[0]: row}
        if len(self._order) > 2 * len(self._spans) + _SPARE:
            self._order = list(self._spans)
            heapify(self._order)
        else:
            heappush(self._order, number)
        if number == self._first:
            self._times = list(span)

    def _push_time(self, span: dict[int, Any], time: int) -> None:
        if len(self._times) > 2 * len(span) + _SPARE:
            self._times = list(span)
            heapify(self._times)
        else:
            heappush(self._times, time)

    def remove(self, row: TimerRow) -> None:
        """No harm if it is not there."""
        time = row[0]
        number = time >> _SPAN_BITS
        span = self._spans.get(number)
        held = None if span is None else span.get(time)
        if span is None or held is None:
            return
        if type(held) is dict:
            held.pop(row, None)
            if held:
                return
        elif held != row:
            return
        self._emptied(number, span, time)

    def _emptied(self, number: int, span: dict[int, Any], time: int) -> None:
        del span[time]
        if not span:
            del self._spans[number]

    def earliest(self) -> int | None:
        order, spans = self._order, self._spans
        while order:
            number = order[0]
            span = spans.get(number)
            if span is None:
                heappop(order)
                continue
            if number != self._first:
                self._first, self._times = number, list(span)
                if len(span) > 1:
                    heapify(self._times)
            times = self._times
            while times[0] not in span:
                heappop(times)
            return times[0]
        return None

    def take_first(self, limit: int, count: int) -> list[TimerRow]:
        """Take off the next `count` up to `limit`."""
        rows: list[TimerRow] = []
        while len(rows) < count:
            time = self.earliest()
            if time is None or time > limit or self._first is None:
                break
            number = self._first
            span = self._spans[number]
            held = span[time]
            if type(held) is dict:
                while held and len(rows) < count:
                    rows.append(held.popitem()[0])
                if held:
                    break
            else:
                rows.append(held)
            self._emptied(number, span, time)
        return rows

    def cut(self, excess: int) -> tuple[int, list[TimerRow]] | None:
        """Take off the last spans with `excess` timers or more: from which time on there are none any more, and what
        was there; None if there is nothing."""
        numbers = sorted(self._spans)
        gone: list[TimerRow] = []
        start = None
        while numbers and len(gone) < excess:
            start = numbers.pop()
            for held in self._spans.pop(start).values():
                gone += held if type(held) is dict else [held]
        return None if start is None else (start << _SPAN_BITS, gone)


def in_order(rows: Iterable[TimerRow]) -> list[TimerRow]:
    """By time."""
    return sorted(rows, key=_time)


def _time(row: TimerRow) -> int:
    return row[0]


def keys_of(rows: Sequence[TimerRow]) -> tuple[list[Any], list[int]]:
    """Their keys, and key groups."""
    return [row[2] for row in rows], [row[1] for row in rows]
