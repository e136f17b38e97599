"""`python -m examples.fraud_pattern`: alerts from transactions in files, equal to those of a plain loop."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from aiokafka import AIOKafkaProducer

import streamactors as sa
from examples.fraud_pattern import Alert, Transaction, config, made_up, on_files, on_kafka, plain_alerts
from streamactors.testing import KafkaBroker
from tests.connectors.kafka.driving import PATIENCE, committed_values, see_nothing_open
from tests.kafka_topics import Topics
from tests.programs import Program


async def test_the_alerts_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    found = await on_files(tmp_path, 10_000)
    assert sorted(found, key=_order) == sorted(plain_alerts(list(made_up(10_000))), key=_order)
    assert len(found) > 20 and {len(alert.tried) for alert in found} >= {2, 3}


async def test_run_again_it_gives_no_alert_twice(tmp_path: Path) -> None:
    assert await on_files(tmp_path, 2_000) == await on_files(tmp_path, 2_000)


def test_on_kafka_it_is_the_same_flow() -> None:
    assert "fraud" in on_kafka("localhost:9092", "transactions", "alerts").explain()


@pytest.mark.slow
async def test_on_kafka_every_alert_comes_out_once(kafka: KafkaBroker, topics: Topics, tmp_path: Path) -> None:
    """Also those whose charges lie on both sides of a crash."""
    topic, alerts = await topics.new(partitions=3), await topics.new()
    everything = list(made_up(4_000))
    await put(kafka, topic, everything[:2_000])
    flow = on_kafka(kafka.bootstrap, topic, alerts)
    async with asyncio.timeout(PATIENCE), sa.start(flow, config(tmp_path), on_exit="cancel") as job:
        while not await committed_values(kafka.bootstrap, alerts):
            await job.checkpoint()
    await put(kafka, topic, everything[2_000:])
    async with asyncio.timeout(PATIENCE):
        await sa.run(on_kafka(kafka.bootstrap, topic, alerts, bounded=True), config(tmp_path))
    await see_nothing_open(kafka.bootstrap, alerts)
    found = [msgspec.json.decode(value or b"", type=Alert) for value in await committed_values(kafka.bootstrap, alerts)]
    assert sorted(found, key=_order) == sorted(plain_alerts(everything), key=_order)


async def put(kafka: KafkaBroker, topic: str, transactions: list[Transaction]) -> None:
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap) as producer:
        for each in transactions:
            await producer.send(topic, msgspec.json.encode(each), key=each.card.encode())
        await producer.flush()


@pytest.mark.slow
def test_the_program_says_that_the_alerts_are_right(tmp_path: Path) -> None:
    with Program("-m", "examples.fraud_pattern", "--count", "20000", cwd=tmp_path) as program:
        assert program.end() == 0, program.stderr
    assert "alerts; a plain loop gives the same" in program.stdout


def _order(alert: Alert) -> tuple[int, str]:
    return alert.charged, alert.card
