"""A job over several processes on Ray, which places, starts, watches and replaces them.

The driver is the process that runs the job for its user; the coordinator, an actor, holds the job itself; each worker,
an actor too, holds a slice of its subtasks. Workers belong to the coordinator and the coordinator to the driver: Ray
ends whoever's owner is gone. A coordinator that dies is started again by Ray, and goes on from the checkpoint storage.
"""

import asyncio
import contextlib
import dataclasses
import importlib.metadata
import io
import logging
import math
import os
import platform
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import ray
from ray import cloudpickle
from ray.exceptions import ActorDiedError, RayActorError, RayError

from streamactors.clock import SYSTEM, Clock, uninterrupted
from streamactors.cluster.deployed import ClusterDeployment
from streamactors.cluster.held import HeldJob
from streamactors.cluster.hosted import CancelJob, JobHost, JobState, Known, QueryState, Request
from streamactors.cluster.wire import COORDINATOR
from streamactors.cluster.worker import Worker
from streamactors.config import Ray, Restart
from streamactors.deploy.code import reduced, refuse_unsendable
from streamactors.deploy.main_script import refuse_while_loading
from streamactors.errors import (
    CheckpointFailed,
    ClusterUnfit,
    ConnectionLost,
    InvalidConfig,
    JobFailed,
    StreamactorsError,
)
from streamactors.graph.parallelism import Parallelism
from streamactors.runtime.job import Job, JobSpec
from streamactors.settings import redacted

log = logging.getLogger("streamactors.ray")

NAMESPACE: Final = "streamactors"
MANY: Final = 10_000
"""Calls that one actor has under way at a time."""
OBJECT_STORE: Final = 256 << 20
"""Bytes, of a Ray that is started for one job: messages are there on their way, and nothing else."""
FIRST_LOOK: Final = 0.2
REACHED_WITHIN: Final = 10.0
"""Seconds for a connection to the cluster's address."""
NAME_KEPT: Final = 10.0
"""Seconds that an actor which is gone may keep its name for."""


# ---------------------------------------------------------------------------------------------------- objects as bytes
class _Pickler(cloudpickle.Pickler):
    def reducer_override(self, thing: Any) -> Any:
        found = reduced(thing)
        return super().reducer_override(thing) if found is NotImplemented else found  # type: ignore[no-untyped-call]


def dumps(thing: Any) -> bytes:
    """For processes of the same job only: Ray's own way of sending code."""
    buffer = io.BytesIO()
    pickler: Any = _Pickler
    pickler(buffer).dump(thing)
    return buffer.getvalue()


def loads(data: bytes) -> Any:
    """Raises ClusterUnfit where the flow's code is not on this node."""
    try:
        return cloudpickle.loads(data)
    except (ImportError, AttributeError) as error:
        raise ClusterUnfit(
            f"the flow's own code can't be loaded on node {platform.node()!r} ({error}): install it there, or hand it "
            "over with the job, such as by `ray job submit --working-dir .`"
        ) from error


# --------------------------------------------------------------------------------------------------------------- driver
def held_on_ray(spec: JobSpec, settings: Ray, clock: Clock = SYSTEM) -> HeldJob:
    """A job that runs on Ray, held here. Raises InvalidDataflow for what can't be sent there."""
    refuse_while_loading()
    _refuse_unsendable(spec)
    return HeldJob(spec.name, spec.config, lambda: _hosted(spec, settings, clock))


def _refuse_unsendable(spec: JobSpec) -> None:
    for name, resource in spec.resources.items():
        refuse_unsendable(f"resources[{name!r}]", resource, dumps)
    for vertex in spec.plan(spec.config.max_parallelism, Parallelism(spec.config.parallelism)).vertices:
        for node in vertex.nodes:
            name = "" if node.name == node.uid else f" ({node.name})"
            refuse_unsendable(f"step {node.uid!r}{name}", node.spec, dumps)
    refuse_unsendable("the flow", spec, dumps)


@asynccontextmanager
async def _hosted(spec: JobSpec, settings: Ray, clock: Clock) -> AsyncIterator["_RayHost"]:
    begun = clock.monotonic()
    async with _connected(settings, clock):
        log.info("%s: connected to Ray in %.1f s", spec.name, clock.monotonic() - begun)
        await _fits(settings, clock)
        host = _RayHost(spec, settings, clock)
        await host.begin()
        try:
            yield host
        finally:
            await uninterrupted(clock.run_blocking(host.end))


