"""Options that several commands have, and what becomes of them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from streamactors.api.dataflow import Dataflow
from streamactors.cli.loading import load_flow
from streamactors.config import Config, Setting, resolve
from streamactors.errors import InvalidConfig

TARGET_HELP = "A Dataflow, or a function that returns one."
Target = Annotated[str, typer.Argument(metavar="MODULE:FLOW", help=TARGET_HELP)]
ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", metavar="FILE", help="Settings as TOML.")]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="NAME=VALUE", help="Any setting: checkpoints.retain=5.")
]
Parallelism = Annotated[int | None, typer.Option(help="Of every step that doesn't set its own.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Show which of so many workers would run what, else those of the deployment.")
]
Storage = Annotated[str | None, typer.Option(metavar="URI", help="Where checkpoints lie.")]
Interval = Annotated[str | None, typer.Option(metavar="DURATION", help="Between checkpoints: 10s.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show whole tracebacks.")]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]


def flags(
    assignments: list[str] | None,
    parallelism: int | None = None,
    storage: str | None = None,
    interval: str | None = None,
) -> dict[str, str]:
    """Settings by their dotted names, as text. Raises InvalidConfig."""
    found: dict[str, str] = {}
    for assignment in assignments or ():
        name, equals, value = assignment.partition("=")
        if not equals:
            raise InvalidConfig(f"--set {name}: it must be name=value, such as checkpoints.interval=10s")
        found[name.strip()] = value.strip()
    typed: dict[str, Any] = {
        "parallelism": parallelism,
        "checkpoints.storage": storage,
        "checkpoints.interval": interval,
    }
    return found | {name: str(value) for name, value in typed.items() if value is not None}


def resolved(target: str, config_file: Path | None, given: Mapping[str, str]) -> tuple[Dataflow, Config, list[Setting]]:
    """The flow, and its config with everything laid over it. Raises what `load_flow` and `resolve` do."""
    flow, module_config = load_flow(target)
    config, settings = resolve(module_config, config_file, os.environ, given)
    return flow, config, settings
