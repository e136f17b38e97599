"""The parts that need no broker: partitions of keys, splits, decoding, options, retries."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.client import CoordinationType
from aiokafka.errors import GroupAuthorizationFailedError, KafkaError, NodeNotReadyError
from aiokafka.structs import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from connectors.kafka import AccessDenied, BrokersUnreachable, KafkaSink, KafkaSource, ReadFailed, cluster, reader
from connectors.kafka.cluster import Cluster
from connectors.kafka.decoding import Values, decoded
from connectors.kafka.options import READING, ClientOptions
from connectors.kafka.partitioning import KEPT_KEYS, RUN_BYTES, KeyPartitions, Runs
from connectors.kafka.splits import Split, name_of, partition_of, subtask_of
from streamactors.errors import ConnectionLost, InvalidConfig
from streamactors.formats import Raw
from tests.connectors.kafka.driving import LOG, NUMBERS, SOURCE

# What Java's Utils.murmur2 gives for these (Kafka's own UtilsTest).
JAVA = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}

# ------------------------------------------------------------------------------------------------------ partitions


@pytest.mark.parametrize("count", [1, 3, 7, 100])
def test_keys_hash_as_in_java(count: int) -> None:
    partitions = KeyPartitions(range(count))
    assert [partitions[key] for key in JAVA] == [(value & 0x7FFFFFFF) % count for value in JAVA.values()]


def test_keys_are_remembered_and_not_without_bound() -> None:
    partitions = KeyPartitions(range(5))
    for number in range(KEPT_KEYS + 10):
        partitions[b"%d" % number]
    assert len(partitions) == 10
    assert partitions[b"x" * 1000] in range(5)
    assert len(partitions) == 10


def test_runs_turn_to_the_next_partition() -> None:
    runs = Runs(1)
    chosen = [runs.choose((0, 1, 2), RUN_BYTES // 2) for _ in range(8)]
    assert chosen == [1, 1, 2, 2, 0, 0, 1, 1]


# ---------------------------------------------------------------------------------------------------------- splits


@given(st.text("abc.-_", min_size=1), st.integers(0, 10_000))
def test_a_split_s_name_leads_back_to_its_partition(topic: str, number: int) -> None:
    tp = TopicPartition(topic, number)
    assert partition_of(name_of(tp)) == tp


@given(st.text("abc.-_", min_size=1), st.integers(1, 50), st.integers(1, 20))
def test_partitions_are_spread_evenly(topic: str, partitions: int, parallelism: int) -> None:
    shares = Counter(subtask_of(f"{topic}[{number}]", parallelism) for number in range(partitions))
    assert set(shares) <= set(range(parallelism))
    assert max(shares.values()) - min(shares.get(i, 0) for i in range(parallelism)) <= 1


def test_topics_of_one_partition_are_spread_too() -> None:
    shares = Counter(subtask_of(f"topic-{number}[0]", 4) for number in range(400))
    assert min(shares.values()) > 60


def test_the_assignment_is_the_same_for_ever() -> None:
    """Checkpoints rely on it: a value from an earlier version."""
    assert [KafkaSource("localhost:1", "orders", value=Raw()).assign(f"orders[{n}]", 4) for n in range(5)] == [
        2, 3, 0, 1, 2,
    ]  # fmt: skip


# -------------------------------------------------------------------------------------------------------- decoding


@given(st.lists(st.sampled_from([b"1", b"22", b"bad", None]), max_size=30))
def test_one_bad_record_spoils_no_other(payloads: list[bytes | None]) -> None:
    records = [SimpleNamespace(value=payload, offset=offset) for offset, payload in enumerate(payloads)]
    result = decoded(Values(NUMBERS), records, "t[0]@")
    good = [offset for offset, payload in enumerate(payloads) if payload not in (b"bad", None)]
    assert [record.offset for record in result.records] == good
    assert result.values == [int(payloads[offset] or b"") for offset in good]
    for bad in result.undecodable:
        offset = int(bad.origin.removeprefix("t[0]@"))
        assert bad.value == payloads[offset]
        assert bad.index == len([each for each in good if each < offset])
    assert len(result.values) + len(result.undecodable) == len(payloads)


# --------------------------------------------------------------------------------------------------------- options


def test_options_show_nothing() -> None:
    options = ClientOptions("test", {"sasl_plain_password": "hush", "client_id": "me"}, READING)
    assert "hush" not in repr(options)
    assert "me" not in repr(options).split()
    assert options.connection() == {"sasl_plain_password": "hush", "client_id": "me"}


@pytest.mark.parametrize("brokers", ["", "a:1,,b:2", "host:port"])
def test_brokers_must_be_addresses(brokers: str) -> None:
    with pytest.raises(InvalidConfig, match="is not host:port"):
        KafkaSource(brokers, "orders", value=Raw())
    with pytest.raises(InvalidConfig, match="is not host:port"):
        KafkaSink(brokers, "orders", value=Raw())


def test_several_brokers() -> None:
    assert KafkaSink(" a:1, b:2,c", "orders", value=Raw()).brokers == "a:1,b:2,c"


# --------------------------------------------------------------------------------------------------------- silence


class Hearing:
    """In the place of a consumer: when it last heard of a partition."""

    def __init__(self) -> None:
        self.heard = 1

    def last_poll_timestamp(self, tp: TopicPartition) -> int:
        return self.heard


@pytest.mark.parametrize("others_hear", [True, False])
async def test_silence_is_told_and_a_stuck_consumer_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, others_hear: bool
) -> None:
    monkeypatch.setattr(reader, "SILENT_SECONDS", -1.0)
    consumer, silence = Hearing(), reader.Silence(SOURCE, "broker:1")
    connected = Cluster("broker:1", ClientOptions("test", None, READING), LOG)
    connected._client = Scripted(*([0] if others_hear else [NodeNotReadyError("down")] * 10_000))
    splits = {TopicPartition("t", 0): Split(TopicPartition("t", 0), 5)}
    await silence.check(consumer, splits, connected)
    await silence.check(consumer, splits, connected)
    await silence.check(consumer, splits, connected)
    assert caplog.text.count("no answer from Kafka at broker:1") == 1
    consumer.heard += 1
    await silence.check(consumer, splits, connected)
    assert caplog.text.count("answers again") == 1
    monkeypatch.setattr(reader, "STUCK_SECONDS", -1.0)
    if others_hear:
        with pytest.raises(ReadFailed, match=r"t\[0\] at broker:1.*although the brokers answer"):
            await silence.check(consumer, splits, connected)
    else:
        await silence.check(consumer, splits, connected)


# --------------------------------------------------------------------------------------------------------- retries


class Scripted:
    """In the place of aiokafka's client: gives one answer after the other."""

    def __init__(self, *answers: int | KafkaError) -> None:
        self.answers = list(answers)
        self.lookups = 0
        self.cluster = SimpleNamespace(broker_metadata=lambda node: object())

    async def coordinator_lookup(self, kind: CoordinationType, key: str) -> int:
        self.lookups += 1
        return self.lookups

    def get_random_node(self) -> int:
        return 1

    async def ready(self, node: int, *, group: object) -> bool:
        return True

    async def send(self, node: int, request: object, group: object) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, KafkaError):
            raise answer
        return SimpleNamespace(error_code=answer, topics=[])


