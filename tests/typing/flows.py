"""What mypy --strict and pyright infer for each step. Checked, never run."""

import datetime as dt
import functools
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from typing import Any, assert_type

import msgspec

import streamactors as sa
from connectors.memory import ListSink, ListSource
from connectors.queue import QueuePosition, QueueSource


class Order(msgspec.Struct):
    customer: str
    amount: float
    ts: int


class Total(msgspec.Struct):
    customer: str
    total: float


class Stats(msgspec.Struct):
    n: int
    least: float


def amount_of(order: Order) -> float:
    return order.amount


class RunningTotal(sa.KeyedOperator[str, Order, Total]):
    total = sa.ValueState(float, default=0.0)
    last = sa.ValueState(int)
    seen = sa.MapState(str, int)
    tags = sa.ValueState(list[str], default_factory=list)
    maybe = sa.ValueState[int | None](int | None, default=None)
    lines = sa.ListState(Order)
    largest = sa.ReducingState(Order, lambda left, right: max(left, right, key=lambda order: order.amount))
    count = sa.AggregatingState(sa.Count(), ttl=sa.Ttl(dt.timedelta(days=1), refresh_on="read-write"))
    spent = sa.AggregatingState(sa.Sum[Order](lambda order: order.amount))
    first = sa.AggregatingState(sa.Min[Order, int](lambda order: order.ts))
    mean = sa.AggregatingState(sa.Avg[Order](lambda order: order.amount))
    top = sa.AggregatingState(sa.TopN[Order](3, lambda order: order.amount))
    every = sa.AggregatingState(sa.Collect[Order]())
    named = sa.AggregatingState(sa.Aggregates[Order, dict[str, Any]](n=sa.Count(), top=sa.TopN(3, amount_of)))
    stats = sa.AggregatingState(sa.Aggregates(Stats, n=sa.Count(), least=sa.Min(amount_of)))

    async def open(self, ctx: sa.OperatorContext) -> None:
        assert_type(ctx.uid, str)
        assert_type(ctx.resources["http"], Any)
        assert_type(ctx.metrics.counter("orders"), sa.Counter)

    async def process(self, order: Order, ctx: sa.Context[str, Total]) -> None:
        assert_type(self.total.get(), float)
        assert_type(self.last.get(), int | None)
        assert_type(self.seen["x"], int)
        assert_type(self.tags.get(), list[str])
        assert_type(self.maybe.get(), int | None)
        assert_type(list(self.lines), list[Order])
        assert_type(list(self.seen.range("a", "b")), list[tuple[str, int]])
        assert_type(self.largest.get(), Order | None)
        assert_type(self.count.get(), int)
        assert_type(self.spent.get(), float)
        assert_type(self.first.get(), int)
        assert_type(self.mean.get(), float)
        assert_type(self.top.get(), list[Order])
        assert_type(self.every.get(), list[Order])
        assert_type(self.named.get(), dict[str, Any])
        assert_type(self.stats.get(), Stats)
        self.largest.add(order)
        self.spent.add(order)
        self.stats.add(order)
        assert_type(ctx.key, str)
        assert_type(ctx.timestamp, int | None)
        assert_type(ctx.record_id, str)
        self.total.set(self.total.get() + order.amount)
        ctx.emit(Total(ctx.key, self.total.get()))
        ctx.emit_to(late, order)
        await ctx.drain()


class Fast(sa.KeyedOperator[str, Order, Total]):
    def __init__(self, limit: float) -> None:
        self.limit = limit

    def process(self, order: Order, ctx: sa.Context[str, Total]) -> None:
        if order.amount > self.limit:
            ctx.emit(Total(ctx.key, order.amount))


class Splitting(sa.Operator[Order, float]):
    buffer = sa.OperatorListState(Order)
    known = sa.UnionListState(str)

    def open(self, ctx: sa.OperatorContext) -> None:
        assert_type(list(self.known), list[str])
        self.known.append(ctx.uid)

    def process(self, order: Order, ctx: sa.Context[None, float]) -> None:
        assert_type(ctx.key, None)
        assert_type(self.buffer, sa.OperatorListState[Order])
        assert_type([one.amount for one in self.buffer], list[float])
        self.buffer.extend([order])
        ctx.emit(order.amount)


