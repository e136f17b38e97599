"""Which way a message takes to another actor: past Ray on the same node, and by Ray else. Its handles are stood for."""

from typing import Any

import pytest

from streamactors.clock import SYSTEM
from streamactors.cluster.sockets import Door
from streamactors.cluster.wire import CONTROL, DATA, Epoch, Header, sealed
from streamactors.deploy import ray as deploy
from streamactors.deploy.ray import _RayWire
from streamactors.errors import ConnectionLost

RECORDS = sealed(Header(DATA, Epoch(1, 1), 0, 1), b"records")
ORDERS = sealed(Header(CONTROL, Epoch(1, 1), 0, 1), b"orders")


@pytest.fixture(autouse=True)
def node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy, "_node", lambda: "here")


class Actor:
    """Worker 1: what it was told, by Ray and past it."""

    def __init__(self, node: str = "here") -> None:
        self.node = node
        self.by_ray: list[bytes] = []
        self.past_ray: list[bytes] = []
        self.asked = 0
        self.behind = Door(lambda sender, message: self.past_ray.append(message), SYSTEM)

    @property
    def door(self) -> "Method":
        return Method(self._door)

    @property
    def take(self) -> "Method":
        return Method(self._take)

    async def _door(self) -> tuple[str, str | None]:
        self.asked += 1
        return self.node, self.behind.name

    async def _take(self, sender: int, message: bytes) -> None:
        self.by_ray.append(message)


class Method:
    def __init__(self, call: Any) -> None:
        self.remote = call


async def test_records_go_past_ray_on_one_node_and_orders_never() -> None:
    wire, actor = _RayWire(0), Actor()
    wire.peers[1] = actor
    await actor.behind.open()
    for message in (RECORDS, ORDERS, RECORDS):
        await wire.call(1, message)
    assert actor.past_ray == [RECORDS] * 2 and actor.by_ray == [ORDERS] and actor.asked == 1
    await actor.behind.close()


async def test_on_another_node_all_goes_by_ray() -> None:
    wire, actor = _RayWire(0), Actor("there")
    wire.peers[1] = actor
    await actor.behind.open()
    for message in (RECORDS, RECORDS):
        await wire.call(1, message)
    assert actor.by_ray == [RECORDS] * 2 and not actor.past_ray and actor.asked == 1
    await actor.behind.close()


async def test_where_there_is_no_way_all_goes_by_ray() -> None:
    wire, actor = _RayWire(0), Actor()
    wire.peers[1] = actor
    await wire.call(1, RECORDS)  # nobody opens
    await wire.call(1, RECORDS)
    assert actor.by_ray == [RECORDS] * 2 and actor.asked == 1


async def test_a_way_that_breaks_is_left_and_one_to_the_successor_is_found() -> None:
    wire, actor, successor = _RayWire(0), Actor(), Actor()
    wire.peers[1] = actor
    await actor.behind.open()
    await wire.call(1, RECORDS)
    await actor.behind.close()
    with pytest.raises(ConnectionLost):
        await wire.call(1, RECORDS)
    await wire.call(1, RECORDS)
    assert actor.by_ray == [RECORDS], "Ray tells what has become of it"
    wire.peers[1] = successor
    await successor.behind.open()
    await wire.call(1, RECORDS)
    assert successor.past_ray == [RECORDS] and not successor.by_ray
    await successor.behind.close()
