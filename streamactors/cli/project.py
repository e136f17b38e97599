"""`streamactors new`: a project that runs and has a passing test, from the template that lies beside this module."""

import keyword
import os
import re
import shlex
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Final

import typer

from streamactors.cli.options import Json
from streamactors.cli.printing import print_json
from streamactors.cli.refusing import refusals
from streamactors.errors import InvalidConfig, StorageFailed

EXIT_CODES = "Exit codes: 0 made; 2 refused: no such name can be used, or the folder is not empty."
NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9]*([-_][A-Za-z0-9]+)*")
TAKEN: Final = frozenset({"connectors", "streamactors", "tests", "pytest_streamactors"}) | sys.stdlib_module_names
"""Modules that one of this name would hide."""
TO_TEST: Final = ["pip install pytest pytest-asyncio", "python -m pytest"]
TEMPLATE: Final = {
    "README.md": "README.md.template",
    "pyproject.toml": "pyproject.toml.template",
    ".gitignore": "gitignore.template",
    "{{module}}.py": "flow.py.template",
    "tests/test_{{module}}.py": "test_flow.py.template",
    "input/orders.jsonl": "orders.jsonl.template",
}


def new(
    folder: Annotated[
        Path, typer.Argument(metavar="NAME", help="A new or empty folder; its name is the project's and the flow's.")
    ],
    json: Json = False,
) -> None:
    """Make a project: a flow that runs at once, a test that passes, and a README that says how to go on."""
    with refusals(json=json):
        name = folder.absolute().name
        module = module_of(name)
        made = _write(folder, {"name": name, "module": module, "version": _version()})
    steps = [f"cd {shlex.quote(str(folder))}", f"streamactors run {module}:flow", *TO_TEST]
    if json:
        print_json({"name": name, "folder": str(folder.absolute()), "files": made, "next": steps})
    else:
        typer.echo(f"{folder}: {', '.join(made)}\nTo go on:")
        typer.echo("\n".join(f"  {step}" for step in steps))


def module_of(name: str) -> str:
    """Raises InvalidConfig for a name that can't be a package's and a module's."""
    if not NAME.fullmatch(name):
        raise InvalidConfig(f"{name!r} can't be a project's name: letters, digits, and between them - and _")
    module = name.replace("-", "_").lower()
    if module in TAKEN or keyword.iskeyword(module):
        raise InvalidConfig(f"{name!r} can't be a project's name: Python has a module or a word {module!r} already")
    return module


def _version() -> str:
    try:
        return version("streamactors")
    except PackageNotFoundError:
        return "0"


def _write(folder: Path, words: dict[str, str]) -> list[str]:
    """The files that were made. Raises InvalidConfig if there are any already."""
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InvalidConfig(f"{folder} is there, and not an empty folder: name a new one")
        return [_filled(folder, place, content) for place, content in _contents(words)]
    except OSError as error:
        raise StorageFailed(f"can't make {folder}: {error.strerror or error}") from error


def _contents(words: dict[str, str]) -> Iterator[tuple[str, str]]:
    template = files("streamactors.cli") / "template"
    for place, name in TEMPLATE.items():
        yield _with(words, place), _with(words, (template / name).read_text("utf-8"))


def _with(words: dict[str, str], text: str) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: words[found[1]], text)


def _filled(folder: Path, place: str, content: str) -> str:
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return place.replace("/", os.sep)
