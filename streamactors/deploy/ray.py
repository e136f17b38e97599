"""A job over several processes on Ray, which places, starts, watches and replaces them.

The driver is the process that runs the job for its user; the coordinator, an actor, holds the job itself; each worker,
an actor too, holds a slice of its subtasks. Workers belong to the coordinator and the coordinator to the driver: Ray
ends whoever's owner is gone. A coordinator that dies is started again by Ray, and goes on from the checkpoint storage.
A detached coordinator belongs to nobody: it keeps what it needs in Ray's own key-value store, see `detached`.
"""

import asyncio
import dataclasses
import io
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import ray
from ray import cloudpickle
from ray._private.state import actors, available_resources_per_node  # what no public name of Ray's tells
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayError
from ray.experimental import internal_kv

from streamactors.clock import SYSTEM, Clock, uninterrupted
from streamactors.cluster.deployed import ClusterDeployment
from streamactors.cluster.held import HeldJob
from streamactors.cluster.hosted import JobHost
from streamactors.cluster.sockets import Door
from streamactors.cluster.wire import COORDINATOR
from streamactors.cluster.worker import Worker
from streamactors.cluster.workers import Times
from streamactors.config import Ray, Restart
from streamactors.deploy.addresses import REACHED_WITHIN, reach, unconnected
from streamactors.deploy.code import not_here, reduced, refuse_unsendable_job
from streamactors.deploy.collected import CollectingSink, Pieces, RemoteShelf, gathered
from streamactors.deploy.connection import SharedConnection, Use
from streamactors.deploy.crew import Crew, Member
from streamactors.deploy.deaths import in_a_line
from streamactors.deploy.detached import Answer, address_of, keeper_key, refuse_to_detach, submission_key
from streamactors.deploy.driver import RemoteHost
from streamactors.deploy.folder import go_to
from streamactors.deploy.keeper import Attend, Keeper, Submission
from streamactors.deploy.liveness import end_when_silent
from streamactors.deploy.logs import log_as
from streamactors.deploy.lookup import DetachedJobs
from streamactors.deploy.main_script import refuse_while_loading
from streamactors.deploy.peers import PeerWire
from streamactors.deploy.room import Node, of_one_worker, own_node, wait_for_room
from streamactors.deploy.sigterm import take_back_sigterm
from streamactors.deploy.versions import About, about, refuse_another
from streamactors.errors import (
    ClusterUnfit,
    ConnectionLost,
    InvalidConfig,
    JobFailed,
    StreamactorsError,
    TransactionLost,
)
from streamactors.runtime.job import Job, JobSpec
from streamactors.sinks import WriterSink

log = logging.getLogger("streamactors.ray")

TIMES: Final = Times(starting=60.0)
"""A process that dies is noticed at once; so one that loads a model in `open`, and says nothing meanwhile, may."""
NAMESPACE: Final = "streamactors"
MANY: Final = 10_000
"""Calls that one actor has under way at a time."""
OBJECT_STORE: Final = 256 << 20
"""Bytes, of a Ray that is started for one job: messages are there on their way, and nothing else."""
FIRST_LOOK: Final = 0.2
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


def loads(data: bytes, who: str = "") -> Any:
    """Raises ClusterUnfit where the flow's code is not on this node. `who`: of its processes, this one is."""
    try:
        return cloudpickle.loads(data)
    except (ImportError, AttributeError) as error:
        raise not_here(error, who) from error


# --------------------------------------------------------------------------------------------------------------- driver
def held_on_ray(spec: JobSpec, settings: Ray, clock: Clock = SYSTEM) -> HeldJob:
    """A job that runs on Ray, held here. Raises InvalidDataflow for what can't be sent there."""
    refuse_while_loading()
    refuse_unsendable_job(spec, dumps)
    return HeldJob(spec.name, spec.config, lambda: _hosted(spec, settings, clock))


async def collect_on_ray(
    spec_of: Callable[[WriterSink[Any]], JobSpec], settings: Ray, clock: Clock = SYSTEM
) -> list[Any]:
    """Run a job on Ray to its end, and return what has come to the sink that `spec_of` is given."""
    refuse_while_loading()
    name = f"streamactors/collected/{clock.token()}"
    spec = spec_of(CollectingSink(RemoteShelf(name, _CollectorCall(name), dumps)))
    refuse_unsendable_job(spec, dumps)
    values: list[Any] = []
    await HeldJob(spec.name, spec.config, lambda: _collecting(spec, settings, name, values, clock)).run()
    return values


