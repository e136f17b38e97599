"""Operators with two inputs (Flink: CoProcessFunction, KeyedBroadcastProcessFunction), and their links.

Invariant: a link works on one batch at a time, whichever input it came by, so that the two hooks of an operator are
never at work at once. Nothing is promised about the order between the inputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from streamactors.elements import Batch
from streamactors.operators.base import Context, Lifecycle, Link, LinkContext
from streamactors.operators.process import Hook, Kinds, ProcessLink, ProcessSpec
from streamactors.time.timers import Timer

T = TypeVar("T")
U = TypeVar("U")
R = TypeVar("R")
K = TypeVar("K")


# ---------------------------------------------------------------------------------------------- what users derive from
class CoOperator(Lifecycle, ABC, Generic[T, U, R]):
    """Two streams in one operator, in no order between them. Any hook may be `def` or `async def`."""

    _usage = "a CoOperator, used as left.connect(right).process(uid, …)"

    @abstractmethod
    def process_left(self, value: T, ctx: Context[None, R], /) -> Awaitable[None] | None: ...

    @abstractmethod
    def process_right(self, value: U, ctx: Context[None, R], /) -> Awaitable[None] | None: ...


class KeyedCoOperator(Lifecycle, ABC, Generic[K, T, U, R]):
    """Like `CoOperator`, on two streams with the same keys: both hooks reach the state of the record's key."""

    _usage = "a KeyedCoOperator, used as left.connect(right).key_by(…, …).process(uid, …)"

    @abstractmethod
    def process_left(self, value: T, ctx: Context[K, R], /) -> Awaitable[None] | None: ...

    @abstractmethod
    def process_right(self, value: U, ctx: Context[K, R], /) -> Awaitable[None] | None: ...

    def on_timer(self, timer: Timer, ctx: Context[K, R], /) -> Awaitable[None] | None:
        """As that of a `KeyedOperator`."""
        return None


class KeyedBroadcastOperator(Lifecycle, ABC, Generic[K, T, U, R]):
    """A keyed stream, and one that every subtask gets all of, such as rules.

    Broadcast state may be written only in process_broadcast, and must be written the same way on every subtask. There
    is no current key in process_broadcast, so no keyed state.
    """

    _usage = "a KeyedBroadcastOperator, used as stream.key_by(…).connect_broadcast(rules).process(uid, …)"

    @abstractmethod
    def process(self, value: T, ctx: Context[K, R], /) -> Awaitable[None] | None: ...

    @abstractmethod
    def process_broadcast(self, value: U, ctx: Context[None, R], /) -> Awaitable[None] | None: ...


# --------------------------------------------------------------------------------------------------------------- links
class TwoInputLink(ProcessLink):
    """A hook for each input."""

    def __init__(self, ctx: LinkContext, operator: Any, left: Hook, right: Hook, on_timer: Hook | None = None) -> None:
        super().__init__(ctx, operator, left, on_timer)
        self._hooks = self._called(left), self._called(right)

    async def process(self, batch: Batch) -> Batch | None:
        self._process, self._async, self._keyed = self._hooks[self.side]
        if batch.keys is not None and not self._keyed:
            batch = batch.with_values(batch.values)  # keys of one input alone are none of the operator
        return await super().process(batch)


class BroadcastLink(TwoInputLink):
    """The right input is what every subtask gets all of."""

    async def process(self, batch: Batch) -> Batch | None:
        if self.side == 0 or self.ctx.lists is None:
            return await super().process(batch)
        with self.ctx.lists.broadcasting():
            return await super().process(batch)


# --------------------------------------------------------------------------------------------------------------- specs
@dataclass(frozen=True)
class CoProcessSpec(ProcessSpec):
    """`keyed`: both inputs are. To a checkpoint it is a `process` like others: a step may be given a second input, and
    keep its state."""

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("left", "right")

    @property
    def kinds(self) -> Kinds:
        return Kinds(CoOperator, KeyedCoOperator)

    def _link(self, ctx: LinkContext, operator: Any) -> Link:
        left, right = (Hook.of(hook, keyed=self.keyed) for hook in (operator.process_left, operator.process_right))
        return TwoInputLink(ctx, operator, left, right, self._on_timer(operator))


@dataclass(frozen=True)
class BroadcastProcessSpec(ProcessSpec):
    """The left input is keyed; every subtask gets all of the right one."""

    @property
    def keeps_record_ids(self) -> bool:
        """What every subtask emits for one record can't all have its name."""
        return False

    @property
    def kinds(self) -> Kinds:
        return Kinds(KeyedBroadcastOperator, KeyedBroadcastOperator, broadcast=True)

    def _link(self, ctx: LinkContext, operator: Any) -> Link:
        data, rules = Hook.of(operator.process, keyed=True), Hook.of(operator.process_broadcast, keyed=False)
        return BroadcastLink(ctx, operator, data, rules)
