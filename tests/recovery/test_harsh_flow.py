"""Failures in a record, in the snapshot, on restoring and on closing, at any parallelism, with every mailbox full:
nothing is lost, comes twice or comes out of order, though checkpoints hold records in flight."""

import datetime as dt
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from streamactors.checkpoint import writer
from tests.recovery.harsh import (
    Leg,
    Topology,
    World,
    broadcast,
    diamond,
    forward,
    multi_input,
    pipeline,
    rebalanced,
    sided,
)

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def each_file_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the writing of what is in flight can be told, and made to fail: a small file shares its name with others
    where it is packed."""
    monkeypatch.setattr(writer, "SMALL", 0)


Mode = dict[str, Any]
MODES: dict[str, Mode] = {
    "aligned": {},
    "unaligned": {"alignment": "unaligned"},
    "timeout-0": {"alignment_timeout": dt.timedelta(0)},
    "timeout-3ms": {"alignment_timeout": dt.timedelta(milliseconds=3)},
    "unaligned-3-at-once": {"alignment": "unaligned", "max_concurrent": 3},
    "timeout-3ms-3-at-once": {"alignment_timeout": dt.timedelta(milliseconds=3), "max_concurrent": 3},
}
OVERTAKING = ["unaligned", "timeout-3ms"]
RECORD, SNAPSHOT, RESTORE, CLOSE, STORAGE = ALL = ("record", "snapshot", "restore", "close", "storage")
NOTHING_WRONG = {"lost": 0, "duplicated": 0, "out of order": 0}

Failures = Sequence[Sequence[str]]
"""By leg: what fails in it, and one of them is a record wherever the others need an attempt that fails already."""


def everything(legs: int) -> Failures:
    return [ALL] * legs


async def fail(leg: Leg, places: Sequence[str]) -> None:
    """Each after a checkpoint that the job then goes back to."""
    if SNAPSHOT in places:
        await leg.fail("prepare", after=1)
    if STORAGE in places:
        await leg.fail_storage("write", "*-in-flight" if leg.world.overtaking else "*/chk-*")
    for place in {RESTORE: "open", CLOSE: "close"}.keys() & set(places):
        leg.world.faults.arm({RESTORE: "open", CLOSE: "close"}[place])
    if {RECORD, RESTORE, CLOSE} & set(places):
        await leg.fail("map", after=5)


async def survives(
    folder: Path, topology: Topology, mode: str, widths: Sequence[int], failures: Failures | None = None, **options: Any
) -> World:
    """One leg after another, each from what the one before has left behind by a crash; the last to its end."""
    failures = failures or everything(len(widths))
    partitions = max(6, max(widths) + 3)
    options |= MODES[mode]
    world = World(folder, topology, partitions=partitions, overtaking=mode != "aligned", kept=min(widths), **options)
    for place, width in enumerate(widths):
        async with world.leg(width) as leg:
            await fail(leg, failures[place])
            await leg.checkpointed()
            if place == len(widths) - 1:
                await world.finish(leg)
    assert world.verdict() == NOTHING_WRONG
    assert_it_was_harsh(world, failures)
    return world


def assert_it_was_harsh(world: World, failures: Failures) -> None:
    """All failures happened, and every one was recovered from by putting records in flight back, as was each crash."""
    hits = Counter(place for places in failures for place in {RECORD, *places} - {STORAGE, SNAPSHOT})
    hits += Counter(place for places in failures for place in places if place in (STORAGE, SNAPSHOT))
    assert world.faults.hits == Counter({PLACES[place]: count for place, count in hits.items()})
    # One that fails on closing has failed before.
    restarts = hits.total() - hits[CLOSE]
    assert world.restarts == restarts
    assert len(world.restored) == restarts + len(failures) - 1
    restored = [restored.in_flight for restored in world.restored]
    assert min(restored) > 0 if world.overtaking else max(restored) == 0


PLACES = {RECORD: "map", SNAPSHOT: "prepare", RESTORE: "open", CLOSE: "close", STORAGE: "storage"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("widths", [(1, 2, 1), (3, 7, 3), (5,)], ids=str)
async def test_pipeline(widths: tuple[int, ...], mode: str, tmp_path: Path) -> None:
    await survives(tmp_path, pipeline, mode, widths)


@pytest.mark.parametrize("backends", [("rocksdb",), ("rocksdb", "heap")], ids=["rocksdb", "either"])
@pytest.mark.parametrize("mode", ["aligned", *OVERTAKING])
async def test_on_disk(mode: str, backends: Sequence[str], tmp_path: Path) -> None:
    """By native checkpoints, which the other backend restores too."""
    world = await survives(tmp_path, pipeline, mode, (3, 5, 2), backends=backends)
    assert list(world.local.iterdir()) == []


@pytest.mark.parametrize("mode", OVERTAKING)
async def test_wide_pipeline(mode: str, tmp_path: Path) -> None:
    await survives(tmp_path, pipeline, mode, (20, 21, 20), [(SNAPSHOT, CLOSE), (RECORD, RESTORE), (STORAGE, RECORD)])


@pytest.mark.parametrize("mode", OVERTAKING)
@pytest.mark.parametrize("widths", [(1, 2, 1), (3, 7, 3)], ids=str)
@pytest.mark.parametrize("topology", [multi_input, rebalanced, forward, broadcast, sided, diamond])
async def test_other_topologies(topology: Topology, widths: tuple[int, ...], mode: str, tmp_path: Path) -> None:
    await survives(tmp_path, topology, mode, widths)


@pytest.mark.parametrize("mode", OVERTAKING)
async def test_failures_that_are_tolerated_restart_nothing(mode: str, tmp_path: Path) -> None:
    """Of what was captured for them nothing is left over, and the ones after them are whole."""
    world = World(tmp_path, pipeline, tolerable_failures=100, max_concurrent=2, **MODES[mode])
    async with world.leg(3) as leg:
        await leg.checkpointed()
        refused = [world.files.fail("write", pattern, nth=3, times=4) for pattern in ("*-in-flight", "*verify*")]
        await leg.until(lambda: all(failure.hits == 4 for failure in refused))
        await leg.checkpointed()
        assert leg.job.metrics()["restarts"] == 0
    async with world.leg(2) as leg:
        await leg.checkpointed()
        await world.finish(leg)
    assert world.verdict() == NOTHING_WRONG
    assert [restored.in_flight > 0 for restored in world.restored] == [True]


@pytest.mark.parametrize("mode", OVERTAKING)
@pytest.mark.parametrize("topology", [pipeline, multi_input])
async def test_checkpoints_given_up_by_the_dozen(topology: Topology, mode: str, tmp_path: Path) -> None:
    """Aborts at any moment, before their barriers and behind them, with others under way; and crashes in between."""
    world = World(tmp_path, topology, tolerable_failures=10_000, max_concurrent=3, **MODES[mode])
    world.files.slow(0.05, "write", "*/chk-*[02468]/*-in-flight")  # a later one completes first, or it times out
    for width in (3, 2, 3):
        async with world.leg(width, timeout=dt.timedelta(milliseconds=400)) as leg:
            await leg.aborts(10)
            await leg.fail("map", after=3)
            await leg.checkpointed()
    async with world.leg(2) as leg:
        await world.finish(leg)
    assert world.verdict() == NOTHING_WRONG
    assert world.given_up >= 30 and min(restored.in_flight for restored in world.restored) > 0


async def test_the_mode_changes_with_every_restore(tmp_path: Path) -> None:
    """What one mode has left in flight, another takes up."""
    modes = ["unaligned", "aligned", "timeout-0", "unaligned-3-at-once", "aligned", "timeout-3ms", "aligned"]
    world = World(tmp_path, forward)
    for place, mode in enumerate(modes):
        world.overtaking = mode != "aligned"
        async with world.leg(1 + place % 3, **MODES[mode]) as leg:
            await leg.checkpointed()
            await leg.fail("map", after=5)
            await leg.checkpointed()
            if place == len(modes) - 1:
                await world.finish(leg)
    assert world.verdict() == NOTHING_WRONG
    assert world.restarts == len(modes)
    assert sum(restored.in_flight > 0 for restored in world.restored) == 2 * modes.count("aligned") + 2
