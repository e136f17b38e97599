"""The snippets of docs/async.md about record ids, rate limits and circuit breakers, run as they stand there."""

import asyncio
import datetime as dt
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

import streamactors as sa
from connectors.memory import ListSink, ListSource
from streamactors.operators.record_ids import uses_record_id
from tests.programs import ROOT
from tests.runtime.feeds import PATIENCE

ORDERS = 30


class Order(msgspec.Struct, frozen=True):
    id: int
    cents: int


class Charged(msgspec.Struct, frozen=True):
    id: int
    receipt: str


def page(**given: Any) -> dict[str, Any]:
    """The snippets from "Record ids" on, in their order; the names that they leave."""
    text = (ROOT / "docs" / "async.md").read_text()
    start = text.index("\n## Record ids\n")
    end = text.find("\n## ", text.index("\n## Rate limits and circuit breakers\n") + 1)
    names: dict[str, Any] = {
        "sa": sa,
        "dt": dt,
        "Any": Any,
        "Callable": Callable,
        "Awaitable": Awaitable,
        "Order": Order,
        "Charged": Charged,
        "orders_source": ListSource([Order(number, 100) for number in range(ORDERS)]),
        "charged": ListSink[Charged](),
        **given,
    }
    section = text[start : end if end > 0 else len(text)]
    for snippet in re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL):
        exec(snippet, names)
    return names


class Client:
    """Of a service that fails every third call."""

    def __init__(self) -> None:
        self.calls = 0
        self.charges: Counter[str] = Counter()

    async def post(self, path: str, cents: int, *, headers: dict[str, str]) -> str:
        self.calls += 1
        self.charges[headers["Idempotency-Key"]] += 1
        if self.calls % 3 == 0:
            raise OSError("connection reset")
        return f"{path}:{cents}"


async def test_a_call_that_is_made_again_has_its_name() -> None:
    names, client = page(), Client()
    flow, sink = sa.Dataflow("shop"), ListSink[Charged]()
    charge = names["Charge"](client)
    retry = sa.Retry(20, initial=dt.timedelta(milliseconds=1))
    flow.source("orders", names["orders_source"]).map_async("charge", charge, retry=retry).sink("out", sink)
    async with asyncio.timeout(PATIENCE):
        await sa.run(flow)
    assert [each.id for each in sink.values] == list(range(ORDERS))
    assert len(client.charges) == ORDERS < client.calls
    assert max(client.charges.values()) > 1
    assert all(name.startswith("shop/orders/") for name in client.charges)


async def test_an_open_breaker_keeps_the_records_waiting() -> None:
    """The service is down for the first calls: the breaker opens, few more get through, and no record is lost."""
    made: list[float] = []

    async def get(name: str) -> str:
        made.append(time.monotonic())
        if len(made) <= 8:
            raise OSError("down")
        return name

    names = page()
    names["patient"] = sa.Retry(1_000, initial=dt.timedelta(milliseconds=50), maximum=dt.timedelta(milliseconds=200))
    async with asyncio.timeout(PATIENCE):
        await sa.run(names["build"](get))
    assert sorted(each.id for each in names["charged"].values) == list(range(ORDERS))
    assert len(made) < 2 * ORDERS  # while it was open, calls were not made


async def test_the_limit_holds() -> None:
    made: list[float] = []

    async def get(name: str) -> str:
        made.append(time.monotonic())
        return name

    names = page(orders_source=ListSource([Order(number, 1) for number in range(300)]))
    async with asyncio.timeout(PATIENCE):
        await sa.run(names["build"](get))
    assert len(names["charged"].values) == 300
    assert made[-1] - made[0] > 0.4  # 200 at once, then 200 a second


def test_what_is_decorated_is_seen_through() -> None:
    async def get(name: str) -> str:
        return name

    assert uses_record_id(page()["limited"](get))
