"""The commands and their options."""

import asyncio
import logging
import os
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from streamactors.cli import demo_view, inspection, state_rows, steering
from streamactors.cli.durations import seconds_of
from streamactors.cli.failure import refusals, show
from streamactors.cli.loading import load_flow
from streamactors.cli.logs import LogFormat, set_up
from streamactors.cli.running import RunOptions, run_reporting
from streamactors.config import Setting, resolve
from streamactors.errors import CorruptCheckpoint, InvalidConfig
from streamactors.launch import EXIT_FAILED, run_loop

EXIT_CODES = (
    "Exit codes: 0 finished or stopped (SIGINT, SIGTERM, `streamactors stop`) with a last checkpoint; 1 failed; "
    "2 refused before it began; 130 interrupted a second time, or cancelled."
)

app = typer.Typer(
    name="streamactors",
    help="Stateful stream processing as an asyncio library.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Target = Annotated[str, typer.Argument(metavar="MODULE:FLOW", help="A Dataflow, or a function that returns one.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", metavar="FILE", help="Settings as TOML.")]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="NAME=VALUE", help="Any setting: checkpoints.retain=5.")
]
Parallelism = Annotated[int | None, typer.Option(help="Of every step that doesn't set its own.")]
Storage = Annotated[str | None, typer.Option(metavar="URI", help="Where checkpoints lie.")]
Interval = Annotated[str | None, typer.Option(metavar="DURATION", help="Between checkpoints: 10s.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show whole tracebacks.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"streamactors {version('streamactors')}")
        raise typer.Exit


@app.callback()
def streamactors(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Stateful stream processing as an asyncio library."""


@app.command(epilog=EXIT_CODES)
def run(
    target: Target,
    config_file: ConfigFile = None,
    assignments: Assignments = None,
    parallelism: Parallelism = None,
    storage: Storage = None,
    interval: Interval = None,
    restore: Annotated[
        str, typer.Option(metavar="latest|none|URI", help="The checkpoint to go on from; none only where none lies.")
    ] = "latest",
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew, and leave stored checkpoints behind.")] = False,
    drop_state: Annotated[
        list[str] | None,
        typer.Option(metavar="UID", help="Give up the stored state of an operator that the flow no longer has."),
    ] = None,
    claim: Annotated[
        bool,
        typer.Option("--claim", help="The job owns what it is restored from: builds on it, deletes it in the end."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Debug messages too.")] = False,
    log_format: Annotated[LogFormat, typer.Option(help="json: one object per line, on stderr.")] = "text",
    report_every: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Between progress reports; 500ms on a terminal, else 10s.")
    ] = None,
    control: Annotated[
        bool,
        typer.Option("--control/--no-control", help="Whether `streamactors list`, `stop` and others find the job."),
    ] = True,
    traceback: Traceback = False,
) -> None:
    """Run a flow until it ends.

    SIGINT (Ctrl-C) and SIGTERM stop it with a last checkpoint, from which the same command goes on; a second one
    cancels. `streamactors list`, `status`, `checkpoint`, `savepoint`, `stop` and `cancel` see and steer it meanwhile.

    Settings: flags come before the environment (STREAMACTORS_CHECKPOINTS__INTERVAL), that before --config, that
    before the module's `config`, that before the defaults.
    """
    with refusals(traceback):
        flow, module_config = load_flow(target)
        set_up(log_format, flow.name, level=_level(quiet, verbose), full=traceback)
        flags = _flags(assignments, parallelism, storage, interval)
        config, settings = resolve(module_config, config_file, os.environ, flags)
        if not quiet:
            _print_settings(settings, as_log=log_format == "json")
        options = RunOptions(
            None if restore == "none" else restore,
            fresh,
            drop_state or (),
            claim,
            quiet,
            traceback,
            log_format == "json",
            None if report_every is None else seconds_of("--report-every", report_every),
            target if control else None,
        )
        code = run_loop(run_reporting(flow, config, options))
    raise typer.Exit(code)


@app.command()
def explain(
    target: Target,
    config_file: ConfigFile = None,
    assignments: Assignments = None,
    parallelism: Parallelism = None,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="The logical graph as a Mermaid flowchart.")] = False,
    traceback: Traceback = False,
) -> None:
    """Show a flow's logical graph and the plan by which it would run."""
    with refusals(traceback):
        flow, module_config = load_flow(target)
        config, _ = resolve(module_config, config_file, os.environ, _flags(assignments, parallelism))
        typer.echo(flow.to_mermaid() if mermaid else flow.explain(config), nl=False)


@app.command()
def inspect(
    uri: Annotated[str, typer.Argument(metavar="URI", help="A storage, a flow's folder in it, or one checkpoint.")],
    operator: Annotated[str | None, typer.Option(metavar="UID", help="What this operator holds.")] = None,
    state: Annotated[str | None, typer.Option(metavar="NAME", help="The rows of this state.")] = None,
    key: Annotated[str | None, typer.Option(metavar="KEY", help="Of this key alone, as text or as JSON.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows at most; 20 in a table, else all.")] = None,
    format: Annotated[
        state_rows.Format, typer.Option(help="Of the rows; json: an object a line; parquet goes into --output.")
    ] = "table",
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Where the rows go.")] = None,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    verify: Annotated[
        inspection.Depth, typer.Option(help="Also the size of every state file, or every byte of it.")
    ] = "sizes",
    traceback: Traceback = False,
) -> None:
    """Show the checkpoints in a storage, what is in one of them, or what its state holds.

    Exit codes: 0; 1 if the checkpoint itself is damaged; 2 if there is none, or nothing of what is asked for.
    """
    with refusals(traceback):
        chosen: state_rows.Format = "json" if json and format == "table" else format
        wanted = state_rows.Wanted(operator, state, key, limit, chosen, output)
        wanted.check()
        try:
            code = asyncio.run(inspection.inspect(uri, as_json=chosen == "json", verify=verify, wanted=wanted))
        except CorruptCheckpoint as error:
            show(error, full=traceback)
            code = EXIT_FAILED
    raise typer.Exit(code)


@app.command()
def demo(
    events: Annotated[int, typer.Option(min=1000, help="How many orders.")] = 1_000_000,
    keep: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Leave all files there: a new folder.")] = None,
) -> None:
    """Kill a job in the middle, let another process go on, and count what came out.

    Exit codes: 0 if every result is there exactly once; 1 if not, and the files are kept.
    """
    with refusals(False):
        equal = demo_view.show(events, keep)
    raise typer.Exit(0 if equal else EXIT_FAILED)


for _name, _command in (
    ("list", steering.list_jobs),
    ("status", steering.status),
    ("checkpoint", steering.checkpoint),
    ("savepoint", steering.savepoint),
    ("stop", steering.stop),
    ("cancel", steering.cancel),
):
    app.command(_name, epilog=steering.EXIT_CODES)(_command)


def main() -> None:
    """The `streamactors` command."""
    app()


# ------------------------------------------------------------------------------------------------------------- options
def _flags(
    assignments: list[str] | None, parallelism: int | None, storage: str | None = None, interval: str | None = None
) -> dict[str, str]:
    flags: dict[str, str] = {}
    for assignment in assignments or ():
        name, equals, value = assignment.partition("=")
        if not equals:
            raise InvalidConfig(f"--set {name}: it must be name=value, such as checkpoints.interval=10s")
        flags[name.strip()] = value.strip()
    typed: dict[str, Any] = {
        "parallelism": parallelism,
        "checkpoints.storage": storage,
        "checkpoints.interval": interval,
    }
    return flags | {name: str(value) for name, value in typed.items() if value is not None}


def _level(quiet: bool, verbose: bool) -> int:
    return logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO


def _print_settings(settings: list[Setting], *, as_log: bool) -> None:
    if as_log:
        log = logging.getLogger("streamactors.settings")
        for setting in settings:
            extra = {"setting": setting.name, "value": setting.value, "origin": setting.origin}
            log.info("%s = %s (%s)", setting.name, setting.value, setting.origin, extra=extra)
        return
    width = max(len(setting.name) for setting in settings)
    shown = max(len(setting.value) for setting in settings)
    for setting in settings:
        typer.echo(f"{setting.name:{width}}  {setting.value:{shown}}  {setting.origin}")
