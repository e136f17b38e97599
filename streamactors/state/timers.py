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


def holds_timers(name: str) -> bool:
    """Whether the state of this name does."""
    return name.startswith(_NAME)


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

    def pending(self, row: TimerRow) -> bool:
        """Whether there is one. Blocks for what is not in memory."""

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

    Where there are few timers together, tuples hold them: the garbage collector does not walk through tuples of what it
    need not walk through, and dicts for each would be most of what it walks.
    """

    def __init__(self) -> None:
        self._spans: dict[int, _Few | _ByTime] = {}
        """By number. The first one, whose times are in the heap, is by time."""
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
        elif isinstance(span, tuple):
            if row not in span:
                self._spans[number] = (*span, row) if len(span) < _FEW else _by_time((*span, row))
        elif _put(span, row) and number == self._first:
            self._push_time(span, time)

    def _begin_span(self, number: int, row: TimerRow) -> None:
        self._spans[number] = (row,)
        if len(self._order) > 2 * len(self._spans) + _SPARE:
            self._order = list(self._spans)
            heapify(self._order)
        else:
            heappush(self._order, number)
        if number == self._first:
            self._times = list(self._opened(number))

    def _opened(self, number: int) -> "_ByTime":
        span = self._spans[number]
        if isinstance(span, tuple):
            span = self._spans[number] = _by_time(span)
        return span

    def _push_time(self, span: "_ByTime", time: int) -> None:
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
        if isinstance(span, tuple):
            self._set(number, _without(span, row))
        elif span is not None and (held := span.get(time)) is not None:
            if held == row:
                self._emptied(number, span, time)
            elif type(held) is dict:
                held.pop(row, None)
                if not held:
                    self._emptied(number, span, time)
            elif not _is_one(held):
                span[time] = _unwrapped(_without(held, row))

    def _set(self, number: int, span: "_Few") -> None:
        if span:
            self._spans[number] = span
        else:
            del self._spans[number]

    def _emptied(self, number: int, span: "_ByTime", time: int) -> None:
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
                span = self._opened(number)
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
            span: _ByTime = self._spans[number]  # type: ignore[assignment]  # the first one is
            held = span[time]
            if type(held) is not dict and _is_one(held):
                rows.append(held)
            else:
                taken, left = _split(held, count - len(rows))
                rows += taken
                if left:
                    span[time] = left
                    break
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
            span = self._spans.pop(start)
            for held in [span] if isinstance(span, tuple) else span.values():
                gone += _split(held, len(held))[0]
        return None if start is None else (start << _SPAN_BITS, gone)


# A span: few timers, or by time. What is held at a time: one timer, or few, or very many.
_FEW: Final = 8
_Few = tuple[TimerRow, ...]
_ByTime = dict[int, Any]


def _is_one(held: Any) -> bool:
    """A timer begins with a time, several begin with a timer."""
    return type(held[0]) is int


def _by_time(rows: Iterable[TimerRow]) -> _ByTime:
    span: _ByTime = {}
    for row in rows:
        _put(span, row)
    return span


def _put(span: _ByTime, row: TimerRow) -> bool:
    """Whether its time is new there."""
    held = span.setdefault(row[0], row)
    if held is row:
        return True
    if type(held) is dict:
        held[row] = None
    elif _is_one(held):
        if held != row:
            span[row[0]] = (held, row)
    elif row not in held:
        span[row[0]] = (*held, row) if len(held) < _FEW else dict.fromkeys((*held, row))
    return False


def _without(few: _Few, row: TimerRow) -> _Few:
    if row not in few:
        return few
    place = few.index(row)
    return few[:place] + few[place + 1 :]


def _unwrapped(few: _Few) -> TimerRow | _Few:
    return few[0] if len(few) == 1 else few


def _split(held: Any, count: int) -> tuple[Sequence[TimerRow], Any]:
    """The next `count` that are held there, and what is left; empty if nothing is."""
    if type(held) is dict:
        return [held.popitem()[0] for _ in range(min(count, len(held)))], held
    if _is_one(held):
        return (held,), ()
    return held[:count], _unwrapped(held[count:]) if len(held) > count else ()


def in_order(rows: Iterable[TimerRow]) -> list[TimerRow]:
    """By time."""
    return sorted(rows, key=_time)


def _time(row: TimerRow) -> int:
    return row[0]


def keys_of(rows: Sequence[TimerRow]) -> tuple[list[Any], list[int]]:
    """Their keys, and key groups."""
    return [row[2] for row in rows], [row[1] for row in rows]
