"""Flows that call: calls take their time, fail, hang, are cancelled from within, and are in flight at any crash."""

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from streamactors.api.dataflow import Dataflow
from streamactors.errors import CallCancelled
from streamactors.operators.async_io.settings import BatchOf, Retry
from streamactors.operators.base import KeyedOperator
from streamactors.testing.simulation.events import events, key_of
from streamactors.testing.simulation.timed import Judge, timed_source
from streamactors.testing.simulation.world import World

T = TypeVar("T")

READ: Final = ("c", 3, 40)
TIMEOUT: Final = dt.timedelta(milliseconds=250)
"""Well above the 50 ms of a call: each step takes a little time, and a loop with many calls falls behind."""
RETRY: Final = Retry(
    12,
    initial=dt.timedelta(milliseconds=1),
    maximum=dt.timedelta(milliseconds=20),
    on=(ConnectionError, TimeoutError, CallCancelled),
)


class Service:
    """What is called, with its moods: drawn call by call."""

    def __init__(self, world: World, name: str) -> None:
        self._draw = world.random(f"service {name}")

    async def __call__(self, value: T) -> T:
        mood = self._draw.random()
        await asyncio.sleep(self._draw.random() * 0.04)
        if mood < 0.03:
            raise ConnectionError("refused")
        if mood < 0.05:
            await asyncio.sleep(3600)
        if mood < 0.06:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        await asyncio.sleep(self._draw.random() * 0.01)
        return value


def retried(world: World, name: str) -> tuple[Callable[[Any], Awaitable[Any]], dict[str, Any]]:
    return Service(world, name), {"timeout": TIMEOUT, "retry": RETRY}


def called(count: Callable[[], KeyedOperator[str, Any, Any]]) -> Callable[[World], Dataflow]:
    """In order, one by one and in micro-batches, behind a source and behind an exchange by key; counted as `count`
    counts."""

    def build(world: World) -> Dataflow:
        flow = Dataflow("called")
        source = flow.source("events", world.source(events(world, *READ)))
        first, options = retried(world, "first")
        one_by_one = source.map_async("first", first, capacity=world.random("capacity").choice((1, 4, 50)), **options)
        second, options = retried(world, "second")
        batch = BatchOf(world.random("batch").choice((1, 3, 8)), dt.timedelta(milliseconds=5))
        batched = one_by_one.key_by(key_of).map_async("second", second, capacity=3, batch=batch, **options)
        return batched.key_by(key_of).process("count", count).key_by(key_of).sink("out", world.sink())

    return build


def called_in_any_order(world: World) -> Dataflow:
    """No result passes a watermark, so nothing becomes late by it; one subtask, since with several the slowest would
    decide."""
    flow = Dataflow("called-in-any-order")
    call, options = retried(world, "unordered")
    chain = world.random("chain").random() < 0.5
    read = timed_source(world, flow)
    stream = read.map_async("call", call, capacity=20, ordered=False, parallelism=1, chain=chain, **options)
    stream.key_by(key_of).process("judge", Judge).sink("out", world.sink())
    return flow
