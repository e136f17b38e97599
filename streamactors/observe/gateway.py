"""The control API of all jobs of this user on this machine, at one address: each request goes on to the job's own
private socket, and its answer comes back as it is.

Invariants: a job is looked up for each request, so that those that start later are found too; nothing is kept of any;
an answer that goes on (events) ends with whoever asked, with the job, or with the gateway, and its connection with it.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import quote

import h11
import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from streamactors.errors import AmbiguousJob, InvalidRequest, NoSuchJob, RequestFailed, StreamactorsError
from streamactors.observe import model, registry
from streamactors.observe.client import PATIENCE
from streamactors.observe.control import answer, body, refusal, route, unrouted
from streamactors.observe.reading import Reading
from streamactors.observe.registry import RunningJob
from streamactors.observe.savepoints import SavepointFolders

T = TypeVar("T")
log = logging.getLogger("streamactors.control")

_CHUNK: Final = 1 << 16
_OPTIONS: Final = {
    "savepoints": model.SavepointRequest,
    "stop": model.StopRequest,
    "rescale": model.RescaleRequest,
}


class Gateway:
    """`savepoints`: where savepoints may lie."""

    def __init__(self, savepoints: SavepointFolders) -> None:
        self._savepoints = savepoints
        self._open: set[asyncio.StreamWriter] = set()
        routes = [
            route("GET", "/v1/jobs", self._jobs),
            Route("/v1/jobs/{name}", self._forward, methods=["GET"]),
            Route("/v1/jobs/{name}/{what:path}", self._forward, methods=["GET", "POST"]),
        ]
        self.app = Starlette(routes=routes, exception_handlers={HTTPException: unrouted})

    @asynccontextmanager
    async def streams(self) -> AsyncIterator[None]:
        """No answer goes on beyond the block."""
        try:
            yield
        finally:
            for writer in self._open:
                writer.close()

    # --------------------------------------------------------------------------------------------------------- telling
    async def _jobs(self, _: Request) -> Response:
        found = [summary async for job in _running() if (summary := await self._summary(job)) is not None]
        return answer(model.Jobs(jobs=found))

    async def _summary(self, job: RunningJob) -> model.JobSummary | None:
        try:
            return (await self._get(job, "/v1/jobs", model.Jobs)).jobs[0]
        except RequestFailed as error:
            log.debug("%s", error)
            return None

    async def readings(self) -> list[Reading]:
        """Of every job that answers."""
        return [reading async for job in _running() if (reading := await self._reading(job)) is not None]

    async def _reading(self, job: RunningJob) -> Reading | None:
        path = _path(job)
        try:
            status = await self._get(job, path, model.JobStatus)
            checkpoints = await self._get(job, f"{path}/checkpoints", model.Checkpoints)
            if (last := status.last_checkpoint) is None:
                return Reading(status, checkpoints)
            detail = await self._get(job, f"{path}/checkpoints/{last.id}", model.CheckpointDetail)
            return Reading(status, checkpoints, detail, await self._state(job, path))
        except RequestFailed as error:
            log.debug("%s", error)
            return None

    async def _state(self, job: RunningJob, path: str) -> model.State | None:
        """None where the job's process has an older version, which tells no such thing."""
        try:
            return await self._get(job, f"{path}/state", model.State)
        except RequestFailed as error:
            log.debug("%s", error)
            return None

    async def _get(self, job: RunningJob, path: str, kind: type[T]) -> T:
        try:
            async with asyncio.timeout(PATIENCE), self._asked(job, _Request("GET", path)) as told:
                return msgspec.json.decode(b"".join([chunk async for chunk in told.chunks()]), type=kind)
        except (TimeoutError, OSError, h11.RemoteProtocolError, msgspec.DecodeError) as error:
            raise RequestFailed("job-gone", f"{job} does not answer ({type(error).__name__})") from None

    # ------------------------------------------------------------------------------------------------------ forwarding
    async def _forward(self, request: Request) -> Response:
        try:
            job = registry.find(request.path_params["name"], registry.running()[0])
            what = request.path_params.get("what", "")
            data = await self._body(request, what) if request.method == "POST" else b""
        except AmbiguousJob as error:
            return refusal("ambiguous-job", str(error), 409)
        except NoSuchJob as error:
            return refusal("unknown-job", str(error), 404)
        except InvalidRequest as error:
            return refusal(error.code, str(error), error.status)
        except StreamactorsError as error:
            return refusal("refused", str(error), 422)
        path = _path(job) + (f"/{quote(what)}" if what else "")
        return _Forwarded(self, job, _Request(request.method, path, data))

    async def _body(self, request: Request, what: str) -> bytes:
        """Read here, so that its size is bounded, and says where savepoints go."""
        options: Any = await body(request, _OPTIONS.get(what, model.Nothing))
        if isinstance(options, model.SavepointRequest):
            options = model.SavepointRequest(uri=self._savepoints.target(options.uri))
        elif isinstance(options, model.StopRequest) and options.savepoint is not None:
            options = model.StopRequest(savepoint=self._savepoints.target(options.savepoint), drain=options.drain)
        return msgspec.json.encode(options)

    @asynccontextmanager
    async def _asked(self, job: RunningJob, request: "_Request") -> AsyncIterator["_Answer"]:
        """Raises OSError, h11.RemoteProtocolError."""
        reader, writer = await asyncio.open_unix_connection(job.socket)
        self._open.add(writer)
        try:
            connection = h11.Connection(h11.CLIENT)
            for event in request.events():
                writer.write(connection.send(event) or b"")
            told = _Answer(connection, reader)
            await told.begin()
            yield told
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    async def pass_on(self, job: RunningJob, request: "_Request", scope: Scope, receive: Receive, send: Send) -> None:
        """Raises OSError, h11.RemoteProtocolError."""
        async with self._asked(job, request) as told, aclosing(told.chunks()) as chunks:
            await StreamingResponse(chunks, told.status, told.headers)(scope, receive, send)


