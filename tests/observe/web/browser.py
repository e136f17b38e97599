"""A real Chromium without a screen, and pages in it that may complain of nothing."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from playwright.async_api import Browser, Page, async_playwright

PATIENCE_MS = 60_000
INSTALL = "`make browser` (or `apt install chromium`); CHROMIUM names another one"


def chromium() -> str:
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.fail(f"the tests of the dashboard need Chromium, which is not installed: {INSTALL}", pytrace=False)
    return path


@asynccontextmanager
async def launched() -> AsyncIterator[Browser]:
    options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]  # it sees nothing but these tests' own pages
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium(), args=options, timeout=PATIENCE_MS)
        try:
            yield browser
        finally:
            await browser.close()


class Complaints(list[str]):
    """What a page's console has of errors and of breaches of its policy; but that a server does not answer."""

    def listen_to(self, page: Page) -> None:
        page.on("pageerror", lambda error: self.append(str(error)))
        page.on("console", lambda told: self._add(told.text) if told.type == "error" else None)

    def _add(self, text: str) -> None:
        if not text.startswith("Failed to load resource:"):
            self.append(text)


@asynccontextmanager
async def opened(browser: Browser, url: str, **options: Any) -> AsyncIterator[Page]:
    """The dashboard of a server, in a context of its own."""
    context = await browser.new_context(**{"viewport": {"width": 1280, "height": 900}, "locale": "en-GB"} | options)
    try:
        context.set_default_timeout(PATIENCE_MS)
        page, complaints = await context.new_page(), Complaints()
        complaints.listen_to(page)
        await page.goto(f"{url}/dashboard/")
        yield page
        assert complaints == []
    finally:
        await context.close()