class Matching(sa.CoOperator[Order, str, Total]):
    def process_left(self, order: Order, ctx: sa.Context[None, Total]) -> None:
        assert_type(ctx.key, None)
        ctx.emit(Total(order.customer, order.amount))

    async def process_right(self, customer: str, ctx: sa.Context[None, Total]) -> None:
        ctx.emit(Total(customer, 0.0))


class Account(sa.KeyedCoOperator[str, Order, Total, float]):
    balance = sa.ValueState(float, default=0.0)

    async def process_left(self, order: Order, ctx: sa.Context[str, float]) -> None:
        assert_type(ctx.key, str)
        ctx.emit(self.balance.get() + order.amount)

    def process_right(self, total: Total, ctx: sa.Context[str, float]) -> None:
        ctx.emit(total.total)


class Judging(sa.KeyedBroadcastOperator[str, Order, int, bool]):
    rules = sa.BroadcastState(str, int)
    seen = sa.ValueState(int, default=0)

    def process(self, order: Order, ctx: sa.Context[str, bool]) -> None:
        assert_type(self.rules, sa.BroadcastState[str, int])
        assert_type(self.rules["least"], int)
        assert_type(self.rules.get("least"), int | None)
        assert_type(ctx.key, str)
        ctx.emit(order.amount >= self.rules["least"])

    async def process_broadcast(self, least: int, ctx: sa.Context[None, bool]) -> None:
        assert_type(ctx.key, None)
        self.rules["least"] = least


async def enrich(order: Order) -> Order:
    return order


async def wanted(order: Order) -> bool:
    return order.amount > 0


async def parts(order: Order) -> list[str]:
    return [order.customer]


def characters(order: Order) -> Iterator[str]:
    yield from order.customer


async def total_of(order: Order) -> Total:
    return Total(order.customer, order.amount)


def later(order: Order) -> Awaitable[Total]:
    return total_of(order)


def larger(left: Order, right: Order) -> Order:
    return max(left, right, key=lambda order: order.amount)


def made() -> Splitting:
    return Splitting()


late = sa.OutputTag("late", Order)
dead = sa.OutputTag("dead", sa.DeadLetter)
assert_type(late, sa.OutputTag[Order])

flow = sa.Dataflow("orders")
orders = flow.source("orders", ListSource([Order("a", 1.0, 0)]), parallelism=2)
assert_type(orders, sa.Stream[Order])
timed = flow.source(
    "timed", ListSource([Order("a", 1.0, 0)]), watermarks=sa.Watermarks.monotonic(lambda order: round(order.amount))
)
assert_type(timed, sa.Stream[Order])
early = sa.OutputTag("early", Order)
assert_type(
    orders.with_timestamps(
        sa.Watermarks.bounded(
            lambda order: round(order.amount), dt.timedelta(0), max_ahead=dt.timedelta(hours=1), ahead=early
        ),
        uid="timed-later",
        on_error=dead,
    ),
    sa.Stream[Order],
)
assert_type(sa.Watermarks.none(), sa.Watermarks[Any])

# Stateless steps: `def`, `async def`, lambda, a function that returns an awaitable, a class.
assert_type(orders.map(enrich), sa.Stream[Order])
assert_type(orders.map(later), sa.Stream[Total])
assert_type(orders.map(lambda order: order.amount), sa.Stream[float])
assert_type(orders.map(lambda order: order.customer).map(len), sa.Stream[int])
assert_type(orders.map(enrich, name="enrich", parallelism=3, chain=False), sa.Stream[Order])
assert_type(orders.filter(wanted), sa.Stream[Order])
assert_type(orders.filter(lambda order: order.amount > 0, name="positive"), sa.Stream[Order])
assert_type(orders.flat_map(parts), sa.Stream[str])
assert_type(orders.flat_map(characters), sa.Stream[str])
assert_type(orders.flat_map(lambda order: [order.amount, 0.0]), sa.Stream[float])
assert_type(orders.print(), sa.Stream[Order])
assert_type(orders.print("orders", chain=False), sa.Stream[Order])

# Where records go.
assert_type(orders.rebalance(), sa.Stream[Order])
assert_type(orders.broadcast(), sa.Stream[Order])
assert_type(orders.union(orders, orders.map(enrich)), sa.Stream[Order])
assert_type(orders.side_output(late), sa.Stream[Order])
assert_type(orders.side_output(dead), sa.Stream[sa.DeadLetter])

