"""The job that the recovery tests run in a process of its own: `python -m tests.recovery.jobs '{"storage": …}'`.

Orders in (files or Kafka), one running total per customer and order out, exactly once. What each output record says
about the orders before it is enough to tell a lost, a doubled and a misplaced one from any other.
"""

import asyncio
import datetime as dt
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

import msgspec

import streamactors as sa
from connectors.files import FileSink, FileSource

T = TypeVar("T")
FLOW = "orders"
PACED = 64
"""Records between two pauses of a paced job."""
MEMORY, CACHE = 4 << 20, 64
FULL_EVERY = 4
LETTERS = sa.OutputTag("letters", sa.DeadLetter)
OPENED = "operator opened"
"""Printed by each subtask of the stateful step, so that a test sees how far a start has come."""


class Settings(msgspec.Struct, kw_only=True, frozen=True):
    """What one run of the job is given."""

    storage: str
    sources: list[str]
    """Folders, or topics where there are `brokers`; several are joined by union."""
    output: str
    letters: str = ""
    """A folder for the dead letters of lines that can't be decoded; without it they fail the job."""
    brokers: str = ""
    source_parallelism: int = 1
    parallelism: int = 2
    interval_ms: int = 100
    alignment: Literal["aligned", "unaligned"] = "aligned"
    alignment_timeout_ms: int | None = None
    mailbox_capacity: int = 4096
    flat: bool = False
    """Each order becomes two lines, by flat_map."""
    waiting: bool = False
    """The totals are kept by an AsyncKeyedOperator, which waits in the middle of each call."""
    rebalanced: bool = False
    called: bool = False
    """Each line is looked up, hundreds at once."""
    exchanged: bool = False
    """A second exchange by key, between the totals and the sink."""
    pace: float = 0.0
    """Records per second, of all subtasks; 0: as fast as it goes."""
    most: int = 0
    """Records, of all subtasks, after which nothing more passes: a job that is to be killed does not come to its end,
    however long that takes. 0: all pass."""
    brake: Literal["orders", "totals"] = "orders"
    """Which of them are paced: with the totals, all mailboxes before them are full, and barriers take their time."""
    endless: bool = False
    """The Kafka source waits for more."""
    backend: Literal["heap", "incremental heap", "rocksdb"] = "heap"
    local: str = ""
    """Where RocksDB's files lie, with so little memory that they are read and written all the time."""
    restarts: int = 0
    prefix: str | None = None
    """Of the sink's transactional ids: what other tests on the same broker don't use."""


class Order(msgspec.Struct, gc=False):
    id: int
    customer: str
    amount: int


class Line(msgspec.Struct, gc=False):
    id: str
    customer: str
    amount: int


class Total(msgspec.Struct, gc=False):
    """`count` and `total` include this line."""

    id: str
    customer: str
    amount: int
    count: int
    total: int


class Running(msgspec.Struct):
    count: int = 0
    total: int = 0


class Totals(sa.KeyedOperator[str, Line, Total]):
    running = sa.ValueState(Running, default=None)
    seen = sa.MapState(str, int)

    def open(self, ctx: sa.OperatorContext, /) -> None:
        print(OPENED, ctx.subtask, file=sys.stderr, flush=True)

    def process(self, line: Line, ctx: sa.Context[str, Total], /) -> None:
        before = self.running.get() or Running()
        after = Running(before.count + 1, before.total + line.amount)
        self.running.set(after)
        if self.seen.get(line.id) is not None:
            raise ValueError(f"{line} is in the restored state already: it was read twice")
        self.seen[line.id] = after.count
        ctx.emit(Total(line.id, line.customer, line.amount, after.count, after.total))


class WaitingTotals(sa.AsyncKeyedOperator[str, Line, Total]):
    """With the same state: it may come in the place of the other one, and go again."""

    running = sa.ValueState(Running, default=None)
    seen = sa.MapState(str, int)

    def open(self, ctx: sa.OperatorContext, /) -> None:
        print(OPENED, ctx.subtask, file=sys.stderr, flush=True)

    async def process(self, line: Line, ctx: sa.Context[str, Total], /) -> None:
        running = self.running.get() or Running()
        running.count += 1  # a copy
        await asyncio.sleep(random.random() * 0.002)
        running.total += line.amount
        if line.id in self.seen:
            raise ValueError(f"{line} is in the restored state already: it was read twice")
        self.seen[line.id] = running.count
        self.running.set(running)
        ctx.emit(Total(line.id, line.customer, line.amount, running.count, running.total))


