"""Joins, `deduplicate`, `top_n` over crashes, rescales and changes of the backend: every result once, nothing left."""

import asyncio
import datetime as dt
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import streamactors as sa
from connectors.memory import ListSink
from tests.recovery.test_backends import settings
from tests.runtime.feeds import PATIENCE, Feed, until
from tests.runtime.test_timers import pending

pytestmark = pytest.mark.slow

KEYS = 7
LEG = 150
LEGS = 3
BOUND = dt.timedelta(milliseconds=40)


def ms(milliseconds: int) -> dt.timedelta:
    return dt.timedelta(milliseconds=milliseconds)


class Row(NamedTuple):
    side: str
    number: int

    @property
    def key(self) -> int:
        return self.number * (3 if self.side == "left" else 5) % KEYS

    @property
    def time(self) -> int:
        """In disorder, within the bound."""
        return 10 * self.number + 7 * self.number % 5 * 8


def key_of(row: Row) -> int:
    return row.key


WATERMARKS: sa.Watermarks[Row] = sa.Watermarks.bounded(lambda row: row.time, BOUND)

Keyed = sa.KeyedStream[int, Row]
Expected = Callable[[list[Row], list[Row]], list[Any]]


class Case(NamedTuple):
    """`expected` of all rows of both sides."""

    step: Callable[[Keyed, Keyed], sa.Stream[Any]]
    expected: Expected


def within(lower: int, upper: int) -> Expected:
    return lambda lefts, rights: [
        (left, right)
        for left in lefts
        for right in rights
        if left.key == right.key and lower <= right.time - left.time <= upper
    ]


def outer(lower: int, upper: int) -> Expected:
    def expected(lefts: list[Row], rights: list[Row]) -> list[Any]:
        pairs = within(lower, upper)(lefts, rights)
        matched = {row for pair in pairs for row in pair}
        return [
            *pairs,
            *((left, None) for left in lefts if left not in matched),
            *((None, right) for right in rights if right not in matched),
        ]

    return expected


def tumbling(size: int) -> Expected:
    return lambda lefts, rights: [
        (left, right)
        for left in lefts
        for right in rights
        if left.key == right.key and left.time // size == right.time // size
    ]


def sessions(gap: int) -> Expected:
    def expected(lefts: list[Row], rights: list[Row]) -> list[Any]:
        number, session_of, before = 0, {}, None
        for row in sorted([*lefts, *rights], key=lambda row: (row.key, row.time)):
            if before is None or row.key != before.key or row.time - before.time > gap:
                number += 1
            session_of[row] = number
            before = row
        return [(left, right) for left in lefts for right in rights if session_of[left] == session_of[right]]

    return expected


def as_of(lefts: list[Row], rights: list[Row]) -> list[Any]:
    found: list[Any] = []
    for left in lefts:
        before = [row for row in rights if row.key == left.key and row.time <= left.time]
        found.append((left, max(before, key=lambda row: (row.time, row.number), default=None)))
    return found


def spaced(lefts: list[Row], rights: list[Row]) -> list[Any]:
    """Of each key the rows, in the order of arrival, that are 500 ms after the one before."""
    found: dict[int, list[Row]] = {}
    for left in lefts:
        passed = found.setdefault(left.key, [])
        if not passed or left.time - passed[-1].time >= 500:
            passed.append(left)
    return [row for rows in found.values() for row in rows]


def rankings(lefts: list[Row], rights: list[Row]) -> list[Any]:
    found: list[Any] = []
    best: dict[int, list[Row]] = {}
    for left in lefts:
        ranking = sorted([*best.get(left.key, []), left], key=rank_of, reverse=True)[:3]
        if ranking != best.get(left.key):
            best[left.key] = ranking
            found.append(ranking)
    return found


def rank_of(row: Row) -> int:
    return row.number * 11 % 101


CASES: dict[str, Case] = {
    "interval": Case(lambda left, right: left.interval_join("step", right, ms(-200), ms(300)), within(-200, 300)),
    "outer": Case(lambda left, right: left.outer_join("step", right, ms(10), ms(60)), outer(10, 60)),
    "tumbling": Case(lambda left, right: left.window_join("step", right, sa.Tumbling(ms(500))), tumbling(500)),
    "session": Case(lambda left, right: left.window_join("step", right, sa.Session(ms(45))), sessions(45)),
    "as-of": Case(lambda left, right: left.as_of_join("step", right), as_of),
    "deduplicate": Case(lambda left, right: left.deduplicate("step", within=ms(500)), spaced),
    "top-n": Case(lambda left, right: left.top_n("step", 3, rank_of), rankings),
}


