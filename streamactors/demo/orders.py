"""The flow: orders from a growing log → running totals per customer → files, each total in them exactly once.

Everything lies in one folder (`ORDERS_FOLDER`, else `var/orders`):

    events/         the log: one order per line, as JSON
    totals/         the output; files that are still being written are hidden
    minutes/ hours/ what was ordered in each, where they are asked for
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
    at: int = 0  # milliseconds since the epoch


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


class Counted(msgspec.Struct, gc=False):
    """What was ordered in the minute or the hour that begins at `start`, in milliseconds since the epoch."""

    start: int
    orders: int
    cents: int


def orders_flow(folder: Path, *, follow: bool, counts: bool = False) -> sa.Dataflow:
    """`follow`: wait for more orders at the end of the log, rather than finish there. `counts`: also by time."""
    flow = sa.Dataflow("orders")
    in_order: sa.Watermarks[Order] = sa.Watermarks.monotonic(lambda order: order.at)
    log = FileSource(str(folder / "events"), value=sa.Json(Order), follow=follow)
    orders = flow.source("orders", log, watermarks=in_order if counts else None)
    (
        orders.key_by(lambda order: order.customer)
        .process("totals", RunningTotal)
        .sink("out", FileSink(str(folder / "totals"), value=sa.Json(Total)))
    )
    if counts:
        count_by_time(orders, folder)
    return flow


def count_by_time(orders: sa.Stream[Order], folder: Path) -> None:
    """The counts of minutes, and of these those of hours."""
    each = orders.map(lambda order: Counted(order.at, 1, order.cents))
    minutes = each.window_all("per-minute", sa.Tumbling(dt.timedelta(minutes=1))).reduce(added).map(from_its_start)
    minutes.sink("minutes", FileSink(str(folder / "minutes"), value=sa.Json(Counted)))
    hours = minutes.window_all("per-hour", sa.Tumbling(dt.timedelta(hours=1))).reduce(added).map(from_its_start)
    hours.sink("hours", FileSink(str(folder / "hours"), value=sa.Json(Counted)))


def added(left: Counted, right: Counted) -> Counted:
    return Counted(left.start, left.orders + right.orders, left.cents + right.cents)


def from_its_start(window: sa.Windowed[None, Counted]) -> Counted:
    return Counted(window.start, window.value.orders, window.value.cents)


def flow() -> sa.Dataflow:
    """What `streamactors run` runs: until it is stopped."""
    return orders_flow(FOLDER, follow=True)


def bounded() -> sa.Dataflow:
    """Up to the end of the log. It goes on from the checkpoints of `flow`: the same operators, the same state."""
    return orders_flow(FOLDER, follow=False)


config = sa.Config(
    checkpoints=sa.Checkpoints((FOLDER.absolute() / "checkpoints").as_uri(), interval=dt.timedelta(seconds=1)),
)
