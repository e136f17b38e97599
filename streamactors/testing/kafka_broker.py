"""A real Apache Kafka broker for tests and demos: one KRaft node on loopback, without Docker.

    async with KafkaBroker() as kafka:
        await kafka.create_topic("orders", partitions=4)
        source = KafkaSource(kafka.bootstrap, "orders", value=sa.Json(Order))

Needs Java 17 and, the first time, Maven. With KAFKA_BOOTSTRAP set that broker is used, and nothing is started.
"""

import asyncio
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from streamactors.errors import MissingExtra, StreamactorsError
from streamactors.testing import kafka_jars, process_guard

START_SECONDS = 90.0
STOP_SECONDS = 30.0
TOPIC_SECONDS = 30.0
INVALID_REPLICATION_FACTOR = 38
POLL_SECONDS = 0.05
# Two searches for a free port may find the same one.
START_ATTEMPTS = 3
# Below what systems give to outgoing connections: else one of them may take the port while the broker is down.
PORTS = range(20_000, 32_000)
CLUSTER_ID = "c3RyZWFtYWN0b3JzLXRlc3Q"
STARTED = "Kafka Server started"
PORT_TAKEN = "Address already in use"

SERVER_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={folder}/data
# one node: what is replicated three times elsewhere is there once
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
# what tests wait for, soon: a killed broker's successor has to outwait the session
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
group.initial.rebalance.delay.ms=0
transaction.abort.timed.out.transaction.cleanup.interval.ms=500
# an unknown topic is an error, and records keep although their timestamps are years old
auto.create.topics.enable=false
log.retention.ms=-1
log.cleaner.dedupe.buffer.size=4194304
"""

LOG_PROPERTIES = """\
log4j.rootLogger=INFO, stdout
log4j.appender.stdout=org.apache.log4j.ConsoleAppender
log4j.appender.stdout.layout=org.apache.log4j.PatternLayout
log4j.appender.stdout.layout.ConversionPattern=%d{ISO8601} %p %c: %m%n
"""


class KafkaBroker:
    """`bootstrap` is where clients connect, known after `start`.

    `stop`, `kill` and `restart` are for tests of outages; data and ports stay the same. `close`, or leaving the
    `async with` block, ends the broker and removes its data. It ends with this process too, however that ends.
    `own=True` starts a broker even where KAFKA_BOOTSTRAP names one: nobody may stop a broker that is not theirs.
    """

    def __init__(self, *, own: bool = False) -> None:
        self._external = None if own else os.environ.get("KAFKA_BOOTSTRAP") or None
        self._folder: Path | None = None
        self._ports: tuple[int, int] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def bootstrap(self) -> str:
        """`host:port`; StreamactorsError before `start`."""
        if self._external:
            return self._external
        if self._ports is None:
            raise StreamactorsError("the Kafka broker has no address before start(); use `async with KafkaBroker()`")
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def log(self) -> str:
        """What the broker has logged so far, over its restarts; empty for one that was not started here."""
        return self._log_file.read_text(errors="replace") if self._folder else ""

    async def start(self) -> None:
        """Returns when the broker answers; raises StreamactorsError, with the end of its log, when it does not."""
        if self._external or self._folder is not None:
            return
        java, jars = await asyncio.to_thread(lambda: (kafka_jars.java(), kafka_jars.jars()))
        for attempt in range(1, START_ATTEMPTS + 1):
            self._prepare()
            try:
                await self._launch(java, jars, prepared=False)
                return
            except StreamactorsError:
                port_taken = PORT_TAKEN in self.log
                await self.close()
                if attempt == START_ATTEMPTS or not port_taken:
                    raise
            except BaseException:
                await self.close()
                raise

    async def stop(self) -> None:
        """A clean shutdown; the data stay for `restart`."""
        await self._end(process_guard.TERMINATE)

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone; the data stay for `restart`."""
        await self._end(process_guard.KILL)

    async def restart(self) -> None:
        """Up again at the same address with the same data, after `stop` or `kill`; returns when it answers."""
        self._refuse_external()
        if self._folder is None:
            raise StreamactorsError("the Kafka broker was never started, or is closed: use start()")
        if self._process is not None:
            await self.stop()
        java, jars = await asyncio.to_thread(lambda: (kafka_jars.java(), kafka_jars.jars()))
        await self._launch(java, jars, prepared=True)

    async def close(self) -> None:
        """End the broker and remove its data; does nothing to one that was not started here."""
        if self._folder is None:
            return
        folder, self._folder = self._folder, None
        process, self._process, self._ports = self._process, None, None
        try:
            if process is not None:
                await order(process, process_guard.KILL)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    async def create_topic(self, name: str, *, partitions: int = 1, config: Mapping[str, str] | None = None) -> None:
        """Returns when every partition can be written to; raises StreamactorsError if the broker refuses."""
        await self.create_topics([name], partitions=partitions, config=config)

    async def create_topics(
        self, names: list[str], *, partitions: int = 1, config: Mapping[str, str] | None = None
    ) -> None:
        """All of them in one request; see `create_topic`."""
        try:
            from aiokafka.admin import AIOKafkaAdminClient, NewTopic
            from aiokafka.errors import for_code
        except ImportError as error:
            raise MissingExtra("KafkaBroker.create_topic needs aiokafka: pip install 'streamactors[kafka]'") from error
        client = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            await client.start()
            new = {name: NewTopic(name, partitions, 1, topic_configs=dict(config or {})) for name in names}
            until = time.monotonic() + TOPIC_SECONDS
            while new:
                answer = await client.create_topics(list(new.values()))
                refused = {name: (code, message) for name, code, message in answer.topic_errors if code}
                for name, (code, message) in refused.items():
                    if not out_of_service(code, message) or time.monotonic() > until:
                        refusal = for_code(code).__name__
                        raise StreamactorsError(f"Kafka did not create topic {name!r}: {refusal}: {message}")
                new = {name: new[name] for name in refused}
                await asyncio.sleep(POLL_SECONDS if new else 0)
            await self._wait_for_leaders(client, names, partitions)
        finally:
            await client.close()

    async def _wait_for_leaders(self, client: Any, names: list[str], partitions: int) -> None:
        async with asyncio.timeout(TOPIC_SECONDS):
            while not all(led(topic, partitions) for topic in await client.describe_topics(names)):  # noqa: ASYNC110
                await asyncio.sleep(POLL_SECONDS)

    @property
    def _log_file(self) -> Path:
        assert self._folder is not None
        return self._folder / "broker.log"

    def _refuse_external(self) -> None:
        if self._external:
            raise StreamactorsError(
                f"the Kafka broker at {self._external} (KAFKA_BOOTSTRAP) was not started here and is left alone; "
                "a test of outages takes KafkaBroker(own=True)"
            )

    def _prepare(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="streamactors-kafka-"))
        self._ports = free_ports()
        port, controller = self._ports
        properties = SERVER_PROPERTIES.format(port=port, controller=controller, folder=self._folder)
        (self._folder / "server.properties").write_text(properties)
        (self._folder / "log4j.properties").write_text(LOG_PROPERTIES)

    async def _launch(self, java: str, jars: Path, *, prepared: bool) -> None:
        """`prepared`: the data folder has been formatted by an earlier start."""
        assert self._folder is not None
        properties = str(self._folder / "server.properties")
        common = ["-cp", f"{jars}/*", f"-Dlog4j.configuration=file:{self._folder}/log4j.properties"]
        tool = [java, "-XX:TieredStopAtLevel=1", *common, "kafka.tools.StorageTool"]
        format_data = [*tool, "format", "-t", CLUSTER_ID, "-c", properties, "--"]
        serve = [java, "-Xmx512m", *common, "kafka.Kafka", properties]
        command = serve if prepared else [*format_data, *serve]
        with self._log_file.open("ab") as log:
            seen = log.tell()
            self._process = guarded(command, self._folder, log.fileno())
        await self._wait_until_up(self._process, seen)

    async def _wait_until_up(self, process: subprocess.Popen[bytes], seen: int) -> None:
        """`seen` is the size of the log, in bytes, before this start."""
        try:
            async with asyncio.timeout(START_SECONDS):
                while STARTED.encode() not in self._log_file.read_bytes()[seen:]:
                    if process.poll() is not None:
                        raise StreamactorsError(f"the Kafka broker ended while starting; {self._tail()}")
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError as error:
            await self.kill()
            raise StreamactorsError(f"the Kafka broker was not up in {START_SECONDS:.0f} s; {self._tail()}") from error

    def _tail(self) -> str:
        return "the end of its log:\n" + "\n".join(self.log.splitlines()[-25:])

    async def _end(self, what: bytes) -> None:
        self._refuse_external()
        process, self._process = self._process, None
        if process is not None:
            await order(process, what)


