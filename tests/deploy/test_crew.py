"""The workers of a job, outside of Ray: who is looked at, who counts as dead, and what a start that fails says."""

import asyncio
import datetime as dt
import re
from collections.abc import Callable, Mapping, Sequence

import pytest

import streamactors as sa
from streamactors.clock import SYSTEM
from streamactors.deploy.crew import Crew, Member
from streamactors.deploy.room import Node
from streamactors.deploy.versions import About, about
from streamactors.errors import ClusterUnfit, ConnectionLost

FEW = dt.timedelta(milliseconds=1)


class Process:
    """Stands for a worker's. `there`: it answers."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.there = asyncio.Event()
        self.there.set()
        self.its = about()
        self.met: Mapping[int, Member] = {}
        self.death: asyncio.Future[tuple[str, bool]] = asyncio.get_running_loop().create_future()
        self.ended = False
        self.reached = True
        """By what it is told."""
        self.room = False
        self.out_of_reach = 0
        """How often, from now on."""

    async def about(self) -> About:
        await self.there.wait()
        return self.its

    async def node(self) -> str:
        return f"node {self.number}"

    async def meet(self, members: Mapping[int, Member]) -> None:
        self.met = dict(members)

    async def gone(self) -> tuple[str, bool]:
        if self.out_of_reach:
            self.out_of_reach -= 1
            raise ConnectionLost("it is cut off")
        return await self.death

    async def end(self) -> None:
        """The cluster says so at once, whether that reaches it or not."""
        self.ended = True
        if not self.death.done():
            self.death.set_result(("it was ended", True))

    async def placed(self) -> bool:
        return self.room

    async def leave(self) -> None:
        if not self.reached:
            raise ConnectionLost("out of reach")


class Cluster:
    """With one node for each worker, and room for it there, unless a test says otherwise."""

    def __init__(self, settings: sa.Ray, *, again: bool = False) -> None:
        self.begun: list[Process] = []
        self.make: Callable[[int], Process] = Process
        self.nodes = [Node(f"node {number}", {"CPU": 1}, {"CPU": 1}) for number in range(settings.workers)]
        self.answers = True
        self.lost: asyncio.Queue[tuple[int, str, bool]] = asyncio.Queue()
        self._again = again
        self.crew = Crew("orders", settings, self._begin, self._nodes, self._restarted, SYSTEM)
        self.crew.lost = lambda *told: self.lost.put_nowait(told)

    async def _begin(self, number: int) -> Process:
        self.begun.append(self.make(number))
        return self.begun[-1]

    async def _nodes(self) -> Sequence[Node]:
        if not self.answers:
            raise ConnectionLost("the head is gone")
        return self.nodes

    async def _restarted(self) -> bool:
        return self._again


def absent(number: int) -> Process:
    process = Process(number)
    process.there.clear()
    return process


async def test_they_know_each_other_once_all_are_there() -> None:
    cluster = Cluster(sa.Ray(workers=3))
    await cluster.crew.ready([])
    assert all(process.met == dict(enumerate(cluster.begun)) for process in cluster.begun)
    await cluster.crew.ready([1])
    assert [process.number for process in cluster.begun] == [0, 1, 2, 1]
    zero, before, two, after = cluster.begun
    assert before.ended and all(process.met == {0: zero, 1: after, 2: two} for process in (zero, after, two))
    await cluster.crew.close()
    assert all(process.ended for process in cluster.begun)


async def test_one_that_comes_after_a_time_out_is_looked_at_the_next_time() -> None:
    """It is not missing any more then."""
    cluster = Cluster(sa.Ray(workers=2, patience=dt.timedelta(seconds=0.5)))
    cluster.make = lambda number: absent(number) if number else Process(number)
    with pytest.raises(ConnectionLost, match=r"^worker 1 has not started within 0:00:00\.500000$"):
        await cluster.crew.ready([])
    cluster.crew._settings = sa.Ray(workers=2)
    cluster.begun[1].its = about()._replace(msgspec="0.1")
    cluster.begun[1].there.set()
    with pytest.raises(ClusterUnfit, match=r"worker 1 runs with msgspec 0\.1 on node"):
        await cluster.crew.ready([])
    assert [process.met for process in cluster.begun] == [{}, {}]
    await cluster.crew.close()


async def test_one_in_the_place_of_another_is_looked_at_too() -> None:
    cluster = Cluster(sa.Ray(workers=1))
    await cluster.crew.ready([])
    cluster.make = with_another_python
    with pytest.raises(ClusterUnfit, match=r"worker 0 runs with python 2\.7"):
        await cluster.crew.ready([0])
    await cluster.crew.close()


def with_another_python(number: int) -> Process:
    process = Process(number)
    process.its = about()._replace(python="2.7")
    return process


# ------------------------------------------------------------------------------------------------------- who is dead
async def told_of_death(cluster: Cluster, *, ended: bool = True) -> tuple[int, str, bool]:
    await cluster.crew.ready([])
    cluster.begun[1].death.set_result(("its process has died", ended))
    told = await cluster.lost.get()
    await cluster.crew.close()
    return told


async def test_who_has_died_on_a_node_that_lives_is_dead() -> None:
    assert await told_of_death(Cluster(sa.Ray(workers=2))) == (1, "its process has died", True)


async def test_who_was_on_a_node_that_is_lost_may_live_on() -> None:
    """Whatever the cluster's words for it are."""
    cluster = Cluster(sa.Ray(workers=2))
    del cluster.nodes[1]
    assert await told_of_death(cluster) == (1, "its process has died", False)