class _Forwarded(Response):
    """What a job answers."""

    def __init__(self, gateway: Gateway, job: RunningJob, request: "_Request") -> None:
        super().__init__()
        self._gateway = gateway
        self._job = job
        self._request = request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def sending(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._gateway.pass_on(self._job, self._request, scope, receive, sending)
        except (OSError, h11.RemoteProtocolError) as error:
            if begun:
                return
            gone = refusal("job-gone", f"{self._job} ended before it answered ({type(error).__name__})", 409)
            await gone(scope, receive, send)


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    body: bytes = b""

    def events(self) -> Sequence[h11.Event]:
        headers = [
            ("host", "localhost"),
            ("connection", "close"),
            ("content-type", "application/json"),
            ("content-length", str(len(self.body))),
        ]
        return [
            h11.Request(method=self.method, target=self.path, headers=headers),
            h11.Data(data=self.body),
            h11.EndOfMessage(),
        ]


class _Answer:
    def __init__(self, connection: h11.Connection, reader: asyncio.StreamReader) -> None:
        self._connection = connection
        self._reader = reader
        self.status = 0
        self.headers: dict[str, str] = {}

    async def begin(self) -> None:
        event = await self._next()
        if not isinstance(event, h11.Response):
            raise ConnectionResetError("no answer")
        told = {name.decode(): value.decode() for name, value in event.headers}
        self.status = event.status_code
        self.headers = {name: told[name] for name in ("content-type", "cache-control", "allow") if name in told}

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Until the answer ends; a stream of events also with the job or the gateway. Raises OSError,
        h11.RemoteProtocolError."""
        try:
            while isinstance(event := await self._next(), h11.Data):
                yield bytes(event.data)
        except (OSError, h11.RemoteProtocolError):
            if not self.headers.get("content-type", "").startswith("text/event-stream"):
                raise

    async def _next(self) -> Any:
        while (event := self._connection.next_event()) is h11.NEED_DATA:
            self._connection.receive_data(await self._reader.read(_CHUNK))
        return event


async def _running() -> AsyncIterator[RunningJob]:
    for job in registry.running()[0]:
        yield job


def _path(job: RunningJob) -> str:
    return f"/v1/jobs/{quote(job.entry.flow, safe='')}"
