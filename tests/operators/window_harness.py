"""A window step without a job around it, and a plain model of what it is to do, record by record."""

import datetime as dt
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import streamactors as sa
from streamactors.elements import MAX_TIME, MIN_TIME, Batch, Watermark
from streamactors.operators.base import LinkContext, OperatorContext
from streamactors.operators.windows.contents import ContentsSpec, aggregating
from streamactors.operators.windows.link import WindowLink
from streamactors.operators.windows.spec import Windowing, WindowSpec
from streamactors.state.backend import KeyedBackend, StateBlock
from streamactors.state.heap.backend import HeapBackend
from streamactors.state.key_groups import KeyGroupRange, key_group
from streamactors.time.progress import EventTime
from streamactors.time.windows import Window

GROUPS = KeyGroupRange(0, 4)
LATE = sa.OutputTag("late", object)
DEAD = sa.OutputTag("dead", sa.DeadLetter)

Record = tuple[str, int, Any]
"""(key, time-stamp, value)."""


def milliseconds(count: int) -> dt.timedelta:
    return dt.timedelta(milliseconds=count)


def windowing(
    assigner: sa.WindowAssigner, trigger: sa.Trigger | None = None, *, lateness: int = 0, late: Any = LATE
) -> Windowing:
    return Windowing.of("w", assigner, trigger, milliseconds(lateness), late if assigner.timed else None)


class Step:
    """A window step of one subtask, driven by hand. `results`, `late` and `dead` hold what it has put out."""

    def __init__(
        self,
        how: Windowing,
        contents: ContentsSpec | None = None,
        operator: Callable[[], Any] | None = None,
        *,
        backend: KeyedBackend | None = None,
        on_error: Any = "fail",
        time: EventTime | None = None,
        interrupted: Callable[[], bool] = bool,
    ) -> None:
        self.now = 0
        self.backend = backend or HeapBackend(GROUPS, len(GROUPS), uid="w")
        self.time = time or EventTime(groups=range(len(GROUPS)))
        self.operator = OperatorContext(uid="w", subtask=0, parallelism=1)
        context = LinkContext(
            "w",
            "w",
            self.operator,
            backend=self.backend,
            time=self.time,
            time_ms=lambda: self.now,
            interrupted=interrupted,
        )
        spec = WindowSpec(how, contents or aggregating(sa.Collect[Any]()), operator, on_error)
        link = spec.link(context)
        assert isinstance(link, WindowLink)
        self.link = link
        self.results: list[tuple[Any, int | None]] = []
        self.late: list[Any] = []
        self.dead: list[sa.DeadLetter] = []

    async def put(self, *records: Record) -> list[Any]:
        """One batch; what it has put out."""
        keys = [key for key, _, _ in records]
        stamps = [time for _, time, _ in records]
        batch = Batch(list(records), stamps, keys, [key_group(key, len(GROUPS)) for key in keys])
        return await self.put_batch(batch)

    async def put_batch(self, batch: Batch) -> list[Any]:
        return self._take(await self.link.process(batch))

    async def advance(self, watermark: int) -> list[Any]:
        mark = Watermark(watermark)
        found: list[Any] = []
        await self.link.timers.reach(mark)
        while rows := await self.link.timers.next_events(3):
            found += self._take(await self.link.fire("event", rows))
        self.time.on(mark)
        return found

    async def clock(self, now: int) -> list[Any]:
        self.now = now
        found: list[Any] = []
        while rows := await self.link.timers.next_processing(now, 3):
            found += self._take(await self.link.fire("processing", rows))
        return found

    def _take(self, batch: Batch | None) -> list[Any]:
        sides, self.link.sides = self.link.sides, {}
        self.late += sides["late"].values if "late" in sides else []
        self.dead += sides["dead"].values if "dead" in sides else []
        if batch is None:
            return []
        stamps = batch.timestamps or [None] * len(batch)
        self.results += zip(batch.values, stamps, strict=True)
        return list(batch.values)

    def left(self) -> dict[str, list[Any]]:
        """What lies in its states and timers."""
        found: dict[str, list[Any]] = {
            name: list(self.backend.scan(name)) for name in self.backend.declarations if not name.startswith("@")
        }
        for domain, store in self.link.timers.stores.items():
            rows = store.draw(MAX_TIME, 1000)
            store.put_back(rows)
            found[domain] = list(rows)
        return {name: entries for name, entries in found.items() if entries}

    def snapshot(self) -> tuple[dict[str, Any], list[StateBlock]]:
        snapshot = self.backend.begin_snapshot(1)
        blocks = []
        while (block := snapshot.next_block()) is not None:
            blocks.append(block)
        return self.backend.schemas(), blocks


