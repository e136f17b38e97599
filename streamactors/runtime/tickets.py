"""Who waits for a checkpoint of one attempt: a number for each request, and its answer.

Invariant: each is answered once, and nobody who has gone is missed.
"""

import asyncio
from collections.abc import Collection
from itertools import count

from streamactors.errors import CheckpointFailed
from streamactors.runtime.info import CheckpointInfo


class Tickets:
    def __init__(self) -> None:
        self._answers: dict[int, asyncio.Future[CheckpointInfo]] = {}
        self._savepoints: set[int] = set()
        self._numbers = count(1)

    def __len__(self) -> int:
        return len(self._answers)

    def new(self, *, savepoint: bool) -> tuple[int, asyncio.Future[CheckpointInfo]]:
        """Its number, and what will be its answer."""
        ticket = next(self._numbers)
        if savepoint:
            self._savepoints.add(ticket)
        answer: asyncio.Future[CheckpointInfo] = asyncio.get_running_loop().create_future()
        self._answers[ticket] = answer
        return ticket, answer

    def answer(self, tickets: Collection[int], answer: CheckpointInfo | CheckpointFailed) -> None:
        """Those of them that wait yet."""
        for ticket in tickets:
            self._savepoints.discard(ticket)
            future = self._answers.pop(ticket, None)
            if future is None or future.done():
                continue
            if isinstance(answer, CheckpointInfo):
                future.set_result(answer)
            else:
                future.set_exception(answer)
                future.exception()  # retrieved: whoever asked may have gone

    def finished(self, last: CheckpointInfo | None) -> None:
        """The last checkpoint holds everything that others would have. No savepoint was taken any more."""
        missed = CheckpointFailed("the job has finished, and the savepoint was not taken")
        self.answer(tuple(self._savepoints), missed)
        if last is not None:
            self.answer(tuple(self._answers), last)

    def refuse(self, reason: str) -> None:
        """All that wait yet."""
        self.answer(tuple(self._answers), CheckpointFailed(f"the checkpoint was not completed: {reason}"))
