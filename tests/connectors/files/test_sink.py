"""Part files: visible with their checkpoint, once, and nothing else ever."""

import asyncio
import datetime as dt
import errno
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from connectors.files import FileSink, FileSource, WriteFailed, sink
from connectors.files.parts import PartFolder, PartName, prefix_of, writer_of
from streamactors.clock import SYSTEM
from streamactors.errors import InvalidConfig, RecordFailed, TransactionLost
from streamactors.formats import Json, MsgPack, Raw, Text
from streamactors.sinks import Pending, SinkWriter
from streamactors.testing.connector_contract import SinkContract, read, sink_context, source_context, stored


def visible(folder: Path) -> list[str]:
    """Lines of the visible files, in the order of their names."""
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    return [line for name in names for line in (folder / name).read_text().splitlines()]


def hidden(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.startswith("."))


async def opened(file_sink: FileSink[str], restored: Sequence[Pending] = (), **ctx: Any) -> SinkWriter[str]:
    writer = file_sink.writer(sink_context(**ctx))
    try:
        await writer.open(stored(list(restored)), committed=False)
    except BaseException:
        await writer.close()
        raise
    return writer


class TestContract(SinkContract[str]):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "new" / "folder"

    def sink(self) -> FileSink[str]:
        return FileSink(str(self.folder), value=Text())

    def values(self) -> Sequence[str]:
        return [f"value {number:02}" for number in range(12)]

    async def visible(self) -> list[str]:
        return visible(self.folder) if self.folder.exists() else []


class TestContractWithManyParts(TestContract):
    def sink(self) -> FileSink[str]:
        return FileSink(str(self.folder), value=Text(), roll_bytes=1)


async def test_what_it_writes_a_file_source_reads(tmp_path: Path) -> None:
    values = [{"number": number, "text": "ü\n"} for number in range(5000)]
    writer = FileSink[Any](str(tmp_path), value=Json(), roll_bytes=10_000).writer(sink_context())
    await writer.open([], committed=False)
    await writer.write(values[:3000], None)
    await writer.write(values[3000:], None)
    await writer.prepare(1)
    await writer.commit(1)
    await writer.close()
    reader = FileSource(str(tmp_path / "*.jsonl"), value=Json()).reader(source_context())
    assert sorted((await read(reader, None)).all_values(), key=lambda value: value["number"]) == values
    assert len(os.listdir(tmp_path)) == 2


