"""The snippets of docs/patterns.md, run as they stand there."""

import asyncio
import datetime as dt
import re
from types import SimpleNamespace
from typing import Any

import streamactors as sa
from connectors.memory import ListSink, ListSource
from tests.programs import ROOT
from tests.runtime.feeds import PATIENCE

PAGE = (ROOT / "docs" / "patterns.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


async def run(snippet: str, stream: str, result: str, values: list[Any]) -> list[Any]:
    flow, sink = sa.Dataflow("page"), ListSink[Any]()
    time: sa.Watermarks[Any] = sa.Watermarks.monotonic(lambda event: event.time)
    source = flow.source("in", ListSource(values), watermarks=time, parallelism=1)
    names: dict[str, Any] = {"sa": sa, "dt": dt, stream: source}
    exec(snippet, names)
    names[result].sink("out", sink)
    async with asyncio.timeout(PATIENCE):
        await sa.run(flow)
    return sink.values


async def test_the_first_one() -> None:
    charges = [(100, 1), (150, 2), (50_000, 3), (50_000, 700_000)]
    values = [SimpleNamespace(card="x", cents=cents, time=time) for cents, time in charges]
    assert await run(SNIPPETS[0], "transactions", "alerts", values) == [("x", 50_000)]


async def test_what_times_out() -> None:
    rows = [("1", "order", 1), ("2", "order", 2), ("1", "payment", 3_600_000), ("2", "payment", 3_600_002)]
    values = [SimpleNamespace(order=order, kind=kind, time=time) for order, kind, time in rows]
    assert await run(SNIPPETS[1], "events", "reminders", values) == ["2"]


async def test_what_fails() -> None:
    charges: list[tuple[int | None, int]] = [(100, 1), (None, 2), (150, 3)]
    values = [SimpleNamespace(card="x", cents=cents, time=time) for cents, time in charges]
    snippet = SNIPPETS[0].partition("found =")[0] + SNIPPETS[2]
    [error] = await run(snippet, "transactions", "broken", values)
    assert error.startswith("TypeError: '<' not supported")


def test_every_snippet_is_run() -> None:
    assert len(SNIPPETS) == 3
