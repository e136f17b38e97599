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
        self._buffer = buffer
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
        self._lost += max(0, len(self._values) + len(values) - self._buffer)
        self._values.extend(values[-self._buffer :])
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
            raise SubscriptionLagged(self.uid, lost, self._buffer)
        if self._values:
            self._in_a_row += 1
            return self._values.popleft()
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration


class Tap:
    """Hands what is emitted to a subscription, for as long as one attempt lives."""

    __slots__ = ("_subscription",)

    def __init__(self, subscription: Subscription) -> None:
        self._subscription: Subscription | None = subscription

    def stage(self, batch: Batch) -> None:
        if self._subscription is not None:
            self._subscription.receive(batch.values)

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