@asynccontextmanager
async def _collecting(
    spec: JobSpec, settings: Ray, name: str, values: list[Any], clock: Clock
) -> AsyncIterator[RemoteHost]:
    """Where the job succeeds, `values` have come on leaving."""
    async with _connected(settings, clock):
        options = {"num_cpus": 0, "max_concurrency": MANY, "namespace": NAMESPACE}
        collector = await _created(StreamactorsCollector, name, options, clock)
        try:
            async with _hosted(spec, settings, clock) as host:
                yield host
            values += await gathered(partial(_CollectorCall(name), "at"), loads)
        finally:
            await uninterrupted(clock.run_blocking(ray.kill, collector))


class _CollectorCall:
    """See `collected.Call`. To other processes it goes as a name."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._actor: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _CollectorCall, (self._name,)

    async def __call__(self, method: str, *arguments: Any) -> Any:
        try:
            if self._actor is None:
                self._actor = await SYSTEM.run_blocking(ray.get_actor, self._name, NAMESPACE)
            return await self._actor.call.remote(method, *arguments)
        except (ValueError, ActorDiedError) as error:
            raise TransactionLost("collect: the process that held what was collected has died: run it again") from error
        except RayActorError as error:
            raise ConnectionLost(in_a_line(error)) from error


@asynccontextmanager
async def _hosted(spec: JobSpec, settings: Ray, clock: Clock) -> AsyncIterator[RemoteHost]:
    begun = clock.monotonic()
    async with _connected(settings, clock):
        log.info("%s: connected to Ray in %.1f s", spec.name, clock.monotonic() - begun)
        await wait_for_room(settings, lambda: _nodes(clock), clock)
        actor = await _coordinator(StreamactorsCoordinator, spec.name, clock, max_restarts=-1)
        host = RemoteHost(spec, settings, _RayCoordinator(actor), dumps, loads, clock)
        try:
            await host.begin()
            yield host
        finally:
            await uninterrupted(clock.run_blocking(ray.kill, actor, no_restart=True))  # the workers go with it


@asynccontextmanager
async def _connected(settings: Ray, clock: Clock, *, logs: bool = True) -> AsyncIterator[None]:
    """To the Ray that this process is connected to already, or for as long as the block lasts. `logs`: of its actors,
    on standard error."""
    use = Use(address_of(settings))
    if use.address is not None and not ray.is_initialized():
        await reach(use.address)
    try:
        make = partial(_connect, settings, use.address, logs)
        if await uninterrupted(clock.run_blocking(_CONNECTION.begin, use, make)):
            take_back_sigterm()
        yield
    finally:  # also where it was cancelled, or failed, half-way
        await uninterrupted(clock.run_blocking(_CONNECTION.leave, use))


def _connection() -> object | None:
    if not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    return context.gcs_address, context.get_job_id()


_CONNECTION: Final = SharedConnection(_connection, ray.shutdown)


def _connect(settings: Ray, address: str | None, logs: bool) -> None:
    """In a thread, since it takes seconds; there, Ray leaves the handling of signals alone."""
    common: dict[str, Any] = {"namespace": NAMESPACE, "logging_level": logging.ERROR, "log_to_driver": logs}
    try:
        if address is None:
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=OBJECT_STORE,
                **own_node(settings),
                **common,
            )
        else:
            ray.init(address=address, **common)
    except Exception as error:  # Ray has no class of its own for all of them
        raise ClusterUnfit(unconnected(address, error)) from error


async def _nodes(clock: Clock) -> list[Node]:
    """Those that live. Raises ConnectionLost."""
    try:
        nodes, free = await clock.run_blocking(ray.nodes), await clock.run_blocking(available_resources_per_node)
    except Exception as error:  # Ray has no class of its own for all of them
        raise ConnectionLost(f"the cluster's head does not answer: {type(error).__name__}: {error}") from error
    return [Node(node["NodeID"], node["Resources"], free.get(node["NodeID"], {})) for node in nodes if node["Alive"]]


async def _told_to_begin(coordinator: Any, arguments: bytes) -> bytes:
    """It may have been started on any node, and what it is told is code. Raises RayActorError and ClusterUnfit."""
    refuse_another("the coordinator", await coordinator.about.remote(), about(), "its driver")
    return bytes(await coordinator.begin.remote(arguments))


@dataclass(frozen=True)
class _RayCoordinator:
    """See `driver.Coordinator` and `lookup.Found`."""

    actor: Any

    async def incarnation(self) -> str | None:
        try:
            return str(await self.actor.incarnation.remote())
        except ActorUnavailableError as error:
            raise ConnectionLost(in_a_line(error)) from error
        except RayActorError:
            return None

    async def begin(self, arguments: bytes) -> bytes:
        try:
            return await _told_to_begin(self.actor, arguments)
        except ActorUnavailableError as error:
            raise ConnectionLost(in_a_line(error)) from error
        except RayActorError as error:
            unstarted = _unstarted("the coordinator", error)
            raise unstarted if isinstance(unstarted, ClusterUnfit) else JobFailed(str(unstarted)) from error

    async def begin_again(self, arguments: bytes) -> bytes:
        try:
            return await _told_to_begin(self.actor, arguments)
        except RayActorError as error:
            raise ConnectionLost(in_a_line(error)) from error

    async def call(self, method: str, arguments: bytes) -> bytes:
        try:
            return bytes(await getattr(self.actor, method).remote(arguments))
        except RayActorError as error:
            raise ConnectionLost(in_a_line(error)) from error

    async def request(self, method: str, path: str, body: bytes) -> Answer | None:
        try:
            answer: Answer | None = await self.actor.request.remote(method, path, body)
        except ActorUnavailableError as error:
            raise ConnectionLost(in_a_line(error)) from error
        except RayActorError:
            return None
        return answer


# ------------------------------------------------------------------------------------------------------------- detached
async def detach_on_ray(spec: JobSpec, settings: Ray, attend: Attend, clock: Clock = SYSTEM) -> None:
    """Start a job that outlives this process. Returns once it runs; raises what keeps it from, and then nothing of it
    is left. Raises InvalidDataflow for what can't be sent, InvalidConfig where the cluster would end with this process.
    """
    refuse_while_loading()
    refuse_to_detach(spec.config)
    refuse_unsendable_job(spec, dumps)
    level = logging.getLogger("streamactors").getEffectiveLevel()
    submission = dumps(Submission(spec, settings, level, attend))
    async with _connected(settings, clock):
        await wait_for_room(settings, lambda: _nodes(clock), clock)
        token = clock.token()
        restarts = 0 if spec.config.effective_restart == Restart.none() or spec.config.checkpoints is None else -1
        of, rest = StreamactorsDetachedCoordinator, {"max_restarts": restarts, "lifetime": "detached"}
        actor = await _coordinator(of, spec.name, clock, spec.name, token, **rest)
        try:
            await _begun(actor, submission, settings, clock)
        except BaseException as error:
            await uninterrupted(_given_up(actor, spec.name, token, clock))
            if isinstance(error, asyncio.CancelledError):
                log.warning("%s: interrupted before it ran: nothing of it is left on the cluster", spec.name)
            raise
        log.info("%s: runs, detached, whatever becomes of this process", spec.name)


async def _begun(actor: Any, submission: bytes, settings: Ray, clock: Clock) -> None:
    """Told again where the coordinator has died: it may have been before it had stored what it was told."""
    until = clock.monotonic() + settings.patience.total_seconds()
    while True:
        try:
            failure: Exception | None = loads(await _told_to_begin(actor, submission))
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
def cluster_at(address: str) -> Iterator[DetachedJobs]:
    """Blocks, as all that it gives does. Raises ClusterUnfit."""
    with asyncio.Runner() as runner:
        connected = _connected(Ray(workers=1, address=address), SYSTEM, logs=False)
        runner.run(connected.__aenter__())
        try:
            yield DetachedJobs(_RayStore(SYSTEM), _found, SYSTEM)
        finally:
            runner.run(connected.__aexit__(None, None, None))


async def _found(flow: str) -> _RayCoordinator | None:
    """None where there is none. Raises ConnectionLost."""
    try:
        return _RayCoordinator(await SYSTEM.run_blocking(ray.get_actor, _coordinator_name(flow), NAMESPACE))
    except ValueError:
        return None
    except (RayError, RuntimeError, OSError) as error:
        raise ConnectionLost(f"the cluster does not answer: {in_a_line(error)}") from error


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
            return await _made(lambda: ray.remote(of).options(name=name, **options).remote(*arguments), clock)
        except ValueError as error:
            if "already" not in str(error):  # not all versions of Ray have a class of its own for that
                raise InvalidConfig(f"Ray refuses to start {name!r}: {error}") from error
            if clock.monotonic() >= until:
                raise ConnectionLost(f"there is an actor {name!r} on the cluster already") from None
            await clock.sleep(FIRST_LOOK)


async def _made(make: Callable[[], Any], clock: Clock) -> Any:
    """In a thread, since the cluster's head is asked. Whoever is cancelled meanwhile leaves no actor."""
    making = asyncio.ensure_future(clock.run_blocking(make))
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        await uninterrupted(_unmade(making, clock))
        raise


