"""What goes over the edges of a whole job on several workers: what is refused, what stays as it is, what holds back."""

import asyncio
from typing import Any

import pytest

import streamactors as sa
from connectors.memory import ListSink
from streamactors.clock import Clock
from streamactors.errors import JobFailed, UnserialisableValue
from streamactors.testing.network import STORM
from tests.cluster.jobs import Jobs
from tests.cluster.made_up import MadeUpCluster
from tests.cluster.virtual import virtually
from tests.runtime.feeds import Feed, until


def fed(*values: Any, ended: bool = True) -> Feed:
    feed = Feed()
    feed.put(*values)
    if ended:
        feed.end()
    return feed


@pytest.mark.parametrize("alignment", ["aligned", "unaligned"])
def test_records_that_can_not_be_sent_are_refused_at_the_first_wherever_it_goes(alignment: Any) -> None:
    """The only record there is stays with its worker."""

    async def main(clock: Clock) -> None:
        flow = sa.Dataflow("unsendable")
        opened = flow.source("numbers", fed(1), parallelism=1).map(lambda n: open, parallelism=1)
        opened.map(str, parallelism=2).sink("out", ListSink[str](), parallelism=2)
        async with Jobs(clock).started(flow, alignment=alignment) as (job, _):
            await job.wait()

    with pytest.raises(JobFailed) as failed:
        virtually(0, main)
    cause = failed.value.__cause__
    assert isinstance(cause, UnserialisableValue) and not cause.retryable
    assert "on the edge 'map-1' → 'map-2' can't be sent to another process" in str(cause)


@pytest.mark.parametrize("seed", range(2))
def test_values_and_keys_have_their_types_in_a_storm(seed: int) -> None:
    values = [1, True, 1.0, "1", b"1", (1, 2), frozenset({3}), 2**70, None]

    async def main(clock: Clock) -> None:
        flow, sink = sa.Dataflow("types"), ListSink[Any]()
        source = flow.source("values", fed(*values), parallelism=1)
        source.key_by(lambda value: value).map(
            lambda value: (value, type(value).__name__), name="map"
        ).rebalance().sink("out", sink, parallelism=3)
        jobs = Jobs(clock)
        cluster = MadeUpCluster(3, clock=clock, weather=STORM, seed=seed)
        async with jobs.started(flow, cluster=cluster) as (job, _):
            await job.wait()
        assert sorted(map(repr, sink.values)) == sorted(repr((value, type(value).__name__)) for value in values)

    virtually(seed, main)


def test_a_slow_receiver_holds_its_sender_back_over_the_network() -> None:
    gate: asyncio.Event

    async def held(value: int) -> int:
        await gate.wait()
        return value

    async def main(clock: Clock) -> None:
        nonlocal gate
        gate = asyncio.Event()
        flow, sink, feed = sa.Dataflow("slow"), ListSink[int](), fed(*range(20_000))
        slow = flow.source("numbers", feed, parallelism=1).rebalance().map(held, name="held", parallelism=2)
        slow.sink("out", sink, parallelism=2)
        async with Jobs(clock).started(flow) as (job, _):
            await until(lambda: _held_back(job))
            # A mailbox for each receiver, a batch in hand at each, and what the sender has read and can't send.
            assert _sent(job) < 2 * 4096 + 6 * 1024
            gate.set()
            await job.wait()
        assert sorted(sink.values) == list(range(20_000))

    virtually(1, main)


def _nodes(job: sa.JobHandle, uid: str) -> list[Any]:
    each = job.metrics()["subtasks"].values()
    return [subtask for subtask in each if uid in subtask["nodes"]]


def _held_back(job: sa.JobHandle) -> bool:
    return any(subtask["backpressured_seconds"] > 0.5 for subtask in _nodes(job, "numbers"))


def _sent(job: sa.JobHandle) -> int:
    return sum(subtask["nodes"]["numbers"]["records_out"] for subtask in _nodes(job, "numbers"))
