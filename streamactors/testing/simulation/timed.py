"""A flow that tells what is late: over crashes and rescales, no decision about that changes."""

import asyncio
import datetime as dt
from typing import Final

import msgspec

from streamactors.api.dataflow import Dataflow
from streamactors.operators.base import Context, KeyedOperator
from streamactors.state.descriptors import ValueState
from streamactors.testing.simulation.result import Outcome
from streamactors.testing.simulation.world import World
from streamactors.time.watermarks import Watermarks

LATE_BY: Final = 9
"""Records; a source gives at most 8 at a time, and tells the watermark after these."""


class Timed(msgspec.Struct, frozen=True):
    """Record `number`; its `time` in milliseconds grows with the number, but for those that are late."""

    number: int
    key: str
    time: int


class Judged(msgspec.Struct, frozen=True):
    """Whether it came behind a watermark that promised that there was no such record any more."""

    number: int
    late: bool


class Judge(KeyedOperator[str, Timed, Judged]):
    """It keeps state, so that its event time is that of key groups; and takes its time, so that its subtasks are not
    equally far, and much is in flight."""

    seen = ValueState(int, default=0)

    async def process(self, event: Timed, ctx: Context[str, Judged], /) -> None:
        await asyncio.sleep(0.01 * (7 * event.number % 11))
        self.seen.set(self.seen.get() + 1)
        ctx.emit(Judged(event.number, event.time <= ctx.watermark))


def timed_events(world: World) -> list[Timed]:
    """Of each, it is certain whether it is late, however they are read: two of three never are, and one always is."""
    draw = world.random("timed")
    late = [number > LATE_BY and number % 3 == 2 for number in range(draw.randint(30, 80))]
    times = [100 * (number - LATE_BY * late) for number, late in enumerate(late)]
    return [Timed(number, f"k{draw.randrange(12)}", time) for number, time in enumerate(times)]


def event_time(world: World) -> Dataflow:
    """One source, since with several the slowest would decide."""
    flow = Dataflow("event-time")
    watermarks = Watermarks.bounded(_time_of, dt.timedelta(milliseconds=50))
    source = flow.source("events", world.source([timed_events(world)]), watermarks=watermarks, parallelism=1)
    source.key_by(_key_of).process("judge", Judge).sink("out", world.sink())
    return flow


def _time_of(event: Timed) -> int:
    return event.time


def _key_of(event: Timed) -> str:
    return event.key


def judged_as_ever(outcome: Outcome) -> None:
    wanted = {event.number: event.time != 100 * event.number for event in timed_events(outcome.world)}
    found: list[Judged] = outcome.output()
    assert wanted.keys() == {judged.number for judged in found}, "records are lost"
    if not outcome.exactly_once:
        return
    assert len(found) == len(wanted), "records came twice"
    wrong = [judged for judged in found if judged.late != wanted[judged.number]]
    late, missed = [each.number for each in wrong if each.late], [each.number for each in wrong if not each.late]
    assert not late, f"records {late} became late"
    assert not missed, f"late records {missed} were taken for punctual ones"
