"""The control API and the metrics over the network: one ASGI application for a program's own jobs.

`/api/v1/…` is the API of `control`, `/api/v1/openapi.json` its description, `/metrics` for Prometheus,
`/dashboard/` for people.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount

from streamactors.clock import SYSTEM
from streamactors.errors import MissingExtra
from streamactors.observe import dashboard, openapi
from streamactors.observe.control import SteeredJob, control_app, route, unrouted
from streamactors.observe.extras import NO_METRICS
from streamactors.observe.guard import Access, App, Guard
from streamactors.observe.reading import Reading

_NO_STORE: Final = {"cache-control": "no-store"}


def job_app(jobs: Sequence[SteeredJob], access: Access) -> Guard:
    """Of jobs in this process."""

    async def read() -> list[Reading]:
        return [await _read(job) for job in jobs]

    return web_app(control_app(jobs), read, access)


async def _read(job: SteeredJob) -> Reading:
    """Piece by piece: with hundreds of subtasks each is a few milliseconds."""
    status = job.view.status()
    await asyncio.sleep(0)
    checkpoints, last = job.view.checkpoints(), status.last_checkpoint
    if last is None:
        return Reading(status, checkpoints)
    detail = job.view.checkpoint(last.id)
    await asyncio.sleep(0)
    return Reading(status, checkpoints, detail, job.view.state())


def web_app(control: App, read: Callable[[], Awaitable[Sequence[Reading]]], access: Access) -> Guard:
    """`control` answers below `/api`; `read` is what `/metrics` tells."""
    described = openapi.document(version("streamactors"))

    async def describe(request: Request) -> Response:
        server: dict[str, Any] = {"servers": [{"url": request.scope.get("root_path") or "/"}]}
        return Response(msgspec.json.encode(described | server), 200, _NO_STORE, "application/json")

    async def metrics(request: Request) -> Response:
        exposition = _exposition()
        text, kind = await SYSTEM.run_blocking(exposition, await read(), request.headers.get("accept", ""))
        return Response(text, 200, {**_NO_STORE, "content-type": kind})

    routes = [
        route("GET", "/api/v1/openapi.json", describe),
        route("GET", "/metrics", metrics),
        Mount("/api", app=control),
        *dashboard.routes(),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: unrouted})
    return Guard(app, access, dashboard.PUBLIC)


def _exposition() -> Callable[[Sequence[Reading], str], tuple[bytes, str]]:
    try:
        from streamactors.observe.prometheus import exposition
    except ImportError as error:
        raise MissingExtra(NO_METRICS) from error
    return exposition
