"""What the connector tells `streamactors doctor` of the brokers: those there are, and one that misleads."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from aiokafka.protocol.admin import ApiVersionResponse_v0
from aiokafka.protocol.metadata import MetadataResponse_v1
from aiokafka.protocol.types import Int16, Int32

from connectors.kafka import BrokersUnreachable, KafkaSink, KafkaSource
from streamactors.diagnosis import Finding, PlannedStep
from streamactors.errors import InvalidConfig
from streamactors.testing import KafkaBroker
from tests.connectors.kafka.driving import LOG, NUMBERS
from tests.kafka_topics import Topics
from tests.ports import free_port

STEP = PlannedStep("flow", "step", 1, True, True, 60.0, LOG)


def by_check(findings: Sequence[Finding]) -> dict[str, Finding]:
    return {found.check: found for found in findings}


async def of_source(brokers: str, topics: Any, parallelism: int = 1) -> dict[str, Finding]:
    source = KafkaSource(brokers, topics, value=NUMBERS)
    return by_check(await source.diagnose(replace(STEP, parallelism=parallelism)))


async def of_sink(brokers: str, topic: Any, step: PlannedStep = STEP, **options: Any) -> dict[str, Finding]:
    return by_check(await KafkaSink(brokers, topic, value=NUMBERS, **options).diagnose(step))


async def test_of_a_source(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new("orders", partitions=2)
    found = await of_source(kafka.bootstrap, topic, parallelism=2)
    assert {one.level for one in found.values()} == {"ok"} and set(found) == {"brokers", "topics"}
    assert re.search(r"1 broker at .*, Kafka \d\.\d", found["brokers"].found)
    assert found["topics"].found == f"{topic}: 2 partitions"
    found = await of_source(kafka.bootstrap, re.compile(re.escape(topic)), parallelism=3)
    assert found["topics"].level == "ok"
    assert found["parallelism"].level == "warning" and "3 subtasks read 2 partitions" in found["parallelism"].found


async def test_of_topics_that_are_not_there(kafka: KafkaBroker, topics: Topics) -> None:
    missing = topics.name("missing")
    for found in (await of_source(kafka.bootstrap, missing), await of_sink(kafka.bootstrap, missing)):
        assert found["topics"].level == "problem" and missing in found["topics"].found
        assert "create it" in found["topics"].remedy
    assert (await of_source(kafka.bootstrap, re.compile(missing)))["topics"].level == "warning"
    found = await of_source(kafka.bootstrap, missing)
    assert found["topics"].level == "problem"  # to look has not created it


async def test_of_a_sink_and_its_transactions(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    found = await of_sink(kafka.bootstrap, topic)
    assert (found["topics"].level, found["transactions"].level) == ("ok", "ok")
    assert re.fullmatch(r"time-out \d+ s, of at most 900 s", found["transactions"].found)
    found = await of_sink(kafka.bootstrap, topic, client={"transaction_timeout_ms": 901_000})
    assert found["transactions"].level == "problem"
    assert "901 s is above the brokers' transaction.max.timeout.ms of 900 s" in found["transactions"].found
    with pytest.raises(InvalidConfig, match="does not exceed the checkpoint time-out"):
        await of_sink(kafka.bootstrap, topic, client={"transaction_timeout_ms": 60_000})


async def test_without_transactions_their_limit_does_not_matter(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    for step in (replace(STEP, checkpointing=False), replace(STEP, exactly_once=False)):
        assert "transactions" not in await of_sink(kafka.bootstrap, topic, step)
    assert "transactions" not in await of_sink(kafka.bootstrap, topic, delivery="at-least-once")
    assert set(await of_sink(kafka.bootstrap, str, delivery="at-least-once")) == {"brokers"}


# ------------------------------------------------------------------------------------------- a broker that misleads
class Misleading:
    """Speaks enough of the protocol to be dialled, and names itself by an address where nobody is."""

    def __init__(self, named: int) -> None:
        self._named = named

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await reader.readexactly(int.from_bytes(await reader.readexactly(4)))
                answer = request[4:8] + self._answer(int.from_bytes(request[:2]))
                writer.write(Int32.encode(len(answer)) + answer)
        except asyncio.IncompleteReadError:
            writer.close()

    def _answer(self, key: int) -> bytes:
        if key == ApiVersionResponse_v0.API_KEY:
            versions = [(ApiVersionResponse_v0.API_KEY, 0, 0), (MetadataResponse_v1.API_KEY, 1, 1)]
            return bytes(Int16.encode(0)) + b"".join(
                [Int32.encode(len(versions)), *(Int16.encode(number) for version in versions for number in version)]
            )
        brokers = [(1, "127.0.0.1", self._named, None)]
        return bytes(MetadataResponse_v1.SCHEMA.encode((brokers, 1, [])))


@pytest.fixture
def closed_port() -> int:
    return free_port()


@pytest.fixture
async def misleading(closed_port: int) -> AsyncIterator[str]:
    server = await asyncio.start_server(Misleading(closed_port).serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_an_address_that_a_broker_gives_itself_and_that_does_not_work(misleading: str, closed_port: int) -> None:
    for found in (await of_source(misleading, "orders"), await of_sink(misleading, "orders")):
        assert set(found) == {"brokers"} and found["brokers"].level == "problem"
        assert f"{misleading} answers, but names a broker 127.0.0.1:{closed_port}" in found["brokers"].found
        assert "advertised.listeners" in found["brokers"].remedy


async def test_brokers_that_can_t_be_reached_are_an_error(closed_port: int) -> None:
    with pytest.raises(BrokersUnreachable, match="check the address"):
        await of_source(f"127.0.0.1:{closed_port}", "orders")
