"""Kafka in, running totals per customer, Kafka out, exactly-once, with a SIGKILL in the middle: `make demo-kafka`.

Starts a real broker (or uses the one that KAFKA_BOOTSTRAP names), writes orders, runs the job in a process of its own,
kills that process, starts it again, and compares what a read_committed reader sees with a plain computation.
"""

import argparse
import asyncio
import datetime as dt
import secrets
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

import streamactors as sa
from connectors.kafka import KafkaSink, KafkaSource
from streamactors.testing import KafkaBroker

ROOT = Path(__file__).parents[1]
ORDERS = 200_000
CUSTOMERS = 5_000
PARTITIONS = 4
PARALLELISM = 2
IDLE_SECONDS = 120.0


class Order(msgspec.Struct, gc=False):
    id: int
    customer: str
    cents: int


class Total(msgspec.Struct, gc=False):
    """A customer's total after order `id`."""

    id: int
    customer: str
    cents: int


# ------------------------------------------------------------------------------------------------------------- the job
class RunningTotal(sa.KeyedOperator[str, Order, Total]):
    cents = sa.ValueState(int, default=0)

    def process(self, order: Order, ctx: sa.Context[str, Total]) -> None:
        self.cents.set(self.cents.get() + order.cents)
        ctx.emit(Total(order.id, ctx.key, self.cents.get()))


def build(bootstrap: str, orders: str, totals: str, *, bounded: bool) -> sa.Dataflow:
    flow = sa.Dataflow("kafka-totals")
    (
        flow.source("orders", KafkaSource(bootstrap, orders, value=sa.Json(Order), bounded=bounded))
        .key_by(lambda order: order.customer)
        .process("totals", RunningTotal)
        .sink("out", KafkaSink(bootstrap, totals, value=sa.Json(Total), key=lambda total: total.customer.encode()))
    )
    return flow


def config(storage: str) -> sa.Config:
    checkpoints = sa.Checkpoints(storage, interval=dt.timedelta(milliseconds=200))
    return sa.Config(parallelism=PARALLELISM, checkpoints=checkpoints)


# ---------------------------------------------------------------------------------------------------- what surrounds it
@dataclass(frozen=True)
class Demo:
    bootstrap: str
    storage: str
    orders: str
    totals: str
    count: int

    @asynccontextmanager
    async def job(self, *, bounded: bool) -> AsyncIterator[asyncio.subprocess.Process]:
        """The job in a process of its own, which does not outlive the block; unbounded, it would wait for more."""
        reading = "bounded" if bounded else "unbounded"
        work = ("--work", self.bootstrap, self.storage, self.orders, self.totals, reading)
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "examples.kafka_totals", *work, cwd=ROOT)
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def made_up(count: int) -> Iterator[Order]:
    """Skewed, and the same every time: some customers order a lot."""
    for id in range(count):
        yield Order(id, f"c{(id * id + id // 7) % CUSTOMERS}", id % 1_000 + 1)


async def write_orders(demo: Demo, start: int, stop: int) -> None:
    """Keyed by customer, so that each customer's orders keep their order."""
    orders = islice(made_up(demo.count), start, stop)
    async with AIOKafkaProducer(bootstrap_servers=demo.bootstrap, linger_ms=20, max_batch_size=1 << 18) as producer:
        while some := list(islice(orders, 5_000)):
            sent = [
                await producer.send(demo.orders, msgspec.json.encode(order), key=order.customer.encode())
                for order in some
            ]
            await asyncio.gather(*sent)


class Results:
    """What a reader sees that reads committed records only, from the beginning."""

    def __init__(self, consumer: AIOKafkaConsumer, bootstrap: str) -> None:
        self._consumer = consumer
        self._bootstrap = bootstrap
        self._decoder = msgspec.json.Decoder(Total)
        self.by_customer: dict[str, list[Total]] = defaultdict(list)
        self.found = 0

    async def read(self) -> None:
        async with asyncio.timeout(IDLE_SECONDS):
            batches = await self._consumer.getmany(timeout_ms=200)
        for record in (record for records in batches.values() for record in records):
            total = self._decoder.decode(record.value)
            self.by_customer[total.customer].append(total)
            self.found += 1

    async def read_to_the_end(self) -> None:
        """Of what is written: the brokers show a transaction a moment after they have acknowledged its commit."""
        async with AIOKafkaConsumer(bootstrap_servers=self._bootstrap) as uncommitted:
            ends = await uncommitted.end_offsets(self._consumer.assignment())
        for partition, end in ends.items():
            while await self._consumer.position(partition) < end:
                await self.read()


