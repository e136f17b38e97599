"""Steering a job from outside as users do: `streamactors run` in one process, the other commands in others."""

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import click
import pytest
import typer
from typer.testing import CliRunner

from streamactors.cli.commands import app
from streamactors.cli.status_view import span
from tests.programs import PATIENCE, ROOT, Program, streamactors
from tests.test_cli import JOBS, order, output, read_all, run, totals_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("registry_folder")]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "jobs.py").write_text(JOBS)
    (tmp_path / "in").mkdir()
    return tmp_path


@contextmanager
def job(project: Path, *args: str) -> Iterator[Program]:
    """It runs, and others find it."""
    with streamactors("run", *(args or ("jobs:live",)), cwd=project) as program:
        program.wait_for(lambda: status_of(program) == "running", "running")
        yield program


def status_of(program: Program) -> str | None:
    return next((job["status"] for job in asked("list") if job["pid"] == program.pid), None)


def asked(*args: str) -> Any:
    """In this process, since it is quicker."""
    result = ask(*args, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def ask(*args: str) -> Any:
    return CliRunner().invoke(app, args)


def command(project: Path, *args: str) -> str:
    program = run(project, *args)
    assert program.end() == 0, program.stderr
    return program.stdout


# ---------------------------------------------------------------------------------------------------------- the journey
def test_a_job_is_stopped_with_a_savepoint_and_goes_on_from_it_elsewhere(project: Path, tmp_path: Path) -> None:
    order(project, range(300))
    with job(project) as program:
        program.wait_for(lambda: output(project), "any output")
        listed = command(project, "list")
        assert re.search(rf"orders +running +{program.pid} ", listed) and "checkpoints" in listed
        shown = command(project, "status")
        assert re.search(r"totals +process +1 +300 +300 ", shown) and "started as jobs:live" in shown
        assert re.search(r"orders: checkpoint \d+ complete in ", command(project, "checkpoint", "orders"))
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        told = command(elsewhere, "stop", "orders", "--savepoint", "saved").splitlines()
        assert program.end() == 0, program.stderr
    assert told[0] == f"orders: finished; last savepoint: {(elsewhere / 'saved').as_uri()}"
    again = told[1].removeprefix("To go on from it:  ")
    assert again == f"streamactors run jobs:live --restore {(elsewhere / 'saved').as_uri()}"
    assert command(project, "list") == "No job runs.\n"

    order(project, range(300, 1000))
    (elsewhere / "saved").rename(project / "moved")
    again = again.replace("jobs:live", "jobs:flow").replace(str(elsewhere / "saved"), str(project / "moved"))
    program = run(project, *shlex.split(again)[1:], "--parallelism", "3")
    assert program.end() == 0, program.stderr
    assert f"restoring {(project / 'moved').as_uri()}" in program.stderr
    assert output(project) == totals_of(range(1000))
    assert (project / "moved" / "manifest").exists()


def test_a_savepoint_of_a_job_that_goes_on(project: Path) -> None:
    order(project, range(300))
    with job(project) as program:
        program.wait_for(lambda: output(project), "any output")
        told = command(project, "savepoint", "orders", "saved").splitlines()
        assert re.fullmatch(rf"orders: savepoint \d+ complete in .* s, .* B: {(project / 'saved').as_uri()}", told[0])
        assert told[1] == f"To start from it:  streamactors run jobs:live --restore {(project / 'saved').as_uri()}"
        refused = run(project, "savepoint", "orders", "saved")
        assert refused.end() == 1 and "error: not done\nsavepoint file://" in refused.stderr
        assert "is not empty" in refused.stderr
        taken = asked("savepoint", "orders", str(project / "another"))
        assert taken["kind"] == "savepoint" and taken["uri"] == (project / "another").as_uri()
        assert asked("checkpoint")["id"] > taken["id"]
        ended = asked("stop", "orders")
        assert (ended["status"], ended["checkpoint"]["kind"]) == ("finished", "checkpoint")
        assert program.end() == 0, program.stderr
    order(project, range(300, 400))
    assert run(project, "run", "jobs:flow", "--storage", "copy", "--restore", "saved").end() == 0
    assert sum(map(len, output(project).values())) == 400


def test_a_job_that_claims_its_savepoint_deletes_it_in_the_end(project: Path) -> None:
    order(project, range(10))
    with job(project) as program:
        saved = asked("stop", "orders", "--savepoint", str(project / "saved"))["checkpoint"]["uri"]
        assert program.end() == 0, program.stderr
    refused = run(project, "run", "jobs:flow", "--claim", "--fresh")
    assert refused.end() == 2 and "claim" in refused.stderr
    order(project, range(10, 20))
    with streamactors("run", "jobs:live", "--restore", saved, "--claim", cwd=project) as program:
        program.wait_for(lambda: not (project / "saved" / "manifest").exists(), "the savepoint is gone")
        program.signal(signal.SIGTERM)
        assert program.end() == 0, program.stderr
    assert output(project) == totals_of(range(20))


def test_a_job_is_rescaled_while_it_runs(project: Path) -> None:
    order(project, range(300))
    with job(project) as program:
        program.wait_for(lambda: output(project), "any output")
        told = command(project, "rescale", "orders", "--parallelism", "2", "--step", "totals=3")
        assert re.fullmatch(r"orders: rescaled: .*totals 1 → 3.*; nothing was read for \d+\.\d{3} s\n", told)
        assert command(project, "rescale", "orders", "--step", "totals=3").endswith(" by that parallelism already\n")
        order(project, range(300, 400))
        for args, code, said in (
            (("--step", "totals"), 2, "write it as STEP=N"),
            (("--step", "total=2"), 1, "no step 'total'"),
        ):
            refused = run(project, "rescale", "orders", *args)
            assert refused.end() == code and said in " ".join(refused.stderr.split()), refused.stderr
        assert asked("rescale", "orders", "--parallelism", "1")["last_rescale"]["after"]["totals"] == 3
        assert asked("stop", "orders")["status"] == "finished"
        assert program.end() == 0, program.stderr
    assert run(project, "run", "jobs:flow").end() == 0
    assert output(project) == totals_of(range(400))


def test_drained_it_is_not_offered_to_go_on(project: Path) -> None:
    order(project, range(10))
    with job(project) as program:
        told = command(project, "stop", "orders", "--drain").splitlines()
        assert program.end() == 0, program.stderr
    assert len(told) == 1 and told[0].startswith("orders: finished; last checkpoint: file://")
    assert output(project) == totals_of(range(10))


def test_cancelled_a_job_takes_no_last_checkpoint_and_says_so_by_its_exit_code(project: Path) -> None:
    order(project, range(10))
    with job(project) as program:
        refused = run(project, "cancel", "orders")
        assert refused.end() == 2 and "say --yes" in refused.stderr
        assert asked("status")["status"] == "running"
        assert command(project, "cancel", "orders", "--yes").startswith("orders: cancelled")
        assert program.end() == 130, program.stderr


def test_a_script_is_steered_too(project: Path) -> None:
    order(project, range(10))
    with Program("jobs.py", cwd=project) as program:
        program.wait_for(lambda: status_of(program) == "running", "running")
        program.wait_for(lambda: output(project), "any output")
        assert "To start from it:  streamactors run MODULE:FLOW" in command(project, "savepoint", "orders", "saved")
        assert asked("stop", "orders")["status"] == "finished"
        assert program.end() == 0, program.stderr


# ------------------------------------------------------------------------------------------------------------- watching
def test_status_is_watched_until_the_job_ends(project: Path) -> None:
    order(project, range(10))
    with job(project) as program:
        plain = streamactors("status", "--watch", "--every", "20ms", cwd=project)
        lines = streamactors("status", "--watch", "--every", "20ms", "--json", cwd=project)
        with plain, lines:
            plain.wait_for(lambda: plain.stdout.count("\n") > 2, "a few looks")
            lines.wait_for(lambda: lines.stdout.count("\n") > 2, "a few looks")
            assert asked("stop", "orders")["status"] == "finished"
            assert (plain.end(), lines.end()) == (0, 0), plain.stderr + lines.stderr
        assert program.end() == 0, program.stderr
    assert plain.stdout.startswith("orders: running") and plain.stdout.endswith("orders has ended.\n")
    assert {json.loads(line)["name"] for line in lines.stdout.splitlines()} == {"orders"}


def test_on_a_terminal_the_table_is_drawn_again_and_cancelling_is_asked_for(project: Path) -> None:
    order(project, range(10))
    with job(project) as program:
        watch = "status", "--watch", "--every", "20ms"
        shown = on_a_terminal(project, *watch, until=r"operator +kind .* in/s ", then=interrupted)
        assert shown.code == 0 and "totals" in shown.text
        question = r"without a last checkpoint\? \[y/N\]"
        shown = on_a_terminal(project, "cancel", "orders", until=question, then=typing("n"))
        assert shown.code == 2 and "refused" in shown.text and "orders goes on" in shown.text
        shown = on_a_terminal(project, "cancel", "orders", until=question, then=typing("y"))
        assert shown.code == 0 and "orders: cancelled" in shown.text
        assert program.end() == 130


class Shown(NamedTuple):
    code: int
    text: str


def on_a_terminal(
    project: Path, *args: str, until: str, then: Callable[["subprocess.Popen[bytes]", int], object]
) -> Shown:
    """`then` is given the process and its terminal as soon as the screen shows `until`."""
    ours, theirs = pty.openpty()
    environ = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "200"}
    command = [sys.executable, "-m", "streamactors", *args]
    process = subprocess.Popen(command, cwd=project, env=environ, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    screen, done = "", False
    for printed in read_all(ours):
        screen += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed)
        if not done and re.search(until, screen):
            done = True
            then(process, ours)
    os.close(ours)
    return Shown(process.wait(PATIENCE), screen)


