"""The control API over its real socket, in front of real jobs."""

import asyncio
import datetime as dt
import json
import logging
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop

import streamactors as sa
from connectors.memory import ListSink
from streamactors.errors import ControlUnavailable
from streamactors.observe import registry, server
from streamactors.observe.control import LONGEST_BODY
from streamactors.observe.steering import steered_if_possible
from streamactors.service import steered
from tests.leaks import open_files
from tests.runtime.feeds import PATIENCE, Feed, until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("registry_folder")]
uvloop.new_event_loop().close()  # the first one opens a pipe that the process keeps


class Sum(sa.KeyedOperator[int, int, int]):
    total = sa.ValueState(int, default=0)

    def process(self, value: int, ctx: sa.Context[int, int]) -> None:
        self.total.set(self.total.get() + value)
        ctx.emit(self.total.get())


def flow_of(feed: Feed, sink: ListSink[int] | None = None) -> sa.Dataflow:
    flow = sa.Dataflow("sums")
    flow.source("numbers", feed).key_by(lambda v: v % 2).process("sum", Sum).sink("out", sink or ListSink())
    return flow


class Gate(sa.Operator[int, int]):
    """Holds up every record, and with it every checkpoint."""

    opened: asyncio.Event
    waiting: asyncio.Event

    def open(self, ctx: sa.OperatorContext) -> None:
        self.opened, self.waiting = ctx.resources["opened"], ctx.resources["waiting"]

    async def process(self, value: int, ctx: sa.Context[None, int]) -> None:
        self.waiting.set()
        await self.opened.wait()
        ctx.emit(value)


class Held:
    """A job whose savepoints wait for `opened`."""

    def __init__(self) -> None:
        self.opened, self.waiting = asyncio.Event(), asyncio.Event()
        self.feed = Feed()
        self.feed.put(1)
        self.flow = sa.Dataflow("held")
        self.flow.source("numbers", self.feed).process("gate", Gate).sink("out", ListSink())

    @asynccontextmanager
    async def running(self, folder: Path) -> AsyncIterator[tuple[sa.JobHandle, "Api"]]:
        resources = {"opened": self.opened, "waiting": self.waiting}
        async with sa.start(self.flow, config(folder), resources=resources) as job, asked(job) as api:
            await self.waiting.wait()
            yield job, api


def config(folder: Path) -> sa.Config:
    return sa.Config(parallelism=2, checkpoints=sa.Checkpoints(str(folder / "stored"), interval=dt.timedelta(hours=1)))


