"""From a flow to a running job: `run`, `start`, `collect`, and the handle that a host holds; `program` has `main`."""

import asyncio
import datetime as dt
import gc
import inspect
import logging
import signal
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, TypeVar, overload

from streamactors.api.dataflow import Dataflow, Stream, graph_with_sink
from streamactors.config import Config
from streamactors.elements import OutputTag
from streamactors.errors import CheckpointFailed, InvalidConfig, JobFailed, JobNotRunning
from streamactors.graph.logical import LogicalGraph
from streamactors.graph.physical import PhysicalPlan, SubtaskId
from streamactors.runtime.events import Listener
from streamactors.runtime.handled import HandledJob
from streamactors.runtime.info import (
    ChannelFill,
    CheckpointGivenUp,
    CheckpointInfo,
    CheckpointUnderWay,
    Incident,
    RescaleInfo,
    Restoring,
    Status,
)
from streamactors.runtime.taps import check_buffer
from streamactors.state.descriptors import ValueState

T = TypeVar("T")
log = logging.getLogger("streamactors.job")

EXIT_TIMEOUT = dt.timedelta(seconds=20)
"""Inside the 30 s that Kubernetes gives a pod to end."""
SUBSCRIBED = 1000
"""Values that wait for a subscriber."""


class JobHandle:
    """A running job, for the program that started it."""

    def __init__(self, job: HandledJob, task: "asyncio.Task[None]") -> None:
        self._job = job
        self._task = task

    @property
    def name(self) -> str:
        return self._job.name

    @property
    def status(self) -> Status:
        return self._job.status

    @property
    def restarts(self) -> int:
        return self._job.restarts

    @property
    def stopping(self) -> bool:
        """Whether it has been asked to stop."""
        return self._job.stopping

    @property
    def config(self) -> Config:
        return self._job.config

    @property
    def plan(self) -> PhysicalPlan | None:
        """By which it runs, or ran last; None before the first attempt."""
        return self._job.plan

    @property
    def checkpoints(self) -> Sequence[CheckpointInfo]:
        """The latest hundred that were completed in this process, savepoints among them; the latest last."""
        return tuple(self._job.checkpoints)

    @property
    def failures(self) -> Sequence[BaseException]:
        """What ended earlier attempts, the latest last."""
        return tuple(self._job.failures)

    @property
    def incidents(self) -> Sequence[Incident]:
        """What ended attempts, and when; the latest last."""
        return tuple(self._job.incidents)

    @property
    def checkpoints_under_way(self) -> Sequence[CheckpointUnderWay]:
        return tuple(self._job.checkpoints_under_way)

    @property
    def restoring(self) -> Restoring | None:
        """None where no checkpoint is being restored."""
        return self._job.restoring

    @property
    def last_rescale(self) -> RescaleInfo | None:
        """Of this process."""
        return self._job.last_rescale

    @property
    def checkpoints_given_up(self) -> Sequence[CheckpointGivenUp]:
        """The latest hundred; the latest last."""
        return tuple(self._job.given_up)

    @property
    def checkpoint_counts(self) -> tuple[int, int]:
        """How many were completed, and how many given up, in this process."""
        return self._job.checkpoints_completed, self._job.checkpoints_given_up

    async def wait(self) -> None:
        """Until the job ends; raises JobFailed with the user's exception as its cause."""
        await asyncio.wait([self._task])
        _raise_failure(self._task)

    async def checkpoint(self) -> CheckpointInfo:
        """Take one now. Raises CheckpointFailed; InvalidConfig where checkpoints are off."""
        return await self._or_end(self._job.checkpoint())

    async def savepoint(self, uri: str) -> str:
        """Take a savepoint in the new or empty folder `uri`, and go on; returns its URI. It is complete in itself, may
        be moved, and is never deleted. Raises CheckpointFailed; InvalidConfig where checkpoints are off."""
        return (await self._or_end(self._job.savepoint(uri))).uri

    async def stop(self, savepoint: str | None = None, *, drain: bool = False) -> str | None:
        """Stop reading, take a last checkpoint (a savepoint in the new or empty folder `savepoint`), commit, finish;
        returns its URI. `drain` first ends the data: only for a job that will not be resumed. Without it, a batch job
        is cancelled. Raises CheckpointFailed, also where it is stopping already and was asked otherwise; JobNotRunning
        if it is cancelled meanwhile; ConnectionLost, with `savepoint`, if the job's own process dies and it goes on."""
        if self._task.done():
            _raise_failure(self._task)
            return None
        if self._job.batch and savepoint is None and not drain:
            log.info("%s: cancelled, and nothing of it is visible: a part of the input has no result", self.name)
            await self.cancel()
            return None
        try:
            as_asked = await self._or_end(self._job.stop(drain=drain, savepoint=savepoint))
        except CheckpointFailed:
            await self.wait()  # it finishes by itself, or fails
            if self.status != "finished" or savepoint is not None:
                raise
            as_asked = True
        if not as_asked and (savepoint is not None or drain):
            raise CheckpointFailed(f"job {self.name!r} is stopping already; how it does can't be changed any more")
        return await self._stopped()

    async def _stopped(self) -> str | None:
        await self.wait()
        if self.status == "cancelled":
            raise JobNotRunning(f"job {self.name!r} was cancelled before it had stopped")
        last = self._job.last_checkpoint
        return last.uri if last is not None else None

    async def _or_end(self, request: Coroutine[Any, Any, T]) -> T:
        """The answer to a request, or the job's failure if it ends before it answers."""
        asked = asyncio.ensure_future(request)
        try:
            await asyncio.wait([asked, self._task], return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                _raise_failure(self._task)
                raise JobNotRunning(f"job {self.name!r} is not running any more: {self.status}")
            return await asked
        finally:
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)

    async def cancel(self) -> None:
        """End at once, without a checkpoint; what was not committed comes again on the next start."""
        self._task.cancel()
        await asyncio.wait([self._task])

    @contextmanager
    def listening(self, listener: Listener) -> Iterator[None]:
        """While the block lasts, `listener` is told what happens to the job: on the event loop, so it must not wait."""
        self._job.listeners.append(listener)
        try:
            yield
        finally:
            self._job.listeners.remove(listener)

    async def rescale(self, *, parallelism: int | Mapping[str, int], steps: Mapping[str, int] | None = None) -> None:
        """Go on by another parallelism, in one step: stop reading, take a checkpoint, commit, go on from it. An int is
        the new default, and `steps` may go with it; a mapping gives steps one, by uid or name, and with them
        those between which records are handed straight on. Returns once the job runs again; it is done if the caller
        does not wait. A new process begins by its Config.

        Raises InvalidConfig for what can't be, without touching the job; CheckpointFailed, or why the state can't be
        restored so, and then the job goes on as it was; RescaleFailed, likewise; RescaleUnderWay; JobNotRunning.
        A job that runs by it and fails before its next checkpoint is complete goes back, once, to what it was.
        """
        if not isinstance(parallelism, Mapping):
            await self._or_end(self._job.rescale(steps or {}, parallelism))
        elif steps is None:
            await self._or_end(self._job.rescale(parallelism))
        else:
            raise InvalidConfig("parallelism={uid: number} and steps={uid: number} are the same: give one of them")

    def channels(self, vertex: str, index: int) -> Sequence[ChannelFill]:
        """What waits on the inputs of a subtask."""
        return self._job.channels(SubtaskId(vertex, index))

    def metrics(self) -> Mapping[str, Any]:
        """Status, restarts, the last checkpoint, and counts by subtask."""
        return self._job.metrics()

    @overload
    async def query(self, uid: str, state: ValueState[T], key: Any) -> T: ...
    @overload
    async def query(self, uid: str, state: str, key: Any) -> Any: ...
    async def query(self, uid: str, state: ValueState[Any] | str, key: Any) -> Any:
        """A copy of what `key` holds in a state of operator `uid`, consistent per key. Raises StateAccessError."""
        name = state if isinstance(state, str) else state.name
        return await self._or_end(self._job.query(uid, name, key))

    def subscribe(
        self, uid: str, *, tag: OutputTag[Any] | None = None, buffer: int = SUBSCRIBED
    ) -> AbstractAsyncContextManager[AsyncIterator[Any]]:
        """What step `uid` emits while the block lasts (to its side output `tag`), from all of its subtasks; in order
        within each. A restart of the job may repeat values. They are the job's own objects: to be read only.

        The iteration ends with the job; raises JobFailed if it failed. The job does not wait for it: at most `buffer`
        values are kept; where the oldest were lost, SubscriptionLagged tells how many, and the iteration may be taken
        up again. Raises NoSuchStep on entering.
        """
        check_buffer(buffer)
        return self._subscribed(uid, None if tag is None else tag.name, buffer)

    @asynccontextmanager
    async def _subscribed(self, uid: str, tag: str | None, buffer: int) -> AsyncIterator[AsyncIterator[Any]]:
        job, task = self._job, self._task
        if job.plan is None:  # a first attempt has failed before it was planned
            await self._or_end(job.running.wait())
        subscription = await job.subscribe(uid, tag, buffer)

        def ended(task: "asyncio.Task[None]") -> None:
            subscription.end(None if task.cancelled() else task.exception())

        task.add_done_callback(ended)
        try:
            yield subscription
        finally:
            task.remove_done_callback(ended)
            job.unsubscribe(subscription)


