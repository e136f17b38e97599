"""The check that every test runs under finds what it should."""

import asyncio
import threading
from pathlib import Path

import pytest

from tests import leaks


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "GRACE_SECONDS", 0.0)


@pytest.mark.usefixtures("no_grace")
def test_finds_an_open_file(tmp_path: Path) -> None:
    before = leaks.held()
    with (tmp_path / "left").open("w"):
        assert leaks.left_since(before) == [f"open file {tmp_path / 'left'}"]
    assert leaks.left_since(before) == []


@pytest.mark.usefixtures("no_grace")
def test_finds_a_thread() -> None:
    before = leaks.held()
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="left")
    thread.start()
    assert leaks.left_since(before) == ["thread left"]
    done.set()
    thread.join()
    assert leaks.left_since(before) == []


def test_waits_for_what_is_on_its_way_out() -> None:
    before = leaks.held()
    thread = threading.Timer(0.05, lambda: None)
    thread.start()
    assert leaks.left_since(before) == []


@pytest.mark.usefixtures("no_grace")
async def test_finds_a_task() -> None:
    left: list[asyncio.Task[bool]] = []

    async def test() -> None:
        left.append(asyncio.create_task(asyncio.Event().wait(), name="left"))

    with pytest.raises(pytest.fail.Exception, match="left running: .*name='left'"):
        await leaks.leaving_no_task(test)()
    left[0].cancel()
    await asyncio.wait(left)


async def test_accepts_a_task_that_ends_by_itself() -> None:
    async def test() -> str:
        task = asyncio.create_task(asyncio.sleep(0))
        assert not task.done()
        return "passed"

    assert await leaks.leaving_no_task(test)() == "passed"
