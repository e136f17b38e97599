"""Putting: what is acknowledged is durable, groups share one fsync, the backlog is bounded, one owner at a time."""

import asyncio
import contextvars
import copy
import datetime as dt
import errno
import fcntl
import gc
import os
import pickle
import resource
import shutil
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

import streamactors as sa
from connectors.queue import (
    QueueClosed,
    QueueFull,
    QueueInUse,
    QueuePosition,
    QueueSource,
    RecordTooLarge,
    WriteFailed,
    disk,
)
from connectors.queue import source as source_module
from connectors.queue.committing import GroupCommit, Submitted
from connectors.queue.log import PartitionLog, Retention
from streamactors.errors import InvalidConfig, InvalidTimestamp
from streamactors.formats import Json, MsgPack, Raw, Text
from streamactors.sources import SplitReader
from streamactors.testing.connector_contract import read, source_context

PATIENCE = 60.0


class Order(msgspec.Struct):
    customer: str
    cents: int


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "orders")


@pytest.fixture
async def queue(folder: str) -> AsyncIterator[QueueSource[str]]:
    async with QueueSource(folder, value=Text()) as queue:
        yield queue


async def contents(folder: str, partitions: int = 1) -> list[list[str]]:
    """By partition, as a new process reads them."""
    queue = QueueSource(folder, value=Text(), partitions=partitions)
    queue.end()
    reading = await read(queue.reader(source_context()), None)
    return [reading.values[str(number)] for number in range(partitions)]


