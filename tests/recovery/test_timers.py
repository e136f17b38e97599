"""Timers over crashes, rescales and changes of the backend: each fires once, also where a watermark was firing them."""

import asyncio
import datetime as dt
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from connectors.memory import ListSink
from streamactors import state_processor
from streamactors.checkpoint.restorable import list_checkpoints
from tests.recovery.test_backends import settings
from tests.runtime.feeds import PATIENCE, Feed, Gate, until
from tests.runtime.test_timers import pending

pytestmark = pytest.mark.slow

KEYS = 20
LEG = 400
WAITS = (0, 300, 7000)
"""Milliseconds after a record's own time (10 a record): soon, later, and in a later leg."""

WATERMARKS: sa.Watermarks[int] = sa.Watermarks.bounded(lambda number: 10 * number, dt.timedelta(milliseconds=50))


def delays(feed: Feed, sink: ListSink[Any], gate: Gate | None = None) -> sa.Dataflow:
    """`gate`: what each timer waits for."""

    class Delay(sa.KeyedOperator[int, int, Any]):
        missing = sa.MapState(str, int)

        def process(self, number: int, ctx: sa.Context[int, Any]) -> None:
            for wait in WAITS:
                ctx.timers.event(10 * number + wait, f"{number}+{wait}")
                self.missing[f"{number}+{wait}"] = number
            ctx.timers.event(10 * number + 500, "never")
            ctx.timers.delete(10 * number + 500, "never")

        def on_timer(self, timer: sa.Timer, ctx: sa.Context[int, Any]) -> None:
            assert ctx.watermark >= timer.timestamp
            del self.missing[timer.name]
            ctx.emit(timer.name)

    class Gated(Delay):
        async def on_timer(self, timer: sa.Timer, ctx: sa.Context[int, Any]) -> None:  # type: ignore[override]
            assert gate is not None
            await gate(None)
            super().on_timer(timer, ctx)

    flow = sa.Dataflow("delays")
    numbers = flow.source("numbers", feed, watermarks=WATERMARKS, parallelism=1)
    delayed = numbers.key_by(lambda number: number % KEYS).process("delay", Delay if gate is None else Gated)
    delayed.sink("out", sink, parallelism=1)
    return flow


def expected(count: int) -> list[str]:
    return sorted(f"{number}+{wait}" for number in range(count) for wait in WAITS)


