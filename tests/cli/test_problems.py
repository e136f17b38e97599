"""Errors under `--json`: one object, on the last line of stderr, and the exit code that there is without."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from streamactors.cli import commands, inspection
from streamactors.cli.commands import app
from streamactors.cli.problem import code_of, problem_of, wants_json
from streamactors.errors import AmbiguousJob, InvalidConfig, JobFailed, RecordFailed, RequestFailed, StorageInUse
from tests.programs import streamactors

JOBS = """
import streamactors as sa
from connectors.memory import ListSource

def refuse(value):
    raise ValueError(f"{value} is negative")

flow = sa.Dataflow("numbers")
flow.source("in", ListSource([-1])).map(refuse, name="check").print()

def breaks():
    return {}["absent"]
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "problem_jobs.py").write_text(JOBS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "problem_jobs", raising=False)
    return tmp_path


def problem_in(stderr: str) -> dict[str, Any]:
    """Nothing of it is drawn as a panel or told as text."""
    *before, last = stderr.splitlines()
    assert all(line.startswith("{") for line in before), stderr
    told = json.loads(last)
    assert set(told) == {"error"} and {"code", "message", "advice"} <= set(told["error"])
    problem: dict[str, Any] = told["error"]
    return problem


def main(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr(sys, "argv", ["streamactors", *args])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.usefixtures("registry_folder", "project")
@pytest.mark.parametrize(
    ("args", "code"),
    [
        ("status nobody", "no-such-job"),
        ("checkpoint nobody", "no-such-job"),
        ("savepoint nobody saved", "no-such-job"),
        ("stop nobody", "no-such-job"),
        ("cancel nobody --yes", "no-such-job"),
        ("graph problem_jobs:absent", "invalid-dataflow"),
        ("explain problem_jobs:flow --set nonsense=1", "invalid-config"),
        ("inspect absent", "invalid-config"),
        ("new 9lives", "invalid-config"),
        ("doctor --timeout never", "invalid-config"),
        ("run problem_jobs", "invalid-dataflow"),
    ],
)
def test_a_refusal_is_an_object(args: str, code: str) -> None:
    """And the exit code is that of the panel."""
    plain, told = CliRunner().invoke(app, args.split()), CliRunner().invoke(app, [*args.split(), "--json"])
    assert plain.exit_code == told.exit_code == 2
    assert plain.stderr.startswith("error: refused") and told.stdout == ""
    problem = problem_in(told.stderr)
    assert problem["code"] == code and problem["message"] in plain.stderr


@pytest.mark.parametrize(
    "args", [("stop",), ("list", "--absent"), ("inspect", "x", "--verify", "nothing"), ("absent",)]
)
def test_what_the_command_line_itself_refuses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: tuple[str, ...]
) -> None:
    assert main(monkeypatch, *args) == main(monkeypatch, *args, "--json") == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert problem_in(told)["code"] == "usage" and problem_in(told)["advice"] == "see what there is: --help"


def test_what_nobody_foresaw(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    async def broken(*_: Any, **__: Any) -> int:
        raise LookupError("a bug")

    monkeypatch.setattr(inspection, "inspect", broken)
    assert main(monkeypatch, "inspect", "x", "--json") == 1
    problem = problem_in(capsys.readouterr().err)
    assert (problem["code"], problem["message"]) == ("internal-error", "LookupError: a bug")
    assert "Traceback" in problem["traceback"]


def test_what_succeeds_ends_as_before(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(monkeypatch, "list", "--help", "--json") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.usefixtures("registry_folder")
def test_a_job_that_fails(project: Path) -> None:
    program = streamactors("run", "problem_jobs:flow", "--json", "--traceback", cwd=project)
    assert program.end() == 1
    problem = problem_in(program.stderr)
    assert "ValueError: -1 is negative" in problem.pop("traceback")
    assert problem == {
        "code": "job-failed",
        "message": "ValueError: -1 is negative",
        "advice": "mend the cause; under checkpoints the same command goes on from the last one",
        "where": "problem_jobs.py:6 in refuse",
        "operator": "map-1",
        "origin": "ListSource:0",
    }


@pytest.mark.slow
@pytest.mark.usefixtures("registry_folder")
def test_a_server_that_can_not_be(project: Path) -> None:
    program = streamactors("serve", "--listen", "nowhere", "--json", cwd=project)
    assert program.end() == 2 and program.stdout == ""
    assert problem_in(program.stderr)["code"] == "invalid-config"


@pytest.mark.usefixtures("project")
def test_the_users_own_error_in_a_module_comes_with_what_it_hindered() -> None:
    told = CliRunner().invoke(app, ["graph", "problem_jobs:breaks", "--json"])
    problem = problem_in(told.stderr)
    assert problem["message"] == "problem_jobs:breaks() failed: KeyError: 'absent'"
    assert problem["where"] == "problem_jobs.py:12 in breaks"


def test_codes_are_those_of_the_classes_or_of_the_answer() -> None:
    assert code_of(RequestFailed("job-not-running", "it has ended")) == "job-not-running"
    errors = (InvalidConfig(""), StorageInUse(""), AmbiguousJob(""))
    assert [code_of(error) for error in errors] == ["invalid-config", "storage-in-use", "ambiguous-job"]
    failed = JobFailed("the job has failed")
    failed.__cause__ = RecordFailed("sum", "no", key="k", origin="in@3")
    problem = problem_of(failed)
    assert (problem.operator, problem.key, problem.origin, problem.traceback) == ("sum", "'k'", "in@3", None)


def test_who_wants_json() -> None:
    assert wants_json(["stop", "--json"]) and wants_json(["run", "x:y", "--log-format", "json"])
    assert wants_json(["run", "--log-format=json", "x:y"])
    assert not wants_json(["run", "x:y", "--log-format", "text"]) and not wants_json(["stop", "--", "--json"])
