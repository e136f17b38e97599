"""The external sort against Python's own, whatever has to be spilled; its memory, its files, and what it refuses."""

import asyncio
import datetime as dt
import errno
import os
import random
import threading
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from streamactors.checkpoint.frames import FrameCodec
from streamactors.checkpoint.manifest import EdgeKey
from streamactors.clock import SYSTEM
from streamactors.elements import MIN_TIME, Batch
from streamactors.errors import StorageFailed, UnserialisableValue
from streamactors.runtime.bounded.merging import merged
from streamactors.runtime.bounded.ordering import MANY, RowOrder
from streamactors.runtime.bounded.rows import KeyRows
from streamactors.runtime.bounded.runs import RunFormat
from streamactors.runtime.bounded.slices import SLICE, Slice
from streamactors.runtime.bounded.sorter import FAN_IN, Sorter
from streamactors.state.key_groups import key_group

GROUPS = 16
PLENTY = 1 << 30
EDGE = EdgeKey("upstream", "downstream")

Row = tuple[Any, int | None, int, int]
"""(key, time, side, arrival)."""

KEYS: list[Any] = [
    "a", "n1", "", "s", 1, True, 1.0, 0, -5, 2**61 - 1, 2**70, 0.5, Decimal("0.5"), None, b"a", b"", (1, "a"),
    (True, "a"), ("n1",), (1,), dt.date(2024, 1, 1), dt.timedelta(1), frozenset({1, 2}),
]  # fmt: skip


def sorter(memory: int, *, sided: bool = False, timed: bool = True, folder: str | None = None) -> Sorter:
    made = RunFormat(FrameCodec(), EDGE)
    return Sorter(
        made, SYSTEM, memory=memory, folder=folder, max_parallelism=GROUPS, sided=sided, timed=timed, by_group=False
    )


def batch(rows: Sequence[Row]) -> Batch:
    keys = [key for key, *_ in rows]
    return Batch(
        [arrival for *_, arrival in rows],
        [time for _, time, *_ in rows],
        keys,
        [key_group(key, GROUPS) for key in keys],
        [arrival for *_, arrival in rows],
        "file:",
    )


async def taken_in(used: Sorter, rows: Sequence[Row], size: int) -> None:
    for some in (rows[start : start + size] for start in range(0, len(rows), size)):
        for side in (0, 1):
            if alike := [row for row in some if row[2] == side]:
                used.add(batch(alike), side)
        if used.full:
            await used.spill()


async def given_out(used: Sorter) -> list[Slice]:
    out: list[Slice] = []
    while used.in_memory and (one := used.take()) is not None:
        out.append(one)
    while not used.in_memory and (more := await used.read()):
        out += more
    return out


def by_key(out: Sequence[Slice]) -> dict[Any, list[tuple[int | None, int, Any]]]:
    found: dict[Any, list[tuple[int | None, int, Any]]] = {}
    for one in out:
        for side, each in one.batches:
            assert each.keys is not None
            stamps = each.timestamps or [None] * len(each)
            for key, stamp, value in zip(each.keys, stamps, each.values, strict=True):
                found.setdefault(key, []).append((stamp, side, value))
    return found


def expected(rows: Sequence[Row], *, timed: bool) -> dict[Any, list[tuple[int | None, int, Any]]]:
    """A dict of lists, sorted by Python; arrivals within one batch go side by side."""
    found: dict[Any, list[tuple[int | None, int, Any]]] = {}
    for key, stamp, side, arrival in rows:
        found.setdefault(key, []).append((stamp, side, arrival))
    for each in found.values():
        each.sort(key=lambda row: (0 if not timed else MIN_TIME if row[0] is None else row[0], row[1]))
    return found


stamps = st.one_of(st.none(), st.integers(-3, 3))
rows_of = st.lists(st.tuples(st.integers(0, len(KEYS) - 1), stamps, st.integers(0, 1)), max_size=120)


@given(rows_of, st.sampled_from([500, 3_000, PLENTY]), st.booleans(), st.booleans(), st.integers(1, 40))
@settings(max_examples=120, deadline=None)
async def test_it_sorts_as_python_does(
    drawn: list[tuple[int, int | None, int]], memory: int, sided: bool, timed: bool, size: int
) -> None:
    rows: list[Row] = [(KEYS[key], time, side * sided, place) for place, (key, time, side) in enumerate(drawn)]
    used = sorter(memory, sided=sided, timed=timed)
    try:
        await taken_in(used, rows, size)
        event(f"in memory: {used.in_memory}")
        out = await given_out(used)
        assert by_key(out) == expected(rows, timed=timed)
        assert out[-1].ended is not None and out[-1].ended[1] == GROUPS - 1
    finally:
        await used.close()


