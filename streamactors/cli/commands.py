"""The commands and their options."""

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from streamactors.cli import (
    demo_live,
    demo_view,
    detaching,
    graph_view,
    inspection,
    project,
    serving,
    state_rows,
    steering,
    told_version,
)
from streamactors.cli.doctor import command as doctor
from streamactors.cli.durations import seconds_of
from streamactors.cli.loading import load_flow
from streamactors.cli.logs import LogFormat, set_up
from streamactors.cli.options import (
    Assignments,
    ConfigFile,
    Interval,
    Json,
    Parallelism,
    Storage,
    Target,
    Traceback,
    Workers,
    flags,
    resolved,
)
from streamactors.cli.printing import print_json
from streamactors.cli.problem import run_for_programs, wants_json
from streamactors.cli.refusing import refusals, tell
from streamactors.cli.running import RunOptions, run_reporting
from streamactors.config import Setting, resolve
from streamactors.errors import CorruptCheckpoint
from streamactors.launch import EXIT_FAILED, run_loop
from streamactors.observe.network import DEFAULT

EXIT_CODES = (
    "Exit codes: 0 finished or stopped (SIGINT, SIGTERM, `streamactors stop`) with a last checkpoint; 1 failed; "
    "2 refused before it began; 130 interrupted a second time, or cancelled."
)

app = typer.Typer(
    name="streamactors",
    help="Stateful stream processing as an asyncio library.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(told_version())
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
    listen: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS:PORT", help="Serve the REST API and the metrics there, such as 127.0.0.1:8077."),
    ] = None,
    dashboard: Annotated[
        bool, typer.Option("--dashboard", help=f"Serve the web dashboard too: at --listen, else at {DEFAULT}.")
    ] = False,
    hosts: serving.AllowHost = None,
    savepoints: serving.Savepoints = None,
    otlp: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Send traces of checkpoints and recoveries to this collector (OTLP)."),
    ] = None,
    detached: Annotated[
        bool,
        typer.Option(
            "--detach", help="Leave the job to its Ray cluster once it runs; `status`, `stop` … --ray find it."
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="The same as --log-format json.")] = False,
    traceback: Traceback = False,
) -> None:
    """Run a flow until it ends.

    SIGINT (Ctrl-C) and SIGTERM stop it with a last checkpoint, from which the same command goes on; a second one
    cancels. `streamactors list`, `status`, `checkpoint`, `savepoint`, `stop` and `cancel` see and steer it meanwhile.

    Settings: flags come before the environment (STREAMACTORS_CHECKPOINTS__INTERVAL), that before --config, that
    before the module's `config`, that before the defaults.
    """
    log_format = "json" if json else log_format
    with refusals(traceback, json=log_format == "json"):
        flow, module_config = load_flow(target)
        set_up(log_format, flow.name, level=_level(quiet, verbose), full=traceback)
        given = flags(assignments, parallelism, storage, interval)
        config, settings = resolve(module_config, config_file, os.environ, given)
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
            serving.serve_options(listen, hosts, savepoints, dashboard=dashboard),
            otlp,
        )
        if detached:
            beside = {"--listen": listen, "--dashboard": dashboard, "--allow-host": hosts, "--savepoints": savepoints}
            detaching.refuse(config, beside | {"--no-control": not control, "--report-every": report_every})
        code = run_loop((detaching.run_detached if detached else run_reporting)(flow, config, options))
    raise typer.Exit(code)


@app.command(epilog=graph_view.EXIT_CODES)
def explain(
    target: Target,
    config_file: ConfigFile = None,
    assignments: Assignments = None,
    parallelism: Parallelism = None,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="The logical graph as a Mermaid flowchart.")] = False,
    workers: Workers = None,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Show a flow's logical graph and the plan by which it would run."""
    with refusals(traceback, json=json):
        flow, config, _ = resolved(target, config_file, flags(assignments, parallelism))
        if json:
            print_json(graph_view.described(flow, config, workers))
        else:
            show = flow.to_mermaid if mermaid else flow.explain
            typer.echo(show(config, workers=workers), nl=False)


