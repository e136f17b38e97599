"""A job over several processes on Ray, which places, starts, watches and replaces them.

The driver is the process that runs the job for its user; the coordinator, an actor, holds the job itself; each worker,
an actor too, holds a slice of its subtasks. Workers belong to the coordinator and the coordinator to the driver: Ray
ends whoever's owner is gone. A coordinator that dies is started again by Ray, and goes on from the checkpoint storage.
A detached coordinator belongs to nobody: it keeps what it needs in Ray's own key-value store, see `detached`.
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
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, NamedTuple

import msgspec
import ray
from ray import cloudpickle
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayError
from ray.experimental import internal_kv

from streamactors.clock import SYSTEM, Clock, uninterrupted
from streamactors.cluster.deployed import ClusterDeployment
from streamactors.cluster.held import HeldJob
from streamactors.cluster.hosted import (
    CancelJob,
    Follow,
    JobHost,
    JobState,
    Known,
    NextValues,
    QueryState,
    Request,
    StopJob,
)
from streamactors.cluster.sockets import Door, Way
from streamactors.cluster.wire import COORDINATOR, DATA, header_of
from streamactors.cluster.worker import Worker
from streamactors.cluster.workers import Times
from streamactors.config import Ray, Restart
from streamactors.deploy.code import reduced, refuse_unsendable
from streamactors.deploy.detached import (
    END_KEPT,
    SUBMISSIONS,
    Answer,
    Ending,
    address_of,
    ending_key,
    flow_of,
    keeper_key,
    refuse_to_detach,
    submission_key,
)
from streamactors.deploy.keeper import Attend, Keeper, Submission
from streamactors.deploy.main_script import refuse_while_loading
from streamactors.errors import (
    CheckpointFailed,
    ClusterUnfit,
    ConnectionLost,
    InvalidConfig,
    JobFailed,
    JobNotRunning,
    StreamactorsError,
)
from streamactors.graph.parallelism import Parallelism
from streamactors.runtime.job import Job, JobSpec
from streamactors.settings import redacted

log = logging.getLogger("streamactors.ray")

TIMES: Final = Times(starting=60.0)
"""A process that dies is noticed at once; so one that loads a model in `open`, and says nothing meanwhile, may."""
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
LET_GO: Final = 5.0
"""Seconds after which a driver that has not asked how things are, as it does each second, is taken for dead."""
LOOKED_AFTER: Final = 2.0
"""Seconds between two looks of a coordinator at whether it still is one."""
HANDOVER: Final = 60.0
"""Seconds in which one that is none any more has found that out, and ended, on a busy machine."""


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
        try:
            await host.begin()
            yield host
        finally:
            await uninterrupted(clock.run_blocking(host.end))


@asynccontextmanager
async def _connected(settings: Ray, clock: Clock, *, logs: bool = True) -> AsyncIterator[None]:
    """To the Ray that this process is connected to already, or for as long as the block lasts. `logs`: of its actors,
    on standard error."""
    if ray.is_initialized():
        yield
        return
    address = address_of(settings)
    if address is not None:
        await _reach(address)
    await uninterrupted(clock.run_blocking(_connect, settings, address, logs))
    _take_back_sigterm()
    try:
        yield
    finally:
        await uninterrupted(clock.run_blocking(ray.shutdown))


def _take_back_sigterm() -> None:
    """Ray has put a handler of its own below that of Python: it would end the process three seconds after a SIGTERM,
    whatever is still to be done, such as a last checkpoint."""
    handler = signal.getsignal(signal.SIGTERM)
    if handler is None:
        return
    try:
        signal.signal(signal.SIGTERM, handler)
    except ValueError:
        return  # not the main thread: neither has Ray put one there
    if callable(handler):
        signal.siginterrupt(signal.SIGTERM, False)  # as it is with a loop's


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


def _connect(settings: Ray, address: str | None, logs: bool) -> None:
    """In a thread, since it takes seconds; there, Ray leaves the handling of signals alone."""
    common: dict[str, Any] = {"namespace": NAMESPACE, "logging_level": logging.ERROR, "log_to_driver": logs}
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
        self._actor = await _coordinator(StreamactorsCoordinator, self._spec.name, self._clock, max_restarts=-1)
        try:
            await self._answer("begin", self._spec, *self._rest)
        except ActorUnavailableError as error:
            await self._begin_again(error)
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
                if not _may_be_asked_again(request):
                    raise _unanswered(request) from error
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
        if self._spec.config.execution == "batch":
            raise JobFailed(
                f"job {self._spec.name!r}: the coordinator has died, and whether the output is visible is not known: "
                "remove what there is of it, and start the job again"
            ) from error
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


def _may_be_asked_again(request: Request) -> bool:
    """Of a coordinator that knows nothing of it, though the one before may have done it, or a half of it."""
    return isinstance(request, CancelJob | QueryState | StopJob | Follow) and not _takes_savepoint(request)


def _takes_savepoint(request: Request) -> bool:
    """Its folder may hold a half of it."""
    return isinstance(request, StopJob) and request.savepoint is not None


def _unanswered(request: Request) -> StreamactorsError:
    if _takes_savepoint(request):  # the job goes on: nobody is to wait for its end
        return ConnectionLost(
            "the coordinator has died while the job stopped, which goes on: stop it again, with a new folder for the "
            "savepoint"
        )
    if isinstance(request, NextValues):  # and the holder follows its successor
        return ConnectionLost("the coordinator has died meanwhile")
    return CheckpointFailed("the coordinator has died meanwhile: ask again once it is back")


# ------------------------------------------------------------------------------------------------------------- detached
async def detach_on_ray(spec: JobSpec, settings: Ray, attend: Attend, clock: Clock = SYSTEM) -> None:
    """Start a job that outlives this process. Returns once it runs; raises what keeps it from, and then nothing of it
    is left. Raises InvalidDataflow for what can't be sent, InvalidConfig where the cluster would end with this process.
    """
    refuse_while_loading()
    refuse_to_detach(spec.config)
    _refuse_unsendable(spec)
    level = logging.getLogger("streamactors").getEffectiveLevel()
    submission = dumps(Submission(spec, settings, level, attend))
    async with _connected(settings, clock):
        await _fits(settings, clock)
        token = clock.token()
        restarts = 0 if spec.config.effective_restart == Restart.none() or spec.config.checkpoints is None else -1
        of, rest = StreamactorsDetachedCoordinator, {"max_restarts": restarts, "lifetime": "detached"}
        actor = await _coordinator(of, spec.name, clock, spec.name, token, **rest)
        try:
            await _begun(actor, submission, settings, clock)
        except BaseException:
            await uninterrupted(_given_up(actor, spec.name, token, clock))
            raise


async def _begun(actor: Any, submission: bytes, settings: Ray, clock: Clock) -> None:
    """Told again where the coordinator has died: it may have been before it had stored what it was told."""
    until = clock.monotonic() + settings.patience.total_seconds()
    while True:
        try:
            failure: Exception | None = loads(await actor.begin.remote(submission))
        except ActorUnavailableError as error:
            if clock.monotonic() >= until:
                raise _unstarted("the coordinator", error) from error
            await clock.sleep(FIRST_LOOK)
        except RayActorError as error:
            raise _unstarted("the coordinator", error) from error
        else:
            if failure is not None:
                raise failure
            return


async def _given_up(actor: Any, flow: str, token: str, clock: Clock) -> None:
    await clock.run_blocking(ray.kill, actor, no_restart=True)
    for key in (submission_key(flow, token), keeper_key(flow, token)):
        await _RayStore(clock).delete(key)


class _RayStore:
    """Ray's own, in the memory of its head; where that has a Redis, it outlives the head as well."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def put(self, key: str, value: bytes) -> None:
        await self._call(internal_kv._internal_kv_put, key.encode(), value)

    async def get(self, key: str) -> bytes | None:
        found: bytes | None = await self._call(internal_kv._internal_kv_get, key.encode())
        return found

    async def delete(self, key: str) -> None:
        await self._call(internal_kv._internal_kv_del, key.encode())

    async def keys(self, prefix: str) -> list[str]:
        return [key.decode() for key in await self._call(internal_kv._internal_kv_list, prefix.encode())]

    async def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return await self._clock.run_blocking(function, *arguments, namespace=NAMESPACE)
        except (RayError, RuntimeError, OSError) as error:
            raise ConnectionLost(f"Ray's own store does not answer: {type(error).__name__}: {error}") from error


