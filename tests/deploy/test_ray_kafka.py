"""From Kafka to Kafka on a real Ray of several nodes and a real broker: workers, the coordinator, the driver and nodes
killed at random moments, workers stopped or cut off from all others. What a read_committed consumer sees equals a plain
computation: nothing lost, nothing doubled, per customer in order."""

import json
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer

from streamactors.testing import KafkaBroker
from tests.deploy.ray_cluster import COORDINATOR, HERE, WORKER, Nodes, killed, processes_under, signalled, until
from tests.deploy.ray_cuts import file_of
from tests.kafka_topics import Topics
from tests.programs import PATIENCE, ROOT, Program
from tests.recovery.jobs import Order, Settings
from tests.recovery.orders import by_customer, check, random_orders
from tests.recovery.processes import new_seed
from tests.recovery.topics import produce_logs, totals_of

pytestmark = [pytest.mark.ray, pytest.mark.kill, pytest.mark.slow]

Victim = Literal["worker", "stalled", "cut off", "coordinator", "driver", "node", "raylet"]
"""`stalled`: a worker that is stopped, and goes on later; `cut off`: one that runs, while its connections are cut;
`node`: all of its processes; `raylet`: what joins it to the cluster, while its workers and coordinators live on."""
TITLES: Mapping[Victim, str] = {"worker": WORKER, "coordinator": COORDINATOR}
EVERYWHERE: Sequence[Victim] = ("worker", "coordinator", "driver")
"""Killed in every case, in any order; of the other kinds, one case has one more."""
ORDERS = 250
"""Before each kill, and once more at the end."""
PARTITIONS = 4
AWAY = (0.5, 16.0)
"""Seconds: what nobody notices, up to what another one has taken its place in."""
PACE = 200.0
"""So that the half of them is still to come when somebody dies."""
ALIGNMENTS: Mapping[str, dict[str, Any]] = {
    "aligned": {},
    "timed": {"alignment_timeout_ms": 20},
    "unaligned": {"alignment": "unaligned"},
}
CASES = list(product(ALIGNMENTS, ("heap", "rocksdb")))
SEED = new_seed()


def dealt() -> list[list[Victim]]:
    """The victims of each case. Of nodes, as many die as leave one."""
    rng = random.Random(SEED)
    hands = [list(EVERYWHERE) for _ in CASES]
    others = [kind for kind in get_args(Victim) if kind not in EVERYWHERE]
    for hand, other in zip(rng.sample(hands, len(others)), others, strict=True):
        hand.append(other)
    for hand in hands:
        rng.shuffle(hand)
    return hands


# The first one: the cluster is smaller afterwards.
def test_the_example(nodes: Nodes, kafka: KafkaBroker) -> None:
    """Four workers, one of them killed; and what Ray's dashboard calls them all."""
    command = ("-m", "examples.ray_totals", "--orders", "20000", "--address", nodes.address)
    with Program(str(HERE / "ray_actors.py"), nodes.address, "5", cwd=HERE, environ=nodes.environ) as looking:
        until(lambda: "connected\n" in looking.stdout, "the cluster is looked at", looking)
        with Program(*command, cwd=ROOT, environ={**nodes.environ, "KAFKA_BOOTSTRAP": kafka.bootstrap}) as example:
            assert example.end() == 0, example.stdout + example.stderr
        assert looking.end() == 0, looking.stderr
    workers = [[f"streamactors/kafka-totals/worker-{number}", "StreamactorsWorker"] for number in range(4)]
    coordinator = ["streamactors/kafka-totals/coordinator", "StreamactorsCoordinator"]
    assert json.loads(looking.stdout.splitlines()[-1]) == [coordinator, *workers]
    assert "streamactors/kafka-totals/worker-1 is no more" in example.stdout
    assert "Another worker has taken its place" in example.stdout
    assert example.stdout.splitlines()[-1] == "20,000 expected · 20,000 found · 0 lost · 0 doubled"


