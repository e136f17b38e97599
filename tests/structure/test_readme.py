"""What the README shows is run as it stands there: the job, its stop and its second start, in a service."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from tests.structure.house import ROOT
from tests.structure.test_docs import snippets

JOB, SERVICE = (code for _, code in snippets((ROOT / "README.md").read_text()))
PATIENCE = 60.0


class Running:
    """`python totals.py` in the user's folder."""

    def __init__(self, folder: Path, process: asyncio.subprocess.Process) -> None:
        self._folder = folder
        self._process = process

    @classmethod
    async def start(cls, folder: Path) -> "Running":
        process = await asyncio.create_subprocess_exec(
            sys.executable, "totals.py", cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        return cls(folder, process)

    async def has_written(self, *totals: tuple[str, float]) -> None:
        def equal() -> bool:
            assert self._process.returncode is None, "the job has ended"
            return written(self._folder) == sorted(totals)

        await becomes(equal)

    async def end(self, number: int) -> int:
        self._process.send_signal(number)
        async with asyncio.timeout(PATIENCE):
            return await self._process.wait()


def written(folder: Path) -> list[tuple[str, float]]:
    parts = [part for part in (folder / "totals").glob("*") if not part.name.startswith(".")]
    lines = [json.loads(line) for part in parts for line in part.read_text().splitlines()]
    return sorted((line["customer"], line["amount"]) for line in lines)


async def becomes(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.02)


def add_orders(folder: Path, *orders: tuple[str, float]) -> None:
    (folder / "orders").mkdir(exist_ok=True)
    with (folder / "orders" / "today.jsonl").open("a") as file:
        file.writelines(json.dumps({"customer": customer, "amount": amount}) + "\n" for customer, amount in orders)


@pytest.fixture
def user_folder(tmp_path: Path) -> Path:
    (tmp_path / "totals.py").write_text(JOB)
    return tmp_path


@pytest.mark.kill
@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGKILL, -9)])
async def test_the_job_goes_on_where_it_was(user_folder: Path, number: int, code: int) -> None:
    add_orders(user_folder, ("alice", 9.5), ("bob", 1.0))
    job = await Running.start(user_folder)
    try:
        await job.has_written(("alice", 9.5), ("bob", 1.0))
    finally:
        assert await job.end(number) == code
    add_orders(user_folder, ("alice", 0.5))
    job = await Running.start(user_folder)
    try:
        await job.has_written(("alice", 9.5), ("bob", 1.0), ("alice", 10.0))
    finally:
        assert await job.end(signal.SIGTERM) == 0


def shown(*parts: str) -> dict[str, Any]:
    """What the parts define, one after the other."""
    names: dict[str, Any] = {"__name__": "readme"}
    for part in parts:
        exec(compile(part, "README.md", "exec"), names)
    return names


async def test_in_a_service_it_answers_from_its_state(user_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(user_folder)
    add_orders(user_folder, ("alice", 9.5))
    names = shown(JOB, SERVICE)
    async with asyncio.timeout(PATIENCE), sa.start(names["flow"], names["config"]) as job:
        while await job.query("totals", "total", "alice") != 9.5:
            await asyncio.sleep(0.01)
    assert await names["answer"]("alice") == 9.5
    assert await names["answer"]("nobody") == 0.0


async def test_the_storage_is_one_that_inspect_takes(user_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(user_folder)
    names = shown(JOB)
    async with sa.start(names["flow"], names["config"]) as job:
        await job.checkpoint()
    (storage,) = re.findall(r"`streamactors inspect (\S+)`", (ROOT / "README.md").read_text())
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "streamactors", "inspect", storage, cwd=user_folder, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    assert "orders" in output.decode()
