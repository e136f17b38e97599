"""The control of a job that nobody holds, by calls instead of connections: its coordinator takes them, and whoever asks
finds it through the cluster.

On the coordinator's own node the job is in the registry as well, as any other.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, MutableMapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final
from urllib.parse import quote, unquote

from streamactors.clock import SYSTEM
from streamactors.deploy.detached import Answer
from streamactors.errors import ControlUnavailable, MissingExtra
from streamactors.launch import JobHandle
from streamactors.observe.exporting import traced_if_configured
from streamactors.observe.steering import entry_of, registered
from streamactors.runtime.handled import HandledJob

log = logging.getLogger("streamactors.control")

_STREAMS: Final = "/events"
"""What such a path gives has no end."""


class Control:
    """The control API of one job. See `deploy.detached.Attended`."""

    def __init__(self, app: Any, name: str) -> None:
        self._app = app
        self._name = name

    async def status(self) -> bytes:
        _, body = await self.ask("GET", f"/v1/jobs/{quote(self._name, safe='')}", b"")
        return body

    async def ask(self, method: str, path: str, body: bytes) -> Answer:
        from streamactors.observe.control import refusal

        if path.endswith(_STREAMS):
            refused = refusal("no-stream", "events are served on the coordinator's node alone", 501)
            return refused.status_code, bytes(refused.body)
        return await answer_of(self._app, method, path, body)


async def answer_of(app: Any, method: str, path: str, body: bytes) -> Answer:
    """What an ASGI application answers."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    told = bytearray()
    status = 0

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            told.extend(message.get("body", b""))

    await app(scope, receive, send)
    return status, bytes(told)


@asynccontextmanager
async def attended(
    job: HandledJob, task: "asyncio.Task[None]", *, target: str | None = None, otlp: str | None = None
) -> AsyncIterator[Control]:
    """The control of a job, for its coordinator: see `deploy.detached.Attend`. Raises MissingExtra."""
    try:
        from streamactors.observe.control import SteeredJob, control_app
    except ImportError as error:
        raise MissingExtra(
            f"nobody could find a detached job without its control, and {error.name} is missing on the coordinator's "
            "node: pip install 'streamactors[web]' there"
        ) from error
    handle = JobHandle(job, task)
    entry = entry_of(handle, target)
    steered = SteeredJob(handle, entry, SYSTEM)
    app = control_app([steered])
    async with traced_if_configured(handle, otlp), steered.operations(), AsyncExitStack() as stack, steered.streams():
        try:
            await stack.enter_async_context(registered(app, entry))
        except (ControlUnavailable, OSError) as error:
            log.warning("%s: on this node, the job is found only through the cluster: %s", handle.name, error)
        yield Control(app, handle.name)
