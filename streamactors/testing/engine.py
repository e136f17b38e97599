"""A real job under a test's control: its clock stands still until it is moved, and one can wait until nothing in it has
anything left to do.

Invariant of `settle`: it returns when every input is read, no record or watermark is on its way, and every actor waits
for a new one. What waits for the clock (timers) or for the world outside is another thing: calls of an async operator
are waited for, timers are not.
"""

import asyncio
import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, ParamSpec, TypeVar

from streamactors.api.dataflow import Dataflow
from streamactors.clock import SYSTEM, Clock
from streamactors.cluster.slice import Slice
from streamactors.config import Config, Heap, RocksDB, StateBackend
from streamactors.deploy.local import deploy_locally
from streamactors.errors import InvalidConfig, JobFailed, JobNotRunning
from streamactors.launch import JobHandle
from streamactors.operators.async_io.link import AsyncLink
from streamactors.operators.base import Link
from streamactors.runtime.assembly import AttemptSpec
from streamactors.runtime.messages import Reports
from streamactors.runtime.snapshot import SnapshotStorage
from streamactors.runtime.subtask import Subtask
from streamactors.state.backend import KeyedBackend
from streamactors.state.backends import keyed_backend
from streamactors.state.key_groups import KeyGroupRange
from streamactors.submission import job_here
from streamactors.testing.script import Script
from streamactors.time.timers import TimerService

P = ParamSpec("P")
R = TypeVar("R")

_TURNS: Final = 200
"""Of the event loop, before waiting goes on by the clock: what awaits the world outside must not be spun for."""
_POLL_SECONDS: Final = 0.001


class HeldClock:
    """Milliseconds since the epoch as the test says. All else is the system's."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms

    def time_ms(self) -> int:
        return self.now_ms

    def monotonic(self) -> float:
        return SYSTEM.monotonic()

    def random(self) -> float:
        return SYSTEM.random()

    def token(self) -> str:
        return SYSTEM.token()

    async def sleep(self, seconds: float) -> None:
        await SYSTEM.sleep(seconds)

    async def run_blocking(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await SYSTEM.run_blocking(fn, *args, **kwargs)


@dataclass(frozen=True)
class OpenBackends:
    """The state backends of the attempt that runs: (uid, backend, max parallelism), as subtasks open them."""

    opened: list[tuple[str, KeyedBackend, int]] = field(default_factory=list)

    def of(self, uid: str) -> list[tuple[KeyedBackend, int]]:
        return [(backend, highest) for owner, backend, highest in self.opened if owner == uid]

    def open(
        self, setting: str | StateBackend, groups: KeyGroupRange, max_parallelism: int, uid: str, clock: Clock
    ) -> KeyedBackend:
        backend = keyed_backend(setting, groups, max_parallelism, uid=uid, clock=clock)
        self.opened.append((uid, backend, max_parallelism))
        return backend

    def watching(self, setting: str | StateBackend) -> StateBackend:
        """The setting under which a job's backends are found here."""
        if setting == "rocksdb" or isinstance(setting, RocksDB):
            return _OpenRocksDB(backends=self, setting=setting)
        if setting == "heap" or isinstance(setting, Heap):
            return _OpenHeap(backends=self, setting=setting)
        raise InvalidConfig(f"backend={setting!r}: 'heap', 'rocksdb', or an instance of one of them")


@dataclass(frozen=True, kw_only=True)
class _OpenHeap(Heap):
    backends: OpenBackends
    setting: str | StateBackend

    def make_backend(self, groups: KeyGroupRange, max_parallelism: int, *, uid: str, clock: Clock) -> KeyedBackend:
        return self.backends.open(self.setting, groups, max_parallelism, uid, clock)


@dataclass(frozen=True, kw_only=True)
class _OpenRocksDB(RocksDB):
    backends: OpenBackends
    setting: str | StateBackend

    def make_backend(self, groups: KeyGroupRange, max_parallelism: int, *, uid: str, clock: Clock) -> KeyedBackend:
        return self.backends.open(self.setting, groups, max_parallelism, uid, clock)