# ------------------------------------------------------------------------------------------------------------ the story
class Story:
    """One job, whose driver may be another process after a kill."""

    def __init__(self, nodes: Nodes, settings: Settings, committed: AIOKafkaConsumer, rng: random.Random) -> None:
        self.nodes = nodes
        self.settings = settings
        self.rng = rng
        self.seen = 0
        """Totals that are committed."""
        self.chapters: list[str] = []
        self.driver = self._driver()
        self._committed = committed

    def _driver(self) -> Program:
        widths = {name: self.rng.randint(2, 3) for name in ("parallelism", "source_parallelism")}
        given = msgspec.structs.replace(self.settings, **widths)
        self.chapters.append(f"a driver, {widths}")
        arguments = (self.nodes.address, msgspec.json.encode(given).decode())
        return Program(str(HERE / "ray_kafka_job.py"), *arguments, cwd=HERE, environ=self.nodes.environ)

    async def until(self, condition: Callable[[], object], what: str) -> None:
        give_up = time.monotonic() + PATIENCE
        while not condition():
            assert self.driver.alive, f"the driver ended before {what}"
            assert time.monotonic() < give_up, f"still not {what}: {self.seen} totals are committed"
            for records in (await self._committed.getmany(timeout_ms=50)).values():
                self.seen += len(records)

    async def kill(self, victim: Victim) -> None:
        """Some of what there was to do is done, and the rest is under way."""
        before = self.seen
        await self.until(lambda: self.seen > before, "more is committed")
        delay = self.rng.choice((0.0, self.rng.uniform(0.0, 0.4)))
        await self._wait(delay)
        self.chapters.append(f"{victim}: {delay:.3f} s after {self.seen} totals were committed")
        if victim == "driver":
            self.driver.signal(signal.SIGKILL)
            assert self.driver.end() == -signal.SIGKILL
            self.driver = self._driver()
        elif victim in ("stalled", "cut off"):
            stay_away = self._stall if victim == "stalled" else self._cut_off
            await self.until(lambda: self.nodes.pids(WORKER), "there is a worker")
            await stay_away(self.rng.choice(self.nodes.pids(WORKER) or [0]), self.rng.uniform(*AWAY))
        else:
            await self.until(lambda: self._killed(victim), f"there is a {victim} to kill")

    async def _stall(self, worker: int, seconds: float) -> None:
        if not worker or not signalled(worker, signal.SIGSTOP):
            return  # it has just ended by itself
        try:
            await self._wait(seconds)
        finally:
            signalled(worker, signal.SIGCONT)
        self.chapters.append(f"it went on after {seconds:.3f} s")

    async def _cut_off(self, worker: int, seconds: float) -> None:
        file = file_of(self.nodes.environ["RAY_TMPDIR"], worker)
        file.touch()
        try:
            await self._wait(seconds)
            cut = file.read_text().split()
        finally:
            file.unlink()
        assert cut or worker not in self.nodes.pids(WORKER), "it was not cut off"
        self.chapters.append(f"of {worker}, {len(cut)} connections to {len(set(cut))} were cut in {seconds:.3f} s")

    async def _wait(self, seconds: float) -> None:
        going_on = time.monotonic() + seconds
        await self.until(lambda: time.monotonic() >= going_on, "a random moment")

    def _killed(self, victim: Victim) -> bool:
        """False where there is none at the moment."""
        found = self.nodes.pids(TITLES[victim]) if victim in TITLES else self._raylets_in_use()
        if not found:
            return False
        chosen = self.rng.choice(found)
        below = processes_under(chosen) if victim == "node" else {}
        done = killed(chosen)
        for pid in below:
            killed(pid)
        return done

    def stop(self) -> None:
        """In peace, though the coordinator may die meanwhile."""
        self.driver.signal(signal.SIGTERM)
        if self.rng.random() < 0.5:
            time.sleep(self.rng.uniform(0.0, 0.2))  # a random moment is what is wanted here
            self.chapters.append(f"coordinator killed while it stops: {self._killed('coordinator')}")
        assert self.driver.end() == 0

    def _raylets_in_use(self) -> list[int]:
        titles = tuple(TITLES.values())
        return [
            raylet
            for raylet in self.nodes.raylets
            if any(command.startswith(titles) for command in processes_under(raylet).values())
        ]

    def __str__(self) -> str:
        told = f"{self.driver.stdout}\n{self.driver.stderr}"
        return "\n".join([f"KILL_SEED={SEED}: {self.settings}", *self.chapters, told])


@asynccontextmanager
async def told(nodes: Nodes, settings: Settings, rng: random.Random) -> AsyncIterator[Story]:
    consumer = AIOKafkaConsumer(
        settings.output,
        bootstrap_servers=settings.brokers,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    async with consumer:
        story = Story(nodes, settings, consumer, rng)
        try:
            yield story
        except AssertionError as error:
            error.add_note(str(story))
            raise
        finally:
            with story.driver:  # ends it
                pass


def settings_of(kafka: KafkaBroker, folder: Path, rng: random.Random, **given: Any) -> Settings:
    return Settings(
        storage=str(folder / "checkpoints"),
        local=str(folder / "local"),
        brokers=kafka.bootstrap,
        endless=True,
        pace=PACE,
        brake=rng.choice(("orders", "totals")),
        mailbox_capacity=rng.choice((64, 4096)),
        called=rng.random() < 0.5,
        exchanged=rng.random() < 0.5,
        **given,
    )


@pytest.mark.parametrize("case", range(len(CASES)), ids=["-".join(case) for case in CASES])
async def test_killed_at_random_moments(nodes: Nodes, kafka: KafkaBroker, tmp_path: Path, case: int) -> None:
    alignment, backend = CASES[case]
    rng = random.Random(SEED + case)
    topics = Topics(kafka)
    source, output = await topics.new("orders", partitions=PARTITIONS), await topics.new("totals", partitions=3)
    settings = settings_of(
        kafka, tmp_path, rng, sources=[source], output=output, prefix=output, backend=backend, **ALIGNMENTS[alignment]
    )
    victims = dealt()[case]
    parts = len(victims) + 1
    logs = random_orders(rng, ORDERS * parts, logs=PARTITIONS)
    async with told(nodes, settings, rng) as story:
        for part, victim in enumerate((*victims, None)):
            await produce_logs(kafka.bootstrap, source, [part_of(log, part, parts) for log in logs])
            if victim is not None:
                await story.kill(victim)
        await story.until(lambda: story.seen >= ORDERS * parts, "all is committed")
        story.stop()
        check(by_customer(await totals_of(kafka.bootstrap, output)), logs, settings)
    until(lambda: not nodes.pids(COORDINATOR), "its coordinators have ended")
    until(lambda: set(nodes.pids(WORKER)) <= nodes.outlived(), "its workers have ended, but for those of lost nodes")
    nodes.clear_away()


def part_of(log: Sequence[Order], part: int, parts: int) -> Sequence[Order]:
    """What comes at one time, of as many as there are."""
    return log[len(log) * part // parts : len(log) * (part + 1) // parts]
