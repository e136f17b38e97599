"""The web dashboard in a real Chromium, of real jobs at a real address."""

import asyncio
import datetime as dt
import re
import struct
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Error, Page, expect

import streamactors as sa
from connectors.memory import ListSink
from streamactors.clock import SYSTEM
from streamactors.observe.control import SteeredJob
from streamactors.observe.guard import Access
from streamactors.observe.network import Address, bound, url_of
from streamactors.observe.rest import job_app
from streamactors.observe.server import serve
from streamactors.observe.steering import entry_of
from streamactors.service import served
from tests.observe.jobs import config, flow_of, running, taken
from tests.observe.web import picture
from tests.observe.web.browser import PATIENCE_MS, launched, opened
from tests.ports import free_port
from tests.programs import ROOT
from tests.runtime.feeds import Feed, Gate, until

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]
expect.set_options(timeout=PATIENCE_MS)

TOKEN = "a-token-of-the-tests"
Alignment = Literal["aligned", "unaligned"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with launched() as browser:
        yield browser


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def executor() -> AsyncIterator[None]:
    """A test's own: the loop outlives it, and threads may not."""
    with ThreadPoolExecutor() as threads:
        asyncio.get_running_loop().set_default_executor(threads)
        yield


def script(name: str) -> str:
    """A function to run in the page."""
    return (Path(__file__).parent / "in_page" / f"{name}.js").read_text()


async def confirm(page: Page, action: str, **fields: str) -> None:
    await page.locator(f"[data-action={action}]").click()
    for name, value in fields.items():
        await page.locator(f"#confirm [name={name}]").fill(value)
    await page.locator("#confirm-yes").click()


def box(page: Page, uid: str) -> Any:
    return page.locator(f'#graph [data-vertex="{uid}"]')


def cell(page: Page, uid: str, column: int) -> Any:
    return page.locator(f'#operators tr[data-uid="{uid}"] td:nth-child({column})')


# --------------------------------------------------------------------------------------------------------------- seeing
async def test_the_graph_appears_and_numbers_move(browser: Browser, tmp_path: Path) -> None:
    feed = Feed(2)
    async with running(tmp_path, feed) as (job, api), opened(browser, api.where.url) as page:
        await expect(box(page, "numbers")).to_contain_text("\u00d72")
        await expect(box(page, "sum")).to_contain_text("map-2: same")
        await expect(page.locator("#graph path.edge")).to_have_count(1)
        await expect(page.get_by_role("status").first).to_have_text("Connected")
        for total in (40, 100):
            feed.put(*range(total - len(feed.values[0])))
            await taken(job, total)
            await expect(cell(page, "sum", 3)).to_have_text(str(total))
        await expect(cell(page, "sum", 7)).to_have_text("2")
        await expect(cell(page, "numbers", 5)).to_contain_text("days")
        await expect(cell(page, "sum", 2).locator("polyline")).to_have_attribute("points", re.compile(r"\d+.* \d+"))
        await expect(box(page, "sum")).to_have_attribute("aria-label", re.compile(r"^sum, 2 subtasks, busy \d+ %"))
        await job.rescale(parallelism={"sum": 3})
        await expect(box(page, "sum")).to_contain_text("\u00d73")
        await expect(box(page, "numbers")).to_contain_text("\u00d72")
        feed.put(*range(10))
        await expect(cell(page, "sum", 3)).to_have_text("10")


async def test_updates_are_few(browser: Browser, tmp_path: Path) -> None:
    """What is drawn goes with the operators and not with their subtasks, and not oftener than twice a second."""
    flow, feed = sa.Dataflow("sums"), Feed(1)
    numbers = flow.source("numbers", feed).key_by(lambda value: value % 100)
    numbers.process("sum", Count, parallelism=250).sink("out", ListSink(), parallelism=250)
    async with (
        sa.start(flow, sa.Config(max_parallelism=256, parallelism=1), on_exit="cancel") as job,
        served(job, "127.0.0.1:0") as where,
        opened(browser, where.url) as page,
    ):
        await expect(box(page, "sum")).to_contain_text("\u00d7250")
        feed.put(*range(1000))
        await expect(cell(page, "sum", 3)).to_have_text("1,000")
        assert await page.evaluate("document.querySelectorAll('*').length") < 400
        apart = await page.evaluate(script("drawn_apart"))
        assert sum(apart) > 1000, apart  # of 2500: what stood still for a moment draws late, and others seem early
        await box(page, "sum").click()
        await expect(page.locator("#mailbox-index option")).to_have_count(250)
        await expect(page.locator("#mailbox li")).to_have_count(1)


class Count(sa.KeyedOperator[int, int, int]):
    seen = sa.ValueState(int, default=0)

    def process(self, value: int, ctx: sa.Context[int, int]) -> None:
        self.seen.set(self.seen.get() + 1)
        ctx.emit(self.seen.get())


async def test_a_failure_shows_with_its_traceback(browser: Browser, tmp_path: Path) -> None:
    feed = Feed()
    settings = config(tmp_path)
    async with (
        sa.start(flow_of(feed), settings, on_failure=lambda _: None, on_exit="cancel") as job,
        served(job, "127.0.0.1:0") as where,
        opened(browser, where.url) as page,
    ):
        await expect(page.locator("#exceptions-news")).to_have_text("None.")
        feed.put(1)
        await taken(job, 1)
        feed.fail(OSError("<b>the disk</b> is gone"))
        await expect(page.locator("#exceptions-news")).to_contain_text("OSError: <b>the disk</b> is gone (restarts: 1)")
        await page.locator("#exceptions summary").click()
        await expect(page.locator("#exceptions pre")).to_contain_text("Traceback (most recent call last)")
        await expect(page.locator("#exceptions pre")).to_contain_text("raise error")
        assert await page.locator("#exceptions b").count() == 0
        await expect(page.locator("#facts")).to_contain_text("running")


async def test_names_are_text(browser: Browser, tmp_path: Path) -> None:
    """Of jobs and operators; no markup comes of them, and nothing runs."""
    evil = "<img src=x onerror=alert(1)>"
    flow, feed = sa.Dataflow("evil"), Feed()
    flow.source("numbers", feed).map(lambda value: value, name=evil).sink("out", ListSink())
    async with (
        sa.start(flow, config(tmp_path), on_exit="cancel") as job,
        served(job, "127.0.0.1:0") as where,
        opened(browser, where.url) as page,
    ):
        dialogs: list[Any] = []
        page.on("dialog", lambda dialog: dialogs.append(dialog))
        await expect(box(page, "numbers")).to_contain_text(evil[:15])
        feed.fail(ValueError(evil))
        await expect(page.locator("#exceptions-news")).to_contain_text(evil)
        assert await page.locator("img").count() == 0 and dialogs == []


# ------------------------------------------------------------------------------------------------------------ mailboxes
@asynccontextmanager
async def stuck(folder: Path, alignment: Alignment) -> AsyncIterator[tuple[sa.JobHandle, str, Gate]]:
    """`count` has two channels; the barrier of one comes at once, that of the other stands behind what is stuck."""
    feeds, gate = [Feed(chunk=16), Feed(chunk=16)], Gate(0, delay=0.005)
    flow = sa.Dataflow("stuck")
    quick, slow = (flow.source(f"numbers-{place}", feed) for place, feed in enumerate(feeds))
    late = slow.rebalance().map(gate, name="gate")
    quick.union(late).key_by(lambda value: value % 7).process("count", Count).sink("out", ListSink())
    checkpoints = sa.Checkpoints(str(folder / "stored"), interval=dt.timedelta(hours=1), alignment=alignment)
    settings = sa.Config(checkpoints=checkpoints, parallelism=1, mailbox_capacity=64)
    feeds[1].put(*range(20_000))
    saved = [str(folder / "saved")]
    async with (
        sa.start(flow, settings, on_exit="cancel") as job,
        served(job, "127.0.0.1:0", token=TOKEN, savepoints=saved) as where,
    ):
        await until(lambda: gate.held and job.metrics()["subtasks"]["numbers-1[0]"]["unsent"])
        yield job, where.url, gate


async def held_up(job: sa.JobHandle, gate: Gate) -> None:
    """Once a barrier is in the mailbox before the gate, nothing moves any more."""
    await until(lambda: job.channels("map-2", 0)[0].barriers)
    gate.delay = 3600.0


async def test_an_aligned_checkpoint_is_seen_to_wait(browser: Browser, tmp_path: Path) -> None:
    async with stuck(tmp_path, "aligned") as (job, url, gate), opened(browser, url) as page:
        await box(page, "count").focus()
        await page.keyboard.press("Enter")
        await expect(page.locator("#mailbox li")).to_have_count(2)
        await expect(page.locator("#mailbox li.blocked")).to_have_count(0)
        await confirm(page, "checkpoint", token=TOKEN)
        await held_up(job, gate)
        held = page.locator("#mailbox li.blocked")
        await expect(held).to_contain_text("numbers-0[0]")
        await expect(held).to_contain_text("held back until the other barriers come")
        await expect(page.locator("#under-way")).to_contain_text("it waits for")
        await page.locator("#mailbox-vertex").select_option("map-2")
        await expect(page.locator("#mailbox .barrier")).to_have_text(re.compile(r"^barrier 1, behind \d+ records$"))
        await expect(page.locator("#mailbox .mine")).to_have_text(re.compile("^Checkpoint 1, .*: not done here yet$"))
        await page.locator("#mailbox-vertex").select_option("numbers-0")
        await expect(page.locator("#mailbox .mine")).to_have_text(re.compile("done here, not yet by all others$"))
        assert not job.checkpoints


async def test_an_unaligned_checkpoint_is_seen_to_pass_and_a_savepoint_to_stall(
    browser: Browser, tmp_path: Path
) -> None:
    async with stuck(tmp_path, "unaligned") as (job, url, gate), opened(browser, url) as page:
        await box(page, "map-2").click()
        await expect(page.locator("#mailbox meter")).not_to_have_attribute("value", "0")
        await confirm(page, "checkpoint", token=TOKEN)
        await expect(page.locator("#outcome")).to_contain_text("Checkpoint 1 is complete")
        await expect(page.locator("#checkpoints tbody td").last).not_to_have_text("0 B")
        await expect(page.locator("#mailbox .barrier")).to_have_count(0)
        await expect(page.locator("#under-way")).to_have_text("None is under way.")
        await confirm(page, "savepoint", uri="waits")  # which is aligned in any case
        await held_up(job, gate)
        await expect(page.locator("#mailbox .barrier")).to_have_text(re.compile(r"^savepoint 2, behind \d+ records$"))
        await expect(page.locator("#mailbox .mine")).to_have_text(re.compile("^Savepoint 2, .*: not done here yet$"))
        await page.locator("#mailbox-vertex").select_option("count")
        await expect(page.locator("#mailbox li.blocked")).to_contain_text("held back until the other barriers come")
        stalled = re.compile(r"^Savepoint 2 is under way for .* and stalled: .* it waits for map-2\[0\]")
        await expect(page.locator("#under-way.stalled")).to_have_text(stalled)
        assert len(job.checkpoints) == 1


# ------------------------------------------------------------------------------------------------------------- steering
async def test_a_savepoint_is_taken(browser: Browser, tmp_path: Path) -> None:
    """After it was confirmed, with a token that is nowhere but in this tab's storage."""
    async with running(tmp_path, feed := Feed()) as (job, api), opened(browser, api.where.url) as page:
        feed.put(*range(10))
        await taken(job, 10)
        await page.locator("[data-action=savepoint]").click()
        await expect(page.get_by_role("dialog")).to_contain_text("Take a savepoint?")
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("dialog")).to_have_count(0)
        await expect(page.locator("[data-action=savepoint]")).to_be_focused()
        await confirm(page, "savepoint", uri="from-the-page", token=api.where.token)
        await expect(page.locator("#outcome")).to_have_text(
            re.compile(r"Savepoint 1 is complete: .*/saved/from-the-page")
        )
        assert (tmp_path / "saved" / "from-the-page").is_dir() and job.checkpoints[0].id == 1
        await expect(cell(page, "sum", 8)).to_contain_text("B")
        await expect(cell(page, "sum", 10)).to_have_text(re.compile(r"^\d+\.\d\d$"))
        bars = cell(page, "sum", 10).locator("svg")
        await expect(bars).to_have_attribute(
            "aria-label", re.compile(r"^128 key groups, the largest holds \d+\.\d+ times")
        )
        assert (await bars.locator("path").get_attribute("d") or "").count("M") == 2
        await expect(cell(page, "out", 10).locator("svg")).to_be_hidden()
        await confirm(page, "checkpoint")
        await expect(page.locator("#outcome")).to_have_text(re.compile(r"Checkpoint \d is complete"))
        await page.get_by_role("button", name=re.compile("Details of checkpoint")).first.click()
        await expect(page.locator("#checkpoint-detail")).to_contain_text("sum[1]")
        await expect(page.locator("#timeline rect")).to_have_count(3)
        kept = await page.evaluate("[JSON.stringify(localStorage), document.cookie, location.href].join()")
        assert api.where.token not in kept + await page.content()
        assert await page.evaluate("sessionStorage.length") == 1


