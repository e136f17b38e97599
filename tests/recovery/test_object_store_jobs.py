"""Whole jobs whose checkpoints lie in an object store: killed, moved, rescaled, and with a store that fails."""

import asyncio
import datetime as dt
import gc
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

import streamactors as sa
from connectors.memory import ListSink
from streamactors.checkpoint.restorable import list_checkpoints
from streamactors.checkpoint.store import CheckpointStore
from streamactors.cli.inspection import inspect
from streamactors.clock import SYSTEM
from streamactors.errors import FencedOff, StorageFailed, StorageInUse
from tests.checkpoint.checkpoints import begin, manifest_of, state, take
from tests.recovery.jobs import Settings
from tests.recovery.orders import by_customer, check, random_orders, totals_in, write_logs
from tests.recovery.processes import kill_until_finished, new_seed
from tests.runtime.feeds import Feed, until
from tests.s3_server import Proxy, S3Bucket, proxied

# Named here, so that they are there before any test begins, and what it has left behind is looked for.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("s3_server", "libuv")]

PATIENCE = 60.0
KEYS = 7
ORDERS = 9_000
PACE = 1500.0


class Count(sa.KeyedOperator[int, int, tuple[int, int]]):
    count = sa.ValueState(int, default=0)

    def process(self, value: int, ctx: sa.Context[int, tuple[int, int]]) -> None:
        self.count.set(self.count.get() + 1)
        ctx.emit((value, self.count.get()))


def counting(feed: Feed, sink: Any) -> sa.Dataflow:
    flow = sa.Dataflow("counting")
    flow.source("numbers", feed).key_by(lambda value: value % KEYS).process("count", Count).sink("out", sink)
    return flow


def config(storage: str, parallelism: int = 2, **checkpoints: Any) -> sa.Config:
    given: dict[str, Any] = {"interval": dt.timedelta(hours=1), **checkpoints}
    return sa.Config(checkpoints=sa.Checkpoints(storage, **given), parallelism=parallelism)


