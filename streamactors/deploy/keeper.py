"""The process that holds a job which nobody else does: its keeper.

Invariants. What is to be run is stored before it begins and until its end is: so a keeper that is started in place of
one that has died goes on with it, from the job's own checkpoints. The end is stored before anybody is told of it, so a
job that was said to have ended never begins again. A keeper that was taken for dead and is not (on a node that was cut
off) stores nothing once it has a successor: the end is the successor's to tell. What takes no checkpoints never begins
twice: what it has written would be there twice.
"""

import asyncio
import dataclasses
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol

import msgspec

from streamactors.clock import Clock, uninterrupted
from streamactors.config import Ray
from streamactors.deploy.detached import Answer, Ending, ending_key, keeper_key, submission_key
from streamactors.errors import ConnectionLost, JobFailed, JobNotRunning
from streamactors.runtime.handled import HandledJob
from streamactors.runtime.job import Job, JobSpec

log = logging.getLogger("streamactors.job")

TOLD_WITHIN: Final = 30.0
"""Seconds after which a keeper that nobody tells what to run is gone: who has started it has died meanwhile. Shorter
than what another one of the same name waits for it."""
ANSWERED_WITHIN: Final = 5.0
"""Seconds that answers under way may take once the job has ended."""


class Attended(Protocol):
    """The control of one job."""

    async def ask(self, method: str, path: str, body: bytes) -> Answer: ...
    async def status(self) -> bytes: ...


Attend = Callable[[HandledJob, "asyncio.Task[None]"], AbstractAsyncContextManager[Attended]]
"""Serves the control of a job while the block lasts."""


class Store(Protocol):
    """A few values that outlive the processes of a job. Every call raises ConnectionLost."""

    async def put(self, key: str, value: bytes) -> None: ...
    async def get(self, key: str) -> bytes | None: ...
    async def delete(self, key: str) -> None: ...
    async def keys(self, prefix: str) -> list[str]: ...


@dataclasses.dataclass(frozen=True)
class Submission:
    """What a keeper is to run, and `attend`, which serves its control. `level`: of its log."""

    spec: JobSpec
    settings: Ray
    level: int
    attend: Attend

    @property
    def may_begin_again(self) -> bool:
        """Whether it has a storage to go on from."""
        return self.spec.config.checkpoints is not None

    @property
    def goes_on(self) -> bool:
        """Whether what was asked for at first is all that is to be asked for."""
        return self.spec.restore == "latest" and not self.spec.fresh

    def again(self, since: int | None = None) -> "Submission":
        """See `JobSpec.again`."""
        return dataclasses.replace(self, spec=self.spec.again(since))