def interrupted(process: "subprocess.Popen[bytes]", _: int) -> None:
    process.send_signal(signal.SIGINT)


def typing(text: str) -> Callable[["subprocess.Popen[bytes]", int], object]:
    return lambda _, terminal: os.write(terminal, f"{text}\n".encode())


def test_whoever_does_not_wait_any_longer_changes_nothing(project: Path) -> None:
    order(project, range(10))
    with streamactors("run", "jobs:stuck", "--storage", "other", "--interval", "1h", cwd=project) as program:
        program.wait_for((project / "waiting").exists, "the operator waits")
        with streamactors("savepoint", "stuck", "saved", cwd=project) as asking:
            program.wait_for(lambda: "asked for: savepoint" in program.stderr, "it was asked")
            asking.signal(signal.SIGINT)
            assert asking.end() == 130
            assert "the job goes on with what it was asked for" in asking.stderr
        assert asked("status", "stuck")["status"] == "running"
        assert "given up" not in program.stderr
        with streamactors("savepoint", "stuck", "another", cwd=project) as asking:
            program.wait_for(lambda: program.stderr.count("asked for: savepoint") == 2, "it was asked again")
            assert asked("cancel", "stuck", "--yes")["status"] == "cancelled"
            assert asking.end() == 1 and "error: not done" in asking.stderr
        assert program.end() == 130, program.stderr


