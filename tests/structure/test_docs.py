"""The documents lead somewhere: their links exist and their Python parses (`make docs`)."""

import ast
import builtins
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.structure.house import CODE, ROOT

FENCE = re.compile(r"^(```|~~~)")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+\s+(.*)$", re.MULTILINE)


def documents() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def snippets(text: str) -> Iterator[tuple[int, str]]:
    """(line, code) of each block fenced as python."""
    for block in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, block.start()) + 2, block.group(1)


def prose(text: str) -> str:
    """Without its code blocks, in which `[x](y)` is no link."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


@functools.cache
def words_of_the_code() -> frozenset[str]:
    files = [path for folder in (*CODE, "tests") for path in (ROOT / folder).rglob("*.py")]
    return frozenset(word for path in files for word in re.findall(r"\w+", path.read_text() + path.stem))


def unknown_names(text: str) -> list[str]:
    """What stands in backticks, looks like a file (`state/backend.py`) or a name of the code (`Chain.step`, `_loop`,
    `test_…`), and is none; nor is it in what the page itself shows."""
    quoted = re.findall(r"`([^`\n]+)`", prose(text))
    shown = "".join(re.findall(r"^```.*?^```", text, re.MULTILINE | re.DOTALL))
    files = [name for name in quoted if re.fullmatch(r"[\w/.]+\.(py|md|txt|toml)", name)]
    names = [name for name in quoted if re.fullmatch(r"[A-Za-z_][\w.]*(\(\))?", name) and re.search(r"[A-Z_.]", name)]
    gone = [
        name
        for name in files
        if f"\n# {name}\n" not in shown and not any(found_at(folder, name) for folder in ("", *CODE, "tests"))
    ]
    known = words_of_the_code() | set(dir(builtins)) | set(re.findall(r"\w+", shown))
    unknown = [name for name in names if name not in files and not set(re.findall(r"\w+", name)) <= known]
    return gone + unknown


def found_at(folder: str, name: str) -> bool:
    anywhere = folder and "/" not in name and any((ROOT / folder).rglob(name))
    return bool(anywhere) or (ROOT / folder / name).exists()


def anchor(heading: str) -> str:
    """As GitHub makes them: `## What's in it?` → `whats-in-it`."""
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")


def broken_links(path: Path, text: str) -> list[str]:
    links = [link for link in LINK.findall(prose(text)) if not re.match(r"https?:|mailto:", link)]
    return [link for link in links if not leads(path, link)]


def leads(path: Path, link: str) -> bool:
    file, _, fragment = link.partition("#")
    target = (path.parent / file).resolve() if file else path
    if not target.exists():
        return False
    return not fragment or fragment in {anchor(heading) for heading in HEADING.findall(prose(target.read_text()))}


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_document(path: Path) -> None:
    text = path.read_text()
    assert broken_links(path, text) == []
    assert unknown_names(text) == []
    for line, code in snippets(text):
        try:
            compile("\n" * (line - 1) + code, str(path), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        except SyntaxError as error:
            pytest.fail(f"{path.name}:{error.lineno}: Python that does not parse: {error.msg}", pytrace=False)


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# What's in it?\n[here](#whats-in-it) [web](https://example.com)\n```\n[x](y)\n```\n")
    text = page.read_text() + "[gone](gone.md) [no heading](page.md#nowhere)"
    assert broken_links(page, text) == ["gone.md", "page.md#nowhere"]


def test_a_name_that_is_gone_is_found() -> None:
    there = "`Chain.step`, `_loop`, `make`, `pyproject.toml`, `source.py`, `state/backend.py` and `connectors/<name>/`"
    # In two parts, since this file is code as well.
    gone = ["state/gone.py", "Chain.gone_" + "since", "Gone" + "Since"]
    assert unknown_names(there) == []
    assert unknown_names(" ".join(f"`{name}`" for name in gone)) == gone
