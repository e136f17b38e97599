"""The web dashboard: static files beside this module, which ask the control API from within the browser.

Invariants: what is served is exactly `FILES`, whatever path is asked for; nothing in it depends on a job, so that
whoever has no token may load it, though not what it then asks for; no script, style or connection of another place is
allowed to the page, and no script can be made out of text.
"""

from importlib.resources import files
from typing import Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from streamactors.clock import SYSTEM

PLACE: Final = "/dashboard/"
_KINDS: Final = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
FILES: Final = (
    "index.html",
    "style.css",
    "icon.svg",
    "app.js",
    "api.js",
    "dom.js",
    "events.js",
    "format.js",
    "history.js",
    "layout.js",
    "session.js",
    "steering.js",
    "token.js",
    "views/checkpoints.js",
    "views/exceptions.js",
    "views/graph.js",
    "views/histogram.js",
    "views/job.js",
    "views/mailbox.js",
    "views/operators.js",
    "views/sparkline.js",
)
POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
PUBLIC: Final = frozenset({"/", PLACE.rstrip("/"), PLACE, *(PLACE + name for name in FILES)})
"""Paths that hold no secret."""


def routes() -> list[BaseRoute]:
    pages = _Pages()
    return [
        Route("/", _to_the_dashboard),
        Route(PLACE, pages.index),
        Route(PLACE + "{name:path}", pages.file),
    ]


async def _to_the_dashboard(request: Request) -> Response:
    return RedirectResponse(request.scope.get("root_path", "") + PLACE)


class _Pages:
    """Each file is read once."""

    def __init__(self) -> None:
        self._read: dict[str, bytes] = {}

    async def index(self, _: Request) -> Response:
        return await self._answer("index.html")

    async def file(self, request: Request) -> Response:
        name = request.path_params["name"]
        return await self._answer(name) if name in FILES else Response("there is no such file\n", 404)

    async def _answer(self, name: str) -> Response:
        if name not in self._read:
            self._read[name] = await SYSTEM.run_blocking(_content, name)
        headers = {
            "cache-control": "no-cache",
            "content-security-policy": POLICY,
            "content-type": f"{_KINDS[name.rpartition('.')[2]]}; charset=utf-8",
        }
        return Response(self._read[name], headers=headers)


def _content(name: str) -> bytes:
    return (files("streamactors.observe") / "web" / name).read_bytes()
