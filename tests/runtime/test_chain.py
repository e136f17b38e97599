"""A chain: depth first, in order, in bounded slices, and draining in the middle of a record."""

from typing import Any

import pytest

from streamactors.elements import Batch
from streamactors.metrics import MetricGroup
from streamactors.operators.base import Link, LinkContext, OperatorContext
from streamactors.runtime.chain import LARGEST_SLICE, SLICE_SECONDS, Chain, LinkSlot


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Recording(Link):
    """Passes on each value `copies` times, and writes down what it does."""

    def __init__(self, name: str, log: list[Any], clock: Clock, *, copies: int = 1, seconds: float = 0.0) -> None:
        super().__init__(LinkContext(name, name, OperatorContext(uid=name, subtask=0, parallelism=1)))
        self.name, self.log, self.clock, self.copies, self.seconds = name, log, clock, copies, seconds

    async def open(self) -> None:
        self.log.append(("open", self.name))

    async def process(self, batch: Batch) -> Batch | None:
        self.log.append((self.name, list(batch.values)))
        self.clock.now += self.seconds * len(batch)
        return Batch([value for value in batch.values for _ in range(self.copies)])

    async def finish(self) -> Batch | None:
        return Batch([f"last of {self.name}"])

    async def close(self) -> None:
        self.log.append(("close", self.name))


def chain_of(*links: Link, clock: Clock) -> Chain:
    chain = Chain(clock)
    for link in links:
        chain.add(LinkSlot(link, [], {}, MetricGroup()))
    return chain


async def run(chain: Chain) -> None:
    while chain.busy:
        await chain.step()


async def test_the_output_of_a_slice_goes_all_the_way_before_the_next_one() -> None:
    log: list[Any] = []
    clock = Clock()
    links = [Recording("a", log, clock), Recording("b", log, clock)]
    chain = chain_of(*links, clock=clock)
    clock.now, per_record = 0.0, SLICE_SECONDS / 2
    for link in links:
        link.seconds = per_record
    chain.slots[0].slice = 2
    chain.push(Batch([1, 2, 3, 4, 5]))
    await run(chain)
    assert log == [("a", [1, 2]), ("b", [1, 2]), ("a", [3, 4]), ("b", [3, 4]), ("a", [5]), ("b", [5])]


@pytest.mark.parametrize("seconds", [0.0, 1e-7, 1e-5, 1e-3, 1.0])
async def test_slices_adapt_to_what_a_record_takes(seconds: float) -> None:
    log: list[Any] = []
    clock = Clock()
    chain = chain_of(Recording("a", log, clock, seconds=seconds), clock=clock)
    for _ in range(20):
        chain.push(Batch(list(range(4096))))
        await run(chain)
    last = [len(values) for _, values in log[-10:]]
    fitting = LARGEST_SLICE if not seconds else max(1, min(LARGEST_SLICE, int(SLICE_SECONDS / seconds)))
    assert all(size <= 2 * fitting for size in last) and chain.slice >= fitting // 2
    assert sum(len(values) for _, values in log) == 20 * 4096


async def test_finish_sends_each_last_output_through_the_rest() -> None:
    log: list[Any] = []
    clock = Clock()
    chain = chain_of(Recording("a", log, clock), Recording("b", log, clock), Recording("c", log, clock), clock=clock)
    await chain.finish()
    assert log == [("b", ["last of a"]), ("c", ["last of a"]), ("c", ["last of b"])]


class Draining(Recording):
    chain: Chain

    async def process(self, batch: Batch) -> Batch | None:
        self.log.append(("begin", list(batch.values)))
        await self.chain.drain(0, Batch(["drained"]), {})
        self.log.append(("end", list(batch.values)))
        return Batch(["rest"])


async def test_draining_pushes_on_what_is_behind_and_nothing_else() -> None:
    log: list[Any] = []
    clock = Clock()
    first = Draining("a", log, clock)
    chain = first.chain = chain_of(first, Recording("b", log, clock), clock=clock)
    waited: list[bool] = []

    async def make_room() -> None:
        waited.append(True)

    chain.make_room = make_room
    for number in (1, 2):
        chain.push(Batch([number]))
        await run(chain)
    per_record = [[("begin", [n]), ("b", ["drained"]), ("end", [n]), ("b", ["rest"])] for n in (1, 2)]
    assert log == [*per_record[0], *per_record[1]] and waited == [True, True]


async def test_opens_downstream_first_and_closes_what_it_opened_once_whatever_fails() -> None:
    log: list[Any] = []
    clock = Clock()

    class Failing(Recording):
        async def open(self) -> None:
            await super().open()
            raise ValueError(self.name)

        async def close(self) -> None:
            await super().close()
            raise ValueError(f"closing {self.name}")

    chain = chain_of(Recording("a", log, clock), Failing("b", log, clock), Failing("c", log, clock), clock=clock)
    with pytest.raises(ValueError, match=r"^c$"):
        await chain.open()
    with pytest.raises(ValueError, match="closing c"):
        await chain.close()
    await chain.close()
    assert log == [("open", "c"), ("close", "c")]


async def test_side_outputs_without_a_taker_are_counted() -> None:
    clock = Clock()
    chain = chain_of(Recording("a", [], clock), clock=clock)
    chain.emit_sides(0, {"late": Batch([1, 2])})
    assert chain.slots[0].undelivered == 2