class Job:
    """What is read, and what comes out."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.left, self.right = Feed(chunk=7), Feed(chunk=11)
        self.sink = ListSink[Any]()

    def flow(self) -> sa.Dataflow:
        flow = sa.Dataflow("joined")
        left, right = (
            flow.source(side, feed, watermarks=WATERMARKS, parallelism=1).key_by(key_of)
            for side, feed in (("left", self.left), ("right", self.right))
        )
        self.case.step(left, right).sink("out", self.sink, parallelism=1)
        right.filter(lambda row: False).print()  # so that it is read whatever the case
        return flow

    def put(self, first: int, last: int) -> None:
        self.left.put(*(Row("left", number) for number in range(first, last)))
        self.right.put(*(Row("right", number) for number in range(first, last)))

    def end(self) -> None:
        self.left.end()
        self.right.end()

    def expected(self) -> list[Any]:
        return self.case.expected(self.left.values[0], self.right.values[0])


def read(job: sa.JobHandle) -> int:
    """Records that have come to the step."""
    subtasks = job.metrics()["subtasks"].items()
    return sum(each["nodes"]["step"]["records_in"] for name, each in subtasks if name.startswith("step["))


@pytest.mark.parametrize("alignment", ["aligned", "unaligned"])
@pytest.mark.parametrize("backends", [("heap", "rocksdb", "heap"), ("rocksdb", "rocksdb", "heap")])
@pytest.mark.parametrize("case", CASES)
async def test_crashed_rescaled_and_restored(
    tmp_path: Path, case: str, backends: tuple[str, ...], alignment: Any
) -> None:
    job, small = Job(CASES[case]), sa.RocksDB(memory=8 << 20, cache=16)
    for leg, (backend, parallelism) in enumerate(zip(backends, (2, 3, 1), strict=True)):
        given = settings(tmp_path, small if backend == "rocksdb" else backend, parallelism, alignment=alignment)
        if leg == LEGS - 1:
            job.put(leg * LEG, LEGS * LEG)
            job.end()
            async with asyncio.timeout(PATIENCE):
                await sa.run(job.flow(), given)
            break
        async with sa.start(job.flow(), given, on_exit="cancel") as running:
            job.put(leg * LEG, leg * LEG + LEG // 2)
            await until(lambda running=running: read(running) > LEG // 4)  # type: ignore[misc]
            await running.checkpoint()
            job.put(leg * LEG + LEG // 2, (leg + 1) * LEG)
            if case not in ("deduplicate", "top-n"):
                await until(lambda running=running: pending(running))  # type: ignore[misc]
    wanted = job.expected()
    assert len(wanted) > 50
    assert Counter(map(repr, job.sink.values)) == Counter(map(repr, wanted))


async def test_rows_that_wait_for_other_windows_are_refused(tmp_path: Path) -> None:
    job = Job(CASES["tumbling"])
    job.put(0, 20)
    async with sa.start(job.flow(), settings(tmp_path, "heap", 2), on_exit="cancel") as running:
        await until(lambda: pending(running))
        await running.checkpoint()
    job.case = CASES["tumbling"]._replace(
        step=lambda left, right: left.window_join("step", right, sa.Tumbling(ms(700)))
    )
    with pytest.raises(sa.IncompatibleState, match=r"rows for other windows, 'Tumbling\(0:00:00.500000\)'") as failed:
        await sa.run(job.flow(), settings(tmp_path, "heap", 3))
    assert "'step'" in str(failed.value)


@pytest.mark.parametrize("backend", ["heap", "rocksdb"])
@pytest.mark.parametrize("case", ["interval", "outer", "tumbling", "session", "deduplicate"])
async def test_no_state_is_left_behind(tmp_path: Path, case: str, backend: str) -> None:
    """Once a row has come that is far after all others, nothing but this row is kept."""
    job = Job(CASES[case])
    job.put(0, 100)
    last = [Row(side, 1_000_000 - (1 if side == "left" else 3)) for side in ("left", "right")]
    job.left.put(last[0])
    job.right.put(last[1])
    async with sa.start(job.flow(), settings(tmp_path, backend, 2), on_exit="cancel") as running:

        def entries() -> dict[str, int]:
            found: Counter[str] = Counter()
            for each in running.metrics()["subtasks"].values():
                found.update(each["nodes"].get("step", {}).get("entries", {}))
            return {name: count for name, count in found.items() if count and name != "structure"}

        await until(lambda: entries() and max(entries().values()) <= 2)
        sides = 1 if case == "deduplicate" else 2
        assert sum(count for name, count in entries().items() if name in ("left", "right", "seen")) == sides
        assert entries()["@timers.event"] == sides