async def _unmade(making: asyncio.Future[Any], clock: Clock) -> None:
    await asyncio.wait([making])
    if not making.cancelled() and making.exception() is None:
        await clock.run_blocking(ray.kill, making.result(), no_restart=True)


def _unstarted(what: str, error: RayError) -> StreamactorsError:
    """Why an actor does not run. What its own code has raised would be raised again."""
    if isinstance(error, ActorDiedError) and "creation task" in str(error):
        return ClusterUnfit(f"{what} can't be started on its node: {str(error).strip().splitlines()[-1]}")
    return ConnectionLost(f"{what} has died on starting: {in_a_line(error)}")


@dataclass(frozen=True)
class _RayPeer:
    """See `peers.Peer`."""

    actor: Any

    async def take(self, sender: int, message: bytes) -> str | None:
        try:
            refused: str | None = await self.actor.take.remote(sender, message)
        except RayError as error:
            raise ConnectionLost(f"{type(error).__name__}: {error}") from error
        return refused

    async def door(self) -> str | None:
        try:
            node, name = await self.actor.door.remote()
        except RayError as error:
            raise ConnectionLost(f"{type(error).__name__}: {error}") from error
        return name if node == _node() else None


def _node() -> str:
    return str(ray.get_runtime_context().get_node_id())