class Engine:
    """From `start` until `close`. Raises what ended the job from every call once it has failed."""

    def __init__(self, clock: HeldClock, scripts: list[Script], timeout: float) -> None:
        """`timeout`: how many seconds `settle` waits at most."""
        self.clock = clock
        self._scripts = scripts
        self._timeout = timeout
        self._attempt: Slice | None = None
        self._handle: JobHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self.told = False
        """Whether somebody has been told that the job failed."""

    @property
    def handle(self) -> JobHandle:
        assert self._handle is not None
        return self._handle

    @property
    def subtasks(self) -> list[Subtask]:
        return [] if self._attempt is None else list(self._attempt.subtasks)

    def timers(self, uid: str, group: int) -> list[TimerService]:
        """Of the subtask of operator `uid` that has this key group; empty where it has none."""
        links = [slot.link for subtask in self.subtasks for slot in subtask.chain.slots]
        own = [link for link in links if link is not None and link.uid == uid and _owns(link, group)]
        return [link.timers for link in own if link.timers is not None]

    async def start(
        self, flow: Dataflow, config: Config, *, restore: str | None, resources: Mapping[str, Any] | None
    ) -> None:
        job = job_here(flow.graph(), config, restore=restore, fresh=False, resources=resources, clock=self.clock)
        job._deploy = self._deploy
        self._task = asyncio.get_running_loop().create_task(job.run(), name=f"job {job.name}")
        self._handle = JobHandle(job, self._task)
        settled = asyncio.ensure_future(job.settled.wait())
        try:
            await asyncio.wait([settled, self._task], return_when=asyncio.FIRST_COMPLETED)
        finally:
            settled.cancel()
        await self.settle()

    async def _deploy(
        self, spec: AttemptSpec, storage: SnapshotStorage | None, reports: Reports, clock: Clock
    ) -> Slice:
        self._attempt = await deploy_locally(spec, storage, reports, clock)
        return self._attempt

    # ------------------------------------------------------------------------------------------------------- settling
    async def settle(self) -> None:
        turns = 0
        try:
            async with asyncio.timeout(self._timeout):
                while self.check() and not self._at_rest():
                    turns += 1
                    await (asyncio.sleep(0) if turns < _TURNS else self.clock.sleep(_POLL_SECONDS))
        except TimeoutError as error:
            raise TimeoutError(
                f"after {self._timeout:g} s there is still something to do: {', '.join(self._busy())}. If the operator "
                "waits for something that the test is to give it, use wait=False, and settle() afterwards"
            ) from error

    def check(self) -> bool:
        """True; raises what ended the job."""
        if self._task is None or not self._task.done() or self._task.cancelled():
            return True
        error = self._task.exception()
        if error is None:
            return True
        self.told = True
        raise error.__cause__ if isinstance(error, JobFailed) and error.__cause__ is not None else error

    def check_running(self) -> None:
        """Raises what ended the job, and JobNotRunning where that was no failure."""
        self.check()
        if self._task is None or self._task.done():
            raise JobNotRunning(f"the job under test is not running any more: {self.handle.status}")

    def _at_rest(self) -> bool:
        if self._task is not None and self._task.done():
            return True
        return not any(script.unread for script in self._scripts) and not self._busy()

    def _busy(self) -> list[str]:
        """The actors that have something to do, by their steps."""
        busy = [subtask for subtask in self.subtasks if not _waits(subtask)]
        return [" → ".join(node.uid for node in subtask.nodes) for subtask in busy]

    # --------------------------------------------------------------------------------------------------------- moving
    async def advance(self, duration: dt.timedelta) -> None:
        self.clock.now_ms += duration // dt.timedelta(milliseconds=1)
        for subtask in self.subtasks:
            subtask._alarm._ring()  # it waits by the loop's time, which does not stand still
        await self.settle()

    async def close(self) -> None:
        """Raises what ended the job, if nobody was told yet."""
        task, self._task = self._task, None
        if task is None:
            return
        if self.handle.status == "failed":  # and lets go of what it had open
            await asyncio.wait([task])
        failed = task.done() and not task.cancelled() and task.exception() is not None
        if not task.done():
            await self.handle.cancel()
        if failed and not self.told:
            self._task = task
            self.check()


def _waits(subtask: Subtask) -> bool:
    """Whether it waits for something to come, and nothing has."""
    signal = subtask.mailbox.signal
    waiting = signal._waiter is not None and not signal._set
    return waiting and not subtask.chain.busy and not any(_calls(slot.link) for slot in subtask.chain.slots)


def _owns(link: Link, group: int) -> bool:
    return link.ctx.backend is not None and group in link.ctx.backend.groups


def _calls(link: Link | None) -> bool:
    """Whether calls of an async operator are on their way."""
    return isinstance(link, AsyncLink) and link.holding
