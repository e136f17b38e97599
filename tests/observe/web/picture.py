"""The picture in docs/dashboard.md, of the demo's flow. To draw it anew:

python -m tests.observe.web.picture docs/images/dashboard.png
"""

import asyncio
import datetime as dt
import itertools
import math
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from playwright.async_api import Browser, expect

import streamactors as sa
from streamactors.clock import SYSTEM
from streamactors.demo.event_log import append, made_up_orders
from streamactors.demo.orders import orders_flow
from streamactors.service import served
from tests.observe.web.browser import PATIENCE_MS, launched, opened

SIZE = {"width": 1200, "height": 970}
READINGS = 6


@asynccontextmanager
async def ordering(folder: Path) -> AsyncIterator[sa.JobHandle]:
    """The flow of the demo, and nothing in its log yet."""
    (folder / "events").mkdir(parents=True)
    checkpoints = sa.Checkpoints(str(folder / "stored"), interval=dt.timedelta(hours=1))
    config = sa.Config(parallelism=2, checkpoints=checkpoints)
    async with sa.start(orders_flow(folder, follow=True, counts=True), config, on_exit="cancel") as job:
        yield job


async def draw(browser: Browser, folder: Path, picture: Path) -> None:
    async with (
        ordering(folder) as job,
        served(job, "127.0.0.1:0") as where,
        opened(browser, where.url, viewport=SIZE) as page,
        asyncio.TaskGroup() as group,
    ):
        orders = group.create_task(order(folder / "events" / "orders.jsonl"))
        line = page.locator("#operators tr[data-uid=orders] polyline")
        for reading in range(READINGS):
            before = await line.get_attribute("points")
            await expect(line).not_to_have_attribute("points", before or "")
            await (job.checkpoint() if reading != READINGS // 2 else job.savepoint(str(folder / "saved")))
        await expect(page.locator("#timeline .savepoint")).to_have_count(1)
        await expect(page.locator("#operators tr[data-uid=totals] td:nth-child(8)")).to_contain_text("KiB")
        await page.screenshot(path=picture)
        orders.cancel()


async def order(log: Path) -> None:
    """Now more, now less."""
    orders = made_up_orders(10**9, first=SYSTEM.time_ms() - 2000, apart=0.4)
    for turn in itertools.count():
        append(log, orders, int(250 + 150 * math.sin(turn / 4)))
        await asyncio.sleep(0.1)


async def main(picture: str) -> None:
    expect.set_options(timeout=PATIENCE_MS)
    with tempfile.TemporaryDirectory() as folder:
        async with launched() as browser:
            await draw(browser, Path(folder), Path(picture))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