def whole(order: Order) -> list[Line]:
    return [Line(f"{order.id}", order.customer, order.amount)]


def halves(order: Order) -> Iterator[Line]:
    yield Line(f"{order.id}a", order.customer, order.amount // 2)
    yield Line(f"{order.id}b", order.customer, order.amount - order.amount // 2)


async def look_up(line: Line) -> Line:
    await asyncio.sleep(random.random() * 0.05)
    return line


def paced(settings: Settings, steps: int, width: int, *, braked: bool) -> Callable[[T], Any]:
    """For one of so many steps, all of whose subtasks call the same function. Slow enough that there is something to
    be killed, and mailboxes fill up; 0: as fast as it goes. The step is there either way, since records in flight are
    found again by the shape of the flow."""
    rate = settings.pace / steps / width if braked else 0.0
    most = settings.most // steps if braked else 0
    count = 0

    async def wait(value: T) -> T:
        nonlocal count
        count += 1
        if rate and count % PACED == 0:
            await asyncio.sleep(PACED / rate)
        if most and count > most:
            await asyncio.Event().wait()
        return value

    return wait


def customer_key(total: Total) -> bytes:
    return total.customer.encode()


def source_of(settings: Settings, name: str) -> Any:
    if settings.brokers:
        from connectors.kafka import KafkaSource  # starts are many, and most of what they take is imports

        return KafkaSource(settings.brokers, name, value=sa.Json(Order), bounded=not settings.endless)
    return FileSource(name, value=sa.Json(Order), on_error=LETTERS if settings.letters else "fail")


def sink_of(settings: Settings) -> Any:
    if not settings.brokers:
        return FileSink(settings.output, value=sa.Json(Total))
    from connectors.kafka import KafkaSink

    return KafkaSink(
        settings.brokers,
        settings.output,
        value=sa.Json(Total),
        key=customer_key,
        transactional_id_prefix=settings.prefix,
    )


def flow_of(settings: Settings, totals_by: type[Totals] = Totals) -> sa.Dataflow:
    flow = sa.Dataflow(FLOW)
    width = settings.source_parallelism
    streams = [
        flow.source(f"orders-{number}", source_of(settings, name), parallelism=width)
        for number, name in enumerate(settings.sources)
    ]
    if settings.letters:
        letters = streams[0].union(*streams[1:]).side_output(LETTERS)
        letters.sink("letters", FileSink(settings.letters, value=sa.Json()))
    orders_braked = settings.brake == "orders"
    steps = len(streams)
    streams = [stream.map(paced(settings, steps, width, braked=orders_braked), parallelism=width) for stream in streams]
    orders = streams[0].union(*streams[1:])
    lines: Any = orders.flat_map(halves if settings.flat else whole, parallelism=width)
    if settings.called:
        lines = lines.map_async("looked-up", look_up, capacity=500, parallelism=width)
    if settings.rebalanced:
        lines = lines.rebalance().map(lambda line: line, parallelism=settings.parallelism)
    operator = WaitingTotals if settings.waiting else totals_by
    totals: Any = lines.key_by(lambda line: line.customer).process("totals", operator)
    totals = totals.map(paced(settings, 1, settings.parallelism, braked=not orders_braked))
    if settings.exchanged:
        totals = totals.key_by(lambda total: total.customer)
    totals.sink("out", sink_of(settings))
    return flow


def config_of(settings: Settings) -> sa.Config:
    restart = sa.Restart.fixed(dt.timedelta(seconds=1), settings.restarts) if settings.restarts else sa.Restart.none()
    return sa.Config(
        parallelism=settings.parallelism,
        mailbox_capacity=settings.mailbox_capacity,
        state_backend=backend_of(settings),
        checkpoints=checkpoints_of(settings),
        restart=restart,
    )


def backend_of(settings: Settings) -> sa.Heap | sa.RocksDB:
    if settings.backend == "rocksdb":
        return sa.RocksDB(folder=settings.local, memory=MEMORY, cache=CACHE)
    return sa.Heap(incremental=settings.backend == "incremental heap", full_every=FULL_EVERY)


def checkpoints_of(settings: Settings) -> sa.Checkpoints:
    patience = settings.alignment_timeout_ms
    return sa.Checkpoints(
        settings.storage,
        interval=dt.timedelta(milliseconds=settings.interval_ms),
        alignment=settings.alignment,
        alignment_timeout=None if patience is None else dt.timedelta(milliseconds=patience),
    )


if __name__ == "__main__":
    given = msgspec.json.decode(sys.argv[1], type=Settings)
    sa.main(flow_of(given), config_of(given))
