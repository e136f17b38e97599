"""The benchmark of async calls, small: what it measures is all that it says."""

import asyncio

import pytest

from benchmarks import async_calls
from benchmarks.async_calls import CAPACITY, LATENCY, Measured, _measured, table
from tests.runtime.feeds import PATIENCE


async def test_every_row_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_calls, "CAPACITY", capacity := 100)
    async with asyncio.timeout(PATIENCE):
        rows = await _measured(1, 400, 100)
    assert [row.name.partition(",")[0] for row in rows] == ["asyncio.sleep(0.05)"] * 2 + ["HTTP"] * 2
    for row in rows:
        assert 0 < row.flow[0] <= capacity / LATENCY and row.share > 0
    assert table(rows).row_count == 4


def test_the_share_is_that_of_the_smaller_limit() -> None:
    ceiling = CAPACITY / LATENCY
    assert Measured("", [2 * ceiling], [ceiling / 2], "").share == 0.5
    assert Measured("", [ceiling / 2], [ceiling / 4], "").share == 0.5
