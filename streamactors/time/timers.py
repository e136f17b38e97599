"""Timers, as users see them, and those of one operator subtask.

Invariants. `Timers` are reached only for the key in hand. An event timer is due once event time has come to it, for its
key group; a processing timer once the clock has. What is due and pending fires before anything later does: what is set
for a time that has been reached already makes `event_due` true, and fires as soon as the record in hand is done.
"""

from collections.abc import Callable
from typing import Final, Literal

import msgspec

from streamactors.elements import MAX_TIME, MIN_TIME, Watermark
from streamactors.errors import InvalidDataflow, StateAccessError, UnserialisableValue
from streamactors.state.backend import INACTIVE, Cursor
from streamactors.state.timers import Domain, TimerRow, TimerStore
from streamactors.time.progress import EventTime


class Timer(msgspec.Struct, frozen=True, gc=False):
    """One that fires. `timestamp`: the time that it was set for, in milliseconds since the epoch."""

    timestamp: int
    domain: Literal["event", "processing"]
    name: str = ""


class Timers:
    """The timers of the key in hand. There is one of each time and name: setting it again changes nothing.

    Times are milliseconds since the epoch. A timer for a time that has come already fires as soon as the record (or
    timer) in hand is done.
    """

    __slots__ = ()

    def event(self, timestamp: int, name: str = "") -> None:
        """Call on_timer when the watermark has come to `timestamp`. Raises StateAccessError outside of process and
        on_timer, InvalidDataflow where the stream has no watermarks, so that it would never fire."""
        raise StateAccessError(_NO_KEY)

    def processing(self, timestamp: int, name: str = "") -> None:
        """Call on_timer when the clock has come to `timestamp`."""
        raise StateAccessError(_NO_KEY)

    def delete(self, timestamp: int, name: str = "", *, domain: Literal["event", "processing"] = "event") -> None:
        """No harm if there is none."""
        raise StateAccessError(_NO_KEY)


_NO_KEY: Final = (
    "timers belong to a key: set and delete them in process and on_timer of a keyed operator, for the key in hand; not "
    "in open, close or another task"
)


_NO_WATERMARKS: Final = (
    "an event timer would never fire, since no source of this stream gives watermarks: give one by "
    "flow.source(…, watermarks=sa.Watermarks.…), or set a processing timer"
)


def _is_timer(timestamp: object, name: object) -> bool:
    return type(timestamp) is int and type(name) is str and MIN_TIME <= timestamp <= MAX_TIME


def _check_timer(timestamp: object, name: object) -> None:
    if not _is_timer(timestamp, name):
        raise UnserialisableValue(
            f"a timer for {timestamp!r}, named {name!r}: give a whole number of milliseconds since the epoch (64 "
            "bits) and a string"
        )


def _check_domain(domain: str) -> None:
    if domain not in ("event", "processing"):
        raise StateAccessError(f"timers.delete(domain={domain!r}): 'event' or 'processing'")


class NoTimers(Timers):
    """Of an operator that can't have any."""

    __slots__ = ("_why",)

    def __init__(self, why: str) -> None:
        self._why = why

    def event(self, timestamp: int, name: str = "") -> None:
        raise StateAccessError(self._why)

    def processing(self, timestamp: int, name: str = "") -> None:
        raise StateAccessError(self._why)

    def delete(self, timestamp: int, name: str = "", *, domain: Literal["event", "processing"] = "event") -> None:
        raise StateAccessError(self._why)