async def test_a_wrong_token_is_refused_and_forgotten(browser: Browser, tmp_path: Path) -> None:
    async with running(tmp_path, Feed()) as (job, api), opened(browser, api.where.url) as page:
        await expect(box(page, "sum")).to_be_visible()
        await confirm(page, "cancel", token="not-the-token-of-this-job")
        await expect(page.locator("#outcome")).to_contain_text("refused: this needs the header")
        assert await page.evaluate("sessionStorage.length") == 0 and job.status == "running"
        await confirm(page, "cancel", token=api.where.token)
        await expect(page.locator("#outcome")).to_have_text("The job has ended: cancelled.")
        await expect(page.locator("#connection")).to_contain_text("The job has ended: cancelled")


async def test_reading_may_need_the_token(browser: Browser, tmp_path: Path) -> None:
    """As at every address but loopback: the page itself is given, and asks for it."""
    async with (
        sa.start(flow_of(Feed()), config(tmp_path), on_exit="cancel") as job,
        served(job, "0.0.0.0:0", token=TOKEN) as where,
        opened(browser, where.url.replace("0.0.0.0", "127.0.0.1")) as page,
    ):
        await expect(page.get_by_role("dialog", name="Token")).to_be_visible()
        await page.keyboard.press("Escape")
        await page.locator("#token-button").click(force=True)
        await page.locator("#confirm [name=token]").fill(TOKEN)
        await page.locator("#confirm-yes").click()
        await expect(box(page, "sum")).to_be_visible()
        assert TOKEN not in page.url


