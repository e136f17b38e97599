"""A flow that keeps state around an await: calls of many keys at once, each with changes before and behind its pauses,
and with timers, which are calls as well. Some attempts fail or hang, and are made again."""

import asyncio
from random import Random
from typing import Final

from streamactors.api.dataflow import Dataflow
from streamactors.operators.async_io.keyed import AsyncKeyedOperator
from streamactors.operators.base import Context
from streamactors.state.descriptors import ListState, MapState, ValueState
from streamactors.testing.simulation.alarms import Rang, all_rang_once
from streamactors.testing.simulation.called import RETRY, TIMEOUT
from streamactors.testing.simulation.clock import EPOCH_MS
from streamactors.testing.simulation.result import Outcome
from streamactors.testing.simulation.timed import Timed, timed_events, timed_stream
from streamactors.testing.simulation.world import World
from streamactors.time.timers import Timer

WAITS: Final = (0, 700)
"""After a record's own time, in milliseconds: with the next watermarks, and in a crowd."""


class RemindLater(AsyncKeyedOperator[str, Timed, Rang]):
    """Of three event timers for each record one is deleted by a later call of the same record's key, or by its own."""

    timeout = TIMEOUT
    retry = RETRY
    waiting = MapState(str, int)
    seen = ListState(int)
    count = ValueState(int, default=0)

    def __init__(self, draw: Random, capacity: int) -> None:
        self._draw = draw
        self.capacity = capacity

    async def _pause(self) -> None:
        mood = self._draw.random()
        if mood < 0.02:
            raise ConnectionError("refused")
        if mood < 0.03:
            await asyncio.sleep(3600)
        if mood < 0.5:
            await asyncio.sleep(self._draw.random() * 0.01)

    async def process(self, event: Timed, ctx: Context[str, Rang], /) -> None:
        before = self.count.get()
        self.seen.append(event.number)
        await self._pause()
        for wait in WAITS:
            name = f"{event.number}+{wait}"
            ctx.timers.event(event.time + wait, name)
            self.waiting[name] = event.time + wait
        ctx.timers.event(event.time + 10_000, "deleted")
        await self._pause()
        ctx.timers.delete(event.time + 10_000, "deleted")
        ctx.timers.processing(EPOCH_MS + 20 * event.number, str(event.number))
        self.count.set(before + 1)
        ctx.emit(Rang("record", f"{event.number} is number {before + 1} of {ctx.key}", early=False))

    async def on_timer(self, timer: Timer, ctx: Context[str, Rang], /) -> None:
        await self._pause()
        if timer.domain == "processing":
            ctx.emit(Rang(timer.domain, timer.name, early=False))
            return
        expected = self.waiting.pop(timer.name, None) == timer.timestamp == ctx.timestamp
        await self._pause()
        ctx.emit(Rang(timer.domain, timer.name, early=not expected or ctx.watermark < timer.timestamp))


def called_events(world: World) -> list[Timed]:
    """Fewer than others have: each makes four calls, timers included."""
    return timed_events(world)[: world.random("called").randint(12, 30)]


def called_by_key(world: World) -> Dataflow:
    flow = Dataflow("called-by-key")
    capacity = world.random("capacity").choice((1, 3, 100))
    draw = world.random("pauses")
    keyed = timed_stream(world, flow, called_events(world)).key_by(lambda event: event.key)
    keyed.process("remind", lambda: RemindLater(draw, capacity)).sink("out", world.sink())
    return flow


def remembered(outcome: Outcome) -> None:
    """Each timer fires once; state and output are the fold of the input."""
    events = called_events(outcome.world)
    all_rang_once(outcome, events, WAITS)
    by_key: dict[str, list[int]] = {}
    for event in events:
        by_key.setdefault(event.key, []).append(event.number)
    found: list[Rang] = outcome.output()
    told = {rang.name for rang in found if rang.domain == "record"}
    lost = {str(event.number) for event in events} - {name.partition(" ")[0] for name in told}
    assert not lost, f"records are lost: {sorted(lost)[:10]}"
    if outcome.exactly_once:
        numbered = {
            f"{number} is number {place} of {key}"
            for key, numbers in by_key.items()
            for place, number in enumerate(numbers, 1)
        }
        assert told == numbered, f"records were counted amiss: {sorted(told - numbered)[:10]}"
        held = outcome.states["remind"]
        assert held["seen"] == by_key, "the lists of records are not the fold of the input"
        assert held["count"] == {key: len(numbers) for key, numbers in by_key.items()}, "the counts are not the fold"
