"""The demo's plot: a process of its own runs the job by the real command line, is killed, and another one goes on.

The log grows while the first process reads it, and not to its end, so the kill always comes in the middle. It also
comes after a checkpoint and some work since, so that there always is something to restore, and something to do again.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamactors.checkpoint.restorable import list_checkpoints
from streamactors.clock import SYSTEM
from streamactors.demo.check import Verdict, check
from streamactors.demo.event_log import append, made_up_orders
from streamactors.errors import JobFailed

ORDERS_PER_SECOND = 200_000
"""How fast the log grows."""
BEFORE_A_CHECKPOINT = 0.4
"""Share of the log that is written until then. With each checkpoint half of what is left comes, so that there is
something to read behind it, however late the report of it."""


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
    log = GrowingLog(folder / "events" / "orders.jsonl", events, clock)
    yield Told(f"a shop writes {events:,} orders into {log.path}")
    with closing(Child(folder, "streamactors.demo.orders:flow")) as child:
        yield Told(f"process {child.pid} makes running totals of them, with a checkpoint every second")
        yield from _kill_in_the_middle(child, log)
    yield from _lost_with_it(folder, child.records_read)
    log.grow_to(1.0)
    yield Told(f"meanwhile the shop has written all {events:,} orders")
    with closing(Child(folder, "streamactors.demo.orders:bounded")) as child:
        yield Told(f"process {child.pid} takes over")
        yield from _to_the_end(child)
    began = clock()
    verdict = check(folder, events)
    yield Told(f"compared the output with a plain loop over the log, in {clock() - began:.1f} s:")
    yield verdict


class GrowingLog:
    """Grows by the clock, whenever it is told to."""

    def __init__(self, path: Path, events: int, clock: Callable[[], float]) -> None:
        self.path = path
        self._events = events
        self._orders = made_up_orders(events)
        self._written = 0
        self._clock = clock
        self._began = clock()

    def grow(self, share: float) -> None:
        """As much as is due by now, up to that share of all."""
        self._append(min(int((self._clock() - self._began) * ORDERS_PER_SECOND), int(share * self._events)))

    def grow_to(self, share: float) -> None:
        self._append(int(share * self._events))

    def is_in_the_middle(self, records: int) -> bool:
        return records >= BEFORE_A_CHECKPOINT * self._events

    def _append(self, total: int) -> None:
        if total > self._written:
            append(self.path, self._orders, total - self._written)
            self._written = total


def _kill_in_the_middle(child: "Child", log: GrowingLog) -> Iterator[Scene]:
    checkpoint, read_by_then, share = None, 0, BEFORE_A_CHECKPOINT
    log.grow(share)
    for scene in child.scenes():
        yield scene
        if not isinstance(scene, Reported):
            continue
        last = scene.progress["checkpoint"]
        if last is not None and last["id"] != checkpoint:
            checkpoint, read_by_then = last["id"], child.records_read
            share = (share + 1) / 2
        if checkpoint is not None and child.records_read > read_by_then and log.is_in_the_middle(child.records_read):
            child.kill()
            yield Killed(child.pid, child.records_read)
            return
        log.grow(share)
    child.end()
    raise JobFailed(f"the process ended before it could be killed:\n{child.last_words}")


def _lost_with_it(folder: Path, read: int) -> Iterator[Told]:
    """What had been read since the last checkpoint, told from that checkpoint itself."""
    found = asyncio.run(list_checkpoints(str(folder / "checkpoints")))
    last = next((one for one in found if one.manifest is not None), None)
    if last is not None and last.manifest is not None:
        lines = [line for _, node in last.manifest.nodes("orders") for _, line, _ in node.positions.values()]
        read_by_then = sum(lines) - len(lines)
        again = f"{read - read_by_then:,} have to be done again"
        yield Told(f"checkpoint {last.checkpoint} has {read_by_then:,} of them; {again}")


def _to_the_end(child: "Child") -> Iterator[Scene]:
    yield from child.scenes()
    if code := child.end():
        raise JobFailed(f"the process ended with exit code {code}:\n{child.last_words}")


@dataclass
class Child:
    """`streamactors run <target>` in a process of its own."""

    folder: Path
    target: str
    records_read: int = 0
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
                operators = {operator["uid"]: operator for operator in message["progress"]["operators"]}
                self.records_read = operators["orders"]["records_out"] if operators else self.records_read
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
