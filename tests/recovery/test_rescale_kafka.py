"""A job from Kafka to Kafka that is rescaled while it runs, and fails in the middle of it: what a read_committed
consumer sees equals a plain computation."""

import asyncio
import datetime as dt
import random
from pathlib import Path

import pytest

import streamactors as sa
from connectors.kafka import KafkaSink, KafkaSource
from streamactors.testing import KafkaBroker
from tests.kafka_topics import Topics
from tests.recovery.jobs import Line, Order, Settings, Total, Totals, customer_key, whole
from tests.recovery.orders import by_customer, check, random_orders
from tests.recovery.topics import produce_logs, totals_of
from tests.runtime.feeds import PATIENCE, until

pytestmark = pytest.mark.slow

ORDERS = 24_000
SLICE = 1500
"""Records from one rescale to the next: more than there can be in flight."""
FEW = 20
"""How many pass at a time while a rescale takes longer than that: so few that there are records to its end."""
WIDTHS = ({"orders": 3, "totals": 1}, {"orders": 1, "totals": 3}, {"totals": 2, "out": 1}, {"orders": 2, "out": 3})


class Gate:
    """Lets so many records through as are allowed."""

    def __init__(self) -> None:
        self.passed = self.allowed = self.waiting = 0
        self.breaks = False
        self._more = asyncio.Event()

    def allow(self, count: int) -> None:
        self.allowed += count
        self._more.set()

    async def __call__(self, order: Order) -> Order:
        while self.passed >= self.allowed:
            self._more.clear()
            self.waiting += 1
            try:
                await self._more.wait()
            finally:
                self.waiting -= 1
        self.passed += 1
        if self.breaks:
            self.breaks = False
            raise RuntimeError("broken")
        return order


def flow_of(kafka: KafkaBroker, source: str, output: str, gate: Gate) -> sa.Dataflow:
    flow = sa.Dataflow("orders")
    orders = flow.source("orders", KafkaSource(kafka.bootstrap, source, value=sa.Json(Order), bounded=True))
    lines: sa.Stream[Line] = orders.map(gate).flat_map(whole)
    totals = lines.key_by(lambda line: line.customer).process("totals", Totals)
    sink = KafkaSink(kafka.bootstrap, output, value=sa.Json(Total), key=customer_key, transactional_id_prefix=output)
    totals.key_by(lambda total: total.customer).sink("out", sink)
    return flow


async def test_rescaled_under_load(kafka: KafkaBroker, topics: Topics, tmp_path: Path) -> None:
    logs = random_orders(random.Random(7), ORDERS, logs=4)
    source, output = await topics.new("orders", partitions=4), await topics.new("totals", partitions=3)
    await produce_logs(kafka.bootstrap, source, logs)
    gate = Gate()
    config = sa.Config(
        parallelism=2,
        mailbox_capacity=64,
        checkpoints=sa.Checkpoints(str(tmp_path), interval=dt.timedelta(milliseconds=200), alignment="unaligned"),
        restart=sa.Restart.fixed(dt.timedelta(0), 3),
    )
    async with asyncio.timeout(2 * PATIENCE), sa.start(flow_of(kafka, source, output, gate), config) as job:
        for number, widths in enumerate(WIDTHS):
            gate.allow(SLICE // 2)
            await until(lambda: gate.passed >= gate.allowed and gate.waiting)
            gate.breaks = number == 2
            rescaled = asyncio.ensure_future(job.rescale(parallelism=widths))
            gate.allow(SLICE)
            while not rescaled.done():
                gate.allow(FEW if gate.passed >= gate.allowed else 0)  # what is read again passes again
                await asyncio.sleep(0.01)
            await rescaled
            assert job.plan is not None and job.last_rescale is not None
            assert {uid: job.plan.node[uid][0].parallelism for uid in widths} == widths
            assert job.status == "running" and job.restarts == (number >= 2)
        gate.allow(ORDERS * 10)
        await job.wait()
    settings = Settings(storage=str(tmp_path), sources=[source], output=output)
    check(by_customer(await totals_of(kafka.bootstrap, output)), logs, settings)
