"""Embedding a job in a web service: a health endpoint for any ASGI framework, and control by the command line.

async def lifespan(app):
    async with sa.start(flow, config) as job, steered(job):
        app.state.job = job
        yield

app = Starlette(routes=[Route("/health", health(lambda: app.state.job))], lifespan=lifespan)

With `steered`, `streamactors list`, `status`, `savepoint`, `stop`, … find the job, on a socket that only the service's
own user can open. With `served`, the REST API and the metrics have an address of their own; `control_app` puts them
into the service's. With `traced`, checkpoints and recoveries are traces of OpenTelemetry.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping, Sequence
from typing import Any, Final

import msgspec

from streamactors.clock import SYSTEM
from streamactors.errors import ControlUnavailable
from streamactors.launch import JobHandle
from streamactors.observe.network import Served, served
from streamactors.observe.steering import entry_of, steered
from streamactors.observe.tracing import traced

__all__ = [
    "DEAD",
    "ControlEndpoint",
    "HealthEndpoint",
    "Served",
    "control_app",
    "health",
    "served",
    "steered",
    "traced",
]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

DEAD: Final = frozenset({"failed", "cancelled"})


class HealthEndpoint:
    """An ASGI application that answers GET and HEAD, made by `health`. Needs no web framework."""

    def __init__(self, job: Callable[[], JobHandle | None]) -> None:
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # neither web sockets nor a lifespan of its own
        if scope["method"] not in ("GET", "HEAD"):
            await _respond(send, 405, {"error": "GET or HEAD"}, head=False, headers=[(b"allow", b"GET, HEAD")])
            return
        code, report = _report(self._job())
        await _respond(send, code, report, head=scope["method"] == "HEAD")


def health(job: JobHandle | Callable[[], JobHandle | None]) -> HealthEndpoint:
    """A ready endpoint: `Route("/health", health(job))`, or `app.mount("/health", health(job))`.

    200 while the job starts, runs, restarts, and once it has finished; 503 when it is dead (failed, cancelled) or there
    is none yet. The body is JSON: `job`, `status`, `restarts`, `last_checkpoint`. Where the job begins in the lifespan,
    give a function that finds it: `health(lambda: app.state.job)`.
    """
    return HealthEndpoint((lambda: job) if isinstance(job, JobHandle) else job)


App = Callable[[Scope, Receive, Send], Awaitable[None]]


class ControlEndpoint:
    """An ASGI application, made by `control_app`."""

    def __init__(self, job: Callable[[], JobHandle | None], build: Callable[[JobHandle], App]) -> None:
        self._job = job
        self._build = build
        self._built: tuple[JobHandle, App] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        job = self._job()
        if job is None:
            await _respond(send, 503, {"error": {"code": "not-started", "message": "no job yet"}}, head=False)
            return
        if self._built is None or self._built[0] is not job:
            self._built = job, self._build(job)
        await self._built[1](scope, receive, send)


def control_app(
    job: JobHandle | Callable[[], JobHandle | None],
    *,
    token: str | None = None,
    closed: bool = False,
    hosts: Collection[str] = (),
    savepoints: Sequence[str] = (),
) -> ControlEndpoint:
    """The REST API (`/api/v1/…`) and the metrics (`/metrics`) of a job, for any ASGI framework:
    `app.mount("/streams", control_app(lambda: app.state.job, token=…))`.

    Without `token` nothing can be changed by it. `closed`: reading needs the token too. `hosts`: the names by which the
    service is reached, besides addresses and localhost; requests for others are refused. `savepoints`: the folders
    below which savepoints may be asked for. Raises InvalidConfig, ControlUnavailable.
    """
    try:
        from streamactors.observe.control import SteeredJob
        from streamactors.observe.guard import Access
        from streamactors.observe.rest import job_app
        from streamactors.observe.savepoints import SavepointFolders
    except ImportError as error:
        raise ControlUnavailable(f"{error.name} is missing here: pip install 'streamactors[web]'") from error
    access, folders = Access(token, closed, hosts), SavepointFolders(savepoints)

    def build(handle: JobHandle) -> App:
        return job_app([SteeredJob(handle, entry_of(handle), SYSTEM, folders)], access)

    return ControlEndpoint((lambda: job) if isinstance(job, JobHandle) else job, build)


def _report(job: JobHandle | None) -> tuple[int, dict[str, Any]]:
    if job is None:
        return 503, {"job": None, "status": "not started"}
    last = job.checkpoints[-1] if job.checkpoints else None
    report = {
        "job": job.name,
        "status": job.status,
        "restarts": job.restarts,
        "last_checkpoint": None if last is None else {"id": last.id, "seconds": last.duration.total_seconds()},
    }
    return 503 if job.status in DEAD else 200, report


async def _respond(
    send: Send, code: int, body: Mapping[str, Any], *, head: bool, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    data = msgspec.json.encode(body)
    fixed = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
    length = (b"content-length", str(len(data)).encode())
    await send({"type": "http.response.start", "status": code, "headers": [*fixed, length, *(headers or [])]})
    await send({"type": "http.response.body", "body": b"" if head else data})