def guarded(command: list[str], folder: Path, log: int) -> subprocess.Popen[bytes]:
    """Runs under a guard that ends it with this process; in a session of its own, so that Ctrl-C is ours alone."""
    guard = [sys.executable, "-I", "-S", process_guard.__file__, str(folder)]
    return subprocess.Popen(
        [*guard, *command], stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )


async def order(process: subprocess.Popen[bytes], what: bytes) -> None:
    """Tell the guard to end its command; SIGKILL to all of them if that takes too long, or if this is cancelled."""
    assert process.stdin is not None
    try:
        os.write(process.stdin.fileno(), what)
    except BrokenPipeError:
        pass  # it has ended by itself
    try:
        async with asyncio.timeout(STOP_SECONDS):
            while process.poll() is None:  # noqa: ASYNC110  # Popen, unlike asyncio's, is bound to no loop
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        pass  # the group is killed below
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdin.close()


def out_of_service(code: int, message: str | None) -> bool:
    """Whether a broker that has stood still, or has just begun, is to be heard of by its controller first."""
    return code == INVALID_REPLICATION_FACTOR and "fenced" in (message or "")


def led(topic: Mapping[str, Any], partitions: int) -> bool:
    """Whether each partition of a topic's metadata has a leader."""
    described = topic["partitions"]
    return len(described) == partitions and all(p["leader"] >= 0 and not p["error_code"] for p in described)


def free_ports() -> tuple[int, int]:
    """For the broker and for its controller."""
    first, second = random.SystemRandom().sample(PORTS, 2)
    while not is_free(first) or not is_free(second):
        first, second = random.SystemRandom().sample(PORTS, 2)
    return first, second


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
