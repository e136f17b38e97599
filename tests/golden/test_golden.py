"""Checkpoints that released versions have written are restored, with all that they hold, and their jobs go on."""

import asyncio
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamactors.checkpoint.manifest import decode_manifest
from streamactors.state.timers import TimerState
from tests.golden.flow import AFTER, BEFORE, FLYING, KEYS, KINDS, Log, digest, lines_in, timer_of
from tests.golden.make import BACKENDS, DIGESTS, SAVEPOINT, VERSIONS, digests_of, place_in, run_through, whole_run
from tests.golden.timed import STATES, Came

pytestmark = pytest.mark.slow

ARCHIVES = sorted(VERSIONS.glob("*.zip"))
TIMERS = TimerState("event").name, TimerState("processing").name
ALL = range(BEFORE + FLYING + AFTER)


@pytest.fixture(scope="module", params=ARCHIVES, ids=lambda path: path.stem)
def archive(request: pytest.FixtureRequest) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(request.param) as opened:
        yield opened


@pytest.fixture(scope="module")
def whole() -> Log:
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(whole_run())


def test_there_is_one_and_it_is_small() -> None:
    assert ARCHIVES
    assert all(path.stat().st_size < 150_000 for path in ARCHIVES)


def test_a_whole_run_sees_what_it_saw_then(archive: zipfile.ZipFile, whole: Log) -> None:
    then = dict(line.split() for line in archive.read(DIGESTS).decode().splitlines())
    assert digests_of(whole) == then, (
        "the flow of this test sees something else than when its data was made: change neither"
    )


# Another backend restores it at another parallelism.
CASES = [(name, backend, 2 if name == backend else 3) for name in (*BACKENDS, SAVEPOINT) for backend in BACKENDS]


@pytest.mark.parametrize(("name", "backend", "parallelism"), CASES)
async def test_is_restored_and_goes_on(
    tmp_path: Path, archive: zipfile.ZipFile, whole: Log, name: str, backend: Any, parallelism: int
) -> None:
    expected = whole.seen
    archive.extractall(tmp_path)
    (tmp_path / f"out-{name}").rename(tmp_path / "out")
    place = place_in(tmp_path / name)
    manifest = decode_manifest((place / "manifest").read_bytes(), "manifest")
    flying = manifest.in_flight_records
    assert bool(flying) == (name != SAVEPOINT)
    watermarks = [node.watermark for _, node in manifest.nodes("kinds") if node.watermark is not None]
    assert len(watermarks) == 2

    log = await run_through(tmp_path, Log(), restore=place.as_uri(), backend=backend, parallelism=parallelism)

    processed = sorted(log.seen)
    first = processed[0]
    assert BEFORE <= first <= BEFORE + FLYING and processed == list(range(first, len(ALL)))
    for number, text in log.seen.items():
        assert text == expected[number], f"record {number}"
    assert min(log.watermarks) >= min(watermarks)
    check_results(log.came, whole.came, first * 1000)
    check_timers(log, [node.watermark for _, node in manifest.nodes("alarms") if node.watermark is not None])
    assert sorted(log.own) == list(range(first)), "each item of the operator's lists, once"
    assert [sorted(each) for each in log.every] == [list(range(first))] * parallelism
    lines = sorted(lines_in(tmp_path / "out"), key=lambda line: line.number)
    assert lines == [digest(number, expected[number]) for number in ALL], "with the parts that were prepared"


def check_results(came: Came, expected: Came, since: int) -> None:
    """Of steps in event time: nothing but what comes in a whole run, and all of it that could not have come before."""
    assert came.keys() == expected.keys()
    for uid, results in came.items():
        earlier = [result for result in expected[uid] if result[0] < since]
        later = [result for result in expected[uid] if result[0] >= since]
        assert later or uid == "pattern-timed-out", uid
        more = Counter(results)
        more.subtract(later)
        assert all(count >= 0 for count in more.values()), f"{uid}: some are missing"
        assert +more <= Counter(earlier), f"{uid}: some came that should not"


def check_timers(log: Log, watermarks: list[int]) -> None:
    """Those that were pending fire, and none that had fired before."""
    rang, later = set(log.rang), {timer_of(number) for number in log.set}
    earlier = {timer_of(number) for number in ALL} - later
    assert len(rang) == len(log.rang), "each once"
    assert later <= rang <= later | earlier
    assert {timer for timer in earlier if timer[1] > max(watermarks)} <= rang
    assert not [timer for timer in rang if timer[1] <= min(watermarks)]
    assert earlier & rang and earlier - rang, "some were pending, and some had fired"


def test_the_data_holds_every_kind(archive: zipfile.ZipFile, tmp_path: Path) -> None:
    """Also every type of value and of key: the archive was made anew when one was added."""
    archive.extractall(tmp_path)
    for name in (*BACKENDS, SAVEPOINT):
        manifest = decode_manifest((place_in(tmp_path / name) / "manifest").read_bytes(), "manifest")
        assert all(set(node.schemas) == set(TIMERS) for _, node in manifest.nodes("alarms"))
        for _, node in manifest.nodes("kinds"):
            assert set(node.schemas) == set(KINDS)
            assert set(node.list_schemas) == {"rules", "own", "every"}
        for uid, states in STATES.items():
            assert all(states <= set(node.schemas) for _, node in manifest.nodes(uid))
        assert [list(node.pending) != [] for _, node in manifest.nodes("out")] == [True]
        assert bool(list(manifest.in_flight())) == (name != SAVEPOINT)
        if name != "rocksdb":
            keys = [ref for _, node in manifest.nodes("kinds") for handle in node.keyed for ref in handle.blocks]
            assert sum(ref.entries for ref in keys if ref.state == "text") == len(KEYS)
            keys = [ref for _, node in manifest.nodes("alarms") for handle in node.keyed for ref in handle.blocks]
            assert all(sum(ref.entries for ref in keys if ref.state == timers) for timers in TIMERS)
            for uid, states in STATES.items():
                refs = [ref for _, node in manifest.nodes(uid) for handle in node.keyed for ref in handle.blocks]
                filled = {ref.state for ref in refs if ref.entries}
                assert states <= filled, f"{uid} holds nothing in {states - filled}"
