"""What is in the wheel: all code, what is beside it (types, templates, the dashboard), and the pytest plugin."""

import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

from tests.programs import ROOT

PACKAGES = ("streamactors", "connectors", "pytest_streamactors")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the project's own backend, which needs no network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_all_files_of_the_packages_are_in_it(wheel: Path) -> None:
    files = {path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()}
    expected = {str(path) for path in files if "__pycache__" not in path.parts}
    with zipfile.ZipFile(wheel) as content:
        found = {name for name in content.namelist() if ".dist-info/" not in name}
    assert found == expected
    assert {"pytest_streamactors/__init__.py", "pytest_streamactors/py.typed", "streamactors/py.typed"} <= found


def test_pytest_and_the_shell_find_it(wheel: Path) -> None:
    entry_points = ConfigParser()
    with zipfile.ZipFile(wheel) as content:
        name = next(name for name in content.namelist() if name.endswith(".dist-info/entry_points.txt"))
        entry_points.read_string(content.read(name).decode())
    assert dict(entry_points["pytest11"]) == {"streamactors": "pytest_streamactors"}
    assert dict(entry_points["console_scripts"]) == {"streamactors": "streamactors.cli:main"}