# Keyed.
keyed = orders.map(enrich).filter(lambda order: order.amount > 0).key_by(lambda order: order.customer)
assert_type(keyed, sa.KeyedStream[str, Order])
assert_type(keyed.filter(wanted), sa.KeyedStream[str, Order])
assert_type(keyed.map(lambda order: order.ts), sa.Stream[int])
assert_type(keyed.rebalance(), sa.Stream[Order])
assert_type(keyed.key_by(lambda order: order.ts), sa.KeyedStream[int, Order])
assert_type(orders.key_by(lambda order: (order.customer, order.ts)), sa.KeyedStream[tuple[str, int], Order])

# Steps with a uid.
totals = keyed.process("totals", RunningTotal, parallelism=4)
assert_type(totals, sa.Stream[Total])
assert_type(keyed.process("fast", functools.partial(Fast, 10.0)), sa.Stream[Total])
assert_type(keyed.process("unkeyed", Splitting), sa.Stream[float])
assert_type(orders.process("split", Splitting, on_error=dead), sa.Stream[float])
assert_type(orders.process("made", made, name="made", chain=False), sa.Stream[float])
assert_type(keyed.reduce("largest", larger), sa.Stream[Order])
assert_type(keyed.reduce("first", lambda left, right: left, parallelism=2), sa.Stream[Order])

# Two inputs.
names = orders.map(lambda order: order.customer)
numbers = orders.map(lambda order: order.ts)
connected = orders.connect(names)
assert_type(connected, sa.ConnectedStreams[Order, str])
assert_type(connected.process("matching", Matching), sa.Stream[Total])
assert_type(connected.process("matching-2", Matching, name="m", parallelism=2, on_error=dead), sa.Stream[Total])
by_customer = orders.connect(totals).key_by(lambda order: order.customer, lambda total: total.customer)
assert_type(by_customer, sa.KeyedConnectedStreams[str, Order, Total])
assert_type(by_customer.process("account", Account), sa.Stream[float])
both_keyed = keyed.connect(totals.key_by(lambda total: total.customer))
assert_type(both_keyed, sa.KeyedConnectedStreams[str, Order, Total])
assert_type(both_keyed.process("account-2", Account, chain=False), sa.Stream[float])
assert_type(keyed.connect(names), sa.ConnectedStreams[Order, str])
assert_type(keyed.connect(names.key_by(len)), sa.ConnectedStreams[Order, str])
assert_type(keyed.connect(names.key_by(lambda name: name)).process("matching-3", Matching), sa.Stream[Total])
assert_type(keyed.connect_broadcast(numbers), sa.BroadcastConnectedStreams[str, Order, int])
assert_type(keyed.connect_broadcast(numbers).process("judging", Judging, parallelism=4), sa.Stream[bool])


# Patterns.
def large(order: Order, match: sa.Match[Order]) -> bool:
    return order.amount > sum(each.amount for each in match["small"])


async def small(order: Order) -> bool:
    return order.amount < 1.0


looked_for = sa.Pattern.begin("small", small).times(2, 5).greedy().not_next("other", small)
assert_type(looked_for, sa.Pattern[Order])
whole = looked_for.followed_by("large", large).within(dt.timedelta(minutes=5)).skip("to-last", "small")
assert_type(whole, sa.Pattern[Order])
timed_out: sa.OutputTag[sa.Match[Order]] = sa.OutputTag("timed-out", sa.Match)
matches = keyed.pattern("matches", whole, timed_out=timed_out, late=late, max_partial_matches=1000, parallelism=2)
assert_type(matches, sa.Stream[sa.Match[Order]])
dead_events = sa.OutputTag("dead-events", sa.DeadLetter)
assert_type(keyed.pattern("checked", whole, on_error=dead_events), sa.Stream[sa.Match[Order]])
assert_type(matches.map(lambda match: match["small"]), sa.Stream[list[Order]])

