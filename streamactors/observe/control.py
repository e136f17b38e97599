"""The control API, version 1: an ASGI application that tells how jobs do, and steers them.

Invariants: an operation that was begun (a savepoint, a stop) is carried out whether or not its caller waits for it, and
its failure is logged if nobody does; no request is read beyond `LONGEST_BODY`; every answer is JSON, every refusal an
`Error` with a stable code.
"""

import asyncio
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from streamactors.clock import Clock
from streamactors.errors import (
    CheckpointFailed,
    InvalidConfig,
    InvalidRequest,
    JobFailed,
    JobNotRunning,
    StorageFailed,
    StreamactorsError,
)
from streamactors.launch import JobHandle
from streamactors.observe import model
from streamactors.observe.registry import Entry
from streamactors.runtime.info import CheckpointInfo
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
    (CheckpointFailed, "checkpoint-failed", 409),
    (StorageFailed, "storage-failed", 409),
    (JobFailed, "job-failed", 409),
    (InvalidConfig, "refused", 422),
    (StreamactorsError, "failed", 409),
)
"""The first that fits gives an error's code and status."""
ROUTING_CODES: Final = {404: "not-found", 405: "method-not-allowed"}


class SteeredJob:
    """One job as the API sees it."""

    def __init__(self, handle: JobHandle, entry: Entry, clock: Clock) -> None:
        self._handle = handle
        self._entry = entry
        self._clock = clock
        self._began = clock.monotonic()
        self._operations: set[asyncio.Task[Any]] = set()

    @property
    def name(self) -> str:
        return self._handle.name

    # --------------------------------------------------------------------------------------------------------- telling
    def summary(self) -> model.JobSummary:
        return model.JobSummary(**self._summary())

    def status(self) -> model.JobStatus:
        subtasks = self._handle.metrics()["subtasks"]
        return model.JobStatus(
            **self._summary(),
            operators=self._operators(subtasks),
            subtasks=[_subtask(id, counts) for id, counts in subtasks.items()],
        )

    def checkpoints(self) -> model.Checkpoints:
        return model.Checkpoints(checkpoints=[_checkpoint(info) for info in reversed(self._handle.checkpoints)])

    def _summary(self) -> dict[str, Any]:
        failures = self._handle.failures
        return {
            "name": self.name,
            "status": self._handle.status,
            "stopping": self._handle.stopping,
            "pid": self._entry.pid,
            "started_ms": self._entry.started_ms,
            "uptime_seconds": round(self._clock.monotonic() - self._began, 3),
            "restarts": self._handle.restarts,
            "storage": self._entry.storage,
            "target": self._entry.target,
            "last_checkpoint": self._last_checkpoint(),
            "last_failure": str(failures[-1]) if failures else None,
        }

    def _operators(self, subtasks: Mapping[str, Any]) -> list[model.Operator]:
        plan = self._handle.plan
        if plan is None:
            return []
        into, out = Counter[str](), Counter[str]()
        for subtask in subtasks.values():
            for uid, counts in subtask["nodes"].items():
                into[uid] += counts["records_in"]
                out[uid] += counts["records_out"]
        return [
            model.Operator(
                uid=uid,
                name=node.name,
                kind=node.kind,
                parallelism=vertex.parallelism,
                max_parallelism=vertex.max_parallelism,
                records_in=into[uid],
                records_out=out[uid],
            )
            for uid, (vertex, node) in plan.node.items()
        ]

    # -------------------------------------------------------------------------------------------------------- steering
    async def checkpoint(self, _: model.Nothing) -> model.Checkpoint:
        return _checkpoint(await self._carry_out("checkpoint", self._handle.checkpoint()))

    async def savepoint(self, request: model.SavepointRequest) -> model.Checkpoint:
        uri = _absolute(request.uri)
        taken = await self._carry_out(f"savepoint {redacted(uri)}", self._handle.savepoint(uri))
        return self._completed(taken)

    async def stop(self, request: model.StopRequest) -> model.Ended:
        savepoint = None if request.savepoint is None else _absolute(request.savepoint)
        what = "drain and stop" if request.drain else "stop"
        what += f", savepoint {redacted(savepoint)}" if savepoint else ""
        uri = await self._carry_out(what, self._handle.stop(savepoint, drain=request.drain))
        if uri is None and savepoint is not None:
            raise JobNotRunning(f"job {self.name!r} had finished before: no savepoint was taken")
        return self._ended(None if uri is None else self._completed(uri))

    async def cancel(self, _: model.Nothing) -> model.Ended:
        await self._carry_out("cancel", self._handle.cancel())
        return self._ended(self._last_checkpoint())

    def _ended(self, checkpoint: model.Checkpoint | None) -> model.Ended:
        return model.Ended(name=self.name, status=self._handle.status, checkpoint=checkpoint)

    def _last_checkpoint(self) -> model.Checkpoint | None:
        completed = self._handle.checkpoints
        return _checkpoint(completed[-1]) if completed else None

    def _completed(self, uri: str) -> model.Checkpoint:
        return next(_checkpoint(info) for info in reversed(self._handle.checkpoints) if info.uri == uri)

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