# --------------------------------------------------------------------------------------------------- who looks, and how
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_can_be_read_on_a_phone(browser: Browser, tmp_path: Path, scheme: str) -> None:
    """No scrolling sideways, and enough contrast."""
    options = {"viewport": {"width": 360, "height": 700}, "color_scheme": scheme}
    feed = Feed()
    async with (
        sa.start(flow_of(feed), config(tmp_path), on_failure=lambda _: None, on_exit="cancel") as job,
        served(job, "127.0.0.1:0") as where,
        opened(browser, where.url, **options) as page,
    ):
        await job.checkpoint()
        feed.fail(OSError("gone-" + "and-gone" * 40))
        await expect(page.locator("#checkpoints tbody tr")).not_to_have_count(0)
        await page.locator("#exceptions summary").click()
        await box(page, "sum").click()
        await expect(page.locator("#mailbox li")).to_have_count(2)
        assert await page.evaluate("document.scrollingElement.scrollWidth") <= 360
        assert await page.evaluate(script("too_faint")) == []
        await page.locator("[data-action=stop]").click()
        assert await page.evaluate("document.scrollingElement.scrollWidth") <= 360
        assert await page.evaluate("document.querySelector('#confirm').getBoundingClientRect().right") <= 360


async def test_keys_and_screen_readers_reach_all_of_it(browser: Browser, tmp_path: Path) -> None:
    async with running(tmp_path, Feed()) as (job, api), opened(browser, api.where.url) as page:
        await job.checkpoint()
        await expect(page.locator("#checkpoints tbody tr")).to_have_count(1)
        wanted = {
            "Skip to the job",
            "Checkpoint",
            "Savepoint…",
            "Stop…",
            "Cancel…",
            "Token…",
            "Graph",
            "Operators",
            "Watch",
        }
        wanted |= {"Chain", "Subtask", "Details of checkpoint 1"}
        reached: set[str] = set()
        for _ in range(40):
            await page.keyboard.press("Tab")
            reached.add(await page.evaluate(script("name_in_focus")))
        assert wanted <= reached and "" not in reached, wanted - reached
        assert any(name.startswith("sum, 2 subtasks") for name in reached)
        told = await page.locator("body").aria_snapshot()
        for part in ('heading "sums" [level=1]', 'group "Steer the job"', 'region "Graph"', "columnheader", "- main"):
            assert part in told, told
        await page.locator("[data-action=stop]").focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("dialog", name="Stop the job?")).to_be_visible()
        await expect(page.get_by_label("Savepoint instead")).to_be_focused()
        await expect(page.get_by_label("Token")).to_have_attribute("type", "password")
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("button", name="Stop…")).to_be_focused()
        await walk_to(page, "Checkpoint", "Shift+Tab")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("dialog", name="Take a checkpoint?")).to_be_visible()
        await walk_to(page, "Token")
        await page.keyboard.type(api.where.token or "")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("status").nth(1)).to_contain_text("Checkpoint 2 is complete")


