"""The control API and the metrics over the network: real jobs, a real server on loopback."""

import asyncio
import datetime as dt
import itertools
import json
import socket
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

import streamactors as sa
from streamactors.config import resolve
from streamactors.errors import ControlUnavailable
from streamactors.observe import events, server, views
from streamactors.observe.guard import Access
from streamactors.observe.network import Address
from streamactors.observe.registry import Entry
from streamactors.service import Served, control_app, served
from tests.leaks import open_files
from tests.observe.jobs import FIRST_MS, Api, client_at, config, flow_of, of, running, taken
from tests.runtime.feeds import PATIENCE, Feed, until
from tests.state.manual_clock import ManualClock

pytestmark = pytest.mark.slow

SECRET = "a-token-of-the-owner"


# ------------------------------------------------------------------------------------------------------------- telling
async def test_graph_subtasks_and_channels(tmp_path: Path) -> None:
    feed = Feed()
    async with running(tmp_path, feed) as (job, api):
        feed.put(1, 2, 3)
        await taken(job, 3)
        graph = await api.get("/graph")
        subtasks = (await api.get("/subtasks"))["subtasks"]
        one = await api.get("/subtasks/sum/1")
    assert [node["name"] for node in graph["nodes"]] == ["numbers", "sum", "same", "out"]
    edges = {(edge["upstream"], edge["downstream"]): edge for edge in graph["edges"]}
    assert edges["numbers", "sum"]["partitioning"] == "key group" and edges["numbers", "sum"]["channels"] == 4
    assert edges["map-2", "out"]["partitioning"] is None
    assert {each["id"] for each in subtasks} == {"numbers[0]", "numbers[1]", "sum[0]", "sum[1]"}
    nodes = [each["nodes"]["sum"] for each in subtasks if each["vertex"] == "sum"]
    assert sum(node["counters"]["seen"] for node in nodes) == 3
    assert {node["gauges"]["broken"] for node in nodes} == {None} and {node["gauges"]["fixed"] for node in nodes} == {
        1.5
    }
    assert sum(sum(node["histograms"]["size"]["counts"]) for node in nodes) == 3
    assert sum(node["entries"]["total"] for node in nodes) == 2
    assert one["subtask"]["index"] == 1
    assert [channel["sender"] for channel in one["channels"]] == ["numbers[0]", "numbers[1]"]
    assert all(channel["queued"] == 0 < channel["capacity"] for channel in one["channels"])


async def test_parts_of_a_checkpoint(tmp_path: Path) -> None:
    feed = Feed()
    async with running(tmp_path, feed) as (job, api):
        feed.put(*range(10))
        await taken(job, 10)
        info = await job.checkpoint()
        listed = await api.get("/checkpoints")
        detail = await api.get(f"/checkpoints/{info.id}")
        missing = await api.client.get("/api/v1/jobs/sums/checkpoints/999")
    assert (listed["completed"], listed["failed"], listed["under_way"]) == (1, 0, [])
    parts = {part["subtask"]: part for part in detail["subtasks"]}
    assert parts.keys() == {"numbers[0]", "numbers[1]", "sum[0]", "sum[1]"}
    assert all(0 < part["synchronous_seconds"] <= part["seconds"] for part in parts.values())
    assert all(0 <= part["alignment_seconds"] <= part["seconds"] for part in parts.values())
    assert all(0 < part["asynchronous_seconds"] <= part["seconds"] for part in parts.values())
    stored = sum(parts[f"sum[{n}]"]["operators"].get("sum", 0) for n in (0, 1))
    assert stored > 0 and stored == sum(part["state_bytes"] for part in parts.values())
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "unknown-checkpoint"


async def test_watermarks(tmp_path: Path) -> None:
    feed = Feed(2)
    async with running(tmp_path, feed) as (job, api):
        feed.put(1, 2, 30)
        feed.put(4, 10, split=1)
        await taken(job, 5)
        operators = {each["uid"]: each for each in (await api.get("/watermarks"))["operators"]}
    source = operators["numbers"]
    assert source["skew_ms"] == 20_000 and source["watermark_ms"] == FIRST_MS + 10_000 - 1
    assert source["lag_ms"] > 0
    assert [each["watermark_ms"] for each in source["subtasks"]] == [FIRST_MS + 29_999, FIRST_MS + 9_999]
    assert operators["sum"]["watermark_ms"] == source["watermark_ms"] and operators["sum"]["skew_ms"] == 0


