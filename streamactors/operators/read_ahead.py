"""Reading what the keys of a batch hold before its operator gets it: a part at a time, and the next part while this one
is processed.

Invariant: what is handed to the operator has been read, or is read when it asks: so this changes how long a record
takes, and nothing else.
"""

import asyncio
from typing import Any, Final

from streamactors.elements import Batch
from streamactors.state.backend import PrefetchingBackend

PART: Final = 256
"""Records read at a time: a few milliseconds, so that the trip to a thread is little of it."""


class ReadAhead:
    """Of one link. `ready` before each slice that it takes; `close` in the end."""

    def __init__(self, backend: PrefetchingBackend) -> None:
        self._backend = backend
        self._read = 0
        """Records at the front of what is left of the batch in hand that have been read."""
        self._left: tuple[int, Any] | None = None
        """How one knows what is left of it: its length, and its last record."""
        self._coming: asyncio.Task[None] | None = None
        """Reads the next part."""

    async def ready(self, batch: Batch, taken: int) -> None:
        """Before the link gets the first `taken` records of `batch`."""
        if batch.keys is None or batch.groups is None:
            return
        if self._left != (len(batch), id(batch.values[-1])):
            self._read = 0
        if self._read < min(taken, len(batch)):
            await self._read_on(batch, max(taken, PART))
        left = len(batch) - taken
        self._read -= taken
        self._left = (left, id(batch.values[-1])) if left > 0 else None

    async def _read_on(self, batch: Batch, wanted: int) -> None:
        if self._coming is not None:
            coming, self._coming = self._coming, None
            await coming
        # What was read ahead is in the cache, and costs a look.
        await self._part(batch, self._read, wanted)
        self._read += wanted
        if self._read < len(batch):
            self._coming = asyncio.ensure_future(self._part(batch, self._read, PART))

    async def _part(self, batch: Batch, start: int, count: int) -> None:
        assert batch.keys is not None and batch.groups is not None
        await self._backend.prefetch(batch.keys[start : start + count], batch.groups[start : start + count])

    async def close(self) -> None:
        coming, self._coming = self._coming, None
        if coming is not None:
            coming.cancel()
            await asyncio.wait([coming])
            if not coming.cancelled():
                coming.exception()  # seen; nobody needs any more what it was to read


def read_ahead_of(backend: object) -> ReadAhead | None:
    """None where all of it is always in memory."""
    return ReadAhead(backend) if isinstance(backend, PrefetchingBackend) else None
