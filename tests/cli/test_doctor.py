"""`streamactors doctor`, on this machine as it is; what it can't have here is given to the single checks."""

import json
import signal
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import streamactors as sa
from streamactors.cli.commands import app
from streamactors.cli.doctor import packages, storage
from streamactors.cli.doctor.machine import of_cores, of_open_files
from streamactors.cli.doctor.packages import Requirement, of_requirements
from streamactors.cli.doctor.storage import of_storage
from streamactors.clock import SystemClock
from streamactors.diagnosis import room
from tests.programs import ROOT, Program
from tests.programs import streamactors as command
from tests.test_cli import kept_logging

JOBS = """
import asyncio
from pathlib import Path
import streamactors as sa
from connectors.files import FileSink, FileSource
from connectors.memory import ListSource
from connectors.queue import QueueSource
from streamactors.sources import SplitSource

class Odd(SplitSource):
    bounded = False

    def __init__(self, answer):
        self._answer = answer

    def reader(self, ctx):
        raise AssertionError("a look starts nothing")

    async def diagnose(self, step):
        return await self._answer()

async def never():
    await asyncio.Event().wait()

async def waits():
    Path("waiting").touch()
    await never()

async def breaks():
    raise LookupError("no such cluster")

def of(source, name="orders"):
    flow = sa.Dataflow(name)
    flow.source("in", source).sink("out", FileSink("out", value=sa.Json()))
    return flow

good = lambda: of(ListSource([1, 2]))
nothing_there = lambda: of(FileSource("absent/*.jsonl", value=sa.Json()))
followed = lambda: of(FileSource("absent/*.jsonl", value=sa.Json(), follow=True))
queued = lambda: of(QueueSource("jobs.py/below", value=sa.Json()))

def into(folder):
    flow = sa.Dataflow("orders")
    flow.source("in", ListSource([1, 2])).sink("out", FileSink(folder, value=sa.Json()))
    return flow

into_a_file = lambda: into("jobs.py")
into_leftovers = lambda: into("left")
silent = lambda: of(Odd(never))
waiting = lambda: of(Odd(waits))
broken = lambda: of(Odd(breaks))
def misspelt():
    return of(ListSource([1])).sauce("in")
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "jobs.py").write_text(JOBS)
    return tmp_path


def doctor(project: Path, *args: str) -> Program:
    program = command("doctor", *args, cwd=project)
    program.end()
    return program


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In the project, in this process, since it is quicker."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.delitem(sys.modules, "jobs", raising=False)
    monkeypatch.chdir(project)
    with kept_logging():
        yield
    sys.modules.pop("jobs", None)  # nothing else: libraries that were loaded here can't be loaded a second time


def test_where_nothing_is_wrong_it_says_so_and_leaves_nothing_behind(project: Path) -> None:
    program = doctor(project, "jobs:good", "--storage", "sub/checkpoints", "--set", "checkpoints.interval=10s")
    assert program.end() == 0, program.stdout + program.stderr
    lines = program.stdout.splitlines()
    assert lines[-1] == "Nothing is wrong." or "warning" in lines[-1]
    assert {"python", "packages", "storage", "locking", "clock", "room"} <= {line.split()[1] for line in lines[:-1]}
    assert [path.name for path in project.iterdir() if path.name != "__pycache__"] == ["jobs.py"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("args", "check", "level", "expected"),
    [
        (["jobs:nothing_there"], "source in: files", "problem", "matches no file"),
        (["jobs:followed"], "source in: files", "warning", "nothing is read until there is one"),
        (["jobs:followed"], "checkpoints", "warning", "begins anew"),
        (["jobs:silent", "--timeout", "50ms"], "source in", "problem", "no answer within 0.05 s"),
        (["jobs:broken"], "source in", "problem", "LookupError: no such cluster"),
        (["jobs:queued"], "source in: folder", "problem", "jobs.py is no folder"),
        (["jobs:into_a_file"], "sink out: folder", "problem", "jobs.py is no folder"),
        (["jobs:good"], "sink out: folder", "ok", "free at"),
        (["jobs:misspelt"], "flow jobs:misspelt", "problem", "jobs.py:"),
        (["absent:flow"], "flow absent:flow", "problem", "there is no module 'absent'"),
        (["jobs:good", "--set", "paralelism=2"], "flow jobs:good", "problem", "did you mean 'parallelism'?"),
        (["jobs:silent", "--set", "execution=batch"], "flow orders", "problem", "needs sources that end"),
        (["--storage", "jobs.py/below"], "storage", "problem", "A file is in the way"),
        (["--storage", "ftp://host/x"], "storage", "problem", "is not supported"),
        (["jobs:good", "--set", "state_backend=rocksdb"], "rocksdb", "ok", "free at"),
        (["jobs:good", "--set", "execution=batch"], "sort folder", "ok", "free at"),
    ],
)
def test_what_is_wrong_is_told(args: list[str], check: str, level: str, expected: str) -> None:
    result = CliRunner().invoke(app, ["doctor", *args, "--json"])
    told = json.loads(result.stdout)
    found = {found["check"]: found for found in told["findings"]}
    assert found[check]["level"] == level and expected in found[check]["found"], found
    assert told["wrong"] == (level == "problem") and result.exit_code == told["wrong"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("suffix", "options", "level", "expected"),
    [
        ("pending", ["--storage", "stored", "--set", "checkpoints.interval=10s"], "ok", "2 hidden part files (10 B)"),
        ("pending", [], "warning", "of runs under checkpoints"),
        ("open", [], "warning", "nobody will ever make them visible"),
        ("else", [], None, ""),
    ],
)
def test_what_a_sink_has_left_hidden(
    project: Path, suffix: str, options: list[str], level: str | None, expected: str
) -> None:
    (project / "left").mkdir()
    for number in range(2):
        (project / "left" / f".orders@out@0001-0001-0000-00000{number}-3fa9c1d2.jsonl.{suffix}").write_text("12345")
        (project / "left" / f".orders@another@0001-0001-0000-00000{number}-3fa9c1d2.jsonl.{suffix}").touch()
    before = sorted(project.rglob("*"))
    told = json.loads(CliRunner().invoke(app, ["doctor", "jobs:into_leftovers", *options, "--json"]).stdout)
    found = {found["check"]: found for found in told["findings"]}
    assert found.get("sink out: hidden parts", {}).get("level") == level
    assert level is None or expected in found["sink out: hidden parts"]["found"]
    assert [path for path in sorted(project.rglob("*")) if "__pycache__" not in path.parts] == before


def test_the_users_own_line_is_shown_first_and_all_of_it_on_demand(project: Path) -> None:
    program = doctor(project, "jobs:misspelt", "--traceback")
    assert program.end() == 1
    assert "Traceback (most recent call last)" in program.stderr
    assert "has no attribute 'sauce'" in program.stdout and "in misspelt" in program.stdout
    assert program.stdout.splitlines()[-1].startswith("1 problem")


def test_interrupted_it_says_so(project: Path) -> None:
    with command("doctor", "jobs:waiting", "--timeout", "1h", cwd=project) as program:
        program.wait_for((project / "waiting").exists, "the source is asked")
        program.signal(signal.SIGINT)
        assert program.end() == 130 and "Traceback" not in program.stderr


def test_a_wrong_option_is_refused() -> None:
    result = CliRunner().invoke(app, ["doctor", "--timeout", "soon"])
    assert result.exit_code == 2 and "--timeout" in result.stderr


# ------------------------------------------------------------------------------------------------------- single checks
async def test_an_object_store_is_tried_out_too() -> None:
    found = await of_storage("memory://bucket-of-doctor/checkpoints")
    assert [(one.check, one.level) for one in found] == [("storage", "ok"), ("locking", "ok")]


async def test_clocks_that_differ_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(SystemClock):
        def time_ms(self) -> int:
            return super().time_ms() - 60_000

    monkeypatch.setattr(storage, "SYSTEM", Late())
    found = {one.check: one for one in await of_storage(str(tmp_path))}
    assert found["clock"].level == "warning" and "s ahead of this machine's" in found["clock"].found
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("free", "names", "level"),
    [(5 << 30, None, "ok"), (5 << 30, 17, "ok"), (5 << 30, 0, "problem"), (1 << 29, 17, "warning"), (1, 17, "problem")],
)
def test_room(free: int, names: int | None, level: str) -> None:
    found = room("room", Path("/var"), free, names)
    assert found.level == level and bool(found.remedy) == (level != "ok")


@pytest.mark.parametrize(
    ("soft", "hard", "level", "remedy"),
    [
        (-1, -1, "ok", ""),
        (4096, 4096, "ok", ""),
        (1024, -1, "warning", "ulimit -n 4096"),
        (256, 2048, "warning", "ulimit -n 2048"),
        (256, 256, "warning", "hard limit"),
    ],
)
def test_open_files(soft: int, hard: int, level: str, remedy: str) -> None:
    found = of_open_files(soft, hard)
    assert found.level == level and remedy in found.remedy


def test_cores() -> None:
    assert of_cores(4, None).level == of_cores(4, 1.5).level == "ok"
    assert of_cores(4, 0.5).level == "warning"


def of(*wanted: str) -> dict[str, Any]:
    return {found.check: found for found in of_requirements(map(Requirement.parse, wanted))}


def test_packages() -> None:
    found = of("msgpack<2,>=1.1", "rich>=13.9", "aiokafka<0.1,>=0.0; extra == 'kafka'", 'no-such>=1; extra == "more"')
    assert found["packages"].level == "ok" and found["packages"].found.startswith("2,")
    assert found["extra kafka"].level == "problem" and "and aiokafka>=0.0,<0.1 is needed" in found["extra kafka"].found
    assert found["extra kafka"].remedy == "pip install 'streamactors[kafka]'"
    assert found["extra more"].level == "ok" and "not installed: no-such" in found["extra more"].found


def test_who_finds_it_on_the_path_only_is_told_how_to_install_what_lies_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(packages, "version", absent)
    (found,) = packages.of_packages()
    assert found.level == "warning" and found.remedy == f"pip install {ROOT}"
    monkeypatch.setattr(sa, "__file__", str(tmp_path / "streamactors" / "__init__.py"))
    (found,) = packages.of_packages()
    assert "its wheel" in found.remedy


def test_a_core_package_that_is_missing_or_old_is_a_problem() -> None:
    found = of("msgpack>=99", "no-such>=1", "streamactors[kafka]; extra == 'all'")
    assert list(found) == ["packages"] and found["packages"].level == "problem"
    assert "msgpack is " in found["packages"].found and "no-such is missing" in found["packages"].found
