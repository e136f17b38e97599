"""The system's clock, and work that must not be cut short."""

import asyncio
import threading

import pytest

from streamactors.clock import SYSTEM, uninterrupted


async def test_blocking_work_runs_off_the_loop() -> None:
    def add(one: int, other: int) -> tuple[threading.Thread, int]:
        return threading.current_thread(), one + other

    thread, total = await SYSTEM.run_blocking(add, 1, other=2)
    assert thread is not threading.current_thread() and total == 3


async def test_time_and_chance() -> None:
    before, millis = SYSTEM.monotonic(), SYSTEM.time_ms()
    await SYSTEM.sleep(0.001)
    assert SYSTEM.monotonic() > before and SYSTEM.time_ms() >= millis > 1_600_000_000_000
    assert 0 <= SYSTEM.random() < 1
    assert len({SYSTEM.token() for _ in range(100)}) == 100 and len(SYSTEM.token()) == 16


async def test_uninterrupted_prefers_the_cancellation_to_the_error() -> None:
    go_on = asyncio.Event()

    async def fails() -> None:
        await go_on.wait()
        raise OSError

    task = asyncio.create_task(uninterrupted(fails()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_uninterrupted_waits_however_often_it_is_cancelled() -> None:
    go_on, ended = asyncio.Event(), []

    async def works() -> None:
        await go_on.wait()
        ended.append(True)

    task = asyncio.create_task(uninterrupted(works()))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]
