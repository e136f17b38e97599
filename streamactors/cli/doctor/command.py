"""The command, and what it shows."""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.table import Table
from rich.text import Text

from streamactors.cli.doctor.flows import of_flow
from streamactors.cli.doctor.machine import of_machine
from streamactors.cli.doctor.packages import of_packages
from streamactors.cli.doctor.storage import of_storage
from streamactors.cli.durations import seconds_of
from streamactors.cli.failure import describe, show
from streamactors.cli.logs import set_up
from streamactors.cli.options import TARGET_HELP, Assignments, ConfigFile, Json, Parallelism, Storage, Traceback, flags
from streamactors.cli.options import resolved as resolved_flow
from streamactors.cli.printing import print_json, print_view
from streamactors.cli.refusing import refusals
from streamactors.diagnosis import Finding, Level
from streamactors.errors import StreamactorsError
from streamactors.launch import EXIT_FAILED

EXIT_CODES = (
    "Exit codes: 0 nothing is wrong (there may be warnings); 1 something is; 2 refused, such as a wrong option."
)
PATIENCE: Final = "20s"
STYLES: Final[Mapping[Level, str]] = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def doctor(
    target: Annotated[str | None, typer.Argument(metavar="[MODULE:FLOW]", help=TARGET_HELP)] = None,
    config_file: ConfigFile = None,
    assignments: Assignments = None,
    parallelism: Parallelism = None,
    storage: Storage = None,
    timeout: Annotated[
        str, typer.Option(metavar="DURATION", help="That each source and sink has for its answer.")
    ] = PATIENCE,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Say what is wrong here, and what to do about it: Python, packages, limits, and what a flow needs.

    Of a flow: whether it can be loaded and planned, its storage, the files and brokers of its sources and sinks. The
    storage is written to, in a folder that is removed again; everything else is only looked at.
    """
    with refusals(traceback, json=json):
        seconds = seconds_of("--timeout", timeout)
        given = flags(assignments, parallelism, storage)
        set_up("text", "doctor", level=logging.CRITICAL, full=False)  # what connectors log is told by the findings
        findings = [*of_machine(), *of_packages()]
        findings += asyncio.run(_asked(target, config_file, given, storage, seconds, full=traceback))
    if json:
        print_json({"wrong": _is_wrong(findings), "findings": findings})
    else:
        print_view(_table(findings))
        typer.echo(_summary(findings))
    raise typer.Exit(EXIT_FAILED if _is_wrong(findings) else 0)


async def _asked(
    target: str | None,
    config_file: Path | None,
    given: Mapping[str, str],
    storage: str | None,
    seconds: float,
    *,
    full: bool,
) -> list[Finding]:
    try:
        return await _of(target, config_file, given, storage, seconds)
    except StreamactorsError as error:
        if full:
            show(error, full=True)
        what = "storage" if target is None else f"flow {target}"
        return [Finding("problem", what, "\n".join(describe(error)))]


async def _of(
    target: str | None, config_file: Path | None, given: Mapping[str, str], storage: str | None, seconds: float
) -> list[Finding]:
    if target is not None:
        flow, config, _ = resolved_flow(target, config_file, given)
        return await of_flow(flow, config, seconds)
    return [] if storage is None else await of_storage(storage)


# ------------------------------------------------------------------------------------------------------------- showing
def _is_wrong(findings: Sequence[Finding]) -> bool:
    return any(found.level == "problem" for found in findings)


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    for found in findings:
        told = found.found + (f"\n→ {found.remedy}" if found.remedy else "")
        table.add_row(Text(found.level, style=STYLES[found.level]), Text(found.check), Text(told))
    return table


def _summary(findings: Sequence[Finding]) -> str:
    counts: Counter[Any] = Counter(found.level for found in findings)
    told = [
        f"{counts[level]} {level}{'s' if counts[level] > 1 else ''}"
        for level in ("problem", "warning")
        if counts[level]
    ]
    return f"{', '.join(told)}." if told else "Nothing is wrong."