async def test_each_key_comes_once_and_in_key_groups() -> None:
    rows: list[Row] = [(f"key-{number % 997}", None, 0, number) for number in range(20_000)]
    random.Random(3).shuffle(rows)
    used = sorter(200_000)
    await taken_in(used, rows, 500)
    assert used.spilled_bytes
    out = await given_out(used)
    keys = [key for one in out for _, each in one.batches for key in each.keys or ()]
    runs = [key for place, key in enumerate(keys) if place == 0 or keys[place - 1] != key]
    assert len(runs) == len(set(runs)) == 997
    groups = [key_group(key, GROUPS) for key in runs]
    assert groups == sorted(groups)
    await used.close()


async def test_a_slice_holds_whole_keys_or_a_part_of_one() -> None:
    rows: list[Row] = [("hot", 0, 0, number) for number in range(3 * SLICE)]
    rows += [(f"key-{number % 50}", 0, 0, number) for number in range(200)]
    used = sorter(PLENTY)
    await taken_in(used, rows, 1000)
    out = await given_out(used)
    assert max(sum(len(each) for _, each in one.batches) for one in out) <= SLICE
    alive: set[Any] = set()
    for one in out:
        alive |= {key for _, each in one.batches for key in each.keys or ()}
        if one.ended is not None:
            for key in alive:
                assert one.ended[0] <= key_group(key, GROUPS) <= one.ended[1]
            alive = set()
    assert any(one.ended is None for one in out) and not alive


async def test_a_key_with_many_rows_is_sorted_in_a_thread() -> None:
    used = sorter(PLENTY)
    rows: list[Row] = [("hot", -number, 0, number) for number in range(MANY + 1)]
    await taken_in(used, rows, 1000)
    await used.settle()
    assert not used.in_memory and not used.spilled_bytes
    assert by_key(await given_out(used)) == expected(rows, timed=True)
    await used.close()


MANY_TIMES: dict[str, Any] = {
    "random": lambda draw, row: draw.randrange(10**9),
    "nearly in order": lambda draw, row: row * 10 + draw.randrange(500),
    "one": lambda draw, row: 7,
    "one, and some around it": lambda draw, row: 7 if row % 100 else draw.randrange(15),
    "few": lambda draw, row: draw.choice([1, 2, 5, 10**12]),
    "some without": lambda draw, row: None if row % 3 == 0 else draw.randrange(100),
    "from afar": lambda draw, row: int(draw.paretovariate(0.05)) % 10**15,
}


@pytest.mark.parametrize("times", MANY_TIMES)
@pytest.mark.parametrize("sided", [False, True])
def test_many_rows_are_put_in_order_a_few_at_a_time(times: str, sided: bool) -> None:
    draw, count = random.Random(5), 5 * MANY
    stamps = [MANY_TIMES[times](draw, row) for row in range(count)]
    sides = [draw.randrange(2) for _ in range(count)] if sided else None
    side = (lambda row: sides[row]) if sides is not None else lambda row: 0
    lists = list(RowOrder(stamps, sides).ordered(list(range(count))))
    time = [MIN_TIME if stamp is None else stamp for stamp in stamps]
    assert [row for each in lists for row in each] == sorted(range(count), key=lambda row: (time[row], side(row)))
    assert all(len(each) <= MANY or len({time[row] for row in each}) == 1 for each in lists)
    lists = list(RowOrder(None, sides).ordered(list(range(count))))
    assert [row for each in lists for row in each] == sorted(range(count), key=side)


def test_runs_of_one_key_are_merged_by_time_also_if_they_begin_without() -> None:
    def run(name: str, time: int) -> list[KeyRows]:
        return [KeyRows(0, b"k", "k", [f"{name} without"], None), KeyRows(0, b"k", "k", [f"{name} at {time}"], [time])]

    found = merged([iter(run("a", 5)), iter(run("b", 1))])
    assert [value for piece in found for value in piece.values] == ["a without", "b without", "b at 1", "a at 5"]


