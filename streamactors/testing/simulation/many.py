"""Many runs, dealt out over worker processes."""

import importlib
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from streamactors.errors import InvalidConfig, SimulationFailed
from streamactors.testing.simulation.faults import Faults
from streamactors.testing.simulation.result import SimulationResult
from streamactors.testing.simulation.run import simulate
from streamactors.testing.simulation.scenario import Scenario
from streamactors.testing.simulation.settings import MODES
from streamactors.testing.simulation.topologies import TOPOLOGIES, scenario

CHUNK = 10
"""Runs that a worker takes at a time."""
COUNTED = (
    "processes",
    "attempts",
    "restores",
    "rescales",
    "mode_switches",
    "backend_switches",
    "checkpoints",
    "savepoints",
    "reused_files",
    "steps",
)
"""Of a result, summed up."""


@dataclass(frozen=True)
class Order:
    """One run to make: of `module:name`, or of a built-in topology in a mode. Can be sent to another process."""

    seed: int
    target: str | None = None
    topology: str = ""
    mode: str = ""
    faults: str = ""
    """Over those of the scenario, as `Faults.as_options` writes them."""

    @property
    def scenario(self) -> Scenario:
        made = scenario(self.topology, self.mode) if self.target is None else found(self.target)
        return replace(made, faults=Faults.from_options(self.faults, made.faults)) if self.faults else made

    @property
    def name(self) -> str:
        return self.target or f"{self.topology}, {self.mode}"


def run_scenario(topology: str, mode: str, seed: int, *, faults: Faults | None = None) -> SimulationResult:
    """One run of a built-in topology, in this process. Raises SimulationFailed."""
    return simulate(scenario(topology, mode), seed=seed, faults=faults)


def found(target: str) -> Scenario:
    """`module:name` of a Scenario, or of a factory that makes a flow."""
    module, colon, name = target.partition(":")
    if not colon or not name:
        raise InvalidConfig(f"{target!r} names no flow: write module:name of a factory or a Scenario")
    thing: Any = importlib.import_module(module)
    for part in name.split("."):
        thing = getattr(thing, part, None)
    made = thing if isinstance(thing, Scenario) else Scenario(thing)
    if not callable(made.flow):
        raise InvalidConfig(f"{target!r} is neither a factory of a Dataflow nor a Scenario")
    return replace(made, arguments=target)


def all_orders(seeds: Iterable[int], topologies: Sequence[str] = (), modes: Sequence[str] = ()) -> Iterator[Order]:
    """Seeds dealt out over the topologies and modes."""
    pairs = [(topology, mode) for mode in modes or MODES for topology in topologies or TOPOLOGIES]
    for place, seed in enumerate(seeds):
        topology, mode = pairs[place % len(pairs)]
        yield Order(seed, topology=topology, mode=mode)


@dataclass
class Totals:
    """Of many runs."""

    runs: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    virtual_seconds: float = 0.0
    cpu_seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    def add(self, order: Order, result: SimulationResult | str) -> None:
        self.runs[order.name] += 1
        if isinstance(result, str):
            self.failures.append(result)
            return
        self.faults.update(result.faults)
        self.virtual_seconds += result.virtual_seconds
        self.cpu_seconds += result.cpu_seconds
        for name in COUNTED:
            self.counts[name.replace("_", " ")] += getattr(result, name)


def make_run(order: Order) -> SimulationResult | str:
    """The result, or what has failed."""
    try:
        return simulate(order.scenario, seed=order.seed)
    except SimulationFailed as failure:
        return str(failure)


def _make_runs(orders: Sequence[Order]) -> list[SimulationResult | str]:
    return [make_run(order) for order in orders]


def run_many(orders: Iterable[Order], jobs: int, told: Callable[[Totals], None], *, most_failures: int = 10) -> Totals:
    """`jobs` worker processes (1: in this one). `told` after every few runs; stops after `most_failures`."""
    totals = Totals()
    waiting = iter(orders)
    if jobs == 1:
        while (chunk := list(islice(waiting, CHUNK))) and len(totals.failures) < most_failures:
            _count(totals, chunk, _make_runs(chunk), told)
        return totals
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        running: dict[Future[list[SimulationResult | str]], list[Order]] = {}
        while len(totals.failures) < most_failures:
            while len(running) < 2 * jobs and (chunk := list(islice(waiting, CHUNK))):
                running[pool.submit(_make_runs, chunk)] = chunk
            if not running:
                break
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                _count(totals, running.pop(done), done.result(), told)
        for future in running:
            future.cancel()
    return totals


def _count(
    totals: Totals, orders: Sequence[Order], results: Sequence[SimulationResult | str], told: Callable[[Totals], None]
) -> None:
    for order, result in zip(orders, results, strict=True):
        totals.add(order, result)
    told(totals)
