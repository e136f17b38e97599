"""What a checkpoint costs the coordinator of many workers: messages, bytes, and what it executes for them; on a network
that is fair, in a storm (delay, loss, repeats, reordering), and parted while the checkpoint is under way."""

import asyncio
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, Literal, NamedTuple, get_args

import pytest

import streamactors as sa
from connectors.memory import ListSink
from streamactors.checkpoint import coordinator, manifest, registry, store
from streamactors.clock import Clock
from streamactors.cluster import deployed
from streamactors.cluster.wire import COORDINATOR
from streamactors.cluster.workers import Times
from streamactors.runtime import attempt, job
from streamactors.runtime.info import CheckpointInfo
from streamactors.testing.network import FAIR, STORM, MadeUpNetwork
from tests.cluster.jobs import FLOW, Jobs, Sum, by_rest
from tests.cluster.made_up import MadeUpCluster
from tests.cluster.virtual import virtually
from tests.runtime.feeds import Feed

STEPS = 20
ITS_OWN: Final = frozenset(
    module.__file__ for module in (coordinator, manifest, registry, store, deployed, attempt, job)
)
"""The files whose code runs in the coordinator alone."""
PARTED: Final = 5.0
"""Seconds: many times what a checkpoint takes."""
UNHEARD: Final = Times(heartbeat=1e4, lost_after=1e5)
"""No heartbeat is among what is counted."""

Condition = Literal["fair", "storm", "partition"]
CONDITIONS: Final[tuple[Condition, ...]] = get_args(Condition)


class Costs(NamedTuple):
    """Of one checkpoint, on average: `messages` and `bytes` between the coordinator and its workers, those that were
    lost and sent again among them; `opcodes` that it executed in code of its own, in C none."""

    messages: float
    bytes: float
    subtasks: int
    opcodes: float


class Opcodes:
    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self._called)
        try:
            yield
        finally:
            sys.settrace(before)

    def _called(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename not in ITS_OWN:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._traced

    def _traced(self, frame: FrameType, event: str, arg: Any) -> Any:
        self.count += event == "opcode"
        return self._traced


def wide(parallelism: int) -> sa.Dataflow:
    """A step more than twenty, each in an actor of its own; in the middle, each subtask sends to all of the next."""
    flow = sa.Dataflow(FLOW)
    stream: sa.Stream[int] = flow.source("numbers", Feed(splits=parallelism))
    for _ in range(STEPS - 3):
        stream = stream.map(lambda value: value, chain=False)
    stream.key_by(by_rest).process("sums", Sum).sink("out", ListSink[tuple[int, int]](), chain=False)
    return flow


class Taking:
    """Checkpoints of a job over `workers`, and what the network carries for them."""

    def __init__(self, job: sa.JobHandle, network: MadeUpNetwork, workers: int, condition: Condition) -> None:
        self.job = job
        self.network = network
        self.workers = workers
        self.condition = condition
        self.messages: Counter[tuple[int, int]] = Counter()
        self.bytes: Counter[tuple[int, int]] = Counter()
        self.subtasks = 0

    async def take(self) -> None:
        messages, sizes = self.network.messages.copy(), self.network.bytes.copy()
        info = await (self._parted() if self.condition == "partition" else self.job.checkpoint())
        asked = self.network.messages - messages
        self.messages += asked
        self.bytes += self.network.bytes - sizes
        self.subtasks = len(info.subtasks)
        across = [asked[pair] for pair in asked if COORDINATOR not in pair]
        assert len(across) == self.workers * (self.workers - 1), "barriers cross from every worker to every other"
        assert max(across) <= 40, "what is chained needs no network"

    async def _parted(self) -> CheckpointInfo:
        """Every fifth worker is cut off from the coordinator and from all that are not, and comes back."""
        crossed = self._between_workers()
        taking = asyncio.ensure_future(self.job.checkpoint())
        while self._between_workers() == crossed:
            await asyncio.sleep(0.001)
        lost = range(0, self.workers, 5)
        for one in lost:
            for other in {COORDINATOR, *range(self.workers)} - {*lost}:
                self.network.cut(one, other)
        await asyncio.sleep(PARTED)
        assert not taking.done() and self.job.checkpoints_under_way
        self.network.heal()
        return await taking

    def _between_workers(self) -> int:
        """Messages so far: of a job that processes nothing, they are its barriers."""
        return self.network.messages.total() - self.with_coordinator(self.network.messages)

    def with_coordinator(self, carried: Counter[tuple[int, int]]) -> int:
        return sum(count for pair, count in carried.items() if COORDINATOR in pair)


def measured(workers: int, opcodes: Opcodes, condition: Condition = "fair") -> Costs:
    """Of a narrow job, more checkpoints: their messages are few."""
    count = max(1, 20 // workers)

    async def main(clock: Clock) -> Costs:
        cluster = MadeUpCluster(workers, clock=clock, times=UNHEARD)
        async with Jobs(clock).started(wide(workers), cluster=cluster, parallelism=workers) as (job, _):
            taking = Taking(job, cluster.network, workers, condition)
            await job.checkpoint()
            cluster.network.weather = STORM if condition == "storm" else FAIR
            with opcodes.counted():
                for _ in range(count):
                    await taking.take()
            cluster.network.weather = FAIR
            assert job.restarts == 0 and job.checkpoint_counts == (count + 1, 0), "each was completed"
            told, sent = taking.with_coordinator(taking.messages), taking.with_coordinator(taking.bytes)
            return Costs(told / count, sent / count, taking.subtasks, opcodes.count / count)

    return virtually(0, main)


class _Uncounted(Opcodes):
    @contextmanager
    def counted(self) -> Iterator[None]:
        yield


def costs(workers: int, condition: Condition) -> tuple[float, float, int]:
    """Messages and bytes between the coordinator and its workers for one checkpoint, and how many of the subtasks it
    was of."""
    return measured(workers, _Uncounted(), condition)[:3]


@pytest.mark.slow
@pytest.mark.parametrize("condition", CONDITIONS)
def test_it_grows_with_the_number_of_subtasks_and_no_faster(condition: Condition) -> None:
    few, many = (measured(workers, Opcodes(), condition) for workers in (10, 50))
    print(few, many)
    assert [each.subtasks for each in (few, many)] == [10 * STEPS, 50 * STEPS]
    assert many.messages <= 1.5 * 5 * few.messages
    assert many.bytes <= 1.2 * 5 * few.bytes
    assert many.opcodes <= 1.2 * 5 * few.opcodes
    assert few.opcodes > 1000, "its own code is elsewhere by now: see ITS_OWN"
