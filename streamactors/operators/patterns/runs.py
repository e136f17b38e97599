"""What is kept of a key's partial matches: a buffer that they share (Agrawal et al., SASE+, 2008).

Runs form a tree: each has taken one event more than its parent, so that what several have in common is there once, and
each event is there once. A run is live while it may take another event; one that is not is kept while a live one
descends from it. What no live run reaches is dropped: nothing is left of partial matches that can't be completed.
"""

import copy
from collections.abc import Iterator, MutableMapping
from typing import Any, Final

import msgspec

NO_RUN: Final = -1


class Run(msgspec.Struct, frozen=True, gc=False):
    """A partial match: that of `parent`, and event `event`, taken by `stage` as its `count`-th.

    `ways`: a bit for each way on that is not closed yet; 0: not live. `fresh`: no event has come since.
    """

    parent: int
    event: int
    stage: int
    count: int
    timestamp: int
    started: int
    """The first event's timestamp."""
    first: int
    """The first event."""
    ways: int
    fresh: bool = True
    given: bool = False
    """It was a match by what did not come next."""


class Runs:
    """A key's runs and their events, by numbers that grow while any are left.

    `stored` and `events` are where they stay: read here, and written by `settle` alone, so that a step that fails half
    way has changed nothing.
    """

    def __init__(self, stored: MutableMapping[int, Run], events: MutableMapping[int, Any]) -> None:
        self._stored = stored
        self._events = events
        self._runs = dict(stored.items())
        self.started = {run.started for run in self._runs.values() if run.ways}
        """When those that were live at first began."""
        self.live_count = len(self.live())
        self._next = max(self._runs, default=NO_RUN) + 1
        self._next_event = max((run.event for run in self._runs.values()), default=-1) + 1
        self._values: dict[int, Any] = {}
        """Events that are not stored yet."""
        self._changed: set[int] = set()

    def arrive(self, value: Any) -> int:
        """The next event's number."""
        event = self._next_event
        self._next_event += 1
        self._values[event] = value
        return event

    def value(self, event: int) -> Any:
        return self._values[event] if event in self._values else self._events[event]

    def live(self) -> list[tuple[int, Run]]:
        return [(number, run) for number, run in self._runs.items() if run.ways]

    def is_live(self, number: int) -> bool:
        return bool(self._runs[number].ways)

    def add(self, run: Run) -> int:
        number = self._next
        self._next += 1
        self.change(number, run)
        return number

    def change(self, number: int, run: Run) -> None:
        before = self._runs.get(number)
        self.live_count += bool(run.ways) - bool(before is not None and before.ways)
        self._runs[number] = run
        self._changed.add(number)

    def close(self, number: int) -> None:
        self.change(number, msgspec.structs.replace(self._runs[number], ways=0, fresh=False))

    def close_before(self, first: int) -> None:
        """All that begin before that event."""
        for number, run in self.live():
            if run.first < first:
                self.close(number)

    def path(self, number: int) -> tuple[Run, ...]:
        """From the first event on."""
        return tuple(self._up(number))[::-1]

    def _up(self, number: int) -> Iterator[Run]:
        while number != NO_RUN:
            run = self._runs[number]
            yield run
            number = run.parent

    def copy(self) -> "Runs":
        """For taking back what a step has changed, as long as nothing is settled."""
        made = copy.copy(self)
        made._runs, made._values, made._changed = self._runs.copy(), self._values.copy(), self._changed.copy()
        return made

    # ------------------------------------------------------------------------------------------------------- storing
    def settle(self) -> None:
        """Store what is live, and drop what no live run reaches."""
        if self._changed:
            self._drop(self._runs.keys() - self._reached())
            for number in sorted(self._changed & self._runs.keys()):
                self._stored[number] = self._runs[number]
                self._store_event(self._runs[number].event)
        self._changed.clear()
        self._values.clear()

    def _reached(self) -> set[int]:
        reached: set[int] = set()
        for number, _ in self.live():
            while number != NO_RUN and number not in reached:
                reached.add(number)
                number = self._runs[number].parent
        return reached

    def _drop(self, numbers: set[int]) -> None:
        gone = {self._runs.pop(number).event for number in numbers}
        if not gone:
            return
        for number in sorted(numbers):
            self._stored.pop(number, None)
        for event in sorted(gone - {run.event for run in self._runs.values()}):
            self._events.pop(event, None)

    def _store_event(self, event: int) -> None:
        if event in self._values:
            self._events[event] = self._values.pop(event)
