"""The demo's plot: a process of its own runs the job by the real command line, is killed, and another one goes on.

The log is written in two parts: the second one only after the kill, which therefore always comes in the middle.
"""

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamactors.clock import SYSTEM
from streamactors.demo.check import Verdict, check
from streamactors.demo.event_log import append, made_up_orders
from streamactors.errors import JobFailed

FIRST_SHARE = 0.7
"""Of the log, before the job starts."""
KILL_AT = 0.4
"""Share of the events; and not before there is a checkpoint to go on from."""


@dataclass(frozen=True, slots=True)
class Told:
    """What happens, in words."""

    text: str


@dataclass(frozen=True, slots=True)
class Reported:
    """A child's progress, as its log has it."""

    progress: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Killed:
    """By SIGKILL, after having read so many records."""

    pid: int
    records: int


Scene = Told | Reported | Killed | Verdict


def play(folder: Path, events: int) -> Generator[Scene]:
    """The whole demo in `folder`; the last scene is the verdict. Raises JobFailed if a child fails by itself."""
    clock = SYSTEM.monotonic
    began = clock()
    log, orders = folder / "events" / "orders.jsonl", made_up_orders(events)
    first = int(events * FIRST_SHARE)
    append(log, orders, first)
    yield Told(f"{first:,} of {events:,} orders written to {log} in {clock() - began:.1f} s; more to come")
    with closing(Child(folder, "streamactors.demo.orders:flow")) as child:
        yield Told(f"process {child.pid} runs the job")
        yield from _kill_in_the_middle(child, events)
    append(log, orders, events - first)
    yield Told(f"{events - first:,} more orders were written while nobody was there to read them")
    with closing(Child(folder, "streamactors.demo.orders:bounded")) as child:
        yield Told(f"process {child.pid} takes over")
        yield from _to_the_end(child)
    began = clock()
    verdict = check(folder, events)
    yield Told(f"compared with a plain loop over the log, from the files alone, in {clock() - began:.1f} s")
    yield verdict


def _kill_in_the_middle(child: "Child", events: int) -> Iterator[Scene]:
    for scene in child.scenes():
        yield scene
        if isinstance(scene, Reported) and _is_time(scene.progress, events):
            child.kill()
            yield Killed(child.pid, _records_read(scene.progress))
            return
    child.end()
    raise JobFailed(f"the process ended before it could be killed:\n{child.last_words}")


def _is_time(progress: dict[str, Any], events: int) -> bool:
    return progress["checkpoint"] is not None and _records_read(progress) >= KILL_AT * events


def _records_read(progress: dict[str, Any]) -> int:
    return sum(operator["records_out"] for operator in progress["operators"] if operator["uid"] == "orders")


def _to_the_end(child: "Child") -> Iterator[Scene]:
    yield from child.scenes()
    if code := child.end():
        raise JobFailed(f"the process ended with exit code {code}:\n{child.last_words}")


@dataclass
class Child:
    """`streamactors run <target>` in a process of its own."""

    folder: Path
    target: str
    _last: deque[str] = field(default_factory=lambda: deque(maxlen=20))

    def __post_init__(self) -> None:
        command = [sys.executable, "-m", "streamactors", "run", self.target]
        command += ["--log-format", "json", "--report-every", "100ms"]
        environ = os.environ | {"ORDERS_FOLDER": str(self.folder.absolute())}
        # Its own folder: what the user has in the current one is none of the demo's business.
        self._process = subprocess.Popen(
            command, cwd=self.folder, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def last_words(self) -> str:
        return "\n".join(self._last)

    def scenes(self) -> Iterator[Scene]:
        """Until it ends."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            try:
                message = json.loads(line)
            except json.JSONDecodeError:
                self._last.append(line.rstrip())
                continue
            if "progress" in message:
                yield Reported(message["progress"])
            else:
                self._last.append(message["message"])
                if "restoring" in message["message"]:
                    yield Told(message["message"])

    def kill(self) -> None:
        """SIGKILL: no handler runs, nothing is flushed."""
        self._process.kill()
        self._process.wait()

    def end(self) -> int:
        return self._process.wait()

    def close(self) -> None:
        self.kill()
        assert self._process.stderr is not None
        self._process.stderr.close()
