"""A job from Kafka to Kafka on a real broker: killed by SIGKILL at random moments, stopped by SIGTERM, and with the
broker gone in the middle. What a read_committed consumer sees equals a plain computation: nothing lost, nothing
doubled, per customer in order."""

import asyncio
import random
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

import streamactors as sa
from connectors.kafka import KafkaSink
from connectors.kafka.sink import KafkaWriter
from streamactors.sinks import SinkContext
from streamactors.testing import KafkaBroker
from tests.connectors.kafka.driving import eventually, visible
from tests.kafka_topics import Topics
from tests.recovery.flows import EventLog, Sum, by_key, config, dropped, read, sums
from tests.recovery.jobs import Order, Settings
from tests.recovery.orders import by_customer, check, random_orders
from tests.recovery.processes import CHECKPOINTED, PATIENCE, RESTORING, finish, kill_until_finished, new_seed, started
from tests.recovery.topics import produce_logs, totals_of

pytestmark = [pytest.mark.kill, pytest.mark.slow]

KILLS = 6
ORDERS = 20_000
PARTITIONS = 4
PACE = 1500.0


def unchanged(rng: random.Random) -> dict[str, Any]:
    return {"brake": rng.choice(("orders", "totals"))}


def rescaled(rng: random.Random) -> dict[str, Any]:
    return {
        "source_parallelism": rng.randint(1, 3),
        "parallelism": rng.randint(1, 3),
        "interval_ms": rng.choice((50, 100, 200)),
        "mailbox_capacity": rng.choice((64, 1024)),
        "brake": rng.choice(("orders", "totals")),
    }


def overtaking(rng: random.Random) -> dict[str, Any]:
    """Another parallelism at every start, and barriers that overtake, mostly."""
    patience = rng.choice((None, None, 0, 30))
    alignment = "unaligned" if patience is None and rng.random() < 0.8 else "aligned"
    return {
        **rescaled(rng),
        "mailbox_capacity": rng.choice((64, 4096)),
        "alignment": alignment,
        "alignment_timeout_ms": patience,
    }


async def prepared(kafka: KafkaBroker, folder: Path, logs: Sequence[Sequence[Order]], **shape: Any) -> Settings:
    """Topics of its own, the first one filled."""
    topics = Topics(kafka)
    source = await topics.new("orders", partitions=len(logs))
    output = await topics.new("totals", partitions=3)
    await produce_logs(kafka.bootstrap, source, logs)
    return Settings(
        storage=str(folder / "checkpoints"),
        sources=[source],
        output=output,
        brokers=kafka.bootstrap,
        prefix=output,
        **shape,
    )


CALLED: dict[str, Any] = {"flat": True, "called": True, "exchanged": True}


@pytest.mark.parametrize("backend", ["heap", "rocksdb"])
@pytest.mark.parametrize(
    ("shape", "scale"),
    [
        pytest.param({"source_parallelism": 2, "mailbox_capacity": 512}, unchanged, id="running totals"),
        pytest.param(CALLED, rescaled, id="calls, two exchanges, rescaled at every start"),
        pytest.param({}, overtaking, id="running totals, unaligned, rescaled at every start"),
        pytest.param(CALLED, overtaking, id="calls, two exchanges, unaligned, rescaled at every start"),
    ],
)
async def test_killed_at_random_moments(
    kafka: KafkaBroker,
    tmp_path: Path,
    shape: dict[str, Any],
    scale: Callable[[random.Random], dict[str, Any]],
    backend: str,
) -> None:
    seed = new_seed()
    logs = random_orders(random.Random(seed), ORDERS, logs=PARTITIONS)
    settings = await prepared(kafka, tmp_path, logs, backend=backend, local=str(tmp_path / "local"), **shape)
    story = await kill_until_finished(
        lambda rng: msgspec.structs.replace(settings, **{**scale(rng), **shape}),
        orders=ORDERS,
        # With barriers that overtake, hardly anything has to be read again: little would be left for the last one.
        pace=PACE / 3 if scale is overtaking else PACE,
        kills=KILLS,
        seed=seed,
    )
    try:
        check(by_customer(await totals_of(kafka.bootstrap, settings.output)), logs, settings)
        assert story.restores > 1, "hardly any of its starts found a checkpoint"
    except AssertionError as error:
        error.add_note(str(story))
        raise