@asynccontextmanager
async def _connected(settings: Ray, clock: Clock) -> AsyncIterator[None]:
    """To the Ray that this process is connected to already, or for as long as the block lasts."""
    if ray.is_initialized():
        yield
        return
    address = settings.address or os.environ.get("RAY_ADDRESS")
    if address is not None:
        await _reach(address)
    await uninterrupted(clock.run_blocking(_connect, settings, address))
    _handle_sigterm_again()
    try:
        yield
    finally:
        await uninterrupted(clock.run_blocking(ray.shutdown))


async def _reach(address: str) -> None:
    """Raises ClusterUnfit at once, where Ray would go on trying for minutes."""
    if address.startswith("ray://"):
        raise ClusterUnfit(
            f"ray.address = {redacted(address)!r}: jobs don't run over Ray Client: give 'auto' on a node of the "
            "cluster, or submit the job (ray job submit)"
        )
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return
    try:
        async with asyncio.timeout(REACHED_WITHIN):
            _, writer = await asyncio.open_connection(host, int(port))
    except (OSError, TimeoutError) as error:
        raise ClusterUnfit(_unconnected(address, error)) from error
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def _connect(settings: Ray, address: str | None) -> None:
    """In a thread, since it takes seconds; there, Ray leaves the handling of signals alone."""
    common: dict[str, Any] = {"namespace": NAMESPACE, "logging_level": logging.ERROR}
    try:
        if address is None:
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=OBJECT_STORE,
                **_own_resources(settings),
                **common,
            )
        else:
            ray.init(address=address, **common)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise ClusterUnfit(_unconnected(address, error)) from error


def _handle_sigterm_again() -> None:
    """As before: Ray has put a handler of its own in front, which aborts the process three seconds after the signal,
    and a job that is stopped by it may need longer for its last checkpoint."""
    if callable(handler := signal.getsignal(signal.SIGTERM)):
        with contextlib.suppress(ValueError):  # not the main thread: handlers are none of its business
            signal.signal(signal.SIGTERM, handler)
            signal.siginterrupt(signal.SIGTERM, False)  # as asyncio has it


def _unconnected(address: str | None, error: Exception) -> str:
    if address is None:
        return f"Ray could not be started on this machine: {error}"
    if "ersion mismatch" in str(error):
        return f"ray.address = {address!r}: {error}"
    return (
        f"ray.address = {address!r}: no Ray cluster answers there ({type(error).__name__}): start one by "
        "`ray start --head`, correct the address, or leave it out for a Ray of this machine alone"
    )


def _own_resources(settings: Ray) -> dict[str, Any]:
    """Of a Ray that is started for this job: as much as its workers take."""
    each = dict(settings.each)
    cpus = math.ceil(max(os.cpu_count() or 1, each["CPU"] * settings.workers))
    own = {name: amount * settings.workers for name, amount in each.items() if name not in ("CPU", "GPU", "memory")}
    return {"num_cpus": cpus, "resources": own}


async def _fits(settings: Ray, clock: Clock) -> None:
    """Waits for a cluster that grows. Raises ClusterUnfit, telling what is missing."""
    until = clock.monotonic() + settings.patience.total_seconds()
    pause = FIRST_LOOK
    while (lacking := _lacking(settings, await clock.run_blocking(ray.nodes))) is not None:
        if clock.monotonic() >= until:
            raise ClusterUnfit(lacking)
        log.info("%s; waiting", lacking)
        await clock.sleep(pause)
        pause = min(2 * pause, 5.0)


def _lacking(settings: Ray, nodes: Collection[Mapping[str, Any]]) -> str | None:
    room = sum(_room(node["Resources"], settings.each) for node in nodes if node["Alive"])
    if room >= settings.workers:
        return None
    each = ", ".join(f"{name}={amount:g}" for name, amount in settings.each.items())
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    there = "; ".join(", ".join(f"{name}={has.get(name, 0):g}" for name in settings.each) for has in alive)
    return (
        f"{settings.workers} workers with {each} each don't fit: there is room for {room} "
        f"(nodes: {there or 'none'}); add nodes, or ask for less by Ray(workers=…, resources=…)"
    )


