"""Reading files: every line once, from any position on, whatever the blocks it is read in."""

import asyncio
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.files import FileChanged, FileSource, NoSuchFiles, ReadFailed, cursor
from connectors.files.cursor import Pace
from streamactors.elements import DeadLetter, OutputTag
from streamactors.errors import InvalidConfig, RecordFailed
from streamactors.formats import Json, MsgPack, Raw, Text
from streamactors.sources import Position, SplitReader
from streamactors.testing.connector_contract import Reading, SourceContract, read, source_context


class SmallSteps(FileSource[Any]):
    pace = Pace(block_bytes=11, batch_lines=3, open_files=2, poll_seconds=0.001)


def reader(source: FileSource[Any], subtask: int = 0, parallelism: int = 1) -> SplitReader[Any]:
    return source.reader(source_context(subtask=subtask, parallelism=parallelism))


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


class TestContract(SourceContract[str]):
    FILES: ClassVar = {
        "a.txt": "one\ntwo\r\nthree\n\nfünf\n",
        "b.txt": "no newline at the end",
        "c.txt": "",
        "d.txt": "".join(f"line {number}\n" for number in range(60)),
        "e.txt": "\n\n",
    }

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        for name, text in self.FILES.items():
            (tmp_path / name).write_text(text, newline="")

    def source(self) -> FileSource[str]:
        return SmallSteps(str(self.folder), value=Text())

    async def expected(self) -> list[str]:
        return [line for text in self.FILES.values() for line in text.splitlines()]


class TestContractWithLargeSteps(TestContract):
    def source(self) -> FileSource[str]:
        return FileSource(str(self.folder / "*.txt"), value=Text())


LINES = st.lists(st.binary(max_size=9).map(lambda line: line.replace(b"\n", b"").rstrip(b"\r")), max_size=30)
PACES = st.builds(Pace, block_bytes=st.integers(1, 40), batch_lines=st.integers(1, 7), open_files=st.integers(1, 3))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@settings(deadline=None)
@given(lines=LINES, last_newline=st.booleans(), pace=PACES, takes=st.lists(st.integers(0, 5), min_size=1, max_size=6))
async def test_restored_again_and_again_every_line_is_read_once(
    folder: Path, lines: list[bytes], last_newline: bool, pace: Pace, takes: list[int]
) -> None:
    data = b"\n".join(lines) + (b"\n" if last_newline and lines else b"")
    source = FileSource(write(folder / "f", data), value=Raw())
    source.pace = pace  # type: ignore[misc]
    expected = data.split(b"\n")[: None if data and not data.endswith(b"\n") else -1]
    read_lines, positions = list[bytes](), None
    for attempt in range(200):
        taken, positions, ended = await one_attempt(source, positions, takes[attempt % len(takes)])
        read_lines += taken
        if ended:
            break
    assert read_lines == expected


