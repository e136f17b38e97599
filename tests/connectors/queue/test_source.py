"""Reading a queue: the contract of sources, and real jobs that crash, are restarted, rescaled and upgraded."""

import asyncio
import dataclasses
import datetime as dt
from pathlib import Path

import msgspec
import pytest

import streamactors as sa
from connectors.memory import ListSink
from connectors.queue import CorruptQueue, PositionGone, QueueSource
from connectors.queue.committing import GROUP_RECORDS
from streamactors.sources import PENDING_RECORDS, SplitSource
from streamactors.testing.connector_contract import SourceContract, read, source_context

pytestmark = pytest.mark.slow

PATIENCE = 60.0
PARTITIONS = 3


class Order(msgspec.Struct):
    customer: str
    cents: int


class TestContract(SourceContract[str]):
    """Groups of many sizes; several segments in each partition."""

    @pytest.fixture(autouse=True)
    async def filled(self, tmp_path: Path) -> None:
        self._folder = str(tmp_path / "orders")
        self._values = [f"{number:03}" for number in range(200)]
        queue = self._queue()
        async with queue:
            for size in (1, 1, 2, 10, 40, 146):
                await asyncio.gather(*(queue.put(value) for value in self._values[:size]))
                self._values = self._values[size:] + self._values[:size]

    def _queue(self) -> QueueSource[str]:
        return QueueSource(self._folder, value=sa.Text(), partitions=PARTITIONS, segment_bytes=300)

    def source(self) -> SplitSource[str]:
        queue = self._queue()
        queue.end()
        return queue

    async def expected(self) -> list[str]:
        return self._values


