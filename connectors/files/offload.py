"""Blocking file operations, away from the event loop."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

R = TypeVar("R")


class Offload:
    """Runs one operation at a time, each to its end: one that a cancellation leaves behind is waited for by `settle`,
    so that no file is opened after its owner has closed everything."""

    def __init__(self) -> None:
        self._running: asyncio.Task[Any] | None = None

    async def run(self, operation: Coroutine[Any, Any, R]) -> R:
        task = asyncio.ensure_future(operation)
        self._running = task
        return await asyncio.shield(task)

    async def settle(self) -> None:
        if self._running is not None:
            await asyncio.wait([self._running])
            self._running = None
