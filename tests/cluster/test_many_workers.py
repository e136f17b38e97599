"""What a checkpoint costs the coordinator of many workers."""

import pytest

import streamactors as sa
from connectors.memory import ListSink
from streamactors.clock import Clock
from streamactors.cluster.wire import COORDINATOR
from streamactors.cluster.workers import Times
from tests.cluster.jobs import FLOW, Jobs
from tests.cluster.made_up import MadeUpCluster
from tests.cluster.virtual import virtually
from tests.runtime.feeds import Feed

STEPS = 20


def wide(parallelism: int) -> sa.Dataflow:
    """A step more than twenty, each in an actor of its own."""
    flow = sa.Dataflow(FLOW)
    stream: sa.Stream[int] = flow.source("numbers", Feed(splits=parallelism))
    for _ in range(STEPS - 2):
        stream = stream.map(lambda value: value, chain=False)
    stream.sink("out", ListSink[int](), chain=False)
    return flow


def costs(workers: int) -> tuple[int, int, int]:
    """Messages and bytes between the coordinator and its workers for one checkpoint, and how many of the subtasks it
    was of."""

    async def main(clock: Clock) -> tuple[int, int, int]:
        cluster = MadeUpCluster(workers, clock=clock, times=Times(heartbeat=1e4, lost_after=1e5))
        async with Jobs(clock).started(wide(workers), cluster=cluster, parallelism=workers) as (job, _):
            network = cluster.network
            await job.checkpoint()
            messages, sizes = network.messages.copy(), network.bytes.copy()
            info = await job.checkpoint()
            asked, sent = network.messages - messages, network.bytes - sizes
            both = [pair for pair in asked if COORDINATOR in pair]
            assert all(COORDINATOR in pair for pair in asked if asked[pair] > 40), "what is chained needs no network"
            return sum(asked[pair] for pair in both), sum(sent[pair] for pair in both), len(info.subtasks)

    return virtually(0, main)


@pytest.mark.slow
def test_it_grows_with_the_number_of_subtasks_and_no_faster() -> None:
    few, many = costs(5), costs(50)
    print(few, many)
    assert few[2] == 5 * STEPS and many[2] == 50 * STEPS
    assert many[0] <= 15 * few[0] and many[1] <= 12 * few[1]