class DyingWriter(KafkaWriter[Any]):
    """Its process dies before its commit is sent."""

    async def commit(self, checkpoint: int) -> None:
        await asyncio.Event().wait()


class DyingSink(KafkaSink[Any]):
    def writer(self, ctx: SinkContext) -> DyingWriter:
        return DyingWriter(self, ctx)


@pytest.mark.parametrize("parallelism", [1, 2, 3])
async def test_the_next_start_commits_what_a_complete_checkpoint_lists(
    kafka: KafkaBroker, topics: Topics, tmp_path: Path, parallelism: int
) -> None:
    """Also at another parallelism, where other subtasks have it to do."""
    topic, storage = await topics.new(), tmp_path / "storage"
    log = EventLog(tmp_path / "events.jsonl")
    log.add(*((f"key-{number % 7}", number) for number in range(50)))
    options: dict[str, Any] = {"value": sa.Json(Sum), "transactional_id_prefix": topic}
    dying = DyingSink(kafka.bootstrap, topic, **options)
    async with dropped(sums(log.source(follow=True), dying, parallelism=2), config(storage)) as job:
        await read(job, log)
        await job.checkpoint()
        complete = {key: list(totals) for key, totals in log.expected.items()}
        log.add(("key-1", 5))
        await read(job, log)  # in the transaction after, which nobody commits
    assert await visible(kafka.bootstrap, topic) == []
    sink = KafkaSink(kafka.bootstrap, topic, **options)
    flow = sums(log.source(follow=True), sink, parallelism=parallelism)
    async with sa.start(flow, config(storage)) as job:
        await eventually(lambda: totals_by_key(kafka, topic), complete)
        await read(job, log)
    await eventually(lambda: totals_by_key(kafka, topic), log.expected)


async def totals_by_key(kafka: KafkaBroker, topic: str) -> dict[str, list[int]]:
    records = await visible(kafka.bootstrap, topic)
    return by_key(msgspec.json.decode(record.value, type=Sum) for record in records)


async def test_stopped_by_sigterm_and_resumed(kafka: KafkaBroker, tmp_path: Path) -> None:
    """An endless source; each stop commits what was read, and the next start goes on there."""
    logs = random_orders(random.Random(1), 6_000, logs=PARTITIONS)
    settings = await prepared(kafka, tmp_path, logs, source_parallelism=2, pace=200.0, endless=True)
    seen = 0
    for stop in range(3):
        async with started(settings) as child:
            await more_visible(kafka, settings.output, seen)
            child.send(signal.SIGTERM)
            assert await child.ended() == 0, child.log
            assert child.count(RESTORING) == (1 if stop else 0)
        seen = len(await totals_of(kafka.bootstrap, settings.output))
    log = await finish(msgspec.structs.replace(settings, pace=0.0, endless=False))
    assert any(RESTORING in line for line in log)
    check(by_customer(await totals_of(kafka.bootstrap, settings.output)), logs, settings)


async def more_visible(kafka: KafkaBroker, topic: str, seen: int) -> None:
    """More than so many records, sooner or later."""
    async with asyncio.timeout(PATIENCE):
        while len(await visible(kafka.bootstrap, topic)) <= seen:
            pass


async def test_the_broker_is_killed_and_comes_back(tmp_path: Path) -> None:
    """Twice. The source waits for it; what the sink can't write or commit meanwhile may cost a restart in process."""
    logs = random_orders(random.Random(2), 12_000, logs=PARTITIONS)
    async with KafkaBroker(own=True) as kafka:
        settings = await prepared(kafka, tmp_path, logs, source_parallelism=2, pace=500.0, endless=True, restarts=100)
        async with started(settings) as child:
            for _ in range(2):
                assert await child.logged(CHECKPOINTED, child.count(CHECKPOINTED) + 2), child.log
                warnings = child.count("WARNING")
                await kafka.kill()
                assert await child.logged("WARNING", warnings + 1), child.log
                await kafka.restart()
            assert await child.logged(CHECKPOINTED, child.count(CHECKPOINTED) + 1), child.log
            child.send(signal.SIGKILL)
            await child.ended()
        await finish(msgspec.structs.replace(settings, pace=0.0, endless=False))
        check(by_customer(await totals_of(kafka.bootstrap, settings.output)), logs, settings)