def test_cancelled_while_it_stops_a_job_says_so_by_its_exit_code(project: Path) -> None:
    order(project, range(10))
    with streamactors("run", "jobs:stuck", "--storage", "other", "--interval", "1h", cwd=project) as program:
        program.wait_for((project / "waiting").exists, "the operator waits")
        program.signal(signal.SIGTERM)
        program.wait_for(lambda: "a second signal cancels" in program.stderr, "stopping")
        with streamactors("stop", "stuck", cwd=project) as asking:
            program.wait_for(lambda: "asked for: stop" in program.stderr, "it was asked")
            assert asked("cancel", "stuck", "--yes")["status"] == "cancelled"
            assert asking.end() == 1 and "error: not done" in asking.stderr
        assert program.end() == 130, program.stderr


# ------------------------------------------------------------------------------------------------------------- choosing
def test_two_jobs_of_one_name_are_told_apart(project: Path) -> None:
    order(project, range(10))
    with job(project) as first, job(project, "jobs:live", "--storage", "other") as second:
        refused = run(project, "status", "orders")
        assert refused.end() == 2 and "2 jobs are called 'orders'" in refused.stderr
        assert f"pid {first.pid}, storage" in refused.stderr and f"pid {second.pid}, storage" in refused.stderr
        assert run(project, "checkpoint").end() == 2
        assert asked("status", str(first.pid))["pid"] == first.pid
        assert asked("status", (project / "other").as_uri())["pid"] == second.pid
        assert {each["pid"] for each in asked("list")} == {first.pid, second.pid}
        assert asked("stop", str(second.pid))["name"] == "orders"
        assert second.end() == 0
        assert asked("status")["pid"] == first.pid
        first.signal(signal.SIGTERM)
        assert first.end() == 0


