"""Which room there is for a job's workers: resources by name (CPU, GPU, memory in bytes, or the cluster's own)."""

import logging
import math
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from streamactors.clock import Clock
from streamactors.config import Ray
from streamactors.errors import ClusterUnfit

log = logging.getLogger("streamactors.ray")

_FIRST_LOOK: Final = 0.2
_LAST_LOOK: Final = 5.0
"""Seconds between two looks, at first and in the end."""
_ANY: Final = 10_000
"""Workers on a node, where they ask for nothing."""

Resources = Mapping[str, float]


@dataclass(frozen=True)
class Node:
    """One that lives: what it has in all, and what of that nobody has taken at present."""

    id: str
    total: Resources
    free: Resources


async def wait_for_room(settings: Ray, nodes: Callable[[], Awaitable[Sequence[Node]]], clock: Clock) -> None:
    """For a cluster that grows: whoever has the room at present. Raises ClusterUnfit after the settings' patience,
    telling what is missing."""
    until = clock.monotonic() + settings.patience.total_seconds()
    pause = _FIRST_LOOK
    while (lacking := what_lacks(settings, await nodes())) is not None:
        if clock.monotonic() >= until:
            raise ClusterUnfit(lacking)
        log.info("%s; waiting", lacking)
        await clock.sleep(pause)
        pause = min(2 * pause, _LAST_LOOK)


def what_lacks(settings: Ray, nodes: Sequence[Node]) -> str | None:
    """None where there is room, if nobody else were there."""
    room = sum(_workers_in(node.total, settings.each) for node in nodes)
    if room >= settings.workers:
        return None
    there = "; ".join(_listed((name, node.total.get(name, 0)) for name in settings.each) for node in nodes)
    return (
        f"{settings.workers} workers with {_each(settings)} each don't fit: there is room for {room} "
        f"(nodes: {there or 'none'}); add nodes, or ask for less by Ray(workers=…, resources=…)"
    )


def what_is_taken(settings: Ray, late: int, nodes: Sequence[Node]) -> str | None:
    """None where there is room for as many as have not started yet."""
    room = sum(_workers_in(node.free, settings.each) for node in nodes)
    if room >= late:
        return None
    free = "; ".join(
        ", ".join(f"{name}={node.free.get(name, 0):g} of {node.total.get(name, 0):g}" for name in settings.each)
        for node in nodes
    )
    return (
        f"{late} of {settings.workers} workers with {_each(settings)} each have not started: at present there is room "
        f"for {room}, and the rest is taken (free on the nodes: {free or 'none'}); end what has it, add nodes, "
        "wait for longer by Ray(patience=…), or ask for less by Ray(workers=…, resources=…)"
    )


def _each(settings: Ray) -> str:
    return _listed(settings.each.items())


def _listed(resources: Iterable[tuple[str, float]]) -> str:
    return ", ".join(f"{name}={amount:g}" for name, amount in resources)


def _workers_in(has: Resources, each: Resources) -> int:
    """How many a node could hold, if it held nothing else."""
    shares = [has.get(name, 0.0) / amount for name, amount in each.items() if amount]
    return int(min(shares, default=float(_ANY)) + 1e-9)


def own_node(settings: Ray) -> dict[str, Any]:
    """Of a Ray that is started for this job, as `ray.init` takes it: as much as its workers take."""
    each = dict(settings.each)
    cpus = math.ceil(max(os.cpu_count() or 1, each["CPU"] * settings.workers))
    own = {name: amount * settings.workers for name, amount in each.items() if name not in ("CPU", "GPU", "memory")}
    return {"num_cpus": cpus, "resources": own}


def of_one_worker(settings: Ray) -> dict[str, Any]:
    """As the options of an actor take it."""
    each: dict[str, Any] = dict(settings.each)
    return {
        "num_cpus": each.pop("CPU"),
        "num_gpus": each.pop("GPU", 0.0),
        "memory": each.pop("memory", None),
        "resources": each,
    }