class Jobs:
    """Runs of one flow that reads the queue in `folder`, all on the same checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sink: ListSink[str] = ListSink()
        self.seen: list[str] = []
        """What a step has had, committed or not."""

    def queue(self, **settings: object) -> QueueSource[str]:
        return QueueSource(str(self.folder / "orders"), **{"value": sa.Text(), **settings})  # type: ignore[arg-type]

    def config(self, **settings: object) -> sa.Config:
        checkpoints = {"interval": dt.timedelta(hours=1), **settings}
        return sa.Config(checkpoints=sa.Checkpoints(f"file://{self.folder}/checkpoints", **checkpoints))  # type: ignore[arg-type]

    def flow(self, queue: QueueSource[str], name: str = "flow", parallelism: int = 1) -> sa.Dataflow:
        flow = sa.Dataflow(name)
        flow.source("orders", queue, parallelism=parallelism).map(self.see).sink("out", self.sink)
        return flow

    def see(self, value: str) -> str:
        self.seen.append(value)
        return value

    async def has_seen(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while len(self.seen) < count:
                await asyncio.sleep(0.001)

    @property
    def values(self) -> list[str]:
        return list(self.sink.values)


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path)


async def put_all(queue: QueueSource[str], values: str) -> None:
    for value in values:
        await queue.put(value)


# ----------------------------------------------------------------------------------------------------------- life cycle
async def test_put_before_the_job_runs_while_it_does_and_after(jobs: Jobs) -> None:
    async with jobs.queue() as queue:
        await put_all(queue, "ab")
        async with sa.start(jobs.flow(queue), jobs.config()):
            await put_all(queue, "cd")
        await put_all(queue, "ef")
        assert set(jobs.values) <= set("abcd")
        async with sa.start(jobs.flow(queue), jobs.config()) as job:
            queue.end()
            await job.wait()
    assert jobs.values == list("abcdef")


async def test_a_job_that_finished_goes_on_when_more_is_put_later(jobs: Jobs) -> None:
    for values in ("ab", "cd"):
        async with jobs.queue() as queue:
            await put_all(queue, values)
            queue.end()
            await sa.run(jobs.flow(queue), jobs.config())
    assert jobs.values == list("abcd")


async def test_an_end_while_puts_wait_for_room_loses_none(jobs: Jobs) -> None:
    async with jobs.queue(max_pending=2) as queue:
        puts = [asyncio.create_task(queue.put(value)) for value in "abcdefg"]
        await asyncio.sleep(0)
        queue.end()
        await sa.run(jobs.flow(queue), jobs.config())
        await asyncio.gather(*puts)
    assert jobs.values == list("abcdefg")


async def test_the_backlog_is_a_metric(jobs: Jobs) -> None:
    queue = jobs.queue(partitions=2)
    ctx = source_context()
    async with queue:
        for value in "abc":
            await queue.put(value)
        reader = queue.reader(ctx)
        await reader.open(None)
        assert ctx.metrics.read()["queue.pending"] == ctx.metrics.read()[PENDING_RECORDS] == 3
        await reader.read()
        assert ctx.metrics.read()["queue.pending"] < 3
        await reader.close()


async def test_two_jobs_can_not_read_one_queue(jobs: Jobs) -> None:
    async with jobs.queue() as queue, sa.start(jobs.flow(queue), sa.Config()) as job:
        await queue.put("a")
        await jobs.has_seen(1)
        with pytest.raises(sa.JobFailed, match="is being read by source 'orders' of flow 'flow' already"):
            await sa.run(jobs.flow(queue, "another"), jobs.config())
        assert job.status == "running"
        await queue.put("b")
        queue.end()
        await job.wait()
    assert jobs.values == list("ab")


# ------------------------------------------------------------------------------------------------------------ recovery
async def test_a_job_that_fails_again_and_again_counts_each_record_once(jobs: Jobs) -> None:
    failures = iter(range(6))

    def shaky(value: str) -> str:
        if value.endswith("7") and next(failures, None) is not None:
            raise RuntimeError("now and then")
        return value

    sink: ListSink[str] = ListSink()
    async with jobs.queue(partitions=2, segment_bytes=2000) as queue:
        flow = sa.Dataflow("flow")
        flow.source("orders", queue, parallelism=2).map(shaky).sink("out", sink)
        config = jobs.config(interval=dt.timedelta(milliseconds=20))
        config = dataclasses.replace(config, restart=sa.Restart.fixed(dt.timedelta(milliseconds=1), 20))
        async with sa.start(flow, config) as job:
            for number in range(400):
                await queue.put(str(number))
            queue.end()
            await job.wait()
            assert job.restarts == 6
    assert sorted(sink.values, key=int) == [str(number) for number in range(400)]


async def test_a_job_is_rescaled_and_its_queue_gets_more_partitions(jobs: Jobs) -> None:
    """Per key in order, whatever happens, where a key stays where it is."""
    number = 0
    for parallelism, partitions in ((1, 2), (2, 2), (3, 2), (1, 4), (3, 4)):
        queue = jobs.queue(partitions=partitions)
        async with queue, sa.start(jobs.flow(queue, parallelism=parallelism), jobs.config()):
            for _ in range(50):
                await queue.put(f"{number}")
                number += 1
    async with jobs.queue() as queue:
        queue.end()
        await sa.run(jobs.flow(queue), jobs.config())
    assert sorted(jobs.values, key=int) == [str(number) for number in range(250)]


async def test_an_upgraded_job_reads_what_the_old_one_was_given(tmp_path: Path) -> None:
    class OldOrder(msgspec.Struct):
        customer: str

    class NewOrder(msgspec.Struct):
        customer: str
        cents: int = 100

    old = QueueSource(str(tmp_path), value=sa.MsgPack(OldOrder))
    await old.put(OldOrder("alice"))
    await old.close()
    new = QueueSource(str(tmp_path), value=sa.MsgPack(NewOrder))
    new.end()
    assert (await read(new.reader(source_context()), None)).all_values() == [NewOrder("alice", 100)]


# ------------------------------------------------------------------------------------------------------------- deletion
def segments(jobs: Jobs) -> int:
    return len(list((jobs.folder / "orders" / "partition-0").glob("*.log")))


async def put_segments(jobs: Jobs, queue: QueueSource[str], count: int) -> None:
    """So many, and the job has had what is in them."""
    before = len(jobs.seen)
    for number in range(count):
        await queue.put(f"{number} {'x' * 200}")
    await jobs.has_seen(before + count)


async def until_segments(jobs: Jobs, count: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while segments(jobs) != count:
            await asyncio.sleep(0.001)


async def test_segments_are_deleted_that_no_retained_checkpoint_needs(jobs: Jobs) -> None:
    async with jobs.queue(segment_bytes=100) as queue, sa.start(jobs.flow(queue), jobs.config(retain=2)) as job:
        await put_segments(jobs, queue, 5)
        await job.checkpoint()
        assert segments(jobs) == 5, "an earlier run's checkpoint may be retained still"
        await put_segments(jobs, queue, 5)
        await job.checkpoint()
        await until_segments(jobs, 5)  # those behind the first checkpoint
        await put_segments(jobs, queue, 1)
        await job.checkpoint()
        await until_segments(jobs, 1)


async def test_a_savepoint_does_not_count_as_one_that_is_retained(jobs: Jobs) -> None:
    """Else the latest checkpoint could not be restored any more."""
    queue = jobs.queue(segment_bytes=100)
    flow = sa.Dataflow("flow")
    flow.source("orders", queue).map(jobs.see)  # without a sink: else a checkpoint follows each savepoint
    async with queue, sa.start(flow, jobs.config(retain=1)) as job:
        await put_segments(jobs, queue, 3)
        await job.checkpoint()
        await until_segments(jobs, 1)
        for number in range(3):
            await put_segments(jobs, queue, 1)
            await job.savepoint(f"file://{jobs.folder}/savepoint-{number}")
        await put_segments(jobs, queue, 2)  # whatever there was to delete is deleted before the second of them
        assert segments(jobs) == 1 + 3 + 2


async def test_a_savepoint_whose_records_are_deleted_is_refused_and_one_within_the_retention_is_not(
    jobs: Jobs,
) -> None:
    savepoint = f"file://{jobs.folder}/savepoint"
    for retention in (dt.timedelta(hours=1), dt.timedelta(0)):
        queue = jobs.queue(segment_bytes=100, retention=retention)
        async with queue, sa.start(jobs.flow(queue), jobs.config(retain=1)) as job:
            if retention:
                await put_segments(jobs, queue, 1)
                await job.savepoint(savepoint)
            await put_segments(jobs, queue, 5)
            await job.checkpoint()
        if retention:
            jobs.sink.values.clear()
            async with jobs.queue() as queue:
                queue.end()
                await sa.run(jobs.flow(queue), jobs.config(), restore=savepoint)
            assert len(jobs.values) == 5, "what came after the savepoint"
    async with jobs.queue() as queue:
        queue.end()
        with pytest.raises(sa.JobFailed) as raised:
            await sa.run(jobs.flow(queue), jobs.config(), restore=savepoint)
        assert isinstance(raised.value.__cause__, PositionGone)
        assert "goes on with record 1" in str(raised.value.__cause__)


async def test_a_segment_that_was_altered_fails_the_job_for_good(jobs: Jobs) -> None:
    async with jobs.queue(segment_bytes=100) as queue:
        for number in range(3):
            await queue.put(f"{number} {'x' * 200}")
    path = min((jobs.folder / "orders" / "partition-0").glob("*.log"))
    path.write_bytes(path.read_bytes().replace(b"0 xxx", b"1 xxx"))
    async with jobs.queue() as queue:
        queue.end()
        with pytest.raises(sa.JobFailed) as raised:
            await sa.run(jobs.flow(queue), jobs.config())  # which would restart for other reasons
    assert isinstance(raised.value.__cause__, CorruptQueue)
    assert str(path) in str(raised.value.__cause__) and jobs.values == []


async def test_a_checkpoint_of_another_log_is_refused(jobs: Jobs) -> None:
    async with jobs.queue() as queue:
        await queue.put("a")
        async with sa.start(jobs.flow(queue), jobs.config()):
            await jobs.has_seen(1)
    (jobs.folder / "orders").rename(jobs.folder / "away")
    async with jobs.queue() as queue:
        await queue.put("other")
        with pytest.raises(sa.JobFailed) as raised:
            await sa.run(jobs.flow(queue), jobs.config())
        assert isinstance(raised.value.__cause__, PositionGone)


async def test_a_fresh_job_is_told_what_an_earlier_one_has_had(jobs: Jobs, caplog: pytest.LogCaptureFixture) -> None:
    async with jobs.queue(segment_bytes=100) as queue:
        async with sa.start(jobs.flow(queue), jobs.config(retain=1)) as job:
            await put_segments(jobs, queue, 5)
            await job.checkpoint()
            await until_segments(jobs, 1)
        queue.end()
        await sa.run(jobs.flow(queue), jobs.config(), restore=None, fresh=True)
    assert "begins with orders[0]@4: the records before it were read by an earlier job" in caplog.text


# -------------------------------------------------------------------------------------------------------------- records
async def test_undecodable_records_go_where_they_are_sent(tmp_path: Path) -> None:
    raw = QueueSource(str(tmp_path / "orders"), value=sa.Raw())
    for data in (b'{"customer": "alice", "cents": 5}', b"none", b'{"customer": "bob", "cents": 6}'):
        await raw.put(data)
    await raw.close()
    bad = sa.OutputTag("bad", sa.DeadLetter)
    queue = QueueSource(str(tmp_path / "orders"), value=sa.Json(Order), on_error=bad)
    queue.end()
    good: ListSink[Order] = ListSink()
    letters: ListSink[sa.DeadLetter] = ListSink()
    flow = sa.Dataflow("flow")
    stream = flow.source("orders", queue)
    stream.sink("good", good)
    stream.side_output(bad).sink("bad", letters)
    await sa.run(flow)
    assert [order.customer for order in good.values] == ["alice", "bob"]
    assert [letter.origin for letter in letters.values] == ["orders[0]@1"]


async def test_event_time_is_the_time_of_the_put_unless_given(tmp_path: Path) -> None:
    given = QueueSource(str(tmp_path / "given"), value=sa.Json(Order), timestamp=lambda order: order.cents)
    await given.put(Order("a", 1234))
    await given.close()
    given.end()
    reader = given.reader(source_context())
    await reader.open(None)
    batch = await reader.read()
    assert batch is not None and list(batch.timestamps or ()) == [1234]
    await reader.close()

    before = int(dt.datetime.now(dt.UTC).timestamp() * 1000)
    put = QueueSource(str(tmp_path / "put"), value=sa.Json(Order))
    await put.put(Order("a", 1))
    await put.close()
    reader = put.reader(source_context())
    await reader.open(None)
    batch = await reader.read()
    assert batch is not None and before <= (batch.timestamps or (0,))[0] <= before + 60_000
    await reader.close()


async def test_a_batch_is_bounded_in_records_and_in_bytes(tmp_path: Path) -> None:
    """Decoding holds the loop."""
    queue = QueueSource(str(tmp_path), value=sa.Raw())
    async with queue:
        await asyncio.gather(*(queue.put(b"x") for _ in range(3 * GROUP_RECORDS)))
        await asyncio.gather(*(queue.put(b"x" * 100_000) for _ in range(8)))
        await queue.put(b"x" * 3_000_000)
        queue.end()
    reading = await read(queue.reader(source_context()), None)
    assert len(reading.all_values()) == 3 * GROUP_RECORDS + 9
    assert max(len(batch.values) for batch in reading.batches) <= 1024
    assert max(sum(map(len, batch.values[:-1])) for batch in reading.batches) <= 256 * 1024
