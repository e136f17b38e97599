"""How a subtask's time is divided, and the parts of a checkpoint's time."""

import asyncio

import pytest

from streamactors.actors.signal import Signal
from streamactors.runtime.figures import SnapshotFigures, Stopwatch
from streamactors.runtime.load import HELD_BACK, IDLE, Load
from tests.runtime.feeds import until


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def waiting(load: Load, kind: int, time: Time, seconds: float) -> None:
    signal = Signal()
    task = asyncio.create_task(load.wait(kind, signal))
    await asyncio.sleep(0)
    time.now += seconds
    signal.set()
    await task


async def test_time_is_idle_held_back_or_busy() -> None:
    time = Time()
    load = Load(time)
    assert load.read() == (0.0, 0.0, 0.0)
    load.begin()
    await waiting(load, IDLE, time, 2.0)
    time.now += 3.0
    await waiting(load, HELD_BACK, time, 4.0)
    assert load.read() == (3.0, 2.0, 4.0)


@pytest.mark.parametrize(("kind", "told"), [(IDLE, (1.0, 5.0, 0.0)), (HELD_BACK, (1.0, 0.0, 5.0))])
async def test_a_wait_that_goes_on_counts(kind: int, told: tuple[float, float, float]) -> None:
    time, signal = Time(), Signal()
    load = Load(time)
    load.begin()
    time.now += 1.0
    task = asyncio.create_task(load.wait(kind, signal))
    await asyncio.sleep(0)
    time.now += 5.0
    assert load.read() == told
    task.cancel()
    await until(task.done)
    assert task.cancelled() and load.read() == told


async def test_waiting_for_the_start_does_not_count() -> None:
    """As after a long restore: the wait in which it is told to begin began before."""
    time, signal = Time(), Signal()
    load = Load(time)
    task = asyncio.create_task(load.wait(HELD_BACK, signal))
    await asyncio.sleep(0)
    time.now += 60.0
    signal.set()
    await task
    load.begin()
    time.now += 1.0
    assert load.read() == (1.0, 0.0, 0.0)


def test_parts_of_an_aligned_checkpoint() -> None:
    time = Time()
    watch = Stopwatch(time)
    watch.blocked()
    time.now += 5.0
    watch.blocked()
    time.now += 2.0
    time.now += 0.5
    watch.snapshot_taken(0.5)
    time.now += 3.0
    watch.stored()
    time.now += 1.0
    watch.acknowledged()
    assert watch.read() == SnapshotFigures(alignment=7.0, synchronous=0.5, asynchronous=3.0)


def test_parts_of_an_unaligned_checkpoint() -> None:
    """What it overtakes is captured until the last barrier has come."""
    time = Time()
    watch = Stopwatch(time)
    watch.snapshot_taken(0.25)
    watch.overtook()
    time.now += 4.0
    watch.stored()
    time.now += 2.0
    watch.acknowledged()
    time.now += 1.0
    watch.stored()
    assert watch.read() == SnapshotFigures(alignment=6.0, synchronous=0.25, asynchronous=7.0)


def test_one_without_a_snapshot() -> None:
    watch = Stopwatch(Time())
    watch.blocked()
    watch.acknowledged()
    assert watch.read() == SnapshotFigures()
