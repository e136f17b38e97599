"""`streamactors new`: what it makes runs at once, with nothing but what the wheel brings."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from streamactors.cli.commands import app
from streamactors.cli.project import TEMPLATE, module_of
from streamactors.errors import InvalidConfig
from tests.programs import PATIENCE, ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as pip installs it from the sources, alone in a folder."""
    folder = tmp_path_factory.mktemp("site")
    install = ["install", "-q", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(folder), str(ROOT)]
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *install], check=True, cwd=folder)
    return folder


def ended(site: Path, cwd: Path, *command: str) -> str:
    """What it prints."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("STREAMACTORS_", "PYTEST_"))}
    environ |= {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_project_runs_and_its_test_passes(site: Path, tmp_path: Path) -> None:
    command = str(site / "bin" / "streamactors")
    told = ended(site, tmp_path, command, "new", "my-orders")
    assert told in (ROOT / "docs" / "cli.md").read_text()
    project = tmp_path / "my-orders"
    where = ended(site, project, sys.executable, "-c", "import streamactors; print(streamactors.__file__)")
    assert Path(where.strip()).is_relative_to(site)
    ended(site, project, command, "run", "my_orders:flow", "--quiet")
    lines = [line for path in (project / "output").glob("*.jsonl") for line in path.read_text().splitlines()]
    last = {total["customer"]: total for total in map(json.loads, lines)}
    assert last["ann"] == {"customer": "ann", "orders": 2, "amount": 20.0} and len(lines) == 5
    tested = ended(site, project, sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert "2 passed" in tested and "warning" not in tested
    assert ended(site, project, command, "doctor", "my_orders:flow").splitlines()[-1] == "Nothing is wrong."
    assert ended(site, project, command, "graph", "my_orders:flow").startswith("flowchart LR\n")
    ruff = sys.executable, "-m", "ruff"
    ended(site, project, *ruff, "check", "--isolated", "--no-cache", "--select", "E,F,I,B,UP", ".")
    ended(site, project, *ruff, "format", "--isolated", "--no-cache", "--check", ".")


# ------------------------------------------------------------------------------------------------------ in this process
def new(*args: str) -> Any:
    return CliRunner().invoke(app, ["new", *args])


def test_it_says_what_it_has_made(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "my_job"
    result = new(str(folder), "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    to_test = ["pip install pytest pytest-asyncio", "python -m pytest"]
    assert told["name"] == "my_job" and told["next"][1:] == ["streamactors run my_job:flow", *to_test]
    assert sorted(told["files"]) == sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
    )
    assert len(told["files"]) == len(TEMPLATE)
    assert not [path for path in folder.rglob("*") if path.is_file() and "{{" in path.read_text()]


def test_a_folder_with_anything_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    assert new(str(tmp_path / "job")).exit_code == 0
    (tmp_path / "job" / "README.md").write_text("mine")
    result = new(str(tmp_path / "job"))
    assert result.exit_code == 2 and "not an empty folder" in result.stderr
    assert (tmp_path / "job" / "README.md").read_text() == "mine"
    (tmp_path / "file").write_text("")
    assert new(str(tmp_path / "file")).exit_code == 2
    result = new(str(tmp_path / "file" / "below"))
    assert result.exit_code == 2 and "can't make" in result.stderr


@pytest.mark.parametrize("name", ["9lives", "my job", "a--b", "-x", "a.b", "json", "streamactors", "class", "Tests"])
def test_names_that_no_module_can_have_are_refused(name: str) -> None:
    with pytest.raises(InvalidConfig, match="can't be a project's name"):
        module_of(name)


def test_a_dash_is_no_part_of_a_module() -> None:
    assert (module_of("my-Job-2"), module_of("orders")) == ("my_job_2", "orders")
