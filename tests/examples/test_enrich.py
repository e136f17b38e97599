"""`python -m examples.enrich`: every order comes out once, though the service fails, stalls, and the job is killed."""

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from examples.enrich import Enriched, made_up, on_files, plain
from streamactors.testing import KafkaBroker
from tests.connectors.kafka.driving import committed_values, eventually
from tests.kafka_topics import Topics
from tests.programs import PATIENCE, ROOT, Program

pytestmark = pytest.mark.slow


def test_in_files_with_a_service_that_fails(tmp_path: Path) -> None:
    with Program("-m", "examples.enrich", "--count", "600", cwd=tmp_path) as program:
        assert program.end() == 0, program.stdout + program.stderr
    wanted, unknown = plain(list(made_up(600)))
    assert unknown and f"{len(wanted)} enriched, {len(unknown)} dead letters: right" in program.stdout
    assert "UnknownCustomer" in program.stdout and "calls for 600 orders" in program.stdout


def test_the_flow_can_be_looked_at() -> None:
    async def asks_nothing(order: Any) -> Any:
        return order

    unasked: Any = asks_nothing
    assert "look-up" in on_files(unasked, Path("var")).explain()


class Killed:
    """The flow on a real broker: killed once its first results are committed, started again, run to the end."""

    COUNT = 1_500

    def __init__(self, kafka: KafkaBroker, folder: Path, url: str, topics: tuple[str, str, str]) -> None:
        self.brokers = kafka.bootstrap
        self.orders, self.enriched, self.dead = topics
        named = ("--orders", self.orders, "--enriched", self.enriched, "--dead", self.dead)
        self.command = ("-m", "examples.enrich", "--kafka", self.brokers, "--bounded", "--url", url, *named)
        self.folder = folder

    async def write(self) -> None:
        async with AIOKafkaProducer(bootstrap_servers=self.brokers, linger_ms=5) as producer:
            sent = [
                await producer.send(self.orders, msgspec.json.encode(each), partition=each.id % 2)
                for each in made_up(self.COUNT)
            ]
            await producer.flush()
            await asyncio.gather(*sent)

    async def kill(self) -> int:
        """How many results were committed by then."""
        looking = AIOKafkaConsumer(
            self.enriched,
            bootstrap_servers=self.brokers,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
        )
        with Program(*self.command, cwd=self.folder) as program:
            async with asyncio.timeout(PATIENCE), looking:
                await looking.getone()
            program.signal(signal.SIGKILL)
            assert await asyncio.to_thread(program.end) == -signal.SIGKILL, program.stderr
        return len(await committed_values(self.brokers, self.enriched))

    async def finish(self) -> None:
        with Program(*self.command, cwd=self.folder) as program:
            assert await asyncio.to_thread(program.end) == 0, program.stderr

    async def results(self) -> list[Enriched]:
        lines = await committed_values(self.brokers, self.enriched)
        return sorted((msgspec.json.decode(line or b"", type=Enriched) for line in lines), key=lambda each: each.id)

    async def dead_letters(self) -> list[int]:
        """Of which orders."""
        letters = [json.loads(line or b"") for line in await committed_values(self.brokers, self.dead)]
        return sorted(letter["value"]["id"] for letter in letters)


async def test_on_kafka_killed_in_the_middle(kafka: KafkaBroker, topics: Topics, tmp_path: Path) -> None:
    named = (await topics.new("orders", partitions=2), await topics.new("enriched"), await topics.new("dead"))
    with Program("-m", "examples.enrich", "--serve", "0", cwd=ROOT) as service:
        await asyncio.to_thread(service.wait_for, lambda: service.stdout, "listening")
        url = service.stdout.strip()
        job = Killed(kafka, tmp_path, url, named)
        await job.write()
        assert 0 < await job.kill() < job.COUNT
        await job.finish()
        wanted, unknown = plain(list(made_up(job.COUNT)))
        await eventually(job.results, wanted)
        await eventually(job.dead_letters, unknown)
        async with httpx.AsyncClient(trust_env=False) as client:
            seen = (await client.get(f"{url}/seen")).json()
    # Some calls were made again, after a failure or after the crash: under the key that they had.
    assert seen["keys"] == job.COUNT < seen["calls"]
