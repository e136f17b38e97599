"""`streamactors list`, `status`, `checkpoint`, `savepoint`, `rescale`, `stop`, `cancel`, for other jobs."""

import asyncio
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

from streamactors.checkpoint.storage.uris import normalise_uri
from streamactors.cli import finding, status_view
from streamactors.cli.durations import seconds_of
from streamactors.cli.options import Json
from streamactors.cli.printing import print_json, print_view
from streamactors.cli.refusing import refusals
from streamactors.clock import SYSTEM
from streamactors.deploy.detached import Ending
from streamactors.diagnosis import in_bytes
from streamactors.errors import InvalidConfig, RequestFailed
from streamactors.observe import model, registry
from streamactors.observe.client import Job as FoundJob
from streamactors.observe.client import JobClient
from streamactors.observe.clusters import last_status
from streamactors.runtime.rescaling import changes

T = TypeVar("T")

EXIT_CODES = (
    "Exit codes: 0 done; 1 the job could not do it, or gave no answer; 2 refused before the job was asked: no such "
    "job, or a wrong option; 130 interrupted (the job goes on with what it was asked for)."
)


def _names() -> list[str]:
    """For shell completion."""
    return sorted({job.entry.flow for job in registry.running()[0]})


Job = Annotated[
    str,
    typer.Argument(
        metavar="JOB",
        help="A flow's name, or a process id or storage where several have that name.",
        autocompletion=_names,
    ),
]
OnlyJob = Annotated[
    str | None,
    typer.Argument(
        metavar="[JOB]",
        help="A flow's name, process id or storage; may be left out if one job runs.",
        autocompletion=_names,
    ),
]


def list_jobs(ray: finding.RayAddress = None, json: Json = False) -> None:
    """List the jobs of this user on this machine; and the detached ones of a Ray cluster."""
    with refusals(json=json), finding.all_jobs(ray) as jobs:
        rows = asyncio.run(_summaries(jobs))
    if json:
        print_json([row | {"problem": row.get("problem")} for row in rows])
    elif rows:
        print_view(status_view.jobs(rows, SYSTEM.time_ms()))
    else:
        typer.echo("No job runs.")


def status(
    job: OnlyJob = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again and again, until the job ends.")] = False,
    every: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Between two looks; 1s on a terminal, else 10s.")
    ] = None,
    ray: finding.RayAddress = None,
    json: Json = False,
) -> None:
    """Show how a job does: its operators, its last checkpoint, its restarts.

    Of a detached job that has ended, it tells for a day how it did.
    """
    with refusals(json=json), finding.found_or_ended(job, ray) as (found, ending):
        if found is None:
            assert ending is not None
            _print_ending(ending, as_json=json)
        elif watch:
            seconds = seconds_of("--every", every) if every is not None else 1.0 if sys.stdout.isatty() else 10.0
            _watch(found, seconds, as_json=json)
        else:
            status = JobClient(found).status()
            print_json(status) if json else print_view(status_view.StatusView().show(status, SYSTEM.time_ms()))


def checkpoint(job: OnlyJob = None, ray: finding.RayAddress = None, json: Json = False) -> None:
    """Take a checkpoint now, and wait until it is complete."""
    with refusals(json=json), finding.found(job, ray) as found:
        taken = _wait(f"{found.entry.flow}: taking a checkpoint", JobClient(found).checkpoint)
        print_json(taken) if json else typer.echo(f"{found.entry.flow}: {_taken(taken)}")


def savepoint(
    job: Job,
    uri: Annotated[str, typer.Argument(metavar="URI", help="A new or empty folder.")],
    ray: finding.RayAddress = None,
    json: Json = False,
) -> None:
    """Take a savepoint of a job that goes on, and wait until it is complete."""
    with refusals(json=json), finding.found(job, ray) as found:
        target = _absolute(uri)
        taken = _wait(f"{found.entry.flow}: taking a savepoint", lambda: JobClient(found).savepoint(target))
        if json:
            print_json(taken)
            return
        typer.echo(f"{found.entry.flow}: {_taken(taken)}")
        typer.echo(f"To start from it:  {_start(found, taken.uri)}")


def stop(
    job: Job,
    savepoint: Annotated[
        str | None, typer.Option(metavar="URI", help="Take a savepoint in this new or empty folder, as the last thing.")
    ] = None,
    drain: Annotated[
        bool, typer.Option("--drain", help="End the data first; only for a job that will not be resumed.")
    ] = False,
    ray: finding.RayAddress = None,
    json: Json = False,
) -> None:
    """Stop a job with a last checkpoint or a savepoint, and wait until it has finished.

    It reads no further, takes its last checkpoint, commits its output and ends.
    """
    with refusals(json=json), finding.found(job, ray) as found:
        target = None if savepoint is None else _absolute(savepoint)
        ended = _wait(f"{found.entry.flow}: stopping", lambda: JobClient(found).stop(target, drain=drain))
        if json:
            print_json(ended)
            return
        _print_ended(found, ended, to_be_resumed=not drain)


