"""The snippets of docs/async.md about map_async, run as they stand there."""

import asyncio
import re
from typing import Any

import msgspec

import streamactors as sa
from connectors.memory import ListSink, ListSource
from tests.programs import ROOT
from tests.runtime.feeds import PATIENCE


class Order(msgspec.Struct, frozen=True):
    customer: str


class Enriched(msgspec.Struct, frozen=True):
    order: Order
    country: str


class Client:
    async def get(self, path: str) -> dict[str, str]:
        await asyncio.sleep(0)
        if path.endswith("unknown"):
            raise OSError("404")
        return {"country": path[-2:]}


class Model:
    def encode(self, texts: list[str]) -> list[list[float]]:
        return [[float(len(text))] for text in texts]


def snippets() -> str:
    text = (ROOT / "docs" / "async.md").read_text()
    later = [text.find(f"\n## {title}\n") for title in ("State around an await", "Record ids", "Limits")]
    text = text[: min(place for place in later if place >= 0)]
    return "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


async def test_the_snippets() -> None:
    flow = sa.Dataflow("shop")
    orders = flow.source("orders", ListSource([Order("a-no"), Order("b-dk")]))
    names: dict[str, Any] = {
        "Order": Order, "Enriched": Enriched, "client": Client(), "model": Model(), "orders": orders,
        "texts": flow.source("texts", ListSource(["a", "bb", "ccc"])),
    }  # fmt: skip
    exec(compile(snippets(), "docs/async.md", "exec"), names)
    sinks = {name: ListSink[Any]() for name in ("enriched", "unknown", "checked", "vectors")}
    for name, sink in sinks.items():
        names[name].sink(f"{name}-out", sink)
    async with asyncio.timeout(PATIENCE):
        await sa.run(flow)
    assert [one.country for one in sinks["enriched"].values] == ["no", "dk"]
    assert sinks["checked"].values == sinks["enriched"].values and not sinks["unknown"].values
    assert sinks["vectors"].values == [[1.0], [2.0], [3.0]]
