"""What a command prints: for people, who may have piped it, and for programs."""

from typing import Any

import msgspec
import typer
from rich.console import Console

WIDE = 400
"""Whoever reads a pipe can wrap lines; unwrapping them is hard."""


def print_view(view: Any) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    console.print(view)


def print_json(content: Any) -> None:
    typer.echo(msgspec.json.format(msgspec.json.encode(content), indent=2))


def print_json_line(content: Any) -> None:
    """One of several: an object a line."""
    typer.echo(msgspec.json.encode(content))