async def test_exceptions_name_the_record(tmp_path: Path) -> None:
    feed = Feed()
    async with running(tmp_path, feed) as (job, api):
        await job.checkpoint()
        feed.put(1, -1)
        await until(lambda: job.restarts == 1)
        feed.values[0].clear()
        told = await api.get("/exceptions")
    failure = told["exceptions"][-1]
    assert (failure["kind"], failure["operator"], failure["attempt"]) == ("RecordFailed", "sum", 1)
    assert failure["key"] == "1" and failure["origin"] == "0@1"
    assert "ValueError: negative" in failure["traceback"] and failure["time_ms"] > 0


async def test_checkpoints_under_way_and_given_up_are_told(tmp_path: Path) -> None:
    """A step in the middle of a record holds them up."""
    flow, opened, feed = sa.Dataflow("sums"), asyncio.Event(), Feed()

    async def held(value: int) -> int:
        await opened.wait()
        return value

    flow.source("numbers", feed).rebalance().map(held, name="held").sink("out", _sink())
    settings = config(tmp_path, timeout=dt.timedelta(seconds=1.5), tolerable_failures=10)
    async with (
        sa.start(flow, settings, on_exit="cancel") as job,
        served(job, "127.0.0.1:0") as where,
        client_at(where) as api,
    ):
        feed.put(1)
        await until(lambda: sum(each["nodes"]["numbers"]["records_out"] for each in of(job, "numbers")))
        asked = asyncio.create_task(job.checkpoint())
        await until(lambda: job.checkpoints_under_way and len(job.checkpoints_under_way[0].acknowledged) >= 2)
        (under_way,) = (await api.get("/checkpoints"))["under_way"]
        with pytest.raises(sa.CheckpointFailed):
            await asked
        told = await api.get("/checkpoints")
        opened.set()
    assert under_way["acknowledged"] >= 2 and under_way["waiting_for"]
    assert told["failed"] == 1 and told["given_up"][0]["id"] == under_way["id"] and told["given_up"][0]["reason"]


async def test_settings_hide_secrets(tmp_path: Path) -> None:
    async with running(tmp_path, Feed(), storage_options={"auto_mkdir": "hush-hush"}) as (_, api):
        answer = await api.client.get("/api/v1/jobs/sums/config")
    told = {each["name"]: each["value"] for each in answer.json()["settings"]}
    assert told["checkpoints.storage_options.auto_mkdir"] == "***" and "hush" not in answer.text
    assert told["parallelism"] == "2"


async def test_a_slow_sink_is_seen_as_back_pressure(tmp_path: Path) -> None:
    """Who waits for it is back-pressured, and it itself is busy."""
    flow, opened, feed = sa.Dataflow("sums"), asyncio.Event(), Feed()

    async def slow(value: int) -> int:
        await opened.wait()
        return value

    flow.source("numbers", feed).rebalance().map(slow, name="slow").sink("out", _sink())
    async with (
        sa.start(flow, sa.Config(mailbox_capacity=8), on_exit="cancel") as job,
        served(job, "127.0.0.1:0") as where,
        client_at(where) as api,
    ):
        feed.put(*range(1000))
        await until(lambda: of(job, "numbers")[0]["unsent"])
        vertices = await seen_held_back(api, "numbers")
        (channel,) = (await api.get(f"/subtasks/{_vertex_of(vertices)}/0"))["channels"]
        opened.set()
    assert vertices["numbers"]["backpressured"] > 0.5 > vertices["numbers"]["busy"]
    assert vertices[_vertex_of(vertices)]["busy"] > 0.5
    assert channel["queued"] == channel["capacity"] == 8


async def seen_held_back(api: Api, vertex: str) -> dict[str, Any]:
    """How all spend their time since the look before, once that vertex spends most of it so: its start is over."""
    async with asyncio.timeout(PATIENCE):
        while True:
            vertices = {each["vertex"]: each for each in (await api.get("/backpressure"))["vertices"]}
            if vertices[vertex]["backpressured"] > 0.9:
                return vertices
            await asyncio.sleep(0.05)


