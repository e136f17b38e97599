"""A job that counts orders per customer, as a script: what it defines is the script's own."""

import datetime as dt
import os
from pathlib import Path

import msgspec

import streamactors as sa
from connectors.files import FileSink, FileSource


class Order(msgspec.Struct):
    customer: str


class Total(msgspec.Struct):
    customer: str
    orders: int


class Totals(sa.KeyedOperator[str, Order, Total]):
    orders = sa.ValueState(int, default=0)

    def open(self, ctx: sa.OperatorContext) -> None:
        ctx.log.info("ready for orders")

    def process(self, order: Order, ctx: sa.Context[str, Total]) -> None:
        self.orders.set(self.orders.get() + 1)
        ctx.emit(Total(ctx.key, self.orders.get()))


def build(folder: Path) -> sa.Dataflow:
    flow = sa.Dataflow("shop")
    (
        flow.source("orders", FileSource(str(folder / "orders.jsonl"), value=sa.Json(Order), follow=True))
        .key_by(lambda order: order.customer)
        .process("totals", Totals, parallelism=3)
        .map(lambda total: total)
        .sink("out", FileSink(str(folder / "totals"), value=sa.Json(Total)))
    )
    return flow


def checkpoints(folder: Path, alignment: str) -> sa.Checkpoints:
    seconds = dt.timedelta(seconds=0.3)
    storage = (folder / "checkpoints").as_uri()
    if alignment == "unaligned":
        return sa.Checkpoints(storage, interval=seconds, alignment="unaligned")
    return sa.Checkpoints(storage, interval=seconds)


def flow() -> sa.Dataflow:
    """For `streamactors run shop:flow`."""
    return build(Path(os.environ["SHOP"]))


if __name__ == "__main__":
    shop = Path(os.environ["SHOP"])  # not above: workers, which read the script too, are no children of this process
    sa.main(
        build(shop),
        sa.Config(
            checkpoints=checkpoints(shop, os.environ.get("ALIGNMENT", "aligned")),
            restart=sa.Restart.fixed(dt.timedelta(0), 100),
            deployment=sa.Ray(workers=2, address=os.environ["CLUSTER"]),
        ),
    )
