"""The control API, version 1: an ASGI application that tells how jobs do, and steers them.

Invariants: an operation that was begun (a savepoint, a stop) is carried out whether or not its caller waits for it, and
its failure is logged if nobody does; no request is read beyond `LONGEST_BODY`; every answer is JSON, every refusal an
`Error` with a stable code.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from streamactors.clock import Clock
from streamactors.errors import (
    CheckpointFailed,
    InvalidConfig,
    InvalidRequest,
    JobFailed,
    JobNotRunning,
    MissingExtra,
    RescaleFailed,
    RescaleUnderWay,
    StorageFailed,
    StreamactorsError,
)
from streamactors.launch import JobHandle
from streamactors.observe import model
from streamactors.observe.events import Ticker
from streamactors.observe.registry import Entry
from streamactors.observe.savepoints import SavepointFolders
from streamactors.observe.views import JobView, checkpoint
from streamactors.settings import redacted

T = TypeVar("T")
R = TypeVar("R", bound=msgspec.Struct)
Endpoint = Callable[[Request], Awaitable[Response]]
log = logging.getLogger("streamactors.control")

LONGEST_BODY: Final = 1 << 16
"""In bytes."""
_NO_STORE: Final = {"cache-control": "no-store"}

CODES: Final[tuple[tuple[type[StreamactorsError], str, int], ...]] = (
    (JobNotRunning, "job-not-running", 409),
    (RescaleUnderWay, "rescale-under-way", 409),
    (RescaleFailed, "rescale-failed", 409),
    (CheckpointFailed, "checkpoint-failed", 409),
    (StorageFailed, "storage-failed", 409),
    (JobFailed, "job-failed", 409),
    (MissingExtra, "missing-extra", 501),
    (InvalidConfig, "refused", 422),
    (StreamactorsError, "failed", 409),
)
"""The first that fits gives an error's code and status."""
ROUTING_CODES: Final = {404: "not-found", 405: "method-not-allowed"}


class SteeredJob:
    """One job as the API sees it. `savepoints`: the folders below which savepoints may lie; None: anywhere."""

    def __init__(
        self, handle: JobHandle, entry: Entry, clock: Clock, savepoints: SavepointFolders | None = None
    ) -> None:
        self.view = JobView(handle, entry, clock)
        self.ticker = Ticker(self.view.tick, clock)
        self._handle = handle
        self._savepoints = savepoints
        self._operations: set[asyncio.Task[Any]] = set()

    @property
    def name(self) -> str:
        return self._handle.name

    # -------------------------------------------------------------------------------------------------------- steering
    async def checkpoint(self, _: model.Nothing) -> model.Checkpoint:
        return checkpoint(await self._carry_out("checkpoint", self._handle.checkpoint()))

    async def savepoint(self, request: model.SavepointRequest) -> model.Checkpoint:
        uri = self._target(request.uri)
        taken = await self._carry_out(f"savepoint {redacted(uri)}", self._handle.savepoint(uri))
        return self.view.completed(taken)

    async def stop(self, request: model.StopRequest) -> model.Ended:
        savepoint = None if request.savepoint is None else self._target(request.savepoint)
        what = "drain and stop" if request.drain else "stop"
        what += f", savepoint {redacted(savepoint)}" if savepoint else ""
        uri = await self._carry_out(what, self._handle.stop(savepoint, drain=request.drain))
        if uri is None and savepoint is not None:
            raise JobNotRunning(f"job {self.name!r} had finished before: no savepoint was taken")
        return self._ended(None if uri is None else self.view.completed(uri))

    async def rescale(self, request: model.RescaleRequest) -> model.Rescaled:
        default, steps, before = request.parallelism, request.steps, self._handle.last_rescale
        if default is None:
            asked = self._handle.rescale(parallelism=steps)
        else:
            asked = self._handle.rescale(parallelism=default, steps=steps)
        await self._carry_out(f"rescale, parallelism {default}, steps {steps}", asked)
        changed = self._handle.last_rescale is not before
        return model.Rescaled(name=self.name, changed=changed, last_rescale=self.view.last_rescale())

    async def cancel(self, _: model.Nothing) -> model.Ended:
        await self._carry_out("cancel", self._handle.cancel())
        return self._ended(self.view.last_checkpoint())

    def _ended(self, checkpoint: model.Checkpoint | None) -> model.Ended:
        return model.Ended(name=self.name, status=self._handle.status, checkpoint=checkpoint)

    def _target(self, uri: str) -> str:
        return _absolute(uri) if self._savepoints is None else self._savepoints.target(uri)

    async def _carry_out(self, what: str, operation: Coroutine[Any, Any, T]) -> T:
        log.info("%s: asked for: %s", self.name, what)
        task = asyncio.get_running_loop().create_task(operation, name=f"{self.name}: {what}")
        self._operations.add(task)
        task.add_done_callback(lambda done: self._carried_out(what, done))
        return await asyncio.shield(task)

    def _carried_out(self, what: str, task: "asyncio.Task[Any]") -> None:
        self._operations.discard(task)
        if task.cancelled():
            log.warning("%s: given up: %s", self.name, what)
        elif (error := task.exception()) is not None:
            log.warning("%s: failed: %s: %s", self.name, what, error)
        else:
            log.info("%s: done: %s", self.name, what)

    @asynccontextmanager
    async def streams(self) -> AsyncIterator[None]:
        """No stream of events goes on beyond the block: a server waits for its answers to end."""
        try:
            yield
        finally:
            self.ticker.close()

    @asynccontextmanager
    async def operations(self) -> AsyncIterator[None]:
        """Nothing that was asked for goes on beyond the block."""
        try:
            yield
        finally:
            for task in self._operations:
                task.cancel()
            await asyncio.gather(*self._operations, return_exceptions=True)


