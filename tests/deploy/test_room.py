"""Whether a cluster has room for the workers, and what is missing."""

import datetime as dt
from collections.abc import Mapping, Sequence

import pytest

import streamactors as sa
from streamactors.clock import SYSTEM
from streamactors.deploy.room import Node, of_one_worker, own_node, wait_for_room, what_is_taken, what_lacks
from streamactors.errors import ClusterUnfit

Nodes = Sequence[Node]


def nodes_with(*totals: Mapping[str, float], free: Sequence[Mapping[str, float]] | None = None) -> Nodes:
    """`free`: all of it, unless it is given."""
    each = zip(totals, totals if free is None else free, strict=True)
    return [Node(f"node {number}", total, its) for number, (total, its) in enumerate(each)]


def test_each_worker_has_to_fit_on_one_node() -> None:
    settings = sa.Ray(workers=3, resources={"CPU": 2, "disk": 0.1})
    assert what_lacks(settings, nodes_with({"CPU": 4, "disk": 1}, {"CPU": 3, "disk": 0.1})) is None
    lacking = what_lacks(settings, nodes_with({"CPU": 4, "disk": 1}, {"CPU": 1, "disk": 1}, {"CPU": 64}))
    assert lacking is not None and "3 workers with CPU=2, disk=0.1 each don't fit: there is room for 2" in lacking
    assert "CPU=4, disk=1; CPU=1, disk=1; CPU=64, disk=0)" in lacking


def test_what_asks_for_nothing_fits_anywhere() -> None:
    settings = sa.Ray(workers=9, resources={"CPU": 0})
    assert what_lacks(settings, nodes_with({})) is None
    assert "there is room for 0 (nodes: none)" in str(what_lacks(settings, []))


def test_what_others_have_taken_is_told_beside_what_there_is() -> None:
    settings = sa.Ray(workers=3, resources={"CPU": 2, "disk": 1})
    free = {"CPU": 3.0}, {"CPU": 1.0, "disk": 5.0}, {"CPU": 2.0, "disk": 2.5}
    nodes = nodes_with(*[{"CPU": 4, "disk": 5}] * 3, free=free)
    assert what_lacks(settings, nodes) is None and what_is_taken(settings, 1, nodes) is None
    lacking = what_is_taken(settings, 2, nodes)
    assert lacking is not None and "2 of 3 workers with CPU=2, disk=1 each have not started" in lacking
    assert "there is room for 1, and the rest is taken" in lacking
    assert "CPU=3 of 4, disk=0 of 5; CPU=1 of 4, disk=5 of 5; CPU=2 of 4, disk=2.5 of 5)" in lacking


async def test_a_cluster_that_grows_is_waited_for() -> None:
    seen: list[Nodes] = [[], nodes_with({"CPU": 1}), nodes_with({"CPU": 1}, {"CPU": 1})]

    async def nodes() -> Nodes:
        return seen.pop(0)

    await wait_for_room(sa.Ray(workers=2), nodes, SYSTEM)
    assert not seen


async def test_not_beyond_the_patience() -> None:
    async def nodes() -> Nodes:
        return nodes_with({"CPU": 1})

    with pytest.raises(ClusterUnfit, match="there is room for 1"):
        await wait_for_room(sa.Ray(workers=2, patience=dt.timedelta(microseconds=1)), nodes, SYSTEM)


def test_a_ray_of_its_own_has_what_the_workers_take() -> None:
    settings = sa.Ray(workers=20_000, resources={"CPU": 0.5, "memory": 1e9, "disk": 2})
    assert own_node(settings) == {"num_cpus": 10_000, "resources": {"disk": 40_000}}
    assert of_one_worker(settings) == {"num_cpus": 0.5, "num_gpus": 0.0, "memory": 1e9, "resources": {"disk": 2}}