class Watched(RunFormat):
    """Waits for `go` once a block has been written."""

    def __init__(self) -> None:
        super().__init__(FrameCodec(), EDGE)
        self.written = 0
        self.begun, self.go = threading.Event(), threading.Event()

    def encode(self, pieces: Sequence[KeyRows]) -> bytes:
        self.written += 1
        self.begun.set()
        assert self.go.wait(60)
        return super().encode(pieces)


async def test_a_long_merge_gives_up_when_it_is_stopped() -> None:
    """A thread can't be cancelled, so it has to look: else a cancelled job would wait for all the rest."""
    watched = Watched()
    used = Sorter(watched, SYSTEM, memory=1, folder=None, max_parallelism=GROUPS, sided=False)
    rows: list[Row] = [(number % 50, number, 0, number) for number in range(5_000)]
    for start in range(0, len(rows), 1000):
        used.add(batch(rows[start : start + 1000]))
    work = asyncio.create_task(used.spill())
    await asyncio.to_thread(watched.begun.wait, 60)
    used.stop()
    work.cancel()
    watched.go.set()
    await asyncio.gather(work, return_exceptions=True)
    await used.close()
    assert work.cancelled() and watched.written <= 100  # what it had in hand: a hundred rows of one key, a block each


async def test_two_inputs_make_few_batches() -> None:
    rows: list[Row] = [(f"key-{number % 300}", number // 300, number // 300 % 2, number) for number in range(900)]
    used = sorter(PLENTY, sided=True)
    await taken_in(used, rows, 100)
    out = await given_out(used)
    assert [side for one in out for side, _ in one.batches] == [0, 1, 0]
    await used.close()


async def test_memory_is_flat_and_runs_are_merged() -> None:
    memory = 60_000
    used = sorter(memory)
    most = 0
    for number in range(400):
        rows: list[Row] = [(f"key-{(number * 7 + each) % 500}", each, 0, number) for each in range(100)]
        used.add(batch(rows))
        most = max(most, used.gathered_bytes)
        if used.full:
            await used.spill()
    assert used.spilled_bytes > 4 * memory
    assert most < 2 * memory
    assert len(used._runs) < 2 * FAN_IN < used.spills
    assert sum(len(rows) for rows in by_key(await given_out(used)).values()) == 40_000
    await used.close()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_nothing_is_left_on_disk(tmp_path: Path) -> None:
    before = open_files()
    used = sorter(1000, folder=str(tmp_path / "made"))
    await taken_in(used, [(number, 0, 0, number) for number in range(500)], 50)
    assert used.spilled_bytes and open_files() > before
    assert list((tmp_path / "made").iterdir()) == []  # they have no names: a process that is killed leaves none
    await used.close()
    assert open_files() == before


async def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self) -> None: ...

    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: Full())
    used = sorter(1000, folder=str(tmp_path))
    used.add(batch([(number, 0, 0, number) for number in range(100)]))
    with pytest.raises(StorageFailed, match=r"No space left on device.*sort_folder.*sort_memory"):
        await used.spill()
    await used.close()


async def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    used = sorter(1000, folder=str(tmp_path / "file"))
    used.add(batch([(number, 0, 0, number) for number in range(100)]))
    with pytest.raises(StorageFailed, match="sort_folder"):
        await used.spill()
    await used.close()


async def test_values_without_a_format_stay_in_memory_and_are_not_spilled() -> None:
    class Local:
        pass

    used = sorter(PLENTY)
    values = [Local(), Local()]
    used.add(Batch(values, None, ["a", "a"], [0, 0]))
    assert [value for *_, value in by_key(await given_out(used))["a"]] == values
    await used.close()
    used = sorter(10)
    used.add(Batch(values, None, ["a", "a"], [0, 0]))
    with pytest.raises(UnserialisableValue, match=r"'downstream' takes in more than sort_memory holds.*Local"):
        await used.spill()
    await used.close()


async def test_origins_survive(tmp_path: Path) -> None:
    for memory in (PLENTY, 2000):
        used = sorter(memory)
        await taken_in(used, [(number % 7, number, 0, number) for number in range(100)], 10)
        for one in await given_out(used):
            for _, each in one.batches:
                assert [each.origin(place) for place in range(len(each))] == [f"file:{value}" for value in each.values]
        await used.close()
