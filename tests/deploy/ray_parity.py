"""One flow with steps of every kind, in one process and then, unchanged, on a Ray that was started in another folder.
A program."""

import asyncio
import datetime as dt
import json
import logging
import os
import sys
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import ray

import streamactors as sa
from connectors.files import FileSink, FileSource
from connectors.memory import ListSource

ORDERS = 600
CUSTOMERS = 7
SECOND = dt.timedelta(seconds=1)
END = 10**9
"""Milliseconds, after all records."""


class Size(Enum):
    SMALL = "small"
    LARGE = "large"


class Order(msgspec.Struct):
    number: int
    customer: str
    cents: int
    at: int


class Payment(msgspec.Struct):
    order: int
    at: int


class Rated(NamedTuple):
    order: Order
    size: Size


ODD = sa.OutputTag("odd", Rated)
DEAD = sa.OutputTag("dead", sa.DeadLetter)


class Lines:
    """Whatever comes, as one line each."""

    def encode(self, value: object) -> bytes:
        return repr(value).encode()


class Split(sa.Operator[Rated, Rated]):
    def process(self, rated: Rated, ctx: sa.Context[None, Rated]) -> None:
        if rated.order.number % 50 == 0:
            raise ValueError(f"{rated.order.number} is refused")
        if rated.order.number % 2:
            ctx.emit_to(ODD, rated)
        else:
            ctx.emit(rated)


class Spent(sa.KeyedOperator[str, Order, tuple[Any, ...]]):
    total = sa.ValueState(int, default=0)
    numbers = sa.ListState(int)
    by_size = sa.MapState(str, int)
    largest = sa.ReducingState(int, max)
    facts = sa.AggregatingState(sa.Aggregates(orders=sa.Count(), spent=sa.Sum[Order](lambda order: order.cents)))

    def process(self, order: Order, ctx: sa.Context[str, tuple[Any, ...]]) -> None:
        self.total.set(self.total.get() + order.cents)
        self.numbers.append(order.number)
        size = sized(order).size.value
        self.by_size[size] = self.by_size.get(size, 0) + 1
        self.largest.add(order.cents)
        self.facts.add(order)
        ctx.timers.event(END)

    def on_timer(self, timer: sa.Timer, ctx: sa.Context[str, tuple[Any, ...]]) -> None:
        kept = sorted(self.numbers), sorted(self.by_size.items()), self.largest.get(), self.facts.get()
        ctx.emit((ctx.key, timer.timestamp, self.total.get(), *kept))


class Prices(sa.KeyedBroadcastOperator[str, Order, tuple[str, int], str]):
    prices = sa.BroadcastState(str, int)

    def process(self, order: Order, ctx: sa.Context[str, str]) -> None:
        ctx.emit(f"{ctx.key} {order.number}")

    def process_broadcast(self, price: tuple[str, int], ctx: sa.Context[None, str]) -> None:
        self.prices[price[0]] = price[1]


def sized(order: Order) -> Rated:
    return Rated(order, Size.LARGE if order.cents > 500 else Size.SMALL)


async def called(order: Order) -> tuple[int, str]:
    return order.number, sa.record_id().rpartition("/")[2]


def build(out: str) -> sa.Dataflow:
    """Relative paths."""
    flow = sa.Dataflow("parity")

    def write(uid: str, stream: sa.Stream[Any]) -> None:
        stream.rebalance().sink(uid, FileSink(f"{out}/{uid}", value=Lines()))

    times: sa.Watermarks[Any] = sa.Watermarks.bounded(lambda row: row.at, SECOND)
    orders = flow.source("orders", FileSource("orders-*", value=sa.Json(Order)), watermarks=times)
    payments = flow.source("payments", FileSource("payments-*", value=sa.Json(Payment)), watermarks=times)
    by_customer, by_number = orders.key_by(lambda order: order.customer), orders.key_by(lambda order: order.number)

    split = orders.map(sized).rebalance().process("split", Split, on_error=DEAD)
    write("even", split)
    write("odd", split.side_output(ODD))
    write("dead", split.side_output(DEAD))
    write("spent", by_customer.process("spend", Spent))
    windows = by_customer.window("minutes", sa.Tumbling(60 * SECOND))
    largest = sa.TopN[Order](2, lambda order: order.cents)
    write("minute", windows.aggregate(sa.Aggregates(orders=sa.Count(), largest=largest)))
    write(
        "session", by_customer.window("visits", sa.Session(SECOND)).aggregate(sa.Distinct(lambda order: order.number))
    )
    paid = payments.key_by(lambda payment: payment.order)
    write("settled", by_number.outer_join("settle", paid, -SECOND, SECOND))
    prices = flow.source("prices", ListSource([("a", 1), ("b", 2)]), parallelism=1)
    write("priced", by_customer.connect_broadcast(prices).process("price", Prices))
    small: sa.Pattern[Order] = sa.Pattern.begin("small", lambda order: order.cents < 100)
    write("match", by_customer.pattern("jumps", small.followed_by("large", lambda order: order.cents > 800)))
    write("called", orders.rebalance().map_async("call", called))
    return flow


def write_input(folder: Path) -> None:
    for part in range(3):
        numbers = range(part, ORDERS, 3)
        orders = (
            {"number": n, "customer": f"c{n * n % CUSTOMERS}", "cents": n * 37 % 1000, "at": n * 500} for n in numbers
        )
        payments = ({"order": n, "at": n * 500 + n * 7 % 1500} for n in numbers if n % 4)
        (folder / f"orders-{part}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in orders))
        (folder / f"payments-{part}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in payments))


async def main() -> None:
    await sa.run(build("here"), sa.Config(parallelism=2))
    config = sa.Config(
        parallelism=2,
        checkpoints=sa.Checkpoints("checkpoints", interval=SECOND / 5, alignment="unaligned"),
        deployment=sa.Ray(workers=2),
    )
    await sa.run(build("there"), config)


if __name__ == "__main__":
    ray.init(address="local", include_dashboard=False, num_cpus=2, logging_level=logging.ERROR)
    os.chdir(sys.argv[1])
    write_input(Path())
    asyncio.run(main())
    ray.shutdown()
