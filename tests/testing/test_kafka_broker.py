"""The broker that the other Kafka tests stand on is real, survives outages, and goes away."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from streamactors.errors import StreamactorsError
from streamactors.testing import KafkaBroker, kafka_jars
from tests.kafka_topics import Topics

HERE = Path(__file__).resolve().parents[2]


async def produce(broker: KafkaBroker, topic: str, *values: bytes) -> None:
    async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap) as producer:
        for value in values:
            await producer.send_and_wait(topic, value)


async def consume(broker: KafkaBroker, topic: str, count: int) -> list[bytes | None]:
    """The first `count` committed records."""
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=broker.bootstrap,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
    async with asyncio.timeout(60), consumer:
        return [(await consumer.getone()).value for _ in range(count)]


async def test_a_record_comes_back(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    await produce(kafka, topic, b"hello")
    assert await consume(kafka, topic, 1) == [b"hello"]


async def test_only_committed_transactions_are_read(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id=topics.name()) as producer:
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"aborted")
        await producer.abort_transaction()
        async with producer.transaction():
            await producer.send_and_wait(topic, b"committed")
    assert await consume(kafka, topic, 1) == [b"committed"]


async def test_topics_have_the_partitions_asked_for(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new(partitions=5)
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap) as producer:
        assert await producer.partitions_for(topic) == set(range(5))


async def test_a_refused_topic_says_why(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    with pytest.raises(StreamactorsError, match=rf"did not create topic '{topic}': TopicAlreadyExistsError"):
        await kafka.create_topic(topic)


async def test_a_broker_that_is_out_of_service_for_a_while_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, kafka: KafkaBroker
) -> None:
    """As after it has stood still: its controller has not heard of it."""
    client = Refusing([("orders", 38, "All brokers are currently fenced.")], [])
    monkeypatch.setattr("aiokafka.admin.AIOKafkaAdminClient", lambda **options: client)
    await kafka.create_topics(["payments", "orders"])
    assert client.asked == [["payments", "orders"], ["orders"]]
    client = Refusing([("orders", 38, "Replication factor must be larger than 0.")])
    with pytest.raises(StreamactorsError, match=r"'orders': InvalidReplicationFactorError: Replication factor must"):
        await kafka.create_topic("orders")


class Refusing:
    """In the place of aiokafka's client. What is refused is given for each call."""

    def __init__(self, *refused: list[tuple[str, int, str]]) -> None:
        self.asked: list[list[str]] = []
        self._refused = list(refused)

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def create_topics(self, topics: list[Any]) -> Any:
        self.asked.append([topic.name for topic in topics])
        return SimpleNamespace(topic_errors=self._refused.pop(0))

    async def describe_topics(self, names: list[str]) -> list[Any]:
        return [{"partitions": [{"leader": 1, "error_code": 0}]} for _ in names]


@pytest.mark.kafka
@pytest.mark.kill
async def test_data_and_address_survive_a_killed_and_a_stopped_broker() -> None:
    async with KafkaBroker(own=True) as broker:
        address = broker.bootstrap
        await broker.create_topic("orders")
        await produce(broker, "orders", b"1")
        await broker.kill()
        assert not answers(address)
        await broker.restart()
        await produce(broker, "orders", b"2")
        await broker.stop()
        assert not answers(address)
        await broker.restart()
        assert broker.bootstrap == address
        assert await consume(broker, "orders", 2) == [b"1", b"2"]
    assert not answers(address)


def answers(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


ORPHAN = """
import asyncio
from streamactors.testing import KafkaBroker

async def main():
    async with KafkaBroker(own=True) as broker:
        print(broker.bootstrap, broker._folder, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.kafka
@pytest.mark.kill
async def test_broker_and_data_go_away_with_a_killed_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True, cwd=HERE) as parent:
        assert parent.stdout is not None
        address, folder = (await asyncio.to_thread(parent.stdout.readline)).split()
        assert answers(address)
        assert Path(folder, "data").is_dir()
        parent.send_signal(signal.SIGKILL)
    async with asyncio.timeout(60):
        while answers(address) or Path(folder).exists():
            await asyncio.sleep(0.02)


async def test_a_named_broker_is_used_and_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP", "kafka.example:9092")
    monkeypatch.setenv("PATH", "/nowhere")
    async with KafkaBroker() as broker:
        assert broker.bootstrap == "kafka.example:9092"
        for outage in (broker.stop, broker.kill, broker.restart):
            with pytest.raises(StreamactorsError, match=r"kafka\.example:9092 .* was not started here"):
                await outage()


async def test_missing_java_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(StreamactorsError, match="apt install openjdk-17-jre-headless maven"):
        await KafkaBroker(own=True).start()


def test_missing_maven_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(StreamactorsError, match="mvn is not installed.*apt install openjdk-17-jre-headless maven"):
        kafka_jars.jars()
    assert not list(tmp_path.glob("streamactors/kafka-*/"))


@pytest.mark.parametrize(
    ("banner", "version"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('java version "1.8.0_402"', 8),
        ('openjdk version "21" 2023-09-19', 21),
        ("command not understood", None),
    ],
)
def test_java_version(banner: str, version: int | None) -> None:
    assert kafka_jars.java_major(banner) == version


def program(folder: Path, name: str, script: str) -> None:
    """An executable on PATH, which keeps the system's own commands."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


FAKE_MAVEN = r"""
for argument; do case $argument in -DoutputDirectory=*) libs=${argument#*=};; esac; done
echo called >> "$CALLS"
mkdir "$libs"
touch "$libs/kafka.jar"
"""


def test_two_sessions_download_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path, "mvn", FAKE_MAVEN)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "CALLS": str(tmp_path / "calls"),
    }
    script = "from streamactors.testing import kafka_jars; print(kafka_jars.jars())"
    command = [sys.executable, "-c", script]
    sessions = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=HERE) for _ in range(3)
    ]
    folders = {session.communicate(timeout=300)[0].strip() for session in sessions}
    assert folders == {str(tmp_path / "cache/streamactors/kafka-3.9.1")}
    assert (tmp_path / "calls").read_text() == "called\n"


def test_a_download_that_broke_off_leaves_no_jars(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path, "mvn", FAKE_MAVEN + "echo 'no route to host'; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    with pytest.raises(StreamactorsError, match="could not fetch .*\n.*no route to host"):
        kafka_jars.jars()
    assert [path.name for path in (tmp_path / "cache/streamactors").iterdir()] == ["kafka-3.9.1.lock"]


async def test_a_broker_that_does_not_start_shows_its_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real_java = shutil.which("java")
    program(tmp_path, "java", f'case "$*" in *-version*) exec {real_java} "$@";; esac; echo out of luck; exit 3')
    (tmp_path / "streamactors" / "kafka-3.9.1").mkdir(parents=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with pytest.raises(StreamactorsError, match="ended while starting; the end of its log:\nout of luck"):
        await KafkaBroker(own=True).start()
    assert not list(tmp_path.glob("streamactors-kafka-*"))
