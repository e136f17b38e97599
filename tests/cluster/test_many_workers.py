"""What a checkpoint costs the coordinator of many workers: messages, bytes, and what it executes for them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, NamedTuple

import pytest

import streamactors as sa
from connectors.memory import ListSink
from streamactors.checkpoint import coordinator, manifest, registry, store
from streamactors.clock import Clock
from streamactors.cluster import deployed
from streamactors.cluster.wire import COORDINATOR
from streamactors.cluster.workers import Times
from streamactors.runtime import attempt, job
from tests.cluster.jobs import FLOW, Jobs
from tests.cluster.made_up import MadeUpCluster
from tests.cluster.virtual import virtually
from tests.runtime.feeds import Feed

STEPS = 20
ITS_OWN: Final = frozenset(
    module.__file__ for module in (coordinator, manifest, registry, store, deployed, attempt, job)
)
"""The files whose code runs in the coordinator alone."""


class Costs(NamedTuple):
    """Of one checkpoint: `messages` and `bytes` between the coordinator and its workers; `opcodes` that it executed in
    code of its own, in C none."""

    messages: int
    bytes: int
    subtasks: int
    opcodes: int


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
    """A step more than twenty, each in an actor of its own."""
    flow = sa.Dataflow(FLOW)
    stream: sa.Stream[int] = flow.source("numbers", Feed(splits=parallelism))
    for _ in range(STEPS - 2):
        stream = stream.map(lambda value: value, chain=False)
    stream.sink("out", ListSink[int](), chain=False)
    return flow


def measured(workers: int, opcodes: Opcodes) -> Costs:
    async def main(clock: Clock) -> Costs:
        cluster = MadeUpCluster(workers, clock=clock, times=Times(heartbeat=1e4, lost_after=1e5))
        async with Jobs(clock).started(wide(workers), cluster=cluster, parallelism=workers) as (job, _):
            network = cluster.network
            await job.checkpoint()
            messages, sizes = network.messages.copy(), network.bytes.copy()
            with opcodes.counted():
                info = await job.checkpoint()
            asked, sent = network.messages - messages, network.bytes - sizes
            both = [pair for pair in asked if COORDINATOR in pair]
            assert all(COORDINATOR in pair for pair in asked if asked[pair] > 40), "what is chained needs no network"
            told, size = sum(asked[pair] for pair in both), sum(sent[pair] for pair in both)
            return Costs(told, size, len(info.subtasks), opcodes.count)

    return virtually(0, main)


class _Uncounted(Opcodes):
    @contextmanager
    def counted(self) -> Iterator[None]:
        yield


def costs(workers: int) -> tuple[int, int, int]:
    """Messages and bytes between the coordinator and its workers for one checkpoint, and how many of the subtasks it
    was of."""
    return measured(workers, _Uncounted())[:3]


@pytest.mark.slow
def test_it_grows_with_the_number_of_subtasks_and_no_faster() -> None:
    few, more, many = (measured(workers, Opcodes()) for workers in (10, 20, 50))
    print(few, more, many)
    assert [each.subtasks for each in (few, more, many)] == [10 * STEPS, 20 * STEPS, 50 * STEPS]
    for one, other, factor in ((few, more, 2), (few, many, 5), (more, many, 2.5)):
        assert other.messages <= 1.5 * factor * one.messages
        assert other.bytes <= 1.2 * factor * one.bytes
        assert other.opcodes <= 1.2 * factor * one.opcodes
    assert few.opcodes > 1000, "its own code is elsewhere by now: see ITS_OWN"