def _vertex_of(vertices: dict[str, Any]) -> str:
    return next(name for name in vertices if name != "numbers")


def _sink() -> Any:
    from connectors.memory import ListSink

    return ListSink()


# -------------------------------------------------------------------------------------------------------------- events
async def test_events_come_at_most_twice_a_second_and_end_with_the_job(tmp_path: Path) -> None:
    feed = Feed()
    async with running(tmp_path, feed) as (_, api):
        ticks = []
        async with api.client.stream("GET", "/api/v1/jobs/sums/events") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    ticks.append(json.loads(line.removeprefix("data: ")))
                    if len(ticks) == 2:
                        await api.post("/cancel")
    assert [tick["job"]["status"] for tick in ticks][-1] == "cancelled" and ticks[0]["job"]["status"] == "running"
    apart = [later["time_ms"] - earlier["time_ms"] for earlier, later in itertools.pairwise(ticks)]
    # By the wall clock, and the process may have been held up between the look at its other one and the reading.
    assert min(apart) >= events.EVERY * 1000 / 2
    assert {vertex["vertex"] for vertex in ticks[0]["vertices"]} == {"numbers", "sum"}


async def test_a_reading_has_the_time_at_which_it_was_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes to sum it up: rates are made of both."""
    clock, sum_up = ManualClock(), views._vertices

    def slowly(*given: Any) -> Any:
        clock.advance(0.3)
        return sum_up(*given)

    monkeypatch.setattr(views, "_vertices", slowly)
    async with running(tmp_path, Feed()) as (job, _):
        counted = clock.time_ms()
        assert (await views.JobView(job, Entry(flow="sums", pid=1, started_ms=0), clock).tick()).time_ms == counted


async def test_listeners_share_one_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, Feed()) as (job, api):
        reads = _count_reads(job, monkeypatch)
        numbers = await asyncio.gather(*(_first_events(api, 2) for _ in range(5)))
    seen = {number for each in numbers for number in each}
    assert reads() <= len(seen) + 2, "who comes late makes it go on, and each is given what the others are"


def _count_reads(job: sa.JobHandle, monkeypatch: pytest.MonkeyPatch) -> Any:
    calls: list[int] = []
    read = job.metrics

    def counting() -> Any:
        calls.append(1)
        return read()

    monkeypatch.setattr(job, "metrics", counting)
    return lambda: len(calls)


async def _first_events(api: Api, count: int) -> list[str]:
    numbers: list[str] = []
    async with api.client.stream("GET", "/api/v1/jobs/sums/events") as answer:
        async for line in answer.aiter_lines():
            numbers += [line] if line.startswith("id: ") else []
            if len(numbers) == count:
                break
    return numbers


async def test_too_many_listeners_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOST_STREAMS", 1)
    async with running(tmp_path, Feed()) as (_, api), api.client.stream("GET", "/api/v1/jobs/sums/events") as first:
        await anext(first.aiter_lines())
        refused = await api.client.get("/api/v1/jobs/sums/events")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "busy")


async def test_nothing_is_left_with_a_stream_open(tmp_path: Path) -> None:
    """The stream ends with the block, and with it every connection; the port is free again."""
    async with AsyncExitStack() as outer, sa.start(flow_of(Feed()), config(tmp_path)) as job:
        before, tasks = open_files(), asyncio.all_tasks()
        async with served(job, "127.0.0.1:0") as where:
            api = await outer.enter_async_context(client_at(where))
            answer = await outer.enter_async_context(api.client.stream("GET", "/api/v1/jobs/sums/events"))
            lines = answer.aiter_lines()
            await anext(lines)
        async with asyncio.timeout(PATIENCE):
            assert [line async for line in lines if line.startswith("id: 9")] == []
        await until(lambda: asyncio.all_tasks() <= tasks)
        await api.client.aclose()
        await until(lambda: open_files() == before)
        port = int(where.url.rpartition(":")[2])
        async with served(job, f"127.0.0.1:{port}") as again:
            assert again.url == where.url


# ------------------------------------------------------------------------------------------------------------ steering
async def test_changes_need_the_token(tmp_path: Path) -> None:
    async with running(tmp_path, Feed()) as (job, api):
        path = "/api/v1/jobs/sums/checkpoints"
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": f"Basic {api.where.token}"},
            {"authorization": api.where.token},
            {"authorization": f"Bearer {api.where.token}x"},
        ):
            refused = await api.client.post(path, json={}, headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "unauthorized")
            assert refused.headers["www-authenticate"].startswith("Bearer")
        assert job.checkpoint_counts == (0, 0)
        assert (await api.post("/checkpoints")).status_code == 200 and len(job.checkpoints) == 1
        assert (await api.post("/cancel")).json()["status"] == "cancelled"


async def test_savepoints_go_below_the_named_folders(tmp_path: Path) -> None:
    async with running(tmp_path, Feed()) as (job, api):
        for uri in (str(tmp_path / "elsewhere"), "../elsewhere", f"{tmp_path}/saved/../elsewhere", "s3://bucket/x"):
            refused = await api.post("/savepoints", {"uri": uri})
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "savepoint-refused"), uri
        escaped = await api.post("/savepoints", {"uri": "%2e%2e/elsewhere"})
        assert escaped.json()["uri"] == f"{tmp_path.as_uri()}/saved/%252e%252e/elsewhere"
        named = (await api.post("/savepoints", {"uri": "one"})).json()
        whole = (await api.post("/savepoints", {"uri": f"{tmp_path.as_uri()}/saved/two"})).json()
        refused = await api.post("/stop", {"savepoint": str(tmp_path / "elsewhere")})
        assert refused.status_code == 403 and not job.stopping
        ended = (await api.post("/stop", {"savepoint": "last"})).json()
    assert not (tmp_path / "elsewhere").exists()
    assert named["uri"] == f"{tmp_path.as_uri()}/saved/one" and whole["uri"].endswith("/saved/two")
    assert ended["checkpoint"]["uri"].endswith("/saved/last")


async def test_no_savepoints_where_no_folder_is_named(tmp_path: Path) -> None:
    async with (
        sa.start(flow_of(Feed()), config(tmp_path), on_exit="cancel") as job,
        served(job, "127.0.0.1:0") as where,
        client_at(where) as api,
    ):
        refused = await api.post("/savepoints", {"uri": "one"})
    assert refused.status_code == 403 and "--savepoints" in refused.json()["error"]["message"]


# ------------------------------------------------------------------------------------------------------- who may ask
@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"host": "evil.example"}, "unknown-host"),
        ({"host": "evil.example:8077"}, "unknown-host"),
        ({"host": "127.0.0.1.evil.example"}, "unknown-host"),
        ({"host": "[::1"}, "unknown-host"),
        ({"origin": "http://evil.example"}, "foreign-origin"),
        ({"origin": "null"}, "foreign-origin"),
        ({"sec-fetch-site": "cross-site"}, "foreign-origin"),
        ({"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"}, "foreign-origin"),
    ],
)
async def test_what_other_sites_send_is_refused(tmp_path: Path, headers: dict[str, str], code: str) -> None:
    async with running(tmp_path, Feed()) as (_, api):
        refused = await api.client.get("/api/v1/jobs", headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, code)
    assert not [name for name in refused.headers if name.startswith("access-control-")]


async def test_own_pages_and_links_are_answered(tmp_path: Path) -> None:
    async with running(tmp_path, Feed()) as (_, api):
        port = api.where.url.rpartition(":")[2]
        for headers in (
            {"origin": api.where.url, "sec-fetch-site": "same-origin"},
            {"host": f"localhost:{port}", "origin": f"http://localhost:{port}"},
            {"host": "192.168.1.7:8077"},
            {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
        ):
            answer = await api.client.get("/api/v1/jobs", headers=headers)
            assert answer.status_code == 200, headers
            assert not [name for name in answer.headers if name.startswith("access-control-")]
        asked = {"origin": "http://evil.example", "access-control-request-method": "POST"}
        preflight = await api.client.options("/api/v1/jobs/sums/cancel", headers=asked)
        assert preflight.status_code == 403
        assert not [name for name in preflight.headers if name.startswith("access-control-")]


async def test_bodies_and_heads_are_bounded(tmp_path: Path) -> None:
    async with running(tmp_path, Feed()) as (_, api):
        long = await api.post("/savepoints", {"uri": "x" * 100_000})
        assert (long.status_code, long.json()["error"]["code"]) == (413, "too-large")
        form = await api.client.post(
            "/api/v1/jobs/sums/cancel", data={"a": "b"}, headers={"authorization": f"Bearer {api.where.token}"}
        )
        assert form.status_code == 415
        with suppress(httpx.TransportError):  # the connection is closed while the rest is being sent
            headed = await api.client.get("/api/v1/jobs", headers={"x-long": "x" * 1_000_000})
            assert headed.status_code == 400
        assert (await api.get())["status"] == "running"


async def test_who_sends_too_slowly_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the head, or in the body; whoever only waits for events is not."""
    monkeypatch.setattr(server, "HEAD_WITHIN", 0.2)
    async with running(tmp_path, Feed()) as (_, api):
        port = int(api.where.url.rpartition(":")[2])
        head = (
            f"POST /api/v1/jobs/sums/cancel HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {api.where.token}\r\n"
        )
        numbers = asyncio.create_task(_first_events(api, 3))
        for sent in ("", head, f"{head}content-length: 10\r\n\r\n{{"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent.encode())
            async with asyncio.timeout(PATIENCE):
                with suppress(ConnectionError):
                    assert await reader.read() == b""
            writer.close()
        assert len(await numbers) == 3
        assert (await api.get())["status"] == "running"


