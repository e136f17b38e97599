"""The snippet of docs/async.md about state around an await, run as it stands there."""

import asyncio
import re
from typing import Any

import msgspec

import streamactors as sa
from connectors.memory import ListSink, ListSource
from tests.programs import ROOT
from tests.runtime.feeds import PATIENCE


class Payment(msgspec.Struct, frozen=True):
    customer: str
    place: str
    amount: float
    time: int


class Scored(msgspec.Struct, frozen=True):
    customer: str
    spent: float
    risk: float


class Client:
    def __init__(self) -> None:
        self.asked: list[str] = []

    async def get(self, path: str) -> dict[str, float]:
        self.asked.append(path)
        await asyncio.sleep(0)
        return {"risk": 1.0 if path.endswith("new=True") else 0.0}


def snippet() -> str:
    text = (ROOT / "docs" / "async.md").read_text()
    section = text[text.index("\n## State around an await\n") : text.index("\n## Record ids\n")]
    [found] = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return str(found)


async def test_the_snippet() -> None:
    flow, sink, client = sa.Dataflow("bank"), ListSink[Any](), Client()
    payments = [Payment("ann", "oslo", 5, 1), Payment("bob", "rome", 7, 2), Payment("ann", "oslo", 6, 3)]
    watermarks: sa.Watermarks[Payment] = sa.Watermarks.monotonic(lambda payment: payment.time)
    names: dict[str, Any] = {
        "sa": sa, "Payment": Payment, "Scored": Scored, "client": client,
        "payments": flow.source("payments", ListSource(payments), watermarks=watermarks),
    }  # fmt: skip
    exec(compile(snippet(), "docs/async.md", "exec"), names)
    names["scored"].sink("out", sink)
    async with asyncio.timeout(PATIENCE):
        await sa.run(flow)
    assert sorted(sink.values, key=lambda one: (one.customer, one.spent)) == [
        Scored("ann", 5, 1.0),
        Scored("ann", 11, 0.0),
        Scored("bob", 7, 1.0),
    ]
    assert sorted(path for path in client.asked if "quiet" in path) == ["/quiet/ann", "/quiet/ann", "/quiet/bob"]
