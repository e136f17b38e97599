"""When a coordinator that does not answer is ended."""

import asyncio
from collections.abc import Coroutine, Iterator
from itertools import chain, repeat
from typing import Any, Literal

import pytest

from streamactors.clock import Clock
from streamactors.deploy.liveness import ANSWERED_WITHIN, ASKED_AFTER, IN_VAIN, end_when_silent
from streamactors.errors import ConnectionLost
from tests.cluster.virtual import virtually

Says = Literal["answers", "late", "nothing", "out of reach"]
SILENT: tuple[Says, ...] = ("nothing",)
ROUND = ASKED_AFTER + ANSWERED_WITHIN


class Coordinator:
    """Stands for one. `says`: to each question; once there are no more, it answers."""

    def __init__(self, *says: Says, endings: int = 0) -> None:
        self.ended: list[float] = []
        self.clock: Clock
        self._says: Iterator[Says] = chain(says, repeat("answers"))
        self._failing = endings

    async def answer(self) -> None:
        match next(self._says):
            case "late":
                await self.clock.sleep(ANSWERED_WITHIN - 1.0)
            case "nothing":
                await asyncio.get_running_loop().create_future()
            case "out of reach":
                raise ConnectionLost("cut off")

    async def end(self) -> None:
        self.ended.append(self.clock.monotonic())
        if len(self.ended) <= self._failing:
            raise ConnectionLost("the head is away")


def watched(coordinator: Coordinator, rounds: int, number: int = 0) -> list[float]:
    """By a worker: when it was ended, in seconds since that had begun."""

    async def main(clock: Clock) -> list[float]:
        coordinator.clock, begun = clock, clock.monotonic()
        watching: Coroutine[Any, Any, None] = end_when_silent("orders", number, coordinator, clock)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(watching, rounds * ROUND + 1.0)
        return [ended - begun for ended in coordinator.ended]

    return virtually(0, main)


@pytest.mark.parametrize("says", [(), ("late",) * 9, ("nothing", "answers") * 5, ("out of reach", "late") * 5])
def test_one_that_answers_now_and_then_is_left_alone(says: tuple[Says, ...]) -> None:
    assert watched(Coordinator(*says), rounds=10) == []


@pytest.mark.parametrize("says", ["nothing", "out of reach"])
def test_one_that_has_not_answered_twice_is_ended(says: Says) -> None:
    assert watched(Coordinator(says, says), rounds=10) == pytest.approx([IN_VAIN * ROUND], abs=0.1)


def test_by_the_workers_one_after_another() -> None:
    ends = [watched(Coordinator(*SILENT * (IN_VAIN + number)), 10, number) for number in range(3)]
    assert ends == [pytest.approx([(IN_VAIN + number) * ROUND], abs=0.1) for number in range(3)]


def test_and_again_if_that_could_not_be_done() -> None:
    coordinator = Coordinator(*SILENT * 9, endings=2)
    assert watched(coordinator, rounds=4) == pytest.approx([2 * ROUND, 3 * ROUND, 4 * ROUND], abs=0.1)
