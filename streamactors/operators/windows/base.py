"""What users see of windows: their results, and the operator that gets all elements of one."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterable
from typing import Generic, TypeVar

import msgspec

from streamactors.operators.base import Context, Lifecycle

K = TypeVar("K")
T = TypeVar("T")
U = TypeVar("U")


class Windowed(msgspec.Struct, Generic[K, T], frozen=True):
    """One window's result: [start, end), in milliseconds since the epoch, emitted with timestamp end - 1.

    Windows that have no end in time (`CountWindow`, `GlobalWindow`) reach from -2**63 to 2**63 - 1; their results have
    the timestamp of the record with which the window fired, if it was one.
    """

    key: K
    start: int
    end: int
    value: T


class WindowOperator(Lifecycle, ABC, Generic[K, T, U]):
    """Gets a window with all its elements each time it fires, in the order in which they came.

    It may declare state, which is that of the window's key and is shared by all its windows. `process` may be `def` or
    `async def`. It has no timers.
    """

    _usage = "a WindowOperator, used as stream.key_by(…).window(uid, …).process(…)"

    @abstractmethod
    def process(self, window: Windowed[K, Iterable[T]], ctx: Context[K, U], /) -> Awaitable[None] | None: ...
