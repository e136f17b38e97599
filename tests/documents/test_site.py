"""The site that mkdocs makes of docs/: strict, every public name in its reference, nothing from other hosts."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import streamactors as sa
from connectors import files, kafka, memory, queue
from streamactors import service, state_processor, testing
from tests.observe.web.browser import launched
from tests.programs import ROOT

pytestmark = pytest.mark.slow

REFERENCE = "".join(path.read_text() for path in sorted((ROOT / "docs" / "api").glob("*.md")))


class Loaded(HTMLParser):
    """What a page has the browser fetch: not its links, which people follow or don't."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "a":
            self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (built.returncode, built.stdout, built.stderr) == (0, "", "")
    return folder


def test_it_is_built_without_a_warning(site: Path) -> None:
    for page in ("index", "tutorial", "concepts", "guides/upgrade", "api/flows", "guarantees", "comparison"):
        assert "<h1" in (site / f"{page}.html").read_text()


def test_nothing_is_fetched_from_other_hosts(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = Loaded()
        loaded.feed(page.read_text())
        assert loaded.addresses
        assert not [each for each in loaded.addresses if re.match(r"(https?:)?//", each)], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )['\"]?(https?:)?//", sheet.read_text()), sheet


async def test_every_picture_can_be_drawn() -> None:
    pages = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
    async with launched() as browser:
        page = await browser.new_page()
        await page.add_script_tag(path=ROOT / "docs" / "site" / "mermaid.tiny.js")
        for path in pages:
            for picture in re.findall(r"^```mermaid\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
                problem = await page.evaluate("text => mermaid.parse(text).then(() => null, String)", picture)
                assert problem is None, f"{path.relative_to(ROOT)}: {problem}"


def test_pictures_are_drawn_by_the_site_s_own_script(site: Path) -> None:
    """The theme fetches Mermaid from another host only where a page has none."""
    page = (site / "concepts.html").read_text()
    assert 'class="mermaid"' in page
    assert page.index("site/mermaid.tiny.js") < page.index("</body>")
    assert "mermaid" in (site / "site" / "mermaid.tiny.js").read_text()


def test_links_to_the_code_lead_to_copies_of_it(site: Path) -> None:
    assert "files/tests/recovery/test_kill_files.py.txt" in (site / "guarantees.html").read_text()
    copied = site / "files" / "tests" / "recovery" / "test_kill_files.py.txt"
    assert copied.read_text() == (ROOT / "tests" / "recovery" / "test_kill_files.py").read_text()
    assert 'href="../architecture.html' in (site / "files" / "CONTRIBUTING.html").read_text()


@pytest.mark.parametrize("module", [sa, files, kafka, memory, queue, service, state_processor, testing])
def test_every_public_name_is_in_the_reference(module: object) -> None:
    name, public = module.__dict__["__name__"], module.__dict__["__all__"]
    told = re.findall(rf"^::: {re.escape(name)}\.(\w+)$", REFERENCE, re.MULTILINE)
    assert sorted(told) == sorted(set(told))
    missing = [each for each in public if each not in told and not each.isupper()]
    assert missing == [], f"name them on a page of docs/api, as `::: {name}.{missing[0]}`"
    assert [each for each in told if each not in public] == []