async def test_the_token_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMACTORS_TOKEN", SECRET)
    resolve(environ={"STREAMACTORS_TOKEN": SECRET})  # it is no setting
    async with (
        sa.start(flow_of(Feed()), config(tmp_path), on_exit="cancel") as job,
        served(job, "127.0.0.1:0") as where,
        client_at(where) as api,
    ):
        assert where == Served(where.url, SECRET, generated=False) and SECRET not in repr(where)
        assert (await api.post("/checkpoints")).status_code == 200


async def test_other_addresses_need_a_token_for_reading_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STREAMACTORS_TOKEN", raising=False)
    async with sa.start(flow_of(Feed()), config(tmp_path), on_exit="cancel") as job:
        with pytest.raises(sa.InvalidConfig, match="STREAMACTORS_TOKEN"):
            await _enter(served(job, "0.0.0.0:0"))
        async with served(job, "0.0.0.0:0", token=SECRET, hosts=["streams.internal"]) as where:
            url = where.url.replace("0.0.0.0", "127.0.0.1")
            async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
                for path in ("/api/v1/jobs", "/metrics", "/api/v1/openapi.json"):
                    assert (await client.get(path)).status_code == 401
                headers = {"authorization": f"Bearer {SECRET}", "host": "streams.internal"}
                assert (await client.get("/api/v1/jobs", headers=headers)).status_code == 200


