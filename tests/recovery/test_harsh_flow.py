"""Failures in a record, in the snapshot, on restoring and on closing, at any parallelism, with every mailbox full: nothing
is lost, nothing comes twice, and nothing comes out of order, though checkpoints hold records in flight."""

import datetime as dt
from pathlib import Path
from typing import Any

import pytest

from tests.recovery.harsh import Topology, World, broadcast, forward, multi_input, pipeline, rebalanced

Mode = dict[str, Any]
UNALIGNED: Mode = {"alignment": "unaligned"}
TIMEOUT_0: Mode = {"alignment_timeout": dt.timedelta(0)}
TIMEOUT_SHORT: Mode = {"alignment_timeout": dt.timedelta(milliseconds=3)}
ALIGNED: Mode = {}
NAMES = {id(UNALIGNED): "unaligned", id(TIMEOUT_0): "timeout-0", id(TIMEOUT_SHORT): "timeout-3ms", id(ALIGNED): "aligned"}
NOTHING_WRONG = {"lost": 0, "duplicated": 0, "out of order": 0}
WIDTHS = [(1, 2, 1), (3, 7, 3), (5,), (20, 21, 20)]

pytestmark = pytest.mark.slow


def overtakes(mode: Mode) -> bool:
    return mode is not ALIGNED


async def run_through(tmp_path: Path, topology: Topology, widths: tuple[int, ...], mode: Mode) -> World:
    """At each width: every kind of failure once, each after a checkpoint; then a crash, or the end."""
    world = World(tmp_path, topology, partitions=max(6, max(widths) + 3), overtaking=overtakes(mode), **mode)
    for place, width in enumerate(widths):
        async with world.leg(width) as leg:
            await leg.fail("map", after=5)
            await leg.fail("prepare", after=1)
            world.faults.arm("open")
            world.faults.arm("close")
            await leg.fail("map", after=3)
            await leg.fail_storage("write", "*-in-flight" if overtakes(mode) else "*/chk-*")
            await leg.checkpointed()
            if place == len(widths) - 1:
                await world.finish(leg)
    print(world.faults.hits, world.restarts, [r.in_flight for r in world.restored], world.committed)
    return world


def check(world: World, widths: tuple[int, ...], mode: Mode) -> None:
    assert world.verdict() == NOTHING_WRONG
    legs = len(widths)
    storage = "write *-in-flight" if overtakes(mode) else "write */chk-*"
    assert world.faults.hits == {"map": 2 * legs, "prepare": legs, "open": legs, "close": legs, storage: legs}
    assert world.restarts == 5 * legs
    # Every restart and every rescale.
    assert len(world.restored) == 6 * legs - 1
    restored = [restored.in_flight for restored in world.restored]
    assert min(restored) > 0 if overtakes(mode) else max(restored) == 0


@pytest.mark.parametrize("mode", [UNALIGNED, TIMEOUT_0, TIMEOUT_SHORT, ALIGNED], ids=lambda mode: NAMES[id(mode)])
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
async def test_pipeline(widths: tuple[int, ...], mode: Mode, tmp_path: Path) -> None:
    check(await run_through(tmp_path, pipeline, widths, mode), widths, mode)


@pytest.mark.parametrize("mode", [UNALIGNED, TIMEOUT_SHORT], ids=lambda mode: NAMES[id(mode)])
@pytest.mark.parametrize("widths", [(1, 2, 1), (3, 7, 3)], ids=str)
@pytest.mark.parametrize("topology", [multi_input, rebalanced, forward, broadcast])
async def test_topologies(topology: Topology, widths: tuple[int, ...], mode: Mode, tmp_path: Path) -> None:
    check(await run_through(tmp_path, topology, widths, mode), widths, mode)