def expected(numbers: range) -> list[tuple[int, int]]:
    return sorted((value, value // KEYS + 1) for value in numbers)


@asynccontextmanager
async def counted(feed: Feed, sink: ListSink[Any], given: sa.Config) -> AsyncIterator[sa.JobHandle]:
    """The job, cancelled in the end."""
    async with asyncio.timeout(PATIENCE), sa.start(counting(feed, sink), given, on_exit="cancel") as job:
        yield job


@pytest.fixture(scope="module")
def libuv() -> None:
    """Its first loop opens a pipe for signals, for the life of the process."""
    uvloop.new_event_loop().close()


# ------------------------------------------------------------------------------------------------------------ processes
@pytest.mark.kill
@pytest.mark.parametrize(("backend", "kills"), [("heap", 3), ("rocksdb", 2)])
async def test_killed_at_random_moments(tmp_path: Path, bucket: S3Bucket, backend: Any, kills: int) -> None:
    seed = new_seed()
    rng = random.Random(seed)
    logs = random_orders(rng, ORDERS, logs=3)
    write_logs(tmp_path / "in", logs)
    settings = Settings(
        storage=f"{bucket.uri}/a/b",
        sources=[str(tmp_path / "in")],
        output=str(tmp_path / "out"),
        backend=backend,
        local=str(tmp_path / "local"),
    )

    def rescaled(rng: random.Random) -> Settings:
        return msgspec.structs.replace(settings, parallelism=rng.randint(1, 3), interval_ms=rng.choice((50, 150)))

    story = await kill_until_finished(rescaled, orders=ORDERS, pace=PACE, kills=kills, seed=seed)
    try:
        check(by_customer(totals_in(tmp_path / "out")), logs, settings)
        assert bucket.uploads() == []
        assert [key for key in bucket.objects() if "owner.lock" in key or "probe" in key] == []
    except AssertionError as error:
        error.add_note(str(story))
        raise


def test_on_uvloop(bucket: S3Bucket) -> None:
    """Where jobs run, and nothing is left of the connection."""

    async def run() -> list[Any]:
        feed, sink = Feed(), ListSink[Any]()
        feed.put(*range(100))
        async with counted(feed, sink, config(bucket.uri)) as job:
            await until(lambda: job.status == "running")
            await job.checkpoint()
        feed.put(*range(100, 200))
        feed.end()
        await sa.run(counting(feed, sink), config(bucket.uri))
        return sink.values

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert sorted(runner.run(run())) == expected(range(200))
    gc.collect()  # a session that was not closed would say so


# ------------------------------------------------------------------------------------------------ savepoints, restoring
@pytest.mark.parametrize("parallelism", [1, 3])
async def test_from_store_to_folder_and_back(tmp_path: Path, bucket: S3Bucket, parallelism: int) -> None:
    """Checkpoints in one, savepoints in the other, restored into either, at another parallelism."""
    feed, sink = Feed(), ListSink[Any]()
    feed.put(*range(300))
    async with counted(feed, sink, config(f"{bucket.uri}/a")) as job:
        await until(lambda: job.status == "running")
        saved = await job.savepoint(f"{bucket.uri}/saved")
        local = await job.savepoint((tmp_path / "saved").as_uri())
    assert saved == f"{bucket.uri}/saved"
    feed.put(*range(300, 500))
    feed.end()
    for uri, storage in ((saved, tmp_path.as_uri()), (local, f"{bucket.uri}/b"), (saved, f"memory://{tmp_path.name}")):
        again = ListSink[Any]()
        async with asyncio.timeout(PATIENCE):
            await sa.run(counting(feed, again), config(storage, parallelism), restore=uri)
        rest = expected(range(500))
        assert set(again.values) <= set(rest) and set(rest[300:]) <= set(again.values)


async def test_inspected(bucket: S3Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    feed, sink = Feed(), ListSink[Any]()
    feed.put(*range(100))
    async with counted(feed, sink, config(f"{bucket.uri}/x")) as job:
        await until(lambda: job.status == "running")
        taken = await job.checkpoint()
    assert await inspect(f"{bucket.uri}/x", as_json=True, verify="digests") == 0
    [found] = msgspec.json.decode(capsys.readouterr().out)
    assert (found["uri"], found["problem"]) == (taken.uri, None)
    assert await inspect(taken.uri, as_json=True, verify="digests") == 0
    [stored] = [key for key in bucket.objects() if "/0001-" in key]
    bucket.put(stored, bucket.read(stored)[:-1] + b"!")
    assert await inspect(taken.uri, as_json=True, verify="digests") == 1
    assert "is altered: expected digest" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------ ownership
async def test_a_second_job_is_refused_naming_the_first(bucket: S3Bucket) -> None:
    feed, sink = Feed(), ListSink[Any]()
    async with counted(feed, sink, config(bucket.uri)):
        with pytest.raises(
            StorageInUse, match=rf"flow 'counting' in {bucket.uri} is in use by process \d+ on .*, since"
        ):
            await sa.run(counting(Feed(), ListSink[Any]()), config(bucket.uri))


async def test_who_was_taken_over_from_completes_nothing(bucket: S3Bucket) -> None:
    """A process that was paused, say, for longer than its lease."""
    async with await CheckpointStore.open(bucket.uri, "orders", clock=SYSTEM) as paused:
        await take(paused)
        writer = await begin(paused)
        file = await writer.write("totals", state(writer.checkpoint))
        bucket.delete("orders/owner.lock")  # as if it had expired
        async with await CheckpointStore.open(bucket.uri, "orders", clock=SYSTEM) as successor:
            with pytest.raises(FencedOff, match="run 1 of flow 'orders' was fenced off: run 2"):
                await paused.complete(manifest_of(paused, writer.checkpoint, file))
            await take(successor)
            await paused.close()
            assert [summary.checkpoint for summary in await list_checkpoints(bucket.uri) if summary.manifest] == [3, 1]
            await successor.ensure_owner()
    assert [key for key in bucket.objects() if "owner.lock" in key] == []


async def test_what_a_paused_process_completes_late_is_never_gone_on_from(
    bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its successor went on from the checkpoint before, aborted what the late one promises, and died."""
    async with proxied(bucket.server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        paused = await CheckpointStore.open(bucket.uri, "orders", clock=SYSTEM)
        await take(paused)
        writer = await begin(paused)
        file = await writer.write("totals", state(writer.checkpoint))
        held = proxy.damage("hold", "PUT", "*/chk-2/manifest*")
        completing = asyncio.create_task(paused.complete(manifest_of(paused, writer.checkpoint, file)))
        await held.struck.wait()  # ownership has been checked
        bucket.delete("orders/owner.lock")  # as if it had expired
        monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.server.url)
        async with await CheckpointStore.open(bucket.uri, "orders", clock=SYSTEM) as successor:
            assert await latest_of(successor) == 1
        held.release.set()
        with pytest.raises(FencedOff):
            await completing
        await paused.close()
        assert "orders/run-1/attempt-1/chk-2/manifest" in bucket.objects()
        async with await CheckpointStore.open(bucket.uri, "orders", clock=SYSTEM) as third:
            assert await latest_of(third) == 1


async def latest_of(store: CheckpointStore) -> int | None:
    found = await store.latest()
    return None if found is None else found.manifest.checkpoint


# ------------------------------------------------------------------------------------------------------------- failures
@pytest.fixture
async def proxy(bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxy]:
    """What the environment says to go through."""
    async with proxied(bucket.server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


async def test_a_store_that_fails_now_and_then_loses_nothing(bucket: S3Bucket, proxy: Proxy) -> None:
    feed, sink = Feed(), ListSink[Any]()
    rules = [
        proxy.damage("503", "PUT", "*/chk-*", times=2),
        proxy.damage("answer lost", "PUT", "*/chk-*", times=2),
        proxy.damage("cut inside", "PUT", "*/chk-*", times=2),
        proxy.damage("500", "GET", times=2),
        proxy.damage("answer lost", "PUT", "*manifest*", times=2),
        proxy.damage("answer lost", "POST", times=2),
    ]
    async with counted(feed, sink, config(bucket.uri, retain=2)) as job:
        await until(lambda: job.status == "running")
        for number in range(10):
            feed.put(*range(10 * number, 10 * number + 10))
            await job.checkpoint()
        assert job.metrics()["restarts"] == 0
    assert all(rule.hits for rule in rules), "it struck nothing"
    feed.end()
    async with asyncio.timeout(PATIENCE):
        await sa.run(counting(feed, sink), config(bucket.uri, parallelism=3))
    assert sorted(sink.values) == expected(range(100))
    assert bucket.uploads() == []


async def test_an_outage_fails_checkpoints_and_not_the_job(bucket: S3Bucket, proxy: Proxy) -> None:
    feed, sink = Feed(), ListSink[Any]()
    given = config(bucket.uri, tolerable_failures=1000, timeout=dt.timedelta(seconds=0.5))
    async with counted(feed, sink, given) as job:
        feed.put(*range(50))
        await until_taken(job)
        outage = proxy.damage("503", times=None)
        feed.put(*range(50, 100))
        with pytest.raises(sa.CheckpointFailed):
            await job.checkpoint()
        assert outage.hits and job.status == "running"
        proxy.heal()
        feed.put(*range(100, 150))
        taken = await until_taken(job)
        assert job.metrics()["restarts"] == 0
    feed.end()
    async with asyncio.timeout(PATIENCE):
        await sa.run(counting(feed, sink), given)
    assert sorted(sink.values) == expected(range(150))
    assert taken.uri.startswith(bucket.uri)


async def until_taken(job: sa.JobHandle) -> sa.CheckpointInfo:
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await job.checkpoint()
            except sa.CheckpointFailed:
                await asyncio.sleep(0)


async def test_a_start_without_a_store_says_so(bucket: S3Bucket) -> None:
    missing = f"s3://no-{bucket.name}/x"
    with pytest.raises(StorageFailed, match=rf"{missing}.*there is no bucket 'no-{bucket.name}'. Create it"):
        await sa.run(counting(Feed(), ListSink[Any]()), config(missing))


async def test_a_leftover_of_a_killed_upload_goes_with_the_next_start(bucket: S3Bucket) -> None:
    server = bucket.server
    server._request("POST", f"{bucket.name}/counting/run-1/attempt-1/chk-1/0001-x?uploads", b"")
    assert bucket.uploads() == ["counting/run-1/attempt-1/chk-1/0001-x"]
    feed = Feed()
    feed.end()
    async with asyncio.timeout(PATIENCE):
        await sa.run(counting(feed, ListSink[Any]()), config(bucket.uri))
    assert bucket.uploads() == []


async def test_many_small_snapshots_take_few_requests(bucket: S3Bucket, proxy: Proxy) -> None:
    feed = Feed()
    feed.put(*range(2000))
    flow = sa.Dataflow("wide")
    wide = flow.source("numbers", feed).key_by(lambda value: value).process("count", Count, parallelism=40)
    wide.sink("out", ListSink[Any](), parallelism=1)
    proxy.seconds = 0.02
    async with asyncio.timeout(PATIENCE), sa.start(flow, config(bucket.uri), on_exit="cancel") as job:
        await until(lambda: job.status == "running")
        before = len(proxy.seen)
        await job.checkpoint()
        requests = proxy.seen[before:]
    stored = [request for request in requests if request.startswith("PUT") and "/chk-1/" in request]
    assert len(stored) <= 8, stored
