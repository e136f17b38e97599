"""docs/tutorial.md, done as it stands there: its files written, its commands given in order, its answers compared."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.ports import free_port
from tests.programs import PATIENCE, ROOT, Program

pytestmark = [pytest.mark.slow, pytest.mark.kill]

PAGE = (ROOT / "docs" / "tutorial.md").read_text()
BLOCK = re.compile(r"^```(python|ini|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SET_UP = ("python3 -m venv", "pip install", "mkdir ~/my-shop")
"""What makes the environment and the folder: here both are there."""


def steps() -> Iterator[tuple[str, str, str]]:
    """("file", its name, its text) and ("command", line, what the page shows as its answer), in their order."""
    for kind, body in BLOCK.findall(PAGE):
        if kind != "console":
            yield "file", body.partition("\n")[0].removeprefix("# "), body
            continue
        for given in re.findall(r"^\$ (.*\n(?:(?!\$ ).*\n)*)", body, re.MULTILINE):
            command, _, answer = given.partition("\n")
            yield "command", command, answer


class Reader:
    """Who follows the tutorial."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._port = free_port()
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self._environ = {"PATH": path}
        self._service: Program | None = None
        self._client = stack.enter_context(httpx.Client(trust_env=False, timeout=PATIENCE))
        self.done: list[str] = []

    def follow(self, kind: str, what: str, rest: str) -> None:
        self.done.append(what)
        if kind == "file":
            (self._folder / what).write_text(rest.replace("port=8000", f"port={self._port}"))
        elif what == "python shop.py":
            self._start()
        elif what.startswith("kill -9"):
            assert self._service is not None
            self._service.signal(signal.SIGKILL)
            self._service.end()
        elif what.startswith("curl"):
            self._curl(what.replace(":8000", f":{self._port}"), rest.strip())
        elif not what.startswith(SET_UP):
            self._command(what, rest)

    def _start(self) -> None:
        self._service = self._stack.enter_context(Program("shop.py", cwd=self._folder, environ=self._environ))
        self._service.wait_for(self._answers, "healthy")

    def _answers(self) -> bool:
        try:
            return self._client.get(f"http://127.0.0.1:{self._port}/health").status_code == 200
        except httpx.TransportError:
            return False

    def _curl(self, command: str, answer: str) -> None:
        """Asks as the command would, until the answer is that of the page: totals follow the orders."""
        words = shlex.split(command)
        if "-d" in words:
            body = words[words.index("-d") + 1]
            assert self._client.post(words[-1], content=body).status_code == 202, command
        else:
            self._until(lambda: self._client.get(words[-1]).text == answer, f"{command} gives {answer}")

    def _command(self, command: str, answer: str) -> None:
        done = self._run(command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        assert "Warning" not in done.stderr, f"{command}: {done.stderr}"
        if command.startswith("cat"):
            self._until(lambda: self._run(command).stdout == answer, f"{command} gives {answer}")
        elif command.startswith("python first"):
            assert done.stdout == answer
        elif "inspect" in command:
            assert "ada" in done.stdout and "530" in done.stdout
        elif command == "streamactors list":
            assert done.stdout.split()[:3] == answer.split()[:3] and "shop" in done.stdout

    def _run(self, command: str) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("STREAMACTORS_")}
        return subprocess.run(
            ["bash", "-c", command],
            cwd=self._folder,
            env=inherited | {"PYTHONPATH": str(ROOT)} | self._environ,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"waited in vain until {what}"
            time.sleep(0.05)

    def stop(self) -> None:
        assert self._service is not None
        self._service.signal(signal.SIGINT)
        self._service.end()


@pytest.mark.usefixtures("registry_folder")
def test_every_step_works_as_it_stands_there(tmp_path: Path) -> None:
    with ExitStack() as stack:
        reader = Reader(tmp_path, stack)
        for step in steps():
            reader.follow(*step)
        reader.stop()
    assert [each for each in reader.done if each.endswith((".py", ".ini"))] == [
        "first.py",
        "python first.py",
        "totals.py",
        "test_totals.py",
        "pytest.ini",
        "python -m pytest -q test_totals.py",
        "shop.py",
        "python shop.py",
        "python shop.py",
    ]
    assert not list((tmp_path / "data" / "totals").glob(".*")), "the last checkpoint has made everything visible"
