"""Writing to a real broker: what a record becomes, where it goes, and what happens when it can't."""

import asyncio
import re
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
from aiokafka.partitioner import DefaultPartitioner

from connectors.kafka import DeliveryFailed, KafkaSink, UnknownTopic, producer
from connectors.kafka.sink import KafkaWriter
from streamactors.errors import InvalidConfig, RecordFailed
from streamactors.formats import Json, Raw
from streamactors.sinks import SinkWriter
from streamactors.testing import KafkaBroker
from tests.connectors.kafka.driving import (
    NUMBERS,
    PATIENCE,
    SINK,
    committed_values,
    end_offsets,
    see,
    see_nothing_open,
    visible,
    writing,
)
from tests.kafka_topics import Topics

DELIVERIES = ["exactly-once", "at-least-once", "none"]


async def write(sink: KafkaSink[Any], values: list[Any], timestamps: list[int | None] | None = None) -> None:
    """All of them, durable and visible."""
    async with writing(sink) as writer:
        await writer.write(values, timestamps)
        await settle(writer)


async def settle(writer: SinkWriter[Any], checkpoint: int = 1) -> None:
    if await writer.prepare(checkpoint):
        await writer.commit(checkpoint)
    else:
        await writer.finish()


# ------------------------------------------------------------------------------------------------------- records


@pytest.mark.parametrize("delivery", DELIVERIES)
async def test_records_arrive_in_order(kafka: KafkaBroker, topics: Topics, delivery: Any) -> None:
    topic = await topics.new()
    await write(KafkaSink(kafka.bootstrap, topic, value=NUMBERS, delivery=delivery), list(range(1000)))
    await see(kafka.bootstrap, topic, *(b"%d" % number for number in range(1000)))


