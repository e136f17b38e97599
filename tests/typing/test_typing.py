"""Runs both type checkers over the files beside this one: what they infer, and what they refuse."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

Errors = dict[int, str]
"""By line."""


def mypy(path: Path) -> Errors:
    """With the settings of pyproject.toml, which are strict; errors in imported files are `make check`'s."""
    # Where it finds nothing, some versions print an empty line.
    found = [json.loads(line) for line in output_of("mypy", "--output=json", str(path)).split("\n") if line.strip()]
    return {each["line"]: each["message"] for each in found if Path(each["file"]).name == path.name}


def pyright(path: Path) -> Errors:
    report = json.loads(output_of("pyright", "--outputjson", "--pythonpath", sys.executable, str(path)))
    assert report["summary"]["filesAnalyzed"] == 1
    errors = [each for each in report["generalDiagnostics"] if each["severity"] == "error"]
    return {each["range"]["start"]["line"] + 1: each["message"] for each in errors}


def output_of(checker: str, *arguments: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", checker, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode in (0, 1), f"{checker} did not run: {ran.stdout}{ran.stderr}"
    return ran.stdout


both_checkers = pytest.mark.parametrize("check", [mypy, pyright])


@pytest.mark.slow
@both_checkers
@pytest.mark.parametrize("name", ["flows.py", "example.py", "testing.py", "windows.py"])
def test_types_are_inferred(check: Callable[[Path], Errors], name: str) -> None:
    assert check(HERE / name) == {}


@pytest.mark.slow
@both_checkers
def test_mistakes_are_refused(check: Callable[[Path], Errors], tmp_path: Path) -> None:
    first, *lines = (HERE / "refused.py").read_text().splitlines()
    assert first == "# type: ignore"  # for `make check`
    path = tmp_path / "refused.py"
    path.write_text("\n".join(["", *lines]))
    errors = check(path)
    wanted = {number for number, line in enumerate(lines, 2) if line.endswith("# refused")}
    assert len(wanted) > 20
    assert {number: errors[number] for number in errors.keys() - wanted} == {}, "refused what is right"
    assert {number: lines[number - 2] for number in wanted - errors.keys()} == {}, "let a mistake pass"