def ask(*answers: int | KafkaError, seconds: float = 60.0, **given: Any) -> tuple[Scripted, Callable[[], Any]]:
    client = Scripted(*answers)
    connected = Cluster("broker:1", ClientOptions("test", None, READING), LOG)
    connected._client = client
    return client, lambda: connected.ask_coordinator(
        CoordinationType.TRANSACTION, "id", None, "asking", seconds=seconds, **given
    )


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(cluster, "LONGEST_PAUSE", 0.002)


@pytest.mark.usefixtures("impatient")
async def test_a_coordinator_that_moves_or_loads_is_looked_up_again() -> None:
    client, asking = ask(16, 14, 15, NodeNotReadyError("down"), 0)
    assert (await asking()).error_code == 0
    assert client.lookups == 5


@pytest.mark.usefixtures("impatient")
async def test_a_busy_transaction_is_waited_for_where_it_is() -> None:
    client, asking = ask(51, 51, 51, 47)
    assert (await asking()).error_code == 47
    assert client.lookups == 1


@pytest.mark.usefixtures("impatient")
async def test_waiting_ends_and_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(cluster, "WARN_AFTER_SECONDS", 0.0)
    _, asking = ask(*[51] * 10_000, seconds=0.05)
    with pytest.raises(BrokersUnreachable, match=r"asking: no answer from Kafka at broker:1.*ConcurrentTransactions"):
        await asking()
    assert [record.levelno for record in caplog.records if "still trying" in record.message] == [logging.WARNING]


@pytest.mark.usefixtures("impatient")
async def test_before_each_try_it_is_asked_whether_that_is_still_right() -> None:
    """The pause between two may have been long."""
    asked: list[int] = []

    def may_send() -> None:
        asked.append(len(client.answers))
        if len(asked) == 2:
            raise ConnectionLost("another process may have taken its place")

    client, asking = ask(51, 0, may_send=may_send)
    with pytest.raises(ConnectionLost, match="taken its place"):
        await asking()
    assert asked == [2, 1] and client.answers == [0]


async def test_what_is_not_allowed_is_not_tried_again() -> None:
    client, asking = ask(GroupAuthorizationFailedError("id"), 0)
    with pytest.raises(AccessDenied, match="refuses it"):
        await asking()
    assert len(client.answers) == 1


async def test_cancelling_ends_a_retry() -> None:
    _, asking = ask(*[51] * 10_000)
    task = asyncio.create_task(asking())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
