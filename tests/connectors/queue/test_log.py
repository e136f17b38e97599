"""The log on disk: whatever is torn, cut or altered, what was acknowledged is read again or the log says where not."""

import datetime as dt
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.queue import CorruptQueue, PositionGone, WriteFailed, disk
from connectors.queue.log import PartitionLog, Retention
from connectors.queue.segments import HEADER_BYTES
from streamactors.clock import SystemClock

pytestmark = pytest.mark.slow

Record = tuple[bytes, int]
SEGMENT = 200
"""Bytes after which another segment begins: some groups of the tests."""

records = st.tuples(st.binary(max_size=40), st.integers(-(2**40), 2**45))
groups = st.lists(records, min_size=1, max_size=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "log"


def opened(folder: Path, segment_bytes: int = SEGMENT, retention: Retention = Retention()) -> PartitionLog:  # noqa: B008
    log = PartitionLog(str(folder), segment_bytes=segment_bytes, retention=retention)
    log.open()
    return log


def written(folder: Path, given: Sequence[Sequence[Record]]) -> PartitionLog:
    log = opened(folder)
    for group in given:
        log.append(group)
    return log


def read_all(log: PartitionLog) -> list[Record]:
    found: list[Record] = []
    at = log.begin
    while at < log.end:
        for group in log.read(at, log.end):
            assert group.first == len(found) + log.first_number
            found += zip(group.payloads, group.timestamps, strict=True)
            at = group.end
    return found


def open_and_read(log: PartitionLog) -> list[Record]:
    log.open()
    return read_all(log)


def flat(given: Sequence[Sequence[Record]]) -> list[Record]:
    return [record for group in given for record in group]


def segments_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.log"))


class Copies:
    """Fresh folders for one hypothesis test."""

    def __init__(self) -> None:
        self._root = tempfile.TemporaryDirectory()

    def __enter__(self) -> Path:
        return Path(self._root.name) / "log"

    def __exit__(self, *_: object) -> None:
        self._root.cleanup()


@given(st.lists(groups, max_size=12))
@settings(max_examples=40)
def test_what_was_appended_is_read_in_order_also_after_opening_again(given: list[list[Record]]) -> None:
    with Copies() as folder:
        log = written(folder, given)
        assert read_all(log) == flat(given)
        log.close()
        again = opened(folder)
        assert (again.end, again.next_number, again.log_id) == (log.end, log.next_number, log.log_id)
        assert read_all(again) == flat(given)
        again.close()


@given(st.lists(groups, max_size=8), groups, st.data())
@settings(max_examples=100)
def test_stopped_at_any_byte_of_a_write_nothing_acknowledged_is_lost(
    acknowledged: list[list[Record]], unfinished: list[Record], data: st.DataObject
) -> None:
    """At SIGKILL a prefix of the write is in the file; at a power failure there may be zeros in the rest of it."""
    with Copies() as folder:
        log = written(folder, acknowledged)
        before, segments = log.end, segments_in(folder)
        size = segments[-1].stat().st_size
        log.append(unfinished)
        log.close()
        last = segments_in(folder)[-1]
        begun = size if last == segments[-1] else 0  # it may have begun a segment
        whole = last.read_bytes()
        kept = data.draw(st.integers(begun, len(whole)), label="bytes on the disk")
        zeros = data.draw(st.integers(0, len(whole) - kept), label="zeros behind them") if kept >= HEADER_BYTES else 0
        last.write_bytes(whole[:kept] + bytes(zeros))

        again = opened(folder)
        assert again.end >= before
        found = read_all(again)
        assert found in (flat(acknowledged), flat(acknowledged) + unfinished)
        again.append([(b"and on it goes", 1)])
        assert read_all(again) == [*found, (b"and on it goes", 1)]
        again.close()
        once_more = opened(folder)
        assert read_all(once_more) == [*found, (b"and on it goes", 1)]
        once_more.close()


@given(st.lists(groups, min_size=2, max_size=8), st.data())
@settings(max_examples=100)
def test_an_altered_byte_is_found_and_named(given: list[list[Record]], data: st.DataObject) -> None:
    """In front of the last group; that one can't be told from one that was never whole."""
    with Copies() as folder:
        log = written(folder, given[:-1])
        last_begins = segments_in(folder)[-1], segments_in(folder)[-1].stat().st_size
        log.append(given[-1])
        log.close()
        path = data.draw(st.sampled_from(segments_in(folder)), label="segment")
        content = bytearray(path.read_bytes())
        stop = last_begins[1] if path == last_begins[0] else HEADER_BYTES if path > last_begins[0] else len(content)
        at = data.draw(st.integers(0, stop - 1), label="byte")
        content[at] ^= data.draw(st.integers(1, 255), label="changed by")
        path.write_bytes(content)
        before = {each: each.read_bytes() for each in folder.iterdir()}

        broken = PartitionLog(str(folder), segment_bytes=SEGMENT, retention=Retention())
        try:
            with pytest.raises(CorruptQueue) as raised:
                open_and_read(broken)
        finally:
            broken.close()
        assert str(path) in str(raised.value)
        assert at < HEADER_BYTES or "at byte" in str(raised.value)
        assert {each: each.read_bytes() for each in folder.iterdir()} == before, "nothing was changed"


def test_a_last_group_that_is_whole_but_altered_is_kept_aside(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = written(folder, [[(b"one", 1)], [(b"two", 2)]])
    log.close()
    (path,) = segments_in(folder)
    content = path.read_bytes().replace(b"two", b"tow")
    path.write_bytes(content)
    log = opened(folder)
    assert read_all(log) == [(b"one", 1)]
    log.close()
    (aside,) = folder.glob("*.cut-*")
    assert content.endswith(aside.read_bytes()) and b"tow" in aside.read_bytes()
    assert str(path) in caplog.text and aside.name in caplog.text


def test_a_record_that_looks_like_a_group_does_not_pass_for_one(folder: Path) -> None:
    """Else whoever may put bytes could make a log that was torn seem altered."""
    other = written(folder.with_name("other"), [[(b"x", 1)], [(b"y", 2)]])
    forged = segments_in(folder.with_name("other"))[0].read_bytes()[HEADER_BYTES:]
    other.close()
    log = opened(folder, segment_bytes=2**20)
    log.append([(b"kept", 1)])
    log.append([(b"torn" * 50 + forged, 1), (b"rest" * 50, 1)])
    log.close()
    (path,) = segments_in(folder)
    path.write_bytes(path.read_bytes()[:-7])
    log = opened(folder)
    assert read_all(log) == [(b"kept", 1)]
    log.close()


def test_a_segment_that_is_missing_or_cut_is_named(folder: Path) -> None:
    written(folder, [[(b"x" * 90, number)] for number in range(9)]).close()
    first, second, *_ = segments_in(folder)
    content = second.read_bytes()
    second.write_bytes(content[:-3])
    with pytest.raises(CorruptQueue, match=f"{second}.*3 bytes between them are missing"):
        opened(folder)
    second.unlink()
    with pytest.raises(CorruptQueue, match=f"{first}.*are missing"):
        opened(folder)
    second.write_bytes(content)
    log = opened(folder)
    assert len(read_all(log)) == 9
    log.close()


def test_segments_of_two_logs_are_not_read_as_one(folder: Path) -> None:
    written(folder, [[(b"x" * 300, 1)], [(b"y", 2)]]).close()
    written(folder.with_name("other"), [[(b"x" * 300, 1)], [(b"z", 2)]]).close()
    shutil.copy(segments_in(folder.with_name("other"))[1], folder)
    with pytest.raises(CorruptQueue, match="two different logs"):
        opened(folder)


# ------------------------------------------------------------------------------------------------------------ refusals
@pytest.fixture
def limit() -> Iterator[None]:
    """No file may grow beyond 2,000 bytes, as on a disk that is full."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_is_refused_in_its_middle_leaves_no_trace(folder: Path, limit: None) -> None:
    log = opened(folder, segment_bytes=2**20)
    log.append([(b"a" * 500, 1)])
    with pytest.raises(WriteFailed, match=str(segments_in(folder)[0])):
        log.append([(b"b" * 4000, 2)])
    log.append([(b"c" * 500, 3)])
    for _ in range(3):  # the second time in a segment that holds nothing yet
        with pytest.raises(WriteFailed):
            log.append([(b"d" * 4000, 4)])
    log.append([(b"e", 5)])
    expected = [(b"a" * 500, 1), (b"c" * 500, 3), (b"e", 5)]
    assert read_all(log) == expected
    log.close()
    again = opened(folder)
    assert read_all(again) == expected
    again.close()


def test_what_was_refused_is_not_in_the_log_if_the_process_dies_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it was written: only the fsync failed."""
    log = opened(folder)
    log.append([(b"a", 1)])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", _fails_once(os.fdatasync))
        with pytest.raises(WriteFailed):
            log.append([(b"b", 2)])
    left = folder.with_name("left")
    shutil.copytree(folder, left)
    log.close()
    again = opened(left)
    assert read_all(again) == [(b"a", 1)]
    again.close()


@pytest.mark.parametrize("operation", ["fdatasync", "fsync", "ftruncate", "write"])
def test_after_a_refusal_of_any_kind_it_goes_on_once_it_can(
    folder: Path, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second refusal comes while the first is being mended."""
    log = opened(folder)
    log.append([(b"a", 1)])
    real, refusals = getattr(os, operation), 2

    def refusing(*given: int) -> object:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise OSError(errno.EIO, "Input/output error")
        return real(*given)

    failing = "fdatasync" if operation in ("fsync", "ftruncate") else operation
    with monkeypatch.context() as patch:
        patch.setattr(os, operation, refusing)
        if failing != operation:
            patch.setattr(os, failing, _fails_once(getattr(os, failing)))
        with pytest.raises(WriteFailed, match="Input/output error"):
            log.append([(b"b", 2)])
        for _ in range(3):
            try:
                log.append([(b"c", 3)])
                break
            except WriteFailed:
                continue
    log.append([(b"d", 4)])
    assert read_all(log) == [(b"a", 1), (b"c", 3), (b"d", 4)]
    log.close()
    again = opened(folder)
    assert read_all(again) == [(b"a", 1), (b"c", 3), (b"d", 4)]
    again.close()


def _fails_once(real: object) -> object:
    calls = iter([True])

    def failing(*given: int) -> object:
        if next(calls, False):
            raise OSError(errno.EIO, "Input/output error")
        return real(*given)  # type: ignore[operator]

    return failing


def test_nothing_is_acknowledged_that_was_not_made_durable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the last segment and of the folder that names it."""
    synced: list[str] = []

    def sync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(disk, "sync", sync)
    monkeypatch.setattr(os, "fsync", sync)
    log = opened(folder)
    assert synced[-2:] == [str(segments_in(folder)[0]), str(folder)], "the header first, then its name"
    for number in range(4):
        synced.clear()
        before = segments_in(folder)
        log.append([(b"x" * 150, number)])
        new = segments_in(folder)
        expected = [str(new[-1])] if new == before else [str(new[-1]), str(folder), str(new[-1])]
        assert synced == expected
    log.close()


# ------------------------------------------------------------------------------------------------------------ deletion
def filled(folder: Path, retention: Retention = Retention()) -> PartitionLog:  # noqa: B008
    log = opened(folder, retention=retention)
    for number in range(9):
        log.append([(b"x" * 180, number)])
    assert len(segments_in(folder)) == 9
    return log


def test_trim_deletes_whole_segments_that_nobody_needs_and_never_the_last(folder: Path) -> None:
    log = filled(folder)
    third = int(segments_in(folder)[3].stem)
    log.trim(third - 1)
    assert [stamp for _, stamp in read_all(log)] == list(range(2, 9))
    log.trim(third)
    assert [stamp for _, stamp in read_all(log)] == list(range(3, 9))
    log.trim(log.end)
    assert [stamp for _, stamp in read_all(log)] == [8]
    with pytest.raises(PositionGone, match="begins with record 8 by now"):
        log.read(0, log.end)
    log.close()
    again = opened(folder)
    assert (again.first_number, again.next_number) == (8, 9)
    again.append([(b"y", 9)])
    assert [stamp for _, stamp in read_all(again)] == [8, 9]
    again.close()


def test_what_is_retained_by_size_or_by_age_stays(folder: Path) -> None:
    log = filled(folder, Retention(size=500))
    log.trim(log.end)
    assert [stamp for _, stamp in read_all(log)] == [6, 7, 8], "500 bytes, in whole segments"
    log.close()
    log = filled(folder.with_name("aged"), Retention(time=dt.timedelta(hours=1)))
    log.trim(log.end)
    assert len(read_all(log)) == 9
    log.close()

    class Later(SystemClock):
        def time_ms(self) -> int:
            return super().time_ms() + 3_700_000

    log = PartitionLog(
        str(folder.with_name("aged")),
        segment_bytes=SEGMENT,
        retention=Retention(time=dt.timedelta(hours=1)),
        clock=Later(),
    )
    log.open()
    log.trim(log.end)
    assert [stamp for _, stamp in read_all(log)] == [8]
    log.close()


def test_a_clock_that_is_set_back_keeps_nothing_that_is_not_to_be_retained(folder: Path) -> None:
    class Earlier(SystemClock):
        def time_ms(self) -> int:
            return super().time_ms() - 3_600_000

    filled(folder).close()
    log = PartitionLog(str(folder), segment_bytes=SEGMENT, retention=Retention(), clock=Earlier())
    log.open()
    log.trim(log.end)
    assert [stamp for _, stamp in read_all(log)] == [8]
    log.close()


def test_a_position_that_is_not_there_is_refused(folder: Path) -> None:
    log = filled(folder)
    here = log.log_id.hex()
    log.check((here, 0, 0), "the checkpoint")
    log.check((here, log.end, 9), "the checkpoint")
    log.trim(log.end)
    for position, message in (
        ((here, 0, 0), "goes on with record 0, and the log .* begins with record 8"),
        ((here, log.end + 1, 10), "goes on with record 10, and the log .* ends before record 9"),
        (("00" * 8, log.end, 9), "is of another log"),
    ):
        with pytest.raises(PositionGone, match=message):
            log.check(position, "the checkpoint")
    log.close()