@pytest.mark.parametrize("alignment", ["aligned", "unaligned"])
@pytest.mark.parametrize("backends", [("heap", "heap", "heap"), ("rocksdb",) * 3, ("heap", "rocksdb", "heap")])
async def test_crashed_rescaled_and_restored(tmp_path: Path, backends: tuple[str, ...], alignment: Any) -> None:
    feed, sink = Feed(chunk=7), ListSink[Any]()
    small = sa.RocksDB(memory=8 << 20, cache=32)
    for leg, (backend, parallelism) in enumerate(zip(backends, (2, 3, 1), strict=True)):
        given = settings(tmp_path, small if backend == "rocksdb" else backend, parallelism, alignment=alignment)
        if leg == 2:
            feed.put(*range(leg * LEG, 3 * LEG))
            feed.end()
            async with asyncio.timeout(PATIENCE):
                await sa.run(delays(feed, sink), given)
            break
        async with sa.start(delays(feed, sink), given, on_exit="cancel") as job:
            feed.put(*range(leg * LEG, leg * LEG + LEG // 2))
            await until(lambda: pending(job))
            await job.checkpoint()
            feed.put(*range(leg * LEG + LEG // 2, (leg + 1) * LEG))
            await until(lambda job=job: pending(job))  # type: ignore[misc]
    assert sorted(sink.values) == expected(3 * LEG)


@pytest.mark.parametrize("incremental", [True, False])
@pytest.mark.parametrize("backend", ["heap", "rocksdb"])
@pytest.mark.parametrize("parallelism", [2, 3, 1])
async def test_a_watermark_that_is_firing_is_in_flight(
    tmp_path: Path, parallelism: int, backend: str, incremental: bool
) -> None:
    """The checkpoint is taken in the middle of a watermark: it holds the timers that have not fired, and the watermark;
    restored, the rest fires, whoever has the keys now."""
    options: dict[str, Any] = {"alignment": "unaligned", "incremental": incremental}
    feed, sink, gate = Feed(chunk=100), ListSink[Any](), Gate(passes=150, delay=0.05)
    feed.put(*range(100))
    async with sa.start(delays(feed, sink, gate), settings(tmp_path, backend, 2, **options), on_exit="cancel") as job:
        await until(lambda: gate.held)
        await job.checkpoint()
    [latest, *_] = await list_checkpoints((tmp_path / "checkpoints").as_uri())
    assert latest.manifest is not None
    assert sum(not frame.records for _, _, frame in latest.manifest.in_flight()) >= 1, "no watermark was in flight"
    before = len(sink.values)
    assert 0 < before < 300
    feed.put(*range(100, LEG))
    feed.end()
    async with asyncio.timeout(PATIENCE):
        await sa.run(delays(feed, sink), settings(tmp_path, backend, parallelism, **options))
    assert sorted(sink.values) == expected(LEG)


@pytest.mark.parametrize("backend", ["heap", "rocksdb"])
async def test_the_last_watermark_is_never_stored(tmp_path: Path, backend: str) -> None:
    """A checkpoint while the end of the data fires timers: restored, more data may come, and nothing is late."""
    feed, sink, gate = Feed(chunk=100), ListSink[Any](), Gate(passes=250, delay=0.05)
    feed.put(*range(100))
    feed.end()
    given = settings(tmp_path, backend, 2, alignment="unaligned")
    async with sa.start(delays(feed, sink, gate), given, on_exit="cancel") as job:
        await until(lambda: gate.held)
        await job.checkpoint()
    assert len(sink.values) < 300
    feed.put(*range(100, LEG))
    async with asyncio.timeout(PATIENCE):
        await sa.run(delays(feed, sink), settings(tmp_path, backend, 3, alignment="unaligned"))
    assert sorted(sink.values) == expected(LEG)


async def test_a_savepoint_carries_them_over_and_state_can_be_looked_at(tmp_path: Path) -> None:
    feed, sink = Feed(), ListSink[Any]()
    feed.put(*range(100))
    async with sa.start(delays(feed, sink), settings(tmp_path, "rocksdb", 2), on_exit="cancel") as job:
        await until(lambda: pending(job) > 100)
        uri = await job.savepoint((tmp_path / "saved").as_uri())
    feed.put(*range(100, LEG))
    feed.end()
    async with asyncio.timeout(PATIENCE):
        await sa.run(delays(feed, sink), settings(tmp_path / "other", "heap", 3), restore=uri)
    # What had fired before the savepoint came out of the first job.
    assert sorted(set(sink.values)) == expected(LEG)


class NoMore(sa.KeyedOperator[int, int, Any]):
    missing = sa.MapState(str, int)

    def process(self, number: int, ctx: sa.Context[int, Any]) -> None:
        return None


async def test_timers_of_an_operator_that_has_no_on_timer_any_more_are_refused(tmp_path: Path) -> None:
    feed, sink = Feed(), ListSink[Any]()
    feed.put(*range(100))
    async with sa.start(delays(feed, sink), settings(tmp_path, "heap", 2), on_exit="cancel") as job:
        await until(lambda: pending(job) > 100)
        await job.checkpoint()
    flow = sa.Dataflow("delays")
    numbers = flow.source("numbers", feed, watermarks=WATERMARKS, parallelism=1)
    numbers.key_by(lambda number: number % KEYS).process("delay", NoMore).sink("out", sink, parallelism=1)
    with pytest.raises(sa.IncompatibleState, match="operator 'delay' has stored timers, and defines no on_timer"):
        await sa.run(flow, settings(tmp_path, "heap", 2))


@pytest.mark.parametrize("backend", ["heap", "rocksdb"])
async def test_pending_timers_can_be_looked_at_and_moved(tmp_path: Path, backend: str) -> None:
    """As a map of each key's: (time, name) → True. With another max parallelism they lie elsewhere, and fire too."""
    feed, sink = Feed(), ListSink[Any]()
    feed.put(*range(100))
    async with sa.start(delays(feed, sink), settings(tmp_path, backend, 2), on_exit="cancel") as job:
        await until(lambda: pending(job) > 100)
        await job.checkpoint()
    async with state_processor.open((tmp_path / "checkpoints").as_uri(), flow="delays") as snapshot:
        found = [row async for row in snapshot.state("delay", "@timers.event")]
        missing = [row async for row in snapshot.state("delay", "missing")]
        moved = await snapshot.transform().with_max_parallelism(12).write((tmp_path / "moved").as_uri())
    assert {(key, name) for key, (_, name), _ in found} == {(key, name) for key, name, _ in missing} != set()
    assert all(time == sum(map(int, name.replace("+", "0+").split("+"))) for _, (time, name), _ in found)
    feed.put(*range(100, LEG))
    feed.end()
    async with asyncio.timeout(PATIENCE):
        await sa.run(delays(feed, sink), settings(tmp_path / "other", backend, 3), restore=moved)
    assert sorted(sink.values) == expected(LEG)


@pytest.mark.parametrize("drain", [True, False])
async def test_a_stop_keeps_them_and_a_drain_fires_them(tmp_path: Path, drain: bool) -> None:
    feed, sink = Feed(), ListSink[Any]()
    feed.put(*range(100))
    async with sa.start(delays(feed, sink), settings(tmp_path, "heap", 2), on_exit="cancel") as job:
        await until(lambda: pending(job) > 100)
        await job.stop(drain=drain)
    assert (sorted(sink.values) == expected(100)) == drain
    if not drain:
        feed.end()
        async with asyncio.timeout(PATIENCE):
            await sa.run(delays(feed, sink), settings(tmp_path, "rocksdb", 3))
        assert sorted(sink.values) == expected(100)
