"""Reading from a real broker: positions, ends, starts, bad records."""

import datetime as dt
import re
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition

from connectors.kafka import KafkaRecord, KafkaSource, OffsetExpired, UnknownTopic
from streamactors.elements import DeadLetter, OutputTag
from streamactors.errors import InvalidConfig
from streamactors.formats import Json, Raw, Text
from streamactors.sources import InputProgress
from streamactors.testing import KafkaBroker
from tests.connectors.kafka.driving import (
    NUMBERS,
    batches,
    opened,
    positions_after,
    produce,
    read_all,
    some,
    transact,
    values,
)
from tests.kafka_topics import Topics


def numbers(first: int, end: int) -> list[bytes]:
    return [b"%d" % number for number in range(first, end)]


def bounded(kafka: KafkaBroker, *topics: str, **options: Any) -> KafkaSource[int]:
    return KafkaSource(kafka.bootstrap, topics, value=NUMBERS, bounded=True, **options)


# ------------------------------------------------------------------------------------------------------- reading


async def test_every_record_of_every_partition_is_read_once_and_in_order(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new(partitions=3)
    for partition in range(3):
        await produce(kafka.bootstrap, topic, *numbers(100 * partition, 100 * partition + 40), partition=partition)
    async with opened(bounded(kafka, topic)) as (reader, positions):
        found = await batches(reader)
    assert positions == {f"{topic}[{p}]": {"offset": 0, "end": 40} for p in range(3)}
    for partition in range(3):
        mine = values([batch for batch in found if batch.split == f"{topic}[{partition}]"])
        assert mine == list(range(100 * partition, 100 * partition + 40))


async def test_batches_say_where_and_when_their_records_are_from(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    await produce(kafka.bootstrap, topic, b"1", timestamp_ms=5_000)
    await produce(kafka.bootstrap, topic, b"2", timestamp_ms=4_000)
    async with opened(bounded(kafka, topic)) as (reader, _):
        found = await batches(reader)
    assert [time for batch in found for time in batch.timestamps or ()] == [5_000, 4_000]
    assert [f"{batch.origin_prefix}{origin}" for batch in found for origin in batch.origins or ()] == [
        f"{topic}[0]@0",
        f"{topic}[0]@1",
    ]


async def test_reading_goes_on_exactly_at_any_position(kafka: KafkaBroker, topics: Topics) -> None:
    """The invariant of sources, over bad records, aborted ones and control records."""
    topic = await topics.new()
    await produce(kafka.bootstrap, topic, b"0", b"bad", b"1")
    await transact(kafka.bootstrap, topic, b"77", b"78", commit=False)
    await transact(kafka.bootstrap, topic, b"2", b"3", commit=True)
    await produce(kafka.bootstrap, topic, b"bad", b"4")
    source = bounded(kafka, topic, on_error=OutputTag("bad", DeadLetter))
    async with opened(source) as (reader, positions):
        found = await batches(reader)
    assert values(found) == [0, 1, 2, 3, 4]
    read: list[int] = []
    for batch in found:
        for n in range(len(batch.values) + 1):
            position = positions_after(positions, []) | {batch.split: batch.position_after(n)}
            async with opened(source, position) as (reader, _):
                rest = await batches(reader)
            assert values(rest) == [0, 1, 2, 3, 4][len(read) + n :]
            bad = [record.origin for each in rest for record in each.undecodable]
            taken = [record.origin for record in batch.undecodable if record.index <= n]
            assert not set(bad) & set(taken)
            later = [record.origin for record in batch.undecodable if record.index > n]
            assert set(later) <= set(bad)
        read += batch.values


async def test_a_subtask_reads_only_its_partitions_and_together_they_read_all(
    kafka: KafkaBroker, topics: Topics
) -> None:
    topic = await topics.new(partitions=5)
    for partition in range(5):
        await produce(kafka.bootstrap, topic, b"%d" % partition, partition=partition)
    shares = [await read_all(bounded(kafka, topic), subtask=subtask, parallelism=2) for subtask in range(2)]
    assert sorted(len(share) for share in shares) == [2, 3]
    assert sorted(shares[0] + shares[1]) == [0, 1, 2, 3, 4]


async def test_a_subtask_without_partitions_ends_at_once_if_bounded(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    source = bounded(kafka, topic)
    idle = 1 - source.assign(f"{topic}[0]", 2)
    assert await read_all(source, subtask=idle, parallelism=2) == []


async def test_several_topics_and_patterns(kafka: KafkaBroker, topics: Topics) -> None:
    first, second, other = await topics.new("one"), await topics.new("two"), await topics.new("three")
    for number, topic in enumerate((first, second, other)):
        await produce(kafka.bootstrap, topic, b"%d" % number)
    assert sorted(await read_all(bounded(kafka, first, second))) == [0, 1]
    pattern = re.compile(f"{re.escape(first)}|{re.escape(other)}")
    assert sorted(await read_all(KafkaSource(kafka.bootstrap, pattern, value=NUMBERS, bounded=True))) == [0, 2]


async def test_a_pattern_matches_whole_names(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new("whole")
    await produce(kafka.bootstrap, topic, b"1")
    assert await read_all(KafkaSource(kafka.bootstrap, re.compile(topic[:-1]), value=NUMBERS, bounded=True)) == []


async def test_aborted_records_are_read_only_where_asked_for(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    await transact(kafka.bootstrap, topic, b"1", commit=False)
    await transact(kafka.bootstrap, topic, b"2", commit=True)
    assert await read_all(bounded(kafka, topic)) == [2]
    assert await read_all(bounded(kafka, topic, isolation="read_uncommitted")) == [1, 2]


# ------------------------------------------------------------------------------------------------------ the end


async def test_a_bounded_read_ends_behind_aborted_and_control_records(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    await produce(kafka.bootstrap, topic, b"1")
    await transact(kafka.bootstrap, topic, b"2", commit=True)
    await transact(kafka.bootstrap, topic, b"3", b"4", commit=False)
    async with opened(bounded(kafka, topic)) as (reader, positions):
        found = await batches(reader)
    assert values(found) == [1, 2]
    end = positions[f"{topic}[0]"]["end"]
    assert positions_after(positions, found)[f"{topic}[0]"] == {"offset": end, "end": end}


async def test_a_bounded_read_of_nothing_but_aborted_records_ends(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new(partitions=2)
    await transact(kafka.bootstrap, topic, b"3", b"4", commit=False)
    assert await read_all(bounded(kafka, topic)) == []


async def test_a_bounded_read_does_not_go_past_its_end(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    await produce(kafka.bootstrap, topic, *numbers(0, 5))
    async with opened(bounded(kafka, topic)) as (reader, positions):
        await produce(kafka.bootstrap, topic, *numbers(5, 10))
        assert values(await batches(reader)) == [0, 1, 2, 3, 4]
    # The end is state: a restored read stops there as well.
    assert await read_all(bounded(kafka, topic), positions) == [0, 1, 2, 3, 4]
    async with opened(bounded(kafka, topic), {f"{topic}[0]": {"offset": 2, "end": 5}}) as (reader, _):
        assert reader.progress() == InputProgress(0, 3, "records")
        while await reader.read() is not None:
            pass
        assert reader.progress() == InputProgress(3, 3, "records")


async def test_a_bounded_read_keeps_the_partitions_that_it_began_with(
    kafka: KafkaBroker, topics: Topics, caplog: pytest.LogCaptureFixture
) -> None:
    topic, later = await topics.new(), await topics.new()
    await produce(kafka.bootstrap, topic, b"1")
    await produce(kafka.bootstrap, later, b"2")
    async with opened(bounded(kafka, topic)) as (_, positions):
        pass
    assert await read_all(bounded(kafka, topic, later), positions) == [1]
    assert f"not reading {later}[0]" in caplog.text


async def test_positions_of_an_unbounded_read_get_an_end_when_it_becomes_bounded(
    kafka: KafkaBroker, topics: Topics
) -> None:
    topic = await topics.new()
    await produce(kafka.bootstrap, topic, *numbers(0, 5))
    assert await read_all(bounded(kafka, topic), {f"{topic}[0]": {"offset": 3}}) == [3, 4]


# ---------------------------------------------------------------------------------------------------- the start


async def test_latest_is_where_it_was_when_the_run_started(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    await produce(kafka.bootstrap, topic, *numbers(0, 5))
    source = KafkaSource(kafka.bootstrap, topic, value=NUMBERS, start="latest")
    async with opened(source) as (_, positions):
        assert positions == {f"{topic}[0]": {"offset": 5}}
    await produce(kafka.bootstrap, topic, *numbers(5, 8))
    # A crash before the first record: the position was in the first checkpoint.
    async with opened(source, positions) as (reader, _):
        assert values(await some(reader, 3)) == [5, 6, 7]


async def test_start_by_time(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new(partitions=2)
    for number, time in enumerate((1_000, 2_000, 3_000)):
        await produce(kafka.bootstrap, topic, b"%d" % number, timestamp_ms=time)
    await produce(kafka.bootstrap, topic, b"9", timestamp_ms=1_500, partition=1)
    moment = dt.datetime.fromtimestamp(1.5, dt.UTC)
    assert sorted(await read_all(bounded(kafka, topic, start=moment))) == [1, 2, 9]
    later = dt.datetime.fromtimestamp(2.5, dt.UTC)
    async with opened(bounded(kafka, topic, start=later)) as (reader, positions):
        assert positions[f"{topic}[1]"] == {"offset": 1, "end": 1}
        assert values(await batches(reader)) == [2]


async def test_start_by_offsets(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new(partitions=2)
    await produce(kafka.bootstrap, topic, *numbers(0, 5))
    await produce(kafka.bootstrap, topic, *numbers(10, 12), partition=1)
    assert sorted(await read_all(bounded(kafka, topic, start={(topic, 0): 3}))) == [3, 4, 10, 11]


async def test_start_does_not_hold_for_restored_positions(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    await produce(kafka.bootstrap, topic, *numbers(0, 5))
    assert await read_all(bounded(kafka, topic, start="latest"), {f"{topic}[0]": {"offset": 1, "end": 4}}) == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"start": "begin"}, "none of earliest, latest, group"),
        ({"start": "group"}, "give group="),
        ({"start": dt.datetime(2026, 1, 1)}, "no time zone"),
        ({"start": {"orders": 3}}, "(topic, partition): offset"),
        ({"start": {("orders", 0): -1}}, "(topic, partition): offset"),
        ({"isolation": "serializable"}, "neither read_committed"),
        ({"on_error": "dead-letters"}, "neither 'fail' nor an OutputTag"),
        ({"client": {"group_id": "g"}}, "use the argument group="),
        ({"client": {"fetch_bytes": 1}}, "unknown client option 'fetch_bytes'"),
    ],
)
def test_settings_that_can_not_work_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidConfig, match=re.escape(words)):
        KafkaSource("localhost:1", "orders", value=Raw(), **options)


@pytest.mark.parametrize("topics", [(), "", ("a", "")])
def test_topics_must_be_named(topics: Any) -> None:
    with pytest.raises(InvalidConfig, match="topics"):
        KafkaSource("localhost:1", topics, value=Raw())


# ------------------------------------------------------------------------------------------------- what is lost


async def delete_before(kafka: KafkaBroker, topic: str, offset: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=offset)})
    finally:
        await admin.close()


async def test_an_expired_offset_ends_the_job_with_the_choices(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    await produce(kafka.bootstrap, topic, *numbers(0, 10))
    await delete_before(kafka, topic, 6)
    async with opened(bounded(kafka, topic), {f"{topic}[0]": {"offset": 2, "end": 10}}) as (reader, _):
        with pytest.raises(OffsetExpired) as caught:
            await batches(reader)
    assert not caught.value.retryable
    message = str(caught.value)
    assert f"{topic}[0]" in message
    assert "offset 2 is already deleted" in message
    assert "offsets 6 to 10" in message
    assert f"start={{('{topic}', 0): 6}}" in message


async def test_an_offset_beyond_the_end_ends_the_job(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    await produce(kafka.bootstrap, topic, *numbers(0, 3))
    source = KafkaSource(kafka.bootstrap, topic, value=NUMBERS)
    async with opened(source, {f"{topic}[0]": {"offset": 50}}) as (reader, _):
        with pytest.raises(OffsetExpired, match=r"offset 50 was never written.*offsets 0 to 3"):
            await reader.read()


async def test_start_offsets_are_checked_although_a_bounded_read_may_not_need_them(
    kafka: KafkaBroker, topics: Topics
) -> None:
    topic = await topics.new()
    await produce(kafka.bootstrap, topic, *numbers(0, 3))
    with pytest.raises(OffsetExpired, match="offset 50 was never written"):
        await read_all(bounded(kafka, topic, start={(topic, 0): 50}))
    with pytest.raises(UnknownTopic, match=re.escape(f"no partition {topic}[7], which start= names")):
        await read_all(bounded(kafka, topic, start={(topic, 7): 0}))


async def test_a_restored_partition_that_is_gone_ends_the_job(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    with pytest.raises(UnknownTopic, match=re.escape(f"no partition {topic}[3], which the restored checkpoint")):
        await read_all(bounded(kafka, topic), {f"{topic}[3]": {"offset": 0, "end": 0}})


async def test_a_topic_that_is_no_longer_asked_for_is_left(
    kafka: KafkaBroker, topics: Topics, caplog: pytest.LogCaptureFixture
) -> None:
    topic = await topics.new()
    await produce(kafka.bootstrap, topic, b"1")
    restored = {f"{topic}[0]": {"offset": 0, "end": 1}, "old[0]": {"offset": 7, "end": 9}}
    async with opened(bounded(kafka, topic), restored) as (reader, positions):
        assert list(positions) == [f"{topic}[0]"]
        assert values(await batches(reader)) == [1]
    assert "no longer reading old[0]" in caplog.text


# -------------------------------------------------------------------------------------------------- bad records


async def test_bad_records_are_told_apart_and_the_others_read(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    tag = OutputTag("bad", DeadLetter)
    await produce(kafka.bootstrap, topic, b"bad", b"1", b"2", b"worse", None, b"3", b"last")
    source = bounded(kafka, topic, on_error=tag)
    assert source.error_tag == tag
    async with opened(source) as (reader, _):
        found = await batches(reader)
    assert values(found) == [1, 2, 3]
    bad = [(batch.values[: each.index], each) for batch in found for each in batch.undecodable]
    assert [each.origin for _, each in bad] == [f"{topic}[0]@{offset}" for offset in (0, 3, 4, 6)]
    assert [each.value for _, each in bad] == [b"bad", b"worse", None, b"last"]
    assert isinstance(bad[0][1].error, ValueError)
    assert "KafkaSource.records" in str(bad[2][1].error)
    assert sum(len(before) for before, _ in bad[:1]) == 0


def test_bad_records_fail_the_job_by_default() -> None:
    assert KafkaSource("localhost:1", "orders", value=Raw()).error_tag is None


async def test_a_tombstone_is_not_decoded_even_by_a_decoder_that_would_take_it(
    kafka: KafkaBroker, topics: Topics
) -> None:
    topic = await topics.new()
    await produce(kafka.bootstrap, topic, b"x", None)
    async with opened(KafkaSource(kafka.bootstrap, topic, value=Raw(), bounded=True)) as (reader, _):
        found = await batches(reader)
    assert values(found) == [b"x"]
    assert [each.origin for batch in found for each in batch.undecodable] == [f"{topic}[0]@1"]


# ------------------------------------------------------------------------------------------------ whole records


async def test_whole_records(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    headers = [("trace", b"abc"), ("trace", b"def")]
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap) as producer:
        await producer.send_and_wait(topic, b'{"a":1}', b"alice", timestamp_ms=1_000, headers=headers)
        await producer.send_and_wait(topic, None, b"alice", timestamp_ms=2_000)
        await producer.send_and_wait(topic, b"[]", timestamp_ms=3_000)
    source = KafkaSource.records(kafka.bootstrap, topic, key=Text(), value=Json(), bounded=True)
    assert await read_all(source) == [
        KafkaRecord(topic, 0, 0, 1_000, "alice", {"a": 1}, tuple(headers)),
        KafkaRecord(topic, 0, 1, 2_000, "alice", None, ()),
        KafkaRecord(topic, 0, 2, 3_000, None, [], ()),
    ]


async def test_a_bad_key_is_a_bad_record(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    await produce(kafka.bootstrap, topic, b"1", key=b"\xff")
    await produce(kafka.bootstrap, topic, b"2", key=b"good")
    source = KafkaSource.records(kafka.bootstrap, topic, key=Text(), value=NUMBERS, bounded=True)
    async with opened(source) as (reader, _):
        found = await batches(reader)
    assert [record.value for record in values(found)] == [2]
    assert [each.origin for batch in found for each in batch.undecodable] == [f"{topic}[0]@0"]
