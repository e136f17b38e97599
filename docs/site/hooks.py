"""What `mkdocs build` needs beside its settings: links from the documents to files outside of docs/ lead somewhere.

In the repository such a link (`../examples/tour.py`) opens the file. On the site it leads to a copy of it below
`files/`: a page where it is Markdown, else text.
"""

import os.path
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
COPIES = "files"
LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is linked outside of docs/, and what that links to."""
    pages = [Path(file.abs_src_path) for file in files.documentation_pages() if file.abs_src_path]
    for path in outside(pages):
        files.append(File.generated(config, uri_of(path), content=path.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    here = page.file.src_uri

    def rewritten(link: re.Match[str]) -> str:
        target = linked(original(here), link[2])
        if target is None:
            return link[0]
        return link[1] + os.path.relpath(uri_of(target), PurePosixPath(here).parent) + link[3]

    return LINK.sub(rewritten, markdown)


def outside(pages: list[Path]) -> list[Path]:
    """The files outside of docs/ that these pages lead to, directly or by way of one another."""
    found: dict[Path, None] = {}
    waiting = list(pages)
    while waiting:
        page = waiting.pop()
        targets = {linked(page, link[2]) for link in LINK.finditer(page.read_text())}
        new = [path for path in targets if path and not path.is_relative_to(DOCS) and path not in found]
        found |= dict.fromkeys(new)
        waiting += [path for path in new if path.suffix == ".md"]
    return sorted(found)


def linked(page: Path, link: str) -> Path | None:
    """The file that a link of this page leads to; of a package its first module; None if there is none."""
    path = (page.parent / link).resolve()
    path = path / "__init__.py" if path.is_dir() else path
    return path if path.is_file() and path.is_relative_to(ROOT) else None


def uri_of(path: Path) -> str:
    """Where a file is found on the site."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    uri = f"{COPIES}/{path.relative_to(ROOT).as_posix()}"
    return uri if path.suffix in (".md", ".png", ".svg") else f"{uri}.txt"


def original(uri: str) -> Path:
    """The file that a page of the site is made of."""
    copied = uri.removeprefix(f"{COPIES}/")
    return DOCS / uri if copied == uri else ROOT / copied
