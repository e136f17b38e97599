"""Order within a source split across a rescale, where records are in flight between the source and the first exchange:
they go where the rest of their split is read from then on."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

import streamactors as sa
from tests.recovery.harsh import NAME, InOrder, Record, World, partition_key

pytestmark = pytest.mark.slow


async def wait_a_little(record: Record) -> Record:
    await asyncio.sleep(0.001)
    return record


def chained(world: World) -> sa.Dataflow:
    """source + async map in one chain → key_by → verify."""
    flow = sa.Dataflow(NAME)
    mapped = flow.source("numbers", world.source()).map(wait_a_little)
    mapped.key_by(partition_key).process("verify", InOrder).sink("out", world.sink)
    return flow


def apart(world: World) -> sa.Dataflow:
    flow = sa.Dataflow(NAME)
    mapped = flow.source("numbers", world.source()).map(wait_a_little, chain=False)
    mapped.key_by(partition_key).process("verify", InOrder).sink("out", world.sink)
    return flow


@pytest.mark.parametrize("widths", [(3, 3, 3), (2, 3, 2), (3, 7, 3)], ids=str)
@pytest.mark.parametrize("topology", [chained, apart])
async def test_order_within_a_split(
    topology: Callable[[World], sa.Dataflow], widths: tuple[int, ...], tmp_path: Path
) -> None:
    world = World(tmp_path, topology, partitions=9, alignment="unaligned")
    for place, width in enumerate(widths):
        async with world.leg(width) as leg:
            for _ in range(4):
                await leg.checkpointed()
            if place == len(widths) - 1:
                await world.finish(leg)
    assert world.verdict() == {"lost": 0, "duplicated": 0, "out of order": 0}
