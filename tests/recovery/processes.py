"""Runs the job of `jobs` in a process, watches what it logs, and kills it at random moments until it has finished."""

import asyncio
import contextlib
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tests.recovery.jobs import OPENED, Settings

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 200.0
"""Seconds for what takes a few on an idle machine."""
FIRST_CHECKPOINT, LONGEST_LIFE = 5.0, 1.0
"""Seconds that are waited for the first checkpoint of a job that is to be killed, and then for others."""
MOST_KILLS = 30
CHECKPOINTED = " complete in "
RESTORING = ": restoring "


def new_seed() -> int:
    """Another one each time: KILL_SEED repeats the choices of a failed test, though not the machine's timing."""
    return int(os.environ.get("KILL_SEED") or random.SystemRandom().randrange(2**32))


class Child:
    """A running job; `lines` is what it has logged so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.lines: list[str] = []
        self._process = process
        self._news = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.lines.append(line.decode(errors="replace").rstrip())
            self._news.set()

    async def logged(self, text: str, times: int = 1, *, patience: float = PATIENCE) -> bool:
        """Until it has logged `text` so many times: True; False if it ends before, or `patience` seconds pass."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while self.count(text) < times and not self._reading.done():
                    self._news.clear()
                    news = asyncio.create_task(self._news.wait())
                    try:
                        await asyncio.wait([news, self._reading], return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        news.cancel()
        return self.count(text) >= times

    def count(self, text: str) -> int:
        return sum(text in line for line in self.lines)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def ended(self) -> int:
        """Its exit code, once all it has logged is read."""
        async with asyncio.timeout(PATIENCE):
            await self._reading
            return await self._process.wait()

    async def close(self) -> None:
        if self._process.returncode is None:
            self.send(signal.SIGKILL)
        await self._reading
        await self._process.wait()

    @property
    def log(self) -> str:
        return "\n".join(self.lines[-60:])


@asynccontextmanager
async def started(settings: Settings) -> AsyncIterator[Child]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.recovery.jobs",
        msgspec.json.encode(settings).decode(),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    child = Child(process)
    try:
        yield child
    finally:
        await child.close()


async def finish(settings: Settings) -> list[str]:
    """Run to the end, undisturbed; what it logged."""
    async with started(settings) as child:
        assert await child.ended() == 0, child.log
        return child.lines


@dataclass
class Story:
    """What happened, for the message of a failed test."""

    seed: int
    settings: Settings
    """Of the first run; the chapters tell what was different later."""
    chapters: list[str] = field(default_factory=list)
    kills: int = 0
    restores: int = 0

    def __str__(self) -> str:
        return "\n".join([f"KILL_SEED={self.seed}, {self.kills} kills: {self.settings}", *self.chapters])

    def begin(self, given: Settings, end: object) -> None:
        """A run with these settings is to end so."""
        before, now = msgspec.structs.asdict(self.settings), msgspec.structs.asdict(given)
        changes = [f"{name}={value!r}" for name, value in now.items() if before[name] != value]
        self.chapters.append(f"  {', '.join(changes) or 'as before'}; {end}")


@dataclass(frozen=True)
class Moment:
    """`delay` seconds after `checkpoints` of them, or after a while without; both counted from when the job's
    subtasks open, or where `opened` is false, `delay` seconds after the process began."""

    checkpoints: int
    delay: float
    opened: bool = True

    async def arrive(self, child: Child) -> None:
        if self.opened:
            await child.logged(OPENED)
        if self.checkpoints:
            await child.logged(CHECKPOINTED, patience=FIRST_CHECKPOINT)
            await child.logged(CHECKPOINTED, self.checkpoints, patience=LONGEST_LIFE)
        await asyncio.sleep(self.delay)  # a random moment is what is wanted here

    def __str__(self) -> str:
        return f"{self.delay:.3f} s after {f'{self.checkpoints} checkpoints' if self.opened else 'it began'}"


def random_moment(rng: random.Random) -> Moment:
    """Anywhere from the start of the process to the fourth checkpoint, most of them where checkpoints are under way."""
    kind = rng.random()
    if kind < 0.1:
        return Moment(0, rng.uniform(0.0, 0.8), opened=False)
    if kind < 0.2:
        return Moment(0, rng.uniform(0.0, 0.05))
    if kind < 0.45:
        return Moment(0, rng.uniform(0.0, 0.5))
    return _after_a_checkpoint(rng)


def _after_a_checkpoint(rng: random.Random) -> Moment:
    """At once after one, its manifest is written, and its transactions are just being committed."""
    return Moment(rng.randint(1, 4), 0.0 if rng.random() < 0.45 else rng.uniform(0.0, 0.1))


def _moments(rng: random.Random, count: int) -> Iterator[Moment]:
    """Two of them, at least, after a checkpoint: so two starts have one to restore."""
    wanted = 2
    for left in range(count, 0, -1):
        moment = random_moment(rng) if left > wanted else _after_a_checkpoint(rng)
        wanted -= moment.checkpoints > 0
        yield moment


async def kill_until_finished(
    settings: Callable[[random.Random], Settings], *, orders: int, pace: float, kills: int, seed: int
) -> Story:
    """Start the job again and again, each time with what `settings` gives, and kill it; the last run is let finish, and
    something is left for it of so many `orders`. It is killed more often than asked for where none of its starts has
    found a checkpoint: on a machine so slow that the waiting for one was given up each time."""
    rng = random.Random(seed)
    story = Story(seed, settings(rng))
    moments = _moments(rng, kills)
    while (moment := next(moments, None)) or (not story.restores and story.kills < MOST_KILLS):
        given = msgspec.structs.replace(settings(rng), pace=pace, most=orders // (kills + 1))
        await _kill(given, moment or _after_a_checkpoint(rng), story)
    given = settings(rng)
    story.begin(given, "to the end")
    async with started(given) as child:
        assert await child.ended() == 0, f"{child.log}\n{story}"
        story.restores += child.count(RESTORING) > 0
    return story


async def _kill(given: Settings, moment: Moment, story: Story) -> None:
    story.begin(given, f"killed {moment}")
    async with started(given) as child:
        await moment.arrive(child)
        child.send(signal.SIGKILL)
        code = await child.ended()
        story.restores += child.count(RESTORING) > 0
        assert code == -signal.SIGKILL, f"it ended by itself, with {code}, before it was killed\n{child.log}\n{story}"
    story.kills += 1