@asynccontextmanager
async def results(demo: Demo) -> AsyncIterator[Results]:
    consumer = AIOKafkaConsumer(
        demo.totals,
        bootstrap_servers=demo.bootstrap,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    async with consumer:
        yield Results(consumer, demo.bootstrap)


# --------------------------------------------------------------------------------------------------------- the verdict
@dataclass(frozen=True)
class Verdict:
    expected: int
    found: int
    lost: int
    doubled: int
    misplaced: int
    """Customers whose totals are not what they should be, in the order that they should be in."""

    @property
    def equal(self) -> bool:
        return self.expected == self.found and not (self.lost or self.doubled or self.misplaced)

    def __str__(self) -> str:
        wrong = f" · {self.misplaced:,} customers wrong" if self.misplaced else ""
        return (
            f"{self.expected:,} expected · {self.found:,} found · {self.lost:,} lost · {self.doubled:,} doubled{wrong}"
        )


def plain_totals(orders: Iterable[Order]) -> dict[str, list[Total]]:
    """The same in a plain loop."""
    sums: dict[str, int] = defaultdict(int)
    totals: dict[str, list[Total]] = defaultdict(list)
    for order in orders:
        sums[order.customer] += order.cents
        totals[order.customer].append(Total(order.id, order.customer, sums[order.customer]))
    return totals


def compare(expected: Mapping[str, Sequence[Total]], found: Mapping[str, Sequence[Total]]) -> Verdict:
    expected_ids = [total.id for totals in expected.values() for total in totals]
    found_ids = [total.id for totals in found.values() for total in totals]
    return Verdict(
        expected=len(expected_ids),
        found=len(found_ids),
        lost=len(set(expected_ids) - set(found_ids)),
        doubled=len(found_ids) - len(set(found_ids)),
        misplaced=sum(expected.get(customer) != found.get(customer) for customer in {*expected, *found}),
    )


# ------------------------------------------------------------------------------------------------------------ the demo
async def kill_in_the_middle(demo: Demo, seen: Results) -> None:
    """As soon as the first results are committed."""
    async with demo.job(bounded=False) as process:
        while not seen.found:
            if process.returncode is not None:
                raise SystemExit(f"the job ended with exit code {process.returncode} and no result")
            await seen.read()
        process.send_signal(signal.SIGKILL)
        code = await process.wait()
    if code != -signal.SIGKILL:
        raise SystemExit(f"the job ended with exit code {code} before it could be killed")


async def run_to_the_end(demo: Demo) -> None:
    async with demo.job(bounded=True) as process:
        if code := await process.wait():
            raise SystemExit(f"the second run ended with exit code {code}")


def say(text: str) -> None:
    print(text, flush=True)  # the job's process writes to the same terminal


async def demonstrate(demo: Demo) -> Verdict:
    half = demo.count // 2
    say(f"1. {half:,} orders of {CUSTOMERS:,} customers go into topic {demo.orders}")
    await write_orders(demo, 0, half)
    say("2. The job runs, in a process of its own")
    async with results(demo) as seen:
        await kill_in_the_middle(demo, seen)
        say(f"3. Killed by SIGKILL, with the first {seen.found:,} results committed; then the other orders come")
        await write_orders(demo, half, demo.count)
        await run_to_the_end(demo)
        say("4. The second run went on from the last checkpoint, and has finished")
        await seen.read_to_the_end()
    return compare(plain_totals(made_up(demo.count)), seen.by_customer)


async def run(count: int) -> Verdict:
    mark = secrets.token_hex(3)  # a broker that was there before may hold another run's topics
    orders, totals = f"orders-{mark}", f"totals-{mark}"
    with tempfile.TemporaryDirectory() as folder:
        async with KafkaBroker() as kafka:
            for topic in (orders, totals):
                await kafka.create_topic(topic, partitions=PARTITIONS)
            return await demonstrate(Demo(kafka.bootstrap, f"file://{folder}", orders, totals, count))


def main() -> int:
    parser = argparse.ArgumentParser(description="Kafka to Kafka, exactly-once, with a SIGKILL in the middle.")
    parser.add_argument("--orders", type=int, default=ORDERS, help=f"how many (default {ORDERS:,})")
    parser.add_argument(
        "--work", nargs=5, metavar=("BROKERS", "STORAGE", "ORDERS", "TOTALS", "READING"), help=argparse.SUPPRESS
    )
    given = parser.parse_args()
    if given.work:
        bootstrap, storage, orders, totals, reading = given.work
        sa.main(build(bootstrap, orders, totals, bounded=reading == "bounded"), config(storage))
    verdict = asyncio.run(run(given.orders))
    print(verdict)
    return 0 if verdict.equal else 1


if __name__ == "__main__":
    sys.exit(main())