async def test_where_nobody_knows_it_may_live_on() -> None:
    cluster = Cluster(sa.Ray(workers=2))
    cluster.answers = False
    assert await told_of_death(cluster) == (1, "its process has died", False)
    assert await told_of_death(Cluster(sa.Ray(workers=2)), ended=False) == (1, "its process has died", False)


async def test_who_was_out_of_reach_for_a_moment_is_not_gone() -> None:
    cluster = Cluster(sa.Ray(workers=1))
    cluster.make = lambda number: cut_off(number, 2)
    await cluster.crew.ready([])
    while cluster.begun[0].out_of_reach:
        await asyncio.sleep(0.01)
    assert cluster.lost.empty()
    cluster.begun[0].death.set_result(("its process has died", True))
    assert await cluster.lost.get() == (0, "its process has died", True)
    await cluster.crew.close()


async def test_who_stays_out_of_reach_may_live_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamactors.deploy.crew.MADE_SURE", 0.3)
    cluster = Cluster(sa.Ray(workers=1))
    cluster.make = lambda number: cut_off(number, 10_000)
    await cluster.crew.ready([])
    assert await cluster.lost.get() == (0, "it is cut off", False)
    await cluster.crew.close()


def cut_off(number: int, times: int) -> Process:
    process = Process(number)
    process.out_of_reach = times
    return process


async def test_who_has_never_had_a_part_is_dead() -> None:
    """No other attempt has to wait for it."""
    cluster = Cluster(sa.Ray(workers=2, patience=FEW))
    cluster.make, cluster.answers = absent, False
    with pytest.raises(ConnectionLost):
        await cluster.crew.ready([])
    cluster.begun[0].death.set_result(("it can't be started", True))
    assert await cluster.lost.get() == (0, "it can't be started", True)
    await cluster.crew.close()


async def test_the_next_attempt_knows_what_is_just_being_found_out() -> None:
    """It must not begin before it is known whether it has to wait."""
    cluster = Cluster(sa.Ray(workers=2))
    await cluster.crew.ready([])
    asked, answered = asyncio.Event(), asyncio.Event()
    living = cluster.nodes.copy()

    async def slowly() -> Sequence[Node]:
        asked.set()
        await answered.wait()
        return living[:1]

    cluster.crew._living_nodes = slowly
    cluster.begun[1].death.set_result(("its process has died", True))
    await asked.wait()
    next_attempt = asyncio.create_task(cluster.crew.ready([1]))
    await asyncio.sleep(0)
    answered.set()
    assert await next_attempt == {1}
    assert cluster.lost.empty(), "it is no news that it is lost"
    await cluster.crew.close()


