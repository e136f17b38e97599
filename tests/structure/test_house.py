"""Guards over the structure of the code; import-linter (`make check`) holds the layers."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.structure import house
from tests.structure.house import CODE, ROOT, Module

Rule = Callable[[Module], Iterator[str]]

RULES: list[tuple[Rule, tuple[str, ...]]] = [
    (house.beside_the_seams, ("streamactors",)),
    (house.swallowed_errors, (*CODE, "tests")),
    (house.missing_docstring, CODE),
    (house.vague_name, (*CODE, "tests")),
    (house.terminal_outside_cli, ("streamactors", "connectors")),
    (house.cluster_elsewhere, ("streamactors", "connectors", "pytest_streamactors")),
    (house.errors_elsewhere, ("streamactors", "connectors")),
    (house.unfinished, CODE),
]


@pytest.fixture(scope="module")
def violations() -> dict[Rule, list[str]]:
    """Of all rules at once: to parse all modules takes longer than to look at them."""
    found: dict[Rule, list[str]] = {rule: [] for rule, _ in RULES}
    for module in house.modules(*CODE, "tests"):
        for rule, folders in RULES:
            if module.path.split("/")[0] in folders:
                found[rule] += rule(module)
    return found


@pytest.mark.parametrize("rule", [rule for rule, _ in RULES], ids=lambda rule: rule.__name__)
def test_rule_holds(rule: Rule, violations: dict[Rule, list[str]]) -> None:
    assert not violations[rule], "\n" + "\n".join(violations[rule])


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (house.beside_the_seams, "import time"),
        (house.beside_the_seams, "def f():\n    from concurrent.futures import ThreadPoolExecutor"),
        (house.beside_the_seams, "import uuid as u\nu.uuid4()"),
        (house.beside_the_seams, "open('file')"),
        (house.beside_the_seams, "import os\nos.rename('a', 'b')"),
        (house.beside_the_seams, "from os import replace as move\nmove('a', 'b')"),
        (house.beside_the_seams, "import datetime as dt\ndt.datetime.now()"),
        (house.beside_the_seams, "from datetime import datetime\nnow = datetime.now"),
        (house.beside_the_seams, "import asyncio\nasync def f():\n    await asyncio.to_thread(print)"),
        (house.beside_the_seams, "async def f(loop):\n    await loop.run_in_executor(None, print)"),
        (house.beside_the_seams, "from pathlib import Path\nPath('a').read_text()"),
        (house.swallowed_errors, "try:\n    f()\nexcept Exception:\n    pass"),
        (house.swallowed_errors, "try:\n    f()\nexcept:\n    ..."),
        (house.swallowed_errors, "for x in y:\n  try:\n    f()\n  except (KeyError, BaseException):\n    continue"),
        (house.swallowed_errors, "import contextlib\nwith contextlib.suppress(Exception):\n    f()"),
        (house.missing_docstring, "x = 1"),
        (house.terminal_outside_cli, "def f():\n    from rich.table import Table"),
        (house.cluster_elsewhere, "import ray"),
        (house.cluster_elsewhere, "def f():\n    from ray.util import state"),
        (house.cluster_elsewhere, "def f():\n    import ray.exceptions as errors"),
        (house.errors_elsewhere, "class Lost(StreamactorsError): ..."),
        (house.errors_elsewhere, "import builtins\nclass Lost(builtins.ValueError): ..."),
        (house.unfinished, "def f():\n    raise NotImplementedError('later')"),
        (house.unfinished, "x = 1  # " + "TODO: more"),
    ],
)
def test_rule_finds_a_violation(rule: Rule, text: str) -> None:
    assert list(rule(Module.parse("streamactors/some.py", text)))


@pytest.mark.parametrize("path", ["streamactors/utils.py", "connectors/common/source.py"])
def test_vague_names_are_found(path: str) -> None:
    assert list(house.vague_name(Module.parse(path, "")))


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (house.beside_the_seams, "streamactors/clock.py", "import time"),
        (house.beside_the_seams, "streamactors/checkpoint/storage/local.py", "open('file')"),
        (house.beside_the_seams, "streamactors/some.py", "import os\nos.environ['HOME']\nstorage.open('file')"),
        (house.beside_the_seams, "streamactors/some.py", "from streamactors import time\ntime.now()"),
        (house.beside_the_seams, "streamactors/some.py", "from uuid import UUID\nUUID(int=0)"),
        (house.swallowed_errors, "streamactors/some.py", "try:\n    f()\nexcept KeyError:\n    pass"),
        (house.swallowed_errors, "streamactors/some.py", "try:\n    f()\nexcept Exception as e:\n    log(e)"),
        (house.terminal_outside_cli, "streamactors/cli/live.py", "import typer, rich"),
        (house.cluster_elsewhere, "streamactors/deploy/ray.py", "import ray\nfrom ray import cloudpickle"),
        (
            house.cluster_elsewhere,
            "streamactors/some.py",
            "from streamactors.deploy import ray\nimport rays\nfrom . import ray",
        ),
        (house.errors_elsewhere, "streamactors/errors.py", "class Lost(StreamactorsError): ..."),
    ],
)
def test_rule_accepts(rule: Rule, path: str, text: str) -> None:
    assert not list(rule(Module.parse(path, text)))


def test_importing_streamactors_is_light() -> None:
    """The command line's terminal libraries and every optional extra stay unloaded until they are used."""
    script = "import json, sys, streamactors; print(json.dumps(sorted(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(json.loads(printed.stdout))
    assert "streamactors" in loaded
    heavy = {"typer", "rich", "aiokafka", "starlette", "uvicorn", "ray", "rocksdict", "pyarrow", "pytest", "connectors"}
    heavy |= {"prometheus_client", "opentelemetry", "fsspec", "s3fs", "numpy", "pandas", "aiohttp", "httpx", "tomllib"}
    assert not loaded & heavy
    own = {module for module in loaded if module.startswith("streamactors.")}
    elsewhere = ("cli", "demo", "testing", "state_processor", "observe.server", "observe.rest", "observe.client")
    assert not own & {f"streamactors.{module}" for module in elsewhere}
    assert len(own) < 220, "each costs about a millisecond: import where it is used what only some programs need"


def test_connectors_is_a_namespace_package() -> None:
    """Others can then add `connectors.x`; each one says by itself that it is typed."""
    assert not (ROOT / "connectors" / "__init__.py").exists()
    packages = [path.parent for path in (ROOT / "connectors").glob("*/__init__.py")]
    assert {package.name for package in packages} >= {"files", "kafka", "memory", "queue"}
    assert [package.name for package in packages if not (package / "py.typed").is_file()] == []
    assert (ROOT / "streamactors" / "py.typed").is_file()


def test_every_module_has_its_layer() -> None:
    """import-linter says nothing about a module that no layer names."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    named = {name for layer in contracts[0]["layers"] for name in re.findall(r"[a-z_.]+", layer)}
    for package in ("streamactors", "connectors"):
        found = {f"{package}.{path.stem}" for path in (ROOT / package).iterdir() if holds_code(path)}
        assert sorted(found - named - {"streamactors.__init__"}) == [], "add it to the layers in pyproject.toml"


def holds_code(path: Path) -> bool:
    return path.suffix == ".py" or any(path.glob("*.py"))
