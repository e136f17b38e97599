"""Unaligned checkpoints of whole jobs: what is in flight is stored, and comes back, at any parallelism, exactly once."""

import asyncio
import datetime as dt
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from connectors.memory import ListSink
from tests.runtime.feeds import PATIENCE, Feed, until

NUMBERS = list(range(4000))
KEYS = 7


class Count(sa.KeyedOperator[int, int, tuple[int, int]]):
    count = sa.ValueState(int, default=0)

    def process(self, value: int, ctx: sa.Context[int, tuple[int, int]]) -> None:
        self.count.set(self.count.get() + 1)
        ctx.emit((value, self.count.get()))


class Gate:
    """Lets `passes` records pass, then each only after a long while: everything before it is full."""

    def __init__(self, passes: int) -> None:
        self.passes = passes
        self.held = 0

    async def __call__(self, value: Any) -> Any:
        if self.passes > 0:
            self.passes -= 1
            return value
        self.held += 1
        await asyncio.sleep(0.02)
        return value


def config(path: Path, parallelism: int = 2, **checkpoints: Any) -> sa.Config:
    settings: dict[str, Any] = {"interval": dt.timedelta(hours=1), "alignment": "unaligned", **checkpoints}
    return sa.Config(
        checkpoints=sa.Checkpoints(path.as_uri(), **settings), parallelism=parallelism, mailbox_capacity=64
    )


def gated(feed: Feed, gate: Gate, sink: ListSink[Any], *, chain: bool = True) -> sa.Dataflow:
    flow = sa.Dataflow("gated")
    counted = flow.source("numbers", feed).map(lambda v: v).key_by(lambda v: v % KEYS).process("count", Count)
    counted.map(gate, chain=chain, name="gate").sink("out", sink)
    return flow


def expected() -> list[tuple[int, int]]:
    return sorted((value, value // KEYS + 1) for value in NUMBERS)


def in_order_per_key(items: list[tuple[int, int]]) -> bool:
    by_key: dict[int, list[int]] = {}
    for value, count in items:
        by_key.setdefault(value % KEYS, []).append(count)
    return all(counts == sorted(counts) for counts in by_key.values())


async def checkpoint_and_crash(flow: sa.Dataflow, feed: Feed, gate: Gate, settings: sa.Config) -> Any:
    """A checkpoint while everything is stuck, and no chance to end well."""
    feed.put(*NUMBERS)
    async with sa.start(flow, settings) as job:
        await until(lambda: gate.held)
        await until(lambda: job.metrics()["subtasks"]["numbers[0]"]["unsent"])
        async with asyncio.timeout(PATIENCE):
            info = await job.checkpoint()
        await job.cancel()
    return info


@pytest.mark.parametrize("chain", [True, False])
@pytest.mark.parametrize("parallelism", [1, 2, 3])
async def test_what_is_in_flight_comes_back_at_any_parallelism(tmp_path: Path, parallelism: int, chain: bool) -> None:
    feed, sink = Feed(chunk=256), ListSink[Any]()
    gate = Gate(100)
    info = await checkpoint_and_crash(gated(feed, gate, sink, chain=chain), feed, gate, config(tmp_path))
    assert info.inflight_bytes > 0
    feed.end()
    gate = Gate(10**9)
    async with asyncio.timeout(PATIENCE):
        await sa.run(gated(feed, gate, sink, chain=chain), config(tmp_path, parallelism))
    assert Counter(sink.values) == Counter(expected())
    assert in_order_per_key(sink.values)
