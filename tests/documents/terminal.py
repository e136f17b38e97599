"""A folder in which the commands of a page are given, as its reader would."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.programs import PATIENCE, ROOT

BLOCK = re.compile(r"^```(python|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def steps(page: Path) -> Iterator[tuple[str, str]]:
    """("file", its code) of each Python block that begins with a file's name, ("command", line) of each command."""
    for kind, body in BLOCK.findall(page.read_text()):
        if kind == "console":
            yield from (("command", line.removeprefix("$ ")) for line in body.splitlines() if line.startswith("$ "))
        elif re.match(r"# \w+\.py\n", body):
            yield "file", body


class Terminal:
    """A folder in which commands are given. Those that end with `&` run on: the next one is given when the job runs.

    For tests with `registry_folder`: jobs of other tests may have the same names."""

    def __init__(self, folder: Path) -> None:
        self.folder = self._logs = folder
        self.jobs: list[subprocess.Popen[str]] = []
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("STREAMACTORS_")}
        self.environ = inherited | {"PATH": path, "PYTHONPATH": str(ROOT)}

    def give(self, command: str) -> subprocess.CompletedProcess[str] | None:
        if command.endswith("&"):
            self._in_background(command.removesuffix("&").strip())
            return None
        if command.startswith("cd "):
            self.folder /= command.removeprefix("cd ")
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
        out = self._log(len(self.jobs)).open("w")
        with out:
            job = subprocess.Popen(
                ["bash", "-c", f"exec {command}"], cwd=self.folder, env=self.environ, stdout=out, stderr=out, text=True
            )
        self.jobs.append(job)
        self.wait(lambda: self._running(job), f"{command!r} runs")

    def _running(self, job: subprocess.Popen[str]) -> bool:
        assert job.poll() is None, self._log(len(self.jobs) - 1).read_text()
        listed = self.give("streamactors list --json")
        return listed is not None and '"running"' in listed.stdout

    def _log(self, number: int) -> Path:
        return self._logs / f"job-{number}.log"

    def settled(self) -> None:
        """Every job that was begun has ended well."""
        for number, job in enumerate(self.jobs):
            assert job.wait(PATIENCE) == 0, self._log(number).read_text()

    def wait(self, for_: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not for_():
            assert time.monotonic() < end, f"waited in vain until {what}"
            time.sleep(0.05)

    def close(self) -> None:
        for job in self.jobs:
            if job.poll() is None:
                job.kill()
                job.wait()