@app.command(epilog=graph_view.EXIT_CODES)
def graph(
    target: Target,
    config_file: ConfigFile = None,
    assignments: Assignments = None,
    parallelism: Parallelism = None,
    text: Annotated[bool, typer.Option("--text", help="For a terminal, with the plan: as `explain` has it.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write it there; .md: Markdown, .svg: a picture."),
    ] = None,
    svg: Annotated[bool, typer.Option("--svg", help="A picture of the chains of steps, as SVG.")] = False,
    workers: Workers = None,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Show a flow's graph as a Mermaid flowchart, which GitHub, GitLab and most editors draw; or as SVG."""
    with refusals(traceback, json=json):
        svg = svg or (output is not None and output.suffix == ".svg")
        graph_view.check_options(text=text, json=json, svg=svg, output=output)
        flow, config, _ = resolved(target, config_file, flags(assignments, parallelism))
        if json:
            print_json(graph_view.described(flow, config, workers))
            return
        show = flow.explain if text else flow.to_mermaid
        shown = graph_view.drawn(flow, config) if svg else show(config, workers=workers)
        if output is not None:
            graph_view.save(shown, output)
        else:
            typer.echo(shown, nl=False)


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
    chosen: state_rows.Format = "json" if json and format == "table" else format
    _look_into(uri, state_rows.Wanted(operator, state, key, limit, chosen, output), verify, full=traceback)


@app.command()
def state(
    uri: Annotated[str, typer.Argument(metavar="URI", help="A storage, a flow's folder in it, or one checkpoint.")],
    operator: Annotated[str | None, typer.Argument(metavar="[UID]", help="What this operator holds.")] = None,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The rows of this state.")] = None,
    key: Annotated[str | None, typer.Option(metavar="KEY", help="Of this key alone, as text or as JSON.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows at most; 20 in a table, else all.")] = None,
    format: Annotated[
        state_rows.Format, typer.Option(help="Of the rows; json: an object a line; parquet goes into --output.")
    ] = "table",
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Where the rows go.")] = None,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Show what stored state holds: that of an operator, or the rows of one of its states. A short form of `inspect`.

    Exit codes: 0; 1 if the checkpoint itself is damaged; 2 if there is none, or nothing of what is asked for.
    """
    chosen: state_rows.Format = "json" if json and format == "table" else format
    _look_into(uri, state_rows.Wanted(operator, name, key, limit, chosen, output), "sizes", full=traceback)


def _look_into(uri: str, wanted: state_rows.Wanted, verify: inspection.Depth, *, full: bool) -> None:
    as_json = wanted.format == "json"
    with refusals(full, json=as_json):
        wanted.check()
        try:
            code = asyncio.run(inspection.inspect(uri, as_json=as_json, verify=verify, wanted=wanted))
        except CorruptCheckpoint as error:
            tell(error, full=full, json=as_json)
            code = EXIT_FAILED
    raise typer.Exit(code)


@app.command()
def demo(
    events: Annotated[int, typer.Option(min=1000, help="How many orders.")] = 1_000_000,
    keep: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Leave all files there: a new folder.")] = None,
    json: Annotated[bool, typer.Option("--json", help="For programs: an object for each scene, one a line.")] = False,
    dashboard: Annotated[
        bool, typer.Option("--dashboard", help="Then go on until Ctrl-C, with the web dashboard to look at it.")
    ] = False,
    listen: Annotated[str, typer.Option(metavar="ADDRESS:PORT", help="Where the dashboard is.")] = DEFAULT,
) -> None:
    """Kill a job in the middle, let another process go on, and count what came out.

    Exit codes: 0 if every result is there exactly once; 1 if not, and the files are kept.
    """
    with refusals(json=json):
        if dashboard:
            equal = demo_view.show(events, keep, as_json=json, then=lambda folder: demo_live.run_on(folder, listen))
        else:
            equal = demo_view.show(events, keep, as_json=json)
    raise typer.Exit(0 if equal else EXIT_FAILED)


for _name, _command in (
    ("list", steering.list_jobs),
    ("status", steering.status),
    ("checkpoint", steering.checkpoint),
    ("savepoint", steering.savepoint),
    ("rescale", steering.rescale),
    ("stop", steering.stop),
    ("cancel", steering.cancel),
):
    app.command(_name, epilog=steering.EXIT_CODES)(_command)


app.command("doctor", epilog=doctor.EXIT_CODES)(doctor.doctor)
app.command("new", epilog=project.EXIT_CODES)(project.new)
app.command("serve", epilog=serving.EXIT_CODES)(serving.serve)


def main() -> None:
    """The `streamactors` command, by whatever name it was started: shell completion goes by it."""
    if wants_json(sys.argv[1:]):
        run_for_programs(lambda: app(prog_name="streamactors", standalone_mode=False))
    app(prog_name="streamactors")


# ------------------------------------------------------------------------------------------------------------- options
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
