"""A job that rescales itself while it runs: what it does then, and that nothing of the output is lost or doubled."""

import asyncio
import datetime as dt
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from connectors.memory import ListSink
from streamactors.clock import SYSTEM
from streamactors.errors import CheckpointFailed, JobNotRunning
from streamactors.graph.physical import PhysicalPlan
from streamactors.launch import _supervised
from streamactors.runtime.autoscaling.decisions import Decision
from streamactors.runtime.autoscaling.steering import autoscaled
from streamactors.service import served
from streamactors.sources import PENDING_RECORDS, SPLITS, Position, SourceBatch, SourceContext, SplitReader, SplitSource
from streamactors.submission import job_here
from tests.observe.jobs import client_at
from tests.runtime.autoscaled import orders, planned
from tests.runtime.feeds import PATIENCE, until

pytestmark = pytest.mark.slow

KEYS = 64
NOW = dt.timedelta(0)
SOON = dt.timedelta(milliseconds=20)


class Numbers(SplitSource[int]):
    """Counts up for as long as the test wants, faster than anybody can follow; then ends where it has come to."""

    def __init__(self) -> None:
        self.furthest = 0
        self.ended = False
        self.broken = False

    @property
    def bounded(self) -> bool:
        return True

    def reader(self, ctx: SourceContext) -> "NumbersReader":
        return NumbersReader(self, ctx)


class NumbersReader(SplitReader[int]):
    def __init__(self, numbers: Numbers, ctx: SourceContext) -> None:
        self._numbers = numbers
        self._ctx = ctx
        self._next = 0

    async def open(self, restored: Mapping[str, Position] | None) -> Mapping[str, Position]:
        self._next = (restored or {}).get("0", 0)
        self._ctx.metrics.gauge(PENDING_RECORDS, lambda: 1000.0)
        return {"0": self._next}

    async def read(self) -> SourceBatch[int] | None:
        if self._numbers.broken:
            raise OSError("the source has gone")
        start = self._next
        if self._numbers.ended and start >= self._numbers.furthest:
            return None
        stop = min(start + 16, self._numbers.furthest) if self._numbers.ended else start + 16
        self._next = stop
        self._numbers.furthest = max(self._numbers.furthest, stop)
        return SourceBatch("0", range(start, stop), lambda taken: start + taken)

    async def close(self) -> None:
        return None


class Calls(sa.KeyedOperator[int, int, tuple[int, int]]):
    """Waits for each record, as for a call."""

    total = sa.ValueState(int, default=0)

    async def process(self, value: int, ctx: sa.Context[int, tuple[int, int]], /) -> None:
        await asyncio.sleep(0.001)
        self.total.set(self.total.get() + 1)
        ctx.emit((ctx.key, self.total.get()))


def quick(**given: Any) -> sa.Autoscale:
    settings: dict[str, Any] = {"every": SOON, "window": 4 * SOON, "cooldown": NOW}
    return sa.Autoscale(**{**settings, "target": 0.4, "tolerance": 0.2, "max_parallelism": 4, **given})


def flow_of(numbers: Numbers, sink: ListSink[tuple[int, int]], writers: int | None = None) -> sa.Dataflow:
    flow = sa.Dataflow("calls")
    source = flow.source("numbers", numbers, parallelism=1)
    source.key_by(lambda number: number % KEYS).process("calls", Calls).sink("out", sink, parallelism=writers)
    return flow


def config(folder: Path, autoscale: sa.Autoscale, **given: Any) -> sa.Config:
    checkpoints = sa.Checkpoints(folder.as_uri(), interval=dt.timedelta(hours=1))
    restart = sa.Restart.fixed(SOON, 1000)
    return sa.Config(checkpoints=checkpoints, autoscale=autoscale, mailbox_capacity=32, restart=restart, **given)


def width(job: sa.JobHandle) -> int:
    return 0 if job.plan is None else job.plan.vertex["calls"].parallelism


def expected(numbers: Numbers) -> Counter[tuple[int, int]]:
    """Every number counted once, under its key."""
    counts = Counter(number % KEYS for number in range(numbers.furthest))
    return Counter((key, count) for key, most in counts.items() for count in range(1, most + 1))


