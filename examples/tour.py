"""Read this first: one record's journey through streamactors, with a crash on the way.

Run it with `python -m examples.tour`. It builds a flow, prints both of its graphs, runs it, takes a checkpoint,
crashes, restores, and counts the results. docs/architecture.md walks the same way through the code.
"""

import asyncio
import datetime as dt
import logging
import sys
import tempfile
from dataclasses import dataclass, field

import streamactors as sa
from connectors.memory import CRASH, ListSink, ListSource

ORDERS = 20_000
CRASH_AT = 15_000
WATCHED = 10_000
"""The number of the order that we follow. It comes after the checkpoint and before the crash: so it travels twice."""
CUSTOMERS = ("alice", "bob", "carol", "dave", "erin", "frank", "grace")


@dataclass(frozen=True)
class Order:
    number: int
    customer: str
    cents: int


@dataclass(frozen=True)
class Total:
    customer: str
    cents: int
    order: int
    """The order that made the total what it is."""


# 1. What happens to a record is an operator: a class of which every subtask (every actor) has an instance of its own.
class RunningTotal(sa.KeyedOperator[str, Order, Total]):
    # State is declared once. The runtime binds it to the key of the record in process; it is in every checkpoint.
    total = sa.ValueState(int, default=0)

    def open(self, ctx: sa.OperatorContext) -> None:
        self.name = f"{ctx.uid}[{ctx.subtask}]"

    def process(self, order: Order, ctx: sa.Context[str, Total]) -> None:
        self.total.set(self.total.get() + order.cents)
        if order.number == WATCHED:
            print(f"   order {order.number} of {ctx.key} is in subtask {self.name}: total {self.total.get()}")
        ctx.emit(Total(ctx.key, self.total.get(), order.number))


class Cashier:
    """Checks every order by a call to somebody else's service: slow until the first checkpoint, so that we see it
    happen in the middle of the stream."""

    def __init__(self) -> None:
        self.checkpointed = asyncio.Event()

    async def check(self, order: Order) -> Order:
        if not self.checkpointed.is_set():
            await asyncio.sleep(0.001)
        return order


@dataclass
class Tour:
    """What the tour has seen, for its test."""

    results: list[Total]
    restarts: int = 0
    checkpoints: list[int] = field(default_factory=list)


def orders() -> list[Order]:
    return [Order(number, CUSTOMERS[number % 7], number % 100) for number in range(ORDERS)]


def plain_totals() -> list[Total]:
    """The same in a plain loop: what the job has to come to."""
    totals = dict.fromkeys(CUSTOMERS, 0)
    results = []
    for order in orders():
        totals[order.customer] += order.cents
        results.append(Total(order.customer, totals[order.customer], order.number))
    return results


def build(cashier: Cashier, sink: ListSink[Total]) -> sa.Dataflow:
    # 2. A flow is a description, and nothing runs yet. The source begins again from any position; CRASH fails it once.
    values = [*orders()[:CRASH_AT], CRASH, *orders()[CRASH_AT:]]
    flow = sa.Dataflow("tour")
    (
        flow.source("orders", ListSource(values), parallelism=1)
        .map(cashier.check, name="check", parallelism=1)  # chained: in the source's actor, no mailbox between them
        .key_by(lambda order: order.customer)  # a key always goes to the same subtask, through its mailbox
        .process("totals", RunningTotal)
        .sink("results", sink)  # chained to totals; commits when a checkpoint is complete
    )
    return flow


async def tour(folder: str) -> Tour:
    cashier, sink = Cashier(), ListSink[Total]()
    flow = build(cashier, sink)
    config = sa.Config(
        parallelism=2,
        checkpoints=sa.Checkpoints(f"file://{folder}", interval=dt.timedelta(hours=1)),  # only those that we ask for
        restart=sa.Restart.fixed(dt.timedelta(milliseconds=50), attempts=1),
    )

    # 3. The logical graph is what you wrote; the physical plan is what runs: chains, subtasks, channels, key groups.
    print(flow.explain(config))
    print(flow.to_mermaid())

    async with sa.start(flow, config) as job:
        seen = Tour(sink.values)
        # 4. A checkpoint: a barrier enters at the source and travels with the records; every actor that it reaches
        #    puts its state aside and hands it on. It is complete when all have said so and the manifest is written.
        info = await job.checkpoint()
        seen.checkpoints.append(info.id)
        print(f"-- checkpoint {info.id} is complete: {info.state_bytes} bytes of state in {info.uri}")
        print("   the results ahead of its barrier are committed: the sink shows them from now on")

        # 5. On at full speed, into the crash. The job restores the checkpoint by itself: the totals are what they were
        #    then, the source begins again at its position, and results that were not committed are made again.
        print("-- and on, into the crash")
        cashier.checkpointed.set()
        await job.wait()

        # 6. The end of the data. A last checkpoint has committed all that there was.
        seen.restarts = job.metrics()["restarts"]
        print(f"-- the job is {job.status}, after {seen.restarts} restart")
    return seen


class OneLine(logging.Formatter):
    """The log as the tour shows it: without tracebacks, since the crash is meant."""

    def format(self, record: logging.LogRecord) -> str:
        return f"   log: {record.getMessage()}"


def verdict(results: list[Total]) -> str:
    expected, found = set(plain_totals()), set(results)
    lost, doubled, wrong = len(expected - found), len(results) - len(found), len(found - expected)
    return f"{len(expected)} expected · {len(results)} found · {lost} lost · {doubled} doubled · {wrong} wrong"


def main() -> int:
    log = logging.StreamHandler(sys.stdout)
    log.setFormatter(OneLine())
    logging.basicConfig(level=logging.INFO, handlers=[log])
    with tempfile.TemporaryDirectory() as folder:
        seen = asyncio.run(tour(folder))
    print(verdict(seen.results))
    return 0 if sorted(seen.results, key=lambda total: total.order) == plain_totals() else 1


if __name__ == "__main__":
    raise SystemExit(main())
