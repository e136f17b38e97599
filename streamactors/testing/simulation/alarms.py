"""A flow with timers: over crashes and rescales each of them fires, once, and not too early."""

import asyncio
from typing import Final

import msgspec

from streamactors.api.dataflow import Dataflow
from streamactors.operators.base import Context, KeyedOperator
from streamactors.state.descriptors import MapState
from streamactors.testing.simulation.checks import nothing_twice
from streamactors.testing.simulation.clock import EPOCH_MS
from streamactors.testing.simulation.result import Outcome
from streamactors.testing.simulation.timed import Timed, timed_by_key, timed_events
from streamactors.testing.simulation.world import World
from streamactors.time.timers import Timer

WAITS: Final = (0, 120, 700)
"""After a record's own time, in milliseconds: with the next watermarks, and in a crowd."""


class Rang(msgspec.Struct, frozen=True):
    """That timer `name` has fired; `early`: before its time had come."""

    domain: str
    name: str
    early: bool


class Remind(KeyedOperator[str, Timed, Rang]):
    """Of four event timers for each record one is deleted; its processing timer is due while the job still runs, or
    not."""

    waiting = MapState(str, int)

    async def process(self, event: Timed, ctx: Context[str, Rang], /) -> None:
        await asyncio.sleep(0.01 * (7 * event.number % 11))
        for wait in WAITS:
            name = f"{event.number}+{wait}"
            ctx.timers.event(event.time + wait, name)
            self.waiting[name] = event.time + wait
        ctx.timers.event(event.time + 10_000, "deleted")
        ctx.timers.delete(event.time + 10_000, "deleted")
        ctx.timers.processing(EPOCH_MS + 20 * event.number, str(event.number))

    def on_timer(self, timer: Timer, ctx: Context[str, Rang], /) -> None:
        if timer.domain == "processing":
            ctx.emit(Rang(timer.domain, timer.name, early=False))
            return
        assert self.waiting.pop(timer.name) == timer.timestamp == ctx.timestamp
        ctx.emit(Rang(timer.domain, timer.name, early=ctx.watermark < timer.timestamp))


def alarms(world: World) -> Dataflow:
    flow = Dataflow("timers")
    timed_by_key(world, flow).process("remind", Remind).sink("out", world.sink())
    return flow


def rang_once(outcome: Outcome) -> None:
    all_rang_once(outcome, timed_events(outcome.world), WAITS)


def all_rang_once(outcome: Outcome, events: list[Timed], waits: tuple[int, ...]) -> None:
    wanted = {f"{event.number}+{wait}" for event in events for wait in waits}
    found: list[Rang] = outcome.output()
    lost = wanted - {rang.name for rang in found if rang.domain == "event"}
    assert not lost, f"timers are lost: {sorted(lost)[:10]}"
    assert not any(rang.name == "deleted" for rang in found), "a timer that was deleted has fired"
    assert not any(rang.early for rang in found), "timers fired before their time"
    if outcome.exactly_once:
        nothing_twice([(rang.domain, rang.name) for rang in found])
        waiting = outcome.states["remind"]["waiting"]
        assert not waiting, f"timers that have not fired are waited for: {waiting}"