Beside = Callable[[JobHandle], AbstractAsyncContextManager[object]]
"""What is open for as long as a job lives, from before it starts until it has ended."""


def _raise_failure(task: "asyncio.Task[None]") -> None:
    if task.cancelled():
        return
    error = task.exception()
    if error is not None:
        raise error


def _deployed(
    graph: LogicalGraph,
    config: Config | None,
    *,
    restore: str | None,
    fresh: bool,
    resources: Mapping[str, Any] | None,
    drop_state: Collection[str],
    claim: bool,
) -> HandledJob:
    from streamactors.submission import deployed_job  # who only imports the library does not pay for it

    return deployed_job(
        graph, config, restore=restore, fresh=fresh, resources=resources, drop_state=drop_state, claim=claim
    )


async def run(
    flow: Dataflow,
    config: Config | None = None,
    *,
    restore: str | None = "latest",
    fresh: bool = False,
    resources: Mapping[str, Any] | None = None,
    drop_state: Collection[str] = (),
    claim: bool = False,
) -> None:
    """Run a flow until it ends. Raises JobFailed with the user's exception as its cause.

    `restore`: "latest", a checkpoint's URI, or None; `fresh` leaves stored checkpoints behind. `claim`: what is
    restored belongs to the job from now on, which deletes it once it is superseded; else it is never deleted.
    `drop_state` names operators (uids) that the flow no longer has and whose stored state may be given up.
    """
    job = _deployed(
        flow.graph(),
        config,
        restore=restore,
        fresh=fresh,
        resources=resources,
        drop_state=drop_state,
        claim=claim,
    )
    await job.run()