async def walk_to(page: Page, name: str, key: str = "Tab") -> None:
    """By keys alone."""
    for _ in range(40):
        if await page.evaluate(script("name_in_focus")) == name:
            return
        await page.keyboard.press(key)
    raise AssertionError(f"{name!r} is not reached by {key}")


async def test_nothing_in_the_page_becomes_a_script(browser: Browser, tmp_path: Path) -> None:
    async with running(tmp_path, Feed()) as (_, api):
        context = await browser.new_context()
        try:
            page = await context.new_page()
            await page.goto(f"{api.where.url}/dashboard/")
            with pytest.raises(Error, match="TrustedHTML"):
                await page.evaluate("document.body.innerHTML = '<b>bold</b>'")
            with pytest.raises(Error, match="TrustedScript"):
                await page.evaluate("setTimeout('window.ran = true')")
            assert await page.evaluate("fetch('https://example.com/').catch(() => 'refused')") == "refused"
        finally:
            await context.close()


async def test_one_of_several_jobs_is_chosen(browser: Browser, tmp_path: Path) -> None:
    feeds = [Feed(), Feed()]
    flows = [sa.Dataflow("first"), sa.Dataflow("second")]
    for flow, feed in zip(flows, feeds, strict=True):
        flow.source(f"numbers-of-{flow.name}", feed).sink("out", ListSink())
    async with AsyncExitStack() as stack:
        handles = [await stack.enter_async_context(sa.start(flow, on_exit="cancel")) for flow in flows]
        jobs = [SteeredJob(handle, entry_of(handle), SYSTEM) for handle in handles]
        listener = stack.enter_context(bound(Address("127.0.0.1", 0)))
        await stack.enter_async_context(serve(job_app(jobs, Access(None)), listener))
        for job in jobs:
            await stack.enter_async_context(job.streams())
        page = await stack.enter_async_context(opened(browser, url_of(listener)))
        await expect(box(page, "numbers-of-first")).to_be_visible()
        await page.locator("#jobs").select_option("second")
        await expect(box(page, "numbers-of-second")).to_be_visible()
        await expect(page.get_by_role("heading", level=1)).to_have_text("second")


