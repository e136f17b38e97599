"""A flow with windows: over crashes and rescales each record is in its window, once, or late; no window is given twice,
and none is left behind."""

import asyncio
import datetime as dt
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Final

import msgspec

from streamactors.api.dataflow import Dataflow
from streamactors.elements import OutputTag
from streamactors.operators.base import Context
from streamactors.operators.windows.base import Windowed, WindowOperator
from streamactors.state.aggregates import Collect
from streamactors.testing.simulation.checks import nothing_twice
from streamactors.testing.simulation.result import Outcome
from streamactors.testing.simulation.timed import Timed
from streamactors.testing.simulation.world import World
from streamactors.time.watermarks import Watermarks
from streamactors.time.windows import Session, Tumbling

SIZE: Final = 250
GAP: Final = 150
STEP: Final = 100
"""Milliseconds from one record to the next."""
BEHIND: Final = 22
"""Records; enough to be late for a window however many a source gives at a time."""
LATE: Final = OutputTag("late", Timed)


class Gathered(msgspec.Struct, frozen=True):
    """A window's records, by number; `kind` "late": one record that no window took."""

    kind: str
    key: str
    start: int
    end: int
    numbers: tuple[int, ...]


class Slowly(WindowOperator[str, Timed, Gathered]):
    """Takes its time, so that much is in flight."""

    async def process(self, window: Windowed[str, Iterable[Timed]], ctx: Context[str, Gathered], /) -> None:
        numbers = tuple(event.number for event in window.value)
        await asyncio.sleep(0.01 * (7 * numbers[0] % 11))
        ctx.emit(Gathered("session", window.key, window.start, window.end, numbers))


def window_events(world: World) -> list[Timed]:
    """Of each, it is certain whether it is late."""
    draw = world.random("windows")
    late = [number > BEHIND and number % 3 == 2 for number in range(draw.randint(40, 90))]
    times = [STEP * (number - BEHIND * behind) for number, behind in enumerate(late)]
    return [Timed(number, f"k{draw.randrange(5)}", time) for number, time in enumerate(times)]


def windowed(world: World) -> Dataflow:
    flow = Dataflow("windowed")
    watermarks = Watermarks.bounded(_time_of, dt.timedelta(milliseconds=50))
    source = flow.source("events", world.source([window_events(world)]), watermarks=watermarks, parallelism=1)
    keyed = source.key_by(_key_of)
    tumbling = keyed.window("tumbling", Tumbling(dt.timedelta(milliseconds=SIZE)), late=LATE)
    sessions = keyed.window("sessions", Session(dt.timedelta(milliseconds=GAP)))
    given = tumbling.aggregate(Collect[Timed]())
    results = given.map(_gathered).union(given.side_output(LATE).map(_put_out), sessions.process(Slowly))
    return results.sink("out", world.sink())


def _time_of(event: Timed) -> int:
    return event.time


def _key_of(event: Timed) -> str:
    return event.key


def _gathered(window: Windowed[str, list[Timed]]) -> Gathered:
    return Gathered("tumbling", window.key, window.start, window.end, tuple(event.number for event in window.value))


def _put_out(event: Timed) -> Gathered:
    return Gathered("late", event.key, event.time, event.time, (event.number,))


# --------------------------------------------------------------------------------------------------------------- check
def windowed_once(outcome: Outcome) -> None:
    events = window_events(outcome.world)
    late = {event.number for event in events if event.time != STEP * event.number}
    in_time = [event for event in events if event.number not in late]
    found: list[Gathered] = outcome.output()
    for kind, wanted in (("tumbling", in_time), ("session", in_time)):
        lost = {event.number for event in wanted} - {number for each in _of(found, kind) for number in each.numbers}
        assert not lost, f"{kind}: records are in no window: {sorted(lost)[:10]}"
    assert late == {number for each in _of(found, "late") for number in each.numbers}, "other records are late"
    if not outcome.exactly_once:
        return
    nothing_twice([(each.kind, each.key, each.start, each.numbers) for each in found])
    assert sorted(_of(found, "tumbling"), key=_place) == _tumbling(in_time)
    assert sorted(_of(found, "session"), key=_place) == _sessions(in_time)
    for uid in ("tumbling", "sessions"):
        left: dict[str, Any] = {name: held for name, held in outcome.states[uid].items() if held}
        assert not left, f"{uid}: windows have left behind {left}"


def _of(found: Iterable[Gathered], kind: str) -> list[Gathered]:
    return [each for each in found if each.kind == kind]


def _place(each: Gathered) -> tuple[str, int]:
    return each.key, each.start


def _tumbling(events: Iterable[Timed]) -> list[Gathered]:
    held: dict[tuple[str, int], list[int]] = defaultdict(list)
    for event in events:
        held[event.key, event.time // SIZE * SIZE].append(event.number)
    return [Gathered("tumbling", *at, at[1] + SIZE, tuple(numbers)) for at, numbers in sorted(held.items())]


def _sessions(events: list[Timed]) -> list[Gathered]:
    found = []
    for key in sorted({event.key for event in events}):
        own = [event for event in events if event.key == key]
        cuts = [0, *(at for at, (one, two) in enumerate(pairwise(own), 1) if two.time - one.time > GAP), len(own)]
        for start, stop in pairwise(cuts):
            numbers = tuple(event.number for event in own[start:stop])
            found.append(Gathered("session", key, own[start].time, own[stop - 1].time + GAP, numbers))
    return found
