"""Structured supervision: a group of actors of which the first failure is reported, and which always ends empty.

Like `asyncio.TaskGroup`, but an actor's end is handed to `on_end` instead of cancelling the host's task, and waiting
for cancelled actors is bounded: user code may swallow a cancellation.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from streamactors.errors import StreamactorsError

log = logging.getLogger("streamactors.actors")


class Actor(Protocol):
    async def run(self) -> None:
        """Its life; cancelled at most once."""

    async def close(self) -> None:
        """Release everything, however `run` has ended. Not cancelled by the supervisor."""


class Supervisor:
    """Owns actors from `spawn` to `shut_down`."""

    def __init__(self, on_end: Callable[[str, BaseException | None], None]) -> None:
        """`on_end(name, error)`, once per actor that ends by itself: at once when it fails, before it closes, since
        that may take time; with None when it has ended in peace, and released everything."""
        self._on_end = on_end
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._closing: set[str] = set()
        self._told: set[str] = set()
        self._shutting_down = False

    def spawn(self, name: str, actor: Actor) -> None:
        task = asyncio.get_running_loop().create_task(self._live(name, actor), name=name)
        self._tasks[task] = name
        task.add_done_callback(self._ended)

    async def _live(self, name: str, actor: Actor) -> None:
        try:
            await actor.run()
        except BaseException as error:
            if not isinstance(error, asyncio.CancelledError):
                self._tell(name, error)
            elif not self._shutting_down:
                self._tell(name, _cancelled_by_others(name, error))
            await self._close_after(name, actor, error)
            raise
        self._closing.add(name)
        await actor.close()

    async def _close_after(self, name: str, actor: Actor, error: BaseException) -> None:
        """What fails on closing must not hide why it came to that."""
        self._closing.add(name)
        try:
            await actor.close()
        except Exception as closing:
            log.exception("%s: closing failed too, after: %r", name, error)
            error.add_note(f"closing failed too: {type(closing).__name__}: {closing}")

    def _ended(self, task: asyncio.Task[None]) -> None:
        name = self._tasks.pop(task)
        if not task.cancelled():
            self._tell(name, task.exception())
        elif not self._shutting_down:
            self._tell(name, _cancelled_by_others(name, asyncio.CancelledError("while it closed")))

    def _tell(self, name: str, error: BaseException | None) -> None:
        if name not in self._told:
            self._told.add(name)
            self._on_end(name, error)

    async def shut_down(self, patience: float) -> list[str]:
        """Cancel what runs, and await everything, at most `patience` seconds; returns the names of those that did not
        end."""
        self._shutting_down = True
        tasks = list(self._tasks)
        for task in tasks:
            if self._tasks[task] not in self._closing:
                task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=patience)
        stuck = [self._tasks[task] for task in tasks if not task.done()]
        for name in stuck:
            log.error(
                "actor %s did not end within %.1f s of its cancellation: its code swallows CancelledError, or hangs in "
                "close", name, patience
            )  # fmt: skip
        return stuck


def _cancelled_by_others(name: str, error: asyncio.CancelledError) -> StreamactorsError:
    """Such as a task or a client that user code awaits, and that somebody else has cancelled."""
    failure = StreamactorsError(f"{name} was cancelled from within: something that its code awaited was cancelled")
    failure.__cause__ = error
    return failure


async def despite_cancellation(work: Coroutine[Any, Any, None]) -> None:
    """Await clean-up that must not be cut short; a cancellation that comes meanwhile follows it."""
    task = asyncio.get_running_loop().create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled() and (failure := task.exception()) is not None:
            log.error("clean-up failed: %s", failure, exc_info=failure)
        raise cancelled
    task.result()
