"""Watermarks per partition, and partitions that are paused: on a real broker."""

import asyncio
import datetime as dt
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

import streamactors as sa
from connectors.kafka import KafkaSource
from connectors.memory import ListSink
from streamactors.testing import KafkaBroker
from tests.connectors.kafka.driving import NUMBERS, PATIENCE, batches, opened, some, values
from tests.kafka_topics import Topics

pytestmark = pytest.mark.slow

START = 1_764_000_000_000
STEPS = (1, 7, 40, 130)
"""Milliseconds between two records of a partition: over the same time they have 1300 to 10."""
SPAN = 1300


async def fill(kafka: KafkaBroker, topic: str) -> list[int]:
    """Record by record its time, in no order between the partitions and in order within each."""
    times = [range(START + number, START + number + SPAN, step) for number, step in enumerate(STEPS)]
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap) as producer:
        for partition, stamps in enumerate(times):
            for stamp in stamps:
                await producer.send(topic, b"%d" % stamp, partition=partition)
        await producer.flush()
    return sorted(stamp for stamps in times for stamp in stamps)


class Judge(sa.KeyedOperator[int, int, tuple[int, bool]]):
    count = sa.ValueState(int, default=0)

    def process(self, stamp: int, ctx: sa.Context[int, tuple[int, bool]]) -> None:
        self.count.set(self.count.get() + 1)
        ctx.emit((stamp, stamp <= ctx.watermark))


@pytest.mark.parametrize("align", [None, dt.timedelta(milliseconds=100)])
@pytest.mark.parametrize("parallelism", [1, 3])
async def test_no_record_of_unequal_partitions_is_late(
    kafka: KafkaBroker, topics: Topics, parallelism: int, align: dt.timedelta | None
) -> None:
    topic = await topics.new(partitions=len(STEPS))
    stamps, sink, flow = await fill(kafka, topic), ListSink[tuple[int, bool]](), sa.Dataflow("unequal")
    source = KafkaSource(kafka.bootstrap, topic, value=NUMBERS, bounded=True, client={"max_poll_records": 50})
    timed = flow.source("in", source, watermarks=sa.Watermarks.monotonic(lambda stamp: stamp, align=align))
    timed.key_by(lambda stamp: stamp % 5).process("judge", Judge).sink("out", sink)
    async with asyncio.timeout(PATIENCE):
        await sa.run(flow, sa.Config(parallelism=parallelism))
    assert sorted(sink.values) == [(stamp, False) for stamp in stamps]


async def test_nor_after_a_crash(kafka: KafkaBroker, topics: Topics, tmp_path: Path) -> None:
    topic = await topics.new(partitions=len(STEPS))
    stamps, sink, flow = await fill(kafka, topic), ListSink[tuple[int, bool]](), sa.Dataflow("crashing")
    left = [3]

    def fail_now_and_then(stamp: int) -> int:
        if left[0] and stamp > START + SPAN - 300 * left[0]:
            left[0] -= 1
            raise RuntimeError("now and then")
        return stamp

    source = KafkaSource(kafka.bootstrap, topic, value=NUMBERS, bounded=True, client={"max_poll_records": 50})
    watermarks: sa.Watermarks[int] = sa.Watermarks.monotonic(lambda stamp: stamp, align=dt.timedelta(milliseconds=100))
    numbers: Any = flow.source("in", source, watermarks=watermarks).map(fail_now_and_then)
    numbers.key_by(lambda stamp: stamp % 5).process("judge", Judge).sink("out", sink)
    checkpoints = sa.Checkpoints(tmp_path.as_uri(), interval=dt.timedelta(milliseconds=10), alignment="unaligned")
    restart = sa.Restart.fixed(dt.timedelta(0), 3)
    async with asyncio.timeout(PATIENCE):
        await sa.run(flow, sa.Config(parallelism=2, checkpoints=checkpoints, restart=restart))
    assert left == [0] and sorted(sink.values) == [(stamp, False) for stamp in stamps]


async def test_a_paused_partition_gives_nothing_and_goes_on_where_it_was(kafka: KafkaBroker, topics: Topics) -> None:
    """What was fetched of it before waits, however often more is fetched of others."""
    topic = await topics.new(partitions=2)
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap) as producer:
        for number in range(600):
            await producer.send(topic, b"%d" % number, partition=number % 2)
        await producer.flush()
    source = KafkaSource(kafka.bootstrap, topic, value=NUMBERS, bounded=True, client={"max_poll_records": 40})
    async with opened(source) as (reader, positions):
        first = await some(reader, 10)
        reader.pause([f"{topic}[0]"])
        others = await some(reader, 300 - sum(value % 2 for value in values(first)))
        assert {batch.split for batch in others} == {f"{topic}[1]"}
        pending = asyncio.create_task(batches(reader))
        await asyncio.sleep(0)
        reader.pause([f"{topic}[0]", f"{topic}[1]"])
        reader.pause(())
        rest = await pending
    found = [*first, *others, *rest]
    assert [value for value in values(found) if value % 2] == list(range(1, 600, 2))
    assert [value for value in values(found) if not value % 2] == list(range(0, 600, 2))
    reached = {batch.split: batch.position_after(len(batch.values))["offset"] for batch in found}
    assert reached == {f"{topic}[0]": 300, f"{topic}[1]": 300} and positions.keys() == reached.keys()
    for at, batch in enumerate(found):
        later = [later for later in found[at + 1 :] if later.split == batch.split]
        if later and later[0].origins:
            assert batch.position_after(len(batch.values))["offset"] == later[0].origins[0], "exact at each batch"
