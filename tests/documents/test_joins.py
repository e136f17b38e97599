"""The snippets of docs/joins.md, run as they stand there."""

import asyncio
import datetime as dt
import re
from typing import Any

import msgspec
import pytest

import streamactors as sa
from connectors.memory import ListSink, ListSource
from tests.programs import ROOT
from tests.runtime.feeds import PATIENCE, Feed

SECOND = 1000


class Order(msgspec.Struct, frozen=True):
    id: str
    customer: str
    country: str
    currency: str
    amount: float
    at: int


class Payment(msgspec.Struct, frozen=True):
    order: str
    at: int


class Rate(msgspec.Struct, frozen=True):
    currency: str
    euros: float
    at: int


class Country(msgspec.Struct, frozen=True):
    code: str
    tax: float


A = Order("a", "ann", "ch", "CHF", 10.0, 10 * SECOND)
B = Order("b", "bob", "ch", "CHF", 30.0, 20 * SECOND)
C = Order("c", "ann", "ch", "USD", 20.0, 30 * SECOND)
A2 = Order("a", "ann", "de", "CHF", 40.0, 70 * SECOND)
LATE = Order("late", "eve", "de", "CHF", 1.0, 1 * SECOND)
PAID_A, PAID_B = Payment("a", 65 * SECOND), Payment("b", 90 * SECOND)
RATES = [Rate("CHF", 1.0, 5 * SECOND), Rate("CHF", 2.0, 60 * SECOND)]

EXPECTED: dict[str, list[Any]] = {
    "paid": [(A, PAID_A)],
    "unpaid": [A2, B, C],
    "same_minute": [(A2, PAID_A)],
    "in_euros": [("a", 10.0), ("a", 80.0), ("b", 30.0), ("c", None)],
    "priced": [("a", 10.0), ("a", 40.0), ("b", 30.0), ("c", 20.0)],
    "once": [A, B, C],
    "customers": [A, A2, B],
    "newest": [A, A2, B, C],
    "largest": [[A], [A2], [B, A], [B, C]],
}


def page(orders: Any) -> dict[str, Any]:
    """All snippets, run in their order; the names that they leave."""
    text = (ROOT / "docs" / "joins.md").read_text()
    names: dict[str, Any] = {
        "sa": sa,
        "dt": dt,
        "Order": Order,
        "Country": Country,
        "orders_source": orders,
        "payments_source": ListSource([PAID_A, PAID_B]),
        "rates_source": ListSource(RATES),
        "countries_source": ListSource[Country]([]),
    }
    for snippet in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(snippet, names)
    return names


@pytest.mark.parametrize("backend", ["heap", "rocksdb"])
async def test_each_gives_what_the_page_says(backend: Any) -> None:
    orders = Feed()
    orders.put(A, B, C, A2)
    orders.end()
    names = page(orders)
    sinks = {name: ListSink[Any]() for name in EXPECTED}
    for name, sink in sinks.items():
        names[name].sink(f"out-{name}", sink, parallelism=1)
    async with asyncio.timeout(PATIENCE):
        await sa.run(names["flow"], sa.Config(parallelism=2, state_backend=backend))
    assert {name: sorted(sink.values, key=repr) for name, sink in sinks.items()} == {
        name: sorted(values, key=repr) for name, values in EXPECTED.items()
    }


async def test_late_rows_come_out_by_their_tag() -> None:
    orders = Feed(chunk=1)
    orders.put(A, A2, LATE)
    orders.end()
    names = page(orders)
    sink = ListSink[Any]()
    late_orders = names["orders"].interval_join(
        "with-itself", names["orders"], dt.timedelta(0), dt.timedelta(0), late=names["late"]
    )
    late_orders.side_output(names["late"]).sink("late", sink)
    async with asyncio.timeout(PATIENCE):
        await sa.run(names["flow"], sa.Config())
    assert sink.values == [LATE, LATE]