def _room(has: Mapping[str, float], each: Mapping[str, float]) -> int:
    """How many workers a node could hold, if it held nothing else."""
    shares = [has.get(name, 0.0) / amount for name, amount in each.items() if amount]
    return int(min(shares, default=float(MANY)) + 1e-9)


class _RayHost:
    """The coordinator, as the driver reaches it."""

    def __init__(self, spec: JobSpec, settings: Ray, clock: Clock) -> None:
        self._spec = spec
        self._settings = settings
        self._clock = clock
        self._actor: Any = None
        self._rest = settings, logging.getLogger("streamactors").getEffectiveLevel()
        self._settled = False
        """Whether the job is known to go on from its storage, if it has to begin again."""

    async def begin(self) -> None:
        options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_concurrency": MANY, "namespace": NAMESPACE}
        name = f"streamactors/{self._spec.name}/coordinator"
        try:
            self._actor = await _created(StreamactorsCoordinator, name, options, self._clock)
        except ConnectionLost as error:
            raise InvalidConfig(
                f"the job {self._spec.name!r} runs on this cluster already (there is an actor {name!r}): stop it, or "
                "give the flow another name"
            ) from error
        try:
            await self._answer("begin", self._spec, *self._rest)
        except RayActorError as error:
            raise _unstarted("the coordinator", error) from error

    async def tell(self, known: Known) -> JobState:
        while True:
            try:
                state: JobState = await self._answer("tell", known)
            except (RayActorError, ConnectionLost) as error:
                await self._begin_again(error)
                continue
            self._settled = self._settled or state.settled
            return state

    async def ask(self, request: Request) -> Any:
        while True:
            try:
                return await self._answer("ask", request)
            except (RayActorError, ConnectionLost) as error:
                if not isinstance(request, CancelJob | QueryState):  # those may be done by halves
                    raise CheckpointFailed("the coordinator has died meanwhile: ask again once it is back") from error
                await self._begin_again(error)

    async def _answer(self, method: str, *arguments: Any) -> Any:
        succeeded, answer = loads(await getattr(self._actor, method).remote(dumps(arguments)))
        if not succeeded:
            raise answer
        return answer

    async def _begin_again(self, error: Exception) -> None:
        """Ray starts the coordinator anew; the job in it goes on from its storage."""
        if self._spec.config.effective_restart == Restart.none():
            raise JobFailed(f"job {self._spec.name!r}: the coordinator has died, and restarts are off") from error
        if not self._settled and not (self._spec.restore == "latest" and not self._spec.fresh):
            raise JobFailed(
                f"job {self._spec.name!r}: the coordinator died before the job ran, so that it is not known whether "
                f"restore={self._spec.restore!r}, fresh={self._spec.fresh} has been recorded: start it again"
            ) from error
        log.warning("%s: the coordinator has died, and is started again: %s", self._spec.name, _in_a_line(error))
        again = dataclasses.replace(self._spec, restore="latest", fresh=False, claim=False)
        until = self._clock.monotonic() + self._settings.patience.total_seconds()
        while True:
            try:
                await self._answer("begin", again, *self._rest)
            except RayActorError as failure:
                if self._clock.monotonic() >= until:
                    raise JobFailed(f"job {self._spec.name!r}: the coordinator could not be started again") from failure
                await self._clock.sleep(FIRST_LOOK)
            else:
                return

    def end(self) -> None:
        """The workers go with it."""
        if self._actor is not None:
            ray.kill(self._actor, no_restart=True)


# ------------------------------------------------------------------------------------------------------- between actors
async def _created(of: type, name: str, options: dict[str, Any], clock: Clock, *arguments: Any) -> Any:
    """An actor, in a process of its own. One of the same name that has just been ended may keep it for a while."""
    until = clock.monotonic() + NAME_KEPT
    while True:
        try:
            return ray.remote(of).options(name=name, **options).remote(*arguments)
        except ValueError as error:
            if clock.monotonic() >= until:
                raise ConnectionLost(f"there is an actor {name!r} on the cluster already") from error
            await clock.sleep(FIRST_LOOK)


def _unstarted(what: str, error: RayError) -> StreamactorsError:
    """Why an actor does not run. What its own code has raised would be raised again."""
    if isinstance(error, ActorDiedError) and "creation task" in str(error):
        return ClusterUnfit(f"{what} can't be started on its node: {str(error).strip().splitlines()[-1]}")
    return ConnectionLost(f"{what} has died on starting: {_in_a_line(error)}")