# --------------------------------------------------------------------------------------------------------------- model
@dataclass
class Held:
    values: list[Any] = field(default_factory=list)
    unfired: int = 0
    tick: int | None = None


class Model:
    """Takes one record at a time, looks through all windows for everything, and knows nothing of batches or timers."""

    def __init__(self, how: Windowing) -> None:
        self.how = how
        self.watermark = MIN_TIME
        self.now = 0
        self.windows: dict[str, dict[Window, Held]] = {}
        self.late: list[Any] = []

    def put(self, records: Iterable[Record]) -> list[sa.Windowed[Any, Any]]:
        return [result for record in records for result in self._put(record)]

    def _put(self, record: Record) -> list[sa.Windowed[Any, Any]]:
        key, time, _ = record
        assigned = self.how.assigner.assign(time)
        held = self.windows.setdefault(key, {})
        if self.how.assigner.merging:
            assigned = [self._merged(held, assigned[0])]
        wanted = [window for window in assigned if not self._gone(window)]
        if assigned and not wanted:
            self.late.append(record)
        return [result for window in wanted for result in self._add(key, window, record)]

    def _merged(self, held: dict[Window, Held], new: Window) -> Window:
        met = sorted(window for window in held if window.start <= new.end and new.start <= window.end)
        into = Window(min([new.start, *(each.start for each in met)]), max([new.end, *(each.end for each in met)]))
        if met and not self._gone(into):
            parts = [held.pop(window) for window in met]
            ticks = [part.tick for part in parts if part.tick is not None]
            values = [value for part in parts for value in part.values]
            held[into] = Held(values, sum(part.unfired for part in parts), min(ticks, default=None))
        return into

    def _gone(self, window: Window) -> bool:
        return self.how.assigner.timed and window.end - 1 + self.how.lateness <= self.watermark

    def _add(self, key: str, window: Window, record: Record) -> list[sa.Windowed[Any, Any]]:
        trigger = self.how.trigger
        held = self.windows[key].setdefault(window, Held())
        held.values.append(record)
        held.unfired += 1
        over = window.end - 1 <= self.watermark
        if (trigger.at_end and over) or (trigger.records is not None and held.unfired >= trigger.records):
            return [self._fire(key, window)]
        if trigger.period is not None and not (trigger.at_end and over) and held.tick is None:
            held.tick = (self.now // trigger.period + 1) * trigger.period
        return []

    def _fire(self, key: str, window: Window) -> sa.Windowed[Any, Any]:
        held = self.windows[key][window]
        held.unfired, held.tick = 0, None
        result = sa.Windowed[Any, Any](key, window.start, window.end, list(held.values))
        if self.how.trigger.purges:
            del self.windows[key][window]
        return result

    def advance(self, watermark: int) -> list[sa.Windowed[Any, Any]]:
        before, self.watermark = self.watermark, watermark
        results = []
        for key, held in self.windows.items():
            for window in sorted(held):
                if self._fires_by_time(held[window], window, before):
                    results.append(self._fire(key, window))
                if self._gone(window):
                    held.pop(window, None)
        return results

    def _fires_by_time(self, held: Held, window: Window, before: int) -> bool:
        trigger = self.how.trigger
        if trigger.at_end:
            return before < window.end - 1 <= self.watermark
        waits = held.tick is not None or (trigger.records is not None and held.unfired > 0)
        return self._gone(window) and waits

    def clock(self, now: int) -> list[sa.Windowed[Any, Any]]:
        self.now = now
        due = [
            (key, window)
            for key, held in self.windows.items()
            for window, each in held.items()
            if each.tick is not None and each.tick <= now
        ]
        return [self._fire(key, window) for key, window in due]

    @property
    def left(self) -> int:
        return sum(map(len, self.windows.values()))


def in_order(results: Sequence[sa.Windowed[Any, Any]]) -> list[Any]:
    """Those of one window in the order in which they came; windows in no promised one."""
    rows = [(result.key, result.start, result.end, list(result.value)) for result in results]
    return sorted(rows, key=lambda row: row[:3])
