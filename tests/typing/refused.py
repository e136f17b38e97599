# type: ignore
"""What mypy --strict and pyright refuse: exactly the lines that say so. The test takes the first line away."""

import datetime as dt
from typing import assert_type

import streamactors as sa
from connectors.memory import ListSink, ListSource


class Order:
    customer: str = ""
    amount: float = 0.0


class Totals(sa.KeyedOperator[str, Order, float]):
    total = sa.ValueState(float, default=0.0)
    largest = sa.ReducingState(float, max)
    spent = sa.AggregatingState(sa.Sum[Order](lambda order: order.amount))
    wrong = sa.AggregatingState(sa.Sum[Order](lambda order: order.customer))  # refused
    short = sa.ValueState(float, default=0.0, ttl=3)  # refused

    def process(self, order: Order, ctx: sa.Context[str, float]) -> None:
        self.total.set("much")  # refused
        self.largest.add("much")  # refused
        self.spent.add(1.0)  # refused
        ctx.emit("much")  # refused
        ctx.emit_to(late, 1)  # refused


class Numbered(sa.KeyedOperator[int, Order, float]):
    def process(self, order: Order, ctx: sa.Context[int, float]) -> None:
        ctx.emit(order.amount)


class Unkeyed(sa.Operator[Order, float]):
    buffer = sa.OperatorListState(Order)

    def process(self, order: Order, ctx: sa.Context[None, float]) -> None:
        self.buffer.append("order")  # refused
        ctx.emit(order.amount)


class OfStrings(sa.Operator[str, float]):
    def process(self, text: str, ctx: sa.Context[None, float]) -> None:
        ctx.emit(0.0)


class Joined(sa.KeyedCoOperator[str, Order, str, float]):
    def process_left(self, order: Order, ctx: sa.Context[str, float]) -> None:
        ctx.emit("much")  # refused

    def process_right(self, text: str, ctx: sa.Context[str, float]) -> None:
        ctx.emit(len(text))


class Judged(sa.KeyedBroadcastOperator[str, Order, str, float]):
    rules = sa.BroadcastState(str, int)

    def process(self, order: Order, ctx: sa.Context[str, float]) -> None:
        ctx.emit(self.rules[order.customer])

    def process_broadcast(self, text: str, ctx: sa.Context[None, float]) -> None:
        self.rules[text] = text  # refused


def key(order: Order) -> str:
    return order.customer


def longest(left: str, right: str) -> str:
    return max(left, right, key=len)


late = sa.OutputTag("late", str)
flow = sa.Dataflow("refused")
orders = flow.source("orders", ListSource([Order()]))
keyed = orders.key_by(key)
numbers = ListSink[int]()

orders.map(len)  # refused
orders.map(lambda order: order.price)  # refused
orders.filter(key)  # refused
orders.flat_map(lambda order: order.amount)  # refused
orders.union(orders.map(key))  # refused
orders.print(chained=False)  # refused

# State needs a key, and the key's type.
orders.process("totals", Totals)  # refused
keyed.process("numbered", Numbered)  # refused
keyed.process("strings", OfStrings)  # refused
keyed.reduce("longest", longest)  # refused
orders.reduce("sum", max)  # refused

# Two inputs, each with its type, and keys of one type.
texts = orders.map(key)
orders.connect(texts).process("joined", Joined)  # refused
texts.connect(orders).key_by(str, key).process("joined", Joined)  # refused
orders.connect(texts).key_by(key, len).process("joined", Joined)  # refused
keyed.connect(texts.key_by(len)).process("joined", Joined)  # refused
keyed.connect_broadcast(texts).process("joined", Joined)  # refused
keyed.connect_broadcast(orders).process("judged", Judged)  # refused
orders.connect_broadcast(texts)  # refused
keyed.process("judged", Judged)  # refused

# Joins, of streams with keys of one type.
minute = dt.timedelta(minutes=1)
keyed.interval_join("joined", texts, -minute, minute)  # refused
orders.interval_join("joined", keyed, -minute, minute)  # refused
keyed.interval_join("joined", texts.key_by(len), -minute, minute)  # refused
keyed.interval_join("joined", texts.key_by(str), -60, 60)  # refused
keyed.outer_join("joined", texts.key_by(str), -minute, minute, how="inner")  # refused
keyed.window_join("joined", texts.key_by(str), minute)  # refused
keyed.top_n("best", 3)  # refused
keyed.deduplicate("once", keep="newest")  # refused

# Async steps.
orders.map_async("lengths", len)  # refused
sa.Retry(3, initial=1)  # refused
sa.BatchOf(3, 0.5)  # refused

# A uid, and a class or factory.
keyed.process(Totals)  # refused
orders.process(Unkeyed)  # refused
orders.process("unkeyed", Unkeyed())  # refused
orders.process("unkeyed", Unkeyed, 4)  # refused
orders.process("unkeyed", Unkeyed, on_error="skip")  # refused
orders.process("unkeyed", Unkeyed, on_error=late)  # refused

# Connectors of another type, or none.
orders.sink("out", numbers)  # refused
flow.source("list", [1, 2])  # refused
flow.source(ListSource([1]))  # refused

# The assertions of flows.py are checked indeed.
assert_type(orders, sa.Stream[str])  # refused
assert_type(keyed.process("ok", Totals), sa.Stream[int])  # refused
