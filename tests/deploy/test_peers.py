"""Which way a message takes to another process: past its actor on the same node, and by that else."""

import asyncio
from typing import Any

import pytest

from streamactors.clock import SYSTEM
from streamactors.cluster.sockets import Door
from streamactors.cluster.wire import CONTROL, DATA, Epoch, Header, sealed
from streamactors.deploy.peers import PeerWire
from streamactors.errors import ConnectionLost

RECORDS = sealed(Header(DATA, Epoch(1, 1), 0, 1), b"records")
ORDERS = sealed(Header(CONTROL, Epoch(1, 1), 0, 1), b"orders")


class Actor:
    """Worker 1: what it was told, by its actor and past it."""

    def __init__(self, *, here: bool = True) -> None:
        self.by_actor: list[bytes] = []
        self.past_actor: list[bytes] = []
        self.asked = 0
        self.behind = Door(lambda sender, message: self.past_actor.append(message), SYSTEM)
        self._here = here

    async def door(self) -> str | None:
        self.asked += 1
        return self.behind.name if self._here else None

    async def take(self, sender: int, message: bytes) -> str | None:
        self.by_actor.append(message)
        return None


async def test_records_go_past_actors_on_one_node_and_orders_never() -> None:
    wire, actor = PeerWire(0), Actor()
    wire.peers[1] = actor
    await actor.behind.open()
    for message in (RECORDS, ORDERS, RECORDS):
        await wire.call(1, message)
    assert actor.past_actor == [RECORDS] * 2 and actor.by_actor == [ORDERS] and actor.asked == 1
    await actor.behind.close()


async def test_on_another_node_all_goes_by_actors() -> None:
    wire, actor = PeerWire(0), Actor(here=False)
    wire.peers[1] = actor
    await actor.behind.open()
    for message in (RECORDS, RECORDS):
        await wire.call(1, message)
    assert actor.by_actor == [RECORDS] * 2 and not actor.past_actor and actor.asked == 1
    await actor.behind.close()


async def test_where_there_is_no_way_all_goes_by_actors() -> None:
    wire, actor = PeerWire(0), Actor()
    wire.peers[1] = actor
    await wire.call(1, RECORDS)  # nobody opens
    await wire.call(1, RECORDS)
    assert actor.by_actor == [RECORDS] * 2 and actor.asked == 1


async def test_a_way_that_breaks_is_left_and_one_to_the_successor_is_found() -> None:
    wire, actor, successor = PeerWire(0), Actor(), Actor()
    wire.peers[1] = actor
    await actor.behind.open()
    await wire.call(1, RECORDS)
    await actor.behind.close()
    with pytest.raises(ConnectionLost):
        await wire.call(1, RECORDS)
    await wire.call(1, RECORDS)
    assert actor.by_actor == [RECORDS], "its actor tells what has become of it"
    wire.peers[1] = successor
    await successor.behind.open()
    await wire.call(1, RECORDS)
    assert successor.past_actor == [RECORDS] and not successor.by_actor
    await successor.behind.close()


class Slow(Actor):
    """Says where it is reached when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.let: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.being_asked = asyncio.Event()

    async def door(self) -> str | None:
        self.being_asked.set()
        await self.let
        return await super().door()


async def test_a_way_that_is_found_late_does_not_take_the_place_of_one_to_the_successor() -> None:
    """The way to the successor would stay open for ever, and what leads to the one before be looked for again."""
    wire, slow, successor = PeerWire(0), Slow(), Actor()
    await slow.behind.open()
    await successor.behind.open()
    wire.peers[1] = slow
    late = asyncio.create_task(wire.call(1, RECORDS))
    await slow.being_asked.wait()
    wire.peers[1] = successor
    await wire.call(1, RECORDS)
    slow.let.set_result(None)
    await late
    await wire.call(1, RECORDS)
    assert successor.past_actor == [RECORDS] * 2 and successor.asked == 1
    assert slow.by_actor == [RECORDS] and not slow.past_actor
    await closed(slow.behind)
    await slow.behind.close()
    await successor.behind.close()


async def closed(door: Any) -> None:
    """Nobody is there any more."""
    async with asyncio.timeout(60):
        while door._visitors:
            await asyncio.sleep(0)


async def test_a_way_whose_finding_was_cut_short_is_looked_for_again() -> None:
    wire, slow = PeerWire(0), Slow()
    await slow.behind.open()
    wire.peers[1] = slow
    given_up = asyncio.create_task(wire.call(1, RECORDS))
    await slow.being_asked.wait()
    given_up.cancel()
    await asyncio.wait([given_up])
    slow.let = asyncio.get_running_loop().create_future()
    slow.let.set_exception(ConnectionLost("it does not answer"))
    with pytest.raises(ConnectionLost, match="does not answer"):
        await wire.call(1, RECORDS)
    slow.let = asyncio.get_running_loop().create_future()
    slow.let.set_result(None)
    await wire.call(1, RECORDS)
    assert slow.past_actor == [RECORDS] and not slow.by_actor
    await slow.behind.close()
