"""A Ray cluster of several nodes on this machine, and the processes of the jobs that run on it."""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.programs import Program

PATIENCE = 120.0
"""Seconds for what takes a few on an idle machine."""
HERE = Path(__file__).parent
WORKER, COORDINATOR = "ray::StreamactorsWorker", "ray::StreamactorsCoordinator"
DETACHED = "ray::StreamactorsDetachedCoordinator"


def until(condition: Callable[[], object], what: str, *programs: Program) -> None:
    give_up = time.monotonic() + PATIENCE
    while not condition():
        told = "\n".join(f"{program.stdout}\n{program.stderr}" for program in programs)
        assert all(program.alive for program in programs), f"ended before {what}:\n{told}"
        assert time.monotonic() < give_up, f"still not {what}:\n{told}"
        time.sleep(0.02)


def processes_under(pid: int) -> dict[int, str]:
    """Command lines of all that it has started, directly or not."""
    parents: dict[int, int] = {}
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            try:
                parents[int(each.name)] = int((each / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended
    found, below = {}, [pid]
    while below:
        parent = below.pop()
        for child in [child for child, its in parents.items() if its == parent]:
            below.append(child)
            try:
                found[child] = Path(f"/proc/{child}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def output_of(pid: int) -> str:
    """The file that it writes to."""
    try:
        return os.readlink(f"/proc/{pid}/fd/1")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def killed(pid: int) -> bool:
    """False where it has just ended."""
    return signalled(pid, signal.SIGKILL)


def signalled(pid: int, number: signal.Signals) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


@dataclass(frozen=True)
class Nodes:
    program: Program
    address: str
    raylets: list[int]
    environ: dict[str, str]

    def pids(self, title: str) -> list[int]:
        """Those of nodes that were killed among them: a process may outlive its node."""
        return sorted(pid for pid, command in self.actors().items() if command.startswith(title))

    def actors(self) -> dict[int, str]:
        logs = self.environ["RAY_TMPDIR"]
        return {
            pid: command
            for pid, command in processes_under(1).items()
            if command.startswith("ray::") and output_of(pid).startswith(logs)
        }

    def outlived(self) -> set[int]:
        """Processes whose node was killed."""
        return self.actors().keys() - processes_under(self.program.pid).keys()

    def clear_away(self) -> None:
        for pid in self.outlived():
            killed(pid)

    def clear_all(self) -> None:
        """Once the cluster has ended: agents may outlive their node, too."""
        for pid, command in processes_under(1).items():
            if self.environ["RAY_TMPDIR"] in command or output_of(pid).startswith(self.environ["RAY_TMPDIR"]):
                killed(pid)

    def kill(self, title: str, how: signal.Signals = signal.SIGKILL) -> None:
        """One of them, which may just be replaced by another."""
        until(lambda: any(signalled(pid, how) for pid in self.pids(title)), f"a {title} is sent a {how.name}")


@contextmanager
def short_folder() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)  # a log may still be written