# Joins.
by_total = totals.key_by(lambda total: total.customer)
minute = dt.timedelta(minutes=1)
assert_type(keyed.interval_join("interval", by_total, -minute, minute), sa.Stream[tuple[Order, Total]])
assert_type(keyed.interval_join("late", by_total, -minute, minute, late=late), sa.Stream[tuple[Order, Total]])
assert_type(
    keyed.outer_join("outer", by_total, -minute, minute, "left", parallelism=2),
    sa.Stream[tuple[Order | None, Total | None]],
)
assert_type(keyed.as_of_join("as-of", by_total, name="rates"), sa.Stream[tuple[Order, Total | None]])
assert_type(keyed.window_join("window", by_total, sa.Tumbling(minute), late=late), sa.Stream[tuple[Order, Total]])
assert_type(keyed.deduplicate("once", by=lambda order: order.ts, within=minute), sa.Stream[Order])
assert_type(keyed.deduplicate("newest", keep="last"), sa.Stream[Order])


async def look_up(order: Order) -> Total:
    return Total(order.customer, order.amount)


async def look_up_many(orders: list[Order]) -> list[Total]:
    return [Total(order.customer, order.amount) for order in orders]


assert_type(sa.record_id(), str)
assert_type(sa.record_ids(), Sequence[str])
retry = sa.Retry(3, initial=dt.timedelta(seconds=1), on=(TimeoutError,))
assert_type(orders.map_async("totals", look_up, capacity=10, timeout=minute, retry=retry), sa.Stream[Total])
assert_type(orders.map_async("many", look_up_many, batch=sa.BatchOf(10, minute), ordered=False), sa.Stream[Total])


class Scored(sa.AsyncKeyedOperator[str, Order, Total]):
    capacity = 20
    timeout = minute
    retry = sa.Retry(3)
    total = sa.ValueState(float, default=0.0)

    async def process(self, order: Order, ctx: sa.Context[str, Total], /) -> None:
        found = await look_up(order)
        self.total.set(self.total.get() + found.total)
        assert_type(ctx.record_id, str)
        ctx.emit(Total(ctx.key, self.total.get()))

    async def on_timer(self, timer: sa.Timer, ctx: sa.Context[str, Total], /) -> None:
        ctx.emit(Total(ctx.key, self.total.get()))


assert_type(keyed.process("scored", Scored, parallelism=2), sa.Stream[Total])
assert_type(Scored.capacity, int)
assert_type(keyed.top_n("dearest", 3, amount_of, ttl=sa.Ttl(minute)), sa.Stream[list[Order]])

sink: ListSink[Total] = ListSink()
assert_type(totals.sink("out", sink), sa.Dataflow)
assert_type(flow.explain(sa.Config(parallelism=2)), str)
assert_type(flow.explain(sa.Config(execution="batch", sort_memory=1 << 20, sort_folder="/var/tmp")), str)
assert_type(flow.to_mermaid(), str)
assert_type(flow.explain(workers=2), str)
assert_type(flow.to_mermaid(sa.Config(parallelism=2), workers=2), str)
on_ray = sa.Ray(workers=4, address="auto", resources={"CPU": 2}, patience=minute, strategy="pack", slots=2)
assert_type((on_ray.workers, on_ray.address), tuple[int, str | None])
assert_type(sa.Config(deployment=on_ray).deployment, sa.Deployment | None)
autoscale = sa.Autoscale(target=0.6, tolerance=0.1, max_parallelism=8, steps=["totals"], window=minute, dry_run=True)
assert_type(sa.Config(autoscale=autoscale).autoscale, sa.Autoscale | None)
assert_type((autoscale.target, autoscale.steps), tuple[float, Sequence[str] | None])


def a_step_of_ones_own(stream: sa.Stream[Order]) -> sa.Stream[Iterable[float]]:
    """Steps compose in functions with declared types."""
    amounts: sa.Stream[Iterable[float]] = stream.map(lambda order: [order.amount])
    return amounts


queue = QueueSource("/var/lib/orders", value=sa.Json(Order), partitions=2, key=lambda order: order.customer)
assert_type(queue, QueueSource[Order])
assert_type(sa.Dataflow("queued").source("queue", queue), sa.Stream[Order])


async def put(order: Order) -> None:
    assert_type(await queue.put(order), QueuePosition)
    assert_type(await queue.put_nowait(order), QueuePosition)
    async with queue as opened:
        assert_type(opened, QueueSource[Order])