async def one_attempt(
    source: FileSource[bytes], positions: dict[str, Position] | None, batches: int
) -> tuple[list[bytes], dict[str, Position], bool]:
    """Reads some batches, and then one of which only a part makes it into the checkpoint."""
    file_reader, reading = reader(source), Reading[bytes]()
    reading.positions |= await file_reader.open(positions)
    try:
        for _ in range(batches):
            if (batch := await file_reader.read()) is None:
                return reading.all_values(), reading.positions, True
            reading.take(batch, len(batch.values))
        if (batch := await file_reader.read()) is None:
            return reading.all_values(), reading.positions, True
        reading.take(batch, (len(batch.values) + 1) // 2)
    finally:
        await file_reader.close()
    return reading.all_values(), reading.positions, False


@settings(deadline=None)
@given(
    lines=st.lists(st.sampled_from([b"1", b"22", b"bad", b"", b'"x', b"3 4"]), min_size=1, max_size=12),
    pace=PACES,
    data=st.data(),
)
async def test_a_position_covers_exactly_the_undecodable_lines_before_it(
    folder: Path, lines: list[bytes], pace: Pace, data: st.DataObject
) -> None:
    source = FileSource(write(folder / "g", b"\n".join([*lines, b""])), value=Json(int))
    source.pace = pace  # type: ignore[misc]
    whole = await read(reader(source), None)
    events: list[object] = []  # what the job had seen at each position
    for batch in whole.batches:
        taken = data.draw(st.integers(0, len(batch.values)))
        before = events + events_of(batch, taken)
        rest = await read(reader(source), {batch.split: batch.position_after(taken)})
        after = [event for later in rest.batches for event in events_of(later, len(later.values))]
        assert before + after == events_of_all(whole)
        events += events_of(batch, len(batch.values))


def events_of_all(reading: Reading[Any]) -> list[object]:
    return [event for batch in reading.batches for event in events_of(batch, len(batch.values))]


def events_of(batch: Any, taken: int) -> list[object]:
    """Values, and origins of undecodable lines, in the order of the file."""
    events: list[object] = []
    for index in range(taken + 1):
        events += [record.origin for record in batch.undecodable if record.index == index]
        events += [(batch.origins[index], batch.values[index])] if index < taken else []
    return events


async def test_json_lines_have_their_line_as_origin(tmp_path: Path) -> None:
    path = write(tmp_path / "events.jsonl", b'{"a":1}\n\n{"a":2}\nbroken\n{"a":3}\n')
    (batch,) = (await read(reader(FileSource(path, value=Json())), None)).batches
    assert batch.values == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert batch.origins is not None
    assert [batch.origin_prefix + str(origin) for origin in batch.origins] == [f"{path}:1", f"{path}:3", f"{path}:5"]
    (refused,) = batch.undecodable
    assert refused.origin.endswith("events.jsonl:4")


async def test_a_large_file_is_read_in_batches_of_about_a_thousand_lines(tmp_path: Path) -> None:
    lines = [b'{"n":%d,"pad":"%s"}' % (n, b"x" * (n // 500)) for n in range(50_000)]
    path = write(tmp_path / "large", b"\n".join(lines))
    batches = (await read(reader(FileSource(path, value=Json())), None)).batches
    assert [value["n"] for batch in batches for value in batch.values] == list(range(50_000))
    sizes = [len(batch.values) for batch in batches]
    assert max(sizes) <= 1250
    assert sum(sizes) / len(sizes) > 700


async def test_files_are_read_in_turn_and_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write(tmp_path / name, b"1\n2\n3\n4\n")
    readings = [await read(reader(SmallSteps(str(tmp_path), value=Text())), None) for _ in range(2)]
    order = [Path(batch.split).name for batch in readings[0].batches]
    assert order[:4] == ["a", "b", "a", "b"]  # two at a time
    assert set(order[4:]) == {"c"}
    assert [batch.split for batch in readings[1].batches] == [batch.split for batch in readings[0].batches]


async def test_numbered_files_go_round_the_subtasks(tmp_path: Path) -> None:
    source = FileSource(str(tmp_path), value=Text())
    for pattern in ("part-{}.jsonl", "{:05}.txt", "2024-01-{:02}-7.log", "x{}-3fa.jsonl"):
        taken = [source.assign(pattern.format(number), 4) for number in range(1, 9)]
        assert sorted(taken[:4]) == sorted(taken[4:]) == [0, 1, 2, 3]


async def test_folders_and_globs_leave_out_what_is_hidden_and_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "sub.txt").mkdir()
    for name in ("a.txt", ".hidden.txt", "b.log", "sub.txt/c.txt"):
        write(tmp_path / name, b"x\n")

    async def names(path: str) -> list[str]:
        splits = (await read(reader(FileSource(path, value=Text())), None)).positions
        return [os.path.relpath(split, tmp_path) for split in splits]

    assert await names(str(tmp_path)) == ["a.txt", "b.log"]
    assert await names(str(tmp_path / "*.txt")) == ["a.txt"]
    assert await names(str(tmp_path / "**" / "*.txt")) == ["a.txt", "sub.txt/c.txt"]
    assert await names(str(tmp_path / "b.log")) == ["b.log"]


async def test_a_file_whose_name_looks_like_a_glob_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "a[1].txt", b"x\n")
    assert (await read(reader(FileSource(path, value=Text())), None)).all_values() == ["x"]


async def test_a_bounded_read_that_matches_nothing_names_its_path(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "gone.jsonl", tmp_path / "*.jsonl", tmp_path / "empty"):
        with pytest.raises(NoSuchFiles, match=f"source 'source': '{tmp_path}/.* matches no file.*follow=True"):
            await read(reader(FileSource(str(path), value=Text())), None)


async def test_a_bounded_read_ends_where_the_file_ended_when_it_began(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "f"
    write(path, b"1\n2\n3")
    begun = await read(reader(SmallSteps(str(path), value=Text())), None, at_most=0)
    with path.open("ab") as file:
        file.write(b"333\n4\n")
    write(tmp_path / "g", b"5\n")
    for restored in (begun.positions, {str(path): [2, 2, 5]}):
        rest = await read(reader(SmallSteps(str(tmp_path), value=Text())), restored)
        assert rest.all_values()[-2:] == ["2", "3"]
    assert "1 files such as '" in caplog.text
    assert "g' are not read" in caplog.text
    ended = {str(path): [5, 4, 5]}
    assert (await read(reader(SmallSteps(str(tmp_path), value=Text())), ended)).all_values() == []


async def test_a_file_that_was_read_to_its_end_may_go(tmp_path: Path) -> None:
    path = write(tmp_path / "f", b"1\n")
    positions = (await read(reader(FileSource(path, value=Text())), None)).positions
    os.remove(path)
    assert (await read(reader(FileSource(path, value=Text())), positions)).all_values() == []


async def read_on(file_reader: SplitReader[Any]) -> None:
    while await file_reader.read():
        pass


class TestChangedFiles:
    POSITION = (4, 3, 8)  # 1\n2\n | 3\n4\n

    async def restored(self, path: Path, position: Sequence[int | None]) -> list[str]:
        return (await read(reader(FileSource(str(path), value=Text())), {str(path): list(position)})).all_values()

    async def test_unchanged(self, tmp_path: Path) -> None:
        write(tmp_path / "f", b"1\n2\n3\n4\n")
        assert await self.restored(tmp_path / "f", self.POSITION) == ["3", "4"]

    async def test_truncated(self, tmp_path: Path) -> None:
        write(tmp_path / "f", b"1\n2\n3\n")
        with pytest.raises(FileChanged, match="/f' has been truncated: it has 6 bytes, and line 3 began at byte 4"):
            await self.restored(tmp_path / "f", self.POSITION)

    async def test_gone(self, tmp_path: Path) -> None:
        with pytest.raises(FileChanged, match="/f' is gone, which was read up to line 2.*fresh=True"):
            await self.restored(tmp_path / "f", self.POSITION)
        with pytest.raises(FileChanged, match="/f' is gone"):
            await self.restored(tmp_path / "f", [4, 3, None])

    async def test_other_lines(self, tmp_path: Path) -> None:
        write(tmp_path / "f", b"1\n22\n3\n4\n")
        with pytest.raises(FileChanged, match="/f' is not what it was: line 3 no longer begins at byte 4"):
            await self.restored(tmp_path / "f", self.POSITION)

    async def test_truncated_while_it_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "f"
        write(path, b"1\n2\n3\n4\n" * 100_000)
        file_reader = reader(SmallSteps(str(path), value=Text()))
        await file_reader.open(None)
        await file_reader.read()
        write(path, b"1\n")
        with pytest.raises(FileChanged, match="/f' was truncated while it was read"):
            await read_on(file_reader)
        await file_reader.close()

    async def test_removed_before_its_first_block_was_read(self, tmp_path: Path) -> None:
        path = tmp_path / "f"
        write(path, b"1\n")
        file_reader = reader(FileSource(str(path), value=Text()))
        await file_reader.open(None)
        path.unlink()
        with pytest.raises(ReadFailed, match="/f' can't be read: No such file"):
            await file_reader.read()
        await file_reader.close()


async def test_no_end_of_a_line_in_sight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cursor, "LONGEST_LINE", 100)
    path = write(tmp_path / "f", b"short\n" + b"x" * 500)
    with pytest.raises(RecordFailed, match="'source' failed, record .*/f:2: .*more than 100 bytes; is this a file of"):
        await read(reader(SmallSteps(path, value=Text())), None)


async def test_a_long_line_spans_blocks(tmp_path: Path) -> None:
    long = b"x" * 5000
    path = write(tmp_path / "f", b"\n".join([b"a", long, b"b", long]))
    assert (await read(reader(SmallSteps(path, value=Raw())), None)).all_values() == [b"a", long, b"b", long]


async def test_cancelled_in_the_middle_of_a_read_nothing_stays_open(tmp_path: Path) -> None:
    path = write(tmp_path / "f", b"line\n" * 1000)
    for turns in range(12):
        file_reader = reader(SmallSteps(path, value=Text()))
        await file_reader.open(None)
        reading = asyncio.ensure_future(file_reader.read())
        for _ in range(turns):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        await file_reader.close()  # open files and tasks are counted after every test


class TestSettings:
    def test_what_can_not_work_is_refused_where_it_is_written(self) -> None:
        with pytest.raises(InvalidConfig, match=r"FileSource\('x'\): value=.*Json.* give an instance such as Json"):
            FileSource("x", value=Json)  # type: ignore[arg-type]
        with pytest.raises(InvalidConfig, match=r"value=MsgPack\(\) may hold newlines.*use Json"):
            FileSource("x", value=MsgPack())
        with pytest.raises(InvalidConfig, match="the path is empty"):
            FileSource("", value=Text())
        with pytest.raises(InvalidConfig, match="on_error='skip' must be 'fail' or an OutputTag"):
            FileSource("x", value=Text(), on_error="skip")  # type: ignore[arg-type]

    def test_properties(self) -> None:
        dead = OutputTag("dead", DeadLetter)
        assert FileSource("x", value=Text()).bounded
        assert FileSource("x", value=Text()).error_tag is None
        followed = FileSource("~/x", value=Text(), follow=True, on_error=dead)
        assert not followed.bounded
        assert followed.error_tag is dead
        assert followed.describe() == f"FileSource {os.path.expanduser('~/x')!r}, followed"


def test_positions_are_small() -> None:
    assert len(msgspec.msgpack.encode([2**40, 2**32, 2**40])) < 30


async def test_paused_files_keep_no_place_among_the_open_ones(tmp_path: Path) -> None:
    """Only two are open at a time: the third is read although both of these are paused."""
    paths = [write(tmp_path / f"{name}.txt", f"{name}1\n{name}2\n{name}3\n{name}4\n".encode()) for name in "abc"]
    files = reader(SmallSteps(str(tmp_path), value=Text()))
    await files.open(None)
    assert files.pause(paths[:2])
    async with asyncio.timeout(60):
        found = [batch.values for _ in range(2) if (batch := await files.read()) is not None]
        assert [line for values in found for line in values] == ["c1", "c2", "c3", "c4"]
        pending = asyncio.ensure_future(files.read())
        await asyncio.wait([pending], timeout=0.01)
        assert not pending.done(), "it is not the end: the others are paused"
        files.pause(paths[:1])
        left = await pending
        assert left is not None and left.split == paths[1]
    await files.close()


async def test_a_followed_file_goes_on_where_it_was_paused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files = reader(SmallSteps(write(path, b"1\n2\n3\n4\n"), value=Text(), follow=True))
    await files.open(None)
    async with asyncio.timeout(60):
        first = await files.read()
        files.pause([str(path)])
        pending = asyncio.ensure_future(files.read())
        await asyncio.wait([pending], timeout=0.01)
        path.write_bytes(b"1\n2\n3\n4\n5\n")
        files.pause(())
        found = [*first.values, *(await pending).values] if first is not None else []  # type: ignore[union-attr]
        while len(found) < 5:
            batch = await files.read()
            found += [] if batch is None else batch.values
    assert found == ["1", "2", "3", "4", "5"]
    await files.close()