async def test_key_headers_and_timestamp(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    sink: KafkaSink[dict[str, Any]] = KafkaSink(
        kafka.bootstrap,
        topic,
        value=Json(),
        key=lambda value: str(value["id"]).encode(),
        headers=lambda value: [("kind", b"test"), ("kind", str(value["id"]).encode())],
        timestamp=lambda value: 1_000 * value["id"],
        delivery="at-least-once",
    )
    await write(sink, [{"id": 1}, {"id": 2}], [77, 78])
    found = await visible(kafka.bootstrap, topic)
    assert [(record.key, record.value, record.timestamp) for record in found] == [
        (b"1", b'{"id":1}', 1_000),
        (b"2", b'{"id":2}', 2_000),
    ]
    assert [record.headers for record in found] == [(("kind", b"test"), ("kind", b"%d" % n)) for n in (1, 2)]


async def test_event_time_is_the_timestamp_and_now_where_there_is_none(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    sink = KafkaSink(kafka.bootstrap, topic, value=NUMBERS, delivery="at-least-once")
    async with writing(sink) as writer:
        await writer.write([1], None)
        await writer.write([2, 3], [5_000, None])
        await settle(writer)
    now, five, later = [record.timestamp for record in await visible(kafka.bootstrap, topic)]
    assert five == 5_000
    assert 1_600_000_000_000 < now <= later


async def test_an_encoder_that_returns_none_writes_tombstones(kafka: KafkaBroker, topics: Topics) -> None:
    class OrNothing:
        def encode(self, value: int) -> bytes:
            return None if value == 0 else b"%d" % value  # type: ignore[return-value]

    topic = await topics.new()
    sink = KafkaSink(kafka.bootstrap, topic, value=OrNothing(), key=lambda _: b"k", delivery="at-least-once")
    await write(sink, [1, 0])
    assert await committed_values(kafka.bootstrap, topic) == [b"1", None]


async def test_a_topic_for_each_record(kafka: KafkaBroker, topics: Topics) -> None:
    odd, even = await topics.new("odd"), await topics.new("even")
    sink = KafkaSink(kafka.bootstrap, lambda value: odd if value % 2 else even, value=NUMBERS, key=lambda v: b"%d" % v)
    await write(sink, list(range(10)), list(range(10)))
    await see(kafka.bootstrap, odd, b"1", b"3", b"5", b"7", b"9")
    await see(kafka.bootstrap, even, b"0", b"2", b"4", b"6", b"8")
    assert [record.timestamp for record in await visible(kafka.bootstrap, odd)] == [1, 3, 5, 7, 9]


@pytest.mark.parametrize("compression", ["gzip", None])
async def test_compression(kafka: KafkaBroker, topics: Topics, compression: str | None) -> None:
    topic = await topics.new()
    client = {"compression_type": compression}
    await write(KafkaSink(kafka.bootstrap, topic, value=NUMBERS, client=client), list(range(2000)))
    await see(kafka.bootstrap, topic, *(b"%d" % number for number in range(2000)))


# ---------------------------------------------------------------------------------------------------- partitions


async def test_keys_go_where_java_s_producer_sends_them(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new(partitions=5)
    sink = KafkaSink(kafka.bootstrap, topic, value=NUMBERS, key=lambda value: b"key-%d" % (value % 50))
    await write(sink, list(range(500)))
    java = DefaultPartitioner()
    by_key = defaultdict(list)
    for record in await visible(kafka.bootstrap, topic, isolation="read_uncommitted"):
        assert record.key is not None
        assert record.value is not None
        assert record.partition == java(record.key, list(range(5)), list(range(5)))
        by_key[record.key].append(int(record.value))
    assert sorted(number for numbers in by_key.values() for number in numbers) == list(range(500))
    assert all(numbers == sorted(numbers) for numbers in by_key.values())


async def test_records_without_a_key_are_spread_in_runs(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new(partitions=3)
    sink = KafkaSink(kafka.bootstrap, topic, value=Raw(), delivery="at-least-once")
    async with writing(sink) as writer:
        for _ in range(30):
            await writer.write([b"x" * 1024] * 16, None)
        await settle(writer)
    ends = await end_offsets(kafka.bootstrap, topic)
    assert sum(ends.values()) == 480
    assert min(ends.values()) >= 100


async def test_some_keys_may_be_none(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new(partitions=4)
    sink = KafkaSink(
        kafka.bootstrap,
        topic,
        value=NUMBERS,
        key=lambda value: None if value % 2 else b"even",
        delivery="at-least-once",
    )
    await write(sink, list(range(20)))
    found = await visible(kafka.bootstrap, topic)
    assert sorted(int(record.value or b"") for record in found) == list(range(20))
    assert len({record.partition for record in found if record.key == b"even"}) == 1


async def test_a_partitioner_of_one_s_own(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new(partitions=3)
    client = {"partitioner": lambda key, everything, led: everything[int(key) % 3]}
    sink = KafkaSink(
        kafka.bootstrap,
        topic,
        value=NUMBERS,
        key=lambda value: b"%d" % value,
        delivery="at-least-once",
        client=client,
    )
    await write(sink, list(range(9)))
    found = await visible(kafka.bootstrap, topic)
    assert {(record.partition, record.value) for record in found} == {(n % 3, b"%d" % n) for n in range(9)}


# ---------------------------------------------------------------------------------------------------- deliveries


@pytest.mark.parametrize(
    ("given", "context", "expected"),
    [
        (None, {}, "exactly-once"),
        (None, {"exactly_once": False}, "at-least-once"),
        (None, {"checkpointing": False, "exactly_once": False}, "at-least-once"),
        ("at-least-once", {}, "at-least-once"),
        ("none", {}, "none"),
    ],
)
def test_the_delivery_follows_the_checkpoints(given: Any, context: dict[str, Any], expected: str) -> None:
    sink = KafkaSink("localhost:1", "out", value=NUMBERS, delivery=given)
    assert sink.delivery_in(replace(SINK, **context)) == expected
    assert sink.transactional == (given is None)


def test_exactly_once_without_checkpoints_is_refused_by_name() -> None:
    sink = KafkaSink("localhost:1", "totals", value=NUMBERS, delivery="exactly-once")
    with pytest.raises(InvalidConfig, match=r"KafkaSink\(totals at localhost:1.*would never become visible"):
        sink.validate(checkpointing=False)
    sink.validate(checkpointing=True)
    KafkaSink("localhost:1", "totals", value=NUMBERS).validate(checkpointing=False)


def test_exactly_once_under_at_least_once_checkpoints_is_refused() -> None:
    sink = KafkaSink("localhost:1", "totals", value=NUMBERS, delivery="exactly-once")
    with pytest.raises(InvalidConfig, match="mode='exactly-once'"):
        sink.writer(replace(SINK, exactly_once=False))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"delivery": "twice"}, "none of exactly-once, at-least-once, none"),
        ({"transactional_id_prefix": ""}, "transactional_id_prefix is empty"),
        ({"client": {"acks": 0}}, "use the argument delivery="),
        ({"client": {"compression_type": "rar"}}, "none of gzip"),
        ({"client": {"linger": 5}}, "unknown client option"),
    ],
)
def test_settings_that_can_not_work_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidConfig, match=re.escape(words)):
        KafkaSink("localhost:1", "out", value=NUMBERS, **options)


async def test_at_least_once_is_durable_at_the_barrier(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    async with writing(KafkaSink(kafka.bootstrap, topic, value=NUMBERS, delivery="at-least-once")) as writer:
        await writer.write(list(range(100)), None)
        assert list(await writer.prepare(1)) == []
        assert await end_offsets(kafka.bootstrap, topic) == {0: 100}


# ------------------------------------------------------------------------------------------------------ refusals


async def test_a_value_that_can_not_be_encoded_is_named(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    async with writing(KafkaSink[Any](kafka.bootstrap, topic, value=Json())) as writer:
        with pytest.raises(RecordFailed, match=r"'out'.*can't encode \{'at': <object") as caught:
            await writer.write([{"at": 1}, {"at": object()}], None)
    assert isinstance(caught.value.__cause__, TypeError)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"key": lambda value: value["name"]}, "KafkaSink can't give a key for {'id': 7}: KeyError"),
        ({"key": lambda value: str(value)}, "key gave str, not bytes, for {'id': 7}"),
        ({"headers": lambda value: value["headers"]}, "can't give headers for {'id': 7}"),
        ({"timestamp": lambda value: -5}, "no timestamp before 1970, such as -5 for {'id': 7}"),
    ],
)
async def test_a_function_that_fails_is_named_with_its_value(
    kafka: KafkaBroker, topics: Topics, options: dict[str, Any], words: str
) -> None:
    topic = await topics.new()
    async with writing(KafkaSink[Any](kafka.bootstrap, topic, value=Json(), **options)) as writer:
        with pytest.raises(RecordFailed, match=re.escape(words)):
            await writer.write([{"id": 7}], None)