async def test_its_parts_by_themselves(browser: Browser, tmp_path: Path) -> None:
    async with running(tmp_path, Feed()) as (_, api), opened(browser, api.where.url) as page:
        assert await page.evaluate(script("parts")) == {
            "events": ["one", "two\nlines"],
            "rates": [5, 7.5],
            "bars": "M0.0,24v-24.0h34.1V24zM85.3,24v-12.0h34.1V24z",
            "depths": [0, 306, 612, 612],
            "times": ["250 ms", "1.5 s", "2 min 5 s", "1 h 1 min", "\u22123.0 s"],
            "bytes": ["10 B", "1.5 KiB"],
        }


async def test_the_picture_of_the_documents(browser: Browser, tmp_path: Path) -> None:
    """Drawn anew, but not into them."""
    await picture.draw(browser, tmp_path, tmp_path / "dashboard.png")
    size = picture.SIZE["width"], picture.SIZE["height"]
    for drawn in (tmp_path / "dashboard.png", ROOT / "docs" / "images" / "dashboard.png"):
        content = drawn.read_bytes()
        assert content.startswith(b"\x89PNG") and struct.unpack(">II", content[16:24]) == size
        assert 30_000 < len(content) < 300_000


# --------------------------------------------------------------------------------------------------------- reconnecting
async def test_it_comes_back_with_the_job(browser: Browser, tmp_path: Path) -> None:
    """Another process, as it seems, at the same address, with another plan."""
    feed, address = Feed(), f"127.0.0.1:{free_port()}"
    async with sa.start(flow_of(feed), config(tmp_path), on_exit="cancel") as job, served(job, address) as where:
        first = opened(browser, where.url)
        page = await first.__aenter__()
        await expect(box(page, "sum")).to_contain_text("\u00d72")
    try:
        await expect(page.locator("#connection")).to_contain_text("Connection lost")
        await expect(page.locator("#autoscaler")).to_be_hidden()
        looking = sa.Autoscale(every=dt.timedelta(milliseconds=50), dry_run=True)
        async with (
            sa.start(flow_of(feed), sa.Config(parallelism=3, autoscale=looking), on_exit="cancel") as job,
            served(job, address),
        ):
            await expect(page.locator("#connection")).to_have_text("Connected")
            await expect(page.locator("#autoscaler")).to_contain_text("Autoscaler (dry run): wait: measured for ")
            await expect(box(page, "sum")).to_contain_text("\u00d73")
            feed.put(*range(7))
            await expect(cell(page, "sum", 3)).to_have_text("7")
    finally:
        await first.__aexit__(None, None, None)