def _absolute(uri: str) -> str:
    """The caller's current folder is another one than the job's."""
    if "://" not in uri and not os.path.isabs(uri):
        raise InvalidRequest(f"savepoint {uri!r} must be a URI or an absolute path")
    return uri


# --------------------------------------------------------------------------------------------------------------- routes
Tell = Callable[[JobView, Mapping[str, Any]], msgspec.Struct]
Act = Callable[[SteeredJob, Any], Awaitable[msgspec.Struct]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that the API does: its route, and its part of the OpenAPI document, are made of this. One of `tell` and
    `act` is there; `takes`: the body of what acts."""

    method: str
    path: str
    summary: str
    gives: type[msgspec.Struct]
    tell: Tell | None = None
    act: Act | None = None
    takes: type[msgspec.Struct] = model.Nothing


JOB: Final = "/v1/jobs/{name}"
OPERATIONS: Final = (
    Operation("GET", JOB, "How a job does", model.JobStatus, lambda job, _: job.status()),
    Operation("GET", f"{JOB}/graph", "The steps of its flow", model.Graph, lambda job, _: job.graph()),
    Operation("GET", f"{JOB}/subtasks", "What each actor counts", model.Subtasks, lambda job, _: job.subtasks()),
    Operation(
        "GET",
        f"{JOB}/subtasks/{{vertex}}/{{index}}",
        "One actor, with its input channels",
        model.SubtaskDetail,
        lambda job, path: job.subtask(path["vertex"], path["index"]),
    ),
    Operation("GET", f"{JOB}/checkpoints", "Its checkpoints", model.Checkpoints, lambda job, _: job.checkpoints()),
    Operation(
        "GET",
        f"{JOB}/checkpoints/{{id}}",
        "One checkpoint, with each subtask's part",
        model.CheckpointDetail,
        lambda job, path: job.checkpoint(path["id"]),
    ),
    Operation(
        "GET",
        f"{JOB}/backpressure",
        "Who is busy, and who waits",
        model.BackPressure,
        lambda job, _: job.backpressure(),
    ),
    Operation("GET", f"{JOB}/state", "How stored state is spread", model.State, lambda job, _: job.state()),
    Operation("GET", f"{JOB}/watermarks", "How far event time is", model.Watermarks, lambda job, _: job.watermarks()),
    Operation("GET", f"{JOB}/exceptions", "What ended attempts", model.Exceptions, lambda job, _: job.exceptions()),
    Operation("GET", f"{JOB}/config", "Its settings", model.Settings, lambda job, _: job.config()),
    Operation("POST", f"{JOB}/checkpoints", "Take a checkpoint", model.Checkpoint, act=SteeredJob.checkpoint),
    Operation(
        "POST",
        f"{JOB}/savepoints",
        "Take a savepoint",
        model.Checkpoint,
        act=SteeredJob.savepoint,
        takes=model.SavepointRequest,
    ),
    Operation(
        "POST",
        f"{JOB}/stop",
        "Stop with a last checkpoint or savepoint",
        model.Ended,
        act=SteeredJob.stop,
        takes=model.StopRequest,
    ),
    Operation(
        "POST",
        f"{JOB}/rescale",
        "Go on by another parallelism",
        model.Rescaled,
        act=SteeredJob.rescale,
        takes=model.RescaleRequest,
    ),
    Operation("POST", f"{JOB}/cancel", "End at once", model.Ended, act=SteeredJob.cancel),
)
NUMBERS: Final = frozenset({"index", "id"})
"""Parts of paths."""


def control_app(jobs: Sequence[SteeredJob]) -> Starlette:
    """Says who may ask nothing: put it on a private socket, or behind what does."""
    api = _Api({job.name: job for job in jobs})
    routes = [
        route("GET", "/v1/jobs", api.jobs),
        route("GET", f"{JOB}/events", api.events),
        *(route(each.method, routed(each.path), api.endpoint(each)) for each in OPERATIONS),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: unrouted})


def routed(path: str) -> str:
    """As the router has it: uids may hold slashes."""
    for number in NUMBERS:
        path = path.replace(f"{{{number}}}", f"{{{number}:int}}")
    return path.replace("{vertex}", "{vertex:path}")


class EventStream(Response):
    """Closed with whoever listens: else what it holds would be left to the garbage collector."""

    def __init__(self, ticker: Ticker) -> None:
        super().__init__()
        self._ticker = ticker

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._ticker.stream()) as events:
            await StreamingResponse(events, 200, _NO_STORE, "text/event-stream")(scope, receive, send)


class _Api:
    def __init__(self, jobs: Mapping[str, SteeredJob]) -> None:
        self._jobs = jobs

    async def jobs(self, _: Request) -> Response:
        return answer(model.Jobs(jobs=[job.view.summary() for job in self._jobs.values()]))

    async def events(self, request: Request) -> Response:
        ticker = self._job(request).ticker
        ticker.require_room()
        return EventStream(ticker)

    def endpoint(self, operation: Operation) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            job = self._job(request)
            if operation.tell is not None:
                return answer(operation.tell(job.view, request.path_params))
            assert operation.act is not None
            return answer(await operation.act(job, await body(request, operation.takes)))

        return endpoint

    def _job(self, request: Request) -> SteeredJob:
        name = request.path_params["name"]
        if name not in self._jobs:
            raise InvalidRequest(f"there is no job {name!r} here, but: {', '.join(self._jobs)}", "unknown-job", 404)
        return self._jobs[name]


def route(method: str, path: str, endpoint: Endpoint) -> Route:
    async def answered(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ClientDisconnect:
            return refusal("client-gone", "the client went away in the middle of its request", 400)
        except InvalidRequest as error:
            return refusal(error.code, str(error), error.status)
        except StreamactorsError as error:
            code, status = next((code, status) for kind, code, status in CODES if isinstance(error, kind))
            return refusal(code, str(error), status)
        except Exception as error:
            log.exception("%s %s failed", method, path)
            return refusal("internal-error", f"{type(error).__name__}: {error}", 500)

    return Route(path, answered, methods=[method])


async def unrouted(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = ROUTING_CODES.get(error.status_code, "refused")
    response = refusal(code, error.detail, error.status_code)
    response.headers.update(error.headers or {})
    return response


async def body(request: Request, takes: type[R]) -> R:
    """Without one, the defaults. Another type than JSON is refused: a web page of another site can't send that."""
    data = await _read(request)
    if data and request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise InvalidRequest("the body must be application/json", "unsupported-media-type", 415)
    try:
        return msgspec.json.decode(data or b"{}", type=takes)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the body does not fit: {error}") from None


async def _read(request: Request) -> bytes:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > LONGEST_BODY:
            raise InvalidRequest(f"the body is longer than {LONGEST_BODY} bytes", "too-large", 413)
    return bytes(data)


def refusal(code: str, message: str, status: int) -> Response:
    """What says no, whoever says it."""
    return answer(model.Error(error=model.Problem(code=code, message=message)), status)


def answer(document: msgspec.Struct, status: int = 200) -> Response:
    return Response(msgspec.json.encode(document), status, _NO_STORE, "application/json")
