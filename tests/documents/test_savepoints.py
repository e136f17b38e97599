"""docs/savepoints.md, done as it stands there: every file written, every command given, in this order."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from tests.programs import PATIENCE, ROOT

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "savepoints.md"
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
REFUSED = "--restore savepoints/thursday"
"""The one command that the page says is refused: this, without `--drop-state`."""


def steps() -> Iterator[tuple[str, str]]:
    """("file", its code) of each Python block that begins with a file's name, ("command", line) of each command."""
    for kind, body in BLOCK.findall(PAGE.read_text()):
        if kind == "console":
            yield from (("command", line.removeprefix("$ ")) for line in body.splitlines() if line.startswith("$ "))
        elif re.match(r"# \w+\.py\n", body):
            yield "file", body


class Terminal:
    """A folder in which commands are given. Those that end with `&` run on: the next one is given when the job runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs: list[subprocess.Popen[str]] = []
        runtime = folder / "runtime"
        runtime.mkdir(mode=0o700)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("STREAMACTORS_")}
        self.environ = inherited | {"PATH": path, "XDG_RUNTIME_DIR": str(runtime), "PYTHONPATH": str(ROOT)}

    def give(self, command: str) -> subprocess.CompletedProcess[str] | None:
        if command.endswith("&"):
            self._in_background(command.removesuffix("&").strip())
            return None
        return subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def _in_background(self, command: str) -> None:
        self.settled()
        out = (self.folder / f"job-{len(self.jobs)}.log").open("w")
        with out:
            job = subprocess.Popen(
                ["bash", "-c", f"exec {command}"], cwd=self.folder, env=self.environ, stdout=out, stderr=out, text=True
            )
        self.jobs.append(job)
        self.wait(lambda: self._running(job), f"{command!r} runs")

    def _running(self, job: subprocess.Popen[str]) -> bool:
        assert job.poll() is None, (self.folder / f"job-{len(self.jobs) - 1}.log").read_text()
        listed = self.give("streamactors list --json")
        return listed is not None and '"running"' in listed.stdout

    def settled(self) -> None:
        """Every job that was begun has ended well."""
        for number, job in enumerate(self.jobs):
            assert job.wait(PATIENCE) == 0, (self.folder / f"job-{number}.log").read_text()

    def wait(self, for_: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not for_():
            assert time.monotonic() < end, f"waited in vain until {what}"
            time.sleep(0.05)

    def totals(self) -> dict[str, int]:
        """The last total of each customer that is visible."""
        found: dict[str, int] = {}
        for path in (self.folder / "totals").glob("[!.]*"):
            for line in path.read_bytes().splitlines():
                total = msgspec.json.decode(line)
                found[total["customer"]] = max(total["cents"], found.get(total["customer"], 0))
        return found

    def close(self) -> None:
        for job in self.jobs:
            if job.poll() is None:
                job.kill()
                job.wait()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    found = Terminal(tmp_path)
    try:
        yield found
    finally:
        found.close()


EXPECTED = {"alice": 537, "bob": 204, "carol": 1}


def test_every_step_of_the_page_works_as_it_stands_there(terminal: Terminal) -> None:
    refused = []
    for kind, step in steps():
        if kind == "file":
            name = step.partition("\n")[0].removeprefix("# ")
            (terminal.folder / name).write_text(step)
            continue
        if step == "streamactors stop shop":  # the last one: until then whatever was ordered has to come out
            terminal.wait(lambda: terminal.totals() == EXPECTED, f"the totals are {EXPECTED}, not {terminal.totals()}")
        done = terminal.give(step)
        if done is not None and REFUSED in step and "--drop-state" not in step:
            refused.append(done)
        elif done is not None:
            assert done.returncode == 0, f"{step}: {done.stdout}{done.stderr}"
    terminal.settled()
    assert terminal.totals() == EXPECTED
    (refusal,) = refused
    assert refusal.returncode != 0 and "'larger'" in refusal.stderr + refusal.stdout
    assert sorted(path.name for path in (terminal.folder / "savepoints").iterdir()) == [
        "first",
        "monday",
        "thursday",
        "tuesday",
        "wednesday",
    ]
