"""The snippets of docs/queue.md, run as they stand there."""

import asyncio
import datetime as dt
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from connectors.queue import QueueFull, QueueSource
from streamactors.config import Checkpoints
from tests.programs import ROOT

PAGE = (ROOT / "docs" / "queue.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@dataclass
class Order:
    customer: str
    cents: int


class RunningTotal(sa.KeyedOperator[str, Order, None]):
    cents = sa.ValueState(int, default=0)

    def process(self, order: Order, ctx: sa.Context[str, None]) -> None:
        self.cents.set(self.cents.get() + order.cents)


@pytest.fixture
def page(tmp_path: Path) -> dict[str, Any]:
    """The names that it defines."""
    names: dict[str, Any] = {
        **{each.__name__: each for each in (Order, RunningTotal, QueueSource, QueueFull)},
        "sa": sa,
        "dt": dt,
        "folder": tmp_path,
    }
    for snippet in SNIPPETS:
        exec(snippet, names)
    return names


async def test_the_service_puts(page: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    await page["serve"]()
    (printed,) = re.findall(r"print\(position\)  # (.*)", PAGE)
    assert capsys.readouterr().out == f"{printed}\n"


async def test_a_full_queue_is_refused(page: dict[str, Any]) -> None:
    async with page["orders"] as orders:
        assert await page["put_or_refuse"](Order("alice", 1)) == 202
        assert orders.pending == 1
    page["orders"] = QueueSource(f"{page['folder']}/small", value=sa.Json(Order), max_pending=1)
    async with page["orders"]:
        assert await page["put_or_refuse"](Order("alice", 1)) == 202
        assert await page["put_or_refuse"](Order("alice", 2)) == 503


async def test_the_wide_job_reads_all_partitions(page: dict[str, Any]) -> None:
    queue = page["by_customer"]
    async with queue:
        await asyncio.gather(*(queue.put(Order(f"customer {number}", 1)) for number in range(20)))
        queue.end()
        await sa.run(page["wide"])
        assert queue.pending == 0


def test_the_defaults_are_those_that_it_names() -> None:
    defaults = QueueSource.__init__.__kwdefaults__
    assert defaults is not None
    assert f"`max_pending` records ({defaults['max_pending']:,} unless told)" in PAGE
    assert (defaults["max_pending_bytes"], defaults["segment_bytes"]) == (2**30, 16 * 2**20)
    assert "`max_pending_bytes` (1 GB)" in PAGE and "`segment_bytes`, 16 MB" in PAGE
    retain = Checkpoints("file:///x", interval=dt.timedelta(seconds=1)).retain
    assert f"sa.Checkpoints(…, retain={retain})" in PAGE