class _RayWire:
    """`peers`: by their numbers; changed where a worker is replaced."""

    def __init__(self, me: int) -> None:
        self.me = me
        self.peers: dict[int, Any] = {}

    async def call(self, peer: int, message: bytes) -> None:
        """Raises ConnectionLost."""
        actor = self.peers.get(peer)
        if actor is None:
            raise ConnectionLost(f"there is no worker {peer} at present")
        try:
            refused = await actor.take.remote(self.me, message)
        except RayError as error:
            raise ConnectionLost(f"{type(error).__name__}: {error}") from error
        if refused is not None:
            raise ConnectionLost(refused)


def _taken(received: Callable[[int, bytes], None], sender: int, message: bytes) -> str | None:
    """Why it was refused."""
    try:
        received(sender, message)
    except ConnectionLost as error:
        return str(error)
    return None


def _log_as(level: int) -> None:
    """Ray passes on to the driver what an actor writes to its standard error."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)-8s %(name)s: %(message)s")
    logging.getLogger("streamactors").setLevel(level)


class About(NamedTuple):
    """Where a process of a job runs, and what has to be the same in all of them."""

    node: str
    python: str
    streamactors: str
    msgspec: str


def about() -> About:
    python = ".".join(platform.python_version_tuple()[:2])
    versions = (importlib.metadata.version(package) for package in ("streamactors", "msgspec"))
    return About(platform.node(), python, *versions)


def refuse_another(number: int, there: About, here: About) -> None:
    """Raises ClusterUnfit where a worker's node has not what the coordinator's has."""
    for what, its, ours in list(zip(About._fields, there, here, strict=True))[1:]:
        if its != ours:
            raise ClusterUnfit(
                f"worker {number} runs with {what} {its} on node {there.node!r}, and the job with {what} {ours} on "
                f"node {here.node!r}: install the same on every node"
            )


# --------------------------------------------------------------------------------------------------------------- worker
class StreamactorsWorker:
    """The actor that holds a slice of the job's subtasks."""

    def __init__(self, number: int, level: int) -> None:
        _log_as(level)
        self._number = number
        self._wire = _RayWire(number)
        self._worker: Worker | None = None

    def __repr__(self) -> str:
        return f"worker-{self._number}"

    async def about(self) -> About:
        return about()

    async def meet(self, peers: Mapping[int, Any]) -> None:
        """Those that there are by now, itself among them."""
        self._wire.peers = dict(peers)
        if self._worker is None:
            self._worker = Worker(self._number, self._wire, unship=loads)

    async def take(self, sender: int, message: bytes) -> str | None:
        if self._worker is None:
            return f"worker {self._number} has just been started"
        return _taken(self._worker.received, sender, message)

    async def live(self) -> None:
        """Ends with the process: so whoever waits for it learns of its death."""
        await asyncio.get_running_loop().create_future()