def _taken(received: Callable[[int, bytes], None], sender: int, message: bytes) -> str | None:
    """Why it was refused."""
    try:
        received(sender, message)
    except ConnectionLost as error:
        return str(error)
    return None


# ------------------------------------------------------------------------------------------------------------ collector
class StreamactorsCollector(Pieces):
    """The actor that holds what `collect` gathers. It belongs to the driver: the job may lose all others."""

    def __repr__(self) -> str:
        return "collector"


# --------------------------------------------------------------------------------------------------------------- worker
class StreamactorsWorker:
    """The actor that holds a slice of the job's subtasks."""

    def __init__(self, flow: str, number: int, level: int, folder: str) -> None:
        log_as(level)
        go_to(folder)
        self._flow = flow
        self._number = number
        self._wire = PeerWire(number)
        self._worker: Worker | None = None
        self._door: Door | None = None
        self._asking: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"worker-{self._number}"

    async def about(self) -> About:
        return about()

    async def node(self) -> str:
        return _node()

    async def meet(self, peers: Mapping[int, Any]) -> None:
        """Those that there are by now, itself among them."""
        self._wire.peers = {number: _RayPeer(actor) for number, actor in peers.items()}
        if self._worker is None:
            unship = partial(loads, who=f"worker {self._number}")
            self._worker = Worker(self._number, self._wire, unship=unship, times=TIMES)
            self._door = Door(self._worker.received, SYSTEM)
            asking = end_when_silent(self._flow, self._number, _RayOwner(peers[COORDINATOR]), SYSTEM)
            self._asking = asyncio.get_running_loop().create_task(asking)
            await self._door.open()

    async def door(self) -> tuple[str, str | None]:
        """The node that it is on, and where others on it reach it."""
        return _node(), None if self._door is None else self._door.name

    async def take(self, sender: int, message: bytes) -> str | None:
        if self._worker is None:
            return f"worker {self._number} has just been started"
        return _taken(self._worker.received, sender, message)

    async def leave(self) -> None:
        """Whoever gets the answer knows that it does nothing more for the job."""
        if self._worker is not None:
            await self._worker.close()

    async def live(self) -> None:
        """Ends with the process: so whoever waits for it learns of its death."""
        await asyncio.get_running_loop().create_future()


@dataclass(frozen=True)
class _RayOwner:
    """See `liveness.Asked`."""

    actor: Any

    async def answer(self) -> None:
        await _RayCoordinator(self.actor).incarnation()

    async def end(self) -> None:
        try:
            await SYSTEM.run_blocking(ray.kill, self.actor, no_restart=False)
        except (RayError, RuntimeError, OSError) as error:
            raise ConnectionLost(in_a_line(error)) from error