@pytest.mark.kill
def test_a_killed_job_is_forgotten_by_the_next_command(project: Path, registry_folder: Path) -> None:
    with job(project) as program:
        program.signal(signal.SIGKILL)
        program.end()
    assert len(list(registry_folder.iterdir())) == 2
    refused = run(project, "stop", "orders")
    assert refused.end() == 2 and "job 'orders' does not run here" in refused.stderr
    assert list(registry_folder.iterdir()) == []


def test_a_suspended_job_is_listed_as_one_that_does_not_answer(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamactors.observe.client.PATIENCE", 0.1)
    with job(project) as program:
        program.signal(signal.SIGSTOP)
        try:
            (listed,) = asked("list")
            assert listed["status"] is None and "does not answer" in listed["problem"]
            assert "no answer" in ask("list").stdout
            assert ask("status").exit_code == 1
        finally:
            program.signal(signal.SIGCONT)
        program.signal(signal.SIGTERM)
        assert program.end() == 0


@pytest.mark.parametrize("args", [["status"], ["checkpoint"], ["savepoint", "orders", "x"], ["stop", "orders"]])
def test_without_any_job(args: list[str]) -> None:
    result = ask(*args)
    assert result.exit_code == 2 and "there is none" in result.stderr
    assert ask("list").stdout == "No job runs.\n" and asked("list") == []


# ---------------------------------------------------------------------------------------------------- without steering
def test_a_job_may_ask_not_to_be_steered(project: Path, registry_folder: Path) -> None:
    order(project, range(10))
    with streamactors("run", "jobs:live", "--no-control", cwd=project) as program:
        program.wait_for(lambda: output(project), "any output")
        assert not registry_folder.exists() and asked("list") == []
        program.signal(signal.SIGTERM)
        assert program.end() == 0


def test_where_no_folder_is_safe_a_job_runs_and_says_that_it_can_t_be_steered(project: Path) -> None:
    order(project, range(10))
    for folder in (os.environ["XDG_RUNTIME_DIR"], os.environ["TMPDIR"]):
        Path(folder).chmod(0o777)
    program = run(project, "run", "jobs:flow")
    assert program.end() == 0, program.stderr
    assert "orders: this job can't be steered from outside: " in program.stderr and "chmod +t" in program.stderr
    assert output(project) == totals_of(range(10))
    result = ask("list")
    assert result.stdout == "No job runs.\n" and "warning: " in result.stderr


# ------------------------------------------------------------------------------------------------------------- the rest
@pytest.mark.parametrize("name", ["list", "status", "checkpoint", "savepoint", "stop", "cancel"])
def test_help_documents_exit_codes(name: str) -> None:
    assert "Exit codes: 0 done; 1 the job could not do it" in " ".join(ask(name, "--help").stdout.split())


def test_the_document_tells_of_every_command_and_no_other() -> None:
    document = (ROOT / "docs" / "cli.md").read_text()
    told = set(re.findall(r"`streamactors (\w+)[^`]*` \|", document))
    assert told == set(cast("click.Group", typer.main.get_command(app)).commands)
    for name in told:
        assert ask(name, "--help").exit_code == 0


@pytest.mark.parametrize(("every", "told"), [("soon", "--every"), ("0s", "longer than zero")])
def test_how_often_must_make_sense(project: Path, every: str, told: str) -> None:
    with job(project) as program:
        result = ask("status", "--watch", "--every", every)
        assert result.exit_code == 2 and told in result.stderr
        program.signal(signal.SIGTERM)
        assert program.end() == 0


@pytest.mark.parametrize(
    ("seconds", "words"), [(-1, "0 s"), (59.4, "59 s"), (60, "1 min"), (11_040, "3 h 4 min"), (190_800, "2 d 5 h")]
)
def test_spans_of_time(seconds: float, words: str) -> None:
    assert span(seconds) == words
