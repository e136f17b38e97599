"""Programs in processes of their own, for tests that need a real one: what it prints, signals to it, its end."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Self

PATIENCE = 180.0
ROOT = Path(__file__).resolve().parents[1]


class Program:
    """Runs while the block lasts; killed at its end if it is still there."""

    def __init__(self, *args: str, cwd: Path, environ: dict[str, str] | None = None) -> None:
        # Nothing of this terminal, and nothing that STREAMACTORS_… may set on this machine.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("STREAMACTORS_")}
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, *args],
            cwd=cwd,
            env=inherited | {"PYTHONPATH": path} | (environ or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._printed: dict[str, list[str]] = {"stdout": [], "stderr": []}
        assert self._process.stdout is not None and self._process.stderr is not None
        self._readers = [self._read("stdout", self._process.stdout), self._read("stderr", self._process.stderr)]

    def _read(self, name: str, stream: IO[str]) -> threading.Thread:
        def read() -> None:
            with stream:
                self._printed[name].extend(stream)

        thread = threading.Thread(target=read, name=f"{name} of {self._process.pid}")
        thread.start()
        return thread

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self.end()

    @property
    def stdout(self) -> str:
        return "".join(self._printed["stdout"])

    @property
    def stderr(self) -> str:
        return "".join(self._printed["stderr"])

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> int:
        """Wait for it; its exit code."""
        code = self._process.wait(PATIENCE)
        for reader in self._readers:
            reader.join()
        return code

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Poll while it runs; fails if it ends before."""
        give_up = time.monotonic() + PATIENCE
        while not condition():
            assert self._process.poll() is None, f"ended before {what}:\n{self.stdout}\n{self.stderr}"
            assert time.monotonic() < give_up, f"still not {what}:\n{self.stdout}\n{self.stderr}"
            time.sleep(0.01)


def streamactors(*args: str, cwd: Path, environ: dict[str, str] | None = None) -> Program:
    """The real command line."""
    return Program("-m", "streamactors", *args, cwd=cwd, environ=environ)