@dataclass(frozen=True)
class _RayMember:
    """See `crew.Member`. `wire`: that of its owner."""

    number: int
    actor: Any
    owner: Any
    wire: PeerWire

    async def about(self) -> About:
        with self._starting():
            its: About = await self.actor.about.remote()
            return its

    async def node(self) -> str:
        with self._starting():
            return str(await self.actor.node.remote())

    async def meet(self, members: Mapping[int, Any]) -> None:
        with self._starting():
            peers = {number: member.actor for number, member in members.items()}
            await self.actor.meet.remote({**peers, COORDINATOR: self.owner})

    @contextmanager
    def _starting(self) -> Iterator[None]:
        try:
            yield
        except RayError as error:
            raise _unstarted(f"worker {self.number}", error) from error

    async def gone(self) -> tuple[str, bool]:
        try:
            await self.actor.live.remote()
        except ActorUnavailableError as error:  # cut off; or dead, and it is not known yet
            raise ConnectionLost(in_a_line(error)) from error
        except RayError as error:
            return in_a_line(error), isinstance(error, ActorDiedError)
        return "it has ended by itself", True

    async def placed(self) -> bool:
        try:
            its = await SYSTEM.run_blocking(actors, self.actor._actor_id.hex())
        except (RayError, RuntimeError, OSError) as error:
            raise ConnectionLost(f"the cluster does not answer: {in_a_line(error)}") from error
        return bool(its.get("Pid"))

    async def leave(self) -> None:
        try:
            await self.actor.leave.remote()
        except ActorDiedError:
            return
        except RayError as error:
            raise ConnectionLost(in_a_line(error)) from error

    async def end(self) -> None:
        self.wire.peers.pop(self.number, None)
        await SYSTEM.run_blocking(ray.kill, self.actor)


def _crew(spec: JobSpec, settings: Ray, wire: PeerWire, level: int, clock: Clock) -> Crew:
    """The workers of one job, which belong to this process."""
    owner = ray.get_runtime_context().current_actor

    async def begin(number: int) -> Member:
        options = of_one_worker(settings)
        options |= {"max_concurrency": MANY, "namespace": NAMESPACE, "scheduling_strategy": "SPREAD"}
        name = f"streamactors/{spec.name}/worker-{number}"
        actor = await _created(StreamactorsWorker, name, options, clock, spec.name, number, level, spec.folder)
        wire.peers[number] = _RayPeer(actor)
        return _RayMember(number, actor, owner, wire)

    async def again() -> bool:
        """Whether Ray has started this process in place of another one."""
        context = ray.get_runtime_context()
        return bool(await clock.run_blocking(lambda: context.was_current_actor_reconstructed))

    return Crew(spec.name, settings, begin, partial(_nodes, clock), again, clock)


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

    async def about(self) -> About:
        return about()

    async def incarnation(self) -> str:
        """Another one in each process that Ray has started for it."""
        return self._incarnation

    async def take(self, sender: int, message: bytes) -> str | None:
        return "it has just been started" if self._received is None else _taken(self._received, sender, message)

    def _over_workers(self, spec: JobSpec, settings: Ray, level: int) -> tuple[Job, Crew]:
        log_as(level)
        wire = PeerWire(COORDINATOR)
        workers = _crew(spec, settings, wire, level, SYSTEM)
        strategy, slots = settings.strategy, settings.slots
        cluster = ClusterDeployment(workers, wire, ship=dumps, strategy=strategy, slots=slots, times=TIMES)
        workers.lost = lambda number, why, dead: cluster.worker_lost(number, why, dead=dead)
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

    async def _begin(self, spec: JobSpec, settings: Ray, level: int) -> str:
        """Whoever is asked twice, because an answer was lost, begins once."""
        if self._host is None:
            job, workers = self._over_workers(spec, settings, level)
            self._host = JobHost(job, SYSTEM)
            self._running = asyncio.get_running_loop().create_task(self._run(self._host, workers))
        return self._incarnation

    async def _run(self, host: JobHost, workers: Crew) -> None:
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

    async def held(self) -> bool:
        """One that nobody has told what to run soon ends."""
        return self._made is not None and self._made.has_job

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
        return dumps((True, await method(*loads(arguments, "the coordinator"))))
    except Exception as error:
        return dumps((False, error))
