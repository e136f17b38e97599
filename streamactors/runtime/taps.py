"""Live output of a step, for whoever looks on in this process: taps on the running subtasks, and what they feed.

Invariants. The job never waits for a subscriber: what does not fit its buffer pushes the oldest out, and the subscriber
is told how many it has lost before it gets anything later. A tap delivers nothing once its attempt has ended. Where
nobody subscribes, nothing of this is in the way of a record.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, Protocol

from streamactors.elements import Batch, TimeMark
from streamactors.errors import InvalidConfig, NoSuchStep, SubscriptionLagged
from streamactors.graph.physical import PhysicalPlan
from streamactors.operators.sink import SinkSpec

IN_A_ROW: Final = 256


class Receiver(Protocol):
    """What a link's output goes to."""

    def stage(self, batch: Batch) -> None: ...
    def tell(self, mark: TimeMark) -> None: ...


class Subscription(AsyncIterator[Any]):
    """What step `uid` emits (to side output `tag`), one value after another, from all of its subtasks.

    Outlives attempts. At its end what is buffered still comes, then StopAsyncIteration, or the error that ended it."""

    def __init__(self, uid: str, tag: str | None, buffer: int) -> None:
        self.uid = uid
        self.tag = tag
        self.buffer = buffer
        self._values: deque[Any] = deque(maxlen=buffer)
        self._lost = 0
        self._in_a_row = 0
        """Given without a turn of the loop between them."""
        self._news = asyncio.Event()
        self._ended = False
        self._error: BaseException | None = None

    def receive(self, values: Sequence[Any]) -> None:
        if self._ended:
            return
        self._lost += max(0, len(self._values) + len(values) - self.buffer)
        self._values.extend(values[-self.buffer :])
        self._news.set()

    def end(self, error: BaseException | None = None) -> None:
        if not self._ended:
            self._ended, self._error = True, error
            self._news.set()

    def close(self) -> None:
        """Whoever still waits for a value gets none."""
        self._values.clear()
        self._lost = 0
        self._ended, self._error = True, None
        self._news.set()

    async def __anext__(self) -> Any:
        """Raises SubscriptionLagged once for each gap, and goes on behind it when asked again."""
        if self._in_a_row == IN_A_ROW:  # a large buffer would be read without anybody else having a turn
            self._in_a_row = 0
            await asyncio.sleep(0)
        while not self._values and not self._ended:
            self._news.clear()
            await self._news.wait()
            self._in_a_row = 0
        if self._lost:
            lost, self._lost = self._lost, 0
            raise SubscriptionLagged(self.uid, lost, self.buffer)
        if self._values:
            self._in_a_row += 1
            return self._values.popleft()
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    async def take(self) -> tuple[list[Any], int] | None:
        """All that is buffered, at least one, and how many were lost ahead of it. None at the end; raises what ended
        it."""
        while not self._values and not self._ended:
            self._news.clear()
            await self._news.wait()
        values, lost = self.drain()
        if not values and self._error is not None:
            raise self._error
        return (values, lost) if values else None

    def drain(self) -> tuple[list[Any], int]:
        """What is buffered now, and how many were lost ahead of it."""
        values, lost = list(self._values), self._lost
        self._values.clear()
        self._lost = 0
        return values, lost

    def lose(self, lost: int) -> None:
        """Values that were lost on their way here."""
        self._lost += lost


class Tap:
    """Hands what is emitted to a subscription, for as long as one attempt lives."""

    __slots__ = ("_subscription",)

    def __init__(self, subscription: Subscription) -> None:
        self._subscription: Subscription | None = subscription

    def stage(self, batch: Batch) -> None:
        if self._subscription is not None:
            self._subscription.receive(batch.values)

    def receive(self, values: Sequence[Any], lost: int) -> None:
        """What was emitted in another process, and how much of it was lost on the way."""
        if self._subscription is not None:
            self._subscription.lose(lost)
            self._subscription.receive(values)

    @property
    def buffer(self) -> int:
        """Values that wait at most."""
        return 0 if self._subscription is None else self._subscription.buffer

    def tell(self, mark: TimeMark) -> None:
        """A subscriber sees values, and no event time."""

    def close(self) -> None:
        self._subscription = None


def check_buffer(buffer: int) -> None:
    """Raises InvalidConfig."""
    if buffer < 1:
        raise InvalidConfig(f"subscribe(buffer={buffer}): it holds at least one record")


def check_emits(plan: PhysicalPlan, uid: str) -> None:
    """Raises NoSuchStep, naming those that there are."""
    emitting = [node.uid for _, node in plan.node.values() if not isinstance(node.spec, SinkSpec)]
    if uid in emitting:
        return
    what = f"step {uid!r} is a sink and emits nothing" if uid in plan.node else f"the flow has no step {uid!r}"
    raise NoSuchStep(f"{what}; those that emit: {', '.join(emitting)}")