@asynccontextmanager
async def start(
    flow: Dataflow,
    config: Config | None = None,
    *,
    restore: str | None = "latest",
    fresh: bool = False,
    resources: Mapping[str, Any] | None = None,
    drop_state: Collection[str] = (),
    claim: bool = False,
    on_failure: Callable[[BaseException], Any] | None = None,
    on_exit: Literal["checkpoint", "cancel"] = "checkpoint",
    exit_timeout: dt.timedelta = EXIT_TIMEOUT,
) -> AsyncIterator[JobHandle]:
    """Run a flow beside the host's own work, for as long as the block lasts.

    Entering waits until the job runs (or restarts); what keeps it from starting at all is raised there. A job that
    fails later cancels nothing: it logs CRITICAL, calls `on_failure`, and is raised by `wait()` and on leaving.
    Leaving in peace takes a last checkpoint within `exit_timeout`; leaving by an exception cancels.
    """
    job = _deployed(
        flow.graph(),
        config,
        restore=restore,
        fresh=fresh,
        resources=resources,
        drop_state=drop_state,
        claim=claim,
    )
    async with _supervised(job, on_failure, on_exit, exit_timeout) as handle:
        yield handle


@asynccontextmanager
async def _supervised(
    job: HandledJob,
    on_failure: Callable[[BaseException], Any] | None,
    on_exit: Literal["checkpoint", "cancel"],
    exit_timeout: dt.timedelta,
    beside: Beside | None = None,
) -> AsyncIterator[JobHandle]:
    task = asyncio.get_running_loop().create_task(job.run(), name=f"job {job.name}")
    handle = JobHandle(job, task)
    reactions: list[asyncio.Future[Any]] = []
    try:
        async with nullcontext() if beside is None else beside(handle):
            try:
                await _started(job, task)
                task.add_done_callback(lambda ended: _tell_failure(job, ended, on_failure, reactions))
                yield handle
                await _leave(handle, task, on_exit, exit_timeout)
            finally:  # what runs beside can then still tell how it has ended
                await _end(handle, task)
    finally:
        await _end(handle, task)
        await asyncio.gather(*reactions)