class TestRolling:
    async def test_by_size(self, tmp_path: Path) -> None:
        writer = await opened(FileSink(str(tmp_path), value=Text(), roll_bytes=20))
        for number in range(10):
            await writer.write([f"line {number}"], None)
        pending = await writer.prepare(1)
        assert len(pending) == 4
        assert len(hidden(tmp_path)) == 4
        await writer.commit(1)
        assert [path.stat().st_size for path in sorted(tmp_path.iterdir())] == [21, 21, 21, 7]
        await writer.close()

    async def test_by_age(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 0.0
        monkeypatch.setattr(SYSTEM, "monotonic", lambda: now)
        writer = await opened(FileSink(str(tmp_path), value=Text(), roll_after=dt.timedelta(seconds=10)))
        for now in (0.0, 9.0, 10.0, 11.0, 20.0, 30.0):
            await writer.write([f"at {now:g}"], None)
        await writer.prepare(1)
        await writer.commit(1)
        texts = [path.read_text() for path in sorted(tmp_path.iterdir())]
        assert texts == ["at 0\nat 9\nat 10\n", "at 11\nat 20\nat 30\n"]
        await writer.close()

    async def test_without_checkpoints_a_part_is_visible_when_it_is_complete(self, tmp_path: Path) -> None:
        writer = await opened(FileSink(str(tmp_path), value=Text(), roll_bytes=4), checkpointing=False)
        await writer.write(["abcd"], None)
        assert visible(tmp_path) == ["abcd"]
        await writer.write(["e"], None)
        await writer.finish()
        assert visible(tmp_path) == ["abcd", "e"]
        await writer.close()
        assert hidden(tmp_path) == []


class TestNames:
    async def test_flow_uid_run_attempt_and_subtask_are_in_the_name(self, tmp_path: Path) -> None:
        ctx: dict[str, Any] = {
            "flow": "shop/orders",
            "uid": "out",
            "run": 3,
            "attempt": 2,
            "subtask": 1,
            "parallelism": 2,
        }
        writer = await opened(FileSink(str(tmp_path), value=Json()), **ctx)
        await writer.write(["x"], None)
        await writer.prepare(1)
        await writer.commit(1)
        await writer.close()
        (name,) = os.listdir(tmp_path)
        assert name.startswith("shop%2Forders@out@0003-0002-0001-000000-")
        assert name.endswith(".jsonl")

    @pytest.mark.parametrize("flow", ["a", "a@b", ".hidden", "ä/ö", "a-0001-0001-0001-000001-"])
    def test_names_are_told_apart_by_sink_and_read_back(self, flow: str) -> None:
        name = str(PartName(flow, "u@1", 12, 34567, 8, 9, "3fa9c1d2", ".txt"))
        assert writer_of(name) == writer_of(f".{name}.pending") == (12, 34567, 8)
        assert name.startswith(prefix_of(flow, "u@1"))
        assert not name.startswith((".", prefix_of(flow, "u")))

    def test_other_files_are_nobodys(self) -> None:
        assert writer_of("notes.txt") is None
        assert writer_of(".flow@sink@notes.pending") is None

    async def test_same_names_in_two_runs_without_checkpoints_do_not_collide(self, tmp_path: Path) -> None:
        for text in ("first", "second"):
            writer = await opened(FileSink(str(tmp_path), value=Text()), checkpointing=False)
            await writer.write([text], None)
            await writer.finish()
            await writer.close()
        assert sorted(visible(tmp_path)) == ["first", "second"]


class TestLeftovers:
    async def killed(self, folder: Path, **ctx: Any) -> list[Pending]:
        """A writer that prepared one part, was writing another, and then was no more."""
        writer = await opened(FileSink(str(folder), value=Text(), roll_bytes=1), **ctx)
        await writer.write(["prepared"], None)
        pending: list[Pending] = stored(await writer.prepare(1))
        await writer.write(["rolled"], None)
        for task_state in (writer._sealed, writer._gathered):  # type: ignore[attr-defined]
            task_state.clear()
        await writer.close()
        return pending

    async def test_removed_but_for_what_the_checkpoint_lists(self, tmp_path: Path) -> None:
        pending = await self.killed(tmp_path)
        assert len(hidden(tmp_path)) == 2
        await (await opened(FileSink(str(tmp_path), value=Text()), pending, attempt=2)).close()
        assert (visible(tmp_path), hidden(tmp_path)) == (["prepared"], [])

    async def test_all_removed_where_no_checkpoint_was_restored(self, tmp_path: Path) -> None:
        await self.killed(tmp_path)
        await (await opened(FileSink(str(tmp_path), value=Text()), attempt=2)).close()
        assert (visible(tmp_path), hidden(tmp_path)) == ([], [])

    async def test_of_all_old_subtasks_after_a_rescale_and_of_no_pending_one(self, tmp_path: Path) -> None:
        pending = [await self.killed(tmp_path, subtask=subtask, parallelism=5) for subtask in range(5)]
        dealt = [[part for old in range(subtask, 5, 2) for part in pending[old]] for subtask in (0, 1)]
        first = await opened(FileSink(str(tmp_path), value=Text()), dealt[0], attempt=2, subtask=0, parallelism=2)
        assert (len(visible(tmp_path)), len(hidden(tmp_path))) == (3, 4)  # the other's, pending ones among them
        second = await opened(FileSink(str(tmp_path), value=Text()), dealt[1], attempt=2, subtask=1, parallelism=2)
        assert (len(visible(tmp_path)), len(hidden(tmp_path))) == (5, 0)
        for writer in (first, second):
            await writer.close()

    async def test_of_nobody_else(self, tmp_path: Path) -> None:
        await self.killed(tmp_path, uid="other")
        await self.killed(tmp_path, flow="other")
        await self.killed(tmp_path, run=2)
        (tmp_path / ".flow@sink@notes.pending").touch()
        before = hidden(tmp_path)
        await (await opened(FileSink(str(tmp_path), value=Text()), run=1, attempt=9)).close()
        await (await opened(FileSink(str(tmp_path), value=Text()), run=9, checkpointing=False)).close()
        assert hidden(tmp_path) == before


class TestLostParts:
    async def prepared(self, folder: Path) -> list[Pending]:
        writer = await opened(FileSink(str(folder), value=Text()))
        await writer.write(["x"], None)
        pending: list[Pending] = stored(await writer.prepare(1))
        await writer.close()
        return pending

    async def test_neither_hidden_nor_visible(self, tmp_path: Path) -> None:
        pending = await self.prepared(tmp_path)
        (tmp_path / hidden(tmp_path)[0]).unlink()
        with pytest.raises(TransactionLost, match=f"part file '{pending[0][1]}' .* neither hidden .* nor visible"):
            await opened(FileSink(str(tmp_path), value=Text()), pending, attempt=2)
        (tmp_path / pending[0][1]).touch()  # the cure that the error names
        await (await opened(FileSink(str(tmp_path), value=Text()), pending, attempt=3)).close()

    async def test_truncated(self, tmp_path: Path) -> None:
        pending = await self.prepared(tmp_path)
        os.truncate(tmp_path / hidden(tmp_path)[0], 1)
        with pytest.raises(TransactionLost, match="was complete with 2 bytes and now has 1"):
            await opened(FileSink(str(tmp_path), value=Text()), pending, attempt=2)

    async def test_the_folder_was_moved_with_its_files(self, tmp_path: Path) -> None:
        pending = await self.prepared(tmp_path / "old")
        (tmp_path / "old").rename(tmp_path / "new")
        await (await opened(FileSink(str(tmp_path / "new"), value=Text()), pending, attempt=2)).close()
        assert visible(tmp_path / "new") == ["x"]

    async def test_the_sink_was_given_another_folder(self, tmp_path: Path) -> None:
        pending = await self.prepared(tmp_path / "old")
        await (await opened(FileSink(str(tmp_path / "new"), value=Text()), pending, attempt=2)).close()
        assert visible(tmp_path / "old") == ["x"]


class FullDisk(io.FileIO):
    """Room for so many bytes."""

    room = 0

    def write(self, data: Any, /) -> int:
        taken = min(len(data), FullDisk.room)
        FullDisk.room -= taken
        if not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(memoryview(data)[:taken]) or 0


class FolderOnFullDisk(PartFolder):
    def create(self, hidden: str) -> BinaryIO:
        return FullDisk(os.path.join(self.path, hidden), "xb")


class SinkOnFullDisk(FileSink[str]):
    folder_type = FolderOnFullDisk


class TestFullDisk:
    async def test_says_so_and_loses_nothing(self, tmp_path: Path) -> None:
        FullDisk.room = 10
        writer = await opened(SinkOnFullDisk(str(tmp_path), value=Text()))
        await writer.write(["one", "two"], None)
        pending = stored(await writer.prepare(1))
        await writer.write(["three"], None)
        with pytest.raises(WriteFailed, match="can't write '.*pending': No space left on device.*see to the disk"):
            await writer.prepare(2)
        FullDisk.room = 1000  # room again, but this attempt has lost lines and may not go on
        await writer.write(["four"], None)
        with pytest.raises(WriteFailed):
            await writer.prepare(3)
        await writer.close()
        writer = await opened(SinkOnFullDisk(str(tmp_path), value=Text()), pending, attempt=2)
        await writer.write(["three", "four"], None)
        await writer.prepare(4)
        await writer.commit(4)
        await writer.close()
        assert (visible(tmp_path), hidden(tmp_path)) == (["one", "two", "three", "four"], [])

    async def test_a_write_that_takes_a_part_only_is_continued(self, tmp_path: Path) -> None:
        class Sip(io.FileIO):
            def write(self, data: Any, /) -> int:
                return super().write(memoryview(data)[:3]) or 0

        class FolderInSips(PartFolder):
            def create(self, hidden: str) -> BinaryIO:
                return Sip(os.path.join(self.path, hidden), "xb")

        class SinkInSips(FileSink[str]):
            folder_type = FolderInSips

        writer = await opened(SinkInSips(str(tmp_path), value=Text()))
        await writer.write(["a line of some length"], None)
        await writer.prepare(1)
        await writer.commit(1)
        await writer.close()
        assert visible(tmp_path) == ["a line of some length"]

    async def test_a_folder_that_can_not_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(WriteFailed, match="can't write '.*/file/out': Not a directory"):
            await opened(FileSink(str(tmp_path / "file" / "out"), value=Text()))


async def test_large_batches_are_written_while_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink, "WRITE_BYTES", 100)
    writer = await opened(FileSink(str(tmp_path), value=Text()))
    for _ in range(10):
        await writer.write(["x" * 49], None)
    assert (tmp_path / hidden(tmp_path)[0]).stat().st_size == 500
    await writer.close()
    assert hidden(tmp_path) == []