async def test_who_is_seen_to_end_is_waited_for_no_longer() -> None:
    cluster = Cluster(sa.Ray(workers=2))
    await cluster.crew.ready([])
    assert await cluster.crew.ready([0, 1]) == set()
    assert cluster.lost.empty()
    await cluster.crew.close()


async def test_who_has_just_died_is_not_known_to_have_at_once() -> None:
    cluster = Cluster(sa.Ray(workers=1))
    await cluster.crew.ready([])
    cluster.begun[0].reached = False
    next_attempt = asyncio.create_task(cluster.crew.ready([0]))
    await asyncio.sleep(0.05)
    cluster.begun[0].reached = True
    assert await next_attempt == set()
    await cluster.crew.close()


async def test_who_is_replaced_and_not_seen_to_end_may_live_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one on a node that is cut off. The attempt that was to be next may have failed, too."""
    monkeypatch.setattr("streamactors.deploy.crew.MADE_SURE", 0.3)
    cluster = Cluster(sa.Ray(workers=2))
    await cluster.crew.ready([])
    cluster.begun[1].reached = False
    cluster.make = with_another_python
    with pytest.raises(ClusterUnfit):
        await cluster.crew.ready([0, 1])
    cluster.make = Process
    assert await cluster.crew.ready([0, 1]) == {1}
    await cluster.crew.close()


# ------------------------------------------------------------------------------------------------------------- room
TAKEN = r"2 of 2 workers with CPU=1 each have not started: .* room for 1, .* CPU=1 of 1; CPU=0 of 1\)"


def full(*, again: bool = False) -> Cluster:
    cluster = Cluster(sa.Ray(workers=2, patience=FEW), again=again)
    cluster.nodes[1] = Node("node 1", {"CPU": 1}, {"CPU": 0})
    cluster.make = absent
    return cluster


async def test_what_others_have_taken_fails_a_first_start() -> None:
    cluster = full()
    with pytest.raises(ClusterUnfit, match=TAKEN):
        await cluster.crew.ready([])
    await cluster.crew.close()


async def test_where_there_was_room_it_is_not_what_is_missing() -> None:
    """They have taken it themselves, and start slowly."""
    cluster = full()
    cluster.make = slow
    with pytest.raises(ConnectionLost, match="^worker 0, worker 1 has not started within"):
        await cluster.crew.ready([])
    await cluster.crew.close()


def slow(number: int) -> Process:
    process = absent(number)
    process.room = True
    return process


async def test_later_on_it_may_come_back() -> None:
    cluster = full(again=True)
    with pytest.raises(ConnectionLost, match=TAKEN):
        await cluster.crew.ready([])
    await cluster.crew.close()
    cluster = Cluster(sa.Ray(workers=1))
    await cluster.crew.ready([])
    cluster.nodes.clear()
    cluster.crew._settings = sa.Ray(workers=1, patience=FEW)
    cluster.make = absent
    with pytest.raises(ConnectionLost, match=re.escape("1 workers with CPU=1 each don't fit")):
        await cluster.crew.ready([0])
    await cluster.crew.close()


async def test_what_is_waited_for_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("streamactors.deploy.crew._TOLD_AFTER", 0.0)
    caplog.set_level("INFO", "streamactors.ray")
    cluster = full()
    cluster.crew._settings = sa.Ray(workers=2)
    ready = asyncio.create_task(cluster.crew.ready([]))
    while not re.search(rf"^orders: {TAKEN}.*; waiting$", caplog.messages[-1] if caplog.messages else ""):
        await asyncio.sleep(0)
    for process in cluster.begun:
        process.there.set()
    await ready
    await cluster.crew.close()
