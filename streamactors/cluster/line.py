"""Control messages to one peer, in the order in which they were given.

Invariant: one call is under way at a time, and the next one takes all that has been given meanwhile, up to
`MOST_BYTES`; so nothing overtakes, and whoever gives never waits. Once the peer is lost, or the line closed, what is
given goes nowhere.
"""

import asyncio
from collections import deque
from typing import Final

from streamactors.cluster.delivery import Delivery
from streamactors.cluster.messages import Post, Vocabulary, bundled
from streamactors.errors import ConnectionLost

MOST_BYTES: Final = 256 << 10
"""Read in a few milliseconds."""


class Line:
    """`vocabulary`: of what is not given as a post already."""

    def __init__(self, delivery: Delivery, peer: int, vocabulary: Vocabulary) -> None:
        self._delivery = delivery
        self._peer = peer
        self._vocabulary = vocabulary
        self._waiting: deque[object] = deque()
        self.given = 0
        """Messages, so far."""
        self.taken = 0
        """By the peer, as far as is known."""
        self._progress = asyncio.Event()
        """Of the next bundle, or the end; then another one takes its place."""
        self._task: asyncio.Task[None] | None = None
        self._dead = False

    @property
    def last(self) -> object | None:
        """What was given last, if it waits yet: it may still be added to."""
        return self._waiting[-1] if self._waiting else None

    @property
    def idle(self) -> bool:
        return self._task is None

    def holds(self, message: object) -> bool:
        """Whether this very message waits yet."""
        return any(waiting is message for waiting in self._waiting)

    def give(self, message: object) -> None:
        if self._dead:
            return
        self._waiting.append(message)
        self.given += 1
        if self._task is None:
            self._begin()

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._send(), name=f"control to {self._peer}")
        self._task.add_done_callback(self._sent)

    async def _send(self) -> None:
        while self._waiting:
            posts = self._next()
            try:
                await self._delivery.deliver(self._peer, bundled(posts))
            except ConnectionLost:  # of which whoever made the delivery was told
                self.cut()
                return
            self.taken += len(posts)
            self._tell_progress()

    def _tell_progress(self) -> None:
        self._progress.set()
        self._progress = asyncio.Event()

    def _next(self) -> list[Post]:
        posts: list[Post] = []
        size = 0
        while self._waiting and size < MOST_BYTES:
            message = self._waiting.popleft()
            post = message if isinstance(message, Post) else self._vocabulary.post(message)
            posts.append(post)
            size += len(memoryview(post.data))
        return posts

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._task = None
        self._tell_progress()
        if not task.cancelled() and (error := task.exception()) is not None:
            self.cut()
            raise error
        if self._waiting:  # given when all was sent, and this task had still to end
            self._begin()

    def cut(self) -> None:
        """What waits goes nowhere, and neither does what is given later."""
        self._dead = True
        self._waiting.clear()
        self._tell_progress()

    async def flush(self) -> None:
        """Until all that was given so far is taken, or the line is dead."""
        given = self.given
        while self._task is not None and self.taken < given and not self._dead:
            await self._progress.wait()

    async def close(self) -> None:
        """No task is left."""
        self.cut()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