async def _end(handle: JobHandle, task: "asyncio.Task[None]") -> None:
    if not task.done():
        await handle.cancel()


async def _started(job: HandledJob, task: "asyncio.Task[None]") -> None:
    settled = asyncio.ensure_future(job.settled.wait())
    try:
        await asyncio.wait([settled, task], return_when=asyncio.FIRST_COMPLETED)
    finally:
        settled.cancel()
    if task.done():
        _raise_failure(task)


async def _leave(
    handle: JobHandle, task: "asyncio.Task[None]", on_exit: Literal["checkpoint", "cancel"], exit_timeout: dt.timedelta
) -> None:
    if on_exit == "checkpoint" and not task.done():
        try:
            async with asyncio.timeout(exit_timeout.total_seconds()):
                await handle.stop()
        except TimeoutError:
            log.error("%s: no last checkpoint in %s, goes on from the one before", handle.name, exit_timeout)
        except CheckpointFailed:
            if handle.status != "cancelled":  # as that ends a job at any other time: without a word
                raise
    if handle.status == "failed":  # and lets go of what it had open
        await asyncio.wait([task])
    if task.done():
        _raise_failure(task)


def _tell_failure(
    job: HandledJob,
    task: "asyncio.Task[None]",
    on_failure: Callable[[BaseException], Any] | None,
    reactions: list[asyncio.Future[Any]],
) -> None:
    """`on_failure` may be `async def`: its task joins `reactions`, which are awaited on leaving."""
    if task.cancelled() or (error := task.exception()) is None:
        return
    log.critical("%s: the job has failed: %s", job.name, error, exc_info=error)
    if on_failure is not None and inspect.isawaitable(reaction := on_failure(error)):
        reactions.append(asyncio.ensure_future(reaction))


async def collect(stream: Stream[T], config: Config | None = None) -> list[T]:
    """Run the flow, bounded, and return the values of `stream`: for notebooks and tests. Always begins afresh."""
    from streamactors.submission import collected

    return await collected(lambda sink: graph_with_sink(stream, "collect", sink), config)


# --------------------------------------------------------------------------------------------------------- as a program
EXIT_OK, EXIT_FAILED, EXIT_REFUSED, EXIT_INTERRUPTED = 0, 1, 2, 130


def run_loop(main_coroutine: Any) -> int:
    """`asyncio.run` on uvloop where there is one. What was made before is frozen meanwhile: it stays, and the garbage
    collector need not walk through all that has been imported."""
    try:
        import uvloop
    except ImportError:
        factory = None
    else:
        factory = uvloop.new_event_loop
    gc.collect()
    gc.freeze()
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            result: int = runner.run(main_coroutine)
            return result
    finally:
        gc.unfreeze()