@contextmanager
def cluster_at(address: str) -> Iterator["RayCluster"]:
    """Blocks, as all that it gives does. Raises ClusterUnfit."""
    with asyncio.Runner() as runner:
        connected = _connected(Ray(workers=1, address=address), SYSTEM, logs=False)
        runner.run(connected.__aenter__())
        try:
            yield RayCluster(SYSTEM)
        finally:
            runner.run(connected.__aexit__(None, None, None))


class RayCluster:
    """Its detached jobs. See `detached.Cluster`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._store = _RayStore(clock)

    def flows(self) -> list[str]:
        return asyncio.run(self._flows())

    def ask(self, flow: str, method: str, path: str, body: bytes, timeout: float | None) -> Answer:
        return asyncio.run(self._ask(flow, method, path, body, timeout))

    def ending(self, flow: str) -> Ending | None:
        return asyncio.run(self._ending(flow))

    async def _flows(self) -> list[str]:
        found = await self._store.keys(SUBMISSIONS)
        return sorted({flow_of(key) for key in found if await self._actor(flow_of(key)) is not None})

    async def _actor(self, flow: str) -> Any:
        """None where there is none."""
        try:
            return await self._clock.run_blocking(ray.get_actor, _coordinator_name(flow), NAMESPACE)
        except ValueError:
            return None

    async def _ask(self, flow: str, method: str, path: str, body: bytes, timeout: float | None) -> Answer:
        try:
            async with asyncio.timeout(timeout):
                return await self._answer(flow, method, path, body)
        except ActorUnavailableError as error:
            raise ConnectionLost(
                f"the coordinator of {flow!r} has died meanwhile, and is started again: whether it was done is not "
                "known: look, and ask again"
            ) from error

    async def _answer(self, flow: str, method: str, path: str, body: bytes) -> Answer:
        while True:
            actor = await self._actor(flow)
            try:
                answer: Answer | None = None if actor is None else await actor.request.remote(method, path, body)
            except ActorUnavailableError:
                if method != "GET":
                    raise
                await self._clock.sleep(FIRST_LOOK)
                continue
            except RayActorError:
                answer = None
            if answer is None:
                raise JobNotRunning(f"job {flow!r} is not running any more")
            return answer

    async def _ending(self, flow: str) -> Ending | None:
        stored = await self._store.get(ending_key(flow))
        if stored is not None:
            ending = msgspec.msgpack.decode(stored, type=Ending)
            if ending.ended_ms + END_KEPT * 1000 > self._clock.time_ms():
                return ending
            await self._store.delete(ending_key(flow))
            return None
        return await self._killed(flow)

    async def _killed(self, flow: str) -> Ending | None:
        """Where a coordinator is gone for good, and could not say so."""
        left = await self._store.keys(submission_key(flow, ""))
        if not left or await self._actor(flow) is not None:
            return None
        for key in left + await self._store.keys(keeper_key(flow, "")):
            await self._store.delete(key)
        ending = Ending(
            flow=flow,
            token="",
            ended_ms=self._clock.time_ms(),
            status="failed",
            error="its coordinator was killed, or has died where restarts or checkpoints are off",
        )
        await self._store.put(ending_key(flow), msgspec.msgpack.encode(ending))
        return ending


# ------------------------------------------------------------------------------------------------------- between actors
def _coordinator_name(flow: str) -> str:
    return f"streamactors/{flow}/coordinator"


async def _coordinator(of: type, flow: str, clock: Clock, *arguments: Any, **options: Any) -> Any:
    """Raises InvalidConfig where there is one already. One whose driver has died is waited for: Ray ends it."""
    name = _coordinator_name(flow)
    options |= {"num_cpus": 0, "max_concurrency": MANY, "namespace": NAMESPACE}
    until = clock.monotonic() + HANDOVER
    while True:
        try:
            return await _created(of, name, options, clock, *arguments)
        except ConnectionLost as error:
            if clock.monotonic() >= until or await _held(name, clock):
                raise InvalidConfig(
                    f"the job {flow!r} runs on this cluster already (there is an actor {name!r}): stop it, or "
                    "give the flow another name"
                ) from error
            log.info("%s: waiting for the coordinator before, whose driver is gone, to end", flow)


async def _held(name: str, clock: Clock) -> bool:
    try:
        async with asyncio.timeout(REACHED_WITHIN):
            actor = await clock.run_blocking(ray.get_actor, name, NAMESPACE)
            return bool(await actor.held.remote())
    except (ValueError, RayError, TimeoutError):  # it is gone, or going
        return False


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
        self._ways: dict[int, tuple[Any, Way | None]] = {}
        """By peer: which actor it leads to."""

    async def call(self, peer: int, message: bytes) -> None:
        """Raises ConnectionLost."""
        actor = self.peers.get(peer)
        if actor is None:
            raise ConnectionLost(f"there is no worker {peer} at present")
        try:
            if (way := await self._way(peer, actor, message)) is not None:
                await way.call(message)
                return
            refused = await actor.take.remote(self.me, message)
        except RayError as error:
            raise ConnectionLost(f"{type(error).__name__}: {error}") from error
        if refused is not None:
            raise ConnectionLost(refused)

    async def _way(self, peer: int, actor: Any, message: bytes) -> Way | None:
        """What workers on one node tell each other goes past Ray, whose calls cost a millisecond each."""
        if header_of(message).plane != DATA:
            return None
        known, way = self._ways.get(peer, (None, None))
        if known != actor:
            if way is not None:
                way.close()
            self._ways[peer] = actor, None  # what is sent before it is found, or where there is none, goes by Ray
            way = await _way_to(actor, self.me)
            self._ways[peer] = actor, way
        return None if way is None or way.broken else way


async def _way_to(actor: Any, me: int) -> Way | None:
    """Raises RayError."""
    node, name = await actor.door.remote()
    if name is None or node != _node():
        return None
    way = Way(me)
    try:
        await way.connect(name)
    except ConnectionLost as error:
        log.warning("worker %d reaches another one of its node by Ray alone: %s", me, error)
        return None
    return way


def _node() -> str:
    return str(ray.get_runtime_context().get_node_id())


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
        self._door: Door | None = None

    def __repr__(self) -> str:
        return f"worker-{self._number}"

    async def about(self) -> About:
        return about()

    async def meet(self, peers: Mapping[int, Any]) -> None:
        """Those that there are by now, itself among them."""
        self._wire.peers = dict(peers)
        if self._worker is None:
            self._worker = Worker(self._number, self._wire, unship=loads, times=TIMES)
            self._door = Door(self._worker.received, SYSTEM)
            await self._door.open()

    async def door(self) -> tuple[str, str | None]:
        """The node that it is on, and where others on it reach it."""
        return _node(), None if self._door is None else self._door.name

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
class _Coordinating:
    """An actor that has workers."""

    def __init__(self) -> None:
        self._received: Callable[[int, bytes], None] | None = None
        self._incarnation = SYSTEM.token()
        self._leaving: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return "coordinator"

    async def held(self) -> bool:
        """Whether anybody wants the job to go on."""
        return True

    async def incarnation(self) -> str:
        """Another one in each process that Ray has started for it."""
        return self._incarnation

    async def take(self, sender: int, message: bytes) -> str | None:
        return "it has just been started" if self._received is None else _taken(self._received, sender, message)

    def _over_workers(self, spec: JobSpec, settings: Ray, level: int) -> tuple[Job, _RayWorkers]:
        _log_as(level)
        wire = _RayWire(COORDINATOR)
        wire.peers[COORDINATOR] = ray.get_runtime_context().current_actor
        workers = _RayWorkers(spec.name, settings, wire, level, SYSTEM)
        strategy, slots = settings.strategy, settings.slots
        cluster = ClusterDeployment(workers, wire, ship=dumps, strategy=strategy, slots=slots, times=TIMES)
        workers.lost = cluster.worker_lost
        self._received = cluster.received
        leaving = _leave_once_given_up(spec.name, self._incarnation, SYSTEM)
        self._leaving = asyncio.get_running_loop().create_task(leaving)  # also when the job has ended
        return Job(dataclasses.replace(spec, handover=HANDOVER), deploy=cluster, clock=SYSTEM), workers


class StreamactorsCoordinator(_Coordinating):
    """The actor that holds the job. Its methods take and give bytes of `dumps`, but for `take`."""

    def __init__(self) -> None:
        super().__init__()
        self._host: JobHost | None = None
        self._running: asyncio.Task[None] | None = None
        self._told = SYSTEM.monotonic()

    async def held(self) -> bool:
        return SYSTEM.monotonic() - self._told < LET_GO

    async def begin(self, arguments: bytes) -> bytes:
        return await _answered(self._begin, arguments)

    async def tell(self, arguments: bytes) -> bytes:
        self._told = SYSTEM.monotonic()
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
        job, workers = self._over_workers(spec, settings, level)
        self._host = JobHost(job, SYSTEM)
        self._running = asyncio.get_running_loop().create_task(self._run(self._host, workers))

    async def _run(self, host: JobHost, workers: _RayWorkers) -> None:
        try:
            await host.run()
        finally:
            await workers.close()


class StreamactorsDetachedCoordinator(_Coordinating):
    """The actor that keeps a job which nobody holds. It begins by itself, the first time and whenever Ray starts it
    again, and ends itself once the job has ended."""

    def __init__(self, flow: str, token: str) -> None:
        super().__init__()
        self._flow = flow
        self._token = token
        self._made: Keeper | None = None
        self._living = False
        # Again and again: while Ray takes the actor for one that is still being started again, calls to it fail.
        ray.get_runtime_context().current_actor.live.options(max_task_retries=-1).remote()

    @property
    def _keeper(self) -> Keeper:
        """On the loop, which the constructor is not."""
        if self._made is None:
            store = _RayStore(SYSTEM)
            self._made = Keeper(self._flow, self._token, store, self._deployed, loads, dumps, SYSTEM)
        return self._made

    @asynccontextmanager
    async def _deployed(self, submission: Submission) -> AsyncIterator[Job]:
        job, workers = self._over_workers(submission.spec, submission.settings, submission.level)
        try:
            yield job
        finally:
            await workers.close()

    async def live(self) -> None:
        if self._living:
            return
        self._living = True
        try:
            await self._keeper.run()
        except ConnectionLost as error:
            log.error("%s: the coordinator ends, so that Ray starts it again: %s", self._flow, error)
            os._exit(1)
        # Not by ray.actor.exit_actor: that waits for calls to itself, which are not answered any more.
        me = ray.get_runtime_context().current_actor
        await SYSTEM.run_blocking(ray.kill, me, no_restart=True)
        await asyncio.get_running_loop().create_future()

    async def begin(self, submission: bytes) -> bytes:
        """What keeps it from running, as `dumps` has it; of None where it runs."""
        try:
            await self._keeper.begin(submission)
        except Exception as error:
            return dumps(error)
        return dumps(None)

    async def request(self, method: str, path: str, body: bytes) -> Answer | None:
        return await self._keeper.request(method, path, body)


async def _leave_once_given_up(flow: str, incarnation: str, clock: Clock) -> None:
    """This process ends, as if it were killed, where the cluster has given up the coordinator in it. A node that is
    lost to the cluster may live on: the coordinator there would keep its successor from the storage, and take the names
    of that one's workers."""
    looks = 0
    while looks < 2:  # in a row
        await clock.sleep(LOOKED_AFTER)
        looks = looks + 1 if await _given_up_by_cluster(flow, incarnation, clock) else 0
    log.error("%s: the cluster has given up this coordinator: its process ends", flow)
    os._exit(1)  # nothing more is to be written, committed or told


async def _given_up_by_cluster(flow: str, incarnation: str, clock: Clock) -> bool:
    try:
        async with asyncio.timeout(REACHED_WITHIN):
            actor = await clock.run_blocking(ray.get_actor, _coordinator_name(flow), NAMESPACE)
            return bool(await actor.incarnation.remote() != incarnation)
    except (ValueError, ActorDiedError):  # there is none
        return True
    except (RayError, TimeoutError):  # it is not known
        return False


async def _answered(method: Callable[..., Awaitable[Any]], arguments: bytes) -> bytes:
    try:
        return dumps((True, await method(*loads(arguments))))
    except Exception as error:
        return dumps((False, error))