async def test_an_address_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken_by_another:
        taken_by_another.bind(("127.0.0.1", 0))
        taken_by_another.listen()
        port = taken_by_another.getsockname()[1]
        async with sa.start(flow_of(Feed()), config(tmp_path), on_exit="cancel") as job:
            with pytest.raises(ControlUnavailable, match=f"127.0.0.1:{port} can't be listened on"):
                await _enter(served(job, f"127.0.0.1:{port}"))


async def _enter(serving: Any) -> None:
    async with serving:
        pytest.fail("it must not be served")


@pytest.mark.parametrize("listen", ["8077", "127.0.0.1", "example.com:80", "127.0.0.1:x", "127.0.0.1:70000", ":80"])
def test_what_is_no_address_is_refused(listen: str) -> None:
    with pytest.raises(sa.InvalidConfig, match="must be an address and a port"):
        Address.parse(listen)


def test_loopback_is_known() -> None:
    assert Address.parse("localhost:1").loopback and Address.parse("[::1]:1").loopback
    assert not Address.parse("0.0.0.0:1").loopback and not Address.parse("[::]:1").loopback


@pytest.mark.parametrize("token", ["short", "ünsafe-in-a-header-field"])
def test_weak_tokens_are_refused(token: str) -> None:
    with pytest.raises(sa.InvalidConfig, match="16 characters") as refused:
        Access(token)
    assert token not in str(refused.value)


