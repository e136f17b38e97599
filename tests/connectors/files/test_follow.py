"""Following files: an embedded log."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from connectors.files import FileChanged, FileSource
from connectors.files.cursor import Pace
from streamactors.formats import Text
from streamactors.sources import Position, SplitReader
from streamactors.testing.connector_contract import source_context

TIMEOUT = 60.0


class QuickFollow(FileSource[str]):
    pace = Pace(block_bytes=16, batch_lines=4, open_files=2, poll_seconds=0.001)


class Followed:
    """A reader on its own, and what a checkpoint would hold of it."""

    def __init__(self, path: Path, subtask: int = 0, parallelism: int = 1) -> None:
        source = QuickFollow(str(path), value=Text(), follow=True)
        self.reader: SplitReader[str] = source.reader(source_context(subtask=subtask, parallelism=parallelism))
        self.positions: dict[str, Position] = {}

    async def open(self, restored: dict[str, Position] | None = None) -> None:
        self.positions |= await self.reader.open(restored)

    async def lines(self, count: int) -> list[str]:
        lines: list[str] = []
        async with asyncio.timeout(TIMEOUT):
            while len(lines) < count:
                batch = await self.reader.read()
                assert batch is not None
                lines += batch.values
                self.positions[batch.split] = batch.position_after(len(batch.values))
        return lines

    async def fails(self) -> BaseException:
        async with asyncio.timeout(TIMEOUT):
            try:
                batch: Any = await self.reader.read()
            except FileChanged as error:
                return error
        raise AssertionError(f"read {batch}")


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[Followed]:
    (tmp_path / "log").mkdir()
    followed = Followed(tmp_path / "log")
    yield followed
    await followed.reader.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "log"


def append(path: Path, text: str) -> None:
    with path.open("a", newline="") as file:
        file.write(text)


async def test_waits_for_more_lines(log: Followed, folder: Path) -> None:
    append(folder / "a", "1\n2\n")
    await log.open()
    assert await log.lines(2) == ["1", "2"]
    for number in range(3, 30):
        append(folder / "a", f"{number}\n")
        assert await log.lines(1) == [str(number)]


async def test_an_unfinished_line_waits_for_its_end(log: Followed, folder: Path) -> None:
    append(folder / "a", "1\nunfin")
    await log.open()
    assert await log.lines(1) == ["1"]
    assert log.positions == {str(folder / "a"): [2, 2, None]}
    append(folder / "a", "ished, and longer than one block\n3")
    assert await log.lines(1) == ["unfinished, and longer than one block"]


async def test_a_line_that_arrives_byte_by_byte(log: Followed, folder: Path) -> None:
    await log.open()
    reading = asyncio.ensure_future(log.lines(1))
    for character in "slowly\n":
        append(folder / "a", character)
        await asyncio.sleep(0)
    assert await reading == ["slowly"]


async def test_waits_for_more_files(log: Followed, folder: Path) -> None:
    await log.open()
    for name in ("a", "b", "c", "d"):
        append(folder / name, f"of {name}\n")
        assert await log.lines(1) == [f"of {name}"]
    append(folder / "a", "again\n")
    assert await log.lines(1) == ["again"]
    assert len(log.positions) == 4


async def test_new_files_are_seen_while_another_never_runs_dry(log: Followed, folder: Path) -> None:
    append(folder / "busy", "x\n" * 8)
    await log.open()
    append(folder / "new", "new\n")
    async with asyncio.timeout(TIMEOUT):
        while await log.lines(1) != ["new"]:
            append(folder / "busy", "x\n" * 8)


async def test_waits_for_the_folder_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    followed = Followed(tmp_path / "later" / "*.txt")
    await followed.open()
    assert "matches no file yet" in caplog.text
    (tmp_path / "later").mkdir()
    append(tmp_path / "later" / "a.txt", "1\n")
    assert await followed.lines(1) == ["1"]
    await followed.reader.close()


async def test_restored_it_goes_on_and_finds_new_files(log: Followed, folder: Path, tmp_path: Path) -> None:
    append(folder / "a", "1\n2\n3\n")
    await log.open()
    await log.lines(3)
    append(folder / "a", "4\n")
    append(folder / "b", "5\n")
    again = Followed(folder)
    await again.open(log.positions)
    assert sorted(await again.lines(2)) == ["4", "5"]
    await again.reader.close()


async def test_a_bounded_read_can_be_followed_on(log: Followed, folder: Path) -> None:
    append(folder / "a", "1\n2\n")
    await log.open({str(folder / "a"): [4, 3, 4]})
    append(folder / "a", "3\n")
    assert await log.lines(1) == ["3"]


async def test_a_last_line_that_a_bounded_read_took_unfinished_can_not_grow(log: Followed, folder: Path) -> None:
    append(folder / "a", "1\n2")
    await log.open({str(folder / "a"): [3, 3, 3]})
    append(folder / "a", "22\n")
    assert "line 3 no longer begins at byte 3" in str(await log.fails())


async def test_every_file_is_read_by_one_subtask(folder: Path) -> None:
    folder.mkdir()
    for number in range(6):
        append(folder / f"part-{number}", f"{number}\n")
    lines = []
    for subtask in range(3):
        followed = Followed(folder, subtask, 3)
        await followed.open()
        lines += await followed.lines(2)
        await followed.reader.close()
    assert sorted(lines) == ["0", "1", "2", "3", "4", "5"]


class TestChanged:
    async def test_truncated(self, log: Followed, folder: Path) -> None:
        append(folder / "a", "1\n2\n3\n")
        await log.open()
        await log.lines(3)
        os.truncate(folder / "a", 2)
        assert "/a' has been truncated: it has 2 bytes" in str(await log.fails())

    async def test_truncated_within_an_unfinished_line(self, log: Followed, folder: Path) -> None:
        append(folder / "a", "1\nunfinished")
        await log.open()
        await log.lines(1)
        reading = asyncio.ensure_future(log.fails())
        await until_dry(log)
        os.truncate(folder / "a", 5)
        assert "/a' has been truncated: it has 5 bytes" in str(await reading)

    async def test_replaced(self, log: Followed, folder: Path, tmp_path: Path) -> None:
        append(folder / "a", "1\n")
        await log.open()
        await log.lines(1)
        append(tmp_path / "other", "another file, longer\n")
        os.replace(tmp_path / "other", folder / "a")
        assert "another file was put in the place of" in str(await log.fails())

    async def test_gone(self, log: Followed, folder: Path) -> None:
        append(folder / "a", "1\n")
        await log.open()
        await log.lines(1)
        os.remove(folder / "a")
        assert "/a' is gone, which was read up to line 1" in str(await log.fails())

    async def test_gone_between_two_attempts(self, log: Followed, folder: Path) -> None:
        with pytest.raises(FileChanged, match="/a' is gone, which was read up to line 1"):
            await log.open({str(folder / "a"): [2, 2, None]})

    async def test_truncated_between_two_attempts(self, log: Followed, folder: Path) -> None:
        append(folder / "a", "1\n")
        with pytest.raises(FileChanged, match="/a' has been truncated: it has 2 bytes, and line 3 began at byte 4"):
            await log.open({str(folder / "a"): [4, 3, None]})


async def until_dry(log: Followed) -> None:
    dry: dict[str, object] = log.reader._dry  # type: ignore[attr-defined]
    async with asyncio.timeout(TIMEOUT):
        while not dry:
            await asyncio.sleep(0)


async def test_a_pending_read_ends_when_it_is_cancelled(log: Followed, folder: Path) -> None:
    append(folder / "a", "1\n")
    await log.open()
    await log.lines(1)
    reading = asyncio.ensure_future(log.reader.read())
    await until_dry(log)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