class TimerService(Timers):
    """The timers of one operator subtask. `time`: how far event time has come for it."""

    __slots__ = (
        "_clock_ms",
        "_cursor",
        "_early",
        "_has_watermarks",
        "_scoped",
        "_set_event",
        "_until",
        "_upset",
        "alarm_at",
        "closing",
        "event_due",
        "on_alarm",
        "stores",
        "time",
    )

    def __init__(self, stores: dict[Domain, TimerStore], cursor: Cursor, time: EventTime, *, watermarks: bool) -> None:
        self.stores = stores
        self._set_event = stores["event"].set
        self.time = time
        self._cursor = cursor
        self._has_watermarks = watermarks
        self._early: list[TimerRow] = []
        """Due by the time of their key groups, which are ahead of the others."""
        self._scoped: Watermark | None = None
        self._until = MIN_TIME
        """The last of those that are firing."""
        self._upset = False
        self.closing = False
        """Whether the keys in hand end, and the clock with them: a timer set by it now never fires (bounded input)."""
        self.event_due = True
        """Whether an event timer may be due: asked before every input."""
        self.alarm_at: int | None = None
        """When the subtask looks for processing timers; None: never."""
        self.on_alarm: Callable[[], None] = lambda: None
        """Told that it is to look earlier; the subtask's."""

    # ------------------------------------------------------------------------------------------------ what users call
    def event(self, timestamp: int, name: str = "") -> None:
        cursor = self._cursor
        group = cursor.group
        if group == INACTIVE or not self._has_watermarks or not _is_timer(timestamp, name):
            self._refuse(timestamp, name)
        row = self._set_event(cursor.key, group, timestamp, name)
        if timestamp < self._until:
            self._upset = True
        time = self.time
        if timestamp <= time.at(group):
            self.event_due = True
            if timestamp > time.reached:
                self._early.append(row)

    def processing(self, timestamp: int, name: str = "") -> None:
        cursor = self._key_in_hand(timestamp, name)
        if self.closing:
            return
        if timestamp < self._until:
            self._upset = True
        self.stores["processing"].set(cursor.key, cursor.group, timestamp, name)
        if self.alarm_at is None or timestamp < self.alarm_at:
            self.alarm_at = timestamp
            self.on_alarm()

    def delete(self, timestamp: int, name: str = "", *, domain: Literal["event", "processing"] = "event") -> None:
        _check_domain(domain)
        cursor = self._key_in_hand(timestamp, name)
        self.stores[domain].delete(cursor.key, cursor.group, timestamp, name)

    def _refuse(self, timestamp: int, name: str) -> None:
        self._key_in_hand(timestamp, name)
        raise InvalidDataflow(_NO_WATERMARKS)

    def _key_in_hand(self, timestamp: int, name: str) -> Cursor:
        cursor = self._cursor
        if cursor.group == INACTIVE:
            raise StateAccessError(_NO_KEY)
        _check_timer(timestamp, name)
        return cursor

    def check(self, timestamp: int, name: str, domain: Domain, *, delete: bool = False) -> None:
        """Raises what setting or deleting such a timer would, for whatever key."""
        _check_domain(domain)
        _check_timer(timestamp, name)
        if domain == "event" and not delete and not self._has_watermarks:
            raise InvalidDataflow(_NO_WATERMARKS)

    # --------------------------------------------------------------------------------------------------------- firing
    async def opened(self) -> None:
        """All are restored. Those of key groups that are ahead may be due by that."""
        for first, last, time in self.time.ahead:
            await self._look_ahead(range(first, last + 1), time)

    async def reach(self, mark: Watermark) -> None:
        """A watermark has come: those due by it are to fire before it goes on."""
        self.time.reach(mark)
        if mark.groups is not None and mark is not self._scoped:
            self._scoped = mark
            await self._look_ahead(range(mark.groups[0], mark.groups[1] + 1), mark.time_ms)

    async def _look_ahead(self, groups: range, limit: int) -> None:
        self._early += await self.stores["event"].early(groups, limit)
        self.event_due = self.event_due or bool(self._early)

    async def next_events(self, count: int) -> list[TimerRow]:
        """Event timers that are due, in the order of their times, to be fired by `firing` or put back; [] if there are
        none."""
        store, limit = self.stores["event"], self.time.reached
        if self._early:
            rows, self._early = self._early[:count], self._early[count:]
            return rows
        self.event_due = False
        first = store.earliest()
        if first is None or first > limit:
            return []
        await store.bring(limit)
        rows = store.draw(limit, count)
        self.event_due = bool(rows)
        return rows

    async def next_processing(self, now: int, count: int) -> list[TimerRow]:
        store = self.stores["processing"]
        await store.bring(now)
        return store.draw(now, count)

    def begin_slice(self, rows: list[TimerRow]) -> None:
        self._until = rows[-1][0]
        self._upset = False

    @property
    def upset(self) -> bool:
        """Whether one was set that comes before the last of those that are firing."""
        return self._upset

    def end_slice(self, domain: Domain, left: list[TimerRow]) -> None:
        """`left`: those that were not taken."""
        self._until = MIN_TIME
        if left:
            self.stores[domain].put_back(left)
        if domain == "event":
            self._early = [row for row in left if row[0] > self.time.reached] + self._early
