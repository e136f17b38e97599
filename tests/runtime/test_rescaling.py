"""`job.rescale`: another parallelism in one step, within one process; and what it refuses, waits for, and survives."""

import asyncio
import contextlib
import datetime as dt
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from connectors.memory import ListSink
from streamactors.checkpoint.storage.local import LocalFiles
from streamactors.clock import SYSTEM
from streamactors.launch import _supervised
from streamactors.runtime.events import AttemptBegun, AttemptFailed, JobEvent, Moment
from streamactors.sources import Position, SourceBatch, SourceContext
from streamactors.submission import job_here
from streamactors.testing.failing_files import FailingFiles
from tests.runtime.feeds import PATIENCE, Feed, FeedReader, until

pytestmark = pytest.mark.slow

KEYS = 7
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "aligned": {},
    "unaligned": {"alignment": "unaligned", "interval": dt.timedelta(milliseconds=5)},
    "timeout": {"alignment_timeout": dt.timedelta(0), "interval": dt.timedelta(milliseconds=5)},
    "at-least-once": {"mode": "at-least-once"},
}


class Count(sa.KeyedOperator[int, int, tuple[int, int]]):
    count = sa.ValueState(int, default=0)

    def process(self, value: int, ctx: sa.Context[int, tuple[int, int]]) -> None:
        self.count.set(self.count.get() + 1)
        ctx.emit((value, self.count.get()))


class Gate:
    """A step that lets records through while it is open."""

    def __init__(self) -> None:
        self.taken = 0
        self.broken: Exception | None = None
        self._opened = asyncio.Event()
        self.open()

    def open(self) -> None:
        self._opened.set()

    def close(self) -> None:
        self._opened.clear()

    async def __call__(self, value: Any) -> Any:
        self.taken += 1
        await self._opened.wait()
        await asyncio.sleep(0)
        if self.broken is not None:
            error, self.broken = self.broken, None
            raise error
        return value


class World:
    """A flow numbers → count → gate → out, and what it has given."""

    def __init__(self, folder: Path, feed: Feed | None = None) -> None:
        self.folder = folder
        self.feed = feed or Feed(4)
        self.gate = Gate()
        self.sink = ListSink[tuple[int, int]]()
        self.files = FailingFiles(LocalFiles((folder / "checkpoints").as_uri(), clock=SYSTEM))
        self._put = 0

    def put(self, count: int) -> None:
        for number in range(self._put, self._put + count):
            self.feed.put(number, split=number % 4)
        self._put += count

    def flow(self, **count: Any) -> sa.Dataflow:
        flow = sa.Dataflow("counting")
        numbers = flow.source("numbers", self.feed).map(lambda value: value)
        counted = numbers.key_by(lambda value: value % KEYS).process("count", Count, **count)
        counted.map(self.gate, name="gate", chain=False).sink("out", self.sink)
        return flow

    @contextlib.asynccontextmanager
    async def job(
        self,
        parallelism: int = 2,
        *,
        flow: sa.Dataflow | None = None,
        backend: Any = "heap",
        restart: Any = None,
        **checkpoints: Any,
    ) -> AsyncIterator[sa.JobHandle]:
        given: dict[str, Any] = {"interval": dt.timedelta(hours=1), **checkpoints}
        config = sa.Config(
            checkpoints=sa.Checkpoints((self.folder / "checkpoints").as_uri(), **given),
            parallelism=parallelism,
            mailbox_capacity=64,
            state_backend=backend,
            restart=restart or sa.Restart.fixed(dt.timedelta(0), 5),
        )
        graph = (flow or self.flow()).graph()
        job = job_here(graph, config, restore="latest", fresh=False, resources=None, files=self.files)
        async with asyncio.timeout(2 * PATIENCE), _supervised(job, None, "cancel", dt.timedelta(0)) as handle:
            yield handle

    async def end(self, job: sa.JobHandle) -> None:
        self.gate.open()
        self.feed.end()
        async with asyncio.timeout(PATIENCE):
            await job.wait()

    def check(self) -> None:
        assert sorted(value for value, _ in self.sink.values) == list(range(self._put))
        for key in range(KEYS):
            counts = sorted(count for value, count in self.sink.values if value % KEYS == key)
            assert counts == list(range(1, len(counts) + 1))

    async def taken_up(self, count: int) -> None:
        before = self.gate.taken
        await until(lambda: self.gate.taken >= before + count)

    async def given(self, count: int) -> None:
        await until(lambda: len(self.sink.values) >= count)