async def test_a_record_larger_than_a_batch_has_a_batch_of_its_own(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    sink = KafkaSink(kafka.bootstrap, topic, value=Raw(), delivery="at-least-once", client={"max_batch_size": 1024})
    await write(sink, [b"a" * 10, b"b" * 50_000, b"c" * 10])
    assert [len(value or b"") for value in await committed_values(kafka.bootstrap, topic)] == [10, 50_000, 10]


@pytest.mark.parametrize("delivery", DELIVERIES)
async def test_a_record_that_the_topic_does_not_take_is_named(
    kafka: KafkaBroker, topics: Topics, delivery: Any
) -> None:
    topic = await topics.new(config={"max.message.bytes": "2000"})
    async with writing(KafkaSink(kafka.bootstrap, topic, value=Raw(), delivery=delivery)) as writer:
        await writer.write([b"x" * 5_000], None)
        refused = rf"{topic}\[0\].*a record of 5\d\d\d bytes.*max.message.bytes"
        with pytest.raises(DeliveryFailed, match=refused) as caught:
            await settle(writer)
    assert not caught.value.retryable


async def test_a_failed_delivery_stops_the_next_write(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new(config={"max.message.bytes": "2000"})
    async with writing(KafkaSink(kafka.bootstrap, topic, value=Raw(), delivery="at-least-once")) as writer:
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(DeliveryFailed, match=re.escape(f"{topic}[0]")):
                await write_on(writer)


async def write_on(writer: SinkWriter[bytes]) -> None:
    while True:
        await writer.write([b"x" * 5_000], None)
        await asyncio.sleep(0.01)


async def test_an_unknown_topic_of_a_record_is_named(kafka: KafkaBroker, topics: Topics) -> None:
    missing = topics.name("missing")
    async with writing(KafkaSink(kafka.bootstrap, lambda _: missing, value=NUMBERS)) as writer:
        with pytest.raises(UnknownTopic, match=missing):
            await writer.write([1], None)


# ------------------------------------------------------------------------------------------ pressure and outages


async def test_what_waits_is_bounded_in_bytes(
    kafka: KafkaBroker, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producer, "BUFFER_BYTES", 100_000)
    topic = await topics.new()
    most = 0
    sink = KafkaSink(kafka.bootstrap, topic, value=Raw(), client={"max_batch_size": 20_000})
    async with writing(sink) as writer:
        assert isinstance(writer, KafkaWriter)
        for _ in range(20):
            await writer.write([b"x" * 1_000] * 500, None)
            most = max(most, writer._opened.buffered)
        await settle(writer)
    assert 0 < most <= 100_000
    await see_nothing_open(kafka.bootstrap, topic)
    assert sum((await end_offsets(kafka.bootstrap, topic)).values()) == 10_001


@pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once"])
async def test_an_outage_while_writing_loses_doubles_and_reorders_nothing(
    own: KafkaBroker, delivery: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await own.create_topic("out")
    async with writing(KafkaSink(own.bootstrap, "out", value=NUMBERS, delivery=delivery)) as writer:
        await writer.write(list(range(100)), None)
        await own.kill()
        await writer.write(list(range(100, 200)), None)
        prepared = asyncio.create_task(settle(writer))
        async with asyncio.timeout(PATIENCE):
            while "writing to out[0] again" not in caplog.text and "still trying" not in caplog.text:
                await asyncio.sleep(0.02)
        await own.restart()
        async with asyncio.timeout(PATIENCE):
            await prepared
        await see(own.bootstrap, "out", *(b"%d" % number for number in range(200)))


async def test_closing_during_an_outage_takes_a_bounded_time(own: KafkaBroker) -> None:
    await own.create_topic("out")
    async with writing(KafkaSink(own.bootstrap, "out", value=NUMBERS)) as writer:
        await writer.write(list(range(100)), None)
        await own.kill()
        await writer.write(list(range(100)), None)
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < 30  # deliveries are waited for four times as long
