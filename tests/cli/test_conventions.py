"""What holds for every command: answers for programs, exit codes, completion, errors."""

import asyncio
import contextlib
import datetime as dt
import io
import json
import re
import signal
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, cast

import click
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

import streamactors as sa
from connectors.memory import ListSink, ListSource
from streamactors.cli.commands import app
from streamactors.cli.failure import describe
from streamactors.cli.live import table
from streamactors.cli.progress import Progress, ProgressMeter, as_line
from streamactors.errors import JobFailed, RecordFailed
from streamactors.launch import JobHandle, run_until_signalled
from streamactors.runtime.info import CheckpointUnderWay, Restoring
from tests.programs import ROOT, streamactors
from tests.test_cli import metrics

COMMANDS: Mapping[str, click.Command] = cast("click.Group", typer.main.get_command(app)).commands
JOBS = """
import asyncio
import streamactors as sa
from connectors.memory import ListSource

async def wait_for_ever(value):
    await asyncio.Event().wait()

def of(*values):
    flow = sa.Dataflow("numbers")
    flow.source("in", ListSource(values)).map(lambda value: 1 // value).print()
    return flow

good, bad = of(1), of(0)

def stuck():
    flow = sa.Dataflow("stuck")
    flow.source("in", ListSource([1])).map(wait_for_ever).print()
    return flow
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "jobs.py").write_text(JOBS)
    return tmp_path


def ask(*args: str) -> Any:
    return CliRunner().invoke(app, args)


# --------------------------------------------------------------------------------------------------------- for programs
def test_every_command_answers_programs() -> None:
    for name, command in COMMANDS.items():
        assert "--json" in [option for parameter in command.params for option in parameter.opts], name


@pytest.mark.slow
def test_a_demo_for_programs(project: Path) -> None:
    program = streamactors("demo", "--events", "1000", "--json", cwd=project)
    assert program.end() == 0, program.stderr
    scenes = [json.loads(line) for line in program.stdout.splitlines()]
    assert {"told", "progress", "killed", "verdict"} == {scene["scene"] for scene in scenes}
    assert scenes[-1]["equal"] is True


@pytest.mark.slow
@pytest.mark.usefixtures("registry_folder")
def test_where_it_serves_for_programs(project: Path) -> None:
    with streamactors("serve", "--listen", "127.0.0.1:0", "--json", cwd=project) as program:
        program.wait_for(lambda: program.stdout, "serving")
        told = json.loads(program.stdout)
        assert told["rest"].endswith("/api/v1/jobs") and told["metrics"].endswith("/metrics")
        program.signal(signal.SIGTERM)
        assert program.end() == 0, program.stderr
    assert "Token" in program.stderr and "oken" not in program.stdout


# ----------------------------------------------------------------------------------------------------------- exit codes
def test_every_command_tells_its_exit_codes() -> None:
    for name in COMMANDS:
        assert re.search(r"Exit codes: .*0", " ".join(ask(name, "--help").stdout.split())), name


def documented(command: str) -> set[int]:
    """By the table in the document."""
    lines = (ROOT / "docs" / "cli.md").read_text().split("## Exit codes")[1].split("## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    column = next(number for number, names in enumerate(rows[0]) if f"`{command}`" in names)
    return {int(row[0]) for row in rows[2:] if row[column]}


@pytest.mark.slow
@pytest.mark.usefixtures("registry_folder")
@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["run", "jobs:good", "--json"], 0),
        (["run", "jobs:bad"], 1),
        (["run", "jobs:absent"], 2),
        (["list"], 0),
        (["status", "nobody"], 2),
        (["stop"], 2),
        (["doctor", "jobs:absent"], 1),
        (["doctor", "--absent"], 2),
        (["inspect", "absent"], 2),
        (["graph", "jobs:absent"], 2),
        (["new", "9lives"], 2),
        (["serve", "--listen", "nowhere"], 2),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else str(value),
)
def test_exit_codes(project: Path, args: list[str], code: int) -> None:
    program = streamactors(*args, cwd=project)
    assert program.end() == code, program.stderr
    assert args[0] in ("graph", "new", "serve") or code in documented(args[0])
    assert (code == 0) or program.stderr or args[0] == "doctor"
    assert "Traceback" not in program.stderr


# ----------------------------------------------------------------------------------------------------------- completion
def completed(project: Path, *words: str) -> set[str]:
    environ = {
        "_STREAMACTORS_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["streamactors", *words]),
        "COMP_CWORD": str(len(words)),
    }
    program = streamactors(cwd=project, environ=environ)
    assert program.end() == 0, program.stderr
    return set(program.stdout.split())


@pytest.mark.slow
@pytest.mark.usefixtures("registry_folder")
def test_a_shell_completes_commands_options_and_jobs(project: Path) -> None:
    assert completed(project, "s") == {"savepoint", "serve", "state", "status", "stop"}
    assert "--dry-run" not in completed(project, "stop", "--") and "--drain" in completed(project, "stop", "--")
    assert completed(project, "stop", "st") == set()
    with streamactors("run", "jobs:stuck", cwd=project) as program:
        program.wait_for(lambda: json.loads(ask("list", "--json").stdout), "running")
        assert completed(project, "stop", "st") == {"stuck"}
        program.signal(signal.SIGINT)
        program.wait_for(lambda: "a second signal cancels" in program.stderr, "stopping")
        program.signal(signal.SIGINT)
        assert program.end() == 130


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_what_a_shell_needs_is_shown(project: Path, shell: str) -> None:
    program = streamactors(cwd=project, environ={"_STREAMACTORS_COMPLETE": f"source_{shell}"})
    assert program.end() == 0, program.stderr
    assert "_STREAMACTORS_COMPLETE" in program.stdout and "streamactors" in program.stdout


# --------------------------------------------------------------------------------------------------------------- errors
async def failing(number: int) -> None:
    raise LookupError(f"no row {number}")


async def three_at_once() -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(failing(number))


async def test_of_several_errors_at_once_the_first_is_shown() -> None:
    with pytest.raises(ExceptionGroup) as raised:
        await three_at_once()
    record = RecordFailed("rows", "failed", key="k", origin="orders[0]@7")
    record.__cause__ = raised.value
    failed = JobFailed("the job has failed")
    failed.__cause__ = record
    lines = describe(failed)
    assert re.search(r"test_conventions\.py:\d+ in failing", lines[0]) and "raise LookupError" in lines[1]
    assert lines[2:] == [
        "LookupError: no row 0",
        "(and 2 more at the same time)",
        "in operator 'rows', key 'k', record orders[0]@7",
    ]


# ------------------------------------------------------------------------------------------------------------- progress
class Sum(sa.KeyedOperator[int, int, int]):
    total = sa.ValueState(int, default=0)

    def process(self, value: int, ctx: sa.Context[int, int]) -> None:
        self.total.set(self.total.get() + value)


def sums(values: range) -> sa.Dataflow:
    flow = sa.Dataflow("sums")
    flow.source("in", ListSource(values)).key_by(int).process("sum", Sum).sink("out", ListSink())
    return flow


@pytest.mark.parametrize("backend", ["heap", "rocksdb"])
async def test_of_a_restore_a_job_tells_how_far_it_is(tmp_path: Path, backend: Any) -> None:
    checkpoints = sa.Checkpoints(tmp_path.as_uri(), interval=dt.timedelta(hours=1))
    config = sa.Config(checkpoints=checkpoints, parallelism=2, state_backend=backend)
    await sa.run(sums(range(2000)), config)
    seen: list[Restoring] = []

    @contextlib.asynccontextmanager
    async def beside(handle: JobHandle) -> AsyncIterator[None]:
        async def look() -> None:
            while handle.status != "running":
                seen.extend(filter(None, [handle.restoring]))
                await asyncio.sleep(0)

        looking = asyncio.ensure_future(look())
        yield
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        assert handle.restoring is None

    assert await run_until_signalled(sums(range(2000)), config, beside=beside) == 0
    done, totals = [one.done for one in seen], {one.total for one in seen}
    assert done == sorted(done) and done[0] == 0 and len(totals) == 1
    assert 0.5 < done[-1] / totals.pop() <= 1  # headers of files are not counted


def test_a_restore_has_a_bar_and_words() -> None:
    meter = ProgressMeter("orders", ["in"])
    progress = meter.measure(metrics(0, status="starting", subtasks={}), 1.0, restoring=Restoring(250_000, 1_000_000))
    assert as_line(progress) == "orders: starting, restoring, 250.0 kB of 1.0 MB"
    assert "250.0 kB of 1.0 MB restored" in drawn(progress)


def drawn(progress: Progress) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(table(progress))
    return cast("io.StringIO", console.file).getvalue()


@pytest.mark.parametrize(("seconds", "shown"), [(0.2, False), (12.0, True)])
def test_a_checkpoint_that_takes_long_has_a_bar(seconds: float, shown: bool) -> None:
    meter = ProgressMeter("orders", ["in", "sum", "out"])
    progress = meter.measure(metrics(5), 1.0, [CheckpointUnderWay(7, seconds, ())])
    assert ("checkpoint 7: 0 of 4 subtasks, 12 s" in drawn(progress)) == shown
