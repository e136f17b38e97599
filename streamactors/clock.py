"""The one door to time, randomness and threads, so that a deterministic simulation can own them.

A `Clock` is handed down from `launch`; nothing else in the package imports `time`, `random`, `uuid` or `threading`.
"""

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Callable, Coroutine
from typing import ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Clock(Protocol):
    """Time in seconds (monotonic) and milliseconds since the epoch; randomness; blocking work off the loop."""

    def monotonic(self) -> float: ...
    def time_ms(self) -> int: ...
    def random(self) -> float: ...
    def token(self) -> str: ...
    async def sleep(self, seconds: float) -> None: ...
    async def run_blocking(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...


class SystemClock:
    """The real one."""

    monotonic = staticmethod(time.monotonic)
    random = staticmethod(random.random)

    def time_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def token(self) -> str:
        """Eight random bytes as hex: for names that must not collide between processes."""
        return os.urandom(8).hex()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def run_blocking(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.to_thread(fn, *args, **kwargs)


SYSTEM: Clock = SystemClock()


async def uninterrupted(operation: Coroutine[object, object, R]) -> R:
    """Await to the end even if cancelled meanwhile, because a thread at work can't be stopped; then be cancelled."""
    task = asyncio.ensure_future(operation)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):  # raised below, once the thread is done
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # seen: the cancellation comes first
        raise
