"""Windows over crashes, rescales and changes of the backend: every record in its windows once, every window given once,
and the same records late."""

import asyncio
import datetime as dt
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from connectors.memory import ListSink
from tests.recovery.test_backends import settings
from tests.runtime.feeds import PATIENCE, Feed, until

pytestmark = pytest.mark.slow

KEYS = 20
LEG = 400
BLOCK = 100
"""Records, after which there is a pause."""
BEHIND = 17
"""Of so many records one is late, once there have been enough."""
LATE: sa.OutputTag[int] = sa.OutputTag("late", int)


def is_late(number: int) -> bool:
    return number > 250 and number % BEHIND == 0


def time_of(number: int) -> int:
    """Every 10 ms a record, out of order by up to 40; late ones are so by two seconds and more."""
    time = 100_000 + 10 * number + 1000 * (number // BLOCK)
    return time - 5000 if is_late(number) else time - 10 * (7 * number % 5)


def key_of(number: int) -> int:
    return number % KEYS


WATERMARKS: sa.Watermarks[int] = sa.Watermarks.bounded(time_of, dt.timedelta(milliseconds=50))


def ms(count: int) -> dt.timedelta:
    return dt.timedelta(milliseconds=count)


class Whole(sa.WindowOperator[int, int, Any]):
    """Counts the windows of its key, in state of its own."""

    count = sa.ValueState(int, default=0)

    def process(self, window: sa.Windowed[int, Iterable[int]], ctx: sa.Context[int, Any]) -> None:
        self.count.set(self.count.get() + 1)
        assert ctx.key == window.key
        ctx.emit((window.key, window.start, window.end, sorted(window.value), self.count.get()))


def flattened(window: sa.Windowed[int, Any]) -> Any:
    assert window.value["count"] == len(window.value["numbers"])
    return window.key, window.start, window.end, sorted(window.value["numbers"])


def collected(windows: sa.WindowedStream[int, int]) -> sa.Stream[Any]:
    return windows.aggregate(sa.Aggregates(count=sa.Count(), numbers=sa.Collect[int]()))


def processed(windows: sa.WindowedStream[int, int]) -> sa.Stream[Any]:
    return windows.process(Whole)


Rows = list[tuple[Any, ...]]


def assigned(numbers: Iterable[int], assign: Callable[[int], list[tuple[int, int]]]) -> Rows:
    held: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for number in numbers:
        for start, end in assign(time_of(number)):
            held[key_of(number), start, end].append(number)
    return sorted((*window, sorted(found)) for window, found in held.items())


def tumbling(numbers: Iterable[int]) -> Rows:
    return assigned(numbers, lambda time: [(time // 700 * 700, time // 700 * 700 + 700)])


def sliding(numbers: Iterable[int]) -> Rows:
    return assigned(
        numbers, lambda time: [(at, at + 700) for at in range(98_000, 180_000, 200) if at <= time < at + 700]
    )


def sessions(numbers: Iterable[int]) -> Rows:
    rows: Rows = []
    for key in range(KEYS):
        own = sorted((number for number in numbers if key_of(number) == key), key=time_of)
        groups: list[list[int]] = []
        for number in own:
            if groups and time_of(number) - time_of(groups[-1][-1]) <= 400:
                groups[-1].append(number)
            else:
                groups.append([number])
        rows += [(key, time_of(each[0]), time_of(each[-1]) + 400, sorted(each)) for each in groups]
    return sorted(rows)


def counted(numbers: Iterable[int]) -> Rows:
    rows: Rows = []
    for key in range(KEYS):
        own = [number for number in numbers if key_of(number) == key]
        rows += [(key, -(2**63), 2**63 - 1, own[at : at + 7]) for at in range(0, len(own) - 6, 7)]
    return sorted(rows)


KINDS: dict[str, tuple[sa.WindowAssigner, Callable[[Iterable[int]], Rows]]] = {
    "tumbling": (sa.Tumbling(ms(700)), tumbling),
    "sliding": (sa.Sliding(ms(700), ms(200)), sliding),
    "session": (sa.Session(ms(400)), sessions),
    "count": (sa.CountWindow(7), counted),
}


def windowed(
    kind: str,
    feed: Feed,
    sink: ListSink[Any],
    late: ListSink[int],
    how: Callable[[sa.WindowedStream[int, int]], sa.Stream[Any]] = collected,
) -> sa.Dataflow:
    assigner, _ = KINDS[kind]
    flow = sa.Dataflow("windowed")
    numbers = flow.source("numbers", feed, watermarks=WATERMARKS, parallelism=1)
    windows = numbers.key_by(key_of).window("windows", assigner, late=LATE if assigner.timed else None)
    given = how(windows)
    given.sink("out", sink, parallelism=1)
    given.side_output(LATE).sink("late", late, parallelism=1)
    return flow


def rows(kind: str, sink: ListSink[Any], *, process: bool) -> Rows:
    if not process:
        return sorted(map(flattened, sink.values))
    by_key: dict[int, list[int]] = defaultdict(list)
    for key, *_, count in sink.values:
        by_key[key].append(count)
    assert all(sorted(counts) == list(range(1, len(counts) + 1)) for counts in by_key.values())
    return sorted(row[:4] for row in sink.values)


def expected(kind: str, count: int) -> tuple[Rows, list[int]]:
    """Windows, and late records. Nothing is late for a count."""
    late = [] if kind == "count" else [number for number in range(count) if is_late(number)]
    return KINDS[kind][1]([number for number in range(count) if number not in set(late)]), late


@pytest.mark.parametrize(
    ("kind", "backends", "alignment", "process"),
    [
        ("tumbling", ("heap", "heap", "heap"), "aligned", False),
        ("tumbling", ("rocksdb", "rocksdb", "rocksdb"), "unaligned", True),
        ("sliding", ("heap", "rocksdb", "heap"), "unaligned", False),
        ("sliding", ("rocksdb", "heap", "rocksdb"), "aligned", True),
        ("session", ("heap", "heap", "heap"), "unaligned", True),
        ("session", ("rocksdb", "rocksdb", "rocksdb"), "aligned", False),
        ("session", ("heap", "rocksdb", "heap"), "aligned", False),
        ("count", ("heap", "rocksdb", "heap"), "unaligned", False),
        ("count", ("rocksdb", "rocksdb", "rocksdb"), "aligned", True),
    ],
)
async def test_crashed_rescaled_and_restored(
    tmp_path: Path, kind: str, backends: tuple[str, ...], alignment: Any, process: bool
) -> None:
    feed, sink, late = Feed(chunk=7), ListSink[Any](), ListSink[int]()
    how = processed if process else collected
    small = sa.RocksDB(memory=8 << 20, cache=32)
    for leg, (backend, parallelism) in enumerate(zip(backends, (2, 3, 1), strict=True)):
        flow = windowed(kind, feed, sink, late, how)
        given = settings(tmp_path, small if backend == "rocksdb" else backend, parallelism, alignment=alignment)
        if leg == 2:
            feed.put(*range(leg * LEG, 3 * LEG))
            feed.end()
            async with asyncio.timeout(PATIENCE):
                await sa.run(flow, given)
            break
        async with sa.start(flow, given, on_exit="cancel") as job:
            feed.put(*range(leg * LEG, leg * LEG + LEG // 2))
            await until(lambda: taken(job))
            await job.checkpoint()
            feed.put(*range(leg * LEG + LEG // 2, (leg + 1) * LEG))
            await until(lambda job=job: taken(job) > LEG // 2)  # type: ignore[misc]
    windows, were_late = expected(kind, 3 * LEG)
    assert rows(kind, sink, process=process) == windows
    assert sorted(late.values) == were_late
    assert len(windows) > KEYS


def taken(job: sa.JobHandle) -> int:
    """Records that have come to the windows."""
    nodes = (node for each in job.metrics()["subtasks"].values() for node in each["nodes"].items())
    return sum(node["records_in"] for uid, node in nodes if uid == "windows")