def _subtask(id: str, counts: Mapping[str, Any]) -> model.Subtask:
    return model.Subtask(
        id=id,
        queued=counts["queued"],
        capacity=counts["capacity"],
        blocked=counts["blocked"],
        unsent=counts["unsent"],
        nodes={
            uid: model.Node(records_in=node["records_in"], records_out=node["records_out"])
            for uid, node in counts["nodes"].items()
        },
    )


def _checkpoint(info: CheckpointInfo) -> model.Checkpoint:
    return model.Checkpoint(
        id=info.id,
        kind="savepoint" if info.savepoint else "checkpoint",
        uri=redacted(info.uri),
        time_ms=info.time_ms,
        seconds=info.duration.total_seconds(),
        state_bytes=info.state_bytes,
        uploaded_bytes=info.uploaded_bytes,
        inflight_bytes=info.inflight_bytes,
    )


# --------------------------------------------------------------------------------------------------------------- routes
def control_app(jobs: Sequence[SteeredJob]) -> Starlette:
    """Says who may ask nothing: put it on a private socket, or behind what does."""
    api = _Api({job.name: job for job in jobs})
    job = "/v1/jobs/{name}"
    routes = [
        _route("GET", "/v1/jobs", api.jobs),
        _route("GET", job, api.telling(SteeredJob.status)),
        _route("GET", f"{job}/checkpoints", api.telling(SteeredJob.checkpoints)),
        _route("POST", f"{job}/checkpoints", api.steering(SteeredJob.checkpoint, model.Nothing)),
        _route("POST", f"{job}/savepoints", api.steering(SteeredJob.savepoint, model.SavepointRequest)),
        _route("POST", f"{job}/stop", api.steering(SteeredJob.stop, model.StopRequest)),
        _route("POST", f"{job}/cancel", api.steering(SteeredJob.cancel, model.Nothing)),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _unrouted})


class _Api:
    def __init__(self, jobs: Mapping[str, SteeredJob]) -> None:
        self._jobs = jobs

    async def jobs(self, _: Request) -> Response:
        return _answer(model.Jobs(jobs=[job.summary() for job in self._jobs.values()]))

    def telling(self, tell: Callable[[SteeredJob], msgspec.Struct]) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            return _answer(tell(self._job(request)))

        return endpoint

    def steering(self, act: Callable[[SteeredJob, R], Awaitable[msgspec.Struct]], takes: type[R]) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            job = self._job(request)
            return _answer(await act(job, await _body(request, takes)))

        return endpoint

    def _job(self, request: Request) -> SteeredJob:
        name = request.path_params["name"]
        if name not in self._jobs:
            raise InvalidRequest(f"there is no job {name!r} here, but: {', '.join(self._jobs)}", "unknown-job", 404)
        return self._jobs[name]


def _route(method: str, path: str, endpoint: Endpoint) -> Route:
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


async def _unrouted(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = ROUTING_CODES.get(error.status_code, "refused")
    response = refusal(code, error.detail, error.status_code)
    response.headers.update(error.headers or {})
    return response


async def _body(request: Request, takes: type[R]) -> R:
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
    return _answer(model.Error(error=model.Problem(code=code, message=message)), status)


def _answer(document: msgspec.Struct, status: int = 200) -> Response:
    return Response(msgspec.json.encode(document), status, _NO_STORE, "application/json")