class _RayWorkers:
    """The workers of one job, which belong to this process. `lost` is told the number of one that dies, and why."""

    def __init__(self, flow: str, settings: Ray, wire: _RayWire, level: int, clock: Clock) -> None:
        self.lost: Callable[[int, str], None] = lambda number, why: None
        self._flow = flow
        self._settings = settings
        self._wire = wire
        self._level = level
        self._clock = clock
        self._watching: dict[int, asyncio.Task[None]] = {}

    @property
    def count(self) -> int:
        return self._settings.workers

    async def ready(self, replace: Collection[int]) -> None:
        """Raises ClusterUnfit; ConnectionLost where this attempt can't run, but a later one may."""
        for number in replace:
            await self._end(number)
        gone = [number for number, watching in self._watching.items() if watching.done()]
        for number in gone:
            await self._end(number)
        begun = self._clock.monotonic()
        missing = [number for number in range(self.count) if number not in self._watching]
        for number in missing:
            await self._start(number)
        try:
            async with asyncio.timeout(self._settings.patience.total_seconds()):
                await asyncio.gather(*map(self._check, missing))
                workers = {number: self._wire.peers[number] for number in range(self.count)}
                peers = {**workers, COORDINATOR: self._wire.peers[COORDINATOR]}
                await asyncio.gather(*(worker.meet.remote(peers) for worker in workers.values()))
        except TimeoutError as error:
            lacking = _lacking(self._settings, await self._clock.run_blocking(ray.nodes))
            raise ConnectionLost(
                lacking
                or f"not all of {self.count} workers have started within {self._settings.patience}: is the "
                "cluster taken by others?"
            ) from error
        except RayError as error:
            raise _unstarted("a worker", error) from error
        log.info("%s: %d workers started in %.1f s", self._flow, len(missing), self._clock.monotonic() - begun)

    async def _start(self, number: int) -> None:
        each = dict(self._settings.each)
        options = {
            "num_cpus": each.pop("CPU"),
            "num_gpus": each.pop("GPU", 0.0),
            "memory": each.pop("memory", None),
            "resources": each,
            "max_concurrency": MANY,
            "namespace": NAMESPACE,
            "scheduling_strategy": "SPREAD",
        }
        name = f"streamactors/{self._flow}/worker-{number}"
        actor = await _created(StreamactorsWorker, name, options, self._clock, number, self._level)
        self._wire.peers[number] = actor
        watching = asyncio.get_running_loop().create_task(self._watch(number, actor), name=f"watching {name}")
        self._watching[number] = watching

    async def _check(self, number: int) -> None:
        refuse_another(number, await self._wire.peers[number].about.remote(), about())

    async def _watch(self, number: int, actor: Any) -> None:
        why = "it has ended by itself"
        try:
            await actor.live.remote()
        except RayError as death:
            why = _in_a_line(death)
        log.warning("%s: worker %d is gone: %s", self._flow, number, why)
        self.lost(number, why)

    async def _end(self, number: int) -> None:
        watching, actor = self._watching.pop(number, None), self._wire.peers.pop(number, None)
        if watching is not None:
            watching.cancel()
            await asyncio.wait([watching])
        if actor is not None:
            await self._clock.run_blocking(ray.kill, actor)

    async def close(self) -> None:
        for number in range(self.count):
            await self._end(number)


def _in_a_line(error: BaseException) -> str:
    """Ray tells a death in many lines, the first of which says what there is to know."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


# ---------------------------------------------------------------------------------------------------------- coordinator
class StreamactorsCoordinator:
    """The actor that holds the job. Its methods take and give bytes of `dumps`, but for `take`."""

    def __init__(self) -> None:
        self._host: JobHost | None = None
        self._running: asyncio.Task[None] | None = None
        self._received: Callable[[int, bytes], None] | None = None

    def __repr__(self) -> str:
        return "coordinator"

    async def take(self, sender: int, message: bytes) -> str | None:
        return "it has just been started" if self._received is None else _taken(self._received, sender, message)

    async def begin(self, arguments: bytes) -> bytes:
        return await _answered(self._begin, arguments)

    async def tell(self, arguments: bytes) -> bytes:
        return await self._of_host("tell", arguments)

    async def ask(self, arguments: bytes) -> bytes:
        return await self._of_host("ask", arguments)

    async def _of_host(self, method: str, arguments: bytes) -> bytes:
        """The host may not be there yet, where the coordinator was started again."""
        if self._host is None:
            return dumps((False, ConnectionLost("the coordinator was started again")))
        return await _answered(getattr(self._host, method), arguments)

    async def _begin(self, spec: JobSpec, settings: Ray, level: int) -> None:
        """Whoever is asked twice, because an answer was lost, begins once."""
        if self._host is not None:
            return
        _log_as(level)
        wire = _RayWire(COORDINATOR)
        wire.peers[COORDINATOR] = ray.get_runtime_context().current_actor
        workers = _RayWorkers(spec.name, settings, wire, level, SYSTEM)
        cluster = ClusterDeployment(workers, wire, ship=dumps)
        workers.lost = cluster.worker_lost
        self._received = cluster.received
        self._host = JobHost(Job(spec, deploy=cluster, clock=SYSTEM), SYSTEM)
        self._running = asyncio.get_running_loop().create_task(self._run(self._host, workers))

    async def _run(self, host: JobHost, workers: _RayWorkers) -> None:
        try:
            await host.run()
        finally:
            await workers.close()


async def _answered(method: Callable[..., Awaitable[Any]], arguments: bytes) -> bytes:
    try:
        return dumps((True, await method(*loads(arguments))))
    except Exception as error:
        return dumps((False, error))
