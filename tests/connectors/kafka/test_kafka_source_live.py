"""Reading while the cluster changes: new partitions, groups, outages."""

import asyncio
import re
from dataclasses import replace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.errors import GroupCoordinatorNotAvailableError
from aiokafka.structs import TopicPartition

from connectors.kafka import KafkaSource, OffsetExpired
from streamactors.metrics import MetricGroup
from streamactors.sources import PENDING_RECORDS, SourceBatch, SplitReader
from streamactors.testing import KafkaBroker
from tests.connectors.kafka.driving import (
    NUMBERS,
    PATIENCE,
    SOURCE,
    eventually,
    opened,
    positions_after,
    produce,
    read_all,
    some,
    transact,
    values,
)
from tests.kafka_topics import Topics

SOON = {"metadata_max_age_ms": 100}


async def add_partitions(kafka: KafkaBroker, topic: str, total: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        await admin.create_partitions({topic: NewPartitions(total)})
    finally:
        await admin.close()


async def group_offsets(kafka: KafkaBroker, group: str) -> dict[TopicPartition, int]:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    found = await admin.list_consumer_group_offsets(group)
                    return {tp: committed.offset for tp, committed in found.items()}
                except GroupCoordinatorNotAvailableError:  # the cluster's first group: its topic is being made
                    await asyncio.sleep(0.05)
    finally:
        await admin.close()


async def until(reader: SplitReader[Any], split: str) -> list[SourceBatch[Any]]:
    """Batches up to the first of this split, that one included."""
    found = []
    async with asyncio.timeout(PATIENCE):
        while True:
            batch = await reader.read()
            assert batch is not None
            found.append(batch)
            if batch.split == split:
                return found


# ----------------------------------------------------------------------------------------------------- discovery


async def test_new_partitions_are_found_and_read_from_their_beginning(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    source = KafkaSource(kafka.bootstrap, topic, value=NUMBERS, start="latest", client=SOON)
    async with opened(source) as (reader, positions):
        assert list(positions) == [f"{topic}[0]"]
        pending = asyncio.create_task(reader.read())
        await add_partitions(kafka, topic, 2)
        await eventually_produced(kafka, topic, b"7", partition=1)
        async with asyncio.timeout(PATIENCE):
            announced = await pending
        assert announced is not None
        assert (announced.split, list(announced.values)) == (f"{topic}[1]", [])
        assert announced.position_after(0) == {"offset": 0}
        found = await until(reader, f"{topic}[1]")
        assert values(found) == [7]
        # What was read before goes on being read.
        await produce(kafka.bootstrap, topic, b"8")
        assert values(await some(reader, 1)) == [8]


async def eventually_produced(kafka: KafkaBroker, topic: str, record: bytes, partition: int) -> None:
    """As soon as producers know the new partition."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                await produce(kafka.bootstrap, topic, record, partition=partition)
                return
            except AssertionError:
                await asyncio.sleep(0.05)


async def test_a_new_topic_of_a_pattern_is_found(kafka: KafkaBroker, topics: Topics) -> None:
    prefix = topics.name("pattern")
    source = KafkaSource(kafka.bootstrap, re.compile(f"{prefix}-.*"), value=NUMBERS, client=SOON)
    async with opened(source) as (reader, positions):
        assert positions == {}
        pending = asyncio.create_task(reader.read())
        await kafka.create_topic(f"{prefix}-new")
        await produce(kafka.bootstrap, f"{prefix}-new", b"1")
        async with asyncio.timeout(PATIENCE):
            announced = await pending
        assert announced is not None
        assert announced.split == f"{prefix}-new[0]"
        assert values(await some(reader, 1)) == [1]


async def test_partitions_that_are_new_since_the_checkpoint_are_read_from_their_beginning(
    kafka: KafkaBroker, topics: Topics
) -> None:
    topic = await topics.new(partitions=2)
    await produce(kafka.bootstrap, topic, b"1", b"2")
    await produce(kafka.bootstrap, topic, b"3", partition=1)
    source = KafkaSource(kafka.bootstrap, topic, value=NUMBERS, start="latest")
    async with opened(source, {f"{topic}[0]": {"offset": 2}}) as (reader, positions):
        assert positions == {f"{topic}[0]": {"offset": 2}, f"{topic}[1]": {"offset": 0}}
        assert values(await some(reader, 1)) == [3]


# ----------------------------------------------------------------------------------------------------- positions


async def test_a_position_moves_over_control_records(kafka: KafkaBroker, topics: Topics) -> None:
    """Else it would stay behind, and be called expired when retention takes what is before it."""
    topic = await topics.new()
    async with opened(KafkaSource(kafka.bootstrap, topic, value=NUMBERS)) as (reader, positions):
        await transact(kafka.bootstrap, topic, b"1", b"2", commit=False)
        async with asyncio.timeout(PATIENCE):
            batch = await reader.read()
    assert batch is not None
    assert list(batch.values) == []
    assert positions_after(positions, [batch]) == {f"{topic}[0]": {"offset": 3}}


async def test_the_lag_is_measured(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    await produce(kafka.bootstrap, topic, *(b"%d" % number for number in range(10)))
    metrics = MetricGroup()
    source = KafkaSource(kafka.bootstrap, topic, value=NUMBERS, client={"max_poll_records": 4})
    reader = source.reader(replace(SOURCE, metrics=metrics))
    try:
        await reader.open(None)
        assert len(values(await some(reader, 1))) == 4
        assert metrics.read()["kafka.lag"] == metrics.read()[PENDING_RECORDS] == 6
    finally:
        await reader.close()
    assert metrics.read()["kafka.lag"] == 0


async def test_a_pending_read_survives_a_checkpoint(kafka: KafkaBroker, topics: Topics) -> None:
    topic, group = await topics.new(), topics.name("group")
    async with opened(KafkaSource(kafka.bootstrap, topic, value=NUMBERS, group=group)) as (reader, positions):
        pending = asyncio.create_task(reader.read())
        await reader.checkpoint_completed(1, positions)
        await eventually(lambda: group_offsets(kafka, group), {TopicPartition(topic, 0): 0})
        assert not pending.done()
        await produce(kafka.bootstrap, topic, b"5")
        async with asyncio.timeout(PATIENCE):
            batch = await pending
        assert batch is not None
        assert list(batch.values) == [5]


async def test_offsets_are_committed_to_the_group_when_a_checkpoint_completes(
    kafka: KafkaBroker, topics: Topics
) -> None:
    topic, group = await topics.new(partitions=2), topics.name("group")
    await produce(kafka.bootstrap, topic, b"1", b"2", b"3")
    source = KafkaSource(kafka.bootstrap, topic, value=NUMBERS, group=group)
    async with opened(source) as (reader, positions):
        found = await some(reader, 3)
        assert await group_offsets(kafka, group) == {}
        await reader.checkpoint_completed(1, positions_after(positions, found))
    # Closing gave the last commit its moment.
    assert await group_offsets(kafka, group) == {TopicPartition(topic, 0): 3, TopicPartition(topic, 1): 0}


async def test_start_at_the_offsets_of_a_group(kafka: KafkaBroker, topics: Topics) -> None:
    topic, group = await topics.new(partitions=2), topics.name("group")
    await produce(kafka.bootstrap, topic, b"1", b"2", b"3")
    await produce(kafka.bootstrap, topic, b"4", partition=1)
    async with opened(KafkaSource(kafka.bootstrap, topic, value=NUMBERS, group=group)) as (reader, _):
        await reader.checkpoint_completed(1, {f"{topic}[0]": {"offset": 2}})
    source = KafkaSource(kafka.bootstrap, topic, value=NUMBERS, group=group, start="group", bounded=True)
    # The group has no offset for the other partition, which begins at its earliest.
    assert sorted(await read_all(source)) == [3, 4]


async def test_a_group_s_expired_offset_is_named(kafka: KafkaBroker, topics: Topics) -> None:
    topic, group = await topics.new(), topics.name("group")
    async with opened(KafkaSource(kafka.bootstrap, topic, value=NUMBERS, group=group)) as (reader, _):
        await reader.checkpoint_completed(1, {f"{topic}[0]": {"offset": 9}})
    with pytest.raises(OffsetExpired, match="offset 9 was never written"):
        await read_all(KafkaSource(kafka.bootstrap, topic, value=NUMBERS, group=group, start="group", bounded=True))


async def test_a_group_that_does_not_take_offsets_is_logged_and_nothing_more(
    kafka: KafkaBroker, topics: Topics, caplog: pytest.LogCaptureFixture
) -> None:
    topic, group = await topics.new(), topics.name("group")
    others = AIOKafkaConsumer(topic, bootstrap_servers=kafka.bootstrap, group_id=group, auto_offset_reset="earliest")
    source = KafkaSource(kafka.bootstrap, topic, value=NUMBERS, group=group)
    async with others, opened(source) as (reader, positions):
        await reader.checkpoint_completed(1, positions)
        await produce(kafka.bootstrap, topic, b"1")
        assert values(await some(reader, 1)) == [1]
    assert "is it in use by others?" in caplog.text


async def test_without_a_group_nothing_is_committed(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    async with opened(KafkaSource(kafka.bootstrap, topic, value=NUMBERS)) as (reader, positions):
        before = asyncio.all_tasks()
        await reader.checkpoint_completed(1, positions)
        assert asyncio.all_tasks() == before


# ------------------------------------------------------------------------------------------------------ outages


async def test_an_outage_is_ridden_out(own: KafkaBroker, caplog: pytest.LogCaptureFixture) -> None:
    await own.create_topic("orders", partitions=2)
    await produce(own.bootstrap, "orders", b"1")
    async with opened(KafkaSource(own.bootstrap, "orders", value=NUMBERS)) as (reader, _):
        assert values(await some(reader, 1)) == [1]
        await own.kill()
        pending = asyncio.create_task(some(reader, 2))
        async with asyncio.timeout(PATIENCE):
            while "no answer from Kafka" not in caplog.text:
                await asyncio.sleep(0.05)
        await own.restart()
        await produce(own.bootstrap, "orders", b"2")
        await produce(own.bootstrap, "orders", b"3", partition=1)
        assert sorted(values(await pending)) == [2, 3]
    assert [record.levelname for record in caplog.records if "no answer" in record.message] == ["WARNING"]


async def test_closing_during_an_outage_leaves_nothing_and_does_not_take_long(own: KafkaBroker) -> None:
    """The session's checks for tasks and sockets see what is left."""
    await own.create_topic("orders")
    async with opened(KafkaSource(own.bootstrap, "orders", value=NUMBERS, group="g")) as (reader, positions):
        pending = asyncio.create_task(reader.read())
        await reader.checkpoint_completed(1, positions)
        await own.kill()
        await reader.checkpoint_completed(2, positions)
        done, _ = await asyncio.wait([pending], timeout=1.0)
        assert not done
        pending.cancel()
        await asyncio.gather(pending, return_exceptions=True)
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < 30.0  # the client itself would wait for 40