async def test_a_value_of_several_lines_is_refused(tmp_path: Path) -> None:
    writer = await opened(FileSink(str(tmp_path), value=Text()))
    with pytest.raises(RecordFailed, match="'sink' failed: a value has a newline"):
        await writer.write(["a\nb"], None)
    assert await writer.prepare(1) == []
    await writer.close()


async def test_cancelled_in_the_middle_of_anything_nothing_stays_open(tmp_path: Path) -> None:
    async def work(writer: SinkWriter[str]) -> None:
        await writer.open([], committed=False)
        await writer.write(["x"], None)
        await writer.prepare(1)
        await writer.commit(1)

    for turns in range(40):
        writer = FileSink(str(tmp_path), value=Text(), roll_bytes=1).writer(sink_context(attempt=turns))
        working = asyncio.ensure_future(work(writer))
        for _ in range(turns):
            await asyncio.sleep(0)
        working.cancel()
        await asyncio.wait([working])
        await writer.close()  # open files and tasks are counted after every test


class TestSettings:
    def test_what_can_not_work_is_refused_where_it_is_written(self) -> None:
        with pytest.raises(InvalidConfig, match=r"FileSink\('x'\): value=.*has no encode\(\); give an instance"):
            FileSink("x", value=Json)  # type: ignore[arg-type]
        with pytest.raises(InvalidConfig, match=r"value=MsgPack\(\) may hold newlines"):
            FileSink("x", value=MsgPack())
        with pytest.raises(InvalidConfig, match="the folder is empty"):
            FileSink("", value=Text())
        with pytest.raises(InvalidConfig, match="roll_bytes=0 must be at least 1"):
            FileSink("x", value=Text(), roll_bytes=0)
        with pytest.raises(InvalidConfig, match="roll_after=0:00:00 must be longer than zero"):
            FileSink("x", value=Text(), roll_after=dt.timedelta(0))

    async def test_suffix_by_format(self, tmp_path: Path) -> None:
        for value, suffix in ((Json(), ".jsonl"), (Text(), ".txt"), (Raw(), "")):
            folder = tmp_path / type(value).__name__
            writer = FileSink[Any](str(folder), value=value).writer(sink_context(checkpointing=False))
            await writer.open([], committed=False)
            await writer.write([b"x" if isinstance(value, Raw) else "x"], None)
            await writer.finish()
            await writer.close()
            assert [path.suffix for path in folder.iterdir()] == [suffix]