# ----------------------------------------------------------------------------------------------------------- embedding
async def test_in_a_service_of_ones_own(tmp_path: Path) -> None:
    """Below a path; without a token nothing can be changed; before the job there is nothing to tell."""
    from starlette.applications import Starlette
    from starlette.routing import Mount

    jobs: list[sa.JobHandle] = []
    shown = control_app(lambda: jobs[-1] if jobs else None)
    steered = control_app(lambda: jobs[-1] if jobs else None, token=SECRET, hosts=["service"])
    app = Starlette(routes=[Mount("/streams", shown), Mount("/steer", steered)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost") as client:
        assert (await client.get("/streams/api/v1/jobs")).status_code == 503
        async with sa.start(flow_of(Feed()), config(tmp_path), on_exit="cancel") as job:
            jobs.append(job)
            assert (await client.get("/streams/api/v1/jobs")).json()["jobs"][0]["name"] == "sums"
            described = (await client.get("/streams/api/v1/openapi.json")).json()
            assert described["servers"] == [{"url": "/streams"}]
            refused = await client.post("/streams/api/v1/jobs/sums/checkpoints", json={})
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "read-only")
            headers = {"authorization": f"Bearer {SECRET}", "host": "service"}
            done = await client.post("/steer/api/v1/jobs/sums/checkpoints", json={}, headers=headers)
            assert done.status_code == 200
            assert (await client.get("/streams/api/v1/jobs", headers=headers)).status_code == 403


async def test_a_job_is_rescaled_and_its_graph_is_the_new_one(tmp_path: Path) -> None:
    feed = Feed(2)
    async with running(tmp_path, feed) as (job, api):
        feed.put(1, 2, 3, 4)
        await taken(job, 4)
        assert (await api.get())["last_rescale"] is None
        done = (await api.post("/rescale", {"parallelism": 3, "steps": {"sum": 4}})).json()
        assert (done["name"], done["changed"]) == ("sums", True)
        told = done["last_rescale"]
        assert (told["before"]["sum"], told["after"]["sum"], told["after"]["numbers"]) == (2, 4, 3)
        assert told["pause_seconds"] > 0 and told["time_ms"] > 0
        assert (await api.get())["restored_parallelism"] == {}
        again = (await api.post("/rescale", {"steps": {"sum": 4}})).json()
        assert again == {**done, "changed": False}
        refused = await api.post("/rescale", {"steps": {"total": 2}})
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "refused")
        assert (await api.post("/rescale", {"parallelism": 0})).status_code == 400
        assert (await api.post("/rescale")).status_code == 422
        status, graph = await api.get(), await api.get("/graph")
        assert status["last_rescale"] == told and (status["status"], status["restarts"]) == ("running", 0)
        assert {each["uid"]: each["parallelism"] for each in status["operators"]}["sum"] == 4
        assert {step["uid"]: step["parallelism"] for step in graph["nodes"]}["numbers"] == 3


async def test_a_rescaled_and_restored_job_tells_of_itself(tmp_path: Path) -> None:
    feed = Feed(2)
    async with running(tmp_path, feed) as (job, api):
        feed.put(1, 2, 3, 4)
        await taken(job, 4)
        saved = (await api.post("/stop", {"savepoint": "before"})).json()["checkpoint"]["uri"]
    more = sa.Config(parallelism=3, checkpoints=sa.Checkpoints(str(tmp_path / "other"), interval=dt.timedelta(hours=1)))
    async with (
        sa.start(flow_of(feed), more, restore=saved, on_exit="cancel") as job,
        served(job, "127.0.0.1:0") as where,
        client_at(where) as api,
    ):
        feed.put(5)
        await taken(job, 1)
        status, loads = await api.get(), await api.get("/backpressure")
    assert {each["uid"]: each["parallelism"] for each in status["operators"]}["sum"] == 3
    assert status["restored_parallelism"] == dict.fromkeys(("numbers", "sum", "map-2", "out"), 2)
    assert sum(each["entries"] for each in status["operators"]) == 2
    assert [len(each["subtasks"]) for each in loads["vertices"]] == [3, 3]
