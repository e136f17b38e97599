"""Structured supervision: a group of actor tasks of which the first failure is reported, and which always ends empty.

Like `asyncio.TaskGroup`, but an actor's end is handed to `on_end` instead of cancelling the host's task, and waiting
for cancelled actors is bounded: user code may swallow a cancellation.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

log = logging.getLogger("streamactors.actors")


class Supervisor:
    """Owns tasks from `spawn` to `shut_down`."""

    def __init__(self, on_end: Callable[[str, BaseException | None], None]) -> None:
        """`on_end(name, error)`: an actor has ended by itself; error is None if it did so in peace."""
        self._on_end = on_end
        self._tasks: dict[asyncio.Task[None], str] = {}

    def spawn(self, name: str, actor: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(actor, name=name)
        self._tasks[task] = name
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        name = self._tasks.pop(task)
        if task.cancelled():
            return
        self._on_end(name, task.exception())

    async def shut_down(self, patience: float) -> list[str]:
        """Cancel and await every task, at most `patience` seconds; returns the names of those that did not end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=patience)
        stuck = [self._tasks[task] for task in tasks if not task.done()]
        for name in stuck:
            log.error("actor %s swallows CancelledError: it did not end within %.1f s", name, patience)
        return stuck