def width(job: sa.JobHandle, uid: str = "count") -> int:
    assert job.plan is not None
    return job.plan.node[uid][0].parallelism


# ------------------------------------------------------------------------------------------------------------- one step
@pytest.mark.parametrize("backend", ["heap", "rocksdb"])
@pytest.mark.parametrize("mode", CHECKPOINTS)
async def test_every_record_once_with_the_state_of_its_key(tmp_path: Path, mode: str, backend: str) -> None:
    world = World(tmp_path)
    async with world.job(backend=backend, **CHECKPOINTS[mode]) as job:
        for parallelism in (3, 1, 4):
            world.put(500)
            await world.taken_up(10)
            async with asyncio.timeout(PATIENCE):
                await job.rescale(parallelism=parallelism)
            assert (job.status, width(job), width(job, "out")) == ("running", parallelism, parallelism)
        world.put(100)
        assert job.restarts == 0 and job.incidents == ()
        await world.end(job)
    world.check()


async def test_what_is_told_of_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    world = World(tmp_path)
    async with world.job() as job:
        assert job.last_rescale is None and job.metrics()["last_rescale"] is None
        world.put(50)
        await until(lambda: sum(node["records_out"] for node in nodes(job, "numbers")) == 50)
        with caplog.at_level("INFO", "streamactors.job"):
            await job.rescale(parallelism=3)
        assert len(world.sink.values) == 50, "it has committed"
        info: Any = job.metrics()["last_rescale"]
        assert info.pause > dt.timedelta(0) and info.time_ms > 0
        assert (info.before["count"], info.after["count"]) == (2, 3)
        assert set(info.after.values()) == {3} and "numbers" in info.after
        said = [record.getMessage() for record in caplog.records if "rescal" in record.getMessage()]
        assert said[0].startswith("counting: rescaling: numbers 2 → 3, ") and said[-1].startswith("counting: rescaled")
        await job.rescale(parallelism=3)  # as it is
        assert job.last_rescale is info
        await world.end(job)


async def test_who_looks_on_and_who_asks_notice_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.gate.close()
    async with world.job() as job, job.subscribe("count") as counts:
        world.put(8)
        assert await anext(counts)
        rescaled = asyncio.ensure_future(job.rescale(parallelism=3))
        asked = [asyncio.ensure_future(job.query("count", Count.count, value % KEYS)) for value in range(50)]
        world.gate.open()
        async with asyncio.timeout(PATIENCE):
            answers = await asyncio.gather(*asked)
            await rescaled
        assert all(0 <= answer <= 2 for answer in answers)
        assert await job.query("count", Count.count, 0) == 2
        world.put(1)
        seen = [await anext(counts) for _ in range(8)]
        assert seen[-1] == (8, 2)
        await world.end(job)
    world.check()


async def test_nothing_is_left_but_checkpoints_that_are_retained(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.job(retain=2) as job:
        for parallelism in (1, 3, 2, 4):
            world.put(10)
            await job.rescale(parallelism=parallelism)
        await until(lambda: len(manifests(tmp_path)) == 2)
        assert not any(info.savepoint for info in job.checkpoints)
        await world.end(job)
    world.check()


async def test_steps_by_uid(tmp_path: Path) -> None:
    """Those that hand records straight on go together, or those of a key would change their order."""
    world = World(tmp_path)
    async with world.job(flow=world.flow(parallelism=2)) as job:
        await job.rescale(parallelism={"count": 4})
        assert [width(job, uid) for uid in ("numbers", "count", "map-3", "out")] == [2, 4, 4, 4]
        await job.rescale(parallelism=3)
        assert [width(job, uid) for uid in ("numbers", "count", "out")] == [3, 4, 4]
        await job.rescale(parallelism={"count": 2, "out": 1})
        assert [width(job, uid) for uid in ("numbers", "count", "out")] == [3, 2, 1]
        world.put(100)
        await world.end(job)
    world.check()


async def test_the_parallelism_outlives_attempts_but_not_the_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path)
    async with world.job() as job:
        world.put(50)
        await job.rescale(parallelism=4)
        await job.checkpoint()
        world.feed.fail(RuntimeError("broken"))
        await until(lambda: job.restarts == 1 and job.status == "running")
        assert width(job) == 4 and job.incidents[-1].attempt == 2
        world.put(50)
        await job.checkpoint()
        assert job.metrics()["restored_parallelism"] == {}
    async with world.job() as job:
        assert width(job) == 2
        assert job.metrics()["restored_parallelism"] == dict.fromkeys(("numbers", "map-1", "count", "map-3", "out"), 4)
        await job.checkpoint()
    [told] = [record for record in caplog.records if "was rescaled" in record.getMessage()]
    assert told.levelname == "WARNING" and "count 4 → 2" in told.getMessage()
    async with world.job(3) as job:
        assert job.metrics()["restored_parallelism"]["count"] == 2
        await world.end(job)
    assert len([record for record in caplog.records if "was rescaled" in record.getMessage()]) == 1, "set by hand"
    world.check()