def rescale(
    job: Job,
    parallelism: Annotated[
        int | None, typer.Option("--parallelism", min=1, help="Of the steps to which the flow gives none of their own.")
    ] = None,
    steps: Annotated[
        list[str] | None,
        typer.Option("--step", metavar="STEP=N", help="Of this step (its uid, or name), and those chained to it."),
    ] = None,
    ray: finding.RayAddress = None,
    json: Json = False,
) -> None:
    """Change the parallelism of a job that runs, and wait until it runs on.

    It stops reading, takes a checkpoint, commits its output and goes on from there: no record is lost or doubled. A new
    process starts with the parallelism of its settings.
    """
    with refusals(json=json):
        widths = _widths(steps or [])
        if parallelism is None and not widths:
            raise InvalidConfig("to what? Give --parallelism N, or --step STEP=N, or both")
        with finding.found(job, ray) as found:
            done = _wait(f"{found.entry.flow}: rescaling", lambda: JobClient(found).rescale(parallelism, widths))
        print_json(done) if json else typer.echo(f"{done.name}: {_rescaled(done)}")


def cancel(
    job: Job,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    ray: finding.RayAddress = None,
    json: Json = False,
) -> None:
    """End a job at once, without a checkpoint: what it has not committed comes again when it is started again."""
    with refusals(json=json), finding.found(job, ray) as found:
        _confirm(found, yes)
        ended = _wait(f"{found.entry.flow}: cancelling", JobClient(found).cancel)
        if json:
            print_json(ended)
            return
        _print_ended(found, ended, to_be_resumed=True)


# ------------------------------------------------------------------------------------------------------------- finding
async def _summaries(jobs: Sequence[FoundJob]) -> list[dict[str, Any]]:
    found = await asyncio.gather(*(SYSTEM.run_blocking(_summary, job) for job in jobs))
    return [row for row in found if row is not None]


def _summary(job: FoundJob) -> dict[str, Any] | None:
    """None if it has just ended."""
    found: dict[str, Any] = msgspec.to_builtins(job.entry) | {"name": job.entry.flow, "status": None}
    try:
        found |= msgspec.to_builtins(JobClient(job).summary())
    except RequestFailed as error:
        if error.is_gone:
            return None
        found["problem"] = str(error)
    return found


def _absolute(uri: str) -> str:
    """The job's current folder may be another one."""
    return uri if "://" in uri else normalise_uri(uri)


def _widths(steps: Sequence[str]) -> dict[str, int]:
    widths = {}
    for step in steps:
        name, _, width = step.rpartition("=")
        if not name or not width.isdecimal():
            raise InvalidConfig(f"--step {step!r}: write it as STEP=N, such as --step totals=8")
        widths[name] = int(width)
    return widths


def _confirm(job: FoundJob, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidConfig(f"cancelling {job} takes no last checkpoint: say --yes if that is meant, or use stop")
    if not typer.confirm(f"Cancel {job}, without a last checkpoint?", err=True):
        raise InvalidConfig(f"{job.entry.flow} goes on")


# ------------------------------------------------------------------------------------------------------------- waiting
def _wait(what: str, ask: Callable[[], T]) -> T:
    try:
        with _spinner(what):
            return ask()
    except KeyboardInterrupt:
        typer.echo("not waited for any longer: the job goes on with what it was asked for", err=True)
        raise


@contextmanager
def _spinner(what: str) -> Iterator[None]:
    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bars.add_task(what, total=None)
        yield


def _watch(job: FoundJob, every: float, *, as_json: bool) -> None:
    show: Callable[[model.JobStatus], None]
    try:
        with status_view.screen(as_json=as_json) as show:
            asyncio.run(_follow(JobClient(job), every, show))
    except KeyboardInterrupt:
        return
    except RequestFailed as error:
        if not error.is_gone:
            raise
        if not as_json:
            typer.echo(f"{job.entry.flow} has ended.")


async def _follow(client: JobClient, every: float, show: Callable[[model.JobStatus], None]) -> None:
    while True:
        show(await SYSTEM.run_blocking(client.status))
        await SYSTEM.sleep(every)


# ------------------------------------------------------------------------------------------------------------ printing
def _print_ending(ending: Ending, *, as_json: bool) -> None:
    status = last_status(ending)
    if as_json:
        told = {"name": ending.flow, "status": ending.status, "error": ending.error, "ended_ms": ending.ended_ms}
        print_json(({} if status is None else msgspec.to_builtins(status)) | told)
        return
    ago = status_view.span(max(0.0, (SYSTEM.time_ms() - ending.ended_ms) / 1000))
    typer.echo(f"{ending.flow} has ended, {ago} ago: {finding.how_it_ended(ending)}")
    if status is not None and status.last_checkpoint is not None:
        typer.echo(f"last {status.last_checkpoint.kind}: {status.last_checkpoint.uri}")


def _taken(taken: model.Checkpoint) -> str:
    size = in_bytes(taken.state_bytes + taken.inflight_bytes)
    return f"{taken.kind} {taken.id} complete in {taken.seconds:.3f} s, {size}: {taken.uri}"


def _rescaled(done: model.Rescaled) -> str:
    last = done.last_rescale
    if last is None or not done.changed:
        return "runs by that parallelism already"
    return f"rescaled: {changes(last.before, last.after)}; nothing was read for {last.pause_seconds:.3f} s"


def _print_ended(job: FoundJob, ended: model.Ended, *, to_be_resumed: bool) -> None:
    last = ended.checkpoint
    typer.echo(f"{ended.name}: {ended.status}" + (f"; last {last.kind}: {last.uri}" if last else ""))
    if to_be_resumed and last is not None:
        typer.echo(f"To go on from it:  {_start(job, last.uri if last.kind == 'savepoint' else None)}")


def _start(job: FoundJob, restore: str | None) -> str:
    command = f"streamactors run {shlex.quote(job.entry.target) if job.entry.target else 'MODULE:FLOW'}"
    return command if restore is None else f"{command} --restore {shlex.quote(restore)}"
