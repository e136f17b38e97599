"""The governor, by a clock that only work moves: how long all actors together hold the loop in one turn."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from streamactors.actors.governor import BUDGET, Governor

SLICE = 0.0005


class WorkClock:
    """Time passes by work alone."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.now += seconds


async def turns_seen(clock: WorkClock, actors: list[Coroutine[Any, Any, None]], *, busy: float = 0.0) -> list[float]:
    """Runs the actors to their end beside a probe, which sees how long each turn of the loop took it."""
    tasks = [asyncio.create_task(actor) for actor in actors]
    lengths, before = [], clock.now
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        lengths.append(clock.now - before)
        clock.work(busy)
        before = clock.now
        assert len(lengths) < 100_000, "starved"
    for task in tasks:
        task.result()
    return lengths


async def actor(governor: Governor, clock: WorkClock, slices: int, done: Callable[[], None] = lambda: None) -> None:
    while slices:
        if governor.due():
            await governor.turn()
            continue
        clock.work(SLICE)
        slices -= 1
    done()


async def test_13_actors_hold_the_loop_no_longer_than_the_budget_and_a_slice() -> None:
    clock = WorkClock()
    governor = Governor(clock)
    lengths = await turns_seen(clock, [actor(governor, clock, 100) for _ in range(13)])
    assert max(lengths) <= BUDGET + SLICE + 1e-9
    assert sum(lengths) == pytest.approx(13 * 100 * SLICE)


async def test_actors_take_turns() -> None:
    clock = WorkClock()
    order: list[int] = []
    governor = Governor(clock)
    await turns_seen(clock, [actor(governor, clock, 40, functools.partial(order.append, n)) for n in range(5)])
    assert order == [0, 1, 2, 3, 4]


async def test_a_busy_loop_starves_nobody() -> None:
    """Others take longer than the whole budget in every turn: an actor still gets a slice in its own."""
    clock = WorkClock()
    governor = Governor(clock)
    lengths = await turns_seen(clock, [actor(governor, clock, 10) for _ in range(3)], busy=10 * BUDGET)
    assert len(lengths) < 100


async def test_an_actor_whose_budget_was_spent_by_another_stays_first() -> None:
    """Actors that are idle and woken come without waiting; they can't push one that waits back for ever."""
    clock = WorkClock()
    finished: list[bool] = []
    governor = Governor(clock)

    async def intruder() -> None:
        while not finished:
            await asyncio.sleep(0)
            if governor.due():
                await governor.turn()
            clock.work(2 * BUDGET)

    patient = actor(governor, clock, 20, lambda: finished.append(True))
    lengths = await turns_seen(clock, [intruder(), intruder(), patient])
    assert len(lengths) < 500


async def test_a_cancelled_waiter_leaves_the_queue() -> None:
    clock = WorkClock()
    governor = Governor(clock)
    assert not governor.due()
    clock.work(BUDGET)
    waiting = [asyncio.create_task(governor.turn()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    async with asyncio.timeout(60):
        await asyncio.gather(*waiting, return_exceptions=True)
    assert not governor._waiting


async def test_one_governor_per_loop() -> None:
    governor = Governor.of_running_loop()
    assert Governor.of_running_loop() is governor

    async def other() -> Governor:
        return Governor.of_running_loop()

    def in_another_loop() -> Governor:
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            return runner.run(other())

    assert await asyncio.to_thread(in_another_loop) is not governor