async def test_a_job_whose_data_ends_meanwhile_finishes(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.gate.close()
    async with world.job() as job:
        world.put(20)
        await until(lambda: world.gate.taken)
        world.feed.end()
        rescaled = asyncio.ensure_future(job.rescale(parallelism=3))
        await until(lambda: job._job._rescales.under_way is not None)  # type: ignore[attr-defined]
        world.gate.open()
        async with asyncio.timeout(PATIENCE):
            await job.wait()
            await asyncio.gather(rescaled, return_exceptions=True)
        assert job.status == "finished"
    world.check()


# -------------------------------------------------------------------------------------------------------------- failure
@pytest.mark.parametrize("tolerable_failures", [0, 2])
async def test_where_the_checkpoint_fails_the_job_goes_on_as_it_was(tmp_path: Path, tolerable_failures: int) -> None:
    world = World(tmp_path)
    async with world.job(tolerable_failures=tolerable_failures) as job:
        for _ in range(3):
            world.put(50)
            failure = world.files.fail("create", "*/manifest", times=1)
            with pytest.raises(sa.CheckpointFailed, match="not rescaled, and goes on as it was: checkpoint .* failed"):
                await job.rescale(parallelism=3)
            assert failure.hits == 1
            assert (job.status, job.restarts, width(job), job.last_rescale) == ("running", 0, 2, None)
            world.put(50)
            await job.checkpoint()
            await world.given(world._put)
        await job.rescale(parallelism=3)
        assert (job.restarts, width(job)) == (0, 3)
        world.put(50)
        await world.end(job)
    world.check()


async def test_an_attempt_that_fails_meanwhile_is_restarted_by_the_new_parallelism(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.job() as job:
        world.put(60)
        await job.checkpoint()
        world.gate.close()
        world.put(60)
        await world.taken_up(1)
        rescaled = asyncio.ensure_future(job.rescale(parallelism=3))
        await until(lambda: job._job._rescales.under_way is not None)  # type: ignore[attr-defined]
        world.gate.broken = RuntimeError("broken")
        world.gate.open()
        async with asyncio.timeout(PATIENCE):
            await rescaled
        assert (job.status, job.restarts, width(job)) == ("running", 1, 3)
        assert job.last_rescale is not None
        await world.end(job)
    world.check()


class Narrow(Feed):
    """Can't be read by more than two."""

    def reader(self, ctx: SourceContext) -> FeedReader:
        if ctx.parallelism > 2:
            raise sa.InvalidConfig("two connections are all that the server allows")
        return super().reader(ctx)


async def test_where_the_new_attempt_is_refused_the_old_parallelism_comes_back(tmp_path: Path) -> None:
    world = World(tmp_path, Narrow(4))
    async with world.job() as job:
        world.put(50)
        with pytest.raises(sa.InvalidConfig, match="two connections"):
            await job.rescale(parallelism=3)
        await until(lambda: job.status == "running")
        assert (width(job), job.restarts, job.last_rescale) == (2, 0, None)
        await job.rescale(parallelism={"count": 3})
        assert width(job) == 3
        world.put(50)
        await world.end(job)
    world.check()


class Strict(Feed):
    """Where more than two read, the first of them fails: on opening, or with the first record."""

    def __init__(self, when: str) -> None:
        super().__init__(4)
        self.when = when
        self.strict = True

    def reader(self, ctx: SourceContext) -> FeedReader:
        return StrictReader(self, ctx)


class StrictReader(FeedReader):
    def __init__(self, feed: Strict, ctx: SourceContext) -> None:
        super().__init__(feed, ctx)
        self._strict = feed if feed.strict and ctx.parallelism > 2 and ctx.subtask == 0 else None

    def _check(self, when: str) -> None:
        if self._strict is not None and self._strict.when == when:
            raise OSError("too many connections")

    async def open(self, restored: Mapping[str, Position] | None) -> Mapping[str, Position]:
        self._check("open")
        return await super().open(restored)

    async def read(self) -> SourceBatch[Any] | None:
        self._check("read")
        return await super().read()


async def test_where_the_new_attempt_does_not_come_to_run_the_old_parallelism_comes_back(tmp_path: Path) -> None:
    world = World(tmp_path, Strict("open"))
    async with world.job() as job:
        world.put(50)
        with pytest.raises(
            sa.RescaleFailed, match=r"numbers 2 → 3.* goes on as it was: .*too many connections"
        ) as told:
            await job.rescale(parallelism=3)
        assert isinstance(told.value.__cause__, OSError)
        await until(lambda: job.status == "running")
        assert (width(job), job.restarts, job.last_rescale) == (2, 1, None)
        world.put(50)
        await world.end(job)
    world.check()


async def test_where_the_new_attempt_fails_before_its_first_checkpoint_the_old_parallelism_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path, feed := Strict("read"))
    async with world.job() as job:
        world.put(50)
        await job.rescale(parallelism=3)
        await until(lambda: job.status == "running" and width(job) == 2)
        [incident] = job.incidents
        assert isinstance(incident.error, OSError) and "numbers 2 → 3" in incident.error.__notes__[-1]
        assert any("goes back to the parallelism before" in record.getMessage() for record in caplog.records)
        back: Any = job.last_rescale
        assert (job.restarts, back.before["count"], back.after["count"]) == (1, 3, 2)
        world.put(50)
        world.feed.fail(RuntimeError("broken"))
        await until(lambda: job.restarts == 2 and job.status == "running")
        assert (width(job), job.last_rescale) == (2, back), "once"
        feed.strict = False
        await job.rescale(parallelism=3)
        await job.checkpoint()
        world.feed.fail(RuntimeError("broken"))
        await until(lambda: job.restarts == 3 and job.status == "running")
        assert width(job) == 3, "it has taken a checkpoint"
        await world.end(job)
    world.check()


async def test_an_attempt_that_fails_while_it_is_rescaled_once_more_goes_on_by_the_latest(tmp_path: Path) -> None:
    """Though it has taken no checkpoint by the one before."""
    world = World(tmp_path)
    async with world.job() as job:
        world.put(60)
        await job.rescale(parallelism=3)
        world.gate.close()
        world.put(60)
        await world.taken_up(1)
        rescaled = asyncio.ensure_future(job.rescale(parallelism=4))
        await until(lambda: job._job._rescales.under_way is not None)  # type: ignore[attr-defined]
        world.gate.broken = RuntimeError("broken")
        world.gate.open()
        async with asyncio.timeout(PATIENCE):
            await rescaled
        assert (job.status, job.restarts, width(job)) == ("running", 1, 4)
        await world.end(job)
    world.check()


async def test_a_rescale_ends_no_job_that_may_not_restart(tmp_path: Path) -> None:
    world = World(tmp_path, Strict("read"))
    with contextlib.suppress(sa.JobFailed):  # raised on leaving too
        async with world.job(restart=sa.Restart.none()) as job:
            world.put(50)
            await job.rescale(parallelism=3)
            await until(lambda: job.status == "running" and width(job) == 2)
            world.feed.fail(RuntimeError("broken"))
            with pytest.raises(sa.JobFailed, match="broken"):
                await job.wait()
    assert job.status == "failed" and job.restarts == 1


async def test_the_pause_is_not_that_of_deleting_old_checkpoints(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.job(retain=1) as job:
        world.put(50)
        await job.checkpoint()
        await until(lambda: len(manifests(tmp_path)) == 1)
        stall = world.files.stall("delete*")
        await job.rescale(parallelism=3)
        assert stall.reached.is_set() and width(job) == 3
        world.files.heal()
        await until(lambda: [path.parent.name for path in manifests(tmp_path)] == [f"chk-{job.checkpoints[-1].id}"])
        assert len(job.checkpoints) == 2, "none has followed, and what was left is deleted all the same"
        await world.end(job)
    world.check()


def manifests(folder: Path) -> list[Path]:
    return list((folder / "checkpoints").glob("counting/*/*/chk-*/manifest"))


async def test_a_storage_that_fails_between_two_attempts_costs_a_restart_and_nothing_else(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.job() as job:
        world.put(50)
        failure = world.files.fail("make_folder", "*/attempt-2*", times=1)
        await job.rescale(parallelism=3)
        assert failure.hits == 1 and (job.restarts, width(job)) == (1, 3)
        await world.end(job)
    world.check()


async def test_every_attempt_has_a_number_of_its_own(tmp_path: Path) -> None:
    world = World(tmp_path, Narrow(4))
    told: list[tuple[str, int]] = []

    def listen(event: JobEvent, at: Moment) -> None:
        if isinstance(event, AttemptBegun | AttemptFailed):
            told.append((type(event).__name__, event.attempt))

    async with world.job() as job:
        with job.listening(listen):
            with pytest.raises(sa.InvalidConfig, match="two connections"):
                await job.rescale(parallelism=3)
            await until(lambda: job.status == "running")
            failure = world.files.fail("sync_folder", "counting/run-1", times=1)
            await job.rescale(parallelism=1)
            assert failure.hits == 1 and job.restarts == 1
        await world.end(job)
    refused, between = [("AttemptBegun", 2), ("AttemptFailed", 2)], [("AttemptBegun", 3), ("AttemptFailed", 3)]
    assert told == [*refused, *between, ("AttemptBegun", 4)]


async def test_cancelled_in_the_middle(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.gate.close()
    async with world.job() as job:
        world.put(20)
        await until(lambda: world.gate.taken)
        rescaled = asyncio.ensure_future(job.rescale(parallelism=3))
        await until(lambda: job._job._rescales.under_way is not None)  # type: ignore[attr-defined]
        await job.cancel()
        with pytest.raises(sa.JobNotRunning, match="cancelled"):
            await rescaled
    async with world.job(3) as job:
        await world.end(job)
    world.check()


# -------------------------------------------------------------------------------------------------------- one at a time
async def test_what_else_is_asked_for_meanwhile(tmp_path: Path) -> None:
    """A second one is refused; a checkpoint, a savepoint and a stop wait for it."""
    world = World(tmp_path)
    world.gate.close()
    async with world.job() as job:
        world.put(20)
        await until(lambda: world.gate.taken)
        first = asyncio.ensure_future(job.rescale(parallelism=3))
        await until(lambda: job._job._rescales.under_way is not None)  # type: ignore[attr-defined]
        with pytest.raises(sa.RescaleUnderWay, match=r"is being rescaled already \(numbers 2 → 3, .*ask again"):
            await job.rescale(parallelism=1)
        first.cancel()  # it goes on
        saved = asyncio.ensure_future(job.savepoint((tmp_path / "saved").as_uri()))
        taken = asyncio.ensure_future(job.checkpoint())
        stopped = asyncio.ensure_future(job.stop())
        await asyncio.sleep(0)
        world.gate.open()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(saved, taken, stopped, return_exceptions=True)
            assert await stopped == job.checkpoints[-1].uri
        assert width(job) == 3 and job.status == "finished"
        with contextlib.suppress(sa.CheckpointFailed):  # whichever of them came after the stop
            assert await saved == (tmp_path / "saved").as_uri()
    world.feed.end()
    async with world.job(3) as job:
        await world.end(job)
    world.check()


async def test_a_savepoint_that_was_asked_for_before_comes_first(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.gate.close()
    async with world.job() as job:
        world.put(20)
        await until(lambda: world.gate.taken)
        saved = asyncio.ensure_future(job.savepoint((tmp_path / "saved").as_uri()))
        await until(lambda: job.checkpoints_under_way)
        rescaled = asyncio.ensure_future(job.rescale(parallelism=3))
        await until(lambda: job._job._rescales.under_way is not None)  # type: ignore[attr-defined]
        world.gate.open()
        async with asyncio.timeout(PATIENCE):
            assert await saved == (tmp_path / "saved").as_uri()
            await rescaled
        assert [info.savepoint for info in job.checkpoints] == [True, False, False], "a follow-up commits first"
        await world.end(job)
    world.check()


async def test_a_job_that_stops_is_not_rescaled(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.gate.close()
    async with world.job() as job:
        world.put(20)
        await until(lambda: world.gate.taken)
        stopped = asyncio.ensure_future(job.stop())
        await until(lambda: job.stopping)
        with pytest.raises(sa.JobNotRunning, match="is stopping: start it again with another parallelism"):
            await job.rescale(parallelism=3)
        world.gate.open()
        await stopped


# -------------------------------------------------------------------------------------------------------------- refused
async def test_what_can_not_be_is_refused_before_anything_is_touched(tmp_path: Path) -> None:
    world = World(tmp_path)
    refused: list[tuple[Any, str]] = [
        (0, "parallelism is 0: it must be a whole number, at least 1"),
        (True, "parallelism is True"),
        (2.5, "parallelism is 2.5"),
        ("4", "parallelism is '4'"),
        ({}, "names no step"),
        ({"total": 3}, "no step 'total' to rescale; it has: numbers, map-1, count, map-3, out"),
        ({"count": -1}, "parallelism of step 'count' is -1"),
        (129, "parallelism 129, .* not between 1 and the max_parallelism of 128"),
        ({"count": 200}, "'count' has parallelism 200"),
    ]
    async with world.job() as job:
        for asked, said in refused:
            with pytest.raises(sa.InvalidConfig, match=said):
                await job.rescale(parallelism=asked)
        world.put(10)
        assert job.checkpoints == () and world.feed.opened == 2, "the first attempt goes on"
        await world.end(job)
    world.check()


async def test_batch_and_jobs_without_checkpoints_are_refused(tmp_path: Path) -> None:
    world = World(tmp_path)
    for config, said in (
        (sa.Config(), r"these are off: give Config\(checkpoints="),
        (sa.Config(execution="batch"), "'batch' takes no checkpoint to go on from"),
    ):
        async with sa.start(world.flow(), config, on_exit="cancel") as job:
            with pytest.raises(sa.InvalidConfig, match=said):
                await job.rescale(parallelism=2)
            await job.cancel()


# --------------------------------------------------------------------------------------------- what a step may be doing
class Timed(sa.KeyedOperator[int, int, tuple[str, int]]):
    """One timer for each record, far ahead of it."""

    def process(self, value: int, ctx: sa.Context[int, tuple[str, int]]) -> None:
        ctx.timers.event(value * 10 + 1000)
        ctx.emit(("read", value))

    def on_timer(self, timer: sa.Timer, ctx: sa.Context[int, tuple[str, int]]) -> None:
        ctx.emit(("fired", (timer.timestamp - 1000) // 10))


@pytest.mark.parametrize("backend", ["heap", "rocksdb"])
async def test_timers_windows_and_watermarks_go_with_their_keys(tmp_path: Path, backend: str) -> None:
    world = World(tmp_path)
    fired, counted = ListSink[Any](), ListSink[Any]()
    flow = sa.Dataflow("timed")
    stamped = flow.source("numbers", world.feed, watermarks=sa.Watermarks.monotonic(lambda value: value * 10))
    keyed = stamped.key_by(lambda value: value % KEYS)
    keyed.process("timed", Timed).sink("fired", fired)
    keyed.window("windows", sa.Tumbling(dt.timedelta(seconds=1))).aggregate(sa.Count()).sink("counts", counted)
    async with world.job(flow=flow, backend=backend) as job:
        for parallelism in (3, 1, 4):
            world.put(120)
            await until(lambda: sum(c["records_in"] for c in nodes(job, "timed")))
            await job.rescale(parallelism=parallelism)
        world.put(40)
        await world.end(job)
    numbers = range(400)
    assert Counter(fired.values) == Counter([(what, value) for value in numbers for what in ("read", "fired")])
    windows = Counter((value * 10 // 1000, value % KEYS) for value in numbers)
    assert sorted(window.value for window in counted.values) == sorted(windows.values())


def nodes(job: sa.JobHandle, uid: str) -> list[Any]:
    return [node for each in job.metrics()["subtasks"].values() for name, node in each["nodes"].items() if name == uid]


class Called(sa.AsyncKeyedOperator[int, int, tuple[int, int]]):
    """Its calls wait for the test."""

    count = sa.ValueState(int, default=0)

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def process(self, value: int, ctx: sa.Context[int, tuple[int, int]]) -> None:
        await self._gate(value)
        self.count.set(self.count.get() + 1)
        ctx.emit((value, self.count.get()))


async def test_calls_that_wait_are_made_again(tmp_path: Path) -> None:
    """The checkpoint does not wait for them."""
    world = World(tmp_path)
    calls = Gate()
    calls.close()
    flow = sa.Dataflow("called")
    called = (
        flow.source("numbers", world.feed).key_by(lambda value: value % KEYS).process("called", lambda: Called(calls))
    )
    called.sink("out", world.sink)
    async with world.job(flow=flow) as job:
        world.put(40)
        await until(lambda: calls.taken >= KEYS)
        for parallelism in (3, 1):
            async with asyncio.timeout(PATIENCE):
                await job.rescale(parallelism=parallelism)
        assert world.sink.values == []
        calls.open()
        await world.end(job)
    world.check()
