"""A server that speaks S3, from a package, in a process of its own; and a proxy in front of it that lets requests fail.

The server handles one request at a time, so that what it promises (create only if absent) holds.
"""

import asyncio
import contextlib
import fnmatch
import io
import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 60.0
CREDENTIAL = "testing/20260101/us-east-1/s3/aws4_request"


# ------------------------------------------------------------------------------------------------------ in the server
def serve() -> None:
    """Prints its port; ends when its standard input does, so never later than the tests."""
    from moto.moto_server.werkzeug_app import create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_request(self, *args: object) -> None:
            """Nobody reads it."""

    application: Any = create_backend_app("s3")  # finding out which service is meant would take most of the time
    one_by_one = threading.Lock()

    def answer(environ: Any, start_response: Callable[..., Any]) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            # Werkzeug sends these two as well, and clients may refuse what comes twice.
            return start_response(
                status, [each for each in headers if each[0].lower() not in ("server", "date")], *rest
            )

        if not environ.get("wsgi.input_terminated"):  # before anybody else has to wait for it
            environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
        with one_by_one:
            return list(application(environ, start))

    server: Any = make_server("127.0.0.1", 0, answer, threaded=True, request_handler=Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    sys.stdin.read()


class S3Server:
    """Runs while the block lasts."""

    def __enter__(self) -> "S3Server":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.s3_server"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def bucket(self, name: str) -> "S3Bucket":
        self._request("PUT", name)
        return S3Bucket(self, name)

    def _request(self, method: str, path: str, data: bytes | None = None) -> bytes:
        request = urllib.request.Request(f"{self.url}/{path}", method=method, data=data)
        request.add_header(
            "Authorization", f"AWS4-HMAC-SHA256 Credential={CREDENTIAL}, SignedHeaders=host, Signature=x"
        )
        request.add_header("Content-Type", "binary/octet-stream")  # else it would be taken for a form
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return bytes(answer.read())


@dataclass(frozen=True)
class S3Bucket:
    """As somebody else sees it."""

    server: S3Server
    name: str

    @property
    def uri(self) -> str:
        return f"s3://{self.name}"

    def environ(self, endpoint: str | None = None) -> dict[str, str]:
        """What a program needs to find it, and nothing else of this machine."""
        return {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "not-to-be-seen",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": endpoint or self.server.url,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def objects(self) -> list[str]:
        """Their keys."""
        listed = self.server._request("GET", f"{self.name}?list-type=2").decode()
        return sorted(unquote(key) for key in re.findall("<Key>(.*?)</Key>", listed))

    def uploads(self) -> list[str]:
        """Keys of the unfinished ones."""
        listed = self.server._request("GET", f"{self.name}?uploads").decode()
        return re.findall("<Key>(.*?)</Key>", listed)

    def read(self, key: str) -> bytes:
        return self.server._request("GET", f"{self.name}/{key}")

    def put(self, key: str, data: bytes) -> None:
        self.server._request("PUT", f"{self.name}/{key}", data)

    def delete(self, key: str) -> None:
        self.server._request("DELETE", f"{self.name}/{key}")


# ----------------------------------------------------------------------------------------------------------- the proxy
Damage = Literal["503", "500", "404", "403", "cut before", "cut inside", "answer lost", "answer cut", "hold"]


@dataclass
class Rule:
    """`cut before`: the connection ends before the server hears of the request; `cut inside`: amid its body;
    `answer lost`: after it was done; `answer cut`: amid the answer; `hold`: it waits until `release` is set, and is
    done then."""

    damage: Damage
    method: str
    target: str
    times: int | None
    hits: int = 0
    struck: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    def strikes(self, method: str, target: str) -> bool:
        if self.times is not None and self.hits >= self.times:
            return False
        if not fnmatch.fnmatch(method, self.method) or not fnmatch.fnmatch(target, self.target):
            return False
        self.hits += 1
        self.struck.set()
        return True


class Proxy:
    """HTTP between a client and the server, a connection for each request. `seen`: "METHOD target" of each."""

    def __init__(self, port: int) -> None:
        self._upstream = port
        self._rules: list[Rule] = []
        self._handlers: set[asyncio.Task[None]] = set()
        self.seen: list[str] = []
        self.seconds = 0.0
        """That every request takes longer."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def damage(self, damage: Damage, method: str = "*", target: str = "*", *, times: int | None = 1) -> Rule:
        """`target` is a pattern of path and query, such as `/bucket/*/manifest*`."""
        rule = Rule(damage, method, target, times)
        self._rules.append(rule)
        return rule

    def heal(self) -> None:
        for rule in self._rules:
            rule.release.set()
        self._rules.clear()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        self.heal()
        self._server.close()
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)
        await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            await self._one(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            return  # the client has gone, or the test is over
        finally:
            self._handlers.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target = head.decode("latin-1").split(" ", 2)[:2]
        if b"100-continue" in head.lower():
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await _body(head, reader)
        target = unquote(target)
        self.seen.append(f"{method} {target}")
        if self.seconds:
            await asyncio.sleep(self.seconds)
        rule = next((rule for rule in self._rules if rule.strikes(method, target)), None)
        writer.write(await self._answer(rule, head, body))
        await writer.drain()

    async def _answer(self, rule: Rule | None, head: bytes, body: bytes) -> bytes:
        damage = rule.damage if rule is not None else None
        if damage in ("503", "500", "404", "403"):
            return _refusal(int(damage), with_body=not head.startswith(b"HEAD "))
        if damage == "cut before":
            return b""
        if damage == "cut inside":
            await self._forward(head, body[: len(body) // 2], cut=True)
            return b""
        if rule is not None and damage == "hold":
            await rule.release.wait()
        answer = await self._forward(head, body)
        return {"answer lost": b"", "answer cut": answer[:-2]}.get(damage or "", answer)

    async def _forward(self, head: bytes, body: bytes, *, cut: bool = False) -> bytes:
        """The whole answer."""
        lines = head.decode("latin-1").split("\r\n")
        kept = [line for line in lines if not line.lower().startswith(("expect:", "connection:"))]
        kept.insert(1, "Connection: close")
        reader, writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        try:
            writer.write("\r\n".join(kept).encode("latin-1") + body)
            await writer.drain()
            if cut:
                return b""
            return await reader.read()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def _body(head: bytes, reader: asyncio.StreamReader) -> bytes:
    if found := re.search(rb"content-length: *(\d+)", head, re.IGNORECASE):
        return await reader.readexactly(int(found[1]))
    if b"transfer-encoding: chunked" not in head.lower():
        return b""
    parts = []
    while True:
        line = await reader.readline()
        parts += [line, await reader.readexactly(int(line.split(b";")[0], 16) + 2)]
        if parts[-1] == b"\r\n":
            return b"".join(parts)


def _refusal(status: int, *, with_body: bool) -> bytes:
    code = {503: "SlowDown", 500: "InternalError", 404: "NotFound", 403: "AccessDenied"}[status]
    body = f"<Error><Code>{code}</Code><Message>refused by the test</Message></Error>".encode()
    head = [f"HTTP/1.1 {status} {code}", "Content-Type: application/xml", "Connection: close"]
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + (body if with_body else b"")


@asynccontextmanager
async def proxied(server: S3Server) -> AsyncIterator[Proxy]:
    proxy = Proxy(server.port)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.close()


if __name__ == "__main__":
    serve()
