"""`streamactors serve`: all jobs of this user behind one address."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

import streamactors as sa
from streamactors.observe.network import serving_all
from streamactors.service import steered
from tests.leaks import open_files
from tests.observe.jobs import Api, client_at, config, flow_of, taken
from tests.runtime.feeds import PATIENCE, Feed, until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("registry_folder")]


@asynccontextmanager
async def behind_a_gateway(folder: Path, feed: Feed) -> AsyncIterator[tuple[sa.JobHandle, Api]]:
    async with (
        sa.start(flow_of(feed), config(folder), on_exit="cancel") as job,
        steered(job),
        serving_all("127.0.0.1:0", savepoints=[str(folder / "saved")]) as where,
        client_at(where) as api,
    ):
        yield job, api


async def test_it_tells_and_steers(tmp_path: Path) -> None:
    feed = Feed()
    async with behind_a_gateway(tmp_path, feed) as (job, api):
        feed.put(1, 2)
        await taken(job, 2)
        assert [each["name"] for each in (await api.client.get("/api/v1/jobs")).json()["jobs"]] == ["sums"]
        assert (await api.get())["status"] == "running"
        assert (await api.get("/subtasks/sum/0"))["subtask"]["id"] == "sum[0]"
        assert (await api.post("/checkpoints")).json()["kind"] == "checkpoint"
        assert (await api.post("/savepoints", {"uri": "one"})).json()["uri"].endswith("/saved/one")
        metrics = (await api.client.get("/metrics")).text
        assert 'streamactors_checkpoints_completed_total{job="sums"} ' in metrics
        assert 'streamactors_state_bytes{job="sums",operator="sum",subtask="' in metrics
        by_pid = await api.client.get(f"/api/v1/jobs/{os.getpid()}")
        assert by_pid.json()["name"] == "sums"
        assert (await api.post("/cancel")).json()["status"] == "cancelled" and job.status == "cancelled"


async def test_it_refuses(tmp_path: Path) -> None:
    async with behind_a_gateway(tmp_path, Feed()) as (_, api):
        assert (await api.client.post("/api/v1/jobs/sums/cancel", json={})).status_code == 401
        elsewhere = {"uri": str(tmp_path / "elsewhere")}
        assert (await api.post("/savepoints", elsewhere)).json()["error"]["code"] == "savepoint-refused"
        assert (await api.post("/stop", {"savepoint": elsewhere["uri"]})).status_code == 403
        assert (await api.post("/stop", {"unknown": 1})).status_code == 400
        unknown = await api.client.get("/api/v1/jobs/other")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown-job")
        nowhere = await api.client.get("/api/v1/jobs/sums/nothing")
        assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "not-found")
        assert (await api.get())["status"] == "running"


async def test_one_of_several_of_the_same_name_has_to_be_named(tmp_path: Path) -> None:
    async with behind_a_gateway(tmp_path, Feed()) as (_, api):
        other = config(tmp_path / "other")
        async with sa.start(flow_of(Feed()), other, on_exit="cancel") as job, steered(job):
            refused = await api.client.get("/api/v1/jobs/sums")
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "ambiguous-job")
            message = refused.json()["error"]["message"]
            assert str(tmp_path / "stored") in message and str(tmp_path / "other" / "stored") in message
            assert f"pid {os.getpid()}" in message
            assert (await api.post("/cancel")).status_code == 409 and job.status == "running"
        assert (await api.get())["status"] == "running", "the only one again"


async def test_events_pass_through_and_end_with_the_gateway(tmp_path: Path) -> None:
    async with sa.start(flow_of(Feed()), config(tmp_path), on_exit="cancel") as job, steered(job):
        before, tasks = open_files(), asyncio.all_tasks()
        async with httpx.AsyncClient(timeout=PATIENCE, trust_env=False) as client:
            async with serving_all("127.0.0.1:0") as where:
                sending = client.stream("GET", f"{where.url}/api/v1/jobs/sums/events")
                answer = await sending.__aenter__()
                lines = answer.aiter_lines()
                while not (line := await anext(lines)).startswith("data: "):
                    pass
            assert json.loads(line.removeprefix("data: "))["job"]["name"] == "sums"
            async with asyncio.timeout(PATIENCE):
                assert [line async for line in lines if line.startswith("id: 99")] == []
            await sending.__aexit__(None, None, None)
        await until(lambda: asyncio.all_tasks() <= tasks)
        await until(lambda: open_files() == before)


async def test_a_job_that_ends_ends_its_stream(tmp_path: Path) -> None:
    async with behind_a_gateway(tmp_path, Feed()) as (job, api):
        told = []
        async with api.client.stream("GET", "/api/v1/jobs/sums/events") as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    told.append(json.loads(line.removeprefix("data: "))["job"]["status"])
                    await job.cancel()
    assert told[-1] == "cancelled"


async def test_the_command(registry_folder: Path) -> None:
    """It prints where it is and its token, and ends by a signal."""
    environ = {name: value for name, value in os.environ.items() if name != "STREAMACTORS_TOKEN"}
    command = [sys.executable, "-m", "streamactors", "serve", "--listen", "127.0.0.1:0"]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE, env=environ)
    assert process.stderr is not None
    try:
        async with asyncio.timeout(PATIENCE):
            where, _, token = [(await process.stderr.readline()).decode() for _ in range(3)]
        url = re.findall(r"http://127\.0\.0\.1:\d+", where)[0]
        assert len(token.rpartition(": ")[2].strip()) == 32
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"{url}/api/v1/jobs")).json() == {"jobs": []}
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