@pytest.mark.parametrize(("backend", "writers"), [("heap", None), ("rocksdb", 1)])
async def test_a_busy_step_gets_more_subtasks_and_the_output_stays_exact(
    backend: Any, writers: int | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    numbers, sink = Numbers(), ListSink[tuple[int, int]]()
    caplog.set_level(logging.INFO, "streamactors.autoscale")
    flow = flow_of(numbers, sink, writers)
    async with sa.start(flow, config(tmp_path, quick(), state_backend=backend)) as job:
        await until(lambda: job.status == "running" and width(job) > 1)
        assert job.restarts == 0
        await job.checkpoint()  # without one by the new parallelism it would go back to the old one
        numbers.broken = True  # until it is seen: nobody reads while the job is rescaled once more
        await until(lambda: job.restarts > 0)
        numbers.broken = False
        await until(lambda: job.status == "running")
        assert width(job) > 1  # that is kept
        assert job.plan is not None and job.plan.node["out"][0].parallelism == (writers or width(job))
        numbers.ended = True
        await job.wait()
    assert Counter(sink.values) == expected(numbers)
    assert "calls: autoscaler: rescaling: calls 1 → " in caplog.text
    assert isinstance(job.metrics()["autoscale"], Decision)


async def test_no_more_than_the_workers_have_slots_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The job runs here, as where a coordinator is."""
    caplog.set_level(logging.INFO, "streamactors.autoscale")
    numbers, sink = Numbers(), ListSink[tuple[int, int]]()
    given = config(tmp_path, quick(max_parallelism=None), deployment=sa.Ray(workers=2, slots=1))
    made = job_here(flow_of(numbers, sink).graph(), given, restore="latest", fresh=False, resources=None)
    async with asyncio.timeout(2 * PATIENCE), _supervised(made, None, "cancel", dt.timedelta(0)) as job:
        await until(lambda: width(job) == 2)
        assert job.incidents == ()
    assert "no more than 2: its workers have no more slots" in caplog.text


async def test_a_dry_run_only_tells(caplog: pytest.LogCaptureFixture) -> None:
    numbers, sink = Numbers(), ListSink[tuple[int, int]]()
    caplog.set_level(logging.INFO, "streamactors.autoscale")
    dry = sa.Config(autoscale=quick(dry_run=True), mailbox_capacity=32)
    async with (
        sa.start(flow_of(numbers, sink), dry) as job,
        served(job, "127.0.0.1:0") as where,
        client_at(where) as api,
    ):
        await until(lambda: "would rescale (dry run): calls 1 → " in caplog.text)
        told = (await api.client.get("/api/v1/jobs/calls")).json()["autoscale"]
        assert told["dry_run"] and told["action"] in ("wait", "keep", "rescale") and told["reason"]
        assert width(job) == 1 and job.metrics()["last_rescale"] is None
        numbers.ended = True
        await job.wait()
    assert Counter(sink.values) == expected(numbers)


async def test_a_source_tells_its_splits_and_what_is_pending() -> None:
    numbers, sink = Numbers(), ListSink[tuple[int, int]]()
    async with sa.start(flow_of(numbers, sink)) as job:
        await until(lambda: job.metrics()["subtasks"])
        source = job.metrics()["subtasks"]["numbers[0]"]["nodes"]["numbers"]
        assert source[SPLITS] == 1 and source[PENDING_RECORDS] == 1000
        numbers.ended = True
        await job.wait()


async def test_steps_that_are_not_there_are_refused(tmp_path: Path) -> None:
    flow = flow_of(Numbers(), ListSink())
    with pytest.raises(sa.InvalidConfig, match="no step 'totals'; it has: numbers, calls, out"):
        await sa.run(flow, config(tmp_path, quick(steps=["totals"])))


async def test_in_batch_nothing_is_rescaled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    numbers, sink = Numbers(), ListSink[tuple[int, int]]()
    numbers.furthest, numbers.ended = 100, True
    await sa.run(flow_of(numbers, sink), sa.Config(execution="batch", autoscale=quick(dry_run=True)))
    assert "autoscale is left out" in caplog.text
    assert len(sink.values) == 100


# ----------------------------------------------------------------------------------------------- what may be in its way
class Overworked:
    """Of a job, what the autoscaler looks at."""

    name, status, stopping = "overworked", "running", False

    def __init__(self, *failures: Exception) -> None:
        self.there: PhysicalPlan | None = planned(orders())
        self.looks = 0
        self.failures = list(failures)
        self.asked: list[Mapping[str, int]] = []
        self._busy = 0.0

    @property
    def plan(self) -> PhysicalPlan | None:
        self.looks += 1
        return self.there

    def metrics(self) -> Mapping[str, Any]:
        self._busy += 1.0
        return {"subtasks": {"orders[0]": self._counts("orders"), "totals[0]": self._counts("totals", "out")}}

    def _counts(self, vertex: str, *others: str) -> dict[str, Any]:
        node = {"records_in": self._busy, "records_out": self._busy}
        spent = {"busy_seconds": self._busy, "idle_seconds": 0.0, "backpressured_seconds": 0.0}
        return {"vertex": vertex, "nodes": dict.fromkeys((vertex, *others), node), **spent}

    async def rescale(self, asked: Mapping[str, int], /) -> None:
        self.asked.append(asked)
        if self.failures:
            raise self.failures.pop(0)


async def test_a_rescale_that_fails_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    job, told = Overworked(CheckpointFailed("the disk is full"), ValueError("a bug")), list[Decision]()
    async with autoscaled(job, quick(), SYSTEM, told.append):
        await until(lambda: len(job.asked) >= 3)
    assert job.asked[0] == {"totals": 3}
    assert "autoscaling goes on after CheckpointFailed: the disk is full" in caplog.text
    assert "autoscaling goes on after ValueError: a bug" in caplog.text
    assert told[-1].groups and told[0].action == "wait"


async def test_where_a_job_goes_back_it_rests_longer_and_longer() -> None:
    """`Overworked` never runs by what it was rescaled to."""
    job, rests = Overworked(), list[str]()

    def tell(decision: Decision) -> None:
        if "of rest after a rescale" in decision.reason:
            rests.append(decision.reason.split()[0])

    settings = quick(cooldown=dt.timedelta(hours=1))
    async with autoscaled(job, settings, SYSTEM, tell):
        await until(lambda: len(rests) > 3)
    assert rests[0] == "7200", "twice as long as where it is done"
    assert len(job.asked) == 1


async def test_it_ends_with_the_job() -> None:
    job = Overworked(JobNotRunning("it has ended"))
    async with autoscaled(job, quick(), SYSTEM, lambda _: None):
        await until(lambda: job.asked)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        await until(lambda: all(task.done() for task in tasks))
    assert len(job.asked) == 1


async def test_between_attempts_it_does_not_look() -> None:
    job, told = Overworked(), list[Decision]()
    plan, job.there = job.there, None
    async with autoscaled(job, quick(), SYSTEM, told.append):
        await until(lambda: job.looks > 2)
        assert not told
        job.there = plan
        await until(lambda: told)
