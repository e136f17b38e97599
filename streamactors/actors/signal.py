"""One wake-up call per actor: whatever an actor may wait for sets the same signal."""

import asyncio


class Signal:
    """Level-triggered and self-clearing: a `set` before `wait` is not lost. One waiter at most."""

    __slots__ = ("_set", "_waiter")

    def __init__(self) -> None:
        self._set = False
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        if self._set:
            return
        self._set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Until `set` was called since the last `wait` returned."""
        if not self._set:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._set = False
