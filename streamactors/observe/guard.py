"""Who may ask over the network, in front of any ASGI application.

Invariants. A request whose Host names anything but an address, localhost or a name that was allowed is refused: a web
page whose own name was made to point here (DNS rebinding) has such a Host. A request that a page of another origin
sends is refused, and no answer lets one be read (there are no CORS headers). Changes need the bearer token, in a
header that no form can send; where there is no token, nothing can be changed. Tokens are compared in constant time.
"""

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response

from streamactors.errors import InvalidConfig
from streamactors.observe.control import refusal

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

SHORTEST_TOKEN: Final = 16
_READING: Final = frozenset({"GET", "HEAD"})
_PUBLIC: Final = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True, slots=True, repr=False)
class Access:
    """`token` None: nothing can be changed. `closed`: reading needs it too. `hosts`: names by which it is reached."""

    token: str | None
    closed: bool = False
    hosts: Collection[str] = ()

    def __post_init__(self) -> None:
        if self.token is not None and (len(self.token) < SHORTEST_TOKEN or not self.token.isascii()):
            raise InvalidConfig(f"the token must have at least {SHORTEST_TOKEN} characters, all of them ASCII")
        if self.token is None and self.closed:
            raise InvalidConfig("who may read nothing without a token needs one: give a token")


class Guard:
    """An ASGI application in front of another. `public`: paths that may be read without a token where it is closed."""

    def __init__(self, app: App, access: Access, public: Collection[str] = ()) -> None:
        self._app = app
        self._access = access
        self._public = frozenset(public)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # neither web sockets nor a lifespan of its own
        public = scope["path"].removeprefix(scope.get("root_path", "")) in self._public
        refused = self._refused(scope["method"], Headers(scope=scope), public=public)
        app: App = self._app if refused is None else refused
        await app(scope, receive, _with_headers(send))

    def _refused(self, method: str, headers: Headers, *, public: bool) -> Response | None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not _may_be(hosts[0], self._access.hosts):
            return refusal("unknown-host", "the Host of this request is not allowed: name it, by --allow-host", 403)
        if _is_foreign(headers, hosts[0]):
            return refusal("foreign-origin", "pages of other sites may ask nothing here", 403)
        if method in _READING and (public or not self._access.closed):
            return None
        return self._unauthorized(headers)

    def _unauthorized(self, headers: Headers) -> Response | None:
        if self._access.token is None:
            return refusal("read-only", "nothing can be changed here: it was given no token", 403)
        if _is_right(headers.getlist("authorization"), self._access.token):
            return None
        response = refusal("unauthorized", "this needs the header Authorization: Bearer <token>", 401)
        response.headers["www-authenticate"] = 'Bearer realm="streamactors"'
        return response


def _is_right(given: list[str], token: str) -> bool:
    scheme, _, presented = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    same = hmac.compare_digest(presented.strip().encode("utf-8", "replace"), token.encode())
    return same and scheme.lower() == "bearer"


def _may_be(host: str, allowed: Collection[str]) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return name == "localhost" or name in {each.lower() for each in allowed} or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_foreign(headers: Headers, host: str) -> bool:
    """By what browsers send, and pages can't forge."""
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2].lower() != host.lower():
        return True
    followed_link = headers.get("sec-fetch-mode") == "navigate"
    return not followed_link and headers.get("sec-fetch-site", "none") not in ("none", "same-origin")


def _with_headers(send: Send) -> Send:
    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            own = [(name.encode(), value.encode()) for name, value in _PUBLIC.items()]
            message = {**message, "headers": [*message.get("headers", ()), *own]}
        await send(message)

    return sending
