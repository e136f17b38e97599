"""What is released: the wheel and the source archive, built, compared, and installed where there is only the core.

Needs a package index, for the few packages that the core asks for.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.programs import ROOT

pytestmark = pytest.mark.slow

CORE_ONLY = Path(__file__).with_name("core_only.py")
EXTRAS = ("kafka", "kafka ", "rocksdb", "ray", "s3", "objectstore", "metrics", "otel", "parquet", "pandas")
"""Some have two places where they are missed."""
EPOCH = "1700000000"
"""SOURCE_DATE_EPOCH: what is built of the same files at the same date is the same."""


def build(kind: str, source: Path, folder: Path) -> Path:
    """By the pinned hatchling, so that nothing is fetched."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    environ = os.environ | {"SOURCE_DATE_EPOCH": EPOCH}
    subprocess.run(command, cwd=source, env=environ, check=True, capture_output=True)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("released")


@pytest.fixture(scope="module")
def sdist(folder: Path) -> Path:
    return build("sdist", ROOT, folder / "sdist")


@pytest.fixture(scope="module")
def unpacked(sdist: Path, folder: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    return source


@pytest.fixture(scope="module")
def wheel(unpacked: Path, folder: Path) -> Path:
    """Built of the archive, as an index's users do who take no wheel."""
    return build("wheel", unpacked, folder / "wheel")


@pytest.fixture(scope="module")
def fresh(wheel: Path, folder: Path) -> Path:
    """The scripts' folder of an environment with the wheel and what the core needs, at the pinned versions."""
    home = folder / "fresh"
    venv.create(home, with_pip=False)
    scripts = home / "bin"
    installer = installing(scripts / "python")
    command = [*installer, "-c", str(ROOT / "constraints.txt"), str(wheel)]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert asked.returncode == 0, f"this needs a package index:\n{asked.stdout}{asked.stderr}"
    return scripts


def installing(python: Path) -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
        return [*pip, "install", "-q", "--no-compile"]
    uv = shutil.which("uv")
    assert uv is not None, "this needs pip or uv"
    return [uv, "pip", "install", "-q", "--python", str(python)]


def in_fresh(fresh: Path, *command: str, cwd: Path) -> str:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "STREAMACTORS_"))}
    asked = [str(fresh / command[0]), *command[1:]]
    done = subprocess.run(asked, cwd=cwd, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ------------------------------------------------------------------------------------------------------- what is built
def test_the_same_files_make_the_same_wheel_byte_by_byte(wheel: Path, folder: Path) -> None:
    ours = build("wheel", ROOT, folder / "wheel of the tree")
    assert ours.name == wheel.name == f"streamactors-{version()}-py3-none-any.whl"
    with zipfile.ZipFile(ours) as of_tree, zipfile.ZipFile(wheel) as of_archive:
        assert of_tree.namelist() == of_archive.namelist()
    assert ours.read_bytes() == wheel.read_bytes()


def test_the_archive_makes_itself_again(sdist: Path, unpacked: Path, folder: Path) -> None:
    assert build("sdist", unpacked, folder / "sdist again").read_bytes() == sdist.read_bytes()


def test_the_archive_has_all_that_a_contributor_needs(unpacked: Path) -> None:
    names = {path.name for path in unpacked.iterdir()} - {"PKG-INFO"}
    ours = {"pyproject.toml", "Makefile", "constraints.txt", "mkdocs.yml", ".ci", ".gitignore", "LICENSE", "tests"}
    ours |= {"streamactors", "connectors", "pytest_streamactors", "examples", "benchmarks", "docs"}
    assert names == ours | {path.name for path in ROOT.glob("*.md")}
    assert os.access(unpacked / ".ci" / "lock", os.X_OK)


def version() -> str:
    found = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


# --------------------------------------------------------------------------------------------------- what is installed
@pytest.fixture(scope="module")
def told(fresh: Path, folder: Path) -> Any:
    """What core_only.py has found there."""
    (folder / "run").mkdir()
    return json.loads(in_fresh(fresh, "python", "-I", str(CORE_ONLY), cwd=folder / "run"))


def test_everything_can_be_imported_but_what_stands_for_an_extra(told: Any, fresh: Path) -> None:
    assert told["where"].startswith(str(fresh.parent))
    failed = {module: error for module, error in told["imported"].items() if error is not None}
    of_kafka = {module for module in told["imported"] if module.startswith("connectors.kafka")}
    assert len(told["imported"]) > 300 and len(of_kafka) > 10
    # Reached by nobody but the modules that name the extra.
    behind = {"pytest_streamactors", "streamactors.observe.prometheus", "streamactors.deploy.ray"}
    assert failed.keys() - of_kafka - behind == set()
    assert all("streamactors[kafka]" in failed[module] for module in of_kafka)


def test_a_flow_runs(told: Any) -> None:
    assert told["totals"] == ["2", "4", "6"]


@pytest.mark.parametrize("extra", EXTRAS)
def test_each_optional_part_names_its_extra(told: Any, extra: str) -> None:
    assert f"pip install 'streamactors[{extra.strip()}]'" in told["said"][extra]


def test_the_command_line_is_there(fresh: Path, tmp_path: Path) -> None:
    assert in_fresh(fresh, "streamactors", "--version", cwd=tmp_path).strip() == f"streamactors {version()}"
    in_fresh(fresh, "streamactors", "new", "shop", cwd=tmp_path)
    assert "flowchart" in in_fresh(fresh, "streamactors", "graph", "shop:flow", cwd=tmp_path / "shop")


def test_the_demo_needs_no_more(fresh: Path, tmp_path: Path) -> None:
    """The README's first two commands."""
    told = in_fresh(fresh, "streamactors", "demo", "--events", "2000", cwd=tmp_path)
    assert "2,000 found · 0 lost · 0 doubled" in told


def test_what_is_public_says_so_by_its_types(fresh: Path) -> None:
    (installed,) = fresh.parent.glob("lib/python3*/site-packages")
    assert (installed / "streamactors" / "py.typed").is_file()
    assert not (installed / "connectors" / "__init__.py").exists()
    assert not (installed / "tests").exists() and not (installed / "docs").exists()
    assert {path.name for path in installed.glob("streamactors*")} >= {
        "streamactors",
        f"streamactors-{version()}.dist-info",
    }
