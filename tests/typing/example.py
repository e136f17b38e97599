"""A whole program as users write it, with typed connectors at both ends. Checked, never run."""

import datetime as dt
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, assert_type

import msgspec

import streamactors as sa
from connectors.files import FileSink, FileSource
from connectors.kafka import KafkaRecord, KafkaSink, KafkaSource
from streamactors.runtime.info import Incident
from streamactors.service import ControlEndpoint, Served, control_app, served, traced


class Order(msgspec.Struct):
    customer: str
    amount: float
    ts: int


class Total(msgspec.Struct):
    customer: str
    total: float


class RunningTotal(sa.KeyedOperator[str, Order, Total]):
    total = sa.ValueState(float, default=0.0)

    async def process(self, order: Order, ctx: sa.Context[str, Total]) -> None:
        self.total.set(self.total.get() + order.amount)
        ctx.emit(Total(ctx.key, self.total.get()))


async def enrich(order: Order) -> Order:
    return order


def value_of(record: KafkaRecord[str, Order]) -> list[Order]:
    return [] if record.value is None else [record.value]


brokers = "localhost:9092"
bad = sa.OutputTag("bad", sa.DeadLetter)

flow = sa.Dataflow("orders")
orders = flow.source("orders", KafkaSource(brokers, "orders", value=sa.Json(Order), on_error=bad))
assert_type(orders, sa.Stream[Order])
orders.side_output(bad).sink("bad", FileSink("bad", value=sa.Json(sa.DeadLetter)))

keyed = orders.map(enrich).filter(lambda o: o.amount > 0).key_by(lambda o: o.customer)
assert_type(keyed, sa.KeyedStream[str, Order])
totals = keyed.process("totals", RunningTotal, parallelism=4)
assert_type(totals, sa.Stream[Total])
out = KafkaSink(brokers, "totals", key=lambda t: t.customer.encode(), value=sa.Json(Total), delivery="exactly-once")
assert_type(totals.sink("out", out), sa.Dataflow)

records = flow.source("records", KafkaSource.records(brokers, "orders", key=sa.Text(), value=sa.Json(Order)))
assert_type(records, sa.Stream[KafkaRecord[str, Order]])
assert_type(records.flat_map(value_of), sa.Stream[Order])

files = flow.source("files", FileSource("events/*.jsonl", value=sa.Json(Order)))
assert_type(files, sa.Stream[Order])
assert_type(orders.union(files, records.flat_map(value_of)), sa.Stream[Order])
texts = flow.source("texts", FileSource("events/*.txt", value=sa.Text(), follow=True))
assert_type(texts, sa.Stream[str])

config = sa.Config(
    parallelism=2,
    checkpoints=sa.Checkpoints("file:///var/lib/orders", interval=dt.timedelta(seconds=10)),
    restart=sa.Restart.fixed(dt.timedelta(seconds=1), attempts=3),
)
assert_type(flow.explain(config), str)


async def service() -> None:
    async with sa.start(flow, config, resources={"http": object()}) as job:
        assert_type(await job.query("totals", RunningTotal.total, "alice"), float)
        assert_type(await job.query("totals", "total", "alice"), Any)
        assert_type(job.subscribe("totals"), AbstractAsyncContextManager[AsyncIterator[Any]])
        async with job.subscribe("orders", tag=bad, buffer=10) as letters:
            assert_type(letters, AsyncIterator[Any])
        assert_type(control_app(job, token="sixteen characters"), ControlEndpoint)
        async with served(job, "127.0.0.1:0", hosts=["streams"], savepoints=["/var/lib/saved"]) as where:
            assert_type(where, Served)
        async with traced(job) as traces:
            assert_type(traces, None)
        assert_type(job.incidents, Sequence[Incident])
        assert_type(await job.rescale(parallelism=4), None)
        assert_type(await job.rescale(parallelism={"totals": 8}), None)
        assert_type(await job.rescale(parallelism=4, steps={"totals": 8}), None)
        assert_type(job.last_rescale, sa.RescaleInfo | None)
        assert_type(job.checkpoints[-1].subtasks[0].state_bytes, dict[str, int])