async def run_until_signalled(
    flow: Dataflow,
    config: Config,
    *,
    restore: str | None = "latest",
    fresh: bool = False,
    drop_state: Collection[str] = (),
    claim: bool = False,
    watch: Callable[[JobHandle], Any] | None = None,
    on_failure: Callable[[BaseException], Any] | None = None,
    beside: Beside | None = None,
) -> int:
    """Run until the end, or until SIGINT/SIGTERM: then stop cleanly; a second signal cancels. Returns the exit code.

    `watch` is called with the handle once the job runs, `on_failure` with the JobFailed for which it returns 1."""
    graph = flow.graph()
    job = _deployed(graph, config, restore=restore, fresh=fresh, resources=None, drop_state=drop_state, claim=claim)
    signalled = _Signals(asyncio.get_running_loop())
    entered = False
    heeded = partial(_heeded_while_it_starts, signalled, beside)
    try:
        async with _supervised(job, None, "cancel", EXIT_TIMEOUT, heeded) as handle:
            entered = True
            signalled.awaited.set()
            if handle.status == "cancelled":
                return EXIT_INTERRUPTED
            if watch is not None:
                watch(handle)
            return await _wait_or_stop(handle, signalled)
    except JobFailed as failure:
        if not entered:  # it never ran, and nobody has logged it yet
            log.critical("%s: the job has failed: %s", job.name, failure, exc_info=failure)
        if on_failure is not None:
            on_failure(failure)
        return EXIT_FAILED
    finally:
        signalled.restore()


@asynccontextmanager
async def _heeded_while_it_starts(
    signalled: "_Signals", beside: Beside | None, handle: JobHandle
) -> AsyncIterator[None]:
    """As long as nobody else waits for signals: a start may take as long as a cluster takes to grow."""
    heeding = asyncio.ensure_future(_cancel_at_second(signalled, handle))
    try:
        async with nullcontext() if beside is None else beside(handle):
            yield
    finally:
        heeding.cancel()
        await asyncio.gather(heeding, return_exceptions=True)


async def _cancel_at_second(signalled: "_Signals", handle: JobHandle) -> None:
    await signalled.first.wait()
    if not signalled.awaited.is_set():
        log.info("%s: stops once it runs; a second signal cancels", handle.name)
    await signalled.second.wait()
    if not signalled.awaited.is_set():
        await handle.cancel()


async def _wait_or_stop(handle: JobHandle, signalled: "_Signals") -> int:
    ended = asyncio.ensure_future(handle.wait())
    first = asyncio.ensure_future(signalled.first.wait())
    second = asyncio.ensure_future(signalled.second.wait())
    tasks: list[asyncio.Future[Any]] = [ended, first, second]
    try:
        await asyncio.wait([ended, first], return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            await ended
            return _exit_code(handle)
        log.info("%s: stopping; a second signal cancels", handle.name)
        stopping = asyncio.ensure_future(handle.stop())
        tasks.append(stopping)
        await asyncio.wait([stopping, second], return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            await handle.cancel()
            return EXIT_INTERRUPTED
        await _stopped(stopping, handle)
        return _exit_code(handle)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _stopped(stopping: "asyncio.Future[str | None]", handle: JobHandle) -> None:
    try:
        uri = await stopping
        log.info("%s: stopped%s", handle.name, f"; goes on from {uri}" if uri else "")
    except CheckpointFailed:
        await handle.wait()  # it finished or failed by itself meanwhile, or was cancelled


def _exit_code(handle: JobHandle) -> int:
    return EXIT_INTERRUPTED if handle.status == "cancelled" else EXIT_OK


class _Signals:
    """SIGINT and SIGTERM as events; `restore` gives the old handlers back."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self.awaited = asyncio.Event()
        """Whether the job has started, and `_wait_or_stop` heeds them."""
        self._loop = loop
        self._installed: list[int] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                loop.add_signal_handler(number, self._received)
            except (RuntimeError, ValueError):
                continue  # not the main thread, or Windows: the default handling stays
            self._installed.append(number)

    def _received(self) -> None:
        (self.second if self.first.is_set() else self.first).set()

    def restore(self) -> None:
        for number in self._installed:
            self._loop.remove_signal_handler(number)
