"""The flow: orders from a growing log → running totals per customer → files, each total in them exactly once.

Everything lies in one folder (`ORDERS_FOLDER`, else `var/orders`):

    events/         the log: one order per line, as JSON
    totals/         the output; files that are still being written are hidden
    checkpoints/    what a new process goes on from
"""

import datetime as dt
import os
from pathlib import Path

import msgspec

import streamactors as sa
from connectors.files import FileSink, FileSource

FOLDER = Path(os.environ.get("ORDERS_FOLDER", "var/orders"))


# gc=False: the garbage collector need not look at millions of values that refer to nothing.
class Order(msgspec.Struct, gc=False):
    id: int
    customer: str
    cents: int  # whole numbers, so that sums are exact


class Total(msgspec.Struct, gc=False):
    """What a customer has ordered up to and including `order`."""

    order: int
    customer: str
    cents: int


class RunningTotal(sa.KeyedOperator[str, Order, Total]):
    total = sa.ValueState(int, default=0)  # one for each customer, kept by the runtime and part of every checkpoint

    def process(self, order: Order, ctx: sa.Context[str, Total]) -> None:
        total = self.total.get() + order.cents
        self.total.set(total)
        ctx.emit(Total(order.id, ctx.key, total))


def orders_flow(folder: Path, *, follow: bool) -> sa.Dataflow:
    """`follow`: wait for more orders at the end of the log, rather than finish there."""
    flow = sa.Dataflow("orders")
    (
        flow.source("orders", FileSource(str(folder / "events"), value=sa.Json(Order), follow=follow))
        .key_by(lambda order: order.customer)
        .process("totals", RunningTotal)
        .sink("out", FileSink(str(folder / "totals"), value=sa.Json(Total)))
    )
    return flow


def flow() -> sa.Dataflow:
    """What `streamactors run` runs: until it is stopped."""
    return orders_flow(FOLDER, follow=True)


def bounded() -> sa.Dataflow:
    """Up to the end of the log. It goes on from the checkpoints of `flow`: the same operators, the same state."""
    return orders_flow(FOLDER, follow=False)


config = sa.Config(
    checkpoints=sa.Checkpoints((FOLDER.absolute() / "checkpoints").as_uri(), interval=dt.timedelta(seconds=1)),
)
