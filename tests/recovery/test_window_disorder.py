"""Whole jobs over records in any order: within the bound nothing is late, beyond it nothing vanishes."""

import asyncio
import datetime as dt
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamactors as sa
from connectors.memory import ListSink
from tests.runtime.feeds import PATIENCE, Feed

pytestmark = pytest.mark.slow

BOUND = 300
SIZE = 100
Row = tuple[int, int]
"""(number, time-stamp)."""


def job(rows: list[Row], parallelism: int, backend: Any) -> tuple[list[sa.Windowed[int, list[Row]]], list[Row]]:
    feed, sink, beside = Feed(chunk=3), ListSink[Any](), ListSink[Row]()
    feed.put(*rows)
    feed.end()
    late: sa.OutputTag[Row] = sa.OutputTag("late", tuple)
    watermarks: sa.Watermarks[Row] = sa.Watermarks.bounded(lambda row: row[1], dt.timedelta(milliseconds=BOUND))
    flow = sa.Dataflow("disorder")
    keyed = flow.source("in", feed, watermarks=watermarks, parallelism=1).key_by(lambda row: row[0] % 5)
    given = keyed.window("w", sa.Tumbling(dt.timedelta(milliseconds=SIZE)), late=late).aggregate(sa.Collect[Row]())
    given.sink("out", sink)
    given.side_output(late).sink("late", beside)

    async def finish() -> None:
        async with asyncio.timeout(PATIENCE):
            await sa.run(flow, sa.Config(parallelism=parallelism, state_backend=backend))

    asyncio.run(finish())
    return sink.values, beside.values


@pytest.mark.parametrize(("parallelism", "backend"), [(1, "heap"), (3, "heap"), (1, "rocksdb"), (3, "rocksdb")])
@settings(max_examples=8, deadline=None)
@given(disorder=st.sampled_from([BOUND, 6 * BOUND]), seed=st.randoms(use_true_random=False))
def test_every_record_is_in_its_window_or_late(parallelism: int, backend: Any, disorder: int, seed: Any) -> None:
    times = sorted((10_000 + 20 * number + seed.randrange(disorder), number) for number in range(150))
    rows = [(number, 10_000 + 20 * number) for _, number in times]
    windows, late = job(rows, parallelism, backend)
    in_windows = [row for window in windows for row in window.value]
    assert Counter(map(tuple, [*in_windows, *late])) == Counter(rows)
    assert all(window.start <= time < window.end for window in windows for _, time in window.value)
    assert len({(window.key, window.start) for window in windows}) == len(windows)
    assert not late or disorder > BOUND


def test_beyond_the_bound_some_are_late() -> None:
    rows = [(number, 10_000 + 20 * number) for number in range(100)]
    windows, late = job([*rows, (100, 10_000), (105, 11_985)], 2, "heap")
    assert [tuple(row) for row in late] == [(100, 10_000)]
    assert sum(len(window.value) for window in windows) == 101
