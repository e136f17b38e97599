"""`streamactors run --listen`: the API of a job that the command line runs."""

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.programs import ROOT
from tests.runtime.feeds import PATIENCE

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("registry_folder")]

FLOW = """
import streamactors as sa
from connectors.files import FileSource
from connectors.memory import ListSink

flow = sa.Dataflow("lines")
flow.source("in", FileSource("in", value=sa.Text(), follow=True)).sink("out", ListSink())
"""
TOKEN = "chosen-by-the-owner-of-it"


@asynccontextmanager
async def started(folder: Path, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    (folder / "in").mkdir()
    (folder / "jobs.py").write_text(FLOW)
    command = [
        sys.executable,
        "-m",
        "streamactors",
        "run",
        "jobs:flow",
        "-q",
        "--storage",
        "stored",
        "--interval",
        "1h",
    ]
    command += options
    environ = {**os.environ, "STREAMACTORS_TOKEN": TOKEN, "PYTHONPATH": str(ROOT)}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stderr=pipe, stdout=pipe, env=environ, cwd=folder)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line_of(stream: asyncio.StreamReader | None) -> str:
    assert stream is not None
    async with asyncio.timeout(PATIENCE):
        return (await stream.readline()).decode()


async def test_it_listens_as_long_as_the_job_runs(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    async with started(tmp_path, "--listen", "127.0.0.1:0", "--savepoints", str(saved)) as process:
        url = re.findall(r"http://127\.0\.0\.1:\d+", await line_of(process.stderr))[0]
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=PATIENCE) as client:
            job = (await client.get("/api/v1/jobs/lines")).json()
            assert (job["target"], job["pid"]) == ("jobs:flow", process.pid)
            assert (await client.post("/api/v1/jobs/lines/savepoints", json={"uri": "one"})).status_code == 200
        process.send_signal(signal.SIGTERM)
        output, errors = await process.communicate()
    assert process.returncode == 0 and (saved / "one").is_dir()
    assert TOKEN.encode() not in output + errors


async def test_an_address_in_use_is_refused(tmp_path: Path) -> None:
    with socket.socket() as another:
        another.bind(("127.0.0.1", 0))
        another.listen()
        address = f"127.0.0.1:{another.getsockname()[1]}"
        async with started(tmp_path, "--listen", address) as process, asyncio.timeout(PATIENCE):
            _, errors = await process.communicate()
    assert process.returncode == 2 and "can't be listened on" in " ".join(errors.decode().split())