class Keeper:
    """Holds one job, from what it is told or what its predecessor was told to the end. `token`: the same for all that
    are started for one job. `deployed`: a job that is ready to run, with whatever ends with the block."""

    def __init__(
        self,
        flow: str,
        token: str,
        store: Store,
        deployed: Callable[[Submission], AbstractAsyncContextManager[Job]],
        unship: Callable[[bytes], Submission],
        ship: Callable[[Submission], bytes],
        clock: Clock,
    ) -> None:
        self._flow = flow
        self._token = token
        self._store = store
        self._deployed = deployed
        self._unship = unship
        self._ship = ship
        self._clock = clock
        self._key = submission_key(flow, token)
        self.has_job = False
        """Whether it has been told what to run, or the one before was."""
        self._name = clock.token().encode()
        """Of this keeper among those of the same token."""
        loop = asyncio.get_running_loop()
        self._given: asyncio.Future[bytes] = loop.create_future()
        self._settled: asyncio.Future[None] = loop.create_future()
        """Whether the job goes on from its storage from here on, or why it never began."""
        self._attended: asyncio.Future[Attended] = loop.create_future()
        self._answering: set[asyncio.Task[Answer]] = set()

    # -------------------------------------------------------------------------------------------------------- lifetime
    async def run(self) -> None:
        """Until the job has ended. Raises nothing that the job does: that is stored; but ConnectionLost where the store
        does not answer: a successor may find that it does."""
        try:
            await self._run()
        except ConnectionLost as error:
            self._say_settled(error)
            raise
        except Exception as error:
            log.critical("%s: the job has failed: %s", self._flow, error, exc_info=error)
            self._say_settled(error)
            await self._end("failed", error, None)
        finally:
            self._say_settled(JobNotRunning(f"job {self._flow!r} is not running any more"))
            if not self._attended.done():
                self._attended.cancel()
            await self._answered()

    async def _run(self) -> None:
        if await self._has_ended():
            return
        await self._store.put(keeper_key(self._flow, self._token), self._name)
        stored = await self._store.get(self._key)
        if stored is None:
            if (submission := await self._first()) is None:
                return
        else:
            self.has_job = True
            submission = self._next(self._unship(stored))
        async with self._deployed(submission) as job:
            await self._keep(job, submission)

    async def _has_ended(self) -> bool:
        """Whether the one before has died between storing the end and letting go."""
        stored = await self._store.get(ending_key(self._flow))
        ended = stored is not None and msgspec.msgpack.decode(stored, type=Ending).token == self._token
        if ended:
            await self._forget()
        return ended

    async def _forget(self) -> None:
        await self._store.delete(self._key)
        await self._store.delete(keeper_key(self._flow, self._token))

    async def _first(self) -> Submission | None:
        """None where nobody has said what to run."""
        waiting = asyncio.ensure_future(self._clock.sleep(TOLD_WITHIN))
        either: list[asyncio.Future[Any]] = [self._given, waiting]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if not self._given.done():
            await self._forget()
            return None
        submission = self._unship(self._given.result())
        await self._store.put(self._key, self._given.result())
        for of in (submission_key, keeper_key):
            for key in await self._store.keys(of(self._flow, "")):
                if key != of(self._flow, self._token):  # of one that was killed for good: there is one job of a name
                    await self._store.delete(key)
        await self._store.delete(ending_key(self._flow))
        return submission

    def _next(self, submission: Submission) -> Submission:
        if not submission.may_begin_again:
            raise JobFailed(
                f"job {self._flow!r}: the coordinator has died, and the job takes no checkpoints that it could go on "
                "from: see what it has written, and start it again"
            )
        if not submission.goes_on:
            spec = submission.spec
            raise JobFailed(
                f"job {self._flow!r}: the coordinator died before the job ran, so that it is not known whether "
                f"restore={spec.restore!r}, fresh={spec.fresh} has been recorded: start it again"
            )
        log.warning("%s: the coordinator has died, and another one goes on", self._flow)
        return submission.again()

    async def _keep(self, job: Job, submission: Submission) -> None:
        task = asyncio.get_running_loop().create_task(self._to_its_end(job, submission), name=f"job {self._flow}")
        try:
            async with submission.attend(job, task) as attended:
                self._attended.set_result(attended)
                await asyncio.wait([task])
                await self._answered()
        finally:
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("%s: the job has failed: %s", self._flow, error, exc_info=error)

    async def _to_its_end(self, job: Job, submission: Submission) -> None:
        """Whoever waits for the job waits for this: so nobody knows of an end that is not stored."""
        await asyncio.wait([self._attended])
        settling = asyncio.get_running_loop().create_task(self._settle(job, submission))
        error: BaseException | None = None
        try:
            await job.run()
        except BaseException as raised:
            error = raised
            raise
        finally:
            await uninterrupted(self._ended(job, settling, error))

    async def _ended(self, job: Job, settling: "asyncio.Task[None]", error: BaseException | None) -> None:
        if not job.settled.is_set():
            settling.cancel()
        await asyncio.wait([settling])
        if error is not None:
            self._say_settled(error if isinstance(error, Exception) else JobNotRunning(f"{self._flow!r} was cancelled"))
        await self._end(job.status, error, await self._attended.result().status())

    async def _settle(self, job: Job, submission: Submission) -> None:
        await job.settled.wait()
        if submission.may_begin_again and submission.spec.rescaled_since is None:
            try:
                await uninterrupted(self._store.put(self._key, self._ship(submission.again(job.run_number))))
            except ConnectionLost as error:
                log.error("%s: another coordinator would not know that the job goes on: %s", self._flow, error)
        self._say_settled(None)

    async def _end(self, status: str, error: BaseException | None, told: bytes | None) -> None:
        said = None if error is None or status == "cancelled" else f"{type(error).__name__}: {error}"
        now = self._clock.time_ms()
        ending = Ending(flow=self._flow, token=self._token, ended_ms=now, status=status, error=said, told=told)
        try:
            if await self._store.get(keeper_key(self._flow, self._token)) != self._name:
                log.warning("%s: another coordinator goes on with this job", self._flow)
                return
            await self._store.put(ending_key(self._flow), msgspec.msgpack.encode(ending))
            await self._forget()
        except ConnectionLost as failure:
            log.error("%s: %s, and that could not be stored: %s", self._flow, status, failure)

    def _say_settled(self, error: Exception | None) -> None:
        if self._settled.done():
            return
        if error is None:
            self._settled.set_result(None)
        else:
            self._settled.set_exception(error)
            self._settled.exception()  # seen, where nobody waits

    # -------------------------------------------------------------------------------------------------------- requests
    async def begin(self, submission: bytes) -> None:
        """Tell it what to run; again where an answer was lost. Returns once the job goes on by itself; raises what
        keeps it from."""
        if not self._given.done():
            self._given.set_result(submission)
            self.has_job = True
        await asyncio.shield(self._settled)

    async def request(self, method: str, path: str, body: bytes) -> Answer | None:
        """Of the job's control; None where there is none any more."""
        asked = asyncio.get_running_loop().create_task(self._ask(method, path, body))
        self._answering.add(asked)
        try:
            await asyncio.wait([asked])
            return None if asked.cancelled() else asked.result()  # what is under way is given up with the control
        finally:
            asked.cancel()
            self._answering.discard(asked)

    async def _ask(self, method: str, path: str, body: bytes) -> Answer:
        return await (await asyncio.shield(self._attended)).ask(method, path, body)

    async def _answered(self) -> None:
        if not self._answering:
            return
        waiting = asyncio.ensure_future(self._clock.sleep(ANSWERED_WITHIN))
        everyone = asyncio.gather(*self._answering, return_exceptions=True)
        either: list[asyncio.Future[Any]] = [everyone, waiting]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            everyone.cancel()