class Api:
    def __init__(self, client: httpx.AsyncClient, path: str) -> None:
        self.client = client
        self.path = path

    async def get(self, path: str = "") -> Any:
        answer = await self.client.get(self.path + path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(self, path: str, body: Any = None) -> Any:
        answer = await self.client.post(self.path + path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def refused(self, path: str, body: Any = None) -> tuple[int, str, str]:
        return refusal(await self.client.post(self.path + path, json=body))


def refusal(answer: httpx.Response) -> tuple[int, str, str]:
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["message"]


@asynccontextmanager
async def asked(job: sa.JobHandle) -> AsyncIterator[Api]:
    async with steered(job, target="jobs:flow"), client_of(socket_of(job)) as client:
        yield Api(client, f"/v1/jobs/{job.name}")


@asynccontextmanager
async def client_of(path: str) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.AsyncHTTPTransport(uds=path)
    async with httpx.AsyncClient(transport=transport, base_url="http://job", timeout=PATIENCE) as client:
        yield client


def socket_of(job: sa.JobHandle) -> str:
    jobs, _ = registry.running()
    return registry.find(job.name, jobs).socket


@asynccontextmanager
async def running(folder: Path, feed: Feed | None = None) -> AsyncIterator[tuple[sa.JobHandle, Api]]:
    async with sa.start(flow_of(feed or Feed()), config(folder)) as job, asked(job) as api:
        yield job, api


def under_way(what: str) -> Callable[[], bool]:
    return lambda: any(what in task.get_name() for task in asyncio.all_tasks())


# ------------------------------------------------------------------------------------------------------------- telling
async def test_status(tmp_path: Path) -> None:
    feed = Feed()
    async with running(tmp_path, feed) as (job, api):
        feed.put(1, 2, 3)
        await until(lambda: sum(counts_of(job, "sum")) == 3)
        status = await api.get()
        (summary,) = (await api.client.get("/v1/jobs")).json()["jobs"]
    assert summary.items() <= {**status, "uptime_seconds": summary["uptime_seconds"]}.items()
    assert (status["name"], status["status"], status["stopping"]) == ("sums", "running", False)
    assert (status["restarts"], status["last_checkpoint"], status["last_failure"]) == (0, None, None)
    assert status["storage"] == (tmp_path / "stored").as_uri() and status["target"] == "jobs:flow"
    operators = [(each["uid"], each["parallelism"], each["records_in"]) for each in status["operators"]]
    assert operators == [("numbers", 2, 0), ("sum", 2, 3), ("out", 2, 3)]
    subtasks = {each["id"]: each for each in status["subtasks"]}
    assert subtasks.keys() == {"numbers[0]", "numbers[1]", "sum[0]", "sum[1]"}
    assert sum(subtasks[f"sum[{n}]"]["nodes"]["sum"]["records_in"] for n in (0, 1)) == 3
    assert subtasks["sum[0]"]["capacity"] > 0 and subtasks["sum[0]"]["blocked"] == []


def counts_of(job: sa.JobHandle, uid: str) -> list[int]:
    subtasks = job.metrics()["subtasks"].values()
    return [subtask["nodes"][uid]["records_in"] for subtask in subtasks if uid in subtask["nodes"]]


async def test_history_of_checkpoints(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, api):
        first = await api.post("/checkpoints")
        second = await api.post("/savepoints", {"uri": str(tmp_path / "saved")})
        assert (first["kind"], second["kind"]) == ("checkpoint", "savepoint")
        assert second["uri"] == (tmp_path / "saved").as_uri()
        assert second["time_ms"] >= first["time_ms"] > 0
        assert (await api.get("/checkpoints"))["checkpoints"] == [second, first]
        assert (await api.get())["last_checkpoint"] == second


async def test_a_failure_is_told_while_the_job_goes_on(tmp_path: Path) -> None:
    feed = Feed()
    restart = sa.Restart.fixed(dt.timedelta(milliseconds=1), attempts=1)
    flow = sa.Dataflow("sums")
    flow.source("numbers", feed).map(lambda value: 1 // value).sink("out", ListSink())
    async with sa.start(flow, sa.Config(restart=restart), on_exit="cancel") as job, asked(job) as api:
        feed.put(0)
        await until(lambda: job.restarts == 1)
        feed.values[0].clear()
        status = await api.get()
    assert status["restarts"] == 1 and "ZeroDivisionError" in status["last_failure"]


async def test_metrics_of_the_user_keep_nothing_from_being_told() -> None:
    """Neither one that fails, nor one that is called like ours."""

    class Measuring(sa.Operator[int, int]):
        def open(self, ctx: sa.OperatorContext) -> None:
            ctx.metrics.gauge("broken", lambda: 1 / 0)
            ctx.metrics.counter("records_in").inc(0.5)

        def process(self, value: int, ctx: sa.Context[None, int]) -> None:
            ctx.emit(value)

    flow, feed = sa.Dataflow("sums"), Feed()
    flow.source("numbers", feed).process("measuring", Measuring).sink("out", ListSink())
    async with sa.start(flow, on_exit="cancel") as job, asked(job) as api:
        feed.put(1, 2, 3)
        await until(lambda: job.metrics()["subtasks"]["numbers[0]"]["nodes"]["out"]["records_in"] == 3)
        status = await api.get()
    counts = {each["uid"]: each["records_in"] for each in status["operators"]}
    assert counts["measuring"] == 3 and status["status"] == "running"


# ------------------------------------------------------------------------------------------------------------ steering
async def test_stop_is_answered_when_the_job_has_finished(tmp_path: Path) -> None:
    feed, sink = Feed(), ListSink[int]()
    feed.put(2)
    async with sa.start(flow_of(feed, sink), config(tmp_path)) as job, asked(job) as api:
        ended = await api.post("/stop", {"savepoint": (tmp_path / "saved").as_uri()})
        assert (job.status, sink.values) == ("finished", [2])
        assert (ended["name"], ended["status"], ended["checkpoint"]["kind"]) == ("sums", "finished", "savepoint")
        assert await api.post("/stop") == {"name": "sums", "status": "finished", "checkpoint": None}
        status, code, message = await api.refused("/stop", {"savepoint": str(tmp_path / "another")})
        assert (status, code) == (409, "job-not-running") and "no savepoint was taken" in message
    feed.put(2)
    feed.end()
    await sa.run(flow_of(feed, sink), config(tmp_path), restore=ended["checkpoint"]["uri"])
    assert sink.values == [2, 4]


async def test_stop_without_checkpoints() -> None:
    async with sa.start(flow_of(Feed())) as job, asked(job) as api:
        status, code, message = await api.refused("/checkpoints")
        assert (status, code) == (422, "refused") and "checkpoints are off" in message
        assert await api.post("/stop", {"drain": True}) == {"name": "sums", "status": "finished", "checkpoint": None}


async def test_cancel(tmp_path: Path) -> None:
    async with running(tmp_path) as (job, api):
        taken = await api.post("/checkpoints")
        assert await api.post("/cancel") == {"name": "sums", "status": "cancelled", "checkpoint": taken}
        assert job.status == "cancelled"
        status, code, _ = await api.refused("/checkpoints")
        assert (status, code) == (409, "job-not-running")


async def test_whoever_waits_is_told_when_the_job_is_cancelled(tmp_path: Path) -> None:
    held = Held()
    async with held.running(tmp_path) as (job, api):
        waiting = asyncio.create_task(api.refused("/savepoints", {"uri": str(tmp_path / "saved")}))
        await until(under_way("savepoint"))
        await job.cancel()
        status, code, message = await waiting
        assert status == 409 and code in ("job-not-running", "checkpoint-failed") and message


async def test_a_client_that_goes_away_leaves_its_savepoint_to_be_taken(tmp_path: Path) -> None:
    held, saved = Held(), tmp_path / "saved"
    async with held.running(tmp_path) as (job, _):
        body = json.dumps({"uri": str(saved)}).encode()
        _, writer = await asyncio.open_unix_connection(socket_of(job))
        head = "POST /v1/jobs/held/savepoints HTTP/1.1\r\nhost: job\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        await until(under_way("savepoint"))
        writer.transport.abort()
        await writer.wait_closed()
        held.opened.set()
        await until(lambda: job.checkpoints)
    assert job.checkpoints[0].savepoint and job.checkpoints[0].uri == saved.as_uri()


async def test_a_stop_that_is_under_way_keeps_its_savepoint(tmp_path: Path) -> None:
    """Such as when a service manager sends SIGTERM meanwhile."""
    held, saved = Held(), tmp_path / "saved"
    async with held.running(tmp_path) as (job, api):
        first = asyncio.create_task(api.post("/stop", {"savepoint": str(saved)}))
        await until(lambda: job.stopping)
        assert (await api.get())["stopping"] is True
        status, code, message = await api.refused("/stop", {"savepoint": str(tmp_path / "another")})
        assert (status, code) == (409, "checkpoint-failed") and "is stopping already" in message
        second = asyncio.create_task(job.stop())
        await until(under_way("stop"))
        held.opened.set()
        assert (await first)["checkpoint"]["uri"] == await second == saved.as_uri()


async def test_of_stops_at_once_the_first_is_carried_out(tmp_path: Path) -> None:
    """Though it is still looking whether the folder of its savepoint is empty when the others come."""
    async with running(tmp_path) as (_, api):
        posts = [{"savepoint": str(tmp_path / "first")}, {"savepoint": str(tmp_path / "second")}, {"drain": True}, {}]
        answers = [api.client.post(f"{api.path}/stop", json=post) for post in posts]
        first, second, third, fourth = await asyncio.gather(*answers)
    assert first.json()["checkpoint"]["uri"] == (tmp_path / "first").as_uri()
    for answer in second, third:
        assert refusal(answer)[:2] == (409, "checkpoint-failed") and "is stopping already" in refusal(answer)[2]
    assert fourth.json() == first.json() and not (tmp_path / "second").exists()


async def test_of_stops_at_once_the_second_is_carried_out_where_the_first_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    async with running(tmp_path) as (_, api):
        refused, stopped = await asyncio.gather(
            api.refused("/stop", {"savepoint": str(tmp_path / "full")}), api.post("/stop")
        )
    assert refused[:2] == (422, "refused") and stopped["status"] == "finished"


async def test_a_stop_is_not_done_where_the_job_is_cancelled_meanwhile(tmp_path: Path) -> None:
    held = Held()
    async with held.running(tmp_path) as (job, api):
        first = asyncio.create_task(api.refused("/stop"))
        await until(lambda: job.stopping)
        second = asyncio.create_task(api.refused("/stop"))
        await until(lambda: sum("held: stop" in task.get_name() for task in asyncio.all_tasks()) == 2)
        await job.cancel()
        assert (await first)[0] == 409
        assert await second == (409, "job-not-running", "job 'held' was cancelled before it had stopped")


# ------------------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("method", "path", "sent", "status", "code", "told"),
    [
        ("GET", "/v1/jobs/orders", {}, 404, "unknown-job", "there is no job 'orders' here, but: sums"),
        ("GET", "/v2/jobs", {}, 404, "not-found", "Not Found"),
        ("PUT", "/v1/jobs/sums", {}, 405, "method-not-allowed", "Method Not Allowed"),
        ("GET", "/v1/jobs/sums/stop", {}, 405, "method-not-allowed", "Method Not Allowed"),
        ("POST", "/v1/jobs/sums/stop", {"json": {"savepiont": "/x"}}, 400, "invalid-request", "`savepiont`"),
        ("POST", "/v1/jobs/sums/checkpoints", {"json": {"uri": "/x"}}, 400, "invalid-request", "`uri`"),
        ("POST", "/v1/jobs/sums/stop", {"json": {"drain": 1}}, 400, "invalid-request", "`$.drain`"),
        ("POST", "/v1/jobs/sums/stop", {"json": [1]}, 400, "invalid-request", "Expected `object`"),
        ("POST", "/v1/jobs/sums/savepoints", {}, 400, "invalid-request", "missing required field `uri`"),
        ("POST", "/v1/jobs/sums/savepoints", {"json": {"uri": "here"}}, 400, "invalid-request", "absolute path"),
        ("POST", "/v1/jobs/sums/savepoints", {"json": {"uri": ""}}, 400, "invalid-request", "absolute path"),
        ("POST", "/v1/jobs/sums/savepoints", {"json": {"uri": "nightly:1"}}, 400, "invalid-request", "absolute path"),
        ("POST", "/v1/jobs/sums/savepoints", {"json": {"uri": "file://[x"}}, 422, "refused", "file:///absolute/path"),
        ("POST", "/v1/jobs/sums/savepoints", {"json": {"uri": "/proc/x"}}, 409, "checkpoint-failed", "/proc"),
        ("POST", "/v1/jobs/sums/savepoints", {"json": {"uri": "x://y"}}, 422, "refused", "x://"),
        ("POST", "/v1/jobs/sums/stop", {"content": b"{}"}, 415, "unsupported-media-type", "application/json"),
        (
            "POST", "/v1/jobs/sums/stop", {"content": b"{", "headers": {"content-type": "application/json"}},
            400, "invalid-request", "truncated",
        ),
        ("POST", "/v1/jobs/sums/stop", {"content": b" " * (LONGEST_BODY + 1)}, 413, "too-large", str(LONGEST_BODY)),
    ],
)  # fmt: skip
async def test_refusals(
    tmp_path: Path, method: str, path: str, sent: dict[str, Any], status: int, code: str, told: str
) -> None:
    async with running(tmp_path) as (job, api):
        answer = await api.client.request(method, path, **sent)
        assert refusal(answer)[:2] == (status, code), answer.text
        assert told in refusal(answer)[2]
        assert job.status == "running" and not job.stopping


async def test_a_refusal_of_the_server_itself_is_an_answer_like_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 1)
    async with running(tmp_path) as (job, api):
        assert (await api.get())["name"] == "sums"  # its connection stays open
        for sent, told in ((b"NONSENSE\r\n\r\n", b'400 Bad Request|"bad-request"'), (GET, b'503 |"busy"')):
            reader, writer = await asyncio.open_unix_connection(socket_of(job))
            writer.write(sent)
            answer = await reader.read()  # to its end: it is hung up
            writer.close()
            assert b"content-type: application/json\r\n" in answer
            assert all(part in answer for part in told.split(b"|")), answer
        assert (await api.get())["name"] == "sums"


GET = b"GET /v1/jobs HTTP/1.1\r\nhost: job\r\n\r\n"


async def test_a_body_without_end_is_not_read_to_the_end(tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 8192

    async with running(tmp_path) as (_, api):
        try:
            answer = await api.client.post(f"{api.path}/stop", content=endless())
        except (httpx.WriteError, httpx.ReadError):
            return  # it was hung up on, in the middle of what it sent
        assert refusal(answer)[:2] == (413, "too-large")


async def test_an_error_of_ours_is_an_answer_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(self: sa.JobHandle) -> None:
        raise KeyError("what")

    monkeypatch.setattr(sa.JobHandle, "checkpoint", broken)
    async with running(tmp_path) as (_, api):
        assert await api.refused("/checkpoints") == (500, "internal-error", "KeyError: 'what'")
    assert "POST /v1/jobs/{name}/checkpoints failed" in caplog.text


# -------------------------------------------------------------------------------------------------------------- leaving
@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("how", ["finished", "left", "cancelled"])
def test_nothing_is_left(
    tmp_path: Path, registry_folder: Path, caplog: pytest.LogCaptureFixture, factory: Callable[[], Any], how: str
) -> None:
    caplog.set_level(logging.INFO)

    async def job_with_clients() -> None:
        tasks = asyncio.all_tasks()
        async with sa.start(flow_of(Feed()), config(tmp_path)) as job, asked(job) as api:
            path = socket_of(job)
            await api.get()  # a connection that is kept alive
            _, half = await asyncio.open_unix_connection(path)
            half.write(b"POST /v1/jobs/sums/stop HTTP/1.1\r\nhost: job\r\ncontent-length: 100\r\n\r\n{")
            _, silent = await asyncio.open_unix_connection(path)
            await half.drain()
            await end(job, api, how)
        for writer in (half, silent):
            writer.close()
        assert asyncio.all_tasks() == tasks
        assert caplog.messages and [record for record in caplog.records if record.levelno > logging.INFO] == []
        assert list(registry_folder.iterdir()) == []

    before = open_files()
    run(factory, job_with_clients())
    assert open_files() == before


async def end(job: sa.JobHandle, api: Api, how: str) -> None:
    if how == "finished":
        await api.post("/stop")
    elif how == "cancelled":
        await job.cancel()


def run(factory: Callable[[], asyncio.AbstractEventLoop], work: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE):
            await work

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(bounded())


async def test_leaving_waits_for_an_answer_only_so_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "GRACE", 0.05)
    held = Held()
    resources = {"opened": held.opened, "waiting": held.waiting}
    async with sa.start(held.flow, config(tmp_path), resources=resources) as job, AsyncExitStack() as clients:
        async with steered(job):
            await held.waiting.wait()
            client = await clients.enter_async_context(client_of(socket_of(job)))
            body = {"uri": str(tmp_path / "saved")}
            asking = asyncio.create_task(client.post("/v1/jobs/held/savepoints", json=body))
            await until(under_way("savepoint"))
        assert not under_way("savepoint")() and job.status == "running"
        with pytest.raises(httpx.TransportError):
            await asking
        held.opened.set()


async def test_the_logging_of_a_host_stays_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The service around the job may run under uvicorn itself."""
    loggers = [logging.getLogger(name) for name in ("uvicorn", "uvicorn.error", "uvicorn.access")]
    caplog.set_level(logging.INFO)
    before = [(logger.level, logger.handlers[:], logger.propagate) for logger in loggers]
    async with running(tmp_path) as (_, api):
        await api.get()
    assert [(logger.level, logger.handlers, logger.propagate) for logger in loggers] == before
    assert [record for record in caplog.records if record.name.startswith("uvicorn")] == []


async def test_a_job_that_can_t_be_steered_runs_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(file))
    monkeypatch.setattr("tempfile.tempdir", str(file))
    async with sa.start(flow_of(Feed()), config(tmp_path)) as job, steered_if_possible(job):
        assert job.status == "running"
    assert "sums: this job can't be steered from outside: " in caplog.text


async def test_where_the_web_libraries_are_missing_a_job_runs_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "streamactors.observe.server", None)
    async with sa.start(flow_of(Feed()), config(tmp_path)) as job, steered_if_possible(job):
        assert registry.running() == ([], [])
        with pytest.raises(ControlUnavailable):
            await steered(job).__aenter__()
    assert "pip install 'streamactors[web]'" in caplog.text


async def test_two_jobs_of_one_process_are_told_apart(tmp_path: Path) -> None:
    async with running(tmp_path / "a"), sa.start(flow_of(Feed()), config(tmp_path / "b")) as other, steered(other):
        jobs, _ = registry.running()
        assert len(jobs) == 2
        found = registry.find((tmp_path / "b" / "stored").as_uri(), jobs)
        async with client_of(found.socket) as client:
            assert (await client.post("/v1/jobs/sums/stop")).json()["status"] == "finished"
        assert other.status == "finished"


async def test_anyone_who_connects_at_the_last_moment_is_hung_up_on(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as late:
        late.setblocking(False)
        async with sa.start(flow_of(Feed()), config(tmp_path)) as job, steered(job):
            late.connect(socket_of(job))
        late.setblocking(True)
        late.settimeout(PATIENCE)
        try:
            assert late.recv(1) == b""
        except ConnectionResetError:
            pass
