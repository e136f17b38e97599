"""Brokers that can't be reached or will not let us in; and no secret is ever told."""

import asyncio
import logging
import pickle
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from connectors.kafka import AccessDenied, BrokersUnreachable, KafkaSink, KafkaSource, UnknownTopic
from streamactors.errors import InvalidConfig, StreamactorsError
from streamactors.testing import KafkaBroker
from tests.connectors.kafka.driving import NUMBERS, opened, read_all, writing
from tests.connectors.kafka.secured_broker import PASSWORD, USER, SecuredBroker, credentials
from tests.kafka_topics import Topics
from tests.ports import free_port


async def open_source(brokers: str, topic: str, **client: Any) -> StreamactorsError:
    with pytest.raises(StreamactorsError) as caught:
        async with opened(KafkaSource(brokers, topic, value=NUMBERS, client=client)):
            pass
    return caught.value


async def open_sink(brokers: str, topic: str, **client: Any) -> StreamactorsError:
    with pytest.raises(StreamactorsError) as caught:
        async with writing(KafkaSink(brokers, topic, value=NUMBERS, client=client)):
            pass
    return caught.value


@pytest.fixture
def closed_port() -> int:
    return free_port()


@pytest.fixture
async def silent_port() -> AsyncIterator[int]:
    """Takes connections and says nothing."""
    writers = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
    for writer in writers:
        writer.close()


@pytest.mark.parametrize("open_one", [open_source, open_sink])
async def test_an_unreachable_broker(open_one: Any, closed_port: int) -> None:
    error = await open_one(f"127.0.0.1:{closed_port}", "orders")
    assert isinstance(error, BrokersUnreachable)
    assert f"127.0.0.1:{closed_port}" in str(error)
    assert "Connect call failed" in str(error)


@pytest.mark.parametrize("open_one", [open_source, open_sink])
async def test_a_broker_that_does_not_answer(open_one: Any, silent_port: int) -> None:
    error = await open_one(f"127.0.0.1:{silent_port}", "orders", request_timeout_ms=200)
    assert isinstance(error, BrokersUnreachable)
    assert "no answer in time" in str(error)


@pytest.mark.parametrize("open_one", [open_source, open_sink])
async def test_an_unknown_topic(open_one: Any, kafka: KafkaBroker, topics: Topics) -> None:
    missing = topics.name("missing")
    error = await open_one(kafka.bootstrap, missing)
    assert isinstance(error, UnknownTopic)
    assert not error.retryable
    assert missing in str(error)
    assert kafka.bootstrap in str(error)
    assert "create it" in str(error)


async def test_one_unknown_topic_among_several(kafka: KafkaBroker, topics: Topics) -> None:
    there, missing = await topics.new(), topics.name("missing")
    with pytest.raises(UnknownTopic, match=missing):
        await read_all(KafkaSource(kafka.bootstrap, [there, missing], value=NUMBERS))


async def test_client_options_that_aiokafka_refuses(kafka: KafkaBroker) -> None:
    error = await open_source(kafka.bootstrap, "orders", security_protocol="SASL_SSL", sasl_plain_password="hush")
    assert isinstance(error, InvalidConfig)
    assert "ssl_context" in str(error)
    assert "hush" not in str(error)


@pytest.fixture(scope="module")
def secured() -> Iterator[SecuredBroker]:
    """With a topic `orders`."""
    broker = SecuredBroker()
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(broker.start())
        runner.run(create_orders(broker))
    yield broker
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(broker.close())


async def create_orders(broker: SecuredBroker) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap, **credentials())
    await admin.start()
    try:
        await admin.create_topics([NewTopic("orders", 1, 1)])
    finally:
        await admin.close()


@pytest.mark.parametrize("open_one", [open_source, open_sink])
async def test_a_wrong_password(open_one: Any, secured: SecuredBroker) -> None:
    error = await open_one(secured.bootstrap, "orders", **credentials("wrong-horse"))
    assert isinstance(error, AccessDenied)
    assert not error.retryable
    assert "refused to authenticate" in str(error)
    assert "wrong-horse" not in str(error)


async def test_no_credentials_where_some_are_wanted(secured: SecuredBroker) -> None:
    error = await open_source(secured.bootstrap, "orders", request_timeout_ms=2_000)
    assert isinstance(error, BrokersUnreachable)
    assert "security_protocol in client=" in str(error)


@pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once"])
async def test_credentials_let_in_and_are_never_told(
    secured: SecuredBroker, caplog: pytest.LogCaptureFixture, delivery: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    sink = KafkaSink(secured.bootstrap, "orders", value=NUMBERS, delivery=delivery, client=credentials())
    async with writing(sink) as writer:
        await writer.write([1, 2], None)
        await writer.prepare(1)
        await writer.commit(1)
    source = KafkaSource(
        secured.bootstrap, "orders", value=NUMBERS, bounded=True, group="monitor", client=credentials()
    )
    async with opened(source) as (reader, positions):
        await reader.checkpoint_completed(1, positions)
    assert caplog.records
    told = repr([sink, source, sink.describe(), source.describe(), vars(sink), vars(source)])
    assert PASSWORD not in told + caplog.text
    assert USER not in told


def test_settings_go_to_other_processes_with_their_options() -> None:
    """A deployment over several machines ships them."""
    sink = pickle.loads(pickle.dumps(KafkaSink("localhost:1", "orders", value=NUMBERS, client=credentials())))
    assert sink.client.connection()["sasl_plain_password"] == PASSWORD