class Gate:
    """Holds every fsync until it is opened, and counts them."""

    def __init__(self) -> None:
        self.syncs = 0
        self._open = threading.Event()
        self._reached = threading.Event()

    def sync(self, descriptor: int) -> None:
        self.syncs += 1
        self._reached.set()
        assert self._open.wait(PATIENCE)
        os.fdatasync(descriptor)

    async def reached(self) -> None:
        assert await asyncio.to_thread(self._reached.wait, PATIENCE)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate(queue: QueueSource[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(disk, "sync", gate.sync)
    yield gate
    gate.open()


async def until_submitted(queue: QueueSource[str], count: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while queue.pending < count:
            await asyncio.sleep(0)


# ---------------------------------------------------------------------------------------------------- acknowledgement
async def test_a_put_returns_its_position(queue: QueueSource[str], folder: str) -> None:
    assert [await queue.put(value) for value in "abc"] == [QueuePosition(0, number) for number in range(3)]
    await queue.close()
    assert await contents(folder) == [["a", "b", "c"]]


async def test_a_put_does_not_return_before_it_is_durable(queue: QueueSource[str], gate: Gate) -> None:
    putting = asyncio.create_task(queue.put("a"))
    await gate.reached()
    done, _ = await asyncio.wait([putting], timeout=0)
    assert not done
    gate.open()
    assert await putting == QueuePosition(0, 0)


async def test_a_job_reads_nothing_that_is_not_durable(queue: QueueSource[str], gate: Gate) -> None:
    """Else it would know of a record that a power failure takes back."""
    async with Draining(queue) as reader:
        putting = asyncio.create_task(queue.put("a"))
        await gate.reached()  # it is written, and not yet synced
        reading = asyncio.create_task(reader.read())
        done, _ = await asyncio.wait([reading], timeout=0.02)
        assert not done
        gate.open()
        batch = await reading
        assert batch is not None and list(batch.values) == ["a"]
        await putting


async def test_puts_at_the_same_time_share_one_fsync(queue: QueueSource[str], gate: Gate, folder: str) -> None:
    first = asyncio.create_task(queue.put("first"))
    await gate.reached()
    others = [asyncio.create_task(queue.put(str(number))) for number in range(500)]
    await until_submitted(queue, 501)
    gate.open()
    assert [await put for put in (first, *others)] == [QueuePosition(0, number) for number in range(501)]
    assert gate.syncs == 2
    await queue.close()
    assert await contents(folder) == [["first", *map(str, range(500))]]


async def test_a_put_whose_caller_goes_away_is_whole_or_not_there(
    queue: QueueSource[str], gate: Gate, folder: str
) -> None:
    """One is being written, one waits for the next group."""
    puts = [asyncio.create_task(queue.put("written"))]
    await gate.reached()
    puts.append(asyncio.create_task(queue.put("waits")))
    await until_submitted(queue, 2)
    for put in puts:
        put.cancel()
    assert all(isinstance(left, asyncio.CancelledError) for left in await asyncio.gather(*puts, return_exceptions=True))
    gate.open()
    assert await queue.put("after") == QueuePosition(0, 2)
    await queue.close()
    assert await contents(folder) == [["written", "waits", "after"]]


async def test_what_nobody_needs_is_deleted_though_puts_never_pause(folder: str) -> None:
    log = PartitionLog(folder, segment_bytes=1, retention=Retention())
    log.open()
    loop = asyncio.get_running_loop()
    begins: list[int] = []

    def put_again() -> None:
        begins.append(log.begin)
        if len(begins) < 50:
            commit.submit(Submitted(b"x", 0, loop.create_future()))
        if len(begins) == 5:
            commit.trim(log.end)

    commit = GroupCommit(0, log, put_again)
    commit.submit(Submitted(b"x", 0, loop.create_future()))
    await commit.settle()
    log.close()
    assert begins[4] == 0 < begins[20] and len(begins) == 50


async def test_the_log_is_written_in_nobodys_context(queue: QueueSource[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on for others than whoever came first."""
    request = contextvars.ContextVar("request", default="none")
    seen = []
    real = PartitionLog.append

    def append(log: PartitionLog, records: list[tuple[bytes, int]]) -> int:
        seen.append(request.get())
        return real(log, records)

    monkeypatch.setattr(PartitionLog, "append", append)
    request.set("some request")
    await queue.put("a")
    assert seen == ["none"]


async def test_records_of_a_key_are_in_one_partition_in_order(folder: str) -> None:
    async with QueueSource(folder, value=Text(), partitions=3, key=lambda value: value[0]) as queue:
        for number in range(60):
            await queue.put(f"{'abcdef'[number % 6]}{number:02}")
    found = await contents(folder, 3)
    homes = [{value[0] for value in values} for values in found]
    assert sum(map(len, homes)) == 6 and set.union(*homes) == set("abcdef")
    assert all(values == sorted(values, key=lambda value: value[1:]) for values in found)


async def test_without_a_key_partitions_take_turns(folder: str) -> None:
    async with QueueSource(folder, value=Text(), partitions=3) as queue:
        for number in range(30):
            await queue.put(str(number))
    assert list(map(len, await contents(folder, 3))) == [10, 10, 10]


async def test_fewer_partitions_leave_none_unread(folder: str) -> None:
    async with QueueSource(folder, value=Text(), partitions=3) as queue:
        for value in "abcdef":
            await queue.put(value)
    async with QueueSource(folder, value=Text()) as queue:
        assert (await queue.put("g")).partition == 0
    found = await contents(folder, 3)
    assert sorted(value for values in found for value in values) == list("abcdefg")


# --------------------------------------------------------------------------------------------------------- the backlog
class Draining:
    """A job's part: reads batch by batch."""

    def __init__(self, queue: QueueSource[str]) -> None:
        self.reader: SplitReader[str] = queue.reader(source_context())

    async def __aenter__(self) -> SplitReader[str]:
        await self.reader.open(None)
        return self.reader

    async def __aexit__(self, *_: object) -> None:
        await self.reader.close()


async def test_put_waits_while_the_backlog_is_full_and_goes_on_in_turn(folder: str) -> None:
    async with QueueSource(folder, value=Text(), max_pending=3) as queue:
        for value in "abc":
            await queue.put(value)
        waiting = [asyncio.create_task(queue.put(value)) for value in "defgh"]
        await asyncio.sleep(0)
        gone = waiting.pop(1)
        gone.cancel()
        async with Draining(queue) as reader:
            batch = await reader.read()
            assert batch is not None and list(batch.values) == ["a", "b", "c"]
            found: list[str] = []
            async with asyncio.timeout(PATIENCE):
                while len(found) < 4:
                    assert queue.pending <= 3
                    batch = await reader.read()
                    assert batch is not None
                    found += batch.values
            assert found == ["d", "f", "g", "h"], "`e` was cancelled while it waited, and was not put"
        await asyncio.gather(*waiting)


async def test_whoever_gives_up_waiting_for_room_leaves_nothing_behind(folder: str) -> None:
    """As clients that try again and again while the job stands still."""
    async with QueueSource(folder, value=Text(), max_pending=1) as queue:
        await queue.put("a")
        for _ in range(100):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await queue.put("b")
        assert sum(isinstance(found, Submitted) for found in gc.get_objects()) < 10
        async with Draining(queue) as reader:
            await reader.read()
            assert await queue.put("c") == QueuePosition(0, 1)


async def test_put_nowait_raises_where_put_would_wait(folder: str) -> None:
    async with QueueSource(folder, value=Text(), max_pending=2) as queue:
        first, second = queue.put_nowait("a"), queue.put_nowait("b")
        with pytest.raises(QueueFull, match=r"has 2 records that the job has not read yet \(max_pending=2"):
            queue.put_nowait("c")
        assert [await first, await second] == [QueuePosition(0, 0), QueuePosition(0, 1)]
        async with Draining(queue) as reader:
            await reader.read()
            assert (await queue.put_nowait("c")).number == 2
    assert await contents(folder) == [["a", "b", "c"]]


async def test_the_backlog_is_bounded_in_bytes_too(folder: str) -> None:
    async with QueueSource(folder, value=Raw(), max_pending_bytes=1000) as queue:
        await queue.put(b"x" * 5000)  # one always fits
        with pytest.raises(QueueFull):
            queue.put_nowait(b"y")


async def test_a_job_that_goes_back_makes_the_backlog_larger(folder: str) -> None:
    async with QueueSource(folder, value=Text(), max_pending=2) as queue:
        await queue.put("a")
        async with Draining(queue) as reader:
            await reader.read()
            assert queue.pending == 0
            await queue.put("b")
        async with Draining(queue):  # from the beginning again
            assert queue.pending == 2
            with pytest.raises(QueueFull):
                queue.put_nowait("c")


# ------------------------------------------------------------------------------------------------------- open and close
async def test_it_opens_by_itself_and_close_makes_others_welcome(folder: str) -> None:
    queue = QueueSource(folder, value=Text())
    await asyncio.gather(*(queue.put(str(number)) for number in range(5)))
    other = QueueSource(folder, value=Text())
    with pytest.raises(QueueInUse, match=rf"another QueueSource of this process \(process {os.getpid()} on"):
        await other.put("x")
    await queue.close()
    await other.put("5")
    await other.close()
    assert await contents(folder) == [[str(number) for number in range(6)]]


async def test_a_closed_queue_says_so_until_it_is_opened_again(queue: QueueSource[str]) -> None:
    await queue.close()
    await queue.close()
    with pytest.raises(QueueClosed, match="is closed"):
        await queue.put("a")
    with pytest.raises(QueueClosed):
        queue.put_nowait("a")
    await queue.open()
    assert await queue.put("a") == QueuePosition(0, 0)
    queue.end()
    with pytest.raises(QueueClosed, match="no more records"):
        await queue.put("b")


async def test_put_nowait_needs_an_open_queue(folder: str) -> None:
    with pytest.raises(QueueClosed, match="is not open yet"):
        QueueSource(folder, value=Text()).put_nowait("a")


async def test_closing_waits_for_what_is_being_written_and_refuses_what_waits(folder: str) -> None:
    queue = QueueSource(folder, value=Text(), max_pending=2)
    await queue.open()
    puts = [asyncio.create_task(queue.put(value)) for value in "abc"]
    await asyncio.sleep(0)
    await queue.close()
    assert [await put for put in puts[:2]] == [QueuePosition(0, 0), QueuePosition(0, 1)]
    with pytest.raises(QueueClosed, match="waited for room"):
        await puts[2]
    assert await contents(folder) == [["a", "b"]]


async def test_closing_that_is_cancelled_lets_go_only_when_what_is_being_written_is_durable(
    queue: QueueSource[str], gate: Gate, folder: str
) -> None:
    put = asyncio.create_task(queue.put("a"))
    await gate.reached()
    closing = asyncio.create_task(queue.close())
    await asyncio.sleep(0)
    for _ in range(10):
        closing.cancel()
        await asyncio.sleep(0)
        with pytest.raises(QueueInUse):
            await QueueSource(folder, value=Text()).open()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert await put == QueuePosition(0, 0)
    assert await contents(folder) == [["a"]]


async def test_closing_waits_for_what_is_being_written_while_a_job_reads(queue: QueueSource[str], gate: Gate) -> None:
    async with Draining(queue):
        put = queue.put_nowait("a")
        await gate.reached()
        closing = asyncio.create_task(queue.close())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not closing.done()
        gate.open()
        await closing
        assert put.done() and await put == QueuePosition(0, 0)


async def test_a_put_that_waits_behind_a_close_does_not_open_it_again(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_open = threading.Event()
    make_folder = disk.make_folder

    def held(path: str) -> None:
        assert may_open.wait(PATIENCE)
        make_folder(path)

    monkeypatch.setattr(disk, "make_folder", held)
    queue = QueueSource(folder, value=Text())
    draining = Draining(queue)
    in_turn: list[asyncio.Task[object]] = []
    for call in (draining.__aenter__(), queue.close(), queue.put("late")):
        in_turn.append(asyncio.create_task(call))
        for _ in range(5):
            await asyncio.sleep(0)
    may_open.set()
    await asyncio.gather(*in_turn[:2])
    with pytest.raises(QueueClosed):
        await in_turn[2]
    await draining.__aexit__()
    other = QueueSource(folder, value=Text())
    await other.put("free again")
    await other.close()


async def test_a_job_alone_opens_and_closes_it(folder: str) -> None:
    queue = QueueSource(folder, value=Text())
    async with Draining(queue):
        with pytest.raises(QueueInUse):
            await QueueSource(folder, value=Text()).open()
    other = QueueSource(folder, value=Text())
    await other.put("free again")
    await other.close()


async def test_another_process_is_refused_and_told_who_has_it(folder: str) -> None:
    code = (
        "import asyncio, sys\n"
        "from connectors.queue import QueueSource\n"
        "from streamactors import Text\n"
        "async def main():\n"
        "    await QueueSource(sys.argv[1], value=Text()).put('theirs')\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.read()\n"
        "asyncio.run(main())\n"
    )
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, folder, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert holder.stdout is not None
    async with asyncio.timeout(PATIENCE):
        assert await holder.stdout.readline() == b"ready\n"
    queue = QueueSource(folder, value=Text())
    with pytest.raises(QueueInUse, match=f"in use by process {holder.pid} on"):
        await queue.put("ours")
    holder.kill()
    await holder.communicate()
    assert await queue.put("ours") == QueuePosition(0, 1)
    await queue.close()


def test_it_may_be_used_on_one_event_loop_after_another(folder: str) -> None:
    """As by `asyncio.run` again and again, without closing."""
    queue = QueueSource(folder, value=Text())
    assert asyncio.run(queue.put("a")) == QueuePosition(0, 0)
    assert asyncio.run(queue.put("b")) == QueuePosition(0, 1)

    async def on_another_loop() -> None:
        await queue.put("c")
        for call in (queue.put("d"), queue.close()):
            with pytest.raises(QueueInUse, match="another event loop"):
                await asyncio.to_thread(asyncio.run, call)
        assert await queue.put("d") == QueuePosition(0, 3)
        await queue.close()

    asyncio.run(on_another_loop())


def test_it_is_closed_though_its_event_loop_was_closed_before(folder: str) -> None:
    queue = QueueSource(folder, value=Text())
    asyncio.run(queue.put("a"))
    asyncio.run(queue.close())
    assert asyncio.run(contents(folder)) == [["a"]]


@pytest.mark.parametrize("first", ["queue", "job"])
async def test_in_the_folder_of_a_flows_checkpoints_it_is_refused_and_told_why(tmp_path: Path, first: str) -> None:
    queue = QueueSource(str(tmp_path / "flow"), value=Text())
    flow = sa.Dataflow("flow")
    flow.source("orders", queue).map(str)
    config = sa.Config(checkpoints=sa.Checkpoints(f"file://{tmp_path}", interval=dt.timedelta(hours=1)))
    if first == "queue":
        await queue.open()
        with pytest.raises(sa.StorageInUse, match="in use by a QueueSource, which has its log in the same folder"):
            await sa.run(flow, config)
        await queue.close()
    else:
        with pytest.raises(sa.JobFailed, match="holds the checkpoints of a flow.*: give the queue a folder of its own"):
            await sa.run(flow, config)


async def test_it_can_not_be_sent_to_another_process(queue: QueueSource[str]) -> None:
    with pytest.raises(TypeError, match="belongs to the process"):
        pickle.dumps(queue)
    with pytest.raises(TypeError):
        copy.deepcopy(queue)


# ------------------------------------------------------------------------------------------------------------ refusals
async def test_a_full_disk_refuses_puts_until_there_is_room(queue: QueueSource[str], folder: str) -> None:
    await queue.put("before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        refused = await asyncio.gather(*(queue.put("x" * 600) for _ in range(3)), return_exceptions=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [type(error) for error in refused] == [WriteFailed] * 3
    assert f"{folder}/partition-0" in str(refused[0]) and "all that was acknowledged is" in str(refused[0])
    assert await queue.put("after") == QueuePosition(0, 1)
    assert queue.pending == 2
    await queue.close()
    assert await contents(folder) == [["before", "after"]]


async def test_a_queue_on_a_full_disk_is_opened_and_read(folder: str) -> None:
    async with QueueSource(folder, value=Text()) as queue:
        await queue.put("before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        async with QueueSource(folder, value=Text()) as queue:
            async with Draining(queue) as reader:
                batch = await reader.read()
                assert batch is not None and list(batch.values) == ["before"]
            with pytest.raises(WriteFailed):
                await queue.put("refused")
            with pytest.raises(QueueInUse, match="a process that is just starting|QueueSource"):
                await QueueSource(folder, value=Text()).open()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert await contents(folder) == [["before"]]


async def test_a_file_system_without_locks_is_named(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(WriteFailed, match=r"owner\.lock.*No locks available"):
        await QueueSource(folder, value=Text()).open()


class Careless:
    """An encoder that forgets to encode."""

    def encode(self, value: str) -> bytes:
        return value.encode() if value != "text" else value  # type: ignore[return-value]

    def decode(self, data: bytes) -> str:
        return data.decode()


async def test_an_encoder_that_gives_no_bytes_harms_nobody_else(folder: str) -> None:
    async with QueueSource(folder, value=Careless()) as queue:
        puts = await asyncio.gather(*(queue.put(value) for value in ("a", "text", "b")), return_exceptions=True)
        assert isinstance(puts[1], TypeError) and "encode() gave 'str', not bytes" in str(puts[1])
        assert [puts[0], puts[2]] == [QueuePosition(0, 0), QueuePosition(0, 1)]
    assert await contents(folder) == [["a", "b"]]


async def test_a_value_that_can_not_be_encoded_or_is_too_large_is_the_callers_error(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "LARGEST_RECORD", 100)
    async with QueueSource(folder, value=Json(Order)) as queue:
        with pytest.raises(TypeError):
            await queue.put(object())  # type: ignore[arg-type]
        with pytest.raises(RecordTooLarge, match="100 are the most"):
            await queue.put(Order("x" * 200, 1))
        assert await queue.put(Order("x", 1)) == QueuePosition(0, 0)


async def test_a_time_stamp_that_is_none_is_the_callers_error(folder: str) -> None:
    async with QueueSource(folder, value=Text(), timestamp=float) as queue:  # type: ignore[arg-type]
        with pytest.raises(InvalidTimestamp, match=r"gave 1\.5"):
            await queue.put("1.5")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"partitions": 0}, "partitions=0 must be"),
        ({"max_pending": 0}, "max_pending=0 must be"),
        ({"max_pending_bytes": -1}, "max_pending_bytes=-1 must be"),
        ({"segment_bytes": 1.5}, r"segment_bytes=1\.5 must be"),
        ({"retention_bytes": -1}, "can't be negative"),
        ({"on_error": "skip"}, "on_error='skip' must be"),
        ({"value": Json}, "must encode and decode"),
    ],
)
def test_settings_that_can_not_work_are_refused(folder: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        QueueSource(folder, **{"value": MsgPack(), **settings})  # type: ignore[arg-type]


def test_it_needs_a_folder() -> None:
    with pytest.raises(InvalidConfig, match="folder is empty"):
        QueueSource("", value=Text())


async def test_a_cancelled_or_refused_opening_leaves_nothing_open(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What leaks is found behind each test."""
    queue = QueueSource(folder, value=Text(), partitions=3)
    gate = Gate()
    with monkeypatch.context() as patch:
        patch.setattr(disk, "sync", gate.sync)
        opening = asyncio.create_task(queue.put("a"))
        await gate.reached()
        opening.cancel()
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            await opening
    shutil.rmtree(Path(folder) / "partition-2")
    (Path(folder) / "partition-2").write_text("no folder")
    with pytest.raises(WriteFailed, match="partition-2"):
        await queue.put("a")
    (Path(folder) / "partition-2").unlink()
    assert (await queue.put("a")).number == 0
    await queue.close()
