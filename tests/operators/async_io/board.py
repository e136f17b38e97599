"""Calls that a test lets end one by one."""

import asyncio
from collections.abc import Iterable
from typing import Any


class Board:
    """`await board(value)` gives `value` once the test says so; each value may be called again."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        """All that were begun, in order."""
        self.most = 0
        """How many ran at once."""
        self.free = False
        """Whether calls end at once."""
        self.cancelled: list[Any] = []
        self._running: dict[Any, asyncio.Future[Any]] = {}

    @property
    def running(self) -> list[Any]:
        return list(self._running)

    async def __call__(self, value: Any) -> Any:
        self.calls.append(value)
        if self.free:
            return value
        future = asyncio.get_running_loop().create_future()
        self._running[value] = future
        self.most = max(self.most, len(self._running))
        try:
            return await future
        except asyncio.CancelledError:
            self.cancelled.append(value)
            raise
        finally:
            if self._running.get(value) is future:
                del self._running[value]

    def finish(self, *values: Any) -> None:
        for value in values:
            self._running[value].set_result(value)

    def fail(self, value: Any, error: Exception) -> None:
        self._running[value].set_exception(error)

    def cancel(self, value: Any) -> None:
        self._running[value].cancel()

    def finish_all(self, values: Iterable[Any] | None = None) -> None:
        """These (or all that run now), and from now on every one."""
        self.free = True
        self.finish(*(self.running if values is None else values))
