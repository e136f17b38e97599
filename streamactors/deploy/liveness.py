"""A coordinator that lives, and answers nothing: one of its workers sees to it that another takes its place.

Nobody else would: the cluster takes it for alive, and its driver may be gone. Invariants. One is ended only by who has
asked it twice, the second time after the first was given up: so who was paused itself, and finds the time of a question
over, does not take that for the other's silence. Workers come to it one after another; the first that lives ends it,
and with it the others: so its successor is not ended for what it has not done.
"""

import asyncio
import logging
from typing import Final, Protocol

from streamactors.clock import Clock
from streamactors.errors import ConnectionLost

log = logging.getLogger("streamactors.ray")

ASKED_AFTER: Final = 5.0
ANSWERED_WITHIN: Final = 15.0
"""Seconds: longer than workers go on without a word from it."""
IN_VAIN: Final = 2
"""For the first worker; each one after that asks once more."""


class Asked(Protocol):
    """The coordinator. Raises ConnectionLost."""

    async def answer(self) -> None:
        """Returns once it has answered; at once where the cluster knows that it is dead, and starts another."""

    async def end(self) -> None:
        """So that the cluster starts another, if it may."""


async def end_when_silent(flow: str, number: int, coordinator: Asked, clock: Clock) -> None:
    """On the worker of that number, for ever: it is ended with the coordinator."""
    in_vain = 0
    while True:
        await clock.sleep(ASKED_AFTER)
        in_vain = 0 if await _answers(coordinator, clock) else in_vain + 1
        if in_vain >= IN_VAIN + number:
            silent = in_vain * (ASKED_AFTER + ANSWERED_WITHIN)
            log.error("%s: the coordinator lives, but has not answered for %.0f s: it is ended", flow, silent)
            await _ended(flow, coordinator)


async def _answers(coordinator: Asked, clock: Clock) -> bool:
    try:
        async with asyncio.timeout(ANSWERED_WITHIN):
            await coordinator.answer()
    except TimeoutError:
        return False
    except ConnectionLost:
        await clock.sleep(ANSWERED_WITHIN)  # it may be within reach again
        return False
    return True


async def _ended(flow: str, coordinator: Asked) -> None:
    try:
        await coordinator.end()
    except ConnectionLost as error:
        log.warning("%s: the coordinator could not be ended, for now: %s", flow, error)
