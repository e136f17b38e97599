"""A set is never lost, whenever it comes."""

import asyncio

import pytest

from streamactors.actors.signal import Signal


async def test_set_before_wait() -> None:
    signal = Signal()
    signal.set()
    signal.set()
    await signal.wait()


async def test_wait_clears() -> None:
    signal = Signal()
    signal.set()
    await signal.wait()
    waiting = asyncio.create_task(signal.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    signal.set()
    await waiting


async def test_a_cancelled_waiter_takes_no_signal_with_it() -> None:
    signal = Signal()
    waiting = asyncio.create_task(signal.wait())
    await asyncio.sleep(0)
    signal.set()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await signal.wait()


async def test_a_set_between_the_wake_up_and_the_waking_is_seen_by_who_wakes() -> None:
    signal = Signal()
    seen: list[str] = []
    news: list[str] = []

    async def wait() -> None:
        await signal.wait()
        seen.extend(news)

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    signal.set()
    news.append("later")
    signal.set()
    await waiting
    assert seen == ["later"]
