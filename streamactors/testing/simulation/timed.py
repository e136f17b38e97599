"""A flow that tells what is late: over crashes and rescales, no decision about that changes."""

import asyncio
import datetime as dt
from typing import Final

import msgspec

from streamactors.api.dataflow import Dataflow, KeyedStream, Stream
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


def timed_source(world: World, flow: Dataflow) -> Stream[Timed]:
    return timed_stream(world, flow, timed_events(world))


def timed_stream(world: World, flow: Dataflow, events: list[Timed]) -> Stream[Timed]:
    """One source, since with several the slowest would decide."""
    watermarks = Watermarks.bounded(_time_of, dt.timedelta(milliseconds=50))
    return flow.source("events", world.source([events]), watermarks=watermarks, parallelism=1)


def timed_by_key(world: World, flow: Dataflow) -> KeyedStream[str, Timed]:
    return timed_source(world, flow).key_by(_key_of)


def event_time(world: World) -> Dataflow:
    flow = Dataflow("event-time")
    timed_by_key(world, flow).process("judge", Judge).sink("out", world.sink())
    return flow


def mid_stream_time(world: World) -> Dataflow:
    """As `event_time`; the source knows of no time."""
    flow = Dataflow("mid-stream-time")
    source = flow.source("events", world.source([timed_events(world)]), parallelism=1)
    watermarks = Watermarks.bounded(_time_of, dt.timedelta(milliseconds=50))
    timed = source.with_timestamps(watermarks, uid="timed", parallelism=1)
    timed.key_by(_key_of).process("judge", Judge).sink("out", world.sink())
    return flow


# ---------------------------------------------------------------------------------------------------- aligned sources
def aligned_events(world: World) -> list[list[Timed]]:
    """Three splits, none with late records, of which one gets ahead of the others where it can."""
    draw = world.random("aligned")
    steps = (50, 50, 300)
    return [
        [Timed(100 * split + number, f"k{draw.randrange(12)}", step * number) for number in range(draw.randint(10, 30))]
        for split, step in enumerate(steps)
    ]


def _idling(world: World) -> bool:
    """Whether who has nothing is passed over: then its records may be late."""
    return world.random("idling").random() < 0.5


def aligned_time(world: World) -> Dataflow:
    """Splits of two sources wait for each other, and for some time have nothing to give."""
    flow = Dataflow("aligned-time")
    idle_after = dt.timedelta(milliseconds=20) if _idling(world) else None
    watermarks = Watermarks.bounded(
        _time_of, dt.timedelta(milliseconds=50), idle_after=idle_after, align=dt.timedelta(milliseconds=200)
    )
    first, second, third = aligned_events(world)
    both = flow.source("both", world.source({"first": first, "third": third}), watermarks=watermarks)
    other = flow.source("other", world.source({"second": second}), watermarks=watermarks)
    both.union(other).key_by(_key_of).process("judge", Judge).sink("out", world.sink())
    return flow


def nothing_late(outcome: Outcome) -> None:
    """Every record once; late ones only where idle splits are passed over."""
    wanted = [event.number for split in aligned_events(outcome.world) for event in split]
    found: list[Judged] = outcome.output()
    assert {judged.number for judged in found} == set(wanted), "records are lost"
    if outcome.exactly_once:
        assert len(found) == len(wanted), "records came twice"
        late = [judged.number for judged in found if judged.late]
        assert _idling(outcome.world) or not late, f"records {late} are late"


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
